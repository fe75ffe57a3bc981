//! Domain ↔ protobuf, refusal → RPC code. Pure.

use std::path::PathBuf;

use containerd_shim_protos::{api, events, sandbox_api};
use holdfast_proto::{control, service};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{EnumOrUnknown, Message, MessageField};
use serde::{Deserialize, Serialize};
use ttrpc::proto::{Code, Response, Status};

use crate::driver::chain;
use crate::io::spill::policy::OutputSettings;
use crate::io::stdio::Addresses;
use crate::lifecycle::{
    Event, Exit, FailureKind, KnownProcess, ProcessId, ProcessView, Refusal, SandboxVerb, SandboxView,
    Status as ProcessStatus, TaskId, Verb,
};
use crate::oci::resources;
use crate::options::{CheckpointOptions, Options, checkpoint_from_any};
use crate::pod::Plan;
use crate::sys::mount::MountEntry;

/// An RPC error: a code and one line for people.
pub(crate) type RpcError = (Code, String);

/// A request, decoded.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // lives for one call, and nearly always is the large one
pub(crate) enum Decoded {
    /// For the lifecycle. What it does not know travels in the body.
    Task { task: TaskId, process: ProcessId, verb: Verb, body: Body },
    /// As `Task`. The body comes with the creation.
    Sandbox { id: TaskId, verb: SandboxVerb, body: Option<Box<SandboxBody>> },
    /// `Control.Info`.
    Info,
    /// `Control.Output`, of one task or of all.
    Output { task: Option<TaskId>, measure: bool },
}

/// What comes with a request and is used when the work begins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) enum Body {
    #[default]
    None,
    Create(CreateBody),
    Sandbox(Box<SandboxBody>),
    Exec {
        addresses: Addresses,
        /// The OCI `Process` as JSON. May hold secrets.
        spec: Vec<u8>,
    },
    /// `LinuxResources` as JSON.
    Update {
        /// JSON.
        resources: Vec<u8>,
        /// Fields of it that are not known here.
        unknown: Vec<String>,
    },
    Checkpoint {
        /// The directory to write to.
        image: PathBuf,
        options: CheckpointOptions,
    },
    Attach {
        stdout: Option<PathBuf>,
        stderr: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CreateBody {
    pub(crate) bundle: PathBuf,
    pub(crate) mounts: Vec<MountEntry>,
    pub(crate) addresses: Addresses,
    /// The directory of the checkpoint to restore; empty: none.
    pub(crate) checkpoint: String,
    /// As sent.
    pub(crate) options: Option<(String, Vec<u8>)>,
    /// Once it is admitted. Read once: a file may say something else the next time, or nothing.
    pub(crate) chosen: Option<Box<Chosen>>,
}

/// What comes with the creation of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SandboxBody {
    pub(crate) bundle: PathBuf,
    pub(crate) mounts: Vec<MountEntry>,
    /// As sent.
    pub(crate) options: Option<(String, Vec<u8>)>,
    /// The network namespace; empty: none.
    pub(crate) netns: String,
    /// Once it is admitted. Read once, as [`CreateBody::chosen`].
    pub(crate) plan: Option<Plan>,
}

/// What options, annotations and settings come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chosen {
    pub(crate) options: Options,
    pub(crate) output: OutputSettings,
}

type Decode = fn(&[u8]) -> Result<Decoded, RpcError>;

/// The task service, the same under both of its names. A test compares it with the generated table.
pub(crate) const TASK_METHODS: [(&str, Decode); 17] = [
    ("State", |p| decode(p, |r: api::StateRequest| Ok(plain(r.id, &r.exec_id, Verb::State)))),
    ("Create", decode_create),
    ("Start", |p| decode(p, |r: api::StartRequest| Ok(plain(r.id, &r.exec_id, Verb::Start)))),
    ("Delete", |p| decode(p, |r: api::DeleteRequest| Ok(plain(r.id, &r.exec_id, Verb::Delete)))),
    ("Pids", |p| decode(p, |r: api::PidsRequest| Ok(plain(r.id, "", Verb::Pids)))),
    ("Pause", |p| decode(p, |r: api::PauseRequest| Ok(plain(r.id, "", Verb::Pause)))),
    ("Resume", |p| decode(p, |r: api::ResumeRequest| Ok(plain(r.id, "", Verb::Resume)))),
    ("Checkpoint", decode_checkpoint),
    ("Kill", |p| {
        decode(p, |r: api::KillRequest| {
            Ok(plain(r.id, &r.exec_id, Verb::Kill { signal: check_signal(r.signal)?, all: r.all }))
        })
    }),
    ("Exec", decode_exec),
    ("ResizePty", |p| {
        decode(p, |r: api::ResizePtyRequest| {
            let [width, height] = [r.width, r.height].map(|n| u16::try_from(n).unwrap_or(u16::MAX));
            Ok(plain(r.id, &r.exec_id, Verb::ResizePty { width, height }))
        })
    }),
    ("CloseIO", |p| decode(p, |r: api::CloseIORequest| Ok(plain(r.id, &r.exec_id, Verb::CloseStdin)))),
    ("Update", |p| {
        decode(p, |r: api::UpdateTaskRequest| {
            let resources = r.resources.unwrap_or_default();
            let unknown =
                resources::check(&resources.type_url, &resources.value).map_err(|e| invalid(e.to_string()))?;
            Ok(with_body(r.id, "", Verb::Update, Body::Update { resources: resources.value, unknown }))
        })
    }),
    ("Wait", |p| decode(p, |r: api::WaitRequest| Ok(plain(r.id, &r.exec_id, Verb::Wait)))),
    ("Stats", |p| decode(p, |r: api::StatsRequest| Ok(plain(r.id, "", Verb::Stats)))),
    ("Connect", |p| decode(p, |r: api::ConnectRequest| Ok(plain(r.id, "", Verb::Connect)))),
    ("Shutdown", |p| decode(p, |r: api::ShutdownRequest| Ok(plain(r.id, "", Verb::Shutdown)))),
];

