//! Version 1 metrics, file by file.
// A message is filled as its files are read, some of which decide whether there is a message at all.
#![allow(clippy::field_reassign_with_default)]

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics,
    PidsStat, RdmaEntry, RdmaStat, Throttle,
};
use protobuf::{Message, MessageField};

use super::{Files, find, huge_page_sizes, number, pairs, rdma_entries};

/// The metrics of the cgroup that has these directories, encoded.
pub(super) fn metrics(dirs: &[(String, PathBuf)]) -> protobuf::Result<Vec<u8>> {
    let mut files = Files::default();
    let dir = |name| find(dirs, name);
    let mut metrics = Metrics::default();
    metrics.cpu = MessageField::some(cpu(dir("cpu"), dir("cpuacct"), &mut files));
    metrics.pids = dir("pids").and_then(|d| pids(d, &mut files)).into();
    if let Some(dir) = dir("memory") {
        metrics.memory = memory(dir, &mut files).into();
        metrics.memory_oom_control = files.read(dir, "memory.oom_control").map(parse_oom_control).into();
    }
    metrics.blkio = dir("blkio").map(|d| blkio(d, &mut files)).into();
    metrics.hugetlb = dir("hugetlb").map(|d| hugetlb(d, &mut files)).unwrap_or_default();
    metrics.rdma = dir("rdma").map(|d| rdma(d, &mut files)).into();
    metrics.write_to_bytes()
}

fn cpu(cpu: Option<&Path>, cpuacct: Option<&Path>, files: &mut Files) -> CPUStat {
    let mut stat = CPUStat::default();
    stat.throttling = cpu.and_then(|d| files.read(d, "cpu.stat")).map(parse_throttling).into();
    if let Some(dir) = cpuacct {
        let mut usage = CPUUsage::default();
        usage.total = files.number(dir, "cpuacct.usage").unwrap_or_default();
        if let Some(text) = files.read(dir, "cpuacct.usage_percpu") {
            usage.per_cpu = text.split_whitespace().filter_map(number).collect();
        }
        if let Some(text) = files.read(dir, "cpuacct.stat") {
            (usage.user, usage.kernel) = parse_cpuacct(text);
        }
        stat.usage = MessageField::some(usage);
    }
    stat
}

fn parse_throttling(text: &str) -> Throttle {
    let mut throttle = Throttle::default();
    for (key, value) in pairs(text) {
        match key {
            "nr_periods" => throttle.periods = value,
            "nr_throttled" => throttle.throttled_periods = value,
            "throttled_time" => throttle.throttled_time = value,
            _ => {}
        }
    }
    throttle
}

/// User and system time, in nanoseconds. The kernel counts them in `USER_HZ`, which is 100 on every architecture that we
/// run on.
fn parse_cpuacct(text: &str) -> (u64, u64) {
    const NANOSECONDS_PER_TICK: u64 = 1_000_000_000 / 100;
    let (mut user, mut system) = (0, 0);
    for (key, ticks) in pairs(text) {
        match key {
            "user" => user = ticks.saturating_mul(NANOSECONDS_PER_TICK),
            "system" => system = ticks.saturating_mul(NANOSECONDS_PER_TICK),
            _ => {}
        }
    }
    (user, system)
}

fn pids(dir: &Path, files: &mut Files) -> Option<PidsStat> {
    let mut stat = PidsStat::default();
    stat.current = files.number(dir, "pids.current")?;
    // Without a limit the stock shim says 0 here, and so do its readers expect it.
    stat.limit = files.number(dir, "pids.max").filter(|&n| n != u64::MAX).unwrap_or_default();
    Some(stat)
}

fn memory(dir: &Path, files: &mut Files) -> Option<MemoryStat> {
    let mut stat = parse_memory(files.read(dir, "memory.stat")?);
    stat.usage = memory_entry(dir, "memory", files).into();
    stat.swap = memory_entry(dir, "memory.memsw", files).into();
    stat.kernel = memory_entry(dir, "memory.kmem", files).into();
    stat.kernel_tcp = memory_entry(dir, "memory.kmem.tcp", files).into();
    Some(stat)
}

