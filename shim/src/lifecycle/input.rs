//! Everything that can happen.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Exit, SandboxRequest};

/// A process id in the shim's pid namespace.
pub type Pid = u32;

/// Who waits for an answer: a connection and the stream on it. Opaque here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Asker {
    /// The connection's number; numbers are never used again.
    pub connection: u64,
    /// The stream's number on that connection.
    pub stream: u32,
}

/// A piece of work that was begun and whose outcome is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CallId(pub u64);

/// A task's (container's) id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub String);

/// An exec process's id: never empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExecId(pub String);

/// A process of a task. On the wire the init process has an empty exec id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProcessId {
    /// The container's first process.
    Init,
    /// One added later.
    Exec(ExecId),
}

impl ProcessId {
    /// From the wire.
    pub fn from_exec_id(exec_id: &str) -> Self {
        if exec_id.is_empty() { Self::Init } else { Self::Exec(ExecId(exec_id.to_owned())) }
    }

    /// To the wire.
    pub fn exec_id(&self) -> &str {
        match self {
            Self::Init => "",
            Self::Exec(id) => &id.0,
        }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Init => f.write_str("the init process"),
            Self::Exec(id) => write!(f, "exec {:?}", id.0),
        }
    }
}

/// What is asked. Payloads (mounts, resources, process specs) stay with the driver, which finds them by the asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verb {
    /// Make the container.
    Create {
        /// The container shares its pid namespace, so that init's death does not end the others.
        shared_pids: bool,
        /// Nothing is made yet: `Start` restores a container from a checkpoint.
        #[serde(default)]
        from_checkpoint: bool,
    },
    /// Start a process.
    Start,
    /// How is a process?
    State,
    /// Signal a process.
    Kill {
        /// The host's signal number; 0 only probes.
        signal: u32,
        /// All processes of the container, not init alone.
        all: bool,
    },
    /// Add an exec process; it is started by `Start`.
    Exec,
    /// Forget an ended or never started process and free what it holds.
    Delete,
    /// Answer when a process has ended.
    Wait,
    /// Which processes are there?
    Pids,
    /// Freeze the container.
    Pause,
    /// Thaw it.
    Resume,
    /// Change its limits.
    Update,
    /// Write its state to disk.
    Checkpoint,
    /// Tell a terminal its size.
    ResizePty {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Let the process see the end of its input.
    CloseStdin,
    /// What does it use?
    Stats,
    /// Who are you?
    Connect,
    /// End, if nothing is left to look after.
    Shutdown,
    /// Copy a process's output to one more reader.
    Attach,
    /// Close and re-open the log files.
    ReopenLogs,
}

impl Verb {
    /// The word for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Start => "start",
            Self::State => "state",
            Self::Kill { .. } => "kill",
            Self::Exec => "exec",
            Self::Delete => "delete",
            Self::Wait => "wait",
            Self::Pids => "pids",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Update => "update",
            Self::Checkpoint => "checkpoint",
            Self::ResizePty { .. } => "resize",
            Self::CloseStdin => "close the input of",
            Self::Stats => "stats",
            Self::Connect => "connect",
            Self::Shutdown => "shutdown",
            Self::Attach => "attach to",
            Self::ReopenLogs => "reopen the logs of",
        }
    }
}

/// A request with its asker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who waits for the answer.
    pub asker: Asker,
    /// The task in question.
    pub task: TaskId,
    /// The process in question.
    pub process: ProcessId,
    /// What is asked.
    pub verb: Verb,
}

/// How a piece of work ended; for Create, Restore and exec Start, success names the new process.
pub type Outcome = Result<Option<Pid>, Failure>;

/// Why a piece of work failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it means for the asker.
    pub kind: FailureKind,
    /// One line for people, with the OCI runtime's own words unmodified.
    pub text: String,
}

/// The failures that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The container or process is not there, or no longer.
    NotFound,
    /// It is there already.
    AlreadyExists,
    /// The request cannot be carried out as it was put.
    Invalid,
    /// Not with this OCI runtime or not yet.
    Unsupported,
    /// It took longer than its deadline.
    Deadline,
    /// Anything else.
    Other,
}

/// Everything that can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A client asks.
    Request(Request),
    /// A client asks about the sandbox.
    Sandbox(SandboxRequest),
    /// A child that is none of the driver's own was reaped.
    Exited {
        /// Its pid, free for reuse from now on.
        pid: Pid,
        /// How it ended.
        exit: Exit,
    },
    /// An asker's own deadline has passed: it no longer waits.
    GaveUp(Asker),
    /// A connection has closed: none of its askers waits any more.
    Disconnected(u64),
    /// Processes of a task were killed for want of memory since this was last said.
    OutOfMemory {
        /// Which.
        task: TaskId,
        /// How many, as far as that is counted.
        victims: u64,
        /// When that was seen: nanoseconds since the Unix epoch.
        at_unix_ns: u64,
    },
    /// A piece of work that was begun has ended.
    Done {
        /// Which.
        call: CallId,
        /// How.
        outcome: Outcome,
    },
}
