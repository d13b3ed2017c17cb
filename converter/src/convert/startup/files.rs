//! The files of an image that is being converted: paths to inodes, through symlinks, and inodes to device bytes.
use clipper_format::merge::{self, MergeError};
use clipper_format::tree::{Content, Directory, ExtentSource, InodeId, ROOT, Tree};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Symlinks followed in one path, as by Linux.
const LINKS_MAX: usize = 40;

/// Directories that are kept by their paths.
const KEPT: usize = 1 << 14;

/// An image's merged tree.
pub struct ImageFiles {
    tree: Tree,
    /// Directories that were looked in, by the paths they were asked for with: a module is looked for under many names
    /// in the same few.
    directories: Mutex<HashMap<Vec<u8>, Option<Found>>>,
}

/// A file that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its inode.
    pub id: InodeId,
    /// Its path without symlinks; that of the root is empty.
    pub path: Vec<u8>,
}

/// Bytes of the device of one of an image's layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBytes {
    /// The layer's number among the image's layers, from 0 at the bottom.
    pub layer: usize,
    /// Bytes of its device.
    pub range: Range<u64>,
}

impl ImageFiles {
    /// Merges the trees of an image's layers, bottom first.
    pub fn merge(trees: Vec<Tree>) -> Result<Self, MergeError> {
        Ok(Self { tree: merge::merge(trees, false)?, directories: Mutex::default() })
    }

    /// The inode that an absolute path leads to, through symlinks, as for a process whose root this is.
    pub fn resolve(&self, path: &[u8]) -> Option<InodeId> {
        self.locate(path).map(|found| found.id)
    }

    /// As [`resolve`](Self::resolve), with the path that was arrived at.
    pub fn locate(&self, path: &[u8]) -> Option<Found> {
        let Some(cut) = path.iter().rposition(|byte| *byte == b'/') else { return self.walk(path) };
        let (dir, name) = (&path[..cut], &path[cut + 1..]);
        if dir.is_empty() || matches!(name, b"" | b"." | b"..") {
            return self.walk(path);
        }
        // Nothing that could panic happens under this lock.
        let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        if directories.len() >= KEPT {
            directories.clear();
        }
        let directory = match directories.get(dir) {
            Some(known) => known,
            None => directories.entry(dir.to_vec()).or_insert(self.walk(dir)),
        };
        let directory = directory.as_ref()?;
        let id = self.tree.entries(directory.id)?.get(name)?;
        match self.tree.inode(id).content {
            Content::Symlink(_) => self.walk(path),
            _ => Some(Found { id, path: [&directory.path, &b"/"[..], name].concat() }),
        }
    }

    /// As [`locate`](Self::locate), name by name from the root.
    fn walk(&self, path: &[u8]) -> Option<Found> {
        let mut stack: Vec<(Vec<u8>, InodeId)> = Vec::new();
        let mut todo: Vec<Vec<u8>> = components(path);
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match name.as_slice() {
                b"." => {}
                b".." => drop(stack.pop()),
                _ => {
                    let dir = stack.last().map_or(ROOT, |(_, id)| *id);
                    let id = self.tree.entries(dir)?.get(&name)?;
                    match &self.tree.inode(id).content {
                        Content::Symlink(target) => {
                            links += 1;
                            if links > LINKS_MAX {
                                return None;
                            }
                            if target.starts_with(b"/") {
                                stack.clear();
                            }
                            todo.extend(components(target));
                        }
                        _ => stack.push((name, id)),
                    }
                }
            }
        }
        let id = stack.last().map_or(ROOT, |(_, id)| *id);
        if path.ends_with(b"/") && self.tree.entries(id).is_none() {
            return None;
        }
        let path = stack.iter().flat_map(|(name, _)| [&b"/"[..], name].concat()).collect();
        Some(Found { id, path })
    }

    /// Whether it is a regular file.
    pub fn is_file(&self, id: InodeId) -> bool {
        matches!(self.tree.inode(id).content, Content::File(_))
    }

    /// The names in a directory, in their order; none if it isn't one.
    pub fn names(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let entries = self.resolve(path).and_then(|id| self.tree.entries(id));
        entries.into_iter().flat_map(Directory::names).map(<[u8]>::to_vec).collect()
    }

    /// The regular files at `id`: itself, or all below it, depth first in the order of their names.
    pub fn files(&self, id: InodeId) -> Vec<InodeId> {
        let (mut files, mut todo) = (Vec::new(), vec![id]);
        while let Some(id) = todo.pop() {
            match &self.tree.inode(id).content {
                Content::File(_) => files.push(id),
                Content::Directory(entries) => todo.extend(entries.ids().rev()),
                _ => {}
            }
        }
        files
    }

    /// Where the bytes `range` of a regular file lie, as far as they lie in layers.
    pub fn bytes(&self, id: InodeId, range: Range<u64>) -> Vec<LayerBytes> {
        let Content::File(data) = &self.tree.inode(id).content else { return Vec::new() };
        let mut found = Vec::new();
        for extent in data.extents() {
            let (start, end) = (range.start.max(extent.file_offset), range.end.min(extent.file_offset + extent.len));
            if let ExtentSource::Device { device, offset } = extent.source
                && start < end
                && let Some(layer) = usize::from(device).checked_sub(1)
            {
                let first = offset + (start - extent.file_offset);
                found.push(LayerBytes { layer, range: first..first + (end - start) });
            }
        }
        found
    }

    /// Bytes of a regular file; 0 for everything else.
    pub fn size(&self, id: InodeId) -> u64 {
        match &self.tree.inode(id).content {
            Content::File(data) => data.size(),
            _ => 0,
        }
    }
}

