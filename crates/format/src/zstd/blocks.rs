//! Indexing large frames: block by block, in spans that start at checkpoints. Blocks are gone through as they come; a span
//! is decoded when it has been chosen.

use super::{
    MAX_SPAN_SOURCE, ZstdError,
    chooser::Choice,
    frame::{BlockHeader, FrameHeader},
    parser::Uses,
    planned::{Planned, parts},
    planner::{Mark, Place, Planner},
    replay::{Frame, Lead, Replay},
    sink::Sink,
    walker::Step,
};

const OTHER_SIZE: &str = "its content isn't as long as its header says";

/// Decodes the frames of a layer from a large one on. It holds a window, and the source bytes of the span at hand and of
/// those before it that aren't cut off.
pub struct BlockIndexer {
    planner: Planner,
    replay: Replay,
    /// The largest window of a frame so far.
    window: usize,
    /// Bytes of frames from the start of the first span on that isn't cut off, whose first has the number `first` among all.
    kept: Vec<u8>,
    first: u64,
    /// How many of them were gone through.
    parsed: usize,
    /// Where kept bytes lie in the blob: what is to be added to their number.
    ahead: u64,
    /// Inside a frame: whether blocks are to come, and whether the next is its first.
    blocks: bool,
    first_block: bool,
    /// The frame at hand.
    frame: Frame,
}

impl BlockIndexer {
    /// An indexer before a frame at the device byte `at`, of spans of at least `least` bytes if they can be cut.
    pub fn new(at: u64, least: u64, lead: Option<Lead>) -> Self {
        Self {
            planner: Planner::new(at, least),
            replay: Replay::new(at, lead),
            window: 1,
            kept: Vec::new(),
            first: 0,
            parsed: 0,
            ahead: 0,
            blocks: false,
            first_block: false,
            frame: Frame { number: 0, offset: 0, header: None, end: 0, checksum: None },
        }
    }

    /// Frame `number` starts at byte `offset` of the blob, with this header, whose bytes are `head`.
    pub fn start_frame(&mut self, number: u64, offset: u64, header: FrameHeader, head: &[u8]) {
        self.frame = Frame { number, offset, header: Some(header), end: 0, checksum: None };
        let kept = self.first + self.kept.len() as u64;
        self.ahead = offset - kept;
        let len = header.window.min(header.content_size.unwrap_or(u64::MAX));
        self.window = self.window.max(len as usize);
        let mut source = Place { blob: offset, kept };
        let mut device = None;
        if let Some(lead) = self.replay.lead().filter(|_| self.planner.start().is_none()) {
            source.blob = lead.source_offset;
            device = Some(self.planner.at() - lead.bytes.len() as u64);
        }
        self.planner.start_frame(number, header, source, device);
        self.kept.extend_from_slice(head);
        self.parsed = self.kept.len();
        (self.blocks, self.first_block) = (true, true);
    }

    /// Takes what the walker has gone over inside a frame; spans that are complete are appended to `out`.
    pub fn take(&mut self, part: &[u8], step: Step, out: &mut impl Sink) -> Result<(), ZstdError> {
        self.kept.extend_from_slice(part);
        while self.blocks
            && let Some((header, rest)) = self.kept[self.parsed..].split_first_chunk()
        {
            let header = BlockHeader::parse(header).map_err(|what| self.broken(what))?;
            let Some(body) = rest.get(..header.len as usize) else { break };
            let (from, to) = (self.parsed, self.parsed + 3 + body.len());
            let places = (self.place(from), self.place(to));
            let parsed = self.planner.block(header, body, places, self.first_block);
            parsed.map_err(|what| self.broken(what))?;
            if self.size().is_some_and(|size| size < self.planner.frame_len()) {
                return Err(self.broken(OTHER_SIZE));
            }
            (self.parsed, self.first_block, self.blocks) = (to, false, !header.last);
            if header.last {
                self.ends()?;
            }
            self.cut(false, out)?;
        }
        if step == Step::End {
            let checksum = self.kept[self.parsed..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
            self.parsed = self.kept.len();
            self.planner.end_frame(self.place(self.parsed));
            self.frame.checksum = checksum;
            self.replay.frame_ended(self.frame.clone())?;
        }
        Ok(())
    }

    /// The last block of the frame at hand has been gone through.
    fn ends(&mut self) -> Result<(), ZstdError> {
        if self.size().is_some_and(|size| size != self.planner.frame_len()) {
            return Err(self.broken(OTHER_SIZE));
        }
        self.frame.end = self.planner.at();
        Ok(())
    }

    /// The layer has ended.
    pub fn finish(&mut self, out: &mut impl Sink) -> Result<(), ZstdError> {
        self.cut(true, out)
    }

    /// Bytes of the frame at hand, if it says.
    fn size(&self) -> Option<u64> {
        self.frame.header.and_then(|header| header.content_size)
    }

    fn place(&self, kept: usize) -> Place {
        let kept = self.first + kept as u64;
        Place { blob: kept + self.ahead, kept }
    }

    fn broken(&self, what: &'static str) -> ZstdError {
        ZstdError::Frame { frame: self.frame.number, offset: self.frame.offset, what }
    }

    /// Cuts off all spans that can be.
    fn cut(&mut self, ended: bool, out: &mut impl Sink) -> Result<(), ZstdError> {
        loop {
            let number = match self.planner.choose(ended) {
                Choice::None => return Ok(()),
                Choice::Cut(number) => Some(number),
                Choice::Rest => None,
                Choice::TooLong(offset) => return Err(ZstdError::SpanTooLong { offset }),
            };
            let Some(start) = self.planner.start().cloned() else { return Ok(()) };
            let uses = self.planner.marks(number).iter().fold(Uses::default(), |uses, mark| uses.then(mark.uses));
            let checkpoint = self.replay.checkpoint(&start, self.window, uses, self.planner.references(number));
            if let (Some(number), Some(checkpoint)) = (number, &checkpoint)
                && !self.planner.pays(number, checkpoint.len())
            {
                continue;
            }
            let planned = self.plan(start, number)?;
            self.planner.spent(checkpoint.as_ref().map(Vec::len));
            self.replay.run(&planned, checkpoint, out)?;
        }
    }

    /// Cuts off the first span, up to mark `number`.
    fn plan(&mut self, start: Mark, number: Option<usize>) -> Result<Planned, ZstdError> {
        let (device_end, end) = self.planner.end(number);
        let source_len = u32::try_from(end.blob - start.source.blob).ok().filter(|&len| len <= MAX_SPAN_SOURCE);
        let source_len = source_len.ok_or(ZstdError::SpanTooLong { offset: start.source.blob })?;
        let next = number.and_then(|number| self.planner.mark(number));
        let (next_at, next_kept) =
            next.map_or((self.planner.at(), self.parsed), |next| (next.at, (next.source.kept - self.first) as usize));
        let parts = parts(&self.planner.marks(number), self.planner.references(number), end, device_end);
        let references = self.planner.cut(number);
        let rest = self.kept[next_kept..].to_vec();
        let mut source = std::mem::replace(&mut self.kept, rest);
        source.truncate((end.kept - self.first) as usize);
        self.first += next_kept as u64;
        self.parsed -= next_kept;
        Ok(Planned { start, end: device_end, next: next_at, source, source_len, references, parts })
    }
}
