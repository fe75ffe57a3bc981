//! Ring 2: the `delete` command, which containerd runs whenever its connection to a shim has ended.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output};

use containerd_shim_protos::api::StartRequest;
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use holdfast_tests::fake_runtime::Behaviour;
use holdfast_tests::process::Stopped;
use holdfast_tests::shim::{NAMESPACE, Status, TASK, delete_response};
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::wire::Code;
use holdfast_tests::{Bundle, FakeWorld, Process, Shim, Stdio, eventually, process};
use nix::mount::{MsFlags, mount};
use protobuf::Message;

fn running(world: &FakeWorld) -> (Bundle, Shim, Process) {
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let container = Process::of(shim.run(&Stdio::none()));
    (bundle, shim, container)
}

#[test]
fn after_the_shim_was_killed_it_ends_the_container() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    shim.process().kill();
    assert!(container.is_alive(), "the container outlives its shim until somebody decides");
    let launch = world.launch(&bundle).env("NOTIFY_SOCKET", "/nonexistent").env("RUST_LOG", "trace");
    let output = launch.run_delete();
    let reply = delete_response(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "containerd would log a warning");
    assert!(world.runtime.calls_of("delete").iter().all(|call| !call.had_notify_socket), "it would hang");
    container.wait_gone();
    assert_eq!((reply.pid, reply.exit_status), (container.pid(), 137));
    assert!(reply.exited_at.seconds > 0);
    assert!(!world.scene.path(format!("oci/{NAMESPACE}/{}", bundle.id())).exists(), "the runtime's state is gone");
}

#[test]
fn it_can_be_run_again() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    shim.process().kill();
    world.launch(&bundle).delete();
    container.wait_gone();
    world.launch(&bundle).delete();
}

#[test]
fn it_tells_the_true_status_of_what_ended_before_the_shim() {
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)] {
        let world = FakeWorld::new();
        let bundle = world.script(script);
        let mut shim = world.start(&bundle);
        let pid = shim.run(&Stdio::none());
        let waited = shim.wait("").unwrap();
        assert_eq!(waited.exit_status, status);
        shim.process().kill();
        let reply = world.launch(&bundle).delete();
        assert_eq!((reply.pid, reply.exit_status), (pid, status));
        assert_eq!(reply.exited_at, waited.exited_at);
    }
}

#[test]
fn after_a_proper_end_it_is_harmless() {
    let world = FakeWorld::new();
    let (bundle, mut shim, _container) = running(&world);
    shim.kill("", 9).unwrap();
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    shim.shutdown();
    let output = world.launch(&bundle).run_delete();
    delete_response(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "containerd would log a warning");
}

#[test]
fn it_works_on_the_bundle_that_it_is_given_whatever_its_name_and_the_working_directory() {
    let world = FakeWorld::new();
    let bundle = world.sleeper().moved_to(world.scene.path("elsewhere"));
    let mut shim = world.start(&bundle);
    let container = Process::of(shim.run(&Stdio::none()));
    shim.process().kill();
    let output = world.launch(&bundle).run_delete_in(std::path::Path::new("/"));
    assert_eq!(delete_response(&output).pid, container.pid());
    container.wait_gone();
}

#[test]
fn it_works_on_a_bundle_with_nothing_in_it() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    for name in ["config.json", "log"] {
        fs::remove_file(bundle.path(name)).unwrap();
    }
    world.launch(&bundle).delete();
}

#[test]
fn it_survives_garbage_in_the_bundle() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    shim.process().kill();
    for name in ["init.pid", "address"] {
        fs::write(bundle.path(name), b"\xff\x00garbage\n").unwrap();
    }
    world.launch(&bundle).delete();
    container.wait_gone();
}

#[test]
fn options_written_by_other_versions_are_understood() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    shim.process().kill();
    let text = serde_json::json!({
        "binary_name": world.runtime.program(), "root": world.scene.path("oci"), "from_the_future": { "x": [1] },
    });
    fs::write(bundle.path("options.json"), text.to_string()).unwrap();
    world.launch(&bundle).delete();
    container.wait_gone();
}

