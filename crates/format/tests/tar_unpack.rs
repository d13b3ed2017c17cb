//! Entries meeting each other within one layer, the way containerd unpacks them onto an overlayfs upper directory.
mod model;

use clipper_format::tar::{Dropped, LayerWalker, Limits, Problem, TarError, Warning};
use clipper_format::tree::{BOTTOM_XATTR, Content, IMPLICIT_XATTR, Inherits, Inode, OPAQUE_XATTR, ROOT, Tree};
use model::script::{Script, plain};

fn walk(script: Script) -> Result<Tree, TarError> {
    let mut walker = LayerWalker::new(Limits::default());
    walker.push(&script.end())?;
    walker.finish()
}

fn inode<'a>(tree: &'a Tree, path: &str) -> &'a Inode {
    tree.inode(tree.lookup(path.as_bytes()).unwrap_or_else(|| panic!("no {path} in {tree:#?}")))
}

fn problem(script: Script) -> Problem {
    walk(script).unwrap_err().problem
}

/// All paths, with what is there: `/` directory, `!` whiteout, `@` link, `?` other; `=` the first of the same inode.
fn listing(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut seen = std::collections::BTreeMap::new();
    let mut todo = vec![(String::new(), ROOT)];
    while let Some((path, id)) = todo.pop() {
        let inode = tree.inode(id);
        let mark = match &inode.content {
            Content::Directory(entries) => {
                for (name, id) in entries.iter().rev() {
                    let name = name.escape_ascii();
                    todo.push((if path.is_empty() { name.to_string() } else { format!("{path}/{name}") }, id));
                }
                "/".to_owned()
            }
            _ if inode.is_whiteout() => "!".to_owned(),
            Content::Symlink(target) => format!("@{}", target.escape_ascii()),
            Content::File(_) => String::new(),
            _ => "?".to_owned(),
        };
        let same = match seen.insert(id, path.clone()) {
            Some(first) => format!(" ={first}"),
            None => String::new(),
        };
        if id != ROOT {
            lines.push(format!("{path}{mark}{same}"));
        }
    }
    lines
}

#[test]
fn paths_are_taken_as_containerd_takes_them() {
    for (written, path) in [
        ("a", "a"),
        ("./a", "a"),
        ("/a", "a"),
        ("//a//b", "a/b"),
        ("a/./b/", "a/b"),
        ("a/x/../b", "a/b"),
        ("../a", "a"),
        ("../../../a/b", "a/b"),
        ("a/../../b", "b"),
        (".../a", ".../a"),
        ("a/..b", "a/..b"),
    ] {
        let tree = walk(Script::new().file(written, "x")).unwrap();
        assert_eq!(listing(&tree).last().map(String::as_str), Some(path), "{written}");
    }
}

#[test]
fn the_root_keeps_nothing_of_its_entry_but_the_time() {
    for root in [".", "./", "/", "..", "a/.."] {
        let tree = walk(Script::new().pax(&[("SCHILY.xattr.user.x", b"1")]).header(plain(b'5', root, 0, 0o700), b""));
        let tree = tree.unwrap();
        let found = tree.inode(ROOT);
        assert_eq!((found.perm, found.uid, found.gid, found.mtime), (0o755, 0, 0, 1000), "{root}");
        assert!(found.xattrs.is_empty(), "{root}");
    }
    assert_eq!(walk(Script::new().file("a", "")).unwrap().inode(ROOT).inherits(), Some(Inherits::ALL));
    assert_eq!(walk(Script::new().symlink("/", "x")).unwrap(), Tree { device_sizes: vec![1536], ..Tree::empty() });
}

#[test]
fn parents_are_made_and_marked() {
    let tree = walk(Script::new().file("a/b/c", "").dir("a").dir("x").file("x/y/z", "")).unwrap();
    assert_eq!(inode(&tree, "a").inherits(), Some(Inherits { owner: false, time: false, early: false }));
    assert_eq!((inode(&tree, "a").uid, inode(&tree, "a").mtime), (10, 1000));
    assert_eq!(inode(&tree, "a/b").inherits(), Some(Inherits { early: true, ..Inherits::ALL }));
    assert_eq!((inode(&tree, "a/b").perm, inode(&tree, "a/b").uid), (0o755, 0));
    assert_eq!(inode(&tree, "x").inherits(), None);
    assert_eq!(inode(&tree, "x/y").inherits(), Some(Inherits::ALL));
}

