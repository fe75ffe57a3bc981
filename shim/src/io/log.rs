//! A container's log, written by the shim itself in Docker's json-file format.
//!
//! [`JsonLines`] turns what a stream delivered into whole log lines and does no I/O; [`LogFile`] brings whole lines to
//! the disk. Between the two lies a batch that the caller keeps until it is written: after ENOSPC or EIO the same batch is
//! appended again, and the file goes on at the byte where it stopped. So no line is ever torn, lost or doubled by an error
//! that passes, and none is ever divided between two files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::rfc3339::{self, Fraction};

/// The longest piece of a line that goes into one entry, in bytes, as in Docker.
pub const PIECE_LIMIT: usize = 16 << 10;

/// How much room the beginning of a line may keep while there is none, in bytes.
const IDLE_CAPACITY: usize = 1 << 10;

/// More than any entry that we write: every byte of a piece can become six, and there is a frame around it.
const ENTRY_LIMIT: u64 = 6 * PIECE_LIMIT as u64 + 256;

/// The beginning of one stream's current line. One for stdout and one for stderr, else their lines mix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JsonLines {
    /// What came since the last newline, at most [`PIECE_LIMIT`] bytes.
    pending: Vec<u8>,
    /// When the first byte of it came; 0 if nothing is pending.
    since: u64,
}

impl JsonLines {
    /// Takes what was read from `stream` (`stdout` or `stderr`) at `at_unix_ns` and appends an entry to `out` for each
    /// line that it completes. An entry bears the time at which its first byte was read.
    ///
    /// A line longer than [`PIECE_LIMIT`] makes several entries, all but the last without newline; readers join them. A
    /// character is not divided between two of them (Docker does that, and damages it).
    pub fn push(&mut self, stream: &str, at_unix_ns: u64, data: &[u8], out: &mut Vec<u8>) {
        let mut lines = data.split(|&b| b == b'\n').peekable();
        while let Some(line) = lines.next() {
            let complete = lines.peek().is_some();
            self.take(stream, at_unix_ns, line, complete, out);
        }
    }

    /// Writes what is left when the stream has ended without a newline; the entry has none either. `at_unix_ns` counts if
    /// it is not known when that came.
    pub fn finish(&mut self, stream: &str, at_unix_ns: u64, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            let since = if self.since == 0 { at_unix_ns } else { self.since };
            write_entry(out, stream, since, &self.pending, false);
            self.clear();
        }
    }

    /// Takes a part of one line, without its newline.
    fn take(&mut self, stream: &str, at: u64, mut part: &[u8], complete: bool, out: &mut Vec<u8>) {
        loop {
            if self.pending.is_empty() {
                self.since = at;
            }
            if self.pending.len() + part.len() <= PIECE_LIMIT {
                break;
            }
            part = self.take_piece(stream, part, out);
        }
        match (complete, self.pending.is_empty()) {
            (true, true) => write_entry(out, stream, at, part, true),
            (true, false) => {
                self.pending.extend_from_slice(part);
                write_entry(out, stream, self.since, &self.pending, true);
            }
            (false, _) => self.pending.extend_from_slice(part),
        }
        if complete || self.pending.is_empty() {
            self.clear();
        }
    }

    /// Writes the largest piece that `part` completes and gives the rest of it.
    fn take_piece<'a>(&mut self, stream: &str, part: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        let (fill, rest) = part.split_at(PIECE_LIMIT - self.pending.len());
        if self.pending.is_empty() {
            let end = fill.len() - divided_character(fill);
            write_entry(out, stream, self.since, &fill[..end], false);
            return &part[end..];
        }
        self.pending.extend_from_slice(fill);
        let end = self.pending.len() - divided_character(&self.pending);
        write_entry(out, stream, self.since, &self.pending[..end], false);
        self.pending.drain(..end);
        rest
    }

    fn clear(&mut self) {
        self.since = 0;
        self.pending.clear();
        if self.pending.capacity() > IDLE_CAPACITY {
            self.pending = Vec::new();
        }
    }
}

