//! Effects, carried out.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use serde::{Deserialize, Serialize};

use super::container::{Container, Process};
use super::{Shim, State, chain, choose_runtime, output, sandbox};
use crate::cgroup::{self, CgroupError, Paths};
use crate::io::log_writer::LogWriter;
use crate::io::process::{IoError, ProcessIo};
use crate::io::spill::Spill;
use crate::lifecycle::{
    Asker, Effect, Event, Failure, FailureKind, Input, KnownProcess, Pid, ProcessId, Refusal, Reply, TaskId,
};
use crate::offload;
use crate::options::Options;
use crate::owned_task::OwnedTask;
use crate::publish::Publication;
use crate::sys::reaper::now_unix_ns;
use crate::wire::{self, Body, Chosen, EventFacts, RpcError};

/// How long the control group may take to be read before `Pids` answers from memory.
const PIDS_PATIENCE: Duration = Duration::from_secs(1);
/// How often a record that could not be written is tried again.
const RESAVE: Duration = Duration::from_secs(1);

/// A question whose answer comes from off the loop, because a control group can stall, and so can a disk.
pub(super) struct Question {
    pub(super) about: About,
    _task: OwnedTask,
}

/// What is asked; enough to ask again after a freeze.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum About {
    /// With what the shim knows by itself: pid and exec id.
    Pids(TaskId, Vec<(Pid, Option<String>)>),
    Stats(TaskId),
    /// With the holder's pid.
    SandboxMetrics(TaskId, Pid),
    /// Answered once nothing more is written into the old files.
    ReopenLogs(TaskId),
    /// Of one task or of all, with what the disk says.
    Output(Option<TaskId>),
}

impl State {
    /// Carries one effect out; inputs that follow at once are appended to `inputs`. Whether the shim is to stop.
    pub(super) fn perform(&mut self, effect: Effect, me: &Weak<Shim>, inputs: &mut VecDeque<Input>) -> bool {
        match effect {
            Effect::Reply(asker, reply) => {
                let answer = match reply {
                    Ok(reply) => Ok(self.encode(&reply)),
                    Err(refusal) => Err(wire::refusal_error(&refusal)),
                };
                self.respond(asker, answer);
            }
            Effect::Adopt(asker, task, process) => self.adopt(asker, &task, &process),
            Effect::Begin { call, task, work, asker } => {
                if let Some(outcome) = self.begin(call, &task, &work, asker, me) {
                    inputs.push_back(Input::Done { call, outcome });
                }
            }
            Effect::Publish(task, event) => {
                self.publish(&task, &event);
                if let Event::Exited { process, .. } = &event
                    && let Some(process) = self.process(&task, process)
                {
                    process.exit_told = true;
                }
            }
            Effect::Save(task) => self.save_or_retry(task, me),
            Effect::Release(task, process) => self.release(&task, &process, me),
            Effect::Forget(task) => self.forget(&task),
            Effect::OutputEnds(task, process) => {
                if let Some(io) = self.process(&task, &process).and_then(|p| p.io.as_mut()) {
                    io.process_over();
                }
            }
            Effect::CountOomKills { task, last } => self.count_oom_kills(&task, last, inputs),
            Effect::Signal { asker, pid, signal } => {
                let answer = send_signal(pid, signal);
                self.respond(asker, answer.map(|()| wire::empty()));
            }
            Effect::Resize { asker, task, process, width, height } => {
                let answer = self.resize(&task, &process, (width, height));
                self.respond(asker, answer);
            }
            Effect::CloseStdin(asker, task, process) => {
                if let Some(process) = self.process(&task, &process) {
                    process.stdin_closed = true;
                    if let Some(io) = &mut process.io {
                        io.close_stdin();
                    }
                }
                self.respond(asker, Ok(wire::empty()));
            }
            Effect::Attach(asker, task, process) => {
                let answer = self.attach(asker, &task, &process);
                self.respond(asker, answer.map_err(|refusal| wire::refusal_error(&refusal)));
            }
            Effect::ReopenLogs(asker, task) => self.ask(asker, About::ReopenLogs(task), me),
            Effect::ReadPids { asker, task, known } => {
                let known = known.into_iter().map(|k| (k.pid, k.exec_id)).collect();
                self.ask(asker, About::Pids(task, known), me);
            }
            Effect::ReadStats(asker, task) => self.ask(asker, About::Stats(task), me),
            Effect::ReadSandboxMetrics(asker, id, pid) => self.ask(asker, About::SandboxMetrics(id, pid), me),
            Effect::Stop => {
                self.close_socket();
                return true;
            }
        }
        false
    }

