//! Merged trees on disk. A file is the EROFS image and behind it a trailer:
//!
//! ```text
//! image      EROFS, as `clipper_format::erofs` writes it
//! layers     64 bytes each, bottom first: digest of the index, digest of the layer
//! count      4 bytes, little-endian: number of layers
//! magic      8 bytes: "CLIPTREE"
//! checksum   32 bytes: SHA-256 of everything before
//! ```
//!
//! A file that was torn by a power cut or damaged by the disk is noticed by its checksum and made again.
use super::{
    StoreError,
    files::{Directory, Durability},
};
use crate::{Beneath, layer::LayerId};
use clipper_device::disk::{Disk, LocalDisk};
use clipper_format::{Digest, erofs::Image};
use std::{collections::HashSet, path::PathBuf, sync::Arc};

const ENDING: &str = ".erofs";
const MAGIC: &[u8; 8] = b"CLIPTREE";
const DIGEST: usize = 32;
/// Bytes of the trailer without its layers.
const FIXED: usize = 4 + MAGIC.len() + DIGEST;

/// Changes whenever the same layers would be merged or written differently: cached trees of other versions are unused.
const VERSION: u32 = 1;

/// The directory of merged trees.
pub(super) struct TreeCache<D: Disk = LocalDisk> {
    directory: Directory<D>,
}

/// What a merged tree is made from.
#[derive(Clone, Debug)]
pub(super) struct TreeRecipe {
    /// Bottom first.
    pub layers: Vec<LayerId>,
    pub place: Place,
}

/// Where a merged tree will lie.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// At the bottom.
    Bottom,
    /// Above something that isn't known: whiteouts are kept.
    Above,
    /// Above known directories: whiteouts are kept, and directories that no layer described take after them.
    Over(Beneath),
}

impl TreeRecipe {
    pub(super) fn key(&self) -> Digest {
        let mut text = format!("clipper merged tree {VERSION}\n");
        match &self.place {
            Place::Bottom => text.push_str("bottom\n"),
            Place::Above => text.push_str("above\n"),
            Place::Over(beneath) => text.push_str(&format!("over {}\n", beneath.id)),
        }
        for LayerId { index, layer } in &self.layers {
            text.push_str(&format!("{index} {layer}\n"));
        }
        Digest::of(text.as_bytes())
    }
}

impl<D: Disk> TreeCache<D> {
    pub(super) fn open(disk: D, path: PathBuf) -> Result<Self, StoreError> {
        Ok(Self { directory: Directory::open(disk, path)? })
    }

    /// The tree of `recipe`, if it is cached and sound.
    pub(super) fn load(&self, recipe: &TreeRecipe) -> Result<Option<Image>, StoreError> {
        let name = file_name(recipe);
        let Some(bytes) = self.directory.read(&name)? else { return Ok(None) };
        let image = parse_trailer(&bytes).filter(|(_, layers)| *layers == recipe.layers);
        let image = image.and_then(|(end, _)| Image::parse(Arc::from(&bytes[..end])).ok());
        if image.is_none() {
            tracing::warn!(tree = %self.directory.path(&name).display(), "a cached tree is damaged and is made again");
        }
        Ok(image)
    }

    /// Where the tree of `recipe` is, if it is cached.
    pub(super) fn file(&self, recipe: &TreeRecipe) -> PathBuf {
        self.directory.path(&file_name(recipe))
    }

    /// Keeps `image`, the merged tree of `recipe`.
    pub(super) fn store(&self, recipe: &TreeRecipe, image: &[u8]) -> Result<(), StoreError> {
        let mut file = Vec::with_capacity(image.len() + recipe.layers.len() * 2 * DIGEST + FIXED);
        file.extend_from_slice(image);
        for LayerId { index, layer } in &recipe.layers {
            file.extend_from_slice(index.as_bytes());
            file.extend_from_slice(layer.as_bytes());
        }
        file.extend_from_slice(&(recipe.layers.len() as u32).to_le_bytes());
        file.extend_from_slice(MAGIC);
        let checksum = Digest::of(&file);
        file.extend_from_slice(checksum.as_bytes());
        self.directory.write(&file_name(recipe), &file, Durability::Rebuildable)
    }

