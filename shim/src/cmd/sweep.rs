//! The hidden action that a failed Create ends with: what the OCI runtime began and did not undo is ended and removed. And
//! that of a `delete`: what a dead shim has kept of the output goes. In a child, since control groups and filesystems can
//! stall.

use std::io::{self, Read};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cgroup::{self, CgroupError, Paths};
use crate::io::spill::tree::Home;
use crate::sys::mount::{MountError, unmount_all};

/// The longest request that is read, in bytes.
const REQUEST_LIMIT: u64 = 1 << 20;

/// What is left over, perhaps.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SweepRequest {
    /// A control group that was not there before the Create.
    pub cgroup: Option<Paths>,
    /// Where the root filesystem was mounted.
    pub rootfs: Option<PathBuf>,
    /// Whose output was kept.
    #[serde(default)]
    pub spills: Vec<Home>,
}

/// Why something may be left.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The request cannot be read.
    #[error("cannot read what is to be swept")]
    Read(#[source] io::Error),
    /// The request is none.
    #[error("malformed request to sweep")]
    Malformed(#[source] serde_json::Error),
    /// The control group is still there.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A mount is still there.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Kept output is still there.
    #[error("cannot remove the output that was kept in {0}")]
    Spill(PathBuf, #[source] io::Error),
}

/// Reads a [`SweepRequest`] as JSON, ends all processes in the control group, removes it, unmounts, and removes what was
/// kept; how much that was goes to standard error.
///
/// # Errors
/// See [`SweepError`]: the first failure. It does not keep the rest from being done.
pub fn run(stdin: impl Read) -> Result<(), SweepError> {
    let mut text = Vec::new();
    stdin.take(REQUEST_LIMIT).read_to_end(&mut text).map_err(SweepError::Read)?;
    let request: SweepRequest = serde_json::from_slice(&text).map_err(SweepError::Malformed)?;
    let removed = request.cgroup.map_or(Ok(()), |paths| cgroup::remove(&paths));
    let unmounted = request.rootfs.map_or(Ok(()), |rootfs| unmount_all(&rootfs));
    let cleared = request.spills.iter().map(clear).fold(Ok(()), Result::and);
    removed?;
    unmounted?;
    cleared
}

fn clear(home: &Home) -> Result<(), SweepError> {
    let bytes = home.remove().map_err(|e| SweepError::Spill(home.path(), e))?;
    if bytes > 0 {
        eprintln!("{bytes} bytes of output of {} that nobody had read are removed", home.id);
    }
    Ok(())
}
