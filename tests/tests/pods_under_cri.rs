//! Ring 3: pods and their containers, as a kubelet asks a private containerd of each version for them; see `with_containerd.rs`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use holdfast_tests::container::Oci;
use holdfast_tests::cri::api::{IDMapping, LinuxContainerResources, NamespaceMode, PodSandboxConfig, UserNamespace};
use holdfast_tests::cri::{self, Cri, Pod, PodContainer, with_own_network};
use holdfast_tests::grpc::code;
use holdfast_tests::matrix::Real;
use holdfast_tests::process::{self, Process, until_gone};
use holdfast_tests::programs::Version;
use holdfast_tests::skip::skip;
use holdfast_tests::{eventually, gate, matrix, until};

holdfast_tests::matrix!(
    prepare;
    a_container_of_a_pod_runs_to_its_end,
    containers_of_a_pod_share_a_shim_and_go_one_by_one,
    namespaces_are_shared_as_the_pod_has_it,
    a_pods_own_users_are_nobody_outside,
    what_a_container_leaves_in_a_shared_pid_namespace_is_killed,
    lack_of_memory_in_one_container_leaves_the_others_alone,
    a_score_for_lack_of_memory_is_the_one_that_was_asked_for,
    an_exec_tells_its_output_and_status_and_ends_in_time,
    a_log_that_is_reopened_misses_no_line,
    a_terminal_of_a_container_is_logged,
    a_pods_figures_are_told_and_its_limits_changed,
    a_pods_control_groups_are_made_by_systemd,
    a_container_is_stopped_by_its_signal_and_then_by_force,
    a_pod_outlives_containerd_and_its_log_misses_no_line,
    a_pod_whose_shim_was_killed_is_cleaned_up,
    a_pod_whose_shim_was_killed_with_containerd_is_cleaned_up,
    a_pod_that_was_being_made_when_containerd_was_killed_is_cleaned_up,
    a_pod_works_with_the_highest_version_that_the_daemon_understands,
    thirty_pods_come_and_go_at_once,
);

/// A container that runs until it is killed.
const SLEEPER: &str = "exec /bin/sleep 1000";

#[track_caller]
fn start<'a>(real: &'a Real<'a>) -> Cri<'a> {
    Cri::start(&real.containerd, real.cell.oci)
}

fn a_container_of_a_pod_runs_to_its_end(real: &Real<'_>) {
    let cri = start(real);
    let pod = cri.run_pod("pod");
    assert_eq!(pod.is_ready(), Some(true));
    // What the handler's options say has got through.
    let bundle = real.containerd.bundle(cri::NAMESPACE, &pod.id);
    let chosen = fs::read_to_string(bundle.join("runtime")).unwrap();
    assert_eq!(Path::new(&chosen), real.cell.oci.program());
    let container = pod.run("main", "echo one; echo two >&2; exit 7");
    assert_eq!(container.wait(), (7, "Error".into()));
    let mut lines = container.log_lines();
    lines.sort_by(|a, b| a.stream.cmp(&b.stream));
    let seen: Vec<(&str, &str)> = lines.iter().map(|line| (&*line.stream, &*line.text)).collect();
    assert_eq!(seen, [("stderr", "two"), ("stdout", "one")]);
    container.remove();
    assert!(container.try_status().is_err());
    pod.stop();
    // containerd 2.1 has answered before it has noted that the sandbox is over.
    until("the pod is not ready", || (pod.is_ready() == Some(false)).then_some(()));
    pod.remove();
    assert_eq!(pod.is_ready(), None);
    cri.finish();
}

