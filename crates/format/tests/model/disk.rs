//! The model: layers unpacked onto maps from paths to inodes, and the maps looked at as overlayfs does.
use super::{Entry, Kind, Meta, Path, Shown, View, What, joined};
use std::collections::{BTreeMap, BTreeSet};

/// One layer's upper directory. Paths that are not in `names` don't exist; the root always does.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    names: BTreeMap<Path, usize>,
    inodes: Vec<Node>,
    /// Directory entries as they came, for the times.
    directories: Vec<(Path, (i64, u32))>,
    root_mtime: Option<(i64, u32)>,
    /// An image's first layer, where an opaque marker removes directories that are only parents.
    first: bool,
    /// All paths that were ever entries of their own, and those that were and are gone.
    unpacked: BTreeSet<Path>,
    removed: BTreeSet<Path>,
}

#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    meta: Meta,
    opaque: bool,
    /// Made as a parent only, and the same but described afterwards.
    implicit: bool,
    was_implicit: bool,
    /// Made while its parent was implicit; and the group that directories made in it then got.
    in_implicit: bool,
    inherited_group: Option<u32>,
    /// Its time is the layer's, whatever it inherits.
    own_time: bool,
}

/// The entry can't be applied, as Linux would say it, or the model doesn't want to know.
#[derive(Debug)]
pub struct Refused;

const WHITEOUT: Kind = Kind::CharDevice(0, 0);

impl Disk {
    /// Unpacks the entries as the image's `number`th layer, from 0; those that can't be are left out of what is
    /// returned.
    pub fn unpack(number: usize, entries: &[Entry]) -> (Self, Vec<Entry>) {
        let mut disk = Self { first: number == 0, ..Self::default() };
        let mut applied = Vec::new();
        for entry in entries {
            let mut next = disk.clone();
            if next.apply(entry).is_ok() {
                disk = next;
                applied.push(entry.clone());
            }
        }
        for (path, mtime) in disk.directories.clone() {
            let Ok(path) = disk.resolve(&path) else { continue };
            if let Some(&inode) = disk.names.get(&path) {
                disk.inodes[inode].meta.mtime = bounded(mtime);
                disk.inodes[inode].own_time = true;
            }
        }
        (disk, applied)
    }

    fn node(&self, path: &[Vec<u8>]) -> Option<&Node> {
        self.names.get(path).map(|inode| &self.inodes[*inode])
    }

