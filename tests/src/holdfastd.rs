//! A holdfastd in directories of its own, and the command line to it: driven from outside, as people do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(30);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The supervisor, its directories, and a root file system made of a static busybox. Everything that was started is
/// killed, and every directory deleted, when it is dropped.
pub struct Holdfastd {
    root: PathBuf,
    daemon: Option<Child>,
}

/// What a command line gave.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Self { code, out: text(&output.stdout), err: text(&output.stderr) }
    }
}

impl Said {
    /// Standard output without its last line break, for a command that must have succeeded.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "it failed: {self:?}");
        self.out.trim_end().to_owned()
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the working tree").to_owned()
}

fn program(name: &str) -> PathBuf {
    let directory = std::env::var_os("HOLDFAST_BIN_DIR").map_or_else(|| repository().join("bin"), PathBuf::from);
    let path = directory.join(name);
    assert!(path.exists(), "{} is missing: run `make build` first", path.display());
    path
}

fn busybox() -> PathBuf {
    let named = std::env::var_os("HOLDFAST_TEST_BUSYBOX").map(PathBuf::from);
    let places = ["/usr/bin/busybox".into(), repository().join("target/peers/bin/busybox")];
    let found = named.into_iter().chain(places).find(|p| p.exists());
    found.expect("a static busybox: HOLDFAST_TEST_BUSYBOX, /usr/bin/busybox or target/peers (`make peers`)")
}

/// Waits until `look` gives something.
///
/// # Panics
/// When that takes too long, with `what`.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process runs; one that only waits to be reaped does not.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Sends SIGKILL and waits for the end of a process that may be anybody's child.
pub fn kill_hard(pid: u32) {
    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL); // gone already is as good
    until("a killed process ends", || (!is_alive(pid)).then_some(()));
}

impl Holdfastd {
    /// Starts one, in fresh directories.
    ///
    /// # Panics
    /// If it cannot be started; so for everything here: these are tests.
    pub fn start() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Short: paths of sockets go below it.
        let root = std::env::temp_dir().join(format!("hf-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let bin = root.join("rootfs/bin");
        fs::create_dir_all(&bin).expect("a root file system can be made");
        crate::process::copy_program(busybox().as_ref(), &bin.join("busybox"));
        for applet in ["sh", "sleep", "cat", "echo", "id", "ifconfig", "kill"] {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).expect("a link can be made");
        }
        let mut this = Self { root, daemon: None };
        this.restart();
        this
    }

    /// Starts the supervisor (again) and waits until it answers.
    pub fn restart(&mut self) {
        assert!(self.daemon.is_none(), "one at a time");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_of_supervisor());
        let mut command = self.command("holdfastd");
        if let Some(shim) = std::env::var_os("HOLDFAST_SHIM") {
            command.arg("--shim").arg(shim);
        }
        let child = command.stdin(Stdio::null()).stderr(log.expect("a log can be opened")).spawn();
        self.daemon = Some(child.expect("holdfastd can be started"));
        until("holdfastd answers", || (self.holdfast(&["info"]).code == 0).then_some(()));
    }

    /// Kills the supervisor with SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.daemon.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it can be waited for");
    }

    /// Ends the supervisor with SIGTERM; returns its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let mut child = self.daemon.take().expect("it runs");
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it can be signalled");
        child.wait().expect("it can be waited for").code()
    }

    /// What the supervisor logged.
    pub fn said_by_supervisor(&self) -> String {
        fs::read_to_string(self.log_of_supervisor()).unwrap_or_default()
    }

    fn log_of_supervisor(&self) -> PathBuf {
        self.root.join("holdfastd.log")
    }

    /// One of our programs, set up for these directories.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        command.env("HOLDFAST_RUN_DIR", self.run_dir()).env("HOLDFAST_STATE_DIR", self.state_dir());
        command
    }

    /// Runs the command line to its end.
    pub fn holdfast(&self, args: &[&str]) -> Said {
        let output = self.command("holdfast").args(args).stdin(Stdio::null()).output();
        output.expect("holdfast can be run").into()
    }

    /// Starts a detached container that runs a shell script; returns its id.
    pub fn run(&self, name: &str, script: &str) -> String {
        let rootfs = self.rootfs();
        self.holdfast(&["run", "-d", "--name", name, "--rootfs", &rootfs, "--", "/bin/sh", "-c", script]).ok()
    }

    /// What `inspect` says of a container.
    pub fn inspect(&self, container: &str) -> Value {
        let text = self.holdfast(&["inspect", container]).ok();
        let all: Value = serde_json::from_str(&text).expect("inspect prints JSON");
        all[0].clone()
    }

    /// A pid from `inspect`.
    pub fn pid(&self, container: &str, which: &str) -> u32 {
        let value = self.inspect(container)[which].as_u64().expect("a number");
        u32::try_from(value).expect("a pid")
    }

    /// How the last restore classified a container.
    pub fn class(&self, name: &str) -> String {
        let text = self.holdfast(&["--json", "doctor"]).out;
        let report: Value = serde_json::from_str(&text).expect("doctor prints JSON");
        let list = report["containers"].as_array().expect("a list").clone();
        let one = list.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{name} is not in {report}"));
        one["class"].as_str().expect("a word").to_owned()
    }

    /// The root file system that containers get.
    pub fn rootfs(&self) -> String {
        self.root.join("rootfs").display().to_string()
    }

    /// See `HOLDFAST_RUN_DIR`.
    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    /// See `HOLDFAST_STATE_DIR`.
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Everything that containers leave in files: bundles, records, configurations, sockets, clients' FIFOs.
    pub fn left_over(&self) -> Vec<String> {
        let run = self.run_dir();
        let places = [
            run.join("bundles/default"),
            run.join("tasks/holdfastd/default"),
            run.join("s"),
            run.join("io"),
            self.state_dir().join("containers/default"),
        ];
        let entries = places.iter().filter_map(|p| fs::read_dir(p).ok()).flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.path().display().to_string()).collect();
        // A lock beside the sockets is made once and stays.
        names.retain(|n| !n.ends_with("lock"));
        names
    }

    fn kill_all(&mut self) {
        if self.daemon.is_none() && self.run_dir().exists() {
            self.restart();
        }
        let list = self.holdfast(&["ps", "-aq"]).out;
        let ids: Vec<&str> = list.lines().collect();
        if !ids.is_empty() {
            self.holdfast(&[&["rm", "-f"], ids.as_slice()].concat());
        }
        self.kill();
    }
}

impl Drop for Holdfastd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- holdfastd said:\n{}", self.said_by_supervisor());
        }
        self.kill_all();
        let _ = fs::remove_dir_all(&self.root); // what cannot be deleted is in a temporary directory
    }
}
