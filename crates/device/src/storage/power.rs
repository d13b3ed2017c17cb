//! Power cuts: at every step of filling, recording, evicting and starting again the power fails, and whatever the disk
//! then has, presence speaks of nothing that isn't there.
use super::*;
use crate::disk::FileFacts;
use clipper_format::Digest;
use clipper_tests::power::{SimulatedDisk, SimulatedFile};
use std::{collections::BTreeSet, time::SystemTime};

const SIZE: u64 = 20 * BLOCK + 100;
const BLOCKS: u64 = 21;
/// What a power cut leaves is chosen anew for each.
const SEEDS: u64 = 18;

impl Disk for SimulatedDisk {
    type File = SimulatedFile;

    fn make_dir(&self, dir: &Path) -> io::Result<bool> {
        self.make_dir(dir)
    }
    fn open(&self, path: &Path) -> io::Result<SimulatedFile> {
        self.open(path)
    }
    fn create(&self, path: &Path) -> io::Result<SimulatedFile> {
        self.create(path)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.read(path)
    }
    fn facts(&self, path: &Path) -> io::Result<FileFacts> {
        self.facts(path).map(|(len, modified)| FileFacts { len, modified })
    }
    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.names(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.sync_dir(dir)
    }
}

impl DiskFile for SimulatedFile {
    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        self.size()
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_size(size)
    }
    fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        self.set_modified(time)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_at(buf, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.sync()
    }
    fn punch(&self, bytes: Range<u64>) -> io::Result<()> {
        self.punch(bytes)
    }
    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        self.next(from, true)
    }
    fn next_hole(&self, from: u64) -> io::Result<Option<u64>> {
        self.next(from, false)
    }
}

/// What a device goes through, with what it has promised so far.
struct Life {
    disk: SimulatedDisk,
    storage: Storage<SimulatedDisk>,
    /// Blocks that were said to be durable and weren't evicted since.
    promised: BTreeSet<u64>,
}

impl Life {
    fn begin(disk: &SimulatedDisk) -> io::Result<Self> {
        let identity = Identity { device: Digest::of(b"layer"), fingerprint: [1; 32], size: SIZE };
        let storage = Storage::open(disk.clone(), "/devices/layer".into(), identity)?;
        let promised = present(&storage);
        Ok(Self { disk: disk.clone(), storage, promised })
    }

    fn write(&self, blocks: Range<u64>) -> io::Result<()> {
        let bytes = blocks.start * BLOCK..(blocks.end * BLOCK).min(SIZE);
        goes_on(self.storage.write(bytes.start, &pattern(bytes))).map(drop)
    }

    fn flush(&mut self) -> io::Result<()> {
        let present = present(&self.storage);
        if goes_on(self.storage.flush())? {
            self.promised.extend(present);
        }
        Ok(())
    }

    fn evict(&mut self, blocks: Range<u64>) -> io::Result<()> {
        self.promised.retain(|block| !blocks.contains(block));
        let bytes = blocks.start * BLOCK..(blocks.end * BLOCK).min(SIZE);
        self.storage.evict(std::slice::from_ref(&bytes)).map(drop)
    }

    /// Ends it and begins it again on the same disk, as a daemon that is restarted does.
    fn restart(&mut self) -> io::Result<()> {
        let promised = std::mem::take(&mut self.promised);
        *self = Self::begin(&self.disk.clone())?;
        self.promised = promised;
        Ok(())
    }
}

/// Whether that was done. A full disk ends nothing.
fn goes_on(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Err(error) if error.kind() == ErrorKind::StorageFull => Ok(false),
        done => done.map(|()| true),
    }
}

/// The bytes of the layer; none of them is 0.
fn pattern(bytes: Range<u64>) -> Vec<u8> {
    bytes.map(|i| (i % 251) as u8 + 1).collect()
}

fn present(storage: &Storage<SimulatedDisk>) -> BTreeSet<u64> {
    storage.present.runs(0..BLOCKS, true).into_iter().flatten().collect()
}

/// What is wrong with what is said to be there.
fn wrong(storage: &Storage<SimulatedDisk>) -> Vec<u64> {
    let is_wrong = |block: &u64| {
        let bytes = block * BLOCK..((block + 1) * BLOCK).min(SIZE);
        let mut buf = vec![0; (bytes.end - bytes.start) as usize];
        let read = storage.try_read(bytes.start, &mut buf).unwrap();
        read.is_some_and(|_| buf != pattern(bytes))
    };
    present(storage).into_iter().filter(is_wrong).collect()
}

