//! The payload of the demonstration: one static program that is a whole root file system.
//!
//! `counter` prints a number ten times a second until SIGTERM, which it answers by saying so and exiting with 143.
//! `counter look` is for an exec beside it: prints what it sees of the container.

use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::{env, fs};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Between two numbers, in milliseconds.
const PAUSE: u16 = 100;

fn main() -> ExitCode {
    match env::args().nth(1).as_deref() {
        None => count(),
        Some("look") => look(),
        Some(other) => {
            eprintln!("counter: unknown command {other:?}");
            ExitCode::from(2)
        }
    }
}

fn count() -> ExitCode {
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    // The first process of a container gets only signals that it asked for.
    term.thread_block().expect("the signal mask can be set");
    let signals = SignalFd::with_flags(&term, SfdFlags::SFD_CLOEXEC).expect("signals can be read from a descriptor");
    let mut out = std::io::stdout();
    for number in 1_u64.. {
        // Nobody reads any more: nothing is left to do.
        if writeln!(out, "{number}").and_then(|()| out.flush()).is_err() {
            return ExitCode::FAILURE;
        }
        let mut wanted = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, PollTimeout::from(PAUSE)).is_ok_and(|ready| ready > 0) {
            let _ = writeln!(out, "asked to stop at {number}"); // the exit code tells it too
            return ExitCode::from(143);
        }
    }
    unreachable!("nobody counts that far")
}

fn look() -> ExitCode {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    println!("host name {}; processes in here:", host.trim());
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        println!("  {pid:>3} {}", command.replace('\0', " ").trim());
    }
    ExitCode::SUCCESS
}
