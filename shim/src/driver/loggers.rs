//! The life of loggers (contract 6.5): children of the shim that are ready before the OCI runtime is called, and have
//! ended before Delete is answered.
//!
//! ```text
//!   starting ──> serving ──> flushing ──> terminating ──> killed        (each may be the last)
//!       │           │        its pipes    after SIGTERM   after SIGKILL
//!       │           │        are closed
//!       v           v
//!   the start    died: another one is started, and reads on from the same pipes
//!   fails
//! ```
//!
//! A logger is starting while a call of the runtime waits for it ([`What::Logger`]); it is in the table of loggers from
//! its start until it was reaped, also when its container is gone by then.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::read;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::calls::{Running, What, failure, gone, io_failure, spell};
use super::{Shim, State, Timer};
use crate::io::fifo;
use crate::io::logger::{self, Identity, Started};
use crate::io::process::{IoError, LoggerPipes};
use crate::io::stdio::LoggerSettings;
use crate::lifecycle::{CallId, ExitStatus, Failure, FailureKind, Input, Pid, ProcessId, TaskId, Work};
use crate::oci::runner;
use crate::owned_task::OwnedTask;
use crate::sys::{process, ready, signal};

/// How long a logger may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a logger may take to end by itself once it has seen the end of its input; one that waits for SIGTERM gets it
/// then.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// How long a logger may take after SIGTERM, as in Go's shim.
const TERMINATE_LIMIT: Duration = Duration::from_secs(12);
/// Until another one is started in the place of one that died: the first time, and at most.
const REVIVAL_DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(32));

/// A logger that is not reaped yet.
pub(super) struct Logger {
    pub(super) task: TaskId,
    pub(super) process: ProcessId,
    pub(super) program: PathBuf,
    pub(super) stage: Stage,
}

/// See the module. The timers lead to the next stage.
pub(super) enum Stage {
    Serving,
    Flushing(Timer),
    Terminating(Timer),
    Killed,
}

/// A logger that a call of the runtime waits for.
pub(super) struct Starting {
    pub(super) pid: Pid,
    pub(super) pipes: LoggerPipes,
    pub(super) ready: Rc<AsyncFd<OwnedFd>>,
    pub(super) must_speak: bool,
    _watch: OwnedTask,
}

/// A logger that died and is to be replaced.
#[derive(Default)]
pub(super) struct Revival {
    /// How often this process's logger has died.
    pub(super) deaths: u32,
    pub(super) timer: Option<Timer>,
}

/// What a logger has said so far.
enum Said {
    Ready,
    Nothing,
    /// It never will.
    Closed,
}

impl Starting {
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub(super) fn watch(started: Started, must_speak: bool, call: CallId, me: &Weak<Shim>) -> io::Result<Self> {
        let Started { pid, pipes, ready } = started;
        let ready = Rc::new(ready::register(ready, Interest::READABLE)?);
        let watch = OwnedTask::spawn(watch(me.clone(), call, ready.clone()));
        Ok(Self { pid, pipes, ready, must_speak, _watch: watch })
    }

    fn said(&self) -> Said {
        match read(self.ready.get_ref(), &mut [0]) {
            Ok(1..) => Said::Ready,
            Err(Errno::EAGAIN | Errno::EINTR) => Said::Nothing,
            Ok(0) | Err(_) => Said::Closed,
        }
    }
}

/// Nothing is read here, so that nothing is lost when the task is dropped.
async fn watch(me: Weak<Shim>, call: CallId, ready: Rc<AsyncFd<OwnedFd>>) {
    loop {
        let Ok(mut guard) = ready.readable().await else { return };
        // Looked at before the next wait, whatever has come in between.
        guard.clear_ready();
        drop(guard);
        let Some(shim) = me.upgrade() else { return };
        if !shim.logger_spoke(call) {
            return;
        }
    }
}

impl State {
    /// Starts the logger of the process that `work` makes, if it has one.
    pub(super) fn begin_logger(
        &mut self,
        call: CallId,
        task: &TaskId,
        work: &Work,
        me: &Weak<Shim>,
    ) -> Result<Option<Starting>, Failure> {
        let Some(process) = process_made_by(work) else { return Ok(None) };
        let Some(settings) = self.logger_settings(task, &process)? else { return Ok(None) };
        let cannot = |e: io::Error| {
            failure(format!("cannot start the logger {} of {process}: {}", settings.program.display(), spell(&e)))
        };
        let started = logger::start(&settings, identity(&self.config.namespace, task, &process)).map_err(cannot)?;
        let pid = started.pid;
        tracing::debug!(task = task.0, process = %process, pid, "a logger was started");
        let (task, program) = (task.clone(), settings.program.clone());
        self.loggers.insert(pid, Logger { task, process: process.clone(), program, stage: Stage::Serving });
        let starting = Starting::watch(started, settings.must_speak, call, me);
        starting.map(Some).map_err(|e| {
            self.end_logger(pid, me);
            cannot(e)
        })
    }