/// The sandbox service. A test compares it with the generated table.
const SANDBOX_METHODS: [(&str, Decode); 9] = [
    ("CreateSandbox", decode_create_sandbox),
    ("StartSandbox", |p| {
        decode(p, |r: sandbox_api::StartSandboxRequest| Ok(sandbox(r.sandbox_id, SandboxVerb::Start)))
    }),
    ("Platform", |p| decode(p, |r: sandbox_api::PlatformRequest| Ok(sandbox(r.sandbox_id, SandboxVerb::Platform)))),
    ("StopSandbox", |p| {
        decode(p, |r: sandbox_api::StopSandboxRequest| {
            Ok(sandbox(r.sandbox_id, SandboxVerb::Stop { timeout_secs: r.timeout_secs }))
        })
    }),
    ("WaitSandbox", |p| decode(p, |r: sandbox_api::WaitSandboxRequest| Ok(sandbox(r.sandbox_id, SandboxVerb::Wait)))),
    ("SandboxStatus", |p| {
        decode(p, |r: sandbox_api::SandboxStatusRequest| {
            Ok(sandbox(r.sandbox_id, SandboxVerb::Status { verbose: r.verbose }))
        })
    }),
    ("PingSandbox", |p| decode(p, |r: sandbox_api::PingRequest| Ok(sandbox(r.sandbox_id, SandboxVerb::Ping)))),
    ("ShutdownSandbox", |p| {
        decode(p, |r: sandbox_api::ShutdownSandboxRequest| Ok(sandbox(r.sandbox_id, SandboxVerb::Shutdown)))
    }),
    ("SandboxMetrics", |p| {
        decode(p, |r: sandbox_api::SandboxMetricsRequest| Ok(sandbox(r.sandbox_id, SandboxVerb::Metrics)))
    }),
];

const CONTROL_METHODS: [(&str, Decode); 4] = [
    ("Info", |p| decode(p, |_: control::InfoRequest| Ok(Decoded::Info))),
    ("Output", |p| {
        decode(p, |r: control::OutputRequest| {
            let task = (!r.id.is_empty()).then_some(TaskId(r.id));
            Ok(Decoded::Output { task, measure: r.measure })
        })
    }),
    ("Attach", |p| {
        decode(p, |r: control::AttachRequest| {
            let [stdout, stderr] = [r.stdout, r.stderr].map(|path| (!path.is_empty()).then(|| PathBuf::from(path)));
            Ok(with_body(r.id, &r.exec_id, Verb::Attach, Body::Attach { stdout, stderr }))
        })
    }),
    ("ReopenLogs", |p| decode(p, |r: control::ReopenLogsRequest| Ok(plain(r.id, "", Verb::ReopenLogs)))),
];

/// Decodes the payload of a request.
///
/// # Errors
/// UNIMPLEMENTED for a service or method that is not served (NOT_FOUND would look like a vanished task),
/// INVALID_ARGUMENT for a payload that cannot be decoded or makes no sense.
pub(crate) fn decode_request(service: &str, method: &str, payload: &[u8]) -> Result<Decoded, RpcError> {
    let methods: &[(&str, Decode)] = match service {
        service::TASK_V2 | service::TASK_V3 => &TASK_METHODS,
        service::SANDBOX => &SANDBOX_METHODS,
        service::CONTROL => &CONTROL_METHODS,
        _ => return Err((Code::UNIMPLEMENTED, format!("service {service} is not served here"))),
    };
    match methods.iter().find(|(name, _)| *name == method) {
        Some((_, decode)) => decode(payload),
        None => Err((Code::UNIMPLEMENTED, format!("service {service} has no method {method}"))),
    }
}

fn decode<M: Message>(payload: &[u8], then: impl FnOnce(M) -> Result<Decoded, RpcError>) -> Result<Decoded, RpcError> {
    let message = M::parse_from_bytes(payload).map_err(|e| invalid(format!("cannot decode {}: {e}", M::NAME)))?;
    then(message)
}

fn invalid(text: String) -> RpcError {
    (Code::INVALID_ARGUMENT, text)
}

fn plain(id: String, exec_id: &str, verb: Verb) -> Decoded {
    with_body(id, exec_id, verb, Body::None)
}

fn with_body(id: String, exec_id: &str, verb: Verb, body: Body) -> Decoded {
    Decoded::Task { task: TaskId(id), process: ProcessId::from_exec_id(exec_id), verb, body }
}

fn sandbox(id: String, verb: SandboxVerb) -> Decoded {
    Decoded::Sandbox { id: TaskId(id), verb, body: None }
}

fn decode_create_sandbox(payload: &[u8]) -> Result<Decoded, RpcError> {
    decode(payload, |r: sandbox_api::CreateSandboxRequest| {
        check_id("sandbox id", &r.sandbox_id)?;
        check_absolute("the bundle", &r.bundle_path)?;
        let body = SandboxBody {
            bundle: r.bundle_path.into(),
            mounts: mount_entries(r.rootfs),
            options: r.options.into_option().map(|any| (any.type_url, any.value)),
            netns: r.netns_path,
            plan: None,
        };
        Ok(Decoded::Sandbox { id: TaskId(r.sandbox_id), verb: SandboxVerb::Create, body: Some(body.into()) })
    })
}

fn mount_entries(mounts: Vec<api::Mount>) -> Vec<MountEntry> {
    let entry = |m: api::Mount| MountEntry { kind: m.type_, source: m.source, target: m.target, options: m.options };
    mounts.into_iter().map(entry).collect()
}

/// 0 only probes; the kernel knows signals 1 to 64, `signal(7)`.
fn check_signal(signal: u32) -> Result<u32, RpcError> {
    if signal <= 64 { Ok(signal) } else { Err(invalid(format!("{signal} is no signal number"))) }
}

