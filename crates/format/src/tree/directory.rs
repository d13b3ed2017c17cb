//! A directory's names: a sorted map from names to inodes that takes little more memory than the names themselves.
use super::InodeId;
use std::{cmp::Ordering, fmt};

/// Most names of a leaf. Inserting moves at most the entries of one leaf, 6 KiB, and the list of leaves.
const LEAF_MAX: usize = 512;

/// The names of a directory (1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`) and the inodes that they lead to, in
/// ascending order of the bytes.
///
/// Layers of a million files are real. A `BTreeMap` of vectors takes 90 bytes for a name of 16; this takes 28, and 28
/// for each name of a layer that was written in the order of its names, as Docker and BuildKit write them.
#[derive(Clone, Default)]
pub struct Directory(Option<Box<Names>>);

#[derive(Clone, Default)]
struct Names {
    /// The names' bytes, one after the other; those of removed names stay.
    text: Vec<u8>,
    /// Sorted, none empty.
    leaves: Vec<Vec<Entry>>,
    len: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    at: u32,
    len: u16,
    id: u32,
}

/// Where a name is, or would be: leaf, entry.
type Place = (usize, usize);

impl Names {
    fn name(&self, entry: Entry) -> &[u8] {
        &self.text[entry.at as usize..][..usize::from(entry.len)]
    }

    fn find(&self, name: &[u8]) -> Result<Place, Place> {
        // The last leaf that doesn't begin behind the name.
        let after = self.leaves.partition_point(|leaf| leaf.first().is_some_and(|first| self.name(*first) <= name));
        let leaf = after.saturating_sub(1);
        let Some(entries) = self.leaves.get(leaf) else { return Err((0, 0)) };
        match entries.binary_search_by(|entry| self.name(*entry).cmp(name)) {
            Ok(at) => Ok((leaf, at)),
            Err(at) => Err((leaf, at)),
        }
    }

    fn insert(&mut self, (mut leaf, mut at): Place, entry: Entry) {
        self.len += 1;
        match self.leaves.get_mut(leaf) {
            None => return self.leaves.push(vec![entry]),
            Some(entries) if entries.len() == LEAF_MAX => {
                // Names that come in order leave full leaves behind, others half full ones.
                let behind = if at == LEAF_MAX { Vec::new() } else { entries.split_off(LEAF_MAX / 2) };
                if at > entries.len() || behind.is_empty() {
                    at -= entries.len();
                    leaf += 1;
                    self.leaves.insert(leaf, behind);
                } else {
                    self.leaves.insert(leaf + 1, behind);
                }
            }
            Some(_) => {}
        }
        self.leaves[leaf].insert(at, entry);
    }
}

impl Directory {
    /// How many names.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |names| names.len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The inode that `name` leads to.
    pub fn get(&self, name: &[u8]) -> Option<InodeId> {
        let names = self.0.as_ref()?;
        names.find(name).ok().map(|(leaf, at)| names.leaves[leaf][at].id as InodeId)
    }

    /// Has `name` lead to `id`; what it led to before.
    ///
    /// # Panics
    /// If `id` or the bytes of all names that there ever were don't fit in 32 bits, or the name's length in 16.
    pub fn insert(&mut self, name: &[u8], id: InodeId) -> Option<InodeId> {
        let (Ok(id), Ok(len)) = (u32::try_from(id), u16::try_from(name.len())) else {
            panic!("an inode number or a name beyond all bounds")
        };
        let names = self.0.get_or_insert_default();
        match names.find(name) {
            Ok((leaf, at)) => Some(std::mem::replace(&mut names.leaves[leaf][at].id, id) as InodeId),
            Err(place) => {
                let Ok(at) = u32::try_from(names.text.len()) else { panic!("more than 4 GiB of names") };
                names.text.extend_from_slice(name);
                names.insert(place, Entry { at, len, id });
                None
            }
        }
    }

    /// Removes a name; what it led to.
    pub fn remove(&mut self, name: &[u8]) -> Option<InodeId> {
        let names = self.0.as_mut()?;
        let (leaf, at) = names.find(name).ok()?;
        let entry = names.leaves[leaf].remove(at);
        if names.leaves[leaf].is_empty() {
            names.leaves.remove(leaf);
        }
        names.len -= 1;
        Some(entry.id as InodeId)
    }

    /// Keeps the names for whose inodes `number` has a new number.
    pub fn renumber(&mut self, number: impl Fn(InodeId) -> Option<InodeId>) {
        let Some(names) = &mut self.0 else { return };
        for leaf in &mut names.leaves {
            leaf.retain_mut(|entry| {
                let new = number(entry.id as InodeId).and_then(|id| u32::try_from(id).ok());
                entry.id = new.unwrap_or_default();
                new.is_some()
            });
        }
        names.leaves.retain(|leaf| !leaf.is_empty());
        names.len = names.leaves.iter().map(Vec::len).sum();
    }

    /// The names and their inodes, in order.
    pub fn iter(&self) -> Iter<'_> {
        let leaves = self.0.as_ref().map_or(&[][..], |names| &names.leaves);
        Iter { names: self.0.as_deref(), leaves: leaves.iter(), front: [].iter(), back: [].iter() }
    }

    /// The names, in order.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.iter().map(|(name, _)| name)
    }

    /// The inodes, in the order of their names.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = InodeId> + '_ {
        self.iter().map(|(_, id)| id)
    }
}

