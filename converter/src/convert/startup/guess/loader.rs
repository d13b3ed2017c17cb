//! The dynamic linker: where libraries are (ld.so(8)).
use super::elf::Needs;
use super::{Guess, HEADER, split};
use crate::convert::startup::files::{Found, ImageFiles};
use crate::convert::startup::reader::FileReader;

/// Where libraries are if nothing else says so.
const LIBRARY_DIRS: [&str; 4] = ["/lib", "/usr/lib", "/lib64", "/usr/lib64"];
/// Configuration files that are read.
const FILES_MAX: usize = 512;

/// The directories in /etc/ld.so.conf and what it includes, then the usual ones.
pub struct Loader {
    dirs: Vec<String>,
}

impl Loader {
    pub async fn read(files: &ImageFiles, reader: &FileReader<'_>) -> Self {
        let mut dirs = Vec::new();
        let mut texts = vec![b"/etc/ld.so.conf".to_vec()];
        let mut read = 0;
        while let Some(path) = texts.pop()
            && read < FILES_MAX
        {
            read += 1;
            let Some(found) = files.locate(&path) else { continue };
            let text = reader.read(files, found.id, 0..HEADER).await.unwrap_or_default();
            for line in String::from_utf8_lossy(&text).lines() {
                let line = line.split('#').next().unwrap_or_default().trim();
                if let Some(pattern) = line.strip_prefix("include ") {
                    texts.extend(matching(files, pattern.trim()));
                } else if line.starts_with('/') {
                    dirs.push(line.to_owned());
                }
            }
        }
        dirs.extend(LIBRARY_DIRS.map(str::to_owned));
        Self { dirs }
    }
}

/// Files that a pattern such as `/etc/ld.so.conf.d/*.conf` matches; one `*`, in the last name. The last first.
fn matching(files: &ImageFiles, pattern: &str) -> Vec<Vec<u8>> {
    let pattern = if pattern.starts_with('/') { pattern.to_owned() } else { format!("/etc/{pattern}") };
    let Some((dir, name)) = pattern.rsplit_once('/') else { return Vec::new() };
    let Some((before, after)) = name.split_once('*') else { return vec![pattern.into_bytes()] };
    let names = files.names(dir.as_bytes()).into_iter().rev();
    let fits = |name: &Vec<u8>| {
        name.len() >= before.len() + after.len()
            && name.starts_with(before.as_bytes())
            && name.ends_with(after.as_bytes())
    };
    names.filter(fits).map(|name| [dir.as_bytes(), b"/", &name].concat()).collect()
}

impl Guess<'_> {
    /// What the dynamic linker loads for a program or library.
    pub(super) fn libraries(&mut self, file: &Found, needs: &Needs) {
        if let Some(interpreter) = &needs.interpreter {
            self.take(&String::from_utf8_lossy(interpreter));
        }
        let path = String::from_utf8_lossy(&file.path).into_owned();
        let origin = split(&path).0;
        let own = needs.run_path.iter().map(|dir| dir.replace("${ORIGIN}", origin).replace("$ORIGIN", origin));
        let dirs: Vec<String> = own.chain(self.loader.dirs.iter().cloned()).collect();
        for name in &needs.libraries {
            if name.contains('/') {
                let path = self.absolute(name);
                self.take(&path);
            } else {
                // The first directory that has it: as a rule there is no second.
                let _ = dirs.iter().find_map(|dir| self.take(&format!("{dir}/{name}")));
            }
        }
    }
}
