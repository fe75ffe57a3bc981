//! Output kept on disk for a reader who is not there.
//!
//! The relay gives each piece of work with a [`SpillFile`] to the thread for what may stall, waits for its end, and asks
//! for the [`Answer`]. There is one piece at a time; between two the file's state can be written down.

pub mod file;
pub mod tree;

pub use holdfast_proto::shim_settings as policy;

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use tokio::sync::Notify;

use self::file::{FrozenFile, Given, Place, SpillFile, Stored};
use self::policy::Policy;
use self::tree::Bound;
use crate::freeze::FdBag;
use crate::offload;
use crate::owned_task::OwnedTask;

/// How long to wait between two attempts after an error, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The gap that is left to a freeze that has found work under way.
const GAP: Duration = Duration::from_millis(5);

/// One stream's spill. Cheap to share; single-threaded.
#[derive(Clone)]
pub struct Spill(Rc<Shared>);

struct Shared {
    place: Place,
    /// Locked by the thread while it works. The loop locks it only when no work is under way.
    file: Arc<Mutex<SpillFile>>,
    busy: Cell<bool>,
    /// As of the end of the last piece of work.
    unread: Cell<u64>,
    empty: Cell<bool>,
    dropped: Cell<u64>,
    bound: Cell<Option<Bound>>,
    /// Why the last piece of work came to nothing; empty if it did not.
    error: RefCell<String>,
    answer: Cell<Answer>,
    idle: Notify,
    retry: Cell<Duration>,
    /// That it fails was said.
    reported: Cell<bool>,
    /// What was said of a bound since nothing was kept last.
    said: Cell<Said>,
    freeze_refused: Cell<bool>,
    work: RefCell<Option<OwnedTask>>,
}

/// What is kept of one stream, for those who look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What waits for a reader, in bytes, as of the last piece of work.
    pub bytes: u64,
    /// See [`policy::OutputSettings`].
    pub limit: u64,
    /// See [`policy::OutputSettings`].
    pub policy: Policy,
    /// Which bound is reached.
    pub bound: Option<Bound>,
    /// Dropped in the life of the stream, in bytes.
    pub dropped: u64,
    /// Why the last piece of work came to nothing; empty if it did not.
    pub error: String,
}

/// What was said in the log, so that nothing is said twice before all that is kept was read: other streams may make room
/// and take it again many times in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    /// The process waits.
    waits: bool,
    /// It goes on.
    goes_on: bool,
    /// The oldest lines are dropped.
    drops: bool,
}

/// What came of the last piece of work. Asked once; then it is [`Answer::Ready`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// Nothing stands in the way of another one.
    #[default]
    Ready,
    /// All that there was to keep is kept: so many bytes.
    Kept(u64),
    /// The source has ended.
    SourceEnded,
    /// A bound is reached: nothing more is taken before a reader has come.
    Full,
    /// The reader takes no more for now.
    Blocked,
    /// What is to be kept could not be: to be tried again after this time.
    NotKept(Duration),
    /// What is kept could not be read: to be tried again after this time.
    NotGiven(Duration),
    /// A freeze is to have its turn first, for this time.
    StandStill(Duration),
}

/// A spill file that is being removed: a disk can stall. Nobody need wait for it, for `delete` removes what is left.
pub struct Removal {
    place: Place,
    over: Rc<Cell<bool>>,
    _work: OwnedTask,
}

impl Removal {
    /// Begins it, or begins it again after a freeze.
    pub fn begin(place: Place) -> Self {
        let file = Arc::new(Mutex::new(SpillFile::new(place.clone())));
        Self::of(place, file)
    }

    fn of(place: Place, file: Arc<Mutex<SpillFile>>) -> Self {
        let over = Rc::new(Cell::new(false));
        let job = offload::run(move || lock(&file).remove());
        let work = OwnedTask::spawn({
            let (place, over) = (place.clone(), over.clone());
            async move {
                let failed = job.await.map_err(io::Error::other).and_then(|removed| removed).err();
                if let Some(error) = failed {
                    tracing::warn!(path = %place.path().display(), %error, "cannot remove what was kept, leaving it to be swept");
                }
                over.set(true);
            }
        });
        Self { place, over, _work: work }
    }

    /// What is removed.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether it has come to its end.
    pub fn is_over(&self) -> bool {
        self.over.get()
    }
}

/// A piece of work.
enum Work {
    Store,
    Absorb(OwnedFd),
    Deliver(OwnedFd),
}

impl Spill {
    /// For what nobody reads of one stream. Nothing is made before the first byte.
    pub fn new(place: Place) -> Self {
        Self::of(SpillFile::new(place))
    }

