//! The secrets that are known: what each watch has brought, and which of them fit an image.
use super::{
    super::{pattern::Pattern, written::Written},
    pull_secret::PullSecret,
};
use clipper_registry::{Credential, Subject};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Bytes of secrets that are held: whoever may create secrets in the cluster mustn't have the node's memory with them.
const BYTES_MAX: usize = 16 << 20;

/// What one watch is about: the secrets with a label, in a namespace or in all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scope {
    pub namespace: Option<String>,
    /// A label selector.
    pub label: String,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} in {namespace}", self.label),
            None => write!(f, "{} in all namespaces", self.label),
        }
    }
}

/// Secrets by `namespace/name`.
pub type Held = BTreeMap<String, PullSecret>;

/// All of them.
#[derive(Debug, Default)]
pub struct Secrets {
    all: Mutex<All>,
    /// Told when there is something else to be kept over a restart.
    changed: Notify,
}

#[derive(Debug, Default)]
struct All {
    /// By what has brought them: a secret that carries two labels is in two scopes, and leaves each by itself.
    scopes: BTreeMap<Scope, Held>,
    /// What they take of [`BYTES_MAX`].
    bytes: usize,
}

impl All {
    /// Takes a secret out.
    fn remove(&mut self, scope: &Scope, name: &str) -> Option<PullSecret> {
        let secret = self.scopes.get_mut(scope)?.remove(name)?;
        self.bytes -= secret.size();
        Some(secret)
    }

    /// Puts a secret in if there is room for it.
    fn insert(&mut self, scope: &Scope, name: String, secret: PullSecret) -> bool {
        let bytes = self.bytes + secret.size();
        let fits = bytes <= BYTES_MAX;
        if fits {
            self.bytes = bytes;
            self.scopes.entry(scope.clone()).or_default().insert(name, secret);
        }
        fits
    }
}

impl Secrets {
    /// Puts what a list brought in place of all that was known in its scope.
    pub fn replace(&self, scope: &Scope, new: Held) {
        let mut all = self.lock();
        let old = all.scopes.remove(scope).unwrap_or_default();
        all.bytes -= old.values().map(PullSecret::size).sum::<usize>();
        let mut left_out = 0;
        for (name, secret) in new {
            tell(&name, &secret, old.get(&name));
            left_out += usize::from(!all.insert(scope, name, secret));
        }
        let changed = all.scopes.get(scope).unwrap_or(&Held::new()) != &old;
        drop(all);
        too_much(left_out);
        if changed {
            self.changed.notify_one();
        }
    }

    /// Takes up a secret that is new or has changed.
    pub fn set(&self, scope: &Scope, name: String, secret: PullSecret) {
        let mut all = self.lock();
        let old = all.remove(scope, &name);
        tell(&name, &secret, old.as_ref());
        let changed = old.as_ref() != Some(&secret);
        let left_out = usize::from(!all.insert(scope, name, secret));
        drop(all);
        too_much(left_out);
        if changed {
            self.changed.notify_one();
        }
    }

    /// Forgets a secret: it was deleted, or has lost its label.
    pub fn forget(&self, scope: &Scope, name: &str) {
        if self.lock().remove(scope, name).is_some() {
            self.changed.notify_one();
        }
    }

    /// The credentials for an image: those with longer paths first, then those of hosts without wildcards; what is alike in
    /// that in the order of the secrets' namespaces and names.
    pub fn find(&self, subject: &Subject) -> Vec<Credential> {
        let all = self.lock();
        let mut fitting: Vec<(&Pattern, &str, &Credential)> = all
            .scopes
            .values()
            .flatten()
            .flat_map(|(name, secret)| {
                secret.logins.iter().map(move |(pattern, login)| (pattern, name.as_str(), login))
            })
            .filter(|(pattern, ..)| pattern.matches(subject))
            .collect();
        fitting.sort_by(|(one, name, _), (other, other_name, _)| {
            (Reverse(one.exactness()), name, one).cmp(&(Reverse(other.exactness()), other_name, other))
        });
        let mut found: Vec<Credential> = Vec::new();
        for (.., credential) in fitting {
            if !found.contains(credential) {
                found.push(credential.clone());
            }
        }
        found
    }

