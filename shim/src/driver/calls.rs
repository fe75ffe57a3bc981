//! What takes time: children (the OCI runtime, mounts) and drains, each with a deadline.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::container::{Container, read_pid};
use super::criu::{self, CriuWork};
use super::loggers::{Starting, process_made_by};
use super::{Shim, State, Timer, chain, choose_runtime, on_quiet};
use crate::cgroup::Paths;
use crate::cli::{HOLD_ACTION, MOUNT_ACTION, SWEEP_ACTION, UNMOUNT_ACTION};
use crate::cmd::sweep::SweepRequest;
use crate::io::console::ConsoleSocket;
use crate::io::process::{IoError, LoggerPipes, OnQuiet, ProcessEnds, ProcessIo};
use crate::io::spill::file::Place;
use crate::io::spill::tree::Home;
use crate::io::stdio::AddressError;
use crate::lifecycle::{Asker, CallId, ExitStatus, Failure, FailureKind, Input, Outcome, Pid, ProcessId, TaskId, Work};
use crate::oci::command::{self, Call};
use crate::oci::log::{self, FailureKind as RuntimeFailure};
use crate::oci::own_copy;
use crate::oci::runner::{self, ChildStdio};
use crate::oci::spec;
use crate::owned_task::OwnedTask;
use crate::record;
use crate::sys::mount::{MountEntry, MountRequest};
use crate::sys::{process as process_facts, signal};
use crate::wire::Body;

/// How long an exit is held back for a reader who does not take what the process had printed.
const SETTLE_DEADLINE: Duration = Duration::from_secs(2);
/// How long Delete waits for somebody who reads what nobody has read yet.
const LATE_READER: Duration = Duration::from_secs(1);
/// More than a logger's own limits together.
const LOGGER_DEADLINE: Duration = Duration::from_secs(20);
/// How long a child may take to end once it was killed. One that waits for a disk does not heed even that; it is left alone
/// then, and goes when the disk answers.
const DEATH_DEADLINE: Duration = Duration::from_secs(5);
/// How often it is looked at.
const SETTLE_INTERVALS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(16));

/// How much longer than another call one may take that writes or reads all memory of a container. To kill criu at work
/// can cost the container.
const CRIU_PATIENCE: u32 = 30;
/// How long clearing up after criu may hold an outcome back.
const CLEAR_DEADLINE: Duration = Duration::from_secs(10);

/// Work that was begun.
pub(super) struct Running {
    pub(super) task: TaskId,
    pub(super) work: Work,
    pub(super) what: What,
    /// It serves a request; else it is an errand of the shim's own, of whose failure nobody is told.
    pub(super) asked: bool,
    pub(super) deadline: Timer,
}

pub(super) enum What {
    Child(Child),
    /// The call of the runtime comes after it.
    Logger(Starting),
    /// A task that opens the process's logs. The logger's or the runtime's call comes after it.
    Open {
        _opens: OwnedTask,
    },
    /// Nothing but a deadline: what it waits for comes by itself.
    Drain,
    /// The same, for a reader of what nobody has read yet.
    LateReader,
    /// A task that looks whether it is so yet.
    Settle {
        _looks: OwnedTask,
    },
    /// The child has ended; a task clears up after criu before that is told.
    Clear {
        work: CriuWork,
        outcome: Outcome,
        _clears: OwnedTask,
    },
}

/// A child and where it says how it fared.
pub(super) struct Child {
    pub(super) pid: Pid,
    /// What it printed, where that is not the container's own stdio.
    pub(super) output: Option<OwnedFd>,
    /// The runtime's log of this one call: concurrent calls must not pick each other's error.
    pub(super) log: Option<PathBuf>,
    pub(super) console: Option<ConsoleSocket>,
    /// Holds secrets, perhaps; removed when the child is gone.
    pub(super) spec: Option<PathBuf>,
    /// Where criu works for it.
    pub(super) criu: Option<CriuWork>,
    pub(super) timed_out: bool,
}

/// Directories in which a process's streams may need something; neither need exist yet.
struct Dirs {
    console: PathBuf,
    spills: Home,
}

/// What a child is to be started with.
#[derive(Default)]
struct Launch {
    ends: ProcessEnds,
    /// Read by the child; only where it has no other input.
    input: Option<OwnedFd>,
    console: Option<ConsoleSocket>,
    spec: Option<PathBuf>,
    criu: Option<CriuWork>,
    /// stdout and stderr are the container's.
    is_process: bool,
    /// To be executed in the program's place.
    copy: Option<Rc<OwnedFd>>,
}

