//! Ring 2: the bounds of what is kept for absent readers: one stream's own, the machine's, and what happens there; what is
//! swept; and that all of it can be seen.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use holdfast_proto::control::{OutputRequest, OutputResponse, OutputStream};
use holdfast_proto::service;
use holdfast_tests::eventually::holds;
use holdfast_tests::shim::toml_options;
use holdfast_tests::stdio::Reader;
use holdfast_tests::wire::Code;
use holdfast_tests::{Bundle, FakeWorld, Launch, Shim, Stdio, eventually, process, programs};
use serde_json::json;

/// More than the pipe and the FIFO hold together, with room to spare.
const MUCH: usize = 4 << 20;

/// Prints `bytes` bytes of numbered lines of 16 bytes each.
fn printer(world: &FakeWorld, bytes: usize) -> Bundle {
    world.script(&format!("seq -f '%015.0f' 0 {}", bytes / 16 - 1))
}

/// The lines that [`printer`] prints.
fn printed(bytes: usize) -> String {
    (0..bytes / 16).map(|n| format!("{n:015}\n")).collect()
}

/// A settings file with this table.
fn settings(world: &FakeWorld, table: &str) -> PathBuf {
    let path = world.scene.path("bounds.toml");
    fs::write(&path, format!("[output]\n{table}\n")).unwrap();
    path
}

fn launch<'a>(world: &'a FakeWorld, bundle: &Bundle, settings: &Path) -> Launch<'a> {
    world.launch(bundle).env("HOLDFAST_SHIM_CONFIG", settings.to_str().unwrap())
}

fn output(shim: &mut Shim, measure: bool) -> OutputResponse {
    shim.output(measure).unwrap()
}

fn stdout(shim: &mut Shim) -> Box<OutputStream> {
    output(shim, false)
        .streams
        .into_iter()
        .find(|s| s.stream == "stdout" && s.exec_id.is_empty())
        .map(Box::new)
        .unwrap()
}

#[track_caller]
fn reaches(shim: &mut Shim, bound: &str) -> Box<OutputStream> {
    eventually(&format!("the bound {bound:?} should be reached"), || {
        let stream = stdout(shim);
        if stream.bound == bound { Ok(stream) } else { Err(stream) }
    })
}

/// Waits for the end of the process, which nobody's absence may prevent, and gives its status.
fn ended(shim: &mut Shim) -> u32 {
    shim.wait_status("")
}

/// What the shim has logged, whole lines with these words.
fn logged(bundle: &Bundle, words: &str) -> Vec<String> {
    let mut log = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(bundle.path("log")).unwrap();
    let mut bytes = vec![0; 1 << 20];
    let n = log.read(&mut bytes).unwrap_or(0);
    let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
    text.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
}

#[test]
fn the_strongest_that_speaks_of_a_container_is_obeyed() {
    let options = |world: &FakeWorld, more: &str| {
        let text = format!("BinaryName = {:?}\nRoot = {:?}\n{more}", world.runtime.program(), world.scene.path("oci"));
        toml_options("", &text)
    };
    for (option, annotation, expected) in [
        ("", json!({}), (1 << 20, "drop-oldest")),
        ("SpillLimit = '2m'", json!({}), (2 << 20, "drop-oldest")),
        ("spilllimit = 4096\noutputpolicy = 'block'", json!({}), (4096, "block")),
        ("SpillLimit = '2m'", json!({"holdfast.output.spill-limit": "3MiB"}), (3 << 20, "drop-oldest")),
        ("OutputPolicy = 'drop-oldest'", json!({"holdfast.output.policy": "block"}), (1 << 20, "block")),
    ] {
        let world = FakeWorld::new();
        let file = settings(&world, "spill-limit = '1m'\npolicy = 'drop-oldest'\nspill-total = '1g'\nfree-floor = 7");
        let bundle = world.sleeper().configure(|spec| spec["annotations"] = annotation.clone());
        let mut shim = launch(&world, &bundle, &file).options(options(&world, option)).start();
        shim.run(&Stdio::output(&world.scene, "io"));
        let answer = output(&mut shim, false);
        let streams = answer.streams.iter();
        let chosen: Vec<_> = streams.map(|s| (s.stream.as_str(), s.spill_limit, s.policy.as_str())).collect();
        assert_eq!(chosen, ["stdout", "stderr"].map(|s| (s, expected.0, expected.1)), "{option} {annotation}");
        assert_eq!((answer.spill_total, answer.free_floor_percent), (1 << 30, 7));
        assert_eq!(Path::new(&answer.spill_dir), world.scene.path("v/spill"));
        shim.discard();
    }
}

