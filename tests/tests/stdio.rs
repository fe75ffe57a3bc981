//! Ring 2: output that is never blocked and never lost, input that ends only when it is told to.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, thread};

use containerd_shim_protos::shim::oci::Options;

use holdfast_tests::logger::Logger;
use holdfast_tests::shim::{Status, options_any};
use holdfast_tests::skip::is_root;
use holdfast_tests::stdio::Writer;
use holdfast_tests::wire::Code;
use holdfast_tests::{FakeWorld, Freezable, Process, Reader, Shim, Stdio, eventually, process};

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
fn who_prints_without_end_keeps_no_other_of_its_pod_from_being_answered_and_heard() {
    let world = FakeWorld::new();
    let (quiet, loud) = (world.bundle(&["/bin/cat"]).in_group("pod"), world.script("exec yes").in_group("pod"));
    let stdio = Stdio::fifos(&world.scene, "quiet");
    let (out, _errors) = stdio.readers();
    let mut shim = world.start(&quiet);
    shim.run(&stdio);
    let mut input = stdio.input();

    let loud_stdio = Stdio::output(&world.scene, "loud");
    let mut other = world.start(&loud);
    other.create(&loud_stdio).unwrap();
    // Not a Reader: it would keep all of it.
    let mut flood = fs::File::open(&loud_stdio.stdout).unwrap();
    let _errors = Reader::open(&loud_stdio.stderr);
    let count = Arc::new(AtomicUsize::new(0));
    let taken = count.clone();
    let drain = thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        while let Ok(n @ 1..) = flood.read(&mut buffer) {
            taken.fetch_add(n, Ordering::Relaxed);
        }
    });
    other.start("").unwrap();
    for n in 1..=50 {
        let before = count.load(Ordering::Relaxed);
        eventually("the flood should go on", || {
            let now = count.load(Ordering::Relaxed);
            if now > before + (1 << 20) { Ok(()) } else { Err(now) }
        });
        assert_eq!(shim.status(""), Status::RUNNING);
        input.write(b"x");
        out.wait_for_bytes(n);
    }
    other.kill("", libc::SIGKILL).unwrap();
    other.wait("").unwrap();
    drain.join().unwrap();
    other.delete("").unwrap();
    shim.discard();
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
fn trap_16_a_reader_that_leaves_kills_nobody_and_misses_nothing() {
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
    let pid = shim.run(&stdio);
    // Whether the process finishes (spilled) or waits (blocked) is a matter of buffers; it must not die of it.
    eventually("the process should be done or waiting", || match process::state(pid) {
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
fn trap_17_what_is_not_wanted_is_dev_null() {
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
    let streaming = "ttrpc+unix:///nowhere?streaming_id=x-stdout";
    for (uri, code) in [("gopher://somewhere", Code::INVALID_ARGUMENT), (streaming, Code::UNIMPLEMENTED)] {
        let stdio = Stdio { stdout: uri.into(), stderr: uri.into(), ..Stdio::none() };
        let refusal = shim.create(&stdio).unwrap_err();
        assert_eq!(refusal.code(), code, "{refusal:?}");
        let scheme = uri.split(':').next().unwrap();
        assert!(refusal.message().contains(scheme), "{refusal:?}");
    }
    assert!(world.runtime.calls_of("create").is_empty());
    shim.run(&Stdio::none());
    shim.discard();
}

/// containerd's sandboxes may ask for streams over ttrpc (contract 6.9).
#[test]
fn streams_over_ttrpc_are_unimplemented_for_each_stream_of_init_and_execs() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let address = |stream: &str| format!("ttrpc+unix:///nowhere?streaming_id=x-{stream}");
    let fifos = Stdio::fifos(&world.scene, "io");
    let asked = [
        Stdio { stdin: address("stdin"), ..Stdio::none() },
        Stdio { stdout: address("stdout"), ..Stdio::none() },
        Stdio { stderr: address("stderr"), ..fifos },
        Stdio { stdin: address("stdin"), stdout: address("stdout"), stderr: address("stderr"), terminal: false },
        Stdio { stdin: address("stdin"), stdout: address("stdout"), stderr: String::new(), terminal: true },
    ];
    for stdio in &asked {
        let refusal = shim.create(stdio).unwrap_err();
        assert_eq!(refusal.code(), Code::UNIMPLEMENTED, "{stdio:?}: {refusal:?}");
        assert!(refusal.message().contains("ttrpc+unix"), "{refusal:?}");
    }
    shim.run(&Stdio::none());
    for stdio in &asked {
        let refusal = shim.exec("e", &["/bin/true"], stdio).unwrap_err();
        assert_eq!(refusal.code(), Code::UNIMPLEMENTED, "{stdio:?}: {refusal:?}");
        assert_eq!(shim.state("e").unwrap_err().code(), Code::NOT_FOUND, "the id is free");
    }
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
fn trap_12_delete_waits_for_a_reader_that_takes_its_time() {
    const COUNT: usize = 1 << 20;
    let world = FakeWorld::new();
    let bundle = world.script(&format!("yes 0123456789abcde | head -c {COUNT}"));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let slow = fs::File::options().read(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(&stdio.stdout);
    shim.run(&stdio);
    // Longer than the exit itself is held back for the reader.
    assert_eq!(shim.wait_status(""), 0);
    let request = containerd_shim_protos::api::DeleteRequest { id: bundle.id().into(), ..Default::default() };
    let delete = shim.connection.begin(holdfast_tests::shim::TASK, "Delete", &request);
    assert_eq!(shim.status(""), Status::STOPPED);
    assert!(!shim.connection.has_reply(delete));
    let reader = Reader::open(&stdio.stdout);
    drop(slow);
    assert_same(&reader.to_end(), &lines("0123456789abcde", COUNT));
    let _: containerd_shim_protos::api::DeleteResponse = shim.connection.finish(delete).unwrap();
    shim.shutdown();
}

#[test]
fn trap_11_delete_does_not_wait_for_ever_for_a_process_that_kept_stdout() {
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

/// The number of descriptors that the shim holds.
fn open_fds(shim: &Shim) -> usize {
    fs::read_dir(format!("/proc/{}/fd", shim.process().pid())).unwrap().count()
}

/// What the process has as its standard streams, once it is the program that was asked for.
fn streams(pid: u32, program: &str) -> [String; 3] {
    eventually("the process should be the program", || {
        let line = process::describe(pid);
        if line.contains(program) { Ok(()) } else { Err(line) }
    });
    [0, 1, 2].map(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap().to_str().unwrap().to_owned())
}

#[test]
fn each_stream_of_an_exec_can_be_wanted_alone() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let all = Stdio::fifos(&world.scene, "e");
    for wanted in 0..3 {
        let only = |n: usize, path: &str| if n == wanted { path.to_owned() } else { String::new() };
        let stdio = Stdio {
            stdin: only(0, &all.stdin),
            stdout: only(1, &all.stdout),
            stderr: only(2, &all.stderr),
            terminal: false,
        };
        shim.exec("e", &["/bin/sleep", "1000"], &stdio).unwrap();
        let pid = shim.start("e").unwrap().pid;
        for (n, stream) in streams(pid, "sleep").iter().enumerate() {
            assert_eq!(stream.starts_with("pipe:"), n == wanted, "only {wanted} wanted, {n} is {stream}");
            assert!(n == wanted || stream == "/dev/null", "{stream}");
        }
        shim.kill("e", 9).unwrap();
        assert_eq!(shim.wait_status("e"), 137);
        shim.delete("e").unwrap();
    }
    shim.discard();
}

#[test]
fn only_close_io_ends_the_input_of_an_exec() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let stdio = Stdio::fifos(&world.scene, "e");
    let (stdout, _stderr) = stdio.readers();
    shim.exec("e", &["/bin/cat"], &stdio).unwrap();
    shim.start("e").unwrap();
    for line in ["one\n", "two\n"] {
        // Each has a writer of its own, who leaves.
        let mut writer = Writer::open(stdio.stdin.as_ref());
        writer.write(line.as_bytes());
        stdout.wait_for(if line == "one\n" { "one\n" } else { "one\ntwo\n" });
    }
    assert_eq!(shim.status("e"), Status::RUNNING);
    shim.close_stdin("e").unwrap();
    assert_eq!(shim.wait_status("e"), 0);
    shim.close_stdin("e").unwrap();
    shim.delete("e").unwrap();
    shim.discard();
}

#[test]
fn a_burst_arrives_whole_although_delete_and_shutdown_follow_at_once() {
    const COUNT: usize = 8 << 20;
    let script = format!("yes 0123456789abcde | head -c {COUNT}; echo done >&2; exit 3");
    for (is_fast, to_file) in [(true, false), (false, false), (true, true)] {
        let world = FakeWorld::new();
        let bundle = world.script(&script);
        let mut shim = world.start(&bundle);
        let (stdio, reading) = if to_file {
            let uri = format!("file://{}", world.scene.path("out").display());
            (Stdio { stdout: uri.clone(), stderr: uri, ..Stdio::none() }, None)
        } else {
            let stdio = Stdio::output(&world.scene, "init");
            let path = stdio.stdout.clone();
            (stdio, Some(thread::spawn(move || read_at_leisure(&path, is_fast))))
        };
        if reading.is_some() {
            // As it is with clients: their open counts as soon as the shim has opened its end.
            eventually("the reader should be there", || fs::metadata(&stdio.stdout).map(drop));
        }
        shim.run(&stdio);
        while shim.delete("").is_err() {}
        shim.shutdown_at_once();
        match reading {
            Some(reading) => assert_same(&reading.join().unwrap(), &lines("0123456789abcde", COUNT)),
            None => {
                let all = fs::read(world.scene.path("out")).unwrap();
                // Two streams in one file: which comes first is theirs to decide.
                assert_eq!(all.len(), COUNT + 5);
                assert!(all.windows(5).any(|w| w == b"done\n"));
            }
        }
    }
}

/// Reads to the end; if it is not fast, 4 KiB at a time with a pause after each half megabyte.
fn read_at_leisure(path: &str, is_fast: bool) -> Vec<u8> {
    let mut fifo = fs::File::open(path).unwrap();
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 4 << 10]);
    if is_fast {
        fifo.read_to_end(&mut bytes).unwrap();
        return bytes;
    }
    loop {
        match fifo.read(&mut buffer).unwrap() {
            0 => return bytes,
            n => bytes.extend_from_slice(&buffer[..n]),
        }
        if bytes.len() % (512 << 10) < 4 << 10 {
            // The slowness is what is tested.
            thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

#[test]
fn each_stream_can_be_wanted_alone() {
    let world = FakeWorld::new();
    let all = Stdio::fifos(&world.scene, "init");
    for wanted in 0..3 {
        let bundle = world.sleeper();
        let mut shim = world.start(&bundle);
        let only = |n: usize, path: &str| if n == wanted { path.to_owned() } else { String::new() };
        let stdio = Stdio {
            stdin: only(0, &all.stdin),
            stdout: only(1, &all.stdout),
            stderr: only(2, &all.stderr),
            terminal: false,
        };
        let pid = shim.run(&stdio);
        for (n, stream) in streams(pid, "sleep").iter().enumerate() {
            assert_eq!(stream.starts_with("pipe:"), n == wanted, "only {wanted} wanted, {n} is {stream}");
            assert!(n == wanted || stream == "/dev/null", "{stream}");
        }
        shim.discard();
    }
}

#[test]
fn the_pipes_belong_to_the_user_that_the_options_name() {
    let (uid, gid) =
        if is_root() { (4242, 4343) } else { (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()) };
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let options = Options {
        binary_name: world.runtime.program().to_str().unwrap().into(),
        root: world.scene.path("oci").to_str().unwrap().into(),
        io_uid: uid,
        io_gid: gid,
        ..Options::default()
    };
    let mut shim = world.launch(&bundle).options(options_any(&options)).start();
    let stdio = Stdio::fifos(&world.scene, "init");
    let init = shim.run(&stdio);
    let exec = Stdio { stdin: String::new(), ..Logger::new(&world.scene, "l").stdio("binary") };
    shim.exec("e", &["/bin/sleep", "1000"], &exec).unwrap();
    let exec = shim.start("e").unwrap().pid;
    for (pid, first) in [(init, 0), (exec, 1)] {
        streams(pid, "sleep");
        for fd in first..3 {
            let owner = fs::metadata(format!("/proc/{pid}/fd/{fd}")).unwrap();
            assert_eq!((owner.uid(), owner.gid()), (uid, gid), "fd {fd} of {pid}");
        }
    }
    shim.kill("e", 9).unwrap();
    shim.wait("e").unwrap();
    shim.delete("e").unwrap();
    shim.discard();
}

#[test]
fn a_file_is_made_readable_with_its_directories_and_the_uri_in_stderr_does_not_count() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out; echo err >&2");
    let mut shim = world.start(&bundle);
    let path = world.scene.path("of it/log");
    let other = world.scene.path("other");
    let uri = format!("file://{}", path.display()).replace(' ', "%20");
    shim.run(&Stdio { stdout: uri, stderr: format!("file://{}", other.display()), ..Stdio::none() });
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("out\n") && text.contains("err\n"), "{text:?}");
    assert!(!other.exists());
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o644, 0o755));
    shim.shutdown();
}

