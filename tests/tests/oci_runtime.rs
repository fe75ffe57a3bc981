//! Ring 3: `holdfast-oci` as its callers see it: real containers, as root.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use holdfast_tests::oci_bundle::Bundle;
use holdfast_tests::process::is_alive;
use holdfast_tests::skip::skip;
use holdfast_tests::until;
use serde_json::{Value, json};

fn bundle() -> Option<Bundle> {
    Bundle::new("holdfast-oci")
}

#[test]
fn a_container_lives_from_create_to_delete_and_leaves_nothing() {
    let Some(c) = bundle() else { return };
    c.write(&c.spec(&["sh", "-c", "echo hello; exec sleep 1000"]));
    c.create(&["--pid-file", "pid"]).unwrap();
    assert_eq!(c.status(), "created");
    assert_eq!(fs::read_to_string(c.dir().join("pid")).unwrap(), c.state()["pid"].to_string());
    assert_eq!(c.output(), "", "the program must not run before start");
    c.ok(&["start", c.id()]);
    assert_eq!(c.status(), "running");
    until("output", || (c.output() == "hello\n").then_some(()));
    assert!(c.fails(&["start", c.id()]).contains("cannot start an already running container"));
    assert!(c.fails(&["delete", c.id()]).contains("not stopped"));
    c.ok(&["kill", c.id(), "KILL"]);
    c.until("stopped");
    assert_eq!(c.state()["pid"], 0);
    assert!(c.fails(&["kill", c.id(), "TERM"]).contains("container not running"));
    c.ok(&["delete", c.id()]);
    assert!(!c.state_dir().exists());
    assert_eq!(c.cgroups(), Vec::<std::path::PathBuf>::new());
    assert!(c.fails(&["state", c.id()]).contains("container does not exist"));
}

#[test]
fn an_id_can_be_used_once() {
    let Some(c) = bundle() else { return };
    c.create(&[]).unwrap();
    let pid = c.pid();
    assert!(c.create(&[]).unwrap_err().contains("already exists"));
    assert_eq!(c.status(), "created");
    assert!(is_alive(pid), "the failed create must not harm the first container");
}

#[test]
fn a_paused_container_that_gets_a_signal_is_still_paused_and_can_be_resumed() {
    let Some(c) = bundle() else { return };
    c.write(&c.spec(&["sh", "-c", "trap 'echo hup' HUP; echo ready; while :; do sleep 0.01; done"]));
    c.start();
    // Before that the signal would find no handler, and the first process of a pid namespace ignores it then.
    until("ready", || (c.output() == "ready\n").then_some(()));
    c.ok(&["pause", c.id()]);
    assert_eq!(c.status(), "paused");
    assert!(c.fails(&["exec", c.id(), "true"]).contains("paused"));
    c.ok(&["kill", c.id(), "HUP"]);
    assert_eq!(c.status(), "paused");
    assert_eq!(c.output(), "ready\n");
    c.ok(&["resume", c.id()]);
    assert_eq!(c.status(), "running");
    until("the trap", || c.output().contains("hup").then_some(()));
    assert!(c.fails(&["resume", c.id()]).contains("not paused"));
}

#[test]
fn what_the_caller_ignores_is_not_ignored_inside() {
    let Some(c) = bundle() else { return };
    c.write(&c.spec(&["sh", "-c", "grep SigIgn /proc/self/status; exec sleep 1000"]));
    let plain = c.command();
    let ignoring = Command::new("/bin/sh")
        .args(["-c", "trap '' HUP INT PIPE USR1; exec \"$@\"", "sh"])
        .arg(plain.get_program())
        .args(plain.get_args())
        .args(["create", "--bundle", c.dir().to_str().unwrap(), c.id()])
        .stdout(fs::File::create(c.dir().join("output")).unwrap())
        .status();
    assert!(ignoring.unwrap().success());
    c.ok(&["start", c.id()]);
    until("its own words", || c.output().ends_with('\n').then_some(()));
    assert_eq!(c.output(), "SigIgn:\t0000000000000000\n");
}

#[test]
fn a_created_container_that_gets_a_signal_can_still_be_started() {
    let Some(c) = bundle() else { return };
    c.create(&[]).unwrap();
    c.ok(&["kill", c.id(), "SIGUSR1"]);
    assert_eq!(c.status(), "created");
    c.ok(&["start", c.id()]);
    assert_eq!(c.status(), "running");
}

#[test]
fn a_paused_container_can_be_killed() {
    let Some(c) = bundle() else { return };
    c.start();
    c.ok(&["pause", c.id()]);
    c.ok(&["kill", c.id(), "9"]);
    c.until("stopped");
}

