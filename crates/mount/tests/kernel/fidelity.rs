//! What is mounted is what the layers say: every path, byte, attribute and xattr.
use crate::{
    fixture::{Image, Node, Packing},
    tarball::{Entry, Kind},
    walk::{assert_same, expected, noise, view},
};
use clipper_mount::Driver;
use std::{
    collections::BTreeSet,
    ffi::CString,
    fs, io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
};

pub fn awkward_layer() -> Vec<Entry> {
    let long = "n".repeat(255);
    let deep: Vec<String> = (1..=40).map(|depth| vec!["d"; depth].join("/")).collect();
    let su = Entry::file("bin/su", noise(1, 70_000)).mode(0o4755).xattr("security.capability", CAPABILITY);
    let link = Entry::symlink("link", "bin/su").owner(3, 4).mtime(1, 0);
    let mut entries = vec![
        Entry::dir(".").mode(0o755).mtime(1_500_000_000, 1),
        Entry::dir("bin").mode(0o1777).owner(7, 8),
        su.clone(),
        Entry::file("bin/wall", noise(2, 511)).mode(0o2755).owner(0, 5),
        Entry::file("empty", ""),
        Entry::file("one", "x").mode(0),
        Entry::file("block", noise(3, 512)).owner(100_000, 200_000).mtime(0, 999_999_999),
        Entry::file("page", noise(4, 4096)).mtime(1, 500_000_000),
        Entry::file("future", noise(5, 4097)).mtime(5_000_000_000, 7).owner(u32::MAX - 1, u32::MAX - 1),
        Entry::file("large", noise(6, 3_000_001)),
        Entry::file("xattrs", "x")
            .xattr("user.binary", &[0, 1, 255, 0])
            .xattr("user.large", &noise(7, 3000))
            .xattr("user.empty", b""),
        link.clone(),
        Entry::symlink("long-link", &"t/".repeat(2047)),
        su.linked("bin/su2"),
        su.linked("su3"),
        link.linked("link2"),
        Entry::file(&long, "long name"),
        Entry::new(b"not-\xff\xfe-utf8", Kind::File(b"bytes".to_vec())),
        Entry::new(b"null", Kind::CharDevice(1, 3)).mode(0o666),
        Entry::new(b"wide-device", Kind::CharDevice(0xabc, 0x54321)).mode(0o600),
        Entry::new(b"disk", Kind::BlockDevice(8, 17)).mode(0o660).owner(0, 6),
        Entry::new(b"fifo", Kind::Fifo).mode(0o622),
    ];
    entries.extend(deep.iter().map(|path| Entry::dir(path)));
    entries.push(Entry::file(&format!("{}/leaf", deep.last().unwrap()), "deep"));
    entries
}

/// `cap_net_raw+ep`, version 2 (capabilities(7), `struct vfs_cap_data`).
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

async fn an_awkward_layer_is_shown_to_the_bit_compressed_or_not(driver: Driver) {
    let entries = awkward_layer();
    for packing in [Packing::Gzip, Packing::Tar, Packing::Zstd] {
        let (image, node) = (Image::new(&[(&entries, packing)]), Node::new(driver));
        let mounted = node.mount(&image).await;
        assert_same(&view(mounted.dir()), &expected(&entries));
        for name in ["empty", "page", "link", "bin"] {
            let status = fs::symlink_metadata(mounted.dir().join(name)).unwrap();
            let modified = (status.mtime(), status.mtime_nsec());
            assert_eq!((status.atime(), status.atime_nsec()), modified, "{name}");
            assert_eq!((status.ctime(), status.ctime_nsec()), modified, "{name}");
            assert_eq!(status.blocks(), status.size().div_ceil(512), "{name}");
        }
        // Again, from what the kernel and the device have cached.
        assert_same(&view(mounted.dir()), &expected(&entries));
    }
}