#[test]
fn a_path_of_a_regular_file_is_appended_to_by_one_or_both_outputs() {
    let world = FakeWorld::new();
    let bundle = world.script("for n in 1 2 3; do echo out; echo err >&2; done");
    let mut shim = world.start(&bundle);
    let paths = ["one", "two"].map(|name| world.scene.path(name).to_str().unwrap().to_owned());
    for path in &paths {
        fs::write(path, "before\n").unwrap();
    }
    let descriptors = open_fds(&shim);
    let [one, two] = &paths;
    for (stderr, in_one, in_two) in [(one, 6, 0), (two, 9, 3), (&"/dev/null".to_owned(), 12, 3)] {
        shim.run(&Stdio { stdout: one.clone(), stderr: stderr.clone(), ..Stdio::none() });
        shim.wait("").unwrap();
        shim.delete("").unwrap();
        let count = |path: &String| {
            let text = fs::read_to_string(path).unwrap();
            let lines = text.strip_prefix("before\n").expect("what was there stays").lines();
            lines.inspect(|line| assert!(["out", "err"].contains(line), "{line:?}")).count()
        };
        assert_eq!((count(one), count(two)), (in_one, in_two));
        eventually("the files should be closed", || {
            if open_fds(&shim) <= descriptors + 1 { Ok(()) } else { Err(open_fds(&shim)) }
        });
    }
    shim.shutdown();
}

