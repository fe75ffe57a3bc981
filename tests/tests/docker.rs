//! Ring 3: what a user of Docker asks for, under a private dockerd of each version, with each OCI runtime.
//!
//! Each function is a row of the matrix, see `holdfast_tests::matrix`; they share a dockerd, and each finds it without
//! containers. What happens when daemons go away is in `docker_live_restore.rs`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::{Output, Stdio};

use holdfast_tests::container::Oci;
use holdfast_tests::docker::{Docker, Shim};
use holdfast_tests::image::IMAGE;
use holdfast_tests::numbered::{FOUR_MB, assert_all};
use holdfast_tests::process::{self, ChildProcess, run, run_with_input};
use holdfast_tests::programs::DockerVersion;
use holdfast_tests::skip::{criu_refusal, skip};
use holdfast_tests::{Window, docker_matrix, eventually, until};
use serde_json::{Value, json};

docker_matrix!(
    run_prints_and_exits_with_the_status,
    the_shim_is_chosen_by_name_and_by_the_configuration,
    what_cannot_be_started_says_why_and_leaves_nothing,
    input_and_its_end_reach_the_container,
    a_terminal_has_its_size_and_takes_keys,
    an_attached_client_gets_the_whole_of_a_large_output,
    logs_are_complete_and_can_be_followed,
    attach_takes_over_input_and_output_and_can_be_left,
    an_exec_prints_takes_input_and_tells_its_status,
    an_exec_has_a_terminal,
    wait_and_events_tell_the_status,
    stop_is_gentle_first_and_kill_is_not,
    restart_starts_it_again,
    restart_policies_are_followed,
    pause_and_unpause_work,
    top_and_stats_tell_of_its_processes,
    names_parents_and_control_groups_are_as_monitoring_expects,
    limits_are_set_and_updated,
    lack_of_memory_is_told,
    a_healthcheck_is_run_and_believed,
    an_init_forwards_signals_and_reaps,
    what_is_removed_at_its_end_leaves_nothing,
    mounts_users_and_capabilities_are_as_asked_for,
    namespaces_can_be_the_hosts_and_another_containers,
    a_killed_shim_is_cleaned_up_after,
    a_checkpoint_is_written_and_restored_or_refused_by_name,
);

/// A container that runs until it is killed.
const SLEEPER: &str = "exec /bin/sleep 1000";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_output(docker: &Docker<'_>, output: &Output, stdout: &str, stderr: &str, code: i32) {
    let seen = (text(&output.stdout), text(&output.stderr), output.status.code());
    assert_eq!(seen, (stdout.into(), stderr.into(), Some(code)), "{}", docker.complain(output));
}

fn run_prints_and_exits_with_the_status(docker: &Docker<'_>) {
    for code in [0, 7, 143] {
        let output = docker.run(&["--name", "it"], &format!("echo out; echo err >&2; exit {code}"));
        assert_output(docker, &output, "out\n", "err\n", code);
        let state = docker.inspect("it", ".State");
        assert_eq!((&state["Status"], &state["ExitCode"]), (&json!("exited"), &json!(code)));
        docker.ok(&["rm", "it"]);
    }
}

/// The shim above a container.
#[track_caller]
fn shim_of(pid: u32) -> u32 {
    process::parent(pid).unwrap()
}

#[track_caller]
fn assert_ours(pid: u32) {
    let program = fs::read_link(format!("/proc/{}/exe", shim_of(pid))).unwrap();
    let ours = fs::canonicalize(holdfast_tests::programs::shim()).unwrap();
    assert_eq!(program, ours, "of {}", process::describe(shim_of(pid)));
}

fn the_shim_is_chosen_by_name_and_by_the_configuration(docker: &Docker<'_>) {
    assert_ours(docker.run_detached("configured", &[], SLEEPER));
    let name = holdfast_tests::containerd::RUNTIME;
    let mut by_name = docker.cli();
    by_name.args([
        "run",
        "--detach",
        "--name",
        "named",
        "--network",
        "none",
        "--runtime",
        name,
        IMAGE,
        "sleep",
        "1000",
    ]);
    let output = run(&mut by_name);
    if docker.version() == DockerVersion::V20_10 {
        // Docker takes other shims than runc's from 23.0 on; which is why ours can have that name.
        assert!(text(&output.stderr).to_lowercase().contains("unknown runtime"), "{}", docker.complain(&output));
    } else {
        assert!(output.status.success(), "{}", docker.complain(&output));
        assert_ours(docker.container_pid("named"));
    }
}

