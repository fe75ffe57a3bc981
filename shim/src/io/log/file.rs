//! The log as files on the disk: appending, rotation by size and count, reopening.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::PIECE_LIMIT;
use crate::io::stdio::{FileFormat, LogSettings};

/// More than any entry that we write: every byte of a piece can become six, and there is a frame around it.
const ENTRY_LIMIT: u64 = 6 * PIECE_LIMIT as u64 + 256;

/// By how much a raw file may grow over its limit to keep a line whole, in bytes.
const RAW_GRACE: u64 = PIECE_LIMIT as u64;

/// A log file that is rotated by size. The calls block on the disk.
///
/// Entries are never divided between two files. Raw output has none: there it is lines that stay whole, unless one is so
/// long that the file would grow by more than `RAW_GRACE` over its limit.
#[derive(Debug)]
pub struct LogFile {
    settings: LogSettings,
    file: File,
    /// The file's length, in bytes.
    size: u64,
    /// How much of the current batch is in the file.
    written: usize,
    /// Whether that ends inside a line.
    inside_line: bool,
    /// Whether [`LogFile::reopen`] waits for the end of the line.
    reopen: bool,
}

/// How far a [`LogFile`] has come, for whoever takes it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    written: usize,
    inside_line: bool,
    reopen: bool,
}

impl LogFile {
    /// Opens or makes (mode 0640) the log. When a line would make it larger than the settings allow, it is renamed to
    /// `path.1` first, `path.1` to `path.2`, and so on, so that there are at most as many files as wanted; of a single one
    /// nothing is kept.
    ///
    /// An entry that a killed writer left half-written at the end is cut off: nobody can read it. Raw output is left as it
    /// is.
    ///
    /// # Errors
    /// What the kernel says; a path that is a symbolic link or no regular file is refused.
    pub fn open(settings: &LogSettings) -> io::Result<Self> {
        let mut file = open_regular(&settings.path, false)?;
        let (size, inside_line) = match settings.format {
            FileFormat::Raw => {
                let size = file.metadata()?.len();
                (size, !ends_a_line(&mut file, size)?)
            }
            FileFormat::Json | FileFormat::Cri => (cut_torn_entry(&mut file)?, false),
        };
        Ok(Self { settings: settings.clone(), file, size, written: 0, inside_line, reopen: false })
    }