    /// Returns once something has changed since the last time.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// All of them, to be sealed.
    pub fn content(&self) -> Vec<u8> {
        let all = self.lock();
        let login = |(pattern, credential): &(Pattern, Credential)| WrittenLogin {
            images: pattern.to_string(),
            credential: credential.into(),
        };
        let secret = |(name, secret): (&String, &PullSecret)| WrittenSecret {
            name: name.clone(),
            logins: secret.logins.iter().map(login).collect(),
        };
        let scope = |(scope, held): (&Scope, &Held)| WrittenScope {
            scope: scope.clone(),
            secrets: held.iter().map(secret).collect(),
        };
        let written: Vec<WrittenScope> = all.scopes.iter().map(scope).collect();
        // Maps of text to text always are JSON.
        serde_json::to_vec(&written).unwrap_or_default()
    }

    /// What [`content`](Self::content) wrote, as far as it is still asked for.
    pub fn parse(content: &[u8], wanted: &[Scope]) -> Option<Self> {
        let written: Vec<WrittenScope> = serde_json::from_slice(content).ok()?;
        let login = |login: WrittenLogin| Some((Pattern::parse(&login.images)?, login.credential.credential()?));
        let secret = |secret: WrittenSecret| {
            let logins = secret.logins.into_iter().filter_map(login).collect();
            (secret.name, PullSecret { logins, problem: None })
        };
        let wanted = written.into_iter().filter(|written| wanted.contains(&written.scope));
        let mut all = All::default();
        for WrittenScope { scope, secrets } in wanted {
            for (name, secret) in secrets.into_iter().map(secret) {
                all.insert(&scope, name, secret);
            }
        }
        Some(Self { all: Mutex::new(all), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names a secret that can't be used, once.
fn tell(name: &str, secret: &PullSecret, before: Option<&PullSecret>) {
    if let Some(problem) = secret.problem.as_ref().filter(|_| before.is_none_or(|old| old.problem != secret.problem)) {
        tracing::warn!(secret = %name, %problem, "a Kubernetes secret can't be used");
    }
}

fn too_much(left_out: usize) {
    if left_out > 0 {
        tracing::warn!(left_out, limit = BYTES_MAX, "there are too many Kubernetes secrets: not all of them are used");
    }
}

#[derive(Serialize, Deserialize)]
struct WrittenScope {
    #[serde(flatten)]
    scope: Scope,
    secrets: Vec<WrittenSecret>,
}

#[derive(Serialize, Deserialize)]
struct WrittenSecret {
    /// `namespace/name`.
    name: String,
    logins: Vec<WrittenLogin>,
}

#[derive(Serialize, Deserialize)]
struct WrittenLogin {
    /// A pattern.
    images: String,
    #[serde(flatten)]
    credential: Written,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(label: &str) -> Scope {
        Scope { namespace: None, label: label.into() }
    }

    fn login(images: &str, token: &str) -> (Pattern, Credential) {
        (Pattern::parse(images).unwrap(), Credential::Token(token.into()))
    }

    fn secret(logins: &[(&str, &str)]) -> PullSecret {
        PullSecret { logins: logins.iter().map(|(images, token)| login(images, token)).collect(), problem: None }
    }

    fn tokens(secrets: &Secrets, host: &str, repository: &str) -> Vec<String> {
        let token = |credential| match credential {
            Credential::Token(token) => token,
            other => panic!("{other:?}"),
        };
        secrets.find(&Subject::new(host, repository)).into_iter().map(token).collect()
    }

    #[test]
    fn the_more_exact_comes_first_and_what_is_alike_in_the_order_of_names() {
        let secrets = Secrets::default();
        secrets.set(&scope("b"), "ns/b".into(), secret(&[("r.example", "b"), ("*.example", "wild")]));
        secrets.set(&scope("a"), "ns/c".into(), secret(&[("r.example", "c"), ("r.example:5000", "port")]));
        secrets.set(&scope("a"), "ns/d".into(), secret(&[("r.example/team/app", "app"), ("r.example/team", "team")]));
        secrets.set(&scope("a"), "an/x".into(), secret(&[("https://r.example/v2/", "first"), ("*.example/t", "t")]));
        assert_eq!(tokens(&secrets, "r.example", "team/app"), ["app", "team", "t", "first", "b", "c", "wild"]);
        assert_eq!(tokens(&secrets, "r.example", "other"), ["first", "b", "c", "wild"]);
        assert_eq!(tokens(&secrets, "s.example", "team/app"), ["t", "wild"]);
        assert_eq!(tokens(&secrets, "r.example:5000", "team/app"), ["port"]);
        assert_eq!(tokens(&secrets, "example", "team/app"), [""; 0]);
    }

    #[test]
    fn a_secret_in_two_scopes_leaves_each_by_itself() {
        let secrets = Secrets::default();
        for label in ["a", "b"] {
            secrets.set(&scope(label), "ns/x".into(), secret(&[("r.example", "x")]));
        }
        assert_eq!(tokens(&secrets, "r.example", "app"), ["x"]);
        secrets.forget(&scope("a"), "ns/x");
        assert_eq!(tokens(&secrets, "r.example", "app"), ["x"]);
        secrets.replace(&scope("b"), Held::from([("ns/y".into(), secret(&[("r.example", "y")]))]));
        assert_eq!(tokens(&secrets, "r.example", "app"), ["y"]);
    }

    #[test]
    fn what_is_kept_is_what_is_asked_for() {
        let secrets = Secrets::default();
        secrets.set(&scope("a"), "ns/x".into(), secret(&[("*.example/team", "x")]));
        secrets.set(&scope("b"), "ns/y".into(), secret(&[("r.example:5000", "y")]));
        let kept = Secrets::parse(&secrets.content(), &[scope("a"), scope("c")]).unwrap();
        assert_eq!(tokens(&kept, "r.example", "team/app"), ["x"]);
        assert_eq!(tokens(&kept, "r.example:5000", "team/app"), [""; 0]);
        assert!(Secrets::parse(b"nonsense", &[]).is_none());
    }

    #[tokio::test]
    async fn only_changes_are_written_down() {
        let waits =
            async |secrets: &Secrets| tokio::time::timeout(std::time::Duration::ZERO, secrets.changed()).await.is_err();
        let (secrets, one) = (Secrets::default(), secret(&[("r.example", "x")]));
        secrets.set(&scope("a"), "ns/x".into(), one.clone());
        assert!(!waits(&secrets).await);
        secrets.set(&scope("a"), "ns/x".into(), one.clone());
        secrets.replace(&scope("a"), Held::from([("ns/x".into(), one)]));
        secrets.forget(&scope("a"), "ns/other");
        assert!(waits(&secrets).await);
        secrets.replace(&scope("a"), Held::new());
        assert!(!waits(&secrets).await);
    }

    #[test]
    fn there_is_an_end_to_what_is_held() {
        let large = |name: u32| {
            let token = "x".repeat(1 << 20);
            (format!("ns/{name:02}"), secret(&[("r.example", token.as_str()), (&format!("r.example/{name:02}"), "ok")]))
        };
        let secrets = Secrets::default();
        secrets.replace(&scope("a"), (0..20).map(large).collect());
        assert_eq!(tokens(&secrets, "r.example", "14/x")[0], "ok");
        assert_ne!(tokens(&secrets, "r.example", "16/x")[0], "ok");
        let (name, last) = large(30);
        secrets.set(&scope("b"), name, last);
        assert_ne!(tokens(&secrets, "r.example", "30/x")[0], "ok");
        secrets.replace(&scope("a"), Held::new());
        let (name, last) = large(30);
        secrets.set(&scope("b"), name, last);
        assert_eq!(tokens(&secrets, "r.example", "30/x")[0], "ok");
    }
}
