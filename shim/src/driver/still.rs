//! The whole shim, written down and taken up again (design, section 6).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::calls::{Child, Running, What, settle};
use super::container::{Container, Process};
use super::criu::{self, CriuWork};
use super::loggers::{Logger, Revival, Stage, Starting, next_stage, revival_timer};
use super::oom::{FrozenMemory, Memory};
use super::perform::About;
use super::sandbox::Sandbox;
use super::{Config, Shim, State, Timer, on_quiet};
use crate::cgroup;
use crate::cgroup::oom::Alarms;
use crate::freeze::{FORMAT, FdBag, FreezeError, Frozen};
use crate::io::console::ConsoleSocket;
use crate::io::logger::Started;
use crate::io::process::{FrozenIo, ProcessIo};
use crate::io::spill::Removal;
use crate::io::spill::file::Place;
use crate::io::spill::policy::OutputSettings;
use crate::io::stdio::Addresses;
use crate::lifecycle::{Asker, CallId, Lifecycle, Outcome, Pid, ProcessId, TaskId, Work};
use crate::oci::command::Runtime;
use crate::options::Options;
use crate::publish::{FrozenQueue, Publisher};
use crate::server::{self, Connection, FrozenConnection};
use crate::sys::mount::MountEntry;
use crate::wire::Body;

#[derive(Serialize, Deserialize)]
struct FormatOnly {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct FrozenState {
    format: u32,
    config: Config,
    lifecycle: Lifecycle,
    containers: Vec<(TaskId, FrozenContainer)>,
    #[serde(default)]
    sandbox: Option<Sandbox>,
    connections: Vec<(u64, FrozenConnection)>,
    last_connection: u64,
    bodies: Vec<(Asker, Body)>,
    timers: Vec<(Asker, Duration)>,
    running: Vec<(CallId, FrozenRunning)>,
    #[serde(default)]
    loggers: Vec<(Pid, FrozenLogger)>,
    questions: Vec<(Asker, About)>,
    events: FrozenQueue,
    listener: Option<String>,
    #[serde(default)]
    removals: Vec<Place>,
    unsaved: BTreeSet<TaskId>,
    #[serde(default)]
    alarms: Option<String>,
    /// It has said goodbye and only waits for its last words to be heard.
    #[serde(default)]
    stopping: bool,
}

#[derive(Serialize, Deserialize)]
struct FrozenContainer {
    bundle: PathBuf,
    mounts: Vec<MountEntry>,
    options: Options,
    #[serde(default)]
    output: OutputSettings,
    runtime: Runtime,
    cgroup: Option<cgroup::Paths>,
    #[serde(default)]
    memory: Option<FrozenMemory>,
    checkpoint: String,
    processes: Vec<(ProcessId, FrozenProcess)>,
    dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct FrozenProcess {
    addresses: Addresses,
    io: Option<FrozenIo>,
    spec: Vec<u8>,
    size: Option<(u16, u16)>,
    stdin_closed: bool,
    start_time: u64,
    #[serde(default)]
    exit_told: bool,
    /// How often its logger has died, and in what time there is another.
    #[serde(default)]
    revival: (u32, Option<Duration>),
}

#[derive(Serialize, Deserialize)]
struct FrozenRunning {
    task: TaskId,
    work: Work,
    asked: bool,
    remaining: Duration,
    child: Option<FrozenChild>,
    /// Its child has ended like that, and it is cleared up after criu.
    #[serde(default)]
    clearing: Option<(CriuWork, Outcome)>,
    #[serde(default)]
    logger: Option<FrozenStarting>,
}

#[derive(Serialize, Deserialize)]
struct FrozenStarting {
    pid: Pid,
    pipes: [String; 2],
    ready: String,
    must_speak: bool,
}

#[derive(Serialize, Deserialize)]
struct FrozenLogger {
    task: TaskId,
    process: ProcessId,
    program: PathBuf,
    stage: FrozenStage,
}

#[derive(Serialize, Deserialize)]
enum FrozenStage {
    Serving,
    Flushing(Duration),
    Terminating(Duration),
    Killed,
}

#[derive(Serialize, Deserialize)]
struct FrozenChild {
    pid: Pid,
    output: Option<String>,
    log: Option<PathBuf>,
    console: Option<(String, PathBuf)>,
    spec: Option<PathBuf>,
    #[serde(default)]
    criu: Option<CriuWork>,
    timed_out: bool,
}

impl Shim {
    /// Stands still: the whole state as bytes and named fds. This shim serves no more; [`Shim::thaw`] goes on, in this
    /// process or in the image that follows it. Nothing is lost at whatever point this is called: half-read requests,
    /// half-written answers, waits, calls of the OCI runtime and undelivered events are all in the state.
    ///
    /// # Errors
    /// [`FreezeError::Busy`] while a log or a spill is being written to: the shim goes on, try again. [`FreezeError::Fd`] if
    /// an fd cannot be copied.
    pub fn freeze(&self) -> Result<Frozen, FreezeError> {
        let mut state = self.state.borrow_mut();
        let mut fds = FdBag::default();
        let frozen = state.freeze(self.stopping.get(), &mut fds);
        let bytes = frozen.and_then(|frozen| serde_json::to_vec(&frozen).map_err(FreezeError::Malformed));
        let bytes = bytes.inspect_err(|_| state.go_on())?;
        state.dissolve();
        self.tasks.borrow_mut().clear();
        Ok(Frozen { bytes, fds })
    }

