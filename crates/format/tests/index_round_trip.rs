//! Trees, span tables and whole indexes through the index blob and back.
use clipper_format::Digest;
use clipper_format::erofs::MAX_DEPTH;
use clipper_format::index::{BlobRef, Hot, HotFrame, HotPiece, Index, IndexError, LayerIndex, PackError, PackedTree};
use clipper_format::span::{MAX_SKIP, Span, SpanTable, Start};
use clipper_format::tree::{Content, Directory, Extent, ExtentSource, FileData, Inode, InodeId, ROOT, Tree};
use clipper_format::zstd::MAX_SPAN;
use proptest::prelude::*;

mod erofs_trees;
use erofs_trees::any_tree;

/// The same tree with inodes numbered in the order of a depth-first walk and without those that have no name.
fn renumbered(tree: &Tree) -> Tree {
    fn visit(tree: &Tree, id: InodeId, order: &mut Vec<InodeId>) {
        if !order.contains(&id) {
            order.push(id);
            tree.entries(id).into_iter().flat_map(Directory::ids).for_each(|child| visit(tree, child, order));
        }
    }
    let mut order = Vec::new();
    visit(tree, ROOT, &mut order);
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

/// A layer with a tree of its own over the device that its spans make up.
fn any_layer() -> impl Strategy<Value = LayerIndex> {
    let start = prop_oneof![
        Just(Start::Stored),
        (0..=MAX_SKIP).prop_map(|skip| Start::GzipMember { skip }),
        (0..=MAX_SKIP).prop_map(|skip| Start::ZstdFrame { skip }),
        (0..8u8, 0..258u16, 0..48u32).prop_map(|(bit, skip, checkpoint)| Start::Gzip { bit, skip, checkpoint }),
        (0..4096u16, 0..3u32).prop_map(|(skip, checkpoint)| Start::ZstdBlock { skip, checkpoint }),
    ];
    let span = (1..=16u32, 0..50_000u32, 0..3u64, start, any::<[u8; 32]>());
    let group = (0..500u64, 0..500u64).prop_map(|(start, len)| start..start + len);
    let groups = prop::collection::vec(group, 3);
    let spans = prop_oneof![Just(vec![]), prop::collection::vec(span, 3..40)];
    (any_tree(), spans, 0..4096u32, groups, any::<[u8; 32]>()).prop_map(|(mut tree, parts, cut, groups, digest)| {
        let mut spans: Vec<Span> = Vec::new();
        let mut source = 0u64;
        let count = parts.len();
        for (n, (blocks, source_len, overlap, start, blake3)) in parts.into_iter().enumerate() {
            let device_offset = spans.last().map_or(0, |span| span.device_range().end);
            let device_len = blocks * 4096 - if n + 1 == count { cut } else { 0 };
            let source_offset = spans.last().map_or(0, |s| source.saturating_sub(overlap).max(s.source_offset));
            source = source_offset + u64::from(source_len);
            spans.push(Span { device_offset, device_len, source_offset, source_len, start, blake3 });
        }
        let source_size = spans.iter().map(|span| span.source_range().end).max().unwrap_or_default();
        let spans = SpanTable::new(spans, source_size).unwrap();
        // The tree of a layer has one device; what the random tree's files have there doesn't matter here.
        tree.inodes.iter_mut().for_each(|inode| {
            if let Content::File(file) = &mut inode.content {
                *file = FileData::new(file.size(), Vec::new());
            }
        });
        tree.device_sizes = vec![spans.device_size()];
        LayerIndex {
            digest: Digest::from_bytes(digest),
            diff_id: Digest::of(&digest),
            source_size,
            tree: PackedTree::pack(&tree).unwrap(),
            spans,
            checkpoint_groups: if count == 0 { vec![] } else { groups },
        }
    })
}

fn any_index() -> impl Strategy<Value = Index> {
    let piece = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let frame = (prop::collection::vec(piece, 1..6), 1..1u32 << 20, any::<[u8; 32]>());
    let layers = prop::collection::vec(any_layer(), 0..4);
    let list = prop::collection::vec("/[a-z/\u{e4}]{0,20}", 0..5);
    (layers, prop::collection::vec(frame, 0..4), list).prop_map(|(layers, frames, list)| {
        let checkpoints = Some(BlobRef { digest: Digest::of(b"checkpoints"), size: 1000 });
        let sizes: Vec<_> = layers.iter().map(|layer| layer.spans.device_size().div_ceil(4096) as usize).collect();
        let full: Vec<_> = (0..layers.len()).filter(|layer| sizes[*layer] > 0).collect();
        let place = |(layer, first, blocks): (prop::sample::Index, prop::sample::Index, prop::sample::Index)| {
            let layer = full[layer.index(full.len())];
            let first = first.index(sizes[layer]);
            let blocks = 1 + blocks.index((sizes[layer] - first).min(100));
            HotPiece { layer: layer as u32, first: first as u64, blocks: blocks as u32 }
        };
        let frames: Vec<_> = frames
            .into_iter()
            .filter(|_| !full.is_empty())
            .map(|(pieces, len, blake3)| HotFrame { len, pieces: pieces.into_iter().map(place).collect(), blake3 })
            .collect();
        let size = frames.iter().map(|frame| u64::from(frame.len)).sum();
        let hot = (!frames.is_empty()).then(|| Hot { blob: BlobRef { digest: Digest::of(b"hot"), size }, frames });
        let prefetch = list.into_iter().map(String::into_bytes).collect();
        Index { span_size: 1 << 20, checkpoints, layers, prefetch, hot }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_survive(tree in any_tree()) {
        let packed = PackedTree::pack(&tree).unwrap();
        let unpacked = packed.unpack().unwrap();
        prop_assert_eq!(packed.inode_count(), unpacked.inodes.len() as u64);
        prop_assert_eq!(&unpacked, &renumbered(&tree));
        prop_assert_eq!(PackedTree::pack(&unpacked).unwrap(), packed);
    }

    #[test]
    fn random_indexes_survive(index in any_index()) {
        let blob = index.encode().unwrap();
        let decoded = Index::decode(&blob).unwrap();
        prop_assert_eq!(&decoded, &index);
        prop_assert_eq!(decoded.encode().unwrap(), blob);
    }

    #[test]
    fn damage_is_an_error_or_an_index_that_holds_together(
        index in any_index(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..8),
    ) {
        let mut blob = index.encode().unwrap();
        for (at, flip) in flips {
            let at = at.index(blob.len());
            blob[at] ^= flip;
        }
        if let Ok(index) = Index::decode(&blob) {
            prop_assert!(index.encode().is_ok());
            prop_assert!(index.layers.iter().all(|layer| layer.tree.unpack().is_ok()));
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..300), whole in any::<bool>()) {
        if whole {
            bytes.splice(0..0, *b"clipidx\0\x02\0");
        }
        let _ = Index::decode(&bytes);
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

fn span(device_offset: u64, device_len: u32, start: Start) -> Span {
    Span { device_offset, device_len, source_offset: 0, source_len: 10, start, blake3: [7; 32] }
}

fn layer(spans: Vec<Span>, groups: Vec<std::ops::Range<u64>>) -> LayerIndex {
    LayerIndex {
        digest: Digest::of(b"layer"),
        diff_id: Digest::of(b"diff"),
        source_size: 100,
        tree: PackedTree::pack(&Tree { inodes: vec![directory(&[])], device_sizes: vec![] }).unwrap(),
        spans: SpanTable::new(spans, 100).unwrap(),
        checkpoint_groups: groups,
    }
}

fn index(layer: LayerIndex) -> Index {
    let checkpoints = Some(BlobRef { digest: Digest::of(b"checkpoints"), size: 50 });
    Index { span_size: 1 << 16, checkpoints, layers: vec![layer], prefetch: Vec::new(), hot: None }
}

#[test]
fn what_does_not_hold_together_is_neither_written_nor_read() {
    let gzip = |bit, skip, checkpoint| Start::Gzip { bit, skip, checkpoint };
    let group = |end| std::iter::once(0..end).collect();
    let one_group = || group(50);
    let zstd = |skip| Start::ZstdFrame { skip };
    let block = |skip, checkpoint| Start::ZstdBlock { skip, checkpoint };
    assert!(index(layer(vec![span(0, 4096, gzip(7, 257, 15))], one_group())).encode().is_ok());
    assert!(index(layer(vec![span(0, MAX_SPAN, zstd(MAX_SKIP))], vec![])).encode().is_ok(), "the longest");
    assert!(index(layer(vec![span(0, MAX_SPAN, block(4095, 0))], one_group())).encode().is_ok(), "the same");
    let bad = [
        layer(vec![span(0, 4096, gzip(8, 0, 0))], one_group()),
        layer(vec![span(0, 4096, gzip(0, 258, 0))], one_group()),
        layer(vec![span(0, 4096, gzip(0, 0, 16))], one_group()),
        layer(vec![span(0, 4096, gzip(0, 0, 0))], vec![]),
        layer(vec![span(0, 4096, gzip(0, 0, 0))], group(51)),
        layer(vec![span(0, (1 << 16) + 4096, Start::Stored)], vec![]),
        layer(vec![span(0, (1 << 16) + 4096, Start::GzipMember { skip: 0 })], vec![]),
        layer(vec![span(0, MAX_SPAN + 4096, zstd(0))], vec![]),
        layer(vec![span(0, MAX_SPAN + 4096, block(0, 0))], one_group()),
        layer(vec![span(0, 4096, block(4096, 0))], one_group()),
        layer(vec![span(0, 4096, block(0, 1))], one_group()),
        layer(vec![span(0, 4096, zstd(MAX_SKIP + 1))], vec![]),
        layer(vec![span(0, 4096, Start::GzipMember { skip: MAX_SKIP + 1 })], vec![]),
    ];
    for layer in bad {
        let tree = layer.tree.clone();
        assert!(matches!(index(layer).encode(), Err(IndexError::Layer { .. })), "{tree:?}");
    }
    let other_device = Tree { inodes: vec![directory(&[])], device_sizes: vec![4097] };
    let mut wrong = layer(vec![span(0, 4096, Start::Stored)], vec![]);
    wrong.tree = PackedTree::pack(&other_device).unwrap();
    assert!(matches!(index(wrong).encode(), Err(IndexError::Layer { .. })));
    let short = LayerIndex { source_size: 9, ..layer(vec![span(0, 4096, Start::Stored)], vec![]) };
    assert!(matches!(index(short).encode(), Err(IndexError::Spans { .. })));
    let none = Index { checkpoints: None, ..index(layer(vec![span(0, 4096, gzip(0, 0, 0))], one_group())) };
    assert!(matches!(none.encode(), Err(IndexError::Layer { .. })));
}

#[test]
fn a_hot_blob_that_does_not_hold_together_is_neither_written_nor_read() {
    let piece = |layer, first, blocks| HotPiece { layer, first, blocks };
    let with = |pieces: Vec<HotPiece>, len, size| {
        let index = index(layer(vec![span(0, 8192, Start::Stored), span(8192, 100, Start::Stored)], vec![]));
        let blob = BlobRef { digest: Digest::of(b"hot"), size };
        Index { hot: Some(Hot { blob, frames: vec![HotFrame { len, pieces, blake3: [1; 32] }] }), ..index }.encode()
    };
    let ok = with(vec![piece(0, 2, 1), piece(0, 0, 2)], 10, 10);
    let hot = Index::decode(&ok.unwrap()).unwrap().hot.unwrap();
    assert_eq!(hot.frames[0].pieces[0].device_range(8292), 8192..8292);
    let bad = [
        with(vec![piece(0, 2, 1)], 10, 11),
        with(vec![], 10, 10),
        with(vec![piece(0, 2, 1)], 0, 0),
        with(vec![piece(0, 2, 2)], 10, 10),
        with(vec![piece(0, 1, 0)], 10, 10),
        with(vec![piece(0, u64::MAX, 1)], 10, 10),
        with(vec![piece(1, 0, 1)], 10, 10),
        with(vec![piece(0, 0, 2); 1000], 10, 10),
        with(vec![piece(0, 2, 1); 2049], 10, 10),
        with(vec![piece(0, 2, 1)], (8 << 20) + 1, (8 << 20) + 1),
    ];
    assert!(bad.iter().all(|blob| matches!(blob, Err(IndexError::Corrupt(_)))), "{bad:?}");
}

#[test]
fn what_would_take_too_much_memory_is_neither_written_nor_read() {
    let told = |index: &Index| match index.encode() {
        Err(IndexError::Corrupt(what)) => what,
        other => panic!("{other:?}"),
    };
    let one = index(layer(vec![span(0, 4000, Start::Stored)], vec![]));
    let layers = |count| Index { layers: vec![one.layers[0].clone(); count], ..one.clone() };
    assert!(Index::decode(&layers(4096).encode().unwrap()).is_ok());
    assert_eq!(told(&layers(4097)), "it has more than 4096 layers");
    let spans = |count| index(layer((0..count).map(|n| span(n * 4096, 4096, Start::Stored)).collect(), vec![]));
    let most = spans(1 << 21);
    assert!(Index::decode(&most.encode().unwrap()).unwrap() == most);
    assert!(told(&spans((1 << 21) + 1)).contains("more than 2097152 spans"));
    let paths = Index { prefetch: vec![b"/".to_vec(); (1 << 18) + 1], ..one.clone() };
    assert!(told(&paths).contains("more than 262144 paths"));
    let paths = Index { prefetch: vec![vec![b'/'; 16 << 20]], ..one };
    assert!(told(&paths).contains("16 MiB"));
}

#[test]
fn other_versions_prefixes_and_tails_are_refused() {
    let blob = index(layer(vec![span(0, 4000, Start::Stored)], vec![])).encode().unwrap();
    assert_eq!(Index::decode(b""), Err(IndexError::NotAnIndex));
    assert_eq!(Index::decode(b"\x1f\x8b\x08 something else"), Err(IndexError::NotAnIndex));
    let mut newer = blob.clone();
    for other in [3, 5] {
        newer[8] = other;
        assert_eq!(Index::decode(&newer), Err(IndexError::Version(other.into())));
    }
    for len in 0..blob.len() {
        assert!(Index::decode(&blob[..len]).is_err(), "{len}");
    }
    assert!(Index::decode(&[blob, vec![0]].concat()).is_err());
}

#[test]
fn layers_are_found_by_digest() {
    let index = index(layer(vec![], vec![]));
    assert_eq!(index.layer(&Digest::of(b"layer")), Some(&index.layers[0]));
    assert_eq!(index.layer(&Digest::of(b"diff")), None);
}

#[test]
fn what_erofs_cannot_hold_is_not_packed() {
    let pack = |inodes| PackedTree::pack(&Tree { inodes, device_sizes: vec![4096] });
    let nested = |depth| (1..=depth).map(|n| directory(&[("d", n)])).chain([directory(&[])]).collect();
    let bad = [
        vec![],
        vec![file(0, vec![])],
        vec![directory(&[("a/b", 1)]), file(0, vec![])],
        vec![directory(&[("a", 1), ("b", 1)]), directory(&[])],
        vec![directory(&[("a", 9)])],
        vec![directory(&[("a", 1)]), file(4096, vec![on_device(0, 4096, 512)])],
        vec![directory(&[("a", 1)]), file(1 << 50, vec![on_device(512, 512, 0)])],
        nested(MAX_DEPTH + 1),
    ];
    for inodes in bad {
        assert!(matches!(pack(inodes.clone()), Err(PackError::Tree(_))), "{inodes:?}");
    }
    assert_eq!(pack(nested(MAX_DEPTH)).unwrap().unpack().unwrap().inodes.len(), MAX_DEPTH + 1);
}
