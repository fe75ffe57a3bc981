//! The journal of systemd, by its native protocol (`NATIVE_JOURNAL_PROTOCOL.md` of systemd): one datagram an entry, with
//! the fields that Docker's journald driver gives, so that the same queries find them.
//!
//! | field | value |
//! |---|---|
//! | `MESSAGE` | the piece of the line, byte for byte |
//! | `PRIORITY` | 6 for stdout, 3 for stderr |
//! | `CONTAINER_ID`, `CONTAINER_ID_FULL` | the first 12 digits of the id; all of it |
//! | `CONTAINER_NAME`, `CONTAINER_TAG`, `SYSLOG_IDENTIFIER`, `IMAGE_NAME` | as set; the identifier is the tag; no image, no field |
//! | `SYSLOG_TIMESTAMP` | when the first byte of the piece was read |
//! | `CONTAINER_PARTIAL_MESSAGE` | `true` for all pieces of a divided line but the last |
//! | `CONTAINER_PARTIAL_ID`, `_ORDINAL`, `_LAST` | of all its pieces: which line, which piece from 1 on, whether it is the last |
//! | `HOLDFAST_NAMESPACE`, `HOLDFAST_STREAM` | the container's namespace; `stdout` or `stderr` |
//!
//! In the queue an entry is its length in four bytes, little-endian, and the fields that differ from entry to entry; the
//! others are put before them when it is sent.

use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::{End, Piece};
use crate::io::stdio::JournalSettings;
use crate::rfc3339::{self, Fraction};

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Names another place, for tests.
const SOCKET_VARIABLE: &str = "HOLDFAST_JOURNAL_SOCKET";

/// How long one send may wait for room in journald's queue before it counts as failed. Shorter than what the rest of the
/// shim's work on files can be made to wait.
const PATIENCE: Duration = Duration::from_millis(200);

/// Digits of the short form of an id.
const SHORT_ID: usize = 12;

/// Appends an entry to a queue.
pub(super) fn write(out: &mut Vec<u8>, piece: &Piece<'_>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    field(out, "MESSAGE", piece.text);
    field(out, "PRIORITY", if piece.stream == "stderr" { b"3" } else { b"6" });
    field(out, "HOLDFAST_STREAM", piece.stream.as_bytes());
    let mut time = Vec::new();
    rfc3339::write(&mut time, piece.at, Fraction::Trimmed);
    field(out, "SYSLOG_TIMESTAMP", &time);
    if piece.before > 0 || piece.end == End::Rest {
        let last = piece.end != End::Rest;
        field(out, "CONTAINER_PARTIAL_ID", format!("{}-{}", piece.stream, piece.divided).as_bytes());
        field(out, "CONTAINER_PARTIAL_ORDINAL", (piece.before + 1).to_string().as_bytes());
        field(out, "CONTAINER_PARTIAL_LAST", last.to_string().as_bytes());
        if !last {
            field(out, "CONTAINER_PARTIAL_MESSAGE", b"true");
        }
    }
    let length = u32::try_from(out.len() - start - 4).expect("a piece has a bound");
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Appends a field as the protocol wants it: a value with a newline has its length before it.
fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// The fields that all entries of a container have.
fn common(settings: &JournalSettings) -> Vec<u8> {
    let JournalSettings { id, name, tag, image, namespace } = settings;
    let short = id.get(..SHORT_ID).unwrap_or(id);
    let tag = if tag.is_empty() { short } else { tag };
    let mut out = Vec::new();
    for (key, value) in [
        ("CONTAINER_ID", short),
        ("CONTAINER_ID_FULL", id),
        ("CONTAINER_NAME", name),
        ("CONTAINER_TAG", tag),
        ("SYSLOG_IDENTIFIER", tag),
        ("IMAGE_NAME", image),
        ("HOLDFAST_NAMESPACE", namespace),
    ] {
        if !value.is_empty() {
            field(&mut out, key, value.as_bytes());
        }
    }
    out
}

/// A way into the journal. The calls block for a moment at most. That there is no journal now is an error of the attempt,
/// not of the way: the next one looks again.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    common: Vec<u8>,
    socket: Option<UnixDatagram>,
    /// How much of the current batch is sent, in bytes of it: always whole entries.
    sent: usize,
}

