//! The root filesystem's mounts: made in order, undone completely.
//!
//! Both directions can stall for seconds (network filesystems, a busy disk), and long overlay data needs a change of the
//! working directory, so they run in a short-lived child of the shim, never in its loop.
//!
//! A mount that only looks right once it is complete (idmapped ones, overlays of idmapped layers) is built in a mount
//! namespace of its own and then moved to its place in one step: nobody sees it half made, and whatever happens the
//! scaffolding goes away with the thread that needed it.
//!
//! Targets below the root filesystem are resolved by the kernel as if it were `/` (openat2(2), `RESOLVE_IN_ROOT`): a
//! symbolic link in an image leads nowhere outside.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::errno::Errno;
use nix::fcntl::{self, OFlag, OpenHow, ResolveFlag};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::{Deserialize, Serialize};

use super::loop_device::{self, LoopDevice, LoopError};
use super::mount_helper::{self, HelperError};
use super::mount_tree::{self, MountTree, UserNamespace};
use crate::lifecycle::Pid;
use crate::mount_options::{self, IdMap, MountOptions, OptionRefused};

/// How long a busy mount is tried, from the last progress on.
pub const BUSY_LIMIT: Duration = Duration::from_millis(2500);

/// What to mount, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// The process that asks, and without which nothing is to be mounted; 0: nobody.
    #[serde(default)]
    pub shim: Pid,
    /// The directory to mount onto, absolute; made if missing.
    pub rootfs: PathBuf,
    /// The mounts, in order.
    pub mounts: Vec<MountEntry>,
}

/// One mount, as in containerd's API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountEntry {
    /// The filesystem's type; anything for a bind mount.
    pub kind: String,
    /// The device or directory.
    pub source: String,
    /// A path inside the root filesystem; empty for the root filesystem itself.
    #[serde(default)]
    pub target: String,
    /// As for mount(8).
    #[serde(default)]
    pub options: Vec<String>,
}

