//! `run`: create, start, and unless detached wait and delete.

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cli::{Global, RunArgs};
use crate::console;
use crate::create;
use crate::delete::destroy;
use crate::error::Failure;
use crate::log::Log;
use crate::start;

/// Runs the container; returns its exit code, or 0 when detached.
///
/// # Errors
/// As `create` and `start`.
pub(crate) fn run(global: &Global, args: &RunArgs, log: &Log) -> Result<u8, Failure> {
    let (container, master) = create::create(global, &args.create, log, args.detach)?;
    if let Err(failure) = start::start(&container) {
        crate::launch::kill_children();
        let _ = destroy(&container, log);
        return Err(failure);
    }
    if args.detach {
        return Ok(0);
    }
    if let Some(master) = master {
        console::relay(master)?;
    }
    let pid = container.record.init.map_or(0, |init| init.pid);
    let code = exit_code(pid)?;
    if !args.keep {
        destroy(&container, log)?;
    }
    Ok(code)
}

/// Waits for a child; its exit code, or 128 and the signal.
///
/// # Errors
/// When it is no child of ours.
pub(crate) fn exit_code(pid: i32) -> Result<u8, Failure> {
    loop {
        let code = match waitpid(Pid::from_raw(pid), None) {
            Ok(WaitStatus::Exited(_, code)) => code,
            Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(source) => return Err(Failure::Sys { what: "wait for the process", source }),
        };
        return Ok(u8::try_from(code).unwrap_or(255));
    }
}
