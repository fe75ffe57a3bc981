//! Keeps the host's copy of this program out of reach of containers (CVE-2019-5736).
//!
//! A process that enters a container can be seen there as `/proc/PID/exe`, and whoever can open that for writing owns
//! the host. So `create`, `run` and `exec` go on from another copy: the program itself seen through a read-only overlay
//! that is mounted nowhere (nothing is copied, and there is no way to make it writable), or else a sealed memory file.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, openat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sendfile::sendfile;
use nix::sys::stat::{Mode, fstat};
use nix::unistd::fexecve;

use crate::error::Failure;
use crate::sys;

/// Names the descriptor of the protected copy to the program that runs from it; verified, not trusted.
const MARK: &str = "_HOLDFAST_OCI_EXE";

/// Returns in a process that runs from a protected copy; executes one first if need be.
///
/// # Errors
/// When neither kind of copy can be made or executed.
pub(crate) fn ensure() -> Result<(), Failure> {
    if is_protected() {
        return Ok(());
    }
    let own = File::open("/proc/self/exe").map_err(Failure::file("open", "/proc/self/exe"))?;
    let copy = match overlay(&own) {
        Ok(copy) => copy,
        Err(_) => memory(&own).map_err(Failure::sys("copy the own program into memory"))?,
    };
    Err(reexecute(&copy))
}

/// Whether the descriptor in the mark is this very program, and sealed or on a read-only file system.
fn is_protected() -> bool {
    let Some(fd) = std::env::var(MARK).ok().and_then(|text| text.parse::<i32>().ok()) else { return false };
    let path = format!("/proc/self/fd/{fd}");
    let (Ok(marked), Ok(own)) = (std::fs::metadata(&path), std::fs::metadata("/proc/self/exe")) else { return false };
    use std::os::unix::fs::MetadataExt;
    if (marked.dev(), marked.ino()) != (own.dev(), own.ino()) {
        return false;
    }
    let Ok(file) = File::open(&path) else { return false };
    let sealed =
        fcntl(file.as_fd(), FcntlArg::F_GET_SEALS).is_ok_and(|seals| seals & SealFlag::F_SEAL_WRITE.bits() != 0);
    let read_only =
        nix::sys::statvfs::fstatvfs(&file).is_ok_and(|fs| fs.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    if sealed || read_only {
        // The kernel holds the copy from now on; the number is free for what a caller may want to preserve.
        return nix::unistd::close(fd).is_ok();
    }
    false
}

/// The program through an overlay of its directory. Two layers, since an overlay without an upper one needs them; the
/// second adds nothing.
fn overlay(own: &File) -> Result<OwnedFd, Errno> {
    let path = std::fs::read_link("/proc/self/exe").map_err(|_| Errno::ENOENT)?;
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::ENOENT) };
    // These mean something to the overlay's option parser.
    if dir.as_os_str().as_bytes().iter().any(|byte| b":,\\".contains(byte)) {
        return Err(Errno::EINVAL);
    }
    let mut lower = dir.as_os_str().as_bytes().to_vec();
    lower.extend_from_slice(b":/sys");
    let lower = CString::new(lower).map_err(|_| Errno::EINVAL)?;
    let mount = sys::detached_overlay(&lower)?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let copy = openat(mount.as_fd(), Path::new(name), flags, Mode::empty())?;
    // The path may name another file than the one that runs, after an upgrade.
    let (seen, real) = (fstat(&copy)?, fstat(own)?);
    if seen.st_ino != real.st_ino || seen.st_size != real.st_size {
        return Err(Errno::ESTALE);
    }
    Ok(copy)
}

/// The program in a memory file that nobody can change any more.
fn memory(own: &File) -> Result<OwnedFd, Errno> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag, and execute memory files without it.
    let copy = memfd_create(c"holdfast-oci", flags | MFdFlags::from_bits_retain(nix::libc::MFD_EXEC))
        .or_else(|_| memfd_create(c"holdfast-oci", flags))?;
    let mut left = usize::try_from(fstat(own)?.st_size).unwrap_or(usize::MAX);
    while left > 0 {
        match sendfile(&copy, own, None, left)? {
            0 => return Err(Errno::EIO),
            sent => left -= sent,
        }
    }
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(copy)
}

/// Executes the copy with our arguments and environment; returns only on failure.
fn reexecute(copy: &OwnedFd) -> Failure {
    let failed = |source: io::Error| Failure::File {
        what: "execute the protected copy of",
        path: "/proc/self/exe".into(),
        source,
    };
    if let Err(errno) = sys::keep_across_exec(copy) {
        return failed(errno.into());
    }
    let args: Result<Vec<CString>, _> = std::env::args_os().map(|arg| CString::new(arg.into_vec())).collect();
    let mut env: Vec<CString> = std::env::vars_os()
        .filter(|(name, _)| name != MARK)
        .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
        .collect();
    let (Ok(args), Ok(mark)) = (args, CString::new(format!("{MARK}={}", copy.as_raw_fd()))) else {
        return failed(io::ErrorKind::InvalidInput.into());
    };
    env.push(mark);
    match fexecve(copy, &args, &env) {
        Ok(never) => match never {},
        Err(errno) => failed(errno.into()),
    }
}
