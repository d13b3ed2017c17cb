//! Making what is here durable, and telling so in the presence file.
use super::{Storage, lock};
use crate::{
    bitmap::Bitmap,
    disk::{Disk, DiskFile},
    presence::Identity,
    uses::{self, Moment},
};
use std::{
    fmt,
    io::{self, ErrorKind},
    path::Path,
    sync::atomic::Ordering,
};

/// Name of the presence file. Its time of modification is when the device was last used.
pub(crate) const PRESENCE: &str = "presence";
const PRESENCE_NEW: &str = "presence.new";
/// A use later by less than this isn't worth telling.
const SAME_USE: Moment = 60_000;

/// What a power cut would leave.
pub(super) struct Recorded {
    /// Blocks whose bytes are durable.
    pub(super) durable: Bitmap,
    /// Blocks that a presence file may speak of after a power cut: more than the durable ones if one could not be
    /// replaced.
    pub(super) spoken_of: Bitmap,
    /// Whether the device's directory itself is.
    placed: bool,
    /// The last use that the presence file tells of.
    last_use: Moment,
}

impl Recorded {
    pub(super) fn new(identity: &Identity, words: &[u64], last_use: Moment) -> Self {
        let bitmap = || Bitmap::new(identity.blocks(), words);
        Self { durable: bitmap(), spoken_of: bitmap(), placed: !words.is_empty(), last_use }
    }
}

impl<D: Disk> Storage<D> {
    /// Whether something is known that the presence file doesn't tell.
    pub(crate) fn dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Makes what is present durable: data first, then the presence file. Blocks; costs next to nothing if nothing is
    /// new.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let mut recorded = lock(&self.recorded);
        if self.is_removed() {
            return Ok(());
        }
        if !self.dirty.swap(false, Ordering::AcqRel) {
            self.tell_last_use(&mut recorded);
            return Ok(());
        }
        let result = self.flush_now(&mut recorded);
        if result.is_err() {
            self.dirty.store(true, Ordering::Release);
        }
        result
    }

    fn flush_now(&self, recorded: &mut Recorded) -> io::Result<()> {
        let words = self.present.snapshot();
        if let Err(error) = self.data.sync() {
            // The kernel may have dropped dirty pages: only what was durable before can be relied on. Who is writing has
            // set his bits by the time the lock is ours.
            let _writing = lock(&self.writing);
            self.present.retain(&recorded.durable.snapshot());
            self.epoch.fetch_add(1, Ordering::AcqRel);
            return Err(error);
        }
        recorded.durable.assign(&words);
        self.record(recorded)
    }

    /// Replaces the presence file by one that speaks of what is durable.
    pub(super) fn record(&self, recorded: &mut Recorded) -> io::Result<()> {
        let words = recorded.durable.snapshot();
        // From here on a power cut may leave the old file or the new one.
        recorded.spoken_of.merge(&words);
        let (new, last_use) = (self.dir.join(PRESENCE_NEW), self.uses.latest());
        let write = || {
            let file = self.disk.create(&new)?;
            file.write_at(&self.identity.encode(&words), 0)?;
            file.set_modified(uses::time(last_use))?;
            file.sync()
        };
        if let Err(error) = write() {
            // It would only take room, which is what is wanting; the next one is made in its place otherwise.
            let _ = self.disk.remove(&new);
            return Err(error);
        }
        self.disk.rename(&new, &self.dir.join(PRESENCE))?;
        self.disk.sync_dir(&self.dir)?;
        if !recorded.placed
            && let Some(root) = self.dir.parent()
        {
            self.disk.sync_dir(root)?;
            recorded.placed = true;
        }
        recorded.spoken_of.assign(&words);
        recorded.last_use = last_use;
        Ok(())
    }

    /// Tells when the device was last used if nothing else is to be told. After a power cut it doesn't matter.
    fn tell_last_use(&self, recorded: &mut Recorded) {
        let last_use = self.uses.latest();
        if recorded.placed && last_use > recorded.last_use.saturating_add(SAME_USE) {
            recorded.last_use = last_use;
            let told =
                self.disk.open(&self.dir.join(PRESENCE)).and_then(|file| file.set_modified(uses::time(last_use)));
            if let Err(error) = told {
                tracing::debug!(dir = %self.dir.display(), %error, "the last use isn't recorded");
            }
        }
    }
}

/// The bits of the presence file in `dir` and the last use that it tells of, if it and the size of the data file can be
/// believed.
pub(super) fn believe<D: Disk>(
    disk: &D,
    dir: &Path,
    identity: &Identity,
    data_size: u64,
) -> Option<(Vec<u64>, Moment)> {
    let path = dir.join(PRESENCE);
    let distrust = |why: &dyn fmt::Display| {
        tracing::warn!(file = %path.display(), "starting with an empty cache: {why}");
        None
    };
    let facts = match disk.facts(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return distrust(&error),
        Ok(facts) if facts.len != identity.file_len() => {
            return distrust(&"it is torn or belongs to another device");
        }
        Ok(facts) => facts,
    };
    if data_size != identity.size {
        return distrust(&format_args!("the data file has {data_size} bytes instead of {}", identity.size));
    }
    match disk.read(&path).map_err(|e| e.to_string()).and_then(|file| identity.decode(&file).map_err(|e| e.to_string()))
    {
        Ok(words) => Some((words, uses::moment(facts.modified))),
        Err(why) => distrust(&why),
    }
}

/// What the presence file in `dir` tells, whosever it is: which device, which blocks, and when it was last used. `None` if
/// there is none or it is damaged.
pub(crate) fn read_presence<D: Disk>(disk: &D, dir: &Path) -> Option<(Identity, Bitmap, Moment)> {
    let path = dir.join(PRESENCE);
    let facts = disk.facts(&path).ok()?;
    let (identity, words) = Identity::of_file(&disk.read(&path).ok()?)?;
    Some((identity, Bitmap::new(identity.blocks(), &words), uses::moment(facts.modified)))
}

/// Removes the presence file for good.
pub(super) fn forget<D: Disk>(disk: &D, dir: &Path) -> io::Result<()> {
    match disk.remove(&dir.join(PRESENCE)) {
        Ok(()) => disk.sync_dir(dir),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
