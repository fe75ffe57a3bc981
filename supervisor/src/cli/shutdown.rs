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
use super::{CliError, FAILED, Outcome, print, render, say, schema};
use crate::attach::{self, pid_gone};
use crate::client::{self, ShimClient, now_unix_ns};
use crate::config::{ConfigError, Flags, Loaded, Settings};
use crate::container::{Container, Outcome as Ended, UNKNOWN_STATUS, Wish};
use crate::daemon::lock;
use crate::paths::Paths;
use crate::registry::{How, Probe, RunState, ShimRef, Stopped};
use crate::scan::{self, Found, ShimTraces};
use crate::sys::proc;
use crate::{chain, store};

/// How long holdfastd may be silent before it counts as wedged, and how often it is asked.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long SIGKILL may take to show.
const KILL_GRACE: Duration = Duration::from_secs(5);

pub(super) async fn run(connection: Connection, as_json: bool) -> Outcome {
    let settings = settings(Settings::load(&Flags::default()));
    let (own, foreign) = tokio::join!(own(&connection, &settings), foreign(&settings.paths));
    report([own, foreign], |one| {
        print(&if as_json { render::json_line(&schema::Stopped::new(one)) } else { line(one) })
    })
}

/// What became of some containers, or why that is not known.
type Part = Result<Vec<pb::StoppedContainer>, CliError>;

/// Tells what became of each container. A part that failed hides nothing of the other.
fn report(parts: [Part; 2], tell: impl Fn(&pb::StoppedContainer) -> Result<(), CliError>) -> Outcome {
    let mut code = 0;
    for part in parts {
        match part {
            Ok(stopped) => {
                for one in &stopped {
                    tell(one)?;
                    code = if one.has_ended { code } else { FAILED };
                }
            }
            Err(e) => {
                say::tell_error(&chain(&e), None);
                code = e.exit_code();
            }
        }
    }
    Ok(code)
}

/// A mistake in the settings keeps the machine from ending its containers least of all: then the defaults hold.
fn settings(loaded: Result<Loaded, ConfigError>) -> Settings {
    loaded.map(|loaded| loaded.settings).unwrap_or_else(|e| {
        say::tell(&format!("{}; going on with the default settings", chain(&e)));
        Settings::at(Paths::from_environment())
    })
}

/// Stops the containers of every containerd that is gone.
async fn foreign(paths: &Paths) -> Part {
    let mut containers = scan::foreign(paths, &boot_id()?);
    // What holds a pod's namespaces has nothing to say and ends after those that use them.
    containers.retain(|record| !record.sandbox);
    let stopped = foreign::stop_all(containers).await;
    Ok(stopped.into_iter().map(pb::StoppedContainer::from).collect())
}

/// Stops holdfastd's containers.
async fn own(connection: &Connection, settings: &Settings) -> Part {
    let request = pb::StopAllRequest::new();
    let answer = tokio::select! {
        answer = connection.stop_all(&request) => answer,
        () = silence(connection) => Err(CliError::Usage("holdfastd does not answer".to_owned())),
    };
    match answer {
        Ok(answer) => Ok(answer.containers),
        Err(e) => {
            say::tell(&format!("{}; speaking to the shims instead", chain(&e)));
            let stopped = directly(settings).await?;
            Ok(stopped.into_iter().map(pb::StoppedContainer::from).collect())
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

fn boot_id() -> Result<String, CliError> {
    proc::boot_id().map_err(CliError::io("read the boot id"))
}

/// What became of a container, as holdfastd tells it.
fn stopped(id: String, name: String, (how, outcome): (How, Option<Ended>), began: Instant) -> Stopped {
    Stopped { id, name, outcome, took: began.elapsed(), how }
}

/// Stops all containers without holdfastd.
async fn directly(settings: &Settings) -> Result<Vec<Stopped>, CliError> {
    let paths = &settings.paths;
    // While we hold it no holdfastd begins. One that has it is wedged, and its files are not ours to write.
    let lock = lock(paths).ok();
    let findings = scan::scan(paths, &boot_id()?);
    for one in &findings.unusable {
        say::tell(&format!("{} is {}: {}", one.id, one.class, one.reason));
    }
    let stops = findings.own.into_values().map(async |Found { mut container, shim, .. }| {
        let began = Instant::now();
        let ended = Stop::of(&container, settings.shutdown_timeout).shim(&shim?).await?;
        if let (Some(ended), true) = (&ended.1, lock.is_some()) {
            note(paths, &mut container, ended.clone());
        }
        Some(stopped(container.id, container.name, ended, began))
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
        // One that has ended by itself is being cleared up after, and its end is about to be told.
        let is_heard = async |signal| match client.kill(signal).await {
            Ok(()) => true,
            Err(e) => e.is_not_found(),
        };
        if is_heard(self.signal).await
            && let Some(ended) = wait(self.timeout).await
        {
            return (How::Signal, Some(ended));
        }
        let how = How::KilledAfterStopTimeout;
        if is_heard(9).await
            && let Some(ended) = wait(KILL_GRACE).await
        {
            return (how, Some(ended));
        }
        // Its shim does not do what it is told.
        let _ = proc::signal(shim.pid, shim.start_time, 9); // gone already is as good
        match init {
            Some((pid, start_time)) => self.kill_process(pid, start_time).await,
            None => (How::LeftBehind, None),
        }
    }

    /// Without a shim: the first process itself.
    async fn process(&self, (pid, start_time): (u32, u64)) -> (How, Option<Ended>) {
        let _ = proc::signal(pid, start_time, self.signal); // one that has ended meanwhile is seen by the next line
        match tokio::time::timeout(self.timeout, pid_gone(pid, start_time)).await {
            Ok(()) => (How::Signal, Some(unseen())),
            Err(_) => self.kill_process(pid, start_time).await,
        }
    }

    async fn kill_process(&self, pid: u32, start_time: u64) -> (How, Option<Ended>) {
        let _ = proc::signal(pid, start_time, 9); // one that has ended meanwhile is seen by the next line
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn one(name: &str, has_ended: bool) -> pb::StoppedContainer {
        pb::StoppedContainer { name: name.to_owned(), has_ended, ..Default::default() }
    }

    /// The exit code, and who was told of.
    fn reported(parts: [Part; 2]) -> (u8, Vec<String>) {
        let told = RefCell::new(Vec::new());
        let code = report(parts, |one| {
            told.borrow_mut().push(one.name.clone());
            Ok(())
        });
        (code.unwrap_or(1), told.into_inner())
    }

    #[test]
    fn every_container_is_told_of_whatever_fails() {
        let broken = || Err(CliError::Usage("no boot id".to_owned()));
        let both = reported([Ok(vec![one("own", true)]), Ok(vec![one("theirs", true)])]);
        assert_eq!(both, (0, vec!["own".to_owned(), "theirs".to_owned()]));
        assert_eq!(reported([broken(), Ok(vec![one("theirs", true)])]), (FAILED, vec!["theirs".to_owned()]));
        assert_eq!(reported([Ok(vec![one("own", true)]), broken()]), (FAILED, vec!["own".to_owned()]));
        let left = reported([Ok(vec![one("own", false), one("other", true)]), Ok(Vec::new())]);
        assert_eq!(left, (FAILED, vec!["own".to_owned(), "other".to_owned()]));
    }

    #[test]
    fn a_mistake_in_the_settings_does_not_keep_the_machine_from_its_end() {
        let flags = Flags { config: Some("/no/such/file.toml".into()), ..Flags::default() };
        let mended = settings(Settings::load(&flags));
        assert_eq!(mended, Settings::at(Paths::from_environment()));
    }
}