async fn layers_merge_into_what_an_unpack_of_them_leaves(driver: Driver) {
    let lower = [
        Entry::dir("."),
        Entry::dir("etc"),
        Entry::file("etc/kept", noise(1, 100_000)),
        Entry::file("etc/gone", "gone"),
        Entry::file("etc/changed", "old"),
        Entry::dir("opaque"),
        Entry::file("opaque/hidden", "hidden"),
        Entry::dir("was-dir"),
        Entry::file("was-dir/file", "x"),
    ];
    let upper = [
        Entry::file("etc/.wh.gone", ""),
        Entry::file("etc/changed", noise(2, 200_000)).mode(0o600),
        Entry::file("opaque/new", "new"),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("was-dir", "now a file"),
    ];
    let merged = [
        lower[0].clone(),
        lower[1].clone(),
        lower[2].clone(),
        upper[1].clone(),
        lower[5].clone(),
        upper[2].clone(),
        upper[4].clone(),
    ];
    let image = Image::new(&[(&lower, Packing::Gzip), (&upper, Packing::Tar), (&[], Packing::Gzip)]);
    let node = Node::new(driver);
    let mounted = node.mount(&image).await;
    assert_same(&view(mounted.dir()), &expected(&merged));
}

async fn a_hundred_layers_in_a_deep_directory_need_more_than_a_page_of_options(driver: Driver) {
    let entries: Vec<[Entry; 1]> =
        (0..130).map(|n| [Entry::file(&format!("file{n}"), noise(n, 5000 + n as usize))]).collect();
    let layers: Vec<(&[Entry], Packing)> = entries.iter().map(|layer| (&layer[..], Packing::Tar)).collect();
    let image = Image::new(&layers);
    let root = tempfile::tempdir().unwrap();
    let deep = root.path().join("d".repeat(200)).join("e".repeat(200));
    let node = Node::at(deep, driver);
    let mounted = node.mount(&image).await;
    for n in 0..130 {
        let content = fs::read(mounted.dir().join(format!("file{n}"))).unwrap();
        assert!(content == noise(n, 5000 + n as usize), "file{n}");
    }
}

