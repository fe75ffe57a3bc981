//! Ring 2: the `start` command: what it answers, what it leaves running, and what it refuses.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension, LogLevel};
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use holdfast_tests::process::Stopped;
use holdfast_tests::shim::{NAMESPACE, Status, options_any, reply_address, toml_options};
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::wire::Frame;
use holdfast_tests::{Bundle, FakeWorld, Process, Stdio, eventually, process, programs};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use protobuf::{EnumOrUnknown, Message};

/// `start` failed with one line on stderr that names `what`, nothing on stdout, and left nothing.
#[track_caller]
fn assert_refused(world: &FakeWorld, output: &Output, what: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert!(stderr.contains(what), "{what:?} should be named: {stderr}");
    assert!(process::marked(world.scene.id()).is_empty(), "no server is left");
    let sockets = fs::read_dir(world.scene.run_dir().join("s")).into_iter().flatten().flatten();
    let sockets: Vec<_> = sockets.map(|e| e.path()).filter(|p| p.extension().is_none_or(|e| e != "lock")).collect();
    assert!(sockets.is_empty(), "{sockets:?}");
}

#[test]
fn it_answers_a_plain_address_and_writes_it_down() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let shim = world.start(&bundle);
    // No newline: containerd 1.7 does not trim.
    assert!(shim.address().starts_with("unix:///") && !shim.address().ends_with('\n'), "{:?}", shim.address());
    assert_eq!(fs::read_to_string(bundle.path("address")).unwrap(), shim.address());
    assert_eq!(fs::metadata(bundle.path("address")).unwrap().permissions().mode() & 0o7777, 0o644);
    shim.shutdown();
}

#[test]
fn the_socket_is_private() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let shim = world.start(&bundle);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(shim.socket()), 0o600);
    assert_eq!(mode(shim.socket().parent().unwrap()), 0o700);
    assert_eq!(shim.socket().parent().unwrap(), world.scene.run_dir().join("s"));
    let name = shim.socket().file_name().unwrap().to_str().unwrap();
    assert!(name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()), "{name}");
    shim.shutdown();
}

#[test]
fn the_server_is_on_its_own() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let shim = world.start(&bundle);
    let pid = shim.process().pid();
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(link("fd/0").to_str(), Some("/dev/null"));
    assert_eq!(link("fd/1").to_str(), Some("/dev/null"));
    assert_eq!(link("cwd"), bundle.dir());
    let group = nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(pid.cast_signed()))).unwrap();
    assert_eq!(group.as_raw().cast_unsigned(), pid, "a process group of its own");
    // Operators look for these words.
    let line = process::describe(pid);
    for word in ["containerd-shim", "-namespace", NAMESPACE, "-id", bundle.id(), "-address"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    shim.shutdown();
}

#[test]
fn trap_49_the_server_holds_no_stream_of_start() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    // A daemon that is careless with a descriptor of its own.
    let shim = world.launch(&bundle).binary(wrapped(&world, "exec 7</etc/passwd")).start();
    let dir = format!("/proc/{}/fd", shim.process().pid());
    let open = fs::read_dir(dir).unwrap().filter_map(|e| fs::read_link(e.unwrap().path()).ok());
    let open: Vec<_> = open.collect();
    let null = open.iter().filter(|target| *target == Path::new("/dev/null")).count();
    // Of the standard streams: its standard error is its log.
    assert_eq!(null, 2);
    // Those of `start` were pipes; what else was open in it is somebody else's business too.
    let pipes: Vec<_> = open.iter().filter(|target| target.to_str().unwrap().starts_with("pipe:")).collect();
    assert!(pipes.is_empty(), "{pipes:?}");
    assert!(!open.iter().any(|target| target == Path::new("/etc/passwd")), "{open:?}");
    shim.shutdown();
}

#[test]
fn a_second_start_finds_the_first_shim() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let again = world.start(&bundle);
    assert_eq!(again.address(), shim.address());
    assert_eq!(again.process().pid(), shim.process().pid());
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.discard();
}