    /// Takes over an open log from an earlier image of this process, with the batch that it was writing.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn resume(settings: &LogSettings, fd: OwnedFd, progress: Progress) -> io::Result<Self> {
        let file = File::from(fd);
        let size = file.metadata()?.len();
        let Progress { written, inside_line, reopen } = progress;
        Ok(Self { settings: settings.clone(), file, size, written, inside_line, reopen })
    }

    /// What [`LogFile::resume`] needs besides the settings: a copy of the descriptor, and the progress.
    ///
    /// # Errors
    /// What dup(2) says.
    pub fn parts(&self) -> io::Result<(OwnedFd, Progress)> {
        let Self { written, inside_line, reopen, .. } = *self;
        Ok((self.file.try_clone()?.into(), Progress { written, inside_line, reopen }))
    }

    /// The current file's path.
    pub fn path(&self) -> &Path {
        &self.settings.path
    }

    /// Goes on in a file of the same name, if [`is_lost`] says so of the one that is open; `batch` is what is being written,
    /// and `failed` whether the last attempt at it did. An entry that is half in the lost file is written again, whole.
    ///
    /// # Errors
    /// As `mkdir(2)` and `open(2)`; the old file stays in use.
    pub fn follow_name(&mut self, batch: &[u8], failed: bool) -> io::Result<()> {
        if !is_lost(&self.file, self.path(), failed) {
            return Ok(());
        }
        let found = find_again(self.path(), 0o700, || Self::open(&self.settings))?;
        let written = match self.settings.format {
            FileFormat::Raw => self.written,
            FileFormat::Json | FileFormat::Cri => {
                batch[..self.written].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1)
            }
        };
        *self = Self { written, ..found };
        Ok(())
    }

    /// Appends a batch: whole entries, each ended by a newline, or raw bytes.
    ///
    /// # Errors
    /// What the kernel says. A part of the batch may be written then: call again with the very same batch, which goes on
    /// from there, before any other.
    pub fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        while self.written < batch.len() {
            let rest = &batch[self.written..];
            let run = self.next_run(rest)?;
            match self.file.write(&rest[..run]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.advance(n, rest[n - 1] != b'\n'),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.written = 0;
        Ok(())
    }

    fn advance(&mut self, n: usize, inside_line: bool) {
        self.written += n;
        self.size += n as u64;
        self.inside_line = inside_line;
    }

    /// How much of `rest` goes into the current file, which is changed first if that is due. At the beginning of a line
    /// these are all lines that fit, at least one; inside a line it is the rest of that line.
    fn next_run(&mut self, rest: &[u8]) -> io::Result<usize> {
        let newline = rest.iter().position(|&b| b == b'\n');
        let first_line = newline.map_or(rest.len(), |at| at + 1);
        if self.inside_line && !self.divides_line(newline.is_some()) {
            return Ok(first_line.min(self.most()));
        }
        if mem::take(&mut self.reopen)
            && let Err(e) = self.reopen_now()
        {
            self.reopen = true;
            return Err(e);
        }
        let Some(max) = self.settings.max_size else { return Ok(rest.len()) };
        if self.size > 0 && self.size + first_line as u64 > max {
            self.rotate()?;
        }
        let room = usize::try_from(max.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if rest.len() <= room {
            return Ok(rest.len());
        }
        let fitting = rest[..room].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        Ok(fitting.max(first_line).min(self.most()))
    }

    /// Whether the file is changed inside a line: only in raw output, where nothing says that a line ever ends. It is for a
    /// reopening that would have to wait for that, and at the limit of what a line may be granted.
    fn divides_line(&self, ends_now: bool) -> bool {
        self.settings.format == FileFormat::Raw && (self.most() == 0 || self.reopen && !ends_now)
    }

    /// How much may go into this file at most, to keep a line whole.
    fn most(&self) -> usize {
        match (self.settings.format, self.settings.max_size) {
            (FileFormat::Raw, Some(max)) => {
                usize::try_from(max.saturating_add(RAW_GRACE).saturating_sub(self.size)).unwrap_or(usize::MAX)
            }
            _ => usize::MAX,
        }
    }

    /// Opens the path again, for whoever has renamed the file: what comes next goes into a new one. Whether it is done:
    /// inside a line of which the rest is known it happens at the line's end.
    ///
    /// # Errors
    /// What the kernel says; the old file stays in use.
    pub fn reopen(&mut self) -> io::Result<bool> {
        // With nothing left of the batch it is raw output, which may never end its line.
        self.reopen = self.inside_line && self.written > 0;
        if !self.reopen {
            self.reopen_now()?;
        }
        Ok(!self.reopen)
    }

    fn reopen_now(&mut self) -> io::Result<()> {
        let file = open_regular(self.path(), false)?;
        self.size = file.metadata()?.len();
        self.file = file;
        Ok(())
    }

    /// Starts a new file. At every moment each file that is kept has a name, and the names are without a gap: who reads
    /// them from the newest to the oldest while they move up meets all of them. An attempt that fails can be repeated:
    /// names move up only as far as the first one that is free, or that an earlier attempt has moved already.
    fn rotate(&mut self) -> io::Result<()> {
        let new = self.sibling("new");
        let file = open_regular(&new, true)?;
        let kept = self.settings.max_files.saturating_sub(1);
        let free = |&i: &u32| match (inode(&self.numbered(i)), inode(&self.numbered(i - 1))) {
            (None, _) => true,
            (one, other) => one == other,
        };
        let end = (1..kept).find(free).unwrap_or(kept);
        for i in (0..end).rev() {
            self.move_up(i)?;
        }
        fs::rename(&new, self.path())?;
        self.file = file;
        self.size = 0;
        Ok(())
    }

    /// Gives the file of one number the next number too, whose file loses it.
    fn move_up(&self, number: u32) -> io::Result<()> {
        let (from, to, spare) = (self.numbered(number), self.numbered(number + 1), self.sibling("spare"));
        remove_existing(&spare)?;
        match fs::hard_link(&from, &spare) {
            Ok(()) => fs::rename(&spare, &to)?,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            // Not every filesystem knows links: there is a gap for a moment then.
            Err(_) => return rename_existing(&from, &to),
        }
        // rename(2) does nothing if both are the same file already.
        remove_existing(&spare)
    }

    /// 0 is the current file.
    fn numbered(&self, number: u32) -> PathBuf {
        if number == 0 { self.path().to_owned() } else { self.sibling(&number.to_string()) }
    }

    fn sibling(&self, suffix: &str) -> PathBuf {
        let mut name = self.path().to_owned().into_os_string();
        name.push(".");
        name.push(suffix);
        name.into()
    }
}

/// Whether a log is written into a file that nobody will find: it was removed; or writing to it fails, and its name is
/// another one's by now, as when its filesystem was broken and mounted anew. A file that was only renamed is left alone: who
/// renames it asks for a new one.
pub fn is_lost(file: &File, path: &Path, failed: bool) -> bool {
    let is_anothers = |ours| failed && inode(path).is_some_and(|named| Some(named) != ours);
    match file.metadata() {
        Ok(ours) => ours.nlink() == 0 || is_anothers(Some((ours.dev(), ours.ino()))),
        Err(_) => is_anothers(None),
    }
}

/// Makes the place for a log anew, has it opened, and says so.
///
/// # Errors
/// As `mkdir(2)`, and what `open` gives.
pub fn find_again<T>(path: &Path, mode: u32, open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    make_parents(path, mode)?;
    let opened = open()?;
    tracing::warn!(log = %path.display(), "the container's log was removed or replaced, going on in a new one");
    Ok(opened)
}

/// Makes the directory of a log, and those above it.
///
/// # Errors
/// As `mkdir(2)`.
pub fn make_parents(path: &Path, mode: u32) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| DirBuilder::new().recursive(true).mode(mode).create(parent))
}

