//! Ring 2: `start`, `delete` and the shim itself killed between any two of their steps.
//!
//! Each test kills at the first system call, then at the next but a few, and so on to the program's end. What comes after
//! must find everything in order, whatever the point.
#![allow(clippy::unwrap_used)]

use holdfast_tests::shim::{Shim, delete_response};
use holdfast_tests::tracer::{self, End};
use holdfast_tests::wire::CallError;
use holdfast_tests::{Bundle, FakeWorld, Sandbox, Stdio, eventually, process};

/// No two of these have a common divisor with what programs do in rounds.
const START_STRIDE: usize = 5;
const DELETE_STRIDE: usize = 5;
const SHIM_STRIDE: usize = 11;
const SANDBOX_STRIDE: usize = 3;

/// No process, socket or other file of a container is left.
#[track_caller]
fn assert_nothing_left(world: &FakeWorld, point: usize) {
    assert_eq!(world.scene.run_files_but_events(), Vec::<String>::new(), "killed at {point}");
    eventually(&format!("killed at {point}: no process should be left"), || {
        let left: Vec<_> = process::marked(world.scene.id()).into_iter().map(process::describe).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

/// Calls `kill_at` for one point after the other, until the program comes to its end unharmed.
#[track_caller]
fn at_every_point(stride: usize, mut kill_at: impl FnMut(usize) -> End) {
    let mut points = 0;
    for point in (1..).step_by(stride) {
        match kill_at(point) {
            End::Killed => points += 1,
            end => {
                assert_eq!(end, End::Exited(0), "nothing else ended it");
                break;
            }
        }
    }
    assert!(points > 20, "only {points} points: was it traced?");
}

#[test]
fn a_start_that_is_killed_anywhere_can_be_repeated() {
    let world = FakeWorld::new();
    at_every_point(START_STRIDE, |point| {
        let bundle = world.sleeper();
        let launch = world.launch(&bundle);
        let (mut command, stdin) = launch.start_command();
        let end = tracer::run_until(&mut command, &stdin, point, || {});
        let mut shim = launch.start();
        assert_eq!(process::marked(bundle.id()).len(), 1, "one server, killed at {point}");
        shim.run(&Stdio::none());
        shim.discard();
        launch.delete();
        assert_nothing_left(&world, point);
        end
    });
}

#[test]
fn what_a_killed_start_has_left_is_removed_by_delete() {
    let world = FakeWorld::new();
    at_every_point(START_STRIDE, |point| {
        let bundle = world.sleeper();
        let launch = world.launch(&bundle);
        let (mut command, stdin) = launch.start_command();
        let end = tracer::run_until(&mut command, &stdin, point, || {});
        // A server that came up serves whoever finds it, and ends by itself if nobody does; here it is killed.
        for pid in process::marked(bundle.id()) {
            holdfast_tests::Process::of(pid).kill();
        }
        let output = launch.run_delete();
        delete_response(&output);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "killed at {point}");
        assert_nothing_left(&world, point);
        end
    });
}

#[test]
fn a_server_that_is_killed_while_it_comes_up_leaves_a_start_that_failed() {
    let world = FakeWorld::new();
    let mut points = 0;
    for point in (1..).step_by(START_STRIDE) {
        let bundle = world.sleeper();
        let launch = world.launch(&bundle);
        let (command, stdin) = launch.start_command();
        let (start, ends) = tracer::run_until_in_child(command, stdin, point);
        process::until_gone(start);
        // If it had not come that far when it was ready.
        for pid in process::marked(bundle.id()) {
            holdfast_tests::Process::of(pid).kill();
        }
        let (server, start) = ends.join().unwrap();
        if start == End::Exited(0) {
            // Killed just after it was ready, or by us.
            launch.delete();
            assert_nothing_left(&world, point);
            if server != End::Killed {
                break;
            }
            continue;
        }
        points += 1;
        assert_eq!((server, start), (End::Killed, End::Exited(1)), "killed at {point}");
        assert!(!bundle.path("address").exists());
        assert_nothing_left(&world, point);
        launch.start().shutdown();
    }
    assert!(points > 10, "only {points} points: was it traced?");
}

#[test]
fn trap_35_the_address_is_written_before_there_is_a_socket() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let launch = world.launch(&bundle);
    let (mut command, stdin) = launch.start_command();
    let (mut before, mut after) = (0, 0);
    let end = tracer::run_until(&mut command, &stdin, usize::MAX, || {
        let sockets = world.scene.run_files();
        match std::fs::read_to_string(bundle.path("address")) {
            Ok(address) => {
                let name = address.rsplit('/').next().unwrap();
                assert_eq!(name.len(), 64, "never half of it: {address:?}");
                after += 1;
            }
            Err(_) => {
                assert_eq!(sockets, Vec::<String>::new(), "a socket that no file tells of");
                before += 1;
            }
        }
    });
    assert_eq!(end, End::Exited(0));
    assert!(before > 0 && after > 0, "{before} {after}");
    launch.start().shutdown();
}

/// A container that has ended with 7, its shim dead.
fn ended_with_7(world: &FakeWorld) -> (Bundle, u32) {
    let bundle = world.script("exit 7");
    let mut shim = world.start(&bundle);
    let pid = shim.run(&Stdio::none());
    assert_eq!(shim.wait_status(""), 7);
    shim.process().kill();
    (bundle, pid)
}

#[test]
fn a_delete_that_is_killed_anywhere_can_be_repeated_and_tells_the_true_status() {
    let world = FakeWorld::new();
    at_every_point(DELETE_STRIDE, |point| {
        let (bundle, pid) = ended_with_7(&world);
        let launch = world.launch(&bundle);
        let end = tracer::run_until(&mut launch.delete_command(), b"", point, || {});
        let reply = launch.delete();
        assert_eq!((reply.pid, reply.exit_status), (pid, 7), "killed at {point}");
        assert_nothing_left(&world, point);
        end
    });
}

#[test]
fn a_delete_of_a_running_container_that_is_killed_anywhere_can_be_repeated() {
    let world = FakeWorld::new();
    at_every_point(DELETE_STRIDE, |point| {
        let bundle = world.sleeper();
        let mut shim = world.start(&bundle);
        let pid = shim.run(&Stdio::none());
        shim.process().kill();
        let launch = world.launch(&bundle);
        let end = tracer::run_until(&mut launch.delete_command(), b"", point, || {});
        let reply = launch.delete();
        assert_eq!(reply.pid, pid, "killed at {point}");
        // The first one may have killed it, and not come to say so.
        assert!([137, 255].contains(&reply.exit_status), "{} killed at {point}", reply.exit_status);
        assert_nothing_left(&world, point);
        end
    });
}

/// What a client has seen of a container until the shim was killed.
#[derive(Debug, Default)]
struct Seen {
    pid: Option<u32>,
    status: Option<u32>,
}

fn live_a_life(shim: &mut Shim, seen: &mut Seen) -> Result<(), CallError> {
    shim.create(&Stdio::none())?;
    seen.pid = Some(shim.start("")?.pid);
    seen.status = Some(shim.wait("")?.exit_status);
    shim.delete("")?;
    Ok(())
}

#[test]
fn after_a_shim_that_is_killed_anywhere_delete_tells_what_was_known() {
    let world = FakeWorld::new();
    at_every_point(SHIM_STRIDE, |point| {
        let bundle = world.script("exit 7");
        let mut shim = world.start(&bundle);
        let doom = tracer::doom(shim.process().pid(), point);
        let mut seen = Seen::default();
        let lived = live_a_life(&mut shim, &mut seen);
        if lived.is_ok() {
            shim.request_shutdown();
        }
        shim.process().wait_gone();
        let end = doom.join().unwrap();
        let told = world.containerd.story(bundle.id()).iter().any(|line| line == "exit 7");
        let output = world.launch(&bundle).run_delete();
        let reply = delete_response(&output);
        assert!(!told || reply.exit_status == 7, "announced before it was recorded, killed at {point}: {reply:?}");
        let context = format!("killed at {point}: {seen:?} {lived:?} {reply:?} {output:?}");
        match &seen {
            // It was told, so it stays true.
            Seen { status: Some(status), pid, .. } => {
                assert_eq!(*status, 7, "{context}");
                assert_eq!((Some(reply.pid), reply.exit_status), (*pid, 7), "{context}");
            }
            Seen { pid, .. } => {
                assert!([7, 137, 255].contains(&reply.exit_status), "{context}");
                assert!(pid.is_none_or(|pid| reply.pid == pid), "{context}");
            }
        }
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{context}");
        assert_nothing_left(&world, point);
        end
    });
}

/// An exec that exits with 5; the exit that a client has seen.
fn exec_in_a_life(shim: &mut Shim, seen: &mut Option<u32>) -> Result<(), CallError> {
    shim.create(&Stdio::none())?;
    shim.start("")?;
    shim.exec("e", &["/bin/sh", "-c", "exit 5"], &Stdio::none())?;
    shim.start("e")?;
    *seen = Some(shim.wait("e")?.exit_status);
    shim.delete("e")?;
    shim.kill("", 9)?;
    shim.wait("")?;
    shim.delete("")?;
    Ok(())
}

#[test]
fn the_exit_of_an_exec_is_told_wherever_the_shim_is_killed() {
    let world = FakeWorld::new();
    at_every_point(SHIM_STRIDE, |point| {
        let bundle = world.sleeper();
        let mut shim = world.start(&bundle);
        let doom = tracer::doom(shim.process().pid(), point);
        let mut seen = None;
        let lived = exec_in_a_life(&mut shim, &mut seen);
        if lived.is_ok() {
            shim.request_shutdown();
        }
        shim.process().wait_gone();
        let end = doom.join().unwrap();
        world.launch(&bundle).delete();
        let story = world.containerd.story(bundle.id());
        let exits: Vec<_> = story.iter().filter(|line| line.starts_with("exit e")).collect();
        if seen.is_some() {
            assert!(exits.iter().any(|line| *line == "exit e 5"), "killed at {point}: {lived:?} {story:?}");
        }
        // Told twice at most: the acknowledgement may have been lost.
        assert!(exits.len() <= 2, "killed at {point}: {story:?}");
        assert_nothing_left(&world, point);
        end
    });
}

/// The exit that a client has seen.
fn live_as_a_sandbox(sandbox: &mut Sandbox, seen: &mut Option<u32>) -> Result<(), CallError> {
    sandbox.create()?;
    sandbox.start()?;
    sandbox.stop(0)?;
    *seen = Some(sandbox.wait()?.exit_status);
    sandbox.shutdown()?;
    Ok(())
}

#[test]
fn after_a_shim_that_is_killed_anywhere_delete_ends_its_sandbox() {
    let world = FakeWorld::new();
    at_every_point(SANDBOX_STRIDE, |point| {
        let bundle = world.sleeper().configure(|c| c["linux"]["namespaces"] = serde_json::json!([]));
        let shim = world.start(&bundle);
        let mut sandbox = Sandbox::of(&shim, &bundle);
        let doom = tracer::doom(shim.process().pid(), point);
        let mut seen = None;
        let lived = live_as_a_sandbox(&mut sandbox, &mut seen);
        // As clients do; otherwise the shim gives it a second for that.
        drop(sandbox);
        shim.process().wait_gone();
        let end = doom.join().unwrap();
        let output = world.launch(&bundle).run_delete();
        let reply = delete_response(&output);
        if let Some(status) = seen {
            assert_eq!((status, reply.exit_status), (0, 0), "killed at {point}: {lived:?}");
        }
        assert_nothing_left(&world, point);
        end
    });
}
