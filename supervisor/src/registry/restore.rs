//! The restore at start: every container of the scan is asked after, at the same time, and classified as the answers
//! come. One that does not answer delays nobody: each question has its own deadline.
//!
//! Clients are served meanwhile. What they ask about all containers is answered from what is known; what they ask of one
//! container waits for its verdict, and for no other's. Until the disk is read nothing is known, and only the report answers.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_proto::record::{Manager, Record};

use super::shutdown::LOOK_AGAIN;
use super::{Ask, Effect, Entry, Note, Now, Phase, Probe, Registry, ReplyTo, RunState, ShimRef, TaskView, Timer};
use crate::container::{Next, Outcome, UNKNOWN_STATUS, Wish};
use crate::paths::NAMESPACE;
use crate::policy::{LONGEST_PAUSE, Resting};
use crate::report::{Class, RestoreReport, Restored};
use crate::scan::{Caution, Findings, ShimTraces};

/// How long an unresponsive shim is left alone before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The restore under way, or done.
#[derive(Debug, Default)]
pub(super) struct Restore {
    /// Asked before the disk was read.
    early: Vec<(Ask, ReplyTo)>,
    scanned: bool,
    began_unix_ns: i64,
    pending: BTreeSet<String>,
    report: RestoreReport,
    done: bool,
}

impl Restore {
    /// Whether it is known what there is.
    pub(super) fn is_scanned(&self) -> bool {
        self.scanned
    }

    /// Whether every container is classified.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// A container that is no more needs nobody's attention.
    pub(super) fn forget(&mut self, id: &str) {
        self.report.containers.retain(|one| one.id != id || one.class == Class::Foreign);
    }
}

/// What one container turned out to be.
struct Verdict {
    class: Class,
    detail: String,
    pid: u32,
}

impl Verdict {
    fn new(class: Class, detail: impl Into<String>, pid: u32) -> Self {
        Self { class, detail: detail.into(), pid }
    }
}

impl Registry {
    /// Whether every container that was found is classified.
    pub fn is_restored(&self) -> bool {
        self.restore.is_done()
    }

    /// The report of the restore: what is known so far, as long as it is under way.
    pub fn report(&self) -> RestoreReport {
        let mut report = self.restore.report.clone();
        report.scanned = self.restore.scanned;
        report.containers.extend(self.restore.pending.iter().filter_map(|id| {
            let entry = self.containers.get(id)?;
            Some(Restored {
                namespace: NAMESPACE.to_owned(),
                id: id.clone(),
                name: entry.container.name.clone(),
                class: Class::Restoring,
                detail: "its shim is being asked".to_owned(),
                pid: 0,
            })
        }));
        report
    }

    /// Answers a question, or keeps it until there is a verdict on the container that it is about.
    pub(super) fn asked(&mut self, ask: Ask, reply: ReplyTo, now: Now<'_>, out: &mut Vec<Effect>) {
        if !self.restore.scanned && !matches!(ask, Ask::Report) {
            self.restore.early.push((ask, reply));
            return;
        }
        if !self.restore.pending.is_empty()
            && let Some(given) = ask.container()
            && let Ok(entry) = self.entry(given)
            && matches!(entry.phase, Phase::Probing { .. })
            && !entry.knows(&ask)
        {
            entry.held.push((ask, reply));
            return;
        }
        if let Err(refusal) = self.ask(ask, reply, now, out) {
            out.push(Effect::Reply { to: reply, answer: Err(refusal) });
        }
    }

