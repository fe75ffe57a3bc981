//! Ring 2: ttrpc itself, spoken well and badly.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{ConnectRequest, ConnectResponse, Empty, StateRequest, StateResponse};
use holdfast_tests::shim::{Status, TASK};
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::wire::{CallError, Code, Connection, Frame};
use holdfast_tests::{Bundle, FakeWorld, Shim, Stdio, process, programs};
use protobuf::Message;

const TASK_V3: &str = "containerd.task.v3.Task";
const WHILE: Duration = Duration::from_secs(10);

fn running(world: &FakeWorld) -> (Bundle, Shim) {
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    (bundle, shim)
}

fn state_frame(shim: &Shim, stream_id: u32) -> Frame {
    let request = StateRequest { id: shim.id().into(), ..StateRequest::default() };
    Frame::request(stream_id, TASK, "State", request.write_to_bytes().unwrap())
}

/// The reply to a State request, or how it ended.
fn state_reply(connection: &mut Connection) -> Result<StateResponse, CallError> {
    let frame = connection.read_frame(WHILE)?;
    Ok(StateResponse::parse_from_bytes(&frame.result()?).unwrap())
}

/// The connection still works.
#[track_caller]
fn assert_usable(connection: &mut Connection, shim: &Shim, stream_id: u32) {
    connection.send(&state_frame(shim, stream_id).to_bytes()).unwrap();
    let frame = connection.read_frame(WHILE).unwrap();
    assert_eq!(frame.stream_id, stream_id);
    frame.result().unwrap();
}

#[test]
fn an_unknown_service_is_unimplemented() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    // containerd 2.x falls back from version 3 to 2 on this code and on no other.
    for service in ["containerd.task.v9.Task", "containerd.services.streaming.v1.Streaming", "", "x"] {
        let reply: Result<Empty, _> = shim.connection.call(service, "State", &Empty::default());
        assert_eq!(reply.unwrap_err().code(), Code::UNIMPLEMENTED, "{service:?}");
    }
    shim.discard();
}

#[test]
fn an_unknown_method_is_unimplemented() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    for method in ["Levitate", "", "state"] {
        let reply: Result<Empty, _> = shim.connection.call(TASK, method, &Empty::default());
        assert_eq!(reply.unwrap_err().code(), Code::UNIMPLEMENTED, "{method:?}");
    }
    shim.discard();
}

#[test]
fn both_versions_of_the_task_service_are_served() {
    let world = FakeWorld::new();
    let (bundle, mut shim) = running(&world);
    let request = StateRequest { id: bundle.id().into(), ..StateRequest::default() };
    let v2: StateResponse = shim.connection.call(TASK, "State", &request).unwrap();
    let v3: StateResponse = shim.connection.call(TASK_V3, "State", &request).unwrap();
    assert_eq!(v2, v3);
    shim.discard();
}

#[test]
fn a_payload_that_is_no_message_is_refused() {
    let world = FakeWorld::new();
    let (_bundle, shim) = running(&world);
    let mut connection = shim.connect_again();
    for (n, method) in ["State", "Create", "Exec", "Kill", "Wait"].into_iter().enumerate() {
        let id = u32::try_from(2 * n + 1).unwrap();
        connection.send(&Frame::request(id, TASK, method, vec![0xff; 7]).to_bytes()).unwrap();
        let refusal = connection.read_frame(WHILE).unwrap().result().unwrap_err();
        assert!(matches!(refusal.code(), Code::INVALID_ARGUMENT | Code::INTERNAL), "{method}: {refusal:?}");
    }
    assert_usable(&mut connection, &shim, 101);
    shim.discard();
}

#[test]
fn a_request_that_is_no_message_is_refused_on_its_stream() {
    let world = FakeWorld::new();
    let (_bundle, shim) = running(&world);
    let mut connection = shim.connect_again();
    let frame = Frame { stream_id: 1, kind: 1, flags: 0, payload: vec![0xff; 20] };
    connection.send(&frame.to_bytes()).unwrap();
    let reply = connection.read_frame(WHILE).unwrap();
    assert_eq!(reply.stream_id, 1);
    assert_eq!(reply.result().unwrap_err().code(), Code::INVALID_ARGUMENT);
    assert_usable(&mut connection, &shim, 3);
    shim.discard();
}

#[test]
fn stream_ids_must_be_odd_and_grow() {
    let world = FakeWorld::new();
    let (_bundle, shim) = running(&world);
    let mut connection = shim.connect_again();
    assert_usable(&mut connection, &shim, 5);
    for id in [6, 5, 3] {
        connection.send(&state_frame(&shim, id).to_bytes()).unwrap();
        let reply = connection.read_frame(WHILE).unwrap();
        assert_eq!(reply.stream_id, id);
        assert_eq!(reply.result().unwrap_err().code(), Code::INVALID_ARGUMENT, "{id}");
    }
    assert_usable(&mut connection, &shim, 1001);
    shim.discard();
}

