//! Init and execs together: who is asked what, early exits, who is announced last, when the shim may end.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::exec::{Exec, ExecState};
use super::init::{CreateStep, DeleteStep, HeardOut, Init, InitState, Op, RestoreStep, Running};
use super::sandbox::Sandbox;
use super::{
    Asker, CallId, Effect, Effects, Event, ExecId, Exit, Failure, FailureKind, Input, KnownProcess, Outcome, Pid,
    ProcessId, Refusal, Reply, Request, Status, TaskId, Verb, Work,
};

/// All tasks of the shim. Serialisable whole: nothing else is needed to go on elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    tasks: BTreeMap<TaskId, Task>,
    pub(super) calls: Calls,
    /// Exits that nobody claimed while a call was in flight that may yet name their pid.
    stash: Vec<(Pid, Exit)>,
    /// A Shutdown came while all there was were tasks whose Create is being undone, or the sandbox was shut down before its
    /// tasks were deleted: the shim ends with the last of them.
    #[serde(alias = "ends_when_undone")]
    pub(super) ends_when_empty: bool,
    /// That of a client which drives one (`sandbox.rs`). A shim has one at most.
    #[serde(default)]
    pub(super) sandbox: Option<Sandbox>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Task {
    init: Init,
    execs: BTreeMap<ExecId, Exec>,
    running: Option<Running>,
    queue: VecDeque<Request>,
    shared_pids: bool,
    /// Init was reaped; told once the last exec's exit was (rule "init last").
    init_exit: Option<Exit>,
    /// Deleted while it was being created: whatever comes of that is undone.
    unwanted: bool,
    #[serde(default)]
    lack: Lack,
    #[serde(default)]
    errands: Errands,
}

/// What the shim has the runtime do that nobody asked for. They have their turns before all that waits in the queue (rule "one
/// at a time"): a runtime that kills all freezes them for that, and one that deletes beside it finds the container paused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Errands {
    /// What is left of a frozen container could neither end nor be deleted.
    thaw: bool,
    /// Without a pid namespace of its own nothing ends the other processes with init.
    kill_the_rest: bool,
    under_way: Option<(CallId, Errand)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Errand {
    Thaw,
    KillTheRest,
}

impl Errands {
    /// Takes the next one, unless one is under way.
    fn next(&mut self) -> Option<Errand> {
        if self.under_way.is_some() {
            return None;
        }
        // What is frozen cannot heed a signal.
        if std::mem::take(&mut self.thaw) {
            return Some(Errand::Thaw);
        }
        std::mem::take(&mut self.kill_the_rest).then_some(Errand::KillTheRest)
    }

    /// Whether processes may be left that are to end with init.
    fn may_leave_some_alive(&self) -> bool {
        self.kill_the_rest || matches!(self.under_way, Some((_, Errand::KillTheRest)))
    }
}

/// What was told of a task's lack of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Lack {
    times: u32,
    /// How many were killed and are not known by their exit.
    victims: u64,
    last_at_unix_ns: u64,
}

impl Lack {
    /// How far apart the count of a kill and the end of its victim may be, in nanoseconds: a machine without memory is slow.
    const APART_NS: u64 = 5_000_000_000;

    fn note(&mut self, victims: u64, at_unix_ns: u64) {
        // Who has not shown by then was no process of ours.
        let before = if self.is_close(at_unix_ns) { self.victims } else { 0 };
        *self = Self { times: self.times + 1, victims: before + victims, last_at_unix_ns: at_unix_ns };
    }

    fn is_close(self, at_unix_ns: u64) -> bool {
        self.last_at_unix_ns.abs_diff(at_unix_ns) <= Self::APART_NS
    }

    /// Whether an exit is the kernel's doing for want of memory, as far as can be told: it says how many it has killed, and
    /// not whom.
    fn may_explain(self, exit: Exit) -> bool {
        self.times > 0 && exit.status.may_be_for_want_of_memory() && self.is_close(exit.at_unix_ns)
    }

    /// The same of an exec: no more of them than were killed.
    fn explains(&mut self, exit: Exit) -> bool {
        let explained = self.victims > 0 && self.may_explain(exit);
        self.victims -= u64::from(explained);
        explained
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Calls {
    last: u64,
    in_flight: BTreeMap<CallId, Call>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Call {
    task: TaskId,
    process: ProcessId,
    /// Its success names a pid that may have been reaped before.
    names_pid: bool,
}

/// One input being handled: the task's id and what it leads to.
pub(super) struct Turn<'a> {
    pub(super) id: &'a TaskId,
    pub(super) calls: &'a mut Calls,
    pub(super) effects: &'a mut Effects,
}

impl Turn<'_> {
    pub(super) fn reply(&mut self, asker: Asker, reply: Result<Reply, Refusal>) {
        self.effects.push(Effect::Reply(asker, reply));
    }

    pub(super) fn begin(&mut self, process: &ProcessId, work: Work, asker: Option<Asker>) -> CallId {
        self.calls.last += 1;
        let call = CallId(self.calls.last);
        let names_pid = matches!(work, Work::Create | Work::Restore | Work::ExecStart(_) | Work::HoldNamespaces);
        self.calls.in_flight.insert(call, Call { task: self.id.clone(), process: process.clone(), names_pid });
        self.effects.push(Effect::Begin { call, task: self.id.clone(), work, asker });
        call
    }

    /// Rules "heard out before announced" and "out of memory before exit".
    fn hear_out(&mut self, process: &ProcessId, exit: Exit) -> CallId {
        self.effects.push(Effect::OutputEnds(self.id.clone(), process.clone()));
        let last = *process == ProcessId::Init;
        if last || exit.status.may_be_for_want_of_memory() {
            self.effects.push(Effect::CountOomKills { task: self.id.clone(), last });
        }
        self.begin(process, Work::Settle(process.clone()), None)
    }

    pub(super) fn save(&mut self) {
        self.effects.push(Effect::Save(self.id.clone()));
    }

    fn publish(&mut self, event: Event) {
        self.effects.push(Effect::Publish(self.id.clone(), event));
    }
}

impl Lifecycle {
    /// The next state, and what must be done about it.
    pub fn handle(&mut self, input: Input) -> Effects {
        let mut effects = Effects::new();
        match input {
            Input::Request(request) => self.request(request, &mut effects),
            Input::Sandbox(request) => self.sandbox_request(request, &mut effects),
            Input::Exited { pid, exit } => self.exited(pid, exit, &mut effects),
            Input::Done { call, outcome } => self.done(call, outcome, &mut effects),
            Input::OutOfMemory { task, victims, at_unix_ns } => {
                self.out_of_memory(task, victims, at_unix_ns, &mut effects);
            }
            Input::GaveUp(asker) => {
                if self.forget_waiters(|waiter| waiter == asker) {
                    effects.push(Effect::Reply(asker, Err(Refusal::Late)));
                }
            }
            // What changes something goes on; only those who merely wait are forgotten.
            Input::Disconnected(connection) => {
                self.forget_waiters(|waiter| waiter.connection == connection);
            }
        }
        if !self.calls.in_flight.values().any(|call| call.names_pid) {
            self.stash.clear();
        }
        effects
    }

