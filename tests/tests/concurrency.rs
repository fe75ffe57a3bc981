//! Ring 2: requests at the same time. Who only asks never waits, who changes something has its turn, and what a client
//! began is completed when the client has left.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::OpenOptionsExt;

use containerd_shim_protos::api::{
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use holdfast_tests::fake_containerd::Mood;
use holdfast_tests::process::Stopped;
use holdfast_tests::shim::{Status, TASK};
use holdfast_tests::wire::{CallError, Code, Connection, Frame};
use holdfast_tests::{Bundle, FakeWorld, Shim, Stdio, eventually, process, until};
use nix::sys::signal::Signal;
use protobuf::Message;
use ttrpc::proto::Request;

fn begin(connection: &mut Connection, id: &str, method: &str, exec_id: &str) -> u32 {
    begin_within(connection, id, method, exec_id, 0)
}

/// With a deadline of the client's own, in nanoseconds; 0: none.
fn begin_within(connection: &mut Connection, id: &str, method: &str, exec_id: &str, timeout_nano: i64) -> u32 {
    let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
    let payload = match method {
        "Start" => StartRequest { id, exec_id, ..Default::default() }.write_to_bytes(),
        "Kill" => KillRequest { id, exec_id, signal: 15, ..Default::default() }.write_to_bytes(),
        "Delete" => DeleteRequest { id, exec_id, ..Default::default() }.write_to_bytes(),
        "Wait" => WaitRequest { id, exec_id, ..Default::default() }.write_to_bytes(),
        "Pause" | "Resume" => PauseRequest { id, ..Default::default() }.write_to_bytes(),
        "Update" => {
            let mut request = UpdateTaskRequest { id, ..Default::default() };
            request.resources.mut_or_insert_default().value = b"{}".to_vec();
            request.write_to_bytes()
        }
        other => panic!("no method {other:?}"),
    };
    let (service, method, payload) = (TASK.into(), method.into(), payload.unwrap());
    let request = Request { service, method, payload, timeout_nano, ..Default::default() };
    let stream = connection.fresh_id();
    let frame = Frame { payload: request.write_to_bytes().unwrap(), ..Frame::request(stream, "", "", Vec::new()) };
    connection.send(&frame.to_bytes()).unwrap();
    stream
}

/// A container brought to where `method` can be asked of it, and for an exec its id.
fn prepared(world: &FakeWorld, method: &str, exec_id: &str) -> (Bundle, Shim) {
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.create(&Stdio::none()).unwrap();
    if method == "Start" && exec_id.is_empty() {
        return (bundle, shim);
    }
    shim.start("").unwrap();
    match method {
        "Start" => drop(shim.exec(exec_id, &["/bin/sleep", "1000"], &Stdio::none()).unwrap()),
        "Resume" => drop(shim.pause().unwrap()),
        "Delete" => {
            shim.kill("", 9).unwrap();
            shim.wait("").unwrap();
        }
        _ => {}
    }
    (bundle, shim)
}

/// All calls of the runtime but create, which has no task to ask about yet: method, exec id, command, and what State says
/// of the process while the call runs.
const CALLS: [(&str, &str, &str, Status); 7] = [
    ("Start", "", "start", Status::CREATED),
    ("Start", "e", "exec", Status::CREATED),
    ("Kill", "", "kill", Status::RUNNING),
    ("Pause", "", "pause", Status::PAUSING),
    ("Resume", "", "resume", Status::PAUSED),
    ("Update", "", "update", Status::RUNNING),
    ("Delete", "", "delete", Status::STOPPED),
];

#[test]
fn trap_07_who_only_asks_is_answered_from_memory_during_every_call_of_the_runtime() {
    for (method, exec_id, command, status) in CALLS {
        let world = FakeWorld::new();
        let (bundle, mut shim) = prepared(&world, method, exec_id);
        let pid = shim.connect().unwrap().task_pid;
        let gate = world.runtime.hold(command);
        let held = begin(&mut shim.connection, bundle.id(), method, exec_id);
        gate.reached();

        // On the same connection and on another one.
        let mut other = world.launch(&bundle).attach(shim.address());
        for shim in [&mut shim, &mut other] {
            assert_eq!(shim.status(exec_id), status, "{method} {exec_id:?}");
            let reply = shim.connect().unwrap();
            assert_eq!((reply.shim_pid, reply.task_pid), (shim.process().pid(), pid), "{method}");
            let pids = shim.pids().unwrap();
            assert!(pids.processes.iter().any(|p| p.pid == pid), "{method}: {pids:?}");
            let wait = shim.begin_wait("");
            if status == Status::STOPPED {
                let reply: WaitResponse = shim.connection.finish(wait).unwrap();
                assert_eq!(reply.exit_status, 137, "{method}");
            }
        }
        assert!(!shim.connection.has_reply(held), "{method} is not answered yet");
        gate.open();
        if method == "Delete" {
            let _: DeleteResponse = shim.connection.finish(held).unwrap();
            shim.shutdown();
            continue;
        }
        let _: StartResponse = shim.connection.finish(held).unwrap();
        if exec_id == "e" {
            shim.kill("e", 9).unwrap();
            shim.wait("e").unwrap();
        }
        shim.discard();
    }
}

#[test]
fn trap_07_a_task_that_is_being_created_is_not_found_at_once() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let gate = world.runtime.hold("create");
    let create = shim.connection.begin(TASK, "Create", &shim.create_request(&Stdio::none()));
    gate.reached();
    assert_eq!(shim.state("").unwrap_err().code(), Code::NOT_FOUND);
    assert_eq!(shim.pids().unwrap_err().code(), Code::NOT_FOUND);
    assert_eq!(shim.wait("").unwrap_err().code(), Code::NOT_FOUND);
    assert_eq!(shim.exec("e", &["/bin/true"], &Stdio::none()).unwrap_err().code(), Code::NOT_FOUND);
    assert_eq!(shim.create(&Stdio::none()).unwrap_err().code(), Code::ALREADY_EXISTS, "but its id is taken");
    assert_eq!(shim.connect().unwrap().task_pid, 0);
    assert!(!shim.connection.has_reply(create));
    gate.open();
    let _: CreateTaskResponse = shim.connection.finish(create).unwrap();
    assert_eq!(shim.status(""), Status::CREATED);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn trap_06_a_start_that_takes_long_holds_up_neither_other_starts_nor_exits() {
    let world = FakeWorld::new();
    let (bundle, mut shim) = prepared(&world, "Start", "slow");
    let gate = world.runtime.hold("exec");
    let held = begin(&mut shim.connection, bundle.id(), "Start", "slow");
    gate.reached();
    // The next calls find the gate no more.
    world.runtime.clear("exec");
    for exec in ["a", "b"] {
        shim.exec(exec, &["/bin/sh", "-c", "exit 3"], &Stdio::none()).unwrap();
        shim.start(exec).unwrap();
        assert_eq!(shim.wait_status(exec), 3);
        world.containerd.wait_for(bundle.id(), &format!("exit {exec} 3"));
        shim.delete(exec).unwrap();
    }
    assert!(!shim.connection.has_reply(held));
    assert_eq!(shim.status("slow"), Status::CREATED);
    gate.open();
    let _: StartResponse = shim.connection.finish(held).unwrap();
    shim.kill("slow", 9).unwrap();
    shim.wait("slow").unwrap();
    shim.discard();
}

#[test]
fn trap_08_of_a_hundred_execs_with_the_same_id_exactly_one_wins() {
    let world = FakeWorld::new();
    let (bundle, mut shim) = prepared(&world, "Kill", "");
    let mut connections: Vec<Connection> = (0..10).map(|_| shim.connect_again()).collect();
    // All are in the shim's sockets before the first is looked at.
    let mut bytes: Vec<Vec<u8>> = vec![Vec::new(); connections.len()];
    let mut askers = Vec::new();
    for n in 0..100 {
        let at = n % connections.len();
        let code = format!("exit {n}");
        let process = holdfast_tests::bundle::exec_process(&["/bin/sh", "-c", &code]);
        let request = shim.exec_request("e", &process, &Stdio::none());
        let stream = connections[at].fresh_id();
        let payload = request.write_to_bytes().unwrap();
        bytes[at].extend(Frame::request(stream, TASK, "Exec", payload).to_bytes());
        askers.push((at, stream, n));
    }
    let stopped = Stopped::new(shim.process().pid());
    for (connection, bytes) in connections.iter_mut().zip(&bytes) {
        connection.send(bytes).unwrap();
    }
    drop(stopped);
    let mut winners = Vec::new();
    for (at, stream, n) in askers {
        match connections[at].finish::<Empty>(stream) {
            Ok(_) => winners.push(u32::try_from(n).unwrap()),
            Err(refusal) => assert_eq!(refusal.code(), Code::ALREADY_EXISTS, "{n}: {refusal:?}"),
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
    shim.start("e").unwrap();
    assert_eq!(shim.wait_status("e"), winners[0], "what is started is what the winner asked for");
    let story = world.containerd.wait_for(bundle.id(), &format!("exit e {}", winners[0]));
    assert_eq!(story.iter().filter(|l| *l == "exec-added e").count(), 1, "{story:?}");
    shim.discard();
}

#[test]
fn of_many_creates_of_the_same_id_exactly_one_wins() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let request = shim.create_request(&Stdio::none());
    let creates: Vec<u32> = (0..20).map(|_| shim.connection.begin(TASK, "Create", &request)).collect();
    let replies: Vec<Result<CreateTaskResponse, CallError>> =
        creates.into_iter().map(|id| shim.connection.finish(id)).collect();
    let (won, lost): (Vec<_>, Vec<_>) = replies.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1, "{won:?}");
    assert!(lost.into_iter().all(|r| r.unwrap_err().code() == Code::ALREADY_EXISTS));
    assert_eq!(world.runtime.calls_of("create").len(), 1);
    shim.start("").unwrap();
    shim.discard();
}

#[test]
fn of_many_deletes_one_wins_and_the_others_find_nothing() {
    let world = FakeWorld::new();
    let (bundle, mut shim) = prepared(&world, "Kill", "");
    shim.exec("e", &["/bin/sh", "-c", "exit 3"], &Stdio::none()).unwrap();
    shim.start("e").unwrap();
    assert_eq!(shim.wait_status("e"), 3);
    let mut connections: Vec<Connection> = (0..8).map(|_| shim.connect_again()).collect();
    for (exec_id, status) in [("e", 3), ("", 137)] {
        if exec_id.is_empty() {
            shim.kill("", 9).unwrap();
            shim.wait("").unwrap();
        }
        let deletes: Vec<u32> = connections.iter_mut().map(|c| begin(c, bundle.id(), "Delete", exec_id)).collect();
        let replies: Vec<Result<DeleteResponse, CallError>> =
            connections.iter_mut().zip(deletes).map(|(c, id)| c.finish(id)).collect();
        let won: Vec<u32> = replies.iter().flatten().map(|r| r.exit_status).collect();
        assert_eq!(won, [status], "{exec_id:?}: {replies:?}");
        assert!(replies.into_iter().flat_map(Result::err).all(|e| e.code() == Code::NOT_FOUND));
    }
    assert_eq!(world.runtime.calls_of("delete").len(), 1);
    shim.shutdown();
}

#[test]
fn what_a_client_began_is_completed_when_it_leaves_and_is_done_once() {
    for (method, exec_id, command, _) in CALLS {
        for leaves in [true, false] {
            what_was_begun_is_completed(method, exec_id, command, leaves);
        }
    }
}

/// The client leaves, or its own deadline passes, while the runtime's call runs.
fn what_was_begun_is_completed(method: &str, exec_id: &str, command: &'static str, leaves: bool) {
    let world = FakeWorld::new();
    let (bundle, mut shim) = prepared(&world, method, exec_id);
    let gate = world.runtime.hold(command);
    let calls = world.runtime.calls_of(command).len();
    let mut client = shim.connect_again();
    let first = begin_within(&mut client, bundle.id(), method, exec_id, 1_000_000);
    gate.reached();
    let mut client = (!leaves).then_some(client);
    // Its repetition by an impatient client has its turn afterwards, and finds what the first one left.
    let again = begin(&mut shim.connection, bundle.id(), method, exec_id);
    assert_eq!(shim.connect().unwrap().shim_pid, shim.process().pid());
    assert!(!shim.connection.has_reply(again), "{method}");
    gate.open();
    let again = shim.connection.finish::<Empty>(again);
    if let Some(client) = &mut client {
        client.finish::<Empty>(first).unwrap_or_else(|e| panic!("{method}: {e:?}"));
    }
    let expected = match method {
        "Start" | "Pause" | "Resume" => Some(Code::FAILED_PRECONDITION),
        "Delete" => Some(Code::NOT_FOUND),
        // The signal may have ended it; then there is nobody to signal.
        "Kill" => again.as_ref().err().map(|_| Code::NOT_FOUND),
        _ => None,
    };
    assert_eq!(again.map_err(|e| e.code()).err(), expected, "{method} {exec_id:?}");
    let done = world.runtime.calls_of(command).len() - calls;
    let repeatable = matches!(method, "Kill" | "Update");
    assert!(done == 1 || (repeatable && done == 2), "{method}: {done} calls");
    match method {
        "Start" | "Resume" | "Update" => assert_eq!(shim.status(exec_id), Status::RUNNING, "{method} {exec_id:?}"),
        "Pause" => assert_eq!(shim.status(""), Status::PAUSED),
        "Delete" => {
            assert_eq!(shim.state("").unwrap_err().code(), Code::NOT_FOUND);
            shim.shutdown();
            return;
        }
        _ => {}
    }
    // A frozen one does not end.
    let _ = shim.resume();
    if exec_id == "e" {
        shim.kill("e", 9).unwrap();
        shim.wait("e").unwrap();
    }
    shim.discard();
}

#[test]
fn trap_13_a_delete_that_waits_for_output_holds_up_nobody() {
    let world = FakeWorld::new();
    let first = world.script("echo unread").in_group("pod");
    let second = world.sleeper().in_group("pod");
    let mut a = world.start(&first);
    let stdio = Stdio::output(&world.scene, "init");
    // A reader who is there and does not read.
    let stuck = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&stdio.stdout).unwrap();
    a.run(&stdio);
    assert_eq!(a.wait_status(""), 0);
    let mut b = world.start(&second);
    let delete = begin(&mut a.connection, first.id(), "Delete", "");
    assert_eq!(a.status(""), Status::STOPPED);
    assert_eq!(a.kill("", 9).unwrap_err().code(), Code::NOT_FOUND, "that is clear already");
    b.run(&Stdio::none());
    b.kill("", 9).unwrap();
    assert_eq!(b.wait_status(""), 137);
    b.delete("").unwrap();
    assert!(!a.connection.has_reply(delete));
    drop(stuck);
    let _: DeleteResponse = a.connection.finish(delete).unwrap();
    a.shutdown();
}

