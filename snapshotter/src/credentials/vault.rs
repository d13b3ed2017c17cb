//! What must not be lost by a restart: credentials that were told once, in the sealed file `ROOT/credentials`.
use super::{
    sealed::{Key, Sealed},
    written::Written,
};
use anyhow::Result;
use clipper_registry::{Credential, CredentialSource, Found, Subject};
use futures::{FutureExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const MAGIC: &[u8; 8] = b"CLPRCRD1";
/// Credentials that nobody has asked for or told again for so long are forgotten.
const MEMORY: Duration = Duration::from_secs(90 * 24 * 3600);
/// How exactly it is noted when they were last asked for, so that not every question is a write.
const GRAIN: Duration = Duration::from_secs(24 * 3600);
/// Repositories whose credentials are kept: the oldest go first.
const ENTRIES_MAX: usize = 4096;

/// Who told a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The labels of a snapshot.
    Label,
    /// A pull by way of the image proxy.
    Cri,
}

type Entries = BTreeMap<(Origin, String), Entry>;

/// Credentials by who told them and for which repository.
pub struct Vault {
    file: Sealed,
    entries: Mutex<Entries>,
    /// Held while the file is written.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    credential: Credential,
    /// When it was last told or asked for, in seconds since 1970.
    at: u64,
}

/// An entry as it is written down.
#[derive(Serialize, Deserialize)]
struct WrittenEntry {
    origin: Origin,
    repository: String,
    #[serde(flatten)]
    credential: Written,
    at: u64,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens the one below `root`.
    ///
    /// # Errors
    /// Its file can't be read. One that can't be decrypted is left behind, with a warning: whoever told it tells it again
    /// at the next pull.
    pub fn open(root: &Path, key: &Arc<Key>) -> Result<Self> {
        let file = Sealed::new(root.join("credentials"), MAGIC, Arc::clone(key));
        let entries = file.read(parse)?.unwrap_or_default();
        Ok(Self { file, entries: Mutex::new(entries), writing: tokio::sync::Mutex::default() })
    }

    /// Keeps a credential for a repository, in place of the one before, which is returned.
    pub async fn put(
        self: &Arc<Self>,
        origin: Origin,
        subject: &Subject,
        credential: Credential,
    ) -> Option<Credential> {
        let entry = Entry { credential, at: now() };
        let before = self.lock().insert((origin, name(subject)), entry.clone()).map(|before| before.credential);
        if before.as_ref() != Some(&entry.credential) {
            self.write().await;
        }
        before
    }

    /// Puts back what was there before [`put`](Self::put) of `credential`, unless it isn't there any more.
    pub async fn take_back(
        self: &Arc<Self>,
        origin: Origin,
        subject: &Subject,
        credential: &Credential,
        before: Option<Credential>,
    ) {
        let key = (origin, name(subject));
        {
            let mut entries = self.lock();
            if before.as_ref() == Some(credential) || entries.get(&key).is_none_or(|e| e.credential != *credential) {
                return;
            }
            match before {
                Some(credential) => drop(entries.insert(key, Entry { credential, at: now() })),
                None => drop(entries.remove(&key)),
            }
        }
        self.write().await;
    }

    /// What `origin` told.
    pub fn of(self: &Arc<Self>, origin: Origin) -> Kept {
        Kept { vault: Arc::clone(self), origin }
    }

