//! Layers merged the way overlayfs shows them, and runs of layers that are to lie above others.
mod model;

use clipper_format::merge::{Below, MergeError, merge, merge_above};
use clipper_format::tar::{LayerWalker, Limits};
use clipper_format::tree::{Content, DeviceNumber, FileData, Inode, OPAQUE_XATTR, ROOT, Tree};
use model::script::{Script, plain};
use std::collections::BTreeMap;

fn layer(script: Script) -> Tree {
    let mut walker = LayerWalker::new(Limits::default());
    walker.push(&script.end()).unwrap();
    walker.finish().unwrap()
}

fn inode<'a>(tree: &'a Tree, path: &str) -> &'a Inode {
    tree.inode(tree.lookup(path.as_bytes()).unwrap_or_else(|| panic!("no {path} in {tree:#?}")))
}

/// All paths: `/` directory, `/o` opaque directory, `!` whiteout, a file with the number of its device.
fn listing(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![(String::new(), ROOT)];
    while let Some((path, id)) = todo.pop() {
        let inode = tree.inode(id);
        assert!(inode.inherits().is_none(), "{path} still has its mark");
        let mark = match &inode.content {
            Content::Directory(entries) => {
                for (name, id) in entries.iter().rev() {
                    let name = name.escape_ascii();
                    todo.push((if path.is_empty() { name.to_string() } else { format!("{path}/{name}") }, id));
                }
                if inode.is_opaque() { "/o" } else { "/" }.to_owned()
            }
            Content::File(data) => match data.place() {
                Some((device, _)) => format!(" {device}"),
                None => String::new(),
            },
            _ if inode.is_whiteout() => "!".to_owned(),
            _ => "?".to_owned(),
        };
        if id != ROOT {
            lines.push(format!("{path}{mark}"));
        }
    }
    lines
}

fn new() -> Script {
    Script::new()
}

#[test]
fn layers_hide_what_is_below_as_in_overlayfs() {
    let base = || new().dir("d").file("d/a", "1").dir("d/s").file("d/s/x", "1").file("f", "1");
    let cases: [(Vec<Script>, &[&str]); 14] = [
        (vec![base()], &["d/", "d/a 1", "d/s/", "d/s/x 1", "f 1"]),
        (vec![base(), new().file("d/b", "2")], &["d/", "d/a 1", "d/b 2", "d/s/", "d/s/x 1", "f 1"]),
        (vec![base(), new().file("d/a", "2")], &["d/", "d/a 2", "d/s/", "d/s/x 1", "f 1"]),
        (vec![base(), new().file(".wh.d", "")], &["f 1"]),
        (vec![base(), new().file(".wh.d", ""), new().dir("d")], &["d/", "f 1"]),
        (vec![base(), new().file("d/.wh.s", ""), new().file("d/s/y", "3")], &["d/", "d/a 1", "d/s/", "d/s/y 3", "f 1"]),
        (vec![base(), new().file("d/.wh..wh..opq", "").file("d/b", "2")], &["d/", "d/b 2", "f 1"]),
        // Opaque, though what is below it in its own layer was made before.
        (
            vec![base(), new().dir("d/s").file("d/s/y", "2").file("d/.wh..wh..opq", "")],
            &["d/", "d/s/", "d/s/y 2", "f 1"],
        ),
        (vec![base(), new().file("d", "2")], &["d 2", "f 1"]),
        // A file in between keeps the two directories apart.
        (vec![base(), new().file("d", "2"), new().dir("d").file("d/c", "3")], &["d/", "d/c 3", "f 1"]),
        (vec![base(), new().dir("f").file("f/x", "2")], &["d/", "d/a 1", "d/s/", "d/s/x 1", "f/", "f/x 2"]),
        // overlayfs never looks for the opaque mark on a layer's root.
        (vec![base(), new().file(".wh..wh..opq", "")], &["d/", "d/a 1", "d/s/", "d/s/x 1", "f 1"]),
        (vec![new().file(".wh.x", "").file("d/.wh.y", "").file("d/.wh..wh..opq", "")], &["d/"]),
        (vec![base(), new(), new().file(".wh.nothing", "")], &["d/", "d/a 1", "d/s/", "d/s/x 1", "f 1"]),
    ];
    for (scripts, expected) in cases {
        let merged = merge(scripts.into_iter().map(layer).collect(), false).unwrap();
        assert_eq!(listing(&merged), expected);
        assert!(merged.inodes.iter().all(|inode| !inode.xattrs.contains_key(OPAQUE_XATTR) && !inode.is_whiteout()));
        // Nothing hidden is carried along.
        assert_eq!(merged.inodes.len(), expected.len() + 1);
    }
}

