//! `pause` and `resume`: the freezer of the container's cgroup.

use crate::cli::Global;
use crate::error::Failure;
use crate::record::{RunRoot, Status};

/// Freezes all processes.
///
/// # Errors
/// [`Failure::NotRunning`] when it does not run.
pub(crate) fn pause(global: &Global, id: &str) -> Result<u8, Failure> {
    let container = RunRoot::new(&global.root).load(id)?;
    match container.status() {
        Status::Running | Status::Created => container.record.cgroup.freeze()?,
        Status::Paused => {
            return Err(Failure::WrongState { verb: "pause", status: Status::Paused, id: id.to_owned(), hint: "" });
        }
        Status::Stopped | Status::Creating => return Err(Failure::NotRunning { id: id.to_owned() }),
    }
    Ok(0)
}

/// Lets them go on.
///
/// # Errors
/// [`Failure::NotPaused`] when they are not frozen.
pub(crate) fn resume(global: &Global, id: &str) -> Result<u8, Failure> {
    let container = RunRoot::new(&global.root).load(id)?;
    match container.status() {
        Status::Paused => container.record.cgroup.thaw()?,
        _ => return Err(Failure::NotPaused { id: id.to_owned() }),
    }
    Ok(0)
}
