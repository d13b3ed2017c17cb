//! Trees that no layer's tar leads to here: holes, data in the tree, times before 1970.
use crate::fixture::options;
use clipper_device::{ByteStream, DeviceOptions, DeviceSpec, Devices, Source, SourceError};
use clipper_format::{
    Digest, erofs,
    span::{Span, SpanTable, Start},
    tree::{Content, DeviceNumber, Directory, Extent, ExtentSource, FileData, Inode, Tree},
};
use clipper_mount::{Driver, Drivers, LazyDevice, LazyError, LazyImage, Mounted};
use rustix::fs::{SeekFrom, seek};
use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
    sync::Arc,
};
use tokio::runtime::Handle;

/// A hole of 1 MiB, 700 bytes of data, and a hole up to 3 MiB and a byte.
const DATA: usize = 1 << 20;
const LEN: usize = 700;
const SIZE: usize = (3 << 20) + 1;

/// Its one device has nothing to do with its files, and what is kept of that lies in `dir`.
fn image(dir: &Path) -> LazyImage {
    let device = device(dir);
    let mut tree = Tree { inodes: vec![Inode::empty_directory()], device_sizes: vec![device.device.size()] };
    let mut names = Directory::default();
    let mut add = |name: &str, content, mtime, mtime_nsec| {
        let id = tree.inodes.len();
        tree.inodes.push(Inode { content, mtime, mtime_nsec, perm: 0o644, ..Inode::empty_directory() });
        names.insert(name.as_bytes(), id);
    };
    let data = ExtentSource::Inline(content()[DATA..DATA + LEN].to_vec());
    let extents = vec![Extent { file_offset: DATA as u64, len: LEN as u64, source: data }];
    add("sparse", Content::File(FileData::new(SIZE as u64, extents)), -1, 999_999_999);
    add("hole", Content::File(FileData::new(10_000, Vec::new())), -62_135_596_800, 1);
    add("empty", Content::File(FileData::default()), i64::from(i32::MAX) + 1, 0);
    add("socket", Content::Socket, 0, 0);
    add("device", Content::CharDevice(DeviceNumber { major: 4095, minor: 0xf_ffff }), 0, 0);
    tree.inodes[0].content = Content::Directory(names);
    tree.inodes[0].mtime = -5;
    LazyImage::new(erofs::Image::parse(erofs::write(&tree).unwrap().into()).unwrap(), vec![device]).unwrap()
}

/// A device without any bytes to be had.
fn device(dir: &Path) -> LazyDevice {
    struct Nothing;
    #[async_trait::async_trait]
    impl Source for Nothing {
        async fn read(&self, _range: Range<u64>) -> Result<ByteStream, SourceError> {
            Err(SourceError::new("nobody reads this"))
        }
        fn describe(&self) -> String {
            "nothing".into()
        }
    }
    let devices = Devices::open(dir.join("devices"), DeviceOptions::default(), Handle::current()).unwrap();
    let span = Span {
        device_offset: 0,
        device_len: 4096,
        source_offset: 0,
        source_len: 4096,
        start: Start::Stored,
        blake3: [0; 32],
    };
    let layer = Digest::of(b"layer");
    let device = devices.device(DeviceSpec {
        digest: layer,
        source_size: 4096,
        spans: SpanTable::new(vec![span], 4096).unwrap(),
        checkpoint_groups: Vec::new(),
        layer: Arc::new(Nothing),
        checkpoints: None,
        log: tracing::Span::none(),
    });
    LazyDevice { layer, device: device.unwrap() }
}

async fn mount(dir: &Path, driver: Driver) -> Mounted {
    let target = dir.join("mnt");
    fs::create_dir(&target).unwrap();
    let drivers = Drivers::new(dir.to_owned(), Handle::current());
    Mounted::mount(image(dir), &target, &options(driver), &drivers).await.unwrap()
}

fn content() -> Vec<u8> {
    (0..SIZE).map(|at| if (DATA..DATA + LEN).contains(&at) { (at % 255) as u8 + 1 } else { 0 }).collect()
}

async fn a_handmade_tree_is_shown_as_it_is(driver: Driver) {
    let dir = tempfile::tempdir().unwrap();
    let mounted = mount(dir.path(), driver).await;
    let path = |name: &str| mounted.dir().join(name);
    let time = |name: &str| {
        let status = fs::metadata(path(name)).unwrap();
        (status.mtime(), status.mtime_nsec())
    };
    assert_eq!(time("sparse"), (-1, 999_999_999));
    assert_eq!(time("hole"), (-62_135_596_800, 1));
    assert_eq!(time("empty"), (i64::from(i32::MAX) + 1, 0));
    assert_eq!(time(""), (-5, 0));
    assert!(fs::read(path("sparse")).unwrap() == content());
    assert!(fs::read(path("hole")).unwrap() == [0; 10_000]);
    assert!(fs::read(path("empty")).unwrap().is_empty());
    assert!(fs::metadata(path("socket")).unwrap().file_type().is_socket());
    let number = fs::metadata(path("device")).unwrap().rdev();
    assert_eq!((rustix::fs::major(number), rustix::fs::minor(number)), (4095, 0xf_ffff));
}

async fn holes_and_data_can_be_found_by_seeking(driver: Driver) {
    let dir = tempfile::tempdir().unwrap();
    let mounted = mount(dir.path(), driver).await;
    let file = File::open(mounted.dir().join("sparse")).unwrap();
    let data = seek(&file, SeekFrom::Data(0)).unwrap() as usize;
    let end = seek(&file, SeekFrom::Hole(data as u64)).unwrap() as usize;
    assert!((1..=DATA).contains(&data) && (DATA + LEN..SIZE).contains(&end), "{data}..{end}");
    assert_eq!(seek(&file, SeekFrom::Hole(0)).unwrap(), 0);
    assert_eq!(seek(&file, SeekFrom::Data(end as u64)), Err(rustix::io::Errno::NXIO));
    let hole = File::open(mounted.dir().join("hole")).unwrap();
    assert_eq!(seek(&hole, SeekFrom::Data(0)), Err(rustix::io::Errno::NXIO));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_can_be_read_without_a_mount() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let tree = image.tree();
    let root = tree.inode(tree.root()).unwrap();
    let nid = tree.lookup(&root, b"sparse").unwrap().unwrap();
    let content = content();
    for range in [0..10, DATA - 5..DATA + LEN + 5, SIZE - 1..SIZE + 10, SIZE..SIZE + 1, SIZE + 5..SIZE + 6] {
        let read = image.read_file(nid, range.start as u64..range.end as u64).await.unwrap();
        assert!(read == content[range.start.min(SIZE)..range.end.min(SIZE)], "{range:?}");
    }
    assert!(image.read_file(tree.root(), 0..1).await.is_err(), "a directory has no content");
}

#[test]
fn a_tree_is_not_joined_to_devices_that_it_was_not_made_for() {
    let mut tree = Tree::empty();
    tree.device_sizes = vec![4096];
    let tree = erofs::Image::parse(erofs::write(&tree).unwrap().into()).unwrap();
    assert!(matches!(LazyImage::new(tree, Vec::new()), Err(LazyError::DeviceCount { expected: 1, found: 0 })));
}

over_both_drivers! {
    a_handmade_tree_is_shown_as_it_is,
    holes_and_data_can_be_found_by_seeking,
}
