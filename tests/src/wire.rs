//! ttrpc, frame by frame and blocking, so that a test can send what no proper client would.
//!
//! A frame is a header of ten bytes (payload length, stream id, type, flags; big endian) and the payload: a protobuf
//! `Request` one way, a `Response` the other.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protobuf::Message;
pub use ttrpc::proto::Code;
use ttrpc::proto::{MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, MessageHeader, Request, Response};

use crate::eventually::patience;

/// The length of a frame's header.
pub const HEADER: usize = 10;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which call it belongs to; chosen by the client.
    pub stream_id: u32,
    /// 1 request, 2 response, 3 data.
    pub kind: u8,
    /// 0 for plain calls.
    pub flags: u8,
    /// A protobuf message.
    pub payload: Vec<u8>,
}

/// Why a call gave no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The other side said no.
    Status {
        /// The gRPC code.
        code: Code,
        /// What a user gets to see.
        message: String,
    },
    /// The connection ended before the reply.
    Closed,
    /// No reply in time.
    Timeout,
}

impl CallError {
    /// The code of a refusal.
    ///
    /// # Panics
    /// If the call ended in another way.
    #[track_caller]
    pub fn code(&self) -> Code {
        match self {
            Self::Status { code, .. } => *code,
            other => panic!("expected a status, got {other:?}"),
        }
    }

