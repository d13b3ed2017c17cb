//! References: how a person names an image, in a registry or in an OCI layout directory.
use crate::repository::Selector;
use clipper_format::digest::Digest;
use std::{fmt, path::PathBuf, str::FromStr};

/// The name of an image: `HOST[:PORT]/REPOSITORY[:TAG][@sha256:…]`, or `oci:DIR[:TAG][@sha256:…]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// An image in a registry.
    Registry(RegistryReference),
    /// An image in an OCI layout directory (image-spec, image-layout.md).
    Layout(LayoutReference),
}

/// An image in a registry. The grammar is the one of docker and containerd (distribution/reference), except that the
/// host must be written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryReference {
    /// `host` or `host:port`; an IPv6 address is in brackets.
    pub host: String,
    /// Path of the repository, without the host.
    pub repository: String,
    /// Tag, at most 128 characters.
    pub tag: Option<String>,
    /// Digest; wins over the tag where both are given.
    pub digest: Option<Digest>,
}

/// An image in an OCI layout directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayoutReference {
    /// The directory that holds `index.json`. Its path has no colon: the first one starts the tag, as in skopeo.
    pub dir: PathBuf,
    /// The annotation `org.opencontainers.image.ref.name` of an entry of `index.json`; without it, the only entry.
    pub tag: Option<String>,
    /// Digest; wins over the tag where both are given.
    pub digest: Option<Digest>,
}

/// Why a text isn't a reference.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not an image reference: {problem}")]
pub struct ReferenceError {
    text: String,
    problem: String,
}

/// Longest `host/repository` that registries take.
const NAME_MAX: usize = 255;
/// Longest tag (distribution-spec, "Pulling manifests").
const TAG_MAX: usize = 128;

impl Reference {
    /// The tag, if one is written.
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Registry(r) => r.tag.as_deref(),
            Self::Layout(r) => r.tag.as_deref(),
        }
    }

    /// The digest, if one is written.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Registry(r) => r.digest,
            Self::Layout(r) => r.digest,
        }
    }

    /// What the reference selects in its repository: its digest, else its tag, else `latest` in a registry. `None` for
    /// a layout's only entry, which [`Repository::selector`](crate::Repository::selector) looks up.
    pub fn selector(&self) -> Option<Selector> {
        match (self.digest(), self.tag(), self) {
            (Some(digest), _, _) => Some(Selector::Digest(digest)),
            (None, Some(tag), _) => Some(Selector::Tag(tag.into())),
            (None, None, Self::Registry(_)) => Some(Selector::Tag("latest".into())),
            (None, None, Self::Layout(_)) => None,
        }
    }

    /// The same repository under another tag and without a digest.
    ///
    /// # Errors
    /// `tag` isn't a tag: see the grammar in distribution-spec, "Pulling manifests".
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        let bad = |problem| ReferenceError { text: clip(tag), problem };
        Ok(match self {
            Self::Registry(r) => {
                check_tag(tag).map_err(bad)?;
                Self::Registry(RegistryReference { tag: Some(tag.into()), digest: None, ..r.clone() })
            }
            Self::Layout(r) => {
                check_ref_name(tag).map_err(bad)?;
                Self::Layout(LayoutReference { tag: Some(tag.into()), digest: None, ..r.clone() })
            }
        })
    }

    /// The same repository with this digest and no tag.
    pub fn with_digest(&self, digest: Digest) -> Self {
        match self {
            Self::Registry(r) => Self::Registry(RegistryReference { tag: None, digest: Some(digest), ..r.clone() }),
            Self::Layout(r) => Self::Layout(LayoutReference { tag: None, digest: Some(digest), ..r.clone() }),
        }
    }

    /// Whether both name the same repository, whatever tag or digest they select in it.
    pub fn same_repository(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Registry(a), Self::Registry(b)) => a.host == b.host && a.repository == b.repository,
            (Self::Layout(a), Self::Layout(b)) => a.dir == b.dir,
            _ => false,
        }
    }
}

