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
use crate::logging;
use crate::owned_task::OwnedTask;
use crate::sys::{memory, process};

/// What the server writes into the readiness pipe when it serves; anything else there is an error's text.
pub(super) const READY: &str = "ready\n";

/// How long one call of the OCI runtime may take, unless `HOLDFAST_RUNTIME_TIMEOUT_MS` says otherwise. A loaded machine
/// needs seconds; a runtime that hangs must not keep a task busy for ever.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(120);
/// How long Delete waits for output that a slow reader has not taken: below the 10 s that CRI gives the whole Delete.
const DRAIN_DEADLINE: Duration = Duration::from_secs(7);
/// The on-demand thread: how long it waits for more work before it ends, and its stack.
const THREAD_IDLE: Duration = Duration::from_millis(100);
const THREAD_STACK: usize = 128 << 10;

/// Why the server could not begin to serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The process was not started by `start`.
    #[error("the variable {0} is not set: the server is started by `start`, not by hand")]
    NotByStart(&'static str),
    /// The kernel refuses a part of the set-up.
    #[error("cannot {0}")]
    SetUp(&'static str, #[source] io::Error),
}

/// Serves until nothing is left to look after.
///
/// # Errors
/// See [`ServeError`]. They are also written into the readiness pipe, as nobody else may hear them.
pub fn run(flags: &Flags) -> Result<(), ServeError> {
    let config = config(flags)?;
    let (listener, tell) = set_up(flags).map_err(|(what, e)| ServeError::SetUp(what, e))?;
    let mut tell = Some(File::from(tell));
    match serve(config, listener, &mut tell) {
        Ok(()) => Ok(()),
        Err((what, e)) => {
            if let Some(mut tell) = tell {
                let _ = write!(tell, "cannot {what}: {e}");
            }
            Err(ServeError::SetUp(what, e))
        }
    }
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
    })
}

fn milliseconds(variable: &str) -> Option<Duration> {
    std::env::var(variable).ok()?.parse().ok().map(Duration::from_millis)
}

/// Everything before the async runtime exists. Gives the listener and the readiness pipe.
fn set_up(flags: &Flags) -> Result<(OwnedFd, OwnedFd), (&'static str, io::Error)> {
    // The listener and the readiness pipe are 0 and 1; on kernels that cannot, a careless daemon's fds stay open.
    let _ = process::close_inherited_fds();
    memory::bound_the_allocator();
    let inherited = process::take_inherited().map_err(|e| ("take the listening socket", e))?;
    process::detach_stdio().map_err(|e| ("detach from the standard streams", e))?;
    // Out of the daemon's session and group, so that signals meant for those do not end the shim.
    let _ = nix::unistd::setsid();
    process::become_subreaper().map_err(|e| ("become a subreaper", e))?;
    // Without its log the shim still does its work: a supervisor may have none to offer.
    if logging::init(Path::new("log"), flags.debug).is_ok() {
        let _ = logging::redirect_stderr();
    }
    Ok(inherited)
}

fn serve(config: Config, listener: OwnedFd, tell: &mut Option<File>) -> Result<(), (&'static str, io::Error)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // One thread at rest, and one more only while a disk or a control group is waited for.
        .max_blocking_threads(1)
        .thread_keep_alive(THREAD_IDLE)
        .thread_stack_size(THREAD_STACK)
        .build()
        .map_err(|e| ("start the async runtime", e))?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let signals = Signals::new().map_err(|e| ("take signals", e))?;
        let shim = Shim::serve(config, listener).map_err(|e| ("serve the socket", e))?;
        // A child may have died before its signal could be seen; there is none yet, but an upgrade will have some.
        shim.reap();
        if let Some(mut tell) = tell.take() {
            tell.write_all(READY.as_bytes()).map_err(|e| ("say that it is ready", e))?;
        }
        let _signals = OwnedTask::spawn(heed(shim.clone(), signals));
        shim.ended().await;
        Ok(())
    })
}

/// The signals that mean something to the shim. They are caught, not blocked: a mask would be inherited by the OCI runtime
/// and with it by the container.
struct Signals {
    child: Signal,
    terminate: Signal,
    interrupt: Signal,
    /// Caught so that it does nothing.
    _hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            child: signal(SignalKind::child())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
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