#[test]
fn what_becomes_of_output_can_be_seen() {
    let world = FakeWorld::new();
    let bundle = world.script(&format!("seq -f '%015.0f' 0 {}; exec sleep 1000", MUCH / 16 - 1));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "io");
    let _errors = Reader::open(&stdio.stderr);
    shim.run(&stdio);
    let kept = eventually("all should be kept", || {
        let stream = stdout(&mut shim);
        // The rest is in the FIFO.
        if stream.kept_bytes > MUCH as u64 - (2 << 20) { Ok(stream) } else { Err(stream) }
    });
    assert_eq!((kept.reader.as_str(), kept.bound.as_str(), kept.error.as_str()), ("absent", "", ""));
    assert_eq!((&kept.destination, kept.dropped_bytes), (&stdio.stdout, 0));
    let measured = output(&mut shim, true);
    assert_eq!(measured.streams.iter().find(|s| s.stream == "stderr").unwrap().reader, "present");
    let on_disk = measured.spill_bytes.expect("the disk answers");
    assert!(on_disk >= kept.kept_bytes && on_disk < kept.kept_bytes + (1 << 20), "{on_disk} {kept:?}");
    assert_eq!(output(&mut shim, false).spill_bytes, None, "only if asked for");
    let reader = Reader::open(&stdio.stdout);
    reader.wait_for_bytes(MUCH);
    let read = eventually("nothing should be kept", || {
        let stream = stdout(&mut shim);
        if stream.kept_bytes == 0 { Ok(stream) } else { Err(stream) }
    });
    assert_eq!(read.reader, "present");
    shim.kill("", libc::SIGKILL).unwrap();
    assert_eq!(reader.text(), printed(MUCH));
    let unknown = OutputRequest { id: "nobody".into(), ..Default::default() };
    let refusal = shim.connection.call::<OutputResponse>(service::CONTROL, "Output", &unknown).unwrap_err();
    assert_eq!(refusal.code(), Code::NOT_FOUND);
    shim.discard();
}

#[test]
fn at_its_own_limit_a_stream_waits_and_loses_nothing() {
    let world = FakeWorld::new();
    let bundle = printer(&world, MUCH);
    let file = settings(&world, "spill-limit = '256k'\nfree-floor = 0");
    let mut shim = launch(&world, &bundle, &file).start();
    let stdio = Stdio::output(&world.scene, "io");
    shim.run(&stdio);
    let full = reaches(&mut shim, "limit");
    assert!(full.kept_bytes <= (256 << 10) + (64 << 10), "{full:?}");
    assert_eq!(Reader::open(&stdio.stdout).text(), printed(MUCH));
    assert_eq!(ended(&mut shim), 0);
    assert_eq!(stdout(&mut shim).dropped_bytes, 0);
    assert_eq!(logged(&bundle, "the process waits").len(), 1);
    shim.discard();
}

#[test]
fn at_the_floor_of_free_space_a_stream_waits_and_loses_nothing() {
    let world = FakeWorld::new();
    let bundle = printer(&world, MUCH);
    let file = settings(&world, "free-floor = '100%'");
    let mut shim = launch(&world, &bundle, &file).start();
    let stdio = Stdio::output(&world.scene, "io");
    shim.run(&stdio);
    let full = reaches(&mut shim, "floor");
    assert_eq!(output(&mut shim, true).spill_bytes, Some(0), "nothing was written: {full:?}");
    assert_eq!(Reader::open(&stdio.stdout).text(), printed(MUCH));
    assert_eq!(ended(&mut shim), 0);
    shim.discard();
}

#[test]
fn shims_share_the_total_and_go_on_when_another_makes_room() {
    let (first, second) = (FakeWorld::new(), FakeWorld::new());
    let table = format!("spill-total = '2m'\nfree-floor = 0\nspill-dir = {:?}", first.scene.path("spill"));
    let (greedy, modest) = (printer(&first, 4 * MUCH), printer(&second, 5 << 19));
    let mut a = launch(&first, &greedy, &settings(&first, &table)).start();
    let mut b = launch(&second, &modest, &settings(&second, &table)).start();
    let a_stdio = Stdio::output(&first.scene, "io");
    a.run(&a_stdio);
    reaches(&mut a, "total");
    let used = output(&mut a, true).spill_bytes.unwrap();
    assert!(used <= (2 << 20) + (128 << 10), "{used}");
    let b_stdio = Stdio::output(&second.scene, "io");
    b.run(&b_stdio);
    let kept = reaches(&mut b, "total");
    assert!(kept.kept_bytes < 1 << 20, "there was no room: {kept:?}");
    // All of it goes to its reader; then there is room for the other, who is told by nobody.
    assert_eq!(Reader::open(&a_stdio.stdout).text(), printed(4 * MUCH));
    assert_eq!(ended(&mut a), 0);
    assert_eq!(ended(&mut b), 0);
    assert_eq!(Reader::open(&b_stdio.stdout).text(), printed(5 << 19));
    let all = logged(&modest, "");
    for words in ["bound=total", "the process goes on"] {
        assert_eq!(all.iter().filter(|line| line.contains(words)).count(), 1, "{words}: {all:?}");
    }
    a.discard();
    b.discard();
}

