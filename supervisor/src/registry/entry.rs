//! One container: its phase, who waits for it, and what each request does in each phase.

use std::collections::BTreeMap;
use std::time::Duration;

use super::execs::{Exec, ExecView};
use super::input::{
    Answer, Ask, Call, Effect, Ended, Limits, LogChange, Note, Onlooker, Refusal, ReplyTo, ShimRef, Timer,
};
use super::shutdown::BeingEnded;
use super::{Now, Status, ended_run};
use crate::container::{Container, Next, Outcome, UNKNOWN_STATUS, Wish};
use crate::endings::Ending;
use crate::log_policy::Driver;
use crate::names::short;
use crate::policy::{Decision, RestartPolicy, is_meant_to_end};
use crate::report::Class;
use crate::scan::{Caution, ShimTraces, Unusable};

/// Where a container is; the picture is in the parent module.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Phase {
    /// Its shim is being asked; `left_over`: what an earlier boot has left of it is to be cleared away.
    Probing {
        traces: Option<ShimTraces>,
        left_over: bool,
    },
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
    /// Its record is none that this build may act by; `pid` is 0 unless a shim says that it runs.
    Withheld {
        class: Class,
        reason: String,
        shim: Option<ShimRef>,
        pid: u32,
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
        match self {
            Self::Starting { .. } | Self::Running { .. } | Self::Adopted { .. } | Self::Unresponsive { .. } => true,
            Self::Probing { traces, .. } => traces.is_some(),
            Self::Withheld { pid, .. } => *pid != 0,
            _ => false,
        }
    }

    fn shim(&self) -> Option<&ShimRef> {
        match self {
            Self::Created { shim } | Self::Starting { shim } | Self::Running { shim, .. } => Some(shim),
            Self::Withheld { shim, .. } => shim.as_ref(),
            _ => None,
        }
    }
}

/// One container.
#[derive(Debug)]
pub struct Entry {
    pub(super) container: Container,
    /// Grows with every run, so that late results are recognised.
    pub(super) generation: u64,
    pub(super) phase: Phase,
    pub(super) waiters: Vec<ReplyTo>,
    /// Those who asked for a start that is under way, but for the one that began it.
    pub(super) start_waiters: Vec<ReplyTo>,
    pub(super) stop_waiters: Vec<ReplyTo>,
    pub(super) remove_waiters: Vec<ReplyTo>,
    pub(super) execs: BTreeMap<String, Exec>,
    /// Who sees the run that is being prepared from its first byte.
    pub(super) onlooker: Option<Onlooker>,
    /// While it is being stopped for the supervisor's sake.
    pub(super) ending: Option<BeingEnded>,
    /// Asked before its shim had answered.
    pub(super) held: Vec<(Ask, ReplyTo)>,
    /// What stands in the way of treating it as any other.
    pub(super) caution: Option<Caution>,
    /// What another boot has left of it is being cleared away, before it is taken up again.
    pub(super) being_cleared: bool,
    /// The request that made it was told that it failed.
    pub(super) is_disowned: bool,
}

impl Entry {
    pub(super) fn new(container: Container) -> Self {
        Self {
            container,
            generation: 1,
            phase: Phase::AtRest,
            waiters: Vec::new(),
            start_waiters: Vec::new(),
            stop_waiters: Vec::new(),
            remove_waiters: Vec::new(),
            execs: BTreeMap::new(),
            onlooker: None,
            ending: None,
            held: Vec::new(),
            caution: None,
            being_cleared: false,
            is_disowned: false,
        }
    }

    pub(super) fn id(&self) -> String {
        self.container.id.clone()
    }

    /// How people call it.
    pub(super) fn called(&self) -> String {
        format!("container {} ({})", self.container.name, short(&self.container.id))
    }

    pub(super) fn save(&self, out: &mut Vec<Effect>) {
        out.push(Effect::Save(Box::new(self.container.clone())));
    }

    /// Whether it shall not go on: stopped or removed while it was being made, or overtaken by the end.
    pub(super) fn is_doomed(&self) -> bool {
        !self.remove_waiters.is_empty() || self.container.state.wish == Wish::Stopped || self.ending.is_some()
    }