    fn logger_settings(&self, task: &TaskId, process: &ProcessId) -> Result<Option<LoggerSettings>, Failure> {
        let settings = self.containers.get(task).and_then(|c| c.processes.get(process)).ok_or_else(|| gone(task))?;
        settings.addresses.logger().map_err(|e| io_failure(task, process, &IoError::from(e)))
    }

    /// How long a logger may take until it is ready. It is part of the runtime's call, which may be given less.
    pub(super) fn ready_limit(&self) -> Duration {
        READY_LIMIT.min(self.config.runtime_deadline)
    }

    /// Whether a logger of a process is still to be waited for: one that SIGKILL does not end hangs in the kernel.
    pub(super) fn loggers_may_end(&self, task: &TaskId, process: &ProcessId) -> bool {
        self.loggers_of(task, process).any(|pid| !matches!(self.loggers[&pid].stage, Stage::Killed))
    }

    pub(super) fn has_logger(&self, task: &TaskId, process: &ProcessId) -> bool {
        self.loggers_of(task, process).next().is_some()
    }

    pub(super) fn loggers_of<'a>(&'a self, task: &'a TaskId, process: &'a ProcessId) -> impl Iterator<Item = Pid> + 'a {
        let of = move |logger: &&Logger| logger.task == *task && logger.process == *process;
        self.loggers.iter().filter(move |(_, logger)| of(logger)).map(|(pid, _)| *pid)
    }

    /// Whether a logger is on its way out: the shim stays until it has ended.
    pub(super) fn loggers_are_ending(&self) -> bool {
        self.loggers.values().any(|logger| !matches!(logger.stage, Stage::Serving))
    }

    /// The loggers of a process have seen the end of their input, or see it now.
    pub(super) fn end_loggers(&mut self, task: &TaskId, process: &ProcessId, me: &Weak<Shim>) {
        let pids: Vec<Pid> = self.loggers_of(task, process).collect();
        for pid in pids {
            self.end_logger(pid, me);
        }
    }

    /// The streams are about to be closed, whatever is in them.
    pub(super) fn part_with_readers(&mut self, task: &TaskId, process: &ProcessId, me: &Weak<Shim>) {
        self.end_loggers(task, process, me);
        let has_logger = self.has_logger(task, process);
        let Some(io) = self.process(task, process).and_then(|settings| settings.io.as_ref()) else { return };
        if !has_logger && !matches!(io.orphaned_logger_pipes(), Ok(None)) {
            tracing::warn!(task = task.0, process = %process, "deleting it with output that no logger took");
        } else if io.is_unread() {
            // As clients do that started something in the background and left.
            let bytes = io.left();
            tracing::info!(task = task.0, process = %process, bytes, "deleting it with output that nobody came to read");
        }
    }

    fn end_logger(&mut self, pid: Pid, me: &Weak<Shim>) {
        if let Some(logger) = self.loggers.get_mut(&pid)
            && matches!(logger.stage, Stage::Serving)
        {
            logger.stage = Stage::Flushing(next_stage(FLUSH_LIMIT, pid, me));
        }
    }

    /// It took too long. Its whole group goes, as it may be a script.
    pub(super) fn kill_logger(&mut self, pid: Pid) {
        if let Some(logger) = self.loggers.get_mut(&pid) {
            logger.stage = Stage::Killed;
            runner::kill_group(pid);
        }
    }

    /// At the shim's own end.
    pub(super) fn kill_ending_loggers(&mut self) {
        let ending = self.loggers.iter().filter(|(_, logger)| !matches!(logger.stage, Stage::Serving));
        for pid in ending.map(|(pid, _)| *pid).collect::<Vec<_>>() {
            self.kill_logger(pid);
        }
    }

    fn limit_of_stage_passed(&mut self, pid: Pid, me: &Weak<Shim>) {
        let Some(logger) = self.loggers.get_mut(&pid) else { return };
        match logger.stage {
            Stage::Flushing(_) => {
                logger.stage = Stage::Terminating(next_stage(TERMINATE_LIMIT, pid, me));
                let _ = signal::send(pid, libc::SIGTERM);
            }
            Stage::Terminating(_) => {
                let (task, program) = (&logger.task, logger.program.display());
                tracing::warn!(task = task.0, pid, program = %program, "a logger did not end after SIGTERM, killing it");
                self.kill_logger(pid);
            }
            Stage::Serving | Stage::Killed => {}
        }
    }

    /// If a logger died that is needed still, there will be another. What it did not read is in its pipes.
    pub(super) fn look_after_logger(&mut self, task: &TaskId, process: &ProcessId, me: &Weak<Shim>) {
        if self.has_logger(task, process) {
            return;
        }
        let Some(settings) = self.process(task, process) else { return };
        let is_needed = settings.io.as_ref().is_some_and(|io| !matches!(io.orphaned_logger_pipes(), Ok(None)));
        if is_needed && settings.revival.timer.is_none() {
            let again_in = revival_delay(settings.revival.deaths);
            settings.revival.deaths = settings.revival.deaths.saturating_add(1);
            settings.revival.timer = Some(revival_timer(again_in, task, process, me));
            tracing::error!(
                task = task.0, process = %process, again_in = ?again_in,
                "no logger reads the output; what is printed waits for the next one"
            );
        }
    }

    /// Starts another logger in the place of one that died, if one is to be.
    pub(super) fn revive_logger(&mut self, task: &TaskId, process: &ProcessId, me: &Weak<Shim>) {
        let Some(settings) = self.process(task, process) else { return };
        if settings.revival.timer.take().is_none() {
            return;
        }
        let pipes = settings.io.as_ref().map_or(Ok(None), |io| io.orphaned_logger_pipes());
        let Ok(Some(logger)) = self.logger_settings(task, process) else { return };
        let identity = identity(&self.config.namespace, task, process);
        let started = match pipes {
            // Nothing waits for it any more.
            Ok(None) => return,
            Ok(Some(pipes)) => logger::replace(&logger, identity, pipes),
            Err(e) => Err(e),
        };
        match started {
            Ok(pid) => {
                let program = logger.program;
                tracing::info!(task = task.0, process = %process, pid, program = %program.display(), "the logger is back");
                let (task, process) = (task.clone(), process.clone());
                if let Some(io) = self.process(&task, &process).and_then(|p| p.io.as_ref()) {
                    io.logger_is_back();
                }
                self.loggers.insert(pid, Logger { task: task.clone(), process, program, stage: Stage::Serving });
                self.save_or_retry(task, me);
            }
            Err(e) => {
                let error = spell(&e);
                tracing::error!(task = task.0, process = %process, error, "cannot start the logger again, trying later");
                self.look_after_logger(task, process, me);
            }
        }
    }
}

