//! What PostgreSQL reads to make a cluster and to start on it.
use super::Guess;

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

impl Guess<'_> {
    /// What the server in the directory `bin` reads when there is no cluster yet.
    pub(super) fn postgres(&mut self, bin: &str) {
        self.take(&format!("{bin}/initdb"));
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
        for library in ["dict_snowball.so", "plpgsql.so"] {
            let dirs = [format!("{bin}/../lib"), format!("{bin}/../lib/postgresql")];
            let _ = dirs.iter().find_map(|dir| self.take(&format!("{dir}/{library}")));
        }
        if self.variable("LANG").is_some_and(|lang| lang != "C" && lang != "POSIX") {
            self.take("/usr/lib/locale/locale-archive");
        }
    }
}
