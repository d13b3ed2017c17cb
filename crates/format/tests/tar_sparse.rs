//! Sparse files in all of tar's formats: what is addressed in the device, what is kept, what is refused.
mod model;

use clipper_format::tar::{LayerWalker, Limits, Problem, TarError};
use clipper_format::tree::{Content, Extent, ExtentSource, FileData, Tree};
use model::script::{Script, plain};
use model::{Dress, Entry, Format, Lead, Meta, SparseFormat, What, tarball};

fn walk(archive: &[u8], limits: Limits) -> Result<Tree, TarError> {
    let mut walker = LayerWalker::new(limits);
    for piece in archive.chunks(77) {
        walker.push(piece)?;
    }
    walker.finish()
}

fn archive(size: u64, runs: &[(u64, &[u8])], how: SparseFormat) -> Vec<u8> {
    let runs = runs.iter().map(|(offset, run)| (*offset, run.to_vec())).collect();
    let meta = Meta { perm: 0o644, uid: 0, gid: 0, mtime: (0, 0), xattrs: Default::default() };
    let dress = Dress { format: Format::Ustar, lead: Lead::Nothing, lavish: false };
    let entry = Entry { path: vec![b"f".to_vec()], what: What::Sparse(size, runs, how), meta, dress };
    tarball::archive(&[entry])
}

fn data(tree: &Tree) -> &FileData {
    match &tree.inode(tree.lookup(b"f").unwrap()).content {
        Content::File(data) => data,
        other => panic!("{other:?}"),
    }
}

fn content(tree: &Tree, archive: &[u8]) -> Vec<u8> {
    let data = data(tree);
    let mut bytes = vec![0; data.size() as usize];
    for extent in data.extents() {
        let Extent { file_offset, len, source } = extent.as_ref();
        let from = match source {
            ExtentSource::Inline(bytes) => &bytes[..],
            ExtentSource::Device { offset, .. } => &archive[*offset as usize..][..*len as usize],
        };
        bytes[*file_offset as usize..][..*len as usize].copy_from_slice(from);
    }
    bytes
}

const ALL: [SparseFormat; 4] = [SparseFormat::OldGnu, SparseFormat::Pax00, SparseFormat::Pax01, SparseFormat::Pax10];

#[test]
fn whole_blocks_stay_in_the_device() {
    let (a, b) = (vec![b'a'; 1024], vec![b'b'; 700]);
    for how in ALL {
        let archive = archive(8892, &[(1024, &a), (8192, &b)], how);
        let tree = walk(&archive, Limits::default()).unwrap();
        let found = data(&tree);
        assert_eq!(found.size(), 8892, "{how:?}");
        let starts: Vec<(u64, u64)> = found.extents().map(|e| (e.file_offset, e.len)).collect();
        assert_eq!(starts, [(1024, 1024), (8192, 700)], "{how:?}");
        for extent in found.extents() {
            assert!(matches!(extent.source, ExtentSource::Device { device: 1, .. }), "{how:?}");
        }
        let mut expected = vec![0; 8892];
        expected[1024..2048].fill(b'a');
        expected[8192..].fill(b'b');
        assert_eq!(content(&tree, &archive), expected, "{how:?}");
    }
}

#[test]
fn parts_that_straddle_blocks_are_kept() {
    // 300 bytes push all that follows them off the grid.
    let (a, b, c) = (vec![1; 300], vec![2; 1024], vec![3; 212]);
    for how in ALL {
        let archive = archive(5000, &[(0, &a), (600, &b), (2000, &c)], how);
        let tree = walk(&archive, Limits::default()).unwrap();
        let mut expected = vec![0; 5000];
        expected[..300].fill(1);
        expected[600..1624].fill(2);
        expected[2000..2212].fill(3);
        assert_eq!(content(&tree, &archive), expected, "{how:?}");
        for extent in data(&tree).extents() {
            assert!(matches!(extent.source, ExtentSource::Inline(_)), "{how:?}");
            assert_eq!((extent.file_offset % 512, extent.len % 512), (0, 0), "{how:?}");
        }
    }
}

#[test]
fn runs_that_adjoin_are_one_extent() {
    let block = vec![9; 512];
    let archive = archive(1024, &[(0, &block), (512, &block), (1024, &[])], SparseFormat::Pax01);
    let tree = walk(&archive, Limits::default()).unwrap();
    assert_eq!(data(&tree).extent_count(), 1);
    assert_eq!(data(&tree).extents().next().unwrap().len, 1024);
}

