//! The tree of spill files: whose they are, how much they take together, and how much the machine has left for them.
//!
//! ```text
//!   <spill dir>/<instance>/<namespace>/<id>/   made whole under another name, then renamed: never seen half made
//!       owner                                  whose it is, see `Owner`
//!       init.stdout, exec.<exec id>.stderr     one file for each stream that has spilled
//! ```
//!
//! Several shims use the tree at once, and no lock lies between them. A directory is judged by its owner alone: as long as
//! that shim lives it is left alone, whatever else is the case, so that a container which is just being made or deleted
//! never loses anything. What is judged is opened first and emptied through that descriptor; the name is removed only if
//! the directory behind it is empty, so that a successor who has put its own there in between keeps it.
//!
//! Nothing below the spill directory is followed if it is a symbolic link; directories are 0700, files 0600, both ours. Only
//! what has the name of a spill is ever removed: a spill directory that was chosen badly is not emptied. All calls block as
//! long as the disk does.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use holdfast_proto::record::{self, ReadError, Record};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use serde::{Deserialize, Serialize};

use super::policy::OutputSettings;
use crate::record::boot_id;
use crate::sys::process::start_time;

/// The file that says whose a directory is.
const OWNER: &str = "owner";
/// The longest of them that is read, in bytes.
const OWNER_LIMIT: u64 = 64 << 10;
/// The beginning of the name of a directory that is being made; no id begins like that.
const UNFINISHED: &str = ".new-";
/// How much a stream may grow before the tree is looked at again, in bytes. So much for each stream that grows at the same
/// moment may the total bound be passed.
pub const GRANT: u64 = 4 << 20;
/// The least that is looked for, in bytes, so that a tree that is nearly full is not looked at for every line.
const LEAST_GRANT: u64 = 64 << 10;
/// What `st_blocks` counts, in bytes, stat(3type).
const BLOCK: u64 = 512;
/// How often an attempt to make a directory is repeated that met with somebody else's.
const ATTEMPTS: u32 = 8;

/// Where the spills of one container are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The root of the tree.
    pub spill_dir: PathBuf,
    /// The run-time tree in which the container's record is.
    pub run_dir: PathBuf,
    /// Under which name the records are filed.
    pub instance: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
}

/// Whose a directory is: a shim, and the record that outlives it until somebody has cleaned up after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    boot_id: String,
    pid: u32,
    /// See [`start_time`].
    start_time: u64,
    /// In which the pid counts, as the link `/proc/PID/ns/pid` says it.
    pid_namespace: String,
    run_dir: PathBuf,
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bound {
    /// The stream has reached its own limit.
    Limit,
    /// All spills together have reached their limit.
    Total,
    /// The filesystem has reached the floor of free space.
    Floor,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Limit => "limit",
            Self::Total => "total",
            Self::Floor => "floor",
        })
    }
}

/// The file systems and the tree, as one stream that grows sees them: how much it may grow before it asks again.
#[derive(Debug, Default)]
pub struct Allowance {
    left: u64,
}

impl Allowance {
    /// How many of `wanted` bytes may be written now, at least one; or at which of the machine's bounds it is.
    ///
    /// # Errors
    /// As `open(2)`, `getdents(2)` and `statvfs(3)`, of a tree that cannot be looked at.
    pub fn ask(&mut self, wanted: u64, settings: &OutputSettings) -> io::Result<Result<u64, Bound>> {
        if self.left == 0 {
            match room(settings)? {
                Ok(room) => self.left = grant(room),
                Err(bound) => return Ok(Err(bound)),
            }
        }
        Ok(Ok(self.left.min(wanted)))
    }

    /// So much was written.
    pub fn used(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
    }
}

/// The less there is, the smaller the parts: others may be asking at the same time.
fn grant(room: u64) -> u64 {
    (room / 4).clamp(LEAST_GRANT, GRANT).min(room)
}

/// How many bytes all streams together may still grow, never 0.
fn room(settings: &OutputSettings) -> io::Result<Result<u64, Bound>> {
    let root = open_root(&settings.spill_dir)?;
    let below_total = settings.spill_total.saturating_sub(usage_of(&root)?);
    if below_total == 0 {
        return Ok(Err(Bound::Total));
    }
    let above_floor = above_floor(&root, settings.free_floor_percent)?;
    if above_floor == 0 {
        return Ok(Err(Bound::Floor));
    }
    Ok(Ok(below_total.min(above_floor)))
}

