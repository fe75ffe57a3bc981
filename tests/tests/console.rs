//! Ring 2: terminals.
#![allow(clippy::unwrap_used)]

use std::fs;

use holdfast_tests::fake_runtime::Behaviour;
use holdfast_tests::{FakeWorld, Reader, Stdio, eventually, process};

/// What a terminal makes of line ends.
fn lines(reader: &Reader) -> String {
    reader.text().replace("\r\n", "\n")
}

#[test]
fn a_terminal_is_the_controlling_one_and_carries_both_streams() {
    let world = FakeWorld::new();
    let bundle = world.script("tty; echo out; echo err >&2; exec </dev/tty && echo mine; exit 4").with_terminal();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::terminal(&world.scene, "init");
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    assert!(shim.state("").unwrap().terminal);
    assert_eq!(shim.wait_status(""), 4);
    let text = lines(&stdout);
    assert!(text.starts_with("/dev/pts/"), "{text:?}");
    assert!(text.ends_with("\nout\nerr\nmine\n"), "{text:?}");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn input_reaches_the_terminal_and_is_echoed() {
    let world = FakeWorld::new();
    let bundle = world.script("read word; echo got $word").with_terminal();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::terminal(&world.scene, "init");
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    stdio.input().write(b"hello\n");
    assert_eq!(lines(&stdout), "hello\ngot hello\n");
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn resizing_reaches_the_terminal() {
    let world = FakeWorld::new();
    let bundle = world.script("read go; stty size").with_terminal();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::terminal(&world.scene, "init");
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    shim.resize("", 132, 43).unwrap();
    stdio.input().write(b"go\n");
    assert_eq!(lines(&stdout), "go\n43 132\n");
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn resizing_without_a_terminal_is_no_error() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    shim.resize("", 80, 25).unwrap();
    shim.discard();
}

#[test]
fn an_exec_gets_a_terminal_of_its_own() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let stdio = Stdio::terminal(&world.scene, "e");
    let (stdout, _) = stdio.readers();
    shim.exec("e", &["/bin/sh", "-c", "read go; tty; stty size"], &stdio).unwrap();
    shim.start("e").unwrap();
    shim.resize("e", 100, 30).unwrap();
    stdio.input().write(b"go\n");
    assert_eq!(shim.wait_status("e"), 0);
    let text = lines(&stdout);
    assert!(text.starts_with("go\n/dev/pts/") && text.ends_with("\n30 100\n"), "{text:?}");
    shim.delete("e").unwrap();
    shim.discard();
}

#[test]
fn a_terminal_needs_no_stdin() {
    let world = FakeWorld::new();
    let bundle = world.script("test -t 0 && echo a terminal").with_terminal();
    let mut shim = world.start(&bundle);
    let stdio = Stdio { stdin: String::new(), ..Stdio::terminal(&world.scene, "init") };
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    assert_eq!(lines(&stdout), "a terminal\n");
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn the_last_words_on_a_terminal_arrive() {
    let world = FakeWorld::new();
    let bundle = world.script("i=0; while [ $i -lt 1000 ]; do echo line $i; i=$((i+1)); done").with_terminal();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::terminal(&world.scene, "init");
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    let expected: String = (0..1000).map(|n| format!("line {n}\n")).collect();
    assert_eq!(lines(&stdout), expected);
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_reader_of_a_terminal_may_leave_and_come_back() {
    let world = FakeWorld::new();
    let bundle = world.script("stty -echo; echo ready; while read word; do echo got $word; done").with_terminal();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::terminal(&world.scene, "init");
    let (stdout, _) = stdio.readers();
    let pid = shim.run(&stdio);
    let mut input = stdio.input();
    stdout.wait_for("ready\r\n");
    input.write(b"one\n");
    stdout.wait_for("got one\r\n");
    drop(stdout);
    input.write(b"two\n");
    let back = Reader::open(&stdio.stdout);
    input.write(b"three\n");
    back.wait_for("got three\r\n");
    assert_eq!(String::from_utf8(back.so_far()).unwrap(), "got two\r\ngot three\r\n");
    assert!(process::is_alive(pid));
    shim.discard();
}

#[test]
fn a_runtime_that_fails_before_the_terminal_comes_leaves_nothing() {
    let world = FakeWorld::new();
    world.runtime.on("create", Behaviour::Fail("no terminal for you".into()));
    let bundle = world.sleeper().with_terminal();
    let mut shim = world.start(&bundle);
    let descriptors = fs::read_dir(format!("/proc/{}/fd", shim.process().pid())).unwrap().count();
    let stdio = Stdio::terminal(&world.scene, "init");
    let refusal = shim.create(&stdio).unwrap_err();
    assert!(refusal.message().contains("no terminal for you"), "{refusal:?}");
    eventually("the shim should close the console socket", || {
        let now = fs::read_dir(format!("/proc/{}/fd", shim.process().pid())).unwrap().count();
        // The connection to containerd for events may have been opened in between.
        if now <= descriptors + 1 { Ok(()) } else { Err(now) }
    });
    world.runtime.clear("create");
    shim.run(&stdio);
    shim.discard();
}
