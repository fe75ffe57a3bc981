//! Brings what a process printed to its log, off the loop: a disk can stall, and so can the journal.
//!
//! The relays of a process put whole entries into one queue; the writer moves the queue into a batch and has the batch
//! written by the on-demand thread. A write that fails is tried again, forever, and never ends the relay.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::libc;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::log::{self, Journal, LogFile, Progress};
use super::stdio::LogTarget;
use crate::freeze::FdBag;
use crate::offload;
use crate::owned_task::OwnedTask;

/// How much may wait before the relays stop reading, in bytes.
const QUEUE_LIMIT: usize = 256 << 10;
/// The mode of directories that are made for a plain file.
const PLAIN_PARENTS: u32 = 0o755;
/// How long the room of a batch is kept for the next one, and what part of it that one must have needed at least: else what
/// a burst has needed would be kept for a line now and then.
const ROOM_KEPT: Duration = Duration::from_millis(100);
const ROOM_NEEDED: usize = 8;
/// How long to wait between two attempts to write.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What the thread works on. Its lock is held while it writes.
#[derive(Debug)]
struct Job {
    destination: Destination,
    /// What is being written; empty once it is written.
    batch: Vec<u8>,
    /// The last attempt to write it came to nothing.
    failed: bool,
    /// See [`Shared::held`].
    held: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Destination {
    Plain { path: PathBuf, file: File, written: usize },
    Files(LogFile),
    Journal(Journal),
}

/// The writer of one process's log.
pub struct LogWriter {
    shared: Rc<Shared>,
    _task: OwnedTask,
}

struct Shared {
    job: Arc<Mutex<Job>>,
    /// Written down by [`LogWriter::freeze`]: a write that was begun and comes late must leave the batch to the successor.
    /// Set under the lock; taken back without it, since a write that has the lock may be stuck.
    held: Arc<AtomicBool>,
    queue: RefCell<Vec<u8>>,
    /// A batch is not written yet.
    busy: Cell<bool>,
    /// The length of the last batch, in bytes.
    batch: Cell<usize>,
    /// It was said that writing does not work.
    reported: Cell<bool>,
    /// How often a reopening was asked for, how often one was tried, and why the last try failed.
    reopens: RefCell<Reopens>,
    work: Notify,
    room: Notify,
    tried: Notify,
    on_idle: Box<dyn Fn()>,
}

#[derive(Debug, Default)]
struct Reopens {
    asked: u64,
    tried: u64,
    failure: Option<(ErrorKind, String)>,
}

impl Reopens {
    /// What became of the reopening with that number; none: it is still to come.
    fn outcome(&self, number: u64) -> Option<io::Result<()>> {
        let failure = self.failure.clone().map_or(Ok(()), |(kind, text)| Err(io::Error::new(kind, text)));
        (self.tried >= number).then_some(failure)
    }
}

/// A [`LogWriter`] written down.
#[derive(Serialize, Deserialize)]
pub struct FrozenWriter {
    /// Of a file.
    fd: Option<String>,
    progress: FrozenProgress,
    batch: Vec<u8>,
    queue: Vec<u8>,
    #[serde(default)]
    reported: bool,
}

#[derive(Serialize, Deserialize)]
enum FrozenProgress {
    Plain(usize),
    Files(Progress),
    Journal(usize),
}

/// A log that is open, to be written by a [`LogWriter`].
#[derive(Debug)]
pub struct OpenLog(Destination);

impl OpenLog {
    /// Opens or makes the log; blocks on the disk. A plain file gets the mode 0644 and its parents 0755 (contract 6.6). That
    /// there is no journal now is no error: what is written waits for it.
    ///
    /// # Errors
    /// As [`LogFile::open`], `mkdir(2)` and `open(2)`.
    pub fn open(target: &LogTarget) -> io::Result<Self> {
        let destination = match target {
            LogTarget::Plain(path) => {
                log::make_parents(path, PLAIN_PARENTS)?;
                Destination::Plain { path: path.clone(), file: open_plain(path)?, written: 0 }
            }
            LogTarget::Files(settings) => Destination::Files(LogFile::open(settings)?),
            LogTarget::Journal(settings) => Destination::Journal(Journal::new(settings)),
        };
        Ok(Self(destination))
    }
}

impl LogWriter {
    /// Writes to a log from now on.
    pub fn start(open: OpenLog, on_idle: Box<dyn Fn()>) -> Self {
        Self::run(Job::new(open.0, Vec::new()), Vec::new(), false, on_idle)
    }

