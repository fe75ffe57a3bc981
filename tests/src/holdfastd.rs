//! A holdfastd in directories of its own, and the command line to it: driven from outside, as people do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

// `tests/under_systemd.rs` takes them from here.
use crate::eventually::eventually;
pub use crate::eventually::until;
use crate::outside::Outside;
pub use crate::process::is_alive;
use crate::{gate, process, programs};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The supervisor, its directories, and a root file system made of a static busybox. Everything that was started is
/// killed, and every directory deleted, when it is dropped.
pub struct Holdfastd {
    root: PathBuf,
    daemon: Option<Child>,
    /// Given back when all else is done.
    _outside: Outside,
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

/// A script that runs until it is told to end, and then ends with 143. It says "up" once it does so: before that the kernel
/// keeps the signal from the first process of a container, which has not asked for it.
pub const POLITE: &str = "trap 'exit 143' TERM; echo up; while :; do sleep 0.1 & wait $!; done";

/// Makes a root file system of a static busybox and a few of its names.
///
/// # Panics
/// If it cannot be made, or is there.
pub fn make_rootfs(at: &Path) {
    let bin = at.join("bin");
    fs::create_dir_all(&bin).expect("a root file system can be made");
    let busybox = programs::busybox().expect("a static busybox: HOLDFAST_TEST_BUSYBOX, or `make peers`");
    process::copy_program(&busybox, &bin.join("busybox"));
    for applet in ["sh", "sleep", "cat", "echo", "id", "ifconfig", "kill"] {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).expect("a link can be made");
    }
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
        make_rootfs(&root.join("rootfs"));
        let mut this = Self { root, daemon: None, _outside: Outside::hold() };
        this.configure("live-restore = true\n");
        this.restart();
        this
    }

    /// Replaces its settings file. Unless a test says otherwise, live-restore is on and all else as it is by default.
    pub fn configure(&self, settings: &str) {
        fs::write(self.settings_file(), settings).expect("the settings can be written");
    }

    /// Its settings file.
    pub fn settings_file(&self) -> PathBuf {
        self.root.join("holdfastd.toml")
    }

    /// Starts the supervisor (again) and waits until it answers.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// As [`Holdfastd::restart`], with more in its environment.
    pub fn restart_with(&mut self, environment: &[(&str, &str)]) {
        self.launch_with(environment, &[]);
        self.restored();
    }

    /// Starts it with these flags and does not wait for anything.
    pub fn launch_with(&mut self, environment: &[(&str, &str)], flags: &[&str]) {
        let mut command = self.daemon_command();
        command.envs(environment.iter().copied()).args(flags);
        self.launch(command);
    }

    /// How the supervisor is started here.
    pub fn daemon_command(&self) -> Command {
        let mut command = self.command("holdfastd");
        command.arg("--config").arg(self.settings_file());
        if let Some(shim) = std::env::var_os("HOLDFAST_SHIM") {
            command.arg("--shim").arg(shim);
        }
        command
    }

    /// Starts the supervisor by a command that becomes it, and waits for nothing; returns its pid.
    pub fn launch(&mut self, mut command: Command) -> u32 {
        assert!(self.daemon.is_none(), "one at a time");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_of_supervisor());
        let child = command.stdin(Stdio::null()).stderr(log.expect("a log can be opened")).spawn();
        self.daemon.insert(child.expect("holdfastd can be started")).id()
    }

    /// Its pid.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("it runs").id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.daemon_pid().cast_signed()), signal).expect("it can be signalled");
    }

    /// Waits until it has ended by itself; returns its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let mut child = self.daemon.take().expect("it runs");
        let status = until("holdfastd ends", || child.try_wait().expect("it can be waited for"));
        status.code()
    }

    /// Waits until the supervisor answers.
    pub fn answers(&self) {
        until("holdfastd answers", || (self.holdfast(&["info"]).code == 0).then_some(()));
    }

    /// Waits until the supervisor has classified every container; returns its report, as JSON.
    pub fn restored(&self) -> Value {
        until("the restore is done", || {
            let mut info: Value = serde_json::from_str(&self.holdfast(&["--json", "info"]).out).ok()?;
            let report = info["restore"].take();
            (!report["at"].as_str()?.is_empty()).then_some(report)
        })
    }

    /// Kills the supervisor with SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.daemon.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it can be waited for");
    }

    /// Ends the supervisor with SIGTERM; returns its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.ended()
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
        let mut command = Command::new(programs::ours(name));
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
        self.run_with(name, &[], script)
    }

    /// As [`Holdfastd::run`], with more options.
    pub fn run_with(&self, name: &str, options: &[&str], script: &str) -> String {
        let rootfs = self.rootfs();
        let fixed = ["run", "-d", "--name", name, "--rootfs", &rootfs];
        self.holdfast(&[&fixed, options, &["--", "/bin/sh", "-c", script]].concat()).ok()
    }

    /// Runs [`POLITE`] in the background, and waits until it obeys; returns the container's id.
    pub fn run_polite(&self, name: &str) -> String {
        let id = self.run(name, POLITE);
        until("it is up", || self.holdfast(&["logs", name]).out.contains("up").then_some(()));
        id
    }

    /// Lets every container go on that waits at this gate, see [`gate`].
    pub fn open_gate(&self, gate: &str) {
        gate::open(self.rootfs(), gate);
    }

    /// The status that `inspect` gives.
    pub fn status(&self, container: &str) -> String {
        self.inspect(container)["status"].as_str().expect("a word").to_owned()
    }

    /// Waits for a status.
    #[track_caller]
    pub fn until_status(&self, container: &str, wanted: &str) {
        eventually(&format!("{container} should be {wanted}"), || match self.status(container) {
            status if status == wanted => Ok(()),
            other => Err(other),
        });
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
        self.restoration(name)["class"].as_str().expect("a word").to_owned()
    }

    /// What the report of the last restore says of a container, named by name or id.
    pub fn restoration(&self, container: &str) -> Value {
        let report = self.restored();
        let list = report["containers"].as_array().expect("a list");
        let one = list.iter().find(|c| c["name"] == container || c["id"] == container);
        one.unwrap_or_else(|| panic!("{container} is not in {report}")).clone()
    }

    /// What `doctor` says needs attention of the supervisor, the shims and their files. What it says of the machine is left
    /// out: tests run on any.
    pub fn attention(&self) -> Vec<String> {
        let said = self.holdfast(&["--json", "doctor"]);
        let report: Value = serde_json::from_str(&said.out).expect("the findings are JSON");
        let findings = report["findings"].as_array().expect("a list");
        let text = |finding: &Value, key: &str| finding[key].as_str().expect("a text").to_owned();
        let ours = ["holdfastd", "restore", "shims", "shim-version", "stale-files"];
        let wanting = findings.iter().filter(|f| f["level"] != "ok" && ours.contains(&text(f, "check").as_str()));
        let wanting: Vec<String> = wanting.map(|f| format!("{}: {}", text(f, "check"), text(f, "message"))).collect();
        assert!(wanting.is_empty() || said.code == 1, "{said:?}");
        wanting
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

    /// Removes the control groups of a container that is gone: without its OCI runtime nobody else does.
    pub fn remove_groups(&self, id: &str) {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let _ = fs::remove_dir(hierarchy.join("holdfast").join(id)); // there is none in most
        }
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
