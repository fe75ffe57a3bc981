//! Ring 2: the life of a container, from `start` to Shutdown. Read this one first.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use containerd_shim_protos::api::{Empty, StartRequest};
use holdfast_tests::fake_runtime::Behaviour;
use holdfast_tests::shim::{NAMESPACE, Status, TASK};
use holdfast_tests::wire::{CallError, Code};
use holdfast_tests::{FakeWorld, Process, Stdio, eventually, process};
use nix::sys::signal::Signal;
use serde_json::json;

/// A refusal for the state that the container is in; the reference shim gives the less telling code.
#[track_caller]
fn assert_wrong_state<T: std::fmt::Debug>(result: Result<T, CallError>) {
    let code = result.unwrap_err().code();
    assert!(matches!(code, Code::FAILED_PRECONDITION | Code::UNKNOWN), "{code:?}");
}

#[test]
fn a_container_is_created_started_killed_deleted() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);

    let created = shim.create(&Stdio::none()).unwrap();
    assert!(process::is_alive(created.pid));
    assert_eq!(shim.status(""), Status::CREATED);

    assert_eq!(shim.start("").unwrap().pid, created.pid);
    let state = shim.state("").unwrap();
    assert_eq!(state.status.enum_value(), Ok(Status::RUNNING));
    assert_eq!((state.id.as_str(), state.pid), (bundle.id(), created.pid));
    assert_eq!(state.bundle, bundle.dir().to_str().unwrap());

    shim.kill("", libc::SIGTERM).unwrap();
    let waited = shim.wait("").unwrap();
    assert_eq!(waited.exit_status, 143);
    assert!(waited.exited_at.seconds > 0, "an exit has a time");
    assert_eq!(shim.status(""), Status::STOPPED);

    let deleted = shim.delete("").unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (created.pid, 143));
    assert_eq!(deleted.exited_at, waited.exited_at);
    assert_eq!(shim.state("").unwrap_err().code(), Code::NOT_FOUND);

    let story = world.containerd.wait_for(bundle.id(), "delete 143");
    assert_eq!(story, ["create", "start", "exit 143", "delete 143"]);
    assert!(world.containerd.events().iter().all(|e| e.namespace == NAMESPACE));
    shim.shutdown();
}

#[test]
fn state_gives_back_what_create_was_given() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let _readers = stdio.readers();
    shim.run(&stdio);
    let state = shim.state("").unwrap();
    assert_eq!((state.stdin, state.stdout, state.stderr), (stdio.stdin, stdio.stdout, stdio.stderr));
    assert!(!state.terminal);
    shim.discard();
}

#[test]
fn an_unknown_id_is_not_found() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let refusals = [
        shim.state("").map(drop),
        shim.start("").map(drop),
        shim.kill("", 9).map(drop),
        shim.wait("").map(drop),
        shim.delete("").map(drop),
        shim.pids().map(drop),
        shim.pause().map(drop),
        shim.resume().map(drop),
        shim.stats().map(drop),
        shim.update(&json!({})).map(drop),
        shim.resize("", 80, 25).map(drop),
        shim.close_stdin("").map(drop),
        shim.exec("e", &["/bin/true"], &Stdio::none()).map(drop),
    ];
    for (n, refusal) in refusals.into_iter().enumerate() {
        assert_eq!(refusal.unwrap_err().code(), Code::NOT_FOUND, "call {n}");
    }
    // Connect alone never fails: it says who the shim is.
    let reply = shim.connect().unwrap();
    assert_eq!((reply.shim_pid, reply.task_pid), (shim.process().pid(), 0));
    shim.shutdown();
}

#[test]
fn connect_names_shim_and_init() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let pid = shim.run(&Stdio::none());
    let reply = shim.connect().unwrap();
    assert_eq!((reply.shim_pid, reply.task_pid), (shim.process().pid(), pid));
    shim.discard();
}

