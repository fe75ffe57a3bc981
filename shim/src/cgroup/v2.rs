//! Version 2 metrics, file by file.
// A message is filled as its files are read, some of which decide whether there is a message at all.
#![allow(clippy::field_reassign_with_default)]

use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat, RdmaEntry,
    RdmaStat,
};
use protobuf::Message;

use super::{Files, huge_page_sizes, number, pairs, rdma_entries};

/// The metrics of the cgroup in `dir`, encoded.
pub(super) fn metrics(dir: &Path) -> protobuf::Result<Vec<u8>> {
    let mut files = Files::default();
    let mut metrics = Metrics::default();
    metrics.pids = pids(dir, &mut files).into();
    metrics.cpu = cpu(dir, &mut files).into();
    metrics.memory = memory(dir, &mut files).into();
    metrics.memory_events = files.read(dir, "memory.events").map(parse_memory_events).into();
    metrics.io = io(dir, &mut files).into();
    metrics.hugetlb = hugetlb(dir, &mut files);
    metrics.rdma = rdma(dir, &mut files).into();
    metrics.write_to_bytes()
}

/// Metrics of which only `memory.events` is known, encoded.
pub(super) fn last_metrics(memory_events: &str) -> protobuf::Result<Vec<u8>> {
    let mut metrics = Metrics::default();
    metrics.memory_events = Some(parse_memory_events(memory_events)).into();
    metrics.write_to_bytes()
}

fn pids(dir: &Path, files: &mut Files) -> Option<PidsStat> {
    let mut stat = PidsStat::default();
    stat.current = files.number(dir, "pids.current")?;
    stat.limit = files.number(dir, "pids.max").unwrap_or_default();
    Some(stat)
}

fn cpu(dir: &Path, files: &mut Files) -> Option<CPUStat> {
    let mut stat = parse_cpu(files.read(dir, "cpu.stat")?);
    stat.psi = psi(dir, "cpu.pressure", files).into();
    Some(stat)
}

fn parse_cpu(text: &str) -> CPUStat {
    let mut stat = CPUStat::default();
    for (key, value) in pairs(text) {
        match key {
            "usage_usec" => stat.usage_usec = value,
            "user_usec" => stat.user_usec = value,
            "system_usec" => stat.system_usec = value,
            "nr_periods" => stat.nr_periods = value,
            "nr_throttled" => stat.nr_throttled = value,
            "throttled_usec" => stat.throttled_usec = value,
            "nr_bursts" => stat.nr_bursts = value,
            "burst_usec" => stat.burst_usec = value,
            _ => {}
        }
    }
    stat
}

fn memory(dir: &Path, files: &mut Files) -> Option<MemoryStat> {
    let mut stat = parse_memory(files.read(dir, "memory.stat")?);
    let mut read = |name| files.number(dir, name).unwrap_or_default();
    stat.usage = read("memory.current");
    stat.usage_limit = read("memory.max");
    stat.max_usage = read("memory.peak");
    stat.swap_usage = read("memory.swap.current");
    stat.swap_limit = read("memory.swap.max");
    stat.swap_max_usage = read("memory.swap.peak");
    stat.psi = psi(dir, "memory.pressure", files).into();
    Some(stat)
}

fn parse_memory(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for (key, value) in pairs(text) {
        let field = match key {
            "anon" => &mut stat.anon,
            "file" => &mut stat.file,
            "kernel_stack" => &mut stat.kernel_stack,
            "slab" => &mut stat.slab,
            "sock" => &mut stat.sock,
            "shmem" => &mut stat.shmem,
            "file_mapped" => &mut stat.file_mapped,
            "file_dirty" => &mut stat.file_dirty,
            "file_writeback" => &mut stat.file_writeback,
            "anon_thp" => &mut stat.anon_thp,
            "inactive_anon" => &mut stat.inactive_anon,
            "active_anon" => &mut stat.active_anon,
            "inactive_file" => &mut stat.inactive_file,
            "active_file" => &mut stat.active_file,
            "unevictable" => &mut stat.unevictable,
            "slab_reclaimable" => &mut stat.slab_reclaimable,
            "slab_unreclaimable" => &mut stat.slab_unreclaimable,
            "pgfault" => &mut stat.pgfault,
            "pgmajfault" => &mut stat.pgmajfault,
            // Linux 5.9 split these into anonymous and file pages; the message has the sum.
            "workingset_refault" | "workingset_refault_anon" | "workingset_refault_file" => {
                &mut stat.workingset_refault
            }
            "workingset_activate" | "workingset_activate_anon" | "workingset_activate_file" => {
                &mut stat.workingset_activate
            }
            "workingset_nodereclaim" => &mut stat.workingset_nodereclaim,
            "pgrefill" => &mut stat.pgrefill,
            "pgscan" => &mut stat.pgscan,
            "pgsteal" => &mut stat.pgsteal,
            "pgactivate" => &mut stat.pgactivate,
            "pgdeactivate" => &mut stat.pgdeactivate,
            "pglazyfree" => &mut stat.pglazyfree,
            "pglazyfreed" => &mut stat.pglazyfreed,
            "thp_fault_alloc" => &mut stat.thp_fault_alloc,
            "thp_collapse_alloc" => &mut stat.thp_collapse_alloc,
            _ => continue,
        };
        *field = field.saturating_add(value);
    }
    stat
}

