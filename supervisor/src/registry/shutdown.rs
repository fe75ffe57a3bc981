//! The end: every container is stopped at the same time, each by its own signal and with its own timeout; what is not
//! stopped by then, or when all of them have had their time, is killed.
//!
//! ```text
//!   stop signal ── stop timeout, or the bound for all ──> SIGKILL ── KILL_GRACE ──> SIGKILL to the shim, which holds it up
//!                  a second request to end ───────────────┘                         │ LAST_GRACE: left behind
//! ```
//!
//! Invariants: nobody's wish is changed by it, so that the next supervisor starts again what a restart policy says; nothing
//! is started once it has begun; [`Effect::Leave`] comes once, when nothing is left to be done, or nothing more can be.

use std::time::Duration;

use super::{Effect, Entry, Now, Phase, Refusal, Registry, ReplyTo, Timer};
use crate::container::{Outcome, Wish};

/// For all containers to stop, unless one of them asks for more or the settings say otherwise.
const DEFAULT_BOUND: Duration = Duration::from_secs(15);

/// What the slowest container gets on top of its own stop timeout: for the cleaning up.
const SLACK: Duration = Duration::from_secs(5);

/// How long SIGKILL, sent by a shim, may take to show.
const KILL_GRACE: Duration = Duration::from_secs(3);

/// How long everything may take from then on, before what is left is left behind.
const LAST_GRACE: Duration = Duration::from_secs(15);

/// How often a shim that does not answer is looked at while its container is being stopped.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What becomes of containers that an earlier supervisor has left running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Survivors {
    /// They go on.
    #[default]
    Keep,
    /// They are stopped, each within its own timeout and this one.
    Stop(Option<Duration>),
}

/// What is due during the end, whatever the containers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// All have had their time.
    Kill,
    /// What is left now will not end.
    LeaveBehind,
}

/// How one container was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Which.
    pub id: String,
    /// How people call it.
    pub name: String,
    /// How it ended; `None`: it did not, or it never ran.
    pub outcome: Option<Outcome>,
    /// Since it was asked to.
    pub took: Duration,
    /// What it took.
    pub how: How,
}

/// What it took to stop a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Nothing: it did not run yet.
    NeverRan,
    /// Its stop signal.
    Signal,
    /// SIGKILL, after its own stop timeout.
    KilledAfterStopTimeout,
    /// SIGKILL, after the bound for all.
    KilledAfterShutdownTimeout,
    /// SIGKILL, because somebody was in a hurry.
    KilledInHurry,
    /// Nothing helped.
    LeftBehind,
}

impl How {
    fn is_kill(self) -> bool {
        !matches!(self, Self::NeverRan | Self::Signal)
    }

    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeverRan => "had not been started",
            Self::Signal => "stopped by its stop signal",
            Self::KilledAfterStopTimeout => "killed after its stop timeout",
            Self::KilledAfterShutdownTimeout => "killed after the shutdown timeout",
            Self::KilledInHurry => "killed at once, as was asked",
            Self::LeftBehind => "left behind: it does not end",
        }
    }
}

/// A container that is being stopped by us, not by request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BeingEnded {
    since_unix_ns: i64,
    how: How,
}

/// The end under way.
#[derive(Debug, Default)]
pub(super) struct Shutdown {
    /// Whether the supervisor itself ends with it.
    leave: bool,
    /// It takes no longer than this.
    within: Duration,
    /// Whether [`Effect::Leave`] was given.
    left: bool,
    /// Why nothing gets time any more.
    killing: Option<How>,
    over: bool,
    told: Vec<Stopped>,
    /// Who asked, and waits.
    waiters: Vec<ReplyTo>,
}

impl Registry {
    /// A table for a supervisor that does this with what it finds running.
    pub fn new(survivors: Survivors) -> Self {
        Self { survivors, ..Self::default() }
    }

    /// The supervisor is told to end, for the first time or again.
    pub(super) fn terminate(
        &mut self,
        live_restore: bool,
        within: Option<Duration>,
        now: Now<'_>,
        out: &mut Vec<Effect>,
    ) {
        match &mut self.shutdown {
            None if live_restore && (!self.restore.is_scanned() || self.containers.values().any(Entry::runs)) => {
                out.push(Effect::Leave);
            }
            None => self.begin_shutdown(true, within, now, out),
            Some(shutdown) if !shutdown.leave => {
                shutdown.leave = true;
                out.push(Effect::Stopping { within: shutdown.within, leave: true });
            }
            Some(_) => self.kill_the_rest(How::KilledInHurry, now, out),
        }
    }

    /// The machine is about to stop: everything ends, the supervisor stays to answer for it.
    pub(super) fn stop_all(&mut self, within: Option<Duration>, reply: ReplyTo, now: Now<'_>, out: &mut Vec<Effect>) {
        if self.shutdown.is_none() {
            self.begin_shutdown(false, within, now, out);
        }
        self.shutdown.get_or_insert_default().waiters.push(reply);
    }

