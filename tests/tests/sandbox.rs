//! Ring 2: the sandbox service, driven by a client that uses nothing else. The scene's check sees that no process and no
//! socket is left. These sandboxes have the machine's own namespaces, so that nothing of it needs root; see
//! `sandbox_real.rs` for those that hold something.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use containerd_shim_protos::api::Empty;
use containerd_shim_protos::sandbox_api::WaitSandboxResponse;
use holdfast_proto::service::SANDBOX;
use holdfast_tests::process::Stopped;
use holdfast_tests::sandbox::{NOT_READY, READY};
use holdfast_tests::wire::{CallError, Code, Frame};
use holdfast_tests::{Bundle, FakeWorld, Freezable, Process, Sandbox, Shim, Stdio, eventually, eventually::holds, sys};
use protobuf::Message;
use serde_json::{Value, json};

/// Of a sandbox that holds nothing.
fn bundle(world: &FakeWorld) -> Bundle {
    world.sleeper().configure(|c| c["linux"]["namespaces"] = json!([]))
}

/// A shim, and its sandbox that nobody has asked for yet.
fn ready(world: &FakeWorld) -> (Bundle, Shim, Sandbox) {
    let bundle = bundle(world);
    let shim = world.start(&bundle);
    let sandbox = Sandbox::of(&shim, &bundle);
    (bundle, shim, sandbox)
}

/// It has answered ShutdownSandbox: the shim goes, and leaves nothing.
#[track_caller]
/// After the shutdown, and the end of the connection that asked for it.
fn assert_gone(world: &FakeWorld, shim: Shim, asker: Sandbox) {
    drop(asker);
    shim.process().wait_gone();
    assert!(!shim.socket().exists());
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
}

fn record(world: &FakeWorld) -> Value {
    let files = world.scene.run_files();
    let path: Vec<PathBuf> = files.iter().map(PathBuf::from).filter(|f| f.ends_with("record.json")).collect();
    let [path] = &path[..] else { panic!("one record, not {files:?}") };
    serde_json::from_slice(&fs::read(world.scene.run_dir().join(path)).unwrap()).unwrap()
}

fn word_for<T>(answer: Result<T, CallError>) -> String {
    match answer {
        Ok(_) => "ok".to_owned(),
        Err(CallError::Status { code, .. }) => format!("{code:?}"),
        Err(CallError::Timeout) => "waits".to_owned(),
        Err(CallError::Closed) => "closed".to_owned(),
    }
}

#[test]
fn a_whole_life() {
    let world = FakeWorld::new();
    let (_bundle, shim, mut sandbox) = ready(&world);
    sandbox.create().unwrap();
    let before = sandbox.status(false).unwrap();
    assert_eq!((before.state.as_str(), before.pid, before.exited_at.is_none()), (NOT_READY, 0, true));
    let started = sandbox.start().unwrap();
    let holder = Process::of(started.pid);
    assert!(holder.is_alive());
    assert_eq!(started.created_at, before.created_at);
    assert!(started.created_at.seconds > 1_700_000_000);
    let platform = sandbox.platform().unwrap().platform.unwrap();
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    assert_eq!((platform.os.as_str(), platform.architecture.as_str()), ("linux", architecture));
    let status = sandbox.status(false).unwrap();
    assert_eq!((status.state.as_str(), status.pid), (READY, started.pid));
    assert!(status.info.is_empty());
    let told = sandbox.status(true).unwrap().info;
    assert_eq!(told["shim_pid"], shim.process().pid().to_string());
    sandbox.ping().unwrap();
    let metrics = sandbox.metrics().unwrap().metrics.unwrap();
    assert!(metrics.data.type_url.starts_with("io.containerd.cgroups."), "{}", metrics.data.type_url);
    assert_eq!(metrics.id, status.sandbox_id);
    let wait = sandbox.begin_wait();
    assert!(!sandbox.connection.has_reply(wait));
    sandbox.stop(0).unwrap();
    let exit: WaitSandboxResponse = sandbox.connection.finish(wait).unwrap();
    assert_eq!(exit.exit_status, 0);
    holder.wait_gone();
    let after = sandbox.status(false).unwrap();
    assert_eq!((after.state.as_str(), after.pid), (NOT_READY, 0));
    assert_eq!(after.exited_at, exit.exited_at);
    assert!(after.exited_at.seconds > 1_700_000_000);
    sandbox.stop(0).unwrap();
    assert_eq!(sandbox.wait().unwrap(), exit);
    sandbox.shutdown().unwrap();
    assert_gone(&world, shim, sandbox);
    assert!(world.runtime.calls_of("create").is_empty(), "an OCI runtime has no part in it");
}

