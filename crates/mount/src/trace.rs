//! A recording of what is read of a mount for the first time.
use crate::LazyImage;
use clipper_format::{
    erofs::{ErofsError, FileKind, Nid},
    trace::Touch,
};
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// Granularity of a recording: the kernel reads pages.
const BLOCK: u64 = 4096;

/// What was read, in the order of first touch. What the kernel has cached isn't read again, so it takes a mount of its
/// own, and records what the kernel reads ahead as well.
#[derive(Debug, Default)]
pub struct Recording(Mutex<Touched>);

#[derive(Debug, Default)]
struct Touched {
    blocks: HashMap<Nid, HashSet<u64>>,
    order: Vec<(Nid, Range<u64>)>,
}

impl Recording {
    /// Notes a read of regular file `nid`.
    pub(crate) fn note(&self, nid: Nid, bytes: Range<u64>) {
        let mut touched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Touched { blocks, order } = &mut *touched;
        let seen = blocks.entry(nid).or_default();
        for block in bytes.start / BLOCK..bytes.end.div_ceil(BLOCK) {
            if !seen.insert(block) {
                continue;
            }
            let (start, end) = (block * BLOCK, (block + 1) * BLOCK);
            match order.last_mut() {
                Some((last, range)) if *last == nid && range.end == start => range.end = end,
                _ => order.push((nid, start..end)),
            }
        }
    }

    /// What was read so far of `image`, which is what was mounted.
    ///
    /// # Errors
    /// If the tree is damaged.
    pub fn touches(&self, image: &LazyImage) -> Result<Vec<Touch>, ErofsError> {
        let order = self.0.lock().unwrap_or_else(PoisonError::into_inner).order.clone();
        let tree = image.tree();
        let wanted: HashSet<Nid> = order.iter().map(|(nid, _)| *nid).collect();
        let mut paths: HashMap<Nid, Vec<u8>> = HashMap::new();
        let mut todo = vec![(tree.root(), Vec::new())];
        while let Some((nid, path)) = todo.pop() {
            for entry in tree.entries(&tree.inode(nid)?, 0)? {
                let entry = entry?;
                if matches!(entry.name, b"." | b"..") {
                    continue;
                }
                let child = [&path[..], b"/", entry.name].concat();
                if entry.kind == FileKind::Directory {
                    todo.push((entry.nid, child));
                } else if wanted.contains(&entry.nid) {
                    paths.entry(entry.nid).or_insert(child);
                }
            }
        }
        let mut touches = Vec::with_capacity(order.len());
        for (nid, range) in order {
            let size = tree.inode(nid)?.size;
            if let Some(path) = paths.get(&nid) {
                touches.push(Touch { path: path.clone(), range: range.start..range.end.min(size) });
            }
        }
        Ok(touches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_count_when_they_are_touched_first() {
        let recording = Recording::default();
        for (nid, bytes) in [(1, 0..10), (1, 4096..8192), (2, 100..5000), (1, 0..12_289), (2, 0..1)] {
            recording.note(Nid(nid), bytes);
        }
        let order = recording.0.lock().unwrap().order.clone();
        assert_eq!(order, [(Nid(1), 0..8192), (Nid(2), 0..8192), (Nid(1), 8192..16_384)]);
    }
}
