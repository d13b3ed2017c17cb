//! The places between blocks at which spans may start, what the blocks around them refer to, and the spans that were chosen
//! (chooser.rs says how) and not yet cut off.

use super::{
    frame::{BlockHeader, FrameHeader},
    parser::{Origin, Parser, State, Use, Uses},
    sequences::Reference,
};
use crate::span::BLOCK;
use std::collections::VecDeque;

/// What a span costs besides window bytes: its digest, its place in the span table, the tables of its checkpoint.
pub(super) const FIXED_COST: u64 = 200;
/// The same for a span that starts with a frame.
pub(super) const FRAME_COST: u64 = 50;
/// What a byte that is referred to costs at first, in parts of [`RATE`]; then as what it has cost shows.
const FIRST_RATE: u64 = 300;
pub(super) const RATE: u64 = 1024;

/// A place in the blob, and in its frames alone: what lies between frames isn't kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Byte of the blob.
    pub blob: u64,
    /// Bytes of frames before it.
    pub kept: u64,
}

/// A place between two blocks, at which a span may start.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Device byte that the block after it starts with.
    pub at: u64,
    /// First device byte of a span that starts here.
    pub device: u64,
    /// Where decoding starts: at a block, or with a frame.
    pub source: Place,
    /// Whether a frame starts here.
    pub fresh: bool,
    /// The frame: its number, the device byte it starts with, and what its header says.
    pub frame: u64,
    pub frame_at: u64,
    pub header: FrameHeader,
    /// What a decoder knows here.
    pub state: State,
    /// After all that a span needs that ends before `device`.
    pub end: Option<Place>,
    /// What the blocks up to the next mark do first with the tables.
    pub uses: Uses,
    /// Where the references of these blocks begin.
    pub references: usize,
    /// Bytes before the span at hand that its blocks up to here refer to, counted each time.
    pub(super) crossing: u64,
}

/// A span that was chosen, which may still be joined to the one before it; or, the last of them, the span at hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Laid {
    /// The mark that it starts at.
    pub start: usize,
    /// Bytes that its checkpoint will have, about, once it is known where it ends.
    pub cost: u64,
}

/// Goes through blocks and chooses where spans start.
pub struct Planner {
    parser: Parser,
    pub(super) least: u64,
    /// Places from the start of the first span on that wasn't cut off.
    pub(super) marks: VecDeque<Mark>,
    /// The references of all blocks from there on.
    pub(super) references: Vec<Reference>,
    /// The spans from there on; there is always one at hand.
    pub(super) laid: Vec<Laid>,
    /// Bytes before the span at hand that its blocks refer to.
    pub(super) crossing: u64,
    /// The first place at which the span at hand has earned its checkpoint, if it is known; else the last that was tried.
    pub(super) earned: Option<usize>,
    pub(super) tried: usize,
    /// The span at hand may not end before this byte of the blob, and is looked at again when it goes up to that one.
    pub(super) unpaid: u64,
    pub(super) look: u64,
    /// What a byte referred to costs, in parts of [`RATE`].
    pub(super) rate: u64,
    /// What all checkpoints have cost of spans that were cut off, and the byte of the blob at which the first span starts.
    pub(super) spent: u64,
    pub(super) begun: Option<u64>,
    /// Bytes before the span that was cut off last that its blocks refer to.
    until: u64,
    /// Device byte after the last block.
    pub(super) at: u64,
    /// The frame at hand: its number, its first device byte, its header.
    frame: u64,
    frame_at: u64,
    header: FrameHeader,
    /// After the last block, or the frame's end.
    pub(super) done: Place,
}

impl Planner {
    /// A planner before a frame at the device byte `at`, of spans of at least `least` bytes.
    pub fn new(at: u64, least: u64) -> Self {
        Self {
            parser: Parser::new(),
            least,
            marks: VecDeque::new(),
            references: Vec::new(),
            laid: vec![Laid { start: 0, cost: 0 }],
            crossing: 0,
            earned: None,
            tried: 0,
            unpaid: 0,
            look: 0,
            rate: FIRST_RATE,
            spent: 0,
            begun: None,
            until: 0,
            at,
            frame: 0,
            frame_at: at,
            header: FrameHeader { len: 0, window: 0, content_size: None, dictionary: 0, checksum: false },
            done: Place::default(),
        }
    }

