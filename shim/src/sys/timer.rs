//! A timer for times below a millisecond, which Tokio's do not know.

use std::io;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::ready;

/// One at a time, as exact as the kernel is.
pub(crate) struct Timer(AsyncFd<ready::Alarm>);

impl Timer {
    /// One that is not set.
    ///
    /// # Errors
    /// As `timerfd_create(2)` and `epoll_ctl(2)`.
    pub(crate) fn new() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        Ok(Self(ready::register(ready::Alarm(timer), Interest::READABLE)?))
    }

    /// Sets it anew, whatever it was set to.
    ///
    /// # Errors
    /// As `timerfd_settime(2)`.
    pub(crate) fn set(&self, after: Duration) -> io::Result<()> {
        let once = Expiration::OneShot(TimeSpec::from_duration(after));
        Ok(self.0.get_ref().0.set(once, TimerSetTimeFlags::empty())?)
    }

    /// Returns once the time has passed, or earlier if it had already passed before the last [`Timer::set`]. Safe to cancel.
    pub(crate) async fn expired(&self) {
        // Not read: setting it anew forgets that it had expired, and readiness is told by edges.
        if let Ok(mut ready) = self.0.readable().await {
            ready.clear_ready();
        }
    }
}
