//! Ring 2: what is announced, in which order, and that nothing of it is lost.
#![allow(clippy::unwrap_used)]

use std::time::SystemTime;
use std::{fs, process};

use holdfast_tests::fake_containerd::Mood;
use holdfast_tests::fake_runtime::Behaviour;
use holdfast_tests::shim::Status;
use holdfast_tests::wire::Code;
use holdfast_tests::{FakeWorld, Process, Stdio, eventually, programs, until};

#[test]
fn trap_01_exit_before_start_returns_is_announced_after_start() {
    let world = FakeWorld::new();
    // The runtime's `start` returns only after the process has ended and was reaped or is a zombie.
    world.runtime.on("start", Behaviour::OutlastProcess);
    let bundle = world.script("exit 7");
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    assert_eq!(shim.wait_status(""), 7);
    let story = world.containerd.wait_for(bundle.id(), "exit 7");
    assert_eq!(story, ["create", "start", "exit 7"]);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn trap_01_exec_exit_before_start_returns_is_announced_after_start() {
    let world = FakeWorld::new();
    world.runtime.on("exec", Behaviour::OutlastProcess);
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.exec("e", &["/bin/sh", "-c", "exit 5"], &Stdio::none()).unwrap();
    shim.start("e").unwrap();
    assert_eq!(shim.wait_status("e"), 5);
    let story = world.containerd.wait_for(bundle.id(), "exit e 5");
    assert_eq!(story, ["create", "start", "exec-added e", "exec-started e", "exit e 5"]);
    shim.discard();
}

#[test]
fn a_process_that_dies_before_start_is_announced_as_exited() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let pid = shim.create(&Stdio::none()).unwrap().pid;
    Process::of(pid).kill();
    assert_eq!(shim.wait_status(""), 137);
    assert_eq!(world.containerd.wait_for(bundle.id(), "exit 137"), ["create", "exit 137"]);
    assert!(shim.start("").is_err());
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn trap_02_the_exit_of_init_is_the_last() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    for exec in ["a", "b"] {
        shim.exec(exec, &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
        shim.start(exec).unwrap();
    }
    let wait = shim.begin_wait("");
    // In a pid namespace the kernel would kill the execs now; here they live on, so that the order shows.
    shim.kill("", 9).unwrap();
    shim.exec("late", &["/bin/true"], &Stdio::none()).ok();
    shim.kill("a", 9).unwrap();
    assert_eq!(shim.wait_status("a"), 137, "only the exit of init is held back");
    assert!(!shim.connection.has_reply(wait));
    shim.kill("b", 9).unwrap();
    let reply: containerd_shim_protos::api::WaitResponse = shim.connection.finish(wait).unwrap();
    assert_eq!(reply.exit_status, 137);
    let story = world.containerd.wait_for(bundle.id(), "exit 137");
    let exits: Vec<_> = story.iter().filter(|l| l.starts_with("exit")).collect();
    assert_eq!(exits, ["exit a 137", "exit b 137", "exit 137"]);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn trap_27_with_a_shared_pid_namespace_the_rest_is_killed_first() {
    let world = FakeWorld::new();
    let bundle = world.sleeper().in_shared_pids();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.exec("e", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    let exec = Process::of(shim.start("e").unwrap().pid);
    shim.kill("", 15).unwrap();
    assert_eq!(shim.wait_status(""), 143);
    exec.wait_gone();
    let story = world.containerd.wait_for(bundle.id(), "exit 143");
    assert_eq!(story[story.len() - 2..], ["exit e 137", "exit 143"]);
    let kill = world.runtime.calls_of("kill").pop().unwrap().args;
    assert!(kill.contains(&"--all".into()), "{kill:?}");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_machines_shutdown_waits_for_an_end_that_is_about_to_be_told() {
    let world = FakeWorld::new();
    let bundle = world.sleeper().in_shared_pids();
    let mut shim = world.start(&bundle);
    let gate = world.dying(&mut shim);
    let fds = format!("/proc/{}/fd", shim.process().pid());
    let count = || fs::read_dir(&fds).unwrap().count();
    let before = count();
    // The daemon that the shim was started for was never there.
    let mut shutdown = world.scene.command(programs::ours("holdfast"));
    shutdown.args(["stop", "--all", "--shutdown"]).stdin(process::Stdio::null());
    let shutdown = shutdown.stdout(process::Stdio::piped()).stderr(process::Stdio::piped()).spawn().unwrap();
    until("it should speak to the shim", || (count() > before).then_some(()));
    gate.open();
    let output = shutdown.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("exit status 137"), "{output:?}");
    assert!(shim.process().is_alive(), "what it knows is asked for after that");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn whoever_saw_the_exit_event_finds_the_container_stopped() {
    let world = FakeWorld::new();
    let bundle = world.script("exit 0");
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    world.containerd.wait_for(bundle.id(), "exit 0");
    assert_eq!(shim.status(""), Status::STOPPED);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn events_wait_for_a_containerd_that_is_down() {
    let mut world = FakeWorld::new();
    world.containerd.stop();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.exec("e", &["/bin/sh", "-c", "exit 3"], &Stdio::none()).unwrap();
    shim.start("e").unwrap();
    assert_eq!(shim.wait_status("e"), 3);
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    shim.delete("").unwrap();

    world.containerd.resume();
    let story = world.containerd.wait_for(bundle.id(), "delete 137");
    let expected = ["create", "start", "exec-added e", "exec-started e", "exit e 3", "exit 137", "delete 137"];
    assert_eq!(story, expected);
    shim.shutdown();
}

#[test]
fn events_come_once_and_in_order_across_a_restart_of_containerd() {
    let mut world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    world.containerd.wait_for(bundle.id(), "start");
    world.containerd.stop();
    shim.pause().unwrap();
    shim.resume().unwrap();
    world.containerd.resume();
    shim.kill("", 9).unwrap();
    let story = world.containerd.wait_for(bundle.id(), "exit 137");
    assert_eq!(story, ["create", "start", "paused", "resumed", "exit 137"]);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn an_event_that_is_refused_for_now_is_sent_again() {
    let world = FakeWorld::new();
    world.containerd.set_mood(Mood::Refuse(Code::UNAVAILABLE));
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    world.containerd.wait_for_attempts(2);
    world.containerd.set_mood(Mood::Accept);
    assert_eq!(world.containerd.wait_for(bundle.id(), "start"), ["create", "start"]);
    shim.discard();
}

#[test]
fn trap_55_an_event_that_is_tried_again_is_not_overtaken() {
    let world = FakeWorld::new();
    // Whoever put the refused one aside and went on with the next would be found out.
    world.containerd.set_mood(Mood::RefuseTopic("/tasks/create", Code::UNAVAILABLE));
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.pause().unwrap();
    shim.resume().unwrap();
    world.containerd.wait_for_attempts(4);
    assert_eq!(world.containerd.events().len(), 0);
    world.containerd.set_mood(Mood::Accept);
    let story = world.containerd.wait_for(bundle.id(), "resumed");
    assert_eq!(story, ["create", "start", "paused", "resumed"]);
    shim.discard();
}

#[test]
fn trap_33_the_shim_ends_only_when_its_last_events_are_out() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    world.containerd.wait_for(bundle.id(), "exit 137");
    world.containerd.set_mood(Mood::Refuse(Code::UNAVAILABLE));
    shim.delete("").unwrap();
    shim.request_shutdown();
    assert!(!shim.socket().exists(), "the socket goes first");
    // Create, start and exit were taken; the delete is refused time and again, by a shim that is ending.
    world.containerd.wait_for_attempts(3 + 4);
    world.containerd.set_mood(Mood::Accept);
    shim.process().wait_gone();
    assert_eq!(world.containerd.story(bundle.id()).last().unwrap(), "delete 137");
}

#[test]
fn trap_33_the_shim_ends_though_nobody_takes_its_last_events() {
    let world = FakeWorld::new();
    world.containerd.set_mood(Mood::Hang);
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.create(&Stdio::none()).unwrap();
    shim.delete("").unwrap();
    shim.shutdown();
    assert_eq!(world.containerd.events().len(), 0);
}

#[test]
fn trap_32_what_happens_while_the_shim_ends_is_still_queued_and_delivered() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let init = Process::of(shim.run(&Stdio::none()));
    shim.exec("e", &["/bin/sh", "-c", "exit 3"], &Stdio::none()).unwrap();
    world.containerd.wait_for(bundle.id(), "exec-added e");
    // What waits keeps the shim from ending at once.
    world.containerd.set_mood(Mood::Refuse(Code::UNAVAILABLE));
    shim.start("e").unwrap();
    assert_eq!(shim.wait_status("e"), 3);
    shim.process().signal(nix::sys::signal::Signal::SIGTERM);
    eventually("the socket should be gone first", || if shim.socket().exists() { Err("there") } else { Ok(()) });
    init.kill();
    assert_eq!(shim.wait_status(""), 137, "connections are served to the end");
    world.containerd.set_mood(Mood::Accept);
    shim.process().wait_gone();
    let story = world.containerd.story(bundle.id());
    assert_eq!(story[story.len() - 3..], ["exec-started e", "exit e 3", "exit 137"]);
    world.launch(&bundle).delete();
}

#[test]
fn trap_03_only_the_exit_of_init_waits_for_others() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    for exec in ["long", "a", "b"] {
        shim.exec(exec, &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
        shim.start(exec).unwrap();
    }
    let wait = shim.begin_wait("");
    for exec in ["a", "b"] {
        if exec == "b" {
            // Init is dead, and its exit waits for `long`; that of `b` does not.
            shim.kill("", 9).unwrap();
        }
        shim.kill(exec, 9).unwrap();
        assert_eq!(shim.wait_status(exec), 137);
        world.containerd.wait_for(bundle.id(), &format!("exit {exec} 137"));
        shim.delete(exec).unwrap();
    }
    assert_eq!(shim.status("long"), Status::RUNNING);
    assert!(!shim.connection.has_reply(wait));
    shim.kill("long", 9).unwrap();
    let _: containerd_shim_protos::api::WaitResponse = shim.connection.finish(wait).unwrap();
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn trap_27_nothing_is_killed_when_an_exec_ends_or_when_the_kernel_does_it() {
    // With pids of its own even the death of init leaves the rest to the kernel; with shared ones that of an exec does.
    for shared in [false, true] {
        let world = FakeWorld::new();
        let bundle = world.sleeper();
        let bundle = if shared { bundle.in_shared_pids() } else { bundle };
        let mut shim = world.start(&bundle);
        shim.run(&Stdio::none());
        for exec in ["a", "b"] {
            shim.exec(exec, &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
            shim.start(exec).unwrap();
        }
        shim.kill("a", 9).unwrap();
        assert_eq!(shim.wait_status("a"), 137);
        assert_eq!(shim.status("b"), Status::RUNNING);
        if !shared {
            shim.kill("", 9).unwrap();
            let refused =
                eventually("init's death should be known", || match shim.exec("x", &["/bin/true"], &Stdio::none()) {
                    Err(refusal) => Ok(refusal.code()),
                    Ok(_) => Err(shim.delete("x").unwrap()),
                });
            assert_eq!(refused, Code::FAILED_PRECONDITION);
            shim.kill("b", 0).unwrap();
        }
        shim.kill("b", 9).unwrap();
        shim.wait("b").unwrap();
        // The last command that is run on it; what the death of init led to was run before.
        let _ = shim.kill("", 9);
        assert_eq!(shim.wait_status(""), 137);
        shim.delete("").unwrap();
        let mut kills = world.runtime.calls_of("kill");
        kills.retain(|c| c.args.contains(&"--all".into()));
        // With shared pids init's death has had its turn in the end.
        assert_eq!(kills.len(), usize::from(shared), "{kills:?}");
        shim.shutdown();
    }
}

#[test]
fn an_event_that_is_refused_for_good_does_not_hold_up_the_rest() {
    let world = FakeWorld::new();
    world.containerd.set_mood(Mood::Refuse(Code::INVALID_ARGUMENT));
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.create(&Stdio::none()).unwrap();
    world.containerd.wait_for_attempts(1);
    world.containerd.set_mood(Mood::Accept);
    shim.start("").unwrap();
    assert_eq!(world.containerd.wait_for(bundle.id(), "start"), ["start"]);
    shim.discard();
}

#[test]
fn a_containerd_that_hangs_holds_up_no_request() {
    let world = FakeWorld::new();
    world.containerd.set_mood(Mood::Hang);
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    for n in 0..50 {
        let exec = format!("e{n}");
        shim.exec(&exec, &["/bin/true"], &Stdio::none()).unwrap();
        shim.delete(&exec).unwrap();
    }
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    shim.delete("").unwrap();
    // With nobody taking its events, the shim may take a few seconds to give up at the end, but it does end.
    shim.shutdown();
}

#[test]
fn without_a_daemon_to_tell_the_shim_works_all_the_same() {
    let world = FakeWorld::new();
    let bundle = world.script("exit 4");
    let mut shim = world.launch(&bundle).env("TTRPC_ADDRESS", "").start();
    shim.run(&Stdio::none());
    assert_eq!(shim.wait_status(""), 4);
    shim.delete("").unwrap();
    shim.shutdown();
    assert_eq!(world.containerd.events().len(), 0);
}

#[test]
fn events_carry_bare_type_names_and_the_time_of_the_fact() {
    let mut world = FakeWorld::new();
    world.containerd.stop();
    let bundle = world.script("exit 0");
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.wait("").unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    world.containerd.resume();
    world.containerd.wait_for(bundle.id(), "exit 0");
    let events = world.containerd.events();
    let types: Vec<_> = events.iter().map(|e| e.type_url.as_str()).collect();
    assert_eq!(types, ["containerd.events.TaskCreate", "containerd.events.TaskStart", "containerd.events.TaskExit"]);
    // Queued while containerd was away: the envelope tells when it happened, not when it was delivered.
    assert!(events.iter().all(|e| i128::from(e.at_unix_ns) < now.cast_signed()), "{events:?} before {now}");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn two_containers_of_a_group_do_not_mix_their_stories() {
    let world = FakeWorld::new();
    let first = world.sleeper().in_group("pod");
    let second = world.script("exit 9").in_group("pod");
    let mut a = world.start(&first);
    a.run(&Stdio::none());
    let mut b = world.start(&second);
    b.run(&Stdio::none());
    assert_eq!(b.wait_status(""), 9);
    assert_eq!(world.containerd.wait_for(second.id(), "exit 9"), ["create", "start", "exit 9"]);
    assert_eq!(world.containerd.story(first.id()), ["create", "start"]);
    b.delete("").unwrap();
    eventually("the first should be running still", || match a.status("") {
        Status::RUNNING => Ok(()),
        other => Err(other),
    });
    a.discard();
}
