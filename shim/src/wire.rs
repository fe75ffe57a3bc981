//! Domain ↔ protobuf, refusal → RPC code. Pure.

use std::path::PathBuf;

use containerd_shim_protos::{api, events};
use holdfast_proto::{control, service};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{EnumOrUnknown, Message, MessageField};
use serde::{Deserialize, Serialize};
use ttrpc::proto::{Code, Response, Status};

use crate::io::stdio::Addresses;
use crate::lifecycle::{
    Event, Exit, FailureKind, KnownProcess, ProcessId, ProcessView, Refusal, Status as ProcessStatus, TaskId, Verb,
};
use crate::sys::mount::MountEntry;

/// An RPC error: a code and one line for people.
pub(crate) type RpcError = (Code, String);

/// A request, decoded.
#[derive(Debug)]
pub(crate) enum Decoded {
    /// For the lifecycle. What it does not know travels in the body.
    Task { task: TaskId, process: ProcessId, verb: Verb, body: Body },
    /// `Control.Info`.
    Info,
}

/// What comes with a request and is used when the work begins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) enum Body {
    #[default]
    None,
    Create(CreateBody),
    Exec {
        addresses: Addresses,
        /// The OCI `Process` as JSON. May hold secrets.
        spec: Vec<u8>,
    },
    /// `LinuxResources` as JSON.
    Update(Vec<u8>),
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
    pub(crate) checkpoint: String,
    pub(crate) options: Option<(String, Vec<u8>)>,
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
    ("Checkpoint", |p| decode(p, |r: api::CheckpointTaskRequest| Ok(plain(r.id, "", Verb::Checkpoint)))),
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
            let resources = r.resources.into_option().map(|any| any.value).unwrap_or_default();
            check_json_object("the resources", &resources)?;
            Ok(with_body(r.id, "", Verb::Update, Body::Update(resources)))
        })
    }),
    ("Wait", |p| decode(p, |r: api::WaitRequest| Ok(plain(r.id, &r.exec_id, Verb::Wait)))),
    ("Stats", |p| decode(p, |r: api::StatsRequest| Ok(plain(r.id, "", Verb::Stats)))),
    ("Connect", |p| decode(p, |r: api::ConnectRequest| Ok(plain(r.id, "", Verb::Connect)))),
    ("Shutdown", |p| decode(p, |r: api::ShutdownRequest| Ok(plain(r.id, "", Verb::Shutdown)))),
];

const CONTROL_METHODS: [(&str, Decode); 3] = [
    ("Info", |p| decode(p, |_: control::InfoRequest| Ok(Decoded::Info))),
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

/// 0 only probes; the kernel knows signals 1 to 64, `signal(7)`.
fn check_signal(signal: u32) -> Result<u32, RpcError> {
    if signal <= 64 { Ok(signal) } else { Err(invalid(format!("{signal} is no signal number"))) }
}

fn check_json_object(what: &str, json: &[u8]) -> Result<serde_json::Map<String, serde_json::Value>, RpcError> {
    serde_json::from_slice(json).map_err(|e| invalid(format!("{what} are not a JSON object: {e}")))
}

fn check_id(what: &str, id: &str) -> Result<(), RpcError> {
    crate::cli::validate_id(id).map_err(|e| invalid(format!("illegal {what} {id:?}: {e}")))
}

fn decode_create(payload: &[u8]) -> Result<Decoded, RpcError> {
    decode(payload, |r: api::CreateTaskRequest| {
        check_id("task id", &r.id)?;
        if !r.bundle.starts_with('/') {
            return Err(invalid(format!("the bundle {:?} is not an absolute path", r.bundle)));
        }
        let mounts = r.rootfs.into_iter().map(|m| MountEntry {
            kind: m.type_,
            source: m.source,
            target: m.target,
            options: m.options,
        });
        let body = CreateBody {
            bundle: r.bundle.into(),
            mounts: mounts.collect(),
            addresses: addresses(r.terminal, r.stdin, r.stdout, r.stderr)?,
            checkpoint: r.checkpoint,
            options: r.options.into_option().map(|any| (any.type_url, any.value)),
        };
        // Whether pids are shared is in the bundle; the driver reads it.
        Ok(with_body(r.id, "", Verb::Create { shared_pids: false }, Body::Create(body)))
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
    let understood = addresses.input().map(drop).and(addresses.output().map(drop)).and(addresses.errors().map(drop));
    understood.map_err(|e| match e {
        crate::io::stdio::AddressError::Scheme { .. } => (Code::UNIMPLEMENTED, e.to_string()),
        _ => invalid(e.to_string()),
    })?;
    Ok(addresses)
}

/// The code for each reason to say no (contract 3.1).
pub(crate) fn refusal_error(refusal: &Refusal) -> RpcError {
    let code = match refusal {
        Refusal::NoTask(_) | Refusal::NoProcess(..) | Refusal::Finished(_) | Refusal::Unavailable(_) => Code::NOT_FOUND,
        Refusal::TaskExists(_) | Refusal::ProcessExists(..) => Code::ALREADY_EXISTS,
        Refusal::WrongState { .. } | Refusal::InitExited(_) | Refusal::NotStarted(_) | Refusal::StartFailed(_) => {
            Code::FAILED_PRECONDITION
        }
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

/// What an event needs that the lifecycle does not know.
pub(crate) struct EventFacts<'a> {
    pub(crate) bundle: &'a str,
    pub(crate) mounts: &'a [MountEntry],
    pub(crate) addresses: &'a Addresses,
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
    }
}
