//! Ring 2: the runtime options in both of their carriers, from the daemon to the OCI runtime's command line and back from
//! the bundle.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use holdfast_tests::shim::{NAMESPACE, options_any, toml_options};
use holdfast_tests::wire::Code;
use holdfast_tests::{Bundle, FakeWorld, Launch, Shim, Stdio, eventually, process, programs};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};

/// The settings of these tests in TOML, with keys in various cases.
fn toml(world: &FakeWorld) -> String {
    format!(
        "BinaryName = {:?}\nroot = {:?}\nSYSTEMDCGROUP = true\nnoPivotRoot = true\nNoNewKeyring = true\n\
         CriuImagePath = \"/images\"\ncriuworkpath = \"/work\"\nIoUid = 0\n",
        world.runtime.program(),
        world.scene.path("oci")
    )
}

/// The container lives with those settings, is killed with its shim, and deleted with them.
#[track_caller]
fn assert_obeyed(world: &FakeWorld, bundle: &Bundle, launch: &Launch<'_>) {
    let mut shim = launch.start();
    shim.run(&Stdio::none());
    let create = world.runtime.calls_of("create").pop().unwrap();
    for flag in ["--no-pivot", "--no-new-keyring", "--systemd-cgroup"] {
        assert!(create.args.iter().any(|arg| arg == flag), "{flag}: {create:?}");
    }
    let root = world.scene.path("oci").join(NAMESPACE);
    assert!(create.args.windows(2).any(|w| w == ["--root", root.to_str().unwrap()]), "{create:?}");
    let written: Value = serde_json::from_slice(&fs::read(bundle.path("options.json")).unwrap()).unwrap();
    // As containerd's own shim writes it: the names of the message, and no zero values.
    let expected = json!({
        "binary_name": world.runtime.program(), "root": world.scene.path("oci"), "systemd_cgroup": true,
        "no_pivot_root": true, "no_new_keyring": true, "criu_image_path": "/images", "criu_work_path": "/work",
    });
    assert_eq!(written, expected);
    assert_eq!(fs::read_to_string(bundle.path("runtime")).unwrap(), world.runtime.program().to_str().unwrap());
    shim.process().kill();
    // From the bundle alone.
    fs::remove_dir_all(world.scene.run_dir().join("tasks")).unwrap();
    launch.delete();
    let delete = world.runtime.calls_of("delete").pop().unwrap();
    assert!(delete.args.iter().any(|arg| arg == "--systemd-cgroup"), "{delete:?}");
}

#[test]
fn options_in_a_text_are_obeyed() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    assert_obeyed(&world, &bundle, &world.launch(&bundle).options(toml_options("", &toml(&world))));
}

#[test]
fn options_in_a_file_are_obeyed() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let file = world.scene.path("options.toml");
    fs::write(&file, toml(&world)).unwrap();
    let options = toml_options(file.to_str().unwrap(), "BinaryName = \"/the/file/wins\"");
    assert_obeyed(&world, &bundle, &world.launch(&bundle).options(options));
}

#[test]
fn options_in_the_message_of_runc_are_obeyed() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let options = Options {
        binary_name: world.runtime.program().to_str().unwrap().into(),
        root: world.scene.path("oci").to_str().unwrap().into(),
        systemd_cgroup: true,
        no_pivot_root: true,
        no_new_keyring: true,
        criu_image_path: "/images".into(),
        criu_work_path: "/work".into(),
        // What only containerd itself needs.
        task_api_address: "/x".into(),
        task_api_version: 3,
        ..Options::default()
    };
    let mut options = options_any(&options);
    options.type_url = format!("type.googleapis.com/{}", options.type_url);
    assert_obeyed(&world, &bundle, &world.launch(&bundle).options(options));
}