#[test]
fn starts_of_a_group_at_the_same_time_agree_on_one_shim() {
    let world = FakeWorld::new();
    let bundles: Vec<_> = (0..12).map(|_| world.sleeper().in_group("pod")).collect();
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let starts: Vec<_> =
            bundles.iter().map(|b| world.launch(b)).map(|launch| scope.spawn(move || launch.run_start())).collect();
        starts.into_iter().map(|s| s.join().unwrap()).collect()
    });
    let addresses: Vec<String> = outputs.iter().map(|o| reply_address(&o.stdout)).collect();
    assert!(addresses.iter().all(|a| *a == addresses[0] && !a.is_empty()), "{outputs:?}");
    assert_eq!(process::marked(world.scene.id()).len(), 1, "one server");
    for bundle in &bundles {
        assert_eq!(fs::read_to_string(bundle.path("address")).unwrap(), addresses[0]);
    }
    let shims: Vec<_> = bundles.iter().map(|b| world.launch(b).attach(&addresses[0])).collect();
    assert!(shims.iter().all(|s| s.process().pid() == shims[0].process().pid()));
    shims.into_iter().next().unwrap().shutdown();
}

#[test]
fn different_daemons_never_share_a_shim() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let a = world.start(&bundle);
    let b = world.launch(&bundle).address("/elsewhere/containerd.sock").start();
    assert_ne!(a.address(), b.address());
    assert_ne!(a.process().pid(), b.process().pid());
    a.shutdown();
    b.shutdown();
}

#[test]
fn trap_34_a_stale_socket_is_replaced() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let first = world.start(&bundle);
    let address = first.address().to_owned();
    first.process().kill();
    assert!(first.socket().exists());
    let mut second = world.start(&bundle);
    assert_eq!(second.address(), address);
    second.run(&Stdio::none());
    second.discard();
}

/// Where the socket for `bundle` will be.
fn place(world: &FakeWorld, bundle: &Bundle) -> PathBuf {
    let shim = world.start(bundle);
    let path = shim.socket().to_owned();
    shim.shutdown();
    fs::remove_file(bundle.path("address")).unwrap();
    path
}

#[test]
fn what_is_no_socket_at_the_sockets_place_is_named_and_left_alone() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let path = place(&world, &bundle);
    let refused = || {
        let output = world.launch(&bundle).run_start();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr.contains(path.to_str().unwrap()) && stderr.contains("not a socket"), "{stderr}");
        assert!(process::marked(world.scene.id()).is_empty());
        assert!(!bundle.path("address").exists(), "nobody is there to be found");
    };
    fs::write(&path, "not a socket").unwrap();
    refused();
    assert_eq!(fs::read_to_string(&path).unwrap(), "not a socket");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused();
    fs::remove_dir(&path).unwrap();
    symlink("/nonexistent", &path).unwrap();
    refused();
    fs::remove_file(&path).unwrap();
    // Nor is a link followed to a socket that somebody serves.
    let listener = UnixListener::bind(world.scene.path("other.sock")).unwrap();
    symlink(world.scene.path("other.sock"), &path).unwrap();
    refused();
    fs::remove_file(&path).unwrap();
    drop(listener);
    world.start(&bundle).shutdown();
}

/// `start` refuses to believe whoever listens at `path`, names it and the reason, and leaves it alone.
#[track_caller]
fn assert_not_believed(world: &FakeWorld, bundle: &Bundle, path: &Path, reason: &str) {
    let output = world.launch(bundle).run_start();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr.contains(path.to_str().unwrap()) && stderr.contains(reason), "{stderr}");
    assert!(path.exists());
    assert!(process::marked(world.scene.id()).is_empty(), "nothing is started beside it");
    assert!(!bundle.path("address").exists());
}

#[test]
fn a_listener_that_is_no_shim_is_not_handed_to_the_daemon() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let path = place(&world, &bundle);
    // One that lets everybody in and says nothing.
    let listener = UnixListener::bind(&path).unwrap();
    assert_not_believed(&world, &bundle, &path, "not as a shim does");
    // One that speaks another protocol.
    let talker = answer_with(listener, b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec());
    assert_not_believed(&world, &bundle, &path, "not as a shim does");
    let listener = talker.join().unwrap();
    // One that hangs up on everybody, as a shim does when it ends; but this one stays.
    listener.set_nonblocking(true).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                if listener.accept().is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        assert_not_believed(&world, &bundle, &path, "it ended the connection");
        stop.store(true, Ordering::Relaxed);
    });
    fs::remove_file(path).unwrap();
}

