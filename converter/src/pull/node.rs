//! A node's containerd, as far as a pull needs it: leases, content, images, snapshots, diffs.
use crate::cli::ContainerdArgs;
use anyhow::{Context, Result, bail};
use clipper_format::Digest;
use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    snapshots_client::SnapshotsClient,
};
use containerd_client::services::v1::{
    AddResourceRequest, ApplyRequest, CreateImageRequest, CreateRequest, DeleteRequest, Image, Info, InfoRequest,
    Resource, UpdateImageRequest, UpdateRequest, WriteAction, WriteContentRequest, content_client::ContentClient,
    diff_client::DiffClient, images_client::ImagesClient, leases_client::LeasesClient,
};
use containerd_client::types::{Descriptor, Mount};
use futures::{Stream, StreamExt};
use prost_types::FieldMask;
use std::collections::HashMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Labels of content, images and snapshots.
pub type Labels = HashMap<String, String>;

/// Largest gRPC message that containerd takes (defaults/defaults.go) less room for the rest of the message.
const CHUNK: usize = 4 << 20;
/// How long a lease protects what a pull has brought so far, should the pull die.
const LEASE_HOURS: u64 = 24;

/// A containerd in one namespace, under a lease.
pub struct Node {
    channel: Channel,
    namespace: String,
    snapshotter: String,
    lease: String,
}

/// What came of asking the snapshotter for a layer.
pub enum Prepared {
    /// The snapshotter has it, or has taken it on.
    Exists,
    /// It must be unpacked into these mounts.
    Unpack(Vec<Mount>),
}

impl Node {
    /// Connects and takes a lease, so that garbage collection leaves alone what the pull brings.
    pub async fn connect(containerd: &ContainerdArgs) -> Result<Self> {
        let ContainerdArgs { address, namespace, snapshotter } = containerd;
        let channel = containerd_client::connect(address)
            .await
            .with_context(|| format!("containerd at {}: is it running, and are you root?", address.display()))?;
        let lease = format!("clipper-pull-{}-{}", std::process::id(), nanoseconds());
        let node = Self { channel, namespace: namespace.into(), snapshotter: snapshotter.into(), lease };
        let expire = std::time::SystemTime::now() + std::time::Duration::from_secs(LEASE_HOURS * 3600);
        let labels = Labels::from([("containerd.io/gc.expire".into(), rfc3339(expire))]);
        LeasesClient::new(node.channel.clone())
            .create(node.unleased(CreateRequest { id: node.lease.clone(), labels })?)
            .await
            .map_err(|s| explain("taking a lease", &s))?;
        Ok(node)
    }

    /// Gives the lease back.
    pub async fn release(&self) -> Result<()> {
        LeasesClient::new(self.channel.clone())
            .delete(self.unleased(DeleteRequest { id: self.lease.clone(), sync: false })?)
            .await
            .map_err(|s| explain("giving the lease back", &s))?;
        Ok(())
    }

