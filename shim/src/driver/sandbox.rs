//! What belongs to the sandbox besides its state, and the work that it takes.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_proto::record::{ExitRecord, ProcessRecord, ProcessState, Record, RuntimeRef};
use serde::{Deserialize, Serialize};

use super::calls::{failure, gone};
use super::{Shim, State, chain, unavailable};
use crate::cgroup::{self, CgroupError, Paths};
use crate::cmd::hold;
use crate::lifecycle::{Asker, Failure, Input, Outcome, Pid, SandboxRequest, SandboxVerb, SandboxView, TaskId};
use crate::pod::{self, Plan, PodError};
use crate::record;
use crate::sys::mount::MountEntry;
use crate::sys::process as process_facts;
use crate::sys::reaper::now_unix_ns;
use crate::sys::signal;
use crate::wire::{Body, RpcError, SandboxBody};

/// A sandbox's belongings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Sandbox {
    pub(super) id: TaskId,
    pub(super) bundle: PathBuf,
    pub(super) mounts: Vec<MountEntry>,
    /// What its holder holds.
    hold: hold::HoldRequest,
    /// See [`Plan`].
    cgroup: String,
    /// Of the holder.
    start_time: u64,
    /// Its directory below the run root.
    dir: PathBuf,
}

impl Shim {
    /// As [`Shim::request`].
    pub(super) fn sandbox_request(
        &self,
        asker: Asker,
        id: TaskId,
        verb: SandboxVerb,
        body: Option<Box<SandboxBody>>,
        timeout: Option<Duration>,
    ) {
        let mut body = body;
        if let Some(body) = &mut body
            && let Err(error) = self.admit_sandbox(&id, body)
        {
            return self.respond(asker, Err(error));
        }
        let mut state = self.state.borrow_mut();
        if let Some(body) = body {
            state.bodies.insert(asker, Body::Sandbox(body));
        }
        if let (SandboxVerb::Wait, Some(timeout)) = (verb, timeout) {
            let timer = state.give_up_after(timeout, asker, &self.me);
            state.timers.insert(asker, timer);
        }
        drop(state);
        self.input(Input::Sandbox(SandboxRequest { asker, id, verb, at_unix_ns: now_unix_ns() }));
    }

    /// Looks at what is to be held before anything is begun; an id that is taken is the lifecycle's to refuse.
    fn admit_sandbox(&self, id: &TaskId, body: &mut SandboxBody) -> Result<(), RpcError> {
        if self.stopping.get() {
            return Err(unavailable());
        }
        if self.state.borrow().sandbox.is_some() || self.state.borrow().lifecycle.contains(id) {
            return Ok(());
        }
        let options = body.options.as_ref().map(|(type_url, value)| (type_url.as_str(), value.as_slice()));
        let plan = pod::plan(&body.bundle, options, &body.netns).map_err(|e| {
            let code = match e {
                PodError::Unsupported(_) => ttrpc::proto::Code::UNIMPLEMENTED,
                _ => ttrpc::proto::Code::INVALID_ARGUMENT,
            };
            (code, format!("sandbox {:?}: {}", id.0, chain(&e)))
        })?;
        body.plan = Some(plan);
        Ok(())
    }
}

impl State {
    pub(super) fn adopt_sandbox(&mut self, id: &TaskId, body: SandboxBody) {
        let Plan { hold, cgroup } = body.plan.unwrap_or_default();
        let (bundle, mounts, dir) = (body.bundle, body.mounts, self.container_dir(id));
        self.sandbox = Some(Sandbox { id: id.clone(), bundle, mounts, hold, cgroup, start_time: 0, dir });
    }

    /// The sandbox's belongings, if the id is its own.
    pub(super) fn sandbox_of(&self, id: &TaskId) -> Option<&Sandbox> {
        self.sandbox.as_ref().filter(|sandbox| sandbox.id == *id)
    }

    /// The request of the call that makes the holder, and where that says who it is.
    pub(super) fn prepare_hold(&self, id: &TaskId) -> Result<(Vec<u8>, PathBuf), Failure> {
        let sandbox = self.sandbox_of(id).ok_or_else(|| gone(id))?;
        hold::clear(&sandbox.bundle);
        let json = serde_json::to_vec(&hold::HoldRequest { shim: std::process::id(), ..sandbox.hold.clone() })
            .map_err(|e| failure(e.to_string()))?;
        Ok((json, sandbox.bundle.clone()))
    }

