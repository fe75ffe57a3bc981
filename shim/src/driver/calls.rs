//! What takes time: children (the OCI runtime, mounts) and drains, each with a deadline.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Weak;
use std::time::Duration;

use super::container::read_pid;
use super::{Shim, State, Timer, chain, choose_runtime, on_quiet};
use crate::cgroup::Paths;
use crate::cli::{MOUNT_ACTION, UNMOUNT_ACTION};
use crate::io::console::ConsoleSocket;
use crate::io::process::{IoError, ProcessEnds, ProcessIo};
use crate::lifecycle::{Asker, CallId, ExitStatus, Failure, FailureKind, Input, Outcome, Pid, ProcessId, TaskId, Work};
use crate::oci::command::{self, Call};
use crate::oci::log::{self, FailureKind as RuntimeFailure};
use crate::oci::runner::{self, ChildStdio};
use crate::owned_task::OwnedTask;
use crate::record;
use crate::sys::mount::MountRequest;
use crate::wire::Body;

/// How long an exit is held back for a reader who does not take what the process had printed.
const SETTLE_DEADLINE: Duration = Duration::from_secs(2);
/// How often it is looked at.
const SETTLE_INTERVALS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(16));

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
    Drain,
    /// A task that looks whether it is so yet.
    Settle {
        _looks: OwnedTask,
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
    pub(super) timed_out: bool,
}

