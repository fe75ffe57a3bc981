//! Ring 3: sandboxes that hold namespaces and mounts, and containers of a real OCI runtime that join them. The scene's check
//! sees that no mount is left, nor a process.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::cgroups::metrics::Metrics as V1;
use containerd_shim_protos::cgroups_v2::metrics::Metrics as V2;
use holdfast_tests::sandbox::READY;
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::wire::Code;
use holdfast_tests::{
    Bundle, FakeContainerd, Launch, Process, Sandbox, Scene, Stdio, eventually, eventually::holds, programs,
};
use nix::mount::{MntFlags, umount2};
use protobuf::Message;
use serde_json::{Value, json};

/// A scene and a bundle for a sandbox.
struct Stage {
    bundle: Bundle,
    _events: FakeContainerd,
    scene: Scene,
}

impl Stage {
    /// Of a sandbox with this `linux` in its specification. None, said loudly, where this cannot run.
    fn new(linux: Value) -> Option<Self> {
        if !is_root() {
            skip("needs root");
            return None;
        }
        let scene = Scene::new();
        let bundle = Bundle::plain(&scene, &[]).configure(|c| {
            c["hostname"] = "pod".into();
            c["linux"] = linux;
        });
        Some(Self { bundle, _events: FakeContainerd::start(&scene), scene })
    }

    /// All kinds of namespaces, new ones.
    fn whole() -> Option<Self> {
        let kinds = ["network", "ipc", "uts", "pid"].map(|kind| json!({ "type": kind }));
        Self::new(json!({ "namespaces": kinds, "sysctl": { "net.core.somaxconn": "77" } }))
    }

    fn launch<'a>(&'a self, bundle: &Bundle) -> Launch<'a> {
        let runc = programs::peer("runc").expect("tests/peers.sh provides runc");
        Launch::new(&self.scene, bundle).runtime(&runc)
    }

    /// A container of the pod, in what `holder` holds.
    fn member(&self, holder: &Process, script: &str) -> Bundle {
        let joined = [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")];
        let mut namespaces: Vec<Value> = joined
            .iter()
            .map(|(kind, file)| json!({ "type": kind, "path": format!("/proc/{}/ns/{file}", holder.pid()) }))
            .collect();
        namespaces.push(json!({ "type": "mount" }));
        Bundle::busybox(&self.scene, &["/bin/sh", "-c", script]).in_group(self.bundle.id()).configure(|c| {
            c.as_object_mut().unwrap().remove("hostname");
            c["linux"]["namespaces"] = namespaces.into();
        })
    }
}

/// A network namespace at a path, as CNI's clients make them.
struct Network(PathBuf);

