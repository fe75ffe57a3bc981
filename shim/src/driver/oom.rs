//! Out of memory: from the kernel's alarm, or a process's end, to an input.
//!
//! ```text
//!   the alarm rings ──────────────────────────┐
//!   Effect::CountOomKills (a process ended) ──┴─> look at the counts ──> Tally ──> Input::OutOfMemory
//! ```

use std::collections::VecDeque;
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Shim, State, chain};
use crate::cgroup::Paths;
use crate::cgroup::oom::{Alarm, Alarms, Bell, Counter, FrozenAlarm, Tally, with_one_more_kill};
use crate::freeze::FdBag;
use crate::lifecycle::{Input, Pid, TaskId};
use crate::owned_task::OwnedTask;
use crate::sys::reaper::now_unix_ns;

/// When to look again if the alarm rang and nobody was killed yet: at first, and at last.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(640));

/// How long after a ring a container is thought to be short of memory still. While it is, the alarm rings all the time; but
/// a machine without memory is slow.
const SHORT_OF_MEMORY: Duration = Duration::from_secs(5);

/// What is known of a container's lack of memory. Only of one with a control group of its own.
pub(super) struct Memory {
    /// None once init has ended.
    counter: Option<Counter>,
    /// None once init has ended, and where none is to be had: then the end of a process is the occasion to look.
    alarm: Option<Alarm>,
    tally: Tally,
    /// When the alarm last rang.
    rang: Option<Instant>,
    /// `memory.events` of a version 2 cgroup when it was last looked at: `Stats` still knows them when the cgroup is gone.
    pub(super) events: Option<String>,
    /// Looks until a ring is explained, or the time for that is up.
    looks: Option<OwnedTask>,
}

/// [`Memory`] written down.
#[derive(Serialize, Deserialize)]
pub(super) struct FrozenMemory {
    counter: Option<String>,
    alarm: Option<FrozenAlarm>,
    tally: Tally,
    /// How long ago the alarm rang.
    #[serde(default)]
    rang: Option<Duration>,
    events: Option<String>,
}

impl State {
    /// Captures the control group of a container whose init process has come into being, and watches over its memory from
    /// now on. For whoever makes an init process: a create, or the start of a restored one. A process can lack memory at
    /// once, so this comes before anything else is asked of it (contract 3.11).
    pub(super) fn adopt_cgroup(&mut self, task: &TaskId, pid: Pid, me: &Weak<Shim>) {
        let Some(container) = self.containers.get_mut(task) else { return };
        match Paths::of_process(pid) {
            Ok(paths) => {
                let paths = paths.found_after(container.cgroup.as_ref());
                container.memory = Memory::watch(task, &paths, &self.alarms, bell(me, task));
                container.cgroup = Some(paths);
            }
            Err(e) => tracing::warn!(task = task.0, pid, error = chain(&e), "no control group, so no figures"),
        }
    }

    /// A process has ended that may have lacked memory. `last`: it was init.
    pub(super) fn count_oom_kills(&mut self, task: &TaskId, last: bool, inputs: &mut VecDeque<Input>) {
        let Some(memory) = self.memory(task) else { return };
        if last
            && let Some(alarm) = memory.alarm.take()
            && alarm.disarm()
        {
            memory.tally.ring();
            memory.rang = Some(Instant::now());
        }
        if let Some(victims) = memory.look(task) {
            inputs.push_back(out_of_memory(task, victims));
        }
        if last {
            (memory.counter, memory.looks) = (None, None);
        }
    }

    fn memory(&mut self, task: &TaskId) -> Option<&mut Memory> {
        self.containers.get_mut(task)?.memory.as_mut()
    }
}

impl Shim {
    fn alarm_rang(&self, task: &TaskId) {
        if let Some(memory) = self.state.borrow_mut().memory(task) {
            memory.tally.ring();
            memory.rang = Some(Instant::now());
        }
        if self.look_at_memory(task)
            && let Some(memory) = self.state.borrow_mut().memory(task)
        {
            memory.look_again(task, &self.me);
        }
    }

    /// Tells what there is to be told; whether there may be more soon.
    fn look_at_memory(&self, task: &TaskId) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(memory) = state.memory(task) else { return false };
        let told = memory.look(task);
        let unexplained = memory.tally.is_unexplained();
        drop(state);
        if let Some(victims) = told {
            self.input(out_of_memory(task, victims));
        }
        unexplained
    }
}

/// Looks again until the last ring is explained, or it is clear that a neighbour was killed for it.
async fn look_again(me: Weak<Shim>, task: TaskId) {
    let mut pause = LOOK_AGAIN.0;
    while pause <= LOOK_AGAIN.1 {
        tokio::time::sleep(pause).await;
        pause *= 2;
        let Some(shim) = me.upgrade() else { return };
        if !shim.look_at_memory(&task) {
            return;
        }
    }
    if let Some(shim) = me.upgrade()
        && let Some(memory) = shim.state.borrow_mut().memory(&task)
    {
        memory.tally.give_up();
    }
}

fn out_of_memory(task: &TaskId, victims: u64) -> Input {
    Input::OutOfMemory { task: task.clone(), victims, at_unix_ns: now_unix_ns() }
}

