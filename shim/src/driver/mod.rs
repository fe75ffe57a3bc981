//! The one loop: take an input, let the lifecycle decide, perform its effects in order.
//!
//! All that the shim knows is in `State`; `perform.rs` carries effects out, `calls.rs` looks after what takes time,
//! `opening.rs` after the opening of logs, `loggers.rs` after the life of loggers and `criu.rs` after what checkpoints
//! leave behind, `container.rs` holds what belongs to a container, `sandbox.rs` what
//! belongs to a sandbox, `oom.rs` watches over its memory, `output.rs` tells what
//! becomes of its output, `still.rs` freezes and thaws. Inputs come from the connections' tasks, the reaper, timers and the
//! relays, each as a plain call that returns at once: no queue lies between them and the state, so nothing is lost when
//! everything stops.

mod calls;
mod container;
mod criu;
mod loggers;
mod oom;
mod opening;
mod output;
mod perform;
mod sandbox;
mod still;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use holdfast_proto::record::Manager;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use self::calls::Running;
use self::container::Container;
use self::loggers::Logger;
use self::sandbox::Sandbox;
use crate::cgroup::oom::Alarms;
use crate::io::relay;
use crate::io::spill::Removal;
use crate::io::spill::policy::{Choice, OutputSettings};
use crate::io::spill::tree::Home;
use crate::journal::Journal;
use crate::lifecycle::{Asker, CallId, Input, Lifecycle, Pid, ProcessId, Request, TaskId, Verb, Work};
use crate::oci::{own_copy, runner, spec};
use crate::options;
use crate::owned_task::OwnedTask;
use crate::publish::Publisher;
use crate::server::{self, Connection};
use crate::sys::{memory, reaper};
use crate::wire::{self, Body, Chosen, Decoded, RpcError};

/// How long all events and answers may take to get out at the end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often it is looked, at the end, whether what is waited for has come.
const LOOK: Duration = Duration::from_millis(5);
/// How long, at the end, clients may take to end their connections that are theirs to end.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long nothing must happen before the shim gives back what it does not need at rest.
const QUIET: Duration = Duration::from_millis(500);
/// How long a shim that nobody is connected to, and in which nothing runs, waits for somebody to come: a Shutdown that was
/// lost must not leak a process. Tasks that have ended are kept for longer, see [`State::is_abandoned`].
const IDLE: Duration = Duration::from_secs(120);

/// What a shim is told when it starts, and never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// containerd's namespace.
    pub namespace: String,
    /// The pod's sandbox id, or the first container's id.
    pub group: String,
    /// Where events go; empty: nowhere.
    pub events_address: String,
    /// Under which name the records are filed.
    pub instance: String,
    /// Who asked for the shim.
    pub manager: Manager,
    /// The shim's own socket, with `unix://`.
    pub address: String,
    /// The root of the run-time tree.
    pub run_dir: PathBuf,
    /// The shim's own program.
    pub executable: PathBuf,
    /// How long one call of the OCI runtime may take.
    pub runtime_deadline: Duration,
    /// How long Delete waits for output that a slow reader has not taken yet.
    pub drain_deadline: Duration,
    /// The machine's settings for output that nobody reads; a container may have some of its own.
    #[serde(default)]
    pub output: OutputSettings,
}

impl Config {
    /// Where what containerd has not taken yet waits.
    fn journal(&self) -> Journal {
        let dir = holdfast_proto::record::namespace_dir(&self.run_dir, &self.instance, &self.namespace);
        let socket_name = socket_path(&self.address).file_name().unwrap_or_default().to_string_lossy();
        Journal::new(&dir, &socket_name, &crate::record::boot_id())
    }
}

/// A running shim. Cheap to share; single-threaded.
pub struct Shim {
    state: RefCell<State>,
    me: Weak<Shim>,
    stopping: Cell<bool>,
    ended: Notify,
    /// Something has happened since the last rest.
    active: Cell<bool>,
    woken: Notify,
    /// The tasks that end with the shim: accepting, resting, and at last the end itself.
    tasks: RefCell<Vec<OwnedTask>>,
}

