//! A container's place in the cgroup hierarchies: who is in it, freezing, killing, removing.
//!
//! Directories are worked out once, at create time, and kept in the record: no later verb parses
//! `/proc/self/mountinfo`. libcgroups writes the limits other than devices, and speaks to systemd.
//!
//! On v1 and hybrid hosts there is one directory for each hierarchy that libcgroups joins; the named ones and the v2
//! tree of a hybrid host are not joined, hold the caller's other processes, and are never touched. On unified hosts
//! there is one directory.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use libcgroups::common::{AnyCgroupManager, CgroupConfig, CgroupManager, ControllerOpt, create_cgroup_manager};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::devices;
use crate::error::{Failure, chain};
use crate::process::ProcessName;

/// Where the hierarchies are mounted; libcgroups knows no other place.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// Where a hybrid machine has its unified hierarchy.
const UNIFIED: &str = "unified";
/// How long to wait for killed processes to leave and for a freeze to take hold.
const PATIENCE: Duration = Duration::from_secs(10);
/// The v1 controllers that libcgroups joins.
const JOINED: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];

/// A container's place in the hierarchies.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Cgroup {
    /// The path as libcgroups wants it.
    path: PathBuf,
    /// Whether systemd makes and removes it.
    pub(crate) systemd: bool,
    /// Whether the host has one hierarchy only.
    pub(crate) unified: bool,
    /// The name that libcgroups wants for a systemd unit.
    name: String,
    /// The directories, one for each joined hierarchy.
    dirs: Vec<Hierarchy>,
}

/// The directory in one hierarchy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Hierarchy {
    /// Its controllers, empty on unified hosts.
    controllers: Vec<String>,
    dir: PathBuf,
}

