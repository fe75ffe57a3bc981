//! Ring 3: stdio and loggers with real OCI runtimes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use containerd_shim_protos::shim::oci::Options;
use holdfast_tests::logger::Logger;
use holdfast_tests::shim::options_any;
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::{Bundle, FakeContainerd, Launch, Scene, Stdio, programs};
use serde_json::json;

const BURST: usize = 8 << 20;

/// The program of an OCI runtime, or a skip.
fn runtime(name: &str) -> Option<PathBuf> {
    if !is_root() {
        skip("needs root");
        return None;
    }
    Some(if name == "holdfast-oci" { programs::ours(name) } else { programs::peer(name).expect("tests/peers.sh") })
}

#[track_caller]
fn assert_is_burst(got: &[u8]) {
    assert_eq!(got.len(), BURST);
    assert!(got.chunks(16).all(|line| line == b"0123456789abcde\n"));
}

/// Where the burst goes, each time with Delete and Shutdown right after.
fn burst_arrives_with(name: &str) {
    let Some(program) = runtime(name) else { return };
    for target in ["fifo", "file", "binary", "terminal", "terminal to binary"] {
        let scene = Scene::new();
        let _events = FakeContainerd::start(&scene);
        let script = format!("stty -opost 2>/dev/null; yes 0123456789abcde | head -c {BURST}; exit 3");
        let bundle = Bundle::busybox(&scene, &["/bin/sh", "-c", &script]);
        let terminal = target.starts_with("terminal");
        let bundle = if terminal { bundle.with_terminal() } else { bundle };
        let logger = Logger::new(&scene, "l");
        let file = scene.path("out");
        let stdio = match target {
            "file" => Stdio { stdout: format!("file://{}", file.display()), ..Stdio::none() },
            "binary" | "terminal to binary" => Stdio { terminal, ..logger.stdio("binary") },
            _ => Stdio { terminal, ..Stdio::output(&scene, "init") },
        };
        let reader = stdio.stdout.starts_with('/').then(|| stdio.readers().0);
        let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
        shim.run(&stdio);
        while shim.delete("").is_err() {}
        shim.shutdown_at_once();
        match (reader, target) {
            (Some(reader), _) => assert_is_burst(&reader.to_end()),
            (None, "file") => assert_is_burst(&fs::read(file).unwrap()),
            (None, _) => assert_is_burst(&logger.file("stdout")),
        }
    }
}

/// As [`burst_arrives_with`] for an exec: it is deleted as soon as that is possible, and everything else right after it.
fn execs_burst_arrives_with(name: &str) {
    let Some(program) = runtime(name) else { return };
    let script = format!("stty -opost 2>/dev/null; yes 0123456789abcde | head -c {BURST}; exit 3");
    for target in ["fifo", "file", "binary", "terminal"] {
        let scene = Scene::new();
        let events = FakeContainerd::start(&scene);
        let bundle = Bundle::busybox(&scene, &["/bin/sleep", "1000"]);
        let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
        shim.run(&Stdio::none());
        let logger = Logger::new(&scene, "l");
        let file = scene.path("out");
        let stdio = match target {
            "file" => Stdio { stdout: format!("file://{}", file.display()), ..Stdio::none() },
            "binary" => logger.stdio("binary"),
            _ => Stdio { terminal: target == "terminal", ..Stdio::output(&scene, "e") },
        };
        let reader = stdio.stdout.starts_with('/').then(|| stdio.readers().0);
        shim.exec("e", &["/bin/sh", "-c", &script], &stdio).unwrap();
        shim.start("e").unwrap();
        while shim.delete("e").is_err() {}
        shim.kill("", 9).unwrap();
        while shim.delete("").is_err() {}
        shim.shutdown_at_once();
        match (reader, target) {
            (Some(reader), _) => assert_is_burst(&reader.to_end()),
            (None, "file") => assert_is_burst(&fs::read(file).unwrap()),
            (None, _) => assert_is_burst(&logger.file("stdout")),
        }
        events.wait_for(bundle.id(), "exit e 3");
    }
}

/// In a user namespace the container's root is a stranger to the files of the machine's, the shim's pipes too.
fn dev_stdout_can_be_opened_again_with(name: &str) {
    const ID: u32 = 200_000;
    let Some(program) = runtime(name) else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let script = "echo init >/dev/stdout; echo errors >/dev/stderr; exec sleep 1000";
    let bundle = Bundle::busybox(&scene, &["/bin/sh", "-c", script]).configure(|c| {
        let mapping = json!([{ "containerID": 0, "hostID": ID, "size": 65536 }]);
        c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        c["linux"]["uidMappings"] = mapping.clone();
        c["linux"]["gidMappings"] = mapping;
    });
    for dir in [scene.dir(), bundle.dir(), &scene.dir().join("rootfs"), &bundle.dir().join("rootfs")] {
        if dir.exists() {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let options = Options {
        binary_name: text(program),
        root: text(scene.path("oci")),
        io_uid: ID,
        io_gid: ID,
        ..Options::default()
    };
    let mut shim = Launch::new(&scene, &bundle).options(options_any(&options)).start();
    let stdio = Stdio::output(&scene, "init");
    let (stdout, stderr) = stdio.readers();
    shim.run(&stdio);
    stdout.wait_for("init\n");
    stderr.unwrap().wait_for("errors\n");
    let exec = Stdio::output(&scene, "e");
    let (exec_out, _exec_err) = exec.readers();
    shim.exec("e", &["/bin/sh", "-c", "echo exec >/dev/stdout"], &exec).unwrap();
    shim.start("e").unwrap();
    assert_eq!(exec_out.text(), "exec\n");
    assert_eq!(shim.wait_status("e"), 0);
    shim.delete("e").unwrap();
    shim.discard();
}

macro_rules! with_runtime {
    ($module:ident, $name:literal) => {
        mod $module {
            #[test]
            fn a_burst_before_an_immediate_delete_and_shutdown_arrives() {
                super::burst_arrives_with($name);
            }

            #[test]
            fn a_burst_of_an_exec_before_an_immediate_end_of_everything_arrives() {
                super::execs_burst_arrives_with($name);
            }

            #[test]
            fn dev_stdout_can_be_opened_again_in_a_user_namespace() {
                super::dev_stdout_can_be_opened_again_with($name);
            }
        }
    };
}

with_runtime!(holdfast_oci, "holdfast-oci");
with_runtime!(runc, "runc");
