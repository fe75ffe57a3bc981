//! A shim, started and spoken to as containerd does it.
//!
//! [`Launch`] is what containerd knows before there is a shim: command line, environment, stdin. [`Shim`] is the
//! running one with a connection to it; its methods are those of the task service.

use std::path::{Path, PathBuf};
use std::process::Output;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse,
    StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::bootstrap_api::BootstrapResult;
use containerd_shim_protos::shim::oci::{CheckpointOptions, Options};
use holdfast_proto::control::{OutputRequest, OutputResponse};
use holdfast_proto::service;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::Value;

use crate::stdio::Stdio;
use crate::wire::{CallError, Connection};
use crate::{Bundle, FakeRuntime, Process, Scene, bundle, process, programs};

pub use containerd_shim_protos::api::Status;

/// The namespace of containers that do not say otherwise.
pub const NAMESPACE: &str = "tests";

/// The service that containerd 1.x calls, and 2.x for shims that answer `start` with a plain address.
pub const TASK: &str = "containerd.task.v2.Task";

/// The same service as the shims of containerd 2.x call it.
const TASK_V3: &str = "containerd.task.v3.Task";

/// The name of the socket in the scene's directory on which containerd would take events.
pub const EVENTS_SOCKET: &str = "e.sock";

/// The type of the options that runc's shim takes.
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";

/// How a shim is started.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    scene: &'a Scene,
    /// The shim under test, unless another one is named.
    binary: Option<PathBuf>,
    namespace: String,
    id: String,
    bundle_dir: PathBuf,
    address: PathBuf,
    stdin: Option<Vec<u8>>,
    environment: Vec<(String, String)>,
    options: Option<Any>,
}

/// A running shim, and a connection to it.
#[derive(Debug)]
pub struct Shim {
    id: String,
    bundle_dir: PathBuf,
    options: Option<Any>,
    address: String,
    process: Process,
    /// Ours has the task service under both of its names, others may not.
    service: &'static str,
    /// The connection on which the methods below call.
    pub connection: Connection,
}

impl<'a> Launch<'a> {
    /// The shim under test, for `bundle`.
    pub fn new(scene: &'a Scene, bundle: &Bundle) -> Self {
        Self {
            scene,
            binary: None,
            namespace: NAMESPACE.into(),
            id: bundle.id().into(),
            bundle_dir: bundle.dir().into(),
            // Nobody listens there: the address only names the daemon.
            address: scene.path("containerd.sock"),
            stdin: None,
            environment: vec![("TTRPC_ADDRESS".into(), scene.path(EVENTS_SOCKET).to_str().expect("ours").into())],
            options: None,
        }
    }

    /// Another shim program than the one under test.
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Another OCI runtime than the default one, with a state directory in the scene.
    pub fn runtime(self, path: &Path) -> Self {
        let root = self.scene.path("oci");
        let options = Options {
            binary_name: path.to_str().expect("ours").into(),
            root: root.to_str().expect("ours").into(),
            ..Options::default()
        };
        self.options(options_any(&options))
    }

    /// The scripted OCI runtime.
    pub fn fake(self, runtime: &FakeRuntime) -> Self {
        self.runtime(runtime.program())
    }

    /// Options, for `start` and for Create.
    pub fn options(mut self, options: Any) -> Self {
        self.options = Some(options);
        self
    }

    /// Another namespace.
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Another id than the bundle's.
    pub fn id(mut self, id: &str) -> Self {
        self.id = id.into();
        self
    }

