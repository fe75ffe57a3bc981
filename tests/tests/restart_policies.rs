//! Ring 3: who is started again, after what, and how often; by the real programs, across kill -9 of the supervisor and a
//! reboot. The whole table is a unit test of the registry (`each_event_has_its_consequence_under_each_policy`).
#![allow(clippy::unwrap_used)]

use std::fs;

use holdfast_tests::gate::{ends_later, wait_at};
use holdfast_tests::holdfastd::{Holdfastd, Said};
use holdfast_tests::process::{is_alive, kill_hard};
use holdfast_tests::until;

/// Begins with a line in the log, and ends with 143 when it is told to.
const SERVES: &str = "echo begun; trap 'exit 143' TERM; while :; do sleep 0.1 & wait $!; done";

fn number(host: &Holdfastd, name: &str, which: &str) -> u64 {
    host.inspect(name)[which].as_u64().unwrap()
}

fn begun(host: &Holdfastd, name: &str) -> usize {
    host.holdfast(&["logs", name]).ok().lines().filter(|line| *line == "begun").count()
}

#[test]
fn a_pause_and_its_count_outlive_the_supervisor() {
    let mut host = Holdfastd::start();
    host.run_with("web", &["--restart", "always"], "exit 3");
    let counts =
        |web: &serde_json::Value| (web["restarts"].as_u64().unwrap(), web["restarts_in_a_row"].as_u64().unwrap());
    // All digits of each are told, so that they compare as texts.
    let time = |web: &serde_json::Value, which: &str| web[which].as_str().unwrap().to_owned();
    // A pause may be over before the next supervisor is there. Each is twice as long as the one before: sooner or later one
    // spans its absence, unless the pause or the count is lost with every death.
    let before = until("a pause outlives the supervisor", || {
        let before = host.inspect("web");
        if before["status"] != "restarting" || counts(&before).1 < 4 {
            return None;
        }
        host.kill();
        host.restart();
        let found = host.inspect("web");
        if found["status"] != "restarting" || counts(&found) != counts(&before) {
            return None;
        }
        assert_eq!(time(&found, "next_restart_at"), time(&before, "next_restart_at"), "the same pause");
        Some(before)
    });
    let after = until("it goes on", || {
        let after = host.inspect("web");
        // Empty until it runs.
        let begun = time(&after, "started_at");
        (counts(&after) != counts(&before) && !begun.is_empty() && begun != time(&before, "started_at"))
            .then_some(after)
    });
    assert!(
        time(&after, "started_at") >= time(&before, "next_restart_at"),
        "{after} before the end of its pause: {before}"
    );
    assert_eq!(counts(&after), (counts(&before).0 + 1, counts(&before).1 + 1));
    host.holdfast(&["rm", "-f", "web"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn what_was_stopped_by_request_is_started_by_always_alone_when_the_supervisor_starts() {
    let mut host = Holdfastd::start();
    let policies = ["no", "on-failure", "always", "unless-stopped"];
    for policy in policies {
        for way in ["stop", "kill"] {
            let name = format!("{policy}-{way}");
            host.run_with(&name, &["--restart", policy], SERVES);
            until("it serves", || (begun(&host, &name) == 1).then_some(()));
        }
    }
    for policy in policies {
        host.holdfast(&["stop", &format!("{policy}-stop")]).ok();
        host.holdfast(&["kill", &format!("{policy}-kill")]).ok();
    }
    for policy in policies {
        assert_eq!(host.holdfast(&["wait", &format!("{policy}-stop")]).code, 143);
        assert_eq!(host.holdfast(&["wait", &format!("{policy}-kill")]).code, 137, "{policy}: and stays so");
    }
    host.kill();
    host.restart();
    for way in ["stop", "kill"] {
        host.until_status(&format!("always-{way}"), "running");
        for policy in ["no", "on-failure", "unless-stopped"] {
            assert_eq!(host.status(&format!("{policy}-{way}")), "exited", "{policy}-{way}");
        }
    }
}

#[test]
fn a_signal_for_another_purpose_leaves_the_policy_alone() {
    let host = Holdfastd::start();
    let script = format!("echo begun; trap 'echo reloaded' HUP; {}", ends_later(0));
    host.run_with("web", &["--restart", "unless-stopped"], &script);
    until("it serves", || (begun(&host, "web") == 1).then_some(()));
    host.holdfast(&["kill", "-s", "HUP", "web"]).ok();
    until("it has heard", || host.holdfast(&["logs", "web"]).ok().contains("reloaded").then_some(()));
    host.open_gate("go");
    until("it is started again", || (begun(&host, "web") >= 2).then_some(()));
}

#[test]
fn a_policy_gives_up_with_a_reason_and_a_start_by_request_begins_anew() {
    let mut host = Holdfastd::start();
    host.run_with("web", &["--restart", "on-failure:2"], "echo begun; exit 3");
    let wait = host.holdfast(&["wait", "web"]);
    assert_eq!(wait.code, 3);
    assert!(wait.err.contains("not started again after 2 restarts (on-failure:2)"), "{}", wait.err);
    host.kill();
    host.restart();
    let web = host.inspect("web");
    assert_eq!((web["status"].as_str(), web["restarts"].as_u64()), (Some("exited"), Some(2)));
    assert!(host.holdfast(&["ps", "-a"]).ok().contains("not started again"));
    assert_eq!(begun(&host, "web"), 3);
    host.holdfast(&["start", "web"]).ok();
    host.holdfast(&["wait", "web"]);
    assert_eq!((begun(&host, "web"), number(&host, "web", "restarts")), (6, 2));
}

#[test]
fn a_restart_that_fails_is_tried_again_and_a_start_by_request_is_not() {
    let host = Holdfastd::start();
    let (source, elsewhere) = (host.run_dir().join("data"), host.run_dir().join("data-elsewhere"));
    fs::create_dir(&source).unwrap();
    let volume = format!("{}:/data", source.display());
    let script = format!("echo begun; {}; exit 1", wait_at("data/go"));
    host.run_with("web", &["--restart", "always", "-v", &volume], &script);
    fs::rename(&source, &elsewhere).unwrap();
    fs::write(elsewhere.join("go"), "").unwrap();
    let failing = until("a restart has failed", || {
        let web = host.inspect("web");
        (web["status"] == "restarting" && web["restarts"].as_u64()? >= 1).then_some(web)
    });
    assert!(failing["reason"].as_str().unwrap().contains("data"), "it is said why: {}", failing["reason"]);
    host.holdfast(&["stop", "web"]).ok();
    let start = host.holdfast(&["start", "web"]);
    assert_ne!(start.code, 0);
    assert!(start.err.contains("data"), "{}", start.err);
    assert_eq!(host.status("web"), "exited", "whoever asked knows");
    fs::remove_file(elsewhere.join("go")).unwrap();
    fs::rename(&elsewhere, &source).unwrap();
    host.holdfast(&["start", "web"]).ok();
    fs::rename(&source, &elsewhere).unwrap();
    fs::write(elsewhere.join("go"), "").unwrap();
    until("a restart has failed again", || (number(&host, "web", "restarts") >= 1).then_some(()));
    fs::remove_file(elsewhere.join("go")).unwrap();
    fs::rename(&elsewhere, &source).unwrap();
    host.until_status("web", "running");
    host.holdfast(&["rm", "-f", "web"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn a_pause_is_ended_by_stop_by_remove_and_by_another_policy() {
    let host = Holdfastd::start();
    // Each is met in a pause of 1.6 s or more: a stop that met it between two would end one that barely runs, by SIGKILL.
    let requests: [(&str, &[&str]); 3] =
        [("stopped", &["stop"]), ("removed", &["rm", "-f"]), ("updated", &["update", "--restart", "no"])];
    for (name, request) in requests {
        host.run_with(name, &["--restart", "always"], "exit 3");
        until("it waits for a while", || {
            let found = host.inspect(name);
            (found["status"] == "restarting" && found["restarts_in_a_row"].as_u64()? >= 4).then_some(())
        });
        host.holdfast(&[request, &[name]].concat()).ok();
    }
    for name in ["stopped", "updated"] {
        assert_eq!(host.holdfast(&["wait", name]).code, 3);
        assert_eq!(host.status(name), "exited");
        host.holdfast(&["rm", name]).ok();
    }
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn restart_stops_and_starts_once_also_when_the_supervisor_dies_meanwhile() {
    let mut host = Holdfastd::start();
    let script = format!("echo begun; trap '{}' TERM; while :; do sleep 0.1 & wait $!; done", ends_later(143));
    host.run_with("web", &["--restart", "on-failure:1", "--stop-timeout", "60"], &script);
    until("it serves", || (begun(&host, "web") == 1).then_some(()));
    let pid = host.pid("web", "pid");
    let client =
        host.command("holdfast").args(["restart", "web"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    host.until_status("web", "stopping");
    host.kill();
    host.restart();
    assert!(is_alive(pid), "it takes its time to stop");
    host.open_gate("go");
    assert_eq!(Said::from(client.wait_with_output().unwrap()).ok(), "web");
    until("it serves again", || (begun(&host, "web") == 2).then_some(()));
    assert_ne!(host.pid("web", "pid"), pid);
    assert_eq!((host.status("web").as_str(), number(&host, "web", "restarts")), ("running", 0));
    host.holdfast(&["stop", "web"]).ok();
    host.holdfast(&["restart", "web"]).ok();
    until("one that rests is started", || (begun(&host, "web") == 3).then_some(()));
}

/// Ends everything as a reboot does, and makes what is left look like another boot's.
fn reboot(host: &mut Holdfastd, names: &[&str]) {
    let pids: Vec<u32> = names.iter().flat_map(|name| [host.pid(name, "shim_pid"), host.pid(name, "pid")]).collect();
    host.kill();
    for pid in pids.into_iter().filter(|pid| *pid != 0) {
        kill_hard(pid);
    }
    for entry in fs::read_dir(host.run_dir()).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
    for entry in fs::read_dir(host.state_dir().join("containers/default")).unwrap().flatten() {
        let path = entry.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config["state"]["boot_id"] = "the boot before".into();
        fs::write(&path, config.to_string()).unwrap();
    }
    host.restart();
}

#[test]
fn after_a_reboot_each_policy_does_what_it_says_and_counts_go_on() {
    let mut host = Holdfastd::start();
    let policies = ["no", "on-failure:1", "always", "unless-stopped"];
    let fails_once = format!("if ! [ -e /failed-$0 ]; then echo > /failed-$0; exit 1; fi; {SERVES}");
    for policy in policies {
        let script = fails_once.replace("$0", &policy.replace(':', "-"));
        host.run_with(&policy.replace(':', "-"), &["--restart", policy], &script);
    }
    for name in ["stopped-always", "stopped-unless-stopped"] {
        host.run_with(name, &["--restart", name.trim_start_matches("stopped-")], SERVES);
        host.holdfast(&["stop", name]).ok();
    }
    let running = ["on-failure-1", "always", "unless-stopped"];
    for name in running {
        until("it serves", || (begun(&host, name) == 1).then_some(()));
        assert_eq!(number(&host, name, "restarts"), 1);
    }
    host.holdfast(&["wait", "no"]);
    reboot(&mut host, &["on-failure-1", "always", "unless-stopped"]);
    for name in running {
        until("it serves again", || (begun(&host, name) == 2).then_some(()));
        assert_eq!(number(&host, name, "restarts"), 1, "{name}: kept, and the reboot is no failure of its own");
    }
    host.until_status("stopped-always", "running");
    assert_eq!(host.status("stopped-unless-stopped"), "exited");
    assert_eq!(host.status("no"), "exited");
}
