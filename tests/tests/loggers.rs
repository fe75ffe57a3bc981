//! Ring 2: `binary://` and `binary-v2://` loggers.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use containerd_shim_protos::api::{CreateTaskResponse, DeleteRequest, DeleteResponse};
use holdfast_tests::fake_runtime::Behaviour;
use holdfast_tests::logger::{End, Logger, Ready};
use holdfast_tests::shim::TASK;
use holdfast_tests::wire::Code;
use holdfast_tests::{FakeWorld, Freezable, Process, Shim, Stdio, eventually, process};

const SCHEMES: [&str; 2] = ["binary", "binary-v2"];
const BURST: usize = 8 << 20;

fn burst() -> String {
    format!("yes 0123456789abcde | head -c {BURST}; echo done >&2; exit 3")
}

fn burst_bytes() -> Vec<u8> {
    b"0123456789abcde\n".iter().copied().cycle().take(BURST).collect()
}

#[track_caller]
fn assert_same(got: &[u8], expected: &[u8]) {
    // Not assert_eq: megabytes of difference help nobody.
    let first = got.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!((got.len(), first), (expected.len(), None), "the length, and where the first difference is");
}

/// A process of several threads looks dead before the last of them has closed what they share.
#[track_caller]
fn kill_and_see_it_reaped(pid: u32) {
    Process::of(pid).kill();
    eventually("the shim should reap it", || process::state(pid).map_or(Ok(()), Err));
}

fn open_fds(shim: &Shim) -> usize {
    fs::read_dir(format!("/proc/{}/fd", shim.process().pid())).unwrap().count()
}

#[test]
fn a_logger_gets_its_arguments_its_environment_and_three_descriptors() {
    for scheme in SCHEMES {
        let world = FakeWorld::new();
        let bundle = world.script("echo out; echo err >&2");
        let mut shim = world.start(&bundle);
        let logger = Logger::new(&world.scene, "l").with("some key", "a&b=c d%").with("empty", "");
        let descriptors = open_fds(&shim);
        shim.run(&logger.stdio(scheme));
        assert_eq!(shim.wait_status(""), 0);
        shim.delete("").unwrap();
        // Delete is answered only once the logger has ended, so all of this is there.
        assert_eq!((logger.text("stdout"), logger.text("stderr")), ("out\n".into(), "err\n".into()));
        assert_eq!(logger.text("ends"), "eof\n", "no signal is needed for one that ends by itself");
        assert_eq!(logger.text("env"), format!("CONTAINER_ID={}\nCONTAINER_NAMESPACE=tests", bundle.id()));
        assert_eq!(logger.text("fds"), "[0, 1, 2, 3, 4, 5]");
        let args = logger.text("args");
        assert!(args.starts_with("dir\n") && args.ends_with("\nsome key\na&b=c d%\nempty\n"), "{args:?}");
        eventually("the shim should have closed everything of it", || {
            // The connection to containerd for events may have been opened in between.
            if open_fds(&shim) <= descriptors + 1 { Ok(()) } else { Err(open_fds(&shim)) }
        });
        shim.shutdown();
    }
}

#[test]
fn an_exec_has_a_logger_of_its_own() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let (init, exec) = (Logger::new(&world.scene, "init"), Logger::new(&world.scene, "exec"));
    shim.run(&init.stdio("binary"));
    shim.exec("e", &["/bin/sh", "-c", "echo from exec; exit 5"], &exec.stdio("binary-v2")).unwrap();
    shim.start("e").unwrap();
    assert_eq!(shim.wait_status("e"), 5);
    shim.delete("e").unwrap();
    assert_eq!(exec.text("stdout"), "from exec\n");
    assert!(exec.text("env").starts_with("CONTAINER_ID=e\n"), "{}", exec.text("env"));
    assert!(process::is_alive(init.pids()[0]), "init's logger goes on");
    shim.discard();
    assert_eq!(init.text("ends"), "eof\n");
}

