//! Ring 3: under a private containerd of each version, with each real OCI runtime. Read this one first of the ring.
//!
//! Every function that `matrix!` names is one behaviour and gets a containerd of its own; `tests/src/matrix.rs` says how
//! to add one. `HOLDFAST_RUNTIME` names another runtime than ours, to see that the tests themselves are right.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::process::{Output, Stdio};

use holdfast_tests::container::{Container, Oci};
use holdfast_tests::containerd::Containerd;
use holdfast_tests::matrix;
use holdfast_tests::matrix::Real;
use holdfast_tests::process::ChildProcess;
use holdfast_tests::programs::Version;
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::{Scene, eventually, process};
use serde_json::json;

matrix!(
    run_prints_and_exits_with_0,
    run_prints_and_exits_with_7,
    a_killed_container_tells_137,
    a_terminated_container_tells_143,
    an_exec_prints_and_tells_its_status,
    a_failing_exec_says_why,
    pause_and_resume_work,
    metrics_and_pids_are_told,
    an_update_of_limits_works,
    input_and_its_end_reach_the_container,
    a_terminal_works,
    an_attached_client_gets_the_whole_of_a_large_output,
    a_failed_create_leaves_nothing_and_says_why,
    events_come_in_order,
    a_killed_shim_is_cleaned_up_after,
);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A container that runs until it is killed.
const SLEEPER: &str = "exec /bin/sleep 1000";

fn run_prints_and_exits_with_0(real: &Real<'_>) {
    prints_and_exits_with(real, 0);
}

fn run_prints_and_exits_with_7(real: &Real<'_>) {
    prints_and_exits_with(real, 7);
}

#[track_caller]
fn prints_and_exits_with(real: &Real<'_>, status: i32) {
    let output = real.container().run(&["--rm"], &format!("/bin/echo out; /bin/echo err >&2; exit {status}"));
    let seen = (text(&output.stdout), text(&output.stderr), output.status.code());
    assert_eq!(seen, ("out\n".into(), "err\n".into(), Some(status)), "{}", real.containerd.complain(&output));
    assert_eq!(real.containerd.ok(&["container", "ls", "-q"]), "");
}

fn a_killed_container_tells_137(real: &Real<'_>) {
    ended_by(real, "SIGKILL", 137);
}

fn a_terminated_container_tells_143(real: &Real<'_>) {
    ended_by(real, "SIGTERM", 143);
}

#[track_caller]
fn ended_by(real: &Real<'_>, signal: &str, status: u32) {
    let container = real.container();
    // PID 1 of a pid namespace ignores SIGTERM unless it asks for it.
    let pid = container.run_detached("trap 'exit 143' TERM; while :; do /bin/sleep 0.05; done");
    assert!(process::is_alive(pid));
    real.containerd.ok(&["task", "kill", "-s", signal, &container.id]);
    real.containerd.wait_for_status(&container.id, "STOPPED");
    assert_eq!(real.containerd.delete(&container.id), status);
}

fn an_exec_prints_and_tells_its_status(real: &Real<'_>) {
    let container = real.container();
    container.run_detached(SLEEPER);
    let output = container.exec("e1", &[], &["/bin/sh", "-c", "/bin/echo out; /bin/echo err >&2; exit 5"]);
    let seen = (text(&output.stdout), text(&output.stderr), output.status.code());
    assert_eq!(seen, ("out\n".into(), "err\n".into(), Some(5)), "{}", real.containerd.complain(&output));
    real.containerd.remove(&container.id);
}

fn a_failing_exec_says_why(real: &Real<'_>) {
    let container = real.container();
    container.run_detached(SLEEPER);
    let output = container.exec("e1", &[], &["/no/such/program"]);
    assert!(!output.status.success());
    // Once: the OCI runtime's own words are none of the process's output.
    let said = text(&output.stderr).to_lowercase().matches("no such file or directory").count();
    assert_eq!(said, 1, "{}", real.containerd.complain(&output));
    // The id is free again.
    let output = container.exec("e1", &[], &["/bin/echo", "hello"]);
    assert_eq!(text(&output.stdout), "hello\n", "{}", real.containerd.complain(&output));
    real.containerd.remove(&container.id);
}

fn pause_and_resume_work(real: &Real<'_>) {
    let container = real.container();
    // What it prints goes nowhere but into its root file system.
    container.run_detached("while :; do /bin/echo tick >>/ticks; /bin/sleep 0.02; done");
    let ticks = || fs::read(real.containerd.rootfs().join("ticks")).map_or(0, |t| t.len());
    real.containerd.ok(&["task", "pause", &container.id]);
    real.containerd.wait_for_status(&container.id, "PAUSED");
    let then = ticks();
    real.containerd.ok(&["task", "ps", &container.id]);
    assert_eq!(ticks(), then, "a paused container stands still");
    real.containerd.ok(&["task", "resume", &container.id]);
    real.containerd.wait_for_status(&container.id, "RUNNING");
    eventually("it should go on", || if ticks() > then { Ok(()) } else { Err(then) });
    real.containerd.remove(&container.id);
}

fn metrics_and_pids_are_told(real: &Real<'_>) {
    if real.lacks_controllers() {
        return;
    }
    let container = real.container();
    let pid = container.run_detached(SLEEPER);
    let metrics = real.containerd.ok(&["task", "metrics", &container.id]);
    assert!(metrics.contains("memory") && metrics.contains("pids"), "{metrics}");
    assert_eq!(container.pids(), [pid]);
    real.containerd.remove(&container.id);
}

