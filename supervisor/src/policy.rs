//! Whether an ended container is started again, and after how long; pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The pause before the first restart; doubled for each one that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause between restarts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A run at least this long was a success: the pauses begin anew.
const LONG_RUN: Duration = Duration::from_secs(10);

/// When an ended container is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// After an exit status other than 0, at most so many times in a row (`None`: without limit).
    OnFailure(Option<u32>),
    /// Whatever the status, and again after a reboot even if it had been stopped.
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
    /// How long it lasted.
    pub lasted: Duration,
    /// Restarts in a row before it, without a long run among them.
    pub restarts: u32,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Leave it ended.
    Rest,
    /// Start it again after the pause; it is then the given restart in a row.
    Restart {
        /// How long to wait first.
        after: Duration,
        /// The new count.
        restarts: u32,
    },
}

impl RestartPolicy {
    /// Decides after the end of a run.
    pub fn after_exit(self, run: EndedRun) -> Decision {
        let restarts = if run.lasted >= LONG_RUN { 0 } else { run.restarts };
        let wanted = !run.stopped
            && match self {
                Self::No => false,
                Self::OnFailure(limit) => run.status != 0 && limit.is_none_or(|n| restarts < n),
                Self::Always | Self::UnlessStopped => true,
            };
        if !wanted {
            return Decision::Rest;
        }
        let after = FIRST_PAUSE.saturating_mul(1u32.checked_shl(restarts).unwrap_or(u32::MAX)).min(LONGEST_PAUSE);
        Decision::Restart { after, restarts: restarts + 1 }
    }

    /// Whether a container that a reboot ended is started again; `stopped` if it had been stopped before by request.
    pub fn after_reboot(self, stopped: bool) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(_) | Self::UnlessStopped => !stopped,
            Self::Always => true,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run(status: u32, restarts: u32) -> EndedRun {
        EndedRun { status, stopped: false, lasted: Duration::from_secs(1), restarts }
    }

    #[test]
    fn every_policy_survives_text_and_back() {
        for text in ["no", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        for bad in ["On-Failure", "on-failure:", "on-failure:-1", "sometimes"] {
            assert!(bad.parse::<RestartPolicy>().unwrap_err().to_string().contains(bad));
        }
    }

    #[test]
    fn on_failure_ignores_success_and_counts_failures() {
        let policy = RestartPolicy::OnFailure(Some(2));
        assert_eq!(policy.after_exit(run(0, 0)), Decision::Rest);
        assert!(matches!(policy.after_exit(run(1, 1)), Decision::Restart { restarts: 2, .. }));
        assert_eq!(policy.after_exit(run(1, 2)), Decision::Rest);
    }

    #[test]
    fn a_long_run_forgives_the_failures_before_it() {
        let long = EndedRun { lasted: LONG_RUN, ..run(1, 9) };
        let decision = RestartPolicy::OnFailure(Some(2)).after_exit(long);
        assert_eq!(decision, Decision::Restart { after: FIRST_PAUSE, restarts: 1 });
    }

    #[test]
    fn the_pause_doubles_and_is_bounded_however_often() {
        let pause = |restarts| match RestartPolicy::Always.after_exit(run(0, restarts)) {
            Decision::Restart { after, .. } => after,
            Decision::Rest => panic!("always rests"),
        };
        assert_eq!(pause(0), Duration::from_millis(100));
        assert_eq!(pause(3), Duration::from_millis(800));
        assert_eq!(pause(1000), LONGEST_PAUSE);
    }

    #[test]
    fn a_stop_request_is_obeyed_by_every_policy() {
        for policy in [RestartPolicy::Always, RestartPolicy::UnlessStopped, RestartPolicy::OnFailure(None)] {
            assert_eq!(policy.after_exit(EndedRun { stopped: true, ..run(143, 0) }), Decision::Rest);
        }
    }

    #[test]
    fn after_a_reboot_only_always_overrides_a_stop() {
        assert!(RestartPolicy::Always.after_reboot(true));
        assert!(!RestartPolicy::UnlessStopped.after_reboot(true));
        assert!(RestartPolicy::UnlessStopped.after_reboot(false));
        assert!(!RestartPolicy::No.after_reboot(false));
    }
}