impl Journal {
    /// For one container, at the machine's journal or where `HOLDFAST_JOURNAL_SOCKET` says.
    pub fn new(settings: &JournalSettings) -> Self {
        let named = std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
        Self::at(named.unwrap_or_else(|| SOCKET.into()).into(), settings)
    }

    fn at(path: PathBuf, settings: &JournalSettings) -> Self {
        Self { path, common: common(settings), socket: None, sent: 0 }
    }

    /// Takes over from an earlier image of this process, which had sent that much of the batch.
    #[must_use]
    pub fn resume(self, sent: usize) -> Self {
        Self { sent, ..self }
    }

    /// How much of the current batch is sent.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a batch of entries as [`Lines`](super::Lines) write them.
    ///
    /// # Errors
    /// What the kernel says: `ENOENT` and `ECONNREFUSED` while there is no journal, `EAGAIN` while it takes nothing. A part
    /// of the batch may be sent then: call again with the very same batch before any other.
    pub fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        while let Some((length, rest)) = batch[self.sent..].split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let entry = rest.get(..length).ok_or(ErrorKind::InvalidData)?;
            // A socket that failed may be one of a journal that has gone: the next attempt takes a new one.
            let socket = self.socket.take().map_or_else(|| connect(&self.path), Ok)?;
            send(&socket, &self.common, entry)?;
            self.socket = Some(socket);
            self.sent += 4 + length;
        }
        self.sent = 0;
        Ok(())
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends one entry: as it is, or, if it is too large for the socket, in a sealed memfd.
fn send(socket: &UnixDatagram, common: &[u8], entry: &[u8]) -> io::Result<()> {
    let parts = [IoSlice::new(common), IoSlice::new(entry)];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &parts, &[], MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::EMSGSIZE | Errno::ENOBUFS) => return send_in_file(socket, common, entry),
            Err(e) => return Err(e.into()),
        }
    }
}

