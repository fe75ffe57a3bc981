//! `create`: makes a container and leaves its process waiting for `start`.
//!
//! All checks come first. From the moment the state directory is claimed, a failure undoes everything: the processes,
//! the cgroup directories, the state directory.

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::stat::{Mode, makedev, umask};
use oci_spec::runtime::{LinuxResources, Spec};

use crate::cgroup::Cgroup;
use crate::cli::{CreateArgs, Global};
use crate::console::Console;
use crate::error::Failure;
use crate::host_dev::HostDev;
use crate::keyring;
use crate::launch::{Launch, kill_children};
use crate::log::Log;
use crate::mounts;
use crate::network;
use crate::normalize;
use crate::payload::Payload;
use crate::process::ProcessName;
use crate::record::{Container, Record, RunRoot};
use crate::sources::Sources;
use crate::spec_check;
use crate::sys;

/// Creates the container.
///
/// # Errors
/// What is wrong with the bundle, or what could not be made; nothing is left then.
pub(crate) fn run(global: &Global, args: &CreateArgs, log: &Log) -> Result<u8, Failure> {
    create(global, args, log, true)?;
    Ok(0)
}

/// Creates the container, for a caller that goes on (`run`): returns it, and the master of its terminal if that is for
/// us.
///
/// # Errors
/// As [`run`].
pub(crate) fn create(
    global: &Global,
    args: &CreateArgs,
    log: &Log,
    detach: bool,
) -> Result<(Container, Option<OwnedFd>), Failure> {
    prepare_process(args.preserve_fds)?;
    let bundle = fs::canonicalize(&args.bundle).map_err(Failure::file("find the bundle", &args.bundle))?;
    let mut spec = load_spec(&bundle)?;
    spec_check::spec(&spec)?;
    let payload = normalize::spec(&mut spec);
    let rootfs = find_rootfs(&bundle, &mut spec)?;
    find_sources(&bundle, &mut spec)?;
    let process = spec.process().as_ref().ok_or_else(|| spec_check::Refusal::missing("process"))?;
    let console = Console::prepare(process, args.console_socket.as_deref(), detach)?;
    let cgroups_path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let cgroup = Cgroup::plan(cgroups_path, &args.id, global.systemd_cgroup)?;
    spec_check::platform(&spec, &cgroup)?;

    let root = RunRoot::new(&global.root);
    let dir = root.claim(&args.id)?;
    let record = Record::new(&args.id, bundle, rootfs, cgroup, &spec);
    let mut container = Container { dir, record };
    match make(&mut container, spec, payload, console, args, log) {
        Ok(master) => Ok((container, master)),
        Err(failure) => Err(undo(&container, failure)),
    }
}

/// What every process of ours that makes others needs first.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn prepare_process(preserve_fds: u32) -> Result<(), Failure> {
    umask(Mode::from_bits_truncate(0o022));
    // libcontainer does so too, but late: a hook would inherit what the caller left open.
    sys::close_on_exec_from(3 + preserve_fds).map_err(Failure::sys("mark inherited descriptors"))
}

fn load_spec(bundle: &Path) -> Result<Spec, Failure> {
    let path = bundle.join("config.json");
    let bytes = fs::read(&path).map_err(Failure::file("read", &path))?;
    serde_json::from_slice(&bytes).map_err(|source| Failure::Json { path, source })
}

/// The canonical root filesystem, which is written back so that `exec` needs no bundle.
fn find_rootfs(bundle: &Path, spec: &mut Spec) -> Result<PathBuf, Failure> {
    let root = spec.root_mut().as_mut().ok_or_else(|| spec_check::Refusal::missing("root"))?;
    let path = bundle.join(root.path());
    let rootfs = fs::canonicalize(&path).map_err(Failure::file("find the root filesystem", &path))?;
    root.set_path(rootfs.clone());
    Ok(rootfs)
}