    pub(super) fn process(&mut self, task: &TaskId, process: &ProcessId) -> Option<&mut Process> {
        self.containers.get_mut(task)?.processes.get_mut(process)
    }

    fn encode(&self, reply: &Reply) -> Vec<u8> {
        match reply {
            Reply::Empty => wire::empty(),
            Reply::Pid(pid) => wire::pid(*pid),
            Reply::State(task, view) => {
                let container = self.containers.get(task);
                let bundle = container.map(|c| c.bundle.to_string_lossy()).unwrap_or_default();
                let process = container.and_then(|c| c.processes.get(&view.process));
                wire::state(task, view, &bundle, &process.map(|p| p.addresses.clone()).unwrap_or_default())
            }
            Reply::Exit(exit) => wire::exit(*exit),
            Reply::Deleted(pid, exit) => wire::deleted(*pid, *exit),
            Reply::Pids(processes) => wire::pids(processes),
            Reply::Connected(pid) => wire::connected(std::process::id(), *pid),
            Reply::SandboxStarted(view) => wire::sandbox_started(view),
            Reply::SandboxStatus(view, verbose) => {
                let info = if *verbose { self.sandbox_info(&view.id) } else { Vec::new() };
                wire::sandbox_status(view, info)
            }
            Reply::Platform => wire::platform(),
        }
    }

    fn adopt(&mut self, asker: Asker, task: &TaskId, process: &ProcessId) {
        match self.bodies.remove(&asker) {
            Some(Body::Create(mut create)) => {
                let output = self.config.output.clone();
                let chosen = create
                    .chosen
                    .take()
                    .map_or_else(|| Chosen { options: Options::default(), output }, |chosen| *chosen);
                // That there is none shows when it is to be run.
                let runtime = choose_runtime(&self.config, &chosen.options).unwrap_or_default();
                let container = Container::new(create, chosen, runtime, self.container_dir(task));
                self.containers.insert(task.clone(), container);
            }
            Some(Body::Sandbox(body)) => self.adopt_sandbox(task, *body),
            Some(Body::Exec { addresses, spec }) => {
                if let Some(container) = self.containers.get_mut(task) {
                    container.processes.insert(process.clone(), Process { addresses, spec, ..Process::default() });
                }
            }
            _ => {}
        }
    }

    fn publish(&self, task: &TaskId, event: &Event) {
        let container = self.containers.get(task);
        let bundle = container.map(|c| c.bundle.to_string_lossy()).unwrap_or_default();
        let init = container.and_then(|c| c.processes.get(&ProcessId::Init));
        let addresses = init.map(|p| p.addresses.clone()).unwrap_or_default();
        let mounts = container.map(|c| c.mounts.as_slice()).unwrap_or_default();
        let checkpoint = match event {
            Event::Checkpointed(asker) => match self.bodies.get(asker) {
                Some(Body::Checkpoint { image, .. }) => image.to_string_lossy(),
                _ => Cow::default(),
            },
            _ => Cow::from(container.map(|c| c.checkpoint.as_str()).unwrap_or_default()),
        };
        let facts = EventFacts { bundle: &bundle, mounts, addresses: &addresses, checkpoint: &checkpoint };
        let encoded = wire::event(task, event, &facts);
        let (namespace, container) = (self.config.namespace.as_str(), task.0.as_str());
        self.publisher.publish(Publication { namespace, container, event, encoded, at_unix_ns: now_unix_ns() });
    }

    pub(super) fn save_or_retry(&mut self, task: TaskId, me: &Weak<Shim>) {
        let Err(e) = self.save(&task) else { return self.is_saved(&task) };
        // The exit is announced all the same: it is kept in memory.
        if self.unsaved.insert(task.clone()) {
            tracing::error!(task = task.0, error = %e, "cannot write the record, trying again until it works");
        }
        if self.resave.is_none() {
            self.resave = Some(OwnedTask::spawn(resave(me.clone())));
        }
    }

    fn is_saved(&mut self, task: &TaskId) {
        if self.unsaved.remove(task) {
            tracing::info!(task = task.0, "the record is written at last");
        }
    }

