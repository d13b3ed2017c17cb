//! `oci-image LAYOUT TAG CONFIG-JSON DIR=COMPRESSION…`: packs directories as the layers of an OCI image, bottom first.
//!
//! A directory is a whole file tree or the upper directory of an overlayfs mount, whose whiteouts (character device
//! 0:0) and opaque directories (`trusted.overlay.opaque`) become the markers of the OCI layer format. Entries are
//! sorted, times later than `SOURCE_DATE_EPOCH` are cut to it, so the same trees give the same digests.

use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clipper_tests::layout::{Compression, Image, Layout};
use clipper_tests::tarball::{Entry, Kind, TarWriter};

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [layout, tag, config, layers @ ..] = args.as_slice() else {
        bail!("usage: oci-image LAYOUT TAG CONFIG-JSON DIR=COMPRESSION…");
    };
    let epoch = match env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => seconds.parse().context("SOURCE_DATE_EPOCH")?,
        Err(_) => i64::MAX,
    };
    let layout = Layout::create(Path::new(layout))?;
    let mut image = Image { config: serde_json::from_str(config).context("the configuration")?, ..Image::default() };
    for layer in layers {
        let (dir, compression) = layer.rsplit_once('=').context("a layer is DIR=COMPRESSION")?;
        let mut files = 0;
        let packed = layout.layer(&Compression::by_name(compression)?, |out| {
            let mut pack =
                Pack { root: PathBuf::from(dir), tar: TarWriter::new(out), links: HashMap::new(), epoch, files: 0 };
            pack.directory(Path::new(""))?;
            files = pack.files;
            pack.tar.finish()?;
            Ok(())
        })?;
        println!("{dir}: {files} entries, {} bytes as {compression}", packed.descriptor["size"]);
        image.layers.push(packed);
    }
    let manifest = layout.image(&image)?;
    layout.tag(tag, &manifest)
}

/// One layer on its way into a tar.
struct Pack<W> {
    root: PathBuf,
    tar: TarWriter<W>,
    /// First path of each inode that has several.
    links: HashMap<u64, Vec<u8>>,
    epoch: i64,
    files: u64,
}

impl<W: std::io::Write> Pack<W> {
    fn directory(&mut self, relative: &Path) -> Result<()> {
        let absolute = self.root.join(relative);
        let mut names: Vec<_> = fs::read_dir(&absolute)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
        names.sort();
        if xattr::get(&absolute, "trusted.overlay.opaque")?.as_deref() == Some(b"y") {
            self.tar
                .entry(&Entry::file(relative.join(".wh..wh..opq").as_os_str().as_bytes(), "").mtime(self.epoch, 0))?;
        }
        for name in names {
            self.path(&relative.join(&name), &name)
                .with_context(|| format!("packing {}", self.root.join(relative).join(&name).display()))?;
        }
        Ok(())
    }

    fn path(&mut self, relative: &Path, name: &OsStr) -> Result<()> {
        let absolute = self.root.join(relative);
        let meta = fs::symlink_metadata(&absolute)?;
        let kind = meta.file_type();
        self.files += 1;
        if kind.is_char_device() && meta.rdev() == 0 {
            let marker = [b".wh.", name.as_bytes()].concat();
            let path = relative.with_file_name(OsStr::from_bytes(&marker));
            return Ok(self.tar.entry(&Entry::file(path.as_os_str().as_bytes(), "").mtime(self.epoch, 0))?);
        }
        let path = relative.as_os_str().as_bytes().to_vec();
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let what = if kind.is_dir() {
            Kind::Directory
        } else if kind.is_symlink() {
            Kind::Symlink(fs::read_link(&absolute)?.into_os_string().as_bytes().to_vec())
        } else if kind.is_fifo() {
            Kind::Fifo
        } else if kind.is_char_device() {
            Kind::CharDevice(major, minor)
        } else if kind.is_block_device() {
            Kind::BlockDevice(major, minor)
        } else if kind.is_socket() {
            return Ok(());
        } else {
            Kind::File(Vec::new())
        };
        let first = if kind.is_dir() || meta.nlink() < 2 { None } else { self.links.get(&meta.ino()).cloned() };
        let stored = if kind.is_dir() { [path.as_slice(), b"/"].concat() } else { path.clone() };
        let mut entry = Entry::new(stored, what).mode(meta.mode() & 0o7777).owner(meta.uid(), meta.gid());
        entry.mtime =
            if meta.mtime() >= self.epoch { (self.epoch, 0) } else { (meta.mtime(), meta.mtime_nsec() as u32) };
        if let Some(first) = first {
            entry.kind = Kind::Hardlink(first);
            return Ok(self.tar.entry(&entry)?);
        }
        if meta.nlink() > 1 && !kind.is_dir() {
            self.links.insert(meta.ino(), path);
        }
        if !kind.is_symlink() {
            let mut names: Vec<_> = xattr::list(&absolute)?.collect();
            names.sort();
            for name in names.iter().filter(|name| !name.as_bytes().starts_with(b"trusted.overlay.")) {
                let value = xattr::get(&absolute, name)?.unwrap_or_default();
                entry.xattrs.push((name.as_bytes().to_vec(), value));
            }
        }
        if kind.is_file() {
            self.tar.file(&entry, meta.len(), &mut fs::File::open(&absolute)?)?;
        } else {
            self.tar.entry(&entry)?;
        }
        if kind.is_dir() {
            self.directory(relative)?;
        }
        Ok(())
    }
}