/// The number of bytes at the end that begin a UTF-8 sequence which goes on after the end.
fn divided_character(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let length = match bytes[bytes.len() - back] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if length > back { back } else { 0 };
    }
    0
}

fn write_entry(out: &mut Vec<u8>, stream: &str, at: u64, text: &[u8], newline: bool) {
    out.extend_from_slice(b"{\"log\":\"");
    escape(out, text);
    out.extend_from_slice(if newline { b"\\n\",\"stream\":\"" } else { b"\",\"stream\":\"" });
    out.extend_from_slice(stream.as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    rfc3339::write(out, at, Fraction::Trimmed);
    out.extend_from_slice(b"\"}\n");
}

/// Appends `text` as the inside of a JSON string, byte for byte what Docker would write.
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    while !rest.is_empty() {
        let (valid, invalid) = match str::from_utf8(rest) {
            Ok(all) => (all, 0),
            Err(e) => {
                let (valid, tail) = rest.split_at(e.valid_up_to());
                (str::from_utf8(valid).unwrap_or_default(), e.error_len().unwrap_or(tail.len()))
            }
        };
        escape_text(out, valid);
        for _ in 0..invalid {
            out.extend_from_slice(b"\\ufffd"); // one for each byte, as Go does
        }
        rest = &rest[valid.len() + invalid..];
    }
}

fn escape_text(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let (short, length) = match byte {
            b'"' => (b'"', 1),
            b'\\' => (b'\\', 1),
            b'\n' => (b'n', 1),
            b'\r' => (b'r', 1),
            b'\t' => (b't', 1),
            0..=0x1f | b'<' | b'>' | b'&' => (0, 1),
            // U+2028 and U+2029 are line ends in JavaScript.
            0xe2 if matches!(&bytes[at..], [_, 0x80, 0xa8 | 0xa9, ..]) => (0, 3),
            _ => continue,
        };
        out.extend_from_slice(&bytes[copied..at]);
        match (short, length) {
            (0, 1) => push_hex(out, u32::from(byte)),
            (0, _) => push_hex(out, 0x2000 | u32::from(bytes[at + 2] & 0x3f)),
            (letter, _) => out.extend_from_slice(&[b'\\', letter]),
        }
        copied = at + length;
    }
    out.extend_from_slice(&bytes[copied..]);
}

fn push_hex(out: &mut Vec<u8>, code: u32) {
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(b"0123456789abcdef"[(code >> shift & 0xf) as usize]);
    }
}

