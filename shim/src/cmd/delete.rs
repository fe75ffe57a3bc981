//! `delete`: clean up after a shim that is gone (contract 7.2). Safe to run twice, and also when nothing is wrong: the
//! daemon runs it at the end of every container's life.
//!
//! Whatever happens it ends before the daemon's patience does, and what could not be done by then is done by the next one.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use containerd_shim_protos::api::{DeleteRequest, DeleteResponse, WaitRequest};
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::sandbox_api::ShutdownSandboxRequest;
use containerd_shim_protos::shim::events::ForwardRequest;
use holdfast_proto::record::{
    ExitRecord, FILE_NAME, LoggerRecord, ProcessState, ReadError, Record, SUPERVISOR_INSTANCE, container_dir,
    namespace_dir, run_dir,
};
use holdfast_proto::{regular, service};
use protobuf::{Message, MessageField};
use serde::Deserialize;

use super::hand_on::Estate;
use super::socket::{self, socket_name};
use super::start::instance;
use super::sweep::SweepRequest;
use super::{hold, orphans};
use crate::ask::{AskError, Asker};
use crate::cgroup;
use crate::cli::{Flags, SWEEP_ACTION, UNMOUNT_ACTION};
use crate::driver::{chain, socket_path};
use crate::io::spill::policy::OutputSettings;
use crate::io::spill::tree::Home;
use crate::lifecycle::{Exit, Pid};
use crate::oci::command::{self, Call, Runtime};
use crate::oci::log::{self, FailureKind};
use crate::oci::runner::{self, ChildStdio};
use crate::oci::spec;
use crate::options::Options;
use crate::sys::{mount, process, reaper, signal};
use crate::{publish, record, wire};

/// The daemon gives the whole command five seconds, its start included.
const LIMIT: Duration = Duration::from_millis(4500);
/// How long calls of the runtime that outlived their shim may go on.
const ORPHANS_LIMIT: Duration = Duration::from_millis(1000);
/// How long a shim that lives may take to see the end of its container, and to delete it.
const SHIM_LIMIT: Duration = Duration::from_millis(1000);
/// What the runtime leaves to the loggers and the unmounts at least.
const LAST_SHARE: Duration = Duration::from_millis(1500);
/// How long a logger may take to end by itself, since its input ended with the shim; and after SIGTERM. All loggers share
/// it: there is no time for Go's 12 s in five.
const LOGGER_LIMITS: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(500)];
/// How long handing on what the shim had not delivered may take, before somebody else goes on with it.
const EVENTS_LIMIT: Duration = Duration::from_millis(1000);
/// How long somebody else may hold the lock of a socket.
const LOCK_LIMIT: Duration = Duration::from_millis(200);
/// What containerd calls an exit of which nobody knows the status.
const STATUS_LOST: u32 = 255;
/// A process that we killed.
const KILLED: u32 = 137;
/// The version of a reply of `start` with which the daemon cleans up after a pod's first container alone.
const SANDBOXED: i64 = 3;

