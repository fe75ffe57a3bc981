//! Ring 3: the shim with real OCI runtimes, spoken to directly. The scene's check sees that no mount, control group,
//! process or socket is left.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::{CreateTaskResponse, Mount};
use holdfast_tests::shim::{NAMESPACE, Status, TASK, delete_response};
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::wire::Code;
use holdfast_tests::{
    Bundle, FakeContainerd, Launch, Process, Reader, Scene, Shim, Stdio, bundle, eventually, process, programs, shim,
    tracer,
};

/// The program of an OCI runtime, or a skip if it is not to be had or does not work on this machine.
fn runtime(name: &str) -> Option<PathBuf> {
    if !is_root() {
        skip("needs root");
        return None;
    }
    let path = if name == "holdfast-oci" { Some(programs::ours(name)) } else { programs::peer(name) };
    let Some(path) = path else {
        skip(&format!("{name} is neither installed nor to be had"));
        return None;
    };
    // Controllers in the v1 hierarchies and a v2 hierarchy beside them.
    if name == "crun" && Path::new("/sys/fs/cgroup/unified").exists() {
        skip("crun refuses the hybrid cgroup mode");
        return None;
    }
    Some(path)
}

/// One container through everything that the runtime takes part in.
fn lives_with(name: &str) {
    let Some(program) = runtime(name) else { return };
    let scene = Scene::new();
    let containerd = FakeContainerd::start(&scene);
    let bundle =
        Bundle::busybox(&scene, &["/bin/sh", "-c", "echo out; echo err >&2; read line; echo got $line; exit 7"]);
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    let stdio = Stdio::fifos(&scene, "init");
    let (stdout, stderr) = stdio.readers();
    let init = shim.create(&stdio).unwrap().pid;
    assert_eq!(shim.status(""), Status::CREATED);
    shim.start("").unwrap();
    stdout.wait_for("out\n");

    // An exec sees the container's file system and pid namespace, and has its own output and status.
    let exec = Stdio::output(&scene, "e");
    let (exec_out, _exec_err) = exec.readers();
    shim.exec("e", &["/bin/sh", "-c", "ls /; [ $$ != 1 ] && kill -0 1 && exit 5"], &exec).unwrap();
    let pid = shim.start("e").unwrap().pid;
    assert_ne!(pid, init);
    assert_eq!(shim.wait_status("e"), 5);
    assert_eq!(exec_out.text().split_whitespace().collect::<Vec<_>>(), ["bin", "dev", "etc", "proc", "sys", "tmp"]);
    assert_eq!(shim.delete("e").unwrap().exit_status, 5);

    let refusal = {
        shim.exec("f", &["/no/such/program"], &Stdio::none()).unwrap();
        shim.start("f").unwrap_err()
    };
    assert!(refusal.message().to_lowercase().contains("no such file or directory"), "{refusal:?}");
    shim.delete("f").unwrap();

    shim.pause().unwrap();
    assert_eq!(shim.status(""), Status::PAUSED);
    shim.resume().unwrap();
    shim.update(&serde_json::json!({ "cpu": { "shares": 512 } })).unwrap();
    let stats = shim.stats().unwrap().stats.unwrap();
    assert!(matches!(stats.type_url.as_str(), "io.containerd.cgroups.v1.Metrics" | "io.containerd.cgroups.v2.Metrics"));
    assert!(shim.pids().unwrap().processes.iter().any(|p| p.pid == init));

    stdio.input().write(b"a line\n");
    assert_eq!(shim.wait_status(""), 7);
    assert_eq!(stdout.text(), "out\ngot a line\n");
    assert_eq!(stderr.unwrap().text(), "err\n");
    assert_eq!(shim.kill("", 9).unwrap_err().code(), Code::NOT_FOUND);
    let deleted = shim.delete("").unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (init, 7));
    let story = containerd.wait_for(bundle.id(), "delete 7");
    assert_eq!(story[..2], ["create", "start"]);
    assert_eq!(story[story.len() - 2..], ["exit 7", "delete 7"]);
    shim.shutdown();
}

