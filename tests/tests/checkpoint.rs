//! Ring 2: checkpoints and what is restored from them, over a runtime that does as runc with criu does.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use containerd_shim_protos::api::CheckpointTaskRequest;
use containerd_shim_protos::events::task::{TaskCheckpointed, TaskCreate};
use containerd_shim_protos::shim::oci::{CheckpointOptions, Options};
use holdfast_tests::fake_runtime::Behaviour;
use holdfast_tests::logger::Logger;
use holdfast_tests::shim::{Status, TASK, options_any};
use holdfast_tests::wire::{CallError, Code};
use holdfast_tests::{Bundle, FakeWorld, Freezable, Launch, Process, Shim, Stdio, eventually, process, programs};
use protobuf::well_known_types::any::Any;

fn leaving_it() -> CheckpointOptions {
    CheckpointOptions::default()
}

fn ending_it() -> CheckpointOptions {
    CheckpointOptions { exit: true, ..CheckpointOptions::default() }
}

#[track_caller]
fn assert_code(result: Result<impl std::fmt::Debug, CallError>, code: Code) -> String {
    let refusal = result.unwrap_err();
    assert_eq!(refusal.code(), code, "{refusal:?}");
    refusal.message().to_owned()
}

/// Where criu works if nobody says where.
fn work_dir(bundle: &Bundle) -> PathBuf {
    bundle.path("work").join("criu-work")
}

/// A checkpoint of a container that is gone, and a shim that has none.
fn checkpointed(world: &FakeWorld, bundle: &Bundle) -> (Shim, PathBuf) {
    let mut shim = world.start(bundle);
    let image = checkpoint_and_delete(world, &mut shim);
    (shim, image)
}

fn checkpoint_and_delete(world: &FakeWorld, shim: &mut Shim) -> PathBuf {
    let image = world.scene.make_dir("image");
    shim.run(&Stdio::none());
    shim.checkpoint(&image, &ending_it()).unwrap();
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    image
}

#[test]
fn a_container_runs_on_after_its_checkpoint() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let init = Process::of(shim.run(&Stdio::none()));
    let image = world.scene.make_dir("image");
    shim.checkpoint(&image, &leaving_it()).unwrap();
    assert!(fs::read_dir(&image).unwrap().count() > 0);
    assert!(init.is_alive());
    assert_eq!(shim.status(""), Status::RUNNING);
    assert!(!work_dir(&bundle).exists(), "what criu needed at work is gone");
    let story = world.containerd.wait_for(bundle.id(), "checkpointed");
    assert_eq!(story, ["create", "start", "checkpointed"]);
    let told = world.containerd.events().into_iter().find(|e| e.topic == "/tasks/checkpointed").unwrap();
    assert_eq!(told.message::<TaskCheckpointed>().checkpoint, image.to_str().unwrap());
    shim.discard();
}

#[test]
fn a_container_that_ends_with_its_checkpoint_goes_the_way_of_every_exit() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let init = Process::of(shim.run(&Stdio::none()));
    shim.checkpoint(&world.scene.make_dir("image"), &ending_it()).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    init.wait_gone();
    // The runtime knows the container no more.
    assert_eq!(shim.delete("").unwrap().exit_status, 137);
    let story = world.containerd.wait_for(bundle.id(), "delete 137");
    let [first, second, third, fourth, last] = &story[..] else { panic!("{story:?}") };
    assert_eq!((first.as_str(), second.as_str(), last.as_str()), ("create", "start", "delete 137"));
    let mut between = [third.as_str(), fourth.as_str()];
    between.sort_unstable();
    assert_eq!(between, ["checkpointed", "exit 137"]);
    shim.shutdown();
}

#[test]
fn a_paused_container_is_checkpointed_and_stays_paused() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.pause().unwrap();
    shim.checkpoint(&world.scene.make_dir("image"), &leaving_it()).unwrap();
    assert_eq!(shim.status(""), Status::PAUSED);
    shim.resume().unwrap();
    shim.discard();
}

