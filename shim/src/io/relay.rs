//! From a container's pipe or terminal to whoever reads, and from whoever writes to the container.
//!
//! ```text
//!   source ──(splice, or one shared buffer)──> sink          FIFO, pipe, terminal, or the container's log
//!                        └──────────────────> attached readers
//! ```
//!
//! The states of a [`Flow`]:
//!
//! ```text
//!   streaming ──> reader absent         only towards a FIFO: what comes goes to the disk, up to a bound
//!       │  ^           │  ^
//!       │  │ all given │  │ it leaves again
//!       │  │           v  │
//!       │  └──── catching up            the reader gets what is in the FIFO, then what was kept; the source waits. When the
//!       │                               client has made another FIFO at the same path, what is in the old one goes first
//!       │ end of the source, nothing kept
//!       v
//!     tail                              the FIFO still holds bytes that nobody has read, or has no reader who sees the end
//!       │ read, or given up at Delete
//!       v
//!   finished                            the sink is closed: its reader sees the end
//! ```
//!
//! A client whose process is quick opens its FIFO, perhaps, when that has ended. Were ours closed by then, it would wait in
//! its open for good: so the end waits for a reader as the last bytes do, but nobody waits for the end to be seen.
//!
//! Towards a logger there is no tail: it holds its end of the pipe, so what is in there reaches it after we have closed
//! ours, and it sees the end at once. One that has died is an absent reader until the driver has started another; we keep a
//! read end of our own past the end, so that the other one finds what the first had left.
//!
//! The order in which bytes reach a reader is always: the FIFO, the spill, `pending`, the source. So what is pending when the
//! reader leaves goes into the spill before the source does. What is kept on the disk is read and written by the thread for
//! what may stall ([`Spill`]); the loop waits for the source, for that thread and for the reader.
//!
//! A *slow* reader slows the process, as it always did. All state is in `State`, none in the task that drives it: the
//! task can be dropped at any await and another can go on.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{read, write};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::fifo::{self, Absence};
use super::log::Lines;
use super::log_writer::LogWriter;
use super::pace::Pace;
use super::polled::Polled;
use super::spill::file::FrozenFile;
use super::spill::{Answer, Spill};
use crate::freeze::FdBag;
use crate::owned_task::OwnedTask;
use crate::sys::pipe;
use crate::sys::reaper::now_unix_ns;
use crate::sys::timer::Timer;

/// From this many waiting bytes on, moving pages beats copying them (design, section 5).
const BULK: usize = 16 << 10;
/// The most that one splice moves, so that others have their turn.
const MOST_PER_SPLICE: usize = 1 << 20;
/// The shared buffer, in bytes.
const BUFFER: usize = 64 << 10;
/// Steps between two looks at everything else that waits.
const STEPS_PER_TURN: usize = 16;
/// Below this many bytes at a time, what nobody reads is collected for a moment before it is kept: there is no hurry.
const FEW: u64 = 32 << 10;
const COLLECT: Duration = Duration::from_millis(5);
/// Until a lack of file descriptors may be over.
const SHORTAGE: Duration = Duration::from_secs(1);
/// How long to wait when no descriptor can be had for the next FIFO.
const RENEW_AGAIN: Duration = Duration::from_millis(100);

thread_local! {
    /// One for all flows: no await happens while it is borrowed.
    static SHARED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Frees the shared buffer; who needs one again makes it.
pub fn give_back_buffer() {
    SHARED.take();
}

type Fd = Rc<Polled>;

/// Which of a process's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Standard input.
    Stdin,
    /// Standard output; of a terminal all output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The word in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// What is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceKind {
    /// A pipe or FIFO: it ends when its last writer has gone.
    Pipe,
    /// The master of a terminal: it ends once the process was reaped and nothing is left to read.
    Terminal,
}

/// What is written to.
pub enum Sink {
    /// A client's FIFO.
    Fifo {
        /// Its write end.
        fd: OwnedFd,
        /// Where clients look for it.
        path: Option<PathBuf>,
        /// For what is printed while nobody reads.
        spill: Spill,
    },
    /// A pipe to a logger, which is no client: it neither comes nor goes by itself.
    Logger(OwnedFd),
    /// A pipe or terminal to the process. When the process has closed it, the flow ends.
    Process(OwnedFd),
    /// The container's log: lines, or raw bytes.
    Log {
        /// Shared by the streams of a process.
        writer: Rc<LogWriter>,
        /// None: raw.
        lines: Option<Lines>,
    },
}

enum OpenSink {
    Fifo { fd: Fd, spill: Spill },
    Logger(Fd),
    Process(Fd),
    Log { writer: Rc<LogWriter>, lines: Option<Lines> },
}

struct Attached {
    fd: Fd,
    sent: usize,
}

struct State {
    stream: Stream,
    kind: SourceKind,
    /// None once it has ended.
    source: Option<Fd>,
    /// None once finished.
    sink: Option<OpenSink>,
    /// Where clients look for the FIFO.
    path: Option<Rc<Path>>,
    /// Read ends of FIFOs that the client has replaced while something was unread in them. It comes before all else.
    left_behind: VecDeque<OwnedFd>,
    /// Finished with something unread in the pipe to the logger: a read end of it.
    remainder: Option<OwnedFd>,
    /// Read, and not yet written everywhere.
    pending: Vec<u8>,
    /// How much of `pending` the sink has.
    sent: usize,
    attached: Vec<Attached>,
    /// The process was reaped.
    process_over: bool,
    /// See [`Flow::hold`].
    held: bool,
    pace: Pace,
}

/// What the task waits for before the next step.
enum Next {
    Step,
    /// Something outside of the fds.
    Change,
    Pause(Duration),
    /// See [`Pace`].
    Rest(Rc<Timer>),
    Spill(Spill),
    Readable(Fd),
    Writable(Fd),
    Reader(Fd),
    Logger,
    Room(Rc<LogWriter>),
    Tail(Fd),
    Finished,
}

/// One direction of one stream, running until its end or its drop.
pub struct Flow {
    shared: Rc<Shared>,
    _task: OwnedTask,
}

struct Shared {
    state: RefCell<State>,
    /// Something outside the fds has changed: an attached reader, the process's end.
    changed: Notify,
    /// No reader is there to take what waits.
    unread: Cell<bool>,
    /// To be looked at whether there is one.
    look: Notify,
    on_end: Box<dyn Fn()>,
}

/// A [`Flow`] written down.
#[derive(Serialize, Deserialize)]
pub struct FrozenFlow {
    stream: Stream,
    kind: SourceKind,
    source: Option<String>,
    sink: Option<FrozenSink>,
    /// With a FIFO.
    #[serde(default)]
    spill: Option<FrozenFile>,
    #[serde(default)]
    path: Option<PathBuf>,
    #[serde(default)]
    left_behind: Vec<String>,
    #[serde(default)]
    remainder: Option<String>,
    pending: Vec<u8>,
    sent: usize,
    attached: Vec<(String, usize)>,
    process_over: bool,
    #[serde(default)]
    held: bool,
}

#[derive(Serialize, Deserialize)]
enum FrozenSink {
    Fifo(String),
    Process(String),
    Log {
        lines: Option<Lines>,
        /// Which of the process's logs.
        #[serde(default)]
        log: usize,
    },
    Logger(String),
}