    fn release(&mut self, task: &TaskId, process: &ProcessId, me: &Weak<Shim>) {
        self.part_with_readers(task, process, me);
        self.removals.retain(|removal| !removal.is_over());
        let Some(container) = self.containers.get_mut(task) else { return };
        let io = container.processes.get(process).and_then(|process| process.io.as_ref());
        self.removals.extend(io.map(ProcessIo::spills).unwrap_or_default().iter().filter_map(Spill::remove));
        if matches!(process, ProcessId::Exec(_)) {
            container.processes.remove(process);
            let _ = std::fs::remove_file(container.pid_file(process));
        } else if let Some(init) = container.processes.get_mut(process) {
            init.io = None;
        }
    }

    fn forget(&mut self, task: &TaskId) {
        self.unsaved.remove(task);
        if self.forget_sandbox(task) {
            return;
        }
        // Of its events only `TaskDelete` comes after this, and that needs nothing that is known here.
        if let Some(container) = self.containers.remove(task) {
            crate::record::put_away(&container.dir, &container.bundle);
        }
    }

    fn resize(&mut self, task: &TaskId, process: &ProcessId, size: (u16, u16)) -> Result<Vec<u8>, RpcError> {
        let Some(process) = self.process(task, process) else { return Ok(wire::empty()) };
        let resized = process.io.as_ref().map_or(Ok(false), |io| io.resize(size.0, size.1));
        match resized {
            Ok(done) => {
                if !done {
                    process.size = Some(size);
                }
                Ok(wire::empty())
            }
            Err(e) => Err((ttrpc::proto::Code::UNKNOWN, format!("cannot resize the terminal: {e}"))),
        }
    }

    fn attach(&mut self, asker: Asker, task: &TaskId, process: &ProcessId) -> Result<Vec<u8>, Refusal> {
        let Some(Body::Attach { stdout, stderr }) = self.bodies.remove(&asker) else {
            return Err(Refusal::Invalid("no streams to attach to".to_owned()));
        };
        let io = self.process(task, process).and_then(|p| p.io.as_ref());
        let attached = io.map_or(Ok(false), |io| io.attach(stdout, stderr)).map_err(|e| {
            Refusal::Failed(Failure {
                kind: match e {
                    IoError::Fifo(_) | IoError::Address(_) => FailureKind::Invalid,
                    _ => FailureKind::Other,
                },
                text: chain(&e),
            })
        })?;
        if attached {
            return Ok(wire::empty());
        }
        let state = "without output that could be copied";
        Err(Refusal::WrongState { verb: "attach to", process: process.clone(), state })
    }

    pub(super) fn ask(&mut self, asker: Asker, about: About, me: &Weak<Shim>) {
        let task = match &about {
            About::Pids(task, _) | About::Stats(task) | About::ReopenLogs(task) => task,
            About::SandboxMetrics(id, pid) => {
                let (cgroup, id, pid) = (self.sandbox_cgroup(id), id.clone(), *pid);
                let task = OwnedTask::spawn(answer_metrics(me.clone(), asker, id, cgroup, pid));
                self.questions.insert(asker, Question { about, _task: task });
                return;
            }
            About::Output(chosen) => {
                let task = OwnedTask::spawn(output::measured(me.clone(), asker, chosen.clone()));
                self.questions.insert(asker, Question { about, _task: task });
                return;
            }
        };
        let container = self.containers.get(task);
        if let About::ReopenLogs(task) = &about {
            let processes = container.map(|c| c.processes.values()).into_iter().flatten();
            let logs = processes.filter_map(|p| p.io.as_ref()).flat_map(ProcessIo::logs).collect();
            let task = OwnedTask::spawn(reopen_logs(me.clone(), asker, task.clone(), logs));
            self.questions.insert(asker, Question { about, _task: task });
            return;
        }
        let paths = container.and_then(|c| c.cgroup.clone());
        let events = container.and_then(|c| c.memory.as_ref()?.events.clone());
        let task = OwnedTask::spawn(answer(me.clone(), asker, about.clone(), paths, events));
        self.questions.insert(asker, Question { about, _task: task });
    }

    pub(super) fn answered(&mut self, asker: Asker, answer: Result<Vec<u8>, RpcError>) {
        self.respond(asker, answer);
        // This very task; it ends after this.
        self.questions.remove(&asker);
    }
}

async fn reopen_logs(me: Weak<Shim>, asker: Asker, task: TaskId, logs: Vec<Rc<LogWriter>>) {
    let mut answer = Ok(wire::empty());
    for log in logs {
        if let Err(e) = log.reopen().await {
            answer = Err((ttrpc::proto::Code::UNAVAILABLE, format!("cannot reopen the log of task {:?}: {e}", task.0)));
        }
    }
    if let Some(shim) = me.upgrade() {
        shim.state.borrow_mut().answered(asker, answer);
    }
}

