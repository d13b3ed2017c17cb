//! Downloading and unpacking one layer: blob → tar → tree → directory, each step verified before the next.
//!
//! The blob is read once, as a stream. What is held in memory is the layer's tree and a few pieces of the stream.
use crate::{
    directories::usage_of,
    materialise::{MaterialiseError, materialise},
    snapshot::Usage,
};
use bytes::Bytes;
use clipper_format::{
    Digest,
    merge::{self, MergeError},
    tar::{LayerWalker, Limits, TarError},
    tree::Tree,
};
use clipper_mount::Beneath;
use clipper_registry::{Blob, RegistryError};
use flate2::bufread::MultiGzDecoder;
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    io::{self, BufRead, Read, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tokio::{
    sync::mpsc::{Receiver, channel},
    task::spawn_blocking,
};

/// Pieces of a blob that may wait to be decompressed.
const QUEUE: usize = 16;
/// Decompressed bytes handled at a time.
const CHUNK: usize = 128 << 10;
/// Memory for a layer's tree: a million files or so. Larger layers are left to containerd.
const TREE_MEMORY: u64 = 256 << 20;
/// How gzip and zstd streams begin (RFC 1952, RFC 8878).
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Why a layer isn't unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("it is compressed with zstd, which is not unpacked here yet")]
    Zstd,
    #[error("it can't be decompressed")]
    Decompress(#[source] io::Error),
    #[error("it is no tar that can be unpacked")]
    Tar(#[from] TarError),
    #[error("it has chain ID {found}, but containerd expects {expected}")]
    WrongChain { expected: Digest, found: Digest },
    #[error("its tree makes no sense")]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Materialise(#[from] MaterialiseError),
    #[error("{doing} {}", path.display())]
    Disk { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("the daemon is stopping")]
    Interrupted,
}

impl UnpackError {
    fn disk(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Disk { doing, path, source }
    }

    /// Whether other bytes than those that the digest promises can be why.
    fn is_of_the_bytes(&self) -> bool {
        matches!(self, Self::Zstd | Self::Decompress(_) | Self::Tar(_))
    }
}

/// What a layer is unpacked upon.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The chain ID that the layer is to have.
    pub chain: Digest,
    /// That of the layers below: `None` if there are none; `Some(None)` if nobody told.
    pub below: Option<Option<Digest>>,
    /// The directories of the layers below, topmost first.
    pub directories: Vec<PathBuf>,
}

/// A layer's files in a directory of their own; gone when this is dropped, unless the directory was moved away.
pub struct Unpacked {
    place: Place,
    /// What they take.
    pub usage: Usage,
}

impl Unpacked {
    /// The directory that holds the files' root, `fs`, and nothing else.
    pub fn directory(&self) -> PathBuf {
        self.place.layer()
    }
}

/// Downloads `blob` and unpacks it below the directory `dir`, which is made for it.
pub async fn unpack(blob: &Blob, ground: &Ground, dir: &Path) -> Result<Unpacked, UnpackError> {
    match download(blob, ground, dir).await {
        Err(UnpackError::Registry(error)) if blob.is_wrong(&error) => {
            tracing::warn!(%error, "asking another server");
            download(blob, ground, dir).await
        }
        result => result,
    }
}

async fn download(blob: &Blob, ground: &Ground, dir: &Path) -> Result<Unpacked, UnpackError> {
    let mut stream = blob.read_verified().await?.fuse();
    let (sender, receiver) = channel(QUEUE);
    let (ground, dir) = (ground.clone(), dir.to_path_buf());
    let work = spawn_blocking(move || build(Pieces { receiver, piece: Bytes::new(), ended: false }, &ground, dir));
    let failure = loop {
        match stream.next().await {
            Some(Ok(bytes)) => {
                if sender.send(Piece::Bytes(bytes)).await.is_err() {
                    break None;
                }
            }
            Some(Err(error)) => break Some(error),
            None => {
                // Whoever doesn't wait for it any more has failed, and tells why.
                let _ = sender.send(Piece::End).await;
                break None;
            }
        }
    };
    drop(sender);
    let result = work.await.unwrap_or(Err(UnpackError::Interrupted));
    if let Some(error) = failure {
        return Err(error.into());
    }
    if result.as_ref().is_err_and(UnpackError::is_of_the_bytes) {
        // If the registry sent other bytes than the digest promises, that is what has to be told.
        while stream.try_next().await?.is_some() {}
    }
    result
}

/// Unpacks the blob that arrives in `pieces` below `dir`.
fn build(mut pieces: Pieces, ground: &Ground, dir: PathBuf) -> Result<Unpacked, UnpackError> {
    let place = Place::make(dir)?;
    let path = place.dir.join("tar");
    let tar = File::options().read(true).write(true).create_new(true).open(&path);
    let mut tar = tar.map_err(UnpackError::disk("create", &path))?;
    let (tree, diff_id) = spool(&mut pieces, &mut tar, &path)?;
    let found = match ground.below {
        None => Some(diff_id),
        Some(below) => below.map(|below| Digest::of(format!("{below} {diff_id}").as_bytes())),
    };
    if let Some(found) = found.filter(|found| *found != ground.chain) {
        return Err(UnpackError::WrongChain { expected: ground.chain, found });
    }
    // A merge of one: directories that the layer doesn't describe get the attributes of those below, and an image's
    // first layer loses what has nothing to hide.
    let tree = if ground.below.is_none() {
        merge::merge(vec![tree], false)?
    } else {
        let beneath = Beneath { id: ground.chain, dirs: ground.directories.clone() };
        merge::merge_above(vec![tree], &mut |path| beneath.look(path))?
    };
    let root = place.make_root()?;
    materialise(&tree, &tar, &root)?;
    drop(tar);
    fs::remove_file(&path).map_err(UnpackError::disk("delete", &path))?;
    // The record that comes next must not outlive the files it speaks of.
    let synced = File::open(&root).and_then(|root| Ok(rustix::fs::syncfs(&root)?));
    synced.map_err(UnpackError::disk("sync", &root))?;
    let usage = usage_of(&root).map_err(|error| UnpackError::disk("measure", &root)(io::Error::other(error)))?;
    Ok(Unpacked { place, usage })
}

/// Decompresses into the file `tar`, at `path`; gives the layer's tree and its diff ID once the whole blob is verified.
fn spool(pieces: &mut Pieces, tar: &mut File, path: &Path) -> Result<(Tree, Digest), UnpackError> {
    let mut walker = LayerWalker::new(Limits { memory: TREE_MEMORY, ..Limits::default() });
    let mut hash = Sha256::new();
    // As containerd does: by what it is, not by what it is called.
    let head = pieces.fill_buf().map_err(UnpackError::Decompress)?;
    let mut reader: Box<dyn Read + '_> = if head.starts_with(&GZIP) {
        Box::new(MultiGzDecoder::new(&mut *pieces))
    } else if head.starts_with(&ZSTD) {
        return Err(UnpackError::Zstd);
    } else {
        Box::new(&mut *pieces)
    };
    let mut buffer = vec![0; CHUNK];
    loop {
        let bytes = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(UnpackError::Decompress(error)),
        };
        hash.update(bytes);
        walker.push(bytes)?;
        tar.write_all(bytes).map_err(UnpackError::disk("write", path))?;
    }
    drop(reader);
    // A decoder may be content before it has seen the end, and so the verdict on the digest.
    io::copy(pieces, &mut io::sink()).map_err(UnpackError::Decompress)?;
    for warning in walker.warnings() {
        tracing::debug!(?warning, "dropped from an ordinary layer");
    }
    Ok((walker.finish()?, Digest::from_bytes(hash.finalize().into())))
}

