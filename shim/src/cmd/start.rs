//! `start`: find the shim of the container's group or launch one, and print its address (contract 2.1, `reply.rs`).
//!
//! On success nothing but the reply goes to standard output, and nothing at all to standard error: the daemon reads
//! both into one buffer and takes it for the reply.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast_proto::record::{SUPERVISOR_INSTANCE, run_dir};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;
use sha2::{Digest, Sha256};

use super::reply::Reply;
use super::socket::{self, GroupLock, Place, SocketError, hex, socket_name};
use crate::cli::{self, Bootstrap, CliError, Flags};
use crate::io::spill::policy::{OutputSettings, SettingsError};
use crate::oci::runner::MANAGERS_OWN;
use crate::oci::spec::{self, SpecError};
use crate::options::{self, OptionsError};
use crate::record;
use crate::sys::{memory, process, reaper, signal};

/// Set by holdfastd for the shims that it starts itself.
pub const MANAGER_VARIABLE: &str = "HOLDFAST_MANAGER";
/// From `start` to the server: the socket's address.
pub(super) const ADDRESS_VARIABLE: &str = "HOLDFAST_SHIM_ADDRESS";
/// From `start` to the server: the group.
pub(super) const GROUP_VARIABLE: &str = "HOLDFAST_SHIM_GROUP";
/// From `start` to the server: where events go.
pub(super) const EVENTS_VARIABLE: &str = "TTRPC_ADDRESS";

/// Not empty: the server and all that comes after it share a core-scheduling cookie of their own (contract 1.3).
const SCHED_CORE_VARIABLE: &str = "SCHED_CORE";
/// The longest path of a Unix socket, `unix(7)`.
const SOCKET_PATH_LIMIT: usize = 107;
/// How long the server may take to be ready, in milliseconds.
const READY_LIMIT: u16 = 10_000;
/// How long a server may take to die of SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(1);
/// The highest version of the task service that this build serves.
const OWN_VERSION: i32 = 3;

