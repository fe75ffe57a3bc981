//! What `--json` gives, command by command. Programs depend on it: fields are added, and none is renamed, removed or given
//! another meaning. Times are RFC 3339 in UTC with nanoseconds, or empty for none; sizes are bytes; what is not known is null.
//!
//! | command | output |
//! |---|---|
//! | `ps` | an array of [`Container`] |
//! | `inspect` | an array of [`Inspection`] |
//! | `run --detach`, `create` | [`Made`] on a line |
//! | `start`, `restart` | [`Done`] with [`Started`] on a line for each |
//! | `exec --detach` | [`Done`] with [`ExecStarted`] on a line |
//! | `kill`, `pause`, `unpause`, `rm`, `update`, `reopen-logs` | [`Done`] with [`Nothing`] on a line for each |
//! | `stop`, `wait` | [`Done`] with [`Ended`] on a line for each |
//! | the same, of a container with which it failed | [`Failed`] on a line |
//! | `stop --all --shutdown` | a [`Stopped`] on a line for each |
//! | `reload` | [`Reloaded`] |
//! | `events` | an [`Event`] on a line for each |
//! | `stats` | an object on a line for each container and look, see `stats.rs` |
//! | `top` | an array of processes, see `top.rs` |
//! | `version` | [`Version`] |
//! | `info` | [`Info`] |
//! | `doctor` | whether all is well, an array of findings, and a [`Report`], see `doctor.rs` |
//! | `logs` | an object on a line for each entry, see `logs/mod.rs` |

use std::collections::BTreeMap;

use holdfast_proto::{control, supervisor as pb};
use serde::Serialize;
use serde_json::value::RawValue;

use super::render::timestamp;
use crate::doctor::Tool;
use crate::registry::Status;

/// One container.
#[derive(Debug, Serialize)]
pub(super) struct Container<'a> {
    namespace: &'a str,
    id: &'a str,
    name: &'a str,
    /// holdfastd, or the address of a containerd.
    manager: &'a str,
    command: &'a [String],
    /// restoring, preparing, created, running, paused, stopping, exited, restarting, removing, unresponsive, unreadable,
    /// incompatible, ready, not-ready.
    status: &'a str,
    /// 0 for none; so for the shim's.
    pid: u32,
    shim_pid: u32,
    created_at: String,
    started_at: String,
    exited_at: String,
    /// The exit code, or 128 + signal, or 255 if it is not known; null for what has not ended.
    exit_status: Option<u32>,
    /// Why the exit status is what it is, or what is wrong.
    reason: &'a str,
    /// The restart policy.
    restart: &'a str,
    /// By the policy, since the last start by request.
    restarts: u32,
    /// Those of them in a row, without a long run among them.
    restarts_in_a_row: u32,
    /// Empty if it does not wait for one.
    next_restart_at: String,
    labels: BTreeMap<&'a str, &'a str>,
    /// It is no container but a pod's sandbox, which is ready or not.
    sandbox: bool,
}

impl<'a> Container<'a> {
    pub(super) fn new(c: &'a pb::Container) -> Self {
        Self {
            namespace: &c.namespace,
            id: &c.id,
            name: &c.name,
            manager: &c.manager,
            command: &c.command,
            status: &c.status,
            pid: c.pid,
            shim_pid: c.shim_pid,
            created_at: timestamp(c.created_at_unix_ns),
            started_at: timestamp(c.started_at_unix_ns),
            exited_at: timestamp(c.exited_at_unix_ns),
            // When it ended may have died with its shim.
            exit_status: (c.exited_at_unix_ns != 0 || c.status == Status::Exited.as_str()).then_some(c.exit_status),
            reason: &c.reason,
            restart: &c.restart,
            restarts: c.restarts,
            restarts_in_a_row: c.restarts_in_a_row,
            next_restart_at: timestamp(c.next_restart_at_unix_ns),
            labels: c.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            sandbox: c.sandbox,
        }
    }
}

/// All about one container.
#[derive(Debug, Serialize)]
pub(super) struct Inspection<'a> {
    #[serde(flatten)]
    container: Container<'a>,
    /// json-file, cri, journald, raw or none; empty for another manager's container.
    log_driver: &'a str,
    /// Empty if it is not in a file.
    log_path: &'a str,
    log_options: BTreeMap<&'a str, &'a str>,
    /// How the log was kept before that was changed, the latest at the end.
    earlier_logs: Vec<EarlierLog<'a>>,
    /// The FIFO of standard input, or empty.
    stdin: &'a str,
    terminal: bool,
    bundle: &'a str,
    shim_address: &'a str,
    /// A number.
    stop_signal: &'a str,
    /// Seconds.
    stop_timeout: u32,
    remove: bool,
    execs: Vec<Exec<'a>>,
    output: Vec<Stream<'a>>,
    /// Why nothing is known of the output; empty when there is nothing to say.
    output_unknown: &'a str,
    /// The OCI config.json as it is, or null if there is none.
    spec: Option<&'a RawValue>,
}

