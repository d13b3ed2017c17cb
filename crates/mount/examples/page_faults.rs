//! Maps files and touches every page of them, for the benches: the names on standard input, one a line. Prints seconds, and
//! how many pages there were. An example of this room, because no other may map memory.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::{fs::File, hint::black_box, io, time::Instant};

const PAGE: usize = 4096;

fn main() -> io::Result<()> {
    let files = io::stdin().lines().map(|name| File::open(name?)).collect::<io::Result<Vec<_>>>()?;
    let begun = Instant::now();
    let mut pages = 0;
    for file in &files {
        pages += touch(file)?;
    }
    println!("{} {pages}", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Reads one byte of every page.
fn touch(file: &File) -> io::Result<usize> {
    let len = file.metadata()?.len() as usize;
    if len == 0 {
        return Ok(0);
    }
    // SAFETY: a new private read-only mapping of a file in an image, which can't change; gone before it goes.
    #[expect(unsafe_code, reason = "mmap(2)")]
    unsafe {
        let start = mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, file, 0)?;
        let bytes = std::slice::from_raw_parts(start.cast::<u8>(), len);
        for page in bytes.chunks(PAGE) {
            black_box(page[0]);
        }
        munmap(start, len)?;
    }
    Ok(len.div_ceil(PAGE))
}
