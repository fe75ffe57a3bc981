//! containerd's event service: takes what shims forward, in order, or refuses, hangs, or is not there.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use std::{fmt, fs};

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskStart,
};
use containerd_shim_protos::shim::events::ForwardRequest;
use protobuf::{EnumOrUnknown, Message};
use ttrpc::proto::{Code, Request, Response, Status};

use crate::Scene;
use crate::eventually::patience;
use crate::shim::EVENTS_SOCKET;
use crate::wire::Frame;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// What becomes of a forwarded event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// Taken.
    #[default]
    Accept,
    /// Answered with this code.
    Refuse(Code),
    /// Events of this topic are answered with this code, others taken.
    RefuseTopic(&'static str, Code),
    /// Not answered.
    Hang,
}

/// One event as it was forwarded.
#[derive(Clone, Debug)]
pub struct Event {
    /// containerd's namespace.
    pub namespace: String,
    /// As `/tasks/exit`.
    pub topic: String,
    /// The message's name.
    pub type_url: String,
    /// When it happened, in nanoseconds since the Unix epoch.
    pub at_unix_ns: i64,
    /// The message.
    pub value: Vec<u8>,
}

#[derive(Debug, Default)]
struct Shared {
    events: Vec<Event>,
    mood: Mood,
    /// Requests seen, whatever became of them.
    attempts: usize,
    connections: Vec<UnixStream>,
    stopped: bool,
}

type Handle = Arc<(Mutex<Shared>, Condvar)>;

/// The service, on the socket that [`crate::Launch`] names to shims.
#[derive(Debug)]
pub struct FakeContainerd {
    path: PathBuf,
    shared: Handle,
    acceptor: Option<JoinHandle<()>>,
}

impl FakeContainerd {
    /// Starts it.
    ///
    /// # Panics
    /// If the socket cannot be made.
    pub fn start(scene: &Scene) -> Self {
        let mut service = Self { path: scene.path(EVENTS_SOCKET), shared: Handle::default(), acceptor: None };
        service.resume();
        service
    }

    /// Ends it as a kill would: no socket, all connections gone. What it has taken is kept.
    pub fn stop(&mut self) {
        lock(&self.shared).stopped = true;
        // Wakes the acceptor.
        let _ = UnixStream::connect(&self.path);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        let _ = fs::remove_file(&self.path);
        for connection in lock(&self.shared).connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Starts it again after [`FakeContainerd::stop`].
    ///
    /// # Panics
    /// If the socket cannot be made.
    pub fn resume(&mut self) {
        lock(&self.shared).stopped = false;
        let listener = UnixListener::bind(&self.path);
        let listener = listener.unwrap_or_else(|e| panic!("cannot listen on {}: {e}", self.path.display()));
        let shared = Arc::clone(&self.shared);
        self.acceptor = Some(thread::spawn(move || accept(&listener, &shared)));
    }

    /// Says what becomes of events from now on.
    pub fn set_mood(&self, mood: Mood) {
        lock(&self.shared).mood = mood;
    }

    /// What was taken so far.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.shared).events.clone()
    }

    /// The events of one container, in short: `create`, `start`, `exec-added e1`, `exec-started e1`, `exit e1 0`,
    /// `exit 7`, `delete 7`, `delete e1 0`, else the topic.
    pub fn story(&self, id: &str) -> Vec<String> {
        story(&lock(&self.shared).events, id)
    }

    /// Waits until the container's story holds `line`, and returns it.
    #[track_caller]
    pub fn wait_for(&self, id: &str, line: &str) -> Vec<String> {
        self.wait(&format!("event {line:?}"), |s| story(&s.events, id).iter().any(|l| l == line));
        self.story(id)
    }

    /// Waits until the container's story is as `condition` wants it, and returns it.
    #[track_caller]
    pub fn wait_until(&self, id: &str, condition: impl Fn(&[String]) -> bool) -> Vec<String> {
        self.wait("such story", |s| condition(&story(&s.events, id)));
        self.story(id)
    }

    /// Waits until `count` requests were seen, whatever became of them.
    #[track_caller]
    pub fn wait_for_attempts(&self, count: usize) {
        self.wait(&format!("{count} attempts"), |s| s.attempts >= count);
    }

