//! What is only looked at: lists, figures, processes; of holdfastd's own containers and, where that is asked for, of other
//! managers'. Nothing here waits for a shim without a deadline, and a list waits for none at all.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use holdfast_proto::record::{self, ProcessState, Record};
use holdfast_proto::{regular, supervisor as pb};

use super::{Api, container, restore_report};
use crate::chain;
use crate::client::{CallError, ShimClient, now_unix_ns};
use crate::container::{OUT_OF_MEMORY, UNKNOWN_STATUS};
use crate::output::{self, Whom};
use crate::registry::{Answer, Ask, Refusal, Snapshot};
use crate::stats::{self, StatsError};
use crate::sys::proc;

/// A healthy shim answers within this.
const DEADLINE: Duration = Duration::from_secs(1);

/// For one that did not answer the last time: enough to see that it does again, too short to delay the others' figures.
const SHORT_DEADLINE: Duration = Duration::from_millis(100);

/// A container whose figures are wanted.
struct Wanted {
    /// Filled but for the figures.
    message: pb::ContainerStats,
    /// Of its shim, if it runs.
    address: Option<String>,
}

impl Api {
    async fn snapshots(&self, all: bool) -> Result<Vec<Snapshot>, Refusal> {
        match self.ask(Ask::List { all }).await? {
            Answer::List(list) => Ok(list),
            other => Err(Refusal::Failed(format!("unexpected answer {other:?}"))),
        }
    }

    /// The list of containers: with `all` also those that do not run, with `all_managers` also other managers'.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] while holdfastd leaves.
    pub(crate) async fn listed(&self, all: bool, all_managers: bool) -> Result<Vec<pb::Container>, Refusal> {
        let own = self.snapshots(all).await?.into_iter().map(|snapshot| self.message(snapshot));
        let mut containers: Vec<pb::Container> = own.collect();
        if all_managers {
            let foreign = self.foreign();
            let foreign = foreign.iter().map(|record| self.foreign_message(record));
            containers.extend(foreign.filter(|one| all || one.pid != 0));
        }
        Ok(containers)
    }

    /// One of holdfastd's own, with what is known of its shim.
    pub(super) fn message(&self, snapshot: Snapshot) -> pb::Container {
        let silent = self.health.silent_since(&snapshot.shim_address);
        let mut message = container(snapshot);
        if let Some(since) = silent {
            unresponsive(&mut message, since);
        }
        message
    }

    /// One of another manager's, by its record; what only that manager knows is empty.
    pub(super) fn foreign_message(&self, record: &Record) -> pb::Container {
        let mut message = foreign(record, shim_lives(record), proc::is_live);
        message.command = command(&record.bundle);
        if message.pid != 0 {
            message.started_at_unix_ns = proc::started_at_unix_ns(message.pid);
        }
        if let Some(since) = self.health.silent_since(&record.shim.address).filter(|_| shim_lives(record)) {
            unresponsive(&mut message, since);
        }
        message
    }

