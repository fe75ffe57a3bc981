//! Ring 2: an OCI runtime that fails, hangs, is missing or lies. Each time: one clear error, and nothing left over.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use containerd_shim_protos::api::{Empty, StateResponse};
use holdfast_tests::fake_runtime::Behaviour;
use holdfast_tests::process::ChildProcess;
use holdfast_tests::shim::{NAMESPACE, Status, TASK};
use holdfast_tests::wire::{CallError, Code};
use holdfast_tests::{Bundle, FakeWorld, Launch, Shim, Stdio, eventually, process};

/// The processes of the scene other than the shim.
fn others(world: &FakeWorld, shim: &Shim) -> Vec<u32> {
    process::marked(world.scene.id()).into_iter().filter(|p| *p != shim.process().pid()).collect()
}

/// After a failed Create: no process, no state of the runtime, no container; and the shim is as good as new.
#[track_caller]
fn assert_nothing_left(world: &FakeWorld, bundle: &Bundle, shim: &mut Shim) {
    eventually("no process should be left", || {
        let left = others(world, shim);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let state = world.scene.path(format!("oci/{NAMESPACE}/{}", bundle.id()));
    assert!(!state.exists(), "{} is left", state.display());
    assert_eq!(shim.state("").unwrap_err().code(), Code::NOT_FOUND);
    assert_eq!(world.containerd.story(bundle.id()), Vec::<String>::new());
}

#[track_caller]
fn only_left(world: &FakeWorld, shim: &Shim, expected: &[u32]) {
    eventually("only these processes should be left", || {
        let left = others(world, shim);
        let same = left.len() == expected.len() && expected.iter().all(|pid| left.contains(pid));
        if same { Ok(()) } else { Err(left) }
    });
}

#[track_caller]
fn assert_failed(result: Result<impl std::fmt::Debug, CallError>, operation: &str, text: &str) {
    let refusal = result.unwrap_err();
    assert_eq!(refusal.code(), Code::UNKNOWN, "{refusal:?}");
    let expected = format!("OCI runtime {operation} failed: ");
    assert!(refusal.message().contains(&expected), "{expected:?} in {refusal:?}");
    assert!(refusal.message().contains(text), "{text:?} in {refusal:?}");
}

/// With a deadline that a test can wait for.
fn hasty<'a>(world: &'a FakeWorld, bundle: &Bundle) -> Launch<'a> {
    world.launch(bundle).env("HOLDFAST_RUNTIME_TIMEOUT_MS", "400")
}

#[test]
fn a_failed_create_says_why_and_can_be_repeated() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    world.runtime.on("create", Behaviour::Fail("the moon is in the wrong quarter".into()));
    for _ in 0..2 {
        assert_failed(shim.create(&Stdio::none()), "create", "the moon is in the wrong quarter");
        assert_nothing_left(&world, &bundle, &mut shim);
    }
    world.runtime.clear("create");
    shim.run(&Stdio::none());
    shim.discard();
}

#[test]
fn a_runtime_directory_that_cannot_be_written_is_named() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let tasks = world.scene.run_dir().join("tasks");
    fs::write(&tasks, "in the way").unwrap();
    let refusal = shim.create(&Stdio::none()).unwrap_err();
    assert_eq!(refusal.code(), Code::UNKNOWN, "{refusal:?}");
    let named = format!("cannot write {}/", tasks.display());
    assert!(refusal.message().contains(&named), "{refusal:?}");
    assert!(refusal.message().contains("Not a directory"), "{refusal:?}");
    assert_nothing_left(&world, &bundle, &mut shim);
    fs::remove_file(&tasks).unwrap();
    shim.run(&Stdio::none());
    shim.discard();
}

#[test]
fn a_failure_without_a_log_line_gives_the_runtimes_exit_status() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    // What it prints is the container's output at Create: its stdio is the container's.
    world.runtime.on("create", Behaviour::FailWithoutLog("a last cry".into()));
    assert_failed(shim.create(&Stdio::none()), "create", "status 3");
    assert_nothing_left(&world, &bundle, &mut shim);
    shim.shutdown();
}

