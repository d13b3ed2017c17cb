//! A tar writer that can write what others merely read: ustar, GNU and PAX headers by choice, any path bytes, every
//! sparse format, headers in any order. Ordinary tar libraries tidy up exactly the things the tests need untidy.

use std::io::{self, Write};

/// How a header says what the 100 bytes of a ustar name, or its octal numbers, cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// POSIX.1-1988 `ustar`: long paths split into prefix and name; times in whole seconds; no xattrs.
    Ustar,
    /// GNU tar: `././@LongLink` records and base-256 numbers; times in whole seconds; no xattrs.
    Gnu,
    /// POSIX.1-2001 `pax`: an extended header in front of the entry where one is needed. Carries everything.
    Pax,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file with its content.
    File(Vec<u8>),
    /// A sparse regular file: its apparent size, and the runs of bytes that are not zero, ascending.
    Sparse(Sparse),
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A hard link to a path of the same layer or of a lower one.
    Hardlink(Vec<u8>),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A sparse file and the way its holes are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// Apparent size in bytes.
    pub size: u64,
    /// Offset and bytes of each run of data, ascending, not overlapping.
    pub runs: Vec<(u64, Vec<u8>)>,
    /// How the map is stored.
    pub format: SparseFormat,
}

/// The three ways in which GNU tar has written sparse maps and that are found in the wild.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SparseFormat {
    /// Old GNU: type `S`, the map in the header and in extension blocks.
    OldGnu,
    /// PAX 0.1: `GNU.sparse.map` in the extended header.
    Pax01,
    /// PAX 1.0: the map in front of the data.
    Pax10,
}

/// One entry of a tar.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The path as it will stand in the tar: any bytes, with or without `./` or a trailing slash.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds since the epoch. Only PAX keeps the nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes. Only PAX keeps them.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// How to write it.
    pub dialect: Dialect,
}

impl Entry {
    /// An entry owned by root, of mode 0644 (directories and links 0755 and 0777), with a fixed time, in PAX.
    pub fn new(path: impl Into<Vec<u8>>, kind: Kind) -> Self {
        let mode = match kind {
            Kind::Directory => 0o755,
            Kind::Symlink(_) => 0o777,
            _ => 0o644,
        };
        let (mtime, xattrs) = ((1_700_000_000, 0), Vec::new());
        Self { path: path.into(), kind, mode, uid: 0, gid: 0, mtime, xattrs, dialect: Dialect::Pax }
    }

    /// A regular file.
    pub fn file(path: impl Into<Vec<u8>>, data: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::File(data.into()))
    }

    /// A directory.
    pub fn dir(path: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::Directory)
    }

    /// A symbolic link.
    pub fn symlink(path: impl Into<Vec<u8>>, target: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::Symlink(target.into()))
    }

    /// A hard link.
    pub fn hardlink(path: impl Into<Vec<u8>>, target: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::Hardlink(target.into()))
    }

    /// With these permission bits.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// With this owner and group.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// With this modification time.
    pub fn mtime(mut self, seconds: i64, nanoseconds: u32) -> Self {
        self.mtime = (seconds, nanoseconds);
        self
    }

    /// With one more extended attribute.
    pub fn xattr(mut self, name: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name.into(), value.into()));
        self
    }

    /// In this dialect.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }
}

/// Writes entries one after the other.
pub struct TarWriter<W> {
    out: W,
}

