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
//!   streaming <──> reader absent        only towards a FIFO; nothing is read meanwhile, so nothing is lost
//!       │ end of the source
//!       v
//!     tail                              the FIFO still holds bytes that nobody has read
//!       │ read, or given up at Delete
//!       v
//!   finished                            the sink is closed: its reader sees the end
//! ```
//!
//! A *slow* reader slows the process, as it always did. All state is in [`State`], none in the task that drives it: the
//! task can be dropped at any await and another can go on.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::errno::Errno;
use nix::unistd::{read, write};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::fifo;
use super::log::JsonLines;
use super::log_writer::LogWriter;
use crate::freeze::FdBag;
use crate::owned_task::OwnedTask;
use crate::sys::reaper::now_unix_ns;
use crate::sys::{pipe, ready};

/// From this many waiting bytes on, moving pages beats copying them (design, section 5).
const BULK: usize = 16 << 10;
/// The most that one splice moves, so that others have their turn.
const MOST_PER_SPLICE: usize = 1 << 20;
/// The shared buffer, in bytes.
const BUFFER: usize = 64 << 10;
/// Steps between two looks at everything else that waits.
const STEPS_PER_TURN: usize = 16;

thread_local! {
    /// One for all flows: no await happens while it is borrowed.
    static SHARED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

type Fd = Rc<AsyncFd<OwnedFd>>;

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
    Fifo(OwnedFd),
    /// A pipe or terminal to the process. When the process has closed it, the flow ends.
    Process(OwnedFd),
    /// The container's log: lines, or raw bytes.
    Log {
        /// Shared by the streams of a process.
        writer: Rc<LogWriter>,
        /// None: raw.
        lines: Option<JsonLines>,
    },
}

enum OpenSink {
    Fifo(Fd),
    Process(Fd),
    Log { writer: Rc<LogWriter>, lines: Option<JsonLines> },
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
    /// Read, and not yet written everywhere.
    pending: Vec<u8>,
    /// How much of `pending` the sink has.
    sent: usize,
    attached: Vec<Attached>,
    /// The process was reaped.
    process_over: bool,
}

/// What the task waits for before the next step.
enum Next {
    Step,
    Readable(Fd),
    Writable(Fd),
    Reader(Fd),
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
    on_end: Box<dyn Fn()>,
}

/// A [`Flow`] written down.
#[derive(Serialize, Deserialize)]
pub struct FrozenFlow {
    stream: Stream,
    kind: SourceKind,
    source: Option<String>,
    sink: Option<FrozenSink>,
    pending: Vec<u8>,
    sent: usize,
    attached: Vec<(String, usize)>,
    process_over: bool,
}