    /// Whether there is nothing left to look after. A task counts from the arrival of its Create to the end of its Delete, a
    /// sandbox to the end of its Shutdown.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.sandbox.is_none()
    }

    /// Whether no process runs, is being worked on or can be started any more: all that is left waits to be deleted.
    pub fn has_ended(&self) -> bool {
        let runs = |status| matches!(status, Status::Running | Status::Pausing | Status::Paused);
        let ended = |task: &TaskId| {
            let processes = self.processes(task);
            let init = processes.first().map(|p| p.status);
            init == Some(Status::Stopped) && !processes.iter().any(|p| runs(p.status))
        };
        self.calls.in_flight.is_empty() && self.sandbox_has_ended() && self.tasks.keys().all(ended)
    }

    /// Whether the id is taken.
    pub fn contains(&self, task: &TaskId) -> bool {
        self.tasks.contains_key(task)
    }

    /// Whether the container's first process has ended, and that was told.
    pub fn is_stopped(&self, task: &TaskId) -> bool {
        self.tasks.get(task).is_some_and(|task| task.init.state == InitState::Stopped)
    }

    /// All ids, those being created included.
    pub fn ids(&self) -> impl Iterator<Item = &TaskId> {
        self.tasks.keys()
    }

    /// What is known of a task's processes, init first; nothing for an unknown task or one that is still being created.
    pub fn processes(&self, task: &TaskId) -> Vec<super::ProcessView> {
        let Some(task) = self.tasks.get(task).filter(|t| t.init.state != InitState::Creating) else {
            return Vec::new();
        };
        let init = task.init.view();
        let status = init.status;
        let execs = task.execs.iter().map(|(id, exec)| exec.view(&ProcessId::Exec(id.clone()), status));
        std::iter::once(init).chain(execs).collect()
    }

    /// How often it was told that processes of a task were killed for want of memory.
    pub fn times_out_of_memory(&self, task: &TaskId) -> u32 {
        self.tasks.get(task).map_or(0, |task| task.lack.times)
    }

    fn request(&mut self, request: Request, effects: &mut Effects) {
        let Request { asker, task: id, process, verb } = request;
        match verb {
            Verb::Connect => {
                let pid = self.tasks.get(&id).map_or(0, |t| t.init.pid);
                effects.push(Effect::Reply(asker, Ok(Reply::Connected(pid))));
            }
            Verb::Shutdown => {
                // In this order: who has the answer finds no socket any more (contract, trap 37).
                if self.is_empty() {
                    effects.push(Effect::Stop);
                } else {
                    // A sandbox has a Shutdown of its own.
                    let no_sandbox = self.sandbox.is_none();
                    self.ends_when_empty |= no_sandbox && self.tasks.values().all(|task| task.unwanted);
                }
                effects.push(Effect::Reply(asker, Ok(Reply::Empty)));
            }
            Verb::Create { shared_pids, from_checkpoint } => {
                if self.tasks.contains_key(&id) {
                    effects.push(Effect::Reply(asker, Err(Refusal::TaskExists(id))));
                    return;
                }
                if self.is_sandbox(&id) {
                    effects.push(Effect::Reply(asker, Err(Refusal::SandboxExists(id))));
                    return;
                }
                let mut turn = Turn { id: &id, calls: &mut self.calls, effects };
                turn.effects.push(Effect::Adopt(asker, id.clone(), ProcessId::Init));
                let call = turn.begin(&ProcessId::Init, Work::Mount, Some(asker));
                let step = if from_checkpoint { CreateStep::MountForRestore } else { CreateStep::Mount };
                self.tasks.insert(id, Task::new(asker, call, step, shared_pids));
                self.ends_when_empty = false;
            }
            _ => {
                let Some(task) = self.tasks.get_mut(&id) else {
                    effects.push(Effect::Reply(asker, Err(Refusal::NoTask(id))));
                    return;
                };
                let mut turn = Turn { id: &id, calls: &mut self.calls, effects };
                match process {
                    ProcessId::Init => task.request_init(asker, verb, &mut turn),
                    ProcessId::Exec(exec) => task.request_exec(asker, exec, verb, &mut turn),
                }
            }
        }
    }

    fn exited(&mut self, pid: Pid, exit: Exit, effects: &mut Effects) {
        if self.sandbox_exited(pid, exit, effects) {
            return;
        }
        let calls = &mut self.calls;
        let owner = self
            .tasks
            .iter_mut()
            .find_map(|(id, task)| task.exited(pid, exit, &mut Turn { id, calls, effects }).then(|| id.clone()));
        match owner {
            Some(id) => self.go_on(&id, effects),
            None => self.stash.push((pid, exit)),
        }
    }

