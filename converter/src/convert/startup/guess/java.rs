//! What the Java virtual machine reads, and Tomcat.
use super::{Guess, Part};

/// Bytes of `lib/modules` from its beginning: its index, and most of java.base.
const MODULES: u64 = 16 << 20;
/// Bytes of libraries and archives that are read by and large.
const MOST: u64 = 32 << 20;

impl Guess<'_> {
    /// What the machine whose launcher is in the directory `bin` reads before the first class of the application.
    pub(super) fn java(&mut self, bin: &str) {
        let home = bin.strip_suffix("/bin").unwrap_or(bin);
        let files = [
            ("lib/jvm.cfg", Part::Usual),
            ("lib/server/libjvm.so", Part::First(MOST)),
            ("lib/server/classes.jsa", Part::First(MOST)),
            ("lib/libjimage.so", Part::Usual),
            ("lib/modules", Part::First(MODULES)),
            ("lib/libjava.so", Part::Usual),
            ("lib/libnio.so", Part::Usual),
            ("lib/libnet.so", Part::Usual),
            ("lib/libzip.so", Part::Usual),
            ("lib/libextnet.so", Part::Usual),
            ("lib/libmanagement.so", Part::Usual),
            ("lib/libmanagement_ext.so", Part::Usual),
            ("lib/tzdb.dat", Part::Usual),
            ("conf/net.properties", Part::Usual),
            ("conf/security/java.security", Part::Usual),
        ];
        for (file, part) in files {
            self.take_part(&format!("{home}/{file}"), part);
        }
    }

    /// Tomcat's own libraries and settings, and the libraries of what it serves.
    pub(super) fn tomcat(&mut self) {
        self.program("java");
        let home = self.variable("CATALINA_HOME").unwrap_or("/usr/local/tomcat").to_owned();
        let base = self.variable("CATALINA_BASE").unwrap_or(&home).to_owned();
        if let Some(java) = self.variable("JAVA_HOME").map(|java| format!("{java}/bin/java")) {
            self.program_at(&java);
        }
        let served = self.names(&format!("{base}/webapps"));
        let dirs = ["bin", "lib", "conf"].map(|dir| [format!("{home}/{dir}"), format!("{base}/{dir}")]).concat();
        let own =
            served.iter().flat_map(|name| ["WEB-INF", "WEB-INF/lib"].map(|dir| format!("{base}/webapps/{name}/{dir}")));
        for dir in dirs.into_iter().chain(own) {
            for name in self.names(&dir) {
                if [".jar", ".xml", ".properties", ".policy", ".sh"].iter().any(|end| name.ends_with(end)) {
                    self.take_part(&format!("{dir}/{name}"), Part::First(MOST));
                }
            }
        }
    }

    fn names(&self, dir: &str) -> Vec<String> {
        self.files.names(dir.as_bytes()).iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    }
}