#[derive(Serialize, Deserialize)]
enum FrozenSink {
    Fifo(String),
    Process(String),
    Log { lines: Option<JsonLines> },
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
        let sink = match sink {
            Sink::Fifo(fd) => OpenSink::Fifo(pollable(fd, Interest::WRITABLE)?),
            Sink::Process(fd) => OpenSink::Process(pollable(fd, Interest::WRITABLE)?),
            Sink::Log { writer, lines } => OpenSink::Log { writer, lines },
        };
        Ok(Self::run(
            State {
                stream,
                kind,
                source: Some(pollable(source, Interest::READABLE)?),
                sink: Some(sink),
                pending: Vec::new(),
                sent: 0,
                attached: Vec::new(),
                process_over: false,
            },
            on_end,
        ))
    }

    fn run(state: State, on_end: Box<dyn Fn()>) -> Self {
        let shared =
            Rc::new(Shared { state: RefCell::new(state), changed: Notify::new(), unread: Cell::new(false), on_end });
        Self { _task: OwnedTask::spawn(drive(shared.clone())), shared }
    }

    /// Which stream it is.
    pub fn stream(&self) -> Stream {
        self.shared.state.borrow().stream
    }

    /// Whether there is nothing more to wait for: it has finished, or nobody is there to read what is left.
    pub fn is_drained(&self) -> bool {
        self.shared.unread.get() || self.shared.state.borrow().sink.is_none()
    }

    /// Whether all that was written into the source up to now has reached its reader, or there is none to reach.
    pub fn is_settled(&self) -> bool {
        let state = self.shared.state.borrow();
        let empty = |fd: &Fd| pipe::unread(fd.get_ref()).is_ok_and(|n| n == 0);
        let Some(sink) = &state.sink else { return true };
        let passed_on = state.pending.is_empty() && state.source.as_ref().is_none_or(empty);
        match sink {
            OpenSink::Fifo(fd) => !fifo::has_reader(fd.get_ref()) || (passed_on && empty(fd)),
            OpenSink::Process(_) | OpenSink::Log { .. } => passed_on,
        }
    }

    /// Whether its source has ended.
    pub fn has_ended(&self) -> bool {
        self.shared.state.borrow().source.is_none()
    }

    /// Adds a reader: a copy of what is read from now on goes to it too.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub fn attach(&self, write_end: OwnedFd) -> io::Result<()> {
        let fd = pollable(write_end, Interest::WRITABLE)?;
        let mut state = self.shared.state.borrow_mut();
        // What is pending was read before.
        let sent = state.pending.len();
        state.attached.push(Attached { fd, sent });
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// The process was reaped: a terminal has no more to say than what is in it now.
    pub fn process_over(&self) {
        self.shared.state.borrow_mut().process_over = true;
        self.shared.changed.notify_one();
    }

    /// Writes the flow down; copies of its fds go into `bag`.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub fn freeze(&self, name: &str, bag: &mut FdBag) -> io::Result<FrozenFlow> {
        let state = self.shared.state.borrow();
        let source = state.source.as_ref().map(|fd| bag.put(format!("{name}.source"), fd.get_ref())).transpose()?;
        let sink = match &state.sink {
            None => None,
            Some(OpenSink::Fifo(fd)) => Some(FrozenSink::Fifo(bag.put(format!("{name}.sink"), fd.get_ref())?)),
            Some(OpenSink::Process(fd)) => Some(FrozenSink::Process(bag.put(format!("{name}.sink"), fd.get_ref())?)),
            Some(OpenSink::Log { lines, .. }) => Some(FrozenSink::Log { lines: lines.clone() }),
        };
        let attached = state.attached.iter().enumerate();
        let attached = attached
            .map(|(n, a)| Ok((bag.put(format!("{name}.attached{n}"), a.fd.get_ref())?, a.sent)))
            .collect::<io::Result<_>>()?;
        Ok(FrozenFlow {
            stream: state.stream,
            kind: state.kind,
            source,
            sink,
            pending: state.pending.clone(),
            sent: state.sent,
            attached,
            process_over: state.process_over,
        })
    }

    /// Goes on where [`Flow::freeze`] stopped. `writer` is the process's log, if it has one.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`, and `NotFound` for an fd that is not in the bag.
    pub fn thaw(
        frozen: FrozenFlow,
        bag: &mut FdBag,
        writer: Option<&Rc<LogWriter>>,
        on_end: Box<dyn Fn()>,
    ) -> io::Result<Self> {
        let mut open = |name: &str, interest| pollable(bag.take(name)?, interest);
        let source = frozen.source.map(|name| open(&name, Interest::READABLE)).transpose()?;
        let sink = match frozen.sink {
            None => None,
            Some(FrozenSink::Fifo(name)) => Some(OpenSink::Fifo(open(&name, Interest::WRITABLE)?)),
            Some(FrozenSink::Process(name)) => Some(OpenSink::Process(open(&name, Interest::WRITABLE)?)),
            Some(FrozenSink::Log { lines }) => {
                let writer = writer.cloned().ok_or(ErrorKind::NotFound)?;
                Some(OpenSink::Log { writer, lines })
            }
        };
        let attached = frozen.attached.into_iter();
        let attached = attached
            .map(|(name, sent)| Ok(Attached { fd: open(&name, Interest::WRITABLE)?, sent }))
            .collect::<io::Result<_>>()?;
        let state = State {
            stream: frozen.stream,
            kind: frozen.kind,
            source,
            sink,
            pending: frozen.pending,
            sent: frozen.sent,
            attached,
            process_over: frozen.process_over,
        };
        Ok(Self::run(state, on_end))
    }
}

