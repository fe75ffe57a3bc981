//! Everything that can be done about what happened.

use serde::{Deserialize, Serialize};

use super::{Asker, CallId, Exit, Pid, ProcessId, Refusal, SandboxView, TaskId};

/// What the driver must do, in this order.
pub type Effects = Vec<Effect>;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answer a request.
    Reply(Asker, Result<Reply, Refusal>),
    /// The id is accepted: keep what came with the request, for the work that follows.
    Adopt(Asker, TaskId, ProcessId),
    /// Begin what takes time; its outcome comes back as `Input::Done`.
    Begin {
        /// The outcome's name.
        call: CallId,
        /// For which task.
        task: TaskId,
        /// What.
        work: Work,
        /// Whose request it serves: the payload is found by it. None for the shim's own errands.
        asker: Option<Asker>,
    },
    /// Tell containerd.
    Publish(TaskId, Event),
    /// Write the record of a task. A failure is retried by the driver and stops nothing.
    Save(TaskId),
    /// Close all stdio of a process and drop what the driver holds for it.
    Release(TaskId, ProcessId),
    /// Drop all that is left of a task, its record included.
    Forget(TaskId),
    /// The process was reaped: its terminal has no more to say than what is in it now.
    OutputEnds(TaskId, ProcessId),
    /// Count once more who was killed for want of memory: what there is to say comes before anything that follows from this.
    CountOomKills {
        /// Of which task.
        task: TaskId,
        /// Init has ended: nothing of the task's memory is watched any longer.
        last: bool,
    },
    /// Signal a process that the shim can name safely (unreaped), then answer.
    Signal {
        /// Who asked.
        asker: Asker,
        /// An unreaped pid.
        pid: Pid,
        /// The host's signal number.
        signal: u32,
    },
    /// Tell a terminal its size, then answer.
    Resize {
        /// Who asked.
        asker: Asker,
        /// Whose terminal.
        task: TaskId,
        /// Whose terminal.
        process: ProcessId,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Drop the shim's own write end of the input, then answer.
    CloseStdin(Asker, TaskId, ProcessId),
    /// Add a reader to the output, then answer.
    Attach(Asker, TaskId, ProcessId),
    /// Re-open log files, then answer.
    ReopenLogs(Asker, TaskId),
    /// Read the control group's processes off the loop, then answer; from `known` if that fails or is slow.
    ReadPids {
        /// Who asked.
        asker: Asker,
        /// Of which task.
        task: TaskId,
        /// What the shim knows by itself.
        known: Vec<KnownProcess>,
    },
    /// Read the control group's figures off the loop, then answer.
    ReadStats(Asker, TaskId),
    /// The same of a sandbox, whose holder has this pid.
    ReadSandboxMetrics(Asker, TaskId, Pid),
    /// Nothing is left to look after: close the socket now, answer what is to be answered, deliver what is to be
    /// delivered, end.
    Stop,
}

/// Work that takes time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Mount the root filesystem.
    Mount,
    /// Open the stdio, call the runtime's `create`.
    Create,
    /// `start`.
    Start,
    /// Open the stdio, call the runtime's `restore`.
    Restore,
    /// Open the stdio, call the runtime's `exec`.
    ExecStart(ProcessId),
    /// `kill`.
    Kill {
        /// The host's signal number.
        signal: u32,
        /// Of all processes.
        all: bool,
    },
    /// `pause`.
    Pause,
    /// `resume`.
    Resume,
    /// `update`.
    Update,
    /// `checkpoint`.
    Checkpoint,
    /// `delete`.
    Delete {
        /// Kill what still runs.
        force: bool,
    },
    /// Wait until a process's output has been passed on, up to a bound.
    Drain(ProcessId),
    /// Wait shortly until what an ended process had printed has reached a reader who is there.
    Settle(ProcessId),
    /// Kill an unreaped init (0: it is reaped, and its exit not announced yet) that the runtime says it has killed, and give
    /// it a bounded time. Ends with a failure when that has passed; an end in time is told by the exit itself.
    End(Pid),
    /// Unmount the root filesystem.
    Unmount,
    /// Make the process that holds a sandbox's namespaces.
    HoldNamespaces,
    /// Signal it and give it that time. Ends with a failure when that has passed; an end in time is told by the exit itself.
    EndHolder {
        /// An unreaped pid.
        pid: Pid,
        /// The host's signal number.
        signal: u32,
        /// The limit.
        within_secs: u32,
    },
    /// After a failed Create: end what is left in the container's control group, and unmount the root filesystem.
    Sweep,
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Empty,
    /// Done, with the pid in question.
    Pid(Pid),
    /// To `State`.
    State(TaskId, ProcessView),
    /// To `Wait`.
    Exit(Exit),
    /// To `Delete`.
    Deleted(Pid, Exit),
    /// To `Pids`.
    Pids(Vec<KnownProcess>),
    /// To `Connect`: 0 for an unknown task.
    Connected(Pid),
    /// To the start of a sandbox.
    SandboxStarted(SandboxView),
    /// To the question for a sandbox's status; whether all is to be said.
    SandboxStatus(SandboxView, bool),
    /// What a sandbox's containers run on.
    Platform,
}

/// A process that the shim knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownProcess {
    /// Its pid.
    pub pid: Pid,
    /// Set for an exec.
    pub exec_id: Option<String>,
}

/// What can be said of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessView {
    /// Which.
    pub process: ProcessId,
    /// Its pid, 0 while it has none.
    pub pid: Pid,
    /// Where it is in its life.
    pub status: Status,
    /// Set once it has ended.
    pub exit: Option<Exit>,
    /// It was ended for want of memory, as far as can be told.
    pub oom_killed: bool,
}

/// Where a process is in its life, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the field's words, explained in the module's picture
pub enum Status {
    Created,
    Running,
    Pausing,
    Paused,
    Stopped,
}

/// What containerd is told. The directory of a checkpoint came with the request of the asker in `Checkpointed`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // named like containerd's topics
pub enum Event {
    Created { pid: Pid },
    Started { pid: Pid },
    ExecAdded { process: ProcessId },
    ExecStarted { process: ProcessId, pid: Pid },
    Exited { process: ProcessId, pid: Pid, exit: Exit },
    Deleted { pid: Pid, exit: Exit },
    Paused,
    Resumed,
    OutOfMemory,
    Checkpointed(Asker),
}
