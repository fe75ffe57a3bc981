//! The embedded OCI runtime's program, out of reach of containers (CVE-2019-5736).
//!
//! A process that enters a container can be seen there as `/proc/PID/exe`, and whoever can open that for writing owns the
//! host. So the runtime enters containers from a copy: the program seen through a read-only overlay that is mounted nowhere.
//! Nothing is copied, and there is no way to make it writable. The shim executes the copy at once; a runtime that was started
//! otherwise makes one and executes itself again, which on some machines takes as long as all else that it does.

use std::cell::RefCell;
use std::ffi::CString;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};

use crate::sys::mount_tree;

/// In the environment of a program that was executed from a copy. The program looks for itself whether what it runs from can
/// be written to; this says that it is not so by chance.
pub const MARK: &str = "_HOLDFAST_OCI_COPY";

thread_local! {
    /// The last one that was made.
    static LATEST: RefCell<Option<Copy>> = const { RefCell::new(None) };
}

struct Copy {
    program: PathBuf,
    /// Which file the program was then: device, inode, size.
    file: (u64, u64, u64),
    fd: Rc<OwnedFd>,
}

/// A descriptor (`O_PATH`, close-on-exec) of `program`, an absolute path, as seen through an overlay of its directory, if that
/// is the `expected` file.
///
/// # Errors
/// As the calls in fsopen(2) and openat(2): `EPERM` without the right to mount, `ENODEV` from a kernel that has no overlays;
/// `EINVAL` for a directory whose name means something to them; `ESTALE` for another file, as after an upgrade, or a link.
pub fn make(program: &Path, expected: &Metadata) -> io::Result<OwnedFd> {
    let (Some(dir), Some(name)) = (program.parent(), program.file_name()) else { return Err(Errno::ENOENT.into()) };
    if dir.as_os_str().as_bytes().iter().any(|byte| b":,\\".contains(byte)) {
        return Err(Errno::EINVAL.into());
    }
    // An overlay without an upper layer needs two lower ones; the second adds nothing.
    let lower = CString::new([dir.as_os_str().as_bytes(), b":/sys"].concat())?;
    let overlay = mount_tree::overlay(&lower)?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let copy = openat(overlay.root(), Path::new(name), flags, Mode::empty())?;
    let seen = fstat(&copy)?;
    // An overlay has a device of its own.
    if (seen.st_ino, u64::try_from(seen.st_size)) != (expected.ino(), Ok(expected.size())) {
        return Err(Errno::ESTALE.into());
    }
    Ok(copy)
}

/// A copy of `program` as it is now, made if there is none yet; none if there can be none: then it looks after itself. None
/// of a script either: its interpreter would have to open it by a descriptor that is closed by then.
pub(crate) fn of(program: &Path) -> Option<Rc<OwnedFd>> {
    let now = fs::metadata(program).ok()?;
    let file = (now.dev(), now.ino(), now.size());
    LATEST.with_borrow_mut(|latest| {
        if let Some(known) = latest.as_ref().filter(|known| known.program == program && known.file == file) {
            return Some(known.fd.clone());
        }
        if !is_elf(program) {
            return None;
        }
        let fd = make(program, &now).inspect_err(|e| tracing::debug!(error = %e, "no copy of the OCI runtime")).ok()?;
        let fd = Rc::new(fd);
        *latest = Some(Copy { program: program.to_owned(), file, fd: fd.clone() });
        Some(fd)
    })
}

fn is_elf(program: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(program).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

/// Lets the copy go; who needs one again makes it.
pub(crate) fn give_back() {
    LATEST.take();
}

/// Where a child that inherits `copy` finds it.
pub(crate) fn path(copy: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", copy.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::AsFd;

    use super::*;
    use crate::skip::skip;

    /// What a descriptor is of, by its inode.
    fn inode(fd: impl AsFd) -> u64 {
        fstat(fd).unwrap().st_ino
    }

    #[test]
    fn a_copy_is_of_the_program_as_it_is_now_and_of_no_script() {
        if !nix::unistd::geteuid().is_root() {
            return skip("needs root");
        }
        let dir = std::env::temp_dir().join(format!("holdfast-{}-own-copy", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let program = dir.join("program");
        let replace = |content: &[u8]| {
            let new = dir.join("new");
            fs::write(&new, content).unwrap();
            fs::rename(new, &program).unwrap();
            fs::metadata(&program).unwrap().ino()
        };
        let first_inode = replace(b"\x7fELF one");
        let first = of(&program).unwrap();
        assert_eq!(inode(&first), first_inode);
        assert!(Rc::ptr_eq(&first, &of(&program).unwrap()), "one is enough");
        let refusal = fs::OpenOptions::new().write(true).open(path(&first)).unwrap_err();
        assert_eq!(refusal.raw_os_error(), Some(libc::EROFS));

        // An upgrade.
        let second_inode = replace(b"\x7fELF two");
        assert_eq!(inode(of(&program).unwrap()), second_inode);
        assert_eq!(inode(&first), first_inode);
        replace(b"#!/bin/sh");
        assert!(of(&program).is_none());
        give_back();
        fs::remove_dir_all(dir).unwrap();
    }
}