impl State {
    /// Begins a piece of work. An outcome if it has ended, or failed, at once.
    pub(super) fn begin(
        &mut self,
        call: CallId,
        task: &TaskId,
        work: &Work,
        asker: Option<Asker>,
        me: &Weak<Shim>,
    ) -> Option<Outcome> {
        let begun = match work {
            Work::Mount => self.begin_mount(call, task),
            Work::Unmount => self.begin_unmount(call, task),
            Work::Sweep => self.begin_sweep(call, task),
            Work::HoldNamespaces => self.begin_hold(call, task),
            Work::Drain(process) => {
                // A logger that is to come back anyway has no better time.
                self.revive_logger(task, process, me);
                if self.is_forsaken(task, process) {
                    Ok(Some(What::LateReader))
                } else if self.drain_is_over(task, process, me) {
                    Ok(None)
                } else {
                    Ok(Some(What::Drain))
                }
            }
            Work::Settle(process) => {
                if self.is_settled(task, process) {
                    return Some(Ok(None));
                }
                Ok(Some(settle(me, call, task, process)))
            }
            Work::EndHolder { pid, signal, .. } => {
                if let Err(e) = signal::send(*pid, signal.cast_signed()) {
                    tracing::debug!(sandbox = task.0, pid, error = %e, "not signalled");
                }
                Ok(Some(What::Drain))
            }
            Work::End(pid) => {
                if let Err(e) = signal::send(*pid, nix::libc::SIGKILL) {
                    tracing::debug!(task = task.0, pid, error = %e, "not killed once more");
                }
                Ok(Some(What::Drain))
            }
            _ => self.begin_call(call, task, work, asker, me).map(Some),
        };
        let what = match begun {
            Ok(Some(what)) => what,
            Ok(None) => return Some(Ok(None)),
            Err(failure) => {
                self.start_failed(task, work, me);
                if asker.is_none() {
                    note_failed_errand(task, work, &failure);
                }
                return Some(Err(failure));
            }
        };
        self.goes_on(call, task, work, what, asker.is_some(), me);
        None
    }

    /// It ends later.
    pub(super) fn goes_on(
        &mut self,
        call: CallId,
        task: &TaskId,
        work: &Work,
        what: What,
        asked: bool,
        me: &Weak<Shim>,
    ) {
        if let What::Child(child) = &what {
            self.children.insert(child.pid, call);
        }
        let limit = match what {
            What::Drain if let Work::EndHolder { within_secs, .. } = work => Duration::from_secs((*within_secs).into()),
            What::Drain => self.config.drain_deadline,
            What::LateReader => LATE_READER.min(self.config.drain_deadline),
            What::Settle { .. } => SETTLE_DEADLINE,
            What::Logger(_) => self.ready_limit(),
            What::Clear { .. } => CLEAR_DEADLINE,
            What::Child(_) if matches!(work, Work::Checkpoint | Work::Restore) => {
                self.config.runtime_deadline * CRIU_PATIENCE
            }
            What::Open { .. } | What::Child(_) => self.config.runtime_deadline,
        };
        let deadline = self.deadline(call, limit, me);
        self.running.insert(call, Running { task: task.clone(), work: work.clone(), what, asked, deadline });
    }

    /// The runtime's, or what must come before it.
    fn begin_call(
        &mut self,
        call: CallId,
        task: &TaskId,
        work: &Work,
        asker: Option<Asker>,
        me: &Weak<Shim>,
    ) -> Result<What, Failure> {
        match self.begin_opening(call, task, work, me)? {
            Some(opening) => Ok(opening),
            None => self.begin_process(call, task, work, asker, me),
        }
    }

    /// The runtime's call, or that of a logger which must be ready before it; the process's logs are open.
    pub(super) fn begin_process(
        &mut self,
        call: CallId,
        task: &TaskId,
        work: &Work,
        asker: Option<Asker>,
        me: &Weak<Shim>,
    ) -> Result<What, Failure> {
        match self.begin_logger(call, task, work, me)? {
            Some(starting) => Ok(What::Logger(starting)),
            None => self.begin_runtime(call, task, work, asker, None, me).map(What::Child),
        }
    }

    pub(super) fn deadline(&self, call: CallId, limit: Duration, me: &Weak<Shim>) -> Timer {
        let me = me.clone();
        Timer::new(limit, move || {
            if let Some(shim) = me.upgrade() {
                shim.deadline_passed(call);
            }
        })
    }

    /// An exec's start and a restore that failed can be tried again, with the streams opened anew; until then their
    /// readers see the end. Those of a Create are closed when it has been undone.
    pub(super) fn start_failed(&mut self, task: &TaskId, work: &Work, me: &Weak<Shim>) {
        let process = match work {
            Work::ExecStart(process) => process,
            Work::Restore => &ProcessId::Init,
            _ => return,
        };
        if let Some(settings) = self.process(task, process) {
            settings.io = None;
        }
        self.end_loggers(task, process, me);
    }

