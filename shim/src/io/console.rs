//! How the OCI runtime hands over the master of a terminal (contract 6.3).

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::sys::fdpass;

const SOCKET_NAME: &str = "console.sock";

/// A socket on which the OCI runtime delivers the master of a terminal. Its directory goes with it.
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    /// Empty once it was handed on.
    dir: PathBuf,
}

impl ConsoleSocket {
    /// Listens in the new directory `dir`, mode 0700, which must be short: a socket's path has at most 107 bytes.
    ///
    /// # Errors
    /// As `mkdir(2)` and `bind(2)`.
    pub fn new(dir: PathBuf) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let listen = || {
            let listener = UnixListener::bind(dir.join(SOCKET_NAME))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        match listen() {
            Ok(listener) => Ok(Self { listener, dir }),
            Err(e) => {
                let _ = fs::remove_dir_all(&dir);
                Err(e)
            }
        }
    }

    /// What the runtime is told.
    pub fn path(&self) -> PathBuf {
        self.dir.join(SOCKET_NAME)
    }

    /// The master, once the runtime has returned: it has connected and sent by then, or never will.
    ///
    /// # Errors
    /// `WouldBlock` if nothing was sent; else as `accept(2)` and [`fdpass::receive_one`].
    pub fn receive(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        fdpass::receive_one(&stream)
    }

    /// Hands on a copy of the socket with its directory, which this one no longer removes.
    ///
    /// # Errors
    /// As `dup(2)`; nothing has changed then.
    pub fn hand_on(&mut self) -> io::Result<(OwnedFd, PathBuf)> {
        let copy = self.listener.try_clone()?;
        Ok((copy.into(), std::mem::take(&mut self.dir)))
    }

    /// What [`ConsoleSocket::hand_on`] gave.
    pub fn take_over(fd: OwnedFd, dir: &Path) -> Self {
        Self { listener: fd.into(), dir: dir.to_owned() }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        if !self.dir.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
