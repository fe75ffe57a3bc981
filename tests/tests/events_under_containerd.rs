//! Ring 3: what happens while containerd is dead, killed with SIGKILL, is told by its successor, in order; in each cell of the
//! matrix; see `with_containerd.rs`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use holdfast_tests::container::Container;
use holdfast_tests::containerd::Events;
use holdfast_tests::matrix;
use holdfast_tests::matrix::Real;
use holdfast_tests::process::Stopped;
use holdfast_tests::{eventually, gate, process, programs};

matrix!(
    exits_and_lack_of_memory_are_told_in_order_when_containerd_is_back,
    what_a_shim_that_was_killed_with_containerd_had_not_told_is_told,
);

/// Listens in containerd's place where shims bring their events, and answers nothing: so containerd's successor can be asked
/// for its events before the first of them comes.
struct InItsPlace {
    listener: UnixListener,
    connections: Arc<Mutex<Vec<UnixStream>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl InItsPlace {
    fn of_containerd(real: &Real<'_>) -> Self {
        let path = its_place(real);
        let _ = fs::remove_file(&path);
        Self::at(&path)
    }

    fn at(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (accepting, connections) = (listener.try_clone().unwrap(), Arc::<Mutex<Vec<_>>>::default());
        let taken = Arc::clone(&connections);
        let accept = move || accepting.incoming().map_while(Result::ok).for_each(|c| taken.lock().unwrap().push(c));
        Self { listener, connections, acceptor: Some(thread::spawn(accept)) }
    }

    fn wait_for_one(&self) {
        eventually("somebody should come", || match self.connections.lock().unwrap().len() {
            0 => Err("nobody"),
            _ => Ok(()),
        });
    }

    fn give_way(mut self) {
        nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
        self.acceptor.take().unwrap().join().unwrap();
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// Where shims bring their events.
fn its_place(real: &Real<'_>) -> PathBuf {
    real.scene.path("c.sock.ttrpc")
}

/// In the order in which they are opened.
const GATES: [&str; 3] = ["e1", "e2", "init"];

/// A container that may have 32 MiB, with execs that go on when somebody writes into their FIFOs: `e1` to exit with 9, `e2` to
/// lack memory, and init to exit with 7. Who waits there needs no memory, which would be refused to it in `e2`'s stead.
fn with_two_execs<'a>(real: &'a Real<'_>) -> (Container<'a>, [u32; 3]) {
    for gate in GATES {
        gate::make_still(real.containerd.rootfs(), gate);
    }
    let gated = |gate: &str, then: &str| format!("{}; {then}", gate::wait_still_at(gate));
    let container = real.container();
    let output = container.run(&["--detach", "--memory-limit", "33554432"], &gated("init", "exit 7"));
    assert!(output.status.success(), "{}", real.containerd.complain(&output));
    let mut pids = container.pids();
    let init = pids[0];
    let mut exec = |id: &str, then: &str| {
        let output = container.exec(id, &["--detach"], &["/bin/sh", "-c", &gated(id, then)]);
        assert!(output.status.success(), "{}", real.containerd.complain(&output));
        // Their children come and go, and have parents in the container.
        eventually("the exec should be listed", || {
            let all = container.pids();
            let of_exec = |pid: u32| process::describe(pid).contains(&format!("/{id} "));
            let outside = |pid: u32| process::parent(pid).is_some_and(|parent| !all.contains(&parent));
            let shell = all.iter().copied().find(|pid| !pids.contains(pid) && of_exec(*pid) && outside(*pid));
            shell.inspect(|pid| pids.push(*pid)).ok_or("it is not")
        })
    };
    let execs = [exec("e1", "exit 9"), exec("e2", gate::GREEDY)];
    (container, [execs[0], execs[1], init])
}

/// Lets them end, one after the other.
fn let_end(real: &Real<'_>, pids: [u32; 3]) {
    for (gate, pid) in GATES.into_iter().zip(pids) {
        gate::open_still(real.containerd.rootfs(), gate);
        process::until_gone(pid);
    }
}

/// `oom`, `exit e1 9`, `exit 7` and so on, up to the exit of init.
fn told(events: &Events, container: &Container<'_>) -> Vec<String> {
    eventually("init's exit should be told", || {
        let seen = events.of_tasks_until("exit").into_iter().map(|(topic, line)| {
            let event: serde_json::Value = serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap();
            match (topic.as_str(), event["id"].as_str()) {
                ("exit", Some(id)) if id == container.id => format!("exit {}", event["exit_status"]),
                ("exit", Some(id)) => format!("exit {id} {}", event["exit_status"]),
                _ => topic,
            }
        });
        let seen: Vec<String> = seen.collect();
        if seen.iter().any(|line| line.starts_with("exit") && line.split(' ').count() == 2) {
            Ok(seen)
        } else {
            Err(seen)
        }
    })
}

const STORY: [&str; 4] = ["exit e1 9", "oom", "exit e2 137", "exit 7"];

fn exits_and_lack_of_memory_are_told_in_order_when_containerd_is_back(real: &Real<'_>) {
    if real.lacks_controllers() {
        return;
    }
    let (container, pids) = with_two_execs(real);
    let (address, shim) = (container.address(), container.shim_pid());
    real.containerd.kill();
    let_end(real, pids);
    let place = InItsPlace::of_containerd(real);
    // Whoever connects to a shim may be a containerd that is back: it tries again at once.
    drop(UnixStream::connect(&address).unwrap());
    place.wait_for_one();
    real.containerd.resume();
    // Tired of waiting it would go to containerd, before anybody listens there.
    let stopped = Stopped::new(shim);
    let events = real.containerd.listen();
    drop(stopped);
    place.give_way();
    assert_eq!(told(&events, &container), STORY);
    assert_eq!(real.containerd.delete(&container.id), 7);
}

/// containerd has our `delete` clean up at its start, before it takes events and without telling anything itself.
fn what_a_shim_that_was_killed_with_containerd_had_not_told_is_told(real: &Real<'_>) {
    if real.lacks_controllers() {
        return;
    }
    // It may be served before this test can ask for events: so `delete` brings them elsewhere, until this test has asked.
    let elsewhere = real.scene.path("elsewhere.sock");
    let program = programs::shim();
    let dir = real.scene.make_dir("wrapper");
    let script = format!(
        "#!/bin/sh\nfor a; do [ \"$a\" != delete ] || export TTRPC_ADDRESS={elsewhere:?}; done\nexec {program:?} \"$@\"\n"
    );
    let wrapper = dir.join(program.file_name().unwrap());
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    real.containerd.restart_with("PATH", &format!("{}:{}", dir.display(), real.containerd.path()));

    let (container, pids) = with_two_execs(real);
    let shim = container.shim();
    real.containerd.kill();
    let_end(real, pids);
    // It has told all who wait.
    container.wait_status("");
    shim.kill();
    shim.wait_gone();
    let place = InItsPlace::at(&elsewhere);
    real.containerd.resume();
    let events = real.containerd.listen();
    place.wait_for_one();
    fs::remove_file(&elsewhere).unwrap();
    symlink(its_place(real), &elsewhere).unwrap();
    place.give_way();
    assert_eq!(told(&events, &container), STORY);
    assert_eq!(real.containerd.task(&container.id), None);
    real.containerd.ok(&["container", "delete", &container.id]);
    eventually("nothing should be left", || match real.scene.run_files() {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
}