/// The client is told by the error; a log is to hold what the process printed, and nothing else.
#[test]
fn what_a_failing_runtime_prints_is_none_of_the_processs_output() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let fails = || Behaviour::FailWithoutLog("a last cry".into());
    let stdio = Stdio::output(&world.scene, "init");
    let (stdout, stderr) = stdio.readers();
    world.runtime.on("create", fails());
    assert_failed(shim.create(&stdio), "create", "status 3");
    assert_eq!([stdout.text(), stderr.unwrap().text()], ["", ""]);
    world.runtime.clear("create");
    shim.run(&Stdio::none());
    let stdio = Stdio::output(&world.scene, "e");
    let (stdout, stderr) = stdio.readers();
    shim.exec("e", &["/bin/sh", "-c", "echo out; echo err >&2"], &stdio).unwrap();
    world.runtime.on("exec", fails());
    shim.start("e").unwrap_err();
    assert_eq!([stdout.text(), stderr.unwrap().text()], ["", ""]);
    world.runtime.clear("exec");
    let (stdout, stderr) = stdio.readers();
    shim.start("e").unwrap();
    assert_eq!(shim.wait_status("e"), 0);
    assert_eq!([stdout.text(), stderr.unwrap().text()], ["out\n", "err\n"]);
    shim.discard();
}

#[test]
fn the_phrases_that_docker_looks_for_come_through() {
    let world = FakeWorld::new();
    let bundle = world.bundle(&["no-such-program-anywhere"]);
    let mut shim = world.start(&bundle);
    assert_failed(shim.create(&Stdio::none()), "create", "executable file not found in $PATH");
    assert_nothing_left(&world, &bundle, &mut shim);
    shim.shutdown();
}

#[test]
fn a_create_that_fails_after_it_made_the_process_leaves_no_process() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    world.runtime.on("create", Behaviour::FailAfterwards("too late".into()));
    assert_failed(shim.create(&Stdio::none()), "create", "too late");
    assert_nothing_left(&world, &bundle, &mut shim);
    shim.shutdown();
}

#[test]
fn a_create_without_a_pid_file_fails_and_leaves_no_process() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    world.runtime.on("create", Behaviour::NoPidFile);
    let refusal = shim.create(&Stdio::none()).unwrap_err();
    assert!(refusal.message().contains("init.pid"), "{refusal:?}");
    assert_ne!(refusal.code(), Code::NOT_FOUND);
    assert_nothing_left(&world, &bundle, &mut shim);
    shim.shutdown();
}

#[test]
fn a_pid_file_of_an_earlier_try_is_not_believed() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let bystander = ChildProcess::spawn(Command::new("/bin/sleep").arg("1000"));
    fs::write(bundle.path("init.pid"), bystander.pid().to_string()).unwrap();
    world.runtime.on("create", Behaviour::DoNothing);
    shim.create(&Stdio::none()).unwrap_err();
    assert!(process::is_alive(bystander.pid()));
    assert_nothing_left(&world, &bundle, &mut shim);
    shim.shutdown();
}

#[test]
fn a_create_that_hangs_is_ended_by_its_deadline() {
    for behaviour in [Behaviour::Hang, Behaviour::HangAfterwards] {
        let world = FakeWorld::new();
        let bundle = world.sleeper();
        let mut shim = hasty(&world, &bundle).start();
        world.runtime.on("create", behaviour);
        let refusal = shim.create(&Stdio::none()).unwrap_err();
        assert!(matches!(refusal.code(), Code::DEADLINE_EXCEEDED | Code::UNKNOWN), "{refusal:?}");
        assert!(refusal.message().contains("create"), "{refusal:?}");
        assert_nothing_left(&world, &bundle, &mut shim);
        world.runtime.clear("create");
        shim.run(&Stdio::none());
        shim.discard();
    }
}

#[test]
fn a_create_whose_runtime_is_killed_leaves_nothing() {
    for behaviour in [Behaviour::Die, Behaviour::DieAfterwards] {
        let world = FakeWorld::new();
        let bundle = world.sleeper();
        let mut shim = world.start(&bundle);
        world.runtime.on("create", behaviour);
        assert_failed(shim.create(&Stdio::none()), "create", "status 137");
        assert_nothing_left(&world, &bundle, &mut shim);
        world.runtime.clear("create");
        shim.run(&Stdio::none());
        shim.discard();
    }
}

