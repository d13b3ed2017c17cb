//! The applications that the benches start: which image, how it learns its port, and when it is ready.

use anyhow::{Context, Result};
use clipper_tests::registry::{Registry, cached_image};

use crate::ready::Ready;

/// An application in an image below `.cache/images`; see `scripts/recipes`.
#[derive(Clone, Copy, Debug)]
pub struct Application {
    /// Its name in reports: the image's, or with `-zstd`.
    pub name: &'static str,
    /// The image.
    pub image: &'static str,
    /// Whether the image's layers are compressed anew, as zstd of one frame each.
    pub zstd: bool,
    /// What it is, for people.
    pub what: &'static str,
    /// Environment variable that tells the application its port.
    pub port_variable: &'static str,
    /// How a client knows that it is ready.
    pub ready: Ready,
}

/// Those in images as they were built, in the order of reports.
pub const APPLICATIONS: [Application; 4] = [
    Application::new("node-red", "Node-RED on Node.js", "PORT", Ready::Page),
    Application::new("python", "FastAPI with pandas, SciPy, scikit-learn and PyArrow", "UVICORN_PORT", Ready::Page),
    Application::new(
        "postgres",
        "PostgreSQL with PostGIS, a new cluster",
        "PGPORT",
        Ready::Query("SELECT name FROM places ORDER BY at <-> ST_MakePoint(8.5, 50.1)::geography LIMIT 1"),
    ),
    Application::new("java", "a web application in Tomcat", "PORT", Ready::Page),
];

/// The same in zstd layers, as BuildKit and podman write them.
pub const ZSTD: [Application; 4] = [
    APPLICATIONS[0].in_zstd("node-red-zstd"),
    APPLICATIONS[1].in_zstd("python-zstd"),
    APPLICATIONS[2].in_zstd("postgres-zstd"),
    APPLICATIONS[3].in_zstd("java-zstd"),
];

impl Application {
    const fn new(name: &'static str, what: &'static str, port_variable: &'static str, ready: Ready) -> Self {
        Self { name, image: name, zstd: false, what, port_variable, ready }
    }

    const fn in_zstd(self, name: &'static str) -> Self {
        Self { name, zstd: true, ..self }
    }

    /// All of them, in the order of reports.
    pub fn all() -> impl Iterator<Item = Self> {
        APPLICATIONS.into_iter().chain(ZSTD)
    }

    /// Copies its image into a registry; gives its reference there.
    pub fn push(&self, registry: &Registry) -> Result<String> {
        if !self.zstd {
            return registry.push_cached(self.image);
        }
        let source = format!("oci:{}:latest", cached_image(self.image)?.display());
        registry.push_zstd(&source, &format!("{}:latest", self.name))
    }

    /// The one of this name.
    pub fn called(name: &str) -> Result<Self> {
        let names = || Self::all().map(|one| one.name).collect::<Vec<_>>().join(", ");
        Self::all()
            .find(|one| one.name == name)
            .with_context(|| format!("no application is called {name}; there are: {}", names()))
    }
}
