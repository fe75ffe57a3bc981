//! Ring 3: Docker's live-restore: dockerd, containerd or both are stopped or killed, and containers go on; in each cell of the
//! matrix as in `docker.rs`.
//!
//! `what_becomes_of_containers_when_their_managers_go` is to be read: it prints what one sees who tries that by hand, and a
//! table of ours beside containerd's own shim, seen in the same run (`make demo-live-restore`). README.md shows that table.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{env, thread};

use holdfast_tests::container::Oci;
use holdfast_tests::docker::{Docker, Shim};
use holdfast_tests::eventually::{patience, within};
use holdfast_tests::live_restore::{self as table, Table};
use holdfast_tests::process::{self, run, until_gone, until_reaped};
use holdfast_tests::programs::DockerVersion;
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::{Scene, docker_matrix, eventually};
use serde_json::json;

docker_matrix!(
    with ["--live-restore"];
    containers_and_what_they_tell_outlive_a_stop_of_dockerd,
    containers_and_what_they_tell_outlive_a_kill_of_dockerd,
    containers_and_what_they_tell_outlive_a_stop_of_both_daemons,
    containers_and_what_they_tell_outlive_a_kill_of_both_daemons,
    containers_and_what_they_print_outlive_a_stop_of_containerd,
    containers_and_what_they_print_outlive_a_kill_of_containerd,
    live_restore_is_switched_on_by_the_file_and_sighup,
    an_exec_runs_on_while_both_daemons_are_away,
    failures_meanwhile_are_tried_again_as_the_policy_says,
    without_live_restore_a_stop_of_dockerd_ends_each_by_its_own_signal,
);

/// A container that runs until it is killed.
const SLEEPER: &str = "exec /bin/sleep 1000";

/// So many that they fit neither into the pipe nor into the FIFO.
const LINES: usize = 60_000;

/// So few that they fit into either.
const LAST_WORDS: usize = 5000;

/// Who goes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Away {
    dockerd: bool,
    containerd: bool,
    killed: bool,
}

impl Away {
    const ALL: [Self; 6] = [
        Self::of(true, false, false),
        Self::of(true, false, true),
        Self::of(false, true, false),
        Self::of(false, true, true),
        Self::of(true, true, false),
        Self::of(true, true, true),
    ];

    const fn of(dockerd: bool, containerd: bool, killed: bool) -> Self {
        Self { dockerd, containerd, killed }
    }

    fn title(self) -> String {
        let who = match (self.dockerd, self.containerd) {
            (true, true) => "both",
            (true, false) => "dockerd",
            _ => "containerd",
        };
        format!("{who} {}", if self.killed { "killed" } else { "stopped" })
    }

    /// dockerd first: it is a client of the other.
    fn begin(self, docker: &Docker<'_>) {
        match (self.dockerd, self.killed) {
            (true, true) => docker.kill(),
            (true, false) => docker.stop(),
            _ => {}
        }
        match (self.containerd, self.killed) {
            (true, true) => docker.containerd.kill(),
            (true, false) => docker.containerd.stop(),
            _ => {}
        }
    }

    #[track_caller]
    fn end(self, docker: &Docker<'_>) {
        if self.containerd {
            docker.containerd.resume();
        }
        if self.dockerd {
            docker.come_back();
        }
    }
}

/// What was seen of four containers, of whom one goes on, one prints much, one says its last words and ends with 3, and one
/// ends with 0, which its policy (on-failure) leaves at that.
#[derive(Debug, Default)]
struct Seen {
    /// Ancestors of the one that goes on: before, meanwhile and after.
    trees: [String; 3],
    /// It has the same pid and has counted on, without a gap.
    went_on: bool,
    /// The one that prints much was never blocked.
    wrote_on: bool,
    /// How much of that is in the log, in order.
    lines: usize,
    last_words: usize,
    /// The code that is told of the one that ended with 3.
    code: i64,
    /// The time that is told of its end is that of its end.
    time_is_true: bool,
    /// The end, as it is told, and between what it was.
    times: [String; 3],
    /// How often the one that ended with 0 was run.
    lives: usize,
}

