//! A container's log, written by the shim itself.
//!
//! ```text
//!   what a stream delivered ──> Lines ──> whole entries ──> queue, batch ──> LogFile   json-file, cri
//!                           └───────────── bytes ─────────> (log_writer) ──> LogFile   raw
//!                                 Lines ──> entries ─────>               ──> Journal   journald
//! ```
//!
//! [`Lines`] divides a stream into lines and long lines into pieces, and does no I/O; how an entry looks is each format's
//! own affair: `json`, `cri`, `journald`. [`LogFile`] brings bytes to the disk and rotates, [`Journal`] sends entries.
//! Between the two lies a batch that the caller keeps until it is written: after an error the same batch is given again,
//! and goes on where it stopped. So no entry is ever torn, lost or doubled by an error that passes.

mod cri;
mod file;
mod journald;
mod json;

use serde::{Deserialize, Serialize};

pub use file::{LogFile, Progress, find_again, is_lost, make_parents};
pub use journald::Journal;

/// The longest piece of a line that goes into one entry, in bytes, as in Docker and in containerd's CRI.
pub const PIECE_LIMIT: usize = 16 << 10;

/// How much room the beginning of a line may keep while there is none, in bytes.
const IDLE_CAPACITY: usize = 1 << 10;

/// How an entry is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// Docker's json-file.
    Json,
    /// Kubernetes' container log.
    Cri,
    /// Fields of the journal, see `journald`.
    Journal,
}

/// One stream's current line, as far as it goes over what was read. One for stdout and one for stderr, else their lines
/// mix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    format: Format,
    /// What came since the last newline or piece, at most [`PIECE_LIMIT`] bytes.
    pending: Vec<u8>,
    /// When the first byte of it came; 0 if nothing is pending.
    since: u64,
    /// How many pieces of the current line are written.
    pieces: u64,
    /// How many lines were divided so far, the current one included.
    divided: u64,
}

/// What goes into one entry.
struct Piece<'a> {
    stream: &'a str,
    /// When its first byte was read, in nanoseconds since the Unix epoch.
    at: u64,
    text: &'a [u8],
    end: End,
    /// How many pieces of the same line are written before it.
    before: u64,
    /// The number of the line among those that were divided.
    divided: u64,
}

/// What follows a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The newline, which no piece contains.
    Newline,
    /// The rest of the line.
    Rest,
    /// Nothing: the stream has ended without a newline.
    Stream,
}

impl Lines {
    /// The beginning of a stream.
    pub fn new(format: Format) -> Self {
        Self { format, pending: Vec::new(), since: 0, pieces: 0, divided: 0 }
    }

