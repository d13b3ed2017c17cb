//! Where a repacked layer is cut: groups of frames on blocks of the device, frames where files begin.
use crate::parse::Parse;
use crate::span::BLOCK;
use crate::tar::Listed;
use std::collections::VecDeque;
use std::ops::Range;

/// Device bytes that become one span.
#[derive(Debug)]
pub struct Group {
    /// First device byte; a multiple of [`BLOCK`].
    pub device_offset: u64,
    /// The device bytes.
    pub bytes: Vec<u8>,
    /// The entries that are complete, or whose data begin, in this group, in the order of the archive.
    pub entries: Vec<Listed>,
    /// Files' data in this group, in order; none empty.
    pub pieces: Vec<Piece>,
    /// How its bytes were put together in the layer that they come from, if that is known.
    pub parse: Option<Parse>,
}

/// A part of a file's data within a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it is among the group's bytes.
    pub range: Range<usize>,
    /// Byte of the file's data at which it starts; 0 for the file's first piece.
    pub file_offset: u64,
    /// Whether the file's data end with it.
    pub last: bool,
}

/// Cuts a layer's device bytes into groups: of at most a span size, and of at least a quarter of one if a file begins
/// on a block of the device behind that, which among small files is nearly always so.
#[derive(Debug)]
pub struct Cutter {
    max: usize,
    min: usize,
    /// Device byte of the first byte that is held.
    start: u64,
    held: Vec<u8>,
    /// What is known of how these were put together; it may know of bytes that are about to be held, too.
    parse: Option<Parse>,
    /// Entries that no group has.
    entries: VecDeque<Listed>,
    /// The file that the last group ended in the middle of.
    open: Option<Range<u64>>,
}

impl Cutter {
    /// A cutter at the start of a layer. `span_size` is rounded down to whole blocks, and up to 64 KiB.
    pub fn new(span_size: u32) -> Self {
        let max = (span_size as usize).max(64 << 10) / BLOCK as usize * BLOCK as usize;
        Self { max, min: max / 4, start: 0, held: Vec::new(), parse: None, entries: VecDeque::new(), open: None }
    }