    fn run(job: Job, queue: Vec<u8>, reported: bool, on_idle: Box<dyn Fn()>) -> Self {
        let busy = Cell::new(!job.batch.is_empty());
        let batch = Cell::new(job.batch.len());
        let shared = Rc::new(Shared {
            held: job.held.clone(),
            job: Arc::new(Mutex::new(job)),
            queue: RefCell::new(queue),
            busy,
            batch,
            reported: Cell::new(reported),
            reopens: RefCell::default(),
            work: Notify::new(),
            room: Notify::new(),
            tried: Notify::new(),
            on_idle,
        });
        Self { _task: OwnedTask::spawn(drive(shared.clone())), shared }
    }

    /// Adds to the queue.
    pub fn enqueue<T>(&self, fill: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let mut queue = self.shared.queue.borrow_mut();
        let before = queue.len();
        let done = fill(&mut queue);
        if queue.len() > before {
            self.shared.work.notify_one();
        } else if queue.is_empty() {
            // Room was made for what did not come.
            *queue = Vec::new();
        }
        done
    }

    /// Whether the relays should wait for [`LogWriter::room`].
    pub fn is_full(&self) -> bool {
        self.shared.queue.borrow().len() >= QUEUE_LIMIT
    }

    /// Whether all that was enqueued is written.
    pub fn is_idle(&self) -> bool {
        self.shared.is_idle()
    }

    /// How much is not known to be written, in bytes of entries.
    pub fn unwritten(&self) -> usize {
        let batch = if self.shared.busy.get() { self.shared.batch.get() } else { 0 };
        batch + self.shared.queue.borrow().len()
    }

    /// Returns once there is room again. Safe to cancel.
    pub async fn room(&self) {
        while self.is_full() {
            self.shared.room.notified().await;
        }
    }

    /// Closes the file and opens it again by its path; returns when nothing will be written into the old one any more. A
    /// journal has nothing to reopen. Safe to cancel and to repeat.
    ///
    /// # Errors
    /// As `open(2)`, with the old file still in use.
    pub async fn reopen(&self) -> io::Result<()> {
        let mine = {
            let mut reopens = self.shared.reopens.borrow_mut();
            reopens.asked += 1;
            reopens.asked
        };
        self.shared.work.notify_one();
        loop {
            // Before the look, so that a notification in between is not missed.
            let tried = self.shared.tried.notified();
            if let Some(outcome) = self.shared.reopens.borrow().outcome(mine) {
                return outcome;
            }
            tried.await;
        }
    }

    /// Writes the writer down. It writes no more then, until [`LogWriter::go_on`].
    ///
    /// # Errors
    /// `WouldBlock` while a write is under way: try again a little later. Else as `dup(2)`.
    pub fn freeze(&self, name: &str, bag: &mut FdBag) -> io::Result<FrozenWriter> {
        let job = self.shared.job.try_lock().map_err(|_| ErrorKind::WouldBlock)?;
        let (fd, progress) = match &job.destination {
            Destination::Plain { file, written, .. } => {
                (Some(bag.put(name.to_owned(), file)?), FrozenProgress::Plain(*written))
            }
            Destination::Files(file) => {
                let (fd, progress) = file.parts()?;
                (Some(bag.put_owned(name.to_owned(), fd)?), FrozenProgress::Files(progress))
            }
            Destination::Journal(journal) => (None, FrozenProgress::Journal(journal.sent())),
        };
        self.shared.held.store(true, Ordering::Relaxed);
        let (batch, queue) = (job.batch.clone(), self.shared.queue.borrow().clone());
        Ok(FrozenWriter { fd, progress, batch, queue, reported: self.shared.reported.get() })
    }

