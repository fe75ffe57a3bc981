//! RPC for the command line: requests are checked and turned into questions, answers into messages. No decisions.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use async_trait::async_trait;
use holdfast_proto::record::{self, Record};
use holdfast_proto::supervisor as pb;
use holdfast_proto::supervisor_ttrpc::Supervisor;
use tokio::sync::{broadcast::error::RecvError, mpsc, oneshot};
use ttrpc::Code;
use ttrpc::r#async::{ServerStreamSender, TtrpcContext};

use crate::client::now_unix_ns;
use crate::config::Settings;
use crate::container::{Config, Container, SCHEMA, State};
use crate::events::EventLog;
use crate::policy::RestartPolicy;
use crate::registry::{Answer, Ask, Call, Ended, ExecSpec, Limits, Refusal, Snapshot};
use crate::report::RestoreReport;
use crate::{chain, names, scan, spec, store, sys};

/// A question on its way to the daemon's loop.
pub struct Question {
    /// What is asked.
    pub ask: Ask,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Answer, Refusal>>,
}

/// The service.
pub struct Api {
    settings: Settings,
    questions: mpsc::UnboundedSender<Question>,
    events: EventLog,
    started_at_unix_ns: i64,
}

type Reply<T> = ttrpc::Result<T>;

impl Api {
    /// A service that asks by `questions`.
    pub fn new(settings: &Settings, questions: mpsc::UnboundedSender<Question>, events: EventLog) -> Self {
        Self { settings: settings.clone(), questions, events, started_at_unix_ns: now_unix_ns() }
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, Refusal> {
        let gone = || Refusal::Unavailable("holdfastd is leaving".to_owned());
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
            log_max_size: self.settings.log_max_size,
            log_max_file: self.settings.log_max_file,
            labels: request.labels.into_iter().collect(),
        };
        let created_at_unix_ns = now_unix_ns();
        let container = Container { schema: SCHEMA, id, name, created_at_unix_ns, config, state: State::default() };
        Ok((container, spec.json))
    }

