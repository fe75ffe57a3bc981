//! Ring 3: Update, seen in the files of the control group; on whichever version of control groups this machine has.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::{Empty, UpdateTaskRequest};
use holdfast_tests::shim::{Status, TASK};
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::wire::Code;
use holdfast_tests::{Bundle, FakeContainerd, Launch, Scene, Shim, Stdio, programs};
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn runtime(name: &str) -> Option<PathBuf> {
    if !is_root() {
        skip("needs root");
        return None;
    }
    let program = if name == "holdfast-oci" { Some(programs::ours(name)) } else { programs::peer(name) };
    if program.is_none() {
        skip(&format!("{name} is neither installed nor to be had"));
    }
    program
}

fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// What is asked, and what a file must say then: on version 1 with its controller, or on version 2.
struct Asked {
    resources: Value,
    v1: Vec<(&'static str, &'static str, String)>,
    v2: Vec<(&'static str, String)>,
}

impl Asked {
    fn new(resources: Value, v1: &[(&'static str, &'static str, &str)], v2: &[(&'static str, &str)]) -> Self {
        let v1 = v1.iter().map(|(controller, file, text)| (*controller, *file, (*text).to_owned())).collect();
        let v2 = v2.iter().map(|(file, text)| (*file, (*text).to_owned())).collect();
        Self { resources, v1, v2 }
    }

    fn files(&self, bundle: &Bundle) -> Vec<(PathBuf, &str)> {
        let root = Path::new("/sys/fs/cgroup");
        if is_unified() {
            let dir = root.join(bundle.id());
            // With one scheduler the weight goes to the other of two files.
            let bfq = dir.join("io.bfq.weight").exists();
            let meant = self.v2.iter().filter(|(file, _)| *file != "io.weight" || !bfq);
            return meant.map(|(file, text)| (dir.join(file), text.as_str())).collect();
        }
        self.v1.iter().map(|(c, f, text)| (root.join(c).join(bundle.id()).join(f), text.as_str())).collect()
    }

    /// Asks, and looks. Files that this kernel does not have are passed over.
    #[track_caller]
    fn ask(&self, shim: &mut Shim, bundle: &Bundle) {
        shim.update(&self.resources).unwrap_or_else(|e| panic!("{}: {e:?}", self.resources));
        for (file, expected) in self.files(bundle) {
            if let Ok(text) = fs::read_to_string(&file) {
                assert_eq!(text.trim_end(), expected, "{} after {}", file.display(), self.resources);
            }
        }
    }
}

/// Limits of every kind that all runtimes change, `n` telling one round from another.
fn limits(n: u64) -> Vec<Asked> {
    let limit = (64 + n) * MIB;
    let [text, half, double] = [limit, limit / 2, limit * 2].map(|n| n.to_string());
    let quota = 20_000 + n * 1000;
    let last_cpu = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let last_cpu = last_cpu.trim_end().rsplit(['-', ',']).next().unwrap().to_owned();
    let cpu = if n.is_multiple_of(2) { "0" } else { last_cpu.as_str() };
    vec![
        Asked::new(
            json!({ "memory": { "limit": limit, "reservation": limit / 2, "swap": limit * 2 } }),
            &[
                ("memory", "memory.limit_in_bytes", &text),
                ("memory", "memory.soft_limit_in_bytes", &half),
                ("memory", "memory.memsw.limit_in_bytes", &double),
            ],
            &[("memory.max", &text), ("memory.low", &half), ("memory.swap.max", &text)],
        ),
        Asked::new(
            json!({ "cpu": { "shares": 200 + n, "quota": quota, "period": 50_000 } }),
            &[
                ("cpu", "cpu.shares", &(200 + n).to_string()),
                ("cpu", "cpu.cfs_quota_us", &quota.to_string()),
                ("cpu", "cpu.cfs_period_us", "50000"),
            ],
            &[("cpu.max", &format!("{quota} 50000"))],
        ),
        Asked::new(
            json!({ "cpu": { "cpus": cpu, "mems": "0" } }),
            &[("cpuset", "cpuset.cpus", cpu), ("cpuset", "cpuset.mems", "0")],
            &[("cpuset.cpus", cpu), ("cpuset.mems", "0")],
        ),
        Asked::new(
            json!({ "pids": { "limit": 40 + n } }),
            &[("pids", "pids.max", &(40 + n).to_string())],
            &[("pids.max", &(40 + n).to_string())],
        ),
        Asked::new(
            json!({ "blockIO": { "weight": 300 + n } }),
            &[("blkio", "blkio.bfq.weight", &(300 + n).to_string())],
            &[
                ("io.bfq.weight", &format!("default {}", 300 + n)),
                ("io.weight", &format!("default {}", 1 + (290 + n) * 9999 / 990)),
            ],
        ),
    ]
}

/// Each limit, in each state that takes an Update; what was set before and is not asked for stays.
fn all_limits_with(name: &str) {
    let Some(program) = runtime(name) else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "1000"]);
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    shim.create(&Stdio::none()).unwrap();
    let ask_all = |shim: &mut Shim, round: u64| limits(round).iter().for_each(|asked| asked.ask(shim, &bundle));
    ask_all(&mut shim, 0);
    assert_eq!(shim.status(""), Status::CREATED);
    shim.start("").unwrap();
    ask_all(&mut shim, 1);
    shim.pause().unwrap();
    ask_all(&mut shim, 2);
    assert_eq!(shim.status(""), Status::PAUSED, "it was only updated");
    shim.resume().unwrap();
    for asked in limits(2) {
        for (file, expected) in asked.files(&bundle) {
            let text = fs::read_to_string(&file).ok();
            assert!(text.as_deref().is_none_or(|text| text.trim_end() == expected), "{}: {text:?}", file.display());
        }
    }
    // Nothing asked for is nothing done; and a limit can be taken away.
    shim.update(&json!({})).unwrap();
    let none = Asked::new(
        json!({ "cpu": { "quota": -1, "period": 50_000 }, "pids": { "limit": -1 } }),
        &[("cpu", "cpu.cfs_quota_us", "-1"), ("pids", "pids.max", "max")],
        &[("cpu.max", "max 50000"), ("pids.max", "max")],
    );
    none.ask(&mut shim, &bundle);

