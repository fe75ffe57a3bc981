//! A whole machine under systemd that may be thrown away: the units as they are shipped, driven by systemctl.
//!
//! Only where `HOLDFAST_DISPOSABLE_MACHINE` is set, as it is in what `make test-vm` boots: the units have the real names and
//! holdfastd the real directories, so that on anybody's own machine this would be his holdfastd.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::eventually::until;
use crate::holdfastd::{Said, make_rootfs};
use crate::process::copy_program;
use crate::{programs, skip};

/// Where the units name the programs.
const PROGRAMS: &str = "/usr/local/bin";
/// Where `make install` puts units.
const UNITS: &str = "/usr/local/lib/systemd/system";
/// The settings.
const SETTINGS: &str = "/etc/holdfast/holdfastd.toml";
/// Of the tests alone; goes with them.
const DROP_IN: &str = "/run/systemd/system/holdfastd.service.d/test.conf";
/// What containers are made from, and what they share with the tests.
const ROOTFS: &str = "/run/holdfast-test/rootfs";

/// There is one machine: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

/// The machine, with holdfastd's units installed and nothing running. Containers, settings and drop-ins are gone when it is
/// dropped.
pub struct Machine {
    _turn: MutexGuard<'static, ()>,
}

impl Machine {
    /// Prepares it; `None`, with the skip noted, where there is none to be had.
    ///
    /// # Panics
    /// If it cannot be prepared; so for everything here.
    pub fn prepare() -> Option<Self> {
        let init = fs::read_to_string("/proc/1/comm").unwrap_or_default();
        if !skip::is_root() || init.trim() != "systemd" || std::env::var_os("HOLDFAST_DISPOSABLE_MACHINE").is_none() {
            skip::skip("needs a machine under systemd that may be thrown away: make test-vm");
            return None;
        }
        // A test that failed has cleaned up all the same.
        let this = Self { _turn: ONE.lock().unwrap_or_else(PoisonError::into_inner) };
        if !Path::new(ROOTFS).exists() {
            make_rootfs(Path::new(ROOTFS));
            this.install_programs();
            install_units();
            this.systemctl(&["daemon-reload"]).ok();
        }
        Some(this)
    }

    /// Puts the programs in place, each by rename, as packages do.
    pub fn install_programs(&self) {
        for name in ["containerd-shim-holdfast-v2", "holdfast-oci", "holdfastd", "holdfast"] {
            let new = Path::new(PROGRAMS).join(format!(".{name}.new"));
            copy_program(&programs::ours(name), &new);
            fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("it is ours");
            fs::rename(&new, Path::new(PROGRAMS).join(name)).expect("it can be renamed");
        }
    }

    /// Writes the settings file.
    pub fn configure(&self, text: &str) {
        write(Path::new(SETTINGS), text);
    }

    /// Has the settings that `make install` installs.
    pub fn configure_as_installed(&self) {
        let shipped = programs::repository().join("systemd/holdfastd.toml");
        self.configure(&fs::read_to_string(shipped).expect("it is there"));
    }

    /// Changes holdfastd's unit by a drop-in.
    pub fn override_unit(&self, text: &str) {
        write(Path::new(DROP_IN), text);
        self.systemctl(&["daemon-reload"]).ok();
    }

    /// Starts the supervisor's unit; returns when it is ready.
    pub fn start(&self) {
        self.systemctl(&["start", "holdfastd.service"]).ok();
    }

    /// Runs systemctl.
    pub fn systemctl(&self, args: &[&str]) -> Said {
        run("systemctl", args)
    }

    /// Runs the command line to its end.
    pub fn holdfast(&self, args: &[&str]) -> Said {
        run("/usr/local/bin/holdfast", args)
    }

    /// A property of a unit.
    pub fn show(&self, unit: &str, property: &str) -> String {
        self.systemctl(&["show", "--value", "-p", property, unit]).ok()
    }

    /// The pid of the supervisor, once its unit is active.
    pub fn supervisor(&self) -> u32 {
        until("holdfastd.service is active", || {
            // Asked for at once: in between it may end, and then has no pid.
            let both = self.systemctl(&["show", "-p", "ActiveState", "-p", "MainPID", "holdfastd.service"]).ok();
            let is_active = both.lines().any(|l| l == "ActiveState=active");
            let pid = both.lines().find_map(|l| l.strip_prefix("MainPID=")).and_then(|pid| pid.parse().ok());
            pid.filter(|pid| is_active && *pid != 0)
        })
    }

