//! `record.json`: the state file of one container, written by its shim and read by whoever comes after a crash.
//!
//! One file per container, `<run root>/tasks/<instance>/<namespace>/<id>/record.json`, mode 0600, replaced by rename on
//! every change. It lives in `/run` and is not synced: durable means that it survives the death of any process, not a
//! reboot. A record whose `boot_id` differs from the kernel's is void.
//!
//! Compatibility: unknown fields are ignored, missing optional ones get their defaults. [`SCHEMA`] grows when the
//! meaning of an existing field changes; a reader refuses what is newer than itself. No environment variable of a
//! container or exec is ever in a record.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use serde::{Deserialize, Serialize};

use crate::regular;

/// The schema that this build writes, and the newest that it reads.
pub const SCHEMA: u32 = 1;

/// The name of the file in a container's directory.
pub const FILE_NAME: &str = "record.json";

/// The root of the run-time tree when `HOLDFAST_RUN_DIR` is not set.
pub const DEFAULT_RUN_DIR: &str = "/run/holdfast";

/// The root of what survives a reboot when `HOLDFAST_STATE_DIR` is not set.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/holdfast";

/// The instance under which holdfastd's own containers are filed. Those of a containerd are filed under a hash of its
/// address: 16 hexadecimal digits, which this word never equals.
pub const SUPERVISOR_INSTANCE: &str = "holdfastd";

/// All that a reader needs to find a container again, or to say truly how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// `/proc/sys/kernel/random/boot_id` at the time of writing.
    pub boot_id: String,
    /// Who answers for the container.
    pub shim: ShimIdentity,
    /// Who asked for the container.
    pub manager: Manager,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// The shim's group: the pod's sandbox id, or the id itself.
    pub group: String,
    /// The bundle directory, absolute.
    pub bundle: PathBuf,
    /// The OCI runtime that made the container and must be used for every later call.
    pub runtime: RuntimeRef,
    /// It is no container but a pod's sandbox: its only process holds namespaces, and no OCI runtime knows of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sandbox: bool,
    /// How often it was told that processes of the container were killed for want of memory; not only those below.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub times_out_of_memory: u32,
    /// The init process first, then execs in the order of their addition.
    pub processes: Vec<ProcessRecord>,
}

/// The shim process. A pid alone is never trusted: compare the start time too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimIdentity {
    /// Its pid in the pid namespace of the writer.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot, proc_pid_stat(5).
    pub start_time: u64,
    /// Its version, as in Cargo.toml.
    pub version: String,
    /// Where it serves ttrpc, with the `unix://` prefix.
    pub address: String,
}

/// The manager that a container belongs to; others only look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Manager {
    /// A containerd, named by its gRPC address.
    Containerd {
        /// As given by `-address`.
        address: String,
    },
    /// holdfastd.
    Holdfastd,
}

/// Which OCI runtime, and how it was called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeRef {
    /// Absolute path, or a name to be looked up in `PATH`.
    pub binary: String,
    /// The `--root` that it was given, namespace included.
    pub root: PathBuf,
    /// Whether it was given `--systemd-cgroup`.
    #[serde(default)]
    pub systemd_cgroup: bool,
}

/// One process of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Empty for the init process.
    pub exec_id: String,
    /// 0 while it has none.
    pub pid: u32,
    /// As [`ShimIdentity::start_time`]; 0 while it has no pid.
    #[serde(default)]
    pub start_time: u64,
    /// Where it is in its life.
    pub state: ProcessState,
    /// Set once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitRecord>,
    /// Its exit had been announced before this was written: it is delivered, or waits with the shim's events.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exit_told: bool,
    /// The kernel has killed it for want of memory, as far as can be told: it ended as by SIGKILL within seconds of such a
    /// kill in the container, and no more execs are called so than were killed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// Whether it has a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// As given at Create or Exec.
    #[serde(default)]
    pub stdin: String,
    /// As given at Create or Exec.
    #[serde(default)]
    pub stdout: String,
    /// As given at Create or Exec.
    #[serde(default)]
    pub stderr: String,
    /// The program that takes its output, if it is one of the shim's children (`binary://`) and runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<LoggerRecord>,
}

/// A logger: it outlives its shim by what it has left to write, or until `delete` ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggerRecord {
    /// Its pid.
    pub pid: u32,
    /// As [`ShimIdentity::start_time`].
    pub start_time: u64,
}

/// The states that a reader can meet. Transient ones (creating, pausing) are the shim's own business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessState {
    /// Made, not started.
    Created,
    /// Started.
    Running,
    /// Frozen by Pause.
    Paused,
    /// Ended; `exit` is set.
    Stopped,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit code, or 128 + signal number.
    pub status: u32,
    /// When it was reaped, in nanoseconds since the Unix epoch.
    pub at_unix_ns: u64,
}

/// Why a record could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// The file cannot be opened or read.
    Io(PathBuf, io::Error),
    /// The file is no record.
    Malformed(PathBuf, serde_json::Error),
    /// The file was written by a newer holdfast.
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        schema: u32,
    },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, _) => write!(f, "cannot read the record {}", path.display()),
            Self::Malformed(path, _) => write!(f, "{} is not a record", path.display()),
            Self::Newer { path, schema } => {
                write!(f, "the record {} has schema {schema}, this build reads up to {SCHEMA}", path.display())
            }
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(_, e) => Some(e),
            Self::Malformed(_, e) => Some(e),
            Self::Newer { .. } => None,
        }
    }
}

impl Record {
    /// Reads the record at `path`.
    ///
    /// # Errors
    /// See [`ReadError`]. The schema is looked at before the rest, so that a newer record is called newer rather than
    /// malformed.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let bytes = regular::read(path).map_err(|e| ReadError::Io(path.to_owned(), e))?;
        Self::parse(path, &bytes)
    }

    /// As [`Record::read`], from bytes that were read already; `path` only names them in errors.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ReadError> {
        #[derive(Deserialize)]
        struct SchemaOnly {
            schema: u32,
        }
        let malformed = |e| ReadError::Malformed(path.to_owned(), e);
        let SchemaOnly { schema } = serde_json::from_slice(bytes).map_err(malformed)?;
        if schema > SCHEMA {
            return Err(ReadError::Newer { path: path.to_owned(), schema });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// The init process, which a well-formed record always has.
    pub fn init(&self) -> Option<&ProcessRecord> {
        self.processes.iter().find(|p| p.exec_id.is_empty())
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// The root of the run-time tree: `HOLDFAST_RUN_DIR`, else [`DEFAULT_RUN_DIR`].
pub fn run_dir() -> PathBuf {
    root("HOLDFAST_RUN_DIR", DEFAULT_RUN_DIR)
}

/// The root of what survives a reboot: `HOLDFAST_STATE_DIR`, else [`DEFAULT_STATE_DIR`].
pub fn state_dir() -> PathBuf {
    root("HOLDFAST_STATE_DIR", DEFAULT_STATE_DIR)
}

fn root(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).filter(|v| !v.is_empty()).map_or_else(|| default.into(), PathBuf::from)
}

/// The directory of one container: its record and pid files.
pub fn container_dir(run_dir: &Path, instance: &str, namespace: &str, id: &str) -> PathBuf {
    namespace_dir(run_dir, instance, namespace).join(id)
}

/// The directory of a namespace: those of its containers, and the events that wait in its shims.
pub fn namespace_dir(run_dir: &Path, instance: &str, namespace: &str) -> PathBuf {
    run_dir.join("tasks").join(instance).join(namespace)
}