impl Shim {
    /// A logger has written into its readiness pipe or closed it. Whether it is to be listened to further.
    fn logger_spoke(&self, call: CallId) -> bool {
        let state = self.state.borrow();
        let Some(What::Logger(starting)) = state.running.get(&call).map(|running| &running.what) else { return false };
        let outcome = match starting.said() {
            Said::Nothing => return true,
            Said::Ready => Ok(()),
            Said::Closed => match state.loggers.contains_key(&starting.pid) {
                // One that died is not ready, and how it ended is worth telling: its exit comes at once.
                true if process::is_ending(starting.pid) => return false,
                false if !fifo::has_reader(&starting.pipes[0]) => Err("has ended before it was ready"),
                _ if starting.must_speak => Err("closed its readiness pipe (fd 5) without a word"),
                _ => Ok(()),
            },
        };
        drop(state);
        match outcome {
            Ok(()) => self.logger_is_ready(call),
            Err(why) => self.logger_failed(call, FailureKind::Other, why),
        }
        false
    }

    /// Now the process that it is for can be made.
    fn logger_is_ready(&self, call: CallId) {
        let mut state = self.state.borrow_mut();
        let Some(Running { task, work, what: What::Logger(starting), asked, .. }) = state.running.remove(&call) else {
            return;
        };
        match state.begin_runtime(call, &task, &work, None, Some(starting.pipes), &self.me) {
            Ok(child) => state.goes_on(call, &task, &work, What::Child(child), asked, &self.me),
            Err(failure) => {
                state.start_failed(&task, &work, &self.me);
                drop(state);
                self.input(Input::Done { call, outcome: Err(failure) });
            }
        }
    }

