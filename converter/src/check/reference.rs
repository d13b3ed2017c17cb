//! An ordinary unpack, in memory: what the layers say by a path that shares no code with Clipper's formats.
//!
//! Gzip and tar are read by other people's libraries and the layers are applied to a plain map of paths, so that
//! `clipper check` compares two independent readings of the same image.
use super::sparse;
use anyhow::{Context, Result, bail};
use clipper_format::Digest;
use sha2::{Digest as _, Sha256};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::rc::Rc;
use tar::EntryType;

/// What a name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Directory.
    Directory,
    /// Regular file: bytes and their SHA-256.
    File { size: u64, sha256: Digest },
    /// Symbolic link and its target.
    Symlink(Vec<u8>),
    /// Character device: major, minor.
    CharDevice(u32, u32),
    /// Block device: major, minor.
    BlockDevice(u32, u32),
    /// FIFO.
    Fifo,
    /// Socket.
    Socket,
}

/// An inode and its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Type and content.
    pub kind: Kind,
    /// `mode & 0o7777`.
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds; `None` where the layers don't say (directories that are only implied).
    pub mtime: Option<(i64, u32)>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A path's place: names that share an inode number are hard links.
pub type InodeNumber = usize;

/// A file tree by path, without leading slash; the root is the empty path.
#[derive(Default)]
pub struct Paths {
    /// Inode numbers by path.
    pub names: BTreeMap<Vec<u8>, InodeNumber>,
    /// Inodes by number.
    pub nodes: Vec<Node>,
}

impl Paths {
    /// The node at `path`.
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.names.get(path).map(|n| &self.nodes[*n])
    }

    fn insert(&mut self, path: Vec<u8>, node: Node) {
        self.nodes.push(node);
        self.names.insert(path, self.nodes.len() - 1);
    }

    fn remove_below(&mut self, path: &[u8]) {
        self.names.retain(|name, _| !is_below(name, path));
    }

    fn remove(&mut self, path: &[u8]) {
        self.remove_below(path);
        self.names.remove(path);
    }
}

fn is_below(name: &[u8], dir: &[u8]) -> bool {
    if dir.is_empty() {
        return !name.is_empty();
    }
    name.len() > dir.len() && name.starts_with(dir) && name[dir.len()] == b'/'
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(&[], |at| &path[..at])
}

/// What lies between two entries of an archive: the headers that the tar library reads for itself.
#[derive(Clone, Default)]
struct Headers(Rc<RefCell<Captured>>);

#[derive(Default)]
struct Captured {
    from: u64,
    bytes: Vec<u8>,
}

/// Most bytes of headers before one entry.
const HEADERS_LIMIT: usize = 8 << 20;

impl Headers {
    /// Nothing before `position` is needed any more.
    fn forget_before(&self, position: u64) {
        *self.0.borrow_mut() = Captured { from: position, bytes: Vec::new() };
    }

    /// The content of the PAX header before the header at `end`; empty if there is none.
    fn pax(&self, end: u64) -> Vec<u8> {
        let captured = self.0.borrow();
        let end = usize::try_from(end.saturating_sub(captured.from)).unwrap_or(usize::MAX).min(captured.bytes.len());
        let (mut at, mut found) = (0, Vec::new());
        while let Some(header) = captured.bytes[..end].get(at..at + 512) {
            let header = tar::Header::from_byte_slice(header);
            let size = header.entry_size().ok().and_then(|s| usize::try_from(s).ok()).unwrap_or(usize::MAX);
            let content = captured.bytes[..end].get(at + 512..(at + 512).saturating_add(size));
            if let (EntryType::XHeader, Some(content)) = (header.entry_type(), content) {
                found = content.to_vec();
            }
            at = (at + 512).saturating_add(size).div_ceil(512).saturating_mul(512);
        }
        found
    }
}

/// A reader that keeps what [`Headers`] may want.
struct Tap<R> {
    inner: R,
    position: u64,
    headers: Headers,
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let mut captured = self.headers.0.borrow_mut();
        let skip = usize::try_from(captured.from.saturating_sub(self.position)).unwrap_or(n).min(n);
        if captured.bytes.len() < HEADERS_LIMIT {
            captured.bytes.extend_from_slice(&buffer[skip..n]);
        }
        self.position += n as u64;
        Ok(n)
    }
}

