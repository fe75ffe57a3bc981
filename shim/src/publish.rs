//! Events to containerd: in order, at least once, as long as it takes (contract 4).
//!
//! The head of the queue stays there until containerd has acknowledged it, so a containerd that is away for an hour gets
//! every event when it is back, and nothing overtakes anything. Nobody who publishes ever waits. What waits also stands in
//! a file, for whoever cleans up after a shim that was killed ([`crate::journal`]); if it cannot be written, events go on in
//! memory and the file catches up later.
//!
//! # The bound
//! [`BOUND`] bytes may wait. Beyond them, down to three quarters of it, the oldest of the first kind go, then those of the
//! next kind:
//!
//! 1. what tells of no end: execs that were added or started, pauses, resumes, checkpoints;
//! 2. lack of memory, but for the newest of each container;
//! 3. the exits of execs;
//! 4. all of containers whose deletion waits as well, but that: it tells the exit again;
//! 5. these deletions.
//!
//! So the creation, start and exit and the last lack of memory of a container that is still there are never lost, and no
//! number of execs or of containers that come and go makes the queue grow. A log line tells how many went.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use ttrpc::proto::{Code, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, Request, Response};

use crate::ask::{AskError, Asker};
use crate::frame::{self, Parsed};
use crate::journal::Journal;
use crate::lifecycle::{Event, ProcessId};
use crate::owned_task::OwnedTask;
use crate::wire;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// How long one event may take to be acknowledged.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);
/// The pause before the next attempt, and how long it grows to. Longer than the contract's 5 s, as ten thousand shims share
/// a machine: a containerd that comes back connects to its shims, and that ends the pause ([`Publisher::poke`]).
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(30));
/// How long after that a containerd may take until it takes events, and how long pauses grow to meanwhile. They should be
/// there before its clients are: a dockerd that begins to restore its containers and hears of an exit deletes the container
/// without having opened its output.
const COMING_BACK: (Duration, Duration) = (Duration::from_secs(15), Duration::from_millis(250));
/// How many bytes of events may wait, the queue's own included.
const BOUND: usize = 1 << 20;
/// What the queue and the allocator add to an event, in bytes, about.
const OVERHEAD: usize = 128;
/// How often a journal that could not be written is tried again.
const REWRITE: Duration = Duration::from_secs(1);

/// An event that waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Waiting {
    /// An encoded `ForwardRequest`.
    request: Vec<u8>,
    #[serde(default)]
    kind: Kind,
    /// The id of its container.
    #[serde(default)]
    container: String,
    /// The position behind it in the journal; 0: it does not stand there.
    #[serde(skip)]
    position: u64,
}

/// What an event's loss would mean; see the module's comment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// The creation, start or exit of a container.
    #[default]
    Container,
    NoEnd,
    OutOfMemory,
    ExecExit,
    Deletion,
}

impl Kind {
    fn of(event: &Event) -> Self {
        match event {
            Event::Created { .. } | Event::Started { .. } | Event::Exited { process: ProcessId::Init, .. } => {
                Self::Container
            }
            Event::ExecAdded { .. }
            | Event::ExecStarted { .. }
            | Event::Paused
            | Event::Resumed
            | Event::Checkpointed(_) => Self::NoEnd,
            Event::OutOfMemory => Self::OutOfMemory,
            Event::Exited { process: ProcessId::Exec(_), .. } => Self::ExecExit,
            Event::Deleted { .. } => Self::Deletion,
        }
    }
}

impl Waiting {
    fn cost(&self) -> usize {
        self.request.len() + self.container.len() + OVERHEAD
    }
}

pub(crate) struct Publisher {
    shared: Rc<Shared>,
    task: Option<OwnedTask>,
}

struct Shared {
    queue: RefCell<VecDeque<Waiting>>,
    journal: RefCell<Keeper>,
    changed: Notify,
    /// Somebody has connected to us: it may be a containerd that is back.
    poked: Notify,
}