#[test]
fn a_start_kill_or_delete_whose_runtime_is_killed_can_be_repeated() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.create(&Stdio::none()).unwrap();
    world.runtime.on("start", Behaviour::Die);
    assert_failed(shim.start(""), "start", "status 137");
    assert_eq!(shim.status(""), Status::CREATED);
    world.runtime.clear("start");
    shim.start("").unwrap();
    world.runtime.on("kill", Behaviour::Die);
    assert_failed(shim.kill("", 9), "kill", "status 137");
    assert_eq!(shim.status(""), Status::RUNNING);
    // It was sent, and the caller does not know it.
    world.runtime.on("kill", Behaviour::DieAfterwards);
    assert_failed(shim.kill("", 9), "kill", "status 137");
    assert_eq!(shim.wait_status(""), 137);
    for behaviour in [Behaviour::Die, Behaviour::DieAfterwards] {
        world.runtime.on("delete", behaviour);
        assert_failed(shim.delete(""), "delete", "status 137");
        assert_eq!(shim.status(""), Status::STOPPED);
    }
    world.runtime.clear("delete");
    assert_eq!(shim.delete("").unwrap().exit_status, 137);
    shim.shutdown();
}

#[test]
fn what_a_failed_call_has_started_beside_the_container_ends_with_it() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let leave = || Behaviour::FailAndLeave("fell over".into());
    world.runtime.on("create", leave());
    assert_failed(shim.create(&Stdio::none()), "create", "fell over");
    assert_nothing_left(&world, &bundle, &mut shim);
    world.runtime.clear("create");
    let init = shim.run(&Stdio::none());
    shim.exec("good", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    let good = shim.start("good").unwrap().pid;
    for command in ["exec", "pause", "kill"] {
        world.runtime.on(command, leave());
    }
    shim.exec("bad", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    assert_failed(shim.start("bad"), "exec", "fell over");
    assert_failed(shim.pause(), "pause", "fell over");
    assert_failed(shim.kill("", 9), "kill", "fell over");
    only_left(&world, &shim, &[init, good]);
    assert_eq!((shim.status(""), shim.status("good")), (Status::RUNNING, Status::RUNNING));
    world.runtime.clear("kill");
    shim.kill("good", 9).unwrap();
    shim.discard();
}

#[test]
fn an_exec_that_fails_after_it_made_the_process_leaves_the_others_alone() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let init = shim.run(&Stdio::none());
    shim.exec("good", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    let good = shim.start("good").unwrap().pid;
    shim.exec("bad", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    for behaviour in [Behaviour::Die, Behaviour::DieAfterwards, Behaviour::FailAfterwards("too late".into())] {
        world.runtime.on("exec", behaviour);
        assert_failed(shim.start("bad"), "exec", "");
        only_left(&world, &shim, &[init, good]);
    }
    world.runtime.clear("exec");
    shim.start("bad").unwrap();
    assert_eq!(shim.status("bad"), Status::RUNNING);
    for exec in ["good", "bad"] {
        shim.kill(exec, 9).unwrap();
    }
    shim.discard();
}

#[test]
fn a_container_that_the_runtime_has_already_is_left_alone() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut owner = world.start(&bundle);
    let init = holdfast_tests::Process::of(owner.run(&Stdio::none()));
    // Another daemon's shim with the same runtime root.
    let mut other = world.launch(&bundle).address(world.scene.path("other.sock")).start();
    let refusal = other.create(&Stdio::none()).unwrap_err();
    assert_eq!(refusal.code(), Code::ALREADY_EXISTS, "{refusal:?}");
    other.shutdown();
    assert!(init.is_alive());
    assert_eq!(owner.status(""), Status::RUNNING);
    owner.discard();
}

#[test]
fn a_start_that_hangs_is_ended_by_its_deadline_and_holds_up_nothing() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = hasty(&world, &bundle).start();
    shim.create(&Stdio::none()).unwrap();
    world.runtime.on("start", Behaviour::Hang);
    let refusal = shim.start("").unwrap_err();
    assert!(refusal.message().contains("start"), "{refusal:?}");
    assert_eq!(shim.status(""), Status::CREATED);
    world.runtime.clear("start");
    shim.delete("").unwrap();
    eventually("no process should be left", || {
        let left = others(&world, &shim);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    shim.shutdown();
}

#[test]
fn who_reads_an_exec_that_cannot_be_started_sees_the_end() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let (program, away) = (world.runtime.program().to_owned(), world.scene.path("away"));
    let stdio = Stdio { terminal: true, stderr: String::new(), ..Stdio::output(&world.scene, "e") };
    shim.exec("e", &["/bin/true"], &stdio).unwrap();
    let (stdout, _) = stdio.readers();
    fs::rename(&program, &away).unwrap();
    shim.start("e").unwrap_err();
    fs::rename(&away, &program).unwrap();
    assert_eq!(stdout.text(), "");
    shim.discard();
}

#[test]
fn a_call_whose_runtime_is_missing_leaves_no_files() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.exec("e", &["/bin/true"], &Stdio::none()).unwrap();
    let before = world.scene.run_files_but_events();
    let (program, away) = (world.runtime.program().to_owned(), world.scene.path("away"));
    fs::rename(&program, &away).unwrap();
    shim.start("e").unwrap_err();
    shim.pause().unwrap_err();
    fs::rename(&away, &program).unwrap();
    assert_eq!(world.scene.run_files_but_events(), before);
    shim.discard();
}