/// `waits`: for the end of the sandbox.
const TABLE: &str = "
         | unknown | created | running | stopped | lost
create   | ok      | AE      | AE      | AE      | AE
start    | FP      | ok      | FP      | FP      | FP
platform | NF      | ok      | ok      | ok      | ok
status   | NF      | ok      | ok      | ok      | ok
ping     | NF      | ok      | ok      | FP      | FP
wait     | NF      | waits   | waits   | ok      | ok
metrics  | NF      | FP      | ok      | FP      | FP
stop     | NF      | ok      | ok      | ok      | ok
shutdown | ok      | ok      | ok      | ok      | ok
";

#[test]
fn every_request_in_every_state_has_its_code() {
    let mut rows = TABLE.lines().filter(|line| !line.trim().is_empty()).map(|line| line.split('|').map(str::trim));
    let states: Vec<&str> = rows.next().unwrap().skip(1).collect();
    let world = FakeWorld::new();
    for mut row in rows {
        let verb = row.next().unwrap();
        for (state, expected) in states.iter().zip(row) {
            let (_bundle, shim, mut sandbox) = ready(&world);
            if *state != "unknown" {
                sandbox.create().unwrap();
            }
            // A handle ends its process when it is dropped.
            let holder = (!["unknown", "created"].contains(state)).then(|| Process::of(sandbox.start().unwrap().pid));
            if let Some(holder) = &holder {
                match *state {
                    "stopped" => drop(sandbox.stop(0).unwrap()),
                    "lost" => {
                        holder.kill();
                        assert_eq!(sandbox.wait().unwrap().exit_status, 137);
                    }
                    _ => {}
                }
            }
            let answer = match verb {
                "create" => word_for(sandbox.create()),
                "start" => word_for(sandbox.start()),
                "platform" => word_for(sandbox.platform()),
                "status" => word_for(sandbox.status(true)),
                "ping" => word_for(sandbox.ping()),
                "metrics" => word_for(sandbox.metrics()),
                "stop" => word_for(sandbox.stop(1)),
                "shutdown" => word_for(sandbox.shutdown()),
                "wait" => {
                    let wait = sandbox.begin_wait();
                    // What comes after it is answered in order.
                    let _ = sandbox.status(false);
                    if sandbox.connection.has_reply(wait) {
                        word_for(sandbox.connection.finish::<WaitSandboxResponse>(wait))
                    } else {
                        "waits".to_owned()
                    }
                }
                other => panic!("no request {other:?}"),
            };
            let expected = match expected {
                "AE" => "ALREADY_EXISTS",
                "FP" => "FAILED_PRECONDITION",
                "NF" => "NOT_FOUND",
                same => same,
            };
            assert_eq!(answer, expected, "{verb} when {state}");
            if verb != "shutdown" {
                sandbox.shutdown().unwrap();
            }
            drop(sandbox);
            shim.process().wait_gone();
        }
    }
}

#[test]
fn a_wait_ends_with_a_holder_that_is_killed() {
    let world = FakeWorld::new();
    let (_bundle, shim, mut sandbox) = ready(&world);
    let holder = sandbox.run();
    let wait = sandbox.begin_wait();
    holder.kill();
    assert_eq!(sandbox.connection.finish::<WaitSandboxResponse>(wait).unwrap().exit_status, 137);
    assert_eq!(sandbox.status(false).unwrap().state, NOT_READY);
    sandbox.shutdown().unwrap();
    assert_gone(&world, shim, sandbox);
}

