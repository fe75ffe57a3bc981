//! One stream's output on disk: what nobody has read yet, between two positions of a file.
//!
//! ```text
//!   front │ file: (holes) read_at ─────────────── write_at │ incoming
//!     ^                     given to the reader first         ^
//!     └ the rest of a line that was begun, and the marker     └ read already, not yet in the file
//! ```
//!
//! All calls block as long as the disk does, none waits for a pipe. All state is in the positions: a step that fails has
//! moved them as far as the bytes have come, so that the same step can simply be repeated. The file is made with the first
//! byte and removed with the last one; nothing is written in place, for the pages that went to the reader are the file's.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{read, write};
use serde::{Deserialize, Serialize};

use super::policy::{OutputSettings, Policy};
use super::tree::{Allowance, Bound, Home};
use crate::freeze::FdBag;
use crate::io::relay::Stream;
use crate::lifecycle::ProcessId;
use crate::sys::pipe;

/// The most that one splice moves, in bytes.
const MOST_PER_SPLICE: u64 = 1 << 20;
/// The most that one step moves, so that other work of the thread has its turn.
const MOST_PER_STEP: u64 = 8 << 20;
/// What is read at once where pages cannot be moved, in bytes.
const BUFFER: usize = 64 << 10;
/// How far the start of a line is looked for, in bytes.
const LINE_SCAN: u64 = 64 << 10;
/// How much of a line that was begun is kept before a marker, in bytes.
const BEGUN_LINE: u64 = 4 << 10;
/// What the reader was given is punched out in pieces of this size, in bytes: no page of the page cache is larger. Of one
/// that is only partly in the hole the kernel zeroes that part, also if it is still in the FIFO.
const HOLE: u64 = 2 << 20;
/// What was given to nobody can be punched out by the block.
const BLOCK: u64 = 4 << 10;

/// What a stream may keep at the machine's bounds, in bytes, if its oldest lines may be dropped: else a process whose
/// policy is never to wait would.
const KEPT_ANYWAY: u64 = 64 << 10;

/// Which file, and how large it may get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    home: Home,
    name: String,
    stream: Stream,
    settings: OutputSettings,
}

impl Place {
    /// In the container's directory. Only an exec's file begins with `exec.`, so that one called `init` has its own.
    pub fn new(home: &Home, process: &ProcessId, stream: Stream, settings: &OutputSettings) -> Self {
        let name = match process {
            ProcessId::Init => format!("init.{}", stream.name()),
            ProcessId::Exec(id) => format!("exec.{}.{}", id.0, stream.name()),
        };
        Self { home: home.clone(), name, stream, settings: settings.clone() }
    }

    /// See [`OutputSettings`].
    pub fn settings(&self) -> &OutputSettings {
        &self.settings
    }

    /// Where the file is when there is one.
    pub fn path(&self) -> PathBuf {
        self.home.path().join(&self.name)
    }

    /// One that is there already is that of an earlier process, whose removal takes its time.
    fn create(&self) -> io::Result<File> {
        match self.home.create_file(&self.name) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                self.home.remove_file(&self.name)?;
                self.home.create_file(&self.name)
            }
            created => created,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct SpillFile {
    place: Place,
    file: Option<File>,
    read_at: u64,
    write_at: u64,
    /// Up to here the file holds no blocks.
    punched: u64,
    front: Vec<u8>,
    incoming: Vec<u8>,
    /// Dropped at `read_at`, and not yet told to the reader.
    dropped: u64,
    /// Dropped in the life of the stream.
    dropped_ever: u64,
    /// Reached when room was last looked for.
    bound: Option<Bound>,
    /// What the machine has granted and was not used yet.
    allowance: Allowance,
    /// See [`SpillFile::remove`].
    removed: bool,
}

/// A [`SpillFile`] written down.
#[derive(Debug, Serialize, Deserialize)]
pub struct FrozenFile {
    place: Place,
    fd: Option<String>,
    read_at: u64,
    write_at: u64,
    punched: u64,
    front: Vec<u8>,
    incoming: Vec<u8>,
    dropped: u64,
    #[serde(default)]
    dropped_ever: u64,
    #[serde(default)]
    bound: Option<Bound>,
}

/// How far a step that puts something into the file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// So many bytes; there may be more.
    Some(u64),
    /// Nothing is left to take now.
    All(u64),
    /// The source has ended.
    Ended,
    /// This bound is reached, and nothing may be dropped.
    Full(Bound),
}

/// How far a step that gives something to the reader has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// There is more.
    Some,
    /// The reader's FIFO is full.
    Blocked,
    /// No reader.
    NoReader,
    /// Nothing is left.
    All,
}

/// What there is room for.
enum Room {
    /// At least one byte.
    For(usize),
    /// This bound is reached.
    None(Bound),
}

impl Room {
    fn of(bytes: u64) -> Self {
        Self::For(usize::try_from(bytes).unwrap_or(usize::MAX))
    }
}