fn containers_of_a_pod_share_a_shim_and_go_one_by_one(real: &Real<'_>) {
    let cri = start(real);
    let (pod, other) = (cri.run_pod("pod"), cri.run_pod("other"));
    let (first, second) = (pod.run("first", SLEEPER), pod.run("second", SLEEPER));
    let stranger = other.run("first", SLEEPER);
    let (shim, shim_of_other) = (pod.shim(), other.shim());
    assert_eq!(cri.shims().len(), 2, "one for each pod");
    assert_ne!(shim.pid(), shim_of_other.pid());
    for pid in [first.pid(), second.pid()] {
        assert_eq!(process::parent(pid), Some(shim.pid()));
    }
    let pause = cri::record(real.scene, &pod.id);
    for record in [&pause, &first.record(), &second.record()] {
        assert!(record.is_file(), "{}", record.display());
    }
    let ended = first.pid();
    first.stop(0);
    assert_eq!(first.wait().0, 137);
    until_gone(ended);
    first.remove();
    assert!(!first.record().exists() && !first.bundle().exists());
    for container in [&second, &stranger] {
        assert!(container.is_running() && container.record().is_file());
        assert_eq!(container.exec("echo here"), (0, "here\n".into(), String::new()));
    }
    // A later one joins.
    let late = pod.run("late", SLEEPER);
    assert_eq!(process::parent(late.pid()), Some(shim.pid()));
    pod.stop();
    shim.wait_gone();
    assert!(stranger.is_running());
    cri.finish();
}

/// The names of the namespaces that a process has.
#[track_caller]
fn namespaces(pid: u32) -> [PathBuf; 4] {
    ["pid", "ipc", "uts", "net"].map(|name| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap())
}

fn with_shared_pids(mut config: PodSandboxConfig) -> PodSandboxConfig {
    let options = &mut config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options;
    options.as_mut().unwrap().pid = NamespaceMode::POD.into();
    config
}

fn namespaces_are_shared_as_the_pod_has_it(real: &Real<'_>) {
    let cri = start(real);
    let host = namespaces(std::process::id());

    let pod = cri.run_pod_with(with_own_network(with_shared_pids(cri.pod_config("shared"))));
    let (a, b) = (pod.run("a", SLEEPER), pod.run("b", SLEEPER));
    let of_pod = namespaces(a.pid());
    assert_eq!(namespaces(b.pid()), of_pod);
    assert!(of_pod.iter().zip(&host).all(|(pod, host)| pod != host), "{of_pod:?} and {host:?}");
    assert_eq!(a.exec("/bin/busybox hostname").1, "pod-of-holdfast\n");
    assert_eq!(a.exec("echo shared >/dev/shm/file").0, 0);
    assert_eq!(b.exec("cat /dev/shm/file"), (0, "shared\n".into(), String::new()));
    // The pod's first process is the first one for all, and each sees the other's.
    let first = b.exec("/bin/busybox tr '\\0' ' ' </proc/1/cmdline").1;
    assert_eq!(first, "/bin/sleep 100000 ");
    let seen = b.exec("ps -o args | /bin/busybox grep -c '^/bin/sleep 1000$'").1;
    assert_eq!(seen, "2\n", "both containers' processes");
    // Its network is loopback, and common.
    let server = "(echo served | /bin/busybox nc -l -p 4711) >/dev/null 2>&1 &";
    assert_eq!(a.exec(server).0, 0);
    let ask = "until /bin/busybox nc 127.0.0.1 4711 </dev/null 2>/dev/null; do sleep 0.02; done";
    assert_eq!(b.exec(ask).1, "served\n");
    pod.stop();

    let pod = cri.run_pod("apart");
    let (a, b) = (pod.run("a", SLEEPER), pod.run("b", SLEEPER));
    let [[pid_a, ipc_a, _, net_a], [pid_b, ipc_b, _, net_b]] = [namespaces(a.pid()), namespaces(b.pid())];
    assert!(pid_a != pid_b && pid_a != host[0] && pid_b != host[0]);
    assert!(ipc_a == ipc_b && ipc_a != host[1]);
    assert!(net_a == host[3] && net_b == host[3]);
    assert_eq!(a.exec("cat /proc/1/comm").1, "sleep\n");
    cri.finish();
}

fn with_own_users(config: PodSandboxConfig) -> PodSandboxConfig {
    let mut config = with_own_network(config);
    let users = UserNamespace {
        mode: NamespaceMode::POD.into(),
        uids: users_from(FIRST_USER),
        gids: users_from(FIRST_GROUP),
        ..UserNamespace::default()
    };
    let options = &mut config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options;
    options.as_mut().unwrap().userns_options = protobuf::MessageField::some(users);
    config
}

/// Who root is outside.
const FIRST_USER: u32 = 200_000;
const FIRST_GROUP: u32 = 300_000;

