//! What the Java virtual machine reads, and Tomcat.
use super::jimage::{self, Image};
use super::{Expected, Guess, Part, READ_AROUND};

/// Bytes of `lib/modules` from its beginning: its index, and most of java.base.
const MODULES: u64 = 16 << 20;
/// Bytes of libraries and archives that are read by and large.
const MOST: u64 = 32 << 20;
/// Modules of which servers load classes as they start.
const MODULES_LOADED: [&str; 14] = [
    "java.base",
    "java.instrument",
    "java.logging",
    "java.management",
    "java.naming",
    "java.security.jgss",
    "java.security.sasl",
    "java.sql",
    "java.xml",
    "jdk.crypto.ec",
    "jdk.management",
    "jdk.net",
    "jdk.unsupported",
    "jdk.zipfs",
];
/// Packages of other modules: beans are what many libraries configure things by.
const PACKAGES_LOADED: [&str; 2] = ["java/beans", "com/sun/beans"];

impl Guess<'_> {
    /// What the machine whose launcher is in the directory `bin` reads before the first class of the application.
    pub(super) async fn java(&mut self, bin: &str) {
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
        self.classes(&format!("{home}/lib/modules")).await;
    }

    /// What is read of the platform's own classes, besides those that come first.
    async fn classes(&mut self, path: &str) {
        let Some(file) = self.file(path) else { return };
        let header = self.reader.read(self.files, file.id, 0..jimage::HEADER).await.unwrap_or_default();
        let Some(image) = Image::parse(&header) else { return };
        let index = self.reader.read(self.files, file.id, 0..image.index()).await.unwrap_or_default();
        let loaded = |module: &str, package: &str| {
            let below =
                |known: &str| package.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            MODULES_LOADED.contains(&module) || PACKAGES_LOADED.into_iter().any(below)
        };
        let size = self.files.size(file.id);
        let ranges = image.contents(&index, 2 * READ_AROUND, loaded).into_iter();
        let ranges = ranges.map(|range| range.start.min(size)..range.end.min(size)).collect();
        self.late.push(Expected { path: file.path, ranges });
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
