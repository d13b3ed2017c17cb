//! What nodes run images with, by name: Clipper's modes over its drivers, and others.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, Result, bail};
use serde::{Deserialize, Serialize};

/// What a node runs images with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum System {
    /// containerd as it comes: download all, unpack all, start.
    Overlayfs,
    /// containerd 2.1 with its EROFS snapshotter: download all, make an EROFS image of each layer, start.
    ContainerdErofs,
    /// stargz-snapshotter, with the image converted to eStargz.
    Stargz,
    /// SOCI, with an index beside the base image.
    Soci,
    /// Nydus with its zran index of the base image's own layers.
    NydusReference,
    /// Nydus with the image in its own format.
    Nydus,
    /// The same, told to fetch nothing in the background.
    NydusLazy,
    /// Clipper.
    Clipper(Conversion, Driver),
}

/// How an image is converted for Clipper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversion {
    /// Index-only mode, nothing known of the start-up.
    IndexUnlisted,
    /// Index-only mode as it comes: the start-up is worked out by the converter.
    Index,
    /// The same with a hot blob laid out by a recorded start.
    IndexRecorded,
    /// Full mode as it comes.
    Full,
    /// The same with a hot blob laid out by a recorded start.
    FullRecorded,
}

/// How Clipper shows images to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// The kernel's EROFS reads the tree, and devices by way of FUSE.
    Erofs,
    /// FUSE for all.
    Fuse,
}

/// All conversions, in the order of reports.
const CONVERSIONS: [Conversion; 5] = [
    Conversion::IndexUnlisted,
    Conversion::Index,
    Conversion::IndexRecorded,
    Conversion::Full,
    Conversion::FullRecorded,
];

impl System {
    /// All, in the order of reports.
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::Overlayfs,
            Self::ContainerdErofs,
            Self::Stargz,
            Self::Soci,
            Self::NydusReference,
            Self::Nydus,
            Self::NydusLazy,
        ];
        for driver in [Driver::Fuse, Driver::Erofs] {
            all.extend(CONVERSIONS.map(|conversion| Self::Clipper(conversion, driver)));
        }
        all
    }

    /// Those that are compared unless one says otherwise: of Clipper's driver `fuse` no more than tells it from `erofs`.
    pub fn usual() -> Vec<Self> {
        let spare = |system: &Self| {
            let Self::Clipper(conversion, driver) = system else { return false };
            let once = [Conversion::IndexUnlisted, Conversion::Full, Conversion::FullRecorded];
            *driver == Driver::Fuse && once.contains(conversion)
        };
        Self::all().into_iter().filter(|system| !spare(system)).collect()
    }

    /// Its name in tables.
    pub fn name(self) -> String {
        match self {
            Self::Overlayfs => "overlayfs".into(),
            Self::ContainerdErofs => "containerd 2.1, erofs".into(),
            Self::Stargz => "stargz".into(),
            Self::Soci => "SOCI".into(),
            Self::NydusReference => "Nydus, OCI reference".into(),
            Self::Nydus => "Nydus".into(),
            Self::NydusLazy => "Nydus, no prefetch".into(),
            Self::Clipper(conversion, Driver::Erofs) => format!("Clipper {}", conversion.name()),
            Self::Clipper(conversion, Driver::Fuse) => format!("Clipper {}, fuse", conversion.name()),
        }
    }

    /// Whether it is Clipper.
    pub fn is_clipper(self) -> bool {
        matches!(self, Self::Clipper(..))
    }
}

/// As on the command line and in files: `overlayfs`, `index-recorded-erofs`.
impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlayfs => f.write_str("overlayfs"),
            Self::ContainerdErofs => f.write_str("containerd-erofs"),
            Self::Stargz => f.write_str("stargz"),
            Self::Soci => f.write_str("soci"),
            Self::NydusReference => f.write_str("nydus-reference"),
            Self::Nydus => f.write_str("nydus"),
            Self::NydusLazy => f.write_str("nydus-lazy"),
            Self::Clipper(conversion, driver) => write!(f, "{}-{}", conversion.option(), driver.option()),
        }
    }
}

impl FromStr for System {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // Before there was another driver, `fuse` went without saying.
        let with_driver = format!("{text}-{}", Driver::Fuse.option());
        let meant = |system: &Self| [text, &with_driver].contains(&system.to_string().as_str());
        match Self::all().into_iter().find(meant) {
            Some(system) => Ok(system),
            None => {
                let all: Vec<String> = Self::all().iter().map(Self::to_string).collect();
                bail!("no system is called {text}; there are: {}", all.join(", "))
            }
        }
    }
}

impl TryFrom<String> for System {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<System> for String {
    fn from(system: System) -> Self {
        system.to_string()
    }
}

impl Conversion {
    fn name(self) -> &'static str {
        match self {
            Self::IndexUnlisted => "index-only, no list",
            Self::Index => "index-only",
            Self::IndexRecorded => "index-only, recorded",
            Self::Full => "full",
            Self::FullRecorded => "full, recorded",
        }
    }

    fn option(self) -> &'static str {
        match self {
            Self::IndexUnlisted => "index-unlisted",
            Self::Index => "index",
            Self::IndexRecorded => "index-recorded",
            Self::Full => "full",
            Self::FullRecorded => "full-recorded",
        }
    }
}

impl Driver {
    /// Both, in the order of reports.
    pub const ALL: [Self; 2] = [Self::Erofs, Self::Fuse];

    /// As Clipper's settings call it.
    pub fn option(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Fuse => "fuse",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.option())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_systems() {
        for system in System::all() {
            assert_eq!(system.to_string().parse::<System>().unwrap(), system);
        }
        assert!("erofs".parse::<System>().unwrap_err().to_string().contains("containerd-erofs"));
    }

    #[test]
    fn measurements_from_before_there_were_drivers_are_of_fuse() {
        let old: System = serde_json::from_str("\"index-recorded\"").unwrap();
        assert_eq!(old, System::Clipper(Conversion::IndexRecorded, Driver::Fuse));
        assert_eq!(serde_json::to_string(&old).unwrap(), "\"index-recorded-fuse\"");
    }

    #[test]
    fn usual_ones_compare_both_drivers() {
        let usual = System::usual();
        for system in
            ["index-erofs", "index-unlisted-erofs", "index-recorded-fuse", "full-recorded-erofs", "nydus", "overlayfs"]
        {
            assert!(usual.contains(&system.parse().unwrap()), "{system}");
        }
        assert!(!usual.contains(&"full-fuse".parse().unwrap()));
    }
}