fn bell(me: &Weak<Shim>, task: &TaskId) -> Bell {
    let (me, task) = (me.clone(), task.clone());
    Rc::new(move || {
        if let Some(shim) = me.upgrade() {
            shim.alarm_rang(&task);
        }
    })
}

impl Memory {
    /// None if the cgroup is not the container's own, or nobody counts in it.
    fn watch(task: &TaskId, paths: &Paths, alarms: &Alarms, bell: Bell) -> Option<Self> {
        if paths.is_shared() {
            return None;
        }
        let nobody = |error: String| tracing::info!(task = task.0, error, "nobody counts who lacks memory");
        let counter = Counter::open(paths).inspect_err(|e| nobody(chain(e))).ok()?;
        let counts = counter.read().inspect_err(|e| nobody(e.to_string())).ok()?;
        let alarm = alarms.arm(paths, bell).inspect_err(|e| {
            tracing::warn!(task = task.0, error = %e, "no alarm for lack of memory, which shows when a process ends");
        });
        Some(Self {
            counter: Some(counter),
            alarm: alarm.ok(),
            tally: Tally::from(&counts),
            rang: None,
            events: counts.events,
            looks: None,
        })
    }

    /// Whether there is something to be told: of how many that were killed.
    fn look(&mut self, task: &TaskId) -> Option<u64> {
        let counter = self.counter.as_ref()?;
        match counter.read() {
            Ok(counts) => {
                let before = self.tally.kills();
                let told = self.tally.count(&counts);
                // Where nobody counts them there is one at least.
                let victims = counts.kills.map_or(1, |_| self.tally.kills() - before);
                self.events = counts.events;
                told.then_some(victims)
            }
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => self.infer(counter.kills_above()),
            Err(e) => {
                tracing::warn!(task = task.0, error = %e, "cannot see who lacked memory");
                None
            }
        }
    }

    /// Of a cgroup that was removed before the last look.
    fn infer(&mut self, kills_above: Option<u64>) -> Option<u64> {
        let was_short = self.rang.is_some_and(|rang| rang.elapsed() < SHORT_OF_MEMORY);
        if !self.tally.count_above(kills_above) || !was_short {
            return None;
        }
        self.events = self.events.as_deref().map(with_one_more_kill);
        Some(1)
    }

    fn look_again(&mut self, task: &TaskId, me: &Weak<Shim>) {
        self.looks = Some(OwnedTask::spawn(look_again(me.clone(), task.clone())));
    }

    /// Writes it down.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub(super) fn freeze(&self, task: &TaskId, bag: &mut FdBag) -> io::Result<FrozenMemory> {
        let name = |what| format!("task/{}.{what}", task.0);
        let counter = self.counter.as_ref().map(|counter| counter.freeze(name("oom-counter"), bag)).transpose()?;
        let alarm = self.alarm.as_ref().map(|alarm| alarm.freeze(name("oom-alarm"), bag)).transpose()?;
        let rang = self.rang.map(|rang| rang.elapsed());
        Ok(FrozenMemory { counter, alarm, tally: self.tally.clone(), rang, events: self.events.clone() })
    }

    /// Goes on where [`Memory::freeze`] stopped; without the alarm if that cannot be had again.
    ///
    /// # Errors
    /// `NotFound` for an fd that is not in the bag.
    pub(super) fn thaw(
        frozen: FrozenMemory,
        task: &TaskId,
        paths: &Paths,
        alarms: &Alarms,
        bag: &mut FdBag,
        me: &Weak<Shim>,
    ) -> io::Result<Self> {
        let FrozenMemory { counter, alarm, mut tally, rang, events } = frozen;
        let rang = rang.and_then(|ago| Instant::now().checked_sub(ago));
        if matches!(alarm, Some(FrozenAlarm::Watch)) {
            // What the kernel had told just before may not have been heard.
            tally.ring();
        }
        let counter = counter.map(|name| Counter::thaw(&name, paths, bag)).transpose()?;
        let alarm = alarm.map(|alarm| alarms.thaw_alarm(alarm, paths, bag, bell(me, task))).transpose();
        let alarm = alarm.inspect_err(|e| {
            tracing::warn!(task = task.0, error = %e, "lost the alarm for lack of memory, which shows when a process ends");
        });
        let mut memory = Self { counter, alarm: alarm.ok().flatten(), tally, rang, events, looks: None };
        if memory.tally.is_unexplained() {
            memory.look_again(task, me);
        }
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_container_that_was_short_of_memory_before_a_freeze_still_is() {
        let (task, mut bag) = (TaskId("c".to_owned()), FdBag::default());
        let paths = Paths::of_process(std::process::id()).unwrap();
        let mut again = |rang| {
            let tally = Tally::default();
            let memory = Memory { counter: None, alarm: None, tally, rang, events: None, looks: None };
            let bytes = serde_json::to_vec(&memory.freeze(&task, &mut bag).unwrap()).unwrap();
            let frozen = serde_json::from_slice(&bytes).unwrap();
            Memory::thaw(frozen, &task, &paths, &Alarms::default(), &mut bag, &Weak::new()).unwrap()
        };
        let rang = again(Some(Instant::now())).rang.unwrap();
        assert!(rang.elapsed() < SHORT_OF_MEMORY);
        assert!(again(None).rang.is_none());
    }
}