    /// Goes on where [`Shim::freeze`] stopped. Must be called within a Tokio `LocalSet` of a current-thread runtime.
    ///
    /// # Errors
    /// See [`FreezeError`].
    pub fn thaw(frozen: Frozen) -> Result<Rc<Self>, FreezeError> {
        let Frozen { bytes, mut fds } = frozen;
        let FormatOnly { format } = serde_json::from_slice(&bytes).map_err(FreezeError::Malformed)?;
        if format != FORMAT {
            return Err(FreezeError::Format(format));
        }
        let frozen: FrozenState = serde_json::from_slice(&bytes).map_err(FreezeError::Malformed)?;
        let publisher = Publisher::thaw(&frozen.config.events_address, frozen.config.journal(), frozen.events);
        let listener = match frozen.listener {
            Some(name) => {
                let listener = fds.take(&name).and_then(server::listener);
                Some(listener.map_err(|e| FreezeError::Fd("the listener".to_owned(), e))?)
            }
            None => None,
        };
        let mut state = State::new(frozen.config, publisher);
        state.listener = listener;
        let alarms = Alarms::thaw(frozen.alarms, &mut fds);
        state.alarms = alarms.map_err(|e| FreezeError::Fd("the alarms".to_owned(), e))?;
        state.lifecycle = frozen.lifecycle;
        state.sandbox = frozen.sandbox;
        state.last_connection = frozen.last_connection;
        state.bodies = frozen.bodies.into_iter().collect();
        let shim = Self::new(state);
        let me = &shim.me;
        let mut state = shim.state.borrow_mut();
        for (task, container) in frozen.containers {
            let container = thaw_container(&task, container, &state.alarms, &mut fds, me)?;
            state.containers.insert(task, container);
        }
        for (call, running) in frozen.running {
            let running = state.thaw_running(call, running, &mut fds, me)?;
            if let What::Child(child) = &running.what {
                let pid = child.pid;
                state.children.insert(pid, call);
            }
            state.running.insert(call, running);
        }
        for (pid, logger) in frozen.loggers {
            state.loggers.insert(pid, thaw_logger(pid, logger, me));
        }
        for (id, connection) in frozen.connections {
            let connection = Connection::thaw(me, id, connection, &mut fds)
                .map_err(|e| FreezeError::Fd(format!("connection {id}"), e))?;
            state.connections.insert(id, connection);
        }
        for (asker, remaining) in frozen.timers {
            let timer = state.give_up_after(remaining, asker, me);
            state.timers.insert(asker, timer);
        }
        for (asker, about) in frozen.questions {
            state.ask(asker, about, me);
        }
        state.removals = frozen.removals.into_iter().map(Removal::begin).collect();
        for task in frozen.unsaved {
            state.save_or_retry(task, me);
        }
        drop(state);
        shim.set_going();
        if frozen.stopping {
            shim.stop();
        }
        // Drains may have come to their end while everything stood still, and children may have died.
        shim.look_at_drains();
        shim.reap();
        Ok(shim)
    }

