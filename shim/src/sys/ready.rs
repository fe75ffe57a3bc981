//! Registering fds with Tokio. Its registration is unsafe for types in general; it is sound for those that own one fd and
//! never exchange it, which are the ones named here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::inotify::Inotify;
use nix::sys::signalfd::SignalFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// An object that owns one fd and has the same one for as long as it lives.
///
/// # Safety
/// `as_raw_fd` gives an fd that is open, the object's own, and always the same.
pub(crate) unsafe trait OneFd: AsRawFd {}

// SAFETY: the type is nothing but one owned fd.
unsafe impl OneFd for OwnedFd {}
// SAFETY: the standard library's sockets own one fd and have no way to exchange it.
unsafe impl OneFd for UnixStream {}
// SAFETY: as above.
unsafe impl OneFd for UnixListener {}
// SAFETY: nix's type owns one fd; changing its mask keeps the fd.
unsafe impl OneFd for SignalFd {}
// SAFETY: nix's type owns one fd and has no way to exchange it.
unsafe impl OneFd for Watch {}

/// An inotify instance; nix's type has no raw fd, which is what Tokio asks for.
pub(crate) struct Watch(pub(crate) Inotify);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Registers a non-blocking fd with the current reactor.
///
/// # Errors
/// As `epoll_ctl(2)`: `PermissionDenied` for a regular file.
///
/// # Panics
/// Outside of a Tokio runtime with I/O enabled.
pub(crate) fn register<T: OneFd>(object: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: by the contract of `OneFd` the fd is open and the same until the object is dropped, which AsyncFd does
    // only after it has deregistered it.
    unsafe { AsyncFd::register_with_interest(object, interest) }.map_err(Into::into)
}
