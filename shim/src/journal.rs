//! The events that wait for their addressee, in a file: who cleans up after a shim that was killed finds there what it had
//! not delivered.
//!
//! Where: `<run root>/tasks/<instance>/<namespace>/.<name of the shim's socket>-<pid>-<start time>.events`. The queue is the
//! shim's, in the order in which things happened in all of its containers, so it cannot stand in the directory of one of
//! them: those come and go, a pod's first may go first, and a container's is gone before its deletion is told. The name is
//! that of the group, so every `delete` of the group finds it, also where there is no record; and that of the process, so
//! nobody takes it from a shim that lives, nor does the group's next shim write into its predecessor's. No container's id
//! begins with a dot.
//!
//! The file exists only while something waits: made by the first event, removed with the last acknowledgement. So a shim
//! whose daemon listens leaves none, holds nothing open, and has nothing to carry through a freeze: who goes on
//! writes it anew from the queue. Nobody reads what he wrote himself. Like the record it is not synced: it survives the
//! death of any process, not a reboot.
//!
//! ```text
//!   magic 8 │ version u32 │ 0 u32 │ up to where all is delivered u64 │ boot id, 40 bytes      little endian
//!   length u32 │ checksum u32 │ an encoded `ForwardRequest`                                  … repeated
//! ```
//!
//! A torn last entry ends the file. One write(2) per event; an acknowledgement overwrites eight bytes; what that leaves behind
//! is cleared away by [`Journal::rewrite`], when it is more than what still waits.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use crate::lifecycle::Pid;
use crate::record;
use crate::sys::process;

const MAGIC: &[u8; 8] = b"hfevents";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const DELIVERED_AT: u64 = 16;
const BOOT_ID_AT: usize = 24;
/// Length and checksum.
const PREFIX: usize = 8;
/// No event is that long; a greater length is garbage. In bytes, as the others here.
const LONGEST_ENTRY: usize = 4 << 20;
/// A file is not read beyond this. Ours end before, see [`Journal::append`].
const LONGEST_FILE: u64 = 8 << 20;
/// Below this a file is not worth clearing up.
const WORTH_CLEARING: u64 = 256 << 10;
/// The extension of its name.
const EXTENSION: &str = ".events";

/// The journal of a shim that runs.
pub(crate) struct Journal {
    path: PathBuf,
    boot_id: String,
    /// None while there is no file.
    extent: Option<Extent>,
}

/// What of the file is used.
#[derive(Default)]
struct Extent {
    /// Where the next entry goes.
    end: u64,
    /// Up to where all is delivered.
    delivered: u64,
}

impl Journal {
    /// The journal of this process for the group whose socket is called `socket_name`; nothing is made yet.
    pub(crate) fn new(dir: &Path, socket_name: &str, boot_id: &str) -> Self {
        let pid = std::process::id();
        let name = file_name(socket_name, pid, process::start_time(pid).unwrap_or(0));
        Self { path: dir.join(name), boot_id: boot_id.to_owned(), extent: None }
    }

