//! Out of memory: being told, and counting.
//!
//! What is believed is the kernel's count of the processes that it killed in the cgroup for want of memory. An [`Alarm`] is
//! only a reason to look at it:
//!
//! - Version 1 has an eventfd (kernel: `cgroup-v1/memory.rst`, sections 9 and 10). It rings *before* the kill, so the count
//!   may follow a little later; also when a cgroup above ran out of memory and a neighbour was killed for it; and when the
//!   cgroup is removed.
//! - Version 2 has inotify on `memory.events`, whose `oom_kill` is counted before it tells (kernel: `cgroup-v2.rst`). `oom`
//!   is no measure: a limit further up counts there. All containers of a shim share one inotify instance, since a user has
//!   but 128 of them.
//!
//! Where systemd looks after the cgroup, it removes it as soon as the last process has died, and may be faster than the last
//! look. Then the cgroup above tells, whose count has all of what is below: see [`Tally::count_above`].
//!
//! Deliberately absent: a watch on `cgroup.events`. Alarms are switched off when init ends, before anybody could remove the
//! cgroup, so nobody has to be told of that.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::{CgroupError, Layout, Paths, pairs, vanished};
use crate::freeze::FdBag;
use crate::owned_task::OwnedTask;
use crate::sys::ready::{self, Watch};

/// How long version 2 alarms rest after they rang: a container at its limit changes `memory.events` all the time.
const REST: Duration = Duration::from_millis(50);
/// More than the kernel writes into one of the files.
const LARGEST: usize = 512;

/// What the kernel has counted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Killed processes. None on version 1 before Linux 4.13.
    pub(crate) kills: Option<u64>,
    /// Version 1: nobody is killed (`oom_kill_disable`), and processes stand still for want of memory.
    stuck: bool,
    /// Version 2: all of `memory.events`.
    pub(crate) events: Option<String>,
    /// Version 2: the kills in the cgroup above and all below it.
    above: Option<u64>,
}

impl Counts {
    fn of_version_one(oom_control: &str) -> Self {
        let find = |key| pairs(oom_control).find(|(k, _)| *k == key).map(|(_, n)| n);
        let stuck = find("oom_kill_disable") == Some(1) && find("under_oom") == Some(1);
        Self { kills: find("oom_kill"), stuck, ..Self::default() }
    }

    fn of_version_two(memory_events: String) -> Self {
        // Before Linux 4.13 there is only `oom`, which is better than nothing.
        let kills = event(&memory_events, "oom_kill").or_else(|| event(&memory_events, "oom"));
        Self { kills, events: Some(memory_events), ..Self::default() }
    }
}

fn event(memory_events: &str, key: &str) -> Option<u64> {
    pairs(memory_events).find(|(k, _)| *k == key).map(|(_, n)| n)
}

/// The file that counts; `None` without a memory controller.
fn file(paths: &Paths) -> Option<PathBuf> {
    let file = match &paths.layout {
        Layout::V1(_) => paths.controller("memory")?.join("memory.oom_control"),
        Layout::V2(dir) => dir.join("memory.events"),
    };
    Some(file)
}

/// The open file that counts. Reading it takes no lock that somebody else holds for long: the kernel prints a few numbers
/// that it keeps anyway (unlike those of `memory.stat`), and there is no path to be walked. So this is done within the
/// loop, which it has to be: where systemd removes the cgroup of a process that has died, another thread comes too late.
pub(crate) struct Counter {
    file: File,
    /// That of the cgroup above, on version 2.
    above: Option<File>,
    unified: bool,
}

impl Counter {
    /// Opens it.
    ///
    /// # Errors
    /// [`CgroupError::Gone`], [`CgroupError::WithoutMemory`], [`CgroupError::Access`].
    pub(crate) fn open(paths: &Paths) -> Result<Self, CgroupError> {
        let gone = || CgroupError::Gone(paths.layout.processes().to_owned());
        let path = file(paths).ok_or_else(gone)?;
        match File::open(&path) {
            Ok(file) => Ok(Self { file, above: above(paths), unified: paths.unified().is_some() }),
            Err(e) if vanished(&e) => match path.parent() {
                Some(group) if group.exists() => Err(CgroupError::WithoutMemory(group.to_owned())),
                _ => Err(gone()),
            },
            Err(source) => Err(CgroupError::Access { path, source }),
        }
    }