impl Flow {
    /// Starts to relay. `on_end` is called once, when the flow has finished by itself.
    ///
    /// # Errors
    /// As `epoll_ctl(2)` and `fcntl(2)`.
    pub fn start(
        stream: Stream,
        source: OwnedFd,
        kind: SourceKind,
        sink: Sink,
        on_end: Box<dyn Fn()>,
    ) -> io::Result<Self> {
        let path = match &sink {
            Sink::Fifo { path, .. } => path.as_deref().map(Rc::from),
            _ => None,
        };
        let sink = match sink {
            Sink::Fifo { fd, spill, .. } => OpenSink::Fifo { fd: Polled::sink(fd)?, spill },
            Sink::Logger(fd) => OpenSink::Logger(Polled::sink(fd)?),
            Sink::Process(fd) => OpenSink::Process(Polled::sink(fd)?),
            Sink::Log { writer, lines } => OpenSink::Log { writer, lines },
        };
        Ok(Self::run(
            State {
                stream,
                kind,
                source: Some(Polled::source(source)?),
                sink: Some(sink),
                path,
                left_behind: VecDeque::new(),
                remainder: None,
                pending: Vec::new(),
                sent: 0,
                attached: Vec::new(),
                process_over: false,
                held: false,
                pace: Pace::default(),
            },
            on_end,
        ))
    }

    fn run(state: State, on_end: Box<dyn Fn()>) -> Self {
        let (state, changed, look) = (RefCell::new(state), Notify::new(), Notify::new());
        let shared = Rc::new(Shared { state, changed, unread: Cell::new(false), look, on_end });
        Self { _task: OwnedTask::spawn(drive(shared.clone())), shared }
    }

    /// Passes nothing on until [`Flow::let_go`]: as long as it is not clear whether what comes is the process's. For a flow
    /// that was started in the same turn.
    pub fn hold(&self) {
        self.shared.state.borrow_mut().held = true;
    }

    /// See [`Flow::hold`].
    pub fn let_go(&self) {
        self.shared.state.borrow_mut().held = false;
        self.shared.changed.notify_one();
    }

    /// Which stream it is.
    pub fn stream(&self) -> Stream {
        self.shared.state.borrow().stream
    }

    /// Whether there is nothing more to wait for: it has finished, or nobody is there to read what is left.
    pub fn is_drained(&self) -> bool {
        let state = self.shared.state.borrow();
        match &state.sink {
            None => true,
            Some(_) if state.waits_for_nobody() => true,
            // One has come, and the relay was not told yet: it looks now, and says if the reader has left again.
            Some(OpenSink::Fifo { fd, .. }) if self.shared.unread.get() && fifo::has_reader(fd.get_ref()) => {
                self.shared.look.notify_one();
                false
            }
            Some(_) => self.shared.unread.get(),
        }
    }

    /// Whether something waits for a reader who is not there.
    pub fn is_unread(&self) -> bool {
        self.shared.unread.get()
    }

    /// Whether all that was written into the source up to now has reached its reader, or there is none to reach.
    pub fn is_settled(&self) -> bool {
        let state = self.shared.state.borrow();
        let Some(sink) = &state.sink else { return true };
        let passed_on = state.has_passed_on();
        match sink {
            OpenSink::Fifo { fd, spill } => {
                !fifo::has_reader(fd.get_ref()) || (spill.is_empty() && passed_on && is_empty(fd))
            }
            OpenSink::Logger(fd) => passed_on || !fifo::has_reader(fd.get_ref()),
            OpenSink::Process(_) | OpenSink::Log { .. } => passed_on,
        }
    }

    /// Whether its source has ended.
    pub fn has_ended(&self) -> bool {
        self.shared.state.borrow().source.is_none()
    }

    /// How many bytes its reader has not taken, as far as is known: in FIFOs, kept, read and still to be read.
    pub fn left(&self) -> u64 {
        let state = self.shared.state.borrow();
        let waiting = |fd: &Fd| pipe::unread(fd.get_ref()).unwrap_or(0);
        let read = state.pending.len().saturating_sub(state.sent) + state.source.as_ref().map_or(0, waiting);
        let (kept, given) = match &state.sink {
            Some(OpenSink::Fifo { fd, spill }) => (spill.unread(), waiting(fd)),
            Some(OpenSink::Logger(fd)) => (0, waiting(fd)),
            _ => (0, 0),
        };
        let left_behind: usize = state.left_behind.iter().map(|fd| pipe::unread(fd).unwrap_or(0)).sum();
        kept + (left_behind + read + given) as u64
    }

    /// Whether it goes to a client who reads, and what is kept for him. None for a sink that needs no reader.
    pub fn reading(&self) -> Option<(bool, Spill)> {
        match &self.shared.state.borrow().sink {
            Some(OpenSink::Fifo { fd, spill }) => Some((fifo::has_reader(fd.get_ref()), spill.clone())),
            _ => None,
        }
    }

    /// What is kept of it, if anything.
    pub fn spill(&self) -> Option<Spill> {
        match &self.shared.state.borrow().sink {
            Some(OpenSink::Fifo { spill, .. }) => Some(spill.clone()),
            _ => None,
        }
    }

    /// A new read end of the pipe to a logger that has ended, with what is in there still in it. To be asked once the
    /// logger was reaped. None for any other sink, and if somebody reads still: it may have left its work to a child.
    pub fn orphaned_logger_pipe(&self) -> Option<io::Result<OwnedFd>> {
        let state = self.shared.state.borrow();
        match (&state.sink, &state.remainder) {
            (Some(OpenSink::Logger(fd)), _) if !fifo::has_reader(fd.get_ref()) => {
                Some(fifo::open_other_end(fd.get_ref()))
            }
            (None, Some(read_end)) if pipe::unread(read_end).is_ok_and(|n| n > 0) => Some(read_end.try_clone()),
            _ => None,
        }
    }

    /// The pipe to the logger has a reader again.
    pub fn logger_is_back(&self) {
        self.shared.unread.set(false);
        self.shared.state.borrow().renew_sink();
        self.shared.changed.notify_one();
    }

    /// Adds a reader: a copy of what is read from now on goes to it too.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub fn attach(&self, write_end: OwnedFd) -> io::Result<()> {
        let fd = Polled::sink(write_end)?;
        let mut state = self.shared.state.borrow_mut();
        // Else those of a process that prints nothing would gather: that one has left shows only when it is written to.
        state.attached.retain(|earlier| fifo::has_reader(earlier.fd.get_ref()));
        // What is pending was read before.
        let sent = state.pending.len();
        match state.attached.iter_mut().find(|earlier| fifo::is_same(earlier.fd.get_ref(), fd.get_ref())) {
            // Its reader asks once more, or another has come to the same FIFO: nothing is to come twice.
            Some(earlier) => earlier.fd = fd,
            None => state.attached.push(Attached { fd, sent }),
        }
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// The process was reaped: a terminal has no more to say than what is in it now.
    pub fn process_over(&self) {
        self.shared.state.borrow_mut().process_over = true;
        self.shared.changed.notify_one();
    }