    /// Adds an entry, and gives the position behind it, for [`Journal::cut`]. To be called when what was to be written
    /// before stands there.
    ///
    /// # Errors
    /// As `open(2)` and `write(2)`; nothing was added then. `StaleNetworkFileHandle` if somebody has removed the file: it
    /// is to be written anew. `FileTooLarge` at [`LONGEST_FILE`].
    pub(crate) fn append(&mut self, entry: &[u8]) -> io::Result<u64> {
        let mut bytes = Vec::with_capacity(HEADER + PREFIX + entry.len());
        let file = match &self.extent {
            Some(_) => open(&self.path).map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => io::ErrorKind::StaleNetworkFileHandle.into(),
                _ => e,
            })?,
            None => make(&self.path).or_else(|e| match e.kind() {
                io::ErrorKind::NotFound => {
                    record::make_dir(self.path.parent().unwrap_or(Path::new("/")))?;
                    make(&self.path)
                }
                _ => Err(e),
            })?,
        };
        let extent = self.extent.get_or_insert_default();
        if extent.end == 0 {
            bytes.extend_from_slice(&header(&self.boot_id));
        }
        push_entry(&mut bytes, entry);
        let end = extent.end + bytes.len() as u64;
        if end > LONGEST_FILE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // At its place, so that what a failed attempt has left is overwritten; until then it is a torn end.
        file.write_all_at(&bytes, extent.end)?;
        extent.end = end;
        Ok(end)
    }

    /// All before a position is delivered; [`Journal::remove`] is for when nothing waits any more.
    pub(crate) fn cut(&mut self, position: u64) {
        if let Some(extent) = &mut self.extent
            && position > extent.delivered
        {
            extent.delivered = position;
            // If it fails, something may be told twice.
            let _ = open(&self.path).and_then(|file| file.write_all_at(&position.to_le_bytes(), DELIVERED_AT));
        }
    }

    /// Whether what is of no use any more is much, and more than what is.
    pub(crate) fn wants_clearing(&self) -> bool {
        let extent = self.extent.as_ref();
        extent.is_some_and(|extent| extent.end > WORTH_CLEARING && extent.delivered > extent.end / 2)
    }

    /// Replaces the file by one with these entries alone, and gives the positions behind them. A reader finds the old one or
    /// the new one, whole.
    ///
    /// # Errors
    /// As `open(2)`, `write(2)` and `rename(2)`; the old file stays.
    pub(crate) fn rewrite<'a>(&mut self, entries: impl Iterator<Item = &'a [u8]>) -> io::Result<Vec<u64>> {
        let new = self.path.with_extension("new");
        let written = make(&new).or_else(|_| {
            record::make_dir(self.path.parent().unwrap_or(Path::new("/")))?;
            make(&new)
        });
        let written = written.and_then(|file| write_all(file, &self.boot_id, entries));
        let replaced = written.and_then(|written| fs::rename(&new, &self.path).map(|()| written));
        let positions = replaced.inspect_err(|_| drop(fs::remove_file(&new)))?;
        let end = positions.last().copied().unwrap_or(HEADER as u64);
        self.extent = Some(Extent { end, delivered: HEADER as u64 });
        Ok(positions)
    }

    /// Nothing waits any more.
    pub(crate) fn remove(&mut self) {
        if self.extent.take().is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn make(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Each time anew: so a file that somebody has removed is noticed, and nothing is held open at rest.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn header(boot_id: &str) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&(HEADER as u64).to_le_bytes());
    let boot_id = &boot_id.as_bytes()[..boot_id.len().min(HEADER - BOOT_ID_AT)];
    header[BOOT_ID_AT..][..boot_id.len()].copy_from_slice(boot_id);
    header
}

fn push_entry(bytes: &mut Vec<u8>, entry: &[u8]) {
    bytes.extend_from_slice(&u32::try_from(entry.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&checksum(entry).to_le_bytes());
    bytes.extend_from_slice(entry);
}

/// FNV-1a, 32 bits: against a torn end, not against anybody.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn write_all<'a>(file: File, boot_id: &str, entries: impl Iterator<Item = &'a [u8]>) -> io::Result<Vec<u64>> {
    let mut out = BufWriter::with_capacity(64 << 10, file);
    out.write_all(&header(boot_id))?;
    let (mut at, mut positions, mut bytes) = (HEADER as u64, Vec::new(), Vec::new());
    for entry in entries {
        bytes.clear();
        push_entry(&mut bytes, entry);
        out.write_all(&bytes)?;
        at += bytes.len() as u64;
        positions.push(at);
    }
    out.flush()?;
    Ok(positions)
}

/// Each with the position behind it.
type Entries = Vec<(u64, Vec<u8>)>;

/// A journal whose shim is dead, held by us alone.
pub(crate) struct LeftBehind {
    path: PathBuf,
    file: Flock<File>,
    /// What waited when it was taken, and what was added.
    entries: Entries,
    /// How many of them have been delivered.
    delivered: usize,
    /// Where the next entry goes: behind the last whole one.
    end: u64,
}

/// Why a journal that was left behind cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    /// Somebody else is at it.
    #[error("another process has {0}")]
    Held(PathBuf),
    /// The kernel refuses.
    #[error("cannot read the events in {0}")]
    Io(PathBuf, #[source] io::Error),
    /// It is no journal, or one of a version that is not known here.
    #[error("{0} holds no events, or in a form that this build does not know")]
    Malformed(PathBuf),
}

