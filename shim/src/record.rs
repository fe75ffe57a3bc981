//! The record on disk: replaced by rename on every change (schema and rules: `holdfast_proto::record`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use holdfast_proto::record::{FILE_NAME, Record};

/// The file in the bundle to which a record goes at last. Whoever deletes may be killed before its answer is out, and the
/// `delete` that comes then shall know it too. It goes with the bundle.
pub(crate) const LAST_NAME: &str = "last-record.json";

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
    // One that was left over keeps its own mode, and a new one has lost what the umask takes.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)
}

/// Puts the record of a container away into its bundle, and removes its directory as [`remove_dir`] does.
pub(crate) fn put_away(dir: &Path, bundle: &Path) {
    // If it cannot be moved there is only a worse answer to a question that is hardly ever asked.
    let _ = fs::rename(dir.join(FILE_NAME), bundle.join(LAST_NAME));
    remove_dir(dir);
}

/// Removes the directory of a container. Those of its namespace and instance stay: the next container will want them.
pub(crate) fn remove_dir(dir: &Path) {
    // Once more, since a record that stays names a container that is none.
    let removed = fs::remove_dir_all(dir).or_else(|_| fs::remove_dir_all(dir));
    if let Err(e) = removed
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), error = %e, "cannot remove the directory of a container, ignoring");
    }
}

/// The name for what belongs to one call of the OCI runtime: with the shim's pid, which is the session of the runtime too.
pub(crate) fn call_name(call: u64) -> String {
    format!("{}-{call}", std::process::id())
}

/// The session in a [`call_name`].
pub(crate) fn session_of(call_name: &str) -> Option<u32> {
    let (session, call) = call_name.split_once('-')?;
    call.parse::<u64>().ok()?;
    session.parse().ok()
}

/// Which boot this is; records of another are void.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}