    fn of(file: SpillFile) -> Self {
        Self(Rc::new(Shared {
            place: file.place().clone(),
            unread: Cell::new(file.unread()),
            empty: Cell::new(file.is_empty()),
            dropped: Cell::new(file.dropped_ever()),
            bound: Cell::new(file.bound()),
            error: RefCell::default(),
            file: Arc::new(Mutex::new(file)),
            busy: Cell::new(false),
            answer: Cell::default(),
            idle: Notify::new(),
            retry: Cell::new(RETRY.0),
            reported: Cell::new(false),
            said: Cell::default(),
            freeze_refused: Cell::new(false),
            work: RefCell::new(None),
        }))
    }

    /// Whether a piece of work is under way. Until it has ended, nothing else may be asked for.
    pub fn is_busy(&self) -> bool {
        self.0.busy.get()
    }

    /// Returns once no work is under way. Safe to cancel.
    pub async fn idle(&self) {
        while self.is_busy() {
            self.0.idle.notified().await;
        }
    }

    /// Whether a reader is to get nothing from here before what comes live.
    pub fn is_empty(&self) -> bool {
        !self.is_busy() && self.0.empty.get()
    }

    /// How many bytes wait for a reader, as of the last piece of work.
    pub fn unread(&self) -> u64 {
        self.0.unread.get()
    }

    /// See [`Kept`].
    pub fn kept(&self) -> Kept {
        let settings = self.0.place.settings();
        Kept {
            bytes: self.unread(),
            limit: settings.spill_limit,
            policy: settings.policy,
            bound: self.0.bound.get(),
            dropped: self.0.dropped.get(),
            error: self.0.error.borrow().clone(),
        }
    }

    /// See [`Answer`].
    pub fn answer(&self) -> Answer {
        match self.0.answer.take() {
            // First, so that no answer is lost by it.
            Answer::Ready if self.0.freeze_refused.take() => Answer::StandStill(GAP),
            answer => answer,
        }
    }

    /// Keeps bytes that were read already.
    pub fn store(&self, bytes: &[u8]) {
        {
            let mut file = lock(&self.0.file);
            file.offer(bytes);
            self.note(&file);
        }
        self.begin(Work::Store);
    }

    /// Keeps what is in the pipe `source`.
    pub fn absorb(&self, source: OwnedFd) {
        self.begin(Work::Absorb(source));
    }

    /// Whether bytes that [`Spill::store`] was given are still not on the disk: it is to be tried again.
    pub fn has_unstored(&self) -> bool {
        !self.is_busy() && lock(&self.0.file).has_incoming()
    }

    /// Gives what is kept to the reader of `fifo`.
    pub fn deliver(&self, fifo: OwnedFd) {
        self.begin(Work::Deliver(fifo));
    }

    fn begin(&self, work: Work) {
        self.0.busy.set(true);
        let keeps = !matches!(work, Work::Deliver(_));
        let file = self.0.file.clone();
        let job = offload::run(move || {
            let mut file = lock(&file);
            let done = work.perform(&mut file);
            if done.is_err() {
                // The next attempt is made in any case, and tells why.
                let _ = file.find_again();
            }
            done
        });
        let this = Rc::downgrade(&self.0);
        *self.0.work.borrow_mut() = Some(OwnedTask::spawn(async move {
            let done = job.await.unwrap_or_else(|e| Err(io::Error::other(e)));
            if let Some(shared) = this.upgrade() {
                Self(shared).ended(done, keeps);
            }
        }));
    }

    /// `keeps`: it was to keep something, not to give something.
    fn ended(&self, done: io::Result<Done>, keeps: bool) {
        match self.0.file.try_lock() {
            Ok(file) => self.note(&file),
            Err(TryLockError::Poisoned(file)) => self.note(&file.into_inner()),
            // It is being removed, which may take as long as the disk likes; nobody will ask for anything any more.
            Err(TryLockError::WouldBlock) => {}
        }
        self.report(&done);
        self.report_bound(&done, keeps);
        let answer = match done {
            Ok(Done::Answer(answer)) => answer,
            Ok(Done::Full(Bound::Limit)) => Answer::Full,
            // Room may come from elsewhere, unlike at the stream's own bound.
            Ok(Done::Full(Bound::Total | Bound::Floor)) => Answer::NotKept(self.next_retry()),
            Err(_) if keeps => Answer::NotKept(self.next_retry()),
            Err(_) => Answer::NotGiven(self.next_retry()),
        };
        if !matches!(answer, Answer::NotKept(_) | Answer::NotGiven(_)) {
            self.0.retry.set(RETRY.0);
        }
        self.0.answer.set(answer);
        self.0.busy.set(false);
        self.0.idle.notify_one();
    }

    fn next_retry(&self) -> Duration {
        let retry = self.0.retry.get();
        self.0.retry.set((retry * 2).min(RETRY.1));
        retry
    }