/// Iterator over a [`Directory`].
#[derive(Clone)]
pub struct Iter<'d> {
    names: Option<&'d Names>,
    leaves: std::slice::Iter<'d, Vec<Entry>>,
    front: std::slice::Iter<'d, Entry>,
    back: std::slice::Iter<'d, Entry>,
}

impl<'d> Iter<'d> {
    fn item(&self, entry: Entry) -> Option<(&'d [u8], InodeId)> {
        self.names.map(|names| (names.name(entry), entry.id as InodeId))
    }
}

impl Default for Iter<'_> {
    /// Over nothing.
    fn default() -> Self {
        Self { names: None, leaves: [].iter(), front: [].iter(), back: [].iter() }
    }
}

impl<'d> Iterator for Iter<'d> {
    type Item = (&'d [u8], InodeId);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.front.next() {
                return self.item(*entry);
            }
            match self.leaves.next() {
                Some(leaf) => self.front = leaf.iter(),
                None => return self.back.next().and_then(|entry| self.item(*entry)),
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = self.front.len() + self.back.len() + self.leaves.as_slice().iter().map(Vec::len).sum::<usize>();
        (len, Some(len))
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.back.next_back() {
                return self.item(*entry);
            }
            match self.leaves.next_back() {
                Some(leaf) => self.back = leaf.iter(),
                None => return self.front.next_back().and_then(|entry| self.item(*entry)),
            }
        }
    }
}

impl<'d> IntoIterator for &'d Directory {
    type Item = (&'d [u8], InodeId);
    type IntoIter = Iter<'d>;

    fn into_iter(self) -> Iter<'d> {
        self.iter()
    }
}

impl<N: AsRef<[u8]>> FromIterator<(N, InodeId)> for Directory {
    fn from_iter<I: IntoIterator<Item = (N, InodeId)>>(names: I) -> Self {
        let mut directory = Self::default();
        for (name, id) in names {
            directory.insert(name.as_ref(), id);
        }
        directory
    }
}

impl PartialEq for Directory {
    fn eq(&self, other: &Self) -> bool {
        self.iter().cmp(other.iter()) == Ordering::Equal
    }
}

impl Eq for Directory {}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, id)| (name.escape_ascii().to_string(), id))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn same(directory: &Directory, model: &BTreeMap<Vec<u8>, InodeId>) {
        let wanted: Vec<_> = model.iter().map(|(name, id)| (name.as_slice(), *id)).collect();
        assert_eq!(directory.iter().collect::<Vec<_>>(), wanted);
        let mut backwards: Vec<_> = directory.iter().rev().collect();
        backwards.reverse();
        assert_eq!(backwards, wanted);
        assert_eq!(directory.len(), model.len());
        assert_eq!(directory.iter().size_hint(), (model.len(), Some(model.len())));
        for (name, id) in model {
            assert_eq!(directory.get(name), Some(*id));
        }
    }

    proptest! {
        #[test]
        fn is_a_sorted_map(steps in prop::collection::vec((any::<bool>(), 0u16..3000, 1usize..100_000), 0..4000)) {
            let (mut directory, mut model) = (Directory::default(), BTreeMap::new());
            for (insert, name, id) in steps {
                let name = name.to_string().into_bytes();
                if insert || id % 4 == 0 {
                    prop_assert_eq!(directory.insert(&name, id), model.insert(name, id));
                } else {
                    prop_assert_eq!(directory.remove(&name), model.remove(&name));
                }
            }
            same(&directory, &model);
            directory.renumber(|id| (id % 3 != 0).then_some(id + 1));
            model.retain(|_, id| *id % 3 != 0);
            model.values_mut().for_each(|id| *id += 1);
            same(&directory, &model);
        }
    }

    #[test]
    fn any_order_of_arrival_gives_the_same_directory() {
        let names: Vec<_> = (0..5000usize).map(|n| (format!("{n:05}").into_bytes(), n)).collect();
        let model: BTreeMap<_, _> = names.iter().cloned().collect();
        let ascending: Directory = names.iter().cloned().collect();
        let descending: Directory = names.iter().rev().cloned().collect();
        let mixed: Directory = (0..5000).map(|n| names[n * 2503 % 5000].clone()).collect();
        for directory in [&ascending, &descending, &mixed] {
            same(directory, &model);
            assert_eq!(*directory, ascending);
        }
        let leaves = |directory: &Directory| directory.0.as_ref().map_or(0, |names| names.leaves.len());
        assert_eq!(leaves(&ascending), 5000usize.div_ceil(LEAF_MAX));
        assert!(leaves(&mixed) <= 2 * 5000 / (LEAF_MAX / 2));
    }

    #[test]
    fn a_mixed_iteration_from_both_ends_meets_in_the_middle() {
        let directory: Directory = (0..1500usize).map(|n| (format!("{n:04}").into_bytes(), n)).collect();
        let (mut iter, mut front, mut back) = (directory.iter(), Vec::new(), Vec::new());
        while let Some((_, id)) = iter.next() {
            front.push(id);
            back.extend(iter.next_back().map(|(_, id)| id));
        }
        front.extend(back.into_iter().rev());
        assert_eq!(front, (0..1500).collect::<Vec<_>>());
    }
}