/// What a child is to be started with.
#[derive(Default)]
struct Launch {
    ends: ProcessEnds,
    /// Read by the child; only where it has no other input.
    input: Option<OwnedFd>,
    console: Option<ConsoleSocket>,
    spec: Option<PathBuf>,
    /// stdout and stderr are the container's.
    is_process: bool,
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
            Work::Drain(process) => {
                if self.is_drained(task, process) {
                    return Some(Ok(None));
                }
                Ok(Some(What::Drain))
            }
            Work::Settle(process) => {
                if self.is_settled(task, process) {
                    return Some(Ok(None));
                }
                Ok(Some(settle(me, call, task, process)))
            }
            _ => self.begin_runtime(call, task, work, asker, me).map(|child| Some(What::Child(child))),
        };
        let what = match begun {
            Ok(Some(what)) => what,
            Ok(None) => return Some(Ok(None)),
            Err(failure) => {
                self.start_failed(task, work);
                return Some(Err(failure));
            }
        };
        if let What::Child(child) = &what {
            self.children.insert(child.pid, call);
        }
        let limit = match what {
            What::Drain => self.config.drain_deadline,
            What::Settle { .. } => SETTLE_DEADLINE,
            What::Child(_) => self.config.runtime_deadline,
        };
        let deadline = self.deadline(call, limit, me);
        let asked = asker.is_some();
        self.running.insert(call, Running { task: task.clone(), work: work.clone(), what, asked, deadline });
        None
    }

    pub(super) fn deadline(&self, call: CallId, limit: Duration, me: &Weak<Shim>) -> Timer {
        let me = me.clone();
        Timer::new(limit, move || {
            if let Some(shim) = me.upgrade() {
                shim.deadline_passed(call);
            }
        })
    }

    /// An exec's start that failed can be tried again, with its streams opened anew; until then their readers see the end.
    fn start_failed(&mut self, task: &TaskId, work: &Work) {
        if let Work::ExecStart(process) = work
            && let Some(process) = self.process(task, process)
        {
            process.io = None;
        }
    }

    fn begin_mount(&mut self, call: CallId, task: &TaskId) -> Result<Option<What>, Failure> {
        let container = self.containers.get(task).ok_or_else(|| gone(task))?;
        container.write_options().map_err(|(path, e)| failure(format!("cannot write {}: {e}", path.display())))?;
        if container.mounts.is_empty() {
            return Ok(None);
        }
        let request = MountRequest { rootfs: container.rootfs(), mounts: container.mounts.clone() };
        let json = serde_json::to_vec(&request).map_err(|e| failure(e.to_string()))?;
        let input = runner::memory_file(&json).map_err(|e| failure(format!("cannot pass the mounts on: {e}")))?;
        self.launch_ourselves(call, vec![MOUNT_ACTION.into()], Some(input)).map(Some)
    }

    fn begin_unmount(&mut self, call: CallId, task: &TaskId) -> Result<Option<What>, Failure> {
        let container = self.containers.get(task).ok_or_else(|| gone(task))?;
        if container.mounts.is_empty() {
            return Ok(None);
        }
        self.launch_ourselves(call, vec![UNMOUNT_ACTION.into(), container.rootfs().into()], None).map(Some)
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

    fn begin_runtime(
        &mut self,
        call: CallId,
        task: &TaskId,
        work: &Work,
        asker: Option<Asker>,
        me: &Weak<Shim>,
    ) -> Result<Child, Failure> {
        let body = asker.and_then(|asker| self.bodies.remove(&asker));
        let config = &self.config;
        let container = self.containers.get_mut(task).ok_or_else(|| gone(task))?;
        if container.runtime.binary.as_os_str().is_empty() {
            container.runtime = choose_runtime(config, &container.options).map_err(|e| failure(e.to_string()))?;
        }
        let mut launch = Launch::default();
        let process = match work {
            Work::Create => Some(ProcessId::Init),
            Work::ExecStart(process) => Some(process.clone()),
            _ => None,
        };
        if let Some(process) = &process {
            let owner = (container.options.io_uid, container.options.io_gid);
            let settings = container.processes.get_mut(process).ok_or_else(|| gone(task))?;
            let (io, ends) = ProcessIo::open(&settings.addresses, owner, on_quiet(me, task, process))
                .map_err(|e| io_failure(task, process, &e))?;
            settings.io = Some(io);
            launch.ends = ends;
            launch.is_process = !settings.addresses.terminal;
            if settings.addresses.terminal {
                let dir = config.run_dir.join("c").join(format!("{}-{}", std::process::id(), call.0));
                let socket = ConsoleSocket::new(dir);
                launch.console = Some(socket.map_err(|e| failure(format!("cannot make a console socket: {e}")))?);
            }
            if matches!(process, ProcessId::Exec(_)) {
                let dir = container.dir.join("exec");
                let path = dir.join(format!("{}.json", process.exec_id()));
                let written = record::make_dir(&dir).and_then(|()| record::replace(&path, &settings.spec, 0o600));
                written.map_err(|e| failure(format!("cannot write {}: {e}", path.display())))?;
                launch.spec = Some(path);
            }
        }
        if let (Work::Update, Some(Body::Update(resources))) = (work, &body) {
            let file = runner::memory_file(resources);
            launch.input = Some(file.map_err(|e| failure(format!("cannot pass the resources on: {e}")))?);
        }
        let pid_file = process.map(|process| container.pid_file(&process));
        if let Some(pid_file) = &pid_file {
            // One of an earlier try names a stranger by now.
            let _ = std::fs::remove_file(pid_file);
        }
        let pid_file = pid_file.unwrap_or_default();
        let console = launch.console.as_ref().map(ConsoleSocket::path);
        let spec = launch.spec.clone().unwrap_or_default();
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
            Work::Kill { signal, all } => Call::Kill { signal: *signal, all: *all },
            Work::Pause => Call::Pause,
            Work::Resume => Call::Resume,
            Work::Update => Call::Update,
            Work::Delete { force } => Call::Delete { force: *force },
            Work::Mount | Work::Unmount | Work::Drain(_) | Work::Settle(_) => return Err(gone(task)),
        };
        let log = container.dir.join(format!("{}.log", call.0));
        let arguments = command::arguments(&container.runtime, &task.0, &log, &verb);
        launch
            .start(call, container.runtime.binary.clone(), &arguments, Some(log))
            .map_err(|f| Failure { text: format!("OCI runtime {} failed: {}", verb.verb(), f.text), ..f })
    }

    fn is_drained(&self, task: &TaskId, process: &ProcessId) -> bool {
        let container = self.containers.get(task);
        let io = container.and_then(|c| c.processes.get(process)).and_then(|p| p.io.as_ref());
        io.is_none_or(ProcessIo::is_drained)
    }

    pub(super) fn is_settled(&self, task: &TaskId, process: &ProcessId) -> bool {
        let container = self.containers.get(task);
        let io = container.and_then(|c| c.processes.get(process)).and_then(|p| p.io.as_ref());
        io.is_none_or(ProcessIo::is_settled)
    }

    /// What is to be done once the runtime has made a process: its pid, its terminal, its control group.
    fn process_made(&mut self, task: &TaskId, process: &ProcessId, child: &Child) -> Outcome {
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
        if let (true, Some(io)) = (settings.stdin_closed, &mut settings.io) {
            io.close_stdin();
        }
        settings.spec = Vec::new();
        if *process == ProcessId::Init {
            container.cgroup = match Paths::of_process(pid) {
                Ok(paths) => Some(paths),
                Err(e) => {
                    tracing::warn!(task = task.0, pid, error = chain(&e), "no control group, so no figures");
                    None
                }
            };
        }
        Ok(Some(pid))
    }
}

impl Launch {
    fn start(
        self,
        call: CallId,
        program: PathBuf,
        arguments: &[std::ffi::OsString],
        log: Option<PathBuf>,
    ) -> Result<Child, Failure> {
        let cannot = |e: io::Error| failure(format!("cannot start {}: {}", program.display(), spell(&e)));
        let Self { ends, input, console, spec, is_process } = self;
        let output = if is_process { None } else { Some(runner::memory_file(b"").map_err(cannot)?) };
        let copy = || output.as_ref().map(OwnedFd::try_clone).transpose().map_err(cannot);
        let stdio = ChildStdio {
            stdin: ends.stdin.or(input),
            stdout: if is_process { ends.stdout } else { copy()? },
            stderr: if is_process { ends.stderr } else { copy()? },
        };
        let started = runner::spawn(&program, arguments, stdio);
        if started.is_err()
            && let Some(spec) = &spec
        {
            let _ = std::fs::remove_file(spec);
        }
        let pid = started.map_err(cannot)?;
        tracing::debug!(call = call.0, pid, program = %program.display(), "a child was started");
        Ok(Child { pid, output, log, console, spec, timed_out: false })
    }
}

