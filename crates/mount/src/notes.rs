//! What is noted of the reads of an image: which bytes were touched, in the order of first touch, and which took long.
//!
//! Both drivers ask for bytes of devices in the end, so that is where reads are noted; which files they are of is worked
//! out when somebody wants to know. A read of what was touched before costs a few loads.
use crate::{LazyDevice, LazyError};
use clipper_format::{
    erofs::{ErofsError, FileKind, Image, ImageSource},
    trace::{CUT_OFF, Touch, write_trace},
};
use std::{
    collections::HashSet,
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::task::spawn_blocking;

/// Granularity of what was touched: tar content is aligned so, and small files are next to each other.
const BLOCK: u64 = 512;
/// Blocks of a page of marks: those of 16 MiB.
const PAGE: u64 = 32 << 10;
/// Ranges that are kept; what is touched after that many isn't told.
const RANGES_MAX: usize = 1 << 16;
/// The file of a slow read is looked for no more often than this: that goes through the whole tree.
const LOOK: Duration = Duration::from_secs(1);

/// An image may be starting for so long after it was mounted: what is read of it for the first time then, at hand or not,
/// puts off background fill, which a container that computes mustn't find at work. Not for ever: on a node with many
/// containers some read something new all the time.
const START_UP: Duration = Duration::from_secs(30);

/// The notes of one image, for as long as it is mounted.
pub(crate) struct Notes {
    image: Arc<str>,
    tree: Image,
    marks: Vec<Marks>,
    order: Mutex<Order>,
    looked: Mutex<Option<Instant>>,
    since: Instant,
}

/// Which blocks of a device were touched.
struct Marks(Vec<OnceLock<Box<[AtomicU64]>>>);

#[derive(Default)]
struct Order {
    /// Number of the device, from 0, and bytes of it.
    ranges: Vec<(usize, Range<u64>)>,
    full: bool,
}

/// What was read of an image since it was mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touches {
    /// Ranges of files, in the order of first touch.
    pub ranges: Vec<Touch>,
    /// Whether there were more than are kept.
    pub cut_off: bool,
}

impl Touches {
    /// As a trace, with a comment at its end if it is cut off.
    pub fn text(&self) -> Vec<u8> {
        let mut text = write_trace(&self.ranges);
        if self.cut_off {
            text.extend_from_slice(CUT_OFF.as_bytes());
        }
        text
    }
}

/// A part of a file, where it lies.
struct Place {
    device: usize,
    bytes: Range<u64>,
    file_offset: u64,
    /// Number of the path.
    path: usize,
}

/// Where all files of a tree lie, sorted by device and offset.
struct Places {
    places: Vec<Place>,
    paths: Vec<Vec<u8>>,
}

impl Notes {
    /// Of an image called `image`, with this tree.
    pub(crate) fn new(image: Arc<str>, tree: Image) -> Self {
        let marks = tree.devices().iter().map(|device| Marks::new(device.size)).collect();
        Self { image, tree, marks, order: Mutex::default(), looked: Mutex::default(), since: Instant::now() }
    }

    /// What the image is called.
    pub(crate) fn image(&self) -> &Arc<str> {
        &self.image
    }

