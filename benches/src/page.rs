//! The pages that results are written on: a section for each bench, rewritten by the bench itself; and the figures behind.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clipper_tests::daemon::{run, workspace};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A page with sections.
#[derive(Clone, Copy, Debug)]
pub enum Page {
    /// benches/RESULTS.md: everything.
    Results,
    /// README.md: the essence.
    Readme,
}

impl Page {
    /// Puts a section in place of the one of the same name, or at the end.
    pub fn write_section(self, name: &str, body: &str) -> Result<()> {
        let path = match self {
            Self::Results => directory().join("RESULTS.md"),
            Self::Readme => workspace().join("README.md"),
        };
        let page = fs::read_to_string(&path)
            .unwrap_or_else(|_| "# Results\n\nWritten by the benches themselves: `make bench`.\n".into());
        Ok(fs::write(path, replaced(&page, name, body))?)
    }
}

/// The directory of the results.
pub fn directory() -> PathBuf {
    workspace().join("benches")
}

/// What an earlier run kept in this file of the directory; nothing, if there is none.
pub fn figures<T: Default + DeserializeOwned>(name: &str) -> Result<T> {
    let path = directory().join(name);
    if !path.exists() {
        return Ok(T::default());
    }
    serde_json::from_slice(&fs::read(&path)?)
        .with_context(|| format!("{} is of another form: delete it to measure anew", path.display()))
}

/// Keeps it there for later runs.
pub fn keep_figures(name: &str, figures: &impl Serialize) -> Result<()> {
    Ok(fs::write(directory().join(name), serde_json::to_string_pretty(figures)? + "\n")?)
}

fn replaced(page: &str, name: &str, body: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
    let section = format!("{begin}{}\n{end}", body.trim_end());
    match page.split_once(&begin) {
        Some((before, rest)) => {
            let after = rest.split_once(&end).map_or("", |(_, after)| after);
            format!("{before}{section}{after}")
        }
        None => format!("{}\n\n{section}", page.trim_end()),
    }
}

/// The machine and the day, for the head of a section.
pub fn circumstances() -> String {
    let cores = std::thread::available_parallelism().map(|cores| cores.get()).unwrap_or(1);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let day = run(std::process::Command::new("date").arg("+%F")).unwrap_or_default();
    format!(
        "{}, {cores} cores ({}), Linux {}.",
        day.trim(),
        processor.trim_start_matches([' ', '\t', ':']),
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_replaced_in_place() {
        let page = replaced("# R\n", "a", "one");
        let page = replaced(&page, "b", "two");
        let page = replaced(&page, "a", "three");
        assert_eq!(page, "# R\n\n<!-- a -->\nthree\n<!-- end of a -->\n\n<!-- b -->\ntwo\n<!-- end of b -->\n");
    }
}
