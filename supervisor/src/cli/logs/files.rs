//! The files of a log, from the oldest to the newest, and on with the newest while it is written and rotated.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::entry::{Entry, Format};
use super::tail::{self, LONGEST};

/// Which file it is, whatever its name.
type Identity = (u64, u64);

/// Reads what there is, and what comes. Every entry is given once, as long as no file is deleted before it was opened.
pub(super) struct Reader {
    path: PathBuf,
    format: Format,
    /// How many files the writer keeps; 0 if that is not known.
    kept: usize,
    /// Files to be read, the oldest last.
    queue: Vec<File>,
    current: Option<BufReader<File>>,
    /// Older files than the current one, as long as they have a numbered name: read, or passed over. Held open, so that
    /// no new file gets the inode of one of them.
    past: Vec<File>,
    /// The beginning of a line whose rest is not written yet.
    partial: Vec<u8>,
    gap: bool,
}

impl Reader {
    /// Begins with the oldest file. A log that is not there yet is empty.
    ///
    /// # Errors
    /// As `open(2)`.
    pub(super) fn open(path: &Path, format: Format, kept: usize) -> io::Result<Self> {
        let mut reader = Self {
            path: path.to_owned(),
            format,
            kept,
            queue: Vec::new(),
            current: None,
            past: Vec::new(),
            partial: Vec::new(),
            gap: false,
        };
        (reader.queue, _) = reader.newer_files()?;
        Ok(reader)
    }

    /// Goes to the beginning of the last `wanted` lines of what there is, of those that `counts` wants; how many there are.
    ///
    /// # Errors
    /// As `pread(2)`.
    pub(super) fn skip_to_last(&mut self, wanted: usize, counts: impl Fn(&Entry) -> bool) -> io::Result<usize> {
        let ((number, offset), lines) = tail::begin(&self.queue, self.format, wanted, counts)?;
        let first = self.queue.len().min(number + 1);
        self.past.extend(self.queue.split_off(first));
        if let Some(file) = self.queue.last_mut() {
            file.seek(SeekFrom::Start(offset))?;
        }
        Ok(lines)
    }

    /// Whether, since this was asked last, files may have been deleted before they could be read.
    pub(super) fn take_gap(&mut self) -> bool {
        std::mem::take(&mut self.gap)
    }

    /// Opens the files that are newer than the current one, the newest first; and whether that one or an older one is still
    /// there. It may be only an older one: somebody has moved the current one to a name that is not ours.
    ///
    /// A rotation gives a file its next name before it takes the last one away, so none is missed on the way up.
    fn newer_files(&mut self) -> io::Result<(Vec<File>, bool)> {
        self.newer_files_by(|path| File::open(path))
    }

    /// As [`Reader::newer_files`]; `open` is asked for each name in turn.
    ///
    /// Rotations on the way may push a file ahead, and newer ones in between. It is then met again, and counts as older than
    /// all that was met before.
    pub(super) fn newer_files_by(
        &mut self,
        mut open: impl FnMut(&Path) -> io::Result<File>,
    ) -> io::Result<(Vec<File>, bool)> {
        let mut known = self.past.iter().map(identity).collect::<io::Result<Vec<_>>>()?;
        if let Some(current) = &self.current {
            known.push(identity(current.get_ref())?);
        }
        let mut files: Vec<(Identity, File)> = Vec::new();
        let mut seen: Vec<Identity> = Vec::new();
        let mut found = false;
        for number in 0.. {
            let mut path = self.path.clone().into_os_string();
            if number > 0 {
                path.push(format!(".{number}"));
            }
            match open(Path::new(&path)) {
                // Somebody has moved it away, or it is not made yet.
                Err(e) if e.kind() == io::ErrorKind::NotFound && number == 0 => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) => return Err(e),
                Ok(file) => {
                    let this = identity(&file)?;
                    // What follows is older.
                    found |= known.contains(&this);
                    if let Some(at) = files.iter().position(|(met, _)| *met == this) {
                        files.remove(at);
                        files.push((this, file));
                    } else if !found {
                        files.push((this, file));
                    }
                    seen.push(this);
                }
            }
        }
        self.past.retain(|file| identity(file).is_ok_and(|this| seen.contains(&this)));
        Ok((files.into_iter().map(|(_, file)| file).collect(), found))
    }

    /// The next entry, if there is one by now.
    ///
    /// # Errors
    /// As `open(2)` and `read(2)`.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            if self.current.is_none() {
                match self.queue.pop() {
                    Some(file) => self.current = Some(BufReader::with_capacity(64 << 10, file)),
                    None => {
                        (self.queue, _) = self.newer_files()?;
                        if self.queue.is_empty() {
                            return Ok(None);
                        }
                        continue;
                    }
                }
            }
            if self.read_line()? {
                let entry = Entry::parse(self.format, &self.partial);
                self.partial.clear();
                return Ok(Some(entry));
            }
            if !self.advance()? {
                return Ok(None);
            }
            if self.current.is_none() && !self.partial.is_empty() {
                // Nobody will write its end. The line break keeps it apart from what follows.
                let text = [std::mem::take(&mut self.partial), b"\n".to_vec()].concat();
                return Ok(Some(Entry { text, ..Entry::default() }));
            }
        }
    }

    /// Adds to the partial line; whether it is to be shown now. Raw output need not wait for its line's end.
    fn read_line(&mut self) -> io::Result<bool> {
        let Some(current) = &mut self.current else { return Ok(false) };
        loop {
            let available = match current.fill_buf() {
                Ok(available) => available,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if available.is_empty() {
                return Ok(self.format == Format::Raw && !self.partial.is_empty());
            }
            let newline = available.iter().position(|&b| b == b'\n');
            let taken = newline.map_or(available.len(), |at| at + 1);
            self.partial.extend_from_slice(&available[..taken]);
            current.consume(taken);
            if newline.is_some() || self.partial.len() as u64 > LONGEST {
                return Ok(true);
            }
        }
    }

    /// At the end of a file: whether there may be more, in it or in the next one.
    fn advance(&mut self) -> io::Result<bool> {
        let Some(current) = &mut self.current else { return Ok(true) };
        let known = identity(current.get_ref())?;
        if self.queue.is_empty() {
            match fs::metadata(&self.path) {
                Ok(newest) if (newest.dev(), newest.ino()) != known => {}
                Ok(same) => return self.start_over_if_cut(same.len()),
                // Somebody has moved it away and not told the writer yet.
                Err(_) => return Ok(false),
            }
            let (newer, found) = self.newer_files()?;
            // Until something is in a newer one, the writer may still have this one open, whatever its name is now.
            if !newer.iter().any(|file| file.metadata().is_ok_and(|m| m.len() > 0)) {
                return Ok(false);
            }
            // From then on it has not; but it may have added to it since our last look.
            let Some(current) = &mut self.current else { return Ok(true) };
            if !current.fill_buf()?.is_empty() {
                return Ok(true);
            }
            self.gap |= !found && self.kept > 0 && newer.len() >= self.kept;
            self.queue = newer;
        }
        self.past.extend(self.current.take().map(BufReader::into_inner));
        Ok(true)
    }

    /// Somebody else has emptied the file under the writer's hands.
    fn start_over_if_cut(&mut self, length: u64) -> io::Result<bool> {
        let Some(current) = &mut self.current else { return Ok(false) };
        if current.stream_position()? <= length {
            return Ok(false);
        }
        current.seek(SeekFrom::Start(0))?;
        self.partial.clear();
        Ok(length > 0)
    }
}

fn identity(file: &File) -> io::Result<Identity> {
    file.metadata().map(|m| (m.dev(), m.ino()))
}
