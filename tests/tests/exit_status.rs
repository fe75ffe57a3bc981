//! Ring 2: the exit status is true on every path on which it can be asked for.
#![allow(clippy::unwrap_used)]

use containerd_shim_protos::events::task::TaskExit;
use holdfast_tests::{FakeWorld, Stdio};

/// Runs `script` as init, ends it by `signal` if there is one, and compares all answers.
#[track_caller]
fn init_exits_with(script: &str, signal: Option<i32>, expected: u32) {
    let world = FakeWorld::new();
    let bundle = world.script(script);
    let mut shim = world.start(&bundle);
    let pid = shim.run(&Stdio::none());
    if let Some(signal) = signal {
        shim.kill("", signal).unwrap();
    }
    let waited = shim.wait("").unwrap();
    let state = shim.state("").unwrap();
    let story = world.containerd.wait_for(bundle.id(), &format!("exit {expected}"));
    assert_eq!(story.len(), 3, "{story:?}");
    let exit = world.containerd.events().into_iter().find(|e| e.topic == "/tasks/exit").unwrap();
    let exit: TaskExit = exit.message();
    let deleted = shim.delete("").unwrap();

    assert_eq!(waited.exit_status, expected, "Wait");
    assert_eq!((state.exit_status, state.exited_at), (expected, waited.exited_at.clone()), "State");
    assert_eq!((exit.exit_status, exit.pid, exit.exited_at), (expected, pid, waited.exited_at.clone()), "the event");
    assert_eq!((exit.container_id.as_str(), exit.id.as_str()), (bundle.id(), bundle.id()));
    assert_eq!((deleted.exit_status, deleted.pid, deleted.exited_at), (expected, pid, waited.exited_at), "Delete");
    shim.shutdown();
}

/// The same for an exec.
#[track_caller]
fn exec_exits_with(script: &str, signal: Option<i32>, expected: u32) {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.exec("e", &["/bin/sh", "-c", script], &Stdio::none()).unwrap();
    let pid = shim.start("e").unwrap().pid;
    if let Some(signal) = signal {
        shim.kill("e", signal).unwrap();
    }
    let waited = shim.wait("e").unwrap();
    let state = shim.state("e").unwrap();
    world.containerd.wait_for(bundle.id(), &format!("exit e {expected}"));
    let deleted = shim.delete("e").unwrap();

    assert_eq!(waited.exit_status, expected, "Wait");
    assert_eq!((state.exit_status, state.exited_at), (expected, waited.exited_at.clone()), "State");
    assert_eq!((deleted.exit_status, deleted.pid, deleted.exited_at), (expected, pid, waited.exited_at), "Delete");
    shim.discard();
}

#[test]
fn init_0() {
    init_exits_with("exit 0", None, 0);
}

#[test]
fn init_7() {
    init_exits_with("exit 7", None, 7);
}

#[test]
fn init_255() {
    init_exits_with("exit 255", None, 255);
}

#[test]
fn init_137_by_sigkill() {
    init_exits_with("exec sleep 1000", Some(libc::SIGKILL), 137);
}

#[test]
fn init_143_by_sigterm() {
    init_exits_with("exec sleep 1000", Some(libc::SIGTERM), 143);
}

#[test]
fn init_by_a_realtime_signal() {
    // The fake runtime passes on no realtime signals; the process sends it to itself.
    init_exits_with("kill -40 $$", None, 128 + 40);
}

#[test]
fn exec_0() {
    exec_exits_with("exit 0", None, 0);
}

#[test]
fn exec_7() {
    exec_exits_with("exit 7", None, 7);
}

#[test]
fn exec_137_by_sigkill() {
    exec_exits_with("exec sleep 1000", Some(libc::SIGKILL), 137);
}

#[test]
fn exec_143_by_sigterm() {
    exec_exits_with("exec sleep 1000", Some(libc::SIGTERM), 143);
}