impl Network {
    fn new(scene: &Scene) -> Self {
        let path = scene.path("netns");
        fs::write(&path, "").unwrap();
        ok(Command::new("unshare").arg(format!("--net={}", path.display())).arg("true"));
        Self(path)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn ok(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// Runs a program in one namespace of a process.
fn within(process: &Process, namespace: &str, command: &[&str]) -> String {
    ok(Command::new("nsenter").args(["-t", &process.pid().to_string(), namespace]).args(command))
}

fn inode(path: impl AsRef<Path>) -> u64 {
    fs::metadata(path).unwrap().ino()
}

fn namespace(process: &Process, file: &str) -> u64 {
    inode(format!("/proc/{}/ns/{file}", process.pid()))
}

fn is_own(process: &Process, file: &str) -> bool {
    namespace(process, file) != inode(format!("/proc/self/ns/{file}"))
}

fn mounted_below(dir: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table.lines().filter(|line| line.split(' ').nth(1).is_some_and(|point| Path::new(point).starts_with(dir))).count()
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|&option| option.to_owned()).collect();
    Mount { type_: kind.into(), source: source.into(), options, ..Mount::default() }
}

#[test]
fn new_namespaces_are_held_as_the_specification_says() {
    let Some(stage) = Stage::whole() else { return };
    let shim = stage.launch(&stage.bundle).start();
    let mut sandbox = Sandbox::of(&shim, &stage.bundle);
    let holder = sandbox.run();
    for file in ["net", "ipc", "uts", "pid"] {
        assert!(is_own(&holder, file), "{file}");
    }
    assert!(!is_own(&holder, "mnt"), "nothing is kept busy by it");
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", holder.pid())).unwrap(), Path::new("/"));
    eventually("it should keep nothing open", || {
        let fds = fs::read_dir(format!("/proc/{}/fd", holder.pid())).unwrap();
        let files: Vec<_> = fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect();
        if files == [Path::new("/dev/null"); 3] { Ok(()) } else { Err(files) }
    });
    assert_eq!(within(&holder, "-u", &["hostname"]), "pod\n");
    assert_eq!(within(&holder, "-n", &["cat", "/proc/sys/net/core/somaxconn"]), "77\n");
    assert!(within(&holder, "-n", &["ip", "link", "show", "lo"]).contains(",UP"), "loopback is up");
    assert!(fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap() != "77\n", "the machine's is as it was");
    sandbox.shutdown().unwrap();
    shim.process().wait_gone();
}

#[test]
fn the_network_is_joined_by_its_path_and_outlives_the_sandbox() {
    let Some(stage) = Stage::new(json!({})) else { return };
    // As CRI has it: no specification.
    fs::remove_file(stage.bundle.path("config.json")).unwrap();
    let network = Network::new(&stage.scene);
    let shim = stage.launch(&stage.bundle).start();
    let mut sandbox = Sandbox::of(&shim, &stage.bundle);
    sandbox.create_with(Vec::new(), network.0.to_str().unwrap()).unwrap();
    let holder = Process::of(sandbox.start().unwrap().pid);
    assert_eq!(namespace(&holder, "net"), inode(&network.0));
    assert_eq!(["ipc", "uts", "pid"].map(|file| is_own(&holder, file)), [true, true, false]);
    sandbox.shutdown().unwrap();
    shim.process().wait_gone();
    assert!(is_own_path(&network.0));
}

/// Whether a namespace is still there.
fn is_own_path(path: &Path) -> bool {
    Command::new("nsenter").arg(format!("--net={}", path.display())).arg("true").status().unwrap().success()
}

#[test]
fn a_container_joins_what_is_held_and_ends_with_a_pid_namespace_that_it_shares() {
    let Some(stage) = Stage::whole() else { return };
    let shim = stage.launch(&stage.bundle).start();
    let mut sandbox = Sandbox::of(&shim, &stage.bundle);
    let holder = sandbox.run();
    let member = stage.member(&holder, "cat /proc/sys/kernel/hostname; (sleep 1000 &); exec sleep 1000");
    let mut task = stage.launch(&member).start();
    assert_eq!(task.address(), shim.address(), "one shim for the pod");
    let stdio = Stdio::output(&stage.scene, "io");
    let (stdout, _stderr) = stdio.readers();
    let container = Process::of(task.run(&stdio));
    eventually("it should see the pod's name", || holds(stdout.so_far() == b"pod\n"));
    for file in ["net", "ipc", "uts", "pid"] {
        assert_eq!(namespace(&container, file), namespace(&holder, file), "{file}");
    }
    // Its orphan belongs to the first process of the pod, which collects it.
    let children = || fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.pid())).unwrap();
    let orphan = eventually("the orphan should be adopted", || children().trim().parse::<u32>());
    Process::of(orphan).kill();
    eventually("the orphan should be collected", || if children().is_empty() { Ok(()) } else { Err(children()) });
    sandbox.stop(0).unwrap();
    assert_eq!(sandbox.wait().unwrap().exit_status, 0, "it heeds its signal, although it is the first process there");
    assert_eq!(task.wait_status(""), 137);
    task.delete("").unwrap();
    sandbox.shutdown().unwrap();
    shim.process().wait_gone();
}

#[test]
fn what_was_asked_for_is_mounted_until_the_shutdown() {
    let Some(stage) = Stage::new(json!({})) else { return };
    let lower = stage.scene.make_dir("lower");
    fs::write(lower.join("file"), "pod's").unwrap();
    let rootfs = stage.bundle.path("rootfs");
    let mounts = vec![mount("bind", lower.to_str().unwrap(), &["rbind", "ro"])];
    let shim = stage.launch(&stage.bundle).start();
    let mut sandbox = Sandbox::of(&shim, &stage.bundle);
    sandbox.create_with(mounts, "").unwrap();
    assert_eq!(fs::read_to_string(rootfs.join("file")).unwrap(), "pod's");
    let _holder = Process::of(sandbox.start().unwrap().pid);
    sandbox.stop(0).unwrap();
    assert_eq!(mounted_below(stage.bundle.dir()), 1, "containers may still use it");
    sandbox.shutdown().unwrap();
    assert_eq!(mounted_below(stage.bundle.dir()), 0);
    shim.process().wait_gone();
}

