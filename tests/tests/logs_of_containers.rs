//! Ring 3: `holdfast logs` over every driver, through rotation, reopening and the end of the container.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use holdfast_tests::gate::wait_at;
use holdfast_tests::holdfastd::{Holdfastd, Said};
use holdfast_tests::journal::{FakeJournal, RealJournal, fake_journalctl};
use holdfast_tests::skip::skip;
use holdfast_tests::until;

/// Prints its numbers slowly enough for a reader to come and go, fast enough to be rotated under its hands.
const PRINTER: &str = "i=1; while [ $i -le 3000 ]; do echo $i; i=$((i+1)); done; sleep 0.1; \
                       while [ $i -le 6000 ]; do echo $i; i=$((i+1)); done";
/// How many.
const COUNT: usize = 6000;

/// Runs a detached container with further arguments; its id.
fn run(host: &Holdfastd, name: &str, arguments: &[&str], script: &str) -> String {
    let rootfs = host.rootfs();
    let head = ["run", "-d", "--name", name, "--rootfs", &rootfs];
    host.holdfast(&[&head, arguments, &["--", "/bin/sh", "-c", script]].concat()).ok()
}

fn numbers(from: usize, to: usize) -> String {
    (from..=to).map(|n| format!("{n}\n")).collect()
}

/// Equality without a page of numbers as the message.
#[track_caller]
fn assert_same(got: &str, expected: &str) {
    let wrong = got.lines().zip(expected.lines()).enumerate().find(|(_, (a, b))| a != b);
    assert_eq!((wrong, got.lines().count()), (None, expected.lines().count()));
}

