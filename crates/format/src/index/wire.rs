//! Reading and writing numbers and strings in a row.

/// What was found to be wrong with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl From<&'static str> for Malformed {
    fn from(what: &'static str) -> Self {
        Self(what)
    }
}

const ENDS: Malformed = Malformed("it ends too early");

/// Appends `value` in LEB128: 7 bits a byte, the lowest first, the high bit set in all but the last.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends `value` as a varint that is small if `value` is near 0 on either side.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, (value << 1 ^ value >> 63) as u64);
}

/// Bytes that are yet to be read.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from their start.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Whether all is read.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(ENDS)?;
        self.bytes = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| ENDS)
    }

    /// The next byte.
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    /// The next varint; only its shortest form is taken.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                return Err(Malformed("a number that is too large, or longer than need be"));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed("a number that is too large"))
    }

    /// The next varint that [`put_signed`] wrote.
    pub fn signed(&mut self) -> Result<i64, Malformed> {
        self.varint().map(|value| (value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// The next varint, as a length.
    pub fn len(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.varint()?).map_err(|_| ENDS)
    }

    /// The next string, without the NUL that ends it.
    pub fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self.bytes.iter().position(|byte| *byte == 0).ok_or(ENDS)?;
        let string = self.take(end)?;
        self.byte()?;
        Ok(string)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_signed(&mut out, value as i64);
            let mut reader = Reader::new(&out);
            assert_eq!((reader.varint(), reader.signed(), reader.is_empty()), (Ok(value), Ok(value as i64), true));
        }
        let mut out = Vec::new();
        put_signed(&mut out, -64);
        assert_eq!(out, [127]);
    }

    #[test]
    fn long_short_and_padded_numbers_are_refused() {
        for bad in
            [&[][..], &[0x80], &[0x80, 0], &[0xff; 10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]]
        {
            assert!(Reader::new(bad).varint().is_err(), "{bad:?}");
        }
        assert!(Reader::new(b"abc").string().is_err());
        assert!(Reader::new(b"abc").take(4).is_err());
    }
}