fn users_from(host_id: u32) -> Vec<IDMapping> {
    vec![IDMapping { host_id, length: 65_536, ..IDMapping::default() }]
}

/// containerd 1.6 gives such a pod the host's users and does not say so. 2.x wants mounts with mapped owners, which
/// holdfast-oci makes and runc before 1.2 does not; and of a runtime whose type is not runc's own it does not understand
/// options then. As with a kubelet, volumes are mapped where the daemon can do that; elsewhere they are nobody's.
fn a_pods_own_users_are_nobody_outside(real: &Real<'_>) {
    let cri = start(real);
    // As the daemon's directories are on a machine: everybody may pass.
    for dir in ["", "containerd"] {
        fs::set_permissions(real.scene.path(dir), fs::Permissions::from_mode(0o711)).unwrap();
    }
    let pod = cri.run_pod_with(with_own_users(cri.pod_config("pod")));
    let users = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    let host = users(std::process::id());
    if real.containerd.version() < Version::V1_7 {
        assert_eq!(users(pod.run("a", SLEEPER).pid()), host);
        return cri.finish();
    }
    let first = pod.processes();
    assert!(first.len() == 1 && users(first[0]) != host, "{first:?}");
    let map = |kind: &str, pid: u32| fs::read_to_string(format!("/proc/{pid}/{kind}_map")).unwrap();
    assert_eq!(map("uid", first[0]).split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
    assert_eq!(map("gid", first[0]).split_whitespace().collect::<Vec<_>>(), ["0", "300000", "65536"]);
    let maps_mounts = real.containerd.version() >= Version::V2_1;
    if maps_mounts && real.cell.oci != Oci::HoldfastOci {
        let refusal = pod.create("a", SLEEPER).try_start().unwrap_err().to_string();
        assert!(refusal.contains("can't unmarshal type \"runtimeoptions.v1.Options\""), "{refusal}");
        return cri.finish();
    }
    // As a kubelet's are, below a directory of root's own.
    let kubelet = real.scene.path("kubelet");
    DirBuilder::new().mode(0o700).create(&kubelet).unwrap();
    let volume = kubelet.join("volume");
    DirBuilder::new().mode(0o755).create(&volume).unwrap();
    let a = pod.create_with("a", SLEEPER, |config| {
        let map = |first| if maps_mounts { users_from(first) } else { Vec::new() };
        config.mounts.push(cri::api::Mount {
            container_path: "/volume".into(),
            host_path: volume.to_str().unwrap().into(),
            uid_mappings: map(FIRST_USER),
            gid_mappings: map(FIRST_GROUP),
            ..cri::api::Mount::default()
        });
    });
    a.start();
    let b = pod.run("b", "echo out; exec /bin/sleep 1000");
    b.wait_for_line("out");
    for container in [&a, &b] {
        assert_eq!(users(container.pid()), users(first[0]));
    }
    assert_eq!(a.exec("id -u; id -g; : >/file; echo shared >/dev/shm/file").1, "0\n0\n");
    assert_eq!(b.exec("cat /dev/shm/file").1, "shared\n");
    let outside = fs::metadata(a.rootfs().join("file")).unwrap();
    assert_eq!((outside.uid(), outside.gid()), (FIRST_USER, FIRST_GROUP));
    let seen = a.exec("/bin/busybox stat -c %u:%g /volume /etc/hosts; : >/volume/new && echo made");
    if maps_mounts {
        assert_eq!(seen.1, "0:0\n0:0\nmade\n", "{}", seen.2);
        let outside = fs::metadata(volume.join("new")).unwrap();
        assert_eq!((outside.uid(), outside.gid()), (0, 0));
    } else {
        assert_eq!(seen.1, "65534:65534\n65534:65534\n");
    }
    a.stop(0);
    assert_eq!(a.wait().0, 137);
    cri.finish();
}

fn what_a_container_leaves_in_a_shared_pid_namespace_is_killed(real: &Real<'_>) {
    let cri = start(real);
    let pod = cri.run_pod_with(with_shared_pids(cri.pod_config("pod")));
    let stays = pod.run("stays", "/bin/sleep 2000 & exec /bin/sleep 2001");
    let ends = pod.run("ends", &format!("/bin/sleep 3000 & {}; exit 3", gate::wait_at("go")));
    let running = |args: &str| {
        let mark = format!("/bin/sleep\0{args}\0");
        let is_it = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == mark.as_bytes());
        process::marked(real.scene.id()).into_iter().filter(is_it).count()
    };
    eventually("all should be at work", || match ["2000", "2001", "3000"].map(running) {
        [1, 1, 1] => Ok(()),
        other => Err(other),
    });
    gate::open(ends.rootfs(), "go");
    assert_eq!(ends.wait(), (3, "Error".into()));
    eventually("what it left should be killed", || match running("3000") {
        0 => Ok(()),
        left => Err(left),
    });
    ends.remove();
    assert_eq!(["2000", "2001"].map(running), [1, 1]);
    assert!(stays.is_running() && pod.is_ready() == Some(true));
    cri.finish();
}

