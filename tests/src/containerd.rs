//! A private containerd in a scene, of any version of the matrix, and its own ctr to talk to it. Root only.
//!
//! What differs between the versions' ctr stays in here, where it does not matter to a test.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::Signal;

use crate::process::{ChildProcess, run};
use crate::programs::Version;
use crate::{Scene, bundle, eventually, process, programs};

/// The runtime name under which containerd finds ours.
pub const RUNTIME: &str = "io.containerd.holdfast.v2";

/// The namespace of all containers.
pub const NAMESPACE: &str = "tests";

/// containerd's own shim.
pub const STOCK_RUNTIME: &str = "io.containerd.runc.v2";

/// The plugin for kubelets, in parts since 2.0, and what it wants: [`crate::cri`] has a use for all of it.
const CRI: &[&str] = &[
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.image-verifier.v1.bindir",
];

/// Of these, what has kubelets served; the others have sandboxes, too, for clients of their own: [`crate::controller`].
const KUBELETS: &[&str] = &["io.containerd.grpc.v1.cri"];

/// What no test uses and a private daemon had better not start: each takes time, or a path outside the scene, or both.
const UNUSED: &[&str] = &[
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
];

/// A containerd with root, state and sockets in the scene.
#[derive(Debug)]
pub struct Containerd<'a> {
    scene: &'a Scene,
    version: Version,
    /// While it runs. What borrows the daemon, in whichever thread, lives on while it is killed and started again.
    daemon: Mutex<Option<ChildProcess>>,
    rootfs: PathBuf,
    /// What it has in its environment besides the scene's variables, from its next start on.
    environment: Mutex<Vec<(String, String)>>,
}

impl<'a> Containerd<'a> {
    /// Starts it, with a root file system of busybox at hand.
    ///
    /// # Panics
    /// If there is no such containerd, or it does not come up.
    #[track_caller]
    pub fn start(scene: &'a Scene, version: Version) -> Self {
        let containerd = Self::prepare(scene, version);
        containerd.resume();
        containerd
    }

    /// As [`Containerd::start`], but does not start it.
    #[track_caller]
    pub fn prepare(scene: &'a Scene, version: Version) -> Self {
        let rootfs = scene.make_dir("rootfs");
        bundle::fill_with_busybox(&rootfs);
        let containerd = Self { scene, version, daemon: Mutex::default(), rootfs, environment: Mutex::default() };
        containerd.configure(&[CRI, UNUSED].concat(), "");
        containerd
    }

    fn configure(&self, disabled: &[&str], sections: &str) {
        let config = format!(
            "version = {format}\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = {disabled:?}\n\
             [grpc]\naddress = {socket:?}\n{sections}",
            format = if self.version < Version::V2_1 { 2 } else { 3 },
            root = self.scene.path("containerd/root"),
            state = self.state(),
            socket = self.socket(),
        );
        fs::write(self.scene.path("containerd.toml"), config).expect("the scene is writable");
    }

    /// Kills it, if it runs, and starts it with its plugin for kubelets, whose settings `sections` has.
    #[track_caller]
    pub fn restart_with_cri(&self, sections: &str) {
        self.kill();
        self.configure(UNUSED, sections);
        self.resume();
    }

    /// Kills it, if it runs, and starts it with all that its controllers of sandboxes want, of which some wants parts of the plugin for
    /// kubelets since 2.0.
    #[track_caller]
    pub fn restart_with_sandboxes(&self) {
        self.kill();
        self.configure(&[KUBELETS, UNUSED].concat(), "");
        self.resume();
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.scene.path("c.sock")
    }

    /// The directory of what does not outlive the machine: bundles, and what the plugin for kubelets mounts.
    pub fn state(&self) -> PathBuf {
        self.scene.path("containerd/state")
    }

    /// The bundle of a container.
    pub fn bundle(&self, namespace: &str, id: &str) -> PathBuf {
        self.state().join("io.containerd.runtime.v2.task").join(namespace).join(id)
    }

