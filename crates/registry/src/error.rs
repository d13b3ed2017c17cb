//! What can go wrong with a registry or a layout, and what to do about it.
use clipper_format::digest::Digest;
use std::{error::Error as _, fmt, path::Path, time::Duration};

/// An error of a registry or an OCI layout: what was being done, where, what went wrong, and what may help.
#[derive(Clone, Debug)]
pub struct RegistryError(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    /// For example `reading blob sha256:… of registry.example/app`.
    action: String,
    kind: ErrorKind,
    /// What the mirrors that were tried before said.
    mirrors: Vec<String>,
}

/// What went wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// 404: no such repository, manifest or blob; or no such file in a layout.
    #[error("not found{}: check the name and the tag or digest", said(.message))]
    NotFound {
        /// The registry's own words.
        message: String,
    },
    /// 401 or 403, after the credentials at hand have been tried.
    #[error("{host} refused access (HTTP {status}){}: {hint}", said(.message))]
    Denied {
        /// The server that refused; not the registry, if that redirected to a storage server.
        host: String,
        /// HTTP status.
        status: u16,
        /// The registry's own words.
        message: String,
        /// What to do.
        hint: String,
    },
    /// 429, or 503 with Retry-After, when waiting longer is useless.
    #[error("{host} limits the rate of requests (HTTP {status}){}{}", said(.message), wait(.retry_after))]
    Limited {
        /// The server.
        host: String,
        /// HTTP status.
        status: u16,
        /// The registry's own words.
        message: String,
        /// How long the server asked to wait.
        retry_after: Option<Duration>,
    },
    /// Any other HTTP status that isn't a success.
    #[error("{host} answered HTTP {status}{}", said(.message))]
    Status {
        /// The server.
        host: String,
        /// HTTP status.
        status: u16,
        /// The registry's own words.
        message: String,
    },
    /// No connection: DNS, TCP, or the proxy.
    #[error("can't connect to {host}: {problem}")]
    Connect {
        /// The server.
        host: String,
        /// The error of the system.
        problem: String,
    },
    /// The server was spoken to in TLS and answered in something else.
    #[error(
        "{host} doesn't speak TLS: if it's a plain HTTP registry, pass --plain-http or name it http:// in hosts.toml"
    )]
    PlainServer {
        /// The server.
        host: String,
    },
    /// The server was spoken to in plain HTTP and wants TLS.
    #[error("{host} wants HTTPS: leave out --plain-http, or name it https:// in hosts.toml")]
    TlsServer {
        /// The server.
        host: String,
    },
    /// The TLS handshake failed, for example because the certificate isn't trusted.
    #[error("TLS with {host} failed: {problem}; a private CA goes into hosts.toml as `ca`")]
    Tls {
        /// The server.
        host: String,
        /// The error of the TLS library.
        problem: String,
    },
    /// Not one byte within the stall timeout.
    #[error("{host} sent nothing for {} s", .after.as_secs_f32())]
    Stalled {
        /// The server.
        host: String,
        /// The stall timeout.
        after: Duration,
    },
    /// The connection broke, or the body ended before its time.
    #[error("the connection to {host} broke: {problem}")]
    Broken {
        /// The server.
        host: String,
        /// What happened.
        problem: String,
    },
    /// The answer is of another length than asked for or announced.
    #[error("{host} sent {got} bytes where {expected} were expected")]
    Length {
        /// The server or directory.
        host: String,
        /// Bytes expected.
        expected: u64,
        /// Bytes that came, as far as they were read.
        got: u64,
    },
    /// The answer breaks the protocol, so its bytes can't be trusted to be the ones asked for.
    #[error("{host} gave a wrong answer: {problem}")]
    Protocol {
        /// The server.
        host: String,
        /// What is wrong.
        problem: String,
    },
    /// The bytes don't have the digest that they were asked by.
    #[error("{host} sent other content: its digest is {got}, expected {expected}")]
    Digest {
        /// The server or directory.
        host: String,
        /// Digest asked for.
        expected: Digest,
        /// Digest of what came.
        got: Digest,
    },
    /// More bytes than the caller is ready to hold in memory.
    #[error("it's larger than the limit of {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A document that can't be understood: JSON, media types, digests.
    #[error("{0}")]
    Malformed(String),
    /// Something legal that Clipper doesn't do.
    #[error("{0}")]
    Unsupported(String),
    /// A configuration file (hosts.toml, certificates, docker's config.json) can't be used.
    #[error("{path}: {problem}")]
    Config {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The caller's own stream failed while its bytes were being uploaded.
    #[error("the data to upload can't be read: {0}")]
    Source(String),
    /// A registry no longer has what was uploaded so far, or doesn't know how much of it.
    #[error(
        "{host} lost the upload after {at} bytes{}: try again; if that happens each time, it or a proxy before it \
         can't take up an upload in chunks",
        said(.message)
    )]
    UploadLost {
        /// The server.
        host: String,
        /// Bytes that it had confirmed.
        at: u64,
        /// The registry's own words.
        message: String,
    },
    /// A registry takes blobs only whole.
    #[error(
        "{host} takes no blobs in chunks (HTTP {status}){}: write to a layout (oci:DIR) and `clipper copy` that, or \
         use another registry",
        said(.message)
    )]
    NoChunks {
        /// The server.
        host: String,
        /// HTTP status.
        status: u16,
        /// The registry's own words.
        message: String,
    },
    /// The caller asked for something that can't be: a range outside the blob, a digest that isn't that of the bytes.
    #[error("{0}")]
    Request(String),
    /// Reading or writing a layout's file failed.
    #[error("{path}: {problem}")]
    Io {
        /// The file.
        path: String,
        /// The error of the system.
        problem: String,
    },
}