#[test]
fn a_run_keeps_what_can_still_hide_something() {
    let cases: [(Vec<Script>, &[&str]); 11] = [
        (vec![new().file(".wh.x", "").file("d/.wh.y", "")], &["d/", "d/y!", "x!"]),
        (vec![new().file("d/f", "1").file("d/.wh..wh..opq", "")], &["d/o", "d/f 1"]),
        // Inside an opaque directory there is nothing left to hide.
        (vec![new().file("d/.wh..wh..opq", "").file("d/.wh.y", "").file("d/s/.wh.z", "")], &["d/o", "d/s/"]),
        (
            vec![new().file("d/.wh..wh..opq", ""), new().file("d/.wh.y", "").file("d/s/.wh..wh..opq", "")],
            &["d/o", "d/s/"],
        ),
        // Removed, then made again: nothing from further down may show.
        (vec![new().file(".wh.d", ""), new().file("d/f", "2")], &["d/o", "d/f 2"]),
        (vec![new().file("d", "1"), new().file("d/f", "2")], &["d/o", "d/f 2"]),
        (vec![new().file("d/f", "1"), new().file(".wh.d", ""), new().dir("d")], &["d/o"]),
        (vec![new().file("d/f", "1"), new().file("d/.wh..wh..opq", "").file("d/g", "2")], &["d/o", "d/g 2"]),
        // Removed here, but there may be more of it further down.
        (vec![new().file("d/f", "1"), new().file("d/.wh.f", "")], &["d/", "d/f!"]),
        (vec![new().file(".wh.f", ""), new().file("f", "2")], &["f 2"]),
        (vec![new().file("d/.wh..wh..opq", ""), new().dir("d").file("d/f", "2")], &["d/o", "d/f 2"]),
    ];
    for (scripts, expected) in cases {
        let merged = merge(scripts.into_iter().map(layer).collect(), true).unwrap();
        assert_eq!(listing(&merged), expected);
    }
}

#[test]
fn hard_links_stay_together_within_their_layer() {
    let base = layer(
        new()
            .file("a", "1")
            .hard_link("b", "a")
            .hard_link("c", "a")
            .header(plain(b'6', "p", 0, 0o600), b"")
            .hard_link("q", "p"),
    );
    let upper = layer(new().file("b", "2").hard_link("d", "b").file(".wh.p", ""));
    let merged = merge(vec![base, upper], false).unwrap();
    let id = |path: &str| merged.lookup(path.as_bytes()).unwrap();
    assert_eq!(id("a"), id("c"));
    assert_eq!(id("b"), id("d"));
    assert_ne!(id("a"), id("b"));
    assert_eq!(inode(&merged, "q").content, Content::Fifo);
    assert_eq!(listing(&merged), ["a 1", "b 2", "c 1", "d 2", "q?"]);
}

#[test]
fn links_to_a_whiteout_hide_like_it() {
    let base = layer(new().file("a", "1").file("b", "1").file("c", "1"));
    let upper = layer(new().file(".wh.a", "").hard_link("b", "a"));
    assert_eq!(listing(&merge(vec![base, upper.clone()], false).unwrap()), ["c 1"]);
    assert_eq!(listing(&merge(vec![upper], true).unwrap()), ["a!", "b!"]);
}

