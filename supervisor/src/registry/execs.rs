//! Execs: who waits for them, and how they ended. An ended one is deleted in its shim, where it holds descriptors, and its
//! outcome kept here for whoever asks later: a client that was away, or a person. [`Effect::Remember`] keeps it for the
//! next supervisor too.

use super::Registry;
use super::entry::{Entry, Phase};
use super::input::{Answer, Effect, Ended, ExecSpec, Refusal, ReplyTo};
use crate::container::{OUT_OF_MEMORY, Outcome, UNKNOWN_STATUS};
use crate::endings::Ending;
use crate::scan::{ExecTrace, ExecTraceState};

/// How many ended execs of a container are remembered; of more, those that ended first are forgotten.
pub(super) const REMEMBERED_EXECS: usize = 256;

/// As [`REMEMBERED_EXECS`], of a container that was removed.
pub(super) const REMEMBERED_EXECS_OF_GONE: usize = 16;

/// An exec, as long as anybody may ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// 0 while it has none, and for one that ended before this supervisor began.
    pub pid: u32,
    /// Where it is in its life.
    pub state: ExecState,
}

/// Where an exec is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ExecState {
    Running { waiters: Vec<ReplyTo> },
    Ended(Outcome),
}

/// One exec, for those who look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecView {
    /// Its id.
    pub id: String,
    /// 0 if it has none, or none any more.
    pub pid: u32,
    /// `None` while it runs.
    pub outcome: Option<Outcome>,
}

impl ExecView {
    /// Whether the kernel has killed it for want of memory.
    pub fn oom_killed(&self) -> bool {
        self.outcome.as_ref().is_some_and(|outcome| outcome.reason.starts_with(OUT_OF_MEMORY))
    }
}

fn told(id: &str, outcome: &Outcome) -> Result<Answer, Refusal> {
    Ok(Answer::Ended(Ended { id: id.to_owned(), outcome: outcome.clone() }))
}

impl Entry {
    pub(super) fn exec(
        &mut self,
        exec_id: String,
        spec: ExecSpec,
        reply: ReplyTo,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if !matches!(self.phase, Phase::Running { paused: false, .. }) {
            return Err(self.wrong_phase("cannot run another process"));
        }
        if self.execs.contains_key(&exec_id) {
            return Err(Refusal::Exists(format!("{} has an exec {exec_id:?} already", self.called())));
        }
        let state = ExecState::Running { waiters: Vec::new() };
        self.execs.insert(exec_id.clone(), Exec { pid: 0, state });
        let (id, generation) = (self.id(), self.generation);
        out.push(Effect::StartExec { id, generation, exec_id, spec: Box::new(spec), reply });
        Ok(())
    }

    pub(super) fn wait_exec(&mut self, exec_id: &str, reply: ReplyTo, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let called = self.called();
        match self.execs.get_mut(exec_id).map(|exec| &mut exec.state) {
            Some(ExecState::Running { waiters }) => waiters.push(reply),
            Some(ExecState::Ended(outcome)) => {
                out.push(Effect::Reply { to: reply, answer: told(&self.container.id, outcome) });
            }
            None => return Err(Refusal::NotFound(format!("{called} has no exec {exec_id:?}"))),
        }
        Ok(())
    }

    /// Answers those who wait for execs that can't end by themselves any more.
    pub(super) fn fail_execs(&mut self, reason: &str, at_unix_ns: i64, out: &mut Vec<Effect>) {
        let runs = |exec: &Exec| matches!(exec.state, ExecState::Running { .. });
        let running: Vec<String> = self.execs.iter().filter(|(_, e)| runs(e)).map(|(id, _)| id.clone()).collect();
        for exec_id in running {
            let outcome = Outcome { status: UNKNOWN_STATUS, at_unix_ns, reason: reason.to_owned() };
            self.exec_ended(&exec_id, outcome, out);
        }
    }

    /// The end of an exec is remembered before anybody is told; the first knowledge of it stays.
    fn exec_ended(&mut self, exec_id: &str, outcome: Outcome, out: &mut Vec<Effect>) {
        let Some(exec) = self.execs.get_mut(exec_id) else { return };
        let ExecState::Running { waiters } = &mut exec.state else { return };
        let waiters = std::mem::take(waiters);
        exec.state = ExecState::Ended(outcome.clone());
        exec.pid = 0;
        out.push(Effect::Remember(self.ending_of(exec_id, &outcome)));
        out.extend(waiters.into_iter().map(|to| Effect::Reply { to, answer: told(&self.container.id, &outcome) }));
        self.forget_oldest_execs(REMEMBERED_EXECS);
    }