/// Why a root filesystem was not mounted or not unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A path is relative, and the working directory may change.
    #[error("the root filesystem's path {0} is not absolute")]
    NotAbsolute(PathBuf),
    /// The directory cannot be made.
    #[error("cannot make the directory {path}")]
    MakeDirectory {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// An option is not performed.
    #[error("cannot mount {kind} {origin}")]
    Option {
        /// The filesystem's type.
        kind: String,
        /// The source.
        origin: String,
        /// Which, and why.
        source: OptionRefused,
    },
    /// The program that mounts such filesystems did not.
    #[error("cannot mount {kind} {origin}")]
    Helper {
        /// The filesystem's type.
        kind: String,
        /// The source.
        origin: String,
        /// Why.
        source: HelperError,
    },
    /// The image has no loop device.
    #[error("cannot mount {kind} {origin} through a loop device")]
    Loop {
        /// The filesystem's type.
        kind: String,
        /// The image.
        origin: String,
        /// Why.
        source: LoopError,
    },
    /// The source or a layer cannot be taken, or cannot show other owners.
    #[error("cannot {operation} {path} in order to mount {kind} {origin}")]
    Part {
        /// `make a user namespace for`, `copy` or `map the ids of`.
        operation: &'static str,
        /// Of what.
        path: PathBuf,
        /// The filesystem's type.
        kind: String,
        /// The source.
        origin: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// A mount that is built aside does not come to be.
    #[error("cannot {0} in order to build a mount")]
    Aside(&'static str, #[source] io::Error),
    /// The target cannot be found in the root filesystem.
    #[error("cannot find the mount target {target:?} in {rootfs}")]
    Target {
        /// As given.
        target: String,
        /// Where it should be.
        rootfs: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The data does not fit into the page that mount(2) takes.
    #[error("cannot mount {kind} {origin}: {length} bytes of options are more than mount(2) takes")]
    DataTooLong {
        /// The filesystem's type.
        kind: String,
        /// The source.
        origin: String,
        /// The length, shortened as far as possible.
        length: usize,
    },
    /// mount(2) failed.
    #[error("cannot {operation} {kind} {origin} on {target}")]
    Mount {
        /// `mount`, `set the propagation of` or `remount`.
        operation: &'static str,
        /// The filesystem's type.
        kind: String,
        /// The source.
        origin: String,
        /// The target, resolved.
        target: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A working directory cannot be entered or left.
    #[error("cannot change to the directory {path}")]
    ChangeDirectory {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The list of mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo")]
    MountInfo(#[source] io::Error),
    /// A path cannot be resolved.
    #[error("cannot resolve {path}")]
    Resolve {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A mount is still there.
    #[error("cannot unmount {path}")]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A mount failed and what was mounted before it could not all be undone.
    #[error("clean-up failed too ({undo}: {})", undo.source_text())]
    Undo {
        /// The failure.
        #[source]
        mount: Box<MountError>,
        /// The failure of the clean-up.
        undo: Box<MountError>,
    },
}

impl MountError {
    fn source_text(&self) -> String {
        std::error::Error::source(self).map(ToString::to_string).unwrap_or_default()
    }
}

/// Mounts everything that is asked for, in order, or nothing: after a failure what was mounted is unmounted in reverse.
/// No mounts means that the root filesystem is prepared elsewhere, and nothing is done.
///
/// The working directory may change for a moment: not for a process with other threads.
///
/// # Errors
/// See [`MountError`]; all of its variants but those of unmounting alone.
pub fn mount_all(req: &MountRequest) -> Result<(), MountError> {
    if req.mounts.is_empty() {
        return Ok(());
    }
    if !req.rootfs.is_absolute() {
        return Err(MountError::NotAbsolute(req.rootfs.clone()));
    }
    make_directory(&req.rootfs)?;
    let mut mounted = Vec::with_capacity(req.mounts.len());
    for entry in &req.mounts {
        if let Err(error) = mount_one(&req.rootfs, entry, &mut mounted) {
            return Err(undo(mounted, error));
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result<(), MountError> {
    match fs::DirBuilder::new().mode(0o711).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(MountError::MakeDirectory { path: path.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// Unmounts what `mount_all` mounted, newest first, and keeps both failures if that fails too.
fn undo(mounted: Vec<PathBuf>, error: MountError) -> MountError {
    for target in mounted.into_iter().rev() {
        if let Err(undo) = unmount_top(&target) {
            return MountError::Undo { mount: Box::new(error), undo: Box::new(undo) };
        }
    }
    error
}

/// Performs one entry. The target goes onto `mounted` as soon as there is something to undo.
fn mount_one(rootfs: &Path, entry: &MountEntry, mounted: &mut Vec<PathBuf>) -> Result<(), MountError> {
    let options = mount_options::parse(&entry.options).map_err(|source| MountError::Option {
        kind: entry.kind.clone(),
        origin: entry.source.clone(),
        source,
    })?;
    if let Some((helper, name)) = mount_helper::helper_of(&entry.kind) {
        return mount_by_helper(rootfs, entry, helper, name, mounted);
    }
    // Held until the mount uses it.
    let device = options.loop_device.then(|| attach(entry, &options)).transpose()?;
    Job { rootfs, entry, options, device }.perform(mounted)
}

fn attach(entry: &MountEntry, options: &MountOptions) -> Result<LoopDevice, MountError> {
    let read_only = options.flags.contains(MsFlags::MS_RDONLY);
    let manner = loop_device::Manner { read_only, direct_io: options.direct_io };
    loop_device::attach(Path::new(&entry.source), manner).map_err(|source| MountError::Loop {
        kind: entry.kind.clone(),
        origin: entry.source.clone(),
        source,
    })
}

fn mount_by_helper(
    rootfs: &Path,
    entry: &MountEntry,
    helper: &'static str,
    name: &str,
    mounted: &mut Vec<PathBuf>,
) -> Result<(), MountError> {
    let (_, _, target) = open_target(rootfs, &entry.target).map_err(|e| no_target(rootfs, entry, e))?;
    let before = mounts_at(&target)?;
    let ran = mount_helper::run(helper, name, entry, &target);
    let is_there = mounts_at(&target)? > before;
    if is_there {
        mounted.push(target);
    }
    let ran = if is_there { ran } else { ran.and(Err(HelperError::Nothing(helper))) };
    ran.map_err(|source| MountError::Helper { kind: entry.kind.clone(), origin: entry.source.clone(), source })
}

/// How many mounts lie upon each other at `target`.
fn mounts_at(target: &Path) -> Result<usize, MountError> {
    let info = fs::read("/proc/self/mountinfo").map_err(MountError::MountInfo)?;
    Ok(mount_points(&info).filter(|point| point == target).count())
}

fn no_target(rootfs: &Path, entry: &MountEntry, source: io::Error) -> MountError {
    MountError::Target { target: entry.target.clone(), rootfs: rootfs.to_owned(), source }
}

/// One mount on its way.
struct Job<'a> {
    rootfs: &'a Path,
    entry: &'a MountEntry,
    options: MountOptions,
    device: Option<LoopDevice>,
}

impl Job<'_> {
    fn perform(&self, mounted: &mut Vec<PathBuf>) -> Result<(), MountError> {
        let options = &self.options;
        let fresh = !options.flags.contains(MsFlags::MS_REMOUNT);
        let target = self.mount_filesystem()?;
        if fresh {
            mounted.push(target);
        }
        // The calls below change the mount that was just made, so the target is resolved anew each time: a descriptor
        // from before names the directory under it.
        if !options.propagation.is_empty() {
            self.call("set the propagation of", options.propagation, None)?;
        }
        let per_mount = MsFlags::MS_RDONLY
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOEXEC
            | MsFlags::MS_NOATIME
            | MsFlags::MS_NODIRATIME
            | MsFlags::MS_STRICTATIME;
        // The kernel takes no other flags together with MS_BIND; they need a remount of the new mount alone.
        if fresh && self.is_bind() && options.flags.intersects(per_mount) {
            self.remount((options.flags - MsFlags::MS_REC) | MsFlags::MS_REMOUNT)?;
        }
        if options.recursive_read_only {
            let (held, _, path) = self.target()?;
            mount_tree::make_read_only(held.as_fd()).map_err(|e| self.failed("make read-only", path, e))?;
        }
        Ok(())
    }

    fn is_bind(&self) -> bool {
        self.options.flags.contains(MsFlags::MS_BIND)
    }

    fn is_recursive(&self) -> bool {
        self.is_bind() && self.options.flags.contains(MsFlags::MS_REC)
    }

    fn source(&self) -> &Path {
        self.device.as_ref().map_or(Path::new(&self.entry.source), LoopDevice::path)
    }

    fn target(&self) -> Result<(OwnedFd, PathBuf, PathBuf), MountError> {
        open_target(self.rootfs, &self.entry.target).map_err(|e| no_target(self.rootfs, self.entry, e))
    }

    /// The first call for an entry; gives the target's real path.
    fn mount_filesystem(&self) -> Result<PathBuf, MountError> {
        if let Some(map) = &self.options.id_map {
            return self.mount_id_mapped(map);
        }
        let (flags, data) = (self.options.flags, &self.options.data);
        if data.len() < page_size() {
            return self.call("mount", flags, Some(data));
        }
        if self.entry.kind != "overlay" {
            return Err(self.too_long(data.len()));
        }
        match mount_options::compact_overlay(data) {
            Some(compact) if compact.data.len() < page_size() => {
                let directory = Path::new(&compact.directory);
                in_directory(directory, || self.call("mount", flags, Some(&compact.data)))
            }
            // With layers under short names of their own.
            _ => self.place(&self.build_aside(None)?),
        }
    }

    fn too_long(&self, length: usize) -> MountError {
        MountError::DataTooLong { kind: self.entry.kind.clone(), origin: self.entry.source.clone(), length }
    }

    /// An idmapped mount takes its map before it has a place. An overlay cannot have one: its lower layers get it, and
    /// the upper one belongs to the mapped owners already.
    fn mount_id_mapped(&self, map: &IdMap) -> Result<PathBuf, MountError> {
        let source = self.source();
        let users =
            mount_tree::user_namespace(map).map_err(|e| self.no_part("make a user namespace for", source, e))?;
        if self.entry.kind == "overlay" && !self.is_bind() {
            return self.place(&self.build_aside(Some(&users))?);
        }
        let recursive = self.is_recursive();
        let tree = if self.is_bind() {
            mount_tree::copy(source, recursive).map_err(|e| self.no_part("copy", source, e))?
        } else {
            self.build_aside(None)?
        };
        tree.map_ids(&users, recursive).map_err(|e| self.no_part("map the ids of", source, e))?;
        self.place(&tree)
    }

    fn place(&self, tree: &MountTree) -> Result<PathBuf, MountError> {
        let (held, _, path) = self.target()?;
        match tree.move_to(held.as_fd()) {
            Ok(()) => Ok(path),
            Err(e) => Err(self.failed("mount", path, e)),
        }
    }

    /// Mounts in a namespace of its own, which goes away with the thread that has it. An overlay's lower directories get
    /// short names there, and with `users` show other owners.
    fn build_aside(&self, users: Option<&UserNamespace>) -> Result<MountTree, MountError> {
        thread::scope(|scope| {
            let built = scope.spawn(|| self.build(users)).join();
            built.unwrap_or_else(|_| Err(MountError::Aside("run a thread", io::ErrorKind::Other.into())))
        })
    }

    fn build(&self, users: Option<&UserNamespace>) -> Result<MountTree, MountError> {
        fn aside(what: &'static str) -> impl Fn(Errno) -> MountError {
            move |e| MountError::Aside(what, e.into())
        }
        let none = None::<&str>;
        let (mut layers, mut data) = (Vec::new(), self.options.data.clone());
        if self.entry.kind == "overlay" {
            data = mount_options::map_layers(&data, |layer| {
                layers.push(self.layer(Path::new(layer), users)?);
                Ok((layers.len() - 1).to_string())
            })?;
        }
        if data.len() >= page_size() {
            return Err(self.too_long(data.len()));
        }
        // Not before the layers were found: /proc/self would lead back into the namespace that this thread leaves.
        unshare(CloneFlags::CLONE_NEWNS).map_err(aside("make a mount namespace"))?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).map_err(aside("make all mounts private"))?;
        // Covers the root filesystem's directory in this namespace alone, where there surely is no layer.
        let none_but_root = Some("mode=700");
        mount(Some("tmpfs"), self.rootfs, Some("tmpfs"), MsFlags::empty(), none_but_root)
            .map_err(aside("mount a directory for layers"))?;
        nix::unistd::chdir(self.rootfs).map_err(aside("enter the directory for layers"))?;
        for (number, layer) in layers.iter().enumerate() {
            let point = make_point(&number.to_string()).map_err(aside("make a directory for a layer"))?;
            layer.move_to(point.as_fd()).map_err(|e| MountError::Aside("mount a layer", e))?;
        }
        make_point("whole").map_err(aside("make a directory for the whole"))?;
        let (flags, data) = (self.options.flags, Some(data.as_str()).filter(|d| !d.is_empty()));
        mount(Some(self.source()), "whole", Some(self.entry.kind.as_str()), flags, data)
            .map_err(|e| self.failed("mount", self.rootfs.to_owned(), e.into()))?;
        mount_tree::copy(Path::new("whole"), false).map_err(|e| MountError::Aside("copy it", e))
    }

    fn layer(&self, path: &Path, users: Option<&UserNamespace>) -> Result<MountTree, MountError> {
        let layer = mount_tree::copy(path, false).map_err(|e| self.no_part("copy", path, e))?;
        if let Some(users) = users {
            layer.map_ids(users, false).map_err(|e| self.no_part("map the ids of", path, e))?;
        }
        Ok(layer)
    }

    fn no_part(&self, operation: &'static str, path: &Path, source: io::Error) -> MountError {
        let (kind, origin) = (self.entry.kind.clone(), self.entry.source.clone());
        MountError::Part { operation, path: path.to_owned(), kind, origin, source }
    }

    /// A remount of a bind mount. In a user namespace some flags of the source are locked (`EPERM`): then they stay.
    fn remount(&self, flags: MsFlags) -> Result<PathBuf, MountError> {
        match self.call("remount", flags, None) {
            Err(MountError::Mount { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {
                let (_, by_fd, path) = self.target()?;
                let has = statvfs(&by_fd).map_err(|e| self.failed("look at", path, e.into()))?.flags();
                self.call("remount", flags | flags_of(has), None)
            }
            done => done,
        }
    }

    /// Resolves the target and calls mount(2) on it; gives the target's real path.
    fn call(&self, operation: &'static str, flags: MsFlags, data: Option<&str>) -> Result<PathBuf, MountError> {
        let (_held, by_fd, path) = self.target()?;
        let data = data.filter(|d| !d.is_empty());
        match mount(Some(self.source()), &by_fd, Some(self.entry.kind.as_str()), flags, data) {
            Ok(()) => Ok(path),
            Err(e) => Err(self.failed(operation, path, e.into())),
        }
    }

    fn failed(&self, operation: &'static str, target: PathBuf, source: io::Error) -> MountError {
        let (kind, origin) = (self.entry.kind.clone(), self.entry.source.clone());
        MountError::Mount { operation, kind, origin, target, source }
    }
}

/// A directory to mount on, below the working directory.
fn make_point(name: &str) -> Result<OwnedFd, Errno> {
    nix::unistd::mkdir(name, Mode::S_IRWXU)?;
    fcntl::open(name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// What statvfs(3) says of a mount as flags of mount(2).
fn flags_of(has: FsFlags) -> MsFlags {
    let pairs = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
    ];
    pairs.into_iter().filter(|(of_mount, _)| has.contains(*of_mount)).map(|(_, flag)| flag).collect()
}

fn page_size() -> usize {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok().flatten().and_then(|n| n.try_into().ok()).unwrap_or(4096)
}

/// Runs `work` in another working directory and comes back.
fn in_directory<T>(path: &Path, work: impl FnOnce() -> Result<T, MountError>) -> Result<T, MountError> {
    let failed = |path: &Path, e: Errno| MountError::ChangeDirectory { path: path.to_owned(), source: e.into() };
    let here = Path::new(".");
    let back = fcntl::open(here, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let back = back.map_err(|e| failed(here, e))?;
    nix::unistd::chdir(path).map_err(|e| failed(path, e))?;
    let result = work();
    nix::unistd::fchdir(&back).map_err(|e| failed(here, e))?;
    result
}

/// Opens a path inside `rootfs` without leaving it: the descriptor, the way to name it in a system call, and its real
/// path.
fn open_target(rootfs: &Path, target: &str) -> io::Result<(OwnedFd, PathBuf, PathBuf)> {
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = fcntl::open(rootfs, directory, Mode::empty())?;
    let inside = Path::new(target).components().any(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    let fd = if inside { open_inside(&root, target)? } else { root };
    let by_fd = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let path = fs::read_link(&by_fd)?;
    Ok((fd, by_fd, path))
}

/// Resolves `target` as if `root` were `/`. The kernel gives up (EAGAIN) when anything on the machine is renamed or
/// mounted while it follows a `..`; then it is asked again.
fn open_inside(root: &OwnedFd, target: &str) -> Result<OwnedFd, Errno> {
    const ATTEMPTS: usize = 128;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut opened = fcntl::openat2(root, target, how);
    for _ in 1..ATTEMPTS {
        if !matches!(opened, Err(Errno::EAGAIN)) {
            break;
        }
        opened = fcntl::openat2(root, target, how);
    }
    opened
}

/// Removes every mount at or below `rootfs`, the deepest first and those that lie upon each other one by one. A path that
/// does not exist has none. Safe to repeat.
///
/// # Errors
/// [`MountError::Unmount`] names the first mount that stayed after [`BUSY_LIMIT`] without progress; others may be gone.
pub fn unmount_all(rootfs: &Path) -> Result<(), MountError> {
    let Some(rootfs) = real_path(rootfs)? else { return Ok(()) };
    let mut patience = Patience::new();
    loop {
        let info = fs::read("/proc/self/mountinfo").map_err(MountError::MountInfo)?;
        let targets = mounts_below(&info, &rootfs);
        let Some(first) = targets.first() else { return Ok(()) };
        let mut failure = None;
        let mut progress = false;
        for target in &targets {
            match drain(target, &mut progress) {
                Ok(()) => {}
                Err(e) => failure = failure.or(Some((target.clone(), e))),
            }
        }
        if progress {
            patience = Patience::new();
            continue;
        }
        // Nothing to blame but still listed: hidden under another mount, or locked by the kernel.
        let (path, errno) = failure.unwrap_or((first.clone(), Errno::EINVAL));
        if errno != Errno::EBUSY || !patience.wait() {
            return Err(MountError::Unmount { path, source: errno.into() });
        }
    }
}

/// Whether anything is mounted at or below `rootfs`. Touches nothing there: a filesystem that hangs stops nobody.
///
/// # Errors
/// As [`unmount_all`], but for [`MountError::Unmount`].
pub fn is_mounted(rootfs: &Path) -> Result<bool, MountError> {
    let Some(rootfs) = real_path(rootfs)? else { return Ok(false) };
    let info = fs::read("/proc/self/mountinfo").map_err(MountError::MountInfo)?;
    Ok(!mounts_below(&info, &rootfs).is_empty())
}

/// Unmounts `target` until nothing is mounted there.
fn drain(target: &Path, progress: &mut bool) -> Result<(), Errno> {
    loop {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => *progress = true,
            Err(Errno::EINTR) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

/// Unmounts the topmost mount at `target`.
fn unmount_top(target: &Path) -> Result<(), MountError> {
    let mut patience = Patience::new();
    loop {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) if patience.wait() => {}
            Err(Errno::EINTR) => {}
            Err(e) => return Err(MountError::Unmount { path: target.to_owned(), source: e.into() }),
        }
    }
}

/// The pauses between attempts on a busy mount: short at first, 50 ms at most, [`BUSY_LIMIT`] in all.
struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { until: Instant::now() + BUSY_LIMIT, pause: Duration::from_millis(2) }
    }

    /// Pauses; false when the time is up.
    fn wait(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(Duration::from_millis(50));
        true
    }
}

/// The path as mountinfo spells it: its parent resolved, its last component left alone. `None` if it does not exist.
fn real_path(path: &Path) -> Result<Option<PathBuf>, MountError> {
    let failed = |source| MountError::Resolve { path: path.to_owned(), source };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it has no parent directory")));
    };
    if !path.is_absolute() {
        return Err(MountError::NotAbsolute(path.to_owned()));
    }
    match fs::canonicalize(parent) {
        Ok(parent) => Ok(Some(parent.join(name))),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// The mount points in the order of their mounting. `info` is in the form of proc_pid_mountinfo(5).
fn mount_points(info: &[u8]) -> impl Iterator<Item = PathBuf> {
    info.split(|&b| b == b'\n')
        .filter_map(|line| line.split(|&b| b == b' ').nth(4))
        .map(|point| PathBuf::from(std::ffi::OsString::from_vec(unescape_octal(point))))
}

/// The mount points at or below `root`, the deepest first, each once.
fn mounts_below(info: &[u8], root: &Path) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = mount_points(info).filter(|point| point.starts_with(root)).collect();
    points.sort_by_cached_key(|point| std::cmp::Reverse((point.components().count(), point.clone())));
    points.dedup();
    points
}

/// Undoes the kernel's escapes (`\040` for a space, and so on).
pub(crate) fn unescape_octal(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if byte == b'\\' => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::unix::fs::symlink;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// A directory of its own per test, with its mounts gone at the end whatever happens. The tests take turns, since
    /// one of them changes the working directory.
    struct Scratch(PathBuf, #[allow(dead_code)] MutexGuard<'static, ()>);

    impl Scratch {
        /// `None`, said loudly, where mounts are not allowed.
        fn new(name: &str) -> Option<Self> {
            static TURN: Mutex<()> = Mutex::new(());
            if !nix::unistd::geteuid().is_root() {
                crate::skip::skip("needs root");
                return None;
            }
            let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            let dir = std::env::temp_dir().join(format!("holdfast mount-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Some(Self(dir, turn))
        }

        fn rootfs(&self) -> PathBuf {
            self.0.join("rootfs")
        }

        fn dir(&self, name: &str) -> String {
            let path = self.0.join(name);
            fs::create_dir_all(&path).unwrap();
            path.to_str().unwrap().to_owned()
        }

        fn mount(&self, mounts: Vec<MountEntry>) -> Result<(), MountError> {
            mount_all(&MountRequest { shim: 0, rootfs: self.rootfs(), mounts })
        }

        fn mounts(&self) -> usize {
            let info = fs::read("/proc/self/mountinfo").unwrap();
            let below = |line: &&[u8]| {
                let point = line.split(|&b| b == b' ').nth(4).map(unescape_octal).unwrap_or_default();
                PathBuf::from(std::ffi::OsString::from_vec(point)).starts_with(&self.0)
            };
            info.split(|&b| b == b'\n').filter(below).count()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = unmount_all(&self.0);
            if self.mounts() == 0 {
                let _ = fs::remove_dir_all(&self.0);
            }
        }
    }

    fn entry(kind: &str, source: &str, target: &str, options: &str) -> MountEntry {
        let options = options.split_whitespace().map(str::to_owned).collect();
        MountEntry { kind: kind.into(), source: source.into(), target: target.into(), options }
    }

    #[test]
    fn mountinfo_gives_the_deepest_mounts_first_with_escapes_undone() {
        let info = br"36 35 98:0 / /mnt rw - tmpfs tmpfs rw
37 36 98:0 / /mnt/a\040b rw - tmpfs tmpfs rw
38 37 98:0 / /mnt/a\040b/c\134d rw shared:1 - tmpfs tmpfs rw
39 36 98:0 / /mnt rw - tmpfs tmpfs rw
40 36 98:0 / /mnt2 rw - tmpfs tmpfs rw
broken
";
        let expected = [r"/mnt/a b/c\d", "/mnt/a b", "/mnt"].map(PathBuf::from);
        assert_eq!(mounts_below(info, Path::new("/mnt")), expected);
        assert_eq!(unescape_octal(br"a\0\99\0401"), br"a\0\99 1");
    }

    #[test]
    fn mounts_are_made_in_order_and_all_undone() {
        let Some(scratch) = Scratch::new("order") else { return };
        fs::write(Path::new(&scratch.dir("src")).join("file"), "x").unwrap();
        let src = scratch.dir("src");
        scratch
            .mount(vec![
                entry("tmpfs", "tmpfs", "", "mode=755 size=64k nosuid"),
                entry("bind", &src, "", "rbind rprivate"),
                entry("tmpfs", "tmpfs", "", "mode=700"),
            ])
            .unwrap();
        assert_eq!(scratch.mounts(), 3);
        unmount_all(&scratch.rootfs()).unwrap();
        assert_eq!(scratch.mounts(), 0);
        unmount_all(&scratch.rootfs()).unwrap();
        unmount_all(&scratch.0.join("missing/rootfs")).unwrap();
    }

    #[test]
    fn a_mount_below_one_that_was_covered_later_is_found() {
        let Some(scratch) = Scratch::new("covered") else { return };
        scratch.mount(vec![entry("tmpfs", "tmpfs", "", "")]).unwrap();
        fs::create_dir(scratch.rootfs().join("sub")).unwrap();
        scratch.mount(vec![entry("tmpfs", "tmpfs", "/sub", ""), entry("tmpfs", "tmpfs", "", "")]).unwrap();
        assert_eq!(scratch.mounts(), 3);
        unmount_all(&scratch.rootfs()).unwrap();
        assert_eq!(scratch.mounts(), 0);
    }

    #[test]
    fn a_read_only_bind_mount_is_read_only() {
        let Some(scratch) = Scratch::new("read-only") else { return };
        let src = scratch.dir("src");
        scratch.mount(vec![entry("bind", &src, "", "bind ro nodev")]).unwrap();
        let error = fs::write(scratch.rootfs().join("file"), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        fs::write(Path::new(&src).join("file"), "x").unwrap();
    }

    #[test]
    fn what_is_bound_recursively_read_only_is_so_all_the_way_down() {
        let Some(scratch) = Scratch::new("rro") else { return };
        let below = scratch.dir("src/below");
        mount(Some("tmpfs"), below.as_str(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let src = scratch.dir("src");
        scratch.mount(vec![entry("bind", &src, "", "rbind rro rprivate")]).unwrap();
        for file in ["file", "below/file"] {
            let error = fs::write(scratch.rootfs().join(file), "x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{file}");
            fs::write(Path::new(&src).join(file), "x").unwrap();
        }
    }

    #[test]
    fn a_failure_undoes_what_was_mounted_before_and_names_the_mount() {
        let Some(scratch) = Scratch::new("failure") else { return };
        let bad = [
            (entry("nosuchfs", "none", "", ""), "cannot mount nosuchfs none on "),
            (entry("tmpfs", "tmpfs", "missing", ""), "cannot find the mount target \"missing\" in "),
            (entry("ext4", "/x.img", "", "loop"), "cannot mount ext4 /x.img through a loop device"),
            (entry("tmpfs", "tmpfs", "", "X-containerd.x"), "cannot mount tmpfs tmpfs"),
            (
                entry("proc", "proc", "", "uidmap=0:1:1 gidmap=0:1:1"),
                "cannot map the ids of proc in order to mount proc proc",
            ),
            (entry("tmpfs", "tmpfs", "", &"x".repeat(5000)), "cannot mount tmpfs tmpfs: 5000 bytes of options"),
        ];
        for (bad, text) in bad {
            let good = [entry("tmpfs", "tmpfs", "", ""), entry("tmpfs", "tmpfs", "", "")];
            let error = scratch.mount(good.into_iter().chain([bad]).collect()).unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
            assert_eq!(scratch.mounts(), 0, "{error}");
        }
        let relative = MountRequest { shim: 0, rootfs: "rootfs".into(), mounts: vec![entry("tmpfs", "tmpfs", "", "")] };
        assert!(matches!(mount_all(&relative), Err(MountError::NotAbsolute(_))));
    }

    #[test]
    fn a_target_never_leaves_the_root_filesystem() {
        let Some(scratch) = Scratch::new("escape") else { return };
        let outside = scratch.dir("outside");
        scratch.mount(vec![entry("tmpfs", "tmpfs", "", "")]).unwrap();
        fs::create_dir_all(scratch.rootfs().join("inside")).unwrap();
        symlink(&outside, scratch.rootfs().join("absolute")).unwrap();
        symlink("../../outside", scratch.rootfs().join("relative")).unwrap();
        symlink("/inside", scratch.rootfs().join("good")).unwrap();
        for target in ["absolute", "relative", "../outside"] {
            let error = scratch.mount(vec![entry("tmpfs", "tmpfs", target, "")]).unwrap_err();
            assert!(matches!(error, MountError::Target { .. }), "{target}: {error}");
        }
        scratch.mount(vec![entry("tmpfs", "tmpfs", "good", "")]).unwrap();
        let info = fs::read("/proc/self/mountinfo").unwrap();
        let inside = fs::canonicalize(&scratch.0).unwrap().join("rootfs/inside");
        assert_eq!(mounts_below(&info, &inside), [inside]);
    }

    #[test]
    fn overlay_data_longer_than_a_page_is_shortened() {
        let Some(scratch) = Scratch::new("overlay") else { return };
        // overlay cannot use another overlay as its upper layer
        let base = scratch.dir("base");
        mount(Some("tmpfs"), base.as_str(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let name = "n".repeat(60);
        let layers: Vec<String> = (0..50).map(|i| scratch.dir(&format!("base/{name}{i}"))).collect();
        fs::write(Path::new(&layers[49]).join("deepest"), "x").unwrap();
        let (upper, work) = (scratch.dir("base/upper"), scratch.dir("base/work"));
        let data = format!("lowerdir={},upperdir={upper},workdir={work}", layers.join(":"));
        assert!(data.len() > 4096);
        let cwd = std::env::current_dir().unwrap();
        let overlay = MountEntry { options: vec![data], ..entry("overlay", "overlay", "", "") };
        scratch.mount(vec![overlay]).unwrap();
        assert!(scratch.rootfs().join("deepest").exists());
        assert_eq!(std::env::current_dir().unwrap(), cwd);
        unmount_all(&scratch.rootfs()).unwrap();
    }

    #[test]
    fn a_busy_mount_is_named_after_a_while() {
        let Some(scratch) = Scratch::new("busy") else { return };
        scratch.mount(vec![entry("tmpfs", "tmpfs", "", "")]).unwrap();
        let held = fs::File::create(scratch.rootfs().join("file")).unwrap();
        let error = unmount_all(&scratch.rootfs()).unwrap_err();
        assert!(matches!(&error, MountError::Unmount { path, .. } if path.ends_with("rootfs")), "{error}");
        drop(held);
        unmount_all(&scratch.rootfs()).unwrap();
        assert_eq!(scratch.mounts(), 0);
    }
}
