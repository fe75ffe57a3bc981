//! What `holdfast doctor` examines: facts are gathered ([`probe`], `stale`), then judged (`checks`, pure). Nothing here
//! needs a supervisor, and nothing waits for a shim or a program without a deadline.

mod checks;
pub mod probe;
mod stale;

use std::path::PathBuf;

use serde::Serialize;

pub use checks::examine;
pub use stale::{Stale, StaleKind};

use crate::report::RestoreReport;

/// How a finding is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be, or a choice that is nobody's mistake.
    Ok,
    /// It works, and will not always.
    Warn,
    /// Something does not work.
    Fail,
}

impl Level {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, in one word that stays the same.
    pub check: &'static str,
    /// How it is meant.
    pub level: Level,
    /// What was seen, and what it means.
    pub message: String,
    /// What to do, as a command line where there is one; empty if there is nothing to do.
    pub advice: String,
}

/// Everything that is judged.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Whether this is root, who alone can see everything.
    pub root: bool,
    /// The kernel.
    pub kernel: Kernel,
    /// Control groups.
    pub cgroup: Cgroup,
    /// holdfast-oci, runc and crun, as far as they are there.
    pub runtimes: Vec<Tool>,
    /// criu, if it is there.
    pub criu: Option<Tool>,
    /// The shim that new containers get, if it is there.
    pub shim: Option<Tool>,
    /// The supervisor.
    pub daemon: Daemon,
    /// What is wrong with the shims' settings file; `None` if nothing is, or if there is none.
    pub shim_settings: Option<String>,
    /// Where output is kept for absent readers.
    pub spill: Vec<Spill>,
    /// Units by name; `None` if this machine is not run by systemd.
    pub units: Option<Vec<Unit>>,
    /// Shims that run.
    pub shims: Vec<Shim>,
    /// Files that belong to nothing any more.
    pub stale: Vec<Stale>,
}

/// What the kernel can do and allows.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// As uname(2) has it.
    pub release: String,
    /// pidfd_open(2).
    pub pidfd: bool,
    /// Whether a pidfd tells the exit status of a process that is nobody's child any more (Linux 6.15).
    pub exit_info: bool,
    /// `fs.inotify.max_user_instances`.
    pub inotify_instances: Option<u64>,
    /// `fs.pipe-user-pages-soft`, 0 for no limit.
    pub pipe_pages: Option<u64>,
    /// `kernel.pid_max`.
    pub pid_max: Option<u64>,
    /// Entries of `/proc` that are processes.
    pub processes: u64,
}

/// Which version of control groups there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupMode {
    /// Version 2 alone.
    Unified,
    /// Version 1, with version 2 beside it for systemd.
    Hybrid,
    /// Version 1 alone.
    Legacy,
    /// None is mounted at `/sys/fs/cgroup`.
    #[default]
    None,
}

impl CgroupMode {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unified => "v2",
            Self::Hybrid => "hybrid (v1 with v2 beside it)",
            Self::Legacy => "v1",
            Self::None => "none",
        }
    }
}

/// Control groups.
#[derive(Clone, Debug, Default)]
pub struct Cgroup {
    /// The version.
    pub mode: CgroupMode,
    /// Controllers that containers can get.
    pub controllers: Vec<String>,
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it calls itself, without its name; empty if it does not say.
    pub version: String,
    /// Why it cannot be run; empty if it can.
    pub error: String,
}

/// The supervisor.
#[derive(Clone, Debug, Default)]
pub struct Daemon {
    /// Why it does not answer; empty if it does.
    pub silent: String,
    /// Its version.
    pub version: String,
    /// Its pid, or 0.
    pub pid: u32,
    /// The report of its last start.
    pub restore: Option<RestoreReport>,
    /// Descriptors: those that are open, and the soft limit.
    pub descriptors: Option<(u64, u64)>,
    /// Processes and threads in its control group, and the limit there.
    pub pids: Option<(u64, u64)>,
    /// Whether it may exceed limits of users (`CAP_SYS_RESOURCE`).
    pub may_exceed: bool,
    /// The unit that it runs in.
    pub unit: Option<String>,
}

/// A place for output.
#[derive(Clone, Debug)]
pub struct Spill {
    /// The directory.
    pub directory: PathBuf,
    /// How much of its filesystem is free for us, in per cent; `None` if that cannot be told.
    pub free_percent: Option<f64>,
    /// How much has to stay free.
    pub floor_percent: u32,
}

/// A unit of systemd's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// `loaded`, `not-found`, …
    pub load: String,
    /// `active`, `inactive`, `failed`, …
    pub active: String,
    /// `enabled`, `disabled`, `static`, … or empty.
    pub file: String,
    /// `process`, `control-group`, … or empty.
    pub kill_mode: String,
    /// Files that change it.
    pub drop_ins: Vec<String>,
}

/// What a shim says when it is asked what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its version.
    Version(String),
    /// Nothing, in time.
    Silence,
    /// An error.
    Error(String),
}

/// A shim that runs.
#[derive(Clone, Debug)]
pub struct Shim {
    /// Its pid.
    pub pid: u32,
    /// Its state, as proc_pid_stat(5) has it.
    pub state: char,
    /// `namespace/id` of its containers.
    pub containers: Vec<String>,
    /// Whether containerd asked for it.
    pub foreign: bool,
    /// What it says.
    pub answer: Answer,
}