    fn begin_mount(&mut self, call: CallId, task: &TaskId) -> Result<Option<What>, Failure> {
        if let Some(sandbox) = self.sandbox_of(task) {
            sandbox.make_dir()?;
            return self.mount(call, sandbox.rootfs(), &sandbox.mounts);
        }
        let container = self.containers.get_mut(task).ok_or_else(|| gone(task))?;
        container.write_options().map_err(|(path, e)| failure(format!("cannot write {}: {e}", path.display())))?;
        let path = spec::read(&container.bundle).ok().and_then(|facts| facts.cgroups_path);
        container.cgroup = path.and_then(|path| Paths::to_be_made(&path));
        let container = self.containers.get(task).ok_or_else(|| gone(task))?;
        self.mount(call, container.rootfs(), &container.mounts)
    }

    fn mount(&self, call: CallId, rootfs: PathBuf, mounts: &[MountEntry]) -> Result<Option<What>, Failure> {
        if mounts.is_empty() {
            return Ok(None);
        }
        let request = MountRequest { shim: std::process::id(), rootfs, mounts: mounts.to_vec() };
        let json = serde_json::to_vec(&request).map_err(|e| failure(e.to_string()))?;
        let input = runner::memory_file(&json).map_err(|e| failure(format!("cannot pass the mounts on: {e}")))?;
        self.launch_ourselves(call, vec![MOUNT_ACTION.into()], Some(input)).map(Some)
    }

    fn begin_unmount(&mut self, call: CallId, task: &TaskId) -> Result<Option<What>, Failure> {
        let (mounts, rootfs) = match (self.sandbox_of(task), self.containers.get(task)) {
            (Some(sandbox), _) => (&sandbox.mounts, sandbox.rootfs()),
            (None, Some(container)) => (&container.mounts, container.rootfs()),
            (None, None) => return Err(gone(task)),
        };
        if mounts.is_empty() {
            return Ok(None);
        }
        self.launch_ourselves(call, vec![UNMOUNT_ACTION.into(), rootfs.into()], None).map(Some)
    }

    fn begin_hold(&self, call: CallId, id: &TaskId) -> Result<Option<What>, Failure> {
        let (json, bundle) = self.prepare_hold(id)?;
        let input = runner::memory_file(&json).map_err(|e| failure(format!("cannot say what to hold: {e}")))?;
        self.launch_ourselves(call, vec![HOLD_ACTION.into(), bundle.into()], Some(input)).map(Some)
    }

    /// Also after the runtime has said that it undid everything: one that was killed knows nothing of what it had begun.
    fn begin_sweep(&mut self, call: CallId, task: &TaskId) -> Result<Option<What>, Failure> {
        let container = self.containers.get(task).ok_or_else(|| gone(task))?;
        let rootfs = (!container.mounts.is_empty()).then(|| container.rootfs());
        // One that was there before may hold others' processes, also when ours has been in it.
        let cgroup = container.cgroup.clone().filter(Paths::is_new);
        let request = SweepRequest { cgroup, rootfs, ..SweepRequest::default() };
        if request.cgroup.is_none() && request.rootfs.is_none() {
            return Ok(None);
        }
        let json = serde_json::to_vec(&request).map_err(|e| failure(e.to_string()))?;
        let input = runner::memory_file(&json).map_err(|e| failure(format!("cannot say what to sweep: {e}")))?;
        self.launch_ourselves(call, vec![SWEEP_ACTION.into()], Some(input)).map(Some)
    }

    /// A call that failed, or was killed, may have made its process all the same. Only while that is our own child is its
    /// pid surely its own.
    fn end_nameless(&self, task: &TaskId, work: &Work) {
        let process = match work {
            Work::HoldNamespaces => return self.end_holder(task),
            Work::Create | Work::Restore => &ProcessId::Init,
            Work::ExecStart(process) => process,
            _ => return,
        };
        let pid_file = self.containers.get(task).map(|container| container.pid_file(process));
        if let Some(pid) = pid_file.and_then(|path| read_pid(&path).ok())
            && process_facts::parent(pid) == Some(std::process::id())
        {
            tracing::warn!(task = task.0, process = %process, pid, "ending what a failed call has left");
            let _ = signal::send(pid, nix::libc::SIGKILL);
        }
    }

    fn launch_ourselves(
        &self,
        call: CallId,
        arguments: Vec<std::ffi::OsString>,
        input: Option<OwnedFd>,
    ) -> Result<What, Failure> {
        // By this name it is the running program even if its path has a newer one by now.
        let launch = Launch { input, ..Launch::default() };
        launch.start(call, "/proc/self/exe".into(), &arguments, None).map(What::Child)
    }

