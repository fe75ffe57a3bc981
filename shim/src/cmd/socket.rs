//! The socket of a group: who may bind it, who serves there already, and when what is left of it may be removed.
//!
//! Looking, unlinking, binding and bringing a server up happen under a lock of the group's own ([`GroupLock`]), so that of
//! several `start`s one launches the server and the others find it ready.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::ConnectRequest;
use holdfast_proto::service;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use sha2::{Digest, Sha256};

use crate::ask::{AskError, Asker};
use crate::record;

/// So that our sockets never have the name of another shim's: the group label alone decides it otherwise.
const SALT: &[u8] = b"holdfast";
/// How long a shim may take to say what it serves (contract 2.1). One that is slower than that is still a shim.
const PROBE_LIMIT: Duration = Duration::from_millis(100);
/// How long a listener is given to go that lets everybody in and hangs up on them, as a shim at its end does.
const GOING_LIMIT: Duration = Duration::from_secs(2);
/// How often it is looked at.
const GOING_INTERVAL: Duration = Duration::from_millis(5);

/// Why there is no socket for a group.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel refuses.
    #[error("cannot {0} {1}")]
    Path(&'static str, PathBuf, #[source] io::Error),
    /// Something that is not a socket is in the way.
    #[error("{0} exists and is not a socket")]
    InTheWay(PathBuf),
    /// Somebody listens there who is no shim of ours.
    #[error("the socket {0} is in use, not by a shim of this user: {1}")]
    Foreign(PathBuf, String),
}

/// What became of a socket's place.
pub(super) enum Place {
    /// It is ours to serve.
    Bound(OwnedFd),
    /// A shim of the group serves there, task services up to this version as far as is known.
    Served(i32),
}

/// 64 hexadecimal digits.
pub(super) fn socket_name(address: &str, namespace: &str, group: &str) -> String {
    let mut hash = Sha256::new();
    for part in [SALT, address.as_bytes(), namespace.as_bytes(), group.as_bytes()] {
        hash.update(part);
        hash.update([0]);
    }
    hex(&hash.finalize())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The exclusive right to change the socket of one group, for as long as it is held; the kernel takes it back from a
/// process that dies. It is one byte of a file that all groups share (`F_OFD_SETLK` in fcntl(2)): groups do not wait for
/// each other, and no file has to be made for a group and removed again.
pub(super) struct GroupLock {
    _file: File,
}

impl GroupLock {
    /// Waits for the lock of the group whose socket has this name.
    ///
    /// # Errors
    /// [`SocketError::Path`].
    pub(super) fn take(run_dir: &Path, name: &str) -> Result<Self, SocketError> {
        let path = run_dir.join("start.lock");
        let failed = |e| SocketError::Path("lock", path.clone(), e);
        let file = Self::open(&path).map_err(failed)?;
        while let Err(e) = fcntl(&file, FcntlArg::F_OFD_SETLKW(&range(name))) {
            if e != Errno::EINTR {
                return Err(failed(e.into()));
            }
        }
        Ok(Self { _file: file })
    }

    /// As [`GroupLock::take`], for at most `limit`; `None` too if it cannot be had at all.
    pub(super) fn take_within(run_dir: &Path, name: &str, limit: Duration) -> Option<Self> {
        let file = Self::open(&run_dir.join("start.lock")).ok()?;
        let until = Instant::now() + limit;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&range(name))) {
                Ok(_) => return Some(Self { _file: file }),
                Err(Errno::EAGAIN | Errno::EACCES | Errno::EINTR) if Instant::now() < until => {
                    thread::sleep(GOING_INTERVAL);
                }
                Err(_) => return None,
            }
        }
    }

    fn open(path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW).open(path)
    }
}

/// The byte that stands for a group: two groups have the same one once in 2^60, and then merely wait for each other.
fn range(name: &str) -> libc::flock {
    let at = name.get(..15).and_then(|digits| i64::from_str_radix(digits, 16).ok()).unwrap_or(0);
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    }
}

