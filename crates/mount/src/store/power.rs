//! Power cuts while indexes and trees are written: afterwards each is there whole, or isn't there.
use super::{
    StoreError,
    indexes::IndexCache,
    trees::{Place, TreeCache, TreeRecipe},
};
use crate::layer::LayerId;
use clipper_device::disk::{Disk, DiskFile, FileFacts};
use clipper_format::{Digest, erofs, index::Index, tree::Tree};
use clipper_tests::power::{SimulatedDisk, SimulatedFile};
use std::{
    collections::HashSet,
    io,
    ops::Range,
    path::{Path, PathBuf},
    time::SystemTime,
};

const SEEDS: u64 = 18;

/// A disk whose power fails.
#[derive(Clone)]
struct Failing(SimulatedDisk);
struct FailingFile(SimulatedFile);

impl Disk for Failing {
    type File = FailingFile;

    fn make_dir(&self, dir: &Path) -> io::Result<bool> {
        self.0.make_dir(dir)
    }
    fn open(&self, path: &Path) -> io::Result<FailingFile> {
        self.0.open(path).map(FailingFile)
    }
    fn create(&self, path: &Path) -> io::Result<FailingFile> {
        self.0.create(path).map(FailingFile)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.read(path)
    }
    fn facts(&self, path: &Path) -> io::Result<FileFacts> {
        self.0.facts(path).map(|(len, modified)| FileFacts { len, modified })
    }
    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.names(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
}

impl DiskFile for FailingFile {
    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.0.set_size(size)
    }
    fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        self.0.set_modified(time)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn punch(&self, bytes: Range<u64>) -> io::Result<()> {
        self.0.punch(bytes)
    }
    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        self.0.next(from, true)
    }
    fn next_hole(&self, from: u64) -> io::Result<Option<u64>> {
        self.0.next(from, false)
    }
}

/// Runs `script` on disks whose power fails at every step of it, and shows what is left, each time anew, to `check`, with
/// what the script has returned.
fn cut_everywhere<T>(script: impl Fn(&Failing) -> T, check: impl Fn(&Failing, &T)) {
    let disk = || {
        let disk = SimulatedDisk::default();
        disk.make_dir(Path::new("/root")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        Failing(disk)
    };
    let whole = disk();
    script(&whole);
    let before = disk().0.steps();
    assert!(whole.0.steps() > before + 5);
    for step in before + 1..=whole.0.steps() + 1 {
        let cut = disk();
        cut.0.fail_at(step);
        let done = script(&cut);
        for seed in 0..SEEDS {
            check(&Failing(cut.0.after_power_loss(seed)), &done);
        }
    }
}

/// Indexes of some kilobytes, more than a sector of a disk.
fn indexes() -> [(Digest, Vec<u8>); 2] {
    ["one", "two"].map(|name| {
        let path = |number: usize| format!("/{}", Digest::of(format!("{name} {number}").as_bytes())).into_bytes();
        let prefetch = (0..200).map(path).collect();
        let index = Index { span_size: 1 << 20, checkpoints: None, layers: Vec::new(), prefetch, hot: None };
        let bytes = index.encode().unwrap();
        assert!(bytes.len() > 4096);
        (Digest::of(&bytes), bytes)
    })
}

#[test]
fn an_index_that_was_stored_outlives_a_power_cut_and_none_is_ever_torn() {
    let [one, two] = indexes();
    let open = |disk: &Failing| IndexCache::open(disk.clone(), PathBuf::from("/root/indexes"));
    let script = |disk: &Failing| {
        let (mut stored, mut removed) = (HashSet::new(), HashSet::new());
        let mut run = || -> Result<(), StoreError> {
            let cache = open(disk)?;
            cache.store(one.0, &one.1)?;
            stored.insert(one.0);
            cache.store(two.0, &two.1)?;
            stored.insert(two.0);
            removed.insert(one.0);
            cache.retain(&HashSet::from([two.0]))?;
            Ok(())
        };
        // The power has failed, if anything.
        let _ = run();
        stored.retain(|digest| !removed.contains(digest));
        stored
    };
    cut_everywhere(script, |disk, stored| {
        let cache = open(disk).unwrap();
        for digest in stored {
            assert!(cache.load(*digest).unwrap().is_some(), "{digest} was stored");
        }
        for (digest, bytes) in [&one, &two] {
            // Not one that is there and damaged either: a name stands for the whole file.
            if let Ok(found) = disk.read(&Path::new("/root/indexes").join(digest.hex())) {
                assert!(found == *bytes, "{digest} is torn");
            }
        }
        let names = disk.names(Path::new("/root/indexes")).unwrap();
        assert!(names.iter().all(|name| !name.contains("partial")), "{names:?}");
    });
}

#[test]
fn a_tree_that_a_power_cut_has_torn_is_noticed() {
    let layer = |name: &[u8]| LayerId { index: Digest::of(b"index"), layer: Digest::of(name) };
    let recipe = |name| TreeRecipe { layers: vec![layer(b"base"), layer(name)], place: Place::Bottom };
    let (one, two) = (recipe(b"one"), recipe(b"two"));
    let image = erofs::write(&Tree::empty()).unwrap();
    let open = |disk: &Failing| TreeCache::open(disk.clone(), PathBuf::from("/root/trees"));
    let script = |disk: &Failing| {
        let run = || -> Result<(), StoreError> {
            let cache = open(disk)?;
            cache.store(&one, &image)?;
            cache.store(&two, &image)?;
            cache.store(&one, &image)?;
            cache.retain(&HashSet::from_iter(two.layers.clone())).map(drop)
        };
        let _ = run();
    };
    cut_everywhere(script, |disk, ()| {
        let cache = open(disk).unwrap();
        for recipe in [&one, &two] {
            if let Some(tree) = cache.load(recipe).unwrap() {
                assert!(tree.bytes() == image);
            }
            // And it can be made again.
            cache.store(recipe, &image).unwrap();
            assert!(cache.load(recipe).unwrap().is_some());
        }
    });
}
