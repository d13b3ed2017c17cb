//! Everything that was measured, by image, as benches/cold-start.json keeps it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clipper_benches::application::{APPLICATIONS, Application};
use clipper_benches::cold_start::{Run, System};
use clipper_benches::figures::Figures;
use clipper_benches::needed::Needed;
use clipper_benches::page;
use serde::{Deserialize, Serialize};

/// The last measurement of each image.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Measured(BTreeMap<String, Measurement>);

/// The runs of one image, in the order in which they were made.
#[derive(Debug, Deserialize, Serialize)]
pub struct Measurement {
    /// The machine and the day.
    pub circumstances: String,
    /// Mbit/s, and milliseconds of delay each way.
    pub link: (u32, u64),
    /// What was started.
    pub image: Image,
    /// What its start reads.
    pub needed: Needed,
    /// The runs.
    pub runs: Vec<Run>,
}

/// An image in figures. Sizes are bytes.
#[derive(Debug, Deserialize, Serialize)]
pub struct Image {
    /// How many layers it has.
    pub layers: usize,
    /// Their bytes in the registry.
    pub compressed: u64,
    /// Their bytes as tars.
    pub unpacked: u64,
}

impl Measured {
    /// What earlier runs left.
    pub fn read() -> Result<Self> {
        let path = path();
        if !path.exists() {
            return Ok(Self::default());
        }
        serde_json::from_slice(&fs::read(&path)?)
            .with_context(|| format!("{} is of another form: delete it to measure anew", path.display()))
    }

    /// Keeps it for later runs.
    pub fn write(&self) -> Result<()> {
        Ok(fs::write(path(), serde_json::to_string_pretty(self)? + "\n")?)
    }

    /// Replaces what is known of an image.
    pub fn put(&mut self, image: &str, measurement: Measurement) {
        self.0.insert(image.into(), measurement);
    }

    /// What is known of an application.
    pub fn of(&self, application: &Application) -> Option<&Measurement> {
        self.0.get(application.name)
    }

    /// What is known, in the order of reports.
    pub fn all(&self) -> impl Iterator<Item = (Application, &Measurement)> {
        APPLICATIONS.into_iter().filter_map(|application| Some((application, self.of(&application)?)))
    }
}

impl Measurement {
    /// The systems that were measured, in the order of reports.
    pub fn systems(&self) -> Vec<System> {
        let ran = |system: &System| self.runs.iter().any(|run| run.system == *system);
        System::ALL.into_iter().filter(ran).collect()
    }

    /// One quantity of all runs of a system.
    pub fn figures(&self, system: System, of: impl Fn(&Run) -> f64) -> Figures {
        Figures(self.runs.iter().filter(|run| run.system == system).map(of).collect())
    }

    /// Seconds from pull to ready.
    pub fn total(&self, system: System) -> Figures {
        self.figures(system, |run| run.pull + run.start)
    }

    /// Bytes on the wire, as a multiple of what the start needs.
    pub fn over_needed(&self, system: System) -> Figures {
        self.figures(system, |run| run.wire_bytes as f64 / self.needed.packed as f64)
    }

    /// How many times.
    pub fn rounds(&self) -> usize {
        self.systems().first().map_or(0, |first| self.runs.iter().filter(|run| run.system == *first).count())
    }
}

fn path() -> PathBuf {
    page::directory().join("cold-start.json")
}