/// Nothing sensible could be done: then the daemon keeps the bundle.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the bundle {0}")]
pub struct DeleteError(PathBuf, #[source] io::Error);

/// A container that is to be cleaned up after.
struct Case {
    instance: String,
    namespace: String,
    id: String,
    bundle: PathBuf,
    dir: PathBuf,
    record: Option<Record>,
    /// Of init; 0 if it is not known.
    pid: Pid,
    /// Init ran when we came.
    killed: bool,
}

/// Cleans up and gives the encoded answer. What went wrong on the way goes to `warn`, line by line, and does not keep the
/// rest from being done.
///
/// # Errors
/// [`DeleteError`].
pub fn run(flags: &Flags, warn: &mut dyn FnMut(String)) -> Result<Vec<u8>, DeleteError> {
    let until = Instant::now() + LIMIT;
    signal::outlast();
    let given = flags.bundle.clone().unwrap_or_else(|| PathBuf::from("."));
    let bundle = std::path::absolute(&given).map_err(|e| DeleteError(given, e))?;
    let own = Case::new(instance(&flags.address), &flags.namespace, &flags.id, bundle, warn);
    let sockets = own.sockets(&flags.address);
    let mut cases = vec![own];
    cases.extend(members(&cases[0]));
    // One limit for all: a pod has many containers.
    let orphans_until = Instant::now() + ORPHANS_LIMIT;
    for case in &mut cases {
        case.kill(orphans_until, warn);
    }
    let answer = match cases[0].ask_shim(until) {
        Some(answer) => answer,
        None => {
            delete_all(&cases, until - LAST_SHARE, warn);
            end_loggers(&cases, until, warn);
            unmount_all(&cases, until, warn);
            cases[0].answer()
        }
    };
    let events_until = until.min(Instant::now() + EVENTS_LIMIT);
    let dir = namespace_dir(&run_dir(), &cases[0].instance, &cases[0].namespace);
    let mut names: Vec<_> = sockets.iter().filter_map(|socket| socket.file_name()?.to_str()).collect();
    names.dedup();
    for (nth, socket_name) in names.into_iter().enumerate() {
        let told_by_daemon = (cases[0].instance != SUPERVISOR_INSTANCE).then_some(flags.id.as_str());
        let unsaid = cases[0].dead_shim().filter(|_| nth == 0).map(|shim| (shim, unsaid(&cases)));
        Estate { dir: &dir, socket_name, unsaid, told_by_daemon }.hand_on(events_until, warn);
    }
    remove_spills(&cases, until, warn);
    for socket in sockets {
        socket::sweep(&run_dir(), &socket, LOCK_LIMIT);
    }
    for case in &cases {
        case.put_down();
    }
    Ok(wire::bytes(&answer))
}

impl Case {
    fn new(instance: String, namespace: &str, id: &str, bundle: PathBuf, warn: &mut dyn FnMut(String)) -> Self {
        let dir = container_dir(&run_dir(), &instance, namespace, id);
        let record =
            read_record(&dir.join(FILE_NAME), warn).or_else(|| read_record(&bundle.join(record::LAST_NAME), warn));
        let (namespace, id) = (namespace.to_owned(), id.to_owned());
        Self { instance, namespace, id, bundle, dir, record, pid: 0, killed: false }
    }

    /// Whether the shim that answers for the container, as far as is known, runs.
    fn has_shim(&self) -> bool {
        let shim = self.record.as_ref().map(|record| &record.shim);
        shim.is_some_and(|shim| process::start_time(shim.pid) == Some(shim.start_time))
    }

    /// Pid and start time of its shim, if there is a record of one that does not run any more.
    fn dead_shim(&self) -> Option<(Pid, u64)> {
        let shim = &self.record.as_ref()?.shim;
        (!self.has_shim()).then_some((shim.pid, shim.start_time))
    }

    /// The ends of execs that the shim had recorded and perhaps not told any more, or did not live to see. Not if init had
    /// ended: its exit is the last that is told, and told after theirs.
    fn unsaid(&self) -> Vec<ForwardRequest> {
        let record = self.record.as_ref().filter(|record| record.init().is_some_and(|init| init.exit.is_none()));
        let execs = record.into_iter().flat_map(|record| &record.processes);
        let started = execs.filter(|process| !process.exec_id.is_empty() && process.state != ProcessState::Created);
        let exits = started.filter(|exec| !exec.exit_told).map(|exec| {
            let status = if self.killed { KILLED } else { STATUS_LOST };
            let exit = exec.exit.unwrap_or_else(|| ExitRecord { status, at_unix_ns: reaper::now_unix_ns() });
            let message = TaskExit {
                container_id: self.id.clone(),
                id: exec.exec_id.clone(),
                pid: exec.pid,
                exit_status: exit.status,
                exited_at: MessageField::some(wire::timestamp(exit.at_unix_ns)),
                ..TaskExit::default()
            };
            let (topic, type_url, value) = ("/tasks/exit", "containerd.events.TaskExit", wire::bytes(&message));
            publish::forward_request(&self.namespace, topic, type_url, value, exit.at_unix_ns)
        });
        exits.collect()
    }

    /// Ends its processes. In a shared pid namespace the runtime alone may leave some behind, and there may be no runtime.
    fn kill(&mut self, orphans_until: Instant, warn: &mut dyn FnMut(String)) {
        if !self.has_shim() {
            orphans::settle(&run_dir(), &self.dir, orphans_until);
        }
        let init = self.record.as_ref().and_then(Record::init).map(|init| (init.pid, init.start_time));
        let recorded = init.filter(|&(pid, start_time)| pid != 0 && start_time != 0);
        if self.is_sandbox() {
            return self.kill_holder();
        }
        // A call that outlived its shim has left a pid that no record has.
        self.pid = recorded.map(|(pid, _)| pid).or_else(|| read_pid(&self.bundle)).unwrap_or(0);
        let Some(held) = signal::hold(self.pid) else { return };
        // A pid alone may be somebody else's by now.
        self.killed = match recorded {
            Some((pid, start_time)) => process::start_time(pid) == Some(start_time),
            None => is_in_cgroup_of(self.pid, &self.bundle),
        };
        if !self.killed {
            return;
        }
        if let Err(e) = kill_cgroup(self.pid) {
            // The runtime kills what it can, later.
            warn(format!("cannot end all processes of {}: {e}", self.id));
        }
        // Also if it has no control group of its own.
        held.kill();
    }

    fn is_sandbox(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.sandbox)
    }

    /// It alone: it is in the control group of its shim, with others.
    fn kill_holder(&mut self) {
        let init = self.record.as_ref().and_then(Record::init).filter(|init| init.exit.is_none());
        let recorded = init.map(|init| (init.pid, init.start_time)).filter(|&(pid, _)| pid != 0);
        // One that was just made is in no record.
        let Some((pid, start_time)) = recorded.or_else(|| init.and_then(|_| hold::read(&self.bundle))) else { return };
        self.pid = pid;
        // Held first and looked at then, so that it is the very process.
        let held = signal::hold(pid).filter(|_| start_time != 0 && process::start_time(pid) == Some(start_time));
        self.killed = held.is_some_and(|held| held.kill());
    }

    /// A shim that lives and still has the container deletes it itself, and knows best how it ended. That it lives although
    /// the daemon cleans up after it means that only the connection was lost.
    fn ask_shim(&self, until: Instant) -> Option<DeleteResponse> {
        let address = self.record.as_ref().filter(|_| self.has_shim()).map(|record| record.shim.address.clone())?;
        let limit = || SHIM_LIMIT.min(until.saturating_duration_since(Instant::now()));
        if self.is_sandbox() {
            let shutdown = ShutdownSandboxRequest { sandbox_id: self.id.clone(), ..Default::default() };
            let mut shim = Asker::connect(socket_path(&address)).ok()?;
            shim.call(service::SANDBOX, "ShutdownSandbox", &shutdown, limit()).ok()?;
            return Some(self.answer());
        }
        let ask = || -> Result<Vec<u8>, AskError> {
            let mut shim = Asker::connect(socket_path(&address))?;
            let wait = WaitRequest { id: self.id.clone(), ..WaitRequest::default() };
            shim.call(service::TASK_V2, "Wait", &wait, limit())?;
            let delete = DeleteRequest { id: self.id.clone(), ..DeleteRequest::default() };
            shim.call(service::TASK_V2, "Delete", &delete, limit())
        };
        DeleteResponse::parse_from_bytes(&ask().ok()?).ok()
    }

    /// How init ended: as was recorded, else what is known of it.
    fn exit(&self) -> ExitRecord {
        let init = self.record.as_ref().and_then(Record::init);
        let ran = init.is_some_and(|init| init.pid != 0);
        let lost = || {
            // It ran, and has ended by itself while nobody watched.
            let status = if ran && !self.killed { STATUS_LOST } else { KILLED };
            ExitRecord { status, at_unix_ns: reaper::now_unix_ns() }
        };
        init.and_then(|init| init.exit).unwrap_or_else(lost)
    }

    fn spill_home(&self, spill_dir: &Path) -> Home {
        let (spill_dir, run_dir) = (spill_dir.to_owned(), run_dir());
        let (instance, namespace, id) = (self.instance.clone(), self.namespace.clone(), self.id.clone());
        Home { spill_dir, run_dir, instance, namespace, id }
    }

    fn answer(&self) -> DeleteResponse {
        let exit = self.exit();
        DeleteResponse {
            pid: self.pid,
            exit_status: exit.status,
            exited_at: MessageField::some(wire::timestamp(exit.at_unix_ns)),
            ..DeleteResponse::default()
        }
    }

    /// Where the socket of its shim may be: it is known to the record, to the file that `start` leaves in the bundle, and from
    /// the group.
    fn sockets(&self, daemon: &str) -> Vec<PathBuf> {
        let group = self.record.as_ref().map(|record| record.group.clone());
        let group = group.or_else(|| spec::read(&self.bundle).ok()?.annotations_group);
        let name = socket_name(daemon, &self.namespace, &group.unwrap_or_else(|| self.id.clone()));
        let address = regular::read_to_string(&self.bundle.join("address")).unwrap_or_default();
        let recorded = self.record.as_ref().map(|record| socket_path(&record.shim.address).to_owned());
        let mut sockets = vec![run_dir().join("s").join(&name)];
        sockets.extend(recorded);
        // Who could write into the bundle shall not choose what is removed.
        sockets
            .extend(Some(socket_path(&address).to_owned()).filter(|path| path.is_absolute() && path.ends_with(&name)));
        sockets.dedup();
        sockets
    }

    /// Puts the record away into the bundle, for a `delete` that comes again because this one did not get to say its answer,
    /// or that comes at all for a container that was cleaned up unasked. It goes with the bundle.
    fn put_down(&self) {
        if let Some(mut record) = self.record.clone().filter(|_| self.bundle.exists()) {
            let exit = self.exit();
            if let Some(init) = record.processes.iter_mut().find(|process| process.exec_id.is_empty()) {
                init.state = ProcessState::Stopped;
                init.exit = Some(exit);
            }
            // If it cannot be written, there is only a worse answer.
            let bytes = serde_json::to_vec(&record).unwrap_or_default();
            let _ = record::replace(&self.bundle.join(record::LAST_NAME), &bytes, 0o600);
        }
        record::remove_dir(&self.dir);
    }
}