    fn done(&mut self, call: CallId, outcome: Outcome, effects: &mut Effects) {
        let Some(Call { task: id, process, names_pid }) = self.calls.in_flight.remove(&call) else { return };
        let early = match (&outcome, names_pid) {
            (Ok(Some(pid)), true) => self.take_stashed(*pid),
            _ => None,
        };
        if self.is_sandbox(&id) {
            return self.sandbox_done(call, outcome, early, effects);
        }
        // An errand for a task that is gone, or a step that another has overtaken, has nobody to tell.
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let mut turn = Turn { id: &id, calls: &mut self.calls, effects };
        match process {
            ProcessId::Init => task.init_done(call, outcome, early, &mut turn),
            ProcessId::Exec(exec) => task.exec_done(call, &exec, outcome, early, &mut turn),
        }
        self.go_on(&id, effects);
    }

    fn out_of_memory(&mut self, id: TaskId, victims: u64, at_unix_ns: u64, effects: &mut Effects) {
        let is_told = |task: &&mut Task| !matches!(task.init.state, InitState::Creating | InitState::Stopped);
        if let Some(task) = self.tasks.get_mut(&id).filter(is_told) {
            task.lack.note(victims, at_unix_ns);
            effects.push(Effect::Save(id.clone()));
            effects.push(Effect::Publish(id, Event::OutOfMemory));
        }
    }

    /// Whether there was one.
    fn forget_waiters(&mut self, gone: impl Fn(Asker) -> bool) -> bool {
        let mut found = self.forget_sandbox_waiters(&gone);
        for task in self.tasks.values_mut() {
            for waiters in
                std::iter::once(&mut task.init.waiters).chain(task.execs.values_mut().map(|e| &mut e.waiters))
            {
                let before = waiters.len();
                waiters.retain(|waiter| !gone(*waiter));
                found |= waiters.len() < before;
            }
        }
        found
    }

    fn take_stashed(&mut self, pid: Pid) -> Option<Exit> {
        let at = self.stash.iter().position(|(stashed, _)| *stashed == pid)?;
        Some(self.stash.swap_remove(at).1)
    }

    /// After a change ended: removes the task if that was its end, else lets what waited have its turn.
    fn go_on(&mut self, id: &TaskId, effects: &mut Effects) {
        loop {
            let Some(task) = self.tasks.get_mut(id) else { return };
            if task.is_over() {
                if let Some(task) = self.tasks.remove(id) {
                    task.answer_the_rest(id, effects);
                }
                if self.ends_when_empty && self.is_empty() {
                    effects.push(Effect::Stop);
                }
                return;
            }
            let mut turn = Turn { id, calls: &mut self.calls, effects };
            if !task.next_queued(&mut turn) {
                return;
            }
        }
    }
}

/// For tests that go through every state.
#[cfg(test)]
impl Lifecycle {
    pub(super) fn init_state(&self, id: &TaskId) -> Option<(InitState, Option<&Op>)> {
        self.tasks.get(id).map(|t| (t.init.state, t.running.as_ref().map(|r| &r.op)))
    }

    pub(super) fn exec_state(&self, id: &TaskId, exec_id: &ExecId) -> Option<ExecState> {
        self.tasks.get(id)?.execs.get(exec_id).map(|e| e.state)
    }
}

impl Task {
    fn new(asker: Asker, call: CallId, step: CreateStep, shared_pids: bool) -> Self {
        Self {
            init: Init::new(),
            execs: BTreeMap::new(),
            running: Some(Running { op: Op::Create(step), asker, call: Some(call) }),
            queue: VecDeque::new(),
            shared_pids,
            init_exit: None,
            unwanted: false,
            lack: Lack::default(),
            errands: Errands::default(),
        }
    }

    /// Set by the last step of a failed Create or of a Delete: nobody is busy with it and it never came to be.
    fn is_over(&self) -> bool {
        self.running.is_none() && self.init.state == InitState::Creating
    }

    /// Rule "an answer for each request".
    fn answer_the_rest(self, id: &TaskId, effects: &mut Effects) {
        let waiters = self.init.waiters.into_iter().chain(self.queue.into_iter().map(|r| r.asker));
        let execs = self.execs.into_values();
        let exec_askers = execs.flat_map(|e| {
            e.waiters.into_iter().chain(e.queue.into_iter().map(|r| r.asker)).chain(e.busy.map(|(_, asker)| asker))
        });
        for asker in waiters.chain(exec_askers) {
            effects.push(Effect::Reply(asker, Err(Refusal::NoTask(id.clone()))));
        }
    }

    fn next_queued(&mut self, turn: &mut Turn<'_>) -> bool {
        self.run_errands(turn);
        if !self.is_busy()
            && let Some(request) = self.queue.pop_front()
        {
            self.change_init(request.asker, request.verb, turn);
            return true;
        }
        let waiting = self.execs.iter_mut().find(|(_, e)| e.busy.is_none() && !e.queue.is_empty());
        let Some(request) = waiting.and_then(|(_, exec)| exec.queue.pop_front()) else { return false };
        if let ProcessId::Exec(exec) = request.process {
            self.request_exec(request.asker, exec, request.verb, turn);
        }
        true
    }