    /// Follows links in every component, the last too. Link targets must not hold `..` behind another link, where
    /// continuity has its own ideas.
    fn resolve(&self, path: &[Vec<u8>]) -> Result<Path, Refused> {
        let mut at = Path::new();
        let mut links = 0;
        let mut todo: Vec<Vec<u8>> = path.iter().rev().cloned().collect();
        while let Some(name) = todo.pop() {
            match &name[..] {
                b"." | b"" => continue,
                b".." => {
                    at.pop();
                    continue;
                }
                _ => {}
            }
            at.push(name);
            match self.node(&at).map(|node| &node.kind) {
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > 40 {
                        return Err(Refused);
                    }
                    at.pop();
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    todo.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                }
                Some(kind) if *kind != Kind::Directory && *kind != WHITEOUT && !todo.is_empty() => {
                    return Err(Refused);
                }
                _ => {}
            }
        }
        Ok(at)
    }

    fn make_parents(&mut self, path: &[Vec<u8>]) -> Result<(), Refused> {
        for depth in 1..=path.len() {
            let path = &path[..depth];
            if self.removed.contains(path) && self.node(path).is_none() {
                // It would come back without what its entry said of it. Nobody can want that.
                return Err(Refused);
            }
            match self.node(path) {
                Some(node) if node.kind == Kind::Directory => {}
                Some(node) if node.kind != WHITEOUT => return Err(Refused),
                existing => {
                    let over_whiteout = existing.is_some();
                    let meta = Meta { perm: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: BTreeMap::new() };
                    let mut node = self.fresh(path, Kind::Directory, meta);
                    (node.implicit, node.opaque) = (!over_whiteout, over_whiteout);
                    self.put(path, node);
                }
            }
        }
        Ok(())
    }

    /// A node that takes its group from a setgid parent.
    fn fresh(&self, path: &[Vec<u8>], kind: Kind, mut meta: Meta) -> Node {
        let parent = self.node(&path[..path.len() - 1]);
        if let Some(parent) = parent.filter(|parent| parent.meta.perm & 0o2000 != 0) {
            meta.gid = parent.meta.gid;
        }
        let in_implicit = parent.is_some_and(|parent| parent.implicit);
        Node {
            kind,
            meta,
            opaque: false,
            implicit: false,
            was_implicit: false,
            in_implicit,
            inherited_group: None,
            own_time: false,
        }
    }

    fn put(&mut self, path: &[Vec<u8>], node: Node) {
        self.remove(path);
        self.names.insert(path.to_vec(), self.inodes.len());
        self.inodes.push(node);
    }

    fn remove(&mut self, path: &[Vec<u8>]) {
        self.names.retain(|name, _| !name.starts_with(path));
    }

    /// What an opaque marker does in an image's first layer.
    fn remove_mere_parents(&mut self, dir: &[Vec<u8>]) -> Result<(), Refused> {
        let below = |path: &&Path| path.len() > dir.len() && path.starts_with(dir);
        let parents: Vec<Path> = self
            .names
            .keys()
            .filter(below)
            .filter(|path| self.node(path).is_some_and(|n| n.implicit))
            .cloned()
            .collect();
        for path in parents {
            if self.unpacked.contains(&path) {
                // An entry once, a mere parent now: too fine a point.
                return Err(Refused);
            }
            let inside = self.names.keys().filter(|name| name.starts_with(&path) && self.unpacked.contains(*name));
            let inside: Vec<Path> = inside.cloned().collect();
            self.removed.extend(inside);
            self.remove(&path);
        }
        Ok(())
    }

    fn apply(&mut self, entry: &Entry) -> Result<(), Refused> {
        let Some((name, parent)) = entry.path.split_last() else {
            match entry.what {
                What::Directory => self.root_mtime = Some(bounded(entry.meta.mtime)),
                What::Opaque if self.first => return self.remove_mere_parents(&Path::new()),
                What::Opaque => {}
                _ => return Err(Refused),
            }
            return Ok(());
        };
        let in_directory = if matches!(entry.what, What::Opaque) { &entry.path[..] } else { parent };
        let mut path = self.resolve(in_directory)?;
        self.make_parents(&path)?;
        if matches!(entry.what, What::Opaque) {
            if let Some(&inode) = self.names.get(&path) {
                self.inodes[inode].opaque = true;
            }
            return if self.first { self.remove_mere_parents(&path) } else { Ok(()) };
        }
        path.push(name.clone());
        let kind = match &entry.what {
            What::Whiteout => Some(WHITEOUT),
            What::Directory => Some(Kind::Directory),
            What::File(bytes) => Some(Kind::File(bytes.clone())),
            What::Sparse(size, runs, _) => {
                let mut bytes = vec![0; *size as usize];
                for (offset, run) in runs {
                    bytes[*offset as usize..][..run.len()].copy_from_slice(run);
                }
                Some(Kind::File(bytes))
            }
            What::Symlink(target) => Some(Kind::Symlink(target.clone())),
            What::CharDevice(major, minor) => Some(Kind::CharDevice(*major, *minor)),
            What::BlockDevice(major, minor) => Some(Kind::BlockDevice(*major, *minor)),
            What::Fifo => Some(Kind::Fifo),
            What::HardLink(_) | What::Opaque => None,
        };
        let merges = kind == Some(Kind::Directory) && self.node(&path).is_some_and(|n| n.kind == Kind::Directory);
        if !merges {
            self.remove(&path);
            match (&entry.what, kind) {
                (What::HardLink(target), _) => {
                    let (name, parent) = target.split_last().ok_or(Refused)?;
                    let mut target = self.resolve(parent)?;
                    target.push(name.clone());
                    let inode = *self.names.get(&target).ok_or(Refused)?;
                    if self.inodes[inode].kind == Kind::Directory {
                        return Err(Refused);
                    }
                    self.names.insert(path.clone(), inode);
                }
                (_, Some(kind)) => {
                    let meta = Meta { xattrs: BTreeMap::new(), ..entry.meta.clone() };
                    let node = self.fresh(&path, kind, meta);
                    self.put(&path, node);
                }
                (_, None) => return Err(Refused),
            }
        }
        if matches!(entry.what, What::Directory) {
            self.directories.push((entry.path.clone(), entry.meta.mtime));
        }
        let node = &mut self.inodes[self.names[&path]];
        if node.implicit {
            (node.implicit, node.was_implicit) = (false, true);
        }
        (node.meta.uid, node.meta.gid) = (entry.meta.uid, entry.meta.gid);
        node.meta.mtime = bounded(entry.meta.mtime);
        if node.kind != Kind::Directory {
            node.meta.xattrs.remove(&b"security.capability"[..]);
        }
        let takes_user = matches!(node.kind, Kind::Directory | Kind::File(_));
        for (name, value) in &entry.meta.xattrs {
            if name.starts_with(b"user.") && takes_user || name.starts_with(b"security.") {
                node.meta.xattrs.insert(name.clone(), value.clone());
            }
        }
        self.unpacked.insert(path);
        node.meta.perm = if matches!(node.kind, Kind::Symlink(_)) { 0o777 } else { entry.meta.perm };
        Ok(())
    }

    /// Gives implicit directories what the layers below have for them; `below` is topmost first.
    fn inherit(&mut self, below: &[&Disk]) {
        let implicit: Vec<Path> = self.names.keys().cloned().collect();
        for path in implicit {
            let inode = self.names[&path];
            if !self.inodes[inode].implicit && !self.inodes[inode].was_implicit {
                continue;
            }
            let parent = self.node(&path[..path.len() - 1]);
            let group = parent.and_then(|parent| parent.inherited_group).filter(|_| self.inodes[inode].in_implicit);
            let found = below.iter().find_map(|disk| {
                let Ok(at) = disk.resolve(&path) else { return Some(None) };
                let on_the_way =
                    (1..=at.len()).any(|depth| disk.node(&at[..depth]).is_some_and(|n| n.kind == WHITEOUT));
                if on_the_way {
                    return Some(None);
                }
                disk.node(&at).map(|node| (node.kind == Kind::Directory).then_some(&node.meta))
            });
            let found = found.flatten();
            let node = &mut self.inodes[inode];
            node.inherited_group = found.filter(|meta| meta.perm & 0o2000 != 0).map(|meta| meta.gid);
            match (found, node.implicit) {
                (Some(meta), true) => {
                    let mtime = if node.own_time { node.meta.mtime } else { meta.mtime };
                    node.meta = Meta { mtime, ..meta.clone() };
                }
                (Some(meta), false) => {
                    for (name, value) in &meta.xattrs {
                        node.meta.xattrs.entry(name.clone()).or_insert_with(|| value.clone());
                    }
                }
                (None, true) => node.meta.gid = group.unwrap_or(node.meta.gid),
                (None, false) => {}
            }
        }
    }
}

