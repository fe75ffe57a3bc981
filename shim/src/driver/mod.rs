//! The one loop: take an input, let the lifecycle decide, perform its effects in order.
//!
//! All that the shim knows is in [`State`]; `perform.rs` carries effects out, `calls.rs` looks after what takes time,
//! `container.rs` holds what belongs to a container, `still.rs` freezes and thaws. Inputs come from the connections'
//! tasks, the reaper, timers and the relays, each as a plain call that returns at once: no queue lies between them and
//! the state, so nothing is lost when everything stops.

mod calls;
mod container;
mod perform;
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
use crate::lifecycle::{Asker, CallId, Input, Lifecycle, Pid, ProcessId, Request, TaskId, Verb};
use crate::oci::{runner, spec};
use crate::options;
use crate::owned_task::OwnedTask;
use crate::publish::Publisher;
use crate::server::{self, Connection};
use crate::sys::{memory, reaper};
use crate::wire::{self, Body, Decoded, RpcError};

/// How long all events and answers may take to get out at the end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long nothing must happen before the shim gives back what it does not need at rest.
const QUIET: Duration = Duration::from_millis(500);
/// How long a shim without a task and without a connection waits for somebody to come: a Shutdown that was lost must not
/// leak a process.
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
    connections: BTreeMap<u64, Connection>,
    last_connection: u64,
    /// What came with requests whose work has not begun.
    bodies: BTreeMap<Asker, Body>,
    /// The askers' own deadlines.
    timers: BTreeMap<Asker, Timer>,
    running: BTreeMap<CallId, Running>,
    children: BTreeMap<Pid, CallId>,
    /// Questions that are being answered off the loop.
    questions: BTreeMap<Asker, perform::Question>,
    publisher: Publisher,
    listener: Option<Rc<AsyncFd<UnixListener>>>,
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
        let publisher = Publisher::start(&config.events_address);
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

    /// Collects all dead children; to be called at start and on every SIGCHLD.
    pub fn reap(&self) {
        while let Some((pid, exit)) = reaper::reap() {
            let call = self.state.borrow_mut().children.remove(&pid);
            match call {
                Some(call) => self.child_exited(call, exit.status),
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
        // First of all, so that no `start` finds a shim that is about to go.
        if state.listener.take().is_some() {
            let _ = std::fs::remove_file(socket_path(&state.config.address));
        }
        drop(state);
        let me = self.me.clone();
        self.tasks.borrow_mut().push(OwnedTask::spawn(async move {
            let said = tokio::time::timeout(LAST_WORDS, all_said(me.clone())).await;
            if said.is_err() {
                tracing::warn!("ending with events or answers that nobody took");
            }
            if let Some(shim) = me.upgrade() {
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
        let (task, process, verb, body) = match decoded {
            Decoded::Info => return self.respond(asker, Ok(self.state.borrow().info())),
            Decoded::Task { task, process, verb, body } => (task, process, verb, body),
        };
        let verb = match self.admit(&task, verb, &body) {
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
    fn admit(&self, task: &TaskId, verb: Verb, body: &Body) -> Result<Verb, RpcError> {
        let (Verb::Create { .. }, Body::Create(create)) = (verb, body) else { return Ok(verb) };
        let state = self.state.borrow();
        if state.lifecycle.contains(task) || self.stopping.get() {
            return if self.stopping.get() { Err(unavailable()) } else { Ok(verb) };
        }
        let invalid = |e: &dyn std::error::Error| (ttrpc::proto::Code::INVALID_ARGUMENT, chain(e));
        if !create.checkpoint.is_empty() {
            let text = format!("task {:?}: restoring a checkpoint is not supported by this shim yet", task.0);
            return Err((ttrpc::proto::Code::UNIMPLEMENTED, text));
        }
        if let Some((type_url, value)) = &create.options {
            options::from_any(type_url, value).map_err(|e| invalid(&e))?;
        }
        let facts = spec::read(&create.bundle).map_err(|e| invalid(&e))?;
        Ok(Verb::Create { shared_pids: !facts.private_pid_namespace })
    }

    pub(crate) fn respond(&self, asker: Asker, answer: Result<Vec<u8>, RpcError>) {
        self.state.borrow_mut().respond(asker, answer);
    }

    pub(crate) fn with_connection<T>(&self, id: u64, use_it: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        self.state.borrow_mut().connections.get_mut(&id).map(use_it)
    }

    pub(crate) fn connected(&self, stream: UnixStream) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.last_connection += 1;
        let id = state.last_connection;
        let connection = Connection::open(&self.me, id, stream)?;
        state.connections.insert(id, connection);
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

    /// See [`IDLE`].
    fn look_idle(&self) {
        let mut state = self.state.borrow_mut();
        if !state.lifecycle.is_empty() || !state.connections.is_empty() {
            state.idle = None;
        } else if state.idle.is_none() && !self.stopping.get() {
            let me = self.me.clone();
            state.idle = Some(OwnedTask::spawn(async move {
                tokio::time::sleep(IDLE).await;
                if let Some(shim) = me.upgrade() {
                    tracing::info!("nobody needs this shim, ending");
                    shim.stop();
                }
            }));
        }
    }
}

impl State {
    fn new(config: Config, publisher: Publisher) -> Self {
        Self {
            config,
            lifecycle: Lifecycle::default(),
            containers: BTreeMap::new(),
            connections: BTreeMap::new(),
            last_connection: 0,
            bodies: BTreeMap::new(),
            timers: BTreeMap::new(),
            running: BTreeMap::new(),
            children: BTreeMap::new(),
            questions: BTreeMap::new(),
            publisher,
            listener: None,
            unsaved: BTreeSet::new(),
            resave: None,
            idle: None,
            boot_id: crate::record::boot_id(),
            start_time: crate::sys::process::start_time(std::process::id()).unwrap_or(0),
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
        memory::rest();
        // Only the notification is waited for; this task does not keep the shim alive beyond it, as the shim owns it.
        strong.woken.notified().await;
    }
}

/// Waits for the last events to be acknowledged and the last answers to be written.
async fn all_said(shim: Weak<Shim>) {
    loop {
        {
            let Some(shim) = shim.upgrade() else { return };
            let state = shim.state.borrow();
            if state.publisher.is_drained() && !state.connections.values().any(Connection::has_unwritten) {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
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
    runner::choose(options, &config.executable, &config.run_dir, &config.namespace)
}
