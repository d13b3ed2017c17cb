//! Giving space back: parts of a device go, and the presence file stops speaking of them first.
use super::{Storage, blocks, lock, record, record::Recorded};
use crate::{
    disk::{Disk, DiskFile},
    error::is_full,
};
use clipper_format::span::BLOCK;
use std::{io, ops::Range, sync::atomic::Ordering};

impl<D: Disk> Storage<D> {
    /// Gives back the space of those of `ranges` that nobody [holds](Storage::hold); returns the bytes freed. Blocks.
    ///
    /// The bits in memory go first: from then on readers fetch. Then those on disk, durably; then the bytes. A reader who
    /// was at it meanwhile notices by the epoch; what is written meanwhile is left alone.
    pub(crate) fn evict(&self, ranges: &[Range<u64>]) -> io::Result<u64> {
        let mut recorded = lock(&self.recorded);
        if self.is_removed() {
            return Ok(0);
        }
        let gone = self.clear(ranges);
        if gone.is_empty() {
            return Ok(0);
        }
        if let Err(error) = self.disown(&mut recorded, &gone) {
            // Nothing was punched: the bytes are what they were.
            self.put_back(&gone);
            return Err(error);
        }
        self.punch(&gone)
    }

    /// Clears the bits of those of `ranges` that nobody holds: the runs of blocks that had them.
    fn clear(&self, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let _writing = lock(&self.writing);
        // Who takes hold of something from now on finds its bits cleared.
        let held = lock(&self.held);
        let is_held = |range: &Range<u64>| held.iter().any(|held| held.start < range.end && range.start < held.end);
        let mut gone = Vec::new();
        for range in ranges.iter().filter(|range| !is_held(range)) {
            let runs = self.present.runs(blocks(range), true);
            self.present.clear(blocks(range));
            gone.extend(runs);
        }
        self.epoch.fetch_add(1, Ordering::AcqRel);
        gone
    }

    /// Sees to it that no presence file speaks of the blocks `gone` any more, not after a power cut either.
    fn disown(&self, recorded: &mut Recorded, gone: &[Range<u64>]) -> io::Result<()> {
        for run in gone {
            recorded.durable.clear(run.clone());
        }
        if gone.iter().all(|run| recorded.spoken_of.count_in(run.clone()) == 0) {
            return Ok(());
        }
        match self.record(recorded) {
            Err(error) if is_full(&error) => {
                // There is no room for a second presence file before something is punched out. Without any, a power cut
                // now costs what is cached of this device, and no more.
                record::forget(&self.disk, &self.dir)?;
                recorded.spoken_of.assign(&[]);
                self.dirty.store(true, Ordering::Release);
                Ok(())
            }
            done => done,
        }
    }

    /// Punches out the blocks `gone`, but for those that were written again meanwhile.
    fn punch(&self, gone: &[Range<u64>]) -> io::Result<u64> {
        let _writing = lock(&self.writing);
        let mut freed = 0;
        for run in gone.iter().flat_map(|run| self.present.runs(run.clone(), false)) {
            if let Err(error) = self.data.punch(run.start * BLOCK..run.end * BLOCK) {
                if error.kind() == io::ErrorKind::Unsupported {
                    // Nothing was done. After other errors it isn't known how much was.
                    self.present.set(run);
                    self.dirty.store(true, Ordering::Release);
                }
                return if freed > 0 { Ok(freed) } else { Err(error) };
            }
            freed += (run.end - run.start) * BLOCK;
        }
        Ok(freed)
    }

    fn put_back(&self, gone: &[Range<u64>]) {
        let _writing = lock(&self.writing);
        gone.iter().for_each(|run| self.present.set(run.clone()));
        self.dirty.store(true, Ordering::Release);
    }
}
