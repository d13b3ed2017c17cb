//! Checkpoints are kept column by column: numbers in base 128 and bytes, written one after another and compressed column by
//! column.

use std::io::Write;

/// Why columns can't be read.
pub type Fault = &'static str;

/// Appends a number in base 128, the lowest digit first; all but the last have their high bit set.
pub fn put(out: &mut Vec<u8>, value: impl Into<u32>) {
    let mut value = value.into();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Compresses columns as one zstd frame. They are unlike each other, so each gets blocks of its own.
pub fn compress(columns: &[Vec<u8>], level: i32) -> std::io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), level)?;
    encoder.set_pledged_src_size(Some(columns.iter().map(|column| column.len() as u64).sum()))?;
    for column in columns {
        encoder.write_all(column)?;
        encoder.flush()?;
    }
    encoder.finish()
}

/// Reads columns from the first on.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or("it is truncated")?;
        self.0 = rest;
        Ok(bytes)
    }

    /// The next byte.
    pub fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.bytes(1)?[0])
    }

    /// The next number, in no more digits than one of its type can have.
    pub fn number<N: TryFrom<u64>>(&mut self) -> Result<N, Fault> {
        let mut value = 0u64;
        for digit in 0..(size_of::<N>() * 8).div_ceil(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << (7 * digit);
            if byte & 0x80 == 0 {
                return N::try_from(value).map_err(|_| "a number is out of range");
            }
        }
        Err("a number is out of range")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_they_were_put() {
        let numbers = [0, 1, 127, 128, 16_383, 16_384, 65_535, 65_536, u32::MAX];
        let mut column = Vec::new();
        numbers.iter().for_each(|&number| put(&mut column, number));
        let mut reader = Reader(&column);
        assert!(numbers.iter().all(|&number| reader.number() == Ok(number)));
        assert_eq!(reader.byte(), Err("it is truncated"));
    }

    #[test]
    fn numbers_that_their_type_cannot_have_are_refused() {
        assert_eq!(Reader(&[0xff, 0xff, 3]).number(), Ok(u16::MAX));
        assert_eq!(Reader(&[0xff, 0xff, 4]).number::<u16>(), Err("a number is out of range"));
        assert_eq!(Reader(&[0x80, 0x80, 0x80, 0]).number::<u16>(), Err("a number is out of range"));
        assert_eq!(Reader(&[0xff, 0xff, 0xff, 0xff, 15]).number(), Ok(u32::MAX));
        assert_eq!(Reader(&[0x80; 6]).number::<u32>(), Err("a number is out of range"));
        assert_eq!(Reader(&[0x80]).number::<u32>(), Err("it is truncated"));
    }
}
