//! Sandboxes as containerd's own controller makes them, for a client that asks for one: the services
//! `containerd.services.sandbox.v1.Store` and `.Controller`, spoken to directly. Since 1.7.
//!
//! Platform is part of the service, and none of these versions implements it. And 1.7.24 says of whatever it has done that it cannot tell
//! others of it, as its own topics do not begin with a slash: what it was to answer is lost with that.

use std::fs;
use std::path::PathBuf;

use protobuf::{Message, MessageField};
use serde_json::{Value, json};

use crate::container::runtime;
use crate::containerd::{Containerd, NAMESPACE};
use crate::grpc::{self, CallError, code};
use crate::matrix::Real;
use crate::programs::Version;
use crate::skip::skip;
use crate::{Process, eventually, process};

/// The messages, from `protos/sandbox.proto`.
#[allow(warnings)] // generated
pub mod api {
    include!(concat!(env!("OUT_DIR"), "/sandbox.rs"));
}

use api::{
    Any, ControllerCreateRequest, ControllerCreateResponse, ControllerMetricsRequest, ControllerMetricsResponse,
    ControllerPlatformRequest, ControllerPlatformResponse, ControllerShutdownRequest, ControllerShutdownResponse,
    ControllerStartRequest, ControllerStartResponse, ControllerStatusRequest, ControllerStatusResponse,
    ControllerStopRequest, ControllerStopResponse, ControllerWaitRequest, ControllerWaitResponse, Runtime,
    StoreCreateRequest, StoreCreateResponse, StoreDeleteRequest, StoreDeleteResponse,
};

/// The controller that leaves sandboxes to shims.
const SANDBOXER: &str = "shim";

/// What a specification's type is for containerd.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// A sandbox that containerd's controller makes, or might.
#[derive(Debug)]
pub struct Sandbox<'a> {
    containerd: &'a Containerd<'a>,
    /// Its id.
    pub id: String,
}

impl<'a> Sandbox<'a> {
    /// The one of a test. Nothing is asked for yet. None, after a skip was noted, where containerd has no such services and
    /// has said so.
    #[track_caller]
    pub fn of(real: &'a Real<'a>) -> Option<Self> {
        real.containerd.restart_with_sandboxes();
        let sandbox = Self { containerd: &real.containerd, id: format!("{}-s", real.scene.id()) };
        if real.containerd.version() >= Version::V1_7 {
            return Some(sandbox);
        }
        let refusal = sandbox.create().expect_err("containerd 1.6 has no controller of sandboxes");
        assert_eq!(refusal.code(), code::UNIMPLEMENTED, "{refusal}");
        skip("containerd 1.6 has no controller of sandboxes");
        None
    }

    fn call<T: Message>(&self, method: &str, request: &impl Message) -> Result<T, CallError> {
        let method = format!("containerd.services.sandbox.v1.{method}");
        grpc::call_with(&self.containerd.socket(), &[("containerd-namespace", NAMESPACE)], &method, request)
    }

    /// As [`Sandbox::call`]; nothing is in the answer where containerd 1.7 has done it and cannot tell others.
    fn call_and_tell<T: Message>(&self, method: &str, request: &impl Message) -> Result<Option<T>, CallError> {
        match self.call(method, request) {
            Err(CallError::Status { code: code::INVALID_ARGUMENT, message })
                if self.containerd.version() == Version::V1_7 && message.contains("must start with '/'") =>
            {
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }

    /// As [`Sandbox::call`], for what must succeed.
    #[track_caller]
    fn ok<T: Message>(&self, method: &str, request: &impl Message) -> T {
        self.call(method, request).unwrap_or_else(|e| panic!("{method}: {e}\n{}", self.containerd.log_tail()))
    }

    /// Namespaces of all kinds that a sandbox can have, and a control group that bears the scene's mark.
    fn spec(&self) -> Value {
        let namespaces = ["network", "ipc", "uts", "pid"].map(|kind| json!({ "type": kind }));
        json!({
            "ociVersion": "1.0.2",
            "hostname": "of-the-pod",
            "linux": { "namespaces": namespaces, "cgroupsPath": format!("/{}", self.id) },
        })
    }

    fn metadata(&self) -> api::Sandbox {
        let spec = Any { type_url: SPEC_TYPE.into(), value: self.spec().to_string().into_bytes(), ..Any::default() };
        api::Sandbox {
            sandbox_id: self.id.clone(),
            runtime: MessageField::some(Runtime { name: runtime(), ..Runtime::default() }),
            spec: MessageField::some(spec),
            sandboxer: SANDBOXER.into(),
            ..api::Sandbox::default()
        }
    }

    /// Has containerd know of it.
    #[track_caller]
    pub fn enter(&self) {
        let sandbox = MessageField::some(self.metadata());
        let request = StoreCreateRequest { sandbox, ..StoreCreateRequest::default() };
        self.ok::<StoreCreateResponse>("Store/Create", &request);
    }

    /// Has containerd forget it.
    #[track_caller]
    pub fn strike_out(&self) {
        let request = StoreDeleteRequest { sandbox_id: self.id.clone(), ..StoreDeleteRequest::default() };
        self.ok::<StoreDeleteResponse>("Store/Delete", &request);
    }

    /// Create: starts the shim and has it create the sandbox.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn create(&self) -> Result<(), CallError> {
        let (sandbox_id, sandboxer) = self.named();
        let sandbox = MessageField::some(self.metadata());
        let request = ControllerCreateRequest { sandbox_id, sandboxer, sandbox, ..ControllerCreateRequest::default() };
        self.call_and_tell::<ControllerCreateResponse>("Controller/Create", &request).map(drop)
    }

    /// Start; gives what holds its namespaces.
    #[track_caller]
    #[must_use = "it is killed when the handle is dropped"]
    pub fn start(&self) -> Process {
        let (sandbox_id, sandboxer) = self.named();
        let request = ControllerStartRequest { sandbox_id, sandboxer, ..ControllerStartRequest::default() };
        let answer = self.call_and_tell::<ControllerStartResponse>("Controller/Start", &request);
        let answer = answer.unwrap_or_else(|e| panic!("Controller/Start: {e}\n{}", self.containerd.log_tail()));
        let status = self.status();
        if let Some(answer) = answer {
            assert_eq!((answer.pid, answer.created_at), (status.pid, status.created_at));
        }
        Process::of(status.pid)
    }

    /// Has it known, created and started; gives what holds its namespaces.
    #[track_caller]
    #[must_use = "it is killed when the handle is dropped"]
    pub fn run(&self) -> Process {
        self.enter();
        self.create().unwrap_or_else(|e| panic!("Controller/Create: {e}\n{}", self.containerd.log_tail()));
        self.start()
    }

    /// Status, with all there is to say.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn try_status(&self) -> Result<ControllerStatusResponse, CallError> {
        let (sandbox_id, sandboxer) = self.named();
        let request =
            ControllerStatusRequest { sandbox_id, sandboxer, verbose: true, ..ControllerStatusRequest::default() };
        self.call("Controller/Status", &request)
    }