    fn look_at_drains(&self) {
        let drains: Vec<_> = self.state.borrow().running.values().filter_map(drained_process).collect();
        for (task, process) in drains {
            self.quiet(&task, &process);
        }
    }
}

fn drained_process(running: &Running) -> Option<(TaskId, ProcessId)> {
    match &running.work {
        Work::Drain(process) => Some((running.task.clone(), process.clone())),
        _ => None,
    }
}

impl State {
    fn freeze(&mut self, stopping: bool, bag: &mut FdBag) -> Result<FrozenState, FreezeError> {
        // First what can refuse, so that a refusal leaves everything as it was.
        let mut containers = Vec::new();
        for (task, container) in &self.containers {
            containers.push((task.clone(), freeze_container(task, container, bag)?));
        }
        let mut connections = Vec::new();
        for (id, connection) in &self.connections {
            let frozen = connection.freeze(*id, bag).map_err(|e| FreezeError::Fd(format!("connection {id}"), e))?;
            connections.push((*id, frozen));
        }
        let listener = self.listener.as_ref().map(|l| bag.put("listener".to_owned(), l.get_ref())).transpose();
        let listener = listener.map_err(|e| FreezeError::Fd("the listener".to_owned(), e))?;
        let alarms = self.alarms.freeze(bag).map_err(|e| FreezeError::Fd("the alarms".to_owned(), e))?;
        let mut running = Vec::new();
        for (call, work) in &mut self.running {
            let frozen = freeze_running(*call, work, bag);
            running.push((*call, frozen.map_err(|e| FreezeError::Fd(format!("call {}", call.0), e))?));
        }
        Ok(FrozenState {
            format: FORMAT,
            config: self.config.clone(),
            lifecycle: self.lifecycle.clone(),
            containers,
            sandbox: self.sandbox.clone(),
            connections,
            last_connection: self.last_connection,
            bodies: self.bodies.iter().map(|(asker, body)| (*asker, body.clone())).collect(),
            timers: self.timers.iter().map(|(asker, timer)| (*asker, timer.remaining())).collect(),
            running,
            loggers: self.loggers.iter().map(|(pid, logger)| (*pid, freeze_logger(logger))).collect(),
            questions: self.questions.iter().map(|(asker, question)| (*asker, question.about.clone())).collect(),
            events: self.publisher.freeze(),
            listener,
            removals: self.removals.iter().filter(|r| !r.is_over()).map(|r| r.place().clone()).collect(),
            unsaved: self.unsaved.clone(),
            alarms,
            stopping,
        })
    }

    /// A freeze was refused half-way: lets go of what it held.
    fn go_on(&self) {
        let processes = self.containers.values().flat_map(|container| container.processes.values());
        processes.filter_map(|process| process.io.as_ref()).for_each(ProcessIo::go_on);
    }

    /// Drops everything that acts; what was written down acts from now on.
    fn dissolve(&mut self) {
        self.lifecycle = Lifecycle::default();
        self.alarms.hand_on();
        self.containers = BTreeMap::new();
        self.sandbox = None;
        self.connections = BTreeMap::new();
        self.bodies = BTreeMap::new();
        self.timers = BTreeMap::new();
        self.running = BTreeMap::new();
        self.children = BTreeMap::new();
        self.loggers = BTreeMap::new();
        self.questions = BTreeMap::new();
        self.alarms = Alarms::default();
        self.publisher = Publisher::mute();
        self.listener = None;
        self.removals = Vec::new();
        self.unsaved = BTreeSet::new();
        self.resave = None;
        self.idle = None;
    }

