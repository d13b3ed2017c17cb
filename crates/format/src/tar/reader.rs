//! The walker: an incremental tar reader that feeds entries to the layer's tree.
use super::error::{Problem, TarError, Warning};
use super::header::{BLOCK, Dialect, Header, kind, number, text};
use super::limits::Limits;
use super::listing::Listed;
use super::pax::Records;
use super::sparse::{Capture, DataMap, PaxSparse, Plan, Segment, map_in_records, old_gnu_entries};
use super::unpack::{Entry, Unpacker};
use crate::tree::{Content, FileData, InodeId, Tree};
use std::collections::VecDeque;

/// Walks one layer's uncompressed tar, in pieces of any size, and makes the layer's own [`Tree`].
///
/// Content is skipped, not copied. Memory is bounded by [`Limits`] whatever the bytes are.
#[derive(Debug)]
pub struct LayerWalker {
    limits: Limits,
    /// Bytes taken so far: the place in the device.
    offset: u64,
    /// Where the current entry's first header starts.
    entry_offset: u64,
    entries: u64,
    inline: u64,
    state: State,
    /// A block that arrives in pieces.
    partial: Partial,
    /// What extended headers said about the entry to come.
    pending: Pending,
    /// The name of the entry at hand, for errors.
    name: Option<Vec<u8>>,
    unpacker: Unpacker,
    /// Entries since they were last taken; `None` if nobody takes them.
    listing: Option<Vec<Listed>>,
    failed: Option<TarError>,
}

#[derive(Debug)]
enum State {
    /// A header block is due.
    Header,
    /// The block after a zero block is due.
    SecondZero,
    /// The data of an extended header: `left` bytes to come.
    Special { kind: u8, data: Vec<u8>, left: u64, padding: u64 },
    /// A block of a GNU sparse 1.0 map, at the start of the data.
    DataMap { file: Box<Sparse>, map: DataMap },
    /// An extension block of an old GNU sparse header.
    OldSparse { file: Box<Sparse>, segments: Vec<Segment> },
    /// File data: `left` bytes to come, some of them to be kept.
    Data { left: u64, padding: u64, captures: VecDeque<Capture>, inode: InodeId },
    /// Padding up to the next block. An archive may end in it.
    Padding { left: u64 },
    /// After the end marker; the rest is the device's but means nothing.
    End,
}

/// A sparse file whose map isn't known yet.
#[derive(Debug)]
struct Sparse {
    entry: Entry,
    /// Bytes of the file, holes and all.
    size: i64,
    /// Bytes of data in the archive from here on, and their padding.
    packed: u64,
    padding: u64,
    /// Bytes of map read so far.
    map_read: u64,
}

#[derive(Debug)]
struct Partial {
    block: [u8; BLOCK],
    len: usize,
}

#[derive(Debug, Default)]
struct Pending {
    pax: Option<Records>,
    name: Vec<u8>,
    link: Vec<u8>,
}

impl LayerWalker {
    /// A walker at the start of a layer.
    pub fn new(limits: Limits) -> Self {
        Self {
            offset: 0,
            entry_offset: 0,
            entries: 0,
            inline: 0,
            state: State::Header,
            partial: Partial { block: [0; BLOCK], len: 0 },
            pending: Pending::default(),
            name: None,
            unpacker: Unpacker::new(limits.clone()),
            listing: None,
            failed: None,
            limits,
        }
    }

    /// A walker that also lists the entries, for [`take_listed`](Self::take_listed).
    pub fn listing(limits: Limits) -> Self {
        Self { listing: Some(Vec::new()), ..Self::new(limits) }
    }

    /// The entries whose headers were complete since the last call, in the order of the archive.
    pub fn take_listed(&mut self) -> Vec<Listed> {
        self.listing.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes the next bytes of the layer.
    ///
    /// # Errors
    /// If the layer isn't a tar that can be unpacked, or goes beyond a limit; then it fails the same way ever after.
    pub fn push(&mut self, device_bytes: &[u8]) -> Result<(), TarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.advance(device_bytes).map_err(|problem| {
            let error = self.error(problem);
            self.failed = Some(error.clone());
            error
        })
    }

    /// What was dropped so far; the first few dozen.
    pub fn warnings(&self) -> &[Warning] {
        self.unpacker.warnings()
    }