/// A terminal, from the runtime through the console socket to the client.
fn terminal_with(name: &str) {
    let Some(program) = runtime(name) else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sh", "-c", "tty; read go; stty size; exit 4"]).with_terminal();
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    let stdio = Stdio::terminal(&scene, "init");
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    shim.resize("", 132, 43).unwrap();
    stdout.wait_for("/dev/");
    stdio.input().write(b"go\n");
    assert_eq!(shim.wait_status(""), 4);
    let text = stdout.text().replace("\r\n", "\n");
    assert!(text.starts_with("/dev/pts/0\n") || text.starts_with("/dev/console\n"), "{text:?}");
    assert!(text.ends_with("go\n43 132\n"), "{text:?}");
    shim.delete("").unwrap();
    shim.shutdown();
}

/// The ring 2 tests in `killed.rs` look closer; here the runtime's work takes as long as it takes.
fn killed_anywhere_with(name: &str) {
    const STRIDE: usize = 7;
    let Some(program) = runtime(name) else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let mut points = 0;
    for point in (1..).step_by(STRIDE) {
        let bundle = Bundle::busybox(&scene, &["/bin/sh", "-c", "exit 7"]);
        let launch = Launch::new(&scene, &bundle).runtime(&program);
        let mut shim = launch.start();
        let doom = tracer::doom(shim.process().pid(), point);
        let live = |shim: &mut Shim| {
            shim.create(&Stdio::none())?;
            shim.start("")?;
            let status = shim.wait("")?.exit_status;
            shim.delete("").map(|_| status)
        };
        let lived = live(&mut shim);
        if lived.is_ok() {
            shim.request_shutdown();
        }
        shim.process().wait_gone();
        doom.join().unwrap();
        let output = launch.run_delete();
        let reply = delete_response(&output);
        let context = format!("killed at {point}: {lived:?} {reply:?} {output:?}");
        assert!([7, 137, 255].contains(&reply.exit_status), "{context}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{context}");
        eventually(&context, || {
            // Control groups and mounts too; what the scene finds at its end could be of any of them.
            let mut left = [scene.leftovers(), scene.run_files()].concat();
            left.retain(|line| !line.contains(shim::EVENTS_SOCKET));
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        if lived.is_ok() {
            break;
        }
        points += 1;
    }
    assert!(points > 10, "only {points} points: was it traced?");
}

/// Where no kernel kills the rest when init dies.
fn cleaned_up_after_in_shared_pids_with(name: &str) {
    let Some(program) = runtime(name) else { return };
    let scene = Scene::new();
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "1000"]).configure(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    });
    // It takes what the dead shim could not tell.
    let containerd = FakeContainerd::start(&scene);
    let launch = Launch::new(&scene, &bundle).runtime(&program);
    let mut shim = launch.start();
    let init = Process::of(shim.run(&Stdio::none()));
    shim.exec("e", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    let exec = Process::of(shim.start("e").unwrap().pid);
    shim.process().kill();
    let output = launch.run_delete();
    let reply = delete_response(&output);
    assert_eq!((reply.pid, reply.exit_status), (init.pid(), 137));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    init.wait_gone();
    exec.wait_gone();
    containerd.wait_for(bundle.id(), "exit e 137");
    assert_eq!(scene.run_files_but_events(), Vec::<String>::new());
}

/// The host's `/dev`, as Docker's `-v /dev:/dev` gives it, with a terminal: what is mounted upon it in the container stays
/// there.
fn hosts_devices_with(name: &str) {
    let Some(program) = runtime(name) else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sh", "-c", "tty; read go; stat -c %t:%T /dev/full; exit 4"]);
    let bundle = bundle.with_terminal().configure(|c| {
        let mounts = c["mounts"].as_array_mut().unwrap();
        let dev = mounts.iter_mut().find(|m| m["destination"] == "/dev").unwrap();
        *dev = serde_json::json!({
            "destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind", "rprivate"] });
        // runc opens the host's console, and may not without.
        c["linux"]["resources"]["devices"] = serde_json::json!([{ "allow": true, "access": "rwm" }]);
    });
    std::os::unix::fs::symlink("busybox", bundle.path("rootfs/bin/stat")).unwrap();
    // Those of other tests are in memory.
    let mounts_of_host = || mounted_below(Path::new("/dev")) - mounted_below(Path::new("/dev/shm"));
    let before = mounts_of_host();
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    let stdio = Stdio::terminal(&scene, "init");
    let (stdout, _) = stdio.readers();
    shim.run(&stdio);
    stdout.wait_for("/dev/pts/0");
    assert_eq!(mounts_of_host(), before);
    stdio.input().write(b"go\n");
    assert_eq!(shim.wait_status(""), 4);
    assert!(stdout.text().ends_with("1:7\r\n"));
    shim.delete("").unwrap();
    shim.shutdown();
    assert_eq!(mounts_of_host(), before);
}