struct State {
    config: Config,
    lifecycle: Lifecycle,
    containers: BTreeMap<TaskId, Container>,
    sandbox: Option<Sandbox>,
    connections: BTreeMap<u64, Connection>,
    last_connection: u64,
    /// What came with requests whose work has not begun.
    bodies: BTreeMap<Asker, Body>,
    /// The askers' own deadlines.
    timers: BTreeMap<Asker, Timer>,
    running: BTreeMap<CallId, Running>,
    children: BTreeMap<Pid, CallId>,
    loggers: BTreeMap<Pid, Logger>,
    /// Questions that are being answered off the loop.
    questions: BTreeMap<Asker, perform::Question>,
    alarms: Alarms,
    publisher: Publisher,
    listener: Option<Rc<AsyncFd<UnixListener>>>,
    /// Spill files that are being removed.
    removals: Vec<Removal>,
    /// Records that could not be written yet.
    unsaved: BTreeSet<TaskId>,
    resave: Option<OwnedTask>,
    idle: Option<OwnedTask>,
    boot_id: String,
    start_time: u64,
}

/// Ends a wait at a point in time.
struct Timer {
    at: tokio::time::Instant,
    _task: OwnedTask,
}

impl Timer {
    fn new(after: Duration, then: impl FnOnce() + 'static) -> Self {
        let at = tokio::time::Instant::now() + after;
        let task = OwnedTask::spawn(async move {
            tokio::time::sleep_until(at).await;
            then();
        });
        Self { at, _task: task }
    }

    fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(tokio::time::Instant::now())
    }
}

