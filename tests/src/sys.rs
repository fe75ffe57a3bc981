//! The unsafe that no wrapper covers.
#![allow(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};

use nix::unistd::{ForkResult, fork};

nix::ioctl_read_bad!(
    /// SIOCOUTQ of unix(7): what was written and not yet read by the other side; 0 only if nothing.
    outq,
    libc::TIOCOUTQ,
    libc::c_int
);

nix::ioctl_readwrite!(
    /// FIFREEZE of ioctl(2): whoever writes to the filesystem waits from now on.
    fifreeze,
    b'X',
    119,
    libc::c_int
);

nix::ioctl_readwrite!(
    /// FITHAW of ioctl(2).
    fithaw,
    b'X',
    120,
    libc::c_int
);

nix::ioctl_read!(
    /// EXT4_IOC_SHUTDOWN: the filesystem fails every access from now on, as after errors of its disk.
    ext4_shutdown,
    b'X',
    125,
    u32
);

/// Has whoever writes to the filesystem of `file` wait, until [`thaw`].
///
/// # Errors
/// As ioctl(2).
pub fn freeze(file: impl AsFd) -> io::Result<()> {
    // SAFETY: the fd is open for the time of the call, and the argument is not used.
    unsafe { fifreeze(file.as_fd().as_raw_fd(), std::ptr::null_mut()) }?;
    Ok(())
}

/// Ends what [`freeze`] began.
///
/// # Errors
/// As ioctl(2); EINVAL if it was not frozen.
pub fn thaw(file: impl AsFd) -> io::Result<()> {
    // SAFETY: as in `freeze`.
    unsafe { fithaw(file.as_fd().as_raw_fd(), std::ptr::null_mut()) }?;
    Ok(())
}

/// Breaks the ext4 filesystem of `file`, with all that was written so far on its disk: only a new mount helps.
///
/// # Errors
/// As ioctl(2).
pub fn shut_down(file: impl AsFd) -> io::Result<()> {
    // EXT4_GOING_FLAGS_DEFAULT: what is in memory is written first.
    let mut how = 0;
    // SAFETY: the fd is open for the time of the call, and the pointer is to a live u32, which is read.
    unsafe { ext4_shutdown(file.as_fd().as_raw_fd(), &raw mut how) }?;
    Ok(())
}

/// Whether the other side of a stream socket has read all that was written into this one.
///
/// # Errors
/// As ioctl(2).
pub fn all_was_read(socket: impl AsFd) -> io::Result<bool> {
    let mut count = 0;
    // SAFETY: the fd is open for the time of the call, and the pointer is to a live int, which is all SIOCOUTQ writes.
    unsafe { outq(socket.as_fd().as_raw_fd(), &raw mut count) }?;
    Ok(count == 0)
}

/// Runs `child` in a forked process, which ends after it, and returns that process's pid to the parent.
///
/// For programs with a single thread only (the fake runtime): the child then may do whatever the parent may.
///
/// # Errors
/// As fork(2).
///
/// # Panics
/// If the process has more than one thread.
pub fn fork_child(child: impl FnOnce()) -> nix::Result<nix::unistd::Pid> {
    assert_eq!(crate::process::threads(std::process::id()), Some(1), "fork wants a single thread");
    // SAFETY: with one thread no lock can be held by a thread that the child lacks; asserted above.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            child();
            std::process::exit(0)
        }
    }
}

/// Makes the program that `command` starts stop at its beginning, traced by the thread that starts it.
pub fn trace(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let traceme = || nix::sys::ptrace::traceme().map_err(io::Error::from);
    // SAFETY: between fork and exec only what is safe in a signal handler may be called, and ptrace(2) is a plain call.
    unsafe { command.pre_exec(traceme) };
}

