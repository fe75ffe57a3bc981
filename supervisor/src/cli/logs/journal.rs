//! A container's entries in the journal, read by `journalctl`, which knows the journal's files and their rotation.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::entry::Entry;
use super::tail::Count;
use super::{CliError, LOOK, Printer, Wanted};

/// The program.
const JOURNALCTL: &str = "journalctl";

/// Entries are received after they were read, so that those of a time are behind that time in the journal.
fn since(unix_ns: i64) -> String {
    format!("--since=@{}", unix_ns.div_euclid(1_000_000_000))
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> CliError {
    CliError::io(format!("{what} {JOURNALCTL}, by which logs in the journal are read"))
}

/// What the journal has of one container.
pub(super) struct Journal {
    matches: [String; 2],
    /// journalctl's arguments for where to begin.
    from: Vec<String>,
}

impl Journal {
    /// Begins with the first entry that may be wanted. Also how many of `tail` lines there are.
    ///
    /// # Errors
    /// That journalctl cannot be run, or what it says.
    pub(super) fn open(
        id: &str,
        namespace: &str,
        tail: Option<usize>,
        wanted: &Wanted,
    ) -> Result<(Self, usize), CliError> {
        let matches = [format!("CONTAINER_ID_FULL={id}"), format!("HOLDFAST_NAMESPACE={namespace}")];
        let mut journal = Self { matches, from: Vec::new() };
        // What was sent before is in the journal then. Of one that cannot, the last words may come a little late.
        journal.sync()?;
        let mut lines = 0;
        match tail {
            Some(most) => (journal.from, lines) = journal.begin_of_last(most, wanted)?,
            None => journal.from.extend(wanted.since_unix_ns.map(since)),
        }
        Ok((journal, lines))
    }

    /// Prints what there is, and what comes until `ended`.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub(super) fn copy<O: Write, E: Write>(
        mut self,
        ended: &AtomicBool,
        printer: &mut Printer<O, E>,
    ) -> Result<(), CliError> {
        if !ended.load(Ordering::Acquire) {
            let seen = self.follow(ended, printer)?;
            // What came between our last look and the end.
            self.sync()?;
            if let Some(cursor) = seen {
                self.from = vec![format!("--after-cursor={cursor}")];
            }
        }
        let mut lines = self.read(&self.from)?;
        while let Some((entry, _)) = lines.next()? {
            printer.print(&entry).map_err(CliError::io("print"))?;
        }
        printer.flush().map_err(CliError::io("print"))?;
        lines.finish()
    }

    fn command(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(JOURNALCTL);
        command.args(["--quiet", "--no-pager", "--all", "--output=json"]).args(arguments).args(&self.matches);
        command
    }

    fn read(&self, arguments: &[String]) -> Result<Lines, CliError> {
        let mut child =
            self.command(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed("run"))?;
        let out = child.stdout.take().expect("it was asked for");
        Ok(Lines { child, out: BufReader::new(out), line: Vec::new() })
    }

    fn sync(&self) -> Result<(), CliError> {
        let mut command = Command::new(JOURNALCTL);
        let synced = command.arg("--sync").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        synced.map(drop).map_err(failed("run"))
    }

    /// The argument that begins with the last `most` lines, and how many there are.
    fn begin_of_last(&self, most: usize, wanted: &Wanted) -> Result<(Vec<String>, usize), CliError> {
        let mut lines = self.read(&["--reverse".to_owned()])?;
        let mut count = Count::new(most);
        let (mut begin, mut newest) = (None, None);
        while let Some((entry, cursor)) = lines.next()? {
            newest.get_or_insert_with(|| cursor.clone());
            if wanted.is_early(&entry) && !count.takes(entry.ends_line()) {
                // With none wanted: behind the newest.
                let behind = newest.map(|cursor| format!("--after-cursor={cursor}"));
                return Ok((begin.or(behind).into_iter().collect(), count.begun()));
            }
            begin = Some(format!("--cursor={cursor}"));
        }
        lines.finish()?;
        Ok((begin.into_iter().collect(), count.begun()))
    }

    /// Prints what comes until `ended`; gives the place of the last entry that was seen.
    fn follow<O: Write, E: Write>(
        &self,
        ended: &AtomicBool,
        printer: &mut Printer<O, E>,
    ) -> Result<Option<String>, CliError> {
        let arguments = [&["--follow".to_owned(), "--no-tail".to_owned()], self.from.as_slice()].concat();
        let mut lines = self.read(&arguments)?;
        let mut seen = None;
        loop {
            if lines.has_more()? {
                let Some((entry, cursor)) = lines.next()? else {
                    lines.finish()?;
                    return Err(failed("follow the end of")(io::ErrorKind::UnexpectedEof.into()));
                };
                printer.print(&entry).map_err(CliError::io("print"))?;
                seen = Some(cursor);
            } else {
                printer.flush().map_err(CliError::io("print"))?;
                if ended.load(Ordering::Acquire) || printer.wanted.is_past() {
                    return Ok(seen);
                }
            }
        }
    }
}

/// What a journalctl prints. It is ended with it.
struct Lines {
    child: Child,
    out: BufReader<ChildStdout>,
    line: Vec<u8>,
}

impl Lines {
    /// Waits a moment: whether there is something to read, or the end.
    fn has_more(&mut self) -> Result<bool, CliError> {
        if !self.out.buffer().is_empty() {
            return Ok(true);
        }
        let mut wanted = [PollFd::new(self.out.get_ref().as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
        match poll(&mut wanted, patience) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(e) => Err(failed("wait for")(e.into())),
        }
    }

    /// The next entry and its cursor; none at the end.
    fn next(&mut self) -> Result<Option<(Entry, String)>, CliError> {
        loop {
            self.line.clear();
            if self.out.read_until(b'\n', &mut self.line).map_err(failed("read from"))? == 0 {
                return Ok(None);
            }
            if let Some(found) = Entry::of_journal(&self.line) {
                return Ok(Some(found));
            }
        }
    }

    /// After the end: whether it was a good one. What was wrong it has said itself.
    fn finish(mut self) -> Result<(), CliError> {
        let status = self.child.wait().map_err(failed("wait for"))?;
        if status.success() {
            return Ok(());
        }
        Err(failed("read the journal with")(io::Error::other(format!("it ended with {status}"))))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill(); // ended already is as good
        let _ = self.child.wait();
    }
}