    /// Reads the counts.
    ///
    /// # Errors
    /// As `pread(2)`; `ENODEV` once the cgroup was removed.
    pub(crate) fn read(&self) -> io::Result<Counts> {
        let mut above = self.kills_above();
        loop {
            let text = text(&self.file)?;
            let counts = if self.unified { Counts::of_version_two(text) } else { Counts::of_version_one(&text) };
            // A kill in between would be in one of the two alone: missed, if the cgroup is gone the next time.
            let after = self.kills_above();
            if after == above {
                return Ok(Counts { above, ..counts });
            }
            above = after;
        }
    }

    /// Of what is left when the cgroup itself is gone.
    pub(crate) fn kills_above(&self) -> Option<u64> {
        event(&text(self.above.as_ref()?).ok()?, "oom_kill")
    }

    /// Copies it into `bag`.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub(crate) fn freeze(&self, name: String, bag: &mut FdBag) -> io::Result<String> {
        bag.put(name, &self.file)
    }

    /// Goes on where [`Counter::freeze`] stopped. The file above is opened again: it is not gone when the cgroup is.
    ///
    /// # Errors
    /// `NotFound` for an fd that is not in the bag.
    pub(crate) fn thaw(name: &str, paths: &Paths, bag: &mut FdBag) -> io::Result<Self> {
        Ok(Self { file: bag.take(name)?.into(), above: above(paths), unified: paths.unified().is_some() })
    }
}

fn above(paths: &Paths) -> Option<File> {
    File::open(paths.unified()?.parent()?.join("memory.events")).ok()
}

fn text(file: &File) -> io::Result<String> {
    let mut text = [0; LARGEST];
    let length = file.read_at(&mut text, 0)?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

/// What of the counts was told already.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    kills: u64,
    /// The alarm rang, and why was not found yet.
    rung: bool,
    /// The kills in the cgroup above when it was last looked at.
    #[serde(default)]
    above: Option<u64>,
}

impl Tally {
    /// Counts from here: what happened before is not the container's.
    pub(crate) fn from(now: &Counts) -> Self {
        Self { kills: now.kills.unwrap_or(0), rung: false, above: now.above }
    }

    /// How many were killed so far, as far as that is counted.
    pub(crate) fn kills(&self) -> u64 {
        self.kills
    }

    /// The alarm has rung.
    pub(crate) fn ring(&mut self) {
        self.rung = true;
    }

    /// Whether the last ring is unexplained: on version 1 the count may follow.
    pub(crate) fn is_unexplained(&self) -> bool {
        self.rung
    }

    /// Takes note of the kills in the cgroup above, for one that is gone, and says whether there were more since the last
    /// look. They may have been somebody else's below the same cgroup, so the caller makes sure that the look was a moment
    /// ago and the container was short of memory then.
    pub(crate) fn count_above(&mut self, now: Option<u64>) -> bool {
        let more = matches!((self.above, now), (Some(before), Some(now)) if now > before);
        self.above = now;
        more
    }

    /// It was a neighbour that was killed.
    pub(crate) fn give_up(&mut self) {
        self.rung = false;
    }

    /// Takes note, and says whether there is something to be told: one or more were killed since the last time, or stand
    /// still. Where kills are not counted the alarm alone says so.
    pub(crate) fn count(&mut self, now: &Counts) -> bool {
        let told = match now.kills {
            Some(kills) => kills > self.kills || (now.stuck && self.rung),
            None => self.rung,
        };
        self.kills = now.kills.unwrap_or(0).max(self.kills);
        self.above = now.above;
        self.rung &= !told && now.events.is_none();
        told
    }
}

