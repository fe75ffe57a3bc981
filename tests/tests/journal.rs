//! Ring 2: events that wait outlive their shim: `delete` hands on what a dead one had not delivered, in order.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use holdfast_proto::record::Record;
use holdfast_tests::fake_containerd::Mood;
use holdfast_tests::shim::Shim;
use holdfast_tests::wire::Code;
use holdfast_tests::{Bundle, FakeWorld, Process, Stdio, eventually, process, sys};

/// The journals below the run directory.
fn journals(world: &FakeWorld) -> Vec<PathBuf> {
    let files = world.scene.run_files().into_iter().map(PathBuf::from);
    files.filter(|path| path.extension().is_some_and(|e| e == "events")).collect()
}

/// Runs an exec to its end.
#[track_caller]
fn exec(shim: &mut Shim, id: &str, status: u32) {
    shim.exec(id, &["/bin/sh", "-c", &format!("exit {status}")], &Stdio::none()).unwrap();
    shim.start(id).unwrap();
    assert_eq!(shim.wait_status(id), status);
}

/// Kills the shim with SIGKILL, as the kernel may for want of memory.
fn kill(shim: &Shim) {
    shim.process().kill();
    shim.process().wait_gone();
}

/// A container in which two execs have ended while nobody took the events from its start on, and whose shim is dead then.
/// Nobody listens yet: what a dead shim had asked to be taken could be taken still.
#[track_caller]
fn left_behind(world: &mut FakeWorld, bundle: &Bundle) -> Process {
    let mut shim = world.start(bundle);
    world.containerd.stop();
    let init = Process::of(shim.run(&Stdio::none()));
    for (id, status) in [("a", 3), ("b", 4)] {
        exec(&mut shim, id, status);
        shim.delete(id).unwrap();
    }
    kill(&shim);
    init
}

const STORY: [&str; 8] =
    ["create", "start", "exec-added a", "exec-started a", "exit a 3", "exec-added b", "exec-started b", "exit b 4"];