    fn unleased<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        let namespace = self.namespace.parse().context("the namespace isn't plain ASCII")?;
        request.metadata_mut().insert("containerd-namespace", namespace);
        Ok(request)
    }

    fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = self.unleased(message)?;
        request.metadata_mut().insert("containerd-lease", self.lease.parse().context("lease id")?);
        Ok(request)
    }

    /// Writes a blob into the content store under its digest, or only its `labels` if it is there.
    pub async fn write_blob<E>(
        &self,
        digest: Digest,
        size: u64,
        labels: Labels,
        bytes: impl Stream<Item = Result<bytes::Bytes, E>> + Send + 'static,
    ) -> Result<()>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        // First of all: a blob that is there for another image's sake may go with that image at any moment.
        self.keep("content".into(), digest).await?;
        let mut content = ContentClient::new(self.channel.clone()).max_decoding_message_size(16 << 20);
        let info = content.info(self.request(InfoRequest { digest: digest.to_string() })?).await;
        if info.is_ok() {
            return self.label_blob(digest, labels).await;
        }
        let reference = format!("clipper-{digest}");
        let total = i64::try_from(size).context("blob size")?;
        let failed = std::sync::Arc::new(std::sync::Mutex::new(None));
        let slot = failed.clone();
        let messages = write_messages(reference, total, digest, labels, bytes, slot);
        let written = self.finish_write(&mut content, messages, digest).await;
        // A source that failed is why containerd refused: tell the cause.
        if let Some(error) = failed.lock().ok().and_then(|mut slot| slot.take()) {
            return Err(error).with_context(|| format!("downloading {digest}"));
        }
        written
    }

    /// Puts a blob or a snapshot under the lease, whether or not it is there yet.
    async fn keep(&self, r#type: String, digest: Digest) -> Result<()> {
        let resource = Resource { id: digest.to_string(), r#type };
        let request = AddResourceRequest { id: self.lease.clone(), resource: Some(resource) };
        let kept = LeasesClient::new(self.channel.clone()).add_resource(self.unleased(request)?).await;
        kept.map_err(|s| explain(&format!("leasing {digest}"), &s))?;
        Ok(())
    }

    async fn finish_write(
        &self,
        content: &mut ContentClient<Channel>,
        messages: impl Stream<Item = WriteContentRequest> + Send + 'static,
        digest: Digest,
    ) -> Result<()> {
        let mut answers = match content.write(self.request(messages)?).await {
            Ok(answers) => answers.into_inner(),
            Err(status) if status.code() == Code::AlreadyExists => return Ok(()),
            Err(status) => return Err(explain(&format!("writing {digest}"), &status)),
        };
        let mut committed = false;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(answer) => committed |= answer.action == WriteAction::Commit as i32,
                Err(status) if status.code() == Code::AlreadyExists => committed = true,
                Err(status) => return Err(explain(&format!("writing {digest}"), &status)),
            }
        }
        if !committed {
            bail!("containerd did not commit {digest}");
        }
        Ok(())
    }

    /// Adds labels to a blob of the content store.
    pub async fn label_blob(&self, digest: Digest, labels: Labels) -> Result<()> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_string(), labels, ..Info::default() };
        let update = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        ContentClient::new(self.channel.clone())
            .update(self.request(update)?)
            .await
            .map_err(|s| explain(&format!("labelling {digest}"), &s))?;
        Ok(())
    }

    /// Points the image `name` at `target`.
    pub async fn name_image(&self, name: &str, target: Descriptor) -> Result<()> {
        let mut images = ImagesClient::new(self.channel.clone());
        let image = Image { name: name.into(), target: Some(target), ..Image::default() };
        let create = CreateImageRequest { image: Some(image.clone()), ..Default::default() };
        match images.create(self.request(create)?).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(explain(&format!("naming image {name}"), &status)),
        }
        let mask = FieldMask { paths: vec!["target".into()] };
        let update = UpdateImageRequest { image: Some(image), update_mask: Some(mask), ..Default::default() };
        images.update(self.request(update)?).await.map_err(|s| explain(&format!("naming image {name}"), &s))?;
        Ok(())
    }

    /// Asks the snapshotter for the layer that `labels` describe, to be committed as `chain`.
    pub async fn prepare(&self, key: &str, chain: Digest, parent: Option<Digest>, labels: Labels) -> Result<Prepared> {
        // As with blobs: another image's snapshot may go with that image.
        self.keep(format!("snapshots/{}", self.snapshotter), chain).await?;
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.into(),
            parent: parent.map(|p| p.to_string()).unwrap_or_default(),
            labels,
        };
        match self.snapshots().prepare(self.request(request)?).await {
            Ok(answer) => Ok(Prepared::Unpack(answer.into_inner().mounts)),
            Err(status) if status.code() == Code::AlreadyExists && self.has_snapshot(chain).await? => {
                Ok(Prepared::Exists)
            }
            // Of a snapshotter that it doesn't know (services/snapshots/service.go).
            Err(status) if status.message().contains("snapshotter not loaded") => {
                let question = "is it in containerd's config as a proxy plugin?";
                Err(explain(&format!("snapshotter {:?}: {question}", self.snapshotter), &status))
            }
            Err(status) => {
                Err(explain(&format!("snapshotter {:?}: preparing layer {chain}", self.snapshotter), &status))
            }
        }
    }

    async fn has_snapshot(&self, chain: Digest) -> Result<bool> {
        let request = StatSnapshotRequest { snapshotter: self.snapshotter.clone(), key: chain.to_string() };
        match self.snapshots().stat(self.request(request)?).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(explain(
                &format!("snapshotter {:?}: is it in containerd's config as a proxy plugin?", self.snapshotter),
                &status,
            )),
        }
    }

    /// Unpacks a layer that lies in the content store into `mounts`; returns the diff ID that came out.
    pub async fn apply(&self, layer: Descriptor, mounts: Vec<Mount>) -> Result<String> {
        let what = format!("unpacking {}", layer.digest);
        let request = ApplyRequest { diff: Some(layer), mounts, ..Default::default() };
        let answer = DiffClient::new(self.channel.clone())
            .apply(self.request(request)?)
            .await
            .map_err(|s| explain(&what, &s))?;
        Ok(answer.into_inner().applied.map(|d| d.digest).unwrap_or_default())
    }

    /// Commits the unpacked snapshot `key` as `chain`.
    pub async fn commit(&self, key: &str, chain: Digest, labels: Labels) -> Result<()> {
        let request = CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.into(),
            name: chain.to_string(),
            labels,
        };
        match self.snapshots().commit(self.request(request)?).await {
            Err(status) if status.code() != Code::AlreadyExists => {
                Err(explain(&format!("committing layer {chain}"), &status))
            }
            _ => Ok(()),
        }
    }

    /// Gives up the snapshot `key`.
    pub async fn abandon(&self, key: &str) -> Result<()> {
        let request = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: key.into() };
        self.snapshots().remove(self.request(request)?).await.map_err(|s| explain("removing a snapshot", &s))?;
        Ok(())
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }
}