/// One layer, before it is put on the layers below.
#[derive(Default)]
struct Layer {
    paths: Paths,
    whiteouts: BTreeSet<Vec<u8>>,
    opaque: BTreeSet<Vec<u8>>,
    /// Directories that exist only because something is below them.
    implied: BTreeSet<Vec<u8>>,
}

/// Puts the layer with these uncompressed `bytes` on top of `image`.
pub fn apply(image: &mut Paths, bytes: impl Read) -> Result<()> {
    let layer = read(bytes)?;
    for path in &layer.whiteouts {
        image.remove(path);
    }
    for path in &layer.opaque {
        image.remove_below(path);
    }
    let offset = image.nodes.len();
    image.nodes.extend(layer.paths.nodes.iter().cloned());
    for (path, number) in layer.paths.names {
        let is_directory = layer.paths.nodes[number].kind == Kind::Directory;
        let was_directory = image.get(&path).is_some_and(|n| n.kind == Kind::Directory);
        if is_directory && was_directory && layer.implied.contains(&path) {
            continue; // It keeps the attributes from below.
        }
        if !(is_directory && was_directory) {
            image.remove(&path);
        }
        image.names.insert(path, offset + number);
    }
    Ok(())
}

fn read(bytes: impl Read) -> Result<Layer> {
    let headers = Headers::default();
    let mut archive = tar::Archive::new(Tap { inner: bytes, position: 0, headers: headers.clone() });
    let mut layer = Layer::default();
    layer.imply(b"");
    for entry in archive.entries()? {
        let mut entry = entry?;
        let pax = headers.pax(entry.raw_header_position());
        let renamed = pax_records(&pax)?.into_iter().rev().find(|(key, _)| *key == b"GNU.sparse.name");
        let raw = renamed.map_or_else(|| entry.path_bytes().into_owned(), |(_, name)| name.to_vec());
        layer.entry(&mut entry, &pax, &raw).with_context(|| format!("entry {:?}", String::from_utf8_lossy(&raw)))?;
        let stored = match entry.header().entry_type() {
            EntryType::GNUSparse => entry.header().entry_size()?,
            _ => entry.size(),
        };
        headers.forget_before(entry.raw_file_position().saturating_add(stored.next_multiple_of(512)));
    }
    Ok(layer)
}

impl Layer {
    fn imply(&mut self, path: &[u8]) {
        if self.paths.get(path).is_some_and(|n| n.kind == Kind::Directory) {
            return;
        }
        if !path.is_empty() {
            self.imply(parent(path));
        }
        self.paths.remove(path);
        self.paths.insert(
            path.to_vec(),
            Node { kind: Kind::Directory, perm: 0o755, uid: 0, gid: 0, mtime: None, xattrs: BTreeMap::new() },
        );
        self.implied.insert(path.to_vec());
    }

