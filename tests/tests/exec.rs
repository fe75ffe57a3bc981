//! Ring 2: further processes in a container.
#![allow(clippy::unwrap_used)]

use std::fs;

use containerd_shim_protos::api::StartResponse;
use containerd_shim_protos::api::{StartRequest, WaitResponse};
use holdfast_tests::fake_runtime::Behaviour;
use holdfast_tests::shim::{Status, TASK};
use holdfast_tests::wire::Code;
use holdfast_tests::{Bundle, FakeWorld, Shim, Stdio, eventually, process};

fn running(world: &FakeWorld) -> (Bundle, Shim) {
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    (bundle, shim)
}

#[test]
fn an_exec_runs_and_its_id_can_be_used_again() {
    let world = FakeWorld::new();
    let (bundle, mut shim) = running(&world);
    for round in ["one", "two"] {
        let stdio = Stdio::output(&world.scene, round);
        let (stdout, _stderr) = stdio.readers();
        shim.exec("e", &["/bin/echo", round], &stdio).unwrap();
        assert_eq!(shim.status("e"), Status::CREATED);
        let pid = shim.start("e").unwrap().pid;
        assert_eq!(shim.wait_status("e"), 0);
        assert_eq!(shim.status("e"), Status::STOPPED);
        assert_eq!(shim.state("e").unwrap().id, "e");
        assert_eq!(stdout.text(), format!("{round}\n"));
        assert_eq!(shim.delete("e").unwrap().pid, pid);
        assert_eq!(shim.state("e").unwrap_err().code(), Code::NOT_FOUND);
    }
    let is_exit = |l: &&String| l.starts_with("exit e ");
    let story = world.containerd.wait_until(bundle.id(), |story| story.iter().filter(is_exit).count() == 2);
    let execs: Vec<_> = story.iter().filter(|l| l.contains(" e")).filter(|l| !l.starts_with("delete")).collect();
    assert_eq!(execs, ["exec-added e", "exec-started e", "exit e 0"].repeat(2).iter().collect::<Vec<_>>());
    shim.discard();
}

#[test]
fn an_exec_id_is_taken_until_it_is_deleted() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    shim.exec("e", &["/bin/true"], &Stdio::none()).unwrap();
    assert_eq!(shim.exec("e", &["/bin/true"], &Stdio::none()).unwrap_err().code(), Code::ALREADY_EXISTS);
    shim.start("e").unwrap();
    shim.wait("e").unwrap();
    assert_eq!(shim.exec("e", &["/bin/true"], &Stdio::none()).unwrap_err().code(), Code::ALREADY_EXISTS);
    shim.discard();
}

#[test]
fn an_unknown_exec_is_not_found() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    let refusals = [
        shim.state("e").map(drop),
        shim.start("e").map(drop),
        shim.kill("e", 9).map(drop),
        shim.wait("e").map(drop),
        shim.delete("e").map(drop),
        shim.resize("e", 80, 25).map(drop),
        shim.close_stdin("e").map(drop),
    ];
    for (n, refusal) in refusals.into_iter().enumerate() {
        assert_eq!(refusal.unwrap_err().code(), Code::NOT_FOUND, "call {n}");
    }
    shim.discard();
}

#[test]
fn killing_what_never_started_is_a_failed_precondition() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    shim.exec("e", &["/bin/true"], &Stdio::none()).unwrap();
    // The client library takes this code for success.
    assert_eq!(shim.kill("e", 9).unwrap_err().code(), Code::FAILED_PRECONDITION);
    shim.delete("e").unwrap();
    shim.discard();
}

#[test]
fn trap_25_killing_an_exec_that_ended_is_not_found() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    shim.exec("e", &["/bin/true"], &Stdio::none()).unwrap();
    shim.start("e").unwrap();
    shim.wait("e").unwrap();
    assert_eq!(shim.kill("e", 9).unwrap_err().code(), Code::NOT_FOUND);
    shim.discard();
}

#[test]
fn a_running_exec_is_not_deleted() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    shim.exec("e", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    let pid = shim.start("e").unwrap().pid;
    assert!(shim.delete("e").is_err());
    assert!(process::is_alive(pid));
    shim.kill("e", 9).unwrap();
    assert_eq!(shim.wait_status("e"), 137);
    shim.delete("e").unwrap();
    shim.discard();
}

#[test]
fn trap_04_no_exec_starts_once_init_has_ended() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    shim.exec("e", &["/bin/true"], &Stdio::none()).unwrap();
    shim.kill("", 9).unwrap();
    shim.wait("").unwrap();
    assert_eq!(shim.start("e").unwrap_err().code(), Code::FAILED_PRECONDITION);
    assert!(world.runtime.calls_of("exec").is_empty(), "the runtime is not even asked");
    assert!(shim.exec("f", &["/bin/true"], &Stdio::none()).is_err());
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_program_that_does_not_exist_fails_start_in_the_runtimes_words() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    shim.exec("e", &["/no/such/program"], &Stdio::none()).unwrap();
    for attempt in ["first", "second"] {
        let refusal = shim.start("e").unwrap_err();
        assert_eq!(refusal.code(), Code::UNKNOWN, "{attempt}: {refusal:?}");
        // Docker derives the exit code 127 from this phrase.
        assert!(refusal.message().contains("no such file or directory"), "{attempt}: {refusal:?}");
    }
    assert_ne!(shim.status("e"), Status::RUNNING);
    shim.delete("e").unwrap();
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.discard();
}

