//! A container's control group: where it is, what it has used, which processes are in it, and the end of them all.
//!
//! The paths are captured while init lives ([`Paths::of_process`]): a dead process no longer tells. Reads of cgroup files
//! can take a while on a busy machine, so none of this belongs into the shim's loop.
//!
//! Invariant: nothing here ever lists or kills the processes of a cgroup that the shim itself is in or below
//! ([`CgroupError::Shared`]); such a cgroup is not the container's own.

pub(crate) mod oom;
mod v1;
mod v2;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use serde::{Deserialize, Serialize};

use crate::sys::{mount::unescape_octal, signal};

/// How long [`kill_all`] goes on when processes keep appearing or do not die.
pub const KILL_LIMIT: Duration = Duration::from_secs(2);

/// The names of the messages, as consumers compare them.
const V1_METRICS: &str = "io.containerd.cgroups.v1.Metrics";
const V2_METRICS: &str = "io.containerd.cgroups.v2.Metrics";

/// How many processes are held at a time: few enough for any limit on descriptors.
const HELD_AT_ONCE: usize = 128;

/// Where a container's control group is.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Paths {
    layout: Layout,
    /// Whether the shim was in this cgroup, or below it, when the paths were captured.
    shared: bool,
    /// Nothing was there when the paths were thought of: whatever is there now was made for the container.
    #[serde(default)]
    new: bool,
}

/// The host's kind of hierarchy. A hybrid host, whose controllers are on version 1, counts as that.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Layout {
    /// Controller (or named hierarchy) and directory, in the order of the kernel's list.
    V1(Vec<(String, PathBuf)>),
    /// The one directory.
    V2(PathBuf),
}

