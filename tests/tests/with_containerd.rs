//! Ring 3: under a private containerd 1.6.20, with real OCI runtimes. Read this one first of the ring.
//!
//! `HOLDFAST_RUNTIME` names another runtime than ours, to see that the tests themselves are right.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::Stdio;
use std::{env, fs};

use holdfast_tests::containerd::{Containerd, RUNTIME};
use holdfast_tests::process::ChildProcess;
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::{Process, Scene, eventually, process, programs};
use nix::sys::signal::Signal;

fn runtime() -> String {
    env::var("HOLDFAST_RUNTIME").unwrap_or_else(|_| RUNTIME.into())
}

/// Whether the test can run; a skip is noted if not.
fn possible() -> bool {
    if is_root() {
        return true;
    }
    skip("needs root");
    false
}

/// How the OCI runtime is chosen.
#[derive(Clone, Copy, Debug)]
enum Oci {
    /// By the shim itself: holdfast-oci, which stands beside it.
    Default,
    /// By a file with runc's path.
    Runc,
}

/// A container of one test.
struct Container<'a> {
    containerd: &'a Containerd<'a>,
    id: String,
    options: Vec<String>,
}

impl<'a> Container<'a> {
    fn new(scene: &Scene, containerd: &'a Containerd<'a>, oci: Oci) -> Self {
        let id = format!("{}-c", scene.id());
        let mut options = vec!["--runtime".to_owned(), runtime()];
        if matches!(oci, Oci::Runc) && runtime() == RUNTIME {
            let path = scene.path("runc.toml");
            let runc = programs::peer("runc").expect("tests/peers.sh provides runc");
            fs::write(&path, format!("BinaryName = {runc:?}\nRoot = {:?}\n", scene.path("runc-root"))).unwrap();
            options.extend(["--runtime-config-path".to_owned(), path.to_str().unwrap().to_owned()]);
        }
        // A control group named after the container, so that one which stays is found.
        options.extend(["--cgroup".to_owned(), format!("/{id}")]);
        Self { containerd, id, options }
    }

    /// `ctr run FLAGS… --rootfs ROOTFS ID /bin/sh -c SCRIPT`.
    fn run_command(&self, flags: &[&str], script: &str) -> std::process::Command {
        let mut command = self.containerd.ctr();
        command.arg("run").args(&self.options).args(flags).arg("--rootfs").arg(self.containerd.rootfs());
        command.args([&self.id, "/bin/sh", "-c", script]);
        command
    }

    #[track_caller]
    fn run(&self, flags: &[&str], script: &str) -> std::process::Output {
        process::run(&mut self.run_command(flags, script))
    }

    #[track_caller]
    fn run_detached(&self, script: &str) -> u32 {
        let output = self.run(&["--detach"], script);
        assert!(output.status.success(), "{}", self.containerd.complain(&output));
        self.containerd.wait_for_status(&self.id, "RUNNING")
    }