#[test]
fn unknown_keys_are_reported_in_the_log_and_nowhere_else() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let text = format!("{}ShinyNew = 1\n[nested]\nRoot = \"/no\"\n", toml(&world));
    let mut shim = world.launch(&bundle).options(toml_options("", &text)).start();
    shim.run(&Stdio::none());
    // The FIFO that the daemon reads.
    let mut log = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(bundle.path("log")).unwrap();
    let mut seen = String::new();
    eventually("both keys should be reported", || {
        let mut bytes = vec![0; 65536];
        let n = log.read(&mut bytes).unwrap_or(0);
        seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
        let warned = |key: &str| {
            let about = |line: &str| line.contains("level=warning") && line.contains(&format!("key={key}"));
            seen.lines().filter(|line| about(line) && line.contains(bundle.id())).count() == 1
        };
        if warned("ShinyNew") && warned("nested") { Ok(()) } else { Err(seen.clone()) }
    });
    shim.discard();
}

/// What is wrong with some options, and the words that must say so.
fn bad_options(world: &FakeWorld) -> Vec<(Any, &'static str)> {
    let file = world.scene.path("bad.toml");
    fs::write(&file, "Root = [").unwrap();
    let message =
        |type_url: &str, value: &[u8]| Any { type_url: type_url.into(), value: value.to_vec(), ..Any::default() };
    vec![
        (toml_options("/nonexistent/options.toml", ""), "/nonexistent/options.toml"),
        (toml_options("options.toml", ""), "\"options.toml\" is not absolute"),
        (toml_options(file.to_str().unwrap(), ""), "bad.toml is not TOML"),
        (toml_options("/dev/zero", ""), "/dev/zero"),
        (toml_options("", "SystemdCgroup = \"yes\""), "SystemdCgroup must be true or false"),
        (toml_options("", "SpillLimit = \"lots\""), "SpillLimit must be a size"),
        (
            toml_options("", "outputpolicy = \"drop\""),
            "outputpolicy must be \"block\" or \"drop-oldest\", not \"drop\"",
        ),
        (toml_options("", "Root = \"/a\"\nrOOT = \"/b\""), "given twice"),
        (message("windows.v1.Options", b""), "\"windows.v1.Options\" are not supported"),
        (message("containerd.runc.v1.Options", &[0x32, 0x7f]), "malformed runtime options"),
    ]
}

#[test]
fn bad_options_are_refused_by_name_by_start() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    for (options, words) in bad_options(&world) {
        let output = world.launch(&bundle).options(options).run_start();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}: {stderr}");
        assert!(stderr.contains(words) && stderr.lines().count() == 1, "{words}: {stderr}");
        assert!(process::marked(bundle.id()).is_empty());
    }
}

fn create_with(shim: &mut Shim, options: Any) -> Result<(), holdfast_tests::wire::CallError> {
    let mut request = shim.create_request(&Stdio::none());
    request.options = Some(options).into();
    shim.connection.call::<protobuf::well_known_types::empty::Empty>("containerd.task.v2.Task", "Create", &request)?;
    Ok(())
}

#[test]
fn bad_options_are_refused_by_name_by_create() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    for (options, words) in bad_options(&world) {
        let refusal = create_with(&mut shim, options).unwrap_err();
        assert_eq!(refusal.code(), Code::INVALID_ARGUMENT, "{words}: {refusal:?}");
        assert!(format!("{refusal:?}").replace('\\', "").contains(words), "{words}: {refusal:?}");
    }
    assert!(world.runtime.calls_of("create").is_empty());
    shim.shutdown();
}

#[test]
fn options_of_a_type_without_a_value_are_the_defaults() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    for type_url in ["runtimeoptions.v1.Options", "containerd.runc.v1.Options"] {
        let options = Any { type_url: type_url.into(), ..Any::default() };
        world.launch(&bundle).options(options).start().shutdown();
    }
}

/// `-info` with these options.
fn info(world: &FakeWorld, bundle: &Bundle, options: &Any) -> RuntimeInfo {
    let output = world.launch(bundle).run_with(&["-info"], &options.write_to_bytes().unwrap());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    RuntimeInfo::parse_from_bytes(&output.stdout).unwrap()
}