#[test]
fn a_second_create_is_refused_and_harms_nothing() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let pid = shim.run(&Stdio::none());
    assert_eq!(shim.create(&Stdio::none()).unwrap_err().code(), Code::ALREADY_EXISTS);
    assert_eq!(shim.status(""), Status::RUNNING);
    assert!(process::is_alive(pid));
    shim.discard();
}

#[test]
fn what_the_state_forbids_is_refused() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.create(&Stdio::none()).unwrap();
    assert_wrong_state(shim.pause());
    assert_wrong_state(shim.resume());
    shim.start("").unwrap();
    assert_wrong_state(shim.start(""));
    assert_wrong_state(shim.resume());
    assert_wrong_state(shim.delete(""));
    assert_eq!(shim.status(""), Status::RUNNING, "a refusal changes nothing");

    shim.kill("", 9).unwrap();
    shim.wait("").unwrap();
    assert_wrong_state(shim.start(""));
    assert_wrong_state(shim.pause());
    assert_eq!(shim.kill("", 9).unwrap_err().code(), Code::NOT_FOUND, "clients take this for success");
    shim.delete("").unwrap();
    assert_eq!(shim.delete("").unwrap_err().code(), Code::NOT_FOUND, "a retried Delete relies on it");
    shim.shutdown();
}

#[test]
fn all_waiters_get_the_status() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let mut other = world.launch(&bundle).attach(shim.address());
    let early: Vec<_> = (0..10).map(|_| shim.begin_wait("")).collect();
    let elsewhere = other.begin_wait("");
    // An answer on the same connection shows that the Waits were received, and that they hold nothing up.
    assert_eq!(shim.status(""), Status::RUNNING);
    assert!(early.iter().all(|id| !shim.connection.has_reply(*id)));
    shim.kill("", 9).unwrap();
    for id in early {
        let reply: containerd_shim_protos::api::WaitResponse = shim.connection.finish(id).unwrap();
        assert_eq!(reply.exit_status, 137);
    }
    let reply: containerd_shim_protos::api::WaitResponse = other.connection.finish(elsewhere).unwrap();
    assert_eq!(reply.exit_status, 137);
    assert_eq!(shim.wait_status(""), 137, "also to who asks late");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn deleting_what_was_never_started_completes_its_waiters() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let pid = shim.create(&Stdio::none()).unwrap().pid;
    let waiter = shim.begin_wait("");
    shim.delete("").unwrap();
    let reply: containerd_shim_protos::api::WaitResponse = shim.connection.finish(waiter).unwrap();
    assert_eq!(reply.exit_status, 137);
    process::until_gone(pid);
    let story = world.containerd.wait_for(bundle.id(), "delete 137");
    assert_eq!(story, ["create", "exit 137", "delete 137"]);
    shim.shutdown();
}

#[test]
fn pause_and_resume() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.pause().unwrap();
    assert_eq!(shim.status(""), Status::PAUSED);
    assert_wrong_state(shim.pause());
    shim.resume().unwrap();
    assert_eq!(shim.status(""), Status::RUNNING);
    let story = world.containerd.wait_for(bundle.id(), "resumed");
    assert_eq!(story, ["create", "start", "paused", "resumed"]);
    shim.discard();
}

#[test]
fn trap_28_a_paused_container_that_dies_is_thawed_and_stopped() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let init = Process::of(shim.run(&Stdio::none()));
    shim.exec("e", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    shim.start("e").unwrap();
    shim.pause().unwrap();
    init.kill();
    // What is left of it could neither end nor be deleted while it is frozen.
    eventually("it should be thawed", || world.runtime.calls_of("resume").pop().ok_or("no call"));
    shim.kill("e", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    assert_eq!(shim.status(""), Status::STOPPED);
    assert_wrong_state(shim.resume());
    let story = world.containerd.wait_for(bundle.id(), "exit 137");
    assert_eq!(story[story.len() - 3..], ["paused", "exit e 137", "exit 137"]);
    assert_eq!(shim.delete("").unwrap().exit_status, 137);
    shim.shutdown();
}

#[test]
fn update_hands_the_resources_to_the_runtime() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let resources = json!({ "pids": { "limit": 7 } });
    shim.update(&resources).unwrap();
    let path = world.scene.path(format!("oci/{NAMESPACE}/{}/update.json", bundle.id()));
    let seen: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(seen["pids"]["limit"], 7);
    shim.discard();
}