    /// `raw` as a path from the root, symbolic links in its parents followed within this layer.
    fn resolve(&self, raw: &[u8]) -> Result<Vec<u8>> {
        let mut todo: Vec<Vec<u8>> = components(raw);
        todo.reverse();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                done.pop();
                continue;
            }
            done.push(name);
            let path = done.join(&b'/');
            if todo.is_empty() {
                continue;
            }
            if let Some(Node { kind: Kind::Symlink(target), .. }) = self.paths.get(&path) {
                links += 1;
                if links > 255 {
                    bail!("too many levels of symbolic links");
                }
                done.pop();
                if target.first() == Some(&b'/') {
                    done.clear();
                }
                todo.extend(components(target).into_iter().rev());
            }
        }
        Ok(done.join(&b'/'))
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, pax: &[u8], raw: &[u8]) -> Result<()> {
        let path = self.resolve(raw)?;
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
        let directory = parent(&path).to_vec();
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            if hidden == b".wh..opq" {
                self.imply(&directory);
                self.opaque.insert(directory);
            } else if !hidden.starts_with(b".wh.") {
                self.imply(&directory);
                let mut hidden_path = directory;
                if !hidden_path.is_empty() {
                    hidden_path.push(b'/');
                }
                hidden_path.extend_from_slice(hidden);
                self.whiteouts.insert(hidden_path);
            }
            return Ok(());
        }
        if !path.is_empty() {
            self.imply(&directory);
        }
        let kind = entry.header().entry_type();
        if kind == EntryType::Link {
            let target = entry.link_name_bytes().context("a hard link without target")?.into_owned();
            let target = self.resolve(&target)?;
            let number =
                *self.paths.names.get(&target).with_context(|| {
                    format!("links to {:?}, which this layer lacks", String::from_utf8_lossy(&target))
                })?;
            self.paths.remove(&path);
            // The link's own header sets the attributes of what it links to, as any entry's does.
            let described = attributes(entry, pax)?;
            let node = &mut self.paths.nodes[number];
            let kind = node.kind.clone();
            let mut xattrs = std::mem::take(&mut node.xattrs);
            xattrs.extend(described.xattrs.clone());
            *node = Node { kind, xattrs, ..described };
            self.paths.names.insert(path.clone(), number);
            self.whiteouts.remove(&path);
            return Ok(());
        }
        let Some(mut node) = node(entry, pax, kind)? else { return Ok(()) };
        let both_directories =
            node.kind == Kind::Directory && self.paths.get(&path).is_some_and(|n| n.kind == Kind::Directory);
        if both_directories {
            // A directory that is there already is kept, and so are xattrs that the new entry doesn't name.
            for (name, value) in self.paths.get(&path).map(|n| n.xattrs.clone()).unwrap_or_default() {
                node.xattrs.entry(name).or_insert(value);
            }
        } else {
            self.paths.remove(&path);
            self.opaque.retain(|o| o != &path && !is_below(o, &path));
        }
        self.whiteouts.remove(&path);
        self.implied.remove(&path);
        self.paths.insert(path, node);
        Ok(())
    }
}

fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").map(<[u8]>::to_vec).collect()
}

/// The inode that an entry describes; `None` for types that don't make one.
fn node<R: Read>(entry: &mut tar::Entry<'_, R>, pax: &[u8], kind: EntryType) -> Result<Option<Node>> {
    let header = entry.header();
    let numbers = || -> Result<(u32, u32)> {
        Ok((header.device_major()?.unwrap_or_default(), header.device_minor()?.unwrap_or_default()))
    };
    let made = match kind {
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => {
            Kind::Symlink(entry.link_name_bytes().context("a symbolic link without target")?.into_owned())
        }
        EntryType::Char => numbers().map(|(major, minor)| Kind::CharDevice(major, minor))?,
        EntryType::Block => numbers().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
        EntryType::Fifo => Kind::Fifo,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            match sparse::Map::read(&pax_records(pax)?, entry)? {
                Some(map) => map.contents(entry)?,
                None => contents(entry)?,
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(Node { kind: made, ..attributes(entry, pax)? }))
}

/// A file of all that `reader` gives.
fn contents(reader: &mut impl Read) -> Result<Kind> {
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0u64, vec![0; 1 << 16]);
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        size += n as u64;
    }
    Ok(Kind::File { size, sha256: Digest::from_bytes(hash.finalize().into()) })
}

