//! `holdfastd`, the supervisor that may die at any moment, and `holdfast`, the command line.
//!
//! ```text
//!   holdfast (command line) ── ttrpc ── api ──┐
//!   shims' events ── events ──────────────────┤
//!   children, timers, probes, shims' answers ─┴─ Input ──> daemon ── asks ──> registry   (pure: decides)
//!                                                  ^           ^──── Effects ────┘
//!                                                  └─ results ─┴──> launch, client, attach, store, sys
//! ```
//!
//! The supervisor owns what the user asked for: configuration, restart policy, stop requests ([`store`]). What happened
//! to a process is its shim's to know; the supervisor asks and remembers only how the last run ended, once the shim is
//! gone. A supervisor that dies therefore loses nothing: the next one reads what was asked ([`store`]), finds the shims
//! ([`scan`]), asks them ([`attach`]) and goes on ([`registry`]).
//!
//! Invariants: [`registry`], [`policy`], [`identity`] and [`config`] know no descriptor, clock or future; nothing outside
//! [`sys`] is unsafe; nothing but [`sys::reaper`] waits on a child; output never passes through this process.

pub mod api;
pub mod attach;
pub mod cgroup;
pub mod cli;
pub mod client;
pub mod config;
pub mod container;
pub mod daemon;
pub mod doctor;
pub mod endings;
pub mod events;
pub mod health;
pub mod identity;
pub mod launch;
pub mod line_file;
pub mod listener;
pub mod log_policy;
pub mod logging;
pub mod metrics;
pub mod names;
pub mod notify;
pub mod observers;
pub mod offload;
pub mod output;
pub mod paths;
pub mod policy;
pub mod programs;
pub mod registry;
pub mod report;
pub mod scan;
pub mod spec;
pub mod stats;
pub mod store;
pub mod sys;

/// An error and all its causes on one line, for the edge where the story ends.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let part = e.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = e.source();
    }
    text
}
