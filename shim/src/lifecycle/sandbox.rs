//! The sandbox of a pod, for a client that drives one: its states and what each of them allows. Pure, like all here.
//!
//! ```text
//!   Creating ──> Created ──> Starting ──> Running ──> Stopping ──> Stopped ──> Leaving ──> (gone)
//!      │            └─────────────────────────────────────────────────^
//!    (undone)
//! ```
//!
//! This shim makes no machine of its own. Its sandbox is a process that does nothing but hold the namespaces which the
//! pod's containers join, and the mounts that were asked for. The containers are tasks like any other: the sandbox's end
//! leaves them to who made them, but for those that shared its pid namespace, which end with it.
//!
//! The order rules of the module hold here too. What only asks is answered at once; what changes something has its turn.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::task::{Lifecycle, Turn};
use super::{
    Asker, CallId, Effect, Effects, Exit, ExitStatus, Failure, Outcome, Pid, ProcessId, Refusal, Reply, TaskId, Work,
};

/// How long the holder may take to end when it was asked to, if the client does not say: it has nothing to do before.
const GRACE_SECS: u32 = 2;
/// And once it was killed.
const DEATH_SECS: u32 = 5;
const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;

/// What is asked of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxVerb {
    /// Mount what it needs.
    Create,
    /// Make the process that holds its namespaces.
    Start,
    /// What do its containers run on?
    Platform,
    /// End that process.
    Stop {
        /// How long it may take before it is killed; 0: the client does not say.
        timeout_secs: u32,
    },
    /// Answer when it has ended.
    Wait,
    /// How is it?
    Status {
        /// With all there is to say.
        verbose: bool,
    },
    /// Is it alive?
    Ping,
    /// End it, undo everything, and end the shim.
    Shutdown,
    /// What does it use?
    Metrics,
}

impl SandboxVerb {
    /// The word for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Platform => "ask for the platform of",
            Self::Stop { .. } => "stop",
            Self::Wait => "wait for",
            Self::Status { .. } => "ask for the status of",
            Self::Ping => "ping",
            Self::Shutdown => "shut down",
            Self::Metrics => "read the metrics of",
        }
    }
}

/// A request with its asker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRequest {
    /// Who waits for the answer.
    pub asker: Asker,
    /// The sandbox in question.
    pub id: TaskId,
    /// What is asked.
    pub verb: SandboxVerb,
    /// When it came: nanoseconds since the Unix epoch.
    pub at_unix_ns: u64,
}

/// What can be said of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxView {
    /// Which.
    pub id: TaskId,
    /// Of the process that holds its namespaces; 0 unless that lives.
    pub pid: Pid,
    /// Containers can join it.
    pub is_ready: bool,
    /// When it was asked for: nanoseconds since the Unix epoch.
    pub created_at_unix_ns: u64,
    /// Set once it has ended.
    pub exit: Option<Exit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SandboxState {
    Creating,
    Created,
    Starting,
    Running,
    Stopping,
    Stopped,
    Leaving,
}

impl SandboxState {
    fn word(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "being stopped",
            Self::Stopped => "stopped",
            Self::Leaving => "being shut down",
        }
    }
}

/// The one change that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Change {
    step: Step,
    asker: Asker,
    /// The outcome that it waits for.
    call: CallId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    Mount,
    /// Undoing: what failed to mount may have been killed at it.
    UndoMount(Failure),
    Hold,
    /// The holder was asked to end, or killed. Its exit is told by itself; an outcome means that it did not come in time.
    End {
        signal: u32,
        /// The sandbox goes once it has ended.
        leaves: bool,
    },
    Unmount,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sandbox {
    id: TaskId,
    state: SandboxState,
    /// 0 until the holder was made.
    pid: Pid,
    created_at_unix_ns: u64,
    /// Set with `Stopped`, and never changed after.
    exit: Option<Exit>,
    waiters: Vec<Asker>,
    change: Option<Change>,
    queue: VecDeque<SandboxRequest>,
}

impl Lifecycle {
    /// What is known of the sandbox with this id; nothing while it is being created.
    pub fn sandbox(&self, id: &TaskId) -> Option<SandboxView> {
        self.sandbox.as_ref().filter(|s| s.id == *id && s.state != SandboxState::Creating).map(Sandbox::view)
    }

