//! A connection to the supervisor that survives the supervisor: requests that may be repeated are, after a reconnect.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use holdfast_proto::supervisor as pb;
use holdfast_proto::supervisor_ttrpc::SupervisorClient;
use ttrpc::Code;
use ttrpc::context::{self, Context};

use super::{CliError, FAILED, say};
use crate::api::LEAVING;
use crate::client::dial;
use crate::registry::start_failure_status;

/// For requests that are answered from memory.
const QUICK: Duration = Duration::from_secs(30);

/// For requests behind which a container is made or started.
const SLOW: Duration = Duration::from_secs(180);

/// For requests that holdfastd bounds itself, by its settings.
const BOUNDED_THERE: Duration = Duration::from_secs(24 * 60 * 60);

/// The pauses between attempts to reach a supervisor that went away.
const RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// The connection. Cheap to clone; clones share it.
#[derive(Clone)]
pub(super) struct Connection {
    socket: Rc<PathBuf>,
    client: Rc<RefCell<Option<SupervisorClient>>>,
}

/// How a request ended that reached, or did not reach, the supervisor.
enum Failure {
    Refused(ttrpc::Status),
    /// Its successor may have an answer.
    Broken(ttrpc::Error),
}

impl From<ttrpc::Error> for Failure {
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) if status.code() == Code::UNAVAILABLE && status.message() == LEAVING => {
                Self::Broken(ttrpc::Error::RpcStatus(status))
            }
            ttrpc::Error::RpcStatus(status) => Self::Refused(status),
            other => Self::Broken(other),
        }
    }
}

/// A refusal with the exit code that it implies.
fn refused(status: &ttrpc::Status) -> CliError {
    let text = status.message().to_owned();
    let failed_command = status.code() == Code::UNKNOWN;
    let exit = match start_failure_status(&text) {
        code @ (126 | 127) if failed_command => u8::try_from(code).unwrap_or(FAILED),
        _ => FAILED,
    };
    CliError::Refused { text, code: status.code(), exit, next: None }
}

macro_rules! once {
    ($name:ident, $request:ty, $response:ty, $within:expr) => {
        /// Sends the request once.
        pub(super) async fn $name(&self, request: &$request) -> Result<$response, CliError> {
            let client = self.client().await?;
            client.$name(within($within), request).await.map_err(|e| self.failed(e))
        }
    };
}

