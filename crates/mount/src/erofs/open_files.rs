//! Which device files there are, and which of them the kernel has open: when it has closed the last one of a mount,
//! nothing of that mount is left.
use crate::{LazyDevice, LazyImage, session::Life};
use fuser::INodeNo;
use std::{
    collections::HashMap,
    ffi::OsStr,
    sync::{Mutex, MutexGuard, PoisonError},
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

/// The device files of all mounts.
#[derive(Default)]
pub(super) struct OpenFiles(Mutex<Mounts>);

#[derive(Default)]
struct Mounts {
    last: u64,
    mounts: HashMap<u64, Files>,
}

/// The device files of a mount.
struct Files {
    image: LazyImage,
    open: usize,
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
    /// Makes files of the devices of `image` for a new mount: its number, and what becomes of it.
    pub(super) fn add(&self, image: LazyImage) -> (u64, watch::Receiver<Life>) {
        let (sender, life) = watch::channel(Life::Running);
        let mut all = self.lock();
        all.last += 1;
        let number = all.last;
        all.mounts.insert(number, Files { image, open: 0, life: sender });
        (number, life)
    }

    /// The device behind a file.
    pub(super) fn device(&self, id: FileId) -> Option<LazyDevice> {
        let all = self.lock();
        let number = usize::from(id.device).checked_sub(1)?;
        all.mounts.get(&id.mount)?.image.devices().get(number).cloned()
    }

    /// Notes that the kernel has opened a file; tells whether it is there.
    pub(super) fn open(&self, id: FileId) -> bool {
        let mut all = self.lock();
        let files = all.mounts.get_mut(&id.mount);
        files.map(|files| files.open += 1).is_some()
    }

    /// Notes that the kernel has closed a file. With the last of a mount all of them go.
    pub(super) fn close(&self, id: FileId) {
        let mut all = self.lock();
        let Some(files) = all.mounts.get_mut(&id.mount) else { return };
        files.open = files.open.saturating_sub(1);
        if files.open == 0 {
            let ended = all.mounts.remove(&id.mount);
            drop(all);
            ended.into_iter().for_each(|files| files.end(Life::Unmounted));
        }
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
        ended.into_values().for_each(|files| files.end(life));
    }

    fn lock(&self) -> MutexGuard<'_, Mounts> {
        // Nothing that could panic happens under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn end(self, life: Life) {
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
    fn a_mount_ends_with_its_last_open_file_and_others_go_on() {
        let tree = erofs::Image::parse(erofs::write(&Tree::empty()).unwrap().into()).unwrap();
        let image = LazyImage::new(tree, Vec::new()).unwrap();
        let files = OpenFiles::default();
        let (first, first_life) = files.add(image.clone());
        let (second, second_life) = files.add(image);
        for id in [FileId::new(first, 1), FileId::new(first, 2), FileId::new(second, 1)] {
            assert!(files.open(id));
        }
        files.close(FileId::new(first, 1));
        assert_eq!(*first_life.borrow(), Life::Running);
        files.close(FileId::new(first, 2));
        assert_eq!(*first_life.borrow(), Life::Unmounted);
        assert!(!files.open(FileId::new(first, 1)));
        assert_eq!(*second_life.borrow(), Life::Running);
        files.end(Life::Broken);
        assert_eq!(*second_life.borrow(), Life::Broken);
    }
}
