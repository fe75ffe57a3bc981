//! The shim's own log: logrus text lines into the FIFO `log` of its bundle, where the daemon reads them.
//!
//! Logging never blocks and never ends the shim. The FIFO is open for reading and writing, so that it has no "no reader"
//! state, and non-blocking: when the daemon is down and the pipe full, lines are dropped and counted, and the count is
//! logged as soon as there is room. A line is at most `PIPE_BUF` bytes, so the kernel takes it whole or not at all.
//!
//! Spans are not recorded, only events.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::rfc3339::{self, Fraction};

/// The longest line, newline included, in bytes: `PIPE_BUF` of pipe(7).
const LINE_LIMIT: usize = 4096;

static SINK: OnceLock<Sink> = OnceLock::new();

/// Sends all events of this process to the FIFO at `path`: those of level info and above, or all but trace if `debug`.
///
/// # Errors
/// What open(2) says; `AlreadyExists` if it was done before.
pub fn init(path: &Path, debug: bool) -> io::Result<()> {
    let sink = Sink::open(path)?;
    SINK.set(sink).map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))?;
    let sink = SINK.get().expect("it was set above");
    let level = if debug { Level::DEBUG } else { Level::INFO };
    tracing::subscriber::set_global_default(Logger { sink, level })
        .map_err(|e| io::Error::new(io::ErrorKind::AlreadyExists, e))
}

/// Makes the log the process's standard error, so that a panic is seen. Without a log nothing happens.
///
/// # Errors
/// What dup2(2) says.
pub fn redirect_stderr() -> io::Result<()> {
    match descriptor() {
        Some(fd) => Ok(nix::unistd::dup2_stderr(fd)?),
        None => Ok(()),
    }
}

/// The log's descriptor, for a list of what the process holds.
pub fn descriptor() -> Option<BorrowedFd<'static>> {
    SINK.get().map(|sink| sink.file.as_fd())
}

/// How many lines were dropped and not yet reported in the log itself.
pub fn dropped() -> u64 {
    SINK.get().map_or(0, |sink| sink.dropped.load(Ordering::Relaxed))
}

/// Where lines go.
struct Sink {
    file: File,
    buffers: Mutex<Buffers>,
    dropped: AtomicU64,
}

/// Reused from line to line.
#[derive(Default)]
struct Buffers {
    line: Vec<u8>,
    /// One value, before it is known whether it needs quotes.
    value: String,
}

impl Sink {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_APPEND;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        Ok(Self { file, buffers: Mutex::default(), dropped: AtomicU64::new(0) })
    }

    /// Writes a line; its time is now, the rest is up to `fill`.
    fn log(&self, level: Level, fill: impl Fn(&mut Line<'_>)) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.write(&mut buffers, level, fill) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let dropped = self.dropped.load(Ordering::Relaxed);
        let report = |line: &mut Line<'_>| {
            line.field("msg", format_args!("log lines were dropped, nobody read them"));
            line.field("count", dropped);
        };
        if dropped > 0 && self.write(&mut buffers, Level::WARN, report) {
            self.dropped.fetch_sub(dropped, Ordering::Relaxed);
        }
    }

    fn write(&self, buffers: &mut Buffers, level: Level, fill: impl Fn(&mut Line<'_>)) -> bool {
        let mut line = Line(buffers);
        line.begin(level);
        fill(&mut line);
        line.end();
        let written = loop {
            match (&self.file).write(&buffers.line) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        buffers.release();
        written.is_ok()
    }
}

impl Buffers {
    /// Gives back what an unusually long value has taken.
    fn release(&mut self) {
        if self.line.capacity() > LINE_LIMIT {
            self.line = Vec::new();
        }
        if self.value.capacity() > LINE_LIMIT {
            self.value = String::new();
        }
    }
}

/// A line being made.
struct Line<'a>(&'a mut Buffers);

impl Line<'_> {
    fn begin(&mut self, level: Level) {
        let line = &mut self.0.line;
        line.clear();
        line.extend_from_slice(b"time=\"");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        rfc3339::write(line, u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Fraction::Nine);
        line.extend_from_slice(b"\" level=");
        line.extend_from_slice(level_name(level).as_bytes());
    }

    fn field(&mut self, key: &str, value: impl fmt::Display) {
        let Buffers { line, value: text } = &mut *self.0;
        if line.len() >= LINE_LIMIT {
            return;
        }
        text.clear();
        // A Display that fails leaves what it wrote so far.
        let _ = write!(text, "{value}");
        line.push(b' ');
        line.extend_from_slice(key.as_bytes());
        line.push(b'=');
        push_value(line, text);
    }

    fn end(&mut self) {
        let line = &mut self.0.line;
        if line.len() >= LINE_LIMIT {
            const MARK: &[u8] = "…".as_bytes();
            let mut end = LINE_LIMIT - 1 - MARK.len();
            while line[end] & 0xc0 == 0x80 {
                end -= 1; // not inside a character
            }
            line.truncate(end);
            line.extend_from_slice(MARK);
        }
        line.push(b'\n');
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::TRACE => "trace",
        Level::DEBUG => "debug",
        Level::INFO => "info",
        Level::WARN => "warning",
        Level::ERROR => "error",
    }
}

/// Appends a value by the rules of logrus: in quotes unless it is a plain word.
fn push_value(line: &mut Vec<u8>, value: &str) {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._/@^+".contains(&b);
    if value.bytes().all(plain) {
        line.extend_from_slice(value.as_bytes());
        return;
    }
    line.push(b'"');
    for byte in value.bytes() {
        match byte {
            b'"' | b'\\' => line.extend_from_slice(&[b'\\', byte]),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\t' => line.extend_from_slice(b"\\t"),
            0..=0x1f | 0x7f => {
                let digit = |n: u8| b"0123456789abcdef"[usize::from(n)];
                line.extend_from_slice(&[b'\\', b'x', digit(byte >> 4), digit(byte & 15)]);
            }
            _ => line.push(byte),
        }
    }
    line.push(b'"');
}

