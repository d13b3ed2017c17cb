//! The kernel as judge: images that the writer makes are mounted from a file, with plain files as their devices, and
//! must show the tree that went in. Needs root and Linux 6.12.
use clipper_format::erofs::write;
use clipper_format::tree::{
    Content, DeviceNumber, Directory, Extent, ExtentSource, FileData, Inode, InodeId, ROOT, Tree,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::unix::{ffi::OsStrExt, fs::MetadataExt};
use std::path::{Path, PathBuf};

/// A tree with the devices that its files lie in.
struct Fixture {
    tree: Tree,
    devices: Vec<Vec<u8>>,
}

impl Fixture {
    /// An empty root, and devices of these sizes full of bytes that differ everywhere.
    fn new(device_sizes: &[usize]) -> Self {
        let fill = |(size, seed): (&usize, u32)| {
            let words = (0..*size as u32).step_by(4);
            let mut bytes: Vec<u8> =
                words.flat_map(|n| (n ^ seed << 24).wrapping_mul(2_654_435_761).to_le_bytes()).collect();
            bytes.truncate(*size);
            bytes
        };
        let devices = device_sizes.iter().zip(1u32..).map(fill).collect();
        let device_sizes = device_sizes.iter().map(|size| *size as u64).collect();
        Self { tree: Tree { inodes: vec![directory()], device_sizes }, devices }
    }

    fn add(&mut self, parent: InodeId, name: impl Into<Vec<u8>>, inode: Inode) -> InodeId {
        let id = self.tree.inodes.len();
        self.tree.inodes.push(inode);
        self.link(parent, name, id);
        id
    }

    fn link(&mut self, parent: InodeId, name: impl Into<Vec<u8>>, id: InodeId) {
        match &mut self.tree.inodes[parent].content {
            Content::Directory(entries) => assert_eq!(entries.insert(&name.into(), id), None),
            _ => panic!("inode {parent} is no directory"),
        }
    }

    /// The bytes that a reader of `file` should see.
    fn bytes(&self, file: &FileData) -> Vec<u8> {
        let mut bytes = vec![0; file.size() as usize];
        for extent in file.extents() {
            let target = &mut bytes[extent.file_offset as usize..(extent.file_offset + extent.len) as usize];
            match &extent.source {
                ExtentSource::Inline(source) => target.copy_from_slice(source),
                ExtentSource::Device { device, offset } => {
                    let device = &self.devices[usize::from(*device) - 1];
                    target.copy_from_slice(&device[*offset as usize..][..extent.len as usize]);
                }
            }
        }
        bytes
    }

    /// How many links each inode should have.
    fn links(&self) -> HashMap<InodeId, u64> {
        let mut links = HashMap::from([(ROOT, 2)]);
        for id in 0..self.tree.inodes.len() {
            for child in self.tree.entries(id).into_iter().flat_map(Directory::ids) {
                let is_directory = self.tree.entries(child).is_some();
                *links.entry(child).or_default() += if is_directory { 2 } else { 1 };
                *links.entry(id).or_default() += u64::from(is_directory);
            }
        }
        links
    }
}

fn inode(content: Content) -> Inode {
    Inode { perm: 0o755, uid: 0, gid: 0, mtime: 1_700_000_000, mtime_nsec: 0, xattrs: BTreeMap::new(), content }
}

fn directory() -> Inode {
    inode(Content::Directory(Directory::default()))
}

fn file(size: u64, extents: Vec<Extent>) -> Inode {
    inode(Content::File(FileData::new(size, extents)))
}

fn device(file_offset: u64, len: u64, device: u16, offset: u64) -> Extent {
    Extent { file_offset, len, source: ExtentSource::Device { device, offset } }
}

fn inline(file_offset: u64, bytes: &[u8]) -> Extent {
    Extent { file_offset, len: bytes.len() as u64, source: ExtentSource::Inline(bytes.to_vec()) }
}

/// An image mounted with its devices; unmounted when dropped.
struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    fn new(fixture: &Fixture) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test mounts file systems: run it as root");
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = directory.path().join("image.erofs");
        fs::write(&image, write(&fixture.tree).unwrap()).unwrap();
        let mut options = Vec::new();
        for (n, bytes) in fixture.devices.iter().enumerate() {
            let device = directory.path().join(format!("device{n}"));
            // The kernel reads whole blocks and takes a short read for an error.
            let mut bytes = bytes.clone();
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            fs::write(&device, bytes).unwrap();
            options.push(format!("device={}", device.display()));
        }
        fs::create_dir(directory.path().join("mnt")).unwrap();
        let options = CString::new(options.join(",")).unwrap();
        let mounted = Self { directory };
        mount(&image, mounted.path(), "erofs", MountFlags::RDONLY, &*options).unwrap();
        mounted
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|b| *b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect()
}

