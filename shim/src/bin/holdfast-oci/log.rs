//! Where errors go: one line on stderr, one line in `--log`; and how what libcontainer logs in its child processes
//! reaches the error of the parent.
//!
//! libcontainer sends only the outermost text of an error from the container's process to the parent, but logs the
//! details as tracing events where they happen. Those events are written to a pipe that all its processes inherit; when
//! a verb fails, the parent reads the pipe and appends the innermost cause.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::cli::{Global, LogFormat};
use crate::clock::rfc3339_now;
use crate::error::{Failure, chain, without_codes};

/// Where log lines go.
pub(crate) struct Log {
    file: Option<PathBuf>,
    format: LogFormat,
    debug: bool,
}

impl Log {
    /// Takes the global flags; opens nothing yet, since most calls log nothing.
    pub(crate) fn new(global: &Global) -> Log {
        Log { file: global.log.clone(), format: global.log_format, debug: global.debug }
    }

    /// Reports the failure of the verb, whole chain, on stderr and in the log file.
    pub(crate) fn failure(&self, failure: &Failure) {
        let text = chain(failure);
        self.append("error", &text);
        let _ = writeln!(std::io::stderr(), "holdfast-oci: {text}");
    }

    /// Reports something that the verb carries on from.
    pub(crate) fn warning(&self, text: &str) {
        self.append("warning", text);
    }

    fn append(&self, level: &str, text: &str) {
        let Some(path) = &self.file else { return };
        // The log is a convenience of the caller: that it cannot be written must not hide the failure itself, which
        // stderr still gets.
        if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) {
            let _ = file.write_all(line(self.format, level, text, &rfc3339_now()).as_bytes());
        }
    }

    /// Starts to collect what libcontainer logs in this process and those it forks.
    ///
    /// # Errors
    /// When no pipe can be made.
    pub(crate) fn collect(&self) -> Result<Collected, Failure> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(Failure::sys("make a pipe"))?;
        let level = if self.debug { Level::DEBUG } else { Level::ERROR };
        // One collector a process: a second verb in one process does not happen.
        let _ = tracing::subscriber::set_global_default(Collector { writer: File::from(writer), level });
        Ok(Collected { reader })
    }
}

/// One line of the log file, with its newline.
fn line(format: LogFormat, level: &str, text: &str, time: &str) -> String {
    let quoted = serde_json::Value::from(text);
    match format {
        LogFormat::Json => format!("{{\"level\":\"{level}\",\"msg\":{quoted},\"time\":\"{time}\"}}\n"),
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={quoted}\n"),
    }
}

/// What libcontainer's processes have logged.
pub(crate) struct Collected {
    reader: OwnedFd,
}

impl Collected {
    /// The reason with what was logged about it. With `--debug` everything goes to the log as well.
    pub(crate) fn explain(self, reason: &str, log: &Log) -> String {
        let mut bytes = Vec::new();
        // The pipe is non-blocking, so that the read ends where the events end even if a process still holds the
        // other end.
        let mut reader = File::from(self.reader);
        let _ = reader.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let mut errors = Vec::new();
        for record in text.split('\0').filter(|record| !record.is_empty()) {
            match record.split_once(' ') {
                Some(("ERROR", message)) => errors.push(message),
                Some((_, message)) if log.debug => log.append("debug", message),
                _ => {}
            }
        }
        explain(reason, &errors)
    }
}

/// Joins a reason, the innermost error event (which is the first: the process that fails logs on the way up) and the
/// system's error, which the crate often leaves out of its texts but not out of its events.
fn explain(reason: &str, errors: &[&str]) -> String {
    let Some(first) = errors.first() else { return reason.to_owned() };
    let first = readable(first);
    let system = errors.iter().rev().find_map(|event| errno_in(event)).map(|errno| errno.desc().to_lowercase());
    let mut text = reason.to_owned();
    for more in [Some(first), system].into_iter().flatten() {
        let known = text.to_lowercase().contains(&more.to_lowercase()) || more.contains(reason) && !reason.is_empty();
        if !known {
            text = if text.is_empty() { more } else { format!("{text}: {more}") };
        }
    }
    if text == reason { text } else { format!("error during container init: {text}") }
}

/// An event without what only a developer of the crate reads: the debug form of a mount, and error codes.
fn readable(event: &str) -> String {
    let between = |text: &str, from: &str, to: &str| {
        let rest = &text[text.find(from)? + from.len()..];
        Some(rest[..rest.find(to)?].to_owned())
    };
    if event.starts_with("failed to mount Mount {") {
        let destination = between(event, "destination: \"", "\"").unwrap_or_default();
        let source = between(event, "source: Some(\"", "\")").unwrap_or_default();
        return format!("error mounting {source:?} to rootfs at {destination:?}");
    }
    let end = [", err=", ", errno=", ", e="].iter().filter_map(|field| event.find(field)).min();
    without_codes(&event[..end.unwrap_or(event.len())])
}

/// The system's error that an event names by its symbol.
fn errno_in(event: &str) -> Option<Errno> {
    let words = event.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|word| word.len() > 2 && word.starts_with('E')).find_map(|word| {
        (1..134).map(Errno::from_raw).find(|errno| *errno != Errno::UnknownErrno && format!("{errno:?}") == word)
    })
}

/// Writes events to the pipe, one write each, ended by a zero byte.
struct Collector {
    writer: File,
    level: Level,
}

thread_local! {
    /// Formatting a value may itself log; such events are dropped.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        if BUSY.replace(true) {
            return;
        }
        let mut text = Text { message: String::new(), fields: String::new() };
        event.record(&mut text);
        let record = format!("{} {}{}\0", event.metadata().level(), text.message, text.fields);
        // A full pipe drops the event: the first ones matter.
        let _ = (&self.writer).write_all(record.as_bytes());
        BUSY.set(false);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Joins an event's message and fields.
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, ", {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_json_line_is_what_the_shim_reads() {
        let line = line(LogFormat::Json, "error", "exec: \"x\": not found", "2026-01-02T03:04:05Z");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "exec: \"x\": not found");
        assert_eq!(value["time"], "2026-01-02T03:04:05Z");
        assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
    }

    #[test]
    fn a_reason_gets_its_cause_and_the_systems_error_once() {
        let mount = "failed to mount Mount { destination: \"/v\", typ: Some(\"nofs\"), source: Some(\"x\") }: syscall";
        let events = [mount, "failed to prepare rootfs, err=Mount(Syscall(Nix(ENODEV)))"];
        assert_eq!(
            explain("failed to prepare rootfs", &events),
            "error during container init: failed to prepare rootfs: error mounting \"x\" to rootfs at \"/v\": no such device"
        );
        assert_eq!(
            explain("failed to unix syscall", &["failed to chdir, e=ENOENT"]),
            "error during container init: failed to unix syscall: failed to chdir: no such file or directory"
        );
        let exec = "exec: \"x\": stat x: no such file or directory";
        assert_eq!(explain(exec, &[&format!("failed to initialize container process: {exec}")]), exec);
        assert_eq!(explain("alone", &[]), "alone");
    }

    #[test]
    fn a_text_line_quotes_its_message() {
        let line = line(LogFormat::Text, "error", "a \"b\"", "T");
        assert_eq!(line, "time=\"T\" level=error msg=\"a \\\"b\\\"\"\n");
    }
}