type Failure = std::sync::Arc<std::sync::Mutex<Option<anyhow::Error>>>;

/// The messages of one content write. A source that fails ends the stream before the commit, and leaves its error
/// in `failed`.
fn write_messages<E: std::error::Error + Send + Sync + 'static>(
    reference: String,
    total: i64,
    digest: Digest,
    labels: Labels,
    bytes: impl Stream<Item = Result<bytes::Bytes, E>> + Send + 'static,
    failed: Failure,
) -> impl Stream<Item = WriteContentRequest> + Send + 'static {
    let first = reference.clone();
    let data = bytes
        .map(move |piece| match piece {
            Ok(piece) => Ok(piece),
            Err(error) => {
                if let Ok(mut slot) = failed.lock() {
                    *slot = Some(error.into());
                }
                Err(())
            }
        })
        .take_while(|piece| std::future::ready(piece.is_ok()))
        .flat_map(|piece| {
            let piece = piece.unwrap_or_default();
            let parts: Vec<_> = piece.chunks(CHUNK).map(bytes::Bytes::copy_from_slice).collect();
            futures::stream::iter(parts)
        })
        .scan(0i64, move |offset, data| {
            let message = WriteContentRequest {
                action: WriteAction::Write as i32,
                r#ref: first.clone(),
                total,
                offset: *offset,
                data: data.to_vec(),
                ..Default::default()
            };
            *offset += data.len() as i64;
            std::future::ready(Some(message))
        });
    let commit = WriteContentRequest {
        action: WriteAction::Commit as i32,
        r#ref: reference,
        total,
        expected: digest.to_string(),
        offset: total,
        labels,
        ..Default::default()
    };
    // A commit after a failed source is refused: offset `total` isn't what was written.
    data.chain(futures::stream::once(std::future::ready(commit)))
}

/// A gRPC failure in words.
pub fn explain(what: &str, status: &Status) -> anyhow::Error {
    anyhow::anyhow!("{what}: containerd answered {:?}: {}", status.code(), status.message())
}

/// Nanoseconds since 1970, to make keys unique.
pub fn nanoseconds() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos())
}

/// `time` as RFC 3339 in UTC, to the second. Days to dates after Hinnant's `civil_from_days`.
fn rfc3339(time: std::time::SystemTime) -> String {
    let seconds = time.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = ((seconds / 86400) as i64 + 719_468, seconds % 86400);
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn times_are_rfc3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_795_257_845, "2026-11-21T10:44:05Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
