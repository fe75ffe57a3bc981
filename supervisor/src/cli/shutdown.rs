//! `stop --all --shutdown`, for the machine's shutdown: every container of holdfastd's ends by its own signal, whether
//! holdfastd lives, is wedged, or is gone; and so do those of a containerd that is gone (`foreign`).
//!
//! holdfastd is asked first, so that it starts nothing behind our back. If it cannot be asked the shims are, by the records
//! that they keep. Nobody's wish is changed: what a restart policy says is done after the boot.

mod foreign;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use holdfast_proto::supervisor as pb;

use super::connection::Connection;
use super::schema::Stopped;
use super::{CliError, FAILED, Outcome, print, render, say};
use crate::attach::{self, pid_gone};
use crate::client::{self, ShimClient, now_unix_ns};
use crate::config::{Flags, Settings};
use crate::container::{Container, Outcome as Ended, UNKNOWN_STATUS, Wish};
use crate::daemon::{kill_pid, lock};
use crate::paths::Paths;
use crate::registry::{How, Probe, RunState, ShimRef};
use crate::scan::{self, Findings, Found, ShimTraces};
use crate::sys::proc;
use crate::{chain, store};

/// How long holdfastd may be silent before it counts as wedged, and how often it is asked.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long SIGKILL may take to show.
const KILL_GRACE: Duration = Duration::from_secs(5);

pub(super) async fn run(connection: Connection, as_json: bool) -> Outcome {
    let foreign = findings(&settings()?.paths)?.foreign;
    let (own, foreign) = tokio::join!(own(&connection), foreign::stop_all(foreign));
    let stopped = own?.into_iter().chain(foreign);
    let mut code = 0;
    for one in stopped {
        print(&if as_json { render::json_line(&Stopped::new(&one)) } else { line(&one) })?;
        if !one.has_ended {
            code = FAILED;
        }
    }
    Ok(code)
}

/// Stops holdfastd's containers.
async fn own(connection: &Connection) -> Result<Vec<pb::StoppedContainer>, CliError> {
    let request = pb::StopAllRequest::new();
    let answer = tokio::select! {
        answer = connection.stop_all(&request) => answer,
        () = silence(connection) => Err(CliError::Usage("holdfastd does not answer".to_owned())),
    };
    match answer {
        Ok(answer) => Ok(answer.containers),
        Err(e) => {
            say::tell(&format!("{}; speaking to the shims instead", chain(&e)));
            directly().await
        }
    }
}

/// Returns when holdfastd, which was reached, does not answer any more.
async fn silence(connection: &Connection) {
    loop {
        let request = pb::VersionRequest::new();
        if tokio::time::timeout(HEARTBEAT, connection.version(&request)).await.is_err() {
            return;
        }
        tokio::time::sleep(HEARTBEAT).await;
    }
}

fn line(one: &pb::StoppedContainer) -> String {
    let took = humantime::format_duration(Duration::from_millis(one.took_ns / 1_000_000));
    match one.exit_status {
        Some(status) => format!("{}: {} within {took}, exit status {status}\n", one.name, one.how),
        None => format!("{}: {}\n", one.name, one.how),
    }
}

fn settings() -> Result<Settings, CliError> {
    Ok(Settings::load(&Flags::default()).map_err(|e| CliError::Usage(chain(&e)))?.settings)
}

fn findings(paths: &Paths) -> Result<Findings, CliError> {
    let boot_id = proc::boot_id().map_err(CliError::io("read the boot id"))?;
    Ok(scan::scan(paths, &boot_id))
}

/// What is told of a container, as holdfastd tells it.
fn told(id: String, name: String, how: How, exit_status: Option<u32>, took: Duration) -> pb::StoppedContainer {
    pb::StoppedContainer {
        id,
        name,
        has_ended: how != How::LeftBehind,
        exit_status,
        how: how.as_str().to_owned(),
        took_ns: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
        ..Default::default()
    }
}

/// Stops all containers without holdfastd.
async fn directly() -> Result<Vec<pb::StoppedContainer>, CliError> {
    let settings = settings()?;
    let paths = &settings.paths;
    // While we hold it no holdfastd begins. One that has it is wedged, and its files are not ours to write.
    let lock = lock(paths).ok();
    let findings = findings(paths)?;
    for one in &findings.unusable {
        say::tell(&format!("{} is {}: {}", one.id, one.class, one.reason));
    }
    let stops = findings.own.into_values().map(async |Found { mut container, shim, .. }| {
        let began = Instant::now();
        let (how, ended) = Stop::of(&container, settings.shutdown_timeout).shim(&shim?).await?;
        if let (Some(ended), true) = (&ended, lock.is_some()) {
            note(paths, &mut container, ended.clone());
        }
        Some(told(container.id, container.name, how, ended.map(|ended| ended.status), began.elapsed()))
    });
    Ok(join_all(stops).await.into_iter().flatten().collect())
}