#[test]
fn pids_names_init_also_after_it_stopped() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let pid = shim.run(&Stdio::none());
    assert!(shim.pids().unwrap().processes.iter().any(|p| p.pid == pid));
    shim.kill("", 9).unwrap();
    shim.wait("").unwrap();
    // containerd 1.7 and later take an empty answer for a leaked shim and lose the exit status.
    let pids: Vec<u32> = shim.pids().unwrap().processes.iter().map(|p| p.pid).collect();
    assert_eq!(pids, [pid]);
    shim.delete("").unwrap();
    assert_eq!(shim.pids().unwrap_err().code(), Code::NOT_FOUND);
    shim.shutdown();
}

#[test]
fn shutdown_does_nothing_while_there_is_a_container() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.request_shutdown();
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.kill("", 9).unwrap();
    shim.wait("").unwrap();
    shim.request_shutdown();
    assert_eq!(shim.status(""), Status::STOPPED, "a stopped container counts until it is deleted");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_group_shares_one_shim() {
    let world = FakeWorld::new();
    let first = world.sleeper().in_group("pod");
    let second = world.sleeper().in_group("pod");
    let mut a = world.start(&first);
    a.run(&Stdio::none());
    let mut b = world.start(&second);
    assert_eq!(b.address(), a.address());
    assert_eq!(b.process().pid(), a.process().pid());
    let b_pid = b.run(&Stdio::none());

    a.kill("", 9).unwrap();
    a.wait("").unwrap();
    a.delete("").unwrap();
    a.request_shutdown();
    assert_eq!(b.status(""), Status::RUNNING, "the other container keeps the shim");
    assert!(process::is_alive(b_pid));
    for bundle in [&first, &second] {
        assert_eq!(fs::read_to_string(bundle.path("address")).unwrap(), b.address());
    }
    b.discard();
}

#[test]
fn trap_07_state_answers_while_the_runtime_is_slow() {
    let world = FakeWorld::new();
    let first = world.sleeper().in_group("pod");
    let second = world.sleeper().in_group("pod");
    let mut a = world.start(&first);
    a.run(&Stdio::none());
    let mut b = world.start(&second);
    let gate = world.scene.path("gate");
    world.runtime.on("create", Behaviour::WaitFor(gate.clone()));
    let request = b.create_request(&Stdio::none());
    let create = b.connection.begin(TASK, "Create", &request);
    eventually("the runtime should be asked", || {
        let calls = world.runtime.calls_of("create").len();
        if calls == 2 { Ok(()) } else { Err(calls) }
    });

    let mut observer = world.launch(&second).attach(a.address());
    assert_eq!(observer.state("").unwrap_err().code(), Code::NOT_FOUND, "not there until Create has answered");
    assert_eq!(a.status(""), Status::RUNNING);
    assert!(!b.connection.has_reply(create));

    fs::write(gate, "").unwrap();
    let _: containerd_shim_protos::api::CreateTaskResponse = b.connection.finish(create).unwrap();
    assert_eq!(b.status(""), Status::CREATED);
    b.delete("").unwrap();
    a.discard();
}