    /// The shim's pid.
    fn shim(&self) -> Process {
        let word = format!("-id {}", self.id);
        let pids = process::all().into_iter().filter(|p| {
            let line = process::describe(*p);
            line.contains("containerd-shim") && line.contains(&word)
        });
        Process::of(pids.into_iter().next().expect("a shim"))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn prints_and_exits_with(oci: Oci, script: &str, status: i32) {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let containerd = Containerd::start(&scene);
    let container = Container::new(&scene, &containerd, oci);
    let output = container.run(&["--rm"], &format!("/bin/echo out; /bin/echo err >&2; {script}"));
    let seen = (text(&output.stdout), text(&output.stderr), output.status.code());
    assert_eq!(seen, ("out\n".into(), "err\n".into(), Some(status)), "{}", containerd.complain(&output));
    assert_eq!(containerd.ok(&["container", "ls", "-q"]), "");
}

#[test]
fn run_exits_0() {
    prints_and_exits_with(Oci::Default, "exit 0", 0);
}

#[test]
fn run_exits_7() {
    prints_and_exits_with(Oci::Default, "exit 7", 7);
}

#[test]
fn run_exits_7_with_runc() {
    prints_and_exits_with(Oci::Runc, "exit 7", 7);
}

/// Ends a detached container by `signal` and asks for its status.
#[track_caller]
fn killed_by(oci: Oci, signal: &str, status: u32) {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let containerd = Containerd::start(&scene);
    let container = Container::new(&scene, &containerd, oci);
    // PID 1 of a pid namespace ignores SIGTERM unless it asks for it.
    let pid = container.run_detached("trap 'exit 143' TERM; while :; do /bin/sleep 0.05; done");
    assert!(process::is_alive(pid));
    containerd.ok(&["task", "kill", "-s", signal, &container.id]);
    containerd.wait_for_status(&container.id, "STOPPED");
    assert_eq!(containerd.delete(&container.id), status);
}

#[test]
fn killed_is_137() {
    killed_by(Oci::Default, "SIGKILL", 137);
}

#[test]
fn killed_is_137_with_runc() {
    killed_by(Oci::Runc, "SIGKILL", 137);
}

#[test]
fn terminated_is_143() {
    killed_by(Oci::Default, "SIGTERM", 143);
}

#[test]
fn terminated_is_143_with_runc() {
    killed_by(Oci::Runc, "SIGTERM", 143);
}

#[track_caller]
fn exec_pause_metrics(oci: Oci) {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let containerd = Containerd::start(&scene);
    let container = Container::new(&scene, &containerd, oci);
    container.run_detached("exec /bin/sleep 1000");
    let id = container.id.as_str();
    let exec = |args: &[&str]| containerd.run(&[&["task", "exec", "--exec-id", "e1", id], args].concat());

    let output = exec(&["/bin/sh", "-c", "/bin/echo hello; exit 5"]);
    assert_eq!(
        (text(&output.stdout), output.status.code()),
        ("hello\n".into(), Some(5)),
        "{}",
        containerd.complain(&output)
    );
    let output = exec(&["/no/such/program"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("no such file or directory"), "{}", containerd.complain(&output));

    let pids = containerd.ok(&["task", "ps", id]);
    assert_eq!(pids.lines().count(), 2, "a heading and init: {pids}");
    let metrics = containerd.ok(&["task", "metrics", id]);
    assert!(metrics.contains("memory") && metrics.contains("pids"), "{metrics}");

    containerd.ok(&["task", "pause", id]);
    containerd.wait_for_status(id, "PAUSED");
    containerd.ok(&["task", "resume", id]);
    containerd.wait_for_status(id, "RUNNING");
    containerd.remove(id);
}

#[test]
fn exec_pause_and_metrics() {
    exec_pause_metrics(Oci::Default);
}

#[test]
fn exec_pause_and_metrics_with_runc() {
    exec_pause_metrics(Oci::Runc);
}

#[test]
fn input_and_its_end_reach_the_container() {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let containerd = Containerd::start(&scene);
    let container = Container::new(&scene, &containerd, Oci::Default);
    let out = scene.path("out");
    let mut command = container.run_command(&["--rm"], "/bin/cat; /bin/echo end");
    command.stdin(Stdio::piped()).stdout(fs::File::create(&out).unwrap());
    let mut ctr = ChildProcess::spawn(&mut command);
    let mut input = ctr.child().stdin.take().unwrap();
    input.write_all(b"some input\n").unwrap();
    // Only then the end: ctr does not pass one on that comes before it has made the task.
    let printed = || fs::read_to_string(&out).unwrap();
    eventually("cat should print", || if printed() == "some input\n" { Ok(()) } else { Err(printed()) });
    drop(input);
    assert!(ctr.wait().success());
    assert_eq!(printed(), "some input\nend\n");
}

#[test]
fn a_terminal_works() {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let containerd = Containerd::start(&scene);
    let container = Container::new(&scene, &containerd, Oci::Default);
    // ctr wants a terminal itself; script(1) gives it one.
    let mut inner = container.run_command(&["--rm", "--tty"], "/bin/tty; exit 9");
    let words: Vec<String> = std::iter::once(inner.get_program())
        .chain(inner.get_args())
        .map(|w| format!("'{}'", w.to_str().unwrap()))
        .collect();
    inner = scene.command("/usr/bin/script");
    inner.args(["--quiet", "--return", "--log-out", "/dev/null", "--command", &words.join(" ")]);
    let output = process::run(&mut inner);
    let seen = text(&output.stdout).replace('\r', "");
    assert!(seen.contains("/dev/pts/0\n") || seen.contains("/dev/console\n"), "{}", containerd.complain(&output));
    assert_eq!(output.status.code(), Some(9), "{seen}");
}

#[test]
fn a_container_runs_on_while_containerd_is_killed_and_is_found_again() {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let mut containerd = Containerd::start(&scene);
    let (id, pid, shim) = {
        let container = Container::new(&scene, &containerd, Oci::Default);
        let pid = container.run_detached("while :; do /bin/sleep 0.05; done");
        (container.id.clone(), pid, container.shim())
    };
    containerd.kill();
    assert!(process::is_alive(pid) && shim.is_alive());
    containerd.resume();
    assert_eq!(containerd.task(&id), Some(("RUNNING".into(), pid)));
    assert!(shim.is_alive());
    let output = containerd.run(&["task", "exec", "--exec-id", "after", &id, "/bin/echo", "still here"]);
    assert_eq!(text(&output.stdout), "still here\n", "{}", containerd.complain(&output));
    containerd.remove(&id);
    shim.wait_gone();
}

#[track_caller]
fn exited_while_down(oci: Oci, script: &str, signal: Option<Signal>, status: u32) {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let mut containerd = Containerd::start(&scene);
    let gate = scene.path("rootfs/gate");
    let (id, pid) = {
        let container = Container::new(&scene, &containerd, oci);
        let pid = container.run_detached(&format!("while [ ! -e /gate ]; do /bin/sleep 0.02; done; {script}"));
        (container.id, pid)
    };
    containerd.kill();
    match signal {
        None => fs::write(&gate, "").unwrap(),
        Some(signal) => Process::of(pid).signal(signal),
    }
    eventually("the container should end", || if process::is_alive(pid) { Err(pid) } else { Ok(()) });
    containerd.resume();
    containerd.wait_for_status(&id, "STOPPED");
    assert_eq!(containerd.delete(&id), status);
}

#[test]
fn a_status_of_0_is_not_lost_while_containerd_is_down() {
    exited_while_down(Oci::Default, "exit 0", None, 0);
}

#[test]
fn a_status_of_7_is_not_lost_while_containerd_is_down() {
    exited_while_down(Oci::Default, "exit 7", None, 7);
}

#[test]
fn a_status_of_7_is_not_lost_while_containerd_is_down_with_runc() {
    exited_while_down(Oci::Runc, "exit 7", None, 7);
}

#[test]
fn a_status_of_137_is_not_lost_while_containerd_is_down() {
    exited_while_down(Oci::Default, "exit 0", Some(Signal::SIGKILL), 137);
}

#[test]
fn a_status_of_143_is_not_lost_while_containerd_is_down() {
    exited_while_down(Oci::Default, "exit 143", None, 143);
}

#[test]
fn an_attached_client_gets_the_whole_of_a_large_output() {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let containerd = Containerd::start(&scene);
    let container = Container::new(&scene, &containerd, Oci::Default);
    let pattern: Vec<u8> = (0..1_u32 << 20).flat_map(|n| format!("{n:07x}\n").into_bytes()).collect();
    fs::write(containerd.rootfs().join("pattern"), &pattern).unwrap();
    let output = container.run(&["--rm"], "/bin/dd if=/pattern bs=65536 2>/dev/null; exit 2");
    let first = output.stdout.iter().zip(&pattern).position(|(a, b)| a != b);
    let seen = (output.stdout.len(), first, output.status.code());
    assert_eq!(
        seen,
        (pattern.len(), None, Some(2)),
        "{}",
        containerd.complain(&std::process::Output { stdout: vec![], ..output })
    );
}

#[test]
fn a_killed_shim_is_cleaned_up_after() {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let containerd = Containerd::start(&scene);
    let container = Container::new(&scene, &containerd, Oci::Default);
    let pid = container.run_detached("exec /bin/sleep 1000");
    container.shim().kill();
    // containerd runs our delete command, which ends the container.
    eventually("the container should be gone", || {
        if process::is_alive(pid) { Err(process::describe(pid)) } else { Ok(()) }
    });
    eventually("the task should be gone", || containerd.task(&container.id).map_or(Ok(()), Err));
    containerd.ok(&["container", "delete", &container.id]);
}

#[test]
fn a_failed_create_leaves_nothing_and_says_why() {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let containerd = Containerd::start(&scene);
    for oci in [Oci::Default, Oci::Runc] {
        let container = Container::new(&scene, &containerd, oci);
        let mut command = containerd.ctr();
        command.arg("run").args(&container.options).args(["--rm", "--rootfs"]).arg(containerd.rootfs());
        let output = process::run(command.args([&container.id, "/no/such/program"]));
        assert!(!output.status.success());
        assert!(
            text(&output.stderr).contains("no such file or directory"),
            "{oci:?}: {}",
            containerd.complain(&output)
        );
        eventually("no shim should be left", || {
            let left: Vec<_> = process::marked(scene.id()).into_iter().map(process::describe).collect();
            let left: Vec<_> = left.into_iter().filter(|l| l.contains("containerd-shim")).collect();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        containerd.run(&["container", "delete", &container.id]);
    }
}

#[test]
fn events_are_published() {
    if !possible() {
        return;
    }
    let scene = Scene::new();
    let containerd = Containerd::start(&scene);
    let out = fs::File::create(scene.path("events")).unwrap();
    let _listener =
        ChildProcess::spawn(containerd.ctr().arg("events").stdin(Stdio::null()).stdout(out).stderr(Stdio::null()));
    let events = || fs::read_to_string(scene.path("events")).unwrap_or_default();
    // The subscription has begun when an event of ours shows.
    let mut n = 0;
    eventually("ctr events should listen", || {
        n += 1;
        containerd.run(&["namespace", "create", &format!("probe{n}")]);
        if events().contains("/namespaces/create") { Ok(()) } else { Err(events()) }
    });
    let container = Container::new(&scene, &containerd, Oci::Default);
    container.run(&["--rm"], "exit 3");
    eventually(
        "the last event should come",
        || if events().contains("/tasks/delete") { Ok(()) } else { Err(events()) },
    );
    let topics: Vec<String> = events()
        .lines()
        .filter_map(|l| l.split_whitespace().find(|w| w.starts_with("/tasks/")).map(str::to_owned))
        .collect();
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    assert!(events().contains("\"exit_status\":3"), "{}", events());
}
