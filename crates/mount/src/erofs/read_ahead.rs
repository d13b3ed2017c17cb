//! How far the kernel reads ahead on an EROFS filesystem. No option of the mount says so, only a file in sysfs whose name
//! counts filesystems, so ours is the one that came with it.
use std::{collections::HashSet, ffi::OsString, fs, io, path::Path};

/// Where the kernel has a directory for each filesystem that reads ahead by itself.
const ALL: &str = "/sys/class/bdi";

/// The EROFS filesystems of the machine at some moment.
pub(super) struct Before(HashSet<OsString>);

impl Before {
    pub(super) fn now() -> io::Result<Self> {
        let mut names = HashSet::new();
        for entry in fs::read_dir(ALL)? {
            names.insert(entry?.file_name());
        }
        names.retain(|name| name.as_encoded_bytes().starts_with(b"erofs-"));
        Ok(Self(names))
    }

    /// Makes the kernel read `kib` KiB ahead on the filesystem that was made since.
    pub(super) fn set(self, kib: u32) -> io::Result<()> {
        let Self(after) = Self::now()?;
        let mut new = after.difference(&self.0);
        match (new.next(), new.next()) {
            (Some(name), None) => fs::write(Path::new(ALL).join(name).join("read_ahead_kb"), kib.to_string()),
            (None, _) => Err(io::Error::other("the kernel shows no read-ahead of it")),
            (Some(_), Some(_)) => Err(io::Error::other("somebody else mounted EROFS at the same moment")),
        }
    }
}
