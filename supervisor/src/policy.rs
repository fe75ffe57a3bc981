//! Whether an ended container is started again, and after how long; pure.
//!
//! ```text
//!                                       no      on-failure[:N]   always        unless-stopped
//!   exit status 0                       rests   rests            pause         pause
//!   exit status other than 0            rests   pause (N times)  pause         pause
//!   a start by the policy has failed    rests   pause (N times)  pause         pause
//!   a start by request has failed       rests   rests            rests         rests
//!   stopped or killed by request        rests   rests            rests         rests
//!
//!   holdfastd is there again (after SIGTERM, kill -9, a reboot), and the container
//!     runs                              goes on, whatever the policy; without live-restore it is stopped, and what
//!                                       follows is as after holdfastd's own end
//!     has ended meanwhile               as above, by its true status
//!     waited for its restart            goes on waiting for what is left of the pause
//!     was ended by holdfastd's          rests   starts unless    starts        starts
//!       own end or by the reboot                it exited with 0
//!     had been stopped by request       rests   rests            starts        rests
//!     rested for another reason         rests   starts after a   starts        starts
//!                                               failure (N)
//!     was never started                 rests   rests            rests         rests
//! ```
//!
//! As with Docker, `always` overrides a stop when the supervisor starts again, N bounds the restarts since the last start
//! by request, and that start begins all counts anew. Other than with Docker, counts and pauses survive the supervisor and
//! the machine, a start of the policy's that fails is tried again (what it lacked may come: a mount, memory), `on-failure`
//! does not undo a stop, and only signals that are meant to end a container count as a stop ([`is_meant_to_end`]): one
//! that is told to read its configuration again keeps its policy. A restart of the supervisor's or the machine's doing is
//! no failure of the container's: nothing counts it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The pause before the first restart; doubled for each one that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause between restarts.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A run at least this long was a success: the pauses begin anew.
const LONG_RUN: Duration = Duration::from_secs(10);

/// When an ended container is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// After an exit status other than 0, at most so many times since the last start by request (`None`: without limit).
    OnFailure(Option<u32>),
    /// Whatever the status, and when the supervisor starts again even if it had been stopped.
    Always,
    /// Whatever the status, unless it was stopped by request.
    UnlessStopped,
}

/// A text that is no restart policy.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a restart policy (no, on-failure, on-failure:N, always, unless-stopped)")]
pub struct PolicyError(String);

impl FromStr for RestartPolicy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "" | "no" => Ok(Self::No),
            "on-failure" => Ok(Self::OnFailure(None)),
            "always" => Ok(Self::Always),
            "unless-stopped" => Ok(Self::UnlessStopped),
            _ => text
                .strip_prefix("on-failure:")
                .and_then(|n| n.parse().ok())
                .map(|n| Self::OnFailure(Some(n)))
                .ok_or_else(|| PolicyError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure(None) => f.write_str("on-failure"),
            Self::OnFailure(Some(n)) => write!(f, "on-failure:{n}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

/// What is known of the run that ended.
#[derive(Clone, Copy, Debug)]
pub struct EndedRun {
    /// Its exit status.
    pub status: u32,
    /// Whether somebody asked for its end.
    pub stopped: bool,
    /// How long it lasted; nothing for one that could not be started.
    pub lasted: Duration,
    /// Restarts by the policy since the last start by request.
    pub restarts: u32,
    /// Those of them in a row before this run, without a long run among them.
    pub in_a_row: u32,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Leave it ended.
    Rest,
    /// Leave it ended though it failed: it was restarted as often as it may be.
    GiveUp,
    /// Start it again.
    Restart {
        /// How long to wait first.
        after: Duration,
        /// How many restarts in a row there were before this one.
        in_a_row: u32,
    },
}

/// A container that does not run when the supervisor starts.
#[derive(Clone, Copy, Debug)]
pub struct Resting {
    /// The exit status of its last run.
    pub status: u32,
    /// Whether somebody asked for its end.
    pub stopped: bool,
    /// Whether the supervisor's or the machine's own end has ended it, so that the policy had no say.
    pub interrupted: bool,
    /// As in [`EndedRun`].
    pub restarts: u32,
}

impl RestartPolicy {
    /// Decides after the end of a run.
    pub fn after_exit(self, run: EndedRun) -> Decision {
        let wanted = match self {
            _ if run.stopped => false,
            Self::No => false,
            Self::OnFailure(_) => run.status != 0,
            Self::Always | Self::UnlessStopped => true,
        };
        if !wanted {
            return Decision::Rest;
        }
        if !self.allows_another(run.restarts) {
            return Decision::GiveUp;
        }
        let in_a_row = if run.lasted >= LONG_RUN { 0 } else { run.in_a_row };
        let after = FIRST_PAUSE.saturating_mul(1u32.checked_shl(in_a_row).unwrap_or(u32::MAX)).min(LONGEST_PAUSE);
        Decision::Restart { after, in_a_row }
    }

    /// Decides about a container that has run before and does not when the supervisor starts.
    pub fn at_start(self, rest: Resting) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(_) => {
                !rest.stopped && rest.status != 0 && (rest.interrupted || self.allows_another(rest.restarts))
            }
            Self::Always => true,
            Self::UnlessStopped => !rest.stopped,
        }
    }

    fn allows_another(self, restarts: u32) -> bool {
        !matches!(self, Self::OnFailure(Some(limit)) if restarts >= limit)
    }
}

