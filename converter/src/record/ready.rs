//! When an application is ready: a page of it answers.
use anyhow::{Result, bail};
use std::str::FromStr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);
/// For one attempt.
const PATIENCE: Duration = Duration::from_secs(5);

/// An `http://` URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Host and port.
    authority: String,
    path: String,
}

impl FromStr for Url {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some(rest) = text.strip_prefix("http://") else { bail!("{text:?}: expected http://HOST:PORT/PATH") };
        let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port { host.to_owned() } else { format!("{host}:80") };
        if host.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            bail!("{text:?}: expected http://HOST:PORT/PATH");
        }
        Ok(Self { authority, path: format!("/{path}") })
    }
}

impl Url {
    /// Returns once a GET is answered with a status of 200 to 399.
    pub async fn answers(&self) {
        loop {
            if let Ok(Ok(true)) = tokio::time::timeout(PATIENCE, self.get()).await {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn get(&self) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(&self.authority).await?;
        let Self { authority, path } = self;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        // "HTTP/1.1 200"
        Ok(head.starts_with(b"HTTP/1.") && matches!(head[9], b'2' | b'3'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_a_host_and_perhaps_a_port_and_a_path() {
        let parts = |text: &str| text.parse::<Url>().map(|url| (url.authority, url.path)).ok();
        let expected = |authority: &str, path: &str| Some((authority.to_owned(), path.to_owned()));
        assert_eq!(parts("http://127.0.0.1:8080/health?x=1"), expected("127.0.0.1:8080", "/health?x=1"));
        assert_eq!(parts("http://localhost"), expected("localhost:80", "/"));
        for bad in ["https://localhost", "localhost:80", "http://", "http:///x", "http://a b/"] {
            assert_eq!(parts(bad), None, "{bad}");
        }
    }
}