impl Shim {
    /// Serves on a listening socket. Must be called within a Tokio `LocalSet` of a current-thread runtime.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub fn serve(config: Config, listener: OwnedFd) -> io::Result<Rc<Self>> {
        let listener = server::listener(listener)?;
        let publisher = Publisher::start(&config.events_address, config.journal());
        let mut state = State::new(config, publisher);
        state.listener = Some(listener);
        let shim = Self::new(state);
        shim.set_going();
        Ok(shim)
    }

    fn new(state: State) -> Rc<Self> {
        Rc::new_cyclic(|me| Self {
            state: RefCell::new(state),
            me: me.clone(),
            stopping: Cell::new(false),
            ended: Notify::new(),
            active: Cell::new(true),
            woken: Notify::new(),
            tasks: RefCell::default(),
        })
    }

    fn set_going(&self) {
        if let Some(listener) = self.state.borrow().listener.clone() {
            self.tasks.borrow_mut().push(OwnedTask::spawn(server::accept(self.me.clone(), listener)));
        }
        self.tasks.borrow_mut().push(OwnedTask::spawn(rest_when_quiet(self.me.clone())));
        self.look_idle();
    }

    /// Returns once the shim has nothing left to look after, or was told to stop.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Collects all dead children; to be called at start, on every SIGCHLD, and before a request is looked at.
    pub fn reap(&self) {
        while let Some(dead) = reaper::next_dead() {
            let pid = dead.pid;
            let call = self.state.borrow_mut().children.remove(&pid);
            if call.is_some() && !dead.well {
                // What a failed call has started goes with it. A container's process has left the group by then.
                runner::kill_group(pid);
            }
            let Some(exit) = dead.collect() else { continue };
            match call {
                Some(call) => self.child_exited(call, exit.status),
                None if self.logger_exited(pid, exit.status) => {}
                None => self.input(Input::Exited { pid, exit }),
            }
        }
    }

    /// Stops serving; containers keep running.
    pub fn stop(&self) {
        if self.stopping.replace(true) {
            return;
        }
        let mut state = self.state.borrow_mut();
        state.close_socket();
        // What waits for containerd has one more chance now.
        state.publisher.poke();
        drop(state);
        let me = self.me.clone();
        self.tasks.borrow_mut().push(OwnedTask::spawn(async move {
            let said = tokio::time::timeout(LAST_WORDS, all_said(me.clone())).await;
            if said.is_err() {
                tracing::warn!("ending with events or answers that nobody took, or loggers or spills that did not go");
            }
            let _ = tokio::time::timeout(FAREWELL, all_ended_by_clients(me.clone())).await;
            if let Some(shim) = me.upgrade() {
                shim.state.borrow_mut().kill_ending_loggers();
                shim.ended.notify_one();
            }
        }));
    }

    /// Takes an input to its end: the lifecycle's effects, and the inputs that these lead to at once.
    fn input(&self, input: Input) {
        let mut state = self.state.borrow_mut();
        let mut inputs = VecDeque::from([input]);
        let mut stop = false;
        while let Some(input) = inputs.pop_front() {
            for effect in state.lifecycle.handle(input) {
                stop |= state.perform(effect, &self.me, &mut inputs);
            }
        }
        drop(state);
        if stop {
            self.stop();
        }
        if !self.active.replace(true) {
            self.woken.notify_one();
        }
        self.look_idle();
    }

    /// A request of a client; answered now or later, exactly once. `timeout_ns` is the client's own, 0 for none.
    pub(crate) fn request(&self, asker: Asker, decoded: Decoded, timeout_ns: u64) {
        let (task, process, verb, mut body) = match decoded {
            Decoded::Info => {
                let info = self.state.borrow().info();
                return self.respond(asker, Ok(info));
            }
            Decoded::Output { task, measure } => return self.tell_output(asker, task, measure),
            Decoded::Sandbox { id, verb, body } => {
                let timeout = (timeout_ns > 0).then(|| Duration::from_nanos(timeout_ns));
                return self.sandbox_request(asker, id, verb, body, timeout);
            }
            Decoded::Task { task, process, verb, body } => (task, process, verb, body),
        };
        let verb = match self.admit(&task, verb, &mut body) {
            Ok(verb) => verb,
            Err(error) => return self.respond(asker, Err(error)),
        };
        let mut state = self.state.borrow_mut();
        if body != Body::None {
            state.bodies.insert(asker, body);
        }
        if verb == Verb::Wait && timeout_ns > 0 {
            let timer = state.give_up_after(Duration::from_nanos(timeout_ns), asker, &self.me);
            state.timers.insert(asker, timer);
        }
        drop(state);
        self.input(Input::Request(Request { asker, task, process, verb }));
    }

    /// Looks at what a Create brings before anything is begun; an id that is taken is the lifecycle's to refuse.
    fn admit(&self, task: &TaskId, verb: Verb, body: &mut Body) -> Result<Verb, RpcError> {
        let (Verb::Create { .. }, Body::Create(create)) = (verb, body) else { return Ok(verb) };
        let state = self.state.borrow();
        if state.lifecycle.contains(task) || self.stopping.get() {
            return if self.stopping.get() { Err(unavailable()) } else { Ok(verb) };
        }
        let invalid = |e: &dyn std::error::Error| (ttrpc::proto::Code::INVALID_ARGUMENT, chain(e));
        let (options, unknown) = match &create.options {
            Some((type_url, value)) => options::from_any(type_url, value).map_err(|e| invalid(&e))?,
            None => Default::default(),
        };
        for key in unknown {
            tracing::warn!(task = task.0, key, "unknown runtime option, ignoring");
        }
        let from_checkpoint = !create.checkpoint.is_empty();
        // Known before Start asks the runtime, whose own refusal speaks for all others.
        let runtime = choose_runtime(&state.config, &options);
        if from_checkpoint && runtime.is_ok_and(|runtime| runner::is_embedded(&runtime.binary)) {
            let embedded = runner::EMBEDDED;
            let text = format!("task {:?}: {embedded} restores no checkpoints; use runc or crun for it", task.0);
            return Err((ttrpc::proto::Code::UNIMPLEMENTED, text));
        }
        let facts = spec::read(&create.bundle).map_err(|e| invalid(&e))?;
        let annotated = Choice::of_annotations(facts.spill_limit.as_deref(), facts.output_policy.as_deref());
        let annotated = annotated.map_err(|e| invalid(&e))?;
        let output = state.config.output.clone().with(options.output()).with(annotated);
        create.chosen = Some(Box::new(Chosen { options, output }));
        Ok(Verb::Create { shared_pids: !facts.private_pid_namespace, from_checkpoint })
    }

    pub(crate) fn respond(&self, asker: Asker, answer: Result<Vec<u8>, RpcError>) {
        self.state.borrow_mut().respond(asker, answer);
    }

    pub(crate) fn with_connection<T>(&self, id: u64, use_it: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        self.state.borrow_mut().connections.get_mut(&id).map(use_it)
    }

    /// Whether the next request of a connection is to be looked at a moment later.
    pub(crate) fn holds_back(&self, id: u64) -> bool {
        let mut state = self.state.borrow_mut();
        let unread = state.ended_and_unread();
        !unread.is_empty() && state.connections.get_mut(&id).is_some_and(|c| c.holds_back(&unread))
    }

    pub(crate) fn connected(&self, stream: UnixStream) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.last_connection += 1;
        let id = state.last_connection;
        let connection = Connection::open(&self.me, id, stream)?;
        state.connections.insert(id, connection);
        state.publisher.poke();
        state.idle = None;
        Ok(())
    }

    /// What a client had begun goes on without it.
    pub(crate) fn disconnected(&self, id: u64) {
        let mut state = self.state.borrow_mut();
        state.connections.remove(&id);
        state.timers.retain(|asker, _| asker.connection != id);
        drop(state);
        self.input(Input::Disconnected(id));
    }

    /// Ends the shim if nobody needs it any more; see [`IDLE`].
    fn look_idle(&self) {
        let mut state = self.state.borrow_mut();
        if state.is_abandoned() {
            drop(state);
            self.end_unneeded();
        } else if !state.connections.is_empty() || !state.lifecycle.has_ended() {
            state.idle = None;
        } else if state.idle.is_none() && !self.stopping.get() {
            let me = self.me.clone();
            state.idle = Some(OwnedTask::spawn(async move {
                tokio::time::sleep(IDLE).await;
                if let Some(shim) = me.upgrade() {
                    shim.idle_is_over();
                }
            }));
        }
    }

    fn idle_is_over(&self) {
        // This very task; it ends here.
        let this = self.state.borrow_mut().idle.take();
        if self.state.borrow().lifecycle.is_empty() {
            self.end_unneeded();
        } else {
            self.look_idle();
        }
        drop(this);
    }

    fn end_unneeded(&self) {
        if !self.stopping.get() {
            tracing::info!("nobody needs this shim, ending");
            self.stop();
        }
    }
}

