//! RPC for the command line: requests are checked and turned into questions, answers into messages. No decisions. Those
//! that only look are in `looks`, what they see of other managers' containers in `foreign`.

mod foreign;
mod looks;

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use holdfast_proto::record;
use holdfast_proto::supervisor_ttrpc::Supervisor;
use holdfast_proto::{regular, supervisor as pb};
use tokio::sync::{broadcast::error::RecvError, mpsc, oneshot, watch};
use ttrpc::Code;
use ttrpc::r#async::{ServerStreamSender, TtrpcContext};

use crate::client::now_unix_ns;
use crate::config::{Reloaded, Settings};
use crate::container::{Config, Container, Next, SCHEMA, State};
use crate::events::{EventLog, Since};
use crate::health::Health;
use crate::log_policy::Driver;
use crate::output;
use crate::paths::Paths;
use crate::policy::RestartPolicy;
use crate::registry::{
    Answer, Ask, Call, Ended, ExecSpec, ExecView, How, Limits, LogChange, Onlooker, Refusal, Snapshot, Stopped,
};
use crate::report::RestoreReport;
use crate::{chain, names, spec, store};
use foreign::Foreign;

/// What is said to those who ask while the supervisor ends: its successor has an answer.
pub const LEAVING: &str = "holdfastd is leaving";

/// A question on its way to the daemon's loop.
pub struct Question {
    /// What is asked.
    pub ask: Ask,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Answer, Refusal>>,
}

/// A request to read the settings again.
pub struct Reload {
    /// Where it is told what came of it.
    pub reply: oneshot::Sender<Result<Reloaded, Refusal>>,
}

/// The service. Clones share everything.
#[derive(Clone)]
pub struct Api {
    paths: Paths,
    settings: watch::Receiver<Arc<Settings>>,
    questions: mpsc::UnboundedSender<Question>,
    reloads: mpsc::UnboundedSender<Reload>,
    events: EventLog,
    health: Health,
    started_at_unix_ns: i64,
}

type Reply<T> = ttrpc::Result<T>;

impl Api {
    /// A service that asks by `questions` and `reloads`.
    pub fn new(
        settings: watch::Receiver<Arc<Settings>>,
        questions: mpsc::UnboundedSender<Question>,
        reloads: mpsc::UnboundedSender<Reload>,
        events: EventLog,
    ) -> Self {
        let paths = settings.borrow().paths.clone();
        let (health, started_at_unix_ns) = (Health::default(), now_unix_ns());
        Self { paths, settings, questions, reloads, events, health, started_at_unix_ns }
    }