    pub(super) fn forget_oldest_execs(&mut self, most: usize) {
        loop {
            let ended = self.execs.iter().filter_map(|(id, exec)| match &exec.state {
                ExecState::Ended(outcome) => Some((outcome.at_unix_ns, id)),
                ExecState::Running { .. } => None,
            });
            let (mut count, mut oldest) = (0, None);
            for one in ended {
                count += 1;
                oldest = Some(oldest.map_or(one, |oldest| one.min(oldest)));
            }
            match oldest.map(|(_, id)| id.clone()) {
                Some(id) if count > most => self.execs.remove(&id),
                _ => return,
            };
        }
    }

    /// What the shim's record says of execs that the last supervisor may not have heard of.
    pub(super) fn learn_execs(&mut self, traces: &[ExecTrace], out: &mut Vec<Effect>) {
        for trace in traces {
            if self.execs.contains_key(&trace.id) || trace.state == ExecTraceState::Created {
                continue;
            }
            let state = ExecState::Running { waiters: Vec::new() };
            self.execs.insert(trace.id.clone(), Exec { pid: trace.pid, state });
            if let ExecTraceState::Ended(outcome) = &trace.state {
                self.exec_ended(&trace.id, outcome.clone(), out);
            }
        }
    }

    /// Goes on with the execs that a shim holds: those that run are watched, the others deleted there. One that was only
    /// made has nobody who would start it: its client asks for it anew.
    pub(super) fn go_on_with_execs(&self, traces: &[ExecTrace], out: &mut Vec<Effect>) {
        for trace in traces {
            let (id, generation, exec_id) = (self.id(), self.generation, trace.id.clone());
            out.push(match self.execs.get(&trace.id).map(|exec| &exec.state) {
                Some(ExecState::Running { .. }) => Effect::WatchExec { id, generation, exec_id },
                _ => Effect::DeleteExec { id, exec_id },
            });
        }
    }

    pub(super) fn exec_views(&self) -> Vec<ExecView> {
        let view = |(id, exec): (&String, &Exec)| ExecView {
            id: id.clone(),
            pid: exec.pid,
            outcome: match &exec.state {
                ExecState::Running { .. } => None,
                ExecState::Ended(outcome) => Some(outcome.clone()),
            },
        };
        self.execs.iter().map(view).collect()
    }

    /// How its execs have ended.
    pub(super) fn exec_endings(&self) -> impl Iterator<Item = Ending> {
        self.execs.iter().filter_map(|(exec_id, exec)| match &exec.state {
            ExecState::Running { .. } => None,
            ExecState::Ended(outcome) => Some(self.ending_of(exec_id, outcome)),
        })
    }
}

impl Registry {
    pub(super) fn exec_started(
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
                let exec = entry.and_then(|e| e.execs.get_mut(exec_id));
                if let Some(exec @ Exec { state: ExecState::Running { .. }, .. }) = exec {
                    exec.pid = pid;
                    let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
                    out.push(Effect::WatchExec { id, generation, exec_id });
                }
            }
            Err(refusal) => {
                let exec = entry.and_then(|e| e.execs.remove(exec_id));
                if let Some(Exec { state: ExecState::Running { waiters }, .. }) = exec {
                    let gone = |to| Effect::Reply { to, answer: Err(refusal.clone()) };
                    out.extend(waiters.into_iter().map(gone));
                }
                out.push(Effect::Reply { to: reply, answer: Err(refusal) });
            }
        }
    }

    pub(super) fn exec_exited(
        &mut self,
        id: &str,
        generation: u64,
        exec_id: &str,
        outcome: Outcome,
        out: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.current(id, generation) else { return };
        if !entry.execs.get(exec_id).is_some_and(|exec| matches!(exec.state, ExecState::Running { .. })) {
            return;
        }
        entry.exec_ended(exec_id, outcome, out);
        if matches!(entry.phase, Phase::Running { .. }) {
            out.push(Effect::DeleteExec { id: id.to_owned(), exec_id: exec_id.to_owned() });
        }
    }

    /// Takes over what earlier supervisors remembered: the oldest first, an exec's before its container's.
    pub(super) fn recall(&mut self, endings: Vec<Ending>) {
        for ending in endings {
            let Ending { id, name, exec_id, outcome } = ending;
            match (self.containers.get_mut(&id), exec_id.is_empty()) {
                (Some(entry), false) => {
                    entry.execs.insert(exec_id, Exec { pid: 0, state: ExecState::Ended(outcome) });
                    entry.forget_oldest_execs(REMEMBERED_EXECS);
                }
                // Its removal was begun and not finished.
                (Some(_), true) => {}
                (None, false) => {
                    let execs = &mut self.gone_named(&id, &name).execs;
                    execs.push((exec_id, outcome));
                    let surplus = execs.len().saturating_sub(REMEMBERED_EXECS_OF_GONE);
                    execs.drain(..surplus);
                }
                (None, true) => self.gone_named(&id, &name).outcome = Some(outcome),
            }
        }
    }
}
