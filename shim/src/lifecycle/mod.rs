//! What may happen to the processes of this shim, and what must be done about it. Pure: no fd, clock, path, future or
//! wire type; a time comes with the input that needs it.
//!
//! ```text
//!   Input ──> Lifecycle::handle ──> Effects, to be performed in order
//!                                      │ Begin(work) …
//!   Input::Done <──────────────────────┘ … whose outcome comes back as an input
//! ```
//!
//! The init process of a task:
//!
//! ```text
//!   Creating ──> Created ──> Starting ──> Running <──> Pausing/Paused
//!      │            │            │           │              │
//!    (undone)       └────────────┴───────────┴──────────────┴──> Stopped ──> (deleted)
//!
//!   Creating ──> FromCheckpoint <──> Restoring ──> Running
//!                      └──> (deleted)
//! ```
//!
//! A task that is created from a checkpoint is unknown to the OCI runtime until `Start` restores it: it has no pid, nothing
//! in it can end, and a restore that fails leads back to where it began.
//!
//! The sandbox of a pod, if a client drives one, has a picture of its own in `sandbox.rs`.
//!
//! An exec process: `Created ──> Starting ──> Running ──> Stopped`; a start that fails leads back to `Created`.
//!
//! # The order rules
//! Other files cite these by name. Sources: contract 3.4, 3.6, 4.2 and 10; containerd `core/runtime/v2/README.md`.
//!
//! - **start before exit**: a process's start is announced before its exit, even if it died before the runtime returned.
//!   Exits that no process claims are stashed while a call is in flight that may yet name their pid.
//! - **init last**: the exit of the init process is the last exit of its task; it waits for the execs that run or start,
//!   and in a shared pid namespace until the runtime has killed the others, or failed to: who hears of it may start the
//!   container again, and would find their ports taken. No exec starts once init was reaped.
//! - **heard out before announced**: an exit is announced once what the process had printed has reached its reader, if one
//!   is there and takes it within a short bound. Some clients (ctr 1.6) stop reading when they hear of the exit.
//! - **out of memory before exit**: that processes were killed for want of memory is announced before the exit of one that
//!   was, as its status 137 alone does not say why. After init's exit nothing is said of it any more.
//! - **saved before announced**: the record holds a fact before an event or a reply tells it.
//! - **one at a time**: calls that change the same process are carried out one after the other, in the order of arrival;
//!   the shim's own errands come first. OCI runtimes do not lock: one that deletes finds frozen what another is killing.
//!   What only asks (`State`, `Wait`, `Pids`, `Connect`, `Stats`) never waits for them. Nor does a Delete while the task is
//!   being created: there is none yet, and what comes of the Create is undone.
//! - **an answer for each request**: every request gets exactly one reply, whatever happens to its process; a task that is
//!   deleted answers all that still wait.

mod effect;
mod exec;
mod exit;
mod init;
mod input;
mod refusal;
mod sandbox;
mod task;

#[cfg(test)]
mod tests;

pub use effect::{Effect, Effects, Event, KnownProcess, ProcessView, Reply, Status, Work};
pub use exit::{Exit, ExitStatus};
pub use input::{Asker, CallId, ExecId, Failure, FailureKind, Input, Outcome, Pid, ProcessId, Request, TaskId, Verb};
pub use refusal::Refusal;
pub use sandbox::{SandboxRequest, SandboxVerb, SandboxView};
pub use task::Lifecycle;
