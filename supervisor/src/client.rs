//! One shim's RPCs, each with a deadline; and how anybody's socket is connected to, which is without ever blocking. The RPCs
//! are generic over the messages, because a shim serves the same methods under several service names.

use std::io;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api;
use holdfast_proto::{control, service};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use thiserror::Error;
use tokio::net::UnixStream;
use ttrpc::Code;
use ttrpc::r#async::transport::Socket;
use ttrpc::asynchronous::Client;

use crate::registry::{Refusal, RunState, TaskView};

/// For calls that a healthy shim answers from memory.
pub const QUICK: Duration = Duration::from_secs(2);

/// For calls behind which an OCI runtime runs.
pub const SLOW: Duration = Duration::from_secs(120);

/// For Delete, which waits for the end of output.
const DRAIN: Duration = Duration::from_secs(20);

/// How long a socket whose backlog is full is left alone before it is dialled again.
const FULL: Duration = Duration::from_millis(20);

/// Connects to the ttrpc server at `path`, however long its backlog is full: whoever wants less sets a deadline.
///
/// # Errors
/// As connect(2), in the kernel's own words.
pub async fn dial(path: &Path) -> io::Result<Client> {
    // Not by ttrpc's own connect, which blocks: a server that does not accept would stop this whole program once its backlog
    // is full. The kernel says at once that it would have to wait, connect(2): so do we.
    loop {
        match UnixStream::connect(path).await {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(FULL).await,
            connected => return Ok(Client::new(Socket::new(connected?))),
        }
    }
}

/// Whether anybody listens at `path`, found out without waiting: not if connections are refused there or nothing is there,
/// but if the backlog is full.
///
/// # Errors
/// Whatever else keeps us from connecting, which says nothing of who listens.
pub async fn has_listener(path: &Path) -> io::Result<bool> {
    match UnixStream::connect(path).await {
        Ok(_) => Ok(true),
        Err(e) => match e.kind() {
            io::ErrorKind::WouldBlock => Ok(true),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Ok(false),
            _ => Err(e),
        },
    }
}

/// Why a call gave no answer.
#[derive(Debug, Error)]
pub enum CallError {
    /// The shim's own words.
    #[error("{}", .0.message())]
    Status(ttrpc::Status),
    /// No answer in time.
    #[error("the shim did not answer {method} within {within:?}")]
    Silent {
        /// The method.
        method: &'static str,
        /// The deadline.
        within: Duration,
    },
    /// The connection is gone.
    #[error("the connection to the shim broke in {method}")]
    Broken {
        /// The method.
        method: &'static str,
        /// As told by the transport.
        source: ttrpc::Error,
    },
}

impl CallError {
    /// Whether the shim says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status(s) if s.code() == Code::NOT_FOUND)
    }

    /// Whether there was no answer in time. A connection that is refused or closed is another matter: the shim is about to
    /// end, or to be replaced.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Silent { .. })
    }

    /// For the one who asked; `what` says what was tried.
    pub fn refusal(&self, what: &str) -> Refusal {
        let text = format!("{what}: {}", crate::chain(self));
        match self {
            Self::Status(s) => match s.code() {
                Code::NOT_FOUND => Refusal::NotFound(text),
                Code::ALREADY_EXISTS => Refusal::Exists(text),
                Code::FAILED_PRECONDITION => Refusal::Precondition(text),
                Code::INVALID_ARGUMENT => Refusal::Invalid(text),
                _ => Refusal::Failed(text),
            },
            Self::Silent { .. } | Self::Broken { .. } => Refusal::Unavailable(text),
        }
    }
}

/// A connection to one shim, for one container.
#[derive(Clone)]
pub struct ShimClient {
    client: Client,
    id: String,
}

/// An answer without content.
type Nothing = Result<(), CallError>;

impl ShimClient {
    /// Connects within `within`.
    ///
    /// # Errors
    /// [`CallError::Silent`] or [`CallError::Broken`].
    pub async fn connect(address: &str, id: &str, within: Duration) -> Result<Self, CallError> {
        let method = "connect";
        let path = Path::new(address.strip_prefix("unix://").unwrap_or(address));
        match tokio::time::timeout(within, dial(path)).await {
            Ok(Ok(client)) => Ok(Self { client, id: id.to_owned() }),
            Ok(Err(e)) => Err(CallError::Broken { method, source: ttrpc::Error::Others(e.to_string()) }),
            Err(_) => Err(CallError::Silent { method, within }),
        }
    }

