//! A bind mount on `/dev`, such as the host's own.
//!
//! It is to be left as it is, as runc leaves it. libcontainer makes its devices and links in whatever is mounted there and
//! fails where they exist, so it gets a tmpfs to make them in. None of the container's programs runs before `start`: a
//! child of ours enters the mount namespace at the end of `create` and exchanges the tmpfs for the bind mount, with the
//! mounts that belong upon it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fstat, mkdirat};
use oci_spec::runtime::{Mount, MountBuilder, Spec};

use crate::error::Failure;
use crate::mounts;
use crate::sys::{self, MountAttr};

/// Where libcontainer puts a terminal.
const CONSOLE: &str = "/dev/console";

/// A bind mount that waits for its place.
pub(crate) struct HostDev {
    tree: OwnedFd,
    /// What belongs upon it, in the order of mounting.
    above: Vec<PathBuf>,
}

impl HostDev {
    /// Takes the bind mount on `/dev` out of the specification, if that is what its `/dev` is.
    ///
    /// # Errors
    /// When its source cannot be taken, as open_tree(2) and mount_setattr(2).
    pub(crate) fn take(spec: &mut Spec) -> Result<Option<Self>, Failure> {
        let private = spec.linux().as_ref().is_some_and(|linux| {
            linux.rootfs_propagation().as_deref().is_some_and(|propagation| propagation.ends_with("private"))
        });
        let Some(mounts) = spec.mounts_mut() else { return Ok(None) };
        let Some(at) = mounts.iter().rposition(|mount| mount.destination() == Path::new("/dev")) else {
            return Ok(None);
        };
        if mounts[at].typ().as_deref() != Some("bind") {
            return Ok(None);
        }
        let tree = copy(&mounts[at], private).map_err(Failure::sys("take the bind mount for /dev"))?;
        let options = vec!["nosuid".to_owned(), "mode=755".to_owned()];
        let placeholder = MountBuilder::default().destination("/dev").typ("tmpfs").source("tmpfs").options(options);
        let above = above(&mounts[at + 1..]);
        mounts[at] = placeholder.build().map_err(|e| Failure::Start { reason: e.to_string() })?;
        Ok(Some(Self { tree, above }))
    }

    /// Puts it where it belongs, in the mount namespace of the process.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses a step: `EINVAL` also with a shared root.
    pub(crate) fn put(&self, pid: i32) -> Result<(), Failure> {
        let open = |path: String| File::open(&path).map_err(Failure::file("open", &path));
        let (namespace, root) = (open(format!("/proc/{pid}/ns/mnt"))?, open(format!("/proc/{pid}/root"))?);
        sys::in_child(|| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS)?;
            nix::unistd::fchdir(root.as_fd())?;
            nix::unistd::chroot(".")?;
            self.exchange()
        })
        .map_err(Failure::sys("put the bind mount on /dev"))
    }

    fn exchange(&self) -> Result<(), Errno> {
        // On top of the root for the moment: no path leads there, as lookups begin below it.
        sys::move_mount(self.tree.as_fd(), Path::new("/"))?;
        for path in &self.above {
            let mount = match sys::open_tree(path, 0) {
                // No terminal was asked for.
                Err(Errno::ENOENT) if path == Path::new(CONSOLE) => continue,
                opened => opened?,
            };
            sys::move_mount_onto(mount.as_fd(), self.target(path, &mount)?.as_fd())?;
        }
        umount2("/dev", MntFlags::MNT_DETACH)?;
        sys::move_mount(self.tree.as_fd(), Path::new("/dev"))
    }

    /// The directory or file in the bind mount on which a mount belongs; made if it is missing, as runc does.
    fn target(&self, path: &Path, mount: &OwnedFd) -> Result<OwnedFd, Errno> {
        let inside = path.strip_prefix("/dev").map_err(|_| Errno::EINVAL)?;
        let how = OpenHow::new().resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let open = || openat2(&self.tree, inside, how.flags(OFlag::O_PATH | OFlag::O_CLOEXEC));
        match open() {
            Err(Errno::ENOENT) => {}
            found => return found,
        }
        if fstat(mount)?.st_mode & libc::S_IFMT == libc::S_IFDIR {
            mkdirat(&self.tree, inside, Mode::from_bits_truncate(0o755))?;
        } else {
            let create = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC;
            openat2(&self.tree, inside, how.flags(create).mode(Mode::from_bits_truncate(0o644)))?;
        }
        open()
    }
}

/// Mounts below one that comes before move with it.
fn above(later: &[Mount]) -> Vec<PathBuf> {
    let mut above: Vec<PathBuf> = Vec::new();
    let wanted = later.iter().map(|mount| mount.destination().as_path()).chain([Path::new(CONSOLE)]);
    for path in wanted.filter(|path| path.starts_with("/dev")) {
        if !above.iter().any(|before| path.starts_with(before)) {
            above.push(path.to_owned());
        }
    }
    above
}

/// A copy of the source with the mount's flags, which hears of changes on the host and tells of none.
fn copy(mount: &Mount, private: bool) -> Result<OwnedFd, Errno> {
    let options = mount.options().as_deref().unwrap_or_default();
    let recursive = options.iter().any(|option| option == "rbind");
    let source = mount.source().as_deref().ok_or(Errno::ENOENT)?;
    let below = if recursive { libc::AT_RECURSIVE.cast_unsigned() } else { 0 };
    let tree = sys::open_tree(source, libc::OPEN_TREE_CLONE | below)?;
    let propagation = if private { MsFlags::MS_PRIVATE } else { MsFlags::MS_SLAVE };
    let attr = MountAttr { propagation: propagation.bits(), ..MountAttr::default() };
    let empty = libc::AT_EMPTY_PATH;
    sys::mount_setattr(tree.as_raw_fd(), c"", empty | libc::AT_RECURSIVE, &attr)?;
    let attr = MountAttr { attr_set: mounts::attributes(options), ..MountAttr::default() };
    sys::mount_setattr(tree.as_raw_fd(), c"", empty, &attr)?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spec(mounts: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"linux":{{}},"mounts":{mounts}}}"#)).unwrap()
    }

    #[test]
    fn only_the_last_mount_on_dev_counts() {
        let mut spec = spec(
            r#"[{"destination":"/dev","type":"bind","source":"/nowhere"},{"destination":"/dev","type":"tmpfs","source":"tmpfs"}]"#,
        );
        assert!(HostDev::take(&mut spec).unwrap().is_none());
        assert_eq!(spec.mounts().as_ref().unwrap()[0].typ().as_deref(), Some("bind"));
    }

    #[test]
    fn what_is_mounted_below_dev_afterwards_goes_with_it() {
        let mounts = spec(
            r#"[{"destination":"/dev/pts"},{"destination":"/device"},{"destination":"/dev/shm"},{"destination":"/dev/shm/a"}]"#,
        );
        let above = above(mounts.mounts().as_ref().unwrap());
        assert_eq!(above, ["/dev/pts", "/dev/shm", "/dev/console"].map(PathBuf::from));
    }
}
