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
//!   stopped, or ended with the supervisor, before it was started: Created ──> Retiring;  restarted: Retiring ──> Preparing
//!
//!   at start:  Probing, and Unresponsive whenever it is asked again
//!                 ──> Created | Starting | Running | Retiring | Adopted | AtRest | Backoff | Preparing | Removing
//!                     | Withheld | Unresponsive
//! ```
//!
//! Invariants: an outcome is saved before anybody is told of it; a result that belongs to an earlier generation (an
//! earlier run of the same container) changes nothing; every question gets exactly one answer.

mod entry;
mod execs;
mod input;
mod restore;
mod shutdown;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

pub use entry::{Entry, Phase, Snapshot};
pub use execs::{Exec, ExecState, ExecView};
pub use input::{
    Answer, Ask, Call, Effect, Ended, ExecSpec, Input, Limits, LogChange, Note, Onlooker, Probe, Refusal, ReplyTo,
    RunState,
};
pub use input::{ShimRef, TaskView, Timer};
pub use shutdown::{Due, How, Stopped, Survivors};
pub use status::Status;

use crate::container::{Container, Next, Outcome, UNKNOWN_STATUS, Wish};
use crate::endings::Ending;
use crate::names::{self, NameError};
use crate::policy::{Decision, EndedRun};
use crate::scan::Unusable;
use std::time::Duration;

/// How many removed containers' outcomes are remembered for those who ask late.
const REMEMBERED: usize = 256;

/// The table.
#[derive(Debug, Default)]
pub struct Registry {
    containers: BTreeMap<String, Entry>,
    unusable: Vec<Unusable>,
    /// Removed containers, oldest first.
    gone: VecDeque<Gone>,
    restore: restore::Restore,
    survivors: Survivors,
    /// From when the end has begun.
    shutdown: Option<shutdown::Shutdown>,
}

