//! One container: its phase, who waits for it, and what each request does in each phase.

use std::collections::BTreeMap;
use std::time::Duration;

use super::input::{Answer, Call, Effect, Ended, ExecSpec, Limits, Note, Refusal, ReplyTo, ShimRef, Timer};
use super::{Now, ended_run};
use crate::container::{Container, Outcome, UNKNOWN_STATUS, Wish};
use crate::names::short;
use crate::policy::{Decision, RestartPolicy};
use crate::report::Class;
use crate::scan::{ShimTraces, Unusable};

/// Where a container is; the picture is in the parent module.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Phase {
    /// Its shim is being looked for.
    Probing,
    /// Its shim lives but does not answer.
    Unresponsive {
        traces: ShimTraces,
    },
    /// Bundle, shim and container are being made; then it is started, or not.
    Preparing {
        start: bool,
    },
    Created {
        shim: ShimRef,
    },
    Starting {
        shim: ShimRef,
    },
    Running {
        shim: ShimRef,
        pid: u32,
        paused: bool,
    },
    /// Its first process lives, its shim does not.
    Adopted {
        pid: u32,
        start_time: u64,
    },
    /// It has ended; task, shim and bundle are being cleared away.
    Retiring,
    AtRest,
    /// It will be started again.
    Backoff,
    /// Its files are being deleted.
    Removing,
}

impl Phase {
    /// Whether a shim serves it.
    pub(super) fn has_shim(&self) -> bool {
        matches!(self, Self::Created { .. } | Self::Starting { .. } | Self::Running { .. } | Self::Unresponsive { .. })
    }

    /// Whether a process of it runs or is about to.
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Starting { .. } | Self::Running { .. } | Self::Adopted { .. } | Self::Unresponsive { .. })
    }

    fn shim(&self) -> Option<&ShimRef> {
        match self {
            Self::Created { shim } | Self::Starting { shim } | Self::Running { shim, .. } => Some(shim),
            _ => None,
        }
    }
}

/// An exec, as long as anybody may ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ExecState {
    Running { waiters: Vec<ReplyTo> },
    Ended(Outcome),
}

/// One container.
#[derive(Debug)]
pub struct Entry {
    pub(super) container: Container,
    /// Grows with every run and every probe, so that late results are recognised.
    pub(super) generation: u64,
    pub(super) phase: Phase,
    pub(super) waiters: Vec<ReplyTo>,
    pub(super) stop_waiters: Vec<ReplyTo>,
    pub(super) remove_waiters: Vec<ReplyTo>,
    pub(super) execs: BTreeMap<String, ExecState>,
}

impl Entry {
    pub(super) fn new(container: Container) -> Self {
        Self {
            container,
            generation: 1,
            phase: Phase::AtRest,
            waiters: Vec::new(),
            stop_waiters: Vec::new(),
            remove_waiters: Vec::new(),
            execs: BTreeMap::new(),
        }
    }

    fn id(&self) -> String {
        self.container.id.clone()
    }

    /// How people call it.
    fn called(&self) -> String {
        format!("container {} ({})", self.container.name, short(&self.container.id))
    }

    fn save(&self, out: &mut Vec<Effect>) {
        out.push(Effect::Save(Box::new(self.container.clone())));
    }

    /// Whether it shall not go on: stopped or removed while it was being made.
    pub(super) fn is_doomed(&self) -> bool {
        !self.remove_waiters.is_empty() || self.container.state.wish == Wish::Stopped
    }

    /// Saves how the run ended; the first knowledge of it stays.
    pub(super) fn set_outcome(&mut self, outcome: Outcome, out: &mut Vec<Effect>) {
        if self.container.state.outcome.is_none() {
            self.container.state.outcome = Some(outcome);
            self.save(out);
        }
    }

    /// The policy's word after the end of a run.
    pub(super) fn after_exit(&self) -> Decision {
        let state = &self.container.state;
        match &state.outcome {
            Some(outcome) => self.container.config.restart.after_exit(ended_run(&self.container, outcome)),
            None => Decision::Rest,
        }
    }

    pub(super) fn prepare(&mut self, start: bool, reply: Option<ReplyTo>, out: &mut Vec<Effect>) {
        self.generation += 1;
        self.phase = Phase::Preparing { start };
        let (id, generation) = (self.id(), self.generation);
        out.push(Effect::Prepare { id, generation, reply, container: Box::new(self.container.clone()) });
    }

    /// Starts a new run from rest.
    pub(super) fn begin_run(&mut self, reply: Option<ReplyTo>, now: Now<'_>, out: &mut Vec<Effect>) {
        self.container.state.wish = Wish::Running;
        self.container.state.outcome = None;
        now.boot_id.clone_into(&mut self.container.state.boot_id);
        self.save(out);
        self.prepare(true, reply, out);
    }