fn what_cannot_be_started_says_why_and_leaves_nothing(docker: &Docker<'_>) {
    let mut missing = docker.cli();
    missing.args([
        "run",
        "--name",
        "it",
        "--network",
        "none",
        "--runtime",
        docker.runtime(),
        IMAGE,
        "/no/such/program",
    ]);
    let output = run(&mut missing);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(127), "{}", docker.complain(&output));
    assert!(said.contains("/no/such/program") && said.to_lowercase().contains("no such file"), "{said}");
    eventually("the shim should end", || if docker.shims().is_empty() { Ok(()) } else { Err(docker.shims()) });
}

fn input_and_its_end_reach_the_container(docker: &Docker<'_>) {
    let input = holdfast_tests::numbered::lines(50_000);
    let output = run_with_input(&mut docker.run_command(&["--rm", "--interactive"], "cat; exit 5"), &input);
    assert_all(&output.stdout, 50_000);
    assert_eq!(output.status.code(), Some(5), "{}", docker.complain(&output));
}

fn a_terminal_has_its_size_and_takes_keys(docker: &Docker<'_>) {
    let sized = |rows: u16, columns: u16| {
        format!("until [ \"$(stty size)\" = '{rows} {columns}' ]; do sleep 0.02; done; echo sized {rows}")
    };
    let script = format!("tty; {}; read key; echo got $key; {}; exit 4", sized(23, 91), sized(31, 102));
    let mut window = Window::run(&docker.run_command(&["--rm", "-it"], &script), 80, 24);
    window.until_shown("/dev/pts/0\n");
    resize(&window, 91, 23, "sized 23\n");
    window.type_keys(b"a\n");
    window.until_shown("got a\n");
    resize(&window, 102, 31, "sized 31\n");
    assert_eq!(window.exit_code(), Some(4), "{}", window.shown());
}

/// Until the container has noticed: while it starts, docker tells the size a few times and then gives up.
#[track_caller]
fn resize(window: &Window, columns: u16, rows: u16, noticed: &str) {
    eventually("a new size should be noticed", || {
        window.resize(columns + 1, rows);
        window.resize(columns, rows);
        let shown = window.shown();
        if shown.contains(noticed) { Ok(()) } else { Err(shown) }
    });
}

fn an_attached_client_gets_the_whole_of_a_large_output(docker: &Docker<'_>) {
    let output = docker.run(&["--rm"], &format!("/bin/busybox seq 0 {}; exit 3", FOUR_MB - 1));
    assert_all(&output.stdout, FOUR_MB);
    assert_eq!(output.status.code(), Some(3), "{}", docker.complain(&output));
}

fn logs_are_complete_and_can_be_followed(docker: &Docker<'_>) {
    const LINES: usize = 40_000;
    let doors = docker.doors();
    let script = format!(
        "/bin/busybox seq 0 {}; echo err >&2; {}; /bin/busybox seq {} {}",
        LINES / 2 - 1,
        doors.wait_at("go"),
        LINES / 2,
        LINES - 1
    );
    docker.run_detached("it", &["--volume", &doors.volume()], &script);
    docker.wait_for_line("it", &(LINES / 2 - 1).to_string());
    let mut follow = docker.cli();
    let out = docker.scene().path("followed");
    follow.args(["logs", "--follow", "it"]).stdin(Stdio::null()).stdout(fs::File::create(&out).unwrap());
    let mut follower = ChildProcess::spawn(follow.stderr(Stdio::null()));
    doors.open("go");
    assert!(follower.wait().success(), "it ends with the container");
    let followed = fs::read(out).unwrap();
    let logs = docker.docker(&["logs", "it"]);
    let (stdout, stderr) = (text(&logs.stdout), text(&logs.stderr));
    if docker.version() == DockerVersion::V20_10 {
        // Its follower may leave before the end, once the container has ended.
        assert!(stdout.as_bytes().starts_with(&followed));
    } else {
        assert_all(&followed, LINES);
    }
    assert_all(stdout.as_bytes(), LINES);
    assert_eq!(stderr, "err\n");
    // Each with its time, which never goes back.
    let stamped = docker.ok(&["logs", "--timestamps", "it"]);
    assert!(stamped.lines().filter_map(|l| l.split(' ').next()).is_sorted());
}