    pub(super) fn begin_runtime(
        &mut self,
        call: CallId,
        task: &TaskId,
        work: &Work,
        asker: Option<Asker>,
        logger: Option<LoggerPipes>,
        me: &Weak<Shim>,
    ) -> Result<Child, Failure> {
        let body = match work {
            // Its event needs it too.
            Work::Checkpoint => asker.and_then(|asker| self.bodies.get(&asker).cloned()),
            _ => asker.and_then(|asker| self.bodies.remove(&asker)),
        };
        let home = self.containers.get(task).map(|container| self.spill_home(task, &container.output));
        let config = &self.config;
        let container = self.containers.get_mut(task).ok_or_else(|| gone(task))?;
        if container.runtime.binary.as_os_str().is_empty() {
            container.runtime = choose_runtime(config, &container.options).map_err(|e| failure(e.to_string()))?;
        }
        let mut launch = Launch::default();
        // What is restored opens its streams only then, so that a restore that failed can be tried again.
        let process = process_made_by(work);
        if let Some(process) = &process {
            let console = config.run_dir.join("c").join(record::call_name(call.0));
            let dirs = Dirs { console, spills: home.ok_or_else(|| gone(task))? };
            launch.open_streams(container, task, process, dirs, logger, on_quiet(me, task, process))?;
        }
        if let (Work::Update, Some(Body::Update { resources, unknown })) = (work, &body) {
            for field in unknown {
                tracing::warn!(task = task.0, field, "unknown resource, passing it on to the OCI runtime");
            }
            let file = runner::memory_file(resources);
            launch.input = Some(file.map_err(|e| failure(format!("cannot pass the resources on: {e}")))?);
        }
        launch.criu = prepare_criu(container, work, body.as_ref())?;
        let pid_file = process.map(|process| container.pid_file(&process));
        if let Some(pid_file) = &pid_file {
            // One of an earlier try names a stranger by now.
            let _ = std::fs::remove_file(pid_file);
        }
        let pid_file = pid_file.unwrap_or_default();
        let console = launch.console.as_ref().map(ConsoleSocket::path);
        let spec = launch.spec.clone().unwrap_or_default();
        let criu = launch.criu.clone();
        let criu_dir = criu.as_ref().map(CriuWork::dir).unwrap_or(Path::new(""));
        let verb = match work {
            Work::Create => Call::Create {
                bundle: &container.bundle,
                pid_file: &pid_file,
                console_socket: console.as_deref(),
                no_pivot: container.options.no_pivot_root,
                no_new_keyring: container.options.no_new_keyring,
            },
            Work::ExecStart(_) => {
                Call::Exec { process: &spec, pid_file: &pid_file, console_socket: console.as_deref() }
            }
            Work::Start => Call::Start,
            Work::Checkpoint => match &body {
                Some(Body::Checkpoint { image, options }) => Call::Checkpoint { image, work: criu_dir, options },
                _ => return Err(gone(task)),
            },
            Work::Restore => Call::Restore {
                image: Path::new(&container.checkpoint),
                work: criu_dir,
                bundle: &container.bundle,
                pid_file: &pid_file,
                console_socket: console.as_deref(),
                no_pivot: container.options.no_pivot_root,
            },
            Work::Kill { signal, all } => Call::Kill { signal: *signal, all: *all },
            Work::Pause => Call::Pause,
            Work::Resume => Call::Resume,
            Work::Update => Call::Update,
            Work::Delete { force } => Call::Delete { force: *force },
            Work::Mount
            | Work::Unmount
            | Work::Sweep
            | Work::Drain(_)
            | Work::Settle(_)
            | Work::End(_)
            | Work::HoldNamespaces
            | Work::EndHolder { .. } => return Err(gone(task)),
        };
        let log = container.dir.join(format!("{}.log", record::call_name(call.0)));
        // From before the call begins until its end was seen, so that a `delete` after this shim's death finds the calls
        // that outlive it. That it cannot be made is the runtime's to say.
        let _ = container.in_dir(|| std::fs::File::create(&log));
        let arguments = command::arguments(&container.runtime, &task.0, &log, &verb);
        if matches!(verb, Call::Create { .. } | Call::Exec { .. }) && runner::is_embedded(&container.runtime.binary) {
            launch.copy = own_copy::of(&container.runtime.binary);
        }
        let files: Vec<PathBuf> = launch.spec.iter().chain([&log]).cloned().collect();
        launch.start(call, container.runtime.binary.clone(), &arguments, Some(log)).map_err(|f| {
            remove_files(&files);
            Failure { text: format!("OCI runtime {} failed: {}", verb.verb(), f.text), ..f }
        })
    }

    /// The streams of a process, while it has any.
    fn io(&self, task: &TaskId, process: &ProcessId) -> Option<&ProcessIo> {
        self.containers.get(task)?.processes.get(process)?.io.as_ref()
    }

