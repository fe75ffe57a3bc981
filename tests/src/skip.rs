//! Skipping a test, loudly: every skip is written down, and `make test` fails for one that is not permitted.

use std::{env, fs, thread};

/// Notes that the running test cannot run here, and why. The caller returns right after.
///
/// The note goes to `$HOLDFAST_SKIPS_DIR/<test>`, which `tests/run.sh` compares with `tests/permitted-skips.txt`. The
/// name is that of the test's thread, so call it from there.
///
/// # Panics
/// If the note cannot be written, so that no skip goes unseen.
pub fn skip(reason: &str) {
    let name = thread::current().name().unwrap_or("unnamed").replace("::", "-");
    eprintln!("SKIPPED {name}: {reason}");
    if let Some(dir) = env::var_os("HOLDFAST_SKIPS_DIR") {
        let path = std::path::Path::new(&dir).join(&name);
        fs::write(&path, reason).unwrap_or_else(|e| panic!("cannot note a skip in {}: {e}", path.display()));
    }
}

/// Whether this process may do what ring 3 does.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
