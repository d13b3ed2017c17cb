//! Header dialects: names, numbers, times, and where an archive may end.
mod model;

use clipper_format::tar::{LayerWalker, Limits, Problem, TarError, Warning};
use clipper_format::tree::{Content, DeviceNumber, Inode, Tree};
use model::Format;
use model::script::{Script, plain};
use model::tarball::{Header, extended, record};

fn walk(archive: &[u8]) -> Result<Tree, TarError> {
    let mut walker = LayerWalker::new(Limits::default());
    walker.push(archive)?;
    walker.finish()
}

fn inode<'a>(tree: &'a Tree, path: &str) -> &'a Inode {
    let id = tree.lookup(path.as_bytes());
    tree.inode(id.unwrap_or_else(|| panic!("no {path} in {tree:#?}")))
}

fn device_extent(tree: &Tree, path: &str) -> (u64, u64) {
    let Content::File(data) = &inode(tree, path).content else { panic!("{path} is no file") };
    match data.place() {
        Some((1, offset)) => (offset, data.size()),
        _ => panic!("{path}: {data:?}"),
    }
}

#[test]
fn what_the_tar_crate_writes_is_read_back() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(130));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o4755);
    header.set_uid(3_000_000_000);
    header.set_gid(7);
    header.set_mtime(1_500_000_000);
    builder.append_pax_extensions([("SCHILY.xattr.user.k", &b"v\0"[..])]).unwrap();
    builder.append_data(&mut header, &long, &b"hello"[..]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", "t".repeat(90)).unwrap();
    let tree = walk(&builder.into_inner().unwrap()).unwrap();
    let file = inode(&tree, &long);
    assert_eq!((file.perm, file.uid, file.gid, file.mtime), (0o4755, 3_000_000_000, 7, 1_500_000_000));
    assert_eq!(file.xattrs.get(&b"user.k"[..]), Some(&b"v\0".to_vec()));
    assert_eq!(inode(&tree, "link").content, Content::Symlink(vec![b't'; 90]));
}

#[test]
fn files_are_addressed_where_they_lie() {
    let archive = Script::new().file("one", "1").file("none", "").file("two", &"2".repeat(513)).end();
    let tree = walk(&archive).unwrap();
    assert_eq!(device_extent(&tree, "one"), (512, 1));
    assert_eq!(device_extent(&tree, "two"), (2048, 513));
    assert_eq!(inode(&tree, "none").content, Content::File(Default::default()));
    assert_eq!(tree.device_sizes, [archive.len() as u64]);
}

#[test]
fn names_come_from_every_place_they_can() {
    let prefixed = {
        let mut header = plain(b'0', "tail", 0, 0o644);
        header.put(345, 155, b"head/of");
        header
    };
    let full = Header::new(Format::Ustar, b'0', &[b'n'; 100], 0);
    let not_utf8 = Header::new(Format::Gnu, b'0', b"caf\xe9 \n", 0);
    let mut long = Vec::new();
    extended(&mut long, Format::Gnu, b'L', b"././@LongLink", &[&[b'x'; 255][..], b"/", &[b'y'; 255], b"\0"].concat());
    let archive = Script::new()
        .header(prefixed, b"")
        .header(full, b"")
        .header(not_utf8, b"")
        .raw(&long)
        .file("x", "")
        .pax(&[("path", "pax/ü".as_bytes()), ("linkpath", b"to the moon")])
        .symlink("ignored", "ignored")
        // An empty record leaves the header's own name in force.
        .pax(&[("path", b"")])
        .file("own", "")
        .end();
    let tree = walk(&archive).unwrap();
    for path in ["head/of/tail", &"n".repeat(100), &format!("{}/{}", "x".repeat(255), "y".repeat(255)), "own"] {
        assert!(tree.lookup(path.as_bytes()).is_some(), "{path}");
    }
    assert!(tree.lookup(b"caf\xe9 \n").is_some());
    assert_eq!(inode(&tree, "pax/ü").content, Content::Symlink(b"to the moon".to_vec()));
}

#[test]
fn a_gnu_header_with_a_prefix_is_only_believed_if_its_times_cant_be() {
    let mut sound = Header::new(Format::Gnu, b'0', b"a", 0);
    sound.octal(345, 12, 5);
    let mut odd = Header::new(Format::Gnu, b'0', b"b", 0);
    odd.put(345, 155, b"old/go");
    let tree = walk(&Script::new().header(sound, b"").header(odd, b"").end()).unwrap();
    assert!(tree.lookup(b"a").is_some());
    assert!(tree.lookup(b"old/go/b").is_some());
}