fn parse_memory_events(text: &str) -> MemoryEvents {
    let mut events = MemoryEvents::default();
    for (key, value) in pairs(text) {
        match key {
            "low" => events.low = value,
            "high" => events.high = value,
            "max" => events.max = value,
            "oom" => events.oom = value,
            "oom_kill" => events.oom_kill = value,
            "oom_group_kill" => events.oom_group_kill = value,
            _ => {}
        }
    }
    events
}

fn io(dir: &Path, files: &mut Files) -> Option<IOStat> {
    let mut stat = IOStat::default();
    stat.usage = parse_io(files.read(dir, "io.stat")?);
    stat.psi = psi(dir, "io.pressure", files).into();
    Some(stat)
}

/// Lines in the form `8:0 rbytes=1 wbytes=2 …`; a device without traffic has no keys.
fn parse_io(text: &str) -> Vec<IOEntry> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let mut entry = IOEntry::default();
        (entry.major, entry.minor) = (number(major)?, number(minor)?);
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            let value = number(value).unwrap_or_default();
            match key {
                "rbytes" => entry.rbytes = value,
                "wbytes" => entry.wbytes = value,
                "rios" => entry.rios = value,
                "wios" => entry.wios = value,
                _ => {}
            }
        }
        Some(entry)
    };
    text.lines().filter_map(parse).collect()
}

/// Pressure stall information; `None` where the kernel does not keep it.
fn psi(dir: &Path, name: &str, files: &mut Files) -> Option<PSIStats> {
    files.read(dir, name).map(parse_psi)
}

fn parse_psi(text: &str) -> PSIStats {
    let mut stats = PSIStats::default();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("some", rest)) => stats.some = Some(parse_psi_line(rest)).into(),
            Some(("full", rest)) => stats.full = Some(parse_psi_line(rest)).into(),
            _ => {}
        }
    }
    stats
}