    /// As [`Sandbox::try_status`], which must succeed.
    #[track_caller]
    pub fn status(&self) -> ControllerStatusResponse {
        self.try_status().unwrap_or_else(|e| panic!("Controller/Status: {e}\n{}", self.containerd.log_tail()))
    }

    /// Platform; the code of the answer.
    pub fn platform(&self) -> u32 {
        let (sandbox_id, sandboxer) = self.named();
        let request = ControllerPlatformRequest { sandbox_id, sandboxer, ..ControllerPlatformRequest::default() };
        let answer = self.call::<ControllerPlatformResponse>("Controller/Platform", &request);
        answer.map_or_else(|e| e.code(), |_| code::OK)
    }

    /// Metrics: the type of the figures that come. None where containerd has no such call yet, and has said so.
    #[track_caller]
    pub fn metrics_type(&self) -> Option<String> {
        let (sandbox_id, sandboxer) = self.named();
        let request = ControllerMetricsRequest { sandbox_id, sandboxer, ..ControllerMetricsRequest::default() };
        let answer = self.call::<ControllerMetricsResponse>("Controller/Metrics", &request);
        if self.containerd.version() < Version::V2_1 {
            assert_eq!(answer.expect_err("it is newer").code(), code::UNIMPLEMENTED);
            return None;
        }
        let metric = answer.unwrap_or_else(|e| panic!("Controller/Metrics: {e}")).metrics.unwrap_or_default();
        Some(metric.data.unwrap_or_default().type_url)
    }

    /// Wait; the exit status, if containerd tells it.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn wait(&self) -> Result<Option<u32>, CallError> {
        let (sandbox_id, sandboxer) = self.named();
        let request = ControllerWaitRequest { sandbox_id, sandboxer, ..ControllerWaitRequest::default() };
        let answer = self.call_and_tell::<ControllerWaitResponse>("Controller/Wait", &request)?;
        Ok(answer.map(|answer| answer.exit_status))
    }

    /// Stop.
    #[track_caller]
    pub fn stop(&self) {
        let (sandbox_id, sandboxer) = self.named();
        let request = ControllerStopRequest { sandbox_id, sandboxer, ..ControllerStopRequest::default() };
        self.ok::<ControllerStopResponse>("Controller/Stop", &request);
    }

    /// Shutdown.
    #[track_caller]
    pub fn shutdown(&self) {
        let (sandbox_id, sandboxer) = self.named();
        let request = ControllerShutdownRequest { sandbox_id, sandboxer, ..ControllerShutdownRequest::default() };
        self.ok::<ControllerShutdownResponse>("Controller/Shutdown", &request);
    }

    fn named(&self) -> (String, String) {
        (self.id.clone(), SANDBOXER.into())
    }

    /// Its shim, and the shim's pid as the sandbox's own status gives it.
    #[track_caller]
    pub fn shim(&self) -> Process {
        let word = format!("-id {} ", self.id);
        let is_shim = |pid: &u32| process::describe(*pid).replace(')', " ").contains(&word);
        let pid = process::marked(self.containerd.scene().id()).into_iter().find(is_shim).expect("a shim");
        assert_eq!(self.status().info.get("shim_pid"), Some(&pid.to_string()));
        Process::of(pid)
    }

    /// The directories of it that any controller may have made, and that are there.
    pub fn bundles(&self) -> Vec<PathBuf> {
        let plugins = fs::read_dir(self.containerd.state()).into_iter().flatten().flatten();
        let bundles = plugins.map(|plugin| plugin.path().join(NAMESPACE).join(&self.id));
        bundles.filter(|bundle| bundle.exists()).collect()
    }

    /// Waits until nothing of it is left: no shim, no bundle, no file of ours. The scene itself sees to mounts and processes.
    #[track_caller]
    pub fn wait_gone(&self) {
        self.containerd.wait_for_end_of_shim(&self.id);
        eventually("nothing of it should be left", || {
            let left = (self.bundles(), self.containerd.scene().run_files());
            if left.0.is_empty() && left.1.is_empty() { Ok(()) } else { Err(left) }
        });
    }
}