    fn request_init(&mut self, asker: Asker, verb: Verb, turn: &mut Turn<'_>) {
        match verb {
            // containerd deletes what it gave up while it was being created, at its start and before it serves; a Create
            // that takes long must not keep it waiting.
            Verb::Delete if self.init.state == InitState::Creating => {
                self.unwanted = true;
                turn.reply(asker, Err(Refusal::NoTask(turn.id.clone())));
            }
            // Asking never waits. A task that is being created is not there yet.
            _ if self.init.state == InitState::Creating && !changes(verb) => {
                turn.reply(asker, Err(Refusal::NoTask(turn.id.clone())));
            }
            Verb::State => turn.reply(asker, Ok(Reply::State(turn.id.clone(), self.init.view()))),
            Verb::Wait => match self.init.exit {
                Some(exit) => turn.reply(asker, Ok(Reply::Exit(exit))),
                None => self.init.waiters.push(asker),
            },
            Verb::Pids => self.pids(asker, turn),
            Verb::Stats => turn.effects.push(Effect::ReadStats(asker, turn.id.clone())),
            Verb::ResizePty { width, height } => turn.effects.push(Effect::Resize {
                asker,
                task: turn.id.clone(),
                process: ProcessId::Init,
                width,
                height,
            }),
            Verb::CloseStdin => turn.effects.push(Effect::CloseStdin(asker, turn.id.clone(), ProcessId::Init)),
            Verb::Attach => turn.effects.push(Effect::Attach(asker, turn.id.clone(), ProcessId::Init)),
            Verb::ReopenLogs => turn.effects.push(Effect::ReopenLogs(asker, turn.id.clone())),
            Verb::Exec => turn.reply(asker, Err(Refusal::Invalid("an exec needs an exec id".to_owned()))),
            // Whatever is under way, this will not change.
            Verb::Kill { all, .. } if self.init.state == InitState::Stopped && !self.may_outlive_init(all) => {
                turn.reply(asker, Err(Refusal::Finished(ProcessId::Init)));
            }
            // Rule "one at a time". What is refused need not wait for an errand.
            _ if self.running.is_some() || !self.queue.is_empty() || self.is_busy() && self.allows(verb).is_ok() => {
                self.queue.push_back(Request { asker, task: turn.id.clone(), process: ProcessId::Init, verb });
            }
            _ => self.change_init(asker, verb, turn),
        }
    }

    /// Whether a signal to all concerns processes that init's death does not end; the runtime knows them.
    fn may_outlive_init(&self, all: bool) -> bool {
        all && self.shared_pids
    }

    fn change_init(&mut self, asker: Asker, verb: Verb, turn: &mut Turn<'_>) {
        match self.allows(verb) {
            Ok(()) => self.begin_op(asker, verb, turn),
            Err(refusal) => turn.reply(asker, Err(refusal)),
        }
    }

    /// As [`Init::allows`]. Between init's death and its announcement nothing but asking makes sense, and the end of what never
    /// ran.
    fn allows(&self, verb: Verb) -> Result<(), Refusal> {
        let is_dying = self.init_exit.is_some() && self.init.state != InitState::Stopped;
        match verb {
            Verb::Kill { all, .. } if self.init_exit.is_some() && self.may_outlive_init(all) => Ok(()),
            Verb::Kill { .. } if is_dying => Err(Refusal::Finished(ProcessId::Init)),
            Verb::Delete if self.init.state == InitState::Created => Ok(()),
            _ if is_dying => Err(self.init.refuse(verb)),
            _ => self.init.allows(verb),
        }
    }

    fn begin_op(&mut self, asker: Asker, verb: Verb, turn: &mut Turn<'_>) {
        let (op, work) = match verb {
            Verb::Start if self.init.state == InitState::FromCheckpoint => {
                self.init.state = InitState::Restoring;
                (Op::Restore(RestoreStep::Runtime), Work::Restore)
            }
            Verb::Start => {
                self.init.state = InitState::Starting;
                (Op::Start(None), Work::Start)
            }
            Verb::Kill { signal, all } => (Op::Kill, Work::Kill { signal, all }),
            Verb::Pause => {
                self.init.state = InitState::Pausing;
                (Op::Pause, Work::Pause)
            }
            Verb::Resume => (Op::Resume, Work::Resume),
            Verb::Update => (Op::Update, Work::Update),
            Verb::Checkpoint => (Op::Checkpoint, Work::Checkpoint),
            // The runtime knows nothing of it.
            Verb::Delete if self.init.state == InitState::FromCheckpoint => {
                (Op::Delete(DeleteStep::Unmount), Work::Unmount)
            }
            Verb::Delete if self.init.state == InitState::Created => {
                (Op::Delete(DeleteStep::Runtime), Work::Delete { force: true })
            }
            Verb::Delete => (Op::Delete(DeleteStep::Drain), Work::Drain(ProcessId::Init)),
            _ => return,
        };
        let call = turn.begin(&ProcessId::Init, work, Some(asker));
        self.running = Some(Running { op, asker, call: Some(call) });
    }

    /// `Pids` names a stopped init until it is deleted: an empty answer makes containerd ≥ 1.7 reap the shim as leaked
    /// when it restarts, and lose the exit status.
    fn pids(&self, asker: Asker, turn: &mut Turn<'_>) {
        let mut known = vec![KnownProcess { pid: self.init.pid, exec_id: None }];
        if self.init.state == InitState::Stopped {
            turn.reply(asker, Ok(Reply::Pids(known)));
            return;
        }
        let live = self.execs.iter().filter(|(_, e)| e.state == ExecState::Running);
        known.extend(live.map(|(id, e)| KnownProcess { pid: e.pid, exec_id: Some(id.0.clone()) }));
        turn.effects.push(Effect::ReadPids { asker, task: turn.id.clone(), known });
    }

