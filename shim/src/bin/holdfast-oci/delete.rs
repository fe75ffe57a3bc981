//! `delete`: removes what `create` made. Safe to run twice, and on what a killed `create` left behind.

use std::io;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::cli::{DeleteArgs, Global};
use crate::error::Failure;
use crate::hooks;
use crate::log::Log;
use crate::record::{Container, RunRoot, Status};
use crate::sys;

/// Deletes the container.
///
/// # Errors
/// When it is not stopped (without force), does not exist (without force), or something of it cannot be removed.
pub(crate) fn run(global: &Global, args: &DeleteArgs) -> Result<u8, Failure> {
    let root = RunRoot::new(&global.root);
    let dir = match root.find(&args.id) {
        Err(Failure::NoContainer { .. }) if args.force => return Ok(0),
        found => found?,
    };
    let Some(record) = dir.record()? else {
        // `create` died before it had made anything but the directory.
        if !args.force {
            return Err(Failure::NoContainer { id: args.id.clone() });
        }
        dir.remove()?;
        return Ok(0);
    };
    let container = Container { dir, record };
    let log = Log::new(global);
    match container.status() {
        Status::Stopped => {}
        // Nobody's program has run yet: runc deletes such a container without force as well.
        Status::Created => stop(&container)?,
        _ if args.force => stop(&container)?,
        status => return Err(Failure::NotStopped { id: args.id.clone(), status }),
    }
    destroy(&container, &log)?;
    Ok(0)
}

/// Kills the first process and waits until it is gone. A `create` that is still at work is killed too.
fn stop(container: &Container) -> Result<(), Failure> {
    let record = &container.record;
    if record.init.is_none() {
        end(record.creator)?;
    }
    if record.cgroup.is_frozen() {
        record.cgroup.thaw()?;
    }
    match record.init {
        Some(init) => end(init),
        None => Ok(()),
    }
}

/// Kills one process and waits until it is a zombie or gone.
fn end(process: crate::process::ProcessName) -> Result<(), Failure> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let pidfd = match sys::pidfd_open(process.pid) {
        Ok(pidfd) => pidfd,
        Err(Errno::ESRCH) => return Ok(()),
        Err(source) => return Err(Failure::Sys { what: "open the process", source }),
    };
    match process.signal(Signal::SIGKILL as i32) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Ok(()),
        Err(source) => return Err(Failure::Sys { what: "kill the process", source }),
    }
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(10_000u16)) {
        Ok(1..) => Ok(()),
        Ok(_) => Err(Failure::Sys { what: "see the killed process exit", source: Errno::ETIMEDOUT }),
        Err(source) => Err(Failure::Sys { what: "wait for the killed process", source }),
    }
}

/// Removes the cgroup and the state directory of a container whose first process is gone, then runs the poststop hooks.
///
/// # Errors
/// Names what stays; nothing is forgotten then, so that a second attempt is possible.
pub(crate) fn destroy(container: &Container, log: &Log) -> Result<(), Failure> {
    let spec = match container.dir.spec() {
        Ok(spec) => Some(spec),
        // A half-made container may have none.
        Err(Failure::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        Err(failure) => {
            log.warning(&crate::error::chain(&failure));
            None
        }
    };
    container.record.cgroup.remove()?;
    container.dir.remove()?;
    if let Some(spec) = &spec {
        hooks::poststop(container, spec, log);
    }
    Ok(())
}