fn parse_psi_line(rest: &str) -> PSIData {
    let mut data = PSIData::default();
    for (key, value) in rest.split_whitespace().filter_map(|w| w.split_once('=')) {
        match key {
            "avg10" => data.avg10 = value.parse().unwrap_or_default(),
            "avg60" => data.avg60 = value.parse().unwrap_or_default(),
            "avg300" => data.avg300 = value.parse().unwrap_or_default(),
            "total" => data.total = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    data
}

fn hugetlb(dir: &Path, files: &mut Files) -> Vec<HugeTlbStat> {
    let mut stat = |pagesize: String| {
        let mut stat = HugeTlbStat::default();
        stat.current = files.number(dir, &format!("hugetlb.{pagesize}.current"))?;
        stat.max = files.number(dir, &format!("hugetlb.{pagesize}.max")).unwrap_or_default();
        let events = files.read(dir, &format!("hugetlb.{pagesize}.events")).unwrap_or_default();
        stat.failcnt = pairs(events).find(|(key, _)| *key == "max").map_or(0, |(_, n)| n);
        stat.pagesize = pagesize;
        Some(stat)
    };
    huge_page_sizes().into_iter().filter_map(&mut stat).collect()
}

fn rdma(dir: &Path, files: &mut Files) -> Option<RdmaStat> {
    let mut stat = RdmaStat::default();
    stat.current = parse_rdma(files.read(dir, "rdma.current")?);
    stat.limit = files.read(dir, "rdma.max").map(parse_rdma).unwrap_or_default();
    Some(stat)
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

    /// As Linux 7.2 writes them.
    const MEMORY_STAT: &str = "anon file kernel kernel_stack pagetables sec_pagetables percpu sock vmalloc shmem zswap \
        zswapped zswap_incomp file_mapped file_dirty file_writeback swapcached anon_thp file_thp shmem_thp inactive_anon \
        active_anon inactive_file active_file unevictable slab_reclaimable slab_unreclaimable slab hugetlb \
        workingset_refault_anon workingset_refault_file workingset_activate_anon workingset_activate_file \
        workingset_restore_anon workingset_restore_file workingset_nodereclaim pgdemote_kswapd pgdemote_direct \
        pgdemote_khugepaged pgdemote_proactive pgsteal_kswapd pgsteal_direct pgsteal_khugepaged pgsteal_proactive \
        pgscan_kswapd pgscan_direct pgscan_khugepaged pgscan_proactive pgrefill pgpromote_success pgscan pgsteal pswpin \
        pswpout pgfault pgmajfault pgactivate pgdeactivate pglazyfree pglazyfreed swpin_zero swpout_zero zswpin zswpout \
        zswpwb thp_fault_alloc thp_collapse_alloc thp_swpout thp_swpout_fallback numa_pages_migrated";
    const CPU_STAT: &str = "usage_usec user_usec system_usec nice_usec nr_periods nr_throttled throttled_usec nr_bursts \
        burst_usec";
    const MEMORY_EVENTS: &str = "low high max oom oom_kill oom_group_kill sock_throttled";

    /// Every file of a cgroup, with different numbers in all of them.
    fn recorded() -> (Directory, [std::collections::BTreeMap<String, u64>; 3]) {
        let dir = Directory::new("v2");
        let numbered = [
            dir.number("memory.stat", MEMORY_STAT, 1000),
            dir.number("cpu.stat", CPU_STAT, 2000),
            dir.number("memory.events", MEMORY_EVENTS, 3000),
        ];
        let single = "memory.current memory.max memory.peak memory.swap.current memory.swap.max memory.swap.peak \
            pids.current pids.max";
        for (name, n) in single.split_whitespace().zip(4000..) {
            dir.write(name, &format!("{n}\n"));
        }
        dir.write("io.stat", "254:16 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:0 \n");
        for (name, n) in [("cpu", 1), ("memory", 2), ("io", 3)] {
            let line = |word| format!("{word} avg10={n}.10 avg60={n}.60 avg300={n}.30 total=50{n}\n");
            dir.write(&format!("{name}.pressure"), &(line("some") + &line("full")));
        }
        dir.write("rdma.current", "mlx5_0 hca_handle=2 hca_object=2000\n");
        dir.write("rdma.max", "mlx5_0 hca_handle=3 hca_object=max\n");
        for size in huge_page_sizes() {
            dir.write(&format!("hugetlb.{size}.current"), "2097152\n");
            dir.write(&format!("hugetlb.{size}.max"), "max\n");
            dir.write(&format!("hugetlb.{size}.events"), "max 7\n");
        }
        (dir, numbered)
    }

    #[test]
    fn every_figure_of_the_message_is_read_from_its_file() {
        let (dir, [memory, cpu, events]) = recorded();
        let metrics = Metrics::parse_from_bytes(&metrics(&dir.0).unwrap()).unwrap();
        let figures = figures(&metrics);
        let unset = unset(&figures);
        // The shim reads no network figures on version 2, nor does the reference shim.
        let expected: &[&str] = if huge_page_sizes().is_empty() { &["hugetlb", "network"] } else { &["network"] };
        assert_eq!(unset, expected);
        for (prefix, file) in [("memory.", &memory), ("cpu.", &cpu), ("memory_events.", &events)] {
            for (key, n) in file {
                let figure = figures.get(&format!("{prefix}{key}"));
                assert!(figure.is_none_or(|figure| *figure == n.to_string()), "{prefix}{key}: {figure:?}, not {n}");
            }
        }
        let sum = |a: &str, b: &str| memory[a] + memory[b];
        for (name, value) in [
            ("memory.workingset_refault", sum("workingset_refault_anon", "workingset_refault_file").to_string()),
            ("memory.workingset_activate", sum("workingset_activate_anon", "workingset_activate_file").to_string()),
            ("memory.usage", "4000".to_owned()),
            ("memory.usage_limit", "4001".to_owned()),
            ("memory.max_usage", "4002".to_owned()),
            ("memory.swap_usage", "4003".to_owned()),
            ("memory.swap_limit", "4004".to_owned()),
            ("memory.swap_max_usage", "4005".to_owned()),
            ("pids.current", "4006".to_owned()),
            ("pids.limit", "4007".to_owned()),
            ("cpu.psi.some.avg10", "1.1".to_owned()),
            ("memory.psi.full.avg300", "2.3".to_owned()),
            ("io.psi.full.total", "503".to_owned()),
            ("io.usage.major", "254".to_owned()),
            ("io.usage.minor", "16".to_owned()),
            ("io.usage.rbytes", "4096".to_owned()),
            ("io.usage.wios", "2".to_owned()),
            ("rdma.limit.hca_objects", u32::MAX.to_string()),
        ] {
            assert_eq!(figures[name], value, "{name}");
        }
        if !huge_page_sizes().is_empty() {
            assert_eq!([&figures["hugetlb.failcnt"], &figures["hugetlb.max"]], ["7", &u64::MAX.to_string()]);
        }
    }

    #[test]
    fn of_a_cgroup_that_is_gone_the_memory_events_are_left() {
        let text = "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n";
        let metrics = Metrics::parse_from_bytes(&last_metrics(text).unwrap()).unwrap();
        assert_eq!((metrics.memory_events.max, metrics.memory_events.oom_kill), (9, 1));
        assert!(metrics.memory.is_none() && metrics.cpu.is_none() && metrics.pids.is_none());
    }

    #[test]
    fn processor_time_and_throttling_are_read() {
        let text = "usage_usec 127653\nuser_usec 98211\nsystem_usec 29442\nnice_usec 0\ncore_sched.force_idle_usec 0\n\
            nr_periods 12\nnr_throttled 5\nthrottled_usec 40213\nnr_bursts 1\nburst_usec 9\n";
        let stat = parse_cpu(text);
        assert_eq!((stat.usage_usec, stat.user_usec, stat.system_usec), (127_653, 98_211, 29_442));
        assert_eq!((stat.nr_periods, stat.nr_throttled, stat.throttled_usec), (12, 5, 40_213));
        assert_eq!((stat.nr_bursts, stat.burst_usec), (1, 9));
    }

    #[test]
    fn split_working_set_counters_are_summed() {
        let text = "anon 331776\nfile 1204224\nkernel 1191936\nkernel_stack 16384\npagetables 40960\nsock 0\nshmem 4096\n\
            file_mapped 811008\nfile_dirty 8192\nanon_thp 0\ninactive_file 901120\nslab 933888\nworkingset_refault_anon 3\n\
            workingset_refault_file 40\nworkingset_activate_anon 1\nworkingset_activate_file 2\npgfault 5151\n\
            pgmajfault 11\n";
        let stat = parse_memory(text);
        assert_eq!((stat.anon, stat.file, stat.kernel_stack, stat.slab), (331_776, 1_204_224, 16_384, 933_888));
        assert_eq!((stat.workingset_refault, stat.workingset_activate), (43, 3));
        assert_eq!((stat.pgfault, stat.pgmajfault, stat.inactive_file), (5151, 11, 901_120));
        assert_eq!(parse_memory("workingset_refault 9\n").workingset_refault, 9);
    }

    #[test]
    fn memory_events_are_read() {
        let events = parse_memory_events("low 0\nhigh 1\nmax 22\noom 3\noom_kill 2\noom_group_kill 1\n");
        assert_eq!((events.high, events.max, events.oom), (1, 22, 3));
        assert_eq!((events.oom_kill, events.oom_group_kill), (2, 1));
    }

    #[test]
    fn traffic_is_read_per_device() {
        let text = "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:0 \n8:16 rbytes=9\n";
        let got: Vec<_> =
            parse_io(text).iter().map(|e| (e.major, e.minor, e.rbytes, e.wbytes, e.rios, e.wios)).collect();
        assert_eq!(got, [(254, 0, 4096, 8192, 1, 2), (7, 0, 0, 0, 0, 0), (8, 16, 9, 0, 0, 0)]);
    }

    #[test]
    fn pressure_is_read() {
        let text =
            "some avg10=1.50 avg60=0.25 avg300=0.01 total=123456\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let psi = parse_psi(text);
        assert!((psi.some.avg10 - 1.5).abs() < 1e-9 && (psi.some.avg60 - 0.25).abs() < 1e-9);
        assert_eq!((psi.some.total, psi.full.total), (123_456, 7));
    }
}
