//! Ring 3: what else ctr can ask of a task, under a private containerd of each version; see `with_containerd.rs`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use holdfast_tests::container::{Container, Oci};
use holdfast_tests::image::{self, IMAGE};
use holdfast_tests::matrix::Real;
use holdfast_tests::process::ChildProcess;
use holdfast_tests::programs::Version;
use holdfast_tests::skip::{criu_refusal, skip};
use holdfast_tests::{Reader, eventually, gate, process};
use serde_json::{Value, json};

holdfast_tests::matrix!(
    lack_of_memory_is_told_before_the_exit,
    the_figures_are_those_that_were_asked_for,
    an_exec_has_a_terminal,
    a_client_may_leave_and_another_take_over_its_input,
    a_snapshot_of_an_image_is_the_root_filesystem,
    options_are_found_in_any_case_and_unknown_ones_reported,
    the_shim_is_in_the_control_group_that_is_asked_for,
    the_bounds_of_kept_output_are_those_of_file_option_and_annotation,
    containers_of_a_group_share_a_shim_and_end_one_by_one,
    containers_that_race_into_a_group_share_a_shim,
    the_highest_version_that_the_daemon_understands_can_be_wished_for,
    a_checkpoint_is_written_and_restored_or_refused_by_name,
);

/// A container that runs until it is killed.
const SLEEPER: &str = "exec /bin/sleep 1000";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_success(real: &Real<'_>, output: &Output) {
    assert!(output.status.success(), "{}", real.containerd.complain(output));
}

fn lack_of_memory_is_told_before_the_exit(real: &Real<'_>) {
    if real.lacks_controllers() {
        return;
    }
    let events = real.containerd.listen();
    // A line without an end, which tail(1) keeps whole.
    let output = real.container().run(&["--rm", "--memory-limit", "16777216"], "exec /bin/busybox tail /dev/zero");
    assert_eq!(output.status.code(), Some(137), "{}", real.containerd.complain(&output));
    let seen = events.of_tasks_until("delete");
    let mut topics: Vec<&str> = seen.iter().map(|(topic, _)| topic.as_str()).collect();
    let at = |topic: &str| seen.iter().position(|(seen, _)| seen == topic);
    // It may be told before the start that has not returned yet.
    let oom = at("oom").expect("/tasks/oom");
    assert!(at("create") < Some(oom) && Some(oom) < at("exit"), "{seen:?}");
    topics.remove(oom);
    assert_eq!(topics, ["create", "start", "exit", "delete"], "{seen:?}");
    assert!(seen[3].1.contains("\"exit_status\":137"), "{seen:?}");
}

fn the_figures_are_those_that_were_asked_for(real: &Real<'_>) {
    if real.lacks_controllers() {
        return;
    }
    const LIMIT: u64 = 48 << 20;
    let container = real.container();
    // Three processes, of which one has used the processor.
    let script =
        "/bin/sleep 1000 & /bin/sleep 1000 & i=0; while [ $i -lt 50000 ]; do i=$((i + 1)); done; echo >/done; wait";
    let output = container.run(&["--detach", "--memory-limit", &LIMIT.to_string()], script);
    assert_success(real, &output);
    let done = real.containerd.rootfs().join("done");
    eventually("it should have done its work", || if done.exists() { Ok(()) } else { Err(()) });
    container.update(&json!({ "pids": { "limit": 77 } })).unwrap();
    let metrics = real.containerd.ok(&["task", "metrics", "--format", "json", &container.id]);
    let metrics: Value = serde_json::from_str(&metrics).unwrap();
    let number = |pointers: [&str; 2]| pointers.iter().find_map(|p| metrics.pointer(p)?.as_u64());
    let seen = (number(["/memory/usage/limit", "/memory/usage_limit"]), number(["/pids/limit"; 2]));
    assert_eq!(seen, (Some(LIMIT), Some(77)), "{metrics}");
    assert_eq!(number(["/pids/current"; 2]), Some(3), "{metrics}");
    let used = number(["/memory/usage/usage", "/memory/usage"]);
    assert!(used.is_some_and(|n| 0 < n && n <= LIMIT), "{metrics}");
    assert!(number(["/cpu/usage/total", "/cpu/usage_usec"]).is_some_and(|n| n > 1000), "{metrics}");
    real.containerd.remove(&container.id);
}

