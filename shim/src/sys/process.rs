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

/// Lets this process be killed when its parent ends, `PR_SET_PDEATHSIG` in `prctl(2)`. Only for a child whose parent has one
/// thread: it is the end of the thread that counts.
///
/// # Errors
/// As `prctl(2)`, and `BrokenPipe` if that parent has ended already.
pub fn die_with(parent: Pid) -> io::Result<()> {
    let is_ours = || match nix::unistd::getppid().as_raw().cast_unsigned() == parent {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::BrokenPipe, format!("process {parent}, which asked, has ended"))),
    };
    is_ours()?;
    // SAFETY: with this operation prctl(2) takes an integer and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // It may have ended just before.
    is_ours()
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

/// Closes every fd from 3 on: what a careless caller left open would stay open for as long as the container lives, and
/// keep whoever reads the other end waiting. To be called first of all, before this program has opened anything.
///
/// # Errors
/// As `close_range(2)`; `ENOSYS` before Linux 5.9.
pub fn close_inherited_fds() -> io::Result<()> {
    // SAFETY: no fd from 3 on is owned by anything in this process yet, so none is closed behind an owner's back.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the process group, and what it starts from now on, a core-scheduling cookie of its own: no other process shares a
/// core with it at the same time. `PR_SCHED_CORE` in `prctl(2)`.
///
/// # Errors
/// As `prctl(2)`: `EINVAL` from a kernel that has none of it, `ENODEV` on a machine without shared cores.
pub fn make_core_cookie() -> io::Result<()> {
    const PIDTYPE_PGID: libc::c_ulong = 2;
    // SAFETY: with this operation and a null pointer prctl(2) takes integers alone and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, 0, PIDTYPE_PGID, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Field 22 of `/proc/PID/stat`, in clock ticks since boot; with the pid it names a process once and for all. None if
/// the process is gone or a zombie: a dead process that nobody has collected yet is dead.
pub fn start_time(pid: Pid) -> Option<u64> {
    stat_field(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, 22)
}

/// The session of a process, field 6 of `/proc/PID/stat`; None as for [`start_time`].
pub fn session(pid: Pid) -> Option<u32> {
    stat_field(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, 6)
}

/// Whether a child that is not reaped yet is ending or has ended: `PF_EXITING` is set before its fds are closed, so what
/// shows that they are closed comes after this.
pub fn is_ending(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| parse_is_ending(&stat).unwrap_or(true))
}

fn parse_is_ending(stat: &str) -> Option<bool> {
    /// `include/linux/sched.h`.
    const PF_EXITING: u64 = 4;
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    let flags: u64 = fields.nth(5)?.parse().ok()?;
    Some(matches!(state, "Z" | "X") || flags & PF_EXITING != 0)
}

/// The parent of a process that is alive.
pub fn parent(pid: Pid) -> Option<Pid> {
    stat_field(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, 4)
}

/// A numeric field from the fourth on, as proc_pid_stat(5) counts them.
fn stat_field<T: std::str::FromStr>(stat: &str, number: usize) -> Option<T> {
    // The second field is the name in parentheses and may hold anything, parentheses and spaces too.
    let rest = &stat[stat.rfind(')')? + 1..];
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(number - 4)?.parse().ok()
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
        assert_eq!(stat_field(stat, 22), Some(4711));
        assert_eq!(stat_field(stat, 6), Some(7));
        assert_eq!(stat_field(stat, 4), Some(1));
    }

    #[test]
    fn a_process_is_ending_from_the_moment_its_fds_are_closed() {
        let stat = |state: &str, flags: u64| format!("7 (a) b) {state} 1 7 7 0 -1 {flags} 1 2 3");
        assert_eq!(parse_is_ending(&stat("S", 0x40_0100)), Some(false));
        assert_eq!(parse_is_ending(&stat("R", 0x40_0104)), Some(true));
        assert_eq!(parse_is_ending(&stat("Z", 0x40_0100)), Some(true));
        assert!(is_ending(u32::MAX) && !is_ending(std::process::id()));
    }

    #[test]
    fn a_zombie_counts_as_dead() {
        let stat = "7 (a) Z 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2 3";
        assert_eq!(stat_field::<u64>(stat, 22), None);
    }
}
