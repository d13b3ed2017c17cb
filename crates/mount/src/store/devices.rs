//! From a layer's part of an index to its device: the device's name, and where its bytes come from.
use clipper_device::{ByteStream, Device, DeviceError, DeviceSpec, Devices, Source, SourceError};
use clipper_format::{
    Digest,
    index::{BlobRef, LayerIndex},
    span::Span,
};
use clipper_registry::Repository;
use std::{ops::Range, sync::Arc};

/// The key of a layer's device: a digest of the layer's own digest and of all that the index says about its spans.
/// Indexes that agree about a layer share its device; one that lies about it spoils only its own.
pub(super) fn key(layer: &LayerIndex) -> Digest {
    let mut text = Vec::new();
    text.extend_from_slice(b"clipper device 2\n");
    text.extend_from_slice(layer.digest.as_bytes());
    text.extend_from_slice(&layer.source_size.to_le_bytes());
    for Span { device_offset, device_len, source_offset, source_len, start, blake3 } in layer.spans.spans() {
        text.extend_from_slice(&start.to_bytes());
        text.extend_from_slice(&device_offset.to_le_bytes());
        text.extend_from_slice(&device_len.to_le_bytes());
        text.extend_from_slice(&source_offset.to_le_bytes());
        text.extend_from_slice(&source_len.to_le_bytes());
        text.extend_from_slice(blake3);
    }
    for Range { start, end } in checkpoint_groups(layer).1 {
        text.extend_from_slice(&start.to_le_bytes());
        text.extend_from_slice(&end.to_le_bytes());
    }
    Digest::of(&text)
}

/// Opens the device `key` of `layer`, first met in `image`, with a source in each of `repositories`; with none of them, it serves what is
/// cached.
pub(super) fn open(
    devices: &Devices,
    key: Digest,
    layer: &LayerIndex,
    checkpoints: Option<&BlobRef>,
    repositories: &[Repository],
    image: &str,
) -> Result<Arc<Device>, DeviceError> {
    let (shift, groups) = checkpoint_groups(layer);
    let spec = |source: Arc<dyn Source>, checkpoints: Option<Arc<dyn Source>>| DeviceSpec {
        digest: key,
        source_size: layer.source_size,
        spans: layer.spans.clone(),
        checkpoint_groups: groups.clone(),
        layer: source,
        checkpoints,
        // Not below a level that may be switched off: lines of any level are within it.
        log: tracing::error_span!(parent: None, "layer", image, layer = %layer.digest),
    };
    let Some((first, others)) = repositories.split_first() else {
        return devices.device(spec(Arc::new(Nowhere { digest: layer.digest }), None));
    };
    let sources = |repository: &Repository| {
        let blob = repository.blob(layer.digest, layer.source_size);
        let checkpoints = checkpoints.map(|blob| {
            let blob = repository.blob(blob.digest, blob.size);
            Arc::new(Shifted { source: Arc::new(blob), shift }) as Arc<dyn Source>
        });
        spec(Arc::new(blob), checkpoints)
    };
    let device = devices.device(sources(first))?;
    for repository in others {
        // The device is open: this only adds sources.
        devices.device(sources(repository))?;
    }
    Ok(device)
}

/// Where the layer's groups of checkpoints begin in the checkpoints blob, and their ranges counted from there: these
/// are the same in every index of the layer, wherever the layer stands in its image.
fn checkpoint_groups(layer: &LayerIndex) -> (u64, Vec<Range<u64>>) {
    let shift = layer.checkpoint_groups.iter().map(|group| group.start).min().unwrap_or_default();
    let shifted = |group: &Range<u64>| group.start - shift..group.end.saturating_sub(shift);
    (shift, layer.checkpoint_groups.iter().map(shifted).collect())
}

/// A blob's bytes from `shift` on.
struct Shifted {
    source: Arc<dyn Source>,
    shift: u64,
}

#[async_trait::async_trait]
impl Source for Shifted {
    async fn read(&self, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let beyond = || SourceError::lasting("a range beyond any blob");
        let shifted = |at: u64| at.checked_add(self.shift).ok_or_else(beyond);
        self.source.read(shifted(range.start)?..shifted(range.end)?).await
    }

    fn describe(&self) -> String {
        match self.shift {
            0 => self.source.describe(),
            shift => format!("{} from byte {shift}", self.source.describe()),
        }
    }

    fn distrust(&self, range: Range<u64>) -> bool {
        self.source.distrust(range.start.saturating_add(self.shift)..range.end.saturating_add(self.shift))
    }
}

/// The source of a layer when no repository is known that has it.
struct Nowhere {
    digest: Digest,
}

#[async_trait::async_trait]
impl Source for Nowhere {
    async fn read(&self, _range: Range<u64>) -> Result<ByteStream, SourceError> {
        Err(SourceError::lasting(format!("no repository is known that has layer {}", self.digest)))
    }

    fn describe(&self) -> String {
        format!("{} in no known repository", self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clipper_format::{
        index::PackedTree,
        span::{SpanTable, Start},
        tree::Tree,
    };

    fn layer(name: &[u8], content: u8, shift: u64) -> LayerIndex {
        let span = |number: u64, start| Span {
            device_offset: number * 4096,
            device_len: 4096,
            source_offset: number * 10,
            source_len: 10,
            start,
            blake3: [content; 32],
        };
        let gzip = Start::Gzip { bit: 3, skip: 7, checkpoint: 0 };
        LayerIndex {
            digest: Digest::of(name),
            diff_id: Digest::of(b"diff"),
            source_size: 20,
            tree: PackedTree::pack(&Tree::empty()).unwrap(),
            spans: SpanTable::new(vec![span(0, Start::GzipMember { skip: 0 }), span(1, gzip)], 20).unwrap(),
            checkpoint_groups: vec![shift..shift + 50, shift + 50..shift + 60],
        }
    }

    #[test]
    fn a_device_belongs_to_a_layer_and_what_is_said_of_it_but_not_to_a_place_in_an_image() {
        let base = key(&layer(b"layer", 1, 0));
        assert_eq!(base, key(&layer(b"layer", 1, 999)));
        assert_ne!(base, key(&layer(b"other", 1, 0)));
        assert_ne!(base, key(&layer(b"layer", 2, 0)));
    }

    #[test]
    fn ranges_of_groups_that_run_backwards_do_no_harm() {
        let mut bad = layer(b"layer", 1, 0);
        bad.checkpoint_groups = vec![Range { start: 50, end: 10 }];
        assert_eq!(checkpoint_groups(&bad), (50, vec![Range::default()]));
    }
}