/// All that can happen to a device, ended by the first error.
fn script(life: &mut Life) -> io::Result<()> {
    life.write(0..6)?;
    life.flush()?;
    life.write(6..12)?;
    // Some of it is recorded, some isn't.
    life.evict(4..8)?;
    life.write(5..7)?;
    life.write(20..21)?;
    life.flush()?;
    life.evict(0..2)?;
    life.evict(20..21)?;
    life.write(0..3)?;
    life.restart()?;
    life.write(12..20)?;
    life.evict(12..13)?;
    life.flush()?;
    life.evict(0..21)?;
    life.write(3..9)?;
    life.flush()
}

/// Runs the script on `disk`, and tells what it has promised when it ends or the power fails.
fn run(disk: &SimulatedDisk) -> BTreeSet<u64> {
    let Ok(mut life) = Life::begin(disk) else { return BTreeSet::new() };
    // Errors are what is tested here; what they leave is looked at.
    let _ = script(&mut life);
    life.promised
}

/// A disk on which `/devices` was made for good.
fn disk(capacity: Option<u64>) -> SimulatedDisk {
    let disk = SimulatedDisk::new(capacity);
    disk.make_dir(Path::new("/devices")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk
}

/// Lets the power fail at every step of the script, and tells how often it could be looked at what that left, and how
/// often something was wrong then.
fn cut_everywhere(capacity: Option<u64>, prepare: impl Fn(&SimulatedDisk), keeps_promises: bool) -> (usize, usize) {
    let whole = disk(capacity);
    prepare(&whole);
    run(&whole);
    let (mut cuts, mut failures) = (0, 0);
    for step in disk(capacity).steps() + 1..=whole.steps() {
        let cut = disk(capacity);
        prepare(&cut);
        cut.fail_at(step);
        let promised = run(&cut);
        for seed in 0..SEEDS {
            let after = cut.after_power_loss(seed);
            let life = Life::begin(&after).unwrap();
            let there = present(&life.storage);
            let broken = keeps_promises && !there.is_superset(&promised);
            assert!(!broken, "step {step}, seed {seed}: {promised:?} were promised, and {there:?} are there");
            (cuts, failures) = (cuts + 1, failures + usize::from(!wrong(&life.storage).is_empty()));
            // And once more, while it recovers.
            after.fail_at(after.steps() + 1 + (step + seed) % 23);
            run(&after);
            let life = Life::begin(&after.after_power_loss(seed + step)).unwrap();
            (cuts, failures) = (cuts + 1, failures + usize::from(!wrong(&life.storage).is_empty()));
        }
    }
    (cuts, failures)
}

#[test]
fn whenever_the_power_fails_presence_speaks_only_of_what_is_there() {
    let (cuts, failures) = cut_everywhere(None, |_| {}, true);
    assert!(cuts > 1000 && failures == 0, "{failures} of {cuts}");
}

#[test]
fn so_it_does_on_a_full_disk() {
    // Twelve blocks of data fit, and one presence file beside them, but no second one.
    let (cuts, failures) = cut_everywhere(Some(13 * BLOCK), |_| {}, false);
    assert!(cuts > 500 && failures == 0, "{failures} of {cuts}");
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    // So that it is known that the tests above would find a sync that is missing.
    let (cuts, failures) = cut_everywhere(None, SimulatedDisk::lie, false);
    assert!(failures > cuts / 100, "{failures} of {cuts}");
}

#[test]
fn a_sync_that_fails_once_costs_what_it_should_have_synced_and_no_more() {
    let whole = disk(None);
    run(&whole);
    for step in 1..=whole.steps() {
        let disk = disk(None);
        disk.fail_sync_from(step);
        let mut life = Life::begin(&disk).unwrap();
        // It goes on after the error, as a daemon does.
        while let Err(error) = script(&mut life) {
            assert!(error.to_string().contains("doesn't take it"), "{error}");
        }
        assert_eq!(wrong(&life.storage), [0; 0], "step {step}");
        let promised = life.promised;
        for seed in 0..SEEDS {
            let life = Life::begin(&disk.after_power_loss(seed)).unwrap();
            assert_eq!(wrong(&life.storage), [0; 0], "step {step}, seed {seed}");
            assert!(present(&life.storage).is_superset(&promised), "step {step}, seed {seed}: {promised:?}");
        }
    }
}
