//! What the user asked for, and how the last run ended: the supervisor's own facts, in a form that is written to disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::log_policy::{Driver, LogPolicy};
use crate::policy::RestartPolicy;

/// The schema that this build writes, and the newest that it reads.
pub const SCHEMA: u32 = 1;

/// The exit status of a run whose true one nobody can know.
pub const UNKNOWN_STATUS: u32 = 255;

/// The reason of an exit that the kernel forced for want of memory.
pub const OUT_OF_MEMORY: &str = "killed for want of memory";

/// One container. Grows by optional fields; unknown ones are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// Its id.
    pub id: String,
    /// Its unique name.
    pub name: String,
    /// Nanoseconds since the Unix epoch.
    pub created_at_unix_ns: i64,
    /// What was asked.
    pub config: Config,
    /// How far it got.
    #[serde(default)]
    pub state: State,
}

/// What was asked, apart from the OCI `config.json` beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The command, for people.
    pub command: Vec<String>,
    /// When it is started again.
    pub restart: RestartPolicy,
    /// Whether its first process has a terminal.
    pub terminal: bool,
    /// Whether its standard input is kept open.
    pub stdin: bool,
    /// Whether it is removed once it has ended.
    pub remove: bool,
    /// The signal by which it is asked to stop.
    pub stop_signal: i32,
    /// Seconds between that signal and SIGKILL.
    pub stop_timeout: u32,
    /// How its output is kept.
    #[serde(flatten)]
    pub log: LogPolicy,
    /// How it was kept before, each driver once, the one that was used last at the end. What they hold is still to be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log_earlier: Vec<Driver>,
    /// The user's.
    pub labels: BTreeMap<String, String>,
}

/// How far a container got, as the supervisor knows it while no shim can be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// What the user last asked for.
    pub wish: Wish,
    /// The boot during which it was last started or made.
    pub boot_id: String,
    /// When it was last started.
    pub started_at_unix_ns: i64,
    /// How the last run ended; `None` before the first run and while one is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Restarts by the policy since the last start by request.
    pub restarts: u32,
    /// Those of them in a row, without a long run among them.
    pub restarts_in_a_row: u32,
    /// What the policy made of the last end. `None` while a run is under way, and for one that ended without its having a
    /// say: by the supervisor's own end, or the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
    /// When somebody last sent it a signal that is meant to end it; 0 for never in this run.
    pub kill_asked_at_unix_ns: i64,
    /// It is being stopped in order to be started again, by request.
    pub renewing: bool,
}

/// What comes after the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Next {
    /// Nothing.
    Rest,
    /// The next one, at this time, in nanoseconds since the Unix epoch.
    RestartAt(i64),
}

/// What the user last asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// To exist; it was never started.
    #[default]
    Created,
    /// To run.
    Running,
    /// To rest.
    Stopped,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The exit code, 128 + signal, or [`UNKNOWN_STATUS`] with a reason.
    pub status: u32,
    /// Nanoseconds since the Unix epoch.
    pub at_unix_ns: i64,
    /// Empty when the status says it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}