/// Compares what is mounted with the tree.
struct Comparison<'f> {
    fixture: &'f Fixture,
    links: HashMap<InodeId, u64>,
    numbers: HashMap<InodeId, u64>,
}

impl Comparison<'_> {
    /// Asserts that everything below `path` is what the tree says of inode `id`.
    fn compare(&mut self, id: InodeId, path: &Path) {
        let inode = self.fixture.tree.inode(id);
        let meta = fs::symlink_metadata(path).unwrap();
        let show = path.display();
        assert_eq!(meta.mode() & 0o7777, u32::from(inode.perm), "mode of {show}");
        assert_eq!((meta.uid(), meta.gid()), (inode.uid, inode.gid), "owner of {show}");
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (inode.mtime, inode.mtime_nsec.into()), "mtime of {show}");
        assert_eq!(meta.nlink(), self.links[&id], "links of {show}");
        assert_eq!(*self.numbers.entry(id).or_insert(meta.ino()), meta.ino(), "inode of {show}");
        assert_eq!(xattrs(path), inode.xattrs, "xattrs of {show}");
        let kind = meta.mode() & 0o170000;
        match &inode.content {
            Content::Directory(entries) => {
                assert_eq!(kind, 0o040000, "type of {show}");
                let mut seen: Vec<OsString> = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
                seen.sort();
                let want: Vec<&OsStr> = entries.names().map(OsStr::from_bytes).collect();
                assert_eq!(seen, want, "names in {show}");
                for (name, id) in entries {
                    self.compare(id, &path.join(OsStr::from_bytes(name)));
                }
            }
            Content::File(data) => {
                assert_eq!(kind, 0o100000, "type of {show}");
                assert_eq!(meta.size(), data.size(), "size of {show}");
                assert!(fs::read(path).unwrap() == self.fixture.bytes(data), "content of {show}");
            }
            Content::Symlink(target) => {
                assert_eq!(kind, 0o120000, "type of {show}");
                assert_eq!(fs::read_link(path).unwrap().as_os_str().as_bytes(), target, "target of {show}");
            }
            Content::CharDevice(number) | Content::BlockDevice(number) => {
                let block = matches!(inode.content, Content::BlockDevice(_));
                assert_eq!(kind, if block { 0o060000 } else { 0o020000 }, "type of {show}");
                let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
                assert_eq!(DeviceNumber { major, minor }, *number, "device number of {show}");
            }
            Content::Fifo => assert_eq!(kind, 0o010000, "type of {show}"),
            Content::Socket => assert_eq!(kind, 0o140000, "type of {show}"),
        }
    }
}

fn assert_mounts_as_written(fixture: &Fixture) {
    let mounted = Mounted::new(fixture);
    let mut comparison = Comparison { fixture, links: fixture.links(), numbers: HashMap::new() };
    comparison.compare(ROOT, &mounted.path());
}