#[test]
fn every_byte_of_a_burst_reaches_the_logger_before_delete_is_answered() {
    for slow in ["0", "1"] {
        let world = FakeWorld::new();
        let bundle = world.script(&burst());
        let mut shim = world.start(&bundle);
        let logger = Logger::new(&world.scene, "l").with("slow-ms", slow);
        shim.run(&logger.stdio("binary"));
        // Neither Wait nor anything else lies between: the Delete comes as early as it can.
        while shim.delete("").is_err() {}
        shim.shutdown_at_once();
        assert_same(&logger.file("stdout"), &burst_bytes());
        assert_eq!(logger.text("stderr"), "done\n");
    }
}

#[test]
fn the_runtime_waits_until_the_logger_is_ready() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.launch(&bundle).env("HOLDFAST_RUNTIME_TIMEOUT_MS", "300").start();
    let descriptors = open_fds(&shim);
    for scheme in SCHEMES {
        let logger = Logger::new(&world.scene, scheme).ready(Ready::Never);
        let refusal = shim.create(&logger.stdio(scheme)).unwrap_err();
        assert_eq!(refusal.code(), Code::DEADLINE_EXCEEDED, "{refusal:?}");
        let message = refusal.message();
        assert!(message.contains("/logger of the init process") && message.contains("did not say within"), "{message}");
        eventually("the logger should be stopped", || {
            if process::is_alive(logger.pids()[0]) { Err("it runs") } else { Ok(()) }
        });
    }
    assert!(world.runtime.calls_of("create").is_empty(), "no process is made for a logger that is not there");
    eventually("everything should be closed", || {
        if open_fds(&shim) <= descriptors + 1 { Ok(()) } else { Err(open_fds(&shim)) }
    });
    shim.shutdown();
}

#[test]
fn state_is_answered_while_a_logger_takes_its_time() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let logger = Logger::new(&world.scene, "l").ready(Ready::Never);
    shim.exec("e", &["/bin/true"], &logger.stdio("binary-v2")).unwrap();
    let mut other = world.launch(&bundle).attach(shim.address());
    let starting = std::thread::spawn(move || (shim.start("e").unwrap_err(), shim));
    eventually("the logger should run", || logger.pids().first().copied().ok_or("not yet"));
    assert!(other.state("").unwrap().pid > 0);
    Process::of(logger.pids()[0]).kill();
    let (refusal, shim) = starting.join().unwrap();
    assert!(refusal.message().contains("ended with status 137 before it was ready"), "{refusal:?}");
    // The exec can be tried again, and deleted.
    other.delete("e").unwrap();
    shim.discard();
}

#[test]
fn closing_is_enough_for_binary_but_not_for_binary_v2() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out");
    let mut shim = world.start(&bundle);
    let silent = Logger::new(&world.scene, "v2").ready(Ready::Close);
    let refusal = shim.create(&silent.stdio("binary-v2")).unwrap_err();
    let message = refusal.message();
    assert!(message.contains("/logger of the init process") && message.contains("without a word"), "{message}");
    let logger = Logger::new(&world.scene, "v1").ready(Ready::Close);
    shim.run(&logger.stdio("binary"));
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    assert_eq!(logger.text("stdout"), "out\n");
    shim.shutdown();
}

#[test]
fn trap_21_a_logger_that_dies_before_it_is_ready_is_a_failed_start_with_its_status() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    for scheme in SCHEMES {
        let logger = Logger::new(&world.scene, scheme).ready(Ready::Die(9));
        let refusal = shim.create(&logger.stdio(scheme)).unwrap_err();
        let expected = "of the init process of task";
        let message = refusal.message();
        assert!(message.contains(expected) && message.contains("ended with status 9 before it was ready"), "{message}");
    }
    assert!(world.runtime.calls_of("create").is_empty());
    let missing = Stdio { stdout: "binary:///no/such/logger".into(), ..Stdio::none() };
    let refusal = shim.create(&missing).unwrap_err();
    let expected = "cannot start the logger /no/such/logger of the init process: executable file not found";
    assert!(refusal.message().contains(expected), "{refusal:?}");
    shim.run(&Stdio::none());
    shim.discard();
}