/// What is left of `memory.events` after an inferred kill: their count is one more.
pub(crate) fn with_one_more_kill(memory_events: &str) -> String {
    let line = |line: &str| match line.strip_prefix("oom_kill ").and_then(|n| n.parse::<u64>().ok()) {
        Some(kills) => format!("oom_kill {}\n", kills.saturating_add(1)),
        None => format!("{line}\n"),
    };
    memory_events.lines().map(line).collect()
}

/// What is called when an alarm rings.
pub(crate) type Bell = Rc<dyn Fn()>;

/// The alarms of a shim; what they have in common.
#[derive(Clone, Default)]
pub(crate) struct Alarms(Rc<Shared>);

#[derive(Default)]
struct Shared {
    /// Only while there is a version 2 alarm.
    instance: RefCell<Option<Instance>>,
    /// By watch descriptor, which the kernel does not use again.
    bells: RefCell<BTreeMap<i32, Bell>>,
    /// The descriptors that were noticed and whose bells did not ring yet.
    noticed: RefCell<BTreeSet<i32>>,
    /// Somebody else than the listener has read what was noticed.
    read_ahead: Rc<Notify>,
    /// The instance goes on elsewhere: its watches stay.
    handed_on: Cell<bool>,
}

struct Instance {
    watch: Rc<AsyncFd<Watch>>,
    _task: OwnedTask,
}

/// The alarm of one container; switched off when dropped.
pub(crate) enum Alarm {
    /// Version 1.
    Eventfd {
        /// Registered with the kernel.
        fd: Rc<AsyncFd<OwnedFd>>,
        /// Waits for it.
        _task: OwnedTask,
    },
    /// Version 2.
    Watch {
        /// In the shared instance.
        descriptor: WatchDescriptor,
        /// Which has the instance.
        alarms: Alarms,
    },
}

/// An [`Alarm`] written down.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FrozenAlarm {
    /// The eventfd's name.
    Eventfd(String),
    /// In the shared instance; found again by the path.
    Watch,
}

impl Alarms {
    /// Switches an alarm on. It takes a few system calls, none of which waits for the kernel's cgroup locks. Must be called
    /// within a Tokio `LocalSet`.
    ///
    /// # Errors
    /// `NotFound` without a memory controller. As `eventfd(2)` and `write(2)`; as `inotify_init1(2)` (`EMFILE`: the user has
    /// no instance left) and `inotify_add_watch(2)`.
    pub(crate) fn arm(&self, paths: &Paths, bell: Bell) -> io::Result<Alarm> {
        let file = file(paths).ok_or(io::ErrorKind::NotFound)?;
        if paths.unified().is_some() { self.watch(&file, bell) } else { Alarm::of_eventfd(register(&file)?, bell) }
    }

    fn watch(&self, file: &Path, bell: Bell) -> io::Result<Alarm> {
        let mut instance = self.0.instance.borrow_mut();
        if instance.is_none() {
            *instance = Some(self.listen(Watch(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?))?);
        }
        let added = instance.as_ref().map(|i| i.watch.get_ref().0.add_watch(file, AddWatchFlags::IN_MODIFY));
        drop(instance);
        let descriptor = match added.transpose() {
            Ok(Some(descriptor)) => descriptor,
            Ok(None) => return Err(io::ErrorKind::NotFound.into()),
            Err(e) => {
                self.0.end_if_unused();
                return Err(e.into());
            }
        };
        self.0.bells.borrow_mut().insert(descriptor.as_raw(), bell);
        Ok(Alarm::Watch { descriptor, alarms: self.clone() })
    }

    fn listen(&self, watch: Watch) -> io::Result<Instance> {
        let watch = Rc::new(ready::register(watch, Interest::READABLE)?);
        let task = OwnedTask::spawn(listen(Rc::downgrade(&self.0), watch.clone(), self.0.read_ahead.clone()));
        Ok(Instance { watch, _task: task })
    }