    /// Writes the flow down; copies of its fds go into `bag`. `logs` are the process's.
    ///
    /// # Errors
    /// `WouldBlock` while the spill is at work: try again a little later. Else as `dup(2)`.
    pub fn freeze(&self, name: &str, logs: &[Rc<LogWriter>], bag: &mut FdBag) -> io::Result<FrozenFlow> {
        let state = self.shared.state.borrow();
        let source = state.source.as_ref().map(|fd| bag.put(format!("{name}.source"), fd.get_ref())).transpose()?;
        let mut kept = None;
        let sink = match &state.sink {
            None => None,
            Some(OpenSink::Fifo { fd, spill }) => {
                kept = Some(spill.freeze(&format!("{name}.spill"), bag)?);
                Some(FrozenSink::Fifo(bag.put(format!("{name}.sink"), fd.get_ref())?))
            }
            Some(OpenSink::Process(fd)) => Some(FrozenSink::Process(bag.put(format!("{name}.sink"), fd.get_ref())?)),
            Some(OpenSink::Logger(fd)) => Some(FrozenSink::Logger(bag.put(format!("{name}.sink"), fd.get_ref())?)),
            Some(OpenSink::Log { writer, lines }) => {
                let log = logs.iter().position(|log| Rc::ptr_eq(log, writer)).ok_or(ErrorKind::NotFound)?;
                Some(FrozenSink::Log { lines: lines.clone(), log })
            }
        };
        let attached = state.attached.iter().enumerate();
        let attached = attached
            .map(|(n, a)| Ok((bag.put(format!("{name}.attached{n}"), a.fd.get_ref())?, a.sent)))
            .collect::<io::Result<_>>()?;
        let left_behind = state.left_behind.iter().enumerate();
        let left_behind =
            left_behind.map(|(n, fd)| bag.put(format!("{name}.left{n}"), fd)).collect::<io::Result<_>>()?;
        let remainder = state.remainder.as_ref().map(|fd| bag.put(format!("{name}.rest"), fd)).transpose()?;
        Ok(FrozenFlow {
            stream: state.stream,
            kind: state.kind,
            source,
            sink,
            spill: kept,
            path: state.path.as_deref().map(Path::to_owned),
            left_behind,
            remainder,
            pending: state.pending.clone(),
            sent: state.sent,
            attached,
            process_over: state.process_over,
            held: state.held,
        })
    }

    /// Goes on where [`Flow::freeze`] stopped. `logs` are those that the process had then, in the same order.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`, and `NotFound` for an fd that is not in the bag.
    pub fn thaw(
        frozen: FrozenFlow,
        bag: &mut FdBag,
        logs: &[Rc<LogWriter>],
        on_end: Box<dyn Fn()>,
    ) -> io::Result<Self> {
        let spill = frozen.spill.map(|spill| Spill::thaw(spill, bag)).transpose()?;
        let source = frozen.source.map(|name| Polled::source(bag.take(&name)?)).transpose()?;
        let mut open = |name: &str| Polled::sink(bag.take(name)?);
        let sink = match frozen.sink {
            None => None,
            Some(FrozenSink::Fifo(name)) => {
                let spill = spill.ok_or(ErrorKind::NotFound)?;
                Some(OpenSink::Fifo { fd: open(&name)?, spill })
            }
            Some(FrozenSink::Process(name)) => Some(OpenSink::Process(open(&name)?)),
            Some(FrozenSink::Logger(name)) => Some(OpenSink::Logger(open(&name)?)),
            Some(FrozenSink::Log { lines, log }) => {
                let writer = logs.get(log).cloned().ok_or(ErrorKind::NotFound)?;
                Some(OpenSink::Log { writer, lines })
            }
        };
        let attached = frozen.attached.into_iter();
        let attached =
            attached.map(|(name, sent)| Ok(Attached { fd: open(&name)?, sent })).collect::<io::Result<_>>()?;
        let state = State {
            stream: frozen.stream,
            kind: frozen.kind,
            source,
            sink,
            path: frozen.path.map(Rc::from),
            left_behind: frozen.left_behind.iter().map(|name| bag.take(name)).collect::<io::Result<_>>()?,
            remainder: frozen.remainder.map(|name| bag.take(&name)).transpose()?,
            pending: frozen.pending,
            sent: frozen.sent,
            attached,
            process_over: frozen.process_over,
            held: frozen.held,
            pace: Pace::default(),
        };
        Ok(Self::run(state, on_end))
    }
}

impl Shared {
    fn path(&self) -> Option<Rc<Path>> {
        self.state.borrow().path.clone()
    }

    /// Goes on with the FIFO, or with the next one in its place.
    async fn renew_sink(&self, next: Option<OwnedFd>) {
        let renewed = match next {
            Some(next) => self.state.borrow_mut().replace_fifo(next),
            None => {
                self.state.borrow().renew_sink();
                Ok(())
            }
        };
        // Lest an attempt that failed be repeated at once.
        if let Err(e) = renewed {
            tracing::debug!(error = %e, "cannot go on with a reader's FIFO yet");
            tokio::time::sleep(RENEW_AGAIN).await;
        }
    }
}

/// The whole task: it only waits; what is done is done in [`State::step`].
async fn drive(shared: Rc<Shared>) {
    let mut steps = 0;
    loop {
        let next = shared.state.borrow_mut().next(steps + 1);
        steps = if matches!(next, Next::Step) { steps + 1 } else { 0 };
        match next {
            Next::Step if steps < STEPS_PER_TURN => {}
            Next::Step => {
                steps = 0;
                tokio::task::yield_now().await;
            }
            Next::Reader(fd) => {
                shared.unread.set(true);
                (shared.on_end)();
                let mut absence = Absence::new(fd, shared.path().as_deref());
                // Each may be dropped: what is kept and what is under way is in the state. Their order does not matter.
                let next = tokio::select! {
                    next = absence.end() => next,
                    () = shared.look.notified() => None,
                    () = keep(&shared) => None,
                };
                shared.unread.set(false);
                shared.renew_sink(next).await;
            }
            Next::Logger => {
                shared.unread.set(true);
                (shared.on_end)();
                // Nothing to watch: the driver says it when there is one again.
                while shared.unread.get() {
                    shared.changed.notified().await;
                }
            }
            Next::Tail(fd) if fifo::has_reader(fd.get_ref()) => fifo::tail_is_read(fd.get_ref()).await,
            Next::Tail(fd) => {
                let (path, is_read) = (shared.path(), is_empty(&fd));
                shared.unread.set(!is_read);
                (shared.on_end)();
                let mut absence =
                    if is_read { Absence::new(fd, path.as_deref()) } else { Absence::of_tail(fd, path.as_deref()) };
                // Either may be dropped, in any order: the next step looks at everything again.
                let next = tokio::select! {
                    next = absence.end() => next,
                    () = shared.look.notified() => None,
                };
                shared.unread.set(false);
                if next.is_some() {
                    shared.renew_sink(next).await;
                }
            }
            Next::Finished => break,
            other => wait(&shared, other).await,
        }
    }
    (shared.on_end)();
}

/// Keeps what comes while nobody reads, until it is dropped.
async fn keep(shared: &Shared) {
    loop {
        let next = shared.state.borrow_mut().keep();
        match next {
            Next::Finished => return,
            Next::Step => tokio::task::yield_now().await,
            other => wait(shared, other).await,
        }
    }
}

/// In every select both branches may be dropped: readiness, watches and notifications are not lost by it, and the step
/// that follows looks at everything again. Their order does not matter.
async fn wait(shared: &Shared, next: Next) {
    // What is ready again and again, for whatever reason, must not keep the others from their turn.
    tokio::task::consume_budget().await;
    match next {
        Next::Change => shared.changed.notified().await,
        Next::Pause(time) => tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = shared.changed.notified() => {}
        },
        Next::Rest(timer) => tokio::select! {
            () = timer.expired() => {}
            () = shared.changed.notified() => {}
        },
        Next::Spill(spill) => spill.idle().await,
        Next::Readable(fd) => tokio::select! {
            _ = fd.ready() => {}
            () = shared.changed.notified() => {}
        },
        Next::Writable(fd) => {
            let closed = tokio::select! {
                closed = fd.ready() => closed,
                () = shared.changed.notified() => false,
            };
            // A reader left and another came before anything was written: without this every wait would return at
            // once from now on.
            if closed && fifo::has_reader(fd.get_ref()) {
                fd.let_alone();
            }
        }
        Next::Room(writer) => writer.room().await,
        Next::Step | Next::Reader(_) | Next::Logger | Next::Tail(_) | Next::Finished => {}
    }
}

impl State {
    /// Whether all that has come so far has left for the sink.
    fn has_passed_on(&self) -> bool {
        let kept = !self.left_behind.is_empty() || !self.pending.is_empty();
        !kept && self.source.as_ref().is_none_or(is_empty)
    }

