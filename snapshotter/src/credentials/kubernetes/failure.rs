//! Why secrets can't be read just now, in words that show nothing of what was sent or received.
use kube::{
    client::AuthError,
    config::{InClusterError, KubeconfigError, LoadDataError},
};
use std::{error::Error, fmt, path::Path};

/// Characters of a server's words that are shown.
const WORDS_MAX: usize = 400;

/// Why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The version that was asked for is no longer known: all is to be listed again.
    Expired,
    /// There is no way to ask: the kubeconfig or the service account isn't there or makes no sense.
    Setup(String),
    /// Nobody answers.
    Unreachable(String),
    /// Somebody who should answer doesn't.
    Silent,
    /// The server refuses, with an HTTP status.
    Refused(u16, String),
    /// The answer makes no sense.
    Garbled,
}

impl Failure {
    /// An answer that isn't what was asked for.
    pub fn told(status: u16, message: &str) -> Self {
        if status == 410 { Self::Expired } else { Self::Refused(status, printable(message)) }
    }

    /// A request that can't be made.
    pub fn asking(error: kube::core::request::Error) -> Self {
        Self::Setup(error.to_string())
    }

    /// Of the service account that a pod has.
    pub fn of_service_account(error: InClusterError) -> Self {
        let why = printable(&chain(&error));
        Self::Setup(format!("no kubeconfig is configured, and this isn't a pod with a service account: {why}"))
    }

    /// Of a kubeconfig.
    pub fn of_kubeconfig(path: &Path, error: KubeconfigError) -> Self {
        use KubeconfigError::{LoadCertificateAuthority, LoadClientCertificate, LoadClientKey, Parse, ReadConfig};
        let why = match &error {
            ReadConfig(error, _) => error.to_string(),
            // Its words quote the file.
            Parse(_) => "it isn't a kubeconfig".into(),
            LoadCertificateAuthority(LoadDataError::DecodeBase64(_))
            | LoadClientCertificate(LoadDataError::DecodeBase64(_))
            | LoadClientKey(LoadDataError::DecodeBase64(_)) => "some data in it isn't Base64".into(),
            other => other.to_string(),
        };
        Self::Setup(format!("the kubeconfig {}: {}", path.display(), printable(&why)))
    }

    /// Whether both are the same trouble, in whichever words.
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Refused(one, _), Self::Refused(other, _)) => one == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) => Self::told(status.code, &status.message),
            kube::Error::Auth(error) => Self::Setup(login(error)),
            kube::Error::Service(error) => match error.downcast_ref::<AuthError>() {
                Some(error) => Self::Setup(login(error)),
                None => Self::Unreachable(printable(&chain(&**error))),
            },
            kube::Error::HyperError(error) => Self::Unreachable(printable(&chain(error))),
            kube::Error::RustlsTls(error) => Self::Setup(printable(&chain(error))),
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => Self::Garbled,
            other => Self::Setup(printable(&chain(other))),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("the API server no longer knows what was listed"),
            Self::Setup(why) => f.write_str(why),
            Self::Unreachable(why) => write!(f, "the API server can't be reached: {why}"),
            Self::Silent => f.write_str("the API server doesn't answer"),
            Self::Refused(status, message) => write!(f, "the API server answers {status}: {message}"),
            Self::Garbled => f.write_str("the API server's answer makes no sense"),
        }
    }
}

/// Why there's no token. What a program that gives them out has printed isn't shown.
fn login(error: &AuthError) -> String {
    match error {
        AuthError::ReadTokenFile(error, path) => format!("read the token {}: {error}", path.display()),
        AuthError::AuthExecStart(error) => format!("the program that gives out tokens can't be run: {error}"),
        AuthError::AuthExecRun { cmd, out } => {
            let program = cmd.split_whitespace().next().unwrap_or_default();
            format!("{} gave no token: {}", printable(program.trim_matches('"')), out.status)
        }
        AuthError::MissingCommand => "the kubeconfig names no program that gives out tokens".into(),
        _ => "there is no token for the API server".into(),
    }
}

/// An error's words and those of what is behind it.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let word = error.to_string();
        if !words.ends_with(&word) {
            words = format!("{words}: {word}");
        }
        next = error.source();
    }
    words
}

/// On one line, without control characters, of a bounded length.
fn printable(text: &str) -> String {
    text.trim().chars().take(WORDS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::config::Kubeconfig;

    #[test]
    fn what_was_told_isn_t_shown() {
        let text = "apiVersion: v1\nkind: Config\nusers:\n- name: me\n  user:\n    token: [hush-hush\n";
        let error = Kubeconfig::from_yaml(text).unwrap_err();
        let failure = Failure::of_kubeconfig(Path::new("/etc/kube"), error);
        assert_eq!(failure.to_string(), "the kubeconfig /etc/kube: it isn't a kubeconfig");
        let printed = std::process::Command::new("sh").args(["-c", "echo hush-hush; exit 3"]).output().unwrap();
        let auth = AuthError::AuthExecRun { cmd: "\"aws\" \"get-token\"".into(), out: Box::new(printed) };
        let failure = Failure::from(kube::Error::Service(Box::new(auth))).to_string();
        assert_eq!(failure, "aws gave no token: exit status: 3");
        let garbled = serde_json::from_str::<u8>("\"hush-hush\"").unwrap_err();
        assert_eq!(Failure::from(kube::Error::SerdeError(garbled)), Failure::Garbled);
    }

    #[test]
    fn the_same_trouble_in_other_words_is_the_same() {
        let refused = |status| Failure::told(status, "words");
        assert!(refused(403).is_like(&Failure::told(403, "other words")) && !refused(403).is_like(&refused(401)));
        assert!(Failure::Unreachable("a".into()).is_like(&Failure::Unreachable("b".into())));
        assert!(!Failure::Silent.is_like(&Failure::Garbled));
        assert_eq!(refused(410), Failure::Expired);
        assert_eq!(Failure::told(500, "two\nlines\x1b[31m").to_string(), "the API server answers 500: two lines [31m");
        assert_eq!(Failure::told(500, &"x".repeat(5000)).to_string().matches('x').count(), WORDS_MAX);
    }
}
