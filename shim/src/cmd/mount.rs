//! The hidden actions that mount and unmount a root filesystem in a child of the shim, so that the shim itself never
//! stalls on a filesystem. The request comes as JSON on standard input; a failure is one line on standard error.

use std::io::{self, Read};
use std::path::Path;

use crate::sys::mount::{MountError, MountRequest, mount_all, unmount_all};
use crate::sys::process;

/// The longest request that is read, in bytes: more than a ttrpc message can hold.
const REQUEST_LIMIT: u64 = 16 << 20;

/// Why nothing was mounted, or something is still mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountCommandError {
    /// The request cannot be read.
    #[error("cannot read the mount request")]
    Read(#[source] io::Error),
    /// The request is none.
    #[error("malformed mount request")]
    Malformed(#[source] serde_json::Error),
    /// Whoever asked has ended.
    #[error("cannot depend on the shim")]
    Orphan(#[source] io::Error),
    /// The work failed.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Reads a [`MountRequest`] as JSON and performs it.
///
/// # Errors
/// See [`MountCommandError`]; nothing stays mounted.
pub fn run_mount(stdin: impl Read) -> Result<(), MountCommandError> {
    let mut text = Vec::new();
    stdin.take(REQUEST_LIMIT).read_to_end(&mut text).map_err(MountCommandError::Read)?;
    let request: MountRequest = serde_json::from_slice(&text).map_err(MountCommandError::Malformed)?;
    // Else a mount could come after the `delete` of a shim that was killed.
    if request.shim != 0 {
        process::die_with(request.shim).map_err(MountCommandError::Orphan)?;
    }
    Ok(mount_all(&request)?)
}

/// Removes every mount at or below `rootfs`.
///
/// # Errors
/// [`MountCommandError::Mount`].
pub fn run_unmount(rootfs: &Path) -> Result<(), MountCommandError> {
    Ok(unmount_all(rootfs)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_none_is_refused() {
        for text in ["", "{}", "[]", "{\"rootfs\":\"/x\"}", "{\"rootfs\":\"/x\",\"mounts\":[{}]}"] {
            assert!(matches!(run_mount(text.as_bytes()), Err(MountCommandError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn nothing_is_mounted_for_a_shim_that_has_ended() {
        let text = format!("{{\"shim\":{},\"rootfs\":\"/nowhere\",\"mounts\":[]}}", u32::MAX);
        assert!(matches!(run_mount(text.as_bytes()), Err(MountCommandError::Orphan(_))));
    }

    #[test]
    fn a_request_without_mounts_does_nothing() {
        let text = "{\"rootfs\":\"/nowhere/at/all\",\"mounts\":[]}";
        assert!(run_mount(text.as_bytes()).is_ok());
    }
}
