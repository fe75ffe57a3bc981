//! How a process ended.

use serde::{Deserialize, Serialize};

/// The number that containerd calls an exit status: the exit code, or 128 + the signal's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExitStatus(u32);

impl ExitStatus {
    /// Of a process that never ran.
    pub(super) const NONE: Self = Self(0);

    /// From an exit code, of which the kernel keeps eight bits.
    pub fn exited(code: i32) -> Self {
        Self(code.cast_unsigned() & 0xff)
    }

    /// From the signal that ended the process.
    pub fn signalled(signal: i32) -> Self {
        Self(128 + signal.cast_unsigned())
    }

    /// Whether it may be the doing of the kernel's OOM killer, which uses SIGKILL; a shell passes that on as a code.
    pub(super) fn may_be_for_want_of_memory(self) -> bool {
        self == Self::signalled(9)
    }

    /// The number on the wire.
    pub fn code(self) -> u32 {
        self.0
    }
}

/// An exit and the time at which it was collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// How.
    pub status: ExitStatus,
    /// When: nanoseconds since the Unix epoch.
    pub at_unix_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_counts_from_128_and_a_code_keeps_eight_bits() {
        assert_eq!(ExitStatus::signalled(9).code(), 137);
        assert_eq!(ExitStatus::signalled(15).code(), 143);
        assert_eq!(ExitStatus::exited(7).code(), 7);
        assert_eq!(ExitStatus::exited(-1).code(), 255);
    }

    #[test]
    fn a_killed_process_and_a_shell_whose_child_was_killed_may_have_lacked_memory() {
        let may = [ExitStatus::signalled(9), ExitStatus::exited(137), ExitStatus::signalled(15), ExitStatus::exited(1)];
        assert_eq!(may.map(ExitStatus::may_be_for_want_of_memory), [true, true, false, false]);
    }
}
