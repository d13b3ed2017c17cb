//! Mount lists: how a snapshot's directories become what containerd mounts, as its overlayfs snapshotter does.
use crate::snapshot::{Kind, Mount};
use std::path::{Path, PathBuf};

/// Options that every overlay mount of this node takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// The kernel knows `index=`, so `index=off` is given: lower directories are shared by many mounts.
    pub index_off: bool,
    /// Overlayfs keeps its marks in `user.` instead of `trusted.` xattrs: needed inside a user namespace.
    pub user_xattr: bool,
}

impl OverlayOptions {
    /// What this kernel and this process need.
    pub fn detect() -> Self {
        Self { index_off: Path::new("/sys/module/overlay/parameters/index").exists(), user_xattr: in_user_namespace() }
    }
}

/// Whether user IDs are mapped: the initial namespace maps all of them to themselves.
fn in_user_namespace() -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else { return false };
    let fields: Vec<_> = map.split_whitespace().collect();
    fields != ["0", "0", "4294967295"]
}

/// A snapshot's own directories.
#[derive(Clone, Debug)]
pub struct Own {
    /// Where its files are, or are written.
    pub upper: PathBuf,
    /// Overlayfs's work directory, on the same filesystem.
    pub work: PathBuf,
}

/// The mounts of a snapshot of `kind` with directories `own` over `lowers`, topmost first.
///
/// A long `lowerdir` isn't shortened here: containerd mounts with a path relative to the common parent directory
/// when options would exceed a page (`mount/mount_linux.go`, `compactLowerdirOption`).
pub fn mounts(kind: Kind, own: &Own, lowers: &[PathBuf], options: OverlayOptions) -> Vec<Mount> {
    let read_only = kind != Kind::Active;
    match lowers {
        [] => return vec![bind(&own.upper, read_only)],
        [only] if read_only => return vec![bind(only, true)],
        _ => {}
    }
    let mut list = Vec::new();
    if options.index_off {
        list.push("index=off".to_owned());
    }
    if options.user_xattr {
        list.push("userxattr".to_owned());
    }
    if !read_only {
        list.push(format!("workdir={}", own.work.display()));
        list.push(format!("upperdir={}", own.upper.display()));
    }
    let lowers: Vec<_> = lowers.iter().map(|lower| lower.display().to_string()).collect();
    list.push(format!("lowerdir={}", lowers.join(":")));
    vec![Mount { kind: "overlay", source: "overlay".into(), options: list }]
}

fn bind(source: &Path, read_only: bool) -> Mount {
    let access = if read_only { "ro" } else { "rw" };
    Mount { kind: "bind", source: source.into(), options: vec![access.into(), "rbind".into()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Own {
        Own { upper: "/r/snapshots/3/fs".into(), work: "/r/snapshots/3/work".into() }
    }

    fn list(kind: Kind, lowers: &[&str], options: OverlayOptions) -> (String, String, String) {
        let lowers: Vec<_> = lowers.iter().map(PathBuf::from).collect();
        let [mount] = mounts(kind, &own(), &lowers, options).try_into().unwrap();
        (mount.kind.to_owned(), mount.source.display().to_string(), mount.options.join(","))
    }

    #[test]
    fn a_single_directory_is_bound() {
        let options = OverlayOptions { index_off: true, user_xattr: true };
        let bind = |source: &str, options: &str| ("bind".to_owned(), source.to_owned(), options.to_owned());
        assert_eq!(list(Kind::Active, &[], options), bind("/r/snapshots/3/fs", "rw,rbind"));
        assert_eq!(list(Kind::View, &[], options), bind("/r/snapshots/3/fs", "ro,rbind"));
        assert_eq!(list(Kind::View, &["/r/mounts/a"], options), bind("/r/mounts/a", "ro,rbind"));
    }

    #[test]
    fn several_directories_are_overlaid_topmost_first() {
        let overlay = |options: &str| ("overlay".to_owned(), "overlay".to_owned(), options.to_owned());
        assert_eq!(
            list(Kind::Active, &["/b", "/a"], OverlayOptions { index_off: true, user_xattr: false }),
            overlay("index=off,workdir=/r/snapshots/3/work,upperdir=/r/snapshots/3/fs,lowerdir=/b:/a")
        );
        assert_eq!(
            list(Kind::View, &["/b", "/a"], OverlayOptions { index_off: false, user_xattr: true }),
            overlay("userxattr,lowerdir=/b:/a")
        );
        assert_eq!(
            list(Kind::Active, &["/a"], OverlayOptions::default()),
            overlay("workdir=/r/snapshots/3/work,upperdir=/r/snapshots/3/fs,lowerdir=/a")
        );
    }
}
