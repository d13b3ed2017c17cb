//! Attributes of directories that a layer didn't describe, taken from the layers below as containerd does.
//!
//! containerd looks in each lower layer's own directory, topmost first, and takes the first thing it finds at the
//! path (`mkparent` in archive/tar.go). It knows nothing of opaque directories there.
use super::MergeError;
use crate::tar::rootpath::{Found, find, root_path};
use crate::tar::xattrs::chmod;
use crate::tree::{Content, IMPLICIT_XATTR, Inherits, Inode, InodeId, ROOT, Tree};

/// What layers below hold at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Below {
    /// No layer has anything there.
    Nothing,
    /// Something that isn't a directory, or a whiteout.
    Other,
    /// A directory; its owner, mode, time and extended attributes count.
    Directory(Box<Inode>),
}

/// Resolves all marks of implicit directories.
pub(super) fn resolve(layers: &mut [Tree], below: &mut dyn FnMut(&[u8]) -> Below) -> Result<(), MergeError> {
    for number in 0..layers.len() {
        let (lower, rest) = layers.split_at_mut(number);
        let Some(tree) = rest.first_mut() else { break };
        let broken = |inode| MergeError::NotATree { layer: number, inode };
        let mut seen = vec![false; tree.inodes.len()];
        let mut path = Vec::new();
        let mut todo = vec![Step::Enter { id: ROOT, name: Vec::new(), group: None }];
        while let Some(step) = todo.pop() {
            let (id, name, group) = match step {
                Step::Enter { id, name, group } => (id, name, group),
                Step::Leave { path_len } => {
                    path.truncate(path_len);
                    continue;
                }
            };
            todo.push(Step::Leave { path_len: path.len() });
            if id != ROOT {
                path.push(b'/');
                path.extend(&name);
            }
            let inode = tree.inodes.get_mut(id).ok_or(broken(id))?;
            if std::mem::replace(&mut seen[id], true) {
                return Err(broken(id));
            }
            let mut handed_down = None;
            if let Some(inherits) = inode.inherits() {
                inode.xattrs.remove(IMPLICIT_XATTR);
                let found = look_below(lower, &path, below);
                match (&found, group) {
                    (Some(found), _) => inherit(inode, found, inherits),
                    (None, Some(from)) if inherits.owner && (inherits.early || !from.only_early) => {
                        inode.gid = from.gid;
                    }
                    (None, _) => {}
                }
                handed_down = found
                    .filter(|found| found.perm & 0o2000 != 0)
                    .map(|found| Group { gid: found.gid, only_early: !inherits.owner });
            }
            for (name, child) in tree.entries(id).into_iter().flatten() {
                let inode = tree.inodes.get(child).ok_or(broken(child))?;
                if matches!(inode.content, Content::Directory(_)) {
                    todo.push(Step::Enter { id: child, name: name.to_vec(), group: handed_down });
                }
            }
        }
    }
    Ok(())
}

/// A walk through all directories with one path buffer, however deep and wide they are.
enum Step {
    Enter { id: InodeId, name: Vec<u8>, group: Option<Group> },
    Leave { path_len: usize },
}

/// What a new directory gets from a setgid parent that inherited being so.
#[derive(Clone, Copy)]
struct Group {
    gid: u32,
    /// The parent was described later on: only directories made before that get it.
    only_early: bool,
}

fn look_below(lower: &[Tree], path: &[u8], below: &mut dyn FnMut(&[u8]) -> Below) -> Option<Inode> {
    for tree in lower.iter().rev() {
        // Where containerd would fail to unpack the layer, as with a file on the way, nothing is inherited.
        let resolved = root_path(tree, path).ok()?;
        match find(tree, &resolved).ok()? {
            Found::Nothing => {}
            Found::Whiteout(_) => return None,
            Found::Inode(id) => {
                let inode = tree.inodes.get(id)?;
                return match inode.content {
                    Content::Directory(_) => Some(attributes(inode)),
                    _ => None,
                };
            }
        }
    }
    match below(if path.is_empty() { b"/" } else { path }) {
        Below::Directory(inode) => Some(attributes(&inode)),
        Below::Nothing | Below::Other => None,
    }
}

/// A directory like `inode`, without its entries.
fn attributes(inode: &Inode) -> Inode {
    let Inode { perm, uid, gid, mtime, mtime_nsec, .. } = *inode;
    Inode { perm, uid, gid, mtime, mtime_nsec, xattrs: inode.xattrs.clone(), ..Inode::empty_directory() }
}

fn inherit(inode: &mut Inode, found: &Inode, inherits: Inherits) {
    for (name, value) in &found.xattrs {
        // Trusted attributes, the opaque mark among them, aren't handed up.
        if !name.starts_with(b"trusted.") {
            inode.xattrs.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    if inherits.owner {
        (inode.perm, inode.uid, inode.gid) = (found.perm, found.uid, found.gid);
    } else {
        // The layer's own mode came after an inherited ACL.
        chmod(inode, inode.perm);
    }
    if inherits.time {
        (inode.mtime, inode.mtime_nsec) = (found.mtime, found.mtime_nsec);
    }
}
