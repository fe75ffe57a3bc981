//! One container's life under each shim, step by step.

use std::time::Instant;

use holdfast_tests::{Bundle, FakeContainerd, Scene, Shim, Stdio};

use crate::Bench;
use crate::report::Of;
use crate::subjects::{Subject, in_turn};
use crate::table::milliseconds;

const PART: &str = "a life";

/// Measures.
pub(crate) fn run(bench: &mut Bench) {
    let subjects = bench.settings.others.pairs();
    let rounds = bench.rounds(7, 30);
    // The first round warms the page cache and is not counted.
    for round in 0..=rounds {
        bench.progress(&format!("lives, round {round} of {rounds}"));
        for subject in in_turn(&subjects, round.saturating_sub(1)) {
            let steps = live_once(subject);
            if round == 0 {
                continue;
            }
            let whole: f64 = steps.iter().filter(|(step, _)| *step != EXEC).map(|(_, time)| time).sum();
            for (name, time) in steps.into_iter().chain([("all but the exec", whole)]) {
                bench.report.add(&Of { part: PART, name, unit: "ms", more_is_better: false }, &subject.name, time);
            }
        }
    }
}

const EXEC: &str = "exec, start, wait, delete of a process";

/// One container from `start` to Shutdown, with one exec in between; how long each step took.
fn live_once(subject: &Subject) -> Vec<(&'static str, f64)> {
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "100000"]);
    let launch = subject.launch(&scene, &bundle);
    let stdio = Stdio::output(&scene, "init");
    let exec_stdio = Stdio::output(&scene, "exec");
    let readers = (stdio.readers(), exec_stdio.readers());

    let mut steps = Vec::new();
    let mut begin = Instant::now();
    let mut done = |step: &'static str| {
        steps.push((step, milliseconds(begin.elapsed())));
        begin = Instant::now();
    };
    let mut shim = launch.start();
    done("`start` until the socket answers");
    shim.create(&stdio).unwrap();
    done("Create");
    shim.start("").unwrap();
    done("Start");
    exec_once(&mut shim, "e", &exec_stdio);
    done(EXEC);
    shim.kill("", libc::SIGKILL).unwrap();
    shim.wait("").unwrap();
    done("Kill until Wait tells it");
    shim.delete("").unwrap();
    done("Delete");
    shim.shutdown_at_once();
    done("Shutdown");
    drop(readers);
    steps
}

pub(crate) fn exec_once(shim: &mut Shim, id: &str, stdio: &Stdio) {
    shim.exec(id, &["/bin/true"], stdio).unwrap();
    shim.start(id).unwrap();
    shim.wait(id).unwrap();
    shim.delete(id).unwrap();
}
