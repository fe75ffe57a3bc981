//! Ring 3: settings by file and flags, read at start, on SIGHUP and by `holdfast reload`.
#![allow(clippy::unwrap_used)]

use holdfast_tests::holdfastd::{Holdfastd, Said};
use holdfast_tests::process::is_alive;
use holdfast_tests::until;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Sends SIGHUP and waits until the log says this, once more than before.
fn hang_up(host: &Holdfastd, expected: &str) {
    let count = |host: &Holdfastd| host.said_by_supervisor().matches(expected).count();
    let before = count(host);
    host.signal(Signal::SIGHUP);
    until(expected, || (count(host) > before).then_some(()));
}

#[test]
fn sighup_switches_live_restore_off_and_on_also_by_the_removal_of_the_key() {
    let mut host = Holdfastd::start();
    host.configure("");
    hang_up(&host, "live-restore is now false, it was true");
    host.configure("live-restore = true\n");
    hang_up(&host, "live-restore is now true, it was false");
    host.run_polite("web");
    let pid = host.pid("web", "pid");
    assert_eq!(host.terminate(), Some(0));
    assert!(is_alive(pid), "it is on");
    host.restart();
    host.configure("# live-restore = true\n");
    hang_up(&host, "live-restore is now false, it was true");
    assert_eq!(host.terminate(), Some(0));
    assert!(!is_alive(pid), "it is off");
}

#[test]
fn reload_says_what_changed_what_was_refused_and_why() {
    let host = Holdfastd::start();
    let said = host.holdfast(&["reload"]);
    assert_eq!((said.code, said.out.as_str()), (0, "nothing has changed\n"), "{said:?}");
    host.configure("live-restore = false\nlog-level = \"debug\"\nrun-dir = \"/elsewhere\"\n");
    let said = host.holdfast(&["--json", "reload"]);
    assert_eq!(said.code, 125, "something was refused");
    let told: Value = serde_json::from_str(&said.out).unwrap();
    let keys = |what: &str| -> Vec<String> {
        told[what].as_array().unwrap().iter().map(|one| one["key"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(keys("changed"), ["live-restore", "log-level"], "the rest is applied");
    assert_eq!(keys("refused"), ["run-dir"]);
    assert!(told["refused"][0]["reason"].as_str().unwrap().contains("restart"));
    host.configure("live-restore = true\nrun-dir = \"/elsewhere\"\n");
    let said = host.holdfast(&["reload"]);
    assert_eq!((said.code, said.out.as_str()), (125, "live-restore: true, was false\nlog-level: info, was debug\n"));
    assert!(said.err.contains("run-dir stays") && said.err.contains("/elsewhere"), "{said:?}");
}

#[test]
fn a_bad_file_changes_nothing_and_is_named_with_line_and_key() {
    let mut host = Holdfastd::start();
    let file = host.settings_file();
    let place = |line: u32| format!("{}:{line}:", file.display());
    for (text, line, key) in [
        ("live-restore = false\nlog-level = \"loud\"\n", 2, "log-level"),
        ("live-restore = false\n\nlive-restor = true\n", 3, "live-restor"),
        ("live-restore = false\nshim = \n", 2, "shim"),
        ("live-restore = \"no\"\n", 1, "live-restore"),
    ] {
        host.configure(text);
        let said = host.holdfast(&["reload"]);
        assert_eq!(said.code, 125);
        assert!(said.err.contains(&place(line)) && said.err.contains(key), "{text}: {said:?}");
        assert_eq!(said.err.lines().count(), 1, "{said:?}");
    }
    hang_up(&host, "the settings stay as they were");
    host.run_polite("web");
    let pid = host.pid("web", "pid");
    assert_eq!(host.terminate(), Some(0));
    assert!(is_alive(pid), "live-restore is on as it was");
    for validate in [true, false] {
        let mut command = host.command("holdfastd");
        command.arg("--config").arg(&file).args(validate.then_some("--validate"));
        let said = Said::from(command.output().unwrap());
        assert_eq!(said.code, 2, "at start, too: {said:?}");
        assert!(said.err.contains(&place(1)) && said.err.contains("live-restore"), "{said:?}");
    }
    host.configure("live-restore = true\n");
    let said = Said::from(host.command("holdfastd").arg("--validate").arg("--config").arg(&file).output().unwrap());
    assert_eq!((said.code, said.out), (0, format!("{}: valid\n", file.display())));
    host.restart();
}

#[test]
fn a_flag_wins_over_the_file_and_the_log_says_so() {
    let mut host = Holdfastd::start();
    host.configure("live-restore = false\n");
    host.kill();
    host.launch_with(&[], &["--live-restore"]);
    until("holdfastd answers", || (host.holdfast(&["info"]).code == 0).then_some(()));
    let told = "has no effect: the flag --live-restore=true wins";
    assert!(host.said_by_supervisor().contains(told), "{}", host.said_by_supervisor());
    let said = host.holdfast(&["reload"]);
    assert_eq!((said.code, said.out.as_str()), (0, "nothing has changed\n"));
    assert!(said.err.contains(told), "{said:?}");
    host.run_polite("web");
    let pid = host.pid("web", "pid");
    assert_eq!(host.terminate(), Some(0));
    assert!(is_alive(pid), "the flag won");
    host.configure("live-restore = true\n");
    host.restart();
}

#[test]
fn the_level_of_the_log_and_the_log_driver_of_new_containers_can_be_changed() {
    let host = Holdfastd::start();
    host.configure("live-restore = true\nlog-level = \"error\"\n[log]\ndriver = \"raw\"\n");
    host.holdfast(&["reload"]).ok();
    let quiet = host.said_by_supervisor().len();
    host.run("web", "echo x");
    host.holdfast(&["wait", "web"]);
    assert_eq!(host.inspect("web")["log_driver"], "raw");
    assert_eq!(host.said_by_supervisor().len(), quiet, "nothing grave has happened");
    host.configure("live-restore = true\nlog-level = \"trace\"\n");
    host.holdfast(&["reload"]).ok();
    until("it says more", || (host.said_by_supervisor().len() > quiet).then_some(()));
}

#[test]
fn a_container_that_takes_longer_than_the_start_timeout_is_given_up() {
    let mut host = Holdfastd::start();
    host.kill();
    // By the file alone: a flag would win over it.
    let mut command = host.command("holdfastd");
    command.arg("--config").arg(host.settings_file());
    host.launch(command);
    host.restored();
    let shim = host.run_dir().join("slow-shim");
    std::fs::write(&shim, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&shim, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let shim = shim.display();
    host.configure(&format!("live-restore = true\nshim = \"{shim}\"\nstart-timeout = \"200ms\"\n"));
    let changed = host.holdfast(&["reload"]).out;
    assert!(changed.contains("start-timeout"), "{changed}");
    let said = host.holdfast(&["run", "-d", "--rootfs", &host.rootfs(), "--", "/bin/sh"]);
    assert_eq!(said.code, 125);
    assert!(said.err.contains("200ms"), "{said:?}");
    assert_eq!(host.left_over(), Vec::<String>::new());
    host.configure("live-restore = true\n");
    host.holdfast(&["reload"]).ok();
}
