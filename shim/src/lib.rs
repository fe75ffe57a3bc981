//! The shim: one process that owns a container (or the containers of a pod) and needs nobody in order to keep them
//! running, drained, logged and accounted for.
//!
//! ```text
//!   containerd ─── server ──┐
//!   children ───── reaper ──┼── Input ──> driver ── asks ──> lifecycle   (pure: decides)
//!   deadlines, io drained ──┘    ^           ^─── Effects ──────┘
//!                                │           │ performs, in order
//!                                └─ results ─┴──> record, oci, io, sys, cgroup, publish
//! ```
//!
//! Invariants: `lifecycle` is pure; unsafe code stands under `sys/` alone; only `sys/reaper.rs` waits on a child; only
//! `publish.rs` talks to containerd's event service; `server.rs` makes no decision; there is one thread at rest; and all
//! state can be written down at any time (`freeze.rs`), so nothing lives only in a task's stack.

mod ask;
pub mod cgroup;
pub mod cli;
pub mod cmd;
pub mod driver;
mod frame;
pub mod freeze;
pub mod io;
mod journal;
pub mod lifecycle;
pub mod logging;
pub mod mount_options;
pub mod oci;
mod offload;
pub mod options;
mod owned_task;
mod pod;
mod publish;
mod record;
mod rfc3339;
mod server;
#[cfg(test)]
mod skip;
pub mod sys;
mod wire;