fn lack_of_memory_in_one_container_leaves_the_others_alone(real: &Real<'_>) {
    if real.lacks_controllers() {
        return;
    }
    let cri = start(real);
    let pod = cri.run_pod("pod");
    let other = pod.run("other", SLEEPER);
    let greedy = pod.create_with("greedy", "exec /bin/busybox tail /dev/zero", |config| {
        config.linux.as_mut().unwrap().resources = limits(16 << 20);
    });
    greedy.start();
    assert_eq!(greedy.wait().0, 137);
    // The daemon takes it from an event, which may come after the exit.
    eventually("the reason should be told", || match greedy.status().reason {
        reason if reason == "OOMKilled" => Ok(()),
        reason => Err(reason),
    });
    assert!(other.is_running() && pod.is_ready() == Some(true));
    assert_eq!(other.exec("echo here").1, "here\n");
    other.stop(0);
    assert_eq!(other.wait(), (137, "Error".into()));
    cri.finish();
}

/// Without the right to lower them, scores are the daemon's own at least: so the plugin is configured.
fn a_score_for_lack_of_memory_is_the_one_that_was_asked_for(real: &Real<'_>) {
    let cri = start(real);
    let score =
        |pid: u32| -> i64 { fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap() };
    let own = score(std::process::id());
    let pod = cri.run_pod("pod");
    assert_eq!(pod.processes().into_iter().map(score).collect::<Vec<_>>(), [own], "it asks for less");
    for (name, asked, expected) in [("higher", 700, 700), ("lower", -500, own)] {
        let container = pod.create_with(name, SLEEPER, |config| {
            let resources = LinuxContainerResources { oom_score_adj: asked, ..LinuxContainerResources::default() };
            config.linux.as_mut().unwrap().resources = protobuf::MessageField::some(resources);
        });
        container.start();
        assert_eq!(score(container.pid()), expected, "{name}");
        // crun leaves an exec that of whoever starts it.
        if real.cell.oci != Oci::Crun {
            assert_eq!(container.exec("cat /proc/self/oom_score_adj").1, format!("{expected}\n"), "{name}");
        }
    }
    cri.finish();
}

fn limits(memory: i64) -> protobuf::MessageField<LinuxContainerResources> {
    let resources = LinuxContainerResources { memory_limit_in_bytes: memory, ..LinuxContainerResources::default() };
    protobuf::MessageField::some(resources)
}