fn attach_takes_over_input_and_output_and_can_be_left(docker: &Docker<'_>) {
    let script = "while read line; do echo got $line; [ $line != last ] || exit 6; done";
    docker.run_detached("it", &["-it"], script);
    let mut attach = docker.cli();
    attach.args(["attach", "it"]);
    let mut first = Window::run(&attach, 80, 24);
    first.type_keys(b"one\n");
    first.until_shown("got one\n");
    first.type_keys(b"\x10\x11");
    first.child.wait();
    assert_eq!(docker.wait_for_status("it", "running"), 0);
    let mut second = Window::run(&attach, 80, 24);
    second.type_keys(b"last\n");
    second.until_shown("got last\n");
    assert_eq!(second.exit_code(), Some(6), "{}", second.shown());
}

fn an_exec_prints_takes_input_and_tells_its_status(docker: &Docker<'_>) {
    docker.run_detached("it", &[], SLEEPER);
    let output = docker.docker(&["exec", "--env", "A=b", "it", "sh", "-c", "echo out $A; echo err >&2; exit 9"]);
    assert_output(docker, &output, "out b\n", "err\n", 9);
    let output = run_with_input(docker.cli().args(["exec", "--interactive", "it", "cat"]), b"to be read");
    assert_output(docker, &output, "to be read", "", 0);
    let output = docker.docker(&["exec", "it", "/no/such/program"]);
    assert!(matches!(output.status.code(), Some(126 | 127)), "{}", docker.complain(&output));
    let said = text(&output.stderr) + &text(&output.stdout);
    assert!(said.contains("/no/such/program"), "{said}");
    // Many leave nothing: the container has one process again.
    for _ in 0..5 {
        docker.ok(&["exec", "it", "true"]);
    }
    assert_eq!(docker.ok(&["top", "it", "-o", "pid"]).lines().count(), 2);
}

fn an_exec_has_a_terminal(docker: &Docker<'_>) {
    docker.run_detached("it", &[], SLEEPER);
    let mut exec = docker.cli();
    let script =
        "tty; until [ \"$(stty size)\" = '22 77' ]; do sleep 0.02; done; echo sized; read key; echo got $key; exit 8";
    exec.args(["exec", "-it", "it", "sh", "-c", script]);
    let mut window = Window::run(&exec, 80, 24);
    window.until_shown("/dev/pts/0\n");
    resize(&window, 77, 22, "sized\n");
    window.type_keys(b"k\n");
    window.until_shown("got k\n");
    assert_eq!(window.exit_code(), Some(8), "{}", window.shown());
}

/// What became of the container `it`, in `docker events`, from its beginning on.
#[track_caller]
fn events(docker: &Docker<'_>) -> Vec<String> {
    let format = "{{.Action}} {{index .Actor.Attributes \"exitCode\"}}";
    // Others before it had its name.
    let filter = format!("container={}", docker.inspect("it", ".Id").as_str().unwrap());
    let args = ["events", "--since", "0", "--until", "0s", "--filter", &filter, "--format", format];
    docker.ok(&args).lines().map(|l| l.trim_end().to_owned()).collect()
}

fn wait_and_events_tell_the_status(docker: &Docker<'_>) {
    let doors = docker.doors();
    docker.run_detached("it", &["--volume", &doors.volume()], &format!("{}; exit 42", doors.wait_at("end")));
    let mut wait = docker.cli();
    let mut waiter = ChildProcess::spawn(wait.args(["wait", "it"]).stdin(Stdio::null()).stdout(Stdio::piped()));
    doors.open("end");
    assert!(waiter.wait().success());
    let told = std::io::read_to_string(waiter.child().stdout.take().unwrap()).unwrap();
    assert_eq!(told, "42\n");
    let seen = eventually("the end should be told", || {
        let seen = events(docker);
        if seen.iter().any(|e| e.starts_with("die")) { Ok(seen) } else { Err(seen) }
    });
    let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
    assert_eq!(seen, ["create", "start", "die 42"]);
}