/// Why no shim could be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Flags or standard input.
    #[error(transparent)]
    Cli(#[from] CliError),
    /// The bundle's specification.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The runtime options.
    #[error("the runtime options")]
    Options(#[from] OptionsError),
    /// The shim's settings file.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Something with a file or directory.
    #[error("cannot {0} {1}")]
    Path(&'static str, PathBuf, #[source] io::Error),
    /// The socket's path does not fit.
    #[error("the socket path {0} is longer than {SOCKET_PATH_LIMIT} bytes")]
    TooLong(PathBuf),
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Core scheduling was asked for.
    #[error("cannot make a core-scheduling cookie, which {SCHED_CORE_VARIABLE} asks for")]
    SchedCore(#[source] io::Error),
    /// The server did not come up.
    #[error("the shim did not start: {0}")]
    Server(String),
    /// The wanted cgroup.
    #[error("cannot move the shim into the cgroup {0:?}")]
    Cgroup(String, #[source] io::Error),
}

/// Runs the command; gives the reply to be printed.
///
/// # Errors
/// See [`StartError`]; no server and no socket is left then.
pub fn run(flags: &Flags) -> Result<Vec<u8>, StartError> {
    // Whoever ends the daemon in a terminal does not mean a start that is under way.
    signal::outlast();
    let env = |name: &str| std::env::var(name).ok();
    let bootstrap = cli::bootstrap(flags, &read_stdin()?, &env)?;
    let options = match &bootstrap.options {
        Some((type_url, value)) => options::from_any(type_url, value)?.0,
        None => options::Options::default(),
    };
    let bundle = std::env::current_dir().map_err(|e| StartError::Path("use", ".".into(), e))?;
    let group = group_of(&bundle)?.unwrap_or_else(|| flags.id.clone());
    let dir = bootstrap.socket_dir.clone().unwrap_or_else(|| run_dir().join("s"));
    let name = socket_name(&flags.address, &flags.namespace, &group);
    let socket = dir.join(&name);
    if socket.as_os_str().len() > SOCKET_PATH_LIMIT {
        return Err(StartError::TooLong(socket));
    }
    socket::make_dirs(&run_dir(), &dir)?;
    let address = format!("unix://{}", socket.display());
    let _lock = GroupLock::take(&run_dir(), &name)?;
    // Of an earlier container in this bundle.
    let _ = fs::remove_file(bundle.join(record::LAST_NAME));
    let served = AddressFile::write(&bundle, &address).and_then(|file| {
        let served = match socket::take_place(&socket)? {
            Place::Served(version) => version,
            Place::Bound(listener) => {
                let launched = launch(flags, &bootstrap, &group, &address, listener, &options.shim_cgroup);
                launched.inspect_err(|_| drop(fs::remove_file(&socket)))?;
                OWN_VERSION
            }
        };
        file.keep();
        Ok(served)
    })?;
    Ok(Reply::choose(&bootstrap, &env).bytes(&address, served))
}

/// The sandboxes of CRI have no specification; for a container that has none, its Create says so.
fn group_of(bundle: &Path) -> Result<Option<String>, SpecError> {
    match spec::read(bundle) {
        Ok(facts) => Ok(facts.annotations_group),
        Err(SpecError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The file `address` of a bundle. It is written before there is a server: a daemon that restarts, and a `delete` after a
/// `start` that was killed, know from it where to look.
struct AddressFile {
    path: PathBuf,
    /// It was not there before, and goes again unless a shim comes of it.
    is_new: bool,
}

impl AddressFile {
    fn write(bundle: &Path, address: &str) -> Result<Self, StartError> {
        let path = bundle.join("address");
        let is_new = fs::symlink_metadata(&path).is_err();
        let written = record::replace(&path, address.as_bytes(), 0o644);
        written.map_err(|e| StartError::Path("write", path.clone(), e))?;
        Ok(Self { path, is_new })
    }

    fn keep(mut self) {
        self.is_new = false;
    }
}

impl Drop for AddressFile {
    fn drop(&mut self) {
        if self.is_new {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The standard input, whole; nothing of a terminal, so that somebody who tries the command by hand gets an answer.
///
/// # Errors
/// [`StartError::Path`]. More than [`cli::STDIN_LIMIT`] is cut one byte beyond it.
pub fn read_stdin() -> Result<Vec<u8>, StartError> {
    let mut stdin = io::stdin();
    let mut bytes = Vec::new();
    if !stdin.is_terminal() {
        let limit = u64::try_from(cli::STDIN_LIMIT).unwrap_or(u64::MAX) + 1;
        let read = stdin.by_ref().take(limit).read_to_end(&mut bytes);
        read.map_err(|e| StartError::Path("read", "the standard input".into(), e))?;
    }
    Ok(bytes)
}

/// The name under which records of this manager's containers are filed.
pub(super) fn instance(address: &str) -> String {
    match std::env::var(MANAGER_VARIABLE) {
        Ok(manager) if manager == SUPERVISOR_INSTANCE => manager,
        _ => hex(&Sha256::digest(address.as_bytes())[..8]),
    }
}

/// Starts the server, waits until it is ready and puts it into its place. The listening socket is its standard input and
/// the readiness pipe its standard output: that way nothing has to be done between fork and exec.
///
/// # Errors
/// See [`StartError`]; the server is gone then.
fn launch(
    flags: &Flags,
    bootstrap: &Bootstrap,
    group: &str,
    address: &str,
    listener: OwnedFd,
    cgroup: &str,
) -> Result<(), StartError> {
    // The server reads them itself; what is wrong with them is said here, where there is somebody to hear it.
    OutputSettings::load()?;
    let server = |e: io::Error| StartError::Server(e.to_string());
    if std::env::var_os(SCHED_CORE_VARIABLE).is_some_and(|value| !value.is_empty()) {
        process::make_core_cookie().map_err(StartError::SchedCore)?;
    }
    let (ready, tell) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| server(e.into()))?;
    let program = std::env::current_exe().map_err(server)?;
    let mut command = Command::new(program);
    command.args(["-namespace", &flags.namespace, "-id", &flags.id, "-address", &flags.address]);
    if bootstrap.debug {
        command.arg("-debug");
    }
    for variable in MANAGERS_OWN {
        command.env_remove(variable);
    }
    let (variable, tunables) = memory::TUNABLES;
    if std::env::var_os(variable).is_none() {
        command.env(variable, tunables);
    }
    command
        .env(ADDRESS_VARIABLE, address)
        .env(GROUP_VARIABLE, group)
        .env(EVENTS_VARIABLE, &bootstrap.ttrpc_address)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::from(tell))
        .stderr(Stdio::null());
    let pid = command.spawn().map_err(server)?.id();
    // The command holds the write end open.
    drop(command);
    let placed = match wait_ready(ready).map_err(server) {
        Ok(said) if said == super::serve::READY => place(pid, cgroup),
        Ok(said) if said.is_empty() => Err(StartError::Server("it ended without a word".to_owned())),
        Ok(said) => Err(StartError::Server(said)),
        Err(e) => Err(e),
    };
    placed.inspect_err(|_| kill(pid))
}

fn wait_ready(ready: OwnedFd) -> io::Result<String> {
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&ready), PollFlags::POLLIN)];
    let ready_fds = loop {
        match poll(&mut fds, PollTimeout::from(READY_LIMIT)) {
            // A signal that is to have no effect has this one, see `signal::outlast`.
            Err(Errno::EINTR) => {}
            result => break result?,
        }
    };
    if ready_fds == 0 {
        return Ok(format!("it was not ready after {READY_LIMIT} ms"));
    }
    let mut text = String::new();
    File::from(ready).read_to_string(&mut text)?;
    Ok(text)
}

/// Moves the server into the cgroup that the options name, and makes it likelier to be ended by the kernel than the
/// daemon, and less likely than the containers (contract 2.1, steps 5 and 6).
fn place(pid: u32, cgroup: &str) -> Result<(), StartError> {
    if !cgroup.is_empty() {
        crate::cgroup::join(cgroup, pid).map_err(|e| StartError::Cgroup(cgroup.to_owned(), e))?;
    }
    let parent = nix::unistd::getppid().as_raw().cast_unsigned();
    // Not allowed everywhere, and not worth a container.
    let _ = process::oom_score_adj(parent).and_then(|score| process::set_oom_score_adj(pid, score + 1));
    Ok(())
}

fn kill(pid: u32) {
    let _ = signal::send(pid, nix::libc::SIGKILL);
    reaper::wait_for(pid, KILL_LIMIT);
}
