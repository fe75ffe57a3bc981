//! A private containerd in a scene, and ctr to talk to it. Root only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;

use crate::process::{ChildProcess, run};
use crate::{Scene, bundle, eventually, process, programs};

/// The runtime name under which containerd finds ours.
pub const RUNTIME: &str = "io.containerd.holdfast.v2";

/// containerd's own shim.
pub const STOCK_RUNTIME: &str = "io.containerd.runc.v2";

/// A running containerd with root, state and sockets in the scene.
#[derive(Debug)]
pub struct Containerd<'a> {
    scene: &'a Scene,
    daemon: Option<ChildProcess>,
    rootfs: PathBuf,
}

impl<'a> Containerd<'a> {
    /// Starts it, with a root file system of busybox at hand.
    ///
    /// # Panics
    /// If there is no containerd, or it does not come up.
    pub fn start(scene: &'a Scene) -> Self {
        let rootfs = scene.make_dir("rootfs");
        bundle::fill_with_busybox(&rootfs);
        let config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {socket:?}\n",
            root = scene.path("containerd/root"),
            state = scene.path("containerd/state"),
            socket = scene.path("c.sock"),
        );
        fs::write(scene.path("containerd.toml"), config).expect("the scene is writable");
        let mut containerd = Self { scene, daemon: None, rootfs };
        containerd.resume();
        containerd
    }

    /// Starts the daemon again, after [`Containerd::kill`], and waits until it answers.
    #[track_caller]
    pub fn resume(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log file");
        let mut command = self.scene.command(programs::peer("containerd").expect("tests/peers.sh provides containerd"));
        command.arg("--config").arg(self.scene.path("containerd.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.daemon = Some(ChildProcess::spawn(&mut command));
        eventually("containerd should answer", || {
            let output = run(self.ctr().arg("version"));
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        });
    }

    /// Ends the daemon with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    /// Ends the daemon as an administrator would.
    pub fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.signal(Signal::SIGTERM);
            daemon.wait();
        }
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
        let mut command = self.scene.command(programs::peer("ctr").expect("tests/peers.sh provides ctr"));
        command.arg("--address").arg(self.scene.path("c.sock")).args(["--namespace", "tests"]);
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

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// The last lines of the daemon's log, for complaints.
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

    /// A container's status and init pid as `ctr task ls` gives them, if it has a task.
    pub fn task(&self, id: &str) -> Option<(String, u32)> {
        let table = self.ok(&["task", "ls"]);
        let row = table.lines().find(|l| l.split_whitespace().next() == Some(id))?;
        let mut columns = row.split_whitespace().skip(1);
        let pid = columns.next()?.parse().ok()?;
        Some((columns.next()?.to_owned(), pid))
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
        let output = self.run(&["task", "delete", id]);
        assert!(output.status.success(), "{}", self.complain(&output));
        self.ok(&["container", "delete", id]);
        self.wait_for_end_of_shim(id);
        // ctr warns of any other status than 0, and exits with 0 itself.
        let warning = String::from_utf8_lossy(&output.stderr).into_owned();
        let Some((_, tail)) = warning.split_once("exit with non-zero exit code ") else { return 0 };
        let digits: String = tail.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number follows")
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
    fn wait_for_end_of_shim(&self, id: &str) {
        let word = format!("-id {id}");
        eventually("the shim should end", || {
            let lines: Vec<_> = process::marked(self.scene.id()).into_iter().map(process::describe).collect();
            let left: Vec<_> =
                lines.into_iter().filter(|l| l.contains("containerd-shim") && l.contains(&word)).collect();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }
}