    fn logger_failed(&self, call: CallId, kind: FailureKind, why: &str) {
        let mut state = self.state.borrow_mut();
        let Some(Running { task, work, what: What::Logger(starting), .. }) = state.running.remove(&call) else {
            return;
        };
        let process = process_made_by(&work).unwrap_or(ProcessId::Init);
        let program = state.logger_settings(&task, &process).ok().flatten().map(|s| s.program).unwrap_or_default();
        let text = format!("the logger {} of {process} of task {:?} {why}", program.display(), task.0);
        // It has got nothing to flush.
        state.kill_logger(starting.pid);
        state.start_failed(&task, &work, &self.me);
        drop((state, starting));
        self.input(Input::Done { call, outcome: Err(Failure { kind, text }) });
    }

    pub(super) fn logger_is_late(&self, call: CallId) {
        let limit = self.state.borrow().ready_limit();
        let why = format!("did not say within {limit:?} that it is ready");
        self.logger_failed(call, FailureKind::Deadline, &why);
    }

    /// A logger was reaped. False if the pid is none of a logger.
    pub(super) fn logger_exited(&self, pid: Pid, status: ExitStatus) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(logger) = state.loggers.remove(&pid) else { return false };
        let waiting = |running: &Running| matches!(&running.what, What::Logger(starting) if starting.pid == pid);
        let call = state.running.iter().find(|(_, running)| waiting(running)).map(|(call, _)| *call);
        if let Some(call) = call {
            drop(state);
            self.starting_logger_exited(call, status);
            return true;
        }
        let Logger { task, process, program, stage } = logger;
        // Before it was sent a signal, that is.
        if matches!(stage, Stage::Serving | Stage::Flushing(_)) && status.code() != 0 {
            let (program, status) = (program.display(), status.code());
            tracing::error!(task = task.0, process = %process, program = %program, status, "a logger has failed");
        }
        drop(state);
        // Looks whether it is needed still.
        self.quiet(&task, &process);
        true
    }

    /// It may have said that it is ready before, or have left its work to a child of its own.
    fn starting_logger_exited(&self, call: CallId, status: ExitStatus) {
        let state = self.state.borrow();
        let Some(What::Logger(starting)) = state.running.get(&call).map(|running| &running.what) else { return };
        let is_read = fifo::has_reader(&starting.pipes[0]);
        let ready = match starting.said() {
            Said::Nothing => return,
            Said::Ready => true,
            Said::Closed => is_read && !starting.must_speak,
        };
        drop(state);
        if ready {
            self.logger_is_ready(call);
        } else {
            let why = format!("ended with status {} before it was ready", status.code());
            self.logger_failed(call, FailureKind::Other, &why);
        }
    }
}

/// Which process has its streams opened for this work.
pub(super) fn process_made_by(work: &Work) -> Option<ProcessId> {
    match work {
        Work::Create | Work::Restore => Some(ProcessId::Init),
        Work::ExecStart(process) => Some(process.clone()),
        _ => None,
    }
}

/// Doubles, so that one which always dies costs little.
fn revival_delay(deaths: u32) -> Duration {
    let (first, most) = REVIVAL_DELAYS;
    (first * 2u32.saturating_pow(deaths.min(16))).min(most)
}

fn identity<'a>(namespace: &'a str, task: &'a TaskId, process: &'a ProcessId) -> Identity<'a> {
    let id = match process {
        ProcessId::Init => &task.0,
        ProcessId::Exec(id) => &id.0,
    };
    Identity { id, namespace }
}

/// Leads a logger to its next stage.
pub(super) fn next_stage(after: Duration, pid: Pid, me: &Weak<Shim>) -> Timer {
    let me = me.clone();
    Timer::new(after, move || {
        if let Some(shim) = me.upgrade() {
            shim.state.borrow_mut().limit_of_stage_passed(pid, &shim.me);
        }
    })
}

pub(super) fn revival_timer(after: Duration, task: &TaskId, process: &ProcessId, me: &Weak<Shim>) -> Timer {
    let (me, task, process) = (me.clone(), task.clone(), process.clone());
    Timer::new(after, move || {
        if let Some(shim) = me.upgrade() {
            shim.state.borrow_mut().revive_logger(&task, &process, &shim.me);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logger_that_keeps_dying_is_started_ever_more_rarely() {
        let delays: Vec<u64> = (0..8).map(|deaths| revival_delay(deaths).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 32, 32]);
        assert_eq!(revival_delay(u32::MAX).as_secs(), 32);
    }
}