    /// Why a question that would start something is not answered any more.
    pub(super) fn refuse_new(&self) -> Result<(), Refusal> {
        match self.shutdown {
            None => Ok(()),
            Some(_) => {
                let text = "holdfastd is stopping all containers and starts nothing more; ask its successor";
                Err(Refusal::Precondition(text.to_owned()))
            }
        }
    }

    /// Whether all containers are being stopped, or were.
    pub fn is_ending(&self) -> bool {
        self.shutdown.is_some()
    }

    /// How many containers run.
    pub fn running(&self) -> usize {
        self.containers.values().filter(|e| e.runs()).count()
    }

    /// Before the disk is read nothing is known of stop timeouts: then the bound is the one that holds without any.
    fn begin_shutdown(&mut self, leave: bool, within: Option<Duration>, now: Now<'_>, out: &mut Vec<Effect>) {
        let slowest = self.containers.values().filter(|e| e.runs()).map(|e| e.container.config.stop_timeout).max();
        let slowest = Duration::from_secs(slowest.unwrap_or(0).into());
        let bound = within.unwrap_or_else(|| DEFAULT_BOUND.max(slowest.saturating_add(SLACK)));
        let within = bound.saturating_add(KILL_GRACE).saturating_add(LAST_GRACE);
        self.shutdown = Some(Shutdown { leave, within, ..Shutdown::default() });
        out.push(Effect::Stopping { within, leave });
        for entry in self.containers.values_mut() {
            entry.end(now, out);
        }
        out.push(Effect::Due { after: bound, due: Due::Kill });
    }

    pub(super) fn due(&mut self, due: Due, now: Now<'_>, out: &mut Vec<Effect>) {
        match due {
            Due::Kill => self.kill_the_rest(How::KilledAfterShutdownTimeout, now, out),
            Due::LeaveBehind => {
                let Some(shutdown) = &mut self.shutdown else { return };
                if !shutdown.over {
                    for entry in self.containers.values_mut().filter(|e| !e.is_still()) {
                        let since_unix_ns = entry.ending.take().map_or(now.unix_ns, |ending| ending.since_unix_ns);
                        let stopped = entry.stopped(BeingEnded { since_unix_ns, how: How::LeftBehind }, now);
                        out.push(Effect::Stopped(stopped.clone()));
                        shutdown.told.push(stopped);
                    }
                    shutdown.over = true;
                }
            }
        }
    }

    fn kill_the_rest(&mut self, how: How, now: Now<'_>, out: &mut Vec<Effect>) {
        let Some(shutdown) = self.shutdown.as_mut().filter(|s| s.killing.is_none() && !s.over) else { return };
        shutdown.killing = Some(how);
        for entry in self.containers.values_mut().filter(|e| e.is_endable()) {
            entry.kill_now(how, now, out);
        }
        out.push(Effect::Due { after: KILL_GRACE + LAST_GRACE, due: Due::LeaveBehind });
    }

    /// Whether the end has come; after every input.
    pub(super) fn look_for_the_end(&mut self, out: &mut Vec<Effect>) {
        let Some(shutdown) = &mut self.shutdown else { return };
        shutdown.over |= self.restore.is_scanned() && self.containers.values().all(Entry::is_still);
        if !shutdown.over {
            return;
        }
        for to in shutdown.waiters.drain(..) {
            out.push(Effect::Reply { to, answer: Ok(super::Answer::Stopped(shutdown.told.clone())) });
        }
        if shutdown.leave && !shutdown.left {
            shutdown.left = true;
            out.push(Effect::Leave);
        }
    }

    /// What still runs, as has turned out now, though everything is to end, or nobody wanted it to outlive the last
    /// supervisor.
    pub(super) fn end_if_unwanted(&mut self, id: &str, now: Now<'_>, out: &mut Vec<Effect>) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        match (&self.shutdown, self.survivors) {
            (Some(Shutdown { killing: Some(how), .. }), _) if entry.is_endable() => entry.kill_now(*how, now, out),
            (Some(_), _) => entry.end(now, out),
            // What is not ours to judge goes on.
            (None, Survivors::Stop(within)) if entry.phase.is_live() && !entry.is_withheld() => {
                entry.end_within(within, now, out);
            }
            (None, _) => {}
        }
    }

    /// A container that was being stopped by us has come to its rest. Tells so.
    pub(super) fn tell_stopped(&mut self, id: &str, now: Now<'_>, out: &mut Vec<Effect>) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        if let Some(ending) = entry.ending.take() {
            let stopped = entry.stopped(ending, now);
            out.push(Effect::Stopped(stopped.clone()));
            if let Some(shutdown) = &mut self.shutdown {
                shutdown.told.push(stopped);
            }
        }
    }
}

impl Entry {
    /// Whether it runs, or is being brought to.
    fn runs(&self) -> bool {
        self.phase.is_live() || matches!(self.phase, Phase::Preparing { start: true })
    }