impl<W: Write> TarWriter<W> {
    /// A writer of a new tar.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes one entry with the content it holds.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        match &entry.kind {
            Kind::File(data) => self.file(entry, data.len() as u64, &mut data.as_slice()),
            Kind::Sparse(sparse) => self.sparse(entry, sparse),
            _ => self.header(entry, &entry.path, 0, Vec::new()),
        }
    }

    /// Writes a regular file whose content is read from `data` instead of the entry: exactly `size` bytes.
    pub fn file(&mut self, entry: &Entry, size: u64, data: &mut dyn io::Read) -> io::Result<()> {
        self.header(entry, &entry.path, size, Vec::new())?;
        let copied = io::copy(&mut io::Read::take(data, size), &mut self.out)?;
        if copied != size {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file shrank while it was packed"));
        }
        self.pad(size)
    }

    /// Writes a global PAX header, as `git archive` does: of no consequence to any file.
    pub fn global_header(&mut self, key: &str, value: &str) -> io::Result<()> {
        let body = record(key.as_bytes(), value.as_bytes());
        let mut header = Header::new(&Entry::file("pax_global_header", ""), b"pax_global_header", body.len() as u64);
        header.0[156] = b'g';
        self.out.write_all(header.sealed(false))?;
        self.out.write_all(&body)?;
        self.pad(body.len() as u64)
    }

    /// Ends the tar with its two zero blocks.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 1024])?;
        Ok(self.out)
    }

    fn sparse(&mut self, entry: &Entry, sparse: &Sparse) -> io::Result<()> {
        let stored: u64 = sparse.runs.iter().map(|(_, data)| data.len() as u64).sum();
        // Every format ends the map with an empty run at the file's end if the file ends with a hole.
        let mut map: Vec<(u64, u64)> = sparse.runs.iter().map(|(at, data)| (*at, data.len() as u64)).collect();
        if map.last().is_none_or(|(at, len)| at + len < sparse.size) {
            map.push((sparse.size, 0));
        }
        let mut front = Vec::new();
        match sparse.format {
            SparseFormat::OldGnu => {
                let mut header = Header::new(entry, &clipped(&entry.path, 100), stored);
                header.0[156] = b'S';
                header.sparse_map(&map[..map.len().min(4)], 386, 4);
                header.0[482] = u8::from(map.len() > 4);
                header.number(483, 12, sparse.size, true);
                self.long_names(entry, &entry.path)?;
                self.out.write_all(header.sealed(true))?;
                let mut rest = map.get(4..).unwrap_or_default();
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(rest.len().min(21));
                    let mut block = Header([0; 512]);
                    block.sparse_map(now, 0, 21);
                    block.0[504] = u8::from(!later.is_empty());
                    self.out.write_all(&block.0)?;
                    rest = later;
                }
            }
            SparseFormat::Pax01 => {
                let list: Vec<String> = map.iter().map(|(at, len)| format!("{at},{len}")).collect();
                let records = vec![
                    record(b"GNU.sparse.size", sparse.size.to_string().as_bytes()),
                    record(b"GNU.sparse.numblocks", map.len().to_string().as_bytes()),
                    record(b"GNU.sparse.map", list.join(",").as_bytes()),
                ];
                self.header(entry, &entry.path, stored, records)?;
            }
            SparseFormat::Pax10 => {
                writeln!(front, "{}", map.len())?;
                for (at, len) in &map {
                    write!(front, "{at}\n{len}\n")?;
                }
                front.resize(front.len().next_multiple_of(512), 0);
                let records = vec![
                    record(b"GNU.sparse.major", b"1"),
                    record(b"GNU.sparse.minor", b"0"),
                    record(b"GNU.sparse.name", &entry.path),
                    record(b"GNU.sparse.realsize", sparse.size.to_string().as_bytes()),
                ];
                self.header(entry, b"GNUSparseFile.0/sparse", front.len() as u64 + stored, records)?;
            }
        }
        self.out.write_all(&front)?;
        for (_, data) in &sparse.runs {
            self.out.write_all(data)?;
        }
        self.pad(front.len() as u64 + stored)
    }

    fn header(&mut self, entry: &Entry, path: &[u8], size: u64, mut records: Vec<Vec<u8>>) -> io::Result<()> {
        let mut header = Header::new(entry, &clipped(path, 100), size);
        match entry.dialect {
            Dialect::Gnu => self.long_names(entry, path)?,
            Dialect::Ustar => {
                if path.len() > 100 {
                    let (prefix, name) = split_ustar(path)
                        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path too long for ustar"))?;
                    header.bytes(0, 100, name);
                    header.bytes(345, 155, prefix);
                }
            }
            Dialect::Pax => {
                if path.len() > 100 {
                    records.push(record(b"path", path));
                }
                if let Kind::Symlink(target) | Kind::Hardlink(target) = &entry.kind
                    && target.len() > 100
                {
                    records.push(record(b"linkpath", target));
                }
                let (seconds, nanoseconds) = entry.mtime;
                if nanoseconds != 0 || !(0..0o77777777777).contains(&seconds) {
                    records.push(record(b"mtime", pax_time(seconds, nanoseconds).as_bytes()));
                }
                for (key, id) in [(b"uid", entry.uid), (b"gid", entry.gid)] {
                    if id > 0o7777777 {
                        records.push(record(key, id.to_string().as_bytes()));
                    }
                }
                for (name, value) in &entry.xattrs {
                    records.push(record(&[b"SCHILY.xattr.", name.as_slice()].concat(), value));
                }
            }
        }
        if !records.is_empty() {
            let body = records.concat();
            let mut plain = Entry::file("PaxHeaders.0/entry", Vec::new());
            plain.mtime = (entry.mtime.0.max(0), 0);
            let mut extended = Header::new(&plain, &plain.path, body.len() as u64);
            extended.0[156] = b'x';
            self.out.write_all(extended.sealed(false))?;
            self.out.write_all(&body)?;
            self.pad(body.len() as u64)?;
        }
        self.out.write_all(header.sealed(entry.dialect == Dialect::Gnu))
    }

    /// GNU's records for names that don't fit.
    fn long_names(&mut self, entry: &Entry, path: &[u8]) -> io::Result<()> {
        let link: &[u8] = match &entry.kind {
            Kind::Symlink(target) | Kind::Hardlink(target) => target,
            _ => b"",
        };
        for (flag, name) in [(b'K', link), (b'L', path)] {
            if name.len() > 100 {
                let plain = Entry::file("././@LongLink", Vec::new()).mtime(0, 0).dialect(Dialect::Gnu);
                let mut header = Header::new(&plain, &plain.path, name.len() as u64 + 1);
                header.0[156] = flag;
                self.out.write_all(header.sealed(true))?;
                self.out.write_all(name)?;
                self.out.write_all(&[0])?;
                self.pad(name.len() as u64 + 1)?;
            }
        }
        Ok(())
    }

    fn pad(&mut self, written: u64) -> io::Result<()> {
        let rest = (written.next_multiple_of(512) - written) as usize;
        self.out.write_all(&[0; 512][..rest])
    }
}

