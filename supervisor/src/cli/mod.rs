//! The command line for people. One file per group of subcommands; [`render`] turns answers into text, [`connection`]
//! keeps a connection through restarts of the supervisor, [`streams`] moves bytes between a terminal and FIFOs.

pub mod args;
mod connection;
mod exec;
mod hook;
mod logs;
mod manage;
mod render;
mod run;
mod streams;
mod terminal;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use thiserror::Error;

use self::args::{Cli, Command};
use self::connection::Connection;
use crate::chain;

/// What the program exits with when it, or the supervisor, failed, as opposed to the container's command.
const FAILED: u8 = 125;

/// Why a command failed.
#[derive(Debug, Error)]
pub(crate) enum CliError {
    /// The supervisor's own words, with the exit code that they imply.
    #[error("{text}")]
    Refused { text: String, exit: u8 },
    /// There is no supervisor.
    #[error("cannot reach holdfastd at {socket} (is it running?)")]
    Unreachable { socket: String, source: ttrpc::Error },
    /// The connection broke in a request that must not be repeated.
    #[error("the connection to holdfastd broke; look with `holdfast ps -a` what became of the request")]
    Broken { source: ttrpc::Error },
    /// Something of ours failed.
    #[error("cannot {what}")]
    Io { what: String, source: std::io::Error },
    /// What was typed makes no sense.
    #[error("{0}")]
    Usage(String),
}

impl CliError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { exit, .. } => *exit,
            _ => FAILED,
        }
    }
}

type Outcome = Result<u8, CliError>;

/// Parses the arguments, does what they say, and reports the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print(); // nowhere to report a failure to
            return ExitCode::from(if e.use_stderr() { FAILED } else { 0 });
        }
    };
    let result = match &cli.command {
        Command::Completions { shell } => completions(*shell),
        Command::Man { directory } => man(directory),
        Command::Hook { hook } => hook::run(*hook),
        _ => run_async(&cli),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("holdfast: {}", chain(&e));
            ExitCode::from(e.exit_code())
        }
    }
}

fn run_async(cli: &Cli) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::io("start the event loop"))?;
    let result = runtime.block_on(dispatch(cli));
    // A thread that reads a terminal cannot be stopped; it ends with the process.
    runtime.shutdown_background();
    result
}

async fn dispatch(cli: &Cli) -> Outcome {
    let connection = Connection::new(cli.socket());
    match &cli.command {
        Command::Run(args) => run::run(connection, args).await,
        Command::Start { containers } => manage::start(connection, containers).await,
        Command::Attach { container, no_stdin } => run::attach(connection, container, *no_stdin).await,
        Command::Exec(args) => exec::run(connection, args).await,
        Command::Ps(args) => manage::ps(connection, args, cli.json).await,
        Command::Inspect { containers } => manage::inspect(connection, containers).await,
        Command::Logs(args) => logs::run(connection, args, cli.json).await,
        Command::Stop { containers, time } => manage::stop(connection, containers, *time).await,
        Command::Kill { containers, signal } => manage::kill(connection, containers, signal).await,
        Command::Rm { containers, force } => manage::remove(connection, containers, *force).await,
        Command::Wait { containers } => manage::wait(connection, containers, cli.json).await,
        Command::Events { since } => manage::events(connection, since.as_deref(), cli.json).await,
        Command::Update(args) => manage::update(connection, args).await,
        Command::Version => manage::version(connection, cli.json).await,
        Command::Info => manage::info(connection, cli.json).await,
        Command::Doctor => manage::doctor(connection, cli.json).await,
        Command::Completions { .. } | Command::Man { .. } | Command::Hook { .. } => Ok(0), // done before
    }
}

fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "holdfast", &mut text);
    std::io::stdout().write_all(&text).map_err(CliError::io("print the completions"))?;
    Ok(0)
}

fn man(directory: &std::path::Path) -> Outcome {
    let failed = || CliError::io(format!("write man pages into {}", directory.display()));
    std::fs::create_dir_all(directory).map_err(failed())?;
    clap_mangen::generate_to(Cli::command(), directory).map_err(failed())?;
    let daemon = clap_mangen::Man::new(crate::config::Flags::command()).section("8");
    let mut page = Vec::new();
    daemon.render(&mut page).map_err(failed())?;
    std::fs::write(directory.join("holdfastd.8"), page).map_err(failed())?;
    Ok(0)
}

/// Prints to standard output; a reader that has left (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError::io("print")(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }
}
