//! Namespaces that a process makes, joins and holds.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::{Deserialize, Serialize};

use super::{process, reaper};
use crate::lifecycle::Pid;

/// The name of the process, as `ps` shows it.
const NAME: &str = "holdfast-pause";

/// A kind of namespaces that containers join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the specification's words
pub enum Kind {
    Network,
    Ipc,
    Uts,
    Pid,
}

fn flag(kind: Kind) -> CloneFlags {
    match kind {
        Kind::Network => CloneFlags::CLONE_NEWNET,
        Kind::Ipc => CloneFlags::CLONE_NEWIPC,
        Kind::Uts => CloneFlags::CLONE_NEWUTS,
        Kind::Pid => CloneFlags::CLONE_NEWPID,
    }
}

/// Joins the namespace at `path`; that of pids with the next child.
///
/// # Errors
/// As `open(2)` and `setns(2)`: also if it is one of another kind.
pub(crate) fn join(kind: Kind, path: &Path) -> io::Result<()> {
    Ok(setns(File::open(path)?.as_fd(), flag(kind))?)
}

/// Makes new namespaces of these kinds; that of pids with the next child.
///
/// # Errors
/// As `unshare(2)`.
pub(crate) fn make(kinds: &[Kind]) -> io::Result<()> {
    let flags = kinds.iter().fold(CloneFlags::empty(), |flags, kind| flags | flag(*kind));
    Ok(unshare(flags)?)
}

/// Brings up the loopback device of this process's network namespace, netdevice(7).
///
/// # Errors
/// As `socket(2)` and `ioctl(2)`.
pub(crate) fn bring_up_loopback() -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an ifreq is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    // SAFETY: the request outlives the call, which fills in the flags.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) })?;
    // SAFETY: the call before has set this member of the union.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: the request outlives the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) })?;
    Ok(())
}

/// Which of the two a fork has returned in.
pub(crate) enum Child {
    /// The new process.
    Itself,
    /// The old one; this is the other's pid.
    Pid(Pid),
}

/// Copies this process, which must have no other thread: a short-lived command. The copy is in the namespaces that were made
/// or joined, and no signal reaches it until it takes it.
///
/// # Errors
/// As `fork(2)`.
pub(crate) fn fork() -> io::Result<Child> {
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals()), None)?;
    // SAFETY: there is one thread, so no lock is held by another, and both may go on as they like.
    match Errno::result(unsafe { libc::fork() })? {
        0 => Ok(Child::Itself),
        pid => Ok(Child::Pid(pid.cast_unsigned())),
    }
}

/// What the holder heeds.
fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().collect()
}

/// Sets itself apart from what it came from and tells so; then does nothing until it is told to end, but to collect what
/// dies in its pid namespace, if it is the first process there. Goes at once if whoever made it ends without saying to go on.
pub(crate) fn hold(mut settled: File, mut go: File) -> ! {
    let is_wanted = settle().is_ok() && settled.write_all(b"\n").is_ok() && go.read(&mut [0]).is_ok_and(|n| n == 1);
    if !is_wanted {
        exit(1);
    }
    drop((settled, go));
    let signals = signals();
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => while reaper::reap().is_some() {},
            Ok(_) => exit(0),
            Err(_) => {}
        }
    }
}

/// Out of what it came from: group, directory, standard streams.
fn settle() -> io::Result<()> {
    nix::unistd::setsid()?;
    nix::unistd::chdir("/")?;
    process::detach_stdio()?;
    let _ = prctl::set_name(NAME);
    Ok(())
}

/// Without what the program does at its end, which is another's.
fn exit(status: i32) -> ! {
    // SAFETY: `_exit(2)` does not return and touches no memory of ours.
    unsafe { libc::_exit(status) }
}
