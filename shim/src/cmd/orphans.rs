//! Calls of the OCI runtime that outlive the shim which began them.
//!
//! A runtime that was making a container when its shim was killed goes on, and would have made it just after `delete` found
//! nothing to clean up. Every call has a log in the container's directory for as long as it runs, named after the shim's
//! session ([`record::call_name`]); so only where such a log is left is there anything to look for.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::oci::runner;
use crate::record;
use crate::sys::{process, signal};

/// How long the calls that are killed may take to die, all together.
const KILL_LIMIT: Duration = Duration::from_millis(200);

/// Lets the calls for the container with the directory `dir` come to their end, kills those that have not by `until`, and
/// removes what they have left in `run_dir`. To be called when the shim is dead.
pub(super) fn settle(run_dir: &Path, dir: &Path, until: Instant) {
    for (name, log) in logs(dir) {
        if let Some(session) = record::session_of(&name) {
            for pid in calls(session, &log) {
                let Some(call) = signal::hold(pid) else { continue };
                if !call.wait(until.saturating_duration_since(Instant::now())) {
                    runner::kill_group(pid);
                    call.wait((until + KILL_LIMIT).saturating_duration_since(Instant::now()));
                }
            }
        }
        let _ = fs::remove_dir_all(run_dir.join("c").join(&name));
    }
}

/// The logs of calls, with the calls' names.
fn logs(dir: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = entries.filter(|path| path.extension().is_some_and(|e| e == "log"));
    named.filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), path))).collect()
}

/// The living processes of a session that were given this log, which is how the runtime's command line begins. What they
/// have made is in sessions of its own.
fn calls(session: u32, log: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let log = log.as_os_str().as_encoded_bytes();
    pids.filter(|&pid| process::session(pid) == Some(session))
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|&byte| byte == 0).any(|word| word == log)
        })
        .collect()
}
