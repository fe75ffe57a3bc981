//! Ring 3: checkpoints that criu makes for runc, and what it restores from them. The scene's check sees that no mount,
//! control group, process or socket is left.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::shim::oci::CheckpointOptions;
use holdfast_tests::shim::Status;
use holdfast_tests::skip::{criu_refusal, is_root, skip};
use holdfast_tests::wire::Code;
use holdfast_tests::{Bundle, FakeContainerd, Launch, Process, Scene, Shim, Stdio, process, programs};

/// runc, or a skip if criu cannot do its part on this machine.
fn runc_with_criu(scene: &Scene) -> Option<PathBuf> {
    if !is_root() {
        skip("needs root");
        return None;
    }
    let Some(runc) = programs::peer("runc") else {
        skip("runc is neither installed nor to be had");
        return None;
    };
    if let Some(reason) = criu_refusal(scene) {
        skip(reason);
        return None;
    }
    Some(runc)
}

/// Counts once for each line that it reads, in memory alone, and ends with what it has counted to.
const COUNTER: &str = "n=0; while read line; do [ $line = end ] && exit $n; n=$((n + 1)); echo $n; done";

/// A bundle for a script like [`COUNTER`]. criu locks a network namespace of the container's own with iptables, which nobody needs for this.
fn counting(scene: &Scene, script: &str) -> Bundle {
    Bundle::busybox(scene, &["/bin/sh", "-c", script]).configure(|c| {
        let namespaces = c["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|n| n["type"] != "network");
    })
}

fn ending_it() -> CheckpointOptions {
    CheckpointOptions { exit: true, ..CheckpointOptions::default() }
}

/// Counts to `n` through the streams of `stdio`, from `from`.
#[track_caller]
fn count(stdio: &Stdio, stdout: &holdfast_tests::Reader, numbers: std::ops::RangeInclusive<u32>) {
    let mut input = stdio.input();
    for n in numbers {
        input.write(b"next\n");
        stdout.wait_for(&format!("{n}\n"));
    }
}

/// The counter, which has counted to 3 and was checkpointed and deleted then.
fn counted_and_checkpointed(scene: &Scene, shim: &mut Shim) -> PathBuf {
    let stdio = Stdio::fifos(scene, "first");
    let (stdout, _stderr) = stdio.readers();
    shim.run(&stdio);
    count(&stdio, &stdout, 1..=3);
    let image = scene.path("image");
    shim.checkpoint(&image, &ending_it()).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    assert_eq!(shim.delete("").unwrap().exit_status, 137);
    assert_eq!(stdout.text(), "1\n2\n3\n");
    image
}

#[test]
fn a_restored_container_goes_on_where_it_was() {
    let scene = Scene::new();
    let Some(runc) = runc_with_criu(&scene) else { return };
    let containerd = FakeContainerd::start(&scene);
    let bundle = counting(&scene, COUNTER);
    let mut shim = Launch::new(&scene, &bundle).runtime(&runc).start();
    let image = counted_and_checkpointed(&scene, &mut shim);

    let stdio = Stdio::fifos(&scene, "second");
    let (stdout, _stderr) = stdio.readers();
    assert_eq!(shim.create_from(&image, &stdio).unwrap().pid, 0);
    assert_eq!(shim.status(""), Status::CREATED);
    let pid = shim.start("").unwrap().pid;
    assert_eq!(process::parent(pid), Some(shim.process().pid()), "it is the shim's to reap");
    assert_eq!(shim.status(""), Status::RUNNING);
    count(&stdio, &stdout, 4..=6);
    // An exec finds itself beside it.
    let exec = Stdio::output(&scene, "e");
    let (exec_out, _exec_err) = exec.readers();
    shim.exec("e", &["/bin/sh", "-c", "kill -0 1 && echo there"], &exec).unwrap();
    shim.start("e").unwrap();
    assert_eq!(shim.wait_status("e"), 0);
    assert_eq!(exec_out.text(), "there\n");
    shim.delete("e").unwrap();
    stdio.input().write(b"end\n");
    assert_eq!(shim.wait_status(""), 6);
    assert_eq!(stdout.text(), "4\n5\n6\n");
    let deleted = shim.delete("").unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 6));
    let story = containerd.wait_for(bundle.id(), "delete 6");
    assert!(story.contains(&"checkpointed".to_owned()), "{story:?}");
    assert!(!bundle.path("work/criu-work").exists());
    shim.shutdown();
}

