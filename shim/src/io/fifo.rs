//! FIFOs whose other end belongs to a client that may not be there yet, may leave and may come back.
//!
//! Output is held by the write end alone, so that an absent reader shows (as `EPIPE`, never as a signal) and what is in
//! the FIFO waits for the next reader. Input is held by a read end, and by a write end of our own until CloseIO, so that
//! a client that leaves is not the end of the input.

use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::AddWatchFlags;
use nix::sys::stat::{Mode, SFlag, fstat};
use tokio::task::yield_now;
use tokio::time::Instant;

use super::watch::{Signal, Watched};
use crate::sys::pipe;

/// How often an absent reader is looked for where the kernel grants no watch (their number per user is limited), at first
/// and at last.
const LOOK_INTERVALS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));
/// How often a present reader's progress is looked at, at first and at last, besides what inotify reports.
const TAIL_INTERVALS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(4));

/// Why a FIFO could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum FifoError {
    /// The kernel refuses.
    #[error("cannot open the FIFO {path}")]
    Open {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something else at the path.
    #[error("{0} is not a FIFO")]
    NotAFifo(PathBuf),
}

/// Opens the write end, whether or not a reader is there, and never blocks.
///
/// Opening for writing alone fails without a reader, so it is opened for both first and the read end given up: a reader
/// that waits in its own open is let go by that, and counts as present from then on.
///
/// # Errors
/// See [`FifoError`].
pub fn open_write_end(path: &Path) -> Result<OwnedFd, FifoError> {
    let both = open_fifo(path, OFlag::O_RDWR)?;
    reopen(&both, OFlag::O_WRONLY).map_err(|source| FifoError::Open { path: path.to_owned(), source })
}

/// Opens the read end and a write end that keeps it from ending, never blocking.
///
/// # Errors
/// See [`FifoError`].
pub fn open_read_end(path: &Path) -> Result<(OwnedFd, OwnedFd), FifoError> {
    let read = open_fifo(path, OFlag::O_RDONLY)?;
    match reopen(&read, OFlag::O_WRONLY) {
        Ok(keeper) => Ok((read, keeper)),
        Err(source) => Err(FifoError::Open { path: path.to_owned(), source }),
    }
}

fn open_fifo(path: &Path, access: OFlag) -> Result<OwnedFd, FifoError> {
    let failed = |e: Errno| FifoError::Open { path: path.to_owned(), source: e.into() };
    // First without opening what is there: a device or a socket must not notice.
    let named = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
    let kind = fstat(&named).map_err(failed)?.st_mode & SFlag::S_IFMT.bits();
    if kind != SFlag::S_IFIFO.bits() {
        return Err(FifoError::NotAFifo(path.to_owned()));
    }
    reopen(&named, access).map_err(|source| FifoError::Open { path: path.to_owned(), source })
}

