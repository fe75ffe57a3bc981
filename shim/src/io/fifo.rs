//! FIFOs whose other end belongs to a client that may not be there yet, may leave and may come back.
//!
//! Output is held by the write end alone, so that an absent reader shows (as `EPIPE`, never as a signal) and what is in
//! the FIFO waits for the next reader. Input is held by a read end, and by a write end of our own until CloseIO, so that
//! a client that leaves is not the end of the input.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{Mode, SFlag, fstat};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::pipe;
use crate::sys::ready::{self, Watch};

/// How often an absent reader is looked for where the kernel grants no inotify instance (their number per user is
/// limited, and a machine may have more containers than that).
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
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

/// Whether somebody has the read end open, asked at the write end.
pub fn has_reader(write_end: impl AsFd) -> bool {
    let mut fds = [PollFd::new(write_end.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) => !fds[0].revents().is_some_and(|r| r.contains(PollFlags::POLLERR)),
        Err(_) => false,
    }
}

/// Returns once a reader is there. Safe to cancel.
///
/// epoll does not report that a reader opens, inotify does. The watch is set before the reader is looked for, so that
/// one who comes in between is seen. Where no watch can be had, looking now and then is all that is left.
pub async fn reader_returns(write_end: &OwnedFd) {
    let watch = watch(write_end, AddWatchFlags::IN_OPEN).ok();
    while !has_reader(write_end) {
        match &watch {
            Some(watch) => event(watch).await,
            None => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }
}

/// Returns once the FIFO holds nothing more, or its reader has come or gone since `had_reader` was asked. Safe to cancel.
///
/// epoll does not report that a reader empties a partly filled FIFO. inotify does, but not on every kernel if the reader
/// moves pages, so a reader that is there is looked at now and then as well. One that is not costs no wake-up.
pub async fn tail_changes(write_end: &OwnedFd, had_reader: bool) {
    let events = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_CLOSE_NOWRITE;
    let watch = watch(write_end, events).ok();
    let mut interval = TAIL_INTERVALS.0;
    while has_reader(write_end) == had_reader && pipe::unread(write_end).is_ok_and(|n| n > 0) {
        match &watch {
            Some(watch) if !had_reader => event(watch).await,
            // Either way the loop looks again.
            Some(watch) => drop(tokio::time::timeout(interval, event(watch)).await),
            None => tokio::time::sleep(interval).await,
        }
        interval = (interval * 2).min(TAIL_INTERVALS.1);
    }
}

/// By the fd rather than by the path, where another FIFO or none may be by now.
fn watch(fd: &OwnedFd, events: AddWatchFlags) -> io::Result<AsyncFd<Watch>> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    inotify.add_watch(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str(), events)?;
    ready::register(Watch(inotify), Interest::READABLE)
}

/// Waits for an event. What happened is of no interest, only that something did.
async fn event(watch: &AsyncFd<Watch>) {
    let Ok(mut ready) = watch.readable().await else { return std::future::pending().await };
    while watch.get_ref().0.read_events().is_ok() {}
    ready.clear_ready();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;

    use nix::unistd::mkfifo;

    use super::*;

    fn fifo(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("holdfast-{}-{name}", std::process::id()));
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

    #[test]
    fn a_reader_that_opens_is_noticed() {
        let path = fifo("noticed");
        let write = open_write_end(&path).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let waiting = reader_returns(&write);
            let opening = async {
                tokio::task::yield_now().await;
                reader(&path)
            };
            // The reader must still be there when it is looked for.
            let ((), held) = tokio::join!(waiting, opening);
            drop(held);
        });
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_tail_that_a_new_reader_empties_is_noticed() {
        let path = fifo("tail");
        let write = open_write_end(&path).unwrap();
        let first = reader(&path);
        nix::unistd::write(&write, b"tail").unwrap();
        drop(first);
        // The next reader finds it by another name: not the path is watched.
        let moved = fifo("tail-moved");
        std::fs::rename(&path, &moved).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let opening = async {
                tokio::task::yield_now().await;
                reader(&moved)
            };
            let ((), mut held) = tokio::join!(tail_changes(&write, false), opening);
            let reading = async {
                tokio::task::yield_now().await;
                let mut text = [0; 8];
                held.read(&mut text).unwrap()
            };
            let ((), n) = tokio::join!(tail_changes(&write, true), reading);
            assert_eq!(n, 4);
        });
        std::fs::remove_file(moved).unwrap();
    }
}