/// The four files that belong to one account; `None` where the kernel does not keep it.
fn memory_entry(dir: &Path, prefix: &str, files: &mut Files) -> Option<MemoryEntry> {
    let mut read = |suffix| files.number(dir, &format!("{prefix}.{suffix}"));
    let mut entry = MemoryEntry::default();
    entry.usage = read("usage_in_bytes")?;
    entry.max = read("max_usage_in_bytes").unwrap_or_default();
    entry.failcnt = read("failcnt").unwrap_or_default();
    entry.limit = read("limit_in_bytes").unwrap_or_default();
    Some(entry)
}

fn parse_memory(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for (key, value) in pairs(text) {
        let field = match key {
            "cache" => &mut stat.cache,
            "rss" => &mut stat.rss,
            "rss_huge" => &mut stat.rss_huge,
            "mapped_file" => &mut stat.mapped_file,
            "dirty" => &mut stat.dirty,
            "writeback" => &mut stat.writeback,
            "pgpgin" => &mut stat.pg_pg_in,
            "pgpgout" => &mut stat.pg_pg_out,
            "pgfault" => &mut stat.pg_fault,
            "pgmajfault" => &mut stat.pg_maj_fault,
            "inactive_anon" => &mut stat.inactive_anon,
            "active_anon" => &mut stat.active_anon,
            "inactive_file" => &mut stat.inactive_file,
            "active_file" => &mut stat.active_file,
            "unevictable" => &mut stat.unevictable,
            "hierarchical_memory_limit" => &mut stat.hierarchical_memory_limit,
            "hierarchical_memsw_limit" => &mut stat.hierarchical_swap_limit,
            "total_cache" => &mut stat.total_cache,
            "total_rss" => &mut stat.total_rss,
            "total_rss_huge" => &mut stat.total_rss_huge,
            "total_mapped_file" => &mut stat.total_mapped_file,
            "total_dirty" => &mut stat.total_dirty,
            "total_writeback" => &mut stat.total_writeback,
            "total_pgpgin" => &mut stat.total_pg_pg_in,
            "total_pgpgout" => &mut stat.total_pg_pg_out,
            "total_pgfault" => &mut stat.total_pg_fault,
            "total_pgmajfault" => &mut stat.total_pg_maj_fault,
            "total_inactive_anon" => &mut stat.total_inactive_anon,
            "total_active_anon" => &mut stat.total_active_anon,
            "total_inactive_file" => &mut stat.total_inactive_file,
            "total_active_file" => &mut stat.total_active_file,
            "total_unevictable" => &mut stat.total_unevictable,
            _ => continue,
        };
        *field = value;
    }
    stat
}

fn parse_oom_control(text: &str) -> MemoryOomControl {
    let mut control = MemoryOomControl::default();
    for (key, value) in pairs(text) {
        match key {
            "oom_kill_disable" => control.oom_kill_disable = value,
            "under_oom" => control.under_oom = value,
            "oom_kill" => control.oom_kill = value,
            _ => {}
        }
    }
    control
}

/// The counters of the old CFQ scheduler, else those of the throttling layer: also a kernel that has the scheduler counts
/// nothing there for disks that have another.
fn blkio(dir: &Path, files: &mut Files) -> BlkIOStat {
    let devices = Devices::read();
    let mut read = |name: &str| files.read(dir, name).map(|text| parse_blkio(text, &devices)).unwrap_or_default();
    let mut stat = BlkIOStat::default();
    stat.io_service_bytes_recursive = read("blkio.io_service_bytes_recursive");
    stat.io_serviced_recursive = read("blkio.io_serviced_recursive");
    stat.io_queued_recursive = read("blkio.io_queued_recursive");
    stat.io_service_time_recursive = read("blkio.io_service_time_recursive");
    stat.io_wait_time_recursive = read("blkio.io_wait_time_recursive");
    stat.io_merged_recursive = read("blkio.io_merged_recursive");
    stat.io_time_recursive = read("blkio.time_recursive");
    stat.sectors_recursive = read("blkio.sectors_recursive");
    if stat == BlkIOStat::default() {
        stat.io_service_bytes_recursive = read("blkio.throttle.io_service_bytes");
        stat.io_serviced_recursive = read("blkio.throttle.io_serviced");
    }
    stat
}

