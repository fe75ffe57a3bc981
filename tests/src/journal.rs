//! A journal: the socket that journald would have, and a `journalctl` that shows what came through it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

/// The fields of one entry.
pub type Fields = BTreeMap<String, Vec<u8>>;

/// Listens until it is dropped.
#[derive(Debug)]
pub struct FakeJournal {
    path: PathBuf,
    entries: Arc<Mutex<Vec<Fields>>>,
    /// Closed to tell the thread to leave.
    stop: Option<std::io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl FakeJournal {
    /// Listens at `path`. What comes is also appended to `path.jsonl`, as the journal's own JSON output would have it.
    ///
    /// # Panics
    /// If it cannot; so for everything here.
    pub fn start(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap_or_else(|e| panic!("cannot bind {}: {e}", path.display()));
        let entries = Arc::new(Mutex::new(Vec::new()));
        let (stopped, stop) = std::io::pipe().expect("a pipe");
        let mut store = File::options().create(true).append(true).open(store(path)).expect("a file");
        let thread = thread::spawn({
            let entries = Arc::clone(&entries);
            move || {
                while let Some(fields) = receive(&socket, &stopped) {
                    let mut entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
                    let line = format!("{}\n", as_json(&fields, entries.len()));
                    store.write_all(line.as_bytes()).expect("an entry is stored");
                    entries.push(fields);
                }
            }
        });
        Self { path: path.to_owned(), entries, stop: Some(stop), thread: Some(thread) }
    }

    /// What has come so far.
    pub fn entries(&self) -> Vec<Fields> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many entries have come.
    pub fn count(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The messages of one stream.
    pub fn messages(&self, stream: &str) -> Vec<String> {
        let entries = self.entries();
        let of = entries.iter().filter(|e| text(e, "HOLDFAST_STREAM") == stream);
        of.map(|e| text(e, "MESSAGE")).collect()
    }
}

impl FakeJournal {
    /// Goes away, and returns all that it has accepted.
    pub fn leave(mut self) -> Vec<Fields> {
        self.stop();
        self.entries()
    }

    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for FakeJournal {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_file(&self.path);
    }
}

/// A field as text; empty if there is none.
pub fn text(entry: &Fields, field: &str) -> String {
    String::from_utf8_lossy(entry.get(field).map_or(&[][..], Vec::as_slice)).into_owned()
}

fn store(path: &Path) -> PathBuf {
    path.with_extension("jsonl")
}

/// The next datagram; none when it is over.
fn receive(socket: &UnixDatagram, stopped: &std::io::PipeReader) -> Option<Fields> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::NONE).expect("poll");
    if fds[1].revents().is_some_and(|r| !r.is_empty()) {
        // Nothing is accepted any more; what was is taken.
        socket.shutdown(Shutdown::Read).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
    }
    let mut payload = vec![0; 256 << 10];
    let length = socket.recv(&mut payload).ok().filter(|n| *n > 0)?;
    Some(parse(&payload[..length]))
}

/// Reads the native protocol.
fn parse(mut rest: &[u8]) -> Fields {
    let mut fields = Fields::new();
    while let Some(end) = rest.iter().position(|&b| b == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        let name = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("a field has a name");
        if let Some(at) = line.iter().position(|&b| b == b'=') {
            fields.insert(name(&line[..at]), line[at + 1..].to_vec());
        } else {
            let (length, after) = rest.split_first_chunk::<8>().expect("a length");
            let (value, after) = after.split_at(usize::try_from(u64::from_le_bytes(*length)).expect("a length"));
            fields.insert(name(line), value.to_vec());
            rest = &after[1..];
        }
    }
    assert!(rest.is_empty(), "every field ends with a newline");
    fields
}

/// As `journalctl --output=json` shows it: what is no printable text is an array of bytes.
fn as_json(fields: &Fields, number: usize) -> Value {
    let value = |bytes: &Vec<u8>| match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|c| !c.is_control() || c == '\t') => json!(text),
        _ => json!(bytes),
    };
    let mut all: serde_json::Map<String, Value> = fields.iter().map(|(k, v)| (k.clone(), value(v))).collect();
    all.insert("__CURSOR".into(), json!(format!("c{number:08}")));
    all.insert("__REALTIME_TIMESTAMP".into(), json!("0"));
    Value::Object(all)
}

