//! `logs`: reads what the shim writes, in whatever format, across rotation. The supervisor is asked only where the log is
//! and when the container has ended, so that following goes on while it is away.
//!
//! [`files`] and [`journal`] give entries in order; what is wanted of them is decided and printed here. Nothing is held but
//! the current line, however long the log is.

mod entry;
mod files;
mod journal;
mod tail;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_proto::supervisor as pb;
use tokio::sync::oneshot;

use self::entry::{Entry, Format};
use super::args::LogsArgs;
use super::connection::Connection;
use super::{CliError, Outcome, render};
use crate::client::now_unix_ns;
use crate::log_policy::Driver;

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What is wanted of the log.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    since_unix_ns: Option<i64>,
    until_unix_ns: Option<i64>,
    tail: Option<usize>,
    timestamps: bool,
    json: bool,
}

impl Wanted {
    fn of(args: &LogsArgs, json: bool) -> Result<Self, CliError> {
        let now = now_unix_ns();
        let time = |text: &Option<String>| {
            text.as_deref().map(|text| render::parse_time(text, now)).transpose().map_err(CliError::Usage)
        };
        let (since_unix_ns, until_unix_ns) = (time(&args.since)?, time(&args.until)?);
        Ok(Self { since_unix_ns, until_unix_ns, tail: args.tail, timestamps: args.timestamps, json })
    }

    fn needs_times(&self) -> bool {
        self.timestamps || self.since_unix_ns.is_some() || self.until_unix_ns.is_some()
    }

    /// Of entries without a time nobody knows; they are shown.
    fn is_in_time(&self, entry: &Entry) -> bool {
        (self.since_unix_ns, self.until_unix_ns) == (None, None)
            || entry.unix_ns().is_none_or(|at| self.since_unix_ns.is_none_or(|since| at >= since))
                && self.is_early(entry)
    }

    fn is_early(&self, entry: &Entry) -> bool {
        self.until_unix_ns.is_none_or(|until| entry.unix_ns().is_none_or(|at| at <= until))
    }

    /// Whether nothing that comes can be wanted any more.
    fn is_past(&self) -> bool {
        self.until_unix_ns.is_some_and(|until| now_unix_ns() > until)
    }
}

/// Where the log is.
#[derive(Clone, Debug)]
enum Source {
    Files { path: PathBuf, format: Format, kept: usize },
    Journal { id: String, namespace: String },
}

/// A source at the place where it is to be read from.
enum Opened {
    Files { reader: files::Reader, path: PathBuf },
    Journal(journal::Journal),
}

/// Where all is that was kept, the oldest first. What the last one gets can be followed.
fn sources(inspected: &pb::InspectResponse, wanted: &Wanted) -> Result<Vec<Source>, CliError> {
    let container = inspected.container.get_or_default();
    let kept = inspected.log_options.get("max-file").and_then(|n| n.parse().ok()).unwrap_or(0);
    if inspected.log_driver.is_empty() {
        let text = format!("{} is {}'s: what it prints is not kept by holdfast", container.name, container.manager);
        return Err(CliError::Usage(text));
    }
    let all = inspected.earlier_logs.iter().map(|log| (log.driver.as_str(), log.path.as_str()));
    let all = all.chain([(inspected.log_driver.as_str(), inspected.log_path.as_str())]);
    let mut found = Vec::new();
    for (driver, path) in all {
        let format = match driver.parse().map_err(|e| CliError::Usage(format!("{e}")))? {
            Driver::None => continue,
            Driver::Journald => {
                found.push(Source::Journal { id: container.id.clone(), namespace: container.namespace.clone() });
                continue;
            }
            Driver::Raw if wanted.needs_times() => {
                return Err(CliError::Usage(format!(
                    "{} has a log of the driver raw, which keeps no times: --since, --until and --timestamps need another",
                    container.name
                )));
            }
            Driver::Raw => Format::Raw,
            Driver::Cri => Format::Cri,
            Driver::JsonFile => Format::Json,
        };
        found.push(Source::Files { path: path.into(), format, kept });
    }
    if found.is_empty() {
        let text = format!("{} has the log driver none: what it prints is not kept", container.name);
        return Err(CliError::Usage(text));
    }
    Ok(found)
}

