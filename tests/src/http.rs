//! One question over HTTP, as daemons answer it at sockets of theirs: for who asks so often that starting a client each time
//! would be most of the work.

use std::io::{self, Read, Write};

/// Asks for `path` and returns the status and the body.
///
/// # Errors
/// Of reading and writing; [`io::ErrorKind::InvalidData`] for what is no answer.
pub fn get(mut stream: impl Read + Write, path: &str) -> io::Result<(u16, Vec<u8>)> {
    // In the older version an answer comes in one piece, up to the end of the stream (RFC 1945, 7.2.2).
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, String::from_utf8_lossy(&answer)))
}

fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    const END: &[u8] = b"\r\n\r\n";
    let end = answer.windows(END.len()).position(|window| window == END)?;
    let head = str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer[end + END.len()..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let answer = b"HTTP/1.0 404 Not Found\r\nContent-Type: text/plain\r\n\r\nnone\r\n\r\nsuch";
        assert_eq!(parse(answer), Some((404, b"none\r\n\r\nsuch".to_vec())));
        assert_eq!(parse(b"HTTP/1.0 200 OK\r\n\r\n"), Some((200, Vec::new())));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"SSH-2.0\r\n\r\n"), None);
    }
}
