//! Everything that was measured, by image and link, as benches/cold-start.json keeps it.

use std::collections::BTreeMap;

use anyhow::Result;
use clipper_benches::application::Application;
use clipper_benches::cold_start::Run;
use clipper_benches::figures::Figures;
use clipper_benches::ideal::Way;
use clipper_benches::needed::Needed;
use clipper_benches::page;
use clipper_benches::system::System;
use serde::{Deserialize, Serialize};

/// Where it is kept.
const FILE: &str = "cold-start.json";

/// The last measurement of each image over each link, by image; the quickest link first.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(from = "BTreeMap<String, OneOrMore>")]
pub struct Measured(BTreeMap<String, Vec<Measurement>>);

/// The runs of one image over one link, in the order in which they were made.
#[derive(Debug, Deserialize, Serialize)]
pub struct Measurement {
    /// The machine and the day.
    pub circumstances: String,
    /// The link.
    pub link: Way,
    /// What was started.
    pub image: Image,
    /// What its start reads.
    pub needed: Needed,
    /// The runs.
    pub runs: Vec<Run>,
    /// The machine and the day of processor time and memory that runs lacked, and other runs brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub costs_of: Option<String>,
    /// What was wanted, but could not be run.
    #[serde(default)]
    pub missing: Vec<Missing>,
}

/// A system that could not be run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Missing {
    /// Which.
    pub system: System,
    /// Why.
    pub reason: String,
}

/// An image in figures. Sizes are bytes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Image {
    /// How many layers it has.
    pub layers: usize,
    /// Their bytes in the registry.
    pub compressed: u64,
    /// Their bytes as tars.
    pub unpacked: u64,
}

/// What stands beside an image's name: until 2026-11-21 the file knew one link of each image.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(Box<Measurement>),
    More(Vec<Measurement>),
}

impl From<BTreeMap<String, OneOrMore>> for Measured {
    fn from(file: BTreeMap<String, OneOrMore>) -> Self {
        let list = |found| match found {
            OneOrMore::One(one) => vec![*one],
            OneOrMore::More(all) => all,
        };
        Self(file.into_iter().map(|(image, found)| (image, list(found))).collect())
    }
}

impl Measured {
    /// What earlier runs left.
    pub fn read() -> Result<Self> {
        page::figures(FILE)
    }

    /// Keeps it for later runs.
    pub fn write(&self) -> Result<()> {
        page::keep_figures(FILE, self)
    }

    /// Replaces what is known of an image over the same link.
    pub fn put(&mut self, image: &str, measurement: Measurement) {
        let all = self.0.entry(image.into()).or_default();
        all.retain(|other| other.link != measurement.link);
        all.push(measurement);
        all.sort_by_key(|one| (std::cmp::Reverse(one.link.0), one.link.1));
    }

    /// What is known of an image over a link.
    pub fn of(&mut self, image: &str, link: Way) -> Option<&mut Measurement> {
        self.0.get_mut(image)?.iter_mut().find(|one| one.link == link)
    }

    /// What is known, in the order of reports.
    pub fn all(&self) -> impl Iterator<Item = (Application, &Measurement)> {
        Application::all().flat_map(|application| {
            self.0.get(application.name).into_iter().flatten().map(move |one| (application, one))
        })
    }

    /// What is known of the link that most is told of, of images as they are.
    pub fn usual(&self) -> impl Iterator<Item = (Application, &Measurement)> {
        self.all().filter(|(application, own)| own.link == Way::USUAL && !application.zstd)
    }

    /// The same of images in zstd layers.
    pub fn in_zstd(&self) -> impl Iterator<Item = (Application, &Measurement)> {
        self.all().filter(|(application, own)| own.link == Way::USUAL && application.zstd)
    }
}

impl Measurement {
    /// The systems that were measured, in the order of reports.
    pub fn systems(&self) -> Vec<System> {
        let ran = |system: &System| self.runs.iter().any(|run| run.system == *system);
        System::all().into_iter().filter(ran).collect()
    }

    /// The systems that runs were made of without processor time and memory.
    pub fn without_costs(&self) -> Vec<System> {
        let lacks = |system: &System| self.runs.iter().any(|run| run.system == *system && run.daemon_cpu.is_none());
        self.systems().into_iter().filter(lacks).collect()
    }

    /// Completes runs that lack processor time and memory by what other runs of the same system cost. Seconds, bytes and
    /// requests stay: these are compared with what other systems had in the same rounds.
    pub fn take_costs(&mut self, Self { circumstances, runs, .. }: Self) {
        let mut others = runs;
        for run in self.runs.iter_mut().filter(|run| run.daemon_cpu.is_none()) {
            let Some(place) = others.iter().position(|other| other.system == run.system) else { continue };
            let other = others.remove(place);
            (run.daemon_cpu, run.node_cpu, run.peak_kib) = (other.daemon_cpu, other.node_cpu, other.peak_kib);
            self.costs_of = Some(circumstances.clone());
        }
    }

    /// One quantity of all runs of a system; runs that don't tell it are left out.
    pub fn figures(&self, system: System, of: impl Fn(&Run) -> Option<f64>) -> Figures {
        Figures(self.runs.iter().filter(|run| run.system == system).filter_map(of).collect())
    }