/// The attributes that an entry gives, as those of a FIFO.
fn attributes<R: Read>(entry: &tar::Entry<'_, R>, pax: &[u8]) -> Result<Node> {
    let (mut mtime, mut uid, mut gid) = (None, None, None);
    let mut xattrs = BTreeMap::new();
    for (key, value) in pax_records(pax)? {
        match key {
            b"mtime" => mtime = Some(pax_time(value)?),
            b"uid" => uid = Some(decimal(value)?),
            b"gid" => gid = Some(decimal(value)?),
            key => {
                // containerd leaves out `trusted.`, which is for the host alone.
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.").filter(|n| !n.starts_with(b"trusted.")) {
                    xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
    }
    let header = entry.header();
    let uid = uid.map_or_else(|| header.uid(), Ok)?;
    let gid = gid.map_or_else(|| header.gid(), Ok)?;
    // A base-256 field may be negative; the library reads it as unsigned.
    let seconds = header.mtime()? as i64;
    Ok(Node {
        kind: Kind::Fifo,
        perm: header.mode()? & 0o7777,
        uid: u32::try_from(uid).context("owner out of range")?,
        gid: u32::try_from(gid).context("group out of range")?,
        // containerd takes times before 1970 for 1970 (archive/time.go, boundTime).
        mtime: Some(mtime.unwrap_or((seconds, 0)).max((0, 0))),
        xattrs,
    })
}

/// The records of a PAX header, `length key=value\n` (POSIX pax, "pax Extended Header"). The tar library takes a newline
/// for the end of a record, which binary xattrs may hold.
fn pax_records(mut pax: &[u8]) -> Result<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !pax.is_empty() {
        let space = pax.iter().position(|b| *b == b' ').context("a malformed PAX record")?;
        let length = usize::try_from(decimal(&pax[..space])?)?;
        let record =
            pax.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n")).context("a malformed PAX record")?;
        let equals = record.iter().position(|b| *b == b'=').context("a malformed PAX record")?;
        records.push((&record[..equals], &record[equals + 1..]));
        pax = &pax[length..];
    }
    Ok(records)
}

/// A decimal number of a PAX record.
pub fn decimal(value: &[u8]) -> Result<u64> {
    std::str::from_utf8(value)?.trim().parse().context("a PAX number")
}

/// A PAX time, `[-]seconds[.fraction]` (POSIX pax, "pax Header File Times"), rounded down to nanoseconds.
fn pax_time(value: &[u8]) -> Result<(i64, u32)> {
    let text = std::str::from_utf8(value)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().context("a PAX time")?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().context("a PAX time")?;
    Ok(match (negative, nanoseconds) {
        (true, 1..) => (seconds - 1, 1_000_000_000 - nanoseconds),
        _ => (seconds, nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, data) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_mtime(7);
            header.set_uid(0);
            header.set_gid(0);
            if matches!(kind, EntryType::Link | EntryType::Symlink) {
                header.set_size(0);
                let target = std::str::from_utf8(data).unwrap();
                builder.append_link(&mut header, path, target).unwrap();
            } else {
                header.set_size(data.len() as u64);
                builder.append_data(&mut header, path, *data).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    fn image(layers: &[Vec<u8>]) -> Paths {
        let mut paths = Paths::default();
        for bytes in layers {
            apply(&mut paths, &bytes[..]).unwrap();
        }
        paths
    }

    fn names(paths: &Paths) -> Vec<&str> {
        paths.names.keys().map(|k| std::str::from_utf8(k).unwrap()).collect()
    }

    #[test]
    fn whiteouts_and_opaque_directories_hide_only_what_is_below() {
        use EntryType::Regular;
        let below = layer(&[("a/x", Regular, b"1"), ("a/y", Regular, b"2"), ("b", Regular, b"3")]);
        let above = layer(&[("a/z", Regular, b"4"), ("a/.wh..wh..opq", Regular, b""), (".wh.b", Regular, b"")]);
        assert_eq!(names(&image(&[below, above])), ["", "a", "a/z"]);
    }

    #[test]
    fn files_become_directories_and_links_share_an_inode() {
        use EntryType::{Link, Regular, Symlink};
        let below = layer(&[("a", Regular, b"1"), ("l", Symlink, b"d")]);
        let above = layer(&[("a/b", Regular, b"2"), ("c", Link, b"a/b"), ("d/e", Regular, b"")]);
        let made = image(&[below, above]);
        assert_eq!(names(&made), ["", "a", "a/b", "c", "d", "d/e", "l"]);
        assert_eq!(made.names[&b"a/b"[..]], made.names[&b"c"[..]]);
    }

    #[test]
    fn pax_times_round_down() {
        assert_eq!(pax_time(b"12").unwrap(), (12, 0));
        assert_eq!(pax_time(b"1.5").unwrap(), (1, 500_000_000));
        assert_eq!(pax_time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert!(pax_time(b"x").is_err());
    }
}