    /// The call has ended well.
    pub(super) fn holder_made(&mut self, id: &TaskId) -> Outcome {
        let sandbox = self.sandbox.as_mut().filter(|sandbox| sandbox.id == *id).ok_or_else(|| gone(id))?;
        let bundle = sandbox.bundle.display();
        let text = format!("the process that holds the namespaces has left no pid in {bundle}");
        let (pid, start_time) = hold::read(&sandbox.bundle).ok_or_else(|| failure(text))?;
        sandbox.start_time = start_time;
        Ok(Some(pid))
    }

    /// The call has failed, or was killed, and may have made the holder all the same. Only while that is our own child is its
    /// pid surely its own.
    pub(super) fn end_holder(&self, id: &TaskId) {
        if let Some((pid, _)) = self.sandbox_of(id).and_then(|sandbox| hold::read(&sandbox.bundle))
            && process_facts::parent(pid) == Some(std::process::id())
        {
            let _ = signal::send(pid, libc::SIGKILL);
        }
    }

    /// Writes the record of the sandbox, as that of a container without an OCI runtime whose init is the holder.
    pub(super) fn save_sandbox(&self, id: &TaskId) -> io::Result<()> {
        let (Some(sandbox), Some(view)) = (self.sandbox_of(id), self.lifecycle.sandbox(id)) else { return Ok(()) };
        let record = Record {
            sandbox: true,
            processes: vec![sandbox.process_record(&view)],
            ..self.blank_record(id, &sandbox.bundle, RuntimeRef::default())
        };
        match record::write(&sandbox.dir, &record) {
            // As for containers.
            Err(e) if e.kind() == io::ErrorKind::NotFound && sandbox.bundle.exists() => {
                record::make_dir(&sandbox.dir)?;
                record::write(&sandbox.dir, &record)
            }
            written => written,
        }
    }

    /// Whether the id was the sandbox's.
    pub(super) fn forget_sandbox(&mut self, id: &TaskId) -> bool {
        let Some(sandbox) = self.sandbox.take_if(|sandbox| sandbox.id == *id) else { return false };
        record::put_away(&sandbox.dir, &sandbox.bundle);
        true
    }

    /// What is told of it besides its state.
    pub(super) fn sandbox_info(&self, id: &TaskId) -> Vec<(&'static str, String)> {
        let Some(sandbox) = self.sandbox_of(id) else { return Vec::new() };
        let namespaces = sandbox.hold.namespaces.iter().map(|(kind, path)| {
            let path = path.as_ref().map_or("its own".into(), |path| path.to_string_lossy());
            format!("{kind:?}: {path}").to_lowercase()
        });
        vec![
            ("bundle", sandbox.bundle.to_string_lossy().into_owned()),
            ("cgroup", sandbox.cgroup.clone()),
            ("namespaces", namespaces.collect::<Vec<_>>().join(", ")),
            ("shim_pid", std::process::id().to_string()),
            ("shim_version", env!("CARGO_PKG_VERSION").to_owned()),
        ]
    }

    /// The control group whose figures are the sandbox's.
    pub(super) fn sandbox_cgroup(&self, id: &TaskId) -> String {
        self.sandbox_of(id).map(|sandbox| sandbox.cgroup.clone()).unwrap_or_default()
    }
}

impl Sandbox {
    pub(super) fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// Makes what the record will be in.
    pub(super) fn make_dir(&self) -> Result<(), Failure> {
        record::make_dir(&self.dir).map_err(|e| failure(format!("cannot make {}: {e}", self.dir.display())))
    }

    fn process_record(&self, view: &SandboxView) -> ProcessRecord {
        ProcessRecord {
            exec_id: String::new(),
            pid: view.pid,
            start_time: if view.pid == 0 { 0 } else { self.start_time },
            state: match (view.exit, view.pid) {
                (Some(_), _) => ProcessState::Stopped,
                (None, 0) => ProcessState::Created,
                (None, _) => ProcessState::Running,
            },
            exit: view.exit.map(|exit| ExitRecord { status: exit.status.code(), at_unix_ns: exit.at_unix_ns }),
            exit_told: false,
            oom_killed: false,
            terminal: false,
            stdin: String::new(),
            stdout: String::new(),
            stderr: String::new(),
            logger: None,
        }
    }
}

/// The figures of the pod's control group, if that was named and is there; else of the one that the holder is in, which is
/// the shim's.
pub(super) fn metrics(cgroup: &str, pid: Pid) -> Result<(String, Vec<u8>), CgroupError> {
    match Paths::at(cgroup).map(|paths| cgroup::stats(&paths)) {
        Some(Ok(figures)) => Ok(figures),
        Some(Err(_)) | None => cgroup::stats(&Paths::of_process(pid)?),
    }
}
