//! Streams to a pod, as `kubectl exec`, `attach` and `port-forward` have them: over WebSocket, from the server at whose address
//! the plugin hints.
//!
//! A message's first byte says to which channel the rest belongs. Of `v4.channel.k8s.io`, the newest protocol that containerd
//! serves, no channel ends before all do: the end of the input is that of the stream.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;

use serde_json::Value;
use tungstenite::protocol::WebSocket;
use tungstenite::{ClientRequestBuilder, Message};

use super::api::{AttachRequest, AttachResponse, ExecRequest, ExecResponse, PortForwardRequest, PortForwardResponse};
use super::{Pod, PodContainer};
use crate::eventually::patience;

/// The protocol.
const PROTOCOL: &str = "v4.channel.k8s.io";

/// The channels of an exec and of an attachment.
pub mod channel {
    /// Standard input.
    pub const STDIN: u8 = 0;
    /// Standard output, and all that a terminal shows.
    pub const STDOUT: u8 = 1;
    /// Standard error.
    pub const STDERR: u8 = 2;
    /// What became of it, at the end: a `Status` of Kubernetes in JSON.
    pub const STATUS: u8 = 3;
    /// The terminal's size, in JSON.
    pub const SIZE: u8 = 4;
}

/// The channels of a forwarded port. Each begins with the port's number, two bytes.
pub mod port {
    /// What goes through the connection.
    pub const DATA: u8 = 0;
    /// Why there is none.
    pub const ERROR: u8 = 1;
}

/// A connection that a signal does not interrupt; the kernel takes no read up again that has a deadline.
#[derive(Debug)]
struct Connection(TcpStream);

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// An open stream.
#[derive(Debug)]
pub struct Stream {
    socket: WebSocket<Connection>,
    seen: BTreeMap<u8, Vec<u8>>,
}

impl Stream {
    #[track_caller]
    fn open(url: &str) -> Self {
        let address = url.strip_prefix("http://").expect("an address of plain HTTP");
        let connection = TcpStream::connect(address.split('/').next().expect("a host")).expect("a server listens");
        connection.set_read_timeout(Some(patience())).expect("a fresh socket");
        let request = ClientRequestBuilder::new(format!("ws://{address}").parse().expect("an address"));
        let (socket, _) = tungstenite::client(request.with_sub_protocol(PROTOCOL), Connection(connection))
            .unwrap_or_else(|e| panic!("no stream from {url}: {e}"));
        Self { socket, seen: BTreeMap::new() }
    }

    /// Sends to a channel.
    #[track_caller]
    pub fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = [&[channel], bytes].concat();
        self.socket.send(Message::binary(message)).unwrap_or_else(|e| panic!("cannot send to {channel}: {e}"));
    }

    /// Tells the size of the terminal.
    #[track_caller]
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.send(channel::SIZE, format!("{{\"Width\":{columns},\"Height\":{rows}}}").as_bytes());
    }

    /// Takes the next message; `None` if the other side has closed the stream.
    #[track_caller]
    fn read(&mut self) -> Option<()> {
        match self.socket.read() {
            Ok(Message::Binary(message)) => {
                let (&channel, bytes) = message.split_first().expect("a message is of a channel");
                self.seen.entry(channel).or_default().extend_from_slice(bytes);
                Some(())
            }
            // The daemon may say it twice.
            Ok(Message::Close(_)) => None,
            other => panic!("expected a message, got {other:?}; so far: {:?}", self.texts()),
        }
    }

    fn texts(&self) -> BTreeMap<u8, String> {
        self.seen.iter().map(|(channel, bytes)| (*channel, String::from_utf8_lossy(bytes).into_owned())).collect()
    }

    /// What has come on a channel.
    pub fn seen(&self, channel: u8) -> &[u8] {
        self.seen.get(&channel).map(Vec::as_slice).unwrap_or_default()
    }

    /// Waits until there is `text` in what has come on a channel.
    #[track_caller]
    pub fn wait_for(&mut self, channel: u8, text: &str) {
        let mut looked_at = 0;
        while !self.seen(channel)[looked_at..].windows(text.len()).any(|part| part == text.as_bytes()) {
            looked_at = self.seen(channel).len().saturating_sub(text.len());
            assert!(self.read().is_some(), "it ended without {text:?}: {:?}", self.texts());
        }
    }

    /// Reads to its end.
    #[track_caller]
    pub fn wait(&mut self) {
        while self.read().is_some() {}
    }

    /// Reads an exec's or an attachment's to its end: the exit code.
    #[track_caller]
    pub fn wait_status(&mut self) -> i32 {
        self.wait();
        let status: Value = serde_json::from_slice(self.seen(channel::STATUS)).expect("a status at the end");
        if status["status"] == "Success" {
            return 0;
        }
        let cause = &status["details"]["causes"][0];
        assert_eq!(cause["reason"], "ExitCode", "{status}");
        cause["message"].as_str().and_then(|code| code.parse().ok()).expect("a number")
    }

    /// Closes it.
    #[track_caller]
    pub fn close(mut self) {
        self.socket.close(None).expect("an open stream");
        self.wait();
    }
}

impl PodContainer<'_> {
    /// Runs a shell script in it, with input and all output in the stream, or with a terminal.
    #[track_caller]
    pub fn stream_exec(&self, script: &str, tty: bool) -> Stream {
        let request = ExecRequest {
            container_id: self.id.clone(),
            cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
            ..ExecRequest::default()
        };
        Stream::open(&self.cri.ok::<ExecResponse>("Exec", &request).url)
    }

    /// Attaches to what it takes in and prints, or to its terminal.
    #[track_caller]
    pub fn attach(&self, tty: bool) -> Stream {
        let request = AttachRequest {
            container_id: self.id.clone(),
            stdin: true,
            tty,
            stdout: true,
            stderr: !tty,
            ..AttachRequest::default()
        };
        Stream::open(&self.cri.ok::<AttachResponse>("Attach", &request).url)
    }
}

impl Pod<'_> {
    /// Connects to a port in it.
    #[track_caller]
    pub fn forward(&self, port: u16) -> Stream {
        let request = PortForwardRequest {
            pod_sandbox_id: self.id.clone(),
            port: vec![port.into()],
            ..PortForwardRequest::default()
        };
        Stream::open(&self.cri.ok::<PortForwardResponse>("PortForward", &request).url)
    }
}