    /// Fills `buffer` from `offset` of device `number` if all of that is at hand; doesn't wait.
    pub(crate) fn try_read(
        &self,
        number: usize,
        device: &LazyDevice,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<bool, LazyError> {
        let read = device.try_read(offset, buffer)?;
        if read && self.touch(number, offset..offset + buffer.len() as u64) && self.since.elapsed() < START_UP {
            device.device.put_off_fill();
        }
        Ok(read)
    }

    /// Fills `buffer` from `offset` of device `number`, fetching what isn't at hand.
    pub(crate) async fn read(
        self: &Arc<Self>,
        number: usize,
        device: &LazyDevice,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), LazyError> {
        let bytes = offset..offset + buffer.len() as u64;
        self.touch(number, bytes.clone());
        let began = Instant::now();
        let read = device.read(offset, buffer).await;
        let took = began.elapsed();
        if took >= device.device.slow_read() {
            let (notes, device) = (Arc::clone(self), device.clone());
            spawn_blocking(move || notes.tell_of_slow(number, &device, bytes, took));
        }
        read
    }

    /// Notes a read; whether it was of anything new.
    fn touch(&self, number: usize, bytes: Range<u64>) -> bool {
        let Some(marks) = self.marks.get(number) else { return false };
        let blocks = bytes.start / BLOCK..bytes.end.div_ceil(BLOCK);
        if blocks.clone().all(|block| marks.has(block)) {
            return false;
        }
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let new = blocks.filter(|block| marks.set(*block)).count();
        let Order { ranges, full } = &mut *order;
        let room = ranges.len() < RANGES_MAX;
        match ranges.last_mut() {
            _ if new == 0 => {}
            Some((last, range)) if *last == number && range.end == bytes.start => range.end = bytes.end,
            _ if room => ranges.push((number, bytes)),
            _ => *full = true,
        }
        new > 0
    }

    /// What was read so far. Goes through the whole tree: blocks for a moment.
    pub(crate) fn touches(&self) -> Result<Touches, ErofsError> {
        let (ranges, cut_off) = {
            let order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
            (order.ranges.clone(), order.full)
        };
        let places = Places::of(&self.tree)?;
        let mut touches: Vec<Touch> = Vec::new();
        for (device, bytes) in ranges {
            for (path, range) in places.within(device, &bytes) {
                match touches.last_mut() {
                    Some(last) if last.path == path && last.range.end == range.start => last.range.end = range.end,
                    _ => touches.push(Touch { path: path.to_vec(), range }),
                }
            }
        }
        Ok(Touches { ranges: touches, cut_off })
    }

    /// Logs a slow read, with the file if none was looked for just before.
    fn tell_of_slow(&self, number: usize, device: &LazyDevice, bytes: Range<u64>, took: Duration) {
        let host = device.device.count_slow_read();
        let look = {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            let look = looked.is_none_or(|looked| looked.elapsed() >= LOOK);
            if look {
                *looked = Some(Instant::now());
            }
            look
        };
        let places = look.then(|| Places::of(&self.tree).ok()).flatten();
        let file = places.as_ref().and_then(|places| places.within(number, &bytes).next());
        let (image, layer) = (&self.image, device.layer);
        let (host, ms) = (host.as_deref().unwrap_or("nobody yet"), took.as_millis() as u64);
        let range = |range: &Range<u64>| format!("{}+{}", range.start, range.end - range.start);
        let in_layer = range(&bytes);
        match file {
            Some((path, in_file)) => {
                let (file, in_file) = (String::from_utf8_lossy(path), range(&in_file));
                tracing::warn!(%image, %layer, %file, in_file, in_layer, host, ms, "a read was slow");
            }
            None => tracing::warn!(%image, %layer, in_layer, host, ms, "a read was slow"),
        }
    }
}

impl Marks {
    fn new(size: u64) -> Self {
        let pages = size.div_ceil(PAGE * BLOCK);
        Self((0..pages).map(|_| OnceLock::new()).collect())
    }

    fn has(&self, block: u64) -> bool {
        let page = self.0.get((block / PAGE) as usize).and_then(OnceLock::get);
        let word = page.and_then(|page| page.get((block % PAGE / 64) as usize));
        word.is_some_and(|word| word.load(Relaxed) >> (block % 64) & 1 == 1)
    }

