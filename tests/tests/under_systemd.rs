//! Ring 3: the shipped units on a machine under systemd: what a restart, a kill, a stop, a reload, an upgrade and a wedged
//! supervisor do to containers. The machine's end has a stage of its own: `tests/vm/shutdown.sh`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use holdfast_proto::supervisor::{VersionRequest, VersionResponse};
use holdfast_tests::container::is_without_controllers;
use holdfast_tests::machine::{self, Machine};
use holdfast_tests::process::is_alive;
use holdfast_tests::skip::skip;
use holdfast_tests::wire::Connection;
use holdfast_tests::{http, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Counts from 1, ten times a second; exits with 143 on SIGTERM, as a well-behaved first process does.
const COUNTER: &str = "trap 'exit 143' TERM; i=1; while :; do echo $i; i=$((i+1)); sleep 0.1 & wait $!; done";

/// The API's socket.
const API: &str = "/run/holdfast/holdfastd.sock";

/// The unit that holds containers and shims.
const CONTAINERS: &str = "/holdfast.slice/holdfast-containers.service";

/// A container at work, as a test sees it over time.
struct Witness<'a> {
    machine: &'a Machine,
    pid: u32,
    shim: u32,
}

impl<'a> Witness<'a> {
    fn start(machine: &'a Machine) -> Self {
        machine.run("witness", COUNTER);
        Self { machine, pid: machine.pid("witness", "pid"), shim: machine.pid("witness", "shim_pid") }
    }

    /// Its processes are the same, its log is unbroken and goes on, and it can be worked with.
    #[track_caller]
    fn has_noticed_nothing(&self) {
        assert!(is_alive(self.pid) && is_alive(self.shim), "the container or its shim is gone");
        let found = until("it is found again", || {
            let found = self.machine.inspect("witness");
            (found["status"] != "restoring").then_some(found)
        });
        let pids = ["pid", "shim_pid"].map(|which| found[which].as_u64());
        assert_eq!(pids, [self.pid, self.shim].map(|pid| Some(pid.into())));
        let before = self.numbers().len();
        let after = until("the counter goes on", || Some(self.numbers()).filter(|n| n.len() > before));
        assert!(after.iter().zip(1..).all(|(n, expected)| *n == expected), "{after:?}");
        assert_eq!(self.machine.holdfast(&["exec", "witness", "/bin/sh", "-c", "exit 7"]).code, 7);
    }

