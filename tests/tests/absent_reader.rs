//! Ring 2: output that is printed while nobody reads it. It neither blocks the process nor gets lost, within bounds.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use containerd_shim_protos::shim::shim::DeleteResponse;
use holdfast_tests::shim::{NAMESPACE, Status};
use holdfast_tests::{Bundle, FakeWorld, Process, Reader, Stdio, eventually, process};
use serde_json::json;

/// As many numbered lines of eight bytes as make `count` bytes.
fn numbered(count: usize) -> Vec<u8> {
    (0..count / 8).flat_map(|n| format!("{n:07x}\n").into_bytes()).collect()
}

/// The command that prints [`numbered`] in large writes.
fn print_numbered(world: &FakeWorld, count: usize) -> String {
    let source = world.scene.path(format!("numbered.{count}"));
    fs::write(&source, numbered(count)).unwrap();
    format!("dd if={} bs=65536 2>/dev/null", source.display())
}

/// The command that waits until this file exists.
fn wait_for(path: &Path) -> String {
    format!("while [ ! -e {} ]; do sleep 0.01; done", path.display())
}

fn with_output(bundle: Bundle, limit: &str, policy: &str) -> Bundle {
    bundle.configure(|spec| {
        spec["annotations"] = json!({ "holdfast.output.spill-limit": limit, "holdfast.output.policy": policy });
    })
}

#[track_caller]
fn assert_same(got: &[u8], expected: &[u8]) {
    let first = got.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!((got.len(), first), (expected.len(), None), "the length, and where the first difference is");
}

/// All files and directories below the spill directory.
fn kept(world: &FakeWorld) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![world.scene.path("v/spill")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}

/// The spill files, by name.
fn spills(world: &FakeWorld) -> Vec<String> {
    let is_stream = |name: &String| name.ends_with(".stdout") || name.ends_with(".stderr");
    let names = kept(world).into_iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    let mut names: Vec<_> = names.filter(is_stream).collect();
    names.sort();
    names
}

