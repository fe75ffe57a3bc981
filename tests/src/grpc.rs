//! gRPC's plain calls over a unix socket: one request, one response, one connection for each call.
//!
//! That is little enough to do over HTTP/2 itself: a message has five bytes in front (a flag of compression, its length), and
//! what became of the call is in the trailers.

use std::path::Path;
use std::{fmt, io};

use h2::client;
use http::{HeaderMap, Request};
use protobuf::Message;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::eventually::patience;

/// Why a call gave no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The other side said no.
    Status {
        /// gRPC's code, of those in [`code`].
        code: u32,
        /// What a user gets to see.
        message: String,
    },
    /// There is no other side, or it went away.
    Connection(String),
}

/// The codes of refusals that tests expect.
pub mod code {
    /// It was done.
    pub const OK: u32 = 0;
    /// What is asked for makes no sense.
    pub const INVALID_ARGUMENT: u32 = 3;
    /// The call, or what it asked for, took too long.
    pub const DEADLINE_EXCEEDED: u32 = 4;
    /// There is no such thing.
    pub const NOT_FOUND: u32 = 5;
    /// There is one already.
    pub const ALREADY_EXISTS: u32 = 6;
    /// The server has no such call.
    pub const UNIMPLEMENTED: u32 = 12;
}

impl CallError {
    /// The code of a refusal.
    ///
    /// # Panics
    /// If the call ended in another way.
    #[track_caller]
    pub fn code(&self) -> u32 {
        match self {
            Self::Status { code, .. } => *code,
            other => panic!("expected a status, got {other:?}"),
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status { code, message } => write!(f, "{message} (code {code})"),
            Self::Connection(what) => f.write_str(what),
        }
    }
}

impl From<io::Error> for CallError {
    fn from(e: io::Error) -> Self {
        Self::Connection(e.to_string())
    }
}

impl From<h2::Error> for CallError {
    fn from(e: h2::Error) -> Self {
        Self::Connection(e.to_string())
    }
}

/// Calls `method`, as `runtime.v1.RuntimeService/Status`, of the server at `socket`.
///
/// # Errors
/// [`CallError`], also after four times [`patience`].
///
/// # Panics
/// If the response is no message of the type.
pub fn call<T: Message>(socket: &Path, method: &str, request: &impl Message) -> Result<T, CallError> {
    call_with(socket, &[], method, request)
}

/// As [`call`], with metadata: names in small letters and what they are to mean.
///
/// # Errors
/// As for [`call`].
pub fn call_with<T: Message>(
    socket: &Path,
    metadata: &[(&str, &str)],
    method: &str,
    request: &impl Message,
) -> Result<T, CallError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let request = request.write_to_bytes().expect("a message encodes");
    let response = runtime.block_on(async {
        let exchange = exchange(socket, metadata, method, &request);
        let late = |_| CallError::Connection(format!("{method}: no answer within {:?}", 4 * patience()));
        timeout(4 * patience(), exchange).await.map_err(late)?
    })?;
    Ok(T::parse_from_bytes(&response).expect("a response is of the call's type"))
}

async fn exchange(
    socket: &Path,
    metadata: &[(&str, &str)],
    method: &str,
    message: &[u8],
) -> Result<Vec<u8>, CallError> {
    let (client, connection) = client::handshake(UnixStream::connect(socket).await?).await?;
    // It ends with the runtime.
    tokio::spawn(connection);
    let request = Request::post(format!("http://localhost/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = metadata.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let request = request.body(()).expect("a well-formed request");
    let (response, mut out) = client.ready().await?.send_request(request, false)?;
    let length = u32::try_from(message.len()).expect("a small message").to_be_bytes();
    out.send_data([&[0], &length[..], message].concat().into(), true)?;
    let (head, mut body) = response.await?.into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        bytes.extend_from_slice(&chunk);
    }
    // A refusal may come with no body and then has its trailers in the place of headers.
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    match number(&trailers, "grpc-status") {
        Some(0) => Ok(bytes.get(5..).unwrap_or_default().to_vec()),
        Some(code) => Err(CallError::Status { code, message: text(&trailers, "grpc-message") }),
        None => Err(CallError::Connection(format!("{method}: no status: {trailers:?}"))),
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u32> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// A header's text, whose `%` and what is not ASCII are written as `%` and two hexadecimal digits.
fn text(headers: &HeaderMap, name: &str) -> String {
    let raw = headers.get(name).map(http::HeaderValue::as_bytes).unwrap_or_default();
    let (mut plain, mut rest) = (Vec::new(), raw);
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = tail.get(..2).filter(|_| byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(value) => {
                plain.push(value);
                rest = &tail[2..];
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_a_refusal_is_decoded() {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-message", "100%25 %22\u{2a}%22 %E2%80%93 5%".parse().expect("a header"));
        assert_eq!(text(&headers, "grpc-message"), "100% \"*\" – 5%");
        assert_eq!(text(&headers, "absent"), "");
    }
}
