//! The OCI runtimes alone, so that it can be seen what of a shim's times is the shim's.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_tests::process::until_gone;
use holdfast_tests::{Bundle, Scene};

use crate::Bench;
use crate::report::Of;
use crate::subjects::in_turn;
use crate::table::milliseconds;

/// Measures.
pub(crate) fn run(bench: &mut Bench) {
    // The last one is what the others are compared with.
    let mut runtimes = bench.settings.others.runtimes();
    runtimes.reverse();
    runtimes.sort_by_key(|(name, _)| *name == "runc");
    let rounds = bench.rounds(5, 20);
    // The first round warms the page cache and is not counted.
    for round in 0..=rounds {
        bench.progress(&format!("OCI runtimes, round {round} of {rounds}"));
        for (name, program) in in_turn(&runtimes, round.saturating_sub(1)) {
            let times = live_once(program);
            if round == 0 {
                continue;
            }
            let mut whole = Duration::ZERO;
            for (what, time) in times {
                whole += time;
                let of = Of { part: "OCI runtime alone", name: what, unit: "ms", more_is_better: false };
                bench.report.add(&of, name, milliseconds(time));
            }
            let of = Of { part: "OCI runtime alone", name: "all four", unit: "ms", more_is_better: false };
            bench.report.add(&of, name, milliseconds(whole));
        }
    }
}

fn live_once(program: &Path) -> [(&'static str, Duration); 4] {
    let scene = Scene::new();
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "100000"]);
    let root = scene.path("oci");
    let pid_file = scene.path("pid");
    let call = |args: &[&str]| {
        let mut command: Command = scene.command(program);
        command.arg("--root").arg(&root).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let begin = Instant::now();
        let status = command.status().unwrap();
        assert!(status.success(), "{} {args:?}: {status}", program.display());
        begin.elapsed()
    };
    let id = bundle.id();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let create = call(&["create", "--bundle", &text(bundle.dir()), "--pid-file", &text(&pid_file), id]);
    let start = call(&["start", id]);
    let pid: u32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let kill = call(&["kill", id, "KILL"]);
    until_gone(pid);
    let delete = call(&["delete", id]);
    [("create", create), ("start", start), ("kill", kill), ("delete", delete)]
}