#[test]
fn it_leaves_a_shim_that_serves_others_alone() {
    let world = FakeWorld::new();
    let first = world.sleeper().in_group("pod");
    let second = world.sleeper().in_group("pod");
    let mut a = world.start(&first);
    a.run(&Stdio::none());
    let mut b = world.start(&second);
    b.run(&Stdio::none());
    b.kill("", 9).unwrap();
    b.wait("").unwrap();
    b.delete("").unwrap();
    world.launch(&second).delete();
    assert!(a.socket().exists());
    assert_eq!(a.status(""), Status::RUNNING);
    a.discard();
}

/// containerd restarts, waits in vain for a shim that is stopped, and gives it up: `delete`, and the bundle is removed.
#[test]
fn a_shim_that_was_given_up_while_it_was_stopped_ends_when_it_goes_on() {
    // 2.1 forgets to close its connection.
    for connection_stays in [false, true] {
        let world = FakeWorld::new();
        let (bundle, shim, container) = running(&world);
        let stopped = Stopped::new(shim.process().pid());
        world.launch(&bundle).delete();
        container.wait_gone();
        fs::remove_dir_all(bundle.dir()).unwrap();
        let socket = shim.socket().to_owned();
        let (process, connection) = shim.into_parts();
        let _connection = connection_stays.then_some(connection);
        drop(stopped);
        process.wait_gone();
        assert!(!socket.exists());
        assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
    }
}

#[test]
fn a_shim_whose_container_ended_waits_for_whoever_comes_as_long_as_there_is_a_bundle() {
    let world = FakeWorld::new();
    let bundle = world.script("exit 7");
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    assert_eq!(shim.wait_status(""), 7);
    let address = shim.address().to_owned();
    let (process, connection) = shim.into_parts();
    drop(connection);
    let mut shim = world.launch(&bundle).attach(&address);
    assert_eq!(shim.wait_status(""), 7);
    assert!(process.is_alive());
    shim.discard();
}

#[test]
fn trap_34_it_removes_the_socket_of_a_shim_that_is_dead() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    shim.process().kill();
    assert!(shim.socket().exists(), "a kill leaves it");
    world.launch(&bundle).delete();
    container.wait_gone();
    assert!(!shim.socket().exists());
}

#[test]
fn nothing_is_left_in_the_run_directory() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    shim.process().kill();
    world.launch(&bundle).delete();
    container.wait_gone();
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
}

#[test]
fn nothing_is_left_in_the_run_directory_after_a_proper_end_either() {
    let world = FakeWorld::new();
    let (_bundle, shim, _container) = running(&world);
    assert!(!world.scene.run_files().is_empty(), "the record and the socket");
    shim.discard();
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
}

/// Without its record `delete` has nothing but what is in the bundle.
fn lose_the_record(world: &FakeWorld) {
    fs::remove_dir_all(world.scene.run_dir().join("tasks")).unwrap();
}

#[test]
fn it_tells_the_true_status_although_somebody_emptied_the_run_directory() {
    let world = FakeWorld::new();
    let bundle = world.script("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done");
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let (stdout, _stderr) = stdio.readers();
    let pid = shim.run(&stdio);
    stdout.wait_for("ready");
    lose_the_record(&world);
    shim.kill("", 15).unwrap();
    assert_eq!(shim.wait("").unwrap().exit_status, 7);
    shim.process().kill();
    let reply = world.launch(&bundle).delete();
    assert_eq!((reply.pid, reply.exit_status), (pid, 7));
}

#[test]
fn trap_38_the_root_in_the_options_is_used() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    shim.process().kill();
    lose_the_record(&world);
    world.launch(&bundle).delete();
    container.wait_gone();
    let call = world.runtime.calls_of("delete").pop().unwrap();
    let root = world.scene.path("oci").join(NAMESPACE);
    assert!(call.args.windows(2).any(|w| w == ["--root", root.to_str().unwrap()]), "{call:?}");
}