    /// Whether it runs, and can be told to end.
    fn is_endable(&self) -> bool {
        match &self.phase {
            Phase::Probing { .. } => false,
            Phase::Withheld { shim, pid, .. } => shim.is_some() && *pid != 0,
            phase => phase.is_live(),
        }
    }

    fn is_withheld(&self) -> bool {
        matches!(self.phase, Phase::Withheld { .. })
    }

    /// Whether nothing of it is left that could be waited for.
    fn is_still(&self) -> bool {
        matches!(self.phase, Phase::AtRest | Phase::Backoff) || (self.is_withheld() && !self.is_endable())
    }

    /// Stops it, for the supervisor's sake: what it is wished to be stays as it is.
    fn end(&mut self, now: Now<'_>, out: &mut Vec<Effect>) {
        self.end_within(None, now, out);
    }

    /// As [`Self::end`], with a bound of its own.
    pub(super) fn end_within(&mut self, bound: Option<Duration>, now: Now<'_>, out: &mut Vec<Effect>) {
        if self.ending.is_some() {
            return;
        }
        let how = if self.phase.is_live() { How::Signal } else { How::NeverRan };
        let ending = BeingEnded { since_unix_ns: now.unix_ns, how };
        match &self.phase {
            Phase::Created { .. } => {
                self.ending = Some(ending);
                self.retire(false, out);
            }
            // Whoever finishes that looks at this.
            Phase::Preparing { .. } => self.ending = Some(ending),
            _ if self.is_endable() => {
                self.ending = Some(ending);
                let own = Duration::from_secs(self.container.config.stop_timeout.into());
                if self.container.state.wish != Wish::Stopped && !self.container.state.renewing {
                    self.signal(self.container.config.stop_signal, None, out);
                    self.set_timer(own.min(bound.unwrap_or(own)), Timer::Stop, out);
                } else if let Some(bound) = bound {
                    // Somebody has asked for its end already: the signal and a timer are on their way, and many programs
                    // take a second signal for impatience.
                    self.set_timer(bound, Timer::Stop, out);
                }
                if matches!(self.phase, Phase::Unresponsive { .. }) {
                    // Nobody else would tell of its end.
                    self.set_timer(LOOK_AGAIN, Timer::ProbeAgain, out);
                }
            }
            // Gone, or soon, or not known yet: then this comes again.
            _ => {}
        }
    }

    /// Its stop timeout is over.
    pub(super) fn kill_after_timeout(&mut self, out: &mut Vec<Effect>) {
        match self.ending {
            Some(_) => self.kill_to_end(How::KilledAfterStopTimeout, out),
            None => self.signal(9, None, out),
        }
    }

    /// As [`Self::end`], without its time.
    fn kill_now(&mut self, how: How, now: Now<'_>, out: &mut Vec<Effect>) {
        self.ending.get_or_insert(BeingEnded { since_unix_ns: now.unix_ns, how });
        self.kill_to_end(how, out);
    }

    fn kill_to_end(&mut self, how: How, out: &mut Vec<Effect>) {
        if let Some(ending) = self.ending.as_mut().filter(|e| !e.how.is_kill()) {
            ending.how = how;
        }
        self.signal(9, None, out);
        self.set_timer(KILL_GRACE, Timer::KillShim, out);
    }

    /// SIGKILL has not ended it: its shim does not do what it is told. Without it, the first process is ours to kill.
    pub(super) fn kill_shim(&mut self, out: &mut Vec<Effect>) {
        let process = match &self.phase {
            Phase::Starting { shim } | Phase::Running { shim, .. } => Some((shim.pid, shim.start_time)),
            Phase::Unresponsive { traces } => traces.process,
            _ => None,
        };
        if let (Some((pid, start_time)), Some(_)) = (process, self.ending) {
            out.push(Effect::KillPid { pid, start_time, signal: 9, reply: None });
        }
    }

    /// What follows from its first process having lost its shim while it was to be stopped.
    pub(super) fn go_on_ending(&mut self, out: &mut Vec<Effect>) {
        if self.ending.is_some_and(|e| e.how.is_kill()) {
            self.signal(9, None, out);
        }
    }

    /// To be called before an outcome is noted: whether it is our doing.
    pub(super) fn note_ending(&mut self, outcome: &mut Outcome) {
        if self.ending.is_some() && self.container.state.wish == Wish::Running && outcome.reason.is_empty() {
            "stopped by holdfastd, which was ending".clone_into(&mut outcome.reason);
        }
    }

    fn stopped(&self, BeingEnded { since_unix_ns, how }: BeingEnded, now: Now<'_>) -> Stopped {
        let took = now.unix_ns.saturating_sub(since_unix_ns);
        Stopped {
            id: self.container.id.clone(),
            name: self.container.name.clone(),
            outcome: self.container.state.outcome.clone().filter(|_| how != How::NeverRan),
            took: Duration::from_nanos(u64::try_from(took).unwrap_or(0)),
            how,
        }
    }
}
