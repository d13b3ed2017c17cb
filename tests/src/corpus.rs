//! Images of awkward layers: everything that the layer format allows and ordinary images rarely do. containerd's own
//! unpacker says what they mean; it takes all of them.

use anyhow::Result;
use serde_json::{Value, json};

use crate::layout::{Compression, Image, Layout};
use crate::tarball::{Dialect, Entry, Kind, Sparse, SparseFormat, TarWriter};

/// A layer as it is made.
#[derive(Clone, Debug)]
pub struct LayerRecipe {
    /// Its entries, in order.
    pub entries: Vec<Entry>,
    /// Name of its compression, see `Compression::by_name`.
    pub compression: &'static str,
}

/// An image as it is made.
#[derive(Clone, Debug)]
pub struct ImageRecipe {
    /// Its tag in the layout.
    pub name: &'static str,
    /// Its layers, bottom first.
    pub layers: Vec<LayerRecipe>,
}

impl ImageRecipe {
    /// Writes it into a layout under its name; gives the manifest's descriptor.
    pub fn write(&self, layout: &Layout) -> Result<Value> {
        let mut image = Image { config: json!({"Cmd": ["/bin/sh"]}), ..Image::default() };
        for layer in &self.layers {
            image.layers.push(layout.layer(&Compression::by_name(layer.compression)?, |out| {
                let mut tar = TarWriter::new(out);
                tar.global_header("comment", "a global header")?;
                for entry in &layer.entries {
                    tar.entry(entry)?;
                }
                tar.finish()?;
                Ok(())
            })?);
        }
        let manifest = layout.image(&image)?;
        layout.tag(self.name, &manifest)?;
        Ok(manifest)
    }
}

/// All of them.
pub fn images() -> Vec<ImageRecipe> {
    vec![kinds(), names(), links(), duplicates(), changes(), opaque(), sparse(), sizes(), wide(), empty()]
}

fn layer(compression: &'static str, entries: Vec<Entry>) -> LayerRecipe {
    LayerRecipe { entries, compression }
}

/// Bytes that do not compress, the same every time.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Text that compresses like text.
pub fn text(seed: u64, len: usize) -> Vec<u8> {
    const WORDS: [&str; 8] = ["layer", "span", "index", "container", "registry", "checkpoint", "of the", "\n"];
    let mut bytes = Vec::with_capacity(len + 16);
    for pick in noise(seed, len / 3 + 8) {
        bytes.extend_from_slice(WORDS[usize::from(pick % 8)].as_bytes());
        bytes.push(b' ');
        bytes.push(b'0' + pick / 32);
        if bytes.len() >= len {
            break;
        }
    }
    bytes.truncate(len);
    bytes
}