    /// How the supervisor is set up and what it holds.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] while it leaves.
    pub(crate) async fn information(&self) -> Result<pb::InfoResponse, Refusal> {
        let report = match self.ask(Ask::Report).await? {
            Answer::Report(report) => *report,
            other => return Err(Refusal::Failed(format!("unexpected answer {other:?}"))),
        };
        // The disk may be slow, and what is said of it is what one wants to know then.
        let list = if report.scanned { self.listed(true, false).await? } else { Vec::new() };
        let mut states: HashMap<String, u32> = HashMap::new();
        for one in &list {
            *states.entry(one.status.clone()).or_default() += 1;
        }
        let text = |path: &Path| path.display().to_string();
        let settings = self.settings();
        Ok(pb::InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at_unix_ns: self.started_at_unix_ns,
            run_dir: text(&self.paths.run),
            state_dir: text(&self.paths.state),
            socket: text(&settings.socket),
            event_socket: text(&self.paths.event_socket()),
            metrics_listen: settings.metrics_listen.as_ref().map(ToString::to_string).unwrap_or_default(),
            log_driver: settings.log.driver.to_string(),
            shim: settings.find_shim().as_deref().map(text).unwrap_or_default(),
            runtime: settings.runtime.as_deref().map(text).unwrap_or_default(),
            running: u32::try_from(list.iter().filter(|one| one.pid != 0).count()).unwrap_or(u32::MAX),
            total: u32::try_from(list.len()).unwrap_or(u32::MAX),
            states,
            live_restore: settings.live_restore,
            restore: protobuf::MessageField::some(restore_report(&report)),
            ..Default::default()
        })
    }

    /// Every shim that is there, whoever's.
    pub(crate) async fn shims(&self) -> Result<Vec<Whom>, Refusal> {
        let own = self.snapshots(true).await?.into_iter().filter(|one| !one.shim_address.is_empty());
        let mut shims: Vec<Whom> =
            own.map(|one| Whom { address: one.shim_address, pid: one.shim_pid, namespace: one.namespace }).collect();
        shims.extend(self.foreign().into_iter().filter(shim_lives).map(|record| Whom {
            address: record.shim.address,
            pid: record.shim.pid,
            namespace: record.namespace,
        }));
        // One shim may hold several containers.
        shims.sort();
        shims.dedup();
        Ok(shims)
    }

    /// What all shims say of their containers' output.
    pub(crate) async fn outputs(&self) -> Result<pb::OutputResponse, Refusal> {
        Ok(output::ask_all(self.shims().await?).await)
    }

    /// What containers use: those named, or all that run. All shims are asked at the same time.
    pub(super) async fn used(&self, refs: Vec<String>, managers: bool) -> Result<Vec<pb::ContainerStats>, Refusal> {
        let wanted = if refs.is_empty() { self.running(managers).await? } else { self.named(refs).await? };
        Ok(join_all(wanted.into_iter().map(|one| self.figures(one))).await)
    }

    async fn running(&self, managers: bool) -> Result<Vec<Wanted>, Refusal> {
        let mut wanted: Vec<Wanted> = self.snapshots(false).await?.into_iter().map(wanted_own).collect();
        if managers {
            wanted.extend(self.foreign().iter().map(wanted_foreign).filter(|one| one.message.unknown.is_empty()));
        }
        Ok(wanted)
    }

    async fn named(&self, refs: Vec<String>) -> Result<Vec<Wanted>, Refusal> {
        let mut all = Vec::new();
        for ref_ in refs {
            let mut wanted = match self.snapshot(ref_.clone()).await {
                Ok(snapshot) => wanted_own(snapshot),
                Err(refusal @ Refusal::NotFound(_)) => match self.foreign_named(&ref_) {
                    Ok(record) => wanted_foreign(&record),
                    Err(Refusal::NotFound(_)) => missing(&refusal),
                    Err(other) => return Err(other),
                },
                Err(other) => return Err(other),
            };
            wanted.message.ref_ = ref_;
            all.push(wanted);
        }
        Ok(all)
    }

    async fn figures(&self, wanted: Wanted) -> pb::ContainerStats {
        let Wanted { mut message, address } = wanted;
        let Some(address) = address.filter(|_| message.unknown.is_empty()) else { return message };
        let within = if self.health.silent_since(&address).is_some() { SHORT_DEADLINE } else { DEADLINE };
        match stats::ask(&address, &message.id, within).await {
            Ok(figures) => {
                self.health.note(&address, false);
                figures.fill(&mut message);
            }
            Err(e) => {
                if matches!(e, StatsError::Silent) {
                    self.health.note(&address, true);
                }
                message.unknown = chain(&e);
            }
        }
        message
    }

    /// The processes of a container, as its shim knows them.
    pub(super) async fn processes_of(&self, ref_: String) -> Result<pb::ProcessesResponse, Refusal> {
        let Some(Wanted { message, address }) = self.named(vec![ref_]).await?.pop() else {
            return Err(Refusal::Invalid("no container is named".to_owned()));
        };
        if message.missing {
            return Err(Refusal::NotFound(message.unknown));
        }
        let Some(address) = address.filter(|_| message.unknown.is_empty()) else {
            return Err(Refusal::Precondition(format!("container {}: {}", message.name, message.unknown)));
        };
        let asked = async { ShimClient::connect(&address, &message.id, DEADLINE).await?.pids(DEADLINE).await };
        let silent = Err(CallError::Silent { method: "Pids", within: DEADLINE });
        let answer = tokio::time::timeout(DEADLINE, asked).await.unwrap_or(silent);
        let pids = answer.map_err(|e| e.refusal("cannot list the processes"))?;
        let process = |(pid, exec_id)| pb::Process { pid, exec_id, ..Default::default() };
        let processes = pids.into_iter().map(process).collect();
        Ok(pb::ProcessesResponse { id: message.id, name: message.name, processes, ..Default::default() })
    }
}

fn unresponsive(message: &mut pb::Container, since_unix_ns: i64) {
    let seconds = now_unix_ns().saturating_sub(since_unix_ns) / 1_000_000_000;
    "unresponsive".clone_into(&mut message.status);
    message.reason = format!("its shim (pid {}) has not answered for {seconds}s", message.shim_pid);
}

fn shim_lives(record: &Record) -> bool {
    proc::is_live(record.shim.pid, record.shim.start_time)
}

/// What its bundle says that it runs; empty if that cannot be read, or is gone.
fn command(bundle: &Path) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Spec {
        process: Process,
    }
    #[derive(serde::Deserialize)]
    struct Process {
        args: Vec<String>,
    }
    let spec = regular::read(&bundle.join("config.json")).ok();
    spec.and_then(|text| serde_json::from_slice::<Spec>(&text).ok()).map(|s| s.process.args).unwrap_or_default()
}

fn wanted_own(snapshot: Snapshot) -> Wanted {
    let unknown = match (snapshot.pid, snapshot.shim_address.as_str()) {
        (_, "") if snapshot.pid != 0 => "its shim is dead",
        (0, _) if snapshot.status != "unresponsive" => "it does not run",
        _ => "",
    };
    let (namespace, id, name, manager) = (snapshot.namespace, snapshot.id, snapshot.name, snapshot.manager);
    let unknown = unknown.to_owned();
    let message = pb::ContainerStats { namespace, id, name, manager, unknown, ..Default::default() };
    Wanted { message, address: Some(snapshot.shim_address) }
}