/// The journals in `dir` that dead shims of a group have left, by the name of its socket.
pub(crate) fn left_behind(dir: &Path, socket_name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .filter(|path| owner(path, socket_name).is_some_and(|(pid, start)| process::start_time(pid) != Some(start)))
        .collect()
}

/// Makes an empty one for what a dead shim could not say any more, if it has left none; its path.
///
/// # Errors
/// As `open(2)`, `write(2)` and `link(2)`.
pub(crate) fn make_for(dir: &Path, socket_name: &str, (pid, start_time): (Pid, u64)) -> io::Result<PathBuf> {
    let path = dir.join(file_name(socket_name, pid, start_time));
    // Whole as soon as it is there: another `delete` would take one without its header for torn.
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let mut options = OpenOptions::new();
    let made = options.write(true).create(true).truncate(true).mode(0o600).open(&new);
    let made = made.and_then(|mut file| file.write_all(&header(&record::boot_id())));
    let made = made.and_then(|()| fs::hard_link(&new, &path));
    let _ = fs::remove_file(&new);
    match made {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(path),
        made => made.map(|()| path),
    }
}

fn file_name(socket_name: &str, pid: Pid, start_time: u64) -> String {
    format!(".{socket_name}-{pid}-{start_time}{EXTENSION}")
}

/// The shim that wrote a journal, if that is its name.
fn owner(path: &Path, socket_name: &str) -> Option<(Pid, u64)> {
    let name = path.file_name()?.to_str()?.strip_prefix('.')?.strip_prefix(socket_name)?.strip_prefix('-')?;
    let (pid, start_time) = name.strip_suffix(EXTENSION)?.split_once('-')?;
    Some((pid.parse().ok()?, start_time.parse().ok()?))
}

impl LeftBehind {
    /// Waits for the lock until `until` and reads what waits; `None` if somebody else has come to the end of it meanwhile, or
    /// if it is of another boot, and gone now.
    ///
    /// # Errors
    /// See [`TakeError`]. What is no journal stays.
    pub(crate) fn take(path: &Path, until: Instant) -> Result<Option<Self>, TakeError> {
        let failed = |e| TakeError::Io(path.to_owned(), e);
        let mut options = OpenOptions::new();
        let file = match options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let file = lock(file, until).ok_or_else(|| TakeError::Held(path.to_owned()))?;
        let meta = file.metadata().map_err(failed)?;
        if meta.nlink() == 0 {
            return Ok(None);
        }
        if !meta.is_file() {
            return Err(TakeError::Malformed(path.to_owned()));
        }
        let mut bytes = Vec::new();
        (&*file).take(LONGEST_FILE).read_to_end(&mut bytes).map_err(failed)?;
        let mut taken = Self { path: path.to_owned(), file, entries: Vec::new(), delivered: 0, end: 0 };
        // Killed before its first entry was whole, or before the reboot.
        if bytes.len() < HEADER || is_of_another_boot(&bytes) {
            taken.remove();
            return Ok(None);
        }
        (taken.entries, taken.end) = parse(&bytes).ok_or_else(|| TakeError::Malformed(path.to_owned()))?;
        Ok(Some(taken))
    }

    /// What waits, in order.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &[u8]> {
        self.entries[self.delivered..].iter().map(|(_, entry)| entry.as_slice())
    }

    /// Adds what the shim could not say any more.
    ///
    /// # Errors
    /// As `write(2)`; it waits all the same, for this process.
    pub(crate) fn append(&mut self, entry: Vec<u8>) -> io::Result<()> {
        let mut bytes = Vec::new();
        push_entry(&mut bytes, &entry);
        let written = self.file.write_all_at(&bytes, self.end);
        self.end += bytes.len() as u64;
        self.entries.push((self.end, entry));
        written
    }

    /// The first that waits was taken.
    pub(crate) fn delivered(&mut self) {
        if let Some((position, _)) = self.entries.get(self.delivered) {
            // If it fails, something may be told twice.
            let _ = self.file.write_all_at(&position.to_le_bytes(), DELIVERED_AT);
            self.delivered += 1;
        }
    }

    /// Whether somebody has removed the file: then nobody else will come for it.
    pub(crate) fn is_gone(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.nlink() == 0)
    }

    /// All is delivered. A rewrite that was not completed goes with it.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_file(self.path.with_extension("new"));
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(mut file: File, until: Instant) -> Option<Flock<File>> {
    const LOOK_AGAIN: Duration = Duration::from_millis(5);
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Some(locked),
            Err((back, _)) if Instant::now() < until => {
                file = back;
                std::thread::sleep(LOOK_AGAIN);
            }
            Err(_) => return None,
        }
    }
}

