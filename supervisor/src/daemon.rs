//! The one loop: take an input, let the registry decide, perform the effects in order, feed their results back in.
//!
//! Everything runs in one thread. Effects that take time become tasks whose last act is to send an input; each belongs
//! to a container and a generation, so that a late result does no harm.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::{api, shim_async};
use holdfast_proto::record::Record;
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, spawn_local};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::api::{Api, Question, Reload};
use crate::attach::{self, Watched};
use crate::client::{self, CallError, ShimClient, now_unix_ns};
use crate::config::{ConfigError, Flags, Refused, Reloaded, Settings};
use crate::container::{OUT_OF_MEMORY, Outcome};
use crate::endings::{self, Ending};
use crate::events::{EventLog, EventSink};
use crate::launch::{Following, Launcher};
use crate::line_file::LineFile;
use crate::logging::LogLevel;
use crate::notify::{self, Watchdog};
use crate::paths::Paths;
use crate::registry::{
    Answer, Call, Effect, ExecSpec, How, Input, Limits, Now, Onlooker, Probe, Refusal, Registry, ReplyTo, RunState,
    ShimRef, Stopped, Survivors, TaskView, Timer,
};
use crate::scan::{self, ExecTrace, ExecTraceState, ShimTraces};
use crate::store::{self, StoreError};
use crate::sys::reaper::Reaper;
use crate::sys::{self, proc};
use crate::{chain, listener, names, observers, paths, spec};