    /// Connects and asks; one deadline for everything, which is that of `method` if it passes.
    ///
    /// # Errors
    /// As [`Self::connect`] and the question.
    pub async fn ask<A, F: Future<Output = Result<A, CallError>>>(
        address: &str,
        id: &str,
        method: &'static str,
        within: Duration,
        question: impl FnOnce(Self) -> F,
    ) -> Result<A, CallError> {
        let asked = async { question(Self::connect(address, id, within).await?).await };
        tokio::time::timeout(within, asked).await.unwrap_or(Err(CallError::Silent { method, within }))
    }

    async fn call<Q: Message, A: Message>(
        &self,
        service: &str,
        method: &'static str,
        question: &Q,
        within: Option<Duration>,
    ) -> Result<A, CallError> {
        let broken = |source| CallError::Broken { method, source };
        let payload = question.write_to_bytes().map_err(|e| broken(ttrpc::Error::Others(e.to_string())))?;
        let request = ttrpc::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            ..ttrpc::Request::default()
        };
        let answer = match within {
            None => self.client.request(request).await,
            Some(within) => match tokio::time::timeout(within, self.client.request(request)).await {
                Ok(answer) => answer,
                Err(_) => return Err(CallError::Silent { method, within }),
            },
        };
        match answer {
            Ok(response) => {
                A::parse_from_bytes(&response.payload).map_err(|e| broken(ttrpc::Error::Others(e.to_string())))
            }
            Err(ttrpc::Error::RpcStatus(status)) => Err(CallError::Status(status)),
            Err(source) => Err(broken(source)),
        }
    }

    async fn task<Q: Message, A: Message>(
        &self,
        method: &'static str,
        q: &Q,
        within: Duration,
    ) -> Result<A, CallError> {
        self.call(service::TASK_V2, method, q, Some(within)).await
    }

    async fn task_unit<Q: Message>(&self, method: &'static str, question: &Q, within: Duration) -> Nothing {
        self.task::<Q, api::Empty>(method, question, within).await.map(drop)
    }

    /// The shim's pid, and that of the container's first process (0 if there is none).
    ///
    /// # Errors
    /// See [`CallError`]; so for all the others.
    pub async fn connect_task(&self, within: Duration) -> Result<(u32, u32), CallError> {
        let request = api::ConnectRequest { id: self.id.clone(), ..Default::default() };
        let answer: api::ConnectResponse = self.task("Connect", &request, within).await?;
        Ok((answer.shim_pid, answer.task_pid))
    }

    /// Creates the container.
    pub async fn create(&self, request: &api::CreateTaskRequest, within: Duration) -> Result<u32, CallError> {
        let answer: api::CreateTaskResponse = self.task("Create", request, within).await?;
        Ok(answer.pid)
    }

    /// Starts the first process, or an exec.
    pub async fn start(&self, exec_id: &str, within: Duration) -> Result<u32, CallError> {
        let request = api::StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let answer: api::StartResponse = self.task("Start", &request, within).await?;
        Ok(answer.pid)
    }

    /// Where the task is in its life; `None`: the shim has no such task.
    pub async fn state(&self, within: Duration) -> Result<Option<TaskView>, CallError> {
        let request = api::StateRequest { id: self.id.clone(), ..Default::default() };
        let answer: Result<api::StateResponse, _> = self.task("State", &request, within).await;
        let answer = match answer {
            Err(e) if e.is_not_found() => return Ok(None),
            other => other?,
        };
        let state = match answer.status.enum_value_or_default() {
            api::Status::CREATED => RunState::Created,
            api::Status::PAUSED | api::Status::PAUSING => RunState::Paused,
            api::Status::STOPPED => {
                RunState::Stopped { status: answer.exit_status, at_unix_ns: unix_ns(&answer.exited_at) }
            }
            _ => RunState::Running,
        };
        Ok(Some(TaskView {
            pid: answer.pid,
            state,
            started_at_unix_ns: crate::sys::proc::started_at_unix_ns(answer.pid),
            reason: String::new(),
        }))
    }

    /// Waits for the end of the first process or of an exec: status and time.
    pub async fn wait(&self, exec_id: &str) -> Result<(u32, i64), CallError> {
        let request = api::WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let answer: api::WaitResponse = self.call(service::TASK_V2, "Wait", &request, None).await?;
        Ok((answer.exit_status, unix_ns(&answer.exited_at)))
    }

    /// Sends a signal to the first process.
    pub async fn kill(&self, signal: i32) -> Nothing {
        let signal = signal.cast_unsigned();
        let request = api::KillRequest { id: self.id.clone(), signal, ..Default::default() };
        self.task_unit("Kill", &request, SLOW).await
    }

    /// Freezes all processes.
    pub async fn pause(&self) -> Nothing {
        let request = api::PauseRequest { id: self.id.clone(), ..Default::default() };
        self.task_unit("Pause", &request, SLOW).await
    }

    /// Lets frozen processes go on.
    pub async fn resume(&self) -> Nothing {
        let request = api::ResumeRequest { id: self.id.clone(), ..Default::default() };
        self.task_unit("Resume", &request, SLOW).await
    }

    /// Deletes the task, or an exec: its status and time of exit.
    pub async fn delete(&self, exec_id: &str) -> Result<(u32, i64), CallError> {
        let request = api::DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        let answer: api::DeleteResponse = self.task("Delete", &request, DRAIN).await?;
        Ok((answer.exit_status, unix_ns(&answer.exited_at)))
    }

    /// Asks the shim to end. It may close the connection before the answer, which is no error.
    pub async fn shutdown(&self) -> Nothing {
        let request = api::ShutdownRequest { id: self.id.clone(), ..Default::default() };
        match self.task_unit("Shutdown", &request, QUICK).await {
            Err(CallError::Broken { .. }) => Ok(()),
            other => other,
        }
    }

    /// Registers an exec; `process` is the OCI process as JSON.
    pub async fn exec(&self, mut request: api::ExecProcessRequest, process: Vec<u8>) -> Nothing {
        request.id.clone_from(&self.id);
        request.spec = MessageField::some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
            value: process,
            ..Default::default()
        });
        // From memory, too; but whoever asks waits for a start anyway, and one that is given up half-way is left over.
        self.task_unit("Exec", &request, SLOW).await
    }

    /// Sets a terminal's window size.
    pub async fn resize(&self, exec_id: &str, width: u32, height: u32) -> Nothing {
        let (id, exec_id) = (self.id.clone(), exec_id.to_owned());
        let request = api::ResizePtyRequest { id, exec_id, width, height, ..Default::default() };
        self.task_unit("ResizePty", &request, QUICK).await
    }

    /// Ends a process's standard input.
    pub async fn close_stdin(&self, exec_id: &str) -> Nothing {
        let (id, exec_id) = (self.id.clone(), exec_id.to_owned());
        let request = api::CloseIORequest { id, exec_id, stdin: true, ..Default::default() };
        self.task_unit("CloseIO", &request, QUICK).await
    }

    /// Sets limits; `resources` is the OCI LinuxResources as JSON.
    pub async fn update(&self, resources: Vec<u8>) -> Nothing {
        let resources = MessageField::some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
            value: resources,
            ..Default::default()
        });
        let request = api::UpdateTaskRequest { id: self.id.clone(), resources, ..Default::default() };
        self.task_unit("Update", &request, SLOW).await
    }

    /// Has the log opened again by its path; nothing goes into the old file after that.
    pub async fn reopen_logs(&self) -> Nothing {
        let request = control::ReopenLogsRequest { id: self.id.clone(), ..Default::default() };
        // It waits for what is being written, and a disk may be slow.
        self.call::<_, control::ReopenLogsResponse>(service::CONTROL, "ReopenLogs", &request, Some(SLOW))
            .await
            .map(drop)
    }

    /// Copies the first process's output into two FIFOs as well.
    pub async fn attach(&self, stdout: &str, stderr: &str) -> Nothing {
        let (id, stdout, stderr) = (self.id.clone(), stdout.to_owned(), stderr.to_owned());
        let request = control::AttachRequest { id, stdout, stderr, ..Default::default() };
        self.call::<_, control::AttachResponse>(service::CONTROL, "Attach", &request, Some(QUICK)).await.map(drop)
    }

    /// What becomes of the container's output, or of that of all containers if this one has no id. With `measure` the
    /// shim looks at the disk, too.
    pub async fn output(&self, measure: bool, within: Duration) -> Result<control::OutputResponse, CallError> {
        let request = control::OutputRequest { id: self.id.clone(), measure, ..Default::default() };
        self.call(service::CONTROL, "Output", &request, Some(within)).await
    }

    /// What the shim is. Answered from memory.
    pub async fn info(&self, within: Duration) -> Result<control::InfoResponse, CallError> {
        self.call(service::CONTROL, "Info", &control::InfoRequest::new(), Some(within)).await
    }

    /// What the container uses, as the metrics of its control group.
    pub async fn stats(&self, within: Duration) -> Result<Any, CallError> {
        let request = api::StatsRequest { id: self.id.clone(), ..Default::default() };
        let answer: api::StatsResponse = self.task("Stats", &request, within).await?;
        Ok(answer.stats.unwrap_or_default())
    }

    /// The container's processes: pids, and of the first processes of execs their ids.
    pub async fn pids(&self, within: Duration) -> Result<Vec<(u32, String)>, CallError> {
        let request = api::PidsRequest { id: self.id.clone(), ..Default::default() };
        let answer: api::PidsResponse = self.task("Pids", &request, within).await?;
        Ok(answer.processes.iter().map(|process| (process.pid, exec_id(&process.info))).collect())
    }
}

