//! The system calls that have no safe wrapper, and nothing else. All `unsafe` of this program is here.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};

/// Turns the return value of a raw system call into a result.
fn check(value: libc::c_long) -> Result<libc::c_long, Errno> {
    if value < 0 { Err(Errno::last()) } else { Ok(value) }
}

/// Takes over a descriptor that a system call has just made.
fn own(value: libc::c_long) -> OwnedFd {
    let fd = RawFd::try_from(value).expect("the kernel returns descriptors that fit an int");
    // SAFETY: the caller passes the fresh result of a call that opens a descriptor, which nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `pidfd_open(2)`; nix has no wrapper.
///
/// # Errors
/// As the call, `ESRCH` among them.
pub(crate) fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two integers and touches no memory of ours.
    let value = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    check(value).map(own)
}

/// `pidfd_send_signal(2)`; a plain number, since nix's type has no real-time signals.
///
/// # Errors
/// As the call.
pub(crate) fn pidfd_send_signal(pidfd: &OwnedFd, signal: i32) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and a null siginfo is allowed.
    let value = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) };
    check(value).map(drop)
}

/// Undoes what this program and its callers did to signals and what a payload would inherit: the standard library
/// ignores SIGPIPE, a caller may have blocked signals, and one who was started by nohup(1) ignores SIGHUP, which no shell
/// in the container could trap then.
///
/// # Errors
/// As `sigprocmask(2)`.
pub(crate) fn reset_signals() -> Result<(), Errno> {
    /// The kernel's `sigaction`, all zero: the default action, no flags, no restorer, an empty mask.
    const DEFAULT: [u64; 4] = [0; 4];
    const MASK_BYTES: usize = 8;
    let no_old = std::ptr::null::<u64>();
    for signal in 1..=64 {
        // SAFETY: the kernel reads one `sigaction` of its own layout, which is what DEFAULT is as long as. By system call,
        // since the C library refuses its two internal signals. SIGKILL and SIGSTOP are refused, as they are at default.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), no_old, MASK_BYTES) };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// `KEYCTL_JOIN_SESSION_KEYRING`: joins the session keyring of that name, or makes it; returns its serial.
///
/// # Errors
/// As `keyctl(2)`.
pub(crate) fn join_session_keyring(name: &CStr) -> Result<i32, Errno> {
    // SAFETY: the name is a terminated string that outlives the call.
    let value = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr(), 0, 0, 0) };
    check(value).map(|serial| i32::try_from(serial).unwrap_or_default())
}

/// `KEYCTL_SETPERM`.
///
/// # Errors
/// As `keyctl(2)`.
pub(crate) fn set_key_permissions(serial: i32, permissions: u32) -> Result<(), Errno> {
    // SAFETY: takes integers only.
    let value = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_SETPERM, serial, permissions, 0, 0) };
    check(value).map(drop)
}

/// Sets the size of a terminal.
///
/// # Errors
/// As the ioctl.
pub(crate) fn set_window_size(terminal: BorrowedFd<'_>, size: libc::winsize) -> Result<(), Errno> {
    // SAFETY: TIOCSWINSZ reads one winsize, which lives until the call returns.
    let value = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    check(value.into()).map(drop)
}

/// The size of a terminal.
///
/// # Errors
/// As the ioctl.
pub(crate) fn window_size(terminal: BorrowedFd<'_>) -> Result<libc::winsize, Errno> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which lives until the call returns.
    let value = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    check(value.into()).map(|_| size)
}

/// Takes over a descriptor that the crate has received for us.
pub(crate) fn adopt_fd(fd: RawFd) -> OwnedFd {
    own(fd.into())
}

/// Writes to a descriptor that belongs to the other side of a fork.
///
/// # Errors
/// As `write(2)`.
pub(crate) fn write_all(fd: RawFd, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: the caller's copy of the descriptor stays open until the process ends, which is after this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut rest = bytes;
    while !rest.is_empty() {
        rest = &rest[nix::unistd::write(fd, rest)?..];
    }
    Ok(())
}

/// Receives one descriptor over a socket.
///
/// # Errors
/// As `recvmsg(2)`; `EBADMSG` when the message carries none.
pub(crate) fn receive_fd(socket: &OwnedFd) -> Result<OwnedFd, Errno> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
    let mut text = [0; 64];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut buffers = [io::IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(&fd) = fds.first()
        {
            return Ok(own(fd.into()));
        }
    }
    Err(Errno::EBADMSG)
}

/// Whether the real user may execute the file, by its effective ids.
///
/// # Errors
/// As `faccessat2(2)`.
pub(crate) fn may_execute(path: &CStr) -> Result<(), Errno> {
    // SAFETY: the path is a terminated string that outlives the call.
    let value =
        unsafe { libc::syscall(libc::SYS_faccessat2, libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) };
    check(value).map(drop)
}

/// Forks and runs the closure in the child, which then exits with 0 or, on an error, with the errno; returns what the
/// child did.
///
/// # Errors
/// As `fork(2)`, or the child's.
pub(crate) fn in_child(work: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};
    // SAFETY: this program has one thread, so the child may allocate and call anything.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = work().err().map_or(0, |errno| errno as i32);
            // SAFETY: ends the child at once; nothing of the parent's is to be dropped or flushed here.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => loop {
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
                Ok(WaitStatus::Exited(_, code)) => return Err(Errno::from_raw(code)),
                Ok(_) => return Err(Errno::EINTR),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        },
    }
}

