//! The supervisor's command line, as it was typed: what the words mean is decided with those of the file.

use std::path::PathBuf;

use clap::Parser;

use super::file::Given;

/// The supervisor's command line. A flag wins over the file's key of the same name.
#[derive(Clone, Debug, Default, Parser)]
#[command(
    name = "holdfastd",
    version,
    about = "Keeps containers running while everything above them comes and goes",
    after_help = "Signals: TERM and INT end it, which leaves the containers alone with --live-restore and stops them \
                  without; a second one kills what is not stopped yet, a third leaves it behind. HUP reads the settings \
                  file again, as `holdfast reload` does."
)]
pub struct Flags {
    /// Settings file [default: /etc/holdfast/holdfastd.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Leave the containers running when this program ends [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub live_restore: Option<String>,
    /// Where the API is served [default: unix://RUN_DIR/holdfastd.sock]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Root of what survives a reboot [default: $HOLDFAST_STATE_DIR or /var/lib/holdfast]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<String>,
    /// Root of what a reboot voids [default: $HOLDFAST_RUN_DIR or /run/holdfast]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<String>,
    /// The shim for new containers [default: beside this program, else in PATH]
    #[arg(long, value_name = "PATH")]
    pub shim: Option<String>,
    /// The OCI runtime for new containers [default: the shim's choice]
    #[arg(long, value_name = "PATH")]
    pub runtime: Option<String>,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Time that a container gets to be made, and again to be started [default: 2m]
    #[arg(long, value_name = "TIME")]
    pub start_timeout: Option<String>,
    /// Most time that containers get to stop when this program ends without --live-restore [default: 15s, or the longest
    /// stop timeout of a container and 5s if that is more]
    #[arg(long, value_name = "TIME")]
    pub shutdown_timeout: Option<String>,
    /// Time that a shim gets to answer at start [default: 2s]
    #[arg(long, value_name = "TIME")]
    pub restore_deadline: Option<String>,
    /// Where figures are served, as unix:///run/holdfast-metrics/metrics.sock or 127.0.0.1:9100 [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<String>,
    /// How old the figures that are served may be [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub metrics_interval: Option<String>,
    /// Check the settings, say what is wrong with them or that nothing is, and exit
    #[arg(long)]
    pub validate: bool,
}

impl Flags {
    /// What was typed for a key of the file.
    pub(super) fn given(&self, key: &'static str) -> Option<Given> {
        let text = match key {
            "live-restore" => &self.live_restore,
            "listen" => &self.listen,
            "state-dir" => &self.state_dir,
            "run-dir" => &self.run_dir,
            "shim" => &self.shim,
            "runtime" => &self.runtime,
            "log-level" => &self.log_level,
            "start-timeout" => &self.start_timeout,
            "shutdown-timeout" => &self.shutdown_timeout,
            "restore-deadline" => &self.restore_deadline,
            "metrics-listen" => &self.metrics_listen,
            "metrics-interval" => &self.metrics_interval,
            _ => return None,
        };
        Some(Given { text: text.clone()?, place: format!("--{key}") })
    }
}