#[test]
fn trap_29_a_freeze_that_is_under_way_is_called_so_and_nothing_overlaps_with_it() {
    let world = FakeWorld::new();
    let (bundle, mut shim) = prepared(&world, "Pause", "");
    shim.exec("e", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    shim.start("e").unwrap();
    let gate = world.runtime.hold("pause");
    let pause = begin(&mut shim.connection, bundle.id(), "Pause", "");
    gate.reached();
    assert_eq!(shim.status(""), Status::PAUSING);
    assert_eq!(shim.status("e"), Status::PAUSING, "its execs are frozen with it");
    let waiting = ["Delete", "Kill", "Update"].map(|m| (m, begin(&mut shim.connection, bundle.id(), m, "")));
    assert_eq!(shim.status(""), Status::PAUSING);
    for (method, id) in waiting {
        assert!(!shim.connection.has_reply(id), "{method} waits");
    }
    for command in ["delete", "kill", "update"] {
        assert!(world.runtime.calls_of(command).is_empty(), "{command} is not called beside pause");
    }
    gate.open();
    let _: Empty = shim.connection.finish(pause).unwrap();
    let delete = shim.connection.finish::<DeleteResponse>(waiting[0].1).unwrap_err();
    assert_eq!(delete.code(), Code::FAILED_PRECONDITION, "{delete:?}");
    for (_, id) in &waiting[1..] {
        let _: Empty = shim.connection.finish(*id).unwrap();
    }
    assert_eq!(shim.status(""), Status::PAUSED);
    shim.resume().unwrap();
    // The signal that came while it was frozen reaches it now.
    shim.kill("e", 9).unwrap();
    assert_eq!(shim.wait_status(""), 143);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn what_is_left_of_a_frozen_container_is_thawed_before_the_runtime_deletes_it() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let pid = shim.run(&Stdio::none());
    shim.pause().unwrap();
    let gate = world.runtime.hold("resume");
    process::kill_hard(pid);
    gate.reached();
    assert_eq!(shim.wait_status(""), 137);
    let delete = begin(&mut shim.connection, bundle.id(), "Delete", "");
    assert_eq!(shim.status(""), Status::STOPPED);
    assert!(!shim.connection.has_reply(delete) && world.runtime.calls_of("delete").is_empty());
    gate.open();
    let _: DeleteResponse = shim.connection.finish(delete).unwrap();
    shim.shutdown();
}

/// runc freezes what it kills, and another that deletes at that time says `invalid state transition from stopped to paused`:
/// dockerd gave up then, and the shim stayed.
#[test]
fn trap_27_in_a_shared_pid_namespace_the_exit_is_told_when_the_rest_was_killed_or_that_took_too_long() {
    for hangs in [false, true] {
        let world = FakeWorld::new();
        let bundle = world.sleeper().in_shared_pids();
        let launch = world.launch(&bundle);
        let launch = if hangs { launch.env("HOLDFAST_RUNTIME_TIMEOUT_MS", "400") } else { launch };
        let mut shim = launch.start();
        let gate = world.dying(&mut shim);
        let wait = begin(&mut shim.connection, bundle.id(), "Wait", "");
        if !hangs {
            assert_eq!(shim.status(""), Status::RUNNING);
            assert_eq!(shim.delete("").unwrap_err().code(), Code::FAILED_PRECONDITION);
            assert!(!shim.connection.has_reply(wait) && world.runtime.calls_of("delete").is_empty());
            gate.open();
        }
        let told: WaitResponse = shim.connection.finish(wait).unwrap();
        assert_eq!(told.exit_status, 137);
        shim.delete("").unwrap();
        shim.shutdown();
    }
}

#[test]
fn an_exit_that_is_about_to_be_told_is_told_by_a_shim_that_is_asked_to_end() {
    let world = FakeWorld::new();
    let bundle = world.sleeper().in_shared_pids();
    let mut shim = world.start(&bundle);
    let gate = world.dying(&mut shim);
    shim.process().signal(Signal::SIGTERM);
    until("the shim should serve no longer", || (!shim.socket().exists()).then_some(()));
    gate.open();
    world.containerd.wait_for(bundle.id(), "exit 137");
    shim.process().wait_gone();
}

#[test]
fn trap_44_a_delete_whose_caller_gave_up_is_completed_and_shutdown_works_after_it() {
    let world = FakeWorld::new();
    let (bundle, mut shim) = prepared(&world, "Delete", "");
    let gate = world.runtime.hold("delete");
    let mut caller = shim.connect_again();
    begin(&mut caller, bundle.id(), "Delete", "");
    gate.reached();
    drop(caller);
    shim.request_shutdown();
    assert_eq!(shim.status(""), Status::STOPPED, "a task that is being deleted is a task");
    gate.open();
    world.containerd.wait_for(bundle.id(), "delete 137");
    assert_eq!(shim.delete("").unwrap_err().code(), Code::NOT_FOUND);
    shim.shutdown();
}

#[test]
fn trap_45_a_shutdown_does_not_end_the_shim_while_a_create_is_under_way() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let gate = world.runtime.hold("create");
    let create = shim.connection.begin(TASK, "Create", &shim.create_request(&Stdio::none()));
    gate.reached();
    shim.request_shutdown();
    gate.open();
    let _: CreateTaskResponse = shim.connection.finish(create).unwrap();
    assert_eq!(shim.start("").unwrap().pid, shim.connect().unwrap().task_pid);
    shim.discard();
}

