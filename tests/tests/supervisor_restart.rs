//! Ring 3: the supervisor is killed and comes back, and nothing is lost: containers, output, exit statuses, clients.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;

use holdfast_proto::record::Record;
use holdfast_tests::gate::{ends_later, wait_at};
use holdfast_tests::holdfastd::{Holdfastd, Said};
use holdfast_tests::process::{ChildProcess, is_alive, kill_hard, until_gone};
use holdfast_tests::until;

/// Counts from 1, ten times a second; exits with 143 on SIGTERM, as a well-behaved first process does.
const COUNTER: &str = "trap 'exit 143' TERM; i=1; while :; do echo $i; i=$((i+1)); sleep 0.1 & wait $!; done";

fn numbers(text: &str) -> Vec<u64> {
    text.lines().map(|l| l.trim().parse().unwrap_or_else(|_| panic!("{l:?} is no number"))).collect()
}

/// Whether it is 1, 2, 3, … without a gap or a repetition.
fn is_unbroken(numbers: &[u64]) -> bool {
    numbers.iter().zip(1..).all(|(n, expected)| *n == expected)
}

fn log(host: &Holdfastd, name: &str) -> Vec<u64> {
    numbers(&host.holdfast(&["logs", name]).ok())
}

fn count_reaches(host: &Holdfastd, name: &str, least: usize) -> Vec<u64> {
    until("the counter goes on", || Some(log(host, name)).filter(|n| n.len() >= least))
}

#[test]
fn a_killed_supervisor_finds_its_container_again_with_an_unbroken_log() {
    let mut host = Holdfastd::start();
    host.run("web", COUNTER);
    count_reaches(&host, "web", 3);
    let (pid, shim) = (host.pid("web", "pid"), host.pid("web", "shim_pid"));
    host.kill();
    assert!(is_alive(pid) && is_alive(shim), "they need nobody");
    host.restart();
    assert_eq!(host.class("web"), "reattached");
    assert_eq!((host.pid("web", "pid"), host.pid("web", "shim_pid")), (pid, shim));
    let before = log(&host, "web").len();
    let after = count_reaches(&host, "web", before + 3);
    assert!(is_unbroken(&after), "{after:?}");
    let exec = host.holdfast(&["exec", "web", "/bin/sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((exec.code, exec.out.as_str(), exec.err.as_str()), (7, "out\n", "err\n"));
    host.holdfast(&["stop", "web"]).ok();
    let wait = host.holdfast(&["wait", "web"]);
    assert_eq!((wait.code, wait.out.trim()), (143, "143"));
    host.holdfast(&["rm", "web"]).ok();
    assert!(!is_alive(pid) && !is_alive(shim));
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn sigterm_leaves_containers_running_too() {
    let mut host = Holdfastd::start();
    host.run("web", COUNTER);
    let pid = host.pid("web", "pid");
    assert_eq!(host.terminate(), Some(0));
    assert!(is_alive(pid));
    host.restart();
    assert_eq!(host.class("web"), "reattached");
}

#[test]
fn exit_statuses_are_true_in_the_foreground() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    for status in [0, 7, 137, 143] {
        let script = format!("echo {status}; exit {status}");
        let said = host.holdfast(&["run", "--rm", "--rootfs", &rootfs, "--", "/bin/sh", "-c", &script]);
        assert_eq!((said.code, said.out.trim()), (status, status.to_string().as_str()), "{}", said.err);
    }
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn exit_statuses_are_true_for_signals_and_for_execs() {
    let host = Holdfastd::start();
    host.run("web", "sleep 1000");
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)] {
        let said = host.holdfast(&["exec", "web", "/bin/sh", "-c", script]);
        assert_eq!(said.code, status, "{script}: {}", said.err);
    }
    host.holdfast(&["kill", "web"]).ok();
    assert_eq!(host.holdfast(&["wait", "web"]).code, 137);
    host.run("polite", COUNTER);
    count_reaches(&host, "polite", 1);
    host.holdfast(&["kill", "-s", "TERM", "polite"]).ok();
    assert_eq!(host.holdfast(&["wait", "polite"]).code, 143);
}

#[test]
fn exit_statuses_are_true_for_those_that_ended_while_the_supervisor_was_away() {
    let mut host = Holdfastd::start();
    let statuses = [0, 7, 137, 143];
    for status in statuses {
        host.run(&format!("e{status}"), &ends_later(status));
    }
    let pids: Vec<u32> = statuses.iter().map(|s| host.pid(&format!("e{s}"), "pid")).collect();
    host.kill();
    host.open_gate("go");
    until("all have ended", || pids.iter().all(|p| !is_alive(*p)).then_some(()));
    host.restart();
    for status in statuses {
        let name = format!("e{status}");
        assert_eq!(host.class(&name), "exited-while-away");
        let wait = host.holdfast(&["wait", &name]);
        assert_eq!(wait.code, i32::try_from(status).unwrap(), "{name}: {}", wait.err);
    }
}

#[test]
fn a_restart_policy_is_applied_to_what_ended_while_away() {
    let mut host = Holdfastd::start();
    host.run_with("web", &["--restart", "on-failure:1"], &format!("echo 1; {}", ends_later(3)));
    let pid = host.pid("web", "pid");
    host.kill();
    host.open_gate("go");
    until_gone(pid);
    host.restart();
    assert_eq!(host.holdfast(&["wait", "web"]).code, 3);
    assert_eq!(host.inspect("web")["restarts"], 1);
    assert_eq!(log(&host, "web"), [1, 1], "it ran twice");
}

#[test]
fn an_attached_client_sees_every_byte_and_the_true_status_across_a_restart() {
    let mut host = Holdfastd::start();
    let rootfs = host.rootfs();
    let mut client = host
        .command("holdfast")
        .args(["run", "--name", "web", "--rootfs", &rootfs, "--", "/bin/sh", "-c", COUNTER])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(client.stdout.take().unwrap());
    let mut text = String::new();
    while text.lines().count() < 3 {
        assert_ne!(out.read_line(&mut text).unwrap(), 0);
    }
    host.kill();
    while text.lines().count() < 8 {
        assert_ne!(out.read_line(&mut text).unwrap(), 0, "nobody stands between the container and the client");
    }
    host.restart();
    host.holdfast(&["stop", "web"]).ok();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(143));
    assert!(is_unbroken(&numbers(&text)), "{text}");
    assert_eq!(numbers(&text), log(&host, "web"), "the log has the same");
}

