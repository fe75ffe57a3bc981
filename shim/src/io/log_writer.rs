//! Brings what a process printed to a regular file, off the loop: a disk can stall.
//!
//! The relays of a process put whole entries into one queue; the writer moves the queue into a batch and has the batch
//! written by the on-demand thread. A write that fails is tried again, forever, and never ends the relay.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::log::{LogFile, Progress};
use super::stdio::LogSettings;
use crate::freeze::FdBag;
use crate::owned_task::OwnedTask;

/// How much may wait before the relays stop reading, in bytes.
const QUEUE_LIMIT: usize = 256 << 10;
/// How long to wait between two attempts to write.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What the thread works on. Its lock is held while it writes.
#[derive(Debug)]
struct Job {
    destination: Destination,
    /// What is being written; empty once it is written.
    batch: Vec<u8>,
    /// Written down by [`LogWriter::freeze`]: a write that was begun and comes late must leave the batch to the successor.
    held: bool,
}

#[derive(Debug)]
enum Destination {
    Json(LogFile),
    Raw { path: PathBuf, file: File, written: usize },
}

/// The writer of one process's log.
pub struct LogWriter {
    shared: Rc<Shared>,
    _task: OwnedTask,
}

struct Shared {
    job: Arc<Mutex<Job>>,
    queue: RefCell<Vec<u8>>,
    /// A batch is not written yet.
    busy: Cell<bool>,
    work: Notify,
    room: Notify,
    on_idle: Box<dyn Fn()>,
}

/// A [`LogWriter`] written down.
#[derive(Serialize, Deserialize)]
pub struct FrozenWriter {
    fd: String,
    destination: FrozenDestination,
    batch: Vec<u8>,
    queue: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
enum FrozenDestination {
    Json { settings: LogSettings, progress: Progress },
    Raw { path: PathBuf, written: usize },
}

impl LogWriter {
    /// Opens or makes a log in Docker's json-file format.
    ///
    /// # Errors
    /// As [`LogFile::open`].
    pub fn json_file(settings: &LogSettings, on_idle: Box<dyn Fn()>) -> io::Result<Self> {
        let file = LogFile::open(&settings.path, settings.max_size, settings.max_files)?;
        Ok(Self::run(Job::new(Destination::Json(file), Vec::new()), Vec::new(), on_idle))
    }

    /// Opens or makes a file to be appended to, mode 0644, its parents 0755 (contract 6.6).
    ///
    /// # Errors
    /// As `mkdir(2)` and `open(2)`.
    pub fn raw(path: &Path, on_idle: Box<dyn Fn()>) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o644).open(path)?;
        let destination = Destination::Raw { path: path.to_owned(), file, written: 0 };
        Ok(Self::run(Job::new(destination, Vec::new()), Vec::new(), on_idle))
    }

    fn run(job: Job, queue: Vec<u8>, on_idle: Box<dyn Fn()>) -> Self {
        let busy = Cell::new(!job.batch.is_empty());
        let shared = Rc::new(Shared {
            job: Arc::new(Mutex::new(job)),
            queue: RefCell::new(queue),
            busy,
            work: Notify::new(),
            room: Notify::new(),
            on_idle,
        });
        Self { _task: OwnedTask::spawn(drive(shared.clone())), shared }
    }

    /// Adds to the queue.
    pub fn enqueue(&self, fill: impl FnOnce(&mut Vec<u8>)) {
        fill(&mut self.shared.queue.borrow_mut());
        self.shared.work.notify_one();
    }

    /// Whether the relays should wait for [`LogWriter::room`].
    pub fn is_full(&self) -> bool {
        self.shared.queue.borrow().len() >= QUEUE_LIMIT
    }

    /// Whether all that was enqueued is written.
    pub fn is_idle(&self) -> bool {
        !self.shared.busy.get() && self.shared.queue.borrow().is_empty()
    }

    /// Returns once there is room again. Safe to cancel.
    pub async fn room(&self) {
        while self.is_full() {
            self.shared.room.notified().await;
        }
    }

    /// Closes and opens the file again by its path, once nothing is half-written.
    ///
    /// # Errors
    /// `WouldBlock` while a write is under way; else as `open(2)`, with the old file still in use.
    pub fn reopen(&self) -> io::Result<()> {
        match &mut self.try_lock()?.destination {
            Destination::Json(file) => file.reopen(),
            Destination::Raw { path, file, .. } => {
                *file = OpenOptions::new().append(true).create(true).mode(0o644).open(path)?;
                Ok(())
            }
        }
    }

    /// Writes the writer down. It writes no more then, until [`LogWriter::go_on`].
    ///
    /// # Errors
    /// `WouldBlock` while a write is under way: try again a little later. Else as `dup(2)`.
    pub fn freeze(&self, settings: Option<&LogSettings>, name: &str, bag: &mut FdBag) -> io::Result<FrozenWriter> {
        let mut job = self.try_lock()?;
        let (fd, destination) = match (&job.destination, settings) {
            (Destination::Json(file), Some(settings)) => {
                let (fd, progress) = file.parts()?;
                (bag.put_owned(name.to_owned(), fd)?, FrozenDestination::Json { settings: settings.clone(), progress })
            }
            (Destination::Json(_), None) => return Err(ErrorKind::InvalidInput.into()),
            (Destination::Raw { path, file, written }, _) => {
                let frozen = FrozenDestination::Raw { path: path.clone(), written: *written };
                (bag.put(name.to_owned(), file)?, frozen)
            }
        };
        job.held = true;
        Ok(FrozenWriter { fd, destination, batch: job.batch.clone(), queue: self.shared.queue.borrow().clone() })
    }

    /// Nothing came of the freeze.
    pub fn go_on(&self) {
        lock(&self.shared.job).held = false;
        self.shared.work.notify_one();
    }

    /// Goes on where [`LogWriter::freeze`] stopped.
    ///
    /// # Errors
    /// As `fstat(2)`, and `NotFound` for an fd that is not in the bag.
    pub fn thaw(frozen: FrozenWriter, bag: &mut FdBag, on_idle: Box<dyn Fn()>) -> io::Result<Self> {
        let fd = bag.take(&frozen.fd)?;
        let destination = match frozen.destination {
            FrozenDestination::Json { settings, progress } => {
                Destination::Json(LogFile::resume(&settings.path, fd, settings.max_size, settings.max_files, progress)?)
            }
            FrozenDestination::Raw { path, written } => Destination::Raw { path, file: fd.into(), written },
        };
        Ok(Self::run(Job::new(destination, frozen.batch), frozen.queue, on_idle))
    }

    fn try_lock(&self) -> io::Result<MutexGuard<'_, Job>> {
        self.shared.job.try_lock().map_err(|_| ErrorKind::WouldBlock.into())
    }
}