#[test]
fn trap_45_a_create_that_comes_with_a_shutdown_is_either_served_or_refused() {
    for create_first in [true, false] {
        let world = FakeWorld::new();
        let bundle = world.sleeper();
        let mut shim = world.start(&bundle);
        let create_request = shim.create_request(&Stdio::none()).write_to_bytes().unwrap();
        let shutdown_request = ShutdownRequest { id: bundle.id().into(), ..Default::default() };
        let shutdown_request = shutdown_request.write_to_bytes().unwrap();
        let mut requests = [("Create", create_request), ("Shutdown", shutdown_request)];
        if !create_first {
            requests.reverse();
        }
        let mut bytes = Vec::new();
        let streams = requests.map(|(method, payload)| {
            let stream = shim.connection.fresh_id();
            bytes.extend(Frame::request(stream, TASK, method, payload).to_bytes());
            (method, stream)
        });
        shim.connection.send(&bytes).unwrap();
        let stream_of = |name| streams.iter().find(|(method, _)| *method == name).unwrap().1;
        let create = shim.connection.finish::<CreateTaskResponse>(stream_of("Create"));
        if create_first {
            create.unwrap();
            let _: Empty = shim.connection.finish(stream_of("Shutdown")).unwrap();
            shim.start("").unwrap();
            shim.discard();
        } else {
            assert_eq!(create.unwrap_err().code(), Code::UNAVAILABLE);
            assert!(world.runtime.calls_of("create").is_empty());
            shim.process().wait_gone();
        }
    }
}

