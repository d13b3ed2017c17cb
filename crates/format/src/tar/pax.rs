//! PAX extended headers: records, numbers and times as Go's archive/tar reads them.
use super::error::Problem;
use std::collections::BTreeMap;

/// Prefix of the records that carry extended attributes.
pub(crate) const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// The records of one extended header that mean something to the walker; the last of a name counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

impl Records {
    /// Reads the data of an `x` or `g` entry.
    pub fn parse(mut data: &[u8]) -> Result<Self, Problem> {
        let mut records = BTreeMap::new();
        let mut sparse: Vec<&[u8]> = Vec::new();
        while !data.is_empty() {
            let (key, value, rest) = record(data).ok_or(Problem::Pax)?;
            data = rest;
            match key {
                // GNU sparse 0.0 repeats these two in turn; 0.1 says the same in one record.
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    let offset_due = sparse.len().is_multiple_of(2);
                    if offset_due != (key == b"GNU.sparse.offset") || value.contains(&b',') {
                        return Err(Problem::Pax);
                    }
                    sparse.push(value);
                }
                _ if means_something(key) => {
                    records.insert(key.to_vec(), value.to_vec());
                }
                _ => {}
            }
        }
        if !sparse.is_empty() {
            records.insert(b"GNU.sparse.map".to_vec(), sparse.join(&b','));
        }
        Ok(Self(records))
    }

    /// The value of `key`, if it is there and not empty: an empty value leaves the header's own in force.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// The decimal number in `key`.
    pub fn number(&self, key: &'static str) -> Result<Option<i64>, Problem> {
        self.get(key).map(|value| decimal(value).ok_or(Problem::Number(key))).transpose()
    }

    /// The time in `key`: seconds since 1970 and nanoseconds, the latter within 0 to 999 999 999.
    pub fn time(&self, key: &'static str) -> Result<Option<(i64, u32)>, Problem> {
        self.get(key).map(|value| time(value).ok_or(Problem::Number(key))).transpose()
    }

    /// Extended attributes: name and value, which may be empty.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0
            .range(XATTR_PREFIX.to_vec()..)
            .map_while(|(key, value)| Some((key.strip_prefix(XATTR_PREFIX)?, value.as_slice())))
    }
}

fn means_something(key: &[u8]) -> bool {
    matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime" | b"atime" | b"ctime")
        || key.starts_with(b"GNU.sparse.")
        || key.starts_with(XATTR_PREFIX)
}

/// The first record of `data`, `"%d %s=%s\n"`, as key, value and what follows.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(24).position(|b| *b == b' ')?;
    let len = usize::try_from(decimal(&data[..space])?).ok().filter(|len| (5..=data.len()).contains(len))?;
    let (record, rest) = data.split_at(len);
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    let nul_free = match key {
        b"" => return None,
        b"path" | b"linkpath" | b"uname" | b"gname" => value,
        _ => key,
    };
    (!nul_free.contains(&0)).then_some((key, value, rest))
}

/// A decimal number with an optional sign, like Go's `strconv.ParseInt(_, 10, 64)`.
pub(crate) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `seconds[.fraction]`; a fraction goes away from zero if the seconds have a minus sign.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let mut halves = text.splitn(2, |b| *b == b'.');
    let whole = halves.next()?;
    let seconds = decimal(whole)?;
    let fraction = halves.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |at: usize| fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'));
    let nanos = (0..9).fold(0, |nanos, at| nanos * 10 + digit(at));
    if whole.first() == Some(&b'-') && nanos > 0 {
        // Wraps only where every later check takes the time for out of range anyway.
        return Some((seconds.saturating_sub(1), 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_by_their_own_lengths() {
        let records = Records::parse(b"6 a=b\n12 path=a=\n\n30 SCHILY.xattr.user.x=\0bin\x00y\n").unwrap();
        assert_eq!(records.get("path"), Some(&b"a=\n"[..]));
        assert_eq!(records.xattrs().collect::<Vec<_>>(), [(&b"user.x"[..], &b"\0bin\0y"[..])]);
        for bad in [
            &b"5 a=\n\0"[..],
            b"4 =\n",
            b"7 a=b\n",
            b"6 a=bx",
            b"6 =bb\n",
            b"6 abb\n",
            b" a=b\n",
            b"99999999999999999999 a=b\n",
            b"-6 a=b\n",
            b"11 path=a\0\n",
            b"8 a\0b=c\n",
        ] {
            assert_eq!(Records::parse(bad), Err(Problem::Pax), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times_round_towards_the_past_when_negative() {
        for (text, value) in [
            ("1", Some((1, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            (".5", None),
            ("1.5.5", None),
            ("1.-5", None),
            ("1e3", None),
        ] {
            assert_eq!(time(text.as_bytes()), value, "{text}");
        }
    }
}