    /// Another bundle directory.
    pub fn bundle_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.bundle_dir = dir.into();
        self
    }

    /// Another daemon.
    pub fn address(mut self, address: impl Into<PathBuf>) -> Self {
        self.address = address.into();
        self
    }

    /// Other bytes on the stdin of `start` than the options.
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = Some(bytes);
        self
    }

    /// A further environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.into(), value.into()));
        self
    }

    /// Runs `start` and returns what it left, whatever that is.
    pub fn run_start(&self) -> Output {
        let (mut command, stdin) = self.start_command();
        process::run_with_input(&mut command, &stdin)
    }

    /// The command line of `start`, not run yet, and what belongs on its stdin.
    pub fn start_command(&self) -> (std::process::Command, Vec<u8>) {
        let options = || self.options.as_ref().map(|o| o.write_to_bytes().expect("a message encodes"));
        let mut command = self.command();
        command.current_dir(&self.bundle_dir).arg("start");
        (command, self.stdin.clone().or_else(options).unwrap_or_default())
    }

    /// The command line of `delete`, not run yet.
    pub fn delete_command(&self) -> std::process::Command {
        let mut command = self.command();
        command.current_dir(&self.bundle_dir).arg("-bundle").arg(&self.bundle_dir).arg("delete");
        command
    }

    /// Runs `start` and connects.
    ///
    /// # Panics
    /// If `start` fails, writes to stderr, or answers with anything but an address that can be dialled.
    #[track_caller]
    pub fn start(&self) -> Shim {
        let output = self.run_start();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "start failed ({}): {stderr}", output.status);
        // containerd reads both streams as one reply.
        assert_eq!(stderr, "", "a successful start is silent");
        self.attach(&reply_address(&output.stdout))
    }

    /// Connects to the shim at `address`, which is in charge of this launch's container.
    ///
    /// # Panics
    /// If nobody answers there.
    #[track_caller]
    pub fn attach(&self, address: &str) -> Shim {
        let connection = Connection::open(address);
        let mut connection = connection.unwrap_or_else(|e| panic!("cannot connect to {address:?}: {e}"));
        let request = ConnectRequest { id: self.id.clone(), ..ConnectRequest::default() };
        let mut service = TASK;
        let mut reply = connection.call(service, "Connect", &request);
        if self.binary.is_some() && reply.is_err() {
            service = TASK_V3;
            reply = connection.call(service, "Connect", &request);
        }
        let reply: ConnectResponse = reply.expect("Connect never fails");
        Shim {
            id: self.id.clone(),
            bundle_dir: self.bundle_dir.clone(),
            options: self.options.clone(),
            address: address.into(),
            process: Process::of(reply.shim_pid),
            service,
            connection,
        }
    }

    /// Runs the `delete` command and returns what it left.
    pub fn run_delete(&self) -> Output {
        process::run(&mut self.delete_command())
    }

    /// As [`Launch::run_delete`], in another working directory than the bundle.
    pub fn run_delete_in(&self, dir: &Path) -> Output {
        process::run(self.delete_command().current_dir(dir))
    }

    /// Runs the `delete` command, which must succeed.
    #[track_caller]
    pub fn delete(&self) -> DeleteResponse {
        delete_response(&self.run_delete())
    }

    /// Runs the shim with only `args`.
    pub fn run_with(&self, args: &[&str], stdin: &[u8]) -> Output {
        process::run_with_input(self.scene.command(self.program()).args(args), stdin)
    }

    fn program(&self) -> PathBuf {
        self.binary.clone().unwrap_or_else(programs::shim)
    }

    /// The command line that `start` and `delete` have in common.
    fn command(&self) -> std::process::Command {
        let mut command = self.scene.command(self.program());
        command.args(["-namespace", &self.namespace, "-address"]).arg(&self.address);
        command.args(["-publish-binary", "/bin/true", "-id", &self.id]);
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }
}

/// The address in a reply of `start`: a `BootstrapResult`, else JSON, else a plain address, as containerd 2.3 reads it.
///
/// # Panics
/// If it is none of them.
#[track_caller]
pub fn reply_address(reply: &[u8]) -> String {
    if let Ok(result) = BootstrapResult::parse_from_bytes(reply) {
        assert_eq!(result.protocol, "ttrpc");
        return result.address;
    }
    let text = std::str::from_utf8(reply).expect("an address is text");
    match serde_json::from_str::<Value>(text) {
        Ok(json) => json["address"].as_str().expect("an address").to_owned(),
        Err(_) => text.to_owned(),
    }
}

/// What the `delete` command printed.
///
/// # Panics
/// If it failed.
#[track_caller]
pub fn delete_response(output: &Output) -> DeleteResponse {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "delete failed ({}): {stderr}", output.status);
    DeleteResponse::parse_from_bytes(&output.stdout).expect("delete prints a DeleteResponse")
}

/// What CRI and Docker send to every runtime that is not named runc: `runtimeoptions.v1.Options`, by hand, since the
/// protocol crate lacks it.
///
/// # Panics
/// Never: it is written to memory.
pub fn toml_options(config_path: &str, config_body: &str) -> Any {
    let mut value = Vec::new();
    let mut stream = protobuf::CodedOutputStream::vec(&mut value);
    let type_name = "github.com/containerd/containerd/runtime/v2/runc/options.Options";
    let written = stream
        .write_string(1, type_name)
        .and_then(|()| stream.write_string(2, config_path))
        .and_then(|()| stream.write_bytes(3, config_body.as_bytes()))
        .and_then(|()| stream.flush());
    written.expect("memory takes it");
    drop(stream);
    Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() }
}

/// Runc's options as they travel.
pub fn options_any(options: &Options) -> Any {
    let value = options.write_to_bytes().expect("a message encodes");
    Any { type_url: RUNC_OPTIONS.into(), value, ..Any::default() }
}

