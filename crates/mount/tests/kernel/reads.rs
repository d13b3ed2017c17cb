//! Every way of reading gives the bytes of the layer.
use crate::{
    fixture::{Image, Node, Packing},
    tarball::Entry,
    walk::noise,
};
use clipper_mount::Driver;
use rustix::fs::{Mode, OFlags};
use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    thread,
};

const SIZE: usize = 5_000_123;

fn image() -> (Image, Vec<u8>) {
    let content = noise(11, SIZE);
    let entries = [Entry::dir("."), Entry::file("before", noise(12, 333)), Entry::file("file", content.clone())];
    (Image::gzip(&entries), content)
}

async fn direct_reads_bypass_the_page_cache_and_give_the_same_bytes(driver: Driver) {
    let (image, content) = image();
    let node = Node::new(driver);
    let mounted = node.mount(&image).await;
    let flags = OFlags::RDONLY | OFlags::DIRECT;
    let opened = rustix::fs::open(mounted.dir().join("file"), flags, Mode::empty());
    if driver == Driver::Erofs && opened.is_err() {
        // EROFS on a file can't; who asks for it reads as usual then, as on a tmpfs.
        return assert_eq!(opened.err(), Some(rustix::io::Errno::INVAL));
    }
    let file = File::from(opened.unwrap());
    for (offset, len) in [(0, 4096), (1 << 20, 3 << 20), (4_998_144, 4096), (12_288, 65_536)] {
        let mut buffer = vec![0xee; len];
        let read = file.read_at(&mut buffer, offset as u64).unwrap();
        let end = (offset + len).min(SIZE);
        assert_eq!(read, end - offset);
        assert!(buffer[..read] == content[offset..end], "{offset}+{len}");
    }
}

async fn a_mapped_file_holds_the_bytes_and_zeros_behind_its_end(driver: Driver) {
    let (image, content) = image();
    let node = Node::new(driver);
    let mounted = node.mount(&image).await;
    let file = File::open(mounted.dir().join("file")).unwrap();
    let mapped = map(&file, SIZE.next_multiple_of(4096));
    // From the end to the start: page faults, not a sequential reader.
    for page in (0..SIZE.div_ceil(4096)).rev().step_by(7) {
        let range = page * 4096..SIZE.min((page + 1) * 4096);
        assert!(mapped[range.clone()] == content[range], "page {page}");
    }
    assert!(mapped[SIZE..].iter().all(|byte| *byte == 0));
}

/// Maps `len` bytes of `file`, for the rest of the process.
fn map(file: &File, len: usize) -> &'static [u8] {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    // SAFETY: a new private read-only mapping that is never unmapped, of a file that can't change.
    #[expect(unsafe_code, reason = "mmap(2)")]
    unsafe {
        let start = mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, file, 0).unwrap();
        std::slice::from_raw_parts(start.cast::<u8>(), len)
    }
}

async fn readers_side_by_side_at_random_places_all_get_their_bytes(driver: Driver) {
    let (image, content) = image();
    let node = Node::new(driver);
    let mounted = node.mount(&image).await;
    let path = mounted.dir().join("file");
    thread::scope(|scope| {
        for reader in 0..8u64 {
            let (path, content) = (&path, &content);
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let mut state = reader + 1;
                for _ in 0..100 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let offset = (state >> 33) as usize % (SIZE + 5000);
                    let mut buffer = vec![0; (state >> 12) as usize % 70_000];
                    let read = read_full(&file, &mut buffer, offset);
                    let expected = &content[offset.min(SIZE)..(offset + buffer.len()).min(SIZE)];
                    assert!(buffer[..read] == *expected, "{offset}+{}", buffer.len());
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let mut all = Vec::new();
                File::open(&path).unwrap().read_to_end(&mut all).unwrap();
                assert!(all == content);
            });
        }
    });
}

/// Reads until the buffer is full or the file ends.
fn read_full(file: &File, buffer: &mut [u8], offset: usize) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], (offset + done) as u64).unwrap() {
            0 => break,
            read => done += read,
        }
    }
    done
}

async fn a_file_without_holes_is_all_data_to_who_looks_for_holes(driver: Driver) {
    let (image, _) = image();
    let node = Node::new(driver);
    let mounted = node.mount(&image).await;
    let file = File::open(mounted.dir().join("file")).unwrap();
    let size = SIZE as u64;
    use rustix::fs::{SeekFrom as From, seek};
    use rustix::io::Errno;
    assert_eq!(seek(&file, From::Data(77)), Ok(77));
    assert_eq!(seek(&file, From::Hole(77)), Ok(size));
    assert_eq!(seek(&file, From::Data(size)), Err(Errno::NXIO));
    assert_eq!(seek(&file, From::Hole(size + 1)), Err(Errno::NXIO));
    assert_eq!((&file).seek(SeekFrom::End(-1)).unwrap(), size - 1);
}

async fn what_was_read_once_is_there_after_a_restart_without_any_registry(driver: Driver) {
    let content = noise(21, 400_000);
    let lower = [Entry::dir("."), Entry::file("read", content.clone()), Entry::file("unread", noise(22, 2_000_000))];
    let upper = [Entry::file("stored", noise(23, 100_000))];
    let image = Image::new(&[(&lower, Packing::Gzip), (&upper, Packing::Tar)]);
    let node = Node::new(driver);
    let mounted = node.mount(&image).await;
    assert!(std::fs::read(mounted.dir().join("read")).unwrap() == content);
    assert!(std::fs::read(mounted.dir().join("stored")).unwrap() == noise(23, 100_000));
    node.store.flush().await.unwrap();
    mounted.unmount().unwrap();
    mounted.ended().await;
    drop(mounted);

    image.unplug();
    let node = node.restarted();
    let mounted = node.mount(&image).await;
    assert!(std::fs::read(mounted.dir().join("read")).unwrap() == content);
    assert!(std::fs::read(mounted.dir().join("stored")).unwrap() == noise(23, 100_000));
    let error = std::fs::read(mounted.dir().join("unread")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
}

over_both_drivers! {
    direct_reads_bypass_the_page_cache_and_give_the_same_bytes,
    a_mapped_file_holds_the_bytes_and_zeros_behind_its_end,
    readers_side_by_side_at_random_places_all_get_their_bytes,
    a_file_without_holes_is_all_data_to_who_looks_for_holes,
    what_was_read_once_is_there_after_a_restart_without_any_registry,
}