    /// Nothing came of the freeze. Never waits for the disk.
    pub fn go_on(&self) {
        self.shared.held.store(false, Ordering::Relaxed);
        self.shared.work.notify_one();
    }

    /// Goes on where [`LogWriter::freeze`] stopped. `target` is what was opened.
    ///
    /// # Errors
    /// As `fstat(2)`, `NotFound` for an fd that is not in the bag, and `InvalidData` for the state of another kind of log.
    pub fn thaw(frozen: FrozenWriter, target: &LogTarget, bag: &mut FdBag, on_idle: Box<dyn Fn()>) -> io::Result<Self> {
        let FrozenWriter { fd, progress, batch, queue, reported } = frozen;
        let fd = fd.map(|name| bag.take(&name)).transpose()?;
        let destination = match (target, progress, fd) {
            (LogTarget::Plain(path), FrozenProgress::Plain(written), Some(fd)) => {
                Destination::Plain { path: path.clone(), file: fd.into(), written }
            }
            (LogTarget::Files(settings), FrozenProgress::Files(progress), Some(fd)) => {
                Destination::Files(LogFile::resume(settings, fd, progress)?)
            }
            (LogTarget::Journal(settings), FrozenProgress::Journal(sent), None) => {
                Destination::Journal(Journal::new(settings).resume(sent))
            }
            _ => return Err(ErrorKind::InvalidData.into()),
        };
        Ok(Self::run(Job::new(destination, batch), queue, reported, on_idle))
    }
}

async fn drive(shared: Rc<Shared>) {
    let mut retry = RETRY.0;
    loop {
        shared.reopen().await;
        if !shared.busy.get() {
            if shared.queue.borrow().is_empty() {
                // The notification is not lost when the time is over first.
                if tokio::time::timeout(ROOM_KEPT, shared.work.notified()).await.is_err() {
                    shared.give_back_room();
                    shared.work.notified().await;
                }
                continue;
            }
            shared.begin_batch();
            shared.room.notify_waiters();
        }
        match shared.off_loop(Job::write).await {
            // Frozen before the thread came to it.
            Ok(false) => shared.work.notified().await,
            Ok(true) => {
                shared.busy.set(false);
                shared.report_recovery();
                retry = RETRY.0;
                if shared.queue.borrow().is_empty() {
                    (shared.on_idle)();
                }
            }
            Err(error) => {
                shared.report_failure(&error);
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY.1);
            }
        }
    }
}

impl Shared {
    fn is_idle(&self) -> bool {
        !self.busy.get() && self.queue.borrow().is_empty()
    }

    /// What was enqueued becomes the batch; its room, which is empty, is where the next is enqueued.
    fn begin_batch(&self) {
        let mut queue = self.queue.borrow_mut();
        self.batch.set(queue.len());
        self.busy.set(true);
        let mut job = lock(&self.job);
        std::mem::swap(&mut job.batch, &mut queue);
        if queue.capacity() > ROOM_NEEDED * job.batch.len() {
            *queue = Vec::new();
        }
    }

    /// Nothing is enqueued and all is written: a log that rests needs no room.
    fn give_back_room(&self) {
        if self.is_idle() {
            *self.queue.borrow_mut() = Vec::new();
            lock(&self.job).batch = Vec::new();
        }
    }

