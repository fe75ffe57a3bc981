//! Terminals, from the master's side.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

nix::ioctl_write_ptr_bad!(
    /// `TIOCSWINSZ`, `ioctl_tty(2)`: reads one winsize.
    set_winsize,
    libc::TIOCSWINSZ,
    libc::winsize
);
nix::ioctl_write_int_bad!(
    /// `TIOCGPTPEER`, `ioctl_tty(2)`: takes open flags, returns a new fd.
    get_peer,
    libc::TIOCGPTPEER
);

/// Tells the terminal its size; its foreground processes get `SIGWINCH`.
///
/// # Errors
/// As `ioctl(2)`.
pub fn resize(master: impl AsFd, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the fd is open for the time of the call, and the pointer is to a live winsize, which is only read.
    unsafe { set_winsize(master.as_fd().as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// Opens the slave of a master, without a path and without making it a controlling terminal. While it is held, a read of
/// the master never reports a hang-up.
///
/// # Errors
/// As `ioctl(2)`; `EINVAL` before Linux 4.13.
pub fn open_slave(master: impl AsFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the fd is open for the time of the call; the argument is a plain integer.
    let fd = unsafe { get_peer(master.as_fd().as_raw_fd(), flags) }?;
    // SAFETY: the kernel has just made this fd for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