#[test]
fn where_the_oldest_may_be_dropped_nobody_waits_at_the_bounds_of_the_machine() {
    for (table, bound) in [("spill-total = '1m'\nfree-floor = 0", "total"), ("free-floor = 100", "floor")] {
        let world = FakeWorld::new();
        let bundle = printer(&world, 2 * MUCH);
        let file = settings(&world, &format!("policy = 'drop-oldest'\n{table}"));
        let mut shim = launch(&world, &bundle, &file).start();
        let stdio = Stdio::output(&world.scene, "io");
        shim.run(&stdio);
        assert_eq!(ended(&mut shim), 0, "nobody reads, and it ends");
        let dropped = eventually("the end should be kept", || {
            let stream = stdout(&mut shim);
            if stream.dropped_bytes > 0 { Ok(stream.dropped_bytes) } else { Err(stream) }
        });
        let text = Reader::open(&stdio.stdout).text();
        let (markers, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("[holdfast: "));
        let told: u64 = markers.iter().map(|m| m.split(' ').nth(1).unwrap().parse::<u64>().unwrap()).sum();
        let all = printed(2 * MUCH);
        let all: Vec<&str> = all.lines().collect();
        assert_eq!(told + 16 * lines.len() as u64, 2 * MUCH as u64, "{markers:?}");
        assert!(told >= dropped, "{told} {dropped}");
        assert_eq!(lines.last(), all.last(), "the latest are there");
        assert!(lines.is_sorted(), "in order");
        // What was printed at last may have found room again.
        let said = logged(&bundle, "the oldest lines are dropped");
        assert!(matches!(&said[..], [line] if line.contains(&format!("bound={bound}"))), "{said:?}");
        shim.discard();
    }
}

/// Runs a container in the same spill directory that keeps something; its shim sweeps.
fn spill_elsewhere(table: &str) {
    let world = FakeWorld::new();
    let bundle = printer(&world, MUCH);
    let mut shim = launch(&world, &bundle, &settings(&world, table)).start();
    shim.run(&Stdio::output(&world.scene, "io"));
    assert_eq!(ended(&mut shim), 0);
    eventually("it should be kept", || holds(stdout(&mut shim).kept_bytes > 0));
    shim.discard();
}

/// The container's directory, one of however many instances there are.
fn kept_of(spill_dir: &Path, id: &str) -> Option<PathBuf> {
    let instances = fs::read_dir(spill_dir).ok()?.map(|entry| entry.unwrap().path());
    let namespaces = instances.flat_map(|dir| fs::read_dir(dir).unwrap()).map(|entry| entry.unwrap().path());
    namespaces.map(|dir| dir.join(id)).find(|dir| dir.exists())
}

#[test]
fn what_a_killed_shim_has_kept_stays_for_delete_and_goes_with_the_boot() {
    let world = FakeWorld::new();
    let spill_dir = world.scene.path("spill");
    let table = format!("free-floor = 0\nspill-dir = {spill_dir:?}");
    let bundle = printer(&world, MUCH);
    let start = || {
        let mut shim = launch(&world, &bundle, &settings(&world, &table)).start();
        shim.run(&Stdio::output(&world.scene, &format!("io{}", shim.process().pid())));
        assert_eq!(ended(&mut shim), 0);
        eventually("it should be kept", || holds(stdout(&mut shim).kept_bytes > 0));
        shim.process().kill();
        kept_of(&spill_dir, bundle.id()).expect("it is kept")
    };
    let kept = start();
    spill_elsewhere(&table);
    assert!(kept.exists(), "its record is there: somebody will come to clean up");
    launch(&world, &bundle, &settings(&world, &table)).delete();
    assert!(!kept.exists());
    // Nobody comes after a reboot.
    let kept = start();
    let owner = kept.join("owner");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&owner).unwrap()).unwrap();
    value["boot_id"] = json!("of another boot");
    fs::write(&owner, value.to_string()).unwrap();
    spill_elsewhere(&table);
    assert!(!kept.exists());
    launch(&world, &bundle, &settings(&world, &table)).delete();
}

#[test]
fn who_looks_after_the_machine_can_sweep_by_command() {
    let world = FakeWorld::new();
    let spill_dir = world.scene.path("spill");
    let file = settings(&world, &format!("spill-dir = {spill_dir:?}"));
    let dir = spill_dir.join("holdfastd/default/gone");
    fs::create_dir_all(&dir).unwrap();
    fs::write(
        dir.join("owner"),
        json!({"boot_id": "of another boot", "pid": 1, "start_time": 1, "pid_namespace": "", "run_dir": "/r"})
            .to_string(),
    )
    .unwrap();
    fs::write(dir.join("init.stdout"), "x").unwrap();
    let sweep = || {
        let mut command = world.scene.command(programs::shim());
        process::run(command.arg("sweep-output").env("HOLDFAST_SHIM_CONFIG", &file))
    };
    let output = sweep();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.starts_with("removed output of holdfastd/default/gone, which is gone: "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!dir.exists());
    let output = sweep();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