fn an_update_of_limits_works(real: &Real<'_>) {
    if real.lacks_controllers() {
        return;
    }
    let container = real.container();
    let pid = container.run_detached(SLEEPER);
    container.update(&json!({ "pids": { "limit": 77 } })).unwrap();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let limits: Vec<String> = groups
        .lines()
        .filter_map(|l| l.rsplit_once(':'))
        .flat_map(|(_, group)| ["pids", ""].map(|hierarchy| format!("/sys/fs/cgroup/{hierarchy}{group}/pids.max")))
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    assert!(limits.contains(&"77\n".to_owned()), "{limits:?} in {groups}");
    real.containerd.remove(&container.id);
}

fn input_and_its_end_reach_the_container(real: &Real<'_>) {
    let out = real.scene.path("out");
    let mut command = real.container().run_command(&["--rm"], &["/bin/sh", "-c", "/bin/cat; /bin/echo end"]);
    command.stdin(Stdio::piped()).stdout(fs::File::create(&out).unwrap());
    let mut ctr = ChildProcess::spawn(&mut command);
    let mut input = ctr.child().stdin.take().unwrap();
    input.write_all(b"some input\n").unwrap();
    // Only then the end: ctr does not pass one on that comes before it has made the task.
    let printed = || fs::read_to_string(&out).unwrap();
    eventually("cat should print", || if printed() == "some input\n" { Ok(()) } else { Err(printed()) });
    drop(input);
    assert!(ctr.wait().success());
    assert_eq!(printed(), "some input\nend\n");
}

fn a_terminal_works(real: &Real<'_>) {
    let inner = real.container().run_command(&["--rm", "--tty"], &["/bin/sh", "-c", "/bin/tty; exit 9"]);
    let output = real.containerd.at_a_terminal(&inner);
    let seen = text(&output.stdout).replace('\r', "");
    assert!(seen.contains("/dev/pts/0\n") || seen.contains("/dev/console\n"), "{}", real.containerd.complain(&output));
    assert_eq!(output.status.code(), Some(9), "{seen}");
}

fn an_attached_client_gets_the_whole_of_a_large_output(real: &Real<'_>) {
    let pattern: Vec<u8> = (0..1_u32 << 20).flat_map(|n| format!("{n:07x}\n").into_bytes()).collect();
    fs::write(real.containerd.rootfs().join("pattern"), &pattern).unwrap();
    let output = real.container().run(&["--rm"], "/bin/dd if=/pattern bs=65536 2>/dev/null; exit 2");
    let first = output.stdout.iter().zip(&pattern).position(|(a, b)| a != b);
    let seen = (output.stdout.len(), first, output.status.code());
    let complaint = real.containerd.complain(&Output { stdout: vec![], ..output });
    assert_eq!(seen, (pattern.len(), None, Some(2)), "{complaint}");
}

fn a_failed_create_leaves_nothing_and_says_why(real: &Real<'_>) {
    let container = real.container();
    let output = process::run(&mut container.run_command(&["--rm"], &["/no/such/program"]));
    assert!(!output.status.success());
    // Once: the OCI runtime's own words are none of the process's output.
    let said = text(&output.stderr).to_lowercase().matches("no such file or directory").count();
    assert_eq!(said, 1, "{}", real.containerd.complain(&output));
    real.containerd.wait_for_end_of_shim(&container.id);
    assert_eq!(real.containerd.task(&container.id), None);
}

fn events_come_in_order(real: &Real<'_>) {
    let containerd = &real.containerd;
    let events = containerd.listen();
    let container = real.container();
    container.run_detached(SLEEPER);
    container.exec("e1", &[], &["/bin/sh", "-c", "exit 4"]);
    containerd.ok(&["task", "kill", "-s", "SIGKILL", &container.id]);
    containerd.wait_for_status(&container.id, "STOPPED");
    containerd.delete(&container.id);
    let seen = events.of_tasks_until("delete");
    let topics: Vec<&str> = seen.iter().map(|(topic, _)| topic.as_str()).collect();
    assert_eq!(topics, ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"], "{seen:?}");
    let exits: Vec<&String> = seen.iter().filter(|(topic, _)| topic == "exit").map(|(_, line)| line).collect();
    assert!(exits[0].contains("\"exit_status\":4"), "{exits:?}");
    assert!(exits[1].contains("\"exit_status\":137"), "{exits:?}");
}

fn a_killed_shim_is_cleaned_up_after(real: &Real<'_>) {
    let container = real.container();
    let pid = container.run_detached(SLEEPER);
    container.shim().kill();
    // containerd runs our delete command, which ends the container.
    process::until_gone(pid);
    eventually("the task should be gone", || real.containerd.task(&container.id).map_or(Ok(()), Err));
    real.containerd.ok(&["container", "delete", &container.id]);
}

/// Before 2.0 the client sends what it asks of one task in a message of its own if the runtime is not named runc.
#[test]
fn options_of_one_task_are_taken_from_clients_of_every_version() {
    if !is_root() {
        return skip("needs root");
    }
    for version in Version::ALL {
        let scene = Scene::new();
        let containerd = Containerd::start(&scene, version);
        let output =
            Container::new(&containerd, Oci::HoldfastOci).run(&["--rm", "--no-pivot"], "/bin/echo out; exit 3");
        let seen = (text(&output.stdout), output.status.code());
        assert_eq!(seen, ("out\n".into(), Some(3)), "{}: {}", version.name(), containerd.complain(&output));
    }
}
