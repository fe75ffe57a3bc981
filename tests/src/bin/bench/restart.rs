//! How long the managers need until they have their containers again.

use std::ops::Range;
use std::time::{Duration, Instant};

use holdfast_tests::Scene;
use holdfast_tests::client::Client;
use holdfast_tests::containerd::Containerd;
use holdfast_tests::holdfastd::Holdfastd;
use holdfast_tests::programs::{self, Version};
use holdfast_tests::several::several_at_a_time;

use crate::Bench;
use crate::report::Of;
use crate::subjects::in_turn;
use crate::table::milliseconds;

pub(crate) fn ms<'a>(part: &'a str, name: &'a str) -> Of<'a> {
    Of { part, name, unit: "ms", more_is_better: false }
}

/// Starts containers with these numbers, several at a time.
pub(crate) fn launch_some(host: &Holdfastd, numbers: Range<usize>) {
    let rootfs = host.rootfs();
    several_at_a_time(4, numbers.len(), |n| {
        let name = format!("c{}", numbers.start + n);
        host.holdfast(&["run", "-d", "--name", &name, "--rootfs", &rootfs, "--", "/bin/sleep", "100000"]).ok();
    });
}

pub(crate) fn remove_all(host: &Holdfastd) {
    let ids = host.holdfast(&["ps", "-aq"]).ok();
    for some in ids.lines().collect::<Vec<_>>().chunks(50) {
        host.holdfast(&[&["rm", "-f"], some].concat()).ok();
    }
}

/// holdfastd, killed and started: until it answers, and until every container is attached again.
pub(crate) fn supervisor(bench: &mut Bench) {
    for &count in bench.pick(&[1, 50][..], &[1, 50, 200]) {
        bench.progress(&format!("holdfastd with {count}"));
        let mut host = Holdfastd::start();
        launch_some(&host, 0..count);
        for _ in 0..bench.rounds(3, 7) {
            let _ = restart_supervisor(bench, &mut host, count);
        }
        remove_all(&host);
    }
}

pub(crate) fn restart_supervisor(bench: &mut Bench, host: &mut Holdfastd, count: usize) -> Duration {
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
    restored
}

/// containerd, killed and started with containers of ours, and another one with as many of its own shim, in turn.
pub(crate) fn containerd(bench: &mut Bench) {
    let stock = ("stock shim", "io.containerd.runc.v2", programs::peer("runc"));
    let subjects = [("holdfast", "io.containerd.holdfast.v2", None), stock];
    for version in [Version::V1_6, Version::V2_1] {
        let scenes = subjects.each_ref().map(|_| Scene::new());
        let daemons = scenes.each_ref().map(|scene| Containerd::start(scene, version));
        let sides: Vec<_> = subjects.iter().zip(&daemons).collect();
        let mut ids = subjects.each_ref().map(|_| Vec::new());
        for &count in bench.pick(&[10][..], &[50, 200]) {
            bench.progress(&format!("containerd {} with {count} of each", version.name()));
            for (((_, runtime, oci), containerd), ids) in sides.iter().zip(&mut ids) {
                let client = Client::new(containerd, runtime, oci.as_deref());
                ids.extend((ids.len()..count).map(|n| client.run(n, &["/bin/sleep", "100000"])));
            }
            for round in 0..bench.rounds(2, 5) {
                for ((subject, _, _), containerd) in in_turn(&sides, round) {
                    containerd.kill();
                    let begin = Instant::now();
                    containerd.resume();
                    let name = format!("containerd {} listens again, {count} containers", version.name());
                    bench.report.add(&ms("restart of containerd", &name), subject, milliseconds(begin.elapsed()));
                    assert_eq!(containerd.tasks().len(), count, "all must be found");
                }
            }
        }
        for (((_, runtime, oci), containerd), ids) in sides.iter().zip(ids) {
            let client = Client::new(containerd, runtime, oci.as_deref());
            for id in ids {
                client.kill(&id);
                client.remove(&id);
            }
        }
    }
}
