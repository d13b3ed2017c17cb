//! Traces: which bytes of which files a start-up read, in the order of first touch, as text.
//!
//! One range a line: `OFFSET+LENGTH PATH`, in bytes. Blank lines and lines that begin with `#` say nothing. Backslashes
//! and control characters in a path are written as `\xHH`. What comes later about bytes that were touched before means
//! nothing, so traces of several runs are merged by writing one after the other.
use std::{collections::HashMap, ops::Range};

/// Largest trace that makes sense, bytes.
pub const TRACE_MAX: u64 = 64 << 20;

/// Ends a trace that doesn't tell everything, as a comment.
pub const CUT_OFF: &str = "# more was read after this than is noted\n";

/// A range of a file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Absolute path within the image, without symlinks.
    pub path: Vec<u8>,
    /// Bytes of the file.
    pub range: Range<u64>,
}

/// A line that isn't one of a trace.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {what}; expected OFFSET+LENGTH PATH, such as `0+4096 /bin/sh`")]
pub struct TraceError {
    /// The line's number, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// Writes a trace.
pub fn write_trace(touches: &[Touch]) -> Vec<u8> {
    let mut text = b"# clipper trace 1: OFFSET+LENGTH PATH, in the order of first touch\n".to_vec();
    for Touch { path, range } in touches {
        text.extend_from_slice(format!("{}+{} ", range.start, range.end - range.start).as_bytes());
        for byte in path {
            match byte {
                b'\\' | 0..=0x1f | 0x7f => text.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
                _ => text.push(*byte),
            }
        }
        text.push(b'\n');
    }
    text
}

/// Reads a trace.
///
/// # Errors
/// A line is malformed.
pub fn parse_trace(text: &[u8]) -> Result<Vec<Touch>, TraceError> {
    let mut touches = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().all(u8::is_ascii_whitespace) || line.starts_with(b"#") {
            continue;
        }
        touches.push(touch(line).map_err(|what| TraceError { line: number + 1, what })?);
    }
    Ok(touches)
}

/// Joins the traces of two starts: what the first one read, in its order, and what only the second one read, each where
/// that came in the second: behind what both read before it.
pub fn merge_traces(first: &[Touch], second: &[Touch]) -> Vec<Touch> {
    let mut known: HashMap<&[u8], Vec<(Range<u64>, usize)>> = HashMap::new();
    for (number, touch) in first.iter().enumerate() {
        known.entry(&touch.path).or_default().push((touch.range.clone(), number));
    }
    for ranges in known.values_mut() {
        ranges.sort_unstable_by_key(|(range, _)| range.start);
    }
    // What comes in front of the first's touch of that number; what comes last.
    let mut between: Vec<Vec<Touch>> = vec![Vec::new(); first.len() + 1];
    let mut place = 0;
    for touch in second {
        let ranges = known.get(&touch.path[..]).map_or(&[][..], Vec::as_slice);
        let mut at = touch.range.start;
        let mut add = |range: Range<u64>, place: usize| {
            if !range.is_empty() {
                between[place].push(Touch { path: touch.path.clone(), range });
            }
        };
        for (range, number) in ranges {
            if range.end <= at || range.start >= touch.range.end {
                continue;
            }
            add(at..range.start, place);
            at = at.max(range.end);
            place = number + 1;
        }
        add(at..touch.range.end, place);
    }
    let last = between.pop().unwrap_or_default();
    let woven = first.iter().zip(between).flat_map(|(touch, before)| before.into_iter().chain([touch.clone()]));
    woven.chain(last).collect()
}

fn touch(line: &[u8]) -> Result<Touch, &'static str> {
    let space = line.iter().position(|byte| *byte == b' ').ok_or("no path")?;
    let (range, path) = (&line[..space], unescape(&line[space + 1..])?);
    let range = std::str::from_utf8(range).ok().and_then(|range| range.split_once('+')).ok_or("no range")?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| "a range that isn't made of numbers");
    let (start, len) = (number(range.0)?, number(range.1)?);
    let end = start.checked_add(len).ok_or("a range beyond any file")?;
    if !path.starts_with(b"/") {
        return Err("a path that isn't absolute");
    }
    if path.contains(&0) {
        return Err("a path with a NUL");
    }
    Ok(Touch { path, range: start..end })
}

fn unescape(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (mut path, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            path.push(*first);
            continue;
        }
        let digits =
            after.strip_prefix(b"x").and_then(|digits| digits.get(..2)).and_then(|d| std::str::from_utf8(d).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        path.push(byte.ok_or("a backslash that isn't part of \\xHH")?);
        rest = &after[3..];
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_round_trip() {
        let touch = |path: &[u8], range: Range<u64>| Touch { path: path.to_vec(), range };
        let touches = [
            touch(b"/bin/sh", 0..4096),
            touch(b"/with space/and \\x41\\\nand\x7f\xff", 5..u64::MAX),
            touch(b"/empty", 7..7),
        ];
        let text = write_trace(&touches);
        assert_eq!(parse_trace(&text), Ok(touches.to_vec()));
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 4);
        let twice = [&text[..], &text].concat();
        assert_eq!(parse_trace(&twice).unwrap().len(), 6, "traces can be written one after the other");
    }

    #[test]
    fn what_only_the_second_start_read_comes_where_it_read_it() {
        let touch = |path: &str, range: Range<u64>| Touch { path: path.into(), range };
        let first = [touch("/a", 0..8), touch("/b", 0..4), touch("/a", 16..24), touch("/c", 0..4)];
        let second = [
            touch("/new", 0..2),
            touch("/a", 0..20),
            touch("/b", 0..2),
            touch("/d", 0..1),
            touch("/c", 2..6),
            touch("/a", 20..30),
        ];
        let merged = [
            touch("/new", 0..2),
            touch("/a", 0..8),
            touch("/a", 8..16),
            touch("/b", 0..4),
            touch("/d", 0..1),
            touch("/a", 16..24),
            touch("/a", 24..30),
            touch("/c", 0..4),
            touch("/c", 4..6),
        ];
        assert_eq!(merge_traces(&first, &second), merged);
        assert_eq!(merge_traces(&first, &first), first);
        assert_eq!(merge_traces(&first, &[]), first);
        assert_eq!(merge_traces(&[], &second), second);
    }

    #[test]
    fn malformed_lines_are_named() {
        for bad in ["0+1", "0 /a", "0+x /a", "-1+2 /a", "1+18446744073709551615 /a", "0+1 a", "0+1 /\\x0", "0+1 /\\x00"]
        {
            let text = format!("# fine\n\n0+1 /fine\r\n{bad}\n");
            assert_eq!(parse_trace(text.as_bytes()).map_err(|error| error.line), Err(4), "{bad}");
        }
    }
}