#[test]
fn devices_are_numbered_by_layer_even_if_nothing_is_left_of_one() {
    let layers = vec![layer(new().file("a", "1")), layer(new()), layer(new().file("a", "3").file("b", "3"))];
    let sizes: Vec<u64> = layers.iter().map(|tree| tree.device_sizes[0]).collect();
    let merged = merge(layers, false).unwrap();
    assert_eq!(merged.device_sizes, sizes);
    assert_eq!(listing(&merged), ["a 3", "b 3"]);
    let bare = Tree { device_sizes: Vec::new(), ..Tree::empty() };
    assert_eq!(merge(vec![bare], false).unwrap().device_sizes, [0]);
    let nothing = merge(Vec::new(), false).unwrap();
    assert_eq!((nothing.inodes.len(), nothing.device_sizes.len()), (1, 0));
}

#[test]
fn directories_that_nobody_described_are_like_those_below() {
    let perm = |path: &str, mode: u64| plain(b'5', path, 0, mode);
    let base = || {
        new()
            .pax(&[("SCHILY.xattr.user.k", b"base"), ("mtime", b"5.5")])
            .header(perm("d", 0o2750), b"")
            .dir("real")
            .symlink("l", "real")
            .file("f", "")
    };
    let merged = |uppers: Vec<Script>| {
        let layers = [vec![base()], uppers].concat();
        merge(layers.into_iter().map(layer).collect(), false).unwrap()
    };
    let tree = merged(vec![new().file("d/x", ""), new().file("d/new/y", "")]);
    let dir = inode(&tree, "d");
    assert_eq!((dir.perm, dir.uid, dir.gid, dir.mtime, dir.mtime_nsec), (0o2750, 10, 20, 5, 500_000_000));
    assert_eq!(dir.xattrs[&b"user.k"[..]], b"base");
    // The new one isn't setgid, but has the group of its parent, which is.
    assert_eq!((inode(&tree, "d/new").perm, inode(&tree, "d/new").uid, inode(&tree, "d/new").gid), (0o755, 0, 20));
    // Described, but only after it had to exist: extended attributes were there already.
    let tree = merged(vec![new().file("d/x", "").header(perm("d", 0o700), b"")]);
    assert_eq!((inode(&tree, "d").perm, inode(&tree, "d").mtime), (0o700, 1000));
    assert_eq!(inode(&tree, "d").xattrs[&b"user.k"[..]], b"base");
    let tree = merged(vec![new().header(perm("d", 0o700), b"").file("d/x", "")]);
    assert!(inode(&tree, "d").xattrs.is_empty());
    // Through a link of the layer below; over a file or a whiteout there is nothing to inherit.
    let tree = merged(vec![new().file("l/x", "")]);
    assert_eq!((inode(&tree, "l").uid, inode(&tree, "l").mtime), (10, 1000));
    let tree = merged(vec![new().file("f/x", "")]);
    assert_eq!((inode(&tree, "f").uid, inode(&tree, "f").mtime), (0, 0));
    let tree = merged(vec![new().file(".wh.d", ""), new().file("d/x", "")]);
    assert_eq!((inode(&tree, "d").perm, inode(&tree, "d").gid), (0o755, 0));
    // An opaque mark hides entries, not attributes.
    let tree = merged(vec![new().file("d/x", "").file("d/.wh..wh..opq", "")]);
    assert_eq!((inode(&tree, "d").perm, inode(&tree, "d").gid), (0o2750, 20));
}

