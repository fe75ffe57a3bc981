//! Ring 3: pods without CRI, as ctr can put them together: one shim for each, what their containers share, and what remains
//! each container's own. `tasks_under_containerd.rs` has the same for containerd's own annotation of a group.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_proto::record::Record;
use holdfast_tests::container::Container;
use holdfast_tests::containerd::NAMESPACE;
use holdfast_tests::matrix::Real;
use holdfast_tests::{Process, eventually, process, programs};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

holdfast_tests::matrix!(
    containers_of_a_sandbox_share_a_shim_and_have_bundles_and_records_of_their_own,
    containers_of_a_pod_share_namespaces_and_memory,
    all_of_a_container_ends_with_its_init_in_a_shared_pid_namespace_and_nothing_else,
    the_end_of_the_sandbox_ends_the_pod_and_each_container_tells_its_status,
    lack_of_memory_in_one_container_touches_no_other_of_its_pod,
    a_pod_is_found_again_with_the_status_of_what_ended_meanwhile,
    a_pod_whose_shim_was_killed_is_cleaned_up_after,
);

/// A container that runs until it is killed.
const SLEEPER: &str = "exec /bin/sleep 1000";

/// Three processes, which end with status 7 when they are asked to.
const FAMILY: &str = "trap 'exit 7' USR1; /bin/sleep 1001 & /bin/sleep 1002 & wait";

