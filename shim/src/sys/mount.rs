//! The root filesystem's mounts: made in order, undone completely.
//!
//! Both directions can stall for seconds (network filesystems, a busy disk), and long overlay data needs a change of the
//! working directory, so they run in a short-lived child of the shim, never in its loop.
//!
//! Targets below the root filesystem are resolved by the kernel as if it were `/` (openat2(2), `RESOLVE_IN_ROOT`): a
//! symbolic link in an image leads nowhere outside.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::errno::Errno;
use nix::fcntl::{self, OFlag, OpenHow, ResolveFlag};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::mount_options::{self, MountOptions, OptionRefused};

/// How long a busy mount is tried, from the last progress on.
pub const BUSY_LIMIT: Duration = Duration::from_millis(2500);

/// What to mount, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
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
    /// A filesystem needs a helper program.
    #[error("cannot mount {origin}: filesystem type {kind} needs a mount helper, which is not run")]
    Helper {
        /// The filesystem's type.
        kind: String,
        /// The source.
        origin: String,
    },
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
    if entry.kind.starts_with("fuse.") || entry.kind.starts_with("fuse3.") {
        return Err(MountError::Helper { kind: entry.kind.clone(), origin: entry.source.clone() });
    }
    let options = mount_options::parse(&entry.options).map_err(|source| MountError::Option {
        kind: entry.kind.clone(),
        origin: entry.source.clone(),
        source,
    })?;
    let fresh = !options.flags.contains(MsFlags::MS_REMOUNT);
    let target = mount_filesystem(rootfs, entry, &options)?;
    if fresh {
        mounted.push(target);
    }
    // Both calls below change the mount that was just made, so the target is resolved anew each time: a descriptor from
    // before names the directory under it.
    if !options.propagation.is_empty() {
        change(rootfs, entry, "set the propagation of", options.propagation)?;
    }
    let per_mount = MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC
        | MsFlags::MS_NOATIME
        | MsFlags::MS_NODIRATIME
        | MsFlags::MS_STRICTATIME;
    // The kernel takes no other flags together with MS_BIND; they need a remount of the new mount alone.
    if fresh && options.flags.contains(MsFlags::MS_BIND) && options.flags.intersects(per_mount) {
        let flags = (options.flags - MsFlags::MS_REC) | MsFlags::MS_REMOUNT;
        change(rootfs, entry, "remount", flags)?;
    }
    Ok(())
}

/// The first call for an entry; gives the target's real path.
fn mount_filesystem(rootfs: &Path, entry: &MountEntry, options: &MountOptions) -> Result<PathBuf, MountError> {
    let page = page_size();
    if options.data.len() < page {
        return call(rootfs, entry, "mount", options.flags, Some(&options.data));
    }
    let too_long = |length| MountError::DataTooLong { kind: entry.kind.clone(), origin: entry.source.clone(), length };
    if entry.kind != "overlay" {
        return Err(too_long(options.data.len()));
    }
    let compact = mount_options::compact_overlay(&options.data).ok_or_else(|| too_long(options.data.len()))?;
    if compact.data.len() >= page {
        return Err(too_long(compact.data.len()));
    }
    in_directory(Path::new(&compact.directory), || call(rootfs, entry, "mount", options.flags, Some(&compact.data)))
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

/// Changes the topmost mount at the entry's target.
fn change(rootfs: &Path, entry: &MountEntry, operation: &'static str, flags: MsFlags) -> Result<(), MountError> {
    call(rootfs, entry, operation, flags, None).map(drop)
}

/// Resolves the target and calls mount(2) on it; gives the target's real path.
fn call(
    rootfs: &Path,
    entry: &MountEntry,
    operation: &'static str,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<PathBuf, MountError> {
    let (_held, by_fd, path) = open_target(rootfs, &entry.target).map_err(|source| MountError::Target {
        target: entry.target.clone(),
        rootfs: rootfs.to_owned(),
        source,
    })?;
    let data = data.filter(|d| !d.is_empty());
    match mount(Some(entry.source.as_str()), &by_fd, Some(entry.kind.as_str()), flags, data) {
        Ok(()) => Ok(path),
        Err(e) => Err(MountError::Mount {
            operation,
            kind: entry.kind.clone(),
            origin: entry.source.clone(),
            target: path,
            source: e.into(),
        }),
    }
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

/// The mount points at or below `root`, the deepest first, each once. `info` is in the form of proc_pid_mountinfo(5).
fn mounts_below(info: &[u8], root: &Path) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = info
        .split(|&b| b == b'\n')
        .filter_map(|line| line.split(|&b| b == b' ').nth(4))
        .map(|point| PathBuf::from(std::ffi::OsString::from_vec(unescape_octal(point))))
        .filter(|point| point.starts_with(root))
        .collect();
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
                eprintln!("SKIPPED: {name} needs root");
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
            mount_all(&MountRequest { rootfs: self.rootfs(), mounts })
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
    fn a_failure_undoes_what_was_mounted_before_and_names_the_mount() {
        let Some(scratch) = Scratch::new("failure") else { return };
        let bad = [
            (entry("nosuchfs", "none", "", ""), "cannot mount nosuchfs none on "),
            (entry("tmpfs", "tmpfs", "missing", ""), "cannot find the mount target \"missing\" in "),
            (entry("ext4", "/x.img", "", "loop"), "cannot mount ext4 /x.img"),
            (entry("fuse.sshfs", "h:/", "", ""), "cannot mount h:/: filesystem type fuse.sshfs needs a mount helper"),
            (entry("tmpfs", "tmpfs", "", &"x".repeat(5000)), "cannot mount tmpfs tmpfs: 5000 bytes of options"),
        ];
        for (bad, text) in bad {
            let good = [entry("tmpfs", "tmpfs", "", ""), entry("tmpfs", "tmpfs", "", "")];
            let error = scratch.mount(good.into_iter().chain([bad]).collect()).unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
            assert_eq!(scratch.mounts(), 0, "{error}");
        }
        let relative = MountRequest { rootfs: "rootfs".into(), mounts: vec![entry("tmpfs", "tmpfs", "", "")] };
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