#[test]
fn the_kernel_shows_files_links_and_devices() {
    let mut f = Fixture::new(&[1 << 20, 300_000]);
    f.add(ROOT, "plain", file(5000, vec![device(0, 5000, 1, 512)]));
    f.add(ROOT, "empty", file(0, vec![]));
    f.add(ROOT, "whole", file(1 << 20, vec![device(0, 1 << 20, 1, 0)]));
    f.add(ROOT, "end of the second device", file(300_000 - 512, vec![device(0, 300_000 - 512, 2, 512)]));
    f.add(ROOT, "one byte", file(1, vec![device(0, 1, 2, 1024)]));
    f.add(ROOT, "hole", file(1 << 28, vec![]));
    let target = f.add(ROOT, "target", file(3, vec![inline(0, b"abc")]));
    let sub = f.add(ROOT, "sub", directory());
    f.link(sub, "hard", target);
    f.link(ROOT, "hard too", target);
    let link = f.add(ROOT, "link", inode(Content::Symlink(b"sub/hard".to_vec())));
    f.link(sub, "hard link to a link", link);
    for len in [1, 400, 447, 448, 449, 480, 481, 511, 512, 513, 1024, 4095] {
        f.add(ROOT, format!("link{len}"), inode(Content::Symlink(vec![b'x'; len])));
    }
    for (major, minor) in [(1, 3), (0, 0), (259, 70_000), (4095, 1_048_575)] {
        f.add(ROOT, format!("char{major}"), inode(Content::CharDevice(DeviceNumber { major, minor })));
        f.add(sub, format!("block{major}"), inode(Content::BlockDevice(DeviceNumber { major, minor })));
    }
    f.add(ROOT, "fifo", inode(Content::Fifo));
    f.add(ROOT, "socket", inode(Content::Socket));
    assert_mounts_as_written(&f);
}

