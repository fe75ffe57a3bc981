//! The last code that runs in the container before the user's program: finds it and executes it.
//!
//! It replaces libcontainer's own, which rebuilds the environment through a hash map (losing order), searches the path
//! of the process instead of the container's, and leaves SIGPIPE ignored.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat, makedev};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, execve};
use oci_spec::runtime::{Process, Spec};

use crate::{console, sys};

/// Executes `process.args` with `process.env`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Payload {
    /// `HOME` was not given: it is looked up in the container's `/etc/passwd`.
    pub(crate) home_missing: bool,
    /// Whether the size of its terminal is set from within, as the last thing before it begins: an exec waits for nobody
    /// who sets it from outside. Not of a first process, which somebody may have given another size before the start.
    pub(crate) sizes_terminal: bool,
}

impl Executor for Payload {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let process = spec.process().as_ref().ok_or(ExecutorValidationError::CantHandle("payload"))?;
        find_program(process).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is an argument of execve below; that of this process is never inherited.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::CantHandle("payload"))?;
        let program = find_program(process).map_err(ExecutorError::Other)?;
        let args = c_strings(process.args().as_deref().unwrap_or_default())?;
        let env = c_strings(&self.environment(process))?;
        let failed = |errno: Errno| ExecutorError::Other(describe("exec", &args[0].to_string_lossy(), errno));
        sys::reset_signals().map_err(failed)?;
        if let Some(size) =
            process.console_size().filter(|size| self.sizes_terminal && size.height() > 0 && size.width() > 0)
        {
            // A filter may forbid it; then the terminal gets its size a moment later, from outside.
            let _ = sys::set_window_size(std::io::stdin().as_fd(), console::window(size.height(), size.width()));
        }
        own_null_device();
        match execve(&program, &args, &env) {
            Ok(never) => match never {},
            Err(errno) => Err(failed(errno)),
        }
    }
}

impl Payload {
    fn environment(&self, process: &Process) -> Vec<String> {
        let mut env = process.env().clone().unwrap_or_default();
        if self.home_missing {
            // `normalize` has put a placeholder there, so that libcontainer asks no name service.
            env.retain(|entry| !entry.starts_with("HOME="));
            let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
            env.push(format!("HOME={}", home_of(&passwd, process.user().uid())));
        }
        last_of_each(env)
    }
}

/// Replaces the machine's null device by the container's: through a descriptor of the former its mode and owner could be
/// changed for the whole machine. Best effort: the container need not have one, and a filter may forbid the calls.
fn own_null_device() {
    let null = makedev(1, 3);
    let is_null = |fd: &dyn AsFd| {
        fstat(fd.as_fd())
            .is_ok_and(|stat| stat.st_rdev == null && stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits())
    };
    let (stdin, stdout, stderr) =
        (is_null(&std::io::stdin()), is_null(&std::io::stdout()), is_null(&std::io::stderr()));
    if !(stdin || stdout || stderr) {
        return;
    }
    let Ok(own) = File::options().read(true).write(true).open("/dev/null") else { return };
    if !is_null(&own) {
        return;
    }
    if stdin {
        let _ = dup2_stdin(&own);
    }
    if stdout {
        let _ = dup2_stdout(&own);
    }
    if stderr {
        let _ = dup2_stderr(&own);
    }
}

/// Of entries of the same name the last: getenv(3) would find the first.
fn last_of_each(env: Vec<String>) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut seen = HashSet::new();
    let mut kept: Vec<String> = env.into_iter().rev().filter(|entry| seen.insert(name(entry))).collect();
    kept.reverse();
    kept
}

/// The home directory of a user id in the text of `/etc/passwd`; `/` if there is none.
fn home_of(passwd: &str, uid: u32) -> String {
    let home = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner: u32 = fields.nth(2)?.parse().ok()?;
        let home = fields.nth(2)?;
        (owner == uid && !home.is_empty()).then(|| home.to_owned())
    });
    home.unwrap_or_else(|| "/".to_owned())
}

fn c_strings(texts: &[String]) -> Result<Vec<CString>, ExecutorError> {
    texts.iter().map(|text| CString::new(text.as_bytes()).map_err(|_| ExecutorError::InvalidArg)).collect()
}

/// The path of `args[0]`, searched in the container's `PATH` as execvp(3) would.
fn find_program(process: &Process) -> Result<CString, String> {
    let name = process.args().as_ref().and_then(|args| args.first()).ok_or("process.args is empty")?;
    if name.contains('/') {
        return check(Path::new(name)).map_err(|errno| describe("stat", name, errno));
    }
    let path = process.env().iter().flatten().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = false;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        match check(&Path::new(dir).join(name)) {
            Ok(program) => return Ok(program),
            Err(errno) => denied |= errno == Errno::EACCES,
        }
    }
    if denied {
        return Err(format!("exec: {name:?}: permission denied"));
    }
    Err(format!("exec: {name:?}: executable file not found in $PATH"))
}

/// That the file is no directory and may be executed, with the ids that the payload will have.
fn check(path: &Path) -> Result<CString, Errno> {
    use std::os::unix::ffi::OsStrExt;
    let program = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let metadata = fs::metadata(path).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    if metadata.is_dir() {
        return Err(Errno::EISDIR);
    }
    match sys::may_execute(&program) {
        // Kernels before 5.8 have no faccessat2: execve will say.
        Ok(()) | Err(Errno::ENOSYS) => Ok(program),
        Err(errno) => Err(errno),
    }
}

/// In the words in which Docker looks for the reason.
fn describe(operation: &str, name: &str, errno: Errno) -> String {
    let reason = errno.desc().to_lowercase();
    match (operation, errno) {
        ("stat", Errno::ENOENT | Errno::ENOTDIR) => format!("exec: {name:?}: stat {name}: {reason}"),
        _ => format!("exec: {name:?}: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use oci_spec::runtime::ProcessBuilder;

    fn process(args: &[&str], env: &[&str]) -> Process {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<String>>();
        ProcessBuilder::default().args(owned(args)).env(owned(env)).build().unwrap()
    }

    #[test]
    fn failures_are_in_the_words_that_docker_looks_for() {
        let reason = |args: &[&str], env: &[&str]| find_program(&process(args, env)).unwrap_err();
        assert_eq!(reason(&["nope"], &["PATH=/bin"]), "exec: \"nope\": executable file not found in $PATH");
        assert_eq!(reason(&["sh"], &[]), "exec: \"sh\": executable file not found in $PATH");
        assert_eq!(reason(&["/no/pe"], &[]), "exec: \"/no/pe\": stat /no/pe: no such file or directory");
        assert_eq!(reason(&["/"], &[]), "exec: \"/\": is a directory");
        assert_eq!(reason(&["/etc/passwd"], &[]), "exec: \"/etc/passwd\": permission denied");
        assert_eq!(reason(&["passwd"], &["PATH=/nope:/etc"]), "exec: \"passwd\": permission denied");
    }

    #[test]
    fn the_first_hit_in_the_path_wins() {
        let found = find_program(&process(&["sh"], &["PATH=/nope:/bin:/usr/bin"])).unwrap();
        assert_eq!(found.to_str().unwrap(), "/bin/sh");
    }

    #[test]
    fn home_comes_from_the_containers_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:\nnone:x:9:9:::\n";
        assert_eq!(home_of(passwd, 0), "/root");
        assert_eq!(home_of(passwd, 33), "/var/www");
        assert_eq!(home_of(passwd, 9), "/");
        assert_eq!(home_of(passwd, 1000), "/");
    }
}
