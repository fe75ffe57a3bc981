//! A lifecycle that is fed in short words and answers in short words.

use std::collections::VecDeque;

use crate::lifecycle::{
    Asker, CallId, Effect, Effects, Event, ExecId, Exit, ExitStatus, Failure, FailureKind, Input, Lifecycle, Outcome,
    Pid, ProcessId, Refusal, Reply, Request, SandboxRequest, SandboxVerb, TaskId, Verb, Work,
};

/// The only task of most tests.
pub(super) const TASK: &str = "c";
/// The pid of its init process.
pub(super) const INIT: Pid = 10;

/// Create, from a checkpoint.
pub(super) const FROM_CHECKPOINT: Verb = Verb::Create { shared_pids: false, from_checkpoint: true };

/// A lifecycle, and the calls that it has begun.
#[derive(Default)]
pub(super) struct Story {
    pub(super) life: Lifecycle,
    pub(super) last_stream: u32,
    /// The effects of the last input.
    pub(super) told: Effects,
    begun: Vec<(CallId, Work)>,
    /// That output has settled is told by `ok`, like the end of other work; what is counted meanwhile is seen.
    pub(super) settles_late: bool,
}

pub(super) fn task(id: &str) -> TaskId {
    TaskId(id.to_owned())
}

pub(super) fn process(exec_id: &str) -> ProcessId {
    ProcessId::from_exec_id(exec_id)
}

pub(super) fn asker(stream: u32) -> Asker {
    Asker { connection: 1, stream }
}

pub(super) fn exit(code: i32) -> Exit {
    Exit { status: ExitStatus::exited(code), at_unix_ns: 1 }
}

pub(super) fn broken() -> Failure {
    Failure { kind: FailureKind::Other, text: "broken".to_owned() }
}

impl Story {
    /// Output settles at once, and unseen, unless it is told not to.
    pub(super) fn handle(&mut self, input: Input) -> Vec<String> {
        let mut inputs = VecDeque::from([input]);
        let mut told = Effects::new();
        while let Some(input) = inputs.pop_front() {
            for effect in self.life.handle(input) {
                match &effect {
                    Effect::Begin { call, work: Work::Settle(_), .. } if !self.settles_late => {
                        inputs.push_back(Input::Done { call: *call, outcome: Ok(None) });
                        continue;
                    }
                    Effect::CountOomKills { .. } if !self.settles_late => continue,
                    Effect::Begin { call, work, .. } => self.begun.push((*call, work.clone())),
                    _ => {}
                }
                told.push(effect);
            }
        }
        let words = words(&told);
        self.told = told;
        words
    }

    /// A request about a process of the task; askers are numbered from 1 in the order of their requests.
    pub(super) fn ask(&mut self, exec_id: &str, verb: Verb) -> Vec<String> {
        self.last_stream += 1;
        let request = Request { asker: asker(self.last_stream), task: task(TASK), process: process(exec_id), verb };
        self.handle(Input::Request(request))
    }

    /// The same of a sandbox; its time is its number.
    pub(super) fn ask_sandbox(&mut self, id: &str, verb: SandboxVerb) -> Vec<String> {
        self.last_stream += 1;
        let (asker, at_unix_ns) = (asker(self.last_stream), self.last_stream.into());
        self.handle(Input::Sandbox(SandboxRequest { asker, id: task(id), verb, at_unix_ns }))
    }

    /// The last work of this name that was begun has ended.
    pub(super) fn done(&mut self, name: &str, outcome: Outcome) -> Vec<String> {
        let at = self.begun.iter().rposition(|(_, work)| work_word(work) == name);
        let at = at.unwrap_or_else(|| panic!("no {name:?} was begun, only {:?}", self.begun));
        let (call, _) = self.begun.remove(at);
        self.handle(Input::Done { call, outcome })
    }

    pub(super) fn ok(&mut self, name: &str) -> Vec<String> {
        self.done(name, Ok(None))
    }

    pub(super) fn exited(&mut self, pid: Pid, code: i32) -> Vec<String> {
        self.handle(Input::Exited { pid, exit: exit(code) })
    }

    /// The names of the work that has not ended.
    pub(super) fn in_flight(&self) -> Vec<String> {
        self.begun.iter().map(|(_, work)| work_word(work)).collect()
    }

