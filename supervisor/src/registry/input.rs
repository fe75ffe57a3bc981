//! All that can happen, all that can be asked, and all that can be done about it.

use std::collections::HashMap;
use std::time::Duration;

use thiserror::Error;

use super::{Due, Snapshot, Stopped};
use crate::container::{Container, Outcome};
use crate::endings::Ending;
use crate::policy::RestartPolicy;
use crate::report::RestoreReport;
use crate::scan::{Findings, ShimTraces};

/// Names a question, so that its answer finds the way back.
pub type ReplyTo = u64;

/// A shim that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimRef {
    /// Its pid.
    pub pid: u32,
    /// With the pid, its identity; 0 if it could not be learned.
    pub start_time: u64,
    /// Its socket, with `unix://`.
    pub address: String,
}

/// Something that happened. `generation` names the run of the container that it belongs to.
#[derive(Debug)]
#[allow(missing_docs)] // the fields are named after what they are
pub enum Input {
    /// Somebody asks.
    Ask { ask: Ask, reply: ReplyTo },
    /// The scan of the disk at start.
    Found(Findings),
    /// What became of a shim that was there before this supervisor.
    Probed { id: String, generation: u64, probe: Probe },
    /// The bundle is made, the shim serves and holds the created container.
    Prepared { id: String, generation: u64, reply: Option<ReplyTo>, result: Result<ShimRef, Refusal> },
    /// The container's first process runs, or could not be started.
    Started { id: String, generation: u64, reply: Option<ReplyTo>, result: Result<u32, Refusal> },
    /// The shim says that the container has ended.
    Exited { id: String, generation: u64, outcome: Outcome },
    /// The shim is dead; `init` is pid and start time of the container's first process if that still lives.
    ShimDied { id: String, generation: u64, init: Option<(u32, u64)> },
    /// Task deleted, shim and bundle gone; `outcome` as far as it was learned on the way.
    Retired { id: String, generation: u64, outcome: Option<Outcome> },
    /// A timer that an effect has set.
    Elapsed { id: String, generation: u64, timer: Timer },
    /// The supervisor is told to end, perhaps again; without live-restore its containers end with it, within a time.
    Terminate { live_restore: bool, within: Option<Duration> },
    /// A moment of the end that [`Effect::Due`] has set.
    Due(Due),
    /// The first process of a container whose shim does not answer has ended.
    ProcessEnded { id: String, generation: u64 },
    /// The container's files are deleted, or not quite.
    Forgotten { id: String, problem: Option<String> },
    /// The shim says that the container was frozen, or thawed.
    Paused { id: String, paused: bool },
    /// An exec runs, or could not be started.
    ExecStarted { id: String, generation: u64, exec_id: String, reply: ReplyTo, result: Result<u32, Refusal> },
    /// An exec has ended.
    ExecExited { id: String, generation: u64, exec_id: String, outcome: Outcome },
}

/// What can be asked. `container` is what a person typed.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Ask {
    Create { container: Box<Container>, spec: String },
    Start { container: String, onlooker: Option<Onlooker> },
    Restart { container: String, timeout: Option<u32>, begun_unix_ns: i64 },
    Wait { container: String, exec_id: String },
    Stop { container: String, timeout: Option<u32> },
    Remove { container: String, force: bool },
    Exec { container: String, exec_id: String, spec: Box<ExecSpec> },
    Kill { container: String, signal: i32 },
    Call { container: String, call: Call },
    Update { container: String, limits: Limits, restart: Option<RestartPolicy>, log: Option<LogChange> },
    List { all: bool },
    Inspect { container: String },
    Report,
    StopAll { within: Option<Duration> },
}

impl Ask {
    /// The container that is meant, as it was typed; `None` for a question about all, and for a new one.
    pub(super) fn container(&self) -> Option<&str> {
        match self {
            Self::Create { .. } | Self::List { .. } | Self::Report | Self::StopAll { .. } => None,
            Self::Start { container, .. }
            | Self::Wait { container, .. }
            | Self::Stop { container, .. }
            | Self::Restart { container, .. }
            | Self::Remove { container, .. }
            | Self::Exec { container, .. }
            | Self::Kill { container, .. }
            | Self::Call { container, .. }
            | Self::Update { container, .. }
            | Self::Inspect { container } => Some(container),
        }
    }
}

/// A request that is passed on to the shim as it is, if the container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Call {
    Kill { signal: i32 },
    Attach { stdout: String, stderr: String },
    Resize { exec_id: String, columns: u32, rows: u32 },
    CloseStdin { exec_id: String },
    Update { limits: Limits },
    ReopenLogs,
    Pause,
    Resume,
}

/// A client that sees a container from its first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onlooker {
    /// Its FIFO for standard output, or for all of a terminal.
    pub stdout: String,
    /// Its FIFO for standard error; empty with a terminal.
    pub stderr: String,
    /// Columns and rows of its window, for a terminal.
    pub window: Option<(u32, u32)>,
}

/// Another way to keep the log: as `LogPolicy::with` takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogChange {
    /// Empty: as it is.
    pub driver: String,
    /// By name.
    pub options: HashMap<String, String>,
}

/// Limits to set; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// In bytes.
    pub memory: Option<i64>,
    /// In thousandths of a CPU.
    pub milli_cpus: Option<i64>,
    /// -1 is unlimited.
    pub pids: Option<i64>,
}

impl Limits {
    /// Whether nothing is to be set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Another process for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ExecSpec {
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub user: String,
    pub terminal: bool,
    /// Columns and rows that its terminal has from the start.
    pub window: Option<(u32, u32)>,
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// The timers that effects set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The stop signal was not enough.
    Stop,
    /// Nor was SIGKILL, as the shim sends it.
    KillShim,
    /// The pause before a restart is over.
    Restart,
    /// Time to ask an unresponsive shim again.
    ProbeAgain,
}

