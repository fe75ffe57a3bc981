//! The init process: its states and what each of them allows.

use serde::{Deserialize, Serialize};

use super::{Asker, CallId, Exit, Failure, Pid, ProcessId, ProcessView, Refusal, Status, Verb};

/// See the picture in the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum InitState {
    Creating,
    Created,
    /// Mounted, and not known to the OCI runtime: `Start` restores it.
    FromCheckpoint,
    Starting,
    Restoring,
    Running,
    Pausing,
    Paused,
    Stopped,
}

/// See the rule "heard out before announced".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum HeardOut {
    #[default]
    No,
    UnderWay(CallId),
    Yes,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Init {
    pub(super) state: InitState,
    /// 0 until the runtime has named it.
    pub(super) pid: Pid,
    /// Set with `Stopped`, and never changed after.
    pub(super) exit: Option<Exit>,
    #[serde(default)]
    pub(super) oom_killed: bool,
    /// Whether it was heard out after its end.
    #[serde(default)]
    pub(super) heard_out: HeardOut,
    pub(super) waiters: Vec<Asker>,
}

/// The one change of the init process, or of the task as a whole, that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Op {
    Create(CreateStep),
    /// An exit that overtakes the start is kept here (rule "start before exit").
    Start(Option<Exit>),
    Restore(RestoreStep),
    Kill,
    Pause,
    Resume,
    Update,
    Checkpoint,
    Delete(DeleteStep),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum CreateStep {
    Mount,
    /// The only step of what `Start` will restore.
    MountForRestore,
    Runtime,
    /// Undoing: the runtime may have left half a container.
    UndoRuntime(Failure),
    UndoMount(Failure),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum RestoreStep {
    Runtime,
    /// Undoing: half a container would be in the way of the next try.
    Undo(Failure),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum DeleteStep {
    Drain,
    Runtime,
    /// A created container was killed by the runtime's delete; its exit is on the way, and the wait for it is bounded.
    AwaitExit,
    Unmount,
}

/// An [`Op`] with what it needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) op: Op,
    pub(super) asker: Asker,
    /// The outcome that it waits for.
    pub(super) call: Option<CallId>,
}

impl InitState {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::FromCheckpoint => "created from a checkpoint and not restored",
            Self::Starting => "starting",
            Self::Restoring => "being restored",
            Self::Running => "running",
            Self::Pausing => "being paused",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl Init {
    pub(super) fn new() -> Self {
        Self {
            state: InitState::Creating,
            pid: 0,
            exit: None,
            oom_killed: false,
            heard_out: HeardOut::No,
            waiters: Vec::new(),
        }
    }

    pub(super) fn view(&self) -> ProcessView {
        let status = match self.state {
            InitState::Creating
            | InitState::Created
            | InitState::FromCheckpoint
            | InitState::Starting
            | InitState::Restoring => Status::Created,
            InitState::Running => Status::Running,
            InitState::Pausing => Status::Pausing,
            InitState::Paused => Status::Paused,
            InitState::Stopped => Status::Stopped,
        };
        ProcessView { process: ProcessId::Init, pid: self.pid, status, exit: self.exit, oom_killed: self.oom_killed }
    }

    /// Whether `verb` is a legal move now (contract 3.2). Only called while no other change is under way.
    pub(super) fn allows(&self, verb: Verb) -> Result<(), Refusal> {
        use InitState as S;
        let allowed = match verb {
            Verb::Start => matches!(self.state, S::Created | S::FromCheckpoint),
            Verb::Kill { .. } => {
                if self.state == S::Stopped {
                    return Err(Refusal::Finished(ProcessId::Init));
                }
                true
            }
            Verb::Delete => matches!(self.state, S::Created | S::FromCheckpoint | S::Stopped),
            Verb::Pause => self.state == S::Running,
            Verb::Resume => self.state == S::Paused,
            // What was never restored is not known to the runtime, which says so.
            Verb::Update => matches!(self.state, S::Created | S::FromCheckpoint | S::Running | S::Paused),
            Verb::Checkpoint => matches!(self.state, S::Running | S::Paused),
            _ => true,
        };
        if allowed { Ok(()) } else { Err(self.refuse(verb)) }
    }

    pub(super) fn refuse(&self, verb: Verb) -> Refusal {
        Refusal::WrongState { verb: verb.name(), process: ProcessId::Init, state: self.state.word() }
    }
}
