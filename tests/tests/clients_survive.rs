//! Ring 3: clients of a supervisor that is killed, away for long, and killed again: each byte they print is numbered and
//! comes once, and they exit with the true status. `supervisor_restart.rs` has the single restart.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{ExitStatus, Stdio};

use holdfast_tests::gate::wait_at;
use holdfast_tests::holdfastd::{Holdfastd, Said};
use holdfast_tests::numbered::{FOUR_MB, assert_all};
use holdfast_tests::process::{ChildProcess, Stopped, is_alive, until_gone};
use holdfast_tests::{Window, until};
use nix::sys::signal::Signal;

/// A client under way.
struct Client(ChildProcess);

impl Client {
    fn start(host: &Holdfastd, args: &[&str]) -> Self {
        let mut command = host.command("holdfast");
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(ChildProcess::spawn(&mut command))
    }

    /// Runs a script in the foreground.
    fn run(host: &Holdfastd, options: &[&str], script: &str) -> Self {
        let rootfs = host.rootfs();
        Self::start(host, &[&["run"], options, &["--rootfs", &rootfs, "--", "/bin/sh", "-c", script]].concat())
    }

    fn signal(&self, signal: Signal) {
        self.0.signal(signal);
    }

    /// The first so many lines.
    fn lines(&mut self, count: usize) -> (BufReader<std::process::ChildStdout>, Vec<u8>) {
        let mut out = BufReader::new(self.0.child().stdout.take().unwrap());
        let mut text = Vec::new();
        for _ in 0..count {
            if out.read_until(b'\n', &mut text).unwrap() == 0 {
                let mut err = String::new();
                self.0.child().stderr.take().unwrap().read_to_string(&mut err).unwrap();
                panic!("it ends after {} bytes: {err}", text.len());
            }
        }
        (out, text)
    }

    fn ended(mut self) -> (ExitStatus, String) {
        let mut err = String::new();
        self.0.child().stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (self.0.wait(), err)
    }

    /// As [`Client::ended`], of one that gets the signal again and again.
    fn ended_by_all(mut self, signal: Signal) -> (ExitStatus, String) {
        until("a client that is asked more than once ends", || {
            let ended = self.0.child().try_wait().unwrap();
            if ended.is_none() {
                self.signal(signal);
            }
            ended
        });
        self.ended()
    }

    /// Its exit code and what it printed.
    fn said(mut self) -> Said {
        let (mut out, mut err) = (String::new(), String::new());
        self.0.child().stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.0.child().stderr.take().unwrap().read_to_string(&mut err).unwrap();
        Said { code: self.0.wait().code().unwrap_or(-1), out, err }
    }
}

fn seq(first: usize, last: usize) -> String {
    format!("/bin/busybox seq {first} {last}")
}

/// Away and back three times in a row, by kill -9 and by SIGTERM.
fn away_and_back(host: &mut Holdfastd) {
    for round in 0..3 {
        if round == 1 {
            host.terminate();
        } else {
            host.kill();
        }
        host.restart();
    }
}

/// Three parts of numbered lines: before, while the supervisor is away, and after its return; exits with 7.
fn in_three_parts() -> String {
    let third = FOUR_MB / 3;
    let parts = [seq(0, third - 1), seq(third, 2 * third - 1), seq(2 * third, FOUR_MB - 1)];
    format!("{}; {}; {}; {}; {}; exit 7", parts[0], wait_at("away"), parts[1], wait_at("back"), parts[2])
}

fn sees_everything_across_restarts(host: &mut Holdfastd, mut client: Client) {
    let third = FOUR_MB / 3;
    let (mut out, mut text) = client.lines(third);
    host.kill();
    host.open_gate("away");
    for _ in third..2 * third {
        assert_ne!(out.read_until(b'\n', &mut text).unwrap(), 0, "nobody stands between it and its client");
    }
    host.restart();
    away_and_back(host);
    host.open_gate("back");
    out.read_to_end(&mut text).unwrap();
    let (status, err) = client.ended();
    assert_eq!(status.code(), Some(7), "{err}");
    assert_all(&text, FOUR_MB);
}

#[test]
fn run_in_the_foreground_loses_and_repeats_nothing() {
    let mut host = Holdfastd::start();
    let client = Client::run(&host, &["--rm"], &in_three_parts());
    sees_everything_across_restarts(&mut host, client);
    until("all is cleaned up", || host.left_over().is_empty().then_some(()));
}

#[test]
fn exec_in_the_foreground_loses_and_repeats_nothing() {
    let mut host = Holdfastd::start();
    host.run("web", "exec sleep 1000");
    let client = Client::start(&host, &["exec", "web", "/bin/sh", "-c", &in_three_parts()]);
    sees_everything_across_restarts(&mut host, client);
}