fn wanted_foreign(record: &Record) -> Wanted {
    let one = foreign(record, shim_lives(record), proc::is_live);
    let unknown = match one.pid {
        0 => "it does not run",
        _ if !shim_lives(record) => "its shim is dead",
        _ => "",
    };
    let (namespace, id, name, manager) = (one.namespace, one.id, one.name, one.manager);
    let unknown = unknown.to_owned();
    let message = pb::ContainerStats { namespace, id, name, manager, unknown, ..Default::default() };
    Wanted { message, address: Some(record.shim.address.clone()) }
}

fn missing(refusal: &Refusal) -> Wanted {
    let message = pb::ContainerStats { missing: true, unknown: refusal.to_string(), ..Default::default() };
    Wanted { message, address: None }
}

/// What a record says, as far as it is still true.
fn foreign(record: &Record, shim_lives: bool, is_live: impl Fn(u32, u64) -> bool) -> pb::Container {
    let init = record.init();
    let live = init.filter(|p| p.exit.is_none() && p.pid != 0 && is_live(p.pid, p.start_time));
    let exit = init.and_then(|p| p.exit);
    let state = match (live, exit, init.map(|p| p.state)) {
        (Some(_), _, Some(ProcessState::Created)) => "created",
        (Some(_), _, Some(ProcessState::Paused)) => "paused",
        (Some(_), ..) => "running",
        // Before its first process is there; and when it has ended and its shim is about to say so.
        (None, None, Some(ProcessState::Created)) if shim_lives => "preparing",
        (None, None, _) if shim_lives => "stopping",
        (None, ..) => "exited",
    };
    let reason = match (live, exit) {
        _ if init.is_some_and(|p| p.oom_killed) => OUT_OF_MEMORY,
        (Some(_), _) if !shim_lives => "its shim is dead: it runs without anybody who drains its output",
        (None, None) if !shim_lives => "its shim died with the exit status",
        _ => "",
    };
    let unknown = if state == "exited" { UNKNOWN_STATUS } else { 0 };
    pb::Container {
        namespace: record.namespace.clone(),
        id: record.id.clone(),
        name: record.id.clone(),
        manager: match &record.manager {
            record::Manager::Containerd { address } => address.clone(),
            record::Manager::Holdfastd => "holdfastd".to_owned(),
        },
        status: state.to_owned(),
        pid: live.map_or(0, |p| p.pid),
        shim_pid: record.shim.pid,
        exit_status: exit.map_or(unknown, |e| e.status),
        exited_at_unix_ns: exit.map_or(0, |e| i64::try_from(e.at_unix_ns).unwrap_or(i64::MAX)),
        reason: reason.to_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record(state: &str, exit: &str) -> Record {
        let text = format!(
            r#"{{"schema":1,"boot_id":"b","shim":{{"pid":7,"start_time":8,"version":"0","address":"unix:///s"}},
            "manager":{{"kind":"containerd","address":"/run/c.sock"}},"namespace":"k8s.io","id":"one","group":"one",
            "bundle":"/no/such/bundle","runtime":{{"binary":"runc","root":"/r"}},
            "processes":[{{"exec_id":"","pid":9,"start_time":10,"state":"{state}"{exit}}}]}}"#
        );
        Record::parse(Path::new("r"), text.as_bytes()).unwrap()
    }

    #[test]
    fn the_state_of_another_managers_container_is_what_its_record_and_the_kernel_say() {
        const EXIT: &str = r#","exit":{"status":7,"at_unix_ns":5}"#;
        for (state, exit, shim, init, expected) in [
            ("created", "", true, true, ("created", 9, 0, "")),
            ("created", "", true, false, ("preparing", 0, 0, "")),
            ("running", "", true, true, ("running", 9, 0, "")),
            ("paused", "", true, true, ("paused", 9, 0, "")),
            ("running", "", true, false, ("stopping", 0, 0, "")),
            ("stopped", EXIT, true, false, ("exited", 0, 7, "")),
            // Its pid is somebody else's by now.
            ("stopped", EXIT, true, true, ("exited", 0, 7, "")),
            (
                "running",
                "",
                false,
                true,
                ("running", 9, 0, "its shim is dead: it runs without anybody who drains its output"),
            ),
            ("running", "", false, false, ("exited", 0, 255, "its shim died with the exit status")),
            ("stopped", EXIT, false, false, ("exited", 0, 7, "")),
        ] {
            let one = foreign(&record(state, exit), shim, |_, _| init);
            let seen = (one.status.as_str(), one.pid, one.exit_status, one.reason.as_str());
            assert_eq!(seen, expected, "{state} {exit} {shim} {init}");
            assert_eq!((one.manager.as_str(), one.namespace.as_str()), ("/run/c.sock", "k8s.io"));
        }
    }
}