fn pollable(fd: OwnedFd, interest: Interest) -> io::Result<Fd> {
    pipe::set_nonblocking(&fd)?;
    Ok(Rc::new(ready::register(fd, interest)?))
}

/// The whole task: it only waits; what is done is done in [`State::step`].
async fn drive(shared: Rc<Shared>) {
    let mut steps = 0;
    loop {
        let next = shared.state.borrow_mut().step();
        let progressed = matches!(next, Next::Step);
        steps = if progressed { steps + 1 } else { 0 };
        // In every select below both branches may be dropped: readiness, watches and notifications are not lost by it,
        // and the step that follows looks at everything again. Their order does not matter.
        match next {
            Next::Step if steps < STEPS_PER_TURN => {}
            Next::Step => {
                steps = 0;
                tokio::task::yield_now().await;
            }
            Next::Readable(fd) => tokio::select! {
                _ = fd.readable() => {}
                () = shared.changed.notified() => {}
            },
            Next::Writable(fd) => {
                let closed = tokio::select! {
                    guard = fd.writable() => guard.is_ok_and(|guard| guard.ready().is_write_closed()),
                    () = shared.changed.notified() => false,
                };
                // A reader left and another came before anything was written: without this every wait would return at
                // once from now on.
                if closed && fifo::has_reader(fd.get_ref()) {
                    shared.state.borrow_mut().renew_sink();
                }
            }
            Next::Reader(fd) => {
                shared.unread.set(true);
                (shared.on_end)();
                fifo::reader_returns(fd.get_ref()).await;
                shared.unread.set(false);
                shared.state.borrow_mut().renew_sink();
            }
            Next::Room(writer) => writer.room().await,
            Next::Tail(fd) => {
                let had_reader = fifo::has_reader(fd.get_ref());
                if !had_reader {
                    shared.unread.set(true);
                    (shared.on_end)();
                }
                fifo::tail_changes(fd.get_ref(), had_reader).await;
                shared.unread.set(false);
            }
            Next::Finished => break,
        }
    }
    (shared.on_end)();
}

impl State {
    fn step(&mut self) -> Next {
        if let Some(next) = self.flush() {
            return next;
        }
        let (Some(source), Some(sink)) = (self.source.clone(), &self.sink) else { return self.end() };
        match sink {
            OpenSink::Log { writer, .. } if writer.is_full() => return Next::Room(writer.clone()),
            OpenSink::Fifo(fd) | OpenSink::Process(fd)
                if self.attached.is_empty()
                    && self.kind == SourceKind::Pipe
                    && pipe::unread(source.get_ref()).is_ok_and(|n| n >= BULK) =>
            {
                let fd = fd.clone();
                return self.splice(&source, &fd);
            }
            _ => {}
        }
        self.copy(&source)
    }

    fn splice(&mut self, source: &Fd, sink: &Fd) -> Next {
        match pipe::move_pages(source.get_ref(), sink.get_ref(), MOST_PER_SPLICE) {
            Ok(_) => Next::Step,
            Err(e) => match e.kind() {
                // There was something to read, so it is the sink that is full.
                ErrorKind::WouldBlock => self.blocked(sink),
                ErrorKind::BrokenPipe => self.sink_closed(),
                ErrorKind::Interrupted => Next::Step,
                // A sink that does not take pages (a terminal) takes bytes.
                _ => self.copy(source),
            },
        }
    }

    fn copy(&mut self, source: &Fd) -> Next {
        SHARED.with_borrow_mut(|buffer| {
            buffer.resize(BUFFER, 0);
            match read(source.get_ref(), buffer) {
                Ok(0) => self.source = None,
                Ok(n) => self.take(&buffer[..n]),
                Err(Errno::EINTR) => {}
                // All slaves of the terminal are closed, or it is empty: the end if the process is over.
                Err(Errno::EIO | Errno::EAGAIN) if self.kind == SourceKind::Terminal && self.process_over => {
                    self.source = None;
                }
                Err(Errno::EAGAIN | Errno::EIO) => {
                    clear(source, Interest::READABLE);
                    return Next::Readable(source.clone());
                }
                Err(e) => {
                    tracing::warn!(stream = self.stream.name(), error = %e, "cannot read, ending the stream");
                    self.source = None;
                }
            }
            Next::Step
        })
    }