/// Brings what waits into the journal.
struct Keeper {
    /// None: events are for nobody.
    journal: Option<Journal>,
    /// It holds what does not wait any more, or nobody knows what, and is to be written anew.
    stale: bool,
    /// It could not be written when it was to be, and that was logged.
    failing: bool,
    /// Tries again, while something is missing in it.
    retry: Option<OwnedTask>,
}

/// An event, ready to be sent.
pub(crate) struct Publication<'a> {
    /// containerd's namespace.
    pub(crate) namespace: &'a str,
    /// The container's id.
    pub(crate) container: &'a str,
    /// What has happened.
    pub(crate) event: &'a Event,
    /// In containerd's words: topic, type and message.
    pub(crate) encoded: (&'static str, &'static str, Vec<u8>),
    /// When it has happened, in nanoseconds since the Unix epoch.
    pub(crate) at_unix_ns: u64,
}

impl Publisher {
    /// Publishes to the socket at `address`, and keeps what waits in `journal`; with an empty address events are dropped, as
    /// their addressee is nobody, and nothing is written.
    pub(crate) fn start(address: &str, journal: Journal) -> Self {
        Self::resume(address, Vec::new(), Some(journal), RETRY)
    }

    /// Publishes to nobody.
    pub(crate) fn mute() -> Self {
        Self::resume("", Vec::new(), None, RETRY)
    }

    /// What was sent and not acknowledged is sent again.
    fn resume(address: &str, waiting: Vec<Waiting>, journal: Option<Journal>, retry: (Duration, Duration)) -> Self {
        let (changed, poked) = (Notify::new(), Notify::new());
        let journal = journal.filter(|_| !address.is_empty());
        let keeper = Keeper { journal, stale: !waiting.is_empty(), failing: false, retry: None };
        let shared =
            Rc::new(Shared { queue: RefCell::new(waiting.into()), journal: RefCell::new(keeper), changed, poked });
        shared.write_down();
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        let task = (!address.is_empty()).then(|| OwnedTask::spawn(deliver(shared.clone(), path, retry)));
        Self { shared, task }
    }

    /// Tries again at once, should a pause be on.
    pub(crate) fn poke(&self) {
        // Without a pause the note would only cause one attempt too many, later.
        if !self.is_drained() {
            self.shared.poked.notify_one();
        }
    }

    /// Goes on with what [`Publisher::freeze`] gave.
    pub(crate) fn thaw(address: &str, journal: Journal, frozen: FrozenQueue) -> Self {
        Self::resume(address, frozen.0, Some(journal), RETRY)
    }

    pub(crate) fn freeze(&self) -> FrozenQueue {
        FrozenQueue(self.shared.queue.borrow().iter().cloned().collect())
    }

    /// Queues an event, once it stands in the journal or is known not to.
    pub(crate) fn publish(&self, publication: Publication<'_>) {
        if self.task.is_none() {
            return;
        }
        let Publication { namespace, container, event, encoded: (topic, type_url, value), at_unix_ns } = publication;
        let kind = Kind::of(event);
        let request = wire::bytes(&forward_request(namespace, topic, type_url, value, at_unix_ns));
        let waiting = Waiting { request, kind, container: container.to_owned(), position: 0 };
        let mut queue = self.shared.queue.borrow_mut();
        queue.push_back(waiting);
        let dropped = keep_bounded(&mut queue);
        drop(queue);
        if dropped.any() {
            self.shared.journal.borrow_mut().stale = true;
            tracing::warn!(
                execs_exits = dropped.exec_exits,
                of_deleted_containers = dropped.of_deleted,
                others = dropped.others,
                "more than {BOUND} bytes of events wait for containerd: the oldest of the least use are dropped",
            );
        }
        self.shared.write_down();
        self.shared.changed.notify_one();
    }

    /// Whether all events are delivered.
    pub(crate) fn is_drained(&self) -> bool {
        self.shared.queue.borrow().is_empty()
    }
}