#[test]
fn clients_that_wait_follow_or_execute_outlive_the_supervisor() {
    let mut host = Holdfastd::start();
    host.run("web", COUNTER);
    let client = |host: &Holdfastd, args: &[&str]| {
        host.command("holdfast").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let wait = client(&host, &["wait", "web"]);
    let follow = client(&host, &["logs", "-f", "web"]);
    let mut exec = client(&host, &["exec", "-i", "web", "/bin/cat"]);
    let mut input = exec.stdin.take().unwrap();
    input.write_all(b"before\n").unwrap();
    let mut echoed = BufReader::new(exec.stdout.take().unwrap());
    let mut line = String::new();
    echoed.read_line(&mut line).unwrap();
    assert_eq!(line, "before\n");
    host.kill();
    input.write_all(b"while away\n").unwrap();
    line.clear();
    echoed.read_line(&mut line).unwrap();
    assert_eq!(line, "while away\n");
    host.restart();
    drop(input);
    assert_eq!(exec.wait().unwrap().code(), Some(0), "the end of its input is told");
    host.holdfast(&["stop", "web"]).ok();
    assert_eq!(Said::from(wait.wait_with_output().unwrap()).code, 143);
    let followed = Said::from(follow.wait_with_output().unwrap()).ok();
    assert_eq!(numbers(&followed), log(&host, "web"));
}

#[test]
fn a_container_whose_shim_died_with_the_supervisor_is_told_truly_and_cleared_away() {
    let mut host = Holdfastd::start();
    host.run("lost", "sleep 1000");
    host.run("kept", COUNTER);
    let (pid, shim) = (host.pid("lost", "pid"), host.pid("lost", "shim_pid"));
    host.kill();
    kill_hard(shim);
    kill_hard(pid);
    host.restart();
    assert_eq!((host.class("lost"), host.class("kept")), ("lost".to_owned(), "reattached".to_owned()));
    host.holdfast(&["wait", "lost"]);
    assert_ne!(host.inspect("lost")["reason"], "", "it is said why the status is what it is");
    host.holdfast(&["rm", "lost"]).ok();
    host.holdfast(&["rm", "-f", "kept"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn a_dead_shims_container_goes_on_and_its_true_status_is_told() {
    let host = Holdfastd::start();
    host.run("web", &ends_later(5));
    kill_hard(host.pid("web", "shim_pid"));
    let told = |host: &Holdfastd| host.inspect("web")["reason"].as_str().is_some_and(|r| r.contains("shim is dead"));
    until("the death is noticed", || told(&host).then_some(()));
    assert!(is_alive(host.pid("web", "pid")), "nobody kills it for its shim's death");
    host.open_gate("go");
    assert_eq!(host.holdfast(&["wait", "web"]).code, 5);
    host.holdfast(&["rm", "web"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn what_cannot_be_read_is_reported_and_kept_and_the_rest_goes_on() {
    let mut host = Holdfastd::start();
    let id = host.run("web", COUNTER);
    host.kill();
    let broken = host.state_dir().join("containers/default/broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("config.json"), "{").unwrap();
    host.restart();
    assert_eq!(host.class("web"), "reattached");
    let attention = host.attention();
    let told = |one: &String| one.contains("broken was unreadable") && one.contains("config.json");
    assert!(attention.iter().any(told), "{attention:?}");
    assert!(broken.join("config.json").exists());
    assert!(host.holdfast(&["ps", "-aq", "--no-trunc"]).ok().contains(&id));
}

#[test]
fn only_loopback_is_up_in_a_private_network() {
    let host = Holdfastd::start();
    host.run("web", "sleep 1000");
    let shown = host.holdfast(&["exec", "web", "/bin/ifconfig", "-a"]).ok();
    assert!(shown.starts_with("lo ") && shown.contains("127.0.0.1") && shown.contains("UP LOOPBACK"), "{shown}");
    assert!(!shown.contains("eth"), "{shown}");
}

#[test]
fn each_mistake_gets_one_clear_error_and_leaves_nothing() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    // Who waits for a writer of this waits for ever, and everybody else with him.
    let fifo = host.run_dir().join("fifo-bundle");
    std::fs::create_dir(&fifo).unwrap();
    nix::unistd::mkfifo(&fifo.join("config.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = fifo.to_str().unwrap();
    let tries: [(&[&str], i32, &str); 10] = [
        (&["run", "-d", "--bundle", fifo, "--", "/bin/sh"], 125, "fifo-bundle/config.json"),
        (&["run", "-d", "--rootfs", "/no/such", "--", "/bin/sh"], 125, "/no/such"),
        (&["run", "-d", "--bundle", "/proc", "--", "/bin/sh"], 125, "/proc/config.json"),
        (&["run", "-d", "--rootfs", &rootfs, "--name", "a/b", "--", "/bin/sh"], 125, "a/b"),
        (&["run", "-d", "--rootfs", &rootfs, "--network", "bridge", "--", "/bin/sh"], 125, "bridge"),
        (&["run", "-d", "--rootfs", &rootfs, "--user", "stranger", "--", "/bin/sh"], 125, "stranger"),
        (&["run", "-d", "--rootfs", &rootfs, "--restart", "often", "--", "/bin/sh"], 125, "often"),
        (&["run", "-d", "--rootfs", &rootfs, "-m", "much", "--", "/bin/sh"], 125, "much"),
        (&["stop", "nobody"], 125, "nobody"),
        (&["kill", "-s", "NOPE", "nobody"], 125, "NOPE"),
    ];
    for (args, code, part) in tries {
        let said = host.holdfast(args);
        assert_eq!(said.code, code, "{args:?}: {said:?}");
        // One line, and below it what to do next, where that is known.
        let errors = said.err.lines().filter(|line| !line.starts_with("  ")).count();
        assert!(said.err.contains(part) && errors == 1, "{args:?}: {}", said.err);
    }
    let said = host.holdfast(&["run", "--rm", "--rootfs", &rootfs, "--", "/bin/missing"]);
    assert_eq!(said.code, 127, "{said:?}");
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn a_second_supervisor_in_the_same_directory_is_refused() {
    let host = Holdfastd::start();
    let said = Said::from(host.command("holdfastd").output().unwrap());
    assert_eq!(said.code, 1);
    assert!(said.err.contains("another holdfastd"), "{}", said.err);
}

/// A `holdfast events` that goes on; what it has shown of a container, in short.
struct Listener {
    /// For its end alone.
    _client: ChildProcess,
    lines: BufReader<std::process::ChildStdout>,
}

impl Listener {
    fn start(host: &Holdfastd, args: &[&str]) -> Self {
        let mut command = host.command("holdfast");
        command.args(["--json", "events"]).args(args).stdin(Stdio::null());
        let mut child = ChildProcess::spawn(command.stdout(Stdio::piped()).stderr(Stdio::null()));
        let lines = BufReader::new(child.child().stdout.take().unwrap());
        Self { _client: child, lines }
    }

    /// The next events up to one of this kind.
    fn up_to(&mut self, kind: &str) -> Vec<String> {
        let mut kinds = Vec::new();
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "no {kind} after {kinds:?}");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            kinds.push(event["kind"].as_str().unwrap().to_owned());
            if kinds.last().unwrap() == kind {
                return kinds;
            }
        }
    }
}

#[test]
fn events_are_complete_across_restarts_of_the_supervisor() {
    let mut host = Holdfastd::start();
    host.run("web", &ends_later(7));
    let mut listener = Listener::start(&host, &["--since", "1h"]);
    assert_eq!(listener.up_to("start"), ["create", "start"]);
    let pid = host.pid("web", "pid");
    host.kill();
    host.open_gate("go");
    until_gone(pid);
    host.restart();
    let mut heard = listener.up_to("delete");
    heard.retain(|kind| kind != "reattach");
    assert_eq!(heard, ["exit", "delete"]);
    host.kill();
    host.restart();
    // Who comes now hears it too, from the supervisor before the last.
    let mut all = Listener::start(&host, &["--since", "1h"]).up_to("delete");
    all.retain(|kind| kind != "reattach");
    assert_eq!(all, ["create", "start", "exit", "delete"]);
    host.holdfast(&["rm", "web"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn what_a_shim_could_not_tell_before_it_was_killed_is_told_by_the_next_supervisor() {
    let mut host = Holdfastd::start();
    host.run("web", &ends_later(7));
    Listener::start(&host, &["--since", "1h"]).up_to("start");
    let (pid, shim) = (host.pid("web", "pid"), host.pid("web", "shim_pid"));
    host.kill();
    host.open_gate("go");
    until_gone(pid);
    let waiting = || left_events(&host.run_dir());
    until("its exit waits", || waiting().then_some(()));
    kill_hard(shim);
    host.restart();
    let wait = host.holdfast(&["wait", "web"]);
    assert_eq!((wait.code, wait.out.trim()), (7, "7"));
    let mut all = Listener::start(&host, &["--since", "1h"]).up_to("exit");
    all.retain(|kind| kind != "lost");
    assert_eq!(all, ["create", "start", "exit"]);
    host.holdfast(&["rm", "web"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

/// Whether events of a shim wait there.
fn left_events(run_dir: &Path) -> bool {
    let dirs = std::fs::read_dir(run_dir.join("tasks/holdfastd/default"));
    dirs.into_iter().flatten().flatten().any(|entry| entry.path().extension().is_some_and(|e| e == "events"))
}

/// Starts a container that lacks memory once the gate is open; its pid.
fn run_greedy(host: &Holdfastd) -> u32 {
    let script = format!("{}; exec /bin/busybox tail /dev/zero", wait_at("go"));
    host.run_with("web", &["--memory", "16m"], &script);
    host.pid("web", "pid")
}

#[test]
fn want_of_memory_is_the_reason_of_an_exit_also_when_the_supervisor_was_away() {
    let mut host = Holdfastd::start();
    let pid = run_greedy(&host);
    host.kill();
    host.open_gate("go");
    until_gone(pid);
    host.restart();
    assert_eq!(host.holdfast(&["wait", "web"]).code, 137);
    assert_eq!(host.inspect("web")["reason"], "killed for want of memory");
    let list = host.holdfast(&["ps", "-a"]).ok();
    assert!(list.contains("killed for want of memory"), "{list}");
    host.holdfast(&["rm", "web"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn want_of_memory_is_the_reason_of_an_exit_also_when_everyone_has_died_since() {
    let mut host = Holdfastd::start();
    let pid = run_greedy(&host);
    let shim = host.pid("web", "shim_pid");
    Listener::start(&host, &["--since", "1h"]).up_to("start");
    host.kill();
    host.open_gate("go");
    until_gone(pid);
    until("its exit is in the record", || recorded_exit(&host.run_dir()).then_some(()));
    kill_hard(shim);
    host.restart();
    assert_eq!(host.holdfast(&["wait", "web"]).code, 137);
    let reason = host.inspect("web")["reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("killed for want of memory"), "{reason}");
    host.holdfast(&["rm", "web"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

/// Whether the exit of the only container is recorded.
fn recorded_exit(run_dir: &Path) -> bool {
    let dirs = std::fs::read_dir(run_dir.join("tasks/holdfastd/default")).into_iter().flatten().flatten();
    let records = dirs.filter_map(|entry| Record::read(&entry.path().join("record.json")).ok());
    records.into_iter().any(|record| record.init().is_some_and(|init| init.exit.is_some()))
}