/// Resolves the sources of bind mounts, which the bundle may give relative to itself, while errors can still name them.
fn find_sources(bundle: &Path, spec: &mut Spec) -> Result<(), Failure> {
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let bind = mount.typ().as_deref() == Some("bind");
        let Some(source) = mount.source().clone().filter(|_| bind) else { continue };
        let path = bundle.join(source);
        fs::metadata(&path).map_err(Failure::file("find the source of a mount", &path))?;
        mount.set_source(Some(path));
    }
    Ok(())
}

/// Makes the working directory if the root filesystem has none, as runc does. One inside a mount is the mount's affair.
fn make_cwd(spec: &Spec, rootfs: &Path) -> Result<(), Failure> {
    let Some(process) = spec.process() else { return Ok(()) };
    let cwd = process.cwd();
    let covers = |destination: &Path| destination != Path::new("/") && cwd.starts_with(destination);
    if spec.mounts().iter().flatten().any(|mount| covers(mount.destination())) {
        return Ok(());
    }
    let failed = |error: pathrs::error::Error| Failure::Start {
        reason: format!("cannot make process.cwd {}: {}", cwd.display(), crate::error::chain(&error)),
    };
    // Links of the image are followed inside the root filesystem.
    let root = pathrs::Root::open(rootfs).map_err(failed)?;
    if root.resolve(cwd).is_err() {
        root.mkdir_all(cwd, &Permissions::from_mode(0o755)).map_err(failed)?;
    }
    Ok(())
}

/// Links that libcontainer makes in `/dev`, and fails to make if they exist.
const DEV_LINKS: [&str; 5] = ["fd", "stdin", "stdout", "stderr", "kcore"];
/// Devices that it makes there, with their minor numbers; all but `tty` have the major number 1.
const DEV_NODES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Judges and clears the root filesystem's own `/dev`.
///
/// libcontainer follows a link there out of the root filesystem, and makes and deletes files of the host. And without a
/// mount on `/dev` it cannot use a root filesystem twice: what an earlier container was given is removed first.
fn prepare_dev(spec: &Spec, rootfs: &Path) -> Result<(), Failure> {
    let dev = rootfs.join("dev");
    let is_link = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    if is_link(&dev) {
        return Err(Failure::Start { reason: format!("{} must not be a symbolic link", dev.display()) });
    }
    if spec.mounts().iter().flatten().any(|mount| mount.destination() == Path::new("/dev")) {
        return Ok(());
    }
    let links = DEV_LINKS.iter().map(|name| dev.join(name)).filter(|path| is_link(path));
    let nodes = DEV_NODES.iter().filter_map(|&(name, major, minor)| {
        let path = dev.join(name);
        let number = fs::symlink_metadata(&path).ok()?.rdev();
        (number == makedev(major, minor)).then_some(path)
    });
    for path in links.chain(nodes) {
        fs::remove_file(&path).map_err(Failure::file("replace", &path))?;
    }
    Ok(())
}

