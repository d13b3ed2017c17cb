//! containerd's filter language (containerd, package `filters`): which snapshots a List is about.
//!
//! ```text
//! selectors := selector ("," selector)*            all must match
//! selector  := fieldpath (operator value)?         without operator: the field is present
//! fieldpath := field ("." field)*
//! field     := quoted | [A-Za-z0-9_]+
//! operator  := "==" | "!=" | "~="                  the last by regular expression
//! value     := quoted | [^\s,]+
//! quoted    := Go string syntax in double quotes; after "~=" also between slashes or bars
//! ```
use crate::snapshot::{Info, Kind};
use regex_lite::Regex;

/// Several filters, of which one must match; none match everything.
#[derive(Debug)]
pub struct Filters(Vec<Vec<Selector>>);

/// Why a text isn't a filter.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("filter {filter:?} is malformed at byte {position}: {reason}")]
pub struct FilterError {
    filter: String,
    position: usize,
    reason: String,
}

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// Parses `texts`; an empty text matches everything.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, FilterError> {
        texts.iter().map(|text| Parser::new(text.as_ref()).selectors()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a snapshot is meant.
    pub fn matches(&self, info: &Info) -> bool {
        self.0.is_empty() || self.0.iter().any(|selectors| selectors.iter().all(|s| s.matches(info)))
    }
}

impl Selector {
    fn matches(&self, info: &Info) -> bool {
        let value = field(info, &self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(want) => value == Some(want),
            Test::NotEqual(want) => value.unwrap_or_default() != want,
            Test::Matches(regex) => regex.is_match(value.unwrap_or_default()),
        }
    }
}

/// A field of a snapshot (containerd, `snapshots/storage/bolt.go`, `adaptSnapshot`).
fn field<'a>(info: &'a Info, path: &[String]) -> Option<&'a str> {
    match path.first()?.as_str() {
        "kind" => Some(match info.kind {
            Kind::Active => "active",
            Kind::View => "view",
            Kind::Committed => "committed",
        }),
        "name" => Some(&info.name),
        "parent" => Some(info.parent.as_deref().unwrap_or_default()),
        "labels" => info.labels.get(&path[1..].join(".")).map(String::as_str),
        _ => None,
    }
}