#[test]
fn a_holder_that_does_not_heed_is_killed_when_its_time_is_over() {
    let world = FakeWorld::new();
    let (_bundle, shim, mut sandbox) = ready(&world);
    let holder = sandbox.run();
    let _stopped = Stopped::new(holder.pid());
    sandbox.stop(1).unwrap();
    assert_eq!(sandbox.wait().unwrap().exit_status, 137);
    sandbox.shutdown().unwrap();
    assert_gone(&world, shim, sandbox);
}

#[test]
fn a_shutdown_ends_what_runs_and_answers_who_waits() {
    let world = FakeWorld::new();
    let (_bundle, shim, mut sandbox) = ready(&world);
    let holder = sandbox.run();
    let mut other = shim.connect_again();
    let request =
        containerd_shim_protos::sandbox_api::WaitSandboxRequest { sandbox_id: shim.id().into(), ..Default::default() };
    let wait = other.begin(SANDBOX, "WaitSandbox", &request);
    let _: Empty = other.call("containerd.task.v2.Task", "Connect", &Empty::default()).unwrap();
    sandbox.shutdown().unwrap();
    assert_eq!(other.finish::<WaitSandboxResponse>(wait).unwrap().exit_status, 0);
    holder.wait_gone();
    assert_gone(&world, shim, sandbox);
}

/// Clients in Go that find an answer and the end of the connection in one moment may see the end alone.
#[test]
fn the_connection_that_asked_for_the_shutdown_is_the_clients_to_end() {
    let world = FakeWorld::new();
    let (_bundle, shim, mut sandbox) = ready(&world);
    sandbox.shutdown().unwrap();
    assert_eq!(sandbox.ping().unwrap_err().code(), Code::NOT_FOUND);
    assert_gone(&world, shim, sandbox);
}

#[test]
fn what_cannot_be_made_is_refused_and_leaves_a_shim_that_can_be_shut_down() {
    let world = FakeWorld::new();
    let bundle = world.sleeper().configure(|c| c["linux"]["namespaces"] = json!([{ "type": "user" }]));
    let shim = world.start(&bundle);
    let mut sandbox = Sandbox::of(&shim, &bundle);
    let refusal = sandbox.create().unwrap_err();
    assert_eq!(refusal.code(), Code::UNIMPLEMENTED);
    assert!(refusal.message().contains("user namespace"), "{refusal:?}");
    assert_eq!(sandbox.create_with(Vec::new(), "relative").unwrap_err().code(), Code::UNIMPLEMENTED);
    // As containerd's controller does then.
    sandbox.shutdown().unwrap();
    assert_gone(&world, shim, sandbox);
}

#[test]
fn a_namespace_that_is_not_there_is_named_and_the_start_can_be_repeated() {
    let world = FakeWorld::new();
    let (_bundle, shim, mut sandbox) = ready(&world);
    let netns = world.scene.path("netns");
    sandbox.create_with(Vec::new(), netns.to_str().unwrap()).unwrap();
    for _ in 0..2 {
        let refusal = sandbox.start().unwrap_err();
        assert!(refusal.message().contains(netns.to_str().unwrap()), "{refusal:?}");
    }
    assert_eq!(sandbox.status(false).unwrap().pid, 0);
    sandbox.shutdown().unwrap();
    assert_gone(&world, shim, sandbox);
}

#[test]
fn a_pods_containers_run_in_the_same_shim_and_keep_it_until_the_last_is_deleted() {
    let world = FakeWorld::new();
    let (bundle, shim, mut sandbox) = ready(&world);
    let holder = sandbox.run();
    let member = world.sleeper().in_group(bundle.id());
    let mut task = world.launch(&member).start();
    assert_eq!(task.address(), shim.address());
    assert_eq!(task.connect().unwrap().shim_pid, shim.process().pid());
    task.run(&Stdio::none());
    // containerd asks it after each Delete, and it is meant for shims without a sandbox.
    task.request_shutdown();
    sandbox.stop(0).unwrap();
    holder.wait_gone();
    assert_eq!(task.state("").unwrap().pid, task.pids().unwrap().processes[0].pid, "it goes on");
    sandbox.shutdown().unwrap();
    assert!(shim.process().is_alive());
    task.kill("", 9).unwrap();
    assert_eq!(task.wait_status(""), 137);
    task.delete("").unwrap();
    shim.process().wait_gone();
    world.launch(&member).delete();
    world.launch(&bundle).delete();
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
}

