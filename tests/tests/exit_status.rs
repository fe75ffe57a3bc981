//! Ring 2: the exit status is true on every path on which it can be asked for.
#![allow(clippy::unwrap_used)]

use std::fs;

use containerd_shim_protos::api::{StartRequest, StartResponse, WaitResponse};
use containerd_shim_protos::events::task::TaskExit;
use holdfast_tests::fake_runtime::Behaviour;
use holdfast_tests::shim::TASK;
use holdfast_tests::stdio::make_fifo;
use holdfast_tests::{FakeWorld, Stdio, eventually};

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

#[test]
fn trap_23_no_exit_is_lost_when_many_come_at_once() {
    const COUNT: u32 = 60;
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    // All read it; its end releases all of them in one moment.
    let gate = make_fifo(&world.scene, "gate");
    let ready = world.scene.make_dir("ready");
    let hold = fs::File::options().read(true).write(true).open(&gate).unwrap();
    let name = |n: u32| format!("e{n}");
    for n in 0..COUNT {
        let (gate, ready) = (gate.display(), ready.join(name(n)).display().to_string());
        let script = format!("exec 3<{gate}; : >{ready}; read x <&3; exit {n}");
        shim.exec(&name(n), &["/bin/sh", "-c", &script], &Stdio::none()).unwrap();
        shim.start(&name(n)).unwrap();
    }
    eventually("all should stand before the gate", || match fs::read_dir(&ready).unwrap().count() {
        n if n == COUNT as usize => Ok(()),
        n => Err(n),
    });
    let waits: Vec<u32> = (0..COUNT).map(|n| shim.begin_wait(&name(n))).collect();
    drop(hold);
    for (n, wait) in (0..COUNT).zip(waits) {
        let reply: WaitResponse = shim.connection.finish(wait).unwrap();
        assert_eq!(reply.exit_status, n);
    }
    let is_exit = |l: &&String| l.starts_with("exit e");
    let enough = |story: &[String]| story.iter().filter(is_exit).count() >= COUNT as usize;
    let mut exits: Vec<String> =
        world.containerd.wait_until(bundle.id(), enough).into_iter().filter(|l| is_exit(&l)).collect();
    let mut expected: Vec<String> = (0..COUNT).map(|n| format!("exit e{n} {n}")).collect();
    exits.sort();
    expected.sort();
    assert_eq!(exits, expected);
    shim.discard();
}

#[test]
fn trap_24_orphans_that_die_meanwhile_take_no_call_its_status() {
    let world = FakeWorld::new();
    // Each of these is a child of the shim by the time it ends, since its parent has gone before it.
    let bundle = world.script("while :; do (/bin/sleep 0.01 &); done");
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    world.runtime.on("update", Behaviour::Fail("not that".into()));
    for round in 0..10 {
        let names: Vec<String> = (0..4).map(|n| format!("e{round}-{n}")).collect();
        let mut starts = Vec::new();
        for (n, name) in names.iter().enumerate() {
            shim.exec(name, &["/bin/sh", "-c", &format!("exit {n}")], &Stdio::none()).unwrap();
            let (id, exec_id) = (bundle.id().to_owned(), name.clone());
            let request = StartRequest { id, exec_id, ..Default::default() };
            starts.push(shim.connection.begin(TASK, "Start", &request));
        }
        // A call that succeeds succeeds, and one that fails fails in its own words.
        shim.kill("", 0).unwrap();
        let refusal = shim.update(&serde_json::json!({})).unwrap_err();
        assert!(refusal.message().ends_with("update failed: not that"), "{refusal:?}");
        for start in starts {
            let _: StartResponse = shim.connection.finish(start).unwrap();
        }
        for (n, name) in names.iter().enumerate() {
            assert_eq!(shim.wait_status(name), u32::try_from(n).unwrap());
            assert_eq!(shim.delete(name).unwrap().exit_status, u32::try_from(n).unwrap());
        }
    }
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    shim.delete("").unwrap();
    let pid = shim.process().pid();
    eventually("no zombie should be left", || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        if children.trim().is_empty() { Ok(()) } else { Err(children) }
    });
    shim.shutdown();
}
