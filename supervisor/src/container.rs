//! What the user asked for, and how the last run ended: the supervisor's own facts, in a form that is written to disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::policy::RestartPolicy;

/// The schema that this build writes, and the newest that it reads.
pub const SCHEMA: u32 = 1;

/// The exit status of a run whose true one nobody can know.
pub const UNKNOWN_STATUS: u32 = 255;

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
    /// Bytes after which the log is rotated.
    pub log_max_size: u64,
    /// How many log files are kept.
    pub log_max_file: u32,
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
    /// Restarts in a row.
    pub restarts: u32,
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