fn an_exec_tells_its_output_and_status_and_ends_in_time(real: &Real<'_>) {
    let cri = start(real);
    let container = cri.run_pod("pod").run("main", SLEEPER);
    assert_eq!(container.exec("echo out; echo err >&2; exit 5"), (5, "out\n".into(), "err\n".into()));
    let output = container.try_exec(&["/bin/busybox", "seq", "1", "100000"], 0).unwrap();
    let expected: Vec<u8> = (1..=100_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    assert!(output.stdout == expected, "{} bytes instead of {}", output.stdout.len(), expected.len());
    let refusal = container.try_exec(&["/no/such/program"], 0).unwrap_err().to_string();
    assert!(refusal.contains("no/such/program"), "{refusal}");
    // What takes too long is ended.
    let late = container.try_exec(&["/bin/sleep", "4001"], 1).unwrap_err();
    assert_eq!(late.code(), code::DEADLINE_EXCEEDED, "{late}");
    assert_eq!(container.exec("ps -o args | /bin/busybox grep -c '^/bin/sleep 4001'").1, "0\n");
    assert!(container.is_running());
    cri.finish();
}

/// A script that prints numbers from where a file says, as long as nobody stops it.
const COUNTER: &str = "n=0; while [ ! -e /stop ]; do n=$((n + 1)); echo $n; /bin/busybox usleep 3000; done";

/// The numbers that a log has.
fn numbers(lines: &[cri::LogLine]) -> Vec<u64> {
    lines.iter().map(|line| line.text.parse().unwrap()).collect()
}

#[track_caller]
fn wait_for_lines(container: &PodContainer<'_>, count: usize) {
    eventually("it should go on counting", || match container.log_lines().len() {
        seen if seen >= count => Ok(()),
        seen => Err(seen),
    });
}

fn a_log_that_is_reopened_misses_no_line(real: &Real<'_>) {
    let cri = start(real);
    let container = cri.run_pod("pod").run("main", COUNTER);
    let moved = container.log.with_extension("old");
    wait_for_lines(&container, 20);
    fs::rename(&container.log, &moved).unwrap();
    container.reopen_log();
    let length = fs::metadata(&moved).unwrap().len();
    wait_for_lines(&container, 20);
    assert_eq!(fs::metadata(&moved).unwrap().len(), length, "nothing more goes into the old file");
    gate::open(container.rootfs(), "stop");
    assert_eq!(container.wait(), (0, "Completed".into()));
    let seen = [numbers(&cri::log_lines(&moved)), numbers(&container.log_lines())].concat();
    assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<_>>());
    cri.finish();
}

fn a_terminal_of_a_container_is_logged(real: &Real<'_>) {
    let cri = start(real);
    let pod = cri.run_pod("pod");
    let container = pod.create_with("main", "/bin/tty; echo both >&2; exit 6", |config| config.tty = true);
    container.start();
    assert_eq!(container.wait().0, 6);
    let seen: Vec<String> = container.log_lines().into_iter().map(|l| format!("{} {}", l.stream, l.text)).collect();
    assert_eq!(seen, ["stdout /dev/pts/0", "stdout both"]);
    cri.finish();
}

/// A file of a process's control group: `v1` of the controller, or `v2`.
#[track_caller]
fn cgroup_file(pid: u32, controller: &str, v1: &str, v2: &str) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |line: &str, names: &str| line.split(':').nth(1)?.split(',').any(|n| n == names).then(|| line.to_owned());
    let (line, root, file) = match groups.lines().find_map(|line| of(line, controller)) {
        Some(line) => (line, format!("/sys/fs/cgroup/{controller}"), v1),
        None => (groups.lines().find(|l| l.starts_with("0::")).unwrap().into(), "/sys/fs/cgroup".into(), v2),
    };
    let path = line.splitn(3, ':').nth(2).unwrap();
    fs::read_to_string(format!("{root}{path}/{file}")).unwrap().trim().into()
}

fn a_pods_figures_are_told_and_its_limits_changed(real: &Real<'_>) {
    if real.lacks_controllers() {
        return;
    }
    let cri = start(real);
    let pod = cri.run_pod("pod");
    let work = "i=0; while [ $i -lt 50000 ]; do i=$((i + 1)); done; echo done; exec /bin/sleep 1000";
    let (busy, idle) = (pod.run("busy", work), pod.run("idle", SLEEPER));
    busy.wait_for_line("done");
    let [(busy_time, busy_memory), (idle_time, idle_memory)] = [busy.figures(), idle.figures()];
    assert!(busy_time > idle_time && idle_time > 0, "{busy_time} and {idle_time}");
    assert!(busy_memory > 0 && idle_memory > 0);
    let limit = 40 << 20;
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: limit,
        cpu_period: 100_000,
        cpu_quota: 30_000,
        ..LinuxContainerResources::default()
    };
    busy.update(resources);
    let memory = |c: &PodContainer<'_>| cgroup_file(c.pid(), "memory", "memory.limit_in_bytes", "memory.max");
    let cpu = |c: &PodContainer<'_>| cgroup_file(c.pid(), "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert_eq!(memory(&busy), limit.to_string());
    assert!(cpu(&busy).starts_with("30000"), "{}", cpu(&busy));
    // The other's stay.
    assert_ne!(memory(&idle), limit.to_string());
    assert!(!cpu(&idle).starts_with("30000"), "{}", cpu(&idle));
    cri.finish();
}

