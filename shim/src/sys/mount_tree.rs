//! Mounts that are not (yet) anywhere: copied, changed, and then moved to their place, see open_tree(2), mount_setattr(2)
//! and move_mount(2).
#![allow(unsafe_code)] // nix has no wrapper for the system calls

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{ForkResult, fork, pipe2, read, write};

use super::reaper;
use crate::mount_options::{IdMap, IdRange};

/// A mount that nothing but this descriptor names; it goes away with it unless it was moved to a place.
#[derive(Debug)]
pub(crate) struct MountTree(OwnedFd);

/// A user namespace, for as long as something refers to it.
#[derive(Debug)]
pub(crate) struct UserNamespace(File);

/// A copy of the mount at `path` with that directory as its root, as a bind mount is; with `recursive` those below too.
///
/// # Errors
/// As open_tree(2).
pub(crate) fn copy(path: &Path, recursive: bool) -> io::Result<MountTree> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let below = if recursive { libc::AT_RECURSIVE.cast_unsigned() } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned() | below;
    // SAFETY: the path is a terminated string that outlives the call.
    own(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) }).map(MountTree)
}

/// A read-only overlay over one or more directories, separated by colons.
///
/// # Errors
/// As fsopen(2), fsconfig(2) and fsmount(2).
pub(crate) fn overlay(lower: &CStr) -> io::Result<MountTree> {
    const FSOPEN_CLOEXEC: libc::c_uint = 1;
    const SET_STRING: libc::c_uint = 1;
    const CMD_CREATE: libc::c_uint = 6;
    const FSMOUNT_CLOEXEC: libc::c_uint = 1;
    const ATTRIBUTES: libc::c_ulong = 1 | 2 | 4; // read-only, nosuid, nodev
    // SAFETY: the name is a terminated string.
    let context = own(unsafe { libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), FSOPEN_CLOEXEC) })?;
    let fd = context.as_raw_fd();
    // SAFETY: key and value are terminated strings.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, SET_STRING, c"lowerdir".as_ptr(), lower.as_ptr(), 0) })?;
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes neither key nor value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, CMD_CREATE, none, none, 0) })?;
    // SAFETY: takes integers only.
    own(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, ATTRIBUTES) }).map(MountTree)
}

impl MountTree {
    /// Its root.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Shows other owners from now on; with `recursive` in the mounts below too.
    ///
    /// # Errors
    /// As mount_setattr(2): `EINVAL` also for a filesystem that cannot be idmapped.
    pub(crate) fn map_ids(&self, users: &UserNamespace, recursive: bool) -> io::Result<()> {
        const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
        let userns_fd = u64::try_from(users.0.as_raw_fd()).map_err(io::Error::other)?;
        let attributes = Attributes { set: MOUNT_ATTR_IDMAP, userns_fd, ..Attributes::default() };
        set_attributes(self.0.as_fd(), recursive, &attributes)
    }

    /// Puts it on top of what `target` names.
    ///
    /// # Errors
    /// As move_mount(2).
    pub(crate) fn move_to(&self, target: BorrowedFd<'_>) -> io::Result<()> {
        const BY_FDS: u32 = 0x04 | 0x40; // MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH
        let (from, to, empty) = (self.0.as_raw_fd(), target.as_raw_fd(), c"".as_ptr());
        // SAFETY: both paths are terminated strings.
        let moved = unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, BY_FDS) };
        check(moved).map(drop)
    }
}

/// Makes the mount that `target` is the root of read-only, and all below it.
///
/// # Errors
/// As mount_setattr(2); `ENOSYS` before Linux 5.12.
pub(crate) fn make_read_only(target: BorrowedFd<'_>) -> io::Result<()> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    set_attributes(target, true, &Attributes { set: MOUNT_ATTR_RDONLY, ..Attributes::default() })
}

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

fn set_attributes(mount: BorrowedFd<'_>, recursive: bool, attributes: &Attributes) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (fd, empty): (RawFd, &CStr) = (mount.as_raw_fd(), c"");
    // SAFETY: the path is a terminated string, the structure has the kernel's layout and the size that is told, and both
    // outlive the call.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            empty.as_ptr(),
            flags,
            &raw const *attributes,
            size_of::<Attributes>(),
        )
    };
    check(set).map(drop)
}

fn check(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// What a call that makes a descriptor has returned; to be given nothing else.
fn own(value: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(check(value)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a user namespace with these maps. A child makes it, since a process with threads cannot; it ends here.
///
/// # Errors
/// As fork(2), unshare(2), and write(2) for a map that the kernel does not take, see user_namespaces(7).
pub(crate) fn user_namespace(map: &IdMap) -> io::Result<UserNamespace> {
    let (told, tell) = pipe2(OFlag::O_CLOEXEC)?;
    let (wait, go) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the child makes system calls only, until it ends: no allocation, no lock.
    let child = match unsafe { fork() }? {
        ForkResult::Child => be_namespace(&tell, &wait, go),
        ForkResult::Parent { child } => child.as_raw().cast_unsigned(),
    };
    drop((tell, wait));
    let made = take_namespace(child, &told, map);
    // Its input ends: it has nothing more to wait for.
    drop(go);
    reaper::collect(child);
    made
}

/// The child: makes the namespace, says how that went, and waits until it is no longer needed. Nothing here allocates.
fn be_namespace(tell: &OwnedFd, wait: &OwnedFd, go: OwnedFd) -> ! {
    let errno = unshare(CloneFlags::CLONE_NEWUSER).err().map_or(0, |errno| errno as i32);
    // Its own copy would keep the end of `wait` from coming.
    drop(go);
    let _ = write(tell, &errno.to_ne_bytes());
    let _ = read(wait, &mut [0]);
    // SAFETY: ends the child at once; nothing of the parent's is to be dropped or flushed here.
    unsafe { libc::_exit(0) }
}

fn take_namespace(child: u32, told: &OwnedFd, map: &IdMap) -> io::Result<UserNamespace> {
    let mut errno = [0; size_of::<i32>()];
    io::Read::read_exact(&mut File::from(told.try_clone()?), &mut errno)?;
    match i32::from_ne_bytes(errno) {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    for (name, ranges) in [("uid_map", &map.uids), ("gid_map", &map.gids)] {
        let lines: Vec<String> = ranges.iter().map(IdRange::to_string).collect();
        std::fs::write(format!("/proc/{child}/{name}"), lines.join("\n"))?;
    }
    File::open(format!("/proc/{child}/ns/user")).map(UserNamespace)
}
