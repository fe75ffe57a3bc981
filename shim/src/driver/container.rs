//! What belongs to one container besides the state of its processes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use holdfast_proto::record::{
    ExitRecord, LoggerRecord, ProcessRecord, ProcessState, Record, RuntimeRef, SCHEMA, ShimIdentity,
};

use super::State;
use super::loggers::Revival;
use super::oom::Memory;
use crate::cgroup;
use crate::io::process::{OpenedLog, ProcessIo};
use crate::io::spill::policy::OutputSettings;
use crate::io::stdio::Addresses;
use crate::lifecycle::{ProcessId, ProcessView, Status, TaskId};
use crate::oci::command::Runtime;
use crate::options::Options;
use crate::record;
use crate::sys::mount::MountEntry;
use crate::sys::process::start_time;
use crate::wire::{Chosen, CreateBody};

/// A container's belongings.
pub(super) struct Container {
    pub(super) bundle: PathBuf,
    pub(super) mounts: Vec<MountEntry>,
    pub(super) options: Options,
    pub(super) output: OutputSettings,
    pub(super) runtime: Runtime,
    /// Where its specification says that it is to be made, if nothing is there yet; as found, once init has a pid.
    pub(super) cgroup: Option<cgroup::Paths>,
    pub(super) memory: Option<Memory>,
    /// The directory of the checkpoint that it is restored from; empty: none.
    pub(super) checkpoint: String,
    pub(super) processes: BTreeMap<ProcessId, Process>,
    /// Its directory below the run root.
    pub(super) dir: PathBuf,
}

/// A process's belongings.
#[derive(Default)]
pub(super) struct Process {
    pub(super) addresses: Addresses,
    /// None before the start of an exec, and once released.
    pub(super) io: Option<ProcessIo>,
    /// Its logs, from when they are open until it has its streams.
    pub(super) opened: Vec<OpenedLog>,
    /// An exec's settings, until it is started.
    pub(super) spec: Vec<u8>,
    /// Asked for before there was a terminal.
    pub(super) size: Option<(u16, u16)>,
    /// Asked for before there was an input.
    pub(super) stdin_closed: bool,
    /// See [`start_time`].
    pub(super) start_time: u64,
    /// Its exit was announced.
    pub(super) exit_told: bool,
    pub(super) revival: Revival,
}

