//! A killed process whose thread waits for what the process itself should answer.
use rustix::{
    fs::{Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
    process::{Pid, Signal, kill_process},
};
use std::{
    fs::{self, File},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Bytes of an answer's header, and of the answer to a handshake (`include/uapi/linux/fuse.h`).
const HEADER: usize = 16;
const INIT: usize = 64;

/// The answer to the handshake in `request`: the protocol's version, and writes of a page.
fn handshake(request: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; HEADER + INIT];
    answer[..4].copy_from_slice(&((HEADER + INIT) as u32).to_ne_bytes());
    answer[8..16].copy_from_slice(&request[8..16]);
    for (at, value) in [(0, 7u32), (4, 38), (20, 4096)] {
        answer[HEADER + at..][..4].copy_from_slice(&value.to_ne_bytes());
    }
    answer
}

#[test]
#[ignore = "started and killed by another test"]
fn a_process_that_waits_for_itself() {
    let connection = rustix::stdio::stdin();
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value).unwrap();
    for (key, value) in [("fd", "0"), ("rootmode", "40755"), ("user_id", "0"), ("group_id", "0")] {
        set(key, value);
    }
    rustix::mount::fsconfig_create(&context).unwrap();
    let root = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let mut buffer = vec![0; 64 << 10];
    let len = rustix::io::read(connection, &mut buffer).unwrap();
    rustix::io::write(connection, &handshake(&buffer[..len])).unwrap();
    let path = format!("/proc/self/fd/{}/name", root.as_raw_fd());
    let waiting = thread::spawn(move || File::open(path));
    rustix::io::read(connection, &mut buffer).unwrap();
    // The question has been read, and nobody is going to answer.
    fs::write(std::env::var_os("CLIPPER_TEST_READY").unwrap(), "").unwrap();
    waiting.join().unwrap().unwrap_err();
    drop(root);
}

/// Whether the process is gone within this time.
fn is_gone(child: &mut Child, within: Duration) -> bool {
    let start = Instant::now();
    while start.elapsed() < within {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn a_dead_process_that_waits_for_itself_is_let_go() {
    let connection: OwnedFd = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let ready = scratch.path().join("ready");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "stuck::a_process_that_waits_for_itself"])
        .env("CLIPPER_TEST_READY", &ready)
        .stdin(Stdio::from(connection.try_clone().unwrap()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !ready.exists() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it doesn't come so far");
        thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    let gone_by_itself = is_gone(&mut child, Duration::from_millis(300));
    let freed = clipper_mount::free_threads_of(child.id(), connection.as_fd()).unwrap();
    assert!(is_gone(&mut child, Duration::from_secs(20)), "it still waits");
    assert!(!gone_by_itself && freed == 1, "gone by itself: {gone_by_itself}, freed: {freed}");
}