/// Makes everything that `undo` undoes.
fn make(
    container: &mut Container,
    mut spec: Spec,
    payload: Payload,
    mut console: Option<Console>,
    args: &CreateArgs,
    log: &Log,
) -> Result<Option<OwnedFd>, Failure> {
    let Container { dir, record } = container;
    record.cgroup.must_be_empty()?;
    prepare_dev(&spec, &record.rootfs)?;
    make_cwd(&spec, &record.rootfs)?;
    record.new_keyring = !args.no_new_keyring;
    // Before there is anything to clean up, so that `delete --force` knows where to look should we be killed.
    dir.save(record)?;
    dir.save_spec(&spec)?;
    if record.new_keyring {
        keyring::join(&record.id)?;
    }
    let changes = mounts::changes(&spec, record.cgroup.unified);
    let host_dev = HostDev::take(&mut spec)?;
    let sources = Sources::take(&mut spec, &record.rootfs)?;
    let owner = stdio_owner(&spec);
    let spec = Rc::new(spec);
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    if let Some(resources) = resources {
        record.cgroup.make(resources)?;
    }
    let launch = Launch {
        spec: Rc::clone(&spec),
        notify_socket: dir.notify_socket(),
        door: record.cgroup.door(None, None)?,
        console: console.as_mut().and_then(Console::take_theirs),
        preserve_fds: args.preserve_fds,
        no_pivot: args.no_pivot,
        sources,
        payload,
    };
    let pid = launch.init(record, log)?;
    record.init = ProcessName::of(pid);
    dir.save(record)?;
    // Last, since our own processes in the cgroup counted too; now there is one.
    let pids = resources.and_then(|resources| resources.pids().as_ref());
    if pids.is_some() {
        let mut limits = LinuxResources::default();
        limits.set_pids(pids.cloned());
        // libcgroups allows devices of its own choice each time it sets a limit; the rules put that right.
        limits.set_devices(resources.and_then(|resources| resources.devices().clone()));
        record.cgroup.limit(&limits)?;
    }
    if let Some(host_dev) = host_dev {
        host_dev.put(pid)?;
    }
    mounts::apply(pid, &changes)?;
    if let Some(linux) = spec.linux() {
        network::bring_up_loopback(linux, pid)?;
    }
    crate::console::give_stdio(pid, owner);
    let master = console.map(Console::hand_over).transpose()?.flatten();
    if let Some(path) = &args.pid_file {
        write_pid_file(path, pid)?;
    }
    Ok(master)
}

/// The host's uid of the container's user.
fn stdio_owner(spec: &Spec) -> Option<u32> {
    let uid = spec.process().as_ref()?.user().uid();
    let linux = spec.linux().as_ref()?;
    let mappings = linux.uid_mappings().as_deref().unwrap_or_default();
    host_uid(uid, mappings)
}

/// Translates a uid of the container; without mappings it is the host's.
pub(crate) fn host_uid(uid: u32, mappings: &[oci_spec::runtime::LinuxIdMapping]) -> Option<u32> {
    if mappings.is_empty() {
        return Some(uid);
    }
    mappings.iter().find_map(|mapping| {
        let offset = uid.checked_sub(mapping.container_id())?;
        (offset < mapping.size()).then(|| mapping.host_id() + offset)
    })
}

/// Writes a pid file so that a reader sees all of it or nothing.
///
/// # Errors
/// The file system's refusal.
pub(crate) fn write_pid_file(path: &Path, pid: i32) -> Result<(), Failure> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}"));
    fs::write(&new, pid.to_string()).map_err(Failure::file("write the pid file", &new))?;
    fs::rename(&new, path).map_err(Failure::file("write the pid file", path))
}

/// Leaves nothing of a container that could not be made.
fn undo(container: &Container, first: Failure) -> Failure {
    kill_children();
    // A cgroup in which somebody else lives is not ours to remove.
    let busy = matches!(first, Failure::CgroupBusy { .. });
    let cgroup = if busy { Ok(()) } else { container.record.cgroup.remove() };
    match cgroup.and(container.dir.remove()) {
        Ok(()) => first,
        Err(second) => Failure::AndCleanup { first: Box::new(first), second: crate::error::chain(&second) },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use oci_spec::runtime::LinuxIdMappingBuilder;

    #[test]
    fn uids_are_translated_through_the_mappings() {
        let mapping = |container: u32, host: u32, size: u32| {
            LinuxIdMappingBuilder::default().container_id(container).host_id(host).size(size).build().unwrap()
        };
        let mappings = [mapping(0, 1000, 1), mapping(1, 100_000, 10)];
        assert_eq!(host_uid(0, &mappings), Some(1000));
        assert_eq!(host_uid(10, &mappings), Some(100_009));
        assert_eq!(host_uid(11, &mappings), None);
        assert_eq!(host_uid(7, &[]), Some(7));
    }
}
