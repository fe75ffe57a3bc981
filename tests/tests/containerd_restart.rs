//! Ring 3: containerd is killed with SIGKILL and started again, in each cell of the matrix; see `with_containerd.rs`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use holdfast_tests::container::Container;
use holdfast_tests::gate;
use holdfast_tests::matrix;
use holdfast_tests::matrix::Real;
use holdfast_tests::process::{self, ChildProcess, Stopped, until_gone};
use holdfast_tests::programs::Version;
use holdfast_tests::{Process, eventually};
use nix::sys::signal::Signal;

matrix!(
    a_running_container_is_found_again,
    a_paused_container_is_found_and_resumed,
    a_created_container_is_found_and_started,
    trap_42_a_container_whose_start_takes_long_is_found,
    a_container_that_is_being_created_is_found_or_leaves_nothing,
    a_status_of_0_outlives_containerd,
    a_status_of_7_outlives_containerd,
    a_status_of_137_outlives_containerd,
    a_status_of_143_outlives_containerd,
    an_exec_runs_on_and_tells_its_status,
    an_exec_that_ends_meanwhile_tells_its_status,
    fifty_containers_are_all_found_again,
    a_wedged_shim_takes_no_other_with_it,
);

/// A container that runs until it is killed.
const SLEEPER: &str = "exec /bin/sleep 1000";

/// A script that waits at the gate and then goes on.
fn gated(then: &str) -> String {
    format!("{}; {then}", gate::wait_at("go"))
}

fn open_gate(real: &Real<'_>) {
    gate::open(real.containerd.rootfs(), "go");
}

fn a_running_container_is_found_again(real: &Real<'_>) {
    let container = real.container();
    let pid = container.run_detached(SLEEPER);
    let shim = container.shim();
    real.containerd.kill();
    assert!(process::is_alive(pid) && shim.is_alive());
    real.containerd.resume();
    assert_eq!(real.containerd.task(&container.id), Some(("RUNNING".into(), pid)));
    assert!(shim.is_alive());
    let output = container.exec("after", &[], &["/bin/echo", "still here"]);
    assert_eq!(output.stdout, b"still here\n", "{}", real.containerd.complain(&output));
    real.containerd.remove(&container.id);
    shim.wait_gone();
}

fn a_paused_container_is_found_and_resumed(real: &Real<'_>) {
    let container = real.container();
    let pid = container.run_detached(&gated("exit 3"));
    real.containerd.ok(&["task", "pause", &container.id]);
    real.containerd.kill();
    open_gate(real);
    real.containerd.resume();
    assert_eq!(real.containerd.task(&container.id), Some(("PAUSED".into(), pid)));
    real.containerd.ok(&["task", "resume", &container.id]);
    real.containerd.wait_for_status(&container.id, "STOPPED");
    assert_eq!(real.containerd.delete(&container.id), 3);
}

fn a_created_container_is_found_and_started(real: &Real<'_>) {
    let container = real.container();
    let pid = container.create_only("exit 3");
    real.containerd.kill();
    assert!(process::is_alive(pid));
    real.containerd.resume();
    assert_eq!(real.containerd.task(&container.id), Some(("CREATED".into(), pid)));
    assert_eq!(container.start().unwrap().pid, pid);
    real.containerd.wait_for_status(&container.id, "STOPPED");
    assert_eq!(real.containerd.delete(&container.id), 3);
}

