//! The place of a Unix socket: its directory, and what may be there already.
use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, FileTypeExt},
    path::Path,
};

/// Makes the directory of `path`, for root alone, if it is missing. Tells whether a socket is at `path`.
///
/// # Errors
/// If something else than a socket is there, or the filesystem refuses.
pub fn prepare(path: &Path) -> Result<bool> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.with_context(|| format!("create {}", parent.display()))?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
        Ok(meta) if !meta.file_type().is_socket() => {
            bail!("{} exists and is not a socket: choose another address", path.display())
        }
        Ok(_) => Ok(true),
    }
}
