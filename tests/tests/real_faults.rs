//! Ring 3: real filesystems that are full, frozen or broken, under what a container prints. The shim and all that does not
//! need them go on; and when they work again, everything is there.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::{CreateTaskResponse, DeleteRequest, DeleteResponse, Mount, WaitResponse};
use holdfast_proto::record::Record;
use holdfast_tests::shim::{Status, TASK};
use holdfast_tests::wire::Code;
use holdfast_tests::{Bundle, Disk, FakeWorld, Shim, Stdio, disk, eventually, eventually::holds, process, skip};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const TROUBLE: &str = "cannot write the container's log";
const RECOVERY: &str = "the container's log is written again";

/// More than all pipes and queues between the process and its log hold.
const LINES: usize = 300_000;

/// Prints numbered lines when told to, and ends with 7.
fn printer(world: &FakeWorld) -> Bundle {
    world.script(&format!("read go; i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; exit 7"))
}

/// All lines, each once and in order.
#[track_caller]
fn assert_whole(text: &str) {
    let mut lines = 0;
    for (n, line) in text.lines().enumerate() {
        assert_eq!(line, format!("line {n}"));
        lines = n + 1;
    }
    assert_eq!(lines, LINES);
}

/// The `log` entries of a json-file.
fn entries(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["log"].as_str().unwrap().to_owned())
        .collect()
}

