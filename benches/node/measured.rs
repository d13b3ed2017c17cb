//! Everything that was measured, as benches/node.json keeps it: parts that aren't measured stay as they are.

use anyhow::Result;
use clipper_benches::page;
use serde::{Deserialize, Serialize};

use crate::crowd::Crowd;
use crate::fill::Filling;
use crate::memory::Memory;
use crate::parity::Parity;
use crate::uncached::Uncached;

/// Where it is kept.
const FILE: &str = "node.json";

/// The last measurement of each part.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Measured {
    /// Warm work, by image.
    pub parity: Option<Part<Vec<Parity>>>,
    /// Single reads of what isn't here.
    pub uncached: Option<Part<Uncached>>,
    /// Background fill.
    pub fill: Option<Part<Filling>>,
    /// Memory.
    pub memory: Option<Part<Memory>>,
    /// Many containers at once.
    pub crowd: Option<Part<Crowd>>,
}

/// What was measured, on which machine and day.
#[derive(Debug, Deserialize, Serialize)]
pub struct Part<T> {
    /// Machine and day.
    pub circumstances: String,
    /// The figures.
    pub figures: T,
}

impl<T> Part<T> {
    /// Measured here and now.
    pub fn now(figures: T) -> Option<Self> {
        Some(Self { circumstances: page::circumstances(), figures })
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
}
