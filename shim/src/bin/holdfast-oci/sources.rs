//! What a container in a user namespace cannot reach by itself: the sources of its bind mounts, and the namespaces it joins.
//! And what libcontainer cannot make: bind mounts that show other owners, in any container.
//!
//! libcontainer opens both by their paths when it is root in the user namespace already, thus nobody outside: a directory on
//! the way that is root's alone, as a kubelet's and containerd's are, stops it. So all are opened before. A namespace is
//! found below `/proc/self/fd` then. The copies of the sources go to a place that everybody may enter, in a mount namespace
//! of the stage: nobody else sees them, and they end with it.

use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::fstat;
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use crate::error::Failure;
use crate::idmap;
use crate::sys;

/// Directories one of which a machine has, and no root filesystem is below.
const PLACES: [&str; 4] = ["/mnt", "/srv", "/tmp", "/run"];

/// What was opened.
pub(crate) struct Sources {
    place: &'static Path,
    trees: Vec<OwnedFd>,
    /// Only to stay open.
    _namespaces: Vec<File>,
}

impl Sources {
    /// Opens all that the specification names, and writes into it where each will be found; `None` if there is neither a user
    /// namespace nor a mount with other owners, or a mount namespace that is joined and has its own paths.
    ///
    /// # Errors
    /// When one cannot be opened or cannot show its owners, or there is no place for them.
    pub(crate) fn take(spec: &mut Spec, rootfs: &Path) -> Result<Option<Self>, Failure> {
        let mapped = spec.mounts().iter().flatten().any(idmap::is_wanted);
        let Some(linux) = spec.linux_mut() else { return Ok(None) };
        let mut users = idmap::Users::of(linux);
        let Some(namespaces) = linux.namespaces_mut() else { return Ok(None) };
        let inside = namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User);
        let joins = namespaces.iter().any(|n| n.typ() == LinuxNamespaceType::Mount && n.path().is_some());
        if !(inside || mapped) || joins {
            return Ok(None);
        }
        let mut opened = Vec::new();
        for namespace in namespaces {
            let Some(path) = namespace.path().clone() else { continue };
            let file = File::open(&path).map_err(Failure::file("open the namespace", &path))?;
            namespace.set_path(Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into()));
            opened.push(file);
        }
        let place = place(rootfs)?;
        let mut trees = Vec::new();
        for mount in spec.mounts_mut().iter_mut().flatten().filter(|mount| mount.typ().as_deref() == Some("bind")) {
            let tree = copy(mount)?;
            users.show(mount, tree.as_fd())?;
            trees.push(tree);
            mount.set_source(Some(target(place, trees.len())));
        }
        Ok(Some(Self { place, trees, _namespaces: opened }))
    }

    /// Puts the sources where they will be looked for, in a mount namespace of this process.
    ///
    /// # Errors
    /// As unshare(2), mount(2) and move_mount(2).
    pub(crate) fn put(&self) -> Result<(), Errno> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&Path>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), self.place, Some("tmpfs"), flags, Some("mode=711"))?;
        let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
        for (tree, n) in self.trees.iter().zip(1..) {
            let target = target(self.place, n);
            if fstat(tree)?.st_mode & libc::S_IFMT == libc::S_IFDIR {
                DirBuilder::new().mode(0o711).create(&target).map_err(errno)?;
            } else {
                File::create(&target).map_err(errno)?;
            }
            sys::move_mount(tree.as_fd(), &target)?;
        }
        Ok(())
    }
}

/// Where the source with a number is found.
fn target(place: &Path, n: usize) -> PathBuf {
    place.join(n.to_string())
}

fn place(rootfs: &Path) -> Result<&'static Path, Failure> {
    let all_may_enter = |path: &Path| fs::metadata(path).is_ok_and(|m| m.is_dir() && m.permissions().mode() & 1 != 0);
    let mut places = PLACES.into_iter().map(Path::new);
    places.find(|place| !rootfs.starts_with(place) && all_may_enter(place)).ok_or_else(|| Failure::Start {
        reason: format!("none of {PLACES:?} is a directory that the user namespace may enter"),
    })
}

/// A copy of the source, with what is mounted below it if the mount wants that.
fn copy(mount: &Mount) -> Result<OwnedFd, Failure> {
    let recursive = mount.options().iter().flatten().any(|option| option == "rbind");
    let below = if recursive { libc::AT_RECURSIVE.cast_unsigned() } else { 0 };
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    let tree = sys::open_tree(source, libc::OPEN_TREE_CLONE | below);
    tree.map_err(|errno| Failure::file("copy the source of a bind mount", source)(errno.into()))
}
