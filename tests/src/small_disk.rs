//! A small filesystem of one's own: an ext4 that can be filled without anybody else noticing, or one in memory.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};

use crate::daemon::run;
use crate::scratch::Scratch;

/// A filesystem on a file or in memory; unmounted and gone when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
    _scratch: Scratch,
}

impl SmallDisk {
    /// One of so many bytes, mounted.
    pub fn new(bytes: u64) -> Result<Self> {
        let scratch = Scratch::new("disk")?;
        let image = scratch.join("image");
        File::create(&image)?.set_len(bytes)?;
        // No blocks kept back for root: the daemon is root and would take them.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0"]).arg(&image))?;
        let at = scratch.subdir("at")?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at)).context("mounting a file, as root")?;
        Ok(Self { at, _scratch: scratch })
    }

    /// A tmpfs of so many bytes: no file on it can be mounted.
    pub fn in_memory(bytes: u64) -> Result<Self> {
        let scratch = Scratch::new("disk")?;
        let at = scratch.subdir("at")?;
        let size = format!("size={bytes}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at)).context("as root")?;
        Ok(Self { at, _scratch: scratch })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Bytes that are free.
    pub fn free(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.at)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Writes a file `name` until no more than `left` bytes are free.
    pub fn fill(&self, name: &str, left: u64) -> Result<()> {
        let mut file = File::create(self.at.join(name))?;
        let block = vec![1; 64 << 10];
        while self.free()? > left {
            let len = (self.free()? - left).clamp(1, block.len() as u64) as usize;
            if file.write_all(&block[..len]).is_err() {
                break;
            }
        }
        file.sync_all()?;
        Ok(())
    }

    /// Removes what [`fill`](Self::fill) wrote.
    pub fn remove(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.at.join(name))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}
