//! Ring 3: Stats, figure by figure beside the answer of containerd's own shim for the very same container; on whichever
//! version of control groups this machine has.
//!
//! A control group cannot have two shims. So the container is made by the reference shim, loaded, and frozen, and the code
//! with which our shim answers reads the same control group. That our shim does answer with it is a test of its own.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::{cgroups, cgroups_v2};
use holdfast_shim::cgroup::{self, Paths};
use holdfast_tests::figures::{self, Figures};
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::{Bundle, FakeContainerd, Launch, Scene, Shim, Stdio, eventually, programs};
use nix::sys::stat::{major, minor};
use protobuf::Message;
use serde_json::json;

/// More than the load keeps in files, which may be in memory, and less than it asks for.
const LIMIT: u64 = 24 << 20;

/// Something of everything that is counted: time, throttled too; pages of programs, files and shared memory; traffic to
/// the disk; a limit that is met, and a process that is killed for it.
const LOAD: &str = "
    n=0; while [ $n -lt 10000 ]; do n=$((n + 1)); done
    echo throttled; read go
    dd if=/dev/zero of=/tmp/shared bs=64k count=32
    dd if=/dev/zero of=/file bs=64k count=64 conv=fsync
    dd if=/file of=/dev/null bs=64k count=16 iflag=direct
    cat /bin/busybox >/dev/null
    busybox tail /dev/zero
    sleep 1000 & sleep 1000 &
    echo loaded; wait";

/// What changes without the container: averages that fade with time.
const MOVING: [&str; 3] = [".avg10", ".avg60", ".avg300"];

/// What the reference shim leaves out and we do not.
const OURS_ALONE: [&str; 7] = [
    // Since Linux 5.9 the kernel counts anonymous and file pages apart, and the field has the sum.
    "memory.workingset_refault",
    "memory.workingset_activate",
    // Fields that came to the message after the reference shim was written.
    "memory_events.oom_group_kill",
    "cpu.nr_bursts",
    "cpu.burst_usec",
    "memory.max_usage",
    "memory.swap_max_usage",
];

/// And all that has one of these in its name: pressure came to the message later.
const OURS_ALONE_PARTS: [&str; 1] = [".psi."];

fn peer(name: &str) -> Option<PathBuf> {
    if !is_root() {
        skip("needs root");
        return None;
    }
    let program = programs::peer(name);
    if program.is_none() {
        skip(&format!("{name} is neither installed nor to be had"));
    }
    program
}

fn bundle(scene: &Scene) -> Bundle {
    let bundle = Bundle::busybox(scene, &["/bin/sh", "-c", LOAD]);
    bundle.configure(|c| {
        c["root"]["readonly"] = false.into();
        c["linux"]["resources"] = json!({
            "devices": [{ "allow": false, "access": "rwm" }],
            "memory": { "limit": LIMIT, "swap": LIMIT * 2, "reservation": LIMIT / 2 },
            "cpu": { "shares": 512, "quota": 1000, "period": 10_000 },
            "pids": { "limit": 50 },
        });
        // The kernel counts what was moved only on disks for which somebody has once set a limit.
        if let Some((major, minor)) = disk(scene.dir()) {
            let limit = json!([{ "major": major, "minor": minor, "rate": 1_u64 << 40 }]);
            c["linux"]["resources"]["blockIO"] = json!({ "throttleReadBpsDevice": limit });
        }
    })
}