#[test]
fn information_is_about_the_runtime_that_the_options_name() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let file = world.scene.path("options.toml");
    fs::write(&file, toml(&world)).unwrap();
    let runc = Options { binary_name: world.runtime.program().to_str().unwrap().into(), ..Options::default() };
    for options in [toml_options("", &toml(&world)), toml_options(file.to_str().unwrap(), ""), options_any(&runc)] {
        let info = info(&world, &bundle, &options);
        assert_eq!(*info.options, options, "an echo");
        let features: Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(features["ociVersionMax"], "1.0.2-dev", "what the runtime itself says");
    }
    let output = world.launch(&bundle).run_with(&["-info"], &toml_options("/no/file", "").write_to_bytes().unwrap());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/file"), "{output:?}");
}

#[test]
fn information_is_given_in_any_directory_and_leaves_nothing() {
    let world = FakeWorld::new();
    // One that does not exist any more.
    let gone = world.scene.make_dir("gone");
    let script = "cd \"$0\" && rmdir \"$0\" && exec \"$@\"";
    let mut command = world.scene.command(Path::new("sh"));
    command.args(["-c", script]).arg(&gone).arg(programs::shim()).arg("-info");
    let output = process::run(&mut command);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(RuntimeInfo::parse_from_bytes(&output.stdout).unwrap().name, "io.containerd.holdfast.v2");
    assert!(!world.scene.run_dir().exists());
    // And with standard input closed.
    let mut command: Command = world.scene.command(Path::new("sh"));
    command.args(["-c", "exec \"$@\" <&-", "sh"]).arg(programs::shim()).arg("-info");
    let output = process::run(&mut command);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn what_is_chosen_for_output_is_kept_with_the_options() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let text = format!("{}spilllimit = \"1m\"\nOUTPUTPOLICY = \"drop-oldest\"\n", toml(&world));
    let mut shim = world.launch(&bundle).options(toml_options("", &text)).start();
    shim.run(&Stdio::none());
    let written: Value = serde_json::from_slice(&fs::read(bundle.path("options.json")).unwrap()).unwrap();
    assert_eq!((&written["spill_limit"], &written["output_policy"]), (&json!(1 << 20), &json!("drop-oldest")));
    shim.discard();
}

#[test]
fn a_bad_annotation_about_output_is_refused_by_name_by_create() {
    for (annotation, value, reason) in [
        ("holdfast.output.spill-limit", "64 chunks", "a size is"),
        ("holdfast.output.policy", "drop", "a policy is block or drop-oldest"),
    ] {
        let world = FakeWorld::new();
        let bundle = world.sleeper().configure(|spec| spec["annotations"] = json!({ annotation: value }));
        let mut shim = world.start(&bundle);
        let refusal = shim.create(&Stdio::none()).unwrap_err();
        assert_eq!(refusal.code(), Code::INVALID_ARGUMENT, "{refusal:?}");
        let said = format!("{refusal:?}").replace('\\', "");
        assert!(said.contains(&format!("{annotation} = \"{value}\" is not valid: {reason}")), "{said}");
        assert!(world.runtime.calls_of("create").is_empty());
        shim.shutdown();
    }
}

#[test]
fn a_bad_settings_file_is_refused_by_start_with_file_key_and_reason() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let file = world.scene.path("settings.toml");
    for (text, words) in [
        (Some("[output]\nspill-limit = \"big\"\n"), "output.spill-limit = \"big\" is not valid: a size is"),
        (Some("[output]\nspil-limit = 1\n"), "line 2: unknown field `spil-limit`"),
        (None, "cannot read the settings"),
    ] {
        let _ = fs::remove_file(&file);
        if let Some(text) = text {
            fs::write(&file, text).unwrap();
        }
        let output = world.launch(&bundle).env("HOLDFAST_SHIM_CONFIG", file.to_str().unwrap()).run_start();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}: {stderr}");
        assert!(stderr.contains(file.to_str().unwrap()) && stderr.contains(words), "{words}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(process::marked(bundle.id()).is_empty());
        assert_eq!(world.scene.run_files(), [""; 0]);
    }
}
