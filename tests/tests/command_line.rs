//! Ring 3: the command line as people know it from elsewhere: exit codes, terminals, signals, JSON, words that help.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use holdfast_tests::gate::ends_later;
use holdfast_tests::holdfastd::{Holdfastd, Said};
use holdfast_tests::process::{ChildProcess, copy_program, is_alive};
use holdfast_tests::skip::skip;
use holdfast_tests::{Window, programs, until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Says that it is there; ends with 3 on SIGTERM and with 4 on SIGINT.
const OBEDIENT: &str = "trap 'exit 3' TERM; trap 'exit 4' INT; echo there; while :; do sleep 0.05; done";

/// Says that it is there, and what it is told to do; ends by SIGKILL alone.
const STUBBORN: &str = "trap 'echo told' TERM INT; echo there; while :; do sleep 0.05; done";

/// A shell's words in a container, as arguments.
fn sh<'a>(before: &[&'a str], rootfs: &'a str, script: &'a str) -> Vec<&'a str> {
    [before, &["--rootfs", rootfs, "--", "/bin/sh", "-c", script]].concat()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text:?} is no JSON: {e}"))
}

/// The keys of an object, in order.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> =
        value.as_object().unwrap_or_else(|| panic!("{value} is no object")).keys().map(|k| &**k).collect();
    keys.sort_unstable();
    keys
}

/// A client whose output is read while it runs.
struct Client {
    child: ChildProcess,
    out: BufReader<std::process::ChildStdout>,
}

impl Client {
    fn start(host: &Holdfastd, args: &[&str]) -> Self {
        Self::of(host.command("holdfast").args(args).stdin(Stdio::null()))
    }

    fn of(command: &mut Command) -> Self {
        let mut child = ChildProcess::spawn(command.stdout(Stdio::piped()));
        let out = BufReader::new(child.child().stdout.take().unwrap());
        Self { child, out }
    }

    /// The next line; empty at the end.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().code()
    }
}