#[test]
fn trap_58_what_is_restored_has_its_figures_and_its_watch() {
    let scene = Scene::new();
    let Some(runc) = runc_with_criu(&scene) else { return };
    let containerd = FakeContainerd::start(&scene);
    let bundle = counting(&scene, COUNTER);
    let mut shim = Launch::new(&scene, &bundle).runtime(&runc).start();
    let image = counted_and_checkpointed(&scene, &mut shim);
    let stdio = Stdio::fifos(&scene, "second");
    let (_stdout, _stderr) = stdio.readers();
    shim.create_from(&image, &stdio).unwrap();
    assert_eq!(shim.stats().unwrap_err().code(), Code::NOT_FOUND);
    let pid = shim.start("").unwrap().pid;
    let stats = shim.stats().unwrap().stats.unwrap();
    assert!(!stats.value.is_empty());
    // Of the container's own group, not of another.
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(groups.contains(bundle.id()), "{groups}");
    assert!(shim.pids().unwrap().processes.iter().any(|p| p.pid == pid));
    shim.update(&serde_json::json!({ "cpu": { "shares": 512 } })).unwrap();
    shim.pause().unwrap();
    shim.resume().unwrap();
    shim.update(&serde_json::json!({ "memory": { "limit": 48 << 20 } })).unwrap();
    shim.exec("glutton", &["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"], &Stdio::none()).unwrap();
    shim.start("glutton").unwrap();
    assert_eq!(shim.wait_status("glutton"), 137);
    let story = containerd.wait_for(bundle.id(), "exit glutton 137");
    assert!(story.contains(&"oom".to_owned()), "{story:?}");
    shim.discard();
}