#[test]
fn a_frame_that_is_too_large_is_refused_and_skipped() {
    const LIMIT: usize = 4 << 20;
    let world = FakeWorld::new();
    let (_bundle, shim) = running(&world);
    let mut connection = shim.connect_again();
    let frame = Frame { stream_id: 1, kind: 1, flags: 0, payload: vec![0; LIMIT + 1] };
    connection.send(&frame.to_bytes()).unwrap();
    let reply = connection.read_frame(WHILE).unwrap();
    assert_eq!(reply.stream_id, 1);
    assert_eq!(reply.result().unwrap_err().code(), Code::RESOURCE_EXHAUSTED);
    assert_usable(&mut connection, &shim, 3);
    shim.discard();
}

#[test]
fn frames_of_unknown_kinds_are_ignored() {
    let world = FakeWorld::new();
    let (_bundle, shim) = running(&world);
    let mut connection = shim.connect_again();
    for kind in [0, 2, 3, 77] {
        let frame = Frame { kind, ..state_frame(&shim, 1) };
        connection.send(&frame.to_bytes()).unwrap();
    }
    // The first reply is the one to the request.
    assert_usable(&mut connection, &shim, 9);
    shim.discard();
}

#[test]
fn a_frame_may_come_byte_by_byte() {
    let world = FakeWorld::new();
    let (_bundle, shim) = running(&world);
    let mut connection = shim.connect_again();
    for byte in state_frame(&shim, 1).to_bytes() {
        connection.send(&[byte]).unwrap();
        connection.socket().flush().unwrap();
    }
    assert_eq!(state_reply(&mut connection).unwrap().status.enum_value(), Ok(Status::RUNNING));
    shim.discard();
}

#[test]
fn many_frames_may_come_at_once() {
    let world = FakeWorld::new();
    let (_bundle, shim) = running(&world);
    let mut connection = shim.connect_again();
    let ids: Vec<u32> = (0..100).map(|n| 2 * n + 1).collect();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| state_frame(&shim, *id).to_bytes()).collect();
    // Cut where no frame ends.
    let (head, tail) = bytes.split_at(bytes.len() / 2 + 3);
    connection.send(head).unwrap();
    connection.send(tail).unwrap();
    let mut answered: Vec<u32> = ids.iter().map(|_| connection.read_frame(WHILE).unwrap().stream_id).collect();
    answered.sort_unstable();
    assert_eq!(answered, ids);
    shim.discard();
}

#[test]
fn an_unfinished_frame_holds_up_nobody() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    let mut others: Vec<Connection> = (0..4).map(|_| shim.connect_again()).collect();
    let bytes = state_frame(&shim, 1).to_bytes();
    for (other, cut) in others.iter_mut().zip([1, 9, 10, bytes.len() - 1]) {
        other.send(&bytes[..cut]).unwrap();
    }
    assert_eq!(shim.status(""), Status::RUNNING);
    // The rest may come later.
    for (other, cut) in others.iter_mut().zip([1, 9, 10, bytes.len() - 1]) {
        other.send(&bytes[cut..]).unwrap();
        state_reply(other).unwrap();
    }
    drop(others);
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.discard();
}

#[test]
fn garbage_ends_at_most_its_own_connection() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    let samples: [&[u8]; 4] = [b"GET / HTTP/1.1\r\n\r\n", &[0; 64], &[0xff; 64], b"\n"];
    for bytes in samples {
        let mut other = shim.connect_again();
        let _ = other.send(bytes);
        drop(other);
        assert_eq!(shim.status(""), Status::RUNNING);
    }
    shim.discard();
}

#[test]
fn a_hundred_connections_are_served() {
    let world = FakeWorld::new();
    let (_bundle, shim) = running(&world);
    let mut connections: Vec<Connection> = (0..100).map(|_| shim.connect_again()).collect();
    for connection in &mut connections {
        connection.send(&state_frame(&shim, 1).to_bytes()).unwrap();
    }
    for connection in &mut connections {
        assert_eq!(state_reply(connection).unwrap().status.enum_value(), Ok(Status::RUNNING));
    }
    shim.discard();
}

