//! The command line for people. One file per group of subcommands; `render` turns answers into text, `say` is where
//! all of it leaves, `advice` knows what to do next after a failure, `connection` keeps a connection through restarts
//! of the supervisor, `streams` moves bytes between a terminal and FIFOs, `signals` signals.

mod advice;
pub mod args;
mod complete;
mod connection;
mod detach_keys;
mod doctor;
mod environment;
mod exec;
mod filter;
mod hook;
mod logs;
mod man;
mod manage;
mod metrics;
mod reload;
mod render;
mod run;
mod say;
mod schema;
mod shutdown;
mod signals;
mod stats;
mod streams;
mod terminal;
mod top;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;
use thiserror::Error;
use ttrpc::Code;

use self::args::{Cli, Command};
use self::connection::Connection;
use self::manage::Report;
pub(crate) use self::say::print;
use crate::chain;

/// What the program exits with when it, or the supervisor, failed, as opposed to the container's command.
const FAILED: u8 = 125;

/// Why a command failed.
#[derive(Debug, Error)]
pub(crate) enum CliError {
    /// The supervisor's own words, with the exit code that they imply.
    #[error("{text}")]
    Refused { text: String, code: Code, exit: u8, next: Option<String> },
    /// There is no supervisor.
    #[error("cannot reach holdfastd at {socket}")]
    Unreachable { socket: String, source: std::io::Error },
    /// The connection broke in a request that must not be repeated.
    #[error("the connection to holdfastd broke before it answered")]
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

/// The exit code of a client that a signal has ended.
fn by_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Parses the arguments, does what they say, and reports the exit code.
pub fn main() -> ExitCode {
    CompleteEnv::with_factory(Cli::command).var(complete::VARIABLE).complete();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print(); // nowhere to report a failure to
            return ExitCode::from(if e.use_stderr() { FAILED } else { 0 });
        }
    };
    let result = match &cli.command {
        Command::Completions { shell } => complete::script(*shell),
        Command::Man { directory } => man::write(directory),
        Command::Hook { hook } => hook::run(*hook),
        _ => run_async(&cli),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            say::tell_error(&chain(&e), None);
            ExitCode::from(e.exit_code())
        }
    }
}

fn run_async(cli: &Cli) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::io("start the event loop"))?;
    let result = runtime.block_on(async {
        let connection = Connection::new(cli.socket());
        match dispatch(cli, connection.clone()).await {
            Ok(code) => Ok(code),
            Err(e) => {
                let (verb, container) = advice::subject(&cli.command);
                let next = advice::next_step(&connection, verb, container, &e).await;
                say::tell_error(&chain(&e), next.as_deref());
                Ok(e.exit_code())
            }
        }
    });
    // A thread that reads a terminal cannot be stopped; it ends with the process.
    runtime.shutdown_background();
    result
}

async fn dispatch(cli: &Cli, connection: Connection) -> Outcome {
    match &cli.command {
        Command::Run(args) => run::run(connection, args, cli.json).await,
        Command::Create(args) => run::create(connection, args, cli.json).await,
        Command::Start(args) if args.attach => run::start_attached(connection, args).await,
        Command::Start(args) => manage::start(connection, &args.several, cli.json).await,
        Command::Attach(args) => run::attach(connection, args).await,
        Command::Exec(args) => exec::run(connection, args, cli.json).await,
        Command::Ps(args) => manage::ps(connection, args, cli.json).await,
        Command::Inspect { containers } => manage::inspect(connection, containers).await,
        Command::Logs(args) => logs::run(connection, args, cli.json).await,
        Command::ReopenLogs(several) => manage::reopen_logs(connection, several, cli.json).await,
        Command::Stop(args) if args.shutdown => shutdown::run(connection, cli.json).await,
        Command::Stop(args) => {
            let report = Report::new("stop", cli.json, args.quiet);
            match args.all {
                true => manage::stop_all(connection, args.time, report).await,
                false => manage::stop(connection, &args.containers, args.time, report).await,
            }
        }
        Command::Restart { several, time } => manage::restart(connection, several, *time, cli.json).await,
        Command::Reload => reload::run(connection, cli.json).await,
        Command::Kill { several, signal } => manage::kill(connection, several, signal, cli.json).await,
        Command::Pause(several) => manage::pause(connection, several, cli.json).await,
        Command::Unpause(several) => manage::unpause(connection, several, cli.json).await,
        Command::Rm { several, force } => manage::remove(connection, several, *force, cli.json).await,
        Command::Wait { containers, exec } => manage::wait(connection, containers, exec.as_deref(), cli.json).await,
        Command::Events { since } => manage::events(connection, since.as_deref(), cli.json).await,
        Command::Update(args) => manage::update(connection, args, cli.json).await,
        Command::Version => manage::version(connection, cli.json).await,
        Command::Info => manage::info(connection, cli.json).await,
        Command::Doctor => doctor::run(connection, cli.json).await,
        Command::Top { container } => top::run(connection, container, cli.json).await,
        Command::Stats(args) => stats::run(connection, args, cli.json).await,
        Command::Metrics => metrics::metrics(connection).await,
        Command::Completions { .. } | Command::Man { .. } | Command::Hook { .. } => Ok(0), // done before
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
