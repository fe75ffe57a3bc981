//! Runs the OCI runtime (and, for mounts, our own binary) as a child whose exit the reaper collects.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid as NixPid;

use super::command::Runtime;
use super::own_copy;
use crate::lifecycle::Pid;
use crate::options::Options;

/// The name of the embedded runtime, next to the shim.
pub const EMBEDDED: &str = "holdfast-oci";
/// Where runc and crun keep their state under containerd.
const FOREIGN_ROOT: &str = "/run/containerd/runc";
/// What systemd and containerd tell each other and their direct children: nothing that a shim or a runtime may take for its
/// own. With the first of them runc waits until the container says that it is ready, which is for ever (contract, trap 47);
/// with the second crun passes fds on.
pub const MANAGERS_OWN: [&str; 9] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "GOMAXPROCS",
    "MAX_SHIM_VERSION",
    "SCHED_CORE",
];
/// The most that is read of what a runtime printed.
const OUTPUT_LIMIT: u64 = 64 << 10;

/// No OCI runtime was named and none was found.
#[derive(Debug, thiserror::Error)]
#[error("no OCI runtime: {EMBEDDED} is not beside the shim, and neither runc nor crun is in PATH")]
pub struct NoRuntime;

/// The standard streams of a child.
#[derive(Debug, Default)]
pub struct ChildStdio {
    /// None: `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// None: `/dev/null`.
    pub stdout: Option<OwnedFd>,
    /// None: `/dev/null`.
    pub stderr: Option<OwnedFd>,
}

/// Where the embedded runtime keeps its state, without the namespace. Each manager's is its own: two daemons on one machine
/// may have containers of the same name.
pub fn embedded_root(run_dir: &Path, instance: &str) -> PathBuf {
    run_dir.join("oci").join(instance)
}

/// Chooses the OCI runtime: the one that the options name, else the embedded one next to `shim`, else runc or crun from
/// `PATH`. `embedded_root` is [`embedded_root`]'s.
///
/// # Errors
/// [`NoRuntime`]. A runtime that was named is not looked for here: that it is missing shows when it is run.
pub fn choose(options: &Options, shim: &Path, embedded_root: PathBuf, namespace: &str) -> Result<Runtime, NoRuntime> {
    let binary = if options.binary_name.is_empty() { find(shim)? } else { PathBuf::from(&options.binary_name) };
    let root = match options.root.as_str() {
        "" if is_embedded(&binary) => embedded_root,
        "" => FOREIGN_ROOT.into(),
        chosen => PathBuf::from(chosen),
    };
    Ok(Runtime { binary, root: root.join(namespace), systemd_cgroup: options.systemd_cgroup })
}

/// Whether it is our own runtime, which has not all that others have.
pub fn is_embedded(binary: &Path) -> bool {
    binary.file_name().is_some_and(|name| name == EMBEDDED)
}

fn find(shim: &Path) -> Result<PathBuf, NoRuntime> {
    let embedded = shim.with_file_name(EMBEDDED);
    if is_executable(&embedded) {
        return Ok(embedded);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut candidates = ["runc", "crun"].into_iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    candidates.find(|candidate| is_executable(candidate)).ok_or(NoRuntime)
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Starts a program in a process group of its own, so that a deadline ends what it has started too, and without what is
/// [`MANAGERS_OWN`]. Nobody but the reaper waits for it.
///
/// # Errors
/// As `execve(2)`: a program that is missing shows here.
pub fn spawn(program: &Path, arguments: &[OsString], stdio: ChildStdio) -> io::Result<Pid> {
    let mut command = Command::new(program);
    // Not that of whoever started us.
    command.env_remove(own_copy::MARK);
    start(command, arguments, stdio)
}

/// As [`spawn`], but what is executed is a `copy` of the program, see [`own_copy`].
///
/// # Errors
/// See [`spawn`].
pub fn spawn_copy(program: &Path, copy: &OwnedFd, arguments: &[OsString], stdio: ChildStdio) -> io::Result<Pid> {
    let mut command = Command::new(own_copy::path(copy));
    command.arg0(program).env(own_copy::MARK, "1");
    start(command, arguments, stdio)
}

fn start(mut command: Command, arguments: &[OsString], stdio: ChildStdio) -> io::Result<Pid> {
    let stream = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
    // The server has none of them any more; `delete` has.
    for variable in MANAGERS_OWN {
        command.env_remove(variable);
    }
    let child = command
        .args(arguments)
        .stdin(stream(stdio.stdin))
        .stdout(stream(stdio.stdout))
        .stderr(stream(stdio.stderr))
        .process_group(0)
        .spawn()?;
    Ok(child.id())
}

/// Ends a child that was started by [`spawn`] and is not reaped yet, with all of its group.
pub fn kill_group(pid: Pid) {
    let _ = killpg(NixPid::from_raw(pid.cast_signed()), Signal::SIGKILL);
}

/// A file in memory: what a child is given to read, or where it prints without anybody having to listen.
///
/// # Errors
/// As `memfd_create(2)` and `write(2)`.
pub fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("holdfast", MFdFlags::MFD_CLOEXEC)?);
    if !content.is_empty() {
        io::Write::write_all(&mut file, content)?;
        file.seek(SeekFrom::Start(0))?;
    }
    Ok(file.into())
}

/// What a child printed into a [`memory_file`].
pub fn printed(file: OwnedFd) -> String {
    let mut file = File::from(file);
    let mut text = Vec::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(OUTPUT_LIMIT).read_to_end(&mut text));
    if read.is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_named_runtime_has_a_root_of_its_own_per_namespace() {
        let own = || embedded_root(Path::new("/run/holdfast"), "1f2e");
        let options = Options { binary_name: "/x/runc".to_owned(), ..Options::default() };
        let runtime = choose(&options, Path::new("/x/shim"), own(), "k8s.io").unwrap();
        assert_eq!(runtime.root, Path::new("/run/containerd/runc/k8s.io"));
        let options = Options { binary_name: "/x/holdfast-oci".to_owned(), ..Options::default() };
        let runtime = choose(&options, Path::new("/x/shim"), own(), "k8s.io").unwrap();
        assert_eq!(runtime.root, Path::new("/run/holdfast/oci/1f2e/k8s.io"));
        let options = Options { root: "/r".to_owned(), ..options };
        let runtime = choose(&options, Path::new("/x/shim"), own(), "n").unwrap();
        assert_eq!(runtime.root, Path::new("/r/n"));
    }

    #[test]
    fn what_a_child_prints_is_read_from_the_beginning() {
        let file = memory_file(b"").unwrap();
        let copy = file.try_clone().unwrap();
        io::Write::write_all(&mut File::from(copy), b"  broken \n").unwrap();
        assert_eq!(printed(file), "broken");
        let mut text = String::new();
        File::from(memory_file(b"given").unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "given");
    }
}
