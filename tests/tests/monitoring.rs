//! Ring 3: what monitoring finds: names, parents and control groups of shims and containers, and the figures that containerd
//! serves; beside containerd's own shim where there is one. README, "What changes for monitoring", says it in words.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use holdfast_tests::container::Container;
use holdfast_tests::holdfastd::{Holdfastd, Said};
use holdfast_tests::matrix::Real;
use holdfast_tests::process::ChildProcess;
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::{eventually, http, process, programs, until};
use serde_json::Value;

holdfast_tests::matrix!(
    names_and_parents_are_those_of_containerds_own_shim,
    control_groups_are_those_of_containerds_own_shim,
    containerds_metrics_are_those_of_its_own_shim,
    containerds_containers_are_in_holdfasts_lists_and_metrics,
);

/// A container that runs until it is killed.
const SLEEPER: &str = "exec /bin/sleep 1000";

/// A container of ours and one of containerd's own shim, and what is looked at: the shim's pid and the container's.
fn side_by_side<'a>(real: &'a Real<'a>) -> [(Container<'a>, u32, u32); 2] {
    [real.container(), Container::stock(&real.containerd, 1)].map(|container| {
        let pid = container.run_detached(SLEEPER);
        let shim = process::parent(pid).unwrap();
        (container, shim, pid)
    })
}

/// What `ps -o comm` shows.
fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim().to_owned()
}

/// What `ps -o args` shows, word by word.
fn words(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    words.filter(|word| !word.is_empty()).collect()
}

fn cgroup(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

fn remove(real: &Real<'_>, containers: [(Container<'_>, u32, u32); 2]) {
    containers.iter().for_each(|(container, ..)| real.containerd.remove(&container.id));
}

fn names_and_parents_are_those_of_containerds_own_shim(real: &Real<'_>) {
    let both = side_by_side(real);
    let [(ours, shim, _), (stock, stock_shim, _)] = &both;
    assert_eq!(ours.shim_pid(), *shim, "the shim is the container's parent");
    assert_eq!([comm(*shim), comm(*stock_shim)], ["containerd-shim"; 2]);
    assert_eq!(process::parent(*shim), process::parent(*stock_shim));
    let (line, stock_line) = (words(*shim), words(*stock_shim));
    assert!(line[0].ends_with("/containerd-shim-holdfast-v2"), "{line:?}");
    assert_eq!(line[1..5], ["-namespace", holdfast_tests::containerd::NAMESPACE, "-id", &ours.id]);
    let renamed = stock_line[1..].iter().map(|word| if *word == stock.id { ours.id.clone() } else { word.clone() });
    assert_eq!(line[1..], renamed.collect::<Vec<_>>());
    remove(real, both);
}

/// Where the process is counted and limited: of either version's hierarchies, those that this machine goes by.
fn places(pid: u32, container: &Container<'_>) -> Vec<String> {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let text = cgroup(pid);
    let lines = text.lines().filter(|line| line.starts_with("0::") == unified);
    lines.map(|line| line.replace(&container.id, "ID")).collect()
}

fn control_groups_are_those_of_containerds_own_shim(real: &Real<'_>) {
    let both = side_by_side(real);
    let [(ours, shim, pid), (stock, stock_shim, stock_pid)] = &both;
    let place = places(*pid, ours);
    assert!(!place.is_empty() && place.iter().all(|line| line.ends_with("/ID")), "{place:?}");
    assert_eq!(place, places(*stock_pid, stock));
    // containerd runs where this test does.
    assert_eq!([cgroup(*shim), cgroup(*stock_shim)], [cgroup(std::process::id()), cgroup(std::process::id())]);
    remove(real, both);
}

/// The names of the figures that containerd serves for a container.
fn figures(metrics: &str, id: &str) -> BTreeSet<String> {
    let label = format!("container_id=\"{id}\"");
    let of_it = metrics.lines().filter(|line| line.contains(&label));
    let names = of_it.map(|line| line.split('{').next().unwrap().to_owned());
    // What is counted only once there was traffic to a disk.
    names.filter(|name| !name.starts_with("container_blkio_") && !name.starts_with("container_io_")).collect()
}

