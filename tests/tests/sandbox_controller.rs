//! Ring 3: the sandbox service as containerd's own controller drives it, for a client that asks for a sandbox and runs
//! containers in it. `sandbox.rs` and `sandbox_real.rs` have the service itself, in all that containerd does not ask for.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::thread;

use holdfast_tests::container::Container;
use holdfast_tests::controller::Sandbox;
use holdfast_tests::grpc::{CallError, code};
use holdfast_tests::matrix::Real;
use holdfast_tests::programs::Version;
use holdfast_tests::sandbox::{NOT_READY, READY};
use holdfast_tests::{Process, eventually, process};

holdfast_tests::matrix!(
    prepare;
    a_client_that_drives_the_controller_has_a_sandbox_from_create_to_shutdown,
    a_container_joins_a_sandbox_of_the_controller_which_outlives_it,
    a_sandbox_and_its_container_are_found_again_by_a_new_containerd,
    a_sandbox_whose_shim_was_killed_is_cleaned_up_after,
);

/// The namespaces that containers join here, by ctr's names and by those in `/proc`.
const SHARED: [(&str, &str); 4] = [("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("network", "net")];

/// A container in the sandbox that runs until it is killed; with its pid.
#[track_caller]
fn join<'a>(real: &'a Real<'a>, sandbox: &Sandbox<'_>, holder: &Process, n: usize) -> (Container<'a>, u32) {
    let container = real.numbered(n);
    let joined = SHARED.map(|(kind, name)| format!("{kind}:/proc/{}/ns/{name}", holder.pid()));
    // containerd 1.7 goes to the sandbox's shim; since 2.0 it runs `start`, which goes by the specification.
    let annotation = format!("io.kubernetes.cri.sandbox-id={}", sandbox.id);
    let mut flags = vec!["--detach", "--sandbox", &sandbox.id, "--annotation", &annotation];
    flags.extend(joined.iter().flat_map(|namespace| ["--with-ns", namespace.as_str()]));
    let output = container.run(&flags, "exec /bin/sleep 1000");
    assert!(output.status.success(), "{}", real.containerd.complain(&output));
    let pid = real.containerd.wait_for_status(&container.id, "RUNNING");
    (container, pid)
}

#[track_caller]
fn assert_shares(pid: u32, holder: &Process) {
    let namespace = |pid: u32, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    for (_, name) in SHARED {
        assert_eq!(namespace(pid, name), namespace(holder.pid(), name), "{name}");
        assert_ne!(namespace(pid, name), namespace(std::process::id(), name), "{name}");
    }
}

/// Kills a container's process and deletes task and container; the sandbox stays.
#[track_caller]
fn remove(real: &Real<'_>, container: &Container<'_>) {
    real.containerd.ok(&["task", "kill", "-s", "SIGKILL", &container.id]);
    real.containerd.wait_for_status(&container.id, "STOPPED");
    assert_eq!(real.containerd.delete(&container.id), 137);
}

#[track_caller]
fn assert_ready(sandbox: &Sandbox<'_>, holder: &Process) {
    let status = sandbox.status();
    assert_eq!((status.state.as_str(), status.pid), (READY, holder.pid()), "{status}");
}

/// The answer of Wait.
#[track_caller]
fn assert_told(answer: Result<Option<u32>, CallError>, status: u32) {
    let told = answer.unwrap();
    assert!(told.is_none_or(|told| told == status), "{told:?}");
}

fn a_client_that_drives_the_controller_has_a_sandbox_from_create_to_shutdown(real: &Real<'_>) {
    let Some(sandbox) = Sandbox::of(real) else { return };
    sandbox.enter();
    sandbox.create().unwrap();
    assert_eq!(sandbox.create().unwrap_err().code(), code::ALREADY_EXISTS);
    let status = sandbox.status();
    assert_eq!((status.state.as_str(), status.pid), (NOT_READY, 0), "{status}");
    let holder = sandbox.start();
    assert_ready(&sandbox, &holder);
    assert_ne!(sandbox.status().created_at.seconds, 0);
    let shim = sandbox.shim();
    // The shim has it (`sandbox.rs`), containerd does not hand the question on.
    assert_eq!(sandbox.platform(), code::UNIMPLEMENTED);
    if let Some(kind) = sandbox.metrics_type() {
        assert!(kind.ends_with(".Metrics"), "{kind:?}");
    }
    thread::scope(|scope| {
        let wait = scope.spawn(|| sandbox.wait());
        sandbox.stop();
        assert_told(wait.join().unwrap(), 0);
    });
    holder.wait_gone();
    sandbox.stop();
    assert_told(sandbox.wait(), 0);
    let status = sandbox.status();
    assert_eq!((status.state.as_str(), status.pid), (NOT_READY, 0), "{status}");
    assert_ne!(status.exited_at.seconds, 0);
    sandbox.shutdown();
    shim.wait_gone();
    sandbox.wait_gone();
    sandbox.strike_out();
}

fn a_container_joins_a_sandbox_of_the_controller_which_outlives_it(real: &Real<'_>) {
    let Some(sandbox) = Sandbox::of(real) else { return };
    let holder = sandbox.run();
    let shim = sandbox.shim();
    for n in 0..2 {
        let (container, pid) = join(real, &sandbox, &holder, n);
        assert_shares(pid, &holder);
        assert_eq!(container.exec("e", &[], &["/bin/busybox", "hostname"]).stdout, b"of-the-pod\n");
        assert_eq!(container.shim_pid(), shim.pid(), "one shim for all");
        remove(real, &container);
        assert!(shim.is_alive() && holder.is_alive());
        assert_ready(&sandbox, &holder);
    }
    // One that is in it when it ends: the kernel ends all that is in the pid namespace of the holder.
    let (container, pid) = join(real, &sandbox, &holder, 2);
    sandbox.stop();
    process::until_gone(pid);
    real.containerd.wait_for_status(&container.id, "STOPPED");
    assert_eq!(real.containerd.delete(&container.id), 137);
    sandbox.shutdown();
    sandbox.wait_gone();
    sandbox.strike_out();
}

fn a_sandbox_and_its_container_are_found_again_by_a_new_containerd(real: &Real<'_>) {
    let Some(sandbox) = Sandbox::of(real) else { return };
    let holder = sandbox.run();
    let shim = sandbox.shim();
    let (container, pid) = join(real, &sandbox, &holder, 0);
    real.containerd.kill();
    real.containerd.resume();
    assert_ready(&sandbox, &holder);
    assert_eq!(real.containerd.task(&container.id), Some(("RUNNING".to_owned(), pid)));
    let (late, late_pid) = join(real, &sandbox, &holder, 1);
    assert_shares(late_pid, &holder);
    assert_eq!((container.shim_pid(), late.shim_pid()), (shim.pid(), shim.pid()));
    remove(real, &container);
    remove(real, &late);
    // It ends while containerd is away: a new one still learns how.
    real.containerd.kill();
    holder.kill();
    real.containerd.resume();
    assert_told(sandbox.wait(), 137);
    assert_eq!(sandbox.status().state, NOT_READY);
    sandbox.shutdown();
    sandbox.wait_gone();
    sandbox.strike_out();
}

fn a_sandbox_whose_shim_was_killed_is_cleaned_up_after(real: &Real<'_>) {
    let Some(sandbox) = Sandbox::of(real) else { return };
    let holder = sandbox.run();
    let (container, pid) = join(real, &sandbox, &holder, 0);
    sandbox.shim().kill();
    // containerd runs our delete command.
    holder.wait_gone();
    process::until_gone(pid);
    eventually("the task should be gone", || match real.containerd.tasks() {
        tasks if tasks.is_empty() => Ok(()),
        tasks => Err(tasks),
    });
    if real.containerd.version() == Version::V1_7 {
        // It runs that only for the sandbox, and for what it has put into its shim not before its next start.
        real.containerd.kill();
        real.containerd.resume();
    }
    sandbox.wait_gone();
    real.containerd.ok(&["container", "delete", &container.id]);
    sandbox.strike_out();
}