#[test]
fn trap_18_nothing_of_a_logger_is_left_when_the_create_fails() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let descriptors = open_fds(&shim);
    let missing = world.scene.path("no/such/fifo").to_str().unwrap().to_owned();
    let terminal = Stdio { terminal: true, ..Stdio::none() };
    world.runtime.on("create", Behaviour::Fail("no container for you".into()));
    for (n, stdio) in [Stdio::none(), Stdio { stdin: missing, ..Stdio::none() }, terminal].into_iter().enumerate() {
        let logger = Logger::new(&world.scene, &format!("l{n}"));
        let stdio = Stdio { stdin: stdio.stdin, terminal: stdio.terminal, ..logger.stdio("binary") };
        shim.create(&stdio).unwrap_err();
        eventually("the logger should end and everything be closed", || {
            let left = (process::is_alive(logger.pids()[0]), open_fds(&shim));
            if !left.0 && left.1 <= descriptors + 1 { Ok(()) } else { Err(left) }
        });
        assert_eq!(logger.text("ends"), "eof\n");
    }
    shim.shutdown();
}

/// Every way in which a stream is had, and every moment at which what it is for can fail.
#[test]
fn trap_18_no_descriptor_is_left_by_what_fails_whatever_its_streams() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let mut number = 0;
    let mut kinds = || {
        number += 1;
        let name = |kind: &str| format!("{kind}{number}");
        let missing = world.scene.path("no/such/fifo").to_str().unwrap().to_owned();
        let file = format!("file://{}", world.scene.path(name("file")).display());
        let dying = Logger::new(&world.scene, &name("dying")).ready(Ready::Die(9));
        [
            Stdio::fifos(&world.scene, &name("fifos")),
            Stdio { stderr: missing.clone(), ..Stdio::fifos(&world.scene, &name("half")) },
            Stdio::terminal(&world.scene, &name("terminal")),
            Stdio { stdout: missing, ..Stdio::terminal(&world.scene, &name("blind")) },
            Stdio { stdout: file.clone(), ..Stdio::none() },
            Stdio { stdout: file, terminal: true, ..Stdio::none() },
            dying.stdio("binary"),
            Stdio { terminal: true, ..dying.stdio("binary-v2") },
        ]
    };
    world.runtime.on("create", Behaviour::Fail("no container for you".into()));
    world.runtime.on("exec", Behaviour::Fail("no process for you".into()));
    let mut fail = |shim: &mut Shim, is_exec: bool| {
        for stdio in kinds() {
            if is_exec {
                // Both Exec and Start may be the one that refuses.
                if shim.exec("e", &["/bin/true"], &stdio).is_ok() {
                    shim.start("e").unwrap_err();
                    shim.delete("e").unwrap();
                }
            } else {
                shim.create(&stdio).unwrap_err();
            }
        }
    };
    for is_exec in [false, true] {
        if is_exec {
            world.runtime.clear("create");
            shim.run(&Stdio::none());
            world.containerd.wait_for(bundle.id(), "start");
        }
        let before = open_fds(&shim);
        (0..4).for_each(|_| fail(&mut shim, is_exec));
        // One more: the connection to containerd may have come in between.
        eventually("everything should be closed", || match open_fds(&shim) {
            n if n <= before + 1 => Ok(()),
            n => Err((before, n)),
        });
    }
    shim.discard();
}

#[test]
fn a_logger_of_a_container_that_was_never_started_ends_with_it() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let logger = Logger::new(&world.scene, "l");
    shim.create(&logger.stdio("binary")).unwrap();
    shim.delete("").unwrap();
    // The shim stays until it has.
    shim.shutdown();
    assert_eq!(logger.text("ends"), "eof\n");
}

#[test]
fn trap_20_a_logger_may_flush_before_it_is_killed() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out");
    let mut shim = world.start(&bundle);
    let logger = Logger::new(&world.scene, "l").end(End::AtTerm).with("flush-ms", "2000");
    shim.run(&logger.stdio("binary"));
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    assert_eq!(logger.text("ends"), "eof\nterm\nflushed\n");
    shim.shutdown();
}

