//! Asks a shim for its pid and prints `answered` or `refused`; run as another user by the tests.

use containerd_shim_protos::api::{ConnectRequest, ConnectResponse};
use holdfast_tests::shim::TASK;
use holdfast_tests::wire::Connection;

fn main() {
    let address = std::env::args().nth(1).unwrap_or_default();
    let reply = Connection::open(&address).ok().and_then(|mut connection| {
        let reply: Result<ConnectResponse, _> = connection.call(TASK, "Connect", &ConnectRequest::default());
        reply.ok()
    });
    println!("{}", if reply.is_some() { "answered" } else { "refused" });
}
