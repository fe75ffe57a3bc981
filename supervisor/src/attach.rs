//! Finding out about one shim that was there before: is it alive, does it answer, what does it say of its task. And
//! watching it until its task or itself ends.

use std::time::Duration;

use crate::client::{CallError, ShimClient};
use crate::registry::{Probe, ShimRef, TaskView};
use crate::scan::ShimTraces;
use crate::sys::{self, proc};

/// How long a shim whose process lives may refuse connections before it counts as dead: it may be replacing its binary.
const GRACE: Duration = Duration::from_secs(10);

/// How long a killed process may take to end.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// How often it is tried meanwhile.
const RETRY: Duration = Duration::from_millis(10);

/// Asks a shim by its traces; never takes longer than `deadline`. The client is for going on with.
///
/// One whose process lives but takes no connection is tried until then: it is about to end, or to be replaced.
pub async fn probe(id: &str, traces: &ShimTraces, deadline: Duration) -> (Probe, Option<ShimClient>) {
    let has_ended = || traces.process.is_some_and(|(pid, start)| !proc::is_live(pid, start));
    let dead = || (Probe::Dead(live_init(traces)), None);
    let asked = async {
        while !has_ended() {
            let question = |client| who_and_what(client, traces, deadline);
            match ShimClient::ask(&traces.address, id, "State", deadline, question).await {
                Ok((shim, task, client)) => return (Probe::Answers(shim, task), Some(client)),
                // There is nothing else to know it by.
                Err(CallError::Broken { .. }) if traces.process.is_none() => break,
                Err(CallError::Broken { .. }) => tokio::time::sleep(RETRY).await,
                // It may have died while it was asked.
                Err(_) if has_ended() => break,
                Err(_) => return (Probe::Silent, None),
            }
        }
        dead()
    };
    match tokio::time::timeout(deadline, asked).await {
        Ok(found) => found,
        Err(_) if has_ended() => dead(),
        Err(_) => (Probe::Silent, None),
    }
}

async fn who_and_what(
    client: ShimClient,
    traces: &ShimTraces,
    deadline: Duration,
) -> Result<(ShimRef, Option<TaskView>, ShimClient), CallError> {
    let task = client.state(deadline).await?;
    // The record says who serves there, or else the shim does. One that answers needs no second question, and with many
    // shims each question counts.
    let process = traces.process.filter(|(pid, start)| proc::is_live(*pid, *start));
    let (pid, start_time) = match process {
        Some(known) => known,
        None => {
            let (pid, _) = client.connect_task(deadline).await?;
            (pid, proc::start_time(pid))
        }
    };
    Ok((ShimRef { pid, start_time, address: traces.address.clone() }, task, client))
}

fn live_init(traces: &ShimTraces) -> Option<(u32, u64)> {
    traces.init.filter(|(pid, start)| proc::is_live(*pid, *start))
}

/// What ended a watch.
#[derive(Debug)]
pub enum Watched {
    /// The process has ended: status and time.
    Exited(u32, i64),
    /// The shim is dead, or beyond reach for too long.
    ShimDied,
    /// The shim has no such process any more.
    Unknown,
}

/// Waits for the end of a process of the shim's, through broken connections as long as the shim lives.
pub async fn watch(mut client: ShimClient, shim: &ShimRef, id: &str, exec_id: &str) -> Watched {
    loop {
        match client.wait(exec_id).await {
            Ok((status, at)) => return Watched::Exited(status, at),
            Err(e) if e.is_not_found() => return Watched::Unknown,
            Err(CallError::Broken { .. }) => match reconnect(shim, id).await {
                Some(again) => client = again,
                None => return Watched::ShimDied,
            },
            // A shim that answers but not to this: ask again rather than conclude anything.
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// A new connection, as long as the shim's process lives.
async fn reconnect(shim: &ShimRef, id: &str) -> Option<ShimClient> {
    let until = tokio::time::Instant::now() + GRACE;
    while proc::is_live(shim.pid, shim.start_time) && tokio::time::Instant::now() < until {
        if let Ok(client) = ShimClient::connect(&shim.address, id, crate::client::QUICK).await {
            return Some(client);
        }
        tokio::time::sleep(RETRY).await;
    }
    None
}

/// Returns when the process has ended; at once if it has.
pub async fn pid_gone(pid: u32, start_time: u64) {
    while proc::is_live(pid, start_time) {
        // Without a pidfd to be had, for want of descriptors say, nothing is known but what the next look tells.
        let Ok(pidfd) = sys::pidfd_open(pid).and_then(sys::watch_fd) else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        // The pid may have passed to another process between the look and the opening.
        if proc::is_live(pid, start_time) {
            let _ = pidfd.readable().await; // fails only when the runtime ends
            return;
        }
    }
}

/// Kills a process that is named by its start time, too, and waits for its end, or for `LAST_BREATH` if it is stuck.
pub async fn end(pid: u32, start_time: u64) {
    if proc::signal(pid, start_time, nix::libc::SIGKILL).is_ok() {
        let _ = tokio::time::timeout(LAST_BREATH, pid_gone(pid, start_time)).await; // stuck in the kernel, then
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use tokio::time::Instant;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(2);

    fn traces(process: Option<(u32, u64)>) -> ShimTraces {
        ShimTraces { address: "unix:///no/such/socket".into(), process, init: None, execs: Vec::new() }
    }

    /// What was found, and how long it was looked for by a clock that stands still but for who sleeps.
    async fn found(process: Option<(u32, u64)>) -> (Probe, Duration) {
        let before = Instant::now();
        let (probe, client) = probe("id", &traces(process), DEADLINE).await;
        assert!(client.is_none());
        (probe, before.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_shim_that_takes_no_connection_is_silent_only_when_its_time_is_over() {
        let this = std::process::id();
        let (probe, took) = found(Some((this, proc::start_time(this)))).await;
        assert!(probe == Probe::Silent && took >= DEADLINE, "{probe:?} after {took:?}");
        assert_eq!(found(None).await, (Probe::Dead(None), Duration::ZERO), "nothing says that it lives");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shim_that_has_ended_is_dead_at_once() {
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let process = Some((child.id(), proc::start_time(child.id())));
        child.wait().unwrap();
        assert_eq!(found(process).await, (Probe::Dead(None), Duration::ZERO));
    }
}
