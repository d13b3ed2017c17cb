//! A disk in memory whose power fails at whatever step a test likes. What wasn't synced by then is there afterwards,
//! or not, or in part: sector by sector, name by name, as a seed has it.
//!
//! A file's bytes are durable once the file was synced, and its name once the directory was; nothing else is promised, and
//! nothing that isn't promised can be relied on: neither that a name is older than another, nor that a file's size and its
//! bytes go together.

mod content;

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use content::{BLOCK, Change, Content};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The disk. Clones are the same disk. It knows directories, but no links.
#[derive(Clone, Debug)]
pub struct SimulatedDisk(Arc<Mutex<State>>);

/// An open file.
#[derive(Clone, Debug)]
pub struct SimulatedFile {
    disk: SimulatedDisk,
    node: usize,
}

#[derive(Debug, Default)]
struct State {
    nodes: Vec<Node>,
    names: Names,
    durable_names: Names,
    /// Changes of names since their directory was synced.
    renames: Vec<Rename>,
    /// Steps so far: whatever changes something, or makes it durable.
    steps: u64,
    trouble: Trouble,
    /// Set once the power has failed.
    off: bool,
    /// Bytes that all files may take.
    capacity: Option<u64>,
    /// Syncs do nothing, and say that they did.
    lies: bool,
}

/// Files, and directories as `None`.
type Names = BTreeMap<PathBuf, Option<usize>>;

#[derive(Debug, Default)]
struct Node {
    now: Content,
    durable: Content,
    changes: Vec<Change>,
    modified: Option<SystemTime>,
}