#[test]
fn a_logger_that_does_not_heed_sigterm_is_killed_and_delete_answered() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out");
    let mut shim = world.start(&bundle);
    let logger = Logger::new(&world.scene, "l").end(End::Never);
    shim.run(&logger.stdio("binary"));
    assert_eq!(shim.wait_status(""), 0);
    // Deleting does not keep the shim from answering others.
    let mut other = world.launch(&bundle).attach(shim.address());
    let deleting = std::thread::spawn(move || {
        shim.delete("").unwrap();
        shim
    });
    eventually("it should be asked to end", || {
        let ends = logger.text("ends");
        if ends == "eof\nterm\n" { Ok(()) } else { Err(ends) }
    });
    assert!(other.state("").unwrap().pid > 0);
    deleting.join().unwrap().shutdown();
    assert!(!process::is_alive(logger.pids()[0]));
}

#[test]
fn trap_22_a_terminals_logger_has_the_same_life() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out; echo err >&2").with_terminal();
    let mut shim = world.start(&bundle);
    let logger = Logger::new(&world.scene, "l").end(End::AtTerm);
    shim.run(&Stdio { terminal: true, ..logger.stdio("binary") });
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    assert_eq!((logger.text("stdout"), logger.text("stderr")), ("out\r\nerr\r\n".into(), String::new()));
    assert_eq!(logger.text("ends"), "eof\nterm\nflushed\n");
    shim.shutdown();
}

#[test]
fn a_logger_that_dies_neither_kills_the_process_nor_loses_what_it_prints() {
    const READ: usize = 100_000;
    let world = FakeWorld::new();
    let bundle = world.script(&format!("{}; ", burst().replace("exit 3", "read go; exit 3")));
    let mut shim = world.start(&bundle);
    let logger = Logger::new(&world.scene, "l").with("die-after", &READ.to_string());
    let stdin = Stdio::fifos(&world.scene, "init");
    let container = Process::of(shim.run(&Stdio { stdin: stdin.stdin.clone(), ..logger.stdio("binary") }));
    eventually("there should be another logger", || match logger.pids().len() {
        2 => Ok(()),
        n => Err(n),
    });
    assert!(container.is_alive(), "no SIGPIPE");
    stdin.input().write(b"go\n");
    assert_eq!(shim.wait_status(""), 3);
    shim.delete("").unwrap();
    assert_same(&logger.file("stdout"), &burst_bytes());
    assert_eq!(logger.text("stderr"), "done\n");
    shim.shutdown();
}

#[test]
fn a_logger_that_dies_again_and_again_is_started_each_time_and_each_death_is_told() {
    let world = FakeWorld::new();
    let bundle = world.script("while read line; do echo $line; done; exit 3");
    let mut shim = world.start(&bundle);
    let logger = Logger::new(&world.scene, "l");
    let stdin = Stdio::fifos(&world.scene, "init");
    shim.run(&Stdio { stdin: stdin.stdin.clone(), ..logger.stdio("binary") });
    let mut input = stdin.input();
    let mut expected = String::new();
    for death in 1..=3 {
        expected += &format!("line {death}\n");
        input.write(format!("line {death}\n").as_bytes());
        eventually("the logger should read", || match logger.text("stdout") {
            text if text == expected => Ok(()),
            text => Err(text),
        });
        if death < 3 {
            kill_and_see_it_reaped(*logger.pids().last().unwrap());
        }
    }
    shim.close_stdin("").unwrap();
    drop(input);
    assert_eq!(shim.wait_status(""), 3);
    shim.delete("").unwrap();
    assert_eq!((logger.pids().len(), logger.text("stdout")), (3, expected));
    shim.shutdown();
    assert_eq!(bundle.take_log().matches("a logger has failed").count(), 2);
}

