//! Platforms: what an image was built for, and which one is wanted.
use oci_spec::image::Platform;
use std::{fmt, str::FromStr};

/// A platform as people write it: `os/architecture[/variant]`, in Go's names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PlatformName {
    /// For example `linux`.
    pub os: String,
    /// For example `amd64`.
    pub architecture: String,
    /// For example `v7`; `None` for the default one of the architecture.
    pub variant: Option<String>,
}

/// Why a text isn't a platform.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a platform: expected os/architecture, as in linux/amd64")]
pub struct PlatformError(String);

impl PlatformName {
    /// The platform of this machine.
    pub fn host() -> Self {
        Self::normal("linux", std::env::consts::ARCH, None)
    }

    /// The platform of a descriptor or a config.
    pub fn of(platform: &Platform) -> Self {
        let variant = platform.variant().as_deref();
        Self::normal(&platform.os().to_string(), &platform.architecture().to_string(), variant)
    }

    /// The same platform always by the same name (containerd, platforms/database.go).
    fn normal(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let lower = architecture.to_ascii_lowercase();
        let variant = variant.filter(|v| !v.is_empty()).map(str::to_ascii_lowercase);
        let (architecture, variant) = match (lower.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v),
            ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
            ("aarch64" | "arm64", v) => ("arm64", v),
            ("i386" | "i686" | "x86" | "386", _) => ("386", None),
            ("armhf", _) => ("arm", Some("v7")),
            ("armel", _) => ("arm", Some("v6")),
            ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            (other, v) => (other, v),
        };
        Self { os: os.to_ascii_lowercase(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// Whether these are names for no platform, as on attachments.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }
}

impl FromStr for PlatformName {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let bad = || PlatformError(text.chars().take(80).collect());
        let parts: Vec<_> = text.split('/').collect();
        let word = |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        if !parts.iter().all(word) {
            return Err(bad());
        }
        match parts.as_slice() {
            [os, architecture] => Ok(Self::normal(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::normal(os, architecture, Some(variant))),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for PlatformName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|v| write!(f, "/{v}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_platform_has_one_name() {
        let name = |text: &str| text.parse::<PlatformName>().unwrap().to_string();
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/386", "linux/386"),
            ("linux/s390x", "linux/s390x"),
            ("windows/amd64/v3", "windows/amd64/v3"),
        ] {
            assert_eq!(name(text), expected);
        }
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/a b"] {
            assert!(bad.parse::<PlatformName>().is_err(), "{bad}");
        }
    }
}