    fn request_exec(&mut self, asker: Asker, exec_id: ExecId, verb: Verb, turn: &mut Turn<'_>) {
        let process = ProcessId::Exec(exec_id);
        let ProcessId::Exec(exec_id) = &process else { return };
        if self.init.state == InitState::Creating {
            turn.reply(asker, Err(Refusal::NoTask(turn.id.clone())));
            return;
        }
        if verb == Verb::Exec {
            let added = self.add_exec(turn.id, exec_id);
            if added.is_ok() {
                turn.effects.push(Effect::Adopt(asker, turn.id.clone(), process.clone()));
                turn.save();
                turn.publish(Event::ExecAdded { process });
            }
            turn.reply(asker, added.map(|()| Reply::Empty));
            return;
        }
        let status = self.init.view().status;
        let Some(exec) = self.execs.get_mut(exec_id) else {
            turn.reply(asker, Err(Refusal::NoProcess(turn.id.clone(), process)));
            return;
        };
        match verb {
            Verb::State => {
                let view = exec.view(&process, status);
                turn.reply(asker, Ok(Reply::State(turn.id.clone(), view)));
            }
            Verb::Wait => match exec.exit {
                Some(exit) => turn.reply(asker, Ok(Reply::Exit(exit))),
                None => exec.waiters.push(asker),
            },
            Verb::CloseStdin => turn.effects.push(Effect::CloseStdin(asker, turn.id.clone(), process)),
            Verb::Attach => turn.effects.push(Effect::Attach(asker, turn.id.clone(), process)),
            Verb::Start | Verb::Kill { .. } | Verb::Delete if exec.busy.is_some() && !exec.has_ended(verb) => {
                exec.queue.push_back(Request { asker, task: turn.id.clone(), process, verb });
            }
            Verb::Start | Verb::Kill { .. } | Verb::Delete | Verb::ResizePty { .. } => {
                match exec.allows(&process, verb) {
                    Ok(()) => self.change_exec(asker, &process, verb, turn),
                    Err(refusal) => turn.reply(asker, Err(refusal)),
                }
            }
            _ => {
                let text = format!("cannot {} {process}: only the whole task can be asked that", verb.name());
                turn.reply(asker, Err(Refusal::Invalid(text)));
            }
        }
    }

    fn change_exec(&mut self, asker: Asker, process: &ProcessId, verb: Verb, turn: &mut Turn<'_>) {
        let may_start = self.may_start_exec();
        let ProcessId::Exec(exec_id) = process else { return };
        let Some(exec) = self.execs.get_mut(exec_id) else { return };
        match verb {
            Verb::Start => match may_start {
                Ok(()) => {
                    exec.state = ExecState::Starting;
                    let call = turn.begin(process, Work::ExecStart(process.clone()), Some(asker));
                    exec.busy = Some((call, asker));
                }
                Err(None) => turn.reply(asker, Err(Refusal::InitExited(turn.id.clone()))),
                Err(Some(refusal)) => turn.reply(asker, Err(refusal)),
            },
            Verb::Kill { signal, .. } => turn.effects.push(Effect::Signal { asker, pid: exec.pid, signal }),
            Verb::Delete => {
                let call = turn.begin(process, Work::Drain(process.clone()), Some(asker));
                exec.busy = Some((call, asker));
            }
            Verb::ResizePty { width, height } => turn.effects.push(Effect::Resize {
                asker,
                task: turn.id.clone(),
                process: process.clone(),
                width,
                height,
            }),
            _ => {}
        }
    }

    /// `Err(None)`: init has exited.
    fn may_start_exec(&self) -> Result<(), Option<Refusal>> {
        match self.init.state {
            _ if self.init_was_reaped() => Err(None),
            InitState::Stopped => Err(None),
            _ if matches!(self.running, Some(Running { op: Op::Delete(_), .. })) => {
                let (verb, process) = (Verb::Exec.name(), ProcessId::Init);
                Err(Some(Refusal::WrongState { verb, process, state: "being deleted" }))
            }
            InitState::Pausing | InitState::Paused | InitState::FromCheckpoint | InitState::Restoring => {
                Err(Some(self.init.refuse(Verb::Exec)))
            }
            _ => Ok(()),
        }
    }

    /// Also while that is not told yet, since its start was not.
    fn init_was_reaped(&self) -> bool {
        self.init_exit.is_some() || matches!(self.running, Some(Running { op: Op::Start(Some(_)), .. }))
    }

    /// The id is reserved here, at once, so that two requests can't both have it.
    fn add_exec(&mut self, task: &TaskId, exec_id: &ExecId) -> Result<(), Refusal> {
        let process = ProcessId::Exec(exec_id.clone());
        self.may_start_exec().map_err(|refusal| {
            refusal.unwrap_or(Refusal::WrongState { verb: "exec in", process: ProcessId::Init, state: "stopped" })
        })?;
        if self.execs.contains_key(exec_id) {
            return Err(Refusal::ProcessExists(task.clone(), process));
        }
        self.execs.insert(exec_id.clone(), Exec::new());
        Ok(())
    }

    /// Whether the pid was one of ours.
    fn exited(&mut self, pid: Pid, exit: Exit, turn: &mut Turn<'_>) -> bool {
        if pid == self.init.pid && self.init_exit.is_none() && self.init.state != InitState::Creating {
            match &mut self.running {
                Some(Running { op: Op::Start(early @ None), .. }) => *early = Some(exit),
                _ => self.init_reaped(exit, turn),
            }
            return true;
        }
        let of_exec = |e: &Exec| e.pid == pid && e.state == ExecState::Running && e.dying.is_none();
        let Some(id) = self.execs.iter().find(|(_, e)| of_exec(e)).map(|(id, _)| id.clone()) else { return false };
        self.exec_reaped(&id, exit, turn);
        true
    }

    fn init_reaped(&mut self, exit: Exit, turn: &mut Turn<'_>) {
        self.init_exit = Some(exit);
        // A pause or resume that is under way sees to it when it ends.
        let freezer_busy = matches!(self.running, Some(Running { op: Op::Pause | Op::Resume, .. }));
        self.errands.thaw |= self.init.state == InitState::Paused && !freezer_busy;
        self.kill_the_rest(turn);
        if self.errands.may_leave_some_alive() && exit.status.may_be_for_want_of_memory() {
            // Who died for it is told by the time, which must not be that of the others' end.
            turn.effects.push(Effect::CountOomKills { task: turn.id.clone(), last: false });
        }
        self.announce_init_exit_if_last(turn);
    }

