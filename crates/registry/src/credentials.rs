//! Credentials from docker's config.json and its helpers.
use docker_credential::{CredentialRetrievalError, DockerCredential};
use std::{fs::File, io::BufReader, path::PathBuf, time::Duration};

/// How long a credential helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// What proves to a registry who is asking.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Password {
        user: String,
        password: String,
    },
    /// An OAuth2 refresh token.
    Identity(String),
}

/// Where credentials are looked up.
#[derive(Clone, Debug)]
pub(crate) struct Keychain {
    config: Option<PathBuf>,
}

impl Keychain {
    /// `config` is a docker config.json; `None` for the one of the user: `$DOCKER_CONFIG` or `~/.docker`.
    pub fn new(config: Option<PathBuf>) -> Self {
        let config = config.or_else(|| {
            let dir = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
            let dir = dir.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")));
            dir.map(|dir| dir.join("config.json"))
        });
        Self { config }
    }

    /// The credential for `host`; the error says why one that is configured can't be used.
    ///
    /// The file is read anew each time, so a `docker login` needs no restart.
    pub async fn lookup(&self, host: &str) -> Result<Option<Credential>, String> {
        let Some(path) = self.config.clone() else { return Ok(None) };
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

fn lookup_blocking(path: &std::path::Path, host: &str) -> Result<Option<Credential>, String> {
    // Docker Hub's credentials are kept, and asked of helpers, under the URL of its first API.
    let key = match host {
        "docker.io" | "registry-1.docker.io" | "index.docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
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
        Err(other) => Err(crate::error::printable(&other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lookup(json: &str, host: &str) -> Result<Option<Credential>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        Keychain::new(Some(path)).lookup(host).await
    }

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { user: user.into(), password: password.into() })
    }

    #[tokio::test]
    async fn docker_s_config_is_understood() {
        // "bWU6czplYw==" is me:s:ec.
        let json = r#"{"auths": {"localhost:5000": {"auth": "bWU6czplYw=="}, "r.example": {"auth": "", "identitytoken": "it"},
                       "https://index.docker.io/v1/": {"auth": "bWU6czplYw=="}, "empty": {}}}"#;
        assert!(lookup(json, "localhost:5000").await.unwrap() == password("me", "s:ec"));
        assert!(lookup(json, "docker.io").await.unwrap() == password("me", "s:ec"));
        assert!(lookup(json, "registry-1.docker.io").await.unwrap() == password("me", "s:ec"));
        assert!(lookup(json, "r.example").await.unwrap() == Some(Credential::Identity("it".into())));
        assert!(lookup(json, "localhost:5001").await.unwrap().is_none());
        assert!(lookup(json, "empty").await.unwrap().is_none());
        assert!(lookup("{}", "empty").await.unwrap().is_none());
        assert!(lookup("not json", "empty").await.is_err());
    }

    #[tokio::test]
    async fn no_config_means_no_credentials() {
        let missing = Keychain::new(Some("/nonexistent/config.json".into()));
        assert!(missing.lookup("r.example").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_helper_that_is_missing_is_an_error_with_the_file_s_name() {
        let json = r#"{"credHelpers": {"r.example": "clipper-no-such-helper"}}"#;
        let Err(problem) = lookup(json, "r.example").await else { panic!("no error") };
        assert!(problem.contains("config.json"), "{problem}");
    }
}
