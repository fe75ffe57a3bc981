//! Pipes and FIFOs: how much is in them, how they are made as large as they may be, how pages move between them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// What we ask for, in bytes: the largest that an unprivileged user may have by default, `pipe(7)`.
const WANTED_CAPACITY: i32 = 1 << 20;

nix::ioctl_read_bad!(
    /// Safe to call with any open fd and a valid pointer; `ioctl_fifo`/`FIONREAD` writes one int.
    fionread,
    nix::libc::FIONREAD,
    nix::libc::c_int
);

/// A pipe, as large as the limits allow, close-on-exec, both ends blocking: the process's end must be.
///
/// # Errors
/// As `pipe2(2)`. A pipe that cannot be enlarged (the user's share of pipe pages is used up) is no error.
pub fn large_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    let mut capacity = WANTED_CAPACITY;
    while capacity > 64 << 10 && fcntl(&write, FcntlArg::F_SETPIPE_SZ(capacity)).is_err() {
        capacity /= 2;
    }
    Ok((read, write))
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

/// Moves up to `len` bytes from one pipe to another without copying them, never blocking.
///
/// # Errors
/// As `splice(2)`: `WouldBlock` if the source is empty or the target full, `BrokenPipe` without a reader.
pub fn move_pages(from: impl AsFd, to: impl AsFd, len: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, len, flags)?)
}
