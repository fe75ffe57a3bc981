//! The smallest bundle: a directory, a `config.json` and, for a real runtime, a root file system.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::{Value, json};

use crate::stdio::make_fifo;
use crate::{Scene, process, programs};

/// A bundle directory for one container.
#[derive(Debug)]
pub struct Bundle {
    id: String,
    dir: PathBuf,
    config: Value,
    /// Held open as containerd does: the shim's log has a reader for as long as the test lives.
    _log: fs::File,
}

impl Bundle {
    /// For the fake runtime: `args` run as a plain process of this machine, with no isolation.
    pub fn plain(scene: &Scene, args: &[&str]) -> Self {
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": args, "cwd": "/", "env": [environment_path()],
                "user": { "uid": 0, "gid": 0 },
            },
            "root": { "path": "rootfs" },
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
        });
        Self::new(scene, config)
    }

    /// For a real runtime: `args` run in a root file system of nothing but busybox.
    ///
    /// # Panics
    /// If there is no busybox.
    pub fn busybox(scene: &Scene, args: &[&str]) -> Self {
        let bundle = Self::new(scene, busybox_config(args));
        // Named after the container, so that a group which stays is found.
        let group = format!("/{}", bundle.id);
        let bundle = bundle.configure(|c| c["linux"]["cgroupsPath"] = group.into());
        fill_with_busybox(&bundle.dir.join("rootfs"));
        bundle
    }

    fn new(scene: &Scene, config: Value) -> Self {
        // Several bundles in one scene get ids of their own, also at the same time. The directory is named after the
        // container, as containerd's are: the reference shim relies on it.
        let taken = |n: u32| {
            let id = format!("{}-{n}", scene.id());
            fs::create_dir(scene.path(&id)).map(|()| id)
        };
        let id = (1..).find_map(|n| match taken(n) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => None,
            made => Some(made.expect("the scene is writable")),
        });
        let id = id.expect("there is always a next number");
        let dir = scene.path(&id);
        fs::create_dir(dir.join("rootfs")).expect("a fresh directory");
        let log = make_fifo(scene, &format!("{id}/log"));
        let log = fs::OpenOptions::new().read(true).write(true).open(log).expect("a fresh FIFO");
        let bundle = Self { id, dir, config, _log: log };
        bundle.write_config();
        bundle
    }

    /// Changes the configuration.
    pub fn configure(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self.write_config();
        self
    }

    /// Without a pid namespace of its own.
    pub fn in_shared_pids(self) -> Self {
        self.configure(|config| config["linux"]["namespaces"] = json!([{ "type": "mount" }]))
    }

    /// Moves the directory to one that is not named after the container.
    pub fn moved_to(mut self, dir: PathBuf) -> Self {
        fs::rename(&self.dir, &dir).expect("the scene is writable");
        self.dir = dir;
        self
    }

    /// Asks for a terminal.
    pub fn with_terminal(self) -> Self {
        self.configure(|c| c["process"]["terminal"] = true.into())
    }

    /// Puts the container into a group: one shim serves the whole group.
    pub fn in_group(self, group: &str) -> Self {
        self.configure(|c| c["annotations"] = json!({ "io.containerd.runc.v2.group": group }))
    }

    fn write_config(&self) {
        let text = serde_json::to_vec_pretty(&self.config).expect("JSON encodes");
        fs::write(self.dir.join("config.json"), text).expect("the bundle is writable");
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the shim has logged since this was asked last.
    pub fn take_log(&self) -> String {
        let log = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(self.path("log"));
        let (mut log, mut said) = (log.expect("a FIFO of ours"), Vec::new());
        // Ends with "would block", for our own end keeps the FIFO from ending.
        let _ = log.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    }

    /// A file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The OCI process of an exec.
pub fn exec_process(args: &[&str]) -> Value {
    json!({
        "args": args, "cwd": "/", "env": [environment_path()],
        "user": { "uid": 0, "gid": 0 },
    })
}

fn environment_path() -> &'static str {
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

pub(crate) fn busybox_config(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": args, "cwd": "/", "env": [environment_path()],
            "user": { "uid": 0, "gid": 0 },
            "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "test",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"] },
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }, { "type": "network" },
            ],
        },
    })
}

/// Makes `root` a root file system of busybox and its links.
///
/// # Panics
/// If there is no busybox, or `root` cannot be written.
pub fn fill_with_busybox(root: &Path) {
    let busybox = programs::busybox().expect("a static busybox: HOLDFAST_TEST_BUSYBOX, or `make peers`");
    for dir in ["bin", "proc", "dev", "tmp", "sys", "etc"] {
        fs::create_dir_all(root.join(dir)).expect("a writable root");
    }
    process::copy_program(busybox.as_ref(), &root.join("bin/busybox"));
    for applet in ["sh", "cat", "echo", "sleep", "true", "false", "env", "id", "stty", "tty", "dd", "ls", "ps", "kill"]
    {
        match std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => panic!("cannot link {applet}: {e}"),
            _ => {}
        }
    }
}