#[test]
fn a_container_runs_on_after_its_checkpoint_and_can_be_restored_elsewhere() {
    let scene = Scene::new();
    let Some(runc) = runc_with_criu(&scene) else { return };
    let _containerd = FakeContainerd::start(&scene);
    let bundle = counting(&scene, COUNTER);
    let mut shim = Launch::new(&scene, &bundle).runtime(&runc).start();
    let stdio = Stdio::fifos(&scene, "first");
    let (stdout, _stderr) = stdio.readers();
    let init = Process::of(shim.run(&stdio));
    count(&stdio, &stdout, 1..=2);
    let image = scene.path("image");
    shim.checkpoint(&image, &CheckpointOptions::default()).unwrap();
    assert!(init.is_alive());
    count(&stdio, &stdout, 3..=4);
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    shim.delete("").unwrap();

    // From where it was when it was written, whatever came after.
    let stdio = Stdio::fifos(&scene, "second");
    let (stdout, _stderr) = stdio.readers();
    shim.create_from(&image, &stdio).unwrap();
    shim.start("").unwrap();
    count(&stdio, &stdout, 3..=3);
    stdio.input().write(b"end\n");
    assert_eq!(shim.wait_status(""), 3);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_paused_container_is_checkpointed() {
    let scene = Scene::new();
    let Some(runc) = runc_with_criu(&scene) else { return };
    let _containerd = FakeContainerd::start(&scene);
    let bundle = counting(&scene, COUNTER);
    let mut shim = Launch::new(&scene, &bundle).runtime(&runc).start();
    let stdio = Stdio::fifos(&scene, "first");
    let (stdout, _stderr) = stdio.readers();
    shim.run(&stdio);
    count(&stdio, &stdout, 1..=2);
    shim.pause().unwrap();
    let image = scene.path("image");
    shim.checkpoint(&image, &CheckpointOptions::default()).unwrap();
    assert_eq!(shim.status(""), Status::PAUSED);
    shim.resume().unwrap();
    count(&stdio, &stdout, 3..=3);
    // And once more, with its end.
    shim.pause().unwrap();
    shim.checkpoint(&scene.path("image2"), &ending_it()).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_restored_container_has_its_terminal() {
    let scene = Scene::new();
    let Some(runc) = runc_with_criu(&scene) else { return };
    let _containerd = FakeContainerd::start(&scene);
    let bundle = counting(&scene, COUNTER).with_terminal();
    let mut shim = Launch::new(&scene, &bundle).runtime(&runc).start();
    let stdio = Stdio::terminal(&scene, "first");
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    count_on_terminal(&stdio, &stdout, 1..=2);
    let image = scene.path("image");
    shim.checkpoint(&image, &CheckpointOptions { terminal: true, ..ending_it() }).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    shim.delete("").unwrap();

    let stdio = Stdio::terminal(&scene, "second");
    let (stdout, _) = stdio.readers();
    shim.create_from(&image, &stdio).unwrap();
    shim.start("").unwrap();
    shim.resize("", 132, 43).unwrap();
    count_on_terminal(&stdio, &stdout, 3..=4);
    stdio.input().write(b"end\n");
    assert_eq!(shim.wait_status(""), 4);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[track_caller]
fn count_on_terminal(stdio: &Stdio, stdout: &holdfast_tests::Reader, numbers: std::ops::RangeInclusive<u32>) {
    let mut input = stdio.input();
    for n in numbers {
        input.write(b"next\n");
        stdout.wait_for(&format!("{n}\r\n"));
    }
}

#[test]
fn what_criu_cannot_do_is_said_with_its_log_and_can_be_tried_again() {
    let scene = Scene::new();
    let Some(runc) = runc_with_criu(&scene) else { return };
    let _containerd = FakeContainerd::start(&scene);
    let bundle = counting(&scene, COUNTER);
    let mut shim = Launch::new(&scene, &bundle).runtime(&runc).start();
    let image = counted_and_checkpointed(&scene, &mut shim);
    let tree = image.join("pstree.img");
    let whole = fs::read(&tree).unwrap();
    fs::write(&tree, "no image").unwrap();
    let stdio = Stdio::fifos(&scene, "second");
    {
        let (_stdout, _stderr) = stdio.readers();
        shim.create_from(&image, &stdio).unwrap();
        let refusal = shim.start("").unwrap_err();
        assert!(refusal.message().starts_with("OCI runtime restore failed: "), "{refusal:?}");
        assert_named_log(refusal.message(), &bundle.path("criu-restore.log"));
        assert_eq!(shim.status(""), Status::CREATED);
    }
    fs::write(&tree, whole).unwrap();
    let (stdout, _stderr) = stdio.readers();
    shim.start("").unwrap();
    count(&stdio, &stdout, 4..=4);
    shim.discard();
}

#[test]
fn a_checkpoint_that_criu_refuses_leaves_the_container_at_work() {
    let scene = Scene::new();
    let Some(runc) = runc_with_criu(&scene) else { return };
    let _containerd = FakeContainerd::start(&scene);
    // A file that is open, has no name any more, and is larger than what criu takes along of such.
    let hold = "exec 9>/tmp/f; dd if=/dev/zero bs=1M count=2 >&9 2>/dev/null; /bin/busybox rm /tmp/f; echo held";
    let bundle = counting(&scene, &format!("{hold}; n=0; while read line; do n=$((n + 1)); echo $n; exec 9>&-; done"));
    let mut shim = Launch::new(&scene, &bundle).runtime(&runc).start();
    let stdio = Stdio::fifos(&scene, "first");
    let (stdout, _stderr) = stdio.readers();
    shim.run(&stdio);
    stdout.wait_for("held\n");
    let refusal = shim.checkpoint(&scene.path("refused"), &ending_it()).unwrap_err();
    assert!(refusal.message().starts_with("OCI runtime checkpoint failed: criu failed: "), "{refusal:?}");
    assert_named_log(refusal.message(), &bundle.path("criu-dump.log"));
    assert_eq!(shim.status(""), Status::RUNNING);
    count(&stdio, &stdout, 1..=1);
    shim.checkpoint(&scene.path("image"), &ending_it()).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn the_embedded_runtime_names_those_that_make_checkpoints() {
    if !is_root() {
        return skip("needs root");
    }
    let scene = Scene::new();
    let _containerd = FakeContainerd::start(&scene);
    let bundle = counting(&scene, COUNTER);
    let mut shim = Launch::new(&scene, &bundle).runtime(&programs::ours("holdfast-oci")).start();
    let stdio = Stdio::fifos(&scene, "first");
    let (stdout, _stderr) = stdio.readers();
    shim.run(&stdio);
    let refusal = shim.checkpoint(&scene.path("image"), &ending_it()).unwrap_err();
    assert_eq!(refusal.code(), Code::UNIMPLEMENTED, "{refusal:?}");
    assert!(refusal.message().contains("use runc or crun"), "{refusal:?}");
    count(&stdio, &stdout, 1..=1);
    shim.discard();
}

#[track_caller]
fn assert_named_log(message: &str, log: &Path) {
    assert!(message.ends_with(&format!("; criu's log: {}", log.display())), "{message}");
    assert!(fs::read_to_string(log).unwrap().contains("Error"), "{message}");
}
