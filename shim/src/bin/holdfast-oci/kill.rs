//! `kill`: signals a container's first process, or all of its processes. It changes no state: what a signal does is
//! seen from the process afterwards.

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::cli::{Global, KillArgs};
use crate::error::Failure;
use crate::record::{Container, RunRoot, Status};
use crate::signals;

/// Sends the signal.
///
/// # Errors
/// [`Failure::NotRunning`] when there is nobody to signal; with `--all` an empty cgroup is no error.
pub(crate) fn run(global: &Global, args: &KillArgs) -> Result<u8, Failure> {
    let signal = signals::parse(&args.signal)?;
    let container = RunRoot::new(&global.root).load(&args.id)?;
    if args.all {
        // The first process may be gone and others left, when they share a pid namespace.
        container.record.cgroup.signal_all(signal)?;
    } else {
        signal_init(&container, signal)?;
    }
    Ok(0)
}

/// Signals the first process.
///
/// # Errors
/// As [`run`].
pub(crate) fn signal_init(container: &Container, signal: i32) -> Result<(), Failure> {
    let gone = || Failure::NotRunning { id: container.record.id.clone() };
    let init = container.live_init()?;
    match init.signal(signal) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Err(gone()),
        Err(source) => return Err(Failure::Sys { what: "signal the container's process", source }),
    }
    let cgroup = &container.record.cgroup;
    // A frozen v1 cgroup keeps even SIGKILL waiting; v2 lets it through.
    if signal == Signal::SIGKILL as i32 && !cgroup.unified && container.status() == Status::Paused {
        cgroup.thaw()?;
    }
    Ok(())
}
