//! The header of a gzip member (RFC 1952, section 2.3).

/// Longest header that is understood, in bytes: an extra field takes up to 64 KiB, and no sane name or comment more.
const MAX_HEADER: usize = 256 << 10;

const FHCRC: u8 = 2;
const FEXTRA: u8 = 4;
const FNAME: u8 = 8;
const FCOMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

/// What the bytes at a member's start are.
#[derive(Debug, PartialEq, Eq)]
pub enum Header {
    /// A header of so many bytes.
    Complete(usize),
    /// The beginning of a header; more bytes are needed.
    Partial,
    /// Not the beginning of a gzip member.
    Foreign,
}

/// Finds the end of the header that `bytes` start with, or says what is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Header, &'static str> {
    const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
    if bytes.iter().zip(MAGIC).any(|(&found, wanted)| found != wanted) {
        return Ok(Header::Foreign);
    }
    match end(bytes) {
        Some(end) => end.map(Header::Complete),
        None if bytes.len() > MAX_HEADER => Err("the header is longer than 256 KiB"),
        None => Ok(Header::Partial),
    }
}

/// `None` if the bytes don't reach the header's end.
fn end(bytes: &[u8]) -> Option<Result<usize, &'static str>> {
    let flags = *bytes.get(3)?;
    if flags & RESERVED != 0 {
        return Some(Err("the header has reserved flags"));
    }
    let mut at = 10;
    if flags & FEXTRA != 0 {
        at += 2 + usize::from(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    }
    for text in [FNAME, FCOMMENT] {
        if flags & text != 0 {
            at += 1 + bytes.get(at..)?.iter().position(|&byte| byte == 0)?;
        }
    }
    if flags & FHCRC != 0 {
        let wanted = u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
        if crc32fast::hash(&bytes[..at]) as u16 != wanted {
            return Some(Err("the header's CRC-16 is wrong"));
        }
        at += 2;
    }
    (bytes.len() >= at).then_some(Ok(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, rest: &[u8]) -> Vec<u8> {
        [&[0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 3], rest].concat()
    }

    #[test]
    fn every_optional_field_is_skipped_and_no_prefix_is_enough() {
        let mut full = header(FHCRC | FEXTRA | FNAME | FCOMMENT, b"\x04\0BC\x02\0name\0comment\0");
        let crc = crc32fast::hash(&full) as u16;
        full.extend(crc.to_le_bytes());
        for bytes in [header(0, b""), header(FEXTRA, b"\x02\0ab"), header(FNAME, b"\0"), full] {
            assert_eq!(parse(&[&bytes[..], b"body"].concat()), Ok(Header::Complete(bytes.len())));
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Ok(Header::Partial), "{end} of {bytes:?}");
            }
        }
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(parse(b"\x1f\x8c"), Ok(Header::Foreign));
        assert_eq!(parse(b"\x1f\x8b\x07"), Ok(Header::Foreign));
        assert!(parse(&header(0x20, b"")).is_err());
        assert!(parse(&header(FHCRC, b"\0\0")).is_err());
        assert!(parse(&header(FNAME, &[b'a'; MAX_HEADER])).is_err());
    }
}