/// Whether the host has the unified hierarchy only.
pub(crate) fn is_unified() -> bool {
    statfs(ROOT).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

impl Cgroup {
    /// Works out the place from `linux.cgroupsPath`; makes nothing.
    ///
    /// # Errors
    /// When `--systemd-cgroup` does not fit the path, or `/proc/self/cgroup` cannot be read.
    pub(crate) fn plan(cgroups_path: Option<&Path>, id: &str, systemd: bool) -> Result<Cgroup, Failure> {
        let unified = is_unified();
        let path = match cgroups_path {
            Some(path) if systemd => systemd_path(path)?,
            Some(path) => clean(path),
            None if systemd => PathBuf::from(format!("system.slice:holdfast:{id}")),
            None => Path::new("/").join(id),
        };
        let dirs = match (systemd, unified) {
            // Only systemd knows where its unit ends up; see `locate`.
            (true, _) => Vec::new(),
            (false, true) => vec![Hierarchy { controllers: Vec::new(), dir: below(Path::new(ROOT), &path) }],
            (false, false) => {
                let own =
                    fs::read_to_string("/proc/self/cgroup").map_err(Failure::file("read", "/proc/self/cgroup"))?;
                joined_hierarchies(&own, |name| Path::new(ROOT).join(name).is_dir())
                    .into_iter()
                    .map(|(controllers, base)| Hierarchy {
                        controllers,
                        dir: below(&Path::new(ROOT).join(base), &path),
                    })
                    .collect()
            }
        };
        Ok(Cgroup { path, systemd, unified, name: id.to_owned(), dirs })
    }

    /// Learns where systemd has put the process.
    fn locate(&mut self, pid: i32) -> Result<(), Failure> {
        if !self.systemd {
            return Ok(());
        }
        if let Some(dir) = current_unified(pid)? {
            self.dirs = vec![Hierarchy { controllers: Vec::new(), dir }];
        }
        Ok(())
    }

    /// Makes the directories and sets the limits, except that on processes: ours would count. With systemd nothing is
    /// made yet; see `adopt`.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(crate) fn make(&self, resources: &LinuxResources) -> Result<(), Failure> {
        if self.systemd {
            return Ok(());
        }
        for hierarchy in &self.dirs {
            self.make_dir(hierarchy)?;
        }
        let mut limits = resources.clone();
        limits.set_pids(None);
        self.limit(&limits)
    }

    fn make_dir(&self, hierarchy: &Hierarchy) -> Result<(), Failure> {
        let cpuset = hierarchy.controllers.iter().any(|name| name == "cpuset");
        if !cpuset && !self.unified {
            return fs::create_dir_all(&hierarchy.dir).map_err(Failure::file("make the cgroup", &hierarchy.dir));
        }
        let base = self.base_of(hierarchy);
        let mut dir = base.clone();
        for component in hierarchy.dir.strip_prefix(&base).unwrap_or(&hierarchy.dir).components() {
            let parent = dir.clone();
            dir.push(component);
            if self.unified {
                enable_controllers(&parent);
            }
            match fs::create_dir(&dir) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Failure::File { what: "make the cgroup", path: dir, source });
                }
                _ => {}
            }
            if cpuset {
                inherit_cpuset(&parent, &dir)?;
            }
        }
        Ok(())
    }

    /// Where the hierarchy is mounted.
    fn base_of(&self, hierarchy: &Hierarchy) -> PathBuf {
        if self.unified {
            return PathBuf::from(ROOT);
        }
        let depth = Path::new(ROOT).components().count() + 1;
        hierarchy.dir.components().take(depth).collect()
    }

    /// Lets systemd put a process that waits into a unit of its own, and learns where that is.
    ///
    /// # Errors
    /// What systemd says.
    pub(crate) fn adopt(&mut self, pid: i32, resources: &LinuxResources) -> Result<(), Failure> {
        if !self.systemd {
            return Ok(());
        }
        let refused = |error: &(dyn std::error::Error + 'static)| Failure::Cgroup {
            what: "start the systemd unit of the container",
            reason: chain(error),
        };
        // The crate's own type of the same name, from another version of nix: a pid is what they agree on.
        self.manager()?.add_task(nix_of_crate::unistd::Pid::from_raw(pid)).map_err(|error| refused(&error))?;
        self.locate(pid)?;
        let mut limits = resources.clone();
        limits.set_pids(None);
        self.limit(&limits)
    }

    /// Sets limits; what is not given stays as it is.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(crate) fn limit(&self, resources: &LinuxResources) -> Result<(), Failure> {
        let mut others = resources.clone();
        let rules = others.devices().clone().unwrap_or_default();
        others.set_devices(None);
        let weight = self.unified_dir().and_then(|dir| take_io_weight(&mut others, dir));
        if others != LinuxResources::default() {
            let options = ControllerOpt {
                resources: &others,
                disable_oom_killer: others.memory().as_ref().and_then(|m| m.disable_oom_killer()).unwrap_or(false),
                oom_score_adj: None,
                freezer_state: None,
            };
            self.manager()?
                .apply(&options)
                .map_err(|error| Failure::Cgroup { what: "apply the limits", reason: chain(&error) })?;
        }
        if let (Some(weight), Some(dir)) = (weight, self.unified_dir()) {
            let file = dir.join("io.weight");
            fs::write(&file, weight.to_string()).map_err(Failure::file("write the weight to", file))?;
        }
        if rules.is_empty() {
            return Ok(());
        }
        match (self.unified_dir(), self.hierarchy("devices")) {
            (Some(dir), _) => devices::enforce(dir, &rules),
            (None, Some(hierarchy)) => devices::write(&hierarchy.dir, &rules),
            (None, None) => {
                Err(Failure::Cgroup { what: "restrict devices", reason: "there is no devices cgroup".into() })
            }
        }
    }

    /// libcgroups' manager of this place.
    fn manager(&self) -> Result<AnyCgroupManager, Failure> {
        let config = CgroupConfig {
            cgroup_path: self.path.clone(),
            systemd_cgroup: self.systemd,
            container_name: self.name.clone(),
        };
        create_cgroup_manager(config)
            .map_err(|error| Failure::Cgroup { what: "open the cgroup", reason: chain(&error) })
    }

    /// How a new process gets into it, or into a cgroup below it.
    ///
    /// # Errors
    /// When the directory is not there.
    pub(crate) fn door(&self, below_it: Option<&str>, init: Option<i32>) -> Result<Door, Failure> {
        let place = |dir: &Path| match below_it {
            Some(sub) => below(dir, &clean(Path::new(sub))),
            None => dir.to_owned(),
        };
        if !self.unified {
            let beside = Path::new(ROOT).join(UNIFIED);
            let (unified, v1): (Vec<PathBuf>, Vec<PathBuf>) =
                self.dirs.iter().map(|hierarchy| place(&hierarchy.dir)).partition(|dir| dir.starts_with(&beside));
            let open =
                |dir: &PathBuf| File::open(dir).map(OwnedFd::from).map_err(Failure::file("open the cgroup", dir));
            return Ok(Door::Tasks {
                files: v1.iter().map(|dir| dir.join("tasks")).collect(),
                beside: unified.first().map(open).transpose()?,
            });
        }
        let Some(dir) = self.unified_dir().map(place) else { return Ok(Door::Later) };
        // A container that has made cgroups below its own has left the latter, and nobody else can enter it then.
        let divided = fs::read_to_string(dir.join("cgroup.subtree_control")).is_ok_and(|list| !list.trim().is_empty());
        let dir = match init {
            Some(init) if divided && below_it.is_none() => current_unified(init)?.unwrap_or(dir),
            _ => dir,
        };
        File::open(&dir).map(|dir| Door::Into(dir.into())).map_err(Failure::file("open the cgroup", &dir))
    }

    /// Refuses a place in which somebody already lives.
    ///
    /// # Errors
    /// [`Failure::CgroupBusy`].
    pub(crate) fn must_be_empty(&self) -> Result<(), Failure> {
        for hierarchy in &self.dirs {
            let count = pids_below(&hierarchy.dir).len();
            if count > 0 {
                return Err(Failure::CgroupBusy { path: hierarchy.dir.clone(), count });
            }
        }
        Ok(())
    }

    /// The directory of the unified hierarchy.
    pub(crate) fn unified_dir(&self) -> Option<&Path> {
        self.dirs.first().filter(|_| self.unified).map(|hierarchy| hierarchy.dir.as_path())
    }

    /// Every process in it and below; empty when it is gone.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.hierarchy("devices").or(self.dirs.first()).map(|hierarchy| pids_below(&hierarchy.dir)).unwrap_or_default()
    }

    fn hierarchy(&self, controller: &str) -> Option<&Hierarchy> {
        self.dirs.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
    }

    /// Whether its processes are frozen or about to be.
    pub(crate) fn is_frozen(&self) -> bool {
        let Some((file, frozen)) = self.freezer() else { return false };
        // A v1 cgroup that is still freezing has been paused as well.
        fs::read_to_string(file).is_ok_and(|state| frozen.contains(&state.trim()))
    }

    /// The file that freezes, and what it says when frozen.
    fn freezer(&self) -> Option<(PathBuf, &'static [&'static str])> {
        if let Some(dir) = self.unified_dir() {
            return Some((dir.join("cgroup.freeze"), &["1"]));
        }
        Some((self.hierarchy("freezer")?.dir.join("freezer.state"), &["FROZEN", "FREEZING"]))
    }

    /// Freezes all processes and waits until they are.
    ///
    /// # Errors
    /// When there is no freezer, or it does not take hold in time; the processes then run on.
    pub(crate) fn freeze(&self) -> Result<(), Failure> {
        let (file, _) = self.freezer().ok_or_else(|| no_freezer("freeze the processes"))?;
        write(&file, if self.unified { "1" } else { "FROZEN" })?;
        let done = wait_for(|| {
            if self.unified {
                let events = file.with_file_name("cgroup.events");
                return fs::read_to_string(events).is_ok_and(|text| text.lines().any(|line| line == "frozen 1"));
            }
            if fs::read_to_string(&file).is_ok_and(|state| state.trim() == "FROZEN") {
                return true;
            }
            // A fork that races with the freeze leaves v1 at FREEZING until it is written again.
            let _ = write(&file, "FROZEN");
            false
        });
        if done {
            return Ok(());
        }
        let _ = self.thaw();
        Err(Failure::Cgroup { what: "freeze the processes", reason: "the freezer did not take hold in time".into() })
    }

    /// Lets frozen processes go on.
    ///
    /// # Errors
    /// When there is no freezer or it refuses.
    pub(crate) fn thaw(&self) -> Result<(), Failure> {
        let (file, _) = self.freezer().ok_or_else(|| no_freezer("thaw the processes"))?;
        write(&file, if self.unified { "0" } else { "THAWED" })
    }

    /// Signals every process in it. SIGKILL reaches frozen ones too, and all that they fork meanwhile.
    ///
    /// # Errors
    /// When a process refuses the signal.
    pub(crate) fn signal_all(&self, signal: i32) -> Result<(), Failure> {
        let kill = signal == Signal::SIGKILL as i32;
        if kill && let Some(dir) = self.unified_dir() {
            let file = dir.join("cgroup.kill");
            if file.exists() {
                return write(&file, "1");
            }
        }
        if self.pids().is_empty() {
            return Ok(());
        }
        let was_frozen = self.is_frozen();
        // Frozen, nobody can fork away from the list. Without a freezer the loop below catches the rest.
        let frozen = was_frozen || self.freeze().is_ok();
        let result = self.signal_each(signal);
        if frozen && (kill || !was_frozen) {
            self.thaw()?;
        }
        result?;
        if kill {
            wait_for(|| self.signal_each(signal).is_err() || self.pids().is_empty());
        }
        Ok(())
    }

    fn signal_each(&self, signal: i32) -> Result<(), Failure> {
        for pid in self.pids() {
            match ProcessName::of(pid).map_or(Err(Errno::ESRCH), |process| process.signal(signal)) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(source) => return Err(Failure::Sys { what: "signal a process of the container", source }),
            }
        }
        Ok(())
    }

    /// Kills what is left and removes the directories; that they are gone already is success.
    ///
    /// # Errors
    /// Names the directory that stays.
    pub(crate) fn remove(&self) -> Result<(), Failure> {
        if !self.pids().is_empty() {
            self.signal_all(Signal::SIGKILL as i32)?;
        }
        for hierarchy in &self.dirs {
            remove_tree(&hierarchy.dir).map_err(Failure::file("remove the cgroup", &hierarchy.dir))?;
        }
        Ok(())
    }
}