#[test]
fn logs_that_are_followed_lose_and_repeat_nothing() {
    let mut host = Holdfastd::start();
    // Ends with 0, as logs does.
    host.run("web", &in_three_parts().replace("exit 7", "exit 0"));
    let third = FOUR_MB / 3;
    let mut client = Client::start(&host, &["logs", "-f", "web"]);
    let (mut out, mut text) = client.lines(third);
    host.kill();
    host.open_gate("away");
    for _ in third..2 * third {
        assert_ne!(out.read_until(b'\n', &mut text).unwrap(), 0);
    }
    host.restart();
    away_and_back(&mut host);
    host.open_gate("back");
    out.read_to_end(&mut text).unwrap();
    assert_eq!(client.ended().0.code(), Some(0));
    assert_all(&text, FOUR_MB);
}

/// More than a client's FIFO holds, less than the pipe before it: who prints so many can end without its client.
const LINES: usize = 100_000;

/// They are in the log, and what a client had not taken is kept for it.
#[test]
fn last_words_while_the_supervisor_is_away_are_kept() {
    let mut host = Holdfastd::start();
    let script = format!("{}; {}; exit 5", wait_at("go"), seq(0, LINES - 1));
    host.run("logged", &script);
    let client = Client::run(&host, &["--name", "attached"], &script);
    until("it runs", || (host.holdfast(&["inspect", "attached"]).code == 0).then_some(()));
    host.until_status("attached", "running");
    let pids = ["logged", "attached"].map(|name| host.pid(name, "pid"));
    let stopped = Stopped::new(client.0.pid());
    host.kill();
    host.open_gate("go");
    for pid in pids {
        until_gone(pid);
    }
    host.restart();
    assert_all((host.holdfast(&["logs", "logged"]).ok() + "\n").as_bytes(), LINES);
    drop(stopped);
    let said = client.said();
    assert_eq!(said.code, 5, "{}", said.err);
    assert_all(said.out.as_bytes(), LINES);
}

#[test]
fn everyone_who_waits_hears_the_true_status_of_what_ended_while_the_supervisor_was_away() {
    let mut host = Holdfastd::start();
    host.run("web", &format!("{}; exit 5", wait_at("go")));
    let waits: Vec<Client> = (0..3).map(|_| Client::start(&host, &["wait", "web"])).collect();
    let rm = Client::run(&host, &["--rm", "--name", "once"], &format!("{}; echo 0; exit 6", wait_at("go")));
    until("it runs", || (host.holdfast(&["inspect", "once"]).code == 0 && host.pid("once", "pid") != 0).then_some(()));
    let exec = Client::start(&host, &["exec", "web", "/bin/sh", "-c", &format!("{}; exit 9", wait_at("exec-go"))]);
    until("it runs", || execs(&host, "web").iter().any(|exec| exec["pid"] != 0).then_some(()));
    let pids = [host.pid("once", "pid"), host.pid("web", "pid")];
    let exec_pid = u32::try_from(execs(&host, "web")[0]["pid"].as_u64().unwrap()).unwrap();
    host.kill();
    host.open_gate("exec-go");
    until_gone(exec_pid);
    host.open_gate("go");
    until("all have ended", || pids.iter().all(|pid| !is_alive(*pid)).then_some(()));
    // Nobody who waits is there when the supervisor finds out, removes the one container, and dies again.
    let clients: Vec<&Client> = waits.iter().chain([&rm, &exec]).collect();
    let stopped: Vec<Stopped> = clients.iter().map(|client| Stopped::new(client.0.pid())).collect();
    host.restart();
    until("it is removed", || (host.holdfast(&["inspect", "once"]).code != 0).then_some(()));
    away_and_back(&mut host);
    drop(stopped);
    for wait in waits {
        assert_eq!(wait.said().code, 5);
    }
    let rm = rm.said();
    assert_eq!((rm.code, rm.out.as_str()), (6, "0\n"), "{}", rm.err);
    let exec = exec.said();
    assert_eq!(exec.code, 9, "{}", exec.err);
}

fn execs(host: &Holdfastd, name: &str) -> Vec<serde_json::Value> {
    host.inspect(name)["execs"].as_array().unwrap().clone()
}

fn exec_of(host: &Holdfastd, name: &str, id: &str) -> serde_json::Value {
    execs(host, name).into_iter().find(|exec| exec["id"] == id).unwrap_or_else(|| panic!("{id} is not listed"))
}