    /// Which shims do not answer.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// As they are now.
    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question { ask, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    async fn done(&self, ask: Ask) -> Reply<pb::Empty> {
        self.ask(ask).await.map_err(status)?;
        Ok(pb::Empty::new())
    }

    async fn ended(&self, ask: Ask) -> Reply<pb::WaitResponse> {
        match self.ask(ask).await.map_err(status)? {
            Answer::Ended(ended) => Ok(wait_response(ended)),
            other => Err(unexpected(&other)),
        }
    }

    async fn snapshot(&self, container: String) -> Result<Snapshot, Refusal> {
        match self.ask(Ask::Inspect { container }).await? {
            Answer::Inspect(snapshot) => Ok(*snapshot),
            other => Err(Refusal::Failed(format!("unexpected answer {other:?}"))),
        }
    }

    fn build(&self, request: pb::CreateRequest) -> Result<(Container, String), Refusal> {
        let invalid = |e: &dyn std::error::Error| Refusal::Invalid(chain(e));
        let id = names::generate_id().map_err(|e| Refusal::Failed(format!("cannot make an id: {e}")))?;
        let name = if request.name.is_empty() { names::short(&id).to_owned() } else { request.name.clone() };
        names::check_identifier("the name", &name).map_err(|e| invalid(&e))?;
        let restart: RestartPolicy = request.restart.parse().map_err(|e| invalid(&e))?;
        if request.remove && restart != RestartPolicy::No {
            return Err(Refusal::Invalid("a container that is removed at its end cannot have a restart policy".into()));
        }
        let spec = spec::build(&id, &request).map_err(|e| invalid(&e))?;
        let config = Config {
            command: spec.command,
            restart,
            terminal: request.terminal,
            stdin: request.stdin,
            remove: request.remove,
            stop_signal: signal_number(&request.stop_signal, nix::libc::SIGTERM)?,
            stop_timeout: if request.stop_timeout == 0 { 10 } else { request.stop_timeout },
            log: self.settings().log.with(&request.log_driver, &request.log_options).map_err(|e| invalid(&e))?,
            log_earlier: Vec::new(),
            labels: request.labels.into_iter().collect(),
        };
        let created_at_unix_ns = now_unix_ns();
        let container = Container { schema: SCHEMA, id, name, created_at_unix_ns, config, state: State::default() };
        Ok((container, spec.json))
    }

    async fn inspect_foreign(&self, one: &Foreign) -> pb::InspectResponse {
        let record = &one.record;
        let init = record.init();
        // Of a bundle that is gone by now there is none to show.
        let spec_json = regular::read_to_string(&record.bundle.join("config.json")).unwrap_or_default();
        let (output, output_unknown) = match record.sandbox {
            true => Default::default(),
            false => output::told(output::ask(&record.shim.address, &record.id, false).await),
        };
        pb::InspectResponse {
            stdin: init.map(|p| p.stdin.clone()).unwrap_or_default(),
            terminal: init.is_some_and(|p| p.terminal),
            bundle: record.bundle.display().to_string(),
            shim_address: record.shim.address.clone(),
            spec_json,
            output,
            output_unknown,
            container: protobuf::MessageField::some(self.foreign_message(one)),
            ..Default::default()
        }
    }
}

#[async_trait]
impl Supervisor for Api {
    async fn version(&self, _: &TtrpcContext, _: pb::VersionRequest) -> Reply<pb::VersionResponse> {
        Ok(pb::VersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            record_schema: record::SCHEMA,
            pid: std::process::id(),
            ..Default::default()
        })
    }

    async fn info(&self, _: &TtrpcContext, _: pb::InfoRequest) -> Reply<pb::InfoResponse> {
        self.information().await.map_err(status)
    }

    async fn create(&self, _: &TtrpcContext, request: pb::CreateRequest) -> Reply<pb::CreateResponse> {
        let (container, spec) = self.build(request).map_err(status)?;
        match self.ask(Ask::Create { container: Box::new(container), spec }).await.map_err(status)? {
            Answer::Created { id, name } => Ok(pb::CreateResponse { id, name, ..Default::default() }),
            other => Err(unexpected(&other)),
        }
    }

    async fn start(&self, _: &TtrpcContext, request: pb::StartRequest) -> Reply<pb::StartResponse> {
        check_fifos([&request.stdout, &request.stderr]).map_err(status)?;
        let onlooker = (!request.stdout.is_empty()).then(|| Onlooker {
            window: window(request.columns, request.rows),
            stdout: request.stdout,
            stderr: request.stderr,
        });
        match self.ask(Ask::Start { container: request.ref_, onlooker }).await.map_err(status)? {
            Answer::Started { pid } => Ok(pb::StartResponse { pid, ..Default::default() }),
            other => Err(unexpected(&other)),
        }
    }

    async fn restart(&self, _: &TtrpcContext, r: pb::RestartRequest) -> Reply<pb::StartResponse> {
        let (container, timeout, begun_unix_ns) = (r.ref_, u32::try_from(r.timeout).ok(), r.begun_unix_ns);
        match self.ask(Ask::Restart { container, timeout, begun_unix_ns }).await.map_err(status)? {
            Answer::Started { pid } => Ok(pb::StartResponse { pid, ..Default::default() }),
            other => Err(unexpected(&other)),
        }
    }

