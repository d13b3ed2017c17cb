//! Trees through the writer and the reader and back.
use clipper_format::erofs::{ErofsError, Image, ImageSource, MAX_DEPTH, write};
use clipper_format::tree::{
    Content, DeviceNumber, Directory, Extent, ExtentSource, FileData, Inode, InodeId, ROOT, Tree,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

mod erofs_trees;
use erofs_trees::{DEVICE, any_tree};

fn round_trip(tree: &Tree) -> Tree {
    Image::parse(write(tree).unwrap().into()).unwrap().to_tree().unwrap()
}

/// The same tree with inodes numbered in breadth-first order and without those that have no name.
fn renumbered(tree: &Tree) -> Tree {
    let mut order = vec![ROOT];
    let mut next = 0;
    while next < order.len() {
        for id in tree.entries(order[next]).into_iter().flat_map(Directory::ids) {
            if !order.contains(&id) {
                order.push(id);
            }
        }
        next += 1;
    }
    let number = |id: &InodeId| order.iter().position(|other| other == id).unwrap();
    let renumber = |id: &InodeId| {
        let mut inode = tree.inode(*id).clone();
        if let Content::Directory(entries) = &mut inode.content {
            entries.renumber(|id| Some(number(&id)));
        }
        inode
    };
    Tree { inodes: order.iter().map(renumber).collect(), device_sizes: tree.device_sizes.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_survive(tree in any_tree()) {
        prop_assert_eq!(round_trip(&tree), renumbered(&tree));
    }

    #[test]
    fn damage_is_an_error_or_another_tree(tree in any_tree(), flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..20), cut in prop::option::weighted(0.1, any::<prop::sample::Index>())) {
        let mut bytes = write(&tree).unwrap();
        for (index, flip) in flips {
            let index = index.index(bytes.len());
            bytes[index] ^= flip;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let size = bytes.len();
        if let Ok(tree) = Image::parse(bytes.into()).and_then(|image| image.to_tree()) {
            prop_assert!(tree.inodes.len() <= size / 32);
        }
    }
}

fn directory(entries: &[(&str, InodeId)]) -> Inode {
    let entries = entries.iter().map(|(name, id)| (name.as_bytes().to_vec(), *id)).collect();
    Inode { content: Content::Directory(entries), ..Inode::empty_directory() }
}

fn file(size: u64, extents: Vec<Extent>) -> Inode {
    Inode { content: Content::File(FileData::new(size, extents)), ..Inode::empty_directory() }
}

fn on_device(file_offset: u64, len: u64, offset: u64) -> Extent {
    Extent { file_offset, len, source: ExtentSource::Device { device: 1, offset } }
}

#[test]
fn lookups_find_all_names_and_no_others() {
    let mut names: Vec<String> = (0..3000).map(|n| format!("{:x}", n * 7919)).collect();
    names.extend(["-".to_owned(), "...".to_owned(), "x".repeat(255)]);
    let mut inodes = vec![directory(&[])];
    let entries: Directory = names.iter().zip(1..).map(|(name, id)| (name.as_bytes().to_vec(), id)).collect();
    inodes.extend((1..=names.len()).map(|n| Inode { uid: n as u32, ..file(0, vec![]) }));
    inodes[ROOT].content = Content::Directory(entries);
    let image = Image::parse(write(&Tree { inodes, device_sizes: vec![] }).unwrap().into()).unwrap();
    let root = image.inode(image.root()).unwrap();
    for (name, uid) in names.iter().zip(1..) {
        let nid = image.lookup(&root, name.as_bytes()).unwrap().unwrap();
        assert_eq!(image.inode(nid).unwrap().uid, uid, "{name}");
        for other in [format!("{name}~"), format!("{name}\0"), name[1..].to_owned()] {
            let found = image.lookup(&root, other.as_bytes()).unwrap();
            assert_eq!(found.is_some(), names.contains(&other) || other == "..", "{other}");
        }
    }
    assert_eq!(image.lookup(&root, b".").unwrap(), Some(image.root()));
    assert_eq!(image.lookup(&root, b"..").unwrap(), Some(image.root()));
    assert_eq!(image.lookup(&root, b"").unwrap(), None);
}

#[test]
fn listings_go_on_from_every_cookie() {
    let names: Vec<String> = (0..500).map(|n| format!("name{n}")).collect();
    let entries: Vec<(&str, InodeId)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let tree = Tree { inodes: vec![directory(&entries), file(0, vec![])], device_sizes: vec![] };
    let image = Image::parse(write(&tree).unwrap().into()).unwrap();
    let root = image.inode(image.root()).unwrap();
    assert_eq!(image.inode(image.lookup(&root, b"name7").unwrap().unwrap()).unwrap().nlink, 500);
    let all: Vec<_> = image.entries(&root, 0).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(all.len(), 502);
    assert!(all.is_sorted_by(|a, b| a.name < b.name && a.next_cookie < b.next_cookie));
    for (n, entry) in all.iter().enumerate() {
        let rest: Vec<_> = image.entries(&root, entry.next_cookie).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(rest, all[n + 1..]);
    }
    assert_eq!(image.entries(&root, u64::MAX).unwrap().count(), 0);
}

#[test]
fn extents_cover_what_is_asked_for_and_no_more() {
    let extents = vec![
        on_device(4096, 1000 * 512, 512),
        Extent { file_offset: 1 << 20, len: 3, source: ExtentSource::Inline(b"abc".to_vec()) },
    ];
    let tree = Tree { inodes: vec![directory(&[("f", 1)]), file((1 << 20) + 3, extents)], device_sizes: vec![DEVICE] };
    let image = Image::parse(write(&tree).unwrap().into()).unwrap();
    let root = image.inode(image.root()).unwrap();
    let inode = image.inode(image.lookup(&root, b"f").unwrap().unwrap()).unwrap();
    let all = image.extents(&inode, 0..u64::MAX).unwrap();
    let shapes: Vec<_> = all.iter().map(|extent| (extent.file_offset, extent.len)).collect();
    let end = 4096 + 1000 * 512;
    assert_eq!(shapes, [(0, 4096), (4096, 1000 * 512), (end, (1 << 20) - end), (1 << 20, 3)]);
    assert_eq!(all[0].source, ImageSource::Hole);
    assert_eq!(all[2].source, ImageSource::Hole);
    let ImageSource::Image { offset } = all[3].source else { panic!("{:?}", all[3]) };
    assert_eq!(&image.bytes()[offset as usize..][..3], b"abc");
    let some = image.extents(&inode, 5000..5010).unwrap();
    assert_eq!(some.len(), 1);
    assert_eq!((some[0].file_offset, some[0].len), (5000, 10));
    assert_eq!(some[0].source, ImageSource::Device { device: 1, offset: 512 + 5000 - 4096 });
    assert_eq!(image.extents(&inode, inode.size..inode.size + 1).unwrap(), []);
    assert!(image.extents(&root, 0..1).is_err());
}

#[test]
fn what_erofs_cannot_hold_is_refused_by_path() {
    let problem = |inode: Inode| {
        let tree =
            Tree { inodes: vec![directory(&[("d", 1)]), directory(&[("f", 2)]), inode], device_sizes: vec![4096] };
        match write(&tree) {
            Err(ErofsError::File { path, problem }) => {
                assert_eq!(path, "/d/f");
                problem
            }
            other => panic!("{other:?}"),
        }
    };
    let base = || file(0, vec![]);
    let xattrs = |name: &str, len| BTreeMap::from([(name.as_bytes().to_vec(), vec![0; len])]);
    assert!(problem(Inode { xattrs: xattrs("com.apple.x", 0), ..base() }).contains("com.apple.x"));
    assert!(problem(Inode { xattrs: xattrs("user.x", 65_536), ..base() }).contains("65535"));
    assert!(problem(Inode { mtime_nsec: 1_000_000_000, ..base() }).contains("nanoseconds"));
    let number = DeviceNumber { major: 4096, minor: 1 };
    assert!(problem(Inode { content: Content::CharDevice(number), ..base() }).contains("4096:1"));
    assert!(problem(Inode { content: Content::Symlink(vec![]), ..base() }).contains("symlink"));
    assert!(problem(Inode { content: Content::Symlink(vec![b'x'; 4096]), ..base() }).contains("symlink"));
    for (size, extents) in [
        (100, vec![on_device(0, 101, 0)]),
        (100, vec![on_device(0, 100, 1)]),
        (4096, vec![on_device(0, 100, 0)]),
        (4096, vec![on_device(100, 3996, 0)]),
        (4096, vec![on_device(0, 4096, 512)]),
        (4096, vec![on_device(0, 1024, 0), on_device(512, 512, 0)]),
        (4096, vec![on_device(0, 0, 0)]),
        (512, vec![Extent { file_offset: 0, len: 512, source: ExtentSource::Device { device: 2, offset: 0 } }]),
        (512, vec![Extent { file_offset: 0, len: 512, source: ExtentSource::Device { device: 0, offset: 0 } }]),
        (512, vec![Extent { file_offset: 0, len: 512, source: ExtentSource::Inline(vec![0; 511]) }]),
    ] {
        assert!(problem(file(size, extents)).contains("extent"));
    }
    assert!(problem(file(u64::MAX, vec![])).contains("largest"));
    assert!(problem(file(1 << 40, vec![on_device(512, 512, 0)])).contains("chunk table of more than 64 MiB"));
}

#[test]
fn trees_that_are_none_are_refused() {
    let write_inodes = |inodes| write(&Tree { inodes, device_sizes: vec![] });
    assert!(matches!(write_inodes(vec![]), Err(ErofsError::Tree(_))));
    assert!(matches!(write_inodes(vec![file(0, vec![])]), Err(ErofsError::Tree(_))));
    for name in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
        assert!(matches!(write_inodes(vec![directory(&[(name, 1)]), file(0, vec![])]), Err(ErofsError::File { .. })));
    }
    let twice = vec![directory(&[("a", 1), ("b", 1)]), directory(&[])];
    assert!(matches!(write_inodes(twice), Err(ErofsError::File { path, .. }) if path == "/b"));
    let cycle = vec![directory(&[("a", 1)]), directory(&[("b", 0)])];
    assert!(matches!(write_inodes(cycle), Err(ErofsError::File { path, .. }) if path == "/a/b"));
    assert!(matches!(write_inodes(vec![directory(&[("a", 7)])]), Err(ErofsError::File { path, .. }) if path == "/a"));
    let nested = |depth| (1..=depth).map(|n| directory(&[("d", n)])).chain([directory(&[])]).collect();
    assert!(write_inodes(nested(MAX_DEPTH)).is_ok());
    assert!(matches!(write_inodes(nested(MAX_DEPTH + 1)), Err(ErofsError::File { .. })));
    assert_eq!(round_trip(&Tree { inodes: nested(MAX_DEPTH), device_sizes: vec![] }).inodes.len(), MAX_DEPTH + 1);
}

#[test]
fn images_are_deterministic_and_differ_in_their_identifier() {
    let tree = |uid| Tree { inodes: vec![Inode { uid, ..directory(&[]) }], device_sizes: vec![] };
    assert_eq!(write(&tree(1)), write(&tree(1)));
    let uuid = |uid| write(&tree(uid)).unwrap()[1024 + 48..1024 + 64].to_vec();
    assert_ne!(uuid(1), uuid(2));
}

#[test]
fn foreign_and_truncated_images_are_refused() {
    let tree = Tree { inodes: vec![directory(&[])], device_sizes: vec![DEVICE] };
    let image = write(&tree).unwrap();
    for len in 0..image.len() {
        assert!(Image::parse(image[..len].into()).is_err(), "{len}");
    }
    let longer = [image.clone(), vec![0; 512]].concat();
    assert!(matches!(Image::parse(longer.into()), Err(ErofsError::Superblock(_))));
    // Every bit of the superblock is either checked or covered by its checksum.
    for bit in 1024 * 8..1536 * 8 {
        let mut image = image.clone();
        image[bit / 8] ^= 1 << (bit % 8);
        assert!(Image::parse(image.into()).is_err(), "bit {bit}");
    }
    for (at, value) in [(12, 12u8), (80, 0x0d), (90, 1), (91, 1)] {
        let mut image = image.clone();
        image[1024 + at] = value;
        let sum = crc32c(&image[1024..1536]);
        image[1028..1032].copy_from_slice(&sum.to_le_bytes());
        assert!(matches!(Image::parse(image.into()), Err(ErofsError::Unsupported(_))), "{at}");
    }
}

/// The superblock's checksum, as the kernel computes it.
fn crc32c(block: &[u8]) -> u32 {
    let mut block = block.to_vec();
    block[4..8].fill(0);
    block.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 * (crc & 1)))
    })
}