/// The OCI runtime of the cell, which begins with one of its commands only once [`let_go`] was called.
fn slow_runtime(real: &Real<'_>, command: &str) -> PathBuf {
    let path = real.scene.path("slow-runtime");
    let script = format!(
        "#!/bin/sh\nfor a; do [ \"$a\" != {command} ] || while [ ! -e {:?} ]; do sleep 0.02; done; done\nexec {:?} \"$@\"\n",
        real.scene.path("let-go"),
        real.cell.oci.program(),
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn let_go(real: &Real<'_>) {
    fs::write(real.scene.path("let-go"), "").unwrap();
}

/// Runs a container and kills containerd while the OCI runtime is at `command`.
#[track_caller]
fn killed_during<'a>(real: &'a Real<'_>, command: &str) -> Container<'a> {
    let container = Container::with_program(&real.containerd, 0, &slow_runtime(real, command));
    let mut run = container.run_command(&["--detach"], &["/bin/sh", "-c", SLEEPER]);
    let mut ctr = ChildProcess::spawn(run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    eventually("the runtime should be asked", || {
        let lines = process::marked(real.scene.id()).into_iter().map(process::describe).collect::<Vec<_>>();
        let word = format!(" {command} ");
        if lines.iter().any(|l| l.contains("slow-runtime") && l.contains(&word)) { Ok(()) } else { Err(lines) }
    });
    real.containerd.kill();
    ctr.wait();
    container
}

/// containerd 1.7 and 2.1 give up a task whose `Pids` does not answer.
fn trap_42_a_container_whose_start_takes_long_is_found(real: &Real<'_>) {
    let container = killed_during(real, "start");
    real.containerd.resume();
    let (status, pid) = real.containerd.task(&container.id).unwrap();
    assert_eq!(status, "CREATED");
    let_go(real);
    assert_eq!(real.containerd.wait_for_status(&container.id, "RUNNING"), pid);
    real.containerd.remove(&container.id);
}

/// containerd 1.6 asks nothing of the shim but its pid and has the task when it is there. Later ones ask for the pids, get
/// none, delete the task (before they serve, so that must not wait for the runtime) and remove the bundle; it must not come
/// to life behind their back.
fn a_container_that_is_being_created_is_found_or_leaves_nothing(real: &Real<'_>) {
    let container = killed_during(real, "create");
    let shim = container.shim();
    real.containerd.resume();
    let_go(real);
    if real.containerd.version() == Version::V1_6 {
        real.containerd.wait_for_status(&container.id, "CREATED");
    } else {
        shim.wait_gone();
        assert_eq!(real.containerd.task(&container.id), None);
    }
    real.containerd.remove(&container.id);
    shim.wait_gone();
}

fn a_status_of_0_outlives_containerd(real: &Real<'_>) {
    exits_while_down(real, "exit 0", None, 0);
}

fn a_status_of_7_outlives_containerd(real: &Real<'_>) {
    exits_while_down(real, "exit 7", None, 7);
}

fn a_status_of_137_outlives_containerd(real: &Real<'_>) {
    exits_while_down(real, "exit 0", Some(Signal::SIGKILL), 137);
}

fn a_status_of_143_outlives_containerd(real: &Real<'_>) {
    exits_while_down(real, "exit 143", None, 143);
}

#[track_caller]
fn exits_while_down(real: &Real<'_>, then: &str, signal: Option<Signal>, status: u32) {
    let container = real.container();
    let pid = container.run_detached(&gated(then));
    real.containerd.kill();
    match signal {
        None => open_gate(real),
        Some(signal) => Process::of(pid).signal(signal),
    }
    until_gone(pid);
    real.containerd.resume();
    assert_eq!(real.containerd.wait_for_status(&container.id, "STOPPED"), pid);
    assert_eq!(real.containerd.delete(&container.id), status);
}

/// Starts an exec that goes on until the gate opens and then exits with 9; returns its pid.
#[track_caller]
fn start_exec(real: &Real<'_>, container: &Container<'_>, init: u32) -> u32 {
    let output = container.exec("e1", &["--detach"], &["/bin/sh", "-c", &gated("exit 9")]);
    assert!(output.status.success(), "{}", real.containerd.complain(&output));
    // Not by the order of pids, which begin anew some time: what it starts has a parent in the container, it has none.
    let is_exec = |pid: &u32, all: &[u32]| *pid != init && process::parent(*pid).is_some_and(|p| !all.contains(&p));
    eventually("the exec should be listed", || {
        let all = container.pids();
        all.iter().copied().find(|pid| is_exec(pid, &all)).ok_or(all)
    })
}

/// ctr cannot wait for an exec that another ctr started, but can delete it and then exits with its status.
#[track_caller]
fn delete_exec(real: &Real<'_>, container: &Container<'_>) -> Option<i32> {
    real.containerd.run(&["task", "delete", "--exec-id", "e1", &container.id]).status.code()
}

fn an_exec_runs_on_and_tells_its_status(real: &Real<'_>) {
    let container = real.container();
    let init = container.run_detached(SLEEPER);
    let pid = start_exec(real, &container, init);
    real.containerd.kill();
    assert!(process::is_alive(pid));
    real.containerd.resume();
    assert!(container.pids().contains(&pid));
    open_gate(real);
    until_gone(pid);
    assert_eq!(delete_exec(real, &container), Some(9));
    real.containerd.remove(&container.id);
}

fn an_exec_that_ends_meanwhile_tells_its_status(real: &Real<'_>) {
    let container = real.container();
    let init = container.run_detached(SLEEPER);
    let pid = start_exec(real, &container, init);
    real.containerd.kill();
    open_gate(real);
    until_gone(pid);
    real.containerd.resume();
    assert_eq!(delete_exec(real, &container), Some(9));
    assert_eq!(real.containerd.task(&container.id), Some(("RUNNING".into(), init)));
    real.containerd.remove(&container.id);
}

/// Runs containers that wait for the gate; their pids.
fn run_many<'a>(real: &'a Real<'_>, n: usize, then: &str) -> Vec<(Container<'a>, u32)> {
    let script = &gated(then);
    let containers: Vec<_> = (0..n).map(|n| real.numbered(n)).collect();
    // Not all at once: each ctr takes memory, and gives the daemon ten seconds.
    for some in containers.chunks(10) {
        let run = |container: &Container<'_>| {
            let mut command = container.run_command(&["--detach"], &["/bin/sh", "-c", script]);
            ChildProcess::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()))
        };
        let clients: Vec<_> = some.iter().map(run).collect();
        clients.into_iter().for_each(|mut ctr| assert!(ctr.wait().success()));
    }
    let tasks = real.containerd.tasks();
    let pid = |c: &Container<'_>| tasks.get(&c.id).unwrap_or_else(|| panic!("{} is not in {tasks:?}", c.id)).1;
    containers
        .into_iter()
        .map(|c| {
            let pid = pid(&c);
            (c, pid)
        })
        .collect()
}

