//! The table of containers: everything that happens is an [`Input`], what is to be done about it a list of [`Effect`]s.
//! Pure: no descriptor, path, clock or future; the time comes with the input.
//!
//! ```text
//!              Create            Start              Exited | ShimDied
//!   (nothing) ───────> Preparing ──> Created ──> Starting ──> Running ──> Retiring ──> AtRest ──> Removing ──> (nothing)
//!                          ^                        │ failed      │           │ policy     │ Start
//!                          │                        └─────────────┼──> ^      v            │
//!                          ├──────────────────────────────────────┼────── Backoff          │
//!                          └──────────────────────────────────────┼────────────────────────┘
//!                                       shim dead, process alive: └──> Adopted ──> Retiring
//!
//!   at start:  Probing ──> Created | Running | Retiring | Adopted | AtRest | Unresponsive ──> (asked again)
//! ```
//!
//! Invariants: an outcome is saved before anybody is told of it; a result that belongs to an earlier generation (an
//! earlier run of the same container) changes nothing; every question gets exactly one answer.

mod entry;
mod input;
mod restore;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

pub use entry::{Entry, ExecState, Phase, Snapshot};
pub use input::{Answer, Ask, Call, Effect, Ended, ExecSpec, Input, Limits, Note, Probe, Refusal, ReplyTo, RunState};
pub use input::{ShimRef, TaskView, Timer};

use crate::container::{Container, Outcome, UNKNOWN_STATUS, Wish};
use crate::names::{self, NameError};
use crate::policy::{Decision, EndedRun};
use crate::report::RestoreReport;
use crate::scan::Unusable;
use std::time::Duration;

/// How many removed containers' outcomes are remembered for those who ask late.
const REMEMBERED: usize = 256;

/// How long an ended exec is kept for a client that reconnects to ask for its status.
const EXEC_GRACE: Duration = Duration::from_secs(2);

/// The table.
#[derive(Debug, Default)]
pub struct Registry {
    containers: BTreeMap<String, Entry>,
    unusable: Vec<Unusable>,
    /// `(id, name, outcome)` of removed containers, oldest first.
    gone: VecDeque<(String, String, Outcome)>,
    restore: restore::Restore,
}

/// When an input arrived, in nanoseconds since the Unix epoch, and in which boot.
#[derive(Clone, Copy, Debug)]
pub struct Now<'a> {
    /// The time.
    pub unix_ns: i64,
    /// The boot.
    pub boot_id: &'a str,
}

impl Registry {
    /// Takes an input in; returns what to do, in order.
    pub fn handle(&mut self, input: Input, now: Now<'_>) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.dispatch(input, now, &mut effects);
        effects
    }

    /// The report of the restore, once there is one.
    pub fn report(&self) -> &RestoreReport {
        self.restore.report()
    }

    fn dispatch(&mut self, input: Input, now: Now<'_>, out: &mut Vec<Effect>) {
        match input {
            Input::Ask { ask, reply } => {
                if let Err(refusal) = self.ask(ask, reply, now, out) {
                    out.push(Effect::Reply { to: reply, answer: Err(refusal) });
                }
            }
            Input::Found(findings) => self.found(findings, now, out),
            Input::Probed { id, generation, probe } => self.probed(&id, generation, probe, now, out),
            Input::Prepared { id, generation, reply, result } => {
                self.prepared(&id, generation, reply, result, now, out)
            }
            Input::Started { id, generation, reply, result } => self.started(&id, generation, reply, result, now, out),
            Input::Exited { id, generation, status, at_unix_ns } => {
                let outcome = Outcome { status, at_unix_ns, reason: String::new() };
                self.exited(&id, generation, outcome, out);
            }
            Input::ShimDied { id, generation, init } => self.shim_died(&id, generation, init, now, out),
            Input::Retired { id, generation, outcome } => self.retired(&id, generation, outcome, now, out),
            Input::Elapsed { id, generation, timer } => self.elapsed(&id, generation, timer, now, out),
            Input::Forgotten { id, problem } => self.forgotten(&id, problem, now, out),
            Input::Paused { id, paused } => {
                if let Some(Entry { phase: Phase::Running { paused: state, .. }, .. }) = self.containers.get_mut(&id) {
                    *state = paused;
                }
            }
            Input::ExecStarted { id, generation, exec_id, reply, result } => {
                self.exec_started(&id, generation, &exec_id, reply, result, out);
            }
            Input::ExecExited { id, generation, exec_id, outcome } => {
                self.exec_exited(&id, generation, &exec_id, outcome, out);
            }
        }
    }