/// Something of a unit, as systemd knows it.
#[track_caller]
fn unit(name: &str, property: &str) -> String {
    let output = process::run(Command::new("systemctl").args(["show", "--value", "--property", property, name]));
    String::from_utf8_lossy(&output.stdout).trim().into()
}

fn a_pods_control_groups_are_made_by_systemd(real: &Real<'_>) {
    if !Path::new("/run/systemd/system").exists() || matrix::cgroup_mode() != "unified" {
        return skip("needs systemd as PID 1 and nothing but cgroup v2");
    }
    let cri = Cri::start_with_systemd(&real.containerd, real.cell.oci);
    let slice = format!("{}.slice", real.scene.id().replace('-', "_"));
    let mut config = cri.pod_config("pod");
    config.linux.as_mut().unwrap().cgroup_parent = format!("/{slice}");
    let pod = cri.run_pod_with(config);
    let container = pod.create_with("main", SLEEPER, |config| {
        config.linux.as_mut().unwrap().resources = limits(40 << 20);
    });
    container.start();
    let scope = |id: &str| format!("cri-containerd-{id}.scope");
    // crun makes one of its own below.
    let group = |pid: u32| {
        let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        group.trim().trim_end_matches("/container").to_owned()
    };
    let mut groups = pod.processes().into_iter().map(group).collect::<Vec<_>>();
    groups.sort();
    let mut expected = [&container.id, &pod.id].map(|id| format!("0::/{slice}/{}", scope(id)));
    expected.sort();
    assert_eq!(groups, expected);
    for limit in [40_i64 << 20, 50 << 20] {
        container
            .update(LinuxContainerResources { memory_limit_in_bytes: limit, ..LinuxContainerResources::default() });
        assert_eq!(unit(&scope(&container.id), "MemoryMax"), limit.to_string());
        let file = format!("/sys/fs/cgroup/{slice}/{}/memory.max", scope(&container.id));
        assert_eq!(fs::read_to_string(file).unwrap().trim(), limit.to_string());
    }
    container.stop(0);
    container.remove();
    eventually("the scope should be gone", || match unit(&scope(&container.id), "ActiveState") {
        state if state == "inactive" => Ok(()),
        state => Err(state),
    });
    cri.finish();
    process::run(Command::new("systemctl").args(["stop", &slice]));
}

fn a_container_is_stopped_by_its_signal_and_then_by_force(real: &Real<'_>) {
    let cri = start(real);
    let pod = cri.run_pod("pod");
    let obeys = pod.run("obeys", "trap 'exit 5' TERM; echo ready; while :; do /bin/sleep 0.02; done");
    let refuses = pod.run("refuses", "trap '' TERM; echo ready; while :; do /bin/sleep 0.02; done");
    obeys.wait_for_line("ready");
    refuses.wait_for_line("ready");
    obeys.stop(1000);
    assert_eq!(obeys.wait(), (5, "Error".into()));
    refuses.stop(1);
    assert_eq!(refuses.wait(), (137, "Error".into()));
    // Once more is not an error.
    refuses.stop(1);
    cri.finish();
}