    /// Saves how the run ended; the first knowledge of it stays.
    pub(super) fn set_outcome(&mut self, outcome: Outcome, out: &mut Vec<Effect>) {
        let (config, state) = (&self.container.config, &mut self.container.state);
        if state.outcome.is_none() {
            // An end that follows a signal that is meant to end it is what was asked for. Much later it is its own.
            let patience = i64::from(config.stop_timeout.max(1)).saturating_mul(1_000_000_000);
            let asked = state.kill_asked_at_unix_ns;
            if asked != 0 && outcome.at_unix_ns.saturating_sub(asked) <= patience && !state.renewing {
                state.wish = Wish::Stopped;
            }
            state.outcome = Some(outcome);
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
        self.caution = None;
        let (id, generation) = (self.id(), self.generation);
        out.push(Effect::Prepare { id, generation, reply, container: Box::new(self.container.clone()) });
    }

    /// Starts a new run from rest.
    pub(super) fn begin_run(&mut self, reply: Option<ReplyTo>, now: Now<'_>, out: &mut Vec<Effect>) {
        self.note_beginning(0, now, out);
        self.prepare(true, reply, out);
    }

    pub(super) fn start_task(&mut self, reply: Option<ReplyTo>, now: Now<'_>, out: &mut Vec<Effect>) {
        let Phase::Created { shim } = self.phase.clone() else { return };
        self.note_beginning(now.unix_ns, now, out);
        self.phase = Phase::Starting { shim };
        let onlooker = self.onlooker.take();
        out.push(Effect::StartTask { id: self.id(), generation: self.generation, reply, onlooker });
    }

    fn note_beginning(&mut self, started_at_unix_ns: i64, now: Now<'_>, out: &mut Vec<Effect>) {
        let state = &mut self.container.state;
        state.wish = Wish::Running;
        state.outcome = None;
        state.next = None;
        state.kill_asked_at_unix_ns = 0;
        state.renewing = false;
        state.started_at_unix_ns = started_at_unix_ns;
        now.boot_id.clone_into(&mut state.boot_id);
        self.save(out);
    }

    /// Starts a new run because somebody wants one: the policy's counts begin anew.
    pub(super) fn begin_run_by_request(&mut self, reply: Option<ReplyTo>, now: Now<'_>, out: &mut Vec<Effect>) {
        self.container.state.restarts = 0;
        self.container.state.restarts_in_a_row = 0;
        self.begin_run(reply, now, out);
    }

    /// Starts a new run because the pause before it is over.
    pub(super) fn begin_run_by_policy(&mut self, now: Now<'_>, out: &mut Vec<Effect>) {
        let state = &mut self.container.state;
        state.restarts = state.restarts.saturating_add(1);
        state.restarts_in_a_row = state.restarts_in_a_row.saturating_add(1);
        let policy = self.container.config.restart.to_string();
        out.push(Effect::Publish(Note::new("restart", &self.container.id, &policy)));
        self.begin_run(None, now, out);
    }

    pub(super) fn start(
        &mut self,
        onlooker: Option<Onlooker>,
        reply: ReplyTo,
        now: Now<'_>,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        match self.phase {
            Phase::Created { .. } => {
                self.onlooker = onlooker;
                self.start_task(Some(reply), now, out);
            }
            Phase::AtRest | Phase::Backoff => {
                self.onlooker = onlooker;
                self.begin_run_by_request(Some(reply), now, out);
            }
            // Asked again after a broken connection, or by somebody else: one start is enough for all.
            Phase::Preparing { start: true } | Phase::Starting { .. } if !self.is_doomed() && onlooker.is_none() => {
                self.start_waiters.push(reply);
            }
            _ if self.container.state.renewing && onlooker.is_none() => self.start_waiters.push(reply),
            Phase::Running { pid, .. } | Phase::Adopted { pid, .. } if onlooker.is_none() => {
                out.push(Effect::Reply { to: reply, answer: Ok(Answer::Started { pid }) });
            }
            _ => return Err(self.wrong_phase("cannot be started")),
        }
        Ok(())
    }

    pub(super) fn wrong_phase(&self, what: &str) -> Refusal {
        let mut text = format!("{} {what}: it is {}", self.called(), self.status());
        if let Phase::Withheld { class, reason, .. } = &self.phase {
            text = match class {
                Class::Incompatible => format!("{text}, and left to the holdfast that made it: {reason}"),
                _ => format!("{text}: {reason}"),
            };
        }
        // Never `Unavailable`, whatever the shim does: to a client that means the supervisor, and it would ask again at once.
        Refusal::Precondition(text)
    }