#[test]
fn execs_keep_their_id_and_code_for_whoever_asks_later() {
    let mut host = Holdfastd::start();
    let rootfs = host.rootfs();
    let run = ["run", "-d", "--memory", "24m", "--name", "web", "--rootfs", &rootfs, "--", "/bin/sleep", "1000"];
    host.holdfast(&run).ok();
    let detached = |script: &str| host.holdfast(&["exec", "-d", "web", "/bin/sh", "-c", script]).ok();
    let early = detached("exit 3");
    assert_eq!(host.holdfast(&["wait", "web", "--exec", &early]).code, 3);
    let late = detached(&format!("{}; exit 4", wait_at("go")));
    let greedy = detached(&format!("{}; exec /bin/busybox tail /dev/zero", wait_at("go")));
    let lasting = detached("exec sleep 1000");
    let pid = |id: &str| u32::try_from(exec_of(&host, "web", id)["pid"].as_u64().unwrap()).unwrap();
    let (late_pid, greedy_pid, lasting_pid) = (pid(&late), pid(&greedy), pid(&lasting));
    host.kill();
    host.open_gate("go");
    until("two of them end", || (!is_alive(late_pid) && !is_alive(greedy_pid)).then_some(()));
    host.restart();
    away_and_back(&mut host);
    for (id, code) in [(&early, 3), (&late, 4), (&greedy, 137)] {
        assert_eq!(host.holdfast(&["wait", "web", "--exec", id]).code, code, "{id}");
        let exec = exec_of(&host, "web", id);
        assert_eq!((exec["status"].as_str(), exec["exit_status"].as_i64()), (Some("exited"), Some(i64::from(code))));
    }
    assert_eq!(exec_of(&host, "web", &greedy)["oom_killed"], true);
    assert_eq!(exec_of(&host, "web", &late)["oom_killed"], false);
    let lasting_now = exec_of(&host, "web", &lasting);
    assert_eq!(
        (lasting_now["status"].as_str(), lasting_now["pid"].as_u64()),
        (Some("running"), Some(lasting_pid.into()))
    );
    until("ended ones hold nothing in the shim", || (recorded_execs(&host) == [lasting.clone()]).then_some(()));
    let waiting = Client::start(&host, &["wait", "web", "--exec", &lasting]);
    host.holdfast(&["kill", "web"]).ok();
    assert_eq!(waiting.said().code, 137, "it ended with its container");
    // Whose end is told after those of its execs.
    assert_eq!(host.holdfast(&["wait", "web"]).code, 137);
    host.holdfast(&["rm", "web"]).ok();
    let unknown = host.holdfast(&["wait", "web", "--exec", "nonesuch"]);
    assert_eq!(unknown.code, 125);
    assert_eq!(host.left_over(), Vec::<String>::new());
}

/// The execs that the shim of the only container holds.
fn recorded_execs(host: &Holdfastd) -> Vec<String> {
    let dirs = fs::read_dir(host.run_dir().join("tasks/holdfastd/default")).unwrap().flatten();
    let records = dirs.filter_map(|dir| holdfast_proto::record::Record::read(&dir.path().join("record.json")).ok());
    records.flat_map(|record| record.processes).map(|p| p.exec_id).filter(|id| !id.is_empty()).collect()
}

#[test]
fn a_slow_client_gets_all_of_an_exec_that_has_ended_long_ago() {
    let mut host = Holdfastd::start();
    host.kill();
    // A shim that is told to delete an exec waits this long for its reader.
    host.restart_with(&[("HOLDFAST_DRAIN_TIMEOUT_MS", "1")]);
    host.run("web", "exec sleep 1000");
    let script = format!("{}; {}; {}; exit 7", seq(0, 9), wait_at("go"), seq(10, LINES - 1));
    let mut client = Client::start(&host, &["exec", "web", "/bin/sh", "-c", &script]);
    let (mut out, mut text) = client.lines(10);
    let stopped = Stopped::new(client.0.pid());
    host.open_gate("go");
    until("the exec is over", || execs(&host, "web").iter().any(|exec| exec["exit_status"] == 7).then_some(()));
    // Much happens before it takes the rest.
    for _ in 0..30 {
        host.holdfast(&["exec", "web", "/bin/sleep", "0"]).ok();
    }
    drop(stopped);
    out.read_to_end(&mut text).unwrap();
    assert_eq!(client.ended().0.code(), Some(7));
    assert_all(&text, LINES);
}