fn containerds_metrics_are_those_of_its_own_shim(real: &Real<'_>) {
    if real.lacks_controllers() {
        return;
    }
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = real.scene.path("containerd.toml");
    let settings = fs::read_to_string(&config).unwrap() + &format!("[metrics]\naddress = \"{address}\"\n");
    fs::write(&config, settings).unwrap();
    real.containerd.kill();
    real.containerd.resume();
    let both = side_by_side(real);
    let ids = [&both[0].0.id, &both[1].0.id];
    let [ours, stock] = eventually("containerd should serve figures of both", || {
        let stream = TcpStream::connect(address).map_err(|e| e.to_string())?;
        let (_, body) = http::get(stream, "/v1/metrics").map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let seen = ids.map(|id| figures(&text, id));
        if seen.iter().any(BTreeSet::is_empty) { Err(text) } else { Ok(seen) }
    });
    for word in ["container_cpu_", "container_memory_usage_", "container_pids_current"] {
        assert!(stock.iter().any(|name| name.starts_with(word)), "{word}: {stock:?}");
    }
    let lacking: Vec<_> = stock.difference(&ours).collect();
    assert!(lacking.is_empty(), "the figures of ours lack {lacking:?}");
    remove(real, both);
}

fn containerds_containers_are_in_holdfasts_lists_and_metrics(real: &Real<'_>) {
    let holdfast = |args: &[&str]| -> Said {
        let mut command = real.scene.command(programs::ours("holdfast"));
        command.args(args).stdin(Stdio::null()).output().unwrap().into()
    };
    let log = fs::File::create(real.scene.path("holdfastd.log")).unwrap();
    let mut command: Command = real.scene.command(programs::ours("holdfastd"));
    let daemon = ChildProcess::spawn(command.stdin(Stdio::null()).stderr(log));
    until("holdfastd answers", || (holdfast(&["info"]).code == 0).then_some(()));
    let container = real.container();
    let pid = container.run_detached(SLEEPER);
    let lists = |command: &[&str]| holdfast(&[command, &["--all-managers"]].concat()).ok();
    let row = |text: &str| text.lines().find(|line| line.contains(&container.id)).map(str::to_owned);
    let listed: Vec<Value> = serde_json::from_str(&lists(&["--json", "ps"])).unwrap();
    let one = listed.iter().find(|one| one["id"] == container.id.as_str()).unwrap_or_else(|| panic!("{listed:?}"));
    assert_eq!((one["pid"].as_u64(), one["shim_pid"].as_u64()), (Some(pid.into()), Some(container.shim_pid().into())));
    let figures = lists(&["--json", "stats", "--no-stream"]);
    assert!(row(&figures).is_some(), "{figures}");
    let metrics = holdfast(&["metrics"]).ok();
    let address = real.scene.path("c.sock");
    let running = format!("holdfast_containers{{manager=\"{}\",state=\"running\"}} 1.0", address.display());
    assert!(metrics.lines().any(|line| line == running), "{running}: {metrics}");
    let memory = metrics.lines().find(|line| line.starts_with("holdfast_shim_resident_bytes{"));
    assert!(memory.is_some_and(|line| line.contains(&container.id)), "{metrics}");
    real.containerd.remove(&container.id);
    drop(daemon);
}

#[test]
fn holdfastds_containers_are_named_and_placed_as_readme_says() {
    if !is_root() {
        return skip("needs root");
    }
    let host = Holdfastd::start();
    let id = host.run("web", SLEEPER);
    let (pid, shim) = (host.pid("web", "pid"), host.pid("web", "shim_pid"));
    assert_eq!((comm(shim).as_str(), process::parent(pid)), ("containerd-shim", Some(shim)));
    let place = format!("/holdfast/{id}");
    let grouped = cgroup(pid);
    assert!(grouped.lines().any(|line| line.ends_with(&format!(":{place}"))), "{grouped}");
    assert_eq!(cgroup(shim), cgroup(host.daemon_pid()));
}
