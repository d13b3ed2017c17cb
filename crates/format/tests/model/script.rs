//! Layers written entry by entry, for tables of cases.
use super::Format;
use super::tarball::{Header, extended, padded, record};

/// A tar being written.
#[derive(Clone, Default)]
pub struct Script(pub Vec<u8>);

impl Script {
    pub fn new() -> Self {
        Self::default()
    }

    /// A directory of mode 0755, owned by 10:20, of second 1000.
    pub fn dir(self, path: &str) -> Self {
        self.header(plain(b'5', path, 0, 0o755), b"")
    }

    /// A file of mode 0644, owned by 10:20, of second 1000.
    pub fn file(self, path: &str, data: &str) -> Self {
        self.header(plain(b'0', path, data.len(), 0o644), data.as_bytes())
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        let mut header = plain(b'2', path, 0, 0o777);
        header.put(157, 100, target.as_bytes());
        self.header(header, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        let mut header = plain(b'1', path, 0, 0o644);
        header.put(157, 100, target.as_bytes());
        self.header(header, b"")
    }

    /// PAX records for the next entry.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key.as_bytes(), value)).collect();
        extended(&mut self.0, Format::Pax, b'x', b"PaxHeaders.0/x", &data);
        self
    }

    /// Any header, and data with its padding.
    pub fn header(mut self, header: Header, data: &[u8]) -> Self {
        self.0.extend(header.sealed());
        padded(&mut self.0, data);
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// The archive with its end marker.
    pub fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}

/// A ustar header, owned by 10:20, of second 1000.
pub fn plain(kind: u8, path: &str, size: usize, mode: u64) -> Header {
    let mut header = Header::new(Format::Ustar, kind, path.as_bytes(), size as u64);
    header.octal(100, 8, mode);
    header.octal(108, 8, 10);
    header.octal(116, 8, 20);
    header.octal(136, 12, 1000);
    header
}