/// Why the supervisor could not begin.
#[derive(Debug, Error)]
pub enum StartError {
    /// A directory could not be made.
    #[error("cannot set up the directories")]
    Directories(#[source] StoreError),
    /// Another supervisor has the run directory.
    #[error("another holdfastd serves {0} (it holds {0}/holdfastd.lock)")]
    Busy(PathBuf),
    /// The lock file could not be opened.
    #[error("cannot open {path}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A socket could not be served.
    #[error("cannot listen on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A server could not be started.
    #[error("cannot serve {path}")]
    Serve {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: ttrpc::Error,
    },
    /// The kernel refused something basic.
    #[error("cannot {what}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// How often it is looked whether a client still takes the output of an exec that has ended.
const LOOK_FOR_READERS: std::time::Duration = std::time::Duration::from_millis(250);

/// A shim that is connected.
struct Live {
    generation: u64,
    shim: ShimRef,
    client: ShimClient,
    /// Pid and start time of the container's first process, once it runs.
    init: Option<(u32, u64)>,
    /// Held as long as the shim may write to its log.
    _log: Following,
}

type LiveTable = Rc<RefCell<HashMap<String, Live>>>;

/// The supervisor at work.
struct Daemon {
    launcher: Launcher,
    settings: Arc<Settings>,
    /// Tells everybody of new settings.
    new_settings: watch::Sender<Arc<Settings>>,
    flags: Flags,
    log_level: LogLevel,
    boot_id: String,
    registry: Registry,
    inputs: mpsc::UnboundedSender<Input>,
    live: LiveTable,
    /// Watches, which last as long as a run. Ended when it is retired.
    following: HashMap<String, Vec<AbortHandle>>,
    replies: HashMap<ReplyTo, oneshot::Sender<Result<Answer, Refusal>>>,
    last_reply: ReplyTo,
    events: EventLog,
    endings: LineFile<Ending>,
    /// Why the last new container could not be written down, until its making is given up.
    not_stored: Option<StoreError>,
    /// How often it was told to end.
    told_to_end: u32,
    leave: bool,
}

/// How long answers that are on their way when the end comes get to reach those who asked.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

/// Serves until SIGTERM or SIGINT, which leave every container running with live-restore and stop them all without.
///
/// # Errors
/// See [`StartError`]; nothing fails once the API is served.
pub async fn run(settings: Settings, flags: Flags, log_level: LogLevel) -> Result<(), StartError> {
    let system = |what| move |source| StartError::System { what, source };
    for directory in paths::private_directories(&settings.paths) {
        store::make_private_dir(&directory).map_err(StartError::Directories)?;
    }
    let _lock = lock(&settings.paths)?;
    sys::become_subreaper().map_err(system("become the parent of orphaned shims"))?;
    let boot_id = proc::boot_id().map_err(system("read the boot id"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("watch for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("watch for SIGINT"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(system("watch for SIGHUP"))?;
    let mut child = signal(SignalKind::child()).map_err(system("watch for SIGCHLD"))?;
    let listener = api_listener(&settings)?;

    let settings = Arc::new(settings);
    let (new_settings, current_settings) = watch::channel(Arc::clone(&settings));
    let (inputs, mut input) = mpsc::unbounded_channel();
    let (questions, mut question) = mpsc::unbounded_channel();
    let (reloads, mut reload) = mpsc::unbounded_channel();
    let survivors = match settings.live_restore {
        true => Survivors::Keep,
        false => Survivors::Stop(settings.shutdown_timeout),
    };
    let events = EventLog::open(&settings.paths.event_log());
    let reaper = Reaper::default();
    let (endings, remembered) = endings::open(&settings.paths.endings());
    let mut daemon = Daemon {
        launcher: Launcher { settings: Arc::clone(&settings), reaper: reaper.clone() },
        settings: Arc::clone(&settings),
        new_settings,
        flags,
        log_level,
        boot_id,
        registry: Registry::new(survivors),
        inputs: inputs.clone(),
        live: LiveTable::default(),
        following: HashMap::new(),
        replies: HashMap::new(),
        last_reply: 0,
        events: events.clone(),
        endings,
        not_stored: None,
        told_to_end: 0,
        leave: false,
    };
    // The API first: the registry knows which questions have to wait for the restore, and for how much of it.
    let mut event_server = serve_events(&settings, EventSink::new(events.clone(), inputs.clone())).await?;
    let api = Api::new(current_settings.clone(), questions, reloads, events);
    let mut api_server = serve_api(&settings, listener, api.clone()).await?;
    spawn_local(observers::observe(api, current_settings));
    begin_restore(&settings, &daemon.boot_id, remembered, inputs);
    let mut watchdog = Watchdog::from_environment();
    while !daemon.leave {
        // Children first: a helper's status must not wait behind the inputs that depend on it. Signals before questions,
        // so that a flood of those cannot delay the end; the watchdog too, since a loop that is busy is not wedged. Every
        // branch may be dropped: none loses what it has taken.
        tokio::select! {
            biased;
            _ = child.recv() => reaper.reap(),
            () = watchdog.due() => watchdog.tell(),
            _ = terminate.recv() => daemon.terminate(),
            _ = interrupt.recv() => daemon.terminate(),
            _ = hangup.recv() => daemon.reload_for_signal(),
            Some(reload) = reload.recv() => daemon.reload_for(reload),
            Some(input) = input.recv() => daemon.take(input),
            Some(question) = question.recv() => daemon.question(question),
        }
    }
    notify::stopping();
    tracing::info!("leaving; {}", daemon.left_running());
    if daemon.registry.is_ending() {
        // Who waited for a container that was stopped just now learns how it ended.
        tokio::time::sleep(LAST_ANSWERS).await;
    }
    // Connections are closed by the end of the process: a shim takes no harm, and nothing here may delay the end.
    drop((api_server.shutdown(), event_server.shutdown()));
    Ok(())
}

/// Reads what is on disk, and reports it. In a thread of its own, which ends with that: a disk may be slow, and clients are
/// served meanwhile.
fn begin_restore(settings: &Settings, boot_id: &str, endings: Vec<Ending>, inputs: mpsc::UnboundedSender<Input>) {
    notify::status("restoring: reading what is on disk");
    let (paths, boot_id) = (settings.paths.clone(), boot_id.to_owned());
    std::thread::spawn(move || {
        let mut findings = scan::scan(&paths, &boot_id);
        findings.endings = endings;
        let _ = inputs.send(Input::Found(findings)); // fails only at the end
    });
}

/// Keeps all other supervisors out of the run directory, until it is dropped.
///
/// # Errors
/// [`StartError::Busy`] and [`StartError::Lock`].
pub fn lock(paths: &Paths) -> Result<Flock<fs::File>, StartError> {
    let path = paths.lock_file();
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| StartError::Lock { path, source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| StartError::Busy(paths.run.clone()))
}

/// The API's socket, in place before the restore begins.
fn api_listener(settings: &Settings) -> Result<UnixListener, StartError> {
    registered(&settings.socket, listener::api(&settings.socket))
}

/// A socket that the event loop watches.
fn registered(path: &Path, listener: io::Result<std::os::unix::net::UnixListener>) -> Result<UnixListener, StartError> {
    let registered = listener.and_then(|listener| {
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    });
    registered.map_err(|source| StartError::Listen { path: path.to_owned(), source })
}

async fn serve_api(settings: &Settings, listener: UnixListener, api: Api) -> Result<Server, StartError> {
    let services = holdfast_proto::supervisor_ttrpc::create_supervisor(Arc::new(api));
    let mut server = Server::new().add_listener(only_root(listener)).register_service(services);
    server.start().await.map_err(|source| StartError::Serve { path: settings.socket.clone(), source })?;
    Ok(server)
}

async fn serve_events(settings: &Settings, sink: EventSink) -> Result<Server, StartError> {
    let path = settings.paths.event_socket();
    let services = shim_async::create_events(Arc::new(sink));
    let mut server =
        Server::new().add_listener(only_root(registered(&path, listener::bind(&path))?)).register_service(services);
    server.start().await.map_err(|source| StartError::Serve { path, source })?;
    Ok(server)
}

/// Accepts only peers of our own user. The mode of socket and directory keep others out already; this holds when somebody
/// has loosened those.
fn only_root(listener: UnixListener) -> Listener {
    Listener::new(futures_util::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if peer.uid() == nix::unistd::geteuid().as_raw() => return Some((Ok(stream), listener)),
                    Ok(peer) => tracing::warn!(uid = peer.uid(), "a connection of another user was refused"),
                    Err(e) => tracing::warn!("a connection without credentials was refused: {e}"),
                },
                // Out of descriptors, most likely: leave the backlog a moment rather than spin.
                Err(e) => {
                    tracing::warn!("cannot accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }))
}

impl Daemon {
    fn question(&mut self, question: Question) {
        self.last_reply += 1;
        let reply = self.last_reply;
        self.replies.insert(reply, question.reply);
        self.take(Input::Ask { ask: question.ask, reply });
    }

    fn take(&mut self, input: Input) {
        tracing::trace!(?input);
        let now = Now { unix_ns: now_unix_ns(), boot_id: &self.boot_id };
        for effect in self.registry.handle(input, now) {
            self.perform(effect);
        }
    }

    /// SIGTERM or SIGINT. The first begins the end, the second hurries it, the third does not wait for it.
    fn terminate(&mut self) {
        self.told_to_end += 1;
        if self.told_to_end > 2 {
            tracing::warn!("told to end for the third time: leaving at once");
            self.leave = true;
            return;
        }
        if self.told_to_end == 2 {
            tracing::warn!("told to end again: what still runs is killed");
        }
        let (live_restore, within) = (self.settings.live_restore, self.settings.shutdown_timeout);
        self.take(Input::Terminate { live_restore, within });
    }

    fn left_running(&self) -> String {
        match self.registry.running() {
            0 => "nothing runs".to_owned(),
            n => format!("{n} running containers go on"),
        }
    }

    fn reload_for(&mut self, reload: Reload) {
        let _ = reload.reply.send(self.reload().map_err(|e| Refusal::Invalid(chain(&e)))); // the client may have left
    }

    fn reload_for_signal(&mut self) {
        // What there is to say of either case is in the log.
        let _ = self.reload();
    }

    /// Reads the settings again. With a mistake in them, all stays as it was.
    fn reload(&mut self) -> Result<Reloaded, ConfigError> {
        // Ready is not said before everything is classified, nor after the end has begun; then a reload is not told either.
        let is_told = self.registry.is_restored() && !self.registry.is_ending();
        if is_told {
            notify::reloading();
        }
        let loaded = Settings::load(&self.flags).inspect_err(|e| {
            tracing::error!("the settings stay as they were: {}", chain(e));
        });
        if is_told {
            notify::ready(&self.registry.report().summary());
        }
        let (settings, told) = self.settings.reload(loaded?);
        self.log_level.set(settings.log_level);
        let settings = Arc::new(settings);
        self.settings = Arc::clone(&settings);
        self.launcher.settings = Arc::clone(&settings);
        self.new_settings.send_replace(settings);
        tell_reload(&told);
        Ok(told)
    }

    fn reply(&mut self, to: Option<ReplyTo>, answer: Result<Answer, Refusal>) {
        if let Some(sender) = to.and_then(|to| self.replies.remove(&to)) {
            let _ = sender.send(answer); // the client may have left
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Store { container, spec } => {
                // Prepare, which follows, reports it to the one who asked.
                self.not_stored = store::create(&self.settings.paths, &container, &spec).err();
            }
            Effect::Save(container) => {
                if let Err(e) = store::save(&self.settings.paths, &container) {
                    tracing::error!(id = container.id, "{}; a restart may not know of this", chain(&e));
                }
            }
            Effect::Prepare { id, generation, reply, container } => self.prepare(id, generation, reply, *container),
            Effect::StartTask { id, generation, reply, onlooker } => self.start_task(id, generation, reply, onlooker),
            Effect::Watch { id, generation } => self.watch(id, generation),
            Effect::WatchExec { id, generation, exec_id } => self.watch_exec(id, generation, exec_id),
            Effect::WatchPid { id, generation, pid, start_time } => self.watch_pid(id, generation, pid, start_time),
            Effect::WatchProcess { id, generation, pid, start_time } => {
                self.spawn(async move {
                    attach::pid_gone(pid, start_time).await;
                    Input::ProcessEnded { id, generation }
                });
            }
            Effect::Retire { id, generation, shim_dead } => self.retire(id, generation, shim_dead),
            Effect::Probe { id, generation, traces } => self.probe(id, generation, traces),
            Effect::KillPid { pid, start_time, signal, reply } => {
                let answer = kill_pid(pid, start_time, signal);
                self.reply(reply, answer);
            }
            Effect::KeepLimits { id, limits, reply } => {
                let answer = keep_limits(&self.settings.paths, &id, &limits);
                self.reply(Some(reply), answer);
            }
            Effect::Call { id, call, reply } => self.call(id, call, reply),
            Effect::StartExec { id, generation, exec_id, spec, reply } => {
                self.start_exec(id, generation, exec_id, *spec, reply);
            }
            Effect::DeleteExec { id, exec_id } => self.delete_exec(id, exec_id),
            Effect::Remember(ending) => self.endings.add(&ending, || self.registry.endings()),
            Effect::Forget { id } => self.forget(id),
            Effect::Timer { id, generation, after, timer } => self.timer(id, generation, after, timer),
            Effect::Reply { to, answer } => self.reply(Some(to), answer),
            Effect::Publish(note) => self.events.note(note),
            Effect::Restoring { containers } => {
                notify::status(&format!("restoring: {containers} containers are asked"))
            }
            Effect::Restored => self.tell_restore(),
            Effect::Stopping { within, leave: true } => {
                tracing::info!("stopping all containers");
                notify::stopping();
                notify::extend_timeout(within);
            }
            Effect::Stopping { leave: false, .. } => {
                tracing::warn!(
                    "stopping all containers for the machine's shutdown; only a restart of holdfastd undoes it"
                );
            }
            Effect::Due { after, due } => {
                self.spawn(async move {
                    tokio::time::sleep(after).await;
                    Input::Due(due)
                });
            }
            Effect::Stopped(stopped) => tell_stopped(&stopped),
            Effect::Leave => self.leave = true,
        }
    }

    fn tell_restore(&mut self) {
        let report = self.registry.report();
        notify::ready(&report.summary());
        tracing::info!("restore: {}", report.summary());
        for one in &report.containers {
            let (id, name, class) = (names::short(&one.id), &one.name, one.class);
            tracing::info!(namespace = one.namespace, id, name, pid = one.pid, "{class}: {}", one.detail);
        }
        let launcher = self.launcher.clone();
        spawn_local(async move { launcher.sweep_output().await });
    }

    fn client(&self, id: &str) -> Option<ShimClient> {
        self.live.borrow().get(id).map(|l| l.client.clone())
    }

    /// Runs a task that ends with an input.
    fn spawn(&self, task: impl Future<Output = Input> + 'static) -> AbortHandle {
        let inputs = self.inputs.clone();
        spawn_local(async move {
            let _ = inputs.send(task.await); // fails only at the end
        })
        .abort_handle()
    }

    fn prepare(&mut self, id: String, generation: u64, reply: Option<ReplyTo>, container: crate::container::Container) {
        let (launcher, live) = (self.launcher.clone(), Rc::clone(&self.live));
        if let Some(e) = self.not_stored.take() {
            let result = Err(Refusal::Failed(chain(&e)));
            let _ = self.inputs.send(Input::Prepared { id, generation, reply, result }); // fails only at the end
            return;
        }
        self.spawn(async move {
            let result = match launcher.prepare(&container).await {
                Ok((shim, client, log)) => {
                    let connected = Live { generation, shim: shim.clone(), client, init: None, _log: log };
                    live.borrow_mut().insert(id.clone(), connected);
                    Ok(shim)
                }
                Err(e) => Err(e.refusal()),
            };
            Input::Prepared { id, generation, reply, result }
        });
    }

    fn start_task(&mut self, id: String, generation: u64, reply: Option<ReplyTo>, onlooker: Option<Onlooker>) {
        let (client, live) = (self.client(&id), Rc::clone(&self.live));
        let within = self.settings.start_timeout;
        self.spawn(async move {
            let what = "cannot start the container";
            let result = match client {
                Some(client) => match show_to(&client, onlooker).await {
                    Ok(()) => client.start("", within).await.map_err(|e| e.refusal(what)),
                    Err(e) => Err(e.refusal("cannot attach")),
                },
                None => Err(Refusal::Unavailable(format!("{what}: its shim is not connected"))),
            };
            if let (Ok(pid), Some(live)) = (&result, live.borrow_mut().get_mut(&id)) {
                live.init = Some((*pid, proc::start_time(*pid)));
            }
            Input::Started { id, generation, reply, result }
        });
    }

    fn follow(&mut self, id: &str, task: AbortHandle) {
        let tasks = self.following.entry(id.to_owned()).or_default();
        // A container may see very many execs: what has ended is kept by its handle.
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    fn watch(&mut self, id: String, generation: u64) {
        let Some((shim, client)) = self.live.borrow().get(&id).map(|l| (l.shim.clone(), l.client.clone())) else {
            return;
        };
        let record = self.settings.paths.record(&id);
        let (following, live, reaper) = (id.clone(), Rc::clone(&self.live), self.launcher.reaper.clone());
        let task = self.spawn(async move {
            match attach::watch(client, &shim, &id, "").await {
                Watched::Exited(status, at_unix_ns) => {
                    let reason = reason(&record, "");
                    Input::Exited { id, generation, outcome: Outcome { status, at_unix_ns, reason } }
                }
                Watched::ShimDied | Watched::Unknown => {
                    let init = live.borrow().get(&id).and_then(|l| l.init);
                    shim_died(id, generation, &shim, init, &reaper)
                }
            }
        });
        self.follow(&following, task);
    }

    fn watch_exec(&mut self, id: String, generation: u64, exec_id: String) {
        let Some((shim, client)) = self.live.borrow().get(&id).map(|l| (l.shim.clone(), l.client.clone())) else {
            return;
        };
        let (following, record) = (id.clone(), self.settings.paths.record(&id));
        let task = self.spawn(async move {
            let outcome = match attach::watch(client, &shim, &id, &exec_id).await {
                Watched::Exited(status, at_unix_ns) => {
                    Outcome { status, at_unix_ns, reason: reason(&record, &exec_id) }
                }
                Watched::ShimDied | Watched::Unknown => Outcome {
                    status: crate::container::UNKNOWN_STATUS,
                    at_unix_ns: now_unix_ns(),
                    reason: "the shim does not know it any more".to_owned(),
                },
            };
            Input::ExecExited { id, generation, exec_id, outcome }
        });
        self.follow(&following, task);
    }

    /// A process whose shim is dead. If it is ours by then (it was re-parented to us), its true status is.
    fn watch_pid(&mut self, id: String, generation: u64, pid: u32, start_time: u64) {
        let (launcher, mut status) = (self.launcher.clone(), self.launcher.reaper.claim(pid, start_time));
        self.spawn(async move {
            attach::pid_gone(pid, start_time).await;
            launcher.reaper.reap();
            match status.try_recv() {
                Ok(status) => exited_unwatched(id, generation, status),
                Err(_) => Input::ShimDied { id, generation, init: None },
            }
        });
    }

    fn retire(&mut self, id: String, generation: u64, shim_dead: bool) {
        // Execs end before the first process does: the record has them, whether or not the shim's answer has come.
        for trace in Record::read(&self.settings.paths.record(&id)).iter().flat_map(ExecTrace::all) {
            if let ExecTraceState::Ended(outcome) = trace.state {
                let (id, exec_id) = (id.clone(), trace.id);
                let _ = self.inputs.send(Input::ExecExited { id, generation, exec_id, outcome }); // fails only at the end
            }
        }
        for task in self.following.remove(&id).unwrap_or_default() {
            task.abort();
        }
        let live = self.live.borrow_mut().remove(&id).filter(|l| l.generation == generation && !shim_dead);
        let launcher = self.launcher.clone();
        self.spawn(async move {
            let outcome = match live {
                Some(live) => launcher.retire(&id, &live.shim, &live.client).await,
                None => launcher.delete_dead(&id).await,
            };
            Input::Retired { id, generation, outcome }
        });
    }

    fn probe(&mut self, id: String, generation: u64, traces: Option<ShimTraces>) {
        let (live, deadline) = (Rc::clone(&self.live), self.settings.restore_deadline);
        let log = traces.as_ref().map(|_| self.launcher.follow_log(&id));
        let record = self.settings.paths.record(&id);
        self.spawn(async move {
            let probe = match traces {
                None => Probe::Dead(None),
                Some(traces) => {
                    let (mut probe, client) = attach::probe(&id, &traces, deadline).await;
                    if let Probe::Answers(_, Some(task @ TaskView { state: RunState::Stopped { .. }, .. })) = &mut probe
                    {
                        task.reason = reason(&record, "");
                    }
                    if let (Probe::Answers(shim, task), Some(client), Some(log)) = (&probe, client, log) {
                        let init = task.as_ref().map(|t| (t.pid, proc::start_time(t.pid)));
                        let connected = Live { generation, shim: shim.clone(), client, init, _log: log };
                        live.borrow_mut().insert(id.clone(), connected);
                    }
                    probe
                }
            };
            Input::Probed { id, generation, probe }
        });
    }

    fn call(&mut self, id: String, call: Call, reply: Option<ReplyTo>) {
        let (client, init) = match self.live.borrow().get(&id) {
            Some(live) => (Some(live.client.clone()), live.init),
            None => (None, None),
        };
        let sender = reply.and_then(|to| self.replies.remove(&to));
        let paused = match call {
            Call::Pause => Some(true),
            Call::Resume => Some(false),
            _ => None,
        };
        let inputs = self.inputs.clone();
        let settings = Arc::clone(&self.settings);
        spawn_local(async move {
            let limits = match &call {
                Call::Update { limits } => Some(*limits),
                _ => None,
            };
            let answer = match client {
                Some(client) => match (pass_on(&client, call.clone()).await, call, init) {
                    // A shim that cannot pass a signal on, for want of an OCI runtime, say, does not keep anybody from
                    // ending the container.
                    (
                        Err(e @ (Refusal::Failed(_) | Refusal::Unavailable(_))),
                        Call::Kill { signal },
                        Some((pid, start)),
                    ) => {
                        tracing::warn!(%id, pid, signal, "{e}; the signal is sent to the first process itself");
                        kill_pid(pid, start, signal).map_err(|_| e)
                    }
                    (answer, ..) => answer,
                },
                None => Err(Refusal::Unavailable(format!("the shim of {} is not connected", names::short(&id)))),
            };
            let answer = match (answer, limits) {
                (Ok(_), Some(limits)) => keep_limits(&settings.paths, &id, &limits),
                (answer, _) => answer,
            };
            if let (Some(paused), Ok(_)) = (paused, &answer) {
                // The shim's event says so as well, but whoever was answered may look before that has come.
                let _ = inputs.send(Input::Paused { id: id.clone(), paused }); // fails only at the end
            }
            match (sender, answer) {
                (Some(sender), answer) => {
                    let _ = sender.send(answer); // the client may have left
                }
                (None, Err(e)) => tracing::warn!(%id, "{e}"),
                (None, Ok(_)) => {}
            }
        });
    }

    fn start_exec(&mut self, id: String, generation: u64, exec_id: String, spec: ExecSpec, reply: ReplyTo) {
        let client = self.client(&id);
        let process = store::read_spec(&self.settings.paths, &id)
            .map_err(|e| Refusal::Failed(chain(&e)))
            .and_then(|config| spec::exec_process(&config, &spec).map_err(|e| Refusal::Invalid(chain(&e))));
        self.spawn(async move {
            let result = match (client, process) {
                (Some(client), Ok(process)) => run_exec(&client, &exec_id, &spec, process).await,
                (None, _) => Err(Refusal::Unavailable("its shim is not connected".to_owned())),
                (_, Err(refusal)) => Err(refusal),
            };
            Input::ExecStarted { id, generation, exec_id, reply, result }
        });
    }

    fn delete_exec(&mut self, id: String, exec_id: String) {
        let Some(client) = self.client(&id) else { return };
        let outputs = exec_outputs(&self.settings.paths.record(&id), &exec_id);
        let following = id.clone();
        let task = spawn_local(async move {
            // The shim gives a reader only so much time once it is to delete.
            while outputs.iter().any(|path| has_reader(path)) {
                tokio::time::sleep(LOOK_FOR_READERS).await;
            }
            match client.delete(&exec_id).await {
                Err(e) if !e.is_not_found() => tracing::warn!(%id, exec_id, "cannot delete an exec: {}", chain(&e)),
                _ => {}
            }
        });
        self.follow(&following, task.abort_handle());
    }

    fn forget(&mut self, id: String) {
        for task in self.following.remove(&id).unwrap_or_default() {
            task.abort();
        }
        self.live.borrow_mut().remove(&id);
        let problem = store::delete(&self.settings.paths, &id).err().map(|e| chain(&e));
        let _ = self.inputs.send(Input::Forgotten { id, problem }); // fails only at the end
    }

    fn timer(&mut self, id: String, generation: u64, after: Duration, timer: Timer) {
        self.spawn(async move {
            tokio::time::sleep(after).await;
            Input::Elapsed { id, generation, timer }
        });
    }
}

fn tell_reload(told: &Reloaded) {
    for change in &told.changed {
        tracing::info!("reload: {} is now {}, it was {}", change.key, change.to, change.from);
    }
    for refused in &told.refused {
        let Refused { key, stays, asked, why } = refused;
        tracing::warn!("reload: {key} stays {stays} and does not become {asked}: {why}");
    }
    for overridden in &told.overridden {
        tracing::warn!("reload: {overridden}");
    }
    if told.changed.is_empty() && told.refused.is_empty() {
        tracing::info!("reload: nothing has changed");
    }
}

fn tell_stopped(stopped: &Stopped) {
    let Stopped { id, name, outcome, took, how } = stopped;
    let (id, took) = (names::short(id), humantime::format_duration(Duration::from_millis(took.as_millis() as u64)));
    match (how, outcome) {
        (How::LeftBehind, _) => tracing::warn!(id, name, "{}", how.as_str()),
        (_, Some(outcome)) => {
            tracing::info!(id, name, "{} within {took}, exit status {}", how.as_str(), outcome.status);
        }
        (_, None) => tracing::info!(id, name, "{}", how.as_str()),
    }
}

/// Why a process ended as it did, from its shim's record; empty when there is nothing to say.
fn reason(record: &Path, exec_id: &str) -> String {
    let record = Record::read(record).ok();
    let process = record.as_ref().and_then(|record| record.processes.iter().find(|p| p.exec_id == exec_id));
    process.filter(|process| process.oom_killed).map_or_else(String::new, |_| OUT_OF_MEMORY.to_owned())
}

/// Whether somebody has a FIFO open for reading, fifo(7).
fn has_reader(fifo: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(fifo).is_ok()
}

/// The FIFOs into which an exec's output goes.
fn exec_outputs(record: &Path, exec_id: &str) -> Vec<PathBuf> {
    let record = Record::read(record).ok();
    let process = record.as_ref().and_then(|record| record.processes.iter().find(|p| p.exec_id == exec_id));
    let streams = process.into_iter().flat_map(|process| [&process.stdout, &process.stderr]);
    streams.filter(|path| !path.is_empty()).map(PathBuf::from).collect()
}

/// A process without a shim has ended as our child.
fn exited_unwatched(id: String, generation: u64, status: u32) -> Input {
    Input::Exited { id, generation, outcome: Outcome { status, at_unix_ns: now_unix_ns(), reason: String::new() } }
}

/// What to report when a shim is gone: with its container's first process, if that still lives; with its true status, if
/// it ended as our child; with neither, if nobody can know.
fn shim_died(id: String, generation: u64, shim: &ShimRef, init: Option<(u32, u64)>, reaper: &Reaper) -> Input {
    tracing::warn!(%id, pid = shim.pid, "the shim is dead");
    let live = init.filter(|(pid, start)| proc::is_live(*pid, *start));
    if let (Some((pid, start_time)), None) = (init, live) {
        reaper.reap();
        if let Ok(status) = reaper.claim(pid, start_time).try_recv() {
            return exited_unwatched(id, generation, status);
        }
    }
    Input::ShimDied { id, generation, init: live }
}

/// Signals a process of a container that no shim can be asked for.
fn kill_pid(pid: u32, start_time: u64, signal: i32) -> Result<Answer, Refusal> {
    proc::signal(pid, start_time, signal).map(|()| Answer::Done).map_err(|e| match e.raw_os_error() {
        Some(nix::libc::ESRCH) => Refusal::NotFound(format!("process {pid} has ended")),
        _ => Refusal::Failed(format!("cannot signal process {pid}: {e}")),
    })
}

/// Writes limits down, for the container's next start.
fn keep_limits(paths: &Paths, id: &str, limits: &Limits) -> Result<Answer, Refusal> {
    let failed = |e: &dyn std::error::Error| Refusal::Failed(format!("the limits are not kept: {}", chain(e)));
    let spec = store::read_spec(paths, id).map_err(|e| failed(&e))?;
    let spec = spec::with_limits(&spec, limits).map_err(|e| failed(&e))?;
    store::replace_spec(paths, id, &spec).map_err(|e| failed(&e))?;
    Ok(Answer::Done)
}

async fn pass_on(client: &ShimClient, call: Call) -> Result<Answer, Refusal> {
    let (what, result) = match call {
        Call::Kill { signal } => ("cannot send the signal", client.kill(signal).await),
        Call::Attach { stdout, stderr } => ("cannot attach", client.attach(&stdout, &stderr).await),
        Call::Resize { exec_id, columns, rows } => {
            ("cannot set the window size", client.resize(&exec_id, columns, rows).await)
        }
        Call::CloseStdin { exec_id } => ("cannot close the standard input", client.close_stdin(&exec_id).await),
        Call::ReopenLogs => ("cannot reopen the log", client.reopen_logs().await),
        Call::Pause => ("cannot pause the container", client.pause().await),
        Call::Resume => ("cannot unpause the container", client.resume().await),
        Call::Update { limits } => ("cannot set the limits", client.update(spec::resources(&limits)).await),
    };
    result.map(|()| Answer::Done).map_err(|e| e.refusal(what))
}

/// Attaches somebody who sees it from the first byte.
async fn show_to(client: &ShimClient, onlooker: Option<Onlooker>) -> Result<(), CallError> {
    let Some(onlooker) = onlooker else { return Ok(()) };
    client.attach(&onlooker.stdout, &onlooker.stderr).await?;
    match onlooker.window {
        Some((columns, rows)) => client.resize("", columns, rows).await,
        None => Ok(()),
    }
}

async fn run_exec(client: &ShimClient, exec_id: &str, spec: &ExecSpec, process: Vec<u8>) -> Result<u32, Refusal> {
    let request = api::ExecProcessRequest {
        exec_id: exec_id.to_owned(),
        terminal: spec.terminal,
        stdin: spec.stdin.clone(),
        stdout: spec.stdout.clone(),
        stderr: spec.stderr.clone(),
        ..Default::default()
    };
    client.exec(request, process).await.map_err(|e| e.refusal("cannot add the process"))?;
    if let Some((columns, rows)) = spec.window {
        // The shim keeps it for the terminal that is to come.
        client.resize(exec_id, columns, rows).await.map_err(|e| e.refusal("cannot set the window size"))?;
    }
    match client.start(exec_id, client::SLOW).await {
        Ok(pid) => Ok(pid),
        Err(e) => {
            if let Err(left) = client.delete(exec_id).await {
                tracing::debug!(exec_id, "a failed exec could not be deleted, ignoring: {}", chain(&left));
            }
            Err(e.refusal("cannot start the process"))
        }
    }
}