fn a_pod_outlives_containerd_and_its_log_misses_no_line(real: &Real<'_>) {
    let cri = start(real);
    let pod = cri.run_pod("pod");
    let print = |from: u32, to: u32| format!("/bin/busybox seq {from} {to}");
    let goes_on =
        pod.run("goes-on", &format!("{}; {}; {}; {SLEEPER}", print(1, 100), gate::wait_at("go"), print(101, 20_000)));
    let ends = pod.run("ends", &format!("echo 1; {}; echo 2; exit 9", gate::wait_at("go")));
    let waits = pod.create("waits", "exit 4");
    goes_on.wait_for_line("100");
    ends.wait_for_line("1");
    let (shim, pids) = (pod.shim(), [goes_on.pid(), ends.pid()]);
    cri.kill();
    gate::open(goes_on.rootfs(), "go");
    gate::open(ends.rootfs(), "go");
    until_gone(pids[1]);
    cri.resume();
    assert_eq!(pod.is_ready(), Some(true));
    assert!(goes_on.is_running() && goes_on.pid() == pids[0] && shim.is_alive());
    assert_eq!(ends.wait(), (9, "Error".into()));
    goes_on.wait_for_line("20000");
    assert_eq!(numbers(&goes_on.log_lines()), (1..=20_000).collect::<Vec<_>>());
    ends.wait_for_line("2");
    assert_eq!(goes_on.exec("echo here; exit 2"), (2, "here\n".into(), String::new()));
    waits.start();
    assert_eq!(waits.wait(), (4, "Error".into()));
    let late = pod.run("late", SLEEPER);
    assert_eq!(process::parent(late.pid()), Some(shim.pid()));
    goes_on.stop(0);
    assert_eq!(goes_on.wait().0, 137);
    cri.finish();
    shim.wait_gone();
}

/// A pod with two containers, its shim, and the processes of all.
#[track_caller]
fn pod_to_lose<'a>(cri: &'a Cri<'a>) -> (Pod<'a>, [PodContainer<'a>; 2], Process, Vec<u32>) {
    let pod = cri.run_pod("pod");
    let containers = ["a", "b"].map(|name| pod.run(name, SLEEPER));
    let shim = pod.shim();
    let pids = pod.processes();
    assert_eq!(pids.len(), 3, "{:?}", pids.iter().map(|pid| process::describe(*pid)).collect::<Vec<_>>());
    (pod, containers, shim, pids)
}

