//! What the rest may not touch: unsafe calls, children, `/proc`.

#![allow(unsafe_code)]

pub mod proc;
pub mod reaper;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that becomes readable when the process ends (pidfd_open(2)).
///
/// # Errors
/// The call's, `ESRCH` among them.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call has just returned this descriptor, and nobody else has its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the event loop tell when a descriptor becomes readable.
///
/// # Errors
/// When the loop cannot watch it.
pub fn watch_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always gives the same number, and keeps it open until the AsyncFd, its owner, has deregistered.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Sends a signal to the process behind a pidfd, never to another that got its number (pidfd_send_signal(2)).
///
/// # Errors
/// The call's, `ESRCH` among them.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is borrowed, hence open; a null siginfo is allowed and means that of kill(2).
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The wait status of a process that has ended, also of one that was reaped or is nobody's child of ours; `None` while it
/// runs (`PIDFD_GET_INFO`, Linux 6.15).
///
/// # Errors
/// The call's: `ENOTTY` before Linux 6.13, `EINVAL` and `ESRCH` before 6.15.
pub fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    /// The first 64 bytes of `struct pidfd_info`, linux/pidfd.h.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup_id: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    /// `_IOWR(0xFF, 11, struct pidfd_info)`, with the size above.
    const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    const { assert!(size_of::<Info>() == 64) };
    let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
    // SAFETY: the call reads and writes as many bytes as its number says, which is the size of `info`, which outlives it.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code))
}

/// Columns and rows of a terminal; `None` if the descriptor is none.
pub fn window_size(terminal: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, and `size` is one that lives until the call is over.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some((size.ws_col.into(), size.ws_row.into()))
}

/// Becomes the parent of orphaned descendants, so that shims, which detach from their starter, stay our children.
///
/// # Errors
/// The kernel's refusal.
pub fn become_subreaper() -> io::Result<()> {
    prctl::set_child_subreaper(true).map_err(io::Error::from_raw_os_error)
}

/// The listening sockets that the service manager passed, with their names. The first call takes them; there must be no
/// second.
pub fn passed_listeners() -> Vec<(String, std::os::unix::net::UnixListener)> {
    let Ok(passed) = sd_notify::listen_fds_with_names() else { return Vec::new() };
    let owned = passed.map(|(fd, name)| {
        // SAFETY: sd_listen_fds(3): the service manager opened it for this process, and only this function takes it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        (name, fd.into())
    });
    owned.collect()
}
