//! What this machine takes for the least there is to do: below it no shim can be, and from it one machine's times can be
//! told from another's.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_tests::programs;

use crate::Bench;
use crate::report::Of;
use crate::subjects::our_shim;
use crate::table::milliseconds;

const PART: &str = "this machine";

/// Measures.
pub(crate) fn run(bench: &mut Bench) {
    let rounds = bench.rounds(50, 300);
    for _ in 0..rounds {
        for (name, program, args) in [
            (
                "a static program that does nothing, from its start to its end",
                programs::test_program("printer"),
                &["1", "0"][..],
            ),
            ("our shim, asked for its version", our_shim(), &["-v"]),
        ] {
            let begin = Instant::now();
            let status = Command::new(&program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
            let time = begin.elapsed();
            assert!(status.success(), "{}: {status}", program.display());
            let of = Of { part: PART, name, unit: "ms", more_is_better: false };
            bench.report.add(&of, "time", milliseconds(time));
        }
    }
    echo(bench, rounds);
}

/// A byte to another process and back.
fn echo(bench: &mut Bench, rounds: usize) {
    let cat = programs::busybox().expect("`make peers` unpacks one");
    let mut other = Command::new(cat).arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (other.stdin.take().unwrap(), other.stdout.take().unwrap());
    for _ in 0..rounds {
        thread::sleep(Duration::from_millis(1));
        let begin = Instant::now();
        to.write_all(b"x").unwrap();
        from.read_exact(&mut [0]).unwrap();
        let of = Of { part: PART, name: "a byte to another process and back", unit: "µs", more_is_better: false };
        bench.report.add(&of, "time", begin.elapsed().as_secs_f64() * 1e6);
    }
    drop(to);
    assert!(other.wait().unwrap().success());
}