    pub(super) fn found(&mut self, findings: Findings, now: Now<'_>, out: &mut Vec<Effect>) {
        self.restore.began_unix_ns = now.unix_ns;
        for unusable in &findings.unusable {
            self.restore.report.containers.push(Restored {
                namespace: unusable.namespace.clone(),
                id: unusable.id.clone(),
                name: String::new(),
                class: unusable.class,
                detail: unusable.reason.clone(),
                pid: 0,
            });
        }
        for record in &findings.foreign {
            self.restore.report.containers.push(Restored {
                namespace: record.namespace.clone(),
                id: record.id.clone(),
                name: String::new(),
                class: Class::Foreign,
                detail: format!("{}: only looked at", whose(record)),
                pid: record.init().map_or(0, |p| p.pid),
            });
        }
        self.unusable = findings.unusable;
        for (id, found) in findings.own {
            let mut entry = Entry::new(found.container);
            entry.phase = Phase::Probing { traces: found.shim, left_over: found.left_over };
            entry.caution = found.caution;
            self.restore.pending.insert(id.clone());
            self.containers.insert(id, entry);
        }
        self.recall(findings.endings);
        for (id, entry) in &mut self.containers {
            let (id, generation) = (id.clone(), entry.generation);
            let traces = match &entry.phase {
                Phase::Probing { traces, .. } => traces.clone(),
                _ => None,
            };
            if let Some(traces) = &traces {
                entry.learn_execs(&traces.execs, out);
            }
            out.push(Effect::Probe { id, generation, traces });
        }
        self.restore.scanned = true;
        out.push(Effect::Restoring { containers: self.restore.pending.len() });
        for (ask, reply) in std::mem::take(&mut self.restore.early) {
            self.asked(ask, reply, now, out);
        }
        self.finish_restore(now, out);
    }

    pub(super) fn probed(&mut self, id: &str, generation: u64, probe: Probe, now: Now<'_>, out: &mut Vec<Effect>) {
        let ending = self.is_ending();
        let Some(entry) = self.current(id, generation) else { return };
        let (traces, left_over) = match &entry.phase {
            Phase::Probing { traces, left_over } => (traces.clone(), *left_over),
            Phase::Unresponsive { traces } => (Some(traces.clone()), false),
            _ => return,
        };
        let verdict = match (entry.caution.clone(), traces, probe) {
            (Some(Caution::Newer(reason)), _, probe) => entry.withhold(Class::Incompatible, reason, probe, out),
            (Some(Caution::Unreadable(reason)), _, probe @ (Probe::Dead(_) | Probe::Silent)) => {
                entry.withhold(Class::Unreadable, reason, probe, out)
            }
            (_, None, _) => self.found_without_shim(id, left_over, now, out),
            (_, Some(traces), Probe::Answers(shim, Some(task))) => entry.reattach(traces, shim, task, ending, now, out),
            (_, Some(_), Probe::Answers(shim, None)) => entry.found_empty_shim(&shim, out),
            (_, Some(traces), Probe::Silent) => entry.quarantine(traces, out),
            (_, Some(_), Probe::Dead(Some((pid, start_time)))) => entry.adopt_found(pid, start_time, now, out),
            (_, Some(_), Probe::Dead(None)) => {
                entry.retire(true, out);
                Verdict::new(Class::Lost, "its shim is dead, and so is its first process", 0)
            }
        };
        self.end_if_unwanted(id, now, out);
        self.classify(id, verdict, out);
        let held = self.containers.get_mut(id).map(|entry| std::mem::take(&mut entry.held)).unwrap_or_default();
        for (ask, reply) in held {
            self.asked(ask, reply, now, out);
        }
        self.finish_restore(now, out);
    }

    fn classify(&mut self, id: &str, verdict: Verdict, out: &mut Vec<Effect>) {
        let Some(entry) = self.containers.get(id) else { return };
        let Verdict { class, detail, pid } = verdict;
        let (namespace, name) = (NAMESPACE.to_owned(), entry.container.name.clone());
        let restored = Restored { namespace, id: id.to_owned(), name, class, detail, pid };
        if self.restore.pending.remove(id) {
            if class == Class::Unresponsive {
                out.push(Effect::Publish(Note::new("unresponsive", id, &restored.detail)));
            }
            self.restore.report.containers.push(restored);
        } else if let Some(earlier) = self.restore.report.containers.iter_mut().find(|one| one.id == id) {
            // One that did not answer in time, and has by now, or not yet.
            *earlier = restored;
        }
    }

