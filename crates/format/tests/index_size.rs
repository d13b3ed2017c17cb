//! How small trees get: a real tree, this machine's own, as a layer would hold it.
use clipper_format::erofs::{Image, write};
use clipper_format::index::PackedTree;
use clipper_format::tree::{Content, DeviceNumber, FileData, Inode, InodeId, ROOT, Tree};
use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Enough files to be like an image, few enough to be quick.
const FILES: usize = 30_000;

/// Walks directories as an image builder does and lays their files out in a tar.
#[derive(Default)]
struct Walk {
    tree: Option<Tree>,
    tar: u64,
    seen: HashMap<(u64, u64), InodeId>,
}

impl Walk {
    fn tree(&mut self) -> &mut Tree {
        self.tree.get_or_insert_with(|| Tree { inodes: vec![Inode::empty_directory()], device_sizes: vec![] })
    }

    fn directory(&mut self, path: &Path, id: InodeId) {
        let mut names: Vec<_> = fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        names.sort();
        for name in names {
            let path = path.join(&name);
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if self.tree().inodes.len() >= FILES || meta.dev() != fs::metadata("/usr").unwrap().dev() {
                return;
            }
            self.tar += 512;
            let key = (meta.dev(), meta.ino());
            let child = match self.seen.get(&key) {
                Some(child) if !meta.is_dir() => *child,
                _ => self.inode(&path, &meta),
            };
            self.seen.insert(key, child);
            if let Content::Directory(entries) = &mut self.tree().inodes[id].content {
                entries.insert(&name.into_vec(), child);
            }
            if meta.is_dir() {
                self.directory(&path, child);
            }
        }
    }

    fn inode(&mut self, path: &Path, meta: &fs::Metadata) -> InodeId {
        let rdev = DeviceNumber { major: rustix::fs::major(meta.rdev()), minor: rustix::fs::minor(meta.rdev()) };
        let content = match meta.mode() & 0o170000 {
            0o040000 => Content::Directory(Default::default()),
            0o120000 => Content::Symlink(fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()),
            0o020000 => Content::CharDevice(rdev),
            0o060000 => Content::BlockDevice(rdev),
            0o010000 => Content::Fifo,
            0o140000 => Content::Socket,
            _ => {
                let size = meta.size();
                let offset = self.tar;
                self.tar += size.next_multiple_of(512);
                Content::File(if size == 0 { FileData::default() } else { FileData::whole(size, 1, offset) })
            }
        };
        // Image builders cut times to seconds.
        let (mtime, mtime_nsec) = (meta.mtime(), 0);
        let perm = (meta.mode() & 0o7777) as u16;
        let inode =
            Inode { perm, uid: meta.uid(), gid: meta.gid(), mtime, mtime_nsec, xattrs: Default::default(), content };
        let tree = self.tree();
        tree.inodes.push(inode);
        tree.inodes.len() - 1
    }
}

fn usr() -> Tree {
    let mut walk = Walk::default();
    walk.directory(&PathBuf::from("/usr"), ROOT);
    let tar = walk.tar;
    let mut tree = walk.tree.unwrap();
    tree.device_sizes = vec![tar + 1024];
    tree
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let elapsed: Duration = start.elapsed();
    println!("{what:<28} {:>8.1} ms", elapsed.as_secs_f64() * 1e3);
    result
}

#[test]
fn a_real_tree_takes_few_bytes_a_file() {
    let tree = usr();
    let files = tree.inodes.len();
    assert!(files > 1000, "/usr has next to no files");
    println!("{files} inodes of /usr");
    let image = timed("write EROFS", || write(&tree).unwrap());
    let parsed = timed("parse", || Image::parse(image.clone().into()).unwrap());
    let again = timed("EROFS to tree", || parsed.to_tree().unwrap());
    assert_eq!(again.inodes.len(), files);
    let packed = timed("pack", || PackedTree::pack(&tree).unwrap());
    let unpacked = timed("unpack", || packed.unpack().unwrap());
    assert_eq!(PackedTree::pack(&unpacked).unwrap(), packed);
    assert_eq!(write(&unpacked).unwrap().len(), image.len());
    let per_file = |bytes: usize| bytes as f64 / files as f64;
    println!("EROFS {:.1} bytes a file, packed {:.2}", per_file(image.len()), per_file(packed.len()));
    // What the index would hold if it held the image.
    let level = 9;
    let plain = timed("compress EROFS", || zstd::bulk::compress(&image, level).unwrap());
    println!("EROFS, compressed {:.2} bytes a file", per_file(plain.len()));
    assert!(per_file(packed.len()) < 20.0, "{} bytes for {files} files", packed.len());
    assert!(packed.len() * 2 < plain.len(), "{} bytes, and {} as EROFS", packed.len(), plain.len());
}