    /// Starts the daemon again, after [`Containerd::kill`], and waits until it listens.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn resume(&self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log file");
        let mut command = self.command("containerd");
        command.arg("--config").arg(self.scene.path("containerd.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.envs(lock(&self.environment).iter().cloned());
        *lock(&self.daemon) = Some(ChildProcess::spawn(&mut command));
        // It listens once all its plugins are there. What a predecessor has left refuses.
        eventually("containerd should listen", || {
            let running = lock(&self.daemon).as_ref().is_some_and(ChildProcess::is_alive);
            assert!(running, "containerd has ended:\n{}", self.log_tail());
            UnixStream::connect(self.socket())
        });
    }

    /// Kills it and starts it with one more variable in its environment, which its shims inherit.
    #[track_caller]
    pub fn restart_with(&self, name: &str, value: &str) {
        lock(&self.environment).push((name.to_owned(), value.to_owned()));
        self.kill();
        self.resume();
    }

    /// A program that came with this containerd; it finds the others of the same origin before any.
    #[track_caller]
    fn command(&self, name: &str) -> Command {
        let path = programs::peer_of(self.version, name);
        let mut command = self.scene.command(path.expect("tests/peers.sh provides every version"));
        command.env("PATH", self.path());
        command
    }

    /// Where it looks for programs, unless told otherwise.
    pub fn path(&self) -> String {
        let dir = programs::containerd_dir(self.version);
        let rest = self.scene.environment().into_iter().find(|(key, _)| *key == "PATH").expect("a scene has one").1;
        format!("{}:{rest}", dir.display())
    }

    /// Begins to listen to its events, as `ctr events` shows them.
    #[track_caller]
    pub fn listen(&self) -> Events {
        let path = self.scene.path("events");
        let out = fs::File::create(&path).expect("the scene is writable");
        let mut command = self.ctr();
        command.arg("events").stdin(Stdio::null()).stdout(out).stderr(Stdio::null());
        let events = Events { path, _ctr: ChildProcess::spawn(&mut command) };
        // The subscription has begun when an event of ours shows.
        let mut n = 0;
        eventually("ctr events should listen", || {
            n += 1;
            self.run(&["namespace", "create", &format!("probe{n}")]);
            let text = events.text();
            if text.contains("/namespaces/create") { Ok(()) } else { Err(text) }
        });
        events
    }

    /// Ends the daemon with SIGKILL.
    pub fn kill(&self) {
        if let Some(mut daemon) = lock(&self.daemon).take() {
            daemon.kill();
        }
    }

    /// Ends the daemon as an administrator would.
    pub fn stop(&self) {
        if let Some(mut daemon) = lock(&self.daemon).take() {
            daemon.signal(Signal::SIGTERM);
            daemon.wait();
        }
    }

    /// Whether it was neither stopped nor killed.
    pub fn is_running(&self) -> bool {
        lock(&self.daemon).is_some()
    }

    /// Which one it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its scene.
    pub fn scene(&self) -> &Scene {
        self.scene
    }

    /// The daemon's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.scene.path("containerd.log")
    }

    /// The root file system of busybox.
    pub fn rootfs(&self) -> &Path {
        &self.rootfs
    }

    /// ctr, with the address and a namespace given.
    pub fn ctr(&self) -> Command {
        self.ctr_in(NAMESPACE)
    }