/// Whether who sends this signal wants the container to end: its own stop signal, or one that nobody sends for anything
/// else.
pub fn is_meant_to_end(signal: i32, stop_signal: i32) -> bool {
    use nix::libc::{SIGINT, SIGKILL, SIGQUIT, SIGTERM};
    signal == stop_signal || matches!(signal, SIGKILL | SIGTERM | SIGINT | SIGQUIT)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const POLICIES: [&str; 5] = ["no", "on-failure", "on-failure:2", "always", "unless-stopped"];

    fn run(status: u32, restarts: u32) -> EndedRun {
        EndedRun { status, stopped: false, lasted: Duration::from_secs(1), restarts, in_a_row: restarts }
    }

    #[test]
    fn every_policy_survives_text_and_back() {
        for text in POLICIES {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        for bad in ["On-Failure", "on-failure:", "on-failure:-1", "sometimes"] {
            assert!(bad.parse::<RestartPolicy>().unwrap_err().to_string().contains(bad));
        }
    }

    /// The upper half of the table: a row for each end, a column for each of [`POLICIES`].
    #[test]
    fn each_end_has_its_decision_under_each_policy() {
        let stopped = |status| EndedRun { stopped: true, ..run(status, 0) };
        let rows: [(EndedRun, [&str; 5]); 6] = [
            (run(0, 0), ["rest", "rest", "rest", "restart", "restart"]),
            (run(1, 0), ["rest", "restart", "restart", "restart", "restart"]),
            (run(1, 1), ["rest", "restart", "restart", "restart", "restart"]),
            (run(1, 2), ["rest", "restart", "give up", "restart", "restart"]),
            (stopped(0), ["rest"; 5]),
            (stopped(137), ["rest"; 5]),
        ];
        for (ended, expected) in rows {
            let decided = POLICIES.map(|policy| match policy.parse::<RestartPolicy>().unwrap().after_exit(ended) {
                Decision::Rest => "rest",
                Decision::GiveUp => "give up",
                Decision::Restart { .. } => "restart",
            });
            assert_eq!(decided, expected, "{ended:?}");
        }
    }

    /// The lower half: what does not run when the supervisor starts.
    #[test]
    fn each_rest_has_its_decision_at_a_start_under_each_policy() {
        let rest = Resting { status: 1, stopped: false, interrupted: false, restarts: 2 };
        let interrupted = Resting { interrupted: true, ..rest };
        let rows: [(Resting, [bool; 5]); 6] = [
            (rest, [false, true, false, true, true]),
            (Resting { status: 0, ..rest }, [false, false, false, true, true]),
            (interrupted, [false, true, true, true, true]),
            (Resting { status: 0, ..interrupted }, [false, false, false, true, true]),
            (Resting { stopped: true, ..rest }, [false, false, false, true, false]),
            (Resting { stopped: true, ..interrupted }, [false, false, false, true, false]),
        ];
        for (rest, expected) in rows {
            let decided = POLICIES.map(|policy| policy.parse::<RestartPolicy>().unwrap().at_start(rest));
            assert_eq!(decided, expected, "{rest:?}");
        }
    }

    #[test]
    fn the_pause_doubles_is_bounded_and_begins_anew_after_a_long_run() {
        let pause = |run| match RestartPolicy::Always.after_exit(run) {
            Decision::Restart { after, in_a_row } => (after, in_a_row),
            other => panic!("{other:?}"),
        };
        assert_eq!(pause(run(0, 0)), (Duration::from_millis(100), 0));
        assert_eq!(pause(run(0, 3)), (Duration::from_millis(800), 3));
        assert_eq!(pause(run(0, 1000)), (LONGEST_PAUSE, 1000));
        assert_eq!(pause(EndedRun { lasted: LONG_RUN, ..run(1, 9) }), (FIRST_PAUSE, 0));
    }

    #[test]
    fn a_long_run_is_no_new_allowance() {
        let long = EndedRun { lasted: LONG_RUN, ..run(1, 2) };
        assert_eq!(RestartPolicy::OnFailure(Some(2)).after_exit(long), Decision::GiveUp);
    }

    #[test]
    fn only_signals_that_end_things_count_as_a_stop() {
        use nix::libc::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1};
        for signal in [SIGTERM, SIGKILL, SIGINT, SIGQUIT] {
            assert!(is_meant_to_end(signal, SIGTERM));
        }
        assert!(!is_meant_to_end(SIGHUP, SIGTERM) && !is_meant_to_end(SIGUSR1, SIGTERM));
        assert!(is_meant_to_end(SIGUSR1, SIGUSR1), "its own stop signal");
    }
}
