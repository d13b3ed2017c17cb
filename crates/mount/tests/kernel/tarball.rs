//! Layers as tars: PAX headers carry nanoseconds, xattrs and long names.
use std::collections::BTreeMap;
use tar::{Builder, EntryType, Header};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    /// A further name of the file at this path.
    Hardlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    pub fn new(path: &[u8], kind: Kind) -> Self {
        let mode = match kind {
            Kind::Directory => 0o755,
            Kind::Symlink(_) => 0o777,
            _ => 0o644,
        };
        let mtime = (1_600_000_000, 123_456_789);
        Self { path: path.to_vec(), kind, mode, uid: 0, gid: 0, mtime, xattrs: BTreeMap::new() }
    }

    pub fn file(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self::new(path.as_bytes(), Kind::File(content.into()))
    }

    pub fn dir(path: &str) -> Self {
        Self::new(path.as_bytes(), Kind::Directory)
    }

    pub fn symlink(path: &str, target: &str) -> Self {
        Self::new(path.as_bytes(), Kind::Symlink(target.into()))
    }

    /// A further name of this entry, with a header that says the same of it: unpacking applies that of the link, too.
    pub fn linked(&self, path: &str) -> Self {
        Self { path: path.into(), kind: Kind::Hardlink(self.path.clone()), ..self.clone() }
    }

    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub fn owner(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }

    pub fn mtime(self, seconds: i64, nanoseconds: u32) -> Self {
        Self { mtime: (seconds, nanoseconds), ..self }
    }

    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.insert(name.into(), value.into());
        self
    }
}

/// The tar of `entries`, in their order.
pub fn tarball(entries: &[Entry]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        let (seconds, nanoseconds) = entry.mtime;
        let mut pax: Vec<(String, Vec<u8>)> = vec![("path".into(), entry.path.clone())];
        pax.push(("mtime".into(), decimal(seconds, nanoseconds).into_bytes()));
        let mut header = Header::new_ustar();
        let mut content: &[u8] = &[];
        let entry_type = match &entry.kind {
            Kind::File(bytes) => {
                content = bytes;
                EntryType::Regular
            }
            Kind::Directory => EntryType::Directory,
            Kind::Symlink(target) => {
                pax.push(("linkpath".into(), target.clone()));
                EntryType::Symlink
            }
            Kind::Hardlink(target) => {
                pax.push(("linkpath".into(), target.clone()));
                EntryType::Link
            }
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                if matches!(entry.kind, Kind::CharDevice(..)) { EntryType::Char } else { EntryType::Block }
            }
            Kind::Fifo => EntryType::Fifo,
        };
        header.set_entry_type(entry_type);
        for (name, value) in &entry.xattrs {
            pax.push((format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)), value.clone()));
        }
        builder.append_pax_extensions(pax.iter().map(|(key, value)| (key.as_str(), value.as_slice()))).unwrap();
        header.set_mode(entry.mode);
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_mtime(seconds.max(0) as u64);
        header.set_size(content.len() as u64);
        header.as_mut_bytes()[..8].copy_from_slice(b"see-pax\0");
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Seconds and nanoseconds as PAX writes them: nanoseconds of a negative time count away from zero.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    }
}