#[test]
fn new_files_take_the_group_of_a_setgid_directory_until_they_are_given_one() {
    let setgid = plain(b'5', "d", 0, 0o2775);
    let mut unowned = plain(b'0', "d/unowned", 0, 0o644);
    unowned.base_256(116, 8, -1);
    let tree = walk(Script::new().header(setgid, b"").file("d/sub/f", "").header(unowned, b"")).unwrap();
    assert_eq!((inode(&tree, "d/sub").perm, inode(&tree, "d/sub").gid), (0o755, 20));
    assert_eq!(inode(&tree, "d/unowned").gid, 20);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let cases: [(Script, &[&str]); 8] = [
        (Script::new().file("a", "1").symlink("a", "2"), &["a@2"]),
        (Script::new().dir("a").file("a/b", "").file("a", "1"), &["a"]),
        (Script::new().dir("a").file("a/b", "").file("a", "1").dir("a"), &["a/"]),
        (Script::new().file("a", "1").dir("a").file("a/b", ""), &["a/", "a/b"]),
        (Script::new().dir("a").file("a/b", "").dir("a"), &["a/", "a/b"]),
        (Script::new().symlink("a", "b").dir("a").file("a/c", ""), &["a/", "a/c"]),
        (Script::new().dir("a").dir("a/b").symlink("a", "x"), &["a@x"]),
        (Script::new().file("a", "1").hard_link("b", "a").file("a", "2"), &["a", "b"]),
    ];
    for (script, expected) in cases {
        let tree = walk(script).unwrap();
        assert_eq!(listing(&tree), expected);
        // What was replaced isn't carried along.
        assert_eq!(tree.inodes.len(), expected.len() + 1);
    }
}

#[test]
fn a_directory_entry_repeated_changes_attributes_and_keeps_the_rest() {
    let again = plain(b'5', "d", 0, 0o1700);
    let script = Script::new()
        .pax(&[("SCHILY.xattr.user.kept", b"1"), ("SCHILY.xattr.user.changed", b"1")])
        .dir("d")
        .file("d/f", "")
        .pax(&[("SCHILY.xattr.user.changed", b"2"), ("mtime", b"5")])
        .header(again, b"");
    let tree = walk(script).unwrap();
    let dir = inode(&tree, "d");
    assert_eq!((dir.perm, dir.mtime), (0o1700, 5));
    assert_eq!(dir.xattrs[&b"user.kept"[..]], b"1");
    assert_eq!(dir.xattrs[&b"user.changed"[..]], b"2");
    assert!(tree.lookup(b"d/f").is_some());
}

#[test]
fn directory_times_are_set_at_the_end_by_name() {
    // containerd remembers directories by name, so the file that took the place of one gets its time.
    let script = Script::new().pax(&[("mtime", b"7")]).dir("a").file("a", "");
    assert_eq!(inode(&walk(script).unwrap(), "a").mtime, 7);
    let script = Script::new().pax(&[("mtime", b"7")]).dir("a").file("real/f", "").symlink("a", "real");
    let tree = walk(script).unwrap();
    assert_eq!(inode(&tree, "real").mtime, 7);
    assert_eq!(inode(&tree, "real").inherits(), Some(Inherits { time: false, ..Inherits::ALL }));
    assert_eq!(inode(&tree, "a").mtime, 1000);
}

