//! Bytes between us and a process: FIFOs in a private directory, threads that copy. The shim is at the other end of the
//! FIFOs, so that nothing here depends on the supervisor's being alive.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::sync::oneshot;

use super::CliError;
use super::detach_keys::{DetachKeys, Watch};

/// FIFOs of our own; deleted when dropped.
pub(super) struct Fifos {
    directory: PathBuf,
}

impl Fifos {
    /// A private directory below the supervisor's `io`, which is beside its socket's run directory.
    pub(super) fn new(run_dir: &Path) -> Result<Self, CliError> {
        let name = crate::names::generate_id().map_err(CliError::io("make a name for FIFOs"))?;
        let directory = run_dir.join("io").join(crate::names::short(&name));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(CliError::io(format!("make {}", directory.display())))?;
        Ok(Self { directory })
    }

    /// Makes a FIFO; returns its path.
    pub(super) fn make(&self, name: &str) -> Result<String, CliError> {
        let path = self.directory.join(name);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|e| CliError::io(format!("make {}", path.display()))(e.into()))?;
        Ok(path.display().to_string())
    }

    /// Makes a FIFO and opens its reading end, so that the writer never finds it without a reader.
    pub(super) fn make_for_reading(&self, name: &str) -> Result<(String, Output), CliError> {
        let path = self.make(name)?;
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(&path)
            .map_err(CliError::io(format!("open {path}")))?;
        Ok((path, Output(file)))
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory); // what is left are empty FIFOs below /run, for root only
    }
}

/// The reading end of a process's output.
pub(super) struct Output(File);

impl Output {
    /// Copies to `target` until the writer has closed. To be called once the writer has opened.
    pub(super) fn copy_to(self, mut target: impl Write + Send + 'static) -> Copying {
        let (done, ended) = oneshot::channel();
        let progress = Arc::new(Progress::default());
        let told = Arc::clone(&progress);
        std::thread::spawn(move || {
            let mut source = self.0;
            if make_blocking(&source).is_ok() {
                copy_out(&mut source, &mut target, &told);
            }
            let _ = done.send(()); // nobody may wait any more
        });
        Copying { ended: Some(ended), progress, seen: 0 }
    }
}

/// A thread that copies output.
pub(super) struct Copying {
    ended: Option<oneshot::Receiver<()>>,
    progress: Arc<Progress>,
    seen: u64,
}

/// How far a thread that copies has got.
#[derive(Debug, Default)]
struct Progress {
    /// Reads that gave something.
    reads: AtomicU64,
    /// What it has read is not written yet: our reader takes its time.
    writing: AtomicBool,
}

impl Copying {
    /// Returns at the end. May be dropped, and called again.
    pub(super) async fn ended(&mut self) {
        if let Some(ended) = &mut self.ended {
            let _ = ended.await; // a thread that is gone has nothing more to copy
            self.ended = None;
        }
    }

    /// Whether there was something to copy since this was asked last, or still is.
    pub(super) fn moves(&mut self) -> bool {
        let reads = self.progress.reads.load(Ordering::Acquire);
        let moved = reads != std::mem::replace(&mut self.seen, reads);
        moved || self.progress.writing.load(Ordering::Acquire)
    }
}

fn copy_out(source: &mut File, target: &mut impl Write, progress: &Progress) {
    let mut buffer = vec![0u8; 64 << 10];
    let mut open = true;
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                progress.writing.store(true, Ordering::Release);
                progress.reads.fetch_add(1, Ordering::AcqRel);
                // When our reader has left, the process still must not be stopped by it: go on reading.
                open = open && target.write_all(&buffer[..n]).and_then(|()| target.flush()).is_ok();
                progress.writing.store(false, Ordering::Release);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn make_blocking(file: &File) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(file.as_fd(), FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).map(drop)
}

/// How the copying of our input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InputEnd {
    /// There is no more of it.
    Eof,
    /// The detach keys were typed, or the terminal is gone: the person is, the process goes on.
    Detached,
}

/// Copies our standard input into the FIFO at `path`, until its end or the given keys. `None`: the process has ended
/// already and takes no more.
pub(super) fn copy_stdin(
    path: &str,
    keys: Option<&DetachKeys>,
) -> Result<Option<oneshot::Receiver<InputEnd>>, CliError> {
    // The shim holds the reading end as long as there is somebody to read; without it this would wait for ever.
    let opened = fs::OpenOptions::new().write(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let mut target = match opened {
        Err(e) if e.raw_os_error() == Some(nix::libc::ENXIO) || e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(CliError::io(format!("open {path}")))?,
    };
    make_blocking(&target).map_err(|e| CliError::io(format!("set up {path}"))(e.into()))?;
    let (done, ended) = oneshot::channel();
    let mut keys = keys.map(Watch::new);
    std::thread::spawn(move || {
        let end = copy_in(&mut io::stdin().lock(), &mut target, keys.as_mut());
        let _ = done.send(end); // nobody may wait any more
    });
    Ok(Some(ended))
}

fn copy_in(source: &mut impl Read, target: &mut impl Write, mut keys: Option<&mut Watch>) -> InputEnd {
    let mut buffer = vec![0u8; 32 << 10];
    // A raw terminal, which is where keys are looked for, has no end of input but its own.
    let end = if keys.is_some() { InputEnd::Detached } else { InputEnd::Eof };
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return end,
            Ok(n) => {
                let (bytes, detached) = match &mut keys {
                    Some(keys) => keys.filter(&buffer[..n]),
                    None => (buffer[..n].to_vec(), false),
                };
                if target.write_all(&bytes).is_err() {
                    return InputEnd::Eof;
                }
                if detached {
                    return InputEnd::Detached;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return end,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_that_has_ended_already_is_not_waited_for() {
        let directory = std::env::temp_dir().join(format!("holdfast-stdin-{}", std::process::id()));
        fs::DirBuilder::new().create(&directory).unwrap();
        let path = directory.join("stdin");
        assert!(copy_stdin(path.to_str().unwrap(), None).unwrap().is_none(), "its FIFO is gone");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        assert!(copy_stdin(path.to_str().unwrap(), None).unwrap().is_none(), "nobody holds its other end");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn the_end_of_a_terminal_is_not_the_end_of_what_is_typed() {
        let (mut to_file, mut to_terminal) = (Vec::new(), Vec::new());
        assert_eq!(copy_in(&mut &b"abc"[..], &mut to_file, None), InputEnd::Eof);
        let mut keys = Watch::new(&DetachKeys::default());
        assert_eq!(copy_in(&mut &b"abc"[..], &mut to_terminal, Some(&mut keys)), InputEnd::Detached);
        assert_eq!((to_file, to_terminal), (b"abc".to_vec(), b"abc".to_vec()));
    }

    #[test]
    fn a_reader_that_left_does_not_stop_the_copying() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (reader, mut writer) = io::pipe().expect("a pipe");
        writer.write_all(&[7; 1000]).expect("room in the pipe");
        drop(writer);
        let mut file = File::from(std::os::fd::OwnedFd::from(reader));
        copy_out(&mut file, &mut Gone, &Progress::default());
        assert_eq!(file.read(&mut [0; 8]).expect("readable"), 0, "all of it was read");
    }
}
