//! Ring 2: output that is never blocked and never lost, input that ends only when it is told to.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::{fs, thread};

use holdfast_tests::shim::Status;
use holdfast_tests::stdio::Writer;
use holdfast_tests::wire::Code;
use holdfast_tests::{FakeWorld, Process, Reader, Stdio, eventually, process};

/// `yes LINE | head -c COUNT`, as it must arrive.
fn lines(line: &str, count: usize) -> Vec<u8> {
    format!("{line}\n").into_bytes().into_iter().cycle().take(count).collect()
}

#[track_caller]
fn assert_same(got: &[u8], expected: &[u8]) {
    // Not assert_eq: megabytes of difference help nobody.
    let first = got.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!((got.len(), first), (expected.len(), None), "the length, and where the first difference is");
}

#[test]
fn every_byte_of_a_burst_before_an_immediate_exit_arrives() {
    const COUNT: usize = 8 << 20;
    let world = FakeWorld::new();
    let bundle = world.script(&format!("yes 0123456789abcde | head -c {COUNT}; echo done >&2; exit 3"));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let (stdout, stderr) = stdio.readers();
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 3);
    // The end comes by itself: clients wait for it before they send Delete.
    assert_same(&stdout.to_end(), &lines("0123456789abcde", COUNT));
    assert_eq!(stderr.unwrap().text(), "done\n");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_reader_that_takes_its_time_gets_every_byte_of_large_writes() {
    const COUNT: usize = 8 << 20;
    let world = FakeWorld::new();
    let pattern: Vec<u8> = (0..COUNT / 8).flat_map(|n| format!("{n:07x}\n").into_bytes()).collect();
    let source = world.scene.path("pattern");
    fs::write(&source, &pattern).unwrap();
    let bundle = world.script(&format!("dd if={} bs=65536 2>/dev/null; exit 2", source.display()));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let path = stdio.stdout.clone();
    // As ctr reads: 32 KiB at a time, with something to do in between, so that the FIFO is mostly full.
    let client = thread::spawn(move || {
        let mut fifo = fs::File::open(path).unwrap();
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 32 * 1024]);
        loop {
            match fifo.read(&mut buffer).unwrap() {
                0 => return bytes,
                n => bytes.extend_from_slice(&buffer[..n]),
            }
            thread::yield_now();
        }
    });
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 2);
    assert_same(&client.join().unwrap(), &pattern);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn many_small_writes_arrive_in_order() {
    let world = FakeWorld::new();
    let bundle = world.script("i=0; while [ $i -lt 5000 ]; do echo $i; i=$((i+1)); done");
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let (stdout, _stderr) = stdio.readers();
    shim.run(&stdio);
    let expected: String = (0..5000).map(|n| format!("{n}\n")).collect();
    assert_same(&stdout.to_end(), expected.as_bytes());
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn output_waits_for_a_reader_that_comes_after_the_exit() {
    let world = FakeWorld::new();
    let bundle = world.script("echo last words; echo of stderr >&2; exit 6");
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 6);
    let (stdout, stderr) = stdio.readers();
    assert_eq!(stdout.text(), "last words\n");
    assert_eq!(stderr.unwrap().text(), "of stderr\n");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn output_that_nobody_reads_costs_no_wakeups() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out; echo err >&2; exit 6");
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    // They leave with the output unread.
    let mut reader = fs::File::options();
    reader.read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits());
    let held = [reader.open(&stdio.stdout).unwrap(), reader.open(&stdio.stderr).unwrap()];
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 6);
    drop(held);
    let pid = shim.process().pid();
    let switches = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:").map(|n| n.trim().to_owned())).unwrap()
    };
    eventually("the shim should sleep", || {
        let before = switches();
        // The window of the measurement.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let after = switches();
        if before == after { Ok(()) } else { Err((before, after)) }
    });
    let (stdout, stderr) = stdio.readers();
    assert_eq!((stdout.text().as_str(), stderr.unwrap().text().as_str()), ("out\n", "err\n"));
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn output_that_a_reader_does_not_take_before_delete_is_given_up_with_a_word() {
    let world = FakeWorld::new();
    let bundle = world.script("echo never read");
    let mut shim = world.launch(&bundle).env("HOLDFAST_DRAIN_TIMEOUT_MS", "100").start();
    let stdio = Stdio::output(&world.scene, "init");
    let mut reader = fs::File::options();
    reader.read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits());
    let _stuck = reader.open(&stdio.stdout).unwrap();
    let mut log = reader.open(bundle.path("log")).unwrap();
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    let mut said = String::new();
    // Ends with "would block", for the test's own end keeps the FIFO from ending.
    let _ = log.read_to_string(&mut said);
    assert!(said.contains("output that nobody took in time"), "{said}");
    shim.shutdown();
}