    fn numbers(&self) -> Vec<u64> {
        self.machine.holdfast(&["logs", "witness"]).ok().lines().map(|l| l.trim().parse().unwrap()).collect()
    }
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// The control group of version 2 that a process is in.
fn cgroup(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.lines().find_map(|l| l.strip_prefix("0::")).unwrap_or_else(|| panic!("no version 2 in {text}")).to_owned()
}

/// Waits until the supervisor is another process.
fn successor(machine: &Machine, of: u32) -> u32 {
    until("another supervisor takes over", || Some(machine.supervisor()).filter(|pid| *pid != of))
}

#[test]
fn systemd_finds_nothing_to_say_about_the_units() {
    let Some(_machine) = Machine::prepare() else { return };
    // A drop-in is verified with the unit that it is for.
    let units = machine::units().into_iter().map(|u| u.split(".d/").next().unwrap().to_owned());
    let units: Vec<String> = units.filter(|u| u != "containerd.service").collect();
    let units: Vec<&str> = units.iter().map(String::as_str).collect();
    // The manual pages are made by `make install`.
    let said =
        machine::run("systemd-analyze", &[&["verify", "--man=no", "--recursive-errors=yes"], &units[..]].concat());
    let all = said.out + &said.err;
    let ours: Vec<&str> = all.lines().filter(|l| l.contains("holdfast")).collect();
    assert!(said.code == 0 && ours.is_empty(), "{all}");
}

#[test]
fn the_files_for_tmpfiles_and_sysusers_do_what_they_say() {
    let Some(_machine) = Machine::prepare() else { return };
    machine::run("systemd-sysusers", &["/usr/local/lib/sysusers.d/holdfast.conf"]).ok();
    machine::run("systemd-tmpfiles", &["--create", "/usr/local/lib/tmpfiles.d/holdfast.conf"]).ok();
    let groups = fs::read_to_string("/etc/group").unwrap();
    let entry = groups.lines().find(|l| l.starts_with("holdfast:")).expect("a group");
    let gid: u32 = entry.split(':').nth(2).unwrap().parse().unwrap();
    for (path, mode, group) in
        [("/run/holdfast", 0o700, 0), ("/var/lib/holdfast", 0o700, 0), ("/run/holdfast-metrics", 0o2750, gid)]
    {
        let found = fs::metadata(path).unwrap();
        assert_eq!((found.mode() & 0o7777, found.gid()), (mode, group), "{path}");
    }
}

#[test]
fn containers_live_on_when_the_supervisor_is_restarted() {
    let Some(machine) = Machine::prepare() else { return };
    machine.configure_as_installed();
    machine.start();
    let before = machine.supervisor();
    let witness = Witness::start(&machine);
    machine.systemctl(&["restart", "holdfastd.service"]).ok();
    assert_ne!(machine.supervisor(), before);
    witness.has_noticed_nothing();
}

/// `systemctl kill` signals all that is in the unit.
#[test]
fn containers_live_on_when_all_of_the_supervisors_unit_is_killed() {
    let Some(machine) = Machine::prepare() else { return };
    machine.configure_as_installed();
    machine.start();
    let before = machine.supervisor();
    let witness = Witness::start(&machine);
    machine.systemctl(&["kill", "-s", "KILL", "holdfastd.service"]).ok();
    successor(&machine, before);
    witness.has_noticed_nothing();
    assert!(!machine.journal().contains("left-over process"), "something of ours was in the unit");
}

#[test]
fn a_stop_with_live_restore_leaves_containers_running() {
    let Some(machine) = Machine::prepare() else { return };
    machine.configure("live-restore = true\n");
    machine.start();
    let witness = Witness::start(&machine);
    machine.systemctl(&["stop", "holdfastd.service"]).ok();
    assert_eq!(machine.show("holdfastd.service", "Result"), "success");
    assert!(is_alive(witness.pid) && is_alive(witness.shim));
    machine.start();
    witness.has_noticed_nothing();
}

#[test]
fn a_stop_without_live_restore_ends_each_container_by_its_own_signal() {
    let Some(machine) = Machine::prepare() else { return };
    machine.configure("live-restore = false\n");
    machine.start();
    let said = machine.rootfs().join("signals");
    let _ = fs::remove_file(&said);
    for (name, signal) in [("by-term", "TERM"), ("by-usr1", "USR1")] {
        let script = format!("trap 'echo {signal} >>/signals; exit 0' {signal}; echo up; while :; do sleep 0.05; done");
        machine.run_with(name, &["--stop-signal", signal], &script);
        until("its trap is set", || (machine.holdfast(&["logs", name]).out == "up\n").then_some(()));
    }
    let pids = ["by-term", "by-usr1"].map(|name| machine.pid(name, "pid"));
    machine.systemctl(&["stop", "holdfastd.service"]).ok();
    assert_eq!(machine.show("holdfastd.service", "Result"), "success");
    assert_eq!(pids.map(is_alive), [false, false]);
    let text = fs::read_to_string(&said).unwrap();
    let mut signals: Vec<&str> = text.lines().collect();
    signals.sort_unstable();
    assert_eq!(signals, ["TERM", "USR1"]);
    fs::remove_file(&said).unwrap();
}

#[test]
fn a_reload_answers_with_what_became_of_it() {
    let Some(machine) = Machine::prepare() else { return };
    machine.configure("live-restore = false\n");
    machine.start();
    let pid = machine.supervisor();
    let witness = Witness::start(&machine);
    machine.configure("live-restore = true\n");
    machine.systemctl(&["reload", "holdfastd.service"]).ok();
    machine.configure("live-restore = perhaps\n");
    assert_ne!(machine.systemctl(&["reload", "holdfastd.service"]).code, 0, "the file is not valid");
    assert!(machine.journal().contains("live-restore"), "the log names the key: {}", machine.journal());
    assert_eq!(machine.supervisor(), pid, "the same process is active");
    // The valid settings are in force.
    machine.configure("live-restore = true\n");
    machine.systemctl(&["restart", "holdfastd.service"]).ok();
    witness.has_noticed_nothing();
}

#[test]
fn an_upgrade_replaces_the_supervisor_and_leaves_containers_running() {
    let Some(machine) = Machine::prepare() else { return };
    machine.configure_as_installed();
    machine.start();
    let before = machine.supervisor();
    let program = |pid: u32| fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino();
    let old = program(before);
    let witness = Witness::start(&machine);
    machine.install_programs();
    machine.systemctl(&["daemon-reload"]).ok();
    assert_eq!(machine.supervisor(), before);
    machine.systemctl(&["try-restart", "holdfastd.service"]).ok();
    // As a package does that restarts all its units: these two refuse.
    for unit in ["holdfast-containers.service", "holdfast-shutdown.service"] {
        assert_ne!(machine.systemctl(&["try-restart", unit]).code, 0, "{unit}");
        assert_eq!(machine.show(unit, "ActiveState"), "active");
    }
    let after = machine.supervisor();
    assert_ne!(after, before);
    assert_ne!(program(after), old);
    witness.has_noticed_nothing();
    machine.run("new", COUNTER);
    machine.holdfast(&["stop", "witness", "new"]).ok();
    assert_eq!(machine.holdfast(&["wait", "witness"]).code, 143);
}

#[test]
fn a_supervisor_that_is_wedged_is_replaced_and_containers_do_not_notice() {
    let Some(machine) = Machine::prepare() else { return };
    machine.configure("live-restore = true\n");
    machine.override_unit("[Service]\nWatchdogSec=3s\n");
    machine.start();
    let pid = machine.supervisor();
    let witness = Witness::start(&machine);
    let told = || machine.show("holdfastd.service", "WatchdogTimestampMonotonic");
    let first = told();
    until("it tells that it is alive", || (told() != first).then_some(()));
    assert_eq!(machine.supervisor(), pid);
    signal(pid, Signal::SIGSTOP);
    successor(&machine, pid);
    assert!(!is_alive(pid));
    witness.has_noticed_nothing();
}

/// Which would end with the limits of every container, were they below a unit that is not delegated.
#[test]
fn a_daemon_reload_leaves_containers_their_limits() {
    let Some(machine) = Machine::prepare() else { return };
    if is_without_controllers() {
        skip("version 2 of control groups has no controllers here");
        return;
    }
    machine.start();
    let id = machine.run_with("limited", &["--memory", "64m", "--pids-limit", "50", "--cpus", "0.5"], COUNTER);
    let group = format!("/sys/fs/cgroup{CONTAINERS}/{id}");
    let limits = || ["memory.max", "pids.max", "cpu.max"].map(|f| fs::read_to_string(format!("{group}/{f}")).unwrap());
    let expected = ["67108864\n", "50\n", "50000 100000\n"];
    assert_eq!(limits(), expected);
    machine.systemctl(&["daemon-reload"]).ok();
    // Units that come and go have systemd look again at which controllers it needs.
    machine::run("systemd-run", &["--wait", "-p", "IOWeight=200", "-p", "CPUWeight=200", "/bin/true"]).ok();
    machine::run("systemd-run", &["--wait", "--slice=holdfast.slice", "/bin/true"]).ok();
    assert_eq!(limits(), expected);
    assert!(is_alive(machine.pid("limited", "pid")));
}

/// The unit's denials go by the control group, which containers leave.
#[test]
fn what_the_unit_is_denied_neither_it_nor_its_containers_need() {
    let Some(machine) = Machine::prepare() else { return };
    machine.configure("metrics-listen = \"127.0.0.1:9090\"\n");
    machine.start();
    let (_, answer) = http::get(TcpStream::connect("127.0.0.1:9090").unwrap(), "/metrics").unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("\nholdfast_"), "{answer}");
    // Not an address that the unit is allowed.
    let address = Address::add("10.111.0.1");
    let listener = TcpListener::bind((address.0, 0)).unwrap();
    // What is denied is dropped, and so would be tried for minutes.
    let port = listener.local_addr().unwrap().port();
    let reach = |seconds| format!("echo reached | /bin/busybox nc -w {seconds} {} {port}", address.0);
    let denied = ["--wait", "--pipe", "-p", "IPAddressDeny=any", "-p", "IPAddressAllow=localhost"];
    let said = machine::run("systemd-run", &[&denied[..], &["/bin/sh", "-c", &reach(2)]].concat());
    assert_ne!(said.code, 0, "else nothing is denied here");
    listener.set_nonblocking(true).unwrap();
    machine.run_with("reaching", &["--network", "host"], &reach(600));
    let (stream, _) = until("the container gets through", || listener.accept().ok());
    let mut said = String::new();
    BufReader::new(stream).read_line(&mut said).unwrap();
    assert_eq!(said, "reached\n");
    assert_eq!(machine.holdfast(&["wait", "reaching"]).code, 0);
}