fn file(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// Waits until the shim's log says this; gives all of it since the last time.
#[track_caller]
fn wait_for_log(bundle: &Bundle, text: &str) -> String {
    let mut said = String::new();
    eventually(&format!("the shim should say {text:?}"), || {
        said += &bundle.take_log();
        if said.contains(text) { Ok(()) } else { Err(said.clone()) }
    });
    said
}

/// What only asks is answered whatever the disk does.
#[track_caller]
fn assert_answers(shim: &mut Shim, pid: u32) {
    assert_eq!(shim.status(""), Status::RUNNING);
    assert!(shim.pids().unwrap().processes.iter().any(|p| p.pid == pid));
    shim.stats().unwrap();
}

/// A filesystem in memory as small as can be, where the shim keeps its run-time files; unmounted when dropped.
struct TinyRun(PathBuf);

impl TinyRun {
    fn mount(world: &FakeWorld) -> Option<Self> {
        if !skip::is_root() {
            skip::skip("needs root");
            return None;
        }
        let dir = world.scene.run_dir();
        fs::create_dir_all(&dir).unwrap();
        mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), Some("size=128k,mode=700")).unwrap();
        Some(Self(dir))
    }

    /// Fills it to the last byte.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("ballast")).unwrap();
        while file.write_all(&[0; 512]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for TinyRun {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The exit of init or an exec as the record has it.
fn recorded_exit(world: &FakeWorld, exec: &str) -> Option<u32> {
    let path = world.scene.run_files().into_iter().find(|path| path.ends_with("record.json")).unwrap();
    let record = Record::read(path.as_ref()).unwrap();
    record.processes.iter().find(|p| p.exec_id == exec)?.exit.map(|exit| exit.status)
}

#[test]
fn with_a_full_run_filesystem_exits_are_told_and_are_in_the_record_when_there_is_room() {
    let world = FakeWorld::new();
    let Some(run) = TinyRun::mount(&world) else { return };
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.exec("e", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    shim.start("e").unwrap();
    // Its removal would make room.
    let journal = || world.scene.run_files().into_iter().find(|path| path.ends_with(".events"));
    eventually("no event should wait", || journal().map_or(Ok(()), Err));
    run.fill();
    shim.kill("e", 9).unwrap();
    assert_eq!(shim.wait_status("e"), 137);
    world.containerd.wait_for(bundle.id(), "exit e 137");
    assert_eq!(shim.status(""), Status::RUNNING);
    assert_eq!(recorded_exit(&world, "e"), None, "there is no room for it");
    run.make_room();
    eventually("the record should be right", || recorded_exit(&world, "e").ok_or("it is not"));
    let log = bundle.take_log();
    assert_eq!(log.matches("cannot write the record").count(), 1, "{log}");
    shim.delete("e").unwrap();
    shim.discard();
    drop(run);
}

#[test]
fn a_full_disk_under_a_log_blocks_the_container_and_loses_nothing() {
    let world = FakeWorld::new();
    let Some(disk) = Disk::new(&world.scene, "disk", 64 << 20) else { return };
    for scheme in ["file", "json-file"] {
        let bundle = printer(&world);
        let mut shim = world.start(&bundle);
        let log = disk.path(scheme);
        let input = Stdio::fifos(&world.scene, bundle.id()).stdin;
        let stdout = format!("{scheme}://{}", log.display());
        let stdio = Stdio { stdin: input, stdout: stdout.clone(), stderr: stdout, ..Stdio::none() };
        let pid = shim.run(&stdio);
        let filler = disk.fill();
        stdio.input().write(b"go\n");
        let mut said = wait_for_log(&bundle, TROUBLE);
        assert_answers(&mut shim, pid);
        fs::remove_file(filler).unwrap();
        assert_eq!(shim.wait_status(""), 7);
        shim.delete("").unwrap();
        assert_whole(&if scheme == "file" { fs::read_to_string(&log).unwrap() } else { entries(&log) });
        shim.shutdown();
        said += &bundle.take_log();
        assert_eq!((said.matches(TROUBLE).count(), said.matches(RECOVERY).count()), (1, 1), "{said}");
        fs::remove_file(log).unwrap();
    }
}

#[test]
fn a_frozen_disk_under_a_log_holds_up_that_container_alone() {
    let world = FakeWorld::new();
    let Some(disk) = Disk::new(&world.scene, "disk", 64 << 20) else { return };
    let bundle = printer(&world).in_group("pod");
    let mut shim = world.start(&bundle);
    let log = disk.path("log");
    let input = Stdio::fifos(&world.scene, bundle.id()).stdin;
    let stdio = Stdio { stdin: input, stdout: file(&log), ..Stdio::none() };
    let pid = shim.run(&stdio);

    let frozen = disk.freeze();
    stdio.input().write(b"go\n");
    // The thread waits where no signal reaches it.
    eventually("a write should be stuck", || stuck_threads(shim.process().pid(), 1));
    assert_answers(&mut shim, pid);
    let waiting = shim.begin_wait("");

    // Another container of the same pod lives its whole life meanwhile, its log included.
    let other = world.script("echo other; exit 3").in_group("pod");
    let mut second = world.start(&other);
    assert_eq!(second.process().pid(), shim.process().pid());
    let other_log = world.scene.path("other.log");
    second.run(&Stdio { stdout: file(&other_log), ..Stdio::none() });
    assert_eq!(second.wait_status(""), 3);
    assert_eq!(second.delete("").unwrap().exit_status, 3);
    assert_eq!(fs::read_to_string(&other_log).unwrap(), "other\n");

    // So do an exec in this one, and a signal to it.
    shim.exec("e", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    shim.start("e").unwrap();
    shim.kill("e", libc::SIGKILL).unwrap();
    assert_eq!(shim.wait_status("e"), 137);
    shim.delete("e").unwrap();
    assert!(process::is_alive(pid));

    // And the log of a third is to be made on that very disk: its Create waits, and nothing else does.
    let third = world.script("echo third; exit 5").in_group("pod");
    let mut late = world.start(&third);
    assert_eq!(late.process().pid(), shim.process().pid());
    let late_log = disk.path("dir/late.log");
    let request = late.create_request(&Stdio { stdout: file(&late_log), ..Stdio::none() });
    let creating = late.connection.begin(TASK, "Create", &request);
    eventually("two threads should be stuck", || stuck_threads(shim.process().pid(), 2));
    assert_answers(&mut shim, pid);

    drop(frozen);
    late.connection.finish::<CreateTaskResponse>(creating).unwrap();
    late.start("").unwrap();
    assert_eq!(late.wait_status(""), 5);
    late.delete("").unwrap();
    assert_eq!(fs::read_to_string(late_log).unwrap(), "third\n");
    assert_eq!(shim.connection.finish::<WaitResponse>(waiting).unwrap().exit_status, 7);
    shim.delete("").unwrap();
    assert_whole(&fs::read_to_string(&log).unwrap());
    shim.shutdown();
}

#[test]
fn a_broken_disk_under_a_log_is_waited_for_and_the_log_goes_on_when_it_is_mounted_anew() {
    let world = FakeWorld::new();
    let Some(mut disk) = Disk::new(&world.scene, "disk", 64 << 20) else { return };
    for scheme in ["file", "json-file"] {
        // Half of the lines before, half after.
        let half = LINES / 2;
        let count = |to: usize| format!("while [ $i -lt {to} ]; do echo line $i; i=$((i+1)); done");
        let bundle = world.script(&format!("i=0; {}; read go; {}; exit 7", count(half), count(LINES)));
        let mut shim = world.start(&bundle);
        let log = disk.path(scheme);
        let input = Stdio::fifos(&world.scene, bundle.id()).stdin;
        let stdio = Stdio { stdin: input, stdout: format!("{scheme}://{}", log.display()), ..Stdio::none() };
        let pid = shim.run(&stdio);
        let last = format!("line {}", half - 1);
        eventually("the first half should be written", || {
            let text = fs::read_to_string(&log).unwrap();
            holds(text.contains(&last))
        });
        disk.break_down();
        stdio.input().write(b"go\n");
        let mut said = wait_for_log(&bundle, TROUBLE);
        assert_answers(&mut shim, pid);
        disk.repair(&world.scene);
        assert_eq!(shim.wait_status(""), 7);
        shim.delete("").unwrap();
        assert_whole(&if scheme == "file" { fs::read_to_string(&log).unwrap() } else { entries(&log) });
        shim.shutdown();
        said += &bundle.take_log();
        assert_eq!((said.matches(TROUBLE).count(), said.matches(RECOVERY).count()), (1, 1), "{said}");
        assert_eq!(said.matches("going on in a new one").count(), 1, "{said}");
    }
}

#[test]
fn a_create_whose_log_cannot_be_opened_in_time_is_refused_and_can_be_repeated() {
    let world = FakeWorld::new();
    let Some(disk) = Disk::new(&world.scene, "disk", 64 << 20) else { return };
    let bundle = world.script("echo hello; exit 7");
    let mut shim = world.launch(&bundle).env("HOLDFAST_RUNTIME_TIMEOUT_MS", "1000").start();
    let log = disk.path("dir/log");
    let stdio = Stdio { stdout: file(&log), ..Stdio::none() };
    let frozen = disk.freeze();
    let refusal = shim.create(&stdio).unwrap_err();
    assert_eq!(refusal.code(), Code::DEADLINE_EXCEEDED);
    assert!(refusal.message().contains("the disk of its log does not answer"), "{refusal:?}");
    drop(frozen);
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 7);
    shim.delete("").unwrap();
    assert_eq!(fs::read_to_string(log).unwrap(), "hello\n");
    assert_eq!(world.containerd.wait_for(bundle.id(), "delete 7"), ["create", "start", "exit 7", "delete 7"]);
    shim.shutdown();
}

#[test]
fn an_unmount_that_hangs_is_given_up_in_time_and_succeeds_when_the_disk_answers() {
    let world = FakeWorld::new();
    let Some(disk) = Disk::new(&world.scene, "disk", 64 << 20) else { return };
    let image = disk.path("rootfs.image");
    disk::make_image(&image, 16 << 20);
    let bundle = world.sleeper().in_group("pod");
    let launch = world.launch(&bundle).env("HOLDFAST_RUNTIME_TIMEOUT_MS", "1000");
    let mut shim = launch.start();
    let mut request = shim.create_request(&Stdio::none());
    let (kind, source) = ("ext4".to_owned(), image.to_str().unwrap().to_owned());
    request.rootfs = vec![Mount { type_: kind, source, options: vec!["loop".to_owned()], ..Mount::default() }];
    shim.connection.call::<CreateTaskResponse>(TASK, "Create", &request).unwrap();
    shim.start("").unwrap();
    fs::write(bundle.path("rootfs/file"), "to be written at the unmount").unwrap();
    shim.kill("", libc::SIGKILL).unwrap();
    assert_eq!(shim.wait_status(""), 137);

    let frozen = disk.freeze();
    let delete = DeleteRequest { id: bundle.id().into(), ..DeleteRequest::default() };
    let deleting = shim.connection.begin(TASK, "Delete", &delete);
    let unmounting = eventually("an unmount should be stuck", || {
        let children = process::marked(world.scene.id()).into_iter().filter(|pid| process::state(*pid) == Some('D'));
        children.collect::<Vec<_>>().first().copied().ok_or("none")
    });
    // A client of its own, as containerd's connection is busy; and another container of the same pod.
    let other = world.script("exit 3").in_group("pod");
    let mut second = world.start(&other);
    assert_eq!(second.process().pid(), shim.process().pid());
    second.run(&Stdio::none());
    assert_eq!(second.wait_status(""), 3);
    second.delete("").unwrap();
    assert_eq!(shim.status(""), Status::STOPPED);
    assert_eq!(shim.wait_status(""), 137);

    let refusal = shim.connection.finish::<DeleteResponse>(deleting).unwrap_err();
    assert_eq!(refusal.code(), Code::DEADLINE_EXCEEDED);
    assert!(refusal.message().contains("something that it needs does not answer"), "{refusal:?}");
    assert!(process::is_alive(unmounting), "killed or not");
    assert_eq!(shim.status(""), Status::STOPPED);

    drop(frozen);
    assert_eq!(shim.delete("").unwrap().exit_status, 137);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(bundle.id()), "{mounts}");
    shim.shutdown();
}

const SPILL_TROUBLE: &str = "cannot use what is kept for an absent reader";
const SPILL_RECOVERY: &str = "can be used again";

/// Where the shims of a scene keep output for absent readers, on a disk of its own.
fn spill_disk(world: &FakeWorld) -> Option<Disk> {
    Disk::new(&world.scene, "v", 64 << 20)
}

#[test]
fn a_full_disk_under_what_is_kept_for_an_absent_reader_blocks_the_container_and_loses_nothing() {
    let world = FakeWorld::new();
    let Some(disk) = spill_disk(&world) else { return };
    let bundle = printer(&world);
    let mut shim = world.start(&bundle);
    let stdio = Stdio { stderr: String::new(), ..Stdio::fifos(&world.scene, bundle.id()) };
    let pid = shim.run(&stdio);
    let filler = disk.fill();
    stdio.input().write(b"go\n");
    let mut said = wait_for_log(&bundle, SPILL_TROUBLE);
    assert_answers(&mut shim, pid);
    fs::remove_file(filler).unwrap();
    // It ends although nobody has read a byte.
    assert_eq!(shim.wait_status(""), 7);
    assert_whole(&stdio.readers().0.text());
    shim.delete("").unwrap();
    shim.shutdown();
    said += &bundle.take_log();
    assert_eq!((said.matches(SPILL_TROUBLE).count(), said.matches(SPILL_RECOVERY).count()), (1, 1), "{said}");
}

/// The disk breaks before the container prints what it prints next; nothing is lost, and both is said once.
fn breaks_and_is_mounted_anew(
    world: &FakeWorld,
    mut disk: Disk,
    bundle: &Bundle,
    (mut shim, pid): (Shim, u32),
    stdio: &Stdio,
) {
    disk.break_down();
    stdio.input().write(b"go\n");
    let mut said = wait_for_log(bundle, SPILL_TROUBLE);
    assert_answers(&mut shim, pid);
    disk.repair(&world.scene);
    assert_eq!(shim.wait_status(""), 7);
    assert_whole(&stdio.readers().0.text());
    shim.delete("").unwrap();
    shim.shutdown();
    said += &bundle.take_log();
    assert_eq!((said.matches(SPILL_TROUBLE).count(), said.matches(SPILL_RECOVERY).count()), (1, 1), "{said}");
}

#[test]
fn a_broken_disk_under_what_is_to_be_kept_is_waited_for_and_nothing_is_lost_when_it_is_mounted_anew() {
    let world = FakeWorld::new();
    let Some(disk) = spill_disk(&world) else { return };
    let bundle = printer(&world);
    let mut shim = world.start(&bundle);
    let stdio = Stdio { stderr: String::new(), ..Stdio::fifos(&world.scene, bundle.id()) };
    let pid = shim.run(&stdio);
    breaks_and_is_mounted_anew(&world, disk, &bundle, (shim, pid), &stdio);
}

#[test]
fn what_was_kept_on_a_disk_that_breaks_is_read_from_there_when_it_is_mounted_anew() {
    let world = FakeWorld::new();
    let Some(disk) = spill_disk(&world) else { return };
    let (half, last) = (LINES / 2, LINES - 1);
    let bundle =
        world.script(&format!("seq -f 'line %.0f' 0 {}; read go; seq -f 'line %.0f' {half} {last}; exit 7", half - 1,));
    let mut shim = world.start(&bundle);
    let stdio = Stdio { stderr: String::new(), ..Stdio::fifos(&world.scene, bundle.id()) };
    let pid = shim.run(&stdio);
    let first = (0..half).map(|n| format!("line {n}\n").len() as u64).sum::<u64>();
    eventually("the first half should be kept", || {
        let kept = shim.output(false).unwrap().streams[0].kept_bytes;
        // The rest is in the FIFO.
        if kept + (1 << 20) >= first { Ok(()) } else { Err(kept) }
    });
    breaks_and_is_mounted_anew(&world, disk, &bundle, (shim, pid), &stdio);
}

#[test]
fn a_frozen_disk_under_what_is_kept_for_an_absent_reader_holds_up_that_container_alone() {
    let world = FakeWorld::new();
    let Some(disk) = spill_disk(&world) else { return };
    let bundle = printer(&world).in_group("pod");
    let mut shim = world.start(&bundle);
    let stdio = Stdio { stderr: String::new(), ..Stdio::fifos(&world.scene, bundle.id()) };
    let pid = shim.run(&stdio);
    let frozen = disk.freeze();
    stdio.input().write(b"go\n");
    eventually("a write should be stuck", || stuck_threads(shim.process().pid(), 1));
    assert_answers(&mut shim, pid);
    let waiting = shim.begin_wait("");

    // Another container of the same pod, whose reader is there, and one whose log is elsewhere. A handle that goes would end
    // the shim.
    let mut handles = Vec::new();
    for stdio in [
        Stdio { stderr: String::new(), ..Stdio::output(&world.scene, "other") },
        Stdio { stdout: file(&world.scene.path("other.log")), ..Stdio::none() },
    ] {
        let other = world.script("echo other; exit 3").in_group("pod");
        let mut second = world.start(&other);
        assert_eq!(second.process().pid(), shim.process().pid());
        let reader = (!stdio.stdout.contains("://")).then(|| stdio.readers().0);
        second.run(&stdio);
        assert_eq!(second.wait_status(""), 3);
        // Only then does a log have all.
        second.delete("").unwrap();
        let text = reader.map_or_else(|| fs::read_to_string(world.scene.path("other.log")).unwrap(), |r| r.text());
        assert_eq!(text, "other\n");
        handles.push(second);
    }
    assert!(process::is_alive(pid));

    drop(frozen);
    assert_eq!(shim.connection.finish::<WaitResponse>(waiting).unwrap().exit_status, 7);
    assert_whole(&stdio.readers().0.text());
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_container_whose_kept_output_is_on_a_frozen_disk_is_deleted_in_time() {
    let world = FakeWorld::new();
    let Some(disk) = spill_disk(&world) else { return };
    let bundle = world.script("echo kept; read go; exit 7");
    let mut shim = world.start(&bundle);
    let stdio = Stdio { stderr: String::new(), ..Stdio::fifos(&world.scene, bundle.id()) };
    shim.run(&stdio);
    eventually("it should be kept", || {
        let kept = process::run(
            std::process::Command::new("find").arg(disk.path("spill")).args(["-type", "f", "-size", "+0"]),
        );
        holds(!kept.stdout.is_empty())
    });
    let frozen = disk.freeze();
    shim.kill("", libc::SIGKILL).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    assert_eq!(shim.delete("").unwrap().exit_status, 137);
    drop(frozen);
    shim.shutdown();
}

/// Whether so many threads of the process are in a wait that nothing ends.
fn stuck_threads(pid: u32, count: usize) -> Result<(), Vec<String>> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let states: Vec<String> = threads
        .map(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().unwrap_or_default().chars().take(1).collect()
        })
        .collect();
    if states.iter().filter(|state| *state == "D").count() >= count { Ok(()) } else { Err(states) }
}
