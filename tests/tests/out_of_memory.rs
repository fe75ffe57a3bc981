//! Ring 3: the kernel kills for want of memory. That it did is told, once, and before the exit of whom it killed; on
//! whichever version of control groups this machine has.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::shim::oci::Options;
use holdfast_proto::record::Record;
use holdfast_tests::shim::{Status, options_any};
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::wire::Code;
use holdfast_tests::{
    Bundle, FakeContainerd, Freezable, Launch, Scene, Shim, Stdio, eventually, gate, process, programs,
};
use protobuf::Message;
use serde_json::json;

/// In bytes: enough for a runtime's first process, which is in the cgroup too.
const LIMIT: u64 = 16 << 20;

/// A line without an end, which tail(1) keeps whole.
const EATER: &str = "/bin/busybox tail /dev/zero";

fn runc() -> Option<PathBuf> {
    if !is_root() {
        skip("needs root");
        return None;
    }
    let program = programs::peer("runc");
    if program.is_none() {
        skip("runc is neither installed nor to be had");
    }
    program
}

/// A bundle whose container may have no more than `LIMIT`.
fn limited(scene: &Scene, script: &str) -> Bundle {
    let bundle = Bundle::busybox(scene, &["/bin/sh", "-c", script]);
    bundle.configure(|c| c["linux"]["resources"]["memory"] = json!({ "limit": LIMIT, "swap": LIMIT }))
}

/// Ends when its input does.
const UNTIL_TOLD: &str = "while read line; do eval \"$line\"; done";

/// The directory of the container's memory.
fn memory_dir(bundle: &Bundle) -> PathBuf {
    PathBuf::from("/sys/fs/cgroup").join(if is_unified() { "" } else { "memory" }).join(bundle.id())
}

/// How many the kernel has killed there.
fn kills(bundle: &Bundle) -> usize {
    let file = memory_dir(bundle).join(if is_unified() { "memory.events" } else { "memory.oom_control" });
    let text = fs::read_to_string(file).unwrap();
    text.lines().find_map(|l| l.strip_prefix("oom_kill ")).unwrap().parse().unwrap()
}