fn check_json_object(what: &str, json: &[u8]) -> Result<serde_json::Map<String, serde_json::Value>, RpcError> {
    serde_json::from_slice(json).map_err(|e| invalid(format!("{what} are not a JSON object: {e}")))
}

fn check_absolute(what: &str, path: &str) -> Result<(), RpcError> {
    if path.starts_with('/') { Ok(()) } else { Err(invalid(format!("{what} {path:?} is not an absolute path"))) }
}

fn check_id(what: &str, id: &str) -> Result<(), RpcError> {
    crate::cli::validate_id(id).map_err(|e| invalid(format!("illegal {what} {id:?}: {e}")))
}

fn decode_create(payload: &[u8]) -> Result<Decoded, RpcError> {
    decode(payload, |r: api::CreateTaskRequest| {
        check_id("task id", &r.id)?;
        check_absolute("the bundle", &r.bundle)?;
        if !r.checkpoint.is_empty() {
            check_absolute("the checkpoint", &r.checkpoint)?;
        }
        let body = CreateBody {
            bundle: r.bundle.into(),
            mounts: mount_entries(r.rootfs),
            addresses: addresses(r.terminal, r.stdin, r.stdout, r.stderr)?,
            checkpoint: r.checkpoint,
            options: r.options.into_option().map(|any| (any.type_url, any.value)),
            chosen: None,
        };
        // Whether pids are shared is in the bundle; the driver reads it.
        let from_checkpoint = !body.checkpoint.is_empty();
        Ok(with_body(r.id, "", Verb::Create { shared_pids: false, from_checkpoint }, Body::Create(body)))
    })
}

fn decode_checkpoint(payload: &[u8]) -> Result<Decoded, RpcError> {
    decode(payload, |r: api::CheckpointTaskRequest| {
        check_absolute("the checkpoint", &r.path)?;
        let (type_url, value) = r.options.into_option().map(|any| (any.type_url, any.value)).unwrap_or_default();
        let options = checkpoint_from_any(&type_url, &value).map_err(|e| invalid(chain(&e)))?;
        if !options.work_path.is_empty() {
            check_absolute("criu's working directory", &options.work_path)?;
        }
        let body = Body::Checkpoint { image: r.path.into(), options };
        Ok(with_body(r.id, "", Verb::Checkpoint, body))
    })
}

fn decode_exec(payload: &[u8]) -> Result<Decoded, RpcError> {
    decode(payload, |r: api::ExecProcessRequest| {
        check_id("exec id", &r.exec_id)?;
        let spec = r.spec.into_option().map(|any| any.value).unwrap_or_default();
        let mut process = check_json_object("the process's settings", &spec)?;
        process.insert("terminal".to_owned(), r.terminal.into());
        let spec = serde_json::to_vec(&process).map_err(|e| invalid(e.to_string()))?;
        let addresses = addresses(r.terminal, r.stdin, r.stdout, r.stderr)?;
        Ok(with_body(r.id, &r.exec_id, Verb::Exec, Body::Exec { addresses, spec }))
    })
}

fn addresses(terminal: bool, stdin: String, stdout: String, stderr: String) -> Result<Addresses, RpcError> {
    let addresses = Addresses { terminal, stdin, stdout, stderr };
    addresses.logger().map_err(|e| match e {
        crate::io::stdio::AddressError::Streaming { .. } => (Code::UNIMPLEMENTED, e.to_string()),
        _ => invalid(e.to_string()),
    })?;
    Ok(addresses)
}

/// The code for each reason to say no (contract 3.1).
pub(crate) fn refusal_error(refusal: &Refusal) -> RpcError {
    let code = match refusal {
        Refusal::NoTask(_)
        | Refusal::NoProcess(..)
        | Refusal::NoSandbox(_)
        | Refusal::Finished(_)
        | Refusal::Unavailable(_) => Code::NOT_FOUND,
        Refusal::TaskExists(_) | Refusal::ProcessExists(..) | Refusal::SandboxExists(_) => Code::ALREADY_EXISTS,
        Refusal::SandboxState { .. }
        | Refusal::WrongState { .. }
        | Refusal::InitExited(_)
        | Refusal::NotStarted(_)
        | Refusal::StartFailed(_) => Code::FAILED_PRECONDITION,
        Refusal::Unsupported(_) => Code::UNIMPLEMENTED,
        Refusal::Invalid(_) => Code::INVALID_ARGUMENT,
        Refusal::Late => Code::DEADLINE_EXCEEDED,
        Refusal::Failed(failure) => match failure.kind {
            FailureKind::NotFound => Code::NOT_FOUND,
            FailureKind::AlreadyExists => Code::ALREADY_EXISTS,
            FailureKind::Invalid => Code::INVALID_ARGUMENT,
            FailureKind::Unsupported => Code::UNIMPLEMENTED,
            FailureKind::Deadline => Code::DEADLINE_EXCEEDED,
            FailureKind::Other => Code::UNKNOWN,
        },
    };
    (code, refusal.to_string())
}

/// The payload of a response frame.
pub(crate) fn response(answer: Result<Vec<u8>, RpcError>) -> Vec<u8> {
    let mut response = Response::new();
    match answer {
        Ok(payload) => response.payload = payload,
        Err((code, message)) => {
            let status = Status { code: EnumOrUnknown::new(code), message, ..Status::default() };
            response.status = MessageField::some(status);
        }
    }
    bytes(&response)
}

/// A message as bytes. Encoding fails only if a field is longer than protobuf can say.
pub(crate) fn bytes(message: &impl Message) -> Vec<u8> {
    message.write_to_bytes().unwrap_or_default()
}

