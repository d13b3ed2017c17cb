//! A span that has been chosen, with all that is known of it before it is decoded; and the parts of a long one.

use super::{
    parser::Uses,
    planner::{Mark, Place, crossing},
    sequences::Reference,
};
use std::ops::Range;

/// Device bytes of a part at least.
const PART: u64 = 4 << 20;
/// What the checkpoints of parts may be estimated at, of the span's source bytes: they are kept while a layer is converted.
const PARTS_WORTH: u64 = 8;
/// So many bytes that are referred to take one in them: they are counted each time, and compressed.
const PART_RATE: u64 = 8;

/// A span that is to be decoded.
pub struct Planned {
    /// Where it starts.
    pub start: Mark,
    /// Device byte after its last.
    pub end: u64,
    /// Device byte that the next span's first block starts with: what comes from there on is decoded again for it.
    pub next: u64,
    /// Its bytes of frames, and how many its source bytes are with what lies between frames.
    pub source: Vec<u8>,
    pub source_len: u32,
    /// What its blocks refer to.
    pub references: Vec<Reference>,
    /// Its parts, if it is long; the first starts where it does.
    pub parts: Vec<Part>,
}

/// A part of a long span.
pub struct Part {
    /// Where it starts.
    pub mark: Mark,
    /// Which tables its blocks repeat.
    pub uses: Uses,
    /// What they refer to, among the references of the span.
    pub references: Range<usize>,
    /// Where its source bytes end.
    pub end: Place,
}

/// Cuts a span into parts. `marks` are those from its start to that of the next span, `references` what all their blocks
/// refer to; it ends before the device byte `until`, its source bytes at `end`. A span that isn't long has no parts.
pub fn parts(marks: &[&Mark], references: &[Reference], end: Place, until: u64) -> Vec<Part> {
    let Some(first) = marks.first() else { return Vec::new() };
    let (len, source) = (until.saturating_sub(first.device), end.blob.saturating_sub(first.source.blob));
    let mut after = Uses::default();
    let mut possible = vec![false; marks.len()];
    for (possible, mark) in possible.iter_mut().zip(marks).rev() {
        after = mark.uses.then(after);
        *possible = mark.end.is_some() && mark.can_start(after);
    }
    let mut least = PART;
    while len >= 2 * least {
        let starts = starts(least, marks, &possible, until);
        let parts = cut(&starts, marks, references, end);
        if parts.iter().skip(1).map(|part| cost(part, references)).sum::<u64>() * PARTS_WORTH <= source {
            return if parts.len() > 1 { parts } else { Vec::new() };
        }
        least *= 2;
    }
    Vec::new()
}

/// The numbers of marks that parts of at least so many device bytes start at.
fn starts(least: u64, marks: &[&Mark], possible: &[bool], until: u64) -> Vec<usize> {
    let (mut starts, mut from) = (vec![0], marks.first().map_or(0, |first| first.device));
    for (number, mark) in marks.iter().enumerate().skip(1) {
        if possible[number] && mark.device >= from + least && until >= mark.device + least {
            starts.push(number);
            from = mark.device;
        }
    }
    starts
}

fn cut(starts: &[usize], marks: &[&Mark], references: &[Reference], end: Place) -> Vec<Part> {
    let part = |(place, &start): (usize, &usize)| {
        let next = starts.get(place + 1);
        // The block that a border lies in belongs to both.
        let stop = next.map_or(marks.len(), |next| next + 1);
        let uses = marks[start..stop].iter().fold(Uses::default(), |uses, mark| uses.then(mark.uses));
        let to = marks.get(stop).map_or(references.len(), |mark| mark.references);
        let end = next.and_then(|&next| marks[next].end).unwrap_or(end);
        Part { mark: marks[start].clone(), uses, references: marks[start].references..to, end }
    };
    starts.iter().enumerate().map(part).collect()
}

/// What a part's checkpoint takes, about.
fn cost(part: &Part, references: &[Reference]) -> u64 {
    match part.mark.fresh {
        true => 0,
        false => crossing(&references[part.references.clone()], part.mark.at) / PART_RATE,
    }
}
