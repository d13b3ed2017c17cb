//! The data file and its presence on a real disk.
use super::*;
use clipper_format::Digest;
use std::fs::File;

const SIZE: u64 = 40 * BLOCK + 100;

fn open(dir: &Path) -> Storage {
    let identity = Identity { device: Digest::of(b"layer"), fingerprint: [1; 32], size: SIZE };
    Storage::open(LocalDisk, dir.join("device"), identity).unwrap()
}

fn pattern(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(|i| (i % 251) as u8 + 1).collect()
}

fn put(storage: &Storage, block: u64, count: u64) {
    let len = (count * BLOCK).min(SIZE - block * BLOCK);
    storage.write(block * BLOCK, &pattern(block * BLOCK, len)).unwrap();
}

fn get(storage: &Storage, offset: u64, len: usize) -> Option<Vec<u8>> {
    let mut buf = vec![0; len];
    let n = storage.try_read(offset, &mut buf).unwrap()?;
    buf.truncate(n);
    Some(buf)
}

#[test]
fn reads_what_was_written_short_at_the_end_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    put(&storage, 2, 2);
    put(&storage, 39, 2);
    assert_eq!(get(&storage, 2 * BLOCK + 1, 8190), Some(pattern(2 * BLOCK + 1, 8190)));
    assert_eq!(get(&storage, 2 * BLOCK, 8193), None);
    assert_eq!(get(&storage, SIZE - 10, 100), Some(pattern(SIZE - 10, 10)));
    assert_eq!(get(&storage, SIZE, 100), Some(vec![]));
    assert_eq!(get(&storage, u64::MAX, 100), Some(vec![]));
    assert_eq!(get(&storage, 0, 0), Some(vec![]));
    assert_eq!(storage.cached(), 4 * BLOCK);
    assert!(storage.write(1, &[0; 4096]).is_err() && storage.write(0, &[0; 10]).is_err());
    assert!(storage.write(40 * BLOCK, &[0; 101]).is_err());
}

#[test]
fn presence_survives_closing_only_if_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    put(&storage, 0, 1);
    storage.flush().unwrap();
    put(&storage, 1, 1);
    drop(storage);
    let storage = open(dir.path());
    assert_eq!(get(&storage, 0, 4096), Some(pattern(0, 4096)));
    assert_eq!(get(&storage, 4096, 1), None);
}

#[test]
fn a_torn_or_foreign_presence_file_counts_as_empty() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device/presence");
    let storage = open(dir.path());
    put(&storage, 0, 41);
    storage.flush().unwrap();
    drop(storage);
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[90] ^= 1;
    let foreign = Identity { device: Digest::of(b"x"), fingerprint: [1; 32], size: SIZE }.encode(&[u64::MAX]);
    for bad in [&good[..good.len() - 1], &[][..], &flipped, &foreign] {
        fs::write(&path, bad).unwrap();
        let storage = open(dir.path());
        assert_eq!((storage.cached(), get(&storage, 0, 1)), (0, None));
        assert!(!path.exists(), "it must not be believed by the next one either");
        put(&storage, 0, 41);
        storage.flush().unwrap();
    }
    assert_eq!(open(dir.path()).cached(), SIZE);
}

#[test]
fn truncated_data_are_never_read_as_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("device/data");
    let cut = |len| File::options().write(true).open(&data).unwrap().set_len(len).unwrap();
    let storage = open(dir.path());
    put(&storage, 0, 41);
    storage.flush().unwrap();
    cut(5000);
    assert_eq!(get(&storage, 0, 4096), Some(pattern(0, 4096)));
    assert_eq!(get(&storage, 4096, 4096), None);
    assert_eq!((storage.cached(), get(&storage, 0, 4096)), (0, None));
    put(&storage, 7, 1);
    assert_eq!((storage.cached(), get(&storage, 7 * BLOCK, 4096)), (4096, Some(pattern(7 * BLOCK, 4096))));
    // Noticed by a write...
    cut(0);
    put(&storage, 8, 1);
    assert_eq!((get(&storage, 7 * BLOCK, 1), get(&storage, 8 * BLOCK, 1)), (None, Some(pattern(8 * BLOCK, 1))));
    storage.flush().unwrap();
    drop(storage);
    // ... and while nobody had it open, even if it was extended again.
    cut(8 * BLOCK);
    assert_eq!(open(dir.path()).cached(), 0);
    let storage = open(dir.path());
    put(&storage, 8, 2);
    storage.flush().unwrap();
    drop(storage);
    cut(9 * BLOCK);
    cut(SIZE);
    let storage = open(dir.path());
    assert_eq!(get(&storage, 8 * BLOCK, 4096), Some(pattern(8 * BLOCK, 4096)));
    assert_eq!(get(&storage, 9 * BLOCK, 4096), None);
}

#[test]
fn nothing_is_recorded_after_removal() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    put(&storage, 0, 1);
    storage.set_removed();
    storage.flush().unwrap();
    assert!(!dir.path().join("device/presence").exists());
    assert!(usage(&dir.path().join("device")) >= 4096);
}