#[test]
fn a_shutdown_of_the_tasks_leaves_the_sandbox() {
    let world = FakeWorld::new();
    let (_bundle, mut shim, mut sandbox) = ready(&world);
    let _holder = sandbox.run();
    shim.request_shutdown();
    sandbox.ping().unwrap();
    assert!(shim.socket().exists());
    sandbox.shutdown().unwrap();
    assert_gone(&world, shim, sandbox);
}

#[test]
fn one_shim_makes_one_sandbox_and_ids_are_shared_with_tasks() {
    let world = FakeWorld::new();
    let (bundle, mut shim, mut sandbox) = ready(&world);
    let _holder = sandbox.run();
    let mut other = Sandbox::of(&shim, &bundle).with_id("other");
    assert_eq!(other.create().unwrap_err().code(), Code::ALREADY_EXISTS);
    assert_eq!(other.shutdown().unwrap_err().code(), Code::NOT_FOUND);
    assert_eq!(shim.create(&Stdio::none()).unwrap_err().code(), Code::ALREADY_EXISTS);
    assert_eq!(shim.state("").unwrap_err().code(), Code::NOT_FOUND);
    sandbox.shutdown().unwrap();
    assert_gone(&world, shim, sandbox);
}

#[test]
fn the_record_says_that_it_is_a_sandbox_and_how_it_is() {
    let world = FakeWorld::new();
    let (bundle, shim, mut sandbox) = ready(&world);
    sandbox.create().unwrap();
    assert_eq!(
        (&record(&world)["sandbox"], &record(&world)["processes"][0]["state"]),
        (&json!(true), &json!("created"))
    );
    let holder = Process::of(sandbox.start().unwrap().pid);
    let running = record(&world);
    assert_eq!((&running["processes"][0]["pid"], &running["id"]), (&json!(holder.pid()), &json!(bundle.id())));
    sandbox.stop(0).unwrap();
    assert_eq!(record(&world)["processes"][0]["exit"]["status"], 0);
    sandbox.shutdown().unwrap();
    assert_gone(&world, shim, sandbox);
}

#[test]
fn after_the_shim_was_killed_delete_ends_the_holder_and_nobody_else() {
    let world = FakeWorld::new();
    for state in ["created", "running", "stopped"] {
        let (bundle, shim, mut sandbox) = ready(&world);
        sandbox.create().unwrap();
        let holder = (state != "created").then(|| Process::of(sandbox.start().unwrap().pid));
        if state == "stopped" {
            sandbox.stop(0).unwrap();
        }
        shim.process().kill();
        if state == "running" {
            assert!(holder.as_ref().unwrap().is_alive(), "until somebody decides");
        }
        let output = world.launch(&bundle).run_delete();
        let reply = holdfast_tests::shim::delete_response(&output);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{state}");
        assert_eq!(reply.exit_status, if state == "stopped" { 0 } else { 137 }, "{state}");
        if let Some(holder) = holder {
            holder.wait_gone();
        }
        world.launch(&bundle).delete();
        assert!(world.runtime.calls_of("delete").is_empty(), "no OCI runtime knows of it");
        assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new(), "{state}");
    }
}

#[test]
fn delete_lets_a_shim_that_lives_shut_it_down() {
    let world = FakeWorld::new();
    let (bundle, shim, mut sandbox) = ready(&world);
    let holder = sandbox.run();
    world.launch(&bundle).delete();
    holder.wait_gone();
    assert_gone(&world, shim, sandbox);
}

#[test]
fn delete_after_a_shutdown_changes_nothing() {
    let world = FakeWorld::new();
    let (bundle, shim, mut sandbox) = ready(&world);
    let _holder = sandbox.run();
    sandbox.shutdown().unwrap();
    shim.process().wait_gone();
    assert_eq!(world.launch(&bundle).delete().exit_status, 0);
    assert_gone(&world, shim, sandbox);
}

