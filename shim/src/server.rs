//! RPC in, request to the driver, reply back. Makes no decision.
//!
//! Each connection is a plain structure: what was read and is no whole frame yet, what was answered and is not written
//! yet, the last stream. Its task only waits for the socket, so it can be frozen at any byte.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::sys::socket::{Backlog, getsockopt, listen, sockopt::PeerCredentials};
use nix::unistd::{getegid, geteuid};
use protobuf::Message;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use ttrpc::proto::{Code, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MessageHeader, Request};

use crate::driver::Shim;
use crate::frame::{self, Parsed};
use crate::freeze::FdBag;
use crate::lifecycle::{Asker, ProcessId, SandboxVerb, TaskId, Verb};
use crate::owned_task::OwnedTask;
use crate::sys::ready;
use crate::wire::{self, Decoded, RpcError};

/// How much is read from one connection before others have their turn, in bytes.
const TURN: usize = 256 << 10;
/// How much may wait for a client that does not read its answers, in bytes, before its requests are no longer read.
const OUTBOX_LIMIT: usize = 4 << 20;
/// Between two looks whether a request is to be held back.
const HOLD: Duration = Duration::from_millis(4);
/// How long to wait when the kernel has no more fds for new connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A client's connection.
pub(crate) struct Connection {
    stream: Rc<AsyncFd<UnixStream>>,
    /// Read, less than a frame.
    inbox: Vec<u8>,
    /// How much of an oversize frame's payload is still to be passed over.
    skip: usize,
    /// Answered, not yet written.
    outbox: Vec<u8>,
    last_stream: u32,
    /// It was asked here that the sandbox be shut down.
    ends_with_answer: bool,
    patience: Patience,
    wake: Rc<Notify>,
    _task: OwnedTask,
}

/// A [`Connection`] written down.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FrozenConnection {
    stream: String,
    inbox: Vec<u8>,
    skip: usize,
    outbox: Vec<u8>,
    last_stream: u32,
}

/// How often the same question may be held back.
///
/// A manager that is back asks for the state of what has ended meanwhile, opens its output, asks twice more and deletes it. The
/// clients of containerd 1.6 to 2.1, CRI's and dockerd's among them, do not wait until the output is open: they cancel the
/// opening just before they delete, and the last words are lost. So these questions give the opening some time.
#[derive(Debug, Default)]
struct Patience {
    /// How often a question for the state of a container was held back.
    looks: BTreeMap<TaskId, u32>,
    /// The question that was held back long enough.
    released: u32,
}

impl Patience {
    /// So many times [`HOLD`], for one question.
    const LOOKS: u32 = 5;
    /// So many questions of a connection about a container.
    const QUESTIONS: u32 = 4;

    /// Whether to look once more before the question of this stream is answered.
    fn has_another_look(&mut self, stream: u32, task: TaskId) -> bool {
        if self.released == stream {
            return false;
        }
        let looks = self.looks.entry(task).or_default();
        if *looks == Self::LOOKS * Self::QUESTIONS {
            return false;
        }
        *looks += 1;
        if (*looks).is_multiple_of(Self::LOOKS) {
            self.released = stream;
        }
        true
    }
}

/// What a connection waits for.
enum Pump {
    Wait(Interest),
    /// What is next is to be looked at a moment later.
    Hold,
    /// There may be more to read.
    Again,
    Closed,
}

impl Connection {
    pub(crate) fn open(shim: &Weak<Shim>, id: u64, stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = Rc::new(ready::register(stream, Interest::READABLE | Interest::WRITABLE)?);
        let wake = Rc::new(Notify::new());
        let task = OwnedTask::spawn(attend(shim.clone(), id, stream.clone(), wake.clone()));
        let (inbox, outbox) = (Vec::new(), Vec::new());
        Ok(Self {
            stream,
            inbox,
            skip: 0,
            outbox,
            last_stream: 0,
            ends_with_answer: false,
            patience: Patience::default(),
            wake,
            _task: task,
        })
    }

    /// Queues a response and tries to write it at once.
    pub(crate) fn respond(&mut self, stream: u32, payload: &[u8]) {
        frame::append_response(&mut self.outbox, stream, payload);
        // A failure is seen by the connection's task too, and ends it there.
        if self.flush().is_err() || !self.outbox.is_empty() {
            self.wake.notify_one();
        }
    }