impl<'a> Inspection<'a> {
    pub(super) fn new(i: &'a pb::InspectResponse) -> Self {
        Self {
            container: Container::new(i.container.get_or_default()),
            log_driver: &i.log_driver,
            log_path: &i.log_path,
            log_options: i.log_options.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            earlier_logs: i.earlier_logs.iter().map(EarlierLog::new).collect(),
            stdin: &i.stdin,
            terminal: i.terminal,
            bundle: &i.bundle,
            shim_address: &i.shim_address,
            stop_signal: &i.stop_signal,
            stop_timeout: i.stop_timeout,
            remove: i.remove,
            execs: i.execs.iter().map(Exec::new).collect(),
            output: i.output.iter().map(Stream::new).collect(),
            output_unknown: &i.output_unknown,
            spec: serde_json::from_str(&i.spec_json).ok(),
        }
    }
}

/// What was logged in another way.
#[derive(Debug, Serialize)]
struct EarlierLog<'a> {
    driver: &'a str,
    /// Empty if it is not in a file.
    path: &'a str,
}

impl<'a> EarlierLog<'a> {
    fn new(log: &'a pb::EarlierLog) -> Self {
        Self { driver: &log.driver, path: &log.path }
    }
}

/// Another command in a container; those that have ended are remembered for a while.
#[derive(Debug, Serialize)]
struct Exec<'a> {
    id: &'a str,
    /// running or exited.
    status: &'a str,
    /// 0 for none.
    pid: u32,
    /// Null while it runs.
    exit_status: Option<u32>,
    exited_at: String,
    oom_killed: bool,
    reason: &'a str,
}

impl<'a> Exec<'a> {
    fn new(e: &'a pb::ExecInfo) -> Self {
        Self {
            id: &e.id,
            status: &e.status,
            pid: e.pid,
            exit_status: (e.status != "running").then_some(e.exit_status),
            exited_at: timestamp(e.exited_at_unix_ns),
            oom_killed: e.oom_killed,
            reason: &e.reason,
        }
    }
}

/// One output of one process.
#[derive(Debug, Serialize)]
struct Stream<'a> {
    exec_id: &'a str,
    stream: &'a str,
    destination: &'a str,
    /// Absent where nobody has to read.
    #[serde(flatten)]
    kept: Option<Kept<'a>>,
}

/// What is kept of an output for its reader.
#[derive(Debug, Serialize)]
struct Kept<'a> {
    /// present or absent.
    reader: &'a str,
    kept_bytes: u64,
    spill_limit: u64,
    /// block or drop-oldest.
    policy: &'a str,
    /// limit, total or floor; empty for none that is reached.
    bound: &'a str,
    dropped_bytes: u64,
    error: &'a str,
}

impl<'a> Stream<'a> {
    fn new(s: &'a control::OutputStream) -> Self {
        let kept = (!s.reader.is_empty()).then(|| Kept {
            reader: &s.reader,
            kept_bytes: s.kept_bytes,
            spill_limit: s.spill_limit,
            policy: &s.policy,
            bound: &s.bound,
            dropped_bytes: s.dropped_bytes,
            error: &s.error,
        });
        Self { exec_id: &s.exec_id, stream: &s.stream, destination: &s.destination, kept }
    }
}

/// A container with which something was done, as it was named, and what else there is to say.
#[derive(Debug, Serialize)]
pub(super) struct Done<'a, T> {
    container: &'a str,
    #[serde(flatten)]
    more: T,
}

impl<'a, T: Serialize> Done<'a, T> {
    pub(super) fn new(container: &'a str, more: T) -> Self {
        Self { container, more }
    }
}

/// There is nothing else to say.
#[derive(Debug, Serialize)]
pub(super) struct Nothing {}

impl Nothing {
    /// Instead of an answer that is empty.
    pub(super) fn of<T>(_: T) -> Self {
        Self {}
    }
}

/// A container with which something could not be done, as it was named.
#[derive(Debug, Serialize)]
pub(super) struct Failed<'a> {
    pub(super) container: &'a str,
    pub(super) error: &'a str,
}

/// A new container.
#[derive(Debug, Serialize)]
pub(super) struct Made<'a> {
    id: &'a str,
    name: &'a str,
}