/// One 512-byte header block.
struct Header([u8; 512]);

impl Header {
    fn new(entry: &Entry, name: &[u8], size: u64) -> Self {
        let mut header = Header([0; 512]);
        let gnu = entry.dialect == Dialect::Gnu;
        header.bytes(0, 100, name);
        header.number(100, 8, u64::from(entry.mode), gnu);
        header.number(108, 8, u64::from(entry.uid), gnu);
        header.number(116, 8, u64::from(entry.gid), gnu);
        header.number(124, 12, size, gnu);
        header.number(136, 12, entry.mtime.0.max(0) as u64, gnu);
        header.0[156] = match &entry.kind {
            Kind::File(_) | Kind::Sparse(_) => b'0',
            Kind::Hardlink(_) => b'1',
            Kind::Symlink(_) => b'2',
            Kind::CharDevice(..) => b'3',
            Kind::BlockDevice(..) => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        match &entry.kind {
            Kind::Symlink(target) | Kind::Hardlink(target) => header.bytes(157, 100, &clipped(target, 100)),
            Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
                header.number(329, 8, u64::from(*major), gnu);
                header.number(337, 8, u64::from(*minor), gnu);
            }
            _ => {}
        }
        header
    }

    fn bytes(&mut self, at: usize, room: usize, value: &[u8]) {
        self.0[at..at + room].fill(0);
        self.0[at..at + value.len()].copy_from_slice(value);
    }

    /// Octal if it fits, else base-256 where the dialect has it, else zero (a PAX record then says it).
    fn number(&mut self, at: usize, room: usize, value: u64, base256: bool) {
        let digits = format!("{value:0width$o}", width = room - 1);
        if digits.len() < room {
            self.bytes(at, room, digits.as_bytes());
        } else if base256 {
            let mut field = vec![0u8; room];
            let bytes = value.to_be_bytes();
            let tail = bytes.len().min(room);
            field[room - tail..].copy_from_slice(&bytes[bytes.len() - tail..]);
            field[0] |= 0x80;
            self.bytes(at, room, &field);
        } else {
            self.bytes(at, room, format!("{:0width$o}", 0, width = room - 1).as_bytes());
        }
    }