#[test]
fn a_run_asks_for_what_lies_below_it() {
    let run = || vec![layer(new().file("etc/a/b", "")), layer(new().file("etc/c", "").file("var/x", ""))];
    let mut asked = Vec::new();
    let mut below = |path: &[u8]| {
        asked.push(String::from_utf8(path.to_vec()).unwrap());
        match path {
            b"/etc" => Below::Directory(Box::new(Inode {
                uid: 5,
                perm: 0o711,
                xattrs: BTreeMap::from([(b"user.k".to_vec(), b"v".to_vec()), (OPAQUE_XATTR.to_vec(), b"y".to_vec())]),
                ..Inode::empty_directory()
            })),
            b"/var" => Below::Other,
            _ => Below::Nothing,
        }
    };
    let tree = merge_above(run(), &mut below).unwrap();
    assert_eq!((inode(&tree, "etc").uid, inode(&tree, "etc").perm), (5, 0o711));
    assert_eq!(inode(&tree, "etc").xattrs.keys().collect::<Vec<_>>(), [&b"user.k".to_vec()]);
    assert_eq!(inode(&tree, "etc/a").uid, 0);
    // The second layer finds /etc in the first.
    assert_eq!(asked, ["/", "/etc", "/etc/a", "/var"]);
    assert_eq!(inode(&merge(run(), true).unwrap(), "etc").uid, 0);
}

#[test]
fn a_first_layer_loses_what_containerd_removes_from_it() {
    let base = || layer(new().file("d/mere/f", "").dir("d/entry").file("d/.wh..wh..opq", "").file("d/late/f", ""));
    let shown = ["d/", "d/entry/", "d/late/", "d/late/f"];
    assert_eq!(listing(&merge(vec![base()], false).unwrap()), shown);
    let everything = ["d/o", "d/entry/", "d/late/", "d/late/f", "d/mere/", "d/mere/f"];
    assert_eq!(listing(&merge(vec![base()], true).unwrap()), everything);
    let upper = merge(vec![layer(new().file("d/x", "")), base()], false).unwrap();
    assert_eq!(listing(&upper)[1..], everything[1..]);
}

#[test]
fn broken_trees_are_refused() {
    let file = |device, offset, len| Inode {
        content: Content::File(FileData::whole(len, device, offset)),
        ..Inode::empty_directory()
    };
    let tree = |names: &[(&[u8], usize)], more: Vec<Inode>| {
        let entries = names.iter().map(|(name, id)| (name.to_vec(), *id)).collect();
        let root = Inode { content: Content::Directory(entries), ..Inode::empty_directory() };
        Tree { inodes: [vec![root], more].concat(), device_sizes: vec![1024] }
    };
    let not_a_tree = |inode| Err(MergeError::NotATree { layer: 1, inode });
    let outside = Err(MergeError::Extent { layer: 1, inode: 1 });
    let dir = Inode::empty_directory();
    let whiteout = Inode { content: Content::CharDevice(DeviceNumber::WHITEOUT), ..dir.clone() };
    for (bad, error) in [
        (tree(&[(b"a", 7)], vec![]), not_a_tree(7)),
        (tree(&[(b"a", 0)], vec![]), not_a_tree(0)),
        (tree(&[(b"a", 1), (b"b", 1)], vec![dir]), not_a_tree(1)),
        (Tree { inodes: vec![], device_sizes: vec![] }, not_a_tree(0)),
        (Tree { inodes: vec![whiteout], device_sizes: vec![] }, not_a_tree(0)),
        (tree(&[(b"a", 1)], vec![file(2, 0, 512)]), outside.clone()),
        (tree(&[(b"a", 1)], vec![file(0, 0, 512)]), outside.clone()),
        (tree(&[(b"a", 1)], vec![file(1, 1024, 1)]), outside.clone()),
        (tree(&[(b"a", 1)], vec![file(1, u64::MAX, 512)]), outside),
        (Tree { device_sizes: vec![1, 2], ..Tree::empty() }, Err(MergeError::Devices { layer: 1, devices: 2 })),
    ] {
        assert_eq!(merge(vec![Tree::empty(), bad], false), error);
    }
}