    pub(super) fn retire(&mut self, shim_dead: bool, out: &mut Vec<Effect>) {
        self.phase = Phase::Retiring;
        self.onlooker = None;
        out.push(Effect::Retire { id: self.id(), generation: self.generation, shim_dead });
    }

    /// Its shim is dead, its first process is not.
    pub(super) fn adopt(&mut self, pid: u32, start_time: u64, now: Now<'_>, out: &mut Vec<Effect>) {
        self.fail_execs("the shim died", now.unix_ns, out);
        self.phase = Phase::Adopted { pid, start_time };
        out.push(Effect::WatchPid { id: self.id(), generation: self.generation, pid, start_time });
        if !self.remove_waiters.is_empty() {
            // The signal may have been lost with the shim.
            self.signal(9, None, out);
        }
    }

    /// Whoever asked for the start that is under way hears how it went.
    pub(super) fn answer_start_waiters(&mut self, result: &Result<u32, Refusal>, out: &mut Vec<Effect>) {
        let answer = result.clone().map(|pid| Answer::Started { pid });
        out.extend(self.start_waiters.drain(..).map(|to| Effect::Reply { to, answer: answer.clone() }));
    }

    /// Waits for its restart.
    pub(super) fn back_off(&mut self, after: Duration, now: Now<'_>, out: &mut Vec<Effect>) {
        let at = now.unix_ns.saturating_add(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX));
        self.container.state.next = Some(Next::RestartAt(at));
        self.save(out);
        self.go_on_backing_off(after, out);
    }

    /// Waits for what is left of a pause that is written down already.
    pub(super) fn go_on_backing_off(&mut self, after: Duration, out: &mut Vec<Effect>) {
        self.phase = Phase::Backoff;
        self.set_timer(after, Timer::Restart, out);
    }

    pub(super) fn set_timer(&self, after: Duration, timer: Timer, out: &mut Vec<Effect>) {
        out.push(Effect::Timer { id: self.id(), generation: self.generation, after, timer });
    }

    /// Sends a signal to whatever runs; without anything that runs the answer is a refusal.
    pub(super) fn signal(&mut self, signal: i32, reply: Option<ReplyTo>, out: &mut Vec<Effect>) {
        match &self.phase {
            Phase::Created { .. }
            | Phase::Starting { .. }
            | Phase::Running { .. }
            | Phase::Withheld { shim: Some(_), .. } => {
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

    pub(super) fn kill(
        &mut self,
        signal: i32,
        reply: ReplyTo,
        now: Now<'_>,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if is_meant_to_end(signal, self.container.config.stop_signal) {
            if self.phase == Phase::Backoff {
                // There is nothing to signal, but it is clear what is wanted.
                self.container.state.wish = Wish::Stopped;
                self.end_pause(now, out);
                out.push(Effect::Reply { to: reply, answer: Ok(Answer::Done) });
                return Ok(());
            }
            if self.phase.is_live() {
                self.container.state.kill_asked_at_unix_ns = now.unix_ns;
                self.save(out);
            }
        }
        self.signal(signal, Some(reply), out);
        Ok(())
    }

    /// The restart that it waits for will not come.
    fn end_pause(&mut self, now: Now<'_>, out: &mut Vec<Effect>) {
        self.phase = Phase::AtRest;
        self.container.state.next = Some(Next::Rest);
        self.save(out);
        self.answer_waiters(now.unix_ns, out);
    }

    /// Stops it and starts it again: the run that began at `begun_unix_ns` (0: whichever it is). When another has begun
    /// since, it was done already for somebody whose connection broke.
    pub(super) fn restart(
        &mut self,
        timeout: Option<u32>,
        begun_unix_ns: i64,
        reply: ReplyTo,
        now: Now<'_>,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let is_another = begun_unix_ns != 0 && begun_unix_ns != self.container.state.started_at_unix_ns;
        let runs = matches!(self.phase, Phase::Running { .. } | Phase::Adopted { .. });
        if !runs || is_another || self.container.state.renewing {
            return self.start(None, reply, now, out);
        }
        if self.is_doomed() {
            return Err(self.wrong_phase("cannot be restarted"));
        }
        self.container.state.renewing = true;
        self.save(out);
        self.start_waiters.push(reply);
        self.begin_stop(timeout, out);
        Ok(())
    }

    /// The stop signal now, SIGKILL after the timeout.
    pub(super) fn begin_stop(&mut self, timeout: Option<u32>, out: &mut Vec<Effect>) {
        out.push(Effect::Publish(Note::new("stop", &self.container.id, "")));
        self.signal(self.container.config.stop_signal, None, out);
        if let Phase::Unresponsive { traces: ShimTraces { init: Some((pid, start_time)), .. } } = self.phase {
            let (id, generation) = (self.id(), self.generation);
            out.push(Effect::WatchProcess { id, generation, pid, start_time });
        }
        let after = Duration::from_secs(timeout.unwrap_or(self.container.config.stop_timeout).into());
        self.set_timer(after, Timer::Stop, out);
    }

    pub(super) fn stop(
        &mut self,
        timeout: Option<u32>,
        reply: ReplyTo,
        now: Now<'_>,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        // Without a process that could be signalled nobody would ever be told of its end.
        if matches!(
            self.phase,
            Phase::Removing
                | Phase::Withheld { pid: 0, .. }
                | Phase::Withheld { shim: None, .. }
                | Phase::Unresponsive { traces: ShimTraces { init: None, .. } }
        ) {
            return Err(self.wrong_phase("cannot be stopped"));
        }
        self.container.state.wish = Wish::Stopped;
        if std::mem::take(&mut self.container.state.renewing) {
            let refusal = Refusal::Precondition(format!("{} was stopped meanwhile", self.called()));
            self.answer_start_waiters(&Err(refusal), out);
        }
        self.save(out);
        self.stop_waiters.push(reply);
        match &self.phase {
            Phase::AtRest => self.answer_stop_waiters(now.unix_ns, out),
            Phase::Backoff => {
                self.end_pause(now, out);
                self.answer_stop_waiters(now.unix_ns, out);
            }
            Phase::Created { .. } => {
                let reason = "stopped before it was started".to_owned();
                self.set_outcome(Outcome { status: 0, at_unix_ns: now.unix_ns, reason }, out);
                self.retire(false, out);
            }
            Phase::Running { .. }
            | Phase::Starting { .. }
            | Phase::Adopted { .. }
            | Phase::Unresponsive { .. }
            | Phase::Withheld { .. } => {
                self.begin_stop(timeout, out);
            }
            // Being made or cleared away: whoever finishes that looks at the wish.
            Phase::Preparing { .. } | Phase::Retiring | Phase::Probing { .. } | Phase::Removing => {}
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, force: bool, reply: ReplyTo, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        match &self.phase {
            Phase::AtRest | Phase::Backoff => self.forget(out),
            Phase::Created { .. } => self.retire(false, out),
            Phase::Retiring | Phase::Removing => {}
            _ if !force => return Err(self.wrong_phase("cannot be removed without force")),
            Phase::Unresponsive { traces } => {
                let Some((pid, start_time)) = traces.process else {
                    return Err(self.wrong_phase("cannot be removed"));
                };
                out.push(Effect::KillPid { pid, start_time, signal: 9, reply: None });
                let (id, generation) = (self.id(), self.generation);
                out.push(Effect::WatchProcess { id, generation, pid, start_time });
            }
            Phase::Withheld { class: Class::Unreadable, .. } => self.retire(true, out),
            Phase::Withheld { .. } => return Err(self.wrong_phase("cannot be removed")),
            Phase::Running { .. } | Phase::Adopted { .. } => self.signal(9, None, out),
            Phase::Preparing { .. } | Phase::Starting { .. } | Phase::Probing { .. } => {}
        }
        if self.phase.is_live() {
            self.container.state.wish = Wish::Stopped;
            self.container.state.renewing = false;
            self.save(out);
        }
        self.remove_waiters.push(reply);
        Ok(())
    }

    /// Has its files deleted; how it ended is remembered.
    pub(super) fn forget(&mut self, out: &mut Vec<Effect>) {
        self.phase = Phase::Removing;
        out.extend(self.own_ending().map(Effect::Remember));
        out.push(Effect::Forget { id: self.id() });
    }

    /// Whether it is removed once it has ended, which one that was never started cannot; or is nobody's.
    pub(super) fn is_removed_at_rest(&self) -> bool {
        let state = &self.container.state;
        self.is_disowned || (self.container.config.remove && !state.renewing && state.wish != Wish::Created)
    }

    fn own_ending(&self) -> Option<Ending> {
        self.container.state.outcome.as_ref().map(|outcome| self.ending_of("", outcome))
    }

    pub(super) fn ending_of(&self, exec_id: &str, outcome: &Outcome) -> Ending {
        let (id, name) = (self.id(), self.container.name.clone());
        Ending { id, name, exec_id: exec_id.to_owned(), outcome: outcome.clone() }
    }

    /// What the next supervisor is to know of its execs and, if it may be gone by then, of itself.
    pub(super) fn endings(&self) -> impl Iterator<Item = Ending> {
        let own = if self.phase == Phase::Removing { self.own_ending() } else { None };
        self.exec_endings().chain(own)
    }

    pub(super) fn call(&mut self, call: Call, reply: ReplyTo, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        match self.phase {
            // What has not begun has nothing to freeze.
            Phase::Created { .. } | Phase::Starting { .. } if call == Call::Pause => {
                Err(self.wrong_phase("cannot be paused"))
            }
            Phase::Running { paused: true, .. } if call == Call::Pause => Err(self.wrong_phase("cannot be paused")),
            Phase::Running { paused: false, .. } if call == Call::Resume => Err(self.wrong_phase("cannot be unpaused")),
            Phase::Created { .. } | Phase::Starting { .. } | Phase::Running { .. } => {
                out.push(Effect::Call { id: self.id(), call, reply: Some(reply) });
                Ok(())
            }
            _ => Err(self.wrong_phase(match call {
                Call::Attach { .. } => "cannot be attached to",
                Call::Update { .. } => "cannot get new limits",
                Call::Kill { .. } => "cannot be signalled",
                Call::ReopenLogs => "has no log that is open",
                Call::Pause => "cannot be paused",
                Call::Resume => "cannot be unpaused",
                Call::Resize { .. } | Call::CloseStdin { .. } => "has no terminal or input",
            })),
        }
    }

    pub(super) fn update(
        &mut self,
        limits: Limits,
        restart: Option<RestartPolicy>,
        log: Option<&LogChange>,
        reply: ReplyTo,
        now: Now<'_>,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if let Some(change) = log {
            self.change_log(change, out)?;
        }
        if let Some(policy) = restart {
            if self.container.config.remove && policy != RestartPolicy::No {
                let text = format!("{} is removed at its end and cannot have a restart policy", self.called());
                return Err(Refusal::Precondition(text));
            }
            self.container.config.restart = policy;
            self.save(out);
            out.push(Effect::Publish(Note::new("update", &self.container.id, &policy.to_string())));
            // A pause that the new policy wants too goes on as it is.
            if self.phase == Phase::Backoff && !matches!(self.after_exit(), Decision::Restart { .. }) {
                self.end_pause(now, out);
            }
        }
        if limits.is_empty() {
            out.push(Effect::Reply { to: reply, answer: Ok(Answer::Done) });
            return Ok(());
        }
        if matches!(self.phase, Phase::AtRest | Phase::Backoff) {
            out.push(Effect::KeepLimits { id: self.id(), limits, reply });
            return Ok(());
        }
        self.call(Call::Update { limits }, reply, out)
    }

    /// From its next start on. While there is a shim, that writes the log as it was told.
    fn change_log(&mut self, change: &LogChange, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        if self.phase != Phase::AtRest {
            return Err(self.wrong_phase("can only get another log while it is stopped"));
        }
        let config = &mut self.container.config;
        let changed = config.log.with(&change.driver, &change.options).map_err(|e| Refusal::Invalid(e.to_string()))?;
        let before = std::mem::replace(&mut config.log, changed).driver;
        config.log_earlier.retain(|earlier| *earlier != before);
        config.log_earlier.push(before);
        let now = config.log.driver;
        config.log_earlier.retain(|earlier| *earlier != now && *earlier != Driver::None);
        self.save(out);
        out.push(Effect::Publish(Note::new("update", &self.container.id, now.name())));
        Ok(())
    }

    pub(super) fn wait(&mut self, reply: ReplyTo, out: &mut Vec<Effect>) {
        match (&self.phase, &self.container.state.outcome) {
            (Phase::AtRest | Phase::Withheld { pid: 0, .. }, Some(outcome)) => {
                let ended = Ended { id: self.id(), outcome: outcome.clone() };
                out.push(Effect::Reply { to: reply, answer: Ok(Answer::Ended(ended)) });
            }
            (Phase::Withheld { pid: 0, .. }, None) => {
                let refusal = self.wrong_phase("cannot be waited for");
                out.push(Effect::Reply { to: reply, answer: Err(refusal) });
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

    /// Tells those who have stopped it that its process has ended, but not how: its shim does not answer. What is known
    /// later is told to those who ask then.
    pub(super) fn answer_stop_waiters_unknowing(&mut self, now_unix_ns: i64, out: &mut Vec<Effect>) {
        let reason = "it has ended; its shim, which knows how, does not answer".to_owned();
        let outcome = Outcome { status: UNKNOWN_STATUS, at_unix_ns: now_unix_ns, reason };
        let answer = Answer::Ended(Ended { id: self.id(), outcome });
        out.extend(self.stop_waiters.drain(..).map(|to| Effect::Reply { to, answer: Ok(answer.clone()) }));
    }

    /// Its phase, as it is told.
    pub(super) fn status(&self) -> Status {
        match &self.phase {
            Phase::Probing { .. } => Status::Restoring,
            Phase::Unresponsive { .. } => Status::Unresponsive,
            Phase::Preparing { .. } | Phase::Starting { .. } => Status::Preparing,
            Phase::Withheld { class: Class::Incompatible, .. } => Status::Incompatible,
            Phase::Withheld { .. } => Status::Unreadable,
            Phase::Created { .. } => Status::Created,
            Phase::Running { paused: true, .. } => Status::Paused,
            Phase::Running { .. } | Phase::Adopted { .. } if self.is_doomed() || self.container.state.renewing => {
                Status::Stopping
            }
            Phase::Running { .. } | Phase::Adopted { .. } => Status::Running,
            Phase::Retiring => Status::Stopping,
            Phase::AtRest if self.container.state.outcome.is_none() => Status::Created,
            Phase::AtRest => Status::Exited,
            Phase::Backoff => Status::Restarting,
            Phase::Removing => Status::Removing,
        }
    }

    /// What there is to tell.
    pub(super) fn snapshot(&self) -> Snapshot {
        let pid = match &self.phase {
            Phase::Running { pid, .. } | Phase::Adopted { pid, .. } | Phase::Withheld { pid, .. } => *pid,
            Phase::Unresponsive { traces } => traces.init.map_or(0, |(pid, _)| pid),
            _ => 0,
        };
        let reason = match &self.phase {
            Phase::Probing { traces: Some(_), .. } => "its shim is being asked".to_owned(),
            Phase::Withheld { reason, .. } => reason.clone(),
            Phase::Running { .. } if matches!(self.caution, Some(Caution::RuntimeGone(_))) => {
                self.caution.as_ref().map(|caution| caution.reason().to_owned()).unwrap_or_default()
            }
            Phase::Adopted { .. } => "its shim is dead: it runs without anybody who drains its output".to_owned(),
            Phase::Unresponsive { .. } => "its shim does not answer".to_owned(),
            _ => self.container.state.outcome.as_ref().map(|o| o.reason.clone()).unwrap_or_default(),
        };
        let shim = self.phase.shim();
        // One that does not answer may do so the next time.
        let traces = match &self.phase {
            Phase::Unresponsive { traces } => Some(traces),
            Phase::Probing { traces, .. } => traces.as_ref(),
            _ => None,
        };
        let address = shim.map(|s| &s.address).or(traces.map(|t| &t.address));
        Snapshot {
            namespace: crate::paths::NAMESPACE.to_owned(),
            id: self.id(),
            name: self.container.name.clone(),
            manager: "holdfastd".to_owned(),
            status: self.status(),
            pid,
            shim_pid: shim.map(|s| s.pid).or(traces.and_then(|t| t.process).map(|(pid, _)| pid)).unwrap_or(0),
            shim_address: address.cloned().unwrap_or_default(),
            created_at_unix_ns: self.container.created_at_unix_ns,
            reason,
            execs: self.exec_views(),
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
    pub status: Status,
    pub pid: u32,
    pub shim_pid: u32,
    pub shim_address: String,
    pub created_at_unix_ns: i64,
    pub reason: String,
    pub execs: Vec<ExecView>,
    /// `None` for what is not the supervisor's, or cannot be read.
    pub container: Option<Container>,
}

impl Snapshot {
    pub(super) fn unusable(unusable: &Unusable) -> Self {
        let status = if unusable.class == Class::Incompatible { Status::Incompatible } else { Status::Unreadable };
        Self {
            namespace: unusable.namespace.clone(),
            id: unusable.id.clone(),
            name: String::new(),
            manager: "holdfastd".to_owned(),
            status,
            pid: 0,
            shim_pid: 0,
            shim_address: String::new(),
            created_at_unix_ns: 0,
            reason: unusable.reason.clone(),
            execs: Vec::new(),
            container: None,
        }
    }
}