#[test]
fn exit_codes_are_dockers() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    fs::write(Path::new(&rootfs).join("plain"), "no program").unwrap();
    host.run("web", "sleep 1000");
    for (command, code) in [
        (&["/bin/sh", "-c", "exit 0"][..], 0),
        (&["/bin/sh", "-c", "exit 42"], 42),
        (&["/bin/sh", "-c", "exit 125"], 125),
        (&["/no/such"], 127),
        (&["no-such"], 127),
        (&["/plain"], 126),
        (&["/bin"], 126),
    ] {
        let run = [&["run", "--rm", "--rootfs", &rootfs, "--"], command].concat();
        let exec = [&["exec", "web"], command].concat();
        for args in [run, exec] {
            let said = host.holdfast(&args);
            assert_eq!(said.code, code, "{args:?}: {said:?}");
        }
    }
    for args in [
        &["run", "--no-such-flag"][..],
        &["run", "--rootfs", "/no/such", "--", "/bin/true"],
        &["run", "--rootfs", &rootfs],
        &["exec", "nobody", "/bin/true"],
        &["attach", "nobody"],
        &["start", "--attach", "nobody"],
        &["rm", "nobody"],
    ] {
        let said = host.holdfast(args);
        assert_eq!(said.code, 125, "{args:?}: {said:?}");
        assert!(said.out.is_empty() && !said.err.is_empty(), "{said:?}");
    }
    for (signal, code) in [("KILL", 137), ("SEGV", 139)] {
        let exec = format!("kill -{signal} $$");
        assert_eq!(host.holdfast(&["exec", "web", "/bin/sh", "-c", &exec]).code, code);
    }
    let mut client = Client::start(&host, &sh(&["run", "--rm", "--name", "victim"], &rootfs, "echo there; sleep 1000"));
    assert_eq!(client.line(), "there");
    host.holdfast(&["kill", "victim"]).ok();
    assert_eq!(client.exit_code(), Some(137), "128 and the number of the signal");
    assert_eq!(host.holdfast(&["rm", "-f", "web"]).code, 0);
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn what_goes_wrong_is_told_with_what_to_do_next() {
    let mut host = Holdfastd::start();
    let rootfs = host.rootfs();
    host.run("web", "sleep 1000");
    host.holdfast(&sh(&["run", "--name", "job"], &rootfs, "exit 0")).ok();
    host.run("frozen", "sleep 1000");
    host.holdfast(&["pause", "frozen"]).ok();
    let id = host.inspect("web")["id"].as_str().unwrap().to_owned();
    for (args, parts) in [
        (&["exec", "job", "/bin/true"][..], &["job", "exited", "`holdfast start job`"][..]),
        (&["attach", "job"], &["`holdfast start job`"]),
        (&["kill", "job"], &["`holdfast start job`"]),
        (&["exec", "frozen", "/bin/true"], &["paused", "`holdfast unpause frozen`"]),
        (&["rm", "web"], &["running", "`holdfast stop web`", "`holdfast rm -f web`"]),
        (&["unpause", "web"], &["cannot be unpaused", "running"]),
        (&["logs", "nobody"], &["nobody", "`holdfast ps -a`"]),
        (
            &["run", "--name", "web", "--rootfs", &rootfs, "--", "/bin/true"],
            &["in use", &id[..12], "--name", "`holdfast rm web`"],
        ),
        (&["run", "--rootfs", &rootfs], &["no command", "-- /bin/sh"]),
        (&["run", "-it", "--rootfs", &rootfs, "--", "/bin/sh"], &["the input device is not a TTY"]),
        (&["exec", "-it", "web", "/bin/sh"], &["the input device is not a TTY"]),
        (&["strat", "web"], &["'start'"]),
        (&["ps", "--filter", "nome=x"], &["nome=x", "name=PART"]),
        (&["attach", "--detach-keys", "ctrl-1", "web"], &["ctrl-1"]),
        (&["start", "-a", "web", "job"], &["one container", "2 were named"]),
    ] {
        let said = host.holdfast(args);
        assert_eq!(said.code, 125, "{args:?}");
        for part in parts {
            assert!(said.err.contains(part), "{args:?} should say {part:?}:\n{}", said.err);
        }
    }
    // Enough containers that two ids begin alike.
    let mut ids: Vec<String> = (0..17).map(|_| host.holdfast(&sh(&["create"], &rootfs, "exit 0")).ok()).collect();
    ids.sort_unstable();
    let alike = ids.windows(2).find(|two| two[0][..1] == two[1][..1]).unwrap();
    let said = host.holdfast(&["inspect", &alike[0][..1]]);
    assert!(said.err.contains(&alike[0][..12]) && said.err.contains(&alike[1][..12]), "candidates: {}", said.err);
    host.kill();
    let said = host.holdfast(&["ps"]);
    assert!(said.code == 125 && said.err.contains("systemctl start holdfastd"), "{said:?}");
}

#[test]
fn who_is_not_root_is_told_so() {
    let host = Holdfastd::start();
    // Where everybody can get at it.
    let copy = host.run_dir().with_file_name("holdfast");
    copy_program(host.command("holdfast").get_program().as_ref(), &copy);
    let mut command = Command::new(copy);
    command.env("HOLDFAST_RUN_DIR", host.run_dir()).arg("ps").uid(65534).gid(65534).stdin(Stdio::null());
    let said = Said::from(command.output().unwrap());
    assert!(said.code == 125 && said.err.contains("Permission denied") && said.err.contains("as root"), "{said:?}");
}