#[test]
fn trap_39_a_missing_runtime_file_is_no_failure() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    shim.process().kill();
    lose_the_record(&world);
    fs::remove_file(bundle.path("runtime")).unwrap();
    world.launch(&bundle).delete();
    container.wait_gone();
    // Nor is one that names nothing, nor options that are none.
    fs::write(bundle.path("runtime"), "").unwrap();
    fs::write(bundle.path("options.json"), "{\"binary_name\":").unwrap();
    delete_response(&world.launch(&bundle).run_delete());
}

#[test]
fn trap_40_the_pid_of_init_is_told() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    shim.process().kill();
    lose_the_record(&world);
    // From the bundle alone, and before the runtime removes it.
    let reply = world.launch(&bundle).delete();
    assert_eq!((reply.pid, reply.exit_status), (container.pid(), 137));
    container.wait_gone();
}

/// With the daemon's patience: five seconds, then SIGKILL.
fn delete_in_time(world: &FakeWorld, bundle: &Bundle) -> Output {
    let mut command = Command::new("timeout");
    let delete = world.launch(bundle).delete_command();
    command.args(["-s", "KILL", "5"]).arg(delete.get_program()).args(delete.get_args());
    for (key, value) in delete.get_envs() {
        value.map(|value| command.env(key, value));
    }
    process::run(command.current_dir(bundle.dir()))
}

#[test]
fn a_runtime_that_hangs_keeps_nothing_from_being_done_in_time() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    shim.process().kill();
    world.runtime.on("delete", Behaviour::Hang);
    let output = delete_in_time(&world, &bundle);
    let reply = delete_response(&output);
    assert_eq!((reply.pid, reply.exit_status), (container.pid(), 137));
    container.wait_gone();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(bundle.id()) && stderr.contains("did not end in time"), "{stderr}");
    assert!(!shim.socket().exists());
    world.runtime.clear("delete");
    let reply = world.launch(&bundle).delete();
    assert_eq!((reply.pid, reply.exit_status), (container.pid(), 137), "the same as before");
}

#[test]
fn a_runtime_that_is_gone_keeps_nothing_from_being_done() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    shim.process().kill();
    fs::remove_file(world.runtime.program()).unwrap();
    let output = world.launch(&bundle).run_delete();
    assert_eq!(delete_response(&output).exit_status, 137);
    container.wait_gone();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(world.runtime.program().to_str().unwrap()), "{stderr}");
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
}

/// A shim that was killed while the runtime worked on `command`, which goes on once the returned file exists.
fn killed_during(world: &FakeWorld, bundle: &Bundle, command: &str, begin: impl FnOnce(&mut Shim)) -> PathBuf {
    let gate = world.scene.path("gate");
    let mut shim = world.start(bundle);
    world.runtime.on(command, Behaviour::WaitFor(gate.clone()));
    begin(&mut shim);
    eventually(&format!("{command} should begin"), || world.runtime.calls_of(command).pop().ok_or("no call"));
    shim.process().kill();
    gate
}

fn begin_create(shim: &mut Shim) {
    let request = shim.create_request(&Stdio::none());
    shim.connection.begin(TASK, "Create", &request);
}

#[test]
fn a_create_that_outlives_its_shim_leaves_no_container() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let gate = killed_during(&world, &bundle, "create", begin_create);
    let output = std::thread::scope(|scope| {
        let delete = scope.spawn(|| world.launch(&bundle).run_delete());
        // It is made while `delete` waits for that.
        let traced = || process::marked(bundle.id()).into_iter().any(|pid| process::describe(pid).contains(" delete"));
        eventually("delete should run", || if traced() { Ok(()) } else { Err("not yet") });
        fs::write(&gate, "").unwrap();
        delete.join().unwrap()
    });
    let reply = delete_response(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(reply.pid != 0 && reply.exit_status == 137, "{reply:?}");
    assert!(!world.scene.path(format!("oci/{NAMESPACE}/{}", bundle.id())).exists());
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
}