#[test]
fn the_kernel_shows_attributes() {
    let mut f = Fixture::new(&[]);
    let owners = [(0o4755, 0, 0), (0o1777, 65_535, 65_536), (0o2000, 1 << 31, u32::MAX - 1), (0, 1000, 5)];
    for (n, (perm, uid, gid)) in owners.into_iter().enumerate() {
        f.add(ROOT, format!("owner{n}"), Inode { perm, uid, gid, ..directory() });
        f.add(ROOT, format!("owned{n}"), Inode { perm, uid, gid, ..file(0, vec![]) });
    }
    let times = [(0, 0), (-1, 999_999_999), (1 << 40, 1), (i64::from(u32::MAX), 0)];
    for (n, (mtime, mtime_nsec)) in times.into_iter().enumerate() {
        f.add(ROOT, format!("time{n}"), Inode { mtime, mtime_nsec, ..file(0, vec![]) });
        f.add(ROOT, format!("directory time{n}"), Inode { mtime, mtime_nsec, ..directory() });
    }
    let binary: Vec<u8> = (0..=255).collect();
    // POSIX ACL, version 2: rwx for owner, user 7, group and mask, nothing for others (kernel, posix_acl_xattr.h).
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [(1u16, 7u16, u32::MAX), (2, 7, 7), (4, 7, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)] {
        acl.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    let capability = (b"security.capability".to_vec(), b"\x01\0\0\x02\0 \0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec());
    for n in 0..40usize {
        let xattrs = BTreeMap::from([
            capability.clone(),
            (b"user.binary".to_vec(), binary.clone()),
            (b"user.empty".to_vec(), vec![]),
            (format!("user.own{n}").into_bytes(), vec![n as u8; n * 100]),
            (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
            (b"system.posix_acl_access".to_vec(), acl.clone()),
        ]);
        let extents = if n == 0 { vec![] } else { vec![inline(0, &vec![7; n])] };
        f.add(ROOT, format!("xattrs{n}"), Inode { xattrs, perm: 0o770, ..file(n as u64, extents) });
    }
    let many: BTreeMap<_, _> = (0..300).map(|n| (format!("trusted.n{n}").into_bytes(), vec![0; n])).collect();
    f.add(ROOT, "many xattrs", Inode { xattrs: many.clone(), ..directory() });
    f.add(ROOT, "as many xattrs", Inode { xattrs: many, ..inode(Content::Symlink(vec![b'l'; 100])) });
    f.add(ROOT, "xattrs of a device", Inode { xattrs: BTreeMap::from([capability]), ..inode(Content::Fifo) });
    let long = BTreeMap::from([([b"user.".to_vec(), vec![b'n'; 250]].concat(), vec![1; 60_000])]);
    f.add(ROOT, "long xattr", Inode { xattrs: long, ..file(0, vec![]) });
    assert_mounts_as_written(&f);
}

#[test]
fn the_kernel_finds_every_name() {
    let mut f = Fixture::new(&[1 << 16]);
    let wide = f.add(ROOT, "wide", directory());
    for n in 0..5000u32 {
        let size = u64::from(n % 2000);
        let extents = if size == 0 { vec![] } else { vec![device(0, size, 1, u64::from(n % 64) * 512)] };
        f.add(wide, format!("{:x}", n.wrapping_mul(2_654_435_761)), file(size, extents));
    }
    let odd = f.add(ROOT, "odd", directory());
    for byte in (1..=255u8).filter(|byte| !matches!(byte, b'/' | b'.')) {
        f.add(odd, [byte], file(0, vec![]));
        f.add(odd, [byte; 255], directory());
    }
    for name in [&b"..."[..], b".-", b".a", b"-x", b"+x", b"..x", b".\x01", b"a.", b"a..b"] {
        f.add(odd, name, file(0, vec![]));
    }
    let mut deep = f.add(ROOT, "deep", directory());
    for n in 0..200 {
        deep = f.add(deep, format!("{n}"), directory());
    }
    // Every size of a directory's last block that decides between a tail and a block of its own.
    for len in 1..=255 {
        let one = f.add(ROOT, format!("one{len}"), directory());
        f.add(one, vec![b'n'; len], file(0, vec![]));
        f.add(one, vec![b'o'; 200], file(0, vec![]));
    }
    assert_mounts_as_written(&f);
}

#[test]
fn the_kernel_shows_sparse_and_inline_files() {
    let mut f = Fixture::new(&[1 << 20]);
    f.add(ROOT, "a hole in front", file(1 << 20, vec![device(512 * 1024, 512 * 1024, 1, 512)]));
    f.add(ROOT, "a hole behind", file(1 << 20, vec![device(0, 8192, 1, 512)]));
    f.add(ROOT, "holes", file(100_000, (0..12).map(|n| device(n * 8192, 4096, 1, n * 4096 + 512)).collect()));
    f.add(ROOT, "small parts", file(50_000, (0..40).map(|n| device(n * 1024, 512, 1, n * 512)).collect()));
    f.add(ROOT, "parts out of order", file(8192, vec![device(0, 4096, 1, 8192), device(4096, 4096, 1, 0)]));
    f.add(ROOT, "runs on", file(8192, vec![device(0, 512, 1, 512), device(512, 7680, 1, 1024)]));
    f.add(ROOT, "odd end", file(5001, vec![device(4096, 905, 1, 512)]));
    let bytes: Vec<u8> = (0..3000u32).map(|n| (n % 251) as u8).collect();
    for len in [1, 100, 447, 448, 449, 511, 512, 513, 1024, 3000] {
        f.add(ROOT, format!("inline{len}"), file(len as u64, vec![inline(0, &bytes[..len])]));
    }
    let parts = vec![inline(1000, &bytes[..3]), inline(1100, &bytes), inline(90_001, b"x")];
    f.add(ROOT, "inline in a hole", file(100_000, parts));
    f.add(ROOT, "inline at the end", file(1 << 20, vec![inline((1 << 20) - 3, b"end")]));
    let parts = vec![device(0, 1024, 1, 2048), inline(1024, b"12"), inline(1028, b"3"), device(1536, 2560, 1, 512)];
    f.add(ROOT, "mixed", file(4096, parts));
    f.add(ROOT, "odd inline", file(700, vec![inline(100, b"abc"), inline(600, b"def")]));
    assert_mounts_as_written(&f);
}
