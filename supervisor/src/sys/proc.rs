//! What `/proc` says. Only files that a container's process cannot make block are read.

use std::{fs, io};

use nix::time::{ClockId, clock_gettime};

use crate::identity::{Identity, Stat, identify};

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
/// `/proc/PID/status`, which, unlike `smaps`, takes no lock of the process. `None` if there is no such process.
pub fn memory(pid: u32) -> Option<(u64, u64)> {
    memory_of_status(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/status")).ok()?))
}

fn memory_of_status(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((field("VmRSS")?, field("RssAnon")?))
}

/// How much memory the machine has, in bytes; `None` if the kernel does not say.
pub fn memory_of_machine() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"))?;
    total.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn memory_is_read_from_the_status() {
        let text = "Name:\tVmRSS: 1 kB\nVmRSS:\t    3456 kB\nRssAnon:\t     400 kB\n";
        assert_eq!(memory_of_status(text), Some((3456 << 10, 400 << 10)));
        assert_eq!(memory_of_status("Name:\tkthreadd\n"), None, "a kernel thread has none");
        let (resident, anonymous) = memory(std::process::id()).unwrap();
        assert!(resident > anonymous && anonymous > 0);
        assert_eq!(memory(0), None);
    }
}