    /// ctr for another namespace than that of the tests.
    pub fn ctr_in(&self, namespace: &str) -> Command {
        let mut command = self.command("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", namespace]);
        command
    }

    /// Runs ctr to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Output {
        run(self.ctr().args(args))
    }

    /// Runs ctr, which must succeed, and returns what it printed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ctr {args:?}: {stderr}\n{}", self.log_tail());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command of ctr that wants a terminal itself; script(1) gives it one.
    ///
    /// # Panics
    /// If one of its words is not UTF-8 or contains a single quote.
    #[track_caller]
    pub fn at_a_terminal(&self, inner: &Command) -> Output {
        let quoted = |word: &std::ffi::OsStr| {
            let word = word.to_str().filter(|w| !w.contains('\'')).expect("words of ours");
            format!("'{word}'")
        };
        let words: Vec<String> = std::iter::once(inner.get_program()).chain(inner.get_args()).map(quoted).collect();
        let mut outer = self.scene.command("/usr/bin/script");
        outer.args(["--quiet", "--return", "--log-out", "/dev/null", "--command", &words.join(" ")]);
        run(&mut outer)
    }

    /// The last lines of the daemon's log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// How a command ended, with the last lines of the daemon's log.
    pub fn complain(&self, output: &Output) -> String {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        format!(
            "{}\nstdout: {}\nstderr: {}\n{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr),
            self.log_tail()
        )
    }

    /// The status and the init pid of every container that has a task, as `ctr task ls` gives them.
    #[track_caller]
    pub fn tasks(&self) -> BTreeMap<String, (String, u32)> {
        let table = self.ok(&["task", "ls"]);
        let row = |line: &str| {
            let mut columns = line.split_whitespace();
            let (id, pid, status) = (columns.next()?, columns.next()?, columns.next()?);
            Some((id.to_owned(), (status.to_owned(), pid.parse().ok()?)))
        };
        table.lines().filter_map(row).collect()
    }

    /// A container's status and init pid, if it has a task.
    #[track_caller]
    pub fn task(&self, id: &str) -> Option<(String, u32)> {
        self.tasks().remove(id)
    }

    /// Waits until the task has `status`.
    #[track_caller]
    pub fn wait_for_status(&self, id: &str, status: &str) -> u32 {
        eventually(&format!("{id} should be {status}"), || match self.task(id) {
            Some((seen, pid)) if seen == status => Ok(pid),
            other => Err(other),
        })
    }

    /// Deletes a stopped task and its container; returns the exit status that ctr tells.
    #[track_caller]
    pub fn delete(&self, id: &str) -> u32 {
        self.delete_all(&[id])[0]
    }

    /// As [`Containerd::delete`] for many at once.
    #[track_caller]
    pub fn delete_all(&self, ids: &[&str]) -> Vec<u32> {
        let output = self.run(&[&["task", "delete"], ids].concat());
        assert!(output.status.success(), "{}", self.complain(&output));
        self.ok(&[&["container", "delete"], ids].concat());
        ids.iter().for_each(|id| self.wait_for_end_of_shim(id));
        // ctr warns of any other status than 0, and exits with 0 itself.
        let warnings = String::from_utf8_lossy(&output.stderr).into_owned();
        let told = |id: &&str| {
            let Some((_, tail)) = warnings.split_once(&format!("task {id} exit with non-zero exit code ")) else {
                return 0;
            };
            let digits: String = tail.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().expect("a number follows")
        };
        ids.iter().map(told).collect()
    }

    /// Kills and removes a container and its task.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        if self.task(id).is_some() {
            self.run(&["task", "kill", "-s", "SIGKILL", id]);
            self.wait_for_status(id, "STOPPED");
            self.run(&["task", "delete", id]);
        }
        self.ok(&["container", "delete", id]);
        self.wait_for_end_of_shim(id);
    }

    /// A shim delivers its last events before it ends; a daemon that goes first would keep it waiting.
    #[track_caller]
    pub fn wait_for_end_of_shim(&self, id: &str) {
        let word = format!("-id {id} ");
        eventually("the shim should end", || {
            let lines: Vec<_> = process::marked(self.scene.id()).into_iter().map(process::describe).collect();
            let left: Vec<_> = lines
                .into_iter()
                .filter(|l| l.contains("containerd-shim") && l.replace(')', " ").contains(&word))
                .collect();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }
}

/// A test that has failed in one thread is cleaned up after in another.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A `ctr events` that runs until this is dropped.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    _ctr: ChildProcess,
}

impl Events {
    fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap_or_default()
    }

    /// The topic and the line of each event of a task, until one of `last` has come.
    #[track_caller]
    pub fn of_tasks_until(&self, last: &str) -> Vec<(String, String)> {
        let of_task = |line: &str| {
            let topic = line.split_whitespace().find_map(|w| w.strip_prefix("/tasks/"))?;
            Some((topic.to_owned(), line.to_owned()))
        };
        eventually(&format!("/tasks/{last} should come"), || {
            let seen: Vec<_> = self.text().lines().filter_map(of_task).collect();
            if seen.iter().any(|(topic, _)| topic == last) { Ok(seen) } else { Err(seen) }
        })
    }
}
