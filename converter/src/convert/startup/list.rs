//! Prefetch lists: one absolute path a line, directories with a trailing `/`, comments after `#`.
use std::collections::BTreeSet;

/// Longest path that Linux takes, in bytes.
const PATH_MAX: usize = 4095;

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The line's number, from 1.
    pub line: usize,
    /// The path; that of a directory ends in `/`.
    pub path: Vec<u8>,
}

/// Why a list can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {what}: {}", String::from_utf8_lossy(text))]
pub struct ListError {
    line: usize,
    what: &'static str,
    text: Vec<u8>,
}

/// Reads a list. Blank lines and lines that begin with `#` say nothing; of paths that come twice, the first counts.
///
/// # Errors
/// A line is something else than an absolute path without `..`.
pub fn parse(text: &[u8]) -> Result<Vec<Entry>, ListError> {
    let mut seen = BTreeSet::new();
    let mut entries = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().all(u8::is_ascii_whitespace) || line.starts_with(b"#") {
            continue;
        }
        let bad = |what| Err(ListError { line: number + 1, what, text: line.iter().take(200).copied().collect() });
        if !line.starts_with(b"/") {
            return bad("not an absolute path");
        }
        if line.len() > PATH_MAX {
            return bad("longer than any path");
        }
        if line.contains(&0) {
            return bad("a path with a NUL");
        }
        if line.split(|byte| *byte == b'/').any(|name| name == b"..") {
            return bad("a path with `..`");
        }
        if seen.insert(line) {
            entries.push(Entry { line: number + 1, path: line.to_vec() });
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_line_by_line() {
        let entries =
            parse(b"# what it needs\n/usr/bin/app\r\n\n  \n/etc/app/\n/usr/bin/app\n/with space # and this\n/\xff");
        let entries: Vec<_> = entries.unwrap().into_iter().map(|entry| (entry.line, entry.path)).collect();
        let expected: [(usize, &[u8]); 4] =
            [(2, b"/usr/bin/app"), (5, b"/etc/app/"), (7, b"/with space # and this"), (8, b"/\xff")];
        assert_eq!(entries, expected.map(|(line, path)| (line, path.to_vec())));
        assert_eq!(parse(b""), Ok(Vec::new()));
    }

    #[test]
    fn malformed_lines_are_named() {
        let long = [b"/".as_slice(), &[b'a'; 5000]].concat();
        for bad in [&b"usr/bin/app"[..], b"/a/../b", b"/a\0b", b" /a", &long] {
            let text = [b"/fine\n", bad].concat();
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.starts_with("line 2: "), "{error}");
        }
    }
}