    /// Takes the next bytes of the layer, and all entries whose headers end in them; appends groups to `out`.
    pub fn push(&mut self, mut bytes: &[u8], entries: impl IntoIterator<Item = Listed>, out: &mut Vec<Group>) {
        self.entries.extend(entries);
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(self.max - self.held.len()));
            self.held.extend_from_slice(head);
            bytes = rest;
            if self.held.len() == self.max {
                let group = self.group(self.place());
                out.push(group);
            }
        }
    }

    /// Tells how the bytes were put together that are pushed next.
    pub fn learn(&mut self, parse: Parse) {
        match &mut self.parse {
            Some(known) => known.append(parse),
            // Of what is held already, nothing is known.
            none => {
                let mut known = Parse::default();
                known.literals(self.held.len());
                known.append(parse);
                *none = Some(known);
            }
        }
    }

    /// The layer has ended: appends the last group to `out`.
    pub fn finish(mut self, out: &mut Vec<Group>) {
        if !self.held.is_empty() || !self.entries.is_empty() {
            let group = self.group(self.held.len());
            out.push(group);
        }
    }

    /// Where to cut what is held: where the last file begins that lies on a block, or at its end.
    fn place(&self) -> usize {
        let begins = self.entries.iter().filter(|entry| !entry.data.is_empty()).map(|entry| entry.data.start);
        let within = begins.map(|at| at.saturating_sub(self.start)).take_while(|at| *at < self.max as u64);
        let fit = within.filter(|at| *at >= self.min as u64 && at % BLOCK == 0);
        fit.last().map_or(self.max, |at| at as usize)
    }

    /// The first `len` bytes that are held.
    fn group(&mut self, len: usize) -> Group {
        let rest = self.held.split_off(len);
        let bytes = std::mem::replace(&mut self.held, rest);
        let range = self.start..self.start + len as u64;
        self.start = range.end;
        let (mut entries, mut pieces) = (Vec::new(), Vec::new());
        let mut cut = |file: Range<u64>| {
            let (from, to) = (file.start.max(range.start), file.end.min(range.end));
            pieces.push(Piece {
                range: (from - range.start) as usize..(to - range.start) as usize,
                file_offset: from - file.start,
                last: file.end <= range.end,
            });
            (file.end > range.end).then_some(file)
        };
        self.open = self.open.take().and_then(&mut cut);
        while let Some(entry) = self.entries.front() {
            let data = entry.data.clone();
            if !data.is_empty() {
                if data.start >= range.end {
                    break;
                }
                self.open = cut(data);
            }
            entries.extend(self.entries.pop_front());
        }
        let parse = self.parse.take().map(|mut parse| {
            self.parse = Some(parse.split_off(len));
            parse
        });
        Group { device_offset: range.start, bytes, entries, pieces, parse }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: u32 = 64 << 10;

    fn file(name: &str, data: Range<u64>) -> Listed {
        Listed { kind: b'0', name: name.into(), data, ..Listed::default() }
    }

    /// Headers and files of the given sizes, as in a tar.
    fn layer(sizes: &[u64]) -> (Vec<u8>, Vec<Listed>) {
        let (mut at, mut entries) = (0, Vec::new());
        for (n, size) in sizes.iter().enumerate() {
            at += 512;
            entries.push(file(&n.to_string(), at..at + size));
            at += size.next_multiple_of(512);
        }
        let bytes = (0..at + 1024).map(|n| ((n * n) >> 9) as u8).collect();
        (bytes, entries)
    }

    fn cut(bytes: &[u8], entries: &[Listed], step: usize) -> Vec<Group> {
        let (mut cutter, mut groups, mut at, mut told) = (Cutter::new(SPAN), Vec::new(), 0, 0);
        for piece in bytes.chunks(step) {
            at += piece.len() as u64;
            let known = entries.iter().take_while(|entry| entry.data.start <= at).count();
            cutter.push(piece, entries[told..known].iter().cloned(), &mut groups);
            told = known;
        }
        cutter.finish(&mut groups);
        groups
    }

    #[test]
    fn groups_are_the_layer_and_start_on_blocks() {
        let sizes: Vec<u64> = (0..300).map(|n| n * 7919 % 5000).chain([200_000, 0, 1, 70_000, 4096]).collect();
        let (bytes, entries) = layer(&sizes);
        let mut shapes = Vec::new();
        for step in [512, 10_000, bytes.len()] {
            let groups = cut(&bytes, &entries, step);
            assert_eq!(groups.iter().flat_map(|group| group.bytes.clone()).collect::<Vec<_>>(), bytes);
            assert_eq!(groups.iter().flat_map(|group| group.entries.clone()).collect::<Vec<_>>(), entries);
            for group in &groups {
                assert_eq!(group.device_offset % BLOCK, 0);
                assert!(group.bytes.len() <= SPAN as usize);
            }
            for group in &groups[..groups.len() - 1] {
                assert!(group.bytes.len() >= SPAN as usize / 4, "{}", group.bytes.len());
            }
            shapes.push(groups.iter().map(|group| (group.device_offset, group.pieces.clone())).collect::<Vec<_>>());
        }
        assert!(shapes.iter().all(|shape| *shape == shapes[0]), "whatever the pieces in which it is pushed");
    }

    #[test]
    fn pieces_are_the_files_in_order() {
        let (bytes, entries) = layer(&[100, 0, 150_000, 65_536, 3]);
        let mut files = vec![Vec::new()];
        for group in cut(&bytes, &entries, 777) {
            for piece in group.pieces {
                let file = files.last_mut().unwrap();
                assert_eq!(piece.file_offset, file.len() as u64);
                file.extend_from_slice(&group.bytes[piece.range]);
                if piece.last {
                    files.push(Vec::new());
                }
            }
        }
        assert_eq!(files.pop(), Some(Vec::new()));
        let wanted = entries.iter().filter(|entry| !entry.data.is_empty());
        let wanted: Vec<_> = wanted.map(|e| bytes[e.data.start as usize..e.data.end as usize].to_vec()).collect();
        assert_eq!(files, wanted);
    }

    #[test]
    fn files_that_begin_on_blocks_are_not_cut_in_two() {
        // The first file ends where a header before a block fits; each next header and file make a block.
        let (bytes, entries) = layer(&[vec![3072], vec![3584; 60]].concat());
        let groups = cut(&bytes, &entries, 4096);
        assert!(groups.len() > 2);
        assert!(groups.iter().flat_map(|group| &group.pieces).all(|piece| piece.file_offset == 0 && piece.last));
    }
}
