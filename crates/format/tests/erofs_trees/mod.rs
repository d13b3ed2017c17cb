//! Random trees for the tests of what trees are stored in.
use clipper_format::tree::{Content, DeviceNumber, Directory, Extent, ExtentSource, FileData, Inode, ROOT, Tree};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Bytes of each of the two devices of the random trees.
pub const DEVICE: u64 = 1 << 20;

/// Files whose extents are as the reader gives them back: neighbours joined, bytes kept in the tree as whole blocks.
fn any_file() -> impl Strategy<Value = FileData> {
    // Parts of a file in blocks: a hole, device bytes from some block on, or bytes kept in the tree.
    let part = prop_oneof![
        (1..20u64).prop_map(|blocks| (blocks, None)),
        (1..20u64, 1..=2u16, 0..1000u64).prop_map(|(blocks, device, block)| {
            (blocks, Some(ExtentSource::Device { device, offset: block * 512 }))
        }),
        (1..4u64, any::<u8>())
            .prop_map(|(blocks, byte)| { (blocks, Some(ExtentSource::Inline(vec![byte; blocks as usize * 512]))) }),
    ];
    (prop::collection::vec(part, 0..5), 0..512u64).prop_map(|(parts, cut)| {
        let (mut size, mut extents) = (0, Vec::<Extent>::new());
        for (blocks, source) in parts {
            let len = blocks * 512;
            match (extents.last_mut(), source) {
                (_, None) => {}
                (Some(last), Some(source)) if continues(last, size, &source) => {
                    last.len += len;
                    if let (ExtentSource::Inline(bytes), ExtentSource::Inline(more)) = (&mut last.source, source) {
                        bytes.extend(more);
                    }
                }
                (_, Some(source)) => extents.push(Extent { file_offset: size, len, source }),
            }
            size += len;
        }
        let cut = cut.min(size);
        match extents.last_mut() {
            Some(last) if last.file_offset + last.len == size => {
                last.len -= cut;
                if let ExtentSource::Inline(bytes) = &mut last.source {
                    bytes.truncate(last.len as usize);
                }
                extents.retain(|extent| extent.len > 0);
            }
            _ => {}
        }
        size -= cut;
        FileData::new(size, extents)
    })
}

fn continues(last: &Extent, position: u64, next: &ExtentSource) -> bool {
    last.file_offset + last.len == position
        && match (&last.source, next) {
            (ExtentSource::Device { device: a, offset: x }, ExtentSource::Device { device: b, offset: y }) => {
                a == b && x + last.len == *y
            }
            (ExtentSource::Inline(_), ExtentSource::Inline(_)) => true,
            _ => false,
        }
}

fn any_inode() -> impl Strategy<Value = Inode> {
    let number = (0..4096u32, 0..1u32 << 20).prop_map(|(major, minor)| DeviceNumber { major, minor });
    let content = prop_oneof![
        3 => Just(Content::Directory(Directory::default())),
        4 => any_file().prop_map(Content::File),
        2 => prop::collection::vec(1..=255u8, 1..600).prop_map(Content::Symlink),
        1 => number.clone().prop_map(Content::CharDevice),
        1 => number.prop_map(Content::BlockDevice),
        1 => Just(Content::Fifo),
        1 => Just(Content::Socket),
    ];
    let name = prop::sample::select(vec!["user.a", "user.bb", "trusted.x", "security.capability", "lustre.l"]);
    let acl = prop::sample::select(vec!["system.posix_acl_access", "system.posix_acl_default"]);
    let value = prop_oneof![Just(vec![]), Just(vec![1, 2, 3]), prop::collection::vec(any::<u8>(), 0..300)];
    let xattr = (prop_oneof![4 => name, 1 => acl].prop_map(|name| name.as_bytes().to_vec()), value);
    let xattrs = prop_oneof![2 => Just(BTreeMap::new()), 1 => prop::collection::btree_map(xattr.0, xattr.1, 0..4)];
    let time = prop_oneof![3 => Just((0, 0)), 1 => (any::<i64>(), 0..1_000_000_000u32)];
    let owner = prop_oneof![3 => Just((0, 0)), 1 => any::<(u32, u32)>()];
    (0..=0o7777u16, owner, time, xattrs, content).prop_map(
        |(perm, (uid, gid), (mtime, mtime_nsec), xattrs, content)| Inode {
            perm,
            uid,
            gid,
            mtime,
            mtime_nsec,
            xattrs,
            content,
        },
    )
}

/// Inodes, and for each a name, a directory to put it in and now and then a second name.
pub fn any_tree() -> impl Strategy<Value = Tree> {
    let name = prop_oneof![
        prop::collection::vec(1..=255u8, 1..20),
        prop::collection::vec(prop::sample::select(b"a.-".to_vec()), 1..4),
        prop::collection::vec(1..=255u8, 200..=255),
    ]
    .prop_map(|mut name| {
        name.iter_mut().filter(|byte| **byte == b'/').for_each(|byte| *byte = b'_');
        if matches!(name.as_slice(), b"." | b"..") {
            name.push(b'x');
        }
        name
    });
    let placed = (any_inode(), name.clone(), any::<prop::sample::Index>(), prop::option::weighted(0.1, name));
    prop::collection::vec(placed, 0..60).prop_map(|placed| {
        let mut inodes = vec![Inode::empty_directory()];
        let mut directories = vec![ROOT];
        for (inode, name, place, second) in placed {
            let id = inodes.len();
            let is_directory = matches!(inode.content, Content::Directory(_));
            inodes.push(inode);
            let parent = directories[place.index(directories.len())];
            for name in [Some(name), second.filter(|_| !is_directory)].into_iter().flatten() {
                if let Content::Directory(entries) = &mut inodes[parent].content
                    && entries.get(&name).is_none()
                {
                    entries.insert(&name, id);
                }
            }
            if is_directory {
                directories.push(id);
            }
        }
        Tree { inodes, device_sizes: vec![DEVICE, DEVICE - 100] }
    })
}
