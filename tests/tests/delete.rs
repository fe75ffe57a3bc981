//! Ring 2: the `delete` command, which containerd runs whenever its connection to a shim has ended.
#![allow(clippy::unwrap_used)]

use std::fs;

use holdfast_tests::shim::{NAMESPACE, Status, delete_response};
use holdfast_tests::{Bundle, FakeWorld, Process, Shim, Stdio};

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
    let reply = world.launch(&bundle).delete();
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

#[test]
fn it_removes_the_socket_of_a_shim_that_is_dead() {
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
    assert_eq!(files_below(&world.scene.run_dir()), Vec::<String>::new());
}

#[test]
fn nothing_is_left_in_the_run_directory_after_a_proper_end_either() {
    let world = FakeWorld::new();
    let (_bundle, shim, _container) = running(&world);
    assert!(!files_below(&world.scene.run_dir()).is_empty(), "the record and the socket");
    shim.discard();
    assert_eq!(files_below(&world.scene.run_dir()), Vec::<String>::new());
}

/// Everything but directories and lock files.
fn files_below(dir: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_below(&entry.path()));
        } else if !entry.file_name().to_str().unwrap().ends_with(".lock") {
            found.push(entry.path().display().to_string());
        }
    }
    found
}