#[test]
fn trap_09_a_start_that_fails_may_be_tried_again_and_answers_who_waits_once() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    world.runtime.on("exec", Behaviour::Fail("no room".into()));
    shim.exec("e", &["/bin/sh", "-c", "exit 3"], &Stdio::none()).unwrap();
    for round in 0..3 {
        let wait = shim.begin_wait("e");
        let refusal = shim.start("e").unwrap_err();
        assert_eq!(refusal.code(), Code::UNKNOWN, "{round}: {refusal:?}");
        assert!(refusal.message().contains("no room"), "{round}: {refusal:?}");
        let reply: Result<WaitResponse, _> = shim.connection.finish(wait);
        assert_eq!(reply.unwrap_err().code(), Code::FAILED_PRECONDITION, "{round}");
        assert_eq!(shim.status("e"), Status::CREATED, "{round}");
    }
    world.runtime.clear("exec");
    let wait = shim.begin_wait("e");
    shim.start("e").unwrap();
    let reply: WaitResponse = shim.connection.finish(wait).unwrap();
    assert_eq!(reply.exit_status, 3);
    assert_eq!(shim.start("e").unwrap_err().code(), Code::FAILED_PRECONDITION, "and only once");
    shim.discard();
}

#[test]
fn trap_10_a_wait_on_an_exec_that_fails_to_start_never_says_zero() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    shim.exec("e", &["/no/such/program"], &Stdio::none()).unwrap();
    let early = shim.begin_wait("e");
    shim.start("e").unwrap_err();
    shim.delete("e").unwrap();
    let reply: Result<WaitResponse, _> = shim.connection.finish(early);
    assert!(reply.as_ref().map_or(true, |r| r.exit_status != 0), "{reply:?}");
    shim.discard();
}

#[test]
fn state_says_created_while_an_exec_starts() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    let gate = world.scene.path("gate");
    world.runtime.on("exec", Behaviour::WaitFor(gate.clone()));
    shim.exec("e", &["/bin/true"], &Stdio::none()).unwrap();
    let request = StartRequest { id: shim.id().into(), exec_id: "e".into(), ..StartRequest::default() };
    let start = shim.connection.begin(TASK, "Start", &request);
    eventually("the runtime should be asked", || world.runtime.calls_of("exec").pop().ok_or("no call"));
    assert_eq!(shim.status("e"), Status::CREATED);
    assert!(!shim.connection.has_reply(start));
    fs::write(gate, "").unwrap();
    let _: StartResponse = shim.connection.finish(start).unwrap();
    assert_eq!(shim.wait_status("e"), 0);
    shim.discard();
}

#[test]
fn a_wait_before_start_is_answered_at_the_end() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    shim.exec("e", &["/bin/sh", "-c", "exit 3"], &Stdio::none()).unwrap();
    let early = shim.begin_wait("e");
    shim.start("e").unwrap();
    let reply: WaitResponse = shim.connection.finish(early).unwrap();
    assert_eq!(reply.exit_status, 3);
    shim.discard();
}

#[test]
fn trap_54_an_exec_called_init_does_not_touch_the_files_of_init() {
    let world = FakeWorld::new();
    let (bundle, mut shim) = running(&world);
    let init = shim.connect().unwrap().task_pid;
    shim.exec("init", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    let pid = shim.start("init").unwrap().pid;
    assert_ne!(pid, init);
    assert_eq!(fs::read_to_string(bundle.path("init.pid")).unwrap(), init.to_string());
    shim.kill("init", 9).unwrap();
    assert_eq!(shim.wait_status("init"), 137);
    assert!(process::is_alive(init));
    shim.delete("init").unwrap();
    assert_eq!(fs::read_to_string(bundle.path("init.pid")).unwrap(), init.to_string());
    shim.discard();
}

#[test]
fn many_execs_at_once_keep_their_statuses_apart() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    let name = |n: u32| format!("e{n}");
    let mut starts = Vec::new();
    for n in 0..20 {
        shim.exec(&name(n), &["/bin/sh", "-c", &format!("exit {n}")], &Stdio::none()).unwrap();
        let request = StartRequest { id: shim.id().into(), exec_id: name(n), ..StartRequest::default() };
        starts.push(shim.connection.begin(TASK, "Start", &request));
    }
    for id in starts {
        let _: StartResponse = shim.connection.finish(id).unwrap();
    }
    for n in 0..20 {
        assert_eq!(shim.wait_status(&name(n)), n);
        assert_eq!(shim.delete(&name(n)).unwrap().exit_status, n);
    }
    shim.discard();
}

#[test]
fn a_spec_that_is_no_json_is_an_invalid_argument() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    let mut request = shim.exec_request("e", &serde_json::Value::Null, &Stdio::none());
    request.spec.mut_or_insert_default().value = b"{".to_vec();
    let reply: Result<containerd_shim_protos::api::Empty, _> = shim.connection.call(TASK, "Exec", &request);
    assert_eq!(reply.unwrap_err().code(), Code::INVALID_ARGUMENT);
    assert_eq!(shim.state("e").unwrap_err().code(), Code::NOT_FOUND);
    shim.discard();
}
