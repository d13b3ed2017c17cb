//! Which ID inside a user namespace is which outside.
use std::fmt::Write as _;

/// Most ranges that the kernel takes (user_namespaces(7)).
const RANGES_MAX: usize = 340;

/// User and group IDs of a user namespace, each in ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    users: Vec<Range>,
    groups: Vec<Range>,
}

/// IDs from `inside` on are those from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

/// A mapping that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the ID mapping {text:?} {problem}")]
pub struct BadIdMap {
    text: String,
    problem: &'static str,
}

impl IdMap {
    /// From two texts as containerd writes them: `INSIDE:OUTSIDE:COUNT`, several with commas between.
    ///
    /// # Errors
    /// If one isn't of this form, maps an ID twice, or leaves root out, without whom nobody owns a container's root.
    pub fn parse(users: &str, groups: &str) -> Result<Self, BadIdMap> {
        Ok(Self { users: ranges(users)?, groups: ranges(groups)? })
    }

    /// The user and the group outside that root is.
    pub fn root(&self) -> (u32, u32) {
        let root = |ranges: &[Range]| ranges.iter().find(|range| range.inside == 0).map_or(0, |range| range.outside);
        (root(&self.users), root(&self.groups))
    }

    /// As a user namespace's `uid_map` takes it; equal for equal mappings.
    pub fn users(&self) -> String {
        lines(&self.users)
    }

    /// As a user namespace's `gid_map` takes it; equal for equal mappings.
    pub fn groups(&self) -> String {
        lines(&self.groups)
    }
}

fn lines(ranges: &[Range]) -> String {
    ranges.iter().fold(String::new(), |mut text, Range { inside, outside, count }| {
        // Writing to a text doesn't fail.
        let _ = writeln!(text, "{inside} {outside} {count}");
        text
    })
}

fn ranges(text: &str) -> Result<Vec<Range>, BadIdMap> {
    let bad = |problem| BadIdMap { text: text.chars().take(80).collect(), problem };
    let mut ranges = text.split(',').map(range).collect::<Option<Vec<_>>>();
    let ranges = ranges.as_mut().ok_or_else(|| bad("must be INSIDE:OUTSIDE:COUNT, with commas between several"))?;
    if ranges.len() > RANGES_MAX {
        return Err(bad("has more than 340 ranges"));
    }
    for start in [|range: &Range| range.outside, |range: &Range| range.inside] {
        ranges.sort_by_key(start);
        if ranges.windows(2).any(|pair| u64::from(start(&pair[0])) + u64::from(pair[0].count) > start(&pair[1]).into())
        {
            return Err(bad("maps an ID twice"));
        }
    }
    if ranges.first().is_none_or(|first| first.inside != 0) {
        return Err(bad("must say who root (0) is"));
    }
    Ok(std::mem::take(ranges))
}

fn range(text: &str) -> Option<Range> {
    let mut numbers = text.split(':').map(|number| {
        // Not a sign, which parsing would take.
        number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse::<u32>().ok()).flatten()
    });
    let range = Range { inside: numbers.next()??, outside: numbers.next()??, count: numbers.next()?? };
    // The last ID of all stands for none.
    let fits = |start: u32| u64::from(start) + u64::from(range.count) <= u64::from(u32::MAX);
    (numbers.next().is_none() && range.count > 0 && fits(range.inside) && fits(range.outside)).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_several_ranges_are_read_in_any_order() {
        let map = IdMap::parse("1000:1:7,0:100000:1000", "0:200000:65536").unwrap();
        assert_eq!(map.users(), "0 100000 1000\n1000 1 7\n");
        assert_eq!(map.groups(), "0 200000 65536\n");
        assert_eq!(map.root(), (100_000, 200_000));
        assert_eq!(IdMap::parse("0:100000:1000,1000:1:7", "0:200000:65536"), Ok(map));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, told) in [
            ("", "INSIDE:OUTSIDE:COUNT"),
            ("0:1", "INSIDE:OUTSIDE:COUNT"),
            ("0:1:2:3", "INSIDE:OUTSIDE:COUNT"),
            ("0:+1:2", "INSIDE:OUTSIDE:COUNT"),
            ("0:-1:2", "INSIDE:OUTSIDE:COUNT"),
            ("0:1:0", "INSIDE:OUTSIDE:COUNT"),
            ("0:4294967295:1", "INSIDE:OUTSIDE:COUNT"),
            ("0:1:4294967296", "INSIDE:OUTSIDE:COUNT"),
            ("0:1:2,", "INSIDE:OUTSIDE:COUNT"),
            ("1:1:1", "root"),
            ("0:1:10,5:100:10", "twice"),
            ("0:1:10,10:5:10", "twice"),
        ] {
            let error = IdMap::parse("0:1:1", text).unwrap_err().to_string();
            assert!(error.contains(told) && error.contains(&format!("{text:?}")), "{text}: {error}");
            assert_eq!(IdMap::parse(text, "0:1:1").unwrap_err().to_string(), error);
        }
        let many = |count: u32| (0..count).map(|n| format!("{}:{}:1", n * 2, n * 2)).collect::<Vec<_>>().join(",");
        assert!(IdMap::parse(&many(340), "0:1:1").is_ok());
        assert!(IdMap::parse(&many(341), "0:1:1").unwrap_err().to_string().contains("340"));
    }
}