    /// Writes the file; if that fails, a restart forgets what is new.
    async fn write(self: &Arc<Self>) {
        let _one_at_a_time = self.writing.lock().await;
        let this = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || {
            let content = content(&mut this.lock())?;
            this.file.write(content)
        });
        if let Ok(Err(error)) = written.await {
            tracing::warn!(error = format!("{error:#}"), "credentials aren't kept over a restart");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one origin told.
#[derive(Clone, Debug)]
pub struct Kept {
    vault: Arc<Vault>,
    origin: Origin,
}

impl CredentialSource for Kept {
    fn find<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Found> {
        async {
            let (credential, stale) = {
                let mut entries = self.vault.lock();
                let Some(entry) = entries.get_mut(&(self.origin, name(subject))) else { return Found::default() };
                let stale = now().saturating_sub(entry.at) > GRAIN.as_secs();
                entry.at = if stale { now() } else { entry.at };
                (entry.credential.clone(), stale)
            };
            if stale {
                self.vault.write().await;
            }
            Found { credentials: vec![credential], problem: None }
        }
        .boxed()
    }
}

/// `host/repository`.
fn name(subject: &Subject) -> String {
    format!("{}/{}", subject.host, subject.repository)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Forgets what is too old, and writes the rest down.
fn content(entries: &mut Entries) -> Result<Vec<u8>> {
    let oldest = now().saturating_sub(MEMORY.as_secs());
    entries.retain(|_, entry| entry.at >= oldest);
    while entries.len() > ENTRIES_MAX {
        let Some(key) = entries.iter().min_by_key(|(_, entry)| entry.at).map(|(key, _)| key.clone()) else { break };
        entries.remove(&key);
    }
    let write = |((origin, repository), entry): (&(Origin, String), &Entry)| WrittenEntry {
        origin: *origin,
        repository: repository.clone(),
        credential: (&entry.credential).into(),
        at: entry.at,
    };
    Ok(serde_json::to_vec(&entries.iter().map(write).collect::<Vec<_>>())?)
}

fn parse(content: &[u8]) -> Option<Entries> {
    let written: Vec<WrittenEntry> = serde_json::from_slice(content).ok()?;
    let entry = |written: WrittenEntry| {
        let credential = written.credential.credential()?;
        Some(((written.origin, written.repository), Entry { credential, at: written.at }))
    };
    Some(written.into_iter().filter_map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn open(dir: &Path) -> Arc<Vault> {
        Arc::new(Vault::open(dir, &Key::open(dir, None).unwrap()).unwrap())
    }

    fn subject(repository: &str) -> Subject {
        Subject::new("r.example", repository)
    }

    async fn find(vault: &Arc<Vault>, origin: Origin, repository: &str) -> Vec<Credential> {
        vault.of(origin).find(&subject(repository)).await.credentials
    }

    #[tokio::test]
    async fn what_was_told_outlives_a_restart_and_cannot_be_read_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let all = [
            Credential::Password { user: "me".into(), password: "hush-hush".into() },
            Credential::Identity("hush-hush".into()),
            Credential::Token("hush-hush".into()),
        ];
        let vault = open(dir.path());
        for (n, credential) in all.iter().enumerate() {
            vault.put(Origin::Cri, &subject(&n.to_string()), credential.clone()).await;
        }
        vault.put(Origin::Label, &subject("0"), all[1].clone()).await;
        drop(vault);
        for name in ["credentials", "credentials.key"] {
            let path = dir.path().join(name);
            let bytes = fs::read(&path).unwrap();
            for word in [&b"hush"[..], b"r.example"] {
                assert!(!bytes.windows(word.len()).any(|w| w == word), "{name}");
            }
        }
        let vault = open(dir.path());
        for (n, credential) in all.iter().enumerate() {
            assert_eq!(find(&vault, Origin::Cri, &n.to_string()).await, std::slice::from_ref(credential));
        }
        assert_eq!(find(&vault, Origin::Label, "0").await, [all[1].clone()]);
        assert_eq!(find(&vault, Origin::Label, "1").await, []);
    }

    #[tokio::test]
    async fn what_turned_out_wrong_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let vault = open(dir.path());
        let token = |text: &str| Credential::Token(text.into());
        let app = subject("app");
        assert_eq!(vault.put(Origin::Cri, &app, token("good")).await, None);
        let before = vault.put(Origin::Cri, &app, token("bad")).await;
        vault.take_back(Origin::Cri, &app, &token("bad"), before).await;
        assert_eq!(find(&vault, Origin::Cri, "app").await, [token("good")]);
        // Another pull was quicker.
        vault.put(Origin::Cri, &app, token("better")).await;
        vault.take_back(Origin::Cri, &app, &token("bad"), None).await;
        assert_eq!(find(&vault, Origin::Cri, "app").await, [token("better")]);
        vault.put(Origin::Cri, &subject("other"), token("bad")).await;
        vault.take_back(Origin::Cri, &subject("other"), &token("bad"), None).await;
        let vault = open(dir.path());
        assert_eq!(find(&vault, Origin::Cri, "other").await, []);
        assert_eq!(find(&vault, Origin::Cri, "app").await, [token("better")]);
    }

    #[tokio::test]
    async fn a_damaged_file_means_a_fresh_start() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        open(dir.path()).put(Origin::Cri, &subject("a"), Credential::Token("t".into())).await;
        let good = fs::read(&file).unwrap();
        fs::write(&file, &good[..30]).unwrap();
        assert_eq!(find(&open(dir.path()), Origin::Cri, "a").await, []);
        fs::write(&file, &good).unwrap();
        assert_eq!(find(&open(dir.path()), Origin::Cri, "a").await, [Credential::Token("t".into())]);
    }

    #[test]
    fn what_is_old_or_too_much_is_forgotten() {
        let entry = |at| Entry { credential: Credential::Token("t".into()), at };
        let mut entries: Entries =
            (0..ENTRIES_MAX as u64 + 5).map(|n| ((Origin::Cri, n.to_string()), entry(now() - n))).collect();
        entries.insert((Origin::Label, "old".into()), entry(now() - MEMORY.as_secs() - 60));
        let kept = parse(&content(&mut entries).unwrap()).unwrap();
        assert_eq!((kept.len(), &kept), (ENTRIES_MAX, &entries));
        assert!(kept.contains_key(&(Origin::Cri, "0".into())) && !kept.contains_key(&(Origin::Label, "old".into())));
    }
}