#[test]
fn the_options_of_a_checkpoint_reach_the_runtime() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let (image, work) = (world.scene.make_dir("image"), world.scene.make_dir("criu"));
    let options = CheckpointOptions {
        open_tcp: true,
        empty_namespaces: vec!["network".into()],
        work_path: work.to_str().unwrap().into(),
        ..CheckpointOptions::default()
    };
    shim.checkpoint(&image, &options).unwrap();
    let args = world.runtime.calls_of("checkpoint").pop().unwrap().args.join(" ");
    let (image, work_path) = (image.display(), work.display());
    let expected = format!(
        " checkpoint --image-path {image} --work-path {work_path} --tcp-established --empty-ns network --leave-running "
    );
    assert!(args.contains(&expected), "{expected:?} in {args:?}");
    assert!(work.join("dump.log").exists(), "a place that somebody chose is left as it is");
    shim.discard();
}

#[test]
fn only_what_runs_can_be_checkpointed() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let image = world.scene.make_dir("image");
    assert_code(shim.checkpoint(&image, &leaving_it()), Code::NOT_FOUND);
    shim.create(&Stdio::none()).unwrap();
    let text = assert_code(shim.checkpoint(&image, &leaving_it()), Code::FAILED_PRECONDITION);
    assert_eq!(text, "cannot checkpoint the init process: it is created");
    shim.start("").unwrap();
    shim.kill("", 9).unwrap();
    shim.wait("").unwrap();
    assert_code(shim.checkpoint(&image, &leaving_it()), Code::FAILED_PRECONDITION);
    assert!(world.runtime.calls_of("checkpoint").is_empty());
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_done() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let any = |type_url: &str, value: &[u8]| Any { type_url: type_url.into(), value: value.into(), ..Any::default() };
    for (path, options) in [
        ("relative", Any::default()),
        ("/image", any("containerd.runc.v1.CheckpointOptions", b"\x08")),
        ("/image", any("containerd.runc.v1.Options", b"")),
    ] {
        let request = CheckpointTaskRequest {
            id: bundle.id().into(),
            path: path.into(),
            options: Some(options).into(),
            ..CheckpointTaskRequest::default()
        };
        let result: Result<containerd_shim_protos::api::Empty, _> = shim.connection.call(TASK, "Checkpoint", &request);
        assert_code(result, Code::INVALID_ARGUMENT);
    }
    assert!(world.runtime.calls_of("checkpoint").is_empty());
    shim.discard();
}

#[test]
fn a_failed_checkpoint_leaves_the_container_and_names_the_log() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let init = Process::of(shim.run(&Stdio::none()));
    let image = world.scene.make_dir("image");

    let said = "criu failed: type NOTIFY errno 0\nlog file: /somewhere/dump.log";
    world.runtime.on("checkpoint", Behaviour::FailAfterwards(said.into()));
    let text = assert_code(shim.checkpoint(&image, &leaving_it()), Code::UNKNOWN);
    let log = bundle.path("criu-dump.log");
    let expected =
        format!("OCI runtime checkpoint failed: criu failed: type NOTIFY errno 0; criu's log: {}", log.display());
    assert_eq!(text, expected);
    assert!(fs::read_to_string(&log).unwrap().contains("so says criu"));
    assert!(!work_dir(&bundle).exists());

    // Not a word of a log that there is not: criu was never run.
    fs::remove_file(&log).unwrap();
    world.runtime.on("checkpoint", Behaviour::Fail("no criu in $PATH".into()));
    let text = assert_code(shim.checkpoint(&image, &leaving_it()), Code::UNKNOWN);
    assert_eq!(text, "OCI runtime checkpoint failed: no criu in $PATH");
    assert!(!log.exists());

    assert!(init.is_alive());
    assert_eq!(shim.status(""), Status::RUNNING);
    world.runtime.clear("checkpoint");
    shim.checkpoint(&image, &leaving_it()).unwrap();
    shim.discard();
}

#[test]
fn a_runtime_that_makes_no_checkpoints_is_named_as_the_reason() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut shim, image) = checkpointed(&world, &bundle);
    let said = "compiled without CRIU support. Restore not available";
    world.runtime.on("restore", Behaviour::Fail(said.into()));
    world.runtime.on("checkpoint", Behaviour::FailWithoutLog("unknown command checkpoint".into()));
    shim.create_from(&image, &Stdio::none()).unwrap();
    let text = assert_code(shim.start(""), Code::UNIMPLEMENTED);
    assert_eq!(text, format!("OCI runtime restore failed: {said}"));
    shim.delete("").unwrap();
    shim.run(&Stdio::none());
    assert_code(shim.checkpoint(&image, &leaving_it()), Code::UNIMPLEMENTED);
    shim.discard();
}

