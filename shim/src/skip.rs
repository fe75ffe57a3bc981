//! Skipping a unit test, loudly: as the integration tests' `skip()` does, which this crate's own tests cannot use.

/// Notes that the running test cannot run here, and why. The caller returns right after.
///
/// `make test` fails for a note that `tests/permitted-skips.txt` does not permit.
pub(crate) fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("unnamed").replace("::", "-");
    eprintln!("SKIPPED {name}: {reason}");
    if let Some(dir) = std::env::var_os("HOLDFAST_SKIPS_DIR") {
        let noted = std::fs::write(std::path::Path::new(&dir).join(name), reason);
        noted.unwrap_or_else(|e| panic!("cannot note a skip: {e}"));
    }
}
