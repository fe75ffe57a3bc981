//! The stdio of one process: which ends the OCI runtime gets, which flows run, and what is left to drain.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use nix::unistd::{Gid, Uid, fchown};
use serde::{Deserialize, Serialize};

use super::fifo::{self, FifoError};
use super::log::JsonLines;
use super::log_writer::{FrozenWriter, LogWriter};
use super::relay::{Flow, FrozenFlow, Sink, SourceKind, Stream};
use super::stdio::{AddressError, Addresses, LogSettings, Target};
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
    #[error("cannot open the log {path}")]
    Log {
        /// As given.
        path: PathBuf,
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
    log: Option<Log>,
    console: Option<Console>,
    /// Opened, and waiting for the terminal.
    prepared: Option<Prepared>,
    on_quiet: OnQuiet,
}

struct Log {
    settings: Option<LogSettings>,
    writer: Rc<LogWriter>,
}

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
    log: Option<(Option<LogSettings>, FrozenWriter)>,
    console: Option<(String, Option<String>)>,
    prepared: Option<FrozenPrepared>,
}

#[derive(Serialize, Deserialize)]
struct FrozenPrepared {
    input: Option<String>,
    output: Option<FrozenOutput>,
}

#[derive(Serialize, Deserialize)]
enum FrozenOutput {
    Fifo(String),
    Log { json: bool },
}

impl ProcessIo {
    /// Opens everything that the addresses name and, without a terminal, starts to relay.
    ///
    /// # Errors
    /// See [`IoError`]; nothing stays open.
    pub fn open(addresses: &Addresses, owner: (u32, u32), on_quiet: OnQuiet) -> Result<(Self, ProcessEnds), IoError> {
        let mut this = Self { flows: Vec::new(), keeper: None, log: None, console: None, prepared: None, on_quiet };
        let input = this.open_input(addresses)?;
        let output = addresses.output()?.map(|target| this.open_sink(&target)).transpose()?;
        let mut ends = ProcessEnds::default();
        if addresses.terminal {
            this.prepared = Some(Prepared { input, output });
            return Ok((this, ends));
        }
        let errors = addresses.errors()?.map(|target| this.open_sink(&target)).transpose()?;
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
        Ok((this, ends))
    }

    fn open_input(&mut self, addresses: &Addresses) -> Result<Option<OwnedFd>, IoError> {
        let Some(path) = addresses.input()? else { return Ok(None) };
        let (read, keeper) = fifo::open_read_end(&path)?;
        self.keeper = Some(keeper);
        Ok(Some(read))
    }

    fn open_sink(&mut self, target: &Target) -> Result<Sink, IoError> {
        let (settings, path, json) = match target {
            Target::Fifo(path) => return Ok(Sink::Fifo(fifo::open_write_end(path)?)),
            Target::File(path) => (None, path, false),
            Target::JsonFile(settings) => (Some(settings.clone()), &settings.path, true),
        };
        // Both outputs name the same log: one writer, so that their lines don't mix.
        let writer = match &self.log {
            Some(log) => log.writer.clone(),
            None => {
                let on_idle = quiet(&self.on_quiet);
                let opened = match &settings {
                    Some(settings) => LogWriter::json_file(settings, on_idle),
                    None => LogWriter::raw(path, on_idle),
                };
                let writer = Rc::new(opened.map_err(|source| IoError::Log { path: path.clone(), source })?);
                self.log = Some(Log { settings, writer: writer.clone() });
                writer
            }
        };
        Ok(Sink::Log { writer, lines: json.then(JsonLines::default) })
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
        outputs.all(Flow::is_drained) && self.log.as_ref().is_none_or(|log| log.writer.is_idle())
    }

    /// Whether all that was printed up to now has reached its readers, as far as they are there.
    pub fn is_settled(&self) -> bool {
        self.flows.iter().filter(|flow| flow.stream() != Stream::Stdin).all(Flow::is_settled)
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

    /// Closes the log and opens it again by its path.
    ///
    /// # Errors
    /// As [`LogWriter::reopen`].
    pub fn reopen_log(&self) -> io::Result<()> {
        self.log.as_ref().map_or(Ok(()), |log| log.writer.reopen())
    }

    /// Writes everything down; copies of the fds go into `bag`.
    ///
    /// # Errors
    /// `WouldBlock` while the log is being written to; else as `dup(2)`.
    pub fn freeze(&self, name: &str, bag: &mut FdBag) -> io::Result<FrozenIo> {
        let flows = self.flows.iter();
        let flows = flows.map(|flow| flow.freeze(&format!("{name}.{}", flow.stream().name()), bag));
        let flows = flows.collect::<io::Result<_>>()?;
        let keeper = self.keeper.as_ref().map(|fd| bag.put(format!("{name}.keeper"), fd)).transpose()?;
        let log = match &self.log {
            None => None,
            Some(Log { settings, writer }) => {
                let frozen = writer.freeze(settings.as_ref(), &format!("{name}.log"), bag)?;
                Some((settings.clone(), frozen))
            }
        };
        let console = match &self.console {
            None => None,
            Some(Console { master, slave }) => {
                let slave = slave.as_ref().map(|fd| bag.put(format!("{name}.slave"), fd)).transpose()?;
                Some((bag.put(format!("{name}.master"), master)?, slave))
            }
        };
        let prepared = self.prepared.as_ref().map(|p| p.freeze(name, bag)).transpose()?;
        Ok(FrozenIo { flows, keeper, log, console, prepared })
    }

    /// Nothing came of the freeze.
    pub fn go_on(&self) {
        if let Some(log) = &self.log {
            log.writer.go_on();
        }
    }

    /// Goes on where [`ProcessIo::freeze`] stopped.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`, and `NotFound` for an fd that is not in the bag.
    pub fn thaw(frozen: FrozenIo, bag: &mut FdBag, on_quiet: OnQuiet) -> io::Result<Self> {
        let log = match frozen.log {
            None => None,
            Some((settings, writer)) => {
                let writer = Rc::new(LogWriter::thaw(writer, bag, quiet(&on_quiet))?);
                Some(Log { settings, writer })
            }
        };
        let writer = log.as_ref().map(|log| &log.writer);
        let flows = frozen.flows.into_iter();
        let flows = flows.map(|flow| Flow::thaw(flow, bag, writer, quiet(&on_quiet))).collect::<io::Result<_>>()?;
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
            Some(FrozenPrepared { input, output }) => Some(Prepared {
                input: input.map(|name| bag.take(&name)).transpose()?,
                output: match (output, writer) {
                    (Some(FrozenOutput::Fifo(name)), _) => Some(Sink::Fifo(bag.take(&name)?)),
                    (Some(FrozenOutput::Log { json }), Some(writer)) => {
                        Some(Sink::Log { writer: writer.clone(), lines: json.then(JsonLines::default) })
                    }
                    _ => None,
                },
            }),
        };
        Ok(Self { flows, keeper, log, console, prepared, on_quiet })
    }
}

impl Prepared {
    fn freeze(&self, name: &str, bag: &mut FdBag) -> io::Result<FrozenPrepared> {
        let input = self.input.as_ref().map(|fd| bag.put(format!("{name}.input"), fd)).transpose()?;
        let output = match &self.output {
            Some(Sink::Fifo(fd)) => Some(FrozenOutput::Fifo(bag.put(format!("{name}.output"), fd)?)),
            Some(Sink::Log { lines, .. }) => Some(FrozenOutput::Log { json: lines.is_some() }),
            Some(Sink::Process(_)) | None => None,
        };
        Ok(FrozenPrepared { input, output })
    }
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