#[test]
fn the_embedded_runtime_is_refused_at_create_with_the_choice_there_is() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let options =
        Options { binary_name: programs::ours("holdfast-oci").to_str().unwrap().into(), ..Options::default() };
    let mut shim = Launch::new(&world.scene, &bundle).options(options_any(&options)).start();
    let image = world.scene.make_dir("image");
    let text = assert_code(shim.create_from(&image, &Stdio::none()), Code::UNIMPLEMENTED);
    assert!(text.contains("use runc or crun"), "{text}");
    assert_code(shim.state(""), Code::NOT_FOUND);
    shim.shutdown();
}

#[test]
fn what_is_created_from_a_checkpoint_is_not_there_before_it_is_started() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut shim, image) = checkpointed(&world, &bundle);
    let calls = world.runtime.calls().len();
    assert_eq!(shim.create_from(&image, &Stdio::none()).unwrap().pid, 0);
    assert_eq!(world.runtime.calls().len(), calls, "the runtime is not called before Start");
    let state = shim.state("").unwrap();
    assert_eq!((state.pid, state.status.enum_value()), (0, Ok(Status::CREATED)));
    assert_eq!(shim.connect().unwrap().task_pid, 0);
    // An empty list would be the end of it when containerd restarts.
    assert_eq!(shim.pids().unwrap().processes.len(), 1);
    assert_code(shim.exec("e", &["/bin/true"], &Stdio::none()), Code::FAILED_PRECONDITION);
    assert_code(shim.pause(), Code::FAILED_PRECONDITION);
    assert_code(shim.resume(), Code::FAILED_PRECONDITION);
    assert_code(shim.checkpoint(&image, &leaving_it()), Code::FAILED_PRECONDITION);
    assert_code(shim.stats(), Code::NOT_FOUND);
    // Nobody is there to be signalled: so says the runtime.
    assert_code(shim.kill("", 15), Code::NOT_FOUND);
    let create = world.containerd.events().into_iter().rfind(|e| e.topic == "/tasks/create").unwrap();
    let create: TaskCreate = create.message();
    assert_eq!((create.pid, create.checkpoint.as_str()), (0, image.to_str().unwrap()));

    let pid = shim.start("").unwrap().pid;
    assert!(process::is_alive(pid));
    assert_eq!(shim.connect().unwrap().task_pid, pid);
    assert_eq!(shim.status(""), Status::RUNNING);
    assert!(!work_dir(&bundle).exists());
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    assert_eq!(shim.delete("").unwrap().pid, pid);
    shim.shutdown();
}

#[test]
fn what_was_never_restored_is_deleted_without_a_trace() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut shim, image) = checkpointed(&world, &bundle);
    shim.create_from(&image, &Stdio::none()).unwrap();
    // Whatever the runtime would say.
    world.runtime.on("delete", Behaviour::Fail("out of order".into()));
    let wait = shim.begin_wait("");
    let deleted = shim.delete("").unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (0, 0));
    let waited: Result<containerd_shim_protos::api::WaitResponse, _> = shim.connection.finish(wait);
    assert_code(waited, Code::NOT_FOUND);
    assert_code(shim.state(""), Code::NOT_FOUND);
    shim.shutdown();
}

