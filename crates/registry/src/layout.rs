//! An OCI layout directory as a repository (image-spec, image-layout.md).
use crate::{
    blob::BlobStream,
    error::{ErrorKind, RegistryError},
    media::manifest_media_type,
    net::UploadStream,
    repository::{MANIFEST_MAX, Manifest, Selector},
    staged::StagedBlob,
};
use bytes::Bytes;
use clipper_format::digest::Digest;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

/// The annotation that names an entry of index.json (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Largest index.json that is read.
const INDEX_MAX: u64 = 64 << 20;
/// Bytes per read of a blob's file.
const READ_SIZE: usize = 512 << 10;

/// An OCI layout directory.
#[derive(Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
    /// Held while index.json is rewritten.
    index: tokio::sync::Mutex<()>,
    /// Makes temporary names differ within this process.
    serial: AtomicU64,
}

impl Layout {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, index: tokio::sync::Mutex::default(), serial: AtomicU64::new(0) }
    }

    pub fn name(&self) -> String {
        format!("oci:{}", self.dir.display())
    }

    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    fn host(&self) -> String {
        self.dir.display().to_string()
    }

    pub async fn only_entry(self: &Arc<Self>) -> Result<Selector, RegistryError> {
        self.blocking(format!("looking into {}", self.name()), |layout| {
            let entries = layout.entries()?;
            match entries.as_slice() {
                [one] => Ok(Selector::Digest(one.digest)),
                [] => Err(ErrorKind::NotFound { message: "its index.json lists no image".into() }),
                many => {
                    let names: Vec<_> = many.iter().filter_map(|e| e.name.as_deref()).take(10).collect();
                    let problem =
                        format!("it holds {} images ({}): name one, as in oci:DIR:TAG", many.len(), names.join(", "));
                    Err(ErrorKind::Request(problem))
                }
            }
        })
        .await
    }

    pub async fn manifest(self: &Arc<Self>, selector: &Selector) -> Result<Manifest, RegistryError> {
        let (action, selector) = (format!("reading the manifest {selector} of {}", self.name()), selector.clone());
        self.blocking(action, move |layout| {
            let digest = match selector {
                Selector::Digest(digest) => digest,
                Selector::Tag(tag) => layout.find(&tag)?,
            };
            let bytes = Bytes::from(read_file(&layout.blob_path(&digest), MANIFEST_MAX)?);
            let got = Digest::of(&bytes);
            if got != digest {
                return Err(ErrorKind::Digest { host: layout.host(), expected: digest, got });
            }
            let media_type = manifest_media_type(None, &bytes).map_err(ErrorKind::Malformed)?;
            Ok(Manifest { media_type, digest, bytes })
        })
        .await
    }

    pub async fn put_manifest(
        self: &Arc<Self>,
        selector: &Selector,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        let size = bytes.len();
        self.push_bytes(digest, bytes).await?;
        let Selector::Tag(tag) = selector else { return Ok(digest) };
        let (tag, media_type) = (tag.clone(), media_type.to_owned());
        let action = format!("writing the manifest {selector} to {}", self.name());
        let _turn = self.index.lock().await;
        self.blocking(action, move |layout| {
            layout.create()?;
            let mut index = layout.index()?;
            let entry = json!({
                "mediaType": media_type, "digest": digest.to_string(), "size": size, "annotations": { REF_NAME: tag },
            });
            let list = index.get_mut("manifests").and_then(Value::as_array_mut);
            let list = list.ok_or_else(|| ErrorKind::Malformed("index.json has no list of manifests".into()))?;
            list.retain(|old| ref_name(old) != Some(&tag));
            list.push(entry);
            let text = serde_json::to_vec(&index).map_err(|e| ErrorKind::Malformed(e.to_string()))?;
            layout.write_atomically(&layout.dir.join("index.json"), &text)?;
            Ok(digest)
        })
        .await
    }

    pub async fn blob_size(self: &Arc<Self>, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        let path = self.blob_path(digest);
        self.blocking(format!("looking for blob {digest} in {}", self.name()), move |_| match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(ErrorKind::io(&path, &e)),
        })
        .await
    }

    /// Reads a range of a blob, which the caller has checked to be within `size`.
    pub async fn read(&self, digest: Digest, size: u64, range: Range<u64>) -> Result<BlobStream, RegistryError> {
        let path = self.blob_path(&digest);
        let action = format!("reading blob {digest} of {}", self.name());
        let failed = |e: io::Error| ErrorKind::io(&path, &e).during(&action);
        let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
        let got = file.metadata().await.map_err(failed)?.len();
        if got != size {
            return Err(ErrorKind::Length { host: self.host(), expected: size, got }.during(action));
        }
        file.seek(io::SeekFrom::Start(range.start)).await.map_err(failed)?;
        let expected = range.end - range.start;
        let file = ReaderStream::with_capacity(file.take(expected), READ_SIZE);
        let host = self.host();
        // A file that is cut while it's read ends early: that's told, not passed over.
        let end = futures::stream::once(async { Ok(Bytes::new()) });
        let stream = file.map_err(move |e| ErrorKind::io(&path, &e).during(&action)).chain(end);
        let named = format!("reading blob {digest} of {}", self.name());
        let checked = stream.scan(0, move |got, item| {
            let item = match item {
                Ok(bytes) if bytes.is_empty() && *got == expected => None,
                Ok(bytes) if bytes.is_empty() => {
                    let short = ErrorKind::Length { host: host.clone(), expected, got: *got };
                    Some(Err(short.during(&named)))
                }
                Ok(bytes) => {
                    *got += bytes.len() as u64;
                    Some(Ok(bytes))
                }
                Err(error) => Some(Err(error)),
            };
            std::future::ready(item)
        });
        Ok(checked.boxed())
    }

    pub async fn push_bytes(self: &Arc<Self>, digest: Digest, bytes: Bytes) -> Result<bool, RegistryError> {
        let action = format!("writing blob {digest} to {}", self.name());
        self.blocking(action, move |layout| {
            layout.create()?;
            let path = layout.blob_path(&digest);
            if fs::metadata(&path).is_ok_and(|m| m.len() == bytes.len() as u64) {
                return Ok(false);
            }
            let got = Digest::of(&bytes);
            if got != digest {
                return Err(ErrorKind::Request(format!("the digest of the bytes is {got}")));
            }
            layout.write_atomically(&path, &bytes)?;
            Ok(true)
        })
        .await
    }

    pub async fn push_stream(self: &Arc<Self>, digest: Digest, upload: UploadStream) -> Result<bool, RegistryError> {
        let action = format!("writing blob {digest} to {}", self.name());
        if self.blob_size(&digest).await? == Some(upload.size) {
            return Ok(false);
        }
        let spent = || ErrorKind::Source("the stream can't be read again".into());
        let mut stream = upload.take().ok_or_else(|| spent().during(&action))?;
        let mut staged = StagedBlob::create(self, action.clone()).await?;
        while let Some(chunk) = stream.next().await {
            staged.write(chunk.map_err(|problem| ErrorKind::Source(problem).during(&action))?).await?;
        }
        staged.finish(Some(digest)).await?;
        Ok(true)
    }

    /// Takes a blob over from another layout by a hard link. False where that can't be done.
    pub async fn link_blob(
        self: &Arc<Self>,
        from: &Arc<Layout>,
        digest: &Digest,
        size: u64,
    ) -> Result<bool, RegistryError> {
        let (source, target) = (from.blob_path(digest), self.blob_path(digest));
        self.blocking(format!("linking blob {digest} into {}", self.name()), move |layout| {
            let right = |path: &Path| fs::metadata(path).is_ok_and(|m| m.len() == size);
            if right(&target) {
                return Ok(true);
            }
            if !right(&source) {
                return Ok(false);
            }
            layout.create()?;
            Ok(fs::hard_link(&source, &target).is_ok())
        })
        .await
    }

    pub async fn tags(self: &Arc<Self>) -> Result<Vec<String>, RegistryError> {
        self.blocking(format!("listing the tags of {}", self.name()), |layout| {
            Ok(layout.entries()?.into_iter().filter_map(|e| e.name).collect())
        })
        .await
    }

    /// The entry whose name is `tag`, or ends in `:tag`, as tools that write whole references there name it.
    fn find(&self, tag: &str) -> Result<Digest, ErrorKind> {
        let entries = self.entries()?;
        let ending = format!(":{tag}");
        let named = |exact: bool| {
            entries.iter().rev().find(|e| {
                e.name.as_deref().is_some_and(|name| if exact { name == tag } else { name.ends_with(&ending) })
            })
        };
        let found = named(true).or_else(|| named(false));
        found.map(|e| e.digest).ok_or_else(|| {
            let names: Vec<_> = entries.iter().filter_map(|e| e.name.as_deref()).take(10).collect();
            ErrorKind::NotFound { message: format!("the layout has no {tag:?}; it has {}", names.join(", ")) }
        })
    }

    fn entries(&self) -> Result<Vec<Entry>, ErrorKind> {
        let index = self.read_index()?;
        let list = index.get("manifests").and_then(Value::as_array);
        let list = list.ok_or_else(|| ErrorKind::Malformed("index.json has no list of manifests".into()))?;
        list.iter()
            .map(|entry| {
                let digest = entry.get("digest").and_then(Value::as_str).unwrap_or_default();
                let digest = digest.parse().map_err(|e| ErrorKind::Malformed(format!("index.json: {e}")))?;
                Ok(Entry { digest, name: ref_name(entry).map(str::to_owned) })
            })
            .collect()
    }

    /// index.json as it is, so that what other tools wrote there is kept.
    fn read_index(&self) -> Result<Value, ErrorKind> {
        let path = self.dir.join("index.json");
        let text = read_file(&path, INDEX_MAX)?;
        serde_json::from_slice(&text).map_err(|e| ErrorKind::Malformed(format!("{}: {e}", path.display())))
    }

    /// index.json, or a new one.
    fn index(&self) -> Result<Value, ErrorKind> {
        match self.read_index() {
            Err(ErrorKind::NotFound { .. }) => {
                Ok(json!({ "schemaVersion": 2, "mediaType": crate::media::OCI_INDEX, "manifests": [] }))
            }
            other => other,
        }
    }

    /// Makes the directory a layout if it isn't one yet.
    pub fn create(&self) -> Result<(), ErrorKind> {
        let blobs = self.dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(|e| ErrorKind::io(&blobs, &e))?;
        let marker = self.dir.join("oci-layout");
        if marker.exists() {
            return Ok(());
        }
        self.write_atomically(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    /// A name for a file that isn't complete yet; in blobs/, so that renaming it stays within one file system.
    pub fn temporary(&self) -> PathBuf {
        let serial = self.serial.fetch_add(1, Relaxed);
        self.dir.join("blobs").join(format!(".clipper-{}-{serial}", std::process::id()))
    }

    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> Result<(), ErrorKind> {
        let guard = Discard(self.temporary());
        let failed = |e: io::Error| ErrorKind::io(&guard.0, &e);
        let mut file = File::create(&guard.0).map_err(failed)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        self.rename(&guard.0, path)
    }

    /// Puts a finished file in its place, durably.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), ErrorKind> {
        let failed = |e: io::Error| ErrorKind::io(to, &e);
        fs::rename(from, to).map_err(failed)?;
        let parent = to.parent().unwrap_or(&self.dir);
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)
    }

    /// Runs file system work where it blocks nobody.
    pub async fn blocking<T, F>(self: &Arc<Self>, action: String, work: F) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: FnOnce(&Layout) -> Result<T, ErrorKind> + Send + 'static,
    {
        let layout = self.clone();
        let result = tokio::task::spawn_blocking(move || work(&layout)).await;
        let result = result.unwrap_or_else(|_| Err(ErrorKind::Request("the runtime is shutting down".into())));
        result.map_err(|kind| kind.during(action))
    }
}

/// An entry of index.json.
struct Entry {
    digest: Digest,
    name: Option<String>,
}

/// Removes an unfinished file.
#[derive(Debug)]
pub(crate) struct Discard(pub PathBuf);

impl Drop for Discard {
    fn drop(&mut self) {
        // After a rename there's nothing left to remove.
        let _ = fs::remove_file(&self.0);
    }
}

fn ref_name(entry: &Value) -> Option<&str> {
    entry.get("annotations")?.get(REF_NAME)?.as_str()
}

fn read_file(path: &Path, max: u64) -> Result<Vec<u8>, ErrorKind> {
    let failed = |e: io::Error| ErrorKind::io(path, &e);
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(max + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > max { Err(ErrorKind::TooLarge { limit: max }) } else { Ok(bytes) }
}