#[test]
fn json_has_the_same_keys_for_programs_to_rely_on() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    let line = |args: &[&str]| json(&host.holdfast(&[&["--json"], args].concat()).ok());
    let run = line(&["run", "-d", "--name", "web", "--rootfs", &rootfs, "--", "/bin/sleep", "1000"]);
    assert_eq!((keys(&run), &run["name"]), (vec!["id", "name"], &Value::from("web")));
    assert_eq!(run["id"].as_str().unwrap().len(), 64);
    assert_eq!(keys(&line(&["create", "--name", "job", "--rootfs", &rootfs, "--", "/bin/echo"])), ["id", "name"]);
    for (args, expected) in [
        (&["start", "web"][..], &["container", "pid"][..]),
        (&["pause", "web"], &["container"]),
        (&["unpause", "web"], &["container"]),
        (&["reopen-logs", "web"], &["container"]),
        (&["update", "--restart", "no", "web"], &["container"]),
        (&["kill", "-s", "CONT", "web"], &["container"]),
        (&["stop", "-t", "0", "web"], &["container", "exit_status", "exited_at", "id", "reason"]),
        (&["version"], &["client", "server"]),
    ] {
        let value = line(args);
        assert_eq!(keys(&value), expected, "{args:?}");
        assert!(value["container"].is_null() || value["container"] == "web");
    }
    let wait = host.holdfast(&["--json", "wait", "web"]);
    assert_eq!(
        (wait.code, keys(&json(&wait.out))),
        (137, vec!["container", "exit_status", "exited_at", "id", "reason"])
    );
    let list = line(&["ps", "-a"]);
    let container = [
        "command",
        "created_at",
        "exit_status",
        "exited_at",
        "id",
        "labels",
        "manager",
        "name",
        "namespace",
        "pid",
        "reason",
        "restart",
        "restarts",
        "shim_pid",
        "started_at",
        "status",
    ];
    for key in container {
        assert!(keys(&list[0]).contains(&key), "{key} is missing in {list}");
        assert!(keys(&line(&["inspect", "web"])[0]).contains(&key), "{key} is missing in inspect");
    }
    let several = host.holdfast(&["--json", "rm", "nobody", "web", "none", "job"]);
    let lines: Vec<Value> = several.out.lines().map(json).collect();
    assert_eq!(several.code, 125, "one failure is enough");
    let told: Vec<(Vec<&str>, &str)> = lines.iter().map(|v| (keys(v), v["container"].as_str().unwrap())).collect();
    let (bad, good) = (vec!["container", "error"], vec!["container"]);
    assert_eq!(told, [(bad.clone(), "nobody"), (good.clone(), "web"), (bad, "none"), (good, "job")]);
    assert!(several.err.contains("\"nobody\"") && several.err.contains("\"none\""), "{}", several.err);
    let mut events = Client::start(&host, &["--json", "events", "--since", "1h"]);
    let event = json(&events.line());
    assert_eq!(keys(&event), ["detail", "exec_id", "exit_status", "id", "kind", "namespace", "pid", "time"]);
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn a_reader_that_has_left_and_a_full_disk_are_no_reason_to_panic() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    host.run("web", "echo one; echo two; sleep 1000");
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let code = |args: &[&str], out: Stdio, err: Stdio| {
        let mut command = host.command("holdfast");
        ChildProcess::spawn(command.args(args).stdin(Stdio::null()).stdout(out).stderr(err)).wait().code()
    };
    until("it has printed", || host.holdfast(&["logs", "web"]).ok().contains("two").then_some(()));
    for args in [
        &["ps"][..],
        &["--json", "ps"],
        &["inspect", "web"],
        &["info"],
        &["version"],
        &["logs", "web"],
        &["logs", "-f", "web"],
        &["events", "--since", "1h"],
        &["stats"],
        &["--json", "stats"],
        &["completions", "bash"],
        &["--help"],
        &["exec", "web", "/bin/echo", "x"],
        &["run", "--rm", "--rootfs", &rootfs, "--", "/bin/echo", "x"],
    ] {
        assert_eq!(code(args, closed(), Stdio::null()), Some(0), "{args:?} into a pipe without a reader");
        let onto_full = code(args, full(), full());
        assert!(matches!(onto_full, Some(0 | 125)), "{args:?} onto a full disk: {onto_full:?}");
    }
    assert_eq!(code(&["ps"], full(), Stdio::null()), Some(125), "what could not be printed is not well");
    assert_eq!(code(&["rm", "nobody"], Stdio::null(), full()), Some(125));
    assert_eq!(code(&["rm", "nobody"], Stdio::null(), closed()), Some(125));
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let host = Holdfastd::start();
    host.run("web", "sleep 1000");
    let coloured = |text: &str| text.contains('\u{1b}');
    let piped = |args: &[&str], name: &str| {
        let said = Said::from(host.command("holdfast").args(args).env(name, "1").output().unwrap());
        coloured(&said.out) || coloured(&said.err)
    };
    for args in [&["ps"][..], &["rm", "nobody"], &["--help"], &["strat"]] {
        assert!(!piped(args, "UNUSED"), "{args:?} into a pipe");
    }
    assert!(piped(&["rm", "nobody"], "CLICOLOR_FORCE") && piped(&["--help"], "CLICOLOR_FORCE"));
    let in_window = |args: &[&str], no_color: bool| {
        let mut command = host.command("holdfast");
        command
            .args(args)
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR")
            .env_remove("CLICOLOR_FORCE");
        if no_color {
            command.env("NO_COLOR", "1");
        }
        let mut window = Window::run(&command, 100, 30);
        window.exit_code();
        window.until_shown("web");
        coloured(&window.shown())
    };
    for args in [&["ps"][..], &["rm", "web"]] {
        assert!(in_window(args, false), "{args:?} in a terminal");
        assert!(!in_window(args, true), "{args:?} in a terminal that wants none");
    }
}

