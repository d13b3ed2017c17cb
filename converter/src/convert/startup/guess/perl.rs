//! What a Perl script loads (perlfunc, "use" and "require"; `perl -V` tells where modules are).
use super::{Guess, NAMES_MAX};

/// Directories with modules; a `*` stands for a name between slashes.
const ROOTS: [&str; 6] = [
    "/etc/perl",
    "/usr/lib/*/perl-base",
    "/usr/share/perl5",
    "/usr/lib/*/perl5/*",
    "/usr/lib/*/perl/*",
    "/usr/share/perl/*",
];

/// The directories with modules that the image has, once they were looked for.
#[derive(Default)]
pub struct Perl(Option<Vec<String>>);

/// Most such directories.
const ROOTS_MAX: usize = 32;

impl Guess<'_> {
    /// Takes the modules that the script uses, and what of them is machine code.
    pub(super) fn perl(&mut self, text: &[u8]) {
        let roots = self.perl.0.take().unwrap_or_else(|| self.roots());
        let text = String::from_utf8_lossy(text);
        for module in modules(&text).into_iter().take(NAMES_MAX) {
            let path = module.replace("::", "/");
            let name = path.rsplit('/').next().unwrap_or_default();
            for file in [format!("{path}.pm"), format!("auto/{path}/{name}.so")] {
                let _ = roots.iter().find_map(|root| self.take(&format!("{root}/{file}")));
            }
        }
        self.perl.0 = Some(roots);
    }

    fn roots(&self) -> Vec<String> {
        let mut found = Vec::new();
        for root in ROOTS {
            let mut dirs = vec![String::new()];
            for part in root.split('/').skip(1) {
                dirs = dirs.iter().flat_map(|dir| self.parts(dir, part)).take(NAMES_MAX).collect();
                dirs.retain(|dir| self.files.locate(dir.as_bytes()).is_some());
            }
            found.extend(dirs);
        }
        found.truncate(ROOTS_MAX);
        found
    }

    /// `dir/part`, or all that there is for `*`.
    fn parts(&self, dir: &str, part: &str) -> Vec<String> {
        if part != "*" {
            return vec![format!("{dir}/{part}")];
        }
        let names = self.files.names(dir.as_bytes());
        names.iter().map(|name| format!("{dir}/{}", String::from_utf8_lossy(name))).collect()
    }
}

/// The modules that a script names in `use` and `require`, at the beginning of a line.
fn modules(text: &str) -> Vec<&str> {
    let lines = text.lines().take_while(|line| *line != "__END__");
    lines
        .filter_map(|line| {
            let line = line.trim_start();
            let rest = line.strip_prefix("use ").or_else(|| line.strip_prefix("require "))?.trim_start();
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
            let name = &rest[..end];
            name.starts_with(|c: char| c.is_ascii_alphabetic()).then_some(name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_named_at_the_beginning_of_lines() {
        let script = "#!/usr/bin/perl -w\nuse strict;\nuse 5.36.0;\n  require File::Spec::Unix;\nuse POSIX qw(dup);\n\
                      # use no;\nmy $use = 1;\n__END__\nuse none;\n";
        assert_eq!(modules(script), ["strict", "File::Spec::Unix", "POSIX"]);
    }
}