    /// Has the thread do something with the job.
    async fn off_loop<T: Send + 'static>(&self, act: fn(&mut Job) -> io::Result<T>) -> io::Result<T> {
        let job = self.job.clone();
        offload::run(move || act(&mut lock(&job))).await.unwrap_or_else(|e| Err(io::Error::other(e)))
    }

    /// Tries what was asked for.
    async fn reopen(&self) {
        let asked = self.reopens.borrow().asked;
        if self.reopens.borrow().tried == asked {
            return;
        }
        let failure = match self.off_loop(Job::reopen).await {
            // Inside a line that is only half in the file: after it.
            Ok(false) => return,
            Ok(true) => None,
            Err(e) => Some((e.kind(), e.to_string())),
        };
        let mut reopens = self.reopens.borrow_mut();
        (reopens.tried, reopens.failure) = (asked, failure);
        drop(reopens);
        self.tried.notify_waiters();
    }

    fn report_failure(&self, error: &io::Error) {
        if !self.reported.replace(true) {
            let log = lock(&self.job).destination.to_string();
            tracing::error!(log, %error, "cannot write the container's log, trying again until it works");
        }
    }

    fn report_recovery(&self) {
        if self.reported.replace(false) {
            let log = lock(&self.job).destination.to_string();
            tracing::info!(log, "the container's log is written again");
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain { path, .. } => path.display().fmt(f),
            Self::Files(file) => file.path().display().fmt(f),
            Self::Journal(journal) => write!(f, "journal at {}", journal.path().display()),
        }
    }
}