    async fn attach(&self, _: &TtrpcContext, request: pb::AttachRequest) -> Reply<pb::AttachResponse> {
        check_fifos([&request.stdout, &request.stderr]).map_err(status)?;
        let snapshot = self.snapshot(request.ref_).await.map_err(status)?;
        let config = snapshot.container.map(|c| c.config).unwrap_or_default();
        let call = Call::Attach { stdout: request.stdout, stderr: request.stderr };
        self.ask(Ask::Call { container: snapshot.id.clone(), call }).await.map_err(status)?;
        let stdin = if config.stdin { self.paths.stdin(&snapshot.id) } else { Default::default() };
        Ok(pb::AttachResponse {
            id: snapshot.id,
            stdin: stdin.display().to_string(),
            terminal: config.terminal,
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, request: pb::ExecRequest) -> Reply<pb::ExecResponse> {
        let checked = names::check_identifier("the exec id", &request.exec_id);
        checked.map_err(|e| status(Refusal::Invalid(e.to_string())))?;
        check_fifos([&request.stdin, &request.stdout, &request.stderr]).map_err(status)?;
        if request.command.is_empty() {
            return Err(status(Refusal::Invalid("there is no command to execute".into())));
        }
        let spec = ExecSpec {
            command: request.command,
            env: request.env,
            cwd: request.cwd,
            user: request.user,
            window: window(request.columns, request.rows).filter(|_| request.terminal),
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let ask = Ask::Exec { container: request.ref_, exec_id: request.exec_id, spec: Box::new(spec) };
        match self.ask(ask).await.map_err(status)? {
            Answer::ExecStarted { id, pid } => Ok(pb::ExecResponse { id, pid, ..Default::default() }),
            other => Err(unexpected(&other)),
        }
    }

    async fn resize(&self, _: &TtrpcContext, r: pb::ResizeRequest) -> Reply<pb::Empty> {
        let call = Call::Resize { exec_id: r.exec_id, columns: r.columns, rows: r.rows };
        self.done(Ask::Call { container: r.ref_, call }).await
    }

    async fn close_stdin(&self, _: &TtrpcContext, r: pb::CloseStdinRequest) -> Reply<pb::Empty> {
        self.done(Ask::Call { container: r.ref_, call: Call::CloseStdin { exec_id: r.exec_id } }).await
    }

    async fn wait(&self, _: &TtrpcContext, r: pb::WaitRequest) -> Reply<pb::WaitResponse> {
        self.ended(Ask::Wait { container: r.ref_, exec_id: r.exec_id }).await
    }

    async fn kill(&self, _: &TtrpcContext, r: pb::KillRequest) -> Reply<pb::Empty> {
        let signal = signal_number(&r.signal, nix::libc::SIGKILL).map_err(status)?;
        self.done(Ask::Kill { container: r.ref_, signal }).await
    }

    async fn stop(&self, _: &TtrpcContext, r: pb::StopRequest) -> Reply<pb::WaitResponse> {
        self.ended(Ask::Stop { container: r.ref_, timeout: u32::try_from(r.timeout).ok() }).await
    }

    async fn remove(&self, _: &TtrpcContext, r: pb::RemoveRequest) -> Reply<pb::Empty> {
        self.done(Ask::Remove { container: r.ref_, force: r.force }).await
    }

    async fn pause(&self, _: &TtrpcContext, r: pb::PauseRequest) -> Reply<pb::Empty> {
        self.done(Ask::Call { container: r.ref_, call: Call::Pause }).await
    }

    async fn resume(&self, _: &TtrpcContext, r: pb::ResumeRequest) -> Reply<pb::Empty> {
        self.done(Ask::Call { container: r.ref_, call: Call::Resume }).await
    }

    async fn reopen_logs(&self, _: &TtrpcContext, r: pb::ReopenLogsRequest) -> Reply<pb::Empty> {
        self.done(Ask::Call { container: r.ref_, call: Call::ReopenLogs }).await
    }

    async fn update(&self, _: &TtrpcContext, r: pb::UpdateRequest) -> Reply<pb::Empty> {
        let restart = match r.restart.as_str() {
            "" => None,
            text => {
                Some(text.parse().map_err(|e: crate::policy::PolicyError| status(Refusal::Invalid(e.to_string())))?)
            }
        };
        let limits =
            r.limits.as_ref().map(spec::limits).transpose().map_err(|e| status(Refusal::Invalid(chain(&e))))?;
        let limits: Limits = limits.unwrap_or_default();
        let log = LogChange { driver: r.log_driver, options: r.log_options };
        let log = Some(log).filter(|change| *change != LogChange::default());
        if limits.is_empty() && restart.is_none() && log.is_none() {
            return Err(status(Refusal::Invalid("there is nothing to update".into())));
        }
        self.done(Ask::Update { container: r.ref_, limits, restart, log }).await
    }

    async fn reload(&self, _: &TtrpcContext, _: pb::ReloadRequest) -> Reply<pb::ReloadResponse> {
        let (reply, told) = oneshot::channel();
        let sent = self.reloads.send(Reload { reply }).map_err(|_| gone());
        sent.map_err(status)?;
        Ok(reload_response(told.await.map_err(|_| status(gone()))?.map_err(status)?))
    }

    async fn stop_all(&self, _: &TtrpcContext, _: pb::StopAllRequest) -> Reply<pb::StopAllResponse> {
        let within = self.settings().shutdown_timeout;
        match self.ask(Ask::StopAll { within }).await.map_err(status)? {
            Answer::Stopped(stopped) => {
                let containers = stopped.into_iter().map(pb::StoppedContainer::from).collect();
                Ok(pb::StopAllResponse { containers, ..Default::default() })
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn list(&self, _: &TtrpcContext, r: pb::ListRequest) -> Reply<pb::ListResponse> {
        self.health.looked_at();
        let foreign = if r.all_managers { self.foreign().await.map_err(status)? } else { Vec::new() };
        let containers = self.listed(r.all, &foreign).await.map_err(status)?;
        Ok(pb::ListResponse { containers, ..Default::default() })
    }

    async fn inspect(&self, _: &TtrpcContext, r: pb::InspectRequest) -> Reply<pb::InspectResponse> {
        let snapshot = match self.snapshot(r.ref_.clone()).await {
            Err(refusal @ Refusal::NotFound(_)) => {
                let foreign = self.foreign().await.map_err(status)?;
                return match foreign::named(&foreign, &r.ref_) {
                    Ok(one) => Ok(self.inspect_foreign(one).await),
                    Err(Refusal::NotFound(_)) => Err(status(refusal)),
                    Err(other) => Err(status(other)),
                };
            }
            snapshot => snapshot.map_err(status)?,
        };
        let (output, output_unknown) = match snapshot.shim_address.as_str() {
            "" => Default::default(),
            address => output::told(output::ask(address, &snapshot.id, false).await),
        };
        let paths = &self.paths;
        let spec_json = store::read_spec(paths, &snapshot.id).map_err(|e| status(Refusal::Failed(chain(&e))))?;
        let config = snapshot.container.as_ref().map(|c| c.config.clone()).unwrap_or_default();
        let stdin = if config.stdin { paths.stdin(&snapshot.id) } else { Default::default() };
        Ok(pb::InspectResponse {
            log_path: paths.log(&snapshot.id, config.log.driver).map(|p| p.display().to_string()).unwrap_or_default(),
            log_driver: config.log.driver.to_string(),
            log_options: config.log.options().into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            earlier_logs: config.log_earlier.iter().map(|driver| earlier_log(paths, &snapshot.id, *driver)).collect(),
            stdin: stdin.display().to_string(),
            terminal: config.terminal,
            bundle: paths.bundle(&snapshot.id).display().to_string(),
            shim_address: snapshot.shim_address.clone(),
            spec_json,
            stop_signal: config.stop_signal.to_string(),
            stop_timeout: config.stop_timeout,
            remove: config.remove,
            output,
            output_unknown,
            execs: snapshot.execs.iter().map(exec_info).collect(),
            container: protobuf::MessageField::some(self.message(snapshot)),
            ..Default::default()
        })
    }

    async fn output(&self, _: &TtrpcContext, _: pb::OutputRequest) -> Reply<pb::OutputResponse> {
        let foreign = self.foreign().await.map_err(status)?;
        self.outputs(&foreign).await.map_err(status)
    }

    async fn stats(&self, _: &TtrpcContext, r: pb::StatsRequest) -> Reply<pb::StatsResponse> {
        let containers = self.used(r.refs, r.all_managers).await.map_err(status)?;
        Ok(pb::StatsResponse { containers, ..Default::default() })
    }

    async fn processes(&self, _: &TtrpcContext, r: pb::ProcessesRequest) -> Reply<pb::ProcessesResponse> {
        self.processes_of(r.ref_).await.map_err(status)
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        request: pb::EventsRequest,
        stream: ServerStreamSender<pb::Event>,
    ) -> Reply<()> {
        let from = match (request.after, request.since_unix_ns) {
            (0, 0) => Since::Now,
            (0, since) => Since::Time(since),
            (after, _) => Since::Number(after),
        };
        let (mut backlog, mut live) = self.events.subscribe(from);
        let mut last = request.after;
        loop {
            for event in backlog.drain(..) {
                last = event.number;
                stream.send(&event).await?;
            }
            match live.recv().await {
                Ok(event) => {
                    last = event.number;
                    stream.send(&event).await?;
                }
                // It was too slow for what is live: what it has missed is still kept, most likely.
                Err(RecvError::Lagged(missed)) => {
                    (backlog, live) = self.events.subscribe(Since::Number(last));
                    let missed = missed.saturating_sub(backlog.len() as u64);
                    if missed > 0 {
                        tracing::warn!(missed, "a reader of events is too slow");
                    }
                }
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    }
}

/// For questions that nobody answers any more.
fn gone() -> Refusal {
    Refusal::Unavailable(LEAVING.to_owned())
}

fn reload_response(told: Reloaded) -> pb::ReloadResponse {
    let changed = told.changed.into_iter().map(|c| pb::ReloadChanged {
        key: c.key.to_owned(),
        from: c.from,
        to: c.to,
        ..Default::default()
    });
    let refused = told.refused.into_iter().map(|r| pb::ReloadRefused {
        key: r.key.to_owned(),
        stays: r.stays,
        asked: r.asked,
        reason: r.why,
        ..Default::default()
    });
    pb::ReloadResponse {
        changed: changed.collect(),
        refused: refused.collect(),
        overridden: told.overridden.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

impl From<Stopped> for pb::StoppedContainer {
    fn from(stopped: Stopped) -> Self {
        Self {
            id: stopped.id,
            name: stopped.name,
            has_ended: stopped.how != How::LeftBehind,
            exit_status: stopped.outcome.map(|outcome| outcome.status),
            how: stopped.how.as_str().to_owned(),
            took_ns: u64::try_from(stopped.took.as_nanos()).unwrap_or(u64::MAX),
            ..Default::default()
        }
    }
}

/// A refusal as the wire wants it; the one place that knows the codes.
fn status(refusal: Refusal) -> ttrpc::Error {
    let code = match refusal {
        Refusal::NotFound(_) => Code::NOT_FOUND,
        Refusal::Exists(_) => Code::ALREADY_EXISTS,
        Refusal::Precondition(_) => Code::FAILED_PRECONDITION,
        Refusal::Invalid(_) => Code::INVALID_ARGUMENT,
        Refusal::Unavailable(_) => Code::UNAVAILABLE,
        Refusal::Failed(_) => Code::UNKNOWN,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, refusal.text()))
}

fn unexpected(answer: &Answer) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INTERNAL, format!("unexpected answer {answer:?}")))
}

/// The number of a signal given as `15`, `TERM` or `SIGTERM`; `default` for an empty text.
///
/// # Errors
/// [`Refusal::Invalid`].
pub fn signal_number(text: &str, default: i32) -> Result<i32, Refusal> {
    if text.is_empty() {
        return Ok(default);
    }
    if let Ok(number) = text.parse::<i32>() {
        if (1..=64).contains(&number) {
            return Ok(number);
        }
    } else {
        let upper = text.to_ascii_uppercase();
        let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
        if let Ok(signal) = full.parse::<nix::sys::signal::Signal>() {
            return Ok(signal as i32);
        }
    }
    Err(Refusal::Invalid(format!("{text:?} is not a signal (a name as TERM, or a number from 1 to 64)")))
}

/// The size of a client's window, if it told one.
fn window(columns: u32, rows: u32) -> Option<(u32, u32)> {
    (columns > 0 && rows > 0).then_some((columns, rows))
}

/// Paths that a client wants opened must be FIFOs, absolute ones.
fn check_fifos<const N: usize>(paths: [&String; N]) -> Result<(), Refusal> {
    for path in paths.into_iter().filter(|p| !p.is_empty()) {
        let invalid = |why: String| Refusal::Invalid(format!("{path:?} is not a FIFO for a stream: {why}"));
        if !Path::new(path).is_absolute() {
            return Err(invalid("it is not an absolute path".to_owned()));
        }
        let found = std::fs::symlink_metadata(path).map_err(|e| invalid(e.to_string()))?;
        if !found.file_type().is_fifo() {
            return Err(invalid("it is something else".to_owned()));
        }
    }
    Ok(())
}

fn wait_response(ended: Ended) -> pb::WaitResponse {
    pb::WaitResponse {
        id: ended.id,
        exit_status: ended.outcome.status,
        exited_at_unix_ns: ended.outcome.at_unix_ns,
        reason: ended.outcome.reason,
        ..Default::default()
    }
}

fn earlier_log(paths: &Paths, id: &str, driver: Driver) -> pb::EarlierLog {
    let path = paths.log(id, driver).map(|p| p.display().to_string()).unwrap_or_default();
    pb::EarlierLog { driver: driver.to_string(), path, ..Default::default() }
}

fn exec_info(exec: &ExecView) -> pb::ExecInfo {
    let mut message =
        pb::ExecInfo { id: exec.id.clone(), status: "running".to_owned(), pid: exec.pid, ..Default::default() };
    if let Some(outcome) = &exec.outcome {
        message.status = "exited".to_owned();
        message.exit_status = outcome.status;
        message.exited_at_unix_ns = outcome.at_unix_ns;
        message.oom_killed = exec.oom_killed();
        message.reason.clone_from(&outcome.reason);
    }
    message
}

fn container(snapshot: Snapshot) -> pb::Container {
    let mut message = pb::Container {
        namespace: snapshot.namespace,
        id: snapshot.id,
        name: snapshot.name,
        manager: snapshot.manager,
        status: snapshot.status.as_str().to_owned(),
        pid: snapshot.pid,
        shim_pid: snapshot.shim_pid,
        created_at_unix_ns: snapshot.created_at_unix_ns,
        reason: snapshot.reason,
        ..Default::default()
    };
    if let Some(Container { config, state, .. }) = snapshot.container {
        message.command = config.command;
        message.restart = config.restart.to_string();
        message.labels = config.labels.into_iter().collect();
        message.restarts = state.restarts;
        message.restarts_in_a_row = state.restarts_in_a_row;
        if let Some(Next::RestartAt(at)) = state.next {
            message.next_restart_at_unix_ns = at;
        }
        message.started_at_unix_ns = state.started_at_unix_ns;
        if let Some(outcome) = state.outcome {
            message.exit_status = outcome.status;
            message.exited_at_unix_ns = outcome.at_unix_ns;
        }
    }
    message
}

fn restore_report(report: &RestoreReport) -> pb::RestoreReport {
    let restored = |one: &crate::report::Restored| pb::Restored {
        namespace: one.namespace.clone(),
        id: one.id.clone(),
        name: one.name.clone(),
        class: one.class.as_str().to_owned(),
        detail: one.detail.clone(),
        pid: one.pid,
        ..Default::default()
    };
    pb::RestoreReport {
        at_unix_ns: report.at_unix_ns,
        took_ns: u64::try_from(report.took.as_nanos()).unwrap_or(u64::MAX),
        containers: report.containers.iter().map(restored).collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_refusal_has_its_code() {
        let all = [
            (Refusal::NotFound("x".into()), Code::NOT_FOUND),
            (Refusal::Exists("x".into()), Code::ALREADY_EXISTS),
            (Refusal::Precondition("x".into()), Code::FAILED_PRECONDITION),
            (Refusal::Invalid("x".into()), Code::INVALID_ARGUMENT),
            (Refusal::Unavailable("x".into()), Code::UNAVAILABLE),
            (Refusal::Failed("x".into()), Code::UNKNOWN),
        ];
        for (refusal, code) in all {
            match status(refusal) {
                ttrpc::Error::RpcStatus(s) => assert_eq!((s.code(), s.message()), (code, "x")),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn signals_by_name_and_number() {
        assert_eq!(signal_number("", 9), Ok(9));
        assert_eq!(signal_number("hup", 9), Ok(1));
        assert_eq!(signal_number("SIGUSR1", 9), Ok(10));
        assert_eq!(signal_number("64", 9), Ok(64));
        for bad in ["0", "65", "-1", "SIGNOPE", "SIG"] {
            assert!(signal_number(bad, 9).unwrap_err().to_string().contains(bad));
        }
    }

    #[test]
    fn only_absolute_paths_of_fifos_are_opened_for_a_client() {
        for bad in ["relative", "/dev/null", "/no/such/file"] {
            assert!(check_fifos([&bad.to_owned()]).is_err(), "{bad}");
        }
        check_fifos([&String::new()]).unwrap();
    }
}
