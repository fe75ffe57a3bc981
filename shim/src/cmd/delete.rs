//! `delete`: clean up after a shim that is gone (contract 7.2). Safe to run twice, and also when nothing is wrong: the
//! daemon runs it at the end of every container's life.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use containerd_shim_protos::api::DeleteResponse;
use holdfast_proto::record::{FILE_NAME, ReadError, Record, container_dir, run_dir};
use holdfast_proto::regular;
use protobuf::MessageField;

use super::start::instance;
use crate::cgroup;
use crate::cli::Flags;
use crate::driver::{chain, socket_path};
use crate::oci::command::{self, Call, Runtime};
use crate::oci::log::{self, FailureKind};
use crate::oci::runner::{self, ChildStdio};
use crate::options::Options;
use crate::sys::{mount, process, reaper, signal};
use crate::{record, wire};

/// The daemon gives the whole command five seconds.
const RUNTIME_LIMIT: Duration = Duration::from_secs(3);
/// What containerd calls an exit of which nobody knows the status.
const STATUS_LOST: u32 = 255;
/// A process that we killed.
const KILLED: u32 = 137;

/// Nothing sensible could be done: then the daemon keeps the bundle.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the bundle {0}")]
pub struct DeleteError(PathBuf, #[source] io::Error);

/// Cleans up and gives the encoded answer. What went wrong on the way goes to `warn`, line by line, and does not keep the
/// rest from being done.
///
/// # Errors
/// [`DeleteError`].
pub fn run(flags: &Flags, warn: &mut dyn FnMut(String)) -> Result<Vec<u8>, DeleteError> {
    let bundle = match &flags.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(|e| DeleteError(".".into(), e))?,
    };
    let dir = container_dir(&run_dir(), &instance(&flags.address), &flags.namespace, &flags.id);
    let record = read_record(&dir, warn);
    let pid = record.as_ref().and_then(Record::init).map(|init| init.pid).filter(|&pid| pid != 0);
    let pid = pid.or_else(|| read_pid(&bundle)).unwrap_or(0);
    let alive = is_alive(record.as_ref(), pid);
    if alive {
        if let Err(e) = kill_cgroup(pid) {
            // The runtime kills what it can, below.
            warn(format!("cannot end all processes of {}: {e}", flags.id));
        }
        kill_init(record.as_ref(), pid);
    }
    if let Err(text) = delete_container(flags, &bundle, record.as_ref(), &dir) {
        warn(format!("cannot delete the container {}: {text}", flags.id));
    }
    if let Err(e) = mount::unmount_all(&bundle.join("rootfs")) {
        warn(chain(&e));
    }
    let answer = answer(record.as_ref(), pid, alive);
    if let Some(record) = &record {
        remove_stale_socket(record);
    }
    record::remove_dir(&dir);
    Ok(wire::bytes(&answer))
}

fn read_record(dir: &Path, warn: &mut dyn FnMut(String)) -> Option<Record> {
    let path = dir.join(FILE_NAME);
    match path.try_exists() {
        Ok(false) => None,
        _ => {
            let bytes = regular::read(&path).map_err(|e| ReadError::Io(path.clone(), e));
            let record = bytes.and_then(|bytes| Record::parse(&path, &bytes));
            record.map_err(|e| warn(chain(&e))).ok().filter(|r| r.boot_id == record::boot_id())
        }
    }
}

fn read_pid(bundle: &Path) -> Option<u32> {
    regular::read_to_string(&bundle.join("init.pid")).ok()?.trim().parse().ok()
}

/// A pid alone may be somebody else's by now; without a record the runtime alone decides.
fn is_alive(record: Option<&Record>, pid: u32) -> bool {
    let recorded = record.and_then(Record::init).map_or(0, |init| init.start_time);
    recorded != 0 && process::start_time(pid) == Some(recorded)
}

