//! What the service manager is told (sd_notify(3)): readiness, reloads, leaving, and that the loop still turns. Without a
//! service manager all of it does nothing.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Variables of the service manager's that no child may inherit. An OCI runtime that finds `NOTIFY_SOCKET` waits for a
/// readiness that never comes; the others speak of this very process, or of one life of the unit, which a shim outlives.
pub const PRIVATE_VARIABLES: [&str; 15] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "MANAGERPID",
    "MANAGERPIDFDID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
];

/// Tells that every container is classified, or that a [`reloading`] is over; the API is served since before.
pub fn ready(status: &str) {
    tell("that we are ready", &[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells that the settings are being read anew; [`ready`] must follow, whether they were taken or refused.
pub fn reloading() {
    // Since systemd 253 a reload is dated, so that it cannot be taken for an earlier one; older ones ignore that.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell("that we reload", &[NotifyState::Reloading, now]),
        Err(e) => tracing::warn!("cannot tell the service manager that we reload: there is no clock: {e}"),
    }
}

/// Tells what is being done, for `systemctl status`.
pub fn status(words: &str) {
    tell("what we do", &[NotifyState::Status(words)]);
}

/// Tells that we leave.
pub fn stopping() {
    tell("that we stop", &[NotifyState::Stopping]);
}

/// Asks for more time, from now on, before a start or stop that is under way counts as hung (`TimeoutStartSec=`,
/// `TimeoutStopSec=`). A time that the manager grants anyway is not shortened.
pub fn extend_timeout(time: Duration) {
    let usec = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    tell("that we need more time", &[NotifyState::ExtendTimeoutUsec(usec)]);
}

/// Gives a descriptor to the service manager, which passes it to the next life of this unit under this name. Does nothing
/// more than waste a message if the unit allows none.
pub fn store(name: &str, fd: BorrowedFd<'_>) {
    if let Err(e) = sd_notify::notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[fd]) {
        tracing::warn!("cannot give the service manager {name} to keep: {e}");
    }
}

/// Has the service manager forget what was [`store`]d under this name.
pub fn unstore(name: &str) {
    tell("what need not be kept", &[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

fn tell(what: &str, states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!("cannot tell the service manager {what}: {e}");
    }
}

/// The unit's `WatchdogSec=`. To be served by the main loop and nothing else: a loop that is wedged must be missed.
#[derive(Debug)]
pub struct Watchdog(Option<Interval>);

impl Watchdog {
    /// As the service manager's environment asks for it. Must be called within the async runtime.
    pub fn from_environment() -> Self {
        Self(sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()).map(|limit| {
            // Half of it, as sd_watchdog_enabled(3) recommends.
            let mut interval = interval(limit / 2);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        }))
    }

    /// Waits until the watchdog must be told, for ever if there is none. May be dropped at any time.
    pub async fn due(&mut self) {
        match &mut self.0 {
            Some(interval) => drop(interval.tick().await),
            None => std::future::pending().await,
        }
    }

    /// Tells that the loop turns.
    pub fn tell(&self) {
        tell("that we are alive", &[NotifyState::Watchdog]);
    }
}
