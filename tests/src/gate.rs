//! Gates: files that the script in a container waits for, so that it goes on when a test says so and at no other time.

use std::fs;
use std::path::Path;

/// Shell words that wait until this gate is open.
pub fn wait_at(gate: &str) -> String {
    // Short naps rather than one long sleep: nothing wakes a sleeping first process when the file appears.
    format!("while ! [ -e /{gate} ]; do /bin/sleep 0.02; done")
}

/// A script that ends with this status once the gate `go` is open.
pub fn ends_later(status: u32) -> String {
    format!("{}; exit {status}", wait_at("go"))
}

/// Opens a gate for all containers that have this root file system.
///
/// # Panics
/// If nothing can be written there.
#[track_caller]
pub fn open(rootfs: impl AsRef<Path>, gate: &str) {
    let path = rootfs.as_ref().join(gate);
    fs::write(&path, "").unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}
