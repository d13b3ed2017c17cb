//! What the supervisor holds open for the next daemon, without knowing what it is.
use super::{
    link::{Link, Waiting},
    protocol::{History, Message},
};
use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

/// Descriptors by name.
#[derive(Debug, Default)]
pub struct Held {
    kept: BTreeMap<String, Vec<OwnedFd>>,
}

impl Held {
    /// Holds `descriptors` under `name`, in the place of what was.
    pub fn keep(&mut self, name: String, descriptors: Vec<OwnedFd>) {
        self.kept.insert(name, descriptors);
    }

    /// Takes what is held under `name`.
    pub fn take(&mut self, name: &str) -> Option<Vec<OwnedFd>> {
        self.kept.remove(name)
    }

    /// Takes what is held under names that begin so.
    pub fn take_all(&mut self, beginning: &str) -> Vec<OwnedFd> {
        let names: Vec<_> = self.kept.keys().filter(|name| name.starts_with(beginning)).cloned().collect();
        names.iter().filter_map(|name| self.kept.remove(name)).flatten().collect()
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Hands all of it over, and what happened so far. Without `waiting` for somebody who reads, the socket must have room.
    pub fn hand_over(&self, link: &Link, history: History, waiting: Waiting) -> io::Result<()> {
        for (name, kept) in &self.kept {
            let descriptors: Vec<BorrowedFd<'_>> = kept.iter().map(AsFd::as_fd).collect();
            link.send(&Message::Keep(name.clone()), &descriptors, waiting)?;
        }
        link.send(&Message::Begin(history), &[], waiting)
    }

    /// What another one has handed over.
    pub fn receive(link: &Link) -> io::Result<(Self, History)> {
        let mut held = Self::default();
        loop {
            match link.receive(Waiting::Long)? {
                Some((Message::Keep(name), descriptors)) => held.keep(name, descriptors),
                Some((Message::Begin(history), _)) => return Ok((held, history)),
                Some((message, _)) => return Err(io::Error::other(format!("{message:?} comes too early"))),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Those that the kernel's FUSE asks through.
    pub fn connections(&self) -> impl Iterator<Item = &OwnedFd> {
        let is_fuse = |descriptor: &&OwnedFd| {
            let target = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
            target.is_ok_and(|target| target == Path::new("/dev/fuse"))
        };
        self.kept.values().flatten().filter(is_fuse)
    }

    /// All of it, by name.
    pub fn into_kept(self) -> impl Iterator<Item = (String, Vec<OwnedFd>)> {
        self.kept.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn what_is_held_is_handed_over_by_name_and_what_is_taken_is_not() {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let mut held = Held::default();
        held.keep("a".into(), vec![null()]);
        held.keep("b".into(), vec![null(), null()]);
        held.keep("b".into(), Vec::new());
        held.keep("waiting-1".into(), vec![null()]);
        held.keep("waiting-2".into(), vec![null()]);
        assert_eq!(held.take("a").unwrap().len(), 1);
        assert!(held.take("a").is_none());
        assert_eq!(held.take_all("waiting-").len(), 2);
        held.keep("c".into(), vec![null()]);
        assert_eq!(held.connections().count(), 0);
        let (sender, receiver) = Link::pair().unwrap();
        let history = History { takeovers: 1, upgrades: 2, last: 3 };
        held.hand_over(&sender, history, Waiting::Never).unwrap();
        drop(sender);
        let (received, told) = Held::receive(&receiver.into()).unwrap();
        assert_eq!(told, history);
        let all: Vec<_> = received.into_kept().map(|(name, kept)| (name, kept.len())).collect();
        assert_eq!(all, [("b".to_owned(), 0), ("c".to_owned(), 1)]);
    }
}