/// A log file that is rotated by size. The calls block on the disk.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// The file's length, in bytes.
    size: u64,
    max_size: Option<u64>,
    max_files: u32,
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
    /// Opens or makes (mode 0640) the log at `path`. When a line would make it larger than `max_size` bytes, it is renamed
    /// to `path.1` first, `path.1` to `path.2`, and so on, so that there are at most `max_files` files; with one or none
    /// it starts over.
    ///
    /// An entry that a killed writer left half-written at the end is cut off: nobody can read it.
    ///
    /// # Errors
    /// What the kernel says; a path that is a symbolic link or no regular file is refused.
    pub fn open(path: &Path, max_size: Option<u64>, max_files: u32) -> io::Result<Self> {
        let mut file = open_regular(path, false)?;
        let size = cut_torn_entry(&mut file)?;
        Ok(Self::new(path, file, size, max_size, max_files))
    }

    fn new(path: &Path, file: File, size: u64, max_size: Option<u64>, max_files: u32) -> Self {
        let path = path.to_owned();
        Self { path, file, size, max_size, max_files, written: 0, inside_line: false, reopen: false }
    }

    /// Takes over an open log from an earlier image of this process, with the batch that it was writing.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn resume(
        path: &Path,
        fd: OwnedFd,
        max_size: Option<u64>,
        max_files: u32,
        progress: Progress,
    ) -> io::Result<Self> {
        let file = File::from(fd);
        let size = file.metadata()?.len();
        let Progress { written, inside_line, reopen } = progress;
        Ok(Self { written, inside_line, reopen, ..Self::new(path, file, size, max_size, max_files) })
    }

    /// What [`LogFile::resume`] needs besides the settings: a copy of the descriptor, and the progress.
    ///
    /// # Errors
    /// What dup(2) says.
    pub fn parts(&self) -> io::Result<(OwnedFd, Progress)> {
        let Self { written, inside_line, reopen, .. } = *self;
        Ok((self.file.try_clone()?.into(), Progress { written, inside_line, reopen }))
    }

    /// Appends a batch of whole lines, each ended by a newline.
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
        let first_line = rest.iter().position(|&b| b == b'\n').map_or(rest.len(), |at| at + 1);
        if self.inside_line {
            return Ok(first_line);
        }
        if mem::take(&mut self.reopen)
            && let Err(e) = self.reopen_now()
        {
            self.reopen = true;
            return Err(e);
        }
        let Some(max) = self.max_size else { return Ok(rest.len()) };
        if self.size > 0 && self.size + first_line as u64 > max {
            self.rotate()?;
        }
        let room = usize::try_from(max.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if rest.len() <= room {
            return Ok(rest.len());
        }
        let fitting = rest[..room].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        Ok(fitting.max(first_line))
    }

    /// Opens the path again, for whoever has renamed the file: what comes next goes into a new one. Inside a line it
    /// happens at the line's end.
    ///
    /// # Errors
    /// What the kernel says; the old file stays in use.
    pub fn reopen(&mut self) -> io::Result<()> {
        if self.inside_line {
            self.reopen = true;
            return Ok(());
        }
        self.reopen_now()
    }

    fn reopen_now(&mut self) -> io::Result<()> {
        let file = open_regular(&self.path, false)?;
        self.size = file.metadata()?.len();
        self.file = file;
        Ok(())
    }

    /// Starts a new file. An attempt that fails can be repeated: the new file is made before any name changes, and names
    /// move up only as far as the first gap.
    fn rotate(&mut self) -> io::Result<()> {
        if self.max_files < 2 {
            self.file.set_len(0)?;
            self.size = 0;
            return Ok(());
        }
        let new = self.sibling("new");
        let file = open_regular(&new, true)?;
        let gap = (1..self.max_files - 1).find(|&i| !self.numbered(i).exists()).unwrap_or(self.max_files - 1);
        for i in (1..gap).rev() {
            rename_existing(&self.numbered(i), &self.numbered(i + 1))?;
        }
        rename_existing(&self.path, &self.numbered(1))?;
        fs::rename(&new, &self.path)?;
        self.file = file;
        self.size = 0;
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        self.sibling(&number.to_string())
    }

    fn sibling(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".");
        name.push(suffix);
        name.into()
    }
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

