//! What a person waits for at a command line: a container that does nothing, from the command to its prompt.

use std::process::Command;
use std::time::{Duration, Instant};

use holdfast_tests::container::{Container, Oci};
use holdfast_tests::containerd::Containerd;
use holdfast_tests::docker::{Docker, Shim};
use holdfast_tests::holdfastd::Holdfastd;
use holdfast_tests::programs::{self, DockerVersion, Version};
use holdfast_tests::{Scene, process};

use crate::Bench;
use crate::report::Of;
use crate::table::milliseconds;

fn timed(command: &mut Command) -> Duration {
    let begin = Instant::now();
    let output = process::run(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    begin.elapsed()
}

/// Measures.
pub(crate) fn run(bench: &mut Bench) {
    let rounds = bench.rounds(5, 20);
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    let scene = Scene::new();
    let containerd = Containerd::start(&scene, Version::V2_1);
    let has_docker = programs::docker_peer(DockerVersion::V28_5, "dockerd").is_some();
    let shims = [("docker run, holdfast", Shim::Holdfast(Oci::HoldfastOci)), ("docker run, stock shim", Shim::Stock)];
    let scenes = shims.each_ref().map(|_| Scene::for_daemons());
    let dockers: Vec<_> = shims.into_iter().zip(&scenes).filter(|_| has_docker).collect();
    let dockers: Vec<_> = dockers
        .into_iter()
        .map(|((name, shim), scene)| (name, Docker::start(scene, DockerVersion::V28_5, shim, &[])))
        .collect();
    for round in 0..=rounds {
        bench.progress(&format!("clients, round {round} of {rounds}"));
        let mut add = |subject: &str, time: Duration| {
            // The first one warms the page cache.
            if round > 0 {
                let of = Of {
                    part: "a command",
                    name: "run and remove a container that ends at once",
                    unit: "ms",
                    more_is_better: false,
                };
                bench.report.add(&of, subject, milliseconds(time));
            }
        };
        let mut command = host.command("holdfast");
        add("holdfast run", timed(command.args(["run", "--rm", "--rootfs", &rootfs, "--", "/bin/busybox", "true"])));
        let ours = Container::numbered(&containerd, Oci::HoldfastOci, round);
        add("ctr run, holdfast", timed(&mut ours.run_command(&["--rm"], &["/bin/true"])));
        for (name, docker) in &dockers {
            add(name, timed(&mut docker.run_command(&["--rm"], "true")));
        }
        let stock = Container::stock(&containerd, 1000 + round);
        add("ctr run, stock shim", timed(&mut stock.run_command(&["--rm"], &["/bin/true"])));
    }
    for (_, docker) in dockers {
        docker.finish();
    }
}