#[test]
fn a_shim_whose_events_are_taken_leaves_no_journal() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    exec(&mut shim, "e", 3);
    world.containerd.wait_for(bundle.id(), "exit e 3");
    eventually("the journal should be removed", || match journals(&world) {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
    shim.discard();
}

#[test]
fn delete_hands_on_what_a_dead_shim_had_not_delivered() {
    let mut world = FakeWorld::new();
    let bundle = world.sleeper();
    let init = left_behind(&mut world, &bundle);
    assert_eq!(journals(&world).len(), 1);
    world.containerd.resume();
    assert_eq!(world.launch(&bundle).delete().exit_status, 137);
    init.wait_gone();
    assert_eq!(world.containerd.story(bundle.id()), STORY, "told before the answer; the rest is containerd's to tell");
    assert_eq!(world.scene.run_files(), Vec::<String>::new());
    world.launch(&bundle).delete();
    assert_eq!(world.containerd.story(bundle.id()), STORY, "told once");
}

/// containerd runs `delete` at its start, before it serves its event service, and waits for the answer.
#[test]
fn delete_does_not_wait_for_a_daemon_that_is_not_there_yet_and_its_events_come_all_the_same() {
    let mut world = FakeWorld::new();
    let bundle = world.sleeper();
    left_behind(&mut world, &bundle);
    world.launch(&bundle).delete();
    assert_eq!(journals(&world).len(), 1, "nobody was there to take it");
    world.containerd.resume();
    assert_eq!(world.containerd.wait_for(bundle.id(), "exit b 4"), STORY);
    eventually("nothing should be left", || match world.scene.run_files() {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
}

#[test]
fn delete_answers_though_the_daemon_takes_nothing_and_the_rest_comes_when_it_does() {
    let mut world = FakeWorld::new();
    let bundle = world.sleeper();
    left_behind(&mut world, &bundle);
    world.containerd.set_mood(Mood::RefuseTopic("/tasks/exit", Code::UNAVAILABLE));
    world.containerd.resume();
    world.launch(&bundle).delete();
    assert_eq!(world.containerd.story(bundle.id()), STORY[..4], "nothing overtakes the first that is refused");
    world.containerd.set_mood(Mood::Accept);
    assert_eq!(world.containerd.wait_for(bundle.id(), "exit b 4"), STORY);
}

#[test]
fn who_waits_with_the_events_of_the_dead_ends_when_they_are_removed() {
    let mut world = FakeWorld::new();
    let bundle = world.sleeper();
    left_behind(&mut world, &bundle);
    world.launch(&bundle).delete();
    assert_eq!(process::marked(world.scene.id()).len(), 1);
    fs::remove_file(journals(&world).pop().unwrap()).unwrap();
    // That nobody is left is looked at in the end.
}

/// containerd tells init's exit itself once it has the answer of `delete`, with what that says.
#[test]
fn the_exit_of_init_is_told_by_delete_alone_unless_the_task_was_deleted() {
    for deleted in [false, true] {
        let mut world = FakeWorld::new();
        let bundle = world.script("exit 7");
        let mut shim = world.start(&bundle);
        world.containerd.stop();
        shim.run(&Stdio::none());
        assert_eq!(shim.wait_status(""), 7);
        if deleted {
            shim.delete("").unwrap();
        }
        kill(&shim);
        world.containerd.resume();
        assert_eq!(world.launch(&bundle).delete().exit_status, 7);
        let expected: &[_] = if deleted { &["create", "start", "exit 7", "delete 7"] } else { &["create", "start"] };
        assert_eq!(world.containerd.story(bundle.id()), expected);
    }
}

#[test]
fn execs_that_end_with_their_shim_are_told_of_and_those_that_had_ended_are_told_once() {
    let mut world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let init = Process::of(shim.run(&Stdio::none()));
    shim.exec("long", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    shim.start("long").unwrap();
    shim.exec("never", &["/bin/true"], &Stdio::none()).unwrap();
    world.containerd.wait_for(bundle.id(), "exec-added never");
    world.containerd.stop();
    exec(&mut shim, "short", 5);
    let long = shim.state("long").unwrap().pid;
    kill(&shim);
    world.containerd.resume();
    world.launch(&bundle).delete();
    init.wait_gone();
    // The scripted runtime has no control groups: nobody else would end it.
    Process::of(long).kill();
    let story = world.containerd.story(bundle.id());
    assert_eq!(story[5..], ["exec-added short", "exec-started short", "exit short 5", "exit long 137"]);
}

#[test]
fn each_delete_of_a_pod_finds_the_story_told() {
    let mut world = FakeWorld::new();
    let bundles = [world.sleeper().in_group("pod"), world.sleeper().in_group("pod"), world.sleeper().in_group("pod")];
    world.containerd.stop();
    let mut shims: Vec<_> = bundles.iter().map(|bundle| world.start(bundle)).collect();
    for (n, shim) in shims.iter_mut().enumerate() {
        shim.run(&Stdio::none());
        exec(shim, &format!("e{n}"), 9);
        shim.delete(&format!("e{n}")).unwrap();
    }
    assert_eq!(journals(&world).len(), 1, "one shim, one order");
    kill(&shims[0]);
    world.containerd.resume();
    std::thread::scope(|scope| {
        for bundle in &bundles {
            scope.spawn(|| world.launch(bundle).delete());
        }
    });
    for (n, bundle) in bundles.iter().enumerate() {
        let [exec, started] = [format!("exec-added e{n}"), format!("exec-started e{n}")];
        let story = ["create", "start", &exec, &started, &format!("exit e{n} 9")].map(str::to_owned);
        assert_eq!(world.containerd.story(bundle.id()), story);
    }
    assert_eq!(world.scene.run_files(), Vec::<String>::new());
}

#[test]
fn a_journal_that_is_garbage_is_named_and_stays_and_the_rest_is_done() {
    let mut world = FakeWorld::new();
    let bundle = world.sleeper();
    let init = left_behind(&mut world, &bundle);
    let path = journals(&world).pop().unwrap();
    fs::write(&path, [7; 100]).unwrap();
    let output = world.launch(&bundle).run_delete();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains(path.to_str().unwrap()), "{stderr}");
    init.wait_gone();
    assert!(path.exists());
}

/// The exit of an exec as its record has it.
fn recorded_exit(world: &FakeWorld, exec: &str) -> Option<u32> {
    let path = world.scene.run_files().into_iter().find(|path| path.ends_with("record.json")).unwrap();
    let record = Record::read(path.as_ref()).unwrap();
    record.processes.iter().find(|p| p.exec_id == exec)?.exit.map(|exit| exit.status)
}

#[test]
fn with_a_full_run_directory_exits_are_told_all_the_same_and_written_down_when_there_is_room() {
    const COMPLAINTS: [&str; 2] = ["cannot write the record", "cannot write down the events"];
    let mut world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut log = String::new();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    for id in ["a", "b", "c"] {
        shim.exec(id, &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
        shim.start(id).unwrap();
    }
    world.containerd.wait_for(bundle.id(), "exec-started c");
    world.containerd.stop();
    sys::limit_file_size(shim.process().pid(), Some(0)).unwrap();
    for id in ["a", "b"] {
        shim.kill(id, 9).unwrap();
        assert_eq!(shim.wait_status(id), 137, "told though it stands nowhere");
    }
    // Not only to those who wait.
    world.containerd.resume();
    drop(std::os::unix::net::UnixStream::connect(shim.socket()).unwrap());
    world.containerd.wait_for(bundle.id(), "exit b 137");
    world.containerd.stop();
    shim.kill("c", 9).unwrap();
    assert_eq!(shim.wait_status("c"), 137);
    assert_eq!(recorded_exit(&world, "a"), None);
    log += &bundle.take_log();
    assert_eq!(COMPLAINTS.map(|words| log.matches(words).count()), [1, 1], "once each: {log}");
    sys::limit_file_size(shim.process().pid(), None).unwrap();
    eventually("all should be written down", || {
        log += &bundle.take_log();
        let told = ["written at last", "written down at last"].iter().all(|words| log.contains(words));
        if told { Ok(()) } else { Err(log.clone()) }
    });
    assert_eq!(["a", "b", "c"].map(|id| recorded_exit(&world, id)), [Some(137); 3]);
    // Who comes after the shim's death finds what was not taken.
    kill(&shim);
    world.containerd.resume();
    world.launch(&bundle).delete();
    let story = world.containerd.story(bundle.id());
    assert_eq!(story.last().unwrap(), "exit c 137");
    assert_eq!(story.iter().filter(|line| line.as_str() == "exit a 137").count(), 1, "{story:?}");
}
