//! Merging the trees of a chain of layers into the one tree that overlayfs would show of them.
mod inherit;

use crate::tree::{BOTTOM_XATTR, Content, Directory, FileData, Inode, InodeId, OPAQUE_XATTR, ROOT, Tree};
pub use inherit::Below;

/// Why trees can't be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// More layers than device numbers.
    #[error("{0} layers; no more than 65535 can be merged")]
    TooManyLayers(usize),
    /// A layer's tree has more than one device.
    #[error("layer {layer} has {devices} devices instead of one")]
    Devices {
        /// Its place in the chain; the bottom is 0.
        layer: usize,
        /// How many it has.
        devices: usize,
    },
    /// A layer's tree isn't a tree.
    #[error("layer {layer}: inode {inode} is missing, or a directory in two places")]
    NotATree {
        /// Its place in the chain; the bottom is 0.
        layer: usize,
        /// The inode.
        inode: InodeId,
    },
    /// A file's data isn't in the layer's device.
    #[error("layer {layer}: the data of inode {inode} is outside the layer's device")]
    Extent {
        /// Its place in the chain; the bottom is 0.
        layer: usize,
        /// The file.
        inode: InodeId,
    },
}

/// Merges `layers`, bottom first, each with at most one device. Device `n` of the result is that of `layers[n - 1]`.
///
/// With `keep_whiteouts` the result is meant to lie, as an overlayfs lower directory, above others that aren't known:
/// it keeps the whiteouts and opaque marks that can still hide something there. Without, it has none. Directories that
/// a layer didn't describe get their attributes from the layers below; see [`merge_above`] for those that lie deeper.
///
/// The trees are taken apart rather than copied.
///
/// # Errors
/// If a tree is broken in itself; merging cannot fail otherwise.
pub fn merge(layers: Vec<Tree>, keep_whiteouts: bool) -> Result<Tree, MergeError> {
    merge_with(layers, keep_whiteouts, &mut |_| Below::Nothing)
}

/// Merges like [`merge`] with `keep_whiteouts`, and asks `below` for the attributes of directories that no layer
/// described. It gets absolute paths and tells what the layers below have there, the topmost that has anything
/// deciding, with symlinks followed within that layer.
///
/// # Errors
/// As [`merge`].
pub fn merge_above(layers: Vec<Tree>, below: &mut dyn FnMut(&[u8]) -> Below) -> Result<Tree, MergeError> {
    merge_with(layers, true, below)
}

fn merge_with(
    mut layers: Vec<Tree>,
    keep_whiteouts: bool,
    below: &mut dyn FnMut(&[u8]) -> Below,
) -> Result<Tree, MergeError> {
    if u16::try_from(layers.len()).is_err() {
        return Err(MergeError::TooManyLayers(layers.len()));
    }
    for (number, layer) in layers.iter_mut().enumerate() {
        settle_bottom(layer, number == 0 && !keep_whiteouts);
    }
    inherit::resolve(&mut layers, below)?;
    let mut layers = layers.into_iter().enumerate();
    let mut union = match layers.next() {
        Some((_, bottom)) => Union::begin(bottom, keep_whiteouts)?,
        None => {
            Union { tree: Tree { inodes: vec![Inode::empty_directory()], device_sizes: Vec::new() }, keep_whiteouts }
        }
    };
    for (number, layer) in layers {
        union.lay(number, layer)?;
    }
    union.tree.compact();
    Ok(union.tree)
}

/// Removes the marks of what isn't there in an image's first layer, and in that the marked names.
fn settle_bottom(layer: &mut Tree, is_first: bool) {
    for inode in &mut layer.inodes {
        if let Some(gone) = inode.xattrs.remove(BOTTOM_XATTR).filter(|_| is_first)
            && let Content::Directory(entries) = &mut inode.content
        {
            for name in gone.split(|b| *b == b'/') {
                entries.remove(name);
            }
        }
    }
}