fn above_floor(root: &OwnedFd, percent: u8) -> io::Result<u64> {
    let filesystem = fstatvfs(root)?;
    let floor = u128::from(filesystem.blocks()) * u128::from(percent) / 100;
    let above = u128::from(filesystem.blocks_available()).saturating_sub(floor);
    Ok(u64::try_from(above * u128::from(filesystem.fragment_size())).unwrap_or(u64::MAX))
}

/// How much all spills take on disk, in bytes. 0 of a tree that is not there.
///
/// # Errors
/// As `open(2)` and `getdents(2)`.
pub fn usage(spill_dir: &Path) -> io::Result<u64> {
    match open_dir(spill_dir) {
        Ok(root) => usage_of(&root),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e),
    }
}

fn usage_of(root: &OwnedFd) -> io::Result<u64> {
    let mut sum = 0;
    each_container(root, |_, _, dir| {
        sum += bytes_in(dir)?;
        Ok(())
    })?;
    Ok(sum)
}

fn bytes_in(dir: &OwnedFd) -> io::Result<u64> {
    let mut sum = 0;
    for name in names(dir)? {
        sum += look_at(dir, &name)?.map_or(0, |file| bytes_of(&file));
    }
    Ok(sum)
}

fn bytes_of(file: &FileStat) -> u64 {
    u64::try_from(file.st_blocks).unwrap_or(0) * BLOCK
}

/// Removes what belongs to no task any more: its shim is of another boot, or it is dead and its record gone. Says of each
/// directory that was swept how much it held, in bytes on disk, or why it was left: it cannot be judged, or not removed.
///
/// # Errors
/// As `open(2)` and `getdents(2)`, where the walk had to end.
pub fn sweep(spill_dir: &Path, say: &mut dyn FnMut(&Path, io::Result<u64>)) -> io::Result<()> {
    let root = match open_dir(spill_dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        root => root?,
    };
    let boot = boot_id();
    each_container(&root, |parent, path, dir| {
        let name = path.file_name().unwrap_or_default();
        let removed = match is_orphan(dir, path, &boot) {
            Ok(true) => remove(parent, name, dir).map(Some),
            Ok(false) => Ok(None),
            Err(e) => Err(e),
        };
        if let Some(removed) = removed.transpose() {
            say(path, removed);
        }
        Ok(())
    })
}

/// What is said of a directory that was swept.
pub fn in_words(path: &Path, swept: &io::Result<u64>) -> String {
    match swept {
        Ok(bytes) => format!("removed output of {}, which is gone: {bytes} bytes that nobody read", path.display()),
        Err(e) => format!("cannot sweep output of {}, leaving it: {e}", path.display()),
    }
}

/// One thread at a time makes or removes files: who removes the last one takes the directory along, in which another may be
/// about to make one.
fn alone() -> MutexGuard<'static, ()> {
    static CHANGES: Mutex<()> = Mutex::new(());
    CHANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sweeps once in the life of a process.
fn sweep_first(spill_dir: &Path) {
    static SWEPT: AtomicBool = AtomicBool::new(false);
    if SWEPT.swap(true, Ordering::Relaxed) {
        return;
    }
    let done = sweep(spill_dir, &mut |path, swept| tracing::warn!("{}", in_words(path, &swept)));
    if let Err(e) = done {
        tracing::warn!(spill_dir = %spill_dir.display(), error = %e, "cannot sweep, ignoring");
    }
}

/// `path` is relative to the spill directory.
fn is_orphan(dir: &OwnedFd, path: &Path, boot: &str) -> io::Result<bool> {
    let name = path.file_name().unwrap_or_default();
    if name.as_bytes().starts_with(UNFINISHED.as_bytes()) {
        // It may have no owner yet.
        return Ok(!maker_lives(name));
    }
    match Owner::read(dir)? {
        Some(owner) => Ok(!owner.may_need_it(path, boot)),
        // Whoever lives has written it whole before the directory got its name. It can only be missing or damaged if the
        // machine went down before it was on the disk. Or this is no such directory at all.
        None => Ok(names(dir)?.iter().any(|name| is_stream(name))),
    }
}

/// Whether the process that has made such a name is there.
fn maker_lives(name: &OsStr) -> bool {
    let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(UNFINISHED)) else { return false };
    let mut parts = rest.split('-').map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(start))) = (parts.next(), parts.next()) else { return false };
    u32::try_from(pid).is_ok_and(|pid| start_time(pid) == Some(start))
}

impl Owner {
    fn this_process(run_dir: &Path) -> Self {
        let pid = std::process::id();
        Self {
            boot_id: boot_id(),
            pid,
            start_time: start_time(pid).unwrap_or(0),
            pid_namespace: pid_namespace(),
            run_dir: run_dir.to_owned(),
        }
    }