    #[track_caller]
    fn wait(&self, what: &str, condition: impl Fn(&Shared) -> bool) {
        let end = Instant::now() + patience();
        let mut shared = lock(&self.shared);
        while !condition(&shared) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seen: Vec<_> = shared.events.iter().map(Event::to_string).collect();
                let attempts = shared.attempts;
                drop(shared);
                panic!("no {what} within {:?}; {attempts} attempts, taken: {seen:#?}", patience());
            }
            shared = self.shared.1.wait_timeout(shared, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for FakeContainerd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(shared: &Handle) -> MutexGuard<'_, Shared> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn story(events: &[Event], id: &str) -> Vec<String> {
    events.iter().filter_map(|e| e.line_about(id)).collect()
}

fn accept(listener: &UnixListener, shared: &Handle) {
    for connection in listener.incoming().flatten() {
        let mut state = lock(shared);
        if state.stopped {
            return;
        }
        if let Ok(copy) = connection.try_clone() {
            state.connections.push(copy);
            let shared = Arc::clone(shared);
            thread::spawn(move || serve(connection, &shared));
        }
    }
}

fn serve(mut connection: UnixStream, shared: &Handle) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while let Ok(n @ 1..) = connection.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..n]);
        while let Some(frame) = Frame::take(&mut bytes) {
            // Answered before anybody can see what was taken: a stop that follows on the sight of an event does not find it
            // unanswered, which would have it come again.
            let mut state = lock(shared);
            if let Some(code) = take(&frame, &mut state) {
                let status = Status { code: EnumOrUnknown::new(code), ..Status::default() };
                let response = Response { status: Some(status).into(), ..Response::default() };
                let _ = connection.write_all(&Frame::response(frame.stream_id, &response).to_bytes());
            }
            drop(state);
            shared.1.notify_all();
        }
    }
}

/// Files the event of a request; `None` if there is to be no answer.
fn take(frame: &Frame, state: &mut Shared) -> Option<Code> {
    let request = Request::parse_from_bytes(&frame.payload).unwrap_or_default();
    if (request.service.as_str(), request.method.as_str()) != (SERVICE, "Forward") {
        return Some(Code::UNIMPLEMENTED);
    }
    state.attempts += 1;
    match state.mood {
        Mood::RefuseTopic(topic, code) if event_of(&request.payload).is_some_and(|e| e.topic == topic) => Some(code),
        Mood::Accept | Mood::RefuseTopic(..) => match event_of(&request.payload) {
            Some(event) => {
                state.events.push(event);
                Some(Code::OK)
            }
            None => Some(Code::INVALID_ARGUMENT),
        },
        Mood::Refuse(code) => Some(code),
        Mood::Hang => None,
    }
}

/// The event, if it passes what containerd demands of one.
fn event_of(payload: &[u8]) -> Option<Event> {
    let envelope = ForwardRequest::parse_from_bytes(payload).ok()?.envelope.into_option()?;
    let at = envelope.timestamp.into_option()?;
    let any = envelope.event.into_option()?;
    let event = Event {
        namespace: envelope.namespace,
        topic: envelope.topic,
        type_url: any.type_url,
        at_unix_ns: at.seconds * 1_000_000_000 + i64::from(at.nanos),
        value: any.value,
    };
    (event.topic.starts_with('/') && !event.namespace.is_empty() && event.at_unix_ns != 0).then_some(event)
}

impl Event {
    /// The message.
    ///
    /// # Panics
    /// If it is no `T`.
    pub fn message<T: Message>(&self) -> T {
        T::parse_from_bytes(&self.value).unwrap_or_else(|e| panic!("{} is malformed: {e}", self.topic))
    }

    /// This event in short, if it is about the container `id`.
    fn line_about(&self, id: &str) -> Option<String> {
        let (container, line) = self.parts();
        (container == id).then_some(line)
    }

    fn parts(&self) -> (String, String) {
        match self.topic.as_str() {
            "/tasks/create" => (self.message::<TaskCreate>().container_id, "create".into()),
            "/tasks/start" => (self.message::<TaskStart>().container_id, "start".into()),
            "/tasks/exec-added" => {
                let m: TaskExecAdded = self.message();
                (m.container_id, format!("exec-added {}", m.exec_id))
            }
            "/tasks/exec-started" => {
                let m: TaskExecStarted = self.message();
                (m.container_id, format!("exec-started {}", m.exec_id))
            }
            "/tasks/exit" => {
                let m: TaskExit = self.message();
                let exec = if m.id == m.container_id { String::new() } else { format!("{} ", m.id) };
                (m.container_id, format!("exit {exec}{}", m.exit_status))
            }
            "/tasks/delete" => {
                let m: TaskDelete = self.message();
                let exec = if m.id.is_empty() { String::new() } else { format!("{} ", m.id) };
                (m.container_id, format!("delete {exec}{}", m.exit_status))
            }
            // The others carry nothing but the container's id, in the same place.
            topic => (self.message::<TaskOOM>().container_id, topic.trim_start_matches("/tasks/").into()),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (container, line) = self.parts();
        write!(f, "{}/{container}: {line}", self.namespace)
    }
}
