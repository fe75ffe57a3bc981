//! The stdio of one process: which ends the OCI runtime gets, which flows run, and what is left to drain.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::unistd::{Gid, Uid, fchown};
use serde::{Deserialize, Serialize};

use super::fifo::{self, FifoError};
use super::log::Lines;
use super::log_writer::{FrozenWriter, LogWriter, OpenLog};
use super::relay::{Flow, FrozenFlow, Sink, SourceKind, Stream};
use super::spill::Spill;
use super::spill::file::{FrozenFile, Place};
use super::stdio::{AddressError, Addresses, LogTarget, Target};
use crate::freeze::FdBag;
use crate::sys::{pipe, tty};

/// Called whenever something has ended or run empty, so that who waits for the drain may look again.
pub type OnQuiet = Rc<dyn Fn()>;

/// Why a process's stdio could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// An address is not understood.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A FIFO cannot be used.
    #[error(transparent)]
    Fifo(#[from] FifoError),
    /// The log cannot be opened.
    #[error("cannot open the log {log}")]
    Log {
        /// Which.
        log: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel refuses a pipe, a terminal or their registration.
    #[error("cannot set up {0}")]
    Kernel(&'static str, #[source] io::Error),
}

/// The process's ends of its pipes, to be given to the OCI runtime and closed here right after. None: `/dev/null`.
#[derive(Debug, Default)]
pub struct ProcessEnds {
    /// A read end.
    pub stdin: Option<OwnedFd>,
    /// A write end.
    pub stdout: Option<OwnedFd>,
    /// A write end.
    pub stderr: Option<OwnedFd>,
}

/// See the module.
pub struct ProcessIo {
    flows: Vec<Flow>,
    /// Keeps the input FIFO from ending; gone after CloseIO.
    keeper: Option<OwnedFd>,
    logs: Vec<Log>,
    console: Option<Console>,
    /// Opened, and waiting for the terminal.
    prepared: Option<Prepared>,
    on_quiet: OnQuiet,
}

struct Log {
    /// Two outputs that name the same one share it.
    target: LogTarget,
    writer: Rc<LogWriter>,
}

/// A log that is open, or cannot be opened.
pub struct OpenedLog {
    target: LogTarget,
    outcome: io::Result<OpenLog>,
}

impl OpenedLog {
    /// Opens or makes it; blocks on the disk.
    pub fn open(target: LogTarget) -> Self {
        Self { outcome: OpenLog::open(&target), target }
    }
}

/// Our ends of the pipes to a logger, for stdout and stderr.
pub type LoggerPipes = [OwnedFd; 2];

struct Console {
    master: OwnedFd,
    /// Keeps the terminal from hanging up while the process lives: it may close all its own and open one again.
    slave: Option<OwnedFd>,
}

#[derive(Default)]
struct Prepared {
    input: Option<OwnedFd>,
    output: Option<Sink>,
}

/// A [`ProcessIo`] written down.
#[derive(Serialize, Deserialize)]
pub struct FrozenIo {
    flows: Vec<FrozenFlow>,
    keeper: Option<String>,
    #[serde(default)]
    logs: Vec<FrozenLog>,
    console: Option<(String, Option<String>)>,
    prepared: Option<FrozenPrepared>,
}

#[derive(Serialize, Deserialize)]
struct FrozenLog {
    target: LogTarget,
    writer: FrozenWriter,
}

#[derive(Serialize, Deserialize)]
struct FrozenPrepared {
    input: Option<String>,
    output: Option<FrozenOutput>,
    /// Where clients look for the FIFO.
    #[serde(default)]
    path: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
enum FrozenOutput {
    Fifo(String, Box<FrozenFile>),
    Logger(String),
    Log,
}

impl ProcessIo {
    /// Opens everything that the addresses name, but for logs, which are `opened` already; nothing is relayed before
    /// [`ProcessIo::begin`], with a terminal before [`ProcessIo::adopt_terminal`]. `logger` is there if the addresses name
    /// one: it runs already. `spill` says where the output is kept that nobody reads.
    ///
    /// # Errors
    /// See [`IoError`]; nothing stays open.
    pub fn open(
        addresses: &Addresses,
        owner: (u32, u32),
        opened: Vec<OpenedLog>,
        logger: Option<LoggerPipes>,
        spill: impl Fn(Stream) -> Place,
        on_quiet: OnQuiet,
    ) -> Result<(Self, ProcessEnds), IoError> {
        let mut this =
            Self { flows: Vec::new(), keeper: None, logs: Vec::new(), console: None, prepared: None, on_quiet };
        opened.into_iter().try_for_each(|log| this.adopt_log(log).map(drop))?;
        let [out_pipe, err_pipe] = logger.map_or([None, None], |pipes| pipes.map(Some));
        let input = this.open_input(addresses)?;
        let output = addresses
            .output()?
            .map(|target| this.open_sink(&target, out_pipe, || spill(Stream::Stdout)))
            .transpose()?;
        let mut ends = ProcessEnds::default();
        if addresses.terminal {
            // The pipe for stderr is closed here: the logger sees at once that nothing will come from there.
            this.prepared = Some(Prepared { input, output });
            return Ok((this, ends));
        }
        let errors = addresses
            .errors()?
            .map(|target| this.open_sink(&target, err_pipe, || spill(Stream::Stderr)))
            .transpose()?;
        if let Some(input) = input {
            let (process, ours) = owned_pipe(owner, true)?;
            this.start(Stream::Stdin, input, SourceKind::Pipe, Sink::Process(ours))?;
            ends.stdin = Some(process);
        }
        for (stream, sink, end) in
            [(Stream::Stdout, output, &mut ends.stdout), (Stream::Stderr, errors, &mut ends.stderr)]
        {
            if let Some(sink) = sink {
                let (process, ours) = owned_pipe(owner, false)?;
                this.start(stream, ours, SourceKind::Pipe, sink)?;
                *end = Some(process);
            }
        }
        this.flows.iter().for_each(Flow::hold);
        Ok((this, ends))
    }

    /// The OCI runtime has made the process. Until then it is the runtime that writes to the process's streams, about what
    /// it could not do; the client hears of that by the error, and its log is to hold what the process printed alone.
    pub fn begin(&self) {
        self.flows.iter().for_each(Flow::let_go);
    }

    fn open_input(&mut self, addresses: &Addresses) -> Result<Option<OwnedFd>, IoError> {
        let Some(path) = addresses.input()? else { return Ok(None) };
        let (read, keeper) = fifo::open_read_end(&path)?;
        self.keeper = Some(keeper);
        Ok(Some(read))
    }

    fn open_sink(
        &mut self,
        target: &Target,
        logger: Option<OwnedFd>,
        spill: impl FnOnce() -> Place,
    ) -> Result<Sink, IoError> {
        if let Some(target) = log_target(target) {
            return self.open_log(target);
        }
        match (target, logger) {
            (Target::Fifo(path) | Target::File(path), _) => open_fifo(path, spill()),
            (Target::Logger(_), Some(pipe)) => Ok(Sink::Logger(pipe)),
            _ => Err(IoError::Kernel("the pipe to the logger", io::ErrorKind::NotFound.into())),
        }
    }

    fn open_log(&mut self, target: LogTarget) -> Result<Sink, IoError> {
        let lines = target.format().map(Lines::new);
        // Both outputs may name the same log: one writer, so that their lines don't mix.
        let known = self.logs.iter().find(|log| log.target == target).map(|log| log.writer.clone());
        let writer = match known {
            Some(writer) => writer,
            None => self.adopt_log(OpenedLog::open(target))?,
        };
        Ok(Sink::Log { writer, lines })
    }

    fn adopt_log(&mut self, OpenedLog { target, outcome }: OpenedLog) -> Result<Rc<LogWriter>, IoError> {
        let open = outcome.map_err(|source| IoError::Log { log: target.to_string(), source })?;
        let writer = Rc::new(LogWriter::start(open, quiet(&self.on_quiet)));
        self.logs.push(Log { target, writer: writer.clone() });
        Ok(writer)
    }

    fn start(&mut self, stream: Stream, source: OwnedFd, kind: SourceKind, sink: Sink) -> Result<(), IoError> {
        let flow = Flow::start(stream, source, kind, sink, quiet(&self.on_quiet))
            .map_err(|e| IoError::Kernel("the relay of a stream", e))?;
        self.flows.push(flow);
        Ok(())
    }

    /// Takes the terminal that the OCI runtime made, and starts to relay.
    ///
    /// # Errors
    /// [`IoError::Kernel`].
    pub fn adopt_terminal(&mut self, master: OwnedFd) -> Result<(), IoError> {
        let failed = |e| IoError::Kernel("the terminal", e);
        let Prepared { input, output } = self.prepared.take().unwrap_or_default();
        let slave = tty::open_slave(&master).map_err(failed)?;
        if let Some(input) = input {
            let copy = master.try_clone().map_err(failed)?;
            self.start(Stream::Stdin, input, SourceKind::Pipe, Sink::Process(copy))?;
        }
        if let Some(output) = output {
            let copy = master.try_clone().map_err(failed)?;
            self.start(Stream::Stdout, copy, SourceKind::Terminal, output)?;
        }
        self.console = Some(Console { master, slave: Some(slave) });
        Ok(())
    }

    /// Tells the terminal its size; without one nothing happens. Whether there was one.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn resize(&self, width: u16, height: u16) -> io::Result<bool> {
        match &self.console {
            Some(console) => tty::resize(&console.master, width, height).map(|()| true),
            None => Ok(false),
        }
    }

    /// From now on a client that closes its end is the end of the input. Safe to repeat.
    pub fn close_stdin(&mut self) {
        self.keeper = None;
    }

    /// The process was reaped.
    pub fn process_over(&mut self) {
        if let Some(console) = &mut self.console {
            console.slave = None;
        }
        for flow in &self.flows {
            flow.process_over();
        }
        // Nobody is left to read it.
        self.keeper = None;
        self.flows.retain(|flow| flow.stream() != Stream::Stdin);
    }

    /// Whether all output has been passed on, as far as there is somebody to take it.
    pub fn is_drained(&self) -> bool {
        let mut outputs = self.flows.iter().filter(|flow| flow.stream() != Stream::Stdin);
        outputs.all(Flow::is_drained) && self.logs.iter().all(|log| log.writer.is_idle())
    }

    /// Whether something that was printed waits for a reader who is not there.
    pub fn is_unread(&self) -> bool {
        self.flows.iter().any(Flow::is_unread)
    }

    /// How many bytes of the output their readers have not taken, or their logs not.
    pub fn left(&self) -> u64 {
        let unwritten: usize = self.logs.iter().map(|log| log.writer.unwritten()).sum();
        let outputs = self.flows.iter().filter(|flow| flow.stream() != Stream::Stdin);
        unwritten as u64 + outputs.map(Flow::left).sum::<u64>()
    }

    /// See [`Flow::reading`].
    pub fn reading(&self, stream: Stream) -> Option<(bool, Spill)> {
        self.flows.iter().find(|flow| flow.stream() == stream)?.reading()
    }

    /// What is kept of the output for absent readers.
    pub fn spills(&self) -> Vec<Spill> {
        self.flows.iter().filter_map(Flow::spill).collect()
    }

    /// Whether all that was printed up to now has reached its readers, as far as they are there.
    pub fn is_settled(&self) -> bool {
        self.flows.iter().filter(|flow| flow.stream() != Stream::Stdin).all(Flow::is_settled)
    }

    /// For a logger that has ended with output before it: read ends of its pipes, stdout's first, with all that it did not
    /// read still in them; one that is no longer needed is at its end. None if no logger is missing.
    ///
    /// # Errors
    /// As `open(2)` and `pipe2(2)`.
    pub fn orphaned_logger_pipes(&self) -> io::Result<Option<[OwnedFd; 2]>> {
        let orphaned = |stream| {
            let flow = self.flows.iter().find(|flow| flow.stream() == stream);
            flow.and_then(Flow::orphaned_logger_pipe).transpose()
        };
        Ok(match (orphaned(Stream::Stdout)?, orphaned(Stream::Stderr)?) {
            (None, None) => None,
            // Its write end is closed at once.
            (Some(out), None) => Some([out, pipe::large_pipe()?.0]),
            (None, Some(err)) => Some([pipe::large_pipe()?.0, err]),
            (Some(out), Some(err)) => Some([out, err]),
        })
    }

    /// There is a logger again.
    pub fn logger_is_back(&self) {
        self.flows.iter().for_each(Flow::logger_is_back);
    }

    /// Adds readers to the output. Whether there was a stream to read from.
    ///
    /// # Errors
    /// See [`IoError`].
    pub fn attach(&self, stdout: Option<PathBuf>, stderr: Option<PathBuf>) -> Result<bool, IoError> {
        let mut found = false;
        for (stream, path) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            let flow = self.flows.iter().find(|flow| flow.stream() == stream && !flow.has_ended());
            if let (Some(path), Some(flow)) = (path, flow) {
                let write_end = fifo::open_write_end(&path)?;
                flow.attach(write_end).map_err(|e| IoError::Kernel("the attached reader", e))?;
                found = true;
            }
        }
        Ok(found)
    }

    /// The writers of its logs.
    pub fn logs(&self) -> impl Iterator<Item = Rc<LogWriter>> + use<'_> {
        self.logs.iter().map(|log| log.writer.clone())
    }

    /// Writes everything down; copies of the fds go into `bag`.
    ///
    /// # Errors
    /// `WouldBlock` while the log or a spill is being written to; else as `dup(2)`.
    pub fn freeze(&self, name: &str, bag: &mut FdBag) -> io::Result<FrozenIo> {
        let writers: Vec<_> = self.logs.iter().map(|log| log.writer.clone()).collect();
        let flows = self.flows.iter();
        let flows = flows.map(|flow| flow.freeze(&format!("{name}.{}", flow.stream().name()), &writers, bag));
        let flows = flows.collect::<io::Result<_>>()?;
        let keeper = self.keeper.as_ref().map(|fd| bag.put(format!("{name}.keeper"), fd)).transpose()?;
        let logs = self.logs.iter().enumerate();
        let logs = logs.map(|(n, Log { target, writer })| {
            let writer = writer.freeze(&format!("{name}.log{n}"), bag)?;
            Ok(FrozenLog { target: target.clone(), writer })
        });
        let logs = logs.collect::<io::Result<_>>()?;
        let console = match &self.console {
            None => None,
            Some(Console { master, slave }) => {
                let slave = slave.as_ref().map(|fd| bag.put(format!("{name}.slave"), fd)).transpose()?;
                Some((bag.put(format!("{name}.master"), master)?, slave))
            }
        };
        let prepared = self.prepared.as_ref().map(|p| p.freeze(name, bag)).transpose()?;
        Ok(FrozenIo { flows, keeper, logs, console, prepared })
    }

    /// Nothing came of the freeze.
    pub fn go_on(&self) {
        self.logs.iter().for_each(|log| log.writer.go_on());
    }

    /// Goes on where [`ProcessIo::freeze`] stopped.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`, and `NotFound` for an fd that is not in the bag.
    pub fn thaw(frozen: FrozenIo, bag: &mut FdBag, on_quiet: OnQuiet) -> io::Result<Self> {
        let logs = frozen.logs.into_iter();
        let logs = logs.map(|FrozenLog { target, writer }| {
            let writer = Rc::new(LogWriter::thaw(writer, &target, bag, quiet(&on_quiet))?);
            Ok(Log { target, writer })
        });
        let logs = logs.collect::<io::Result<Vec<_>>>()?;
        let writers: Vec<_> = logs.iter().map(|log| log.writer.clone()).collect();
        let flows = frozen.flows.into_iter();
        let flows = flows.map(|flow| Flow::thaw(flow, bag, &writers, quiet(&on_quiet))).collect::<io::Result<_>>()?;
        let keeper = frozen.keeper.map(|name| bag.take(&name)).transpose()?;
        let console = match frozen.console {
            None => None,
            Some((master, slave)) => {
                let slave = slave.map(|name| bag.take(&name)).transpose()?;
                Some(Console { master: bag.take(&master)?, slave })
            }
        };
        let prepared = match frozen.prepared {
            None => None,
            Some(FrozenPrepared { input, output, path }) => Some(Prepared {
                input: input.map(|name| bag.take(&name)).transpose()?,
                // Of a terminal, which has one output and so one log at most.
                output: match (output, logs.first()) {
                    (Some(FrozenOutput::Fifo(name, spill)), _) => {
                        Some(Sink::Fifo { fd: bag.take(&name)?, path, spill: Spill::thaw(*spill, bag)? })
                    }
                    (Some(FrozenOutput::Logger(name)), _) => Some(Sink::Logger(bag.take(&name)?)),
                    (Some(FrozenOutput::Log), Some(Log { target, writer })) => {
                        Some(Sink::Log { writer: writer.clone(), lines: target.format().map(Lines::new) })
                    }
                    _ => None,
                },
            }),
        };
        Ok(Self { flows, keeper, logs, console, prepared, on_quiet })
    }
}