    fn kill_the_rest(&mut self, turn: &mut Turn<'_>) {
        // The runtime has done that by force, and knows the container no more.
        let is_deleted = matches!(self.running, Some(Running { op: Op::Delete(DeleteStep::AwaitExit), .. }));
        self.errands.kill_the_rest |= self.shared_pids && !is_deleted;
        self.run_errands(turn);
    }

    /// Whether a change is under way, so that another must wait.
    fn is_busy(&self) -> bool {
        self.running.is_some() || self.errands.under_way.is_some()
    }

    /// Begins the next errand, if there is one and nothing else is under way.
    fn run_errands(&mut self, turn: &mut Turn<'_>) {
        if self.is_busy() {
            return;
        }
        let Some(errand) = self.errands.next() else { return };
        let work = match errand {
            Errand::Thaw => Work::Resume,
            Errand::KillTheRest => Work::Kill { signal: 9, all: true },
        };
        self.errands.under_way = Some((turn.begin(&ProcessId::Init, work, None), errand));
    }

    fn announce_init_exit_if_last(&mut self, turn: &mut Turn<'_>) {
        let Some(exit) = self.init_exit else { return };
        let others_first = self.errands.may_leave_some_alive() || self.execs.values().any(Exec::is_live);
        if self.init.state == InitState::Stopped || others_first {
            return;
        }
        match self.init.heard_out {
            HeardOut::Yes => {}
            HeardOut::UnderWay(_) => return,
            HeardOut::No => {
                self.init.heard_out = HeardOut::UnderWay(turn.hear_out(&ProcessId::Init, exit));
                return;
            }
        }
        self.init.state = InitState::Stopped;
        self.init.exit = Some(exit);
        // An exec that went with it may have been taken for the victim.
        self.init.oom_killed = self.lack.may_explain(exit);
        turn.save();
        turn.publish(Event::Exited { process: ProcessId::Init, pid: self.init.pid, exit });
        for asker in std::mem::take(&mut self.init.waiters) {
            turn.reply(asker, Ok(Reply::Exit(exit)));
        }
        if let Some(Running { op: Op::Delete(step @ DeleteStep::AwaitExit), asker, call }) = &mut self.running {
            *step = DeleteStep::Unmount;
            *call = Some(turn.begin(&ProcessId::Init, Work::Unmount, Some(*asker)));
        }
    }

    fn exec_reaped(&mut self, id: &ExecId, exit: Exit, turn: &mut Turn<'_>) {
        let Some(exec) = self.execs.get_mut(id) else { return };
        exec.dying = Some((turn.hear_out(&ProcessId::Exec(id.clone()), exit), exit));
    }

    fn announce_exec_exit(&mut self, id: &ExecId, exit: Exit, turn: &mut Turn<'_>) {
        let Some(exec) = self.execs.get_mut(id) else { return };
        let process = ProcessId::Exec(id.clone());
        exec.state = ExecState::Stopped;
        exec.exit = Some(exit);
        exec.oom_killed = self.lack.explains(exit);
        let (pid, waiters) = (exec.pid, std::mem::take(&mut exec.waiters));
        turn.save();
        turn.publish(Event::Exited { process, pid, exit });
        for asker in waiters {
            turn.reply(asker, Ok(Reply::Exit(exit)));
        }
        self.announce_init_exit_if_last(turn);
    }

    fn exec_done(&mut self, call: CallId, id: &ExecId, outcome: Outcome, early: Option<Exit>, turn: &mut Turn<'_>) {
        let Some(exec) = self.execs.get_mut(id) else { return };
        if let Some((_, exit)) = exec.dying.take_if(|(settling, _)| *settling == call) {
            self.announce_exec_exit(id, exit, turn);
            return;
        }
        let Some((_, asker)) = exec.busy.take_if(|(busy, _)| *busy == call) else { return };
        let process = ProcessId::Exec(id.clone());
        if exec.state != ExecState::Starting {
            self.exec_drained(asker, id, turn);
            return;
        }
        match outcome {
            Ok(pid) => {
                exec.state = ExecState::Running;
                exec.pid = pid.unwrap_or(0);
                let pid = exec.pid;
                turn.save();
                turn.publish(Event::ExecStarted { process, pid });
                turn.reply(asker, Ok(Reply::Pid(pid)));
                match early {
                    Some(exit) => self.exec_reaped(id, exit, turn),
                    // It was not there yet when the others were killed.
                    None if self.init_exit.is_some() => self.kill_the_rest(turn),
                    None => {}
                }
            }
            Err(failure) => {
                exec.state = ExecState::Created;
                turn.effects.push(Effect::OutputEnds(turn.id.clone(), process.clone()));
                turn.reply(asker, Err(Refusal::Failed(failure)));
                for asker in std::mem::take(&mut exec.waiters) {
                    turn.reply(asker, Err(Refusal::StartFailed(process.clone())));
                }
                self.announce_init_exit_if_last(turn);
            }
        }
    }

    /// The last step of an exec's Delete: the id is free again.
    fn exec_drained(&mut self, asker: Asker, id: &ExecId, turn: &mut Turn<'_>) {
        let Some(exec) = self.execs.remove(id) else { return };
        let process = ProcessId::Exec(id.clone());
        turn.effects.push(Effect::Release(turn.id.clone(), process.clone()));
        turn.save();
        turn.reply(asker, Ok(Reply::Deleted(exec.pid, exec.exit.unwrap_or(NEVER_STARTED))));
        for asker in exec.waiters.into_iter().chain(exec.queue.into_iter().map(|r| r.asker)) {
            turn.reply(asker, Err(Refusal::NoProcess(turn.id.clone(), process.clone())));
        }
    }

