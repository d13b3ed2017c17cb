//! The literals section of a compressed block (RFC 8878, section 3.1.1.3.1): how long it is, what it decodes to in
//! bytes, and the description of its Huffman table. The literals themselves aren't decoded.

/// Fewest literals that are split into four streams.
const FOUR_STREAMS: usize = 6;

/// What the section says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Literals<'a> {
    /// Bytes of the section.
    pub len: usize,
    /// Bytes that it decodes to.
    pub decoded: usize,
    /// By what it is coded.
    pub coding: Coding<'a>,
}

/// What decoding the literals takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding<'a> {
    /// Nothing: raw bytes, or one that is repeated.
    Plain,
    /// The Huffman table that this describes (section 4.2.1).
    Described(&'a [u8]),
    /// The Huffman table of an earlier block.
    Treeless,
}

impl<'a> Literals<'a> {
    /// Understands the section that `block` starts with, or says what is wrong with it.
    pub fn parse(block: &'a [u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "a block ends in its literals";
        let &first = block.first().ok_or(SHORT)?;
        let format = first >> 2 & 3;
        let number = |bytes: usize| -> Result<usize, &'static str> {
            let bytes = block.get(..bytes).ok_or(SHORT)?;
            Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte)))
        };
        let (header, decoded, body, coding) = match first & 3 {
            kind @ 0..2 => {
                let (header, decoded) = match format {
                    0 | 2 => (1, number(1)? >> 3),
                    1 => (2, number(2)? >> 4),
                    _ => (3, number(3)? >> 4),
                };
                (header, decoded, if kind == 0 { decoded } else { 1 }, Coding::Plain)
            }
            kind => {
                let (header, bits) = [(3, 10), (3, 10), (4, 14), (5, 18)][usize::from(format)];
                let (number, mask) = (number(header)?, (1 << bits) - 1);
                let (decoded, body) = (number >> 4 & mask, number >> (4 + bits) & mask);
                if format > 0 && decoded < FOUR_STREAMS {
                    return Err("a block has too few literals for four streams");
                }
                let rest = block.get(header..header + body).ok_or(SHORT)?;
                let coding = if kind == 3 { Coding::Treeless } else { Coding::Described(&rest[..description(rest)?]) };
                (header, decoded, body, coding)
            }
        };
        let len = header + body;
        if len > block.len() {
            return Err(SHORT);
        }
        Ok(Self { len, decoded, coding })
    }
}

/// Length of the description of a Huffman table that `bytes` start with.
fn description(bytes: &[u8]) -> Result<usize, &'static str> {
    let len = match bytes.first() {
        Some(&fse @ 0..128) => 1 + usize::from(fse),
        // So many weights less 127, of 4 bits each.
        Some(&direct) => 1 + usize::from(direct - 127).div_ceil(2),
        None => 0,
    };
    if len == 0 || len > bytes.len() {
        return Err("a block ends in the table of its literals");
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_every_format() {
        let mut block = vec![0u8; 70_000];
        let mut parse = |header: &[u8]| {
            block[..header.len()].copy_from_slice(header);
            Literals::parse(&block).map(|literals| (literals.len, literals.decoded))
        };
        assert_eq!(parse(&[31 << 3]), Ok((32, 31)));
        assert_eq!(parse(&[1 | 31 << 3]), Ok((2, 31)));
        assert_eq!(parse(&[1 << 2 | 0x50, 0xff]), Ok((2 + 0xff5, 0xff5)));
        assert_eq!(parse(&[1 | 3 << 2, 0, 0x10]), Ok((4, 0x10000)));
        assert_eq!(parse(&[3 << 2, 0, 0x20]), Err("a block ends in its literals"));
        let treeless = |format: u32, decoded: u64, body: u64, bits: u32| {
            (3 | u64::from(format) << 2 | decoded << 4 | body << (4 + bits)).to_le_bytes()
        };
        assert_eq!(parse(&treeless(0, 1000, 1023, 10)[..3]), Ok((1026, 1000)));
        assert_eq!(parse(&treeless(1, 5, 20, 10)[..3]), Err("a block has too few literals for four streams"));
        assert_eq!(parse(&treeless(1, 6, 20, 10)[..3]), Ok((23, 6)));
        assert_eq!(parse(&treeless(2, 16_000, 15_000, 14)[..4]), Ok((15_004, 16_000)));
        assert_eq!(parse(&treeless(3, 131_072, 60_000, 18)[..5]), Ok((60_005, 131_072)));
        for end in 0..5 {
            assert!(Literals::parse(&treeless(3, 131_072, 60_000, 18)[..end]).is_err());
        }
    }

    #[test]
    fn descriptions_of_huffman_tables() {
        let block = |table: &[u8]| [&[2, 1, 100 >> 2][..], table, &[0; 200]].concat();
        let described = |table: &[u8]| match Literals::parse(&block(table)) {
            Ok(Literals { coding: Coding::Described(described), .. }) => Ok(described.len()),
            other => Err(format!("{other:?}")),
        };
        assert_eq!(described(&[40]), Ok(41));
        assert_eq!(described(&[127 + 5]), Ok(4));
        assert_eq!(described(&[127 + 6]), Ok(4));
        assert!(described(&[100]).is_err(), "longer than the section");
        assert_eq!(Literals::parse(&[2, 0, 0, 0]), Err("a block ends in the table of its literals"));
    }
}