    /// Whether the end is all that a reader could still see, and there is none.
    fn waits_for_nobody(&self) -> bool {
        let Some(OpenSink::Fifo { fd, spill }) = &self.sink else { return false };
        let is_over = self.source.is_none() && spill.is_empty() && self.has_passed_on();
        is_over && is_empty(fd) && !fifo::has_reader(fd.get_ref())
    }

    fn step(&mut self) -> Next {
        if self.held {
            return Next::Change;
        }
        if let Some(next) = self.take_along().or_else(|| self.catch_up()).or_else(|| self.flush()) {
            return next;
        }
        let (Some(source), Some(sink)) = (self.source.clone(), &self.sink) else { return self.end() };
        match sink {
            OpenSink::Log { writer, .. } if writer.is_full() => return Next::Room(writer.clone()),
            OpenSink::Fifo { fd, .. } | OpenSink::Logger(fd) | OpenSink::Process(fd)
                if self.attached.is_empty() && self.kind == SourceKind::Pipe && self.waiting(&source) >= BULK =>
            {
                let fd = fd.clone();
                return self.splice(&source, &fd);
            }
            _ => {}
        }
        self.copy(&source)
    }

    /// The next step while nobody reads: what was read already is kept, then what is in the source.
    fn keep(&mut self) -> Next {
        let Some(OpenSink::Fifo { spill, .. }) = &self.sink else { return Next::Finished };
        let spill = spill.clone();
        if spill.is_busy() {
            return Next::Spill(spill);
        }
        match spill.answer() {
            Answer::StandStill(time) | Answer::NotKept(time) => return Next::Pause(time),
            Answer::Kept(count) if count < FEW => return Next::Pause(COLLECT),
            Answer::Full => return Next::Change,
            Answer::SourceEnded => self.source = None,
            Answer::Ready | Answer::Kept(_) | Answer::Blocked | Answer::NotGiven(_) => {}
        }
        if self.sent < self.pending.len() || spill.has_unstored() {
            spill.store(&self.pending[self.sent..]);
            self.sent = self.pending.len();
            return Next::Spill(spill);
        }
        if let Some(next) = self.flush_attached() {
            return next;
        }
        // The reader is all that is left to wait for.
        let Some(source) = self.source.clone() else { return Next::Change };
        if self.kind == SourceKind::Terminal || !self.attached.is_empty() {
            return self.copy(&source);
        }
        // The thread has emptied it, perhaps, but something may have come since, of which the loop was told already.
        source.clear();
        if !pipe::is_readable(source.get_ref()) {
            return Next::Readable(source);
        }
        let Ok(copy) = source.get_ref().try_clone() else { return Next::Pause(SHORTAGE) };
        spill.absorb(copy);
        Next::Spill(spill)
    }

    /// The next step towards a reader who was away: what was kept comes before all else. None if nothing is kept.
    fn catch_up(&mut self) -> Option<Next> {
        let Some(OpenSink::Fifo { fd, spill }) = &self.sink else { return None };
        let (fd, spill) = (fd.clone(), spill.clone());
        if spill.is_busy() {
            return Some(Next::Spill(spill));
        }
        let answer = spill.answer();
        if answer == Answer::SourceEnded {
            self.source = None;
        }
        if spill.is_empty() {
            spill.forget_trouble();
            return None;
        }
        if let Answer::StandStill(time) | Answer::NotGiven(time) = answer {
            return Some(Next::Pause(time));
        }
        if !fifo::has_reader(fd.get_ref()) {
            return Some(Next::Reader(fd));
        }
        // As in `keep`.
        fd.clear();
        if !pipe::is_writable(fd.get_ref()) {
            return Some(Next::Writable(fd));
        }
        let Ok(copy) = fd.get_ref().try_clone() else { return Some(Next::Pause(SHORTAGE)) };
        spill.deliver(copy);
        Some(Next::Spill(spill))
    }

    /// How many bytes wait, as far as one can tell without asking.
    fn waiting(&self, source: &Fd) -> usize {
        self.pace.found().unwrap_or_else(|| pipe::unread(source.get_ref()).unwrap_or(0))
    }

    /// A step, the `count`th of this turn; a flow that has always work rests where it would else wait or give way.
    fn next(&mut self, count: usize) -> Next {
        let next = self.step();
        let waits = match &next {
            Next::Step => count >= STEPS_PER_TURN || self.pace.has_looked(),
            Next::Readable(_) | Next::Writable(_) => true,
            _ => false,
        };
        let rest = if waits { self.rest() } else { None };
        rest.map_or(next, Next::Rest)
    }

    fn rest(&mut self) -> Option<Rc<Timer>> {
        let source = self.source.as_ref().filter(|_| self.kind == SourceKind::Pipe && self.attached.is_empty())?;
        let sink = match self.sink.as_ref()? {
            OpenSink::Fifo { fd, .. } | OpenSink::Logger(fd) => Some(fd),
            OpenSink::Log { .. } => None,
            OpenSink::Process(_) => return None,
        };
        let capacity = || {
            let source = pipe::enlarge(source.get_ref());
            sink.map_or(source, |fd| source.min(pipe::enlarge(fd.get_ref())))
        };
        let timer = self.pace.rest(Instant::now(), capacity)?;
        source.let_alone();
        if let Some(fd) = sink {
            fd.let_alone();
        }
        Some(timer)
    }

    fn splice(&mut self, source: &Fd, sink: &Fd) -> Next {
        match pipe::move_pages(source.get_ref(), sink.get_ref(), MOST_PER_SPLICE) {
            Ok(0) => {
                self.source = None;
                Next::Step
            }
            Ok(n) => {
                self.pace.moved(n, n == MOST_PER_SPLICE);
                Next::Step
            }
            Err(e) => match e.kind() {
                ErrorKind::WouldBlock => self.stalled(source, sink),
                ErrorKind::BrokenPipe => self.sink_closed(),
                ErrorKind::Interrupted => Next::Step,
                // A sink that does not take pages (a terminal) takes bytes.
                _ => self.copy(source),
            },
        }
    }

    /// Nothing could be moved: because the source was empty, or the sink full. To wait for the other one would be for ever.
    fn stalled(&self, source: &Fd, sink: &Fd) -> Next {
        // Nobody else reads the one or writes to the other: as it is now, so it was.
        if !pipe::is_writable(sink.get_ref()) {
            self.blocked(sink)
        } else if pipe::unread(source.get_ref()).is_ok_and(|n| n == 0) {
            starved(source)
        } else {
            // It has changed since.
            Next::Step
        }
    }

    fn copy(&mut self, source: &Fd) -> Next {
        // What goes into a file as it is needs no buffer on its way.
        let outcome = match &self.sink {
            Some(OpenSink::Log { writer, lines: None }) if self.attached.is_empty() => {
                writer.enqueue(|queue| pipe::read_behind(source.get_ref(), queue, BUFFER))
            }
            _ => SHARED.with_borrow_mut(|buffer| {
                if buffer.is_empty() {
                    // Zeroed by the kernel, page by page as they are used.
                    *buffer = vec![0; BUFFER];
                }
                let outcome = read(source.get_ref(), buffer);
                self.take(&buffer[..outcome.unwrap_or(0)]);
                outcome
            }),
        };
        match outcome {
            Ok(0) => self.source = None,
            Ok(n) => self.pace.moved(n, n == BUFFER),
            Err(Errno::EINTR) => {}
            // All slaves of the terminal are closed, or it is empty: the end if the process is over.
            Err(Errno::EIO | Errno::EAGAIN) if self.kind == SourceKind::Terminal && self.process_over => {
                self.source = None;
            }
            Err(Errno::EAGAIN | Errno::EIO) => {
                return starved(source);
            }
            Err(e) => {
                tracing::warn!(stream = self.stream.name(), error = %e, "cannot read, ending the stream");
                self.source = None;
            }
        }
        Next::Step
    }