impl SpillFile {
    /// Nothing is made before the first byte.
    pub fn new(place: Place) -> Self {
        let (front, incoming) = (Vec::new(), Vec::new());
        let (allowance, removed) = (Allowance::default(), false);
        Self {
            place,
            file: None,
            read_at: 0,
            write_at: 0,
            punched: 0,
            front,
            incoming,
            dropped: 0,
            dropped_ever: 0,
            bound: None,
            allowance,
            removed,
        }
    }

    /// How many bytes wait for the reader.
    pub fn unread(&self) -> u64 {
        self.in_file() + (self.front.len() + self.incoming.len()) as u64
    }

    /// Whether the reader is to get anything before what comes live.
    pub fn is_empty(&self) -> bool {
        self.unread() == 0 && self.dropped == 0
    }

    /// Whether some of what was offered is not in the file yet.
    pub fn has_incoming(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Which file.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// How many bytes were dropped in the life of the stream.
    pub fn dropped_ever(&self) -> u64 {
        self.dropped_ever
    }

    /// Which bound is reached, as far as is known.
    pub fn bound(&self) -> Option<Bound> {
        self.bound
    }

    fn in_file(&self) -> u64 {
        self.write_at - self.read_at
    }

    /// To be called after a step that failed: goes on with what is in our file's place by now if ours cannot be read any
    /// more, as when its disk was broken and is mounted anew. The reader is told how much is not there.
    ///
    /// # Errors
    /// As `open(2)`; what is there stays what it was, also if our disk is not there at all.
    pub fn find_again(&mut self) -> io::Result<()> {
        let Some(ours) = self.file.as_ref().filter(|_| !self.removed) else { return Ok(()) };
        if self.in_file() > 0 && ours.read_at(&mut [0], self.read_at).is_ok() {
            return Ok(());
        }
        let found = self.place.home.open_file(&self.place.name)?;
        let length = match &found {
            Some(found) => {
                let there = found.metadata()?;
                if ours.metadata().is_ok_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino())) {
                    return Ok(());
                }
                there.len()
            }
            None => 0,
        };
        let end = length.clamp(self.read_at, self.write_at);
        let (path, bytes) = (self.place.path(), self.write_at - end);
        tracing::error!(path = %path.display(), bytes, "a spill file's disk has failed and is back: so many bytes are lost");
        if bytes > 0 {
            let stream = self.place.stream.name();
            let marker =
                format!("[holdfast: {bytes} bytes of {stream} were lost here: the disk that kept them failed]\n");
            self.incoming.splice(0..0, marker.into_bytes());
            let mut last = *b"\n";
            if let (Some(found), true) = (&found, end > self.read_at) {
                found.read_exact_at(&mut last, end - 1)?;
            }
            if last != *b"\n" {
                self.incoming.insert(0, b'\n');
            }
            self.dropped_ever += bytes;
        }
        self.file = found;
        self.write_at = end;
        Ok(())
    }

    /// Takes bytes that were read already; to be followed by [`SpillFile::store`].
    pub fn offer(&mut self, bytes: &[u8]) {
        self.incoming.extend_from_slice(bytes);
    }

    /// Brings what was offered into the file. Never [`Stored::Ended`].
    ///
    /// # Errors
    /// As `open(2)` and `pwrite(2)`; what was not written is still offered.
    pub fn store(&mut self) -> io::Result<Stored> {
        let mut stored = 0;
        while !self.incoming.is_empty() && !self.removed {
            let most = match self.make_room(self.incoming.len() as u64)? {
                Room::For(bytes) => bytes.min(self.incoming.len()),
                Room::None(bound) => return Ok(Stored::Full(bound)),
            };
            match open(&mut self.file, &self.place)?.write_at(&self.incoming[..most], self.write_at) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.wrote(n);
                    self.incoming.drain(..n);
                    stored += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return self.no_space(most as u64, e),
            }
        }
        self.incoming = Vec::new();
        Ok(Stored::All(stored))
    }

    fn wrote(&mut self, bytes: usize) {
        self.write_at += bytes as u64;
        self.allowance.used(bytes as u64);
    }

    /// Moves what is in a pipe into the file, after what was offered.
    ///
    /// # Errors
    /// As `open(2)` and `splice(2)`; what was not moved is still in the pipe.
    pub fn absorb(&mut self, source: impl AsFd) -> io::Result<Stored> {
        let mut stored = match self.store()? {
            Stored::All(n) => n,
            other => return Ok(other),
        };
        while stored < MOST_PER_STEP && !self.removed {
            let waiting = pipe::unread(&source)? as u64;
            if waiting == 0 {
                if !pipe::is_readable(&source) {
                    return Ok(Stored::All(stored));
                }
                // Either something has come just now, or it is the end.
                if pipe::unread(&source)? == 0 {
                    return Ok(Stored::Ended);
                }
                continue;
            }
            let most = match self.make_room(waiting.min(MOST_PER_SPLICE))? {
                Room::For(bytes) => bytes,
                Room::None(bound) => return Ok(Stored::Full(bound)),
            };
            match pipe::move_to_file(&source, open(&mut self.file, &self.place)?, self.write_at, most) {
                Ok(0) => return Ok(Stored::Ended),
                Ok(n) => {
                    self.wrote(n);
                    stored += n as u64;
                }
                Err(e) => match e.kind() {
                    ErrorKind::WouldBlock => return Ok(Stored::All(stored)),
                    ErrorKind::Interrupted => {}
                    // The filesystem takes no pages.
                    ErrorKind::InvalidInput => return self.absorb_by_bytes(source),
                    _ => return self.no_space(most as u64, e),
                },
            }
        }
        Ok(Stored::Some(stored))
    }

    fn absorb_by_bytes(&mut self, source: impl AsFd) -> io::Result<Stored> {
        let mut buffer = vec![0; BUFFER];
        match read(source, &mut buffer) {
            Ok(0) => return Ok(Stored::Ended),
            Ok(n) => self.offer(&buffer[..n]),
            Err(Errno::EAGAIN) => return Ok(Stored::All(0)),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        match self.store()? {
            Stored::All(n) => Ok(Stored::Some(n)),
            other => Ok(other),
        }
    }

    /// Gives the reader what waits for it, in order. The file is removed when nothing is left.
    ///
    /// # Errors
    /// As `splice(2)`, of a file that cannot be read.
    pub fn deliver(&mut self, fifo: impl AsFd) -> io::Result<Given> {
        self.bound = None;
        if self.dropped > 0 {
            let (count, stream) = (self.dropped, self.place.stream.name());
            let marker = format!("[holdfast: {count} bytes of {stream} were dropped here: nobody read them]\n");
            self.front.extend_from_slice(marker.as_bytes());
            self.dropped = 0;
        }
        let given = match hand_over(&mut self.front, &fifo)? {
            Given::All => self.deliver_file(&fifo)?,
            given => given,
        };
        self.punch_delivered();
        let given = match given {
            Given::All if self.dropped > 0 => Given::Some,
            Given::All => hand_over(&mut self.incoming, &fifo)?,
            given => given,
        };
        if given == Given::All {
            self.clear();
        }
        Ok(given)
    }

    fn deliver_file(&mut self, fifo: impl AsFd) -> io::Result<Given> {
        let end = self.write_at.min(self.read_at + MOST_PER_STEP);
        while let (Some(file), true) = (&self.file, self.read_at < end) {
            let most = usize::try_from((end - self.read_at).min(MOST_PER_SPLICE)).unwrap_or(BUFFER);
            match pipe::move_from_file(file, self.read_at, &fifo, most) {
                Ok(0) => self.was_cut_short(),
                Ok(n) => self.read_at += n as u64,
                Err(e) => match e.kind() {
                    ErrorKind::WouldBlock => return Ok(Given::Blocked),
                    ErrorKind::BrokenPipe => return Ok(Given::NoReader),
                    ErrorKind::Interrupted => {}
                    _ => return Err(e),
                },
            }
        }
        Ok(if self.read_at < self.write_at { Given::Some } else { Given::All })
    }

    /// Somebody else has truncated the file. The reader is told how much it was.
    fn was_cut_short(&mut self) {
        let (path, bytes) = (self.place.path(), self.in_file());
        tracing::error!(path = %path.display(), bytes, "a spill file was truncated from outside: its bytes are lost");
        self.dropped += bytes;
        self.dropped_ever += bytes;
        self.read_at = self.write_at;
    }

    /// For how many of `wanted` bytes there is room, within the stream's own bound and the machine's.
    fn make_room(&mut self, wanted: u64) -> io::Result<Room> {
        let limit = self.place.settings.spill_limit;
        let drops = self.place.settings.policy == Policy::DropOldest;
        let limit = if drops { limit.max(BLOCK) } else { limit };
        // Not all at once, so that there is something left to begin a line with.
        let wanted = if drops { wanted.min(limit / 2) } else { wanted };
        let room = limit.saturating_sub(self.in_file());
        self.bound = if room < wanted { Some(Bound::Limit) } else { None };
        if drops && room < wanted {
            self.drop_oldest(wanted - room)?;
        } else if room == 0 {
            return Ok(Room::None(Bound::Limit));
        }
        let wanted = if drops { wanted } else { wanted.min(room) };
        match self.allowance.ask(wanted, &self.place.settings)? {
            Ok(allowed) => Ok(Room::of(allowed)),
            Err(bound) => {
                self.bound = Some(bound);
                if drops { self.replace(wanted) } else { Ok(Room::None(bound)) }
            }
        }
    }

    /// Room at one of the machine's bounds, in the place of what goes.
    fn replace(&mut self, wanted: u64) -> io::Result<Room> {
        let few = KEPT_ANYWAY.saturating_sub(self.in_file());
        if few > 0 {
            return Ok(Room::of(wanted.min(few)));
        }
        let wanted = wanted.min(self.in_file() / 2);
        self.drop_oldest(wanted.max(2 * BLOCK))?;
        Ok(Room::of(wanted))
    }

    /// What a failed write leads to: where the oldest may go, they make room on a full disk as well.
    fn no_space(&mut self, wanted: u64, error: io::Error) -> io::Result<Stored> {
        let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        if !full || self.place.settings.policy == Policy::Block || self.in_file() == 0 {
            return Err(error);
        }
        // By the block, for less frees nothing.
        self.drop_oldest(wanted.max(2 * BLOCK))?;
        Ok(Stored::Some(0))
    }

    /// Gives up the oldest lines: at least `wanted` bytes, or all.
    fn drop_oldest(&mut self, wanted: u64) -> io::Result<()> {
        if self.in_file() == 0 {
            return Ok(());
        }
        self.keep_begun_line()?;
        let from = self.read_at;
        let least = (from + wanted).min(self.write_at);
        let to = self.line_start(least)?.unwrap_or(least);
        // To nobody these bytes were given: the hole need spare no page, and begins with the block that the last left over.
        let first_dropped = from - self.dropped;
        self.punch(first_dropped.next_multiple_of(BLOCK).max(from / BLOCK * BLOCK), to / BLOCK * BLOCK);
        self.dropped += to - from;
        self.dropped_ever += to - from;
        self.read_at = to;
        Ok(())
    }

    /// So that the marker stands on a line of its own: the rest of the line that the reader has a part of, if it may have.
    fn keep_begun_line(&mut self) -> io::Result<()> {
        let Some(file) = self.file.as_ref().filter(|_| self.dropped == 0 && self.front.is_empty()) else {
            return Ok(());
        };
        let mut last = [0];
        if self.read_at > 0 && file.read_at(&mut last, self.read_at - 1)? == 1 && last == *b"\n" {
            return Ok(());
        }
        let mut line = vec![0; usize::try_from(self.in_file().min(BEGUN_LINE)).unwrap_or(0)];
        let count = file.read_at(&mut line, self.read_at)?;
        match line[..count].iter().position(|&byte| byte == b'\n') {
            Some(end) => {
                line.truncate(end + 1);
                self.read_at += line.len() as u64;
                self.front = line;
            }
            None => self.front = vec![b'\n'],
        }
        Ok(())
    }

    /// The first position from `at` on at which a line starts. None if there is none near.
    fn line_start(&self, at: u64) -> io::Result<Option<u64>> {
        let Some(file) = &self.file else { return Ok(None) };
        let mut buffer = vec![0; BLOCK as usize];
        let end = self.write_at.min(at + LINE_SCAN);
        let mut from = at.saturating_sub(1);
        while from < end {
            let most = buffer.len().min(usize::try_from(end - from).unwrap_or(usize::MAX));
            let count = file.read_at(&mut buffer[..most], from)?;
            if count == 0 {
                break;
            }
            if let Some(n) = buffer[..count].iter().position(|&byte| byte == b'\n') {
                return Ok(Some(from + n as u64 + 1));
            }
            from += count as u64;
        }
        Ok(None)
    }

    fn punch_delivered(&mut self) {
        let to = self.read_at / HOLE * HOLE;
        if to > self.punched {
            self.punch(self.punched, to);
            self.punched = to;
        }
    }

    /// Without it the file is only larger until it goes.
    fn punch(&self, from: u64, to: u64) {
        let range = (i64::try_from(from), i64::try_from(to.saturating_sub(from)));
        if let (Some(file), (Ok(from), Ok(len @ 1..))) = (&self.file, range) {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(file, flags, from, len);
        }
    }

    /// Nothing is left that a reader is to get.
    fn clear(&mut self) {
        if self.file.is_some()
            && let Err(error) = self.unlink()
        {
            let path = self.place.path();
            tracing::warn!(path = %path.display(), %error, "cannot remove a spill file, leaving it to be swept");
        }
        *self = Self { dropped_ever: self.dropped_ever, ..Self::new(self.place.clone()) };
    }

    /// Removes the file with whatever is in it, for good: no step does anything any more.
    ///
    /// # Errors
    /// As [`Home::remove_file`].
    pub fn remove(&mut self) -> io::Result<()> {
        let unlinked = self.unlink();
        *self = Self { removed: true, ..Self::new(self.place.clone()) };
        unlinked
    }

    /// Not if the name is that of the next process with the same id by now: see [`Place::create`].
    fn unlink(&mut self) -> io::Result<()> {
        match self.file.take() {
            Some(file) if file.metadata()?.nlink() == 0 => Ok(()),
            _ => self.place.home.remove_file(&self.place.name),
        }
    }

    /// Writes it down; a copy of its fd goes into `bag`.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub fn freeze(&self, name: &str, bag: &mut FdBag) -> io::Result<FrozenFile> {
        Ok(FrozenFile {
            place: self.place.clone(),
            fd: self.file.as_ref().map(|file| bag.put(name.to_owned(), file)).transpose()?,
            read_at: self.read_at,
            write_at: self.write_at,
            punched: self.punched,
            front: self.front.clone(),
            incoming: self.incoming.clone(),
            dropped: self.dropped,
            dropped_ever: self.dropped_ever,
            bound: self.bound,
        })
    }

    /// Goes on where [`SpillFile::freeze`] stopped.
    ///
    /// # Errors
    /// `NotFound` for an fd that is not in the bag; `InvalidData` for positions that are none.
    pub fn thaw(frozen: FrozenFile, bag: &mut FdBag) -> io::Result<Self> {
        let FrozenFile { place, fd, read_at, write_at, punched, front, incoming, dropped, dropped_ever, bound } =
            frozen;
        if read_at > write_at || punched > read_at {
            return Err(ErrorKind::InvalidData.into());
        }
        let file = fd.map(|name| bag.take(&name)).transpose()?.map(File::from);
        let new = Self::new(place);
        Ok(Self { file, read_at, write_at, punched, front, incoming, dropped, dropped_ever, bound, ..new })
    }
}

