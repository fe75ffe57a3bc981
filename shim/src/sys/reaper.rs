//! The only waiter on children. Nothing else in this program may wait for one: a status that is collected twice is a
//! status lost.
#![allow(unsafe_code)]

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::signal;
use crate::lifecycle::{Exit, ExitStatus, Pid};

/// The signals that the shim takes from an fd rather than from a handler, so that none is lost between two loops.
const TAKEN: [Signal; 4] = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Blocks the signals in [`TAKEN`] and gives the fd on which they arrive. Children get an empty mask from
/// `std::process::Command`.
///
/// # Errors
/// As `signalfd(2)`.
pub fn signal_fd() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in TAKEN {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Collects one dead child, if there is one: its pid is free for reuse when this returns.
pub fn reap() -> Option<(Pid, Exit)> {
    loop {
        let mut wait_status = 0;
        // SAFETY: the pointer is to a live int, which is all waitpid(2) writes. Not nix's wrapper: it fails, with the
        // child already collected, when a realtime signal ended it.
        let pid = unsafe { libc::waitpid(-1, &raw mut wait_status, libc::WNOHANG) };
        if pid < 0 && Errno::last() == Errno::EINTR {
            continue;
        }
        if pid <= 0 {
            return None;
        }
        if let Some(status) = exit_status(wait_status) {
            return Some((pid.cast_unsigned(), Exit { status, at_unix_ns: now_unix_ns() }));
        }
    }
}

/// Waits for one child, for at most `limit`; others that end meanwhile are collected too. For short-lived commands, which
/// have no loop.
pub fn wait_for(pid: Pid, limit: Duration) -> Option<Exit> {
    let deadline = Instant::now() + limit;
    let held = signal::hold(pid);
    loop {
        while let Some((reaped, exit)) = reap() {
            if reaped == pid {
                return Some(exit);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !held.as_ref()?.wait(left) {
            return None;
        }
    }
}

/// None for the stops and continuations that a tracer may cause.
fn exit_status(wait_status: i32) -> Option<ExitStatus> {
    if libc::WIFEXITED(wait_status) {
        Some(ExitStatus::exited(libc::WEXITSTATUS(wait_status)))
    } else if libc::WIFSIGNALED(wait_status) {
        Some(ExitStatus::signalled(libc::WTERMSIG(wait_status)))
    } else {
        None
    }
}

/// The wall clock, in nanoseconds since the Unix epoch.
pub fn now_unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realtime_signal_is_an_exit_like_any_other() {
        assert_eq!(exit_status(34).map(ExitStatus::code), Some(162));
        assert_eq!(exit_status(9).map(ExitStatus::code), Some(137));
        assert_eq!(exit_status(7 << 8).map(ExitStatus::code), Some(7));
        assert_eq!(exit_status(0x137f), None);
    }
}