    /// None if there is none, or one that is damaged.
    fn read(dir: &OwnedFd) -> io::Result<Option<Self>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(dir, OWNER, flags, Mode::empty()) {
            Err(Errno::ENOENT | Errno::ELOOP) => return Ok(None),
            file => file?,
        };
        if !is_kind(&fstat(&file)?, SFlag::S_IFREG) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        File::from(file).take(OWNER_LIMIT).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes).ok())
    }

    fn may_need_it(&self, path: &Path, boot: &str) -> bool {
        if self.boot_id != boot {
            return false;
        }
        // Of another container's processes, nothing can be told from here.
        let same_pids = self.pid_namespace == pid_namespace();
        !same_pids || start_time(self.pid) == Some(self.start_time) || self.has_record(path)
    }

    /// Whether somebody will still come to clean up after the shim. A record of another shim is of a container that has the
    /// same name.
    fn has_record(&self, path: &Path) -> bool {
        let path = self.run_dir.join("tasks").join(path).join(record::FILE_NAME);
        match Record::read(&path) {
            Ok(record) => (record.shim.pid, record.shim.start_time) == (self.pid, self.start_time),
            Err(ReadError::Io(_, e)) => !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
            Err(ReadError::Malformed(..) | ReadError::Newer { .. }) => true,
        }
    }
}

fn pid_namespace() -> String {
    fs::read_link("/proc/self/ns/pid").map(|link| link.to_string_lossy().into_owned()).unwrap_or_default()
}

impl Home {
    /// The directory.
    pub fn path(&self) -> PathBuf {
        self.spill_dir.join(&self.instance).join(&self.namespace).join(&self.id)
    }

