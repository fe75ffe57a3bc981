//! What a process does to itself, and what it may ask about others.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::{fs, io};

use nix::sys::stat::Mode;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::lifecycle::Pid;

/// Makes this process the parent of its orphaned descendants, `PR_SET_CHILD_SUBREAPER` in `prctl(2)`: without it the
/// exit status of a container's init, whose parent was the OCI runtime, would go to somebody else.
///
/// # Errors
/// As `prctl(2)`.
pub fn become_subreaper() -> io::Result<()> {
    prctl::set_child_subreaper(true).map_err(io::Error::from_raw_os_error)
}

/// Points standard input, output and error at `/dev/null`.
///
/// # Errors
/// As `open(2)` and `dup2(2)`.
pub fn detach_stdio() -> io::Result<()> {
    let null = nix::fcntl::open("/dev/null", nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

/// Marks every fd from 3 on close-on-exec, so that what a careless caller left open reaches neither the OCI runtime nor
/// a container.
///
/// # Errors
/// As `close_range(2)`; `ENOSYS` before Linux 5.11.
pub fn seal_inherited_fds() -> io::Result<()> {
    // SAFETY: close_range with CLOEXEC closes nothing, so no owned fd is invalidated; it takes plain integers.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps the allocator small: one arena also while a second thread runs, memory given back early.
pub fn bound_the_allocator() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, 64 << 10), (libc::M_MMAP_THRESHOLD, 64 << 10)]
    {
        // SAFETY: mallopt takes two integers and is called before any other thread exists.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Field 22 of `/proc/PID/stat`, in clock ticks since boot; with the pid it names a process once and for all. None if
/// the process is gone or a zombie: a dead process that nobody has collected yet is dead.
pub fn start_time(pid: Pid) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &str) -> Option<u64> {
    // The second field is the name in parentheses and may hold anything, parentheses and spaces too.
    let rest = &stat[stat.rfind(')')? + 1..];
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Raises our own `oom_score_adj` by what the caller asks for, bounded as the kernel bounds it. The kernel may refuse.
///
/// # Errors
/// As `write(2)`; `EACCES` without `CAP_SYS_RESOURCE` when the value would fall.
pub fn set_oom_score_adj(pid: Pid, value: i32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), value.clamp(-1000, 1000).to_string())
}

/// The `oom_score_adj` of a process.
///
/// # Errors
/// As `read(2)`, and `InvalidData` if it is no number.
pub fn oom_score_adj(pid: Pid) -> io::Result<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    text.trim().parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Takes what `start` passed as standard input and output: the listening socket and the readiness pipe.
///
/// # Errors
/// As `fcntl(2)`.
pub fn take_inherited() -> io::Result<(OwnedFd, OwnedFd)> {
    use std::os::fd::AsFd;
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    let ready = io::stdout().as_fd().try_clone_to_owned()?;
    Ok((listener, ready))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2 3";
        assert_eq!(parse_stat(stat), Some(4711));
    }

    #[test]
    fn a_zombie_counts_as_dead() {
        let stat = "7 (a) Z 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2 3";
        assert_eq!(parse_stat(stat), None);
    }
}