/// How a container ended that was removed, and its execs.
#[derive(Debug)]
struct Gone {
    id: String,
    name: String,
    /// `None` if it never ran.
    outcome: Option<Outcome>,
    execs: Vec<(String, Outcome)>,
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
        self.look_for_the_end(&mut effects);
        effects
    }

    /// All that the next supervisor is to know of what has ended: what it is given as [`crate::scan::Findings::endings`].
    pub fn endings(&self) -> Vec<Ending> {
        let of_gone = self.gone.iter().flat_map(|gone| {
            let ending = |exec_id: &str, outcome: &Outcome| {
                let (id, name) = (gone.id.clone(), gone.name.clone());
                Ending { id, name, exec_id: exec_id.to_owned(), outcome: outcome.clone() }
            };
            let execs: Vec<Ending> = gone.execs.iter().map(|(id, outcome)| ending(id, outcome)).collect();
            execs.into_iter().chain(gone.outcome.as_ref().map(|outcome| ending("", outcome)))
        });
        of_gone.chain(self.containers.values().flat_map(Entry::endings)).collect()
    }

    fn dispatch(&mut self, input: Input, now: Now<'_>, out: &mut Vec<Effect>) {
        match input {
            Input::Ask { ask, reply } => self.asked(ask, reply, now, out),
            Input::Found(findings) => self.found(findings, now, out),
            Input::Probed { id, generation, probe } => self.probed(&id, generation, probe, now, out),
            Input::Prepared { id, generation, reply, result } => {
                self.prepared(&id, generation, reply, result, now, out)
            }
            Input::Started { id, generation, reply, result } => self.started(&id, generation, reply, result, now, out),
            Input::Exited { id, generation, outcome } => self.exited(&id, generation, outcome, now, out),
            Input::ShimDied { id, generation, init } => self.shim_died(&id, generation, init, now, out),
            Input::Retired { id, generation, outcome } => self.retired(&id, generation, outcome, now, out),
            Input::Elapsed { id, generation, timer } => self.elapsed(&id, generation, timer, now, out),
            Input::Terminate { live_restore, within } => self.terminate(live_restore, within, now, out),
            Input::Due(due) => self.due(due, now, out),
            Input::ProcessEnded { id, generation } => self.process_ended(&id, generation, now, out),
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
        if matches!(ask, Ask::Create { .. } | Ask::Start { .. } | Ask::Restart { .. } | Ask::Exec { .. }) {
            self.refuse_new()?;
        }
        match ask {
            Ask::Create { container, spec } => self.create(*container, spec, reply, now, out),
            Ask::Start { container, onlooker } => self.entry(&container)?.start(onlooker, reply, now, out),
            Ask::Restart { container, timeout, begun_unix_ns } => {
                self.entry(&container)?.restart(timeout, begun_unix_ns, reply, now, out)
            }
            Ask::Wait { container, exec_id } if exec_id.is_empty() => self.wait(&container, reply, out),
            Ask::Wait { container, exec_id } => self.wait_exec(&container, &exec_id, reply, out),
            Ask::Stop { container, timeout } => self.entry(&container)?.stop(timeout, reply, now, out),
            Ask::Remove { container, force } => self.entry(&container)?.remove(force, reply, out),
            Ask::Exec { container, exec_id, spec } => self.entry(&container)?.exec(exec_id, *spec, reply, out),
            Ask::Kill { container, signal } => self.entry(&container)?.kill(signal, reply, now, out),
            Ask::Call { container, call } => self.entry(&container)?.call(call, reply, out),
            Ask::Update { container, limits, restart, log } => {
                self.entry(&container)?.update(limits, restart, log.as_ref(), reply, now, out)
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
            Ask::StopAll { within } => {
                self.stop_all(within, reply, now, out);
                Ok(())
            }
            Ask::Report => {
                let answer = Answer::Report(Box::new(self.report()));
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
                    let why = format!("container {} was stopped or removed meanwhile", entry.container.name);
                    let refusal = Refusal::Precondition(why);
                    out.extend(reply.map(|to| Effect::Reply { to, answer: Err(refusal.clone()) }));
                    entry.answer_start_waiters(&Err(refusal), out);
                    if entry.ending.is_some() && !start {
                        // A Create that fails leaves nothing over.
                        entry.is_disowned = true;
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
                entry.onlooker = None;
                let reason = refusal.to_string();
                entry.start_failed(refusal, reply, out);
                if start {
                    // It was there before this attempt, and stays, with the reason.
                    entry.set_outcome(Outcome { status: UNKNOWN_STATUS, at_unix_ns: now.unix_ns, reason }, out);
                    self.come_to_rest(id, now, out);
                } else {
                    entry.forget(out);
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
                entry.answer_start_waiters(&Ok(pid), out);
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
                let Some(entry) = self.current(id, generation) else {
                    out.extend(reply.map(|to| Effect::Reply { to, answer: Err(refusal) }));
                    return;
                };
                entry.start_failed(refusal, reply, out);
                if matches!(entry.phase, Phase::Starting { .. }) {
                    let status = start_failure_status(&reason);
                    entry.container.state.started_at_unix_ns = 0;
                    entry.set_outcome(Outcome { status, at_unix_ns: now.unix_ns, reason }, out);
                    entry.retire(false, out);
                }
            }
        }
    }

    fn exited(&mut self, id: &str, generation: u64, outcome: Outcome, now: Now<'_>, out: &mut Vec<Effect>) {
        let Some(entry) = self.current(id, generation) else { return };
        let shim_dead = matches!(entry.phase, Phase::Adopted { .. });
        if let Phase::Withheld { pid, .. } = &mut entry.phase {
            // It is left as it is, for the holdfast that made it.
            *pid = 0;
            entry.set_outcome(outcome, out);
            entry.answer_waiters(now.unix_ns, out);
            entry.answer_stop_waiters(now.unix_ns, out);
            self.tell_stopped(id, now, out);
        } else if shim_dead || entry.phase.has_shim() {
            let mut outcome = outcome;
            entry.note_ending(&mut outcome);
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
        if let Phase::Withheld { shim, .. } = &mut entry.phase {
            *shim = None;
            match init {
                Some((pid, start_time)) => {
                    out.push(Effect::WatchPid { id: id.to_owned(), generation, pid, start_time });
                }
                None => {
                    let reason = "the exit status is lost with the shim".to_owned();
                    let outcome = Outcome { status: UNKNOWN_STATUS, at_unix_ns: now.unix_ns, reason };
                    self.exited(id, generation, outcome, now, out);
                }
            }
            return;
        }
        if !entry.phase.has_shim() {
            return;
        }
        out.push(Effect::Publish(Note::new("lost", id, "the shim died")));
        match init {
            Some((pid, start_time)) => {
                entry.adopt(pid, start_time, now, out);
                entry.go_on_ending(out);
            }
            None => {
                entry.fail_execs("the shim died", now.unix_ns, out);
                entry.retire(true, out);
            }
        }
    }

    fn retired(&mut self, id: &str, generation: u64, outcome: Option<Outcome>, now: Now<'_>, out: &mut Vec<Effect>) {
        let Some(entry) = self.current(id, generation) else { return };
        if !matches!(entry.phase, Phase::Retiring) {
            return;
        }
        // One that was made and never started has no outcome, whatever became of its shim.
        if entry.container.state.outcome.is_none() && entry.container.state.wish != Wish::Created {
            let unknown = || Outcome {
                status: UNKNOWN_STATUS,
                at_unix_ns: now.unix_ns,
                reason: "the exit status is lost".to_owned(),
            };
            let mut outcome = outcome.unwrap_or_else(unknown);
            entry.note_ending(&mut outcome);
            entry.set_outcome(outcome, out);
        }
        entry.fail_execs("the container has ended", now.unix_ns, out);
        self.come_to_rest(id, now, out);
    }

    /// The run is over and cleaned up: remove, restart, or rest; and tell those who wait.
    fn come_to_rest(&mut self, id: &str, now: Now<'_>, out: &mut Vec<Effect>) {
        let ended_by_us = self.containers.get(id).is_some_and(|entry| entry.ending.is_some());
        self.tell_stopped(id, now, out);
        let ending = self.is_ending();
        let Some(entry) = self.containers.get_mut(id) else { return };
        let being_cleared = std::mem::take(&mut entry.being_cleared);
        if !entry.remove_waiters.is_empty() || entry.is_removed_at_rest() {
            entry.forget(out);
            return;
        }
        if entry.container.state.renewing && !ending {
            entry.begin_run_by_request(None, now, out);
            return;
        }
        entry.phase = Phase::AtRest;
        // As if this supervisor had found it ended by the last one's end. A stop by request is obeyed like any other.
        let was_survivor = ended_by_us && entry.container.state.wish == Wish::Running;
        let was_found = being_cleared && entry.stop_waiters.is_empty();
        match (ending, was_found || was_survivor) {
            // The next supervisor takes it up again; who waits for its last end asks that one.
            (true, _) if entry.prospect_at(now) != restore::Prospect::Rest => {}
            (false, true) => entry.take_up(now, out),
            _ => entry.decide(now, out),
        }
        entry.answer_stop_waiters(now.unix_ns, out);
    }

    fn elapsed(&mut self, id: &str, generation: u64, timer: Timer, now: Now<'_>, out: &mut Vec<Effect>) {
        let ending = self.is_ending();
        let Some(entry) = self.current(id, generation) else { return };
        match (timer, &entry.phase) {
            (Timer::Stop, phase) if phase.is_live() => entry.kill_after_timeout(out),
            (Timer::KillShim, phase) if phase.is_live() => entry.kill_shim(out),
            (Timer::Restart, Phase::Backoff) if !ending => entry.begin_run_by_policy(now, out),
            (Timer::ProbeAgain, Phase::Unresponsive { traces }) => {
                let (id, traces) = (id.to_owned(), traces.clone());
                out.push(Effect::Probe { id, generation, traces: Some(traces) });
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
        let refusal = Refusal::Precondition(format!("{} was removed meanwhile", entry.called()));
        entry.answer_start_waiters(&Err(refusal), out);
        if problem.is_some() {
            // What could not be deleted stays visible, and can be removed again.
            entry.phase = Phase::AtRest;
            (entry.container.config.remove, entry.is_disowned) = (false, false);
            self.containers.insert(id.to_owned(), entry);
        } else {
            self.remember(&mut entry);
            self.restore.forget(id);
            out.push(Effect::Publish(Note::new("remove", id, "")));
        }
    }

    fn remember(&mut self, entry: &mut Entry) {
        entry.forget_oldest_execs(execs::REMEMBERED_EXECS_OF_GONE);
        let execs: Vec<_> = entry.exec_endings().map(|ending| (ending.exec_id, ending.outcome)).collect();
        let outcome = entry.container.state.outcome.clone();
        if outcome.is_some() || !execs.is_empty() {
            let gone = self.gone_named(&entry.container.id, &entry.container.name);
            (gone.outcome, gone.execs) = (outcome, execs);
        }
    }

    /// What is remembered of a removed container; a new one if there is nothing.
    fn gone_named(&mut self, id: &str, name: &str) -> &mut Gone {
        let at = self.gone.iter().rposition(|gone| gone.id == id).unwrap_or_else(|| {
            if self.gone.len() == REMEMBERED {
                self.gone.pop_front();
            }
            let (id, name) = (id.to_owned(), name.to_owned());
            self.gone.push_back(Gone { id, name, outcome: None, execs: Vec::new() });
            self.gone.len() - 1
        });
        &mut self.gone[at]
    }

    fn wait(&mut self, given: &str, reply: ReplyTo, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        match self.entry(given) {
            Ok(entry) => {
                entry.wait(reply, out);
                Ok(())
            }
            Err(refusal) => self.answer_of_gone(given, reply, refusal, |gone| gone.outcome.clone(), out),
        }
    }

    fn wait_exec(&mut self, given: &str, exec_id: &str, reply: ReplyTo, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        match self.entry(given) {
            Ok(entry) => entry.wait_exec(exec_id, reply, out),
            Err(refusal) => {
                let exec = |gone: &Gone| gone.execs.iter().find(|(id, _)| id == exec_id).map(|(_, o)| o.clone());
                self.answer_of_gone(given, reply, refusal, exec, out)
            }
        }
    }

    /// Answers from what is remembered of the container that was the last to be called so; refuses if that is nothing.
    fn answer_of_gone(
        &self,
        given: &str,
        reply: ReplyTo,
        refusal: Refusal,
        what: impl Fn(&Gone) -> Option<Outcome>,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let gone = self.gone.iter().rev().find(|gone| gone.id == given || gone.name == given);
        let (gone, outcome) = gone.and_then(|gone| Some((gone, what(gone)?))).ok_or(refusal)?;
        let ended = Ended { id: gone.id.clone(), outcome };
        out.push(Effect::Reply { to: reply, answer: Ok(Answer::Ended(ended)) });
        Ok(())
    }
}

impl Entry {
    /// Whoever asked for this start knows then that it failed, and no policy repeats it. One that the policy made is
    /// repeated: what it lacks may come.
    fn start_failed(&mut self, refusal: Refusal, reply: Option<ReplyTo>, out: &mut Vec<Effect>) {
        if reply.is_some() || !self.start_waiters.is_empty() {
            self.container.state.next = Some(Next::Rest);
        }
        out.extend(reply.map(|to| Effect::Reply { to, answer: Err(refusal.clone()) }));
        self.answer_start_waiters(&Err(refusal), out);
    }

    /// Asks the policy after the end of a run, unless that was decided already.
    fn decide(&mut self, now: Now<'_>, out: &mut Vec<Effect>) {
        let decision = match self.container.state.next {
            Some(Next::Rest) => Decision::Rest,
            _ => self.after_exit(),
        };
        let state = &mut self.container.state;
        match decision {
            Decision::Restart { after, in_a_row } => {
                state.restarts_in_a_row = in_a_row;
                return self.back_off(after, now, out);
            }
            Decision::Rest => {}
            Decision::GiveUp => {
                let (policy, restarts) = (self.container.config.restart, state.restarts);
                if let Some(outcome) = &mut state.outcome {
                    let said = if outcome.reason.is_empty() { "" } else { "; " };
                    outcome.reason += &format!("{said}not started again after {restarts} restarts ({policy})");
                }
            }
        }
        self.container.state.next = Some(Next::Rest);
        self.save(out);
        self.answer_waiters(now.unix_ns, out);
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

/// How long a run lasted, never negative; nothing for one that was not started.
fn lasted(container: &Container, outcome: &Outcome) -> Duration {
    if container.state.started_at_unix_ns == 0 {
        return Duration::ZERO;
    }
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
        in_a_row: container.state.restarts_in_a_row,
    }
}