    fn init_done(&mut self, call: CallId, outcome: Outcome, early: Option<Exit>, turn: &mut Turn<'_>) {
        if self.init.heard_out == HeardOut::UnderWay(call) {
            self.init.heard_out = HeardOut::Yes;
            self.announce_init_exit_if_last(turn);
            return;
        }
        // That it failed was logged by the driver.
        if let Some((_, errand)) = self.errands.under_way.take_if(|(errand, _)| *errand == call) {
            self.errands.thaw |= errand == Errand::KillTheRest && may_have_left_frozen(&outcome);
            self.run_errands(turn);
            self.announce_init_exit_if_last(turn);
            return;
        }
        // A step that was overtaken.
        let Some(Running { op, asker, .. }) = self.running.take_if(|r| r.call == Some(call)) else { return };
        match op {
            Op::Create(step) => self.create_done(step, asker, outcome, early, turn),
            Op::Start(early) => self.start_done(asker, outcome, early, turn),
            Op::Restore(step) => self.restore_done(step, asker, outcome, early, turn),
            Op::Delete(step) => self.delete_done(step, asker, outcome, turn),
            Op::Kill | Op::Update => turn.reply(asker, empty(outcome)),
            Op::Checkpoint => self.checkpoint_done(asker, outcome, turn),
            Op::Pause => self.freezer_done(asker, outcome, InitState::Pausing, InitState::Paused, turn),
            Op::Resume => self.freezer_done(asker, outcome, InitState::Paused, InitState::Running, turn),
        }
    }

    fn step(&mut self, op: Op, asker: Asker, work: Work, turn: &mut Turn<'_>) {
        let call = turn.begin(&ProcessId::Init, work, Some(asker));
        self.running = Some(Running { op, asker, call: Some(call) });
    }

    /// An errand, since nobody is told how it went: the asker hears of the first failure.
    fn undo(&mut self, step: CreateStep, asker: Asker, work: Work, turn: &mut Turn<'_>) {
        let call = turn.begin(&ProcessId::Init, work, None);
        self.running = Some(Running { op: Op::Create(step), asker, call: Some(call) });
    }

    fn create_done(
        &mut self,
        step: CreateStep,
        asker: Asker,
        outcome: Outcome,
        early: Option<Exit>,
        turn: &mut Turn<'_>,
    ) {
        match (step, outcome) {
            (CreateStep::Mount | CreateStep::MountForRestore, Ok(_)) if self.unwanted => {
                self.undo(CreateStep::UndoMount(unwanted()), asker, Work::Unmount, turn);
            }
            (CreateStep::Runtime, Ok(_)) if self.unwanted => {
                self.undo(CreateStep::UndoRuntime(unwanted()), asker, Work::Delete { force: true }, turn);
            }
            (CreateStep::Mount, Ok(_)) => self.step(Op::Create(CreateStep::Runtime), asker, Work::Create, turn),
            (CreateStep::MountForRestore, Ok(_)) => {
                self.init.state = InitState::FromCheckpoint;
                turn.save();
                turn.publish(Event::Created { pid: 0 });
                turn.reply(asker, Ok(Reply::Pid(0)));
            }
            // What failed to mount has unmounted what it had mounted, unless it was killed.
            (CreateStep::Mount | CreateStep::MountForRestore, Err(failure)) => {
                self.undo(CreateStep::UndoMount(failure), asker, Work::Unmount, turn);
            }
            (CreateStep::Runtime, Ok(pid)) => {
                self.init.state = InitState::Created;
                self.init.pid = pid.unwrap_or(0);
                turn.save();
                turn.publish(Event::Created { pid: self.init.pid });
                turn.reply(asker, Ok(Reply::Pid(self.init.pid)));
                if let Some(exit) = early {
                    self.init_reaped(exit, turn);
                }
            }
            // What the runtime has under this id is not ours: it stays as it is.
            (CreateStep::Runtime, Err(failure)) if failure.kind == FailureKind::AlreadyExists => {
                self.undo(CreateStep::UndoMount(failure), asker, Work::Unmount, turn);
            }
            (CreateStep::Runtime, Err(failure)) => {
                self.undo(CreateStep::UndoRuntime(failure), asker, Work::Delete { force: true }, turn);
            }
            // A clean-up that fails is logged by the driver and never hides the first failure.
            (CreateStep::UndoRuntime(failure), _) => {
                self.undo(CreateStep::UndoMount(failure), asker, Work::Sweep, turn);
            }
            (CreateStep::UndoMount(failure), _) => self.create_failed(asker, failure, turn),
        }
    }

    fn create_failed(&mut self, asker: Asker, failure: Failure, turn: &mut Turn<'_>) {
        turn.effects.push(Effect::Release(turn.id.clone(), ProcessId::Init));
        turn.effects.push(Effect::Forget(turn.id.clone()));
        turn.reply(asker, Err(Refusal::Failed(failure)));
    }

    fn start_done(&mut self, asker: Asker, outcome: Outcome, early: Option<Exit>, turn: &mut Turn<'_>) {
        match outcome {
            Ok(_) => {
                self.init.state = InitState::Running;
                turn.save();
                turn.publish(Event::Started { pid: self.init.pid });
                turn.reply(asker, Ok(Reply::Pid(self.init.pid)));
            }
            Err(failure) => {
                self.init.state = InitState::Created;
                turn.reply(asker, Err(Refusal::Failed(failure)));
            }
        }
        if let Some(exit) = early {
            self.init_reaped(exit, turn);
        }
    }

