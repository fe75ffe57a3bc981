//! What libcontainer leaves out of mounts: their propagation, and read-only where it drops the flag.
//!
//! It ignores `rprivate`, `rslave`, `rshared` and their like on every mount, makes `/dev` writable whatever its options,
//! and mounts cgroup v1 hierarchies writable. None of the container's programs runs before `start`, so a child of ours
//! enters its mount namespace at the end of `create` and sets the attributes there.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{Mount, Spec};

use crate::error::Failure;
use crate::sys::{self, MountAttr};

const MOUNT_ATTR_RDONLY: u64 = 1;
/// The attributes of flags, as in `linux/mount.h`.
const FLAGS: [(&str, u64); 3] = [("nosuid", 2), ("nodev", 4), ("noexec", 8)];

/// One change of a mount in the container.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Change {
    destination: std::path::PathBuf,
    recursive: bool,
    attr: MountAttr,
}

/// Every change that the specification asks for and libcontainer does not make.
pub(crate) fn changes(spec: &Spec, unified: bool) -> Vec<Change> {
    spec.mounts().iter().flatten().flat_map(|mount| changes_of(mount, unified)).collect()
}

fn changes_of(mount: &Mount, unified: bool) -> Vec<Change> {
    let options = mount.options().as_deref().unwrap_or_default();
    let mut changes: Vec<Change> = options
        .iter()
        .filter_map(|option| propagation(option))
        .map(|(flags, recursive)| Change {
            destination: mount.destination().clone(),
            recursive,
            attr: MountAttr { propagation: flags.bits(), ..MountAttr::default() },
        })
        .collect();
    let cgroup = mount.typ().as_deref() == Some("cgroup") && !unified;
    if cgroup {
        // The hierarchies get none of the mount's flags.
        let attr = MountAttr { attr_set: attributes(options), ..MountAttr::default() };
        changes.push(Change { destination: mount.destination().clone(), recursive: true, attr });
    }
    if is_read_only(options) && (cgroup || mount.destination() == Path::new("/dev")) {
        let attr = MountAttr { attr_set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        // The hierarchies below /sys/fs/cgroup are mounts of their own; what is mounted below /dev has its own options.
        changes.push(Change { destination: mount.destination().clone(), recursive: cgroup, attr });
    }
    changes
}

/// The attributes of `nosuid`, `nodev` and `noexec`.
pub(crate) fn attributes(options: &[String]) -> u64 {
    FLAGS.iter().filter(|(name, _)| options.iter().any(|option| option == name)).map(|(_, attr)| attr).sum()
}

/// The last of `ro` and `rw` counts.
fn is_read_only(options: &[String]) -> bool {
    options.iter().rev().find(|option| matches!(option.as_str(), "ro" | "rw")).is_some_and(|option| option == "ro")
}

/// The propagation that an option names, and whether it goes for the mounts below.
fn propagation(option: &str) -> Option<(MsFlags, bool)> {
    Some(match option {
        "private" => (MsFlags::MS_PRIVATE, false),
        "rprivate" => (MsFlags::MS_PRIVATE, true),
        "slave" => (MsFlags::MS_SLAVE, false),
        "rslave" => (MsFlags::MS_SLAVE, true),
        "shared" => (MsFlags::MS_SHARED, false),
        "rshared" => (MsFlags::MS_SHARED, true),
        "unbindable" => (MsFlags::MS_UNBINDABLE, false),
        "runbindable" => (MsFlags::MS_UNBINDABLE, true),
        _ => return None,
    })
}

/// Makes the changes in the mount namespace of the process.
///
/// # Errors
/// When the namespace cannot be entered or a change is refused.
pub(crate) fn apply(pid: i32, changes: &[Change]) -> Result<(), Failure> {
    if changes.is_empty() {
        return Ok(());
    }
    let path = format!("/proc/{pid}/ns/mnt");
    let namespace = File::open(&path).map_err(Failure::file("open", &path))?;
    let root = format!("/proc/{pid}/root");
    let root = File::open(&root).map_err(Failure::file("open", &root))?;
    sys::in_child(|| {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS)?;
        nix::unistd::fchdir(root.as_fd())?;
        // Links in the container's root must be followed inside it.
        nix::unistd::chroot(".")?;
        changes.iter().try_for_each(Change::apply)
    })
    .map_err(Failure::sys("set the propagation of the container's mounts"))
}

impl Change {
    fn apply(&self) -> Result<(), Errno> {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new("/").join(&self.destination);
        let path = sys::c_string(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
        let flags = if self.recursive { libc::AT_RECURSIVE } else { 0 };
        sys::mount_setattr(libc::AT_FDCWD, &path, flags, &self.attr)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use oci_spec::runtime::MountBuilder;

    fn mount(typ: &str, destination: &str, options: &[&str]) -> Mount {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        MountBuilder::default().typ(typ).destination(destination).options(options).build().unwrap()
    }

    #[test]
    fn propagation_options_become_changes_in_their_order() {
        let changes = changes_of(&mount("bind", "/v", &["rbind", "rprivate", "rw", "shared"]), false);
        let seen: Vec<(u64, bool)> = changes.iter().map(|change| (change.attr.propagation, change.recursive)).collect();
        assert_eq!(seen, [(MsFlags::MS_PRIVATE.bits(), true), (MsFlags::MS_SHARED.bits(), false)]);
    }

    #[test]
    fn read_only_dev_and_cgroup_v1_are_made_so() {
        let changes = changes_of(&mount("cgroup", "/sys/fs/cgroup", &["nosuid", "ro"]), false);
        let sets: Vec<u64> = changes.iter().map(|change| change.attr.attr_set).collect();
        assert_eq!(sets, [2, MOUNT_ATTR_RDONLY]);
        assert!(changes.iter().all(|change| change.recursive));
        assert!(changes_of(&mount("cgroup", "/sys/fs/cgroup", &["ro"]), true).is_empty());
        assert_eq!(changes_of(&mount("tmpfs", "/dev", &["ro"]), true).len(), 1);
        assert!(changes_of(&mount("tmpfs", "/dev", &["ro", "rw"]), true).is_empty());
        assert!(changes_of(&mount("tmpfs", "/tmp", &["ro"]), true).is_empty());
    }
}