/// The same inode again, whatever is at its path by now.
fn reopen(fd: &OwnedFd, access: OFlag) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(open(path.as_str(), access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// A read end of the pipe or FIFO that `write_end` belongs to. It blocks, as whoever it is for expects.
///
/// # Errors
/// As `open(2)`.
pub fn open_other_end(write_end: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", write_end.as_raw_fd());
    Ok(open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Whether somebody has the read end open, asked at the write end.
pub fn has_reader(write_end: impl AsFd) -> bool {
    let mut fds = [PollFd::new(write_end.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) => !fds[0].revents().is_some_and(|r| r.contains(PollFlags::POLLERR)),
        Err(_) => false,
    }
}

/// The time without a reader, or until what a reader left is read: what a stream waits for then.
///
/// epoll does not report that a reader opens, inotify does. A client may also remove the FIFO and make another at the same
/// path, even with a new directory around it; nobody finds the old one then.
pub struct Absence<F> {
    write_end: F,
    signal: Rc<Signal>,
    /// None where no watch can be had.
    opens: Option<Watched>,
    place: Option<Place>,
    /// When to look without having been told, and how long after that again.
    look_again: (Instant, Duration),
    is_tail: bool,
}

impl<F: AsFd> Absence<F> {
    /// Of the FIFO that `write_end` belongs to; `path` is where clients look for it. Must be called within a `LocalSet`.
    pub fn new(write_end: F, path: Option<&Path>) -> Self {
        let signal = Rc::new(Signal::default());
        let opens = watch(&write_end, AddWatchFlags::IN_OPEN, &signal);
        let place = path.map(|path| Place { path: path.to_owned(), around: Vec::new(), watched: Vec::new() });
        let look_again = (Instant::now() + LOOK_INTERVALS.0, LOOK_INTERVALS.0);
        Self { write_end, signal, opens, place, look_again, is_tail: false }
    }

    /// As [`Absence::new`], but nothing more will be written: it is over also when the FIFO is empty.
    pub fn of_tail(write_end: F, path: Option<&Path>) -> Self {
        Self { is_tail: true, ..Self::new(write_end, path) }
    }

    /// Returns once a reader is there, or with the write end of the FIFO that has taken this one's place. Safe to cancel,
    /// and to call again.
    ///
    /// What is looked for is looked for after the watches were set, so that nothing is missed. A reader that opens and
    /// closes in a loop may be gone again at the next look; each of its rounds costs one, after all others had their turn.
    pub async fn end(&mut self) -> Option<OwnedFd> {
        loop {
            yield_now().await;
            // One that has left again may have read everything.
            if has_reader(&self.write_end) || (self.is_tail && pipe::unread(&self.write_end).is_ok_and(|n| n == 0)) {
                return None;
            }
            let next = self.successor();
            if let Ok(Some(next)) = next {
                return Some(next);
            }
            // Where not everything can be watched, or what is there cannot be opened for want of descriptors, looking now
            // and then is all that is left: ever less often, since a machine that has none left has many streams without a
            // reader.
            let unwatched = self.opens.is_none() || self.place.as_ref().is_some_and(|place| place.watched.is_empty());
            let blind = unwatched || next.is_err();
            // In any order; both may be dropped, since every look is at everything.
            tokio::select! {
                () = self.signal.event() => {}
                () = tokio::time::sleep_until(self.look_again.0), if blind => {
                    let interval = (self.look_again.1 * 2).min(LOOK_INTERVALS.1);
                    self.look_again = (Instant::now() + interval, interval);
                    self.opens = self.opens.take().or_else(|| watch(&self.write_end, AddWatchFlags::IN_OPEN, &self.signal));
                }
            }
        }
    }

    /// Once another FIFO is in the place of one without a reader, that will not get one.
    fn successor(&mut self) -> io::Result<Option<OwnedFd>> {
        let Some(place) = self.place.as_mut() else { return Ok(None) };
        place.watch(&self.signal);
        let next = successor(&place.path, &self.write_end)?;
        Ok(next.filter(|_| !has_reader(&self.write_end)))
    }
}

/// Where a FIFO was found, and will be looked for.
struct Place {
    path: PathBuf,
    /// The directories that are watched, and which they are: device and inode.
    around: Vec<(PathBuf, (u64, u64))>,
    watched: Vec<Watched>,
}

impl Place {
    /// Watches the directory or, if it is not there, what it will come into.
    fn watch(&mut self, signal: &Rc<Signal>) {
        let events = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut is_over = signal.take_over();
        // Until they are the same after they are watched.
        loop {
            let around = self.directories();
            if around == self.around && !is_over {
                return;
            }
            let watch = |(directory, _): &(PathBuf, _)| Watched::new(directory, events, signal);
            self.watched = around.iter().map(watch).collect::<io::Result<_>>().unwrap_or_default();
            self.around = if self.watched.is_empty() { Vec::new() } else { around };
            is_over = false;
            if self.watched.is_empty() {
                return;
            }
        }
    }

    /// The nearest directory that exists; and while nothing is at the path, the one above. For the removal of a directory
    /// shows only there as long as we hold a FIFO that was in it.
    fn directories(&self) -> Vec<(PathBuf, (u64, u64))> {
        let which = |directory: &Path| {
            let metadata = directory.metadata().ok().filter(Metadata::is_dir)?;
            Some((directory.to_owned(), (metadata.dev(), metadata.ino())))
        };
        let count = if self.path.symlink_metadata().is_ok() { 1 } else { 2 };
        self.path.ancestors().skip(1).filter_map(which).take(count).collect()
    }
}

/// Whether both belong to one FIFO.
pub fn is_same(one: impl AsFd, other: impl AsFd) -> bool {
    match (fstat(one), fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

/// The write end of the FIFO at `path`, if it is another than `old`. What is no FIFO, or the name of one that is
/// elsewhere, is none that a client has made in its place.
///
/// # Errors
/// As `open(2)`, of one that is there perhaps.
fn successor(path: &Path, old: impl AsFd) -> io::Result<Option<OwnedFd>> {
    #[cfg(test)]
    if tests::NO_DESCRIPTORS.get() {
        return Err(Errno::EMFILE.into());
    }
    let named = match open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        named => named?,
    };
    let is_fifo = fstat(&named)?.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFIFO.bits();
    if !is_fifo || is_same(&named, old) {
        return Ok(None);
    }
    let both = reopen(&named, OFlag::O_RDWR)?;
    reopen(&both, OFlag::O_WRONLY).map(Some)
}

/// A read end of the pipe or FIFO that `write_end` belongs to. It never blocks.
///
/// # Errors
/// As `open(2)`.
pub fn open_remainder(write_end: &OwnedFd) -> io::Result<OwnedFd> {
    reopen(write_end, OFlag::O_RDONLY)
}

/// Returns once the FIFO, which has a reader, holds nothing more, or the reader has gone. Safe to cancel.
///
/// epoll does not report that a reader empties a partly filled FIFO. inotify does, but not on every kernel if the reader
/// moves pages, so it is looked at now and then as well.
pub async fn tail_is_read(write_end: &OwnedFd) {
    let signal = Rc::new(Signal::default());
    let _watch = watch(write_end, AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_CLOSE_NOWRITE, &signal);
    let mut interval = TAIL_INTERVALS.0;
    while has_reader(write_end) && pipe::unread(write_end).is_ok_and(|n| n > 0) {
        // Either way the loop looks again.
        let _ = tokio::time::timeout(interval, signal.event()).await;
        interval = (interval * 2).min(TAIL_INTERVALS.1);
    }
}

/// By the fd rather than by the path, where another FIFO or none may be by now.
fn watch(fd: impl AsFd, events: AddWatchFlags, signal: &Rc<Signal>) -> Option<Watched> {
    Watched::new(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).as_str(), events, signal).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;

    use nix::unistd::mkfifo;
    use tokio::task::LocalSet;

    use super::super::watch;
    use super::*;

    thread_local! {
        /// Whether this thread can open nothing more.
        pub(super) static NO_DESCRIPTORS: Cell<bool> = const { Cell::new(false) };
    }

    fn fifo(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("holdfast-{}-fifo-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        path
    }

    fn reader(path: &Path) -> File {
        File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).unwrap()
    }

    #[test]
    fn what_is_in_the_fifo_outlives_its_reader() {
        let path = fifo("outlives");
        let mut write = File::from(open_write_end(&path).unwrap());
        assert!(!has_reader(&write));
        assert_eq!(write.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let first = reader(&path);
        assert!(has_reader(&write));
        write.write_all(b"kept").unwrap();
        drop(first);
        assert!(!has_reader(&write));
        let mut text = [0; 8];
        let n = reader(&path).read(&mut text).unwrap();
        assert_eq!(&text[..n], b"kept");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_leaving_writer_is_not_the_end_of_the_input() {
        let path = fifo("input");
        let (read, keeper) = open_read_end(&path).unwrap();
        let mut read = File::from(read);
        let mut client = File::options().write(true).open(&path).unwrap();
        client.write_all(b"a").unwrap();
        drop(client);
        let mut byte = [0; 1];
        assert_eq!(read.read(&mut byte).unwrap(), 1);
        assert_eq!(read.read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(keeper);
        assert_eq!(read.read(&mut byte).unwrap(), 0);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_no_fifo_is_refused_by_name() {
        let error = open_write_end(Path::new("/dev/null")).unwrap_err();
        assert_eq!(error.to_string(), "/dev/null is not a FIFO");
        let error = open_write_end(Path::new("/nowhere/fifo")).unwrap_err();
        assert_eq!(error.to_string(), "cannot open the FIFO /nowhere/fifo");
    }

    fn in_a_task_set(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    /// What the absence ends with while `client` acts.
    async fn absence_while<T>(write_end: &OwnedFd, path: &Path, client: impl FnOnce() -> T) -> (Option<OwnedFd>, T) {
        let mut absence = Absence::new(write_end, Some(path));
        let acting = async {
            // It has looked, and waits.
            tokio::time::sleep(Duration::from_millis(20)).await;
            client()
        };
        // What the client opened must still be there when it is looked for.
        let (end, made) = tokio::join!(tokio::time::timeout(Duration::from_secs(10), absence.end()), acting);
        (end.expect("the absence should end"), made)
    }

    fn inode(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn a_reader_that_opens_is_noticed() {
        in_a_task_set(async {
            let path = fifo("noticed");
            let write = open_write_end(&path).unwrap();
            let (next, reader) = absence_while(&write, &path, || reader(&path)).await;
            assert!(next.is_none() && has_reader(&write));
            drop(reader);
            std::fs::remove_file(path).unwrap();
        });
    }

    #[test]
    fn another_fifo_in_its_place_is_noticed_also_with_a_new_directory() {
        in_a_task_set(async {
            let dir = std::env::temp_dir().join(format!("holdfast-{}-place", std::process::id()));
            let path = dir.join("of/the/fifo");
            let make = || {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                mkfifo(&path, Mode::S_IRWXU).unwrap();
                path.clone()
            };
            make();
            let write = open_write_end(&path).unwrap();
            let moved = dir.with_extension("moved");
            let ways: [(&str, &dyn Fn() -> PathBuf); 3] = [
                ("removed", &|| {
                    std::fs::remove_file(&path).unwrap();
                    make()
                }),
                ("removed with its directories", &|| {
                    std::fs::remove_dir_all(&dir).unwrap();
                    make()
                }),
                ("moved away with its directory", &|| {
                    std::fs::rename(path.parent().unwrap(), &moved).unwrap();
                    make()
                }),
            ];
            let mut write = write;
            for (way, replace) in ways {
                let (next, at) = absence_while(&write, &path, replace).await;
                write = next.expect(way);
                assert_eq!(fstat(&write).unwrap().st_ino, inode(&at), "{way}");
            }
            std::fs::remove_dir_all(dir).unwrap();
            std::fs::remove_dir_all(moved).unwrap();
        });
    }

    #[test]
    fn a_directory_that_is_made_anew_step_by_step_is_followed() {
        in_a_task_set(async {
            let dir = std::env::temp_dir().join(format!("holdfast-{}-steps", std::process::id()));
            let [of, it] = [dir.join("of"), dir.join("of/it")];
            std::fs::create_dir_all(&it).unwrap();
            let path = it.join("fifo");
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            let write = open_write_end(&path).unwrap();
            let steps: [&dyn Fn(); 7] = [
                &|| std::fs::remove_file(&path).unwrap(),
                &|| std::fs::remove_dir(&it).unwrap(),
                &|| std::fs::remove_dir(&of).unwrap(),
                &|| std::fs::create_dir(&of).unwrap(),
                &|| std::fs::rename(&of, dir.join("away")).unwrap(),
                &|| std::fs::create_dir_all(&it).unwrap(),
                &|| mkfifo(&path, Mode::S_IRWXU).unwrap(),
            ];
            let acting = async {
                for step in steps {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    step();
                }
            };
            let mut absence = Absence::new(&write, Some(&path));
            let (end, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(10), absence.end()), acting);
            let next = end.expect("the absence should end").expect("there is another");
            assert_eq!(fstat(&next).unwrap().st_ino, inode(&path));
            std::fs::remove_dir_all(dir).unwrap();
        });
    }

    #[test]
    fn what_is_no_fifo_takes_no_fifos_place() {
        let (path, other) = (fifo("place"), fifo("other"));
        let write = open_write_end(&path).unwrap();
        assert!(successor(&path, &write).unwrap().is_none(), "it is the same");
        std::fs::remove_file(&path).unwrap();
        assert!(successor(&path, &write).unwrap().is_none(), "there is nothing");
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert!(successor(&path, &write).unwrap().is_none(), "a symlink is not followed");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(successor(&path, &write).unwrap().is_none(), "a file");
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(successor(&path, &write).unwrap().is_some());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_fifo_that_somebody_still_reads_is_not_given_up() {
        in_a_task_set(async {
            let path = fifo("still-read");
            let write = open_write_end(&path).unwrap();
            let (next, old) = absence_while(&write, &path, || {
                let old = reader(&path);
                std::fs::remove_file(&path).unwrap();
                mkfifo(&path, Mode::S_IRWXU).unwrap();
                old
            })
            .await;
            assert!(next.is_none());
            drop(old);
            assert!(Absence::new(&write, Some(&path)).end().await.is_some());
            std::fs::remove_file(path).unwrap();
        });
    }

    #[test]
    fn all_absences_share_one_inotify_instance_which_does_not_outlast_them_for_long() {
        in_a_task_set(async {
            let paths: Vec<_> = (0..20).map(|n| fifo(&format!("share{n}"))).collect();
            let writes: Vec<_> = paths.iter().map(|path| open_write_end(path).unwrap()).collect();
            let absences: Vec<_> = writes.iter().zip(&paths).map(|(fd, path)| Absence::new(fd, Some(path))).collect();
            let instances = || {
                let own = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
                own.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|t| t.ends_with("inotify"))).count()
            };
            // Other tests of the process may have theirs.
            assert!(watch::is_there() && instances() < 20, "{}", instances());
            drop(absences);
            let gone = async {
                while watch::is_there() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the instance should be closed");
            paths.iter().for_each(|path| std::fs::remove_file(path).unwrap());
        });
    }

    #[test]
    fn a_fifo_that_cannot_be_opened_when_it_takes_the_place_is_opened_later() {
        in_a_task_set(async {
            let path = fifo("no-descriptors");
            let write = open_write_end(&path).unwrap();
            let mut absence = Absence::new(&write, Some(&path));
            NO_DESCRIPTORS.set(true);
            std::fs::remove_file(&path).unwrap();
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            // Its events are all taken now.
            assert!(tokio::time::timeout(Duration::from_millis(20), absence.end()).await.is_err());
            NO_DESCRIPTORS.set(false);
            let end = tokio::time::timeout(Duration::from_secs(10), absence.end()).await;
            assert!(end.expect("it should be tried again").is_some());
            std::fs::remove_file(&path).unwrap();
        });
    }

    #[test]
    fn without_a_watch_it_is_looked_for_now_and_then() {
        in_a_task_set(async {
            let path = fifo("blind");
            let write = open_write_end(&path).unwrap();
            watch::REFUSE.set(true);
            let mut absence = Absence::new(&write, Some(&path));
            assert!(absence.opens.is_none());
            assert!(tokio::time::timeout(Duration::from_millis(20), absence.end()).await.is_err());
            let reader = reader(&path);
            let end = tokio::time::timeout(Duration::from_secs(10), absence.end()).await;
            assert!(end.expect("it should be found").is_none());
            drop(reader);
            // Also when another FIFO is in its place; and once there is an instance again, it is taken.
            std::fs::remove_file(&path).unwrap();
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            assert!(absence.end().await.is_some());
            std::fs::remove_file(&path).unwrap();
            assert!(tokio::time::timeout(Duration::from_millis(20), absence.end()).await.is_err());
            watch::REFUSE.set(false);
            while absence.opens.is_none() {
                drop(tokio::time::timeout(Duration::from_millis(20), absence.end()).await);
            }
        });
    }

    #[test]
    fn a_tail_that_a_new_reader_empties_is_noticed() {
        in_a_task_set(async {
            let path = fifo("tail");
            let write = open_write_end(&path).unwrap();
            let first = reader(&path);
            nix::unistd::write(&write, b"tail").unwrap();
            drop(first);
            // The next reader finds it by another name: not the path alone is watched.
            let moved = fifo("tail-moved");
            std::fs::rename(&path, &moved).unwrap();
            let (next, mut held) = absence_while(&write, &path, || reader(&moved)).await;
            assert!(next.is_none());
            let reading = async {
                tokio::task::yield_now().await;
                let mut text = [0; 8];
                held.read(&mut text).unwrap()
            };
            let ((), n) = tokio::join!(tail_is_read(&write), reading);
            assert_eq!(n, 4);
            std::fs::remove_file(moved).unwrap();
        });
    }

    #[test]
    fn a_tail_is_over_when_a_reader_has_come_read_it_and_left() {
        in_a_task_set(async {
            let path = fifo("quick");
            let write = open_write_end(&path).unwrap();
            let first = reader(&path);
            nix::unistd::write(&write, b"tail").unwrap();
            drop(first);
            let mut absence = Absence::of_tail(&write, Some(&path));
            assert!(tokio::time::timeout(Duration::from_millis(20), absence.end()).await.is_err());
            // All between two looks.
            reader(&path).read_exact(&mut [0; 4]).unwrap();
            let end = tokio::time::timeout(Duration::from_secs(10), absence.end()).await;
            assert!(end.expect("nothing is left to wait for").is_none());
            std::fs::remove_file(path).unwrap();
        });
    }
}
