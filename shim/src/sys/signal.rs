//! Sending a signal to a process that may be gone and its pid somebody else's by now.
#![allow(unsafe_code)] // nix has no wrapper for the two system calls

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Sends SIGKILL to `pid` if `is_ours` still says so after a descriptor of the process is held: from then on the pid
/// cannot pass to another process unnoticed. True if the signal was sent.
pub(crate) fn kill_if(pid: u32, is_ours: impl FnOnce() -> bool) -> bool {
    let Some(fd) = open(pid) else { return false };
    is_ours() && kill(&fd)
}

/// See pidfd_open(2).
fn open(pid: u32) -> Option<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0)?;
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows its number.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// See pidfd_send_signal(2).
fn kill(fd: &OwnedFd) -> bool {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for as long as it is borrowed; a null siginfo is allowed and stands for that of
    // kill(2).
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), libc::SIGKILL, info, 0) == 0 }
}
