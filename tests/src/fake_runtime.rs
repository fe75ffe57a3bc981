//! An OCI runtime with runc's command line and without isolation, scripted to fail, hang or race.
//!
//! The program is `src/bin/fake-runtime.rs`: its containers are plain processes of the machine, so ring 2 needs no root.
//! A test gets a link of its own to it, and beside the link lie the script that says how each command behaves, and the
//! list of the calls that were made.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use serde::{Deserialize, Serialize};

use crate::{Scene, eventually, programs};

/// How one command of the runtime behaves, other than well.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Behaviour {
    /// Writes this message to the log as runc does, among others, and fails; nothing was done.
    Fail(String),
    /// Writes nothing to the log, this to stderr, and fails; nothing was done.
    FailWithoutLog(String),
    /// Does its work and fails all the same, with this message.
    FailAfterwards(String),
    /// Starts a process in its own process group that has nothing to do with the container, and fails with this message.
    FailAndLeave(String),
    /// Is killed; nothing was done.
    Die,
    /// Does its work and is killed then.
    DieAfterwards,
    /// Never ends; nothing was done.
    Hang,
    /// Does its work and then never ends.
    HangAfterwards,
    /// Succeeds without doing anything.
    DoNothing,
    /// Does its work but for the pid file.
    NoPidFile,
    /// Does its work and ends only after the process that it started has ended and was reaped: not as its own child, but
    /// as the shim's.
    OutlastProcess,
    /// Begins only once this file exists.
    WaitFor(PathBuf),
}

/// What each command does; one that is not mentioned works.
pub type Script = BTreeMap<String, Behaviour>;

/// One call of the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The arguments, without the program.
    pub args: Vec<String>,
    /// Whether `NOTIFY_SOCKET` was in the environment; runc would wait on it.
    pub had_notify_socket: bool,
}

/// A test's own link to the program.
#[derive(Debug)]
pub struct FakeRuntime {
    program: PathBuf,
}

const SCRIPT: &str = "script.json";
const CALLS: &str = "calls";

impl FakeRuntime {
    /// A well-behaved one.
    ///
    /// # Panics
    /// If the link cannot be made.
    pub fn new(scene: &Scene) -> Self {
        let program = scene.make_dir("fake").join("runc");
        symlink(programs::test_program("fake-runtime"), &program).expect("a fresh directory");
        Self { program }
    }

    /// The path to give to a shim.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// From now on `command` behaves so.
    pub fn on(&self, command: &str, behaviour: Behaviour) {
        self.change(|script| {
            script.insert(command.into(), behaviour);
        });
    }

    /// From now on `command` works again.
    pub fn clear(&self, command: &str) {
        self.change(|script| {
            script.remove(command);
        });
    }

    /// From now on calls of `command` stand before a gate, until it is opened.
    pub fn hold(&self, command: &'static str) -> Gate<'_> {
        let path = self.program.with_file_name(format!("gate-{command}"));
        self.on(command, Behaviour::WaitFor(path.clone()));
        Gate { runtime: self, command, path, before: self.calls_of(command).len() }
    }

    fn change(&self, change: impl FnOnce(&mut Script)) {
        let path = self.program.with_file_name(SCRIPT);
        let mut script = read_script(&self.program);
        change(&mut script);
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(&script).expect("JSON encodes")).expect("the scene is writable");
        fs::rename(&new, &path).expect("the scene is writable");
    }

    /// The calls so far, in the order of their beginnings.
    pub fn calls(&self) -> Vec<Call> {
        let text = fs::read_to_string(self.program.with_file_name(CALLS)).unwrap_or_default();
        text.lines().map(|l| serde_json::from_str(l).expect("one call a line")).collect()
    }

    /// The calls of one command.
    pub fn calls_of(&self, command: &str) -> Vec<Call> {
        self.calls().into_iter().filter(|c| c.args.iter().any(|a| a == command)).collect()
    }
}

/// What holds the calls of one command, see [`FakeRuntime::hold`].
#[derive(Debug)]
pub struct Gate<'a> {
    runtime: &'a FakeRuntime,
    command: &'static str,
    path: PathBuf,
    before: usize,
}

impl Gate<'_> {
    /// Waits until a call stands before it.
    #[track_caller]
    pub fn reached(&self) {
        eventually("the runtime should be asked", || {
            let calls = self.runtime.calls_of(self.command).len();
            if calls > self.before { Ok(()) } else { Err(format!("{calls} calls of {}", self.command)) }
        });
    }

    /// Lets the calls go on, and those to come too.
    ///
    /// # Panics
    /// If the scene cannot be written.
    pub fn open(self) {
        self.runtime.clear(self.command);
        fs::write(self.path, "").expect("the scene is writable");
    }
}

/// The script beside `program`; for the program itself.
pub fn read_script(program: &Path) -> Script {
    fs::read(program.with_file_name(SCRIPT)).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default()
}

/// Adds a call to the list beside `program`; for the program itself.
///
/// # Errors
/// As write(2).
pub fn note_call(program: &Path, args: &[String]) -> io::Result<()> {
    let call = Call { args: args.to_owned(), had_notify_socket: env::var_os("NOTIFY_SOCKET").is_some() };
    let mut line = serde_json::to_vec(&call)?;
    line.push(b'\n');
    let mut file = fs::OpenOptions::new().create(true).append(true).open(program.with_file_name(CALLS))?;
    // One write, since calls may run at the same time.
    io::Write::write_all(&mut file, &line)
}