/// The subscriber; see the module.
struct Logger {
    sink: &'static Sink,
    level: Level,
}

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.level.into())
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1) // never asked for, since no span is enabled
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.sink.log(*event.metadata().level(), |line| {
            // The message stands first, wherever it is among the fields.
            event.record(&mut Fields { line, message: true });
            event.record(&mut Fields { line, message: false });
        });
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Passes on either the message or everything else.
struct Fields<'a, 'b> {
    line: &'a mut Line<'b>,
    message: bool,
}

impl Fields<'_, '_> {
    fn put(&mut self, field: &Field, value: impl fmt::Display) {
        match (field.name(), self.message) {
            ("message", true) => self.line.field("msg", value),
            ("message", false) | (_, true) => {}
            (name, false) => self.line.field(name, value),
        }
    }
}

impl Visit for Fields<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    /// With the causes, as one text.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        struct Chain<'a>(&'a (dyn std::error::Error + 'static));
        impl fmt::Display for Chain<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)?;
                let mut cause = self.0.source();
                while let Some(error) = cause {
                    write!(f, ": {error}")?;
                    cause = error.source();
                }
                Ok(())
            }
        }
        self.put(field, Chain(value));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::io::Read;

    /// A FIFO with nobody else at it, and a subscriber that logs to it.
    fn fifo(name: &str, level: Level) -> (&'static Sink, Logger) {
        let path = std::env::temp_dir().join(format!("holdfast-logging-{}-{name}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let sink = Sink::open(&path);
        std::fs::remove_file(&path).unwrap();
        let sink = Box::leak(Box::new(sink.unwrap()));
        (sink, Logger { sink, level })
    }

    /// What is in the FIFO, without the times.
    fn lines(sink: &Sink) -> Vec<String> {
        let mut bytes = vec![0; 1 << 20];
        let n = (&sink.file).read(&mut bytes).unwrap_or(0);
        let text = String::from_utf8(bytes[..n].to_vec()).unwrap();
        text.lines()
            .map(|line| {
                let (time, rest) = line.split_at("time=\"2026-01-01T00:00:00.000000000Z\" ".len());
                assert!(time.starts_with("time=\"20") && time.ends_with("Z\" "), "{line}");
                rest.to_owned()
            })
            .collect()
    }

    #[test]
    fn events_become_logrus_lines_with_the_message_first() {
        let (sink, logger) = fifo("lines", Level::INFO);
        tracing::subscriber::with_default(logger, || {
            tracing::info!(id = "c1", pid = 7, path = ?Path::new("/a b"), "task \"started\"\n");
            tracing::warn!(ok = true, "ready");
            tracing::debug!("not seen");
        });
        let expected =
            [r#"level=info msg="task \"started\"\n" id=c1 pid=7 path="\"/a b\"""#, "level=warning msg=ready ok=true"];
        assert_eq!(lines(sink), expected);
    }

    #[test]
    fn an_error_is_logged_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot mount")]
        struct Outer(#[source] io::Error);
        let (sink, logger) = fifo("causes", Level::DEBUG);
        let error = Outer(io::Error::other("no medium"));
        tracing::subscriber::with_default(logger, || {
            tracing::error!(error = &error as &(dyn std::error::Error + 'static), "failed");
            tracing::debug!("seen");
        });
        assert_eq!(lines(sink), ["level=error msg=failed error=\"cannot mount: no medium\"", "level=debug msg=seen"]);
    }

    #[test]
    fn a_full_fifo_drops_whole_lines_and_the_count_is_reported_later() {
        let (sink, logger) = fifo("full", Level::INFO);
        tracing::subscriber::with_default(logger, || {
            let text = "x".repeat(1000);
            for _ in 0..100 {
                tracing::info!("{text}");
            }
            let dropped = sink.dropped.load(Ordering::Relaxed);
            let kept = lines(sink);
            assert!(dropped > 0);
            assert_eq!(kept.len() as u64 + dropped, 100);
            assert!(kept.iter().all(|l| *l == format!("level=info msg={text}")));

            tracing::info!("again");
            let report = format!("level=warning msg=\"log lines were dropped, nobody read them\" count={dropped}");
            assert_eq!(lines(sink), ["level=info msg=again", &report]);
            assert_eq!(sink.dropped.load(Ordering::Relaxed), 0);
        });
    }

    #[test]
    fn a_line_is_never_longer_than_a_pipe_takes_at_once() {
        let (sink, logger) = fifo("long", Level::INFO);
        tracing::subscriber::with_default(logger, || {
            let long = "é".repeat(10_000);
            tracing::info!(long, "first");
            tracing::info!("{}", "y".repeat(LINE_LIMIT * 2));
        });
        let mut bytes = vec![0; 1 << 20];
        let n = (&sink.file).read(&mut bytes).unwrap();
        let text = std::str::from_utf8(&bytes[..n]).unwrap();
        let lengths: Vec<usize> = text.split_inclusive('\n').map(str::len).collect();
        assert_eq!(lengths.len(), 2);
        assert!(lengths.iter().all(|n| (LINE_LIMIT - 3..=LINE_LIMIT).contains(n)), "{lengths:?}");
        let buffers = sink.buffers.lock().unwrap();
        assert!(buffers.line.capacity() <= LINE_LIMIT && buffers.value.capacity() <= LINE_LIMIT);
    }
}