pub(crate) fn timestamp(unix_ns: u64) -> Timestamp {
    let seconds = i64::try_from(unix_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(unix_ns % 1_000_000_000).unwrap_or(0);
    Timestamp { seconds, nanos, ..Timestamp::default() }
}

pub(crate) fn empty() -> Vec<u8> {
    Vec::new()
}

/// `CreateTaskResponse`, `StartResponse`: the pid is field 1 of both.
pub(crate) fn pid(pid: u32) -> Vec<u8> {
    bytes(&api::StartResponse { pid, ..Default::default() })
}

pub(crate) fn state(task: &TaskId, view: &ProcessView, bundle: &str, addresses: &Addresses) -> Vec<u8> {
    let status = match view.status {
        ProcessStatus::Created => api::Status::CREATED,
        ProcessStatus::Running => api::Status::RUNNING,
        ProcessStatus::Pausing => api::Status::PAUSING,
        ProcessStatus::Paused => api::Status::PAUSED,
        ProcessStatus::Stopped => api::Status::STOPPED,
    };
    let id = match &view.process {
        ProcessId::Init => &task.0,
        ProcessId::Exec(id) => &id.0,
    };
    bytes(&api::StateResponse {
        id: id.clone(),
        bundle: bundle.to_owned(),
        pid: view.pid,
        status: EnumOrUnknown::new(status),
        stdin: addresses.stdin.clone(),
        stdout: addresses.stdout.clone(),
        stderr: addresses.stderr.clone(),
        terminal: addresses.terminal,
        exit_status: view.exit.map_or(0, |exit| exit.status.code()),
        exited_at: view.exit.map(|exit| timestamp(exit.at_unix_ns)).into(),
        ..Default::default()
    })
}

pub(crate) fn exit(exit: Exit) -> Vec<u8> {
    bytes(&api::WaitResponse {
        exit_status: exit.status.code(),
        exited_at: MessageField::some(timestamp(exit.at_unix_ns)),
        ..Default::default()
    })
}

pub(crate) fn deleted(pid: u32, exit: Exit) -> Vec<u8> {
    bytes(&api::DeleteResponse {
        pid,
        exit_status: exit.status.code(),
        exited_at: MessageField::some(timestamp(exit.at_unix_ns)),
        ..Default::default()
    })
}

pub(crate) fn pids(processes: &[KnownProcess]) -> Vec<u8> {
    let processes = processes.iter().map(|p| api::ProcessInfo {
        pid: p.pid,
        info: p.exec_id.as_ref().map(|id| exec_details(id)).into(),
        ..Default::default()
    });
    bytes(&api::PidsResponse { processes: processes.collect(), ..Default::default() })
}

/// `containerd.runc.v1.ProcessDetails`, whose field 1 is the exec id; that of `StateRequest`'s first field is the same.
fn exec_details(exec_id: &str) -> Any {
    let details = api::ConnectRequest { id: exec_id.to_owned(), ..Default::default() };
    Any { type_url: "containerd.runc.v1.ProcessDetails".to_owned(), value: bytes(&details), ..Default::default() }
}

pub(crate) fn stats(type_url: String, value: Vec<u8>) -> Vec<u8> {
    let any = Any { type_url, value, ..Default::default() };
    bytes(&api::StatsResponse { stats: MessageField::some(any), ..Default::default() })
}

pub(crate) fn connected(shim_pid: u32, task_pid: u32) -> Vec<u8> {
    bytes(&api::ConnectResponse { shim_pid, task_pid, ..Default::default() })
}

pub(crate) fn sandbox_started(view: &SandboxView) -> Vec<u8> {
    bytes(&sandbox_api::StartSandboxResponse {
        pid: view.pid,
        created_at: MessageField::some(timestamp(view.created_at_unix_ns)),
        ..Default::default()
    })
}

/// `info`: what is told of it only to those who want to know all.
pub(crate) fn sandbox_status(view: &SandboxView, info: Vec<(&str, String)>) -> Vec<u8> {
    // CRI's words, which containerd hands on.
    let state = if view.is_ready { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" };
    bytes(&sandbox_api::SandboxStatusResponse {
        sandbox_id: view.id.0.clone(),
        pid: view.pid,
        state: state.to_owned(),
        info: info.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        created_at: MessageField::some(timestamp(view.created_at_unix_ns)),
        exited_at: view.exit.map(|exit| timestamp(exit.at_unix_ns)).into(),
        ..Default::default()
    })
}

/// As Go names it.
pub(crate) fn platform() -> Vec<u8> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    };
    let mut response = sandbox_api::PlatformResponse::default();
    let platform = response.platform.mut_or_insert_default();
    platform.os = std::env::consts::OS.to_owned();
    platform.architecture = architecture.to_owned();
    bytes(&response)
}

pub(crate) fn sandbox_metrics(id: &TaskId, at_unix_ns: u64, type_url: String, value: Vec<u8>) -> Vec<u8> {
    let mut response = sandbox_api::SandboxMetricsResponse::default();
    let metric = response.metrics.mut_or_insert_default();
    metric.timestamp = MessageField::some(timestamp(at_unix_ns));
    metric.id.clone_from(&id.0);
    metric.data = MessageField::some(Any { type_url, value, ..Default::default() });
    bytes(&response)
}

/// What an event needs that the lifecycle does not know.
pub(crate) struct EventFacts<'a> {
    pub(crate) bundle: &'a str,
    pub(crate) mounts: &'a [MountEntry],
    pub(crate) addresses: &'a Addresses,
    /// The directory of the checkpoint that was written or is to be restored.
    pub(crate) checkpoint: &'a str,
}

