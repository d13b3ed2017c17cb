//! Files that only this node can read: how credentials that are kept over a restart lie on the disk.
//!
//! ```text
//! what the file is (8 bytes), nonce (12 bytes), ChaCha20-Poly1305 of the content
//! ROOT/credentials.key    the key (32 bytes), unless it is elsewhere
//! ```
use anyhow::{Context, Result, bail};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use std::{
    fmt,
    fs::{self, File},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

pub const KEY_LEN: usize = 32;

/// What seals files.
pub struct Key(LessSafeKey);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// The key in `file`; without it the one below `root`, made if there is none.
    ///
    /// # Errors
    /// It can't be read or made, or hasn't the right length.
    pub fn open(root: &Path, file: Option<&Path>) -> Result<Arc<Self>> {
        let own = root.join("credentials.key");
        let key = match file {
            Some(path) => fs::read(path).with_context(|| format!("read the key {}", path.display()))?,
            None => own_key(&own).with_context(|| format!("the key {}", own.display()))?,
        };
        if key.len() != KEY_LEN {
            let path = file.unwrap_or(&own);
            bail!("the key {} must have {KEY_LEN} bytes, not {}", path.display(), key.len());
        }
        let Ok(key) = UnboundKey::new(&CHACHA20_POLY1305, &key) else { bail!("the key can't be used") };
        Ok(Arc::new(Self(LessSafeKey::new(key))))
    }
}

/// One such file. What it is stands before its content, and is sealed with it: none can take another's place.
#[derive(Clone, Debug)]
pub struct Sealed {
    path: PathBuf,
    magic: &'static [u8; 8],
    key: Arc<Key>,
}

impl Sealed {
    /// The file at `path`, whether it is there or not.
    pub fn new(path: PathBuf, magic: &'static [u8; 8], key: Arc<Key>) -> Self {
        Self { path, magic, key }
    }

    /// Its content as `understood` takes it; `None` if there is no file. What can't be decrypted or understood is left
    /// behind, with a warning: it was written with another key, and will be told again.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn read<T>(&self, understood: impl FnOnce(&[u8]) -> Option<T>) -> Result<Option<T>> {
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("read {}", self.path.display()))?,
        };
        let content = self.open(&bytes).and_then(|content| understood(&content).ok_or("it makes no sense"));
        if let Err(problem) = &content {
            tracing::warn!(file = %self.path.display(), problem, "credentials that were kept can't be read");
        }
        Ok(content.ok())
    }

    /// Puts `content` in place of what it held, durably.
    ///
    /// # Errors
    /// The file can't be written; then it is as it was.
    pub fn write(&self, content: Vec<u8>) -> Result<()> {
        let bytes = self.seal(content)?;
        put_in_place(&self.path, &bytes).with_context(|| format!("write {}", self.path.display()))
    }

    fn seal(&self, mut content: Vec<u8>) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        let filled = SystemRandom::new().fill(&mut nonce);
        let unique = Nonce::assume_unique_for_key(nonce);
        let sealed = self.key.0.seal_in_place_append_tag(unique, Aad::from(self.magic), &mut content);
        if filled.is_err() || sealed.is_err() {
            bail!("encryption failed");
        }
        Ok([&self.magic[..], &nonce, &content].concat())
    }

    fn open(&self, bytes: &[u8]) -> Result<Vec<u8>, &'static str> {
        let rest = bytes.strip_prefix(self.magic).ok_or("it is none of this daemon's files")?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or("it is cut off")?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.key.0.open_in_place(nonce, Aad::from(self.magic), &mut sealed);
        let length = opened.map_err(|_| "it is damaged, or the key is another one")?.len();
        sealed.truncate(length);
        Ok(sealed)
    }
}

/// Reads the key, or makes one.
fn own_key(path: &Path) -> Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let mut key = vec![0; KEY_LEN];
            if SystemRandom::new().fill(&mut key).is_err() {
                bail!("the system has no random numbers");
            }
            put_in_place(path, &key)?;
            Ok(key)
        }
        read => Ok(read?),
    }
}

/// Puts a file in place of another, durably, for the daemon's user alone.
fn put_in_place(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn sealed(dir: &Path, key: &Arc<Key>) -> Sealed {
        Sealed::new(dir.join("file"), b"TESTFILE", Arc::clone(key))
    }

    fn content(file: &Sealed) -> Option<Vec<u8>> {
        file.read(|content| Some(content.to_vec())).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again_and_by_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = sealed(dir.path(), &Key::open(dir.path(), None).unwrap());
        assert_eq!(content(&file), None);
        file.write(b"hush-hush".to_vec()).unwrap();
        let again = sealed(dir.path(), &Key::open(dir.path(), None).unwrap());
        assert_eq!(content(&again).unwrap(), b"hush-hush");
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
            assert!(!fs::read(entry.path()).unwrap().windows(4).any(|part| part == b"hush"), "{entry:?}");
        }
        assert_eq!(file.read(|_| None::<()>).unwrap(), None, "what isn't understood is left behind");
    }

    #[test]
    fn a_damaged_file_another_key_and_another_file_are_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, [7; KEY_LEN]).unwrap();
        let key = Key::open(dir.path(), Some(&elsewhere)).unwrap();
        let file = sealed(dir.path(), &key);
        file.write(b"content".to_vec()).unwrap();
        assert!(!dir.path().join("credentials.key").exists());
        let good = fs::read(&file.path).unwrap();
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for bad in [&flipped[..], &good[..10], &good[..30], b"", b"something else"] {
            fs::write(&file.path, bad).unwrap();
            assert_eq!(content(&file), None);
        }
        let other_name = [b"OTHERONE", &good[8..]].concat();
        fs::write(&file.path, other_name).unwrap();
        let other = Sealed::new(file.path.clone(), b"OTHERONE", key);
        assert_eq!(content(&other), None, "one file put in place of another");
        fs::write(&file.path, &good).unwrap();
        assert_eq!(content(&sealed(dir.path(), &Key::open(dir.path(), None).unwrap())), None);
        fs::write(&elsewhere, "short").unwrap();
        let error = Key::open(dir.path(), Some(&elsewhere)).unwrap_err().to_string();
        assert!(error.contains("elsewhere") && error.contains("32 bytes"), "{error}");
    }
}