#[test]
fn a_create_that_outlives_its_shim_for_too_long_is_ended() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    killed_during(&world, &bundle, "create", begin_create);
    let reply = world.launch(&bundle).delete();
    assert_eq!((reply.pid, reply.exit_status), (0, 137));
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
    // The scene finds whatever process is left.
}

#[test]
fn an_exec_that_outlives_its_shim_leaves_no_process() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    killed_during(&world, &bundle, "exec", |shim| {
        shim.run(&Stdio::none());
        shim.exec("more", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
        let request = StartRequest { id: bundle.id().into(), exec_id: "more".into(), ..StartRequest::default() };
        shim.connection.begin(TASK, "Start", &request);
    });
    assert_eq!(world.launch(&bundle).delete().exit_status, 137);
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
}

#[test]
fn a_shim_whose_connection_was_lost_deletes_its_container_itself() {
    let world = FakeWorld::new();
    let (bundle, mut shim, container) = running(&world);
    let output = world.launch(&bundle).run_delete();
    let reply = delete_response(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!((reply.pid, reply.exit_status), (container.pid(), 137));
    container.wait_gone();
    // It is not kept alive by a container that nobody asks it about any more.
    assert_eq!(shim.state("").unwrap_err().code(), Code::NOT_FOUND);
    shim.shutdown();
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
}

#[test]
fn a_shim_that_is_stuck_is_not_waited_for() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    let _stopped = Stopped::new(shim.process().pid());
    let reply = world.launch(&bundle).delete();
    assert_eq!((reply.pid, reply.exit_status), (container.pid(), 137));
    container.wait_gone();
    shim.process().kill();
    world.launch(&bundle).delete();
    assert!(!shim.socket().exists());
}

#[test]
fn a_socket_in_a_directory_of_the_daemons_choice_is_found() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let dir = world.scene.make_dir("sockets");
    let params = BootstrapParams {
        instance_id: bundle.id().into(),
        namespace: NAMESPACE.into(),
        socket_dir: Some(dir.to_str().unwrap().into()),
        ..BootstrapParams::default()
    };
    let shim = world.launch(&bundle).stdin(params.write_to_bytes().unwrap()).start();
    assert!(shim.socket().starts_with(&dir));
    // Killed before there was a record; only the bundle tells.
    shim.process().kill();
    world.launch(&bundle).delete();
    assert!(!shim.socket().exists());
}

#[test]
fn an_address_that_names_something_else_is_not_followed() {
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    shim.process().kill();
    let victim = world.scene.path("victim.sock");
    drop(UnixListener::bind(&victim).unwrap());
    fs::write(bundle.path("address"), format!("unix://{}", victim.display())).unwrap();
    world.launch(&bundle).delete();
    container.wait_gone();
    assert!(victim.exists() && !shim.socket().exists());
}

/// A pod of three whose shim is dead: the first container, one that runs, one that has ended with 7.
fn pod(world: &FakeWorld) -> (Bundle, Bundle, Bundle, [Process; 2]) {
    let first = world.sleeper();
    let group = first.id().to_owned();
    let first = first.in_group(&group);
    let (runs, ended) = (world.sleeper().in_group(&group), world.script("exit 7").in_group(&group));
    let mut shim = world.start(&first);
    let pause = Process::of(shim.run(&Stdio::none()));
    let mut member = world.launch(&runs).attach(shim.address());
    let app = Process::of(member.run(&Stdio::none()));
    let mut member = world.launch(&ended).attach(shim.address());
    member.run(&Stdio::none());
    assert_eq!(member.wait_status(""), 7);
    shim.process().kill();
    (first, runs, ended, [pause, app])
}