    fn take(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match &mut self.sink {
            Some(OpenSink::Log { writer, lines: Some(lines) }) => {
                let stream = self.stream.name();
                writer.enqueue(|queue| lines.push(stream, now_unix_ns(), bytes, queue));
            }
            Some(OpenSink::Log { writer, lines: None }) => writer.enqueue(|queue| queue.extend_from_slice(bytes)),
            // Not past what is kept.
            Some(OpenSink::Fifo { spill, .. }) if !spill.is_empty() => {
                self.pending.extend_from_slice(bytes);
                return;
            }
            Some(OpenSink::Fifo { fd, .. } | OpenSink::Logger(fd) | OpenSink::Process(fd))
                if self.attached.is_empty() =>
            {
                // The usual case: all of it goes at once, and nothing is kept.
                let written = write(fd.get_ref(), bytes).unwrap_or(0);
                self.pending.extend_from_slice(&bytes[written..]);
                return;
            }
            Some(OpenSink::Fifo { .. } | OpenSink::Logger(_) | OpenSink::Process(_)) => {
                self.pending.extend_from_slice(bytes);
                return;
            }
            None => return,
        }
        if !self.attached.is_empty() {
            self.pending.extend_from_slice(bytes);
            self.sent = bytes.len();
        }
    }

    /// Passes on what was left behind; none if nothing is.
    fn take_along(&mut self) -> Option<Next> {
        let (Some(oldest), Some(OpenSink::Fifo { fd: sink, .. })) = (self.left_behind.front(), &self.sink) else {
            return None;
        };
        let sink = sink.clone();
        if pipe::unread(oldest).is_ok_and(|n| n == 0) {
            self.left_behind.pop_front();
            return Some(Next::Step);
        }
        Some(match pipe::move_pages(oldest, sink.get_ref(), MOST_PER_SPLICE) {
            Ok(_) => Next::Step,
            Err(e) if e.kind() == ErrorKind::Interrupted => Next::Step,
            Err(e) if e.kind() == ErrorKind::WouldBlock => self.blocked(&sink),
            Err(_) => self.sink_closed(),
        })
    }

    /// Writes what is pending; none if nothing is left.
    fn flush(&mut self) -> Option<Next> {
        if self.pending.is_empty() {
            return None;
        }
        if let Some(OpenSink::Fifo { fd, .. } | OpenSink::Logger(fd) | OpenSink::Process(fd)) = &self.sink {
            let fd = fd.clone();
            while self.sent < self.pending.len() {
                match write(fd.get_ref(), &self.pending[self.sent..]) {
                    Ok(n) => {
                        self.sent += n;
                        self.pace.moved(n, false);
                    }
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => return Some(self.blocked(&fd)),
                    Err(_) => return Some(self.sink_closed()),
                }
            }
        }
        self.flush_attached()
    }

    /// Writes what is pending to the attached readers; the sink has it. None if nothing is left.
    fn flush_attached(&mut self) -> Option<Next> {
        let mut full = None;
        let pending = &self.pending;
        self.attached.retain_mut(|reader| {
            while reader.sent < pending.len() {
                match write(reader.fd.get_ref(), &pending[reader.sent..]) {
                    Ok(n) => reader.sent += n,
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => {
                        full = Some(reader.fd.clone());
                        return true;
                    }
                    // It has left.
                    Err(_) => return false,
                }
            }
            true
        });
        if let Some(fd) = full {
            return Some(self.blocked(&fd));
        }
        self.pending = Vec::new();
        self.sent = 0;
        self.attached.iter_mut().for_each(|reader| reader.sent = 0);
        None
    }

    fn blocked(&self, fd: &Fd) -> Next {
        fd.clear();
        Next::Writable(fd.clone())
    }

    fn sink_closed(&mut self) -> Next {
        match &self.sink {
            Some(OpenSink::Fifo { fd, .. }) => Next::Reader(fd.clone()),
            Some(OpenSink::Logger(_)) => Next::Logger,
            _ => {
                // The process no longer reads its input.
                self.source = None;
                self.pending = Vec::new();
                self.sent = 0;
                Next::Step
            }
        }
    }

    /// The source has ended and nothing is pending.
    fn end(&mut self) -> Next {
        self.attached.clear();
        match &mut self.sink {
            Some(OpenSink::Fifo { fd, .. }) if !fifo::has_reader(fd.get_ref()) || holds_bytes(fd) => {
                return Next::Tail(fd.clone());
            }
            Some(OpenSink::Logger(fd)) if holds_bytes(fd) => {
                if !fifo::has_reader(fd.get_ref()) {
                    return Next::Logger;
                }
                // Without it, only what happens to a logger that dies now is worse.
                self.remainder = fifo::open_other_end(fd.get_ref()).ok();
            }
            Some(OpenSink::Log { writer, lines: Some(lines) }) => {
                let stream = self.stream.name();
                writer.enqueue(|queue| lines.finish(stream, now_unix_ns(), queue));
            }
            _ => {}
        }
        self.sink = None;
        self.source = None;
        Next::Finished
    }

    /// epoll's "closed" is for good in Tokio's eyes, a reader's absence is not.
    fn renew_sink(&self) {
        if let Some(OpenSink::Fifo { fd, .. } | OpenSink::Logger(fd)) = &self.sink {
            fd.let_alone();
        }
    }

    /// Goes on with the FIFO that a client has made in place of the one that has no reader, which nobody finds any more.
    fn replace_fifo(&mut self, next: OwnedFd) -> io::Result<()> {
        let Some(OpenSink::Fifo { fd, .. }) = &mut self.sink else { return Ok(()) };
        let old = fd.clone();
        let next = Polled::sink(next)?;
        if pipe::unread(old.get_ref())? > 0 {
            let read_end = fifo::open_remainder(old.get_ref())?;
            // What it was still to get, as far as it has room: so however often this happens, few are left behind.
            while let Some(older) = self.left_behind.front() {
                if pipe::unread(older)? > 0 && pipe::move_pages(older, old.get_ref(), MOST_PER_SPLICE).is_err() {
                    break;
                }
                if pipe::unread(older)? == 0 {
                    self.left_behind.pop_front();
                }
            }
            self.left_behind.push_front(read_end);
        }
        *fd = next;
        // It may be a small one.
        self.pace = Pace::default();
        Ok(())
    }
}

/// Whether nothing is in the pipe or FIFO of which this is an end.
fn is_empty(fd: &Fd) -> bool {
    pipe::unread(fd.get_ref()).is_ok_and(|n| n == 0)
}

/// Whether something is in there. One that cannot be asked is not waited for.
fn holds_bytes(fd: &Fd) -> bool {
    pipe::unread(fd.get_ref()).is_ok_and(|n| n > 0)
}