impl Prepared {
    fn freeze(&self, name: &str, bag: &mut FdBag) -> io::Result<FrozenPrepared> {
        let input = self.input.as_ref().map(|fd| bag.put(format!("{name}.input"), fd)).transpose()?;
        let output = match &self.output {
            Some(Sink::Fifo { fd, spill, .. }) => {
                let spill = Box::new(spill.freeze(&format!("{name}.spill"), bag)?);
                Some(FrozenOutput::Fifo(bag.put(format!("{name}.output"), fd)?, spill))
            }
            Some(Sink::Logger(fd)) => Some(FrozenOutput::Logger(bag.put(format!("{name}.output"), fd)?)),
            Some(Sink::Log { .. }) => Some(FrozenOutput::Log),
            Some(Sink::Process(_)) | None => None,
        };
        let path = match &self.output {
            Some(Sink::Fifo { path, .. }) => path.clone(),
            _ => None,
        };
        Ok(FrozenPrepared { input, output, path })
    }
}

/// The logs that the addresses name, each once.
///
/// # Errors
/// As [`Addresses::output`].
pub fn log_targets(addresses: &Addresses) -> Result<Vec<LogTarget>, AddressError> {
    let errors = if addresses.terminal { None } else { addresses.errors()? };
    let mut targets: Vec<_> = addresses.output()?.iter().chain(&errors).filter_map(log_target).collect();
    targets.dedup();
    Ok(targets)
}