    pub(super) fn start_task(&mut self, reply: Option<ReplyTo>, now: Now<'_>, out: &mut Vec<Effect>) {
        let Phase::Created { shim } = self.phase.clone() else { return };
        let state = &mut self.container.state;
        state.wish = Wish::Running;
        state.outcome = None;
        state.started_at_unix_ns = now.unix_ns;
        now.boot_id.clone_into(&mut state.boot_id);
        self.save(out);
        self.phase = Phase::Starting { shim };
        out.push(Effect::StartTask { id: self.id(), generation: self.generation, reply });
    }

    pub(super) fn start(&mut self, reply: ReplyTo, now: Now<'_>, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        match self.phase {
            Phase::Created { .. } => self.start_task(Some(reply), now, out),
            Phase::AtRest | Phase::Backoff => {
                self.container.state.restarts = 0;
                self.begin_run(Some(reply), now, out);
            }
            Phase::Running { pid, .. } | Phase::Adopted { pid, .. } => {
                out.push(Effect::Reply { to: reply, answer: Ok(Answer::Started { pid }) });
            }
            _ => return Err(self.wrong_phase("cannot be started")),
        }
        Ok(())
    }

    fn wrong_phase(&self, what: &str) -> Refusal {
        let text = format!("{} {what}: it is {}", self.called(), self.status());
        match self.phase {
            Phase::Unresponsive { .. } => Refusal::Unavailable(text),
            _ => Refusal::Precondition(text),
        }
    }

    pub(super) fn retire(&mut self, shim_dead: bool, out: &mut Vec<Effect>) {
        self.phase = Phase::Retiring;
        out.push(Effect::Retire { id: self.id(), generation: self.generation, shim_dead });
    }

    pub(super) fn adopt(&mut self, pid: u32, start_time: u64, out: &mut Vec<Effect>) {
        self.phase = Phase::Adopted { pid, start_time };
        out.push(Effect::WatchPid { id: self.id(), generation: self.generation, pid, start_time });
    }

    pub(super) fn back_off(&mut self, after: Duration, out: &mut Vec<Effect>) {
        self.phase = Phase::Backoff;
        self.save(out);
        out.push(Effect::Timer { id: self.id(), generation: self.generation, after, timer: Timer::Restart });
    }

    /// Sends a signal to whatever runs; without anything that runs the answer is a refusal.
    pub(super) fn signal(&mut self, signal: i32, reply: Option<ReplyTo>, out: &mut Vec<Effect>) {
        match &self.phase {
            Phase::Created { .. } | Phase::Starting { .. } | Phase::Running { .. } => {
                out.push(Effect::Call { id: self.id(), call: Call::Kill { signal }, reply });
            }
            Phase::Adopted { pid, start_time } => {
                out.push(Effect::KillPid { pid: *pid, start_time: *start_time, signal, reply });
            }
            Phase::Unresponsive { traces: ShimTraces { init: Some((pid, start_time)), .. } } => {
                out.push(Effect::KillPid { pid: *pid, start_time: *start_time, signal, reply });
            }
            _ => {
                let refusal = self.wrong_phase("cannot be signalled");
                out.extend(reply.map(|to| Effect::Reply { to, answer: Err(refusal) }));
            }
        }
    }

    pub(super) fn kill(&mut self, signal: i32, reply: ReplyTo, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        self.signal(signal, Some(reply), out);
        Ok(())
    }

    pub(super) fn stop(
        &mut self,
        timeout: Option<u32>,
        reply: ReplyTo,
        now: Now<'_>,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if matches!(self.phase, Phase::Probing | Phase::Removing) {
            return Err(self.wrong_phase("cannot be stopped"));
        }
        self.container.state.wish = Wish::Stopped;
        self.save(out);
        self.stop_waiters.push(reply);
        match &self.phase {
            Phase::AtRest => self.answer_stop_waiters(now.unix_ns, out),
            Phase::Backoff => {
                self.phase = Phase::AtRest;
                self.answer_waiters(now.unix_ns, out);
                self.answer_stop_waiters(now.unix_ns, out);
            }
            Phase::Created { .. } => {
                let reason = "stopped before it was started".to_owned();
                self.set_outcome(Outcome { status: 0, at_unix_ns: now.unix_ns, reason }, out);
                self.retire(false, out);
            }
            Phase::Running { .. } | Phase::Starting { .. } | Phase::Adopted { .. } | Phase::Unresponsive { .. } => {
                out.push(Effect::Publish(Note::new("stop", &self.container.id, "")));
                self.signal(self.container.config.stop_signal, None, out);
                let after = Duration::from_secs(timeout.unwrap_or(self.container.config.stop_timeout).into());
                let (id, generation) = (self.id(), self.generation);
                out.push(Effect::Timer { id, generation, after, timer: Timer::Stop });
            }
            // Being made or cleared away: whoever finishes that looks at the wish.
            Phase::Preparing { .. } | Phase::Retiring | Phase::Probing | Phase::Removing => {}
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, force: bool, reply: ReplyTo, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        match &self.phase {
            Phase::AtRest | Phase::Backoff => {
                self.phase = Phase::Removing;
                out.push(Effect::Forget { id: self.id() });
            }
            Phase::Created { .. } => self.retire(false, out),
            Phase::Retiring | Phase::Removing => {}
            _ if !force => return Err(self.wrong_phase("cannot be removed without force")),
            Phase::Unresponsive { traces } => {
                let Some((pid, start_time)) = traces.process else {
                    return Err(self.wrong_phase("cannot be removed"));
                };
                out.push(Effect::KillPid { pid, start_time, signal: 9, reply: None });
            }
            Phase::Running { .. } | Phase::Adopted { .. } => self.signal(9, None, out),
            Phase::Preparing { .. } | Phase::Starting { .. } | Phase::Probing => {}
        }
        if self.phase.is_live() {
            self.container.state.wish = Wish::Stopped;
            self.save(out);
        }
        self.remove_waiters.push(reply);
        Ok(())
    }

    pub(super) fn call(&mut self, call: Call, reply: ReplyTo, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        match self.phase {
            Phase::Created { .. } | Phase::Starting { .. } | Phase::Running { .. } => {
                out.push(Effect::Call { id: self.id(), call, reply: Some(reply) });
                Ok(())
            }
            _ => Err(self.wrong_phase(match call {
                Call::Attach { .. } => "cannot be attached to",
                Call::Update { .. } => "cannot get new limits",
                Call::Kill { .. } => "cannot be signalled",
                Call::Resize { .. } | Call::CloseStdin { .. } => "has no terminal or input",
            })),
        }
    }

    pub(super) fn update(
        &mut self,
        limits: Limits,
        restart: Option<RestartPolicy>,
        reply: ReplyTo,
        now: Now<'_>,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if let Some(policy) = restart {
            self.container.config.restart = policy;
            self.container.state.restarts = 0;
            self.save(out);
            out.push(Effect::Publish(Note::new("update", &self.container.id, &policy.to_string())));
            if self.phase == Phase::Backoff && self.after_exit() == Decision::Rest {
                self.phase = Phase::AtRest;
                self.answer_waiters(now.unix_ns, out);
            }
        }
        if limits.is_empty() {
            out.push(Effect::Reply { to: reply, answer: Ok(Answer::Done) });
            return Ok(());
        }
        self.call(Call::Update { limits }, reply, out)
    }

    pub(super) fn exec(
        &mut self,
        exec_id: String,
        spec: ExecSpec,
        reply: ReplyTo,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if !matches!(self.phase, Phase::Running { .. }) {
            return Err(self.wrong_phase("cannot run another process"));
        }
        if self.execs.contains_key(&exec_id) {
            return Err(Refusal::Exists(format!("{} has an exec {exec_id:?} already", self.called())));
        }
        self.execs.insert(exec_id.clone(), ExecState::Running { waiters: Vec::new() });
        let (id, generation) = (self.id(), self.generation);
        out.push(Effect::StartExec { id, generation, exec_id, spec: Box::new(spec), reply });
        Ok(())
    }

    pub(super) fn wait_exec(&mut self, exec_id: &str, reply: ReplyTo, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let called = self.called();
        match self.execs.get_mut(exec_id) {
            Some(ExecState::Running { waiters }) => waiters.push(reply),
            Some(ExecState::Ended(outcome)) => {
                let ended = Ended { id: self.container.id.clone(), outcome: outcome.clone() };
                out.push(Effect::Reply { to: reply, answer: Ok(Answer::Ended(ended)) });
            }
            None => return Err(Refusal::NotFound(format!("{called} has no exec {exec_id:?}"))),
        }
        Ok(())
    }

    /// Answers those who wait for execs that can't end by themselves any more.
    pub(super) fn fail_execs(&mut self, reason: &str, at_unix_ns: i64, out: &mut Vec<Effect>) {
        for exec in self.execs.values_mut() {
            if let ExecState::Running { waiters } = exec {
                let outcome = Outcome { status: UNKNOWN_STATUS, at_unix_ns, reason: reason.to_owned() };
                for to in std::mem::take(waiters) {
                    let ended = Ended { id: self.container.id.clone(), outcome: outcome.clone() };
                    out.push(Effect::Reply { to, answer: Ok(Answer::Ended(ended)) });
                }
                *exec = ExecState::Ended(outcome);
            }
        }
    }

    pub(super) fn wait(&mut self, reply: ReplyTo, out: &mut Vec<Effect>) {
        match (&self.phase, &self.container.state.outcome) {
            (Phase::AtRest, Some(outcome)) => {
                let ended = Ended { id: self.id(), outcome: outcome.clone() };
                out.push(Effect::Reply { to: reply, answer: Ok(Answer::Ended(ended)) });
            }
            _ => self.waiters.push(reply),
        }
    }

    fn ended(&self, now_unix_ns: i64) -> Ended {
        let never = || Outcome { status: 0, at_unix_ns: now_unix_ns, reason: "it was never started".to_owned() };
        Ended { id: self.id(), outcome: self.container.state.outcome.clone().unwrap_or_else(never) }
    }

    pub(super) fn answer_waiters(&mut self, now_unix_ns: i64, out: &mut Vec<Effect>) {
        let answer = Answer::Ended(self.ended(now_unix_ns));
        out.extend(self.waiters.drain(..).map(|to| Effect::Reply { to, answer: Ok(answer.clone()) }));
    }

    pub(super) fn answer_stop_waiters(&mut self, now_unix_ns: i64, out: &mut Vec<Effect>) {
        let answer = Answer::Ended(self.ended(now_unix_ns));
        out.extend(self.stop_waiters.drain(..).map(|to| Effect::Reply { to, answer: Ok(answer.clone()) }));
    }

    /// The word for its phase, as in the API.
    pub(super) fn status(&self) -> &'static str {
        match &self.phase {
            Phase::Probing => "being looked for",
            Phase::Unresponsive { .. } => "unresponsive",
            Phase::Preparing { .. } | Phase::Starting { .. } => "preparing",
            Phase::Created { .. } => "created",
            Phase::Running { paused: true, .. } => "paused",
            Phase::Running { .. } | Phase::Adopted { .. } if self.container.state.wish == Wish::Stopped => "stopping",
            Phase::Running { .. } | Phase::Adopted { .. } => "running",
            Phase::Retiring => "stopping",
            Phase::AtRest if self.container.state.outcome.is_none() => "created",
            Phase::AtRest => "exited",
            Phase::Backoff => "restarting",
            Phase::Removing => "removing",
        }
    }

    /// What there is to tell.
    pub(super) fn snapshot(&self) -> Snapshot {
        let pid = match &self.phase {
            Phase::Running { pid, .. } | Phase::Adopted { pid, .. } => *pid,
            _ => 0,
        };
        let reason = match &self.phase {
            Phase::Adopted { .. } => "its shim is dead: it runs without anybody who drains its output".to_owned(),
            Phase::Unresponsive { .. } => "its shim does not answer".to_owned(),
            _ => self.container.state.outcome.as_ref().map(|o| o.reason.clone()).unwrap_or_default(),
        };
        let shim = self.phase.shim();
        Snapshot {
            namespace: crate::paths::NAMESPACE.to_owned(),
            id: self.id(),
            name: self.container.name.clone(),
            manager: "holdfastd".to_owned(),
            status: self.status().to_owned(),
            pid,
            shim_pid: shim.map_or(0, |s| s.pid),
            shim_address: shim.map(|s| s.address.clone()).unwrap_or_default(),
            created_at_unix_ns: self.container.created_at_unix_ns,
            reason,
            container: Some(self.container.clone()),
        }
    }
}

/// One container, for those who look.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Snapshot {
    pub namespace: String,
    pub id: String,
    pub name: String,
    pub manager: String,
    pub status: String,
    pub pid: u32,
    pub shim_pid: u32,
    pub shim_address: String,
    pub created_at_unix_ns: i64,
    pub reason: String,
    /// `None` for what is not the supervisor's, or cannot be read.
    pub container: Option<Container>,
}

impl Snapshot {
    pub(super) fn unusable(unusable: &Unusable) -> Self {
        let status = if unusable.class == Class::Incompatible { "incompatible" } else { "unreadable" };
        Self {
            namespace: unusable.namespace.clone(),
            id: unusable.id.clone(),
            name: String::new(),
            manager: "holdfastd".to_owned(),
            status: status.to_owned(),
            pid: 0,
            shim_pid: 0,
            shim_address: String::new(),
            created_at_unix_ns: 0,
            reason: unusable.reason.clone(),
            container: None,
        }
    }
}