/// The exec id in a `containerd.runc.v1.ProcessDetails`: its first field, as that of `ConnectRequest` is.
fn exec_id(details: &MessageField<Any>) -> String {
    let details = details.as_ref().filter(|any| any.type_url.ends_with("ProcessDetails"));
    details.and_then(|any| api::ConnectRequest::parse_from_bytes(&any.value).ok()).map(|d| d.id).unwrap_or_default()
}

/// A protobuf time in nanoseconds since the Unix epoch; now, if there is none.
pub fn unix_ns(time: &MessageField<protobuf::well_known_types::timestamp::Timestamp>) -> i64 {
    match time.as_ref() {
        Some(t) if t.seconds != 0 || t.nanos != 0 => {
            t.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(t.nanos))
        }
        _ => now_unix_ns(),
    }
}

/// Now, in nanoseconds since the Unix epoch.
pub fn now_unix_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use futures_util::FutureExt;
    use nix::sys::socket::{Backlog, listen};

    use super::*;

    /// A directory for sockets; removed at the end.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let place = std::env::temp_dir().join(format!("holdfast-dial-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&place);
            fs::create_dir_all(&place).unwrap();
            Self(place)
        }
        fn socket(&self) -> PathBuf {
            self.0.join("s")
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A server that accepts nothing, with as many connections as its backlog takes.
    async fn full(path: &Path) -> (UnixListener, Vec<UnixStream>) {
        let listener = UnixListener::bind(path).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let mut queued = Vec::new();
        loop {
            match UnixStream::connect(path).await {
                Ok(stream) => queued.push(stream),
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                    return (listener, queued);
                }
            }
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_accept_stops_nobody_who_dials() {
        let place = Place::new("full");
        let (listener, _queued) = full(&place.socket()).await;
        let socket = place.socket();
        let mut dialling = std::pin::pin!(dial(&socket));
        assert!(dialling.as_mut().now_or_never().is_none());
        listener.accept().unwrap();
        dialling.await.unwrap();
    }

    #[tokio::test]
    async fn only_a_refusal_or_nothing_there_means_that_nobody_listens() {
        let place = Place::new("listens");
        let socket = place.socket();
        assert!(!has_listener(&socket).await.unwrap(), "nothing is there");
        let (listener, _queued) = full(&socket).await;
        assert!(has_listener(&socket).await.unwrap(), "its backlog is full");
        listener.accept().unwrap();
        assert!(has_listener(&socket).await.unwrap());
        drop(listener);
        assert!(!has_listener(&socket).await.unwrap(), "it refuses");
        assert!(has_listener(&socket.join("below")).await.is_err(), "who knows");
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_deadline_that_has_passed_is_silence() {
        let place = Place::new("silence");
        let socket = place.socket();
        let address = socket.display().to_string();
        let is_broken = |e: CallError| matches!(e, CallError::Broken { .. }) && !e.is_silence();
        let ask = async || {
            let question = |client: ShimClient| async move { client.info(QUICK).await };
            ShimClient::ask(&address, "", "Info", QUICK, question).await.unwrap_err()
        };
        assert!(is_broken(ask().await), "nothing is there");
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(ask().await.is_silence(), "nobody accepts");
        drop(listener);
        assert!(is_broken(ask().await), "it refuses");
        fs::remove_file(&socket).unwrap();
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let closes = async { drop(listener.accept().await.unwrap()) };
        let (error, ()) = tokio::join!(ask(), closes);
        assert!(is_broken(error), "it closes");
    }
}
