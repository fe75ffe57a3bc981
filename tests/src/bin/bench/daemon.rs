//! Whole lives under one containerd, which does its own part: containers in a second, with our shim and with its own in turn.

use std::path::PathBuf;
use std::time::Instant;

use holdfast_tests::Scene;
use holdfast_tests::client::Client;
use holdfast_tests::containerd::Containerd;
use holdfast_tests::programs::{self, Version};
use holdfast_tests::several::several_at_a_time;

use crate::Bench;
use crate::report::Of;
use crate::subjects::in_turn;

/// A runtime's name, and the OCI runtime that it is told of.
type Subject = (&'static str, &'static str, Option<PathBuf>);

/// Measures.
pub(crate) fn run(bench: &mut Bench) {
    let runc = programs::peer("runc");
    let subjects: [Subject; 3] = [
        ("holdfast, holdfast-oci", "io.containerd.holdfast.v2", None),
        ("holdfast, runc", "io.containerd.holdfast.v2", runc.clone()),
        ("stock shim, runc", "io.containerd.runc.v2", runc),
    ];
    let lives = bench.pick(12, 40);
    for version in [Version::V1_6, Version::V2_1] {
        let scene = Scene::new();
        let containerd = Containerd::start(&scene, version);
        for at_a_time in [1, 4] {
            let rounds = bench.rounds(2, 5);
            // The first round warms up and is not counted.
            for round in 0..=rounds {
                for (name, runtime, oci) in in_turn(&subjects, round.saturating_sub(1)) {
                    bench.progress(&format!("containerd {}, {at_a_time} at a time, {name}", version.name()));
                    let rate = rate(&Client::new(&containerd, runtime, oci.as_deref()), lives, at_a_time);
                    if round > 0 {
                        let figure = format!("lives under containerd {}, {at_a_time} at a time", version.name());
                        let of = Of { part: "under containerd", name: &figure, unit: "1/s", more_is_better: true };
                        bench.report.add(&of, name, rate);
                    }
                }
            }
        }
    }
}

#[allow(clippy::cast_precision_loss)] // dozens
fn rate(client: &Client<'_>, lives: usize, at_a_time: usize) -> f64 {
    let begin = Instant::now();
    several_at_a_time(at_a_time, lives, |n| {
        let id = client.run(n, &["/bin/true"]);
        assert_eq!(client.remove(&id), 0);
    });
    lives as f64 / begin.elapsed().as_secs_f64()
}
