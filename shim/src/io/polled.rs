//! One end of a stream, in epoll's hands only while somebody waits for it.
//!
//! ```text
//!   apart ──(waited for)──> registered, and stays so from one wait to the next
//!     ^                         │
//!     └──────(let alone)────────┘
//! ```
//!
//! As long as an fd is registered, every write of the process wakes the loop, also one that a flow that rests does not care
//! for. When it is registered again epoll tells at once what it is ready for, so nothing is missed in between.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::{pipe, ready};

/// How long to wait when the kernel has no memory for a registration.
const REGISTER_AGAIN: Duration = Duration::from_millis(100);

/// A non-blocking fd that is waited for in one direction.
pub(super) struct Polled {
    fd: Rc<OwnedFd>,
    interest: Interest,
    registration: RefCell<Option<Rc<AsyncFd<Rc<OwnedFd>>>>>,
}

impl Polled {
    /// Of an fd that is to be read from.
    ///
    /// # Errors
    /// As `fcntl(2)` and `epoll_ctl(2)`: `PermissionDenied` for a regular file.
    pub(super) fn source(fd: OwnedFd) -> io::Result<Rc<Self>> {
        Self::new(fd, Interest::READABLE)
    }

    /// Of an fd that is to be written to.
    ///
    /// # Errors
    /// See [`Polled::source`].
    pub(super) fn sink(fd: OwnedFd) -> io::Result<Rc<Self>> {
        Self::new(fd, Interest::WRITABLE)
    }

    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Rc<Self>> {
        pipe::set_nonblocking(&fd)?;
        let polled = Self { fd: Rc::new(fd), interest, registration: RefCell::new(None) };
        polled.registered()?;
        Ok(Rc::new(polled))
    }

    /// The fd itself.
    pub(super) fn get_ref(&self) -> &OwnedFd {
        &self.fd
    }

    fn registered(&self) -> io::Result<Rc<AsyncFd<Rc<OwnedFd>>>> {
        let mut registration = self.registration.borrow_mut();
        if let Some(registration) = registration.as_ref() {
            return Ok(registration.clone());
        }
        let new = Rc::new(ready::register(self.fd.clone(), self.interest)?);
        *registration = Some(new.clone());
        Ok(new)
    }

    /// Returns once an operation on it may go on; whether the other end has been closed since it was registered. It may be
    /// open again: [`Polled::let_alone`] forgets it. Safe to cancel. At most one may wait at a time.
    pub(super) async fn ready(&self) -> bool {
        let Ok(registration) = self.registered() else {
            tokio::time::sleep(REGISTER_AGAIN).await;
            return false;
        };
        match registration.ready(self.interest).await {
            Ok(guard) => guard.ready().is_write_closed(),
            Err(_) => false,
        }
    }

    /// Tells Tokio that the fd is not ready, as an operation on it has just shown. Events that come later are not lost:
    /// they are collected only when this task gives way.
    pub(super) fn clear(&self) {
        if let Some(registration) = self.registration.borrow().as_ref() {
            let _ = registration.try_io(self.interest, |_| Err::<(), _>(ErrorKind::WouldBlock.into()));
        }
    }

    /// Wakes nobody until it is waited for again.
    pub(super) fn let_alone(&self) {
        *self.registration.borrow_mut() = None;
    }
}

impl AsFd for Polled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