    /// Makes a file that is not there, with the directories above it.
    ///
    /// # Errors
    /// As `mkdir(2)`, `rename(2)` and `open(2)`; `AlreadyExists` if there is such a file, or if the directory belongs to
    /// another shim that lives.
    pub fn create_file(&self, name: &str) -> io::Result<File> {
        check_name(name)?;
        // Where output is kept, what is left of others takes the room away.
        sweep_first(&self.spill_dir);
        let _alone = alone();
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = self.make()?;
        let file = openat(&dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Whatever the umask.
        fchmod(&file, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(file.into())
    }

    /// Opens a file that was made before. None if the directory is there without it.
    ///
    /// # Errors
    /// As `open(2)`; `NotFound` if the directory is not there, or is another shim's by now.
    pub fn open_file(&self, name: &str) -> io::Result<Option<File>> {
        check_name(name)?;
        let (_, dir) = self.find()?.ok_or(ErrorKind::NotFound)?;
        match openat(&dir, name, OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
            Err(Errno::ENOENT) => Ok(None),
            opened => Ok(Some(opened?.into())),
        }
    }

    /// Removes a file, and with the last one the directory. What is not there counts as removed.
    ///
    /// # Errors
    /// As `open(2)` and `unlink(2)`.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        let _alone = alone();
        let Some((parent, dir)) = self.find()? else { return Ok(()) };
        unlink(&dir, &c_string(name)?)?;
        if names(&dir)?.iter().all(|name| name.as_bytes() == OWNER.as_bytes()) {
            remove(&parent, OsStr::new(&self.id), &dir)?;
        }
        Ok(())
    }

    /// Removes the directory with all that is in it; gives what it held, in bytes on disk. What is not there counts as
    /// removed. For the shim's end, and for who cleans up after it.
    ///
    /// # Errors
    /// As `open(2)`, `unlink(2)` and `rmdir(2)`.
    pub fn remove(&self) -> io::Result<u64> {
        let _alone = alone();
        let Some((parent, dir)) = self.find()? else { return Ok(0) };
        remove(&parent, OsStr::new(&self.id), &dir)
    }

    /// The directory and the one above it, if they are there and nobody else's.
    fn find(&self) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        let open = || -> io::Result<(OwnedFd, OwnedFd)> {
            let root = open_dir(&self.spill_dir)?;
            let instance = open_below(&root, &c_string(&self.instance)?)?;
            let parent = open_below(&instance, &c_string(&self.namespace)?)?;
            let dir = open_below(&parent, &c_string(&self.id)?)?;
            Ok((parent, dir))
        };
        let (parent, dir) = match open() {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let is_ours = Owner::read(&dir)?.is_none_or(|owner| owner.run_dir == self.run_dir);
        Ok(is_ours.then_some((parent, dir)))
    }

    /// The directory, as ours.
    fn make(&self) -> io::Result<OwnedFd> {
        [&self.instance, &self.namespace, &self.id].into_iter().try_for_each(|name| check_name(name))?;
        let root = open_root(&self.spill_dir)?;
        let parent = open_or_make(&open_or_make(&root, &self.instance)?, &self.namespace)?;
        let us = Owner::this_process(&self.run_dir);
        let id = c_string(&self.id)?;
        for _ in 0..ATTEMPTS {
            match open_below(&parent, &id).and_then(ours) {
                Ok(dir) => {
                    let owner = Owner::read(&dir)?;
                    if owner.as_ref() == Some(&us) {
                        return Ok(dir);
                    }
                    self.take_over(&parent, &dir, owner)?;
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            match make_whole(&parent, &id, &us) {
                // Another thread of ours, or a predecessor's that is not gone yet.
                Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty) => {}
                made => return made,
            }
        }
        Err(io::Error::new(ErrorKind::AlreadyExists, "another shim uses the directory"))
    }

    /// Makes room where a container of the same name has left something.
    fn take_over(&self, parent: &OwnedFd, dir: &OwnedFd, owner: Option<Owner>) -> io::Result<()> {
        let relative = Path::new(&self.instance).join(&self.namespace).join(&self.id);
        if let Some(owner) = owner
            // Its record would be ours now.
            && (owner.run_dir != self.run_dir || start_time(owner.pid) == Some(owner.start_time))
            && owner.may_need_it(&relative, &boot_id())
        {
            let text = format!("it belongs to the shim with the pid {}", owner.pid);
            return Err(io::Error::new(ErrorKind::AlreadyExists, text));
        }
        let bytes = remove(parent, OsStr::new(&self.id), dir)?;
        tracing::warn!(spill = %relative.display(), bytes, "removed the output of an earlier task: nobody read it");
        Ok(())
    }
}

/// Makes a directory with its owner in it, and only then gives it its name.
fn make_whole(parent: &OwnedFd, id: &CStr, owner: &Owner) -> io::Result<OwnedFd> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let unfinished = c_string(&format!("{UNFINISHED}{}-{}-{count}", owner.pid, owner.start_time))?;
    let made = || -> io::Result<OwnedFd> {
        mkdirat(parent, unfinished.as_c_str(), Mode::S_IRWXU)?;
        let dir = open_below(parent, &unfinished)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&dir, OWNER, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        File::from(file).write_all(&serde_json::to_vec(owner)?)?;
        renameat(parent, unfinished.as_c_str(), parent, id)?;
        Ok(dir)
    };
    made().inspect_err(|_| {
        let dir = open_below(parent, &unfinished);
        let _ = dir.and_then(|dir| remove(parent, OsStr::from_bytes(unfinished.to_bytes()), &dir));
    })
}

/// Removes a directory that was opened already. One that has its name by now stays, if there is anything in it.
fn remove(parent: &OwnedFd, name: &OsStr, dir: &OwnedFd) -> io::Result<u64> {
    let mut bytes = 0;
    let mut files: Vec<_> = names(dir)?.into_iter().filter(|name| is_ours(name)).collect();
    // The owner last: what is left half-way still says whose it is.
    files.sort_by_key(|name| name.as_bytes() == OWNER.as_bytes());
    for name in files {
        let name = CString::new(name.into_vec())?;
        let size = look_at(dir, OsStr::from_bytes(name.to_bytes()))?.map_or(0, |file| bytes_of(&file));
        unlink(dir, &name)?;
        bytes += size;
    }
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(bytes),
        Err(e) => Err(e.into()),
    }
}

/// What is not there counts as removed.
fn unlink(dir: &OwnedFd, name: &CStr) -> io::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Calls `visit` with each container's directory: the one above it, its path below `root`, and itself, opened. What
/// vanishes meanwhile is not visited, nor what is no directory.
fn each_container(
    root: &OwnedFd,
    mut visit: impl FnMut(&OwnedFd, &Path, &OwnedFd) -> io::Result<()>,
) -> io::Result<()> {
    each_directory(root, |instance, instance_dir| {
        each_directory(instance_dir, |namespace, namespace_dir| {
            each_directory(namespace_dir, |id, dir| {
                visit(namespace_dir, &Path::new(instance).join(namespace).join(id), dir)
            })
        })
    })
}