fn unsaid(cases: &[Case]) -> Vec<ForwardRequest> {
    cases.iter().filter(|case| !case.has_shim()).flat_map(Case::unsaid).collect()
}

/// The other containers of a pod whose first one this is, if nobody else will clean up after them: with version 3 of the
/// task service the daemon hears of a dead shim by the connection of the pod's first container alone (contract 7.3).
fn members(first: &Case) -> Vec<Case> {
    #[derive(Deserialize)]
    struct Bootstrap {
        version: i64,
    }
    let bootstrap = regular::read(&first.bundle.join("bootstrap.json")).unwrap_or_default();
    let sandboxed = serde_json::from_slice(&bootstrap).is_ok_and(|Bootstrap { version }| version >= SANDBOXED);
    if !sandboxed || first.record.as_ref().is_some_and(|record| record.group != first.id) {
        return Vec::new();
    }
    let dirs = first.dir.parent().map(fs::read_dir).into_iter().flatten().flatten().flatten();
    dirs.map(|entry| entry.path())
        .filter(|dir| *dir != first.dir)
        .filter_map(|dir| {
            let record = read_record(&dir.join(FILE_NAME), &mut |_| {})?;
            let (namespace, id, bundle) = (record.namespace.clone(), record.id.clone(), record.bundle.clone());
            let instance = first.instance.clone();
            let case = Case { instance, namespace, id, bundle, dir, record: Some(record), pid: 0, killed: false };
            let in_group = case.record.as_ref().is_some_and(|record| record.group == first.id);
            (in_group && !case.has_shim()).then_some(case)
        })
        .collect()
}