/// Binds the socket, or finds who serves there. To be called under the group's lock.
///
/// # Errors
/// See [`SocketError`].
pub(super) fn take_place(socket: &Path) -> Result<Place, SocketError> {
    let until = Instant::now() + GOING_LIMIT;
    loop {
        match bind(socket) {
            Ok(listener) => return Ok(Place::Bound(listener.into())),
            Err(e) if e.kind() == ErrorKind::AddrInUse => {}
            Err(e) => return Err(SocketError::Path("bind the socket", socket.to_owned(), e)),
        }
        // Not through a link: it could lead to somebody else's socket.
        match fs::symlink_metadata(socket) {
            Ok(meta) if !meta.file_type().is_socket() => return Err(SocketError::InTheWay(socket.to_owned())),
            Ok(meta) if meta.uid() != geteuid().as_raw() => {
                return Err(SocketError::Foreign(socket.to_owned(), AskError::Stranger(meta.uid()).to_string()));
            }
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(SocketError::Path("look at the socket", socket.to_owned(), e)),
        }
        match probe(socket) {
            // One that ends removes its socket first (contract, trap 37): whoever connects to it now is too late.
            Ok(_) if !socket.exists() => {}
            Ok(version) => return Ok(Place::Served(version)),
            // It lives, and is slow or busy. Version 2 is what every shim serves.
            Err(AskError::Full | AskError::Late) => return Ok(Place::Served(2)),
            Err(AskError::Refused) => remove_stale(socket)?,
            Err(AskError::Ended) if Instant::now() < until => thread::sleep(GOING_INTERVAL),
            Err(AskError::Io(e)) => return Err(SocketError::Path("connect to the socket", socket.to_owned(), e)),
            Err(e) => return Err(SocketError::Foreign(socket.to_owned(), e.to_string())),
        }
    }
}

/// Nobody but us may ever connect, not even between bind(2) and a chmod(2). This command has one thread.
fn bind(socket: &Path) -> io::Result<UnixListener> {
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(socket);
    umask(before);
    listener
}

/// Asks who listens on a socket; gives the highest version of the task service that it serves. The question is one that
/// no shim refuses.
fn probe(socket: &Path) -> Result<i32, AskError> {
    let question = ConnectRequest::default();
    let mut asker = Asker::connect(socket)?;
    match asker.call(service::TASK_V3, "Connect", &question, PROBE_LIMIT) {
        Ok(_) => Ok(3),
        // Whatever it has against the question: it speaks the protocol.
        Err(AskError::No(..)) => Ok(2),
        // A shim that is slow looks like a shim all the same.
        Err(AskError::Late) if is_another_program(asker.peer()) => Err(AskError::Nonsense),
        Err(e) => Err(e),
    }
}

/// Whether a process runs that is no shim, by its name. An unknown process may be anything.
fn is_another_program(pid: u32) -> bool {
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm"));
    matches!((name(&pid.to_string()), name("self")), (Ok(theirs), Ok(ours)) if theirs != ours)
}

fn remove_stale(socket: &Path) -> Result<(), SocketError> {
    match fs::remove_file(socket) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(SocketError::Path("replace the stale socket", socket.to_owned(), e))
        }
        _ => Ok(()),
    }
}

/// Removes the socket of a group if nobody listens there, for `delete`.
pub(super) fn sweep(run_dir: &Path, socket: &Path, limit: Duration) {
    let is_socket = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    let Some(name) = socket.file_name().and_then(|name| name.to_str()) else { return };
    if !is_socket(socket) {
        return;
    }
    // Between a start's bind(2) and its listen(2) nobody listens either. Whoever holds the lock now is such a start.
    let Some(_lock) = GroupLock::take_within(run_dir, name, limit) else { return };
    if is_socket(socket) && matches!(Asker::connect(socket), Err(AskError::Refused)) {
        let _ = fs::remove_file(socket);
    }
}

/// Makes the directory of the sockets and the one that holds the lock.
///
/// # Errors
/// [`SocketError::Path`].
pub(super) fn make_dirs(run_dir: &Path, dir: &Path) -> Result<(), SocketError> {
    for dir in [run_dir, dir] {
        record::make_dir(dir).map_err(|e| SocketError::Path("make the directory", dir.to_owned(), e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn place(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("holdfast-socket-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

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

    #[test]
    fn a_group_is_locked_and_others_are_not() {
        let dir = place("lock");
        let (a, b) = (socket_name("d", "n", "a"), socket_name("d", "n", "b"));
        let held = GroupLock::take(&dir, &a).unwrap();
        assert!(GroupLock::take_within(&dir, &a, Duration::ZERO).is_none());
        assert!(GroupLock::take_within(&dir, &b, Duration::ZERO).is_some());
        drop(held);
        assert!(GroupLock::take_within(&dir, &a, Duration::ZERO).is_some());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn only_a_socket_without_a_listener_is_swept() {
        let dir = place("sweep");
        let socket = dir.join(socket_name("d", "n", "g"));
        let listener = UnixListener::bind(&socket).unwrap();
        sweep(&dir, &socket, Duration::ZERO);
        assert!(socket.exists(), "somebody listens");
        drop(listener);
        let lock = GroupLock::take(&dir, socket.file_name().unwrap().to_str().unwrap()).unwrap();
        sweep(&dir, &socket, Duration::ZERO);
        assert!(socket.exists(), "a start is at work");
        drop(lock);
        sweep(&dir, &socket, Duration::ZERO);
        assert!(!socket.exists());
        fs::write(&socket, "a file").unwrap();
        sweep(&dir, &socket, Duration::ZERO);
        assert!(socket.exists(), "no socket");
        fs::remove_dir_all(dir).unwrap();
    }
}
