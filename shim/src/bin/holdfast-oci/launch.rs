//! Drives libcontainer: starts a container's first process, or one more in it.
//!
//! This calls the crate's process machinery and not its builders. The builders read the bundle again (so that nothing
//! could be rewritten), leave the user namespace and the seccomp filter out of an exec, and keep a state of their own.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcgroups::common::CgroupConfig;
use libcontainer::container::{Container as Crate, ContainerStatus, State as CrateState};
use libcontainer::notify_socket::{NotifyListener, NotifySocket};
use libcontainer::process::args::{ContainerArgs, ContainerType};
use libcontainer::process::channel::ChannelError;
use libcontainer::process::container_main_process::{ProcessError, container_main_process};
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::user_ns::UserNamespaceConfig;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};
use oci_spec::runtime::Spec;

use crate::error::{Failure, chain};
use crate::log::{Collected, Log};
use crate::payload::Payload;
use crate::record::Record;

/// What to start.
pub(crate) struct Launch<'a> {
    /// The specification, checked and normalised.
    pub(crate) spec: Spec,
    /// The container.
    pub(crate) record: &'a Record,
    /// Where the new process waits until it may execute the payload; made here.
    pub(crate) notify_socket: PathBuf,
    /// The cgroup it joins.
    pub(crate) cgroup: CgroupConfig,
    /// Receives the master of the terminal.
    pub(crate) console: Option<OwnedFd>,
    /// How many descriptors from 3 on the payload gets.
    pub(crate) preserve_fds: u32,
    /// No pivot_root.
    pub(crate) no_pivot: bool,
    /// What runs last.
    pub(crate) payload: Payload,
}

impl Launch<'_> {
    /// Starts the first process of a container; it then waits on the notify socket. Returns its pid.
    ///
    /// # Errors
    /// With the reason from the innermost process; none of the processes is left then.
    pub(crate) fn init(self, log: &Log) -> Result<i32, Failure> {
        let collected = log.collect()?;
        self.start(ContainerType::InitContainer).map_err(|error| failed(&error, collected, log))
    }

    /// Starts one more process, and returns its pid once it has executed the payload.
    ///
    /// # Errors
    /// With the reason from the innermost process; none of the processes is left then.
    pub(crate) fn tenant(self, owner: Option<u32>, log: &Log) -> Result<i32, Failure> {
        let collected = log.collect()?;
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(Failure::sys("make a pipe"))?;
        let socket = self.notify_socket.clone();
        let kind = ContainerType::TenantContainer { exec_notify_fd: writer.as_raw_fd() };
        let result = self.start(kind);
        let pid = match result {
            Ok(pid) => pid,
            Err(error) => {
                let _ = fs::remove_file(&socket);
                return Err(failed(&error, collected, log));
            }
        };
        crate::console::give_stdio(pid, owner);
        let released = release(&socket);
        let _ = fs::remove_file(&socket);
        drop(writer);
        // The other end closes when the payload is executed; what comes before is the reason why it is not.
        let mut reason = String::new();
        let read = File::from(reader).read_to_string(&mut reason);
        if reason.is_empty() && read.is_ok() && released.is_ok() {
            return Ok(pid);
        }
        kill_children();
        match released {
            Err(failure) => Err(failure),
            Ok(()) => Err(Failure::Start { reason: with_cause(reason, collected.innermost(log)) }),
        }
    }

    fn start(self, container_type: ContainerType) -> Result<i32, StartError> {
        let notify_listener = NotifyListener::new(&self.notify_socket)?;
        let user_ns_config = UserNamespaceConfig::new(&self.spec)?;
        let args = ContainerArgs {
            container_type,
            syscall: SyscallType::default(),
            rootfs: self.record.rootfs.clone(),
            console_socket: self.console.as_ref().map(AsRawFd::as_raw_fd),
            notify_listener,
            preserve_fds: i32::try_from(self.preserve_fds).unwrap_or(i32::MAX),
            container: Some(crate_container(self.record, container_type)),
            user_ns_config,
            cgroup_config: self.cgroup,
            detached: true,
            executor: Box::new(self.payload),
            no_pivot: self.no_pivot,
            stdin: None,
            stdout: None,
            stderr: None,
            as_sibling: false,
            pid_file: None,
            spec: Rc::new(self.spec),
        };
        let result = container_main_process(&args).map(|pid| pid.as_raw());
        if result.is_err() {
            kill_children();
        }
        Ok(result?)
    }
}

/// Lets the process that waits on the socket go on.
///
/// # Errors
/// When nobody listens any more.
pub(crate) fn release(socket: &Path) -> Result<(), Failure> {
    NotifySocket::new(socket)
        .notify_container_start()
        .map_err(|error| Failure::Start { reason: format!("its process is gone: {}", chain(&error)) })
}

/// What can fail before and in libcontainer.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Notify(#[from] libcontainer::notify_socket::NotifyListenerError),
    #[error(transparent)]
    UserNamespace(#[from] libcontainer::user_ns::UserNamespaceError),
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Turns libcontainer's error and what its processes have logged into one reason.
fn failed(error: &StartError, collected: Collected, log: &Log) -> Failure {
    let reason = match error {
        StartError::Process(ProcessError::Channel(ChannelError::ExecError(text))) => {
            text.trim_start_matches("error in executing process : ").to_owned()
        }
        StartError::Process(ProcessError::Channel(ChannelError::OtherError(text))) => text.clone(),
        other => chain(other),
    };
    Failure::Start { reason: with_cause(reason, collected.innermost(log)) }
}

/// Appends the cause unless one of the two says all already.
fn with_cause(reason: String, cause: Option<String>) -> String {
    match cause {
        Some(cause) if reason.is_empty() => cause,
        Some(cause) if !cause.contains(&reason) && !reason.contains(&cause) => {
            format!("error during container init: {reason}: {cause}")
        }
        _ => reason,
    }
}

/// The crate's own idea of the container, which its hooks and its seccomp listener report.
fn crate_container(record: &Record, kind: ContainerType) -> Crate {
    let status = match kind {
        ContainerType::InitContainer => ContainerStatus::Creating,
        ContainerType::TenantContainer { .. } => ContainerStatus::Running,
    };
    let pid = record.init.map(|init| init.pid);
    let mut state = CrateState::new(&record.id, status, pid, record.bundle.clone());
    state.annotations = Some(record.annotations.clone());
    Crate { state, root: PathBuf::new() }
}

/// Kills and reaps whatever libcontainer has forked: all of it stays our child.
pub(crate) fn kill_children() {
    let file = format!("/proc/self/task/{}/children", std::process::id());
    for pid in fs::read_to_string(file).unwrap_or_default().split_ascii_whitespace() {
        if let Ok(pid) = pid.parse() {
            // Ours and not reaped yet, so the pid is still theirs.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    while !matches!(waitpid(None, None), Err(Errno::ECHILD)) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_appended_once() {
        let text = |reason: &str, cause: &str| with_cause(reason.to_owned(), Some(cause.to_owned()));
        assert_eq!(
            text("failed to prepare rootfs", "no such file"),
            "error during container init: failed to prepare rootfs: no such file"
        );
        assert_eq!(text("exec: x", "failed to initialize container process: exec: x"), "exec: x");
        assert_eq!(text("", "why"), "why");
        assert_eq!(with_cause("alone".to_owned(), None), "alone");
    }
}