/// Takes connections until one has sent a whole request, and answers it with `bytes`.
fn answer_with(listener: UnixListener, bytes: Vec<u8>) -> JoinHandle<UnixListener> {
    std::thread::spawn(move || {
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 10];
            // One that has given up already is still in the queue.
            if stream.read_exact(&mut request).is_ok() && stream.write_all(&bytes).is_ok() {
                return listener;
            }
        }
    })
}

#[test]
fn a_socket_of_another_user_is_not_handed_to_the_daemon() {
    if !is_root() {
        return skip("needs root to make a file another user's");
    }
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let path = place(&world, &bundle);
    let listener = UnixListener::bind(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    assert_not_believed(&world, &bundle, &path, "it belongs to user 65534");
    drop(listener);
    fs::remove_file(path).unwrap();
}

#[test]
fn a_shim_that_is_too_busy_to_answer_is_a_shim() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let stopped = Stopped::new(shim.process().pid());
    let reply = || reply_address(&world.launch(&bundle).run_start().stdout);
    assert_eq!(reply(), shim.address());
    // Until nobody is let in any more.
    raise_descriptor_limit();
    let mut waiting = Vec::new();
    while let Some(connection) = connect_at_once(shim.socket()) {
        waiting.push(connection);
    }
    assert_eq!(reply(), shim.address());
    drop(waiting);
    drop(stopped);
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.discard();
}

fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// None when the backlog is full.
fn connect_at_once(path: &Path) -> Option<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    match connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()) {
        Ok(()) => Some(fd),
        Err(Errno::EAGAIN) => None,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn directories_that_cannot_be_used_are_named() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let file = world.scene.path("file");
    fs::write(&file, "").unwrap();
    let in_file = file.join("run");
    let long = world.scene.path("l".repeat(60));
    for (run_dir, what) in [
        (file.as_path(), "file"),
        (in_file.as_path(), "file/run"),
        (Path::new("/proc/holdfast"), "/proc/holdfast"),
        (long.as_path(), "longer than 107 bytes"),
    ] {
        let launch = world.launch(&bundle).env("HOLDFAST_RUN_DIR", run_dir.to_str().unwrap());
        assert_refused(&world, &launch.run_start(), what);
        assert!(!bundle.path("address").exists());
    }
    let mut params = bootstrap(&world, bundle.id());
    for (dir, what) in
        [("/proc/holdfast", "/proc/holdfast"), ("relative", "not absolute"), (&"/d".repeat(30), "too long")]
    {
        params.socket_dir = Some(dir.into());
        let launch = world.launch(&bundle).stdin(params.write_to_bytes().unwrap());
        assert_refused(&world, &launch.run_start(), what);
    }
}

#[test]
fn a_missing_configuration_is_named_by_create_since_a_sandbox_needs_none() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    fs::remove_file(bundle.path("config.json")).unwrap();
    let mut shim = world.start(&bundle);
    let refusal = shim.create(&Stdio::none()).unwrap_err();
    assert!(refusal.message().contains("config.json"), "{refusal:?}");
    shim.shutdown();
}

#[test]
fn a_malformed_configuration_is_named() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    for text in ["", "{", "[]", "\"text\"", "{\"annotations\": 7}"] {
        fs::write(bundle.path("config.json"), text).unwrap();
        assert_refused(&world, &world.launch(&bundle).run_start(), "config.json");
    }
}

#[test]
fn a_configuration_that_is_no_regular_file_is_named_and_not_waited_for() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let config = bundle.path("config.json");
    fs::remove_file(&config).unwrap();
    mkfifo(&config, Mode::S_IRWXU).unwrap();
    assert_refused(&world, &world.launch(&bundle).run_start(), "config.json: it is not a regular file");
    fs::remove_file(&config).unwrap();
    symlink("/dev/zero", &config).unwrap();
    assert_refused(&world, &world.launch(&bundle).run_start(), "config.json: it is not a regular file");
}

#[test]
fn illegal_ids_are_refused_before_they_touch_a_path() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let long = "x".repeat(300);
    for id in ["", ".", "..", "../x", "a/b", "a b", "-a", "a\nb", "a_", long.as_str()] {
        let output = world.launch(&bundle).id(id).run_start();
        assert_refused(&world, &output, "id");
        assert!(!bundle.path("address").exists(), "{id:?}");
    }
}

