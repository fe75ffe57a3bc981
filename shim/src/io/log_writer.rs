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

use super::log::LogFile;
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
    Json { settings: LogSettings, progress: (usize, bool) },
    Raw { path: PathBuf, written: usize },
}

impl LogWriter {
    /// Opens or makes a log in Docker's json-file format.
    ///
    /// # Errors
    /// As [`LogFile::open`].
    pub fn json_file(settings: &LogSettings, on_idle: Box<dyn Fn()>) -> io::Result<Self> {
        let file = LogFile::open(&settings.path, settings.max_size, settings.max_files)?;
        Ok(Self::run(Job { destination: Destination::Json(file), batch: Vec::new() }, Vec::new(), on_idle))
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
        Ok(Self::run(Job { destination, batch: Vec::new() }, Vec::new(), on_idle))
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

    /// Writes the writer down.
    ///
    /// # Errors
    /// `WouldBlock` while a write is under way: try again a little later. Else as `dup(2)`.
    pub fn freeze(&self, settings: Option<&LogSettings>, name: &str, bag: &mut FdBag) -> io::Result<FrozenWriter> {
        let job = self.try_lock()?;
        let (fd, destination) = match (&job.destination, settings) {
            (Destination::Json(file), Some(settings)) => {
                let (fd, progress) = file.parts()?;
                (bag.put_owned(name.to_owned(), fd), FrozenDestination::Json { settings: settings.clone(), progress })
            }
            (Destination::Json(_), None) => return Err(ErrorKind::InvalidInput.into()),
            (Destination::Raw { path, file, written }, _) => {
                let frozen = FrozenDestination::Raw { path: path.clone(), written: *written };
                (bag.put(name.to_owned(), file)?, frozen)
            }
        };
        Ok(FrozenWriter { fd, destination, batch: job.batch.clone(), queue: self.shared.queue.borrow().clone() })
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
        Ok(Self::run(Job { destination, batch: frozen.batch }, frozen.queue, on_idle))
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
            Ok(Ok(())) => {
                shared.busy.set(false);
                (retry, reported) = (RETRY.0, false);
                if shared.queue.borrow().is_empty() {
                    (shared.on_idle)();
                }
            }
            failed => {
                if !std::mem::replace(&mut reported, true) {
                    let error =
                        failed.map_or_else(|e| e.to_string(), |r| r.map_or_else(|e| e.to_string(), |()| String::new()));
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
    fn write(&mut self) -> io::Result<()> {
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
        Ok(())
    }
}