#[test]
fn a_reader_that_leaves_kills_nobody_and_misses_nothing() {
    let world = FakeWorld::new();
    // Prints when told to, so that the test knows what is written while nobody reads.
    let seen = world.scene.path("seen");
    let bundle = world.script(&format!("while read line; do echo got $line; echo $line >>{}; done", seen.display()));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let (stdout, _stderr) = stdio.readers();
    let container = Process::of(shim.run(&stdio));
    let mut input = stdio.input();
    let mut say = |word: &str| {
        input.write(format!("{word}\n").as_bytes());
        eventually("the process should have printed", || {
            let text = fs::read_to_string(&seen).unwrap_or_default();
            if text.ends_with(&format!("{word}\n")) { Ok(()) } else { Err(text) }
        });
    };
    say("one");
    stdout.wait_for("got one\n");
    drop(stdout);
    say("two");
    say("three");
    assert!(container.is_alive(), "no SIGPIPE");
    let back = Reader::open(&stdio.stdout);
    back.wait_for("got three\n");
    say("four");
    back.wait_for("got four\n");
    assert_eq!(String::from_utf8(back.so_far()).unwrap(), "got two\ngot three\ngot four\n");
    shim.close_stdin("").unwrap();
    drop(input);
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_megabyte_written_with_no_reader_is_there_for_the_next_one() {
    const COUNT: usize = 1 << 20;
    let world = FakeWorld::new();
    let bundle = world.script(&format!("echo ready; yes fedcba9876543210 | head -c {COUNT}; exit 0"));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let container = Process::of(shim.run(&stdio));
    // Whether the process finishes (spilled) or waits (blocked) is a matter of buffers; it must not die of it.
    eventually("the process should be done or waiting", || match process::state(container.pid()) {
        None | Some('Z' | 'S') => Ok(()),
        other => Err(other),
    });
    let (stdout, _stderr) = stdio.readers();
    let expected = [b"ready\n".to_vec(), lines("fedcba9876543210", COUNT)].concat();
    assert_same(&stdout.to_end(), &expected);
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_reader_that_leaves_in_the_middle_of_a_stream_is_continued_by_the_next() {
    const COUNT: usize = 4 << 20;
    let world = FakeWorld::new();
    let bundle = world.script("i=0; while [ $i -lt 262144 ]; do printf '%015d\\n' $i; i=$((i+1)); done; exit 0");
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let (stdout, _stderr) = stdio.readers();
    shim.run(&stdio);
    stdout.wait_for_bytes(COUNT / 8);
    // The reader stops at some byte; what it took is its own, the next one must go on from there. Reading the rest of
    // the first only after it has stopped would race, so its own count is taken when its thread is gone.
    let first = stdout.leave();
    let second = Reader::open(&stdio.stdout);
    let got = [first, second.to_end()].concat();
    let expected: String = (0..COUNT / 16).map(|n| format!("{n:015}\n")).collect();
    assert_same(&got, expected.as_bytes());
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn only_close_io_ends_stdin() {
    let world = FakeWorld::new();
    let bundle = world.bundle(&["/bin/cat"]);
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let (stdout, _stderr) = stdio.readers();
    shim.run(&stdio);
    let mut first = stdio.input();
    first.write(b"one\n");
    stdout.wait_for("one\n");
    drop(first);
    // A second writer gets through: the first one's closing was no end.
    let mut second = Writer::open(stdio.stdin.as_ref());
    second.write(b"two\n");
    stdout.wait_for("two\n");
    assert_eq!(shim.status(""), Status::RUNNING);
    drop(second);

    shim.close_stdin("").unwrap();
    assert_eq!(shim.wait_status(""), 0);
    assert_eq!(stdout.text(), "one\ntwo\n");
    shim.close_stdin("").unwrap();
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn close_io_lets_the_input_that_is_on_its_way_through() {
    let world = FakeWorld::new();
    let bundle = world.bundle(&["/usr/bin/wc", "-c"]);
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let (stdout, _stderr) = stdio.readers();
    shim.run(&stdio);
    let mut input = stdio.input();
    input.write(&[b'x'; 40_000]);
    drop(input);
    shim.close_stdin("").unwrap();
    assert_eq!(stdout.text().trim(), "40000");
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn what_is_not_wanted_is_dev_null() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let pid = shim.run(&Stdio::none());
    for fd in 0..3 {
        assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap().to_str(), Some("/dev/null"), "{fd}");
    }
    shim.discard();
}

#[test]
fn a_process_inherits_nothing_but_its_stdio() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let _readers = stdio.readers();
    let pid = shim.run(&stdio);
    // Until it has become sleep, the process is the runtime's and may hold what it likes.
    eventually("the process should have no further descriptor", || {
        let mut open: Vec<_> =
            fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|e| e.unwrap().file_name()).collect();
        open.sort();
        if open == ["0", "1", "2"] { Ok(()) } else { Err(open) }
    });
    shim.discard();
}

#[test]
fn stdout_alone_can_be_wanted() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out; echo err >&2; cat");
    let mut shim = world.start(&bundle);
    let stdio = Stdio { stderr: String::new(), ..Stdio::output(&world.scene, "init") };
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    assert_eq!(stdout.text(), "out\n", "and cat ended at once, with no stdin");
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_fifo_may_be_named_as_a_uri() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out");
    let mut shim = world.start(&bundle);
    let plain = Stdio::output(&world.scene, "init");
    let (stdout, _stderr) = plain.readers();
    let uri = |p: &str| format!("fifo://{p}");
    shim.run(&Stdio { stdout: uri(&plain.stdout), stderr: uri(&plain.stderr), ..Stdio::none() });
    assert_eq!(stdout.text(), "out\n");
    shim.discard();
}