/// `LinuxResources` of the OCI specification as they travel.
pub fn resources_any(resources: &Value) -> Any {
    Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
        value: serde_json::to_vec(resources).expect("JSON encodes"),
        ..Any::default()
    }
}

impl Shim {
    /// The container that the methods below are about.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it serves.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The path of its socket.
    pub fn socket(&self) -> &Path {
        Path::new(self.address.trim_start_matches("unix://"))
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its process and the connection, to end them one by one.
    pub fn into_parts(self) -> (Process, Connection) {
        (self.process, self.connection)
    }

    /// A further connection.
    ///
    /// # Panics
    /// If it is refused.
    #[track_caller]
    pub fn connect_again(&self) -> Connection {
        Connection::open(&self.address).expect("a living shim accepts connections")
    }

    fn call<T: Message>(&mut self, method: &str, request: &impl Message) -> Result<T, CallError> {
        self.connection.call(self.service, method, request)
    }

    /// The request that [`Shim::create`] sends.
    pub fn create_request(&self, stdio: &Stdio) -> CreateTaskRequest {
        CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle_dir.to_str().expect("ours").into(),
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            options: self.options.clone().into(),
            ..CreateTaskRequest::default()
        }
    }

    /// Create.
    ///
    /// # Errors
    /// As all below: what the shim answers, see [`CallError`].
    pub fn create(&mut self, stdio: &Stdio) -> Result<CreateTaskResponse, CallError> {
        let request = self.create_request(stdio);
        self.call("Create", &request)
    }

    /// Create, from the checkpoint in the directory `image`.
    pub fn create_from(&mut self, image: &Path, stdio: &Stdio) -> Result<CreateTaskResponse, CallError> {
        let checkpoint = image.to_str().expect("ours").into();
        let request = CreateTaskRequest { checkpoint, ..self.create_request(stdio) };
        self.call("Create", &request)
    }

    /// Checkpoint, to the directory `image`.
    pub fn checkpoint(&mut self, image: &Path, options: &CheckpointOptions) -> Result<Empty, CallError> {
        let options = Any {
            type_url: "containerd.runc.v1.CheckpointOptions".into(),
            value: options.write_to_bytes().expect("a message encodes"),
            ..Any::default()
        };
        let request = CheckpointTaskRequest {
            id: self.id.clone(),
            path: image.to_str().expect("ours").into(),
            options: Some(options).into(),
            ..CheckpointTaskRequest::default()
        };
        self.call("Checkpoint", &request)
    }

    /// Start; an empty exec id is the init process, here and below.
    pub fn start(&mut self, exec_id: &str) -> Result<StartResponse, CallError> {
        let request = StartRequest { id: self.id.clone(), exec_id: exec_id.into(), ..StartRequest::default() };
        self.call("Start", &request)
    }

    /// Create and Start, which must succeed; returns the init process's pid.
    #[track_caller]
    pub fn run(&mut self, stdio: &Stdio) -> u32 {
        self.create(stdio).expect("Create");
        self.start("").expect("Start").pid
    }

    /// State.
    pub fn state(&mut self, exec_id: &str) -> Result<StateResponse, CallError> {
        let request = StateRequest { id: self.id.clone(), exec_id: exec_id.into(), ..StateRequest::default() };
        self.call("State", &request)
    }

    /// The status that State gives.
    #[track_caller]
    pub fn status(&mut self, exec_id: &str) -> Status {
        let state = self.state(exec_id).expect("State");
        state.status.enum_value().expect("a status that is known")
    }

