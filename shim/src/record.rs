//! The record on disk: replaced by rename on every change (schema and rules: `holdfast_proto::record`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use holdfast_proto::record::{FILE_NAME, Record};

/// Makes the directory of a container, mode 0700 with all its parents.
///
/// # Errors
/// As `mkdir(2)`.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Replaces the record in `dir`: a reader sees the old one or the new one, whole.
///
/// # Errors
/// As `open(2)`, `write(2)` and `rename(2)`; the old record stays.
pub(crate) fn write(dir: &Path, record: &Record) -> io::Result<()> {
    let bytes = serde_json::to_vec(record)?;
    replace(&dir.join(FILE_NAME), &bytes, 0o600)
}

/// Replaces a file by a new one with these bytes and this mode, whatever the umask.
///
/// # Errors
/// As [`write`].
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let written = write_new(&new, bytes, mode).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(bytes)
}

/// Removes the directory of a container, and those above it that are empty then: its namespace's, its instance's.
pub(crate) fn remove_dir(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
    for parent in dir.ancestors().skip(1).take(2) {
        match fs::remove_dir(parent) {
            // One that could not even be made does not keep those above it.
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return,
        }
    }
}

/// Which boot this is; records of another are void.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_that_was_made_in_part_leaves_none_of_its_parents() {
        let root = std::env::temp_dir().join(format!("holdfast-record-{}", std::process::id()));
        fs::create_dir_all(root.join("instance")).unwrap();
        remove_dir(&root.join("instance/namespace/id"));
        assert!(!root.join("instance").exists());
        fs::create_dir_all(root.join("instance/namespace/other")).unwrap();
        remove_dir(&root.join("instance/namespace/id"));
        assert!(root.join("instance/namespace/other").exists(), "somebody else's");
        fs::remove_dir_all(root).unwrap();
    }
}