#[test]
fn what_is_neither_a_fifo_nor_a_file_is_refused_by_name() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let dir = world.scene.make_dir("dir").to_str().unwrap().to_owned();
    let refusal = shim.create(&Stdio { stdout: dir.clone(), ..Stdio::none() }).unwrap_err();
    assert_eq!(refusal.code(), Code::INVALID_ARGUMENT);
    assert!(refusal.message().contains(&dir), "{refusal:?}");
    shim.shutdown();
}

#[test]
fn trap_14_fifos_that_nobody_has_opened_hold_nothing_up() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let descriptors = open_fds(&shim);
    shim.run(&Stdio::fifos(&world.scene, "init"));
    shim.exec("e", &["/bin/echo", "unheard"], &Stdio::fifos(&world.scene, "e")).unwrap();
    shim.start("e").unwrap();
    assert_eq!(shim.wait_status("e"), 0);
    shim.delete("e").unwrap();
    let mut said = String::new();
    let mut log = fs::File::options();
    let mut log = log.read(true).custom_flags(libc::O_NONBLOCK).open(bundle.path("log")).unwrap();
    // Ends with "would block", for the test's own end keeps the FIFO from ending.
    let _ = log.read_to_string(&mut said);
    assert!(said.contains("output that nobody came to read"), "what is lost is spoken of: {said}");
    shim.kill("", 9).unwrap();
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    eventually("everything should be closed", || {
        if open_fds(&shim) <= descriptors + 1 { Ok(()) } else { Err(open_fds(&shim)) }
    });
    shim.shutdown();
}