    /// Ends the layer: its tree, over one device of as many bytes as were pushed.
    ///
    /// An archive without an end marker, or that ends in the padding of its last entry, is complete; one that ends
    /// inside an entry isn't.
    ///
    /// # Errors
    /// If the layer is truncated, or a push failed.
    pub fn finish(self) -> Result<Tree, TarError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let missing = match &self.state {
            State::Header | State::SecondZero => (BLOCK - self.partial.len) as u64 % BLOCK as u64,
            State::Special { left, .. } | State::Data { left, .. } => *left,
            State::DataMap { file, .. } => file.packed.saturating_sub(self.partial.len as u64),
            State::OldSparse { .. } => (BLOCK - self.partial.len) as u64,
            State::Padding { .. } | State::End => 0,
        };
        if missing > 0 {
            return Err(self.error(Problem::Truncated(missing)));
        }
        let size = self.offset;
        let mut tree = self.unpacker.finish();
        tree.device_sizes = vec![size];
        Ok(tree)
    }

    fn error(&self, problem: Problem) -> TarError {
        TarError { path: self.name.clone(), offset: self.entry_offset, problem }
    }

    fn advance(&mut self, mut bytes: &[u8]) -> Result<(), Problem> {
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                State::Header | State::SecondZero | State::DataMap { .. } | State::OldSparse { .. } => {
                    self.gather(bytes)?
                }
                State::Special { data, left, .. } => {
                    let taken = at_most(bytes.len(), *left);
                    data.extend_from_slice(&bytes[..taken]);
                    *left -= taken as u64;
                    self.offset += taken as u64;
                    if *left == 0 {
                        self.special()?;
                    }
                    taken
                }
                State::Data { left, padding, captures, inode } => {
                    let taken = at_most(bytes.len(), *left);
                    if !captures.is_empty() {
                        capture(captures, self.unpacker.inode_mut(*inode), self.offset, &bytes[..taken]);
                    }
                    *left -= taken as u64;
                    self.offset += taken as u64;
                    if *left == 0 {
                        self.state = padding_state(*padding);
                    }
                    taken
                }
                State::Padding { left } => {
                    let taken = at_most(bytes.len(), *left);
                    *left -= taken as u64;
                    self.offset += taken as u64;
                    if *left == 0 {
                        self.state = State::Header;
                    }
                    taken
                }
                State::End => {
                    self.offset += bytes.len() as u64;
                    bytes.len()
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Takes bytes towards a whole block, and deals with the block if that completes it.
    fn gather(&mut self, bytes: &[u8]) -> Result<usize, Problem> {
        if matches!(self.state, State::Header) && self.partial.len == 0 && self.pending.is_empty() {
            self.entry_offset = self.offset;
            self.name = None;
        }
        if self.partial.len == 0
            && let Some(block) = bytes.first_chunk::<BLOCK>()
        {
            self.offset += BLOCK as u64;
            self.block(block)?;
            return Ok(BLOCK);
        }
        let taken = bytes.len().min(BLOCK - self.partial.len);
        self.partial.block[self.partial.len..self.partial.len + taken].copy_from_slice(&bytes[..taken]);
        self.partial.len += taken;
        self.offset += taken as u64;
        if self.partial.len == BLOCK {
            let block = self.partial.block;
            self.partial.len = 0;
            self.block(&block)?;
        }
        Ok(taken)
    }

    fn block(&mut self, block: &[u8; BLOCK]) -> Result<(), Problem> {
        let zero = || block.iter().all(|b| *b == 0);
        match std::mem::replace(&mut self.state, State::Header) {
            State::SecondZero if zero() => self.state = State::End,
            State::SecondZero => return Err(Problem::LoneZeroBlock),
            State::DataMap { file, map } => self.data_map(block, file, map)?,
            State::OldSparse { file, segments } => self.old_sparse(block, file, segments)?,
            _ if block[0] == 0 && zero() => self.state = State::SecondZero,
            _ => self.header(block)?,
        }
        Ok(())
    }

    fn header(&mut self, block: &[u8; BLOCK]) -> Result<(), Problem> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Problem::Limit { what: "entries", limit: self.limits.entries });
        }
        let header = Header::parse(block)?;
        let size = data_size(header.kind, header.size)?;
        match header.kind {
            kind::PAX | kind::PAX_GLOBAL | kind::GNU_LONG_NAME | kind::GNU_LONG_LINK => {
                if size > self.limits.special {
                    return Err(Problem::Limit { what: "bytes of extended header", limit: self.limits.special });
                }
                if header.kind == kind::PAX_GLOBAL {
                    self.name = Some(header.name);
                }
                let padding = padding(size);
                self.state = State::Special { kind: header.kind, data: Vec::new(), left: size, padding };
                if size == 0 {
                    self.special()?;
                }
                Ok(())
            }
            _ => self.file(block, header),
        }
    }

    /// The data of an extended header is complete.
    fn special(&mut self) -> Result<(), Problem> {
        let State::Special { kind, data, padding, .. } = std::mem::replace(&mut self.state, State::Header) else {
            return Ok(());
        };
        self.state = padding_state(padding);
        match kind {
            kind::PAX => self.pending.pax = Some(Records::parse(&data)?),
            kind::PAX_GLOBAL => {
                // Go hands it out as an entry of its own, and what came before it is forgotten. containerd then
                // makes its parents and removes what has its name, and that is all.
                let records = Records::parse(&data)?;
                self.pending = Pending::default();
                let written = self.name.clone().unwrap_or_default();
                let name = records.get("path").map_or(written, <[u8]>::to_vec);
                self.unpacker.apply(Entry { kind, name, ..Entry::default() })?;
            }
            kind::GNU_LONG_NAME => self.pending.name = text(&data).to_vec(),
            _ => self.pending.link = text(&data).to_vec(),
        }
        Ok(())
    }

    /// An entry proper.
    fn file(&mut self, block: &[u8; BLOCK], header: Header) -> Result<(), Problem> {
        let pending = std::mem::take(&mut self.pending);
        let pax = pending.pax.unwrap_or_default();
        let owned = |key: &str| pax.get(key).map(<[u8]>::to_vec);
        let mut entry = Entry {
            kind: header.kind,
            name: owned("path").unwrap_or(header.name),
            link: owned("linkpath").unwrap_or(header.link),
            mode: header.mode,
            uid: header.uid,
            gid: header.gid,
            mtime: (header.mtime, 0),
            major: header.major,
            minor: header.minor,
            data: FileData::default(),
            xattrs: pax.xattrs().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
        };
        if !pending.name.is_empty() {
            entry.name = pending.name;
        }
        if !pending.link.is_empty() {
            entry.link = pending.link;
        }
        self.name = Some(entry.name.clone());
        entry.uid = pax.number("uid")?.unwrap_or(entry.uid);
        entry.gid = pax.number("gid")?.unwrap_or(entry.gid);
        entry.mtime = pax.time("mtime")?.unwrap_or(entry.mtime);
        for unused in ["atime", "ctime"] {
            pax.time(unused)?;
        }
        let mut size = pax.number("size")?.unwrap_or(header.size);
        if entry.kind == kind::REGULAR_V7 {
            entry.kind = if entry.name.ends_with(b"/") { kind::DIRECTORY } else { kind::REGULAR };
        }
        let packed = data_size(entry.kind, size)?;
        let padding = padding(packed);
        if entry.kind == kind::GNU_SPARSE {
            if header.dialect != Dialect::Gnu {
                return Err(Problem::Sparse("type 'S' in an archive that isn't GNU's"));
            }
            size = number(&block[483..495], "real size")?;
            let mut segments = Vec::new();
            let extended = old_gnu_entries(&block[386..483], &mut segments)?;
            let file = Box::new(Sparse { entry, size, packed, padding, map_read: 0 });
            if extended {
                self.state = State::OldSparse { file, segments };
                return Ok(());
            }
            return self.sparse(*file, &segments);
        }
        let Some(convention) = PaxSparse::of(&pax) else {
            return self.plain(entry, packed);
        };
        if let Some(name) = owned("GNU.sparse.name") {
            self.name = Some(name.clone());
            entry.name = name;
        }
        size = match pax.number("GNU.sparse.size")? {
            Some(size) => size,
            None => pax.number("GNU.sparse.realsize")?.unwrap_or(size),
        };
        if Header::is_header_only(entry.kind) {
            return Err(Problem::Sparse("only regular files can be"));
        }
        let file = Box::new(Sparse { entry, size, packed, padding, map_read: 0 });
        match convention {
            PaxSparse::InRecords => self.sparse(*file, &map_in_records(&pax)?),
            PaxSparse::InData => {
                self.check_map(0, packed)?;
                self.state = State::DataMap { file, map: DataMap::default() };
                Ok(())
            }
        }
    }

    fn plain(&mut self, mut entry: Entry, size: u64) -> Result<(), Problem> {
        if size > 0 {
            entry.data = FileData::whole(size, 1, self.offset);
        }
        self.list(&entry, size, false);
        self.unpacker.apply(entry)?;
        self.skip(size, padding(size))
    }

    fn list(&mut self, entry: &Entry, size: u64, sparse: bool) {
        let data = self.offset..self.offset.saturating_add(size);
        if let Some(listing) = &mut self.listing {
            listing.push(Listed {
                kind: entry.kind,
                name: entry.name.clone(),
                link: entry.link.clone(),
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                mtime: entry.mtime,
                major: entry.major,
                minor: entry.minor,
                xattrs: entry.xattrs.clone(),
                data,
                sparse,
            });
        }
    }

    fn sparse(&mut self, file: Sparse, segments: &[Segment]) -> Result<(), Problem> {
        let Sparse { mut entry, size, packed, padding, .. } = file;
        let room = self.limits.inline - self.inline;
        let plan =
            Plan::new(segments, size, self.offset, packed, room).map_err(|problem| self.inline_limit(problem, room))?;
        self.inline += plan.inline;
        entry.data = plan.data;
        self.list(&entry, packed, true);
        let inode = self.unpacker.apply(entry)?;
        self.skip(packed, padding)?;
        if let (State::Data { captures, inode: into, .. }, Some(inode)) = (&mut self.state, inode) {
            *captures = plan.captures.into();
            *into = inode;
        }
        Ok(())
    }

    /// Names the limit itself where what was left of it didn't suffice.
    fn inline_limit(&self, problem: Problem, room: u64) -> Problem {
        match problem {
            Problem::Limit { what, limit } if limit == room => Problem::Limit { what, limit: self.limits.inline },
            other => other,
        }
    }

    /// Data of `size` bytes and its padding follow.
    fn skip(&mut self, size: u64, padding: u64) -> Result<(), Problem> {
        self.offset.checked_add(size).ok_or(Problem::Number("size"))?;
        self.state = if size > 0 {
            State::Data { left: size, padding, captures: VecDeque::new(), inode: 0 }
        } else {
            padding_state(padding)
        };
        Ok(())
    }

    fn data_map(&mut self, block: &[u8; BLOCK], mut file: Box<Sparse>, mut map: DataMap) -> Result<(), Problem> {
        file.map_read += BLOCK as u64;
        file.packed = file.packed.saturating_sub(BLOCK as u64);
        if map.block(block)? {
            return self.sparse(*file, &map.segments());
        }
        self.check_map(file.map_read, file.packed)?;
        self.state = State::DataMap { file, map };
        Ok(())
    }

    fn old_sparse(
        &mut self,
        block: &[u8; BLOCK],
        mut file: Box<Sparse>,
        mut segments: Vec<Segment>,
    ) -> Result<(), Problem> {
        file.map_read += BLOCK as u64;
        if !old_gnu_entries(&block[..505], &mut segments)? {
            return self.sparse(*file, &segments);
        }
        self.check_map(file.map_read, BLOCK as u64)?;
        self.state = State::OldSparse { file, segments };
        Ok(())
    }

    /// Whether another block of a sparse map may follow.
    fn check_map(&self, read: u64, left: u64) -> Result<(), Problem> {
        if left < BLOCK as u64 {
            return Err(Problem::Sparse("the map goes beyond the data"));
        }
        if read >= self.limits.sparse_map {
            return Err(Problem::Limit { what: "bytes of sparse map", limit: self.limits.sparse_map });
        }
        Ok(())
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.name.is_empty() && self.link.is_empty()
    }
}