fn is_unified() -> bool {
    PathBuf::from("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn count(story: &[String], line: &str) -> usize {
    story.iter().filter(|l| *l == line).count()
}

/// How many fds the shim has that tell of memory.
fn alarms(shim: &Shim) -> usize {
    let fds = fs::read_dir(format!("/proc/{}/fd", shim.process().pid())).unwrap().flatten();
    let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
    let wanted = if is_unified() { "anon_inode:inotify" } else { "anon_inode:[eventfd]" };
    links.filter(|to| to.to_str() == Some(wanted)).count()
}

#[test]
fn trap_51_out_of_memory_is_told_before_the_exit_of_init() {
    let Some(program) = runc() else { return };
    for program in [program, programs::ours("holdfast-oci")] {
        let scene = Scene::new();
        let containerd = FakeContainerd::start(&scene);
        let bundle = limited(&scene, &format!("exec {EATER}"));
        let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
        shim.run(&Stdio::none());
        assert_eq!(shim.wait_status(""), 137);
        let mut story = containerd.wait_for(bundle.id(), "exit 137");
        // It may be told before the start that has not returned yet.
        let oom = story.iter().position(|line| line == "oom").expect("it is told");
        assert!(0 < oom && oom < 3, "{}: {story:?}", program.display());
        story.remove(oom);
        assert_eq!(story, ["create", "start", "exit 137"], "{}", program.display());
        let oom = containerd.events().into_iter().find(|e| e.topic == "/tasks/oom").unwrap();
        assert_eq!(oom.type_url, "containerd.events.TaskOOM");
        shim.delete("").unwrap();
        shim.shutdown();
    }
}

/// How often the record says that it was told, and which processes it says to have lacked memory; init's name is empty.
fn recorded(scene: &Scene) -> (u32, Vec<String>) {
    let path = scene.run_files().into_iter().find(|path| path.ends_with("record.json")).unwrap();
    let record = Record::read(path.as_ref()).unwrap();
    let killed = record.processes.into_iter().filter(|p| p.oom_killed && p.exit.is_some());
    (record.times_out_of_memory, killed.map(|p| p.exec_id).collect())
}

#[test]
fn the_record_says_who_lacked_memory_also_after_a_freeze_and_the_death_of_the_shim() {
    let Some(program) = runc() else { return };
    let scene = Scene::new();
    let _containerd = FakeContainerd::start(&scene);
    let bundle = limited(&scene, &format!("{}; exec {EATER}", gate::wait_still_at("go")));
    gate::make_still(bundle.path("rootfs"), "go");
    let launch = Launch::new(&scene, &bundle).runtime(&program);
    let (mut host, mut shim) = Freezable::serve(&scene, &bundle, &launch);
    shim.run(&Stdio::none());
    shim.exec("a", &["/bin/sh", "-c", gate::GREEDY], &Stdio::none()).unwrap();
    shim.exec("b", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    // Before "a", which leaves no memory in the control group for another's start, and past the part of it in which it still
    // is the runtime, large enough to be chosen.
    let b = shim.start("b").unwrap().pid;
    eventually("its program should run", || match fs::read_to_string(format!("/proc/{b}/comm")).unwrap().trim() {
        "sleep" => Ok(()),
        other => Err(other.to_owned()),
    });
    shim.start("a").unwrap();
    assert_eq!(shim.wait_status("a"), 137);
    assert_eq!(recorded(&scene), (1, vec!["a".to_owned()]), "known as soon as anybody is told");
    host.freeze_and_thaw();
    gate::open_still(bundle.path("rootfs"), "go");
    // Its init may be killed, or the exec with it, which the kernel does when init is dead.
    assert_eq!(shim.wait_status(""), 137);
    let (times, killed) = recorded(&scene);
    assert!(times >= 2 && killed.contains(&"a".to_owned()) && killed.contains(&String::new()), "{times} {killed:?}");
    shim.delete("").unwrap();
    shim.shutdown();
    // Put away where the next `delete` finds it.
    let bundle = limited(&scene, &format!("exec {EATER}"));
    let launch = Launch::new(&scene, &bundle).runtime(&program);
    let mut shim = launch.start();
    shim.run(&Stdio::none());
    assert_eq!(shim.wait_status(""), 137);
    shim.process().kill();
    shim.process().wait_gone();
    assert_eq!(launch.delete().exit_status, 137);
    let last = Record::read(&bundle.path("last-record.json")).unwrap();
    assert!(last.init().unwrap().oom_killed && last.times_out_of_memory == 1, "{last:?}");
}

#[test]
fn out_of_memory_is_told_before_the_exit_of_an_exec() {
    let Some(program) = runc() else { return };
    let scene = Scene::new();
    let containerd = FakeContainerd::start(&scene);
    let bundle = limited(&scene, "exec sleep 1000");
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    shim.run(&Stdio::none());
    for (round, exec) in ["a", "b"].into_iter().enumerate() {
        shim.exec(exec, &["/bin/busybox", "tail", "/dev/zero"], &Stdio::none()).unwrap();
        shim.start(exec).unwrap();
        assert_eq!(shim.wait_status(exec), 137);
        let story = containerd.wait_for(bundle.id(), &format!("exit {exec} 137"));
        assert_eq!(story[story.len() - 2..], ["oom".to_owned(), format!("exit {exec} 137")], "{story:?}");
        assert_eq!(count(&story, "oom"), round + 1);
    }
    // What was told is not told again with the end of another.
    shim.exec("c", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    shim.start("c").unwrap();
    shim.kill("c", 9).unwrap();
    assert_eq!(shim.wait_status("c"), 137);
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    let story = containerd.wait_for(bundle.id(), "exit 137");
    assert_eq!(count(&story, "oom"), 2, "{story:?}");
    let (times, killed) = recorded(&scene);
    assert_eq!(times, 2);
    let execs: Vec<_> = killed.iter().filter(|id| !id.is_empty()).collect();
    assert_eq!(execs, ["a", "b"], "the third was killed by us");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_child_that_is_killed_for_want_of_memory_is_told_of_while_init_lives_on() {
    let Some(program) = runc() else { return };
    let scene = Scene::new();
    let containerd = FakeContainerd::start(&scene);
    let bundle = limited(&scene, UNTIL_TOLD);
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    let stdio = Stdio::fifos(&scene, "init");
    let (stdout, _stderr) = stdio.readers();
    shim.run(&stdio);
    let mut input = stdio.input();
    for round in 1..=2 {
        input.write(format!("{EATER}; echo status $?\n").as_bytes());
        let story = containerd.wait_until(bundle.id(), |story| count(story, "oom") == round);
        assert_eq!(story[2..], vec!["oom"; round], "init has not ended");
        stdout.wait_for(&"status 137\n".repeat(round));
    }
    assert_eq!(shim.status(""), Status::RUNNING);
    input.write(b"exit 3\n");
    assert_eq!(shim.wait_status(""), 3);
    let story = containerd.wait_for(bundle.id(), "exit 3");
    assert_eq!(story, ["create", "start", "oom", "oom", "exit 3"]);
    shim.delete("").unwrap();
    shim.shutdown();
}

/// A process of a container can lack memory before the container is started.
#[test]
fn out_of_memory_is_noticed_between_create_and_start() {
    let Some(program) = runc() else { return };
    let scene = Scene::new();
    let containerd = FakeContainerd::start(&scene);
    let bundle = limited(&scene, "exec sleep 1000");
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    shim.create(&Stdio::none()).unwrap();
    let eater = process::ChildProcess::spawn(std::process::Command::new("/bin/sh").args([
        "-c",
        // It enters the container's memory, not the container; and it is to be the one that is killed.
        &format!(
            "echo 1000 >/proc/self/oom_score_adj && echo 0 >{}/cgroup.procs && exec tail /dev/zero",
            memory_dir(&bundle).display()
        ),
    ]));
    let story = containerd.wait_until(bundle.id(), |story| count(story, "oom") > 0);
    assert_eq!(story, ["create", "oom"]);
    drop(eater);
    shim.discard();
}

#[test]
fn trap_30_alarms_are_neither_leaked_by_execs_nor_left_to_the_next_of_the_same_id() {
    let Some(program) = runc() else { return };
    let scene = Scene::new();
    let containerd = FakeContainerd::start(&scene);
    let bundle = limited(&scene, &format!("read go; exec {EATER}")).in_group("pod");
    let other = limited(&scene, "exec sleep 1000").in_group("pod");
    let mut keeper = Launch::new(&scene, &other).runtime(&program).start();
    keeper.run(&Stdio::none());
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    let resting = alarms(&shim);
    for life in 1..=2 {
        let stdio = Stdio::fifos(&scene, &format!("init{life}"));
        let _readers = stdio.readers();
        shim.run(&stdio);
        let armed = alarms(&shim);
        assert_eq!(armed, if is_unified() { resting } else { resting + 1 });
        for _ in 0..3 {
            shim.exec("e", &["/bin/true"], &Stdio::none()).unwrap();
            shim.start("e").unwrap();
            assert_eq!(shim.wait_status("e"), 0);
            shim.delete("e").unwrap();
        }
        assert_eq!(alarms(&shim), armed, "an exec has no alarm of its own");
        stdio.input().write(b"go\n");
        assert_eq!(shim.wait_status(""), 137);
        let story = containerd.wait_until(bundle.id(), |story| count(story, "exit 137") == life);
        assert_eq!(count(&story, "oom"), life, "{story:?}");
        eventually("the alarm should be off", || match alarms(&shim) {
            n if n == resting => Ok(()),
            n => Err(n),
        });
        shim.delete("").unwrap();
    }
    assert_eq!(count(&containerd.story(other.id()), "oom"), 0, "the other container lacked nothing");
    keeper.discard();
}

#[test]
fn out_of_memory_during_a_freeze_is_told_after_it() {
    let Some(program) = runc() else { return };
    let scene = Scene::new();
    let containerd = FakeContainerd::start(&scene);
    let script = format!("{}; {EATER}; {}; exec {EATER}", gate::wait_at("first"), gate::wait_at("then"));
    let bundle = limited(&scene, &script);
    let launch = Launch::new(&scene, &bundle).runtime(&program);
    let (mut host, mut shim) = Freezable::serve(&scene, &bundle, &launch);
    shim.run(&Stdio::none());
    for (told, file) in ["first", "then"].into_iter().enumerate() {
        host.freeze();
        gate::open(bundle.path("rootfs"), file);
        eventually("a process should be killed", || if kills(&bundle) > told { Ok(()) } else { Err(kills(&bundle)) });
        assert_eq!(count(&containerd.story(bundle.id()), "oom"), told);
        host.thaw();
        containerd.wait_until(bundle.id(), |story| count(story, "oom") > told);
    }
    assert_eq!(shim.wait_status(""), 137);
    containerd.wait_for(bundle.id(), "exit 137");
    // What was not acknowledged before a freeze is sent again, from the same time.
    let events = containerd.events().into_iter().filter(|e| e.topic == "/tasks/oom");
    assert_eq!(events.map(|e| e.at_unix_ns).collect::<BTreeSet<_>>().len(), 2);
    host.freeze_and_thaw();
    shim.delete("").unwrap();
    shim.shutdown();
}

/// Systemd removes the control group of a scope as soon as it is empty.
#[test]
fn trap_31_stats_of_a_control_group_that_is_gone_are_its_last_events_or_not_found() {
    let Some(program) = runc() else { return };
    let scene = Scene::new();
    let containerd = FakeContainerd::start(&scene);
    let bundle = limited(&scene, &format!("exec {EATER}"));
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    assert_eq!(shim.stats().unwrap_err().code(), Code::NOT_FOUND, "there is no container yet");
    shim.run(&Stdio::none());
    assert_eq!(shim.wait_status(""), 137);
    containerd.wait_for(bundle.id(), "exit 137");
    assert!(shim.stats().unwrap().stats.is_some(), "the control group is there until Delete");
    remove_cgroups(bundle.id());
    let answer = shim.stats();
    if is_unified() {
        let any = answer.unwrap().stats.unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert!(metrics.memory_events.oom_kill > 0 && metrics.memory.is_none(), "{metrics:?}");
    } else {
        let refusal = answer.unwrap_err();
        assert_eq!(refusal.code(), Code::NOT_FOUND);
        assert!(refusal.message().ends_with("does not exist"), "{refusal:?}");
    }
    shim.delete("").unwrap();
    assert_eq!(shim.stats().unwrap_err().code(), Code::NOT_FOUND);
    shim.shutdown();
}

/// Systemd removes a scope as soon as its last process has died: the last look must come sooner.
#[test]
fn out_of_memory_is_told_also_where_systemd_removes_the_control_group() {
    let Some(program) = runc() else { return };
    if !is_unified() || !PathBuf::from("/run/systemd/system").exists() {
        skip("needs systemd and nothing but version 2");
        return;
    }
    let scene = Scene::new();
    let containerd = FakeContainerd::start(&scene);
    let bundle = limited(&scene, &format!("exec {EATER}"));
    let bundle = {
        let path = format!("system.slice:hf:{}", bundle.id());
        bundle.configure(|c| c["linux"]["cgroupsPath"] = path.into())
    };
    let options = Options {
        binary_name: program.to_str().unwrap().into(),
        root: scene.path("oci").to_str().unwrap().into(),
        systemd_cgroup: true,
        ..Options::default()
    };
    let mut shim = Launch::new(&scene, &bundle).options(options_any(&options)).start();
    for life in 1..=5 {
        shim.run(&Stdio::none());
        assert_eq!(shim.wait_status(""), 137);
        let story = containerd.wait_until(bundle.id(), |story| count(story, "exit 137") == life);
        assert_eq!(count(&story, "oom"), life, "{story:?}");
        assert_eq!(story[story.len() - 2..], ["oom", "exit 137"]);
        let any = shim.stats().unwrap().stats.unwrap();
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.memory_events.oom_kill, 1, "which newer clients look at after the exit");
        shim.delete("").unwrap();
    }
    shim.shutdown();
}

/// In every hierarchy.
fn remove_cgroups(id: &str) {
    let root = PathBuf::from("/sys/fs/cgroup");
    let hierarchies: Vec<_> = fs::read_dir(&root).unwrap().flatten().map(|e| e.path()).collect();
    for dir in std::iter::once(root).chain(hierarchies).map(|dir| dir.join(id)).filter(|dir| dir.is_dir()) {
        fs::remove_dir(&dir).unwrap_or_else(|e| panic!("cannot remove {}: {e}", dir.display()));
    }
}
