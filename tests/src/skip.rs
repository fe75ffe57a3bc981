//! Skipping a test, loudly: every skip is written down, and `make test` and `make test-vm` fail for one that is not permitted.

use std::cell::RefCell;
use std::{env, fs, thread};

use crate::{Scene, process, programs};

thread_local! {
    static REASON: RefCell<Option<String>> = const { RefCell::new(None) };
    static PART: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes the skips of this thread those of a part of its test, until it is `None` again.
pub fn set_part(name: Option<&str>) {
    PART.set(name.map(str::to_owned));
}

/// Notes that the running test cannot run here, and why. The caller returns right after.
///
/// The note goes to `$HOLDFAST_SKIPS_DIR/<test>`, which `tests/judge.sh` compares with the list of what is permitted there:
/// `tests/permitted-skips.txt`, or `tests/vm/permitted-skips.txt`. The name is that of the test's thread, so call it from
/// there; behind it, of a test that has parts, comes the part's.
///
/// # Panics
/// If the note cannot be written, so that no skip goes unseen.
pub fn skip(reason: &str) {
    let mut name = thread::current().name().unwrap_or("unnamed").replace("::", "-");
    if let Some(part) = PART.with_borrow(Clone::clone) {
        name = format!("{name}-{part}");
    }
    eprintln!("SKIPPED {name}: {reason}");
    REASON.set(Some(reason.into()));
    if let Some(dir) = env::var_os("HOLDFAST_SKIPS_DIR") {
        let path = std::path::Path::new(&dir).join(&name);
        fs::write(&path, reason).unwrap_or_else(|e| panic!("cannot note a skip in {}: {e}", path.display()));
    }
}

/// Why this thread's test was skipped, if it was since the last call: with one test thread, all tests run on it.
pub fn take_reason() -> Option<String> {
    REASON.take()
}

/// Whether this process may do what ring 3 does.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Why criu cannot do its part on this machine, if so.
///
/// # Panics
/// If it cannot be run.
#[track_caller]
pub fn criu_refusal(scene: &Scene) -> Option<&'static str> {
    let Some(criu) = programs::peer("criu") else { return Some("criu is neither installed nor to be had") };
    let check = process::run(scene.command(criu).arg("check"));
    eprint!("{}", String::from_utf8_lossy(&check.stderr));
    // Any other is not criu's own: a program that does not run here at all.
    assert!(matches!(check.status.code(), Some(0 | 1)), "criu check: {}", check.status);
    (!check.status.success()).then_some("criu refuses this machine")
}