#[derive(Clone, Debug)]
struct Rename {
    dir: PathBuf,
    gone: Option<PathBuf>,
    new: Option<(PathBuf, Option<usize>)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Trouble {
    #[default]
    None,
    PowerFailsAt(u64),
    SyncFailsFrom(u64),
}

impl Default for SimulatedDisk {
    fn default() -> Self {
        Self::new(None)
    }
}

impl SimulatedDisk {
    /// An empty disk, on which files may take no more than `capacity` bytes.
    pub fn new(capacity: Option<u64>) -> Self {
        let names = Names::from([(PathBuf::from("/"), None)]);
        let state = State { capacity, durable_names: names.clone(), names, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// The power fails in step number `step`, counted from 1.
    pub fn fail_at(&self, step: u64) {
        self.state().trouble = Trouble::PowerFailsAt(step);
    }

    /// The first sync from step number `step` on fails. As with a real one, what it should have written is forgotten: no
    /// later sync writes it.
    pub fn fail_sync_from(&self, step: u64) {
        self.state().trouble = Trouble::SyncFailsFrom(step);
    }

    /// Syncs do nothing from now on, and say that they did.
    pub fn lie(&self) {
        self.state().lies = true;
    }

    /// Whether the power has failed.
    pub fn is_off(&self) -> bool {
        self.state().off
    }

    /// What is on the disk once the power is back, if it fails now.
    pub fn after_power_loss(&self, seed: u64) -> Self {
        let state = self.state();
        let mut rng = StdRng::seed_from_u64(seed);
        // Nothing, everything, and some of it, of the bytes and of the names.
        let mut kept = |kind: u64| match kind % 3 {
            0 => 0.0,
            1 => 1.0,
            _ => rng.random_range(0.1..0.9),
        };
        let (bytes_kept, names_kept) = (kept(seed), kept(seed / 3));
        let mut nodes = Vec::new();
        for node in &state.nodes {
            let mut content = node.durable.clone();
            node.changes.iter().for_each(|change| content.apply_torn(change, bytes_kept, &mut rng));
            let modified = node.modified;
            nodes.push(Node { now: content.clone(), durable: content, changes: Vec::new(), modified });
        }
        let mut names = state.durable_names.clone();
        for rename in &state.renames {
            if rng.random_bool(names_kept) {
                rename.apply(&mut names);
            }
        }
        let whole = names.clone();
        names.retain(|name, _| name.ancestors().all(|above| whole.contains_key(above)));
        let capacity = state.capacity;
        let state = State { nodes, durable_names: names.clone(), names, capacity, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Makes a directory and those above it. Whether there was any to make.
    pub fn make_dir(&self, dir: &Path) -> Result<bool> {
        let above: Vec<_> = dir.ancestors().map(Path::to_owned).collect();
        let mut made = false;
        for dir in above.into_iter().rev() {
            if !self.state().names.contains_key(&dir) {
                self.state().rename(None, Some((dir, None)))?;
                made = true;
            }
        }
        Ok(made)
    }

    /// Opens a file, made empty if it is missing.
    pub fn open(&self, path: &Path) -> Result<SimulatedFile> {
        let mut state = self.state();
        let node = match state.find(path) {
            Ok(node) => node,
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Err(_) => {
                let node = state.nodes.len();
                state.nodes.push(Node::default());
                state.rename(None, Some((path.to_owned(), Some(node))))?;
                node
            }
        };
        Ok(SimulatedFile { disk: self.clone(), node })
    }

    /// Opens a file and empties it.
    pub fn create(&self, path: &Path) -> Result<SimulatedFile> {
        let file = self.open(path)?;
        file.set_size(0)?;
        Ok(file)
    }

    /// All bytes of a file.
    pub fn read(&self, path: &Path) -> Result<Vec<u8>> {
        let file = SimulatedFile { disk: self.clone(), node: self.state().find(path)? };
        let mut bytes = vec![0; file.size()? as usize];
        file.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// The size of a file, and when it was changed.
    pub fn facts(&self, path: &Path) -> Result<(u64, SystemTime)> {
        let state = self.state();
        let node = &state.nodes[state.find(path)?];
        Ok((node.now.size, node.modified.unwrap_or(UNIX_EPOCH)))
    }

    /// The names in a directory.
    pub fn names(&self, dir: &Path) -> Result<Vec<String>> {
        let state = self.state();
        state.powered()?;
        let below = state.names.keys().filter(|name| name.parent() == Some(dir));
        Ok(below.filter_map(|name| name.file_name()?.to_str().map(String::from)).collect())
    }

    /// Gives a file another name in the same directory.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        assert_eq!(from.parent(), to.parent(), "this disk renames within directories");
        let mut state = self.state();
        let node = state.find(from)?;
        state.rename(Some(from.to_owned()), Some((to.to_owned(), Some(node))))
    }

    /// Removes a file.
    pub fn remove(&self, path: &Path) -> Result<()> {
        let mut state = self.state();
        state.find(path)?;
        state.rename(Some(path.to_owned()), None)
    }

    /// Makes the names in a directory durable.
    pub fn sync_dir(&self, dir: &Path) -> Result<()> {
        let mut state = self.state();
        if !state.sync()? {
            return Ok(());
        }
        let (ours, others) = std::mem::take(&mut state.renames).into_iter().partition(|rename| rename.dir == dir);
        state.renames = others;
        let ours: Vec<Rename> = ours;
        ours.iter().for_each(|rename| rename.apply(&mut state.durable_names));
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl SimulatedFile {
    /// Its bytes, holes counted.
    pub fn size(&self) -> Result<u64> {
        let state = self.disk.state();
        state.powered()?;
        Ok(state.nodes[self.node].now.size)
    }

    /// Cuts it or extends it by a hole.
    pub fn set_size(&self, size: u64) -> Result<()> {
        if self.size()? == size {
            return Ok(());
        }
        self.disk.state().change(self.node, Change::Size(size))
    }

    /// Says when it was changed.
    pub fn set_modified(&self, time: SystemTime) -> Result<()> {
        let mut state = self.disk.state();
        state.powered()?;
        state.nodes[self.node].modified = Some(time);
        Ok(())
    }

    /// Fills `buf` from `offset`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let state = self.disk.state();
        state.powered()?;
        let bytes = state.nodes[self.node].now.read(offset, buf.len());
        buf.copy_from_slice(&bytes.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// Writes all of `bytes`, or nothing if there is no room.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.disk.state().change(self.node, Change::Write(offset, bytes.to_vec()))
    }

    /// Makes its bytes durable.
    pub fn sync(&self) -> Result<()> {
        let mut state = self.disk.state();
        match state.sync() {
            Ok(false) => return Ok(()),
            Err(error) if !state.off => {
                let mut rng = StdRng::seed_from_u64(state.steps);
                let node = &mut state.nodes[self.node];
                let changes = std::mem::take(&mut node.changes);
                changes.iter().for_each(|change| node.durable.apply_torn(change, 0.5, &mut rng));
                return Err(error);
            }
            synced => synced?,
        };
        let node = &mut state.nodes[self.node];
        let changes = std::mem::take(&mut node.changes);
        changes.iter().for_each(|change| node.durable.apply(change));
        Ok(())
    }

    /// Punches a hole.
    pub fn punch(&self, bytes: Range<u64>) -> Result<()> {
        self.disk.state().change(self.node, Change::Punch(bytes))
    }

    /// Where data begin, or a hole if `data` is false, from `from` on.
    pub fn next(&self, from: u64, data: bool) -> Result<Option<u64>> {
        let state = self.disk.state();
        state.powered()?;
        Ok(state.nodes[self.node].now.next(from, data))
    }
}

impl State {
    fn powered(&self) -> Result<()> {
        if self.off { Err(Error::other("the power is off")) } else { Ok(()) }
    }

    fn find(&self, path: &Path) -> Result<usize> {
        self.powered()?;
        self.names.get(path).copied().flatten().ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// One step more. The power may fail in it.
    fn step(&mut self) -> Result<()> {
        self.powered()?;
        self.steps += 1;
        self.off = self.trouble == Trouble::PowerFailsAt(self.steps);
        self.powered()
    }

    /// A step that makes something durable; false if it only says so.
    fn sync(&mut self) -> Result<bool> {
        self.step()?;
        if matches!(self.trouble, Trouble::SyncFailsFrom(step) if step <= self.steps) {
            self.trouble = Trouble::None;
            return Err(Error::other("the disk doesn't take it"));
        }
        Ok(!self.lies)
    }

    /// Changes a file. If the power fails meanwhile, the change may be there afterwards, or a part of it.
    fn change(&mut self, node: usize, change: Change) -> Result<()> {
        self.powered()?;
        if let (Change::Write(offset, bytes), Some(capacity)) = (&change, self.capacity) {
            let blocks = *offset / BLOCK..(offset + bytes.len() as u64).div_ceil(BLOCK);
            let new = blocks.filter(|block| !self.nodes[node].now.blocks.contains_key(block)).count() as u64;
            let named = self.names.values().flatten();
            let taken: u64 = named.map(|node| self.nodes[*node].now.blocks.len() as u64).sum();
            if new > 0 && (taken + new) * BLOCK > capacity {
                return Err(ErrorKind::StorageFull.into());
            }
        }
        let stepped = self.step();
        let node = &mut self.nodes[node];
        node.now.apply(&change);
        node.changes.push(change);
        stepped
    }

    fn rename(&mut self, gone: Option<PathBuf>, new: Option<(PathBuf, Option<usize>)>) -> Result<()> {
        let name = gone.as_deref().or(new.as_ref().map(|(name, _)| name.as_path()));
        let dir = name.and_then(Path::parent).unwrap_or(Path::new("/")).to_owned();
        if !self.names.contains_key(&dir) {
            return Err(ErrorKind::NotFound.into());
        }
        let stepped = self.step();
        let rename = Rename { dir, gone, new };
        rename.apply(&mut self.names);
        self.renames.push(rename);
        stepped
    }
}

impl Rename {
    fn apply(&self, names: &mut Names) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((name, node)) = &self.new {
            names.insert(name.clone(), *node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (SimulatedDisk, SimulatedFile) {
        let disk = SimulatedDisk::default();
        disk.make_dir(Path::new("/d")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let file = disk.open(Path::new("/d/a")).unwrap();
        file.write_at(&[1; 8192], 0).unwrap();
        (disk, file)
    }

    fn contents(disk: &SimulatedDisk, name: &str) -> Vec<Option<Vec<u8>>> {
        (0..40).map(|seed| disk.after_power_loss(seed).read(Path::new(name)).ok()).collect()
    }

    #[test]
    fn what_is_synced_stays_and_the_rest_may_be_there_or_not_or_torn() {
        let (disk, file) = disk();
        let all = contents(&disk, "/d/a");
        assert!(all.contains(&None) && all.contains(&Some(vec![1; 8192])));
        file.sync().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        assert!(contents(&disk, "/d/a").iter().all(|bytes| *bytes == Some(vec![1; 8192])));

        file.write_at(&[2; 4096], 0).unwrap();
        file.punch(4096..8192).unwrap();
        let all = contents(&disk, "/d/a");
        let torn = |bytes: &Vec<u8>| bytes[..4096].contains(&1) && bytes[..4096].contains(&2);
        assert!(all.iter().flatten().any(torn) && all.iter().flatten().any(|bytes| bytes[5000] == 0));
        assert!(all.contains(&Some(vec![1; 8192])) && all.contains(&Some([vec![2; 4096], vec![0; 4096]].concat())));

        disk.rename(Path::new("/d/a"), Path::new("/d/b")).unwrap();
        let (old, new) = (contents(&disk, "/d/a"), contents(&disk, "/d/b"));
        assert!(old.iter().zip(&new).all(|(old, new)| old.is_some() != new.is_some()));
        assert!(old.contains(&None) && new.contains(&None));
    }

    #[test]
    fn the_power_fails_once_and_a_sync_that_failed_is_not_made_up_for() {
        let (disk, file) = disk();
        disk.fail_at(disk.steps() + 2);
        file.write_at(&[3; 10], 0).unwrap();
        assert!(file.sync().is_err() && disk.is_off() && file.size().is_err());

        let (disk, file) = self::disk();
        disk.sync_dir(Path::new("/d")).unwrap();
        disk.fail_sync_from(disk.steps());
        assert!(file.sync().is_err());
        file.sync().unwrap();
        assert_eq!(disk.read(Path::new("/d/a")).unwrap(), [1; 8192], "the running system doesn't notice");
        assert!(contents(&disk, "/d/a").iter().all(|bytes| *bytes != Some(vec![1; 8192])));
    }

    #[test]
    fn a_full_disk_takes_what_needs_no_room() {
        let disk = SimulatedDisk::new(Some(8192));
        let file = disk.open(Path::new("/a")).unwrap();
        file.write_at(&[1; 8192], 0).unwrap();
        assert_eq!(file.write_at(&[2], 8192).unwrap_err().kind(), ErrorKind::StorageFull);
        file.write_at(&[2], 8191).unwrap();
        file.punch(0..4096).unwrap();
        assert_eq!((file.next(0, true).unwrap(), file.next(0, false).unwrap()), (Some(4096), Some(0)));
        file.write_at(&[2], 8192).unwrap();
    }
}
