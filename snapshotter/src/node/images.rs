//! Which lazy images there are: what records and mounts amount to for people.
use crate::{
    chain,
    records::{Record, RemoteLayer},
    snapshot::Kind,
};
use clipper_format::Digest;
use clipper_mount::ImageWatch;
use std::collections::HashMap;

/// Hex digits of a chain ID by which an image may be called, at least.
const DIGITS_MIN: usize = 6;

/// A lazy image: neighbouring remote layers of which something is, or could be, mounted.
#[derive(Clone)]
pub struct ImageView {
    /// What it is called: as it was pulled first, or else its repository.
    pub name: String,
    /// The chain ID of its topmost layer.
    pub chain: Digest,
    /// The layers, bottom first.
    pub layers: Vec<RemoteLayer>,
    /// Snapshots of containers on it.
    pub containers: u64,
    /// What is mounted of it.
    pub mounted: Option<ImageWatch>,
}

/// Why a text leads to no image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoSuchImage {
    /// None is called so.
    #[error("no lazy image is called {0:?}: `clipper node images` lists them")]
    Unknown(String),
    /// Several are.
    #[error("several images are called {name:?}: say which by its chain ID: {}", chains.join(", "))]
    Ambiguous {
        /// The text.
        name: String,
        /// Short chain IDs.
        chains: Vec<String>,
    },
}

impl ImageView {
    /// The first digits of the chain ID, for people.
    pub fn short_chain(&self) -> String {
        self.chain.hex()[..12].to_owned()
    }
}

/// The images that `records` speak of, sorted by name. One that is no more than the lower part of others shows only while a
/// container runs of it: it may be gone by itself.
pub fn views(records: &[(String, Record)], mounted: &[(String, ImageWatch)]) -> Vec<ImageView> {
    let by_name: HashMap<_, _> = records.iter().map(|(name, record)| (name.as_str(), record)).collect();
    let mut containers: HashMap<&str, u64> = HashMap::new();
    let mut below: HashMap<&str, bool> = HashMap::new();
    for (_, record) in records {
        let Some(parent) = record.parent.as_deref() else { continue };
        if record.kind == Kind::Committed {
            *below.entry(parent).or_default() |= record.remote.is_some();
            continue;
        }
        // Each run of remote layers below a container.
        let (mut name, mut inside) = (Some(parent), false);
        while let Some((known, record)) = name.and_then(|name| by_name.get_key_value(name)) {
            if record.remote.is_some() && !inside {
                *containers.entry(known).or_default() += 1;
            }
            inside = record.remote.is_some();
            name = record.parent.as_deref();
        }
    }
    let mut views = Vec::new();
    for (name, record) in records {
        let Some(top) = &record.remote else { continue };
        let used = containers.get(name.as_str()).copied().unwrap_or_default();
        if used == 0 && below.get(name.as_str()).copied().unwrap_or_default() {
            continue;
        }
        let mut run = Vec::new();
        let mut next = Some(record);
        while let Some(layer) = next.filter(|record| record.remote.is_some()) {
            run.push(layer.clone());
            next = layer.parent.as_deref().and_then(|parent| by_name.get(parent).copied());
        }
        let layers: Vec<RemoteLayer> = match chain::lowers(&run).into_iter().next() {
            Some(chain::Lower::Tree(run)) => run.layers.into_iter().cloned().collect(),
            _ => continue,
        };
        let repository = || top.repositories.first().cloned().unwrap_or_else(|| "unknown".to_owned());
        views.push(ImageView {
            name: top.image.clone().unwrap_or_else(repository),
            chain: top.chain,
            layers,
            containers: used,
            mounted: mounted.iter().find(|(tree, _)| top.tree.hex().starts_with(tree)).map(|(_, watch)| watch.clone()),
        });
    }
    views.sort_by(|a, b| (&a.name, a.chain).cmp(&(&b.name, b.chain)));
    views
}

