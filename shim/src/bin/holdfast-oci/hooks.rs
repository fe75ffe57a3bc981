//! The hooks that run in our namespaces; libcontainer runs those in the container's (createContainer, startContainer).

use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use oci_spec::runtime::{Hook, Hooks, Spec};

use crate::error::Failure;
use crate::log::Log;
use crate::record::{Container, Record, Status};
use crate::state::document;

/// Runs the prestart and createRuntime hooks: the namespaces exist, the root has not changed yet.
///
/// # Errors
/// The first hook that fails.
pub(crate) fn before_pivot(record: &Record, hooks: &Hooks, pid: i32) -> Result<(), Failure> {
    let state = document(record, Status::Creating, pid).to_string();
    run_all("prestart", hooks.prestart(), &state)?;
    run_all("createRuntime", hooks.create_runtime(), &state)
}

/// Runs the poststart hooks.
///
/// # Errors
/// The first hook that fails.
pub(crate) fn poststart(container: &Container) -> Result<(), Failure> {
    let spec = container.dir.spec()?;
    let hooks = spec.hooks().as_ref().map_or(&None, Hooks::poststart);
    run_all("poststart", hooks, &container.document().to_string())
}

fn run_all(kind: &'static str, hooks: &Option<Vec<Hook>>, state: &str) -> Result<(), Failure> {
    hooks.iter().flatten().enumerate().try_for_each(|(index, hook)| run(kind, index, hook, state))
}

/// Runs all poststop hooks; the container is gone, so that a failure is only logged.
pub(crate) fn poststop(container: &Container, spec: &Spec, log: &Log) {
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.poststop().as_deref()).unwrap_or_default();
    let state = document(&container.record, Status::Stopped, 0).to_string();
    for (index, hook) in hooks.iter().enumerate() {
        if let Err(failure) = run("poststop", index, hook, &state) {
            log.warning(&failure.to_string());
        }
    }
}

fn run(kind: &'static str, index: usize, hook: &Hook, state: &str) -> Result<(), Failure> {
    let failed = |reason: String| Failure::Hook { kind, index, path: hook.path().clone(), reason };
    let mut command = Command::new(hook.path());
    match hook.args().as_deref() {
        Some([name, args @ ..]) => command.arg0(name).args(args),
        _ => command.arg0(hook.path()),
    };
    command.env_clear();
    for (name, value) in hook.env().iter().flatten().filter_map(|entry| entry.split_once('=')) {
        command.env(name, value);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take()
        && let Err(error) = stdin.write_all(state.as_bytes())
        // A hook need not read the state.
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = child.kill();
        let _ = child.wait();
        return Err(failed(format!("cannot send it the state: {error}")));
    }
    let timeout = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    match wait(&mut child, timeout) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(failed(status.to_string())),
        Ok(None) => Err(failed("timed out".to_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Waits for the child, at most this long; `None` when it had to be killed.
fn wait(child: &mut Child, timeout: Option<Duration>) -> std::io::Result<Option<std::process::ExitStatus>> {
    let Some(timeout) = timeout else { return child.wait().map(Some) };
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