fn on_disk(dir: &Path) -> u64 {
    fs::metadata(dir.join("device/data")).unwrap().blocks() * 512
}

fn bytes_of(blocks: Range<u64>) -> Range<u64> {
    blocks.start * BLOCK..(blocks.end * BLOCK).min(SIZE)
}

#[test]
fn what_is_evicted_is_gone_from_disk_and_from_the_presence_file_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    put(&storage, 0, 41);
    storage.flush().unwrap();
    let full = on_disk(dir.path());
    assert_eq!(storage.evict(&[bytes_of(3..10), bytes_of(30..41), bytes_of(5..7)]).unwrap(), 18 * BLOCK);
    assert_eq!(on_disk(dir.path()), full - 18 * BLOCK);
    assert_eq!((storage.cached(), storage.cached_of(&bytes_of(2..11))), (23 * BLOCK, 2 * BLOCK));
    assert_eq!(storage.evict(&[bytes_of(3..10)]).unwrap(), 0, "there is nothing left of it");
    // No flush: the presence file was replaced before anything was punched out.
    drop(storage);
    let storage = open(dir.path());
    assert_eq!(storage.present.runs(0..41, true), [0..3, 10..30]);
    for block in (0..3).chain(10..30) {
        assert_eq!(get(&storage, block * BLOCK, 4096), Some(pattern(block * BLOCK, 4096)));
    }
    assert_eq!(get(&storage, 2 * BLOCK, 8192), None);
    put(&storage, 3, 7);
    assert_eq!(get(&storage, 2 * BLOCK, 8192), Some(pattern(2 * BLOCK, 8192)));
}

#[test]
fn what_somebody_holds_is_not_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    put(&storage, 0, 41);
    let (one, same) = (storage.hold(4 * BLOCK + 1..4 * BLOCK + 2), storage.hold(4 * BLOCK + 1..4 * BLOCK + 2));
    assert_eq!(storage.evict(&[bytes_of(0..4), bytes_of(4..8)]).unwrap(), 4 * BLOCK);
    drop(one);
    assert_eq!(storage.evict(&[bytes_of(4..8)]).unwrap(), 0);
    drop(same);
    assert_eq!(storage.evict(&[bytes_of(4..8)]).unwrap(), 4 * BLOCK);
}

#[test]
fn readers_and_writers_in_the_middle_of_evictions_see_no_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    put(&storage, 0, 41);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (storage, done) = (&storage, &done);
        for start in 0..2 {
            scope.spawn(move || {
                let mut found = 0;
                while !done.load(Ordering::Relaxed) || found == 0 {
                    for block in (start..40).step_by(2) {
                        if let Some(bytes) = get(storage, block * BLOCK, 4096) {
                            assert!(bytes == pattern(block * BLOCK, 4096), "block {block}");
                            found += 1;
                        }
                    }
                }
            });
        }
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                (0..40).for_each(|block| put(storage, block, 1));
            }
        });
        let (mut round, mut freed) = (0, 0);
        while round < 400 || freed < 400 * BLOCK {
            let from = round * 7 % 33;
            freed += storage.evict(&[bytes_of(from..from + 8)]).unwrap();
            if round % 50 == 0 {
                storage.flush().unwrap();
            }
            round += 1;
        }
        // With bits, so that the readers have something to see.
        put(storage, 0, 41);
        done.store(true, Ordering::Relaxed);
    });
    drop(storage);
    let storage = open(dir.path());
    for block in storage.present.runs(0..40, true).into_iter().flatten() {
        assert_eq!(get(&storage, block * BLOCK, 4096), Some(pattern(block * BLOCK, 4096)));
    }
}

#[test]
fn what_was_never_recorded_takes_no_room_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    put(&storage, 0, 8);
    storage.flush().unwrap();
    put(&storage, 16, 8);
    drop(storage);
    let storage = open(dir.path());
    assert_eq!((storage.cached(), on_disk(dir.path())), (8 * BLOCK, 8 * BLOCK));
}

#[test]
fn the_last_use_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let presence = dir.path().join("device/presence");
    let storage = open(dir.path());
    put(&storage, 0, 41);
    storage.flush().unwrap();
    assert_eq!(storage.latest_use(), 0, "nobody read it");
    drop(storage);
    let storage = open(dir.path());
    storage.used(&(0..10));
    let last_use = storage.latest_use();
    assert!(last_use > 0);
    storage.flush().unwrap();
    drop(storage);
    let storage = open(dir.path());
    assert_eq!(storage.last_use(&(0..10)), last_use);
    // An eviction is no use.
    storage.evict(&[bytes_of(0..8)]).unwrap();
    let (identity, bits, told) = read_presence(&LocalDisk, presence.parent().unwrap()).unwrap();
    assert_eq!((identity.size, bits.count(), told), (SIZE, 33, last_use));
}
