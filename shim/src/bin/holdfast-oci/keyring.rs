//! The session keyring of a container: without one, its processes would share the keys of whoever called us.

use nix::errno::Errno;

use crate::error::Failure;
use crate::sys;

/// Search permission for the owner, on top of what the possessor has; so that a process of the container that does not
/// possess the keyring can still look for keys in it.
const POSSESSOR_ALL_USER_SEARCH: u32 = 0x3f00_0000 | 0x003b_0000;

/// Gives this process, and with it all that it forks, the container's session keyring, made on first use.
///
/// # Errors
/// As `keyctl(2)`. A kernel without keyrings is no error: there is nothing to share then.
pub(crate) fn join(id: &str) -> Result<(), Failure> {
    let name = sys::c_string(format!("_ses.{id}").as_bytes())
        .map_err(|_| Failure::Sys { what: "name a session keyring", source: Errno::EINVAL })?;
    match sys::join_session_keyring(&name) {
        Err(Errno::ENOSYS) => Ok(()),
        Ok(serial) => match sys::set_key_permissions(serial, POSSESSOR_ALL_USER_SEARCH) {
            // Joined, not made: somebody of another user owns it.
            Ok(()) | Err(Errno::EACCES | Errno::EPERM) => Ok(()),
            Err(source) => Err(Failure::Sys { what: "set the permissions of the session keyring", source }),
        },
        Err(source) => Err(Failure::Sys { what: "join the session keyring", source }),
    }
}