/// Types, owners, modes, times and xattrs, in each dialect.
fn kinds() -> ImageRecipe {
    // A capability set as `setcap cap_net_raw+ep` writes it (linux/capability.h: VFS_CAP_REVISION_2, effective).
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    let mut entries = vec![
        Entry::dir("./"),
        Entry::dir("sticky").mode(0o1777),
        Entry::dir("setgid").mode(0o2755).owner(1, 2),
        Entry::dir("none").mode(0),
        Entry::dir("times").mtime(1_234_567_890, 123_456_789),
        Entry::file("times/nanoseconds", "n").mtime(1_700_000_000, 999_999_999),
        Entry::file("times/epoch", "e").mtime(0, 0),
        Entry::file("times/before-the-epoch", "b").mtime(-5, 250_000_000),
        Entry::file("times/after-2038", "a").mtime(5_000_000_000, 1),
        Entry::symlink("times/link", "nanoseconds").mtime(1_111_111_111, 5),
        Entry::dir("xattrs").xattr("user.of-a-directory", "d").xattr("trusted.of-root", "t"),
        Entry::file("xattrs/binary", "b").xattr("user.binary", vec![0, 255, b'=', b'\n', 0]),
        Entry::file("xattrs/empty", "e").xattr("user.empty", ""),
        Entry::file("xattrs/long", "l").xattr("user.long", noise(1, 1500)).xattr(format!("user.{}", "n".repeat(240)), "v"),
        Entry::file("xattrs/many", "m"),
        Entry::file("xattrs/capability", "c").mode(0o755).xattr("security.capability", capability),
        Entry::new("xattrs/fifo", Kind::Fifo).xattr("trusted.of-a-fifo", "f"),
        Entry::symlink("xattrs/link", "binary").xattr("trusted.of-a-link", "l"),
        Entry::file("xattrs/acl", "a")
            .xattr("system.posix_acl_access", b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff".to_vec())
            .mode(0o640),
    ];
    for number in 0..20 {
        entries[14].xattrs.push((format!("user.number-{number}").into(), number.to_string().into()));
    }
    for (name, dialect) in [("ustar", Dialect::Ustar), ("gnu", Dialect::Gnu), ("pax", Dialect::Pax)] {
        let big = if dialect == Dialect::Ustar { 2_097_151 } else { 4_000_000_000 };
        let made = [
            Entry::dir(name),
            Entry::file(format!("{name}/file"), name),
            Entry::file(format!("{name}/empty"), ""),
            Entry::file(format!("{name}/setuid"), "s").mode(0o4755),
            Entry::file(format!("{name}/setgid"), "s").mode(0o2711),
            Entry::file(format!("{name}/owned"), "o").owner(1000, 65534).mode(0o600),
            Entry::file(format!("{name}/owned-by-many"), "o").owner(big, big - 1),
            Entry::symlink(format!("{name}/link"), "file"),
            Entry::symlink(format!("{name}/dangling"), "/no/such/file"),
            Entry::hardlink(format!("{name}/hard"), format!("{name}/file")),
            Entry::new(format!("{name}/fifo"), Kind::Fifo).mode(0o622),
            Entry::new(format!("{name}/null"), Kind::CharDevice(1, 3)).mode(0o666),
            Entry::new(format!("{name}/loop"), Kind::BlockDevice(7, 300)).mode(0o660).owner(0, 6),
        ];
        entries.extend(made.map(|entry| entry.dialect(dialect)));
    }
    ImageRecipe { name: "kinds", layers: vec![layer("gzip", entries)] }
}

/// Paths: long, deep, strange, with and without `./`.
fn names() -> ImageRecipe {
    let mut entries = vec![Entry::dir("./"), Entry::dir("./dotted/"), Entry::file("./dotted/file", "1")];
    entries.push(Entry::file("plain-without-its-directory/file", "2"));
    entries.push(Entry::file("/absolute", "3"));
    entries.push(Entry::dir("unclean"));
    entries.push(Entry::file("unclean//./twice/../file", "4"));
    for (number, dialect) in [Dialect::Gnu, Dialect::Pax].into_iter().enumerate() {
        let dir = format!("long-{number}");
        entries.push(Entry::dir(dir.clone()).dialect(dialect));
        entries.push(Entry::file(format!("{dir}/{}", "f".repeat(255)), "f").dialect(dialect));
        entries.push(Entry::dir(format!("{dir}/{}", "d".repeat(255))).dialect(dialect));
        entries.push(Entry::symlink(format!("{dir}/link"), "t/".repeat(1500)).dialect(dialect));
        entries.push(Entry::hardlink(format!("{dir}/hard"), format!("{dir}/{}", "f".repeat(255))).dialect(dialect));
        // Exactly as long as the field, and one more.
        for len in [99, 100, 101, 155, 156, 157] {
            let name = format!("{dir}/{}", "x".repeat(len - dir.len() - 1));
            entries.push(Entry::file(name, len.to_string()).dialect(dialect));
        }
    }
    entries.push(Entry::dir("split").dialect(Dialect::Ustar));
    entries.push(Entry::dir(format!("split/{}", "p".repeat(90))).dialect(Dialect::Ustar));
    entries.push(Entry::file(format!("split/{}/{}", "p".repeat(90), "n".repeat(100)), "split").dialect(Dialect::Ustar));
    entries.push(Entry::dir("bytes"));
    for dialect in [Dialect::Ustar, Dialect::Gnu, Dialect::Pax] {
        let name = [b"bytes/".as_slice(), &[0xff, 0xfe, b'0' + dialect as u8, 0x80]].concat();
        entries.push(Entry::file(name.clone(), "not UTF-8").dialect(dialect));
        entries.push(Entry::symlink([name.as_slice(), b"-link"].concat(), vec![0xc3, 0x28]).dialect(dialect));
    }
    entries
        .push(Entry::file([b"bytes/".as_slice(), &[0xe9; 200]].concat(), "long and not UTF-8").dialect(Dialect::Gnu));
    for name in ["bytes/new\nline", "bytes/tab\t", "bytes/ space ", "bytes/back\\slash", "bytes/\u{1f40b}", "bytes/..."]
    {
        entries.push(Entry::file(name, name));
    }
    let mut deep = String::from("deep");
    for level in 0..120 {
        entries.push(Entry::dir(deep.clone()).mtime(1_000_000_000 + level, 0));
        deep += &format!("/level-{level}");
    }
    entries.push(Entry::file(deep, "the bottom"));
    ImageRecipe { name: "names", layers: vec![layer("gzip", entries)] }
}

/// Hard links of every kind, and paths that lead through symbolic links.
fn links() -> ImageRecipe {
    let entries = vec![
        Entry::dir("a"),
        Entry::dir("b"),
        Entry::file("a/file", "shared").mode(0o640),
        Entry::hardlink("a/same-directory", "a/file").mode(0o640),
        Entry::hardlink("b/other-directory", "./a/file").mode(0o640),
        Entry::hardlink("b/absolute", "/a/file").mode(0o640),
        Entry::symlink("a/symlink", "file"),
        Entry::hardlink("b/of-a-symlink", "a/symlink"),
        Entry::new("a/fifo", Kind::Fifo),
        Entry::hardlink("b/of-a-fifo", "a/fifo"),
        Entry::new("a/null", Kind::CharDevice(1, 3)),
        Entry::hardlink("b/of-a-device", "a/null"),
        Entry::file("a/empty", ""),
        Entry::hardlink("b/of-empty", "a/empty"),
        Entry::hardlink("b/of-a-link", "b/other-directory").mode(0o640),
        // The header of the link is applied to the file: containerd changes mode and time of both.
        Entry::file("a/changed-by-its-link", "c").mode(0o600).mtime(1_000_000_000, 1),
        Entry::hardlink("b/changes", "a/changed-by-its-link").mode(0o755).mtime(1_500_000_000, 2).owner(3, 4),
        Entry::dir("usr"),
        Entry::dir("usr/lib"),
        Entry::symlink("lib", "usr/lib"),
        Entry::file("lib/through-a-symlink", "t"),
        Entry::symlink("absolute-lib", "/usr/lib"),
        Entry::file("absolute-lib/through-another", "t"),
    ];
    // A link whose target is rewritten in a layer above keeps the old bytes.
    let above = vec![
        Entry::dir("a"),
        Entry::file("a/file", "written anew").mode(0o600),
        Entry::hardlink("a/anew", "a/file").mode(0o600),
        Entry::dir("b"),
        Entry::file("b/.wh.absolute", ""),
    ];
    ImageRecipe { name: "links", layers: vec![layer("gzip", entries), layer("tar", above)] }
}

/// The same path several times in one layer: the last one counts.
fn duplicates() -> ImageRecipe {
    let entries = vec![
        Entry::dir("d").mode(0o700).xattr("user.first", "1"),
        Entry::file("d/file", "first").mode(0o600),
        Entry::hardlink("d/link-to-the-first", "d/file").mode(0o600),
        Entry::file("d/file", "second, longer").mode(0o644),
        Entry::file("d/file", "third").mode(0o444).mtime(1_234_567_890, 5),
        Entry::dir("d").mode(0o755).xattr("user.second", "2").mtime(1_600_000_000, 9),
        Entry::file("d/becomes-a-directory", "f"),
        Entry::dir("d/becomes-a-directory"),
        Entry::file("d/becomes-a-directory/inside", "i"),
        Entry::dir("d/becomes-a-file"),
        Entry::file("d/becomes-a-file/inside", "lost"),
        Entry::file("d/becomes-a-file", "f"),
        Entry::file("d/becomes-a-link", "f"),
        Entry::symlink("d/becomes-a-link", "file"),
        Entry::symlink("d/was-a-link", "file"),
        Entry::file("d/was-a-link", "not written through"),
        Entry::file("./d/file-by-another-name", "1"),
        Entry::file("d//file-by-another-name", "2"),
    ];
    ImageRecipe { name: "duplicates", layers: vec![layer("members", entries)] }
}

/// Layers that take away and replace what is below.
fn changes() -> ImageRecipe {
    let bottom = vec![
        Entry::dir("etc").mode(0o711),
        Entry::file("etc/kept", "kept"),
        Entry::file("etc/removed", "removed"),
        Entry::file("etc/changed", "before"),
        Entry::file("etc/mode-only", "mode").mode(0o600),
        Entry::dir("tree"),
        Entry::dir("tree/inner"),
        Entry::file("tree/inner/file", "gone with the tree"),
        Entry::file("file-then-directory", "f"),
        Entry::dir("directory-then-file"),
        Entry::file("directory-then-file/inside", "i"),
        Entry::file("there-and-back", "file"),
        Entry::dir("back-and-there"),
        Entry::file("back-and-there/first", "1"),
        Entry::symlink("link-then-file", "etc/kept"),
        Entry::file("removed-and-back", "first"),
        Entry::dir("emptied"),
        Entry::file("emptied/a", "a"),
        Entry::file("emptied/b", "b"),
    ];
    let second = vec![
        Entry::dir("etc").mode(0o755).mtime(1_650_000_000, 77),
        Entry::file("etc/.wh.removed", ""),
        Entry::file("etc/changed", "after"),
        Entry::file("etc/mode-only", "mode").mode(0o755),
        Entry::file(".wh.tree", ""),
        Entry::dir("file-then-directory"),
        Entry::file("file-then-directory/inside", "new"),
        Entry::file("directory-then-file", "now a file"),
        Entry::dir("there-and-back"),
        Entry::file("there-and-back/inside", "between"),
        Entry::file("back-and-there", "between"),
        Entry::file("link-then-file", "own"),
        Entry::file(".wh.removed-and-back", ""),
        Entry::dir("emptied"),
        Entry::file("emptied/.wh.a", ""),
        Entry::file("emptied/.wh.b", ""),
        Entry::file("emptied/.wh.never-there", ""),
    ];
    let third = vec![
        Entry::file("there-and-back", "file again"),
        Entry::dir("back-and-there"),
        Entry::file("back-and-there/second", "2"),
        Entry::file("removed-and-back", "second"),
        Entry::dir("tree"),
        Entry::file("tree/new", "a tree grown anew, without the old"),
    ];
    // A directory that this layer does not name: its attributes are those of the layer below.
    let fourth = vec![Entry::file("etc/in-an-unnamed-directory", "u"), Entry::file("etc/.wh.kept", "")];
    let layers = vec![layer("gzip", bottom), layer("pigz", second), layer("tar", third), layer("bgzip", fourth)];
    ImageRecipe { name: "changes", layers }
}

/// Opaque directories, the marker before, between and after what the layer puts there.
fn opaque() -> ImageRecipe {
    let dirs = ["first", "middle", "last", "nested", "alone", "file"];
    let mut bottom = Vec::new();
    for dir in dirs {
        bottom.extend([
            Entry::dir(dir),
            Entry::file(format!("{dir}/old"), "old"),
            Entry::file(format!("{dir}/both"), "old"),
            Entry::dir(format!("{dir}/sub")),
            Entry::file(format!("{dir}/sub/old"), "old"),
        ]);
    }
    let marker = |dir: &str| Entry::file(format!("{dir}/.wh..wh..opq"), "");
    let fresh = |dir: &str| [Entry::file(format!("{dir}/both"), "new"), Entry::file(format!("{dir}/new"), "new")];
    let mut top = Vec::new();
    top.extend([Entry::dir("first").mode(0o700), marker("first")]);
    top.extend(fresh("first"));
    top.extend([
        Entry::dir("middle"),
        Entry::file("middle/both", "new"),
        marker("middle"),
        Entry::file("middle/new", "new"),
    ]);
    top.push(Entry::dir("last"));
    top.extend(fresh("last"));
    top.extend([Entry::dir("last/sub"), Entry::file("last/sub/new", "new"), marker("last")]);
    top.extend([
        Entry::dir("nested"),
        Entry::dir("nested/sub"),
        marker("nested/sub"),
        Entry::file("nested/sub/new", "new"),
    ]);
    top.extend([Entry::dir("alone"), marker("alone")]);
    let above = vec![Entry::dir("first"), Entry::file("first/above", "above"), Entry::file("first/.wh.new", "")];
    let layers = vec![layer("gzip", bottom), layer("gzip", top), layer("gzip", above)];
    ImageRecipe { name: "opaque", layers }
}

/// Sparse files in the two PAX formats. (containerd has no mind for the old GNU one, whose entries are of type `S`.)
fn sparse() -> ImageRecipe {
    let mut entries = Vec::new();
    for (name, format) in [("pax-0.1", SparseFormat::Pax01), ("pax-1.0", SparseFormat::Pax10)] {
        // Whole blocks but for the last, as GNU tar finds them.
        let few = vec![(0, noise(2, 1024)), (1 << 20, noise(3, 4096)), (3_000_320, noise(4, 77))];
        let many = (0..60).map(|run| (run * 10_240 + 512, noise(run, 512))).collect();
        let cases = [
            ("few", 3_000_397, few.clone()),
            ("hole-at-the-end", 5_000_000, few),
            ("many", 700_000, many),
            ("all-hole", 1_000_000, Vec::new()),
            ("no-hole", 2048, vec![(0, noise(9, 2048))]),
        ];
        for (case, size, runs) in cases {
            entries.push(Entry::new(format!("{name}-{case}"), Kind::Sparse(Sparse { size, runs, format })));
        }
        entries.push(Entry::file(format!("{name}-after"), "an ordinary file behind it"));
    }
    ImageRecipe { name: "sparse", layers: vec![layer("gzip", entries)] }
}

/// Files of every size around the block sizes of tar, EROFS and pages, and across many spans; every kind of Deflate
/// block.
fn sizes() -> ImageRecipe {
    let mut files = Vec::new();
    for size in [1, 511, 512, 513, 1023, 1024, 4095, 4096, 4097, 8192, 65_535, 65_536, 65_537, 1 << 20] {
        files.push(Entry::file(format!("noise-{size}"), noise(size as u64, size)));
        files.push(Entry::file(format!("text-{size}"), text(size as u64, size)));
    }
    let mixed: Vec<u8> =
        (0..40).flat_map(|part| if part % 2 == 0 { noise(part, 200_000) } else { text(part, 200_000) }).collect();
    files.push(Entry::file("mixed", mixed));
    files.push(Entry::file("zeros", vec![0; 6_000_000]));
    let moved = |to: &str| -> Vec<Entry> {
        let rename = |entry: &Entry| {
            let mut entry = entry.clone();
            entry.path = [to.as_bytes(), b"-", &entry.path].concat();
            entry
        };
        files.iter().map(rename).collect()
    };
    let layers = ["gzip", "store", "pigz", "bgzip", "members", "tar"].map(|how| layer(how, moved(how)));
    ImageRecipe { name: "sizes", layers: layers.into() }
}

/// A directory of thousands.
fn wide() -> ImageRecipe {
    let mut entries = vec![Entry::dir("wide"), Entry::dir("wide-and-long")];
    entries.extend((0..6000).map(|number| Entry::file(format!("wide/{number}"), number.to_string())));
    entries.extend((0..800).map(|number| Entry::file(format!("wide-and-long/{number:0>250}"), "")));
    ImageRecipe { name: "wide", layers: vec![layer("gzip", entries)] }
}

/// Layers with nothing in them, below, between and above.
fn empty() -> ImageRecipe {
    let nothing = |how| layer(how, Vec::new());
    let layers =
        vec![nothing("gzip"), layer("gzip", vec![Entry::file("only", "file")]), nothing("tar"), nothing("bgzip")];
    ImageRecipe { name: "empty", layers }
}