fn an_exec_has_a_terminal(real: &Real<'_>) {
    let container = real.container();
    container.run_detached(SLEEPER);
    let script = "/bin/tty && echo both >&2; exit 6";
    let output = real.containerd.at_a_terminal(&container.exec_command("e", &["--tty"], &["/bin/sh", "-c", script]));
    let seen = text(&output.stdout).replace('\r', "");
    // script(1) has no input to give, and what it makes of that is echoed between the lines.
    let complete = seen.contains("/dev/pts/0\n") && seen.contains("both\n");
    assert!(complete, "{}", real.containerd.complain(&output));
    assert_eq!(output.status.code(), Some(6), "{seen}");
    real.containerd.remove(&container.id);
}

/// `ctr run` dies; what its container prints and reads is then `ctr task attach`'s.
fn a_client_may_leave_and_another_take_over_its_input(real: &Real<'_>) {
    let container = real.container();
    let script = "while read line; do echo got $line; [ $line != last ] || exit 5; done; exit 99";
    let mut first = Client::begin(real, "first", &mut container.run_command(&[], &["/bin/sh", "-c", script]));
    first.write("one\n");
    first.wait_for("got one\n");
    first.ctr.kill();
    drop(first);
    // What it prints may be there before Start was answered.
    real.containerd.wait_for_status(&container.id, "RUNNING");
    let mut attach = real.containerd.ctr();
    let mut second = Client::begin(real, "second", attach.args(["task", "attach", &container.id]));
    second.write("two\n");
    second.wait_for("got two\n");
    second.write("last\n");
    assert_eq!(second.ctr.wait().code(), Some(5), "{}", second.printed());
    assert_eq!(second.printed(), "got two\ngot last\n");
    real.containerd.ok(&["container", "delete", &container.id]);
    real.containerd.wait_for_end_of_shim(&container.id);
}

/// A ctr that is written to.
struct Client {
    ctr: ChildProcess,
    out: PathBuf,
}

impl Client {
    fn begin(real: &Real<'_>, name: &str, command: &mut Command) -> Self {
        let out = real.scene.path(name);
        command.stdin(Stdio::piped()).stdout(fs::File::create(&out).unwrap());
        Self { ctr: ChildProcess::spawn(command), out }
    }

    fn write(&mut self, line: &str) {
        self.ctr.child().stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn printed(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    #[track_caller]
    fn wait_for(&self, expected: &str) {
        eventually("it should print", || if self.printed() == expected { Ok(()) } else { Err(self.printed()) });
    }
}

fn a_snapshot_of_an_image_is_the_root_filesystem(real: &Real<'_>) {
    image::import(&real.containerd);
    let container = real.container();
    let script = "echo kept >/file; grep ' / ' /proc/mounts; cat /file; exit 3";
    let mut command = container.run_image_command(&["--rm"], IMAGE, &["/bin/sh", "-c", script]);
    let output = process::run(&mut command);
    assert_eq!(output.status.code(), Some(3), "{}", real.containerd.complain(&output));
    let seen = text(&output.stdout);
    assert!(seen.starts_with("overlay / overlay rw,") && seen.ends_with("\nkept\n"), "{seen}");
    real.containerd.wait_for_end_of_shim(&container.id);
}

fn the_shim_is_in_the_control_group_that_is_asked_for(real: &Real<'_>) {
    let program = real.cell.oci.program();
    let group = format!("/{}-shims", real.scene.id());
    // As with containerd's own shim it must be there.
    let root = PathBuf::from("/sys/fs/cgroup");
    let is_group = |dir: &PathBuf| dir.join("cgroup.procs").exists();
    let hierarchies: Vec<PathBuf> = if is_group(&root) {
        vec![root]
    } else {
        fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path()).filter(is_group).collect()
    };
    for hierarchy in hierarchies {
        let dir = hierarchy.join(&group[1..]);
        let _ = fs::create_dir(&dir);
        // Where version 1 divides processors and memory, a new group has none.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read(hierarchy.join(file)) {
                let _ = fs::write(dir.join(file), all);
            }
        }
    }
    let options = format!("BinaryName = {program:?}\nShimCgroup = {group:?}\n");
    let container = Container::with_config(&real.containerd, 0, &options);
    let pid = container.run_detached(SLEEPER);
    let groups = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let shim = process::parent(pid).unwrap();
    assert!(groups(shim).lines().any(|line| line.ends_with(&group)), "{}", groups(shim));
    assert!(!groups(pid).contains(&group), "{}", groups(pid));
    real.containerd.remove(&container.id);
    process::until_gone(shim);
    real.scene.remove_empty_cgroups();
}

