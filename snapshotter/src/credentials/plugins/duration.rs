//! Durations as Go and Kubernetes write them: `12h0m0s`, `1.5h`, `300ms`, `0`.
use std::time::Duration;

/// Units and what they are in seconds; the longer names of two that begin alike come first.
const UNITS: [(&str, f64); 7] =
    [("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
/// No answer holds longer than this.
const MAX: f64 = 366.0 * 24.0 * 3600.0;

/// The duration that `text` writes down; `None` if it is none, or below zero. It is cut to a year.
pub fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let (unit, factor) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        seconds += number * factor;
    }
    (!text.is_empty()).then(|| Duration::from_secs_f64(f64::min(seconds, MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_s_durations_are_understood() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("12h", 43_200_000),
            ("12h0m0s", 43_200_000),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("1m30s", 90_000),
            ("2000us", 2),
            ("2000µs", 2),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("9999999h"), Some(Duration::from_secs_f64(MAX)));
        for text in ["", "1", "h", "-1s", "1x", "1h1", "1..2s", " 1s"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
