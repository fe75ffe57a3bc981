//! Ring 3: streams to a pod's containers and ports, as kubectl asks a private containerd of each version for them; see
//! `pods_under_cri.rs`.
#![allow(clippy::unwrap_used)]

use std::fs;

use holdfast_tests::cri::api::ContainerConfig;
use holdfast_tests::cri::stream::channel::{STDERR, STDIN, STDOUT};
use holdfast_tests::cri::stream::{Stream, port};
use holdfast_tests::cri::{Cri, Pod, PodContainer, with_own_network};
use holdfast_tests::matrix::Real;
use holdfast_tests::programs::Version;
use holdfast_tests::{eventually, gate};

holdfast_tests::matrix!(
    prepare;
    an_exec_streams_input_output_and_its_status,
    an_execs_input_ends_with_its_stream,
    a_terminal_has_the_size_that_is_told_and_told_anew,
    who_is_attached_sees_what_the_log_has,
    input_ends_with_the_first_who_was_attached_or_never,
    who_attaches_after_containerd_was_killed_has_both_ways,
    a_port_of_a_pod_is_forwarded,
);

/// A container that runs until it is killed.
const SLEEPER: &str = "exec /bin/sleep 1000";

#[track_caller]
fn start<'a>(real: &'a Real<'a>) -> Cri<'a> {
    Cri::start(&real.containerd, real.cell.oci)
}

/// The lines `1` to `100000`.
fn numbers() -> Vec<u8> {
    (1..=100_000).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

fn an_exec_streams_input_output_and_its_status(real: &Real<'_>) {
    let cri = start(real);
    let container = cri.run_pod("pod").run("main", SLEEPER);
    // The input is more than any buffer on the way holds.
    let script = "read line; echo \"got $line\"; /bin/busybox head -n 100000 >/input; \
                  /bin/busybox seq 1 100000; echo err >&2; exit 5";
    let mut stream = container.stream_exec(script, false);
    stream.send(STDIN, b"hello\n");
    stream.wait_for(STDOUT, "got hello\n");
    let numbers = numbers();
    numbers.chunks(20_000).for_each(|chunk| stream.send(STDIN, chunk));
    assert_eq!(stream.wait_status(), 5);
    let expected = [b"got hello\n", &*numbers].concat();
    assert!(stream.seen(STDOUT) == expected, "{} bytes out", stream.seen(STDOUT).len());
    assert_eq!(stream.seen(STDERR), b"err\n");
    let input = fs::read(container.rootfs().join("input")).unwrap();
    assert!(input == numbers, "{} bytes in", input.len());
    assert_eq!(container.stream_exec("exit 0", false).wait_status(), 0);
    cri.finish();
}

fn an_execs_input_ends_with_its_stream(real: &Real<'_>) {
    let cri = start(real);
    let container = cri.run_pod("pod").run("main", SLEEPER);
    let mut stream = container.stream_exec("cat >/input; : >/ended; exec /bin/sleep 1001", false);
    let numbers = numbers();
    numbers.chunks(20_000).for_each(|chunk| stream.send(STDIN, chunk));
    stream.close();
    let ended = container.rootfs().join("ended");
    eventually("the input should end", || if ended.exists() { Ok(()) } else { Err("not yet") });
    assert!(fs::read(container.rootfs().join("input")).unwrap() == numbers);
    cri.finish();
}

/// Waits for a size, then tells of each change, until there is a file. Input is a line.
const AT_A_TERMINAL: &str = "size() { stty size; }; until [ \"$(size)\" = '33 101' ]; do /bin/sleep 0.02; done; \
    trap 'echo \"changed $(size)\"' WINCH; echo \"at $(tty)\"; read line; echo \"got $line\"; \
    while [ ! -e /go ]; do /bin/sleep 0.02; done; exit 4";

/// Somebody at the other end of [`AT_A_TERMINAL`].
#[track_caller]
fn sit_at_a_terminal(container: &PodContainer<'_>, stream: &mut Stream) {
    stream.resize(101, 33);
    stream.wait_for(STDOUT, "at /dev/pts/");
    stream.send(STDIN, b"hello\n");
    // Once by the terminal itself.
    stream.wait_for(STDOUT, "hello\r\n");
    stream.wait_for(STDOUT, "got hello\r\n");
    stream.resize(64, 20);
    stream.wait_for(STDOUT, "changed 20 64\r\n");
    gate::open(container.rootfs(), "go");
}

fn a_terminal_has_the_size_that_is_told_and_told_anew(real: &Real<'_>) {
    let cri = start(real);
    let pod = cri.run_pod("pod");
    let container = pod.run("exec", SLEEPER);
    let mut stream = container.stream_exec(AT_A_TERMINAL, true);
    sit_at_a_terminal(&container, &mut stream);
    assert_eq!(stream.wait_status(), 4);
    let container = pod.create_with("attach", AT_A_TERMINAL, |config| (config.tty, config.stdin) = (true, true));
    container.start();
    let mut stream = container.attach(true);
    sit_at_a_terminal(&container, &mut stream);
    assert_eq!(container.wait().0, 4);
    stream.wait();
    cri.finish();
}

/// A container that takes what it gets for commands, line by line; `tick` goes on until there is a file.
#[track_caller]
fn run_servant<'a>(pod: &Pod<'a>, change: impl FnOnce(&mut ContainerConfig)) -> PodContainer<'a> {
    let script = "tick() { while [ ! -e /go ]; do echo tick; /bin/busybox usleep 20000; done; }; \
                  while read line; do $line; done; echo ended >&2; exit 3";
    let container = pod.create_with("main", script, |config| {
        config.stdin = true;
        change(config);
    });
    container.start();
    container
}