    fn thaw_running(
        &self,
        call: CallId,
        frozen: FrozenRunning,
        bag: &mut FdBag,
        me: &Weak<Shim>,
    ) -> Result<Running, FreezeError> {
        let failed = |e| FreezeError::Fd(format!("call {}", call.0), e);
        let what = match (frozen.child, frozen.logger) {
            (Some(child), _) => What::Child(thaw_child(child, bag).map_err(failed)?),
            (None, Some(logger)) => What::Logger(thaw_starting(logger, bag, call, me).map_err(failed)?),
            (None, None) if let Some((work, outcome)) = frozen.clearing => {
                What::Clear { _clears: criu::clear(me, call, work.clone(), outcome.is_err()), work, outcome }
            }
            (None, None) => match &frozen.work {
                Work::Settle(process) => settle(me, call, &frozen.task, process),
                Work::Drain(process) if self.is_forsaken(&frozen.task, process) => What::LateReader,
                // Where a process is to be made and there is no call yet, its logs were being opened.
                work => self.begin_opening(call, &frozen.task, work, me).ok().flatten().unwrap_or(What::Drain),
            },
        };
        let deadline = self.deadline(call, frozen.remaining, me);
        Ok(Running { task: frozen.task, work: frozen.work, what, asked: frozen.asked, deadline })
    }
}

fn freeze_container(task: &TaskId, container: &Container, bag: &mut FdBag) -> Result<FrozenContainer, FreezeError> {
    let mut processes = Vec::new();
    for (id, process) in &container.processes {
        // Ids may hold dots, but no slash: two processes never have the same name.
        let name = format!("task/{}/{}/", task.0, id.exec_id());
        let io = process.io.as_ref().map(|io| io.freeze(&name, bag)).transpose();
        let io = io.map_err(|e| match e.kind() {
            std::io::ErrorKind::WouldBlock => FreezeError::Busy(format!("the log or a spill of task {:?}", task.0)),
            _ => FreezeError::Fd(format!("{id} of task {:?}", task.0), e),
        })?;
        processes.push((
            id.clone(),
            FrozenProcess {
                addresses: process.addresses.clone(),
                io,
                spec: process.spec.clone(),
                size: process.size,
                stdin_closed: process.stdin_closed,
                start_time: process.start_time,
                exit_told: process.exit_told,
                revival: (process.revival.deaths, process.revival.timer.as_ref().map(Timer::remaining)),
            },
        ));
    }
    let memory = container.memory.as_ref().map(|memory| memory.freeze(task, bag)).transpose();
    let memory = memory.map_err(|e| FreezeError::Fd(format!("the memory of task {:?}", task.0), e))?;
    Ok(FrozenContainer {
        bundle: container.bundle.clone(),
        mounts: container.mounts.clone(),
        options: container.options.clone(),
        output: container.output.clone(),
        runtime: container.runtime.clone(),
        cgroup: container.cgroup.clone(),
        memory,
        checkpoint: container.checkpoint.clone(),
        processes,
        dir: container.dir.clone(),
    })
}

fn thaw_container(
    task: &TaskId,
    frozen: FrozenContainer,
    alarms: &Alarms,
    bag: &mut FdBag,
    me: &Weak<Shim>,
) -> Result<Container, FreezeError> {
    let mut processes = BTreeMap::new();
    for (id, process) in frozen.processes {
        let io = process.io.map(|io| ProcessIo::thaw(io, bag, on_quiet(me, task, &id))).transpose();
        let io = io.map_err(|e| FreezeError::Fd(format!("{id} of task {:?}", task.0), e))?;
        let FrozenProcess {
            addresses, spec, size, stdin_closed, start_time, exit_told, revival: (deaths, due), ..
        } = process;
        let revival = Revival { deaths, timer: due.map(|due| revival_timer(due, task, &id, me)) };
        let opened = Vec::new();
        let process = Process { addresses, io, opened, spec, size, stdin_closed, start_time, exit_told, revival };
        processes.insert(id, process);
    }
    let FrozenContainer { bundle, mounts, options, output, runtime, cgroup, memory, checkpoint, dir, .. } = frozen;
    let memory = match (memory, &cgroup) {
        (Some(memory), Some(paths)) => Some(Memory::thaw(memory, task, paths, alarms, bag, me)),
        _ => None,
    };
    let memory = memory.transpose().map_err(|e| FreezeError::Fd(format!("the memory of task {:?}", task.0), e))?;
    Ok(Container { bundle, mounts, options, output, runtime, cgroup, memory, checkpoint, processes, dir })
}

fn freeze_running(call: CallId, running: &mut Running, bag: &mut FdBag) -> std::io::Result<FrozenRunning> {
    let clearing = match &running.what {
        What::Clear { work, outcome, .. } => Some((work.clone(), outcome.clone())),
        _ => None,
    };
    let child = match &mut running.what {
        What::Open { .. }
        | What::Drain
        | What::LateReader
        | What::Settle { .. }
        | What::Logger(_)
        | What::Clear { .. } => None,
        What::Child(child) => Some(FrozenChild {
            pid: child.pid,
            output: child.output.as_ref().map(|fd| bag.put(format!("call{}.output", call.0), fd)).transpose()?,
            log: child.log.clone(),
            console: match &mut child.console {
                Some(console) => {
                    let (fd, dir) = console.hand_on()?;
                    Some((bag.put_owned(format!("call{}.console", call.0), fd)?, dir))
                }
                None => None,
            },
            spec: child.spec.clone(),
            criu: child.criu.clone(),
            timed_out: child.timed_out,
        }),
    };
    let logger = match &running.what {
        What::Logger(starting) => Some(freeze_starting(call, starting, bag)?),
        _ => None,
    };
    Ok(FrozenRunning {
        task: running.task.clone(),
        work: running.work.clone(),
        asked: running.asked,
        remaining: running.deadline.remaining(),
        child,
        logger,
        clearing,
    })
}

fn freeze_starting(call: CallId, starting: &Starting, bag: &mut FdBag) -> std::io::Result<FrozenStarting> {
    let [out, err] = &starting.pipes;
    Ok(FrozenStarting {
        pid: starting.pid,
        pipes: [bag.put(format!("call{}.out", call.0), out)?, bag.put(format!("call{}.err", call.0), err)?],
        ready: bag.put(format!("call{}.ready", call.0), starting.ready.get_ref())?,
        must_speak: starting.must_speak,
    })
}

fn thaw_starting(frozen: FrozenStarting, bag: &mut FdBag, call: CallId, me: &Weak<Shim>) -> std::io::Result<Starting> {
    let FrozenStarting { pid, pipes: [out, err], ready, must_speak } = frozen;
    let started = Started { pid, pipes: [bag.take(&out)?, bag.take(&err)?], ready: bag.take(&ready)? };
    Starting::watch(started, must_speak, call, me)
}

fn freeze_logger(logger: &Logger) -> FrozenLogger {
    FrozenLogger {
        task: logger.task.clone(),
        process: logger.process.clone(),
        program: logger.program.clone(),
        stage: match &logger.stage {
            Stage::Serving => FrozenStage::Serving,
            Stage::Flushing(timer) => FrozenStage::Flushing(timer.remaining()),
            Stage::Terminating(timer) => FrozenStage::Terminating(timer.remaining()),
            Stage::Killed => FrozenStage::Killed,
        },
    }
}

fn thaw_logger(pid: Pid, frozen: FrozenLogger, me: &Weak<Shim>) -> Logger {
    let FrozenLogger { task, process, program, stage } = frozen;
    let stage = match stage {
        FrozenStage::Serving => Stage::Serving,
        FrozenStage::Flushing(due) => Stage::Flushing(next_stage(due, pid, me)),
        FrozenStage::Terminating(due) => Stage::Terminating(next_stage(due, pid, me)),
        FrozenStage::Killed => Stage::Killed,
    };
    Logger { task, process, program, stage }
}

fn thaw_child(frozen: FrozenChild, bag: &mut FdBag) -> std::io::Result<Child> {
    let console = match frozen.console {
        Some((name, dir)) => Some(ConsoleSocket::take_over(bag.take(&name)?, &dir)),
        None => None,
    };
    let output = frozen.output.map(|name| bag.take(&name)).transpose()?;
    let FrozenChild { pid, log, spec, criu, timed_out, .. } = frozen;
    Ok(Child { pid, output, log, console, spec, criu, timed_out })
}
