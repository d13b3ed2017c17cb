//! Credentials: what proves to a registry who is asking, and where it comes from. Docker's config.json and its helpers are
//! one such place.
use docker_credential::{CredentialRetrievalError, DockerCredential};
use futures::{FutureExt, future::BoxFuture};
use std::{fmt, fs::File, io::BufReader, path::PathBuf, time::Duration};

/// How long a credential helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// What proves to a registry who is asking. `Debug` doesn't show it.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A name and a password.
    Password {
        /// Who is asking.
        user: String,
        /// The password, or what a cloud gives out in its place.
        password: String,
    },
    /// An OAuth2 refresh token, for the registry's token server.
    Identity(String),
    /// A bearer token for the registry itself.
    Token(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(…)",
            Self::Identity(_) => "Identity(…)",
            Self::Token(_) => "Token(…)",
        })
    }
}

/// What is to be read: a repository of the server that asks for credentials, which may be a mirror.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The server as images name it, `host` or `host:port`; `docker.io` for Docker Hub.
    pub host: String,
    /// The repository, such as `library/busybox`.
    pub repository: String,
}

/// The credentials that fit a subject.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// They are tried in this order until the registry takes one.
    pub credentials: Vec<Credential>,
    /// Why some that are configured can't be used.
    pub problem: Option<String>,
}

/// Where credentials come from.
pub trait CredentialSource: fmt::Debug + Send + Sync {
    /// The credentials for a subject. Asked for each token and after each refusal, so it's for the source to keep what
    /// is expensive to get.
    fn find<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Found>;
}

impl Subject {
    /// A repository of a server that is called `host`.
    pub fn new(host: &str, repository: &str) -> Self {
        let host = match host {
            "registry-1.docker.io" | "index.docker.io" => "docker.io",
            other => other,
        };
        Self { host: host.into(), repository: repository.into() }
    }
}

/// Docker's config.json. It is read anew each time, so that a `docker login` needs no restart.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    path: Option<PathBuf>,
}

impl DockerConfig {
    /// The file at `path`; `None` for the one of the user: `$DOCKER_CONFIG` or `~/.docker`.
    pub fn new(path: Option<PathBuf>) -> Self {
        let path = path.or_else(|| {
            let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
            let dir = dir.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")));
            dir.map(|dir| dir.join("config.json"))
        });
        Self { path }
    }

    async fn lookup(&self, host: &str) -> Result<Option<Credential>, String> {
        let Some(path) = self.path.clone() else { return Ok(None) };
        let host = host.to_owned();
        let at = path.display().to_string();
        let task = tokio::task::spawn_blocking(move || lookup_blocking(&path, &host));
        match tokio::time::timeout(HELPER_TIMEOUT, task).await {
            Ok(Ok(found)) => found.map_err(|problem| format!("{at}: {problem}")),
            Ok(Err(_)) => Err(format!("{at}: the lookup was cancelled")),
            Err(_) => Err(format!("{at}: the credential helper took longer than {} s", HELPER_TIMEOUT.as_secs())),
        }
    }
}

impl CredentialSource for DockerConfig {
    fn find<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Found> {
        async {
            match self.lookup(&subject.host).await {
                Ok(found) => Found { credentials: found.into_iter().collect(), problem: None },
                Err(problem) => Found { credentials: Vec::new(), problem: Some(problem) },
            }
        }
        .boxed()
    }
}

fn lookup_blocking(path: &std::path::Path, host: &str) -> Result<Option<Credential>, String> {
    // Docker Hub's credentials are kept, and asked of helpers, under the URL of its first API.
    let key = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    match docker_credential::get_credential_from_reader(BufReader::new(file), key) {
        // An entry without anything in it is what `docker logout` and some helpers leave.
        Ok(DockerCredential::UsernamePassword(user, password)) if user.is_empty() && password.is_empty() => Ok(None),
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Some(Credential::Password { user, password })),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credential::Identity(token))),
        Err(CredentialRetrievalError::NoCredentialConfigured | CredentialRetrievalError::ConfigNotFound) => Ok(None),
        // The words that every helper uses (docker-credential-helpers, credentials/error.go).
        Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
            if stdout.contains("credentials not found") || stderr.contains("credentials not found") =>
        {
            Ok(None)
        }
        // Whatever else a helper put out may be a secret.
        Err(CredentialRetrievalError::HelperFailure { helper, stderr, .. }) => {
            Err(format!("the credential helper {helper} failed: {}", crate::error::printable(stderr.trim())))
        }
        Err(other) => Err(crate::error::printable(&other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn find(json: &str, host: &str) -> Found {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        DockerConfig::new(Some(path)).find(&Subject::new(host, "app")).await
    }

    fn found(credential: Credential) -> Found {
        Found { credentials: vec![credential], problem: None }
    }

    #[tokio::test]
    async fn docker_s_config_is_understood() {
        // "bWU6czplYw==" is me:s:ec.
        let json = r#"{"auths": {"localhost:5000": {"auth": "bWU6czplYw=="}, "r.example": {"auth": "", "identitytoken": "it"},
                       "https://index.docker.io/v1/": {"auth": "bWU6czplYw=="}, "empty": {}}}"#;
        let password = found(Credential::Password { user: "me".into(), password: "s:ec".into() });
        for host in ["localhost:5000", "docker.io", "registry-1.docker.io"] {
            assert_eq!(find(json, host).await, password, "{host}");
        }
        assert_eq!(find(json, "r.example").await, found(Credential::Identity("it".into())));
        for (json, host) in [(json, "localhost:5001"), (json, "empty"), ("{}", "empty")] {
            assert_eq!(find(json, host).await, Found::default(), "{host}");
        }
        assert!(find("not json", "empty").await.problem.is_some());
    }

    #[tokio::test]
    async fn no_config_means_no_credentials() {
        let missing = DockerConfig::new(Some("/nonexistent/config.json".into()));
        assert_eq!(missing.find(&Subject::new("r.example", "app")).await, Found::default());
    }

    #[tokio::test]
    async fn a_helper_that_is_missing_is_an_error_with_the_file_s_name() {
        let json = r#"{"credHelpers": {"r.example": "clipper-no-such-helper"}}"#;
        let problem = find(json, "r.example").await.problem.unwrap();
        assert!(problem.contains("config.json"), "{problem}");
    }

    #[test]
    fn credentials_are_not_shown() {
        let password = Credential::Password { user: "me".into(), password: "hush".into() };
        for credential in [password, Credential::Identity("hush".into()), Credential::Token("hush".into())] {
            assert!(!format!("{credential:?}").contains("hush"));
        }
    }
}
