//! The sequences of a block (RFC 8878, section 3.1.1.3.2): what each copies, and from how far back.

use super::fse::{Cell, Table};

/// Bytes before a block that one of its matches refers to. There are millions in a long span, so position and length share a
/// word: a block, and so a match, has at most 2^17 bytes, and no device has 2^46.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference(u64);

/// Bits of the length.
const LEN: u32 = 18;

impl Reference {
    /// So many bytes from a position on.
    #[inline]
    pub fn new(from: u64, len: u32) -> Self {
        Self(from << LEN | u64::from(len))
    }

    /// What a match of a block that starts at the position `at` refers to before the block.
    #[inline]
    pub fn of(found: Match, at: u64) -> Option<Self> {
        let before = found.offset.checked_sub(found.at).filter(|&before| before > 0)?;
        Some(Self::new(at - u64::from(before), before.min(found.len)))
    }

    /// Position of the first.
    #[inline]
    pub fn from(self) -> u64 {
        self.0 >> LEN
    }

    /// Their number.
    #[inline]
    pub fn len(self) -> u64 {
        self.0 & ((1 << LEN) - 1)
    }
}

/// A match: bytes that are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Where its first byte comes to stand in the block.
    pub at: u32,
    /// From how far before that they are copied.
    pub offset: u32,
    /// Their number.
    pub len: u32,
}

/// The sequences of one block.
pub struct Sequences<'a> {
    /// How many they are, at least one.
    pub count: usize,
    /// Their bits, which are read backwards.
    pub bits: &'a [u8],
    /// Tables of literals lengths, offsets, match lengths.
    pub tables: [&'a Table; 3],
    /// Bytes that the literals decode to.
    pub literals: usize,
    /// Most bytes that the block may decode to.
    pub most: usize,
    /// Bytes before the block that may be referred to.
    pub before: u64,
    /// Bytes that a match may reach back.
    pub window: u64,
}

/// Bits that are read from the last to the first.
struct Backward<'a> {
    bytes: &'a [u8],
    /// Bits not yet read.
    left: usize,
}

const SHORT: &str = "a block's sequences have too few bits";

impl<'a> Backward<'a> {
    /// The bits of a section, whose last bit that is set ends them.
    fn new(bytes: &'a [u8]) -> Result<Self, &'static str> {
        match bytes.last().and_then(|last| last.checked_ilog2()) {
            Some(bit) => Ok(Self { bytes, left: (bytes.len() - 1) * 8 + bit as usize }),
            None => Err("a block's sequences don't end with a bit that is set"),
        }
    }

    /// The bits before `end`, the last at the top: at least 57 of them, if there are as many, and zeros.
    #[inline]
    fn word(&self, end: usize) -> u64 {
        let last = end.div_ceil(8);
        let bytes = self.bytes.get(..last).unwrap_or_default();
        let word = match bytes.last_chunk() {
            Some(word) => u64::from_le_bytes(*word),
            None => {
                bytes
                    .iter()
                    .rev()
                    .fold((0, 64), |(word, shift), &byte| (word | u64::from(byte) << (shift - 8), shift - 8))
                    .0
            }
        };
        word << (last * 8 - end)
    }

    /// The next bits, at most 57.
    fn take(&mut self, count: u32) -> Result<u64, &'static str> {
        let mut word = self.word(self.left);
        self.left = self.left.checked_sub(count as usize).ok_or(SHORT)?;
        Ok(cut(&mut word, count))
    }
}

/// Takes `count` bits, at most 63, from the top of `word`.
#[inline]
fn cut(word: &mut u64, count: u32) -> u64 {
    let bits = *word >> 1 >> (63 - count);
    *word <<= count;
    bits
}

impl Sequences<'_> {
    /// Goes through all of them. Shows `visit` each match, leaves the offsets used last in `repeats`, and gives the bytes
    /// that the block decodes to; or says what is wrong.
    pub fn run(self, repeats: &mut [u32; 3], mut visit: impl FnMut(Match)) -> Result<usize, &'static str> {
        let [literals_table, offsets_table, matches_table] = self.tables;
        let mut bits = Backward::new(self.bits)?;
        let mut literals_state = bits.take(literals_table.log())? as usize;
        let mut offset_state = bits.take(offsets_table.log())? as usize;
        let mut match_state = bits.take(matches_table.log())? as usize;
        let [mut first, mut second, mut third] = *repeats;
        let (mut literals, mut at) = (self.literals, 0usize);
        for after in (0..self.count).rev() {
            let (l, o, m) = (
                literals_table.cell(literals_state),
                offsets_table.cell(offset_state),
                matches_table.cell(match_state),
            );
            let extra = u32::from(l.extra) + u32::from(o.extra) + u32::from(m.extra);
            // The last sequence leads to no other.
            let update = if after > 0 { u32::from(l.bits) + u32::from(o.bits) + u32::from(m.bits) } else { 0 };
            let start = bits.left;
            bits.left = start.checked_sub((extra + update) as usize).ok_or(SHORT)?;
            let mut word = bits.word(start);
            let value = o.base + cut(&mut word, o.extra.into()) as u32;
            let long = extra + update > 57;
            if long {
                word = bits.word(start - usize::from(o.extra));
            }
            let match_len = m.base as usize + cut(&mut word, m.extra.into()) as usize;
            let literals_len = l.base as usize + cut(&mut word, l.extra.into()) as usize;
            if long {
                word = bits.word(start - extra as usize);
            }
            if after > 0 {
                let mut next = |cell: Cell| usize::from(cell.next) + cut(&mut word, cell.bits.into()) as usize;
                (literals_state, match_state, offset_state) = (next(l), next(m), next(o));
            }
            let offset = if value > 3 {
                (first, second, third) = (value - 3, first, second);
                first
            } else {
                match value - u32::from(literals_len > 0) {
                    0 => {}
                    1 => (first, second) = (second, first),
                    2 => (first, second, third) = (third, first, second),
                    _ => (first, second, third) = (first - 1, first, second),
                }
                first
            };
            if literals_len > literals {
                return Err("a block's sequences need more literals than it has");
            }
            literals -= literals_len;
            at += literals_len;
            let reach = u64::from(offset);
            if reach > self.window || reach > self.before + at as u64 || offset == 0 {
                return Err("a match reaches back too far");
            }
            let found = Match { at: at as u32, offset, len: match_len as u32 };
            at += match_len;
            if at > self.most {
                return Err("a block has too many bytes");
            }
            visit(found);
        }
        if bits.left > 0 {
            return Err("a block's sequences have too many bits");
        }
        *repeats = [first, second, third];
        match at + literals {
            decoded if decoded > self.most => Err("a block has too many bytes"),
            decoded => Ok(decoded),
        }
    }
}