#[test]
fn a_sandbox_without_a_specification_can_be_created() {
    let world = FakeWorld::new();
    let bundle = bundle(&world);
    fs::remove_file(bundle.path("config.json")).unwrap();
    let shim = world.start(&bundle);
    let mut sandbox = Sandbox::of(&shim, &bundle);
    sandbox.create().unwrap();
    sandbox.stop(0).unwrap();
    sandbox.shutdown().unwrap();
    assert_gone(&world, shim, sandbox);
}

#[test]
fn a_freeze_in_any_state_goes_unnoticed() {
    let world = FakeWorld::new();
    let bundle = bundle(&world);
    let (mut host, shim) = Freezable::start(&world, &bundle);
    let mut sandbox = Sandbox::of(&shim, &bundle);
    host.freeze_and_thaw();
    sandbox.create().unwrap();
    host.freeze_and_thaw();
    assert_eq!(sandbox.create().unwrap_err().code(), Code::ALREADY_EXISTS);
    // At any byte of a request.
    let request = containerd_shim_protos::sandbox_api::StartSandboxRequest {
        sandbox_id: bundle.id().into(),
        ..Default::default()
    };
    let stream = sandbox.connection.fresh_id();
    let frame = Frame::request(stream, SANDBOX, "StartSandbox", request.write_to_bytes().unwrap()).to_bytes();
    for byte in &frame {
        sandbox.connection.send(&[*byte]).unwrap();
        let socket = sandbox.connection.socket();
        eventually("the shim should read", || holds(sys::all_was_read(&*socket).unwrap()));
        host.freeze_and_thaw();
    }
    let started: containerd_shim_protos::sandbox_api::StartSandboxResponse = sandbox.connection.finish(stream).unwrap();
    let waits = [sandbox.begin_wait(), sandbox.begin_wait()];
    host.freeze_and_thaw();
    let status = sandbox.status(true).unwrap();
    assert_eq!((status.state.as_str(), status.pid, status.created_at), (READY, started.pid, started.created_at));
    assert_eq!(record(&world)["processes"][0]["pid"], started.pid);
    // While it is being stopped, and does not heed it.
    let holder = Process::of(started.pid);
    let stopped = Stopped::new(holder.pid());
    let request = containerd_shim_protos::sandbox_api::StopSandboxRequest {
        sandbox_id: bundle.id().into(),
        timeout_secs: 600,
        ..Default::default()
    };
    let stop = sandbox.connection.begin(SANDBOX, "StopSandbox", &request);
    sandbox.ping().unwrap();
    host.freeze_and_thaw();
    assert!(!sandbox.connection.has_reply(stop));
    drop(stopped);
    sandbox.connection.finish::<Empty>(stop).unwrap();
    for wait in waits {
        assert_eq!(sandbox.connection.finish::<WaitSandboxResponse>(wait).unwrap().exit_status, 0);
    }
    host.freeze_and_thaw();
    assert_eq!(sandbox.wait().unwrap().exit_status, 0);
    sandbox.shutdown().unwrap();
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
}

#[test]
fn an_end_during_a_freeze_is_told_after_it() {
    let world = FakeWorld::new();
    let bundle = bundle(&world);
    let (mut host, shim) = Freezable::start(&world, &bundle);
    let mut sandbox = Sandbox::of(&shim, &bundle);
    let holder = sandbox.run();
    let wait = sandbox.begin_wait();
    sandbox.ping().unwrap();
    host.freeze();
    assert!(host.state().contains(bundle.id()));
    holder.signal(nix::sys::signal::Signal::SIGKILL);
    host.thaw();
    assert_eq!(sandbox.connection.finish::<WaitSandboxResponse>(wait).unwrap().exit_status, 137);
    sandbox.shutdown().unwrap();
}

/// As when containerd gave up on its shim while that was stopped.
#[test]
fn a_shim_whose_sandbox_has_ended_goes_once_the_bundle_is_gone() {
    let world = FakeWorld::new();
    let (bundle, shim, mut sandbox) = ready(&world);
    let holder = sandbox.run();
    fs::remove_dir_all(bundle.dir()).unwrap();
    sandbox.ping().unwrap();
    assert!(shim.process().is_alive(), "what runs is looked after");
    holder.kill();
    shim.process().wait_gone();
    assert!(!shim.socket().exists());
}