    /// The entry, unless the result belongs to an earlier run.
    fn current(&mut self, id: &str, generation: u64) -> Option<&mut Entry> {
        self.containers.get_mut(id).filter(|e| e.generation == generation)
    }

    fn resolve(&self, given: &str) -> Result<String, Refusal> {
        let known = self.containers.values().map(|e| (e.container.id.as_str(), e.container.name.as_str()));
        match names::resolve(given, known) {
            Ok(id) => Ok(id.to_owned()),
            Err(NameError::Unknown(given)) => match self.unusable.iter().find(|u| u.id == given) {
                Some(u) => Err(Refusal::Precondition(format!("container {given:?} is {}: {}", u.class, u.reason))),
                None => Err(Refusal::NotFound(format!("no container {given:?}"))),
            },
            Err(e) => Err(Refusal::Invalid(e.to_string())),
        }
    }

    fn entry(&mut self, given: &str) -> Result<&mut Entry, Refusal> {
        let id = self.resolve(given)?;
        Ok(self.containers.get_mut(&id).expect("resolved among the keys"))
    }

    fn ask(&mut self, ask: Ask, reply: ReplyTo, now: Now<'_>, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        match ask {
            Ask::Create { container, spec } => self.create(*container, spec, reply, now, out),
            Ask::Start { container } => self.entry(&container)?.start(reply, now, out),
            Ask::Wait { container, exec_id } if exec_id.is_empty() => self.wait(&container, reply, out),
            Ask::Wait { container, exec_id } => self.entry(&container)?.wait_exec(&exec_id, reply, out),
            Ask::Stop { container, timeout } => self.entry(&container)?.stop(timeout, reply, now, out),
            Ask::Remove { container, force } => self.entry(&container)?.remove(force, reply, out),
            Ask::Exec { container, exec_id, spec } => self.entry(&container)?.exec(exec_id, *spec, reply, out),
            Ask::Kill { container, signal } => self.entry(&container)?.kill(signal, reply, out),
            Ask::Call { container, call } => self.entry(&container)?.call(call, reply, out),
            Ask::Update { container, limits, restart } => {
                self.entry(&container)?.update(limits, restart, reply, now, out)
            }
            Ask::List { all } => {
                out.push(Effect::Reply { to: reply, answer: Ok(Answer::List(self.list(all))) });
                Ok(())
            }
            Ask::Inspect { container } => {
                let snapshot = self.entry(&container)?.snapshot();
                out.push(Effect::Reply { to: reply, answer: Ok(Answer::Inspect(Box::new(snapshot))) });
                Ok(())
            }
            Ask::Report => {
                let answer = Answer::Report(Box::new(self.report().clone()));
                out.push(Effect::Reply { to: reply, answer: Ok(answer) });
                Ok(())
            }
        }
    }

    fn list(&self, all: bool) -> Vec<Snapshot> {
        let mut list: Vec<Snapshot> =
            self.containers.values().filter(|e| all || e.phase.is_live()).map(Entry::snapshot).collect();
        if all {
            list.extend(self.unusable.iter().map(Snapshot::unusable));
        }
        list.sort_by_key(|s| std::cmp::Reverse(s.created_at_unix_ns));
        list
    }

    fn create(
        &mut self,
        mut container: Container,
        spec: String,
        reply: ReplyTo,
        now: Now<'_>,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if let Some(other) = self.containers.values().find(|e| e.container.name == container.name) {
            let (name, id) = (&container.name, names::short(&other.container.id));
            return Err(Refusal::Exists(format!("the name {name:?} is in use by container {id}")));
        }
        if self.containers.contains_key(&container.id) {
            return Err(Refusal::Exists(format!("the id {} is in use", container.id)));
        }
        now.boot_id.clone_into(&mut container.state.boot_id);
        let id = container.id.clone();
        out.push(Effect::Store { container: Box::new(container.clone()), spec });
        let mut entry = Entry::new(container);
        entry.prepare(false, Some(reply), out);
        self.containers.insert(id, entry);
        Ok(())
    }

    fn prepared(
        &mut self,
        id: &str,
        generation: u64,
        reply: Option<ReplyTo>,
        result: Result<ShimRef, Refusal>,
        now: Now<'_>,
        out: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.current(id, generation) else { return };
        let Phase::Preparing { start } = entry.phase else { return };
        match result {
            Ok(shim) => {
                out.push(Effect::Watch { id: id.to_owned(), generation });
                entry.phase = Phase::Created { shim };
                if entry.is_doomed() {
                    if let Some(to) = reply {
                        let why = format!("container {} was stopped or removed meanwhile", entry.container.name);
                        out.push(Effect::Reply { to, answer: Err(Refusal::Precondition(why)) });
                    }
                    entry.retire(false, out);
                } else if start {
                    entry.start_task(reply, now, out);
                } else if let Some(to) = reply {
                    let (id, name) = (id.to_owned(), entry.container.name.clone());
                    out.push(Effect::Reply { to, answer: Ok(Answer::Created { id, name }) });
                }
            }
            Err(refusal) => {
                let reason = refusal.to_string();
                if reply.is_some() {
                    // Whoever asked knows; no policy repeats a start that was asked for and failed.
                    entry.container.state.wish = Wish::Stopped;
                }
                out.extend(reply.map(|to| Effect::Reply { to, answer: Err(refusal) }));
                if start {
                    // It was there before this attempt, and stays, with the reason.
                    entry.set_outcome(Outcome { status: UNKNOWN_STATUS, at_unix_ns: now.unix_ns, reason }, out);
                    self.come_to_rest(id, now, out);
                } else {
                    entry.phase = Phase::Removing;
                    out.push(Effect::Forget { id: id.to_owned() });
                }
            }
        }
    }

    fn started(
        &mut self,
        id: &str,
        generation: u64,
        reply: Option<ReplyTo>,
        result: Result<u32, Refusal>,
        now: Now<'_>,
        out: &mut Vec<Effect>,
    ) {
        match result {
            Ok(pid) => {
                out.extend(reply.map(|to| Effect::Reply { to, answer: Ok(Answer::Started { pid }) }));
                let Some(entry) = self.current(id, generation) else { return };
                // It may have ended before the answer came: then there is nothing more to learn from it.
                let Phase::Starting { shim } = entry.phase.clone() else { return };
                entry.phase = Phase::Running { shim, pid, paused: false };
                if !entry.remove_waiters.is_empty() {
                    entry.signal(9, None, out);
                } else if entry.is_doomed() {
                    entry.signal(entry.container.config.stop_signal, None, out);
                }
            }
            Err(refusal) => {
                let reason = refusal.to_string();
                out.extend(reply.map(|to| Effect::Reply { to, answer: Err(refusal) }));
                let Some(entry) = self.current(id, generation) else { return };
                if matches!(entry.phase, Phase::Starting { .. }) {
                    let status = start_failure_status(&reason);
                    // A start that failed will fail again: no policy repeats it.
                    entry.container.state.wish = Wish::Stopped;
                    entry.set_outcome(Outcome { status, at_unix_ns: now.unix_ns, reason }, out);
                    entry.retire(false, out);
                }
            }
        }
    }

    fn exited(&mut self, id: &str, generation: u64, outcome: Outcome, out: &mut Vec<Effect>) {
        let Some(entry) = self.current(id, generation) else { return };
        let shim_dead = matches!(entry.phase, Phase::Adopted { .. });
        if shim_dead || entry.phase.has_shim() {
            entry.set_outcome(outcome, out);
            entry.retire(shim_dead, out);
        }
    }

    fn shim_died(&mut self, id: &str, generation: u64, init: Option<(u32, u64)>, now: Now<'_>, out: &mut Vec<Effect>) {
        let Some(entry) = self.current(id, generation) else { return };
        if matches!(entry.phase, Phase::Adopted { .. }) && init.is_none() {
            // Known to be without a shim; now its process has ended too, and nobody saw how.
            entry.retire(true, out);
            return;
        }
        if !entry.phase.has_shim() {
            return;
        }
        entry.fail_execs("the shim died", now.unix_ns, out);
        out.push(Effect::Publish(Note::new("lost", id, "the shim died")));
        match init {
            Some((pid, start_time)) => entry.adopt(pid, start_time, out),
            None => entry.retire(true, out),
        }
    }

    fn retired(&mut self, id: &str, generation: u64, outcome: Option<Outcome>, now: Now<'_>, out: &mut Vec<Effect>) {
        let Some(entry) = self.current(id, generation) else { return };
        if !matches!(entry.phase, Phase::Retiring) {
            return;
        }
        if entry.container.state.outcome.is_none() {
            let unknown = || Outcome {
                status: UNKNOWN_STATUS,
                at_unix_ns: now.unix_ns,
                reason: "the exit status is lost".to_owned(),
            };
            entry.set_outcome(outcome.unwrap_or_else(unknown), out);
        }
        entry.fail_execs("the container has ended", now.unix_ns, out);
        self.come_to_rest(id, now, out);
    }

    /// The run is over and cleaned up: remove, restart, or rest; and tell those who wait.
    fn come_to_rest(&mut self, id: &str, now: Now<'_>, out: &mut Vec<Effect>) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        if !entry.remove_waiters.is_empty() || entry.container.config.remove {
            entry.phase = Phase::Removing;
            out.push(Effect::Forget { id: id.to_owned() });
            return;
        }
        entry.phase = Phase::AtRest;
        match entry.after_exit() {
            Decision::Rest => entry.answer_waiters(now.unix_ns, out),
            Decision::Restart { after, restarts } => {
                entry.container.state.restarts = restarts;
                entry.back_off(after, out);
            }
        }
        entry.answer_stop_waiters(now.unix_ns, out);
    }

    fn elapsed(&mut self, id: &str, generation: u64, timer: Timer, now: Now<'_>, out: &mut Vec<Effect>) {
        let Some(entry) = self.current(id, generation) else { return };
        match (timer, &entry.phase) {
            (Timer::Stop, phase) if phase.is_live() => entry.signal(9, None, out),
            (Timer::Restart, Phase::Backoff) => {
                out.push(Effect::Publish(Note::new("restart", id, &entry.container.config.restart.to_string())));
                entry.begin_run(None, now, out);
            }
            (Timer::ProbeAgain, Phase::Unresponsive { traces }) => {
                let (id, traces) = (id.to_owned(), traces.clone());
                out.push(Effect::Probe { id, generation, traces: Some(traces) });
            }
            (Timer::ForgetExec(exec_id), _) => {
                if matches!(entry.execs.get(&exec_id), Some(ExecState::Ended(_))) {
                    entry.execs.remove(&exec_id);
                    if entry.phase.is_live() {
                        out.push(Effect::DeleteExec { id: id.to_owned(), exec_id });
                    }
                }
            }
            _ => {}
        }
    }

    fn forgotten(&mut self, id: &str, problem: Option<String>, now: Now<'_>, out: &mut Vec<Effect>) {
        let Some(mut entry) = self.containers.remove(id) else { return };
        entry.answer_stop_waiters(now.unix_ns, out);
        entry.answer_waiters(now.unix_ns, out);
        for to in std::mem::take(&mut entry.remove_waiters) {
            let answer = match &problem {
                None => Ok(Answer::Done),
                Some(problem) => Err(Refusal::Failed(problem.clone())),
            };
            out.push(Effect::Reply { to, answer });
        }
        if let Some(outcome) = entry.container.state.outcome.clone() {
            if self.gone.len() == REMEMBERED {
                self.gone.pop_front();
            }
            self.gone.push_back((id.to_owned(), entry.container.name.clone(), outcome));
        }
        if problem.is_some() {
            // What could not be deleted stays visible, and can be removed again.
            entry.phase = Phase::AtRest;
            entry.container.config.remove = false;
            self.containers.insert(id.to_owned(), entry);
        } else {
            out.push(Effect::Publish(Note::new("remove", id, "")));
        }
    }

    fn wait(&mut self, given: &str, reply: ReplyTo, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        match self.entry(given) {
            Ok(entry) => {
                entry.wait(reply, out);
                Ok(())
            }
            Err(refusal) => {
                let (id, _, outcome) =
                    self.gone.iter().rev().find(|(id, name, _)| id == given || name == given).ok_or(refusal)?;
                let ended = Ended { id: id.clone(), outcome: outcome.clone() };
                out.push(Effect::Reply { to: reply, answer: Ok(Answer::Ended(ended)) });
                Ok(())
            }
        }
    }

    fn exec_started(
        &mut self,
        id: &str,
        generation: u64,
        exec_id: &str,
        reply: ReplyTo,
        result: Result<u32, Refusal>,
        out: &mut Vec<Effect>,
    ) {
        let entry = self.current(id, generation);
        match result {
            Ok(pid) => {
                let answer = Ok(Answer::ExecStarted { id: id.to_owned(), pid });
                out.push(Effect::Reply { to: reply, answer });
                if entry.is_some_and(|e| e.execs.contains_key(exec_id)) {
                    let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
                    out.push(Effect::WatchExec { id, generation, exec_id });
                }
            }
            Err(refusal) => {
                if let Some(ExecState::Running { waiters }) = entry.and_then(|e| e.execs.remove(exec_id)) {
                    let gone = |to| Effect::Reply { to, answer: Err(refusal.clone()) };
                    out.extend(waiters.into_iter().map(gone));
                }
                out.push(Effect::Reply { to: reply, answer: Err(refusal) });
            }
        }
    }

    fn exec_exited(&mut self, id: &str, generation: u64, exec_id: &str, outcome: Outcome, out: &mut Vec<Effect>) {
        let Some(entry) = self.current(id, generation) else { return };
        if !matches!(entry.execs.get(exec_id), Some(ExecState::Running { .. })) {
            return;
        }
        let ended = ExecState::Ended(outcome.clone());
        if let Some(ExecState::Running { waiters }) = entry.execs.insert(exec_id.to_owned(), ended) {
            for to in waiters {
                let ended = Ended { id: id.to_owned(), outcome: outcome.clone() };
                out.push(Effect::Reply { to, answer: Ok(Answer::Ended(ended)) });
            }
        }
        let timer = Timer::ForgetExec(exec_id.to_owned());
        out.push(Effect::Timer { id: id.to_owned(), generation, after: EXEC_GRACE, timer });
    }
}

/// The status by which `docker run` reports a command that cannot be run, from the OCI runtime's words.
pub fn start_failure_status(text: &str) -> u32 {
    let text = text.to_lowercase();
    let says = |phrases: &[&str]| phrases.iter().any(|p| text.contains(p));
    if says(&["executable file not found", "no such file or directory", "not found in $path"]) {
        127
    } else if says(&["permission denied", "is a directory", "not a directory", "exec format error"]) {
        126
    } else {
        128
    }
}

/// How long a run lasted, never negative.
fn lasted(container: &Container, outcome: &Outcome) -> Duration {
    let ns = outcome.at_unix_ns.saturating_sub(container.state.started_at_unix_ns);
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}

/// What the policy is told about the run that ended.
fn ended_run(container: &Container, outcome: &Outcome) -> EndedRun {
    EndedRun {
        status: outcome.status,
        stopped: container.state.wish != Wish::Running,
        lasted: lasted(container, outcome),
        restarts: container.state.restarts,
    }
}