    fn sparse_map(&mut self, map: &[(u64, u64)], at: usize, slots: usize) {
        for (slot, (offset, len)) in map.iter().take(slots).enumerate() {
            self.number(at + slot * 24, 12, *offset, true);
            self.number(at + slot * 24 + 12, 12, *len, true);
        }
    }

    fn sealed(&mut self, gnu: bool) -> &[u8] {
        self.0[257..265].copy_from_slice(if gnu { b"ustar  \0" } else { b"ustar\x0000" });
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        &self.0
    }
}

fn clipped(bytes: &[u8], room: usize) -> Vec<u8> {
    bytes[..bytes.len().min(room)].to_vec()
}

/// Splits a path at a slash so that both halves fit into ustar's prefix and name.
fn split_ustar(path: &[u8]) -> Option<(&[u8], &[u8])> {
    (0..path.len())
        .filter(|at| path[*at] == b'/')
        .map(|at| (&path[..at], &path[at + 1..]))
        .find(|(prefix, name)| prefix.len() <= 155 && name.len() <= 100 && !name.is_empty())
}

/// A PAX record: its own length in decimal, a space, key=value, a newline.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Seconds with a fraction as PAX writes them: the fraction always adds to the number as written, sign and all.
fn pax_time(seconds: i64, nanoseconds: u32) -> String {
    if nanoseconds == 0 {
        return seconds.to_string();
    }
    if seconds < 0 {
        // -1.75 is seconds = -2, nanoseconds = 250_000_000.
        return format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(tar: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.tar");
        std::fs::write(&path, tar).unwrap();
        let run = std::process::Command::new("tar").arg("-tvf").arg(&path).arg("--full-time").output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8_lossy(&run.stdout).into_owned()
    }

    #[test]
    fn gnu_tar_reads_every_dialect() {
        let long = format!("{}/{}", "d".repeat(120), "n".repeat(90));
        let mut tar = TarWriter::new(Vec::new());
        for dialect in [Dialect::Ustar, Dialect::Gnu, Dialect::Pax] {
            tar.entry(&Entry::file(long.clone(), "hello").dialect(dialect).mtime(1_600_000_000, 7)).unwrap();
        }
        let listed = list(&tar.finish().unwrap());
        assert_eq!(listed.matches(&long).count(), 3, "{listed}");
        assert_eq!(listed.matches("2020-09-13").count(), 3, "{listed}");
        assert_eq!(listed.matches(".000000007").count(), 1, "{listed}");
    }

    #[test]
    fn gnu_tar_reads_every_sparse_format() {
        for format in [SparseFormat::OldGnu, SparseFormat::Pax01, SparseFormat::Pax10] {
            let runs: Vec<_> = (0..30u64).map(|run| (run * 8192 + 512, vec![b'a' + run as u8; 512])).collect();
            let mut expected = vec![0; 400_000];
            for (at, data) in &runs {
                expected[*at as usize..][..data.len()].copy_from_slice(data);
            }
            let sparse = Sparse { size: 400_000, runs, format };
            let mut tar = TarWriter::new(Vec::new());
            tar.entry(&Entry::new("holes", Kind::Sparse(sparse))).unwrap();
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("t.tar"), tar.finish().unwrap()).unwrap();
            let run =
                std::process::Command::new("tar").args(["-xf", "t.tar"]).current_dir(dir.path()).status().unwrap();
            assert!(run.success());
            assert!(std::fs::read(dir.path().join("holes")).unwrap() == expected, "{format:?}");
        }
    }

    #[test]
    fn times_before_the_epoch() {
        assert_eq!(pax_time(-2, 250_000_000), "-1.750000000");
        assert_eq!(pax_time(-1, 1), "-0.999999999");
        assert_eq!(pax_time(5, 0), "5");
    }
}
