//! `start`: find the shim of the container's group or launch one, and print its address (contract 2.1).
//!
//! On success nothing but the address goes to standard output, and nothing at all to standard error: the daemon reads
//! both into one buffer and takes it for the reply.

use std::fs::{self, File};
use std::io::{self, ErrorKind, IsTerminal, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use holdfast_proto::record::{SUPERVISOR_INSTANCE, run_dir};
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;
use sha2::{Digest, Sha256};

use crate::cli::{self, Bootstrap, CliError, Flags};
use crate::oci::spec::{self, SpecError};
use crate::options::{self, OptionsError};
use crate::record;
use crate::sys::process;

/// Set by holdfastd for the shims that it starts itself.
pub const MANAGER_VARIABLE: &str = "HOLDFAST_MANAGER";
/// From `start` to the server: the socket's address.
pub(super) const ADDRESS_VARIABLE: &str = "HOLDFAST_SHIM_ADDRESS";
/// From `start` to the server: the group.
pub(super) const GROUP_VARIABLE: &str = "HOLDFAST_SHIM_GROUP";
/// From `start` to the server: where events go.
pub(super) const EVENTS_VARIABLE: &str = "TTRPC_ADDRESS";

/// So that our sockets never have the name of another shim's: the group label alone decides it otherwise.
const SALT: &[u8] = b"holdfast";
/// The longest path of a Unix socket, `unix(7)`.
const SOCKET_PATH_LIMIT: usize = 107;
/// How long the server may take to be ready, in milliseconds.
const READY_LIMIT: u16 = 10_000;

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
    /// Something with a file or directory.
    #[error("cannot {0} {1}")]
    Path(&'static str, PathBuf, #[source] io::Error),
    /// The socket's path does not fit.
    #[error("the socket path {0} is longer than {SOCKET_PATH_LIMIT} bytes")]
    TooLong(PathBuf),
    /// Something that is not a socket is in the way.
    #[error("{0} exists and is not a socket")]
    InTheWay(PathBuf),
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
pub fn run(flags: &Flags) -> Result<String, StartError> {
    let path_error = |what, path: &Path| {
        let path = path.to_owned();
        move |e| StartError::Path(what, path, e)
    };
    let env = |name: &str| std::env::var(name).ok();
    let bootstrap = cli::bootstrap(flags, &read_stdin()?, &env)?;
    let options = match &bootstrap.options {
        Some((type_url, value)) => options::from_any(type_url, value)?.0,
        None => options::Options::default(),
    };
    let bundle = std::env::current_dir().map_err(path_error("use", Path::new(".")))?;
    let group = spec::read(&bundle)?.annotations_group.unwrap_or_else(|| flags.id.clone());
    let dir = bootstrap.socket_dir.clone().unwrap_or_else(|| run_dir().join("s"));
    let socket = dir.join(socket_name(&flags.address, &flags.namespace, &group));
    if socket.as_os_str().len() > SOCKET_PATH_LIMIT {
        return Err(StartError::TooLong(socket));
    }
    let address = format!("unix://{}", socket.display());
    let write_address = || {
        let file = bundle.join("address");
        record::replace(&file, address.as_bytes(), 0o644).map_err(path_error("write", &file))
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(path_error("make the directory", &dir))?;
    let Some(listener) = listen(&dir, &socket)? else {
        write_address()?;
        return Ok(address);
    };
    let launched = launch(flags, &bootstrap, &group, &address, listener)
        .and_then(|pid| place(pid, &options.shim_cgroup).inspect_err(|_| kill(pid)).map(|()| pid))
        .and_then(|pid| write_address().inspect_err(|_| kill(pid)));
    if let Err(e) = launched {
        let _ = fs::remove_file(&socket);
        return Err(e);
    }
    Ok(address)
}

fn read_stdin() -> Result<Vec<u8>, StartError> {
    let mut stdin = io::stdin();
    let mut bytes = Vec::new();
    // Somebody who tries the command by hand gets an answer.
    if !stdin.is_terminal() {
        let limit = u64::try_from(cli::STDIN_LIMIT).unwrap_or(u64::MAX) + 1;
        let read = stdin.by_ref().take(limit).read_to_end(&mut bytes);
        read.map_err(|e| StartError::Path("read", "the standard input".into(), e))?;
    }
    Ok(bytes)
}

/// 64 hexadecimal digits.
fn socket_name(address: &str, namespace: &str, group: &str) -> String {
    let mut hash = Sha256::new();
    for part in [SALT, address.as_bytes(), namespace.as_bytes(), group.as_bytes()] {
        hash.update(part);
        hash.update([0]);
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name under which records of this manager's containers are filed.
pub(super) fn instance(address: &str) -> String {
    match std::env::var(MANAGER_VARIABLE) {
        Ok(manager) if manager == SUPERVISOR_INSTANCE => manager,
        _ => hex(&Sha256::digest(address.as_bytes())[..8]),
    }
}

/// Binds the socket. None: a shim of the group serves there already.
///
/// Two `start`s may run for one group at once, so looking, unlinking and binding happen under a lock. It is on the
/// directory, which is there anyway and is never removed.
fn listen(dir: &Path, socket: &Path) -> Result<Option<OwnedFd>, StartError> {
    let failed = |e: io::Error| StartError::Path("lock", dir.to_owned(), e);
    let lock = File::open(dir).map_err(failed)?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| failed(e.into()))?;
    match UnixListener::bind(socket) {
        Ok(listener) => return only_ours(listener, socket).map(Some),
        Err(e) if e.kind() == ErrorKind::AddrInUse => {}
        Err(e) => return Err(StartError::Path("bind the socket", socket.to_owned(), e)),
    }
    match UnixStream::connect(socket) {
        Ok(_) => return Ok(None),
        // A full backlog belongs to a shim that lives.
        Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
        Err(_) => {}
    }
    // Only what looks like a dead shim's socket is removed.
    let kind = fs::symlink_metadata(socket).map(|m| m.file_type());
    if kind.is_ok_and(|kind| !std::os::unix::fs::FileTypeExt::is_socket(&kind)) {
        return Err(StartError::InTheWay(socket.to_owned()));
    }
    let failed = |e| StartError::Path("replace the stale socket", socket.to_owned(), e);
    fs::remove_file(socket).map_err(failed)?;
    only_ours(UnixListener::bind(socket).map_err(failed)?, socket).map(Some)
}

fn only_ours(listener: UnixListener, socket: &Path) -> Result<OwnedFd, StartError> {
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .map_err(|e| StartError::Path("protect the socket", socket.to_owned(), e))?;
    Ok(listener.into())
}

/// Starts the server and waits until it is ready. The listening socket is its standard input and the readiness pipe its
/// standard output: that way nothing has to be done between fork and exec.
fn launch(
    flags: &Flags,
    bootstrap: &Bootstrap,
    group: &str,
    address: &str,
    listener: OwnedFd,
) -> Result<u32, StartError> {
    let server = |e: io::Error| StartError::Server(e.to_string());
    let (ready, tell) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| server(e.into()))?;
    let program = std::env::current_exe().map_err(server)?;
    let mut command = Command::new(program);
    command.args(["-namespace", &flags.namespace, "-id", &flags.id, "-address", &flags.address]);
    if bootstrap.debug {
        command.arg("-debug");
    }
    command
        .env(ADDRESS_VARIABLE, address)
        .env(GROUP_VARIABLE, group)
        .env(EVENTS_VARIABLE, &bootstrap.ttrpc_address)
        // The first makes runc wait for systemd for ever (contract, trap 47); the others are for the Go shim.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("GOMAXPROCS")
        .env_remove("MAX_SHIM_VERSION")
        .stdin(Stdio::from(listener))
        .stdout(Stdio::from(tell))
        .stderr(Stdio::null());
    let child = command.spawn().map_err(server)?;
    let pid = child.id();
    // The command holds the write end open.
    drop(command);
    let said = wait_ready(ready).map_err(server)?;
    match said.as_str() {
        super::serve::READY => Ok(pid),
        text => {
            kill(pid);
            let text = if text.is_empty() { "it ended without a word" } else { text };
            Err(StartError::Server(text.to_owned()))
        }
    }
}

fn wait_ready(ready: OwnedFd) -> io::Result<String> {
    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&ready), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::from(READY_LIMIT))? == 0 {
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
    let _ = crate::sys::signal::send(pid, nix::libc::SIGKILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_named_after_daemon_namespace_and_group_and_nobody_elses() {
        let name = socket_name("/run/containerd/containerd.sock", "k8s.io", "pod");
        assert_eq!(name.len(), 64);
        assert_ne!(name, socket_name("/run/containerd/containerd.sock", "k8s.io", "pod2"));
        assert_ne!(name, socket_name("/run/containerd/containerd.sock", "moby", "pod"));
        assert_ne!(name, socket_name("/run/k3s/containerd.sock", "k8s.io", "pod"));
        // What containerd's own shim hashes: the three joined as a path.
        let theirs = hex(&Sha256::digest("/run/containerd/containerd.sock/k8s.io/pod"));
        assert_ne!(name, theirs);
    }
}