impl<'a> Made<'a> {
    pub(super) fn new(made: &'a pb::CreateResponse) -> Self {
        Self { id: &made.id, name: &made.name }
    }
}

/// A container that was started.
#[derive(Debug, Serialize)]
pub(super) struct Started {
    /// Of its first process.
    pub(super) pid: u32,
}

/// Another command that was started in a container.
#[derive(Debug, Serialize)]
pub(super) struct ExecStarted<'a> {
    pub(super) exec_id: &'a str,
    pub(super) pid: u32,
}

/// What became of a container at the machine's shutdown.
#[derive(Debug, Serialize)]
pub(super) struct Stopped<'a> {
    id: &'a str,
    name: &'a str,
    has_ended: bool,
    /// Null if it has not ended, never ran, or nobody knows.
    exit_status: Option<u32>,
    /// A few words.
    how: &'a str,
    took_ns: u64,
}

impl<'a> Stopped<'a> {
    pub(super) fn new(one: &'a pb::StoppedContainer) -> Self {
        Self {
            id: &one.id,
            name: &one.name,
            has_ended: one.has_ended,
            exit_status: one.exit_status,
            how: &one.how,
            took_ns: one.took_ns,
        }
    }
}

/// What came of reading the settings again; values as in the settings file.
#[derive(Debug, Serialize)]
pub(super) struct Reloaded<'a> {
    changed: Vec<Changed<'a>>,
    /// What stays as it was until a restart.
    refused: Vec<Refused<'a>>,
    /// Sentences on what the file says in vain, for a flag says otherwise.
    overridden: &'a [String],
}

#[derive(Debug, Serialize)]
struct Changed<'a> {
    key: &'a str,
    from: &'a str,
    to: &'a str,
}

#[derive(Debug, Serialize)]
struct Refused<'a> {
    key: &'a str,
    stays: &'a str,
    asked: &'a str,
    reason: &'a str,
}

impl<'a> Reloaded<'a> {
    pub(super) fn new(told: &'a pb::ReloadResponse) -> Self {
        let changed = told.changed.iter().map(|c| Changed { key: &c.key, from: &c.from, to: &c.to });
        let refused = told.refused.iter();
        let refused = refused.map(|r| Refused { key: &r.key, stays: &r.stays, asked: &r.asked, reason: &r.reason });
        Self { changed: changed.collect(), refused: refused.collect(), overridden: &told.overridden }
    }
}

/// How something ended.
#[derive(Debug, Serialize)]
pub(super) struct Ended<'a> {
    id: &'a str,
    exit_status: u32,
    exited_at: String,
    reason: &'a str,
}

impl<'a> Ended<'a> {
    pub(super) fn new(w: &'a pb::WaitResponse) -> Self {
        let exited_at = timestamp(w.exited_at_unix_ns);
        Self { id: &w.id, exit_status: w.exit_status, exited_at, reason: &w.reason }
    }
}

/// Something that happened.
#[derive(Debug, Serialize)]
pub(super) struct Event<'a> {
    time: String,
    namespace: &'a str,
    id: &'a str,
    /// create, start, exit, delete, oom, pause, resume, exec-add, exec-start, exec-exit, stop, restart, remove, reattach, lost,
    /// update; others may come.
    kind: &'a str,
    exec_id: &'a str,
    pid: u32,
    exit_status: u32,
    detail: &'a str,
}

impl<'a> Event<'a> {
    pub(super) fn new(e: &'a pb::Event) -> Self {
        Self {
            time: timestamp(e.time_unix_ns),
            namespace: &e.namespace,
            id: &e.id,
            kind: &e.kind,
            exec_id: &e.exec_id,
            pid: e.pid,
            exit_status: e.exit_status,
            detail: &e.detail,
        }
    }
}

/// The versions.
#[derive(Debug, Serialize)]
pub(super) struct Version<'a> {
    client: Client<'a>,
    /// Null if there is no supervisor.
    server: Option<Server<'a>>,
}

#[derive(Debug, Serialize)]
struct Client<'a> {
    version: &'a str,
}

#[derive(Debug, Serialize)]
struct Server<'a> {
    version: &'a str,
    pid: u32,
    record_schema: u32,
}

impl<'a> Version<'a> {
    pub(super) fn new(server: Option<&'a pb::VersionResponse>) -> Self {
        let server = server.map(|v| Server { version: &v.version, pid: v.pid, record_schema: v.record_schema });
        Self { client: Client { version: env!("CARGO_PKG_VERSION") }, server }
    }
}