#[test]
fn illegal_namespaces_are_refused_before_they_touch_a_path() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    for namespace in ["", "..", "../x", "a/b", "a b"] {
        let output = world.launch(&bundle).namespace(namespace).run_start();
        assert_refused(&world, &output, "namespace");
    }
}

#[test]
fn options_that_cannot_be_decoded_are_refused_or_left_for_create() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let output = world.launch(&bundle).stdin(b"\xff\xff\xff\xff garbage".to_vec()).run_start();
    if output.status.success() {
        world.launch(&bundle).attach(&String::from_utf8(output.stdout).unwrap()).shutdown();
    } else {
        assert_refused(&world, &output, "standard input");
    }
}

/// A program that does something before it becomes the shim. By sh(1), as a file that this process had open for writing
/// could not be executed while another thread's child has it open still.
fn wrapped(world: &FakeWorld, before: &str) -> PathBuf {
    let path = world.scene.path("wrapper");
    let text = format!("#!/bin/sh\n{before}\nexec {} \"$@\"\n", programs::shim().display());
    process::run_with_input(Command::new("sh").args(["-c", "cat > $0; chmod 755 $0"]).arg(&path), text.as_bytes());
    path
}

#[test]
fn trap_36_the_address_is_for_all_to_read_and_for_its_owner_to_write() {
    let world = FakeWorld::new();
    for umask in ["000", "077", "777"] {
        let bundle = world.sleeper();
        // One that a killed start has left, with whatever mode.
        fs::write(bundle.path("address.new"), "left over, and longer than an address is ever going to be").unwrap();
        fs::set_permissions(bundle.path("address.new"), fs::Permissions::from_mode(0o666)).unwrap();
        let shim = world.launch(&bundle).binary(wrapped(&world, &format!("umask {umask}"))).start();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&bundle.path("address")), 0o644, "{umask}");
        assert_eq!(fs::read_to_string(bundle.path("address")).unwrap(), shim.address());
        assert_eq!(mode(shim.socket()) & 0o177, 0, "{umask}");
        shim.shutdown();
    }
}

#[test]
fn trap_48_a_start_that_succeeds_prints_its_reply_and_nothing_else() {
    let world = FakeWorld::new();
    let silent = |launch: holdfast_tests::Launch<'_>| {
        let output = launch
            .clone()
            .env("RUST_LOG", "trace")
            .env("RUST_BACKTRACE", "full")
            .env("NOTIFY_SOCKET", "/nonexistent")
            .env("HOLDFAST_BOOTSTRAP_VERSION", "nonsense")
            .run_start();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let address = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            Path::new(address.strip_prefix("unix://").unwrap()).parent(),
            Some(&*world.scene.run_dir().join("s"))
        );
        launch.attach(&address)
    };
    // Into a log that is there, is not, has no reader, cannot be opened, is something else.
    let bundle = world.sleeper();
    let shim = silent(world.launch(&bundle));
    let again = silent(world.launch(&bundle));
    assert_eq!(again.process().pid(), shim.process().pid());
    shim.shutdown();
    drop(again);
    let log = bundle.path("log");
    fs::remove_file(&log).unwrap();
    silent(world.launch(&bundle)).shutdown();
    mkfifo(&log, Mode::S_IRWXU).unwrap();
    silent(world.launch(&bundle)).shutdown();
    fs::set_permissions(&log, fs::Permissions::from_mode(0o000)).unwrap();
    silent(world.launch(&bundle)).shutdown();
    fs::remove_file(&log).unwrap();
    fs::create_dir(&log).unwrap();
    silent(world.launch(&bundle)).shutdown();
}

#[test]
fn a_shim_works_with_nowhere_to_send_events() {
    let world = FakeWorld::new();
    let bundle = world.script("exit 3");
    let mut shim = world.launch(&bundle).binary(wrapped(&world, "unset TTRPC_ADDRESS")).start();
    shim.run(&Stdio::none());
    assert_eq!(shim.wait_status(""), 3);
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn the_server_is_likelier_to_be_ended_for_memory_than_its_daemon() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let shim = world.start(&bundle);
    let score =
        |pid: u32| -> i32 { fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap() };
    // This process is the parent of `start`, as the daemon is.
    assert_eq!(score(shim.process().pid()), (score(std::process::id()) + 1).min(1000));
    shim.shutdown();
}