/// The topic, the type and the bytes of an event (contract 4.1).
pub(crate) fn event(task: &TaskId, event: &Event, facts: &EventFacts<'_>) -> (&'static str, &'static str, Vec<u8>) {
    let container_id = task.0.clone();
    let exec_id = |process: &ProcessId| process.exec_id().to_owned();
    match event {
        Event::Created { pid } => {
            let rootfs = facts.mounts.iter().map(|m| api::Mount {
                type_: m.kind.clone(),
                source: m.source.clone(),
                target: m.target.clone(),
                options: m.options.clone(),
                ..Default::default()
            });
            let io = events::task::TaskIO {
                stdin: facts.addresses.stdin.clone(),
                stdout: facts.addresses.stdout.clone(),
                stderr: facts.addresses.stderr.clone(),
                terminal: facts.addresses.terminal,
                ..Default::default()
            };
            let message = events::task::TaskCreate {
                container_id,
                bundle: facts.bundle.to_owned(),
                rootfs: rootfs.collect(),
                io: MessageField::some(io),
                checkpoint: facts.checkpoint.to_owned(),
                pid: *pid,
                ..Default::default()
            };
            ("/tasks/create", "containerd.events.TaskCreate", bytes(&message))
        }
        Event::Started { pid } => {
            let message = events::task::TaskStart { container_id, pid: *pid, ..Default::default() };
            ("/tasks/start", "containerd.events.TaskStart", bytes(&message))
        }
        Event::ExecAdded { process } => {
            let exec_id = exec_id(process);
            let message = events::task::TaskExecAdded { container_id, exec_id, ..Default::default() };
            ("/tasks/exec-added", "containerd.events.TaskExecAdded", bytes(&message))
        }
        Event::ExecStarted { process, pid } => {
            let exec_id = exec_id(process);
            let message = events::task::TaskExecStarted { container_id, exec_id, pid: *pid, ..Default::default() };
            ("/tasks/exec-started", "containerd.events.TaskExecStarted", bytes(&message))
        }
        Event::Exited { process, pid, exit } => {
            let id = match process {
                ProcessId::Init => container_id.clone(),
                ProcessId::Exec(id) => id.0.clone(),
            };
            let message = events::task::TaskExit {
                container_id,
                id,
                pid: *pid,
                exit_status: exit.status.code(),
                exited_at: MessageField::some(timestamp(exit.at_unix_ns)),
                ..Default::default()
            };
            ("/tasks/exit", "containerd.events.TaskExit", bytes(&message))
        }
        Event::Deleted { pid, exit } => {
            let message = events::task::TaskDelete {
                container_id,
                pid: *pid,
                exit_status: exit.status.code(),
                exited_at: MessageField::some(timestamp(exit.at_unix_ns)),
                ..Default::default()
            };
            ("/tasks/delete", "containerd.events.TaskDelete", bytes(&message))
        }
        Event::Paused => {
            let message = events::task::TaskPaused { container_id, ..Default::default() };
            ("/tasks/paused", "containerd.events.TaskPaused", bytes(&message))
        }
        Event::Resumed => {
            let message = events::task::TaskResumed { container_id, ..Default::default() };
            ("/tasks/resumed", "containerd.events.TaskResumed", bytes(&message))
        }
        Event::OutOfMemory => {
            let message = events::task::TaskOOM { container_id, ..Default::default() };
            ("/tasks/oom", "containerd.events.TaskOOM", bytes(&message))
        }
        Event::Checkpointed(_) => {
            let checkpoint = facts.checkpoint.to_owned();
            let message = events::task::TaskCheckpointed { container_id, checkpoint, ..Default::default() };
            ("/tasks/checkpointed", "containerd.events.TaskCheckpointed", bytes(&message))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::*;
    use crate::lifecycle::{Asker, ExecId, ExitStatus, Failure};

    fn task() -> TaskId {
        TaskId("c".to_owned())
    }

    fn exec() -> ProcessId {
        ProcessId::Exec(ExecId("e".to_owned()))
    }

    fn ended() -> Exit {
        Exit { status: ExitStatus::signalled(9), at_unix_ns: 1_700_000_000_000_000_007 }
    }

    fn decode_task(method: &str, message: &impl Message) -> Result<(TaskId, ProcessId, Verb, Body), RpcError> {
        match decode_request(service::TASK_V3, method, &bytes(message))? {
            Decoded::Task { task, process, verb, body } => Ok((task, process, verb, body)),
            other => panic!("{method} is no request about a task: {other:?}"),
        }
    }

    fn code(method: &str, message: &impl Message) -> Code {
        decode_task(method, message).unwrap_err().0
    }

    #[test]
    fn the_task_service_is_served_whole() {
        struct AnyTask;
        impl containerd_shim_protos::shim_sync::Task for AnyTask {}
        let generated = containerd_shim_protos::shim_sync::create_task(Arc::new(AnyTask));
        let expected: BTreeSet<String> = generated.into_keys().collect();
        let ours = TASK_METHODS.iter().map(|(name, _)| format!("/{}/{name}", service::TASK_V3));
        assert_eq!(ours.collect::<BTreeSet<_>>(), expected);
    }

    #[test]
    fn the_sandbox_service_is_served_whole() {
        struct AnySandbox;
        impl containerd_shim_protos::sandbox_sync::Sandbox for AnySandbox {}
        let generated = containerd_shim_protos::sandbox_sync::create_sandbox(Arc::new(AnySandbox));
        let expected: BTreeSet<String> = generated.into_keys().collect();
        let ours = SANDBOX_METHODS.iter().map(|(name, _)| format!("/{}/{name}", service::SANDBOX));
        assert_eq!(ours.collect::<BTreeSet<_>>(), expected);
        for (method, _) in SANDBOX_METHODS {
            assert_eq!(decode_request(service::SANDBOX, method, b"\xff").unwrap_err().0, Code::INVALID_ARGUMENT);
        }
    }

    #[test]
    fn a_sandbox_is_created_with_an_id_and_a_bundle_that_can_be_used() {
        let create = |id: &str, bundle: &str| {
            let request = sandbox_api::CreateSandboxRequest {
                sandbox_id: id.into(),
                bundle_path: bundle.into(),
                netns_path: "/n".into(),
                ..Default::default()
            };
            decode_request(service::SANDBOX, "CreateSandbox", &bytes(&request))
        };
        for (id, bundle) in [("", "/b"), ("../p", "/b"), ("p", "b"), ("p", "")] {
            assert_eq!(create(id, bundle).unwrap_err().0, Code::INVALID_ARGUMENT, "{id:?} {bundle:?}");
        }
        let Decoded::Sandbox { id, verb, body } = create("p", "/b").unwrap() else { panic!("another request") };
        let body = body.unwrap();
        assert_eq!((id.0.as_str(), verb, body.netns.as_str()), ("p", SandboxVerb::Create, "/n"));
    }

    #[test]
    fn both_names_of_the_task_service_mean_the_same() {
        let request = bytes(&api::StartRequest { id: "c".into(), exec_id: "e".into(), ..Default::default() });
        for service in [service::TASK_V2, service::TASK_V3] {
            let decoded = decode_request(service, "Start", &request).unwrap();
            let Decoded::Task { task: id, process, verb, .. } = decoded else { panic!("{decoded:?}") };
            assert_eq!((id, process, verb), (task(), exec(), Verb::Start));
        }
    }

    #[test]
    fn what_is_not_served_is_unimplemented_and_never_not_found() {
        for (service, method) in [
            ("containerd.task.v4.Task", "State"),
            (service::SANDBOX, "PortForward"),
            (service::TASK_V3, "Restore"),
            (service::TASK_V3, "state"),
            (service::CONTROL, "State"),
        ] {
            assert_eq!(decode_request(service, method, b"").unwrap_err().0, Code::UNIMPLEMENTED, "{service} {method}");
        }
    }

    #[test]
    fn garbage_is_invalid() {
        for (method, _) in TASK_METHODS {
            let (code, text) = decode_request(service::TASK_V2, method, b"\xff\xff\xff").unwrap_err();
            assert_eq!(code, Code::INVALID_ARGUMENT, "{method}");
            assert!(text.starts_with("cannot decode "), "{method}: {text}");
        }
    }

    #[test]
    fn signals_are_those_that_the_kernel_knows() {
        let kill = |signal| api::KillRequest { id: "c".into(), signal, all: true, ..Default::default() };
        for signal in [0, 1, 15, 34, 64] {
            let (_, process, verb, _) = decode_task("Kill", &kill(signal)).unwrap();
            assert_eq!((process, verb), (ProcessId::Init, Verb::Kill { signal, all: true }));
        }
        for signal in [65, 128 + 9, u32::MAX] {
            assert_eq!(code("Kill", &kill(signal)), Code::INVALID_ARGUMENT, "{signal}");
        }
    }

    #[test]
    fn a_terminal_is_never_larger_than_it_can_be_said() {
        let request = api::ResizePtyRequest { id: "c".into(), width: 70_000, height: 25, ..Default::default() };
        let (_, _, verb, _) = decode_task("ResizePty", &request).unwrap();
        assert_eq!(verb, Verb::ResizePty { width: u16::MAX, height: 25 });
    }

    fn create() -> api::CreateTaskRequest {
        api::CreateTaskRequest {
            id: "c".into(),
            bundle: "/b".into(),
            stdin: "/i".into(),
            stdout: "/o".into(),
            stderr: "/e".into(),
            rootfs: vec![api::Mount {
                type_: "overlay".into(),
                source: "overlay".into(),
                options: vec!["lowerdir=/l".into()],
                ..Default::default()
            }],
            options: MessageField::some(Any { type_url: "t".into(), value: vec![1], ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn a_create_brings_everything_along() {
        let (id, process, _, body) = decode_task("Create", &create()).unwrap();
        assert_eq!((id, process), (task(), ProcessId::Init));
        let Body::Create(body) = body else { panic!("{body:?}") };
        assert_eq!(body.bundle, PathBuf::from("/b"));
        assert_eq!((body.mounts[0].kind.as_str(), body.mounts[0].options[0].as_str()), ("overlay", "lowerdir=/l"));
        assert_eq!(body.options, Some(("t".to_owned(), vec![1])));
        let Addresses { terminal, stdin, stdout, stderr } = body.addresses;
        assert_eq!((terminal, stdin.as_str(), stdout.as_str(), stderr.as_str()), (false, "/i", "/o", "/e"));
    }

    #[test]
    fn a_create_from_a_checkpoint_says_so() {
        let with = |checkpoint: &str| api::CreateTaskRequest { checkpoint: checkpoint.into(), ..create() };
        let (_, _, verb, body) = decode_task("Create", &with("/cp")).unwrap();
        assert_eq!(verb, Verb::Create { shared_pids: false, from_checkpoint: true });
        let Body::Create(body) = body else { panic!("{body:?}") };
        assert_eq!(body.checkpoint, "/cp");
        assert_eq!(code("Create", &with("cp")), Code::INVALID_ARGUMENT);
    }

    #[test]
    fn a_checkpoint_brings_its_options_along() {
        let request = |path: &str, options: Option<Any>| api::CheckpointTaskRequest {
            id: "c".into(),
            path: path.into(),
            options: options.into(),
            ..Default::default()
        };
        let any = |type_url: &str, value: &[u8]| {
            Some(Any { type_url: type_url.into(), value: value.to_vec(), ..Default::default() })
        };
        let (id, process, verb, body) = decode_task("Checkpoint", &request("/cp", None)).unwrap();
        assert_eq!((id, process, verb), (task(), ProcessId::Init, Verb::Checkpoint));
        assert_eq!(body, Body::Checkpoint { image: "/cp".into(), options: CheckpointOptions::default() });
        let runc = "containerd.runc.v1.CheckpointOptions";
        let (.., body) = decode_task("Checkpoint", &request("/cp", any(runc, b"\x08\x01"))).unwrap();
        let Body::Checkpoint { options, .. } = body else { panic!("{body:?}") };
        assert!(options.exit);
        for (request, named) in [
            (request("cp", None), "the checkpoint \"cp\""),
            (request("", None), "the checkpoint \"\""),
            (request("/cp", any(runc, b"\x08")), runc),
            (request("/cp", any("other", b"\x08\x01")), "other"),
            (request("/cp", any(runc, b"\x4a\x01w")), "working directory \"w\""),
        ] {
            let (code, text) = decode_task("Checkpoint", &request).unwrap_err();
            assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");
            assert!(text.contains(named), "{text}");
        }
    }

    #[test]
    fn ids_that_could_leave_their_directory_are_refused() {
        for id in ["", ".", "..", "../x", "a/b", "-a", "a..b", "a\0", "ä", &"a".repeat(200)] {
            let request = api::CreateTaskRequest { id: id.into(), ..create() };
            assert_eq!(code("Create", &request), Code::INVALID_ARGUMENT, "task {id:?}");
            assert_eq!(code("Exec", &exec_request(id, b"{}")), Code::INVALID_ARGUMENT, "exec {id:?}");
        }
        assert_eq!(code("Create", &api::CreateTaskRequest { bundle: "b".into(), ..create() }), Code::INVALID_ARGUMENT);
    }

    #[test]
    fn an_address_for_streaming_is_unimplemented_and_a_wrong_one_invalid() {
        let with = |stdout: &str| api::CreateTaskRequest { stdout: stdout.into(), ..create() };
        assert_eq!(code("Create", &with("ttrpc+unix:///s?streaming_id=c-stdout")), Code::UNIMPLEMENTED);
        for bad in ["relative/path", "gopher:///x", "binary://relative", "binary:///%zz"] {
            assert_eq!(code("Create", &with(bad)), Code::INVALID_ARGUMENT, "{bad}");
        }
    }

    fn exec_request(exec_id: &str, spec: &[u8]) -> api::ExecProcessRequest {
        let spec = Any { value: spec.to_vec(), ..Default::default() };
        api::ExecProcessRequest {
            id: "c".into(),
            exec_id: exec_id.into(),
            terminal: true,
            spec: MessageField::some(spec),
            ..Default::default()
        }
    }

    #[test]
    fn the_request_decides_whether_an_exec_has_a_terminal() {
        let request = exec_request("e", br#"{"args":["sh"],"terminal":false,"later":1}"#);
        let (_, process, verb, body) = decode_task("Exec", &request).unwrap();
        assert_eq!((process, verb), (exec(), Verb::Exec));
        let Body::Exec { addresses, spec } = body else { panic!("{body:?}") };
        assert!(addresses.terminal);
        let spec: serde_json::Value = serde_json::from_slice(&spec).unwrap();
        assert_eq!(spec, serde_json::json!({ "args": ["sh"], "terminal": true, "later": 1 }));
    }

    #[test]
    fn settings_that_are_no_json_object_are_invalid() {
        for json in [&b""[..], b"[]", b"{", b"null"] {
            assert_eq!(code("Exec", &exec_request("e", json)), Code::INVALID_ARGUMENT);
            let resources = Any { value: json.to_vec(), ..Default::default() };
            let request = api::UpdateTaskRequest {
                id: "c".into(),
                resources: MessageField::some(resources),
                ..Default::default()
            };
            assert_eq!(code("Update", &request), Code::INVALID_ARGUMENT);
        }
    }

    #[test]
    fn every_refusal_has_its_code() {
        let failed = |kind| Refusal::Failed(Failure { kind, text: "as the runtime said it".to_owned() });
        let word = || "word".to_owned();
        for (refusal, code) in [
            (Refusal::NoTask(task()), Code::NOT_FOUND),
            (Refusal::NoProcess(task(), exec()), Code::NOT_FOUND),
            (Refusal::Finished(exec()), Code::NOT_FOUND),
            (Refusal::Unavailable(word()), Code::NOT_FOUND),
            (Refusal::TaskExists(task()), Code::ALREADY_EXISTS),
            (Refusal::ProcessExists(task(), exec()), Code::ALREADY_EXISTS),
            (Refusal::WrongState { verb: "start", process: exec(), state: "stopped" }, Code::FAILED_PRECONDITION),
            (Refusal::InitExited(task()), Code::FAILED_PRECONDITION),
            (Refusal::NotStarted(exec()), Code::FAILED_PRECONDITION),
            (Refusal::StartFailed(exec()), Code::FAILED_PRECONDITION),
            (Refusal::Unsupported(word()), Code::UNIMPLEMENTED),
            (Refusal::Invalid(word()), Code::INVALID_ARGUMENT),
            (Refusal::Late, Code::DEADLINE_EXCEEDED),
            (failed(FailureKind::NotFound), Code::NOT_FOUND),
            (failed(FailureKind::AlreadyExists), Code::ALREADY_EXISTS),
            (failed(FailureKind::Invalid), Code::INVALID_ARGUMENT),
            (failed(FailureKind::Unsupported), Code::UNIMPLEMENTED),
            (failed(FailureKind::Deadline), Code::DEADLINE_EXCEEDED),
            (failed(FailureKind::Other), Code::UNKNOWN),
        ] {
            assert_eq!(refusal_error(&refusal), (code, refusal.to_string()), "{refusal:?}");
        }
        assert_eq!(refusal_error(&failed(FailureKind::Other)).1, "as the runtime said it");
        // Clients look for these words.
        assert!(Refusal::Finished(exec()).to_string().contains("process already finished"));
        assert!(Refusal::InitExited(task()).to_string().contains("not running"));
    }

    #[test]
    fn a_response_says_either_what_was_asked_or_why_not() {
        let good = Response::parse_from_bytes(&response(Ok(vec![7]))).unwrap();
        assert_eq!((good.payload, good.status.is_none()), (vec![7], true));
        let bad = Response::parse_from_bytes(&response(Err((Code::NOT_FOUND, "gone".to_owned())))).unwrap();
        assert_eq!(bad.status.code.enum_value(), Ok(Code::NOT_FOUND));
        assert_eq!((bad.status.message.as_str(), bad.payload.is_empty()), ("gone", true));
    }

    #[test]
    fn answers_carry_pid_status_and_time() {
        let reply = api::WaitResponse::parse_from_bytes(&exit(ended())).unwrap();
        assert_eq!((reply.exit_status, reply.exited_at.seconds, reply.exited_at.nanos), (137, 1_700_000_000, 7));
        let reply = api::DeleteResponse::parse_from_bytes(&deleted(5, ended())).unwrap();
        assert_eq!((reply.pid, reply.exit_status, reply.exited_at.nanos), (5, 137, 7));
        let reply = api::CreateTaskResponse::parse_from_bytes(&pid(5)).unwrap();
        assert_eq!(reply.pid, 5);
        let reply = api::ConnectResponse::parse_from_bytes(&connected(1, 5)).unwrap();
        assert_eq!((reply.shim_pid, reply.task_pid), (1, 5));
    }

    #[test]
    fn a_state_is_that_of_the_process_that_was_asked_for() {
        let addresses = Addresses { terminal: true, stdout: "/o".into(), ..Default::default() };
        let view = ProcessView {
            process: exec(),
            pid: 5,
            status: ProcessStatus::Stopped,
            exit: Some(ended()),
            oom_killed: false,
        };
        let reply = api::StateResponse::parse_from_bytes(&state(&task(), &view, "/b", &addresses)).unwrap();
        assert_eq!((reply.id.as_str(), reply.bundle.as_str(), reply.pid), ("e", "/b", 5));
        assert_eq!((reply.stdout.as_str(), reply.terminal, reply.exit_status), ("/o", true, 137));
        for (ours, theirs) in [
            (ProcessStatus::Created, api::Status::CREATED),
            (ProcessStatus::Running, api::Status::RUNNING),
            (ProcessStatus::Pausing, api::Status::PAUSING),
            (ProcessStatus::Paused, api::Status::PAUSED),
            (ProcessStatus::Stopped, api::Status::STOPPED),
        ] {
            let view = ProcessView { process: ProcessId::Init, pid: 5, status: ours, exit: None, oom_killed: false };
            let reply = api::StateResponse::parse_from_bytes(&state(&task(), &view, "/b", &addresses)).unwrap();
            assert_eq!((reply.id.as_str(), reply.status.enum_value()), ("c", Ok(theirs)));
            assert_eq!((reply.exit_status, reply.exited_at.is_none()), (0, true));
        }
    }

    #[test]
    fn pids_of_execs_are_named_as_runc_names_them() {
        let known = [KnownProcess { pid: 1, exec_id: None }, KnownProcess { pid: 2, exec_id: Some("e".to_owned()) }];
        let reply = api::PidsResponse::parse_from_bytes(&pids(&known)).unwrap();
        assert!(reply.processes[0].info.is_none());
        let info = &reply.processes[1].info;
        assert_eq!(info.type_url, "containerd.runc.v1.ProcessDetails");
        // Field 1, a string of one byte.
        assert_eq!(info.value, [0x0a, 1, b'e']);
    }

    fn told<M: protobuf::MessageFull>(what: &Event, topic: &str) -> M {
        let addresses = Addresses { stdout: "/o".into(), ..Default::default() };
        let facts = EventFacts { bundle: "/b", mounts: &[], addresses: &addresses, checkpoint: "/cp" };
        let (told_topic, type_url, value) = event(&task(), what, &facts);
        assert_eq!((told_topic, type_url), (topic, M::descriptor().full_name()), "{what:?}");
        M::parse_from_bytes(&value).unwrap()
    }

    #[test]
    fn every_event_has_its_topic_and_message() {
        use containerd_shim_protos::events::task as messages;
        let created: messages::TaskCreate = told(&Event::Created { pid: 5 }, "/tasks/create");
        assert_eq!((created.container_id.as_str(), created.bundle.as_str(), created.pid), ("c", "/b", 5));
        assert_eq!(created.io.stdout, "/o");
        let started: messages::TaskStart = told(&Event::Started { pid: 5 }, "/tasks/start");
        assert_eq!((started.container_id.as_str(), started.pid), ("c", 5));
        let added: messages::TaskExecAdded = told(&Event::ExecAdded { process: exec() }, "/tasks/exec-added");
        assert_eq!((added.container_id.as_str(), added.exec_id.as_str()), ("c", "e"));
        let event = Event::ExecStarted { process: exec(), pid: 6 };
        let started: messages::TaskExecStarted = told(&event, "/tasks/exec-started");
        assert_eq!((started.exec_id.as_str(), started.pid), ("e", 6));
        for (process, id) in [(ProcessId::Init, "c"), (exec(), "e")] {
            let exited: messages::TaskExit = told(&Event::Exited { process, pid: 6, exit: ended() }, "/tasks/exit");
            assert_eq!((exited.container_id.as_str(), exited.id.as_str(), exited.pid), ("c", id, 6));
            assert_eq!((exited.exit_status, exited.exited_at.nanos), (137, 7));
        }
        let deleted: messages::TaskDelete = told(&Event::Deleted { pid: 5, exit: ended() }, "/tasks/delete");
        // An id would make it the deletion of an exec.
        assert_eq!((deleted.pid, deleted.exit_status, deleted.id.as_str()), (5, 137, ""));
        let paused: messages::TaskPaused = told(&Event::Paused, "/tasks/paused");
        let resumed: messages::TaskResumed = told(&Event::Resumed, "/tasks/resumed");
        let oom: messages::TaskOOM = told(&Event::OutOfMemory, "/tasks/oom");
        assert_eq!((paused.container_id.as_str(), resumed.container_id.as_str()), ("c", "c"));
        assert_eq!(oom.container_id, "c");
        let nobody = Asker { connection: 1, stream: 1 };
        let written: messages::TaskCheckpointed = told(&Event::Checkpointed(nobody), "/tasks/checkpointed");
        assert_eq!((written.container_id.as_str(), written.checkpoint.as_str()), ("c", "/cp"));
    }
}