    /// The first process of a container has ended whose shim does not answer, or that shim itself, which somebody had killed
    /// in order to remove the container.
    pub(super) fn process_ended(&mut self, id: &str, generation: u64, now: Now<'_>, out: &mut Vec<Effect>) {
        let Some(entry) = self.current(id, generation) else { return };
        let Phase::Unresponsive { traces } = &entry.phase else { return };
        if entry.remove_waiters.is_empty() {
            entry.answer_stop_waiters_unknowing(now.unix_ns, out);
        } else {
            let (id, traces) = (id.to_owned(), Some(traces.clone()));
            out.push(Effect::Probe { id, generation, traces });
        }
    }

    fn finish_restore(&mut self, now: Now<'_>, out: &mut Vec<Effect>) {
        if self.restore.pending.is_empty() && !self.restore.done {
            self.restore.done = true;
            let report = &mut self.restore.report;
            report.at_unix_ns = now.unix_ns;
            let took = now.unix_ns.saturating_sub(self.restore.began_unix_ns);
            report.took = Duration::from_nanos(u64::try_from(took).unwrap_or(0));
            out.push(Effect::Restored);
        }
    }

    /// There is no trace of a shim: it never ran, ended before, or was ended by a reboot.
    fn found_without_shim(&mut self, id: &str, left_over: bool, now: Now<'_>, out: &mut Vec<Effect>) -> Verdict {
        let ending = self.is_ending();
        let entry = self.containers.get_mut(id).expect("the caller has it");
        entry.phase = Phase::AtRest;
        let state = &entry.container.state;
        let rebooted = state.boot_id != now.boot_id;
        if state.wish == Wish::Created {
            if left_over {
                entry.retire(true, out);
            }
            return Verdict::new(Class::AtRest, "was never started", 0);
        }
        let mut lost = None;
        if state.outcome.is_none() {
            let what = match (rebooted, state.started_at_unix_ns) {
                (true, _) => "ended by a reboot",
                (false, 0) => "its start was interrupted by the end of holdfastd",
                (false, _) => "shim and process vanished",
            };
            let outcome = Outcome { status: UNKNOWN_STATUS, at_unix_ns: now.unix_ns, reason: what.to_owned() };
            entry.set_outcome(outcome, out);
            lost = Some(what);
        }
        if let Some(what) = lost.filter(|_| !rebooted) {
            // As any other end: the policy says what follows.
            self.come_to_rest(id, now, out);
            return Verdict::new(Class::Lost, what, 0);
        }
        let prospect = entry.prospect_at(now);
        if left_over {
            // Nothing in it is true any more, and a new run needs the place.
            entry.being_cleared = true;
            entry.retire(true, out);
        } else if !ending {
            entry.take_up(now, out);
        }
        match (lost, prospect) {
            (Some(what), Prospect::Start) => Verdict::new(Class::Lost, format!("{what}; started again"), 0),
            (Some(what), _) => Verdict::new(Class::Lost, what, 0),
            (None, Prospect::Wait(_)) => Verdict::new(Class::AtRest, "waits for its restart", 0),
            (None, Prospect::Remove) => Verdict::new(Class::AtRest, "has ended, and is removed", 0),
            (None, Prospect::Start) => Verdict::new(Class::AtRest, "was not running; started again", 0),
            (None, Prospect::Rest) => Verdict::new(Class::AtRest, "was not running", 0),
        }
    }
}

/// What follows from the supervisor's start for a container that has run and does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prospect {
    /// It is started when this is over.
    Wait(Duration),
    /// It is removed.
    Remove,
    /// It is started.
    Start,
    /// Nothing.
    Rest,
}

impl Entry {
    /// Whether the answer does not depend on what has become of it.
    fn knows(&self, ask: &Ask) -> bool {
        match ask {
            Ask::Inspect { .. } => true,
            Ask::Wait { exec_id, .. } => {
                self.execs.get(exec_id).is_some_and(|exec| matches!(exec.state, super::ExecState::Ended(_)))
            }
            _ => false,
        }
    }