/// What is left of a pod is ended, told to be, and can be taken away; another may have its place.
#[track_caller]
fn assert_cleaned_up(cri: &Cri<'_>, pod: &Pod<'_>, containers: &[PodContainer<'_>], pids: &[u32]) {
    pids.iter().for_each(|pid| until_gone(*pid));
    eventually("the pod should no longer be ready", || match pod.is_ready() {
        Some(false) => Ok(()),
        other => Err(other),
    });
    for container in containers {
        assert_ne!(container.wait().0, 0);
    }
    pod.stop();
    pod.remove();
    let next = cri.run_pod("pod").run("a", "echo next");
    assert_eq!(next.wait(), (0, "Completed".into()));
}

fn a_pod_whose_shim_was_killed_is_cleaned_up(real: &Real<'_>) {
    let cri = start(real);
    let bystander = cri.run_pod("bystander").run("a", SLEEPER);
    let (pod, containers, shim, pids) = pod_to_lose(&cri);
    shim.kill();
    assert_cleaned_up(&cri, &pod, &containers, &pids);
    assert!(bystander.is_running());
    cri.finish();
}

fn a_pod_whose_shim_was_killed_with_containerd_is_cleaned_up(real: &Real<'_>) {
    let cri = start(real);
    let bystander = cri.run_pod("bystander").run("a", SLEEPER);
    let (pod, containers, shim, pids) = pod_to_lose(&cri);
    cri.kill();
    shim.kill();
    cri.resume();
    assert_cleaned_up(&cri, &pod, &containers, &pids);
    assert!(bystander.is_running());
    cri.finish();
}

/// The OCI runtime of the cell, which begins with `create` only once a file is there.
fn slow_runtime(real: &Real<'_>) -> PathBuf {
    let path = real.scene.path("slow-runtime");
    let script = format!(
        "#!/bin/sh\nfor a; do [ \"$a\" != create ] || while [ ! -e {:?} ]; do sleep 0.02; done; done\nexec {:?} \"$@\"\n",
        real.scene.path("let-go"),
        real.cell.oci.program(),
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The OCI runtime is done while containerd is away, or only after. In the latter case containerd 1.6 takes away what it knows
/// of the pod and leaves the shim running (later ones ask it, since containerd#6866): who ends that gets all removed.
fn a_pod_that_was_being_made_when_containerd_was_killed_is_cleaned_up(real: &Real<'_>) {
    let cri = Cri::with_program(&real.containerd, Some(&slow_runtime(real)));
    let let_go = real.scene.path("let-go");
    for is_done_meanwhile in [true, false] {
        thread::scope(|scope| {
            let asker = scope.spawn(|| cri.try_run_pod(cri.pod_config("pod")).err());
            eventually("the runtime should be asked", || {
                let lines = process::marked(real.scene.id()).into_iter().map(process::describe).collect::<Vec<_>>();
                let is_asked = |l: &String| l.contains("slow-runtime") && l.contains(" create ");
                if lines.iter().any(is_asked) { Ok(()) } else { Err(lines) }
            });
            cri.kill();
            assert!(asker.join().unwrap().is_some());
        });
        let made = || cri::records(real.scene).iter().any(|record| record.contains("\"state\":\"created\""));
        if is_done_meanwhile {
            fs::write(&let_go, "").unwrap();
            eventually("it should be made", || if made() { Ok(()) } else { Err(cri::records(real.scene)) });
        }
        cri.resume();
        // It is none, or one that a kubelet takes away; in no case one that can be used.
        assert!(cri.pods().iter().all(|pod| pod.state.value() != 0), "{:?}", cri.pods());
        for pod in cri.pods() {
            cri.take_away(&pod.id);
        }
        fs::write(&let_go, "").unwrap();
        if !is_done_meanwhile && real.containerd.version() < Version::V1_7 {
            cri.shims().into_iter().for_each(|pid| Process::of(pid).kill());
        }
        eventually("no shim should be left", || match cri.shims() {
            left if left.is_empty() => Ok(()),
            left => Err(left),
        });
        let next = cri.run_pod("pod");
        assert_eq!(next.run("a", "echo next").wait(), (0, "Completed".into()));
        cri.take_away(&next.id);
        fs::remove_file(&let_go).unwrap();
    }
    cri.finish();
}

/// containerd 2 then starts no shim for the containers of a pod, but asks the pod's.
fn a_pod_works_with_the_highest_version_that_the_daemon_understands(real: &Real<'_>) {
    let is_2 = real.containerd.version() >= Version::V2_1;
    real.containerd.restart_with("HOLDFAST_BOOTSTRAP_VERSION", if is_2 { "3-since-2.0" } else { "3" });
    let cri = start(real);
    let pod = cri.run_pod("pod");
    let (a, b) = (pod.run("a", SLEEPER), pod.run("b", &gate::ends_later(3)));
    assert_eq!(a.exec("echo exec; exit 2"), (2, "exec\n".into(), String::new()));
    let (shim, ending) = (pod.shim(), b.pid());
    cri.kill();
    gate::open(b.rootfs(), "go");
    until_gone(ending);
    cri.resume();
    assert_eq!(b.wait(), (3, "Error".into()));
    assert!(a.is_running() && pod.is_ready() == Some(true));
    let late = pod.run("late", SLEEPER);
    assert_eq!(process::parent(late.pid()), Some(shim.pid()));
    a.stop(0);
    a.remove();
    assert!(late.is_running());
    cri.finish();
    shim.wait_gone();
}

fn thirty_pods_come_and_go_at_once(real: &Real<'_>) {
    let cri = start(real);
    let names: Vec<String> = (0..30).map(|n| format!("pod{n}")).collect();
    let at_once = |what: &(dyn Fn(&str) + Sync)| {
        thread::scope(|scope| {
            let threads: Vec<_> = names.iter().map(|name| scope.spawn(move || what(name))).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    };
    at_once(&|name| {
        let container = cri.run_pod(name).run("main", &format!("echo {name}; {SLEEPER}"));
        container.wait_for_line(name);
    });
    let pods = cri.pods();
    assert_eq!(pods.len(), 30);
    assert!(pods.iter().all(|pod| pod.state.value() == 0), "{pods:?}");
    assert_eq!(cri.shims().into_iter().collect::<BTreeSet<_>>().len(), 30);
    at_once(&|name| {
        let pod = pods.iter().find(|pod| pod.metadata.name == *name).unwrap();
        cri.take_away(&pod.id);
    });
    assert_eq!(cri.pods().len(), 0);
    cri.finish();
}
