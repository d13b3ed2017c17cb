//! Threads of a killed process that wait for an answer which that process itself would have given: it isn't gone, with all
//! its locks, before they are answered.
use crate::fuse::{MAX_READ, resend};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
};
use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

/// Bytes of a request's header, and of an answer without content (`struct fuse_in_header`, `struct fuse_out_header` of
/// `include/uapi/linux/fuse.h`).
const HEADER: usize = 40;
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// Answers what threads of the dead process `pid` ask through `connection`, with an error; tells how often. What others
/// ask stays for the process that takes the connection over. Nobody else may read from the connection meanwhile.
///
/// # Errors
/// If the connection is broken.
pub fn free_threads_of(pid: u32, connection: BorrowedFd<'_>) -> io::Result<usize> {
    resend(connection)?;
    let mut buffer = vec![0; MAX_READ as usize + (64 << 10)];
    let mut freed = 0;
    while is_readable(connection)? {
        let len = match rustix::io::read(connection, &mut buffer) {
            Ok(len) => len,
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
            Err(error) => return Err(error.into()),
        };
        let Some((opcode, unique, thread)) = parse(&buffer[..len]) else { continue };
        let is_ours = Path::new(&format!("/proc/{pid}/task/{thread}")).exists();
        if !matches!(opcode, FORGET | INTERRUPT | BATCH_FORGET) && is_ours {
            match rustix::io::write(connection, &interrupted(unique)) {
                // It was answered by an interruption meanwhile.
                Ok(_) | Err(Errno::NOENT) => freed += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(freed)
}

fn is_readable(connection: BorrowedFd<'_>) -> io::Result<bool> {
    let connection = connection.as_fd();
    let mut polled = [PollFd::new(&connection, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&Timespec::default()))?;
    Ok(polled[0].revents() == PollFlags::IN)
}

/// What is asked, the question's number, and the thread that asks.
fn parse(request: &[u8]) -> Option<(u32, u64, u32)> {
    let header = request.first_chunk::<HEADER>()?;
    let u32_at = |at: usize| Some(u32::from_ne_bytes(*header.get(at..)?.first_chunk()?));
    let unique = u64::from_ne_bytes(*header.get(8..)?.first_chunk()?);
    Some((u32_at(4)?, unique, u32_at(32)?))
}

/// The answer that a request was interrupted.
fn interrupted(unique: u64) -> [u8; 16] {
    let mut answer = [0; 16];
    answer[..4].copy_from_slice(&16u32.to_ne_bytes());
    answer[4..8].copy_from_slice(&(-Errno::INTR.raw_os_error()).to_ne_bytes());
    answer[8..].copy_from_slice(&unique.to_ne_bytes());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_laid_out_as_the_kernel_has_them() {
        let mut request = vec![0; HEADER + 8];
        request[4..8].copy_from_slice(&15u32.to_ne_bytes());
        request[8..16].copy_from_slice(&(1u64 << 63 | 42).to_ne_bytes());
        request[32..36].copy_from_slice(&4711u32.to_ne_bytes());
        assert_eq!(parse(&request), Some((15, 1 << 63 | 42, 4711)));
        assert_eq!(parse(&request[..HEADER - 1]), None);
        let answer = interrupted(1 << 63 | 42);
        assert_eq!(i32::from_ne_bytes(answer[4..8].try_into().unwrap()), -4);
        assert_eq!(u64::from_ne_bytes(answer[8..].try_into().unwrap()), 1 << 63 | 42);
    }
}