/// A shim that dies: its delete command ends all processes of the container and frees its control groups.
fn cleaned_up_after_with(name: &str) {
    let Some(program) = runtime(name) else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    let launch = Launch::new(&scene, &bundle).runtime(&program);
    let mut shim = launch.start();
    let container = Process::of(shim.run(&Stdio::none()));
    shim.process().kill();
    assert!(container.is_alive());
    let reply = launch.delete();
    container.wait_gone();
    assert_eq!((reply.pid, reply.exit_status), (container.pid(), 137));
}

/// An exec that is still running when init is killed: it ends with the pid namespace, and is announced first.
fn execs_end_before_init_with(name: &str) {
    let Some(program) = runtime(name) else { return };
    let scene = Scene::new();
    let containerd = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "1000"]);
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    shim.run(&Stdio::none());
    for exec in ["a", "b", "c"] {
        shim.exec(exec, &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
        shim.start(exec).unwrap();
    }
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    let story = containerd.wait_for(bundle.id(), "exit 137");
    let exits: Vec<_> = story.iter().filter(|l| l.starts_with("exit ")).collect();
    assert_eq!(exits.len(), 4, "{story:?}");
    assert_eq!(exits[3], "exit 137");
    shim.delete("").unwrap();
    shim.shutdown();
}

/// Execs side by side.
fn many_execs_with(name: &str) {
    let Some(program) = runtime(name) else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "1000"]);
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    shim.run(&Stdio::none());
    let mut starts = Vec::new();
    for n in 0..8 {
        shim.exec(&format!("e{n}"), &["/bin/sh", "-c", &format!("exit {n}")], &Stdio::none()).unwrap();
        let request = containerd_shim_protos::api::StartRequest {
            id: bundle.id().into(),
            exec_id: format!("e{n}"),
            ..Default::default()
        };
        starts.push(shim.connection.begin(TASK, "Start", &request));
    }
    for start in starts {
        let _: containerd_shim_protos::api::StartResponse = shim.connection.finish(start).unwrap();
    }
    for n in 0..8 {
        assert_eq!(shim.wait_status(&format!("e{n}")), n);
    }
    shim.discard();
}

/// The tests above for one runtime.
macro_rules! with_runtime {
    ($module:ident, $name:literal) => {
        mod $module {
            #[test]
            fn a_whole_life() {
                super::lives_with($name);
            }

            #[test]
            fn a_terminal() {
                super::terminal_with($name);
            }

            #[test]
            fn the_hosts_devices() {
                super::hosts_devices_with($name);
            }

            #[test]
            fn a_runtime_killed_during_create() {
                super::killed_during_create_with($name);
            }

            #[test]
            fn a_dead_shim_is_cleaned_up_after() {
                super::cleaned_up_after_with($name);
            }

            #[test]
            fn a_dead_shim_is_cleaned_up_after_in_a_shared_pid_namespace() {
                super::cleaned_up_after_in_shared_pids_with($name);
            }

            #[test]
            fn a_shim_that_is_killed_anywhere_leaves_nothing() {
                super::killed_anywhere_with($name);
            }

            #[test]
            fn execs_end_before_init() {
                super::execs_end_before_init_with($name);
            }

            #[test]
            fn many_execs() {
                super::many_execs_with($name);
            }
        }
    };
}

with_runtime!(holdfast_oci, "holdfast-oci");
with_runtime!(runc, "runc");
with_runtime!(crun, "crun");

