//! The supervisor's entry point: settings in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use holdfast_supervisor::config::{Flags, Settings};
use holdfast_supervisor::{chain, daemon};

fn main() -> ExitCode {
    let flags = Flags::parse();
    let settings = match Settings::load(&flags) {
        Ok(settings) => settings,
        Err(e) => return fail(&e, 2),
    };
    if flags.check {
        return ExitCode::SUCCESS;
    }
    tracing_subscriber::fmt()
        .compact()
        .with_ansi(false)
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_max_level(settings.log_level)
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&e, 1),
    };
    let tasks = tokio::task::LocalSet::new();
    match tasks.block_on(&runtime, daemon::run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e, 1),
    }
}

fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("holdfastd: {}", chain(error));
    ExitCode::from(code)
}