    /// Lets containerd's own unit be started, which the image does not want. Undone when what is returned is dropped.
    pub fn unmask_containerd(&self) -> Unmasked {
        let mask = Path::new("/etc/systemd/system/containerd.service");
        let was_masked = fs::read_link(mask).is_ok_and(|target| target == Path::new("/dev/null"));
        if was_masked {
            fs::remove_file(mask).expect("a link can be removed");
            self.systemctl(&["daemon-reload"]).ok();
        }
        Unmasked { mask: was_masked.then_some(mask) }
    }

    /// What the supervisor's unit logged.
    pub fn journal(&self) -> String {
        run("journalctl", &["-u", "holdfastd.service", "-o", "cat", "--no-pager"]).out
    }

    /// Starts a detached container that runs a shell script, with more options; returns its id.
    pub fn run_with(&self, name: &str, options: &[&str], script: &str) -> String {
        let fixed = ["run", "-d", "--name", name, "--rootfs", ROOTFS];
        let args = [&fixed, options, &["--", "/bin/sh", "-c", script]].concat();
        self.holdfast(&args).ok()
    }

    /// As [`Machine::run_with`], without options.
    pub fn run(&self, name: &str, script: &str) -> String {
        self.run_with(name, &[], script)
    }

    /// What `inspect` says of a container.
    pub fn inspect(&self, container: &str) -> serde_json::Value {
        let text = self.holdfast(&["inspect", container]).ok();
        let all: serde_json::Value = serde_json::from_str(&text).expect("inspect prints JSON");
        all[0].clone()
    }

    /// A pid from `inspect`.
    pub fn pid(&self, container: &str, which: &str) -> u32 {
        let value = self.inspect(container)[which].as_u64().expect("a number");
        u32::try_from(value).expect("a pid")
    }

    /// The root file system that containers get.
    pub fn rootfs(&self) -> PathBuf {
        ROOTFS.into()
    }
}

/// See [`Machine::unmask_containerd`].
pub struct Unmasked {
    mask: Option<&'static Path>,
}

impl Drop for Unmasked {
    fn drop(&mut self) {
        run("systemctl", &["stop", "containerd.service"]);
        if let Some(mask) = self.mask {
            let _ = std::os::unix::fs::symlink("/dev/null", mask); // the machine is thrown away
            run("systemctl", &["daemon-reload"]);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- holdfastd said:\n{}", self.journal());
            eprintln!("--- its unit:\n{}", self.systemctl(&["status", "--no-pager", "holdfast*"]).out);
        }
        // The containers go through a supervisor with the settings and the unit that are shipped.
        let _ = fs::remove_file(SETTINGS);
        let _ = fs::remove_file(DROP_IN);
        self.systemctl(&["daemon-reload"]);
        self.systemctl(&["restart", "holdfastd.service"]);
        let list = self.holdfast(&["ps", "-aq"]).out;
        let ids: Vec<&str> = list.lines().collect();
        if !ids.is_empty() {
            self.holdfast(&[&["rm", "-f"], ids.as_slice()].concat());
        }
        self.systemctl(&["stop", "holdfastd.socket", "holdfastd.service"]);
        run("journalctl", &["--rotate", "--vacuum-size=1"]);
    }
}

/// Runs a program to its end, with nothing of the test's standard input.
pub fn run(program: &str, args: &[&str]) -> Said {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    output.unwrap_or_else(|e| panic!("{program} cannot be run: {e}")).into()
}

/// Every unit and drop-in that is shipped, as paths below `systemd/`.
pub fn units() -> Vec<String> {
    let root = programs::repository().join("systemd");
    let is_unit = |name: &str| [".service", ".socket", ".slice"].iter().any(|end| name.ends_with(end));
    let mut found = Vec::new();
    for entry in fs::read_dir(&root).expect("it is there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_unit(&name) {
            found.push(name);
        } else if name.ends_with(".service.d") {
            let inside = fs::read_dir(entry.path()).expect("it is there").flatten();
            found.extend(inside.map(|e| format!("{name}/{}", e.file_name().to_string_lossy())));
        }
    }
    found.sort();
    found
}

fn install_units() {
    let source = programs::repository().join("systemd");
    for unit in units() {
        write(&Path::new(UNITS).join(&unit), &fs::read_to_string(source.join(&unit)).expect("it is there"));
    }
    for kind in ["tmpfiles", "sysusers"] {
        let name = format!("{kind}.d/holdfast.conf");
        let text = fs::read_to_string(source.join(&name)).expect("it is there");
        write(&Path::new("/usr/local/lib").join(&name), &text);
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("it is in a directory")).expect("a directory can be made");
    fs::write(path, text).unwrap_or_else(|e| panic!("{} cannot be written: {e}", path.display()));
}