    fn is_drained(&self, task: &TaskId, process: &ProcessId) -> bool {
        self.io(task, process).is_none_or(ProcessIo::is_drained)
    }

    /// Whether output of a container waits for a reader, and none is there. A manager that is back opens the streams of what
    /// has ended meanwhile and deletes it at once; dockerd does not wait until they are open.
    pub(super) fn is_forsaken(&self, task: &TaskId, process: &ProcessId) -> bool {
        *process == ProcessId::Init && self.io(task, process).is_some_and(|io| io.is_drained() && io.is_unread())
    }

    /// The containers that have ended with output that no reader has yet.
    pub(super) fn ended_and_unread(&self) -> Vec<TaskId> {
        let is_unread = |task: &&TaskId| {
            // Asked first: it costs nothing, and of what runs no FIFO is to be looked at with each request.
            self.lifecycle.is_stopped(task)
                && self.io(task, &ProcessId::Init).is_some_and(|io| io.is_unread() || !io.is_settled())
        };
        self.containers.keys().filter(is_unread).cloned().collect()
    }

    /// Whether nothing of a process's output is left to wait for. A logger that has got everything sees the end, and is
    /// waited for: clients read what it wrote once Delete is answered.
    fn drain_is_over(&mut self, task: &TaskId, process: &ProcessId, me: &Weak<Shim>) -> bool {
        if !self.is_drained(task, process) {
            return false;
        }
        self.end_loggers(task, process, me);
        !self.has_logger(task, process)
    }

    pub(super) fn is_settled(&self, task: &TaskId, process: &ProcessId) -> bool {
        self.io(task, process).is_none_or(ProcessIo::is_settled)
    }

    /// The limit of a drain or a settling has passed. Whether it is waited for further: a logger has its own limits.
    fn drain_goes_on(&mut self, call: CallId, me: &Weak<Shim>) -> bool {
        let Some(Running { task, work: Work::Drain(process), .. }) = self.running.get(&call) else { return false };
        let (task, process) = (task.clone(), process.clone());
        if !self.is_drained(&task, &process) {
            // A reader that does not read, or a log on a full disk: the one way in which output gets lost.
            let bytes = self.io(&task, &process).map_or(0, ProcessIo::left);
            tracing::warn!(task = task.0, process = %process, bytes, "deleting it with output that nobody took in time");
            if self.has_logger(&task, &process)
                && let Some(settings) = self.process(&task, &process)
            {
                settings.io = None;
            }
        }
        self.end_loggers(&task, &process, me);
        if !self.loggers_may_end(&task, &process) {
            return false;
        }
        self.waits_on(call, LOGGER_DEADLINE, me);
        true
    }

    /// Who was waited for is there: from now on he may take his time like any other.
    fn reader_has_come(&mut self, call: CallId, me: &Weak<Shim>) -> bool {
        let Some(running) = self.running.get(&call) else { return false };
        let (What::LateReader, Work::Drain(process)) = (&running.what, &running.work) else { return false };
        let (task, process) = (running.task.clone(), process.clone());
        if self.is_drained(&task, &process) {
            return false;
        }
        self.waits_on(call, self.config.drain_deadline, me);
        if let Some(running) = self.running.get_mut(&call) {
            running.what = What::Drain;
        }
        true
    }

    fn waits_on(&mut self, call: CallId, limit: Duration, me: &Weak<Shim>) {
        let deadline = self.deadline(call, limit, me);
        if let Some(running) = self.running.get_mut(&call) {
            running.deadline = deadline;
        }
    }

    /// What is to be done once the runtime has made a process: its pid, its terminal, its control group.
    fn process_made(&mut self, task: &TaskId, process: &ProcessId, child: &Child, me: &Weak<Shim>) -> Outcome {
        let container = self.containers.get_mut(task).ok_or_else(|| gone(task))?;
        let pid_file = container.pid_file(process);
        let pid = read_pid(&pid_file)
            .map_err(|e| failure(format!("the OCI runtime left no pid of {process} in {}: {e}", pid_file.display())))?;
        let settings = container.processes.get_mut(process).ok_or_else(|| gone(task))?;
        if let (Some(console), Some(io)) = (&child.console, &mut settings.io) {
            let master = console
                .receive()
                .map_err(|e| failure(format!("the OCI runtime sent no terminal for {process}: {e}")))?;
            io.adopt_terminal(master).map_err(|e| io_failure(task, process, &e))?;
            if let Some((width, height)) = settings.size.take() {
                let _ = io.resize(width, height);
            }
        }
        if let Some(io) = &mut settings.io {
            if settings.stdin_closed {
                io.close_stdin();
            }
            io.begin();
        }
        settings.spec = Vec::new();
        if *process == ProcessId::Init {
            self.adopt_cgroup(task, pid, me);
        }
        Ok(Some(pid))
    }
}

