//! Handing the notification descriptor of a seccomp filter to whoever listens for it.

use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};
use serde_json::json;

use crate::console;
use crate::error::Failure;
use crate::record::{Record, Status};
use crate::spec_check::Refusal;
use crate::state::{OCI_VERSION, document};

/// Whether the filter has rules that ask a listener.
pub(crate) fn notifies(filter: &LinuxSeccomp) -> bool {
    filter.syscalls().iter().flatten().any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify)
}

/// Sends the descriptor with the state of the container, as the runtime specification has it.
///
/// # Errors
/// When nobody listens.
pub(crate) fn hand_over(filter: &LinuxSeccomp, record: &Record, pid: i32, fd: OwnedFd) -> Result<(), Failure> {
    let path = filter.listener_path().as_ref().ok_or_else(|| Refusal::missing("linux.seccomp.listenerPath"))?;
    let status = if record.init.is_some() { Status::Running } else { Status::Creating };
    let state = json!({
        "ociVersion": OCI_VERSION,
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": filter.listener_metadata().clone().unwrap_or_default(),
        "state": document(record, status, pid),
    });
    let socket = console::dial("connect to the seccomp listener", path)?;
    console::send(&socket, state.to_string().as_bytes(), &fd).map_err(Failure::sys("send the seccomp descriptor"))
}
