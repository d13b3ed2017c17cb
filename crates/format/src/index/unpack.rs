//! From columns back to a tree.
use super::columns::{Planes, column};
use super::pack::{Place, Room, UNIT, Xattrs};
use super::packed::PackError;
use super::wire::{Malformed, Reader};
use crate::erofs::MAX_DEPTH;
use crate::tree::{Content, DeviceNumber, Directory, Extent, ExtentSource, FileData, Inode, InodeId, ROOT, Tree};

/// Most bytes of a tree's columns together.
const COLUMNS_MAX: u64 = 256 << 20;
/// Longest symlink target.
const TARGET_MAX: usize = 4095;
/// Most device sizes.
const DEVICES_MAX: u64 = 4096;

const ENDS: Malformed = Malformed("a number without meaning");

/// How many inodes packed bytes say that they hold, and the sizes of their devices.
pub fn head(bytes: &[u8]) -> Result<(u64, Vec<u64>), PackError> {
    let mut reader = Reader::new(bytes);
    Ok(read_head(&mut reader)?)
}

fn read_head(reader: &mut Reader<'_>) -> Result<(u64, Vec<u64>), Malformed> {
    let inodes = reader.varint()?;
    let devices = reader.varint()?;
    if inodes > Room::INODES || devices > DEVICES_MAX {
        return Err(Malformed("more inodes or devices than a tree may have"));
    }
    let device_sizes = (0..devices).map(|_| reader.varint()).collect::<Result<_, _>>()?;
    Ok((inodes, device_sizes))
}

/// What inodes say by number.
struct Dictionaries {
    modes: Vec<u16>,
    owners: Vec<(u32, u32)>,
    times: Vec<(i64, u32)>,
    xattrs: Vec<Xattrs>,
}

/// The columns, each read up to where the walk is.
struct Unpacker<'a> {
    dictionaries: &'a Dictionaries,
    device_sizes: &'a [u64],
    names: Reader<'a>,
    counts: Reader<'a>,
    kinds: Reader<'a>,
    links: Reader<'a>,
    owners: Reader<'a>,
    times: Reader<'a>,
    xattrs: Reader<'a>,
    targets: Reader<'a>,
    device_numbers: Reader<'a>,
    shapes: Reader<'a>,
    parts: Reader<'a>,
    positions: Reader<'a>,
    inline: Reader<'a>,
    sizes: std::slice::Iter<'a, u64>,
    place: Place,
    room: &'a mut Room,
}

/// A directory whose entries are being read.
struct Open {
    id: InodeId,
    left: u64,
    last: Vec<u8>,
}

/// Unpacks a tree, if there is room for it.
pub fn unpack(bytes: &[u8], room: &mut Room) -> Result<Tree, PackError> {
    let mut reader = Reader::new(bytes);
    let (count, device_sizes) = read_head(&mut reader)?;
    let mut budget = COLUMNS_MAX;
    let mut columns = Vec::new();
    for _ in 0..17 {
        columns.push(column(&mut reader, &mut budget)?);
    }
    let sizes = Planes::read(&mut reader, &mut budget, count)?;
    let mut readers = columns.iter().map(|column| Reader::new(column));
    let mut next = || readers.next().ok_or(ENDS);
    let dictionaries = Dictionaries::read([next()?, next()?, next()?, next()?], count, room)?;
    let mut unpacker = Unpacker {
        dictionaries: &dictionaries,
        device_sizes: &device_sizes,
        names: next()?,
        counts: next()?,
        kinds: next()?,
        links: next()?,
        owners: next()?,
        times: next()?,
        xattrs: next()?,
        targets: next()?,
        device_numbers: next()?,
        shapes: next()?,
        parts: next()?,
        positions: next()?,
        inline: next()?,
        sizes: sizes.iter(),
        place: Place::START,
        room,
    };
    let inodes = unpacker.walk(count)?;
    if !reader.is_empty() || !unpacker.is_empty() {
        return Err(PackError::Corrupt("it goes on after its end"));
    }
    Ok(Tree { inodes, device_sizes })
}

