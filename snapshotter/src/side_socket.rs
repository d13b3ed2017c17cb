//! Unix sockets beside the one that containerd speaks to: for the control API, and for metrics.
use crate::socket_file;
use anyhow::{Context, Result};
use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tokio::net::{UnixListener, UnixStream};

/// A listening socket, for root alone; its file goes when this is dropped, unless another daemon has taken its place.
pub struct SideSocket {
    path: PathBuf,
    listener: UnixListener,
    /// Device and inode of the file.
    file: (u64, u64),
}

impl SideSocket {
    /// Listens at `path`, in the place of whoever does: a daemon may take over from one that still answers.
    ///
    /// # Errors
    /// If something else than a socket is there, or the filesystem refuses.
    pub fn bind(path: &Path) -> Result<Self> {
        socket_file::prepare(path)?;
        // Under another name first, so that there is always one to connect to, and none that others may.
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let listen = || -> io::Result<(UnixListener, fs::Metadata)> {
            match fs::remove_file(&new) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&new)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
            fs::rename(&new, path)?;
            Ok((listener, fs::symlink_metadata(path)?))
        };
        let (listener, meta) = listen().with_context(|| format!("listen at {}", path.display()))?;
        Ok(Self { path: path.to_owned(), listener, file: (meta.dev(), meta.ino()) })
    }

    /// The next who connects.
    ///
    /// # Errors
    /// What the system says, such as that descriptors have run out.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

impl Drop for SideSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file);
        if ours {
            // Best effort: the next daemon replaces it anyway.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_takes_the_place_of_another_and_goes_only_if_it_is_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/control.sock");
        let first = SideSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let second = SideSocket::bind(&path).unwrap();
        drop(first);
        let (connected, accepted) = tokio::join!(UnixStream::connect(&path), second.accept());
        assert!(connected.is_ok() && accepted.is_ok());
        drop(second);
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        assert!(SideSocket::bind(&path).err().unwrap().to_string().contains("not a socket"));
    }
}
