//! What is only looked at: lists, figures, processes; of holdfastd's own containers and, where that is asked for, of other
//! managers'. Nothing here waits for a shim without a deadline, and a list waits for none at all.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use holdfast_proto::supervisor as pb;

use super::foreign::{self, Foreign};
use super::{Api, container, restore_report};
use crate::chain;
use crate::client::{ShimClient, now_unix_ns};
use crate::offload::off_loop;
use crate::output::{self, Whom};
use crate::registry::{Answer, Ask, Refusal, Snapshot, Status};
use crate::stats::{self, StatsError};

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

    /// Other managers' containers as they are now: they come and go without our knowing. A round that needs them several
    /// times looks once.
    ///
    /// # Errors
    /// [`Refusal::Failed`] if there can be no thread to look from.
    pub(crate) async fn foreign(&self) -> Result<Vec<Foreign>, Refusal> {
        let paths = self.paths.clone();
        let looked = off_loop(move || foreign::look(&paths)).await;
        looked.map_err(|e| Refusal::Failed(format!("cannot look at other managers' containers: {e}")))
    }

    /// The list of containers, these ones of other managers among them: with `all` also those that do not run.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] while holdfastd leaves.
    pub(crate) async fn listed(&self, all: bool, foreign: &[Foreign]) -> Result<Vec<pb::Container>, Refusal> {
        let own = self.snapshots(all).await?.into_iter().map(|snapshot| self.message(snapshot));
        let foreign = foreign.iter().map(|one| self.foreign_message(one));
        Ok(own.chain(foreign.filter(|one| all || one.pid != 0)).collect())
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

    /// One of another manager's, with what is known of its shim.
    pub(super) fn foreign_message(&self, one: &Foreign) -> pb::Container {
        let mut message = one.message();
        if let Some(since) = self.health.silent_since(&one.record.shim.address).filter(|_| one.shim_lives) {
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
        let list = if report.scanned { self.listed(true, &[]).await? } else { Vec::new() };
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

    /// Every shim that is there: holdfastd's, and those of these containers of other managers.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] while holdfastd leaves.
    pub(crate) async fn shims(&self, foreign: &[Foreign]) -> Result<Vec<Whom>, Refusal> {
        let own = self.snapshots(true).await?.into_iter().filter(|one| !one.shim_address.is_empty());
        let own = own.map(|one| Whom { address: one.shim_address, pid: one.shim_pid, namespace: one.namespace });
        let mut shims: Vec<Whom> = own.chain(foreign.iter().filter_map(Foreign::shim)).collect();
        // One shim may hold several containers.
        shims.sort();
        shims.dedup();
        Ok(shims)
    }

    /// What all shims say of their containers' output, those of these containers of other managers among them.
    ///
    /// # Errors
    /// As [`Self::shims`].
    pub(crate) async fn outputs(&self, foreign: &[Foreign]) -> Result<pb::OutputResponse, Refusal> {
        Ok(output::ask_all(self.shims(foreign).await?).await)
    }

    /// What containers use: those named, or all that run. All shims are asked at the same time.
    pub(super) async fn used(&self, refs: Vec<String>, managers: bool) -> Result<Vec<pb::ContainerStats>, Refusal> {
        let wanted = if refs.is_empty() { self.running(managers).await? } else { self.named(refs).await? };
        Ok(join_all(wanted.into_iter().map(|one| self.figures(one))).await)
    }

    async fn running(&self, managers: bool) -> Result<Vec<Wanted>, Refusal> {
        let mut wanted: Vec<Wanted> = self.snapshots(false).await?.into_iter().map(wanted_own).collect();
        if managers {
            let foreign = self.foreign().await?;
            wanted.extend(foreign.iter().map(wanted_foreign).filter(|one| one.message.unknown.is_empty()));
        }
        Ok(wanted)
    }

    async fn named(&self, refs: Vec<String>) -> Result<Vec<Wanted>, Refusal> {
        let mut all = Vec::new();
        let mut seen = None;
        for ref_ in refs {
            let mut wanted = match self.snapshot(ref_.clone()).await {
                Ok(snapshot) => wanted_own(snapshot),
                Err(refusal @ Refusal::NotFound(_)) => {
                    let foreign = match &seen {
                        Some(foreign) => foreign,
                        None => seen.insert(self.foreign().await?),
                    };
                    match foreign::named(foreign, &ref_) {
                        Ok(one) => wanted_foreign(one),
                        Err(Refusal::NotFound(_)) => missing(&refusal),
                        Err(other) => return Err(other),
                    }
                }
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
        let question = |client: ShimClient| async move { client.pids(DEADLINE).await };
        let answer = ShimClient::ask(&address, &message.id, "Pids", DEADLINE, question).await;
        let pids = answer.map_err(|e| e.refusal("cannot list the processes"))?;
        let process = |(pid, exec_id)| pb::Process { pid, exec_id, ..Default::default() };
        let processes = pids.into_iter().map(process).collect();
        Ok(pb::ProcessesResponse { id: message.id, name: message.name, processes, ..Default::default() })
    }
}

fn unresponsive(message: &mut pb::Container, since_unix_ns: i64) {
    let seconds = now_unix_ns().saturating_sub(since_unix_ns) / 1_000_000_000;
    Status::Unresponsive.as_str().clone_into(&mut message.status);
    message.reason = format!("its shim (pid {}) has not answered for {seconds}s", message.shim_pid);
}

fn wanted_own(snapshot: Snapshot) -> Wanted {
    let unknown = match (snapshot.pid, snapshot.shim_address.as_str()) {
        (_, "") if snapshot.pid != 0 => "its shim is dead",
        (0, _) if snapshot.status != Status::Unresponsive => "it does not run",
        _ => "",
    };
    let (namespace, id, name, manager) = (snapshot.namespace, snapshot.id, snapshot.name, snapshot.manager);
    let unknown = unknown.to_owned();
    let message = pb::ContainerStats { namespace, id, name, manager, unknown, ..Default::default() };
    Wanted { message, address: Some(snapshot.shim_address) }
}

fn wanted_foreign(one: &Foreign) -> Wanted {
    let unknown = match one.pid() {
        _ if one.record.sandbox => "it is a sandbox: what its pod uses, its containers use",
        0 => "it does not run",
        _ if !one.shim_lives => "its shim is dead",
        _ => "",
    };
    let pb::Container { namespace, id, name, manager, .. } = one.message();
    let unknown = unknown.to_owned();
    let message = pb::ContainerStats { namespace, id, name, manager, unknown, ..Default::default() };
    Wanted { message, address: Some(one.record.shim.address.clone()) }
}

fn missing(refusal: &Refusal) -> Wanted {
    let message = pb::ContainerStats { missing: true, unknown: refusal.to_string(), ..Default::default() };
    Wanted { message, address: None }
}