#[test]
fn symlinked_parents_are_followed_within_the_root() {
    let usr = || Script::new().dir("usr").dir("usr/lib");
    let cases: [(Script, &[&str]); 7] = [
        (usr().symlink("lib", "usr/lib").file("lib/f", ""), &["lib@usr/lib", "usr/", "usr/lib/", "usr/lib/f"]),
        (usr().symlink("lib", "/usr/lib").file("lib/f", ""), &["lib@/usr/lib", "usr/", "usr/lib/", "usr/lib/f"]),
        (usr().symlink("l", "../../../usr").dir("l/x"), &["l@../../../usr", "usr/", "usr/lib/", "usr/x/"]),
        // Nothing there yet: it is made.
        (Script::new().symlink("l", "new/dir").file("l/f", ""), &["l@new/dir", "new/", "new/dir/", "new/dir/f"]),
        // The last component is never followed.
        (usr().symlink("l", "usr").dir("l"), &["l/", "usr/", "usr/lib/"]),
        // What only lower layers have isn't seen.
        (Script::new().file("lib/f", ""), &["lib/", "lib/f"]),
        (usr().symlink("l", "usr").file("l/.wh.lib", ""), &["l@usr", "usr/", "usr/lib!"]),
    ];
    for (script, expected) in cases {
        assert_eq!(listing(&walk(script).unwrap()), expected);
    }
    assert_eq!(problem(Script::new().symlink("a", "b").symlink("b", "a").file("a/f", "")), Problem::TooManyLinks);
    assert_eq!(problem(Script::new().file("f", "").file("f/g", "")), Problem::NotADirectory(b"/f".to_vec()));
    assert_eq!(problem(Script::new().file("f", "").file("f/g/h", "")), Problem::NotADirectory(b"/f/g".to_vec()));
}

#[test]
fn hard_links_share_the_inode_and_describe_it() {
    let mut link = plain(b'1', "there/l", 0, 0o4711);
    link.put(157, 100, b"./here/f");
    let script = Script::new()
        .file("here/f", "data")
        .pax(&[("SCHILY.xattr.user.from", b"link"), ("uid", b"77")])
        .header(link, b"")
        .symlink("here/s", "f")
        .hard_link("s2", "/here/s")
        .symlink("dir", "here")
        .hard_link("through", "dir/f")
        .header(plain(b'6', "fifo", 0, 0o644), b"")
        .hard_link("fifo2", "fifo");
    let tree = walk(script).unwrap();
    assert_eq!(
        listing(&tree),
        [
            "dir@here",
            "fifo?",
            "fifo2? =fifo",
            "here/",
            "here/f",
            "here/s@f",
            "s2@f =here/s",
            "there/",
            "there/l =here/f",
            "through =there/l",
        ]
    );
    let file = inode(&tree, "here/f");
    // The last name's header counts; its PAX records stay with the inode.
    assert_eq!((file.uid, file.perm), (10, 0o644));
    assert_eq!(file.xattrs[&b"user.from"[..]], b"link");
    assert_eq!(inode(&tree, "s2").perm, 0o777);
}