    /// Whether its policy wants it to be started because the supervisor starts; for one that has run and has ended.
    fn is_started_at_our_start(&self) -> bool {
        let state = &self.container.state;
        let resting = Resting {
            status: state.outcome.as_ref().map_or(UNKNOWN_STATUS, |outcome| outcome.status),
            stopped: state.wish == Wish::Stopped,
            interrupted: state.next.is_none(),
            restarts: state.restarts,
        };
        state.renewing || self.container.config.restart.at_start(resting)
    }

    /// What a supervisor that starts makes of it.
    pub(super) fn prospect_at(&self, now: Now<'_>) -> Prospect {
        match self.container.state.next {
            Some(Next::RestartAt(at)) => {
                let left = Duration::from_nanos(u64::try_from(at.saturating_sub(now.unix_ns)).unwrap_or(0));
                // A clock that was set back makes no pause longer than any is.
                Prospect::Wait(left.min(LONGEST_PAUSE))
            }
            _ if self.is_removed_at_rest() => Prospect::Remove,
            _ if self.is_started_at_our_start() => Prospect::Start,
            _ => Prospect::Rest,
        }
    }

    /// Makes that of it.
    pub(super) fn take_up(&mut self, now: Now<'_>, out: &mut Vec<Effect>) {
        match self.prospect_at(now) {
            Prospect::Wait(left) => self.go_on_backing_off(left, out),
            Prospect::Remove => self.forget(out),
            Prospect::Start => self.begin_again(now, out),
            Prospect::Rest if self.container.state.next.is_none() => self.decide(now, out),
            Prospect::Rest => {}
        }
    }

    /// Starts it as [`Self::is_started_at_our_start`] says. No failure of its own has led to this: nothing counts it.
    fn begin_again(&mut self, now: Now<'_>, out: &mut Vec<Effect>) {
        if self.container.state.renewing {
            return self.begin_run_by_request(None, now, out);
        }
        out.push(Effect::Publish(Note::new("restart", &self.container.id, "holdfastd starts")));
        self.begin_run(None, now, out);
    }

    fn reattach(
        &mut self,
        traces: ShimTraces,
        shim: ShimRef,
        task: TaskView,
        ending: bool,
        now: Now<'_>,
        out: &mut Vec<Effect>,
    ) -> Verdict {
        let (id, generation) = (self.container.id.clone(), self.generation);
        self.go_on_with_execs(&traces.execs, out);
        let pid = task.pid;
        match task.state {
            RunState::Created => {
                out.push(Effect::Watch { id, generation });
                self.phase = Phase::Created { shim };
                if self.container.state.wish == Wish::Running && !ending {
                    self.start_task(None, now, out);
                    return Verdict::new(Class::Reattached, "its start was under way, and goes on", pid);
                }
                Verdict::new(Class::Reattached, "created, not started", pid)
            }
            RunState::Running | RunState::Paused => {
                let paused = task.state == RunState::Paused;
                if task.started_at_unix_ns != 0 && self.container.state.started_at_unix_ns == 0 {
                    self.container.state.started_at_unix_ns = task.started_at_unix_ns;
                }
                // The last supervisor may have died between starting it and noting so.
                if self.container.state.wish == Wish::Created {
                    self.container.state.wish = Wish::Running;
                }
                self.container.state.outcome = None;
                out.push(Effect::Watch { id: id.clone(), generation });
                out.push(Effect::Publish(Note::new("reattach", &id, "")));
                self.phase = Phase::Running { shim, pid, paused };
                self.resume_end(out);
                let up = now.unix_ns.saturating_sub(self.container.state.started_at_unix_ns);
                let up = Duration::from_secs(u64::try_from(up / 1_000_000_000).unwrap_or(0));
                let up = format!("up {}", humantime::format_duration(up));
                match &self.caution {
                    Some(Caution::RuntimeGone(reason)) => {
                        Verdict::new(Class::Incompatible, format!("{up}; {reason}"), pid)
                    }
                    Some(Caution::Unreadable(reason)) => {
                        Verdict::new(Class::Reattached, format!("{up}; its shim was asked, since {reason}"), pid)
                    }
                    _ => Verdict::new(Class::Reattached, up, pid),
                }
            }
            RunState::Stopped { status, at_unix_ns } => {
                self.set_outcome(Outcome { status, at_unix_ns, reason: task.reason }, out);
                self.retire(false, out);
                Verdict::new(Class::ExitedWhileAway, format!("exit status {status}"), 0)
            }
        }
    }

