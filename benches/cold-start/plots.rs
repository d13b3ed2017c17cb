//! What was measured, in pictures: for each link one of seconds, and one of each cost.

use std::collections::BTreeMap;

use clipper_benches::application::Application;
use clipper_benches::cold_start::Run;
use clipper_benches::ideal::Way;
use clipper_benches::picture::{Bar, Group, bars};
use clipper_benches::system::System;

use crate::measured::{Measured, Measurement};

/// A picture.
pub struct Plot {
    /// Its file, below benches.
    pub file: String,
    /// What it shows.
    pub title: String,
    /// It itself, as SVG.
    pub svg: String,
}

/// A quantity of a run.
struct Quantity {
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    /// What its bar is made of, by name.
    parts: &'static [Part],
}

type Part = (&'static str, fn(&Run) -> Option<f64>);

const QUANTITIES: [Quantity; 5] = [
    Quantity {
        name: "seconds",
        title: "From pull to ready",
        unit: "s",
        parts: &[("pull", |run| Some(run.pull)), ("start to ready", |run| Some(run.start))],
    },
    Quantity {
        name: "wire",
        title: "On the wire until ready",
        unit: "MB",
        parts: &[("received", |run| Some(run.wire_bytes as f64 / 1e6))],
    },
    Quantity {
        name: "requests",
        title: "Requests until ready",
        unit: "",
        parts: &[("requests", |run| Some(run.requests as f64))],
    },
    Quantity {
        name: "processor",
        title: "Processor time of what shows the image, until ready",
        unit: "s",
        parts: &[("processor", |run| run.daemon_cpu)],
    },
    Quantity {
        name: "memory",
        title: "Peak memory of what shows the image, until ready",
        unit: "MB",
        parts: &[("resident", |run| Some(run.peak_kib? as f64 / 1024.0))],
    },
];

/// The picture in README.md: seconds over the usual link.
pub fn seconds(all: &Measured) -> String {
    draw(&QUANTITIES[0], all.usual())
}

/// All pictures of all links, the quickest link first.
pub fn all(all: &Measured) -> Vec<Plot> {
    let mut links: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (application, own) in all.all() {
        links.entry((u32::MAX - own.link.0, own.link.1)).or_default().push((application, own));
    }
    let mut plots = Vec::new();
    for own in links.into_values() {
        let Some((_, first)) = own.first() else { continue };
        let Way(megabits, delay) = first.link;
        plots.extend(QUANTITIES.iter().map(|quantity| Plot {
            file: format!("plots/{megabits}-{delay}-{}.svg", quantity.name),
            title: format!("{}, {}", quantity.title, first.link),
            svg: draw(quantity, own.iter().cloned()),
        }));
    }
    plots
}

fn draw<'a>(quantity: &Quantity, measured: impl Iterator<Item = (Application, &'a Measurement)>) -> String {
    let groups: Vec<Group> = measured
        .map(|(application, own)| Group {
            title: format!("{}, {}", application.name, own.link),
            bars: own.systems().into_iter().filter_map(|system| bar(quantity, own, system)).collect(),
        })
        .collect();
    let parts: Vec<&str> = quantity.parts.iter().map(|(name, _)| *name).collect();
    bars(quantity.title, quantity.unit, &parts, &groups)
}

/// A system's bar, if the quantity was measured of it.
fn bar(quantity: &Quantity, own: &Measurement, system: System) -> Option<Bar> {
    let sum = |run: &Run| quantity.parts.iter().map(|(_, of)| of(run)).sum::<Option<f64>>();
    let total = own.figures(system, sum);
    let parts = quantity.parts.iter().map(|(_, of)| own.figures(system, *of).median()).collect();
    (!total.0.is_empty()).then(|| Bar { name: system.name(), parts, range: (total.min(), total.max()) })
}
