//! Where the last N lines of a log begin: found from its end, so that the length of the log does not matter.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::entry::{Entry, Format};

/// How much is read at a time.
const BLOCK: u64 = 64 << 10;
/// The longest line that is taken for an entry, in bytes; a longer one is somebody else's text. Also what a reader keeps
/// of a line that does not end.
pub(super) const LONGEST: u64 = 1 << 20;

/// Counts lines from the last one back.
#[derive(Debug)]
pub(super) struct Count {
    wanted: usize,
    /// Lines of which some entry was met.
    begun: usize,
}

impl Count {
    pub(super) fn new(wanted: usize) -> Self {
        Self { wanted, begun: 0 }
    }

    /// How many were met.
    pub(super) fn begun(&self) -> usize {
        self.begun
    }

    /// Takes the entry before those that it has taken: whether it is still part of what is wanted. Pieces of lines of two
    /// streams that come in turns are counted as if they were of one.
    pub(super) fn takes(&mut self, ends_line: bool) -> bool {
        if ends_line || self.begun == 0 {
            if self.begun == self.wanted {
                return false;
            }
            self.begun += 1;
        }
        true
    }
}

/// Where to begin, of `files`, the newest first: which file, and at which byte; and how many lines that gives, fewer than
/// wanted if there are no more. Entries that `counts` does not want are passed over.
///
/// # Errors
/// As `pread(2)`.
pub(super) fn begin(
    files: &[File],
    format: Format,
    wanted: usize,
    counts: impl Fn(&Entry) -> bool,
) -> io::Result<((usize, u64), usize)> {
    let mut count = Count::new(wanted);
    let mut begin = (0, 0);
    for (number, file) in files.iter().enumerate() {
        let mut lines = Backwards::new(file)?;
        // What a writer has not finished yet is no entry, but will be one.
        if format != Format::Raw {
            lines.end = lines.newline_before(lines.end)?.map_or(0, |at| at + 1);
        }
        if number == 0 {
            begin = (0, lines.end);
        }
        while let Some((start, end)) = lines.next()? {
            let entry = lines.entry(format, start, end)?;
            if counts(&entry) && !count.takes(entry.ends_line()) {
                return Ok((begin, count.begun()));
            }
            begin = (number, start);
        }
    }
    Ok((begin, count.begun()))
}

/// The lines of a file from the last to the first, by their places.
struct Backwards<'a> {
    file: &'a File,
    /// Where the line before the next one ends.
    end: u64,
    /// What was read last, and where it begins.
    block: Vec<u8>,
    at: u64,
}

impl<'a> Backwards<'a> {
    fn new(file: &'a File) -> io::Result<Self> {
        Ok(Self { file, end: file.metadata()?.len(), block: Vec::new(), at: 0 })
    }

    /// Begin and end of a line, its newline included.
    fn next(&mut self) -> io::Result<Option<(u64, u64)>> {
        if self.end == 0 {
            return Ok(None);
        }
        let end = self.end;
        self.end = self.newline_before(end - 1)?.map_or(0, |at| at + 1);
        Ok(Some((self.end, end)))
    }

    /// The place of the last newline before `end`.
    fn newline_before(&mut self, mut end: u64) -> io::Result<Option<u64>> {
        while end > 0 {
            if end <= self.at || end > self.at + self.block.len() as u64 {
                self.at = end.saturating_sub(BLOCK);
                self.block.resize(usize::try_from(end - self.at).unwrap_or(0), 0);
                self.file.read_exact_at(&mut self.block, self.at)?;
            }
            let known = usize::try_from(end - self.at).unwrap_or(0);
            if let Some(found) = self.block[..known].iter().rposition(|&b| b == b'\n') {
                return Ok(Some(self.at + found as u64));
            }
            end = self.at;
        }
        Ok(None)
    }

    /// The entry in a line; of raw output, and of what is too long, only whether it ends its line.
    fn entry(&self, format: Format, start: u64, end: u64) -> io::Result<Entry> {
        let from = if format == Format::Raw || end - start > LONGEST { end - 1 } else { start };
        let mut line = vec![0; usize::try_from(end - from).unwrap_or(0)];
        self.file.read_exact_at(&mut line, from)?;
        Ok(Entry::parse(format, &line))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    fn file(text: &[u8]) -> File {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("holdfast-tail-{}-{number}", std::process::id()));
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(text).unwrap();
        file
    }

    fn raw(files: &[File], wanted: usize) -> (usize, u64) {
        begin(files, Format::Raw, wanted, |_| true).unwrap().0
    }

    #[test]
    fn lines_are_counted_from_the_end_over_all_files() {
        // The newest first.
        let files = [file(b"5\n6\n"), file(b"3\n4\n"), file(b"1\n2\n")];
        let expected = [(0, 4), (0, 2), (0, 0), (1, 2), (1, 0), (2, 2), (2, 0), (2, 0)];
        for (wanted, expected) in expected.into_iter().enumerate() {
            assert_eq!(raw(&files, wanted), expected, "{wanted}");
        }
        assert_eq!(raw(&[], 3), (0, 0));
        assert_eq!(raw(&[file(b""), file(b"1\n2\n")], 1), (1, 2));
    }

    #[test]
    fn raw_output_that_does_not_end_is_a_line_and_an_entry_that_does_not_is_none_yet() {
        assert_eq!(raw(&[file(b"1\n2\n3")], 2), (0, 2));
        let cri = [file(b"t stdout F 1\nt stdout F 2\nt stdout F ha")];
        assert_eq!(begin(&cri, Format::Cri, 0, |_| true).unwrap(), ((0, 26), 0));
        assert_eq!(begin(&cri, Format::Cri, 1, |_| true).unwrap(), ((0, 13), 1));
        assert_eq!(begin(&cri, Format::Cri, 9, |_| true).unwrap(), ((0, 0), 2));
    }

    #[test]
    fn pieces_are_one_line_and_what_does_not_count_is_passed_over() {
        let text = b"1 stdout F a\n2 stdout P b\n3 stdout P c\n4 stdout F d\n5 stdout F e\n6 stdout P f\n";
        let cri = [file(text)];
        let start = |wanted| begin(&cri, Format::Cri, wanted, |_| true).unwrap().0.1;
        assert_eq!([start(1), start(2), start(3), start(4)], [65, 52, 13, 0]);
        let early = |entry: &Entry| entry.time.as_str() < "5";
        assert_eq!(begin(&cri, Format::Cri, 1, early).unwrap(), ((0, 13), 1));
    }

    #[test]
    fn long_lines_and_many_are_found_across_blocks() {
        let mut text = vec![b'x'; usize::try_from(3 * BLOCK).unwrap()];
        text.push(b'\n');
        let long = text.len() as u64;
        for n in 0..50_000 {
            writeln!(text, "line {n:05}").unwrap();
        }
        let files = [file(&text)];
        assert_eq!(raw(&files, 50_000), (0, long));
        assert_eq!(raw(&files, 40_000), (0, long + 10_000 * 11));
        assert_eq!(raw(&files, 50_001), (0, 0));
    }
}
