//! The unsafe that no wrapper covers.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::unistd::{ForkResult, fork};

nix::ioctl_read_bad!(
    /// SIOCOUTQ of unix(7): what was written and not yet read by the other side; 0 only if nothing.
    outq,
    libc::TIOCOUTQ,
    libc::c_int
);

/// Whether the other side of a stream socket has read all that was written into this one.
///
/// # Errors
/// As ioctl(2).
pub fn all_was_read(socket: impl AsFd) -> io::Result<bool> {
    let mut count = 0;
    // SAFETY: the fd is open for the time of the call, and the pointer is to a live int, which is all SIOCOUTQ writes.
    unsafe { outq(socket.as_fd().as_raw_fd(), &raw mut count) }?;
    Ok(count == 0)
}

/// Runs `child` in a forked process, which ends after it, and returns that process's pid to the parent.
///
/// For programs with a single thread only (the fake runtime): the child then may do whatever the parent may.
///
/// # Errors
/// As fork(2).
///
/// # Panics
/// If the process has more than one thread.
pub fn fork_child(child: impl FnOnce()) -> nix::Result<nix::unistd::Pid> {
    assert_eq!(crate::process::threads(std::process::id()), Some(1), "fork wants a single thread");
    // SAFETY: with one thread no lock can be held by a thread that the child lacks; asserted above.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            child();
            std::process::exit(0)
        }
    }
}

/// Takes over a descriptor that a control message has just brought.
pub fn own(fd: std::os::fd::RawFd) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: recvmsg(2) has made this descriptor for us, and the caller passes it here once, so nobody else closes it.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }
}