/// The names of block devices, from `/proc/diskstats`.
struct Devices(String);

impl Devices {
    fn read() -> Self {
        Self(fs::read_to_string("/proc/diskstats").unwrap_or_default())
    }

    fn name(&self, major: u64, minor: u64) -> String {
        let find = |line: &str| {
            let mut words = line.split_whitespace();
            let found = words.next().and_then(number)? == major && words.next().and_then(number)? == minor;
            found.then(|| words.next().map(|name| format!("/dev/{name}"))).flatten()
        };
        self.0.lines().find_map(find).unwrap_or_default()
    }
}

/// Lines in the form `8:0 Read 4096` or `8:0 4096`; the sum over all devices (`Total 4096`) is left out.
fn parse_blkio(text: &str, devices: &Devices) -> Vec<BlkIOEntry> {
    let parse = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let (op, value) = rest.split_once(' ').unwrap_or(("", rest));
        let mut entry = BlkIOEntry::default();
        (entry.major, entry.minor, entry.value) = (number(major)?, number(minor)?, number(value)?);
        entry.op = op.to_owned();
        entry.device = devices.name(entry.major, entry.minor);
        Some(entry)
    };
    text.lines().filter_map(parse).collect()
}

fn hugetlb(dir: &Path, files: &mut Files) -> Vec<HugetlbStat> {
    let mut stat = |pagesize: String| {
        let mut read = |suffix| files.number(dir, &format!("hugetlb.{pagesize}.{suffix}"));
        let mut stat = HugetlbStat::default();
        stat.usage = read("usage_in_bytes")?;
        stat.max = read("max_usage_in_bytes").unwrap_or_default();
        stat.failcnt = read("failcnt").unwrap_or_default();
        stat.pagesize = pagesize;
        Some(stat)
    };
    huge_page_sizes().into_iter().filter_map(&mut stat).collect()
}

fn rdma(dir: &Path, files: &mut Files) -> RdmaStat {
    let mut stat = RdmaStat::default();
    stat.current = files.read(dir, "rdma.current").map(parse_rdma).unwrap_or_default();
    stat.limit = files.read(dir, "rdma.max").map(parse_rdma).unwrap_or_default();
    stat
}