/// Attaches to it. The daemon takes input before it gives output: who has seen something misses nothing from then on.
#[track_caller]
fn attach_to_servant(container: &PodContainer<'_>) -> Stream {
    let _ = fs::remove_file(container.rootfs().join("go"));
    let mut stream = container.attach(false);
    stream.send(STDIN, b"tick\n");
    stream.wait_for(STDOUT, "tick\n");
    gate::open(container.rootfs(), "go");
    stream
}

/// Both ways are open.
#[track_caller]
fn assert_answers(stream: &mut Stream, text: &str) {
    stream.send(STDIN, format!("echo {text}\n").as_bytes());
    stream.wait_for(STDOUT, &format!("{text}\n"));
}

/// Of another container than one whose input ends with whoever is attached, containerd cuts one output off where the other ends.
fn who_is_attached_sees_what_the_log_has(real: &Real<'_>) {
    let cri = start(real);
    let container = run_servant(&cri.run_pod("pod"), |config| config.stdin_once = true);
    let mut stream = attach_to_servant(&container);
    stream.send(STDIN, b"/bin/busybox seq 1 100000\nexit 4\n");
    stream.wait();
    assert_eq!(container.wait().0, 4);
    let mut all = vec![stream.seen(STDOUT).to_vec()];
    // 1.6 may end the log in the middle of a line, over its own shim too.
    if real.containerd.version() > Version::V1_6 {
        container.wait_for_line("100000");
        all.push(container.log_lines().into_iter().flat_map(|line| (line.text + "\n").into_bytes()).collect());
    }
    for bytes in all {
        let first = bytes.iter().position(|b| !b"tick\n".contains(b)).unwrap();
        assert!(bytes[first..] == numbers(), "{} bytes", bytes.len());
    }
    cri.finish();
}

fn input_ends_with_the_first_who_was_attached_or_never(real: &Real<'_>) {
    let cri = start(real);
    let once = run_servant(&cri.run_pod("once"), |config| config.stdin_once = true);
    let mut stream = attach_to_servant(&once);
    assert_answers(&mut stream, "one");
    stream.close();
    assert_eq!(once.wait(), (3, "Error".into()));
    once.wait_for_line("ended");
    let never = run_servant(&cri.run_pod("never"), |_| ());
    for text in ["one", "two"] {
        let mut stream = attach_to_servant(&never);
        assert_answers(&mut stream, text);
        stream.close();
    }
    assert!(never.is_running());
    cri.finish();
}

fn who_attaches_after_containerd_was_killed_has_both_ways(real: &Real<'_>) {
    let cri = start(real);
    let container = run_servant(&cri.run_pod("pod"), |_| ());
    let mut stream = attach_to_servant(&container);
    assert_answers(&mut stream, "before");
    cri.kill();
    cri.resume();
    let mut stream = attach_to_servant(&container);
    assert_answers(&mut stream, "after");
    assert_eq!(container.exec("echo here").1, "here\n");
    assert!(container.log_lines().iter().all(|line| line.text != "ended"), "its input has not ended meanwhile");
    cri.finish();
}

fn a_port_of_a_pod_is_forwarded(real: &Real<'_>) {
    let cri = start(real);
    let number = 4711_u16;
    let pods = ["one", "other"].map(|name| {
        let pod = cri.run_pod_with(with_own_network(cri.pod_config(name)));
        let answer = format!("read line; echo {name} got $line; exec /bin/busybox seq 1 100000");
        let server = pod.run("server", &format!("exec /bin/busybox nc -ll -p {number} -e /bin/sh -c '{answer}'"));
        let listens = format!("until /bin/busybox grep -q :{number:04X} /proc/net/tcp*; do /bin/sleep 0.02; done");
        assert_eq!(server.exec(&listens).0, 0);
        (name, pod)
    });
    for (name, pod) in &pods {
        let mut stream = pod.forward(number);
        stream.send(port::DATA, b"hello\n");
        stream.wait();
        let expected = [&number.to_le_bytes(), format!("{name} got hello\n").as_bytes(), &*numbers()].concat();
        assert!(stream.seen(port::DATA) == expected, "{} bytes", stream.seen(port::DATA).len());
        assert_eq!(stream.seen(port::ERROR), number.to_le_bytes());
        let mut stream = pod.forward(number + 1);
        stream.wait();
        assert_eq!(stream.seen(port::DATA), (number + 1).to_le_bytes());
        let refusal = String::from_utf8_lossy(stream.seen(port::ERROR)).into_owned();
        assert!(refusal.contains("refused"), "{refusal}");
    }
    cri.finish();
}