/// containerd asks every shim when it restarts, and gives up the task of one that does not answer in time.
#[test]
fn trap_42_pids_answers_while_a_call_of_the_runtime_runs() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let init = shim.create(&Stdio::none()).unwrap().pid;
    // As a daemon that restarts does: on a connection of its own.
    let mut observer = world.launch(&bundle).attach(shim.address());
    // The id is the first field of them all, and the only one that these calls need.
    let request = StartRequest { id: bundle.id().into(), ..StartRequest::default() };
    for (command, method) in [("start", "Start"), ("pause", "Pause"), ("resume", "Resume"), ("delete", "Delete")] {
        if command == "delete" {
            shim.kill("", 9).unwrap();
            assert_eq!(shim.wait_status(""), 137);
        }
        let gate = world.scene.path(format!("{command}.gate"));
        world.runtime.on(command, Behaviour::WaitFor(gate.clone()));
        let call = shim.connection.begin(TASK, method, &request);
        eventually("the runtime should be asked", || world.runtime.calls_of(command).pop().ok_or(command));
        let pids: Vec<u32> = observer.pids().unwrap().processes.iter().map(|p| p.pid).collect();
        assert!(pids.contains(&init), "{command}: {pids:?}");
        assert!(!shim.connection.has_reply(call), "{command}");
        fs::write(gate, "").unwrap();
        let _: Empty = shim.connection.finish(call).unwrap();
    }
    shim.shutdown();
}

#[test]
fn a_create_whose_client_left_is_completed() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let gate = world.scene.path("gate");
    world.runtime.on("create", Behaviour::WaitFor(gate.clone()));
    let mut other = shim.connect_again();
    other.begin(TASK, "Create", &shim.create_request(&Stdio::none()));
    eventually("the runtime should be asked", || world.runtime.calls_of("create").pop().ok_or("no call"));
    drop(other);
    fs::write(gate, "").unwrap();
    eventually("the container should exist", || shim.state(""));
    assert_eq!(shim.start("").unwrap().pid, shim.connect().unwrap().task_pid);
    shim.discard();
}

/// containerd 1.7 and 2.1, when they restart while it is being created, do not serve before they have the answer.
#[test]
fn a_delete_does_not_wait_for_a_create_and_undoes_it() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let gate = world.scene.path("gate");
    world.runtime.on("create", Behaviour::WaitFor(gate.clone()));
    let request = shim.create_request(&Stdio::none());
    let create = shim.connection.begin(TASK, "Create", &request);
    eventually("the runtime should be asked", || world.runtime.calls_of("create").pop().ok_or("no call"));
    assert_eq!(shim.delete("").unwrap_err().code(), Code::NOT_FOUND);
    shim.request_shutdown();
    assert!(!shim.connection.has_reply(create));
    fs::write(gate, "").unwrap();
    let refusal = shim.connection.finish::<Empty>(create).unwrap_err();
    assert!(refusal.message().contains("deleted while it was being created"), "{refusal:?}");
    shim.process().wait_gone();
    assert_eq!(world.runtime.calls_of("delete").len(), 1);
    let story = world.containerd.story(bundle.id());
    assert!(story.is_empty(), "nobody heard of it: {story:?}");
}

#[test]
fn trap_47_no_call_of_the_runtime_sees_notify_socket() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.launch(&bundle).env("NOTIFY_SOCKET", "/nonexistent").start();
    shim.run(&Stdio::none());
    shim.exec("e", &["/bin/true"], &Stdio::none()).unwrap();
    shim.start("e").unwrap();
    shim.wait("e").unwrap();
    shim.pause().unwrap();
    shim.resume().unwrap();
    shim.process().kill();
    world.launch(&bundle).env("NOTIFY_SOCKET", "/nonexistent").delete();
    let calls = world.runtime.calls();
    for command in ["create", "start", "exec", "pause", "resume", "delete"] {
        assert!(!world.runtime.calls_of(command).is_empty(), "{command} was called");
    }
    // runc would wait on it, and hang the unit that set it.
    assert!(calls.iter().all(|c| !c.had_notify_socket), "{calls:?}");
}