/// What the event service takes.
pub(crate) fn forward_request(
    namespace: &str,
    topic: &str,
    type_url: &str,
    value: Vec<u8>,
    at_unix_ns: u64,
) -> ForwardRequest {
    let event = Any { type_url: type_url.to_owned(), value, ..Any::default() };
    let envelope = Envelope {
        timestamp: MessageField::some(wire::timestamp(at_unix_ns)),
        namespace: namespace.to_owned(),
        topic: topic.to_owned(),
        event: MessageField::some(event),
        ..Envelope::default()
    };
    ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() }
}

/// Sends one event and waits for the acknowledgement: for the commands, which have no loop. An event that the service calls
/// invalid counts as taken, as in [`forward`].
///
/// # Errors
/// See [`AskError`].
pub(crate) fn forward_blocking(service: &mut Asker, event: &ForwardRequest, limit: Duration) -> Result<(), AskError> {
    match service.call(SERVICE, "Forward", event, limit) {
        Ok(_) | Err(AskError::No(Code::INVALID_ARGUMENT, _)) => Ok(()),
        Err(e) => Err(e),
    }
}

impl Shared {
    /// Brings the journal up to date, or sees to it that somebody does later.
    fn write_down(self: &Rc<Self>) {
        let mut keeper = self.journal.borrow_mut();
        let Err(e) = keeper.keep(&mut self.queue.borrow_mut()) else { return };
        if !keeper.failing {
            tracing::error!(error = %e, "cannot write down the events that wait, they are in memory alone; trying again");
            keeper.failing = true;
        }
        if keeper.retry.is_none() {
            keeper.retry = Some(OwnedTask::spawn(keep_trying(Rc::downgrade(self))));
        }
    }

    /// The head of the queue was acknowledged.
    fn delivered(self: &Rc<Self>) {
        let mut queue = self.queue.borrow_mut();
        let Some(taken) = queue.pop_front() else { return };
        let mut keeper = self.journal.borrow_mut();
        let Some(journal) = &mut keeper.journal else { return };
        if queue.is_empty() {
            journal.remove();
            keeper.stale = false;
            return;
        }
        journal.cut(taken.position);
        if journal.wants_clearing() {
            keeper.stale = true;
            drop((queue, keeper));
            self.write_down();
        }
    }
}