impl ErrorKind {
    /// Whether trying again may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Stalled { .. } | Self::Broken { .. } | Self::Limited { .. } => true,
            Self::UploadLost { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// Whether it says nothing about the server that was asked.
    pub(crate) fn is_own(&self) -> bool {
        matches!(
            self,
            Self::Source(_) | Self::Request(_) | Self::Config { .. } | Self::Unsupported(_) | Self::Io { .. }
        )
    }

    /// How long the server asked to wait before trying again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Limited { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Adds what was being done.
    pub(crate) fn during(self, action: impl Into<String>) -> RegistryError {
        RegistryError(Box::new(Inner { action: action.into(), kind: self, mirrors: Vec::new() }))
    }

    pub(crate) fn io(path: &Path, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::NotFound {
            return Self::NotFound { message: format!("{} doesn't exist", path.display()) };
        }
        Self::Io { path: path.display().to_string(), problem: error.to_string() }
    }

    /// Sorts an error of the HTTP library.
    pub(crate) fn of(host: &str, error: reqwest::Error) -> Self {
        let host = host.to_owned();
        // A redirect's address may hold a signature, which is as good as a password.
        let error = error.without_url();
        let mut chain = vec![error.to_string()];
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(tls) = tls_error(cause) {
                return match tls {
                    rustls::Error::InvalidMessage(_) => Self::PlainServer { host },
                    other => Self::Tls { host, problem: other.to_string() },
                };
            }
            let text = cause.to_string();
            if chain.last() != Some(&text) {
                chain.push(text);
            }
            source = cause.source();
        }
        let problem = chain.join(": ");
        if error.is_connect() { Self::Connect { host, problem } } else { Self::Broken { host, problem } }
    }
}

/// The TLS library's error within another one. An I/O error's source isn't the error that it wraps but that one's source,
/// so wrapped ones are looked into.
fn tls_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
        return Some(tls);
    }
    tls_error(cause.downcast_ref::<std::io::Error>()?.get_ref()?)
}

impl RegistryError {
    /// What went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Whether the manifest, blob or repository doesn't exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self.0.kind, ErrorKind::NotFound { .. })
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        self.0.kind.is_transient()
    }

    pub(crate) fn with_mirrors(mut self, mirrors: Vec<String>) -> Self {
        self.0.mirrors = mirrors;
        self
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.action, self.0.kind)?;
        for mirror in &self.0.mirrors {
            write!(f, " (mirror: {mirror})")?;
        }
        Ok(())
    }
}

impl std::error::Error for RegistryError {}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

fn wait(retry_after: &Option<Duration>) -> String {
    match retry_after {
        Some(wait) => format!(": try again in {} s", wait.as_secs()),
        None => String::new(),
    }
}

/// The registry's own words in an error's body (distribution-spec, "Error Codes"), or the text itself if it's short.
pub(crate) fn server_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    if let Ok(body) = serde_json::from_slice::<Body>(body) {
        let words = body.errors.iter().take(3).map(|e| match e.message.as_str() {
            "" => e.code.clone(),
            message if e.code.is_empty() => message.to_owned(),
            message => format!("{}: {message}", e.code),
        });
        return printable(&words.collect::<Vec<_>>().join("; "));
    }
    // An error page of a proxy in between says nothing that helps.
    let text = String::from_utf8_lossy(body);
    if text.trim_start().starts_with('<') { String::new() } else { printable(text.trim()) }
}

/// A server's words on one line, without control characters, of a bounded length.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_s_own_words_are_found() {
        let json = br#"{"errors":[{"code":"DENIED","message":"no","detail":[1]},{"code":"X"},{"message":"y"}]}"#;
        assert_eq!(server_message(json), "DENIED: no; X; y");
        assert_eq!(server_message(b"plain\n\x1b[31mtext"), "plain  [31mtext");
        assert_eq!(server_message(b"<html>gateway</html>"), "");
        assert_eq!(server_message(&[0xff; 4000]).chars().count(), 300);
    }

    #[test]
    fn messages_say_what_where_and_what_to_do() {
        let error = ErrorKind::Denied {
            host: "r.example".into(),
            status: 403,
            message: "DENIED: no".into(),
            hint: "try docker login r.example".into(),
        }
        .during("reading the manifest v1 of r.example/app")
        .with_mirrors(vec!["m.example: not found".into()]);
        assert_eq!(
            error.to_string(),
            "reading the manifest v1 of r.example/app: r.example refused access (HTTP 403) (DENIED: no): \
             try docker login r.example (mirror: m.example: not found)"
        );
    }
}