fn read_record(path: &Path, warn: &mut dyn FnMut(String)) -> Option<Record> {
    match path.try_exists() {
        Ok(false) => None,
        _ => {
            let bytes = regular::read(path).map_err(|e| ReadError::Io(path.to_owned(), e));
            let record = bytes.and_then(|bytes| Record::parse(path, &bytes));
            record.map_err(|e| warn(chain(&e))).ok().filter(|r| r.boot_id == record::boot_id())
        }
    }
}

fn read_pid(bundle: &Path) -> Option<u32> {
    regular::read_to_string(&bundle.join("init.pid")).ok()?.trim().parse().ok()
}

/// Whether a process is in the control group that the bundle asks for: the one thing to know it by without a record.
fn is_in_cgroup_of(pid: Pid, bundle: &Path) -> bool {
    let wanted = spec::read(bundle).ok().and_then(|facts| facts.cgroups_path).unwrap_or_default();
    // `slice:prefix:name` where systemd manages it.
    let wanted = match wanted.split(':').collect::<Vec<_>>()[..] {
        [_, prefix, name] => format!("/{prefix}-{name}.scope"),
        _ => wanted,
    };
    let theirs = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    wanted.len() > 1 && theirs.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| path.ends_with(&wanted))
}

/// A process that has ended meanwhile has no control group to be found by; the runtime ends what it has left.
fn kill_cgroup(pid: u32) -> Result<(), String> {
    let paths = match cgroup::Paths::of_process(pid) {
        Err(cgroup::CgroupError::Process { .. }) if process::start_time(pid).is_none() => return Ok(()),
        paths => paths.map_err(|e| chain(&e))?,
    };
    match cgroup::kill_all(&paths) {
        Ok(_) | Err(cgroup::CgroupError::Shared(_) | cgroup::CgroupError::Gone(_)) => Ok(()),
        Err(e) => Err(chain(&e)),
    }
}