#[test]
fn trap_15_a_stdin_that_no_client_opens_holds_nothing_up_and_is_no_end() {
    let world = FakeWorld::new();
    let bundle = world.bundle(&["/bin/cat"]);
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let (stdout, _stderr) = stdio.readers();
    let pid = shim.run(&stdio);
    streams(pid, "cat");
    eventually("it should wait for input", || match process::state(pid) {
        Some('S') => Ok(()),
        other => Err(other),
    });
    // The client comes late, and everything is as if it had been there.
    stdio.input().write(b"late\n");
    stdout.wait_for("late\n");
    shim.close_stdin("").unwrap();
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn input_that_is_not_read_holds_neither_exit_nor_delete_up() {
    let world = FakeWorld::new();
    let bundle = world.script("read first; echo got $first; exit 5");
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let (stdout, _stderr) = stdio.readers();
    shim.create(&stdio).unwrap();
    let mut input = stdio.input();
    input.write(&[b"first\n".as_slice(), &[b'x'; 60_000]].concat());
    shim.start("").unwrap();
    assert_eq!(shim.wait_status(""), 5);
    shim.delete("").unwrap();
    assert_eq!(stdout.text(), "got first\n");
    shim.shutdown();
}

#[test]
fn close_io_before_the_start_ends_the_input_after_what_was_written() {
    let world = FakeWorld::new();
    let bundle = world.bundle(&["/bin/cat"]);
    let mut shim = world.start(&bundle);
    let (init, exec) = (Stdio::fifos(&world.scene, "init"), Stdio::fifos(&world.scene, "e"));
    let (init_out, _) = init.readers();
    let (exec_out, _) = exec.readers();
    shim.create(&init).unwrap();
    init.input().write(b"before\n");
    shim.close_stdin("").unwrap();
    shim.start("").unwrap();
    assert_eq!(init_out.text(), "before\n");
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();

    let bundle = world.sleeper();
    let mut other = world.start(&bundle);
    other.run(&Stdio::none());
    other.exec("e", &["/bin/cat"], &exec).unwrap();
    other.close_stdin("e").unwrap();
    // Nobody has ever opened it: with our own end given up, that is the end.
    other.start("e").unwrap();
    assert_eq!(other.wait_status("e"), 0);
    assert_eq!(exec_out.text(), "");
    other.delete("e").unwrap();
    other.discard();
    shim.shutdown();
}

#[test]
fn writers_may_take_turns_until_close_io_and_one_that_is_there_then_may_finish() {
    let world = FakeWorld::new();
    let bundle = world.bundle(&["/bin/cat"]);
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let (stdout, _stderr) = stdio.readers();
    shim.run(&stdio);
    let mut expected = String::new();
    for n in 0..20 {
        let line = format!("writer {n}\n");
        // Each is gone before the next comes, and nothing tells the shim.
        stdio.input().write(line.as_bytes());
        expected += &line;
    }
    let mut last = stdio.input();
    shim.close_stdin("").unwrap();
    last.write(b"last words\n");
    stdout.wait_for("last words\n");
    assert_eq!(shim.status(""), Status::RUNNING, "both the client and the shim must have closed");
    drop(last);
    assert_eq!(stdout.text(), expected + "last words\n");
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn two_files_are_carried_over_a_freeze_and_not_mixed_up() {
    let world = FakeWorld::new();
    let gate = world.scene.path("gate");
    let print = "while [ $n -lt $end ]; do echo out $n; echo err $n >&2; n=$((n + 1)); done";
    let wait = format!("while [ ! -e {} ]; do sleep 0.01; done", gate.display());
    let bundle = world.script(&format!("n=0; end=1000; {print}; {wait}; end=2000; {print}"));
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let [one, two] = ["one", "two"].map(|name| world.scene.path(name).to_str().unwrap().to_owned());
    fs::write(&one, "").unwrap();
    fs::write(&two, "").unwrap();
    shim.run(&Stdio { stdout: one.clone(), stderr: two.clone(), ..Stdio::none() });
    let wait = shim.begin_wait("");
    host.freeze_and_thaw();
    fs::write(&gate, "").unwrap();
    host.keep_freezing_until(|| shim.connection.has_reply(wait));
    shim.delete("").unwrap();
    for (path, word) in [(one, "out"), (two, "err")] {
        let expected: String = (0..2000).map(|n| format!("{word} {n}\n")).collect();
        assert!(fs::read_to_string(&path).unwrap() == expected, "{path}");
    }
    shim.shutdown();
}