    fn take(&mut self, bytes: &[u8]) {
        match &mut self.sink {
            Some(OpenSink::Log { writer, lines: Some(lines) }) => {
                let stream = self.stream.name();
                writer.enqueue(|queue| lines.push(stream, now_unix_ns(), bytes, queue));
            }
            Some(OpenSink::Log { writer, lines: None }) => writer.enqueue(|queue| queue.extend_from_slice(bytes)),
            Some(OpenSink::Fifo(fd) | OpenSink::Process(fd)) if self.attached.is_empty() => {
                // The usual case: all of it goes at once, and nothing is kept.
                let written = write(fd.get_ref(), bytes).unwrap_or(0);
                self.pending.extend_from_slice(&bytes[written..]);
                return;
            }
            Some(OpenSink::Fifo(..) | OpenSink::Process(_)) => {
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

    /// Writes what is pending; none if nothing is left.
    fn flush(&mut self) -> Option<Next> {
        if self.pending.is_empty() {
            return None;
        }
        if let Some(OpenSink::Fifo(fd) | OpenSink::Process(fd)) = &self.sink {
            let fd = fd.clone();
            while self.sent < self.pending.len() {
                match write(fd.get_ref(), &self.pending[self.sent..]) {
                    Ok(n) => self.sent += n,
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => return Some(self.blocked(&fd)),
                    Err(_) => return Some(self.sink_closed()),
                }
            }
        }
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
        clear(fd, Interest::WRITABLE);
        Next::Writable(fd.clone())
    }

    fn sink_closed(&mut self) -> Next {
        match &self.sink {
            Some(OpenSink::Fifo(fd)) => Next::Reader(fd.clone()),
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
            Some(OpenSink::Fifo(fd)) if pipe::unread(fd.get_ref()).is_ok_and(|n| n > 0) => {
                return Next::Tail(fd.clone());
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

    /// epoll's "closed" is for good in Tokio's eyes, a reader's absence is not: register the FIFO anew.
    fn renew_sink(&mut self) {
        if let Some(OpenSink::Fifo(fd)) = &mut self.sink
            && let Ok(renewed) = fd.get_ref().try_clone().and_then(|copy| pollable(copy, Interest::WRITABLE))
        {
            *fd = renewed;
        }
    }
}

/// Tells Tokio that the fd is not ready, as an operation on it has just shown. Events that come later are not lost:
/// they are collected only when this task gives way.
fn clear(fd: &Fd, interest: Interest) {
    let _ = fd.try_io(interest, |_| Err::<(), _>(ErrorKind::WouldBlock.into()));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;
    use std::future::Future;
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::PathBuf;
    use std::time::Duration;

    use nix::fcntl::OFlag;
    use nix::sys::stat::Mode;
    use nix::time::{ClockId, clock_gettime};
    use nix::unistd::{mkfifo, pipe2};
    use tokio::task::{LocalSet, yield_now};

    use super::*;

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

        fn sink(&self) -> Sink {
            Sink::Fifo(fifo::open_write_end(&self.0).unwrap())
        }
    }

    impl Drop for Fifo {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn start(source: OwnedFd, sink: Sink) -> (Flow, Rc<Cell<usize>>) {
        let quiet = Rc::new(Cell::new(0));
        let count = quiet.clone();
        let on_end = Box::new(move || count.set(count.get() + 1));
        (Flow::start(Stream::Stdout, source, SourceKind::Pipe, sink, on_end).unwrap(), quiet)
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
            let cpu = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
            let before = cpu();
            tokio::time::sleep(Duration::from_millis(200)).await;
            let spent = cpu() - before;
            assert!(spent < Duration::from_millis(100), "it spins: {spent:?} of 200 ms");
            assert!(read_exactly(&mut second, 200_000).await == numbered(200_000));
        });
    }
}