/// Which file has that name, if one has.
fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Opens for appending what must be a regular file, without waiting and without following a link.
fn open_regular(path: &Path, truncate: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    if truncate {
        file.set_len(0)?;
    }
    Ok(file)
}

fn rename_existing(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn remove_existing(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Whether nothing, or a newline, comes before the end.
fn ends_a_line(file: &mut File, size: u64) -> io::Result<bool> {
    if size == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(size - 1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Cuts off what follows the last newline, and gives the length. A tail too long to be an entry of ours is somebody
/// else's text: it stays, and gets its newline.
fn cut_torn_entry(file: &mut File) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let start = size.saturating_sub(ENTRY_LIMIT);
    if ends_a_line(file, size)? {
        return Ok(size);
    }
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.take(ENTRY_LIMIT).read_to_end(&mut tail)?;
    match tail.iter().rposition(|&b| b == b'\n') {
        None if start > 0 => {
            file.write_all(b"\n")?;
            Ok(size + 1)
        }
        newline => {
            let length = start + newline.map_or(0, |at| at as u64 + 1);
            file.set_len(length)?;
            Ok(length)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::symlink;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("holdfast-log-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn log(&self) -> PathBuf {
            self.0.join("c.log")
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap_or_else(|e| e.to_string())
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<_> =
                fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = nix::mount::umount(&self.0);
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn settings(scratch: &Scratch, max_size: Option<u64>, max_files: u32) -> LogSettings {
        LogSettings { path: scratch.log(), format: FileFormat::Json, max_size, max_files }
    }

    fn open(scratch: &Scratch, max_size: Option<u64>, max_files: u32) -> io::Result<LogFile> {
        LogFile::open(&settings(scratch, max_size, max_files))
    }

    fn open_raw(scratch: &Scratch, max_size: Option<u64>, max_files: u32) -> LogFile {
        LogFile::open(&LogSettings { format: FileFormat::Raw, ..settings(scratch, max_size, max_files) }).unwrap()
    }

    #[test]
    fn a_log_is_rotated_between_lines_and_the_oldest_is_dropped() {
        let scratch = Scratch::new("rotate");
        let mut log = open(&scratch, Some(8), 3).unwrap();
        log.append(b"aaa\nbbb\nccc\nddd\n").unwrap();
        log.append(b"eee\n").unwrap();
        log.append(b"longer than the limit\nf\n").unwrap();
        assert_eq!(scratch.names(), ["c.log", "c.log.1", "c.log.2"]);
        assert_eq!(scratch.read("c.log"), "f\n");
        assert_eq!(scratch.read("c.log.1"), "longer than the limit\n");
        assert_eq!(scratch.read("c.log.2"), "eee\n");
    }

    #[test]
    fn a_single_file_starts_over() {
        let scratch = Scratch::new("single");
        let mut log = open(&scratch, Some(8), 1).unwrap();
        log.append(b"aaa\nbbb\nccc\n").unwrap();
        assert_eq!(scratch.names(), ["c.log"]);
        assert_eq!(scratch.read("c.log"), "ccc\n");
    }

    #[test]
    fn a_rotation_that_failed_half_way_drops_nothing_when_repeated() {
        let scratch = Scratch::new("gap");
        for (name, text) in [("c.log", "live\n"), ("c.log.1", "1\n"), ("c.log.3", "3\n"), ("c.log.4", "4\n")] {
            fs::write(scratch.0.join(name), text).unwrap();
        }
        let mut log = open(&scratch, Some(5), 6).unwrap();
        log.append(b"new\n").unwrap();
        let read = |i: u32| scratch.read(&format!("c.log.{i}"));
        assert_eq!([read(1), read(2), read(3), read(4)], ["live\n", "1\n", "3\n", "4\n"]);
        assert_eq!(scratch.read("c.log"), "new\n");
    }

    #[test]
    fn a_reader_of_a_single_file_may_finish_it() {
        let scratch = Scratch::new("unlinked");
        let mut log = open(&scratch, Some(8), 1).unwrap();
        log.append(b"aaa\n").unwrap();
        let mut reader = File::open(scratch.log()).unwrap();
        log.append(b"bbb\nccc\n").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), scratch.read("c.log").as_str()), ("aaa\nbbb\n", "ccc\n"));
    }

    #[test]
    fn a_rotation_that_died_half_way_is_finished_and_drops_nothing() {
        // After the first name, after the second, and with a left-over of each kind.
        for links in [&[("c.log.1", "c.log.2")][..], &[("c.log.1", "c.log.2"), ("c.log", "c.log.1")]] {
            let scratch = Scratch::new("died");
            fs::write(scratch.log(), "live\n").unwrap();
            fs::write(scratch.0.join("c.log.1"), "1\n").unwrap();
            for (from, to) in links {
                let _ = fs::remove_file(scratch.0.join(to));
                fs::hard_link(scratch.0.join(from), scratch.0.join(to)).unwrap();
            }
            fs::write(scratch.0.join("c.log.new"), "half").unwrap();
            fs::hard_link(scratch.log(), scratch.0.join("c.log.spare")).unwrap();
            open(&scratch, Some(5), 4).unwrap().append(b"new\n").unwrap();
            assert_eq!(scratch.names(), ["c.log", "c.log.1", "c.log.2"]);
            let read = |i: u32| scratch.read(&format!("c.log.{i}"));
            assert_eq!([scratch.read("c.log"), read(1), read(2)], ["new\n", "live\n", "1\n"]);
        }
    }

    #[test]
    fn raw_output_is_rotated_at_line_ends_and_keeps_its_last_words() {
        let scratch = Scratch::new("raw");
        let mut log = open_raw(&scratch, Some(8), 4);
        // A line that comes in parts and overshoots the limit stays whole.
        for part in [&b"aaa\nbb"[..], b"bbbb", b"b\nc"] {
            log.append(part).unwrap();
        }
        assert_eq!((scratch.read("c.log.1").as_str(), scratch.read("c.log").as_str()), ("aaa\nbbbbbbb\n", "c"));
        let mut log = open_raw(&scratch, Some(8), 4);
        log.append(b"cc\ndddddd\n").unwrap();
        assert_eq!((scratch.read("c.log.1").as_str(), scratch.read("c.log").as_str()), ("ccc\n", "dddddd\n"));
    }

    #[test]
    fn a_limit_that_no_file_reaches_is_none() {
        let scratch = Scratch::new("no-limit");
        let mut log = open_raw(&scratch, Some(u64::MAX), 3);
        log.append(b"be").unwrap();
        log.append(b"gun\n").unwrap();
        assert_eq!((scratch.read("c.log").as_str(), scratch.names().len()), ("begun\n", 1));
    }

    #[test]
    fn raw_output_without_line_ends_is_divided() {
        let scratch = Scratch::new("raw-endless");
        let mut log = open_raw(&scratch, Some(1000), 3);
        let bytes: Vec<u8> = (0..60_000_u32).map(|n| b'a' + (n % 23) as u8).collect();
        bytes.chunks(7000).for_each(|chunk| log.append(chunk).unwrap());
        let all = ["c.log.2", "c.log.1", "c.log"].map(|name| scratch.read(name));
        let most = 1000 + usize::try_from(RAW_GRACE).unwrap();
        assert!(all.iter().all(|text| !text.is_empty() && text.len() <= most));
        assert!(bytes.ends_with(all.concat().as_bytes()));
    }

    #[test]
    fn raw_output_is_reopened_at_once_even_inside_a_line() {
        let scratch = Scratch::new("raw-reopen");
        let mut log = open_raw(&scratch, None, 0);
        log.append(b"half").unwrap();
        fs::rename(scratch.log(), scratch.0.join("moved")).unwrap();
        assert!(log.reopen().unwrap());
        log.append(b" line\n").unwrap();
        assert_eq!((scratch.read("moved").as_str(), scratch.read("c.log").as_str()), ("half", " line\n"));
    }

    #[test]
    fn a_log_that_was_moved_away_is_reopened() {
        let scratch = Scratch::new("reopen");
        let mut log = open(&scratch, None, 0).unwrap();
        log.append(b"old\n").unwrap();
        fs::rename(scratch.log(), scratch.0.join("moved")).unwrap();
        log.append(b"still old\n").unwrap();
        assert!(log.reopen().unwrap());
        log.append(b"new\n").unwrap();
        assert_eq!(scratch.read("moved"), "old\nstill old\n");
        assert_eq!(scratch.read("c.log"), "new\n");
        assert_eq!(fs::metadata(scratch.log()).unwrap().mode() & 0o037, 0, "nobody else may read or write it");
    }

    #[test]
    fn a_torn_entry_at_the_end_is_cut_off() {
        let scratch = Scratch::new("torn");
        for (before, after) in [("whole\n{\"log\":\"ha", "whole\n"), ("{\"l", ""), ("whole\n", "whole\n")] {
            fs::write(scratch.log(), before).unwrap();
            let mut log = open(&scratch, None, 0).unwrap();
            log.append(b"next\n").unwrap();
            assert_eq!(scratch.read("c.log"), format!("{after}next\n"));
        }
        let foreign = "x".repeat(usize::try_from(ENTRY_LIMIT).unwrap() + 5);
        fs::write(scratch.log(), &foreign).unwrap();
        open(&scratch, None, 0).unwrap().append(b"next\n").unwrap();
        assert_eq!(scratch.read("c.log"), format!("{foreign}\nnext\n"));
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let scratch = Scratch::new("refused");
        symlink("/dev/null", scratch.log()).unwrap();
        assert!(open(&scratch, None, 0).is_err());
        nix::unistd::mkfifo(&scratch.0.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [scratch.0.join("fifo"), scratch.0.clone(), "/dev/null".into()] {
            let settings = LogSettings { path, ..settings(&scratch, None, 0) };
            assert!(LogFile::open(&settings).is_err(), "{}", settings.path.display());
        }
    }

    /// A full disk, in the form of a small tmpfs.
    fn full_disk(name: &str) -> Option<(Scratch, PathBuf)> {
        let scratch = Scratch::new(name);
        let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
        if nix::mount::mount(none, &scratch.0, Some("tmpfs"), flags, Some("size=64k,mode=755")).is_err() {
            crate::skip::skip("needs root to mount a tmpfs");
            return None;
        }
        let filler = scratch.0.join("filler");
        fs::write(&filler, vec![0; 40 << 10]).unwrap();
        Some((scratch, filler))
    }

    #[test]
    fn a_batch_that_met_a_full_disk_goes_on_where_it_stopped() {
        let Some((scratch, filler)) = full_disk("full") else { return };
        let mut log = open(&scratch, None, 0).unwrap();
        let batch: String = (0..4000).map(|i| format!("line {i}\n")).collect();
        for _ in 0..3 {
            let error = log.append(batch.as_bytes()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        }
        assert!(log.written > 0 && log.inside_line, "the test wants a torn line");
        assert!(!log.reopen().unwrap(), "first the rest of the line");
        let (fd, progress) = log.parts().unwrap();
        let mut log = LogFile::resume(&settings(&scratch, None, 0), fd, progress).unwrap();
        fs::rename(scratch.log(), scratch.0.join("moved")).unwrap();
        fs::remove_file(filler).unwrap();
        log.append(batch.as_bytes()).unwrap();
        let (moved, new) = (scratch.read("moved"), scratch.read("c.log"));
        assert!(moved.ends_with('\n') && new.starts_with("line "), "a line is in one file only");
        assert_eq!(moved + &new, batch);
    }

    #[test]
    fn a_rotation_on_a_full_disk_recovers() {
        let Some((scratch, filler)) = full_disk("full-rotate") else { return };
        let mut log = open(&scratch, Some(16 << 10), 2).unwrap();
        let batch: String = (0..3000).map(|i| format!("line {i}\n")).collect();
        assert_eq!(log.append(batch.as_bytes()).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        fs::remove_file(filler).unwrap();
        log.append(batch.as_bytes()).unwrap();
        let kept = scratch.read("c.log.1") + &scratch.read("c.log");
        assert!(batch.ends_with(&kept) && kept.len() > 16 << 10);
        assert_eq!(scratch.names(), ["c.log", "c.log.1"]);
    }
}
