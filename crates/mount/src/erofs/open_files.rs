//! Which device files there are. The kernel has all of a mount open for as long as there is anything left of the mount:
//! when it closes one, it reads from none of them any more.
use crate::{LazyDevice, LazyImage, handover::Keeping, notes::Notes, session::Life};
use fuser::INodeNo;
use std::{
    collections::HashMap,
    ffi::OsStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// One device of one mounted image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    /// Counts mounts from 1; no number is ever used again.
    mount: u64,
    /// The device's number in the tree, from 1.
    device: u16,
}

/// A device as a file. It doesn't hold its image, which may go while a last read is answered.
pub(super) struct DeviceFile {
    pub(super) device: LazyDevice,
    /// The device's number in the image, from 0.
    pub(super) number: usize,
    pub(super) notes: Arc<Notes>,
}

/// The device files of all mounts.
pub(super) struct OpenFiles {
    mounts: Mutex<Mounts>,
    keeping: Keeping,
}

struct Mounts {
    last: u64,
    mounts: HashMap<u64, Files>,
}

/// The device files of a mount.
pub(super) struct Files {
    image: LazyImage,
    /// What it is kept as for the next process.
    kept: Option<String>,
    life: watch::Sender<Life>,
}

impl FileId {
    pub(super) fn new(mount: u64, device: u16) -> Self {
        Self { mount, device }
    }

    pub(super) fn name(self) -> String {
        format!("{}-{}", self.mount, self.device)
    }

    pub(super) fn named(name: &OsStr) -> Option<Self> {
        let (mount, device) = name.to_str()?.split_once('-')?;
        Some(Self { mount: mount.parse().ok()?, device: device.parse().ok()? })
    }

    /// Never that of the root.
    pub(super) fn ino(self) -> INodeNo {
        INodeNo(self.mount << u16::BITS | u64::from(self.device))
    }

    pub(super) fn of(ino: INodeNo) -> Self {
        Self { mount: ino.0 >> u16::BITS, device: ino.0 as u16 }
    }
}

impl OpenFiles {
    /// None yet.
    pub(super) fn new(keeping: Keeping) -> Self {
        let last = keeping.generation();
        Self { mounts: Mutex::new(Mounts { last, mounts: HashMap::new() }), keeping }
    }

    /// Makes files of the devices of `image` for a new mount: its number, and what becomes of it.
    pub(super) fn add(&self, image: LazyImage) -> (u64, watch::Receiver<Life>) {
        let mut all = self.lock();
        all.last += 1;
        let number = all.last;
        (number, all.insert(number, image, None))
    }

    /// Has the files of a mount again that an earlier process gave `number`, kept as `name`.
    pub(super) fn take_over(&self, number: u64, image: LazyImage, name: String) -> watch::Receiver<Life> {
        let mut all = self.lock();
        all.last = all.last.max(number);
        all.insert(number, image, Some(name))
    }

    /// Has a mount kept for the next process, by `keep`, under the name that it is given. Not if it is gone already.
    pub(super) fn keep(&self, mount: u64, keep: impl FnOnce(&str)) {
        let name = self.keeping.name("image");
        if let Some(files) = self.lock().mounts.get_mut(&mount) {
            files.kept = Some(name.clone());
            keep(&name);
        }
    }

    /// The device behind a file.
    pub(super) fn device(&self, id: FileId) -> Option<DeviceFile> {
        let all = self.lock();
        let number = usize::from(id.device).checked_sub(1)?;
        let image = &all.mounts.get(&id.mount)?.image;
        Some(DeviceFile { device: image.devices().get(number)?.clone(), number, notes: Arc::clone(image.notes()) })
    }

    /// Whether a file is there to be opened.
    pub(super) fn has(&self, id: FileId) -> bool {
        self.lock().mounts.contains_key(&id.mount)
    }

    /// Notes that the kernel has closed a file: all of its mount go. They are given back to be [ended](Files::end),
    /// unless they went before.
    pub(super) fn close(&self, id: FileId) -> Option<Files> {
        let ended = self.lock().mounts.remove(&id.mount)?;
        self.release(&ended);
        Some(ended)
    }

    /// Forgets the files of a mount that didn't come about.
    pub(super) fn forget(&self, mount: u64) {
        let forgotten = self.lock().mounts.remove(&mount);
        // Only now, without the lock: an image's last clone gives back much.
        drop(forgotten);
    }

    /// Ends all mounts: nobody answers for their files any more.
    pub(super) fn end(&self, life: Life) {
        let ended = std::mem::take(&mut self.lock().mounts);
        for files in ended.into_values() {
            self.release(&files);
            files.end(life);
        }
    }

    fn release(&self, files: &Files) {
        if let Some(name) = &files.kept {
            self.keeping.release(name);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Mounts> {
        // Nothing that could panic happens under this lock.
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mounts {
    fn insert(&mut self, number: u64, image: LazyImage, kept: Option<String>) -> watch::Receiver<Life> {
        let (sender, life) = watch::channel(Life::Running);
        self.mounts.insert(number, Files { image, kept, life: sender });
        life
    }
}

impl Files {
    /// Tells whoever waits for it.
    pub(super) fn end(self, life: Life) {
        let Self { image, life: sender, .. } = self;
        // Whoever waits for the end may count on nothing being in use any more.
        drop(image);
        // Nobody waits any more if this fails.
        let _ = sender.send(life);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clipper_format::{erofs, tree::Tree};

    #[test]
    fn names_and_inode_numbers_lead_back_to_the_file_and_never_to_the_root() {
        for id in [FileId::new(1, 1), FileId::new(1, u16::MAX), FileId::new(1 << 40, 7)] {
            assert_eq!(FileId::named(id.name().as_ref()), Some(id));
            assert_eq!(FileId::of(id.ino()), id);
            assert_ne!(id.ino(), INodeNo::ROOT);
        }
        for name in ["", "1", "1-", "-1", "1-65536", "1-1-1", "."] {
            assert_eq!(FileId::named(name.as_ref()), None, "{name}");
        }
    }

    #[test]
    fn a_mount_ends_with_the_first_file_that_is_closed_and_others_go_on() {
        let tree = erofs::Image::parse(erofs::write(&Tree::empty()).unwrap().into()).unwrap();
        let image = LazyImage::new(tree, Vec::new()).unwrap();
        let files = OpenFiles::new(Keeping::new(None));
        let (first, first_life) = files.add(image.clone());
        let (second, second_life) = files.add(image);
        for id in [FileId::new(first, 1), FileId::new(first, 2), FileId::new(second, 1)] {
            assert!(files.has(id));
        }
        files.close(FileId::new(first, 1)).unwrap().end(Life::Unmounted);
        assert!(files.close(FileId::new(first, 2)).is_none());
        assert_eq!(*first_life.borrow(), Life::Unmounted);
        assert!(!files.has(FileId::new(first, 1)));
        assert_eq!(*second_life.borrow(), Life::Running);
        files.end(Life::Broken);
        assert_eq!(*second_life.borrow(), Life::Broken);
    }

    #[test]
    fn numbers_of_mounts_that_are_taken_over_are_not_given_again() {
        let tree = erofs::Image::parse(erofs::write(&Tree::empty()).unwrap().into()).unwrap();
        let image = LazyImage::new(tree, Vec::new()).unwrap();
        let files = OpenFiles::new(Keeping::new(None));
        let (first, _) = files.add(image.clone());
        files.take_over(first + 10, image.clone(), "image-1".into());
        assert_eq!(files.add(image).0, first + 11);
    }
}