fn stop_is_gentle_first_and_kill_is_not(docker: &Docker<'_>) {
    let waits = "while :; do /bin/sleep 0.02; done";
    docker.run_detached("gentle", &[], &format!("trap 'echo bye; exit 11' TERM; echo ready; {waits}"));
    docker.run_detached("other", &["--stop-signal", "USR1"], &format!("trap 'exit 12' USR1; echo ready; {waits}"));
    docker.run_detached("deaf", &["--stop-timeout", "1"], &format!("trap '' TERM; echo ready; {waits}"));
    docker.run_detached("killed", &[], SLEEPER);
    for name in ["gentle", "other", "deaf"] {
        docker.wait_for_line(name, "ready");
    }
    docker.ok(&["stop", "gentle", "other", "deaf"]);
    docker.ok(&["kill", "killed"]);
    for (name, code) in [("gentle", 11), ("other", 12), ("deaf", 137), ("killed", 137)] {
        assert_eq!(docker.wait_for_status(name, "exited"), code, "{name}");
    }
    assert_eq!(docker.logs("gentle").0, "ready\nbye\n");
}

fn restart_starts_it_again(docker: &Docker<'_>) {
    let first = docker.run_detached("it", &["--stop-timeout", "0"], &format!("echo begun; {SLEEPER}"));
    docker.ok(&["restart", "it"]);
    let second = docker.container_pid("it");
    assert!(second != first && process::is_alive(second) && !process::is_alive(first));
    eventually("both lives should be in the log", || match docker.logs("it").0 {
        log if log == "begun\nbegun\n" => Ok(()),
        log => Err(log),
    });
    docker.ok(&["kill", "it"]);
    docker.ok(&["start", "it"]);
    assert!(process::is_alive(docker.container_pid("it")));
}

fn restart_policies_are_followed(docker: &Docker<'_>) {
    docker.run_detached_with_end("no", &[], "exit 1");
    docker.run_detached_with_end("failing", &["--restart", "on-failure:2"], "echo run; exit 3");
    docker.run_detached_with_end("succeeding", &["--restart", "on-failure:2"], "echo run; exit 0");
    let doors = docker.doors();
    // Its first life ends at the gate.
    let script = format!("[ ! -e /doors/end ] || {SLEEPER}; echo looked; {}", doors.wait_at("end"));
    let pid = docker.run_detached("always", &["--restart", "always", "--volume", &doors.volume()], &script);
    let count = |name: &str| docker.inspect(name, ".RestartCount");
    eventually("a failing one should be tried again, twice", || {
        let seen = (count("failing"), docker.inspect("failing", ".State.Status"), docker.logs("failing").0);
        if seen == (json!(2), json!("exited"), "run\n".repeat(3)) { Ok(()) } else { Err(seen) }
    });
    until("it has looked", || (docker.logs("always").0 == "looked\n").then_some(()));
    doors.open("end");
    eventually("it should run again", || match docker.container_pid("always") {
        now if now != 0 && now != pid => Ok(()),
        now => Err((now, docker.inspect("always", ".State"))),
    });
    assert_eq!(docker.inspect("failing", ".State.ExitCode"), json!(3));
    assert_eq!((count("no"), docker.wait_for_status("no", "exited")), (json!(0), 1));
    assert_eq!((count("succeeding"), docker.logs("succeeding").0), (json!(0), "run\n".to_owned()));
}

fn pause_and_unpause_work(docker: &Docker<'_>) {
    let pid = docker.run_detached("it", &[], "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.01; done");
    docker.wait_for_line("it", "3");
    docker.ok(&["pause", "it"]);
    assert_eq!(docker.inspect("it", ".State.Status"), json!("paused"));
    let cgroup = cgroup_of(pid, "freezer");
    if let Some(cgroup) = &cgroup {
        assert_eq!(fs::read_to_string(format!("{cgroup}/freezer.state")).unwrap().trim(), "FROZEN");
    }
    let output = docker.docker(&["exec", "it", "true"]);
    assert!(!output.status.success() && text(&output.stderr).contains("paused"), "{}", docker.complain(&output));
    docker.ok(&["unpause", "it"]);
    let last = docker.logs("it").0.lines().count();
    docker.wait_for_line("it", &(last + 3).to_string());
}

/// The directory of a controller of version 1 of control groups for a process.
fn cgroup_of(pid: u32, controller: &str) -> Option<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = table.lines().find_map(|l| {
        let (names, path) = l.split_once(':')?.1.split_once(':')?;
        names.split(',').any(|n| n == controller).then_some(path)
    })?;
    Some(format!("/sys/fs/cgroup/{controller}{path}"))
}