/// A bundle whose root file system comes with Create, as containerd's snapshotters give it.
fn without_rootfs(scene: &Scene, args: &[&str]) -> Bundle {
    let bundle = Bundle::busybox(scene, args);
    fs::rename(bundle.path("rootfs"), scene.path("lower")).unwrap();
    for dir in ["upper", "work"] {
        scene.make_dir(dir);
    }
    bundle.configure(|c| c["root"]["readonly"] = false.into())
}

fn overlay(scene: &Scene) -> Mount {
    let path = |name| scene.path(name).display().to_string();
    Mount {
        type_: "overlay".into(),
        source: "overlay".into(),
        options: vec![
            format!("lowerdir={}", path("lower")),
            format!("upperdir={}", path("upper")),
            format!("workdir={}", path("work")),
        ],
        ..Mount::default()
    }
}

fn mounted_below(dir: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table.lines().filter(|l| l.split(' ').nth(1).is_some_and(|p| Path::new(p).starts_with(dir))).count()
}

#[test]
fn the_root_file_system_is_mounted_at_create_and_unmounted_at_delete() {
    let Some(program) = runtime("runc") else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = without_rootfs(&scene, &["/bin/sh", "-c", "echo written >/file"]);
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    let mut request = shim.create_request(&Stdio::none());
    request.rootfs = vec![overlay(&scene)];
    let _: CreateTaskResponse = shim.connection.call(TASK, "Create", &request).unwrap();
    assert_eq!(mounted_below(bundle.dir()), 1);
    shim.start("").unwrap();
    assert_eq!(shim.wait_status(""), 0);
    assert_eq!(fs::read_to_string(scene.path("upper/file")).unwrap(), "written\n");
    shim.delete("").unwrap();
    assert_eq!(mounted_below(bundle.dir()), 0);
    shim.shutdown();
}

#[test]
fn a_create_that_fails_unmounts_what_it_mounted() {
    let Some(program) = runtime("runc") else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = without_rootfs(&scene, &["/no/such/program"]);
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    let mut request = shim.create_request(&Stdio::none());
    request.rootfs = vec![overlay(&scene)];
    let refusal = shim.connection.call::<CreateTaskResponse>(TASK, "Create", &request).unwrap_err();
    assert!(refusal.message().contains("no such file or directory"), "{refusal:?}");
    assert_eq!(mounted_below(bundle.dir()), 0);
    shim.shutdown();
}

#[test]
fn a_mount_that_fails_is_named_and_undone() {
    let Some(program) = runtime("runc") else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = without_rootfs(&scene, &["/bin/true"]);
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    let mut request = shim.create_request(&Stdio::none());
    let broken = Mount { type_: "bind".into(), source: "/no/such/dir".into(), ..Mount::default() };
    let broken = Mount { options: vec!["rbind".into()], ..broken };
    request.rootfs = vec![overlay(&scene), broken];
    let refusal = shim.connection.call::<CreateTaskResponse>(TASK, "Create", &request).unwrap_err();
    assert!(refusal.message().contains("/no/such/dir"), "{refusal:?}");
    assert_ne!(refusal.code(), Code::NOT_FOUND, "the container is not what is missing");
    assert_eq!(mounted_below(bundle.dir()), 0);
    shim.shutdown();
}

#[test]
fn the_delete_command_unmounts_the_root_file_system() {
    let Some(program) = runtime("runc") else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = without_rootfs(&scene, &["/bin/sleep", "1000"]);
    let launch = Launch::new(&scene, &bundle).runtime(&program);
    let mut shim = launch.start();
    let mut request = shim.create_request(&Stdio::none());
    request.rootfs = vec![overlay(&scene)];
    let created: CreateTaskResponse = shim.connection.call(TASK, "Create", &request).unwrap();
    let container = Process::of(created.pid);
    shim.start("").unwrap();
    shim.process().kill();
    launch.delete();
    container.wait_gone();
    assert_eq!(mounted_below(bundle.dir()), 0);
}

