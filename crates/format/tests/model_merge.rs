//! Random layers through the walker and the merge, against the reference model.
mod model;

use clipper_format::erofs;
use clipper_format::merge::merge;
use clipper_format::tar::{LayerWalker, Limits};
use clipper_format::tree::{Content, ExtentSource, InodeId, ROOT, Tree};
use model::disk::{self, Disk};
use model::{Kind, Shown, View, differences, strategy, tarball};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Walks an archive cut into pieces of `piece` bytes.
fn walk(archive: &[u8], piece: usize) -> Tree {
    let mut walker = LayerWalker::new(Limits::default());
    for bytes in archive.chunks(piece) {
        walker.push(bytes).unwrap();
    }
    walker.finish().unwrap()
}

/// What a tree shows, with the files' bytes taken from its devices.
fn view(tree: &Tree, devices: &[Vec<u8>]) -> View {
    let mut view = View::new();
    let mut first_names: BTreeMap<InodeId, Vec<u8>> = BTreeMap::new();
    let mut todo = vec![(Vec::new(), ROOT)];
    while let Some((path, id)) = todo.pop() {
        let inode = tree.inode(id);
        let kind = match &inode.content {
            Content::Directory(entries) => {
                for (name, child) in entries.iter().rev() {
                    let slash = if path.is_empty() { &b""[..] } else { b"/" };
                    todo.push(([&path, slash, name].concat(), child));
                }
                Kind::Directory
            }
            Content::File(data) => {
                let mut bytes = vec![0; data.size() as usize];
                for extent in data.extents() {
                    let end = extent.file_offset + extent.len;
                    assert_eq!(extent.file_offset % 512, 0);
                    assert!(end.is_multiple_of(512) || end == data.size());
                    let source = match &extent.source {
                        ExtentSource::Inline(bytes) => &bytes[..],
                        ExtentSource::Device { device, offset } => {
                            assert_eq!(offset % 512, 0);
                            let device = &devices[usize::from(*device) - 1];
                            &device[*offset as usize..(offset + extent.len) as usize]
                        }
                    };
                    bytes[extent.file_offset as usize..end as usize].copy_from_slice(source);
                }
                Kind::File(bytes)
            }
            Content::Symlink(target) => Kind::Symlink(target.clone()),
            Content::CharDevice(d) => Kind::CharDevice(d.major, d.minor),
            Content::BlockDevice(d) => Kind::BlockDevice(d.major, d.minor),
            Content::Fifo => Kind::Fifo,
            Content::Socket => panic!("a tar holds no sockets"),
        };
        let same_as = match kind {
            Kind::Directory => path.clone(),
            _ => first_names.entry(id).or_insert(path.clone()).clone(),
        };
        let mtime = (inode.mtime, inode.mtime_nsec);
        let (perm, uid, gid, xattrs) = (inode.perm, inode.uid, inode.gid, inode.xattrs.clone());
        view.insert(path, Shown { kind, perm, uid, gid, mtime, xattrs, same_as });
    }
    view
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn merged_layers_show_what_the_model_shows(layers in strategy::layers(5, 12), piece in 1..5000usize) {
        let (disks, applied): (Vec<Disk>, Vec<_>) = layers.iter().enumerate().map(|(number, layer)| Disk::unpack(number, layer)).unzip();
        let archives: Vec<Vec<u8>> = applied.iter().map(|layer| tarball::archive(layer)).collect();
        let trees = archives.iter().map(|archive| walk(archive, piece)).collect();
        let merged = merge(trees, false).unwrap();
        let differences = differences(&disk::view(&disks), &view(&merged, &archives));
        prop_assert!(differences.is_empty(), "{}\nlayers: {applied:#?}", differences.join("\n"));
    }

    #[test]
    fn nothing_is_lost_when_trees_are_stored(layers in strategy::layers(3, 10)) {
        let applied: Vec<_> = layers.iter().enumerate().map(|(number, layer)| Disk::unpack(number, layer).1).collect();
        let archives: Vec<Vec<u8>> = applied.iter().map(|layer| tarball::archive(layer)).collect();
        let trees: Vec<Tree> = archives.iter().map(|archive| walk(archive, 4096)).collect();
        let stored = trees.iter().map(stored).collect();
        let direct = merge(trees, false).unwrap();
        let merged = self::stored(&merge(stored, false).unwrap());
        let differences = differences(&view(&direct, &archives), &view(&merged, &archives));
        prop_assert!(differences.is_empty(), "{}\nlayers: {applied:#?}", differences.join("\n"));
    }

    #[test]
    fn a_run_with_whiteouts_kept_hides_the_same_above_any_layers(
        layers in strategy::layers(6, 10),
        cut in 1..6usize,
    ) {
        let applied: Vec<_> = layers.iter().enumerate().map(|(number, layer)| Disk::unpack(number, layer).1).collect();
        let archives: Vec<Vec<u8>> = applied.iter().map(|layer| tarball::archive(layer)).collect();
        let trees: Vec<Tree> = archives.iter().map(|archive| walk(archive, 4096)).collect();
        let (lower, upper) = trees.split_at(cut.min(trees.len()));
        // What is implicit in the upper run needs the attributes of the lower layers: resolve with all, then cut.
        let whole = merge(trees.clone(), false).unwrap();
        let run = merge(upper.to_vec(), true).unwrap();
        let again = merge([lower, &[renumbered(run, upper.len())]].concat(), false).unwrap();
        let (expected, found) = (view(&whole, &archives), view_of_run(&again, &archives, lower.len()));
        let strip = |view: View| -> BTreeMap<Vec<u8>, Kind> {
            view.into_iter().map(|(path, shown)| (path, shown.kind)).collect()
        };
        prop_assert_eq!(strip(expected), strip(found), "layers: {:#?}", applied);
    }
}

/// A tree written as an EROFS image and read again.
fn stored(tree: &Tree) -> Tree {
    let image = erofs::write(tree).unwrap();
    erofs::Image::parse(image.into()).unwrap().to_tree().unwrap()
}

/// A run has one device per layer; merging wants one per tree. The devices are laid end to end in one.
fn renumbered(mut run: Tree, layers: usize) -> Tree {
    assert_eq!(run.device_sizes.len(), layers);
    let starts: Vec<u64> = run
        .device_sizes
        .iter()
        .scan(0, |at, size| {
            let start = *at;
            *at += size;
            Some(start)
        })
        .collect();
    for inode in &mut run.inodes {
        if let Content::File(data) = &mut inode.content {
            let moved: Result<(), ()> =
                data.move_extents(|_, device, offset| Ok((1, offset + starts[usize::from(device) - 1])));
            moved.unwrap();
        }
    }
    run.device_sizes = vec![run.device_sizes.iter().sum()];
    run
}

fn view_of_run(tree: &Tree, archives: &[Vec<u8>], lower: usize) -> View {
    let mut devices = archives[..lower].to_vec();
    devices.push(archives[lower..].concat());
    view(tree, &devices)
}
