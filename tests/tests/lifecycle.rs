//! Ring 2: the life of a container, from `start` to Shutdown. Read this one first.
#![allow(clippy::unwrap_used)]

use holdfast_tests::shim::{NAMESPACE, Status};
use holdfast_tests::wire::Code;
use holdfast_tests::{Bundle, FakeContainerd, FakeRuntime, Launch, Scene, Stdio, process};

#[test]
fn a_container_is_created_started_killed_deleted() {
    let scene = Scene::new();
    let containerd = FakeContainerd::start(&scene);
    let runtime = FakeRuntime::new(&scene);
    let bundle = Bundle::plain(&scene, &["/bin/sleep", "1000"]);
    let mut shim = Launch::new(&scene, &bundle).fake(&runtime).start();

    let created = shim.create(&Stdio::none()).unwrap();
    assert!(process::is_alive(created.pid));
    assert_eq!(shim.status(""), Status::CREATED);

    assert_eq!(shim.start("").unwrap().pid, created.pid);
    let state = shim.state("").unwrap();
    assert_eq!(state.status.enum_value(), Ok(Status::RUNNING));
    assert_eq!((state.id.as_str(), state.pid), (bundle.id(), created.pid));
    assert_eq!(state.bundle, bundle.dir().to_str().unwrap());

    shim.kill("", libc::SIGTERM).unwrap();
    let waited = shim.wait("").unwrap();
    assert_eq!(waited.exit_status, 143);
    assert!(waited.exited_at.seconds > 0, "an exit has a time");
    assert_eq!(shim.status(""), Status::STOPPED);

    let deleted = shim.delete("").unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (created.pid, 143));
    assert_eq!(deleted.exited_at, waited.exited_at);
    assert_eq!(shim.state("").unwrap_err().code(), Code::NOT_FOUND);

    let story = containerd.wait_for(bundle.id(), "delete 143");
    assert_eq!(story, ["create", "start", "exit 143", "delete 143"]);
    assert!(containerd.events().iter().all(|e| e.namespace == NAMESPACE));
    shim.shutdown();
}
