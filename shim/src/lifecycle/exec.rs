//! An exec process: its states and what each of them allows.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Asker, CallId, Exit, Pid, ProcessId, ProcessView, Refusal, Request, Status, Verb};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ExecState {
    Created,
    Starting,
    Running,
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exec {
    pub(super) state: ExecState,
    /// 0 until the runtime has named it.
    pub(super) pid: Pid,
    pub(super) exit: Option<Exit>,
    #[serde(default)]
    pub(super) oom_killed: bool,
    /// It was reaped, and is heard out before that is told: the pid may be somebody else's by now.
    #[serde(default)]
    pub(super) dying: Option<(CallId, Exit)>,
    pub(super) waiters: Vec<Asker>,
    /// The start or the drain before a delete that is under way.
    pub(super) busy: Option<(CallId, Asker)>,
    /// What came while busy.
    pub(super) queue: VecDeque<Request>,
}

impl Exec {
    pub(super) fn new() -> Self {
        Self {
            state: ExecState::Created,
            pid: 0,
            exit: None,
            oom_killed: false,
            dying: None,
            waiters: Vec::new(),
            busy: None,
            queue: VecDeque::new(),
        }
    }

    /// Whether its end must come before init's (rule "init last").
    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, ExecState::Starting | ExecState::Running)
    }

    /// Whether a signal can be refused at once, since nothing that is under way will change it.
    pub(super) fn has_ended(&self, verb: Verb) -> bool {
        matches!(verb, Verb::Kill { .. }) && self.state == ExecState::Stopped
    }

    pub(super) fn view(&self, id: &ProcessId, task_is: Status) -> ProcessView {
        let status = match self.state {
            ExecState::Created | ExecState::Starting => Status::Created,
            // A frozen container's execs are frozen with it.
            ExecState::Running if matches!(task_is, Status::Pausing | Status::Paused) => task_is,
            ExecState::Running => Status::Running,
            ExecState::Stopped => Status::Stopped,
        };
        ProcessView { process: id.clone(), pid: self.pid, status, exit: self.exit, oom_killed: self.oom_killed }
    }

    /// Whether `verb` is a legal move now. Only called while no other change is under way.
    pub(super) fn allows(&self, id: &ProcessId, verb: Verb) -> Result<(), Refusal> {
        match (verb, self.state) {
            (Verb::Kill { .. }, ExecState::Created) => Err(Refusal::NotStarted(id.clone())),
            (Verb::Kill { .. }, _) if self.dying.is_some() => Err(Refusal::Finished(id.clone())),
            (Verb::Kill { .. }, ExecState::Stopped) => Err(Refusal::Finished(id.clone())),
            (Verb::Start, ExecState::Starting | ExecState::Running | ExecState::Stopped)
            | (Verb::Delete, ExecState::Starting | ExecState::Running)
            | (Verb::ResizePty { .. }, ExecState::Stopped) => Err(Refusal::WrongState {
                verb: verb.name(),
                process: id.clone(),
                state: match self.state {
                    ExecState::Created => "created",
                    ExecState::Starting => "starting",
                    ExecState::Running => "running",
                    ExecState::Stopped => "stopped",
                },
            }),
            _ => Ok(()),
        }
    }
}
