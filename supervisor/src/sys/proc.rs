//! What `/proc` says. Only files that a container's process cannot make block are read.

use std::{fs, io};

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

/// When a process was started, in nanoseconds since the Unix epoch; 0 if there is none.
pub fn started_at_unix_ns(pid: u32) -> i64 {
    let Some(stat) = stat(pid) else { return 0 };
    let Ok(text) = fs::read_to_string("/proc/stat") else { return 0 };
    let boot = text.lines().find_map(|l| l.strip_prefix("btime ")).and_then(|s| s.trim().parse::<i64>().ok());
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    let ticks = i64::try_from(stat.start_time).unwrap_or(0);
    boot.map_or(0, |boot| boot * 1_000_000_000 + ticks * (1_000_000_000 / per_second))
}