fn fifty_containers_are_all_found_again(real: &Real<'_>) {
    let containers = run_many(real, 50, "exit 6");
    real.containerd.kill();
    // Ten end while nobody looks.
    let (killed, rest) = containers.split_at(10);
    killed.iter().for_each(|(_, pid)| Process::of(*pid).kill());
    real.containerd.resume();
    let tasks = real.containerd.tasks();
    for (some, status) in [(killed, "STOPPED"), (rest, "RUNNING")] {
        for (container, pid) in some {
            assert_eq!(tasks.get(&container.id), Some(&(status.into(), *pid)));
        }
    }
    open_gate(real);
    eventually("all should end", || {
        let running: Vec<_> = real.containerd.tasks().into_iter().filter(|(_, (s, _))| s != "STOPPED").collect();
        if running.is_empty() { Ok(()) } else { Err(running) }
    });
    for (some, status) in [(killed, 137), (rest, 6)] {
        let ids: Vec<&str> = some.iter().map(|(container, _)| container.id.as_str()).collect();
        assert_eq!(real.containerd.delete_all(&ids), vec![status; ids.len()]);
    }
}

/// containerd waits five seconds for the wedged one, gives it up and has our `delete` end its container. The others are
/// found; and the wedged shim, when it goes on, sees that it is not needed any more and ends.
fn a_wedged_shim_takes_no_other_with_it(real: &Real<'_>) {
    let mut containers = run_many(real, 4, "exit 6");
    let (wedged, wedged_pid) = containers.remove(1);
    let shim = wedged.shim();
    let stopped = Stopped::new(shim.pid());
    real.containerd.kill();
    real.containerd.resume();
    let tasks = real.containerd.tasks();
    for (container, pid) in &containers {
        assert_eq!(tasks.get(&container.id), Some(&("RUNNING".into(), *pid)));
        assert_eq!(container.exec("e1", &[], &["/bin/echo", "here"]).stdout, b"here\n");
    }
    assert_eq!(tasks.get(&wedged.id), None);
    until_gone(wedged_pid);
    drop(stopped);
    shim.wait_gone();
    real.containerd.ok(&["container", "delete", &wedged.id]);
    for (container, _) in &containers {
        real.containerd.remove(&container.id);
    }
}