#[test]
fn an_exec_that_hangs_is_ended_by_its_deadline() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = hasty(&world, &bundle).start();
    let init = shim.run(&Stdio::none());
    world.runtime.on("exec", Behaviour::Hang);
    shim.exec("e", &["/bin/true"], &Stdio::none()).unwrap();
    let refusal = shim.start("e").unwrap_err();
    assert!(refusal.message().contains("exec"), "{refusal:?}");
    shim.delete("e").unwrap();
    assert_eq!(shim.status(""), Status::RUNNING);
    eventually("only init should be left", || {
        let left = others(&world, &shim);
        if left == [init] { Ok(()) } else { Err(left) }
    });
    shim.discard();
}

#[test]
fn a_missing_runtime_is_named() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = Launch::new(&world.scene, &bundle).runtime(Path::new("/no/such/runtime")).start();
    let refusal = shim.create(&Stdio::none()).unwrap_err();
    assert!(refusal.message().contains("/no/such/runtime"), "{refusal:?}");
    assert_ne!(refusal.code(), Code::NOT_FOUND, "the container is not what is missing");
    assert_nothing_left(&world, &bundle, &mut shim);
    shim.shutdown();
}

#[test]
fn a_failed_start_leaves_the_container_created() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.create(&Stdio::none()).unwrap();
    world.runtime.on("start", Behaviour::Fail("not today".into()));
    assert_failed(shim.start(""), "start", "not today");
    assert_eq!(shim.status(""), Status::CREATED);
    assert_eq!(world.containerd.wait_for(bundle.id(), "create"), ["create"]);
    world.runtime.clear("start");
    shim.start("").unwrap();
    shim.discard();
}

#[test]
fn a_failed_exec_says_why() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    world.runtime.on("exec", Behaviour::Fail("no room".into()));
    let stdio = Stdio::output(&world.scene, "e");
    let (stdout, _stderr) = stdio.readers();
    shim.exec("e", &["/bin/true"], &stdio).unwrap();
    assert_failed(shim.start("e"), "exec", "no room");
    shim.delete("e").unwrap();
    drop(stdout);
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.discard();
}

#[test]
fn trap_57_errors_of_calls_at_the_same_time_are_not_mixed_up() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let programs = ["/no/such/a", "/no/such/b", "/no/such/c", "/no/such/d"];
    let mut starts = Vec::new();
    for (n, program) in programs.iter().enumerate() {
        let exec = format!("e{n}");
        shim.exec(&exec, &[program], &Stdio::none()).unwrap();
        let request =
            containerd_shim_protos::api::StartRequest { id: bundle.id().into(), exec_id: exec, ..Default::default() };
        starts.push((shim.connection.begin(TASK, "Start", &request), program));
    }
    for (id, program) in starts {
        let refusal = shim.connection.finish::<Empty>(id).unwrap_err();
        assert!(refusal.message().contains(*program), "{program}: {refusal:?}");
    }
    shim.discard();
}

#[test]
fn a_failed_kill_says_why_and_changes_nothing() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    world.runtime.on("kill", Behaviour::Fail("it would not".into()));
    let refusal = shim.kill("", 9).unwrap_err();
    assert!(refusal.message().contains("it would not"), "{refusal:?}");
    assert_eq!(shim.status(""), Status::RUNNING);
    // These mean that there is nobody to signal.
    for phrase in ["container not running", "process already finished", "No such process", "container does not exist"] {
        world.runtime.on("kill", Behaviour::Fail(phrase.into()));
        assert_eq!(shim.kill("", 9).unwrap_err().code(), Code::NOT_FOUND, "{phrase}");
    }
    world.runtime.clear("kill");
    shim.discard();
}

