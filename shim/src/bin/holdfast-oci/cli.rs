//! The command line, as runc(8) has it: global flags, then a verb with its own.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::record::RunRoot;

/// What `--version` says after the name; the second line is for callers that look for it, as runc has it.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0");

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "holdfast-oci", version = VERSION, about = "OCI runtime of holdfast", disable_help_subcommand = true)]
#[command(disable_version_flag = true)]
pub(crate) struct Cli {
    /// Print the version
    #[arg(short = 'v', long = "version", action = clap::ArgAction::Version)]
    version: Option<bool>,
    /// Flags that stand before the verb.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// `time="…" level=… msg="…"`
    #[default]
    Text,
    /// One JSON object a line with `level`, `msg` and `time`.
    Json,
}

/// Flags that stand before the verb.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Directory of the containers' state
    #[arg(long, value_name = "DIR", default_value_os_t = RunRoot::default_dir())]
    pub(crate) root: PathBuf,
    /// File for log lines; without it errors go to stderr
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Form of log lines
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Log more
    #[arg(long)]
    pub(crate) debug: bool,
    /// Let systemd manage the cgroup (unified hosts only)
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Accepted for compatibility: true, false or auto
    #[arg(long, value_name = "MODE", hide = true)]
    pub(crate) rootless: Option<String>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a container; its process waits for start
    Create(CreateArgs),
    /// Let the process of a created container begin
    Start(IdArgs),
    /// Create, start and wait for a container
    Run(RunArgs),
    /// Print the state of a container as JSON
    State(IdArgs),
    /// Send a signal to a container
    Kill(KillArgs),
    /// Delete a stopped container
    Delete(DeleteArgs),
    /// Run another process in a container
    Exec(ExecArgs),
    /// List the processes of a container
    Ps(PsArgs),
    /// Freeze all processes of a container
    Pause(IdArgs),
    /// Let a paused container go on
    Resume(IdArgs),
    /// Change the resource limits of a container
    Update(UpdateArgs),
    /// List the containers
    List(ListArgs),
    /// Print what this runtime supports as JSON
    Features,
    /// Refused: use runc or crun
    #[command(hide = true)]
    Checkpoint(Refused),
    /// Refused: use runc or crun
    #[command(hide = true)]
    Restore(Refused),
}

/// A container's id and nothing else.
#[derive(Debug, Args)]
pub(crate) struct IdArgs {
    /// The container
    pub(crate) id: String,
}

/// Anything at all, for verbs that are refused whatever they are asked.
#[derive(Debug, Args)]
pub(crate) struct Refused {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// `create`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CreateArgs {
    /// Directory with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Unix socket that receives the master of the terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// File for the pid of the container's process
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Move and chroot instead of pivot_root
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Pass this many descriptors from 3 on to the process
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// The container
    pub(crate) id: String,
}

/// `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) create: CreateArgs,
    /// Do not wait for the container
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keep the container after its process has exited
    #[arg(long)]
    pub(crate) keep: bool,
}

/// `kill`.
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Signal every process of the container's cgroup
    #[arg(short, long)]
    pub(crate) all: bool,
    /// The container
    pub(crate) id: String,
    /// Number, or name with or without SIG
    #[arg(default_value = "SIGTERM")]
    pub(crate) signal: String,
}

/// `delete`.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Kill what still runs; a missing container is no error
    #[arg(short, long)]
    pub(crate) force: bool,
    /// The container
    pub(crate) id: String,
}

/// `exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// File with the process as JSON
    #[arg(short, long, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// Unix socket that receives the master of the terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// File for the pid of the new process
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Do not wait for the process
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// NAME=VALUE added to the environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Another user, by number, and group
    #[arg(short, long, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,
    /// More group ids
    #[arg(short = 'g', long, value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,
    /// Capability added to the container's
    #[arg(short, long, value_name = "NAME")]
    pub(crate) cap: Vec<String>,
    /// Set no_new_privs
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,
    /// Refused: SELinux label
    #[arg(long, value_name = "LABEL", hide = true)]
    pub(crate) process_label: Option<String>,
    /// Cgroup below the container's own
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<String>,
    /// Allow a paused container
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// Pass this many descriptors from 3 on to the process
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// The container
    pub(crate) id: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// The form of `ps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// `ps`.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Form of the answer
    #[arg(short, long, default_value = "table")]
    pub(crate) format: ListFormat,
    /// The container
    pub(crate) id: String,
    /// Options of ps(1), for the table
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
}

/// `list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Form of the answer
    #[arg(short, long, default_value = "table")]
    pub(crate) format: ListFormat,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `update`.
#[derive(Debug, Default, Args)]
pub(crate) struct UpdateArgs {
    /// File with the resources as JSON, or - for stdin
    #[arg(short, long, value_name = "FILE")]
    pub(crate) resources: Option<PathBuf>,
    /// Block I/O weight
    #[arg(long)]
    pub(crate) blkio_weight: Option<u16>,
    /// CPU time in one period, in microseconds
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Length of a period, in microseconds
    #[arg(long)]
    pub(crate) cpu_period: Option<u64>,
    /// Relative weight
    #[arg(long, visible_alias = "cpu-share")]
    pub(crate) cpu_shares: Option<u64>,
    /// Processors
    #[arg(long)]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes
    #[arg(long)]
    pub(crate) cpuset_mems: Option<String>,
    /// Memory limit in bytes
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory: Option<i64>,
    /// Memory reservation in bytes
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<i64>,
    /// Memory and swap together in bytes
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<i64>,
    /// Most processes and threads
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// The container
    pub(crate) id: String,
}
