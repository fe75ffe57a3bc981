//! Keeps the host's copy of this program out of reach of containers (CVE-2019-5736).
//!
//! `create`, `run` and `exec` go on from another copy: that of [`own_copy`], which a shim executes to begin with, or else a
//! sealed memory file.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use holdfast_shim::oci::own_copy::{self, MARK};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sendfile::sendfile;
use nix::sys::stat::fstat;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::fexecve;

use crate::error::Failure;

const OWN: &str = "/proc/self/exe";

/// Returns in a process that runs from a protected copy; executes one first if need be.
///
/// # Errors
/// When neither kind of copy can be made or executed.
pub(crate) fn ensure() -> Result<(), Failure> {
    if is_protected() {
        // Executed by a descriptor, it is named after that until it says otherwise.
        let _ = nix::sys::prctl::set_name(c"holdfast-oci");
        return Ok(());
    }
    let own = File::open(OWN).map_err(Failure::file("open", OWN))?;
    // The path may name another file than the one that runs, after an upgrade.
    let overlay = || own_copy::make(&std::fs::read_link(OWN)?, &own.metadata()?);
    let copy = match overlay() {
        Ok(copy) => copy,
        Err(_) => memory(&own).map_err(Failure::sys("copy the own program into memory"))?,
    };
    Err(reexecute(&copy))
}

/// Whether a copy was meant to be executed, and this program is sealed or on a read-only file system.
fn is_protected() -> bool {
    if std::env::var_os(MARK).is_none() {
        return false;
    }
    let Ok(own) = File::open(OWN) else { return false };
    let sealed =
        fcntl(own.as_fd(), FcntlArg::F_GET_SEALS).is_ok_and(|seals| seals & SealFlag::F_SEAL_WRITE.bits() != 0);
    sealed || fstatvfs(&own).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY))
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
    let failed = |source: io::Error| Failure::File { what: "execute the protected copy of", path: OWN.into(), source };
    let args: Result<Vec<CString>, _> = std::env::args_os().map(|arg| CString::new(arg.into_vec())).collect();
    let mut env: Vec<CString> = std::env::vars_os()
        .filter(|(name, _)| name != MARK)
        .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
        .collect();
    let (Ok(args), Ok(mark)) = (args, CString::new(format!("{MARK}=1"))) else {
        return failed(io::ErrorKind::InvalidInput.into());
    };
    env.push(mark);
    match fexecve(copy, &args, &env) {
        Ok(never) => match never {},
        Err(errno) => failed(errno.into()),
    }
}