/// Why a cgroup could not be looked at or emptied.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The process is gone, or its cgroup cannot be read.
    #[error("cannot read the cgroup of process {pid}")]
    Process {
        /// Which.
        pid: u32,
        /// What the kernel says.
        source: io::Error,
    },
    /// The process's cgroup is in no hierarchy that is mounted here.
    #[error("the cgroup of process {0} is in no mounted hierarchy")]
    NotMounted(u32),
    /// The mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo")]
    MountInfo(#[source] io::Error),
    /// The cgroup was removed.
    #[error("cgroup {0} does not exist")]
    Gone(PathBuf),
    /// No memory controller is enabled in the cgroup.
    #[error("cgroup {0} has no memory controller")]
    WithoutMemory(PathBuf),
    /// A file of the cgroup cannot be read or written.
    #[error("cannot access {path}")]
    Access {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The cgroup holds the shim too, hence processes that are not the container's.
    #[error("cgroup {0} is not the container's own, the shim is in it too")]
    Shared(PathBuf),
    /// Processes are left in spite of SIGKILL.
    #[error("{count} processes are left in cgroup {path} after SIGKILL")]
    Survivors {
        /// The cgroup.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// The metrics do not encode.
    #[error("cannot encode the metrics of cgroup {path}")]
    Encode {
        /// The cgroup.
        path: PathBuf,
        /// What the encoder says.
        source: protobuf::Error,
    },
}

impl Paths {
    /// Finds the cgroup of a living process.
    ///
    /// The answer is what the kernel says, also when the process was never given a cgroup of its own; see
    /// [`Paths::is_shared`]. A zombie on a version 1 host is said to be in the root.
    ///
    /// # Errors
    /// [`CgroupError::Process`], [`CgroupError::NotMounted`], [`CgroupError::MountInfo`].
    pub fn of_process(pid: u32) -> Result<Self, CgroupError> {
        let process = |source| CgroupError::Process { pid, source };
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::MountInfo)?;
        let theirs = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(process)?;
        let ours = fs::read_to_string("/proc/self/cgroup").map_err(process)?;
        let layout = Layout::find(&theirs, &mounts).ok_or(CgroupError::NotMounted(pid))?;
        let own = Layout::find(&ours, &mounts);
        let shared = own.as_ref().is_some_and(|own| layout.holds(own));
        Ok(Self { layout, shared, new: false })
    }

    /// Where a container's cgroup will be made, by the absolute path that its specification gives. `None` if anything is
    /// there already, which may be somebody else's, or for a path in another form (systemd's, relative).
    pub fn to_be_made(cgroups_path: &str) -> Option<Self> {
        let wanted = Path::new(cgroups_path);
        let plain = wanted.components().skip(1).all(|c| matches!(c, std::path::Component::Normal(_)));
        if !wanted.has_root() || !plain || wanted.parent().is_none() || cgroups_path.contains('\n') {
            return None;
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let ours = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mut layout = Layout::find(&moved(&ours, cgroups_path), &mounts)?;
        if let Layout::V1(dirs) = &mut layout {
            // A hybrid host's other hierarchy: without controllers, and runtimes make a cgroup there all the same.
            let unified = mounts.lines().filter_map(CgroupMount::parse).find(|mount| mount.unified);
            let dir = unified.and_then(|mount| mount.resolve(cgroups_path));
            dirs.extend(dir.map(|dir| (String::new(), dir)));
        }
        let absent =
            layout.dirs().all(|dir| dir.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound));
        absent.then_some(Self { layout, shared: false, new: true })
    }

    /// The cgroup of that name, by an absolute path; `None` for a path in another form (systemd's, relative). Nothing need
    /// be there.
    pub(crate) fn at(path: &str) -> Option<Self> {
        let name = Path::new(path);
        let plain = name.components().skip(1).all(|c| matches!(c, std::path::Component::Normal(_)));
        if !name.has_root() || !plain || name.parent().is_none() || path.contains('\n') {
            return None;
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let ours = fs::read_to_string("/proc/self/cgroup").ok()?;
        let layout = Layout::find(&moved(&ours, path), &mounts)?;
        let shared = Layout::find(&ours, &mounts).is_some_and(|own| layout.holds(&own));
        Some(Self { layout, shared, new: false })
    }

    /// Where a process was found that is a container's, when it was known where its cgroup was [`Paths::to_be_made`].
    pub(crate) fn found_after(self, planned: Option<&Self>) -> Self {
        let as_planned = |planned: &Self| planned.new && planned.layout.processes() == self.layout.processes();
        Self { new: planned.is_some_and(as_planned), ..self }
    }

    /// Whether it was made for the container: see [`Paths::to_be_made`].
    pub(crate) fn is_new(&self) -> bool {
        self.new
    }

    /// Whether the shim is in this cgroup, or below it. Metrics of such a cgroup are true but not the container's alone.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// The directory of the unified hierarchy; `None` on a version 1 or hybrid host.
    pub fn unified(&self) -> Option<&Path> {
        match &self.layout {
            Layout::V2(dir) => Some(dir),
            Layout::V1(_) => None,
        }
    }

    /// The directory of a version 1 controller.
    pub fn controller(&self, name: &str) -> Option<&Path> {
        match &self.layout {
            Layout::V1(dirs) => find(dirs, name),
            Layout::V2(_) => None,
        }
    }

    /// The directory whose processes are the container's, if it still exists.
    fn existing(&self) -> Result<&Path, CgroupError> {
        let dir = self.layout.processes();
        if dir.exists() { Ok(dir) } else { Err(CgroupError::Gone(dir.to_owned())) }
    }

    fn exclusive(&self) -> Result<&Path, CgroupError> {
        let dir = self.existing()?;
        if self.shared { Err(CgroupError::Shared(dir.to_owned())) } else { Ok(dir) }
    }
}

/// `/proc/PID/cgroup` of a process in the cgroup of that name in every hierarchy.
fn moved(proc_cgroup: &str, to: &str) -> String {
    let lines = proc_cgroup.lines().filter_map(|line| {
        let (hierarchy, _) = line.match_indices(':').nth(1).map(|(at, _)| line.split_at(at))?;
        Some(format!("{hierarchy}:{to}\n"))
    });
    lines.collect()
}

fn find<'a>(dirs: &'a [(String, PathBuf)], name: &str) -> Option<&'a Path> {
    dirs.iter().find(|(controller, _)| controller == name).map(|(_, dir)| dir.as_path())
}