macro_rules! repeated {
    ($(#[$doc:meta])* $name:ident, $request:ty, $response:ty, $context:expr) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// A refusal, or no supervisor at the first attempt.
        pub(super) async fn $name(&self, request: &$request) -> Result<$response, CliError> {
            let (mut client, mut told) = (self.client().await?, false);
            loop {
                match client.$name($context, request).await.map_err(Failure::from) {
                    Ok(response) => return Ok(response),
                    Err(Failure::Refused(status)) => return Err(refused(&status)),
                    Err(Failure::Broken(_)) => client = self.reconnect(&mut told).await,
                }
            }
        }
    };
}

fn within(time: Duration) -> Context {
    context::with_duration(time)
}

impl Connection {
    /// One that is made when it is needed.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket: Rc::new(socket), client: Rc::default() }
    }

    async fn client(&self) -> Result<SupervisorClient, CliError> {
        if let Some(client) = self.client.borrow().clone() {
            return Ok(client);
        }
        let unreachable = |source| CliError::Unreachable { socket: self.socket.display().to_string(), source };
        let client = SupervisorClient::new(dial(&self.socket).await.map_err(unreachable)?);
        *self.client.borrow_mut() = Some(client.clone());
        Ok(client)
    }

    fn failed(&self, error: ttrpc::Error) -> CliError {
        match Failure::from(error) {
            Failure::Refused(status) => refused(&status),
            Failure::Broken(ttrpc::Error::RpcStatus(status)) => refused(&status),
            Failure::Broken(source) => {
                self.forget();
                CliError::Broken { source }
            }
        }
    }

    fn forget(&self) {
        *self.client.borrow_mut() = None;
    }

    once!(version, pb::VersionRequest, pb::VersionResponse, QUICK);
    once!(info, pb::InfoRequest, pb::InfoResponse, QUICK);
    once!(create, pb::CreateRequest, pb::CreateResponse, BOUNDED_THERE);
    once!(attach, pb::AttachRequest, pb::AttachResponse, QUICK);
    once!(kill, pb::KillRequest, pb::Empty, SLOW);
    once!(pause, pb::PauseRequest, pb::Empty, SLOW);
    once!(resume, pb::ResumeRequest, pb::Empty, SLOW);
    once!(update, pb::UpdateRequest, pb::Empty, SLOW);
    once!(reopen_logs, pb::ReopenLogsRequest, pb::Empty, SLOW);
    once!(list, pb::ListRequest, pb::ListResponse, QUICK);
    once!(output, pb::OutputRequest, pb::OutputResponse, QUICK);
    once!(reload, pb::ReloadRequest, pb::ReloadResponse, QUICK);
    once!(stop_all, pb::StopAllRequest, pb::StopAllResponse, BOUNDED_THERE);
    once!(inspect, pb::InspectRequest, pb::InspectResponse, QUICK);
    once!(processes, pb::ProcessesRequest, pb::ProcessesResponse, QUICK);

    /// A connection again, however long the supervisor is away; says so once.
    async fn reconnect(&self, told: &mut bool) -> SupervisorClient {
        self.forget();
        let mut pause = RETRY;
        loop {
            // Before the first attempt, too: one that is leaving is there still, and would send us away again and again.
            tokio::time::sleep(pause).await;
            if let Ok(client) = self.client().await {
                return client;
            }
            pause = (pause * 2).min(LONGEST_RETRY);
            if pause > LONGEST_RETRY / 2 && !*told {
                *told = true;
                say::tell("holdfastd is away; the container is not. Waiting for it to return.");
            }
        }
    }

    /// A connection, however long the supervisor is away.
    async fn client_at_last(&self, told: &mut bool) -> SupervisorClient {
        match self.client().await {
            Ok(client) => client,
            Err(_) => self.reconnect(told).await,
        }
    }

    repeated!(
        /// Waits for the end of a container or exec, across restarts of the supervisor.
        wait, pb::WaitRequest, pb::WaitResponse, Context::default()
    );
    repeated!(
        /// Starts a container, across restarts of the supervisor: one that runs by then was started.
        start, pb::StartRequest, pb::StartResponse, Context::default()
    );
    repeated!(
        /// Stops a container, across restarts of the supervisor.
        stop, pb::StopRequest, pb::WaitResponse, Context::default()
    );
    repeated!(
        /// Restarts a container, across restarts of the supervisor; once, if the request says which run is to be stopped.
        restart, pb::RestartRequest, pb::StartResponse, Context::default()
    );

    repeated!(
        /// What containers use, across restarts of the supervisor.
        stats, pb::StatsRequest, pb::StatsResponse, within(QUICK)
    );

    /// Starts an exec, across restarts of the supervisor: one that is there at a second attempt was started by the first.
    ///
    /// # Errors
    /// A refusal, or no supervisor at the first attempt.
    pub(super) async fn exec(&self, request: &pb::ExecRequest) -> Result<pb::ExecResponse, CliError> {
        let (mut client, mut told, mut again) = (self.client().await?, false, false);
        loop {
            match client.exec(Context::default(), request).await.map_err(Failure::from) {
                Ok(response) => return Ok(response),
                Err(Failure::Refused(status)) if again && status.code() == Code::ALREADY_EXISTS => {
                    let inspect = pb::InspectRequest { ref_: request.ref_.clone(), ..Default::default() };
                    let inspected = self.inspect(&inspect).await?;
                    let pid = inspected.execs.iter().find(|exec| exec.id == request.exec_id).map_or(0, |exec| exec.pid);
                    let id = inspected.container.get_or_default().id.clone();
                    return Ok(pb::ExecResponse { id, pid, ..Default::default() });
                }
                Err(Failure::Refused(status)) => return Err(refused(&status)),
                Err(Failure::Broken(_)) => {
                    client = self.reconnect(&mut told).await;
                    again = true;
                }
            }
        }
    }

    /// Removes a container, across restarts of the supervisor: one that is gone after a reconnect was removed.
    ///
    /// # Errors
    /// A refusal, or no supervisor at the first attempt.
    pub(super) async fn remove(&self, request: &pb::RemoveRequest) -> Result<(), CliError> {
        let (mut client, mut told, mut again) = (self.client().await?, false, false);
        loop {
            match client.remove(within(SLOW), request).await.map_err(Failure::from) {
                Ok(_) => return Ok(()),
                Err(Failure::Refused(status)) if again && status.code() == Code::NOT_FOUND => return Ok(()),
                Err(Failure::Refused(status)) => return Err(refused(&status)),
                Err(Failure::Broken(_)) => {
                    client = self.reconnect(&mut told).await;
                    again = true;
                }
            }
        }
    }

    /// Ends a process's standard input, across restarts of the supervisor. Best effort: the process may be gone.
    pub(super) async fn close_stdin(&self, request: &pb::CloseStdinRequest) {
        let mut told = true;
        let mut client = self.client_at_last(&mut told).await;
        while let Err(Failure::Broken(_)) = client.close_stdin(within(QUICK), request).await.map_err(Failure::from) {
            client = self.reconnect(&mut told).await;
        }
    }

    /// Sets the size of a terminal's window, across restarts of the supervisor. Best effort: the process may be gone.
    pub(super) async fn resize(&self, request: &pb::ResizeRequest) {
        let mut told = true;
        let mut client = self.client_at_last(&mut told).await;
        while let Err(Failure::Broken(_)) = client.resize(within(QUICK), request).await.map_err(Failure::from) {
            client = self.reconnect(&mut told).await;
        }
    }

    /// Hands every event to `take`, across restarts of the supervisor; returns when `take` says so.
    ///
    /// # Errors
    /// A refusal, or no supervisor at the first attempt.
    pub(super) async fn events(
        &self,
        mut since_unix_ns: i64,
        mut take: impl FnMut(pb::Event) -> Result<bool, CliError>,
    ) -> Result<(), CliError> {
        let (mut client, mut told, mut after) = (self.client().await?, false, 0);
        loop {
            let request = pb::EventsRequest { since_unix_ns, after, ..Default::default() };
            // From here on nothing may be missed across a reconnect, even if nothing has happened yet.
            if since_unix_ns == 0 {
                since_unix_ns = crate::client::now_unix_ns();
            }
            match client.events(Context::default(), &request).await.map_err(Failure::from) {
                Err(Failure::Refused(status)) => return Err(refused(&status)),
                Err(Failure::Broken(_)) => {}
                Ok(mut stream) => {
                    while let Ok(Some(event)) = stream.recv().await {
                        after = event.number;
                        if !take(event)? {
                            return Ok(());
                        }
                    }
                }
            }
            client = self.reconnect(&mut told).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::net::UnixListener;

    use tokio::time::Instant;

    use super::*;

    /// Time stands still but for who sleeps.
    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_sends_everybody_away_is_not_asked_without_a_pause() {
        let socket = std::env::temp_dir().join(format!("holdfast-leaving-{}", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let _listener = UnixListener::bind(&socket).unwrap();
        let (connection, before, mut told) = (Connection::new(socket.clone()), Instant::now(), false);
        connection.reconnect(&mut told).await;
        assert!(before.elapsed() >= RETRY && !told);
        std::fs::remove_file(socket).unwrap();
    }

    #[test]
    fn only_who_leaves_is_asked_again_of_all_who_refuse() {
        let refusal = |code, text: &str| ttrpc::Error::RpcStatus(ttrpc::get_status(code, text));
        assert!(matches!(Failure::from(refusal(Code::UNAVAILABLE, LEAVING)), Failure::Broken(_)));
        assert!(matches!(Failure::from(refusal(Code::UNAVAILABLE, "its shim is silent")), Failure::Refused(_)));
        assert!(matches!(Failure::from(refusal(Code::NOT_FOUND, LEAVING)), Failure::Refused(_)));
    }
}
