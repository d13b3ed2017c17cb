//! What PostgreSQL reads to make a cluster and to start on it.
use super::{Guess, NAMES_MAX, split};
use crate::convert::startup::files::Found;

/// Below its folder of shared files: what initdb(1) reads.
const SHARED: [&str; 14] = [
    "postgres.bki",
    "pg_hba.conf.sample",
    "pg_ident.conf.sample",
    "postgresql.conf.sample",
    "timezonesets/Default",
    "snowball_create.sql",
    "information_schema.sql",
    "sql_features.txt",
    "system_constraints.sql",
    "system_functions.sql",
    "system_views.sql",
    "errcodes.txt",
    "extension/plpgsql.control",
    "extension/plpgsql--1.0.sql",
];

/// Where entrypoints of images look for scripts that a new cluster runs.
pub const FIRST_SCRIPTS: &str = "/docker-entrypoint-initdb.d";

/// The server of the image, once it is known.
#[derive(Default)]
pub struct Postgres {
    /// Where extensions are described, with their scripts; empty if there is no server.
    extensions: String,
    /// Directories of loadable libraries.
    libraries: Vec<String>,
}

impl Guess<'_> {
    /// What the server in the directory `bin` reads when there is no cluster yet.
    pub(super) fn postgres(&mut self, bin: &str) {
        self.take(&format!("{bin}/initdb"));
        self.program("locale");
        let version = bin.trim_end_matches("/bin").rsplit('/').next().unwrap_or_default();
        let shared = [
            format!("/usr/share/postgresql/{version}"),
            format!("{bin}/../share/postgresql"),
            format!("{bin}/../share"),
        ];
        let has = |dir: &&String| self.file(&format!("{dir}/postgres.bki")).is_some();
        let Some(shared) = shared.iter().find(has) else { return };
        for name in SHARED {
            self.take(&format!("{shared}/{name}"));
        }
        self.postgres.extensions = format!("{shared}/extension");
        self.postgres.libraries = vec![format!("{bin}/../lib"), format!("{bin}/../lib/postgresql")];
        for library in ["dict_snowball", "plpgsql"] {
            self.library(library);
        }
        let scripts = self.files.names(FIRST_SCRIPTS.as_bytes());
        if !scripts.is_empty() {
            self.take(&format!("{bin}/psql"));
        }
        for name in scripts.into_iter().take(NAMES_MAX) {
            self.take(&format!("{FIRST_SCRIPTS}/{}", String::from_utf8_lossy(&name)));
        }
        if self.variable("LANG").is_some_and(|lang| lang != "C" && lang != "POSIX") {
            self.take("/usr/lib/locale/locale-archive");
        }
    }

    fn library(&mut self, name: &str) {
        let dirs = self.postgres.libraries.clone();
        let _ = dirs.iter().find_map(|dir| self.take(&format!("{dir}/{name}.so")));
    }

    /// Takes the extensions that a script creates (`CREATE EXTENSION`, PostgreSQL's reference).
    pub(super) fn sql(&mut self, text: &[u8]) {
        let dir = self.postgres.extensions.clone();
        for name in created(&String::from_utf8_lossy(text)).into_iter().take(NAMES_MAX) {
            self.take(&format!("{dir}/{name}.control"));
        }
    }

    /// Takes what a control file leads to: scripts, library, other extensions ("Packaging Related Objects into an
    /// Extension").
    pub(super) fn extension(&mut self, control: &Found, text: &[u8]) {
        let path = String::from_utf8_lossy(&control.path).into_owned();
        let (dir, file) = split(&path);
        let name = file.trim_end_matches(".control");
        // Debian has several versions side by side: `postgis.control` leads to `postgis-3.control`.
        let name = match name.rsplit_once('-') {
            Some((name, version)) if version.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => name,
        };
        let text = String::from_utf8_lossy(text);
        if let Some(requires) = setting(&text, "requires") {
            for other in requires.split(',').take(NAMES_MAX) {
                self.take(&format!("{dir}/{}.control", other.trim()));
            }
        }
        let version = setting(&text, "default_version").unwrap_or_default();
        if self.take(&format!("{dir}/{name}--{version}.sql")).is_none() {
            // An older version and the steps from there.
            let begin = format!("{name}--");
            for script in self.files.names(dir.as_bytes()).into_iter().take(NAMES_MAX) {
                if script.starts_with(begin.as_bytes()) {
                    self.take(&format!("{dir}/{}", String::from_utf8_lossy(&script)));
                }
            }
        }
        if let Some(library) = setting(&text, "module_pathname") {
            self.library(library.trim_start_matches("$libdir/"));
        }
    }
}

/// The extensions that SQL creates.
fn created(text: &str) -> Vec<String> {
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c == ';').filter(|word| !word.is_empty()).collect();
    let is = |at: usize, word: &str| words.get(at).is_some_and(|found| found.eq_ignore_ascii_case(word));
    let name = |at: usize| {
        let at = if is(at, "if") { at + 3 } else { at };
        words.get(at).map(|name| name.trim_matches('"').to_owned()).filter(|name| !name.contains('/'))
    };
    (0..words.len()).filter(|at| is(*at, "create") && is(at + 1, "extension")).filter_map(|at| name(at + 2)).collect()
}

/// A setting of a control file.
fn setting<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let value = line.trim_start().strip_prefix(name)?.trim_start().strip_prefix('=')?.trim();
        let value = value.strip_prefix('\'').and_then(|value| value.split_once('\'')).map_or(value, |(value, _)| value);
        (!value.contains("..")).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_created_in_any_case_and_described_in_control_files() {
        let sql = "create extension a;\nCREATE EXTENSION IF NOT EXISTS \"b-c\" CASCADE; create table x(); CREATE EXTENSION ../d";
        assert_eq!(created(sql), ["a", "b-c"]);
        let control = "# comment\ndefault_version = '1.2' # more\nmodule_pathname='$libdir/a-3'\nrequires = 'x, y'\n";
        assert_eq!(setting(control, "default_version"), Some("1.2"));
        assert_eq!(setting(control, "module_pathname"), Some("$libdir/a-3"));
        assert_eq!((setting(control, "requires"), setting(control, "comment")), (Some("x, y"), None));
        assert_eq!(setting("module_pathname = '../../x'", "module_pathname"), None);
    }
}
