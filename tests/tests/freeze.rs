//! Ring 2: a shim that is frozen and thawed at any moment. Neither the client nor the container notices.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::api::{StateRequest, StateResponse, WaitRequest, WaitResponse};
use holdfast_shim::driver::{Shim as ServedShim, chain};
use holdfast_shim::freeze::{FdBag, FreezeError, Frozen};
use holdfast_tests::fake_runtime::Behaviour;
use holdfast_tests::shim::{Status, TASK};
use holdfast_tests::wire::{Code, Frame};
use holdfast_tests::{FakeWorld, Freezable, Reader, Shim, Stdio, eventually, sys};
use protobuf::Message;
use serde_json::Value;

/// A script that prints numbers from 1 on as fast as it can, 400 times `count` of them, and what it prints. A new
/// program for each run of numbers makes it last longer than a few freezes.
fn counter(count: usize) -> (String, String) {
    let script =
        format!("n=0; while [ $n -lt 400 ]; do seq $((n * {count} + 1)) $(((n + 1) * {count})); n=$((n + 1)); done");
    (script, (1..=count * 400).map(|n| format!("{n}\n")).collect())
}

fn record(world: &FakeWorld, id: &str) -> Value {
    let path = world.scene.run_dir().join("tasks/freeze/tests").join(id).join("record.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The story without repetitions: an event whose acknowledgement was not seen is sent again, by another connection, and who
/// listens may come to the first one late.
fn without_repetitions(mut story: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    story.retain(|event| seen.insert(event.clone()));
    story
}

/// Waits until the shim has read everything that was sent to it.
fn let_it_read(shim: &mut Shim) {
    let socket = shim.connection.socket();
    eventually("the shim should read", || if sys::all_was_read(&*socket).unwrap() { Ok(()) } else { Err("not yet") });
}

#[test]
fn any_byte_of_a_request_may_be_the_last_before_a_freeze() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let pid = shim.run(&Stdio::none());
    shim.exec("e", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    let exec_pid = shim.start("e").unwrap().pid;
    let waits = [shim.begin_wait(""), shim.begin_wait("e"), shim.begin_wait("")];
    let request = StateRequest { id: bundle.id().into(), ..StateRequest::default() };
    let stream = shim.connection.fresh_id();
    let frame = Frame::request(stream, TASK, "State", request.write_to_bytes().unwrap()).to_bytes();
    for byte in &frame {
        shim.connection.send(&[*byte]).unwrap();
        let_it_read(&mut shim);
        host.freeze_and_thaw();
    }
    let state: StateResponse = shim.connection.finish(stream).unwrap();
    assert_eq!((state.pid, state.status.enum_value().unwrap()), (pid, Status::RUNNING));
    assert_eq!(shim.state("e").unwrap().pid, exec_pid);
    assert!(waits.iter().all(|wait| !shim.connection.has_reply(*wait)));
    shim.kill("e", 9).unwrap();
    shim.wait("e").unwrap();
    host.freeze_and_thaw();
    shim.kill("", 15).unwrap();
    let statuses = waits.map(|wait| shim.connection.finish::<WaitResponse>(wait).unwrap().exit_status);
    assert_eq!(statuses, [143, 137, 143]);
    assert_eq!(record(&world, bundle.id())["processes"][0]["exit"]["status"], 143);
    host.freeze_and_thaw();
    shim.delete("").unwrap();
    let story = without_repetitions(world.containerd.wait_for(bundle.id(), "delete 143"));
    assert_eq!(story, ["create", "start", "exec-added e", "exec-started e", "exit e 137", "exit 143", "delete 143"]);
    shim.shutdown();
}

#[test]
fn output_through_a_fifo_arrives_once_and_in_order() {
    let world = FakeWorld::new();
    let (script, expected) = counter(1_500);
    let bundle = world.script(&script);
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let stdio = Stdio::output(&world.scene, "io");
    shim.create(&stdio).unwrap();
    let (stdout, _stderr) = stdio.readers();
    shim.start("").unwrap();
    let rounds = host.keep_freezing_until(|| stdout.so_far().len() == expected.len());
    assert!(rounds > 0, "it must be frozen in between, not {rounds} times");
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    assert!(stdout.text() == expected);
    shim.shutdown();
}

#[test]
fn output_to_a_log_is_written_once_and_in_order() {
    let world = FakeWorld::new();
    let (script, expected) = counter(2_000);
    let bundle = world.script(&script);
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let log = world.scene.path("container.log");
    let address = format!("json-file://{}", log.display());
    let stdio = Stdio { stdout: address.clone(), stderr: address, ..Stdio::default() };
    shim.run(&stdio);
    let wait = shim.begin_wait("");
    let rounds = host.keep_freezing_until(|| shim.connection.has_reply(wait));
    assert!(rounds > 0, "it must be frozen in between, not {rounds} times");
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    let text = fs::read_to_string(&log).unwrap();
    let entries = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let printed: String = entries.map(|entry| entry["log"].as_str().unwrap().to_owned()).collect();
    assert_eq!(printed.len(), expected.len());
    assert!(printed == expected);
    shim.shutdown();
}

#[test]
fn output_that_nobody_reads_waits_for_its_reader() {
    let world = FakeWorld::new();
    let (script, expected) = counter(150);
    let bundle = world.script(&script);
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let stdio = Stdio::output(&world.scene, "io");
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 0);
    host.freeze_and_thaw();
    host.freeze();
    // The reader comes while everything stands still, and is seen all the same.
    let stdout = Reader::open(&stdio.stdout);
    host.thaw();
    stdout.wait_for_bytes(expected.len());
    host.freeze_and_thaw();
    shim.delete("").unwrap();
    assert!(stdout.text() == expected);
    shim.shutdown();
}

/// Reads some of it and leaves.
fn take(stdio: &Stdio, least: usize) -> Vec<u8> {
    let reader = Reader::open(&stdio.stdout);
    reader.wait_for_bytes(least);
    reader.leave()
}

#[test]
fn what_is_kept_for_an_absent_reader_is_kept_at_any_byte_of_it() {
    let world = FakeWorld::new();
    let (script, expected) = counter(1_000);
    let bundle = world.script(&script);
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let stdio = Stdio::output(&world.scene, "io");
    shim.run(&stdio);
    let wait = shim.begin_wait("");
    // While it is written, while it is read and written in turn, and while it is only read.
    let mut got = Vec::new();
    let mut rounds = 0;
    host.keep_freezing_until(|| {
        rounds += 1;
        if rounds % 10 == 0 {
            got.extend(take(&stdio, 1));
        }
        shim.connection.has_reply(wait)
    });
    assert!(rounds > 10, "it must be frozen while it is written, not {rounds} times");
    assert!(got.len() < expected.len(), "something is left to be read");
    let reader = Reader::open(&stdio.stdout);
    host.keep_freezing_until(|| got.len() + reader.so_far().len() == expected.len());
    got.extend(reader.leave());
    assert!(String::from_utf8(got).unwrap() == expected);
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_marker_for_what_was_dropped_is_not_lost() {
    let world = FakeWorld::new();
    let (script, expected) = counter(500);
    let bundle = world.script(&script).configure(|spec| {
        spec["annotations"] = serde_json::json!({
            "holdfast.output.spill-limit": "64KiB", "holdfast.output.policy": "drop-oldest",
        });
    });
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let stdio = Stdio::output(&world.scene, "io");
    shim.run(&stdio);
    let wait = shim.begin_wait("");
    host.keep_freezing_until(|| shim.connection.has_reply(wait));
    let before = eventually("all that was printed should be kept or dropped", || {
        let seen = shim.output(false).unwrap().streams.swap_remove(0);
        let sum = seen.kept_bytes + seen.dropped_bytes;
        if sum == expected.len() as u64 { Ok(seen) } else { Err(sum) }
    });
    assert_eq!((before.spill_limit, before.policy.as_str(), before.bound.as_str()), (64 << 10, "drop-oldest", "limit"));
    assert!(before.dropped_bytes > 0, "{before:?}");
    host.freeze_and_thaw();
    assert_eq!(shim.output(false).unwrap().streams[0], before);
    let reader = Reader::open(&stdio.stdout);
    host.freeze_and_thaw();
    reader.wait_for("\n200000\n");
    let text = String::from_utf8(reader.leave()).unwrap();
    let (before, rest) = text.split_once("[holdfast: ").unwrap();
    let (dropped, after) = rest.split_once(" bytes of stdout were dropped here: nobody read them]\n").unwrap();
    assert!(expected.starts_with(before) && expected.ends_with(after));
    assert_eq!(before.len() + dropped.parse::<usize>().unwrap() + after.len(), expected.len());
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_terminal_s_output_is_kept_over_a_freeze() {
    const LINES: usize = 30_000;
    let world = FakeWorld::new();
    let bundle = world.script(&format!("seq {LINES}")).with_terminal();
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let stdio = Stdio::terminal(&world.scene, "tty");
    shim.run(&stdio);
    let wait = shim.begin_wait("");
    let mut got = take(&stdio, 10_000);
    host.keep_freezing_until(|| shim.connection.has_reply(wait));
    let reader = Reader::open(&stdio.stdout);
    let expected: String = (1..=LINES).map(|n| format!("{n}\r\n")).collect();
    host.keep_freezing_until(|| got.len() + reader.so_far().len() == expected.len());
    got.extend(reader.leave());
    assert!(String::from_utf8(got).unwrap() == expected);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn input_that_is_half_written_is_not_lost() {
    let world = FakeWorld::new();
    let gate = world.scene.path("gate");
    let bundle = world.script(&format!("while [ ! -e {} ]; do sleep 0.01; done; cksum", gate.display()));
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let stdio = Stdio::fifos(&world.scene, "io");
    shim.create(&stdio).unwrap();
    let (stdout, _stderr) = stdio.readers();
    shim.start("").unwrap();
    let mut input = stdio.input();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    // More than there is room for, so that some of it waits in the shim, some in the FIFO and some outside.
    let writing = std::thread::spawn({
        let bytes = bytes.clone();
        move || bytes.chunks(5000).for_each(|chunk| input.write_all(chunk))
    });
    let mut rounds = 0;
    host.keep_freezing_until(|| {
        rounds += 1;
        rounds > 50
    });
    assert!(!writing.is_finished(), "all of it found room without a reader");
    fs::write(&gate, "").unwrap();
    host.keep_freezing_until(|| writing.is_finished());
    writing.join().unwrap();
    shim.close_stdin("").unwrap();
    host.freeze_and_thaw();
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    let path = world.scene.path("expected");
    fs::write(&path, &bytes).unwrap();
    let expected = holdfast_tests::process::run(world.scene.command("/usr/bin/cksum").arg(&path));
    let expected = String::from_utf8(expected.stdout).unwrap();
    let sum = |text: &str| text.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(sum(&stdout.text()), sum(&expected));
    shim.shutdown();
}

#[test]
fn a_terminal_stays_connected() {
    let world = FakeWorld::new();
    let bundle = world.script("while read line; do echo \"got $line $(stty size)\"; done").with_terminal();
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let stdio = Stdio::terminal(&world.scene, "tty");
    // Frozen also while the runtime is about to send the terminal.
    let gate = world.scene.path("gate");
    world.runtime.on("create", Behaviour::WaitFor(gate.clone()));
    let create = shim.create_request(&stdio);
    let call = shim.connection.begin(TASK, "Create", &create);
    eventually("create should be called", || world.runtime.calls_of("create").pop().ok_or("no call"));
    host.freeze_and_thaw();
    fs::write(&gate, "").unwrap();
    shim.connection.finish::<containerd_shim_protos::api::CreateTaskResponse>(call).unwrap();
    let (stdout, _) = stdio.readers();
    shim.start("").unwrap();
    let mut input = stdio.input();
    for (n, (width, height)) in [(80, 25), (100, 30)].into_iter().enumerate() {
        host.freeze_and_thaw();
        shim.resize("", width, height).unwrap();
        host.freeze_and_thaw();
        input.write(format!("line{n}\n").as_bytes());
        host.freeze_and_thaw();
        stdout.wait_for(&format!("got line{n} {height} {width}"));
    }
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    host.freeze_and_thaw();
    shim.delete("").unwrap();
    stdout.to_end();
    shim.shutdown();
    assert!(fs::read_dir(world.scene.run_dir().join("c")).unwrap().next().is_none(), "a console's directory is left");
}

#[test]
fn a_call_of_the_runtime_goes_on_and_is_answered_once() {
    for frozen_while_it_ends in [false, true] {
        let world = FakeWorld::new();
        let bundle = world.sleeper();
        let (mut host, mut shim) = Freezable::start(&world, &bundle);
        shim.create(&Stdio::none()).unwrap();
        shim.exec("e", &["/bin/sh", "-c", "exit 5"], &Stdio::none()).unwrap();
        for (command, exec_id) in [("start", ""), ("exec", "e")] {
            let gate = world.scene.path(format!("{command}.gate"));
            world.runtime.on(command, Behaviour::WaitFor(gate.clone()));
            let request = containerd_shim_protos::api::StartRequest {
                id: bundle.id().into(),
                exec_id: exec_id.into(),
                ..Default::default()
            };
            let call = shim.connection.begin(TASK, "Start", &request);
            eventually("it should be called", || world.runtime.calls_of(command).pop().ok_or("no call"));
            host.freeze_and_thaw();
            assert!(!shim.connection.has_reply(call));
            host.freeze();
            if frozen_while_it_ends {
                fs::write(&gate, "").unwrap();
                let zombie = || {
                    holdfast_tests::process::all().into_iter().any(|p| {
                        holdfast_tests::process::parent(p) == Some(shim.process().pid())
                            && holdfast_tests::process::state(p) == Some('Z')
                    })
                };
                eventually("the runtime should end", || if zombie() { Ok(()) } else { Err("it runs") });
            }
            host.thaw();
            fs::write(&gate, "").unwrap();
            let reply: containerd_shim_protos::api::StartResponse = shim.connection.finish(call).unwrap();
            assert_ne!(reply.pid, 0);
        }
        assert_eq!(shim.wait_status("e"), 5);
        world.runtime.on("kill", Behaviour::Fail("no such luck".into()));
        host.freeze_and_thaw();
        assert!(shim.kill("", 9).unwrap_err().message().contains("no such luck"));
        world.runtime.clear("kill");
        let story = without_repetitions(world.containerd.wait_for(bundle.id(), "exit e 5"));
        assert_eq!(story, ["create", "exec-added e", "start", "exec-started e", "exit e 5"]);
        shim.discard();
    }
}

#[test]
fn exits_and_events_are_kept_while_it_stands_still() {
    let mut world = FakeWorld::new();
    world.containerd.stop();
    let bundle = world.sleeper();
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let pid = shim.run(&Stdio::none());
    let wait = shim.begin_wait("");
    host.freeze_and_thaw();
    host.freeze();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGUSR1).unwrap();
    host.thaw();
    assert_eq!(shim.connection.finish::<WaitResponse>(wait).unwrap().exit_status, 138);
    host.freeze_and_thaw();
    world.containerd.resume();
    let story = without_repetitions(world.containerd.wait_for(bundle.id(), "exit 138"));
    assert_eq!(story, ["create", "start", "exit 138"]);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn answers_that_the_client_does_not_read_are_neither_lost_nor_doubled() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    shim.run(&Stdio::none());
    // Enough to fill the socket and leave the last answer that fits half-written.
    let request = StateRequest { id: bundle.id().into(), ..StateRequest::default() };
    let streams: Vec<u32> = (0..4000).map(|_| shim.connection.begin(TASK, "State", &request)).collect();
    let_it_read(&mut shim);
    host.freeze_and_thaw();
    host.freeze_and_thaw();
    for stream in streams {
        // One frame for each request, in this order: a doubled one would be in the place of the next.
        let frame = shim.connection.read_frame(Duration::from_secs(30)).unwrap();
        assert_eq!(frame.stream_id, stream);
        StateResponse::parse_from_bytes(&frame.result().unwrap()).unwrap();
        if stream % 1000 == 1 {
            host.freeze_and_thaw();
        }
    }
    shim.discard();
}

#[test]
fn a_wait_still_gives_up_at_its_deadline() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    shim.run(&Stdio::none());
    let request = WaitRequest { id: bundle.id().into(), ..WaitRequest::default() };
    let stream = shim.connection.fresh_id();
    let request = ttrpc::proto::Request {
        service: TASK.into(),
        method: "Wait".into(),
        payload: request.write_to_bytes().unwrap(),
        timeout_nano: 300_000_000,
        ..Default::default()
    };
    let payload = request.write_to_bytes().unwrap();
    shim.connection.send(&Frame { stream_id: stream, kind: 1, flags: 0, payload }.to_bytes()).unwrap();
    let_it_read(&mut shim);
    host.freeze_and_thaw();
    let late = shim.connection.finish::<WaitResponse>(stream).unwrap_err();
    assert_eq!(late.code(), Code::DEADLINE_EXCEEDED);
    shim.discard();
}

#[test]
fn a_shim_that_is_about_to_end_still_ends() {
    let mut world = FakeWorld::new();
    let bundle = world.script("exit 0");
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    shim.run(&Stdio::none());
    shim.wait("").unwrap();
    world.containerd.stop();
    shim.delete("").unwrap();
    shim.request_shutdown();
    // Its last event is not delivered yet.
    host.freeze_and_thaw();
    world.containerd.resume();
    shim.process().wait_gone();
    assert_eq!(world.containerd.story(bundle.id()).last().unwrap(), "delete 0");
}

#[test]
fn names_that_look_alike_do_not_mix_up_streams() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    shim.run(&Stdio::none());
    let other = world.sleeper();
    let dotted = format!("{}.a", bundle.id());
    let mut second = world.launch(&other).id(&dotted).attach(shim.address());
    second.run(&Stdio::none());
    // Together with the ids of the tasks both are ID.a.b.
    let (first_io, second_io) = (Stdio::output(&world.scene, "1"), Stdio::output(&world.scene, "2"));
    let talk =
        |word: &str| format!("while [ ! -e {}/go ]; do sleep 0.01; done; echo {word}", world.scene.dir().display());
    shim.exec("a.b", &["/bin/sh", "-c", &talk("one")], &first_io).unwrap();
    second.exec("b", &["/bin/sh", "-c", &talk("two")], &second_io).unwrap();
    shim.start("a.b").unwrap();
    second.start("b").unwrap();
    let (first, second_reader) = (first_io.readers().0, second_io.readers().0);
    host.freeze_and_thaw();
    fs::write(world.scene.path("go"), "").unwrap();
    assert_eq!(shim.wait_status("a.b"), 0);
    assert_eq!(second.wait_status("b"), 0);
    assert_eq!((first.text(), second_reader.text()), ("one\n".into(), "two\n".into()));
    second.kill("", 9).unwrap();
    second.wait("").unwrap();
    second.delete("").unwrap();
    shim.discard();
}

#[test]
fn a_hundred_rounds_leave_no_fd_behind() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let stdio = Stdio::fifos(&world.scene, "io");
    shim.create(&stdio).unwrap();
    let (_stdout, _stderr) = stdio.readers();
    shim.start("").unwrap();
    let log = format!("json-file://{}", world.scene.path("log").display());
    shim.exec("e", &["/bin/sleep", "1000"], &Stdio { stdout: log.clone(), stderr: log, ..Stdio::default() }).unwrap();
    shim.start("e").unwrap();
    let _wait = shim.begin_wait("");
    host.freeze_and_thaw();
    let settled = |host: &mut Freezable, shim: &mut Shim| {
        // What it held before is closed when its tasks have had their turn.
        shim.state("").unwrap();
        host.open_fds()
    };
    let before = settled(&mut host, &mut shim);
    for _ in 0..100 {
        host.freeze_and_thaw();
    }
    eventually("the fds should be no more than before", || {
        let now = settled(&mut host, &mut shim);
        if now <= before { Ok(()) } else { Err((before, now)) }
    });
    shim.kill("e", 9).unwrap();
    shim.wait("e").unwrap();
    shim.discard();
}