#[test]
fn a_table_fits_the_window_and_is_whole_in_a_pipe() {
    let host = Holdfastd::start();
    let name = "a-name-that-is-rather-long-for-a-container";
    host.run(name, "sleep 1000");
    let mut window = Window::run(host.command("holdfast").args(["ps"]).env("NO_COLOR", "1"), 60, 30);
    window.exit_code();
    window.until_shown("\n");
    let id = host.inspect(name)["id"].as_str().unwrap()[..12].to_owned();
    window.until_shown(&id);
    assert!(window.shown().lines().all(|line| line.chars().count() <= 60), "{}", window.shown());
    assert!(host.holdfast(&["ps"]).ok().contains(name));
}

#[test]
fn input_comes_from_pipes_files_and_nothing() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    let file = Path::new(&rootfs).with_file_name("input");
    fs::write(&file, "from a file\n").unwrap();
    host.run("web", "sleep 1000");
    let cat = ["run", "--rm", "-i", "--rootfs", &rootfs, "--", "/bin/cat"];
    let in_web = ["exec", "-i", "web", "/bin/cat"];
    for args in [&cat[..], &in_web] {
        let with = |stdin: Stdio| {
            let said = Said::from(host.command("holdfast").args(args).stdin(stdin).output().unwrap());
            assert_eq!(said.code, 0, "{args:?}: {said:?}");
            said.out
        };
        assert_eq!(with(File::open(&file).unwrap().into()), "from a file\n");
        assert_eq!(with(Stdio::null()), "");
        let (reader, mut writer) = std::io::pipe().unwrap();
        let feeder = std::thread::spawn(move || {
            for n in 0..20_000 {
                writeln!(writer, "{n}").unwrap();
            }
        });
        let expected: String = (0..20_000).map(|n| format!("{n}\n")).collect();
        assert!(with(reader.into()) == expected, "a pipe, to its end");
        feeder.join().unwrap();
        let mut closed = Command::new("sh");
        closed.args(["-c", "exec \"$0\" \"$@\" <&-"]).arg(host.command("holdfast").get_program()).args(args);
        closed.env("HOLDFAST_RUN_DIR", host.run_dir()).env("HOLDFAST_STATE_DIR", host.state_dir());
        let said = Said::from(closed.output().unwrap());
        assert_eq!((said.code, said.out.as_str()), (0, ""), "no input at all: {said:?}");
    }
    // Without --interactive the input is left to others.
    let mut feed = File::open(&file).unwrap();
    let mut command = host.command("holdfast");
    command.args(["run", "--rm", "--rootfs", &rootfs, "--", "/bin/cat"]).stdin(feed.try_clone().unwrap());
    assert_eq!(Said::from(command.output().unwrap()).ok(), "");
    let mut rest = String::new();
    feed.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "from a file\n");
}

