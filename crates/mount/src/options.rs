//! How an image is mounted.
use std::{fmt, str::FromStr};

/// What shows the merged tree to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// [`Driver::Erofs`] where it works, [`Driver::Fuse`] elsewhere.
    #[default]
    Auto,
    /// The kernel's EROFS reads the tree, and FUSE serves no more than the layers' bytes; Linux 6.12 and later.
    Erofs,
    /// A FUSE filesystem that serves the tree itself; any kernel.
    Fuse,
}

/// A driver's name that isn't one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown driver {0:?}: expected auto, erofs or fuse")]
pub struct UnknownDriver(String);

impl FromStr for Driver {
    type Err = UnknownDriver;

    fn from_str(text: &str) -> Result<Self, UnknownDriver> {
        match text {
            "auto" => Ok(Self::Auto),
            "erofs" => Ok(Self::Erofs),
            "fuse" => Ok(Self::Fuse),
            _ => Err(UnknownDriver(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Erofs => "erofs",
            Self::Fuse => "fuse",
        })
    }
}

/// How an image is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What shows the tree to the kernel.
    pub driver: Driver,
    /// Whether the layers' devices are filled in the background until they are whole.
    pub background_fill: bool,
    /// Threads that answer the kernel, at least 1, with the driver `fuse`; those of `erofs` are the process's. They only
    /// answer what is cached: a fetch doesn't hold one up.
    pub threads: usize,
    /// KiB that the kernel reads ahead of a sequential reader and around a page fault: the same with either driver, so
    /// that a hot blob that was laid out by what one of them read nearly suits the other. Devices read ahead by themselves
    /// while they are filled, so more only fetches spans that nobody needs: a first `rustc --print cfg` makes 125 MB of
    /// spans come at 128 KiB, 136 at 256, 143 at 512, 152 at 1024. What is cached costs the same CPU time at all of these.
    pub read_ahead_kib: u32,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self { driver: Driver::default(), background_fill: false, threads: 2, read_ahead_kib: 256 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_names_round_trip() {
        for driver in [Driver::Auto, Driver::Erofs, Driver::Fuse] {
            assert_eq!(driver.to_string().parse(), Ok(driver));
        }
        assert!("fusé".parse::<Driver>().unwrap_err().to_string().contains("auto, erofs or fuse"));
    }
}
