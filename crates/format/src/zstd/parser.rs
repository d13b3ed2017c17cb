//! What a decoder knows between the blocks of a frame, and how each block changes that, without decoding content.

use super::{
    frame::{BlockHeader, BlockKind, FrameHeader},
    fse::{Distribution, KINDS, Table},
    literals::{Coding, Literals},
    sequences::{Match, Sequences},
};
use std::sync::Arc;

/// Most decoded bytes of a block (RFC 8878, section 3.1.1.2.4).
pub const MAX_BLOCK: u32 = 128 << 10;

/// Offsets that a frame starts with (RFC 8878, section 3.1.1.5).
const FIRST_REPEATS: [u32; 3] = [1, 4, 8];

/// Where an FSE table comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There has been none yet.
    Missing,
    /// It is predefined.
    Predefined,
    /// It has one symbol, which takes no bits. No description says so.
    Single,
    /// It was described so.
    Described(Arc<[u8]>),
}

/// The state of a decoder before a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Description of the Huffman table of literals, if there has been one.
    pub huffman: Option<Arc<[u8]>>,
    /// The FSE tables, in the order of [`KINDS`].
    pub tables: [Origin; 3],
    /// The offsets used last.
    pub repeats: [u32; 3],
}

/// What blocks do first with each of the four tables: the Huffman table, then those of [`KINDS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses(pub [Use; 4]);

/// What is done with a table first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Use {
    /// Nothing.
    #[default]
    None,
    /// It is replaced, so the one from before isn't needed.
    Replaced,
    /// It is used as it was.
    Repeated,
}

impl Uses {
    /// All tables are replaced: a frame starts.
    pub const REPLACED: Self = Self([Use::Replaced; 4]);

    /// What is done by these blocks and those after them.
    pub fn then(self, after: Self) -> Self {
        let mut all = self;
        for (first, then) in all.0.iter_mut().zip(after.0) {
            if *first == Use::None {
                *first = then;
            }
        }
        all
    }
}

/// A block that has been gone through.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// Bytes that it decodes to.
    pub len: u32,
    /// What it does with the tables from before.
    pub uses: Uses,
}

/// Goes through the blocks of a frame.
pub struct Parser {
    state: State,
    /// Tables that blocks have brought, in the order of [`KINDS`].
    tables: [Table; 3],
    predefined: [Table; 3],
    window: u64,
    /// Most bytes of a block.
    most: u32,
    /// Bytes of the frame so far.
    at: u64,
}

impl Parser {
    /// A parser; call [`Parser::start`] before a frame's blocks.
    pub fn new() -> Self {
        let predefined = KINDS.map(|kind| Table::new(kind, &kind.predefined()));
        Self { state: State::first(), tables: predefined.clone(), predefined, window: 0, most: 0, at: 0 }
    }

    /// A frame starts.
    pub fn start(&mut self, header: &FrameHeader) {
        self.state = State::first();
        self.window = header.window;
        self.most = header.window.min(MAX_BLOCK.into()) as u32;
        self.at = 0;
    }

    /// The state before the next block.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Bytes of the frame so far.
    pub fn len(&self) -> u64 {
        self.at
    }

    /// Goes through a block of this header and body, and shows `visit` its matches. Or says what is wrong; then the frame
    /// can't be gone on with.
    pub fn block(
        &mut self,
        header: BlockHeader,
        body: &[u8],
        visit: impl FnMut(Match),
    ) -> Result<Parsed, &'static str> {
        let parsed = match header.kind {
            BlockKind::Raw | BlockKind::Rle => Parsed { len: header.size, uses: Uses::default() },
            BlockKind::Compressed => self.compressed(body, visit)?,
        };
        if parsed.len > self.most {
            return Err("a block has too many bytes");
        }
        self.at += u64::from(parsed.len);
        Ok(parsed)
    }

    fn compressed(&mut self, body: &[u8], visit: impl FnMut(Match)) -> Result<Parsed, &'static str> {
        let literals = Literals::parse(body)?;
        let mut uses = Uses::default();
        match literals.coding {
            Coding::Plain => {}
            Coding::Described(description) => {
                self.state.huffman = Some(description.into());
                uses.0[0] = Use::Replaced;
            }
            Coding::Treeless if self.state.huffman.is_none() => {
                return Err("a block repeats a table of literals, but there has been none");
            }
            Coding::Treeless => uses.0[0] = Use::Repeated,
        }
        let (count, tables) = count(&body[literals.len..])?;
        let decoded = if count == 0 {
            if !tables.is_empty() {
                return Err("a block goes on after its last sequence");
            }
            literals.decoded
        } else {
            let (len, uses_of_tables) = self.tables(tables)?;
            uses.0[1..].copy_from_slice(&uses_of_tables);
            let table = |kind: usize| match self.state.tables[kind] {
                Origin::Predefined => &self.predefined[kind],
                _ => &self.tables[kind],
            };
            let sequences = Sequences {
                count,
                bits: &tables[len..],
                tables: [table(0), table(1), table(2)],
                literals: literals.decoded,
                most: self.most as usize,
                before: self.at,
                window: self.window,
            };
            sequences.run(&mut self.state.repeats, visit)?
        };
        // More literals than a block may have are an error, too.
        Ok(Parsed { len: u32::try_from(decoded).unwrap_or(u32::MAX), uses })
    }

    /// Takes the tables that a sequences section starts with, after the number of sequences: gives their length.
    fn tables(&mut self, section: &[u8]) -> Result<(usize, [Use; 3]), &'static str> {
        const SHORT: &str = "a block ends in the tables of its sequences";
        let &modes = section.first().ok_or(SHORT)?;
        if modes & 3 != 0 {
            return Err("a block's sequences have reserved bits set");
        }
        let (mut len, mut uses) = (1, [Use::Replaced; 3]);
        for (number, kind) in KINDS.into_iter().enumerate() {
            let rest = &section[len..];
            self.state.tables[number] = match modes >> (6 - 2 * number) & 3 {
                0 => Origin::Predefined,
                1 => {
                    self.tables[number] = Table::single(kind, *rest.first().ok_or(SHORT)?)?;
                    len += 1;
                    Origin::Single
                }
                2 => {
                    let (distribution, described) = Distribution::parse(kind, rest)?;
                    self.tables[number] = Table::new(kind, &distribution);
                    len += described;
                    Origin::Described(rest[..described].into())
                }
                _ => {
                    uses[number] = Use::Repeated;
                    match std::mem::replace(&mut self.state.tables[number], Origin::Missing) {
                        Origin::Missing => return Err("a block repeats a table of sequences, but there has been none"),
                        origin => origin,
                    }
                }
            };
        }
        Ok((len, uses))
    }
}

impl State {
    /// That of a frame's first block.
    fn first() -> Self {
        Self { huffman: None, tables: [const { Origin::Missing }; 3], repeats: FIRST_REPEATS }
    }
}

/// The number of sequences that a section starts with, and what follows.
fn count(section: &[u8]) -> Result<(usize, &[u8]), &'static str> {
    match *section {
        [first @ 0..128, ref rest @ ..] => Ok((first.into(), rest)),
        [255, low, high, ref rest @ ..] => Ok((usize::from(u16::from_le_bytes([low, high])) + 0x7f00, rest)),
        [first @ 128..=254, second, ref rest @ ..] => Ok(((usize::from(first) - 128) << 8 | usize::from(second), rest)),
        _ => Err("a block ends before its sequences"),
    }
}