impl Dictionaries {
    /// Each value is that of one of `inodes` inodes at least.
    fn read(
        [mut modes, mut owners, mut times, mut xattrs]: [Reader<'_>; 4],
        inodes: u64,
        room: &mut Room,
    ) -> Result<Self, Malformed> {
        let mut all = Self { modes: Vec::new(), owners: Vec::new(), times: Vec::new(), xattrs: Vec::new() };
        let must_have_use = |values: usize| match values as u64 >= inodes {
            true => Err(Malformed("more values than inodes")),
            false => Ok(()),
        };
        while !modes.is_empty() {
            must_have_use(all.modes.len())?;
            all.modes.push(u16::try_from(modes.varint()?).map_err(|_| ENDS)?);
        }
        let id = |value: u64| u32::try_from(value).map_err(|_| ENDS);
        while !owners.is_empty() {
            must_have_use(all.owners.len())?;
            all.owners.push((id(owners.varint()?)?, id(owners.varint()?)?));
        }
        let mut last = 0i64;
        while !times.is_empty() {
            must_have_use(all.times.len())?;
            last = last.wrapping_add(times.signed()?);
            let nanoseconds = id(times.varint()?)?;
            if nanoseconds >= 1_000_000_000 {
                return Err(Malformed("nanoseconds of more than a second"));
            }
            all.times.push((last, nanoseconds));
        }
        while !xattrs.is_empty() {
            must_have_use(all.xattrs.len())?;
            let mut set = Xattrs::new();
            room.take_set()?;
            for _ in 0..xattrs.varint()? {
                let mut string = || -> Result<Vec<u8>, Malformed> {
                    let len = xattrs.len()?;
                    Ok(xattrs.take(len)?.to_vec())
                };
                let (name, value) = (string()?, string()?);
                room.take(1, name.len() + value.len())?;
                if set.insert(name, value).is_some() {
                    return Err(Malformed("an extended attribute twice"));
                }
            }
            all.xattrs.push(set);
        }
        Ok(all)
    }
}

impl Unpacker<'_> {
    fn walk(&mut self, count: u64) -> Result<Vec<Inode>, Malformed> {
        let mut inodes = Vec::new();
        let mut open = Vec::new();
        let kind = self.kinds.varint()?;
        self.inode(kind, &mut inodes, &mut open)?;
        if open.is_empty() {
            return Err(Malformed("the root is not a directory"));
        }
        while let Some(directory) = open.last_mut() {
            if directory.left == 0 {
                open.pop();
                continue;
            }
            directory.left -= 1;
            let name = self.names.string()?;
            must_be_name(name)?;
            self.room.take(1, name.len())?;
            if name <= directory.last.as_slice() {
                return Err(Malformed("names out of order"));
            }
            directory.last.clear();
            directory.last.extend_from_slice(name);
            let parent = directory.id;
            self.place.pass_name();
            let id = match self.kinds.varint()? {
                0 => self.link(&inodes)?,
                _ if inodes.len() as u64 == count => return Err(Malformed("more inodes than it says")),
                kind => self.inode(kind, &mut inodes, &mut open)?,
            };
            if open.len() > MAX_DEPTH + 1 {
                return Err(Malformed("directories are nested too deep"));
            }
            if let Some(Inode { content: Content::Directory(entries), .. }) = inodes.get_mut(parent) {
                entries.insert(name, id);
            }
        }
        if inodes.len() as u64 != count {
            return Err(Malformed("fewer inodes than it says"));
        }
        Ok(inodes)
    }

    /// Another name for an inode that has been read.
    fn link(&mut self, inodes: &[Inode]) -> Result<InodeId, Malformed> {
        let back = self.links.len()?;
        let id = inodes.len().checked_sub(back).filter(|id| *id != ROOT);
        match id.and_then(|id| inodes.get(id)) {
            Some(inode) if !matches!(inode.content, Content::Directory(_)) => Ok(inodes.len() - back),
            _ => Err(Malformed("a hard link that leads nowhere, or to a directory")),
        }
    }

    fn inode(&mut self, kind: u64, inodes: &mut Vec<Inode>, open: &mut Vec<Open>) -> Result<InodeId, Malformed> {
        self.room.take(Room::INODE, 0)?;
        let mode = *pick(&self.dictionaries.modes, kind.checked_sub(1).ok_or(ENDS)?)?;
        let (uid, gid) = *pick(&self.dictionaries.owners, self.owners.varint()?)?;
        let (mtime, mtime_nsec) = *pick(&self.dictionaries.times, self.times.varint()?)?;
        let xattrs = match self.xattrs.varint()? {
            0 => Xattrs::new(),
            number => {
                let xattrs = pick(&self.dictionaries.xattrs, number - 1)?;
                self.room.take_xattrs(xattrs)?;
                xattrs.clone()
            }
        };
        let id = inodes.len();
        let content = match mode >> 12 {
            1 => Content::Fifo,
            2 => Content::CharDevice(self.device_number()?),
            4 => {
                open.push(Open { id, left: self.counts.varint()?, last: Vec::new() });
                Content::Directory(Directory::default())
            }
            6 => Content::BlockDevice(self.device_number()?),
            8 => Content::File(self.file()?),
            10 => {
                let target = self.targets.string()?;
                must_be_target(target)?;
                self.room.take(0, target.len())?;
                Content::Symlink(target.to_vec())
            }
            12 => Content::Socket,
            _ => return Err(Malformed("an unknown file type")),
        };
        inodes.push(Inode { perm: mode & 0o7777, uid, gid, mtime, mtime_nsec, xattrs, content });
        Ok(id)
    }

    fn device_number(&mut self) -> Result<DeviceNumber, Malformed> {
        let mut number = || u32::try_from(self.device_numbers.varint()?).map_err(|_| ENDS);
        Ok(DeviceNumber { major: number()?, minor: number()? })
    }

