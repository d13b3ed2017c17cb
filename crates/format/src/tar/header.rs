//! One 512-byte tar header block, read by the rules of Go's archive/tar, which containerd unpacks with.
use super::error::Problem;

/// Bytes of a header block; every entry's data is padded to a multiple of it.
pub(crate) const BLOCK: usize = 512;

/// Type flags that Go's archive/tar knows (POSIX ustar, and GNU tar's own).
pub(crate) mod kind {
    pub const REGULAR_V7: u8 = 0;
    pub const REGULAR: u8 = b'0';
    pub const HARD_LINK: u8 = b'1';
    pub const SYMLINK: u8 = b'2';
    pub const CHAR_DEVICE: u8 = b'3';
    pub const BLOCK_DEVICE: u8 = b'4';
    pub const DIRECTORY: u8 = b'5';
    pub const FIFO: u8 = b'6';
    pub const CONTIGUOUS: u8 = b'7';
    pub const PAX: u8 = b'x';
    pub const PAX_GLOBAL: u8 = b'g';
    pub const GNU_LONG_NAME: u8 = b'L';
    pub const GNU_LONG_LINK: u8 = b'K';
    pub const GNU_SPARSE: u8 = b'S';
}

/// The dialect of a header block, by its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// No magic: Unix V7.
    V7,
    /// POSIX ustar and PAX.
    Ustar,
    /// Schily's star.
    Star,
    /// GNU tar.
    Gnu,
}

/// A header block's fields, before PAX records or GNU long names change them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub dialect: Dialect,
    pub kind: u8,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub size: i64,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    /// Seconds since 1970.
    pub mtime: i64,
    pub major: i64,
    pub minor: i64,
}

impl Header {
    /// Reads a block that isn't all zeros.
    pub fn parse(block: &[u8; BLOCK]) -> Result<Self, Problem> {
        check_sum(block)?;
        let dialect = dialect(block);
        let mut header = Self {
            dialect,
            kind: block[156],
            name: text(&block[0..100]).to_vec(),
            link: text(&block[157..257]).to_vec(),
            size: number(&block[124..136], "size")?,
            mode: number(&block[100..108], "mode")?,
            uid: number(&block[108..116], "uid")?,
            gid: number(&block[116..124], "gid")?,
            mtime: number(&block[136..148], "mtime")?,
            major: 0,
            minor: 0,
        };
        if dialect == Dialect::V7 {
            return Ok(header);
        }
        header.major = number(&block[329..337], "devmajor")?;
        header.minor = number(&block[337..345], "devminor")?;
        let prefix = match dialect {
            Dialect::Star => {
                number(&block[476..488], "atime")?;
                number(&block[488..500], "ctime")?;
                text(&block[345..476])
            }
            Dialect::Gnu => {
                // Old Go wrote GNU headers with a ustar prefix where atime and ctime belong (golang.org/issue/12594).
                let unused = |field: &[u8]| field[0] == 0 || number(field, "time").is_ok();
                let times_ok = unused(&block[345..357]) && unused(&block[357..369]);
                let prefix = text(&block[345..500]);
                if times_ok || !prefix.is_ascii() { &[][..] } else { prefix }
            }
            _ => text(&block[345..500]),
        };
        if !prefix.is_empty() {
            header.name = [prefix, b"/", &header.name].concat();
        }
        Ok(header)
    }

    /// Whether entries of this type have no data whatever their size field says.
    pub fn is_header_only(kind: u8) -> bool {
        matches!(
            kind,
            kind::HARD_LINK | kind::SYMLINK | kind::CHAR_DEVICE | kind::BLOCK_DEVICE | kind::DIRECTORY | kind::FIFO
        )
    }
}

/// The dialect that a block's magic tells.
pub(crate) fn dialect(block: &[u8; BLOCK]) -> Dialect {
    match (&block[257..263], &block[263..265]) {
        (b"ustar\0", _) if &block[508..512] == b"tar\0" => Dialect::Star,
        (b"ustar\0", _) => Dialect::Ustar,
        (b"ustar ", b" \0") => Dialect::Gnu,
        _ => Dialect::V7,
    }
}

/// Old tars summed signed bytes, POSIX says unsigned: either will do.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), Problem> {
    let stored = octal(&block[148..156], "checksum").map_err(|_| Problem::Checksum)?;
    // The checksum's own field counts as eight spaces.
    let (field, spaces) = (&block[148..156], 8 * i64::from(b' '));
    let sum = |bytes: &[u8]| i64::from(bytes.iter().map(|b| u32::from(*b)).sum::<u32>());
    let high = |bytes: &[u8]| i64::from(bytes.iter().map(|b| u32::from(*b >> 7)).sum::<u32>());
    let unsigned = sum(block) - sum(field) + spaces;
    let signed = unsigned - 256 * (high(block) - high(field));
    if stored == unsigned || stored == signed { Ok(()) } else { Err(Problem::Checksum) }
}

/// A field's bytes up to its first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A numeric field: octal digits, or GNU base-256 (first bit set; big-endian two's complement).
pub(crate) fn number(field: &[u8], what: &'static str) -> Result<i64, Problem> {
    let Some(first) = field.first().filter(|b| **b & 0x80 != 0) else {
        return octal(field, what);
    };
    let invert = if first & 0x40 != 0 { 0xff } else { 0 };
    let mut value = 0u64;
    for (at, byte) in field.iter().enumerate() {
        let byte = (byte ^ invert) & if at == 0 { 0x7f } else { 0xff };
        if value >> 56 != 0 {
            return Err(Problem::Number(what));
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).map_err(|_| Problem::Number(what))?;
    Ok(if invert == 0 { value } else { !value })
}

fn octal(field: &[u8], what: &'static str) -> Result<i64, Problem> {
    let solid = |b: &u8| !matches!(*b, 0 | b' ');
    let Some(start) = field.iter().position(solid) else { return Ok(0) };
    let end = field.iter().rposition(solid).map_or(start, |last| last + 1);
    let mut value = 0u64;
    for digit in text(&field[start..end]) {
        if !(b'0'..=b'7').contains(digit) || value >> 61 != 0 {
            return Err(Problem::Number(what));
        }
        value = value << 3 | u64::from(digit - b'0');
    }
    i64::try_from(value).map_err(|_| Problem::Number(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields_may_be_padded_with_blanks_on_both_sides() {
        for (field, value) in [
            (&b"0000644\0"[..], 0o644),
            (b" 644 \0\0\0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"        ", 0),
            (b"7777777 ", 0o7777777),
            (b"12\x009    ", 0o12),
        ] {
            assert_eq!(number(field, "f").ok(), Some(value), "{field:?}");
        }
        for field in [&b"0000648\0"[..], b"-1\0", b"+1\0", b"1 2\0", b"0x10\0", b"1 \x002"] {
            assert!(number(field, "f").is_err(), "{field:?}");
        }
    }

    #[test]
    fn base_256_holds_negative_and_large_numbers() {
        for (field, value) in [
            (&[0x80, 0, 0, 0, 0, 0, 1, 0][..], Some(256)),
            (&[0xff; 12][..], Some(-1)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0], Some(-256)),
            (&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Some(i64::MAX)),
            (&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0xbf; 12], None),
        ] {
            assert_eq!(number(field, "f").ok(), value, "{field:?}");
        }
    }
}
