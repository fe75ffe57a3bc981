//! The hidden action that makes the process which holds a sandbox's namespaces. The request comes as JSON on standard
//! input. The process is left behind, for the shim to adopt as it adopts a container's; who it is stands in a file of the
//! bundle before it begins, so that whoever cleans up after a killed shim finds it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use holdfast_proto::regular;
use serde::{Deserialize, Serialize};

use crate::lifecycle::Pid;
use crate::record;
use crate::sys::namespaces::{self, Child, Kind};
use crate::sys::process;

/// The file in the bundle.
const FILE_NAME: &str = "holder";
/// The longest request that is read, in bytes.
const REQUEST_LIMIT: u64 = 1 << 20;

/// What is to be held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRequest {
    /// The process that asks.
    pub shim: Pid,
    /// New ones, or those at a path. Of all other kinds the process has the shim's.
    pub namespaces: BTreeMap<Kind, Option<PathBuf>>,
    /// For a new uts namespace; empty: as it is.
    pub hostname: String,
    /// To be set within.
    pub sysctls: BTreeMap<String, String>,
}

/// Why there is no such process.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The request cannot be read.
    #[error("cannot read what is to be held")]
    Read(#[source] io::Error),
    /// The request is none.
    #[error("malformed request to hold namespaces")]
    Malformed(#[source] serde_json::Error),
    /// A namespace that is to be joined.
    #[error("cannot join the {0:?} namespace {1}")]
    Join(Kind, PathBuf, #[source] io::Error),
    /// A step of the set-up.
    #[error("cannot {0}")]
    SetUp(&'static str, #[source] io::Error),
    /// A sysctl.
    #[error("cannot set sysctl {0}")]
    Sysctl(String, #[source] io::Error),
    /// The file with its pid.
    #[error("cannot write {0}")]
    Pid(PathBuf, #[source] io::Error),
}

/// Reads a [`HoldRequest`] as JSON and leaves a process that does as it says.
///
/// # Errors
/// See [`HoldError`]: then no process is left.
pub fn run(stdin: impl Read, bundle: &Path) -> Result<(), HoldError> {
    let mut text = Vec::new();
    stdin.take(REQUEST_LIMIT).read_to_end(&mut text).map_err(HoldError::Read)?;
    let request: HoldRequest = serde_json::from_slice(&text).map_err(HoldError::Malformed)?;
    // Else it could come after the `delete` of a shim that was killed.
    process::die_with(request.shim).map_err(|e| HoldError::SetUp("depend on the shim", e))?;
    enter(&request)?;
    let [(awaits_settled, tells_settled), (awaits_go, tells_go)] = [pipe()?, pipe()?];
    match namespaces::fork().map_err(|e| HoldError::SetUp("make the process", e))? {
        Child::Itself => {
            drop((awaits_settled, tells_go));
            namespaces::hold(tells_settled, awaits_go)
        }
        Child::Pid(pid) => {
            drop((tells_settled, awaits_go));
            let mut awaits_settled = awaits_settled;
            awaits_settled.read_exact(&mut [0]).map_err(|e| HoldError::SetUp("set the process apart", e))?;
            let path = bundle.join(FILE_NAME);
            let start_time = process::start_time(pid).unwrap_or(0);
            let written = record::replace(&path, format!("{pid} {start_time}").as_bytes(), 0o600);
            // Unless it hears this it goes again.
            written.and_then(|()| { &tells_go }.write_all(b"\n")).map_err(|e| HoldError::Pid(path, e))
        }
    }
}

/// The end to read from, and that to write to.
fn pipe() -> Result<(File, File), HoldError> {
    let pipe = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
    let (read, write) = pipe.map_err(|e| HoldError::SetUp("make a pipe", e.into()))?;
    Ok((File::from(read), File::from(write)))
}

/// The process that was left for the sandbox in `bundle`: its pid and its start time.
pub(crate) fn read(bundle: &Path) -> Option<(Pid, u64)> {
    let text = regular::read_to_string(&bundle.join(FILE_NAME)).ok()?;
    let (pid, start_time) = text.trim().split_once(' ')?;
    Some((pid.parse().ok()?, start_time.parse().ok()?))
}

/// What an earlier try has left names a stranger by now.
pub(crate) fn clear(bundle: &Path) {
    let _ = fs::remove_file(bundle.join(FILE_NAME));
}

fn enter(request: &HoldRequest) -> Result<(), HoldError> {
    let mut new = Vec::new();
    for (kind, path) in &request.namespaces {
        match path {
            Some(path) => {
                namespaces::join(*kind, path).map_err(|e| HoldError::Join(*kind, path.clone(), e))?;
            }
            None => new.push(*kind),
        }
    }
    namespaces::make(&new).map_err(|e| HoldError::SetUp("make the namespaces", e))?;
    if new.contains(&Kind::Network) {
        // Every program expects it, and OCI runtimes do that for networks alone which they make.
        namespaces::bring_up_loopback().map_err(|e| HoldError::SetUp("bring up the loopback device", e))?;
    }
    if new.contains(&Kind::Uts) && !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname).map_err(|e| HoldError::SetUp("set the host name", e.into()))?;
    }
    for (name, value) in &request.sysctls {
        set(name, value).map_err(|e| HoldError::Sysctl(name.clone(), e))?;
    }
    Ok(())
}

/// A dot separates; where names of devices hold dots, slashes do and dots stay, as sysctl(8) has it.
fn set(name: &str, value: &str) -> io::Result<()> {
    let swapped: String = name
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        })
        .collect();
    let is_slashed = name.find(['.', '/']).is_some_and(|at| name[at..].starts_with('/'));
    let name = if is_slashed { name } else { &swapped };
    fs::write(Path::new("/proc/sys").join(name), value)
}