impl State {
    /// Whether there are tasks or a sandbox, all have ended, and containerd has removed the bundles of all: it finds a shim by the
    /// bundle, so nobody can come for them. (When it restarts it gives up a shim that does not answer within seconds: it
    /// runs `delete` and removes the bundle, and 2.1 leaves its connection open. That shim may only have been stopped for
    /// a while.) holdfastd finds a shim by its record instead.
    fn is_abandoned(&self) -> bool {
        let mut bundles = self.containers.values().map(|c| &c.bundle).chain(self.sandbox.iter().map(|s| &s.bundle));
        matches!(self.config.manager, Manager::Containerd { .. })
            && !self.lifecycle.is_empty()
            && self.lifecycle.has_ended()
            && bundles.all(|bundle| matches!(bundle.try_exists(), Ok(false)))
    }

    fn new(config: Config, publisher: Publisher) -> Self {
        Self {
            config,
            lifecycle: Lifecycle::default(),
            containers: BTreeMap::new(),
            sandbox: None,
            connections: BTreeMap::new(),
            last_connection: 0,
            bodies: BTreeMap::new(),
            timers: BTreeMap::new(),
            running: BTreeMap::new(),
            children: BTreeMap::new(),
            loggers: BTreeMap::new(),
            questions: BTreeMap::new(),
            alarms: Alarms::default(),
            publisher,
            listener: None,
            removals: Vec::new(),
            unsaved: BTreeSet::new(),
            resave: None,
            idle: None,
            boot_id: crate::record::boot_id(),
            start_time: crate::sys::process::start_time(std::process::id()).unwrap_or(0),
        }
    }

    /// Before anything else that ends the shim, so that no `start` finds one that is about to go.
    fn close_socket(&mut self) {
        if self.listener.take().is_some() {
            let _ = std::fs::remove_file(socket_path(&self.config.address));
        }
    }

    /// The client may be gone; then nobody is told.
    fn respond(&mut self, asker: Asker, answer: Result<Vec<u8>, RpcError>) {
        self.bodies.remove(&asker);
        self.timers.remove(&asker);
        if let Some(connection) = self.connections.get_mut(&asker.connection) {
            connection.respond(asker.stream, &wire::response(answer));
        }
    }

    fn give_up_after(&self, after: Duration, asker: Asker, me: &Weak<Shim>) -> Timer {
        let me = me.clone();
        Timer::new(after, move || {
            if let Some(shim) = me.upgrade() {
                shim.input(Input::GaveUp(asker));
            }
        })
    }

    fn info(&self) -> Vec<u8> {
        let info = holdfast_proto::control::InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: option_env!("HOLDFAST_REVISION").unwrap_or_default().to_owned(),
            pid: std::process::id(),
            record_schema: holdfast_proto::record::SCHEMA,
            ids: self.lifecycle.ids().map(|id| id.0.clone()).collect(),
            ..Default::default()
        };
        wire::bytes(&info)
    }

    fn container_dir(&self, task: &TaskId) -> PathBuf {
        let config = &self.config;
        holdfast_proto::record::container_dir(&config.run_dir, &config.instance, &config.namespace, &task.0)
    }

    fn spill_home(&self, task: &TaskId, settings: &OutputSettings) -> Home {
        let config = &self.config;
        Home {
            spill_dir: settings.spill_dir.clone(),
            run_dir: config.run_dir.clone(),
            instance: config.instance.clone(),
            namespace: config.namespace.clone(),
            id: task.0.clone(),
        }
    }
}