/// The namespaces that the containers of a pod share here, by ctr's names and by those in `/proc`.
const SHARED: [(&str, &str); 4] = [("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("network", "net")];

/// A pod as CRI makes them: first comes the sandbox, a container that does nothing but have the namespaces.
struct Pod<'a> {
    real: &'a Real<'a>,
    sandbox: Container<'a>,
    /// The sandbox's process, the first one of the pid namespace.
    pid: u32,
    shim: Process,
    shm: PathBuf,
}

impl<'a> Pod<'a> {
    #[track_caller]
    fn begin(real: &'a Real<'a>) -> Self {
        let sandbox = real.numbered(0);
        let shm = real.scene.make_dir("shm");
        mount(Some("shm"), &shm, Some("tmpfs"), MsFlags::MS_NOSUID, Some("size=65536k")).unwrap();
        // While it waits it reaps what is left to it, as the first process of a pid namespace must.
        let reap = "/bin/sleep 1000 & wait";
        let output = sandbox.run(&["--detach", "--annotation", &annotation(&sandbox), "--mount", &shared(&shm)], reap);
        assert!(output.status.success(), "{}", real.containerd.complain(&output));
        let pid = real.containerd.wait_for_status(&sandbox.id, "RUNNING");
        let shim = Process::of(sandbox.shim_pid());
        Self { real, sandbox, pid, shim, shm }
    }

    /// Runs one of its containers; gives its process, too.
    #[track_caller]
    fn run(&self, n: usize, more: &[&str], script: &str) -> (Container<'a>, u32) {
        let container = self.real.numbered(n);
        let joined = SHARED.map(|(kind, name)| format!("{kind}:/proc/{}/ns/{name}", self.pid));
        let (annotation, shm) = (annotation(&self.sandbox), shared(&self.shm));
        let mut flags = vec!["--detach", "--annotation", &annotation, "--mount", &shm];
        flags.extend(joined.iter().flat_map(|namespace| ["--with-ns", namespace.as_str()]));
        let output = container.run(&[&flags, more].concat(), script);
        assert!(output.status.success(), "{}", self.real.containerd.complain(&output));
        let pid = process_of(self.real, &container);
        (container, pid)
    }

    /// Ends and deletes one of its containers, and sees that it was alone in that.
    #[track_caller]
    fn remove(&self, container: &Container<'_>) {
        self.real.containerd.ok(&["task", "kill", "-s", "SIGKILL", &container.id]);
        self.real.containerd.wait_for_status(&container.id, "STOPPED");
        assert_eq!(self.real.containerd.delete(&container.id), 137);
        assert!(self.shim.is_alive() && process::is_alive(self.pid));
    }

    /// Ends what is left of it, the sandbox: the shim goes with the last container.
    #[track_caller]
    fn end(self) {
        self.real.containerd.remove(&self.sandbox.id);
        self.shim.wait_gone();
        umount(&self.shm).unwrap();
    }
}

fn annotation(sandbox: &Container<'_>) -> String {
    format!("io.kubernetes.cri.sandbox-id={}", sandbox.id)
}

/// `/dev/shm` of all containers, in ctr's words.
fn shared(shm: &Path) -> String {
    format!("type=bind,src={},dst=/dev/shm,options=rbind:rw", shm.display())
}

/// Its first process, also when that has ended.
#[track_caller]
fn process_of(real: &Real<'_>, container: &Container<'_>) -> u32 {
    real.containerd.task(&container.id).expect("a task").1
}

/// Runs a script in the container, which must succeed; what it printed.
#[track_caller]
fn ask(real: &Real<'_>, container: &Container<'_>, script: &str) -> String {
    let output = container.exec("ask", &[], &["/bin/sh", "-c", script]);
    assert!(output.status.success(), "{}", real.containerd.complain(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn assert_serves(real: &Real<'_>, containers: &[&Container<'_>]) {
    for container in containers {
        real.containerd.wait_for_status(&container.id, "RUNNING");
        assert_eq!(ask(real, container, "echo here"), "here\n");
    }
}

/// Waits until the container has so many processes.
#[track_caller]
fn wait_for_pids(container: &Container<'_>, count: usize) -> Vec<u32> {
    eventually("its processes should be there", || match container.pids() {
        pids if pids.len() == count => Ok(pids),
        other => Err(other),
    })
}

fn record_path(real: &Real<'_>, container: &Container<'_>) -> Option<PathBuf> {
    let name = format!("/{}/record.json", container.id);
    real.scene.run_files().into_iter().find(|path| path.ends_with(&name)).map(PathBuf::from)
}

#[track_caller]
fn record(real: &Real<'_>, container: &Container<'_>) -> Record {
    let path = record_path(real, container).expect("a record");
    Record::parse(&path, &fs::read(&path).unwrap()).unwrap()
}

/// What `start` answers for a further container with this configuration.
#[track_caller]
fn start(real: &Real<'_>, id: &str, config: &Path) -> String {
    let bundle = real.scene.make_dir(id);
    fs::copy(config, bundle.join("config.json")).unwrap();
    let socket = real.scene.path("c.sock");
    let mut command = real.scene.command(programs::shim());
    command.args(["-namespace", NAMESPACE, "-address"]).arg(&socket).args(["-publish-binary", "/bin/true", "-id", id]);
    command.env("TTRPC_ADDRESS", format!("{}.ttrpc", socket.display()));
    let output = process::run(command.arg("start").current_dir(&bundle));
    assert!(output.status.success(), "{}", real.containerd.complain(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn containers_of_a_sandbox_share_a_shim_and_have_bundles_and_records_of_their_own(real: &Real<'_>) {
    let pod = Pod::begin(real);
    let (one, one_pid) = pod.run(1, &[], SLEEPER);
    let (other, other_pid) = pod.run(2, &[], SLEEPER);
    let stranger = real.numbered(3);
    stranger.run_detached(SLEEPER);
    assert_ne!(stranger.shim_pid(), pod.shim.pid());
    // Whoever looks for a pod's shim finds it by the sandbox's id.
    let line = process::describe(pod.shim.pid());
    assert!(line.contains(&format!(" -id {} ", pod.sandbox.id)), "{line}");
    let address = pod.sandbox.address();
    for (container, pid) in [(&pod.sandbox, pod.pid), (&one, one_pid), (&other, other_pid)] {
        assert_eq!((container.shim_pid(), container.address()), (pod.shim.pid(), address.clone()));
        let record = record(real, container);
        assert_eq!((record.id.as_str(), record.group.as_str()), (container.id.as_str(), pod.sandbox.id.as_str()));
        assert_eq!((record.bundle.as_path(), record.shim.pid), (container.bundle().as_path(), pod.shim.pid()));
        assert_eq!(record.init().map(|init| init.pid), Some(pid));
        assert_eq!(fs::read_to_string(container.bundle().join("init.pid")).unwrap().trim(), pid.to_string());
    }
    // The next one, too, would be the same shim's.
    let newcomer = start(real, "newcomer", &one.bundle().join("config.json"));
    assert_eq!(newcomer, format!("unix://{}", address.display()));

    pod.remove(&one);
    assert!(!one.bundle().exists() && record_path(real, &one).is_none());
    assert!(other.bundle().exists() && record_path(real, &other).is_some());
    assert_serves(real, &[&pod.sandbox, &other]);
    real.containerd.remove(&stranger.id);
    assert_serves(real, &[&pod.sandbox, &other]);
    pod.remove(&other);
    pod.end();
}

/// The namespace of a process, as the kernel names it.
#[track_caller]
fn namespace(pid: u32, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().to_str().unwrap().to_owned()
}

/// Runs busybox in one namespace of a process, in all else as the host does.
#[track_caller]
fn in_namespace(pid: u32, which: &str, args: &[&str]) {
    let busybox = programs::busybox().expect("a static busybox");
    let mut command = Command::new(&busybox);
    let output = process::run(command.args(["nsenter", "-t", &pid.to_string(), which]).arg(&busybox).args(args));
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn containers_of_a_pod_share_namespaces_and_memory(real: &Real<'_>) {
    let pod = Pod::begin(real);
    // What CRI has others do, or does itself.
    in_namespace(pod.pid, "-n", &["ifconfig", "lo", "up"]);
    in_namespace(pod.pid, "-u", &["hostname", "of-the-pod"]);
    let serve = "echo word >/dev/shm/from-one; exec /bin/busybox nc -ll -p 7777 -e /bin/echo served";
    let (one, one_pid) = pod.run(1, &[], serve);
    let (other, other_pid) = pod.run(2, &[], SLEEPER);
    for (_, name) in SHARED {
        let of_pod = namespace(pod.pid, name);
        assert_eq!([namespace(one_pid, name), namespace(other_pid, name)], [of_pod.clone(), of_pod.clone()]);
        assert_ne!(of_pod, namespace(std::process::id(), name));
        // What comes later comes to the same place.
        let link = format!("/bin/busybox readlink /proc/self/ns/{name}");
        assert_eq!(ask(real, &other, &link).trim(), of_pod);
    }
    assert_ne!(namespace(one_pid, "mnt"), namespace(other_pid, "mnt"));

    // And that is how it looks from inside.
    assert_eq!(ask(real, &other, "/bin/busybox hostname"), "of-the-pod\n");
    eventually("one should be heard by the other", || {
        match ask(real, &other, "/bin/busybox nc 127.0.0.1 7777 </dev/null || echo not yet") {
            answer if answer == "served\n" => Ok(()),
            other => Err(other),
        }
    });
    let seen = ask(real, &other, "/bin/ps; cat=/bin/cat; $cat /dev/shm/from-one; echo answer >/dev/shm/from-other");
    assert!(seen.contains("nc -ll -p 7777") && seen.ends_with("\nword\n"), "{seen}");
    assert_eq!(ask(real, &one, "/bin/cat /dev/shm/from-other"), "answer\n");
    // The processes of a container are its own for all that.
    assert_eq!((wait_for_pids(&one, 1), wait_for_pids(&other, 1)), (vec![one_pid], vec![other_pid]));
    pod.remove(&one);
    pod.remove(&other);
    pod.end();
}

fn all_of_a_container_ends_with_its_init_in_a_shared_pid_namespace_and_nothing_else(real: &Real<'_>) {
    let events = real.containerd.listen();
    let pod = Pod::begin(real);
    let (one, _) = pod.run(1, &[], FAMILY);
    let (other, _) = pod.run(2, &[], FAMILY);
    for container in [&one, &other] {
        let output = container.exec("e", &["--detach"], &["/bin/sleep", "1003"]);
        assert!(output.status.success(), "{}", real.containerd.complain(&output));
    }
    let (of_one, of_other) = (wait_for_pids(&one, 4), wait_for_pids(&other, 4));
    real.containerd.ok(&["task", "kill", "-s", "SIGUSR1", &one.id]);
    real.containerd.wait_for_status(&one.id, "STOPPED");
    of_one.into_iter().for_each(process::until_gone);
    assert_eq!(real.containerd.delete(&one.id), 7);
    assert_eq!(wait_for_pids(&other, 4), of_other);
    assert!(process::is_alive(pod.pid));
    // The exec's end is told before that of the process which it ended with.
    let told = events.of_tasks_until("delete");
    let exits: Vec<&str> = told.iter().filter(|(topic, _)| topic == "exit").map(|(_, line)| line.as_str()).collect();
    assert!(exits.iter().all(|line| line.contains(&one.id)), "{exits:?}");
    let last = exits.last().expect("an exit");
    assert!(exits.len() == 2 && last.contains("\"exit_status\":7") && exits[0].contains("\"id\":\"e\""), "{exits:?}");
    pod.remove(&other);
    of_other.into_iter().for_each(process::until_gone);
    pod.end();
}

fn the_end_of_the_sandbox_ends_the_pod_and_each_container_tells_its_status(real: &Real<'_>) {
    let pod = Pod::begin(real);
    let (one, _) = pod.run(1, &[], FAMILY);
    let (other, other_pid) = pod.run(2, &[], SLEEPER);
    let of_one = wait_for_pids(&one, 3);
    // One has ended already, and has a status that nothing changes any more.
    real.containerd.ok(&["task", "kill", "-s", "SIGUSR1", &one.id]);
    real.containerd.wait_for_status(&one.id, "STOPPED");
    // The kernel ends what is in the pid namespace of a first process.
    real.containerd.ok(&["task", "kill", "-s", "SIGKILL", &pod.sandbox.id]);
    for container in [&pod.sandbox, &other] {
        real.containerd.wait_for_status(&container.id, "STOPPED");
    }
    of_one.into_iter().chain([other_pid]).for_each(process::until_gone);
    assert!(pod.shim.is_alive(), "there is somebody yet to be asked for");
    assert_eq!((real.containerd.delete(&other.id), real.containerd.delete(&one.id)), (137, 7));
    assert!(pod.shim.is_alive());
    pod.end();
}

fn lack_of_memory_in_one_container_touches_no_other_of_its_pod(real: &Real<'_>) {
    if real.lacks_controllers() {
        return;
    }
    let events = real.containerd.listen();
    let pod = Pod::begin(real);
    let limit = ["--memory-limit", "16777216"];
    let (same, same_pid) = pod.run(1, &limit, SLEEPER);
    // A line without an end, which tail(1) keeps whole.
    let (hungry, _) = pod.run(2, &limit, "exec /bin/busybox tail /dev/zero");
    real.containerd.wait_for_status(&hungry.id, "STOPPED");
    assert_eq!(real.containerd.delete(&hungry.id), 137);
    let of_whom = |topic: &str| -> Vec<bool> {
        let told = events.of_tasks_until("delete");
        told.iter().filter(|(seen, _)| seen == topic).map(|(_, line)| line.contains(&hungry.id)).collect()
    };
    assert_eq!((of_whom("oom"), of_whom("exit")), (vec![true], vec![true]));
    assert_serves(real, &[&pod.sandbox, &same]);
    assert_eq!(process_of(real, &same), same_pid);
    // As often as that, by the end of all that was asked.
    assert_eq!(of_whom("oom"), [true]);
    let lacked = |container: &Container<'_>| record(real, container).init().map(|init| init.oom_killed);
    assert_eq!((lacked(&same), lacked(&pod.sandbox)), (Some(false), Some(false)));
    pod.remove(&same);
    pod.end();
}

fn a_pod_is_found_again_with_the_status_of_what_ended_meanwhile(real: &Real<'_>) {
    let pod = Pod::begin(real);
    let (one, one_pid) = pod.run(1, &[], FAMILY);
    let (other, other_pid) = pod.run(2, &[], FAMILY);
    wait_for_pids(&one, 3);
    real.containerd.kill();
    kill(Pid::from_raw(one_pid.cast_signed()), Signal::SIGUSR1).unwrap();
    assert_eq!(one.wait_status(""), 7);
    real.containerd.resume();
    let running = |pid| Some(("RUNNING".to_owned(), pid));
    assert_eq!(real.containerd.task(&pod.sandbox.id), running(pod.pid));
    assert_eq!(real.containerd.task(&other.id), running(other_pid));
    real.containerd.wait_for_status(&one.id, "STOPPED");
    assert_eq!(real.containerd.delete(&one.id), 7);
    assert_serves(real, &[&pod.sandbox, &other]);
    // It goes on as a pod: the next container comes to the same shim.
    let (late, _) = pod.run(3, &[], SLEEPER);
    assert_eq!((late.shim_pid(), other.shim_pid()), (pod.shim.pid(), pod.shim.pid()));
    pod.remove(&late);
    pod.remove(&other);
    pod.end();
}

fn a_pod_whose_shim_was_killed_is_cleaned_up_after(real: &Real<'_>) {
    let pod = Pod::begin(real);
    let (one, _) = pod.run(1, &[], FAMILY);
    let (other, other_pid) = pod.run(2, &[], SLEEPER);
    let pids = [wait_for_pids(&one, 3), vec![other_pid, pod.pid]].concat();
    pod.shim.kill();
    // containerd runs our delete command for each.
    pids.into_iter().for_each(process::until_gone);
    eventually("the tasks should be gone", || match real.containerd.tasks() {
        tasks if tasks.is_empty() => Ok(()),
        tasks => Err(tasks),
    });
    for container in [&pod.sandbox, &one, &other] {
        // Last of all, after the task has gone.
        eventually("nothing of it should be left", || {
            let left = (container.bundle().exists(), record_path(real, container));
            if left == (false, None) { Ok(()) } else { Err(left) }
        });
        real.containerd.ok(&["container", "delete", &container.id]);
    }
    umount(&pod.shm).unwrap();
}