/// What goes from the download to the decompression.
enum Piece {
    Bytes(Bytes),
    /// That was all, and its digest is right.
    End,
}

/// A blob as it arrives.
struct Pieces {
    receiver: Receiver<Piece>,
    piece: Bytes,
    ended: bool,
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.piece = bytes,
                Some(Piece::End) => self.ended = true,
                // Not an end like any other: nobody has vouched for what came so far.
                None => return Err(io::Error::other("the download was broken off")),
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, count: usize) {
        drop(self.piece.split_to(count));
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let count = piece.len().min(buffer.len());
        buffer[..count].copy_from_slice(&piece[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// The directory in which one layer is unpacked; deleted with all that is in it when this is dropped.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn make(dir: PathBuf) -> Result<Self, UnpackError> {
        let made = fs::DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(UnpackError::disk("create", &dir))?;
        Ok(Self { dir })
    }

    fn layer(&self) -> PathBuf {
        self.dir.join("layer")
    }

    /// Makes the directory of the layer, as those of snapshots are, and in it the empty root of its files.
    fn make_root(&self) -> Result<PathBuf, UnpackError> {
        let (layer, root) = (self.layer(), self.layer().join("fs"));
        for (path, mode) in [(&layer, 0o700), (&root, 0o755)] {
            let made = fs::create_dir(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)));
            made.map_err(UnpackError::disk("create", path))?;
        }
        Ok(root)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(directory = %self.dir.display(), %error, "a directory stays until the next start");
        }
    }
}