/// Without waiting: it may have become a FIFO meanwhile, or be a device.
fn open_plain(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o644).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// A panic of the thread leaves the job as far as it came, which is what a retry goes on from.
fn lock(job: &Mutex<Job>) -> MutexGuard<'_, Job> {
    job.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job {
    fn new(destination: Destination, batch: Vec<u8>) -> Self {
        Self { destination, batch, failed: false, held: Arc::default() }
    }

    /// Whether the batch is written now.
    fn write(&mut self) -> io::Result<bool> {
        if self.held.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let failed = std::mem::replace(&mut self.failed, true);
        match &mut self.destination {
            Destination::Plain { path, file, written } => {
                if log::is_lost(file, path, failed) {
                    *file = log::find_again(path, PLAIN_PARENTS, || open_plain(path))?;
                }
                while *written < self.batch.len() {
                    match file.write(&self.batch[*written..]) {
                        Ok(0) => return Err(ErrorKind::WriteZero.into()),
                        Ok(n) => *written += n,
                        Err(e) if e.kind() == ErrorKind::Interrupted => {}
                        Err(e) => return Err(e),
                    }
                }
                *written = 0;
            }
            Destination::Files(file) => {
                file.follow_name(&self.batch, failed)?;
                file.append(&self.batch)?;
            }
            Destination::Journal(journal) => journal.append(&self.batch)?,
        }
        self.failed = false;
        self.batch.clear();
        Ok(true)
    }

    /// Whether the old file is closed now; else that happens at the end of the line that is half in it. Of a frozen one
    /// nothing is opened: its successor is asked again.
    fn reopen(&mut self) -> io::Result<bool> {
        if self.held.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match &mut self.destination {
            Destination::Plain { path, file, .. } => {
                *file = open_plain(path)?;
                Ok(true)
            }
            Destination::Files(file) => file.reopen(),
            Destination::Journal(_) => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::Future;
    use std::sync::mpsc;

    use tokio::task::{LocalSet, yield_now};

    use super::*;

    fn on_a_loop(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("holdfast-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    async fn written(writer: &LogWriter) {
        let idle = async {
            while !writer.is_idle() {
                yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), idle).await.expect("what was enqueued is written");
    }

    /// A batch that was given to the thread, which is kept from it until the sender is dropped.
    async fn with_a_batch_on_its_way(path: &Path) -> (LogWriter, mpsc::Sender<()>) {
        let (release, gate) = mpsc::channel();
        drop(offload::run(move || gate.recv()));
        let open = OpenLog::open(&LogTarget::Plain(path.to_owned())).unwrap();
        let writer = LogWriter::start(open, Box::new(|| ()));
        writer.enqueue(|queue| queue.extend_from_slice(b"once\n"));
        while !writer.shared.busy.get() {
            yield_now().await;
        }
        (writer, release)
    }

    #[test]
    fn a_write_that_comes_after_a_freeze_leaves_the_batch_to_the_successor() {
        on_a_loop(async {
            let path = path("late-write");
            let (writer, release) = with_a_batch_on_its_way(&path).await;
            let mut bag = FdBag::default();
            let frozen = writer.freeze("log", &mut bag).unwrap();
            drop(writer);
            let successor =
                LogWriter::thaw(frozen, &LogTarget::Plain(path.clone()), &mut bag, Box::new(|| ())).unwrap();
            drop(release);
            written(&successor).await;
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "once\n");
            std::fs::remove_file(path).unwrap();
        });
    }

    #[test]
    fn a_freeze_that_came_to_nothing_loses_nothing() {
        on_a_loop(async {
            let path = path("no-freeze");
            let (writer, release) = with_a_batch_on_its_way(&path).await;
            writer.freeze("log", &mut FdBag::default()).unwrap();
            drop(release);
            // The write comes and is sent away.
            let (seen, look) = tokio::sync::oneshot::channel();
            drop(offload::run(move || seen.send(())));
            look.await.unwrap();
            assert!(!writer.is_idle());
            writer.go_on();
            written(&writer).await;
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "once\n");
            std::fs::remove_file(path).unwrap();
        });
    }

    #[test]
    fn a_freeze_that_a_stuck_disk_refuses_does_not_wait_for_it() {
        on_a_loop(async {
            let path = path("stuck");
            let open = OpenLog::open(&LogTarget::Plain(path.clone())).unwrap();
            let writer = LogWriter::start(open, Box::new(|| ()));
            let (job, (begin, begun), (release, gate)) = (writer.shared.job.clone(), mpsc::channel(), mpsc::channel());
            let stuck = std::thread::spawn(move || {
                let _writes = lock(&job);
                begin.send(()).unwrap();
                gate.recv_timeout(Duration::from_secs(10)) == Err(mpsc::RecvTimeoutError::Timeout)
            });
            begun.recv().unwrap();
            let refused = writer.freeze("log", &mut FdBag::default()).err().unwrap();
            assert_eq!(refused.kind(), ErrorKind::WouldBlock);
            writer.go_on();
            drop::<mpsc::Sender<()>>(release);
            assert!(!stuck.join().unwrap(), "it was waited for");
            std::fs::remove_file(path).unwrap();
        });
    }

    #[test]
    fn the_room_that_a_burst_needed_is_not_kept_for_lines_that_come_now_and_then() {
        on_a_loop(async {
            let path = path("chatty");
            let writer = LogWriter::start(OpenLog::open(&LogTarget::Plain(path.clone())).unwrap(), Box::new(|| ()));
            for size in [300 << 10, 300 << 10, 10, 10, 10] {
                writer.enqueue(|queue| queue.resize(queue.len() + size, b'x'));
                written(&writer).await;
            }
            let room = writer.shared.queue.borrow().capacity() + lock(&writer.shared.job).batch.capacity();
            assert!(room < 1000, "{room}");
            // Nor is what was made for bytes that did not come.
            writer.enqueue(|queue| queue.reserve(64 << 10));
            assert_eq!(writer.shared.queue.borrow().capacity(), 0);
            std::fs::remove_file(path).unwrap();
        });
    }

    #[test]
    fn a_log_that_rests_keeps_no_room() {
        on_a_loop(async {
            let path = path("room");
            let writer = LogWriter::start(OpenLog::open(&LogTarget::Plain(path.clone())).unwrap(), Box::new(|| ()));
            let room = || (writer.shared.queue.borrow().capacity(), lock(&writer.shared.job).batch.capacity());
            for _ in 0..3 {
                writer.enqueue(|queue| queue.resize(queue.len() + (100 << 10), b'x'));
                written(&writer).await;
            }
            assert!(room().1 > 0, "it is kept for a moment");
            let given_back = async {
                while room() != (0, 0) {
                    yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), given_back).await.expect("the room is given back");
            writer.enqueue(|queue| queue.extend_from_slice(b"more"));
            written(&writer).await;
            assert_eq!(std::fs::metadata(&path).unwrap().len(), (300 << 10) + 4);
            std::fs::remove_file(path).unwrap();
        });
    }
}
