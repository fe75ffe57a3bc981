//! Pipes and FIFOs: how much is in them, how they are made as large as they may be, how pages move between them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;

/// What we ask for, in bytes: the largest that an unprivileged user may have by default, `pipe(7)`.
const WANTED_CAPACITY: i32 = 1 << 20;

nix::ioctl_read_bad!(
    /// Safe to call with any open fd and a valid pointer; `ioctl_fifo`/`FIONREAD` writes one int.
    fionread,
    libc::FIONREAD,
    libc::c_int
);

/// A pipe, as large as the limits allow, close-on-exec, both ends blocking: the process's end must be.
///
/// # Errors
/// As `pipe2(2)`. A pipe that cannot be enlarged (the user's share of pipe pages is used up) is no error.
pub fn large_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    enlarge(&write);
    Ok((read, write))
}

/// Makes a pipe or FIFO as large as the limits allow, but never smaller, and returns how many bytes it holds then; 0 if
/// it is neither. What is in it stays in it.
pub fn enlarge(fd: impl AsFd) -> usize {
    let Ok(present) = fcntl(fd.as_fd(), FcntlArg::F_GETPIPE_SZ) else { return 0 };
    let mut wanted = WANTED_CAPACITY;
    while wanted > present {
        match fcntl(fd.as_fd(), FcntlArg::F_SETPIPE_SZ(wanted)) {
            Ok(capacity) => return usize::try_from(capacity).unwrap_or(0),
            Err(_) => wanted /= 2,
        }
    }
    usize::try_from(present).unwrap_or(0)
}

/// Sets `O_NONBLOCK` on the open file description.
///
/// # Errors
/// As `fcntl(2)`.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// How many bytes wait in a pipe or FIFO (asked at either end) or a terminal.
///
/// # Errors
/// As `ioctl(2)`.
pub fn unread(fd: impl AsFd) -> io::Result<usize> {
    let mut count = 0;
    // SAFETY: the fd is open for the time of the call, and the pointer is to a live int, which is all FIONREAD writes.
    unsafe { fionread(fd.as_fd().as_raw_fd(), &raw mut count) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Reads up to `len` bytes behind what is in `buffer`, without writing zeros there first, as a slice for a safe read would
/// need. 0: the end.
///
/// # Errors
/// As `read(2)`.
pub fn read_behind(fd: impl AsFd, buffer: &mut Vec<u8>, len: usize) -> nix::Result<usize> {
    buffer.reserve(len);
    let room = &mut buffer.spare_capacity_mut()[..len];
    // SAFETY: the fd is open for the time of the call, and the pointer is to `len` bytes that are this function's to write.
    let count = unsafe { libc::read(fd.as_fd().as_raw_fd(), room.as_mut_ptr().cast(), len) };
    let count = usize::try_from(Errno::result(count)?).unwrap_or(0);
    let filled = buffer.len() + count;
    // SAFETY: so many bytes of the spare capacity were written just now, read(2).
    unsafe { buffer.set_len(filled) };
    Ok(count)
}

/// Moves up to `len` bytes from one pipe to another without copying them, never blocking.
///
/// # Errors
/// As `splice(2)`: `WouldBlock` if the source is empty or the target full, `BrokenPipe` without a reader.
pub fn move_pages(from: impl AsFd, to: impl AsFd, len: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, len, flags)?)
}

/// Moves up to `len` bytes from a pipe into a file, from byte `at` on, never waiting for the pipe. What could not be
/// written is still in the pipe. 0: nobody has the write end any more.
///
/// # Errors
/// As `splice(2)`: `WouldBlock` if the pipe is empty, `InvalidInput` if the filesystem takes no pages.
pub fn move_to_file(pipe: impl AsFd, file: impl AsFd, at: u64, len: usize) -> io::Result<usize> {
    let mut at = i64::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(pipe, None, file, Some(&mut at), len, flags)?)
}

/// Moves up to `len` bytes of a file, from byte `at` on, into a pipe without copying them, never waiting for the pipe. What
/// is in the pipe then are the file's own pages: they must not be written to again. 0: the file ends there.
///
/// # Errors
/// As `splice(2)`: `WouldBlock` if the pipe is full, `BrokenPipe` without a reader.
pub fn move_from_file(file: impl AsFd, at: u64, pipe: impl AsFd, len: usize) -> io::Result<usize> {
    let mut at = i64::try_from(at).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(file, Some(&mut at), pipe, None, len, flags)?)
}

/// Whether a read would not wait now: there are bytes, or it is the end.
pub fn is_readable(fd: impl AsFd) -> bool {
    is_ready(fd, PollFlags::POLLIN)
}

/// Whether a write would not wait now: there is room, or nobody reads.
pub fn is_writable(fd: impl AsFd) -> bool {
    is_ready(fd, PollFlags::POLLOUT)
}

fn is_ready(fd: impl AsFd, events: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), events)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
