//! Gates: files that the script in a container waits for, so that it goes on when a test says so and at no other time.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::eventually;

/// Shell words that ask for all the memory there is. Whoever else asks for some at the same moment, the kernel chooses this one.
pub const GREEDY: &str = "echo 1000 >/proc/self/oom_score_adj; exec /bin/busybox tail /dev/zero";

/// Shell words that wait until this gate is open.
pub fn wait_at(gate: &str) -> String {
    // Short naps rather than one long sleep: nothing wakes a sleeping first process when the file appears.
    format!("while ! [ -e /{gate} ]; do /bin/sleep 0.1; done")
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

/// Makes a gate of the kind at which a process needs no memory to wait, which might be refused to it.
///
/// # Panics
/// If it cannot be made.
#[track_caller]
pub fn make_still(rootfs: impl AsRef<Path>, gate: &str) {
    mkfifo(&rootfs.as_ref().join(gate), Mode::S_IRWXU).unwrap_or_else(|e| panic!("cannot make the FIFO {gate}: {e}"));
}

/// As [`wait_at`], at one that [`make_still`] has made.
pub fn wait_still_at(gate: &str) -> String {
    format!("read line </{gate} ")
}

/// As [`open`], for the one who waits at such a gate.
///
/// # Panics
/// If nobody comes to wait there.
#[track_caller]
pub fn open_still(rootfs: impl AsRef<Path>, gate: &str) {
    let path = rootfs.as_ref().join(gate);
    // Without waiting for a reader, which would be in vain if it were dead.
    let open = || OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
    let mut gate = eventually("somebody should wait at the gate", open);
    gate.write_all(b"\n").unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}
