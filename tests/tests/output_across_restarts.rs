//! Ring 3: what a container prints while containerd is killed and its clients with it, in each cell of the matrix; see
//! `with_containerd.rs`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;

use holdfast_tests::Reader;
use holdfast_tests::gate;
use holdfast_tests::matrix;
use holdfast_tests::matrix::Real;
use holdfast_tests::numbered::{FOUR_MB, Random, assert_all, lines};
use holdfast_tests::process::{ChildProcess, until_gone};
use holdfast_tests::stdio::wander;

matrix!(
    a_reader_that_comes_and_goes_misses_no_line_when_containerd_is_killed,
    ctr_attached_again_goes_on_where_the_killed_one_was,
    last_words_while_everyone_is_away_are_the_next_readers,
);

/// How much a client reads at once: what it holds when it is killed is lost with it.
const IN_HAND: usize = 32 << 10;

/// Prints [`FOUR_MB`] lines: so many at once, the rest when the gate has opened; and exits with 5.
fn print(at_once: usize) -> String {
    format!(
        "{}; /bin/busybox seq 0 {}; {}; /bin/busybox seq {at_once} {}; exit 5",
        gate::wait_at("begin"),
        at_once - 1,
        gate::wait_at("go-on"),
        FOUR_MB - 1
    )
}

fn tail_of(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(40)..])
}

fn open_gate(real: &Real<'_>, name: &str) {
    gate::open(real.containerd.rootfs(), name);
}

/// The FIFO that ctr has made for the output.
#[track_caller]
fn fifo(real: &Real<'_>) -> PathBuf {
    let dirs = fs::read_dir(real.scene.path("fifos")).unwrap().flatten();
    let mut files = dirs.flat_map(|dir| fs::read_dir(dir.path()).unwrap().flatten());
    files.find(|file| file.file_name().to_str().is_some_and(|name| name.ends_with("-stdout"))).unwrap().path()
}

fn a_reader_that_comes_and_goes_misses_no_line_when_containerd_is_killed(real: &Real<'_>) {
    let container = real.container();
    let mut random = Random::new(7);
    let pid = container.run_detached(&print(FOUR_MB / 2));
    let fifo = fifo(real);
    open_gate(real, "begin");
    let mut got = wander(&fifo, 300_000, &mut random, || ());
    real.containerd.kill();
    got.extend(wander(&fifo, 300_000, &mut random, || ()));
    open_gate(real, "go-on");
    // It waits for nobody.
    until_gone(pid);
    got.extend(wander(&fifo, 300_000, &mut random, || ()));
    real.containerd.resume();
    assert_eq!(real.containerd.wait_for_status(&container.id, "STOPPED"), pid);
    got.extend(wander(&fifo, 300_000, &mut random, || ()));
    got.extend(Reader::open(&fifo).to_end());
    assert_all(&got, FOUR_MB);
    assert_eq!(real.containerd.delete(&container.id), 5);
}

fn ctr_attached_again_goes_on_where_the_killed_one_was(real: &Real<'_>) {
    let container = real.container();
    let script = print(FOUR_MB / 2);
    let mut command = container.run_command(&[], &["/bin/sh", "-c", &script]);
    let mut ctr = ChildProcess::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut output = ctr.child().stdout.take().unwrap();
    let pid = real.containerd.wait_for_status(&container.id, "RUNNING");
    open_gate(real, "begin");
    // It cannot pass more on than we read, and so is in the middle of it.
    let mut first = vec![0; 200_000];
    output.read_exact(&mut first).unwrap();
    // First, for when it sees its containerd die it removes the FIFOs.
    ctr.kill();
    real.containerd.kill();
    output.read_to_end(&mut first).unwrap();
    real.containerd.resume();
    assert_eq!(real.containerd.task(&container.id), Some(("RUNNING".into(), pid)));
    // It stays to the end, whereupon ctr deletes the task and tells its status.
    let mut command = real.containerd.ctr();
    command.args(["task", "attach", &container.id]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut ctr = ChildProcess::spawn(&mut command);
    let mut output = ctr.child().stdout.take().unwrap();
    let mut second = vec![0; 1000];
    // One that has not opened the FIFO when the container ends does not open it any more.
    output.read_exact(&mut second).unwrap();
    open_gate(real, "go-on");
    output.read_to_end(&mut second).unwrap();
    assert_eq!(ctr.child().wait().unwrap().code(), Some(5));
    let all = lines(FOUR_MB);
    assert!(all.starts_with(&first), "in order, each line once");
    assert!(
        all.ends_with(&second),
        "in order, each line once, to the end: {} bytes, {:?}",
        second.len(),
        tail_of(&second)
    );
    let missing = all.len() - first.len() - second.len();
    assert!(missing <= IN_HAND, "{missing} bytes are missing: more than the killed client had in its hand");
    real.containerd.ok(&["container", "delete", &container.id]);
    real.containerd.wait_for_end_of_shim(&container.id);
}

fn last_words_while_everyone_is_away_are_the_next_readers(real: &Real<'_>) {
    let container = real.container();
    let pid = container.run_detached(&print(FOUR_MB / 2));
    real.containerd.kill();
    open_gate(real, "begin");
    open_gate(real, "go-on");
    until_gone(pid);
    real.containerd.resume();
    assert_eq!(real.containerd.wait_for_status(&container.id, "STOPPED"), pid);
    // ctr attaches to no task that has stopped, so it is the next reader of the FIFO.
    let reader = Reader::open(fifo(real));
    assert_all(&reader.to_end(), FOUR_MB);
    assert_eq!(real.containerd.delete(&container.id), 5);
}