/// A way into a cgroup that does not wait for a grace period of the kernel, as writing `cgroup.procs` does.
pub(crate) enum Door {
    /// To be forked into.
    Into(OwnedFd),
    /// Cgroup v1.
    Tasks {
        /// Files to which a process with one thread writes `0`.
        files: Vec<PathBuf>,
        /// To be forked into: the unified hierarchy of a hybrid machine.
        beside: Option<OwnedFd>,
    },
    /// Nothing to do: systemd moves the process.
    Later,
}

impl Door {
    /// For `clone3(2)`.
    pub(crate) fn directory(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Door::Into(dir) => Some(dir.as_fd()),
            Door::Tasks { beside, .. } => beside.as_ref().map(AsFd::as_fd),
            _ => None,
        }
    }

    /// Called by the process that enters, which has one thread.
    ///
    /// # Errors
    /// Names the file that refuses.
    pub(crate) fn enter(&self) -> Result<(), Failure> {
        let Door::Tasks { files, .. } = self else { return Ok(()) };
        files.iter().try_for_each(|file| write(file, "0"))
    }
}

/// The cgroup of a process in the unified hierarchy.
fn current_unified(pid: i32) -> Result<Option<PathBuf>, Failure> {
    let file = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&file).map_err(Failure::file("read", &file))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(path.map(|path| below(Path::new(ROOT), Path::new(path))))
}

