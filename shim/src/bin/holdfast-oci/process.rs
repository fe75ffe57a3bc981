//! What is true of a process: a pid is never trusted without its start time.

use std::fs;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::sys;

/// A process named so that a later process with the same pid is not taken for it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ProcessName {
    /// Its pid in our pid namespace.
    pub(crate) pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub(crate) start_time: u64,
}

/// What a look at the process shows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Life {
    /// It exists and is no zombie.
    Alive,
    /// It has exited: gone, a zombie, or its pid belongs to somebody else.
    Gone,
}

impl ProcessName {
    /// Names the process that has this pid now, or `None` if there is none.
    pub(crate) fn of(pid: i32) -> Option<ProcessName> {
        let stat = Stat::read(pid)?;
        Some(ProcessName { pid, start_time: stat.start_time })
    }

    /// Whether the process is still there.
    pub(crate) fn life(self) -> Life {
        match Stat::read(self.pid) {
            Some(stat) if stat.start_time == self.start_time && !stat.is_dead() => Life::Alive,
            _ => Life::Gone,
        }
    }

    /// Signals the process, and nobody else: the pidfd is opened first and the start time compared after, so that the
    /// pid cannot change hands in between.
    ///
    /// # Errors
    /// `ESRCH` when it is gone or a zombie; whatever `pidfd_send_signal(2)` says.
    pub(crate) fn signal(self, signal: i32) -> Result<(), Errno> {
        let pidfd = sys::pidfd_open(self.pid)?;
        match self.life() {
            Life::Alive => sys::pidfd_send_signal(&pidfd, signal),
            Life::Gone => Err(Errno::ESRCH),
        }
    }
}

/// The fields of `/proc/PID/stat` that matter here.
struct Stat {
    state: char,
    start_time: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Stat> {
        Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The second field is the command in parentheses and may contain anything, so the rest is what follows the last
    /// parenthesis.
    fn parse(text: &str) -> Option<Stat> {
        let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Stat { state, start_time })
    }

    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let stat = Stat::parse("7 (a) Z (b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 8675309 1 2").unwrap();
        assert_eq!(stat.state, 'S');
        assert_eq!(stat.start_time, 8_675_309);
    }

    #[test]
    fn a_recycled_pid_is_not_the_process() {
        let me = ProcessName::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert_eq!(me.life(), Life::Alive);
        let earlier = ProcessName { start_time: me.start_time - 1, ..me };
        assert_eq!(earlier.life(), Life::Gone);
        assert_eq!(earlier.signal(0), Err(Errno::ESRCH));
        assert_eq!(me.signal(0), Ok(()));
    }
}