/// Writes down how it ended: the shim's own record is void after the boot.
fn note(paths: &Paths, container: &mut Container, ended: Ended) {
    if container.state.outcome.is_none() && container.state.wish != Wish::Created {
        container.state.outcome = Some(ended);
        if let Err(e) = store::save(paths, container) {
            say::tell(&format!("{}; how it ended is lost", chain(&e)));
        }
    }
}

/// How one container is to be stopped.
struct Stop<'a> {
    id: &'a str,
    signal: i32,
    timeout: Duration,
}

impl<'a> Stop<'a> {
    fn of(container: &'a Container, bound: Option<Duration>) -> Self {
        let own = Duration::from_secs(container.config.stop_timeout.into());
        Self { id: &container.id, signal: container.config.stop_signal, timeout: own.min(bound.unwrap_or(own)) }
    }

    /// Through its shim, or past a dead or wedged one. `None` if nothing of it runs.
    async fn shim(&self, traces: &ShimTraces) -> Option<(How, Option<Ended>)> {
        let (probe, client) = attach::probe(self.id, traces, client::QUICK).await;
        match (probe, client) {
            (Probe::Answers(shim, Some(task)), Some(client)) => match task.state {
                RunState::Running | RunState::Paused => Some(self.task(&client, &shim, traces.init).await),
                RunState::Created => {
                    let killed = client.kill(9).await;
                    Some((if killed.is_ok() { How::NeverRan } else { How::LeftBehind }, None))
                }
                RunState::Stopped { .. } => None,
            },
            (Probe::Answers(..) | Probe::Dead(None), _) => None,
            (Probe::Dead(Some(init)), _) => Some(self.process(init).await),
            (Probe::Silent, _) => match traces.init {
                Some(init) => Some(self.process(init).await),
                None => Some((How::LeftBehind, None)),
            },
        }
    }

    async fn task(&self, client: &ShimClient, shim: &ShimRef, init: Option<(u32, u64)>) -> (How, Option<Ended>) {
        let wait = async |within| match tokio::time::timeout(within, client.wait("")).await {
            Ok(Ok((status, at_unix_ns))) => Some(outcome(status, at_unix_ns, "")),
            _ => None,
        };
        if client.kill(self.signal).await.is_ok()
            && let Some(ended) = wait(self.timeout).await
        {
            return (How::Signal, Some(ended));
        }
        let how = How::KilledAfterStopTimeout;
        if client.kill(9).await.is_ok()
            && let Some(ended) = wait(KILL_GRACE).await
        {
            return (how, Some(ended));
        }
        // Its shim does not do what it is told.
        let _ = kill_pid(shim.pid, shim.start_time, 9); // gone already is as good
        match init {
            Some((pid, start_time)) => self.kill_process(pid, start_time).await,
            None => (How::LeftBehind, None),
        }
    }

    /// Without a shim: the first process itself.
    async fn process(&self, (pid, start_time): (u32, u64)) -> (How, Option<Ended>) {
        let _ = kill_pid(pid, start_time, self.signal); // one that has ended meanwhile is seen by the next line
        match tokio::time::timeout(self.timeout, pid_gone(pid, start_time)).await {
            Ok(()) => (How::Signal, Some(unseen())),
            Err(_) => self.kill_process(pid, start_time).await,
        }
    }

    async fn kill_process(&self, pid: u32, start_time: u64) -> (How, Option<Ended>) {
        let _ = kill_pid(pid, start_time, 9); // one that has ended meanwhile is seen by the next line
        match tokio::time::timeout(KILL_GRACE, pid_gone(pid, start_time)).await {
            Ok(()) => (How::KilledAfterStopTimeout, Some(unseen())),
            Err(_) => (How::LeftBehind, None),
        }
    }
}

fn outcome(status: u32, at_unix_ns: i64, reason: &str) -> Ended {
    Ended { status, at_unix_ns, reason: reason.to_owned() }
}

fn unseen() -> Ended {
    outcome(
        UNKNOWN_STATUS,
        now_unix_ns(),
        "stopped at the machine's shutdown without a shim that could tell its status",
    )
}
