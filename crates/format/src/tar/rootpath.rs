//! Paths inside a layer's own tree, resolved as continuity's `fs.RootPath` does for containerd.
use super::error::Problem;
use crate::tree::{Content, InodeId, ROOT, Tree};

/// Linux's `PATH_MAX` without the NUL.
const PATH_MAX: usize = 4095;
/// Linux's `NAME_MAX`.
pub(crate) const NAME_MAX: usize = 255;
/// continuity's bound on links followed for one path.
const LINKS_MAX: usize = 255;
/// Linux's bound on links followed in one lookup.
const KERNEL_LINKS_MAX: usize = 40;

/// Lookups for one path, beyond which a layer is up to no good: links to links in ever longer paths.
const STEPS_MAX: usize = 1 << 16;

/// Resolves `path` within `tree` as within a root directory: every symlink on the way, the last one too, is followed
/// and none leads out. What doesn't exist stays as it is. The result starts with `/` and is clean.
pub(crate) fn root_path(tree: &Tree, path: &[u8]) -> Result<Vec<u8>, Problem> {
    if path.is_empty() {
        return Ok(b"/".to_vec());
    }
    let mut walk = Walk { tree, links: 0, steps: 0 };
    let mut path = path.to_vec();
    loop {
        let before = walk.links;
        let walked = walk.links(&path)?;
        if walk.links == before {
            let cleaned = join(b"/", &walked);
            if cleaned == walked {
                return Ok(cleaned);
            }
            path = cleaned;
        } else {
            path = walked;
        }
    }
}

struct Walk<'a> {
    tree: &'a Tree,
    links: usize,
    steps: usize,
}

impl Walk<'_> {
    /// One pass over `path`: the links met are replaced by their targets; what those lead to is left for the next pass.
    fn links(&mut self, path: &[u8]) -> Result<Vec<u8>, Problem> {
        if let Some(path) = self.straight(path)? {
            return Ok(path);
        }
        let absolute = path.first() == Some(&b'/');
        let mut components = path.split(|b| *b == b'/').filter(|name| !name.is_empty());
        let mut walked = if absolute {
            b"/".to_vec()
        } else {
            match components.next() {
                Some(first) => self.link(first)?.0,
                None => return Ok(b"/".to_vec()),
            }
        };
        for name in components {
            let (target, is_link) = self.link(&join(&walked, name))?;
            walked = if !is_link || target.first() == Some(&b'/') { target } else { join(&walked, &target) };
        }
        Ok(walked)
    }

    /// The common case in one go: a path without links or inner `..`. `None` if this isn't one.
    fn straight(&self, path: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
        let cleaned = join(b"/", path);
        let inner_parents = components(path).skip_while(|name| *name == b"..").any(|name| name == b"..");
        if inner_parents || cleaned.len() > PATH_MAX {
            return Ok(None);
        }
        let mut at = Some(ROOT);
        for name in components(&cleaned) {
            if name.len() > NAME_MAX {
                return Err(Problem::Name("a part of its path is longer than 255 bytes"));
            }
            let Some(dir) = at else { continue };
            let Some(entries) = self.tree.entries(dir) else { return Err(Problem::NotADirectory(cleaned.clone())) };
            let inode = entries.get(name).and_then(|id| Some((id, self.tree.inodes.get(id)?)));
            at = match inode {
                Some((_, inode)) if matches!(inode.content, Content::Symlink(_)) => return Ok(None),
                Some((_, inode)) if inode.is_whiteout() => None,
                Some((id, _)) => Some(id),
                None => None,
            };
        }
        Ok(Some(cleaned))
    }

    /// If `path` is a symlink, its target as it stands; otherwise `path`, cleaned and absolute.
    fn link(&mut self, path: &[u8]) -> Result<(Vec<u8>, bool), Problem> {
        let path = join(b"/", path);
        self.steps += components(&path).count() + 1;
        if self.links > LINKS_MAX || self.steps > STEPS_MAX {
            return Err(Problem::TooManyLinks);
        }
        let Some(id) = lstat(self.tree, &path)? else { return Ok((path, false)) };
        match &self.tree.inode(id).content {
            Content::Symlink(target) => {
                self.links += 1;
                Ok((target.clone(), true))
            }
            _ => Ok((path, false)),
        }
    }
}

/// What the kernel finds at `path`, clean and absolute, without following a link in its last component. Links before
/// that lead nowhere if they leave the tree. A whiteout is nothing.
pub(crate) fn lstat(tree: &Tree, path: &[u8]) -> Result<Option<InodeId>, Problem> {
    Ok(match find(tree, path)? {
        Found::Inode(id) => Some(id),
        Found::Nothing | Found::Whiteout(_) => None,
    })
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    /// A whiteout: this one at the path's end, or some on the way.
    Whiteout(Option<InodeId>),
    Inode(InodeId),
}