/// In a shared pid namespace the runtime alone may leave processes behind.
fn kill_cgroup(pid: u32) -> Result<(), String> {
    let paths = cgroup::Paths::of_process(pid).map_err(|e| chain(&e))?;
    match cgroup::kill_all(&paths) {
        Ok(_) | Err(cgroup::CgroupError::Shared(_) | cgroup::CgroupError::Gone(_)) => Ok(()),
        Err(e) => Err(chain(&e)),
    }
}

/// Also if the runtime is gone, or has no control group for the container. Held first and looked at again then, so that
/// it is the very process.
fn kill_init(record: Option<&Record>, pid: u32) {
    if let Some(held) = signal::hold(pid)
        && is_alive(record, pid)
    {
        held.kill();
    }
}

fn delete_container(flags: &Flags, bundle: &Path, record: Option<&Record>, dir: &Path) -> Result<(), String> {
    let runtime = runtime(flags, bundle, record)?;
    record::make_dir(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    let log = dir.join("delete.log");
    let arguments = command::arguments(&runtime, &flags.id, &log, &Call::Delete { force: true });
    let output = runner::memory_file(b"").map_err(|e| e.to_string())?;
    let stdio = ChildStdio { stdin: None, stdout: output.try_clone().ok(), stderr: output.try_clone().ok() };
    let pid = runner::spawn(&runtime.binary, &arguments, stdio)
        .map_err(|e| format!("cannot start {}: {e}", runtime.binary.display()))?;
    let Some(exit) = reaper::wait_for(pid, RUNTIME_LIMIT) else {
        runner::kill_group(pid);
        return Err(format!("{} did not end within {} s", runtime.binary.display(), RUNTIME_LIMIT.as_secs()));
    };
    if exit.status.code() == 0 {
        return Ok(());
    }
    let said = fs::read(&log).ok().and_then(|log| log::last_error(&log)).unwrap_or_else(|| runner::printed(output));
    match log::classify(&said) {
        FailureKind::NotFound => Ok(()),
        _ => Err(said),
    }
}

/// The runtime that made the container: what the record says, else what the bundle says, else what would be chosen now.
fn runtime(flags: &Flags, bundle: &Path, record: Option<&Record>) -> Result<Runtime, String> {
    if let Some(used) = record.map(|r| &r.runtime).filter(|used| !used.binary.is_empty()) {
        let binary = PathBuf::from(&used.binary);
        return Ok(Runtime { binary, root: used.root.clone(), systemd_cgroup: used.systemd_cgroup });
    }
    let mut options = Options::read(&bundle.join("options.json")).unwrap_or_default();
    if options.binary_name.is_empty()
        && let Ok(binary) = regular::read_to_string(&bundle.join("runtime"))
    {
        binary.trim().clone_into(&mut options.binary_name);
    }
    let shim = std::env::current_exe().unwrap_or_default();
    runner::choose(&options, &shim, &run_dir(), &flags.namespace).map_err(|e| e.to_string())
}

/// The true status if it was recorded; else what is known of it.
fn answer(record: Option<&Record>, pid: u32, killed: bool) -> DeleteResponse {
    let recorded = record.and_then(Record::init).and_then(|init| init.exit);
    let lost = || (if killed || record.is_none() { KILLED } else { STATUS_LOST }, reaper::now_unix_ns());
    let (status, at) = recorded.map_or_else(lost, |exit| (exit.status, exit.at_unix_ns));
    DeleteResponse {
        pid,
        exit_status: status,
        exited_at: MessageField::some(wire::timestamp(at)),
        ..DeleteResponse::default()
    }
}

/// Only if its shim is provably dead.
fn remove_stale_socket(record: &Record) {
    let shim = &record.shim;
    let path = socket_path(&shim.address);
    let refused = || {
        let connected = std::os::unix::net::UnixStream::connect(path);
        connected.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    };
    if process::start_time(shim.pid) != Some(shim.start_time) && refused() {
        let _ = fs::remove_file(path);
    }
}