#[test]
fn a_logger_that_dies_after_the_end_of_output_leaves_the_rest_to_another_one() {
    // Fits into its pipe, so that the output ends before it reads.
    const COUNT: usize = 60_000;
    let world = FakeWorld::new();
    let bundle = world.script(&format!("yes 0123456789abcde | head -c {COUNT}; exit 3"));
    let mut shim = world.start(&bundle);
    let logger = Logger::new(&world.scene, "l").with("slow-ms", "500").with("die-after", "20000");
    shim.run(&logger.stdio("binary"));
    assert_eq!(shim.wait_status(""), 3);
    let first = logger.pids()[0];
    eventually("it should die", || process::state(first).map_or(Ok(()), Err));
    shim.delete("").unwrap();
    assert_same(&logger.file("stdout"), &burst_bytes()[..COUNT]);
    assert_eq!(logger.pids().len(), 2);
    shim.shutdown();
}

#[test]
fn delete_gives_the_output_of_a_dead_logger_to_another_one() {
    let world = FakeWorld::new();
    let bundle = world.script("echo one; read go; echo two; exit 4");
    let mut shim = world.start(&bundle);
    let logger = Logger::new(&world.scene, "l");
    let stdin = Stdio::fifos(&world.scene, "init");
    shim.run(&Stdio { stdin: stdin.stdin.clone(), ..logger.stdio("binary") });
    eventually("the logger should read", || if logger.text("stdout") == "one\n" { Ok(()) } else { Err("not yet") });
    kill_and_see_it_reaped(logger.pids()[0]);
    stdin.input().write(b"go\n");
    assert_eq!(shim.wait_status(""), 4);
    shim.delete("").unwrap();
    assert_eq!(logger.text("stdout"), "one\ntwo\n");
    shim.shutdown();
}

#[test]
fn delete_is_bounded_although_a_background_process_holds_the_loggers_pipe() {
    let world = FakeWorld::new();
    let kept = world.scene.path("kept");
    let bundle = world.script(&format!("sleep 1000 & echo $! >{}; echo bye", kept.display()));
    let mut shim = world.launch(&bundle).env("HOLDFAST_DRAIN_TIMEOUT_MS", "200").start();
    let logger = Logger::new(&world.scene, "l");
    shim.run(&logger.stdio("binary"));
    assert_eq!(shim.wait_status(""), 0);
    let background = Process::of(fs::read_to_string(&kept).unwrap().trim().parse().unwrap());
    shim.delete("").unwrap();
    assert!(background.is_alive());
    assert_eq!((logger.text("stdout"), logger.text("ends")), ("bye\n".into(), "eof\n".into()));
    background.kill();
    shim.shutdown();
}

#[test]
fn a_logger_is_not_thrown_out_by_a_stop_that_comes_while_it_flushes() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let logger = Logger::new(&world.scene, "l").end(End::AtTerm).with("flush-ms", "500");
    shim.create(&logger.stdio("binary")).unwrap();
    shim.delete("").unwrap();
    shim.shutdown();
    assert_eq!(logger.text("ends"), "eof\nterm\nflushed\n");
}

#[test]
fn a_logger_does_not_notice_that_the_shim_is_frozen() {
    let world = FakeWorld::new();
    let bundle = world.script(&burst());
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let descriptors = host.open_fds();
    let gate = world.scene.path("gate");
    // One that starts, dies, is replaced and takes its time to end: it is frozen in every stage.
    let logger = Logger::new(&world.scene, "l").end(End::AtTerm).with("flush-ms", "300").with("die-after", "100000");
    let logger = logger.with("gate", gate.to_str().unwrap());
    let create = shim.create_request(&logger.stdio("binary-v2"));
    let call = shim.connection.begin(TASK, "Create", &create);
    eventually("the logger should start", || logger.pids().first().copied().ok_or("not yet"));
    host.freeze_and_thaw();
    assert!(!shim.connection.has_reply(call), "it is not ready");
    host.freeze();
    fs::write(&gate, "").unwrap();
    host.thaw();
    shim.connection.finish::<CreateTaskResponse>(call).unwrap();
    shim.start("").unwrap();
    let wait = shim.begin_wait("");
    host.keep_freezing_until(|| shim.connection.has_reply(wait));
    let request = DeleteRequest { id: bundle.id().into(), ..DeleteRequest::default() };
    let call = shim.connection.begin(TASK, "Delete", &request);
    host.keep_freezing_until(|| shim.connection.has_reply(call));
    assert_eq!(shim.connection.finish::<DeleteResponse>(call).unwrap().exit_status, 3);
    assert_same(&logger.file("stdout"), &burst_bytes());
    assert_eq!((logger.text("stderr"), logger.text("ends")), ("done\n".into(), "eof\nterm\nflushed\n".into()));
    assert_eq!(logger.pids().len(), 2);
    let left = host.open_fds();
    assert!(left <= descriptors + 1, "{left} fds, {descriptors} before");
    shim.shutdown();
}