/// Bytes of the one device of a layer's tree.
fn device_size(number: usize, layer: &Tree) -> Result<u64, MergeError> {
    match layer.device_sizes[..] {
        [] => Ok(0),
        [size] => Ok(size),
        ref more => Err(MergeError::Devices { layer: number, devices: more.len() }),
    }
}

/// Has a file lie on `device`, if it lies within its layer's device of `size` bytes.
fn on_device(data: &mut FileData, size: u64, device: u16) -> Option<()> {
    let place = |len, from, offset: u64| match offset.checked_add(len) {
        Some(end) if from == 1 && end <= size => Ok((device, offset)),
        _ => Err(()),
    };
    data.move_extents(place).ok()
}

/// The layers merged so far.
struct Union {
    tree: Tree,
    keep_whiteouts: bool,
}

/// A layer being laid on top.
struct Upper {
    number: usize,
    device: u16,
    device_size: u64,
    inodes: Vec<Inode>,
    /// Where each inode went; several names may lead to it.
    placed: Vec<Option<InodeId>>,
}

impl Union {
    /// Makes the bottom layer, which most files of an image are in, the union as it stands: nothing is moved.
    fn begin(mut tree: Tree, keep_whiteouts: bool) -> Result<Self, MergeError> {
        let device_size = device_size(0, &tree)?;
        let broken = |inode| MergeError::NotATree { layer: 0, inode };
        let mut seen = vec![false; tree.inodes.len()];
        *seen.first_mut().ok_or(broken(ROOT))? = true;
        // overlayfs never looks for the mark on its layers' roots.
        tree.inodes[ROOT].xattrs.remove(OPAQUE_XATTR);
        // Directories, and whether a layer below the union may show there.
        let mut todo = vec![(ROOT, keep_whiteouts)];
        while let Some((dir, open)) = todo.pop() {
            let Content::Directory(entries) = &mut tree.inodes[dir].content else { return Err(broken(dir)) };
            let mut entries = std::mem::take(entries);
            let mut gone = Vec::new();
            for (name, id) in &entries {
                let inode = tree.inodes.get_mut(id).ok_or(broken(id))?;
                if inode.is_whiteout() && !open {
                    gone.push(name.to_vec());
                    continue;
                }
                let again = std::mem::replace(&mut seen[id], true);
                let opaque = inode.is_opaque();
                match &mut inode.content {
                    Content::Directory(_) if again => return Err(broken(id)),
                    Content::Directory(_) => {
                        if !open {
                            inode.xattrs.remove(OPAQUE_XATTR);
                        }
                        todo.push((id, open && !opaque));
                    }
                    Content::File(data) if !again => {
                        on_device(data, device_size, 1).ok_or(MergeError::Extent { layer: 0, inode: id })?;
                    }
                    _ => {}
                }
            }
            for name in gone {
                entries.remove(&name);
            }
            tree.inodes[dir].content = Content::Directory(entries);
        }
        tree.device_sizes = vec![device_size];
        Ok(Self { tree, keep_whiteouts })
    }

    fn lay(&mut self, number: usize, layer: Tree) -> Result<(), MergeError> {
        let device_size = device_size(number, &layer)?;
        self.tree.device_sizes.push(device_size);
        // Counted in `merge_with`.
        let device = (number + 1) as u16;
        let placed = vec![None; layer.inodes.len()];
        let mut upper = Upper { number, device, device_size, inodes: layer.inodes, placed };
        let (mut root, entries) = upper.take_directory(ROOT)?;
        // overlayfs never looks for the mark on its layers' roots.
        root.xattrs.remove(OPAQUE_XATTR);
        self.describe(ROOT, root);
        // Directories of this layer, where they are in the union, and whether a layer below the union may show there.
        let mut todo = vec![(entries, ROOT, self.keep_whiteouts)];
        while let Some((entries, into, open)) = todo.pop() {
            for (name, id) in &entries {
                let inode = upper.inode(id)?;
                if inode.is_whiteout() && !open {
                    self.unlink(into, name);
                } else if matches!(inode.content, Content::Directory(_)) {
                    let (inode, entries) = upper.take_directory(id)?;
                    let (at, open) = self.directory(into, name, inode, open);
                    todo.push((entries, at, open));
                } else {
                    let at = match upper.placed[id] {
                        Some(at) => at,
                        None => {
                            let inode = upper.take(id)?;
                            self.tree.inodes.push(inode);
                            *upper.placed[id].insert(self.tree.inodes.len() - 1)
                        }
                    };
                    self.link(into, name, at);
                }
            }
        }
        Ok(())
    }

