//! Where everything is. Two roots and an id give every path.

use std::path::PathBuf;

use holdfast_proto::record;

use crate::log_policy::Driver;

/// The namespace of the supervisor's own containers, in containerd's sense of the word.
pub const NAMESPACE: &str = "default";

/// The two roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// What a reboot voids, as `/run/holdfast`.
    pub run: PathBuf,
    /// What survives it, as `/var/lib/holdfast`.
    pub state: PathBuf,
}

impl Paths {
    /// Those of the environment, or the usual ones.
    pub fn from_environment() -> Self {
        Self { run: record::run_dir(), state: record::state_dir() }
    }

    /// The API socket unless configured elsewhere.
    pub fn api_socket(&self) -> PathBuf {
        self.run.join("holdfastd.sock")
    }

    /// Where shims deliver their events.
    pub fn event_socket(&self) -> PathBuf {
        self.run.join("events.sock")
    }

    /// What was told of late, for the supervisor's successor.
    pub fn event_log(&self) -> PathBuf {
        self.run.join("events.log")
    }

    /// How execs and removed containers ended, for the supervisor's successor.
    pub fn endings(&self) -> PathBuf {
        self.run.join("endings.log")
    }

    /// Held locked by the one supervisor of this run directory.
    pub fn lock_file(&self) -> PathBuf {
        self.run.join("holdfastd.lock")
    }

    /// Parent of the private directories in which clients make their FIFOs.
    pub fn client_io(&self) -> PathBuf {
        self.run.join("io")
    }

    /// All bundles of the supervisor's containers.
    pub fn bundles(&self) -> PathBuf {
        self.run.join("bundles").join(NAMESPACE)
    }

    /// One bundle.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.bundles().join(id)
    }

    /// The FIFO of a container's standard input.
    pub fn stdin(&self, id: &str) -> PathBuf {
        self.bundle(id).join("stdin")
    }

    /// The shim's record.
    pub fn record(&self, id: &str) -> PathBuf {
        record::container_dir(&self.run, record::SUPERVISOR_INSTANCE, NAMESPACE, id).join(record::FILE_NAME)
    }

    /// All containers that were asked for.
    pub fn containers(&self) -> PathBuf {
        self.state.join("containers").join(NAMESPACE)
    }

    /// What was asked for one container, and its log.
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// The container's log, if the driver keeps it in a file; rotated ones have `.1`, `.2`, … appended.
    pub fn log(&self, id: &str, driver: Driver) -> Option<PathBuf> {
        driver.file_name().map(|name| self.container(id).join(name))
    }

    /// The working directory that the OCI runtime may use for checkpoints.
    pub fn work(&self, id: &str) -> PathBuf {
        self.container(id).join("work")
    }
}

/// The directories that must exist before anything else, with mode 0700.
pub fn private_directories(paths: &Paths) -> [PathBuf; 4] {
    [paths.run.clone(), paths.bundles(), paths.client_io(), paths.containers()]
}