#[test]
fn trap_05_a_create_whose_process_dies_meanwhile_is_answered_and_everything_after_it() {
    let world = FakeWorld::new();
    // The runtime's `create` returns only after the process has ended.
    world.runtime.on("create", Behaviour::OutlastProcess);
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let create = shim.connection.begin(TASK, "Create", &shim.create_request(&Stdio::none()));
    let pid: u32 =
        eventually("the process should be made", || fs::read_to_string(bundle.path("init.pid"))).parse().unwrap();
    Process::of(pid).kill();
    let created: containerd_shim_protos::api::CreateTaskResponse = shim.connection.finish(create).unwrap();
    assert_eq!(created.pid, pid);
    assert_eq!(shim.wait_status(""), 137);
    assert_eq!(shim.status(""), Status::STOPPED);
    assert_eq!(world.containerd.wait_for(bundle.id(), "exit 137"), ["create", "exit 137"]);
    assert_wrong_state(shim.start(""));
    assert_eq!(shim.delete("").unwrap().exit_status, 137);
    shim.shutdown();
}

#[test]
fn trap_26_a_signal_to_a_stopped_container_is_an_answer_and_changes_nothing() {
    let world = FakeWorld::new();
    let bundle = world.script("exit 7");
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    assert_eq!(shim.wait_status(""), 7);
    for signal in [0, libc::SIGTERM, libc::SIGKILL] {
        let refusal = shim.kill("", signal).unwrap_err();
        // The client library takes this code for success, and looks for the words.
        assert_eq!(refusal.code(), Code::NOT_FOUND);
        assert!(refusal.message().contains("process already finished"), "{refusal:?}");
    }
    assert_eq!(shim.status(""), Status::STOPPED);
    assert_eq!(shim.delete("").unwrap().exit_status, 7);
    shim.shutdown();
}

#[test]
fn the_runtime_is_called_as_runc_is() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.kill("", 15).unwrap();
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    shim.shutdown();

    let calls = world.runtime.calls();
    let root = world.scene.path("oci").join(NAMESPACE);
    for call in &calls {
        let text = call.args.join(" ");
        assert!(text.contains(&format!("--root {}", root.display())), "{text}");
        assert!(text.contains("--log-format json"), "{text}");
    }
    let create = world.runtime.calls_of("create").pop().unwrap().args;
    assert_eq!(create.last().unwrap(), bundle.id());
    assert!(create.join(" ").contains(&format!("--bundle {}", bundle.dir().display())));
    assert!(create.contains(&"--pid-file".into()));
    assert!(!create.contains(&"--detach".into()));
    let kill = world.runtime.calls_of("kill").pop().unwrap().args;
    assert_eq!(kill[kill.len() - 2..], [bundle.id(), "15"]);
    let delete = world.runtime.calls_of("delete").pop().unwrap().args;
    assert!(!delete.contains(&"--force".into()), "{delete:?}");
}

#[test]
fn the_bundle_holds_what_the_delete_command_needs() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let pid = shim.run(&Stdio::none());
    let read = |name| fs::read_to_string(bundle.path(name)).unwrap();
    assert_eq!(read("init.pid"), pid.to_string());
    assert_eq!(read("address"), shim.address());
    assert_eq!(read("runtime"), world.runtime.program().to_str().unwrap());
    let options: serde_json::Value = serde_json::from_str(&read("options.json")).unwrap();
    assert_eq!(options["binary_name"], world.runtime.program().to_str().unwrap());
    assert_eq!(options["root"], world.scene.path("oci").to_str().unwrap());
    shim.discard();
}

#[test]
fn trap_41_sigterm_ends_the_shim_and_not_the_container() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let container = Process::of(shim.run(&Stdio::none()));
    shim.process().signal(Signal::SIGTERM);
    shim.process().wait_gone();
    assert!(!shim.socket().exists());
    assert!(container.is_alive());
    world.launch(&bundle).delete();
    container.wait_gone();
}