    /// Whether the id is that of the sandbox.
    pub fn is_sandbox(&self, id: &TaskId) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| sandbox.id == *id)
    }

    pub(super) fn sandbox_request(&mut self, request: SandboxRequest, effects: &mut Effects) {
        let SandboxRequest { asker, id, verb, at_unix_ns } = request;
        if verb == SandboxVerb::Create {
            return self.create_sandbox(asker, id, at_unix_ns, effects);
        }
        let Some(sandbox) = self.sandbox.as_mut().filter(|sandbox| sandbox.id == id) else {
            return self.request_of_none(asker, id, verb, effects);
        };
        let mut turn = Turn { id: &id, calls: &mut self.calls, effects };
        sandbox.request(asker, verb, at_unix_ns, &mut turn);
    }

    fn create_sandbox(&mut self, asker: Asker, id: TaskId, at_unix_ns: u64, effects: &mut Effects) {
        let refusal = match &self.sandbox {
            Some(sandbox) => Some(Refusal::SandboxExists(sandbox.id.clone())),
            // They would share a record.
            None => self.contains(&id).then(|| Refusal::TaskExists(id.clone())),
        };
        if let Some(refusal) = refusal {
            effects.push(Effect::Reply(asker, Err(refusal)));
            return;
        }
        let mut turn = Turn { id: &id, calls: &mut self.calls, effects };
        turn.effects.push(Effect::Adopt(asker, id.clone(), ProcessId::Init));
        let call = turn.begin(&ProcessId::Init, Work::Mount, Some(asker));
        self.ends_when_empty = false;
        self.sandbox = Some(Sandbox {
            id,
            state: SandboxState::Creating,
            pid: 0,
            created_at_unix_ns: at_unix_ns,
            exit: None,
            waiters: Vec::new(),
            change: Some(Change { step: Step::Mount, asker, call }),
            queue: VecDeque::new(),
        });
    }

    fn request_of_none(&mut self, asker: Asker, id: TaskId, verb: SandboxVerb, effects: &mut Effects) {
        match verb {
            SandboxVerb::Start => {
                let refusal = Refusal::SandboxState { verb: verb.name(), id, state: "not created" };
                effects.push(Effect::Reply(asker, Err(refusal)));
            }
            // As of a shim whose sandbox could not be created, which is asked to go that way.
            SandboxVerb::Shutdown if self.sandbox.is_none() => self.end_after_sandbox(asker, effects),
            _ => effects.push(Effect::Reply(asker, Err(Refusal::NoSandbox(id)))),
        }
    }

    /// Not as long as there are tasks: then with the last of them.
    fn end_after_sandbox(&mut self, asker: Asker, effects: &mut Effects) {
        if self.is_empty() {
            effects.push(Effect::Stop);
        } else {
            self.ends_when_empty = true;
        }
        effects.push(Effect::Reply(asker, Ok(Reply::Empty)));
    }

    /// Whether the pid was the holder's.
    pub(super) fn sandbox_exited(&mut self, pid: Pid, exit: Exit, effects: &mut Effects) -> bool {
        let Some(sandbox) = self.sandbox.as_mut().filter(|s| s.pid == pid && pid != 0 && s.exit.is_none()) else {
            return false;
        };
        let id = sandbox.id.clone();
        sandbox.ended(exit, &mut Turn { id: &id, calls: &mut self.calls, effects });
        self.sandbox_goes_on(effects);
        true
    }

    pub(super) fn sandbox_done(&mut self, call: CallId, outcome: Outcome, early: Option<Exit>, effects: &mut Effects) {
        let Some(sandbox) = &mut self.sandbox else { return };
        // One that its exit has overtaken has nobody to tell.
        let Some(Change { step, asker, .. }) = sandbox.change.take_if(|change| change.call == call) else { return };
        let id = sandbox.id.clone();
        let mut turn = Turn { id: &id, calls: &mut self.calls, effects };
        match (step, outcome) {
            (Step::Mount, Ok(_)) => {
                sandbox.state = SandboxState::Created;
                turn.save();
                turn.reply(asker, Ok(Reply::Empty));
            }
            // An errand, since nobody is told how it went: the asker hears of the first failure.
            (Step::Mount, Err(failure)) => {
                let call = turn.begin(&ProcessId::Init, Work::Unmount, None);
                sandbox.change = Some(Change { step: Step::UndoMount(failure), asker, call });
            }
            (Step::UndoMount(failure), _) => {
                effects.push(Effect::Forget(id));
                effects.push(Effect::Reply(asker, Err(Refusal::Failed(failure))));
                self.drop_sandbox(effects);
            }
            (Step::Hold, Ok(pid)) => sandbox.started(asker, pid.unwrap_or(0), early, &mut turn),
            (Step::Hold, Err(failure)) => {
                sandbox.state = SandboxState::Created;
                turn.reply(asker, Err(Refusal::Failed(failure)));
            }
            (Step::End { signal: SIGKILL, .. }, Err(failure)) => {
                sandbox.state = SandboxState::Running;
                turn.reply(asker, Err(Refusal::Failed(failure)));
            }
            (Step::End { leaves, .. }, _) => sandbox.end(asker, SIGKILL, DEATH_SECS, leaves, &mut turn),
            (Step::Unmount, Ok(_)) => {
                effects.push(Effect::Forget(id));
                self.drop_sandbox_for(asker, effects);
            }
            (Step::Unmount, Err(failure)) => {
                sandbox.state = SandboxState::Stopped;
                turn.reply(asker, Err(Refusal::Failed(failure)));
            }
        }
        self.sandbox_goes_on(effects);
    }

    fn drop_sandbox_for(&mut self, asker: Asker, effects: &mut Effects) {
        let left = self.sandbox.take();
        self.end_after_sandbox(asker, effects);
        self.answer_what_waits(left, effects);
    }

    fn drop_sandbox(&mut self, effects: &mut Effects) {
        let left = self.sandbox.take();
        self.answer_what_waits(left, effects);
    }

    /// Rule "an answer for each request": as if they came now.
    fn answer_what_waits(&mut self, left: Option<Sandbox>, effects: &mut Effects) {
        for request in left.into_iter().flat_map(|sandbox| sandbox.queue) {
            self.sandbox_request(request, effects);
        }
    }

    /// After a change ended: lets what waited have its turn.
    fn sandbox_goes_on(&mut self, effects: &mut Effects) {
        while let Some(sandbox) = self.sandbox.as_mut().filter(|sandbox| sandbox.change.is_none())
            && let Some(request) = sandbox.queue.pop_front()
        {
            self.sandbox_request(request, effects);
        }
    }

    /// Whether nothing of a sandbox runs or can be started any more.
    pub(super) fn sandbox_has_ended(&self) -> bool {
        self.sandbox.as_ref().is_none_or(|sandbox| sandbox.state == SandboxState::Stopped)
    }

    /// Whether there was one.
    pub(super) fn forget_sandbox_waiters(&mut self, gone: impl Fn(Asker) -> bool) -> bool {
        let Some(sandbox) = &mut self.sandbox else { return false };
        let before = sandbox.waiters.len();
        sandbox.waiters.retain(|waiter| !gone(*waiter));
        sandbox.waiters.len() < before
    }
}

