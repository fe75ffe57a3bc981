//! The private world of one test: a directory, an environment, and the check that nothing of it is left over.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, thread};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually::{eventually, patience, within};
use crate::outside::{self, Outside};
use crate::{process, programs};

/// The environment variable that marks every process which a test started, however indirectly.
pub const MARK: &str = "HOLDFAST_TEST";

/// Owns the directory. When it is dropped, no process, mount, control group or socket of the test may be left, or the
/// test fails; after a failure they are cleaned up without a further word. Declare it first, so that it is dropped last.
#[derive(Debug)]
pub struct Scene {
    id: String,
    dir: PathBuf,
    /// Given back when all else is done.
    _outside: Outside,
}

impl Scene {
    /// Makes the directory. Its name is short, since socket paths below it must fit into 107 bytes.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new() -> Self {
        // In memory for the benchmark, as /run is on the machines that count.
        Self::in_dir(&env::var_os("HOLDFAST_TEST_DIR").unwrap_or_else(|| "/tmp".into()))
    }

    /// One for a daemon that waits for the disk after each of its many small writes: in memory, if `HOLDFAST_TEST_MEMORY`
    /// says where.
    ///
    /// # Panics
    /// As [`Scene::new`].
    pub fn for_daemons() -> Self {
        env::var_os("HOLDFAST_TEST_MEMORY").map_or_else(Self::new, |base| Self::in_dir(&base))
    }

    fn in_dir(base: &OsStr) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        // The start time makes the id differ from that of an earlier process with the same pid.
        let own = std::process::id();
        // The last letter keeps it from being the beginning of another one's.
        let id = format!("hf{own:x}-{:x}-{n:x}z", process::start_time(own).unwrap_or_default());
        let dir = Path::new(base).join(&id);
        DirBuilder::new().mode(0o700).create(&dir).unwrap_or_else(|e| panic!("cannot make {}: {e}", dir.display()));
        // However full the disk of the tests is.
        let settings = dir.join("shim.toml");
        fs::write(&settings, "[output]\nfree-floor = 0\n")
            .unwrap_or_else(|e| panic!("cannot write {}: {e}", settings.display()));
        Self { id, dir, _outside: Outside::hold() }
    }

    /// A word that occurs nowhere else on the machine: the prefix for container ids, and the value of [`MARK`].
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in the directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes a directory in the directory, with parents.
    pub fn make_dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        path
    }

    /// Where the programs under test keep their run-time files.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("r")
    }

    /// A command with this scene's environment: its mark and its directories instead of the machine's.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        for (key, value) in self.environment() {
            command.env(key, value);
        }
        command.env_remove("NOTIFY_SOCKET").env_remove("HOLDFAST_MANAGER").current_dir(&self.dir);
        command
    }

    /// What [`Scene::command`] sets.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let text = |p: PathBuf| p.to_str().expect("a path of ours").to_owned();
        let system = env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        let path = format!("{}:{}:{system}", text(programs::bin_dir()), text(programs::peers_dir()));
        vec![
            (MARK, self.id.clone()),
            ("HOLDFAST_RUN_DIR", text(self.run_dir())),
            ("HOLDFAST_STATE_DIR", text(self.dir.join("v"))),
            ("HOLDFAST_SHIM_CONFIG", text(self.dir.join("shim.toml"))),
            ("XDG_RUNTIME_DIR", text(self.dir.clone())),
            ("PATH", path),
        ]
    }

    /// All files in the run directory but locks: nothing when there is no container.
    pub fn run_files(&self) -> Vec<String> {
        let mut found = Vec::new();
        files_below(&self.run_dir(), &mut found);
        found
    }

    /// Waits until no events wait in the run directory any more, and gives its files.
    #[track_caller]
    pub fn run_files_but_events(&self) -> Vec<String> {
        eventually("the events should be delivered", || match self.run_files() {
            files if files.iter().any(|file| file.ends_with(".events")) => Err(files),
            files => Ok(files),
        })
    }

    /// What is left of this scene, one line each: processes, mounts, control groups, sockets.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        found.extend(self.processes().into_iter().map(|p| format!("process {}", process::describe(p))));
        found.extend(self.mounts().into_iter().map(|m| format!("mount {}", m.display())));
        found.extend(self.cgroups().into_iter().map(|c| format!("control group {}", c.display())));
        found.extend(self.listening().into_iter().map(|s| format!("socket {s}")));
        found
    }

    fn processes(&self) -> Vec<u32> {
        process::marked(&self.id)
    }

    /// Mount points in the directory, the deepest first.
    fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = table.lines().filter_map(|l| l.split(' ').nth(1)).map(PathBuf::from);
        let mut ours: Vec<_> = points.filter(|p| p.starts_with(&self.dir)).collect();
        ours.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
        ours
    }

    /// Control groups of containers of this scene and all below them, the deepest first.
    fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        find_named(Path::new("/sys/fs/cgroup"), &self.id, false, &mut found);
        found
    }

    /// Removes control groups of this scene in which nothing is: those above containers, which no OCI runtime removes.
    pub fn remove_empty_cgroups(&self) {
        for group in self.cgroups() {
            let _ = fs::remove_dir(group);
        }
    }

    /// Bound sockets with a path in the directory.
    fn listening(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let names = table.lines().filter_map(|l| l.split_whitespace().nth(7));
        names.filter(|n| n.starts_with(self.dir.to_str().expect("a path of ours"))).map(str::to_owned).collect()
    }

    /// After a failure: ends and removes what is left, so that the next test is not disturbed.
    fn clean(&self) {
        // The frozen do not die.
        for group in self.cgroups() {
            let _ = fs::write(group.join("freezer.state"), "THAWED");
            let _ = fs::write(group.join("cgroup.freeze"), "0");
        }
        let _ = within(patience(), || {
            let pids = self.processes();
            for pid in &pids {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
            // Those of a real runtime carry no mark, but are in a control group of the container's name.
            let grouped: Vec<i32> = self.cgroups().iter().flat_map(|c| members(c)).collect();
            for pid in &grouped {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            if pids.is_empty() && grouped.is_empty() { Ok(()) } else { Err(()) }
        });
        for point in self.mounts() {
            let _ = umount2(&point, MntFlags::MNT_DETACH);
        }
        self.remove_empty_cgroups();
        outside::remove_cni_results(&self.dir);
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // What a test has stopped may need a moment to go; what it forgot stays.
        let left = if thread::panicking() {
            Vec::new()
        } else {
            let settled = within(patience(), || {
                let left = self.leftovers();
                if left.is_empty() { Ok(()) } else { Err(left) }
            });
            settled.err().unwrap_or_default()
        };
        self.clean();
        // HOLDFAST_TEST_KEEP=1 keeps the directory of a failed test to look at.
        if env::var_os("HOLDFAST_TEST_KEEP").is_some() && (thread::panicking() || !left.is_empty()) {
            eprintln!("kept: {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
        assert!(left.is_empty() || thread::panicking(), "left over:\n  {}", left.join("\n  "));
    }
}

fn files_below(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            files_below(&entry.path(), found);
        } else if entry.path().extension().is_none_or(|e| e != "lock") {
            found.push(entry.path().display().to_string());
        }
    }
}

fn members(cgroup: &Path) -> Vec<i32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|l| l.parse().ok()).filter(|p| *p != 0).collect()
}

/// Directories below `dir` whose name contains `word`, and (`inside` such a one) all below them, children before parents.
fn find_named(dir: &Path, word: &str, inside: bool, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            let named = inside || entry.file_name().to_str().is_some_and(|n| n.contains(word));
            find_named(&entry.path(), word, named, found);
            if named {
                found.push(entry.path());
            }
        }
    }
}
