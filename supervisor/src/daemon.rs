//! The one loop: take an input, let the registry decide, perform the effects in order, feed their results back in.
//!
//! Everything runs in one thread. Effects that take time become tasks whose last act is to send an input; each belongs
//! to a container and a generation, so that a late result does no harm.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use containerd_shim_protos::{api, shim_async};
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, spawn_local};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::api::{Api, Question};
use crate::attach::{self, Watched};
use crate::client::{ShimClient, now_unix_ns};
use crate::config::Settings;
use crate::container::Outcome;
use crate::events::{EventLog, EventSink};
use crate::launch::{Following, Launcher};
use crate::registry::{Answer, Call, Effect, ExecSpec, Input, Now, Probe, Refusal, Registry, ReplyTo, ShimRef, Timer};
use crate::scan::{self, ShimTraces};
use crate::store::{self, StoreError};
use crate::sys::reaper::Reaper;
use crate::sys::{self, proc};
use crate::{chain, names, notify, paths, spec};

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
    settings: Rc<Settings>,
    boot_id: String,
    registry: Registry,
    inputs: mpsc::UnboundedSender<Input>,
    live: LiveTable,
    /// Watches, which last as long as a run. Ended when it is retired.
    following: HashMap<String, Vec<AbortHandle>>,
    replies: HashMap<ReplyTo, oneshot::Sender<Result<Answer, Refusal>>>,
    last_reply: ReplyTo,
    events: EventLog,
    /// Why the last new container could not be written down, until its making is given up.
    not_stored: Option<StoreError>,
    restored: bool,
}

