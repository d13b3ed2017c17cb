//! What an opaque marker removes from an image's first layer, where containerd unpacks by other rules.
//!
//! In the first layer there is nothing below to hide, so containerd walks the marked directory and removes what the
//! layer hasn't unpacked as an entry of its own: directories that only exist as parents, with all that is in them,
//! listed or not (`applyNaive` in archive/tar.go). The layer's tree keeps them, since above other layers they stay,
//! and lists them for the merge in [`BOTTOM_XATTR`].
use super::error::Problem;
use crate::tree::{BOTTOM_XATTR, Content, Directory, InodeId, Tree};
use std::collections::BTreeSet;

/// Entries looked at below opaque markers, in all of a layer: far more than any real layer has.
const STEPS_MAX: u64 = 50_000_000;

/// Names that aren't there if the layer is an image's first.
#[derive(Debug, Default)]
pub(crate) struct Bottom {
    gone: BTreeSet<(InodeId, Vec<u8>)>,
    steps: u64,
}

impl Bottom {
    /// An opaque marker appeared in `dir`.
    pub fn opaque(&mut self, tree: &Tree, dir: InodeId) -> Result<(), Problem> {
        let mut todo = vec![dir];
        while let Some(dir) = todo.pop() {
            for (name, child) in tree.entries(dir).into_iter().flatten() {
                self.steps += 1;
                if self.steps > STEPS_MAX {
                    return Err(Problem::Limit { what: "entries below opaque markers", limit: STEPS_MAX });
                }
                let inode = tree.inode(child);
                if !matches!(inode.content, Content::Directory(_)) {
                    continue;
                }
                if inode.inherits().is_some_and(|inherits| inherits.owner) {
                    self.gone.insert((dir, name.to_vec()));
                } else if !self.gone.contains(&(dir, name.to_vec())) {
                    todo.push(child);
                }
            }
        }
        Ok(())
    }

    /// `name` in `dir` is used or made anew: it is there, but what it held before isn't.
    pub fn revive(&mut self, tree: &Tree, dir: InodeId, name: &[u8]) {
        if self.gone.is_empty() || !self.gone.remove(&(dir, name.to_vec())) {
            return;
        }
        let Some(child) = tree.entries(dir).and_then(|entries| entries.get(name)) else { return };
        for name in tree.entries(child).into_iter().flat_map(Directory::names) {
            self.gone.insert((child, name.to_vec()));
        }
    }

    /// Writes the names into their directories.
    pub fn store(self, tree: &mut Tree) {
        for (dir, name) in self.gone {
            let value = tree.inodes[dir].xattrs.entry(BOTTOM_XATTR.to_vec()).or_default();
            if !value.is_empty() {
                value.push(b'/');
            }
            // An attribute's value ends at 64 KiB; what doesn't fit stays visible.
            if value.len() + name.len() < usize::from(u16::MAX) {
                value.extend(name);
            }
        }
    }
}
