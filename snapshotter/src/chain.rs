//! A chain of snapshots as what lies above one another in an overlay: directories, and merged trees of remote layers.
use crate::{
    records::{Record, RemoteLayer, SnapshotId},
    snapshot::Kind,
};
use clipper_format::Digest;
use std::collections::{HashMap, HashSet};

/// One lower directory of an overlay.
#[derive(Debug, PartialEq, Eq)]
pub enum Lower<'a> {
    /// An ordinary snapshot's own directory.
    Directory(SnapshotId),
    /// Neighbouring remote layers, mounted as one.
    Tree(RemoteRun<'a>),
}

/// Remote layers that lie directly on one another.
#[derive(Debug, PartialEq, Eq)]
pub struct RemoteRun<'a> {
    /// The layers, bottom first; never empty.
    pub layers: Vec<&'a RemoteLayer>,
    /// The ordinary snapshot directly below, if there is one: whiteouts still have something to hide then.
    pub above: Option<SnapshotId>,
    /// Names the merged tree.
    pub tree: Digest,
}

/// The lower directories that `chain`, topmost snapshot first, amounts to, topmost first.
pub fn lowers(chain: &[Record]) -> Vec<Lower<'_>> {
    let mut lowers = Vec::new();
    let mut rest = chain;
    while let Some(record) = rest.first() {
        let remote: Vec<_> = rest.iter().map_while(|record| record.remote.as_ref()).collect();
        if remote.is_empty() {
            lowers.push(Lower::Directory(record.id));
            rest = &rest[1..];
            continue;
        }
        rest = &rest[remote.len()..];
        let tree = remote[0].tree;
        let layers = remote.into_iter().rev().collect();
        lowers.push(Lower::Tree(RemoteRun { layers, above: rest.first().map(|record| record.id), tree }));
    }
    lowers
}

/// The remote layers below snapshots that somebody has mounted, or is about to, each once.
pub fn in_use(records: &[(String, Record)]) -> Vec<&RemoteLayer> {
    let by_name: HashMap<_, _> = records.iter().map(|(name, record)| (name.as_str(), record)).collect();
    let (mut seen, mut layers) = (HashSet::new(), Vec::new());
    for (_, user) in records.iter().filter(|(_, record)| record.kind != Kind::Committed) {
        let mut parent = user.parent.as_deref();
        // A parent that was seen has had its own parents looked at.
        while let Some(name) = parent.filter(|name| seen.insert(*name)) {
            let record = by_name.get(name);
            layers.extend(record.and_then(|record| record.remote.as_ref()));
            parent = record.and_then(|record| record.parent.as_deref());
        }
    }
    layers
}

/// Names the merged tree of remote layer `layer` upon `parent`: equal trees have equal names, whichever image they
/// are of. One above ordinary snapshots takes after what is there, so it is theirs alone.
pub fn tree_name(layer: &Digest, parent: Option<&Record>) -> Digest {
    let below = match parent {
        None => "nothing".to_owned(),
        Some(Record { remote: Some(remote), .. }) => remote.tree.to_string(),
        Some(Record { remote: None, id, .. }) => format!("snapshot {id}"),
    };
    Digest::of(format!("clipper tree\n{layer}\non {below}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Labels, Timestamp, Usage};

    /// A chain from the bottom up: `Some(name)` for a remote layer; returned topmost first.
    fn chain(layers: &[Option<&str>]) -> Vec<Record> {
        let mut chain: Vec<Record> = Vec::new();
        for (id, layer) in (1..).zip(layers) {
            let remote = layer.map(|name| {
                let layer = Digest::of(name.as_bytes());
                let tree = tree_name(&layer, chain.first());
                RemoteLayer { index: layer, layer, chain: layer, tree, repositories: Vec::new(), image: None }
            });
            let (time, labels) = (Timestamp::default(), Labels::new());
            let usage = Usage::default();
            let kind = Kind::Committed;
            let record = Record { id, kind, parent: None, labels, created: time, updated: time, usage, remote };
            chain.insert(0, record);
        }
        chain
    }

    fn shape(layers: &[Option<&str>]) -> Vec<String> {
        lowers(&chain(layers))
            .into_iter()
            .map(|lower| match lower {
                Lower::Directory(id) => id.to_string(),
                Lower::Tree(run) => {
                    let above = run.above.map_or_else(String::new, |id| format!(" above {id}"));
                    format!("{} layers{above}", run.layers.len())
                }
            })
            .collect()
    }

    #[test]
    fn neighbouring_remote_layers_become_one_tree() {
        let (a, b, c) = (Some("a"), Some("b"), Some("c"));
        assert_eq!(shape(&[]), [""; 0]);
        assert_eq!(shape(&[None, None]), ["2", "1"]);
        assert_eq!(shape(&[a, b, c]), ["3 layers"]);
        assert_eq!(shape(&[a, b, None]), ["3", "2 layers"]);
        assert_eq!(shape(&[None, a, b]), ["2 layers above 1", "1"]);
        assert_eq!(shape(&[a, None, b, c, None]), ["5", "2 layers above 2", "2", "1 layers"]);
    }

    #[test]
    fn layers_of_a_run_are_bottom_first() {
        let records = chain(&[None, Some("a"), Some("b")]);
        let [Lower::Tree(run), Lower::Directory(1)] = &lowers(&records)[..] else { panic!("{records:?}") };
        assert_eq!(run.layers.iter().map(|l| l.layer).collect::<Vec<_>>(), [Digest::of(b"a"), Digest::of(b"b")]);
    }

    #[test]
    fn layers_are_in_use_by_snapshots_that_are_not_committed() {
        let layers = chain(&[Some("a"), None, Some("b"), Some("c"), Some("d")]);
        let mut records: Vec<_> = layers.into_iter().map(|record| (record.id.to_string(), record)).collect();
        for (_, record) in &mut records {
            record.parent = (record.id > 1).then(|| (record.id - 1).to_string());
        }
        assert!(in_use(&records).is_empty(), "nobody has mounted them");
        for (id, kind, parent) in [(7, Kind::Active, "3"), (8, Kind::View, "4"), (9, Kind::Active, "gone")] {
            let record = Record { id, kind, parent: Some(parent.into()), remote: None, ..records[0].1.clone() };
            records.push((id.to_string(), record));
        }
        let mut used: Vec<_> = in_use(&records).iter().map(|layer| layer.layer).collect();
        used.sort_unstable();
        let mut expected = [b"a", b"b", b"c"].map(|name| Digest::of(name)).to_vec();
        expected.sort_unstable();
        assert_eq!(used, expected);
    }

    #[test]
    fn trees_are_told_apart_by_layers_order_and_what_lies_below() {
        let top = |layers: &[Option<&str>]| chain(layers)[0].remote.as_ref().unwrap().tree;
        let (a, b) = (Some("a"), Some("b"));
        let trees = [top(&[a]), top(&[b]), top(&[a, b]), top(&[b, a]), top(&[None, a]), top(&[None, a, b])];
        for (i, tree) in trees.iter().enumerate() {
            assert!(!trees[..i].contains(tree), "{i}");
        }
        assert_eq!(top(&[a, b]), top(&[a, b]));
        assert_ne!(top(&[None, a]), top(&[None, None, a]));
    }
}
