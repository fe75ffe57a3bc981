//! How long the managers need until they have their containers again.

use std::thread;
use std::time::{Duration, Instant};

use holdfast_tests::client::Client;
use holdfast_tests::containerd::Containerd;
use holdfast_tests::holdfastd::Holdfastd;
use holdfast_tests::process;
use holdfast_tests::programs::{self, Version};
use holdfast_tests::several::several_at_a_time;
use holdfast_tests::{Scene, until};

use crate::report::Of;
use crate::table::milliseconds;
use crate::{Bench, kib};

fn ms<'a>(part: &'a str, name: &'a str) -> Of<'a> {
    Of { part, name, unit: "ms", more_is_better: false }
}

/// A supervisor with so many containers, which are started by several clients at a time.
fn supervisor_with(count: usize) -> Holdfastd {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    several_at_a_time(4, count, |n| {
        let name = format!("c{n}");
        host.holdfast(&["run", "-d", "--name", &name, "--rootfs", &rootfs, "--", "/bin/sleep", "100000"]).ok();
    });
    host
}

fn remove_all(host: &Holdfastd) {
    let ids = host.holdfast(&["ps", "-aq"]).ok();
    for some in ids.lines().collect::<Vec<_>>().chunks(50) {
        host.holdfast(&[&["rm", "-f"], some].concat()).ok();
    }
}

/// holdfastd, killed and started: until it answers, and until every container is attached again.
pub(crate) fn supervisor(bench: &mut Bench) {
    for &count in bench.pick(&[1, 50][..], &[1, 50, 200]) {
        bench.progress(&format!("holdfastd with {count}"));
        let mut host = supervisor_with(count);
        for _ in 0..bench.rounds(3, 7) {
            restart_supervisor(bench, &mut host, count);
        }
        remove_all(&host);
    }
}

fn restart_supervisor(bench: &mut Bench, host: &mut Holdfastd, count: usize) {
    let part = "restart of holdfastd";
    host.kill();
    let begin = Instant::now();
    host.launch_with(&[], &[]);
    host.answers();
    let answers = begin.elapsed();
    let report = host.restored();
    let classes = report["containers"].as_array().expect("a list").iter();
    assert_eq!(classes.filter(|c| c["class"] == "reattached").count(), count, "all must be found");
    let restored = Duration::from_nanos(report["took_ns"].as_u64().expect("a number"));
    let name = format!("all of {count} attached again");
    bench.report.add(&ms(part, &name), "holdfastd", milliseconds(restored));
    let name = format!("`holdfast info` is answered, {count} containers");
    bench.report.add(&ms(part, &name), "holdfastd", milliseconds(answers));
}

/// containerd, killed and started with containers of ours, and of its own shim.
pub(crate) fn containerd(bench: &mut Bench) {
    let count = bench.pick(10, 50);
    for version in [Version::V1_6, Version::V2_1] {
        let stock = ("stock shim", "io.containerd.runc.v2", programs::peer("runc"));
        for (subject, runtime, oci) in [("holdfast", "io.containerd.holdfast.v2", None), stock] {
            bench.progress(&format!("containerd {} with {count} of {subject}", version.name()));
            let scene = Scene::new();
            let containerd = Containerd::start(&scene, version);
            let client = Client::new(&containerd, runtime, oci.as_deref());
            let ids: Vec<String> = (0..count).map(|n| client.run(n, &["/bin/sleep", "100000"])).collect();
            for _ in 0..bench.rounds(2, 5) {
                containerd.kill();
                let begin = Instant::now();
                containerd.resume();
                let name = format!("containerd {} listens again, {count} containers", version.name());
                bench.report.add(&ms("restart of containerd", &name), subject, milliseconds(begin.elapsed()));
                assert_eq!(containerd.tasks().len(), count, "all must be found");
            }
            for id in ids {
                client.kill(&id);
                client.remove(&id);
            }
        }
    }
}

/// As many as this machine is to hold: what each costs, the restart, and the storm when all end at once.
pub(crate) fn scale(bench: &mut Bench) {
    let count = bench.pick(100, 500);
    let part = "scale";
    bench.progress(&format!("{count} containers"));
    let mut host = supervisor_with(count);
    let shims: Vec<u32> = (0..count).map(|n| host.pid(&format!("c{n}"), "shim_pid")).collect();
    let inits: Vec<u32> = (0..count).map(|n| host.pid(&format!("c{n}"), "pid")).collect();
    // Shims that have just worked give memory back.
    thread::sleep(Duration::from_secs(2));
    for shim in &shims {
        let now = process::memory(*shim).expect("it lives");
        for (what, value) in [("RSS", now.rss), ("PSS", now.pss), ("anonymous memory", now.anonymous)] {
            let name = format!("{what} of a shim, {count} at rest");
            bench.report.add(&Of { part, name: &name, unit: "KiB", more_is_better: false }, "holdfast", kib(value));
        }
    }
    for _ in 0..bench.rounds(2, 5) {
        restart_supervisor(bench, &mut host, count);
    }
    let daemon = process::memory(host.daemon_pid()).expect("it lives");
    let name = format!("RSS of holdfastd, {count} containers");
    bench.report.add(&Of { part, name: &name, unit: "KiB", more_is_better: false }, "holdfast", kib(daemon.rss));

    let ended = Instant::now();
    for pid in inits {
        process::kill_hard(pid);
    }
    until("all ends are known", || {
        let list = host.holdfast(&["--json", "ps"]).ok();
        (!list.contains("\"running\"")).then_some(())
    });
    let name = format!("{count} killed at once: all ends known");
    bench.report.add(&ms(part, &name), "holdfast", milliseconds(ended.elapsed()));
    remove_all(&host);
}
