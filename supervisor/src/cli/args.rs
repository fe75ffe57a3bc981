//! What can be typed. Completions and man pages are generated from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "holdfast",
    version,
    about = "Runs containers that outlive their managers",
    after_help = "Containers are named by id, by an unambiguous beginning of it, or by name.\n\
                  Exit codes of run and exec: the command's own; 125 when holdfast failed, 126 when the command cannot be \
                  executed, 127 when there is no such command."
)]
pub struct Cli {
    /// Socket of holdfastd [default: holdfastd.sock in $HOLDFAST_RUN_DIR or /run/holdfast]
    #[arg(long, visible_alias = "host", global = true, value_name = "PATH", env = "HOLDFAST_SOCKET")]
    socket: Option<PathBuf>,
    /// Print JSON rather than tables
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

impl Cli {
    /// The supervisor's socket.
    pub(super) fn socket(&self) -> PathBuf {
        let given = self.socket.clone().map(|s| match s.to_str().and_then(|t| t.strip_prefix("unix://")) {
            Some(path) => PathBuf::from(path),
            None => s,
        });
        given.unwrap_or_else(|| holdfast_proto::record::run_dir().join("holdfastd.sock"))
    }
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a container and start it
    Run(Box<RunArgs>),
    /// Start containers that were made or have ended
    Start {
        #[arg(required = true, value_name = "CONTAINER")]
        containers: Vec<String>,
    },
    /// List containers
    Ps(PsArgs),
    /// Show all that is known of containers, as JSON
    Inspect {
        #[arg(required = true, value_name = "CONTAINER")]
        containers: Vec<String>,
    },
    /// Show what a container printed
    Logs(LogsArgs),
    /// Run another command in a running container
    Exec(ExecArgs),
    /// Connect to a running container's output and input (leave with ctrl-p ctrl-q)
    Attach {
        #[arg(value_name = "CONTAINER")]
        container: String,
        /// Leave its standard input alone
        #[arg(long)]
        no_stdin: bool,
    },
    /// Stop containers: the stop signal, then SIGKILL
    Stop {
        #[arg(required = true, value_name = "CONTAINER")]
        containers: Vec<String>,
        /// Seconds before SIGKILL [default: the container's, 10]
        #[arg(short, long, value_name = "SECONDS")]
        time: Option<i32>,
    },
    /// Send a signal to containers
    Kill {
        #[arg(required = true, value_name = "CONTAINER")]
        containers: Vec<String>,
        /// Name or number
        #[arg(short, long, default_value = "KILL")]
        signal: String,
    },
    /// Remove containers, their logs included
    Rm {
        #[arg(required = true, value_name = "CONTAINER")]
        containers: Vec<String>,
        /// Also those that run: they are killed
        #[arg(short, long)]
        force: bool,
    },
    /// Wait until containers have ended; print their exit statuses and exit with the last one
    Wait {
        #[arg(required = true, value_name = "CONTAINER")]
        containers: Vec<String>,
    },
    /// Show what happens, as it happens
    Events {
        /// Begin with what happened after this time, or in this span before now (2026-01-31T12:00:00Z, 10m)
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
    },
    /// Change the limits or the restart policy of a container
    Update(UpdateArgs),
    /// Show the versions of this program and of holdfastd
    Version,
    /// Show how holdfastd is set up and what it holds
    Info,
    /// Show what the last start of holdfastd found; exit with 1 if anything needs attention
    Doctor,
    /// Print a completion script
    #[command(hide = true)]
    Completions { shell: clap_complete::Shell },
    /// Write man pages
    #[command(hide = true)]
    Man {
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Called by OCI runtimes
    #[command(hide = true)]
    Hook { hook: Hook },
}

/// Hooks that OCI runtimes call.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Hook {
    /// Brings up loopback in a new network namespace.
    Loopback,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Print the id and leave it running
    #[arg(short, long)]
    pub(super) detach: bool,
    /// A name for it [default: the first 12 digits of its id]
    #[arg(long)]
    pub(super) name: Option<String>,
    /// An OCI bundle: its config.json is used as it is
    #[arg(long, value_name = "DIR", required_unless_present = "rootfs", conflicts_with = "rootfs")]
    pub(super) bundle: Option<PathBuf>,
    /// A root file system, for which a sane configuration is made
    #[arg(long, value_name = "DIR")]
    pub(super) rootfs: Option<PathBuf>,
    /// Set an environment variable (NAME alone: with its value here)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// Run as this user, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(super) user: Option<String>,
    /// Mount a file or directory of the machine
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    pub(super) volume: Vec<String>,
    #[command(flatten)]
    pub(super) limits: LimitArgs,
    /// none (loopback only) or host [default: none, or as the bundle says]
    #[arg(long, value_name = "NETWORK")]
    pub(super) network: Option<String>,
    /// Host name [default: the first 12 digits of its id]
    #[arg(long)]
    pub(super) hostname: Option<String>,
    /// When to start it again: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub(super) restart: String,
    /// Keep its standard input open, and pass ours on
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Remove it once it has ended
    #[arg(long)]
    pub(super) rm: bool,
    /// Signal that asks it to stop
    #[arg(long, value_name = "SIGNAL", default_value = "TERM")]
    pub(super) stop_signal: String,
    /// Seconds between that signal and SIGKILL
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(super) stop_timeout: u32,
    /// Attach a label
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(super) label: Vec<String>,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
}

/// Limits, for `run` and `update`.
#[derive(Debug, Default, Args)]
pub(super) struct LimitArgs {
    /// Memory limit, as 64m or 1g
    #[arg(short, long, value_name = "SIZE")]
    pub(super) memory: Option<String>,
    /// CPU limit, as 1.5
    #[arg(long, value_name = "NUMBER")]
    pub(super) cpus: Option<String>,
    /// Most processes and threads, -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(super) pids_limit: Option<i64>,
}

/// Arguments of `ps`.
#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    pub(super) all: bool,
    /// Also those of other managers (containerd's), which are only looked at
    #[arg(long)]
    pub(super) all_managers: bool,
    /// Print only ids
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Do not shorten ids and commands
    #[arg(long)]
    pub(super) no_trunc: bool,
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    #[arg(value_name = "CONTAINER")]
    pub(super) container: String,
    /// Go on with what it prints, until it ends
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Only what is newer than this time, or this span before now (2026-01-31T12:00:00Z, 10m)
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    pub(super) tail: Option<usize>,
    /// Put the time before each line
    #[arg(short, long)]
    pub(super) timestamps: bool,
}

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Do not wait for it
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Set an environment variable (NAME alone: with its value here)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// Run as this user, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(super) user: Option<String>,
    /// Pass our standard input on
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    #[arg(value_name = "CONTAINER")]
    pub(super) container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
}

/// Arguments of `update`.
#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    #[arg(value_name = "CONTAINER")]
    pub(super) container: String,
    #[command(flatten)]
    pub(super) limits: LimitArgs,
    /// When to start it again: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub(super) restart: Option<String>,
}
