//! Writes the model's entries as tars, in every dialect of headers.
use super::{Dress, Entry, Format, Lead, Meta, SparseFormat, What, joined};

/// The last second that eleven octal digits hold.
const MTIME_MAX: i64 = 0o77777777777;

/// The archive of a layer, with its end marker.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        write(&mut out, entry);
    }
    out.extend([0; 1024]);
    out
}

/// One header block by hand.
#[derive(Clone)]
pub struct Header(pub [u8; 512]);

impl Header {
    pub fn new(format: Format, kind: u8, name: &[u8], size: u64) -> Self {
        let mut header = Self([0; 512]);
        match format {
            Format::V7 => {}
            Format::Ustar | Format::Pax => header.0[257..265].copy_from_slice(b"ustar\x0000"),
            Format::Gnu => header.0[257..265].copy_from_slice(b"ustar  \0"),
        }
        header.0[156] = kind;
        header.put(0, 100, name);
        header.octal(100, 8, 0o644);
        header.octal(108, 8, 0);
        header.octal(116, 8, 0);
        header.octal(124, 12, size);
        header.octal(136, 12, 0);
        header
    }

    pub fn put(&mut self, at: usize, len: usize, text: &[u8]) {
        assert!(text.len() <= len, "{} doesn't fit", text.escape_ascii());
        self.0[at..at + len].fill(0);
        self.0[at..at + text.len()].copy_from_slice(text);
    }

    pub fn octal(&mut self, at: usize, len: usize, value: u64) {
        let digits = format!("{value:0width$o}", width = len - 1);
        self.put(at, len, digits.as_bytes());
    }

    pub fn base_256(&mut self, at: usize, len: usize, value: i64) {
        let sign = if value < 0 { 0xff } else { 0 };
        self.0[at..at + len].fill(sign);
        self.0[at + len - 8..at + len].copy_from_slice(&value.to_be_bytes());
        self.0[at] |= 0x80;
    }

    pub fn sealed(mut self) -> [u8; 512] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|b| u64::from(*b)).sum();
        let digits = format!("{sum:06o}\0 ");
        self.0[148..156].copy_from_slice(digits.as_bytes());
        self.0
    }
}