fn each_directory(dir: &OwnedFd, mut visit: impl FnMut(&OsStr, &OwnedFd) -> io::Result<()>) -> io::Result<()> {
    for name in names(dir)? {
        match open_below(dir, &CString::new(name.as_bytes())?) {
            Ok(child) => visit(&name, &child)?,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn names(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    // By an open file of its own, with a position of its own.
    let mut dir = Dir::openat(dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

/// None if it is not there, or no regular file.
fn look_at(dir: &OwnedFd, name: &OsStr) -> io::Result<Option<FileStat>> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(file) => Ok(Some(file).filter(|file| is_kind(file, SFlag::S_IFREG))),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn is_kind(file: &FileStat, kind: SFlag) -> bool {
    file.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// The root of the tree, which is made if it is not there. It may be a link: who sets the machine up says where it is.
fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let root = match open_dir(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            open_dir(path)?
        }
        opened => opened?,
    };
    if fstat(&root)?.st_mode & 0o022 != 0 {
        let text = format!("others than its owner may write to {}", path.display());
        return Err(io::Error::new(ErrorKind::PermissionDenied, text));
    }
    Ok(root)
}

fn open_or_make(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let name = c_string(name)?;
    match mkdirat(parent, name.as_c_str(), Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => open_below(parent, &name).and_then(ours),
        Err(e) => Err(e.into()),
    }
}

fn open_below(parent: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// A directory that others may write to, or only look into, is none to keep output in.
fn ours(dir: OwnedFd) -> io::Result<OwnedFd> {
    let stat = fstat(&dir)?;
    if stat.st_uid != geteuid().as_raw() {
        let text = format!("the directory belongs to the user {}", stat.st_uid);
        return Err(io::Error::new(ErrorKind::PermissionDenied, text));
    }
    if stat.st_mode & 0o077 != 0 {
        fchmod(&dir, Mode::S_IRWXU)?;
    }
    Ok(dir)
}

/// Whether a file has the name of a spill, or says whose they are.
fn is_ours(name: &OsStr) -> bool {
    name == OWNER || is_stream(name)
}

fn is_stream(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let process = name.strip_suffix(b".stdout").or_else(|| name.strip_suffix(b".stderr"));
    process.is_some_and(|process| process == b"init" || process.starts_with(b"exec."))
}

/// Ids were checked long before; this keeps a mistake there from becoming a path.
fn check_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(io::Error::new(ErrorKind::InvalidInput, format!("{name:?} is no name for a spill")));
    }
    Ok(())
}

fn c_string(name: &str) -> io::Result<CString> {
    Ok(CString::new(name)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::io::spill::policy::Policy;

    /// A tree of its own, removed at the end.
    struct Place(PathBuf);

    impl Place {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let name = format!("holdfast-tree-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let dir = std::env::temp_dir().join(name);
            fs::create_dir(&dir).unwrap();
            Self(dir)
        }

        fn spill_dir(&self) -> PathBuf {
            self.0.join("spill")
        }

        fn home(&self, id: &str) -> Home {
            Home {
                spill_dir: self.spill_dir(),
                run_dir: self.0.join("run"),
                instance: "i".to_owned(),
                namespace: "n".to_owned(),
                id: id.to_owned(),
            }
        }

        fn settings(&self) -> OutputSettings {
            OutputSettings {
                spill_limit: 1 << 30,
                policy: Policy::Block,
                spill_total: 1 << 30,
                free_floor_percent: 0,
                spill_dir: self.spill_dir(),
            }
        }

        /// As if another shim had made it.
        fn disown(&self, home: &Home, change: impl FnOnce(&mut Owner)) {
            let mut owner = Owner::this_process(&home.run_dir);
            change(&mut owner);
            fs::write(home.path().join(OWNER), serde_json::to_vec(&owner).unwrap()).unwrap();
        }

        /// As a shim with this start time would have left it.
        fn record(&self, home: &Home, start_time: u64) {
            let dir = record::container_dir(&home.run_dir, &home.instance, &home.namespace, &home.id);
            fs::create_dir_all(&dir).unwrap();
            let record = serde_json::json!({
                "schema": 1, "boot_id": boot_id(), "namespace": "n", "id": home.id, "group": home.id, "bundle": "/b",
                "shim": {"pid": std::process::id(), "start_time": start_time, "version": "0", "address": "unix:///s"},
                "manager": {"kind": "holdfastd"}, "runtime": {"binary": "runc", "root": "/r"}, "processes": [],
            });
            fs::write(dir.join(record::FILE_NAME), record.to_string()).unwrap();
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_that_is_made_while_the_last_other_one_is_removed_stays() {
        let place = Place::new();
        let home = place.home("c");
        let work = |name: &'static str| {
            let home = home.clone();
            std::thread::spawn(move || {
                for n in 0..500 {
                    home.create_file(name).unwrap_or_else(|e| panic!("{name}, round {n}: {e}"));
                    assert!(home.open_file(name).unwrap().is_some(), "{name} is gone in round {n}");
                    home.remove_file(name).unwrap();
                }
            })
        };
        let both = [work("init.stdout"), work("init.stderr")];
        both.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(!home.path().exists());
    }

    /// How many directories were swept, and what they held.
    fn sweep(spill_dir: &Path) -> (usize, u64) {
        let mut swept = Vec::new();
        super::sweep(spill_dir, &mut |_, removed| swept.push(removed.unwrap())).unwrap();
        (swept.len(), swept.iter().sum())
    }

    fn fill(home: &Home, name: &str, bytes: usize) {
        home.create_file(name).unwrap().write_all(&vec![b'x'; bytes]).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn files_are_for_their_owner_alone_and_go_with_their_directory() {
        let place = Place::new();
        let home = place.home("c");
        fill(&home, "init.stdout", 1);
        fill(&home, "exec.init.stdout", 1);
        for dir in [home.path(), home.path().join(".."), place.spill_dir()] {
            assert_eq!(mode(&dir.canonicalize().unwrap()), 0o700);
        }
        assert_eq!(mode(&home.path().join("init.stdout")), 0o600);
        assert_eq!(home.create_file("init.stdout").unwrap_err().kind(), ErrorKind::AlreadyExists);
        home.remove_file("init.stdout").unwrap();
        assert!(home.path().join("exec.init.stdout").exists());
        home.remove_file("exec.init.stdout").unwrap();
        assert!(!home.path().exists());
        home.remove_file("exec.init.stdout").unwrap();
        assert_eq!(fs::read_dir(home.path().parent().unwrap()).unwrap().count(), 0, "nothing unfinished");
    }

    #[test]
    fn loose_modes_are_tightened_and_what_others_may_write_to_is_refused() {
        let place = Place::new();
        let home = place.home("c");
        fill(&home, "init.stdout", 1);
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fill(&home, "init.stderr", 1);
        assert_eq!(mode(&home.path()), 0o700);
        fs::set_permissions(place.spill_dir(), fs::Permissions::from_mode(0o777)).unwrap();
        let refused = home.create_file("exec.a.stdout").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
        assert!(refused.to_string().contains("others than its owner may write to"), "{refused}");
        assert_eq!(mode(&place.spill_dir()), 0o777, "it is not ours to change");
    }

    #[test]
    fn symbolic_links_are_never_followed() {
        let place = Place::new();
        let (home, outside) = (place.home("c"), place.0.join("outside"));
        fs::create_dir_all(outside.join("n/c")).unwrap();
        fs::write(outside.join("n/c/init.stdout"), vec![0; 1 << 20]).unwrap();
        fs::create_dir(place.spill_dir()).unwrap();
        fs::set_permissions(place.spill_dir(), fs::Permissions::from_mode(0o700)).unwrap();
        symlink(&outside, place.spill_dir().join("i")).unwrap();
        assert!(home.create_file("init.stderr").is_err());
        assert_eq!(usage(&place.spill_dir()).unwrap(), 0);
        assert_eq!(sweep(&place.spill_dir()).0, 0);
        assert!(home.remove().is_err());
        assert!(outside.join("n/c/init.stdout").exists());
        // And in the place of a file.
        fs::remove_file(place.spill_dir().join("i")).unwrap();
        fill(&home, "init.stderr", 1);
        symlink(outside.join("n/c/init.stdout"), home.path().join("init.stdout")).unwrap();
        assert_eq!(home.create_file("init.stdout").unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(usage(&place.spill_dir()).unwrap() < 1 << 20);
        home.remove().unwrap();
        assert!(outside.join("n/c/init.stdout").exists() && !home.path().exists());
    }

    #[test]
    fn no_name_leads_elsewhere() {
        let place = Place::new();
        for bad in ["", ".", "..", "../x", "a/b", ".new-1-2-3"] {
            assert_eq!(
                place.home(bad).create_file("init.stdout").unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{bad}"
            );
            assert_eq!(place.home("c").create_file(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn what_all_streams_take_on_disk_is_counted() {
        let place = Place::new();
        assert_eq!(usage(&place.spill_dir()).unwrap(), 0, "a tree that is not there");
        fill(&place.home("a"), "init.stdout", 1 << 20);
        fill(&place.home("b"), "exec.x.stderr", 2 << 20);
        let file = place.home("b").create_file("init.stdout").unwrap();
        file.set_len(1 << 30).unwrap();
        let bytes = usage(&place.spill_dir()).unwrap();
        assert!((3 << 20..4 << 20).contains(&bytes), "{bytes}: holes do not count");
    }

    #[test]
    fn a_stream_may_grow_to_the_total_bound_and_again_when_another_has_shrunk() {
        let place = Place::new();
        let settings = OutputSettings { spill_total: 8 << 20, ..place.settings() };
        let (a, b) = (place.home("a"), place.home("b"));
        let mut file = a.create_file("init.stdout").unwrap();
        let mut allowance = Allowance::default();
        let mut written = 0;
        while let Ok(most) = allowance.ask(1 << 20, &settings).unwrap() {
            file.write_all(&vec![b'x'; usize::try_from(most).unwrap()]).unwrap();
            allowance.used(most);
            written += most;
        }
        assert!((7 << 20..=8 << 20).contains(&written), "{written}");
        assert_eq!(Allowance::default().ask(1, &settings).unwrap(), Err(Bound::Total), "for everybody");
        a.remove_file("init.stdout").unwrap();
        fill(&b, "init.stdout", 1);
        assert_eq!(Allowance::default().ask(1, &settings).unwrap(), Ok(1));
    }

    #[test]
    fn streams_that_grow_at_the_same_moment_pass_the_total_by_their_grants_at_most() {
        let place = Place::new();
        let settings = OutputSettings { spill_total: 4 << 20, ..place.settings() };
        let mut streams: Vec<_> = (0..4).map(|n| (place.home(&format!("c{n}")), Allowance::default())).collect();
        let mut files: Vec<_> = streams.iter().map(|(home, _)| home.create_file("init.stdout").unwrap()).collect();
        let mut grew = true;
        while std::mem::take(&mut grew) {
            // All ask before any of them writes.
            let asked: Vec<_> = streams.iter_mut().map(|(_, a)| a.ask(1 << 16, &settings).unwrap()).collect();
            for ((most, (_, allowance)), file) in asked.into_iter().zip(&mut streams).zip(&mut files) {
                if let Ok(most) = most {
                    file.write_all(&vec![b'x'; usize::try_from(most).unwrap()]).unwrap();
                    allowance.used(most);
                    grew = true;
                }
            }
        }
        let bytes = usage(&place.spill_dir()).unwrap();
        assert!((4 << 20..(4 << 20) + 4 * GRANT).contains(&bytes), "{bytes}");
    }

    #[test]
    fn at_the_floor_of_free_space_nothing_grows() {
        let place = Place::new();
        let whole = OutputSettings { free_floor_percent: 100, ..place.settings() };
        assert_eq!(Allowance::default().ask(1, &whole).unwrap(), Err(Bound::Floor));
        assert_eq!(Allowance::default().ask(1, &place.settings()).unwrap(), Ok(1));
    }

    #[test]
    fn what_a_living_shim_has_is_never_swept() {
        let place = Place::new();
        // No record yet, or no more.
        fill(&place.home("c"), "init.stdout", 1);
        assert_eq!(sweep(&place.spill_dir()).0, 0);
        // Another run directory's, unknown here.
        place.disown(&place.home("c"), |owner| owner.run_dir = "/elsewhere".into());
        assert_eq!(sweep(&place.spill_dir()).0, 0);
        // Of another pid namespace nobody here knows who lives.
        place.disown(&place.home("c"), |owner| {
            owner.pid_namespace = "pid:[1]".to_owned();
            owner.start_time += 1;
        });
        assert_eq!(sweep(&place.spill_dir()).0, 0);
        assert!(place.home("c").path().exists());
    }

    #[test]
    fn what_another_boot_has_left_is_swept() {
        let place = Place::new();
        let home = place.home("c");
        fill(&home, "init.stdout", 1 << 20);
        place.record(&home, start_time(std::process::id()).unwrap());
        place.disown(&home, |owner| owner.boot_id = "another".to_owned());
        let (directories, bytes) = sweep(&place.spill_dir());
        assert!(directories == 1 && bytes >= 1 << 20, "{directories} {bytes}");
        assert!(!home.path().exists());
    }

    #[test]
    fn what_a_dead_shim_has_left_is_swept_once_its_record_is_gone() {
        let place = Place::new();
        let home = place.home("c");
        fill(&home, "init.stdout", 1);
        let dead = start_time(std::process::id()).unwrap() + 1;
        place.disown(&home, |owner| owner.start_time = dead);
        place.record(&home, dead);
        assert_eq!(sweep(&place.spill_dir()).0, 0, "somebody will come to clean up");
        place.record(&home, dead + 1);
        assert_eq!(sweep(&place.spill_dir()).0, 1, "the record is a successor's");
        assert!(!home.path().exists());
    }

    #[test]
    fn a_record_that_cannot_be_understood_keeps_what_belongs_to_it() {
        let place = Place::new();
        let home = place.home("c");
        fill(&home, "init.stdout", 1);
        place.disown(&home, |owner| owner.start_time += 1);
        place.record(&home, 0);
        let dir = record::container_dir(&home.run_dir, &home.instance, &home.namespace, &home.id);
        fs::write(dir.join(record::FILE_NAME), "{").unwrap();
        assert_eq!(sweep(&place.spill_dir()).0, 0);
        fs::remove_file(dir.join(record::FILE_NAME)).unwrap();
        assert_eq!(sweep(&place.spill_dir()).0, 1);
    }

    #[test]
    fn a_damaged_owner_is_of_a_boot_that_ended_at_once() {
        let place = Place::new();
        for damage in [Some(&b""[..]), Some(b"{\"boot_id\":"), None] {
            let home = place.home("c");
            fill(&home, "init.stdout", 1);
            match damage {
                Some(bytes) => fs::write(home.path().join(OWNER), bytes).unwrap(),
                None => fs::remove_file(home.path().join(OWNER)).unwrap(),
            }
            assert_eq!(sweep(&place.spill_dir()).0, 1, "{damage:?}");
            assert!(!home.path().exists());
        }
    }

    #[test]
    fn what_nobody_finished_is_swept_when_its_maker_is_dead() {
        let place = Place::new();
        fill(&place.home("c"), "init.stdout", 1);
        let parent = place.home("c").path().parent().unwrap().to_owned();
        let (pid, start) = (std::process::id(), start_time(std::process::id()).unwrap());
        let living = parent.join(format!(".new-{pid}-{start}-7"));
        let dead = parent.join(format!(".new-{pid}-{}-7", start + 1));
        for dir in [&living, &dead] {
            fs::create_dir(dir).unwrap();
        }
        assert_eq!(sweep(&place.spill_dir()).0, 1);
        assert!(living.exists() && !dead.exists());
    }

    #[test]
    fn a_directory_that_was_chosen_badly_is_not_emptied() {
        let place = Place::new();
        let dir = place.spill_dir().join("a/b/c");
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir(place.spill_dir().join("a/b/empty")).unwrap();
        for name in ["precious", "app.stdout", OWNER] {
            fs::write(dir.join(name), "x").unwrap();
        }
        let modes = mode(&dir);
        assert_eq!(sweep(&place.spill_dir()).0, 0);
        assert!(["precious", "app.stdout", OWNER].iter().all(|name| dir.join(name).exists()));
        assert!(place.spill_dir().join("a/b/empty").exists());
        assert_eq!(mode(&dir), modes);
    }

    #[test]
    fn a_container_of_the_same_name_takes_the_place_of_one_that_is_gone() {
        let place = Place::new();
        let home = place.home("c");
        fill(&home, "init.stdout", 1 << 20);
        place.disown(&home, |owner| owner.start_time += 1);
        // The record is the new one's by now.
        place.record(&home, start_time(std::process::id()).unwrap());
        fill(&home, "init.stdout", 1);
        assert_eq!(home.path().join("init.stdout").metadata().unwrap().size(), 1);
        // But not of one that lives.
        place.disown(&home, |owner| owner.run_dir = "/elsewhere".into());
        let refused = home.create_file("init.stderr").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        assert!(refused.to_string().contains("it belongs to the shim with the pid"), "{refused}");
        assert_eq!(home.remove().unwrap(), 0, "nor is it removed for us");
        assert!(home.path().join("init.stdout").exists());
    }

    #[test]
    fn a_successor_keeps_its_directory_while_its_predecessors_is_swept() {
        let place = Place::new();
        let home = place.home("c");
        fill(&home, "init.stdout", 1);
        let parent = open_dir(home.path().parent().unwrap()).unwrap();
        let judged = open_dir(&home.path()).unwrap();
        // Between the judgement and the deed.
        fs::rename(home.path(), home.path().with_file_name("gone")).unwrap();
        fill(&home, "init.stdout", 1);
        remove(&parent, OsStr::new("c"), &judged).unwrap();
        assert!(home.path().join("init.stdout").exists());
        assert!(!home.path().with_file_name("gone").join("init.stdout").exists());
    }
}