#[test]
fn delete_after_a_killed_shim_ends_its_loggers() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let launch = world.launch(&bundle);
    let mut shim = launch.start();
    let stubborn = Logger::new(&world.scene, "init").end(End::Never);
    let flushing = Logger::new(&world.scene, "exec").end(End::AtTerm).with("flush-ms", "100");
    shim.run(&stubborn.stdio("binary"));
    shim.exec("e", &["/bin/echo", "said"], &flushing.stdio("binary")).unwrap();
    shim.start("e").unwrap();
    assert_eq!(shim.wait_status("e"), 0);
    // Its input has ended, but it is asked to end only when the exec is deleted.
    eventually("it should be logged", || if flushing.text("ends") == "eof\n" { Ok(()) } else { Err("not yet") });
    assert_eq!(flushing.text("stdout"), "said\n");
    shim.process().kill();
    launch.delete();
    assert_eq!(flushing.text("ends"), "eof\nterm\nflushed\n");
    assert!(!process::is_alive(stubborn.pids()[0]));
    assert_eq!(stubborn.text("ends"), "eof\nterm\n");
}

#[test]
fn a_logger_that_cannot_be_started_again_holds_nothing_up_but_is_spoken_of() {
    let world = FakeWorld::new();
    let bundle = world.script("read go; echo unheard; exit 4");
    let mut shim = world.start(&bundle);
    let program = world.scene.path("my-logger");
    let logger = Logger::new(&world.scene, "l").program(&program);
    let stdin = Stdio::fifos(&world.scene, "init");
    shim.run(&Stdio { stdin: stdin.stdin.clone(), ..logger.stdio("binary") });
    let mut log = fs::File::options();
    let mut log = log.read(true).custom_flags(libc::O_NONBLOCK).open(bundle.path("log")).unwrap();
    kill_and_see_it_reaped(logger.pids()[0]);
    fs::remove_file(&program).unwrap();
    stdin.input().write(b"go\n");
    assert_eq!(shim.wait_status(""), 4);
    shim.delete("").unwrap();
    let (mut said, mut buffer) = (String::new(), vec![0; 64 << 10]);
    eventually("the shim should say what happened", || {
        // An error says that there is nothing more for now.
        let count = log.read(&mut buffer).unwrap_or(0);
        said += &String::from_utf8_lossy(&buffer[..count]);
        let all =
            ["a logger has failed", "no logger reads the output", "cannot start the logger again", "no logger took"];
        let missing: Vec<_> = all.into_iter().filter(|text| !said.contains(text)).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    });
    assert_eq!(logger.pids().len(), 1);
    shim.shutdown();
}

#[test]
fn a_terminals_logger_is_carried_over_before_there_is_a_terminal() {
    let world = FakeWorld::new();
    let bundle = world.script("echo out").with_terminal();
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let logger = Logger::new(&world.scene, "l");
    let gate = world.scene.path("gate");
    world.runtime.on("create", Behaviour::WaitFor(gate.clone()));
    let create = shim.create_request(&Stdio { terminal: true, ..logger.stdio("binary") });
    let call = shim.connection.begin(TASK, "Create", &create);
    eventually("create should be called", || world.runtime.calls_of("create").pop().ok_or("no call"));
    host.freeze_and_thaw();
    fs::write(&gate, "").unwrap();
    shim.connection.finish::<CreateTaskResponse>(call).unwrap();
    shim.start("").unwrap();
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    assert_eq!(logger.text("stdout"), "out\r\n");
    shim.shutdown();
}