    /// Other managers' containers, read when asked for: they come and go without our knowing.
    fn foreign(&self) -> Vec<pb::Container> {
        let boot_id = sys::proc::boot_id().unwrap_or_default();
        scan::scan(&self.settings.paths, &boot_id).foreign.iter().map(foreign).collect()
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
        let report = match self.ask(Ask::Report).await.map_err(status)? {
            Answer::Report(report) => *report,
            other => return Err(unexpected(&other)),
        };
        let list = match self.ask(Ask::List { all: true }).await.map_err(status)? {
            Answer::List(list) => list,
            other => return Err(unexpected(&other)),
        };
        let text = |path: &Path| path.display().to_string();
        Ok(pb::InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at_unix_ns: self.started_at_unix_ns,
            run_dir: text(&self.settings.paths.run),
            state_dir: text(&self.settings.paths.state),
            socket: text(&self.settings.socket),
            shim: self.settings.find_shim().as_deref().map(text).unwrap_or_default(),
            runtime: self.settings.runtime.as_deref().map(text).unwrap_or_default(),
            running: u32::try_from(list.iter().filter(|s| s.pid != 0).count()).unwrap_or(u32::MAX),
            total: u32::try_from(list.len()).unwrap_or(u32::MAX),
            restore: protobuf::MessageField::some(restore_report(&report)),
            ..Default::default()
        })
    }

    async fn create(&self, _: &TtrpcContext, request: pb::CreateRequest) -> Reply<pb::CreateResponse> {
        let (container, spec) = self.build(request).map_err(status)?;
        match self.ask(Ask::Create { container: Box::new(container), spec }).await.map_err(status)? {
            Answer::Created { id, name } => Ok(pb::CreateResponse { id, name, ..Default::default() }),
            other => Err(unexpected(&other)),
        }
    }

    async fn start(&self, _: &TtrpcContext, request: pb::StartRequest) -> Reply<pb::StartResponse> {
        match self.ask(Ask::Start { container: request.ref_ }).await.map_err(status)? {
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
        let stdin = if config.stdin { self.settings.paths.stdin(&snapshot.id) } else { Default::default() };
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
        if limits.is_empty() && restart.is_none() {
            return Err(status(Refusal::Invalid("there is nothing to update".into())));
        }
        self.done(Ask::Update { container: r.ref_, limits, restart }).await
    }

    async fn list(&self, _: &TtrpcContext, r: pb::ListRequest) -> Reply<pb::ListResponse> {
        let mut containers: Vec<pb::Container> = match self.ask(Ask::List { all: r.all }).await.map_err(status)? {
            Answer::List(list) => list.into_iter().map(container).collect(),
            other => return Err(unexpected(&other)),
        };
        if r.all_managers {
            containers.extend(self.foreign());
        }
        Ok(pb::ListResponse { containers, ..Default::default() })
    }

    async fn inspect(&self, _: &TtrpcContext, r: pb::InspectRequest) -> Reply<pb::InspectResponse> {
        let snapshot = self.snapshot(r.ref_).await.map_err(status)?;
        let paths = &self.settings.paths;
        let spec_json = store::read_spec(paths, &snapshot.id).map_err(|e| status(Refusal::Failed(chain(&e))))?;
        let config = snapshot.container.as_ref().map(|c| c.config.clone()).unwrap_or_default();
        let stdin = if config.stdin { paths.stdin(&snapshot.id) } else { Default::default() };
        Ok(pb::InspectResponse {
            log_path: paths.log(&snapshot.id).display().to_string(),
            stdin: stdin.display().to_string(),
            terminal: config.terminal,
            bundle: paths.bundle(&snapshot.id).display().to_string(),
            shim_address: snapshot.shim_address.clone(),
            spec_json,
            stop_signal: config.stop_signal.to_string(),
            stop_timeout: config.stop_timeout,
            remove: config.remove,
            container: protobuf::MessageField::some(container(snapshot)),
            ..Default::default()
        })
    }

    async fn events(
        &self,
        _: &TtrpcContext,
        request: pb::EventsRequest,
        stream: ServerStreamSender<pb::Event>,
    ) -> Reply<()> {
        let (backlog, mut live) = self.events.subscribe(request.since_unix_ns);
        for event in backlog {
            stream.send(&event).await?;
        }
        loop {
            match live.recv().await {
                Ok(event) => stream.send(&event).await?,
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "a reader of events is too slow");
                }
                Err(RecvError::Closed) => return Ok(()),
            }
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

fn container(snapshot: Snapshot) -> pb::Container {
    let mut message = pb::Container {
        namespace: snapshot.namespace,
        id: snapshot.id,
        name: snapshot.name,
        manager: snapshot.manager,
        status: snapshot.status,
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
        message.started_at_unix_ns = state.started_at_unix_ns;
        if let Some(outcome) = state.outcome {
            message.exit_status = outcome.status;
            message.exited_at_unix_ns = outcome.at_unix_ns;
        }
    }
    message
}

fn foreign(record: &Record) -> pb::Container {
    let init = record.init();
    let live = init.filter(|p| p.exit.is_none() && sys::proc::is_live(p.pid, p.start_time));
    let manager = match &record.manager {
        record::Manager::Containerd { address } => address.clone(),
        record::Manager::Holdfastd => "holdfastd".to_owned(),
    };
    pb::Container {
        namespace: record.namespace.clone(),
        id: record.id.clone(),
        name: record.id.clone(),
        manager,
        status: "foreign".to_owned(),
        pid: live.map_or(0, |p| p.pid),
        shim_pid: record.shim.pid,
        started_at_unix_ns: live.map_or(0, |p| sys::proc::started_at_unix_ns(p.pid)),
        exit_status: init.and_then(|p| p.exit).map_or(0, |e| e.status),
        ..Default::default()
    }
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
