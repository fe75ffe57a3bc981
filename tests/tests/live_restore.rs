//! Ring 3: how the supervisor ends, and what its containers do then: with live-restore and without, by SIGTERM, by SIGKILL,
//! and at the machine's shutdown.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use holdfast_tests::holdfastd::{Holdfastd, POLITE, Said};
use holdfast_tests::process::{ChildProcess, Stopped, is_alive, kill_hard};
use holdfast_tests::until;
use nix::sys::signal::Signal;

/// Says that it runs and has no ear for SIGTERM.
const DEAF: &str = "trap '' TERM; echo up; while :; do sleep 0.1; done";

/// Runs a container with these options, and waits until it has set its traps.
fn up(host: &Holdfastd, name: &str, options: &[&str], script: &str) {
    host.run_with(name, options, script);
    until("it is up", || host.holdfast(&["logs", name]).out.contains("up").then_some(()));
}

fn without_live_restore(more: &str) -> Holdfastd {
    let mut host = Holdfastd::start();
    reconfigure(&mut host, &format!("live-restore = false\n{more}"));
    host
}

/// Restarts an idle supervisor with other settings.
fn reconfigure(host: &mut Holdfastd, settings: &str) {
    host.configure(settings);
    host.kill();
    host.restart();
}

fn client(host: &Holdfastd, args: &[&str]) -> ChildProcess {
    ChildProcess::spawn(host.command("holdfast").args(args).stdin(Stdio::null()).stdout(Stdio::piped()))
}

/// How many connections the supervisor has accepted that are open still.
fn connections(host: &Holdfastd) -> usize {
    let socket = host.run_dir().join("holdfastd.sock").display().to_string();
    let all = std::fs::read_to_string("/proc/net/unix").unwrap();
    // Those that nobody has accepted are in another state than 03.
    let accepted = |fields: &Vec<&str>| fields.get(5) == Some(&"03") && fields.get(7) == Some(&socket.as_str());
    all.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(accepted).count()
}

/// Bundles, records and sockets: what only lives as long as a shim.
fn traces(host: &Holdfastd) -> Vec<String> {
    let run = host.run_dir().display().to_string();
    host.left_over().into_iter().filter(|path| path.starts_with(&run)).collect()
}

fn mounts_of(host: &Holdfastd) -> Vec<String> {
    let root = host.run_dir().display().to_string();
    let all = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines().filter(|line| line.contains(&root)).map(str::to_owned).collect()
}

/// The supervisor's one line for this container.
fn line_of(host: &Holdfastd, name: &str) -> String {
    let said = host.said_by_supervisor();
    let about = format!("name=\"{name}\"");
    let ways = ["by its stop signal", "its stop timeout", "the shutdown timeout", "as was asked", "left behind"];
    let lines: Vec<_> =
        said.lines().filter(|line| line.contains(&about) && ways.iter().any(|way| line.contains(way))).collect();
    assert_eq!(lines.len(), 1, "one line for {name} in: {said}");
    lines[0].to_owned()
}