fn options_are_found_in_any_case_and_unknown_ones_reported(real: &Real<'_>) {
    let (program, root) = (real.cell.oci.program(), real.scene.path("roots"));
    let options = format!("BINARYNAME = {program:?}\nroot = {root:?}\nNoSuchOption = 1\n");
    let container = Container::with_config(&real.containerd, 0, &options);
    container.run_detached(SLEEPER);
    let state = root.join("tests").join(&container.id);
    assert!(state.is_dir(), "{} should be the state of the OCI runtime", state.display());
    eventually("the daemon's log should name the unknown option", || {
        let log = real.containerd.log();
        let about = |line: &&str| line.contains("level=warn") && line.contains("key=NoSuchOption");
        match log.lines().filter(about).count() {
            1 => Ok(()),
            _ => Err(log),
        }
    });
    real.containerd.remove(&container.id);
}

/// The strongest last; and what they say is done.
fn the_bounds_of_kept_output_are_those_of_file_option_and_annotation(real: &Real<'_>) {
    const PRINTED: usize = 4 << 20;
    fs::write(real.scene.path("shim.toml"), "[output]\nspill-limit = '1MiB'\npolicy = 'drop-oldest'\n").unwrap();
    let runtime = format!("BinaryName = {:?}\nRoot = {:?}\n", real.cell.oci.program(), real.scene.path("oci-root"));
    let annotations =
        ["--annotation", "holdfast.output.spill-limit=256KiB", "--annotation", "holdfast.output.policy=drop-oldest"];
    for (n, (options, annotations, expected)) in [
        ("", &[][..], (1 << 20, "drop-oldest")),
        ("SpillLimit = '2MiB'\nOutputPolicy = 'block'\n", &[], (2 << 20, "block")),
        ("SpillLimit = '2MiB'\nOutputPolicy = 'block'\n", &annotations, (256 << 10, "drop-oldest")),
    ]
    .into_iter()
    .enumerate()
    {
        let container = Container::with_config(&real.containerd, n, &format!("{runtime}{options}"));
        let flags = [&["--detach"], annotations].concat();
        let line = "0123456789abcde";
        // Not before ctr, who reads until then, has gone.
        let gate = format!("go{n}");
        let wait = gate::wait_at(&gate);
        let print = format!("/bin/busybox yes {line} | /bin/busybox head -c {PRINTED}; echo over");
        assert_success(real, &container.run(&flags, &format!("{wait}; {print}; exec /bin/sleep 1000")));
        gate::open(real.containerd.rootfs(), &gate);
        let (limit, policy) = expected;
        let stream = eventually("its bound should be reached", || {
            let mut streams = container.output().streams.into_iter();
            let stream = streams.find(|s| s.stream == "stdout").map(Box::new).unwrap();
            let reached = if policy == "block" { stream.bound == "limit" } else { stream.dropped_bytes > 0 };
            if reached { Ok(stream) } else { Err(stream) }
        });
        assert_eq!((stream.spill_limit, stream.policy.as_str()), expected);
        let reader = Reader::open(the_fifo(real));
        reader.wait_for("over\n");
        real.containerd.ok(&["task", "kill", "-s", "SIGKILL", &container.id]);
        let text = reader.text();
        let (marks, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("[holdfast: "));
        let told: usize = marks.iter().map(|mark| mark.split(' ').nth(1).unwrap().parse::<usize>().unwrap()).sum();
        assert_eq!(marks.is_empty(), policy == "block", "{marks:?}");
        assert!(lines[..lines.len() - 1].iter().all(|l| *l == line), "whole lines");
        assert_eq!(told + 16 * (lines.len() - 1), PRINTED, "limit {limit}: {marks:?}");
        real.containerd.remove(&container.id);
    }
}