    /// Copies the shared instance into `bag`, if there is one.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub(crate) fn freeze(&self, bag: &mut FdBag) -> io::Result<Option<String>> {
        let instance = self.0.instance.borrow();
        instance.as_ref().map(|i| bag.put("oom.inotify".to_owned(), &*i.watch)).transpose()
    }

    /// To be called before what was frozen is dropped: what was handed on keeps its watches.
    pub(crate) fn hand_on(&self) {
        self.0.handed_on.set(true);
    }

    /// Goes on where [`Alarms::freeze`] stopped.
    ///
    /// # Errors
    /// `NotFound` for an fd that is not in the bag; as `epoll_ctl(2)`.
    pub(crate) fn thaw(frozen: Option<String>, bag: &mut FdBag) -> io::Result<Self> {
        let alarms = Self::default();
        if let Some(name) = frozen {
            let instance = alarms.listen(bag.take(&name)?.into())?;
            *alarms.0.instance.borrow_mut() = Some(instance);
        }
        Ok(alarms)
    }

    /// Goes on where [`Alarm::freeze`] stopped.
    ///
    /// # Errors
    /// As [`Alarms::thaw`] and [`Alarms::arm`].
    pub(crate) fn thaw_alarm(
        &self,
        frozen: FrozenAlarm,
        paths: &Paths,
        bag: &mut FdBag,
        bell: Bell,
    ) -> io::Result<Alarm> {
        match frozen {
            FrozenAlarm::Eventfd(name) => Alarm::of_eventfd(bag.take(&name)?, bell),
            // The same instance gives the same descriptor for the same file: what it has noticed meanwhile is heard.
            FrozenAlarm::Watch => self.arm(paths, bell),
        }
    }
}

impl Shared {
    fn end_if_unused(&self) {
        if self.bells.borrow().is_empty() {
            *self.instance.borrow_mut() = None;
        }
    }

    /// Takes from the kernel what it has noticed; that is everything if it could not keep count.
    fn read(&self, watch: &AsyncFd<Watch>) {
        let bells = self.bells.borrow();
        let mut noticed = self.noticed.borrow_mut();
        while let Ok(events) = watch.get_ref().0.read_events() {
            for event in events {
                match event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    true => noticed.extend(bells.keys()),
                    false => drop(noticed.insert(event.wd.as_raw())),
                }
            }
        }
        noticed.retain(|descriptor| bells.contains_key(descriptor));
    }

    /// The bells that are to ring.
    fn take_noticed(&self) -> Vec<Bell> {
        let bells = self.bells.borrow();
        let noticed = std::mem::take(&mut *self.noticed.borrow_mut());
        noticed.iter().filter_map(|descriptor| bells.get(descriptor).cloned()).collect()
    }

    /// Whether a descriptor was noticed and its bell did not ring; now it is not to.
    fn has_noticed(&self, descriptor: WatchDescriptor) -> bool {
        if let Some(instance) = &*self.instance.borrow() {
            self.read(&instance.watch);
        }
        let found = self.noticed.borrow_mut().remove(&descriptor.as_raw());
        self.read_ahead.notify_one();
        found
    }
}

async fn listen(shared: Weak<Shared>, watch: Rc<AsyncFd<Watch>>, read_ahead: Rc<Notify>) {
    loop {
        // In any order; both may be dropped, since what was noticed stays in the kernel or in the set.
        let ready = tokio::select! {
            ready = watch.readable() => Some(ready),
            () = read_ahead.notified() => None,
        };
        let Some(shared) = shared.upgrade() else { return };
        match ready {
            Some(Ok(mut ready)) => {
                shared.read(&watch);
                ready.clear_ready();
            }
            Some(Err(_)) => return,
            None => {}
        }
        let noticed = shared.take_noticed();
        drop(shared);
        for bell in noticed {
            bell();
        }
        tokio::time::sleep(REST).await;
    }
}

impl Alarm {
    fn of_eventfd(fd: OwnedFd, bell: Bell) -> io::Result<Self> {
        let fd = Rc::new(ready::register(fd, Interest::READABLE)?);
        let task = OwnedTask::spawn(wait_for_ring(fd.clone(), bell));
        Ok(Self::Eventfd { fd, _task: task })
    }

