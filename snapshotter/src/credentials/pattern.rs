//! Patterns of images, as kubelet matches them: the keys of a docker config, and `matchImages` of its credential provider
//! plugins (k8s.io/kubelet/config/v1, `CredentialProvider`).
use clipper_registry::Subject;
use std::fmt;

/// Longest pattern, in bytes.
const PATTERN_MAX: usize = 4096;

/// `host[:port][/path]`. In the host, `*` stands for any part of one label; the path is a prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern {
    host: String,
    port: Option<String>,
    path: String,
}

impl Pattern {
    /// The pattern that `text` writes down, with or without a scheme. `None` if it names no host.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > PATTERN_MAX {
            return None;
        }
        let text = text.trim();
        let text = text.split_once("://").map_or(text, |(_, rest)| rest);
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        let (host, port) = split_port(authority);
        if host.is_empty() {
            return None;
        }
        // Docker Hub by its first API, and what else docker's config ends hosts with.
        let path = path.trim_matches('/');
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        let path = if matches!(first, "v1" | "v2") { rest } else { path };
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => "docker.io",
            other => other,
        };
        Some(Self { host: host.to_ascii_lowercase(), port: port.map(Into::into), path: path.into() })
    }

    /// Whether the pattern is about this repository.
    pub fn matches(&self, subject: &Subject) -> bool {
        let (host, port) = split_port(&subject.host);
        let labels = |host: &str| host.split('.').map(str::to_owned).collect::<Vec<_>>();
        let (ours, theirs) = (labels(&self.host), labels(&host.to_ascii_lowercase()));
        self.port.as_deref() == port
            && subject.repository.starts_with(&self.path)
            && ours.len() == theirs.len()
            && ours.iter().zip(&theirs).all(|(pattern, label)| glob(pattern, label))
    }

    /// More exact patterns are greater: those with longer paths, then those with fewer globs.
    pub fn exactness(&self) -> (usize, bool) {
        (self.path.len(), !self.host.contains('*'))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if let Some(port) = &self.port {
            write!(f, ":{port}")?;
        }
        if self.path.is_empty() { Ok(()) } else { write!(f, "/{}", self.path) }
    }
}

/// Host and port; an IPv6 address stands in brackets.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => (host, Some(port)),
        _ => (authority, None),
    }
}

/// Whether `label` is what `pattern` says, in which `*` is any text. Takes time in proportion to both lengths.
fn glob(pattern: &str, label: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = label.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        // The first place is as good as any later one.
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, image: (&str, &str)) -> bool {
        Pattern::parse(pattern).unwrap().matches(&Subject::new(image.0, image.1))
    }

    #[test]
    fn patterns_match_as_kubelet_says() {
        for (pattern, host, repository) in [
            ("r.example", "r.example", "a/b"),
            ("https://r.example/v2/", "r.example", "a"),
            ("https://r.example/v2/team", "r.example", "team/a"),
            ("r.example:5000", "r.example:5000", "a"),
            ("r.example/team", "r.example", "team/app"),
            ("*.dkr.ecr.*.amazonaws.com", "1234.dkr.ecr.eu-west-1.amazonaws.com", "app"),
            ("app*.k8s.io", "app-one.k8s.io", "x"),
            ("a*b*c.io", "a1b2b3c.io", "x"),
            ("*", "localhost", "x"),
            ("docker.io", "registry-1.docker.io", "library/busybox"),
            ("https://index.docker.io/v1/", "docker.io", "library/busybox"),
            ("R.Example", "r.example", "a"),
            ("[::1]:5000", "[::1]:5000", "a"),
        ] {
            assert!(matches(pattern, (host, repository)), "{pattern} {host}/{repository}");
            let parsed = Pattern::parse(pattern).unwrap();
            assert_eq!(Pattern::parse(&parsed.to_string()), Some(parsed));
        }
        for (pattern, host, repository) in [
            ("r.example", "r.example:5000", "a"),
            ("r.example:5000", "r.example", "a"),
            ("r.example:5000", "r.example:5001", "a"),
            ("r.example/team", "r.example", "other/app"),
            ("*.io", "a.k8s.io", "x"),
            ("*.k8s.io", "k8s.io", "x"),
            ("a*b.io", "ab1.io", "x"),
            ("a*a.io", "a.io", "x"),
            ("r.example", "evil-r.example", "a"),
            ("r.example", "r.example.evil", "a"),
        ] {
            assert!(!matches(pattern, (host, repository)), "{pattern} {host}/{repository}");
        }
    }

    #[test]
    fn nonsense_is_no_pattern() {
        for text in ["", " ", "https://", "/path", ":5000", &"x".repeat(PATTERN_MAX + 1)] {
            assert_eq!(Pattern::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn more_exact_patterns_come_first() {
        let exactness = |text| Pattern::parse(text).unwrap().exactness();
        assert!(exactness("r.example/a/b") > exactness("r.example/a"));
        assert!(exactness("*.example/a") > exactness("r.example"));
        assert!(exactness("r.example") > exactness("*.example"));
    }
}