#[test]
fn types_are_told_apart() {
    let mut block = plain(b'4', "b", 0, 0o660);
    block.octal(329, 8, 8);
    block.octal(337, 8, 17);
    let mut null = plain(b'3', "c", 0, 0o666);
    null.octal(329, 8, 0o10001);
    null.base_256(337, 8, 0x12_34567);
    let archive = Script::new()
        .header(Header::new(Format::V7, 0, b"old-dir/", 0), b"")
        .header(Header::new(Format::V7, 0, b"old-file", 3), b"abc")
        .header(plain(b'0', "slashed-file/", 2, 0o644), b"ab")
        .header(plain(b'7', "contiguous", 2, 0o644), b"ab")
        .header(block, b"")
        .header(null, b"")
        .header(plain(b'6', "fifo", 0, 0o600), b"")
        .end();
    let tree = walk(&archive).unwrap();
    assert!(matches!(inode(&tree, "old-dir").content, Content::Directory(_)));
    assert_eq!(device_extent(&tree, "old-file").1, 3);
    assert_eq!(device_extent(&tree, "slashed-file").1, 2);
    assert_eq!(device_extent(&tree, "contiguous").1, 2);
    assert_eq!(inode(&tree, "b").content, Content::BlockDevice(DeviceNumber { major: 8, minor: 17 }));
    // mknod(2) keeps 12 bits of the major and 20 of the minor number.
    assert_eq!(inode(&tree, "c").content, Content::CharDevice(DeviceNumber { major: 1, minor: 0x34567 }));
    assert_eq!(inode(&tree, "fifo").content, Content::Fifo);
}

#[test]
fn sizes_of_types_without_data_are_ignored() {
    let mut link = plain(b'1', "l", 5000, 0o644);
    link.put(157, 100, b"f");
    let archive = Script::new()
        .file("f", "x")
        .header(link, b"")
        .header(plain(b'5', "d", 5000, 0o755), b"")
        .pax(&[("size", b"9000")])
        .header(plain(b'6', "p", 0, 0o644), b"")
        .file("last", "y")
        .end();
    let tree = walk(&archive).unwrap();
    assert_eq!(tree.lookup(b"l"), tree.lookup(b"f"));
    assert_eq!(device_extent(&tree, "last").1, 1);
}

#[test]
fn pax_sizes_win_over_the_headers() {
    let archive = Script::new().pax(&[("size", b"3")]).header(plain(b'0', "f", 0, 0o644), b"abc").file("g", "x").end();
    let tree = walk(&archive).unwrap();
    assert_eq!(device_extent(&tree, "f"), (1536, 3));
    assert_eq!(device_extent(&tree, "g"), (2560, 1));
}

#[test]
fn times_are_kept_from_1970_on_and_to_the_nanosecond() {
    let stamp = |name: &str, seconds: i64| {
        let mut header = Header::new(Format::Gnu, b'0', name.as_bytes(), 0);
        header.base_256(136, 12, seconds);
        header
    };
    let archive = Script::new()
        .header(stamp("before", -5), b"")
        .header(stamp("late", 9_223_372_036), b"")
        .header(stamp("too-late", 9_223_372_037), b"")
        .header(stamp("far", i64::MAX), b"")
        .header(stamp("long-ago", i64::MIN), b"")
        .pax(&[("mtime", b"12.000000001")])
        .file("fine", "")
        .pax(&[("mtime", b"-0.5")])
        .file("just-before", "")
        .pax(&[("mtime", b"1500000000.999999999999")])
        .symlink("link", "x")
        .pax(&[("mtime", b"99.5"), ("atime", b"1"), ("ctime", b"-1.5")])
        .dir("dir")
        .file("dir/later", "")
        .end();
    let tree = walk(&archive).unwrap();
    for (path, time) in [
        ("before", (0, 0)),
        ("late", (9_223_372_036, 0)),
        ("too-late", (0, 0)),
        ("far", (0, 0)),
        ("long-ago", (0, 0)),
        ("fine", (12, 1)),
        ("just-before", (0, 0)),
        ("link", (1_500_000_000, 999_999_999)),
        ("dir", (99, 500_000_000)),
    ] {
        assert_eq!((inode(&tree, path).mtime, inode(&tree, path).mtime_nsec), time, "{path}");
    }
}

#[test]
fn owners_are_taken_modulo_two_to_the_32_and_all_ones_leave_them_alone() {
    let owned = |name: &str, uid: i64| {
        let mut header = Header::new(Format::Gnu, b'0', name.as_bytes(), 0);
        header.base_256(108, 8, uid);
        header
    };
    let archive = Script::new()
        .header(owned("large", 4_000_000_000), b"")
        .header(owned("wraps", 0x1_0000_0007), b"")
        .header(owned("stays", -1), b"")
        .pax(&[("uid", b"4294967294"), ("gid", b"-2")])
        .file("pax", "")
        .end();
    let tree = walk(&archive).unwrap();
    assert_eq!(inode(&tree, "large").uid, 4_000_000_000);
    assert_eq!(inode(&tree, "wraps").uid, 7);
    assert_eq!(inode(&tree, "stays").uid, 0);
    assert_eq!((inode(&tree, "pax").uid, inode(&tree, "pax").gid), (4_294_967_294, 4_294_967_294));
}