    /// Takes what was read from `stream` (`stdout` or `stderr`) at `at_unix_ns` and appends an entry to `out` for each
    /// line that it completes. An entry bears the time at which its first byte was read.
    ///
    /// A line longer than [`PIECE_LIMIT`] makes several entries; readers join them. A character is not divided between two
    /// of them (Docker does that, and damages it).
    pub fn push(&mut self, stream: &str, at_unix_ns: u64, data: &[u8], out: &mut Vec<u8>) {
        let mut rest = data;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            self.take(stream, at_unix_ns, &rest[..end], true, out);
            rest = &rest[end + 1..];
        }
        self.take(stream, at_unix_ns, rest, false, out);
    }

    /// Writes what is left when the stream has ended without a newline. `at_unix_ns` counts if it is not known when that
    /// came.
    pub fn finish(&mut self, stream: &str, at_unix_ns: u64, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            let at = if self.since == 0 { at_unix_ns } else { self.since };
            self.write(stream, at, &self.pending, End::Stream, out);
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
            (true, true) => self.write(stream, at, part, End::Newline, out),
            (true, false) => {
                self.pending.extend_from_slice(part);
                self.write(stream, self.since, &self.pending, End::Newline, out);
            }
            (false, _) => self.pending.extend_from_slice(part),
        }
        if complete {
            self.clear();
        } else if self.pending.is_empty() {
            self.since = 0;
        }
    }

    /// Writes the largest piece that `part` completes and gives the rest of it.
    fn take_piece<'a>(&mut self, stream: &str, part: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        let (fill, rest) = part.split_at(PIECE_LIMIT - self.pending.len());
        self.divided += u64::from(self.pieces == 0);
        let rest = if self.pending.is_empty() {
            let end = fill.len() - divided_character(fill);
            self.write(stream, self.since, &fill[..end], End::Rest, out);
            &part[end..]
        } else {
            self.pending.extend_from_slice(fill);
            let end = self.pending.len() - divided_character(&self.pending);
            self.write(stream, self.since, &self.pending[..end], End::Rest, out);
            self.pending.drain(..end);
            rest
        };
        self.pieces += 1;
        rest
    }

    fn write(&self, stream: &str, at: u64, text: &[u8], end: End, out: &mut Vec<u8>) {
        let piece = Piece { stream, at, text, end, before: self.pieces, divided: self.divided };
        match self.format {
            Format::Json => json::write(out, &piece),
            Format::Cri => cri::write(out, &piece),
            Format::Journal => journald::write(out, &piece),
        }
    }

    fn clear(&mut self) {
        self.since = 0;
        self.pieces = 0;
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

/// For the formats' tests.
#[cfg(test)]
mod sample {
    use super::{Format, Lines};

    /// 2023-11-14T22:13:20Z.
    pub(super) const AT: u64 = 1_700_000_000_000_000_000;

    /// What is written of one stream that was read in `chunks`, one nanosecond after the other from [`AT`] on.
    pub(super) fn stdout(format: Format, chunks: &[&[u8]]) -> Vec<u8> {
        let (mut lines, mut out) = (Lines::new(format), Vec::new());
        for (at, chunk) in (AT..).zip(chunks) {
            lines.push("stdout", at, chunk, &mut out);
        }
        lines.finish("stdout", 0, &mut out);
        assert!(lines.pending.is_empty() && lines.pieces == 0 && lines.since == 0);
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::sample::AT;
    use super::*;

    /// The log texts of entries, decoded.
    fn texts(entries: &[u8]) -> Vec<String> {
        let entries = str::from_utf8(entries).unwrap().lines();
        let text = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["log"].as_str().unwrap().to_owned();
        entries.map(text).collect()
    }

    fn json(chunks: &[&[u8]]) -> Vec<String> {
        texts(&sample::stdout(Format::Json, chunks))
    }

    #[test]
    fn a_character_that_comes_in_two_reads_stays_whole() {
        assert_eq!(json(&[b"\xe6\xbc", b"\xa2\n"]), ["漢\n"]);
    }

    #[test]
    fn a_long_line_makes_pieces_and_only_the_last_has_a_newline() {
        let full = "x".repeat(PIECE_LIMIT);
        let exactly = format!("{full}\n");
        assert_eq!(json(&[exactly.as_bytes()]), [exactly.as_str()]);
        let long = format!("{full}{full}yz\nnext\n");
        let expected = [full.as_str(), full.as_str(), "yz\n", "next\n"];
        assert_eq!(json(&[long.as_bytes()]), expected);
        let chunks: Vec<&[u8]> = long.as_bytes().chunks(1000).collect();
        assert_eq!(json(&chunks), expected);
    }

    #[test]
    fn a_piece_never_ends_inside_a_character() {
        for shift in 0..4 {
            let text = format!("{}{}\n", "x".repeat(shift), "😀".repeat(PIECE_LIMIT / 2));
            for size in [7, 4096, usize::MAX] {
                let chunks: Vec<&[u8]> = text.as_bytes().chunks(size.min(text.len())).collect();
                let pieces = json(&chunks);
                assert_eq!(pieces.concat(), text);
                assert!(pieces.iter().all(|p| p.len() <= PIECE_LIMIT + 1));
            }
        }
    }

    #[test]
    fn two_streams_that_come_in_turns_do_not_mix() {
        let (mut out, mut one, mut two) = (Vec::new(), Lines::new(Format::Json), Lines::new(Format::Json));
        one.push("stdout", AT, b"o", &mut out);
        two.push("stderr", AT, b"e\nr", &mut out);
        one.push("stdout", AT, b"ut\n", &mut out);
        two.finish("stderr", AT, &mut out);
        assert_eq!(texts(&out), ["e\n", "out\n", "r"]);
    }

    #[test]
    fn nothing_is_kept_after_a_long_line() {
        let mut state = Lines::new(Format::Json);
        state.push("stderr", AT, &[b'x'; PIECE_LIMIT], &mut Vec::new());
        assert_eq!(state.pending.len(), PIECE_LIMIT);
        state.push("stderr", AT, b"\n", &mut Vec::new());
        assert_eq!(state.pending.capacity(), 0);
    }

    #[test]
    fn a_line_survives_a_freeze() {
        let (mut state, mut out) = (Lines::new(Format::Json), Vec::new());
        state.push("stderr", AT, b"half", &mut out);
        let mut state: Lines = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
        state.push("stderr", AT + 5, b" line\n", &mut out);
        let expected = "{\"log\":\"half line\\n\",\"stream\":\"stderr\",\"time\":\"2023-11-14T22:13:20Z\"}\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
