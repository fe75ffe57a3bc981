//! The state directory of a container: `<root>/<id>/`, and the status that follows from it and from the process.
//!
//! | file | what |
//! |---|---|
//! | `state.json` | [`Record`], replaced by rename |
//! | `spec.json` | the specification as it was applied; `exec`, `update` and the hooks read it, so that later changes of the bundle do nothing |
//! | `notify.sock` | exists from create to start: its absence is what makes a container `running` |
//!
//! No status is stored. A directory without a process is one that `create` is still making or has left half-made.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::unistd::getuid;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::clock::rfc3339_now;
use crate::error::Failure;
use crate::process::{Life, ProcessName};

/// The socket on which the container's process waits for `start`.
pub(crate) const NOTIFY_SOCKET: &str = "notify.sock";
const STATE_FILE: &str = "state.json";
const SPEC_FILE: &str = "spec.json";

/// What is remembered of a container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Record {
    /// The container.
    pub(crate) id: String,
    /// Canonical path of the bundle.
    pub(crate) bundle: PathBuf,
    /// Canonical path of the root filesystem.
    pub(crate) rootfs: PathBuf,
    /// When `create` began.
    pub(crate) created: String,
    /// Who created it.
    pub(crate) owner: u32,
    /// The process that runs or ran `create`.
    pub(crate) creator: ProcessName,
    /// The container's first process, once there is one.
    pub(crate) init: Option<ProcessName>,
    /// Where its processes live.
    pub(crate) cgroup: Cgroup,
    /// Whether it has a session keyring of its own, which execs join.
    pub(crate) new_keyring: bool,
    /// As in the specification.
    pub(crate) annotations: HashMap<String, String>,
}

/// The status of a container, as the OCI names it, and `paused`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Status {
    /// `create` has not finished.
    Creating,
    /// The process waits for `start`.
    Created,
    /// The process runs.
    Running,
    /// All its processes are frozen.
    Paused,
    /// The process has exited.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// The directory that holds the state directories.
pub(crate) struct RunRoot<'a>(&'a Path);

impl<'a> RunRoot<'a> {
    /// Wraps `--root`.
    pub(crate) fn new(root: &'a Path) -> RunRoot<'a> {
        RunRoot(root)
    }

    /// `$HOLDFAST_RUN_DIR/oci`; never runc's directory.
    pub(crate) fn default_dir() -> PathBuf {
        holdfast_proto::record::run_dir().join("oci")
    }

    /// Claims the id: the directory is made here and by nobody else.
    ///
    /// # Errors
    /// [`Failure::Exists`] when the id is taken, [`Failure::InvalidId`], or the file system's refusal.
    pub(crate) fn claim(&self, id: &str) -> Result<StateDir, Failure> {
        check_id(id)?;
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder.recursive(true).create(self.0).map_err(Failure::file("create the directory", self.0))?;
        let path = self.0.join(id);
        builder.recursive(false).create(&path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Failure::Exists { id: id.to_owned() },
            _ => Failure::File { what: "create the directory", path: path.clone(), source },
        })?;
        Ok(StateDir { path })
    }

    /// The state directory of an existing container, half-made ones included.
    ///
    /// # Errors
    /// [`Failure::NoContainer`] when there is none.
    pub(crate) fn find(&self, id: &str) -> Result<StateDir, Failure> {
        let path = self.0.join(id);
        if check_id(id).is_err() || !path.is_dir() {
            return Err(Failure::NoContainer { id: id.to_owned() });
        }
        Ok(StateDir { path })
    }

    /// A complete container.
    ///
    /// # Errors
    /// [`Failure::NoContainer`] when there is none or `create` has not got far enough.
    pub(crate) fn load(&self, id: &str) -> Result<Container, Failure> {
        let dir = self.find(id)?;
        match dir.record()? {
            Some(record) => Ok(Container { dir, record }),
            None => Err(Failure::NoContainer { id: id.to_owned() }),
        }
    }

    /// All ids that have a state directory.
    ///
    /// # Errors
    /// When the root exists but cannot be read.
    pub(crate) fn ids(&self) -> Result<Vec<String>, Failure> {
        let entries = match fs::read_dir(self.0) {
            Ok(entries) => entries,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(Failure::File { what: "read", path: self.0.to_owned(), source }),
        };
        let mut ids: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|id| check_id(id).is_ok())
            .collect();
        ids.sort();
        Ok(ids)
    }
}