#[test]
fn a_hangup_or_a_broken_pipe_does_not_end_the_shim() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.process().signal(Signal::SIGHUP);
    shim.process().signal(Signal::SIGPIPE);
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.discard();
}

#[test]
fn a_process_inherits_no_blocked_signals() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let init = shim.run(&Stdio::none());
    shim.exec("e", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    let exec = shim.start("e").unwrap().pid;
    for pid in [init, exec] {
        // What the shim blocks for itself, a runtime would pass on, and the process could not be terminated.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name| status.lines().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(field("SigBlk:"), "0000000000000000");
    }
    shim.kill("e", 9).unwrap();
    shim.wait("e").unwrap();
    shim.discard();
}

#[test]
fn trap_50_a_shim_at_rest_has_one_thread() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let _readers = stdio.readers();
    shim.run(&stdio);
    let pid = shim.process().pid();
    eventually("threads should end when they are idle", || match process::threads(pid) {
        Some(1) => Ok(()),
        other => Err(other),
    });
    shim.discard();
}

#[test]
fn trap_50_what_work_needed_is_given_back_at_rest() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let pid = shim.process().pid();
    // Kept by mistake, sixty of these would show.
    let bulk = "x".repeat(4096);
    let mut burst = |name: &str| {
        let names: Vec<String> = (0..60).map(|n| format!("{name}{n}")).collect();
        for name in &names {
            shim.exec(name, &["/bin/true", &bulk], &Stdio::none()).unwrap();
            shim.start(name).unwrap();
        }
        for name in &names {
            shim.wait(name).unwrap();
            shim.delete(name).unwrap();
        }
        process::memory(pid).unwrap()
    };
    // In KiB, here and below. The first fills what the shim keeps anyway.
    let busy = burst("first");
    let at_rest = eventually("it should give back what it needed", || {
        let now = process::memory(pid).unwrap();
        if now.rss + 256 <= busy.rss && process::threads(pid) == Some(1) { Ok(now) } else { Err((busy.rss, now.rss)) }
    });
    burst("a");
    burst("b");
    eventually("it should be as small as before", || {
        let now = process::memory(pid).unwrap();
        let small = now.anonymous <= at_rest.anonymous + 128;
        if small { Ok(()) } else { Err((at_rest.anonymous, now.anonymous)) }
    });
    shim.discard();
}

#[test]
fn execs_leave_no_descriptor_behind() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let _readers = stdio.readers();
    shim.run(&stdio);
    let pid = shim.process().pid();
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let mut exec = |name: &str| {
        let stdio = Stdio::output(&world.scene, name);
        let (stdout, _stderr) = stdio.readers();
        shim.exec(name, &["/bin/echo", "hello"], &stdio).unwrap();
        shim.start(name).unwrap();
        assert_eq!(shim.wait_status(name), 0);
        assert_eq!(stdout.text(), "hello\n");
        shim.delete(name).unwrap();
    };
    // The first may open what the shim keeps.
    exec("first");
    let before = descriptors();
    for n in 0..20 {
        exec(&format!("e{n}"));
    }
    eventually("the shim should hold no more descriptors than before", || {
        let now = descriptors();
        if now <= before { Ok(()) } else { Err(format!("{before} before, {now} now")) }
    });
    shim.discard();
}

#[test]
fn a_reply_is_not_late_because_a_wait_is_pending() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let wait = shim.begin_wait("");
    let request = containerd_shim_protos::api::StateRequest { id: shim.id().into(), ..Default::default() };
    let state = shim.connection.begin(TASK, "State", &request);
    // containerd gives State two seconds.
    let reply: Result<containerd_shim_protos::api::StateResponse, _> =
        shim.connection.finish_within(state, Duration::from_secs(2));
    assert!(reply.is_ok());
    assert!(!shim.connection.has_reply(wait));
    shim.discard();
}