/// What the server has is derived from its daemon, not from `start`, and stays within what the kernel takes.
#[test]
fn the_servers_score_is_its_daemons_and_one_more_up_to_the_most_there_is() {
    let world = FakeWorld::new();
    let score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().to_owned();
    for (daemons, servers) in [("600", "601"), ("1000", "1000")] {
        let bundle = world.sleeper();
        // `start` itself has 1000.
        let daemon = world.scene.path(format!("daemon{daemons}"));
        let own = "echo 1000 >/proc/self/oom_score_adj; exec \"$0\" \"$@\"";
        let text = format!(
            "#!/bin/sh\necho {daemons} >/proc/self/oom_score_adj\nsh -c '{own}' {} \"$@\"\nexit $?\n",
            programs::shim().display()
        );
        process::run_with_input(
            Command::new("sh").args(["-c", "cat > $0; chmod 755 $0"]).arg(&daemon),
            text.as_bytes(),
        );
        let shim = world.launch(&bundle).binary(daemon).start();
        assert_eq!(score(shim.process().pid()), servers);
        shim.shutdown();
    }
}

#[test]
fn core_scheduling_is_done_or_refused_by_name() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let output = world.launch(&bundle).env("SCHED_CORE", "1").run_start();
    if output.status.success() {
        let shim = world.launch(&bundle).attach(&reply_address(&output.stdout));
        let environment = fs::read(format!("/proc/{}/environ", shim.process().pid())).unwrap();
        assert!(!String::from_utf8_lossy(&environment).contains("SCHED_CORE"));
        shim.shutdown();
    } else {
        // A kernel or a machine without it.
        assert_refused(&world, &output, "core-scheduling cookie, which SCHED_CORE asks for");
        assert!(!bundle.path("address").exists());
    }
    world.launch(&bundle).env("SCHED_CORE", "").start().shutdown();
}

#[test]
fn flags_of_later_daemons_are_passed_over_in_silence() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let before = "set -- -future value --flag -other=1 \"$@\"";
    world.launch(&bundle).binary(wrapped(&world, before)).start().shutdown();
    for flag in ["-v", "-version", "--version"] {
        let output = world.launch(&bundle).run_with(&[flag], b"");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("containerd-shim-holdfast-v2") && text.contains("Revision"), "{text}");
    }
}

/// A `start` that waits for its standard input, which is given too, and minds no signals any more.
fn deaf_start(world: &FakeWorld, bundle: &Bundle) -> (std::process::Child, Vec<u8>) {
    let (mut command, stdin) = world.launch(bundle).start_command();
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    eventually("start should catch SIGTERM", || {
        let text = fs::read_to_string(&status).unwrap();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        let caught = u64::from_str_radix(&caught, 16).unwrap();
        if caught & (1 << (libc::SIGTERM - 1)) != 0 { Ok(()) } else { Err(caught) }
    });
    (child, stdin)
}

#[test]
fn a_start_that_is_asked_to_end_comes_to_its_end_all_the_same() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut child, stdin) = deaf_start(&world, &bundle);
    let pid = Pid::from_raw(child.id().cast_signed());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        nix::sys::signal::kill(pid, signal).unwrap();
    }
    child.stdin.take().unwrap().write_all(&stdin).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    world.launch(&bundle).attach(&reply_address(&output.stdout)).shutdown();
}

#[test]
fn a_start_that_is_asked_to_end_while_its_server_comes_up_waits_for_it_all_the_same() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let (mut child, stdin) = deaf_start(&world, &bundle);
    let pid = Pid::from_raw(child.id().cast_signed());
    child.stdin.take().unwrap().write_all(&stdin).unwrap();
    // All the time, since most of it is spent on that wait.
    while child.try_wait().unwrap().is_none() {
        nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    world.launch(&bundle).attach(&reply_address(&output.stdout)).shutdown();
}

#[test]
fn a_hangup_ends_nothing() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.process().signal(Signal::SIGHUP);
    shim.run(&Stdio::none());
    shim.process().signal(Signal::SIGHUP);
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.discard();
}

#[test]
fn what_a_daemon_keeps_for_itself_does_not_reach_the_server() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let names = ["NOTIFY_SOCKET", "GOMAXPROCS", "MAX_SHIM_VERSION", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"];
    let launch = names.iter().fold(world.launch(&bundle), |launch, name| launch.env(name, "7"));
    let shim = launch.start();
    let environment = fs::read(format!("/proc/{}/environ", shim.process().pid())).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    for name in names {
        assert!(!environment.contains(&format!("{name}=")), "{name}");
    }
    shim.shutdown();
}