#[test]
fn a_client_that_reads_no_replies_holds_up_nobody() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    let mut deaf = shim.connect_again();
    deaf.socket().set_nonblocking(true).unwrap();
    // Until the socket takes no more, or enough replies are due to fill the one for the way back.
    for n in 0..20_000 {
        if deaf.send(&state_frame(&shim, 2 * n + 1).to_bytes()).is_err() {
            break;
        }
    }
    for _ in 0..10 {
        assert_eq!(shim.status(""), Status::RUNNING);
    }
    drop(deaf);
    shim.discard();
}

#[test]
fn replies_that_waited_for_a_slow_client_come_whole_and_each_once() {
    const REQUESTS: u32 = 20_000;
    let world = FakeWorld::new();
    let (_bundle, shim) = running(&world);
    let mut slow = shim.connect_again();
    let frame = state_frame(&shim, 1).to_bytes();
    let mut writer = slow.socket().try_clone().unwrap();
    // Far more than the socket holds, either way; the shim stops reading for a while.
    let writes = std::thread::spawn(move || {
        for n in 0..REQUESTS {
            let mut bytes = frame.clone();
            bytes[4..8].copy_from_slice(&(2 * n + 1).to_be_bytes());
            writer.write_all(&bytes).unwrap();
        }
    });
    for n in 0..REQUESTS {
        let reply = slow.read_frame(WHILE).unwrap();
        assert_eq!(reply.stream_id, 2 * n + 1);
        StateResponse::parse_from_bytes(&reply.result().unwrap()).unwrap();
    }
    writes.join().unwrap();
    shim.discard();
}

#[test]
fn a_shim_without_free_descriptors_serves_whom_it_knows_and_the_others_later() {
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    let pid = shim.process().pid();
    // Every free number below the limit is gone.
    let before = holdfast_tests::sys::limit_files(pid, 3).unwrap();
    let mut waiting: Vec<Connection> = (0..3).map(|_| shim.connect_again()).collect();
    for connection in &mut waiting {
        connection.send(&state_frame(&shim, 1).to_bytes()).unwrap();
    }
    for _ in 0..10 {
        assert_eq!(shim.status(""), Status::RUNNING);
    }
    holdfast_tests::sys::limit_files(pid, before).unwrap();
    for connection in &mut waiting {
        assert_eq!(state_reply(connection).unwrap().status.enum_value(), Ok(Status::RUNNING));
    }
    shim.discard();
}

#[test]
fn a_connection_that_ends_while_it_waits_harms_nobody() {
    let world = FakeWorld::new();
    let (bundle, mut shim) = running(&world);
    let mut other = world.launch(&bundle).attach(shim.address());
    other.begin_wait("");
    drop(other.connection);
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.kill("", 9).unwrap();
    assert_eq!(shim.wait_status(""), 137);
    // `other` holds a handle on the same process, which is to end by itself.
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn half_a_close_still_gets_its_reply() {
    let world = FakeWorld::new();
    let (bundle, shim) = running(&world);
    let mut other = shim.connect_again();
    let request = ConnectRequest { id: bundle.id().into(), ..ConnectRequest::default() };
    let frame = Frame::request(1, TASK, "Connect", request.write_to_bytes().unwrap());
    other.send(&frame.to_bytes()).unwrap();
    other.socket().shutdown(std::net::Shutdown::Write).unwrap();
    // A reply or the end: never a hang.
    match other.read_frame(WHILE) {
        Ok(frame) => {
            let reply = ConnectResponse::parse_from_bytes(&frame.result().unwrap()).unwrap();
            assert_eq!(reply.shim_pid, shim.process().pid());
        }
        Err(end) => assert_eq!(end, CallError::Closed),
    }
    shim.discard();
}

#[test]
fn another_user_is_not_served() {
    if !is_root() {
        return skip("needs root to become somebody else");
    }
    let world = FakeWorld::new();
    let (_bundle, mut shim) = running(&world);
    // The modes alone would keep others out; open them, so that only the check of the peer is left.
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let program = world.scene.path("poke");
    process::copy_program(programs::test_program("poke").as_ref(), &program);
    open(&program, 0o755);
    open(shim.socket(), 0o666);
    for dir in shim.socket().ancestors().skip(1).take_while(|d| d.starts_with(world.scene.dir())) {
        open(dir, 0o755);
    }
    open(world.scene.dir(), 0o755);
    let poke = |uid: u32, gid: u32| {
        let output = process::run(world.scene.command(&program).arg(shim.address()).uid(uid).gid(gid));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(poke(0, 0), "answered\n");
    assert_eq!(poke(65534, 65534), "refused\n");
    assert_eq!(poke(65534, 0), "refused\n");
    // As containerd demands of its own clients, the group counts too.
    assert_eq!(poke(0, 65534), "refused\n");
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.discard();
}