/// The image that `text` means: its name, or the first digits of its chain ID.
///
/// # Errors
/// If there is none, or several.
pub fn find(mut views: Vec<ImageView>, text: &str) -> Result<ImageView, NoSuchImage> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let by_chain = digits.len() >= DIGITS_MIN && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    views.retain(|view| view.name == text || by_chain && view.chain.hex().starts_with(digits));
    match views.len() {
        0 => Err(NoSuchImage::Unknown(text.chars().take(300).collect())),
        1 => Ok(views.remove(0)),
        _ => {
            let chains = views.iter().map(ImageView::short_chain).collect();
            Err(NoSuchImage::Ambiguous { name: text.to_owned(), chains })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chain::tree_name,
        snapshot::{Labels, Timestamp, Usage},
    };

    /// Records by name, kind, parent, and image if remote.
    fn records(all: &[(&str, Kind, Option<&str>, Option<&str>)]) -> Vec<(String, Record)> {
        let mut records: Vec<(String, Record)> = Vec::new();
        for (id, (name, kind, parent, image)) in (1..).zip(all) {
            let layer = Digest::of(name.as_bytes());
            let below = parent.and_then(|parent| records.iter().find(|(name, _)| name == parent));
            let tree = tree_name(&layer, below.map(|(_, record)| record));
            let image = image.map(str::to_owned);
            let remote = image.as_ref().map(|_| RemoteLayer {
                index: layer,
                layer,
                chain: layer,
                tree,
                repositories: vec!["r/repository".into()],
                image: image.clone().filter(|image| !image.is_empty()),
            });
            let (time, parent, usage) = (Timestamp::default(), parent.map(str::to_owned), Usage::default());
            let record =
                Record { id, kind: *kind, parent, labels: Labels::new(), created: time, updated: time, usage, remote };
            records.push((name.to_string(), record));
        }
        records
    }

    #[test]
    fn an_image_is_what_nothing_lazy_lies_on_or_what_runs() {
        let all = records(&[
            ("a", Kind::Committed, None, Some("r/base:1")),
            ("b", Kind::Committed, Some("a"), Some("r/base:1")),
            ("c", Kind::Committed, Some("b"), Some("r/app:1")),
            ("d", Kind::Committed, Some("c"), None),
            ("ordinary", Kind::Committed, None, None),
            ("e", Kind::Committed, Some("ordinary"), Some("")),
            ("one", Kind::Active, Some("d"), None),
            ("two", Kind::View, Some("c"), None),
        ]);
        let shown = |all: &[(String, Record)]| {
            let views = views(all, &[]);
            views.into_iter().map(|view| (view.name, view.layers.len(), view.containers)).collect::<Vec<_>>()
        };
        assert_eq!(shown(&all), [("r/app:1".into(), 3, 2), ("r/repository".into(), 1, 0)]);
        let mut more = all.clone();
        more.push(("three".into(), Record { parent: Some("b".into()), remote: None, ..all[6].1.clone() }));
        assert_eq!(shown(&more)[1], ("r/base:1".into(), 2, 1));
    }

    #[test]
    fn images_are_found_by_name_and_by_chain() {
        let all = records(&[
            ("a", Kind::Committed, None, Some("r/app:1")),
            ("b", Kind::Committed, None, Some("r/app:1")),
            ("c", Kind::Committed, None, Some("r/app:2")),
        ]);
        let found = |text: &str| find(views(&all, &[]), text).map(|view| view.chain);
        let (a, c) = (Digest::of(b"a"), Digest::of(b"c"));
        assert_eq!(found("r/app:2"), Ok(c));
        assert_eq!(found(&a.to_string()), Ok(a));
        assert_eq!(found(&a.hex()[..8]), Ok(a));
        assert_eq!(found(&a.hex()[..5]), Err(NoSuchImage::Unknown(a.hex()[..5].into())));
        assert!(found("r/app:1").unwrap_err().to_string().contains(&a.hex()[..12]));
        assert!(found("r/app").is_err() && found("").is_err());
    }
}