/// Makes every controller available below the directory; one that cannot be is missed when a limit needs it.
fn enable_controllers(dir: &Path) {
    let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let control = dir.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control).unwrap_or_default();
    let is_enabled = |name: &&str| enabled.split_ascii_whitespace().any(|other| other == *name);
    for name in available.split_ascii_whitespace().filter(|name| !is_enabled(name)) {
        let _ = fs::write(&control, format!("+{name}"));
    }
}

/// A new v1 cpuset is empty, and nobody can enter it then.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<(), Failure> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = dir.join(name);
        let current = fs::read_to_string(&file).map_err(Failure::file("read", &file))?;
        if current.trim().is_empty() {
            let from = parent.join(name);
            let value = fs::read_to_string(&from).map_err(Failure::file("read", &from))?;
            write(&file, value.trim())?;
        }
    }
    Ok(())
}

fn no_freezer(what: &'static str) -> Failure {
    Failure::Cgroup { what, reason: "the cgroup has no freezer".into() }
}

/// `slice:prefix:name`, as systemd cgroups are written.
fn systemd_path(path: &Path) -> Result<PathBuf, Failure> {
    let text = path.to_string_lossy();
    if text.split(':').count() != 3 || text.starts_with('/') {
        return Err(Failure::Argument {
            what: "linux.cgroupsPath",
            value: text.into_owned(),
            reason: "with --systemd-cgroup it must have the form slice:prefix:name",
        });
    }
    Ok(path.to_owned())
}

/// The path from the root of a hierarchy, without `..`: it must not lead out of it.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            _ => {}
        }
    }
    cleaned
}

/// Joins as if `base` were the root.
fn below(base: &Path, path: &Path) -> PathBuf {
    base.join(path.strip_prefix("/").unwrap_or(path))
}

/// Takes the weight out of the limits where it goes to `io.weight`: libcgroups' conversion is done in 16 bits and overflows.
fn take_io_weight(resources: &mut LinuxResources, dir: &Path) -> Option<u32> {
    if dir.join("io.bfq.weight").exists() {
        return None;
    }
    let block = resources.block_io_mut().as_mut()?;
    let weight = block.weight().filter(|&weight| weight > 0)?;
    block.set_weight(None);
    Some(io_weight(weight))
}

