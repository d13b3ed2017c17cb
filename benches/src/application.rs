//! The applications that the benches start: which image, how it learns its port, and when it is ready.

use anyhow::{Result, bail};

use crate::ready::Ready;

/// An application in an image below `.cache/images`; see `scripts/recipes`.
#[derive(Clone, Copy, Debug)]
pub struct Application {
    /// The image.
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// Environment variable that tells the application its port.
    pub port_variable: &'static str,
    /// How a client knows that it is ready.
    pub ready: Ready,
}

/// All of them, in the order of reports.
pub const APPLICATIONS: [Application; 4] = [
    Application { name: "node-red", what: "Node-RED on Node.js", port_variable: "PORT", ready: Ready::Page },
    Application {
        name: "python",
        what: "FastAPI with pandas, SciPy, scikit-learn and PyArrow",
        port_variable: "UVICORN_PORT",
        ready: Ready::Page,
    },
    Application {
        name: "postgres",
        what: "PostgreSQL with PostGIS, a new cluster",
        port_variable: "PGPORT",
        ready: Ready::Query("SELECT name FROM places ORDER BY at <-> ST_MakePoint(8.5, 50.1)::geography LIMIT 1"),
    },
    Application { name: "java", what: "a web application in Tomcat", port_variable: "PORT", ready: Ready::Page },
];

impl Application {
    /// The one in the image of this name.
    pub fn called(name: &str) -> Result<Self> {
        match APPLICATIONS.into_iter().find(|one| one.name == name) {
            Some(one) => Ok(one),
            None => {
                bail!("no application is called {name}; there are: {}", APPLICATIONS.map(|one| one.name).join(", "))
            }
        }
    }
}