    /// Somebody has asked for its end: the last supervisor, which died before it was done, or this one, before it knew of
    /// the shim.
    fn resume_end(&mut self, out: &mut Vec<Effect>) {
        if !self.remove_waiters.is_empty() {
            self.signal(9, None, out);
        } else if self.container.state.wish == Wish::Stopped || self.container.state.renewing {
            self.begin_stop(None, out);
        }
    }

    /// Its shim lives but does not answer: it is shown as such, asked again, and delays nobody.
    fn quarantine(&mut self, traces: ShimTraces, out: &mut Vec<Effect>) -> Verdict {
        self.set_timer(if self.ending.is_some() { LOOK_AGAIN } else { ASK_AGAIN }, Timer::ProbeAgain, out);
        let pid = traces.init.map_or(0, |(pid, _)| pid);
        self.phase = Phase::Unresponsive { traces };
        Verdict::new(Class::Unresponsive, "its shim does not answer in time; it is asked again", pid)
    }

    /// Its shim is dead, its first process lives.
    fn adopt_found(&mut self, pid: u32, start_time: u64, now: Now<'_>, out: &mut Vec<Effect>) -> Verdict {
        let detail = "its shim is dead, its first process lives; nobody drains its output";
        if self.remove_waiters.is_empty() {
            out.push(Effect::Publish(Note::new("lost", &self.container.id, "the shim is dead, the container lives")));
            self.adopt(pid, start_time, now, out);
            self.resume_end(out);
            self.go_on_ending(out);
        } else {
            // Whoever removes it by force has had its shim killed; clearing away ends the process.
            self.retire(true, out);
        }
        Verdict::new(Class::Adopted, detail, pid)
    }

    /// Its record is not one that this build may act by: it is shown and kept as it is. If its shim answers, it can be
    /// signalled, since that is asked in words that all shims know.
    fn withhold(&mut self, class: Class, reason: String, probe: Probe, out: &mut Vec<Effect>) -> Verdict {
        let (mut shim, mut pid) = (None, 0);
        if let Probe::Answers(answering, Some(task)) = probe {
            match task.state {
                RunState::Stopped { status, at_unix_ns } => {
                    self.set_outcome(Outcome { status, at_unix_ns, reason: task.reason }, out);
                }
                RunState::Created | RunState::Running | RunState::Paused => {
                    pid = task.pid;
                    out.push(Effect::Watch { id: self.container.id.clone(), generation: self.generation });
                }
            }
            shim = Some(answering);
        }
        self.phase = Phase::Withheld { class, reason: reason.clone(), shim, pid };
        Verdict::new(class, format!("{reason}; left alone"), pid)
    }

    /// A shim without its task: the last supervisor died between starting the one and creating the other, or between
    /// deleting the task and ending the shim.
    fn found_empty_shim(&mut self, shim: &ShimRef, out: &mut Vec<Effect>) -> Verdict {
        let known = self.container.state.outcome.is_some();
        self.retire(false, out);
        let detail = format!("its shim (pid {}) holds no task; cleared away", shim.pid);
        Verdict::new(if known { Class::ExitedWhileAway } else { Class::Lost }, detail, 0)
    }
}

/// Who answers for another manager's container.
fn whose(record: &Record) -> String {
    match &record.manager {
        Manager::Containerd { address } => format!("containerd's ({address})"),
        Manager::Holdfastd => "another holdfastd's".to_owned(),
    }
}