/// Serves until SIGTERM or SIGINT, which leave every container running.
///
/// # Errors
/// See [`StartError`]; nothing fails once the API is served.
pub async fn run(settings: Settings) -> Result<(), StartError> {
    let system = |what| move |source| StartError::System { what, source };
    for directory in paths::private_directories(&settings.paths) {
        store::make_private_dir(&directory).map_err(StartError::Directories)?;
    }
    let _lock = lock(&settings)?;
    sys::become_subreaper().map_err(system("become the parent of orphaned shims"))?;
    let boot_id = proc::boot_id().map_err(system("read the boot id"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("watch for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("watch for SIGINT"))?;
    let mut child = signal(SignalKind::child()).map_err(system("watch for SIGCHLD"))?;
    let listener = api_listener(&settings)?;

    let settings = Rc::new(settings);
    let (inputs, mut input) = mpsc::unbounded_channel();
    let (questions, mut question) = mpsc::unbounded_channel();
    let events = EventLog::default();
    let reaper = Reaper::default();
    let mut daemon = Daemon {
        launcher: Launcher { settings: Rc::clone(&settings), reaper: reaper.clone() },
        settings: Rc::clone(&settings),
        boot_id,
        registry: Registry::default(),
        inputs: inputs.clone(),
        live: LiveTable::default(),
        following: HashMap::new(),
        replies: HashMap::new(),
        last_reply: 0,
        events: events.clone(),
        not_stored: None,
        restored: false,
    };
    let mut event_server = serve_events(&settings, EventSink::new(events.clone(), inputs)).await?;
    let findings = scan::scan(&settings.paths, &daemon.boot_id);
    daemon.take(Input::Found(findings));
    // The API waits for the restore, which its deadlines bound: nobody gets an answer from half a table. Who connects
    // meanwhile waits in the socket's backlog.
    while !daemon.restored {
        tokio::select! {
            Some(input) = input.recv() => daemon.take(input),
            _ = child.recv() => reaper.reap(),
            _ = terminate.recv() => return Ok(()),
        }
    }
    let mut api_server = serve_api(&settings, listener, Api::new(&settings, questions, events)).await?;
    notify::ready(&daemon.registry.report().summary());
    loop {
        // Children first: a helper's status must not wait behind the inputs that depend on it. Signals before questions,
        // so that a flood of those cannot delay the end. Every branch may be dropped: none loses what it has taken.
        tokio::select! {
            biased;
            _ = child.recv() => reaper.reap(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(input) = input.recv() => daemon.take(input),
            Some(question) = question.recv() => daemon.question(question),
        }
    }
    notify::stopping();
    tracing::info!("leaving; what runs goes on running");
    // Connections are closed by the end of the process: a shim takes no harm, and nothing here may delay the end.
    drop((api_server.shutdown(), event_server.shutdown()));
    Ok(())
}

fn lock(settings: &Settings) -> Result<Flock<fs::File>, StartError> {
    let path = settings.paths.lock_file();
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| StartError::Lock { path, source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| StartError::Busy(settings.paths.run.clone()))
}

/// The API's socket: passed by the service manager, or bound here; in place before the restore begins.
fn api_listener(settings: &Settings) -> Result<UnixListener, StartError> {
    let path = settings.socket.clone();
    let failed = |source| StartError::Listen { path: path.clone(), source };
    match sys::passed_listener() {
        Some(passed) => {
            passed.set_nonblocking(true).map_err(failed)?;
            UnixListener::from_std(passed).map_err(failed)
        }
        None => bind(&path),
    }
}

/// Binds a socket for root only. The lock is held, so that a file in the way is a dead supervisor's.
fn bind(path: &Path) -> Result<UnixListener, StartError> {
    let failed = |source| StartError::Listen { path: path.to_owned(), source };
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

async fn serve_api(settings: &Settings, listener: UnixListener, api: Api) -> Result<Server, StartError> {
    let services = holdfast_proto::supervisor_ttrpc::create_supervisor(std::sync::Arc::new(api));
    let mut server = Server::new().add_listener(only_root(listener)).register_service(services);
    server.start().await.map_err(|source| StartError::Serve { path: settings.socket.clone(), source })?;
    Ok(server)
}

async fn serve_events(settings: &Settings, sink: EventSink) -> Result<Server, StartError> {
    let path = settings.paths.event_socket();
    let services = shim_async::create_events(std::sync::Arc::new(sink));
    let mut server = Server::new().add_listener(only_root(bind(&path)?)).register_service(services);
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
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
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
            Effect::StartTask { id, generation, reply } => self.start_task(id, generation, reply),
            Effect::Watch { id, generation } => self.watch(id, generation),
            Effect::WatchExec { id, generation, exec_id } => self.watch_exec(id, generation, exec_id),
            Effect::WatchPid { id, generation, pid, start_time } => self.watch_pid(id, generation, pid, start_time),
            Effect::Retire { id, generation, shim_dead } => self.retire(id, generation, shim_dead),
            Effect::Probe { id, generation, traces } => self.probe(id, generation, traces),
            Effect::KillPid { pid, start_time, signal, reply } => {
                let answer = kill_pid(pid, start_time, signal);
                self.reply(reply, answer);
            }
            Effect::Call { id, call, reply } => self.call(id, call, reply),
            Effect::StartExec { id, generation, exec_id, spec, reply } => {
                self.start_exec(id, generation, exec_id, *spec, reply);
            }
            Effect::DeleteExec { id, exec_id } => self.delete_exec(&id, exec_id),
            Effect::Forget { id } => self.forget(id),
            Effect::Timer { id, generation, after, timer } => self.timer(id, generation, after, timer),
            Effect::Reply { to, answer } => self.reply(Some(to), answer),
            Effect::Publish(note) => self.events.note(note),
            Effect::Restored => self.tell_restore(),
        }
    }

    fn tell_restore(&mut self) {
        self.restored = true;
        let report = self.registry.report();
        tracing::info!("restore: {}", report.summary());
        for one in &report.containers {
            let (id, name, class) = (names::short(&one.id), &one.name, one.class);
            tracing::info!(namespace = one.namespace, id, name, pid = one.pid, "{class}: {}", one.detail);
        }
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

    fn start_task(&mut self, id: String, generation: u64, reply: Option<ReplyTo>) {
        let (client, live) = (self.client(&id), Rc::clone(&self.live));
        self.spawn(async move {
            let what = "cannot start the container";
            let result = match client {
                Some(client) => client.start("").await.map_err(|e| e.refusal(what)),
                None => Err(Refusal::Unavailable(format!("{what}: its shim is not connected"))),
            };
            if let (Ok(pid), Some(live)) = (&result, live.borrow_mut().get_mut(&id)) {
                live.init = Some((*pid, proc::start_time(*pid)));
            }
            Input::Started { id, generation, reply, result }
        });
    }

    fn follow(&mut self, id: &str, task: AbortHandle) {
        self.following.entry(id.to_owned()).or_default().push(task);
    }

    fn watch(&mut self, id: String, generation: u64) {
        let Some((shim, client)) = self.live.borrow().get(&id).map(|l| (l.shim.clone(), l.client.clone())) else {
            return;
        };
        let (following, live, reaper) = (id.clone(), Rc::clone(&self.live), self.launcher.reaper.clone());
        let task = self.spawn(async move {
            match attach::watch(client, &shim, &id, "").await {
                Watched::Exited(status, at_unix_ns) => Input::Exited { id, generation, status, at_unix_ns },
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
        let following = id.clone();
        let task = self.spawn(async move {
            let outcome = match attach::watch(client, &shim, &id, &exec_id).await {
                Watched::Exited(status, at_unix_ns) => Outcome { status, at_unix_ns, reason: String::new() },
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
        let (launcher, mut status) = (self.launcher.clone(), self.launcher.reaper.claim(pid));
        self.spawn(async move {
            attach::pid_gone(pid, start_time).await;
            launcher.reaper.reap();
            match status.try_recv() {
                Ok(status) => Input::Exited { id, generation, status, at_unix_ns: now_unix_ns() },
                Err(_) => Input::ShimDied { id, generation, init: None },
            }
        });
    }

    fn retire(&mut self, id: String, generation: u64, shim_dead: bool) {
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
        self.spawn(async move {
            let probe = match traces {
                None => Probe::Dead(None),
                Some(traces) => {
                    let (probe, client) = attach::probe(&id, &traces, deadline).await;
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
        let client = self.client(&id);
        let sender = reply.and_then(|to| self.replies.remove(&to));
        spawn_local(async move {
            let answer = match client {
                Some(client) => pass_on(&client, call).await,
                None => Err(Refusal::Unavailable(format!("the shim of {} is not connected", names::short(&id)))),
            };
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

    fn delete_exec(&mut self, id: &str, exec_id: String) {
        if let Some(client) = self.client(id) {
            let id = id.to_owned();
            spawn_local(async move {
                match client.delete(&exec_id).await {
                    Err(e) if !e.is_not_found() => tracing::warn!(%id, exec_id, "cannot delete an exec: {}", chain(&e)),
                    _ => {}
                }
            });
        }
    }

    fn forget(&mut self, id: String) {
        for task in self.following.remove(&id).unwrap_or_default() {
            task.abort();
        }
        self.live.borrow_mut().remove(&id);
        let problem = store::delete(&self.settings.paths, &id).err().map(|e| chain(&e));
        let _ = self.inputs.send(Input::Forgotten { id, problem }); // fails only at the end
    }

    fn timer(&mut self, id: String, generation: u64, after: std::time::Duration, timer: Timer) {
        self.spawn(async move {
            tokio::time::sleep(after).await;
            Input::Elapsed { id, generation, timer }
        });
    }
}

/// What to report when a shim is gone: with its container's first process, if that still lives; with its true status, if
/// it ended as our child; with neither, if nobody can know.
fn shim_died(id: String, generation: u64, shim: &ShimRef, init: Option<(u32, u64)>, reaper: &Reaper) -> Input {
    tracing::warn!(%id, pid = shim.pid, "the shim is dead");
    let live = init.filter(|(pid, start)| proc::is_live(*pid, *start));
    if let (Some((pid, _)), None) = (init, live) {
        reaper.reap();
        if let Ok(status) = reaper.claim(pid).try_recv() {
            return Input::Exited { id, generation, status, at_unix_ns: now_unix_ns() };
        }
    }
    Input::ShimDied { id, generation, init: live }
}

fn kill_pid(pid: u32, start_time: u64, signal: i32) -> Result<Answer, Refusal> {
    use std::os::fd::AsFd;
    let failed = |e: io::Error| Refusal::Failed(format!("cannot signal process {pid}: {e}"));
    let pidfd = sys::pidfd_open(pid).map_err(failed)?;
    if !proc::is_live(pid, start_time) {
        return Err(Refusal::NotFound(format!("process {pid} has ended")));
    }
    sys::pidfd_signal(pidfd.as_fd(), signal).map_err(failed)?;
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
        Call::Update { limits } => ("cannot set the limits", client.update(spec::resources(&limits)).await),
    };
    result.map(|()| Answer::Done).map_err(|e| e.refusal(what))
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
    match client.start(exec_id).await {
        Ok(pid) => Ok(pid),
        Err(e) => {
            if let Err(left) = client.delete(exec_id).await {
                tracing::debug!(exec_id, "a failed exec could not be deleted, ignoring: {}", chain(&left));
            }
            Err(e.refusal("cannot start the process"))
        }
    }
}