impl Layout {
    /// Combines `/proc/PID/cgroup` and `/proc/PID/mountinfo`, see cgroups(7). `None` if nothing of it is mounted.
    fn find(proc_cgroup: &str, mountinfo: &str) -> Option<Self> {
        let mounts: Vec<CgroupMount<'_>> = mountinfo.lines().filter_map(CgroupMount::parse).collect();
        let unified_only = mounts.iter().all(|m| m.unified)
            || mounts.iter().any(|m| m.unified && m.point == Path::new("/sys/fs/cgroup"));
        let mut v1 = Vec::new();
        for line in proc_cgroup.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let path = path.strip_suffix(" (deleted)").unwrap_or(path);
            match (controllers, unified_only) {
                ("", true) => return mounts.iter().filter(|m| m.unified).find_map(|m| m.resolve(path)).map(Self::V2),
                ("", false) | (_, true) => {}
                _ => {
                    for name in controllers.split(',') {
                        let dir = mounts.iter().filter(|m| m.has(name)).find_map(|m| m.resolve(path));
                        let name = name.strip_prefix("name=").unwrap_or(name);
                        v1.extend(dir.map(|dir| (name.to_owned(), dir)));
                    }
                }
            }
        }
        (!v1.is_empty()).then_some(Self::V1(v1))
    }

    /// The directory to ask for processes. Every OCI runtime puts a container into a cgroup of the devices controller.
    fn processes(&self) -> &Path {
        match self {
            Self::V2(dir) => dir,
            Self::V1(dirs) => ["devices", "pids", "memory", "freezer"]
                .into_iter()
                .find_map(|name| find(dirs, name))
                .unwrap_or_else(|| dirs.first().map_or(Path::new("/"), |(_, dir)| dir)),
        }
    }

    fn dirs(&self) -> impl Iterator<Item = &Path> {
        let (v1, v2) = match self {
            Self::V1(dirs) => (dirs.as_slice(), None),
            Self::V2(dir) => (&[][..], Some(dir)),
        };
        v1.iter().map(|(_, dir)| dir.as_path()).chain(v2.map(PathBuf::as_path))
    }

    /// Whether `other` is in the same cgroup or below.
    fn holds(&self, other: &Self) -> bool {
        other.processes().starts_with(self.processes())
    }
}

/// A mounted hierarchy.
struct CgroupMount<'a> {
    unified: bool,
    /// The cgroup that is mounted: not the root, in a container without a cgroup namespace.
    root: &'a str,
    point: PathBuf,
    /// The controllers, among other options.
    options: &'a str,
}

impl<'a> CgroupMount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        use std::os::unix::ffi::OsStringExt;
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let unified = match right.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let mut left = left.split(' ').skip(3);
        let root = left.next()?;
        let point = PathBuf::from(std::ffi::OsString::from_vec(unescape_octal(left.next()?.as_bytes())));
        Some(Self { unified, root, point, options: right.nth(1)? })
    }

    fn has(&self, controller: &str) -> bool {
        !self.unified && self.options.split(',').any(|o| o == controller)
    }

    /// The directory of a cgroup; `None` if it lies outside what is mounted.
    fn resolve(&self, cgroup: &str) -> Option<PathBuf> {
        let inside = Path::new(cgroup).strip_prefix(self.root).ok()?;
        let within = inside.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        within.then(|| if inside.as_os_str().is_empty() { self.point.clone() } else { self.point.join(inside) })
    }
}

/// The metrics, as the name of their message and its bytes. Controllers and files that are missing leave their fields
/// unset.
///
/// # Errors
/// [`CgroupError::Gone`], [`CgroupError::Encode`].
pub fn stats(paths: &Paths) -> Result<(String, Vec<u8>), CgroupError> {
    let dir = paths.existing()?;
    let (name, encoded) = match &paths.layout {
        Layout::V1(dirs) => (V1_METRICS, v1::metrics(dirs)),
        Layout::V2(dir) => (V2_METRICS, v2::metrics(dir)),
    };
    // Removed while it was read: the numbers would be a mixture.
    paths.existing()?;
    let value = encoded.map_err(|source| CgroupError::Encode { path: dir.to_owned(), source })?;
    Ok((name.to_owned(), value))
}

