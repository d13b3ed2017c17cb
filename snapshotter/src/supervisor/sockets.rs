//! The sockets that the supervisor listens at: containerd's, which daemons serve one after the other, and its own.
use crate::socket_file;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long a daemon whose supervisor was killed may still hold the socket.
const LEFT_OVER: Duration = Duration::from_secs(2);

/// Where the supervisor of the daemon that serves at `address` listens: beside it.
pub fn own_address(address: &Path) -> PathBuf {
    address.with_extension("supervisor")
}

/// Listens at `path`. A socket file that nobody listens at is replaced.
pub fn bind(path: &Path) -> Result<UnixListener> {
    if socket_file::prepare(path)? {
        if is_listened_at(path) {
            bail!("another program listens at {}: stop it first or choose another address", path.display());
        }
        fs::remove_file(path).with_context(|| format!("remove the stale {}", path.display()))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen at {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("restrict {}", path.display()))?;
    Ok(listener)
}

/// Whether anybody listens at `path`, and not only a process that is about to end.
fn is_listened_at(path: &Path) -> bool {
    let start = Instant::now();
    while UnixStream::connect(path).is_ok() {
        if start.elapsed() > LEFT_OVER {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Removes the socket's file, if it is there: a stale one is replaced at the next start anyway.
pub fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}
