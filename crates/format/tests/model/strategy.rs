//! Random layers, of few names so that entries meet each other often.
use super::{Dress, Entry, Format, Lead, Meta, Path, SparseFormat, What};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;

/// Sequences of layers, bottom first.
pub fn layers(most: usize, entries: usize) -> impl Strategy<Value = Vec<Vec<Entry>>> {
    vec(vec(entry(), 0..=entries), 1..=most)
}

/// One entry.
pub fn entry() -> impl Strategy<Value = Entry> {
    (path(), what(), meta(), dress()).prop_map(|(path, what, mut meta, dress)| {
        // The root can only be a directory, and only be opaque or not.
        let what = if path.is_empty() && !matches!(what, What::Opaque) { What::Directory } else { what };
        if matches!(what, What::Sparse(_, _, SparseFormat::OldGnu)) {
            // Without PAX records there is no place for these.
            meta.mtime.1 = 0;
            meta.xattrs.clear();
        }
        Entry { path, what, meta, dress }
    })
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        30 => prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")].prop_map(|name| name.as_bytes().to_vec()),
        2 => Just(b"\xff\xfe\x80 \n'".to_vec()),
        1 => Just("ü😀".as_bytes().to_vec()),
        1 => Just(vec![b'l'; 251]),
        1 => Just(b"..x".to_vec()),
    ]
}

fn path() -> impl Strategy<Value = Path> {
    prop_oneof![1 => Just(Path::new()), 20 => vec(name(), 1..=2), 12 => vec(name(), 3..=4)]
}

/// Without `..`, which only the tables of cases try.
fn link_target() -> impl Strategy<Value = Vec<u8>> {
    (any::<bool>(), vec(name(), 1..=2)).prop_map(|(absolute, path)| {
        let lead = if absolute { &b"/"[..] } else { b"" };
        [lead, &path.join(&b'/')].concat()
    })
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        24 => Just(What::Directory),
        16 => vec(any::<u8>(), 0..40).prop_map(What::File),
        2 => (any::<u8>(), 500..2000usize).prop_map(|(byte, len)| What::File(vec![byte; len])),
        4 => sparse(),
        8 => link_target().prop_map(What::Symlink),
        10 => path().prop_map(What::HardLink),
        2 => (0..300u32, 0..70000u32).prop_map(|(major, minor)| What::CharDevice(major, minor)),
        1 => Just(What::CharDevice(0, 0)),
        2 => (0..300u32, 0..70000u32).prop_map(|(major, minor)| What::BlockDevice(major, minor)),
        2 => Just(What::Fifo),
        12 => Just(What::Whiteout),
        6 => Just(What::Opaque),
    ]
}

fn sparse() -> impl Strategy<Value = What> {
    let format = prop_oneof![
        Just(SparseFormat::OldGnu),
        Just(SparseFormat::Pax00),
        Just(SparseFormat::Pax01),
        Just(SparseFormat::Pax10),
    ];
    // Holes and data, in bytes or in blocks.
    let unit = prop_oneof![Just(1u64), Just(512), Just(4096)];
    (format, unit, vec((0..4u64, 0..4u64, 1..=255u8), 0..30), 0..4u64).prop_map(|(format, unit, parts, tail)| {
        let mut end = 0;
        let mut runs = Vec::new();
        for (hole, data, byte) in parts {
            let start = end + hole * unit;
            end = start + data * unit;
            runs.push((start, vec![byte; (data * unit) as usize]));
        }
        What::Sparse(end + tail * unit, runs, format)
    })
}

fn meta() -> impl Strategy<Value = Meta> {
    let perm = prop_oneof![Just(0o755u16), Just(0o644), Just(0o2775), 0..=0o7777u16];
    let id = || prop_oneof![4 => 0..3000u32, 1 => 0..u32::MAX];
    let mtime = prop_oneof![
        6 => (0..1_700_000_000i64, Just(0u32)),
        2 => (0..1_700_000_000i64, 0..1_000_000_000u32),
        1 => (-2_000_000_000..0i64, 0..1_000_000_000u32),
        1 => (0..10_000_000_000i64, Just(0u32)),
    ];
    (perm, id(), id(), mtime, weighted(0.2, xattrs())).prop_map(|(perm, uid, gid, mtime, xattrs)| Meta {
        perm,
        uid,
        gid,
        mtime,
        xattrs: xattrs.unwrap_or_default(),
    })
}

fn xattrs() -> impl Strategy<Value = std::collections::BTreeMap<Vec<u8>, Vec<u8>>> {
    let attribute = prop_oneof![
        (prop_oneof![Just("user.a"), Just("user.b"), Just("security.x")], vec(any::<u8>(), 0..20))
            .prop_map(|(name, value)| (name.as_bytes().to_vec(), value)),
        Just((b"security.capability".to_vec(), [&[1, 0, 0, 2, 0, 32][..], &[0; 14]].concat())),
        Just((b"trusted.overlay.opaque".to_vec(), b"y".to_vec())),
        Just((b"unknown.x".to_vec(), b"1".to_vec())),
    ];
    vec(attribute, 1..3).prop_map(|list| list.into_iter().collect())
}

fn dress() -> impl Strategy<Value = Dress> {
    let format = prop_oneof![Just(Format::V7), Just(Format::Ustar), Just(Format::Gnu), Just(Format::Pax)];
    let lead = prop_oneof![
        6 => Just(Lead::Nothing),
        3 => Just(Lead::Dot),
        1 => Just(Lead::Slash),
        1 => Just(Lead::DotDot),
        1 => Just(Lead::Messy),
    ];
    (format, lead, any::<bool>()).prop_map(|(format, lead, lavish)| Dress { format, lead, lavish })
}
