//! Registering fds with Tokio. Its registration is unsafe for types in general; it is sound for those that own one fd and
//! never exchange it, which are the ones named here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;

use nix::sys::inotify::Inotify;
use nix::sys::timerfd::TimerFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// An object that owns one fd and has the same one for as long as it lives.
///
/// # Safety
/// `as_raw_fd` gives an fd that is open, the object's own, and always the same.
pub(crate) unsafe trait OneFd: AsRawFd {}

// SAFETY: the type is nothing but one owned fd.
unsafe impl OneFd for OwnedFd {}
// SAFETY: as above; who shares it cannot exchange what is shared.
unsafe impl OneFd for Rc<OwnedFd> {}
// SAFETY: the standard library's sockets own one fd and have no way to exchange it.
unsafe impl OneFd for UnixStream {}
// SAFETY: as above.
unsafe impl OneFd for UnixListener {}
// SAFETY: nix's type owns one fd and has no way to exchange it.
unsafe impl OneFd for Watch {}
// SAFETY: as above.
unsafe impl OneFd for Alarm {}

/// An inotify instance; nix's type has no raw fd, which is what Tokio asks for.
pub(crate) struct Watch(pub(crate) Inotify);

impl From<OwnedFd> for Watch {
    /// Of an inotify instance that was handed on; of anything else every call on it fails.
    fn from(fd: OwnedFd) -> Self {
        // SAFETY: the fd is open and owned, and its owner gives it up to the new object.
        Self(unsafe { Inotify::from_raw_fd(fd.into_raw_fd()) })
    }
}

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

/// A timer; nix's type has no raw fd either.
pub(crate) struct Alarm(pub(crate) TimerFd);

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
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