/// What is left of the metrics of a version 2 cgroup that is gone: its `memory.events`, which tell clients why init ended
/// (contract 3.11).
///
/// # Errors
/// [`CgroupError::Encode`].
pub(crate) fn last_stats(paths: &Paths, memory_events: &str) -> Result<(String, Vec<u8>), CgroupError> {
    let encoded = v2::last_metrics(memory_events);
    let value = encoded.map_err(|source| CgroupError::Encode { path: paths.layout.processes().to_owned(), source })?;
    Ok((V2_METRICS.to_owned(), value))
}

/// Moves a process into a cgroup that exists: on version 2 the one, on version 1 the one of that name in every hierarchy
/// that has it.
///
/// # Errors
/// As `open(2)` and `write(2)`; `NotFound` if no hierarchy has it.
pub fn join(cgroup: &str, pid: u32) -> io::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let name = cgroup.trim_start_matches('/');
    let procs = |hierarchy: &Path| hierarchy.join(name).join("cgroup.procs");
    if root.join("cgroup.controllers").exists() {
        return fs::write(procs(root), pid.to_string());
    }
    let mut found = false;
    for hierarchy in fs::read_dir(root)? {
        let procs = procs(&hierarchy?.path());
        if procs.exists() {
            fs::write(procs, pid.to_string())?;
            found = true;
        }
    }
    if found { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// The pids in the cgroup and those below it, in the shim's pid namespace.
///
/// # Errors
/// [`CgroupError::Gone`], [`CgroupError::Shared`], [`CgroupError::Access`].
pub fn pids(paths: &Paths) -> Result<Vec<u32>, CgroupError> {
    let mut pids = Vec::new();
    collect_pids(paths.exclusive()?, &mut pids)?;
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

fn collect_pids(dir: &Path, pids: &mut Vec<u32>) -> Result<(), CgroupError> {
    let access = |path: &Path, source| CgroupError::Access { path: path.to_owned(), source };
    let file = dir.join("cgroup.procs");
    match fs::read_to_string(&file) {
        Ok(text) => pids.extend(text.lines().filter_map(|l| l.parse::<u32>().ok())),
        Err(e) if vanished(&e) => return Ok(()),
        // A threaded cgroup lists its processes at the root of its threaded subtree, which is read too.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(e) => return Err(access(&file, e)),
    }
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if vanished(&e) => return Ok(()),
        Err(e) => return Err(access(dir, e)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_pids(&entry.path(), pids)?;
        }
    }
    Ok(())
}

/// A cgroup that is removed during a read answers with one of these.
fn vanished(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV)
}

/// Kills every process in the cgroup and below, and gives the number of those that were signalled. An empty or removed
/// cgroup counts 0. Version 2 does it in one step; on version 1 the list is read and killed until it is empty, for at
/// most [`KILL_LIMIT`]. A frozen cgroup is thawed, since the frozen do not die.
///
/// # Errors
/// [`CgroupError::Shared`], [`CgroupError::Access`], [`CgroupError::Survivors`].
pub fn kill_all(paths: &Paths) -> Result<usize, CgroupError> {
    let found = match pids(paths) {
        Err(CgroupError::Gone(_)) => return Ok(0),
        other => other?,
    };
    if let Some(dir) = paths.unified() {
        let file = dir.join("cgroup.kill");
        match fs::write(&file, "1") {
            Ok(()) => return Ok(found.len()),
            Err(e) if vanished(&e) => {} // before Linux 5.14
            Err(source) => return Err(CgroupError::Access { path: file, source }),
        }
    }
    thaw(paths);
    kill_each(paths)
}