#[test]
fn a_file_takes_both_streams_and_keeps_what_it_held() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out; echo err >&2");
    let mut shim = world.start(&bundle);
    // In a directory that does not exist yet; the second time in a file that does.
    let path = world.scene.path("logs/of/it");
    let uri = format!("file://{}", path.display());
    shim.run(&Stdio { stdout: uri.clone(), stderr: uri.clone(), ..Stdio::none() });
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    let first = fs::read_to_string(&path).unwrap();
    assert!(first.contains("out\n") && first.contains("err\n"), "{first:?}");

    shim.run(&Stdio { stdout: uri.clone(), stderr: uri, ..Stdio::none() });
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    let second = fs::read_to_string(&path).unwrap();
    assert!(second.starts_with(&first) && second.len() == 2 * first.len(), "{second:?}");
    shim.shutdown();
}

#[test]
fn a_json_file_has_a_line_for_each_line_with_its_stream_and_time() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out; echo 'err \"quoted\"' >&2; printf unfinished");
    let mut shim = world.start(&bundle);
    let path = world.scene.path("json.log");
    let uri = format!("json-file://{}?max-size=10485760&max-file=3", path.display());
    shim.run(&Stdio { stdout: uri.clone(), stderr: uri, ..Stdio::none() });
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let mut entries: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let time = value["time"].as_str().unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{time}");
        entries.push((value["stream"].as_str().unwrap().into(), value["log"].as_str().unwrap().into()));
    }
    entries.sort();
    let expected = [("stderr", "err \"quoted\"\n"), ("stdout", "out\n"), ("stdout", "unfinished")];
    assert_eq!(entries, expected.map(|(s, l)| (s.to_owned(), l.to_owned())));
    shim.shutdown();
}

#[test]
fn a_json_file_is_rotated_and_no_line_is_lost() {
    let world = FakeWorld::new();
    let bundle = world.script("i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done");
    let mut shim = world.start(&bundle);
    let path = world.scene.path("json.log");
    let uri = format!("json-file://{}?max-size=4096&max-file=20", path.display());
    shim.run(&Stdio { stdout: uri.clone(), stderr: uri, ..Stdio::none() });
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    // The higher the number, the older the file.
    let mut text = String::new();
    for n in (1..20).rev() {
        text += &fs::read_to_string(format!("{}.{n}", path.display())).unwrap_or_default();
    }
    assert!(!text.is_empty(), "it was rotated");
    text += &fs::read_to_string(&path).unwrap();
    let logged: Vec<String> = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["log"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(logged, (0..300).map(|n| format!("line {n}\n")).collect::<Vec<_>>());
    shim.shutdown();
}

#[test]
fn an_unknown_kind_of_stdio_is_refused_and_leaves_nothing() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    for uri in ["gopher://somewhere", "ttrpc+unix:///nowhere?streaming_id=x-stdout"] {
        let stdio = Stdio { stdout: uri.into(), stderr: uri.into(), ..Stdio::none() };
        let refusal = shim.create(&stdio).unwrap_err();
        assert!(matches!(refusal.code(), Code::INVALID_ARGUMENT | Code::UNIMPLEMENTED), "{refusal:?}");
        let scheme = uri.split(':').next().unwrap();
        assert!(refusal.message().contains(scheme), "{refusal:?}");
    }
    assert!(world.runtime.calls_of("create").is_empty());
    shim.run(&Stdio::none());
    shim.discard();
}

#[test]
fn a_fifo_that_does_not_exist_is_named_in_the_refusal() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let missing = world.scene.path("no/such/fifo").to_str().unwrap().to_owned();
    let stdio = Stdio { stdin: missing.clone(), ..Stdio::none() };
    let refusal = shim.create(&stdio).unwrap_err();
    assert!(refusal.message().contains(&missing), "{refusal:?}");
    assert_ne!(refusal.code(), Code::NOT_FOUND, "the container is not what is missing");
    assert_eq!(shim.state("").unwrap_err().code(), Code::NOT_FOUND);
    shim.shutdown();
}

#[test]
fn delete_does_not_wait_for_ever_for_a_process_that_kept_stdout() {
    let world = FakeWorld::new();
    let kept = world.scene.path("kept");
    let bundle = world.script(&format!("sleep 1000 & echo $! >{}; echo bye", kept.display()));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let (stdout, _stderr) = stdio.readers();
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 0, "Wait does not wait for the end of output");
    stdout.wait_for("bye\n");
    assert!(!stdout.has_ended());
    let background = Process::of(fs::read_to_string(&kept).unwrap().trim().parse().unwrap());
    shim.delete("").unwrap();
    assert!(background.is_alive());
    stdout.to_end();
    background.kill();
    shim.shutdown();
}
