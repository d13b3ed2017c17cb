//! Where spans start inside frames: so that what a checkpoint keeps costs little of the source bytes that it makes
//! readable. A span that was chosen is cut off when enough has come after it; until then a later one that turns out too
//! expensive can be joined to it, up to the layer's end, which comes when it comes.

use super::{
    MAX_SPAN, MAX_SPAN_SOURCE,
    parser::Uses,
    planner::{FIXED_COST, FRAME_COST, Laid, Mark, Planner, RATE, rate},
};

/// A span ends when its own checkpoint is worth this part of its source bytes,
const WORTH: u64 = 40;
/// and all checkpoints so far this part of all source bytes so far.
const ALL_WORTH: u64 = 50;
/// The same of what a checkpoint turns out to have, which was estimated before.
const LEAST_WORTH: u64 = 25;
const LEAST_ALL_WORTH: u64 = 40;
/// Spans are joined if what they cost falls to so many tenths by that.
const JOINED: u64 = 9;
/// Spans of so many device bytes may also end for [`TRIFLE`], however few their source bytes are: of a file of zeros, say.
const LONG: u64 = 32 << 20;
const TRIFLE: u64 = 1024;
/// A span may go on for one half of its length to find a cheaper end.
const SEARCH: u64 = 2;
/// Device bytes after a place from which references across it count, when places are compared.
const LOOK: u64 = 1 << 20;
/// Places are compared in cells of so many device bytes, as a power of two.
const CELL: u32 = 13;
/// A span is cut anyhow when so many source bytes have come.
const MOST_SOURCE: u64 = MAX_SPAN_SOURCE as u64 * 3 / 4;
/// Most source bytes of spans that were chosen and are still held, and device bytes.
const HELD: (u64, u64) = (8 << 20, 48 << 20);

/// What [`Planner::choose`] has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Nothing yet.
    None,
    /// The first span ends at this mark.
    Cut(usize),
    /// It ends with what is known.
    Rest,
    /// The span at hand, from this byte of the blob on, is too long, and can be cut nowhere.
    TooLong(u64),
}

impl Planner {
    /// Where to cut, if that can be told; `ended` says that there is nothing more.
    pub fn choose(&mut self, ended: bool) -> Choice {
        let rest = loop {
            self.reconsider(ended);
            match self.next(ended) {
                Choice::Cut(number) => self.lay(number),
                other => break other,
            }
        };
        match (rest, &self.laid[..]) {
            (Choice::TooLong(_), _) | (_, [_]) => rest,
            (_, [_, second, ..]) if ended || self.holds_enough() => Choice::Cut(second.start),
            _ => Choice::None,
        }
    }

    /// Whether the first span may end at mark `number` now that its checkpoint has turned out to have so many bytes. If not,
    /// those after it are joined to it, as many as make that good by what is known now.
    pub fn pays(&mut self, number: usize, checkpoint: usize) -> bool {
        let mut cost = checkpoint as u64;
        let mut end = number;
        let mut refused = false;
        while self.laid.len() > 1 && self.can_join(0, 2) && !self.is_worth_it(cost, end) {
            if !refused {
                self.rate = self.rate.max(rate(cost, self.crossing_of(0, Some(end))));
                refused = true;
            }
            self.laid.remove(1);
            match self.laid.get(1) {
                None => self.joined(),
                Some(next) => {
                    end = next.start;
                    cost = self.cost(0, self.crossing_of(0, Some(end)));
                    self.laid[0].cost = cost;
                }
            }
        }
        !refused
    }

    /// Whether a checkpoint of so many bytes is worth it for the first span up to mark `end`.
    fn is_worth_it(&self, cost: u64, end: usize) -> bool {
        let (Some(start), Some(mark)) = (self.marks.front(), self.marks.get(end)) else { return true };
        let until = mark.end.unwrap_or(mark.source).blob;
        let worth = cost * LEAST_WORTH <= until - start.source.blob
            && (self.spent + cost) * LEAST_ALL_WORTH <= self.before(until);
        worth || mark.device - start.device >= LONG && cost <= 2 * TRIFLE
    }

    /// Where to end the span at hand, if that can be told.
    fn next(&mut self, ended: bool) -> Choice {
        let hand = self.hand();
        let Some(start) = self.marks.get(hand) else { return Choice::None };
        let (from, source) = (start.device, start.source.blob);
        if self.at <= from {
            let long = self.done.blob.saturating_sub(source) > MAX_SPAN_SOURCE.into();
            return if long { Choice::TooLong(source) } else { Choice::None };
        }
        while self.earned.is_none()
            && let Some(mark) = self.marks.get(self.tried + 1)
            && let Some(end) = mark.end
        {
            self.tried += 1;
            let (len, cost) = (mark.device - from, self.cost(hand, mark.crossing));
            let worth = cost * WORTH <= end.blob - source && self.all(cost) * ALL_WORTH <= self.before(end.blob);
            if len >= self.least && end.blob >= self.unpaid && (worth || len >= LONG && cost <= TRIFLE) {
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
                let used = |&number: &usize| (self.marks[number].device - from) * 2 >= (self.at - from).min(longest);
                ((hand + 1..self.marks.len()).find(used).unwrap_or(hand + 1), longest)
            }
            None if ended => return self.whole(),
            None => return Choice::None,
        };
        let anywhere = || self.cheapest(hand + 1, from + longest, source).filter(|_| full || ended);
        match self.cheapest(first, from + reach, source).or_else(anywhere) {
            Some(number) => Choice::Cut(number),
            None if ended && self.at - from <= longest => self.whole(),
            None if full => Choice::TooLong(source),
            None => {
                // There was no place to start at. Look on.
                self.earned = None;
                Choice::None
            }
        }
    }