#[test]
fn a_mount_that_fails_leaves_none_and_the_creation_can_be_repeated() {
    let Some(stage) = Stage::new(json!({})) else { return };
    let shim = stage.launch(&stage.bundle).start();
    let mut sandbox = Sandbox::of(&shim, &stage.bundle);
    let missing = stage.scene.path("missing");
    let mounts = vec![mount("tmpfs", "tmpfs", &[]), mount("bind", missing.to_str().unwrap(), &["rbind"])];
    let refusal = sandbox.create_with(mounts, "").unwrap_err();
    assert!(refusal.message().contains(missing.to_str().unwrap()), "{refusal:?}");
    assert_eq!(mounted_below(stage.bundle.dir()), 0);
    assert_eq!(sandbox.status(false).unwrap_err().code(), Code::NOT_FOUND);
    let _holder = sandbox.run();
    assert_eq!(sandbox.status(false).unwrap().state, READY);
    sandbox.shutdown().unwrap();
    shim.process().wait_gone();
}

#[test]
fn after_the_shim_was_killed_delete_unmounts_and_ends_all() {
    let Some(stage) = Stage::whole() else { return };
    let shim = stage.launch(&stage.bundle).start();
    let mut sandbox = Sandbox::of(&shim, &stage.bundle);
    sandbox.create_with(vec![mount("tmpfs", "tmpfs", &[])], "").unwrap();
    let holder = Process::of(sandbox.start().unwrap().pid);
    let member = stage.member(&holder, "exec sleep 1000");
    let mut task = stage.launch(&member).start();
    let container = Process::of(task.run(&Stdio::none()));
    shim.process().kill();
    assert!(holder.is_alive() && container.is_alive(), "until somebody decides");
    stage.launch(&member).delete();
    container.wait_gone();
    assert!(holder.is_alive(), "each has its own");
    stage.launch(&stage.bundle).delete();
    holder.wait_gone();
    assert_eq!(mounted_below(stage.bundle.dir()), 0);
    assert_eq!(stage.scene.run_files_but_events(), Vec::<String>::new());
}

#[test]
fn the_metrics_are_those_of_the_pods_control_group() {
    let Some(stage) = Stage::whole() else { return };
    let group = format!("/{}-pod", stage.scene.id());
    let text = fs::read(stage.bundle.path("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    config["linux"]["cgroupsPath"] = group.clone().into();
    fs::write(stage.bundle.path("config.json"), config.to_string()).unwrap();
    let shim = stage.launch(&stage.bundle).start();
    let mut sandbox = Sandbox::of(&shim, &stage.bundle);
    let holder = sandbox.run();
    let pids = |sandbox: &mut Sandbox| {
        let data = sandbox.metrics().unwrap().metrics.unwrap().data.unwrap();
        match data.type_url.as_str() {
            "io.containerd.cgroups.v1.Metrics" => V1::parse_from_bytes(&data.value).unwrap().pids.current,
            "io.containerd.cgroups.v2.Metrics" => V2::parse_from_bytes(&data.value).unwrap().pids.current,
            other => panic!("{other}"),
        }
    };
    let of_shim = pids(&mut sandbox);
    let member = stage.member(&holder, "exec sleep 1000").configure(|c| c["linux"]["cgroupsPath"] = group.into());
    let mut task = stage.launch(&member).start();
    task.run(&Stdio::none());
    // The OCI runtime's threads are there until it has become the program.
    eventually(&format!("one process should be counted; before that in the shim's group: {of_shim}"), || {
        match pids(&mut sandbox) {
            1 => Ok(()),
            other => Err(other),
        }
    });
    sandbox.shutdown().unwrap();
    assert_eq!(task.wait_status(""), 137);
    task.delete("").unwrap();
    shim.process().wait_gone();
}