#[test]
fn a_pod_is_swept_with_its_first_container_where_the_daemon_leaves_that_to_it() {
    let world = FakeWorld::new();
    let (first, runs, ended, processes) = pod(&world);
    // The daemon's note of what `start` answered.
    fs::write(first.path("bootstrap.json"), r#"{"version":3,"address":"unix:///x","protocol":"ttrpc"}"#).unwrap();
    let output = world.launch(&first).run_delete();
    assert_eq!(delete_response(&output).pid, processes[0].pid());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    processes.iter().for_each(Process::wait_gone);
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
    assert_eq!(fs::read_dir(world.scene.path(format!("oci/{NAMESPACE}"))).unwrap().count(), 0);
    // A daemon that restarts asks about each of them after all.
    let reply = world.launch(&runs).delete();
    assert_eq!((reply.pid, reply.exit_status), (processes[1].pid(), 137));
    assert_eq!(world.launch(&ended).delete().exit_status, 7);
}

#[test]
fn a_pod_full_of_calls_that_hang_is_swept_in_time() {
    let world = FakeWorld::new();
    let first = world.sleeper();
    let group = first.id().to_owned();
    let first = first.in_group(&group);
    let members: Vec<Bundle> = (0..5).map(|_| world.sleeper().in_group(&group)).collect();
    let mut shim = world.start(&first);
    let pause = shim.run(&Stdio::none());
    world.runtime.on("exec", Behaviour::Hang);
    let mut connections = Vec::new();
    for bundle in &members {
        let mut member = world.launch(bundle).attach(shim.address());
        member.run(&Stdio::none());
        member.exec("more", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
        let request = StartRequest { id: bundle.id().into(), exec_id: "more".into(), ..StartRequest::default() };
        member.connection.begin(TASK, "Start", &request);
        connections.push(member);
    }
    eventually("all execs should begin", || {
        let begun = world.runtime.calls_of("exec").len();
        if begun == members.len() { Ok(()) } else { Err(begun) }
    });
    shim.process().kill();
    fs::write(first.path("bootstrap.json"), r#"{"version":3,"address":"unix:///x","protocol":"ttrpc"}"#).unwrap();
    let reply = delete_response(&delete_in_time(&world, &first));
    assert_eq!((reply.pid, reply.exit_status), (pause, 137));
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
}

#[test]
fn a_pod_is_not_swept_where_the_daemon_asks_for_each_container() {
    let world = FakeWorld::new();
    let (first, runs, ended, [pause, app]) = pod(&world);
    fs::write(first.path("bootstrap.json"), r#"{"version":2,"address":"unix:///x","protocol":"ttrpc"}"#).unwrap();
    world.launch(&first).delete();
    pause.wait_gone();
    assert!(app.is_alive());
    // Nor by another one than the first.
    fs::write(ended.path("bootstrap.json"), r#"{"version":3,"address":"unix:///x","protocol":"ttrpc"}"#).unwrap();
    assert_eq!(world.launch(&ended).delete().exit_status, 7);
    assert!(app.is_alive());
    assert_eq!(world.launch(&runs).delete().exit_status, 137);
    app.wait_gone();
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new());
}

#[test]
fn a_root_filesystem_is_unmounted() {
    if !is_root() {
        return skip("needs root to mount something");
    }
    let world = FakeWorld::new();
    let (bundle, shim, container) = running(&world);
    let rootfs = bundle.path("rootfs");
    let tmpfs = Some("tmpfs");
    mount(tmpfs, &rootfs, tmpfs, MsFlags::empty(), None::<&str>).unwrap();
    fs::create_dir(rootfs.join("below")).unwrap();
    mount(tmpfs, &rootfs.join("below"), tmpfs, MsFlags::empty(), None::<&str>).unwrap();
    shim.process().kill();
    let output = world.launch(&bundle).run_delete();
    delete_response(&output);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    container.wait_gone();
    assert_eq!(fs::read_dir(&rootfs).unwrap().count(), 0, "what was mounted over is seen again");
    // The scene finds a mount that is left.
}
