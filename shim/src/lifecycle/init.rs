//! The init process: its states and what each of them allows.

use serde::{Deserialize, Serialize};

use super::{Asker, CallId, Exit, Failure, Pid, ProcessId, ProcessView, Refusal, Status, Verb};

/// See the picture in the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum InitState {
    Creating,
    Created,
    Starting,
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
    Kill,
    Pause,
    Resume,
    Update,
    Delete(DeleteStep),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum CreateStep {
    Mount,
    Runtime,
    /// Undoing: the runtime may have left half a container.
    UndoRuntime(Failure),
    UndoMount(Failure),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum DeleteStep {
    Drain,
    Runtime,
    /// A created container was killed by the runtime's delete; its exit is on the way.
    AwaitExit,
    Unmount,
}

/// An [`Op`] with what it needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) op: Op,
    pub(super) asker: Asker,
    /// The outcome that it waits for; none in [`DeleteStep::AwaitExit`].
    pub(super) call: Option<CallId>,
}

impl InitState {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "being paused",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl Init {
    pub(super) fn new() -> Self {
        Self { state: InitState::Creating, pid: 0, exit: None, heard_out: HeardOut::No, waiters: Vec::new() }
    }

    pub(super) fn view(&self) -> ProcessView {
        let status = match self.state {
            InitState::Creating | InitState::Created | InitState::Starting => Status::Created,
            InitState::Running => Status::Running,
            InitState::Pausing => Status::Pausing,
            InitState::Paused => Status::Paused,
            InitState::Stopped => Status::Stopped,
        };
        ProcessView { process: ProcessId::Init, pid: self.pid, status, exit: self.exit }
    }

    /// Whether `verb` is a legal move now (contract 3.2). Only called while no other change is under way.
    pub(super) fn allows(&self, verb: Verb) -> Result<(), Refusal> {
        use InitState as S;
        let allowed = match verb {
            Verb::Start => self.state == S::Created,
            Verb::Kill { .. } => {
                if self.state == S::Stopped {
                    return Err(Refusal::Finished(ProcessId::Init));
                }
                true
            }
            Verb::Delete => matches!(self.state, S::Created | S::Stopped),
            Verb::Pause => self.state == S::Running,
            Verb::Resume => self.state == S::Paused,
            Verb::Update => matches!(self.state, S::Created | S::Running | S::Paused),
            _ => true,
        };
        if allowed { Ok(()) } else { Err(self.refuse(verb)) }
    }

    pub(super) fn refuse(&self, verb: Verb) -> Refusal {
        Refusal::WrongState { verb: verb.name(), process: ProcessId::Init, state: self.state.word() }
    }
}
