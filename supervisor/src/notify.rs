//! Readiness and leaving, as the service manager wants them.

use sd_notify::NotifyState;

/// Variables of the service manager's that no child may inherit: an OCI runtime that finds `NOTIFY_SOCKET` waits for a
/// readiness that never comes.
pub const PRIVATE_VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Tells the service manager, if there is one, that the API is served.
pub fn ready(status: &str) {
    if let Err(e) = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]) {
        tracing::warn!("cannot tell the service manager that we are ready: {e}");
    }
}

/// Tells the service manager, if there is one, that we leave.
pub fn stopping() {
    if let Err(e) = sd_notify::notify(&[NotifyState::Stopping]) {
        tracing::warn!("cannot tell the service manager that we stop: {e}");
    }
}