    /// Removes every tree that has a layer outside `layers`, and every damaged one; tells how many bytes that freed.
    pub(super) fn retain(&self, layers: &HashSet<LayerId>) -> Result<u64, StoreError> {
        let mut freed = 0;
        for name in self.directory.names()? {
            let used = self.directory.read(&name)?.and_then(|bytes| parse_trailer(&bytes));
            if used.is_none_or(|(_, used)| used.iter().any(|layer| !layers.contains(layer))) {
                freed += self.directory.remove(&name)?;
            }
        }
        Ok(freed)
    }
}

fn file_name(recipe: &TreeRecipe) -> String {
    recipe.key().hex() + ENDING
}

/// Checks the trailer of a tree's file: where the image ends, and the layers; `None` if the file is damaged.
fn parse_trailer(file: &[u8]) -> Option<(usize, Vec<LayerId>)> {
    let (body, checksum_found) = file.split_last_chunk::<DIGEST>()?;
    if Digest::of(body).as_bytes() != checksum_found {
        return None;
    }
    let (rest, magic) = body.split_last_chunk::<{ MAGIC.len() }>()?;
    let (rest, count) = rest.split_last_chunk::<4>()?;
    let layers = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(2 * DIGEST)?;
    let end = rest.len().checked_sub(layers).filter(|_| magic == MAGIC)?;
    let (digests, _) = rest[end..].as_chunks::<DIGEST>();
    let ids = digests
        .chunks_exact(2)
        .map(|pair| LayerId { index: Digest::from_bytes(pair[0]), layer: Digest::from_bytes(pair[1]) });
    Some((end, ids.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clipper_format::{erofs, tree::Tree};

    fn recipe(layers: &[&str]) -> TreeRecipe {
        let id = |name: &&str| LayerId { index: Digest::of(b"index"), layer: Digest::of(name.as_bytes()) };
        TreeRecipe { layers: layers.iter().map(id).collect(), place: Place::Bottom }
    }

    fn cache() -> (tempfile::TempDir, TreeCache, Vec<u8>) {
        let root = tempfile::tempdir().unwrap();
        let cache = TreeCache::open(LocalDisk, root.path().join("trees")).unwrap();
        (root, cache, erofs::write(&Tree::empty()).unwrap())
    }

    #[test]
    fn a_tree_comes_back_and_only_for_its_own_recipe() {
        let (_root, cache, image) = cache();
        let ab = recipe(&["a", "b"]);
        assert!(cache.load(&ab).unwrap().is_none());
        cache.store(&ab, &image).unwrap();
        assert_eq!(cache.load(&ab).unwrap().unwrap().bytes(), image);
        assert!(cache.load(&recipe(&["b", "a"])).unwrap().is_none());
        let beneath = Beneath { id: Digest::of(b"beneath"), dirs: Vec::new() };
        for place in [Place::Above, Place::Over(beneath)] {
            assert!(cache.load(&TreeRecipe { place, ..ab.clone() }).unwrap().is_none());
        }
    }

    #[test]
    fn any_flipped_byte_and_any_truncation_is_noticed() {
        let (_root, cache, image) = cache();
        let a = recipe(&["a"]);
        cache.store(&a, &image).unwrap();
        let path = cache.directory.path(&file_name(&a));
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(37).chain(good.len() - FIXED..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(&path, &bad).unwrap();
            assert!(cache.load(&a).unwrap().is_none(), "byte {at}");
        }
        for len in [0, 1, 31, 32, 43, 44, good.len() - 1] {
            std::fs::write(&path, &good[..len]).unwrap();
            assert!(cache.load(&a).unwrap().is_none(), "{len} bytes");
        }
        std::fs::write(&path, &good).unwrap();
        assert!(cache.load(&a).unwrap().is_some());
    }

    #[test]
    fn a_tree_goes_with_any_of_its_layers() {
        let (_root, cache, image) = cache();
        let (a, ab) = (recipe(&["a"]), recipe(&["a", "b"]));
        cache.store(&a, &image).unwrap();
        cache.store(&ab, &image).unwrap();
        let keep = HashSet::from_iter(a.layers.clone());
        assert!(cache.retain(&keep).unwrap() > image.len() as u64);
        assert!(cache.load(&a).unwrap().is_some());
        assert!(cache.load(&ab).unwrap().is_none());
    }
}