    fn file(&mut self) -> Result<FileData, Malformed> {
        let size = *self.sizes.next().ok_or(ENDS)?;
        if size == 0 {
            return Ok(FileData::default());
        }
        let file = match self.shapes.varint()? {
            0 => {
                self.room.take(1, 0)?;
                let device = self.place.device;
                FileData::whole(size, device, self.device_data(device, size)?)
            }
            parts => {
                let (mut end, mut extents) = (0u64, Vec::new());
                for _ in 1..parts {
                    self.room.take(1, 0)?;
                    let file_offset = end.checked_add(self.parts.varint()?).ok_or(ENDS)?;
                    let len = self.parts.varint()?;
                    end = file_offset.checked_add(len).ok_or(ENDS)?;
                    let source = match self.parts.varint()? {
                        0 => {
                            let bytes = self.inline.take(usize::try_from(len).map_err(|_| ENDS)?)?;
                            self.room.take(0, bytes.len())?;
                            ExtentSource::Inline(bytes.to_vec())
                        }
                        device => {
                            let device = u16::try_from(device).map_err(|_| ENDS)?;
                            ExtentSource::Device { device, offset: self.device_data(device, len)? }
                        }
                    };
                    extents.push(Extent { file_offset, len, source });
                }
                FileData::new(size, extents)
            }
        };
        check_extents(&file, self.device_sizes)?;
        Ok(file)
    }

    fn device_data(&mut self, device: u16, len: u64) -> Result<u64, Malformed> {
        let offset = self.place.offset(device, self.positions.signed()?, len);
        offset.ok_or(Malformed("data at an impossible place"))
    }

    fn is_empty(&self) -> bool {
        let names = [&self.names, &self.counts, &self.kinds, &self.links];
        let inodes = [&self.owners, &self.times, &self.xattrs, &self.targets, &self.device_numbers];
        let files = [&self.shapes, &self.parts, &self.positions, &self.inline];
        self.sizes.len() == 0 && names.into_iter().chain(inodes).chain(files).all(Reader::is_empty)
    }
}

fn pick<T>(values: &[T], number: u64) -> Result<&T, Malformed> {
    usize::try_from(number).ok().and_then(|number| values.get(number)).ok_or(ENDS)
}

/// Checks a file name.
fn must_be_name(name: &[u8]) -> Result<(), &'static str> {
    let bad = name.is_empty() || name.len() > 255 || matches!(name, b"." | b"..");
    if bad || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err("a name that no file can have");
    }
    Ok(())
}

/// Checks a symlink's target.
fn must_be_target(target: &[u8]) -> Result<(), &'static str> {
    if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) {
        return Err("a symlink's target that no link can have");
    }
    Ok(())
}

/// Checks a file's extents.
fn check_extents(file: &FileData, device_sizes: &[u64]) -> Result<(), &'static str> {
    let mut position = 0;
    for extent in file.extents() {
        let end = extent.file_offset.checked_add(extent.len).filter(|end| *end <= file.size());
        let end = end.ok_or("an extent beyond the end of its file")?;
        if extent.len == 0 || extent.file_offset < position {
            return Err("extents that are empty, overlap or are out of order");
        }
        position = end;
        match &extent.source {
            ExtentSource::Device { device, offset } => {
                let size = device.checked_sub(1).and_then(|n| device_sizes.get(usize::from(n)));
                if size.is_none_or(|size| offset.checked_add(extent.len).is_none_or(|end| end > *size)) {
                    return Err("an extent outside its device");
                }
                if offset % UNIT != 0 {
                    return Err("an extent that isn't on a 512-byte boundary of its device");
                }
            }
            ExtentSource::Inline(bytes) if bytes.len() as u64 != extent.len => {
                return Err("an extent of another length than its bytes");
            }
            ExtentSource::Inline(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::columns::put_column;
    use super::super::wire::put_varint;
    use super::*;

    /// A tree of so many inodes whose column `number` is as given; all others are empty.
    fn with_column(inodes: u64, number: usize, column: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, inodes);
        put_varint(&mut bytes, 0);
        (0..22).for_each(|n| put_column(&mut bytes, if n == number { column } else { &[] }));
        bytes
    }

    #[test]
    fn little_bytes_that_claim_much_are_refused() {
        let refusal = |bytes: &[u8]| match unpack(bytes, &mut Room::WHOLE.clone()) {
            Err(PackError::Corrupt(what)) => what,
            other => panic!("{other:?}"),
        };
        // Dictionaries: modes, owners, times, and sets of extended attributes, each of which takes a map.
        for number in 0..4 {
            let bytes = with_column(9, number, &vec![0; 1 << 20]);
            assert!(bytes.len() < 100);
            assert_eq!(refusal(&bytes), "more values than inodes", "{number}");
        }
        assert_eq!(refusal(&with_column(9, 17, &vec![0; 1 << 20])), "more numbers than there may be");
        // As many sets as inodes take more room than there is.
        let mut room = Room::WHOLE;
        while room.take(1 << 20, 0).is_ok() {}
        let bytes = with_column(Room::INODES, 3, &vec![0; 1 << 20]);
        assert!(matches!(unpack(&bytes, &mut room), Err(PackError::Corrupt(what)) if what.contains("1 GiB")));
        let many = [&[1, 1][..], b"a", &[0]].concat().repeat(1 << 20);
        assert!(refusal(&with_column(Room::INODES, 3, &many.repeat(2))).contains("1 GiB"));
    }
}
