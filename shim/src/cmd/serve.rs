//! The long-lived process: set up in an order that loses nothing, then hand over to the driver.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use holdfast_proto::record::{Manager, SUPERVISOR_INSTANCE, run_dir};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::LocalSet;

use super::start::{ADDRESS_VARIABLE, EVENTS_VARIABLE, GROUP_VARIABLE, instance};
use crate::cli::Flags;
use crate::driver::{Config, Shim};
use crate::io::spill::policy::{OutputSettings, SettingsError};
use crate::logging;
use crate::offload;
use crate::owned_task::OwnedTask;
use crate::sys::{memory, process};

/// What the server writes into the readiness pipe when it serves; anything else there is an error's text.
pub(super) const READY: &str = "ready\n";

/// How long one call of the OCI runtime may take, unless `HOLDFAST_RUNTIME_TIMEOUT_MS` says otherwise. A loaded machine
/// needs seconds; a runtime that hangs must not keep a task busy for ever.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(120);
/// How long Delete waits for output that a slow reader has not taken: below the 10 s that CRI gives the whole Delete.
const DRAIN_DEADLINE: Duration = Duration::from_secs(7);
/// How long the shim's end waits for what is still done off the loop: a stuck disk must not keep it for ever.
const LAST_WORK: Duration = Duration::from_secs(2);

/// Why the server could not begin to serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The process was not started by `start`.
    #[error("the variable {0} is not set: the server is started by `start`, not by hand")]
    NotByStart(&'static str),
    /// The kernel refuses a part of the set-up.
    #[error("cannot {0}")]
    SetUp(&'static str, #[source] io::Error),
    /// The settings file; `start` has looked at it just before.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// Serves until nothing is left to look after.
///
/// # Errors
/// See [`ServeError`]. They are also written into the readiness pipe, as nobody else may hear them.
pub fn run(flags: &Flags) -> Result<(), ServeError> {
    // The listener and the readiness pipe are 0 and 1; on kernels that cannot, a careless daemon's fds stay open.
    let _ = process::close_inherited_fds();
    memory::bound_the_allocator();
    memory::keep_tunables_to_oneself();
    // Not by hand, where standard output may be anything.
    let config = config(flags)?;
    let inherited = process::take_inherited().map_err(|e| ServeError::SetUp("take the listening socket", e))?;
    let (listener, mut tell) = (inherited.0, Some(File::from(inherited.1)));
    let served = set_up(flags).and_then(|()| serve(config, listener, &mut tell));
    served.map_err(|(what, e)| {
        if let Some(mut tell) = tell {
            let _ = write!(tell, "cannot {what}: {e}");
        }
        ServeError::SetUp(what, e)
    })
}

fn config(flags: &Flags) -> Result<Config, ServeError> {
    let required = |name| std::env::var(name).map_err(|_| ServeError::NotByStart(name));
    let instance = instance(&flags.address);
    let manager = if instance == SUPERVISOR_INSTANCE {
        Manager::Holdfastd
    } else {
        Manager::Containerd { address: flags.address.clone() }
    };
    Ok(Config {
        namespace: flags.namespace.clone(),
        group: required(GROUP_VARIABLE)?,
        events_address: std::env::var(EVENTS_VARIABLE).unwrap_or_default(),
        instance,
        manager,
        address: required(ADDRESS_VARIABLE)?,
        run_dir: run_dir(),
        executable: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe")),
        runtime_deadline: milliseconds("HOLDFAST_RUNTIME_TIMEOUT_MS").unwrap_or(RUNTIME_DEADLINE),
        drain_deadline: milliseconds("HOLDFAST_DRAIN_TIMEOUT_MS").unwrap_or(DRAIN_DEADLINE),
        output: OutputSettings::load()?,
    })
}

fn milliseconds(variable: &str) -> Option<Duration> {
    std::env::var(variable).ok()?.parse().ok().map(Duration::from_millis)
}

/// What is left to do before the async runtime exists.
fn set_up(flags: &Flags) -> Result<(), (&'static str, io::Error)> {
    process::detach_stdio().map_err(|e| ("detach from the standard streams", e))?;
    // Out of the daemon's session and group, so that signals meant for those do not end the shim.
    let _ = nix::unistd::setsid();
    process::become_subreaper().map_err(|e| ("become a subreaper", e))?;
    // Without its log the shim still does its work: a supervisor may have none to offer.
    if logging::init(Path::new("log"), flags.debug).is_ok() {
        let _ = logging::redirect_stderr();
    }
    Ok(())
}

fn serve(config: Config, listener: OwnedFd, tell: &mut Option<File>) -> Result<(), (&'static str, io::Error)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|e| ("start the async runtime", e))?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let signals = Signals::new().map_err(|e| ("take signals", e))?;
        let shim = Shim::serve(config, listener).map_err(|e| ("serve the socket", e))?;
        // A child may have died before its signal could be seen; there is none yet, but an upgrade will have some.
        shim.reap();
        // If that `start` was killed, another one of the group may have found the socket already: go on, and end when
        // nobody comes.
        if let Some(mut tell) = tell.take()
            && let Err(e) = tell.write_all(READY.as_bytes())
        {
            tracing::warn!(error = %e, "the command that started this shim is gone, ignoring");
        }
        let _signals = OwnedTask::spawn(heed(shim.clone(), signals));
        shim.ended().await;
        if tokio::time::timeout(LAST_WORK, offload::finished()).await.is_err() {
            tracing::warn!("ending while a disk or a control group is still waited for");
        }
        Ok(())
    })
}

/// The signals that mean something to the shim. They are caught, not blocked: a mask would be inherited by the OCI runtime
/// and with it by the container.
struct Signals {
    child: Signal,
    terminate: Signal,
    interrupt: Signal,
    /// Caught so that they do nothing: at a limit for the size of files, a write then fails like on a full disk.
    _without_effect: [Signal; 2],
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            child: signal(SignalKind::child())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _without_effect: [signal(SignalKind::hangup())?, signal(SignalKind::from_raw(libc::SIGXFSZ))?],
        })
    }
}

/// Signals become the same inputs as everything else.
async fn heed(shim: Rc<Shim>, mut signals: Signals) {
    loop {
        // All branches may be dropped, since a signal that came stays noted in its stream. The order does not matter:
        // children are reaped whatever came.
        let stop = tokio::select! {
            _ = signals.child.recv() => false,
            _ = signals.terminate.recv() => true,
            _ = signals.interrupt.recv() => true,
        };
        shim.reap();
        if stop {
            tracing::info!("told to stop; containers keep running");
            shim.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_12_output_has_longer_than_a_loaded_reader_needs_and_less_than_the_whole_delete() {
        // Two seconds have lost the tails of logs on loaded machines; CRI gives the whole Delete ten.
        let (too_short, whole) = (Duration::from_secs(2), Duration::from_secs(10));
        assert!(DRAIN_DEADLINE >= too_short * 3 && DRAIN_DEADLINE + too_short < whole);
    }
}
