//! `logs`: reads what the shim writes, in Docker's json-file format, across rotation. The supervisor is asked only where
//! the log is and when the container has ended, so that following goes on while it is away.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use holdfast_proto::supervisor as pb;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::args::LogsArgs;
use super::connection::Connection;
use super::{CliError, Outcome, render};
use crate::client::now_unix_ns;

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// One line of the file.
#[derive(Debug, Deserialize)]
struct Entry {
    log: String,
    #[serde(default)]
    stream: String,
    #[serde(default)]
    time: String,
}

impl Entry {
    fn unix_ns(&self) -> i64 {
        let time = humantime::parse_rfc3339(&self.time).ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        time.and_then(|d| i64::try_from(d.as_nanos()).ok()).unwrap_or(0)
    }
}

/// What is wanted of the log.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    since_unix_ns: i64,
    tail: Option<usize>,
    timestamps: bool,
    json: bool,
}

pub(super) async fn run(connection: Connection, args: &LogsArgs, json: bool) -> Outcome {
    let request = pb::InspectRequest { ref_: args.container.clone(), ..Default::default() };
    let inspected = connection.inspect(&request).await?;
    let since = args.since.as_deref().map(|text| render::parse_time(text, now_unix_ns()));
    let since_unix_ns = since.transpose().map_err(CliError::Usage)?.unwrap_or(0);
    let wanted = Wanted { since_unix_ns, tail: args.tail, timestamps: args.timestamps, json };
    let path = PathBuf::from(inspected.log_path);
    let ended = Arc::new(AtomicBool::new(!args.follow));
    let (done, copied) = oneshot::channel();
    let until = Arc::clone(&ended);
    std::thread::spawn(move || {
        let result = copy(&path, wanted, &until, &mut io::stdout(), &mut io::stderr());
        let _ = done.send(result.map_err(CliError::io(format!("show {}", path.display())))); // we may have left
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

/// Prints what there is, and what comes until `ended`.
fn copy(path: &Path, wanted: Wanted, ended: &AtomicBool, out: &mut impl Write, err: &mut impl Write) -> io::Result<()> {
    let mut reader = Reader::open(path)?;
    let mut tail = std::collections::VecDeque::new();
    // What is there already: only the last N of it are shown.
    while let Some(entry) = reader.next()? {
        match wanted.tail {
            _ if entry.unix_ns() < wanted.since_unix_ns => {}
            None => write(&entry, wanted, out, err)?,
            Some(most) => {
                tail.push_back(entry);
                if tail.len() > most {
                    tail.pop_front();
                }
            }
        }
    }
    for entry in tail {
        write(&entry, wanted, out, err)?;
    }
    loop {
        // The order matters: what was written before the end is there once the end is known.
        let last = ended.load(Ordering::Acquire);
        while let Some(entry) = reader.next()? {
            write(&entry, wanted, out, err)?;
        }
        out.flush()?;
        if last {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

fn write(entry: &Entry, wanted: Wanted, out: &mut impl Write, err: &mut impl Write) -> io::Result<()> {
    let to_err = entry.stream == "stderr" && !wanted.json;
    let mut text = String::new();
    if wanted.json {
        let value = serde_json::json!({ "time": entry.time, "stream": entry.stream, "log": entry.log });
        text += &render::json_line(&value);
    } else {
        if wanted.timestamps {
            text = format!("{} ", entry.time);
        }
        text += &entry.log;
    }
    let written = if to_err { err.write_all(text.as_bytes()) } else { out.write_all(text.as_bytes()) };
    match written {
        // Our reader has left: nothing more is wanted.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other,
    }
}

/// Reads the files of a log from the oldest on, and follows the newest through rotations.
struct Reader {
    path: PathBuf,
    /// Files to be read, the oldest last.
    queue: Vec<File>,
    current: Option<BufReader<File>>,
    /// The beginning of a line whose rest is not written yet.
    partial: Vec<u8>,
}

impl Reader {
    fn open(path: &Path) -> io::Result<Self> {
        let mut reader = Self { path: path.to_owned(), queue: Vec::new(), current: None, partial: Vec::new() };
        reader.queue = reader.open_from(0)?;
        Ok(reader)
    }

    /// Opens the log's files, the newest first, up to the one before `inode` (0: all of them). Opened together, so that a
    /// rotation in between can at worst show one twice; that is checked by inode.
    fn open_from(&self, inode: u64) -> io::Result<Vec<File>> {
        let mut files: Vec<File> = Vec::new();
        let mut seen: Vec<u64> = Vec::new();
        for number in 0.. {
            let path = match number {
                0 => self.path.clone(),
                n => PathBuf::from(format!("{}.{n}", self.path.display())),
            };
            match File::open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && number == 0 => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) => return Err(e),
                Ok(file) => {
                    let this = file.metadata()?.ino();
                    if this == inode {
                        break;
                    }
                    if !seen.contains(&this) {
                        seen.push(this);
                        files.push(file);
                    }
                }
            }
        }
        Ok(files)
    }

    /// The next whole line, if there is one by now. Lines that are no entries are shown as they are.
    fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if self.current.is_none() {
                match self.queue.pop() {
                    Some(file) => self.current = Some(BufReader::new(file)),
                    None => {
                        self.queue = self.open_from(0)?;
                        if self.queue.is_empty() {
                            return Ok(None);
                        }
                        continue;
                    }
                }
            }
            let Some(current) = &mut self.current else { return Ok(None) };
            current.read_until(b'\n', &mut self.partial)?;
            if self.partial.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                return Ok(Some(parse(&line)));
            }
            if !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// At the end of a file: goes on to the next one, if this one is not the newest any more.
    fn advance(&mut self) -> io::Result<bool> {
        if !self.queue.is_empty() {
            self.partial.clear();
            self.current = None;
            return Ok(true);
        }
        let Some(current) = &mut self.current else { return Ok(true) };
        let inode = current.get_ref().metadata()?.ino();
        match fs::metadata(&self.path) {
            Ok(newest) if newest.ino() != inode => {}
            // Between the two steps of a rotation there is none.
            _ => return Ok(false),
        }
        // It may have grown between our last look and its rotation.
        if !current.fill_buf()?.is_empty() {
            return Ok(true);
        }
        self.queue = self.open_from(inode)?;
        self.partial.clear();
        self.current = None;
        Ok(!self.queue.is_empty())
    }
}

fn parse(line: &[u8]) -> Entry {
    serde_json::from_slice(line).unwrap_or_else(|_| Entry {
        log: String::from_utf8_lossy(line).into_owned(),
        stream: "stdout".to_owned(),
        time: String::new(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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
            for n in (1..keep).rev() {
                let _ = fs::rename(numbered(n), numbered(n + 1));
            }
            fs::rename(self.path(), numbered(1)).unwrap();
        }
        fn shown(&self, wanted: Wanted) -> String {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            copy(&self.path(), wanted, &AtomicBool::new(true), &mut out, &mut err).unwrap();
            String::from_utf8(out).unwrap() + &String::from_utf8(err).unwrap()
        }
    }

    impl Drop for Log {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn all(reader: &mut Reader) -> Vec<String> {
        std::iter::from_fn(|| reader.next().unwrap()).map(|e| e.log.trim().to_owned()).collect()
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_empty_and_then_read() {
        let log = Log::new("absent");
        let mut reader = Reader::open(&log.path()).unwrap();
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
    }

    #[test]
    fn following_loses_and_repeats_nothing_across_rotations() {
        let log = Log::new("follow");
        log.line(1);
        let mut reader = Reader::open(&log.path()).unwrap();
        assert_eq!(all(&mut reader), ["1"]);
        log.line(2);
        log.rotate(5);
        assert_eq!(all(&mut reader), ["2"], "what was added before the rotation");
        log.line(3);
        log.rotate(5);
        log.line(4);
        assert_eq!(all(&mut reader), ["3", "4"], "two rotations between two looks");
    }

    #[test]
    fn half_a_line_waits_for_its_rest() {
        let log = Log::new("half");
        log.add("{\"log\":\"a");
        let mut reader = Reader::open(&log.path()).unwrap();
        assert!(reader.next().unwrap().is_none());
        log.add("b\\n\",\"stream\":\"stdout\"}\n");
        assert_eq!(all(&mut reader), ["ab"]);
    }

    #[test]
    fn tail_since_and_timestamps() {
        let log = Log::new("tail");
        for n in 1..=9 {
            log.line(n);
        }
        assert_eq!(log.shown(Wanted { tail: Some(2), ..Wanted::default() }), "8\n9\n");
        assert_eq!(log.shown(Wanted { tail: Some(0), ..Wanted::default() }), "");
        assert_eq!(log.shown(Wanted { since_unix_ns: 8_000_000_000, ..Wanted::default() }), "8\n9\n");
        let stamped = log.shown(Wanted { tail: Some(1), timestamps: true, ..Wanted::default() });
        assert_eq!(stamped, "1970-01-01T00:00:09Z 9\n");
    }

    #[test]
    fn what_is_no_entry_is_shown_as_it_is() {
        let log = Log::new("garbage");
        log.add("not json\n");
        log.line(1);
        assert_eq!(log.shown(Wanted::default()), "not json\n1\n");
    }
}
