//! Layers of generated files, as large as one likes: every file differs from all others, and they compress about as
//! programs do.

use anyhow::Result;

use crate::corpus::{noise, text};
use crate::layout::{Compression, Layer, Layout, hex_digest};
use crate::tarball::{Entry, TarWriter};

/// Bytes that the files are cut from.
const BLOCK: usize = 1 << 20;
/// Bytes at the start of a file that no other file has.
const HEAD: usize = 64;

/// The files of one layer: `data/000/00000`, `data/000/00001`, …
pub struct Filler {
    seed: u64,
    count: usize,
    len: usize,
    block: Vec<u8>,
}

impl Filler {
    /// `count` files of `len` bytes each. Another seed makes other files.
    pub fn new(seed: u64, count: usize, len: usize) -> Self {
        let (noise, text) = (noise(seed, BLOCK), text(seed, BLOCK));
        // A third of every 4 KiB is noise.
        let pages = noise.chunks(4096).zip(text.chunks(4096));
        let block = pages.flat_map(|(noise, text)| [&noise[..1300], &text[1300..]].concat()).collect();
        Self { seed, count, len, block }
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Where a file is, from the root of the image.
    pub fn path(&self, number: usize) -> String {
        format!("data/{:03}/{number:05}", number / 100)
    }

    /// What is in a file.
    pub fn content(&self, number: usize) -> Vec<u8> {
        let mut bytes = noise(self.seed ^ ((number as u64 + 1) << 20), HEAD.min(self.len));
        let mut from = number.wrapping_mul(7919) % self.block.len();
        while bytes.len() < self.len {
            let len = (self.len - bytes.len()).min(self.block.len() - from);
            bytes.extend_from_slice(&self.block[from..from + len]);
            from = 0;
        }
        bytes
    }

    /// `sha256sum` of all files one after the other, in the order of their paths or backwards.
    pub fn sha256(&self, backwards: bool) -> String {
        let numbers: Vec<usize> = if backwards { (0..self.count).rev().collect() } else { (0..self.count).collect() };
        let bytes: Vec<u8> = numbers.into_iter().flat_map(|number| self.content(number)).collect();
        hex_digest(&bytes).trim_start_matches("sha256:").to_owned()
    }

    /// Writes them as a layer.
    pub fn layer(&self, layout: &Layout, how: &Compression) -> Result<Layer> {
        self.layer_in("data", layout, how)
    }

    /// Writes them as a layer, below another directory than `data`.
    pub fn layer_in(&self, dir: &str, layout: &Layout, how: &Compression) -> Result<Layer> {
        layout.layer(how, |out| {
            let mut tar = TarWriter::new(out);
            tar.entry(&Entry::dir(dir))?;
            for number in 0..self.count {
                if number.is_multiple_of(100) {
                    tar.entry(&Entry::dir(format!("{dir}/{:03}", number / 100)))?;
                }
                let path = self.path(number).replacen("data", dir, 1);
                tar.entry(&Entry::file(path, self.content(number)))?;
            }
            tar.finish()?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_differ_and_are_the_same_every_time() {
        let (one, two) = (Filler::new(1, 3, 3_000_000), Filler::new(2, 3, 100));
        assert_eq!((one.content(0).len(), two.content(2).len()), (3_000_000, 100));
        assert!(one.content(0) != one.content(1) && one.content(0)[..100] != two.content(0)[..]);
        assert!(one.content(2) == Filler::new(1, 3, 3_000_000).content(2));
        assert_ne!(one.sha256(false), one.sha256(true));
        assert_eq!(one.path(123), "data/001/00123");
    }
}
