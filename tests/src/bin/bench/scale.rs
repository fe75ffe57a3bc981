//! As many containers as this machine is to hold: what each costs, the restart, the storm when all end at once; and from
//! the slopes what ten thousand would take, and which limit they would meet first.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use holdfast_tests::holdfastd::Holdfastd;
use holdfast_tests::process::{self, memory};
use holdfast_tests::until;
use serde_json::Value;

use crate::output::cpu_time;
use crate::report::Of;
use crate::restart::{launch_some, remove_all, restart_supervisor};
use crate::table::milliseconds;
use crate::{Bench, kib};

const PART: &str = "scale";
/// What is asked about.
const MANY: f64 = 10_000.0;
/// Shims that have just worked give memory back.
const REST: Duration = Duration::from_secs(2);
/// How long those at rest are looked at: the supervisor asks each how it is every eleven seconds.
const AT_REST: Duration = Duration::from_secs(33);

/// How a figure goes on when there are more containers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// Along a line.
    Line,
    /// Not: from five hundred on the supervisor asks no more shims in a second.
    Bounded,
}

/// A figure of one number of containers.
#[derive(Clone, Copy)]
struct Sum {
    what: &'static str,
    unit: &'static str,
    value: f64,
    growth: Growth,
}

/// Measures.
pub(crate) fn run(bench: &mut Bench) {
    let counts = bench.pick(&[20, 100][..], &[100, 300, 500]);
    let mut host = Holdfastd::start();
    let before = Usage::now(&host);
    let mut series: Vec<(usize, Vec<Sum>)> = Vec::new();
    let mut launched = 0;
    for &count in counts {
        bench.progress(&format!("{count} containers"));
        launch_some(&host, launched..count);
        launched = count;
        let shims = pids(&host, "shim_pid");
        assert_eq!(shims.len(), count, "each has a shim");
        thread::sleep(REST);
        let mut sums = at_rest(bench, &host, &shims);
        let used = Usage::now(&host);
        sums.push(Sum {
            what: "memory of the machine in all",
            unit: "MiB",
            value: (kib(used.memory) - kib(before.memory)) / 1024.0,
            growth: Growth::Line,
        });
        let restored: Vec<f64> =
            (0..bench.rounds(2, 5)).map(|_| milliseconds(restart_supervisor(bench, &mut host, count))).collect();
        let mean = restored.iter().sum::<f64>() / kib(restored.len() as u64);
        sums.push(Sum {
            what: "restart of holdfastd: all attached again",
            unit: "ms",
            value: mean,
            growth: Growth::Line,
        });
        series.push((count, sums));
    }
    let used = Usage::now(&host);
    storm(bench, &host, launched);
    remove_all(&host);
    project(bench, &series);
    limits(bench, &before, &used, launched);
}

/// Adds what all shims and the supervisor have.
fn at_rest(bench: &mut Bench, host: &Holdfastd, shims: &[u32]) -> Vec<Sum> {
    let count = shims.len();
    let mut all = 0;
    for shim in shims {
        let now = memory(*shim).expect("it lives");
        all += now.pss;
        for (what, value) in [("RSS", now.rss), ("PSS", now.pss), ("anonymous memory", now.anonymous)] {
            let name = format!("{what} of a shim, {count} at rest");
            bench.report.add(
                &Of { part: PART, name: &name, unit: "KiB", more_is_better: false },
                "holdfast",
                kib(value),
            );
        }
    }
    let daemon = memory(host.daemon_pid()).expect("it lives");
    let mut sums = vec![
        Sum { what: "PSS of all shims", unit: "MiB", value: kib(all) / 1024.0, growth: Growth::Line },
        Sum { what: "RSS of holdfastd", unit: "MiB", value: kib(daemon.rss) / 1024.0, growth: Growth::Line },
    ];
    if bench.full() {
        let spent = || shims.iter().map(|pid| cpu_time(*pid)).sum::<Duration>();
        let (shims_before, daemon_before) = (spent(), cpu_time(host.daemon_pid()));
        thread::sleep(AT_REST);
        let (by_shims, by_daemon) = (spent() - shims_before, cpu_time(host.daemon_pid()) - daemon_before);
        for (what, time) in [
            ("processor time at rest, all shims, of one second", by_shims),
            ("processor time at rest, holdfastd, of one second", by_daemon),
        ] {
            let value = milliseconds(time) / AT_REST.as_secs_f64();
            sums.push(Sum { what, unit: "ms", value, growth: Growth::Bounded });
        }
    }
    for Sum { what, unit, value, .. } in &sums {
        let name = format!("{what}, {count} containers");
        bench.report.add(&Of { part: PART, name: &name, unit, more_is_better: false }, "holdfast", *value);
    }
    sums
}