/// The disk on which a file is, by its numbers; none if it is on no disk.
fn disk(path: &Path) -> Option<(u64, u64)> {
    let device = path.metadata().unwrap().dev();
    let named = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let partition = fs::canonicalize(named).ok()?;
    let whole = if partition.join("partition").exists() { partition.parent()? } else { &partition };
    let numbers = fs::read_to_string(whole.join("dev")).ok()?;
    let (major, minor) = numbers.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Runs the load and freezes it; gives init's pid.
fn load(shim: &mut Shim, scene: &Scene) -> u32 {
    let stdio = Stdio::fifos(scene, "load");
    // The reference shim waits in Create for the readers.
    let (stdout, _stderr) = stdio.readers();
    shim.create(&stdio).unwrap();
    let pid = shim.start("").unwrap().pid;
    stdout.wait_for("throttled\n");
    shim.update(&json!({ "cpu": { "quota": -1 } })).unwrap();
    stdio.input().write(b"go\n");
    stdout.wait_for("loaded\n");
    shim.pause().unwrap();
    pid
}

/// An answer to Stats: the message's name and its figures.
fn figures(type_url: &str, value: &[u8]) -> (String, Figures) {
    let figures = match type_url {
        "io.containerd.cgroups.v1.Metrics" => figures::of(&cgroups::metrics::Metrics::parse_from_bytes(value).unwrap()),
        "io.containerd.cgroups.v2.Metrics" => {
            figures::of(&cgroups_v2::metrics::Metrics::parse_from_bytes(value).unwrap())
        }
        other => panic!("Stats with a {other:?}"),
    };
    (type_url.to_owned(), figures)
}

fn asked(shim: &mut Shim) -> (String, Figures) {
    let any = shim.stats().unwrap().stats.unwrap();
    figures(&any.type_url, &any.value)
}

fn read(paths: &Paths) -> (String, Figures) {
    let (type_url, value) = cgroup::stats(paths).unwrap();
    figures(&type_url, &value)
}

fn is_moving(name: &str) -> bool {
    MOVING.iter().any(|end| name.ends_with(end))
}

/// Our figures and the shim's, from a moment at which nothing changed: the kernel gathers some of them late.
fn both(shim: &mut Shim, paths: &Paths) -> ((String, Figures), (String, Figures)) {
    let at_rest = |(name, mut figures): (String, Figures)| {
        figures.retain(|name, _| !is_moving(name));
        (name, figures)
    };
    eventually("the figures should come to rest", || {
        let before = read(paths);
        let theirs = asked(shim);
        let after = read(paths);
        if at_rest(before.clone()) == at_rest(after.clone()) { Ok((before, theirs)) } else { Err((before, after)) }
    })
}

/// One line for each difference that is none of those above.
fn differences(ours: &Figures, theirs: &Figures) -> Vec<String> {
    let is_ours_alone =
        |name: &str| OURS_ALONE.contains(&name) || OURS_ALONE_PARTS.iter().any(|part| name.contains(part));
    let missing = theirs.iter().filter(|(name, _)| !ours.contains_key(*name) && !is_moving(name));
    let missing = missing.map(|(name, value)| format!("{name}: missing, {value} there"));
    let unequal = theirs.iter().filter(|(name, _)| !is_moving(name)).filter_map(|(name, value)| {
        let own = ours.get(name)?;
        (own != value).then(|| format!("{name}: {own}, {value} there"))
    });
    let added = ours.iter().filter(|(name, _)| !theirs.contains_key(*name) && !is_moving(name) && !is_ours_alone(name));
    let added = added.map(|(name, value)| format!("{name}: {value}, nothing there"));
    missing.chain(unequal).chain(added).collect()
}

#[test]
fn every_figure_is_that_of_the_reference_shim() {
    let (Some(runc), Some(reference)) = (peer("runc"), peer("containerd-shim-runc-v2")) else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = bundle(&scene);
    let mut shim = Launch::new(&scene, &bundle).binary(reference).runtime(&runc).start();
    let paths = Paths::of_process(load(&mut shim, &scene)).unwrap();
    let ((name, ours), (their_name, theirs)) = both(&mut shim, &paths);
    assert_eq!(name, their_name);
    if std::env::var_os("HOLDFAST_TEST_SHOW").is_some() {
        let beside =
            |(name, value): (&String, &String)| format!("{name} {value} {}", theirs.get(name).map_or("-", |v| v));
        eprintln!("{}", ours.iter().map(beside).collect::<Vec<_>>().join("\n"));
    }
    let differences = differences(&ours, &theirs);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    // That the load was one: else zeros would have been compared.
    for name in must_be_there(&name) {
        assert!(theirs.keys().any(|k| k.starts_with(name)), "no {name} in {theirs:#?}");
    }
    shim.resume().unwrap();
    let _ = shim.kill("", libc::SIGKILL);
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    shim.request_shutdown();
    shim.process().wait_gone();
}

/// Every controller that the load works on.
fn must_be_there(message: &str) -> &'static [&'static str] {
    if message.contains(".v1.") {
        &[
            "blkio.io_service_bytes_recursive",
            "blkio.io_serviced_recursive",
            "cpu.throttling.periods",
            "cpu.throttling.throttled_periods",
            "cpu.usage.kernel",
            "cpu.usage.user",
            "memory.total_rss",
            "memory.total_cache",
            "memory.usage.failcnt",
            "memory_oom_control.oom_kill",
            "pids.current",
            "pids.limit",
        ][..]
    } else {
        &[
            "cpu.nr_throttled",
            "cpu.system_usec",
            "cpu.user_usec",
            "io.usage",
            "memory.anon",
            "memory.file",
            "memory.pgfault",
            "memory.shmem",
            "memory.usage",
            "memory.usage_limit",
            "memory_events.max",
            "memory_events.oom_kill",
            "pids.current",
            "pids.limit",
        ][..]
    }
}

#[test]
fn our_shim_answers_with_what_is_compared_above() {
    let Some(runc) = peer("runc") else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = bundle(&scene);
    let mut shim = Launch::new(&scene, &bundle).runtime(&runc).start();
    let paths = Paths::of_process(load(&mut shim, &scene)).unwrap();
    let ((name, read), (their_name, answered)) = both(&mut shim, &paths);
    assert_eq!(name, their_name);
    let differences = differences(&read, &answered);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    shim.resume().unwrap();
    shim.discard();
}
