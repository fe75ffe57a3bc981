//! The client's side of a container's stdio: FIFOs, and readers that can come and go.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::Scene;
use crate::eventually::patience;
use crate::numbered::Random;

/// The three addresses of Create and Exec, and whether there is a terminal. Empty: not wanted.
#[derive(Clone, Debug, Default)]
pub struct Stdio {
    /// Where input comes from.
    pub stdin: String,
    /// Where output goes.
    pub stdout: String,
    /// Where errors go; unused with a terminal.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
}

impl Stdio {
    /// All three `/dev/null`.
    pub fn none() -> Self {
        Self::default()
    }

    /// FIFOs for all three in the scene's directory, named after `name`.
    pub fn fifos(scene: &Scene, name: &str) -> Self {
        let make = |stream| path_text(&make_fifo(scene, &format!("{name}.{stream}")));
        Self { stdin: make("stdin"), stdout: make("stdout"), stderr: make("stderr"), terminal: false }
    }

    /// FIFOs for output only.
    pub fn output(scene: &Scene, name: &str) -> Self {
        let make = |stream| path_text(&make_fifo(scene, &format!("{name}.{stream}")));
        Self { stdin: String::new(), stdout: make("stdout"), stderr: make("stderr"), terminal: false }
    }

    /// A terminal, with FIFOs for input and output.
    pub fn terminal(scene: &Scene, name: &str) -> Self {
        let make = |stream| path_text(&make_fifo(scene, &format!("{name}.{stream}")));
        Self { stdin: make("stdin"), stdout: make("stdout"), stderr: String::new(), terminal: true }
    }

    /// Opens the outputs that were asked for, as a client does around Create: stdout, then stderr.
    ///
    /// # Panics
    /// If there is no stdout.
    #[track_caller]
    pub fn readers(&self) -> (Reader, Option<Reader>) {
        (Reader::open(&self.stdout), Some(&self.stderr).filter(|p| !p.is_empty()).map(Reader::open))
    }

    /// Opens stdin for writing. The shim holds the reading end, so call it after Create.
    pub fn input(&self) -> Writer {
        Writer::open(Path::new(&self.stdin))
    }
}

fn path_text(path: &Path) -> String {
    path.to_str().expect("a path of ours").to_owned()
}

/// Makes a FIFO as containerd's clients do.
pub fn make_fifo(scene: &Scene, name: &str) -> PathBuf {
    let path = scene.path(name);
    mkfifo(&path, Mode::S_IRWXU).unwrap_or_else(|e| panic!("cannot make the FIFO {}: {e}", path.display()));
    path
}

/// The writing end of a FIFO.
#[derive(Debug)]
pub struct Writer(File);

impl Writer {
    /// Opens it, waiting until somebody reads.
    ///
    /// # Panics
    /// If nobody does in time.
    #[track_caller]
    pub fn open(path: &Path) -> Self {
        Self(crate::eventually(&format!("{} should have a reader", path.display()), || {
            // Non-blocking: a blocking open could not be given up.
            OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)
        }))
    }

    /// Writes all of `bytes`, which must be less than a FIFO holds.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("a FIFO with a reader takes a few bytes");
    }

    /// Writes all of `bytes`, waiting for room as often as need be.
    #[track_caller]
    pub fn write_all(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = crate::eventually("the FIFO should have room", || match self.0.write(bytes) {
                Ok(n) => Ok(&bytes[n..]),
                Err(e) => Err(e),
            });
        }
    }
}

/// What a reader has seen so far.
#[derive(Debug, Default)]
struct Seen {
    bytes: Vec<u8>,
    ended: bool,
}

/// Reads a FIFO in the background until its end, or until it is dropped: then it is a reader that went away.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    shared: Arc<(Mutex<Seen>, Condvar)>,
    /// Closed to tell the thread to leave.
    stop: Option<std::io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Opens it at once, whether anybody writes or not. The end is the closing of the last writer there was.
    ///
    /// # Panics
    /// If it cannot be opened.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_owned();
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let file = file.unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
        let shared = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let (stopped, stop) = std::io::pipe().expect("a pipe");
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || read_until_end(file, &stopped, &shared)
        });
        Self { path, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// What has come so far.
    pub fn so_far(&self) -> Vec<u8> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).bytes.clone()
    }

    /// Whether the end was seen.
    pub fn has_ended(&self) -> bool {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).ended
    }

    /// Goes away, and returns all that it has taken.
    pub fn leave(mut self) -> Vec<u8> {
        self.stop();
        self.so_far()
    }

    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Waits until what has come contains `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        self.wait(&format!("the text {text:?}"), |seen| {
            seen.bytes.windows(text.len().max(1)).any(|w| w == text.as_bytes())
        });
    }

    /// Waits until at least `count` bytes have come.
    #[track_caller]
    pub fn wait_for_bytes(&self, count: usize) {
        self.wait(&format!("{count} bytes"), |seen| seen.bytes.len() >= count);
    }

    /// Waits for the end and returns everything.
    #[track_caller]
    pub fn to_end(&self) -> Vec<u8> {
        self.wait("the end", |seen| seen.ended);
        self.so_far()
    }

    /// As [`Reader::to_end`], as text.
    #[track_caller]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.to_end()).into_owned()
    }

    #[track_caller]
    fn wait(&self, what: &str, condition: impl Fn(&Seen) -> bool) {
        let end = Instant::now() + patience();
        let mut seen = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !condition(&seen) {
            let left = end.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                let tail = &seen.bytes[seen.bytes.len().saturating_sub(200)..];
                let tail = String::from_utf8_lossy(tail).into_owned();
                let count = seen.bytes.len();
                let ended = seen.ended;
                drop(seen);
                panic!(
                    "{}: no {what} within {:?}; {count} bytes, ended: {ended}, tail {tail:?}",
                    self.path.display(),
                    patience()
                );
            }
            seen = self.shared.1.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reads about `count` bytes of a FIFO as one who comes, takes some or nothing and leaves, all at random, also in the middle
/// of a line; `between` is done before each coming. What it has taken.
///
/// # Panics
/// If there is not as much in time.
#[track_caller]
pub fn wander(path: impl AsRef<Path>, count: usize, random: &mut Random, mut between: impl FnMut()) -> Vec<u8> {
    let path = path.as_ref();
    let end = Instant::now() + patience();
    let mut got = Vec::new();
    while got.len() < count {
        assert!(Instant::now() < end, "{}: only {} bytes within {:?}", path.display(), got.len(), patience());
        between();
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let mut file = file.unwrap_or_else(|e| panic!("cannot open {}: {e}", path.display()));
        let mut part = vec![0; 1 + random.below(50_000)];
        let mut filled = 0;
        for _ in 0..random.below(300) {
            filled += file.read(&mut part[filled..]).unwrap_or(0);
            thread::yield_now();
        }
        got.extend_from_slice(&part[..filled]);
    }
    got
}

fn read_until_end(mut file: File, stopped: &std::io::PipeReader, shared: &(Mutex<Seen>, Condvar)) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::empty())];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue;
        }
        if fds[1].revents().is_some_and(|r| !r.is_empty()) {
            return;
        }
        let got = match file.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => continue,
            Err(_) => 0,
        };
        let mut seen = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.bytes.extend_from_slice(&buffer[..got]);
        seen.ended = got == 0;
        shared.1.notify_all();
        if got == 0 {
            return;
        }
    }
}