/// An address of this machine that is not its loopback's by nature; gone with this.
struct Address(&'static str);

impl Address {
    fn add(address: &'static str) -> Self {
        machine::run("ip", &["link", "set", "lo", "up"]).ok();
        machine::run("ip", &["address", "add", address, "dev", "lo"]).ok();
        Self(address)
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        machine::run("ip", &["address", "del", self.0, "dev", "lo"]);
    }
}

#[test]
fn containers_and_shims_have_a_unit_of_their_own_and_do_not_inherit_what_protects_the_supervisor() {
    let Some(machine) = Machine::prepare() else { return };
    machine.start();
    let supervisor = machine.supervisor();
    let id = machine.run("placed", COUNTER);
    let (pid, shim) = (machine.pid("placed", "pid"), machine.pid("placed", "shim_pid"));
    assert_eq!(cgroup(supervisor), "/system.slice/holdfastd.service");
    assert_eq!(cgroup(shim), format!("{CONTAINERS}/shims"));
    assert_eq!(cgroup(pid), format!("{CONTAINERS}/{id}"));
    let score =
        |pid: u32| -> i32 { fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap() };
    let own = score(supervisor);
    assert_eq!(score(shim), own + 1);
    assert_eq!(score(pid), own.max(0));
    // An exec is one of the container's processes.
    let said = machine.holdfast(&["exec", "placed", "/bin/cat", "/proc/self/oom_score_adj"]).ok();
    assert_eq!(said, own.max(0).to_string());
    machine.holdfast(&["rm", "-f", "placed"]).ok();
    assert!(!fs::exists(format!("/sys/fs/cgroup{CONTAINERS}/{id}")).unwrap());
}

#[test]
fn what_systemd_tells_the_supervisor_reaches_neither_shims_nor_containers() {
    let Some(machine) = Machine::prepare() else { return };
    // With a socket and a watchdog, so that there is everything to be passed on.
    machine.systemctl(&["start", "holdfastd.socket"]).ok();
    machine.start();
    let supervisor = machine.supervisor();
    machine.run("sealed", COUNTER);
    let environment = |pid: u32| {
        let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let names = bytes.split(|b| *b == 0).map(|pair| String::from_utf8_lossy(pair).into_owned());
        names.map(|pair| pair.split('=').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let privates = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "INVOCATION_ID"];
    let of_supervisor = environment(supervisor);
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "INVOCATION_ID"] {
        assert!(of_supervisor.iter().any(|n| n == name), "{name} is there to be passed on: {of_supervisor:?}");
    }
    let sockets = |pid: u32| {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let targets = links.filter_map(|l| fs::read_link(l.path()).ok()).map(|t| t.display().to_string());
        targets.filter(|t| t.starts_with("socket:")).collect::<Vec<_>>()
    };
    let of_supervisor = sockets(supervisor);
    for which in ["shim_pid", "pid"] {
        let pid = machine.pid("sealed", which);
        let names = environment(pid);
        assert!(!names.iter().any(|n| privates.contains(&n.as_str())), "{which}: {names:?}");
        assert!(!sockets(pid).iter().any(|s| of_supervisor.contains(s)), "{which} has a socket of the supervisor");
    }
}

#[test]
fn ready_means_that_the_api_is_served_and_every_container_classified() {
    let Some(machine) = Machine::prepare() else { return };
    machine.configure("live-restore = true\n");
    machine.start();
    let witness = Witness::start(&machine);
    machine.systemctl(&["stop", "holdfastd.service"]).ok();
    // It takes its whole deadline to be classified.
    signal(witness.shim, Signal::SIGSTOP);
    machine.systemctl(&["start", "--no-block", "holdfastd.service"]).ok();
    until("the API is served, ready or not", || UnixStream::connect(API).ok());
    let first = machine.inspect("witness")["status"].clone();
    machine.start();
    let said = machine.inspect("witness")["status"].clone();
    signal(witness.shim, Signal::SIGCONT);
    assert_eq!((first.as_str(), said.as_str()), (Some("restoring"), Some("unresponsive")));
    until("the shim is found again", || {
        (machine.holdfast(&["exec", "witness", "/bin/sh", "-c", "exit 7"]).code == 7).then_some(())
    });
    witness.has_noticed_nothing();
}

#[test]
fn a_client_starts_the_supervisor_through_the_socket_and_is_answered() {
    let Some(machine) = Machine::prepare() else { return };
    machine.configure("live-restore = true\n");
    machine.systemctl(&["start", "holdfastd.socket"]).ok();
    assert_eq!(machine.show("holdfastd.service", "ActiveState"), "inactive");
    machine.holdfast(&["info"]).ok();
    let first = machine.supervisor();
    let witness = Witness::start(&machine);
    machine.systemctl(&["stop", "holdfastd.service"]).ok();
    assert!(!is_alive(first));
    witness.has_noticed_nothing();
    assert_ne!(machine.supervisor(), first);
}

/// With the drop-in; and once containerd is gone for good, as at the machine's end, its containers are ended properly.
#[test]
fn containerds_containers_survive_its_restart_and_are_stopped_when_it_is_gone_at_the_machines_end() {
    let Some(machine) = Machine::prepare() else { return };
    let _unit = machine.unmask_containerd();
    machine.systemctl(&["start", "containerd.service"]).ok();
    let before = machine.show("containerd.service", "MainPID");
    let ended = machine.rootfs().join("ended");
    let script = "trap 'echo TERM >/ended; exit 0' TERM; echo up >/up; while :; do /bin/sleep 0.05; done";
    let rootfs = machine.rootfs().display().to_string();
    // No share of the processor, which ctr asks for unasked: namespaces may have no controller for it.
    let options = ["run", "-d", "--runtime", "io.containerd.holdfast.v2", "--cpu-shares", "0", "--rootfs", &rootfs];
    machine::run("ctr", &[&options[..], &["of-ctr", "/bin/sh", "-c", script]].concat()).ok();
    until("its trap is set", || fs::exists(machine.rootfs().join("up")).unwrap().then_some(()));
    let tasks = || machine::run("ctr", &["task", "ls"]).ok();
    let pid = tasks().lines().last().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    machine.systemctl(&["restart", "containerd.service"]).ok();
    assert_ne!(machine.show("containerd.service", "MainPID"), before);
    assert!(is_alive(pid) && tasks().contains(" RUNNING"), "{}", tasks());
    // As long as there is a containerd, what it has is left to it.
    machine.holdfast(&["stop", "--all", "--shutdown"]).ok();
    assert!(is_alive(pid) && !fs::exists(&ended).unwrap());
    machine.systemctl(&["stop", "containerd.service"]).ok();
    assert!(is_alive(pid));
    let said = machine.holdfast(&["stop", "--all", "--shutdown"]).ok();
    assert!(said.contains("default/of-ctr: stopped by its stop signal"), "{said}");
    assert!(!is_alive(pid));
    assert_eq!(fs::read_to_string(&ended).unwrap(), "TERM\n");
    machine.systemctl(&["start", "containerd.service"]).ok();
    machine::run("ctr", &["task", "rm", "-f", "of-ctr"]);
    machine::run("ctr", &["container", "rm", "of-ctr"]).ok();
    for file in ["up", "ended"] {
        fs::remove_file(machine.rootfs().join(file)).unwrap();
    }
}

/// Who connects in between waits; nobody is refused.
#[test]
fn a_connection_that_is_made_while_the_supervisor_is_away_is_kept_by_the_socket_unit() {
    let Some(machine) = Machine::prepare() else { return };
    machine.systemctl(&["start", "holdfastd.socket"]).ok();
    a_connection_is_kept(&machine);
}

#[test]
fn a_connection_that_is_made_while_the_supervisor_is_away_is_kept_without_the_socket_unit() {
    let Some(machine) = Machine::prepare() else { return };
    a_connection_is_kept(&machine);
    // Once more, with what was kept twice; then with a socket that somebody has removed, and a new one that is kept.
    a_connection_is_kept(&machine);
    fs::remove_file(API).unwrap();
    machine.systemctl(&["restart", "holdfastd.service"]).ok();
    a_connection_is_kept(&machine);
    assert_eq!(machine.show("holdfastd.service", "NFileDescriptorStore"), "1");
}

fn a_connection_is_kept(machine: &Machine) {
    machine.configure("live-restore = true\n");
    machine.start();
    let pid = machine.supervisor();
    // Stopped, it takes no connection any more; this is its successor's, and so is the question.
    signal(pid, Signal::SIGSTOP);
    let mut queued = Connection::open(API).unwrap();
    let question = queued.begin("holdfast.supervisor.v1.Supervisor", "Version", &VersionRequest::new());
    machine.systemctl(&["kill", "-s", "KILL", "holdfastd.service"]).ok();
    let answer: VersionResponse = queued.finish(question).unwrap();
    assert_eq!(answer.version, env!("CARGO_PKG_VERSION"));
    successor(machine, pid);
}
