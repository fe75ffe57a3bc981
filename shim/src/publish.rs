//! Events to containerd: in order, at least once, as long as it takes (contract 4).
//!
//! The head of the queue stays there until containerd has acknowledged it, so a containerd that is away for an hour gets
//! every event when it is back, and nothing overtakes anything. Nobody who publishes ever waits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

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

use crate::frame::{self, Parsed};
use crate::owned_task::OwnedTask;
use crate::wire;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// How long one event may take to be acknowledged.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);
/// The pause before the next attempt.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How many bytes of events may wait before those that nobody misses are dropped, oldest first.
const BOUND: usize = 1 << 20;

/// An event that waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Waiting {
    /// An encoded `ForwardRequest`.
    request: Vec<u8>,
    /// Its loss changes nobody's idea of which processes live: everything but exits and deletes.
    droppable: bool,
}

pub(crate) struct Publisher {
    shared: Rc<Shared>,
    task: Option<OwnedTask>,
}

struct Shared {
    queue: RefCell<VecDeque<Waiting>>,
    changed: Notify,
}

impl Publisher {
    /// Publishes to the socket at `address`; with an empty one events are dropped, as their addressee is nobody.
    pub(crate) fn start(address: &str) -> Self {
        Self::resume(address, Vec::new())
    }

    /// What was sent and not acknowledged is sent again.
    fn resume(address: &str, waiting: Vec<Waiting>) -> Self {
        let shared = Rc::new(Shared { queue: RefCell::new(waiting.into()), changed: Notify::new() });
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        let task = (!address.is_empty()).then(|| OwnedTask::spawn(deliver(shared.clone(), path)));
        Self { shared, task }
    }

    /// Goes on with what [`Publisher::freeze`] gave.
    pub(crate) fn thaw(address: &str, frozen: FrozenQueue) -> Self {
        Self::resume(address, frozen.0)
    }

    pub(crate) fn freeze(&self) -> FrozenQueue {
        FrozenQueue(self.shared.queue.borrow().iter().cloned().collect())
    }

    /// Queues an event.
    pub(crate) fn publish(&self, namespace: &str, topic: &str, type_url: &str, value: Vec<u8>, now_unix_ns: u64) {
        if self.task.is_none() {
            return;
        }
        let event = Any { type_url: type_url.to_owned(), value, ..Any::default() };
        let envelope = Envelope {
            timestamp: MessageField::some(wire::timestamp(now_unix_ns)),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: MessageField::some(event),
            ..Envelope::default()
        };
        let request = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
        let droppable = !matches!(topic, "/tasks/exit" | "/tasks/delete");
        let mut queue = self.shared.queue.borrow_mut();
        queue.push_back(Waiting { request: wire::bytes(&request), droppable });
        keep_bounded(&mut queue);
        drop(queue);
        self.shared.changed.notify_one();
    }

    /// Whether all events are delivered.
    pub(crate) fn is_drained(&self) -> bool {
        self.shared.queue.borrow().is_empty()
    }
}

/// The queue of a [`Publisher`], written down.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenQueue(Vec<Waiting>);

fn keep_bounded(queue: &mut VecDeque<Waiting>) {
    let mut bytes: usize = queue.iter().map(|w| w.request.len()).sum();
    while bytes > BOUND {
        // Not the head: it may be on its way.
        let Some(at) = queue.iter().skip(1).position(|w| w.droppable) else { return };
        if let Some(dropped) = queue.remove(at + 1) {
            bytes -= dropped.request.len();
            tracing::warn!("an event was dropped: too many wait for containerd");
        }
    }
}

async fn deliver(shared: Rc<Shared>, path: PathBuf) {
    let mut connection = None;
    let mut retry = RETRY.0;
    loop {
        let head = shared.queue.borrow().front().map(|w| w.request.clone());
        let Some(head) = head else {
            shared.changed.notified().await;
            continue;
        };
        match timeout(ACKNOWLEDGE, forward(&mut connection, &path, &head)).await {
            Ok(Ok(())) => {
                shared.queue.borrow_mut().pop_front();
                retry = RETRY.0;
            }
            failed => {
                let error = failed
                    .map_or_else(|_| "no answer".to_owned(), |r| r.err().map_or_else(String::new, |e| e.to_string()));
                tracing::debug!(error, "containerd does not take events, trying again");
                connection = None;
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RETRY.1);
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
async fn forward(connection: &mut Option<Client>, path: &std::path::Path, event: &[u8]) -> io::Result<()> {
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

fn dial(path: &std::path::Path) -> io::Result<UnixStream> {
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
