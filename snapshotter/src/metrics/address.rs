//! Where metrics are served: a TCP address, or a Unix socket.
use serde::{Deserialize, Deserializer, de};
use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

/// How a Unix socket begins.
const UNIX: &str = "unix:";

/// An address to serve HTTP at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `127.0.0.1:9440`.
    Tcp(SocketAddr),
    /// `unix:/run/…`.
    Unix(PathBuf),
}

/// Not an address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no address: expected IP:PORT, such as \"127.0.0.1:9440\", or \"unix:/absolute/path\"")]
pub struct NoAddress(String);

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let wrong = || NoAddress(text.chars().take(120).collect());
        match text.strip_prefix(UNIX) {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(_) => Err(wrong()),
            None => text.parse().map(Self::Tcp).map_err(|_| wrong()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_others_are_refused() {
        for text in ["127.0.0.1:9440", "[::1]:0", "unix:/run/x.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "9440", "localhost:9440", "unix:", "unix:relative", "/run/x.sock"] {
            assert_eq!(text.parse::<Address>(), Err(NoAddress(text.into())));
        }
    }
}