/// Neither the container nor a client ends by itself, and each of the times that could end them is an hour: so that it
/// leaves at all shows that it waits for none of them.
#[test]
fn with_live_restore_it_leaves_at_once_though_clients_are_attached() {
    let mut host = Holdfastd::start();
    reconfigure(&mut host, "live-restore = true\nshutdown-timeout = \"1h\"\n");
    up(&host, "web", &["--stop-timeout", "3600"], DEAF);
    let (pid, shim) = (host.pid("web", "pid"), host.pid("web", "shim_pid"));
    let mut exec =
        client(&host, &["exec", "web", "/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"]);
    // Those that stay until the container ends, and print when they are there; and one that prints nothing.
    let attach = client(&host, &["attach", "--no-stdin", "web"]);
    let follow = client(&host, &["logs", "-f", "web"]);
    let wait = client(&host, &["wait", "web"]);
    let mut line = String::new();
    BufReader::new(exec.child().stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let mut clients = [exec, attach, follow, wait];
    until("all clients are served", || (connections(&host) >= clients.len()).then_some(()));
    let stopped: Vec<Stopped> = clients.iter().map(|client| Stopped::new(client.pid())).collect();
    assert_eq!(host.terminate(), Some(0));
    assert!(is_alive(pid) && is_alive(shim), "nobody is stopped");
    assert!(clients.iter().all(ChildProcess::is_alive), "no client has gone before it");
    assert!(!host.said_by_supervisor().contains("stopping all containers"));
    host.restart();
    assert_eq!(host.class("web"), "reattached");
    drop(stopped);
    host.holdfast(&["kill", "web"]).ok();
    let codes = clients.each_mut().map(|client| client.wait().code());
    assert_eq!(codes, [Some(137), Some(137), Some(0), Some(137)], "they have gone on");
}

#[test]
fn without_live_restore_all_are_stopped_each_in_its_own_way_and_nothing_is_left() {
    let mut host = without_live_restore("");
    up(&host, "polite", &[], POLITE);
    up(
        &host,
        "other",
        &["--stop-signal", "USR1"],
        "trap 'exit 7' USR1; echo up; while :; do sleep 0.1 & wait $!; done",
    );
    up(&host, "deaf", &["--stop-timeout", "1"], DEAF);
    up(&host, "gone", &["--rm"], POLITE);
    let pids: Vec<u32> = ["polite", "other", "deaf", "gone"].iter().map(|n| host.pid(n, "pid")).collect();
    let shims: Vec<u32> = ["polite", "other", "deaf", "gone"].iter().map(|n| host.pid(n, "shim_pid")).collect();
    assert_eq!(host.terminate(), Some(0));
    assert!(pids.iter().chain(&shims).all(|pid| !is_alive(*pid)), "containers and shims have ended");
    assert_eq!((traces(&host), mounts_of(&host)), (Vec::new(), Vec::new()));
    for (name, part) in [
        ("polite", "by its stop signal"),
        ("other", "by its stop signal"),
        ("deaf", "killed after its stop timeout"),
        ("gone", "by its stop signal"),
    ] {
        let line = line_of(&host, name);
        assert!(line.contains(part), "{line}");
    }
    host.restart();
    for (name, code) in [("polite", 143), ("other", 7), ("deaf", 137)] {
        let said = host.holdfast(&["wait", name]);
        assert_eq!(said.code, code, "{name}: the status is kept: {said:?}");
        assert_eq!(host.status(name), "exited");
    }
    assert_eq!(host.holdfast(&["inspect", "gone"]).code, 125, "it was to be removed at its end");
}

#[test]
fn what_was_stopped_with_the_supervisor_is_started_again_by_the_next_as_its_policy_says() {
    let mut host = without_live_restore("");
    for policy in ["no", "always", "unless-stopped"] {
        up(&host, policy, &["--restart", policy], POLITE);
    }
    up(&host, "stopped", &["--restart", "unless-stopped"], POLITE);
    host.holdfast(&["stop", "stopped"]).ok();
    let before = host.pid("always", "pid");
    assert_eq!(host.terminate(), Some(0));
    host.restart();
    for name in ["always", "unless-stopped"] {
        host.until_status(name, "running");
    }
    assert_ne!(host.pid("always", "pid"), before);
    assert_eq!((host.status("no"), host.status("stopped")), ("exited".to_owned(), "exited".to_owned()));
}

#[test]
fn with_live_restore_but_nothing_running_everything_is_cleaned_up() {
    let mut host = Holdfastd::start();
    up(&host, "over", &[], "echo up");
    host.holdfast(&["wait", "over"]);
    assert_eq!(host.terminate(), Some(0));
    assert_eq!((traces(&host), mounts_of(&host)), (Vec::new(), Vec::new()));
}

#[test]
fn a_second_sigterm_kills_and_a_third_does_not_wait() {
    let mut host = without_live_restore("shutdown-timeout = \"1h\"\n");
    up(&host, "deaf", &["--stop-timeout", "3600"], DEAF);
    let pid = host.pid("deaf", "pid");
    host.signal(Signal::SIGTERM);
    host.until_status("deaf", "stopping");
    assert!(is_alive(pid), "it has its time");
    let refused = host.holdfast(&["run", "-d", "--rootfs", &host.rootfs(), "--", "/bin/sh"]);
    assert!(refused.code == 125 && refused.err.contains("starts nothing more"), "{refused:?}");
    let refused = host.holdfast(&["exec", "deaf", "/bin/sh"]);
    assert!(refused.code == 125 && refused.err.contains("starts nothing more"), "{refused:?}");
    host.signal(Signal::SIGTERM);
    assert_eq!(host.ended(), Some(0));
    assert!(!is_alive(pid));
    assert!(line_of(&host, "deaf").contains("as was asked"));
    assert_eq!(traces(&host), Vec::<String>::new());

    host.restart();
    up(&host, "wedged", &["--stop-timeout", "3600"], DEAF);
    let (pid, shim) = (host.pid("wedged", "pid"), host.pid("wedged", "shim_pid"));
    // A shim that does not answer holds up what the second signal asks for.
    let stopped = Stopped::new(shim);
    host.signal(Signal::SIGTERM);
    host.until_status("wedged", "stopping");
    host.signal(Signal::SIGTERM);
    let again = "told to end again";
    until("the second is taken", || (host.said_by_supervisor().matches(again).count() == 2).then_some(()));
    host.signal(Signal::SIGTERM);
    assert_eq!(host.ended(), Some(0));
    assert!(host.said_by_supervisor().contains("for the third time"));
    assert!(is_alive(pid), "it did not wait for it");
    drop(stopped);
}

#[test]
fn the_shutdown_timeout_bounds_all_of_them() {
    let mut host = without_live_restore("shutdown-timeout = \"1s\"\n");
    up(&host, "deaf", &["--stop-timeout", "3600"], DEAF);
    assert_eq!(host.terminate(), Some(0));
    assert!(line_of(&host, "deaf").contains("killed after the shutdown timeout"));
    assert_eq!(traces(&host), Vec::<String>::new());
}

#[test]
fn a_wedged_shim_does_not_outlive_the_shutdown() {
    let mut host = without_live_restore("shutdown-timeout = \"1s\"\n");
    up(&host, "wedged", &[], POLITE);
    let (pid, shim) = (host.pid("wedged", "pid"), host.pid("wedged", "shim_pid"));
    let _stopped = Stopped::new(shim);
    assert_eq!(host.terminate(), Some(0));
    assert!(!is_alive(pid) && !is_alive(shim));
    assert_eq!(traces(&host), Vec::<String>::new());
}

#[test]
fn survivors_of_a_kill_are_stopped_without_live_restore_after_the_api_answers() {
    let mut host = without_live_restore("");
    up(&host, "slow", &["--stop-timeout", "3600"], DEAF);
    up(&host, "web", &["--restart", "always"], POLITE);
    up(&host, "once", &[], POLITE);
    let (slow, web) = (host.pid("slow", "pid"), host.pid("web", "pid"));
    host.kill();
    assert!(is_alive(slow) && is_alive(web));
    // It answers, although one of them has an hour to stop.
    host.restart();
    assert!(is_alive(slow));
    assert_eq!(host.status("slow"), "stopping");
    host.until_status("once", "exited");
    until("its policy applies", || {
        (host.inspect("web")["pid"] != web && host.status("web") == "running").then_some(())
    });
    assert!(line_of(&host, "web").contains("by its stop signal"));
    let killed = host.holdfast(&["kill", "slow"]);
    assert_eq!(killed.code, 0, "{killed:?}");
    assert_eq!(host.holdfast(&["wait", "slow"]).code, 137);
}

#[test]
fn a_second_supervisor_is_refused_by_name_and_harms_nothing() {
    let host = Holdfastd::start();
    up(&host, "web", &[], POLITE);
    let pid = host.pid("web", "pid");
    let said = Said::from(host.command("holdfastd").arg("--live-restore=false").output().unwrap());
    assert_eq!(said.code, 1);
    let lock = host.run_dir().join("holdfastd.lock");
    assert!(said.err.contains("another holdfastd") && said.err.contains(lock.to_str().unwrap()), "{}", said.err);
    assert!(is_alive(pid));
    assert_eq!(host.status("web"), "running", "the first answers");
    assert_eq!(host.holdfast(&["exec", "web", "/bin/sh", "-c", "exit 3"]).code, 3);
}

#[test]
fn stop_all_stops_whatever_runs_by_request() {
    let mut host = Holdfastd::start();
    up(&host, "web", &["--restart", "unless-stopped"], POLITE);
    up(&host, "deaf", &[], DEAF);
    let said = host.holdfast(&["stop", "--all", "--time", "1"]);
    assert_eq!((said.code, said.out.lines().count()), (0, 2), "{said:?}");
    assert_eq!((host.status("web"), host.status("deaf")), ("exited".to_owned(), "exited".to_owned()));
    host.kill();
    host.restart();
    assert_eq!(host.status("web"), "exited", "it was asked for");
}

/// What all the forms of the machine's shutdown have in common.
fn check_the_shutdown(mut host: Holdfastd, said: &Said, pids: &[u32]) {
    assert_eq!(said.code, 0, "{said:?}");
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    let line = |name: &str| {
        let lines: Vec<_> = said.out.lines().filter(|l| l.starts_with(&format!("{name}: "))).collect();
        assert_eq!(lines.len(), 1, "{said:?}");
        lines[0].to_owned()
    };
    assert!(line("web").contains("by its stop signal") && line("web").ends_with("exit status 143"), "{said:?}");
    assert!(line("deaf").contains("killed after its stop timeout") && line("deaf").ends_with("exit status 137"));
    host.restart();
    host.until_status("web", "running");
    assert_eq!(host.holdfast(&["wait", "deaf"]).code, 137, "and the others' statuses are kept");
}

fn two_to_stop(host: &Holdfastd) -> Vec<u32> {
    up(host, "web", &["--restart", "unless-stopped"], POLITE);
    up(host, "deaf", &["--stop-timeout", "1"], DEAF);
    vec![host.pid("web", "pid"), host.pid("deaf", "pid")]
}

#[test]
fn the_machines_shutdown_ends_all_and_a_living_supervisor_restarts_none() {
    let mut host = Holdfastd::start();
    let pids = two_to_stop(&host);
    let said = host.holdfast(&["stop", "--all", "--shutdown"]);
    assert_eq!(host.status("web"), "exited", "holdfastd answers, and leaves it");
    assert!(host.holdfast(&["start", "web"]).err.contains("starts nothing more"));
    assert_eq!(host.terminate(), Some(0));
    check_the_shutdown(host, &said, &pids);
}

#[test]
fn the_machines_shutdown_ends_all_without_a_supervisor_too() {
    let mut host = Holdfastd::start();
    let pids = two_to_stop(&host);
    host.kill();
    let said = host.holdfast(&["stop", "--all", "--shutdown"]);
    assert!(said.err.contains("speaking to the shims instead"), "{said:?}");
    check_the_shutdown(host, &said, &pids);
}

#[test]
fn the_machines_shutdown_does_not_wait_for_a_wedged_supervisor() {
    let mut host = Holdfastd::start();
    let pids = two_to_stop(&host);
    let _stopped = Stopped::new(host.daemon_pid());
    let said = host.holdfast(&["stop", "--all", "--shutdown"]);
    assert!(said.err.contains("does not answer"), "{said:?}");
    host.kill();
    check_the_shutdown(host, &said, &pids);
}

#[test]
fn the_machines_shutdown_reaches_containers_whose_shims_are_dead_or_wedged() {
    let mut host = Holdfastd::start();
    up(&host, "orphan", &[], POLITE);
    up(&host, "wedged", &[], POLITE);
    let pids = [host.pid("orphan", "pid"), host.pid("wedged", "pid")];
    let (dead, wedged) = (host.pid("orphan", "shim_pid"), host.pid("wedged", "shim_pid"));
    host.kill();
    kill_hard(dead);
    let stopped = Stopped::new(wedged);
    let said = host.holdfast(&["stop", "--all", "--shutdown"]);
    assert_eq!((said.code, said.out.lines().count()), (0, 2), "{said:?}");
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    drop(stopped);
}

#[test]
fn limits_that_were_updated_hold_after_a_restart_of_the_container() {
    let host = Holdfastd::start();
    up(&host, "web", &["--memory", "64m"], POLITE);
    let limit = |host: &Holdfastd| {
        let spec = host.inspect("web")["spec"].clone();
        spec["linux"]["resources"]["memory"]["limit"].as_i64()
    };
    assert_eq!(limit(&host), Some(64 << 20));
    host.holdfast(&["update", "--memory", "32m", "web"]).ok();
    assert_eq!(limit(&host), Some(32 << 20));
    host.holdfast(&["stop", "web"]).ok();
    host.holdfast(&["start", "web"]).ok();
    assert_eq!(memory_limit(host.pid("web", "pid")), Some(32 << 20));
    host.holdfast(&["stop", "web"]).ok();
    host.holdfast(&["update", "--memory", "16m", "web"]).ok();
    host.holdfast(&["start", "web"]).ok();
    assert_eq!(memory_limit(host.pid("web", "pid")), Some(16 << 20), "a stopped one can be changed, too");
}

/// What the kernel says: the limit of the process's control group, whichever hierarchy has it.
fn memory_limit(pid: u32) -> Option<i64> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let file = match controllers {
            "" => Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')).join("memory.max"),
            _ if controllers.split(',').any(|c| c == "memory") => {
                Path::new("/sys/fs/cgroup/memory").join(path.trim_start_matches('/')).join("memory.limit_in_bytes")
            }
            _ => return None,
        };
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    })
}
