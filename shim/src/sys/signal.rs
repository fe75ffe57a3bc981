//! Killing a process that may be gone and its pid somebody else's by now: hold it, check that it is the one that was meant,
//! then kill what is held.
#![allow(unsafe_code)] // nix has no wrapper for the two system calls

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A process that stays the same one for as long as this is held, whoever gets its pid.
pub(crate) struct Held(OwnedFd);

/// Takes hold of the process that has `pid` now; `None` if there is none. See pidfd_open(2).
pub(crate) fn hold(pid: u32) -> Option<Held> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0)?;
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows its number.
    Some(Held(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Sends any signal, realtime ones and the probe 0 too, to a child that is not reaped yet; such a pid is nobody else's.
///
/// # Errors
/// As kill(2).
pub(crate) fn send(pid: u32, signal: i32) -> std::io::Result<()> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0).ok_or(std::io::ErrorKind::InvalidInput)?;
    // SAFETY: kill takes two integers and touches no memory of ours. nix's wrapper knows no realtime signals.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Makes the signals that ask to end have no effect on this short-lived command: half of a `start` or `delete` is worse than
/// all of it. They are caught rather than ignored, since what it starts would inherit the latter.
pub(crate) fn outlast() {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: the handler does nothing, so it is safe at whatever point it interrupts.
        let _ = unsafe { sigaction(signal, &action) };
    }
}

impl Held {
    /// Waits until the process has ended, for at most `limit`; false if it has not. See pidfd_open(2).
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        loop {
            match poll(&mut fds, limit) {
                Err(Errno::EINTR) => {}
                ready => return ready.is_ok_and(|n| n > 0),
            }
        }
    }

    /// Sends SIGKILL; false if the process has ended. See pidfd_send_signal(2).
    pub(crate) fn kill(&self) -> bool {
        self.send(libc::SIGKILL)
    }

    /// Sends a signal; false if the process has ended. See pidfd_send_signal(2).
    pub(crate) fn send(&self, signal: i32) -> bool {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open for as long as it is borrowed; a null siginfo is allowed and stands for that of
        // kill(2).
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, info, 0) == 0 }
    }
}
