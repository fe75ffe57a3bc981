//! Bytes between us and a process: FIFOs in a private directory, threads that copy. The shim is at the other end of the
//! FIFOs, so that nothing here depends on the supervisor's being alive.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::sync::oneshot;

use super::CliError;

/// ctrl-p ctrl-q, as typed in a raw terminal.
const DETACH: [u8; 2] = [0x10, 0x11];

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
    /// Copies to `target` until the writer has closed. To be called once the writer has opened. The receiver fires at the
    /// end.
    pub(super) fn copy_to(self, mut target: impl Write + Send + 'static) -> oneshot::Receiver<()> {
        let (done, ended) = oneshot::channel();
        std::thread::spawn(move || {
            let mut source = self.0;
            if make_blocking(&source).is_ok() {
                copy_out(&mut source, &mut target);
            }
            let _ = done.send(()); // nobody may wait any more
        });
        ended
    }
}

fn copy_out(source: &mut File, target: &mut impl Write) {
    let mut buffer = vec![0u8; 64 << 10];
    let mut open = true;
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return,
            // When our reader has left, the process still must not be stopped by it: go on reading.
            Ok(n) if open => open = target.write_all(&buffer[..n]).and_then(|()| target.flush()).is_ok(),
            Ok(_) => {}
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
    /// The detach keys were typed.
    Detached,
}

/// Copies our standard input into the FIFO at `path`. With `keys`, ctrl-p ctrl-q ends it.
pub(super) fn copy_stdin(path: &str, keys: bool) -> Result<oneshot::Receiver<InputEnd>, CliError> {
    // The shim holds the reading end, so that this does not block.
    let mut target = fs::OpenOptions::new().write(true).open(path).map_err(CliError::io(format!("open {path}")))?;
    let (done, ended) = oneshot::channel();
    std::thread::spawn(move || {
        let end = copy_in(&mut io::stdin().lock(), &mut target, keys);
        let _ = done.send(end); // nobody may wait any more
    });
    Ok(ended)
}

fn copy_in(source: &mut impl Read, target: &mut impl Write, keys: bool) -> InputEnd {
    let mut buffer = vec![0u8; 32 << 10];
    let mut watch = DetachKeys::default();
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return InputEnd::Eof,
            Ok(n) if keys => {
                let (bytes, detached) = watch.filter(&buffer[..n]);
                if target.write_all(&bytes).is_err() {
                    return InputEnd::Eof;
                }
                if detached {
                    return InputEnd::Detached;
                }
            }
            Ok(n) => {
                if target.write_all(&buffer[..n]).is_err() {
                    return InputEnd::Eof;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return InputEnd::Eof,
        }
    }
}

/// Looks for the detach keys. A first key that is not followed by the second is passed on late, with what follows.
#[derive(Default)]
struct DetachKeys {
    pending: bool,
}

impl DetachKeys {
    fn filter(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(bytes.len() + 1);
        for &byte in bytes {
            if self.pending {
                self.pending = false;
                if byte == DETACH[1] {
                    return (passed, true);
                }
                passed.push(DETACH[0]);
            }
            if byte == DETACH[0] {
                self.pending = true;
            } else {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detach_keys_are_found_across_reads_and_never_passed_on() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"\x11zz"), (vec![], true));
    }

    #[test]
    fn a_first_key_alone_is_passed_on_with_what_follows() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.filter(b"\x10"), (vec![], false));
        assert_eq!(keys.filter(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10\x11"), (b"\x10".to_vec(), true));
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
        copy_out(&mut file, &mut Gone);
        assert_eq!(file.read(&mut [0; 8]).expect("readable"), 0, "all of it was read");
    }
}