/// Times that containerd can't set become 1970.
fn bounded((seconds, nanos): (i64, u32)) -> (i64, u32) {
    if (0..9_223_372_036).contains(&seconds) { (seconds, nanos) } else { (0, 0) }
}

/// What overlayfs shows of `layers`, bottom first.
pub fn view(layers: &[Disk]) -> View {
    let mut layers = layers.to_vec();
    for number in 0..layers.len() {
        let (below, rest) = layers.split_at_mut(number);
        let below: Vec<&Disk> = below.iter().rev().collect();
        rest[0].inherit(&below);
    }
    let mut view = View::new();
    let root_mtime = layers.iter().rev().find_map(|layer| layer.root_mtime).unwrap_or_default();
    view.insert(
        Vec::new(),
        Shown {
            kind: Kind::Directory,
            perm: 0o755,
            uid: 0,
            gid: 0,
            mtime: root_mtime,
            xattrs: BTreeMap::new(),
            same_as: Vec::new(),
        },
    );
    let all: Vec<&Disk> = layers.iter().rev().collect();
    let mut first_names = BTreeMap::new();
    show(&all, &Path::new(), &mut view, &mut first_names);
    view
}

/// Shows the directory at `path`, made of what `layers`, topmost first, have there.
fn show(layers: &[&Disk], path: &Path, view: &mut View, first_names: &mut BTreeMap<(usize, usize), Vec<u8>>) {
    let mut names = std::collections::BTreeSet::new();
    for layer in layers {
        let inside = |name: &&Path| name.len() == path.len() + 1 && name.starts_with(path);
        names.extend(layer.names.keys().filter(inside).cloned());
    }
    for path in names {
        let mut having = layers.iter().filter_map(|layer| Some((*layer, layer.node(&path)?)));
        let Some((top, node)) = having.next() else { continue };
        if node.kind == WHITEOUT {
            continue;
        }
        let name = joined(&path);
        let is_dir = node.kind == Kind::Directory;
        let identity = (std::ptr::from_ref(top) as usize, top.names[&path]);
        let same_as = if is_dir { name.clone() } else { first_names.entry(identity).or_insert(name.clone()).clone() };
        let Meta { perm, uid, gid, mtime, xattrs } = node.meta.clone();
        view.insert(name, Shown { kind: node.kind.clone(), perm, uid, gid, mtime, xattrs, same_as });
        if is_dir {
            let mut merged = vec![top];
            let mut opaque = node.opaque;
            for (layer, node) in having {
                if opaque || node.kind != Kind::Directory {
                    break;
                }
                merged.push(layer);
                opaque = node.opaque;
            }
            show(&merged, &path, view, first_names);
        }
    }
}
