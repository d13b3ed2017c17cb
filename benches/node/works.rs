//! Six kinds of work on a file tree whose every byte is in memory.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clipper_tests::daemon::program;
use clipper_tests::walk::Tree;
use serde::{Deserialize, Serialize};

/// Largest of the small files, bytes.
const SMALL: u64 = 64 << 10;
/// Smallest of the large files, bytes.
const LARGE: u64 = 1 << 20;
/// Most bytes of large files.
const LARGE_TOTAL: u64 = 512 << 20;
/// Single reads.
const READS: usize = 100_000;
/// Bytes of each.
const PAGE: u64 = 4096;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// lstat of every path.
    Stat,
    /// Open, read and close of every file up to 64 KiB.
    SmallFiles,
    /// Reading files from 1 MiB on from start to end, 128 KiB at a time.
    Sequential,
    /// Reads of 4 KiB at random places of these.
    Random,
    /// Mapping these and touching every page.
    Faults,
    /// Listing every directory.
    Directories,
}

impl Work {
    /// All, in the order of reports.
    pub const ALL: [Self; 6] =
        [Self::Stat, Self::SmallFiles, Self::Sequential, Self::Random, Self::Faults, Self::Directories];

    /// In a table's head.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stat => "lstat",
            Self::SmallFiles => "small files",
            Self::Sequential => "sequential",
            Self::Random => "random 4 KiB",
            Self::Faults => "page faults",
            Self::Directories => "readdir",
        }
    }
}

/// What of a tree is worked on, below some root.
pub struct Workload {
    all: Vec<PathBuf>,
    small: Vec<PathBuf>,
    small_bytes: u64,
    large: Vec<PathBuf>,
    large_sizes: Vec<u64>,
    directories: Vec<PathBuf>,
    entries: usize,
}

impl Workload {
    /// Everything in `tree` as it stands below `root`.
    pub fn new(root: &Path, tree: &Tree) -> Self {
        let (mut small, mut large, mut large_sizes, mut directories) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut small_bytes, mut large_bytes) = (0, 0);
        for (path, node) in tree {
            let path = root.join(path);
            match node.mode & 0o170_000 {
                0o040_000 => directories.push(path),
                0o100_000 if (1..=SMALL).contains(&node.size) => {
                    small_bytes += node.size;
                    small.push(path);
                }
                0o100_000 if node.size >= LARGE && large_bytes + node.size <= LARGE_TOTAL => {
                    large_bytes += node.size;
                    large_sizes.push(node.size);
                    large.push(path);
                }
                _ => {}
            }
        }
        // What the root itself holds isn't listed.
        let entries = tree.keys().filter(|path| path.components().count() > 1).count();
        let all = tree.keys().map(|path| root.join(path)).collect();
        Self { all, small, small_bytes, large, large_sizes, directories, entries }
    }

    /// How much there is, for people: paths, small files, MB of large files.
    pub fn extent(&self) -> (usize, usize, u64) {
        (self.all.len(), self.small.len(), self.large_sizes.iter().sum::<u64>() / 1_000_000)
    }

    /// Does it; gives seconds.
    pub fn run(&self, work: Work) -> Result<f64> {
        match work {
            Work::Stat => timed(|| {
                for path in &self.all {
                    black_box(fs::symlink_metadata(path)?);
                }
                Ok(())
            }),
            Work::SmallFiles => timed(|| {
                let (mut buffer, mut bytes) = (vec![0; SMALL as usize + 1], 0);
                for path in &self.small {
                    bytes += File::open(path)?.read(&mut buffer)? as u64;
                }
                ensure!(bytes == self.small_bytes, "{bytes} bytes of {} were read", self.small_bytes);
                Ok(())
            }),
            Work::Sequential => timed(|| {
                let (mut buffer, mut bytes) = (vec![0; 128 << 10], 0);
                for path in &self.large {
                    let mut file = File::open(path)?;
                    loop {
                        match file.read(&mut buffer)? {
                            0 => break,
                            read => bytes += read as u64,
                        }
                    }
                }
                let expected: u64 = self.large_sizes.iter().sum();
                ensure!(bytes == expected, "{bytes} bytes of {expected} were read");
                Ok(())
            }),
            Work::Random => {
                let files = self.large.iter().map(File::open).collect::<std::io::Result<Vec<_>>>()?;
                let pages: u64 = self.large_sizes.iter().map(|size| size / PAGE).sum();
                ensure!(pages > 0, "no large files");
                let mut dice = 1u64;
                let places = (0..READS).map(|_| {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    self.place((dice >> 20) % pages)
                });
                let places: Vec<(usize, u64)> = places.collect();
                timed(|| {
                    let mut buffer = [0; PAGE as usize];
                    for (file, offset) in places {
                        files[file].read_exact_at(&mut buffer, offset)?;
                    }
                    Ok(())
                })
            }
            Work::Faults => self.faults(),
            Work::Directories => timed(|| {
                let mut entries = 0;
                for path in &self.directories {
                    for entry in fs::read_dir(path)? {
                        black_box(entry?);
                        entries += 1;
                    }
                }
                ensure!(entries == self.entries, "{entries} names instead of {}", self.entries);
                Ok(())
            }),
        }
    }

    /// File and offset of a page of the large files, counted through.
    fn place(&self, mut page: u64) -> (usize, u64) {
        for (file, size) in self.large_sizes.iter().enumerate() {
            match page.checked_sub(size / PAGE) {
                Some(rest) => page = rest,
                None => return (file, page * PAGE),
            }
        }
        (0, 0)
    }

    fn faults(&self) -> Result<f64> {
        let touch = program("clipper")?.with_file_name("examples").join("page_faults");
        let mut child = Command::new(&touch)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}: build with --all-targets", touch.display()))?;
        let mut stdin = child.stdin.take().context("no pipe")?;
        for path in &self.large {
            writeln!(stdin, "{}", path.display())?;
        }
        drop(stdin);
        let output = child.wait_with_output()?;
        let said = String::from_utf8(output.stdout)?;
        let (seconds, pages) = said.trim().split_once(' ').context("page_faults failed")?;
        let expected: u64 = self.large_sizes.iter().map(|size| size.div_ceil(PAGE)).sum();
        ensure!(pages.parse() == Ok(expected), "{pages} pages instead of {expected}");
        Ok(seconds.parse()?)
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}
