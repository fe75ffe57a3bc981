//! What happens to files, told by one inotify instance for the whole shim.
//!
//! A user may have few instances (`fs.inotify.max_user_instances`, 128 by default), and a machine has more streams without
//! a reader than that. So all of a shim's share one. It is there as long as anything is watched, and a little longer.
//!
//! There is no state to freeze: whoever watches looks at the file itself after the watch was set, and so again after a thaw.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::NixPath;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::owned_task::OwnedTask;
use crate::sys::ready::{self, Watch};

/// How long the instance stays when nothing is watched any more. To close one whose watches were removed just now takes
/// the kernel 12 ms (it waits for a grace period), in which the shim would stand still; later it takes nothing.
const LINGER: Duration = Duration::from_secs(1);
/// After these the descriptor says nothing more about what is at the path.
const LAST: AddWatchFlags = AddWatchFlags::IN_IGNORED
    .union(AddWatchFlags::IN_UNMOUNT)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF);

thread_local! {
    static SHARED: RefCell<Option<(Rc<Instance>, OwnedTask)>> = const { RefCell::new(None) };
}

struct Instance {
    inotify: AsyncFd<Watch>,
    /// The kernel gives one descriptor for one file, however often it is watched.
    watched: RefCell<BTreeMap<i32, Vec<Rc<Signal>>>>,
    /// The last watch was removed.
    emptied: Notify,
}

/// What several watches of one owner tell.
#[derive(Default)]
pub(super) struct Signal {
    happened: Notify,
    over: Cell<bool>,
}

impl Signal {
    /// Returns when something has happened since it was last asked. Safe to cancel.
    pub(super) async fn event(&self) {
        self.happened.notified().await;
    }

    /// Whether something that was watched is no longer at its path, so that nothing more will be told of it.
    pub(super) fn take_over(&self) -> bool {
        self.over.take()
    }
}

/// A watch on one file or directory, until it is dropped.
pub(super) struct Watched {
    instance: Rc<Instance>,
    descriptor: WatchDescriptor,
    signal: Rc<Signal>,
}

impl Watched {
    /// Watches what is at `path` now, and tells `signal`. If others watch the same file, their events are reported too. Must
    /// be called within a Tokio `LocalSet`.
    ///
    /// # Errors
    /// As `inotify_init1(2)` (`EMFILE`: the user has no instance left) and `inotify_add_watch(2)`.
    pub(super) fn new<P: ?Sized + NixPath>(path: &P, events: AddWatchFlags, signal: &Rc<Signal>) -> io::Result<Self> {
        let instance = Instance::shared()?;
        // What others want to know of the same file stays.
        let events = events | AddWatchFlags::from_bits_retain(libc::IN_MASK_ADD);
        let descriptor = match instance.inotify.get_ref().0.add_watch(path, events) {
            Ok(descriptor) => descriptor,
            Err(e) => {
                instance.emptied.notify_one();
                return Err(e.into());
            }
        };
        instance.watched.borrow_mut().entry(descriptor.as_raw()).or_default().push(signal.clone());
        Ok(Self { instance, descriptor, signal: signal.clone() })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let raw = self.descriptor.as_raw();
        let mut watched = self.instance.watched.borrow_mut();
        let Some(signals) = watched.get_mut(&raw) else { return };
        // Its owner may be about to watch the same file anew.
        if let Some(own) = signals.iter().position(|signal| Rc::ptr_eq(signal, &self.signal)) {
            signals.swap_remove(own);
        }
        if signals.is_empty() {
            watched.remove(&raw);
            // It may have gone with its file.
            let _ = self.instance.inotify.get_ref().0.rm_watch(self.descriptor);
        }
        if watched.is_empty() {
            self.instance.emptied.notify_one();
        }
    }
}

impl Instance {
    fn shared() -> io::Result<Rc<Self>> {
        SHARED.with_borrow_mut(|shared| {
            if let Some((instance, _)) = shared {
                return Ok(instance.clone());
            }
            #[cfg(test)]
            if REFUSE.get() {
                return Err(nix::errno::Errno::EMFILE.into());
            }
            let inotify = Watch(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?);
            let inotify = ready::register(inotify, Interest::READABLE)?;
            let instance = Rc::new(Self { inotify, watched: RefCell::default(), emptied: Notify::new() });
            *shared = Some((instance.clone(), OwnedTask::spawn(listen(instance.clone()))));
            Ok(instance)
        })
    }

    fn is_unused(&self) -> bool {
        self.watched.borrow().is_empty()
    }

    fn tell(&self, event: &InotifyEvent) {
        let watched = self.watched.borrow();
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            // The kernel could not keep count: everything is to be looked at.
            watched.values().flatten().for_each(|signal| signal.happened.notify_one());
        }
        for signal in watched.get(&event.wd.as_raw()).into_iter().flatten() {
            signal.over.set(signal.over.get() || event.mask.intersects(LAST));
            signal.happened.notify_one();
        }
    }
}

/// However the listening ends, the next watch needs an instance that is listened to.
struct Ends;

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = SHARED.try_with(RefCell::take);
    }
}

async fn listen(instance: Rc<Instance>) {
    let _ends = Ends;
    loop {
        let unused = instance.is_unused();
        // In any order; all may be dropped, since what they wait for shows again.
        tokio::select! {
            ready = instance.inotify.readable() => {
                let Ok(mut ready) = ready else { break };
                while let Ok(events) = instance.inotify.get_ref().0.read_events() {
                    events.iter().for_each(|event| instance.tell(event));
                }
                ready.clear_ready();
            }
            () = instance.emptied.notified() => {}
            () = tokio::time::sleep(LINGER), if unused => {
                if instance.is_unused() {
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
thread_local! {
    /// Whether the kernel has no instance left for this thread.
    pub(super) static REFUSE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread has an instance.
#[cfg(test)]
pub(super) fn is_there() -> bool {
    SHARED.with_borrow(Option::is_some)
}