#[test]
fn a_failed_delete_can_be_repeated() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.kill("", 9).unwrap();
    shim.wait("").unwrap();
    world.runtime.on("delete", Behaviour::Fail("device or resource busy".into()));
    assert_failed(shim.delete(""), "delete", "device or resource busy");
    assert_eq!(shim.status(""), Status::STOPPED);
    world.runtime.clear("delete");
    assert_eq!(shim.delete("").unwrap().exit_status, 137);
    shim.shutdown();
}

#[test]
fn a_container_that_the_runtime_has_forgotten_can_be_deleted() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.kill("", 9).unwrap();
    shim.wait("").unwrap();
    fs::remove_dir_all(world.scene.path(format!("oci/{NAMESPACE}/{}", bundle.id()))).unwrap();
    assert_eq!(shim.delete("").unwrap().exit_status, 137);
    shim.shutdown();
}

#[test]
fn a_created_container_that_the_runtime_only_says_it_deleted_is_ended() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.create(&Stdio::none()).unwrap();
    world.runtime.on("delete", Behaviour::DoNothing);
    assert_eq!(shim.delete("").unwrap().exit_status, 137);
    assert_eq!(others(&world, &shim), [0; 0]);
    shim.shutdown();
}

#[test]
fn a_created_container_that_does_not_end_is_named_and_its_delete_can_be_repeated() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.launch(&bundle).env("HOLDFAST_DRAIN_TIMEOUT_MS", "200").start();
    let init = shim.create(&Stdio::none()).unwrap().pid;
    // As an unreachable disk would do: it is killed, and its end is not to be had.
    let held = holdfast_tests::sys::Traced::seize(init).unwrap();
    for _ in 0..2 {
        let refusal = shim.delete("").unwrap_err();
        assert_eq!(refusal.code(), Code::DEADLINE_EXCEEDED, "{refusal:?}");
        assert!(refusal.message().contains(&format!("init (pid {init})")), "{refusal:?}");
        assert_eq!(shim.status(""), Status::CREATED);
    }
    let waiting = shim.begin_wait("");
    drop(held);
    let exit: containerd_shim_protos::api::WaitResponse = shim.connection.finish(waiting).unwrap();
    assert_eq!(exit.exit_status, 137);
    assert_eq!(shim.delete("").unwrap().exit_status, 137);
    shim.shutdown();
}

#[test]
fn failed_pause_resume_and_update_say_why() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    for command in ["pause", "resume", "update"] {
        world.runtime.on(command, Behaviour::Fail(format!("no {command}")));
    }
    assert_failed(shim.pause(), "pause", "no pause");
    assert_eq!(shim.status(""), Status::RUNNING);
    assert_failed(shim.update(&serde_json::json!({})), "update", "no update");
    world.runtime.clear("pause");
    shim.pause().unwrap();
    assert_failed(shim.resume(), "resume", "no resume");
    assert_eq!(shim.status(""), Status::PAUSED);
    world.runtime.clear("resume");
    shim.resume().unwrap();
    shim.discard();
}

#[test]
fn state_and_wait_answer_while_the_runtime_hangs() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = hasty(&world, &bundle).start();
    shim.run(&Stdio::none());
    world.runtime.on("pause", Behaviour::Hang);
    let pause = containerd_shim_protos::api::PauseRequest { id: bundle.id().into(), ..Default::default() };
    let pause = shim.connection.begin(TASK, "Pause", &pause);
    let request = containerd_shim_protos::api::StateRequest { id: bundle.id().into(), ..Default::default() };
    let state = shim.connection.begin(TASK, "State", &request);
    let _: StateResponse = shim.connection.finish(state).unwrap();
    let refusal = shim.connection.finish::<Empty>(pause).unwrap_err();
    assert!(refusal.message().contains("pause"), "{refusal:?}");
    world.runtime.clear("pause");
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.discard();
}

#[test]
fn a_delete_command_whose_runtime_is_missing_still_ends_the_container() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let container = holdfast_tests::Process::of(shim.run(&Stdio::none()));
    shim.process().kill();
    fs::remove_file(world.runtime.program()).unwrap();
    world.launch(&bundle).run_delete();
    container.wait_gone();
}
