//! A mounted filesystem and its life, whichever driver shows it.
use crate::{MountError, mount_point::MountPoint};
use std::path::Path;
use tokio::sync::watch;

/// A mounted filesystem. Dropping it leaves it mounted: see [`Session::unmount`].
pub(crate) struct Session {
    pub(crate) mount_point: MountPoint,
    pub(crate) life: watch::Receiver<Life>,
}

/// Whether the kernel still asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Running,
    /// It was unmounted, and nothing of it is left.
    Unmounted,
    /// The connection broke, or was aborted through sysfs: it may still be mounted, and every request fails.
    Broken,
}

impl Session {
    pub(crate) fn dir(&self) -> &Path {
        self.mount_point.dir()
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.life.borrow() != Life::Running
    }

    pub(crate) async fn ended(&self) {
        // An error means that the sender is gone, and with it the session.
        let _ = self.life.clone().wait_for(|life| *life != Life::Running).await;
    }

    pub(crate) fn unmount(&self) -> Result<(), MountError> {
        // Another filesystem may have got the directory and even the device number since.
        if *self.life.borrow() == Life::Unmounted {
            return Ok(());
        }
        self.mount_point.detach()
    }
}