/// All end in the same moment: until the supervisor knows how each has ended.
fn storm(bench: &mut Bench, host: &Holdfastd, count: usize) {
    let inits = pids(host, "pid");
    let begin = Instant::now();
    for pid in inits {
        process::kill_hard(pid);
    }
    let list = until("all ends are known", || {
        let list = containers(host);
        (!list.iter().any(|one| one["status"] == "running")).then_some(list)
    });
    let took = begin.elapsed();
    let killed = list.iter().filter(|one| one["exit_status"] == 137).count();
    assert_eq!(killed, count, "each end is known as it was");
    let name = format!("{count} killed at once: all ends known");
    let of = Of { part: PART, name: &name, unit: "ms", more_is_better: false };
    bench.report.add(&of, "holdfast", milliseconds(took));
}

fn containers(host: &Holdfastd) -> Vec<Value> {
    serde_json::from_str(&host.holdfast(&["--json", "ps", "-a"]).ok()).expect("a list in JSON")
}

/// A pid of each container.
fn pids(host: &Holdfastd, which: &str) -> Vec<u32> {
    let ids = host.holdfast(&["ps", "-aq"]).ok();
    let mut pids = Vec::new();
    for some in ids.lines().collect::<Vec<_>>().chunks(100) {
        let text = host.holdfast(&[&["inspect"], some].concat()).ok();
        let all: Vec<Value> = serde_json::from_str(&text).expect("JSON");
        pids.extend(all.iter().map(|one| u32::try_from(one[which].as_u64().expect("a number")).expect("a pid")));
    }
    pids
}

/// The straight line through what was measured, at ten thousand; of what is bounded the most that was measured.
#[allow(clippy::cast_precision_loss)] // hundreds
fn project(bench: &mut Bench, series: &[(usize, Vec<Sum>)]) {
    let Some((_, first)) = series.first() else { return };
    for Sum { what, unit, growth, .. } in first {
        let points = series
            .iter()
            .filter_map(|(count, sums)| Some((*count as f64, sums.iter().find(|sum| sum.what == *what)?.value)));
        let points: Vec<_> = points.collect();
        let of = Of { part: "projection", name: what, unit, more_is_better: false };
        if *growth == Growth::Bounded {
            let most = points.iter().map(|point| point.1).fold(0.0, f64::max);
            bench.report.add(&of, "1000 more", 0.0);
            bench.report.add(&of, "10,000 containers", most);
            continue;
        }
        let (slope, start) = line(&points);
        bench.report.add(&of, "1000 more", slope * 1000.0);
        bench.report.add(&of, "10,000 containers", slope * MANY + start);
    }
}

/// Slope and start of the line that is nearest to the points, by least squares.
#[allow(clippy::cast_precision_loss)] // a few
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x_mean, y_mean) = (mean(|p| p.0), mean(|p| p.1));
    let (mut product, mut square) = (0.0, 0.0);
    for (x, y) in points {
        product += (x - x_mean) * (y - y_mean);
        square += (x - x_mean) * (x - x_mean);
    }
    let slope = if square > 0.0 { product / square } else { 0.0 };
    (slope, y_mean - slope * x_mean)
}