#[test]
fn a_process_that_got_the_containers_pid_later_is_not_signalled() {
    let Some(c) = bundle() else { return };
    c.start();
    let pid = c.pid();
    let file = c.state_dir().join("state.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let original = record.clone();
    let start = record["init"]["start_time"].as_u64().unwrap();
    record["init"]["start_time"] = json!(start - 1);
    fs::write(&file, record.to_string()).unwrap();
    assert_eq!(c.status(), "stopped");
    assert!(c.fails(&["kill", c.id(), "KILL"]).contains("container not running"));
    assert!(is_alive(pid));
    fs::write(&file, original.to_string()).unwrap();
    assert_eq!(c.status(), "running");
}

#[test]
fn kill_all_reaches_every_process_of_the_cgroup() {
    let Some(c) = bundle() else { return };
    let mut spec = c.spec(&["sh", "-c", "sleep 1000 & sleep 1000 & echo ready; wait"]);
    // Without a pid namespace the children outlive the first process.
    spec["linux"]["namespaces"] = json!([{ "type": "mount" }]);
    c.write(&spec);
    c.start();
    until("ready", || c.output().contains("ready").then_some(()));
    let pids: Vec<u32> = serde_json::from_str(&c.ok(&["ps", "--format", "json", c.id()])).unwrap();
    assert_eq!(pids.len(), 3);
    c.ok(&["kill", c.id(), "KILL"]);
    c.until("stopped");
    c.ok(&["kill", "--all", c.id(), "9"]);
    until("all gone", || (!pids.iter().any(|&pid| is_alive(pid))).then_some(()));
    assert_eq!(c.ok(&["ps", "--format", "json", c.id()]).trim(), "null");
}

#[test]
fn a_failed_create_leaves_nothing() {
    let Some(c) = bundle() else { return };
    let with = |change: &dyn Fn(&mut Value)| {
        let mut spec = c.spec(&["sleep", "1000"]);
        change(&mut spec);
        spec
    };
    let mount = |mount: Value| with(&|spec| spec["mounts"].as_array_mut().unwrap().push(mount.clone()));
    let hook = with(&|spec| spec["hooks"] = json!({ "createRuntime": [{ "path": "/bin/false" }] }));
    for (what, spec, phrase) in [
        ("no program", c.spec(&["nope"]), "exec: \"nope\": executable file not found in $PATH"),
        ("no file", c.spec(&["/no/pe"]), "no such file or directory"),
        ("not executable", c.spec(&["/proc/version"]), "permission denied"),
        ("bad filesystem", mount(json!({ "destination": "/x", "type": "nofs", "source": "x" })), "no such device"),
        (
            "no source",
            mount(json!({ "destination": "/x", "type": "bind", "source": "/no/pe", "options": ["bind"] })),
            "no such file or directory",
        ),
        ("hook", hook, "error running createRuntime hook #0 (\"/bin/false\")"),
        ("label", with(&|spec| spec["process"]["selinuxLabel"] = json!("a:b:c")), "process.selinuxLabel"),
        ("capability", with(&|spec| spec["process"]["capabilities"] = json!({ "bounding": ["CAP_X"] })), "CAP_X"),
    ] {
        c.write(&spec);
        let _ = fs::remove_file(c.dir().join("log.json"));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let error = c.create(&[]).unwrap_err();
        assert!(error.contains(phrase), "{what}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{what}: {error}");
        let line = fs::read_to_string(c.dir().join("log.json")).unwrap();
        let line: Value = serde_json::from_str(line.lines().last().unwrap()).unwrap();
        assert_eq!(line["level"], "error");
        assert!(line["msg"].as_str().unwrap().contains(phrase), "{what}: {line}");
        assert!(!c.state_dir().exists(), "{what}");
        assert_eq!(c.cgroups(), Vec::<std::path::PathBuf>::new(), "{what}");
        let left = mounted(&mounts);
        assert!(
            mounted(&fs::read_to_string("/proc/self/mountinfo").unwrap())
                .iter()
                .all(|m| left.contains(m) || !m.contains(c.id())),
            "{what}"
        );
    }
}

#[test]
fn a_root_filesystem_without_a_mount_on_dev_can_be_used_twice() {
    let Some(c) = bundle() else { return };
    let mut spec = c.spec(&["true"]);
    spec["mounts"] = json!([]);
    c.write(&spec);
    for _ in 0..2 {
        c.create(&[]).unwrap();
        c.ok(&["delete", "--force", c.id()]);
    }
}

#[test]
fn a_dev_that_leads_out_of_the_root_filesystem_is_refused() {
    let Some(c) = bundle() else { return };
    let outside = c.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::remove_dir(c.rootfs().join("dev")).unwrap();
    std::os::unix::fs::symlink(&outside, c.rootfs().join("dev")).unwrap();
    assert!(c.create(&[]).unwrap_err().contains("must not be a symbolic link"));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

fn mounted(mountinfo: &str) -> Vec<String> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect()
}

#[test]
fn delete_with_force_takes_whatever_there_is() {
    let Some(c) = bundle() else { return };
    c.ok(&["delete", "--force", c.id()]);
    assert!(c.fails(&["delete", c.id()]).contains("container does not exist"));
    // What a create leaves that is killed at once.
    fs::create_dir_all(c.state_dir()).unwrap();
    c.ok(&["delete", "--force", c.id()]);
    assert!(!c.state_dir().exists());
    c.start();
    let pid = c.pid();
    c.ok(&["delete", "--force", c.id()]);
    assert!(!is_alive(pid));
    assert!(!c.state_dir().exists());
    assert!(c.cgroups().is_empty());
}

#[test]
fn exec_runs_in_the_container_and_returns_the_exit_code() {
    let Some(c) = bundle() else { return };
    c.start();
    let output = c.run(&[
        "exec",
        "--env",
        "A=b",
        "--user",
        "7:8",
        "--cwd",
        "/tmp",
        c.id(),
        "sh",
        "-c",
        "echo $A; id -u; id -g; pwd; exit 7",
    ]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "b\n7\n8\n/tmp\n");
    assert_eq!(c.run(&["exec", c.id(), "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert!(c.fails(&["exec", c.id(), "nope"]).contains("executable file not found in $PATH"));
    c.ok(&["kill", c.id(), "9"]);
    c.until("stopped");
    assert!(c.fails(&["exec", c.id(), "true"]).contains("not running"));
}

/// A shim may stay where its first container was.
#[test]
fn create_and_exec_work_in_a_directory_that_was_removed() {
    let Some(c) = bundle() else { return };
    let gone = c.dir().join("gone");
    let script = "mkdir \"$1\" && cd \"$1\" && rmdir \"$1\" && shift && exec \"$@\"";
    let run = |args: &[&str]| {
        let inner = c.command();
        let mut outer = Command::new("/bin/sh");
        outer.args(["-c", script, "sh"]).arg(&gone).arg(inner.get_program()).args(inner.get_args()).args(args);
        let output =
            outer.stdout(Stdio::null()).stderr(fs::File::create(c.dir().join("err")).unwrap()).status().unwrap();
        assert!(output.success(), "{args:?}: {}", fs::read_to_string(c.dir().join("err")).unwrap());
    };
    c.write(&c.spec(&["sleep", "1000"]));
    run(&["create", "--bundle", c.dir().to_str().unwrap(), c.id()]);
    run(&["start", c.id()]);
    run(&["exec", c.id(), "true"]);
    run(&["delete", "--force", c.id()]);
}

#[test]
fn a_detached_exec_is_listed_and_named_in_its_pid_file() {
    let Some(c) = bundle() else { return };
    c.start();
    let process =
        json!({ "user": { "uid": 0, "gid": 0 }, "args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"] });
    fs::write(c.dir().join("process.json"), process.to_string()).unwrap();
    let mut command = c.command();
    command.args(["exec", "--process", "process.json", "--detach", "--pid-file", "exec.pid", c.id()]);
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
    let pid: u32 = fs::read_to_string(c.dir().join("exec.pid")).unwrap().parse().unwrap();
    let pids: Vec<u32> = serde_json::from_str(&c.ok(&["ps", "--format", "json", c.id()])).unwrap();
    assert!(pids.contains(&pid) && pids.len() == 2, "{pids:?}");
    // The payload has been executed when exec returns.
    assert!(fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().starts_with("sleep"));
}

#[test]
fn neither_create_nor_exec_leaks_a_descriptor() {
    let Some(c) = bundle() else { return };
    c.write(&c.spec(&["sh", "-c", "ls /proc/self/fd; exec sleep 1000"]));
    // One that is not closed on exec, as a careless caller leaves it.
    let leak = fs::File::open("/etc/hostname").unwrap();
    let copy = nix::unistd::dup(&leak).unwrap();
    c.start();
    // ls has one more, for the directory it reads.
    until("ls", || (c.output().lines().count() >= 4).then_some(()));
    assert_eq!(c.output(), "0\n1\n2\n3\n");
    assert_eq!(c.ok(&["exec", c.id(), "ls", "/proc/self/fd"]), "0\n1\n2\n3\n");
    drop(copy);
}

#[test]
fn a_container_cannot_write_to_the_runtime_that_entered_it() {
    let Some(c) = bundle() else { return };
    if !c.runtime_is_static() {
        return skip("the runtime needs a loader, which the container has not");
    }
    c.start();
    let rootfs = c.rootfs();
    nix::unistd::mkfifo(&rootfs.join("tmp/fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    // The container makes the runtime execute itself; it then waits for a reader of its log.
    let mut inside = c.command();
    inside.args(["exec", c.id(), "/proc/self/exe", "--root", "/none", "--log", "/tmp/fifo", "state", "x"]);
    let mut inside = inside.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let find = "for p in /proc/[0-9]*; do grep -q fifo $p/cmdline 2>/dev/null && echo ${p#/proc/}; done";
    let pid = until("the runtime in the container", || {
        c.ok(&["exec", c.id(), "sh", "-c", find]).lines().find_map(|line| {
            let is_runtime = c.ok(&["exec", c.id(), "sh", "-c", &format!("readlink /proc/{line}/exe || true")]);
            is_runtime.contains("holdfast").then(|| line.to_owned())
        })
    });
    // While it runs the file is busy anyway: what counts is whether it can be written afterwards.
    let attack = format!(
        "exec 9</proc/{pid}/exe; cat /tmp/fifo >/dev/null; while [ -e /proc/{pid}/exe ] && readlink /proc/{pid}/exe >/dev/null; do sleep 0.01; done; (echo x >>/proc/self/fd/9) 2>&1; exit 0"
    );
    let answer = c.ok(&["exec", c.id(), "sh", "-c", &attack]);
    inside.wait().unwrap();
    assert!(answer.contains("Read-only file system") || answer.contains("Operation not permitted"), "{answer}");
}

#[test]
fn the_seccomp_filter_holds_for_execs_too() {
    let Some(c) = bundle() else { return };
    let mut spec = c.spec(&["sleep", "1000"]);
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }],
    });
    c.write(&spec);
    c.start();
    let output = c.run(&["exec", c.id(), "mkdir", "/tmp/x"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("Operation not permitted"));
    assert!(!c.rootfs().join("tmp/x").exists());
}

#[test]
fn an_exec_is_in_the_user_namespace_of_its_container() {
    let Some(c) = bundle() else { return };
    let mut spec = c.spec(&["sleep", "1000"]);
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    // More than one mapping each needs no helper program.
    let mappings = json!([
        { "containerID": 0, "hostID": 100_000, "size": 1000 },
        { "containerID": 1000, "hostID": 300_000, "size": 10 },
    ]);
    spec["linux"]["uidMappings"] = mappings.clone();
    spec["linux"]["gidMappings"] = mappings;
    c.write(&spec);
    c.start();
    let map = |text: &str| text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<String>>();
    let expected = ["0", "100000", "1000", "1000", "300000", "10"];
    assert_eq!(map(&c.ok(&["exec", c.id(), "cat", "/proc/self/uid_map"])), expected);
    let pid = c.pid();
    assert_eq!(map(&fs::read_to_string(format!("/proc/{pid}/gid_map")).unwrap()), expected);
}

#[test]
fn a_process_without_capabilities_in_its_specification_has_none() {
    let Some(c) = bundle() else { return };
    c.start();
    let status = c.ok(&["exec", c.id(), "grep", "^Cap", "/proc/self/status"]);
    for line in status.lines() {
        assert!(line.ends_with("0000000000000000"), "{status}");
    }
    let status = c.ok(&["exec", "--cap", "CAP_KILL", c.id(), "grep", "^CapEff", "/proc/self/status"]);
    assert!(status.trim().ends_with("0000000000000020"), "{status}");
}

#[test]
fn sigpipe_is_not_ignored_in_the_container() {
    let Some(c) = bundle() else { return };
    c.start();
    let ignored = c.ok(&["exec", c.id(), "grep", "^SigIgn", "/proc/self/status"]);
    let mask = u64::from_str_radix(ignored.split_ascii_whitespace().last().unwrap(), 16).unwrap();
    assert_eq!(mask & 1 << (nix::sys::signal::Signal::SIGPIPE as i32 - 1), 0);
}

#[test]
fn a_device_that_no_rule_allows_cannot_be_opened() {
    let Some(c) = bundle() else { return };
    let mut spec = c.spec(&["sleep", "1000"]);
    let sets = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_SYS_RAWIO"]);
    spec["process"]["capabilities"] = json!({ "bounding": sets, "effective": sets, "permitted": sets });
    c.write(&spec);
    c.start();
    let script = "mknod /tmp/kmsg c 1 11 && mknod /tmp/null c 1 3; head -c0 /tmp/kmsg; echo x >/tmp/null && echo fine";
    let output = c.run(&["exec", c.id(), "sh", "-c", script]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("/tmp/kmsg: Operation not permitted"), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "fine\n");
}

#[test]
fn the_terminal_goes_to_the_console_socket_with_its_size() {
    let Some(c) = bundle() else { return };
    let mut spec = c.spec(&["sh", "-c", "stty size; exec sleep 1000"]);
    spec["process"]["terminal"] = json!(true);
    spec["process"]["consoleSize"] = json!({ "height": 17, "width": 93 });
    c.write(&spec);
    assert!(c.create(&[]).unwrap_err().contains("console socket"));
    let path = c.dir().join("console");
    let listener = UnixListener::bind(&path).unwrap();
    c.create(&["--console-socket", path.to_str().unwrap()]).unwrap();
    let mut master = receive(&listener);
    c.ok(&["start", c.id()]);
    assert_eq!(line(&mut master), "17 93");
    let mut command = c.command();
    command.args([
        "exec",
        "--tty",
        "--detach",
        "--console-socket",
        path.to_str().unwrap(),
        c.id(),
        "sh",
        "-c",
        "test -t 0 && echo tty; sleep 1000",
    ]);
    assert!(command.stdout(Stdio::null()).status().unwrap().success());
    assert_eq!(line(&mut receive(&listener)), "tty");
}

fn receive(listener: &UnixListener) -> fs::File {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
    let (stream, _) = listener.accept().unwrap();
    let mut text = [0; 64];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut buffers = [std::io::IoSliceMut::new(&mut text)];
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::empty()).unwrap();
    let rights = message.cmsgs().unwrap().next().unwrap();
    let ControlMessageOwned::ScmRights(fds) = rights else { panic!("no descriptor: {rights:?}") };
    assert_eq!(fds.len(), 1);
    #[allow(unsafe_code)]
    // SAFETY: the kernel has just made the descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fds[0]) };
    fd.into()
}

/// Reads up to the first line end.
fn line(terminal: &mut fs::File) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while terminal.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

#[test]
fn update_changes_limits() {
    let Some(c) = bundle() else { return };
    let unified = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if !unified.contains("pids") && !fs::exists("/sys/fs/cgroup/pids").unwrap() {
        return skip("there is no pids controller");
    }
    let mut spec = c.spec(&["sleep", "1000"]);
    spec["linux"]["resources"]["pids"] = json!({ "limit": 50 });
    c.write(&spec);
    c.start();
    let limit = || c.cgroups().iter().find_map(|dir| fs::read_to_string(dir.join("pids.max")).ok());
    assert_eq!(limit().unwrap().trim(), "50");
    let devices = || c.cgroups().iter().find_map(|dir| fs::read_to_string(dir.join("devices.list")).ok());
    let allowed = devices();
    fs::write(c.dir().join("limits.json"), json!({ "pids": { "limit": 33 } }).to_string()).unwrap();
    let mut command = c.command();
    let input = fs::File::open(c.dir().join("limits.json")).unwrap();
    assert!(command.args(["update", "--resources=-", c.id()]).stdin(input).status().unwrap().success());
    assert_eq!(limit().unwrap().trim(), "33");
    c.ok(&["update", "--pids-limit", "44", c.id()]);
    assert_eq!(limit().unwrap().trim(), "44");
    assert_eq!(devices(), allowed, "a change of limits must not open devices");
}

#[test]
fn mounts_have_the_propagation_that_was_asked_for() {
    let Some(c) = bundle() else { return };
    let mut spec = c.spec(&["sleep", "1000"]);
    let source = c.dir().to_str().unwrap();
    for (destination, propagation) in [("/private", "rprivate"), ("/slave", "rslave"), ("/shared", "rshared")] {
        spec["mounts"].as_array_mut().unwrap().push(
            json!({ "destination": destination, "type": "bind", "source": source, "options": ["rbind", propagation] }),
        );
    }
    c.write(&spec);
    c.start();
    let table = c.ok(&["exec", c.id(), "cat", "/proc/self/mountinfo"]);
    let fields = |destination: &str| {
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some(destination)).unwrap();
        line.split(' ').skip(6).take_while(|&field| field != "-").collect::<Vec<&str>>().join(" ")
    };
    assert_eq!(fields("/private"), "");
    assert!(fields("/shared").starts_with("shared:"), "{table}");
    assert!(!fields("/slave").contains("shared:"), "{table}");
}
