//! Ring 3: what `holdfast inspect` and `holdfast metrics` say of output, of holdfastd's own containers and of containerd's.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use holdfast_tests::holdfastd::Holdfastd;
use holdfast_tests::process::Stopped;
use holdfast_tests::stdio::Reader;
use holdfast_tests::{FakeWorld, Shim, Stdio, until};
use serde_json::{Value, json};

/// A containerd's container in holdfastd's run directory; it has printed 4 MB that nobody reads, and ended.
fn foreign(host: &Holdfastd, world: &FakeWorld, stdio: &Stdio) -> Shim {
    let bundle = world.script("seq -f '%015.0f' 0 262143");
    let launch = world.launch(&bundle).env("HOLDFAST_RUN_DIR", host.run_dir().to_str().unwrap());
    let mut shim = launch.start();
    shim.run(stdio);
    assert_eq!(shim.wait_status(""), 0);
    shim
}

fn kept(inspected: &Value) -> Option<u64> {
    inspected["output"][0]["kept_bytes"].as_u64().filter(|&bytes| bytes > 2 << 20)
}

/// The value of the one line of a figure that has all these labels.
fn value(metrics: &str, figure: &str, labels: &[&str]) -> f64 {
    let fits = |line: &&str| line.starts_with(figure) && labels.iter().all(|label| line.contains(label));
    let lines: Vec<&str> = metrics.lines().filter(fits).collect();
    let [line] = lines.as_slice() else { panic!("{figure} {labels:?}: {lines:?} in {metrics}") };
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn kept_output_of_a_containerds_container_is_seen_and_a_wedged_shim_is_told_of() {
    let host = Holdfastd::start();
    let world = FakeWorld::new();
    let stdio = Stdio::output(&world.scene, "io");
    let shim = foreign(&host, &world, &stdio);
    let seen = until("it is kept", || Some(host.inspect(shim.id())).filter(|seen| kept(seen).is_some()));
    assert_eq!(
        (&seen["status"], &seen["id"], &seen["output_unknown"]),
        (&json!("exited"), &json!(shim.id()), &json!(""))
    );
    let stdout = &seen["output"][0];
    let expected = json!({
        "exec_id": "", "stream": "stdout", "destination": stdio.stdout, "reader": "absent", "kept_bytes": stdout["kept_bytes"],
        "spill_limit": 64 << 20, "policy": "block", "bound": "", "dropped_bytes": 0, "error": "",
    });
    assert_eq!(*stdout, expected);
    let bundle = seen["bundle"].clone();
    assert_eq!(Path::new(bundle.as_str().unwrap()).file_name().unwrap(), shim.id());

    let metrics = host.holdfast(&["metrics"]).ok();
    let labels = [&format!("id=\"{}\"", shim.id()), "stream=\"stdout\"", "exec_id=\"\""];
    assert_eq!(value(&metrics, "holdfast_output_reader_absent{", &labels), 1.0);
    assert_eq!(value(&metrics, "holdfast_output_kept_bytes{", &labels), stdout["kept_bytes"].as_f64().unwrap());
    assert_eq!(value(&metrics, "holdfast_output_dropped_bytes_total{", &labels), 0.0);
    assert!(value(&metrics, "holdfast_spill_bytes{", &[]) >= stdout["kept_bytes"].as_f64().unwrap());
    assert_eq!(value(&metrics, "holdfast_spill_limit_bytes{", &[]), f64::from(1 << 30) * 4.0);
    assert_eq!(value(&metrics, "holdfast_shims_unresponsive", &[]), 0.0, "{metrics}");
    assert!(metrics.ends_with("# EOF"), "{metrics}");
    assert!(!metrics.contains("PATH="), "no variable of a container");

    let stopped = Stopped::new(shim.process().pid());
    let seen = until("it is told of", || Some(host.inspect(shim.id())).filter(|seen| seen["status"] == "unresponsive"));
    assert!(seen["reason"].as_str().unwrap().contains(&shim.process().pid().to_string()), "{seen}");
    assert_eq!(
        (&seen["id"], &seen["bundle"], &seen["output"]),
        (&json!(shim.id()), &bundle, &json!([])),
        "what needs no shim is told: {seen}"
    );
    assert!(seen["output_unknown"].as_str().unwrap().starts_with("its shim does not answer: "), "{seen}");
    let metrics = host.holdfast(&["metrics"]).ok();
    assert_eq!(value(&metrics, "holdfast_shims_unresponsive", &[]), 1.0, "{metrics}");
    assert_eq!(value(&metrics, "holdfast_shims ", &[]), 1.0, "{metrics}");
    drop(stopped);

    assert_eq!(Reader::open(&stdio.stdout).text().lines().count(), 1 << 18);
    until("nothing is kept", || (host.inspect(shim.id())["output"][0].get("kept_bytes").is_none()).then_some(()));
    shim.discard();
}

#[test]
fn of_holdfastds_own_containers_the_log_is_told_and_the_restarts() {
    let host = Holdfastd::start();
    let id = host.run("web", "echo hello; exec sleep 1000");
    let seen = host.inspect("web");
    let destination = seen["output"][0]["destination"].as_str().unwrap().to_owned();
    assert!(destination.contains(&id), "{seen}");
    assert_eq!(seen["output"][0].get("reader"), None, "a log needs no reader: {seen}");
    let metrics = host.holdfast(&["metrics"]).ok();
    let own = "manager=\"holdfastd\"";
    assert_eq!(value(&metrics, "holdfast_containers{", &[own, "state=\"running\""]), 1.0);
    assert_eq!(value(&metrics, "holdfast_container_restarts{", &["name=\"web\"", "namespace=\"default\""]), 0.0);
    assert!(value(&metrics, "holdfast_restore_duration_seconds", &[]) >= 0.0);
    host.holdfast(&["stop", "-t", "1", "web"]).ok();
    let metrics = host.holdfast(&["metrics"]).ok();
    assert_eq!(value(&metrics, "holdfast_containers{", &[own, "state=\"exited\""]), 1.0);
    assert_eq!(host.inspect("web")["output_unknown"], json!(""), "it has no shim, and that is as it should be");
}

#[test]
fn what_was_kept_for_tasks_that_are_gone_goes_when_holdfastd_starts() {
    let mut host = Holdfastd::start();
    host.kill();
    let gone = host.state_dir().join("spill/0123456789abcdef/k8s.io/gone");
    fs::create_dir_all(&gone).unwrap();
    fs::write(gone.join("init.stdout"), "nobody's").unwrap();
    // In the same place, and not a shim's.
    let other = gone.with_file_name("other");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("notes"), "somebody's").unwrap();
    host.restart();
    until("it is swept", || (!gone.exists()).then_some(()));
    until("it is told", || {
        host.said_by_supervisor()
            .contains("removed output of 0123456789abcdef/k8s.io/gone, which is gone: ")
            .then_some(())
    });
    assert!(other.join("notes").exists());
}