/// How the supervisor is set up, what it holds, and the machine.
#[derive(Debug, Serialize)]
pub(super) struct Info<'a> {
    pub(super) client_version: &'a str,
    pub(super) version: &'a str,
    pub(super) pid: u32,
    pub(super) started_at: String,
    pub(super) run_dir: &'a str,
    pub(super) state_dir: &'a str,
    pub(super) socket: &'a str,
    pub(super) event_socket: &'a str,
    /// Empty if metrics are not served.
    pub(super) metrics_listen: &'a str,
    pub(super) log_driver: &'a str,
    /// Whether a stop of holdfastd leaves the containers running.
    pub(super) live_restore: bool,
    /// Empty if there is none.
    pub(super) shim: &'a str,
    /// Empty for the shim's choice among those found.
    pub(super) runtime: &'a str,
    pub(super) runtimes: &'a [Tool],
    pub(super) kernel: &'a str,
    /// v2, v1, "hybrid (v1 with v2 beside it)" or none.
    pub(super) cgroup: &'a str,
    pub(super) running: u32,
    pub(super) total: u32,
    /// How many of holdfastd's containers are in which state.
    pub(super) states: BTreeMap<&'a str, u32>,
    restore: Report<'a>,
}

/// The machine, as `info` shows it.
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) cgroup: &'static str,
    pub(super) runtimes: Vec<Tool>,
}

impl<'a> Info<'a> {
    pub(super) fn new(i: &'a pb::InfoResponse, machine: &'a Machine) -> Self {
        Self {
            client_version: env!("CARGO_PKG_VERSION"),
            version: &i.version,
            pid: i.pid,
            started_at: timestamp(i.started_at_unix_ns),
            run_dir: &i.run_dir,
            state_dir: &i.state_dir,
            socket: &i.socket,
            event_socket: &i.event_socket,
            metrics_listen: &i.metrics_listen,
            log_driver: &i.log_driver,
            live_restore: i.live_restore,
            shim: &i.shim,
            runtime: &i.runtime,
            runtimes: &machine.runtimes,
            kernel: &machine.kernel,
            cgroup: machine.cgroup,
            running: i.running,
            total: i.total,
            states: i.states.iter().map(|(state, number)| (state.as_str(), *number)).collect(),
            restore: Report::new(i.restore.get_or_default()),
        }
    }
}

/// What the supervisor found when it started.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    /// When it was complete; empty while it is under way.
    at: String,
    took_ns: u64,
    containers: Vec<Restored<'a>>,
}

#[derive(Debug, Serialize)]
struct Restored<'a> {
    namespace: &'a str,
    id: &'a str,
    name: &'a str,
    /// reattached, exited-while-away, adopted, lost, foreign, unreadable, incompatible, unresponsive, at-rest,
    /// restoring.
    class: &'a str,
    detail: &'a str,
    pid: u32,
}