    /// Switches it off, and says whether it was about to ring.
    pub(crate) fn disarm(self) -> bool {
        match &self {
            Self::Eventfd { fd, .. } => take_ring(fd.get_ref()),
            Self::Watch { descriptor, alarms } => alarms.0.has_noticed(*descriptor),
        }
    }

    /// Writes it down.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub(crate) fn freeze(&self, name: String, bag: &mut FdBag) -> io::Result<FrozenAlarm> {
        match self {
            Self::Eventfd { fd, .. } => bag.put(name, fd.get_ref()).map(FrozenAlarm::Eventfd),
            Self::Watch { .. } => Ok(FrozenAlarm::Watch),
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let Self::Watch { descriptor, alarms } = self else { return };
        alarms.0.bells.borrow_mut().remove(&descriptor.as_raw());
        if !alarms.0.handed_on.get()
            && let Some(instance) = &*alarms.0.instance.borrow()
        {
            // The kernel has removed it already if the cgroup is gone.
            let _ = instance.watch.get_ref().0.rm_watch(*descriptor);
        }
        alarms.0.end_if_unused();
    }
}

/// An eventfd that rings for `memory.oom_control`.
fn register(oom_control: &Path) -> io::Result<OwnedFd> {
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let control = File::open(oom_control)?;
    let line = format!("{} {}", eventfd.as_raw_fd(), control.as_raw_fd());
    std::fs::write(oom_control.with_file_name("cgroup.event_control"), line)?;
    Ok(eventfd.into())
}

async fn wait_for_ring(fd: Rc<AsyncFd<OwnedFd>>, bell: Bell) {
    loop {
        let Ok(mut ready) = fd.readable().await else { return };
        let rung = take_ring(fd.get_ref());
        ready.clear_ready();
        if rung {
            bell();
        }
    }
}