fn top_and_stats_tell_of_its_processes(docker: &Docker<'_>) {
    let pid = docker.run_detached("it", &["--memory", "64m"], "sleep 1000 & echo ready; wait");
    docker.wait_for_line("it", "ready");
    let top = docker.ok(&["top", "it", "-o", "pid,args"]);
    let pids: Vec<&str> = top.lines().skip(1).filter_map(|l| l.split_whitespace().next()).collect();
    assert!(pids.len() == 2 && pids.contains(&pid.to_string().as_str()), "{top}");
    assert!(top.contains("sleep 1000"), "{top}");
    let stats = docker.ok(&["stats", "--no-stream", "--format", "{{json .}}", "it"]);
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["PIDs"], json!("2"), "{stats}");
    let memory = stats["MemUsage"].as_str().unwrap();
    assert!(memory.ends_with("/ 64MiB") && !memory.starts_with("0B"), "{stats}");
}

/// README, "What changes for monitoring", says it in words.
fn names_parents_and_control_groups_are_as_monitoring_expects(docker: &Docker<'_>) {
    let pid = docker.run_detached("it", &[], SLEEPER);
    let shim = shim_of(pid);
    let id = docker.ok(&["inspect", "--format", "{{.Id}}", "it"]).trim().to_owned();
    let file = |pid: u32, name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(file(shim, "comm"), "containerd-shim\n");
    let line = file(shim, "cmdline").replace('\0', " ");
    assert!(line.contains(&format!(" -namespace moby -id {id} -address ")), "{line}");
    // In a group named by the id, below the one that Docker chooses: here the scene's, else `docker`.
    let place = format!("/{}/{id}", docker.scene().id());
    let unified = fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap();
    let places = file(pid, "cgroup");
    let mut counting = places.lines().filter(|line| line.starts_with("0::") == unified);
    assert!(counting.all(|line| line.ends_with(&format!(":{place}"))), "{places}");
    // The shim is where its containerd is, which these tests start.
    assert_eq!(file(shim, "cgroup"), file(std::process::id(), "cgroup"));
}

fn limits_are_set_and_updated(docker: &Docker<'_>) {
    let flags = ["--memory", "64m", "--memory-swap", "64m", "--pids-limit", "50", "--cpu-shares", "512"];
    let pid = docker.run_detached("it", &flags, SLEEPER);
    let limit = |controller: &str, file: &str| {
        let dir = cgroup_of(pid, controller).expect("version 1 of control groups");
        fs::read_to_string(format!("{dir}/{file}")).unwrap().trim().to_owned()
    };
    let limits = || [limit("memory", "memory.limit_in_bytes"), limit("pids", "pids.max"), limit("cpu", "cpu.shares")];
    assert_eq!(limits(), [(64 << 20).to_string(), "50".into(), "512".into()]);
    let update =
        ["update", "--memory", "96m", "--memory-swap", "96m", "--pids-limit", "40", "--cpu-shares", "256", "it"];
    docker.ok(&update);
    assert_eq!(limits(), [(96 << 20).to_string(), "40".into(), "256".into()]);
}

fn lack_of_memory_is_told(docker: &Docker<'_>) {
    let flags = ["--name", "it", "--memory", "16m", "--memory-swap", "16m"];
    let output = docker.run(&flags, "exec /bin/busybox tail /dev/zero");
    assert_eq!(output.status.code(), Some(137), "{}", docker.complain(&output));
    assert_eq!(docker.inspect("it", ".State.OOMKilled"), json!(true));
    let seen = eventually("the end should be told", || {
        let seen = events(docker);
        if seen.contains(&"die 137".to_owned()) { Ok(seen) } else { Err(seen) }
    });
    let at = |word: &str| seen.iter().position(|e| e.starts_with(word));
    assert!(at("oom").is_some() && at("oom") < at("die 137"), "{seen:?}");
}

fn a_healthcheck_is_run_and_believed(docker: &Docker<'_>) {
    let doors = docker.doors();
    let check =
        ["--health-cmd", "echo seen; ! [ -e /doors/ill ]", "--health-interval", "50ms", "--health-retries", "2"];
    docker.run_detached("it", &[&check[..], &["--volume", &doors.volume()]].concat(), SLEEPER);
    let becomes = |status: &str| {
        eventually(&format!("it should be {status}"), || match docker.inspect("it", ".State.Health") {
            health if health["Status"] == status => Ok(health),
            health => Err(health),
        })
    };
    let health = becomes("healthy");
    let last = health["Log"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["ExitCode"], &last["Output"]), (&json!(0), &json!("seen\n")));
    doors.open("ill");
    assert!(becomes("unhealthy")["FailingStreak"].as_u64().unwrap() >= 2);
    fs::remove_file(doors.dir.join("ill")).unwrap();
    becomes("healthy");
}

