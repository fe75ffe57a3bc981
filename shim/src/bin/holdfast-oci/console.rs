//! Terminals: handing the master out over a socket, its size, and relaying it for a caller that waits.
//!
//! libcontainer gets one end of a socket pair of ours. So the size is set before anybody else sees the terminal, and a
//! console socket that goes away is an error of the verb, not of the container's process.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write, stdin, stdout};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket, socketpair,
};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use oci_spec::runtime::Process;

use crate::error::Failure;
use crate::sys;

/// Where the master of the terminal goes.
pub(crate) enum Destination {
    /// To whoever listens on this socket.
    Socket(OwnedFd),
    /// To our own stdin and stdout.
    Ourselves,
}

/// A terminal that libcontainer is going to make.
pub(crate) struct Console {
    /// The end that libcontainer sends the master to.
    theirs: Option<OwnedFd>,
    ours: OwnedFd,
    destination: Destination,
    size: Option<libc::winsize>,
}

impl Console {
    /// Connects to the console socket before anything is made: a caller that does not listen must not cost a container.
    ///
    /// # Errors
    /// When the process wants a terminal and there is nowhere to send it, or the other way round.
    pub(crate) fn prepare(process: &Process, path: Option<&Path>, detach: bool) -> Result<Option<Console>, Failure> {
        let refuse = |reason| {
            let value = path.map(|path| path.display().to_string()).unwrap_or_default();
            Err(Failure::Argument { what: "console socket", value, reason })
        };
        let destination = match (process.terminal().unwrap_or(false), path) {
            (false, None) => return Ok(None),
            (false, Some(_)) => return refuse("cannot use console socket if the process has no terminal"),
            (true, None) if detach => return refuse("cannot allocate tty if detached without setting console socket"),
            (true, None) => Destination::Ourselves,
            (true, Some(path)) => Destination::Socket(dial("connect to the console socket", path)?),
        };
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .map_err(Failure::sys("make a socket pair"))?;
        let size = match destination {
            Destination::Ourselves => sys::window_size(stdin().as_fd()).ok(),
            Destination::Socket(_) => process.console_size().map(|size| window(size.height(), size.width())),
        };
        Ok(Some(Console { theirs: Some(theirs), ours, destination, size }))
    }

    /// The end for libcontainer.
    pub(crate) fn take_theirs(&mut self) -> Option<OwnedFd> {
        self.theirs.take()
    }

    /// Takes the master that libcontainer has sent, sets its size and sends it on; or returns it if it is for us.
    ///
    /// # Errors
    /// When no master came or the socket does not take it.
    pub(crate) fn hand_over(self) -> Result<Option<OwnedFd>, Failure> {
        let master = sys::receive_fd(&self.ours).map_err(Failure::sys("receive the terminal"))?;
        if let Some(size) = self.size.filter(|size| size.ws_row > 0 && size.ws_col > 0) {
            sys::set_window_size(master.as_fd(), size).map_err(Failure::sys("set the size of the terminal"))?;
        }
        match self.destination {
            Destination::Ourselves => Ok(Some(master)),
            Destination::Socket(socket) => {
                // The text is what callers print when they are asked which terminal it is.
                send(&socket, b"/dev/ptmx", &master)
                    .map_err(Failure::sys("send the terminal to the console socket"))?;
                Ok(None)
            }
        }
    }
}

/// A size as the kernel wants it; what is larger than that can be is as large as can be.
pub(crate) fn window(rows: u64, columns: u64) -> libc::winsize {
    let clamp = |cells: u64| u16::try_from(cells).unwrap_or(u16::MAX);
    libc::winsize { ws_row: clamp(rows), ws_col: clamp(columns), ws_xpixel: 0, ws_ypixel: 0 }
}

/// Connects to a socket whose path may be longer than a socket address can hold.
///
/// # Errors
/// Names the path.
pub(crate) fn dial(what: &'static str, path: &Path) -> Result<OwnedFd, Failure> {
    let failed = |errno: Errno| Failure::file(what, path)(errno.into());
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    let (_dir, short) = shorten(path).map_err(failed)?;
    let address = UnixAddr::new(&short).map_err(failed)?;
    connect(fd.as_raw_fd(), &address).map_err(failed)?;
    Ok(fd)
}

