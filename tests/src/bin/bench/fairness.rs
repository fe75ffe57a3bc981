//! What one container that prints at full speed costs the others of its pod: how long the shim takes to answer State, and
//! how long a byte takes through another container and back.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_tests::{Bundle, FakeContainerd, Launch, Scene, Shim, Stdio, programs};

use crate::Bench;
use crate::output::{open, printer};
use crate::report::Of;
use crate::subjects::in_turn;

/// Looks in one round.
const LOOKS: usize = 300;
/// Between two looks, so that they find the flood at any point of its turn.
const PAUSE: Duration = Duration::from_micros(500);

/// Of one kind of look, in microseconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn take(&mut self, look: impl FnOnce()) {
        let begin = Instant::now();
        look();
        self.0.push(begin.elapsed().as_secs_f64() * 1e6);
        thread::sleep(PAUSE);
    }
}

/// Measures.
pub(crate) fn run(bench: &mut Bench) {
    let Some(runtime) = programs::peer("runc") else {
        eprintln!("bench: left out: a pod of two (runc is missing; run `make peers`)");
        return;
    };
    let shims = bench.settings.others.shims();
    let rounds = bench.rounds(1, 5);
    for (what, flooded) in [("quiet", false), ("beside a flood", true)] {
        for round in 0..rounds {
            for (name, program) in in_turn(&shims, round) {
                bench.progress(&format!("{name}, {what}, round {} of {rounds}", round + 1));
                let (mut states, mut echoes) = (Times::default(), Times::default());
                look_on(program, &runtime, flooded, &mut states, &mut echoes);
                for (look, times) in [("State", states), ("a byte and back", echoes)] {
                    let figure = format!("{look}, {what}");
                    let of = Of { part: "in a pod of two", name: &figure, unit: "µs", more_is_better: false };
                    for time in times.0 {
                        bench.report.add(&of, name, time);
                    }
                }
            }
        }
    }
}

/// A pod of a container that echoes and of one that prints without end, if `flooded`.
fn look_on(program: &Path, runtime: &Path, flooded: bool, states: &mut Times, echoes: &mut Times) {
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let echo = Bundle::busybox(&scene, &["/bin/cat"]).in_group("pod");
    let launch = |bundle: &Bundle| Launch::new(&scene, bundle).binary(program).runtime(runtime).start();
    let stdio = Stdio::fifos(&scene, "echo");
    let (mut out, _errors) = (open(&stdio.stdout), open(&stdio.stderr));
    let mut shim = launch(&echo);
    // The stock shim waits for the writer too.
    let mut input = OpenOptions::new().read(true).write(true).open(&stdio.stdin).unwrap();
    shim.run(&stdio);

    let printing = printer(&scene, 64 << 10, usize::MAX).in_group("pod");
    let other_stdio = Stdio::output(&scene, "other");
    let (other_out, _other_errors) = (open(&other_stdio.stdout), open(&other_stdio.stderr));
    let mut other: Option<Shim> = None;
    let count = Arc::new(AtomicUsize::new(0));
    if flooded {
        let mut shim = launch(&printing);
        shim.run(&other_stdio);
        other = Some(shim);
        let count = count.clone();
        thread::spawn(move || read_on(other_out, &count));
    }
    let before = count.load(Ordering::Relaxed);
    for _ in 0..LOOKS {
        states.take(|| drop(shim.state("").unwrap()));
        echoes.take(|| {
            input.write_all(b"x").unwrap();
            out.read_exact(&mut [0]).unwrap();
        });
    }
    let flood = count.load(Ordering::Relaxed) - before;
    assert_eq!(flooded, flood > LOOKS << 10, "{flood} bytes came meanwhile");
    for shim in other.iter_mut().chain([&mut shim]) {
        shim.kill("", libc::SIGKILL).unwrap();
        shim.wait("").unwrap();
        shim.delete("").unwrap();
    }
    let socket = shim.socket().to_owned();
    shim.shutdown_at_once();
    // The stock shim leaves its group's to the daemon.
    let _ = std::fs::remove_file(socket);
}

fn read_on(mut file: File, count: &AtomicUsize) {
    let mut buffer = vec![0; 1 << 20];
    while let Ok(n @ 1..) = file.read(&mut buffer) {
        count.fetch_add(n, Ordering::Relaxed);
    }
}
