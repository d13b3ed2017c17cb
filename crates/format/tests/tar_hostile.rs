//! Archives made to hurt: none may panic, hang, or make the walker hold more than its limits say.
mod model;

use clipper_format::merge::merge;
use clipper_format::tar::{LayerWalker, Limits, Problem, TarError};
use clipper_format::tree::Tree;
use model::script::{Script, plain};
use model::tarball::Header;
use model::{Format, strategy, tarball};
use proptest::prelude::*;

fn walk(archive: &[u8], piece: usize, limits: Limits) -> Result<Tree, TarError> {
    let mut walker = LayerWalker::new(limits);
    for piece in archive.chunks(piece.max(1)) {
        walker.push(piece)?;
    }
    walker.finish()
}

fn small() -> Limits {
    Limits { entries: 1000, special: 4096, sparse_map: 4096, inline: 1 << 16, memory: 1 << 20, ..Limits::default() }
}

#[test]
fn claimed_sizes_cost_nothing() {
    for size in [i64::MAX, i64::MAX - 511, 1 << 60, 1 << 40] {
        for kind in [b'0', b'x', b'g', b'L', b'K', b'S', b'V', 0] {
            let mut header = Header::new(Format::Gnu, kind, b"f", 0);
            header.base_256(124, 12, size);
            header.base_256(483, 12, size);
            header.octal(386, 12, 0);
            header.base_256(398, 12, size);
            let error = walk(&header.sealed(), 512, Limits::default()).unwrap_err();
            match kind {
                b'x' | b'g' | b'L' | b'K' => assert!(matches!(error.problem, Problem::Limit { .. }), "{error}"),
                b'S' if size > 1 << 44 => assert!(matches!(error.problem, Problem::Limit { .. }), "{error}"),
                _ => assert_eq!(error.problem, Problem::Truncated(size as u64), "{error}"),
            }
        }
        let size = size.to_string();
        let archive = Script::new().pax(&[("size", size.as_bytes())]).file("f", "").0;
        assert!(matches!(walk(&archive, 512, Limits::default()).unwrap_err().problem, Problem::Truncated(_)));
    }
}

#[test]
fn limits_end_what_has_no_end() {
    let limit = |archive: &[u8]| match walk(archive, 4096, small()).unwrap_err().problem {
        Problem::Limit { what, .. } => what,
        other => panic!("{other}"),
    };
    let many = (0..1001).fold(Script::new(), |script, _| script.file("f", ""));
    assert_eq!(limit(&many.end()), "entries");
    let wide = (0..999).fold(Script::new(), |script, n| {
        let path = format!("{n}/{}", ["d"; 50].join("/"));
        script.file(&path[..path.len().min(100)], "")
    });
    assert_eq!(limit(&wide.end()), "bytes of memory for the layer's tree");
    let value = vec![b'v'; 4000];
    let heavy = (0..999)
        .fold(Script::new(), |script, n| script.pax(&[("SCHILY.xattr.user.x", &value)]).file(&n.to_string(), ""));
    assert_eq!(limit(&heavy.end()), "bytes of memory for the layer's tree");
    // The least attribute takes a map.
    let each = |script: Script, n| script.pax(&[("SCHILY.xattr.user.x", b"")]).file(&format!("{n}"), "");
    let tiny = Limits { memory: 600 << 10, entries: 2000, ..small() };
    let bare = (0..900).fold(Script::new(), |script, n| script.pax(&[("comment", b"x")]).file(&format!("{n}"), ""));
    assert!(walk(&bare.end(), 4096, tiny.clone()).is_ok());
    let attributed = (0..900).fold(Script::new(), each);
    assert!(matches!(walk(&attributed.end(), 4096, tiny).unwrap_err().problem, Problem::Limit { .. }));
    let value = vec![b'v'; 5000];
    assert_eq!(limit(&Script::new().pax(&[("comment", &value)]).end()), "bytes of extended header");
}

#[test]
fn link_mazes_are_given_up_on() {
    // Every link leads through the one before it, twice.
    let maze =
        (1..40).fold(Script::new().dir("0"), |script, n| script.symlink(&n.to_string(), &format!("{0}/../{0}", n - 1)));
    let maze = (0..50).fold(maze, |script, n| script.file(&format!("39/39/39/39/f{n}"), ""));
    let _ = walk(&maze.end(), 4096, Limits::default());
    // A link that grows the path each time it is followed.
    let growing = Script::new().dir("d").symlink("d/l", "l/x/y/z").file("d/l/f", "");
    assert!(walk(&growing.end(), 4096, Limits::default()).is_err());
}

