//! `holdfast-oci`: the embedded OCI runtime, a runc-compatible command line over the crate libcontainer.
//!
//! Each verb has a file of its own; `main` parses, prepares the log, runs one verb and turns its result into an exit
//! code. Nothing here starts a thread: libcontainer forks from this process.
//!
//! Where things are decided:
//! - `spec_check` refuses by name what libcontainer would ignore, before anything is created; `normalize` rewrites what
//!   it would get wrong;
//! - `record` keeps the state directory, `process` says what is true of a pid, and a container's status is always
//!   derived from the two, never remembered;
//! - `launch` starts processes for `create` and `exec`, with libcontainer from the container's inside on; `payload` is
//!   the code that runs last there;
//! - `cgroup`, `devices`, `mounts`, `sources` and `idmap` do what the crate leaves out.

mod cgroup;
mod cli;
mod clock;
mod console;
mod create;
mod delete;
mod devices;
mod error;
mod exec;
mod features;
mod hooks;
mod host_dev;
mod idmap;
mod keyring;
mod kill;
mod launch;
mod list;
mod log;
mod mounts;
mod network;
mod normalize;
mod pause;
mod payload;
mod process;
mod protect;
mod ps;
mod record;
mod run;
mod seccomp;
mod signals;
mod sources;
mod spec_check;
mod start;
mod state;
mod sys;
mod update;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::error::Failure;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(wrong) => {
            // Help and version are no failures and belong on stdout; clap knows which is which.
            let code = u8::try_from(wrong.exit_code()).unwrap_or(1);
            let _ = wrong.print();
            return ExitCode::from(code);
        }
    };
    let log = log::Log::new(&cli.global);
    leave_a_directory_that_is_gone();
    match dispatch(&cli, &log) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            log.failure(&failure);
            match cli.command {
                // 1 could be the exit code of the process itself.
                Command::Exec(_) => ExitCode::from(255),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Goes to the root directory if the working directory was removed: the shim of a group stays in the bundle of its first
/// container, which may be the first to be deleted, and libcontainer wants to come back to where it was.
fn leave_a_directory_that_is_gone() {
    if std::env::current_dir().is_err() {
        let _ = std::env::set_current_dir("/");
    }
}

/// Runs the verb; what it returns is the exit code of the program.
fn dispatch(cli: &Cli, log: &log::Log) -> Result<u8, Failure> {
    let global = &cli.global;
    match &cli.command {
        Command::Create(args) => protect::ensure().and_then(|()| create::run(global, args, log)),
        Command::Run(args) => protect::ensure().and_then(|()| run::run(global, args, log)),
        Command::Exec(args) => protect::ensure().and_then(|()| exec::run(global, args, log)),
        Command::Start(args) => start::run(global, &args.id),
        Command::State(args) => state::run(global, &args.id),
        Command::Kill(args) => kill::run(global, args),
        Command::Delete(args) => delete::run(global, args),
        Command::Ps(args) => ps::run(global, args),
        Command::Pause(args) => pause::pause(global, &args.id),
        Command::Resume(args) => pause::resume(global, &args.id),
        Command::Update(args) => update::run(global, args),
        Command::List(args) => list::run(global, args),
        Command::Features => features::run(),
        Command::Checkpoint(_) => Err(Failure::NotSupported { what: "checkpoint" }),
        Command::Restore(_) => Err(Failure::NotSupported { what: "restore" }),
    }
}