fn starved(source: &Fd) -> Next {
    source.clear();
    Next::Readable(source.clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;
    use std::future::Future;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::stat::{Mode, fstat};
    use nix::time::{ClockId, clock_gettime};
    use nix::unistd::{mkfifo, pipe2};
    use tokio::task::{LocalSet, yield_now};

    use super::*;
    use crate::io::spill::file::Place;
    use crate::io::spill::policy::OutputSettings;
    use crate::io::spill::tree::Home;
    use crate::lifecycle::ProcessId;

    fn in_a_task_set(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    /// A FIFO of its own; removed when dropped.
    struct Fifo(PathBuf);

    impl Fifo {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("holdfast-{}-relay-{name}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            Self(path)
        }

        fn reader(&self) -> File {
            File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&self.0).unwrap()
        }

        /// Another at the same path, at once.
        fn replace(&self) {
            std::fs::remove_file(&self.0).unwrap();
            mkfifo(&self.0, Mode::S_IRWXU).unwrap();
        }

        fn inode(&self) -> u64 {
            std::fs::metadata(&self.0).unwrap().ino()
        }

        fn sink(&self) -> Sink {
            let spill_dir = self.0.with_extension("spills");
            let [instance, namespace, id] = ["i", "n", "c"].map(str::to_owned);
            let home = Home { spill_dir: spill_dir.clone(), run_dir: "/nonexistent".into(), instance, namespace, id };
            // However full the disk of the test is.
            let settings = OutputSettings { spill_dir, free_floor_percent: 0, ..OutputSettings::default() };
            let place = Place::new(&home, &ProcessId::Init, Stream::Stdout, &settings);
            Sink::Fifo {
                fd: fifo::open_write_end(&self.0).unwrap(),
                path: Some(self.0.clone()),
                spill: Spill::new(place),
            }
        }
    }

    impl Drop for Fifo {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
            let _ = std::fs::remove_dir_all(self.0.with_extension("spills"));
        }
    }

    fn start(source: OwnedFd, sink: Sink) -> (Flow, Rc<Cell<usize>>) {
        let quiet = Rc::new(Cell::new(0));
        let count = quiet.clone();
        let on_end = Box::new(move || count.set(count.get() + 1));
        (Flow::start(Stream::Stdout, source, SourceKind::Pipe, sink, on_end).unwrap(), quiet)
    }

    fn sinks_inode(flow: &Flow) -> u64 {
        match &flow.shared.state.borrow().sink {
            Some(OpenSink::Fifo { fd, .. }) => fstat(fd.get_ref()).unwrap().st_ino,
            _ => 0,
        }
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let wait = async {
            while !holds() {
                yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect(what);
    }

    /// Reads `count` bytes, letting the flows run whenever there is nothing to read.
    async fn read_exactly(file: &mut File, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 32 << 10];
        until("all of it should arrive", || {
            let room = buffer.len().min(count - bytes.len());
            if let Ok(n) = file.read(&mut buffer[..room]) {
                bytes.extend_from_slice(&buffer[..n]);
            }
            bytes.len() == count
        })
        .await;
        bytes
    }

    fn numbered(count: usize) -> Vec<u8> {
        (0..count).map(|n| (n % 251) as u8).collect()
    }

    #[test]
    fn many_bytes_and_few_arrive_in_order_and_the_end_after_them() {
        in_a_task_set(async {
            let fifo = Fifo::new("order");
            let mut reader = fifo.reader();
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, quiet) = start(source, fifo.sink());
            let mut write = File::from(write);
            // Few go through the buffer, many as pages; the changes between the two must keep the order.
            let bytes = numbered(400_000);
            for (at, len) in [(0, 100), (100, 300_000), (300_100, 1), (300_101, 99_899)] {
                write.write_all(&bytes[at..at + len]).unwrap();
                assert!(read_exactly(&mut reader, len).await == bytes[at..at + len]);
            }
            write.write_all(b"tail").unwrap();
            drop(write);
            until("the source should end", || flow.has_ended()).await;
            assert!(!flow.is_drained(), "the reader has not had the tail yet");
            assert_eq!(read_exactly(&mut reader, 4).await, b"tail");
            until("the flow should finish", || flow.is_drained()).await;
            assert_eq!(reader.read(&mut [0]).unwrap(), 0, "its reader sees the end");
            until("who waits should be told", || quiet.get() > 0).await;
        });
    }

    #[test]
    fn a_flow_that_has_always_work_rests_and_keeps_the_order_across_changes_and_a_freeze() {
        in_a_task_set(async {
            let fifo = Fifo::new("paced");
            let mut reader = fifo.reader();
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, _) = start(source, fifo.sink());
            let mut write = File::from(write);
            let bytes = numbered(10_000_000);
            let mut at = 0;
            let mut pass = async |reader: &mut File, len| {
                write.write_all(&bytes[at..at + len]).unwrap();
                assert!(read_exactly(reader, len).await == bytes[at..at + len], "{len} bytes at {at}");
                at += len;
            };
            let rests = || flow.shared.state.borrow().pace.found().is_some();
            // However busy the machine is, at some time they follow each other quickly enough.
            while !rests() {
                pass(&mut reader, 100).await;
            }
            assert!(fcntl(&reader, FcntlArg::F_GETPIPE_SZ).unwrap() > 64 << 10, "its reader's FIFO is larger now");
            for len in [1, 300_000, 70, 20_000, 1_000, 900_000] {
                pass(&mut reader, len).await;
            }
            until("it should watch when nothing comes", || !rests()).await;
            while !rests() {
                pass(&mut reader, 100).await;
            }
            let mut bag = FdBag::default();
            let frozen = flow.freeze("f", &[], &mut bag).unwrap();
            drop(flow);
            let _flow = Flow::thaw(frozen, &mut bag, &[], Box::new(|| {})).unwrap();
            for len in [40, 500_000, 3] {
                pass(&mut reader, len).await;
            }
        });
    }

    #[test]
    fn a_flow_waits_for_the_end_that_stalls_it_and_for_none_if_neither_does_any_more() {
        in_a_task_set(async {
            let pipe = |from: OwnedFd, to: OwnedFd| (Polled::source(from).unwrap(), Polled::sink(to).unwrap());
            let ((from, process), (client, to)) = (pipe2(OFlag::O_CLOEXEC).unwrap(), pipe2(OFlag::O_CLOEXEC).unwrap());
            let (source, sink) = pipe(from, to);
            let (flow, _) = start(pipe::large_pipe().unwrap().0, Sink::Process(pipe::large_pipe().unwrap().1));
            let stalled = || flow.shared.state.borrow().stalled(&source, &sink);
            assert!(matches!(stalled(), Next::Readable(_)));
            // What comes between the attempt and the question: a wait for the sink would be for ever.
            write(&process, b"late").unwrap();
            assert!(matches!(stalled(), Next::Step));
            while write(sink.get_ref(), &[0; 4096]).is_ok() {}
            assert!(matches!(stalled(), Next::Writable(_)));
            read(&client, &mut [0; 4096]).unwrap();
            assert!(matches!(stalled(), Next::Step));
        });
    }

    #[test]
    fn a_flow_that_has_always_work_gives_way_after_every_turn() {
        in_a_task_set(async {
            // Always readable and always writable, as no two ends of pipes could be.
            let random = || OwnedFd::from(File::options().read(true).write(true).open("/dev/random").unwrap());
            let (_busy, _) = start(random(), Sink::Process(random()));
            let fifo = Fifo::new("other");
            let mut reader = fifo.reader();
            let (source, write) = pipe::large_pipe().unwrap();
            let (_flow, _) = start(source, fifo.sink());
            let mut write = File::from(write);
            for _ in 0..20 {
                write.write_all(b"x").unwrap();
                let mut turns = 0;
                while reader.read(&mut [0]).is_err() {
                    turns += 1;
                    yield_now().await;
                }
                assert!(turns <= 4, "the other's byte has waited for {turns} turns");
            }
        });
    }

    #[test]
    fn what_nobody_reads_stays_and_counts_as_drained_until_a_reader_comes() {
        in_a_task_set(async {
            let fifo = Fifo::new("absent");
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, quiet) = start(source, fifo.sink());
            File::from(write).write_all(&numbered(200_000)).unwrap();
            until("nobody should be seen to read", || flow.is_drained()).await;
            assert_eq!(quiet.get(), 1);
            let mut reader = fifo.reader();
            assert!(read_exactly(&mut reader, 200_000).await == numbered(200_000));
            until("the flow should finish", || flow.has_ended() && flow.is_drained()).await;
        });
    }

    #[test]
    fn what_is_left_in_a_fifo_that_was_replaced_comes_first_however_often() {
        in_a_task_set(async {
            let fifo = Fifo::new("replaced");
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, _) = start(source, fifo.sink());
            let bytes = numbered(600_000);
            File::from(write).write_all(&bytes).unwrap();
            let (mut got, mut readers) = (Vec::new(), Vec::new());
            for taken in [10_000, 70_000, 1, 0, 100_000] {
                // There is more in it than this one takes, when it leaves.
                let mut reader = fifo.reader();
                got.extend(read_exactly(&mut reader, taken).await);
                until("the FIFO should be full again", || pipe::unread(&reader).unwrap() >= 60 << 10).await;
                drop(reader);
                fifo.replace();
                until("the next should be taken", || sinks_inode(&flow) == fifo.inode()).await;
                readers.push(flow.shared.state.borrow().left_behind.len());
            }
            let frozen = flow.freeze("f", &[], &mut FdBag::default()).unwrap();
            assert_eq!((frozen.path.as_deref(), frozen.left_behind.len()), (Some(fifo.0.as_path()), readers[4]));
            let mut last = fifo.reader();
            got.extend(read_exactly(&mut last, bytes.len() - got.len()).await);
            assert!(got == bytes, "every byte once, in order");
            until("the flow should finish", || flow.has_ended() && flow.is_drained()).await;
            assert_eq!(last.read(&mut [0]).unwrap(), 0);
            assert!(readers.iter().all(|count| *count <= 2), "what is left behind is put together: {readers:?}");
        });
    }

    #[test]
    fn a_tail_in_a_fifo_that_was_replaced_is_the_next_readers() {
        in_a_task_set(async {
            let fifo = Fifo::new("replaced-tail");
            let first = fifo.reader();
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, _) = start(source, fifo.sink());
            File::from(write).write_all(b"last words").unwrap();
            until("the source should end", || flow.has_ended()).await;
            drop(first);
            until("nobody should be seen to read", || flow.is_drained()).await;
            std::fs::remove_file(&fifo.0).unwrap();
            yield_now().await;
            mkfifo(&fifo.0, Mode::S_IRWXU).unwrap();
            let mut next = fifo.reader();
            assert_eq!(read_exactly(&mut next, 10).await, b"last words");
            until("the flow should finish", || !flow.is_unread() && flow.is_drained()).await;
            assert_eq!(next.read(&mut [0]).unwrap(), 0);
        });
    }

    #[test]
    fn who_waits_to_open_a_fifo_in_the_place_of_one_with_nothing_left_sees_the_end() {
        in_a_task_set(async {
            let fifo = Fifo::new("replaced-empty");
            let first = fifo.reader();
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, _) = start(source, fifo.sink());
            until("it should wait for output", || flow.is_settled()).await;
            drop(first);
            fifo.replace();
            let next = fifo.reader();
            // As one who waits in its open sees it: nobody has ever opened the other end.
            let has_been_written_to = || {
                let mut fds = [PollFd::new(next.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
            };
            assert!(!has_been_written_to());
            drop(write);
            until("the FIFO should be at its end", has_been_written_to).await;
            until("the flow should finish", || flow.shared.state.borrow().sink.is_none()).await;
        });
    }

    #[test]
    fn who_opens_a_fifo_only_after_the_end_sees_it() {
        in_a_task_set(async {
            let fifo = Fifo::new("late");
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, _) = start(source, fifo.sink());
            drop(write);
            until("the source should end", || flow.has_ended() && flow.is_drained()).await;
            assert!(!flow.is_unread(), "nobody needs to wait for that");
            // As a client opens it, who waits there for the other end.
            let path = fifo.0.clone();
            let reader = std::thread::spawn(move || std::fs::read(path).unwrap());
            until("the reader should see the end", || reader.is_finished()).await;
            assert_eq!(reader.join().unwrap(), b"");
            until("the FIFO should be closed", || flow.shared.state.borrow().sink.is_none()).await;
        });
    }

    #[test]
    fn readers_that_open_and_close_in_a_loop_lose_nothing_and_hold_nobody_up() {
        in_a_task_set(async {
            let (fifo, other) = (Fifo::new("loop"), Fifo::new("beside"));
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, _) = start(source, fifo.sink());
            let (beside, to_other) = pipe::large_pipe().unwrap();
            let (_second, _) = start(beside, other.sink());
            let bytes = numbered(300_000);
            File::from(write).write_all(&bytes).unwrap();
            let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
            let before = descriptors();
            let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
            let (stopped, path) = (stop.clone(), fifo.0.clone());
            // Some take a few bytes, some nothing.
            let client = std::thread::spawn(move || {
                let (mut got, mut rounds) = (Vec::new(), 0);
                while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut reader =
                        File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).unwrap();
                    let mut buffer = [0; 100];
                    if rounds % 3 == 0
                        && let Ok(n) = reader.read(&mut buffer)
                    {
                        got.extend_from_slice(&buffer[..n]);
                    }
                    rounds += 1;
                }
                (got, rounds)
            });
            let (mut reader, mut writer) = (other.reader(), File::from(to_other));
            for n in 0..2000_u32 {
                writer.write_all(&n.to_ne_bytes()).unwrap();
                assert_eq!(read_exactly(&mut reader, 4).await, n.to_ne_bytes());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            let (mut got, rounds) = client.join().unwrap();
            assert!(rounds > 100, "{rounds}");
            let mut last = fifo.reader();
            got.extend(read_exactly(&mut last, bytes.len() - got.len()).await);
            assert!(got == bytes, "every byte once, in order");
            until("the flow should finish", || flow.has_ended() && flow.is_drained()).await;
            // Other tests of this process open and close some, too.
            assert!(descriptors() < before + 100, "{before} before, {} after {rounds} rounds", descriptors());
        });
    }

    #[test]
    fn of_two_readers_the_one_that_stays_gets_the_rest() {
        in_a_task_set(async {
            let fifo = Fifo::new("two");
            let (mut first, mut second) = (fifo.reader(), fifo.reader());
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, _) = start(source, fifo.sink());
            let bytes = numbered(300_000);
            File::from(write).write_all(&bytes).unwrap();
            let mut got = Vec::new();
            for _ in 0..5 {
                got.extend(read_exactly(&mut first, 10_000).await);
                got.extend(read_exactly(&mut second, 10_000).await);
            }
            drop(first);
            got.extend(read_exactly(&mut second, 200_000).await);
            assert!(got == bytes);
            until("the flow should finish", || flow.is_drained()).await;
        });
    }

    #[test]
    fn a_slow_attached_reader_slows_and_one_that_leaves_does_not() {
        in_a_task_set(async {
            let (fifo, copy) = (Fifo::new("main"), Fifo::new("copy"));
            let (mut reader, mut attached) = (fifo.reader(), copy.reader());
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, _) = start(source, fifo.sink());
            let mut write = File::from(write);
            write.write_all(b"before").unwrap();
            assert_eq!(read_exactly(&mut reader, 6).await, b"before");
            flow.attach(fifo::open_write_end(&copy.0).unwrap()).unwrap();
            write.write_all(&numbered(500_000)).unwrap();
            // As much as the copy's FIFO holds, and the buffer that waits for the rest of it.
            read_exactly(&mut reader, 100_000).await;
            assert!(pipe::unread(copy.reader()).unwrap() > 0);
            assert_eq!(read_exactly(&mut attached, 5).await, numbered(5), "nothing from before");
            drop(attached);
            let rest = read_exactly(&mut reader, 400_000).await;
            assert!(rest == numbered(500_000)[100_000..]);
        });
    }

    #[test]
    fn an_attached_reader_gets_on_while_the_other_is_away_and_both_get_everything() {
        in_a_task_set(async {
            let (fifo, copy) = (Fifo::new("away"), Fifo::new("away-copy"));
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, _) = start(source, fifo.sink());
            let mut attached = copy.reader();
            flow.attach(fifo::open_write_end(&copy.0).unwrap()).unwrap();
            let mut write = File::from(write);
            let bytes = numbered(600_000);
            write.write_all(&bytes[..400_000]).unwrap();
            assert!(read_exactly(&mut attached, 400_000).await == bytes[..400_000], "it does not wait for the other");
            let mut reader = fifo.reader();
            assert!(read_exactly(&mut reader, 400_000).await == bytes[..400_000]);
            write.write_all(&bytes[400_000..]).unwrap();
            drop(write);
            let mut rest = [Vec::new(), Vec::new()];
            until("both should get the rest", || {
                let mut buffer = vec![0; 32 << 10];
                for (reader, rest) in [&mut reader, &mut attached].into_iter().zip(&mut rest) {
                    if let Ok(n) = reader.read(&mut buffer) {
                        rest.extend_from_slice(&buffer[..n]);
                    }
                }
                rest.iter().all(|rest| rest.len() == 200_000)
            })
            .await;
            assert!(rest.iter().all(|rest| *rest == bytes[400_000..]));
        });
    }

    #[test]
    fn attached_readers_that_have_left_do_not_gather_while_nothing_is_printed() {
        in_a_task_set(async {
            let (fifo, copy) = (Fifo::new("silent"), Fifo::new("silent-copy"));
            let mut reader = fifo.reader();
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, _) = start(source, fifo.sink());
            for _ in 0..10 {
                let attached = copy.reader();
                for _ in 0..2 {
                    flow.attach(fifo::open_write_end(&copy.0).unwrap()).unwrap();
                }
                assert_eq!(flow.shared.state.borrow().attached.len(), 1);
                drop(attached);
            }
            File::from(write).write_all(b"x").unwrap();
            assert_eq!(read_exactly(&mut reader, 1).await, b"x");
        });
    }

    #[test]
    fn input_ends_when_the_process_has_closed_its_own() {
        in_a_task_set(async {
            let fifo = Fifo::new("input");
            let (source, _keeper) = fifo::open_read_end(&fifo.0).unwrap();
            let (process, ours) = pipe2(OFlag::O_CLOEXEC).unwrap();
            let (flow, _) = start(source, Sink::Process(ours));
            let mut client = File::options().write(true).open(&fifo.0).unwrap();
            client.write_all(b"read").unwrap();
            let mut process = File::from(process);
            pipe::set_nonblocking(&process).unwrap();
            assert_eq!(read_exactly(&mut process, 4).await, b"read");
            drop(process);
            client.write_all(b"unread").unwrap();
            until("the flow should finish", || flow.is_drained()).await;
            let gone = client.write(b"x").unwrap_err();
            assert_eq!(gone.kind(), ErrorKind::BrokenPipe, "its FIFO is closed");
        });
    }

    #[test]
    fn a_reader_that_takes_over_and_is_slow_costs_no_time() {
        in_a_task_set(async {
            let fifo = Fifo::new("takeover");
            let first = fifo.reader();
            let (source, write) = pipe::large_pipe().unwrap();
            let (_flow, _) = start(source, fifo.sink());
            let mut write = File::from(write);
            write.write_all(&numbered(200_000)).unwrap();
            until("the FIFO should be full", || pipe::unread(&first).unwrap() >= 64 << 10).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            // Both between two turns of the flow: it never meets the absence.
            drop(first);
            let mut second = fifo.reader();
            assert_nothing_spins().await;
            assert!(read_exactly(&mut second, 200_000).await == numbered(200_000));
        });
    }

    #[test]
    fn an_attached_reader_that_takes_over_and_is_slow_costs_no_time() {
        in_a_task_set(async {
            let (fifo, copy) = (Fifo::new("attached-takeover"), Fifo::new("attached-takeover-copy"));
            let (mut reader, first) = (fifo.reader(), copy.reader());
            let (source, write) = pipe::large_pipe().unwrap();
            let (flow, _) = start(source, fifo.sink());
            flow.attach(fifo::open_write_end(&copy.0).unwrap()).unwrap();
            File::from(write).write_all(&numbered(200_000)).unwrap();
            read_exactly(&mut reader, 100_000).await;
            let waits_for_copy = |state: &State| state.sent > 0 && state.sent == state.pending.len();
            until("the copy's FIFO should be full", || waits_for_copy(&flow.shared.state.borrow())).await;
            let fd = flow.shared.state.borrow().attached[0].fd.clone();
            // That one has left is told; before the flow looks, another is there.
            flow.hold();
            drop(first);
            assert!(fd.ready().await);
            let _second = copy.reader();
            flow.let_go();
            assert_nothing_spins().await;
        });
    }

    async fn assert_nothing_spins() {
        let cpu = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
        let before = cpu();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let spent = cpu() - before;
        assert!(spent < Duration::from_millis(100), "it spins: {spent:?} of 200 ms");
    }

    #[test]
    fn a_logger_sees_the_end_at_once_and_reads_the_rest_afterwards() {
        in_a_task_set(async {
            let (source, write) = pipe::large_pipe().unwrap();
            let (read, sink) = pipe::large_pipe().unwrap();
            let (flow, quiet) = start(source, Sink::Logger(sink));
            File::from(write).write_all(&numbered(50_000)).unwrap();
            until("the flow should finish with nothing read", || flow.is_drained() && quiet.get() > 0).await;
            let mut all = Vec::new();
            File::from(read).read_to_end(&mut all).unwrap();
            assert!(all == numbered(50_000));
        });
    }

    #[test]
    fn what_a_dead_logger_did_not_read_is_the_next_ones() {
        in_a_task_set(async {
            let (source, write) = pipe::large_pipe().unwrap();
            let (read, sink) = pipe::large_pipe().unwrap();
            let (flow, quiet) = start(source, Sink::Logger(sink));
            let mut write = File::from(write);
            write.write_all(&numbered(20_000)).unwrap();
            until("it should be in the logger's pipe", || pipe::unread(&read).unwrap() == 20_000).await;
            assert!(flow.orphaned_logger_pipe().is_none(), "it has a reader");
            drop(read);
            write.write_all(&numbered(40_000)[20_000..]).unwrap();
            drop(write);
            until("who waits should be told", || quiet.get() > 0 && flow.is_drained()).await;
            let read = flow.orphaned_logger_pipe().unwrap().unwrap();
            flow.logger_is_back();
            until("the flow should finish", || flow.has_ended() && flow.is_drained()).await;
            let mut all = Vec::new();
            File::from(read).read_to_end(&mut all).unwrap();
            assert!(all == numbered(40_000));
        });
    }

    #[test]
    fn what_a_logger_leaves_after_the_end_is_kept_too() {
        in_a_task_set(async {
            let (source, write) = pipe::large_pipe().unwrap();
            let (read, sink) = pipe::large_pipe().unwrap();
            let (flow, _) = start(source, Sink::Logger(sink));
            File::from(write).write_all(&numbered(30_000)).unwrap();
            until("the flow should finish", || flow.has_ended() && flow.is_drained()).await;
            let mut first = vec![0; 10_000];
            let mut logger = File::from(read);
            logger.read_exact(&mut first).unwrap();
            drop(logger);
            let mut rest = Vec::new();
            File::from(flow.orphaned_logger_pipe().unwrap().unwrap()).read_to_end(&mut rest).unwrap();
            assert!([first, rest].concat() == numbered(30_000));
            assert!(flow.orphaned_logger_pipe().is_none(), "nothing is left for a third");
        });
    }
}
