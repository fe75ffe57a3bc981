//! What was asked for, on disk: one directory per container below the state root, `config.json` in it ours, `spec.json`
//! the OCI one. Written by rename, so that a reader never sees half a file.
//!
//! Nothing is synced: a process's death loses nothing, and common filesystems write the content of a renamed file out
//! before the rename. A power cut may lose the last second.

use holdfast_proto::regular;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use thiserror::Error;

use crate::container::{Container, SCHEMA};
use crate::paths::Paths;

const CONFIG: &str = "config.json";
const SPEC: &str = "spec.json";

/// Why the store failed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Something could not be written.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something could not be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} is not a container's configuration")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A file of a newer holdfast.
    #[error("{path} has schema {schema}, this build reads up to {SCHEMA}")]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its schema.
        schema: u32,
    },
    /// A file that names another container than its directory.
    #[error("{path} is the configuration of container {id:?}, not of the directory's")]
    Misplaced {
        /// Which.
        path: PathBuf,
        /// The id in it.
        id: String,
    },
    /// Something could not be deleted.
    #[error("cannot delete {path}")]
    Delete {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes a directory and its parents with mode 0700; one that exists is fine.
///
/// # Errors
/// [`StoreError::Write`].
pub fn make_private_dir(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| StoreError::Write { path: path.to_owned(), source })
}

/// Replaces a file by rename; mode 0600.
///
/// # Errors
/// [`StoreError::Write`]; the old content stays then.
pub fn replace_file(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let temporary = path.with_extension("new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary); // the first failure is the one to tell
        StoreError::Write { path: path.to_owned(), source }
    })
}

/// Writes a new container with its OCI configuration.
///
/// # Errors
/// [`StoreError::Write`]; nothing is left then.
pub fn create(paths: &Paths, container: &Container, spec: &str) -> Result<(), StoreError> {
    let directory = paths.container(&container.id);
    let result = make_private_dir(&directory)
        .and_then(|()| make_private_dir(&paths.work(&container.id)))
        .and_then(|()| replace_file(&directory.join(SPEC), spec.as_bytes()))
        .and_then(|()| save(paths, container));
    if result.is_err() {
        let _ = fs::remove_dir_all(&directory); // the first failure is the one to tell
    }
    result
}

/// Writes what changed in a container that exists.
///
/// # Errors
/// [`StoreError::Write`].
pub fn save(paths: &Paths, container: &Container) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec_pretty(container).expect("a container has only string keys");
    replace_file(&paths.container(&container.id).join(CONFIG), &bytes)
}

/// The OCI configuration of a container.
///
/// # Errors
/// [`StoreError::Read`].
pub fn read_spec(paths: &Paths, id: &str) -> Result<String, StoreError> {
    let path = paths.container(id).join(SPEC);
    regular::read_to_string(&path).map_err(|source| StoreError::Read { path, source })
}

/// Replaces the OCI configuration of a container, from its next start on.
///
/// # Errors
/// [`StoreError::Write`].
pub fn replace_spec(paths: &Paths, id: &str, spec: &str) -> Result<(), StoreError> {
    replace_file(&paths.container(id).join(SPEC), spec.as_bytes())
}

/// Deletes all that is kept of a container, its log included. The configuration goes last, so that a deletion which was
/// interrupted is seen, and can be repeated.
///
/// # Errors
/// [`StoreError::Delete`]; what is gone already is no error.
pub fn delete(paths: &Paths, id: &str) -> Result<(), StoreError> {
    let directory = paths.container(id);
    let failed = |path: &Path, source| StoreError::Delete { path: path.to_owned(), source };
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(&directory, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| failed(&directory, e))?;
        if entry.file_name() == CONFIG {
            continue;
        }
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|e| failed(&path, e))?;
    }
    fs::remove_dir_all(&directory).map_err(|e| failed(&directory, e))
}

/// Reads one container by its directory's name.
///
/// # Errors
/// What is wrong, naming the file.
pub fn load(paths: &Paths, id: &str) -> Result<Container, StoreError> {
    #[derive(serde::Deserialize)]
    struct SchemaOnly {
        schema: u32,
    }
    let path = paths.container(id).join(CONFIG);
    let bytes = regular::read(&path).map_err(|source| StoreError::Read { path: path.clone(), source })?;
    let malformed = |source| StoreError::Malformed { path: path.clone(), source };
    let SchemaOnly { schema } = serde_json::from_slice(&bytes).map_err(malformed)?;
    if schema > SCHEMA {
        return Err(StoreError::Newer { path, schema });
    }
    let container: Container = serde_json::from_slice(&bytes).map_err(malformed)?;
    if container.id != id {
        return Err(StoreError::Misplaced { path, id: container.id });
    }
    Ok(container)
}
