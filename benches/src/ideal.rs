//! The link to a registry, and the least time that a cold start over it can take.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use serde::{Deserialize, Serialize};

/// Round trips that no start does without: the manifest, what it refers to, and the first byte of the content.
const ROUND_TRIPS: f64 = 3.0;

/// Mbit/s, and milliseconds of delay each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Way(pub u32, pub u64);

impl Way {
    /// The one that README.md tells of.
    pub const USUAL: Self = Self(300, 5);

    /// From here to there.
    pub fn delay(self) -> Duration {
        Duration::from_millis(self.1)
    }

    /// Seconds that bytes take on the link.
    pub fn transfer(self, bytes: u64) -> f64 {
        bytes as f64 * 8.0 / (f64::from(self.0) * 1e6)
    }

    /// Seconds there and back.
    pub fn round_trip(self) -> f64 {
        2.0 * self.delay().as_secs_f64()
    }

    /// Seconds that a start takes at least (T*): it can't be quicker than from a warm local disk (`warm`, in seconds), nor
    /// than what it needs (`packed` bytes) crosses the link, and in both cases it has to ask first.
    pub fn ideal(self, warm: f64, packed: u64) -> f64 {
        warm.max(self.transfer(packed)) + ROUND_TRIPS * self.round_trip()
    }
}

/// For people.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(megabits, delay) = self;
        match megabits % 1000 {
            0 => write!(f, "{} Gbit/s and {delay} ms each way", megabits / 1000),
            _ => write!(f, "{megabits} Mbit/s and {delay} ms each way"),
        }
    }
}

/// `MEGABITS/DELAY`.
impl FromStr for Way {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (megabits, delay) = text.split_once('/').context("a link is MEGABITS/MILLISECONDS, as 300/5")?;
        let way = Self(megabits.parse()?, delay.parse()?);
        ensure!(way.0 > 0, "a link of no bandwidth");
        Ok(way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_disk_and_link_counts_and_three_round_trips() {
        // 30 MB at 300 Mbit/s take 0.8 s; a round trip of twice 5 ms, three of them.
        let way = Way(300, 5);
        assert!((way.ideal(0.5, 30_000_000) - 0.83).abs() < 1e-9);
        assert!((way.ideal(1.25, 30_000_000) - 1.28).abs() < 1e-9);
        assert!((Way(100, 20).ideal(0.5, 30_000_000) - 2.52).abs() < 1e-9);
    }

    #[test]
    fn links_are_read_and_told() {
        assert_eq!("300/5".parse::<Way>().unwrap(), Way::USUAL);
        assert_eq!(Way(1000, 1).to_string(), "1 Gbit/s and 1 ms each way");
        assert_eq!(Way(300, 5).to_string(), "300 Mbit/s and 5 ms each way");
        for wrong in ["300", "0/5", "fast/5", "300/-1"] {
            assert!(wrong.parse::<Way>().is_err(), "{wrong}");
        }
    }
}
