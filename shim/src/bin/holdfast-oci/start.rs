//! `start`: lets the process of a created container execute its payload.

use std::fs;

use crate::cli::Global;
use crate::error::Failure;
use crate::hooks;
use crate::launch;
use crate::record::{Container, RunRoot, Status};

/// Starts the container.
///
/// # Errors
/// When it is not in the state `created`, or a poststart hook fails.
pub(crate) fn run(global: &Global, id: &str) -> Result<u8, Failure> {
    start(&RunRoot::new(&global.root).load(id)?)?;
    Ok(0)
}

/// Starts a container that is loaded already.
///
/// # Errors
/// As [`run`].
pub(crate) fn start(container: &Container) -> Result<(), Failure> {
    let id = &container.record.id;
    match container.status() {
        Status::Created => {}
        Status::Running => return Err(Failure::AlreadyRunning { id: id.clone() }),
        Status::Stopped => {
            return Err(Failure::WrongState { verb: "start", status: Status::Stopped, id: id.clone(), hint: "" });
        }
        status => return Err(Failure::WrongState { verb: "start", status, id: id.clone(), hint: "" }),
    }
    let socket = container.dir.notify_socket();
    launch::release(&socket)?;
    // From here on the container is `running`.
    fs::remove_file(&socket).map_err(Failure::file("remove", &socket))?;
    hooks::poststart(container)
}