impl Shim {
    /// One of the driver's own children was reaped.
    pub(super) fn child_exited(&self, call: CallId, status: ExitStatus) {
        let mut state = self.state.borrow_mut();
        let Some(Running { task, work, what: What::Child(child), asked, .. }) = state.running.remove(&call) else {
            return;
        };
        let outcome = match how_it_fared(&work, &child, status) {
            Some(failure) => Err(failure),
            None => match &work {
                Work::Create => state.process_made(&task, &ProcessId::Init, &child),
                Work::ExecStart(process) => state.process_made(&task, process, &child),
                _ => Ok(None),
            },
        };
        for path in child.log.iter().chain(&child.spec) {
            let _ = std::fs::remove_file(path);
        }
        if let Err(failure) = &outcome {
            state.start_failed(&task, &work);
            if !asked {
                tracing::warn!(task = task.0, work = ?work, error = failure.text, "an errand failed, ignoring");
            }
        }
        drop(state);
        self.input(Input::Done { call, outcome });
    }

    fn deadline_passed(&self, call: CallId) {
        let mut state = self.state.borrow_mut();
        match state.running.get_mut(&call).map(|running| &mut running.what) {
            Some(What::Child(child)) => {
                child.timed_out = true;
                // Its exit comes through the reaper, like any other.
                runner::kill_group(child.pid);
            }
            Some(What::Drain | What::Settle { .. }) => {
                if let Some(Running { task, work: Work::Drain(process), .. }) = state.running.remove(&call) {
                    // A reader that does not read, or a log on a full disk: the one way in which output gets lost.
                    tracing::warn!(task = task.0, process = %process, "deleting it with output that nobody took in time");
                }
                drop(state);
                self.input(Input::Done { call, outcome: Ok(None) });
            }
            None => {}
        }
    }

    /// A stream of a process has ended or run empty.
    pub(super) fn quiet(&self, task: &TaskId, process: &ProcessId) {
        // Relays call this from their own tasks, never from within an effect.
        let mut state = self.state.borrow_mut();
        if !state.is_drained(task, process) {
            return;
        }
        let waits = |running: &Running| running.task == *task && running.work == Work::Drain(process.clone());
        let Some(call) = state.running.iter().find(|(_, r)| waits(r)).map(|(call, _)| *call) else { return };
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

/// None: well.
fn how_it_fared(work: &Work, child: &Child, status: ExitStatus) -> Option<Failure> {
    if status.code() == 0 && !child.timed_out {
        return None;
    }
    let logged = child.log.as_ref().and_then(|log| std::fs::read(log).ok()).and_then(|log| log::last_error(&log));
    let printed = || child.output.as_ref().and_then(|fd| fd.try_clone().ok()).map(runner::printed);
    let said = logged.or_else(printed).filter(|text| !text.is_empty());
    let (what, is_mount) = match work {
        Work::Mount => ("mount of the root filesystem", true),
        Work::Unmount => ("unmount of the root filesystem", true),
        Work::Create => ("OCI runtime create", false),
        Work::ExecStart(_) => ("OCI runtime exec", false),
        Work::Start => ("OCI runtime start", false),
        Work::Kill { .. } => ("OCI runtime kill", false),
        Work::Pause => ("OCI runtime pause", false),
        Work::Resume => ("OCI runtime resume", false),
        Work::Update => ("OCI runtime update", false),
        Work::Delete { .. } => ("OCI runtime delete", false),
        Work::Drain(_) | Work::Settle(_) => ("drain", false),
    };
    if child.timed_out {
        let last = said.map(|text| format!("; its last words: {text}")).unwrap_or_default();
        let text = format!("{what} failed: it did not end within its deadline and was killed{last}");
        return Some(Failure { kind: FailureKind::Deadline, text });
    }
    let said = said.unwrap_or_else(|| {
        let why = child.log.as_deref().and_then(why_no_log).unwrap_or_default();
        format!("it ended with status {} and said nothing{why}", status.code())
    });
    let kind = match (work, log::classify(&said)) {
        _ if is_mount => FailureKind::Other,
        (Work::Create, RuntimeFailure::AlreadyExists) => FailureKind::AlreadyExists,
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

fn failure(text: String) -> Failure {
    Failure { kind: FailureKind::Other, text }
}

fn gone(task: &TaskId) -> Failure {
    Failure { kind: FailureKind::NotFound, text: format!("task {:?} is gone", task.0) }
}

fn io_failure(task: &TaskId, process: &ProcessId, error: &IoError) -> Failure {
    let kind = match error {
        IoError::Address(_) | IoError::Fifo(_) => FailureKind::Invalid,
        IoError::Log { .. } | IoError::Kernel(..) => FailureKind::Other,
    };
    Failure { kind, text: format!("the streams of {process} of task {:?}: {}", task.0, chain(error)) }
}

/// As runc and Go say it, which is what clients look for.
fn spell(error: &io::Error) -> String {
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