fn an_init_forwards_signals_and_reaps(docker: &Docker<'_>) {
    // The inner shell leaves a child behind, whom nobody but the first process can reap.
    let script = "trap 'exit 13' TERM; sh -c 'sleep 0.01 & echo ready'; while :; do sleep 0.02; done";
    let pid = docker.run_detached("it", &["--init"], script);
    // Who has been let go may not have come to it yet.
    eventually("the first process should be Docker's", || {
        match fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() {
            "docker-init" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    docker.wait_for_line("it", "ready");
    eventually("the orphan should be reaped", || {
        let top = docker.ok(&["top", "it", "-o", "pid,stat,comm"]);
        let first_sleeps = top.lines().filter(|l| l.contains("sleep") || l.contains(" Z")).count();
        // The shell's own, at most.
        if first_sleeps > 1 || top.contains("defunct") { Err(top) } else { Ok(()) }
    });
    docker.ok(&["stop", "it"]);
    assert_eq!(docker.wait_for_status("it", "exited"), 13);
}

fn what_is_removed_at_its_end_leaves_nothing(docker: &Docker<'_>) {
    let doors = docker.doors();
    docker.run_detached("it", &["--rm", "--volume", &doors.volume()], &doors.wait_at("last"));
    doors.open("last");
    eventually("it should be removed", || match docker.ok(&["ps", "--all", "--quiet"]) {
        all if all.is_empty() => Ok(()),
        all => Err(all),
    });
    eventually("the shim should leave nothing", || match (docker.shims(), docker.scene().run_files()) {
        (shims, files) if shims.is_empty() && files.is_empty() => Ok(()),
        left => Err(left),
    });
}

fn mounts_users_and_capabilities_are_as_asked_for(docker: &Docker<'_>) {
    let dir = docker.scene().make_dir("shared");
    fs::write(dir.join("from-outside"), "outside\n").unwrap();
    let mount = format!("{}:/in:ro", dir.display());
    let script = "cat /in/from-outside; echo x 2>/dev/null >/in/y || echo read-only; id -u; id -g; \
                  echo x >/scratch/file && cat /scratch/file; echo y 2>/dev/null >/file || echo no root; \
                  grep CapEff /proc/self/status; cat /proc/sys/kernel/shm_rmid_forced; ulimit -n; hostname; \
                  grep -c 'Seccomp:.*2' /proc/self/status; busybox wc -c </proc/timer_list";
    let flags = [
        "--rm",
        "--volume",
        &mount,
        "--tmpfs",
        "/scratch:mode=1777",
        "--read-only",
        "--user",
        "1234:2345",
        "--cap-drop",
        "ALL",
        "--sysctl",
        "kernel.shm_rmid_forced=1",
        "--ulimit",
        "nofile=123:123",
        "--hostname",
        "named",
    ];
    let output = docker.run(&flags, script);
    let expected = "outside\nread-only\n1234\n2345\nx\nno root\nCapEff:\t0000000000000000\n1\n123\nnamed\n1\n0\n";
    assert_output(docker, &output, expected, "", 0);
    // And the opposite.
    let flags = ["--rm", "--cap-add", "SYS_ADMIN", "--device", "/dev/fuse", "--security-opt", "seccomp=unconfined"];
    let script = "grep -c 'Seccomp:.*0' /proc/self/status; id -u; ls /dev/fuse; \
                  busybox mount -t tmpfs scratch /tmp && grep -c ' /tmp tmpfs' /proc/mounts";
    let output = docker.run(&flags, script);
    assert_output(docker, &output, "1\n0\n/dev/fuse\n1\n", "", 0);
    if docker.version() == DockerVersion::V20_10 {
        // It asks for all capabilities that Linux has, also those that this machine withholds.
        return;
    }
    let script = "grep CapEff /proc/self/status; busybox mount -o remount,rw /sys && echo writable; ls -d /dev/kmsg";
    let output = docker.run(&["--rm", "--privileged"], script);
    let all = fs::read_to_string("/proc/self/status").unwrap();
    let all = all.lines().find(|line| line.starts_with("CapBnd")).unwrap().replace("CapBnd", "CapEff");
    assert_output(docker, &output, &format!("{all}\nwritable\n/dev/kmsg\n"), "", 0);
}

fn namespaces_can_be_the_hosts_and_another_containers(docker: &Docker<'_>) {
    let link = |pid: u32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let own = std::process::id();
    let first = docker.run_detached("first", &["--ipc", "shareable"], SLEEPER);
    for kind in ["pid", "net", "ipc", "uts", "mnt"] {
        assert_ne!(link(first, kind), link(own, kind), "{kind}");
    }
    let flags = ["--pid", "container:first", "--ipc", "container:first", "--uts", "host"];
    let second = docker.run_detached("second", &flags, SLEEPER);
    for kind in ["pid", "ipc"] {
        assert_eq!(link(second, kind), link(first, kind), "{kind}");
    }
    assert_eq!(link(second, "uts"), link(own, "uts"));
    let script = "for kind in net pid; do busybox readlink /proc/self/ns/$kind; done";
    let flags = ["--runtime", docker.runtime(), "--network", "host", "--pid", "host", IMAGE];
    let output = docker.docker(&[&["run", "--rm"], &flags[..], &["sh", "-c", script]].concat());
    let expected = format!("{}\n{}\n", link(own, "net").display(), link(own, "pid").display());
    assert_output(docker, &output, &expected, "", 0);
    // In a shared pid namespace its end is the other's business.
    docker.ok(&["kill", "second"]);
    assert_eq!(docker.wait_for_status("second", "exited"), 137);
    assert!(process::is_alive(first));
}

fn a_killed_shim_is_cleaned_up_after(docker: &Docker<'_>) {
    let pid = docker.run_detached("it", &[], SLEEPER);
    process::kill_hard(shim_of(pid));
    docker.wait_for_status("it", "exited");
    process::until_gone(pid);
    docker.ok(&["start", "it"]);
    assert_ours(docker.container_pid("it"));
}

fn a_checkpoint_is_written_and_restored_or_refused_by_name(docker: &Docker<'_>) {
    let Shim::Holdfast(oci) = docker.shim() else { unreachable!("the cells are ours") };
    let script = "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.02; done";
    if oci == Oci::HoldfastOci {
        let pid = docker.run_detached("it", &[], script);
        let output = docker.docker(&["checkpoint", "create", "it", "point"]);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains("use runc or crun"), "{}", docker.complain(&output));
        assert_eq!(docker.container_pid("it"), pid);
        return;
    }
    if let Some(refusal) = criu_refusal(docker.scene()) {
        return skip(refusal);
    }
    // For a network namespace criu wants iptables.
    let flags = ["--detach", "--name", "it", "--network", "host", "--security-opt", "seccomp=unconfined"];
    let run = [&["run", "--runtime", docker.runtime()], &flags[..], &[IMAGE, "sh", "-c", script]];
    docker.ok(&run.concat());
    docker.wait_for_line("it", "5");
    docker.ok(&["checkpoint", "create", "it", "point"]);
    let at_checkpoint = docker.logs("it").0.lines().count();
    if docker.version() != DockerVersion::V20_10 {
        // That the container is to end with it, later Dockers tell only a shim whose name is runc's.
        docker.wait_for_line("it", &(at_checkpoint + 3).to_string());
        docker.ok(&["kill", "it"]);
    }
    docker.wait_for_status("it", "exited");
    let before = docker.logs("it").0.lines().count();
    eventually("it should be started from the checkpoint", || {
        let output = docker.docker(&["start", "--checkpoint", "point", "it"]);
        if output.status.success() {
            return Ok(());
        }
        // dockerd gives containerd the image, which it may still have from the creation, until it has cleaned up.
        let said = text(&output.stderr);
        assert!(said.contains("already exists"), "{}", docker.complain(&output));
        Err(said)
    });
    let after = eventually("it should count again", || {
        let numbers: Vec<usize> = docker.logs("it").0.lines().map(|n| n.parse().unwrap()).collect();
        if numbers.len() > before + 3 { Ok(numbers[before..].to_vec()) } else { Err(numbers) }
    });
    // From where it was at the checkpoint on: neither from 1 nor from where it was killed.
    assert!((4..=at_checkpoint + 1).contains(&after[0]), "{at_checkpoint} at the checkpoint, then {after:?}");
    assert!(after.is_sorted_by(|a, b| a + 1 == *b), "{after:?}");
}
