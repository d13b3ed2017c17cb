//! Where the classes of Java's modules lie in `lib/modules`, the JDK's own image format (jdk/internal/jimage,
//! `ImageHeader` and `ImageLocation`, of OpenJDK).
use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of the header.
pub const HEADER: u64 = 28;
/// Most bytes of an index that are looked at.
const INDEX_MAX: u64 = 64 << 20;
/// The first four bytes, in the byte order of the machine that the image was made for.
const MAGIC: u32 = 0xcafe_dada;
/// Attributes of a location.
const END: u8 = 0;
const MODULE: u8 = 1;
const PARENT: u8 = 2;
const OFFSET: u8 = 5;
const COMPRESSED: u8 = 6;
const UNCOMPRESSED: u8 = 7;

/// What the header says.
pub struct Image {
    big: bool,
    locations: usize,
    location_bytes: usize,
    string_bytes: usize,
}

impl Image {
    /// Reads the header; `None` if the file is something else.
    pub fn parse(header: &[u8]) -> Option<Self> {
        let big = match header.first_chunk()? {
            magic if u32::from_le_bytes(*magic) == MAGIC => false,
            magic if u32::from_be_bytes(*magic) == MAGIC => true,
            _ => return None,
        };
        let number = |at| Some(number(header, at, big)? as usize);
        let image = Self { big, locations: number(16)?, location_bytes: number(20)?, string_bytes: number(24)? };
        (image.index() <= INDEX_MAX).then_some(image)
    }

    /// Bytes from the beginning of the file to where contents begin.
    pub fn index(&self) -> u64 {
        HEADER + 8 * self.locations as u64 + self.location_bytes as u64 + self.string_bytes as u64
    }

    /// Where the contents lie of which `wanted` says so, given their module and package; `index` is the beginning of the
    /// file. What lies no further apart than `gap` is one range. What makes no sense is left out.
    pub fn contents(&self, index: &[u8], gap: u64, wanted: impl Fn(&str, &str) -> bool) -> Vec<Range<u64>> {
        let table = HEADER as usize + 4 * self.locations;
        let locations = table + 4 * self.locations;
        let strings = index.get(locations + self.location_bytes..).unwrap_or_default();
        let text = |at: u64| {
            let rest = usize::try_from(at).ok().and_then(|at| strings.get(at..)).unwrap_or_default();
            std::str::from_utf8(rest.split(|byte| *byte == 0).next().unwrap_or_default()).unwrap_or_default()
        };
        let mut found = BTreeMap::new();
        for entry in 0..self.locations {
            let Some(at) = number(index, table + 4 * entry, self.big) else { break };
            let Some(location) = index.get(locations + at as usize..) else { continue };
            let attributes = attributes(location);
            if wanted(text(attributes[MODULE as usize]), text(attributes[PARENT as usize])) {
                let len = match attributes[COMPRESSED as usize] {
                    0 => attributes[UNCOMPRESSED as usize],
                    len => len,
                };
                let start = self.index().saturating_add(attributes[OFFSET as usize]);
                found.insert(start, start.saturating_add(len));
            }
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (start, end) in found {
            match ranges.last_mut() {
                Some(last) if start <= last.end.saturating_add(gap) => last.end = last.end.max(end),
                _ => ranges.push(start..end),
            }
        }
        ranges
    }
}

fn number(bytes: &[u8], at: usize, big: bool) -> Option<u32> {
    let bytes = *bytes.get(at..)?.first_chunk()?;
    Some(if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
}

/// A location's attributes by their kinds: a byte with the kind and the length of the value less one, then the value, the
/// most significant byte first.
fn attributes(location: &[u8]) -> [u64; 8] {
    let (mut attributes, mut rest) = ([0; 8], location);
    while let Some((first, after)) = rest.split_first() {
        let (kind, len) = (first >> 3, usize::from(first & 7) + 1);
        let Some((value, after)) = after.split_at_checked(len).filter(|_| kind != END) else { break };
        if let Some(attribute) = attributes.get_mut(usize::from(kind)) {
            *attribute = value.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        }
        rest = after;
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image with these contents: module, package, offset, length.
    fn image(contents: &[(&str, &str, u32, u32)]) -> Vec<u8> {
        let (mut table, mut locations, mut strings) = (Vec::new(), Vec::new(), vec![0]);
        for (module, package, offset, len) in contents {
            table.extend((locations.len() as u32).to_le_bytes());
            for (kind, text) in [(MODULE, module), (PARENT, package)] {
                locations.push(kind << 3 | 3);
                locations.extend((strings.len() as u32).to_be_bytes());
                strings.extend(text.as_bytes());
                strings.push(0);
            }
            for (kind, value) in [(OFFSET, offset), (UNCOMPRESSED, len)] {
                locations.push(kind << 3 | 3);
                locations.extend(value.to_be_bytes());
            }
            locations.push(END);
        }
        let count = contents.len() as u32;
        let numbers = [MAGIC, 1 << 16, 0, count, count, locations.len() as u32, strings.len() as u32];
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        bytes.extend(vec![0; 4 * contents.len()]);
        bytes.extend([table, locations, strings].concat());
        bytes
    }

    #[test]
    fn contents_are_found_by_module_and_package() {
        let bytes = image(&[
            ("java.base", "java/lang", 0, 100),
            ("java.base", "java/util", 150, 50),
            ("java.desktop", "java/awt", 200, 5000),
            ("java.desktop", "java/beans", 5200, 10),
        ]);
        let image = Image::parse(&bytes).unwrap();
        assert_eq!(image.index(), bytes.len() as u64);
        let found = image.contents(&bytes, 50, |module, package| module == "java.base" || package == "java/beans");
        let start = image.index();
        assert_eq!(found, [start..start + 200, start + 5200..start + 5210]);
        for end in 0..bytes.len() {
            // Torn ones have less, and nothing breaks.
            assert!(
                Image::parse(&bytes[..end])
                    .is_none_or(|image| image.contents(&bytes[..end], 0, |_, _| true).len() <= 4)
            );
        }
        assert!(Image::parse(b"something else").is_none());
    }
}
