//! What a daemon's metrics endpoint answers: HTTP over a Unix socket, and the text of a scrape taken apart.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// One scrape.
#[derive(Clone, Debug)]
pub struct Scrape {
    text: String,
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// `METHOD PATH` at a Unix socket: the status and the body.
pub fn request(socket: &Path, method: &str, path: &str) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the header")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
    Ok((status, body.to_owned()))
}

impl Scrape {
    /// Scrapes the daemon that listens there.
    pub fn of(socket: &Path) -> Result<Self> {
        match request(socket, "GET", "/metrics")? {
            (200, text) => Self::parse(text),
            (status, text) => bail!("{status}: {text}"),
        }
    }

    fn parse(text: String) -> Result<Self> {
        if !text.ends_with("# EOF\n") {
            bail!("a scrape without an end: {text}");
        }
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).with_context(|| line.to_owned())).collect::<Result<_>>()?;
        Ok(Self { samples, text })
    }

    /// The families by the names of their samples: counters with `_total`, histograms as they are declared.
    pub fn families(&self) -> BTreeSet<String> {
        let declared = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        declared.map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() }).collect()
    }

    /// The sum of all samples called `name` that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &Sample| {
            labels.iter().all(|(key, value)| sample.labels.iter().any(|(k, v)| k == key && v == value))
        };
        self.samples.iter().filter(|sample| sample.name == name && has(sample)).map(|sample| sample.value).sum()
    }
}

/// `name{label="value",…} 12.5`.
fn sample(line: &str) -> Result<Sample> {
    let (series, value) = line.rsplit_once(' ').context("no value")?;
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let mut rest = labels.strip_suffix('}').context("no end of the labels")?;
    let mut found = Vec::new();
    while let Some((key, after)) = rest.split_once("=\"") {
        let end = after.find('"').context("no end of a label")?;
        found.push((key.trim_start_matches(',').to_owned(), after[..end].to_owned()));
        rest = &after[end + 1..];
    }
    Ok(Sample { name: name.to_owned(), labels: found, value: value.parse()? })
}