#[test]
fn what_is_restored_prints_to_its_new_streams_and_ends_with_its_own_status() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out; echo err >&2; read line; echo got $line; exit 7");
    let mut shim = world.start(&bundle);
    let image = world.scene.make_dir("image");
    let stdio = Stdio::fifos(&world.scene, "first");
    let (first, _first_err) = stdio.readers();
    shim.run(&stdio);
    first.wait_for("out\n");
    shim.checkpoint(&image, &ending_it()).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    shim.delete("").unwrap();

    let stdio = Stdio::fifos(&world.scene, "second");
    let (stdout, stderr) = stdio.readers();
    shim.create_from(&image, &stdio).unwrap();
    shim.start("").unwrap();
    stdio.input().write(b"a line\n");
    assert_eq!(shim.wait_status(""), 7);
    assert_eq!(stdout.text(), "out\ngot a line\n");
    assert_eq!(stderr.unwrap().text(), "err\n");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn what_is_restored_has_its_logger_and_that_of_a_failed_restore_ends() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out; exec sleep 1000");
    let (mut shim, image) = checkpointed(&world, &bundle);
    let logger = Logger::new(&world.scene, "l");
    shim.create_from(&image, &logger.stdio("binary")).unwrap();
    world.runtime.on("restore", Behaviour::Fail("no".into()));
    assert_code(shim.start(""), Code::UNKNOWN);
    eventually("the logger should end", || {
        let left: Vec<_> = logger.pids().into_iter().filter(|p| process::is_alive(*p)).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    world.runtime.clear("restore");
    shim.start("").unwrap();
    // Before the shim is killed with all that it has not passed on.
    eventually("the logger should have the output", || match logger.text("stdout").as_str() {
        "out\n" => Ok(()),
        other => Err(other.to_owned()),
    });
    shim.discard();
    assert_eq!(logger.pids().len(), 2);
}

#[test]
fn what_is_restored_has_its_terminal() {
    let world = FakeWorld::new();
    let bundle = world.script("stty size; read line; stty size; exit 4").with_terminal();
    let mut shim = world.start(&bundle);
    let image = world.scene.make_dir("image");
    let stdio = Stdio::terminal(&world.scene, "first");
    let (first, _) = stdio.readers();
    shim.run(&stdio);
    first.wait_for("\n");
    shim.checkpoint(&image, &CheckpointOptions { terminal: true, ..ending_it() }).unwrap();
    shim.wait("").unwrap();
    shim.delete("").unwrap();

    let stdio = Stdio::terminal(&world.scene, "second");
    let (stdout, _) = stdio.readers();
    shim.create_from(&image, &stdio).unwrap();
    shim.start("").unwrap();
    shim.resize("", 132, 43).unwrap();
    stdio.input().write(b"go\n");
    assert_eq!(shim.wait_status(""), 4);
    let text = stdout.text();
    assert!(text.ends_with("43 132\r\n"), "{text:?}");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_restored_process_that_dies_at_once_is_announced_as_started_first() {
    let world = FakeWorld::new();
    let bundle = world.script("[ -e go ] && exit 7; exec sleep 1000").configure(|c| {
        c["process"]["cwd"] = world.scene.dir().to_str().unwrap().into();
    });
    let (mut shim, image) = checkpointed(&world, &bundle);
    fs::write(world.scene.path("go"), "").unwrap();
    world.runtime.on("restore", Behaviour::OutlastProcess);
    shim.create_from(&image, &Stdio::none()).unwrap();
    shim.start("").unwrap();
    assert_eq!(shim.wait_status(""), 7);
    let story = world.containerd.wait_for(bundle.id(), "exit 7");
    assert_eq!(story[story.len() - 3..], ["create", "start", "exit 7"]);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_failed_restore_leaves_nothing_and_can_be_repeated() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut shim, image) = checkpointed(&world, &bundle);
    let stdio = Stdio::fifos(&world.scene, "restored");
    let _readers = stdio.readers();
    shim.create_from(&image, &stdio).unwrap();
    let descriptors = format!("/proc/{}/fd", shim.process().pid());
    let open = fs::read_dir(&descriptors).unwrap().count();
    let log = bundle.path("criu-restore.log");
    // The second kind has made a process, and an empty image fails within the runtime.
    for how in [Behaviour::Fail("no".into()), Behaviour::FailAfterwards("no\nlog file: x".into()), Behaviour::NoPidFile]
    {
        world.runtime.on("restore", how.clone());
        let text = assert_code(shim.start(""), Code::UNKNOWN);
        match how {
            Behaviour::Fail(_) => assert_eq!(text, "OCI runtime restore failed: no"),
            Behaviour::FailAfterwards(_) => {
                assert_eq!(text, format!("OCI runtime restore failed: no; criu's log: {}", log.display()));
                assert!(fs::read_to_string(&log).unwrap().contains("so says criu"));
            }
            _ => assert!(text.starts_with("the OCI runtime left no pid of the init process"), "{text}"),
        }
        assert_eq!(shim.status(""), Status::CREATED);
        eventually("no process should be left", || {
            let others: Vec<_> =
                process::marked(world.scene.id()).into_iter().filter(|p| *p != shim.process().pid()).collect();
            if others.is_empty() { Ok(()) } else { Err(others) }
        });
        assert!(!work_dir(&bundle).exists());
        eventually("no file should stay open", || {
            let now = fs::read_dir(&descriptors).unwrap().count();
            if now <= open { Ok(()) } else { Err(now) }
        });
    }
    world.runtime.clear("restore");
    shim.start("").unwrap();
    assert_eq!(shim.status(""), Status::RUNNING);
    let story = world.containerd.wait_until(bundle.id(), |s| s.iter().filter(|l| *l == "start").count() == 2);
    assert!(story.iter().filter(|l| l.starts_with("exit ")).count() == 1, "{story:?}");
    shim.discard();
}

#[test]
fn signals_wait_for_the_restore_that_is_under_way() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut shim, image) = checkpointed(&world, &bundle);
    let gate = world.scene.path("gate");
    world.runtime.on("restore", Behaviour::WaitFor(gate.clone()));
    shim.create_from(&image, &Stdio::none()).unwrap();
    let start = shim.connection.begin(TASK, "Start", &start_request(&bundle));
    let kill = shim.connection.begin(TASK, "Kill", &kill_request(&bundle));
    // Who only asks does not wait.
    assert_eq!(shim.status(""), Status::CREATED);
    fs::write(gate, "").unwrap();
    let started: containerd_shim_protos::api::StartResponse = shim.connection.finish(start).unwrap();
    assert_ne!(started.pid, 0);
    let _: containerd_shim_protos::api::Empty = shim.connection.finish(kill).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    shim.delete("").unwrap();
    shim.shutdown();
}