/// None for what is no log.
fn log_target(target: &Target) -> Option<LogTarget> {
    match target {
        Target::Fifo(path) if takes_appends(path) => Some(LogTarget::Plain(path.clone())),
        // To open it as a file is opened would wait for its reader.
        Target::File(path) if is_fifo(path) => None,
        Target::File(path) => Some(LogTarget::Plain(path.clone())),
        Target::Log(settings) => Some(LogTarget::Files(settings.clone())),
        Target::Journal(settings) => Some(LogTarget::Journal(settings.clone())),
        Target::Fifo(_) | Target::Logger(_) => None,
    }
}

/// A client's FIFO, with a place for what comes while nobody reads.
fn open_fifo(path: &Path, place: Place) -> Result<Sink, IoError> {
    Ok(Sink::Fifo { fd: fifo::open_write_end(path)?, path: Some(path.to_owned()), spill: Spill::new(place) })
}

/// What a path names is looked at when it is used (contract 6.2): a FIFO, a file or nowhere. Other devices could stall.
fn takes_appends(path: &Path) -> bool {
    let null = nix::sys::stat::makedev(1, 3);
    path.metadata().is_ok_and(|m| m.is_file() || (m.file_type().is_char_device() && m.rdev() == null))
}

fn is_fifo(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.file_type().is_fifo())
}

fn quiet(on_quiet: &OnQuiet) -> Box<dyn Fn()> {
    let on_quiet = on_quiet.clone();
    Box::new(move || on_quiet())
}

/// A pipe between the process and us: (process's end, our end). The process's end belongs to the container's root user,
/// so that `/dev/stdout` can be opened again inside a user namespace.
fn owned_pipe(owner: (u32, u32), towards_process: bool) -> Result<(OwnedFd, OwnedFd), IoError> {
    let failed = |e| IoError::Kernel("a pipe", e);
    let (read, write) = pipe::large_pipe().map_err(failed)?;
    let (process, ours) = if towards_process { (read, write) } else { (write, read) };
    if owner != (0, 0) {
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        fchown(&process, Some(uid), Some(gid)).map_err(|e| failed(e.into()))?;
    }
    Ok((process, ours))
}