    pub(super) fn creating() -> Self {
        let mut story = Self::default();
        story.ask("", Verb::Create { shared_pids: false, from_checkpoint: false });
        story.ok("mount");
        story
    }

    pub(super) fn created() -> Self {
        let mut story = Self::creating();
        story.done("create", Ok(Some(INIT)));
        story
    }

    pub(super) fn from_checkpoint() -> Self {
        let mut story = Self::default();
        story.ask("", FROM_CHECKPOINT);
        story.ok("mount");
        story
    }

    pub(super) fn restoring() -> Self {
        let mut story = Self::from_checkpoint();
        story.ask("", Verb::Start);
        story
    }

    pub(super) fn running() -> Self {
        let mut story = Self::created();
        story.ask("", Verb::Start);
        story.ok("start");
        story
    }

    /// Running, in a pid namespace that it shares.
    pub(super) fn running_with_shared_pids() -> Self {
        let mut story = Self::default();
        story.ask("", Verb::Create { shared_pids: true, from_checkpoint: false });
        story.ok("mount");
        story.done("create", Ok(Some(INIT)));
        story.ask("", Verb::Start);
        story.ok("start");
        story
    }

    /// Adds an exec and starts it.
    pub(super) fn with_exec(mut self, exec_id: &str, pid: Pid) -> Self {
        self.ask(exec_id, Verb::Exec);
        self.ask(exec_id, Verb::Start);
        self.done(&format!("exec {exec_id}"), Ok(Some(pid)));
        self
    }

    pub(super) fn paused() -> Self {
        let mut story = Self::running();
        story.ask("", Verb::Pause);
        story.ok("pause");
        story
    }

    pub(super) fn stopped(code: i32) -> Self {
        let mut story = Self::running();
        story.exited(INIT, code);
        story
    }
}

/// Effects as words, `#n` standing for the n-th asker.
pub(super) fn words(effects: &Effects) -> Vec<String> {
    effects.iter().map(word).collect()
}

pub(super) fn word(effect: &Effect) -> String {
    let of = |process: &ProcessId| match process {
        ProcessId::Init => "init".to_owned(),
        ProcessId::Exec(ExecId(id)) => id.clone(),
    };
    match effect {
        Effect::Reply(asker, reply) => format!("#{} {}", asker.stream, reply_word(reply)),
        Effect::Adopt(asker, _, process) => format!("#{} adopt {}", asker.stream, of(process)),
        Effect::Begin { work, asker, .. } => {
            let whose = asker.map_or("errand".to_owned(), |a| format!("#{}", a.stream));
            format!("{whose} begin {}", work_word(work))
        }
        Effect::Publish(_, event) => format!("publish {}", event_word(event)),
        Effect::Save(_) => "save".to_owned(),
        Effect::Release(_, process) => format!("release {}", of(process)),
        Effect::Forget(_) => "forget".to_owned(),
        Effect::OutputEnds(_, process) => format!("output ends {}", of(process)),
        Effect::CountOomKills { last, .. } => {
            format!("count oom kills{}", if *last { " for the last time" } else { "" })
        }
        Effect::Signal { asker, pid, signal } => format!("#{} signal {pid} {signal}", asker.stream),
        Effect::Resize { asker, width, height, .. } => format!("#{} resize {width}x{height}", asker.stream),
        Effect::CloseStdin(asker, ..) => format!("#{} close stdin", asker.stream),
        Effect::Attach(asker, ..) => format!("#{} attach", asker.stream),
        Effect::ReopenLogs(asker, _) => format!("#{} reopen logs", asker.stream),
        Effect::ReadPids { asker, known, .. } => {
            format!("#{} read pids {:?}", asker.stream, known.iter().map(|k| k.pid).collect::<Vec<_>>())
        }
        Effect::ReadSandboxMetrics(asker, _, pid) => format!("#{} read metrics {pid}", asker.stream),
        Effect::ReadStats(asker, _) => format!("#{} read stats", asker.stream),
        Effect::Stop => "stop".to_owned(),
    }
}