/// Ends all processes in a cgroup that was [`Paths::to_be_made`] and removes it in every hierarchy, with those below. What
/// is not there counts as removed. What is busy, because a process in it has only just been killed, is tried again for at
/// most [`KILL_LIMIT`].
///
/// # Errors
/// [`CgroupError::Shared`] for any other, in which nothing is touched: it may be a hierarchy's root. As [`kill_all`].
/// [`CgroupError::Access`]: the first that stays; others may be gone.
pub fn remove(paths: &Paths) -> Result<(), CgroupError> {
    if !paths.new {
        return Err(CgroupError::Shared(paths.layout.processes().to_owned()));
    }
    kill_all(paths)?;
    let until = Instant::now() + KILL_LIMIT;
    for dir in paths.layout.dirs() {
        let mut pause = Duration::from_millis(1);
        while let Err(source) = remove_tree(dir) {
            if source.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= until {
                return Err(CgroupError::Access { path: dir.to_owned(), source });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// A cgroup's files go with its directory; only the directories below have to be removed before.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if vanished(&e) => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())) {
        remove_tree(&entry.path())?;
    }
    match fs::remove_dir(dir) {
        Err(e) if vanished(&e) => Ok(()),
        other => other,
    }
}

/// Best effort: if it fails the processes stay, and [`kill_each`] says so.
fn thaw(paths: &Paths) {
    let _ = match (paths.controller("freezer"), paths.unified()) {
        (Some(dir), _) => fs::write(dir.join("freezer.state"), "THAWED"),
        (None, Some(dir)) => fs::write(dir.join("cgroup.freeze"), "0"),
        (None, None) => Ok(()),
    };
}

fn kill_each(paths: &Paths) -> Result<usize, CgroupError> {
    let until = Instant::now() + KILL_LIMIT;
    let mut pause = Duration::from_millis(1);
    let mut killed = BTreeSet::new();
    loop {
        let left = match pids(paths) {
            Err(CgroupError::Gone(_)) => return Ok(killed.len()),
            other => other?,
        };
        if left.is_empty() {
            return Ok(killed.len());
        }
        if Instant::now() >= until {
            let path = paths.layout.processes().to_owned();
            return Err(CgroupError::Survivors { path, count: left.len() });
        }
        for some in left.chunks(HELD_AT_ONCE) {
            kill_held(paths, some, &mut killed);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Kills those of `listed` that are in the cgroup still when a descriptor of each is held: a pid that has passed to another
/// process since it was read is not among them.
fn kill_held(paths: &Paths, listed: &[u32], killed: &mut BTreeSet<u32>) {
    let held: Vec<_> = listed.iter().filter_map(|&pid| Some((pid, signal::hold(pid)?))).collect();
    let Ok(now) = pids(paths) else { return };
    for (pid, process) in held {
        if now.binary_search(&pid).is_ok() && process.kill() {
            killed.insert(pid);
        }
    }
}

/// Reads cgroup files one after the other through one buffer.
#[derive(Default)]
struct Files {
    text: String,
}

impl Files {
    /// The content; `None` if it cannot be read, which is as good as a controller that is not there.
    fn read(&mut self, dir: &Path, name: &str) -> Option<&str> {
        use std::io::Read;
        self.text.clear();
        fs::File::open(dir.join(name)).and_then(|mut f| f.read_to_string(&mut self.text)).ok()?;
        Some(&self.text)
    }

    /// A file with one number; `max` is the largest.
    fn number(&mut self, dir: &Path, name: &str) -> Option<u64> {
        self.read(dir, name).and_then(number)
    }
}

fn number(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        digits => digits.parse().ok(),
    }
}

/// The lines of a file in the form `key value`.
fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, number(value)?))
    })
}

/// The page sizes for which the kernel can have huge pages, in the spelling of the hugetlb controller (`2MB`).
fn huge_page_sizes() -> Vec<String> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let mut kib: Vec<u64> = entries
        .filter_map(|e| e.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok())
        .collect();
    kib.sort_unstable();
    kib.into_iter().map(huge_page_name).collect()
}

fn huge_page_name(kib: u64) -> String {
    match kib {
        _ if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        _ if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    }
}

/// One line of `rdma.current` or `rdma.max`: device, handles, objects. `max` is the largest number.
fn rdma_entries(text: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let device = words.next()?;
        let (mut handles, mut objects) = (0, 0);
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            let value = number(value).map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX));
            match key {
                "hca_handle" => handles = value,
                "hca_object" => objects = value,
                _ => {}
            }
        }
        Some((device, handles, objects))
    })
}

/// Control groups as directories of plain files, and messages as figures by name: for the tests of both versions.
#[cfg(test)]
mod fixture {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;
    use std::fs;
    use std::path::PathBuf;

    use protobuf::MessageDyn;
    use protobuf::reflect::{ReflectFieldRef, ReflectValueRef};