/// Which side of [`clone`] this is.
pub(crate) enum Side {
    /// The new process.
    Child,
    /// The old one, which learns the pid.
    Parent(i32),
}

/// The argument of `clone3(2)`, version 2.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks: as a child of ours, or of our parent; into our cgroup, or straight into another one of the unified
/// hierarchy (moving a process there later would wait for a grace period of the kernel).
///
/// # Errors
/// As `clone3(2)`.
pub(crate) fn clone(sibling: bool, cgroup: Option<BorrowedFd<'_>>) -> Result<Side, Errno> {
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut args = CloneArgs::default();
    if sibling {
        // No signal may be given then: the parent gets the one that it gets for us.
        args.flags |= u64::from(libc::CLONE_PARENT.cast_unsigned());
    } else {
        args.exit_signal = u64::from((Signal::SIGCHLD as i32).cast_unsigned());
    }
    if let Some(cgroup) = cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: without CLONE_VM and with no stack this is fork(2); the program has one thread, so the child may go on as
    // if nothing had happened.
    let value = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match check(value) {
        Ok(0) => Ok(Side::Child),
        Ok(pid) => Ok(Side::Parent(i32::try_from(pid).unwrap_or_default())),
        // Filters that do not know clone3 say that it does not exist.
        Err(Errno::ENOSYS) if cgroup.is_none() => old_clone(&args),
        Err(errno) => Err(errno),
    }
}

fn old_clone(args: &CloneArgs) -> Result<Side, Errno> {
    // SAFETY: as above; all pointers are null.
    let value = unsafe { libc::syscall(libc::SYS_clone, args.flags | args.exit_signal, 0, 0, 0, 0) };
    match check(value)? {
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(i32::try_from(pid).unwrap_or_default())),
    }
}

/// Ends this process at once, without running what its parent has registered for the end.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: never returns, and touches nothing.
    unsafe { libc::_exit(code) }
}

/// The argument of `mount_setattr(2)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct MountAttr {
    /// Attributes to set.
    pub(crate) attr_set: u64,
    /// Attributes to clear.
    pub(crate) attr_clr: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 to keep it.
    pub(crate) propagation: u64,
    /// The user namespace whose map `MOUNT_ATTR_IDMAP` sets.
    pub(crate) userns_fd: u64,
}

/// Sets `IFF_UP` on an interface of this process's network namespace, as netdevice(7) has it.
///
/// # Errors
/// As the calls.
pub(crate) fn bring_up_interface(name: &CStr) -> Result<(), Errno> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an ifreq is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name.to_bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the request outlives the call, which fills in the flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) }.into())?;
    // SAFETY: the call before has set this member of the union.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: the request outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) }.into()).map(drop)
}

/// `mount_setattr(2)` on a path, or with an empty path on the descriptor itself.
///
/// # Errors
/// As the call.
pub(crate) fn mount_setattr(dir: RawFd, path: &CStr, flags: libc::c_int, attr: &MountAttr) -> Result<(), Errno> {
    // SAFETY: path and attr outlive the call, and the size is that of the structure.
    let value = unsafe {
        libc::syscall(libc::SYS_mount_setattr, dir, path.as_ptr(), flags, &raw const *attr, size_of::<MountAttr>())
    };
    check(value).map(drop)
}

/// `open_tree(2)`, close-on-exec.
///
/// # Errors
/// As the call.
pub(crate) fn open_tree(path: &Path, flags: libc::c_uint) -> Result<OwnedFd, Errno> {
    let path = c_string(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let flags = flags | libc::O_CLOEXEC.cast_unsigned();
    // SAFETY: the path is a terminated string.
    let value = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    check(value).map(own)
}

/// `move_mount(2)` of what a descriptor names to a path.
///
/// # Errors
/// As the call.
pub(crate) fn move_mount(mount: BorrowedFd<'_>, to: &Path) -> Result<(), Errno> {
    let to = c_string(to.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let (from, flags) = (mount.as_raw_fd(), libc::MOVE_MOUNT_F_EMPTY_PATH);
    // SAFETY: both paths are terminated strings.
    let value = unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    check(value).map(drop)
}

/// As [`move_mount`], onto what another descriptor names.
///
/// # Errors
/// As the call.
pub(crate) fn move_mount_onto(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let (from, to, empty) = (mount.as_raw_fd(), target.as_raw_fd(), c"".as_ptr());
    // SAFETY: both paths are terminated strings.
    let value = unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, flags) };
    check(value).map(drop)
}

/// `bpf(2)` with one of the attribute structures of `devices`.
///
/// # Errors
/// As the call.
pub(crate) fn bpf<T: BpfAttr>(command: libc::c_int, attr: &mut T) -> Result<libc::c_long, Errno> {
    // SAFETY: a `BpfAttr` is plain data laid out as the kernel's union member for its commands, and the pointers in it
    // point to buffers that the caller keeps alive for the call.
    let value = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    check(value)
}

/// Marks the structures that may go to the kernel as `union bpf_attr`.
pub(crate) trait BpfAttr {}

/// Takes over a descriptor returned by `bpf(2)`.
pub(crate) fn bpf_fd(value: libc::c_long) -> OwnedFd {
    own(value)
}

/// Closes on exec every descriptor from this one on, so that none of the caller's reaches a container.
///
/// # Errors
/// As `close_range(2)`.
pub(crate) fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: takes integers only, and no descriptor is closed yet.
    let value = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(value).map(drop)
}

/// A string without zero bytes for the kernel.
///
/// # Errors
/// When there is one inside.
pub(crate) fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}