    // What the kernel refuses is the runtime's to say, and ends nothing.
    let refusal = shim.update(&json!({ "cpu": { "cpus": "4000" } })).unwrap_err();
    assert_eq!(refusal.code(), Code::UNKNOWN);
    assert!(refusal.message().starts_with("OCI runtime update failed: "), "{refusal:?}");
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    assert_eq!(shim.update(&json!({})).unwrap_err().code(), Code::FAILED_PRECONDITION);
    shim.delete("").unwrap();
    assert_eq!(shim.update(&json!({})).unwrap_err().code(), Code::NOT_FOUND);
    shim.shutdown();
}

#[test]
fn runc_sets_every_limit_in_every_state() {
    all_limits_with("runc");
}

#[test]
fn holdfast_oci_sets_every_limit_in_every_state() {
    all_limits_with("holdfast-oci");
}

/// Devices and huge pages, which runc leaves as they are in an Update.
#[test]
fn holdfast_oci_changes_devices_and_huge_pages_too() {
    let Some(program) = runtime("holdfast-oci") else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "1000"]);
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    shim.run(&Stdio::none());
    let tun = json!({ "allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm" });
    shim.update(&json!({ "devices": [{ "allow": false, "access": "rwm" }, tun] })).unwrap();
    let list = Path::new("/sys/fs/cgroup/devices").join(bundle.id()).join("devices.list");
    if let Ok(list) = fs::read_to_string(&list) {
        assert!(list.lines().any(|line| line == "c 10:200 rwm") && !list.contains("a *:*"), "{list}");
    }
    if is_unified() {
        let pages = Asked::new(
            json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 8 * MIB }] }),
            &[],
            &[("hugetlb.2MB.max", "8388608")],
        );
        pages.ask(&mut shim, &bundle);
    }
    shim.discard();
}

#[test]
fn resources_that_make_no_sense_are_refused_by_name_and_change_nothing() {
    let Some(program) = runtime("runc") else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "1000"]);
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    shim.run(&Stdio::none());
    Asked::new(json!({ "pids": { "limit": 44 } }), &[("pids", "pids.max", "44")], &[("pids.max", "44")])
        .ask(&mut shim, &bundle);
    for (resources, named) in [
        (json!({ "pids": { "limit": "45" } }), "pids.limit"),
        (json!({ "pids": { "limit": 45 }, "memory": { "limit": true } }), "memory.limit"),
        (json!({ "pids": { "limit": 45 }, "unified": { "pids.max": 1 } }), "unified"),
        (json!([]), "JSON object"),
        (json!(null), "JSON object"),
    ] {
        let refusal = shim.update(&resources).unwrap_err();
        assert_eq!(refusal.code(), Code::INVALID_ARGUMENT, "{resources}: {refusal:?}");
        assert!(refusal.message().contains(named), "{resources}: {refusal:?}");
    }
    let windows = Any { type_url: "runtime-spec/1/WindowsResources".into(), value: b"{}".to_vec(), ..Any::default() };
    for (resources, named) in [(Some(windows), "WindowsResources"), (None, "JSON object")] {
        let request = UpdateTaskRequest { id: bundle.id().into(), resources: resources.into(), ..Default::default() };
        let refusal = shim.connection.call::<Empty>(TASK, "Update", &request).unwrap_err();
        assert_eq!(refusal.code(), Code::INVALID_ARGUMENT);
        assert!(refusal.message().contains(named), "{refusal:?}");
    }
    Asked::new(json!({}), &[("pids", "pids.max", "44")], &[("pids.max", "44")]).ask(&mut shim, &bundle);
    // A later client's, perhaps; what is known takes effect.
    let unknown = json!({ "pids": { "limit": 46 }, "memory": { "limits": 1 }, "later": {} });
    Asked::new(unknown, &[("pids", "pids.max", "46")], &[("pids.max", "46")]).ask(&mut shim, &bundle);
    shim.discard();
}
