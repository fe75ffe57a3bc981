//! Ring 2: the `start` command: what it answers, what it leaves running, and what it refuses.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Output;

use containerd_shim_protos::bootstrap_api::{BootstrapParams, Extension};
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use holdfast_tests::shim::{NAMESPACE, Status, options_any};
use holdfast_tests::{FakeWorld, Process, Stdio, process};
use protobuf::Message;

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
fn the_server_keeps_no_needless_descriptors() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let shim = world.start(&bundle);
    let dir = format!("/proc/{}/fd", shim.process().pid());
    let open = fs::read_dir(dir).unwrap().filter_map(|e| fs::read_link(e.unwrap().path()).ok());
    let null = open.filter(|target| target == Path::new("/dev/null")).count();
    // Of the standard streams: its standard error is its log.
    assert_eq!(null, 2);
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
    let bundles: Vec<_> = (0..4).map(|_| world.sleeper().in_group("pod")).collect();
    let addresses: Vec<String> = std::thread::scope(|scope| {
        let starts: Vec<_> =
            bundles.iter().map(|b| world.launch(b)).map(|launch| scope.spawn(move || launch.run_start())).collect();
        starts.into_iter().map(|s| String::from_utf8(s.join().unwrap().stdout).unwrap()).collect()
    });
    assert!(addresses.iter().all(|a| *a == addresses[0] && !a.is_empty()), "{addresses:?}");
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
fn a_stale_socket_is_replaced() {
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

#[test]
fn what_is_no_socket_at_the_sockets_place_is_named_or_replaced() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let first = world.start(&bundle);
    let path = first.socket().to_owned();
    first.shutdown();
    fs::write(&path, "not a socket").unwrap();
    let output = world.launch(&bundle).run_start();
    if output.status.success() {
        world.launch(&bundle).attach(&String::from_utf8(output.stdout).unwrap()).shutdown();
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(path.to_str().unwrap()), "{stderr}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "not a socket", "not ours to remove");
    }
}

#[test]
fn a_socket_that_somebody_else_serves_is_not_taken_over() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let first = world.start(&bundle);
    let path = first.socket().to_owned();
    first.shutdown();
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let output = world.launch(&bundle).run_start();
    // Whether it is believed to be a shim or not: it keeps its socket, and nothing else is started beside it.
    assert!(path.exists());
    assert!(process::marked(world.scene.id()).is_empty());
    if !output.status.success() {
        assert!(String::from_utf8_lossy(&output.stderr).contains(path.to_str().unwrap()));
    }
    drop(listener);
    fs::remove_file(path).unwrap();
}

#[test]
fn a_missing_configuration_is_named() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    fs::remove_file(bundle.path("config.json")).unwrap();
    assert_refused(&world, &world.launch(&bundle).run_start(), "config.json");
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
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_refused(&world, &world.launch(&bundle).run_start(), "config.json: it is not a regular file");
    fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &config).unwrap();
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
fn version_and_information() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let launch = world.launch(&bundle);
    let version = launch.run_with(&["-v"], b"");
    assert!(version.status.success());
    let text = String::from_utf8(version.stdout).unwrap();
    assert!(text.contains("containerd-shim") && text.contains("ersion"), "{text}");

    let options = Options { binary_name: world.runtime.program().to_str().unwrap().into(), ..Options::default() };
    let info = launch.run_with(&["-info"], &options_any(&options).write_to_bytes().unwrap());
    assert!(info.status.success(), "{}", String::from_utf8_lossy(&info.stderr));
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