    /// The text of a refusal; empty for other ends.
    pub fn message(&self) -> &str {
        match self {
            Self::Status { message, .. } => message,
            _ => "",
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Bytes that were read and are no whole frame yet.
    partial: Vec<u8>,
    /// Replies to calls that nobody has asked for yet.
    stash: HashMap<u32, Frame>,
    next_id: u32,
}

impl Frame {
    /// The frame of a request.
    pub fn request(stream_id: u32, service: &str, method: &str, payload: Vec<u8>) -> Self {
        let request =
            Request { service: service.into(), method: method.into(), payload, timeout_nano: 0, ..Request::default() };
        let payload = request.write_to_bytes().expect("a message encodes");
        Self { stream_id, kind: MESSAGE_TYPE_REQUEST, flags: 0, payload }
    }

    /// The frame of a response.
    pub fn response(stream_id: u32, response: &Response) -> Self {
        let payload = response.write_to_bytes().expect("a message encodes");
        Self { stream_id, kind: MESSAGE_TYPE_RESPONSE, flags: 0, payload }
    }

    /// As sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).expect("a test's frame is small");
        let header = MessageHeader { length, stream_id: self.stream_id, type_: self.kind, flags: self.flags };
        let mut bytes: Vec<u8> = header.into();
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Takes the first whole frame from `bytes`, if there is one.
    pub fn take(bytes: &mut Vec<u8>) -> Option<Self> {
        if bytes.len() < HEADER {
            return None;
        }
        let header = MessageHeader::from(&bytes[..HEADER]);
        let end = HEADER + header.length as usize;
        if bytes.len() < end {
            return None;
        }
        let payload = bytes[HEADER..end].to_vec();
        bytes.drain(..end);
        Some(Self { stream_id: header.stream_id, kind: header.type_, flags: header.flags, payload })
    }

    /// The status and payload of a response.
    ///
    /// # Errors
    /// [`CallError::Status`] for any status but OK.
    ///
    /// # Panics
    /// If the frame is no well-formed response.
    #[track_caller]
    pub fn result(&self) -> Result<Vec<u8>, CallError> {
        assert_eq!(self.kind, MESSAGE_TYPE_RESPONSE, "a response: {self:?}");
        let response = Response::parse_from_bytes(&self.payload).expect("a response is a protobuf Response");
        let status = response.status.into_option().unwrap_or_default();
        match status.code.enum_value().unwrap_or(Code::UNKNOWN) {
            Code::OK => Ok(response.payload),
            code => Err(CallError::Status { code, message: status.message }),
        }
    }
}

impl Connection {
    /// Connects to `unix://PATH` or a bare path.
    ///
    /// # Errors
    /// As connect(2).
    pub fn open(address: &str) -> io::Result<Self> {
        let stream = UnixStream::connect(address.strip_prefix("unix://").unwrap_or(address))?;
        Ok(Self { stream, partial: Vec::new(), stash: HashMap::new(), next_id: 1 })
    }

    /// The socket, for those who close one half or send no frames at all.
    pub fn socket(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// As write(2).
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// A stream id that was not used yet on this connection.
    pub fn fresh_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id += 2;
        id
    }

    /// Sends a request and returns its stream id, without waiting.
    ///
    /// # Panics
    /// If the message cannot be encoded. A closed connection shows when the reply is asked for.
    pub fn begin(&mut self, service: &str, method: &str, request: &impl Message) -> u32 {
        let id = self.fresh_id();
        let payload = request.write_to_bytes().expect("a message encodes");
        let _ = self.send(&Frame::request(id, service, method, payload).to_bytes());
        id
    }

    /// Waits for the reply to the call `id`.
    ///
    /// # Errors
    /// See [`CallError`].
    ///
    /// # Panics
    /// If the reply is not a `T`.
    #[track_caller]
    pub fn finish<T: Message>(&mut self, id: u32) -> Result<T, CallError> {
        self.finish_within(id, patience())
    }

    /// As [`Connection::finish`], with another deadline than [`patience`].
    #[track_caller]
    pub fn finish_within<T: Message>(&mut self, id: u32, deadline: Duration) -> Result<T, CallError> {
        let end = Instant::now() + deadline;
        while !self.stash.contains_key(&id) {
            let frame = self.read_frame(end.saturating_duration_since(Instant::now()))?;
            self.stash.insert(frame.stream_id, frame);
        }
        let payload = self.stash.remove(&id).expect("just seen").result()?;
        Ok(T::parse_from_bytes(&payload).expect("a reply has the type that its method promises"))
    }

    /// Whether the reply to the call `id` is there, without waiting for it.
    pub fn has_reply(&mut self, id: u32) -> bool {
        while let Ok(frame) = self.read_frame(Duration::ZERO) {
            self.stash.insert(frame.stream_id, frame);
        }
        self.stash.contains_key(&id)
    }

    /// Calls and waits.
    ///
    /// # Errors
    /// See [`CallError`].
    #[track_caller]
    pub fn call<T: Message>(&mut self, service: &str, method: &str, request: &impl Message) -> Result<T, CallError> {
        let id = self.begin(service, method, request);
        self.finish(id)
    }

    /// Reads the next frame, whatever it is.
    ///
    /// # Errors
    /// [`CallError::Closed`] at the end of the connection, [`CallError::Timeout`] after `deadline`; what was read of a
    /// frame by then is kept.
    pub fn read_frame(&mut self, deadline: Duration) -> Result<Frame, CallError> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(frame) = Frame::take(&mut self.partial) {
                return Ok(frame);
            }
            // Zero would mean no timeout at all.
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            self.stream.set_read_timeout(Some(left)).expect("a socket has a timeout");
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(CallError::Closed),
                Ok(n) => self.partial.extend_from_slice(&buffer[..n]),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(CallError::Timeout);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(CallError::Closed),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_only_when_whole() {
        let frame = Frame::request(3, "a.Service", "Method", vec![1, 2, 3]);
        let bytes = frame.to_bytes();
        for cut in 0..bytes.len() {
            assert_eq!(Frame::take(&mut bytes[..cut].to_vec()), None, "{cut} bytes");
        }
        let mut longer = [bytes.clone(), vec![9]].concat();
        assert_eq!(Frame::take(&mut longer), Some(frame));
        assert_eq!(longer, [9]);
    }

    #[test]
    fn the_header_is_as_ttrpc_has_it() {
        let bytes = Frame { stream_id: 0x0102, kind: 2, flags: 0, payload: vec![7; 5] }.to_bytes();
        assert_eq!(bytes[..HEADER], [0, 0, 0, 5, 0, 0, 1, 2, 2, 0]);
    }
}
