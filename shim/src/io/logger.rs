//! The program that takes a process's output (contract 6.5): how it is started and what it gets.
//!
//! ```text
//!   process ──> pipe ──> relay ──> pipe ──> logger, fd 3 (stdout) and 4 (stderr)
//!                                           fd 5: it writes a byte or closes it when it is ready
//! ```
//!
//! Go's shim gives the logger's pipes to the process itself. Ours relays, as towards any other reader: a logger that dies
//! then neither ends the process by SIGPIPE nor takes what was printed with it, and another one goes on from the same
//! pipes. It sees the end as soon as the process's output has ended, not at Delete.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::process::LoggerPipes;
use super::stdio::LoggerSettings;
use crate::lifecycle::Pid;
use crate::sys::{child, pipe};

/// Whose output it is; its whole environment.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The container's id; of an exec process the exec's.
    pub id: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
}

/// A logger that was started and has not said yet that it is ready.
#[derive(Debug)]
pub struct Started {
    /// Ours to reap.
    pub pid: Pid,
    /// What it reads.
    pub pipes: LoggerPipes,
    /// Where it says that it is ready, non-blocking.
    pub ready: OwnedFd,
}

/// Starts a logger.
///
/// # Errors
/// As `pipe2(2)` and `execve(2)`; nothing stays open.
pub fn start(settings: &LoggerSettings, identity: Identity<'_>) -> io::Result<Started> {
    // Not larger than usual: what is in here is what a logger has to read between the end of its input and its own.
    let (out_read, out_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (err_read, err_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (ready, say) = pipe2(OFlag::O_CLOEXEC)?;
    pipe::set_nonblocking(&ready)?;
    let pid = child::spawn_with(command(settings, identity), [out_read, err_read, say])?;
    Ok(Started { pid, pipes: [out_write, err_write], ready })
}

/// Starts one in the place of one that has ended; `pipes` are read ends. Nobody waits for it to be ready.
///
/// # Errors
/// As `execve(2)`.
pub fn replace(settings: &LoggerSettings, identity: Identity<'_>, pipes: [OwnedFd; 2]) -> io::Result<Pid> {
    let nowhere = File::options().write(true).open("/dev/null")?;
    let [out, err] = pipes;
    child::spawn_with(command(settings, identity), [out, err, nowhere.into()])
}

/// In a process group of its own, so that all of it can be ended.
fn command(settings: &LoggerSettings, identity: Identity<'_>) -> Command {
    let mut command = Command::new(&settings.program);
    command.args(&settings.arguments).env_clear().process_group(0);
    let variables = [("CONTAINER_ID", identity.id), ("CONTAINER_NAMESPACE", identity.namespace)];
    command.envs(variables.map(|(name, value)| (name, OsStr::new(value))));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
