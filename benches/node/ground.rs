//! Where the peer is unpacked: an ext4 filesystem.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clipper_tests::daemon::run;
use clipper_tests::scratch::Scratch;

/// Bytes of an image file for a filesystem: it is sparse.
const SIZE: &str = "64G";

/// Scratch space on ext4, if need be on a filesystem of its own, which is mounted over the machine's.
#[derive(Debug)]
pub struct Ground {
    mounted: Option<String>,
    _image: Option<tempfile::TempDir>,
}

impl Ground {
    /// Makes sure of it.
    pub fn ext4() -> Result<Self> {
        let scratch = Scratch::new("ground")?;
        let home = scratch.path().parent().context("scratch space without a parent")?.to_owned();
        drop(scratch);
        if kind(&home)? == "ext2/ext3" {
            return Ok(Self { mounted: None, _image: None });
        }
        let image = tempfile::tempdir()?;
        let (file, at) = (image.path().join("ext4").display().to_string(), home.display().to_string());
        run(Command::new("truncate").args(["-s", SIZE, &file]))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", &file]))?;
        run(Command::new("mount").args(["-o", "loop", &file, &at]))?;
        let ground = Self { mounted: Some(at), _image: Some(image) };
        ensure!(kind(&home)? == "ext2/ext3", "{} is not on ext4", home.display());
        Ok(ground)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(at) = &self.mounted {
            let _ = run(Command::new("umount").args(["--lazy", at]));
        }
    }
}

/// The filesystem's name as stat(1) tells it; ext4 has the number of its forerunners.
fn kind(path: &Path) -> Result<String> {
    Ok(run(Command::new("stat").args(["-f", "-c", "%T"]).arg(path))?.trim().to_owned())
}
