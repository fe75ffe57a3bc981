//! Receiving a file descriptor over a Unix socket, `unix(7)`.
#![allow(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Longer than any pty's name.
const PAYLOAD: usize = 4096;

/// Receives one message with exactly one file descriptor, close-on-exec; its payload is dropped.
///
/// # Errors
/// As `recvmsg(2)`, and `InvalidData` if the message carries no fd or several (which are closed).
pub fn receive_one(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut payload = [0u8; PAYLOAD];
    let mut iov = [IoSliceMut::new(&mut payload)];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just installed these fds for us, and nobody else knows their numbers.
            received.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    match (received.pop(), received.is_empty()) {
        (Some(fd), true) => Ok(fd),
        (None, _) => Err(io::Error::new(io::ErrorKind::InvalidData, "the message carries no file descriptor")),
        (Some(_), false) => Err(io::Error::new(io::ErrorKind::InvalidData, "the message carries several descriptors")),
    }
}