fn send_in_file(socket: &UnixDatagram, common: &[u8], entry: &[u8]) -> io::Result<()> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = std::fs::File::from(memfd_create("holdfast-journal-entry", flags)?);
    file.write_all(common)?;
    file.write_all(entry)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    let fds: [RawFd; 1] = [file.as_raw_fd()];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[], &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;
    use std::io::{Read, Seek};

    use nix::sys::socket::{setsockopt, sockopt};

    use super::super::{Format, Lines, PIECE_LIMIT, sample};
    use super::*;

    fn settings() -> JournalSettings {
        JournalSettings {
            id: "0123456789abcdef".into(),
            name: "web".into(),
            tag: String::new(),
            image: String::new(),
            namespace: "default".into(),
        }
    }

    /// The fields of each entry in a queue.
    fn entries(mut queue: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        while let Some((length, rest)) = queue.split_first_chunk::<4>() {
            let (entry, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
            found.push(String::from_utf8_lossy(entry).into_owned());
            queue = rest;
        }
        assert!(queue.is_empty());
        found
    }

    /// A journal's socket, and the way to it.
    fn journal(name: &str) -> (UnixDatagram, Journal) {
        let path = std::env::temp_dir().join(format!("holdfast-journal-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        (socket, Journal::at(path, &settings()))
    }

    fn queue(lines: &[&str]) -> Vec<u8> {
        sample::stdout(Format::Journal, &[(lines.join("\n") + "\n").as_bytes()])
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = vec![0; 64 << 10];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn an_entry_has_its_own_fields() {
        let mut out = sample::stdout(Format::Journal, &[b"one\n\n"]);
        Lines::new(Format::Journal).push("stderr", sample::AT + 1, b"two\n", &mut out);
        let time = "SYSLOG_TIMESTAMP=2023-11-14T22:13:20";
        assert_eq!(
            entries(&out),
            [
                format!("MESSAGE=one\nPRIORITY=6\nHOLDFAST_STREAM=stdout\n{time}Z\n"),
                format!("MESSAGE=\nPRIORITY=6\nHOLDFAST_STREAM=stdout\n{time}Z\n"),
                format!("MESSAGE=two\nPRIORITY=3\nHOLDFAST_STREAM=stderr\n{time}.000000001Z\n"),
            ]
        );
    }

    #[test]
    fn pieces_of_a_line_are_counted_and_marked() {
        let full = "x".repeat(PIECE_LIMIT);
        let text = format!("{full}{full}y\nshort\n{full}z");
        let of = |entry: &String| {
            let fields = entry.lines().filter_map(|l| l.strip_prefix("CONTAINER_PARTIAL_"));
            fields.collect::<Vec<_>>().join(" ")
        };
        let marks: Vec<_> = entries(&sample::stdout(Format::Journal, &[text.as_bytes()])).iter().map(of).collect();
        assert_eq!(
            marks,
            [
                "ID=stdout-1 ORDINAL=1 LAST=false MESSAGE=true",
                "ID=stdout-1 ORDINAL=2 LAST=false MESSAGE=true",
                "ID=stdout-1 ORDINAL=3 LAST=true",
                "",
                "ID=stdout-2 ORDINAL=1 LAST=false MESSAGE=true",
                "ID=stdout-2 ORDINAL=2 LAST=true",
            ]
        );
    }

    #[test]
    fn a_value_with_a_newline_cannot_make_a_field() {
        let mut out = Vec::new();
        field(&mut out, "MESSAGE", b"a\nPRIORITY=0");
        assert_eq!(out, b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n");
    }

    #[test]
    fn the_container_is_named_as_docker_names_it() {
        let (socket, mut journal) = journal("common");
        journal.append(&queue(&["text"])).unwrap();
        let expected = "CONTAINER_ID=0123456789ab\nCONTAINER_ID_FULL=0123456789abcdef\nCONTAINER_NAME=web\n\
                        CONTAINER_TAG=0123456789ab\nSYSLOG_IDENTIFIER=0123456789ab\nHOLDFAST_NAMESPACE=default\n\
                        MESSAGE=text\n";
        assert!(received(&socket).starts_with(expected));
        let set = JournalSettings { tag: "t".into(), image: "i".into(), ..settings() };
        let text = String::from_utf8(common(&set)).unwrap();
        assert!(text.contains("CONTAINER_TAG=t\nSYSLOG_IDENTIFIER=t\nIMAGE_NAME=i\n"), "{text}");
        std::fs::remove_file(journal.path()).unwrap();
    }

    #[test]
    fn a_journal_that_is_full_or_away_gets_every_entry_once_when_it_is_back() {
        let (socket, mut journal) = journal("away");
        let lines: Vec<String> = (0..3000).map(|n| format!("line {n}")).collect();
        let batch = queue(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        // The queue of a datagram socket is short.
        let full = journal.append(&batch).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        let first = journal.sent();
        assert!(first > 0 && first < batch.len());
        let message = |text: String| text.lines().find_map(|l| l.strip_prefix("MESSAGE=").map(str::to_owned)).unwrap();
        let mut seen = vec![message(received(&socket))];
        socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        while let Ok(n) = socket.recv(&mut buffer) {
            seen.push(message(String::from_utf8_lossy(&buffer[..n]).into_owned()));
        }
        drop(socket);
        assert_eq!(journal.append(&batch).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        std::fs::remove_file(journal.path()).unwrap();
        assert_eq!(journal.append(&batch).unwrap_err().kind(), ErrorKind::NotFound);
        let mut journal = Journal::at(journal.path().to_owned(), &settings()).resume(journal.sent());
        let socket = UnixDatagram::bind(journal.path()).unwrap();
        let sender = std::thread::spawn(move || {
            while journal.append(&batch).is_err() {}
            journal
        });
        while seen.len() < lines.len() {
            seen.push(message(received(&socket)));
        }
        let journal = sender.join().unwrap();
        assert!(seen == lines);
        std::fs::remove_file(journal.path()).unwrap();
    }

    #[test]
    fn what_is_too_large_for_the_socket_goes_in_a_sealed_file() {
        let (socket, mut journal) = journal("large");
        let sender = connect(journal.path()).unwrap();
        setsockopt(&sender, sockopt::SndBuf, &4096).unwrap();
        journal.socket = Some(sender);
        let text = "x".repeat(PIECE_LIMIT);
        let batch = queue(&[&text]);
        journal.append(&batch).unwrap();
        let mut file = File::from(crate::sys::fdpass::receive_one(&socket).unwrap());
        let mut content = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut content).unwrap();
        assert!(content.starts_with("CONTAINER_ID=") && content.contains(&format!("\nMESSAGE={text}\nPRIORITY=6\n")));
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).unwrap();
        let all = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
        assert_eq!(SealFlag::from_bits_truncate(seals), all);
        std::fs::remove_file(journal.path()).unwrap();
    }
}