impl Source {
    /// Opens it, at its beginning or before its last lines; and of those how many there are.
    fn open(&self, tail: Option<usize>, wanted: &Wanted) -> Result<(Opened, usize), CliError> {
        match self {
            Self::Journal { id, namespace } => {
                let (journal, lines) = journal::Journal::open(id, namespace, tail, wanted)?;
                Ok((Opened::Journal(journal), lines))
            }
            Self::Files { path, format, kept } => {
                let opened = files::Reader::open(path, *format, *kept).and_then(|mut reader| {
                    let lines = match tail {
                        Some(most) => reader.skip_to_last(most, |entry| wanted.is_early(entry))?,
                        None => 0,
                    };
                    Ok((reader, lines))
                });
                let (reader, lines) = opened.map_err(CliError::io(format!("read {}", path.display())))?;
                Ok((Opened::Files { reader, path: path.clone() }, lines))
            }
        }
    }
}

/// Prints what there is, and what comes to the last source until `ended`.
fn show<O: Write, E: Write>(
    sources: &[Source],
    ended: &AtomicBool,
    printer: &mut Printer<O, E>,
) -> Result<(), CliError> {
    let mut left = printer.wanted.tail;
    let mut opened = Vec::new();
    for source in sources.iter().rev() {
        if left == Some(0) && !opened.is_empty() {
            break;
        }
        let (one, lines) = source.open(left, &printer.wanted)?;
        left = left.map(|most| most.saturating_sub(lines));
        opened.push(one);
    }
    while let Some(one) = opened.pop() {
        let over = AtomicBool::new(true);
        let until = if opened.is_empty() { ended } else { &over };
        match one {
            Opened::Journal(journal) => journal.copy(until, printer)?,
            Opened::Files { reader, path } => {
                copy(reader, until, printer).map_err(CliError::io(format!("show {}", path.display())))?;
            }
        }
    }
    Ok(())
}

pub(super) async fn run(connection: Connection, args: &LogsArgs, json: bool) -> Outcome {
    let request = pb::InspectRequest { ref_: args.container.clone(), ..Default::default() };
    let inspected = connection.inspect(&request).await?;
    let wanted = Wanted::of(args, json)?;
    let sources = sources(&inspected, &wanted)?;
    let ended = Arc::new(AtomicBool::new(!args.follow));
    let (done, copied) = oneshot::channel();
    let until = Arc::clone(&ended);
    std::thread::spawn(move || {
        let mut printer = Printer::new(wanted, BufWriter::new(io::stdout().lock()), io::stderr());
        let _ = done.send(show(&sources, &until, &mut printer)); // we may have left
    });
    let ref_ = inspected.container.get_or_default().id.clone();
    let wait = async {
        if args.follow {
            // Removed meanwhile, or ended: either way there will be no more.
            let _ = connection.wait(&pb::WaitRequest { ref_, ..Default::default() }).await;
        }
        ended.store(true, Ordering::Release);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = copied => result.unwrap_or(Ok(())).map(|()| 0),
        () = wait => unreachable!("it never ends"),
    }
}