impl Keeper {
    fn keep(&mut self, queue: &mut VecDeque<Waiting>) -> io::Result<()> {
        let Some(journal) = self.journal.as_mut().filter(|_| !queue.is_empty()) else { return Ok(()) };
        // Only the last ones can be missing.
        let first = queue.iter().rposition(|waiting| waiting.position != 0).map_or(0, |at| at + 1);
        let missing = if self.stale { None } else { Some(queue.range_mut(first..)) };
        for waiting in missing.into_iter().flatten() {
            match journal.append(&waiting.request) {
                Ok(position) => waiting.position = position,
                Err(e) if matches!(e.kind(), io::ErrorKind::StaleNetworkFileHandle | io::ErrorKind::FileTooLarge) => {
                    self.stale = true;
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        if self.stale {
            let positions = journal.rewrite(queue.iter().map(|waiting| waiting.request.as_slice()))?;
            queue.iter_mut().zip(positions).for_each(|(waiting, position)| waiting.position = position);
            self.stale = false;
        }
        if self.failing {
            tracing::info!("the events that wait are written down at last");
            self.failing = false;
        }
        Ok(())
    }
}

async fn keep_trying(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(REWRITE).await;
        let Some(shared) = shared.upgrade() else { return };
        let mut keeper = shared.journal.borrow_mut();
        // Also if nothing waits any more.
        if keeper.keep(&mut shared.queue.borrow_mut()).is_ok() {
            // This very task; it ends here.
            let this = keeper.retry.take();
            drop(keeper);
            drop(this);
            return;
        }
    }
}

/// The queue of a [`Publisher`], written down.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenQueue(Vec<Waiting>);

/// How many events were dropped.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dropped {
    exec_exits: usize,
    of_deleted: usize,
    others: usize,
}

impl Dropped {
    fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// See the module's comment. Every so often many go, rather than one with each that comes.
fn keep_bounded(queue: &mut VecDeque<Waiting>) -> Dropped {
    let cost: usize = queue.iter().map(Waiting::cost).sum();
    if cost <= BOUND {
        return Dropped::default();
    }
    let mut excess = cost - BOUND / 4 * 3;
    let no_end = shed(queue, &mut excess, |_, waiting| waiting.kind == Kind::NoEnd);
    let lacks = queue.iter().enumerate().filter(|(_, waiting)| waiting.kind == Kind::OutOfMemory);
    let newest: BTreeMap<String, usize> = lacks.map(|(at, waiting)| (waiting.container.clone(), at)).collect();
    let older = |at, waiting: &Waiting| newest.get(&waiting.container).is_some_and(|newest| at < *newest);
    let lacks = shed(queue, &mut excess, |at, waiting| waiting.kind == Kind::OutOfMemory && older(at, waiting));
    let exec_exits = shed(queue, &mut excess, |_, waiting| waiting.kind == Kind::ExecExit);
    // A container that was made anew under the same id has a story that goes on.
    let deletions = queue.iter().enumerate().filter(|(_, waiting)| waiting.kind == Kind::Deletion);
    let deleted: BTreeMap<String, usize> = deletions.map(|(at, waiting)| (waiting.container.clone(), at)).collect();
    let before = |at, waiting: &Waiting| deleted.get(&waiting.container).is_some_and(|deleted| at < *deleted);
    let stories = shed(queue, &mut excess, |at, waiting| waiting.kind != Kind::Deletion && before(at, waiting));
    let deletions = shed(queue, &mut excess, |_, waiting| waiting.kind == Kind::Deletion);
    Dropped { exec_exits, of_deleted: stories + deletions, others: no_end + lacks }
}

/// Drops the oldest that may go until no excess is left, in bytes; how many. Never the head: it may be on its way.
fn shed(queue: &mut VecDeque<Waiting>, excess: &mut usize, may_go: impl Fn(usize, &Waiting) -> bool) -> usize {
    let (mut at, before) = (0, queue.len());
    queue.retain(|waiting| {
        let goes = *excess > 0 && at > 0 && may_go(at, waiting);
        at += 1;
        if goes {
            *excess = excess.saturating_sub(waiting.cost());
        }
        !goes
    });
    before - queue.len()
}

/// The pause after one of `retry`, when somebody has connected to us so long ago.
fn longer(retry: Duration, longest: Duration, since_poke: Option<Duration>) -> Duration {
    let is_coming_back = since_poke.is_some_and(|since| since < COMING_BACK.0);
    (retry * 2).min(if is_coming_back { COMING_BACK.1.min(longest) } else { longest })
}

async fn deliver(shared: Rc<Shared>, path: PathBuf, (shortest, longest): (Duration, Duration)) {
    let mut connection = None;
    let mut retry = shortest;
    let mut poked = None;
    loop {
        let head = shared.queue.borrow().front().map(|w| w.request.clone());
        let Some(head) = head else {
            shared.changed.notified().await;
            continue;
        };
        let was_connected = connection.is_some();
        match timeout(ACKNOWLEDGE, forward(&mut connection, &path, &head)).await {
            Ok(Ok(())) => {
                shared.delivered();
                retry = shortest;
            }
            failed => {
                let error = failed
                    .map_or_else(|_| "no answer".to_owned(), |r| r.err().map_or_else(String::new, |e| e.to_string()));
                tracing::debug!(error, "containerd does not take events, trying again");
                connection = None;
                if was_connected {
                    // containerd was restarted since the last event: the new one may be there already.
                    continue;
                }
                // Either may be dropped: a poke that comes too late only means one attempt more.
                retry = tokio::select! {
                    () = shared.poked.notified() => {
                        poked = Some(Instant::now());
                        shortest
                    }
                    () = tokio::time::sleep(retry) => longer(retry, longest, poked.map(|at| at.elapsed())),
                };
            }
        }
    }
}

/// A connection to the event service.
struct Client {
    stream: UnixStream,
    last_stream: u32,
}

/// Sends one event and waits for the acknowledgement. An event that containerd calls invalid counts as taken: it will
/// not get better.
async fn forward(connection: &mut Option<Client>, path: &Path, event: &[u8]) -> io::Result<()> {
    let client = match connection {
        Some(client) => client,
        None => {
            let stream = dial(path)?;
            connection.insert(Client { stream, last_stream: 0 })
        }
    };
    client.last_stream = if client.last_stream == 0 { 1 } else { client.last_stream + 2 };
    let stream = client.last_stream;
    let request = Request {
        service: SERVICE.to_owned(),
        method: "Forward".to_owned(),
        payload: event.to_vec(),
        timeout_nano: i64::try_from(ACKNOWLEDGE.as_nanos()).unwrap_or(0),
        ..Request::default()
    };
    let mut bytes = Vec::new();
    frame::append(&mut bytes, MESSAGE_TYPE_REQUEST, stream, &wire::bytes(&request));
    write_all(&client.stream, &bytes).await?;
    let response = read_response(&client.stream, stream).await?;
    match response.status.into_option() {
        None => Ok(()),
        Some(status) => match status.code.enum_value() {
            Ok(Code::OK) => Ok(()),
            Ok(Code::INVALID_ARGUMENT) => {
                tracing::warn!(error = status.message, "containerd calls an event invalid, dropping it");
                Ok(())
            }
            _ => Err(io::Error::other(status.message)),
        },
    }
}

fn dial(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // A non-blocking connect to a Unix socket succeeds or fails at once; a full backlog is a failure like others.
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path)?)?;
    UnixStream::from_std(fd.into())
}

