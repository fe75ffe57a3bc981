//! Whole lives, several at a time: containers in a second.

use std::time::Instant;

use holdfast_tests::several::several_at_a_time;
use holdfast_tests::{Bundle, FakeContainerd, Scene, Stdio};

use crate::Bench;
use crate::report::Of;
use crate::subjects::{Subject, in_turn};

/// Measures.
pub(crate) fn run(bench: &mut Bench) {
    let subjects = bench.settings.others.pairs();
    let lives = bench.pick(16, 64);
    let rounds = bench.rounds(2, 5);
    for at_a_time in [1, 4, 16] {
        for round in 0..rounds {
            for subject in in_turn(&subjects, round) {
                bench.progress(&format!("{at_a_time} at a time, {}, round {} of {rounds}", subject.name, round + 1));
                let rate = rate(subject, lives, at_a_time);
                let name = format!("lives, {at_a_time} at a time");
                let of = Of { part: "throughput", name: &name, unit: "1/s", more_is_better: true };
                bench.report.add(&of, &subject.name, rate);
            }
        }
    }
}

/// Every container exists as a bundle beforehand: what is measured is the shim and what is below it.
#[allow(clippy::cast_precision_loss)] // dozens
fn rate(subject: &Subject, lives: usize, at_a_time: usize) -> f64 {
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundles: Vec<Bundle> = (0..lives).map(|_| Bundle::busybox(&scene, &["/bin/true"])).collect();
    let begin = Instant::now();
    several_at_a_time(at_a_time, lives, |n| {
        let mut shim = subject.launch(&scene, &bundles[n]).start();
        shim.run(&Stdio::none());
        shim.wait("").unwrap();
        shim.delete("").unwrap();
        shim.shutdown_at_once();
    });
    lives as f64 / begin.elapsed().as_secs_f64()
}