impl Sandbox {
    fn view(&self) -> SandboxView {
        let lives = self.exit.is_none() && self.pid != 0;
        SandboxView {
            id: self.id.clone(),
            pid: if lives { self.pid } else { 0 },
            is_ready: lives && self.state == SandboxState::Running,
            created_at_unix_ns: self.created_at_unix_ns,
            exit: self.exit,
        }
    }

    fn request(&mut self, asker: Asker, verb: SandboxVerb, at_unix_ns: u64, turn: &mut Turn<'_>) {
        use SandboxState as S;
        let changes = matches!(verb, SandboxVerb::Start | SandboxVerb::Stop { .. } | SandboxVerb::Shutdown);
        if changes && self.change.is_some() {
            self.queue.push_back(SandboxRequest { asker, id: self.id.clone(), verb, at_unix_ns });
            return;
        }
        match (verb, self.state) {
            // It is not there yet.
            (_, S::Creating) => turn.reply(asker, Err(Refusal::NoSandbox(self.id.clone()))),
            (SandboxVerb::Platform, _) => turn.reply(asker, Ok(Reply::Platform)),
            (SandboxVerb::Status { verbose }, _) => turn.reply(asker, Ok(Reply::SandboxStatus(self.view(), verbose))),
            (SandboxVerb::Wait, _) => match self.exit {
                Some(exit) => turn.reply(asker, Ok(Reply::Exit(exit))),
                None => self.waiters.push(asker),
            },
            (SandboxVerb::Ping, _) if self.exit.is_none() => turn.reply(asker, Ok(Reply::Empty)),
            (SandboxVerb::Metrics, _) if self.view().pid != 0 => {
                turn.effects.push(Effect::ReadSandboxMetrics(asker, self.id.clone(), self.pid));
            }
            (SandboxVerb::Start, S::Created) => {
                self.state = S::Starting;
                self.begin(Step::Hold, asker, Work::HoldNamespaces, turn);
            }
            (SandboxVerb::Stop { .. }, S::Stopped) => turn.reply(asker, Ok(Reply::Empty)),
            (SandboxVerb::Stop { .. }, S::Created) => {
                self.ended(Exit { status: ExitStatus::NONE, at_unix_ns }, turn);
                turn.reply(asker, Ok(Reply::Empty));
            }
            (SandboxVerb::Stop { timeout_secs }, S::Running) => {
                let grace = if timeout_secs == 0 { GRACE_SECS } else { timeout_secs };
                self.end(asker, SIGTERM, grace, false, turn);
            }
            (SandboxVerb::Shutdown, S::Running) => self.end(asker, SIGTERM, GRACE_SECS, true, turn),
            (SandboxVerb::Shutdown, S::Created) => {
                self.ended(Exit { status: ExitStatus::NONE, at_unix_ns }, turn);
                self.leave(asker, turn);
            }
            (SandboxVerb::Shutdown, S::Stopped) => self.leave(asker, turn),
            (_, state) => {
                let refusal = Refusal::SandboxState { verb: verb.name(), id: self.id.clone(), state: state.word() };
                turn.reply(asker, Err(refusal));
            }
        }
    }