/// Within the runtime and the task set that [`ServedShim::thaw`] asks for.
fn thaw_error(bytes: Vec<u8>) -> FreezeError {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let frozen = Frozen { bytes, fds: FdBag::default() };
    let thawed = tokio::task::LocalSet::new().block_on(&runtime, async { ServedShim::thaw(frozen).map(drop) });
    thawed.expect_err("this cannot be thawed")
}

#[test]
fn what_cannot_be_thawed_is_refused_with_the_reason() {
    let garbage = thaw_error(b"\x00not a state".to_vec());
    assert!(matches!(garbage, FreezeError::Malformed(_)), "{}", chain(&garbage));
    let newer = thaw_error(br#"{"format":4711,"anything":true}"#.to_vec());
    assert_eq!(chain(&newer), "the state has format 4711, this build reads format 1");
    let torn = thaw_error(br#"{"format":1}"#.to_vec());
    assert!(chain(&torn).starts_with("not the state of a shim: missing field"), "{}", chain(&torn));
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut host, shim) = Freezable::start(&world, &bundle);
    host.freeze();
    let state = host.state();
    let missing = thaw_error(state.into_bytes());
    let text = chain(&missing);
    assert!(text.starts_with("cannot carry the file descriptors of the listener over: no fd is named"), "{text}");
    host.thaw();
    let socket: PathBuf = shim.socket().into();
    assert!(fs::symlink_metadata(socket).unwrap().file_type().is_socket());
    shim.shutdown();
}