    /// A directory with files, removed when dropped.
    pub(super) struct Directory(pub(super) PathBuf);

    impl Directory {
        pub(super) fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("holdfast-cgroup-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir(&dir).unwrap();
            Self(dir)
        }

        pub(super) fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }

        /// A file of lines `key value`; the values are numbered, from `first` on. Gives them by key.
        pub(super) fn number(&self, name: &str, keys: &str, first: u64) -> BTreeMap<String, u64> {
            let numbered: Vec<_> = keys.split_whitespace().zip(first..).collect();
            self.write(name, &numbered.iter().map(|(key, n)| format!("{key} {n}\n")).collect::<String>());
            numbered.into_iter().map(|(key, n)| (key.to_owned(), n)).collect()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Every figure that a message can have, by name, zeros included; of a list the first element's.
    pub(super) fn figures(message: &dyn MessageDyn) -> BTreeMap<String, String> {
        let mut figures = BTreeMap::new();
        collect("", message, &mut figures);
        figures
    }

    fn collect(prefix: &str, message: &dyn MessageDyn, figures: &mut BTreeMap<String, String>) {
        for field in message.descriptor_dyn().fields() {
            let name = format!("{prefix}{}", field.name());
            let value = match field.get_reflect(message) {
                ReflectFieldRef::Optional(value) => value.value().map(|v| v.to_box()),
                ReflectFieldRef::Repeated(list) if !list.is_empty() => Some(list.get(0).to_box()),
                ReflectFieldRef::Repeated(_) | ReflectFieldRef::Map(_) => None,
            };
            match value.as_ref().map(|v| v.as_value_ref()) {
                Some(ReflectValueRef::Message(inner)) => collect(&format!("{name}."), &*inner, figures),
                Some(value) => drop(figures.insert(name, value.to_string())),
                None => drop(figures.insert(name, String::new())),
            }
        }
    }

    /// The names of the figures that nothing was read for.
    pub(super) fn unset(figures: &BTreeMap<String, String>) -> Vec<&str> {
        let unset = figures.iter().filter(|(_, value)| value.is_empty() || *value == "0");
        unset.map(|(name, _)| name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::process::{Child, Command, Stdio};

    const HYBRID_MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const UNIFIED_MOUNTS: &str = "26 23 0:24 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";

    #[test]
    fn only_a_plain_absolute_path_says_where_a_cgroup_will_be() {
        for path in ["relative", "", "/", "/a/../b", "system.slice:holdfast:c1", "/a\nb"] {
            assert_eq!(Paths::to_be_made(path), None, "{path:?}");
        }
        let other = Paths { layout: Layout::V2("/nowhere".into()), shared: false, new: false };
        assert!(matches!(remove(&other), Err(CgroupError::Shared(_))));
        let dir = fixture::Directory::new("not-new");
        dir.write("cgroup.procs", "");
        let other = Paths { layout: Layout::V2(dir.0.clone()), shared: false, new: false };
        assert!(matches!(remove(&other), Err(CgroupError::Shared(_))));
        assert!(!dir.0.join("cgroup.kill").exists(), "nobody in it is ended either");
        let there = "4:cpu,cpuacct:/user:1\n1:name=systemd:/\n0::/x\n";
        assert_eq!(moved(there, "/k/c1"), "4:cpu,cpuacct:/k/c1\n1:name=systemd:/k/c1\n0::/k/c1\n");
    }

    #[test]
    fn a_cgroup_that_was_there_before_is_not_taken_for_the_containers_when_its_process_is_in_it() {
        let at = |dir: &str, new| Paths { layout: Layout::V2(dir.into()), shared: false, new };
        let planned = at("/k/c1", true);
        assert!(at("/k/c1", false).found_after(Some(&planned)).is_new());
        assert!(!at("/k/other", false).found_after(Some(&planned)).is_new());
        assert!(!at("/k/c1", false).found_after(None).is_new());
        assert!(!at("/k/c1", false).found_after(Some(&at("/k/c1", false))).is_new());
    }

    #[test]
    fn a_hybrid_host_counts_as_version_one() {
        let process = "9:name=systemd:/u\n5:devices:/c/1\n4:memory:/c/1\n1:cpu,cpuacct:/c/1\n8:pids:/c/1\n0::/c/1\n";
        let layout = Layout::find(process, HYBRID_MOUNTS).unwrap();
        let expected = [
            ("systemd", "/sys/fs/cgroup/systemd/u"),
            ("devices", "/sys/fs/cgroup/devices/c/1"),
            ("memory", "/sys/fs/cgroup/memory/c/1"),
            ("cpu", "/sys/fs/cgroup/cpu,cpuacct/c/1"),
            ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/c/1"),
        ];
        assert_eq!(layout, Layout::V1(expected.map(|(n, d)| (n.to_owned(), d.into())).into()));
        assert_eq!(layout.processes(), Path::new("/sys/fs/cgroup/devices/c/1"));
    }

    #[test]
    fn a_unified_host_has_one_directory() {
        let find = |process| Layout::find(process, UNIFIED_MOUNTS);
        assert_eq!(find("0::/system.slice/c1\n"), Some(Layout::V2("/sys/fs/cgroup/system.slice/c1".into())));
        assert_eq!(find("1:name=x:/y\n0::/\n"), Some(Layout::V2("/sys/fs/cgroup".into())));
        assert_eq!(find("0::/c1 (deleted)\n"), Some(Layout::V2("/sys/fs/cgroup/c1".into())));
        assert_eq!(find("0::/../other\n"), None, "outside of our cgroup namespace");
        assert_eq!(find(""), None);
        assert_eq!(Layout::find("0::/x\n", ""), None);
    }

    #[test]
    fn a_mounted_subtree_is_taken_off_the_path() {
        let mounts = "26 23 0:24 /docker/a\\040b /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let mounts = mounts.replace("a\\040b", "ab");
        let find = |process| Layout::find(process, &mounts);
        assert_eq!(find("0::/docker/ab/c1\n"), Some(Layout::V2("/sys/fs/cgroup/c1".into())));
        assert_eq!(find("0::/docker/abc\n"), None);
    }

    #[test]
    fn a_cgroup_that_holds_the_shim_is_shared() {
        let find = |process| Layout::find(process, UNIFIED_MOUNTS).unwrap();
        let own = find("0::/system.slice/containerd.service\n");
        for (theirs, shared) in [
            ("0::/\n", true),
            ("0::/system.slice\n", true),
            ("0::/system.slice/containerd.service\n", true),
            ("0::/system.slice/containerd.service/c1\n", false),
            ("0::/c1\n", false),
        ] {
            assert_eq!(find(theirs).holds(&own), shared, "{theirs}");
        }
    }

    #[test]
    fn numbers_pairs_and_names_are_read() {
        assert_eq!([number("12\n"), number("max\n"), number(""), number("-1")], [Some(12), Some(u64::MAX), None, None]);
        let got: Vec<_> = pairs("a 1\nbroken\nb max\nc x\n").collect();
        assert_eq!(got, [("a", 1), ("b", u64::MAX)]);
        assert_eq!([64, 2048, 1 << 20].map(huge_page_name), ["64KB", "2MB", "1GB"]);
        let got: Vec<_> = rdma_entries("mlx4_0 hca_handle=2 hca_object=max\nocrdma1 hca_handle=3\n").collect();
        assert_eq!(got, [("mlx4_0", 2, u32::MAX), ("ocrdma1", 3, 0)]);
    }

    /// A cgroup on this machine with one child process in it.
    struct Live {
        dirs: Vec<PathBuf>,
        child: Child,
    }

    impl Live {
        /// `None`, said loudly, where cgroups cannot be made.
        fn new(name: &str, kind: &str) -> Option<Self> {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let name = format!("holdfast-test-{}-{name}", std::process::id());
            let wanted = |m: &CgroupMount<'_>| if kind == "v2" { m.unified } else { !m.unified };
            let mounts = mounts.lines().filter_map(CgroupMount::parse).filter(wanted);
            let dirs: Vec<PathBuf> = mounts.filter(|m| !m.has("cpuset")).map(|m| m.point.join(&name)).collect();
            if dirs.is_empty() || dirs.iter().any(|d| fs::create_dir(d).is_err()) {
                crate::skip::skip(&format!("needs root and a hierarchy of {kind}"));
                return None;
            }
            let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
            for dir in &dirs {
                fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
            }
            Some(Self { dirs, child })
        }
    }

    impl Drop for Live {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            for dir in &self.dirs {
                let _ = fs::remove_dir(dir.join("below"));
                let _ = fs::remove_dir(dir);
            }
        }
    }

    #[test]
    fn a_version_one_cgroup_is_found_measured_listed_and_killed() {
        let Some(mut live) = Live::new("v1", "v1") else { return };
        let pid = live.child.id();
        let paths = Paths::of_process(pid).unwrap();
        if paths.unified().is_some() {
            crate::skip::skip("needs a hierarchy of v1 with all controllers");
            return;
        }
        assert!(!paths.is_shared());
        assert_eq!(pids(&paths).unwrap(), [pid]);
        let (name, value) = stats(&paths).unwrap();
        assert_eq!(name, "io.containerd.cgroups.v1.Metrics");
        let metrics: containerd_shim_protos::cgroups::metrics::Metrics =
            protobuf::Message::parse_from_bytes(&value).unwrap();
        assert_eq!(metrics.pids.current, 1);
        assert!(metrics.memory.usage.limit > 0);
        assert!(!metrics.cpu.usage.per_cpu.is_empty());

        let freezer = paths.controller("freezer").unwrap();
        fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
        assert_eq!(kill_all(&paths).unwrap(), 1);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&live.child.wait().unwrap()), Some(libc::SIGKILL));
        assert_eq!(kill_all(&paths).unwrap(), 0);
        for dir in &live.dirs {
            fs::remove_dir(dir).unwrap();
        }
        assert!(matches!(stats(&paths), Err(CgroupError::Gone(_))));
        assert!(matches!(pids(&paths), Err(CgroupError::Gone(_))));
        assert_eq!(kill_all(&paths).unwrap(), 0);
    }