/// Prints what the files have, and what comes until `ended`.
fn copy<O: Write, E: Write>(
    mut reader: files::Reader,
    ended: &AtomicBool,
    printer: &mut Printer<O, E>,
) -> io::Result<()> {
    loop {
        // The order matters: what was written before the end is there once the end is known.
        let last = ended.load(Ordering::Acquire) || printer.wanted.is_past();
        while let Some(entry) = reader.next()? {
            if reader.take_gap() {
                printer.warn("the log was rotated faster than it was read: lines may be missing here")?;
            }
            printer.print(&entry)?;
        }
        printer.flush()?;
        if last {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// Prints entries, each to where it came from.
struct Printer<O, E> {
    wanted: Wanted,
    out: O,
    err: E,
    /// Whether stdout, stderr are inside a line, which has its time already.
    inside: [bool; 2],
}

impl<O: Write, E: Write> Printer<O, E> {
    fn new(wanted: Wanted, out: O, err: E) -> Self {
        Self { wanted, out, err, inside: [false; 2] }
    }

    fn print(&mut self, entry: &Entry) -> io::Result<()> {
        if !self.wanted.is_in_time(entry) {
            return Ok(());
        }
        let printed = self.write(entry);
        if printed.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            // Our reader has left: nothing more is wanted.
            std::process::exit(0);
        }
        printed
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        if self.wanted.json {
            let stream = if entry.is_stderr { "stderr" } else { "stdout" };
            let text = String::from_utf8_lossy(&entry.text);
            let value = serde_json::json!({ "time": entry.time, "stream": stream, "log": text });
            return self.out.write_all(render::json_line(&value).as_bytes());
        }
        let to: &mut dyn Write = if entry.is_stderr {
            // What was printed before it is shown before it.
            self.out.flush()?;
            &mut self.err
        } else {
            &mut self.out
        };
        let inside = &mut self.inside[usize::from(entry.is_stderr)];
        if self.wanted.timestamps && !*inside && !entry.time.is_empty() {
            write!(to, "{} ", entry.time)?;
        }
        *inside = !entry.ends_line();
        to.write_all(&entry.text)
    }

    fn warn(&mut self, text: &str) -> io::Result<()> {
        self.flush()?;
        writeln!(self.err, "holdfast: {text}")
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.out.flush() {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    struct Log(PathBuf);

    impl Log {
        fn new(name: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("holdfast-logs-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&directory);
            fs::create_dir_all(&directory).unwrap();
            Self(directory)
        }
        fn path(&self) -> PathBuf {
            self.0.join("log.json")
        }
        fn add(&self, text: &str) {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(self.path()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
        fn line(&self, n: u32) {
            self.add(&format!("{{\"log\":\"{n}\\n\",\"stream\":\"stdout\",\"time\":\"1970-01-01T00:00:{n:02}Z\"}}\n"));
        }
        fn rotate(&self, keep: u32) {
            let numbered = |n: u32| self.0.join(format!("log.json.{n}"));
            let _ = fs::remove_file(numbered(keep));
            for n in (1..keep).rev() {
                let _ = fs::rename(numbered(n), numbered(n + 1));
            }
            fs::rename(self.path(), numbered(1)).unwrap();
        }
        fn shown_as(&self, format: Format, wanted: Wanted) -> (String, String) {
            Self::shown_of(&[Source::Files { path: self.path(), format, kept: 0 }], wanted)
        }
        fn shown_of(sources: &[Source], wanted: Wanted) -> (String, String) {
            let mut printer = Printer::new(wanted, Vec::new(), Vec::new());
            show(sources, &AtomicBool::new(true), &mut printer).unwrap();
            (String::from_utf8(printer.out).unwrap(), String::from_utf8(printer.err).unwrap())
        }
        fn shown(&self, wanted: Wanted) -> String {
            self.shown_as(Format::Json, wanted).0
        }
        fn reader(&self, format: Format, kept: usize) -> files::Reader {
            files::Reader::open(&self.path(), format, kept).unwrap()
        }
    }

    impl Drop for Log {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn all(reader: &mut files::Reader) -> Vec<String> {
        let entries = std::iter::from_fn(|| reader.next().unwrap());
        entries.map(|e| String::from_utf8(e.text).unwrap().trim().to_owned()).collect()
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_empty_and_then_read() {
        let log = Log::new("absent");
        let mut reader = log.reader(Format::Json, 3);
        assert!(reader.next().unwrap().is_none());
        log.line(1);
        assert_eq!(all(&mut reader), ["1"]);
    }

    #[test]
    fn rotated_files_are_read_from_the_oldest_on() {
        let log = Log::new("rotated");
        for n in 1..=3 {
            log.line(n);
            if n < 3 {
                log.rotate(5);
            }
        }
        assert_eq!(log.shown(Wanted::default()), "1\n2\n3\n");
        for (tail, expected) in [(0, ""), (1, "3\n"), (2, "2\n3\n"), (3, "1\n2\n3\n"), (9, "1\n2\n3\n")] {
            assert_eq!(log.shown(Wanted { tail: Some(tail), ..Wanted::default() }), expected, "{tail}");
        }
    }

    #[test]
    fn following_loses_and_repeats_nothing_across_rotations() {
        let log = Log::new("follow");
        log.line(1);
        let mut reader = log.reader(Format::Json, 5);
        assert_eq!(all(&mut reader), ["1"]);
        log.line(2);
        log.rotate(5);
        assert_eq!(all(&mut reader), ["2"], "what was added before the rotation");
        log.line(3);
        log.rotate(5);
        log.line(4);
        assert_eq!(all(&mut reader), ["3", "4"], "two rotations between two looks");
        // As a rotation leaves it for a moment: under two names.
        fs::hard_link(log.path(), log.0.join("log.json.spare")).unwrap();
        fs::rename(log.0.join("log.json.spare"), log.0.join("log.json.1")).unwrap();
        log.line(5);
        assert_eq!(all(&mut reader), ["5"]);
        assert!(!reader.take_gap());
    }

    #[test]
    fn rotations_between_two_looks_at_names_leave_the_files_in_order() {
        let log = Log::new("overtaken");
        let mut reader = log.reader(Format::Json, 20);
        let mut newest = 1;
        log.line(newest);
        // How often the log is rotated before each look.
        let mut rotations = [0, 3, 1, 1, 0, 2].into_iter();
        let (files, _) = reader
            .newer_files_by(|path| {
                for _ in 0..rotations.next().unwrap_or(0) {
                    log.rotate(20);
                    newest += 1;
                    log.line(newest);
                }
                fs::File::open(path)
            })
            .unwrap();
        let met = files.iter().map(|file| {
            let text = std::io::read_to_string(file).unwrap();
            text.trim_start_matches("{\"log\":\"").split('\\').next().unwrap().parse().unwrap()
        });
        let met: Vec<u32> = met.collect();
        assert!(met.is_sorted_by(|newer, older| newer > older), "{met:?}");
        assert_eq!((met.last(), newest), (Some(&1), 8));
        assert!(met.len() > 2, "{met:?}");
    }

    #[test]
    fn a_file_that_was_moved_away_is_read_until_the_writer_has_another() {
        let log = Log::new("moved");
        log.line(1);
        let mut reader = log.reader(Format::Json, 3);
        assert_eq!(all(&mut reader), ["1"]);
        let mut writer = fs::OpenOptions::new().append(true).open(log.path()).unwrap();
        let moved = log.0.join("moved");
        fs::rename(log.path(), &moved).unwrap();
        assert!(reader.next().unwrap().is_none());
        // Some tools make the new file before they tell the writer.
        fs::write(log.path(), "").unwrap();
        assert!(reader.next().unwrap().is_none());
        writer.write_all(b"{\"log\":\"2\\n\"}\n").unwrap();
        assert_eq!(all(&mut reader), ["2"]);
        writer.write_all(b"{\"log\":\"3\\n\"}\n").unwrap();
        log.line(4);
        assert_eq!(all(&mut reader), ["3", "4"]);
    }

    #[test]
    fn a_file_that_is_moved_away_from_among_rotated_ones_does_not_bring_those_back() {
        let log = Log::new("moved-among");
        for n in 1..=3 {
            log.line(n);
            log.rotate(5);
        }
        log.line(4);
        let mut from_the_start = log.reader(Format::Json, 5);
        assert_eq!(all(&mut from_the_start), ["1", "2", "3", "4"]);
        let mut from_the_end = log.reader(Format::Json, 5);
        assert_eq!(from_the_end.skip_to_last(1, |_| true).unwrap(), 1);
        assert_eq!(all(&mut from_the_end), ["4"]);
        for (n, keep) in [(5, 5), (7, 3)] {
            fs::rename(log.path(), log.0.join(format!("moved.{n}"))).unwrap();
            log.line(n);
            log.rotate(keep);
            log.line(n + 1);
            for reader in [&mut from_the_start, &mut from_the_end] {
                assert_eq!(all(reader), [n, n + 1].map(|n| n.to_string()));
                assert!(!reader.take_gap());
            }
        }
    }

    #[test]
    fn what_was_deleted_before_it_could_be_read_is_told() {
        let log = Log::new("gap");
        log.line(1);
        let mut reader = log.reader(Format::Json, 2);
        assert_eq!(all(&mut reader), ["1"]);
        for n in 2..=4 {
            log.rotate(1);
            log.line(n);
        }
        assert_eq!(all(&mut reader), ["3", "4"]);
        assert!(reader.take_gap() && !reader.take_gap());
    }

    #[test]
    fn a_file_that_was_emptied_is_read_from_its_beginning() {
        let log = Log::new("emptied");
        log.line(1);
        log.line(2);
        let mut reader = log.reader(Format::Json, 2);
        assert_eq!(all(&mut reader), ["1", "2"]);
        fs::write(log.path(), "").unwrap();
        assert!(reader.next().unwrap().is_none());
        log.line(3);
        assert_eq!(all(&mut reader), ["3"]);
    }

    #[test]
    fn half_an_entry_waits_for_its_rest_and_raw_output_does_not() {
        let log = Log::new("half");
        log.add("{\"log\":\"a");
        let mut reader = log.reader(Format::Json, 3);
        let mut raw = log.reader(Format::Raw, 3);
        assert!(reader.next().unwrap().is_none());
        assert_eq!(all(&mut raw), ["{\"log\":\"a"]);
        log.add("b\\n\",\"stream\":\"stdout\"}\n");
        assert_eq!(all(&mut reader), ["ab"]);
        assert_eq!(all(&mut raw), ["b\\n\",\"stream\":\"stdout\"}"]);
    }

    #[test]
    fn half_an_entry_at_the_end_of_an_old_file_is_shown_as_it_is() {
        let log = Log::new("torn");
        log.add("{\"log\":\"a");
        log.rotate(3);
        log.line(1);
        assert_eq!(log.shown(Wanted::default()), "{\"log\":\"a\n1\n");
    }

    #[test]
    fn tail_since_until_and_timestamps() {
        let log = Log::new("tail");
        for n in 1..=9 {
            log.line(n);
        }
        let second = 1_000_000_000;
        let tail = |tail| Wanted { tail: Some(tail), ..Wanted::default() };
        assert_eq!(log.shown(tail(2)), "8\n9\n");
        assert_eq!(log.shown(tail(0)), "");
        assert_eq!(log.shown(Wanted { since_unix_ns: Some(8 * second), ..Wanted::default() }), "8\n9\n");
        assert_eq!(log.shown(Wanted { until_unix_ns: Some(2 * second), ..Wanted::default() }), "1\n2\n");
        assert_eq!(log.shown(Wanted { until_unix_ns: Some(5 * second), ..tail(2) }), "4\n5\n");
        assert_eq!(log.shown(Wanted { since_unix_ns: Some(8 * second), ..tail(5) }), "8\n9\n");
        assert_eq!(log.shown(Wanted { timestamps: true, ..tail(1) }), "1970-01-01T00:00:09Z 9\n");
    }

    #[test]
    fn pieces_of_a_line_are_joined_and_have_one_time() {
        let log = Log::new("pieces");
        let entry = |second: u32, rest: &str| log.add(&format!("1970-01-01T00:00:0{second}Z {rest}\n"));
        entry(1, "stdout P one, ");
        entry(2, "stderr P ERR");
        entry(3, "stdout P two, ");
        entry(4, "stderr F OR");
        entry(5, "stdout F three");
        let (out, err) = log.shown_as(Format::Cri, Wanted { timestamps: true, ..Wanted::default() });
        assert_eq!(out, "1970-01-01T00:00:01Z one, two, three\n");
        assert_eq!(err, "1970-01-01T00:00:02Z ERROR\n");
        let json = log.shown_as(Format::Cri, Wanted { json: true, tail: Some(1), ..Wanted::default() }).0;
        assert_eq!(json, "{\"log\":\"three\\n\",\"stream\":\"stdout\",\"time\":\"1970-01-01T00:00:05Z\"}\n");
    }

    #[test]
    fn what_is_no_entry_is_shown_whatever_its_time() {
        let log = Log::new("garbage");
        log.add("not json\n");
        log.line(1);
        assert_eq!(log.shown(Wanted::default()), "not json\n1\n");
        assert_eq!(log.shown(Wanted { since_unix_ns: Some(i64::MAX), ..Wanted::default() }), "not json\n");
    }

    #[test]
    fn logs_of_earlier_drivers_come_first_and_count_for_the_last_lines() {
        let log = Log::new("earlier");
        log.line(1);
        log.line(2);
        let raw = log.0.join("log.raw");
        fs::write(&raw, "3\n4\n").unwrap();
        let missing = Source::Files { path: log.0.join("log.cri"), format: Format::Cri, kept: 0 };
        let all = [
            Source::Files { path: log.path(), format: Format::Json, kept: 0 },
            missing,
            Source::Files { path: raw, format: Format::Raw, kept: 0 },
        ];
        assert_eq!(Log::shown_of(&all, Wanted::default()).0, "1\n2\n3\n4\n");
        for (tail, expected) in [(0, ""), (1, "4\n"), (2, "3\n4\n"), (3, "2\n3\n4\n"), (9, "1\n2\n3\n4\n")] {
            assert_eq!(Log::shown_of(&all, Wanted { tail: Some(tail), ..Wanted::default() }).0, expected, "{tail}");
        }
    }

    #[test]
    fn a_source_that_cannot_give_what_is_wanted_says_so() {
        let of = |driver: &str, wanted: Wanted| {
            let inspected = pb::InspectResponse { log_driver: driver.to_owned(), ..Default::default() };
            sources(&inspected, &wanted).map_err(|e| e.to_string())
        };
        assert!(of("none", Wanted::default()).unwrap_err().contains("is not kept"));
        assert!(of("", Wanted::default()).unwrap_err().contains("not kept by holdfast"));
        let timestamps = Wanted { timestamps: true, ..Wanted::default() };
        assert!(of("raw", timestamps).unwrap_err().contains("keeps no times"));
        assert!(of("raw", Wanted { since_unix_ns: Some(1), ..Wanted::default() }).is_err());
        let raw = of("raw", Wanted::default()).unwrap();
        assert!(matches!(raw[..], [Source::Files { format: Format::Raw, .. }]));
        assert!(matches!(of("journald", timestamps).unwrap()[..], [Source::Journal { .. }]));
    }
}