    /// Where the first span starts that wasn't cut off.
    pub fn start(&self) -> Option<&Mark> {
        self.marks.front()
    }

    /// The mark of this number.
    pub fn mark(&self, number: usize) -> Option<&Mark> {
        self.marks.get(number)
    }

    /// Device byte after the last block.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Bytes of the frame at hand.
    pub fn frame_len(&self) -> u64 {
        self.parser.len()
    }

    /// A frame starts at `source`. The very first span starts at the device byte `device`.
    pub fn start_frame(&mut self, frame: u64, header: FrameHeader, source: Place, device: Option<u64>) {
        self.parser.start(&header);
        (self.frame, self.frame_at, self.header) = (frame, self.at, header);
        self.begun.get_or_insert(source.blob);
        self.note(source, true);
        if let Some(device) = device
            && let Some(first) = self.marks.front_mut()
        {
            first.device = device;
        }
    }

    /// The frame has ended; what follows its blocks goes up to `end`.
    pub fn end_frame(&mut self, end: Place) {
        self.done = end;
    }

    /// Goes through a block that lies from `source` to `end`, which is the frame's first or isn't.
    pub fn block(
        &mut self,
        header: BlockHeader,
        body: &[u8],
        (source, end): (Place, Place),
        first: bool,
    ) -> Result<(), &'static str> {
        if !first {
            self.note(source, false);
        }
        let before = self.references.len();
        let (at, references) = (self.at, &mut self.references);
        let parsed = self.parser.block(header, body, |found| references.extend(Reference::of(found, at)))?;
        self.at += u64::from(parsed.len);
        self.done = end;
        let start = self.marks.get(self.hand()).map_or(0, |mark| mark.at);
        self.crossing += crossing(&self.references[before..], start);
        if let Some(mark) = self.marks.back_mut() {
            mark.uses = mark.uses.then(parsed.uses);
        }
        for mark in self.marks.iter_mut().rev().take_while(|mark| mark.end.is_none()) {
            if mark.device <= self.at {
                mark.end = Some(end);
            }
        }
        Ok(())
    }

    /// Notes a place. Of several with the same first device byte one counts: a frame's start, else the last.
    fn note(&mut self, source: Place, fresh: bool) {
        let device = self.at.next_multiple_of(BLOCK);
        let mut new = Mark {
            at: self.at,
            device,
            source,
            fresh,
            frame: self.frame,
            frame_at: self.frame_at,
            header: self.header,
            state: self.parser.state().clone(),
            end: (device == self.at).then_some(self.done),
            uses: if fresh { Uses::REPLACED } else { Uses::default() },
            references: self.references.len(),
            crossing: self.crossing,
        };
        let (number, hand) = (self.marks.len(), self.hand());
        match self.marks.back_mut() {
            Some(last) if last.device >= device && (number == hand + 1 || last.fresh && !fresh) => {
                last.uses = last.uses.then(new.uses);
            }
            Some(last) if last.device >= device => {
                // The blocks since are those of the place before.
                let uses = last.uses;
                new.end = last.end.or(new.end);
                *last = new;
                if let Some(before) = self.marks.get_mut(number - 2) {
                    before.uses = before.uses.then(uses);
                }
            }
            _ => self.marks.push_back(new),
        }
    }

    /// What the first span, from its start to mark `number` or the end of what is known, refers to.
    pub fn references(&self, number: Option<usize>) -> &[Reference] {
        &self.references[..self.end_of(number)]
    }

    /// The marks of the first span, up to mark `number` or the end of what is known, both included.
    pub fn marks(&self, number: Option<usize>) -> Vec<&Mark> {
        self.marks.iter().take(number.map_or(self.marks.len(), |number| number + 1)).collect()
    }

    /// Where the first span, up to mark `number` or the end of what is known, ends: in the device, and in the blob.
    pub fn end(&self, number: Option<usize>) -> (u64, Place) {
        let mark = number.and_then(|number| self.marks.get(number));
        mark.and_then(|mark| Some((mark.device, mark.end?))).unwrap_or((self.at, self.done))
    }

    /// Cuts the first span off at mark `number`, or with what is known. Gives what its blocks refer to; call
    /// [`Planner::spent`] once its checkpoint has been made.
    pub fn cut(&mut self, number: Option<usize>) -> Vec<Reference> {
        let marks = number.unwrap_or(self.marks.len());
        self.until = self.crossing_of(0, number);
        let (end, from) = (self.end_of(number), self.start_of(marks));
        let rest = self.references[from..].to_vec();
        let mut references = std::mem::replace(&mut self.references, rest);
        references.truncate(end);
        self.marks.drain(..marks);
        self.marks.iter_mut().for_each(|mark| mark.references -= from);
        self.laid.remove(0);
        if self.laid.is_empty() {
            self.laid.push(Laid { start: 0, cost: 0 });
            self.rebase();
        } else {
            self.laid.iter_mut().for_each(|span| span.start -= marks);
            self.earned = self.earned.map(|earned| earned - marks);
            self.tried -= marks;
        }
        references
    }

    /// The mark that the span at hand starts at.
    pub(super) fn hand(&self) -> usize {
        self.laid.last().map_or(0, |span| span.start)
    }

    /// The span at hand starts elsewhere from now on.
    pub(super) fn rebase(&mut self) {
        let hand = self.hand();
        (self.earned, self.tried, self.unpaid, self.look, self.crossing) = (None, hand, 0, 0, 0);
        let Some(start) = self.marks.get(hand).map(|mark| mark.at) else { return };
        for number in hand..self.marks.len() {
            self.marks[number].crossing = self.crossing;
            let these = self.marks[number].references..self.start_of(number + 1);
            self.crossing += crossing(&self.references[these], start);
        }
    }

    /// Bytes before mark `start` that the blocks from there up to mark `end`, or to the end of what is known, refer to.
    pub(super) fn crossing_of(&self, start: usize, end: Option<usize>) -> u64 {
        let end = end.map_or(self.references.len(), |end| self.start_of(end));
        self.marks.get(start).map_or(0, |mark| crossing(&self.references[mark.references..end], mark.at))
    }

    /// The checkpoint of the span that was cut off last has so many bytes; or it has none.
    pub fn spent(&mut self, checkpoint: Option<usize>) {
        self.spent += checkpoint.map_or(FRAME_COST, |cost| cost as u64);
        if let Some(cost) = checkpoint
            && self.until > 0
        {
            self.rate = ((self.rate * 3 + rate(cost as u64, self.until)) / 4).clamp(1, RATE);
        }
    }

    /// Where the references of the blocks from mark `number` on begin.
    pub(super) fn start_of(&self, number: usize) -> usize {
        self.marks.get(number).map_or(self.references.len(), |mark| mark.references)
    }

    /// Where those of a span up to mark `number` end: the blocks after it count, since a border lies in one of them.
    fn end_of(&self, number: Option<usize>) -> usize {
        number.map_or(self.references.len(), |number| self.start_of(number + 1))
    }
}

impl Mark {
    /// Whether a dictionary can hold what blocks with these uses need.
    pub fn can_start(&self, after: Uses) -> bool {
        let [_, rest @ ..] = after.0;
        self.fresh
            || self.state.tables.iter().zip(rest).all(|(table, first)| match table {
                // Without bits for its first state, which no table in a dictionary can do without.
                Origin::Single => first == Use::Replaced,
                Origin::Missing | Origin::Predefined | Origin::Described(_) => true,
            })
    }
}

/// What each of `crossing` bytes that are referred to has cost, in parts of [`RATE`].
pub(super) fn rate(cost: u64, crossing: u64) -> u64 {
    (cost.saturating_sub(FIXED_COST) * RATE / crossing.max(1)).min(RATE)
}

/// Bytes before `start` that are referred to, counted each time.
pub fn crossing(references: &[Reference], start: u64) -> u64 {
    references.iter().map(|reference| start.saturating_sub(reference.from()).min(reference.len())).sum()
}