    /// Marks a block; whether it wasn't yet.
    fn set(&self, block: u64) -> bool {
        let Some(page) = self.0.get((block / PAGE) as usize) else { return false };
        let page = page.get_or_init(|| (0..PAGE / 64).map(|_| AtomicU64::new(0)).collect());
        let bit = 1 << (block % 64);
        page.get((block % PAGE / 64) as usize).is_some_and(|word| word.fetch_or(bit, Relaxed) & bit == 0)
    }
}

impl Places {
    fn of(tree: &Image) -> Result<Self, ErofsError> {
        let (mut places, mut paths) = (Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        let mut todo = vec![(tree.root(), Vec::new())];
        while let Some((directory, path)) = todo.pop() {
            for entry in tree.entries(&tree.inode(directory)?, 0)? {
                let entry = entry?;
                if matches!(entry.name, b"." | b"..") {
                    continue;
                }
                let child = [&path[..], b"/", entry.name].concat();
                match entry.kind {
                    FileKind::Directory => todo.push((entry.nid, child)),
                    // Of several names the first counts.
                    FileKind::File if seen.insert(entry.nid) => {
                        let inode = tree.inode(entry.nid)?;
                        for extent in tree.extents(&inode, 0..inode.size)? {
                            let ImageSource::Device { device, offset } = extent.source else { continue };
                            let (device, bytes) = (usize::from(device) - 1, offset..offset.saturating_add(extent.len));
                            places.push(Place { device, bytes, file_offset: extent.file_offset, path: paths.len() });
                        }
                        paths.push(child);
                    }
                    _ => {}
                }
            }
        }
        places.sort_unstable_by_key(|place| (place.device, place.bytes.start));
        Ok(Self { places, paths })
    }

    /// The parts of files that lie in these bytes.
    fn within<'a>(
        &'a self,
        device: usize,
        bytes: &Range<u64>,
    ) -> impl Iterator<Item = (&'a [u8], Range<u64>)> + use<'a> {
        let Range { start, end } = *bytes;
        // Files don't overlap: at most the one before the first that begins behind `start` reaches into it.
        let first = self.places.partition_point(|place| (place.device, place.bytes.end) <= (device, start));
        let rest = self.places[first..].iter();
        rest.take_while(move |place| (place.device, place.bytes.start) < (device, end)).filter_map(move |place| {
            let (from, to) = (place.bytes.start.max(start), place.bytes.end.min(end));
            let at = |offset: u64| place.file_offset + (offset - place.bytes.start);
            (from < to).then(|| (&self.paths[place.path][..], at(from)..at(to)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clipper_format::{erofs, tree::Tree};

    fn notes(sizes: &[u64]) -> Notes {
        let tree = Image::parse(erofs::write(&Tree::empty()).unwrap().into()).unwrap();
        let marks = sizes.iter().map(|size| Marks::new(*size)).collect();
        Notes { marks, ..Notes::new("image".into(), tree) }
    }

    #[test]
    fn bytes_count_when_they_are_touched_first() {
        let notes = notes(&[100 << 20, 4096]);
        let reads = [
            (0, 512..4608),
            (0, 4608..8704),
            (1, 0..4096),
            (0, 512..8704),
            (0, (80 << 20)..(80 << 20) + 512),
            // Behind the end, and of no device: nothing.
            (1, 1 << 40..(1 << 40) + 1),
            (7, 0..512),
            (0, 0..1024),
        ];
        for (device, bytes) in reads {
            notes.touch(device, bytes);
        }
        let order = notes.order.lock().unwrap().ranges.clone();
        assert_eq!(order, [(0, 512..8704), (1, 0..4096), (0, (80 << 20)..(80 << 20) + 512), (0, 0..1024)]);
    }

    #[test]
    fn ranges_are_bounded() {
        let notes = notes(&[1 << 30]);
        for n in 0..RANGES_MAX as u64 + 5 {
            notes.touch(0, n * 2048..n * 2048 + 512);
        }
        let order = notes.order.lock().unwrap();
        assert!(order.full && order.ranges.len() == RANGES_MAX);
    }

    #[test]
    fn bytes_of_a_device_lead_to_files() {
        let place = |device, bytes, file_offset, path| Place { device, bytes, file_offset, path };
        let places = Places {
            places: vec![place(0, 512..1000, 0, 0), place(0, 1536..5000, 4096, 1), place(1, 0..100, 0, 0)],
            paths: vec![b"/a".to_vec(), b"/b".to_vec()],
        };
        let within = |device, bytes| places.within(device, &bytes).collect::<Vec<_>>();
        assert_eq!(within(0, 0..2048), [(&b"/a"[..], 0..488), (&b"/b"[..], 4096..4608)]);
        assert_eq!(within(0, 4000..9000), [(&b"/b"[..], 6560..7560)]);
        assert_eq!(within(0, 1000..1536), []);
        assert_eq!(within(1, 50..4096), [(&b"/a"[..], 50..100)]);
    }
}