    /// Says once that something is wrong, and once that it is well again.
    fn report(&self, done: &io::Result<Done>) {
        let path = self.0.place.path();
        let (path, bytes) = (path.display(), self.unread());
        match done {
            Err(error) if !self.0.reported.replace(true) => {
                tracing::error!(%path, bytes, %error, "cannot use what is kept for an absent reader, trying again until it works");
            }
            Err(_) => {}
            Ok(_) if self.0.reported.take() => {
                tracing::info!(%path, "what is kept for an absent reader can be used again");
            }
            Ok(_) => {}
        }
        *self.0.error.borrow_mut() = done.as_ref().err().map(ToString::to_string).unwrap_or_default();
    }

    /// A reader has come before anything was kept, and has all that there was to keep: what was wrong matters no more.
    pub fn forget_trouble(&self) {
        if self.0.reported.get() && self.is_empty() {
            self.0.reported.set(false);
            self.0.error.borrow_mut().clear();
            let path = self.0.place.path();
            tracing::info!(path = %path.display(), "a reader has everything: nothing need be kept any more");
        }
    }

    fn report_bound(&self, done: &io::Result<Done>, keeps: bool) {
        let path = self.0.place.path();
        let (path, bytes, dropped, mut said) = (path.display(), self.unread(), self.0.dropped.get(), self.0.said.get());
        match (done, self.0.bound.get()) {
            (Ok(Done::Full(bound)), _) if !said.waits => {
                said.waits = true;
                tracing::warn!(%path, bytes, %bound, "no more may be kept, and nobody reads: the process waits");
            }
            (Ok(Done::Answer(_)), _) if said.waits && !said.goes_on && (keeps || self.0.empty.get()) => {
                said.goes_on = true;
                tracing::info!(%path, bytes, "there is room again: the process goes on");
            }
            (_, Some(bound)) if dropped > 0 && !said.drops => {
                said.drops = true;
                tracing::warn!(%path, bytes, dropped, %bound, "no more may be kept, and nobody reads: the oldest lines are dropped");
            }
            _ => {}
        }
        // At a bound of the machine nothing at all may be kept.
        if self.0.empty.get() && self.0.bound.get().is_none() {
            if said.drops {
                tracing::warn!(%path, dropped, "all that was kept is read; so many bytes of the stream were dropped in all");
            }
            said = Said::default();
        }
        self.0.said.set(said);
    }

    fn note(&self, file: &SpillFile) {
        self.0.unread.set(file.unread());
        self.0.empty.set(file.is_empty());
        self.0.dropped.set(file.dropped_ever());
        self.0.bound.set(file.bound());
    }

    /// Removes the file with whatever is in it, off the loop, after the work that is under way. None if there is none.
    pub fn remove(&self) -> Option<Removal> {
        if self.is_empty() {
            return None;
        }
        Some(Removal::of(self.0.place.clone(), self.0.file.clone()))
    }

    /// Writes it down; a copy of its fd goes into `bag`.
    ///
    /// # Errors
    /// `WouldBlock` while work is under way: try again a little later. Else as `dup(2)`.
    pub fn freeze(&self, name: &str, bag: &mut FdBag) -> io::Result<FrozenFile> {
        if self.is_busy() {
            self.0.freeze_refused.set(true);
            return Err(ErrorKind::WouldBlock.into());
        }
        lock(&self.0.file).freeze(name, bag)
    }

    /// Goes on where [`Spill::freeze`] stopped.
    ///
    /// # Errors
    /// As [`SpillFile::thaw`].
    pub fn thaw(frozen: FrozenFile, bag: &mut FdBag) -> io::Result<Self> {
        Ok(Self::of(SpillFile::thaw(frozen, bag)?))
    }
}

/// How a piece of work has ended.
enum Done {
    Answer(Answer),
    Full(Bound),
}

impl Work {
    fn perform(self, file: &mut SpillFile) -> io::Result<Done> {
        let stored = match self {
            Self::Store => file.store()?,
            Self::Absorb(source) => file.absorb(source)?,
            Self::Deliver(fifo) => {
                return Ok(Done::Answer(match file.deliver(fifo)? {
                    Given::Blocked => Answer::Blocked,
                    // The relay looks for the reader itself.
                    Given::Some | Given::NoReader | Given::All => Answer::Ready,
                }));
            }
        };
        Ok(match stored {
            Stored::Some(_) => Done::Answer(Answer::Ready),
            Stored::All(n) => Done::Answer(Answer::Kept(n)),
            Stored::Ended => Done::Answer(Answer::SourceEnded),
            Stored::Full(bound) => Done::Full(bound),
        })
    }
}

/// A panic of the thread leaves the file as far as it came, which is what a retry goes on from.
fn lock(file: &Mutex<SpillFile>) -> MutexGuard<'_, SpillFile> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}