/// Where criu works, if this work is criu's.
fn prepare_criu(container: &Container, work: &Work, body: Option<&Body>) -> Result<Option<CriuWork>, Failure> {
    let (chosen, log) = match (work, body) {
        (Work::Checkpoint, Some(Body::Checkpoint { options, .. })) => (options.work_path.as_str(), "dump.log"),
        (Work::Restore, _) => (container.options.criu_work_path.as_str(), "restore.log"),
        _ => return Ok(None),
    };
    let prepared = CriuWork::prepare(&container.bundle, chosen, log);
    prepared.map(Some).map_err(|(path, e)| failure(format!("cannot make {}: {e}", path.display())))
}

impl Launch {
    /// Opens what the process's addresses name, and writes down what the runtime reads of an exec.
    fn open_streams(
        &mut self,
        container: &mut Container,
        task: &TaskId,
        process: &ProcessId,
        dirs: Dirs,
        logger: Option<LoggerPipes>,
        on_quiet: OnQuiet,
    ) -> Result<(), Failure> {
        let owner = (container.options.io_uid, container.options.io_gid);
        let spill = |stream| Place::new(&dirs.spills, process, stream, &container.output);
        let settings = container.processes.get_mut(process).ok_or_else(|| gone(task))?;
        let opened = std::mem::take(&mut settings.opened);
        let (io, ends) = ProcessIo::open(&settings.addresses, owner, opened, logger, spill, on_quiet)
            .map_err(|e| io_failure(task, process, &e))?;
        settings.io = Some(io);
        self.ends = ends;
        self.is_process = !settings.addresses.terminal;
        if settings.addresses.terminal {
            let socket = ConsoleSocket::new(dirs.console);
            self.console = Some(socket.map_err(|e| failure(format!("cannot make a console socket: {e}")))?);
        }
        if matches!(process, ProcessId::Exec(_)) {
            let dir = container.dir.join("exec");
            let path = dir.join(format!("{}.json", process.exec_id()));
            let written = record::make_dir(&dir).and_then(|()| record::replace(&path, &settings.spec, 0o600));
            written.map_err(|e| failure(format!("cannot write {}: {e}", path.display())))?;
            self.spec = Some(path);
        }
        Ok(())
    }

    fn start(
        self,
        call: CallId,
        program: PathBuf,
        arguments: &[std::ffi::OsString],
        log: Option<PathBuf>,
    ) -> Result<Child, Failure> {
        let cannot = |e: io::Error| failure(format!("cannot start {}: {}", program.display(), spell(&e)));
        let Self { ends, input, console, spec, criu, is_process, copy } = self;
        let output = if is_process { None } else { Some(runner::memory_file(b"").map_err(cannot)?) };
        let printed = || output.as_ref().map(OwnedFd::try_clone).transpose().map_err(cannot);
        let stdio = ChildStdio {
            stdin: ends.stdin.or(input),
            stdout: if is_process { ends.stdout } else { printed()? },
            stderr: if is_process { ends.stderr } else { printed()? },
        };
        let pid = match &copy {
            Some(copy) => runner::spawn_copy(&program, copy, arguments, stdio),
            None => runner::spawn(&program, arguments, stdio),
        };
        let pid = pid.map_err(cannot)?;
        tracing::debug!(call = call.0, pid, program = %program.display(), "a child was started");
        Ok(Child { pid, output, log, console, spec, criu, timed_out: false })
    }
}

impl Shim {
    /// One of the driver's own children was reaped.
    pub(super) fn child_exited(&self, call: CallId, status: ExitStatus) {
        self.child_is_over(call, Some(status));
    }

    /// `status`: none for one that was killed and does not end.
    fn child_is_over(&self, call: CallId, status: Option<ExitStatus>) {
        let mut state = self.state.borrow_mut();
        let Some(Running { task, work, what: What::Child(child), asked, .. }) = state.running.remove(&call) else {
            return;
        };
        let outcome = match how_it_fared(&work, &child, status) {
            Some(failure) => Err(failure),
            None => match &work {
                Work::Create | Work::Restore => state.process_made(&task, &ProcessId::Init, &child, &self.me),
                Work::ExecStart(process) => state.process_made(&task, process, &child, &self.me),
                Work::HoldNamespaces => state.holder_made(&task),
                _ => Ok(None),
            },
        };
        remove_files(child.log.iter().chain(&child.spec));
        if let Err(failure) = &outcome {
            state.start_failed(&task, &work, &self.me);
            if failure.kind != FailureKind::AlreadyExists {
                state.end_nameless(&task, &work);
            }
            if !asked {
                note_failed_errand(&task, &work, failure);
            }
        }
        if let Some(criu) = child.criu {
            let _clears = criu::clear(&self.me, call, criu.clone(), outcome.is_err());
            let deadline = state.deadline(call, CLEAR_DEADLINE, &self.me);
            let what = What::Clear { work: criu, outcome, _clears };
            state.running.insert(call, Running { task, work, what, asked, deadline });
            return;
        }
        drop(state);
        self.input(Input::Done { call, outcome });
    }