/// `events`: the last `memory.events` of a version 2 cgroup.
async fn answer(me: Weak<Shim>, asker: Asker, about: About, paths: Option<Paths>, events: Option<String>) {
    let answer = match about {
        About::Pids(_, known) => {
            let read = paths.map(|paths| offload::ask_cgroup(move || cgroup::pids(&paths)));
            let pids = match read {
                Some(read) => tokio::time::timeout(PIDS_PATIENCE, read).await.ok().and_then(Result::ok),
                None => None,
            };
            Ok(wire::pids(&name_execs(pids.and_then(Result::ok).unwrap_or_default(), known)))
        }
        About::Stats(task) => match paths {
            Some(paths) => {
                let figures = offload::ask_cgroup(move || stats(&paths, events.as_deref())).await;
                figures_or_error(figures).map(|(type_url, value)| wire::stats(type_url, value))
            }
            None => Err((ttrpc::proto::Code::NOT_FOUND, format!("task {:?}: cgroup does not exist", task.0))),
        },
        // See `reopen_logs`, `measured` and `answer_metrics`.
        About::ReopenLogs(_) | About::Output(_) | About::SandboxMetrics(..) => return,
    };
    if let Some(shim) = me.upgrade() {
        shim.state.borrow_mut().answered(asker, answer);
    }
}

async fn answer_metrics(me: Weak<Shim>, asker: Asker, id: TaskId, cgroup: String, pid: Pid) {
    let figures = figures_or_error(offload::ask_cgroup(move || sandbox::metrics(&cgroup, pid)).await);
    let answer = figures.map(|(type_url, value)| wire::sandbox_metrics(&id, now_unix_ns(), type_url, value));
    if let Some(shim) = me.upgrade() {
        shim.state.borrow_mut().answered(asker, answer);
    }
}

fn figures_or_error<E: std::fmt::Display>(
    figures: Result<Result<(String, Vec<u8>), CgroupError>, E>,
) -> Result<(String, Vec<u8>), RpcError> {
    match figures {
        Ok(Ok(figures)) => Ok(figures),
        Ok(Err(e @ CgroupError::Gone(_))) => Err((ttrpc::proto::Code::NOT_FOUND, chain(&e))),
        Ok(Err(e)) => Err((ttrpc::proto::Code::UNKNOWN, chain(&e))),
        Err(e) => Err((ttrpc::proto::Code::INTERNAL, e.to_string())),
    }
}

/// The figures, or of a cgroup that is gone what was kept of them.
fn stats(paths: &Paths, memory_events: Option<&str>) -> Result<(String, Vec<u8>), CgroupError> {
    match (cgroup::stats(paths), memory_events) {
        (Err(CgroupError::Gone(_)), Some(memory_events)) => cgroup::last_stats(paths, memory_events),
        (answer, _) => answer,
    }
}

/// All pids of the control group, with the names of those that are execs. Never less than what the shim knows: an empty
/// answer is a death sentence (contract 7.4).
fn name_execs(pids: Vec<Pid>, known: Vec<(Pid, Option<String>)>) -> Vec<KnownProcess> {
    let mut all: Vec<KnownProcess> = known.into_iter().map(|(pid, exec_id)| KnownProcess { pid, exec_id }).collect();
    for pid in pids {
        if !all.iter().any(|k| k.pid == pid) {
            all.push(KnownProcess { pid, exec_id: None });
        }
    }
    all
}

async fn resave(me: Weak<Shim>) {
    loop {
        tokio::time::sleep(RESAVE).await;
        let Some(shim) = me.upgrade() else { return };
        let mut state = shim.state.borrow_mut();
        for task in state.unsaved.clone() {
            if state.save(&task).is_ok() {
                state.is_saved(&task);
            }
        }
        if state.unsaved.is_empty() {
            // This very task; it ends here.
            let this = state.resave.take();
            drop(state);
            drop(this);
            return;
        }
    }
}

/// To a process that is not reaped yet, so that its pid is its own.
fn send_signal(pid: Pid, signal: u32) -> Result<(), RpcError> {
    let signal = signal.cast_signed();
    match crate::sys::signal::send(pid, signal) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(Errno::ESRCH as libc::c_int) => {
            Err((ttrpc::proto::Code::NOT_FOUND, "process already finished".to_owned()))
        }
        Err(e) => Err((ttrpc::proto::Code::UNKNOWN, format!("cannot send signal {signal} to pid {pid}: {e}"))),
    }
}