async fn a_wide_directory_lists_every_name_once_with_the_inode_that_stat_tells(driver: Driver) {
    let name = |i: usize| format!("file-{i:05}-{}", "x".repeat(i % 200));
    let mut entries = vec![Entry::dir("."), Entry::dir("wide")];
    entries.extend((0..5000).map(|i| Entry::file(&format!("wide/{}", name(i)), i.to_string())));
    let (image, node) = (Image::gzip(&entries), Node::new(driver));
    let mounted = node.mount(&image).await;
    let wide = mounted.dir().join("wide");
    for _ in 0..2 {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&wide).unwrap() {
            use std::os::unix::fs::DirEntryExt as _;
            let entry = entry.unwrap();
            let status = fs::symlink_metadata(entry.path()).unwrap();
            assert_eq!(entry.ino(), status.ino());
            assert!(names.insert(entry.file_name().into_string().unwrap()), "{entry:?} twice");
        }
        assert_eq!(names, (0..5000).map(name).collect());
    }
    assert_eq!(fs::read(wide.join(name(4321))).unwrap(), b"4321");
    assert_eq!(fs::metadata(wide.join("missing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(fs::metadata(wide.join("missing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    // A reader that comes back to a place it remembers: half of it, then all of it again through one descriptor.
    let directory = rustix::fs::open(&wide, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    let mut reader = rustix::fs::Dir::new(directory).unwrap();
    let first: Vec<_> = reader.by_ref().take(2500).map(|entry| entry.unwrap().file_name().to_owned()).collect();
    reader.rewind();
    let again: Vec<_> = reader.map(|entry| entry.unwrap().file_name().to_owned()).collect();
    assert_eq!(again[..2500], first);
    assert_eq!(again.len(), 5002);
}

async fn xattr_calls_answer_as_on_any_filesystem(driver: Driver) {
    let file = Entry::file("file", "").xattr("user.a", b"value").xattr("user.b", &[0; 10]);
    let (image, node) = (Image::gzip(&[Entry::dir("."), file]), Node::new(driver));
    let mounted = node.mount(&image).await;
    let path = CString::new(mounted.dir().join("file").into_os_string().into_vec()).unwrap();
    // A size of 0 asks how large the value is.
    let get = |name: &str, size: usize| match size {
        0 => rustix::fs::getxattr_query(path.as_c_str(), name),
        _ => rustix::fs::getxattr(path.as_c_str(), name, &mut vec![0u8; size][..]),
    };
    use rustix::io::Errno;
    assert_eq!(get("user.a", 0), Ok(5));
    assert_eq!(get("user.a", 5), Ok(5));
    assert_eq!(get("user.a", 4), Err(Errno::RANGE));
    assert_eq!(get("user.missing", 0), Err(Errno::NODATA));
    assert_eq!(get("user.missing", 9), Err(Errno::NODATA));
    let list = |size: usize| match size {
        0 => rustix::fs::listxattr_query(path.as_c_str()),
        _ => rustix::fs::listxattr(path.as_c_str(), &mut vec![0u8; size][..]),
    };
    let all = "user.a\0user.b\0".len();
    assert_eq!(list(0), Ok(all));
    assert_eq!(list(all), Ok(all));
    assert_eq!(list(all - 1), Err(Errno::RANGE));
    let bare = CString::new(mounted.dir().as_os_str().as_bytes()).unwrap();
    assert_eq!(rustix::fs::listxattr_query(bare.as_c_str()), Ok(0));
    assert_eq!(rustix::fs::setxattr(path.as_c_str(), "user.a", b"", rustix::fs::XattrFlags::empty()), Err(Errno::ROFS));
}

async fn the_mount_is_read_only_and_allows_set_user_id_programs_and_devices(driver: Driver) {
    let entries = [Entry::dir("."), Entry::file("file", "x"), Entry::new(b"null", Kind::CharDevice(1, 3)).mode(0o666)];
    let (image, node) = (Image::gzip(&entries), Node::new(driver));
    let mounted = node.mount(&image).await;
    assert_eq!(fs::write(mounted.dir().join("new"), "").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::remove_file(mounted.dir().join("file")).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    fs::write(mounted.dir().join("null"), "written to a device, not to the image").unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains(mounted.dir().to_str().unwrap())).unwrap();
    let fields: Vec<&str> = line.split(' ').collect();
    let wanted: &[&str] = match driver {
        Driver::Erofs => {
            assert_eq!(fields[2], "erofs");
            assert!(fields[0].starts_with(node.root().to_str().unwrap()), "{line}");
            &["ro"]
        }
        _ => {
            assert_eq!((fields[0], fields[2]), ("clipper", "fuse.clipper"));
            &["ro", "default_permissions", "allow_other"]
        }
    };
    let options: Vec<&str> = fields[3].split(',').collect();
    for option in wanted {
        assert!(options.contains(option), "{line}");
    }
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(!options.contains(&option), "{line}");
    }
    let space = rustix::fs::statvfs(mounted.dir()).unwrap();
    assert_eq!((space.f_bavail, space.f_namemax), (0, 255));
    if driver == Driver::Fuse {
        assert_eq!((space.f_files, space.f_ffree), (3, 0));
    }
}

over_both_drivers! {
    an_awkward_layer_is_shown_to_the_bit_compressed_or_not,
    layers_merge_into_what_an_unpack_of_them_leaves,
    a_hundred_layers_in_a_deep_directory_need_more_than_a_page_of_options,
    a_wide_directory_lists_every_name_once_with_the_inode_that_stat_tells,
    xattr_calls_answer_as_on_any_filesystem,
    the_mount_is_read_only_and_allows_set_user_id_programs_and_devices,
}