#[test]
fn each_event_is_told_once_and_in_order_however_often_the_supervisor_dies() {
    let mut host = Holdfastd::start();
    host.run("web", "exec sleep 1000");
    let mut client = Client::start(&host, &["--json", "events", "--since", "1h"]);
    let mut sent = Vec::new();
    for round in 0..4 {
        sent.extend((0..5).map(|_| host.holdfast(&["exec", "-d", "web", "/bin/sh", "-c", "exit 0"]).ok()));
        if round % 2 == 0 {
            host.kill();
            host.restart();
        } else {
            away_and_back(&mut host);
        }
    }
    host.holdfast(&["rm", "-f", "web"]).ok();
    let told = |out: &mut dyn BufRead| {
        let mut starts = Vec::new();
        loop {
            let mut line = String::new();
            assert_ne!(out.read_line(&mut line).unwrap(), 0, "events end early");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            match event["kind"].as_str().unwrap() {
                "exec-start" => starts.push(event["exec_id"].as_str().unwrap().to_owned()),
                "remove" => return starts,
                _ => {}
            }
        }
    };
    assert_eq!(told(&mut BufReader::new(client.0.child().stdout.take().unwrap())), sent, "as they happened");
    let mut later = Client::start(&host, &["--json", "events", "--since", "1h"]);
    assert_eq!(
        told(&mut BufReader::new(later.0.child().stdout.take().unwrap())),
        sent,
        "and again for who comes later"
    );
}

#[test]
fn a_client_that_waits_for_an_absent_supervisor_can_be_ended() {
    let mut host = Holdfastd::start();
    host.run("web", "exec sleep 1000");
    let wait = Client::start(&host, &["wait", "web"]);
    let events = Client::start(&host, &["events"]);
    let mut exec = Client::start(&host, &["exec", "web", "/bin/sh", "-c", "echo on; exec sleep 1000"]);
    let mut run = Client::run(&host, &["--name", "fore"], "echo on; trap '' INT TERM; exec sleep 1000");
    let mut wild = Client::run(&host, &["--name", "wild"], "echo on; exec sleep 1000");
    for client in [&mut exec, &mut run, &mut wild] {
        client.lines(1);
    }
    host.kill();
    use std::os::unix::process::ExitStatusExt;
    for client in [wait, events] {
        client.signal(Signal::SIGINT);
        assert_eq!(client.ended().0.signal(), Some(Signal::SIGINT as i32));
    }
    for (client, signal, code) in
        [(exec, Signal::SIGTERM, 143), (run, Signal::SIGINT, 130), (wild, Signal::SIGHUP, 129)]
    {
        // The first waits for the supervisor, the second does not.
        let (status, err) = client.ended_by_all(signal);
        assert_eq!(status.code(), Some(code), "{err}");
    }
    assert_eq!(fs::read_dir(host.run_dir().join("io")).unwrap().count(), 0, "none left a FIFO");
    host.restart();
    for name in ["web", "fore", "wild"] {
        assert_eq!(host.inspect(name)["status"], "running", "{name} goes on");
    }
}

#[test]
fn a_terminal_is_left_and_attached_to_again_and_resized_across_restarts() {
    let mut host = Holdfastd::start();
    let rootfs = host.rootfs();
    // Says its size whenever a line is typed.
    let script = "echo ready; while read line; do echo $line $(/bin/busybox stty size); done; exit 4";
    let holdfast = |args: &[&str]| {
        let mut command = host.command("holdfast");
        command.args(args);
        command
    };
    let run = holdfast(&["run", "-it", "--name", "web", "--rootfs", &rootfs, "--", "/bin/sh", "-c", script]);
    let attach = holdfast(&["attach", "web"]);
    let mut window = Window::run(&run, 60, 20);
    window.until_shown("ready");
    window.type_keys(b"one\n");
    window.until_shown("one 20 60");
    host.kill();
    window.type_keys(b"two\n");
    window.until_shown("two 20 60");
    // Resized while nobody is there to be told; told when somebody is.
    window.resize(70, 30);
    host.restart();
    until_size(&mut window, "30 70");
    window.type_keys(b"\x10\x11");
    window.until_shown("detached");
    assert_eq!(window.exit_code(), Some(0));
    away_and_back(&mut host);
    let mut window = Window::run(&attach, 70, 30);
    until_size(&mut window, "30 70");
    host.kill();
    host.restart();
    window.resize(80, 40);
    until_size(&mut window, "40 80");
    window.type_keys(b"\x04");
    assert_eq!(window.exit_code(), Some(4));
}

/// Types until the answer has this size: the new one is told at some time after the window has it.
fn until_size(window: &mut Window, size: &str) {
    let mut words = (0..).map(|n| format!("try{n}"));
    until("the terminal has its new size", || {
        let word = words.next().unwrap();
        window.type_keys(format!("{word}\n").as_bytes());
        // Not the echo of what was typed, which has no blank.
        let answer = until("it answers", || {
            let shown = window.shown();
            let (_, rest) = shown.rsplit_once(&format!("{word} "))?;
            rest.split_once('\n').map(|(answer, _)| answer.to_owned())
        });
        (answer.trim() == size).then_some(())
    });
}
