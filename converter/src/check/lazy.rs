//! Reading an accelerated image lazily, through its index, without a mount.
use super::reference::{Kind, Node, Paths};
use crate::images::TemporaryStore;
use crate::report::Progress;
use anyhow::{Context, Result};
use clipper_format::Digest;
use clipper_format::erofs::{FileKind, ImageInode, ImageSource, Nid};
use clipper_mount::{AcceleratedImage, LazyImage};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};

/// Bytes of a file read at a time.
const PIECE: u64 = 1 << 20;

/// An image as it is read lazily.
pub struct LazyReading {
    /// Its paths.
    pub paths: Paths,
    /// Bytes of file data read.
    pub bytes: u64,
}

/// Walks the merged tree of `image` and reads every file.
pub async fn read(store: &TemporaryStore, image: &AcceleratedImage, progress: &Progress) -> Result<LazyReading> {
    let layers: Vec<_> = image.layers.iter().map(|l| l.reference.clone()).collect();
    let lazy = store.store().image(&layers, false).await?;
    let total = lazy.devices().iter().map(|d| d.device.size()).sum();
    let task = progress.task("reading lazily", total);
    let tree = lazy.tree();
    let mut reading = LazyReading { paths: Paths::default(), bytes: 0 };
    let mut seen: HashMap<Nid, usize> = HashMap::new();
    let mut files = Vec::new();
    let mut todo = vec![(Vec::new(), tree.root())];
    while let Some((path, nid)) = todo.pop() {
        if let Some(number) = seen.get(&nid) {
            reading.paths.names.insert(path, *number);
            continue;
        }
        let inode = tree.inode(nid)?;
        let number = reading.paths.nodes.len();
        reading.paths.nodes.push(node(&lazy, &inode)?);
        seen.insert(nid, number);
        reading.paths.names.insert(path.clone(), number);
        match inode.kind {
            FileKind::Directory => {
                for entry in tree.entries(&inode, 0)? {
                    let entry = entry?;
                    if entry.name == b"." || entry.name == b".." {
                        continue;
                    }
                    let mut child = path.clone();
                    if !child.is_empty() {
                        child.push(b'/');
                    }
                    child.extend_from_slice(entry.name);
                    todo.push((child, entry.nid));
                }
            }
            FileKind::File => {
                // In the order of the device, so that every span is fetched and decoded once, in sequence.
                let first = tree.extents(&inode, 0..inode.size.min(1))?.into_iter().next();
                let place = match first.map(|e| e.source) {
                    Some(ImageSource::Device { device, offset }) => (device, offset),
                    _ => (0, 0),
                };
                files.push((place, number, inode, path));
            }
            _ => {}
        }
    }
    files.sort_by_key(|(place, ..)| *place);
    for (_, number, inode, path) in files {
        let sha256 = hash(&lazy, &inode).await.with_context(|| format!("/{}", String::from_utf8_lossy(&path)))?;
        reading.paths.nodes[number].kind = Kind::File { size: inode.size, sha256 };
        reading.bytes += inode.size;
        task.advance(inode.size);
    }
    Ok(reading)
}

async fn hash(lazy: &LazyImage, inode: &ImageInode) -> Result<Digest> {
    let mut hash = Sha256::new();
    let mut offset = 0;
    while offset < inode.size {
        let end = inode.size.min(offset + PIECE);
        hash.update(&lazy.read_file(inode.nid, offset..end).await?);
        offset = end;
    }
    Ok(Digest::from_bytes(hash.finalize().into()))
}

fn node(lazy: &LazyImage, inode: &ImageInode) -> Result<Node> {
    let tree = lazy.tree();
    let kind = match inode.kind {
        FileKind::Directory => Kind::Directory,
        FileKind::File => Kind::File { size: inode.size, sha256: Digest::of(b"") },
        FileKind::Symlink => Kind::Symlink(tree.symlink(inode)?),
        FileKind::CharDevice => Kind::CharDevice(inode.rdev.major, inode.rdev.minor),
        FileKind::BlockDevice => Kind::BlockDevice(inode.rdev.major, inode.rdev.minor),
        FileKind::Fifo => Kind::Fifo,
        FileKind::Socket => Kind::Socket,
    };
    Ok(Node {
        kind,
        perm: inode.mode & 0o7777,
        uid: inode.uid,
        gid: inode.gid,
        mtime: Some((inode.mtime, inode.mtime_nsec)),
        xattrs: tree.xattrs(inode)?.into_iter().collect::<BTreeMap<_, _>>(),
    })
}
