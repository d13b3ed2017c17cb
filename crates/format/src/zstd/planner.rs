//! Where to start spans inside frames: between which blocks, so that what a checkpoint keeps costs little of the source
//! bytes that it makes readable.

use super::{
    MAX_SPAN, MAX_SPAN_SOURCE,
    frame::{BlockHeader, FrameHeader},
    parser::{Origin, Parser, State, Use, Uses},
    sequences::Reference,
};
use crate::span::BLOCK;
use std::collections::VecDeque;

/// A span ends when its own checkpoint is worth this part of its source bytes,
const WORTH: u64 = 40;
/// and all checkpoints so far this part of all source bytes so far.
const ALL_WORTH: u64 = 50;
/// Spans of so many device bytes may also end for [`TRIFLE`], however few their source bytes are: of a file of zeros, say.
const LONG: u64 = 32 << 20;
const TRIFLE: u64 = 1024;
/// What a span costs besides window bytes: its digest, its place in the span table, the tables of its checkpoint.
const FIXED_COST: u64 = 200;
/// The same for a span that starts with a frame.
const FRAME_COST: u64 = 50;
/// A span may go on for one half of its length to find a cheaper end.
const SEARCH: u64 = 2;
/// Device bytes after a place from which references across it count, when places are compared.
const LOOK: u64 = 1 << 20;
/// Places are compared in cells of so many device bytes, as a power of two.
const CELL: u32 = 13;
/// A span is cut anyhow when so many source bytes have come.
const MOST_SOURCE: u64 = MAX_SPAN_SOURCE as u64 * 3 / 4;
/// What a byte that is referred to costs at first, in parts of [`RATE`]; then as what it has cost shows.
const FIRST_RATE: u64 = 300;
const RATE: u64 = 1024;

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
    /// Bytes before the span at hand that all blocks up to here refer to, counted each time.
    crossing: u64,
}

/// Goes through blocks and chooses where spans start.
pub struct Planner {
    parser: Parser,
    least: u64,
    /// Places from the start of the span at hand on.
    marks: VecDeque<Mark>,
    /// The references of all blocks from there on.
    references: Vec<Reference>,
    /// Bytes before the span at hand that they refer to.
    crossing: u64,
    /// The first place at which the span at hand has earned its checkpoint, if it is known; else how many were tried.
    earned: Option<usize>,
    tried: usize,
    /// What a byte referred to costs, in parts of [`RATE`].
    rate: u64,
    /// What all checkpoints before that of the span at hand have cost, and the byte of the blob at which the first span
    /// starts.
    spent: u64,
    begun: Option<u64>,
    /// Bytes before the span that was cut off last that its blocks refer to.
    until: u64,
    /// Device byte after the last block.
    at: u64,
    /// The frame at hand: its number, its first device byte, its header.
    frame: u64,
    frame_at: u64,
    header: FrameHeader,
    /// After the last block, or the frame's end.
    done: Place,
}

