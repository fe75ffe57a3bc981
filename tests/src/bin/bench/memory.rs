//! How large shims are when many of them rest, and whether one grows with what it has done.

use std::fs;
use std::thread;
use std::time::Duration;

use holdfast_tests::process::{memory, threads};
use holdfast_tests::{Bundle, FakeContainerd, Scene, Shim, Stdio};

use crate::life::exec_once;
use crate::report::Of;
use crate::subjects::Subject;
use crate::{Bench, kib};

/// After so long a shim is left as it is: the runtime of the Go shims gives memory back in its own time, and ours after
/// half a second.
const REST: Duration = Duration::from_secs(2);

/// Measures shims at rest, as many at a time as `bench` says.
pub(crate) fn density(bench: &mut Bench) {
    for &count in bench.pick(&[1, 20][..], &[1, 20, 200]) {
        for subject in bench.settings.others.pairs() {
            bench.progress(&format!("{count} x {}", subject.name));
            rest_together(bench, &subject, count);
        }
    }
}

#[allow(clippy::cast_precision_loss)] // pids and numbers of files
fn rest_together(bench: &mut Bench, subject: &Subject, count: usize) {
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundles: Vec<Bundle> = (0..count).map(|_| Bundle::busybox(&scene, &["/bin/sleep", "100000"])).collect();
    let mut shims: Vec<Shim> = Vec::new();
    let mut readers = Vec::new();
    for (n, bundle) in bundles.iter().enumerate() {
        let stdio = Stdio::output(&scene, &format!("c{n}"));
        readers.push(stdio.readers());
        let mut shim = subject.launch(&scene, bundle).start();
        shim.run(&stdio);
        shims.push(shim);
    }
    thread::sleep(REST);
    let part = "at rest";
    for shim in &shims {
        let pid = shim.process().pid();
        let now = memory(pid).expect("a shim of ours lives");
        let files = fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count).unwrap_or_default();
        for (what, unit, value) in [
            ("RSS", "KiB", kib(now.rss)),
            ("PSS", "KiB", kib(now.pss)),
            ("anonymous memory", "KiB", kib(now.anonymous)),
            ("threads", "", threads(pid).unwrap_or_default() as f64),
            ("open files", "", files as f64),
        ] {
            let name = format!("{what}, {count} shim{}", if count == 1 { "" } else { "s" });
            bench.report.add(&Of { part, name: &name, unit, more_is_better: false }, &subject.name, value);
        }
    }
    for shim in shims {
        shim.discard();
    }
}

/// With our own OCI runtime, in the short form and in the full one. The first tenth is not counted.
const EXECS: (u32, u32) = (1000, 10_000);

/// How many execs the growth of ours is measured over.
pub(crate) fn counted_execs(full: bool) -> f64 {
    f64::from(if full { EXECS.1 } else { EXECS.0 }) * 0.9
}

/// How much a shim grows with execs.
pub(crate) fn growth(bench: &mut Bench) {
    for subject in bench.settings.others.pairs() {
        // With our own OCI runtime an exec costs a fifth, so that there can be more.
        let is_fast = subject.is_ours() && subject.runtime.ends_with("holdfast-oci");
        let execs = match (bench.full(), is_fast) {
            (true, true) => EXECS.1,
            (true, false) => 2000,
            (false, true) => EXECS.0,
            (false, false) => 100,
        };
        bench.progress(&format!("{execs} execs under {}", subject.name));
        exec_many(bench, &subject, execs);
    }
}

fn exec_many(bench: &mut Bench, subject: &Subject, execs: u32) {
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "100000"]);
    let mut shim = subject.launch(&scene, &bundle).start();
    shim.run(&Stdio::none());
    let pid = shim.process().pid();
    // The first tenth fills what is kept for reuse.
    let warm = execs / 10;
    let mut before = memory(pid).expect("it lives");
    for n in 0..execs {
        if n == warm {
            thread::sleep(REST);
            before = memory(pid).expect("it lives");
        }
        exec_once(&mut shim, &format!("e{n}"), &Stdio::none());
    }
    thread::sleep(REST);
    let after = memory(pid).expect("it lives");
    let thousands = f64::from(execs - warm) / 1000.0;
    for (name, before, after) in [
        ("RSS for 1000 execs", before.rss, after.rss),
        ("anonymous memory for 1000 execs", before.anonymous, after.anonymous),
    ] {
        let of = Of { part: "growth", name, unit: "KiB", more_is_better: false };
        bench.report.add(&of, &subject.name, (kib(after) - kib(before)) / thousands);
    }
    shim.discard();
}
