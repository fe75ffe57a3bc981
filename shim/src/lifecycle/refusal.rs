//! Every reason to say no.

use std::fmt;

use super::{Failure, ProcessId, TaskId};

/// A refusal is an answer, not a fault of the shim: it is sent, not logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such task, or not yet, or no longer.
    NoTask(TaskId),
    /// No such exec.
    NoProcess(TaskId, ProcessId),
    /// The id is taken.
    TaskExists(TaskId),
    /// The exec id is taken.
    ProcessExists(TaskId, ProcessId),
    /// The process is in a state in which this cannot be done.
    WrongState {
        /// What was asked.
        verb: &'static str,
        /// Of which process.
        process: ProcessId,
        /// The state that forbids it.
        state: &'static str,
    },
    /// No such sandbox, or not yet, or no longer.
    NoSandbox(TaskId),
    /// A sandbox is there already: this one.
    SandboxExists(TaskId),
    /// The sandbox is in a state in which this cannot be done.
    SandboxState {
        /// What was asked.
        verb: &'static str,
        /// Of which.
        id: TaskId,
        /// The state that forbids it.
        state: &'static str,
    },
    /// The process has ended, so it cannot be signalled.
    Finished(ProcessId),
    /// The init process has ended, so no other can be started.
    InitExited(TaskId),
    /// The process was never started.
    NotStarted(ProcessId),
    /// The exec could not be started, so that its exit cannot be awaited.
    StartFailed(ProcessId),
    /// This shim does not do that.
    Unsupported(String),
    /// The request makes no sense as it was put.
    Invalid(String),
    /// The asker's own deadline has passed.
    Late,
    /// What is needed for the answer is not there.
    Unavailable(String),
    /// The work was tried and failed.
    Failed(Failure),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTask(id) => write!(f, "task {:?} not found", id.0),
            Self::NoProcess(id, process) => write!(f, "{process} of task {:?} not found", id.0),
            Self::TaskExists(id) => write!(f, "task {:?} already exists", id.0),
            Self::ProcessExists(id, process) => write!(f, "{process} of task {:?} already exists", id.0),
            Self::WrongState { verb, process, state } => write!(f, "cannot {verb} {process}: it is {state}"),
            Self::NoSandbox(id) => write!(f, "sandbox {:?} not found", id.0),
            Self::SandboxExists(id) => write!(f, "sandbox {:?} already exists", id.0),
            Self::SandboxState { verb, id, state } => write!(f, "cannot {verb} sandbox {:?}: it is {state}", id.0),
            Self::Finished(process) => write!(f, "{process}: process already finished"),
            Self::InitExited(id) => write!(f, "the init process of task {:?} has exited: container not running", id.0),
            Self::NotStarted(process) => write!(f, "{process} was not started"),
            Self::StartFailed(process) => write!(f, "{process} could not be started"),
            Self::Unsupported(what) | Self::Invalid(what) | Self::Unavailable(what) => f.write_str(what),
            Self::Late => f.write_str("the request's deadline has passed"),
            Self::Failed(failure) => f.write_str(&failure.text),
        }
    }
}