async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.ready(Interest::WRITABLE).await?;
        match stream.try_write(bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The response on `stream`; answers to earlier, timed-out requests are passed over.
async fn read_response(stream: &UnixStream, id: u32) -> io::Result<Response> {
    let mut inbox = Vec::new();
    let mut buffer = [0; 512];
    loop {
        match frame::parse(&inbox) {
            Parsed::Frame(header, whole) => {
                let payload = &inbox[whole - header.length as usize..whole];
                if header.stream_id == id && header.type_ == MESSAGE_TYPE_RESPONSE {
                    return Response::parse_from_bytes(payload).map_err(io::Error::other);
                }
                inbox.drain(..whole);
            }
            Parsed::Oversize(_) => return Err(io::ErrorKind::InvalidData.into()),
            Parsed::Incomplete => {
                stream.ready(Interest::READABLE).await?;
                match stream.try_read(&mut buffer) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => inbox.extend_from_slice(&buffer[..n]),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use protobuf::EnumOrUnknown;
    use tokio::net::UnixListener;
    use tokio::task::LocalSet;
    use ttrpc::proto::Status;

    use super::*;
    use crate::journal::LeftBehind;
    use crate::lifecycle::{Exit, ExitStatus};
    use crate::record;

    const NEVER: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(3600));
    const AT_ONCE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(1));

    /// Runs a test in the shim's kind of async runtime, with a socket of its own.
    fn with_socket<F: Future<Output = ()>>(name: &str, test: impl FnOnce(PathBuf) -> F) {
        let path = std::env::temp_dir().join(format!("hf-publish-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(LocalSet::new().run_until(async {
            timeout(Duration::from_secs(30), test(path.clone())).await.unwrap();
        }));
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_dir_all(path.with_extension("d"));
    }

    /// Its journal stands beside the socket.
    fn journal(path: &Path) -> Journal {
        Journal::new(&path.with_extension("d"), "ab", &record::boot_id())
    }

    fn publisher(path: &Path, retry: (Duration, Duration)) -> Publisher {
        Publisher::resume(path.to_str().unwrap(), Vec::new(), Some(journal(path)), retry)
    }

    /// Exits, told apart by their time.
    fn publish(publisher: &Publisher, numbers: impl IntoIterator<Item = u64>) {
        let exit = Exit { status: ExitStatus::exited(0), at_unix_ns: 0 };
        let event = &Event::Exited { process: ProcessId::Init, pid: 1, exit };
        for at_unix_ns in numbers {
            let encoded = ("/tasks/exit", "containerd.events.TaskExit", Vec::new());
            publisher.publish(Publication { namespace: "ns", container: "c", event, encoded, at_unix_ns });
        }
    }

    fn number(event: &[u8]) -> i32 {
        ForwardRequest::parse_from_bytes(event).unwrap().envelope.timestamp.nanos
    }

    /// What whoever came after the death of this process would find.
    fn written_down(path: &Path) -> Vec<i32> {
        let files = std::fs::read_dir(path.with_extension("d")).into_iter().flatten().flatten();
        let left = files.filter_map(|file| LeftBehind::take(&file.path(), Instant::now()).unwrap());
        left.flat_map(|left| left.waiting().map(number).collect::<Vec<_>>()).collect()
    }

    /// The next request on a connection: its stream and the event's number. None at the end.
    async fn take(stream: &UnixStream, inbox: &mut Vec<u8>) -> Option<(u32, i32)> {
        loop {
            if let Parsed::Frame(header, whole) = frame::parse(inbox) {
                let request = Request::parse_from_bytes(&inbox[whole - header.length as usize..whole]).unwrap();
                assert_eq!((request.service.as_str(), request.method.as_str()), (SERVICE, "Forward"));
                inbox.drain(..whole);
                return Some((header.stream_id, number(&request.payload)));
            }
            stream.readable().await.unwrap();
            let mut buffer = [0; 4096];
            match stream.try_read(&mut buffer) {
                Ok(0) => return None,
                Ok(n) => inbox.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }

    async fn answer(stream: &UnixStream, id: u32, code: Code) {
        let status = Status { code: EnumOrUnknown::new(code), ..Status::default() };
        let response = Response { status: MessageField::some(status), ..Response::default() };
        let mut bytes = Vec::new();
        frame::append(&mut bytes, MESSAGE_TYPE_RESPONSE, id, &wire::bytes(&response));
        write_all(stream, &bytes).await.unwrap();
    }

    /// Answers with these codes one after the other, and gives the numbers that it was asked to take.
    async fn serve(listener: &UnixListener, codes: &[Code]) -> Vec<i32> {
        let mut seen = Vec::new();
        while seen.len() < codes.len() {
            let (stream, _) = listener.accept().await.unwrap();
            let mut inbox = Vec::new();
            while seen.len() < codes.len()
                && let Some((id, number)) = take(&stream, &mut inbox).await
            {
                answer(&stream, id, codes[seen.len()]).await;
                seen.push(number);
            }
        }
        seen
    }

    async fn drained(publisher: &Publisher) {
        while !publisher.is_drained() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn a_retried_event_is_not_overtaken() {
        with_socket("order", |path| async move {
            let listener = UnixListener::bind(&path).unwrap();
            let publisher = publisher(&path, AT_ONCE);
            publish(&publisher, 1..=3);
            let codes = [Code::OK, Code::UNAVAILABLE, Code::UNKNOWN, Code::OK, Code::OK];
            assert_eq!(serve(&listener, &codes).await, [1, 2, 2, 2, 3]);
        });
    }

    #[test]
    fn an_event_that_containerd_calls_invalid_is_dropped() {
        with_socket("invalid", |path| async move {
            let listener = UnixListener::bind(&path).unwrap();
            let publisher = publisher(&path, AT_ONCE);
            publish(&publisher, 1..=2);
            assert_eq!(serve(&listener, &[Code::INVALID_ARGUMENT, Code::OK]).await, [1, 2]);
        });
    }

    #[test]
    fn an_event_whose_acknowledgement_was_lost_is_sent_again() {
        with_socket("lost", |path| async move {
            let listener = UnixListener::bind(&path).unwrap();
            let publisher = publisher(&path, AT_ONCE);
            publish(&publisher, 1..=2);
            let (stream, _) = listener.accept().await.unwrap();
            assert_eq!(take(&stream, &mut Vec::new()).await.unwrap().1, 1);
            drop(stream);
            assert_eq!(serve(&listener, &[Code::OK, Code::OK]).await, [1, 2]);
        });
    }

    #[test]
    fn a_connection_to_us_ends_the_pause() {
        with_socket("poke", |path| async move {
            let publisher = publisher(&path, NEVER);
            publish(&publisher, [7]);
            // It finds nobody, and rests for an hour.
            tokio::task::yield_now().await;
            let listener = UnixListener::bind(&path).unwrap();
            publisher.poke();
            assert_eq!(serve(&listener, &[Code::OK]).await, [7]);
            drained(&publisher).await;
        });
    }

    #[test]
    fn while_containerd_may_be_coming_back_no_pause_is_long() {
        let longest = |since: Option<Duration>| {
            let mut pause = RETRY.0;
            (0..20).for_each(|_| pause = longer(pause, RETRY.1, since));
            pause
        };
        assert_eq!(longest(None), RETRY.1);
        assert_eq!(longest(Some(Duration::from_secs(1))), COMING_BACK.1);
        assert_eq!(longest(Some(COMING_BACK.0)), RETRY.1);
        assert!(longer(RETRY.1, RETRY.1, Some(Duration::ZERO)) == COMING_BACK.1, "an old pause ends, too");
    }

    #[test]
    fn what_was_not_acknowledged_before_a_freeze_is_sent_after_it() {
        with_socket("freeze", |path| async move {
            let before = publisher(&path, NEVER);
            publish(&before, 1..=2);
            let frozen = serde_json::to_vec(&before.freeze()).unwrap();
            drop(before);
            let listener = UnixListener::bind(&path).unwrap();
            let frozen = serde_json::from_slice(&frozen).unwrap();
            let after = Publisher::thaw(path.to_str().unwrap(), journal(&path), frozen);
            assert_eq!(written_down(&path), [1, 2]);
            assert_eq!(serve(&listener, &[Code::OK, Code::OK]).await, [1, 2]);
            drained(&after).await;
        });
    }

    #[test]
    fn without_an_addressee_nothing_waits() {
        let path = std::env::temp_dir().join(format!("hf-publish-{}-nobody", std::process::id()));
        let publisher = Publisher::start("", journal(&path));
        publish(&publisher, 1..=2);
        assert!(publisher.is_drained());
        assert!(!path.with_extension("d").exists(), "nothing is written either");
    }

    #[test]
    fn what_waits_is_written_down_and_what_is_delivered_is_not_any_more() {
        with_socket("journal", |path| async move {
            let publisher = publisher(&path, AT_ONCE);
            publish(&publisher, 1..=3);
            assert_eq!(written_down(&path), [1, 2, 3], "before anybody was asked to take it");
            let listener = UnixListener::bind(&path).unwrap();
            assert_eq!(serve(&listener, &[Code::OK, Code::UNAVAILABLE]).await, [1, 2]);
            assert_eq!(written_down(&path), [2, 3]);
            publish(&publisher, [4]);
            assert_eq!(serve(&listener, &[Code::OK, Code::OK, Code::OK]).await, [2, 3, 4]);
            drained(&publisher).await;
            assert_eq!(std::fs::read_dir(path.with_extension("d")).unwrap().count(), 0, "no file is left");
        });
    }

    #[test]
    fn a_journal_that_cannot_be_written_catches_up() {
        with_socket("no-journal", |path| async move {
            tokio::time::pause();
            // A file where the directory should be.
            std::fs::write(path.with_extension("d"), "").unwrap();
            let publisher = publisher(&path, NEVER);
            publish(&publisher, 1..=2);
            assert!(!publisher.is_drained(), "they wait all the same");
            std::fs::remove_file(path.with_extension("d")).unwrap();
            while publisher.shared.journal.borrow().retry.is_some() {
                tokio::time::sleep(REWRITE).await;
            }
            assert_eq!(written_down(&path), [1, 2]);
            publish(&publisher, [3]);
            assert_eq!(written_down(&path), [1, 2, 3]);
        });
    }

    #[test]
    fn a_journal_that_was_removed_is_made_anew_with_all_that_waits() {
        with_socket("tidied", |path| async move {
            let publisher = publisher(&path, NEVER);
            publish(&publisher, 1..=2);
            std::fs::remove_dir_all(path.with_extension("d")).unwrap();
            publish(&publisher, [3]);
            assert_eq!(written_down(&path), [1, 2, 3]);
        });
    }

    fn waiting(kind: Kind, container: &str, number: u8) -> Waiting {
        Waiting { request: vec![number; BOUND / 8], kind, container: container.to_owned(), position: 0 }
    }

    fn numbers(queue: &VecDeque<Waiting>) -> Vec<u8> {
        queue.iter().map(|w| w.request[0]).collect()
    }

    #[test]
    fn a_queue_that_is_too_long_loses_what_is_of_the_least_use_the_oldest_first_and_never_its_head() {
        use Kind::{Container, Deletion, ExecExit, NoEnd, OutOfMemory};
        let kinds = [NoEnd, Container, ExecExit, NoEnd, NoEnd, OutOfMemory, NoEnd];
        let mut queue: VecDeque<_> = (0..).zip(kinds).map(|(n, kind)| waiting(kind, "c", n)).collect();
        assert!(!keep_bounded(&mut queue).any(), "as much as the bound");
        queue.push_back(waiting(OutOfMemory, "c", 7));
        assert_eq!(keep_bounded(&mut queue), Dropped { others: 3, ..Dropped::default() });
        assert_eq!(numbers(&queue), [0, 1, 2, 5, 7], "the head stays, though nobody would miss it");
        queue.extend((8..11).map(|n| waiting(OutOfMemory, "d", n)));
        assert_eq!(keep_bounded(&mut queue), Dropped { others: 3, ..Dropped::default() });
        assert_eq!(numbers(&queue), [0, 1, 2, 7, 10], "the newest of each container says enough");
        queue.extend((11..14).map(|n| waiting(ExecExit, "c", n)));
        assert_eq!(keep_bounded(&mut queue), Dropped { exec_exits: 3, ..Dropped::default() });
        assert_eq!(numbers(&queue), [0, 1, 7, 10, 13]);
        queue.extend([waiting(Deletion, "c", 14), waiting(Container, "c", 15), waiting(Container, "e", 16)]);
        assert_eq!(keep_bounded(&mut queue), Dropped { exec_exits: 1, of_deleted: 2, ..Dropped::default() });
        assert_eq!(numbers(&queue), [0, 10, 14, 15, 16], "what came after the deletion is another container's");
    }

    #[test]
    fn no_number_of_containers_that_come_and_go_makes_the_queue_grow() {
        let mut queue = VecDeque::new();
        let lives = (BOUND / 100) as u64;
        for life in 0..lives {
            let container = format!("c{life}");
            for kind in [Kind::Container, Kind::Container, Kind::ExecExit, Kind::Container, Kind::Deletion] {
                queue.push_back(Waiting { request: vec![0; 64], kind, container: container.clone(), position: 0 });
                keep_bounded(&mut queue);
            }
        }
        assert!(queue.iter().map(Waiting::cost).sum::<usize>() <= BOUND);
        assert_eq!(queue.back().unwrap().container, format!("c{}", lives - 1), "the newest are there");
    }

    #[test]
    fn the_file_of_a_queue_that_is_cut_stays_as_short_as_the_queue() {
        with_socket("bound", |path| async move {
            let publisher = publisher(&path, NEVER);
            let exit = Exit { status: ExitStatus::exited(0), at_unix_ns: 0 };
            let process = ProcessId::Exec(crate::lifecycle::ExecId("e".to_owned()));
            let event = &Event::Exited { process, pid: 1, exit };
            for at_unix_ns in 0..20_000 {
                let encoded = ("/tasks/exit", "containerd.events.TaskExit", vec![0; 100]);
                publisher.publish(Publication { namespace: "ns", container: "c", event, encoded, at_unix_ns });
            }
            let queued: Vec<_> = publisher.shared.queue.borrow().iter().map(|w| number(&w.request)).collect();
            assert_eq!(*queued.last().unwrap(), 19_999);
            assert_eq!(written_down(&path), queued);
            let file = std::fs::read_dir(path.with_extension("d")).unwrap().next().unwrap().unwrap();
            assert!(file.metadata().unwrap().len() <= BOUND as u64);
        });
    }
}