fn parse_rdma(text: &str) -> Vec<RdmaEntry> {
    let entry = |(device, handles, objects): (&str, u32, u32)| {
        let mut entry = RdmaEntry::default();
        entry.device = device.to_owned();
        (entry.hca_handles, entry.hca_objects) = (handles, objects);
        entry
    };
    rdma_entries(text).map(entry).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::fixture::{Directory, figures, unset};
    use super::*;

    /// Recorded on a host with Linux 6.18.
    const MEMORY_STAT: &str = "cache 9207808\nrss 8978432\nrss_huge 0\nshmem 8933376\nmapped_file 7528448\ndirty 20480\n\
        writeback 0\nworkingset_refault_anon 0\nworkingset_refault_file 225\nswap 0\nswapcached 0\npgpgin 38574\n\
        pgpgout 34134\npgfault 44811\npgmajfault 0\ninactive_anon 0\nactive_anon 1531904\ninactive_file 0\n\
        active_file 274432\nunevictable 16379904\nhierarchical_memory_limit 9223372036854771712\n\
        hierarchical_memsw_limit 9223372036854771712\ntotal_cache 2429726720\ntotal_rss 17707008\ntotal_rss_huge 0\n\
        total_shmem 8937472\ntotal_mapped_file 11112448\ntotal_dirty 327680\ntotal_writeback 0\n\
        total_workingset_refault_anon 0\ntotal_workingset_refault_file 701371\ntotal_swap 0\ntotal_swapcached 0\n\
        total_pgpgin 18247699\ntotal_pgpgout 17846935\ntotal_pgfault 20227741\ntotal_pgmajfault 2433\n\
        total_inactive_anon 8548352\ntotal_active_anon 1581056\ntotal_inactive_file 1372749824\n\
        total_active_file 1048039424\ntotal_unevictable 16379904\n";

    #[test]
    fn memory_is_read_line_by_line() {
        let stat = parse_memory(MEMORY_STAT);
        assert_eq!((stat.cache, stat.rss, stat.dirty), (9_207_808, 8_978_432, 20_480));
        assert_eq!((stat.pg_pg_in, stat.pg_pg_out, stat.pg_fault), (38_574, 34_134, 44_811));
        assert_eq!(stat.hierarchical_swap_limit, 9_223_372_036_854_771_712);
        assert_eq!((stat.total_rss, stat.total_inactive_file), (17_707_008, 1_372_749_824));
        assert_eq!((stat.total_pg_fault, stat.total_pg_maj_fault), (20_227_741, 2_433));
        assert_eq!(stat.total_unevictable, 16_379_904);
    }

    /// All controllers in one directory: no two have a file of the same name.
    fn recorded(name: &str) -> (Directory, Vec<(String, PathBuf)>) {
        let dir = Directory::new(name);
        dir.write("memory.stat", &MEMORY_STAT.replace(" 0\n", " 11\n"));
        dir.write("memory.oom_control", "oom_kill_disable 1\nunder_oom 1\noom_kill 4\n");
        for (account, n) in [("memory", 100), ("memory.memsw", 200), ("memory.kmem", 300), ("memory.kmem.tcp", 400)] {
            for (file, n) in ["usage_in_bytes", "max_usage_in_bytes", "failcnt", "limit_in_bytes"].iter().zip(n..) {
                dir.write(&format!("{account}.{file}"), &format!("{n}\n"));
            }
        }
        dir.write("cpu.stat", "nr_periods 7\nnr_throttled 3\nthrottled_time 1500\n");
        dir.write("cpuacct.usage", "501\n");
        dir.write("cpuacct.usage_percpu", "500 1 \n");
        dir.write("cpuacct.stat", "user 40\nsystem 10\n");
        dir.write("pids.current", "5\n");
        dir.write("pids.max", "50\n");
        dir.write("rdma.current", "mlx5_0 hca_handle=2 hca_object=2000\n");
        dir.write("rdma.max", "mlx5_0 hca_handle=3 hca_object=max\n");
        for size in huge_page_sizes() {
            for (file, n) in [("usage_in_bytes", 1), ("max_usage_in_bytes", 2), ("failcnt", 3)] {
                dir.write(&format!("hugetlb.{size}.{file}"), &format!("{n}\n"));
            }
        }
        let controllers = ["cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb", "rdma"];
        let dirs = controllers.map(|name| (name.to_owned(), dir.0.clone())).into();
        (dir, dirs)
    }

    fn read(dirs: &[(String, PathBuf)]) -> Metrics {
        Metrics::parse_from_bytes(&metrics(dirs).unwrap()).unwrap()
    }

    #[test]
    fn every_figure_of_the_message_is_read_from_its_file() {
        let (dir, dirs) = recorded("v1");
        for (name, n) in [
            ("io_service_bytes_recursive", 1),
            ("io_serviced_recursive", 2),
            ("io_queued_recursive", 3),
            ("io_service_time_recursive", 4),
            ("io_wait_time_recursive", 5),
            ("io_merged_recursive", 6),
        ] {
            dir.write(&format!("blkio.{name}"), &format!("999999:1 Read {n}\nTotal {n}\n"));
        }
        dir.write("blkio.time_recursive", "999999:1 7\n");
        dir.write("blkio.sectors_recursive", "999999:1 8\n");
        let figures = figures(&read(&dirs));
        let mut expected = vec!["cgroup_stats", "hugetlb", "network"];
        // The devices have no name, being none of this machine's, and two counters no operation.
        expected
            .extend(figures.keys().map(String::as_str).filter(|n| n.starts_with("blkio.") && n.ends_with(".device")));
        expected.extend(["blkio.io_time_recursive.op", "blkio.sectors_recursive.op"]);
        if !huge_page_sizes().is_empty() {
            expected.retain(|name| *name != "hugetlb");
        }
        expected.sort_unstable();
        assert_eq!(unset(&figures), expected);
        for (name, value) in [
            ("memory.usage.usage", "100"),
            ("memory.swap.max", "201"),
            ("memory.kernel.failcnt", "302"),
            ("memory.kernel_tcp.limit", "403"),
            ("memory_oom_control.under_oom", "1"),
            ("cpu.usage.kernel", "100000000"),
            ("cpu.usage.per_cpu", "500"),
            ("cpu.throttling.throttled_time", "1500"),
            ("blkio.io_merged_recursive.value", "6"),
            ("blkio.io_time_recursive.value", "7"),
            ("blkio.sectors_recursive.value", "8"),
            ("pids.limit", "50"),
            ("rdma.current.hca_objects", "2000"),
        ] {
            assert_eq!(figures[name], value, "{name}");
        }
    }

    /// A kernel that has the CFQ scheduler, and disks that have another.
    #[test]
    fn a_scheduler_that_counts_nothing_does_not_hide_what_the_throttling_layer_counts() {
        let (dir, dirs) = recorded("cfq");
        dir.write("blkio.io_serviced_recursive", "Total 0\n");
        dir.write("blkio.throttle.io_serviced", "999999:1 Read 16\nTotal 16\n");
        dir.write("blkio.throttle.io_service_bytes", "999999:1 Read 65536\nTotal 65536\n");
        let blkio = read(&dirs).blkio.unwrap();
        assert_eq!(blkio.io_serviced_recursive[0].value, 16);
        assert_eq!(blkio.io_service_bytes_recursive[0].value, 65_536);
    }

    #[test]
    fn processor_time_is_in_nanoseconds() {
        assert_eq!(parse_cpuacct("user 40588\nsystem 10417\n"), (405_880_000_000, 104_170_000_000));
        let text = "nr_periods 7\nnr_throttled 3\nthrottled_time 1500\nnr_bursts 0\nburst_time 0\n";
        let throttle = parse_throttling(text);
        assert_eq!((throttle.periods, throttle.throttled_periods, throttle.throttled_time), (7, 3, 1500));
    }

    #[test]
    fn block_devices_are_named_and_the_sum_is_left_out() {
        let devices = Devices("   8       0 sda 1 2 3\n 254       1 vda1 1 2 3\n".into());
        let text = "8:0 Read 4096\n8:0 Write 8192\n254:1 5\n9:9 Sync 1\nTotal 12288\n";
        let got = parse_blkio(text, &devices);
        let got: Vec<_> = got.iter().map(|e| (e.device.as_str(), e.major, e.minor, e.op.as_str(), e.value)).collect();
        let expected = [
            ("/dev/sda", 8, 0, "Read", 4096),
            ("/dev/sda", 8, 0, "Write", 8192),
            ("/dev/vda1", 254, 1, "", 5),
            ("", 9, 9, "Sync", 1),
        ];
        assert_eq!(got, expected);
    }

    #[test]
    fn out_of_memory_control_is_read() {
        let control = parse_oom_control("oom_kill_disable 0\nunder_oom 1\noom_kill 4\n");
        assert_eq!((control.oom_kill_disable, control.under_oom, control.oom_kill), (0, 1, 4));
    }
}