#[test]
fn a_container_is_made_first_and_seen_from_its_first_byte_each_time_it_is_started() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    host.holdfast(&sh(&["create", "-i", "--name", "job"], &rootfs, "echo first; cat; echo last >&2; exit 9")).ok();
    assert_eq!(host.inspect("job")["status"], "created");
    for round in 0..3 {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writeln!(writer, "typed {round}").unwrap();
        drop(writer);
        let mut start = host.command("holdfast");
        let said = Said::from(start.args(["start", "-a", "-i", "job"]).stdin(reader).output().unwrap());
        let expected = (9, format!("first\ntyped {round}\n"), "last\n".to_owned());
        assert_eq!((said.code, said.out, said.err), expected);
    }
    host.run("web", OBEDIENT);
    let mut watcher = Client::start(&host, &["start", "--attach", "web"]);
    // One that runs is only attached to; whether it is shows by the signal that arrives.
    until("it is attached", || fs::read_dir(host.run_dir().join("io")).ok()?.next().map(drop));
    host.holdfast(&["stop", "web"]).ok();
    assert_eq!(watcher.exit_code(), Some(3));
    host.holdfast(&["rm", "job", "web"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn signals_reach_the_container() {
    let mut host = Holdfastd::start();
    let rootfs = host.rootfs();
    for (signal, code) in [(Signal::SIGTERM, 3), (Signal::SIGINT, 4)] {
        let mut client = Client::start(&host, &sh(&["run", "--rm"], &rootfs, OBEDIENT));
        assert_eq!(client.line(), "there");
        client.child.signal(signal);
        assert_eq!(client.exit_code(), Some(code), "{signal}");
    }
    let mut client = Client::start(&host, &sh(&["run", "--rm"], &rootfs, OBEDIENT));
    assert_eq!(client.line(), "there");
    host.kill();
    client.child.signal(Signal::SIGTERM);
    host.restart();
    assert_eq!(client.exit_code(), Some(3), "a signal waits for a supervisor that is away");
    // What is ignored from the start is left alone.
    let run = sh(
        &["run", "--rm", "--name", "nohup"],
        &rootfs,
        "trap 'exit 5' HUP; trap 'exit 3' TERM; echo there; while :; do sleep 0.05; done",
    );
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(host.command("holdfast").get_program()).args(run);
    command.env("HOLDFAST_RUN_DIR", host.run_dir()).env("HOLDFAST_STATE_DIR", host.state_dir());
    let mut client = Client::of(command.stdin(Stdio::null()));
    assert_eq!(client.line(), "there");
    client.child.signal(Signal::SIGHUP);
    client.child.signal(Signal::SIGTERM);
    assert_eq!(client.exit_code(), Some(3), "the hang-up was not passed on");
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn without_a_proxy_or_at_the_third_request_a_signal_ends_the_client_alone() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    let mut client = Client::start(&host, &sh(&["run", "--name", "web", "--sig-proxy=false"], &rootfs, OBEDIENT));
    assert_eq!(client.line(), "there");
    client.child.signal(Signal::SIGTERM);
    assert_eq!(client.exit_code(), Some(143));
    assert!(is_alive(host.pid("web", "pid")));
    let mut client = Client::start(&host, &sh(&["run", "--name", "deaf"], &rootfs, STUBBORN));
    assert_eq!(client.line(), "there");
    for _ in 0..2 {
        client.child.signal(Signal::SIGINT);
        assert_eq!(client.line(), "told");
    }
    client.child.signal(Signal::SIGINT);
    assert_eq!(client.exit_code(), Some(130));
    assert!(is_alive(host.pid("deaf", "pid")));
    let mut client = Client::start(&host, &["exec", "web", "/bin/sh", "-c", STUBBORN]);
    assert_eq!(client.line(), "there");
    client.child.signal(Signal::SIGTERM);
    assert_eq!(client.exit_code(), Some(143), "an exec is left alone");
    host.holdfast(&["rm", "-f", "web", "deaf"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new(), "clients clear their FIFOs away");
}

#[test]
fn a_terminal_has_the_windows_size_from_the_first_byte_on_and_follows_it() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    let sizes = "busybox stty size; trap 'busybox stty size' WINCH; trap 'exit 6' USR1; echo ready; while :; do sleep 0.05; done";
    let mut run = host.command("holdfast");
    run.args(sh(&["run", "-it", "--name", "web"], &rootfs, sizes));
    let mut window = Window::run(&run, 132, 43);
    window.until_shown("ready");
    assert_eq!(window.shown(), "43 132\nready\n");
    window.resize(90, 20);
    window.until_shown("20 90");
    let mut exec = host.command("holdfast");
    exec.args(["exec", "-it", "web", "/bin/sh", "-c", "busybox stty size; exit 8"]);
    let mut second = Window::run(&exec, 77, 33);
    assert_eq!(second.exit_code(), Some(8));
    second.until_shown("33 77\n");
    host.holdfast(&["kill", "-s", "USR1", "web"]).ok();
    assert_eq!(window.exit_code(), Some(6));
    let mut start = host.command("holdfast");
    start.args(["start", "-ai", "web"]);
    let mut window = Window::run(&start, 101, 11);
    window.until_shown("ready");
    assert_eq!(window.shown(), "11 101\nready\n", "also when it is started again");
    host.holdfast(&["kill", "-s", "USR1", "web"]).ok();
    assert_eq!(window.exit_code(), Some(6));
    assert!(window.is_cooked());
    host.holdfast(&["rm", "web"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn keys_leave_a_terminal_and_what_only_begins_like_them_is_passed_on() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    // Shows what is typed, byte by byte: nothing of it is a signal or edited.
    let shows = "busybox stty raw -echo; echo ready; exec busybox od -An -v -t x1 -w1";
    let mut run = host.command("holdfast");
    run.args(sh(&["run", "-it", "--name", "web"], &rootfs, shows));
    let mut window = Window::run(&run, 80, 25);
    window.until_shown("ready");
    assert!(!window.is_cooked());
    window.type_keys(b"a\x10b\x03");
    window.until_shown("03");
    let bytes =
        |shown: &str| shown.split_whitespace().skip_while(|w| *w != "ready").skip(1).collect::<Vec<_>>().join(" ");
    assert_eq!(bytes(&window.shown()), "61 10 62 03");
    window.type_keys(b"\x10\x11");
    assert_eq!(window.exit_code(), Some(0));
    window.until_shown("detached");
    assert!(window.is_cooked(), "the terminal is as it was");
    let pid = host.pid("web", "pid");
    assert!(is_alive(pid));
    for (args, environment) in [(&["--detach-keys", "x,ctrl-y"][..], ""), (&[], "x,ctrl-y")] {
        let mut attach = host.command("holdfast");
        attach.arg("attach").args(args).arg("web");
        if !environment.is_empty() {
            attach.env("HOLDFAST_DETACH_KEYS", environment);
        }
        let mut window = Window::run(&attach, 80, 25);
        window.until_cooked(false);
        window.type_keys(b"\x10\x11xx");
        window.until_shown("78");
        assert_eq!(window.shown().split_whitespace().collect::<Vec<_>>(), ["10", "11", "78"]);
        window.type_keys(b"\x19");
        assert_eq!(window.exit_code(), Some(0));
        assert!(window.is_cooked());
        // What a person had typed is nobody's any more.
        assert!(is_alive(pid));
    }
    let mut exec = host.command("holdfast");
    exec.args(["exec", "-it", "--detach-keys", "ctrl-x", "web", "/bin/sh", "-c", "echo there; sleep 1000"]);
    let mut window = Window::run(&exec, 80, 25);
    window.until_shown("there");
    window.type_keys(b"\x18");
    assert_eq!(window.exit_code(), Some(0));
    host.holdfast(&["rm", "-f", "web"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn the_terminal_is_restored_on_every_way_out() {
    let mut host = Holdfastd::start();
    let rootfs = host.rootfs();
    let run = sh(&["run", "-it", "--rm"], &rootfs, "echo ready; read word; exit 7");
    let open = |host: &Holdfastd, args: &[&str]| {
        let mut command = host.command("holdfast");
        let window = Window::run(command.args(args), 80, 25);
        window.until_shown("ready");
        assert!(!window.is_cooked());
        window
    };
    let mut window = open(&host, &run);
    window.type_keys(b"word\r");
    assert_eq!(window.exit_code(), Some(7));
    assert!(window.is_cooked(), "after its end");
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130)] {
        let mut window = open(&host, &run);
        window.child.signal(signal);
        assert_eq!(window.exit_code(), Some(code));
        assert!(window.is_cooked(), "after {signal}");
    }
    let mut window = Window::run(
        host.command("holdfast").args(["run", "-it", "--rm", "--rootfs", &rootfs, "--", "/no/such"]),
        80,
        25,
    );
    assert_eq!(window.exit_code(), Some(127));
    assert!(window.is_cooked(), "after a failure");
    let mut window = open(&host, &sh(&["run", "-it", "--name", "web"], &rootfs, "echo ready; read word; exit 7"));
    host.kill();
    window.type_keys(b"\x10\x11");
    assert_eq!(window.exit_code(), Some(0));
    assert!(window.is_cooked(), "without a supervisor");
    host.restart();
}

#[test]
fn what_is_paused_stands_still_until_it_is_unpaused() {
    let host = Holdfastd::start();
    host.run("web", &ends_later(5));
    host.holdfast(&["pause", "web"]).ok();
    assert_eq!(host.inspect("web")["status"], "paused");
    let frozen = host.holdfast(&["ps", "-q", "--filter", "status=paused"]).ok();
    assert_eq!(frozen, host.inspect("web")["id"].as_str().unwrap()[..12]);
    host.open_gate("go");
    assert_eq!(host.inspect("web")["status"], "paused");
    host.holdfast(&["unpause", "web"]).ok();
    assert_eq!(host.holdfast(&["wait", "web"]).code, 5);
}

#[test]
fn lists_are_filtered_and_environments_read_from_files() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    let run = |name: &str, more: &[&str], script: &str| {
        host.holdfast(&sh(&[&["run", "--name", name], more].concat(), &rootfs, script)).ok()
    };
    run("web-1", &["-d", "--label", "tier=front"], "sleep 1000");
    run("web-2", &["-d", "--label", "tier=back"], "sleep 1000");
    run("job", &["--label", "tier=back"], "exit 0");
    let named = |filters: &[&str]| {
        let filters = filters.iter().flat_map(|f| ["--filter", f]);
        let args: Vec<&str> = ["--json", "ps"].into_iter().chain(filters).collect();
        let list = json(&host.holdfast(&args).ok());
        let mut names: Vec<String> =
            list.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect();
        names.sort_unstable();
        names.join(" ")
    };
    assert_eq!(named(&["name=web"]), "web-1 web-2");
    assert_eq!(named(&["label=tier=back"]), "web-2", "without a status only what runs");
    assert_eq!(named(&["status=exited"]), "job");
    assert_eq!(named(&["status=exited", "status=running", "label=tier=back"]), "job web-2");
    let file = Path::new(&rootfs).with_file_name("env");
    fs::write(&file, "# of the service\nA=from file\nB=from file\nOURS\n").unwrap();
    let mut command = host.command("holdfast");
    command.args(sh(
        &["run", "--rm", "--env-file", file.to_str().unwrap(), "-e", "B=typed"],
        &rootfs,
        "echo $A, $B, $OURS",
    ));
    assert_eq!(Said::from(command.env("OURS", "ours").output().unwrap()).ok(), "from file, typed, ours");
    fs::write(&file, "A=1\nexport B=2\n").unwrap();
    let said = host.holdfast(&["exec", "--env-file", file.to_str().unwrap(), "web-1", "/bin/true"]);
    assert!(said.code == 125 && said.err.contains("line 2") && said.err.contains("export B=2"), "{said:?}");
    let exec = host.holdfast(&["--json", "exec", "-d", "web-1", "/bin/sleep", "1000"]).ok();
    assert_eq!(keys(&json(&exec)), ["container", "exec_id", "pid"]);
    assert_eq!(host.holdfast(&["stop", "-q", "-t", "0", "web-1", "web-2"]).ok(), "", "quiet");
}

#[test]
fn shells_complete_commands_and_the_names_of_containers() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    host.run("web-front", "sleep 1000");
    host.holdfast(&sh(&["run", "--name", "web-gone"], &rootfs, "exit 0")).ok();
    let program = host.command("holdfast").get_program().to_owned();
    let path = Path::new(&program).parent().unwrap().display().to_string();
    let completed = |words: &str| {
        let count = words.split_whitespace().count();
        let script = format!(
            "PATH={path}:$PATH; source <(holdfast completions bash) && COMP_WORDS=({words} '') COMP_CWORD={count} && \
             _clap_complete_holdfast holdfast '' && printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", &script]).env("HOLDFAST_RUN_DIR", host.run_dir()).stdin(Stdio::null());
        let said = Said::from(bash.output().unwrap()).ok();
        said.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    let commands = completed("holdfast");
    assert!(["run", "pause", "completions"].iter().all(|c| commands.contains(&(*c).to_owned())), "{commands:?}");
    let has = |list: &[String], name: &str| list.iter().any(|one| one == name);
    let running = completed("holdfast exec");
    assert!(has(&running, "web-front") && !has(&running, "web-gone"), "{running:?}");
    let all = completed("holdfast rm");
    assert!(has(&all, "web-front") && has(&all, "web-gone"), "{all:?}");
    let zsh = host.holdfast(&["completions", "zsh"]).ok();
    assert!(zsh.starts_with("#compdef holdfast"), "zsh finds it by its first line");
    assert!(
        host.holdfast(&["completions", "fish"]).ok().contains("complete --keep-order --exclusive --command holdfast")
    );
}

/// A shell that is installed or among the peers; with the skip noted where there is none.
fn shell(name: &str) -> Option<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).chain([programs::peers_dir()]).map(|dir| dir.join(name));
    let found = places.find(|program| program.is_file());
    if found.is_none() {
        skip(&format!("{name} is not installed"));
    }
    found.map(Command::new)
}

/// What a shell completes these words to, by a script that gets the directory of our program, that of zsh's functions and
/// the words.
fn completed(host: &Holdfastd, name: &str, script: &str, words: &[&str]) -> Option<Vec<String>> {
    let mut command = shell(name)?;
    let functions = host.run_dir().with_file_name("functions");
    fs::create_dir_all(&functions).unwrap();
    fs::write(functions.join("_holdfast"), host.holdfast(&["completions", "zsh"]).ok()).unwrap();
    let program = host.command("holdfast").get_program().to_owned();
    // Nobody's settings; and what zsh is given first is its name.
    let flags: &[&str] = if name == "zsh" { &["-f", "-c", script, name] } else { &["--no-config", "-c", script] };
    command.args(flags).arg(Path::new(&program).parent().unwrap()).arg(&functions).args(words);
    // fish keeps a history there.
    command.env("HOLDFAST_RUN_DIR", host.run_dir()).env("HOME", &functions).stdin(Stdio::null());
    let said = Said::from(command.output().unwrap());
    assert_eq!(said.err, "", "{said:?}");
    Some(said.ok().lines().map(str::to_owned).collect())
}

/// As compinit has it: the script is a file in fpath, loaded by the first call, which is to complete at once. What it needs
/// of zsh's own functions prints here.
const ZSH: &str = r#"
    PATH=$1:$PATH fpath=($2) words=(holdfast "${@:3}") CURRENT=$(($# - 1))
    compdef() { :; }
    _describe() { print -rl -- "${(@P)3}"; }
    autoload -Uz _holdfast
    _holdfast
"#;

const FISH: &str = r#"
    set -x PATH $argv[1] $PATH
    holdfast completions fish | source
    complete -C "holdfast $argv[3..]"
"#;

fn check_completions(shell: &str, script: &str) {
    let host = Holdfastd::start();
    host.run("web-front", "sleep 1000");
    let Some(commands) = completed(&host, shell, script, &["st"]) else { return };
    let names = |list: &[String]| -> Vec<String> {
        list.iter().map(|line| line.split([':', '\t']).next().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&commands), ["start", "stop", "stats"]);
    assert!(commands[0].ends_with("Start containers that were made or have ended"), "{commands:?}");
    let of = |words: &[&str]| names(&completed(&host, shell, script, words).unwrap());
    assert_eq!(of(&["run", "--detach"]), ["--detach", "--detach-keys"]);
    assert_eq!(of(&["exec", "web"]), ["web-front"]);
}

#[test]
fn zsh_completes_commands_options_and_containers() {
    check_completions("zsh", ZSH);
}

#[test]
fn fish_completes_commands_options_and_containers() {
    check_completions("fish", FISH);
}
