//! Filesystems that a program mounts: types `fuse.NAME` and `fuse3.NAME`, through `mount.fuse` and `mount.fuse3`.
//!
//! The program ends once the filesystem is there; what serves it goes on by itself until the mount is gone, in a session
//! of its own and with nothing of ours but a file in memory.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::mount::MountEntry;
use super::reaper;

/// How long a helper may take: a little less than what the shim gives the whole work.
const LIMIT: Duration = Duration::from_secs(100);
/// The most that is told of what a helper printed, in bytes.
const OUTPUT_LIMIT: u64 = 4 << 10;

/// Why a helper mounted nothing.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It is not installed.
    #[error("it needs the program {0}, which is not in PATH")]
    Missing(&'static str),
    /// It cannot be run.
    #[error("cannot run {0}")]
    Run(&'static str, #[source] io::Error),
    /// It took too long and was killed.
    #[error("{0} did not end within {limit} s and was killed", limit = LIMIT.as_secs())]
    Late(&'static str),
    /// It says so.
    #[error("{program} ended with status {status}: {said}")]
    Failed {
        /// The helper.
        program: &'static str,
        /// Its exit status.
        status: u32,
        /// What it printed.
        said: String,
    },
    /// It says that all is well.
    #[error("{0} ended well and has mounted nothing")]
    Nothing(&'static str),
}

/// The helper and the filesystem's own name, for a type that needs one.
pub(crate) fn helper_of(kind: &str) -> Option<(&'static str, &str)> {
    [("fuse3.", "mount.fuse3"), ("fuse.", "mount.fuse")]
        .into_iter()
        .find_map(|(prefix, program)| kind.strip_prefix(prefix).map(|name| (program, name)))
}

/// Runs a helper to its end.
///
/// # Errors
/// See [`HelperError`]; all but [`HelperError::Nothing`].
pub(crate) fn run(program: &'static str, name: &str, entry: &MountEntry, target: &Path) -> Result<(), HelperError> {
    let cannot = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => HelperError::Missing(program),
        _ => HelperError::Run(program, e),
    };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let output = memfd_create("mount-helper", flags).map(File::from).map_err(|e| cannot(e.into()))?;
    let copy = || output.try_clone().map(Stdio::from).map_err(cannot);
    let mut command = Command::new(program);
    command.arg(&entry.source).arg(target);
    for option in &entry.options {
        command.arg("-o").arg(option);
    }
    command.args(["-t", name]).current_dir("/");
    let child = command.stdin(Stdio::null()).stdout(copy()?).stderr(copy()?).spawn().map_err(cannot)?;
    let Some(exit) = reaper::wait_for(child.id(), LIMIT) else {
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        return Err(HelperError::Late(program));
    };
    // Whoever serves the filesystem may hold it for good; it must not grow.
    let _ = fcntl(output.as_fd(), FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE));
    match exit.status.code() {
        0 => Ok(()),
        status => Err(HelperError::Failed { program, status, said: printed(output) }),
    }
}

/// On one line, as all errors are.
fn printed(mut output: File) -> String {
    let mut text = Vec::new();
    let read = output.rewind().and_then(|()| output.take(OUTPUT_LIMIT).read_to_end(&mut text));
    match read {
        Ok(_) if !text.trim_ascii().is_empty() => {
            let text = String::from_utf8_lossy(&text);
            text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
        }
        _ => "it said nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_of_a_type_names_the_helper() {
        assert_eq!(helper_of("fuse3.fuse-overlayfs"), Some(("mount.fuse3", "fuse-overlayfs")));
        assert_eq!(helper_of("fuse.sshfs"), Some(("mount.fuse", "sshfs")));
        assert_eq!(helper_of("fuse"), None);
        assert_eq!(helper_of("overlay"), None);
    }
}
