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
fn a_terminal_of_an_exec_may_lack_any_of_its_streams() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let all = Stdio::terminal(&world.scene, "e");
    let script =
        "test -t 0 && test -t 1 && test -t 2 && echo three && if [ $0 = reading ]; then read word && exit 7; fi";
    for (has_stdin, has_stdout) in [(false, true), (true, false), (false, false)] {
        let only = |wanted: bool, path: &String| if wanted { path.clone() } else { String::new() };
        let stdio =
            Stdio { stdin: only(has_stdin, &all.stdin), stdout: only(has_stdout, &all.stdout), ..Stdio::none() };
        let stdio = Stdio { terminal: true, ..stdio };
        let name = if has_stdin { "reading" } else { "talking" };
        let reader = has_stdout.then(|| stdio.readers().0);
        shim.exec("e", &["/bin/sh", "-c", script, name], &stdio).unwrap();
        shim.start("e").unwrap();
        if has_stdin {
            stdio.input().write(b"word\n");
        }
        assert_eq!(shim.wait_status("e"), if has_stdin { 7 } else { 0 });
        if let Some(reader) = reader {
            assert_eq!(lines(&reader), "three\n");
        }
        shim.delete("e").unwrap();
    }
    shim.discard();
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

#[test]
fn a_terminal_may_have_only_a_stdin_or_nothing() {
    let world = FakeWorld::new();
    let said = world.scene.path("said");
    let script = format!("test -t 1 || exit 9; echo heard; read word; echo $word >{}", said.display());
    let bundle = world.script(&script).with_terminal();
    let mut shim = world.start(&bundle);
    let stdio = Stdio { stdout: String::new(), ..Stdio::terminal(&world.scene, "init") };
    shim.run(&stdio);
    stdio.input().write(b"hello\n");
    assert_eq!(shim.wait_status(""), 0);
    assert_eq!(fs::read_to_string(&said).unwrap(), "hello\n");
    shim.delete("").unwrap();
    shim.shutdown();

    let bundle = world.script("test -t 0 && test -t 2 && echo to nobody").with_terminal();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio { terminal: true, ..Stdio::none() });
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_terminals_output_can_go_to_a_file() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out; echo err >&2").with_terminal();
    let mut shim = world.start(&bundle);
    let path = world.scene.path("log");
    let uri = format!("file://{}", path.display());
    shim.run(&Stdio { stdout: uri.clone(), stderr: uri, terminal: true, ..Stdio::none() });
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "out\r\nerr\r\n");
    shim.shutdown();
}

#[test]
fn trap_52_a_terminal_whose_slaves_are_all_closed_may_be_opened_again() {
    let world = FakeWorld::new();
    let gate = world.scene.path("gate");
    let script = format!(
        "echo before; exec </dev/null >/dev/null 2>&1; touch {0}.closed; \
         while [ ! -e {0} ]; do sleep 0.01; done; exec >/dev/tty; echo after",
        gate.display()
    );
    let bundle = world.script(&script).with_terminal();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::terminal(&world.scene, "init");
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    stdout.wait_for("before\r\n");
    eventually("it should have closed all of them", || fs::metadata(format!("{}.closed", gate.display())));
    assert!(!stdout.has_ended());
    fs::write(&gate, "").unwrap();
    assert_eq!(lines(&stdout), "before\nafter\n");
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn the_end_of_a_terminals_input_is_not_the_end_of_its_output() {
    let world = FakeWorld::new();
    let gate = world.scene.path("gate");
    let script =
        format!("read word; echo got $word; while [ ! -e {} ]; do sleep 0.01; done; echo still here", gate.display());
    let bundle = world.script(&script).with_terminal();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::terminal(&world.scene, "init");
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    // The client leaves for good: both its own end and the shim's are closed.
    stdio.input().write(b"word\n");
    shim.close_stdin("").unwrap();
    stdout.wait_for("got word\r\n");
    fs::write(&gate, "").unwrap();
    assert_eq!(lines(&stdout), "word\ngot word\nstill here\n", "and no ^D was sent either");
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn input_waits_for_a_terminal_that_is_not_read() {
    let world = FakeWorld::new();
    let gate = world.scene.path("gate");
    // More than a line discipline holds; each line is shorter than it takes at once.
    let script = format!(
        "stty -echo -icanon; echo ready; while [ ! -e {} ]; do sleep 0.01; done; head -c 200000 | md5sum",
        gate.display()
    );
    let bundle = world.script(&script).with_terminal();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::terminal(&world.scene, "init");
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    stdout.wait_for("ready\r\n");
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| b'a' + (n % 23) as u8).collect();
    let mut input = stdio.input();
    let writing = std::thread::spawn({
        let bytes = bytes.clone();
        move || input.write_all(&bytes)
    });
    eventually("the FIFO should be full", || if writing.is_finished() { Err("it took all") } else { Ok(()) });
    fs::write(&gate, "").unwrap();
    writing.join().unwrap();
    let expected = process::run_with_input(&mut world.scene.command("md5sum"), &bytes);
    let expected = String::from_utf8(expected.stdout).unwrap();
    assert_eq!(lines(&stdout), format!("ready\n{expected}"));
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn every_byte_of_a_burst_on_a_terminal_arrives_although_delete_follows_at_once() {
    const COUNT: usize = 8 << 20;
    let world = FakeWorld::new();
    // Without the translation of line ends, so that it can be compared.
    let script = format!("stty -opost; yes 0123456789abcde | head -c {COUNT}; exit 3");
    let bundle = world.script(&script).with_terminal();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::terminal(&world.scene, "init");
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    while shim.delete("").is_err() {}
    shim.shutdown_at_once();
    let all = stdout.to_end();
    assert_eq!(all.len(), COUNT);
    assert!(all.chunks(16).all(|line| line == b"0123456789abcde\n"));
}

#[test]
fn trap_19_no_descriptor_of_a_terminal_is_left() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let open = |shim: &holdfast_tests::Shim| {
        let names = fs::read_dir(format!("/proc/{}/fd", shim.process().pid())).unwrap();
        let mut targets: Vec<_> = names.map(|e| fs::read_link(e.unwrap().path()).unwrap_or_default()).collect();
        targets.sort();
        targets
    };
    let once = |shim: &mut holdfast_tests::Shim, name: &str| {
        let stdio = Stdio::terminal(&world.scene, name);
        let (stdout, _) = stdio.readers();
        shim.exec(name, &["/bin/echo", "hello"], &stdio).unwrap();
        shim.start(name).unwrap();
        assert_eq!(shim.wait_status(name), 0);
        shim.delete(name).unwrap();
        stdout.to_end();
    };
    // The first brings what every shim opens once.
    once(&mut shim, "e0");
    let before = open(&shim);
    once(&mut shim, "e1");
    eventually("all of it should be closed", || {
        let now = open(&shim);
        if now.len() <= before.len() { Ok(()) } else { Err(now) }
    });
    shim.discard();
}