/// A call of the runtime that was begun.
struct Deletion<'a> {
    case: &'a Case,
    runtime: PathBuf,
    pid: Pid,
    log: PathBuf,
    output: OwnedFd,
}

/// Lets the runtimes delete what they have of the containers, all at the same time.
fn delete_all(cases: &[Case], until: Instant, warn: &mut dyn FnMut(String)) {
    let mut tell = |case: &Case, text: String| warn(format!("cannot delete the container {}: {text}", case.id));
    let mut begun = Vec::new();
    for case in cases.iter().filter(|case| !case.is_sandbox()) {
        match Deletion::begin(case) {
            Ok(deletion) => begun.push(deletion),
            Err(text) => tell(case, text),
        }
    }
    let pids: Vec<Pid> = begun.iter().map(|deletion| deletion.pid).collect();
    let exits = reaper::wait_for_all(&pids, until.saturating_duration_since(Instant::now()));
    for deletion in begun {
        if let Err(text) = deletion.end(exits.get(&deletion.pid)) {
            tell(deletion.case, text);
        }
    }
}

/// They were the shim's children, so nobody else ends those that do not end with their input.
fn end_loggers(cases: &[Case], until: Instant, warn: &mut dyn FnMut(String)) {
    let records = cases.iter().filter_map(|case| case.record.as_ref());
    let loggers = records.flat_map(|record| &record.processes).filter_map(|process| process.logger);
    // Held first and looked at then, so that it is the very process.
    let still = |logger: &LoggerRecord| process::start_time(logger.pid) == Some(logger.start_time);
    let held = |logger: LoggerRecord| Some((logger, signal::hold(logger.pid)?)).filter(|(logger, _)| still(logger));
    let mut left: Vec<_> = loggers.filter_map(held).collect();
    for (limit, next) in LOGGER_LIMITS.into_iter().zip([libc::SIGTERM, libc::SIGKILL]) {
        let deadline = until.min(Instant::now() + limit);
        left.retain(|(_, held)| !held.wait(deadline.saturating_duration_since(Instant::now())));
        for (logger, held) in &left {
            if held.send(next) && next == libc::SIGKILL {
                warn(format!("the logger with pid {} did not end after SIGTERM and was killed", logger.pid));
            }
        }
    }
}

impl<'a> Deletion<'a> {
    fn begin(case: &'a Case) -> Result<Self, String> {
        let runtime = runtime(case)?;
        record::make_dir(&case.dir).map_err(|e| format!("cannot make {}: {e}", case.dir.display()))?;
        let log = case.dir.join("delete.log");
        let _ = fs::remove_file(&log);
        let arguments = command::arguments(&runtime, &case.id, &log, &Call::Delete { force: true });
        let output = runner::memory_file(b"").map_err(|e| e.to_string())?;
        let stdio = ChildStdio { stdin: None, stdout: output.try_clone().ok(), stderr: output.try_clone().ok() };
        let pid = runner::spawn(&runtime.binary, &arguments, stdio)
            .map_err(|e| format!("cannot start {}: {e}", runtime.binary.display()))?;
        Ok(Self { case, runtime: runtime.binary, pid, log, output })
    }

    fn end(&self, exit: Option<&Exit>) -> Result<(), String> {
        let Some(exit) = exit else {
            runner::kill_group(self.pid);
            return Err(format!("{} did not end in time", self.runtime.display()));
        };
        if exit.status.code() == 0 {
            return Ok(());
        }
        let printed = || self.output.try_clone().map(runner::printed).unwrap_or_default();
        let said = fs::read(&self.log).ok().and_then(|log| log::last_error(&log)).unwrap_or_else(printed);
        match log::classify(&said) {
            FailureKind::NotFound => Ok(()),
            _ => Err(said),
        }
    }
}

