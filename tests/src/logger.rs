//! A `binary://` logger (contract 6.5) that does as it is told, and what it has seen.
//!
//! The program is `src/bin/logger.rs`. Its settings are its arguments, and so the query of its address; what it was
//! started with and what it has read lies in a directory of the scene.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Scene, Stdio, process, programs};

/// How it says that it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ready {
    /// By a byte.
    Byte,
    /// By closing its pipe.
    Close,
    /// It does not.
    Never,
    /// It ends with this status before.
    Die(i32),
}

/// When it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// At the end of its input.
    AtEof,
    /// At SIGTERM.
    AtTerm,
    /// Only by SIGKILL.
    Never,
}

/// One logger of a test.
#[derive(Debug)]
pub struct Logger {
    dir: PathBuf,
    program: PathBuf,
    settings: Vec<(String, String)>,
}

impl Logger {
    /// A well-behaved one, whose files lie in a directory of this name.
    pub fn new(scene: &Scene, name: &str) -> Self {
        let dir = scene.make_dir(name);
        let settings = vec![("dir".to_owned(), dir.to_str().expect("ours").to_owned())];
        Self { dir, program: programs::test_program("logger"), settings }
    }

    /// A copy of the program, that it can be taken away.
    pub fn program(mut self, copy: &Path) -> Self {
        process::copy_program(&self.program, copy);
        copy.clone_into(&mut self.program);
        self
    }

    /// It says so that it is ready.
    pub fn ready(self, ready: Ready) -> Self {
        self.with("ready", &serde_json::to_string(&ready).expect("JSON encodes"))
    }

    /// It ends then.
    pub fn end(self, end: End) -> Self {
        self.with("end", &serde_json::to_string(&end).expect("JSON encodes"))
    }

    /// A further setting: `flush-ms` between SIGTERM and its end, `slow-ms` before each read, `die-after` so many bytes of
    /// stdout, the first time, `gate` for a file that must exist before it is ready.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its address.
    pub fn address(&self, scheme: &str) -> String {
        let escape = |text: &str| -> String {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-_.".contains(&b);
            text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
        };
        let query: Vec<_> = self.settings.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        format!("{scheme}://{}?{}", self.program.display(), query.join("&"))
    }

    /// Both outputs to it, as `ctr run --log-uri` asks for it.
    pub fn stdio(&self, scheme: &str) -> Stdio {
        let address = self.address(scheme);
        Stdio { stdout: address.clone(), stderr: address, ..Stdio::none() }
    }

    /// What it has written into one of its files: `stdout` and `stderr` (what it has read), `pids`, `ends` (what has
    /// happened to it), `env`, `args`, `fds`. Empty if there is none.
    pub fn file(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.join(name)).unwrap_or_default()
    }

    /// As [`Logger::file`].
    pub fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&self.file(name)).into_owned()
    }

    /// The pids of its instances, the first one first.
    pub fn pids(&self) -> Vec<u32> {
        self.text("pids").lines().map(|line| line.parse().expect("a pid")).collect()
    }
}