impl<'a> Report<'a> {
    pub(super) fn new(r: &'a pb::RestoreReport) -> Self {
        let one = |c: &'a pb::Restored| Restored {
            namespace: &c.namespace,
            id: &c.id,
            name: &c.name,
            class: &c.class,
            detail: &c.detail,
            pid: c.pid,
        };
        Self { at: timestamp(r.at_unix_ns), took_ns: r.took_ns, containers: r.containers.iter().map(one).collect() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn keys(value: &impl Serialize) -> Vec<String> {
        let mut keys: Vec<String> = serde_json::to_value(value).unwrap().as_object().unwrap().keys().cloned().collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn no_field_is_lost() {
        let container = pb::Container::default();
        let of_container = [
            "command",
            "created_at",
            "exit_status",
            "exited_at",
            "id",
            "labels",
            "manager",
            "name",
            "namespace",
            "next_restart_at",
            "pid",
            "reason",
            "restart",
            "restarts",
            "restarts_in_a_row",
            "sandbox",
            "shim_pid",
            "started_at",
            "status",
        ];
        assert_eq!(keys(&Container::new(&container)), of_container);
        let inspection = pb::InspectResponse::default();
        let mut expected: Vec<&str> = of_container.to_vec();
        expected.extend([
            "bundle",
            "earlier_logs",
            "execs",
            "log_driver",
            "log_options",
            "log_path",
            "output",
            "output_unknown",
            "remove",
            "shim_address",
            "spec",
            "stdin",
            "stop_signal",
            "stop_timeout",
            "terminal",
        ]);
        expected.sort_unstable();
        assert_eq!(keys(&Inspection::new(&inspection)), expected);
        let event = pb::Event::default();
        let of_event = ["detail", "exec_id", "exit_status", "id", "kind", "namespace", "pid", "time"];
        assert_eq!(keys(&Event::new(&event)), of_event);
        assert_eq!(keys(&Ended::new(&pb::WaitResponse::default())), ["exit_status", "exited_at", "id", "reason"]);
        let ended = pb::WaitResponse::default();
        let of_done = ["container", "exit_status", "exited_at", "id", "reason"];
        assert_eq!(keys(&Done::new("web", Ended::new(&ended))), of_done);
        assert_eq!(keys(&Done::new("web", Nothing::of(()))), ["container"]);
        assert_eq!(keys(&Done::new("web", Started { pid: 1 })), ["container", "pid"]);
        assert_eq!(keys(&Done::new("web", ExecStarted { exec_id: "1", pid: 1 })), ["container", "exec_id", "pid"]);
        assert_eq!(keys(&Failed { container: "web", error: "no" }), ["container", "error"]);
        assert_eq!(keys(&Made::new(&pb::CreateResponse::default())), ["id", "name"]);
        let of_stopped = ["exit_status", "has_ended", "how", "id", "name", "took_ns"];
        assert_eq!(keys(&Stopped::new(&pb::StoppedContainer::default())), of_stopped);
        let told = pb::ReloadResponse {
            changed: vec![pb::ReloadChanged::default()],
            refused: vec![pb::ReloadRefused::default()],
            ..Default::default()
        };
        let told = serde_json::to_value(Reloaded::new(&told)).unwrap();
        assert_eq!(keys(&told), ["changed", "overridden", "refused"]);
        assert_eq!(keys(&told["changed"][0]), ["from", "key", "to"]);
        assert_eq!(keys(&told["refused"][0]), ["asked", "key", "reason", "stays"]);
        assert_eq!(keys(&Version::new(None)), ["client", "server"]);
        let (info, machine) =
            (pb::InfoResponse::default(), Machine { kernel: String::new(), cgroup: "v2", runtimes: vec![] });
        let of_info = [
            "cgroup",
            "client_version",
            "event_socket",
            "kernel",
            "live_restore",
            "log_driver",
            "metrics_listen",
            "pid",
            "restore",
            "run_dir",
            "running",
            "runtime",
            "runtimes",
            "shim",
            "socket",
            "started_at",
            "state_dir",
            "states",
            "total",
            "version",
        ];
        assert_eq!(keys(&Info::new(&info, &machine)), of_info);
    }

    #[test]
    fn what_runs_has_no_exit_status() {
        let running = pb::Container { exit_status: 143, ..Default::default() };
        assert_eq!(serde_json::to_value(Container::new(&running)).unwrap()["exit_status"], Value::Null);
        let exited = pb::Container { exit_status: 143, exited_at_unix_ns: 1, ..Default::default() };
        assert_eq!(serde_json::to_value(Container::new(&exited)).unwrap()["exit_status"], 143);
        let some_time = pb::Container { exit_status: 255, status: "exited".into(), ..Default::default() };
        let value = serde_json::to_value(Container::new(&some_time)).unwrap();
        assert_eq!((&value["exit_status"], &value["exited_at"]), (&json!(255), &json!("")));
    }

    #[test]
    fn where_a_log_was_before_is_told() {
        let log = |driver: &str, path: &str| pb::EarlierLog {
            driver: driver.into(),
            path: path.into(),
            ..Default::default()
        };
        let earlier_logs = vec![log("json-file", "/log.json"), log("journald", "")];
        let value = serde_json::to_value(Inspection::new(&pb::InspectResponse { earlier_logs, ..Default::default() }));
        let expected = json!([{ "driver": "json-file", "path": "/log.json" }, { "driver": "journald", "path": "" }]);
        assert_eq!(value.unwrap()["earlier_logs"], expected);
    }

    #[test]
    fn the_specification_is_given_as_it_is_and_a_stream_says_no_more_than_there_is() {
        let to_a_file =
            control::OutputStream { stream: "stdout".into(), destination: "/log".into(), ..Default::default() };
        let kept = control::OutputStream { reader: "absent".into(), kept_bytes: 7, ..to_a_file.clone() };
        let inspection = pb::InspectResponse {
            spec_json: r#"{"a":[1]}"#.into(),
            output: vec![to_a_file, kept],
            ..Default::default()
        };
        let value = serde_json::to_value(Inspection::new(&inspection)).unwrap();
        assert_eq!(value["spec"], json!({ "a": [1] }));
        assert_eq!(value["output"][0], json!({ "exec_id": "", "stream": "stdout", "destination": "/log" }));
        assert_eq!((&value["output"][1]["reader"], &value["output"][1]["kept_bytes"]), (&json!("absent"), &json!(7)));
    }
}
