//! What a start-up can't do without: the bytes of its trace, and how small they are when nothing else is packed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clipper_format::trace::parse_trace;
use clipper_tests::clipper::LazyMount;
use serde::{Deserialize, Serialize};

/// Bytes that are compressed together, as in a hot blob.
const FRAME: usize = 256 << 10;
/// zstd's level.
const LEVEL: i32 = 3;

/// The yardstick for what a cold start brings over the wire.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Needed {
    /// Bytes of files in the trace.
    pub bytes: u64,
    /// The same in the order of first touch, in frames of 256 KiB, each compressed alone by zstd at level 3.
    pub packed: u64,
}

impl Needed {
    /// Reads what `trace` names from the accelerated image `reference`.
    pub fn of(reference: &str, trace: &Path) -> Result<Self> {
        let mounted = LazyMount::start(reference)?;
        let touches = parse_trace(&fs::read(trace)?)?;
        // A trace names a block of a file once, and a file with several names by one of them: nothing counts twice.
        let mut content = Vec::new();
        for touch in touches {
            let path = String::from_utf8(touch.path).context("a path that isn't UTF-8")?;
            let path = mounted.path().join(path.trim_start_matches('/'));
            let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            // Blocks are whole in a trace, also a file's last.
            let end = touch.range.end.min(file.metadata()?.len());
            let wanted = end.saturating_sub(touch.range.start);
            let begin = content.len();
            content.resize(begin + usize::try_from(wanted)?, 0);
            file.read_exact_at(&mut content[begin..], touch.range.start)
                .with_context(|| format!("reading {}", path.display()))?;
        }
        ensure!(!content.is_empty(), "the start read nothing");
        Ok(Self { bytes: content.len() as u64, packed: packed(&content)? })
    }
}

fn packed(content: &[u8]) -> Result<u64> {
    let mut size = 0;
    for frame in content.chunks(FRAME) {
        size += zstd::bulk::compress(frame, LEVEL)?.len() as u64;
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_compressed_alone() {
        let zeros = packed(&vec![0; FRAME]).unwrap();
        assert_eq!(packed(&vec![0; 3 * FRAME]).unwrap(), 3 * zeros);
        assert!(zeros < 100);
    }
}
