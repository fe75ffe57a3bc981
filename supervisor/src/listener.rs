//! The API's socket: passed by the socket unit, kept by the service manager since the last life, or bound here.
//!
//! Who connects while holdfastd is being replaced (a restart, an upgrade, a kill, a watchdog that has had enough) waits in
//! the socket's backlog instead of being refused. With `holdfastd.socket` that is so in any case; without, because the
//! service manager keeps a socket that was bound here in its store (`FileDescriptorStoreMax=`, sd_pid_notify_with_fds(3)).

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::{fs, io};

use crate::{notify, sys};

/// Begins the names of what is in the store.
const STORED: &str = "api-";

/// Gives the socket at `path`, for root only. Only for who holds the lock, so that a file in the way is a dead supervisor's.
///
/// # Errors
/// When it is to be bound and cannot be.
pub fn api(path: &Path) -> io::Result<UnixListener> {
    let mut stored = None;
    let mut of_unit = None;
    for (name, listener) in sys::passed_listeners() {
        if name.starts_with(STORED) {
            stored = Some((name, listener));
        } else {
            of_unit = Some(listener);
        }
    }
    match (of_unit, stored) {
        // The unit has bound its path anew: what was bound here before is nobody's address any more.
        (Some(listener), stored) => {
            stored.inspect(|(name, _)| notify::unstore(name));
            Ok(listener)
        }
        (None, Some((name, listener))) if store_name(path).is_ok_and(|now| now == name) => Ok(listener),
        (None, stored) => {
            stored.inspect(|(name, _)| notify::unstore(name));
            let listener = bind(path)?;
            notify::store(&store_name(path)?, listener.as_fd());
            Ok(listener)
        }
    }
}

/// Binds a socket for root only, in place of what is in the way.
///
/// # Errors
/// As unlink(2), bind(2) and chmod(2).
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Under which name the socket at `path` is stored: with the file's identity, since one that was removed, replaced or
/// configured away meanwhile is no longer how clients come to the socket.
fn store_name(path: &Path) -> io::Result<String> {
    let file = fs::symlink_metadata(path)?;
    Ok(format!("{STORED}{:x}-{:x}", file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_socket_that_was_bound_anew_has_another_name() {
        let dir = std::env::temp_dir().join(format!("hf-listener-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("s");
        assert!(store_name(&path).is_err(), "there is none yet");
        let _first = bind(&path).unwrap();
        let name = store_name(&path).unwrap();
        assert_eq!(store_name(&path).unwrap(), name);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // Kept, so that its number is not given away again.
        fs::rename(&path, dir.join("old")).unwrap();
        let _second = bind(&path).unwrap();
        assert_ne!(store_name(&path).unwrap(), name);
        fs::remove_dir_all(&dir).unwrap();
    }
}