async fn drive(shared: Rc<Shared>) {
    let mut retry = RETRY.0;
    let mut reported = false;
    loop {
        if !shared.busy.get() {
            let queue = std::mem::take(&mut *shared.queue.borrow_mut());
            if queue.is_empty() {
                shared.work.notified().await;
                continue;
            }
            lock(&shared.job).batch = queue;
            shared.busy.set(true);
            shared.room.notify_waiters();
        }
        let job = shared.job.clone();
        let outcome = tokio::task::spawn_blocking(move || lock(&job).write()).await;
        match outcome {
            // Frozen before the thread came to it.
            Ok(Ok(false)) => shared.work.notified().await,
            Ok(Ok(true)) => {
                shared.busy.set(false);
                (retry, reported) = (RETRY.0, false);
                if shared.queue.borrow().is_empty() {
                    (shared.on_idle)();
                }
            }
            failed => {
                if !std::mem::replace(&mut reported, true) {
                    let error =
                        failed.map_or_else(|e| e.to_string(), |r| r.map_or_else(|e| e.to_string(), |_| String::new()));
                    tracing::error!(error, "cannot write the container's log, trying again until it works");
                }
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY.1);
            }
        }
    }
}

/// A panic of the thread leaves the job as far as it came, which is what a retry goes on from.
fn lock(job: &Mutex<Job>) -> MutexGuard<'_, Job> {
    job.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job {
    fn new(destination: Destination, batch: Vec<u8>) -> Self {
        Self { destination, batch, held: false }
    }

    /// Whether the batch is written now.
    fn write(&mut self) -> io::Result<bool> {
        if self.held {
            return Ok(false);
        }
        match &mut self.destination {
            Destination::Json(file) => file.append(&self.batch)?,
            Destination::Raw { file, written, .. } => {
                while *written < self.batch.len() {
                    match file.write(&self.batch[*written..]) {
                        Ok(n) => *written += n,
                        Err(e) if e.kind() == ErrorKind::Interrupted => {}
                        Err(e) => return Err(e),
                    }
                }
                *written = 0;
            }
        }
        self.batch = Vec::new();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::Future;
    use std::sync::mpsc;

    use tokio::task::{LocalSet, spawn_blocking, yield_now};

    use super::*;

    /// With one thread, as in the shim, so that a test can keep it busy.
    fn with_one_thread(test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().max_blocking_threads(1).build().unwrap();
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
        drop(spawn_blocking(move || gate.recv()));
        let writer = LogWriter::raw(path, Box::new(|| ())).unwrap();
        writer.enqueue(|queue| queue.extend_from_slice(b"once\n"));
        while !writer.shared.busy.get() {
            yield_now().await;
        }
        (writer, release)
    }

    #[test]
    fn a_write_that_comes_after_a_freeze_leaves_the_batch_to_the_successor() {
        with_one_thread(async {
            let path = path("late-write");
            let (writer, release) = with_a_batch_on_its_way(&path).await;
            let mut bag = FdBag::default();
            let frozen = writer.freeze(None, "log", &mut bag).unwrap();
            drop(writer);
            let successor = LogWriter::thaw(frozen, &mut bag, Box::new(|| ())).unwrap();
            drop(release);
            written(&successor).await;
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "once\n");
            std::fs::remove_file(path).unwrap();
        });
    }

    #[test]
    fn a_freeze_that_came_to_nothing_loses_nothing() {
        with_one_thread(async {
            let path = path("no-freeze");
            let (writer, release) = with_a_batch_on_its_way(&path).await;
            writer.freeze(None, "log", &mut FdBag::default()).unwrap();
            drop(release);
            // The write comes and is sent away.
            let (seen, look) = tokio::sync::oneshot::channel();
            drop(spawn_blocking(move || seen.send(())));
            look.await.unwrap();
            assert!(!writer.is_idle());
            writer.go_on();
            written(&writer).await;
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "once\n");
            std::fs::remove_file(path).unwrap();
        });
    }
}