/// Unmounts the root filesystems, in children: one that hangs must not hold up the answer.
fn unmount_all(cases: &[Case], until: Instant, warn: &mut dyn FnMut(String)) {
    let mut begun = Vec::new();
    for case in cases {
        let rootfs = case.bundle.join("rootfs");
        match mount::is_mounted(&rootfs) {
            Ok(false) => {}
            Ok(true) => match begin_unmount(&rootfs) {
                Ok((pid, output)) => begun.push((rootfs, pid, output)),
                Err(e) => warn(format!("cannot unmount {}: {e}", rootfs.display())),
            },
            Err(e) => warn(chain(&e)),
        }
    }
    let pids: Vec<Pid> = begun.iter().map(|&(_, pid, _)| pid).collect();
    let exits = reaper::wait_for_all(&pids, until.saturating_duration_since(Instant::now()));
    for (rootfs, pid, output) in begun {
        match exits.get(&pid) {
            Some(exit) if exit.status.code() == 0 => {}
            Some(_) => warn(runner::printed(output)),
            None => warn(format!("the unmount of {} did not end in time, it goes on", rootfs.display())),
        }
    }
}

/// Removes what the dead shims have kept for readers, in a child: a disk that stalls must not hold up the answer.
fn remove_spills(cases: &[Case], until: Instant, warn: &mut dyn FnMut(String)) {
    let settings = OutputSettings::load().unwrap_or_else(|e| {
        warn(chain(&e));
        OutputSettings::default()
    });
    let homes = cases.iter().map(|case| case.spill_home(&settings.spill_dir));
    let spills: Vec<_> = homes.filter(|home| home.path().symlink_metadata().is_ok()).collect();
    if spills.is_empty() {
        return;
    }
    let (pid, output) = match begin_sweep(&SweepRequest { spills, ..SweepRequest::default() }) {
        Ok(begun) => begun,
        Err(e) => return warn(format!("cannot remove output that nobody read: {e}")),
    };
    let exits = reaper::wait_for_all(&[pid], until.saturating_duration_since(Instant::now()));
    let said = match exits.get(&pid) {
        Some(_) => runner::printed(output),
        None => "the removal of output that nobody read did not end in time, it goes on".to_owned(),
    };
    if !said.is_empty() {
        warn(said);
    }
}

fn begin_sweep(request: &SweepRequest) -> io::Result<(Pid, OwnedFd)> {
    let input = runner::memory_file(&serde_json::to_vec(request)?)?;
    let output = runner::memory_file(b"")?;
    let stdio = ChildStdio { stdin: Some(input), stdout: None, stderr: Some(output.try_clone()?) };
    let pid = runner::spawn(Path::new("/proc/self/exe"), &[SWEEP_ACTION.into()], stdio)?;
    Ok((pid, output))
}

fn begin_unmount(rootfs: &Path) -> io::Result<(Pid, OwnedFd)> {
    let output = runner::memory_file(b"")?;
    let stdio = ChildStdio { stdin: None, stdout: None, stderr: Some(output.try_clone()?) };
    let pid = runner::spawn(Path::new("/proc/self/exe"), &[UNMOUNT_ACTION.into(), rootfs.into()], stdio)?;
    Ok((pid, output))
}

/// The runtime that made the container: what the record says, else what the bundle says, else what would be chosen now.
fn runtime(case: &Case) -> Result<Runtime, String> {
    if let Some(used) = case.record.as_ref().map(|r| &r.runtime).filter(|used| !used.binary.is_empty()) {
        let binary = PathBuf::from(&used.binary);
        return Ok(Runtime { binary, root: used.root.clone(), systemd_cgroup: used.systemd_cgroup });
    }
    let mut options = Options::read(&case.bundle.join("options.json")).unwrap_or_default();
    if options.binary_name.is_empty()
        && let Ok(binary) = regular::read_to_string(&case.bundle.join("runtime"))
    {
        binary.trim().clone_into(&mut options.binary_name);
    }
    let shim = std::env::current_exe().unwrap_or_default();
    let embedded_root = runner::embedded_root(&run_dir(), &case.instance);
    runner::choose(&options, &shim, embedded_root, &case.namespace).map_err(|e| e.to_string())
}