    #[test]
    fn a_version_two_cgroup_is_measured_listed_and_killed_with_what_is_below() {
        let Some(mut live) = Live::new("v2", "v2") else { return };
        let dir = live.dirs[0].clone();
        fs::create_dir(dir.join("below")).unwrap();
        fs::write(dir.join("below/cgroup.procs"), live.child.id().to_string()).unwrap();
        let paths = Paths { layout: Layout::V2(dir.clone()), shared: false, new: false };
        assert_eq!(pids(&paths).unwrap(), [live.child.id()]);
        let (name, value) = stats(&paths).unwrap();
        assert_eq!(name, "io.containerd.cgroups.v2.Metrics");
        let metrics: containerd_shim_protos::cgroups_v2::metrics::Metrics =
            protobuf::Message::parse_from_bytes(&value).unwrap();
        assert!(metrics.cpu.is_some());
        assert_eq!(kill_all(&paths).unwrap(), 1);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&live.child.wait().unwrap()), Some(libc::SIGKILL));
    }

    #[test]
    fn the_shims_own_cgroup_is_neither_listed_nor_killed() {
        let Ok(paths) = Paths::of_process(std::process::id()) else {
            crate::skip::skip("there are no control groups");
            return;
        };
        assert!(paths.is_shared());
        assert!(matches!(pids(&paths), Err(CgroupError::Shared(_))));
        assert!(matches!(kill_all(&paths), Err(CgroupError::Shared(_))));
        assert!(stats(&paths).is_ok());
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        let error = Paths::of_process(u32::MAX - 1).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the cgroup of process 4294967294");
    }

    #[test]
    fn paths_survive_a_freeze() {
        let paths = Paths { layout: Layout::V1(vec![("memory".into(), "/x".into())]), shared: true, new: false };
        let text = serde_json::to_string(&paths).unwrap();
        assert_eq!(text, r#"{"layout":{"v1":[["memory","/x"]]},"shared":true,"new":false}"#);
        assert_eq!(serde_json::from_str::<Paths>(&text).unwrap(), paths);
        // As earlier versions wrote it.
        assert_eq!(serde_json::from_str::<Paths>(&text.replace(r#","new":false"#, "")).unwrap(), paths);
    }
}
