//! What can be typed. Completions and man pages are generated from it.
//!
//! The examples of a command are its `after_help`, beside its definition: pairs of lines, what it is for and then the
//! line to type after `$`. A test parses each of them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCandidates;

use super::complete;
use super::detach_keys::DetachKeys;
use super::filter::Filter;

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "holdfast",
    version,
    about = "Runs containers that outlive their managers",
    after_help = "\
Containers are named by id, by an unambiguous beginning of it, or by name.

Exit codes of run, exec, attach and start --attach: the command's own, or 128 and the number of the signal that ended it; \
125 when holdfast failed, 126 when the command cannot be executed, 127 when there is no such command. \
Of wait: the last container's. Of doctor: 1 when anything needs attention. Of all others: 0, or 125 when anything failed.

With --json, standard output is for programs: ps, inspect, top, info, doctor, reload and version print one document; \
events, logs, stats and all that is done with containers print one object on a line for each, with the container as it was named, and with error if \
it failed. Keys may be added, but none is taken away or changes its meaning; times are RFC 3339 in UTC, empty for none. What \
goes wrong is told in words on standard error as well.

Examples:
  Run a shell in a root file system, and leave nothing behind:
    $ holdfast run --rm -it --rootfs /srv/alpine -- /bin/sh
  Run a service that comes back after a crash and after a reboot:
    $ holdfast run -d --name web --restart always --rootfs /srv/web -- /usr/bin/web --port 80
  See what runs, and what it prints:
    $ holdfast ps
    $ holdfast logs -f web"
)]
pub struct Cli {
    /// Socket of holdfastd [default: holdfastd.sock in $HOLDFAST_RUN_DIR or /run/holdfast]
    #[arg(long, visible_alias = "host", global = true, value_name = "PATH", env = "HOLDFAST_SOCKET")]
    socket: Option<PathBuf>,
    /// Print JSON rather than text: one object on a line for each container or event, or one document
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

impl Cli {
    /// The supervisor's socket.
    pub(super) fn socket(&self) -> PathBuf {
        socket_path(self.socket.clone())
    }
}

/// The supervisor's socket, from what was typed or, where nothing was parsed, from the environment.
pub(super) fn socket_path(given: Option<PathBuf>) -> PathBuf {
    let given = given.or_else(|| std::env::var_os("HOLDFAST_SOCKET").map(PathBuf::from));
    let given = given.map(|s| match s.to_str().and_then(|t| t.strip_prefix("unix://")) {
        Some(path) => PathBuf::from(path),
        None => s,
    });
    given.unwrap_or_else(|| holdfast_proto::record::run_dir().join("holdfastd.sock"))
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a container and start it
    #[command(after_help = "\
Examples:
  Run a shell in a root file system, and leave nothing behind:
    $ holdfast run --rm -it --rootfs /srv/alpine -- /bin/sh
  Run a service with limits that comes back after a crash and after a reboot:
    $ holdfast run -d --name web --restart always --memory 256m --cpus 1.5 --rootfs /srv/web -- /usr/bin/web
  Run an OCI bundle as its config.json says, with another command:
    $ holdfast run --bundle /srv/bundle -- /bin/date
  Feed a command from a file:
    $ holdfast run --rm -i --rootfs /srv/alpine -- /usr/bin/wc -l < /etc/passwd")]
    Run(Box<RunArgs>),
    /// Make a container, to be started later
    #[command(after_help = "\
Examples:
  Make a container, and start it when it is needed:
    $ holdfast create --name job --rootfs /srv/alpine -- /bin/sh -c 'echo done'
    $ holdfast start --attach job
  Make one with a shell for later:
    $ holdfast create -it --name shell --rootfs /srv/alpine -- /bin/sh")]
    Create(Box<CreateArgs>),
    /// Start containers that were made or have ended
    #[command(after_help = "\
Examples:
  Start two containers again:
    $ holdfast start web db
  Start one, see all that it prints, and exit with its status:
    $ holdfast start --attach job
  Start one that has a terminal, and type into it:
    $ holdfast start -ai shell")]
    Start(StartArgs),
    /// List containers
    #[command(after_help = "\
Examples:
  All containers, also those that have ended:
    $ holdfast ps -a
  Those with a label, as JSON:
    $ holdfast ps --filter label=tier=front --json
  Remove all that have ended:
    $ holdfast ps -q --filter status=exited | xargs -r holdfast rm")]
    Ps(PsArgs),
    /// Show all that is known of containers, as JSON
    #[command(after_help = "\
Examples:
  All of one container:
    $ holdfast inspect web
  The pids of several containers' first processes:
    $ holdfast inspect web db | jq '.[].pid'")]
    Inspect {
        #[arg(required = true, value_name = "CONTAINER", add = any_container())]
        containers: Vec<String>,
    },
    /// Show what a container printed
    #[command(after_help = "\
Examples:
  The last 100 lines, and what comes:
    $ holdfast logs -f --tail 100 web
  What was printed in the last ten minutes, with times:
    $ holdfast logs -t --since 10m web
  One hour of yesterday:
    $ holdfast logs --since 2026-01-31T12:00:00Z --until 2026-01-31T13:00:00Z web")]
    Logs(LogsArgs),
    /// Have the logs of running containers opened anew, after their files were moved away
    #[command(after_help = "\
Examples:
  After logrotate has moved the files of two containers:
    $ holdfast reopen-logs web db")]
    ReopenLogs(Several),
    /// Run another command in a running container
    #[command(after_help = "\
Examples:
  A shell beside the service:
    $ holdfast exec -it web /bin/sh
  One command, as another user, in another directory:
    $ holdfast exec --user nobody --workdir /tmp web /bin/ls -l
  Write a file into it:
    $ holdfast exec -i web /bin/sh -c 'cat > /tmp/motd' < /etc/motd")]
    Exec(ExecArgs),
    /// Connect to a running container's output and input
    #[command(after_help = "\
Examples:
  See what a container prints, and pass signals on to it:
    $ holdfast attach web
  Only look; ctrl-c leaves the container as it is:
    $ holdfast attach --no-stdin --sig-proxy=false web
  Leave a terminal by ctrl-x rather than by ctrl-p ctrl-q:
    $ holdfast attach --detach-keys ctrl-x shell")]
    Attach(AttachArgs),
    /// Stop containers: the stop signal, then SIGKILL
    #[command(after_help = "\
Examples:
  Stop two containers, each with its own signal and in its own time:
    $ holdfast stop web db
  Give one a minute:
    $ holdfast stop --time 60 db
  Stop all that run, at the same time:
    $ holdfast stop --all
  The same at the machine's shutdown, also without holdfastd; restart policies hold after the boot:
    $ holdfast stop --all --shutdown")]
    Stop(StopArgs),
    /// Stop containers and start them again; start those that do not run
    #[command(after_help = "\
Examples:
  Have a service begin anew:
    $ holdfast restart web
  Give two of them a minute to end:
    $ holdfast restart --time 60 web db")]
    Restart {
        #[command(flatten)]
        several: Several,
        /// Seconds before SIGKILL [default: the container's, 10]
        #[arg(short, long, value_name = "SECONDS")]
        time: Option<i32>,
    },
    /// Send a signal to containers
    #[command(after_help = "\
Examples:
  Have a service read its settings again:
    $ holdfast kill --signal HUP web
  End one at once:
    $ holdfast kill web")]
    Kill {
        #[command(flatten)]
        several: Several,
        /// Name or number
        #[arg(short, long, default_value = "KILL")]
        signal: String,
    },
    /// Freeze all processes of containers
    #[command(after_help = "\
Examples:
  Freeze a container while its files are copied:
    $ holdfast pause db
    $ cp -a /srv/db /srv/db.copy
    $ holdfast unpause db")]
    Pause(Several),
    /// Let frozen containers go on
    #[command(after_help = "\
Examples:
  Let two containers go on:
    $ holdfast unpause web db")]
    Unpause(Several),
    /// Remove containers, their logs included
    #[command(after_help = "\
Examples:
  Remove a container that has ended:
    $ holdfast rm job
  Remove two, running or not:
    $ holdfast rm -f web db")]
    Rm {
        #[command(flatten)]
        several: Several,
        /// Also those that run: they are killed
        #[arg(short, long)]
        force: bool,
    },
    /// Wait until containers have ended; print their exit statuses and exit with the last one
    #[command(after_help = "\
Examples:
  Do something once a container has ended well:
    $ holdfast wait job && echo 'it went well'
  When it ended, and why:
    $ holdfast wait --json job
  How a command ended that was left behind in a container:
    $ id=$(holdfast exec -d job -- /bin/backup); holdfast wait --exec $id job")]
    Wait {
        #[arg(required = true, value_name = "CONTAINER", add = any_container())]
        containers: Vec<String>,
        /// Rather for this exec of the container, as inspect and exec --detach name it; also after its end
        #[arg(long, value_name = "ID")]
        exec: Option<String>,
    },
    /// List the processes of a running container
    #[command(after_help = "\
Examples:
  What runs in a container, and how much of the processors it has had:
    $ holdfast top web
  The pids of all its processes:
    $ holdfast top --json web | jq '.[].pid'")]
    Top {
        #[arg(value_name = "CONTAINER", add = running_container())]
        container: String,
    },
    /// Show what containers use, every second
    #[command(after_help = "\
Examples:
  All that run, until ctrl-c:
    $ holdfast stats
  Two of them, once, for a program:
    $ holdfast stats --no-stream --json web db")]
    Stats(StatsArgs),
    /// Show what happens, as it happens
    #[command(after_help = "\
Examples:
  What happens from now on:
    $ holdfast events
  What has happened in the last hour, and what comes, for a program:
    $ holdfast events --since 1h --json")]
    Events {
        /// Begin with what happened after this time, or in this span before now (2026-01-31T12:00:00Z, 10m)
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
    },
    /// Change the limits, the restart policy or, of a stopped one, the log of a container
    #[command(after_help = "\
Examples:
  Give a running container more memory:
    $ holdfast update --memory 1g web
  Have it restarted from now on:
    $ holdfast update --restart unless-stopped web")]
    Update(UpdateArgs),
    /// Have holdfastd read its settings file again; print what changed and what did not, and why
    #[command(
        long_about = "Have holdfastd read its settings file again, as SIGHUP does, and print what changed. With a mistake \
                      in the file everything stays as it was. Exits with 125 if that is so, or if a key was refused because \
                      it needs a restart.",
        after_help = "\
Examples:
  After the settings file was edited:
    $ holdfastd --validate && holdfast reload
  What it changed, for a program:
    $ holdfast reload --json"
    )]
    Reload,
    /// Show the versions of this program and of holdfastd
    #[command(after_help = "\
