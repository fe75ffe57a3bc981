//! Ring 3: what a supervisor finds when it starts. Each class of the report is brought about on real processes: stopped,
//! killed, their pids given to strangers, their boot over.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_proto::record::Record;
use holdfast_tests::gate::ends_later;
use holdfast_tests::holdfastd::{Holdfastd, POLITE, Said};
use holdfast_tests::process::{ChildProcess, Stopped, copy_program, is_alive, kill_hard, until_gone};
use holdfast_tests::several::several_at_a_time;
use holdfast_tests::{FakeWorld, stdio::Stdio as Streams, until};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// A supervisor that gives shims the time that is said here.
fn patient_for(host: &Holdfastd, time: &str) -> Command {
    let mut command = host.daemon_command();
    command.args(["--restore-deadline", time]);
    command
}

fn record_path(host: &Holdfastd, id: &str) -> PathBuf {
    host.run_dir().join("tasks/holdfastd/default").join(id).join("record.json")
}

/// A client that is not waited for yet.
fn client(host: &Holdfastd, args: &[&str]) -> Child {
    let mut command = host.command("holdfast");
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn has_ended(client: &mut Child) -> bool {
    client.try_wait().unwrap().is_some()
}

fn said(client: Child) -> Said {
    client.wait_with_output().unwrap().into()
}

/// Waits for the end of a process whose parent is some reaper, so that its pid is free.
fn until_reaped(pid: u32) {
    until("its pid is free", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
}

/// Ends a supervisor, its shim and its container, or those that are named, and gives their pids to others who bear the name
/// of a shim.
fn strangers(host: &Holdfastd, pids: &[u32]) -> Vec<ChildProcess> {
    for pid in pids {
        kill_hard(*pid);
    }
    let program = host.run_dir().join("containerd-shim-holdfast-v2");
    if !program.exists() {
        copy_program(&Path::new(&host.rootfs()).join("bin/busybox"), &program);
    }
    let start = |pid: &u32| {
        until_reaped(*pid);
        ChildProcess::spawn_as(*pid, Command::new(&program).arg0("sleep").arg("1000"))
    };
    pids.iter().map(start).collect()
}

fn assert_unharmed(strangers: &[ChildProcess]) {
    for stranger in strangers {
        assert!(stranger.is_alive(), "a stranger under pid {} was killed", stranger.pid());
    }
}

#[test]
fn clients_are_served_before_the_restore_is_over_and_who_needs_a_verdict_waits_for_that_alone() {
    let mut host = Holdfastd::start();
    for name in ["slow", "web"] {
        host.run_polite(name);
    }
    let shim = host.pid("slow", "shim_pid");
    host.kill();
    let stopped = Stopped::new(shim);
    let heard_at = host.run_dir().join("notify");
    let service_manager = UnixDatagram::bind(&heard_at).unwrap();
    service_manager.set_nonblocking(true).unwrap();
    let mut heard = String::new();
    let mut hear = |what: &str| {
        until(what, || {
            let mut buffer = [0u8; 4096];
            while let Ok(n) = service_manager.recv(&mut buffer) {
                heard += &format!("{}\n", String::from_utf8_lossy(&buffer[..n]));
            }
            heard.contains(what).then(|| heard.clone())
        })
    };
    // Longer than any test: only the shim's own answer can end it.
    let mut command = patient_for(&host, "1h");
    command.env("NOTIFY_SOCKET", &heard_at);
    host.launch(command);
    host.answers();
    let so_far = hear("STATUS=restoring: 2 containers");
    assert!(!so_far.contains("READY=1"), "{so_far}");
    until("the other one is there", || (host.status("web") == "running").then_some(()));
    assert_eq!(host.status("slow"), "restoring");
    let doctor = host.holdfast(&["doctor"]);
    assert!(doctor.out.contains("under way") && doctor.out.contains("restoring"), "{doctor:?}");
    assert!(host.holdfast(&["ps"]).ok().contains("slow"));
    let mut waiting: Vec<Child> = [
        ["exec", "slow", "/bin/echo", "done"].as_slice(),
        &["wait", "slow"],
        &["exec", "slow", "/bin/sh", "-c", "exit 5"],
    ]
    .map(|args| client(&host, args))
    .into();
    // Those who want something of the other are not kept.
    assert_eq!(host.holdfast(&["exec", "web", "/bin/echo", "here"]).ok(), "here");
    host.holdfast(&["stop", "web"]).ok();
    assert!(!waiting.iter_mut().any(has_ended));
    drop(stopped);
    assert_eq!(host.class("slow"), "reattached");
    let so_far = hear("READY=1");
    assert!(so_far.contains("STATUS=2 reattached"), "{so_far}");
    let exec = said(waiting.pop().unwrap());
    assert_eq!(exec.code, 5, "{exec:?}");
    let wait = waiting.pop().unwrap();
    assert_eq!(said(waiting.pop().unwrap()).ok(), "done");
    host.holdfast(&["stop", "slow"]).ok();
    assert_eq!(said(wait).code, 143);
}

/// Fills the backlog of a socket whose owner does not accept; who connects after that without care hangs.
fn fill_backlog(path: &Path) -> Vec<std::os::fd::OwnedFd> {
    use std::os::fd::AsRawFd;
    let address = UnixAddr::new(path).unwrap();
    let mut held = Vec::new();
    loop {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => held.push(fd),
            Err(e) => {
                assert_eq!(e, nix::errno::Errno::EAGAIN);
                return held;
            }
        }
    }
}

#[test]
fn a_wedged_shim_delays_nobody_and_nothing_is_lost_when_it_comes_back() {
    let mut host = Holdfastd::start();
    let names = ["a", "b", "c", "d"];
    for name in names {
        host.run_polite(name);
    }
    let id = host.run("wedged", &ends_later(7));
    let inspected = host.inspect("wedged");
    let (pid, shim) = (host.pid("wedged", "pid"), host.pid("wedged", "shim_pid"));
    let socket = inspected["shim_address"].as_str().unwrap().strip_prefix("unix://").unwrap().to_owned();
    host.kill();
    let stopped = Stopped::new(shim);
    let full = fill_backlog(Path::new(&socket));
    host.launch(patient_for(&host, "300ms"));
    host.restored();
    for name in names {
        assert_eq!(host.class(name), "reattached");
    }
    assert_eq!((host.class("wedged"), host.status("wedged")), ("unresponsive".into(), "unresponsive".into()));
    assert_eq!(host.pid("wedged", "pid"), pid, "it is known from the record");
    let attention = host.attention();
    assert!(attention.iter().any(|one| one.contains(&id) && one.contains("does not answer")), "{attention:?}");
    let exec = host.holdfast(&["exec", "wedged", "/bin/echo"]);
    assert!(exec.code == 125 && exec.err.contains("unresponsive"), "{exec:?}");
    let rm = host.holdfast(&["rm", "wedged"]);
    assert!(rm.code == 125 && rm.err.contains("unresponsive"), "{rm:?}");
    let wait = client(&host, &["wait", "wedged"]);
    host.open_gate("go");
    until_gone(pid);
    assert_eq!(host.status("wedged"), "unresponsive", "nobody can know its status yet");
    drop(full);
    drop(stopped);
    assert_eq!(said(wait).code, 7);
    assert_eq!(host.class("wedged"), "exited-while-away", "the report follows");
    let mut events = host.command("holdfast");
    events.args(["--json", "events", "--since", "1h"]).stdout(Stdio::piped());
    let mut events = ChildProcess::spawn(&mut events);
    read_up_to(&mut events, |event| event["kind"] == "exit" && event["exit_status"] == 7);
    host.holdfast(&["rm", "wedged"]).ok();
    host.holdfast(&["rm", "-f", "a", "b", "c", "d"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

/// Reads a client's events up to one of which `is` is true.
fn read_up_to(events: &mut ChildProcess, is: impl Fn(&serde_json::Value) -> bool) {
    let lines = BufReader::new(events.child().stdout.take().unwrap()).lines();
    let mut events = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap());
    assert!(events.any(|event| is(&event)), "the stream ended without it");
}

#[test]
fn a_wedged_shims_container_can_be_stopped_and_removed() {
    let mut host = Holdfastd::start();
    for name in ["stopped", "removed"] {
        host.run_polite(name);
    }
    let pids = ["stopped", "removed"].map(|name| (host.pid(name, "pid"), host.pid(name, "shim_pid")));
    host.kill();
    let wedged = pids.map(|(_, shim)| Stopped::new(shim));
    host.launch(patient_for(&host, "200ms"));
    assert_eq!((host.class("stopped"), host.class("removed")), ("unresponsive".into(), "unresponsive".into()));
    host.holdfast(&["stop", "stopped"]).ok();
    assert!(!is_alive(pids[0].0));
    host.holdfast(&["rm", "-f", "removed"]).ok();
    assert!(!is_alive(pids[1].0) && !is_alive(pids[1].1));
    let gone = host.holdfast(&["inspect", "removed"]);
    assert!(gone.code == 125 && gone.err.contains("no container"), "{gone:?}");
    drop(wedged);
    let wait = host.holdfast(&["wait", "stopped"]);
    assert_eq!(wait.code, 143, "its shim has kept the true status: {wait:?}");
    host.holdfast(&["rm", "stopped"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
    assert_eq!(host.attention(), Vec::<String>::new(), "nothing is left that needs attention");
}

#[test]
fn a_container_whose_shim_died_while_nobody_watched_is_visible_and_can_be_stopped() {
    let mut host = Holdfastd::start();
    host.run_polite("stopped");
    host.run("ended", &ends_later(5));
    host.run_polite("removed");
    let pids = ["stopped", "ended", "removed"].map(|name| host.pid(name, "pid"));
    let shims = ["stopped", "ended", "removed"].map(|name| host.pid(name, "shim_pid"));
    host.kill();
    shims.into_iter().for_each(kill_hard);
    host.restart();
    for (name, pid) in ["stopped", "ended", "removed"].into_iter().zip(pids) {
        assert_eq!(host.class(name), "adopted");
        assert!(is_alive(pid), "nobody kills it for its shim's death");
        assert_eq!((host.pid(name, "pid"), host.status(name)), (pid, "running".into()));
        assert!(host.inspect(name)["reason"].as_str().unwrap().contains("shim is dead"));
    }
    let attention = host.attention();
    for pid in pids {
        assert!(attention.iter().any(|one| one.contains(&format!("its process {pid} runs"))), "{pid}: {attention:?}");
    }
    host.holdfast(&["stop", "stopped"]).ok();
    host.holdfast(&["rm", "-f", "removed"]).ok();
    host.open_gate("go");
    // It was never this supervisor's child, so nobody saw how it ended; and that is what is said.
    let wait = host.holdfast(&["wait", "ended"]);
    assert!(wait.code == 255 && !wait.err.is_empty(), "{wait:?}");
    assert!(!pids.into_iter().any(is_alive));
    host.holdfast(&["rm", "stopped", "ended"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn a_stranger_under_a_dead_shims_or_containers_pid_is_never_signalled() {
    let mut host = Holdfastd::start();
    for name in ["adopted", "lost"] {
        host.run_polite(name);
    }
    let pids = ["adopted", "lost"].map(|name| (host.pid(name, "pid"), host.pid(name, "shim_pid")));
    host.kill();
    let mut all = strangers(&host, &[pids[0].1]);
    all.extend(strangers(&host, &[pids[1].1, pids[1].0]));
    host.restart();
    assert_eq!((host.class("adopted"), host.class("lost")), ("adopted".into(), "lost".into()));
    assert_eq!(host.holdfast(&["wait", "lost"]).code, 255);
    host.holdfast(&["stop", "-t", "1", "adopted"]).ok();
    assert!(!is_alive(pids[0].0));
    host.holdfast(&["rm", "-f", "adopted", "lost"]).ok();
    assert_unharmed(&all);
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn a_pid_that_passes_to_a_stranger_while_the_supervisor_watches_it_is_not_signalled_either() {
    let mut host = Holdfastd::start();
    host.run_polite("web");
    let (pid, shim) = (host.pid("web", "pid"), host.pid("web", "shim_pid"));
    host.kill();
    kill_hard(shim);
    host.restart();
    assert_eq!(host.class("web"), "adopted");
    let stranger = strangers(&host, &[pid]);
    let wait = host.holdfast(&["wait", "web"]);
    assert_eq!(wait.code, 255, "{wait:?}");
    host.holdfast(&["kill", "web"]);
    host.holdfast(&["rm", "-f", "web"]).ok();
    assert_unharmed(&stranger);
}

/// A supervisor to which `/proc` names another boot. What it starts sees the same.
fn in_another_boot(host: &Holdfastd) -> Command {
    let file = host.run_dir().join("boot_id");
    fs::write(&file, "11111111-2222-3333-4444-555555555555\n").unwrap();
    let inner = host.daemon_command();
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "slave", "sh", "-c"]);
    command.arg("mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"").arg(&file);
    command.arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[test]
fn after_a_reboot_no_trace_is_trusted_and_what_should_run_is_started_again() {
    let mut host = Holdfastd::start();
    host.kill();
    host.launch(in_another_boot(&host));
    host.restored();
    let rootfs = host.rootfs();
    for (name, policy) in [("no", "no"), ("always", "always"), ("stopped", "unless-stopped")] {
        let args =
            ["run", "-d", "--name", name, "--restart", policy, "--rootfs", &rootfs, "--", "/bin/sh", "-c", POLITE];
        host.holdfast(&args).ok();
    }
    let created = ["run", "-d", "--name", "other", "--rootfs", &rootfs, "--", "/bin/sh", "-c", POLITE];
    host.holdfast(&created).ok();
    host.holdfast(&["stop", "stopped"]).ok();
    let names = ["no", "always", "other"];
    let ids = names.map(|name| host.inspect(name)["id"].as_str().unwrap().to_owned());
    let record = Record::read(&record_path(&host, &ids[0])).unwrap();
    assert_eq!(record.boot_id, "11111111-2222-3333-4444-555555555555");
    let pids: Vec<u32> = names.iter().flat_map(|n| [host.pid(n, "shim_pid"), host.pid(n, "pid")]).collect();
    host.kill();
    // As a reboot would have it, but that /run is still there; and others have their pids.
    let all = strangers(&host, &pids);
    host.restart();
    for name in ["no", "always", "other"] {
        assert_eq!(host.class(name), "lost", "{name}");
        assert!(host.restoration(name)["detail"].as_str().unwrap().contains("reboot"), "{name}");
    }
    assert_eq!(host.class("stopped"), "at-rest");
    until("what should run does again", || (host.status("always") == "running").then_some(()));
    assert_eq!(host.status("no"), "exited");
    let wait = host.holdfast(&["wait", "no"]);
    assert!(wait.code == 255 && wait.err.contains("reboot"), "{wait:?}");
    assert_eq!(host.status("stopped"), "exited");
    host.holdfast(&["start", "other"]).ok();
    host.holdfast(&["exec", "other", "/bin/echo"]).ok();
    host.holdfast(&["rm", "-f", "no", "always", "stopped", "other"]).ok();
    assert_unharmed(&all);
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn a_newer_holdfasts_container_is_shown_kept_and_can_only_be_signalled() {
    let mut host = Holdfastd::start();
    let id = host.run_polite("web");
    host.run_polite("other");
    let pid = host.pid("web", "pid");
    host.kill();
    let path = record_path(&host, &id);
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["schema"] = 99.into();
    fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
    host.restart();
    assert_eq!((host.class("web"), host.class("other")), ("incompatible".into(), "reattached".into()));
    assert!(host.said_by_supervisor().contains("schema 99"), "it is in the log");
    assert_eq!((host.status("web"), host.pid("web", "pid")), ("incompatible".into(), pid));
    let listed = host.holdfast(&["ps"]).ok();
    assert_eq!(listed.matches("web").count(), 1, "{listed}");
    for refused in [["exec", "web", "/bin/echo"].as_slice(), &["rm", "-f", "web"], &["start", "web"]] {
        let said = host.holdfast(refused);
        assert!(said.code == 125 && said.err.contains("schema 99"), "{refused:?}: {said:?}");
    }
    assert!(is_alive(pid) && path.exists());
    assert_eq!(fs::read(&path).unwrap(), serde_json::to_vec(&record).unwrap(), "nobody touches it");
    let waiting = client(&host, &["wait", "web"]);
    host.holdfast(&["stop", "web"]).ok();
    assert_eq!(said(waiting).code, 143);
    assert!(!is_alive(pid) && path.exists(), "what is left is for the one that made it");
    assert_eq!(host.holdfast(&["wait", "web"]).code, 143);
    // By now its shim, which is none of a newer holdfast, has written a record that can be read.
    host.kill();
    host.restart();
    assert_eq!(host.class("web"), "exited-while-away");
    host.holdfast(&["rm", "-f", "web", "other"]).ok();
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn an_unreadable_record_is_made_up_for_by_a_shim_that_answers_and_kept_otherwise() {
    let mut host = Holdfastd::start();
    let ids = ["alive", "dead"].map(|name| host.run_polite(name));
    let (pid, shim) = (host.pid("dead", "pid"), host.pid("dead", "shim_pid"));
    host.kill();
    for id in &ids {
        fs::write(record_path(&host, id), "{").unwrap();
    }
    kill_hard(shim);
    host.restart();
    assert_eq!((host.class("alive"), host.class("dead")), ("reattached".into(), "unreadable".into()));
    assert!(host.restoration("alive")["detail"].as_str().unwrap().contains("record.json"));
    assert_eq!(host.holdfast(&["exec", "alive", "/bin/echo", "here"]).ok(), "here");
    assert_eq!(host.status("dead"), "unreadable");
    let stop = host.holdfast(&["stop", "dead"]);
    assert!(stop.code == 125 && stop.err.contains("record.json"), "{stop:?}");
    assert!(is_alive(pid) && record_path(&host, &ids[1]).exists());
    // Only who insists.
    assert_eq!(host.holdfast(&["rm", "dead"]).code, 125);
    host.holdfast(&["rm", "-f", "alive", "dead"]).ok();
    until_gone(pid);
    assert_eq!(host.left_over(), Vec::<String>::new());
}

#[test]
fn without_its_oci_runtime_a_container_goes_on_is_shown_and_can_be_stopped_and_removed() {
    let mut host = Holdfastd::start();
    host.kill();
    let runtime = host.run_dir().join("runtime");
    let mut command = host.daemon_command();
    let ours = Path::new(command.get_program()).with_file_name("holdfast-oci");
    copy_program(&ours, &runtime);
    command.arg("--runtime").arg(&runtime);
    host.launch(command);
    host.restored();
    let id = host.run_polite("web");
    let (pid, shim) = (host.pid("web", "pid"), host.pid("web", "shim_pid"));
    host.kill();
    fs::remove_file(&runtime).unwrap();
    host.restart();
    assert_eq!(host.class("web"), "incompatible");
    let detail = host.restoration("web")["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains(runtime.to_str().unwrap()), "{detail}");
    assert!(is_alive(pid));
    assert_eq!(host.status("web"), "running");
    let exec = host.holdfast(&["exec", "web", "/bin/echo"]);
    assert!(exec.code != 0 && exec.err.contains(runtime.to_str().unwrap()), "{exec:?}");
    host.holdfast(&["stop", "web"]).ok();
    assert_eq!(host.holdfast(&["wait", "web"]).code, 143);
    host.holdfast(&["rm", "web"]).ok();
    assert!(!is_alive(pid) && !is_alive(shim));
    assert_eq!(host.left_over(), Vec::<String>::new());
    // Its state, for which there is nobody any more.
    fs::remove_dir_all(Path::new("/run/containerd/runc/default").join(&id)).unwrap();
    host.remove_groups(&id);
}

#[test]
fn another_managers_container_is_only_looked_at() {
    let mut host = Holdfastd::start();
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let run_dir = host.run_dir();
    let mut shim = world.launch(&bundle).env("HOLDFAST_RUN_DIR", run_dir.to_str().unwrap()).start();
    let pid = shim.run(&Streams::none());
    host.kill();
    host.restart();
    let found = host.restoration(bundle.id());
    assert_eq!(found["class"], "foreign");
    assert!(found["detail"].as_str().unwrap().contains("containerd"), "{found}");
    assert_eq!(found["pid"], pid);
    assert_eq!(host.attention(), Vec::<String>::new(), "that is as it should be");
    assert!(host.holdfast(&["ps", "--all-managers"]).ok().contains(bundle.id()));
    for refused in [["stop", bundle.id()].as_slice(), &["rm", "-f", bundle.id()], &["kill", bundle.id()]] {
        assert_eq!(host.holdfast(refused).code, 125, "{refused:?}");
    }
    assert!(is_alive(pid) && shim.process().is_alive());
    shim.kill("", 9).unwrap();
    shim.wait("").unwrap();
    shim.delete("").unwrap();
}

#[test]
fn two_supervisors_never_share_a_directory_and_a_killed_one_is_in_nobodys_way() {
    let mut host = Holdfastd::start();
    host.run_polite("web");
    let run_dir = host.run_dir().display().to_string();
    let second = Said::from(host.daemon_command().output().unwrap());
    assert_eq!(second.code, 1);
    assert!(second.err.contains("another holdfastd") && second.err.contains(&run_dir), "{second:?}");
    // The first has its socket still, and its container.
    assert_eq!(host.holdfast(&["exec", "web", "/bin/echo", "here"]).ok(), "here");
    host.kill();
    assert!(host.run_dir().join("holdfastd.lock").exists(), "no file that stays can lock anybody out");
    host.restart();
    assert_eq!(host.class("web"), "reattached");
}

#[test]
fn policies_judge_what_happened_while_away_by_its_true_status() {
    let mut host = Holdfastd::start();
    let run = |name: &str, policy: &str, status: u32| {
        let script = format!("[ -e /go ] && exec sleep 1000; echo up; {}", ends_later(status));
        host.run_with(name, &["--restart", policy], &script);
        // Before it has looked, the gate must not be opened.
        until("it is up", || (host.holdfast(&["logs", name]).out == "up\n").then_some(()));
        host.pid(name, "pid")
    };
    let pids = [
        run("succeeded", "on-failure", 0),
        run("failed", "on-failure", 3),
        run("never", "no", 3),
        run("any", "always", 0),
    ];
    host.kill();
    host.open_gate("go");
    until("all have ended", || pids.iter().all(|pid| !is_alive(*pid)).then_some(()));
    host.restart();
    for name in ["succeeded", "failed", "never", "any"] {
        assert_eq!(host.class(name), "exited-while-away", "{name}");
    }
    for name in ["failed", "any"] {
        host.until_status(name, "running");
        assert_eq!(host.inspect(name)["restarts"], 1, "{name}");
    }
    assert_eq!(host.holdfast(&["wait", "succeeded"]).code, 0);
    assert_eq!(host.holdfast(&["wait", "never"]).code, 3);
    assert_eq!(host.status("succeeded"), "exited");
}

/// How many containers the large restore has.
fn many() -> usize {
    let named = std::env::var("HOLDFAST_CONTAINERS").ok();
    named.map_or(200, |text| text.parse().expect("HOLDFAST_CONTAINERS is a number"))
}

#[test]
fn many_containers_are_reattached_in_one_go() {
    let n = many();
    let mut host = Holdfastd::start();
    let rootfs = host.rootfs();
    several_at_a_time(6, n, |i| {
        let name = format!("c{i}");
        host.holdfast(&["run", "-d", "--name", &name, "--rootfs", &rootfs, "--", "/bin/sleep", "1000"]).ok();
    });
    let wedged = [0, n / 2].map(|i| host.pid(&format!("c{i}"), "shim_pid"));
    let mut took = Vec::new();
    for round in 0..5 {
        host.kill();
        // The last time some of them are wedged, and answer before they are given up.
        let stopped = if round == 4 { wedged.map(Stopped::new).into() } else { Vec::new() };
        let began = Instant::now();
        host.launch(patient_for(&host, "1h"));
        host.answers();
        let answered = began.elapsed();
        if round == 4 {
            let listed = || host.holdfast(&["--json", "ps"]).ok().matches("\"running\"").count();
            until("all others are there", || (listed() == n - wedged.len()).then_some(()));
        }
        drop(stopped);
        let report = host.restored();
        let restored = Duration::from_nanos(report["took_ns"].as_u64().unwrap());
        let classes = report["containers"].as_array().unwrap().iter().filter(|c| c["class"] == "reattached").count();
        assert_eq!(classes, n);
        took.push((restored, answered));
    }
    let mut restores: Vec<Duration> = took[..4].iter().map(|(restored, _)| *restored).collect();
    restores.sort_unstable();
    println!("{n} containers: restored in {restores:?}; {took:?}");
    let ids = host.holdfast(&["ps", "-aq"]).ok();
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(ids.len(), n);
    several_at_a_time(6, n, |i| drop(host.holdfast(&["rm", "-f", ids[i]]).ok()));
    assert_eq!(host.left_over(), Vec::<String>::new());
}
