//! Bind mounts that show other owners than their file systems keep, see "idmap" in the runtime specification.
//!
//! A mount takes its map from a user namespace, see mount_setattr(2), and before it has a place. That is the container's if it
//! joins one, and else one that is made for the map: the container's own does not exist yet.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Mount};

use crate::error::{Failure, chain};
use crate::launch::write_map;
use crate::sys::{self, MountAttr, Side};

/// Who owns what on the file system (`containerID`), and who is shown for that (`hostID`).
#[derive(Clone, Eq, PartialEq)]
struct Map {
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

impl Map {
    fn new(uids: Option<&Vec<LinuxIdMapping>>, gids: Option<&Vec<LinuxIdMapping>>) -> Self {
        Self { uids: uids.cloned().unwrap_or_default(), gids: gids.cloned().unwrap_or_default() }
    }

    /// That of a mount, which may have none of its own.
    fn of(mount: &Mount) -> Option<Self> {
        let map = Self::new(mount.uid_mappings().as_ref(), mount.gid_mappings().as_ref());
        (!map.uids.is_empty() || !map.gids.is_empty()).then_some(map)
    }
}

/// Whether the mount is to show other owners.
pub(crate) fn is_wanted(mount: &Mount) -> bool {
    has_option(mount, "idmap") || has_option(mount, "ridmap") || Map::of(mount).is_some()
}

fn has_option(mount: &Mount, name: &str) -> bool {
    mount.options().iter().flatten().any(|option| option == name)
}

/// The user namespaces for the maps of one container's mounts.
pub(crate) struct Users {
    /// The container's.
    map: Map,
    /// Where the one is that the container joins.
    joined: Option<PathBuf>,
    /// Many mounts have the same map.
    made: Vec<(Map, File)>,
}

impl Users {
    pub(crate) fn of(linux: &Linux) -> Self {
        let mut namespaces = linux.namespaces().iter().flatten();
        Self {
            map: Map::new(linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref()),
            joined: namespaces.find(|n| n.typ() == LinuxNamespaceType::User).and_then(|n| n.path().clone()),
            made: Vec::new(),
        }
    }

    /// Makes the copy of the mount's source show the owners that the mount wants; with `ridmap` the mounts below too.
    ///
    /// # Errors
    /// When the map is none, or the kernel or a file system cannot do it; names the mount.
    pub(crate) fn show(&mut self, mount: &Mount, tree: BorrowedFd<'_>) -> Result<(), Failure> {
        if !is_wanted(mount) {
            return Ok(());
        }
        let failed = |reason| Failure::IdMap { destination: mount.destination().clone(), reason };
        let users = match (Map::of(mount), &self.joined) {
            (None, Some(path)) => File::open(path).map_err(Failure::file("open the namespace", path)),
            (map, _) => self.made(map.unwrap_or_else(|| self.map.clone())),
        };
        let users = users.map_err(|failure| failed(chain(&failure)))?;
        let below = if has_option(mount, "ridmap") { libc::AT_RECURSIVE } else { 0 };
        set(tree, &users, below).map_err(|errno| failed(format!("{}{}", explain(errno), chain(&errno))))
    }

    fn made(&mut self, map: Map) -> Result<File, Failure> {
        let found = self.made.iter().find(|(made, _)| *made == map);
        let again = |users: &File| users.try_clone().map_err(Failure::file("keep", "a user namespace"));
        if let Some((_, users)) = found {
            return again(users);
        }
        let users = make(&map)?;
        let result = again(&users);
        self.made.push((map, users));
        result
    }
}

fn set(tree: BorrowedFd<'_>, users: &File, below: libc::c_int) -> Result<(), Errno> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let userns_fd = u64::from(users.as_fd().as_raw_fd().cast_unsigned());
    let attr = MountAttr { attr_set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() };
    sys::mount_setattr(tree.as_raw_fd(), c"", libc::AT_EMPTY_PATH | below, &attr)
}

/// What an error of mount_setattr(2) means here.
fn explain(errno: Errno) -> &'static str {
    match errno {
        Errno::EINVAL => "its file system, or one below it, cannot: ",
        Errno::EPERM => "it is mapped already, or must not be: ",
        Errno::ENOSYS => "needs Linux 5.12: ",
        _ => "",
    }
}

/// Makes a user namespace with this map. A child is its first member, until the map is written.
fn make(map: &Map) -> Result<File, Failure> {
    let (mut ours, mut theirs) = UnixStream::pair().map_err(Failure::file("make", "a socket pair"))?;
    match sys::clone(false, None).map_err(Failure::sys("fork"))? {
        Side::Child => {
            // Else its end would not be noticed.
            drop(ours);
            let errno = unshare(CloneFlags::CLONE_NEWUSER).err().map_or(0, |errno| errno as i32);
            let _ = theirs.write_all(&errno.to_ne_bytes());
            let _ = theirs.read(&mut [0]);
            sys::exit_now(0)
        }
        Side::Parent(pid) => {
            drop(theirs);
            let made = take(&mut ours, pid, map);
            drop(ours);
            let _ = waitpid(Pid::from_raw(pid), None);
            made
        }
    }
}

fn take(member: &mut UnixStream, pid: i32, map: &Map) -> Result<File, Failure> {
    let mut errno = [0; size_of::<i32>()];
    let told = member.read_exact(&mut errno).and_then(|()| match i32::from_ne_bytes(errno) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    });
    told.map_err(Failure::file("make", "a user namespace"))?;
    write_map(pid, "uid_map", &map.uids)?;
    write_map(pid, "gid_map", &map.gids)?;
    let path = format!("/proc/{pid}/ns/user");
    File::open(&path).map_err(Failure::file("open", path))
}