#[test]
fn maps_may_be_long_or_empty() {
    let block = [7; 512];
    let runs: Vec<(u64, &[u8])> = (0..500u64).map(|at| (at * 4096, &block[..])).collect();
    for how in ALL {
        let long = archive(500 * 4096, &runs, how);
        let tree = walk(&long, Limits::default()).unwrap();
        assert_eq!(data(&tree).extent_count(), 500, "{how:?}");
        let hole = archive(1 << 32, &[], how);
        let tree = walk(&hole, Limits::default()).unwrap();
        assert_eq!(*data(&tree), FileData::new(1 << 32, Vec::new()), "{how:?}");
    }
}

#[test]
fn the_name_and_size_in_pax_records_win() {
    let records: [(&str, &[u8]); 6] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", b"100"),
        ("path", b"GNUSparseFile.0/f"),
        ("size", b"1024"),
    ];
    let map = [b"1\n0\n".to_vec(), b"100\n".to_vec(), vec![0; 504], vec![4; 100]].concat();
    let script = Script::new().pax(&records).header(plain(b'0', "x", 612, 0o644), &map);
    // The data is 612 bytes, the size record claims 1024: it doesn't match the map.
    assert!(walk(&script.end(), Limits::default()).is_err());
    let script = Script::new().pax(&records[..5]).header(plain(b'0', "x", 612, 0o644), &map);
    let archive = script.end();
    let tree = walk(&archive, Limits::default()).unwrap();
    assert_eq!(content(&tree, &archive), [4; 100]);
    assert!(tree.lookup(b"GNUSparseFile.0").is_none());
}

#[test]
fn impossible_maps_are_refused() {
    let block = vec![1; 512];
    let overlapping = archive(4096, &[(512, &block), (600, &block)], SparseFormat::Pax01);
    let beyond = archive(600, &[(512, &block)], SparseFormat::OldGnu);
    for bad in [overlapping, beyond] {
        let error = walk(&bad, Limits::default()).unwrap_err();
        assert!(matches!(error.problem, Problem::Sparse(_)), "{error}");
        assert_eq!(error.path.as_deref(), Some(&b"f"[..]));
    }
    let with = |records: &[(&str, &[u8])], kind: u8, data: &[u8]| {
        let script = Script::new().pax(records).header(plain(kind, "f", data.len(), 0o644), data);
        walk(&script.end(), Limits::default()).unwrap_err().problem
    };
    let map = |map: &'static [u8], blocks: &'static [u8]| -> Vec<(&'static str, &'static [u8])> {
        vec![("GNU.sparse.map", map), ("GNU.sparse.numblocks", blocks), ("GNU.sparse.size", b"99999")]
    };
    let max = b"0,9223372036854775807,9223372036854775807,9223372036854775807";
    for (records, kind, data) in [
        (map(b"0,512", b"2"), b'0', &block[..]),
        (map(b"0,512", b"x"), b'0', &block),
        (map(b"0,512", b"-1"), b'0', &block),
        (map(b"0,512,", b"1"), b'0', &block),
        (map(b"0,511", b"1"), b'0', &block),
        (map(b"-512,512", b"1"), b'0', &block),
        (map(b"0,0", b"1"), b'0', &block),
        (map(max, b"2"), b'0', &block),
        (map(b"0,512", b"9223372036854775807"), b'0', &block),
        (map(b"0,0", b"1"), b'5', b""),
        (vec![("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")], b'0', b"not a number\n"),
        (vec![("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")], b'0', &block),
        (vec![("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")], b'0', b""),
        (vec![("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")], b'0', b"-1\n"),
        (vec![("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")], b'0', b"9223372036854775807\n"),
    ] {
        let problem = with(&records, kind, data);
        assert!(matches!(problem, Problem::Sparse(_) | Problem::Number(_)), "{problem} for {records:?}");
    }
    // An unknown version is no sparse file to Go.
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")];
    let script = Script::new().pax(&records).file("f", "plain").end();
    assert_eq!(data(&walk(&script, Limits::default()).unwrap()).size(), 5);
}

#[test]
fn what_is_kept_and_mapped_is_limited() {
    let odd = vec![1; 1000];
    let sparse = archive(3000, &[(0, &odd), (1500, &odd)], SparseFormat::Pax10);
    let limits = Limits { inline: 1024, ..Limits::default() };
    let error = walk(&sparse, limits).unwrap_err();
    assert!(matches!(error.problem, Problem::Limit { limit: 1024, .. }), "{error}");
    let block = [7; 512];
    let runs: Vec<(u64, &[u8])> = (0..500u64).map(|at| (at * 4096, &block[..])).collect();
    for how in [SparseFormat::OldGnu, SparseFormat::Pax10] {
        let limits = Limits { sparse_map: 1024, ..Limits::default() };
        let error = walk(&archive(500 * 4096, &runs, how), limits).unwrap_err();
        assert!(matches!(error.problem, Problem::Limit { limit: 1024, .. }), "{error}");
    }
}