pub(super) fn work_word(work: &Work) -> String {
    match work {
        Work::Mount => "mount".to_owned(),
        Work::Create => "create".to_owned(),
        Work::Start => "start".to_owned(),
        Work::Restore => "restore".to_owned(),
        Work::ExecStart(process) => format!("exec {}", process.exec_id()),
        Work::Kill { signal, all } => format!("kill{} {signal}", if *all { " all" } else { "" }),
        Work::Pause => "pause".to_owned(),
        Work::Resume => "resume".to_owned(),
        Work::Update => "update".to_owned(),
        Work::Checkpoint => "checkpoint".to_owned(),
        Work::Delete { force: true } => "delete by force".to_owned(),
        Work::Delete { force: false } => "delete".to_owned(),
        Work::Drain(ProcessId::Init) => "drain".to_owned(),
        Work::Drain(process) => format!("drain {}", process.exec_id()),
        Work::Settle(ProcessId::Init) => "settle".to_owned(),
        Work::Settle(process) => format!("settle {}", process.exec_id()),
        Work::End(pid) => format!("end {pid}"),
        Work::Unmount => "unmount".to_owned(),
        Work::Sweep => "sweep".to_owned(),
        Work::HoldNamespaces => "hold".to_owned(),
        Work::EndHolder { pid, signal, within_secs } => format!("end {pid} by {signal} in {within_secs} s"),
    }
}

fn reply_word(reply: &Result<Reply, Refusal>) -> String {
    match reply {
        Ok(Reply::Empty) => "ok".to_owned(),
        Ok(Reply::Pid(pid)) => format!("pid {pid}"),
        Ok(Reply::State(_, view)) => format!("{:?}", view.status).to_lowercase(),
        Ok(Reply::Exit(exit)) => format!("exit {}", exit.status.code()),
        Ok(Reply::Deleted(pid, exit)) => format!("deleted {pid} {}", exit.status.code()),
        Ok(Reply::Pids(known)) => format!("pids {:?}", known.iter().map(|k| k.pid).collect::<Vec<_>>()),
        Ok(Reply::SandboxStarted(view)) => format!("started {}", view.pid),
        Ok(Reply::SandboxStatus(view, _)) => {
            let ready = if view.is_ready { "ready" } else { "not ready" };
            let exit = view.exit.map(|exit| format!(", exit {} at {}", exit.status.code(), exit.at_unix_ns));
            format!("{ready}, pid {}{}", view.pid, exit.unwrap_or_default())
        }
        Ok(Reply::Platform) => "platform".to_owned(),
        Ok(Reply::Connected(pid)) => format!("connected {pid}"),
        Err(refusal) => refusal_word(refusal),
    }
}

pub(super) fn refusal_word(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NoTask(_) => "no task",
        Refusal::NoProcess(..) => "no process",
        Refusal::TaskExists(_) => "task exists",
        Refusal::ProcessExists(..) => "process exists",
        Refusal::WrongState { .. } => "wrong state",
        Refusal::NoSandbox(_) => "no sandbox",
        Refusal::SandboxExists(_) => "sandbox exists",
        Refusal::SandboxState { .. } => "wrong state",
        Refusal::Finished(_) => "finished",
        Refusal::InitExited(_) => "init exited",
        Refusal::NotStarted(_) => "not started",
        Refusal::StartFailed(_) => "start failed",
        Refusal::Unsupported(_) => "unsupported",
        Refusal::Invalid(_) => "invalid",
        Refusal::Late => "late",
        Refusal::Unavailable(_) => "unavailable",
        Refusal::Failed(failure) => return format!("failed: {}", failure.text),
    }
    .to_owned()
}

fn event_word(event: &Event) -> String {
    match event {
        Event::Created { pid } => format!("create {pid}"),
        Event::Started { pid } => format!("start {pid}"),
        Event::ExecAdded { process } => format!("exec-added {}", process.exec_id()),
        Event::ExecStarted { process, pid } => format!("exec-started {} {pid}", process.exec_id()),
        Event::Exited { process: ProcessId::Init, exit, .. } => format!("exit init {}", exit.status.code()),
        Event::Exited { process, exit, .. } => format!("exit {} {}", process.exec_id(), exit.status.code()),
        Event::Deleted { pid, exit } => format!("delete {pid} {}", exit.status.code()),
        Event::Paused => "paused".to_owned(),
        Event::Resumed => "resumed".to_owned(),
        Event::OutOfMemory => "oom".to_owned(),
        Event::Checkpointed(asker) => format!("checkpointed for #{}", asker.stream),
    }
}