#[test]
fn global_headers_describe_nothing_but_forget_what_came_before() {
    let mut global = Vec::new();
    extended(&mut global, Format::Pax, b'g', b"pax_global_header", &record(b"mtime", b"7"));
    let archive = Script::new()
        .file("pax_global_header", "is removed")
        .pax(&[("path", b"lost")])
        .raw(&global)
        .file("kept", "")
        .end();
    let tree = walk(&archive).unwrap();
    assert_eq!(inode(&tree, "kept").mtime, 1000);
    assert!(tree.lookup(b"lost").is_none());
    assert!(tree.lookup(b"pax_global_header").is_none());
}

#[test]
fn unknown_types_are_skipped_with_a_warning() {
    let archive = Script::new().header(plain(b'V', "volume", 3, 0o644), b"abc").file("next", "").end();
    let mut walker = LayerWalker::new(Limits::default());
    walker.push(&archive).unwrap();
    let warnings: Vec<String> = walker.warnings().iter().map(Warning::to_string).collect();
    assert_eq!(warnings, ["\"volume\": skipped, unknown tar type 'V'"]);
    let tree = walker.finish().unwrap();
    assert!(tree.lookup(b"volume").is_none());
    assert!(tree.lookup(b"next").is_some());
}

#[test]
fn archives_may_end_in_several_ways() {
    let whole = Script::new().file("f", "x").0;
    for (archive, entries) in [
        (Vec::new(), 0),
        (vec![0; 512], 0),
        (vec![0; 1024], 0),
        // What follows the end marker is the device's, but isn't read.
        ([&[0; 1024][..], b"trailing rubbish"].concat(), 0),
        (whole.clone(), 1),
        // Padding may be missing.
        (whole[..513].to_vec(), 1),
        (whole[..700].to_vec(), 1),
        ([&whole[..], &[0; 512]].concat(), 1),
        ([&whole[..], &[0; 10240]].concat(), 1),
        // A last extended header without its entry.
        ([&whole[..], &Script::new().pax(&[("path", b"x")]).0].concat(), 1),
    ] {
        let tree = walk(&archive).unwrap();
        assert_eq!(tree.inodes.len(), entries + 1, "{} bytes", archive.len());
        assert_eq!(tree.device_sizes, [archive.len() as u64]);
    }
}

#[test]
fn broken_archives_are_refused_by_name_and_place() {
    let file = |size: usize| plain(b'0', "dir/name", size, 0o644);
    let with = |at: usize, text: &[u8]| {
        let mut header = file(0);
        header.put(at, text.len(), text);
        header
    };
    let mut unsealed = file(0).sealed();
    unsealed[0] ^= 1;
    let truncated = |left| Problem::Truncated(left);
    let at =
        |offset, name: Option<&str>, problem| TarError { path: name.map(|n| n.as_bytes().to_vec()), offset, problem };
    let named = Some("dir/name");
    for (archive, error) in [
        (Script::new().raw(&[7; 512]).0, at(0, None, Problem::Checksum)),
        (Script::new().file("a", "").raw(&unsealed).0, at(512, None, Problem::Checksum)),
        (Script::new().raw(&[0; 512]).file("a", "").0, at(0, None, Problem::LoneZeroBlock)),
        (Script::new().raw(&file(0).sealed()[..100]).0, at(0, None, truncated(412))),
        (Script::new().raw(&[0; 700]).0, at(0, None, truncated(324))),
        (Script::new().raw(&file(10).sealed()).raw(b"123").0, at(0, named, truncated(7))),
        (Script::new().header(with(124, b"00000zzz0000"), b"").0, at(0, None, Problem::Number("size"))),
        (Script::new().header(with(100, b"rw-r--r--"), b"").0, at(0, None, Problem::Number("mode"))),
        (Script::new().header(with(124, &[0xff; 12]), b"").0, at(0, None, Problem::Number("size"))),
        (Script::new().pax(&[("size", b"-1")]).header(file(0), b"").0, at(0, named, Problem::Number("size"))),
        (Script::new().pax(&[("uid", b"root")]).header(file(0), b"").0, at(0, named, Problem::Number("uid"))),
        (Script::new().pax(&[("mtime", b"1.5x")]).header(file(0), b"").0, at(0, named, Problem::Number("mtime"))),
        (Script::new().header(plain(b'x', "p", 5, 0), b"nope\n").0, at(0, None, Problem::Pax)),
        (
            Script::new().header(plain(b'L', "p", 300, 0), &[b'n'; 300]).file("x", "").0,
            at(0, Some(&"n".repeat(300)), Problem::Name("a part of its path is longer than 255 bytes")),
        ),
    ] {
        assert_eq!(walk(&archive), Err(error));
    }
    let error = walk(&Script::new().pax(&[("uid", b"root")]).file("dir/\u{1}", "").0).unwrap_err();
    assert_eq!(error.to_string(), r#"tar entry "dir/\x01" at byte 0: its uid is not a number in range"#);
}

#[test]
fn a_failed_walker_stays_failed() {
    let mut walker = LayerWalker::new(Limits::default());
    let error = walker.push(&[7; 512]).unwrap_err();
    assert_eq!(walker.push(&Script::new().file("a", "").end()), Err(error.clone()));
    assert_eq!(walker.finish(), Err(error));
}