/// The only FIFO for output that ctr has made.
#[track_caller]
fn the_fifo(real: &Real<'_>) -> PathBuf {
    let dirs = fs::read_dir(real.scene.path("fifos")).unwrap().flatten();
    let mut files = dirs.flat_map(|dir| fs::read_dir(dir.path()).unwrap().flatten());
    files.find(|file| file.file_name().to_str().is_some_and(|name| name.ends_with("-stdout"))).unwrap().path()
}

fn containers_of_a_group_share_a_shim_and_end_one_by_one(real: &Real<'_>) {
    let group = format!("io.containerd.runc.v2.group={}", real.scene.id());
    let containers = [0, 1, 2].map(|n| real.numbered(n));
    let [first, second, late] = &containers;
    let run = |container: &Container<'_>| {
        let script = "trap 'exit 4' USR1; while :; do /bin/sleep 0.02; done";
        assert_success(real, &container.run(&["--detach", "--annotation", &group], script));
    };
    let end = |container: &Container<'_>| {
        real.containerd.ok(&["task", "kill", "-s", "SIGUSR1", &container.id]);
        real.containerd.wait_for_status(&container.id, "STOPPED");
    };
    run(first);
    run(second);
    let shim = first.shim();
    assert_eq!(second.shim_pid(), shim.pid());
    // The first to come is the first to go, and its bundle, where the shim began, with it.
    end(first);
    real.containerd.ok(&["task", "delete", &first.id]);
    run(late);
    assert_eq!(late.shim_pid(), shim.pid());
    real.containerd.kill();
    real.containerd.resume();
    for container in [second, late] {
        real.containerd.wait_for_status(&container.id, "RUNNING");
        let output = container.exec("e", &[], &["/bin/sh", "-c", "exit 2"]);
        assert_eq!(output.status.code(), Some(2), "{}", real.containerd.complain(&output));
    }
    for container in [second, late] {
        assert!(shim.is_alive());
        end(container);
        assert_eq!(real.containerd.delete(&container.id), 4);
    }
    shim.wait_gone();
    real.containerd.ok(&["container", "delete", &first.id]);
}

fn containers_that_race_into_a_group_share_a_shim(real: &Real<'_>) {
    let group = format!("io.containerd.runc.v2.group={}", real.scene.id());
    let containers = [0, 1, 2, 3].map(|n| real.numbered(n));
    let flags = ["--detach", "--annotation", &group];
    let racers = containers.each_ref().map(|container| {
        let mut command = container.run_command(&flags, &["/bin/sleep", "1000"]);
        ChildProcess::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))
    });
    for mut racer in racers {
        assert!(racer.wait().success(), "{}", real.containerd.log());
    }
    let pids = containers.each_ref().map(Container::shim_pid);
    assert_eq!(pids, [pids[0]; 4]);
    let shim = process::Process::of(pids[0]);
    for container in &containers {
        assert!(shim.is_alive());
        real.containerd.wait_for_status(&container.id, "RUNNING");
        real.containerd.ok(&["task", "kill", "-s", "SIGKILL", &container.id]);
        real.containerd.wait_for_status(&container.id, "STOPPED");
        // ctr warns of the status, and succeeds.
        real.containerd.ok(&["task", "delete", &container.id]);
        real.containerd.ok(&["container", "delete", &container.id]);
    }
    shim.wait_gone();
}