Examples:
  Both versions:
    $ holdfast version
  For a program:
    $ holdfast version --json")]
    Version,
    /// Show how holdfastd is set up and what it holds
    #[command(after_help = "\
Examples:
  Where everything is, and how many containers there are:
    $ holdfast info")]
    Info,
    /// Examine the machine, holdfastd and all shims; exit with 1 if anything needs attention
    #[command(
        long_about = "Examine the machine, holdfastd and all shims, and say of whatever is not as it should be what it means \
                       and what to do. Works without holdfastd, too. Exits with 1 if anything needs attention.",
        after_help = "\
Examples:
  Is everything as it should be?
    $ holdfast doctor || echo 'something needs attention'
  What needs attention, for a program:
    $ holdfast doctor --json | jq '.findings[] | select(.level != \"ok\")'"
    )]
    Doctor,
    /// Print figures as OpenMetrics text, for node_exporter's textfile collector or any other
    #[command(
        long_about = "Print figures as OpenMetrics text: containers by manager and state, restarts, how long the last \
                      start of holdfastd took, shims that do not answer, and of every stream whether somebody reads it, how \
                      much of it is kept for an absent reader and how much was dropped; and what all that is kept takes on \
                      disk.",
        after_help = "\
Examples:
  For node_exporter's textfile collector, from a timer:
    $ holdfast metrics > /var/lib/node_exporter/holdfast.prom.new
    $ mv /var/lib/node_exporter/holdfast.prom.new /var/lib/node_exporter/holdfast.prom"
    )]
    Metrics,
    /// Print a script that teaches a shell to complete commands, options and the names of containers
    #[command(after_help = "\