/// Appends data with its padding.
pub fn padded(out: &mut Vec<u8>, data: &[u8]) {
    out.extend(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// One PAX record.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len.to_string().len() + rest != len {
        len += 1;
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// An extended header of the given type with its data.
pub fn extended(out: &mut Vec<u8>, format: Format, kind: u8, name: &[u8], data: &[u8]) {
    out.extend(Header::new(format, kind, name, data.len() as u64).sealed());
    padded(out, data);
}

/// The name as the archive has it.
pub fn written_name(entry: &Entry) -> Vec<u8> {
    let mut path = entry.path.clone();
    match entry.what {
        What::Whiteout => {
            if let Some(last) = path.last_mut() {
                last.splice(0..0, b".wh.".iter().copied());
            }
        }
        What::Opaque => path.push(b".wh..wh..opq".to_vec()),
        _ => {}
    }
    let mut name = match entry.dress.lead {
        Lead::Nothing => joined(&path),
        Lead::Dot => [b"./", &joined(&path)[..]].concat(),
        Lead::Slash => [b"/", &joined(&path)[..]].concat(),
        Lead::DotDot => [b"../", &joined(&path)[..]].concat(),
        Lead::Messy => [b".//x/../", &path.join(&b"//./"[..])[..]].concat(),
    };
    if name.is_empty() {
        name = b".".to_vec();
    }
    if matches!(entry.what, What::Directory) && !name.ends_with(b"/") {
        name.push(b'/');
    }
    name
}

fn write(out: &mut Vec<u8>, entry: &Entry) {
    let Dress { mut format, lavish, .. } = entry.dress;
    let Meta { perm, uid, gid, mtime, xattrs } = &entry.meta;
    let name = written_name(entry);
    let (kind, link, data) = match &entry.what {
        What::Directory => (b'5', Vec::new(), Vec::new()),
        What::File(bytes) => (b'0', Vec::new(), bytes.clone()),
        What::Sparse(_, runs, how) => {
            format = if *how == SparseFormat::OldGnu { Format::Gnu } else { Format::Pax };
            let kind = if *how == SparseFormat::OldGnu { b'S' } else { b'0' };
            (kind, Vec::new(), runs.iter().flat_map(|(_, run)| run.clone()).collect())
        }
        What::Symlink(target) => (b'2', target.clone(), Vec::new()),
        What::HardLink(target) => (b'1', joined(target), Vec::new()),
        What::CharDevice(..) => (b'3', Vec::new(), Vec::new()),
        What::BlockDevice(..) => (b'4', Vec::new(), Vec::new()),
        What::Fifo => (b'6', Vec::new(), Vec::new()),
        What::Whiteout | What::Opaque => (b'0', Vec::new(), Vec::new()),
    };
    let is_old_sparse = kind == b'S';
    let needs_pax = !is_old_sparse && (!xattrs.is_empty() || mtime.1 != 0);
    let needs_gnu = mtime.0 < 0 || mtime.0 > MTIME_MAX || *uid > 0o7777777 || *gid > 0o7777777 || link.len() > 100;
    let prefixed = split_prefix(&name).filter(|_| matches!(format, Format::Ustar));
    if needs_pax {
        format = Format::Pax;
    } else if needs_gnu && matches!(format, Format::V7 | Format::Ustar)
        || name.len() > 100 && (format == Format::V7 || format == Format::Ustar && prefixed.is_none())
    {
        format = Format::Gnu;
    }
    // V7 knows no devices or FIFOs, and writes a directory as a file with a slash.
    if format == Format::V7 && matches!(kind, b'3' | b'4' | b'6') {
        format = Format::Ustar;
    }
    let kind = match (format, kind) {
        (Format::V7, b'5' | b'0') => 0,
        (Format::Gnu, b'0') if lavish && !name.ends_with(b"/") => 0,
        (_, kind) => kind,
    };
    let mut header = Header::new(format, kind, b"", data.len() as u64);
    header.octal(100, 8, u64::from(*perm));
    let mut records = Vec::new();
    let mut packed = data.clone();
    match format {
        Format::Pax => {
            let mut say = |key: &str, value: &[u8]| records.extend(record(key.as_bytes(), value));
            if name.len() > 100 || lavish {
                say("path", &name);
            }
            if link.len() > 100 || lavish && !link.is_empty() {
                say("linkpath", &link);
            }
            if mtime.0 < 0 || mtime.0 > MTIME_MAX || mtime.1 != 0 || lavish {
                say("mtime", pax_time(*mtime).as_bytes());
            }
            if lavish || *uid > 0o7777777 {
                say("uid", uid.to_string().as_bytes());
            }
            if lavish || *gid > 0o7777777 {
                say("gid", gid.to_string().as_bytes());
            }
            for (key, value) in xattrs {
                say(&format!("SCHILY.xattr.{}", String::from_utf8_lossy(key)), value);
            }
            if let What::Sparse(size, runs, how) = &entry.what {
                packed = pax_sparse(&mut say, &name, *size, runs, *how, &data);
            }
            if lavish {
                say("size", packed.len().to_string().as_bytes());
                say("comment", b"");
            }
            header.octal(124, 12, if lavish { 7 } else { packed.len() as u64 });
            header.put(0, 100, &name[..name.len().min(100)]);
            header.put(157, 100, &link[..link.len().min(100)]);
            header.octal(136, 12, mtime.0.clamp(0, MTIME_MAX) as u64);
            header.octal(108, 8, u64::from((*uid).min(0o7777777)));
            header.octal(116, 8, u64::from((*gid).min(0o7777777)));
        }
        Format::Gnu => {
            if name.len() > 100 {
                extended(out, Format::Gnu, b'L', b"././@LongLink", &[&name[..], b"\0"].concat());
            }
            if link.len() > 100 {
                extended(out, Format::Gnu, b'K', b"././@LongLink", &[&link[..], b"\0"].concat());
            }
            header.put(0, 100, &name[..name.len().min(100)]);
            header.put(157, 100, &link[..link.len().min(100)]);
            for (at, len, value) in [(108, 8, i64::from(*uid)), (116, 8, i64::from(*gid)), (136, 12, mtime.0)] {
                if lavish || value < 0 || value > if len == 8 { 0o7777777 } else { MTIME_MAX } {
                    header.base_256(at, len, value);
                } else {
                    header.octal(at, len, value as u64);
                }
            }
        }
        Format::V7 | Format::Ustar => {
            match prefixed {
                Some((prefix, rest)) if name.len() > 100 || lavish => {
                    header.put(345, 155, prefix);
                    header.put(0, 100, rest);
                }
                _ => header.put(0, 100, &name),
            }
            header.put(157, 100, &link);
            header.octal(108, 8, u64::from(*uid));
            header.octal(116, 8, u64::from(*gid));
            header.octal(136, 12, mtime.0 as u64);
        }
    }
    if let What::CharDevice(major, minor) | What::BlockDevice(major, minor) = entry.what {
        header.octal(329, 8, u64::from(major));
        header.octal(337, 8, u64::from(minor));
    }
    if !records.is_empty() {
        extended(out, Format::Pax, b'x', b"PaxHeaders.0/x", &records);
    }
    match &entry.what {
        What::Sparse(size, runs, SparseFormat::OldGnu) => old_gnu_sparse(out, header, *size, runs),
        _ => out.extend(header.sealed()),
    }
    padded(out, &packed);
}

/// Cuts a name where ustar's prefix can end.
fn split_prefix(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let cut = (1..name.len()).rev().find(|at| name[*at] == b'/' && *at <= 155 && name.len() - at - 1 <= 100)?;
    (name.len() - cut > 1).then_some((&name[..cut], &name[cut + 1..]))
}

/// Seconds and nanoseconds as PAX writes them, the sign in front of both.
pub fn pax_time((seconds, nanos): (i64, u32)) -> String {
    match (seconds, nanos) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanos:09}"),
        _ => {
            let (whole, fraction) = (-(seconds + 1), 1_000_000_000 - nanos);
            format!("-{whole}.{fraction:09}")
        }
    }
}