    /// A call that criu took part in has ended, and its log is kept at that path.
    pub(super) fn criu_cleared(&self, call: CallId, kept: Option<PathBuf>) {
        let cleared = self.state.borrow_mut().running.remove(&call);
        let Some(Running { what: What::Clear { outcome, .. }, .. }) = cleared else { return };
        let outcome = outcome.map_err(|failure| match kept {
            Some(kept) => Failure { text: format!("{}; criu's log: {}", failure.text, kept.display()), ..failure },
            None => failure,
        });
        self.input(Input::Done { call, outcome });
    }

    pub(super) fn deadline_passed(&self, call: CallId) {
        let mut state = self.state.borrow_mut();
        match state.running.get_mut(&call).map(|running| &mut running.what) {
            Some(What::Child(child)) if !child.timed_out => {
                child.timed_out = true;
                // Its exit comes through the reaper, like any other.
                runner::kill_group(child.pid);
                state.waits_on(call, DEATH_DEADLINE, &self.me);
            }
            Some(What::Child(_)) => {
                drop(state);
                self.child_is_over(call, None);
            }
            Some(What::Open { .. }) => {
                drop(state);
                self.opening_is_late(call);
            }
            Some(What::Logger(_)) => {
                drop(state);
                self.logger_is_late(call);
            }
            Some(What::Clear { .. }) => {
                drop(state);
                self.criu_cleared(call, None);
            }
            Some(What::Drain | What::LateReader | What::Settle { .. }) => {
                if state.reader_has_come(call, &self.me) || state.drain_goes_on(call, &self.me) {
                    return;
                }
                let outcome = match state.running.remove(&call) {
                    Some(Running { task, work: Work::End(pid), .. }) => Err(not_ended(&task, pid)),
                    Some(Running { task, work: Work::EndHolder { .. }, .. }) => Err(still_held(&task)),
                    _ => Ok(None),
                };
                drop(state);
                self.input(Input::Done { call, outcome });
            }
            None => {}
        }
    }

    /// A stream of a process has ended or run empty.
    pub(super) fn quiet(&self, task: &TaskId, process: &ProcessId) {
        // Relays call this from their own tasks, never from within an effect.
        let mut state = self.state.borrow_mut();
        state.look_after_logger(task, process, &self.me);
        let waits = |running: &Running| running.task == *task && running.work == Work::Drain(process.clone());
        let Some(call) = state.running.iter().find(|(_, r)| waits(r)).map(|(call, _)| *call) else { return };
        let is_late = matches!(state.running.get(&call), Some(Running { what: What::LateReader, .. }));
        if (is_late && state.is_forsaken(task, process)) || !state.drain_is_over(task, process, &self.me) {
            return;
        }
        state.running.remove(&call);
        drop(state);
        self.input(Input::Done { call, outcome: Ok(None) });
    }
}

/// Looks until a process's output has settled. The relays say nothing of a reader who empties a FIFO, and nobody could.
pub(super) fn settle(me: &Weak<Shim>, call: CallId, task: &TaskId, process: &ProcessId) -> What {
    let (me, task, process) = (me.clone(), task.clone(), process.clone());
    What::Settle {
        _looks: OwnedTask::spawn(async move {
            let mut interval = SETTLE_INTERVALS.0;
            loop {
                tokio::time::sleep(interval).await;
                interval = (interval * 2).min(SETTLE_INTERVALS.1);
                let Some(shim) = me.upgrade() else { return };
                let settled = shim.state.borrow().is_settled(&task, &process);
                if settled {
                    shim.deadline_passed(call);
                    return;
                }
            }
        }),
    }
}

/// What a call of the runtime had for itself; some of it may not be there.
fn remove_files<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) {
    for path in paths {
        let _ = std::fs::remove_file(path);
    }
}

