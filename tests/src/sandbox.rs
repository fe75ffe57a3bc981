//! The sandbox service of a shim, spoken to as containerd's sandbox controller does it, on a connection of its own.

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse,
    SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest,
    ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse,
    WaitSandboxRequest, WaitSandboxResponse,
};
use holdfast_proto::service::SANDBOX;
use protobuf::Message;

use crate::wire::{CallError, Connection};
use crate::{Bundle, Process, Shim};

/// The state of one that containers can join.
pub const READY: &str = "SANDBOX_READY";
/// The state of any other.
pub const NOT_READY: &str = "SANDBOX_NOTREADY";

/// A sandbox that a shim makes, or might.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    bundle: String,
    /// The connection on which the methods below call.
    pub connection: Connection,
}

impl Sandbox {
    /// That of a bundle, in a shim that was started for it. Nothing is asked for yet.
    #[track_caller]
    pub fn of(shim: &Shim, bundle: &Bundle) -> Self {
        let dir = bundle.dir().to_str().expect("ours").into();
        Self { id: bundle.id().into(), bundle: dir, connection: shim.connect_again() }
    }

    /// The same with another id.
    pub fn with_id(mut self, id: &str) -> Self {
        self.id = id.into();
        self
    }

    fn call<T: Message>(&mut self, method: &str, request: &impl Message) -> Result<T, CallError> {
        self.connection.call(SANDBOX, method, request)
    }

    /// The request that [`Sandbox::create`] sends.
    pub fn create_request(&self) -> CreateSandboxRequest {
        let (sandbox_id, bundle_path) = (self.id.clone(), self.bundle.clone());
        CreateSandboxRequest { sandbox_id, bundle_path, ..Default::default() }
    }

    /// CreateSandbox.
    ///
    /// # Errors
    /// As all below: what the shim answers, see [`CallError`].
    pub fn create(&mut self) -> Result<CreateSandboxResponse, CallError> {
        let request = self.create_request();
        self.call("CreateSandbox", &request)
    }

    /// CreateSandbox, with mounts and a network namespace.
    pub fn create_with(&mut self, rootfs: Vec<Mount>, netns: &str) -> Result<CreateSandboxResponse, CallError> {
        let request = CreateSandboxRequest { rootfs, netns_path: netns.into(), ..self.create_request() };
        self.call("CreateSandbox", &request)
    }

    /// StartSandbox.
    pub fn start(&mut self) -> Result<StartSandboxResponse, CallError> {
        let request = StartSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.call("StartSandbox", &request)
    }

    /// CreateSandbox and StartSandbox, which must succeed; gives what holds the namespaces.
    #[track_caller]
    #[must_use = "it is killed when the handle is dropped"]
    pub fn run(&mut self) -> Process {
        self.create().expect("CreateSandbox");
        Process::of(self.start().expect("StartSandbox").pid)
    }

    /// Platform.
    pub fn platform(&mut self) -> Result<PlatformResponse, CallError> {
        let request = PlatformRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.call("Platform", &request)
    }

    /// StopSandbox.
    pub fn stop(&mut self, timeout_secs: u32) -> Result<StopSandboxResponse, CallError> {
        let request = StopSandboxRequest { sandbox_id: self.id.clone(), timeout_secs, ..Default::default() };
        self.call("StopSandbox", &request)
    }

    /// Sends WaitSandbox; the reply is to be had from the connection under the returned stream id.
    pub fn begin_wait(&mut self) -> u32 {
        let request = WaitSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.connection.begin(SANDBOX, "WaitSandbox", &request)
    }

    /// WaitSandbox.
    pub fn wait(&mut self) -> Result<WaitSandboxResponse, CallError> {
        let id = self.begin_wait();
        self.connection.finish(id)
    }

    /// SandboxStatus.
    pub fn status(&mut self, verbose: bool) -> Result<SandboxStatusResponse, CallError> {
        let request = SandboxStatusRequest { sandbox_id: self.id.clone(), verbose, ..Default::default() };
        self.call("SandboxStatus", &request)
    }

    /// PingSandbox.
    pub fn ping(&mut self) -> Result<PingResponse, CallError> {
        let request = PingRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.call("PingSandbox", &request)
    }

    /// SandboxMetrics.
    pub fn metrics(&mut self) -> Result<SandboxMetricsResponse, CallError> {
        let request = SandboxMetricsRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.call("SandboxMetrics", &request)
    }

    /// ShutdownSandbox.
    pub fn shutdown(&mut self) -> Result<ShutdownSandboxResponse, CallError> {
        let request = ShutdownSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
        self.call("ShutdownSandbox", &request)
    }
}
