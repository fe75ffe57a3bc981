//! What `/proc` says. Only files that a container's process cannot make block are read.

use std::os::fd::AsFd;
use std::{fs, io};

use nix::time::{ClockId, clock_gettime};
use procfs::process::Process;
use procfs::{Current, Meminfo};

use crate::identity::{Identity, Stat, identify};
use crate::sys;

/// The boot that this is.
///
/// # Errors
/// When `/proc` is not there.
pub fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned())
}

/// State and start time of a process, if there is one.
pub fn stat(pid: u32) -> Option<Stat> {
    Stat::parse(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// Whether the process that was recorded with this start time still runs under the pid.
pub fn is_live(pid: u32, start_time: u64) -> bool {
    identify(start_time, stat(pid)) == Identity::Live
}

/// Signals the process that was recorded with this start time, never another one.
///
/// # Errors
/// `ESRCH` if it has ended; else as `pidfd_send_signal(2)`.
pub fn signal(pid: u32, start_time: u64, signal: i32) -> io::Result<()> {
    let pidfd = sys::pidfd_open(pid)?;
    // Whom the pidfd stands for cannot change any more.
    if !is_live(pid, start_time) {
        return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
    }
    sys::pidfd_signal(pidfd.as_fd(), signal)
}

/// The start time of a process, 0 if there is none.
pub fn start_time(pid: u32) -> u64 {
    stat(pid).map_or(0, |s| s.start_time)
}

/// When a process was started, in nanoseconds since the Unix epoch; 0 if there is none. The time of the boot is what two
/// clocks differ by: `/proc/stat`, which has it too, counts all interrupts first.
pub fn started_at_unix_ns(pid: u32) -> i64 {
    let Some(stat) = stat(pid) else { return 0 };
    let now = |clock| clock_gettime(clock).map_or(0, |t| t.tv_sec() * 1_000_000_000 + t.tv_nsec());
    let boot = now(ClockId::CLOCK_REALTIME) - now(ClockId::CLOCK_BOOTTIME);
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let ticks = i64::try_from(stat.start_time).unwrap_or(0);
    boot + ticks * (1_000_000_000 / per_second)
}

/// The memory of a process in bytes: all that is resident, and what of that is its own and not a file's. From
/// `/proc/PID/status`, which, unlike `smaps`, takes no lock of the process. `None` if there is no such process, or if it is
/// the kernel's own.
pub fn memory(pid: u32) -> Option<(u64, u64)> {
    let status = Process::new(pid.try_into().ok()?).ok()?.status().ok()?;
    let bytes = |kib: Option<u64>| kib?.checked_mul(1024);
    Some((bytes(status.vmrss)?, bytes(status.rssanon)?))
}

/// How much memory the machine has, in bytes; `None` if the kernel does not say.
pub fn memory_of_machine() -> Option<u64> {
    Meminfo::current().ok().map(|memory| memory.mem_total)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn memory_is_told_in_bytes() {
        let (resident, anonymous) = memory(std::process::id()).unwrap();
        assert!(resident > anonymous && anonymous > 0);
        let machine = memory_of_machine().unwrap();
        assert!(machine > resident);
        assert_eq!((memory(0), memory(u32::MAX)), (None, None));
    }
}