Examples:
  For this bash:
    $ source <(holdfast completions bash)
  For every zsh, in a directory of its $fpath:
    $ holdfast completions zsh > /usr/local/share/zsh/site-functions/_holdfast
  For every fish:
    $ holdfast completions fish > /etc/fish/completions/holdfast.fish")]
    Completions { shell: Shell },
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

/// The shells that can be taught.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(missing_docs)] // they speak for themselves
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    /// Its name, as typed.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Zsh => "zsh",
            Self::Fish => "fish",
        }
    }
}

/// Several containers with which one thing is done.
#[derive(Debug, Args)]
pub(super) struct Several {
    #[arg(required = true, value_name = "CONTAINER", add = any_container())]
    pub(super) containers: Vec<String>,
    /// Print nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// How a person is connected to a container, for `run`, `start`, `attach` and `exec`.
#[derive(Debug, Args)]
pub(super) struct DetachArgs {
    /// Keys that leave a terminal, as ctrl-p,ctrl-q or a,ctrl-x; empty for none
    #[arg(long, value_name = "KEYS", env = "HOLDFAST_DETACH_KEYS", default_value_t)]
    pub(super) detach_keys: DetachKeys,
}

/// What happens with signals, for `run`, `start` and `attach`.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct SignalArgs {
    /// Pass signals on to the container, unless keys do that in its terminal
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub(super) sig_proxy: bool,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Print the id and leave it running
    #[arg(short, long)]
    pub(super) detach: bool,
    #[command(flatten)]
    pub(super) leave: DetachArgs,
    #[command(flatten)]
    pub(super) signals: SignalArgs,
    #[command(flatten)]
    pub(super) create: CreateArgs,
}