impl Container {
    pub(super) fn new(create: CreateBody, chosen: Chosen, runtime: Runtime, dir: PathBuf) -> Self {
        let init = Process { addresses: create.addresses, ..Process::default() };
        Self {
            bundle: create.bundle,
            mounts: create.mounts,
            options: chosen.options,
            output: chosen.output,
            runtime,
            cgroup: None,
            memory: None,
            checkpoint: create.checkpoint,
            processes: BTreeMap::from([(ProcessId::Init, init)]),
            dir,
        }
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// Where the runtime writes the pid of a process. Execs have a directory of their own: one may be called `init`.
    pub(super) fn pid_file(&self, process: &ProcessId) -> PathBuf {
        match process {
            ProcessId::Init => self.bundle.join("init.pid"),
            ProcessId::Exec(id) => self.dir.join("exec").join(format!("{}.pid", id.0)),
        }
    }

    /// Writes something into the directory, which is made anew if somebody tidied up in `/run`. Not without a bundle: then it
    /// was `delete`, and nobody will read there again.
    pub(super) fn in_dir<T>(&self, write: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match write() {
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.bundle.exists() => {
                record::make_dir(&self.dir)?;
                write()
            }
            written => written,
        }
    }

    /// Writes what `delete` needs if this process is gone by then (contract 1.7).
    ///
    /// # Errors
    /// The path that could not be made, and why.
    pub(super) fn write_options(&self) -> Result<(), (PathBuf, io::Error)> {
        record::make_dir(&self.dir).map_err(|e| (self.dir.clone(), e))?;
        let write = |name: &str, bytes: &[u8]| {
            let path = self.bundle.join(name);
            record::replace(&path, bytes, 0o600).map_err(|e| (path, e))
        };
        write("options.json", self.options.to_json().as_bytes())?;
        write("runtime", self.runtime.binary.to_string_lossy().as_bytes())
    }
}

impl State {
    /// Writes the record of a task, or remembers that it could not.
    pub(super) fn save(&mut self, task: &TaskId) -> io::Result<()> {
        if self.sandbox_of(task).is_some() {
            return self.save_sandbox(task);
        }
        let views = self.lifecycle.processes(task);
        let loggers: Vec<_> = views.iter().map(|view| self.logger_record(task, &view.process)).collect();
        let Some(container) = self.containers.get_mut(task) else { return Ok(()) };
        for view in &views {
            if let Some(process) = container.processes.get_mut(&view.process)
                && process.start_time == 0
                && view.pid != 0
                && view.exit.is_none()
            {
                process.start_time = start_time(view.pid).unwrap_or(0);
            }
        }
        let Some(container) = self.containers.get(task) else { return Ok(()) };
        let runtime = RuntimeRef {
            binary: container.runtime.binary.to_string_lossy().into_owned(),
            root: container.runtime.root.clone(),
            systemd_cgroup: container.runtime.systemd_cgroup,
        };
        let record = Record {
            times_out_of_memory: self.lifecycle.times_out_of_memory(task),
            processes: views.iter().zip(loggers).map(|(view, l)| process_record(view, container, l)).collect(),
            ..self.blank_record(task, &container.bundle, runtime)
        };
        container.in_dir(|| record::write(&container.dir, &record))
    }

    /// With all but what is in it.
    pub(super) fn blank_record(&self, id: &TaskId, bundle: &Path, runtime: RuntimeRef) -> Record {
        Record {
            schema: SCHEMA,
            boot_id: self.boot_id.clone(),
            shim: ShimIdentity {
                pid: std::process::id(),
                start_time: self.start_time,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                address: self.config.address.clone(),
            },
            manager: self.config.manager.clone(),
            namespace: self.config.namespace.clone(),
            id: id.0.clone(),
            group: self.config.group.clone(),
            bundle: bundle.to_owned(),
            runtime,
            sandbox: false,
            times_out_of_memory: 0,
            processes: Vec::new(),
        }
    }

    /// Its pid is its own: it is not reaped yet.
    fn logger_record(&self, task: &TaskId, process: &ProcessId) -> Option<LoggerRecord> {
        let pid = self.loggers_of(task, process).last()?;
        Some(LoggerRecord { pid, start_time: start_time(pid)? })
    }
}

fn process_record(view: &ProcessView, container: &Container, logger: Option<LoggerRecord>) -> ProcessRecord {
    let process = container.processes.get(&view.process);
    let addresses = process.map(|p| p.addresses.clone()).unwrap_or_default();
    ProcessRecord {
        exec_id: view.process.exec_id().to_owned(),
        pid: view.pid,
        start_time: process.map_or(0, |p| p.start_time),
        state: match view.status {
            Status::Created => ProcessState::Created,
            Status::Running | Status::Pausing => ProcessState::Running,
            Status::Paused => ProcessState::Paused,
            Status::Stopped => ProcessState::Stopped,
        },
        exit_told: process.is_some_and(|p| p.exit_told),
        oom_killed: view.oom_killed,
        exit: view.exit.map(|exit| ExitRecord { status: exit.status.code(), at_unix_ns: exit.at_unix_ns }),
        terminal: addresses.terminal,
        stdin: addresses.stdin,
        stdout: addresses.stdout,
        stderr: addresses.stderr,
        logger,
    }
}

/// Reads a pid file.
pub(super) fn read_pid(path: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(path)?;
    let pid = text.trim().parse().ok().filter(|&pid| pid > 0);
    pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is no pid")))
}