    /// A restore that fails leaves what was there before it: another one may be tried.
    fn restore_done(
        &mut self,
        step: RestoreStep,
        asker: Asker,
        outcome: Outcome,
        early: Option<Exit>,
        turn: &mut Turn<'_>,
    ) {
        match (step, outcome) {
            (RestoreStep::Runtime, Ok(pid)) => {
                self.init.pid = pid.unwrap_or(0);
                self.start_done(asker, Ok(pid), early, turn);
            }
            // As for Create.
            (RestoreStep::Runtime, Err(failure)) if failure.kind == FailureKind::AlreadyExists => {
                self.not_restored(asker, failure, turn);
            }
            (RestoreStep::Runtime, Err(failure)) => {
                let call = turn.begin(&ProcessId::Init, Work::Delete { force: true }, None);
                self.running = Some(Running { op: Op::Restore(RestoreStep::Undo(failure)), asker, call: Some(call) });
            }
            // A clean-up that fails is logged by the driver and never hides the first failure.
            (RestoreStep::Undo(failure), _) => self.not_restored(asker, failure, turn),
        }
    }

    fn not_restored(&mut self, asker: Asker, failure: Failure, turn: &mut Turn<'_>) {
        self.init.state = InitState::FromCheckpoint;
        turn.reply(asker, Err(Refusal::Failed(failure)));
    }

    fn checkpoint_done(&mut self, asker: Asker, outcome: Outcome, turn: &mut Turn<'_>) {
        // Nothing changed that the record could hold.
        if outcome.is_ok() {
            turn.publish(Event::Checkpointed(asker));
        }
        self.errands.thaw |= may_have_left_frozen(&outcome) && self.init.state != InitState::Paused;
        turn.reply(asker, empty(outcome));
        self.run_errands(turn);
    }

    fn freezer_done(&mut self, asker: Asker, outcome: Outcome, from: InitState, to: InitState, turn: &mut Turn<'_>) {
        if self.init.state == from {
            // A failed pause leaves it running, a failed resume leaves it paused.
            let failed = if from == InitState::Pausing { InitState::Running } else { from };
            self.init.state = if outcome.is_ok() { to } else { failed };
            if outcome.is_ok() {
                turn.save();
                turn.publish(if to == InitState::Paused { Event::Paused } else { Event::Resumed });
            }
        }
        let thawed = to == InitState::Running && outcome.is_ok();
        turn.reply(asker, empty(outcome));
        self.errands.thaw |= self.init_exit.is_some() && !thawed;
        self.run_errands(turn);
    }

    fn delete_done(&mut self, step: DeleteStep, asker: Asker, outcome: Outcome, turn: &mut Turn<'_>) {
        match (step, outcome) {
            (DeleteStep::Drain, _) => {
                self.step(Op::Delete(DeleteStep::Runtime), asker, Work::Delete { force: false }, turn);
            }
            (DeleteStep::Runtime, Err(failure)) if failure.kind != FailureKind::NotFound => {
                turn.reply(asker, Err(Refusal::Failed(failure)));
            }
            (DeleteStep::Runtime, _) if self.init.state != InitState::Stopped => {
                // See `kill_the_rest`.
                self.errands = Errands::default();
                self.await_end(asker, turn);
                self.announce_init_exit_if_last(turn);
            }
            (DeleteStep::Runtime, _) => self.step(Op::Delete(DeleteStep::Unmount), asker, Work::Unmount, turn),
            (DeleteStep::Unmount, Err(failure)) => turn.reply(asker, Err(Refusal::Failed(failure))),
            (DeleteStep::Unmount, Ok(_)) => self.deleted(asker, turn),
            (DeleteStep::AwaitExit, Err(failure)) => turn.reply(asker, Err(Refusal::Failed(failure))),
            (DeleteStep::AwaitExit, Ok(_)) => self.await_end(asker, turn),
        }
    }

    /// Not forever: a runtime may err, and the kernel may hold a process for as long as a disk does not answer. An errand,
    /// since the announcement of the exit overtakes it.
    fn await_end(&mut self, asker: Asker, turn: &mut Turn<'_>) {
        let unreaped = if self.init_exit.is_some() { 0 } else { self.init.pid };
        let call = turn.begin(&ProcessId::Init, Work::End(unreaped), None);
        self.running = Some(Running { op: Op::Delete(DeleteStep::AwaitExit), asker, call: Some(call) });
    }

    fn deleted(&mut self, asker: Asker, turn: &mut Turn<'_>) {
        let pid = self.init.pid;
        let exit = self.init.exit.unwrap_or(NEVER_STARTED);
        for id in self.execs.keys() {
            turn.effects.push(Effect::Release(turn.id.clone(), ProcessId::Exec(id.clone())));
        }
        turn.effects.push(Effect::Release(turn.id.clone(), ProcessId::Init));
        turn.effects.push(Effect::Forget(turn.id.clone()));
        turn.publish(Event::Deleted { pid, exit });
        turn.reply(asker, Ok(Reply::Deleted(pid, exit)));
        // See `is_over`.
        self.init.state = InitState::Creating;
    }
}

/// What Delete answers for an exec that was never started.
const NEVER_STARTED: Exit = Exit { status: super::ExitStatus::NONE, at_unix_ns: 0 };

/// What Create answers then.
fn unwanted() -> Failure {
    Failure { kind: FailureKind::Other, text: "deleted while it was being created".to_owned() }
}

/// A runtime that freezes for its work, and was killed at it.
fn may_have_left_frozen(outcome: &Outcome) -> bool {
    matches!(outcome, Err(failure) if failure.kind == FailureKind::Deadline)
}

fn empty(outcome: Outcome) -> Result<Reply, Refusal> {
    outcome.map(|_| Reply::Empty).map_err(Refusal::Failed)
}

/// Whether a verb changes a process, and so waits for its turn.
fn changes(verb: Verb) -> bool {
    matches!(
        verb,
        Verb::Start | Verb::Kill { .. } | Verb::Delete | Verb::Pause | Verb::Resume | Verb::Update | Verb::Checkpoint
    )
}
