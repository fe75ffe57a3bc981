//! The restore at start: every container of the scan is asked after, at the same time, and classified as the answers
//! come. One that does not answer delays nobody: each question has its own deadline.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Effect, Entry, Note, Now, Phase, Probe, Registry, RunState, ShimRef, TaskView, Timer};
use crate::container::{Outcome, UNKNOWN_STATUS, Wish};
use crate::paths::NAMESPACE;
use crate::policy::Decision;
use crate::report::{Class, RestoreReport, Restored};
use crate::scan::Findings;

/// How long an unresponsive shim is left alone before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The restore under way, or done.
#[derive(Debug, Default)]
pub(super) struct Restore {
    began_unix_ns: i64,
    pending: BTreeSet<String>,
    report: RestoreReport,
    done: bool,
}

impl Restore {
    pub(super) fn report(&self) -> &RestoreReport {
        &self.report
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
                detail: "another manager's: only looked at".to_owned(),
                pid: record.init().map_or(0, |p| p.pid),
            });
        }
        self.unusable = findings.unusable;
        for (id, found) in findings.own {
            let mut entry = Entry::new(found.container);
            entry.phase = match &found.shim {
                Some(traces) => Phase::Unresponsive { traces: traces.clone() },
                None => Phase::Probing,
            };
            let generation = entry.generation;
            self.restore.pending.insert(id.clone());
            self.containers.insert(id.clone(), entry);
            out.push(Effect::Probe { id, generation, traces: found.shim });
        }
        self.finish_restore(now, out);
    }

    pub(super) fn probed(&mut self, id: &str, generation: u64, probe: Probe, now: Now<'_>, out: &mut Vec<Effect>) {
        let Some(entry) = self.current(id, generation) else { return };
        let verdict = match (&entry.phase, probe) {
            (Phase::Unresponsive { .. } | Phase::Probing, Probe::Answers(shim, Some(task))) => {
                entry.reattach(shim, task, now, out)
            }
            (Phase::Unresponsive { .. }, Probe::Answers(shim, None)) => entry.found_empty_shim(&shim, out),
            (Phase::Unresponsive { .. }, Probe::Silent) => {
                let after = ASK_AGAIN;
                out.push(Effect::Timer { id: id.to_owned(), generation, after, timer: Timer::ProbeAgain });
                Verdict::new(Class::Unresponsive, "its shim does not answer in time; it is asked again", 0)
            }
            (Phase::Unresponsive { .. }, Probe::Dead(Some((pid, start_time)))) => {
                out.push(Effect::Publish(Note::new("lost", id, "the shim is dead, the container lives")));
                entry.adopt(pid, start_time, out);
                Verdict::new(Class::Adopted, "its shim is dead, its first process lives; nobody drains its output", pid)
            }
            (Phase::Unresponsive { .. }, Probe::Dead(None)) => {
                entry.retire(true, out);
                Verdict::new(Class::Lost, "its shim is dead, and so is its first process", 0)
            }
            (Phase::Probing, _) => self.found_without_shim(id, now, out),
            _ => return,
        };
        self.classify(id, verdict, now, out);
    }

    fn classify(&mut self, id: &str, verdict: Verdict, now: Now<'_>, out: &mut Vec<Effect>) {
        if self.restore.pending.remove(id) {
            let name = self.containers.get(id).map(|e| e.container.name.clone()).unwrap_or_default();
            let Verdict { class, detail, pid } = verdict;
            let (namespace, id) = (NAMESPACE.to_owned(), id.to_owned());
            self.restore.report.containers.push(Restored { namespace, id, name, class, detail, pid });
        }
        self.finish_restore(now, out);
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
    fn found_without_shim(&mut self, id: &str, now: Now<'_>, out: &mut Vec<Effect>) -> Verdict {
        let entry = self.containers.get_mut(id).expect("the caller has it");
        let state = &entry.container.state;
        let rebooted = state.boot_id != now.boot_id;
        let interrupted = state.wish == Wish::Running && state.outcome.is_none();
        entry.phase = Phase::AtRest;
        if interrupted {
            let reason = if rebooted { "ended by a reboot" } else { "shim and process vanished" };
            let outcome = Outcome { status: UNKNOWN_STATUS, at_unix_ns: now.unix_ns, reason: reason.to_owned() };
            entry.set_outcome(outcome, out);
        }
        if rebooted && entry.container.config.restart.after_reboot(entry.container.state.wish != Wish::Running) {
            entry.container.state.wish = Wish::Running;
            entry.container.state.restarts = 0;
            entry.back_off(Duration::ZERO, out);
            return Verdict::new(Class::Lost, "ended by a reboot; started again", 0);
        }
        let ended = entry.container.state.outcome.is_some();
        let restarts = ended && entry.after_exit() != Decision::Rest;
        if ended {
            self.come_to_rest(id, now, out);
        }
        match (interrupted, rebooted, restarts) {
            (true, true, _) => Verdict::new(Class::Lost, "ended by a reboot", 0),
            (true, false, _) => Verdict::new(Class::Lost, "shim and process vanished", 0),
            (false, _, true) => Verdict::new(Class::AtRest, "waits for its restart", 0),
            (false, _, false) => Verdict::new(Class::AtRest, "was not running", 0),
        }
    }
}

impl Entry {
    fn reattach(&mut self, shim: ShimRef, task: TaskView, now: Now<'_>, out: &mut Vec<Effect>) -> Verdict {
        let (id, generation) = (self.container.id.clone(), self.generation);
        if let Phase::Unresponsive { traces } = &self.phase {
            let execs = traces.execs.clone();
            self.watch_execs(execs, out);
        }
        let pid = task.pid;
        match task.state {
            RunState::Created => {
                out.push(Effect::Watch { id, generation });
                self.phase = Phase::Created { shim };
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
                self.resume_stop(out);
                let up = now.unix_ns.saturating_sub(self.container.state.started_at_unix_ns);
                let up = Duration::from_secs(u64::try_from(up / 1_000_000_000).unwrap_or(0));
                Verdict::new(Class::Reattached, format!("up {}", humantime::format_duration(up)), pid)
            }
            RunState::Stopped { status, at_unix_ns } => {
                self.set_outcome(Outcome { status, at_unix_ns, reason: String::new() }, out);
                self.retire(false, out);
                Verdict::new(Class::ExitedWhileAway, format!("exit status {status}"), 0)
            }
        }
    }

    /// The last supervisor was asked to stop it, and died before it was done.
    fn resume_stop(&mut self, out: &mut Vec<Effect>) {
        if self.container.state.wish == Wish::Stopped {
            self.signal(self.container.config.stop_signal, None, out);
            let after = Duration::from_secs(self.container.config.stop_timeout.into());
            let (id, generation) = (self.container.id.clone(), self.generation);
            out.push(Effect::Timer { id, generation, after, timer: Timer::Stop });
        }
    }

    fn watch_execs(&mut self, execs: Vec<String>, out: &mut Vec<Effect>) {
        for exec_id in execs {
            self.execs.insert(exec_id.clone(), super::ExecState::Running { waiters: Vec::new() });
            let (id, generation) = (self.container.id.clone(), self.generation);
            out.push(Effect::WatchExec { id, generation, exec_id });
        }
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