/// Cuts off what follows the last newline, and gives the length. A tail too long to be an entry of ours is somebody
/// else's text: it stays, and gets its newline.
fn cut_torn_entry(file: &mut File) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let start = size.saturating_sub(ENTRY_LIMIT);
    let mut last = [0];
    if size > 0 {
        file.seek(SeekFrom::Start(size - 1))?;
        file.read_exact(&mut last)?;
    }
    if size == 0 || last == *b"\n" {
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

    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    const AT: u64 = 1_700_000_000_000_000_000;

    fn entry(log: &str, stream: &str, time: &str) -> String {
        format!("{{\"log\":\"{log}\",\"stream\":\"{stream}\",\"time\":\"{time}\"}}\n")
    }

    fn lines(chunks: &[&[u8]]) -> String {
        let (mut state, mut out) = (JsonLines::default(), Vec::new());
        for (i, chunk) in chunks.iter().enumerate() {
            state.push("stdout", AT + i as u64, chunk, &mut out);
        }
        state.finish("stdout", 0, &mut out);
        assert_eq!(state, JsonLines::default());
        String::from_utf8(out).unwrap()
    }

    /// The log texts of entries, decoded.
    fn texts(entries: &str) -> Vec<String> {
        #[derive(Deserialize)]
        struct Entry {
            log: String,
        }
        entries.lines().map(|l| serde_json::from_str::<Entry>(l).unwrap().log).collect()
    }

    #[test]
    fn each_line_is_an_entry_with_the_time_of_its_first_byte() {
        let got = lines(&[b"one\ntw", b"o\n\nthr", b"ee"]);
        let expected = [
            entry("one\\n", "stdout", "2023-11-14T22:13:20Z"),
            entry("two\\n", "stdout", "2023-11-14T22:13:20Z"),
            entry("\\n", "stdout", "2023-11-14T22:13:20.000000001Z"),
            entry("three", "stdout", "2023-11-14T22:13:20.000000001Z"),
        ];
        assert_eq!(got, expected.concat());
    }

    #[test]
    fn characters_are_escaped_as_docker_does() {
        let got = lines(&["\"\\/<>&\r\t\u{1}\u{7f}\u{2028}\u{2029}\u{202a}é漢😀\n".as_bytes()]);
        let expected = "\\\"\\\\/\\u003c\\u003e\\u0026\\r\\t\\u0001\u{7f}\\u2028\\u2029\u{202a}é漢😀\\n";
        assert_eq!(got, entry(expected, "stdout", "2023-11-14T22:13:20Z"));
    }

    #[test]
    fn each_invalid_byte_is_replaced() {
        let got = lines(&[b"a\xffb\xe2\x82c\xe2\x82\n"]);
        assert_eq!(got, entry("a\\ufffdb\\ufffd\\ufffdc\\ufffd\\ufffd\\n", "stdout", "2023-11-14T22:13:20Z"));
    }

    #[test]
    fn a_character_that_comes_in_two_reads_stays_whole() {
        assert_eq!(texts(&lines(&[b"\xe6\xbc", b"\xa2\n"])), ["漢\n"]);
    }

    #[test]
    fn a_long_line_makes_pieces_and_only_the_last_has_a_newline() {
        let full = "x".repeat(PIECE_LIMIT);
        let exactly = format!("{full}\n");
        assert_eq!(texts(&lines(&[exactly.as_bytes()])), [exactly.as_str()]);
        let long = format!("{full}{full}yz\nnext\n");
        let expected = [full.as_str(), full.as_str(), "yz\n", "next\n"];
        assert_eq!(texts(&lines(&[long.as_bytes()])), expected);
        let chunks: Vec<&[u8]> = long.as_bytes().chunks(1000).collect();
        assert_eq!(texts(&lines(&chunks)), expected);
    }

    #[test]
    fn a_piece_never_ends_inside_a_character() {
        for shift in 0..4 {
            let text = format!("{}{}\n", "x".repeat(shift), "😀".repeat(PIECE_LIMIT / 2));
            for size in [7, 4096, usize::MAX] {
                let chunks: Vec<&[u8]> = text.as_bytes().chunks(size.min(text.len())).collect();
                let pieces = texts(&lines(&chunks));
                assert_eq!(pieces.concat(), text);
                assert!(pieces.iter().all(|p| p.len() <= PIECE_LIMIT + 1));
            }
        }
    }

    #[test]
    fn nothing_is_kept_after_a_long_line() {
        let mut state = JsonLines::default();
        state.push("stderr", AT, &[b'x'; PIECE_LIMIT], &mut Vec::new());
        assert_eq!(state.pending.len(), PIECE_LIMIT);
        state.push("stderr", AT, b"\n", &mut Vec::new());
        assert_eq!(state.pending.capacity(), 0);
    }

    #[test]
    fn a_line_survives_a_freeze() {
        let (mut state, mut out) = (JsonLines::default(), Vec::new());
        state.push("stderr", AT, b"half", &mut out);
        let mut state: JsonLines = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
        state.push("stderr", AT + 5, b" line\n", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), entry("half line\\n", "stderr", "2023-11-14T22:13:20Z"));
    }

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

    #[test]
    fn a_log_is_rotated_between_lines_and_the_oldest_is_dropped() {
        let scratch = Scratch::new("rotate");
        let mut log = LogFile::open(&scratch.log(), Some(8), 3).unwrap();
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
        let mut log = LogFile::open(&scratch.log(), Some(8), 1).unwrap();
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
        let mut log = LogFile::open(&scratch.log(), Some(5), 6).unwrap();
        log.append(b"new\n").unwrap();
        let read = |i: u32| scratch.read(&format!("c.log.{i}"));
        assert_eq!([read(1), read(2), read(3), read(4)], ["live\n", "1\n", "3\n", "4\n"]);
        assert_eq!(scratch.read("c.log"), "new\n");
    }

    #[test]
    fn a_log_that_was_moved_away_is_reopened() {
        let scratch = Scratch::new("reopen");
        let mut log = LogFile::open(&scratch.log(), None, 0).unwrap();
        log.append(b"old\n").unwrap();
        fs::rename(scratch.log(), scratch.0.join("moved")).unwrap();
        log.append(b"still old\n").unwrap();
        log.reopen().unwrap();
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
            let mut log = LogFile::open(&scratch.log(), None, 0).unwrap();
            log.append(b"next\n").unwrap();
            assert_eq!(scratch.read("c.log"), format!("{after}next\n"));
        }
        let foreign = "x".repeat(usize::try_from(ENTRY_LIMIT).unwrap() + 5);
        fs::write(scratch.log(), &foreign).unwrap();
        LogFile::open(&scratch.log(), None, 0).unwrap().append(b"next\n").unwrap();
        assert_eq!(scratch.read("c.log"), format!("{foreign}\nnext\n"));
    }

    #[test]
    fn what_is_no_regular_file_is_refused() {
        let scratch = Scratch::new("refused");
        symlink("/dev/null", scratch.log()).unwrap();
        assert!(LogFile::open(&scratch.log(), None, 0).is_err());
        nix::unistd::mkfifo(&scratch.0.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(LogFile::open(&scratch.0.join("fifo"), None, 0).is_err());
        assert!(LogFile::open(&scratch.0, None, 0).is_err());
        assert!(LogFile::open(Path::new("/dev/null"), None, 0).is_err());
    }

    /// A full disk, in the form of a small tmpfs.
    fn full_disk(name: &str) -> Option<(Scratch, PathBuf)> {
        let scratch = Scratch::new(name);
        let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
        if nix::mount::mount(none, &scratch.0, Some("tmpfs"), flags, Some("size=64k,mode=755")).is_err() {
            eprintln!("SKIPPED: {name} needs root to mount a tmpfs");
            return None;
        }
        let filler = scratch.0.join("filler");
        fs::write(&filler, vec![0; 40 << 10]).unwrap();
        Some((scratch, filler))
    }

    #[test]
    fn a_batch_that_met_a_full_disk_goes_on_where_it_stopped() {
        let Some((scratch, filler)) = full_disk("full") else { return };
        let mut log = LogFile::open(&scratch.log(), None, 0).unwrap();
        let batch: String = (0..4000).map(|i| format!("line {i}\n")).collect();
        for _ in 0..3 {
            let error = log.append(batch.as_bytes()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        }
        assert!(log.written > 0 && log.inside_line, "the test wants a torn line");
        log.reopen().unwrap();
        let (fd, progress) = log.parts().unwrap();
        let mut log = LogFile::resume(&scratch.log(), fd, None, 0, progress).unwrap();
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
        let mut log = LogFile::open(&scratch.log(), Some(16 << 10), 2).unwrap();
        let batch: String = (0..3000).map(|i| format!("line {i}\n")).collect();
        assert_eq!(log.append(batch.as_bytes()).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        fs::remove_file(filler).unwrap();
        log.append(batch.as_bytes()).unwrap();
        let kept = scratch.read("c.log.1") + &scratch.read("c.log");
        assert!(batch.ends_with(&kept) && kept.len() > 16 << 10);
        assert_eq!(scratch.names(), ["c.log", "c.log.1"]);
    }
}