    /// Kill.
    pub fn kill(&mut self, exec_id: &str, signal: i32) -> Result<Empty, CallError> {
        let request = KillRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            signal: signal.cast_unsigned(),
            ..KillRequest::default()
        };
        self.call("Kill", &request)
    }

    /// Exec: registers a process.
    pub fn exec(&mut self, exec_id: &str, args: &[&str], stdio: &Stdio) -> Result<Empty, CallError> {
        let request = self.exec_request(exec_id, &bundle::exec_process(args), stdio);
        self.call("Exec", &request)
    }

    /// The request that [`Shim::exec`] sends.
    pub fn exec_request(&self, exec_id: &str, process: &Value, stdio: &Stdio) -> ExecProcessRequest {
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: serde_json::to_vec(process).expect("JSON encodes"),
            ..Any::default()
        };
        ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            spec: Some(spec).into(),
            ..ExecProcessRequest::default()
        }
    }

    /// Delete.
    pub fn delete(&mut self, exec_id: &str) -> Result<DeleteResponse, CallError> {
        let id = self.begin_delete(exec_id);
        self.connection.finish(id)
    }

    /// Sends Delete; the reply is to be had from the connection under the returned stream id.
    pub fn begin_delete(&mut self, exec_id: &str) -> u32 {
        let request = DeleteRequest { id: self.id.clone(), exec_id: exec_id.into(), ..DeleteRequest::default() };
        self.connection.begin(self.service, "Delete", &request)
    }

    /// Wait.
    pub fn wait(&mut self, exec_id: &str) -> Result<WaitResponse, CallError> {
        let id = self.begin_wait(exec_id);
        self.connection.finish(id)
    }

    /// Sends Wait; the reply is to be had from the connection under the returned stream id.
    pub fn begin_wait(&mut self, exec_id: &str) -> u32 {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec_id.into(), ..WaitRequest::default() };
        self.connection.begin(self.service, "Wait", &request)
    }

    /// Wait, which must succeed; returns the exit status.
    #[track_caller]
    pub fn wait_status(&mut self, exec_id: &str) -> u32 {
        self.wait(exec_id).expect("Wait").exit_status
    }

    /// Pids.
    pub fn pids(&mut self) -> Result<PidsResponse, CallError> {
        let request = PidsRequest { id: self.id.clone(), ..PidsRequest::default() };
        self.call("Pids", &request)
    }

    /// Pause.
    pub fn pause(&mut self) -> Result<Empty, CallError> {
        let request = PauseRequest { id: self.id.clone(), ..PauseRequest::default() };
        self.call("Pause", &request)
    }

    /// Resume.
    pub fn resume(&mut self) -> Result<Empty, CallError> {
        let request = ResumeRequest { id: self.id.clone(), ..ResumeRequest::default() };
        self.call("Resume", &request)
    }

    /// Update.
    pub fn update(&mut self, resources: &Value) -> Result<Empty, CallError> {
        let request = UpdateTaskRequest {
            id: self.id.clone(),
            resources: Some(resources_any(resources)).into(),
            ..UpdateTaskRequest::default()
        };
        self.call("Update", &request)
    }

    /// ResizePty.
    pub fn resize(&mut self, exec_id: &str, width: u32, height: u32) -> Result<Empty, CallError> {
        let request = ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            width,
            height,
            ..ResizePtyRequest::default()
        };
        self.call("ResizePty", &request)
    }

    /// CloseIO for stdin.
    pub fn close_stdin(&mut self, exec_id: &str) -> Result<Empty, CallError> {
        let request =
            CloseIORequest { id: self.id.clone(), exec_id: exec_id.into(), stdin: true, ..CloseIORequest::default() };
        self.call("CloseIO", &request)
    }

    /// Stats.
    pub fn stats(&mut self) -> Result<StatsResponse, CallError> {
        let request = StatsRequest { id: self.id.clone(), ..StatsRequest::default() };
        self.call("Stats", &request)
    }

    /// `Control.Output` of this container; with `measure` the shim looks at the disk, too.
    ///
    /// # Errors
    /// The shim's refusal.
    pub fn output(&mut self, measure: bool) -> Result<OutputResponse, CallError> {
        let request = OutputRequest { id: self.id.clone(), measure, ..Default::default() };
        self.connection.call(service::CONTROL, "Output", &request)
    }

    /// Connect.
    pub fn connect(&mut self) -> Result<ConnectResponse, CallError> {
        let request = ConnectRequest { id: self.id.clone(), ..ConnectRequest::default() };
        self.call("Connect", &request)
    }

    /// Sends Shutdown. The connection may end before the reply, which is as good.
    #[track_caller]
    pub fn request_shutdown(&mut self) {
        let request = ShutdownRequest { id: self.id.clone(), ..ShutdownRequest::default() };
        match self.call::<Empty>("Shutdown", &request) {
            Ok(_) | Err(CallError::Closed) => {}
            Err(other) => panic!("Shutdown: {other:?}"),
        }
    }

    /// Shutdown of a shim with no containers: it must end, and its socket with it.
    #[track_caller]
    pub fn shutdown(mut self) {
        self.request_shutdown();
        self.process.wait_gone();
        assert!(!self.socket().exists(), "the socket {} outlives its shim", self.socket().display());
    }

    /// Shutdown, and the end of the connection: as soon as the shim has ended, without a look at what it leaves.
    #[track_caller]
    pub fn shutdown_at_once(mut self) {
        self.request_shutdown();
        while self.connection.read_frame(crate::eventually::patience()).is_ok() {}
    }

    /// Kills the container if it runs, deletes it, shuts the shim down: for the end of a test that is about other things.
    #[track_caller]
    pub fn discard(mut self) {
        let _ = self.kill("", libc::SIGKILL);
        self.wait("").expect("Wait");
        self.delete("").expect("Delete");
        self.shutdown();
    }
}