    pub(crate) fn has_unwritten(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether the next request asks for the state of one of these containers, and is to wait; see [`Patience`]. It stays in the
    /// inbox, so that a frozen connection has it.
    pub(crate) fn holds_back(&mut self, unread: &[TaskId]) -> bool {
        let Parsed::Frame(header, whole) = frame::parse(&self.inbox) else { return false };
        let Ok(request) = Request::parse_from_bytes(&self.inbox[MESSAGE_HEADER_LENGTH..whole]) else { return false };
        match wire::decode_request(&request.service, &request.method, &request.payload) {
            Ok(Decoded::Task { task, process: ProcessId::Init, verb: Verb::State, .. }) if unread.contains(&task) => {
                self.patience.has_another_look(header.stream_id, task)
            }
            _ => false,
        }
    }

    /// Whether its client is to end it: clients in Go (ttrpc 1.2) that find an answer and the end of the connection in one
    /// moment take either, and containerd 2.1 calls a sandbox's Shutdown failed that had no answer. A task's it does not.
    pub(crate) fn is_to_be_ended_by_client(&self) -> bool {
        self.ends_with_answer
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        let outcome = loop {
            if written == self.outbox.len() {
                break Ok(());
            }
            match self.stream.get_ref().write(&self.outbox[written..]) {
                Ok(n) => written += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    clear(&self.stream, Interest::WRITABLE);
                    break Ok(());
                }
                Err(e) => break Err(e),
            }
        };
        self.outbox.drain(..written);
        if self.outbox.is_empty() {
            self.outbox = Vec::new();
        }
        outcome
    }