/// As [`lstat`], telling whiteouts from nothing at all.
pub(crate) fn find(tree: &Tree, path: &[u8]) -> Result<Found, Problem> {
    if path.len() > PATH_MAX {
        return Err(Problem::Name("its path is longer than 4095 bytes"));
    }
    let mut todo: Vec<&[u8]> = components(path).rev().collect();
    let mut trail = vec![ROOT];
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name.len() > NAME_MAX {
            return Err(Problem::Name("a part of its path is longer than 255 bytes"));
        }
        let Some(&dir) = trail.last() else { return Ok(Found::Nothing) };
        let Some(entries) = tree.entries(dir) else { return Err(Problem::NotADirectory(path.to_vec())) };
        if name == b".." {
            trail.pop();
            continue;
        }
        let Some((id, inode)) = entries.get(name).and_then(|id| Some((id, tree.inodes.get(id)?))) else {
            return Ok(Found::Nothing);
        };
        match &inode.content {
            _ if inode.is_whiteout() => return Ok(Found::Whiteout(todo.is_empty().then_some(id))),
            Content::Symlink(target) if !todo.is_empty() => {
                links += 1;
                if links > KERNEL_LINKS_MAX {
                    return Err(Problem::TooManyLinks);
                }
                if target.first() == Some(&b'/') {
                    return Ok(Found::Nothing);
                }
                todo.extend(components(target).rev());
            }
            _ => trail.push(id),
        }
    }
    Ok(trail.last().map_or(Found::Nothing, |id| Found::Inode(*id)))
}

/// The components of a path that mean something, first to last.
pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|name| !matches!(*name, b"" | b"."))
}

/// Go's `filepath.Join`: the two joined and lexically cleaned.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match (dir, name) {
        (b"", b"") => Vec::new(),
        (b"", _) => clean(name),
        (_, b"") => clean(dir),
        _ => clean(&[dir, b"/", name].concat()),
    }
}

/// Go's `filepath.Clean`: no empty, `.` or inner `..` components; never empty.
pub(crate) fn clean(path: &[u8]) -> Vec<u8> {
    let absolute = path.first() == Some(&b'/');
    let mut kept: Vec<&[u8]> = Vec::new();
    for name in components(path) {
        match (name, kept.last()) {
            (b"..", Some(last)) if *last != b".." => {
                kept.pop();
            }
            (b"..", _) if absolute => {}
            _ => kept.push(name),
        }
    }
    let joined = kept.join(&b'/');
    match (absolute, joined.is_empty()) {
        (true, _) => [b"/", &joined[..]].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => joined,
    }
}

/// Go's `filepath.Split`: up to and with the last slash, and what follows.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Inode;

    fn tree(links: &[(&str, &str)], dirs: &[&str]) -> Tree {
        let mut tree = Tree::empty();
        let mut add = |path: &str, content: Content| {
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
            let dir = tree.lookup(dir.as_bytes()).unwrap();
            let id = tree.inodes.len();
            tree.inodes.push(Inode { content, ..Inode::empty_directory() });
            let Content::Directory(entries) = &mut tree.inodes[dir].content else { panic!("{path}") };
            entries.insert(name.as_bytes(), id);
        };
        for dir in dirs {
            add(dir, Content::Directory(Default::default()));
        }
        for (path, target) in links {
            add(path, Content::Symlink(target.as_bytes().to_vec()));
        }
        tree
    }

    #[test]
    fn paths_are_cleaned_like_gos() {
        for (path, cleaned) in [
            ("", "."),
            (".", "."),
            ("./", "."),
            ("/", "/"),
            ("a/", "a"),
            ("./a//b/./c", "a/b/c"),
            ("a/../b", "b"),
            ("a/../../b", "../b"),
            ("/../a", "/a"),
            ("../../a/b/..", "../../a"),
            ("a/..", "."),
        ] {
            assert_eq!(clean(path.as_bytes()), cleaned.as_bytes(), "{path}");
        }
    }

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let tree = tree(
            &[
                ("abs", "/d"),
                ("rel", "d/e"),
                ("up", "../../../d"),
                ("d/back", ".."),
                ("chain", "rel"),
                ("d/e/deep", "../x"),
                ("loop", "loop"),
                ("gone", "nowhere/at"),
            ],
            &["d", "d/e", "d/x"],
        );
        for (path, resolved) in [
            ("", "/"),
            ("../", "/"),
            ("../../d/e", "/d/e"),
            ("abs/e", "/d/e"),
            ("rel/", "/d/e"),
            ("up/e", "/d/e"),
            ("d/back/d", "/d"),
            ("chain/f", "/d/e/f"),
            ("d/e/deep/f", "/d/x/f"),
            // continuity joins the link's target to the unresolved path of the link first.
            ("chain/deep/f", "/x/f"),
            ("gone/f", "/nowhere/at/f"),
            ("no/such/dir", "/no/such/dir"),
        ] {
            assert_eq!(root_path(&tree, path.as_bytes()).unwrap().escape_ascii().to_string(), resolved, "{path}");
        }
        assert_eq!(root_path(&tree, b"loop/x"), Err(Problem::TooManyLinks));
    }
}