/// Arguments of `create`: what a container is made from.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// A name for it [default: the first 12 digits of its id]
    #[arg(long)]
    pub(super) name: Option<String>,
    /// An OCI bundle: its config.json is used as it is
    #[arg(long, value_name = "DIR", required_unless_present = "rootfs", conflicts_with = "rootfs")]
    pub(super) bundle: Option<PathBuf>,
    /// A root file system, for which a sane configuration is made
    #[arg(long, value_name = "DIR")]
    pub(super) rootfs: Option<PathBuf>,
    #[command(flatten)]
    pub(super) env: EnvArgs,
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
    #[command(flatten)]
    pub(super) log: LogDriverArgs,
    /// Signal that asks it to stop
    #[arg(long, value_name = "SIGNAL", default_value = "TERM")]
    pub(super) stop_signal: String,
    /// Seconds between that signal and SIGKILL
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(super) stop_timeout: u32,
    /// Attach a label
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(super) label: Vec<String>,
    /// The command and its arguments [default: with a bundle, its own]
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
}

/// Environment variables, for `run`, `create` and `exec`.
#[derive(Debug, Default, Args)]
pub(super) struct EnvArgs {
    /// Set an environment variable (NAME alone: with its value here)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<String>,
    /// Read environment variables from a file with one on each line; -e overrides it
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Vec<PathBuf>,
}