fn the_highest_version_that_the_daemon_understands_can_be_wished_for(real: &Real<'_>) {
    let containerd = &real.containerd;
    let is_2 = real.containerd.version() >= Version::V2_1;
    containerd.restart_with("HOLDFAST_BOOTSTRAP_VERSION", if is_2 { "3-since-2.0" } else { "3" });
    let container = real.container();
    let pid = container.run_detached(SLEEPER);
    let output = container.exec("e", &[], &["/bin/sh", "-c", "echo exec; exit 3"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("exec\n".into(), Some(3)));
    // What was agreed on is what a later daemon has to go by.
    containerd.kill();
    containerd.resume();
    assert_eq!(containerd.task(&container.id), Some(("RUNNING".into(), pid)));
    if is_2 {
        let state = real.scene.path("containerd/state/io.containerd.runtime.v2.task/tests");
        let agreed = fs::read_to_string(state.join(&container.id).join("bootstrap.json")).unwrap();
        let agreed: Value = serde_json::from_str(&agreed).unwrap();
        assert_eq!((&agreed["version"], &agreed["protocol"]), (&json!(3), &json!("ttrpc")));
    }
    containerd.ok(&["task", "kill", "-s", "SIGKILL", &container.id]);
    containerd.wait_for_status(&container.id, "STOPPED");
    assert_eq!(containerd.delete(&container.id), 137);
}

fn a_checkpoint_is_written_and_restored_or_refused_by_name(real: &Real<'_>) {
    match real.cell.oci {
        Oci::Crun if !has_criu(&real.cell.oci.program()) => refused(real),
        Oci::Runc | Oci::Crun => match criu_refusal(real.scene) {
            Some(reason) => skip(reason),
            None => written_and_restored(real),
        },
        Oci::HoldfastOci => refused(real),
    }
}

/// Whether a crun was built with it.
fn has_criu(crun: &Path) -> bool {
    text(&process::run(Command::new(crun).arg("--version")).stdout).contains("+CRIU")
}

fn refused(real: &Real<'_>) {
    let container = real.container();
    let pid = container.run_detached(SLEEPER);
    let output = real.containerd.run(&["task", "checkpoint", &container.id]);
    assert!(!output.status.success(), "{}", real.containerd.complain(&output));
    let said = text(&output.stderr);
    let words = if real.cell.oci == Oci::HoldfastOci { "use runc or crun" } else { "criu" };
    assert!(said.contains(words), "{said}");
    assert_eq!(real.containerd.task(&container.id), Some(("RUNNING".into(), pid)));
    real.containerd.remove(&container.id);
}

fn written_and_restored(real: &Real<'_>) {
    let containerd = &real.containerd;
    image::import(containerd);
    let container = real.container();
    let id = &container.id;
    // It counts into a file, since ctr restores without streams.
    let out = real.scene.make_dir("out");
    let mount = format!("type=bind,src={},dst=/out,options=rbind:rw", out.display());
    let script = "n=0; while :; do n=$((n + 1)); echo $n >>/out/numbers; sleep 0.02; done";
    let flags = ["--detach", "--net-host", "--mount", &mount];
    let output = process::run(&mut container.run_image_command(&flags, IMAGE, &["/bin/sh", "-c", script]));
    assert_success(real, &output);
    let numbers = || -> Vec<u32> {
        let text = fs::read_to_string(out.join("numbers")).unwrap_or_default();
        text.lines().map(|n| n.parse().unwrap()).collect()
    };
    let wait_for_more = |count: usize| {
        eventually("it should count", || if numbers().len() > count { Ok(()) } else { Err(numbers()) });
    };
    wait_for_more(3);
    containerd.ok(&["container", "checkpoint", "--task", "--image", "--rw", id, "checkpoint"]);
    let at_checkpoint = numbers().len();
    wait_for_more(at_checkpoint);
    containerd.remove(id);
    let before = numbers();
    assert_eq!(before, (1..=u32::try_from(before.len()).unwrap()).collect::<Vec<_>>());

    containerd.ok(&["container", "restore", "--rw", "--live", id, "checkpoint"]);
    containerd.wait_for_status(id, "RUNNING");
    wait_for_more(before.len() + 3);
    let after = numbers().split_off(before.len());
    // From where it was at the checkpoint: neither from 1 on nor from where it was killed.
    let first = usize::try_from(after[0]).unwrap();
    assert!((4..=at_checkpoint + 1).contains(&first), "{at_checkpoint} at the checkpoint, then {after:?}");
    assert!(after.is_sorted_by(|a, b| a + 1 == *b), "{after:?}");
    assert!(containerd.ok(&["task", "metrics", id]).contains("memory"));
    containerd.remove(id);
}