#[test]
fn trap_46_a_call_of_the_runtime_outlives_threads_clients_and_signals() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let pid = shim.process().pid();
    let gate = world.runtime.hold("create");
    let mut client = shim.connect_again();
    client.begin(TASK, "Create", &shim.create_request(&Stdio::none()));
    gate.reached();
    // The client that asked leaves, and the shim gets signals that it survives.
    drop(client);
    shim.process().signal(Signal::SIGHUP);
    shim.process().signal(Signal::SIGPIPE);
    // The thread for slow reading comes and goes. Were the call bound to a thread's life, it would end with it.
    let mut neighbour = shim.connect_again();
    for _ in 0..3 {
        let id = neighbour.begin(TASK, "Pids", &PidsRequest { id: bundle.id().into(), ..Default::default() });
        let _ = neighbour.finish::<PidsResponse>(id);
        eventually("the thread should end", || match process::threads(pid) {
            Some(1) => Ok(()),
            other => Err(other),
        });
    }
    gate.open();
    eventually("the container should exist", || shim.state(""));
    shim.start("").unwrap();
    shim.discard();
}

#[test]
fn trap_37_a_start_during_the_shutdown_of_the_groups_shim_gets_a_shim_that_serves() {
    let world = FakeWorld::new();
    let first = world.sleeper().in_group("pod");
    let second = world.sleeper().in_group("pod");
    let mut a = world.start(&first);
    a.run(&Stdio::none());
    a.kill("", 9).unwrap();
    a.wait("").unwrap();
    world.containerd.wait_for(first.id(), "exit 137");
    // Its last event keeps it from ending.
    world.containerd.set_mood(Mood::Refuse(Code::UNAVAILABLE));
    a.delete("").unwrap();
    a.request_shutdown();
    let mut b = world.start(&second);
    assert_ne!(b.process().pid(), a.process().pid());
    b.run(&Stdio::none());
    world.containerd.set_mood(Mood::Accept);
    world.containerd.wait_for(first.id(), "delete 137");
    a.process().wait_gone();
    assert!(b.socket().exists(), "the end of the first did not take the second's socket along");
    assert_eq!(b.status(""), Status::RUNNING);
    b.discard();
}