fn start_request(bundle: &Bundle) -> containerd_shim_protos::api::StartRequest {
    containerd_shim_protos::api::StartRequest { id: bundle.id().into(), ..Default::default() }
}

fn kill_request(bundle: &Bundle) -> containerd_shim_protos::api::KillRequest {
    containerd_shim_protos::api::KillRequest { id: bundle.id().into(), signal: 9, ..Default::default() }
}

#[test]
fn checkpoints_and_restores_survive_a_freeze_at_every_stage() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let gate = world.scene.path("gate");
    let image = world.scene.make_dir("image");
    shim.run(&Stdio::none());
    world.runtime.on("checkpoint", Behaviour::WaitFor(gate.clone()));
    let request = CheckpointTaskRequest {
        id: bundle.id().into(),
        path: image.to_str().unwrap().into(),
        ..CheckpointTaskRequest::default()
    };
    let checkpoint = shim.connection.begin(TASK, "Checkpoint", &request);
    eventually("the runtime should be at work", || {
        if world.runtime.calls_of("checkpoint").is_empty() { Err("not yet") } else { Ok(()) }
    });
    host.freeze_and_thaw();
    fs::write(&gate, "").unwrap();
    let _: containerd_shim_protos::api::Empty = shim.connection.finish(checkpoint).unwrap();
    world.containerd.wait_for(bundle.id(), "checkpointed");
    let told = world.containerd.events().into_iter().find(|e| e.topic == "/tasks/checkpointed").unwrap();
    assert_eq!(told.message::<TaskCheckpointed>().checkpoint, image.to_str().unwrap());
    assert!(!work_dir(&bundle).exists());
    shim.kill("", 9).unwrap();
    shim.wait("").unwrap();
    shim.delete("").unwrap();

    fs::remove_file(&gate).unwrap();
    world.runtime.on("restore", Behaviour::WaitFor(gate.clone()));
    shim.create_from(&image, &Stdio::none()).unwrap();
    host.freeze_and_thaw();
    assert_eq!(shim.status(""), Status::CREATED);
    let start = shim.connection.begin(TASK, "Start", &start_request(&bundle));
    eventually("the runtime should be at work", || {
        if world.runtime.calls_of("restore").is_empty() { Err("not yet") } else { Ok(()) }
    });
    host.freeze_and_thaw();
    fs::write(&gate, "").unwrap();
    let started: containerd_shim_protos::api::StartResponse = shim.connection.finish(start).unwrap();
    assert_ne!(started.pid, 0);
    host.freeze_and_thaw();
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    shim.delete("").unwrap();
    shim.request_shutdown();
}