/// No process, no control group, no mount of a container that was never created, and nothing that the runtime knows.
#[track_caller]
fn assert_never_was(scene: &Scene, bundle: &Bundle, shim: &mut Shim) {
    assert_eq!(shim.state("").unwrap_err().code(), Code::NOT_FOUND);
    eventually("nothing should be left", || {
        let left: Vec<String> = scene.leftovers().into_iter().filter(|l| !l.contains("holdfast-v2")).collect();
        let left: Vec<String> = left.into_iter().filter(|l| !l.starts_with("socket ")).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let state = scene.path(format!("oci/{NAMESPACE}/{}", bundle.id()));
    assert!(!state.exists(), "{} is left", state.display());
}

/// A runtime that is killed when namespaces and control groups are there.
fn killed_during_create_with(name: &str) {
    let Some(program) = runtime(name) else { return };
    let scene = Scene::new();
    let containerd = FakeContainerd::start(&scene);
    let bundle = without_rootfs(&scene, &["/bin/sleep", "1000"]);
    // The parent of such a hook is the runtime.
    let kill = serde_json::json!([{ "path": "/bin/sh", "args": ["sh", "-c", "kill -9 $PPID; sleep 1000"] }]);
    let broken = |c: &mut serde_json::Value| c["hooks"] = serde_json::json!({ "createRuntime": kill });
    let bundle = bundle.configure(broken);
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    let mut request = shim.create_request(&Stdio::none());
    request.rootfs = vec![overlay(&scene)];
    for _ in 0..3 {
        let refusal = shim.connection.call::<CreateTaskResponse>(TASK, "Create", &request).unwrap_err();
        assert!(refusal.message().contains("OCI runtime create failed: it ended with status 137"), "{refusal:?}");
        assert_never_was(&scene, &bundle, &mut shim);
        assert_eq!(mounted_below(bundle.dir()), 0);
    }
    assert_eq!(containerd.story(bundle.id()), [""; 0]);
    let bundle = bundle.configure(|c| c["hooks"] = serde_json::json!({}));
    let _: CreateTaskResponse = shim.connection.call(TASK, "Create", &request).unwrap();
    shim.start("").unwrap();
    shim.discard();
    drop(bundle);
}

#[test]
fn a_runc_that_is_killed_at_any_moment_of_create_leaves_nothing() {
    let Some(program) = runtime("runc") else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "1000"]);
    // Kills runc's create after as many milliseconds as the file says.
    let wrapper = scene.path("runc-killer");
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' create '*) ;; *) exec {runc} \"$@\" ;; esac\n\
         {runc} \"$@\" & p=$!\nread ms <{dir}/delay\nsleep 0.$ms\nkill -9 $p\nwait $p\n",
        runc = program.display(),
        dir = scene.dir().display(),
    );
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut shim = Launch::new(&scene, &bundle).runtime(&wrapper).start();
    let mut killed = 0;
    for ms in (4..60).step_by(4) {
        fs::write(scene.path("delay"), format!("{ms:03}\n")).unwrap();
        match shim.create(&Stdio::none()) {
            Err(_) => {
                killed += 1;
                assert_never_was(&scene, &bundle, &mut shim);
            }
            // It was too quick.
            Ok(_) => drop(shim.delete("").unwrap()),
        }
    }
    assert!(killed > 0);
    shim.shutdown();
}

