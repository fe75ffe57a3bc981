//! The only waiter on children. Nothing else in this program may wait for one: a status that is collected twice is a
//! status lost.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;

use super::signal;
use crate::lifecycle::{Exit, ExitStatus, Pid};

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

/// A child that has died and is not collected yet: its pid is still its own, and its process group's.
#[derive(Debug)]
pub struct Dead {
    /// Which.
    pub pid: Pid,
    /// It ended with status 0.
    pub well: bool,
}

/// A dead child that is to be collected, if there is one.
pub fn next_dead() -> Option<Dead> {
    loop {
        // SAFETY: siginfo_t is plain data, for which zeroes are valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: the pointer is to a live siginfo_t, which is all waitid(2) writes.
        let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) };
        if result < 0 && Errno::last() == Errno::EINTR {
            continue;
        }
        if result < 0 {
            return None;
        }
        // SAFETY: waitid(2) has filled in this member, or left the zeroes, which stand for no child.
        let pid = unsafe { info.si_pid() };
        // SAFETY: as above.
        let status = unsafe { info.si_status() };
        let well = info.si_code == libc::CLD_EXITED && status == 0;
        return (pid > 0).then(|| Dead { pid: pid.cast_unsigned(), well });
    }
}

impl Dead {
    /// Collects it: its pid is free for reuse when this returns.
    pub fn collect(self) -> Option<Exit> {
        let mut wait_status = 0;
        // SAFETY: as in `reap`; the child is dead, so this does not block.
        let pid = unsafe { libc::waitpid(self.pid.cast_signed(), &raw mut wait_status, 0) };
        let status = if pid > 0 { exit_status(wait_status) } else { None };
        status.map(|status| Exit { status, at_unix_ns: now_unix_ns() })
    }
}

/// As [`wait_for_all`], for one child.
pub fn wait_for(pid: Pid, limit: Duration) -> Option<Exit> {
    wait_for_all(&[pid], limit).remove(&pid)
}

/// Waits for children, together for at most `limit`, and gives the exits of those that have ended; others that end
/// meanwhile are collected too. For short-lived commands, which have no loop.
pub fn wait_for_all(pids: &[Pid], limit: Duration) -> BTreeMap<Pid, Exit> {
    let deadline = Instant::now() + limit;
    let held: Vec<_> = pids.iter().filter_map(|&pid| Some((pid, signal::hold(pid)?))).collect();
    let mut exits = BTreeMap::new();
    loop {
        while let Some((reaped, exit)) = reap() {
            if pids.contains(&reaped) {
                exits.insert(reaped, exit);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let Some((_, next)) = held.iter().find(|(pid, _)| !exits.contains_key(pid)) else { return exits };
        if left.is_zero() || !next.wait(left) {
            return exits;
        }
    }
}

/// Waits for one child alone, which is about to end by itself; how it ended is of no interest. For short-lived commands.
pub(crate) fn collect(pid: Pid) {
    // SAFETY: without a place for the status waitpid(2) writes nothing.
    while unsafe { libc::waitpid(pid.cast_signed(), std::ptr::null_mut(), 0) } < 0 && Errno::last() == Errno::EINTR {}
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