#[test]
fn hard_links_need_their_target_in_the_same_layer() {
    let missing = |target: &str| Problem::LinkTarget(target.as_bytes().to_vec());
    assert_eq!(problem(Script::new().hard_link("l", "f").file("f", "")), missing("f"));
    assert_eq!(problem(Script::new().file("f", "").hard_link("f", "f")), missing("f"));
    assert_eq!(
        problem(Script::new().symlink("s", "f").file("f", "").hard_link("l", "s/x")),
        Problem::NotADirectory(b"/f/x".to_vec())
    );
    assert_eq!(problem(Script::new().dir("d").hard_link("l", "d")), Problem::LinkToDirectory(b"d".to_vec()));
    assert_eq!(problem(Script::new().hard_link("l", "")), Problem::LinkToDirectory(Vec::new()));
    assert_eq!(problem(Script::new().dir("d").hard_link("l", "../..")), Problem::LinkToDirectory(b"../..".to_vec()));
    let error = walk(Script::new().file("a", "").hard_link("sub/l", "../b")).unwrap_err().to_string();
    assert!(error.contains(r#"tar entry "sub/l""#) && error.contains(r#"hard link to "../b""#), "{error}");
}

#[test]
fn changing_the_owner_drops_file_capabilities() {
    let cap = [&[1, 0, 0, 2, 0, 32][..], &[0; 14]].concat();
    let file = || Script::new().pax(&[("SCHILY.xattr.security.capability", &cap)]).file("ping", "");
    let tree = walk(file()).unwrap();
    assert_eq!(inode(&tree, "ping").xattrs[&b"security.capability"[..]], cap);
    let tree = walk(file().hard_link("pong", "ping")).unwrap();
    assert!(inode(&tree, "ping").xattrs.is_empty());
    let tree = walk(file().pax(&[("SCHILY.xattr.security.capability", &cap)]).hard_link("pong", "ping")).unwrap();
    assert_eq!(inode(&tree, "ping").xattrs[&b"security.capability"[..]], cap);
}

#[test]
fn attributes_that_an_image_cant_set_are_dropped_with_a_warning() {
    let script = Script::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.clipper.implicit", b""),
            ("SCHILY.xattr.user.empty", b""),
            ("SCHILY.xattr.user.bin", b"\0=\n\xff"),
            ("SCHILY.acl.access", b"u::rwx"),
            ("LIBARCHIVE.xattr.user.x", b"eA=="),
        ])
        .dir("d")
        .pax(&[("SCHILY.xattr.user.x", b"1")])
        .symlink("s", "t");
    let mut walker = LayerWalker::new(Limits::default());
    walker.push(&script.end()).unwrap();
    let dropped: Vec<_> = walker.warnings().iter().map(|w: &Warning| (w.path.clone(), w.dropped.clone())).collect();
    assert_eq!(
        dropped,
        [
            (b"d".to_vec(), Dropped::Xattr(b"trusted.clipper.implicit".to_vec())),
            (b"d".to_vec(), Dropped::Xattr(b"trusted.overlay.opaque".to_vec())),
            (b"s".to_vec(), Dropped::Xattr(b"user.x".to_vec())),
        ]
    );
    let tree = walker.finish().unwrap();
    let kept: Vec<_> = inode(&tree, "d").xattrs.iter().map(|(k, v)| (k.as_slice(), v.as_slice())).collect();
    assert_eq!(kept, [(&b"user.bin"[..], &b"\0=\n\xff"[..]), (b"user.empty", b"")]);
    assert!(inode(&tree, "s").xattrs.is_empty());
    assert!(matches!(problem(Script::new().pax(&[("SCHILY.xattr.", b"1")]).file("f", "")), Problem::Xattr { .. }));
}

#[test]
fn whiteouts_become_devices_0_0_in_any_order() {
    let cases: [(Script, &[&str]); 8] = [
        (Script::new().file("d/.wh.gone", ""), &["d/", "d/gone!"]),
        (Script::new().file("./.wh.gone", ""), &["gone!"]),
        // Directories are merged with what is below even so: containerd doesn't make them opaque.
        (Script::new().file(".wh.d", "").dir("d"), &["d/"]),
        (Script::new().file(".wh.f", "").file("f", ""), &["f"]),
        (Script::new().file("f", "").file(".wh.f", ""), &["f!"]),
        (Script::new().dir("d").file("d/f", "").file(".wh.d", ""), &["d!"]),
        // AUFS's own files are whiteouts of names that nobody has.
        (Script::new().file(".wh..wh.plnk", "").file(".wh..wh.aufs", ""), &[".wh.aufs!", ".wh.plnk!"]),
        (Script::new().header(plain(b'3', "dev", 0, 0o600), b""), &["dev!"]),
    ];
    for (script, expected) in cases {
        assert_eq!(listing(&walk(script).unwrap()), expected);
    }
    let tree = walk(Script::new().file(".wh.d", "").dir("d")).unwrap();
    assert!(!inode(&tree, "d").is_opaque());
    let tree = walk(Script::new().file("d/.wh.gone", "")).unwrap();
    assert_eq!((inode(&tree, "d/gone").perm, inode(&tree, "d/gone").uid, inode(&tree, "d/gone").gid), (0, 10, 20));
    for bad in [".wh.", "d/.wh..", "d/.wh..."] {
        assert_eq!(problem(Script::new().file(bad, "")), Problem::Whiteout, "{bad}");
    }
    // A path below a whiteout: the new directory hides what it replaced.
    let tree = walk(Script::new().file(".wh.d", "").file("d/f", "")).unwrap();
    assert_eq!(listing(&tree), ["d/", "d/f"]);
    assert!(inode(&tree, "d").is_opaque() && inode(&tree, "d").inherits().is_none());
}