fn now() -> String {
    String::from_utf8(run(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%N"])).stdout).unwrap().trim().to_owned()
}

/// How many lines are what `seq 0` prints, from the beginning on.
fn in_order(log: &str) -> usize {
    log.lines().zip(0_usize..).take_while(|(line, n)| *line == n.to_string()).count()
}

/// The names of a process and of its ancestors, with pids.
fn tree(pid: u32) -> String {
    let mut names = Vec::new();
    let mut next = Some(pid);
    while let Some(pid) = next.filter(|pid| *pid > 1) {
        let name = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let name = String::from_utf8_lossy(name.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
        let name = Path::new(&name).file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
        names.push(format!("{name} ({pid})"));
        next = process::parent(pid);
    }
    names.push("PID 1".into());
    names.reverse();
    names.join(" ─ ")
}

/// Plays the scene. Of ours everything is waited for; of another shim, of which some things never come, for so long.
#[track_caller]
fn play(docker: &Docker<'_>, away: Away) -> Seen {
    let long = if docker.shim() == Shim::Stock { Duration::from_secs(3) } else { patience() };
    let doors = docker.doors();
    let volume = doors.volume();
    let wait = doors.wait_at("go");
    let start = |name: &str, flags: &[&str], script: &str| {
        docker.run_detached(name, &[&["--volume", &volume], flags].concat(), script)
    };
    let runner = start("runner", &[], "n=0; while :; do echo $n; n=$((n + 1)); sleep 0.05; done");
    start("writer", &[], &format!("{wait}; busybox seq 0 {}; echo >/doors/written; {SLEEPER}", LINES - 1));
    let last = start("last", &[], &format!("{wait}; busybox seq 0 {}; exit 3", LAST_WORDS - 1));
    let done = start("done", &["--restart", "on-failure:3"], &format!("echo alive; {wait}; exit 0"));
    docker.wait_for_line("runner", "1");
    docker.wait_for_line("done", "alive");

    let mut seen = Seen::default();
    seen.trees[0] = tree(runner);
    away.begin(docker);
    let begin = now();
    doors.open("go");
    // Its time is taken when the shim learns of it.
    until_reaped(last);
    until_reaped(done);
    let written = doors.dir.join("written");
    seen.wrote_on = within(long, || if written.exists() { Ok(()) } else { Err(()) }).is_ok();
    seen.trees[1] = tree(runner);
    let end = now();
    away.end(docker);
    seen.trees[2] = tree(runner);

    let counted = |name: &str, all: usize| {
        let last = (all - 1).to_string();
        let _ = within(long, || if docker.last_line(name) == last { Ok(()) } else { Err(()) });
        in_order(&docker.logs(name).0)
    };
    seen.lines = counted("writer", LINES);
    seen.last_words = counted("last", LAST_WORDS);
    let numbers = || {
        let log = docker.logs("runner").0;
        (in_order(&log), log.lines().count())
    };
    let (before, _) = numbers();
    let counts_on = within(long, || match numbers() {
        (n, all) if n > before && n == all => Ok(()),
        other => Err(other),
    });
    seen.went_on = counts_on.is_ok() && docker.container_pid("runner") == runner && process::is_alive(runner);
    if !away.dockerd {
        // It subscribes to containerd's events only after they were told, and learns what it missed when it starts.
        docker.stop();
        docker.come_back();
    }
    let ended = |name: &str| {
        within(long, || match docker.inspect(name, ".State") {
            state if state["Status"] == "exited" => Ok(state),
            state => Err(state),
        })
    };
    let state = ended("last").unwrap_or_else(|state| state);
    seen.code = if state["Status"] == "exited" { state["ExitCode"].as_i64().unwrap() } else { -1 };
    let finished = state["FinishedAt"].as_str().unwrap().to_owned();
    seen.time_is_true = begin < finished && finished < end;
    seen.times = [begin, finished, end];
    let _ = ended("done");
    seen.lives = docker.logs("done").0.lines().count();
    seen
}

#[track_caller]
fn assert_all_is_well(docker: &Docker<'_>, seen: &Seen) {
    let all = (seen.went_on, seen.wrote_on, seen.lines, seen.last_words);
    assert_eq!(all, (true, true, LINES, LAST_WORDS), "{seen:?}");
    assert_eq!((seen.code, seen.time_is_true, seen.lives), (3, true, 1), "{seen:?}");
    assert!(seen.trees.iter().all(|tree| *tree == seen.trees[0]), "{seen:?}");
    // It is a container as any other.
    let output = docker.docker(&["exec", "runner", "sh", "-c", "echo here; exit 4"]);
    assert_eq!((output.stdout, output.status.code()), (b"here\n".to_vec(), Some(4)));
    docker.ok(&["stop", "--time", "0", "runner"]);
    assert_eq!(docker.wait_for_status("runner", "exited"), 137);
}

#[track_caller]
fn outlive(docker: &Docker<'_>, away: Away) {
    assert_all_is_well(docker, &play(docker, away));
}

fn containers_and_what_they_tell_outlive_a_stop_of_dockerd(docker: &Docker<'_>) {
    outlive(docker, Away::of(true, false, false));
}

fn containers_and_what_they_tell_outlive_a_kill_of_dockerd(docker: &Docker<'_>) {
    outlive(docker, Away::of(true, false, true));
}

fn containers_and_what_they_tell_outlive_a_stop_of_both_daemons(docker: &Docker<'_>) {
    outlive(docker, Away::of(true, true, false));
}

fn containers_and_what_they_tell_outlive_a_kill_of_both_daemons(docker: &Docker<'_>) {
    outlive(docker, Away::of(true, true, true));
}

fn containers_and_what_they_print_outlive_a_stop_of_containerd(docker: &Docker<'_>) {
    outlive(docker, Away::of(false, true, false));
}

fn containers_and_what_they_print_outlive_a_kill_of_containerd(docker: &Docker<'_>) {
    outlive(docker, Away::of(false, true, true));
}

fn live_restore_is_switched_on_by_the_file_and_sighup(docker: &Docker<'_>) {
    docker.stop();
    docker.resume(&[]);
    assert_eq!(docker.ok(&["info", "--format", "{{.LiveRestoreEnabled}}"]), "false");
    let pid = docker.run_detached("it", &[], SLEEPER);
    docker.configure(&json!({ "live-restore": true }));
    docker.reload();
    eventually("dockerd should read its settings again", || {
        match docker.ok(&["info", "--format", "{{.LiveRestoreEnabled}}"]) {
            told if told == "true" => Ok(()),
            told => Err(told),
        }
    });
    docker.stop();
    assert!(process::is_alive(pid));
    docker.resume(&[]);
    assert_eq!(docker.container_pid("it"), pid);
    docker.wait_for_status("it", "running");
}

fn an_exec_runs_on_while_both_daemons_are_away(docker: &Docker<'_>) {
    let doors = docker.doors();
    docker.run_detached("it", &["--volume", &doors.volume()], SLEEPER);
    let script = format!("echo begun >/doors/begun; {}; echo ended >/doors/ended", doors.wait_at("go"));
    docker.ok(&["exec", "--detach", "it", "sh", "-c", &script]);
    eventually("the exec should begin", || if doors.dir.join("begun").exists() { Ok(()) } else { Err(()) });
    docker.kill();
    docker.containerd.kill();
    doors.open("go");
    eventually("it should go on", || if doors.dir.join("ended").exists() { Ok(()) } else { Err(()) });
    docker.containerd.resume();
    docker.come_back();
    // Docker forgets the ids of its execs; others can be made.
    assert_eq!(docker.ok(&["exec", "it", "echo", "another"]), "another");
}

fn failures_meanwhile_are_tried_again_as_the_policy_says(docker: &Docker<'_>) {
    let doors = docker.doors();
    // The second life lasts.
    let wait = doors.wait_at("go");
    let script = format!("echo alive; [ ! -e /doors/go ] || {SLEEPER}; echo looked; {wait}; exit 5");
    let policies = [("always", "always"), ("failing", "on-failure:2"), ("once", "no")];
    let pids = policies
        .map(|(name, policy)| docker.run_detached(name, &["--volume", &doors.volume(), "--restart", policy], &script));
    policies.iter().for_each(|(name, _)| docker.wait_for_line(name, "looked"));
    docker.kill();
    docker.containerd.kill();
    doors.open("go");
    pids.into_iter().for_each(until_gone);
    docker.containerd.resume();
    docker.come_back();
    for (name, status, lives) in [("always", "running", 2), ("failing", "running", 2), ("once", "exited", 1)] {
        eventually(&format!("{name} should be {status} in life {lives}"), || {
            let begun = docker.logs(name).0.lines().filter(|line| *line == "alive").count();
            match (begun, docker.inspect(name, ".State")) {
                (n, state) if n == lives && state["Status"] == status => Ok(()),
                other => Err(other),
            }
        });
    }
    assert_eq!(docker.wait_for_status("once", "exited"), 5);
}

fn without_live_restore_a_stop_of_dockerd_ends_each_by_its_own_signal(docker: &Docker<'_>) {
    docker.stop();
    docker.resume(&[]);
    let waits = "while :; do /bin/sleep 0.02; done";
    docker.run_detached("term", &[], &format!("trap 'echo bye; exit 11' TERM; echo ready; {waits}"));
    docker.run_detached("usr1", &["--stop-signal", "USR1"], &format!("trap 'exit 12' USR1; echo ready; {waits}"));
    docker.run_detached("deaf", &["--stop-timeout", "1"], &format!("trap '' TERM; echo ready; {waits}"));
    for name in ["term", "usr1", "deaf"] {
        docker.wait_for_line(name, "ready");
    }
    docker.stop();
    docker.resume(&[]);
    for (name, code) in [("term", 11), ("usr1", 12), ("deaf", 137)] {
        assert_eq!(docker.wait_for_status(name, "exited"), code, "{name}");
    }
    assert_eq!(docker.logs("term").0, "ready\nbye\n");
}

#[test]
fn what_becomes_of_containers_when_their_managers_go() {
    if !is_root() {
        return skip("needs root");
    }
    let seen_with = |shim| {
        let scene = Scene::for_daemons();
        let docker = Docker::start(&scene, DockerVersion::V28_5, shim, &["--live-restore"]);
        let seen = Away::ALL.map(|away| {
            let seen = play(&docker, away);
            if shim != Shim::Stock {
                assert_all_is_well(&docker, &seen);
            }
            docker.clear();
            seen
        });
        docker.finish();
        seen
    };
    let (stock, ours) = thread::scope(|scope| {
        let stock = scope.spawn(|| seen_with(Shim::Stock));
        let ours = seen_with(Shim::Holdfast(Oci::Runc));
        (stock.join(), ours)
    });
    let stock = stock.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let shims = [("containerd-shim-runc-v2", &stock), ("containerd-shim-holdfast-v2", &ours)];
    let mut table = Table::new(TITLES);
    for (n, away) in Away::ALL.into_iter().enumerate() {
        for (shim, seen) in shims {
            println!("{}", story(&format!("{}, under {shim}", away.title()), &seen[n]));
            let owner = if shim.contains("holdfast") { "holdfast" } else { table::STOCK };
            table.add(&format!("{}: {owner}", away.title()), row(&seen[n]));
        }
    }
    println!("{}", table.text());
    if let Some(notes) = env::var_os("HOLDFAST_MATRIX_DIR") {
        fs::write(Path::new(&notes).with_file_name(table::FILE), table.text()).unwrap();
    }
}

/// What one sees who looks on.
fn story(title: &str, seen: &Seen) -> String {
    let mut text = format!("\n=== {title}\n");
    for (when, tree) in ["before", "meanwhile", "after"].into_iter().zip(&seen.trees) {
        writeln!(text, "    {when:9}  {tree}").unwrap();
    }
    let goes = if seen.went_on { "has counted on without a gap" } else { "is not what it was" };
    let writes = if seen.wrote_on { "ran on" } else { "was blocked" };
    writeln!(text, "    the one that counts      {goes}").unwrap();
    writeln!(text, "    the one that prints      {writes}, and {} of its {LINES} lines are in the log", seen.lines)
        .unwrap();
    let [begin, told, end] = &seen.times;
    writeln!(text, "    the one that ended       {} of its {LAST_WORDS} last lines are in the log,", seen.last_words)
        .unwrap();
    writeln!(text, "                             and it ended with {}, says docker, where it was 3,", seen.code)
        .unwrap();
    writeln!(text, "                             at {told}, where it was between {begin} and {end}").unwrap();
    writeln!(text, "    the one to be restarted  on failure that ended with 0 has been run {} x", seen.lives).unwrap();
    text
}

/// What the columns of the table are.
const TITLES: [&str; 7] = [
    "a container goes on, with its pid and its parent",
    "who prints 60000 lines meanwhile is not blocked",
    "of these, in `docker logs` afterwards",
    "of 5000 lines of one that ends meanwhile",
    "the status of one that ended with 3",
    "the time of its end is true",
    "lives of one that ended with 0, restarted on failure",
];

/// A line of it; what should be otherwise is bold.
fn row(seen: &Seen) -> [String; 7] {
    let mark = |well: bool, text: String| if well { text } else { format!("**{text}**") };
    let yes = |well: bool| mark(well, if well { "yes" } else { "no" }.into());
    let count = |n: usize, all: usize| mark(n == all, n.to_string());
    [
        yes(seen.went_on && seen.trees[0] == seen.trees[2]),
        yes(seen.wrote_on),
        count(seen.lines, LINES),
        count(seen.last_words, LAST_WORDS),
        mark(seen.code == 3, if seen.code < 0 { "none".into() } else { seen.code.to_string() }),
        yes(seen.time_is_true),
        count(seen.lives, 1),
    ]
}