#[track_caller]
fn nothing_is_kept(world: &FakeWorld, id: &str) {
    eventually("nothing should be kept any more", || {
        let left: Vec<_> = kept(world).into_iter().filter(|path| path.to_str().unwrap().contains(id)).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

fn spill_file(world: &FakeWorld, bundle: &Bundle, name: &str) -> PathBuf {
    let wanted = Path::new(NAMESPACE).join(bundle.id()).join(name);
    eventually("it should be kept", || kept(world).into_iter().find(|path| path.ends_with(&wanted)).ok_or("no file"))
}

#[track_caller]
fn wait_until_blocked(pid: u32) {
    // It writes as fast as it can, so it sleeps only when it cannot.
    eventually("the process should wait in its write", || match process::state(pid) {
        Some('S') => Ok(()),
        other => Err(other),
    });
}

/// Opens the FIFO, reads as much as that and no more, and leaves.
#[track_caller]
fn visit(path: &str, count: usize) -> Vec<u8> {
    let mut options = fs::File::options();
    let mut fifo = options.read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path).unwrap();
    let mut got = vec![0; count];
    let mut len = 0;
    eventually("it should get that much", || {
        while let Ok(n @ 1..) = fifo.read(&mut got[len..]) {
            len += n;
        }
        if len == count { Ok(()) } else { Err(len) }
    });
    got
}

/// What the shim has said since.
fn shim_log(bundle: &Bundle) -> fs::File {
    let mut options = fs::File::options();
    options.read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(bundle.path("log")).unwrap()
}

fn said(log: &mut fs::File) -> String {
    let mut said = String::new();
    let _ = log.read_to_string(&mut said);
    said
}

#[test]
fn a_process_that_nobody_reads_ends_at_once_and_its_last_words_wait() {
    const COUNT: usize = 4 << 20;
    let world = FakeWorld::new();
    let bundle = world.script(&format!("{}; echo errors >&2; exit 4", print_numbered(&world, COUNT)));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 4);
    world.containerd.wait_for(bundle.id(), "exit 4");
    eventually("both streams should be kept", || {
        let names = spills(&world);
        if names == ["init.stderr", "init.stdout"] { Ok(()) } else { Err(names) }
    });
    let (stdout, stderr) = stdio.readers();
    assert_same(&stdout.to_end(), &numbered(COUNT));
    assert_eq!(stderr.unwrap().text(), "errors\n");
    nothing_is_kept(&world, bundle.id());
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_reader_that_leaves_and_returns_again_and_again_gets_each_byte_once() {
    const COUNT: usize = 8 << 20;
    let world = FakeWorld::new();
    let go = world.scene.path("go");
    // Large writes and small ones, while the reader comes and goes.
    let small = "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done";
    let script = format!("{}; {}; {small}", wait_for(&go), print_numbered(&world, COUNT));
    let bundle = world.script(&script);
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let stdout = Reader::open(&stdio.stdout);
    shim.run(&stdio);
    fs::write(&go, "").unwrap();
    stdout.wait_for_bytes(100_000);
    let mut got = stdout.leave();
    let small: String = (0..3000).map(|n| format!("{n}\n")).collect();
    let expected = [numbered(COUNT), small.into_bytes()].concat();
    while expected.len() - got.len() > 400_000 {
        got.extend(visit(&stdio.stdout, 300_000));
    }
    assert_eq!(shim.wait_status(""), 0, "nothing has held it up");
    if got.len() < expected.len() {
        got.extend(Reader::open(&stdio.stdout).to_end());
    }
    assert_same(&got, &expected);
    shim.delete("").unwrap();
    nothing_is_kept(&world, bundle.id());
    shim.shutdown();
}

#[test]
fn what_is_live_follows_what_was_kept_and_a_stream_that_is_read_never_touches_the_disk() {
    let world = FakeWorld::new();
    let bundle = world.bundle(&["/bin/cat"]);
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let reader = Reader::open(&stdio.stdout);
    shim.run(&stdio);
    let mut input = stdio.input();
    input.write(b"read\n");
    reader.wait_for("read\n");
    assert!(!world.scene.path("v/spill").exists(), "all of it was read");
    drop(reader);
    for round in 0..5 {
        let (kept, live) = (format!("kept {round}\n"), format!("live {round}\n"));
        input.write(kept.as_bytes());
        eventually("it should be kept", || if spills(&world) == ["init.stdout"] { Ok(()) } else { Err("it is not") });
        let reader = Reader::open(&stdio.stdout);
        reader.wait_for(&kept);
        input.write(live.as_bytes());
        reader.wait_for(&live);
        assert_eq!(String::from_utf8(reader.leave()).unwrap(), kept + &live);
        nothing_is_kept(&world, bundle.id());
    }
    shim.discard();
}

#[test]
fn at_its_bound_the_process_waits_and_a_reader_gets_everything() {
    const COUNT: usize = 4 << 20;
    let world = FakeWorld::new();
    let source = world.scene.path("numbered");
    fs::write(&source, numbered(COUNT)).unwrap();
    let print = world.bundle(&["/bin/dd", &format!("if={}", source.display()), "bs=65536", "status=none"]);
    let bundle = with_output(print, "100000", "block");
    let mut shim = world.start(&bundle);
    let mut log = shim_log(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let pid = shim.run(&stdio);
    let file = spill_file(&world, &bundle, "init.stdout");
    eventually("as much as may be should be kept", || match fs::metadata(&file).map(|m| m.len()) {
        Ok(100_000) => Ok(()),
        other => Err(other.ok()),
    });
    wait_until_blocked(pid);
    assert_eq!(shim.status(""), Status::RUNNING);
    eventually("it should be said", || {
        let text = said(&mut log);
        if text.contains("nobody reads: the process waits") { Ok(()) } else { Err(text) }
    });
    // What is left is more than both pipes and the file hold: it fills again.
    let got = visit(&stdio.stdout, COUNT / 4);
    wait_until_blocked(pid);
    let rest = Reader::open(&stdio.stdout).to_end();
    assert_same(&[got, rest].concat(), &numbered(COUNT));
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn where_the_oldest_may_go_the_process_ends_and_the_reader_is_told_what_is_missing() {
    const COUNT: usize = 4 << 20;
    let world = FakeWorld::new();
    let bundle = world.script(&format!("{}; exit 3", print_numbered(&world, COUNT)));
    let bundle = with_output(bundle, "128KiB", "drop-oldest");
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 3);
    let text = Reader::open(&stdio.stdout).text();
    let (before, rest) = text.split_once("[holdfast: ").expect("a marker");
    let (dropped, after) = rest.split_once(" bytes of stdout were dropped here: nobody read them]\n").unwrap();
    let expected = numbered(COUNT);
    assert!(before.is_empty() || before.ends_with('\n'), "the marker has a line of its own");
    assert!(expected.starts_with(before.as_bytes()) && expected.ends_with(after.as_bytes()));
    assert_eq!(after.len() % 8, 0, "a line starts after it");
    assert_eq!(before.len() + dropped.parse::<usize>().unwrap() + after.len(), COUNT);
    assert!(after.len() > 32 << 10, "no more is dropped than need be: {} are left", after.len());
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_terminal_is_kept_too() {
    const LINES: usize = 20_000;
    let world = FakeWorld::new();
    let bundle = world.script(&format!("seq {LINES}; exit 5")).with_terminal();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::terminal(&world.scene, "tty");
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 5);
    let expected: String = (1..=LINES).map(|n| format!("{n}\r\n")).collect();
    assert_same(&Reader::open(&stdio.stdout).to_end(), expected.as_bytes());
    shim.delete("").unwrap();
    nothing_is_kept(&world, bundle.id());
    shim.shutdown();
}

#[test]
fn what_is_kept_is_root_s_alone_and_an_exec_s_goes_with_it() {
    let world = FakeWorld::new();
    let bundle = world.script("echo of init; exec sleep 1000");
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    shim.run(&stdio);
    let exec = Stdio::output(&world.scene, "exec");
    // The name of init's own file, if it were not for the naming.
    shim.exec("init", &["/bin/echo", "of an exec"], &exec).unwrap();
    shim.start("init").unwrap();
    assert_eq!(shim.wait_status("init"), 0);
    eventually("both should be kept", || {
        let names = spills(&world);
        if names == ["exec.init.stdout", "init.stdout"] { Ok(()) } else { Err(names) }
    });
    for path in kept(&world) {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
    }
    let mut log = shim_log(&bundle);
    shim.delete("init").unwrap();
    eventually("the exec's should be gone", || {
        let names = spills(&world);
        if names == ["init.stdout"] { Ok(()) } else { Err(names) }
    });
    let text = said(&mut log);
    assert!(text.contains("output that nobody came to read") && text.contains("bytes=11"), "{text}");
    shim.kill("", 9).unwrap();
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    nothing_is_kept(&world, bundle.id());
    shim.shutdown();
}

#[test]
fn delete_waits_for_a_reader_who_is_there_and_not_for_long_for_one_who_is_not() {
    const COUNT: usize = 4 << 20;
    let world = FakeWorld::new();
    let bundle = world.script(&print_numbered(&world, COUNT));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    shim.run(&stdio);
    shim.wait("").unwrap();
    // It takes all of it before Delete is answered, or the rest of it would be gone.
    let reader = Reader::open(&stdio.stdout);
    shim.delete("").unwrap();
    assert_same(&reader.to_end(), &numbered(COUNT));
    shim.shutdown();

    let bundle = world.script(&print_numbered(&world, COUNT));
    // A drain that waits would wait for longer than a test does.
    let mut shim = world.launch(&bundle).env("HOLDFAST_DRAIN_TIMEOUT_MS", "1000000").start();
    let mut log = shim_log(&bundle);
    let stdio = Stdio::output(&world.scene, "other");
    shim.run(&stdio);
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    let text = said(&mut log);
    assert!(text.contains("output that nobody came to read") && text.contains(&format!("bytes={COUNT}")), "{text}");
    shim.shutdown();
    // Also without anybody running `delete`.
    assert_eq!(spills(&world), [""; 0]);
}

/// dockerd, back from a restart, opens the streams of what has ended meanwhile and does not wait until they are open.
#[test]
fn a_reader_who_comes_after_delete_gets_the_last_words() {
    const COUNT: usize = 4 << 20;
    let world = FakeWorld::new();
    let bundle = world.script(&print_numbered(&world, COUNT));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    shim.run(&stdio);
    shim.wait("").unwrap();
    let delete = shim.begin_delete("");
    // It has looked at Delete before it looks at this.
    shim.state("").unwrap();
    let reader = Reader::open(&stdio.stdout);
    assert_same(&reader.to_end(), &numbered(COUNT));
    shim.connection.finish::<DeleteResponse>(delete).unwrap();
    shim.shutdown();
    nothing_is_kept(&world, bundle.id());
}

#[test]
fn after_a_dead_shim_delete_removes_what_it_has_kept_and_says_so() {
    let world = FakeWorld::new();
    let bundle = world.script("echo last words; exec sleep 1000");
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let container = Process::of(shim.run(&stdio));
    eventually("it should be kept", || if spills(&world).is_empty() { Err("nothing") } else { Ok(()) });
    shim.process().kill();
    let output = world.launch(&bundle).run_delete();
    container.wait_gone();
    assert_eq!(spills(&world), [""; 0]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(&format!("bytes of output of {} that nobody had read are removed", bundle.id())), "{text}");
}

#[test]
fn a_disk_that_refuses_holds_the_process_up_and_costs_no_byte() {
    const COUNT: usize = 4 << 20;
    let world = FakeWorld::new();
    let bundle = world.script(&print_numbered(&world, COUNT));
    // Nothing can be made below a file.
    fs::write(world.scene.path("v"), "").unwrap();
    let mut shim = world.start(&bundle);
    let mut log = shim_log(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    shim.run(&stdio);
    let mut text = String::new();
    eventually("it should be said", || {
        text += &said(&mut log);
        if text.contains("trying again until it works") { Ok(()) } else { Err(text.clone()) }
    });
    assert_eq!(shim.status(""), Status::RUNNING, "a megabyte at most has found room");
    fs::remove_file(world.scene.path("v")).unwrap();
    assert_eq!(shim.wait_status(""), 0, "it is tried again");
    // The pipe may have had room for the end before what came earlier is on the disk.
    eventually("its end should be said", || {
        text += &said(&mut log);
        if text.contains("can be used again") { Ok(()) } else { Err(text.clone()) }
    });
    assert_eq!(text.matches("trying again").count(), 1, "{text}");
    assert_same(&Reader::open(&stdio.stdout).to_end(), &numbered(COUNT));
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_reader_who_comes_gets_what_there_is_though_the_disk_refuses() {
    let world = FakeWorld::new();
    let bundle = world.script("echo kept by nobody; echo and read all the same; exec sleep 1000");
    fs::write(world.scene.path("v"), "").unwrap();
    let mut shim = world.start(&bundle);
    let mut log = shim_log(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    shim.run(&stdio);
    eventually("it should be said", || {
        let text = said(&mut log);
        if text.contains("trying again until it works") { Ok(()) } else { Err(text) }
    });
    let reader = Reader::open(&stdio.stdout);
    reader.wait_for("kept by nobody\nand read all the same\n");
    let mut text = String::new();
    eventually("its end should be said", || {
        text += &said(&mut log);
        let is_said = text.contains("nothing need be kept any more") || text.contains("can be used again");
        if is_said { Ok(()) } else { Err(text.clone()) }
    });
    shim.discard();
}
