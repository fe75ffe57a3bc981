//! Questions to a shim, asked by `start` and `delete`: one at a time, blocking, each with a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use protobuf::Message;
use ttrpc::proto::{Code, MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, Request, Response};

use crate::frame::{self, Parsed};
use crate::wire;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody listens there.
    #[error("nobody listens there")]
    Refused,
    /// Somebody listens, and so many wait already that no more are let in: whoever it is, it lives.
    #[error("it takes no more connections")]
    Full,
    /// The other side ended the connection first.
    #[error("it ended the connection")]
    Ended,
    /// Nothing came in time.
    #[error("it did not answer in time")]
    Late,
    /// What listens there belongs to somebody else.
    #[error("it belongs to user {0}")]
    Stranger(u32),
    /// What came is no ttrpc response.
    #[error("it answers, but not as a shim does")]
    Nonsense,
    /// A shim's own refusal.
    #[error("it refuses: {1}")]
    No(Code, String),
    /// The kernel refuses.
    #[error(transparent)]
    Io(io::Error),
}

/// A connection to a shim.
pub(crate) struct Asker {
    stream: UnixStream,
    /// Of the next question; clients number their streams oddly and upwards.
    stream_id: u32,
    peer: u32,
}

impl Asker {
    /// Connects to a socket of our own user, without ever waiting for room in its backlog: a plain `connect(2)` would, for
    /// as long as the other side likes.
    ///
    /// # Errors
    /// [`AskError::Refused`], [`AskError::Full`], [`AskError::Stranger`], [`AskError::Io`].
    pub(crate) fn connect(path: &Path) -> Result<Self, AskError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let failed = |e: Errno| match e {
            Errno::ECONNREFUSED | Errno::ENOENT => AskError::Refused,
            Errno::EAGAIN => AskError::Full,
            e => AskError::Io(e.into()),
        };
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
        let address = UnixAddr::new(path).map_err(failed)?;
        connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).map_err(failed)?;
        let stream = UnixStream::from(fd);
        stream.set_nonblocking(false).map_err(AskError::Io)?;
        // Of whoever called listen(2) last: the server itself, see `server::listener`.
        let peer = getsockopt(&stream, PeerCredentials).map_err(|e| AskError::Io(e.into()))?;
        if peer.uid() != nix::unistd::geteuid().as_raw() {
            return Err(AskError::Stranger(peer.uid()));
        }
        Ok(Self { stream, stream_id: 1, peer: peer.pid().cast_unsigned() })
    }

    /// The pid of whoever listens there.
    pub(crate) fn peer(&self) -> u32 {
        self.peer
    }

    /// Calls a method and gives the encoded message that it answers.
    ///
    /// # Errors
    /// See [`AskError`]; after any but [`AskError::No`] the connection is of no more use.
    pub(crate) fn call(
        &mut self,
        service: &str,
        method: &str,
        message: &impl Message,
        limit: Duration,
    ) -> Result<Vec<u8>, AskError> {
        let until = Instant::now() + limit;
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: wire::bytes(message),
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
            ..Request::default()
        };
        let mut bytes = Vec::new();
        frame::append(&mut bytes, MESSAGE_TYPE_REQUEST, self.stream_id, &wire::bytes(&request));
        self.stream.set_write_timeout(Some(limit)).map_err(AskError::Io)?;
        self.stream.write_all(&bytes).map_err(lost)?;
        let answer = self.read_response(until)?;
        self.stream_id += 2;
        let status = answer.status.into_option().unwrap_or_default();
        match status.code.enum_value().unwrap_or(Code::UNKNOWN) {
            Code::OK => Ok(answer.payload),
            code => Err(AskError::No(code, status.message)),
        }
    }

    fn read_response(&mut self, until: Instant) -> Result<Response, AskError> {
        let mut bytes = Vec::new();
        loop {
            match frame::parse(&bytes) {
                Parsed::Incomplete => {}
                Parsed::Frame(header, whole)
                    if header.type_ == MESSAGE_TYPE_RESPONSE && header.stream_id == self.stream_id =>
                {
                    let payload = &bytes[MESSAGE_HEADER_LENGTH..whole];
                    return Response::parse_from_bytes(payload).map_err(|_| AskError::Nonsense);
                }
                Parsed::Frame(..) | Parsed::Oversize(_) => return Err(AskError::Nonsense),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AskError::Late);
            }
            self.stream.set_read_timeout(Some(left)).map_err(AskError::Io)?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(AskError::Ended),
                Ok(n) => bytes.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(lost(e)),
            }
        }
    }
}

fn lost(e: io::Error) -> AskError {
    match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => AskError::Late,
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => AskError::Ended,
        _ => AskError::Io(e),
    }
}