fn pax_sparse(
    say: &mut dyn FnMut(&str, &[u8]),
    name: &[u8],
    size: u64,
    runs: &[(u64, Vec<u8>)],
    how: SparseFormat,
    data: &[u8],
) -> Vec<u8> {
    let size = size.to_string();
    let numbers: Vec<String> =
        runs.iter().flat_map(|(offset, run)| [offset.to_string(), run.len().to_string()]).collect();
    match how {
        SparseFormat::Pax10 => {
            say("GNU.sparse.major", b"1");
            say("GNU.sparse.minor", b"0");
            say("GNU.sparse.name", name);
            say("GNU.sparse.realsize", size.as_bytes());
            let mut map = format!("{}\n", runs.len());
            numbers.iter().for_each(|number| map += &format!("{number}\n"));
            let mut packed = Vec::new();
            padded(&mut packed, map.as_bytes());
            packed.extend(data);
            packed
        }
        _ => {
            say("GNU.sparse.size", size.as_bytes());
            say("GNU.sparse.numblocks", runs.len().to_string().as_bytes());
            if how == SparseFormat::Pax00 && !runs.is_empty() {
                for pair in numbers.chunks(2) {
                    say("GNU.sparse.offset", pair[0].as_bytes());
                    say("GNU.sparse.numbytes", pair[1].as_bytes());
                }
            } else {
                say("GNU.sparse.major", b"0");
                say("GNU.sparse.minor", b"1");
                say("GNU.sparse.map", numbers.join(",").as_bytes());
            }
            data.to_vec()
        }
    }
}

fn old_gnu_sparse(out: &mut Vec<u8>, mut header: Header, size: u64, runs: &[(u64, Vec<u8>)]) {
    let put = |header: &mut Header, at: usize, (offset, run): &(u64, Vec<u8>)| {
        header.octal(at, 12, *offset);
        header.octal(at + 12, 12, run.len() as u64);
    };
    let (first, more) = runs.split_at(runs.len().min(4));
    for (at, run) in first.iter().enumerate() {
        put(&mut header, 386 + 24 * at, run);
    }
    header.octal(483, 12, size);
    header.0[482] = u8::from(!more.is_empty());
    out.extend(header.sealed());
    let mut extensions = more.chunks(21).peekable();
    while let Some(runs) = extensions.next() {
        let mut block = Header([0; 512]);
        for (at, run) in runs.iter().enumerate() {
            put(&mut block, 24 * at, run);
        }
        block.0[504] = u8::from(extensions.peek().is_some());
        out.extend(block.0);
    }
}