impl RegistryReference {
    /// `host/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let bad = |problem| ReferenceError { text: clip(text), problem };
        match text.strip_prefix("oci:") {
            Some(rest) => parse_layout(rest).map(Self::Layout).map_err(bad),
            None => parse_registry(text).map(Self::Registry).map_err(bad),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(r) => f.write_str(&r.name())?,
            Self::Layout(r) => write!(f, "oci:{}", r.dir.display())?,
        }
        if let Some(tag) = self.tag() {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = self.digest() {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Takes `@algorithm:…` off the end of a reference.
fn split_digest(text: &str) -> Result<(&str, Option<Digest>), String> {
    match text.split_once('@') {
        Some((rest, digest)) => Ok((rest, Some(digest.parse().map_err(|e| format!("{e}"))?))),
        None => Ok((text, None)),
    }
}

fn parse_layout(text: &str) -> Result<LayoutReference, String> {
    // A directory may hold an @, so only what looks like a digest is taken for one.
    let (rest, digest) = match text.rfind("@sha256:") {
        Some(at) => split_digest(&text[at..]).map(|(_, digest)| (&text[..at], digest))?,
        None => (text, None),
    };
    let (dir, tag) = match rest.split_once(':') {
        Some((dir, tag)) => (dir, Some(tag)),
        None => (rest, None),
    };
    if dir.is_empty() {
        return Err("oci: wants a directory, as in oci:DIR:TAG".into());
    }
    if let Some(tag) = tag {
        check_ref_name(tag)?;
    }
    Ok(LayoutReference { dir: dir.into(), tag: tag.map(Into::into), digest })
}

fn parse_registry(text: &str) -> Result<RegistryReference, String> {
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!("leave out {scheme}:// and write {:?}", clip(rest)));
    }
    let (rest, digest) = split_digest(text)?;
    let Some((host, path)) = rest.split_once('/') else {
        return Err(no_host(rest, "library/"));
    };
    if !looks_like_host(host) {
        return Err(no_host(rest, ""));
    }
    check_host(host)?;
    // The host, which may have a port, is off: the last colon starts a tag.
    let (path, tag) = match path.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    check_repository(path)?;
    // Docker Hub's official images live under library/, and its host has an old alias (distribution/reference).
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let repository =
        if host == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if host.len() + 1 + repository.len() > NAME_MAX {
        return Err(format!("host and repository are longer than {NAME_MAX} characters"));
    }
    Ok(RegistryReference { host: host.into(), repository, tag: tag.map(Into::into), digest })
}

fn no_host(rest: &str, library: &str) -> String {
    format!("it names no registry; for Docker Hub write docker.io/{library}{}", clip(rest))
}

/// Docker's rule for telling a host from the first part of a repository.
fn looks_like_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), String> {
    let wrong = || format!("{:?} is not a registry host", clip(host));
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or_else(wrong)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
        (None, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(wrong)?) })
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        }
    };
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if !name.is_none_or(|n| n.split('.').all(label)) {
        return Err(wrong());
    }
    match port {
        Some(p) if !p.bytes().all(|b| b.is_ascii_digit()) || !p.parse::<u16>().is_ok_and(|p| p > 0) => {
            Err(format!("{:?} is not a port", clip(p)))
        }
        _ => Ok(()),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` per part (distribution-spec, "Pulling manifests").
fn check_repository(path: &str) -> Result<(), String> {
    let part_ok = |part: &str| {
        let mut separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        // Splitting at every letter or digit leaves the separators, empty between neighbours and at both ends.
        !part.is_empty()
            && separators.next() == Some("")
            && separators.next_back() == Some("")
            && separators.all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
    };
    if path.split('/').all(part_ok) {
        return Ok(());
    }
    Err(if path.bytes().any(|b| b.is_ascii_uppercase()) {
        format!("the repository {:?} must be lower-case", clip(path))
    } else {
        format!("{:?} is not a repository name", clip(path))
    })
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` (distribution-spec, "Pulling manifests").
fn check_tag(tag: &str) -> Result<(), String> {
    if tag.len() > TAG_MAX {
        return Err(format!("the tag is longer than {TAG_MAX} characters"));
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if ok { Ok(()) } else { Err(format!("{:?} is not a tag", clip(tag))) }
}

/// Names in a layout's `index.json` may also hold `/`, `:`, `@` and `+` (image-spec, annotations.md).
fn check_ref_name(name: &str) -> Result<(), String> {
    let ok = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:@+/".contains(&b))
        && name.len() <= NAME_MAX;
    if ok { Ok(()) } else { Err(format!("{:?} is not a tag of a layout", clip(name))) }
}

/// Keeps hostile input out of long error messages.
fn clip(text: &str) -> String {
    text.chars().take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn registry(text: &str) -> (String, String, Option<String>, bool) {
        match text.parse() {
            Ok(Reference::Registry(r)) => (r.host, r.repository, r.tag, r.digest.is_some()),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn registry_references_follow_docker_s_grammar() {
        let some = |s: &str| Some(s.to_owned());
        let own = |h: &str, r: &str, t: Option<String>, d| (h.to_owned(), r.to_owned(), t, d);
        let table = [
            ("localhost/a", own("localhost", "a", None, false)),
            ("localhost:5000/a/b:v1", own("localhost:5000", "a/b", some("v1"), false)),
            ("127.0.0.1:5000/a__b/c--d.e:_x.Y-z", own("127.0.0.1:5000", "a__b/c--d.e", some("_x.Y-z"), false)),
            ("[::1]:5000/a:v", own("[::1]:5000", "a", some("v"), false)),
            ("[2001:db8::1]/a", own("[2001:db8::1]", "a", None, false)),
            ("docker.io/busybox:1", own("docker.io", "library/busybox", some("1"), false)),
            ("index.docker.io/me/app", own("docker.io", "me/app", None, false)),
            ("Host/a", own("Host", "a", None, false)),
            (&format!("r.example/a@sha256:{HEX}"), own("r.example", "a", None, true)),
            (&format!("r.example:1/a:t@sha256:{HEX}"), own("r.example:1", "a", some("t"), true)),
        ];
        for (text, expected) in table {
            assert_eq!(registry(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_a_reason() {
        let long_tag = format!("r.example/a:{}", "t".repeat(129));
        let long_name = format!("r.example/{}", "n".repeat(250));
        let table = [
            ("", "names no registry"),
            ("busybox", "docker.io/library/busybox"),
            ("library/busybox:1", "docker.io/library/busybox:1"),
            ("https://r.example/a", "leave out https://"),
            ("docker://r.example/a", "leave out docker://"),
            ("r.example/", "not a repository"),
            ("r.example//a", "not a repository"),
            ("r.example/a/", "not a repository"),
            ("r.example/A", "lower-case"),
            ("r.example/a..b", "not a repository"),
            ("r.example/a___b", "not a repository"),
            ("r.example/-a", "not a repository"),
            ("r.example/a-", "not a repository"),
            ("r.example/../a", "not a repository"),
            ("r.example/é", "not a repository"),
            ("r.example/a:", "not a tag"),
            ("r.example/a:.x", "not a tag"),
            ("r.example/a:b c", "not a tag"),
            ("r.example/a:t:u", "not a repository"),
            ("r.example/a@sha256:12", "not a digest"),
            ("r.example/a@", "not a digest"),
            ("r.example:x/a", "not a port"),
            ("r.example:/a", "not a port"),
            ("r.example:70000/a", "not a port"),
            ("-r.example/a", "not a registry host"),
            ("r..example/a", "not a registry host"),
            ("[::1/a", "not a registry host"),
            ("[r.example]/a", "not a registry host"),
            ("r_e.example/a", "not a registry host"),
            ("oci:", "wants a directory"),
            ("oci::tag", "wants a directory"),
            ("oci:dir:", "not a tag"),
            ("oci:dir:-x", "not a tag"),
            ("oci:dir@sha256:zz", "not a digest"),
            (long_tag.as_str(), "128"),
            (long_name.as_str(), "255"),
        ];
        for (text, reason) in table {
            let error = text.parse::<Reference>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn layouts_have_a_directory_and_maybe_a_name() {
        let layout = |text: &str| match text.parse() {
            Ok(Reference::Layout(r)) => (r.dir.display().to_string(), r.tag, r.digest.is_some()),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(layout("oci:a/b"), ("a/b".into(), None, false));
        assert_eq!(layout("oci:/a/b:v1"), ("/a/b".into(), Some("v1".into()), false));
        assert_eq!(layout("oci:/a:app/x:v1"), ("/a".into(), Some("app/x:v1".into()), false));
        assert_eq!(layout(&format!("oci:/a@b:t@sha256:{HEX}")), ("/a@b".into(), Some("t".into()), true));
    }

    #[test]
    fn display_is_what_parse_takes() {
        for text in [
            "localhost:5000/a/b:v1".to_owned(),
            "[::1]:5000/a".to_owned(),
            format!("r.example/a:t@sha256:{HEX}"),
            "oci:/a/b:v1".to_owned(),
            format!("oci:a@sha256:{HEX}"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), text);
        }
    }

    #[test]
    fn selectors_prefer_the_digest_and_default_to_latest() {
        let selector = |text: &str| text.parse::<Reference>().unwrap().selector();
        assert_eq!(selector("localhost/a"), Some(Selector::Tag("latest".into())));
        assert_eq!(selector("localhost/a:v"), Some(Selector::Tag("v".into())));
        assert_eq!(selector(&format!("localhost/a:v@sha256:{HEX}")), Some(Selector::Digest(Digest::of(b""))));
        assert_eq!(selector("oci:a"), None);
        assert_eq!(selector("oci:a:v"), Some(Selector::Tag("v".into())));
    }

    #[test]
    fn with_tag_keeps_the_repository_and_checks_the_tag() {
        let reference: Reference = format!("localhost/a:v@sha256:{HEX}").parse().unwrap();
        let tagged = reference.with_tag("v_accelerated").unwrap();
        assert_eq!(tagged.to_string(), "localhost/a:v_accelerated");
        assert!(tagged.same_repository(&reference));
        assert!(reference.with_tag(&"x".repeat(129)).is_err());
        assert_eq!(tagged.with_digest(Digest::of(b"")).to_string(), format!("localhost/a@sha256:{HEX}"));
    }
}