    fn whole(&self) -> Choice {
        match self.marks.get(self.hand()).map(|start| start.source.blob) {
            Some(source) if self.done.blob - source > MAX_SPAN_SOURCE.into() => Choice::TooLong(source),
            _ => Choice::Rest,
        }
    }

    /// The span at hand ends at mark `number`.
    fn lay(&mut self, number: usize) {
        let cost = self.cost(self.hand(), self.marks[number].crossing);
        let source = self.source(self.hand(), Some(number));
        if let Some(hand) = self.laid.last_mut() {
            hand.cost = cost;
        }
        self.laid.push(Laid { start: number, cost: 0 });
        self.rebase();
        self.look = self.marks[number].source.blob + source;
    }

    /// Joins the span at hand to those before it, if it has become so expensive that it better hadn't begun.
    fn reconsider(&mut self, ended: bool) {
        let (hand, now) = (self.hand(), self.done.blob);
        if self.laid.len() < 2 || self.earned.is_some() || now < self.look && !ended {
            return;
        }
        let (source, cost) = (self.source(hand, None), self.cost(hand, self.crossing));
        self.look = now + source;
        let total = self.all(cost);
        let ruinous = if ended { total * ALL_WORTH > self.before(now) } else { cost * LEAST_WORTH > source };
        if !ruinous {
            return;
        }
        let mut best = (total, self.laid.len() - 1);
        let mut before: u64 = self.spent + self.laid.iter().map(|span| span.cost).sum::<u64>();
        for number in (0..self.laid.len() - 1).rev().take_while(|&number| self.can_join(number, self.laid.len())) {
            before -= self.laid[number].cost;
            let start = self.laid[number].start;
            let cost = self.cost(start, self.crossing_of(start, None));
            let all = before + cost;
            best = best.min((all, number));
            // The fewest that suffice.
            if cost * LEAST_WORTH <= self.source(start, None) && (!ended || all * ALL_WORTH <= self.before(now)) {
                best = (all, number);
                break;
            }
        }
        let (least, number) = best;
        if (least - self.spent) * 10 <= (total - self.spent) * JOINED {
            self.laid.truncate(number + 1);
            self.joined();
        }
    }

    /// The span at hand has been joined to others. It goes on at least as far as is known.
    fn joined(&mut self) {
        if let Some(hand) = self.laid.last_mut() {
            hand.cost = 0;
        }
        self.rebase();
        self.unpaid = self.done.blob;
    }

    /// Whether the spans from number `from` to before number `to`, which may be that after the span at hand, aren't too long
    /// together.
    fn can_join(&self, from: usize, to: usize) -> bool {
        let end = self.laid.get(to).map(|span| span.start);
        let device = end.and_then(|end| self.marks.get(end)).map_or(self.at, |mark| mark.device);
        let start = self.laid.get(from).and_then(|span| self.marks.get(span.start));
        start.is_some_and(|start| {
            device - start.device < u64::from(MAX_SPAN) && self.source(self.laid[from].start, end) < MOST_SOURCE
        })
    }

    /// Source bytes from mark `start` to mark `end`, or to the end of what is known.
    fn source(&self, start: usize, end: Option<usize>) -> u64 {
        let place = |number: usize| self.marks.get(number).map_or(self.done.blob, |mark| mark.source.blob);
        end.map_or(self.done.blob, place).saturating_sub(place(start))
    }

    /// Whether the first of the spans that were chosen has to go.
    fn holds_enough(&self) -> bool {
        let device = |mark: Option<&Mark>| mark.map_or(0, |mark| mark.device);
        let devices = device(self.marks.get(self.hand())) - device(self.marks.front());
        self.source(0, Some(self.hand())) > HELD.0 || devices > HELD.1
    }

    /// What all checkpoints cost so far, if that of the span at hand costs so much.
    fn all(&self, cost: u64) -> u64 {
        self.spent + self.laid.iter().map(|span| span.cost).sum::<u64>() + cost
    }

    /// Source bytes before this byte of the blob.
    fn before(&self, blob: u64) -> u64 {
        blob - self.begun.unwrap_or(blob)
    }

    /// What a span costs that starts at mark `start`, and whose blocks refer to so many bytes before it.
    fn cost(&self, start: usize, crossing: u64) -> u64 {
        match self.marks.get(start) {
            Some(start) if start.fresh => FRAME_COST,
            _ => FIXED_COST + crossing * self.rate / RATE,
        }
    }

    /// Of the marks from `first` to the device byte `reach` the one to start at that costs least for each byte of the
    /// span before it; of equal ones the last.
    fn cheapest(&self, first: usize, reach: u64, source: u64) -> Option<usize> {
        let from = self.marks.get(self.hand())?.device;
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
            let references = mark.references..self.start_of(number + 1);
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
}

fn cell(distance: u64) -> usize {
    (distance >> CELL) as usize
}