/// The path of a socket's address.
pub fn socket_path(address: &str) -> &Path {
    Path::new(address.strip_prefix("unix://").unwrap_or(address))
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn unavailable() -> RpcError {
    (ttrpc::proto::Code::UNAVAILABLE, "the shim is shutting down".to_owned())
}

/// Makes the shim small again after every burst of activity.
async fn rest_when_quiet(shim: Weak<Shim>) {
    loop {
        tokio::time::sleep(QUIET).await;
        let Some(strong) = shim.upgrade() else { return };
        if strong.active.replace(false) {
            continue;
        }
        relay::give_back_buffer();
        own_copy::give_back();
        memory::rest();
        // Only the notification is waited for; this task does not keep the shim alive beyond it, as the shim owns it.
        strong.woken.notified().await;
    }
}

/// Waits for exits that are about to be told, for the last events to be acknowledged, the last answers to be written, the last
/// loggers to end and the last spill files to be gone.
async fn all_said(shim: Weak<Shim>) {
    loop {
        {
            let Some(shim) = shim.upgrade() else { return };
            let state = shim.state.borrow();
            // What an exit waits for (rules "init last" and "heard out before announced").
            let holds_back = |work: &Work| matches!(work, Work::Kill { .. } | Work::Resume | Work::Settle(_));
            let exits = state.running.values().any(|running| !running.asked && holds_back(&running.work));
            let said =
                !exits && state.publisher.is_drained() && !state.connections.values().any(Connection::has_unwritten);
            if said && !state.loggers_are_ending() && state.removals.iter().all(Removal::is_over) {
                return;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until clients have ended the connections that are theirs to end.
async fn all_ended_by_clients(shim: Weak<Shim>) {
    while shim
        .upgrade()
        .is_some_and(|shim| shim.state.borrow().connections.values().any(Connection::is_to_be_ended_by_client))
    {
        tokio::time::sleep(LOOK).await;
    }
}

/// What a quiet stream leads to: who waits for the drain looks again.
fn on_quiet(me: &Weak<Shim>, task: &TaskId, process: &ProcessId) -> Rc<dyn Fn()> {
    let (me, task, process) = (me.clone(), task.clone(), process.clone());
    Rc::new(move || {
        if let Some(shim) = me.upgrade() {
            shim.quiet(&task, &process);
        }
    })
}

/// So that a runtime is chosen in one place.
fn choose_runtime(
    config: &Config,
    options: &options::Options,
) -> Result<crate::oci::command::Runtime, runner::NoRuntime> {
    let embedded_root = runner::embedded_root(&config.run_dir, &config.instance);
    runner::choose(options, &config.executable, embedded_root, &config.namespace)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(address: &str) -> Config {
        Config {
            namespace: "n".to_owned(),
            group: "g".to_owned(),
            events_address: String::new(),
            instance: "i".to_owned(),
            manager: Manager::Holdfastd,
            address: address.to_owned(),
            run_dir: "/nonexistent".into(),
            executable: "/nonexistent".into(),
            runtime_deadline: Duration::from_secs(1),
            drain_deadline: Duration::from_secs(1),
            output: OutputSettings::default(),
        }
    }

    #[test]
    fn trap_43_a_shim_that_nobody_needs_any_more_ends_by_itself() {
        let path = std::env::temp_dir().join(format!("hf-idle-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let shim = Shim::serve(config(path.to_str().unwrap()), listener.into()).unwrap();
            let (here, there) = UnixStream::pair().unwrap();
            shim.connected(there).unwrap();
            let ended = tokio::time::timeout(IDLE * 10, shim.ended()).await;
            assert!(ended.is_err(), "a client that is connected may still ask for something");
            drop(here);
            let ended = tokio::time::timeout(IDLE / 2, shim.ended()).await;
            assert!(ended.is_err(), "another client may be about to come");
            assert!(path.exists());
            // What it does off the loop takes none of the time that stands still here.
            let begin = std::time::Instant::now();
            while tokio::time::timeout(IDLE, shim.ended()).await.is_err() {
                assert!(begin.elapsed() < Duration::from_secs(30), "it should end");
            }
            assert!(!path.exists(), "the socket goes first");
        });
    }
}