    /// Seconds from pull to ready.
    pub fn total(&self, system: System) -> Figures {
        self.figures(system, |run| Some(run.pull + run.start))
    }

    /// Bytes on the wire, as a multiple of what the start needs.
    pub fn over_needed(&self, system: System) -> Figures {
        self.figures(system, |run| Some(run.wire_bytes as f64 / self.needed.packed as f64))
    }

    /// Seconds that a start from a warm overlayfs takes (T_warm), if that was measured.
    pub fn warm(&self) -> Option<f64> {
        let warm = Figures(self.runs.iter().filter_map(|run| run.warm).collect());
        (!warm.0.is_empty()).then(|| warm.median())
    }

    /// Seconds that a cold start takes at least (T*).
    pub fn ideal(&self) -> Option<f64> {
        self.warm().map(|warm| self.link.ideal(warm, self.needed.packed))
    }

    /// Seconds from pull to ready, as a multiple of T*.
    pub fn over_ideal(&self, system: System) -> Option<Figures> {
        let ideal = self.ideal()?;
        Some(self.figures(system, |run| Some((run.pull + run.start) / ideal)))
    }

    /// How many times.
    pub fn rounds(&self) -> usize {
        self.systems().first().map_or(0, |first| self.runs.iter().filter(|run| run.system == *first).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(link: &str, runs: &str) -> String {
        format!(
            r#"{{"circumstances": "a day", "link": {link}, "image": {{"layers": 1, "compressed": 2, "unpacked": 3}},
                "needed": {{"bytes": 8, "packed": 30000000}}, "runs": [{runs}]}}"#
        )
    }

    const OLD: &str =
        r#"{"system": "index", "pull": 0.5, "start": 1.5, "wire_bytes": 60000000, "requests": 7, "resident_kib": 9}"#;

    fn warm(start: f64, warm: f64) -> String {
        format!(
            r#"{{"system": "overlayfs", "pull": 2.0, "start": {start}, "wire_bytes": 1, "requests": 1, "warm": {warm}}}"#
        )
    }

    #[test]
    fn measurements_of_a_single_link_are_read_and_kept() {
        let file = format!(r#"{{"node-red": {}}}"#, measurement("[300, 5]", OLD));
        let mut all: Measured = serde_json::from_str(&file).unwrap();
        let other = measurement("[100, 20]", &warm(1.0, 2.0));
        all.put("node-red", serde_json::from_str(&other).unwrap());
        all.put("node-red", serde_json::from_str(&measurement("[1000, 1]", OLD)).unwrap());
        // The same once more: in place of the former.
        all.put("node-red", serde_json::from_str(&measurement("[100, 20]", OLD)).unwrap());
        let again: Measured = serde_json::from_str(&serde_json::to_string(&all).unwrap()).unwrap();
        let links: Vec<Way> = again.all().map(|(_, one)| one.link).collect();
        assert_eq!(links, [Way(1000, 1), Way(300, 5), Way(100, 20)]);
        assert_eq!(again.usual().count(), 1);
        let system = "index-fuse".parse().unwrap();
        assert!(again.all().all(|(_, one)| one.systems() == [system]));
    }

    #[test]
    fn costs_are_taken_where_there_are_none() {
        let with = |pull: f64, cost: f64| {
            format!(
                r#"{{"system": "index", "pull": {pull}, "start": 1.0, "wire_bytes": 1, "requests": 1,
                    "daemon_cpu": {cost}, "node_cpu": {cost}, "peak_kib": 5}}"#
            )
        };
        let runs = [OLD.to_owned(), with(2.0, 3.0), OLD.to_owned(), warm(1.0, 2.0)].join(",");
        let mut own: Measurement = serde_json::from_str(&measurement("[300, 5]", &runs)).unwrap();
        let index: System = "index-fuse".parse().unwrap();
        assert_eq!(own.without_costs(), [System::Overlayfs, index]);
        let mut other: Measurement = serde_json::from_str(&measurement("[300, 5]", &with(9.0, 7.0))).unwrap();
        other.circumstances = "another day".into();
        own.take_costs(other);
        assert_eq!(own.costs_of.as_deref(), Some("another day"));
        // One for the first that had none; the last has none still.
        assert_eq!(own.figures(index, |run| run.daemon_cpu).0, [7.0, 3.0]);
        assert_eq!(own.figures(index, |run| Some(run.pull)).0, [0.5, 2.0, 0.5]);
        assert_eq!(own.without_costs(), [System::Overlayfs, index]);
    }

    #[test]
    fn the_ideal_is_of_the_median_of_warm_starts() {
        let runs = [warm(1.0, 0.5), warm(4.0, 3.0), warm(2.0, 1.97)].join(",");
        let own: Measurement = serde_json::from_str(&measurement("[300, 5]", &runs)).unwrap();
        assert_eq!(own.ideal(), Some(1.97 + 0.03));
        assert_eq!(own.over_ideal(System::Overlayfs).unwrap().0, [1.5, 3.0, 2.0]);
        let old: Measurement = serde_json::from_str(&measurement("[300, 5]", OLD)).unwrap();
        assert!(old.ideal().is_none() && old.over_ideal(System::Overlayfs).is_none());
        assert_eq!(old.over_needed("index".parse().unwrap()).0, [2.0]);
    }
}