fn at_most(have: usize, want: u64) -> usize {
    usize::try_from(want).map_or(have, |want| want.min(have))
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn padding_state(left: u64) -> State {
    if left > 0 { State::Padding { left } } else { State::Header }
}

/// Bytes of data that follow a header.
fn data_size(kind: u8, size: i64) -> Result<u64, Problem> {
    if Header::is_header_only(kind) {
        return Ok(0);
    }
    u64::try_from(size).map_err(|_| Problem::Number("size"))
}

/// Copies what of `bytes`, which start at `offset` of the device, belongs into inline extents.
fn capture(captures: &mut VecDeque<Capture>, inode: &mut crate::tree::Inode, offset: u64, bytes: &[u8]) {
    let Content::File(data) = &mut inode.content else { return };
    let end = offset + bytes.len() as u64;
    while let Some(piece) = captures.front_mut().filter(|piece| piece.start < end) {
        // The pieces come in archive order, and none starts before the bytes at hand.
        let from = (piece.start - offset) as usize;
        let taken = piece.len.min(bytes.len() - from);
        if let Some(kept) = data.inline_mut(piece.extent) {
            kept[piece.at..piece.at + taken].copy_from_slice(&bytes[from..from + taken]);
        }
        piece.start += taken as u64;
        piece.at += taken;
        piece.len -= taken;
        if piece.len > 0 {
            break;
        }
        captures.pop_front();
    }
}