fn bootstrap(world: &FakeWorld, id: &str) -> BootstrapParams {
    let options = Options {
        binary_name: world.runtime.program().to_str().unwrap().into(),
        root: world.scene.path("oci").to_str().unwrap().into(),
        ..Options::default()
    };
    BootstrapParams {
        instance_id: id.into(),
        namespace: NAMESPACE.into(),
        containerd_version: "2.3.1".into(),
        containerd_ttrpc_address: world.scene.path("e.sock").to_str().unwrap().into(),
        containerd_grpc_address: world.scene.path("containerd.sock").to_str().unwrap().into(),
        containerd_binary: "/bin/true".into(),
        extensions: vec![Extension { value: Some(options_any(&options)).into(), ..Extension::default() }],
        ..BootstrapParams::default()
    }
}

#[test]
fn the_start_message_of_containerd_2_3_is_understood() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut params = bootstrap(&world, bundle.id());
    let socket_dir = world.scene.make_dir("sockets");
    params.socket_dir = Some(socket_dir.to_str().unwrap().into());
    // The address for events comes in the message alone.
    let launch = world.launch(&bundle).env("TTRPC_ADDRESS", "").stdin(params.write_to_bytes().unwrap());
    let mut shim = launch.start();
    assert_eq!(shim.socket().parent().unwrap(), socket_dir);
    shim.run(&Stdio::none());
    world.containerd.wait_for(bundle.id(), "start");
    shim.discard();
}

/// What `start` answers to a start message with this wish.
fn message_reply(world: &FakeWorld, bundle: &Bundle, wish: &str) -> Vec<u8> {
    let params = bootstrap(world, bundle.id()).write_to_bytes().unwrap();
    let output = world.launch(bundle).env("HOLDFAST_BOOTSTRAP_VERSION", wish).stdin(params).run_start();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    output.stdout
}

/// A `BootstrapResult` byte by byte: version, address, protocol.
fn result_bytes(version: u8, address: &str) -> Vec<u8> {
    let mut bytes = vec![0x08, version, 0x12, u8::try_from(address.len()).unwrap()];
    bytes.extend(address.as_bytes());
    bytes.extend(b"\x1a\x05ttrpc");
    bytes
}

#[test]
fn the_start_message_is_answered_in_its_own_protocol() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let reply = message_reply(&world, &bundle, "");
    let address = fs::read_to_string(bundle.path("address")).unwrap();
    assert_eq!(reply, result_bytes(2, &address));
    let result = BootstrapResult::parse_from_bytes(&reply).unwrap();
    assert_eq!((result.version, &*result.address, &*result.protocol), (2, &*address, "ttrpc"));
    assert!(result.special_fields.unknown_fields().iter().next().is_none(), "{result:?}");
    // From now on a shim is there, and it serves version 3 too.
    assert_eq!(message_reply(&world, &bundle, "3"), result_bytes(3, &address));
    assert_eq!(message_reply(&world, &bundle, "2"), result_bytes(2, &address));
    // Older daemons are given the plain address, whatever is wished for.
    for wish in ["", "3", "3-since-2.0"] {
        let output = world.launch(&bundle).env("HOLDFAST_BOOTSTRAP_VERSION", wish).run_start();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), address, "{wish}");
    }
    let launch = world.launch(&bundle).env("MAX_SHIM_VERSION", "2");
    let output = launch.clone().env("HOLDFAST_BOOTSTRAP_VERSION", "3").run_start();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), address, "it may be 1.7");
    let output = launch.env("HOLDFAST_BOOTSTRAP_VERSION", "3-since-2.0").run_start();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json, serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" }));
    world.launch(&bundle).attach(&address).shutdown();
}

#[test]
fn no_higher_version_is_promised_than_the_shim_serves_that_is_there() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let path = place(&world, &bundle);
    // What a build that knows version 2 alone says to the question.
    let mut response = ttrpc::Response::new();
    response.set_status(ttrpc::get_status(ttrpc::Code::UNIMPLEMENTED, "unknown service"));
    let old = answer_with(UnixListener::bind(&path).unwrap(), Frame::response(1, &response).to_bytes());
    let address = format!("unix://{}", path.display());
    assert_eq!(message_reply(&world, &bundle, "3"), result_bytes(2, &address));
    drop(old.join().unwrap());
    fs::remove_file(&path).unwrap();
}