/// Arguments of `start`.
#[derive(Debug, Args)]
pub(super) struct StartArgs {
    #[command(flatten)]
    pub(super) several: Several,
    /// Show its output, pass signals on, and exit with its status
    #[arg(short, long)]
    pub(super) attach: bool,
    /// Pass our standard input on
    #[arg(short, long, requires = "attach")]
    pub(super) interactive: bool,
    #[command(flatten)]
    pub(super) leave: DetachArgs,
    #[command(flatten)]
    pub(super) signals: SignalArgs,
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    #[arg(value_name = "CONTAINER", add = running_container())]
    pub(super) container: String,
    /// Leave its standard input alone
    #[arg(long)]
    pub(super) no_stdin: bool,
    #[command(flatten)]
    pub(super) leave: DetachArgs,
    #[command(flatten)]
    pub(super) signals: SignalArgs,
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

/// How output is kept, for `run` and `update`.
#[derive(Debug, Default, Args)]
pub(super) struct LogDriverArgs {
    /// Where its output is kept: json-file, cri, journald, raw or none [default: as it is set already]
    #[arg(long, value_name = "DRIVER")]
    pub(super) log_driver: Option<String>,
    /// An option of that: max-size=10m, max-file=3 (json-file, cri, raw), tag={{.Name}} (journald)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) log_opt: Vec<String>,
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
    /// Only those that match: name=PART, id=BEGINNING, status=STATUS (with all that do not run), label=KEY[=VALUE]
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(super) filter: Vec<Filter>,
    /// Print only ids
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Do not shorten ids and commands
    #[arg(long)]
    pub(super) no_trunc: bool,
}

/// Arguments of `stats`.
#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// [default: all that run]
    #[arg(value_name = "CONTAINER", add = running_container())]
    pub(super) containers: Vec<String>,
    /// Also those of other managers (containerd's)
    #[arg(long, conflicts_with = "containers")]
    pub(super) all_managers: bool,
    /// Look once: over a second, for the share of the CPUs is that of a span
    #[arg(long)]
    pub(super) no_stream: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub(super) no_trunc: bool,
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    #[arg(value_name = "CONTAINER", add = any_container())]
    pub(super) container: String,
    /// Go on with what it prints, until it ends
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Only what is newer than this time, or this span before now (2026-01-31T12:00:00Z, 10m)
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Only what is not newer than this time, or this span before now
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    pub(super) tail: Option<usize>,
    /// Put the time before each line
    #[arg(short, long)]
    pub(super) timestamps: bool,
}

/// Arguments of `stop`.
#[derive(Debug, Args)]
pub(super) struct StopArgs {
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "CONTAINER",
        add = running_container()
    )]
    pub(super) containers: Vec<String>,
    /// Seconds before SIGKILL [default: the container's, 10]
    #[arg(short, long, value_name = "SECONDS")]
    pub(super) time: Option<i32>,
    /// All that run, at the same time
    #[arg(short, long)]
    pub(super) all: bool,
    /// For the machine's shutdown: also without holdfastd, and restart policies start them again after the boot
    #[arg(long, requires = "all", conflicts_with = "time")]
    pub(super) shutdown: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Do not wait for it; print its id, for wait --exec
    #[arg(short, long)]
    pub(super) detach: bool,
    #[command(flatten)]
    pub(super) env: EnvArgs,
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
    #[command(flatten)]
    pub(super) leave: DetachArgs,
    #[arg(value_name = "CONTAINER", add = running_container())]
    pub(super) container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
}

/// Arguments of `update`.
#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    #[arg(value_name = "CONTAINER", add = any_container())]
    pub(super) container: String,
    /// Print nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,
    #[command(flatten)]
    pub(super) limits: LimitArgs,
    #[command(flatten)]
    pub(super) log: LogDriverArgs,
    /// When to start it again: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub(super) restart: Option<String>,
}

fn any_container() -> ArgValueCandidates {
    ArgValueCandidates::new(|| complete::containers(true))
}

fn running_container() -> ArgValueCandidates {
    ArgValueCandidates::new(|| complete::containers(false))
}
