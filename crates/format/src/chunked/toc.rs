//! The table of contents of a zstd:chunked layer, written and compressed as the entries come.
use crate::Digest;
use crate::tar::{Listed, kind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest table that is written, bytes before compression: containers/storage of 2023 reads no longer ones.
const LENGTH_MAX: u64 = 50 << 20;
/// zstd level: a table is mostly digests, which no level makes smaller.
const LEVEL: i32 = 3;

/// A part of a file: where its frame is in the blob, and which bytes of the file it begins with.
#[derive(Clone, Debug)]
pub struct Chunk {
    pub offset: u64,
    pub end_offset: u64,
    pub file_offset: u64,
    pub len: u64,
    pub digest: Digest,
}

/// The table in the making.
pub struct Toc {
    encoder: zstd::stream::Encoder<'static, Vec<u8>>,
    length: u64,
    entries: u64,
}

/// A finished table.
pub struct WrittenToc {
    /// A zstd frame.
    pub compressed: Vec<u8>,
    /// Bytes before compression.
    pub length: u64,
}

/// Why there is no table: the layer is as good as any, but other runtimes fetch it as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoToc {
    /// JSON can't hold a name.
    #[error("{0:?} is not UTF-8")]
    Name(String),
    /// A sparse file's data aren't its bytes.
    #[error("{0:?} is a sparse file")]
    Sparse(String),
    /// A time that RFC 3339 can't express.
    #[error("{0:?} has a time outside the years 0 to 9999")]
    Time(String),
    /// A type that tables have no word for.
    #[error("{0:?} is of a type that tables of contents don't know")]
    Kind(String),
    /// The table would be longer than readers take.
    #[error("the table of contents would have more than {} MiB", LENGTH_MAX >> 20)]
    Length,
    /// Memory ran out.
    #[error("the table of contents can't be compressed: {0}")]
    Compress(String),
}

impl From<io::Error> for NoToc {
    fn from(error: io::Error) -> Self {
        Self::Compress(error.to_string())
    }
}

/// An entry, in the words of containers/storage (`FileMetadata` in `pkg/chunked/internal/minimal/compression.go`) and
/// stargz-snapshotter (`TOCEntry` in `estargz/types.go`). Zeros are left out, as Go leaves them out. Three names are not
/// written as those write them: containers/storage before 1.44 only understands them so, and everyone else in any case.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    link_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(rename = "UID", skip_serializing_if = "Option::is_none")]
    uid: Option<i64>,
    #[serde(rename = "GID", skip_serializing_if = "Option::is_none")]
    gid: Option<i64>,
    #[serde(rename = "ModTime", skip_serializing_if = "Option::is_none")]
    modtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dev_major: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dev_minor: Option<i64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_digest: Option<Digest>,
}

/// A number that isn't 0.
fn nonzero<T: Default + PartialEq>(number: T) -> Option<T> {
    (number != T::default()).then_some(number)
}

impl Toc {
    /// An empty table.
    pub fn new() -> Result<Self, NoToc> {
        let mut toc = Self { encoder: zstd::stream::Encoder::new(Vec::new(), LEVEL)?, length: 0, entries: 0 };
        toc.write(br#"{"version":1,"entries":["#)?;
        Ok(toc)
    }

    /// Appends an entry. A regular file with data has the digest of all of them, and chunks.
    pub fn push(&mut self, entry: &Listed, digest: Option<Digest>, chunks: &[Chunk]) -> Result<(), NoToc> {
        let shown = || String::from_utf8_lossy(&entry.name).into_owned();
        let name = std::str::from_utf8(&entry.name).map_err(|_| NoToc::Name(shown()))?;
        if entry.sparse {
            return Err(NoToc::Sparse(shown()));
        }
        let kind = match entry.kind {
            kind::REGULAR | kind::CONTIGUOUS => "reg",
            kind::HARD_LINK => "hardlink",
            kind::SYMLINK => "symlink",
            kind::CHAR_DEVICE => "char",
            kind::BLOCK_DEVICE => "block",
            kind::DIRECTORY => "dir",
            kind::FIFO => "fifo",
            _ => return Err(NoToc::Kind(shown())),
        };
        let mut xattrs = BTreeMap::new();
        for (key, value) in &entry.xattrs {
            let key = std::str::from_utf8(key).map_err(|_| NoToc::Name(shown()))?;
            xattrs.insert(key, STANDARD.encode(value));
        }
        let first = chunks.first();
        self.entry(&Entry {
            kind,
            name,
            link_name: std::str::from_utf8(&entry.link).map_err(|_| NoToc::Name(shown()))?,
            mode: nonzero(entry.mode),
            size: nonzero(entry.data.end - entry.data.start).filter(|_| kind == "reg"),
            uid: nonzero(entry.uid),
            gid: nonzero(entry.gid),
            modtime: Some(rfc3339(entry.mtime).ok_or_else(|| NoToc::Time(shown()))?),
            dev_major: nonzero(entry.major),
            dev_minor: nonzero(entry.minor),
            xattrs,
            digest,
            offset: first.and_then(|chunk| nonzero(chunk.offset)),
            end_offset: first.map(|chunk| chunk.end_offset),
            chunk_size: first.filter(|_| chunks.len() > 1).map(|chunk| chunk.len),
            chunk_offset: None,
            chunk_digest: first.map(|chunk| chunk.digest),
        })?;
        chunks.iter().skip(1).try_for_each(|chunk| {
            self.entry(&Entry {
                kind: "chunk",
                name,
                offset: Some(chunk.offset),
                end_offset: Some(chunk.end_offset),
                chunk_size: Some(chunk.len),
                chunk_offset: Some(chunk.file_offset),
                chunk_digest: Some(chunk.digest),
                ..Entry::default()
            })
        })
    }

    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), NoToc> {
        if self.entries > 0 {
            self.write(b",")?;
        }
        self.entries += 1;
        let json = serde_json::to_vec(entry).map_err(io::Error::from)?;
        self.write(&json)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), NoToc> {
        self.length += bytes.len() as u64;
        if self.length > LENGTH_MAX {
            return Err(NoToc::Length);
        }
        Ok(self.encoder.write_all(bytes)?)
    }

    /// Ends the table.
    pub fn finish(mut self) -> Result<WrittenToc, NoToc> {
        self.write(b"]}")?;
        Ok(WrittenToc { compressed: self.encoder.finish()?, length: self.length })
    }
}

/// As Go writes times in JSON: with nanoseconds as far as needed.
fn rfc3339((seconds, nanoseconds): (i64, u32)) -> Option<String> {
    let nanoseconds = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()?.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_writes_them() {
        assert_eq!(rfc3339((0, 0)).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(rfc3339((1_700_000_000, 120_000_000)).as_deref(), Some("2023-11-14T22:13:20.12Z"));
        assert_eq!(rfc3339((-1, 0)).as_deref(), Some("1969-12-31T23:59:59Z"));
        assert_eq!(rfc3339((i64::MAX, 0)), None);
    }
}