/// The same path, by way of a descriptor of its directory if need be.
fn shorten(path: &Path) -> Result<(Option<OwnedFd>, PathBuf), Errno> {
    const LONGEST: usize = 107;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EINVAL) };
    if path.as_os_str().as_bytes().len() <= LONGEST {
        return Ok((None, path.to_owned()));
    }
    let dir = open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((Some(dir), short))
}

/// Sends a text and a descriptor.
///
/// # Errors
/// As `sendmsg(2)`.
pub(crate) fn send(socket: &OwnedFd, text: &[u8], fd: &OwnedFd) -> Result<(), Errno> {
    let fds = [fd.as_raw_fd()];
    let text = [IoSlice::new(text)];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &text, &rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// Gives stdin, stdout and stderr of a process that waits for its payload to the user it runs as, so that the payload
/// can open `/dev/stdout` and the like again. What cannot be given away (a read-only file, say) stays as it is.
pub(crate) fn give_stdio(pid: i32, owner: Option<u32>) {
    let Some(owner) = owner else { return };
    for fd in 0..3 {
        let path = format!("/proc/{pid}/fd/{fd}");
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        // The null device is everybody's.
        if metadata.uid() != owner && metadata.rdev() != nix::sys::stat::makedev(1, 3) {
            let _ = chown(&path, Some(owner), None);
        }
    }
}

/// Our own terminal in raw mode, until dropped.
struct Raw {
    before: Option<Termios>,
}

impl Raw {
    fn enter() -> Raw {
        let before = tcgetattr(stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, &raw);
        }
        Raw { before }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Copies between our stdio and the terminal until the process is gone and its output is read.
///
/// # Errors
/// When polling fails.
pub(crate) fn relay(master: OwnedFd) -> Result<(), Failure> {
    let _raw = Raw::enter();
    let resized = resize_events()?;
    let mut master = File::from(master);
    let mut input_open = true;
    loop {
        let mut fds =
            vec![PollFd::new(master.as_fd(), PollFlags::POLLIN), PollFd::new(resized.as_fd(), PollFlags::POLLIN)];
        let stdin = stdin();
        if input_open {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.map_err(Failure::sys("wait for the terminal"))?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        if ready[1] {
            let _ = resized.read_signal();
            if let Ok(size) = sys::window_size(stdin.as_fd()) {
                let _ = sys::set_window_size(master.as_fd(), size);
            }
        }
        if ready.get(2) == Some(&true) {
            input_open = copy(&mut io::stdin(), &mut master);
        }
        // EIO: the last process has closed the terminal.
        if ready[0] && !copy(&mut master, &mut stdout()) {
            return Ok(());
        }
    }
}

fn resize_events() -> Result<SignalFd, Failure> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGWINCH);
    set.thread_block().map_err(Failure::sys("block SIGWINCH"))?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(Failure::sys("watch for SIGWINCH"))
}

/// Copies what is there; false at the end.
fn copy(from: &mut impl Read, to: &mut impl Write) -> bool {
    let mut buffer = [0; 16 * 1024];
    match from.read(&mut buffer) {
        Ok(0) | Err(_) => false,
        Ok(count) => to.write_all(&buffer[..count]).and_then(|()| to.flush()).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_deep_in_the_tree_can_be_reached() {
        let root = std::env::temp_dir().join(format!("oci-console-{}", std::process::id()));
        let deep = root.join("d".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("s");
        let listener = {
            let (_dir, short) = shorten(&path).unwrap();
            UnixListener::bind(short).unwrap()
        };
        dial("connect", &path).unwrap();
        listener.accept().unwrap();
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn sizes_beyond_the_kernels_range_are_clamped() {
        let size = window(70_000, 80);
        assert_eq!((size.ws_row, size.ws_col), (u16::MAX, 80));
    }
}