#[test]
fn the_level_of_the_start_message_makes_the_server_talkative() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut params = bootstrap(&world, bundle.id());
    params.log_level = EnumOrUnknown::new(LogLevel::LOG_LEVEL_TRACE);
    let shim = world.launch(&bundle).stdin(params.write_to_bytes().unwrap()).start();
    assert!(process::describe(shim.process().pid()).contains(" -debug"));
    shim.shutdown();
}

#[test]
fn a_start_message_for_another_container_is_not_taken_for_one() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    // An Any decodes as a start message too; only the ids tell the two apart.
    let any = options_any(&Options::default()).write_to_bytes().unwrap();
    let as_params = BootstrapParams::parse_from_bytes(&any).unwrap();
    assert_eq!(as_params.instance_id, "containerd.runc.v1.Options", "the trap is real");
    let shim = world.launch(&bundle).stdin(any).start();
    assert_eq!(shim.socket().parent().unwrap(), world.scene.run_dir().join("s"));
    shim.shutdown();
}

#[test]
fn the_container_outlives_the_start_command_and_its_terminal() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    let container = Process::of(shim.run(&Stdio::none()));
    // The parent of the server is PID 1 or the nearest subreaper, not the command that started it.
    assert_ne!(process::parent(shim.process().pid()), Some(std::process::id()));
    assert!(container.is_alive());
    shim.discard();
}

#[test]
fn trap_56_information_is_printed_bare() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let launch = world.launch(&bundle).env("RUST_LOG", "trace");
    let version = launch.run_with(&["-v"], b"");
    assert!(version.status.success() && version.stderr.is_empty());
    let text = String::from_utf8(version.stdout).unwrap();
    assert!(text.contains("containerd-shim") && text.contains("ersion"), "{text}");

    let options = Options { binary_name: world.runtime.program().to_str().unwrap().into(), ..Options::default() };
    let info = launch.run_with(&["-info"], &options_any(&options).write_to_bytes().unwrap());
    assert!(info.status.success() && info.stderr.is_empty(), "{}", String::from_utf8_lossy(&info.stderr));
    // The message itself, not wrapped in an Any.
    let info = RuntimeInfo::parse_from_bytes(&info.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.holdfast.v2");
    assert!(!info.version.version.is_empty());
    let features = info.features.unwrap();
    assert!(features.type_url.ends_with("opencontainers/runtime-spec/1/features/Features"), "{}", features.type_url);
    let features: serde_json::Value = serde_json::from_slice(&features.value).unwrap();
    assert_eq!(features["ociVersionMax"], "1.0.2-dev", "what the runtime itself says");
}

#[test]
fn information_needs_no_runtime() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let options = Options { binary_name: "/no/such/runtime".into(), ..Options::default() };
    let info = world.launch(&bundle).run_with(&["-info"], &options_any(&options).write_to_bytes().unwrap());
    assert!(info.status.success());
    let info = RuntimeInfo::parse_from_bytes(&info.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.holdfast.v2");
    assert!(info.features.is_none());
}

/// See `sys/memory.rs`: thousands of execs would leave more than all that is in use.
#[test]
fn the_shim_runs_without_its_allocators_cache_and_has_no_other_program_do_so() {
    let world = FakeWorld::new();
    let (wrapper, seen) = (world.scene.path("wrapper"), world.scene.path("seen"));
    let script = format!("#!/bin/sh\nenv >>{seen:?}\nexec {:?} \"$@\"\n", world.runtime.program());
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let options = toml_options("", &format!("BinaryName = {wrapper:?}\nRoot = {:?}\n", world.scene.path("oci")));
    let bundle = world.sleeper();
    let mut shim = world.launch(&bundle).options(options).start();
    let environment = fs::read(format!("/proc/{}/environ", shim.process().pid())).unwrap();
    assert!(String::from_utf8_lossy(&environment).contains("GLIBC_TUNABLES=glibc.malloc.tcache_count=0"));
    shim.run(&Stdio::none());
    let seen = fs::read_to_string(seen).unwrap();
    assert!(seen.contains("PATH=") && !seen.contains("GLIBC_TUNABLES"), "{seen}");
    shim.discard();
}