/// An id must be usable as the name of a directory and nothing more.
fn check_id(id: &str) -> Result<(), Failure> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id == "." || id == ".." || id.len() > 1024 || !id.chars().all(allowed) {
        return Err(Failure::InvalidId { id: id.to_owned() });
    }
    Ok(())
}

/// One state directory.
pub(crate) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The socket on which the container's process waits for `start`.
    pub(crate) fn notify_socket(&self) -> PathBuf {
        self.path.join(NOTIFY_SOCKET)
    }

    /// The record, or `None` if `create` has not written one.
    ///
    /// # Errors
    /// When it is there but cannot be read.
    pub(crate) fn record(&self) -> Result<Option<Record>, Failure> {
        let path = self.path.join(STATE_FILE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| Failure::Json { path, source }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Failure::File { what: "read", path, source }),
        }
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// The file system's refusal.
    pub(crate) fn save(&self, record: &Record) -> Result<(), Failure> {
        let path = self.path.join(STATE_FILE);
        let new = self.path.join(".state.json");
        write_json(&new, record)?;
        fs::rename(&new, &path).map_err(Failure::file("rename", new))
    }

    /// Keeps the specification as it was applied.
    ///
    /// # Errors
    /// The file system's refusal.
    pub(crate) fn save_spec(&self, spec: &Spec) -> Result<(), Failure> {
        write_json(&self.path.join(SPEC_FILE), spec)
    }

    /// The specification as it was applied.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn spec(&self) -> Result<Spec, Failure> {
        let path = self.path.join(SPEC_FILE);
        let bytes = fs::read(&path).map_err(Failure::file("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|source| Failure::Json { path, source })
    }

    /// Removes the directory and all in it; that it is gone already is success.
    ///
    /// # Errors
    /// The file system's refusal.
    pub(crate) fn remove(&self) -> Result<(), Failure> {
        match fs::remove_dir_all(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Failure::File { what: "remove", path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Failure> {
    let bytes = serde_json::to_vec(value).map_err(|source| Failure::Json { path: path.to_owned(), source })?;
    let mut file = File::create(path).map_err(Failure::file("create", path))?;
    file.write_all(&bytes).map_err(Failure::file("write", path))
}

/// A container that has a record.
pub(crate) struct Container {
    /// Its state directory.
    pub(crate) dir: StateDir,
    /// What is remembered of it.
    pub(crate) record: Record,
}

impl Container {
    /// What is true now, seen from the process and its cgroup.
    pub(crate) fn status(&self) -> Status {
        match self.record.init {
            Some(init) if init.life() == Life::Alive => {
                if self.record.cgroup.is_frozen() {
                    Status::Paused
                } else if self.dir.notify_socket().exists() {
                    Status::Created
                } else {
                    Status::Running
                }
            }
            None if self.record.creator.life() == Life::Alive => Status::Creating,
            _ => Status::Stopped,
        }
    }

    /// The first process, if it is alive.
    ///
    /// # Errors
    /// [`Failure::NotRunning`] when it is not.
    pub(crate) fn live_init(&self) -> Result<ProcessName, Failure> {
        match self.record.init {
            Some(init) if init.life() == Life::Alive => Ok(init),
            _ => Err(Failure::NotRunning { id: self.record.id.clone() }),
        }
    }
}

impl Record {
    /// The record of a container that is about to be made.
    pub(crate) fn new(id: &str, bundle: PathBuf, rootfs: PathBuf, cgroup: Cgroup, spec: &Spec) -> Record {
        let pid = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
        Record {
            id: id.to_owned(),
            bundle,
            rootfs,
            created: rfc3339_now(),
            owner: getuid().as_raw(),
            creator: ProcessName::of(pid).unwrap_or(ProcessName { pid, start_time: 0 }),
            init: None,
            cgroup,
            new_keyring: false,
            annotations: spec.annotations().clone().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_would_leave_the_root_are_refused() {
        for id in ["", ".", "..", "a/b", "../x", "a b", "ä", "a\0b"] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        for id in ["a", "A-1_b+c.d", "...", "0123456789abcdef"] {
            assert!(check_id(id).is_ok(), "{id:?}");
        }
    }
}
