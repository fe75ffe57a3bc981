//! The supervisor's entry point: settings in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use holdfast_supervisor::config::{DEFAULT_FILE, Flags, Loaded, Settings};
use holdfast_supervisor::{chain, daemon, logging};

fn main() -> ExitCode {
    let flags = Flags::parse();
    let loaded = match Settings::load(&flags) {
        Ok(loaded) => loaded,
        Err(e) => return fail(&e, 2),
    };
    if flags.validate {
        return valid(&loaded);
    }
    let level = logging::begin(loaded.settings.log_level);
    for overridden in &loaded.overridden {
        tracing::warn!("{overridden}");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&e, 1),
    };
    let tasks = tokio::task::LocalSet::new();
    match tasks.block_on(&runtime, daemon::run(loaded.settings, flags, level)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e, 1),
    }
}

/// Says that nothing is wrong.
fn valid(loaded: &Loaded) -> ExitCode {
    match &loaded.file {
        Some(path) => println!("{}: valid", path.display()),
        None => println!("{DEFAULT_FILE}: not there, which is valid: the defaults hold"),
    }
    for overridden in &loaded.overridden {
        println!("{overridden}");
    }
    ExitCode::SUCCESS
}

fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("holdfastd: {}", chain(error));
    ExitCode::from(code)
}