#[test]
fn deep_trees_dont_exhaust_the_stack() {
    let deep = ["d"; 2040].join("/");
    let archive = Script::new()
        .pax(&[("path", deep.as_bytes())])
        .dir("x")
        .pax(&[("path", format!("{deep}/.wh..wh..opq").as_bytes())])
        .file("x", "")
        .file(".wh..wh..opq", "")
        .end();
    let tree = walk(&archive, 4096, Limits::default()).unwrap();
    assert_eq!(tree.inodes.len(), 2041);
    let layers = vec![tree.clone(), tree.clone(), tree];
    assert_eq!(merge(layers, false).unwrap().inodes.len(), 2041);
}

#[test]
fn replacing_over_and_over_is_counted() {
    let again = (0..900).fold(Script::new(), |script, n| match n % 3 {
        0 => script.dir("d"),
        1 => script.file("d/f", ""),
        _ => script.file("d", ""),
    });
    let tree = walk(&again.end(), 4096, Limits::default()).unwrap();
    assert!(tree.inodes.len() <= 3);
}

/// Headers with a right checksum and otherwise anything in a few of their fields, and some plausible ones between.
fn archives() -> impl Strategy<Value = Vec<u8>> {
    let wild = (any::<[u8; 512]>(), any::<bool>()).prop_map(|(bytes, ustar)| {
        let mut header = Header(bytes);
        if ustar {
            header.put(257, 8, b"ustar\x0000");
        }
        header.sealed().to_vec()
    });
    let field = prop_oneof![
        Just((0, 100)),
        Just((100, 8)),
        Just((108, 8)),
        Just((124, 12)),
        Just((136, 12)),
        Just((156, 1)),
        Just((157, 100)),
        Just((257, 8)),
        Just((329, 16)),
        Just((345, 155)),
        Just((386, 97)),
        Just((482, 30)),
    ];
    let kind = proptest::sample::select(b"\x00012345678xgLKSVD".to_vec());
    let data = proptest::collection::vec(proptest::sample::select(b"0123456789 \n=,-.apth/GNU\0".to_vec()), 0..600);
    let bent = (kind, field, any::<[u8; 155]>(), data).prop_map(|(kind, (at, len), noise, data)| {
        let mut header = plain(kind, "a/b", data.len(), 0o644);
        header.0[at..at + len.min(512 - at)].copy_from_slice(&noise[..len]);
        Script::new().header(header, &data).0
    });
    let records = proptest::collection::vec((proptest::sample::select(KEYS.to_vec()), value()), 0..6);
    let pax = (records, proptest::collection::vec(any::<u8>(), 0..1500)).prop_map(|(records, data)| {
        let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (*key, value.as_slice())).collect();
        Script::new().pax(&records).header(plain(b'0', "p", data.len(), 0o644), &data).0
    });
    let sound = proptest::collection::vec(strategy::entry(), 0..6).prop_map(|entries| tarball::archive(&entries));
    let part = prop_oneof![1 => wild, 4 => bent, 4 => pax, 2 => sound];
    proptest::collection::vec(part, 1..6).prop_map(|parts| parts.concat())
}

const KEYS: [&str; 14] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "mtime",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.map",
    "GNU.sparse.numblocks",
    "GNU.sparse.size",
    "GNU.sparse.offset",
    "GNU.sparse.numbytes",
    "GNU.sparse.name",
    "SCHILY.xattr.user.x",
];

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(b"0".to_vec()),
        Just(b"1".to_vec()),
        Just(b"9223372036854775807".to_vec()),
        (0..3000u32).prop_map(|n| n.to_string().into_bytes()),
        "(0|512|1024|9223372036854775807|-1)(,(0|512|1024|4096|9223372036854775807)){0,5}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..20),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_archive_ends_in_a_tree_or_an_error_however_it_is_cut(
        archive in archives(),
        piece in 1..2000usize,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut archive = archive;
        for (at, byte) in damage {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        let whole = walk(&archive, archive.len(), small());
        prop_assert_eq!(&whole, &walk(&archive, piece, small()));
        if let Ok(tree) = whole {
            // What the walker makes, the merge takes.
            prop_assert!(merge(vec![tree.clone(), tree.clone()], false).is_ok());
            prop_assert!(merge(vec![tree.clone(), tree], true).is_ok());
        }
    }

    #[test]
    fn any_bytes_end_in_a_tree_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = walk(&bytes, 100, small());
    }
}
