//! Where criu works while the OCI runtime makes or restores a checkpoint, and what is left of that afterwards.
//!
//! criu's log says what the runtime's error does not. It lies in criu's working directory, on a disk perhaps: whatever is
//! done there is done off the loop.

use std::path::{Path, PathBuf};
use std::rc::Weak;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::Shim;
use crate::lifecycle::CallId;
use crate::offload;
use crate::owned_task::OwnedTask;
use crate::record;

/// criu's working directory during one call of the runtime.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CriuWork {
    dir: PathBuf,
    /// Nobody asked for that place: it is removed when criu has ended.
    ours: bool,
    /// criu's log in it.
    log: PathBuf,
    /// Where the log is kept when the call has failed.
    kept: PathBuf,
}

impl CriuWork {
    /// `chosen`: where the client wants it, empty for nowhere. `log` is the name that the runtime gives criu's log.
    ///
    /// # Errors
    /// What cannot be made, and why. The directory itself is made by the runtime.
    pub(super) fn prepare(bundle: &Path, chosen: &str, log: &str) -> Result<Self, (PathBuf, io::Error)> {
        let ours = chosen.is_empty();
        let dir = if ours {
            // containerd puts a link to a disk there: criu's log may be too large for the bundle's memory.
            let work = bundle.join("work");
            record::make_dir(&work).map_err(|e| (work.clone(), e))?;
            work.join("criu-work")
        } else {
            chosen.into()
        };
        let (log, kept) = (dir.join(log), bundle.join(format!("criu-{log}")));
        Ok(Self { dir, ours, log, kept })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps what is worth it and removes the rest; the log's new path if there is one. Safe to repeat.
    fn clear(&self, failed: bool) -> Option<PathBuf> {
        // A runtime that fails before it has come to criu leaves no log.
        let kept = failed && fs::copy(&self.log, &self.kept).is_ok();
        if self.ours
            && let Err(e) = fs::remove_dir_all(&self.dir)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.dir.display(), error = %e, "cannot remove criu's working directory, ignoring");
        }
        kept.then(|| self.kept.clone())
    }
}

/// Clears up after criu, then tells the shim.
pub(super) fn clear(me: &Weak<Shim>, call: CallId, work: CriuWork, failed: bool) -> OwnedTask {
    let me = me.clone();
    OwnedTask::spawn(async move {
        let cleared = offload::run(move || work.clear(failed)).await;
        if let Some(shim) = me.upgrade() {
            shim.criu_cleared(call, cleared.ok().flatten());
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A bundle that goes with the test.
    struct Bundle(PathBuf);

    impl Bundle {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("holdfast-criu-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Bundle {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn a_failure_leaves_the_log_and_nothing_else() {
        let bundle = Bundle::new("failure");
        let work = CriuWork::prepare(bundle.path(), "", "dump.log").unwrap();
        let kept = bundle.path().join("criu-dump.log");
        assert_eq!(work.clear(true), None, "criu was never run");
        fs::create_dir(work.dir()).unwrap();
        fs::write(work.dir().join("dump.log"), "why").unwrap();
        assert_eq!(work.clear(true), Some(kept.clone()));
        assert_eq!(fs::read_to_string(kept).unwrap(), "why");
        assert!(!work.dir().exists());
    }

    #[test]
    fn a_success_leaves_nothing_and_a_chosen_place_is_left_alone() {
        let bundle = Bundle::new("success");
        let work = CriuWork::prepare(bundle.path(), "", "restore.log").unwrap();
        fs::create_dir(work.dir()).unwrap();
        fs::write(work.dir().join("restore.log"), "fine").unwrap();
        assert_eq!(work.clear(false), None);
        assert_eq!(fs::read_dir(bundle.path().join("work")).unwrap().count(), 0);

        let chosen = bundle.path().join("mine");
        fs::create_dir(&chosen).unwrap();
        fs::write(chosen.join("restore.log"), "why").unwrap();
        let work = CriuWork::prepare(bundle.path(), chosen.to_str().unwrap(), "restore.log").unwrap();
        assert_eq!(work.clear(true), Some(bundle.path().join("criu-restore.log")));
        assert!(chosen.join("restore.log").exists());
    }
}