/// The names in a path, the last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').rev().filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clipper_format::tar::{LayerWalker, Limits};
    use clipper_tests::tarball::{Entry, TarWriter};

    fn tree(entries: &[Entry]) -> Tree {
        let mut writer = TarWriter::new(Vec::new());
        for entry in entries {
            writer.entry(entry).unwrap();
        }
        let mut walker = LayerWalker::new(Limits::default());
        walker.push(&writer.finish().unwrap()).unwrap();
        walker.finish().unwrap()
    }

    fn image() -> ImageFiles {
        let lower = [
            Entry::dir("usr/lib"),
            Entry::file("usr/lib/a", vec![1; 1000]),
            Entry::file("usr/lib/b", vec![2; 10]),
            Entry::symlink("lib", "usr/lib"),
            Entry::symlink("usr/up", "../../../lib/a"),
            Entry::symlink("usr/abs", "/lib"),
            Entry::symlink("loop", "loop"),
        ];
        let upper = [Entry::file("usr/lib/c", vec![3; 600]), Entry::file("usr/lib/.wh.b", "")];
        ImageFiles::merge(vec![tree(&lower), tree(&upper)]).unwrap()
    }

    #[test]
    fn paths_resolve_as_for_a_process_inside() {
        let image = image();
        let a = image.resolve(b"/usr/lib/a").unwrap();
        for path in [&b"/lib/a"[..], b"/usr/up", b"//usr/./abs/a", b"/lib/../lib/a"] {
            assert_eq!(image.resolve(path), Some(a), "{}", String::from_utf8_lossy(path));
        }
        for path in [&b"/usr/lib/b"[..], b"/loop", b"/usr/lib/a/", b"/usr/lib/a/x", b"/none", b"/none/a"] {
            assert_eq!(image.resolve(path), None, "{}", String::from_utf8_lossy(path));
        }
        // Once more, by what was kept of the directories.
        assert_eq!(image.locate(b"/usr/abs/a").unwrap(), Found { id: a, path: b"/usr/lib/a".into() });
        assert_eq!(image.resolve(b"/usr/lib/a/x"), None);
        assert_eq!(image.resolve(b"/"), Some(ROOT));
    }

    #[test]
    fn directories_are_all_the_files_in_them_and_files_are_device_bytes() {
        let image = image();
        let files = image.files(image.resolve(b"/lib/").unwrap());
        let [a, c] = files[..] else { panic!("{files:?}") };
        assert_eq!((image.size(a), image.size(c)), (1000, 600));
        let [a] = &image.bytes(a, 100..5000)[..] else { panic!("one extent") };
        assert_eq!((a.layer, a.range.end - a.range.start), (0, 900));
        let [c] = &image.bytes(c, 0..600)[..] else { panic!("one extent") };
        assert_eq!((c.layer, c.range.clone()), (1, 512..1112));
        assert_eq!(image.bytes(ROOT, 0..10), []);
    }
}