/// None: well. `status`: as in [`Shim::child_is_over`].
fn how_it_fared(work: &Work, child: &Child, status: Option<ExitStatus>) -> Option<Failure> {
    let code = status.map_or(0, ExitStatus::code);
    if code == 0 && !child.timed_out {
        return None;
    }
    let logged = child.log.as_ref().and_then(|log| std::fs::read(log).ok()).and_then(|log| log::last_error(&log));
    let printed = || child.output.as_ref().and_then(|fd| fd.try_clone().ok()).map(runner::printed);
    let said = logged.or_else(printed).filter(|text| !text.is_empty());
    let (what, is_mount) = match work {
        Work::Mount => ("mount of the root filesystem", true),
        Work::Unmount => ("unmount of the root filesystem", true),
        Work::Sweep => ("removal of what the failed create has left", true),
        Work::HoldNamespaces => ("making of the sandbox", true),
        Work::Create => ("OCI runtime create", false),
        Work::ExecStart(_) => ("OCI runtime exec", false),
        Work::Start => ("OCI runtime start", false),
        Work::Checkpoint => ("OCI runtime checkpoint", false),
        Work::Restore => ("OCI runtime restore", false),
        Work::Kill { .. } => ("OCI runtime kill", false),
        Work::Pause => ("OCI runtime pause", false),
        Work::Resume => ("OCI runtime resume", false),
        Work::Update => ("OCI runtime update", false),
        Work::Delete { .. } => ("OCI runtime delete", false),
        Work::Drain(_) | Work::Settle(_) | Work::End(_) | Work::EndHolder { .. } => ("drain", false),
    };
    if child.timed_out {
        let last = said.map(|text| format!("; its last words: {text}")).unwrap_or_default();
        let end = match status {
            Some(_) => "and was killed",
            None => "nor when it was killed: something that it needs does not answer",
        };
        let text = format!("{what} failed: it did not end within its deadline {end}{last}");
        return Some(Failure { kind: FailureKind::Deadline, text });
    }
    let said = said.unwrap_or_else(|| {
        let why = child.log.as_deref().and_then(why_no_log).unwrap_or_default();
        format!("it ended with status {code} and said nothing{why}")
    });
    // A second line names criu's log where it was, which is not where it will be.
    let said = match work {
        Work::Checkpoint | Work::Restore => said.lines().next().unwrap_or_default().to_owned(),
        _ => said,
    };
    let kind = match (work, log::classify(&said)) {
        _ if is_mount => FailureKind::Other,
        (Work::Create | Work::Restore, RuntimeFailure::AlreadyExists) => FailureKind::AlreadyExists,
        (Work::Checkpoint | Work::Restore, RuntimeFailure::Unsupported) => FailureKind::Unsupported,
        (Work::Kill { .. } | Work::Delete { .. }, RuntimeFailure::NotFound | RuntimeFailure::NotRunning) => {
            FailureKind::NotFound
        }
        // A "no such file" of the container's own must not look like a container that is gone.
        _ => FailureKind::Other,
    };
    Some(Failure { kind, text: format!("{what} failed: {said}") })
}

/// A runtime that cannot write its log cannot say what else went wrong, which is mostly the same: a full disk.
fn why_no_log(log: &Path) -> Option<String> {
    let error = std::fs::write(log, "\n").err()?;
    Some(format!(", its log {} cannot be written: {error}", log.display()))
}

/// Nobody else is told of it.
fn note_failed_errand(task: &TaskId, work: &Work, failure: &Failure) {
    tracing::warn!(task = task.0, work = ?work, error = failure.text, "an errand failed, ignoring");
}

pub(super) fn failure(text: String) -> Failure {
    Failure { kind: FailureKind::Other, text }
}

fn not_ended(task: &TaskId, pid: Pid) -> Failure {
    let who = if pid == 0 { "a process".to_owned() } else { format!("init (pid {pid})") };
    let text = format!("{who} of task {:?} was killed and has not ended in time; try again", task.0);
    Failure { kind: FailureKind::Deadline, text }
}

fn still_held(id: &TaskId) -> Failure {
    let text = format!("what holds the namespaces of sandbox {:?} has not ended in time; try again", id.0);
    Failure { kind: FailureKind::Deadline, text }
}

pub(super) fn gone(task: &TaskId) -> Failure {
    Failure { kind: FailureKind::NotFound, text: format!("task {:?} is gone", task.0) }
}

pub(super) fn io_failure(task: &TaskId, process: &ProcessId, error: &IoError) -> Failure {
    let kind = match error {
        IoError::Address(AddressError::Streaming { .. }) => FailureKind::Unsupported,
        IoError::Address(_) | IoError::Fifo(_) => FailureKind::Invalid,
        IoError::Log { .. } | IoError::Kernel(..) => FailureKind::Other,
    };
    Failure { kind, text: format!("the streams of {process} of task {:?}: {}", task.0, chain(error)) }
}

/// As runc and Go say it, which is what clients look for.
pub(super) fn spell(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "executable file not found: no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_log_that_cannot_be_written_is_an_excuse() {
        let path = Path::new("/nonexistent/1.log");
        let said = why_no_log(path).unwrap_or_default();
        assert_eq!(said, ", its log /nonexistent/1.log cannot be written: No such file or directory (os error 2)");
        assert_eq!(why_no_log(Path::new("/dev/null")), None);
    }
}