/// The arguments of a `journalctl` that this one understands; any other fails.
const JOURNALCTL: &str = r##"#!/bin/sh
# Shows what a FakeJournal has stored: one entry a line, __CURSOR first in it.
store=@STORE@; follow=; reverse=; from=; after=; matches=
for argument; do
    case $argument in
        --sync) exit 0 ;;
        --quiet | --no-pager | --all | --output=json | --no-tail | --since=*) ;;
        --follow) follow=1 ;;
        --reverse) reverse=1 ;;
        --cursor=*) from=${argument#*=} ;;
        --after-cursor=*) after=${argument#*=} ;;
        *=*) matches="$matches \"${argument%%=*}\":\"${argument#*=}\"" ;;
        *) echo "journalctl: unknown argument $argument" >&2; exit 1 ;;
    esac
done
show() {
    if [ -n "$follow" ]; then tail --pid=$$ -s 0.05 -n +1 -f "$store"; elif [ -n "$reverse" ]; then tac "$store"; else cat "$store"; fi
}
show | exec awk -v from="$from" -v after="$after" -v matches="$matches" '
    BEGIN { count = split(matches, wanted, " ") }
    {
        cursor = substr($0, index($0, "\"__CURSOR\":\"") + 12, 9)
        if ((from != "" && cursor < from) || (after != "" && cursor <= after)) next
        for (i = 1; i <= count; i++) if (!index($0, wanted[i])) next
        print; fflush()
    }'
"##;

/// Makes a directory to be put first into `PATH`, with a `journalctl` for the journal at `path`.
pub fn fake_journalctl(path: &Path) -> PathBuf {
    let directory = path.with_extension("bin");
    fs::create_dir_all(&directory).expect("a directory");
    let program = directory.join("journalctl");
    let text = JOURNALCTL.replace("@STORE@", &store(path).display().to_string());
    fs::write(&program, text).expect("a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a script");
    directory
}

/// Where journald and its reader are.
const JOURNALD: &str = "/lib/systemd/systemd-journald";
const JOURNALD_READER: &str = "/usr/bin/journalctl";

/// In a mount namespace of its own: a /run with nothing in it but the directory where journald listens, which is ours.
const ALONE: &str = "set -e; mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/journal /run/systemd/journald.conf.d \
                     /run/log/journal; printf '[Journal]\\nRateLimitIntervalSec=0\\n' > /run/systemd/journald.conf.d/t.conf; \
                     mount --bind \"$1\" /run/systemd/journal; exec \"$0\"";

/// A journald of the machine's, with nothing of the machine's: for whoever is given its socket, and its journalctl.
#[derive(Debug)]
pub struct RealJournal {
    daemon: crate::process::ChildProcess,
    dir: PathBuf,
}

impl RealJournal {
    /// Starts one that keeps its socket below `dir`; or why there can be none.
    ///
    /// # Errors
    /// For a skip.
    ///
    /// # Panics
    /// If it does not begin to serve.
    pub fn start(dir: &Path) -> Result<Self, &'static str> {
        if !crate::skip::is_root() || ![JOURNALD, JOURNALD_READER].iter().all(|program| Path::new(program).exists()) {
            return Err("needs root and systemd-journald");
        }
        fs::create_dir_all(dir.join("bin")).expect("a directory");
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--propagation=private", "/bin/sh", "-c", ALONE, JOURNALD]).arg(dir);
        let daemon = crate::process::ChildProcess::spawn(&mut command);
        let this = Self { daemon, dir: dir.to_owned() };
        let socket = this.socket();
        crate::eventually("journald should listen", || if socket.exists() { Ok(()) } else { Err("no socket") });
        let pid = this.daemon.pid();
        let program = this.programs().join("journalctl");
        let text = format!("#!/bin/sh\nexec nsenter --mount --target {pid} {JOURNALD_READER} \"$@\"\n");
        fs::write(&program, text).expect("a script");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a script");
        Ok(this)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// A directory to be put first into `PATH`, with a `journalctl` for this journal.
    pub fn programs(&self) -> PathBuf {
        self.dir.join("bin")
    }
}