/// Starts `holdfast logs -f`.
fn follow(host: &Holdfastd, name: &str) -> std::process::Child {
    let mut command = host.command("holdfast");
    command.args(["logs", "-f", name]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn every_kind_of_file_is_read_and_followed_across_rotations() {
    let host = Holdfastd::start();
    for driver in ["json-file", "cri", "raw"] {
        let options = ["--log-driver", driver, "--log-opt", "max-size=8k", "--log-opt", "max-file=200"];
        run(&host, driver, &options, PRINTER);
        let followed = Said::from(follow(&host, driver).wait_with_output().unwrap());
        assert_eq!(followed.err, "");
        assert_same(&followed.out, &numbers(1, COUNT));
        assert_same(&host.holdfast(&["logs", driver]).out, &numbers(1, COUNT));
        // Across several files, read from the end.
        for tail in [0, 1, 10, 2500] {
            let said = host.holdfast(&["logs", "--tail", &tail.to_string(), driver]);
            assert_same(&said.out, &numbers(COUNT + 1 - tail, COUNT));
        }
        let inspected = host.inspect(driver);
        assert_eq!(inspected["log_driver"], driver);
        assert_eq!(inspected["log_options"]["max-size"], "8192");
        let path = PathBuf::from(inspected["log_path"].as_str().unwrap());
        assert!(path.exists() && path.with_added_extension("3").exists(), "{} was rotated", path.display());
    }
}

#[test]
fn times_are_shown_and_chosen_by_where_there_are_some() {
    let host = Holdfastd::start();
    for driver in ["json-file", "cri"] {
        run(&host, driver, &["--log-driver", driver], "echo out; echo err >&2");
        host.holdfast(&["wait", driver]).ok();
        let said = host.holdfast(&["logs", "-t", driver]);
        assert!(said.out.ends_with("Z out\n") && said.err.ends_with("Z err\n"), "{said:?}");
        let time = said.out.split(' ').next().unwrap();
        let chosen = |flag: &str, value: &str| host.holdfast(&["logs", flag, value, driver]).out;
        assert_eq!(chosen("--since", time), "out\n");
        assert_eq!(chosen("--until", time), "out\n");
        assert_eq!(chosen("--since", "1h"), "out\n");
        assert_eq!(chosen("--until", "1h"), "");
        assert_eq!(chosen("--since", "2100-01-01T00:00:00Z"), "");
    }
    run(&host, "raw", &["--log-driver", "raw"], "printf 'no \\377 times'");
    host.holdfast(&["wait", "raw"]).ok();
    assert_eq!(host.holdfast(&["logs", "raw"]).out, "no \u{fffd} times");
    for arguments in [&["logs", "-t", "raw"][..], &["logs", "--since", "1h", "raw"], &["logs", "--until", "1h", "raw"]]
    {
        let said = host.holdfast(arguments);
        assert!(said.code == 125 && said.err.contains("keeps no times"), "{said:?}");
    }
}

#[test]
fn a_followed_log_that_is_moved_away_and_reopened_shows_every_line_once() {
    let host = Holdfastd::start();
    for driver in ["json-file", "cri", "raw"] {
        run(&host, driver, &["--log-driver", driver], PRINTER);
        let path = PathBuf::from(host.inspect(driver)["log_path"].as_str().unwrap());
        let follower = follow(&host, driver);
        until("there is a log", || fs::metadata(&path).ok().filter(|m| m.len() > 0));
        let moved = path.with_file_name(format!("{driver}.moved"));
        fs::rename(&path, &moved).unwrap();
        host.holdfast(&["reopen-logs", driver]).ok();
        let length = fs::metadata(&moved).unwrap().len();
        let followed = Said::from(follower.wait_with_output().unwrap());
        let shown = host.holdfast(&["logs", driver]).out;
        assert_eq!(fs::metadata(&moved).unwrap().len(), length, "nothing went into it after the answer");
        assert!(path.exists());
        if driver == "raw" {
            // A follower that comes late finds only what is in the new file.
            assert_same(&(fs::read_to_string(&moved).unwrap() + &shown), &numbers(1, COUNT));
        }
        assert!(numbers(1, COUNT).ends_with(&followed.out) && followed.out.ends_with(&shown), "{driver}");
    }
    let said = host.holdfast(&["reopen-logs", "raw"]);
    assert!(said.code == 125 && said.err.contains("has no log that is open"), "{said:?}");
}

#[test]
fn what_is_kept_nowhere_can_still_be_attached_to() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    let head = ["run", "--name", "none", "--log-driver", "none", "--rootfs", &rootfs];
    let said = host.holdfast(&[&head[..], &["--", "/bin/echo", "text"]].concat());
    assert_eq!((said.code, said.out.as_str()), (0, "text\n"), "{said:?}");
    let said = host.holdfast(&["logs", "none"]);
    assert!(said.code == 125 && said.err.contains("none has the log driver none"), "{said:?}");
    assert_eq!(host.inspect("none")["log_path"], "");
}

#[test]
fn drivers_and_options_that_do_not_do_are_refused_by_name_and_leave_nothing() {
    let host = Holdfastd::start();
    let rootfs = host.rootfs();
    for (arguments, part) in [
        (&["--log-driver", "syslog"][..], "\"syslog\" is no log driver"),
        (&["--log-opt", "color=red"], "has no option \"color\""),
        (&["--log-opt", "max-size=big"], "max-size=\"big\""),
        (&["--log-opt", "max-size"], "is not a log option"),
        (&["--log-driver", "journald", "--log-opt", "max-file=3"], "journald has no option \"max-file\""),
    ] {
        let said = host.holdfast(&[&["run", "--rootfs", &rootfs], arguments, &["--", "/bin/true"]].concat());
        assert!(said.code == 125 && said.err.contains(part), "{said:?}");
    }
    assert_eq!(host.left_over(), Vec::<String>::new());
}

/// Has `host` and what it starts send to the journal at `socket` from now on.
fn use_journal(host: &mut Holdfastd, socket: &Path) {
    host.terminate();
    host.restart_with(&[("HOLDFAST_JOURNAL_SOCKET", socket.to_str().unwrap())]);
}

/// The command line with other `programs` before all.
fn with_programs(host: &Holdfastd, programs: &Path, arguments: &[&str]) -> Command {
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut command = host.command("holdfast");
    command.args(arguments).env("PATH", path).stdin(Stdio::null());
    command
}

#[test]
fn what_is_in_the_journal_is_read_and_followed_by_journalctl() {
    let mut host = Holdfastd::start();
    let path = host.run_dir().join("journal");
    let (journal, programs) = (FakeJournal::start(&path), fake_journalctl(&path));
    use_journal(&mut host, &path);
    let command = |arguments: &[&str]| with_programs(&host, &programs, arguments);
    let said = |arguments: &[&str]| Said::from(command(arguments).output().unwrap());
    let options = ["--log-driver", "journald", "--log-opt", "tag={{.Name}}!"];
    run(&host, "other", &options, "echo out; echo err >&2");
    let counted = "i=1; while [ $i -le 500 ]; do echo $i; i=$((i+1)); done; printf '\\377\\n'";
    run(&host, "web", &options, &format!("{counted}; {}", wait_at("go")));
    let follower = command(&["logs", "-f", "web"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // This journal cannot be told to take all that was sent before something else.
    until("the journal has everything", || (journal.count() == 503).then_some(()));
    host.open_gate("go");
    let followed = follower.wait_with_output().unwrap();
    assert!(followed.stdout.ends_with(b"\n500\n\xff\n"), "bytes come as they were");
    let followed = Said::from(followed);
    assert_eq!((followed.code, followed.err.as_str()), (0, ""));
    assert_same(&followed.out, &(numbers(1, 500) + "\u{fffd}\n"));
    let other = said(&["logs", "other"]);
    assert_eq!((other.out.as_str(), other.err.as_str()), ("out\n", "err\n"));
    let whole = said(&["logs", "web"]);
    assert_eq!((&whole.out, &whole.err), (&followed.out, &followed.err));
    assert_eq!(said(&["logs", "--tail", "3", "web"]).out, "499\n500\n\u{fffd}\n");
    assert_eq!(said(&["logs", "--tail", "0", "web"]).out, "");
    let stamped = said(&["logs", "-t", "--tail", "1", "--since", "1h", "web"]).out;
    assert!(stamped.ends_with("Z \u{fffd}\n"), "{stamped}");
    assert_eq!(said(&["logs", "--until", "1h", "web"]).out, "");
    assert!(journal.entries().iter().any(|e| e["CONTAINER_TAG"] == b"web!"));
    assert_eq!(host.inspect("web")["log_options"]["tag"], "{{.Name}}!");
    // Without the program there is a clear word.
    let mut without = command(&["logs", "web"]);
    let said = Said::from(without.env("PATH", Path::new("/nowhere")).output().unwrap());
    assert!(said.code == 125 && said.err.contains("cannot run journalctl"), "{said:?}");
}

#[test]
fn a_stopped_container_gets_another_log_and_the_old_one_can_still_be_read() {
    let host = Holdfastd::start();
    run(&host, "web", &[], "echo run; sleep 1000");
    let refused = host.holdfast(&["update", "--log-driver", "cri", "web"]);
    assert!(refused.code == 125 && refused.err.contains("while it is stopped"), "{refused:?}");
    for driver in ["cri", "raw", "json-file"] {
        until("it prints", || host.holdfast(&["logs", "web"]).out.ends_with('\n').then_some(()));
        host.holdfast(&["stop", "-t", "0", "web"]).ok();
        host.holdfast(&["update", "--log-driver", driver, "--log-opt", "max-size=1m", "web"]).ok();
        assert_eq!(host.inspect("web")["log_driver"], driver);
        assert_eq!(host.inspect("web")["log_options"]["max-size"], "1048576");
        let before = host.holdfast(&["logs", "web"]).out.lines().count();
        host.holdfast(&["start", "web"]).ok();
        until("it prints again", || (host.holdfast(&["logs", "web"]).out.lines().count() > before).then_some(()));
    }
    let earlier = host.inspect("web")["earlier_logs"].as_array().unwrap().clone();
    let earlier: Vec<_> = earlier.iter().map(|log| (log["driver"].as_str(), log["path"].as_str().unwrap())).collect();
    assert!(earlier.iter().any(|(driver, path)| *driver == Some("cri") && Path::new(path).is_file()), "{earlier:?}");
    assert_eq!(host.holdfast(&["logs", "web"]).out.lines().count(), 4);
    let refused = host.holdfast(&["update", "--log-driver", "syslog", "web"]);
    assert!(refused.code == 125, "{refused:?}");
}

#[test]
fn a_follower_and_late_readers_keep_up_with_rotation_at_full_speed() {
    const LINES: usize = 60_000;
    let host = Holdfastd::start();
    for driver in ["json-file", "cri", "raw"] {
        let options = ["--log-driver", driver, "--log-opt", "max-size=16k", "--log-opt", "max-file=1000"];
        let script = format!("/bin/busybox seq 1 {LINES}");
        run(&host, driver, &options, &script);
        let follower = follow(&host, driver);
        // Whenever one comes, what it finds is unbroken.
        for tail in ["100", "5000", "1000000"] {
            let found = host.holdfast(&["logs", "--tail", tail, driver]).out;
            // Raw output may be shown inside a line.
            let whole = &found[..found.rfind('\n').map_or(0, |at| at + 1)];
            let mut numbers = whole.lines().map(|l| l.parse::<usize>().unwrap_or_else(|_| panic!("{l:?}")));
            if let Some(first) = numbers.next() {
                assert!(numbers.zip(first + 1..).all(|(n, expected)| n == expected), "{driver}, tail {tail}");
            }
        }
        let followed = Said::from(follower.wait_with_output().unwrap());
        assert_same(&followed.out, &numbers(1, LINES));
        assert_eq!(followed.err, "");
    }
}

#[test]
fn the_real_journal_takes_and_gives_every_line() {
    const LINES: usize = 20_000;
    let mut host = Holdfastd::start();
    let journal = match RealJournal::start(&host.run_dir().join("j")) {
        Ok(journal) => journal,
        Err(reason) => return skip(reason),
    };
    use_journal(&mut host, &journal.socket());
    let script = format!(
        "/bin/busybox seq 1 {LINES}; printf '\\377\\000\\n\\n'; /bin/busybox head -c 40000 /dev/zero | \
         /bin/busybox tr '\\000' x; echo"
    );
    let rootfs = host.rootfs();
    let head = ["run", "--name", "web", "--log-driver", "journald", "--rootfs", &rootfs];
    let mut attached = host.command("holdfast");
    let attached = attached.args(head).args(["--", "/bin/sh", "-c", &script]).output().unwrap();
    assert_eq!(attached.stdout.len(), numbers(1, LINES).len() + 40_005);
    let logs = |arguments: &[&str]| {
        with_programs(&host, &journal.programs(), &[&["logs"], arguments, &["web"]].concat()).output().unwrap()
    };
    let whole = logs(&[]);
    assert!(whole.stdout == attached.stdout, "{}", String::from_utf8_lossy(&whole.stderr));
    assert!(logs(&["-f"]).stdout == attached.stdout);
    let last = logs(&["--tail", "3"]);
    assert!(attached.stdout.ends_with(&last.stdout) && last.stdout.len() == 40_005 && last.stderr.is_empty());
    assert_eq!(logs(&["--tail", "0"]).stdout, b"");
    assert!(logs(&["--since", "1h"]).stdout == attached.stdout);
    assert_eq!(logs(&["--until", "1h"]).stdout, b"");
}