/// What is used up of things of which there is a limited number.
struct Usage {
    /// KiB.
    memory: u64,
    processes: u64,
    files: u64,
    daemon_files: u64,
    mounts: u64,
    control_groups: u64,
    inotify: u64,
}

impl Usage {
    fn now(host: &Holdfastd) -> Self {
        let numeric = fs::read_dir("/proc").expect("proc is mounted").flatten();
        let numeric = numeric.filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
        let inotify = pids(host, "shim_pid").into_iter().map(|pid| {
            let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            links.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("anon_inode:inotify"))).count()
                as u64
        });
        let groups = fs::read_to_string("/proc/cgroups").unwrap_or_default();
        let memory_groups =
            groups.lines().find_map(|line| line.strip_prefix("memory")?.split_whitespace().nth(1)?.parse().ok());
        Self {
            memory: memory_in_all() - number_after("/proc/meminfo", "MemAvailable:"),
            processes: numeric.count() as u64,
            files: number_in("/proc/sys/fs/file-nr"),
            daemon_files: fs::read_dir(format!("/proc/{}/fd", host.daemon_pid())).map_or(0, Iterator::count) as u64,
            mounts: fs::read_to_string("/proc/self/mountinfo").map_or(0, |text| text.lines().count()) as u64,
            control_groups: memory_groups.unwrap_or_default(),
            inotify: inotify.sum(),
        }
    }
}

/// The first number in a file.
fn number_in(path: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

/// Where each limit would be met, if it went on like this.
fn limits(bench: &mut Bench, before: &Usage, used: &Usage, count: usize) {
    /// What the unit of holdfastd asks for.
    const LIMIT_NOFILE: u64 = 1 << 20;
    /// `MEM_CGROUP_ID_MAX` of the kernel.
    const MEMORY_GROUPS: u64 = 65_535;
    for (name, limit, before, used) in [
        ("memory, KiB", memory_in_all(), before.memory, used.memory),
        ("kernel.pid_max", number_in("/proc/sys/kernel/pid_max"), before.processes, used.processes),
        ("fs.file-max", number_in("/proc/sys/fs/file-max"), before.files, used.files),
        ("LimitNOFILE of holdfastd", LIMIT_NOFILE, before.daemon_files, used.daemon_files),
        ("fs.mount-max", number_in("/proc/sys/fs/mount-max"), before.mounts, used.mounts),
        ("control groups with memory", MEMORY_GROUPS, before.control_groups, used.control_groups),
        (
            "fs.inotify.max_user_instances",
            number_in("/proc/sys/fs/inotify/max_user_instances"),
            before.inotify,
            used.inotify,
        ),
    ] {
        let each = kib(used.saturating_sub(before)) / kib(count as u64);
        let of = Of { part: "limits", name, unit: "", more_is_better: false };
        bench.report.add(&of, "the limit here", kib(limit));
        bench.report.add(&of, "a container takes", each);
        if each > 0.0 {
            bench.report.add(&of, "met at so many containers", kib(limit.saturating_sub(before)) / each);
        }
    }
}

/// KiB.
fn memory_in_all() -> u64 {
    number_after("/proc/meminfo", "MemTotal:")
}

/// The number behind a field's name.
fn number_after(path: &str, field: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_through_points_on_a_line_is_that_line() {
        let (slope, start) = line(&[(100.0, 25.0), (300.0, 65.0), (500.0, 105.0)]);
        assert!((slope - 0.2).abs() < 1e-9 && (start - 5.0).abs() < 1e-9, "{slope} {start}");
        let (slope, start) = line(&[(100.0, 7.0)]);
        assert!(slope.abs() < 1e-9 && (start - 7.0).abs() < 1e-9, "{slope} {start}");
    }
}
