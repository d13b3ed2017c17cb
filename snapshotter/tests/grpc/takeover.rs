//! What runs while daemons die and others take over.
use crate::{
    daemon::{Daemon, Labels, Mounted},
    image::{Image, Source, noise},
};
use clipper_tests::{scratch::mounts_below, tarball::Entry};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const LARGE: usize = 24 << 20;

fn image() -> Image {
    let lower = [Entry::file("large", noise(1, LARGE)), Entry::file("cold", noise(2, 2_000_000))];
    let upper = [Entry::file("small", noise(3, 300_000)), Entry::dir("dir"), Entry::file("dir/a", noise(4, 5000))];
    Image::new(&[Source::Indexed(&lower), Source::Indexed(&upper)])
}

/// A reader of a file that looks at every byte it gets, until it is dropped.
struct Reader {
    done: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Reader {
    /// Reads pieces of `path`, all over it, past the kernel's cache if `cold`.
    fn start(path: PathBuf, expected: Arc<Vec<u8>>, cold: bool) -> Self {
        let (done, reads) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stop, count) = (Arc::clone(&done), Arc::clone(&reads));
        let thread = thread::spawn(move || {
            let file = File::open(&path).map_err(|error| format!("open: {error}"))?;
            let mut at = 0;
            while !stop.load(Ordering::Relaxed) {
                at = (at + 7_654_321) % (expected.len() - 40_000);
                if cold {
                    let _ = rustix::fs::fadvise(&file, at as u64, None, rustix::fs::Advice::DontNeed);
                }
                let mut buffer = vec![0; 40_000];
                file.read_exact_at(&mut buffer, at as u64).map_err(|error| format!("read at {at}: {error}"))?;
                if buffer != expected[at..at + buffer.len()] {
                    return Err(format!("wrong bytes at {at}"));
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { done, reads, thread: Some(thread) }
    }

    /// Waits for a read that began after this call.
    #[track_caller]
    fn goes_on(&self) {
        let (before, deadline) = (self.reads.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(20));
        while self.reads.load(Ordering::Relaxed) < before + 2 {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!ended && Instant::now() < deadline, "the reader ended: {ended}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[track_caller]
    fn end(mut self) {
        self.done.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_only_see_a_pause_when_daemons_are_killed() {
    let (mut daemon, mut client) = Daemon::start().await;
    let image = image();
    let pulled = client.pull(&image, "default").await;
    let mounts = client.prepare("container", pulled.top(), &Labels::new()).await.unwrap();
    let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
    let large = Arc::new(noise(1, LARGE));
    let held = File::open(mounted.path("cold")).unwrap();
    let readers: Vec<_> =
        [false, true].map(|cold| Reader::start(mounted.path("large"), Arc::clone(&large), cold)).into();
    for round in 0..4 {
        readers.iter().for_each(Reader::goes_on);
        daemon.kill_serving();
        readers.iter().for_each(Reader::goes_on);
        // A file that was open before, a piece of it that nobody has read.
        let mut piece = [0; 3000];
        held.read_exact_at(&mut piece, round * 400_000).unwrap();
        assert_eq!(piece[..], noise(2, 2_000_000)[round as usize * 400_000..][..3000]);
        assert_eq!(mounts_below(&daemon.root("mounts")).len(), 1);
    }
    readers.into_iter().for_each(Reader::end);
    // The others are served as before, and the service goes on by the same connection.
    assert_eq!(fs::read(mounted.path("small")).unwrap(), noise(3, 300_000));
    assert_eq!(mounted.names("dir"), ["a"]);
    assert_eq!(client.mounts("container").await.unwrap(), mounts);
    assert_eq!(client.names(&[]).await.len(), 3);
    drop((held, mounted));
    client.remove("container").await.unwrap();
    for name in pulled.names.iter().rev() {
        client.remove(name).await.unwrap();
    }
    assert_eq!(mounts_below(&daemon.root("mounts")).len(), 0);
    assert!(daemon.process().is_alive());
    daemon.stop();
}