#[test]
fn opaque_markers_mark_their_directory_in_any_order() {
    for script in [
        Script::new().dir("d").file("d/.wh..wh..opq", "").file("d/f", ""),
        Script::new().file("d/.wh..wh..opq", "").dir("d").file("d/f", ""),
        Script::new().dir("d").file("d/f", "").file("d/.wh..wh..opq", "ignored data"),
        Script::new().dir("d").file("d/f", "").dir("d/.wh..wh..opq"),
    ] {
        let tree = walk(script).unwrap();
        assert_eq!(listing(&tree), ["d/", "d/f"]);
        assert_eq!(inode(&tree, "d").xattrs[OPAQUE_XATTR], b"y");
        assert_eq!(inode(&tree, "d").perm, 0o755);
    }
    // A marked directory that is replaced takes the mark along.
    let tree = walk(Script::new().file("d/.wh..wh..opq", "").file("d", "").dir("d")).unwrap();
    assert!(!inode(&tree, "d").is_opaque());
}

#[test]
fn an_opaque_marker_tells_what_it_removes_from_a_first_layer() {
    let bottom = |script: Script, path: &str| {
        let tree = walk(script).unwrap();
        inode(&tree, path).xattrs.get(BOTTOM_XATTR).map(|names| names.escape_ascii().to_string())
    };
    let base =
        || Script::new().dir("d").file("d/parent/f", "").file("d/x/y", "").dir("d/entry").file("d/entry/p/f", "");
    let marked = || base().file("d/.wh..wh..opq", "");
    assert_eq!(bottom(base(), "d"), None);
    assert_eq!(bottom(marked(), "d"), Some("parent/x".into()));
    assert_eq!(bottom(marked(), "d/entry"), Some("p".into()));
    // What comes afterwards is there again, but not what was in it.
    assert_eq!(bottom(marked().file("d/parent/g", ""), "d"), Some("x".into()));
    assert_eq!(bottom(marked().file("d/parent/g", ""), "d/parent"), Some("f".into()));
}

#[test]
fn implicit_marks_never_come_from_the_archive() {
    let tree = walk(Script::new().pax(&[("SCHILY.xattr.trusted.clipper.implicit", b"ot")]).dir("d")).unwrap();
    assert!(!inode(&tree, "d").xattrs.contains_key(IMPLICIT_XATTR));
}

#[test]
fn names_linux_cant_hold_are_refused() {
    let long = "n".repeat(256);
    for name in [long.clone(), format!("{long}/f"), format!("d/{long}/f"), format!("d/.wh.{}", "n".repeat(252))] {
        let script = Script::new().pax(&[("path", name.as_bytes())]).file("x", "");
        assert!(matches!(problem(script), Problem::Name(_)), "{name}");
    }
    let name = format!("{0}/{0}", "n".repeat(255));
    let tree = walk(Script::new().pax(&[("path", name.as_bytes())]).file("x", "")).unwrap();
    assert!(tree.lookup(name.as_bytes()).is_some());
    let deep = |depth: usize| ["d"].repeat(depth).join("/");
    assert!(walk(Script::new().pax(&[("path", deep(2000).as_bytes())]).dir("x")).is_ok());
    let too_deep = deep(2500);
    assert!(walk(Script::new().pax(&[("path", too_deep.as_bytes())]).dir("x")).is_err());
    let target = "t".repeat(4096);
    let script = |target: &str| Script::new().pax(&[("linkpath", target.as_bytes())]).symlink("s", "t");
    assert!(walk(script(&target[1..])).is_ok());
    assert_eq!(problem(script(&target)), Problem::SymlinkTarget);
    assert_eq!(problem(Script::new().symlink("s", "")), Problem::SymlinkTarget);
}
