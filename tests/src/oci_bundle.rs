//! The smallest OCI bundle (a busybox and nothing else) and an OCI runtime to run it with.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::eventually::until;
use crate::skip::{is_root, skip};
use crate::{process, programs};

/// What the bundle's programs are called.
const APPLETS: &str =
    "sh sleep echo cat ls id env stat mknod head kill true mkdir readlink grep stty hostname touch ps";

/// A bundle, a state root and the runtime; everything that is left is deleted when this is dropped.
pub struct Bundle {
    dir: PathBuf,
    id: String,
    runtime: PathBuf,
}

impl Bundle {
    /// Makes a bundle for our runtime of this name; `None`, with the skip noted, without root.
    ///
    /// # Panics
    /// If there is no such runtime or no busybox, or nothing can be written.
    pub fn new(runtime: &str) -> Option<Bundle> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !is_root() {
            skip("needs root");
            return None;
        }
        let busybox = programs::busybox().expect("a static busybox: HOLDFAST_TEST_BUSYBOX, or `make peers`");
        let runtime = programs::ours(runtime);
        let id = format!("hf-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&id);
        let bin = dir.join("rootfs/bin");
        for name in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
            fs::create_dir_all(dir.join("rootfs").join(name)).expect("the temporary directory is writable");
        }
        process::copy_program(&busybox, &bin.join("busybox"));
        for applet in APPLETS.split(' ') {
            symlink("busybox", bin.join(applet)).expect("links can be made");
        }
        let bundle = Bundle { dir, id, runtime };
        bundle.write(&bundle.spec(&["sleep", "1000"]));
        Some(bundle)
    }

    /// The id for the bundle's one container; no other test has it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The bundle directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The container's root filesystem.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// The directory that the runtime keeps for the container.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state").join(&self.id)
    }

    /// A specification that runs this command.
    pub fn spec(&self, args: &[&str]) -> Value {
        json!({
            "ociVersion": "1.1.0",
            "root": { "path": "rootfs" },
            "process": {
                "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": args, "env": ["PATH=/bin"],
                "noNewPrivileges": true,
            },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            ],
            "linux": {
                "cgroupsPath": format!("/{}", self.id),
                "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
                "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            },
        })
    }

    /// Whether the runtime could run in a root filesystem that has no libraries.
    pub fn runtime_is_static(&self) -> bool {
        process::is_static(&self.runtime)
    }

    /// Replaces config.json.
    pub fn write(&self, spec: &Value) {
        fs::write(self.dir.join("config.json"), spec.to_string()).expect("config.json can be written");
    }

    /// The runtime with its global flags; add a verb.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.runtime);
        command.arg("--root").arg(self.dir.join("state"));
        command.arg("--log").arg(self.dir.join("log.json")).args(["--log-format", "json"]);
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// Runs a verb and collects its output. Not for `create`: its container would keep the pipes open.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().expect("the runtime can be executed")
    }

    /// Runs a verb that must succeed; its stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {} {stderr}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a verb that must fail; its one line on stderr.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{args:?} should have failed");
        assert_eq!(stderr.trim_end().lines().count(), 1, "one line: {stderr}");
        stderr
    }

    /// `create` with the output of the container in a file; the runtime's stderr on failure.
    pub fn create(&self, more: &[&str]) -> Result<(), String> {
        let file = fs::File::create(self.dir.join("output")).expect("the bundle is writable");
        let errors = fs::File::create(self.dir.join("errors")).expect("the bundle is writable");
        let mut command = self.command();
        command.args(["create", "--bundle", "."]).args(more).arg(&self.id).stdout(file).stderr(errors);
        let status = command.status().expect("the runtime can be executed");
        if status.success() {
            return Ok(());
        }
        Err(fs::read_to_string(self.dir.join("errors")).unwrap_or_default())
    }

    /// Creates and starts.
    pub fn start(&self) {
        self.create(&[]).expect("the container can be created");
        self.ok(&["start", &self.id]);
    }

    /// What the container has printed so far.
    pub fn output(&self) -> String {
        fs::read_to_string(self.dir.join("output")).unwrap_or_default()
    }

    /// The document that `state` prints.
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.ok(&["state", &self.id])).expect("state prints JSON")
    }

    /// The status in that document.
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap_or_default().to_owned()
    }

    /// The pid in that document.
    pub fn pid(&self) -> u32 {
        let pid = self.state()["pid"].as_u64().expect("a number");
        u32::try_from(pid).expect("a pid")
    }

    /// Waits until the status is this one.
    pub fn until(&self, status: &str) {
        until(status, || Some(self.status()).filter(|seen| seen == status));
    }

    /// The container's cgroup directories, in all hierarchies.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
        let places = std::iter::once(root.to_owned()).chain(hierarchies).map(|place| place.join(&self.id));
        places.filter(|dir| dir.is_dir()).collect()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.command().args(["delete", "--force", &self.id]).output();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