/// As [`fork_child`], but the process is an orphan at once: its parent is the nearest subreaper when this returns.
///
/// # Errors
/// As fork(2) and wait(2).
///
/// # Panics
/// As [`fork_child`].
pub fn fork_orphan(child: impl FnOnce()) -> io::Result<nix::unistd::Pid> {
    let (mut told, tell) = io::pipe()?;
    let between = fork_child(|| {
        // What cannot be told is missed by who reads.
        if let Ok(pid) = fork_child(child) {
            let _ = (&tell).write_all(&pid.as_raw().to_ne_bytes());
        }
    })?;
    let mut pid = [0; size_of::<i32>()];
    drop(tell);
    let read = told.read_exact(&mut pid);
    nix::sys::wait::waitpid(between, None)?;
    read.map(|()| nix::unistd::Pid::from_raw(i32::from_ne_bytes(pid)))
}

/// Takes over a descriptor that a control message has just brought.
pub fn own(fd: std::os::fd::RawFd) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: recvmsg(2) has made this descriptor for us, and the caller passes it here once, so nobody else closes it.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }
}

/// Changes how many descriptors another process may have, up to its hard limit, and gives what it was.
///
/// # Errors
/// As prlimit(2).
pub fn limit_files(pid: u32, soft: u64) -> io::Result<u64> {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: without a new limit, only the old one is written, to a live structure.
    let read = unsafe { libc::prlimit(pid.cast_signed(), libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut old) };
    let new = libc::rlimit { rlim_cur: soft, ..old };
    // SAFETY: the new limit is only read.
    let set = unsafe { libc::prlimit(pid.cast_signed(), libc::RLIMIT_NOFILE, &raw const new, std::ptr::null_mut()) };
    if read < 0 || set < 0 { Err(io::Error::last_os_error()) } else { Ok(old.rlim_cur) }
}

/// Keeps the death of a process of others from its parent: it stays unreaped until this is dropped, in the same thread.
#[derive(Debug)]
pub struct Traced(nix::unistd::Pid);

impl Traced {
    /// Begins to trace `pid`, which goes on undisturbed.
    ///
    /// # Errors
    /// As ptrace(2).
    pub fn seize(pid: u32) -> io::Result<Self> {
        let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
        let nothing = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: this request takes no memory of ours.
        let result = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid.as_raw(), nothing, nothing) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(pid)) }
    }
}

impl Drop for Traced {
    /// Waits for the end of the process, after which its parent hears of it.
    fn drop(&mut self) {
        // SAFETY: no status is asked for, so nothing is written.
        unsafe { libc::waitpid(self.0.as_raw(), std::ptr::null_mut(), libc::__WALL) };
    }
}

/// Sets how large the files may become that a process writes, in bytes, `None` for no limit: with 0 it finds all filesystems
/// full. What it starts inherits that.
///
/// # Errors
/// As prlimit(2).
pub fn limit_file_size(pid: u32, limit: Option<u64>) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: limit.unwrap_or(libc::RLIM_INFINITY), rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointers are to a live structure that is only read, and null, which asks for nothing.
    let result =
        unsafe { libc::prlimit(pid.cast_signed(), libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

mod window_ioctl {
    nix::ioctl_write_ptr_bad!(set_window_size, nix::libc::TIOCSWINSZ, nix::libc::winsize);
}

/// Gives a terminal another size, of which its foreground processes are told by SIGWINCH (ioctl_tty(2)).
///
/// # Errors
/// The kernel's refusal.
pub fn set_window_size(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = nix::libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, and `size` is one that lives until the call is over.
    unsafe { window_ioctl::set_window_size(terminal.as_fd().as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// Runs `f` as another user who is in this group and in no other.
///
/// In a thread of its own: the kernel has the ids of a thread, and it is libc that changes those of all.
///
/// # Errors
/// As setresuid(2).
///
/// # Panics
/// If `f` does.
pub fn as_user<T: Send>(uid: u32, gid: u32, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let become_it = || {
        let done = |result: libc::c_long| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        // SAFETY: an empty list is read from nowhere.
        done(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
        // SAFETY: it takes numbers alone.
        done(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
        // SAFETY: as before.
        done(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| become_it().map(|()| f()));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