#[test]
fn background_processes_end_with_a_shared_pid_namespace_too() {
    let Some(program) = runtime("runc") else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sh", "-c", "sleep 1000 & echo started; read go; exit 0"]);
    let bundle = bundle.configure(|c| {
        let namespaces = c["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|n| n["type"] != "pid");
    });
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    let stdio = Stdio::fifos(&scene, "init");
    let (stdout, _stderr) = stdio.readers();
    shim.run(&stdio);
    stdout.wait_for("started\n");
    let pids: Vec<u32> = shim.pids().unwrap().processes.iter().map(|p| p.pid).collect();
    assert_eq!(pids.len(), 2, "{pids:?}");
    stdio.input().write(b"go\n");
    assert_eq!(shim.wait_status(""), 0);
    assert_eq!(stdout.text(), "started\n", "the end comes, since nobody holds stdout any more");
    // A process that dies closes what it holds first.
    eventually("all processes should be gone", || {
        let left: Vec<_> = pids.iter().filter(|p| process::is_alive(**p)).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    shim.delete("").unwrap();
    shim.shutdown();
}

/// Two containerds, each with a container of that name; their control groups' names differ.
#[test]
fn containers_of_the_same_name_under_two_daemons_never_meet() {
    if runtime("holdfast-oci").is_none() {
        return;
    }
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundles = [(); 2].map(|()| Bundle::busybox(&scene, &["/bin/sleep", "1000"]));
    let launch = |n: usize| Launch::new(&scene, &bundles[n]).id("same").address(scene.path(format!("{n}.sock")));
    let [mut one, mut other] = [0, 1].map(|n| launch(n).start());
    let init = one.run(&Stdio::none());
    other.run(&Stdio::none());
    other.kill("", 9).unwrap();
    assert_eq!(other.wait_status(""), 137);
    other.delete("").unwrap();
    other.shutdown();
    launch(1).delete();
    assert_eq!(one.status(""), Status::RUNNING);
    assert!(process::is_alive(init));
    one.exec("e", &["/bin/true"], &Stdio::none()).unwrap();
    one.start("e").unwrap();
    assert_eq!(one.wait_status("e"), 0);
    one.discard();
}

#[test]
fn the_reader_of_a_real_container_may_come_late() {
    let Some(program) = runtime("runc") else { return };
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/echo", "last words"]);
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    let stdio = Stdio::output(&scene, "init");
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 0);
    assert_eq!(Reader::open(&stdio.stdout).text(), "last words\n");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_container_cannot_write_to_the_runtime_that_the_shim_executed() {
    let Some(program) = runtime("holdfast-oci") else { return };
    if !process::is_static(&program) {
        return skip("the runtime needs a loader, which the container has not");
    }
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "100000"]);
    let log = bundle.dir().join("rootfs/fifo");
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut shim = Launch::new(&scene, &bundle).runtime(&program).start();
    shim.run(&Stdio::none());
    // The container makes the runtime that enters it execute itself; it waits for a reader of its log then.
    let itself = ["/proc/self/exe", "--root", "/none", "--log", "/fifo", "state", "x"];
    let mut enter = |id: String| {
        shim.exec(&id, &itself, &Stdio::none()).unwrap();
        let pid = shim.start(&id).unwrap().pid;
        eventually("the runtime executes itself", || {
            let said = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
            if said.starts_with(b"/proc/self/exe\0") {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&said).into_owned())
            }
        });
        let image = PathBuf::from(format!("/proc/{pid}/exe"));
        let refusal = fs::OpenOptions::new().write(true).open(&image).unwrap_err();
        assert_eq!(refusal.raw_os_error(), Some(libc::EROFS), "{refusal}");
        (id, fs::metadata(image).unwrap().dev())
    };
    // Two that the shim has executed are of one copy, unless it rested in between; each that a runtime makes is another.
    let mut ids = Vec::new();
    let mut pairs = 0;
    eventually("two from one copy", || {
        pairs += 1;
        let [(first, one), (second, other)] = [1, 2].map(|n| enter(format!("e{pairs}-{n}")));
        ids.extend([first, second]);
        if one == other { Ok(()) } else { Err((one, other)) }
    });
    let fds = PathBuf::from(format!("/proc/{}/fd", shim.process().pid()));
    eventually("the copy goes when the shim rests", || {
        let links = fs::read_dir(&fds).unwrap().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        let left = links.filter(|to| to.ends_with("holdfast-oci")).count();
        if left == 0 { Ok(()) } else { Err(left) }
    });
    for id in ids {
        shim.kill(&id, libc::SIGKILL).unwrap();
        shim.wait(&id).unwrap();
        shim.delete(&id).unwrap();
    }
    shim.discard();
}

#[test]
fn a_root_file_system_of_busybox_is_enough_for_the_tests() {
    let Some(_) = runtime("runc") else { return };
    let scene = Scene::new();
    let root = scene.make_dir("root");
    bundle::fill_with_busybox(&root);
    let output = process::run(scene.command(root.join("bin/busybox")).args(["echo", "works"]));
    assert_eq!(output.stdout, b"works\n");
}