    /// Puts a directory without its entries at `name`; tells where it is, and whether it is open to what lies below.
    fn directory(&mut self, into: InodeId, name: &[u8], mut inode: Inode, open: bool) -> (InodeId, bool) {
        let opaque = inode.is_opaque();
        inode.xattrs.remove(OPAQUE_XATTR);
        let existing = self.tree.entries(into).and_then(|entries| entries.get(name));
        match existing {
            Some(at) if !opaque && self.tree.entries(at).is_some() => {
                let open = open && !self.tree.inode(at).is_opaque();
                self.describe(at, inode);
                (at, open)
            }
            _ => {
                // A file or whiteout in between hides what is below it as an opaque directory does.
                let closed = opaque || existing.is_some();
                if open && closed {
                    inode.xattrs.insert(OPAQUE_XATTR.to_vec(), b"y".to_vec());
                }
                self.tree.inodes.push(inode);
                let at = self.tree.inodes.len() - 1;
                self.link(into, name, at);
                (at, open && !closed)
            }
        }
    }

    /// Gives a directory of the union the attributes of `inode`; its entries and opaque mark stay.
    fn describe(&mut self, at: InodeId, mut inode: Inode) {
        let old = &mut self.tree.inodes[at];
        std::mem::swap(&mut old.content, &mut inode.content);
        if let Some(mark) = old.xattrs.remove(OPAQUE_XATTR) {
            inode.xattrs.insert(OPAQUE_XATTR.to_vec(), mark);
        }
        *old = inode;
    }

    fn link(&mut self, dir: InodeId, name: &[u8], id: InodeId) {
        if let Content::Directory(entries) = &mut self.tree.inodes[dir].content {
            entries.insert(name, id);
        }
    }

    fn unlink(&mut self, dir: InodeId, name: &[u8]) {
        if let Content::Directory(entries) = &mut self.tree.inodes[dir].content {
            entries.remove(name);
        }
    }
}

impl Upper {
    fn inode(&self, id: InodeId) -> Result<&Inode, MergeError> {
        self.inodes.get(id).ok_or(MergeError::NotATree { layer: self.number, inode: id })
    }

    /// Takes a directory out: itself without entries, and its entries.
    fn take_directory(&mut self, id: InodeId) -> Result<(Inode, Directory), MergeError> {
        let broken = MergeError::NotATree { layer: self.number, inode: id };
        let inode = self.inodes.get_mut(id).ok_or(broken)?;
        if self.placed[id].replace(ROOT).is_some() {
            return Err(broken);
        }
        let mut inode = std::mem::replace(inode, Inode::empty_directory());
        let Content::Directory(entries) = &mut inode.content else { return Err(broken) };
        let entries = std::mem::take(entries);
        Ok((inode, entries))
    }

    /// Takes anything else out, with its extents on the layer's device in the union.
    fn take(&mut self, id: InodeId) -> Result<Inode, MergeError> {
        let broken = MergeError::NotATree { layer: self.number, inode: id };
        let outside = MergeError::Extent { layer: self.number, inode: id };
        let inode = self.inodes.get_mut(id).ok_or(broken)?;
        // What stays behind must not look like a directory or whiteout to the inode's other names.
        let mut inode = std::mem::replace(inode, Inode { content: Content::Fifo, ..Inode::empty_directory() });
        if let Content::File(data) = &mut inode.content {
            on_device(data, self.device_size, self.device).ok_or(outside)?;
        }
        Ok(inode)
    }
}