fn is_of_another_boot(bytes: &[u8]) -> bool {
    let written = &bytes[BOOT_ID_AT..HEADER];
    bytes.starts_with(MAGIC) && header(&record::boot_id())[BOOT_ID_AT..] != *written
}

/// The entries that are not delivered, up to the torn end if there is one, and where that is; `None` for what is no journal.
fn parse(bytes: &[u8]) -> Option<(Entries, u64)> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if !bytes.starts_with(MAGIC) || number(8)? != VERSION {
        return None;
    }
    let delivered = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
    let (mut at, mut entries) = (HEADER, Vec::new());
    while let (Some(length), Some(sum)) = (number(at), number(at + 4)) {
        let end = at + PREFIX + length as usize;
        let entry = bytes.get(at + PREFIX..end);
        let Some(entry) = entry.filter(|entry| entry.len() <= LONGEST_ENTRY && checksum(entry) == sum) else { break };
        if end as u64 > delivered {
            entries.push((end as u64, entry.to_vec()));
        }
        at = end;
    }
    Some((entries, at as u64))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory of its own, removed at the end.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("hf-journal-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            Self(dir)
        }

        fn journal(&self) -> Journal {
            Journal::new(&self.0, "ab12", &record::boot_id())
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn waiting(path: &Path) -> Vec<Vec<u8>> {
        LeftBehind::take(path, Instant::now()).unwrap().unwrap().waiting().map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn what_was_appended_and_not_cut_off_waits_in_order() {
        let place = Place::new("order");
        let mut journal = place.journal();
        let positions: Vec<_> = [&b"one"[..], b"two", b"", b"four"].map(|e| journal.append(e).unwrap()).into();
        assert_eq!(waiting(&journal.path), [&b"one"[..], b"two", b"", b"four"]);
        assert_eq!(fs::metadata(&journal.path).unwrap().permissions().mode() & 0o777, 0o600);
        journal.cut(positions[1]);
        assert_eq!(waiting(&journal.path), [&b""[..], b"four"]);
        journal.remove();
        assert_eq!(fs::read_dir(&place.0).unwrap().count(), 0, "nothing is left when nothing waits");
        journal.append(b"five").unwrap();
        assert_eq!(waiting(&journal.path), [b"five"]);
    }

    #[test]
    fn a_file_cut_anywhere_gives_the_entries_that_are_whole() {
        let place = Place::new("torn");
        let mut journal = place.journal();
        let entries = [&b"first"[..], b"second", b"third"];
        let ends = entries.map(|e| journal.append(e).unwrap());
        let whole = fs::read(&journal.path).unwrap();
        for length in HEADER..=whole.len() {
            let (parsed, _) = parse(&whole[..length]).unwrap();
            let expected = ends.iter().filter(|end| **end <= length as u64).count();
            assert_eq!(parsed.iter().map(|(_, e)| e.as_slice()).collect::<Vec<_>>(), entries[..expected], "{length}");
        }
        // A bad byte ends it as well.
        let mut bad = whole;
        let last = bad.len() - 1;
        bad[last] ^= 1;
        assert_eq!(parse(&bad).unwrap().0.len(), 2);
    }

    #[test]
    fn what_is_no_journal_is_refused_and_stays() {
        let place = Place::new("garbage");
        fs::create_dir_all(&place.0).unwrap();
        let path = place.0.join("x");
        let mut newer = header(&record::boot_id());
        newer[8] = 9;
        for bytes in [&[7; 100][..], &newer] {
            fs::write(&path, bytes).unwrap();
            let refused = LeftBehind::take(&path, Instant::now()).err().unwrap().to_string();
            assert!(refused.contains(path.to_str().unwrap()), "{refused}");
            assert!(path.exists());
        }
    }

    #[test]
    fn a_journal_of_another_boot_or_without_a_whole_header_is_void() {
        let place = Place::new("void");
        fs::create_dir_all(&place.0).unwrap();
        let path = place.0.join("x");
        let of_another_boot = [&header("00000000-another-boot")[..], b"\x01\0\0\0"].concat();
        for bytes in [&b"hfev"[..], b"", &of_another_boot] {
            fs::write(&path, bytes).unwrap();
            assert!(LeftBehind::take(&path, Instant::now()).unwrap().is_none());
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_rewrite_leaves_only_what_it_was_given_and_appending_goes_on() {
        let place = Place::new("rewrite");
        let mut journal = place.journal();
        for n in 0..3000_u32 {
            let end = journal.append(&[u8::try_from(n % 251).unwrap(); 100]).unwrap();
            if n < 2000 {
                journal.cut(end);
            }
        }
        assert!(journal.wants_clearing());
        let positions = journal.rewrite([&b"a"[..], b"b"].into_iter()).unwrap();
        assert!(!journal.wants_clearing());
        journal.append(b"c").unwrap();
        journal.cut(positions[0]);
        assert_eq!(waiting(&journal.path), [b"b", b"c"]);
        assert_eq!(fs::read_dir(&place.0).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_somebody_removed_is_noticed_and_written_anew() {
        let place = Place::new("removed");
        let mut journal = place.journal();
        journal.append(b"a").unwrap();
        fs::remove_dir_all(&place.0).unwrap();
        assert_eq!(journal.append(b"b").unwrap_err().kind(), io::ErrorKind::StaleNetworkFileHandle);
        journal.rewrite([&b"a"[..], b"b"].into_iter()).unwrap();
        assert_eq!(waiting(&journal.path), [b"a", b"b"]);
    }

    #[test]
    fn what_is_added_to_what_was_left_comes_after_it_and_takes_the_place_of_a_torn_end() {
        let place = Place::new("added");
        let mut journal = place.journal();
        let ends = [&b"a"[..], b"b"].map(|e| journal.append(e).unwrap());
        let file = OpenOptions::new().write(true).open(&journal.path).unwrap();
        file.set_len(ends[1] - 1).unwrap();
        let mut left = LeftBehind::take(&journal.path, Instant::now()).unwrap().unwrap();
        left.append(b"c".to_vec()).unwrap();
        left.delivered();
        assert!(!left.is_gone());
        drop(left);
        assert_eq!(waiting(&journal.path), [b"c"]);
        let made = make_for(&place.0, "ab12", (4_194_304, 7)).unwrap();
        assert!(left_behind(&place.0, "ab12").contains(&made));
        assert!(waiting(&made).is_empty());
        assert_eq!(make_for(&place.0, "ab12", (4_194_304, 7)).unwrap(), made, "it is there already");
        assert!(LeftBehind::take(&made, Instant::now()).unwrap().is_some(), "and is whole");
        assert_eq!(fs::read_dir(&place.0).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn only_the_dead_leave_something_behind() {
        let place = Place::new("owner");
        let mut journal = place.journal();
        journal.append(b"a").unwrap();
        let dead = place.0.join(".ab12-4194304-7.events");
        fs::write(&dead, b"").unwrap();
        fs::write(place.0.join(".ab13-4194304-7.events"), b"").unwrap();
        fs::create_dir(place.0.join("ab12-4194304-7.events")).unwrap();
        assert_eq!(left_behind(&place.0, "ab12"), [dead]);
    }

    #[test]
    fn one_takes_it_and_the_other_waits_for_the_end_of_that() {
        let place = Place::new("lock");
        let mut journal = place.journal();
        journal.append(b"a").unwrap();
        let mut first = LeftBehind::take(&journal.path, Instant::now()).unwrap().unwrap();
        let held = LeftBehind::take(&journal.path, Instant::now());
        assert!(matches!(held, Err(TakeError::Held(_))));
        let (path, until) = (journal.path.clone(), Instant::now() + Duration::from_secs(60));
        let second = std::thread::spawn(move || LeftBehind::take(&path, until).unwrap().is_none());
        first.delivered();
        first.remove();
        drop(first);
        assert!(second.join().unwrap(), "nothing waits any more");
    }
}
