//! What is seen of a stream's blocks without decoding them: for tests, which compare it with what libzstd decodes.

use super::{
    ZstdError,
    frame::BlockHeader,
    parser::Parser,
    sequences::Match,
    walker::{Step, Walker},
};

/// A block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockView {
    /// Bytes that it decodes to.
    pub len: u32,
    /// Its matches; all its other bytes are literals, or the block isn't compressed.
    pub matches: Vec<Match>,
    /// The offsets used last, after it.
    pub repeats: [u32; 3],
}

/// The blocks of all frames of `stream`.
///
/// # Errors
/// It isn't zstd, is cut off, or a block is broken as far as that can be seen.
pub fn blocks(stream: &[u8]) -> Result<Vec<BlockView>, ZstdError> {
    let (mut walker, mut parser) = (Walker::new(0), Parser::new());
    let (mut walked, mut views) = (0, Vec::new());
    while walked < stream.len() {
        let (step, what) = walker.step(&stream[walked..])?;
        let start = walked;
        walked += step;
        match what {
            Step::Between | Step::Inside => {}
            Step::Header(header) => parser.start(&header),
            Step::End => {
                let mut rest = &stream[start..walked];
                while let Some((header, after)) = rest.split_first_chunk() {
                    let broken = |what| ZstdError::Frame { frame: walker.frame() - 1, offset: walker.start(), what };
                    let header = BlockHeader::parse(header).map_err(broken)?;
                    let (body, after) = after.split_at(header.len as usize);
                    let mut matches = Vec::new();
                    let parsed = parser.block(header, body, |found| matches.push(found)).map_err(broken)?;
                    views.push(BlockView { len: parsed.len, matches, repeats: parser.state().repeats });
                    rest = if header.last { &[] } else { after };
                }
            }
        }
    }
    match walker.may_end() {
        true => Ok(views),
        false => Err(ZstdError::Truncated { frame: walker.frame(), offset: walker.offset() }),
    }
}