struct Parser<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, position: 0 }
    }

    fn error<T>(&self, reason: impl Into<String>) -> Result<T, FilterError> {
        Err(FilterError { filter: self.text.into(), position: self.position, reason: reason.into() })
    }

    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip_spaces(&mut self) {
        self.position = self.text.len() - self.rest().trim_start().len();
    }

    /// The longest run of characters that `accept` takes.
    fn take(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.position += end;
        &rest[..end]
    }

    fn selectors(mut self) -> Result<Vec<Selector>, FilterError> {
        let mut selectors = Vec::new();
        if self.text.is_empty() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            match self.peek() {
                None => return Ok(selectors),
                Some(',') => self.position += 1,
                Some(other) => return self.error(format!("unexpected {other:?}")),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.position += 1;
            path.push(self.field()?);
        }
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        self.skip_spaces();
        let operator = self.take(|c| matches!(c, '=' | '!' | '~'));
        let test = match operator {
            "==" => Test::Equal(self.value(&['"'])?),
            "!=" => Test::NotEqual(self.value(&['"'])?),
            "~=" => {
                let pattern = self.value(&['"', '/', '|'])?;
                match Regex::new(&pattern) {
                    Ok(regex) => Test::Matches(regex),
                    Err(error) => return self.error(format!("{pattern:?} is no regular expression: {error}")),
                }
            }
            _ => return self.error("expected an operator: ==, != or ~="),
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        self.skip_spaces();
        if self.peek() == Some('"') {
            return self.quoted('"');
        }
        match self.take(|c| c.is_ascii_alphanumeric() || c == '_') {
            "" => self.error("expected a field: letters, digits, underscores, or a quoted string"),
            name => Ok(name.into()),
        }
    }

    fn value(&mut self, quotes: &[char]) -> Result<String, FilterError> {
        self.skip_spaces();
        match self.peek() {
            Some(quote @ ('"' | '/' | '|')) if quotes.contains(&quote) => return self.quoted(quote),
            Some(c @ ('"' | '/' | '|' | ',' | '.' | '=' | '!' | '~')) => {
                return self.error(format!("a value that begins with {c:?} must be quoted"));
            }
            _ => {}
        }
        match self.take(|c| c != ',' && !c.is_whitespace() && !c.is_control()) {
            "" => self.error("expected a value"),
            value => Ok(value.into()),
        }
    }

    /// A Go string between `quote`s (containerd, `filters/quote.go`).
    fn quoted(&mut self, quote: char) -> Result<String, FilterError> {
        self.position += 1;
        let mut bytes = Vec::new();
        loop {
            let Some(c) = self.peek() else { return self.error("a quoted string doesn't end") };
            self.position += c.len_utf8();
            match c {
                '\n' => return self.error("a quoted string doesn't end on its line"),
                '\\' => self.escape(quote, &mut bytes)?,
                _ if c == quote => break,
                _ => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(bytes).or_else(|_| self.error("a quoted string isn't UTF-8"))
    }

    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<(), FilterError> {
        let Some(c) = self.peek() else { return self.error("an escape sequence doesn't end") };
        let digits = |parser: &mut Self, count: usize, radix: u32| {
            let text = parser.rest().get(..count).filter(|text| text.chars().all(|c| c.is_digit(radix)));
            match text.and_then(|text| u32::from_str_radix(text, radix).ok()) {
                Some(number) => {
                    parser.position += count;
                    Ok(number)
                }
                None => parser.error("an escape sequence lacks digits"),
            }
        };
        if c.is_digit(8) {
            return match u8::try_from(digits(self, 3, 8)?) {
                Ok(byte) => {
                    bytes.push(byte);
                    Ok(())
                }
                Err(_) => self.error("an octal escape sequence exceeds a byte"),
            };
        }
        self.position += c.len_utf8();
        let byte = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' => b'\\',
            'x' => digits(self, 2, 16)? as u8,
            'u' | 'U' => {
                let number = digits(self, if c == 'u' { 4 } else { 8 }, 16)?;
                let Some(c) = char::from_u32(number) else { return self.error("an escape sequence is no character") };
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ if c == quote => quote as u8,
            _ => return self.error(format!("unknown escape sequence \\{c}")),
        };
        bytes.push(byte);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Timestamp;

    fn info() -> Info {
        let label = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        Info {
            name: "default/3/sha256:abc".into(),
            parent: Some("default/2/\"odd\" name".into()),
            kind: Kind::Committed,
            labels: [label("containerd.io/snapshot.ref", "sha256:abc"), label("plain", "a.b/c"), label("empty", "")]
                .into(),
            created: Timestamp::default(),
            updated: Timestamp::default(),
        }
    }

    #[test]
    fn filters_match_as_containerd_says() {
        for (filter, want) in [
            ("", true),
            ("name", true),
            ("kind==committed", true),
            ("kind==active", false),
            ("name==default/3/sha256:abc", true),
            (r#"labels."containerd.io/snapshot.ref"==sha256:abc,parent=="default/2/\"odd\" name""#, true),
            (r#"labels."containerd.io/snapshot.ref"==sha256:abc,parent=="""#, false),
            ("labels.containerd.io", false),
            ("labels.plain", true),
            ("labels.plain==a.b/c", true),
            ("labels.empty", true),
            (r#"labels.empty=="""#, true),
            ("labels.none", false),
            ("labels.none!=x", true),
            ("labels.plain!=a.b/c", false),
            ("labels.plain~=^a", true),
            (r"labels.plain~=|^a\\.b/c$|", true),
            ("labels.none~=^$", true),
            ("unknown", false),
            ("name, kind==view", false),
            ("kind == committed", true),
            (r#"kind=="\x63omm\151tte\u0064""#, true),
        ] {
            assert_eq!(Filters::parse(&[filter]).unwrap().matches(&info()), want, "{filter}");
        }
    }

    #[test]
    fn any_of_several_filters_is_enough() {
        let any = |texts: &[&str]| Filters::parse(texts).unwrap().matches(&info());
        assert!(any(&[]));
        assert!(any(&["kind==view", "kind==committed"]));
        assert!(!any(&["kind==view", "kind==active"]));
    }

    #[test]
    fn malformed_filters_are_refused() {
        for filter in [
            "==",
            "name=",
            "name=x",
            "name==",
            "name==x y",
            "name==x,",
            ",",
            ".name",
            "name.",
            "name==/x/",
            "name~=(",
            r#"name=="x"#,
            r#"name=="\q""#,
            r#"name=="\x4""#,
            r#"name=="\777""#,
            r#"name=="\xff""#,
            "name==\u{0}",
            "näme",
            "name ,kind",
            "name==x ",
            r"name~=/^a\.b/",
            r#"name=="\x+1""#,
            r#"name=="\ud800""#,
            r#"name=="\xé""#,
            "name===x",
        ] {
            assert!(Filters::parse(&[filter]).is_err(), "{filter}");
        }
    }
}
