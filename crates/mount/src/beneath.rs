//! Ordinary directories below a merged tree: where directories that no layer described get their attributes from.
use clipper_format::{
    Digest,
    merge::Below,
    tree::{Content, Inode},
};
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// Unpacked layers that a tree with whiteouts will lie above.
#[derive(Clone, Debug)]
pub struct Beneath {
    /// What the directories hold, for example the chain ID of their layers: equal for equal content.
    pub id: Digest,
    /// Each layer's own directory, topmost first.
    pub dirs: Vec<PathBuf>,
}

impl Beneath {
    /// What the topmost directory that has anything at `path` (absolute within each) has there. Symlinks on the way are
    /// followed within the directory, as containerd does when it unpacks.
    pub fn look(&self, path: &[u8]) -> Below {
        for dir in &self.dirs {
            match find(dir, path) {
                Ok(Some(inode)) => return Below::Directory(Box::new(inode)),
                Ok(None) | Err(Errno::NOTDIR) => return Below::Other,
                Err(Errno::NOENT) => {}
                Err(error) => {
                    let path = String::from_utf8_lossy(path);
                    tracing::warn!(dir = %dir.display(), %path, %error, "a lower directory can't be looked at");
                    return Below::Other;
                }
            }
        }
        Below::Nothing
    }
}

/// The directory at `path` below `root`; `None` if something else is there.
fn find(root: &Path, path: &[u8]) -> Result<Option<Inode>, Errno> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let found = rustix::fs::openat2(
        &root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    let status = rustix::fs::fstat(&found)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
        return Ok(None);
    }
    let Stat { st_mode, st_uid, st_gid, st_mtime, st_mtime_nsec, .. } = status;
    Ok(Some(Inode {
        perm: (st_mode & 0o7777) as u16,
        uid: st_uid,
        gid: st_gid,
        mtime: st_mtime,
        mtime_nsec: st_mtime_nsec as u32,
        xattrs: xattrs(&found)?,
        content: Content::Directory(Default::default()),
    }))
}

fn xattrs(directory: &OwnedFd) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    // Xattr calls refuse a descriptor that was opened for its path only.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(directory, c".", flags, Mode::empty())?;
    let mut names = vec![0; rustix::fs::flistxattr_query(&directory)?];
    let len = rustix::fs::flistxattr(&directory, &mut names[..])?;
    let mut xattrs = BTreeMap::new();
    for name in names.get(..len).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; rustix::fs::fgetxattr_query(&directory, name)?];
        let len = rustix::fs::fgetxattr(&directory, name, &mut value[..])?;
        value.truncate(len);
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    #[test]
    fn the_topmost_directory_that_has_anything_decides_and_links_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        let (top, bottom) = (root.path().join("top"), root.path().join("bottom"));
        for dir in ["top/a", "bottom/a", "bottom/b/c", "bottom/hidden"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        fs::set_permissions(top.join("a"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::set_permissions(bottom.join("b/c"), fs::Permissions::from_mode(0o700)).unwrap();
        xattr::set(bottom.join("b/c"), "user.x", b"value").unwrap();
        fs::write(top.join("hidden"), "a file").unwrap();
        symlink("/b", bottom.join("link")).unwrap();
        let beneath = Beneath { id: Digest::of(b"beneath"), dirs: vec![top, bottom] };
        let perm = |path: &str| match beneath.look(path.as_bytes()) {
            Below::Directory(inode) => Some(inode.perm),
            _ => None,
        };
        assert_eq!(perm("/a"), Some(0o1777));
        assert_eq!(perm("/b/c"), Some(0o700));
        assert_eq!(perm("/link/c"), Some(0o700));
        assert_eq!(perm("/../../b/c"), Some(0o700));
        assert_eq!(beneath.look(b"/hidden"), Below::Other);
        assert_eq!(beneath.look(b"/hidden/x"), Below::Other);
        assert_eq!(beneath.look(b"/missing"), Below::Nothing);
        let Below::Directory(inode) = beneath.look(b"/b/c") else { panic!("not a directory") };
        assert_eq!(inode.xattrs[&b"user.x"[..]], b"value");
    }
}