/// Whether it had rung.
fn take_ring(eventfd: &OwnedFd) -> bool {
    nix::unistd::read(eventfd, &mut [0; size_of::<u64>()]).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::fd::AsFd;

    use super::*;

    /// A directory with the file that counts in it. inotify takes any file for it, an eventfd needs the kernel.
    struct Recorded(PathBuf);

    impl Recorded {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("holdfast-oom-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir(&dir).unwrap();
            let this = Self(dir);
            this.set(0, 0);
            this
        }

        fn set(&self, max: u64, kills: u64) {
            let text = format!("low 0\nhigh 0\nmax {max}\noom 0\noom_kill {kills}\noom_group_kill 0\n");
            fs::write(self.0.join("memory.events"), text).unwrap();
        }

        fn paths(&self) -> Paths {
            Paths { layout: Layout::V2(self.0.clone()), shared: false, new: false }
        }

        fn kills(&self) -> Option<u64> {
            Counter::open(&self.paths()).unwrap().read().unwrap().kills
        }
    }

    impl Drop for Recorded {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Runs as the shim's loop does.
    fn in_a_loop(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    /// A bell, and how often it rang.
    fn bell() -> (Bell, Rc<Cell<usize>>) {
        let rung = Rc::new(Cell::new(0));
        let count = rung.clone();
        (Rc::new(move || count.set(count.get() + 1)), rung)
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        let waits = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waits).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    impl Alarms {
        fn has_instance(&self) -> bool {
            self.0.instance.borrow().is_some()
        }
    }

    #[test]
    fn a_cgroup_that_is_gone_and_one_without_the_controller_are_told_apart() {
        let recorded = Recorded::new("without");
        fs::remove_file(recorded.0.join("memory.events")).unwrap();
        assert!(
            matches!(Counter::open(&recorded.paths()), Err(CgroupError::WithoutMemory(group)) if group == recorded.0)
        );
        fs::remove_dir(&recorded.0).unwrap();
        assert!(matches!(Counter::open(&recorded.paths()), Err(CgroupError::Gone(_))));
    }

    #[test]
    fn kills_are_read_from_what_each_kernel_writes() {
        let old = Counts::of_version_one("oom_kill_disable 0\nunder_oom 0\n");
        assert_eq!((old.kills, old.stuck), (None, false));
        let stuck = Counts::of_version_one("oom_kill_disable 1\nunder_oom 1\noom_kill 4\n");
        assert_eq!((stuck.kills, stuck.stuck), (Some(4), true));
        assert!(
            !Counts::of_version_one("oom_kill_disable 0\nunder_oom 1\noom_kill 4\n").stuck,
            "the kill is on its way"
        );
        let two = |text: &str| Counts::of_version_two(text.to_owned()).kills;
        assert_eq!(two("low 0\nhigh 0\nmax 9\noom 7\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(two("low 0\nhigh 0\nmax 9\noom 7\n"), Some(7), "before Linux 4.13");
        assert_eq!(two(""), None);
    }

    fn with_kills(kills: u64) -> Counts {
        Counts { kills: Some(kills), ..Counts::default() }
    }

    #[test]
    fn one_increase_is_told_once() {
        let mut tally = Tally::from(&with_kills(3));
        let told: Vec<bool> = [3, 4, 4, 9, 8, 9, 10].map(|kills| tally.count(&with_kills(kills))).into();
        assert_eq!(told, [false, true, false, true, false, false, true]);
    }

    #[test]
    fn of_a_cgroup_that_is_gone_the_one_above_tells() {
        let above = |n| Counts { above: n, ..with_kills(0) };
        let mut tally = Tally::from(&above(Some(5)));
        assert!(!tally.count(&above(Some(6))), "a neighbour's, as its own count says");
        assert!(!tally.count_above(Some(6)));
        assert!(tally.count_above(Some(7)));
        assert!(!tally.count_above(Some(7)) && !tally.count_above(None), "once");
        assert!(!Tally::from(&above(None)).count_above(Some(1)), "nothing to compare with");
        let events = with_one_more_kill("low 0\noom 1\noom_kill 0\noom_group_kill 0\n");
        assert_eq!(events, "low 0\noom 1\noom_kill 1\noom_group_kill 0\n");
    }

    #[test]
    fn a_ring_before_the_kill_stays_unexplained_until_it_is_counted() {
        let mut tally = Tally::default();
        tally.ring();
        assert!(!tally.count(&with_kills(0)) && tally.is_unexplained());
        assert!(tally.count(&with_kills(1)) && !tally.is_unexplained());
        tally.ring();
        tally.count(&with_kills(1));
        tally.give_up();
        assert!(!tally.is_unexplained(), "a neighbour was killed");
        tally.ring();
        tally.count(&Counts { events: Some(String::new()), ..with_kills(1) });
        assert!(!tally.is_unexplained(), "version 2 counts first");
    }

    #[test]
    fn where_kills_are_not_counted_or_not_done_the_alarm_says_it() {
        for counts in [Counts::default(), Counts { stuck: true, ..with_kills(0) }] {
            let mut tally = Tally::default();
            assert!(!tally.count(&counts));
            tally.ring();
            assert!(tally.count(&counts));
            assert!(!tally.count(&counts), "once");
        }
    }

    #[test]
    fn a_cgroup_without_a_memory_controller_has_no_alarm_and_no_counts() {
        let paths =
            Paths { layout: Layout::V1(vec![("pids".into(), "/nonexistent".into())]), shared: false, new: false };
        assert!(matches!(Counter::open(&paths), Err(CgroupError::Gone(_))));
        let refused = Alarms::default().arm(&paths, bell().0).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::NotFound);
        let recorded = Recorded::new("removed");
        let paths = recorded.paths();
        drop(recorded);
        assert!(matches!(Counter::open(&paths), Err(CgroupError::Gone(_))));
    }

    #[test]
    fn each_container_has_an_alarm_of_its_own_in_one_inotify_instance() {
        let (a, b) = (Recorded::new("a"), Recorded::new("b"));
        in_a_loop(async {
            let alarms = Alarms::default();
            let ((bell_a, rung_a), (bell_b, rung_b)) = (bell(), bell());
            assert!(!alarms.has_instance());
            let alarm_a = alarms.arm(&a.paths(), bell_a).unwrap();
            let instance = |alarms: &Alarms| alarms.0.instance.borrow().as_ref().map(|i| i.watch.as_raw_fd());
            let of_a = instance(&alarms);
            let alarm_b = alarms.arm(&b.paths(), bell_b).unwrap();
            assert!(of_a.is_some() && of_a == instance(&alarms));
            a.set(1, 0);
            until("a rings", || rung_a.get() > 0).await;
            assert_eq!((rung_b.get(), a.kills()), (0, Some(0)), "at its limit, and nobody was killed");
            b.set(0, 1);
            until("b rings", || rung_b.get() > 0).await;
            assert_eq!(b.kills(), Some(1));
            let heard = rung_a.get();
            a.set(2, 2);
            b.set(2, 2);
            assert!(alarm_a.disarm(), "it was about to ring");
            a.set(3, 3);
            let heard_b = rung_b.get();
            until("b rings again", || rung_b.get() > heard_b).await;
            assert_eq!(rung_a.get(), heard, "what is switched off is silent");
            drop(alarm_b);
            assert!(!alarms.has_instance(), "the instance goes with the last alarm");
        });
    }

    /// A container of the same id has the same file.
    #[test]
    fn trap_30_an_alarm_that_was_switched_off_can_be_had_again() {
        let recorded = Recorded::new("again");
        in_a_loop(async {
            let alarms = Alarms::default();
            for round in 1..=3 {
                let (bell, rung) = bell();
                let alarm = alarms.arm(&recorded.paths(), bell).unwrap();
                recorded.set(0, round);
                until("it rings", || rung.get() > 0).await;
                drop(alarm);
                assert!(alarms.0.bells.borrow().is_empty() && !alarms.has_instance());
            }
        });
    }

    #[test]
    fn what_is_noticed_while_frozen_is_heard_after_the_thaw() {
        let recorded = Recorded::new("frozen");
        in_a_loop(async {
            let mut bag = FdBag::default();
            let (alarms, (first, _)) = (Alarms::default(), bell());
            let alarm = alarms.arm(&recorded.paths(), first).unwrap();
            let frozen = (alarm.freeze("x".to_owned(), &mut bag).unwrap(), alarms.freeze(&mut bag).unwrap());
            alarms.hand_on();
            drop((alarm, alarms));
            recorded.set(0, 1);
            let alarms = Alarms::thaw(frozen.1, &mut bag).unwrap();
            let (second, rung) = bell();
            let _alarm = alarms.thaw_alarm(frozen.0, &recorded.paths(), &mut bag, second).unwrap();
            until("it rings", || rung.get() > 0).await;
        });
    }

    #[test]
    fn an_eventfd_that_rang_is_heard_also_when_it_is_switched_off_or_frozen() {
        in_a_loop(async {
            let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
            let kernel = fs::File::from(eventfd.as_fd().try_clone_to_owned().unwrap());
            let ring = || nix::unistd::write(&kernel, &1_u64.to_ne_bytes()).unwrap();
            let (first, rung) = bell();
            let alarm = Alarm::of_eventfd(eventfd.into(), first).unwrap();
            ring();
            until("it rings", || rung.get() == 1).await;
            let mut bag = FdBag::default();
            let frozen = alarm.freeze("x".to_owned(), &mut bag).unwrap();
            ring();
            assert_eq!(rung.get(), 1, "nobody has listened since");
            drop(alarm);
            let (second, rung) = bell();
            let paths = Paths { layout: Layout::V1(Vec::new()), shared: false, new: false };
            let alarm = Alarms::default().thaw_alarm(frozen, &paths, &mut bag, second).unwrap();
            assert!(alarm.disarm(), "it rang before the freeze");
            assert_eq!(rung.get(), 0);
        });
    }
}