impl Planner {
    /// A planner before a frame at the device byte `at`, of spans of at least `least` bytes.
    pub fn new(at: u64, least: u64) -> Self {
        Self {
            parser: Parser::new(),
            least,
            marks: VecDeque::new(),
            references: Vec::new(),
            crossing: 0,
            earned: None,
            tried: 0,
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

    /// Where the span at hand starts.
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

    /// A frame starts at `source`. The span at hand, if it is the first, starts at the device byte `device`.
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
        let start = self.marks.front().map_or(0, |mark| mark.at);
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
        let number = self.marks.len();
        match self.marks.back_mut() {
            Some(last) if last.device >= device && (number == 1 || last.fresh && !fresh) => {
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

    /// What the span at hand, from its start to mark `number` or the end of what is known, refers to.
    pub fn references(&self, number: Option<usize>) -> &[Reference] {
        &self.references[..self.end_of(number)]
    }

    /// The marks of the span at hand, up to mark `number` or the end of what is known, both included.
    pub fn marks(&self, number: Option<usize>) -> Vec<&Mark> {
        self.marks.iter().take(number.map_or(self.marks.len(), |number| number + 1)).collect()
    }

    /// Where the span at hand, up to mark `number` or the end of what is known, ends: in the device, and in the blob.
    pub fn end(&self, number: Option<usize>) -> (u64, Place) {
        let mark = number.and_then(|number| self.marks.get(number));
        mark.and_then(|mark| Some((mark.device, mark.end?))).unwrap_or((self.at, self.done))
    }

    /// Where to cut, if that can be told; `ended` says that there is nothing more.
    pub fn choose(&mut self, ended: bool) -> Choice {
        let Some(start) = self.marks.front() else { return Choice::None };
        let (from, source) = (start.device, start.source.blob);
        if self.at <= from {
            let long = self.done.blob.saturating_sub(source) > MAX_SPAN_SOURCE.into();
            return if long { Choice::TooLong } else { Choice::None };
        }
        while self.earned.is_none()
            && let Some(mark) = self.marks.get(self.tried + 1)
            && let Some(end) = mark.end
        {
            self.tried += 1;
            let (len, cost) = (mark.device - from, self.cost(mark.crossing));
            let all = end.blob - self.begun.unwrap_or(source);
            let worth = cost * WORTH <= end.blob - source && (self.spent + cost) * ALL_WORTH <= all;
            if len >= self.least && (worth || len >= LONG && cost <= TRIFLE) {
                self.earned = Some(self.tried);
            }
        }
        let longest = u64::from(MAX_SPAN);
        let full = self.at - from >= longest || self.done.blob - source >= MOST_SOURCE;
        let (first, reach) = match self.earned {
            Some(earned) => {
                let len = self.marks[earned].device - from;
                let reach = (len + len / SEARCH).min(longest);
                if !ended && !full && self.at - from < reach + LOOK {
                    return Choice::None;
                }
                if ended && self.at - from <= reach {
                    return self.whole();
                }
                (earned, reach)
            }
            None if full => {
                // Where most of the length is used up, as it costs what it may.
                let used = |mark: &Mark| (mark.device - from) * 2 >= (self.at - from).min(longest);
                (self.marks.iter().position(used).unwrap_or_default().max(1), longest)
            }
            None if ended => return self.whole(),
            None => return Choice::None,
        };
        let anywhere = || self.cheapest(1, from + longest, source).filter(|_| full || ended);
        match self.cheapest(first, from + reach, source).or_else(anywhere) {
            Some(number) => Choice::Cut(number),
            None if ended && self.at - from <= longest => self.whole(),
            None if full => Choice::TooLong,
            None => {
                // There was no place to start at. Look on.
                self.earned = None;
                Choice::None
            }
        }
    }

    fn whole(&self) -> Choice {
        match self.start() {
            Some(start) if self.done.blob - start.source.blob > MAX_SPAN_SOURCE.into() => Choice::TooLong,
            _ => Choice::Rest,
        }
    }

    /// What a start costs across which so many bytes are referred to.
    fn cost(&self, crossing: u64) -> u64 {
        match self.marks.front() {
            Some(start) if start.fresh => FRAME_COST,
            _ => FIXED_COST + crossing * self.rate / RATE,
        }
    }

    /// Of the marks from `first` to the device byte `reach` the one to start at that costs least for each byte of the
    /// span before it; of equal ones the last.
    fn cheapest(&self, first: usize, reach: u64, source: u64) -> Option<usize> {
        let from = self.marks.front()?.device;
        let base = self.marks.get(first)?.at;
        let across = self.across(first, base, reach);
        let mut after = Uses::default();
        let mut best: Option<(u64, u64, usize)> = None;
        for (number, mark) in self.marks.iter().enumerate().skip(first).rev() {
            after = mark.uses.then(after);
            let Some(end) = mark.end else { continue };
            let possible = mark.device <= reach && mark.device < self.at && end.blob - source <= MAX_SPAN_SOURCE.into();
            if !possible || !mark.can_start(after) {
                continue;
            }
            let cost = match mark.fresh {
                true => FRAME_COST,
                false => FIXED_COST + across.get(cell(mark.at - base)).copied().unwrap_or_default() * self.rate / RATE,
            };
            let len = mark.device - from;
            if best.is_none_or(|(least, of, _)| cost * of < least * len) {
                best = Some((cost, len, number));
            }
        }
        best.map(|(_, _, number)| number)
    }

    /// For each cell from the device byte `base`, which is that of mark `first`, how many bytes before it blocks refer to
    /// that begin in it or within the next [`LOOK`] bytes.
    fn across(&self, first: usize, base: u64, reach: u64) -> Vec<u64> {
        let cells = cell(reach.saturating_sub(base)) + 2;
        let mut changes = vec![0i64; cells + 1];
        for (number, mark) in self.marks.iter().enumerate().skip(first) {
            let references =
                mark.references..self.marks.get(number + 1).map_or(self.references.len(), |m| m.references);
            let low = mark.at.saturating_sub(LOOK).max(base);
            let high = cell(mark.at - base).min(cells);
            for reference in &self.references[references] {
                let low = cell(reference.from().max(low) - base).min(high);
                changes[low] += reference.len() as i64;
                changes[high] -= reference.len() as i64;
            }
        }
        let sums = changes.iter().scan(0, |sum, change| {
            let before = *sum;
            *sum += change;
            Some(before as u64)
        });
        sums.collect()
    }

    /// Cuts the span at hand off at mark `number`, or with what is known. Gives what its blocks refer to; call
    /// [`Planner::spent`] once its checkpoint has been made.
    pub fn cut(&mut self, number: Option<usize>) -> Vec<Reference> {
        let marks = number.unwrap_or(self.marks.len());
        self.until = number.and_then(|number| self.marks.get(number)).map_or(self.crossing, |mark| mark.crossing);
        let (end, from) = (self.end_of(number), self.start_of(marks));
        let rest = self.references[from..].to_vec();
        let mut references = std::mem::replace(&mut self.references, rest);
        references.truncate(end);
        self.marks.drain(..marks);
        (self.earned, self.tried, self.crossing) = (None, 0, 0);
        if let Some(start) = self.marks.front().map(|mark| mark.at) {
            self.marks.iter_mut().for_each(|mark| mark.references -= from);
            for number in 0..self.marks.len() {
                self.marks[number].crossing = self.crossing;
                let these = self.marks[number].references..self.start_of(number + 1);
                self.crossing += crossing(&self.references[these], start);
            }
        }
        references
    }

    /// The checkpoint of the span that was cut off last has so many bytes; or it has none.
    pub fn spent(&mut self, checkpoint: Option<usize>) {
        self.spent += checkpoint.map_or(FRAME_COST, |cost| cost as u64);
        if let Some(cost) = checkpoint
            && self.until > 0
        {
            let rate = (cost as u64).saturating_sub(FIXED_COST) * RATE / self.until;
            self.rate = ((self.rate * 3 + rate) / 4).clamp(1, RATE);
        }
    }

    /// Where the references of the blocks from mark `number` on begin.
    fn start_of(&self, number: usize) -> usize {
        self.marks.get(number).map_or(self.references.len(), |mark| mark.references)
    }

    /// Where those of a span up to mark `number` end: the blocks after it count, since a border lies in one of them.
    fn end_of(&self, number: Option<usize>) -> usize {
        number.map_or(self.references.len(), |number| self.start_of(number + 1))
    }
}

/// What [`Planner::choose`] has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Nothing yet.
    None,
    /// The span at hand ends at this mark.
    Cut(usize),
    /// It ends with what is known.
    Rest,
    /// It is too long, and can be cut nowhere.
    TooLong,
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

fn cell(distance: u64) -> usize {
    (distance >> CELL) as usize
}

/// Bytes before `start` that are referred to, counted each time.
pub fn crossing(references: &[Reference], start: u64) -> u64 {
    references.iter().map(|reference| start.saturating_sub(reference.from()).min(reference.len())).sum()
}