/// The file, made now if there is none.
fn open<'a>(file: &'a mut Option<File>, place: &Place) -> io::Result<&'a File> {
    match file {
        Some(file) => Ok(file),
        none => Ok(none.insert(place.create()?)),
    }
}

/// Writes bytes into a FIFO, and removes from `bytes` what is in there.
fn hand_over(bytes: &mut Vec<u8>, fifo: impl AsFd) -> io::Result<Given> {
    while !bytes.is_empty() {
        match write(&fifo, bytes) {
            Ok(n) => drop(bytes.drain(..n)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(Given::Blocked),
            Err(Errno::EPIPE) => return Ok(Given::NoReader),
            Err(e) => return Err(e.into()),
        }
    }
    *bytes = Vec::new();
    Ok(Given::All)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use nix::fcntl::OFlag;

    use super::*;
    use crate::lifecycle::ExecId;

    /// A directory that does not exist yet; removed when dropped.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("holdfast-{}-spill-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            Self(dir)
        }

        fn spill(&self, spill_limit: u64, policy: Policy) -> SpillFile {
            let spill_dir = self.0.join("spill");
            // However full the disk of the test is.
            let settings =
                OutputSettings { spill_limit, policy, spill_dir, free_floor_percent: 0, ..Default::default() };
            SpillFile::new(Place::new(&self.home(), &ProcessId::Init, Stream::Stdout, &settings))
        }

        fn home(&self) -> Home {
            let [instance, namespace, id] = ["i", "n", "c"].map(str::to_owned);
            Home { spill_dir: self.0.join("spill"), run_dir: self.0.join("run"), instance, namespace, id }
        }

        fn file(&self) -> PathBuf {
            self.home().path().join("init.stdout")
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A pipe with these bytes in it and its write end; the read end does not block.
    fn source(bytes: &[u8]) -> (OwnedFd, File) {
        let (read, write) = pipe::large_pipe().unwrap();
        pipe::set_nonblocking(&read).unwrap();
        let mut write = File::from(write);
        write.write_all(bytes).unwrap();
        (read, write)
    }

    /// A client's pipe; neither end blocks.
    fn sink() -> (File, OwnedFd) {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        (File::from(read), write)
    }

    fn numbered(count: usize) -> Vec<u8> {
        (0..).map(|n| format!("line {n}\n")).flat_map(String::into_bytes).take(count).collect()
    }

    /// Gives all of it to a reader who reads slowly.
    fn read_all(spill: &mut SpillFile) -> Vec<u8> {
        let (mut reader, fifo) = sink();
        let mut all = Vec::new();
        loop {
            let given = spill.deliver(&fifo).unwrap();
            let mut buffer = vec![0; 50_000];
            while let Ok(count) = reader.read(&mut buffer) {
                all.extend_from_slice(&buffer[..count]);
            }
            if given == Given::All {
                return all;
            }
        }
    }

    fn allocated(path: &Path) -> u64 {
        path.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn what_was_read_and_what_comes_arrive_in_order_and_leave_no_file() {
        let dir = Dir::new("order");
        let mut spill = dir.spill(64 << 20, Policy::Block);
        assert!(!dir.0.exists(), "nothing is made before there is something to keep");
        let bytes = numbered(700_000);
        spill.offer(&bytes[..1000]);
        let (read, write) = source(&bytes[1000..]);
        assert_eq!(spill.absorb(&read).unwrap(), Stored::All(700_000));
        assert_eq!(spill.unread(), 700_000);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir.file()), mode(dir.file().parent().unwrap())), (0o600, 0o700));
        drop(write);
        assert_eq!(spill.absorb(&read).unwrap(), Stored::Ended);
        assert!(read_all(&mut spill) == bytes);
        assert!(spill.is_empty() && !dir.file().parent().unwrap().exists(), "neither file nor directory stays");
        // And once more from the start.
        let (read, _write) = source(b"again");
        assert_eq!(spill.absorb(&read).unwrap(), Stored::All(5));
        assert_eq!(read_all(&mut spill), b"again");
    }

    #[test]
    fn a_removal_that_comes_late_leaves_the_file_of_the_next_process_with_the_same_id() {
        let dir = Dir::new("same-id");
        let (mut first, mut next) = (dir.spill(64 << 20, Policy::Block), dir.spill(64 << 20, Policy::Block));
        first.offer(b"first");
        first.store().unwrap();
        next.offer(b"next");
        next.store().unwrap();
        first.remove().unwrap();
        assert_eq!(std::fs::read(dir.file()).unwrap(), b"next");
        next.remove().unwrap();
        assert!(!dir.home().path().exists());
    }

    #[test]
    fn a_reader_that_leaves_in_the_middle_is_continued_by_the_next() {
        let dir = Dir::new("leaves");
        let mut spill = dir.spill(64 << 20, Policy::Block);
        let bytes = numbered(900_000);
        let (read, mut write) = source(&bytes[..600_000]);
        spill.absorb(&read).unwrap();
        let (mut first, fifo) = sink();
        assert_eq!(spill.deliver(&fifo).unwrap(), Given::Blocked);
        let mut taken = vec![0; 10_000];
        first.read_exact(&mut taken).unwrap();
        spill.deliver(&fifo).unwrap();
        // It leaves; what is in its FIFO is not the file's any more.
        let mut in_fifo = vec![0; pipe::unread(&first).unwrap()];
        first.read_exact(&mut in_fifo).unwrap();
        drop(first);
        assert_eq!(spill.deliver(&fifo).unwrap(), Given::NoReader);
        write.write_all(&bytes[600_000..]).unwrap();
        spill.absorb(&read).unwrap();
        let rest = read_all(&mut spill);
        assert!([taken, in_fifo, rest].concat() == bytes);
    }

    #[test]
    fn the_disk_holds_what_is_unread_and_not_what_was_read() {
        let dir = Dir::new("punch");
        let mut spill = dir.spill(64 << 20, Policy::Block);
        let chunk = numbered(1 << 20);
        for _ in 0..16 {
            let (read, _write) = source(&chunk);
            spill.absorb(&read).unwrap();
        }
        let full = allocated(&dir.file());
        assert!(full >= 16 << 20, "{full}");
        let (mut reader, fifo) = sink();
        let mut buffer = vec![0; 64 << 10];
        let mut got = 0;
        while got < 12 << 20 {
            spill.deliver(&fifo).unwrap();
            while let Ok(count) = reader.read(&mut buffer) {
                let expected = chunk.iter().cycle().skip(got % chunk.len()).take(count);
                assert!(buffer[..count].iter().eq(expected), "what was punched out must not be what is in the FIFO");
                got += count;
            }
        }
        let left = allocated(&dir.file());
        assert!(left <= full - (got as u64 / HOLE - 1) * HOLE, "{left} of {full} are left");
    }

    #[test]
    fn at_its_bound_a_blocking_one_takes_no_more_and_goes_on_when_there_is_room() {
        let dir = Dir::new("block");
        let mut spill = dir.spill(100_000, Policy::Block);
        let bytes = numbered(300_000);
        let (read, _write) = source(&bytes[50_000..]);
        spill.offer(&bytes[..50_000]);
        assert_eq!(spill.absorb(&read).unwrap(), Stored::Full(Bound::Limit));
        assert_eq!(spill.absorb(&read).unwrap(), Stored::Full(Bound::Limit), "to ask again changes nothing");
        assert_eq!((spill.unread(), pipe::unread(&read).unwrap()), (100_000, 200_000));
        let mut all = read_all(&mut spill);
        assert_eq!(spill.absorb(&read).unwrap(), Stored::Full(Bound::Limit));
        all.extend(read_all(&mut spill));
        spill.absorb(&read).unwrap();
        all.extend(read_all(&mut spill));
        assert!(all == bytes);
        spill.offer(&bytes[..150_000]);
        assert_eq!(spill.store().unwrap(), Stored::Full(Bound::Limit));
        assert_eq!(spill.unread(), 150_000, "what found no room waits");
        assert!(read_all(&mut spill) == bytes[..150_000]);
    }

    /// The marker's count, and the text before and after it.
    fn split_at_marker(text: &str) -> (u64, String, String) {
        let (before, rest) = text.split_once("[holdfast: ").unwrap();
        let (count, after) = rest.split_once(" bytes of stdout were dropped here: nobody read them]\n").unwrap();
        (count.parse().unwrap(), before.to_owned(), after.to_owned())
    }

    #[test]
    fn at_its_bound_the_oldest_lines_go_and_the_reader_is_told_how_much() {
        let dir = Dir::new("drop");
        let mut spill = dir.spill(100_000, Policy::DropOldest);
        let bytes = numbered(1_000_000);
        // Its first line was begun before, by what the last reader got live.
        for chunk in bytes[3..].chunks(70_000) {
            let (read, _write) = source(chunk);
            while !matches!(spill.absorb(&read).unwrap(), Stored::All(_)) {}
            assert!(spill.in_file() <= 100_000);
            let held = allocated(&dir.file());
            assert!(held <= 100_000 + 3 * BLOCK, "what was dropped is gone from the disk: {held}");
        }
        let text = String::from_utf8(read_all(&mut spill)).unwrap();
        let (dropped, before, after) = split_at_marker(&text);
        assert_eq!(before, "e 0\n", "the line that was begun is ended");
        assert!(after.starts_with("line ") && after.len() > 40_000, "a line starts after the marker: {:.20}", after);
        assert_eq!(3 + before.len() + dropped as usize + after.len(), bytes.len(), "the count is exact");
        assert!(bytes.ends_with(after.as_bytes()));
        assert!(spill.is_empty());
    }

    #[test]
    fn a_second_loss_while_the_reader_is_away_in_the_middle_of_a_marker_has_its_own() {
        let dir = Dir::new("twice");
        let mut spill = dir.spill(50_000, Policy::DropOldest);
        let put = |spill: &mut SpillFile, text: &[u8]| {
            spill.offer(text);
            while !matches!(spill.store().unwrap(), Stored::All(_)) {}
        };
        put(&mut spill, &numbered(60_000));
        let (mut reader, fifo) = sink();
        // Room for a part of the marker only.
        let filler = vec![b'x'; (64 << 10) - 4096];
        nix::unistd::write(&fifo, &filler).unwrap();
        spill.front = vec![b'y'; 4090];
        spill.deliver(&fifo).unwrap();
        let mut got = vec![0; 64 << 10];
        let count = reader.read(&mut got).unwrap();
        got.truncate(count);
        drop(reader);
        put(&mut spill, &numbered(60_000));
        got.extend(read_all(&mut spill));
        let text = String::from_utf8(got).unwrap();
        let (first, _, rest) = split_at_marker(&text);
        let (second, between, after) = split_at_marker(&rest);
        assert!(first > 0 && second > 0 && between.is_empty() && after.starts_with("line "), "{first} {second}");
    }

    #[test]
    fn a_line_without_an_end_does_not_keep_the_marker_from_a_line_of_its_own() {
        let dir = Dir::new("endless");
        let mut spill = dir.spill(10_000, Policy::DropOldest);
        spill.offer(&[b'x'; 30_000]);
        while !matches!(spill.store().unwrap(), Stored::All(_)) {}
        let text = String::from_utf8(read_all(&mut spill)).unwrap();
        let (dropped, before, after) = split_at_marker(&text);
        assert_eq!(before, "\n");
        assert_eq!(dropped as usize + after.len(), 30_000);
        assert!(after.bytes().all(|byte| byte == b'x') && after.len() <= 10_000);
    }

    #[test]
    fn a_step_that_fails_can_be_repeated() {
        let dir = Dir::new("fails");
        let mut spill = dir.spill(1 << 20, Policy::Block);
        let bytes = numbered(100_000);
        let (read, _write) = source(&bytes[10_000..]);
        spill.offer(&bytes[..10_000]);
        // In the place of a directory of its own: it cannot be made.
        std::fs::write(&dir.0, "").unwrap();
        for _ in 0..2 {
            assert_eq!(spill.absorb(&read).unwrap_err().kind(), ErrorKind::NotADirectory);
        }
        assert_eq!((spill.unread(), pipe::unread(&read).unwrap()), (10_000, 90_000));
        std::fs::remove_file(&dir.0).unwrap();
        // A full device takes the bytes one moment and none the next.
        spill.absorb(&read).unwrap();
        let real = spill.file.replace(File::options().read(true).write(true).open("/dev/full").unwrap());
        let (more, _write) = source(b"more");
        spill.offer(b"offered ");
        assert_eq!(spill.absorb(&more).unwrap_err().kind(), ErrorKind::StorageFull);
        spill.file = real;
        spill.absorb(&more).unwrap();
        assert!(read_all(&mut spill) == [&bytes[..], b"offered more"].concat());
    }

    #[test]
    fn it_goes_on_after_a_freeze_at_any_point() {
        let dir = Dir::new("freeze");
        let mut spill = dir.spill(100_000, Policy::DropOldest);
        let bytes = numbered(200_000);
        let (mut reader, fifo) = sink();
        let mut got = Vec::new();
        for (n, chunk) in bytes.chunks(7_000).enumerate() {
            spill.offer(chunk);
            let mut bag = FdBag::default();
            let frozen = serde_json::to_vec(&spill.freeze("spill", &mut bag).unwrap()).unwrap();
            spill = SpillFile::thaw(serde_json::from_slice(&frozen).unwrap(), &mut bag).unwrap();
            spill.store().unwrap();
            if n == 20 {
                // It takes a part, with the marker pending.
                spill.deliver(&fifo).unwrap();
                let mut buffer = vec![0; 40_000];
                reader.read_exact(&mut buffer).unwrap();
                got = buffer;
                let mut rest = vec![0; pipe::unread(&reader).unwrap()];
                reader.read_exact(&mut rest).unwrap();
                got.extend(rest);
            }
        }
        got.extend(read_all(&mut spill));
        let text = String::from_utf8(got).unwrap();
        let (dropped, before, after) = split_at_marker(&text);
        assert_eq!(before.len() + dropped as usize + after.len(), bytes.len());
        let bad = FrozenFile { read_at: 2, write_at: 1, ..spill.freeze("", &mut FdBag::default()).unwrap() };
        assert_eq!(SpillFile::thaw(bad, &mut FdBag::default()).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn a_file_that_is_truncated_from_outside_is_no_endless_wait() {
        let dir = Dir::new("cut");
        let mut spill = dir.spill(1 << 20, Policy::Block);
        spill.offer(&numbered(10_000));
        spill.store().unwrap();
        File::options().write(true).open(dir.file()).unwrap().set_len(0).unwrap();
        let text = String::from_utf8(read_all(&mut spill)).unwrap();
        assert_eq!(split_at_marker(&text), (10_000, String::new(), String::new()));
    }

    #[test]
    fn no_exec_has_the_file_of_init_and_what_is_in_the_way_is_replaced() {
        let settings = OutputSettings::default();
        let dir = Dir::new("way");
        let name = |process: &ProcessId| Place::new(&dir.home(), process, Stream::Stderr, &settings).name;
        assert_eq!(name(&ProcessId::Init), "init.stderr");
        assert_eq!(name(&ProcessId::Exec(ExecId("init".to_owned()))), "exec.init.stderr");
        // One that makes the directory this shim's own.
        dir.home().create_file("exec.e.stdout").unwrap();
        let precious = dir.0.join("precious");
        std::fs::write(&precious, "kept").unwrap();
        std::os::unix::fs::symlink(&precious, dir.file()).unwrap();
        let mut spill = dir.spill(1 << 20, Policy::Block);
        spill.offer(b"own");
        spill.store().unwrap();
        assert_eq!(std::fs::read(&precious).unwrap(), b"kept");
        assert_eq!(read_all(&mut spill), b"own");
    }

    /// A file as of a disk that has failed: it cannot be read.
    fn broken() -> File {
        File::options().write(true).open("/dev/full").unwrap()
    }

    #[test]
    fn when_the_disk_is_back_the_reader_gets_what_it_has_and_is_told_what_it_has_not() {
        for left in [Some(60_000), Some(59_998), Some(100_000), None] {
            let dir = Dir::new("back");
            let mut spill = dir.spill(64 << 20, Policy::Block);
            let bytes = numbered(100_000);
            spill.offer(&bytes);
            spill.store().unwrap();
            spill.file = Some(broken());
            assert!(spill.deliver(sink().1).is_err());
            match left {
                Some(length) => File::options().write(true).open(dir.file()).unwrap().set_len(length).unwrap(),
                None => std::fs::remove_file(dir.file()).unwrap(),
            }
            spill.find_again().unwrap();
            let (read, write) = source(b"more\n");
            drop(write);
            assert_eq!(spill.absorb(&read).unwrap(), Stored::Ended);
            let text = String::from_utf8(read_all(&mut spill)).unwrap();
            let length = usize::try_from(left.unwrap_or(0)).unwrap();
            let kept = String::from_utf8_lossy(&bytes[..length]);
            let marker = match 100_000 - length {
                0 => String::new(),
                lost => format!("[holdfast: {lost} bytes of stdout were lost here: the disk that kept them failed]\n"),
            };
            // The marker stands on a line of its own.
            let end = if left == Some(59_998) { "\n" } else { "" };
            assert!(
                text == format!("{kept}{end}{marker}more\n"),
                "{left:?}: {:.200}",
                &text[length.saturating_sub(50)..]
            );
        }
    }

    #[test]
    fn a_file_that_can_be_read_is_not_given_up_nor_is_one_whose_disk_is_away() {
        let dir = Dir::new("away");
        let mut spill = dir.spill(64 << 20, Policy::Block);
        let bytes = numbered(10_000);
        spill.offer(&bytes);
        spill.store().unwrap();
        std::fs::remove_file(dir.file()).unwrap();
        spill.find_again().unwrap();
        let whole = spill.file.replace(broken());
        let away = dir.0.join("away");
        std::fs::rename(dir.0.join("spill"), &away).unwrap();
        assert_eq!(spill.find_again().unwrap_err().kind(), ErrorKind::NotFound);
        spill.file = whole;
        std::fs::rename(away, dir.0.join("spill")).unwrap();
        assert!(read_all(&mut spill) == bytes);
    }
}