/// From the specification's range, 10 to 1000, to that of `io.weight`, 1 to 10,000; runc and crun convert alike.
fn io_weight(weight: u16) -> u32 {
    1 + u32::from(weight.saturating_sub(10)) * 9999 / 990
}

/// The v1 hierarchies that libcgroups joins, from `/proc/self/cgroup`: their controllers and the directory below the
/// root at which each is mounted.
fn joined_hierarchies(own: &str, is_mounted: impl Fn(&str) -> bool) -> Vec<(Vec<String>, String)> {
    own.lines()
        .filter_map(|line| {
            let list = line.split(':').nth(1)?;
            let controllers: Vec<String> = list.split(',').map(str::to_owned).collect();
            if let Some(base) = tracking(list) {
                return is_mounted(base).then(|| (controllers, base.to_owned()));
            }
            if !controllers.iter().any(|name| JOINED.contains(&name.as_str())) {
                return None;
            }
            let alone = || controllers.iter().find(|name| is_mounted(name)).cloned();
            let base = if is_mounted(list) { list.to_owned() } else { alone()? };
            Some((controllers, base))
        })
        .collect()
}

/// Where a hierarchy without controllers is mounted, by which systemd tracks its units: a container that stayed in the
/// unit of its caller would be ended with it.
fn tracking(list: &str) -> Option<&'static str> {
    match list {
        "" => Some(UNIFIED),
        "name=systemd" => Some("systemd"),
        _ => None,
    }
}

/// All pids in a cgroup and below; a directory that is gone has none.
fn pids_below(dir: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(dir.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|line| line.parse().ok()).collect())
        .unwrap_or_default();
    for child in children(dir) {
        pids.extend(pids_below(&child));
    }
    pids
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a cgroup, its children first. Exited processes hold it for a moment.
fn remove_tree(dir: &Path) -> io::Result<()> {
    // Most cgroups have no children: try before looking.
    let mut last = match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => error,
        _ => return Ok(()),
    };
    let gone = wait_for(|| {
        let removed = children(dir).iter().try_for_each(|child| remove_tree(child)).and_then(|()| fs::remove_dir(dir));
        match removed {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => {
                last = error;
                false
            }
        }
    });
    if gone { Ok(()) } else { Err(last) }
}

/// Asks again and again, with growing pauses: cgroup v1 gives no notice.
fn wait_for(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(200);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn write(file: &Path, value: &str) -> Result<(), Failure> {
    fs::write(file, value).map_err(Failure::file("write", file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroups_path_cannot_leave_its_hierarchy() {
        assert_eq!(clean(Path::new("/a/../../../etc")), Path::new("/etc"));
        assert_eq!(clean(Path::new("a/./b")), Path::new("/a/b"));
        assert_eq!(
            below(Path::new("/sys/fs/cgroup/cpu"), &clean(Path::new("../../x"))),
            Path::new("/sys/fs/cgroup/cpu/x")
        );
    }

    #[test]
    fn a_weight_is_converted_over_its_whole_range() {
        assert_eq!([10, 300, 500, 1000, 0].map(io_weight), [1, 2930, 4950, 10_000, 1]);
    }

    #[test]
    fn hierarchies_with_controllers_that_nobody_sets_are_not_ours() {
        let own = "12:cpu,cpuacct:/x\n3:freezer:/\n2:rdma:/\n1:name=systemd:/user\n0::/\n";
        let mounted = |name: &str| matches!(name, "cpu,cpuacct" | "freezer" | "systemd");
        let found = joined_hierarchies(own, mounted);
        let bases: Vec<&str> = found.iter().map(|(_, base)| base.as_str()).collect();
        assert_eq!(bases, ["cpu,cpuacct", "freezer", "systemd"]);
        let found = joined_hierarchies(own, |name| name == "unified");
        assert_eq!(found, [(vec![String::new()], "unified".to_owned())]);
        // The same hierarchy mounted under one of its names only.
        let found = joined_hierarchies(own, |name| name == "cpuacct");
        assert_eq!(found, [(vec!["cpu".to_owned(), "cpuacct".to_owned()], "cpuacct".to_owned())]);
    }

    #[test]
    fn systemd_paths_have_three_parts() {
        assert!(systemd_path(Path::new("system.slice:holdfast:a")).is_ok());
        assert!(systemd_path(Path::new("/a/b")).is_err());
        assert!(systemd_path(Path::new("a:b")).is_err());
    }
}