#[test]
fn a_wait_is_answered_by_its_own_deadline_and_the_process_runs_on() {
    let world = FakeWorld::new();
    let (bundle, mut shim) = prepared(&world, "Kill", "");
    let stream = begin_within(&mut shim.connection, bundle.id(), "Wait", "", 50_000_000);
    assert_eq!(shim.connection.finish::<WaitResponse>(stream).unwrap_err().code(), Code::DEADLINE_EXCEEDED);
    let state = StateRequest { id: bundle.id().into(), ..Default::default() };
    let state: StateResponse = shim.connection.call(TASK, "State", &state).unwrap();
    assert!(process::is_alive(state.pid));
    shim.discard();
}

#[test]
fn what_had_ended_before_the_question_is_never_said_to_run() {
    let world = FakeWorld::new();
    for n in 0..10 {
        let bundle = world.sleeper();
        let mut shim = world.start(&bundle);
        let init = shim.run(&Stdio::none());
        let mut connection = shim.connect_again();
        // Both are there when the shim looks.
        let stopped = Stopped::new(shim.process().pid());
        process::kill_hard(init);
        process::until_gone(init);
        let question = StateRequest { id: bundle.id().to_owned(), ..Default::default() };
        let stream = connection.begin(TASK, "State", &question);
        drop(stopped);
        let state: StateResponse = connection.finish(stream).unwrap();
        assert_eq!(state.status.enum_value(), Ok(Status::STOPPED), "question {n}");
        shim.discard();
    }
}
