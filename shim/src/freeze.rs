//! The whole shim as bytes and named fds, and back.
//!
//! Everything that a shim knows is in one structure that can be written down; every fd that it holds is named there. So a
//! new image of the program can take over: same pid, same children, same connections (design, section 6). What is written
//! is JSON, so that a newer or older version can read what it knows and default what it does not.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};

/// The format that this build writes and reads. It grows when the meaning of a field changes.
pub const FORMAT: u32 = 1;

/// A shim that stands still.
#[derive(Debug)]
pub struct Frozen {
    /// The state.
    pub bytes: Vec<u8>,
    /// What the names in the state mean.
    pub fds: FdBag,
}

/// File descriptors by name. A name is given once.
#[derive(Debug, Default)]
pub struct FdBag(BTreeMap<String, OwnedFd>);

impl FdBag {
    /// Puts a copy of `fd` into the bag; gives the name back, for the state.
    ///
    /// # Errors
    /// As `dup(2)`, and as [`FdBag::put_owned`].
    pub fn put(&mut self, name: String, fd: impl AsFd) -> io::Result<String> {
        let copy = fd.as_fd().try_clone_to_owned()?;
        self.put_owned(name, copy)
    }

    /// Puts `fd` itself into the bag.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken: better not to freeze than to lose an fd or mix two up.
    pub fn put_owned(&mut self, name: String, fd: OwnedFd) -> io::Result<String> {
        if self.0.contains_key(&name) {
            return Err(io::Error::new(ErrorKind::AlreadyExists, format!("two fds have the name {name:?}")));
        }
        self.0.insert(name.clone(), fd);
        Ok(name)
    }

    /// Takes an fd out.
    ///
    /// # Errors
    /// `NotFound`, naming it.
    pub fn take(&mut self, name: &str) -> io::Result<OwnedFd> {
        self.0.remove(name).ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("no fd is named {name:?}")))
    }

    /// The names and fds, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &OwnedFd)> {
        self.0.iter().map(|(name, fd)| (name.as_str(), fd))
    }
}

/// Why a shim could not be frozen, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// A write is under way on the other thread; nothing has changed, try again a little later.
    #[error("a write to {0} is under way")]
    Busy(String),
    /// An fd could not be copied or taken over.
    #[error("cannot carry the file descriptors of {0} over")]
    Fd(String, #[source] io::Error),
    /// The bytes are no state of a shim.
    #[error("not the state of a shim")]
    Malformed(#[source] serde_json::Error),
    /// The bytes were written by another version, in a format that this one does not read.
    #[error("the state has format {0}, this build reads format {FORMAT}")]
    Format(u32),
}
