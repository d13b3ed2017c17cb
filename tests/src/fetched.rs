//! What of a registry's blobs was fetched, and how much of that more than once.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::proxy::Access;

/// Bytes of bodies, as a proxy's log tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// All that arrived.
    pub total: u64,
    /// Without what had arrived before.
    pub distinct: u64,
}

impl Fetched {
    /// What these requests brought, whichever repository a blob was asked of.
    pub fn of(log: &[Access]) -> Self {
        let mut ranges: BTreeMap<&str, Vec<Range<u64>>> = BTreeMap::new();
        for access in log.iter().filter(|access| matches!(access.status, 200 | 206) && access.bytes > 0) {
            // Manifests have digests, too, but for those asked for by tag.
            let name = access.path.find("sha256:").map_or(access.path.as_str(), |at| &access.path[at..]);
            let start = access.range.as_deref().and_then(first_byte).unwrap_or(0);
            ranges.entry(name).or_default().push(start..start + access.bytes);
        }
        let total = ranges.values().flatten().map(|range| range.end - range.start).sum();
        Self { total, distinct: ranges.into_values().map(covered).sum() }
    }

    /// How many times as much arrived as was needed.
    pub fn ratio(self) -> f64 {
        self.total as f64 / self.distinct as f64
    }
}

/// `bytes=5-9` starts at 5.
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
}

/// Bytes in at least one of the ranges.
fn covered(mut ranges: Vec<Range<u64>>) -> u64 {
    ranges.sort_by_key(|range| range.start);
    let (mut bytes, mut end) = (0, 0);
    for range in ranges {
        bytes += range.end.saturating_sub(range.start.max(end));
        end = end.max(range.end);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn what_overlaps_counts_once() {
        let now = Instant::now();
        let access = |path: &str, range: Option<&str>, status, bytes| Access {
            method: "GET".into(),
            path: path.into(),
            range: range.map(String::from),
            status,
            bytes,
            begun: now,
            last: now,
        };
        let log = [
            access("/v2/a/blobs/sha256:1", Some("bytes=0-99"), 206, 100),
            access("/v2/b/blobs/sha256:1", Some("bytes=50-149"), 206, 100),
            access("/v2/a/blobs/sha256:1", Some("bytes=60-70"), 206, 11),
            access("/v2/a/blobs/sha256:2", None, 200, 7),
            access("/v2/a/blobs/sha256:2", None, 404, 70),
            access("/v2/a/manifests/latest", None, 200, 3),
        ];
        assert_eq!(Fetched::of(&log), Fetched { total: 221, distinct: 160 });
    }
}