/// What became of a shim that was there before this supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It answers; `None`: but it has no such task.
    Answers(ShimRef, Option<TaskView>),
    /// It is dead; pid and start time of the container's first process if that still lives.
    Dead(Option<(u32, u64)>),
    /// It lives but did not answer in time.
    Silent,
}

/// What a shim says of its task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// Of the first process.
    pub pid: u32,
    /// Where it is in its life.
    pub state: RunState,
    /// When the first process was started, as the kernel says; 0 if unknown.
    pub started_at_unix_ns: i64,
    /// Why it has ended as it has; empty when there is nothing to say.
    pub reason: String,
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RunState {
    Created,
    Running,
    Paused,
    Stopped { status: u32, at_unix_ns: i64 },
}

/// Something to do, in the order of the list.
#[derive(Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Effect {
    /// Write a new container down.
    Store {
        container: Box<Container>,
        spec: String,
    },
    /// Write down what changed.
    Save(Box<Container>),
    /// Make the bundle, start the shim, create the container. Leave nothing if that fails.
    Prepare {
        id: String,
        generation: u64,
        reply: Option<ReplyTo>,
        container: Box<Container>,
    },
    /// Let somebody see the container, if anybody wants to, and start its first process.
    StartTask {
        id: String,
        generation: u64,
        reply: Option<ReplyTo>,
        onlooker: Option<Onlooker>,
    },
    /// Connect if need be, and report the end of the container or of the shim.
    Watch {
        id: String,
        generation: u64,
    },
    /// Report the end of an exec.
    WatchExec {
        id: String,
        generation: u64,
        exec_id: String,
    },
    /// Report the end of a process that has no shim any more: as [`Input::Exited`] if its status is known, else as
    /// [`Input::ShimDied`].
    WatchPid {
        id: String,
        generation: u64,
        pid: u32,
        start_time: u64,
    },
    /// Report the end of the first process of a container whose shim does not answer, or of that shim, as
    /// [`Input::ProcessEnded`].
    WatchProcess {
        id: String,
        generation: u64,
        pid: u32,
        start_time: u64,
    },
    /// Delete the task, end the shim, remove the bundle.
    Retire {
        id: String,
        generation: u64,
        shim_dead: bool,
    },
    /// Find out what became of a shim; `None`: there are no traces of one.
    Probe {
        id: String,
        generation: u64,
        traces: Option<ShimTraces>,
    },
    /// Signal a process that has no shim, or a wedged shim itself.
    KillPid {
        pid: u32,
        start_time: u64,
        signal: i32,
        reply: Option<ReplyTo>,
    },
    /// Write limits down for the next start, and answer.
    KeepLimits {
        id: String,
        limits: Limits,
        reply: ReplyTo,
    },
    /// Pass a request on to the shim; limits that it has set hold for the next start, too.
    Call {
        id: String,
        call: Call,
        reply: Option<ReplyTo>,
    },
    StartExec {
        id: String,
        generation: u64,
        exec_id: String,
        spec: Box<ExecSpec>,
        reply: ReplyTo,
    },
    /// Have the shim let go of an exec, once its client has taken the output.
    DeleteExec {
        id: String,
        exec_id: String,
    },
    /// Write down how something ended that may be gone when somebody asks.
    Remember(Ending),
    /// Delete all that is kept of a container.
    Forget {
        id: String,
    },
    /// Come back with [`Input::Elapsed`].
    Timer {
        id: String,
        generation: u64,
        after: Duration,
        timer: Timer,
    },
    Reply {
        to: ReplyTo,
        answer: Result<Answer, Refusal>,
    },
    Publish(Note),
    /// So many containers are being asked after.
    Restoring {
        containers: usize,
    },
    /// Every container of the scan is classified.
    Restored,
    /// The end has begun; it takes no longer than this. `leave`: also that of the supervisor.
    Stopping {
        within: Duration,
        leave: bool,
    },
    /// Come back with [`Input::Due`].
    Due {
        after: Duration,
        due: Due,
    },
    /// Say how a container was stopped by us.
    Stopped(Stopped),
    /// End.
    Leave,
}

/// Something worth an event of the supervisor's own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Note {
    pub kind: &'static str,
    pub id: String,
    pub detail: String,
}

impl Note {
    pub(super) fn new(kind: &'static str, id: &str, detail: &str) -> Self {
        Self { kind, id: id.to_owned(), detail: detail.to_owned() }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Answer {
    Created { id: String, name: String },
    Started { pid: u32 },
    ExecStarted { id: String, pid: u32 },
    Ended(Ended),
    Done,
    List(Vec<Snapshot>),
    Inspect(Box<Snapshot>),
    Report(Box<RestoreReport>),
    Stopped(Vec<Stopped>),
}

/// How something ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Ended {
    pub id: String,
    pub outcome: Outcome,
}

/// Why a question was not answered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}", self.text())]
pub enum Refusal {
    /// No such thing.
    NotFound(String),
    /// There already.
    Exists(String),
    /// Not in this state.
    Precondition(String),
    /// Malformed.
    Invalid(String),
    /// The shim did not answer in time.
    Unavailable(String),
    /// It was tried, and failed.
    Failed(String),
}

impl Refusal {
    /// The text for the one who asked.
    pub fn text(&self) -> &str {
        match self {
            Self::NotFound(t)
            | Self::Exists(t)
            | Self::Precondition(t)
            | Self::Invalid(t)
            | Self::Unavailable(t)
            | Self::Failed(t) => t,
        }
    }
}
