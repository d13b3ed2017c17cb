//! Sizes as people write them in the configuration: a number of bytes, `20GiB`, or a part of a disk, `5%`.
use clipper_device::MinFree;
use serde::{Deserializer, de};
use std::fmt;

/// What a size may end with, and what it stands for.
const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// Why a text is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SizeError {
    /// It isn't a number with a unit.
    #[error("{0:?} is not a size: expected bytes, such as 1000000, or a whole number with a unit, such as \"20GiB\"")]
    Unknown(String),
    /// There is no such part of a disk.
    #[error("{0:?} is not a part of a disk: expected \"0%\" to \"90%\"")]
    Part(String),
}

/// Bytes that `text` stands for.
fn bytes_of(text: &str) -> Result<u64, SizeError> {
    let unknown = || SizeError::Unknown(text.chars().take(80).collect());
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(unknown)?;
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor)).ok_or_else(unknown)
}

fn min_free_of(text: &str) -> Result<MinFree, SizeError> {
    match text.strip_suffix('%') {
        None => bytes_of(text).map(MinFree::Bytes),
        Some(part) => match part.trim().parse() {
            Ok(percent @ 0..=90) => Ok(MinFree::Percent(percent)),
            _ => Err(SizeError::Part(text.chars().take(80).collect())),
        },
    }
}

/// Reads a key whose value is a size.
pub fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = from.deserialize_any(NumberOrText)?;
    bytes_of(&text).map(Some).map_err(de::Error::custom)
}

/// Reads a key whose value is a size or a part of a disk.
pub fn min_free<'de, D: Deserializer<'de>>(from: D) -> Result<MinFree, D::Error> {
    let text = from.deserialize_any(NumberOrText)?;
    min_free_of(&text).map_err(de::Error::custom)
}

/// A value of the file as it would stand there as a text.
struct NumberOrText;

impl de::Visitor<'_> for NumberOrText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of bytes or a text such as \"20GiB\"")
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("20GiB", 20 << 30),
            ("20 gib", 20 << 30),
            ("500MB", 500_000_000),
            ("3TiB", 3 << 40),
            ("7kb", 7000),
        ] {
            assert_eq!(bytes_of(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "1.5GiB", "20G", "1e9", "99999999999TiB", "5%", "ß"] {
            assert_eq!(bytes_of(text), Err(SizeError::Unknown(text.into())));
        }
    }

    #[test]
    fn a_part_of_a_disk_is_a_percentage() {
        assert_eq!(min_free_of("15%"), Ok(MinFree::Percent(15)));
        assert_eq!(min_free_of("10GB"), Ok(MinFree::Bytes(10_000_000_000)));
        for text in ["91%", "-1%", "%", "1.5%", "300%"] {
            assert_eq!(min_free_of(text), Err(SizeError::Part(text.into())));
        }
    }
}