    /// Reads what there is, up to a turn's worth: whether there may be more, none at the end.
    fn fill(&mut self) -> io::Result<Option<bool>> {
        let mut buffer = [0; 4096];
        let mut total = 0;
        while total < TURN {
            match self.stream.get_ref().read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => {
                    total += n;
                    let skipped = n.min(self.skip);
                    self.skip -= skipped;
                    self.inbox.extend_from_slice(&buffer[skipped..n]);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    clear(&self.stream, Interest::READABLE);
                    return Ok(Some(false));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(Some(true))
    }

    /// The next whole request of the inbox.
    fn next_frame(&mut self) -> Option<(MessageHeader, Result<Vec<u8>, RpcError>)> {
        match frame::parse(&self.inbox) {
            Parsed::Incomplete => None,
            Parsed::Frame(header, whole) => {
                let payload = self.inbox[MESSAGE_HEADER_LENGTH..whole].to_vec();
                self.consume(whole);
                Some((header, Ok(payload)))
            }
            Parsed::Oversize(header) => {
                let whole = MESSAGE_HEADER_LENGTH + header.length as usize;
                self.skip = whole.saturating_sub(self.inbox.len());
                self.consume(whole.min(self.inbox.len()));
                let text = format!("a message of {} bytes exceeds the limit of {MESSAGE_LENGTH_MAX}", header.length);
                Some((header, Err((Code::RESOURCE_EXHAUSTED, text))))
            }
        }
    }

    fn consume(&mut self, count: usize) {
        self.inbox.drain(..count);
        if self.inbox.is_empty() {
            self.inbox = Vec::new();
        }
    }

    pub(crate) fn freeze(&self, id: u64, bag: &mut FdBag) -> io::Result<FrozenConnection> {
        Ok(FrozenConnection {
            stream: bag.put(format!("connection{id}"), self.stream.get_ref())?,
            inbox: self.inbox.clone(),
            skip: self.skip,
            outbox: self.outbox.clone(),
            last_stream: self.last_stream,
        })
    }

    pub(crate) fn thaw(shim: &Weak<Shim>, id: u64, frozen: FrozenConnection, bag: &mut FdBag) -> io::Result<Self> {
        let stream = UnixStream::from(bag.take(&frozen.stream)?);
        let mut this = Self::open(shim, id, stream)?;
        this.inbox = frozen.inbox;
        this.skip = frozen.skip;
        this.outbox = frozen.outbox;
        this.last_stream = frozen.last_stream;
        Ok(this)
    }
}

fn clear(stream: &AsyncFd<UnixStream>, interest: Interest) {
    let _ = stream.try_io(interest, |_| Err::<(), _>(ErrorKind::WouldBlock.into()));
}

/// The task of a connection.
async fn attend(shim: Weak<Shim>, id: u64, stream: Rc<AsyncFd<UnixStream>>, wake: Rc<Notify>) {
    loop {
        let Some(strong) = shim.upgrade() else { return };
        match pump(&strong, id) {
            Pump::Closed => {
                strong.disconnected(id);
                return;
            }
            Pump::Again => tokio::task::yield_now().await,
            Pump::Hold => {
                drop(strong);
                tokio::time::sleep(HOLD).await;
            }
            // Both branches may be dropped: the next pump looks at both directions again.
            Pump::Wait(interest) => {
                drop(strong);
                tokio::select! {
                    _ = stream.ready(interest) => {}
                    () = wake.notified() => {}
                }
            }
        }
    }
}

fn pump(shim: &Rc<Shim>, id: u64) -> Pump {
    let filled = shim.with_connection(id, |c| {
        c.flush()?;
        if c.outbox.len() > OUTBOX_LIMIT { Ok(Some(false)) } else { c.fill() }
    });
    let more = match filled {
        Some(Ok(Some(more))) => more,
        Some(Ok(None) | Err(_)) | None => return Pump::Closed,
    };
    loop {
        if shim.holds_back(id) {
            return Pump::Hold;
        }
        let Some(Some((header, payload))) = shim.with_connection(id, Connection::next_frame) else { break };
        handle_frame(shim, id, header, payload);
    }
    if more {
        return Pump::Again;
    }
    match shim.with_connection(id, |c| (c.has_unwritten(), c.outbox.len() > OUTBOX_LIMIT)) {
        None => Pump::Closed,
        Some((true, true)) => Pump::Wait(Interest::WRITABLE),
        Some((true, false)) => Pump::Wait(Interest::READABLE | Interest::WRITABLE),
        Some((false, _)) => Pump::Wait(Interest::READABLE),
    }
}

fn handle_frame(shim: &Rc<Shim>, id: u64, header: MessageHeader, payload: Result<Vec<u8>, RpcError>) {
    // Data belongs to streaming calls, of which there are none; unknown types are for the future.
    if header.type_ != MESSAGE_TYPE_REQUEST {
        return;
    }
    let asker = Asker { connection: id, stream: header.stream_id };
    let accepted = payload.and_then(|payload| {
        shim.with_connection(id, |c| c.accept_stream(header.stream_id)).unwrap_or(Ok(()))?;
        Request::parse_from_bytes(&payload)
            .map_err(|e| (Code::INVALID_ARGUMENT, format!("cannot decode the request: {e}")))
    });
    let request = match accepted {
        Ok(request) => request,
        Err(error) => return shim.respond(asker, Err(error)),
    };
    // A defect must not leave its client waiting for ever.
    let handled = catch_unwind(AssertUnwindSafe(|| {
        // What has ended before the question must not be said to run, though the signal may be looked at after it.
        shim.reap();
        match wire::decode_request(&request.service, &request.method, &request.payload) {
            Ok(decoded) => {
                let is_last = matches!(decoded, Decoded::Sandbox { verb: SandboxVerb::Shutdown, .. });
                shim.with_connection(id, |c| c.ends_with_answer |= is_last);
                shim.request(asker, decoded, u64::try_from(request.timeout_nano).unwrap_or(0));
            }
            Err(error) => shim.respond(asker, Err(error)),
        }
    }));
    if handled.is_err() {
        tracing::error!(
            service = request.service,
            method = request.method,
            "a defect of the shim: the request panicked"
        );
        shim.respond(asker, Err((Code::INTERNAL, format!("{} panicked, see the shim's log", request.method))));
    }
}

impl Connection {
    /// Clients number their streams oddly and upwards.
    fn accept_stream(&mut self, stream: u32) -> Result<(), RpcError> {
        if stream.is_multiple_of(2) || stream <= self.last_stream {
            let text = format!("stream {stream} after {}: numbers must be odd and grow", self.last_stream);
            return Err((Code::INVALID_ARGUMENT, text));
        }
        self.last_stream = stream;
        Ok(())
    }
}

/// Accepts connections from root's own (contract 1.9).
pub(crate) async fn accept(shim: Weak<Shim>, listener: Rc<AsyncFd<UnixListener>>) {
    loop {
        match listener.get_ref().accept() {
            Ok((stream, _)) => {
                let Some(shim) = shim.upgrade() else { return };
                match check_peer(&stream).and_then(|()| shim.connected(stream)) {
                    Ok(()) => {}
                    Err(e) => tracing::warn!(error = %e, "a connection was refused"),
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let _ = listener.try_io(Interest::READABLE, |_| Err::<(), _>(ErrorKind::WouldBlock.into()));
                if listener.readable().await.is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => {
                tracing::error!(error = %e, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let peer = getsockopt(stream, PeerCredentials)?;
    if (peer.uid(), peer.gid()) == (geteuid().as_raw(), getegid().as_raw()) {
        return Ok(());
    }
    let text = format!("peer has uid {} and gid {}, only our own are served", peer.uid(), peer.gid());
    Err(io::Error::new(ErrorKind::PermissionDenied, text))
}

/// Makes a listening socket ready for [`accept`].
pub(crate) fn listener(fd: OwnedFd) -> io::Result<Rc<AsyncFd<UnixListener>>> {
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    // Once more: from now on clients see this process as their peer, and no longer `start`, which called it first.
    listen(&listener, Backlog::MAXCONN)?;
    Ok(Rc::new(ready::register(listener, Interest::READABLE)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_questions_for_a_containers_state_are_held_back_for_a_while_each() {
        let mut patience = Patience::default();
        let mut held = |stream, task: &str| {
            let task = TaskId(task.to_owned());
            (0..100).take_while(|_| patience.has_another_look(stream, task.clone())).count()
        };
        assert_eq!([1, 3, 5, 7, 9].map(|stream| held(stream, "a")), [5, 5, 5, 5, 0]);
        assert_eq!([11, 11, 13].map(|stream| held(stream, "b")), [5, 0, 5]);
    }
}