    fn begin(&mut self, step: Step, asker: Asker, work: Work, turn: &mut Turn<'_>) {
        let call = turn.begin(&ProcessId::Init, work, Some(asker));
        self.change = Some(Change { step, asker, call });
    }

    fn started(&mut self, asker: Asker, pid: Pid, early: Option<Exit>, turn: &mut Turn<'_>) {
        self.state = SandboxState::Running;
        self.pid = pid;
        turn.save();
        turn.reply(asker, Ok(Reply::SandboxStarted(self.view())));
        if let Some(exit) = early {
            self.ended(exit, turn);
        }
    }

    /// It ends by signal, and its exit says so; the call is only a limit.
    fn end(&mut self, asker: Asker, signal: u32, within_secs: u32, leaves: bool, turn: &mut Turn<'_>) {
        self.state = SandboxState::Stopping;
        let work = Work::EndHolder { pid: self.pid, signal, within_secs };
        self.begin(Step::End { signal, leaves }, asker, work, turn);
    }

    fn ended(&mut self, exit: Exit, turn: &mut Turn<'_>) {
        self.state = SandboxState::Stopped;
        self.exit = Some(exit);
        turn.save();
        for waiter in std::mem::take(&mut self.waiters) {
            turn.reply(waiter, Ok(Reply::Exit(exit)));
        }
        let is_end = |change: &mut Change| matches!(change.step, Step::End { .. });
        match self.change.take_if(is_end) {
            Some(Change { step: Step::End { leaves: true, .. }, asker, .. }) => self.leave(asker, turn),
            Some(Change { asker, .. }) => turn.reply(asker, Ok(Reply::Empty)),
            None => {}
        }
    }

    fn leave(&mut self, asker: Asker, turn: &mut Turn<'_>) {
        self.state = SandboxState::Leaving;
        self.begin(Step::Unmount, asker, Work::Unmount, turn);
    }
}

/// For tests that go through every state.
#[cfg(test)]
impl Lifecycle {
    pub(super) fn sandbox_state(&self) -> Option<SandboxState> {
        self.sandbox.as_ref().map(|sandbox| sandbox.state)
    }
}
