//! File and flags → checked settings; pure but for reading the file.

mod file;
mod flags;
mod reload;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use holdfast_proto::{record, regular, size};
use thiserror::Error;

use crate::log_policy::{LogPolicy, LogPolicyError};
use crate::paths::Paths;
use crate::programs::in_path;
use file::Given;
pub use flags::Flags;
pub use reload::{Change, Refused, Reloaded};

/// Where the file is looked for when no flag names one; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/holdfast/holdfastd.toml";

/// The file name of the shim.
pub const SHIM: &str = "containerd-shim-holdfast-v2";

/// The settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The roots.
    pub paths: Paths,
    /// Where the API is served.
    pub socket: PathBuf,
    /// Whether containers go on when the supervisor ends.
    pub live_restore: bool,
    /// The shim, if it was named.
    pub shim: Option<PathBuf>,
    /// The OCI runtime, if it was named.
    pub runtime: Option<PathBuf>,
    /// What is logged.
    pub log_level: tracing::Level,
    /// For making a container, and again for starting it.
    pub start_timeout: Duration,
    /// For all containers to stop at the supervisor's end; `None`: as long as the slowest of them may take.
    pub shutdown_timeout: Option<Duration>,
    /// For each shim at start.
    pub restore_deadline: Duration,
    /// Where figures are served, if anywhere.
    pub metrics_listen: Option<MetricsListen>,
    /// How old figures may be.
    pub metrics_interval: Duration,
    /// How the output of containers is kept that do not say otherwise.
    pub log: LogPolicy,
}

/// Where figures are served: out of other machines' reach, since they name containers and there is no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsListen {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A port of a loopback address.
    Loopback(SocketAddr),
}

impl fmt::Display for MetricsListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Loopback(address) => address.fmt(f),
        }
    }
}

/// Why there are no settings.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file that a flag names, or the default one that exists, cannot be read.
    #[error("cannot read the settings {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{place}: {why}: {line}")]
    Malformed {
        /// File, line and column.
        place: String,
        /// The line's text.
        line: String,
        /// What is wrong.
        why: String,
    },
    /// A value does not do.
    #[error("{place} = {value:?} is not valid: {why}")]
    Value {
        /// File, line, column and key, or the flag.
        place: String,
        /// What was given.
        value: String,
        /// Why it does not do.
        why: String,
    },
}

/// A flag and the file say different things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overridden {
    /// The key.
    pub key: &'static str,
    /// What the flag says.
    pub flag: String,
    /// What the file says.
    pub file: String,
    /// Where: file, line and column.
    pub place: String,
}

impl fmt::Display for Overridden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, flag, file, place } = self;
        write!(f, "{place} = {file:?} has no effect: the flag --{key}={flag} wins")
    }
}

/// Settings, and what of the file had no effect on them.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// The keys that flags won over.
    pub overridden: Vec<Overridden>,
    /// The file that was read; `None` if there is none.
    pub file: Option<PathBuf>,
}

impl Settings {
    /// What holds where nothing else is said, with these roots.
    pub fn at(paths: Paths) -> Self {
        Self {
            socket: paths.api_socket(),
            live_restore: false,
            shim: None,
            runtime: None,
            log_level: tracing::Level::INFO,
            start_timeout: Duration::from_secs(120),
            shutdown_timeout: None,
            restore_deadline: Duration::from_secs(2),
            metrics_listen: None,
            metrics_interval: Duration::from_secs(10),
            log: LogPolicy::default(),
            paths,
        }
    }

    /// Reads the file that the flags name, or the default one, and puts the flags over it.
    ///
    /// # Errors
    /// See [`ConfigError`]; a file with a mistake counts for nothing.
    pub fn load(flags: &Flags) -> Result<Loaded, ConfigError> {
        let path = flags.config.clone().unwrap_or_else(|| DEFAULT_FILE.into());
        let (text, file) = match regular::read_to_string(&path) {
            Ok(text) => (text, Some(path.clone())),
            Err(e) if e.kind() == io::ErrorKind::NotFound && flags.config.is_none() => (String::new(), None),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        let (settings, overridden) = Self::parse(&path, &text, flags)?;
        Ok(Loaded { settings, overridden, file })
    }

    fn parse(path: &Path, text: &str, flags: &Flags) -> Result<(Self, Vec<Overridden>), ConfigError> {
        let mut given = Sources { file: file::parse(path, text)?, flags, overridden: Vec::new() };
        let run = given.take("run-dir", absolute)?.unwrap_or_else(record::run_dir);
        let state = given.take("state-dir", absolute)?.unwrap_or_else(record::state_dir);
        let default = |key: &'static str, path: PathBuf| {
            let place = format!("the default of {key}, from the environment,");
            absolute(&path.display().to_string())
                .map_err(|why| Given { text: path.display().to_string(), place }.invalid(why))
        };
        let default = Self::at(Paths { run: default("run-dir", run)?, state: default("state-dir", state)? });
        let settings = Self {
            socket: given.take("listen", unix_address)?.unwrap_or(default.socket),
            live_restore: given.take("live-restore", boolean)?.unwrap_or(default.live_restore),
            shim: given.take("shim", absolute)?,
            runtime: given.take("runtime", absolute)?,
            log_level: given.take("log-level", level)?.unwrap_or(default.log_level),
            start_timeout: given.take("start-timeout", time)?.unwrap_or(default.start_timeout),
            shutdown_timeout: given.take("shutdown-timeout", time)?,
            restore_deadline: given.take("restore-deadline", time)?.unwrap_or(default.restore_deadline),
            metrics_listen: given.take("metrics-listen", metrics_listen)?,
            metrics_interval: given.take("metrics-interval", time)?.unwrap_or(default.metrics_interval),
            log: log(&mut given, default.log)?,
            paths: default.paths,
        };
        Ok((settings, given.overridden))
    }

    /// The shim to be used: the one named, else the one beside this program, else the first in `PATH`.
    pub fn find_shim(&self) -> Option<PathBuf> {
        if let Some(named) = &self.shim {
            return Some(named.clone());
        }
        let beside = std::env::current_exe().ok().map(|exe| exe.with_file_name(SHIM));
        beside.filter(|path| path.is_file()).or_else(|| in_path(SHIM))
    }
}

/// What was given, by file and flags.
struct Sources<'a> {
    file: BTreeMap<&'static str, Given>,
    flags: &'a Flags,
    overridden: Vec<Overridden>,
}

impl Sources<'_> {
    /// The value of a key. Both sources are checked, whichever wins.
    fn take<T: PartialEq>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let value = |given: &Given| parse(&given.text).map_err(|why| given.invalid(why));
        let (in_file, in_flag) = (self.file.get(key), self.flags.given(key));
        let from_file = in_file.map(value).transpose()?;
        let from_flag = in_flag.as_ref().map(value).transpose()?;
        if let (Some(file), Some(flag)) = (in_file, in_flag)
            && from_file != from_flag
        {
            let (flag, file, place) = (flag.text, file.text.clone(), file.place.clone());
            self.overridden.push(Overridden { key, flag, file, place });
        }
        Ok(from_flag.or(from_file))
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("it must be an absolute path".to_owned()) }
}

fn unix_address(text: &str) -> Result<PathBuf, String> {
    let form = || "it must be unix:// and an absolute path, as unix:///run/holdfast/holdfastd.sock".to_owned();
    absolute(text.strip_prefix("unix://").ok_or_else(form)?).map_err(|_| form())
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "it must be true or false".to_owned())
}

fn level(text: &str) -> Result<tracing::Level, String> {
    match text {
        "error" => Ok(tracing::Level::ERROR),
        "warn" => Ok(tracing::Level::WARN),
        "info" => Ok(tracing::Level::INFO),
        "debug" => Ok(tracing::Level::DEBUG),
        "trace" => Ok(tracing::Level::TRACE),
        _ => Err("it is none of error, warn, info, debug, trace".to_owned()),
    }
}

fn time(text: &str) -> Result<Duration, String> {
    let parsed =
        humantime::parse_duration(text).map_err(|e| format!("{e} (a time is written as 500ms, 2s or 1m 30s)"))?;
    if parsed.is_zero() { Err("it must be longer than nothing".to_owned()) } else { Ok(parsed) }
}

fn metrics_listen(text: &str) -> Result<MetricsListen, String> {
    if text.starts_with("unix:") {
        let form = "it must be unix:// and an absolute path, as unix:///run/holdfast-metrics/metrics.sock";
        return unix_address(text).map(MetricsListen::Unix).map_err(|_| form.to_owned());
    }
    let form = "it is neither unix:// and a path, nor a loopback address and port as 127.0.0.1:9100 or [::1]:9100";
    let address: SocketAddr = text.parse().map_err(|_| form.to_owned())?;
    if !address.ip().is_loopback() {
        return Err("other machines could reach it; only a loopback address as 127.0.0.1 or [::1] is served".to_owned());
    }
    if address.port() == 0 {
        return Err("port 0 would be another one at each start".to_owned());
    }
    Ok(MetricsListen::Loopback(address))
}

/// The size and number of files are for those containers, too, that choose another driver.
fn log(given: &mut Sources<'_>, defaults: LogPolicy) -> Result<LogPolicy, ConfigError> {
    let driver = given.take("log.driver", |text| text.parse().map_err(|e: LogPolicyError| e.to_string()))?;
    let max_size = given.take("log.max-size", |text| size::parse(text).ok_or_else(|| size::FORM.to_owned()))?;
    let max_file = given.take("log.max-file", |text| match text.parse::<u32>() {
        Ok(number @ 1..) => Ok(number),
        _ => Err("it must be 1 or more".to_owned()),
    })?;
    Ok(LogPolicy {
        driver: driver.unwrap_or(defaults.driver),
        max_size: max_size.unwrap_or(defaults.max_size),
        max_file: max_file.unwrap_or(defaults.max_file),
        ..defaults
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::log_policy::Driver;

    fn parse_both(text: &str, flags: &Flags) -> Result<(Settings, Vec<Overridden>), String> {
        Settings::parse(Path::new("/x.toml"), text, flags).map_err(|e| crate::chain(&e))
    }

    fn parse(text: &str, flags: &Flags) -> Result<Settings, String> {
        parse_both(text, flags).map(|(settings, _)| settings)
    }

    fn loaded(text: &str) -> Loaded {
        let (settings, overridden) = parse_both(text, &Flags::default()).unwrap();
        Loaded { settings, overridden, file: None }
    }

    #[test]
    fn the_defaults_need_no_file() {
        let settings = parse("run-dir='/r'\nstate-dir='/s'", &Flags::default()).unwrap();
        assert_eq!(settings.socket, Path::new("/r/holdfastd.sock"));
        assert_eq!(settings.restore_deadline, Duration::from_secs(2));
        assert_eq!(settings.log, LogPolicy::default());
        assert_eq!((settings.log.max_size, settings.log.max_file), (10 << 20, 3));
        assert_eq!((settings.live_restore, settings.shutdown_timeout, settings.metrics_listen), (false, None, None));
    }

    #[test]
    fn a_flag_wins_over_the_file_and_says_where_they_disagree() {
        let flags = Flags {
            run_dir: Some("/flag".into()),
            log_level: Some("debug".into()),
            start_timeout: Some("60s".into()),
            live_restore: Some("true".into()),
            ..Flags::default()
        };
        let text = "run-dir='/file'\nlog-level='warn'\nstart-timeout = '1m'\nlive-restore = false\n\
                    [log]\nmax-size='1k'\ndriver='cri'";
        let (settings, overridden) = parse_both(text, &flags).unwrap();
        assert_eq!(settings.paths.run, Path::new("/flag"));
        assert_eq!((settings.log_level, settings.live_restore), (tracing::Level::DEBUG, true));
        assert_eq!((settings.log.max_size, settings.log.driver), (1024, Driver::Cri));
        let keys: Vec<_> = overridden.iter().map(|o| o.key).collect();
        assert_eq!(keys, ["run-dir", "live-restore", "log-level"], "the same in other words is no disagreement");
        let told = overridden[1].to_string();
        assert_eq!(told, "/x.toml:4:16: live-restore = \"false\" has no effect: the flag --live-restore=true wins");
    }

    #[test]
    fn each_mistake_is_named_with_file_line_column_and_reason() {
        for (text, place, part) in [
            ("\nrun-dyr='/x'", "/x.toml:2:1", "run-dyr"),
            ("[log]\nsize='1'", "/x.toml:2:1", "\"log.size\""),
            ("log-level='loud'", "/x.toml:1:11: log-level", "loud"),
            ("log-level = 'INFO'", "/x.toml:1:13: log-level", "none of error"),
            ("# é\n  restore-deadline = 'soon'", "/x.toml:2:22: restore-deadline", "soon"),
            ("restore-deadline='0s'", "/x.toml:1:18", "longer than nothing"),
            ("shutdown-timeout=15", "/x.toml:1:18: shutdown-timeout", "a text in quotes"),
            ("live-restore='true'", "/x.toml:1:14: live-restore", "without quotes"),
            ("live-restore=[true]", "/x.toml:1:14: live-restore", "[true]"),
            ("state-dir='relative'", "/x.toml:1:11", "absolute"),
            ("listen='/run/x.sock'", "/x.toml:1:8: listen", "unix://"),
            ("listen='tcp://127.0.0.1:1'", "/x.toml:1:8: listen", "unix://"),
            ("metrics-listen='0.0.0.0:9100'", "/x.toml:1:16: metrics-listen", "other machines"),
            ("metrics-listen='[::]:9100'", "/x.toml:1:16", "other machines"),
            ("metrics-listen='127.0.0.1'", "/x.toml:1:16", "neither"),
            ("metrics-listen='127.0.0.1:0'", "/x.toml:1:16", "port 0"),
            ("metrics-listen='unix:/x'", "/x.toml:1:16", "absolute path"),
            ("[log]\nmax-size='big'", "/x.toml:2:10: log.max-size", "big"),
            ("[log]\nmax-file=0", "/x.toml:2:10: log.max-file", "1 or more"),
            ("[log]\ndriver='syslog'", "/x.toml:2:8: log.driver", "syslog"),
            ("log = 3", "/x.toml:1:1", "[log]"),
            ("run-dir=3", "/x.toml:1:9: run-dir", "a text"),
            ("live-restore = true\nshim = /usr/bin/x", "/x.toml:2:8", "shim = /usr/bin/x"),
            ("live-restore = true\nlive-restore = false", "/x.toml:2:1", "duplicate key"),
        ] {
            let error = parse(text, &Flags::default()).unwrap_err();
            assert!(error.starts_with(place) && error.contains(part), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn a_mistake_in_the_file_counts_though_a_flag_wins_and_one_in_a_flag_is_named() {
        let flags = Flags { log_level: Some("debug".into()), ..Flags::default() };
        assert!(parse("log-level='loud'", &flags).unwrap_err().contains("/x.toml:1:11"));
        let flags = Flags { live_restore: Some("yes".into()), ..Flags::default() };
        assert_eq!(parse("", &flags).unwrap_err(), "--live-restore = \"yes\" is not valid: it must be true or false");
    }

    #[test]
    fn figures_are_served_on_this_machine_only() {
        for (text, listen) in [
            ("unix:///m.sock", MetricsListen::Unix("/m.sock".into())),
            ("127.0.0.1:9100", MetricsListen::Loopback(([127, 0, 0, 1], 9100).into())),
            ("[::1]:9100", MetricsListen::Loopback(([0, 0, 0, 0, 0, 0, 0, 1], 9100).into())),
        ] {
            let settings = parse(&format!("metrics-listen='{text}'"), &Flags::default()).unwrap();
            assert_eq!(settings.metrics_listen.as_ref(), Some(&listen));
            assert_eq!(listen.to_string(), text);
        }
    }

    #[test]
    fn the_flag_without_a_value_switches_live_restore_on() {
        use clap::Parser;
        let given = |args: &[&str]| Flags::parse_from([&["holdfastd"], args].concat()).live_restore;
        assert_eq!(given(&["--live-restore"]).as_deref(), Some("true"));
        assert_eq!(given(&["--live-restore=false", "--validate"]).as_deref(), Some("false"));
        assert_eq!(given(&[]), None);
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        let flags = Flags { config: Some("/no/such/file.toml".into()), ..Flags::default() };
        assert!(crate::chain(&Settings::load(&flags).unwrap_err()).contains("/no/such/file.toml"));
    }

    #[test]
    fn the_commented_default_file_names_every_key_with_its_default_and_is_valid() {
        let text = include_str!("../../../systemd/holdfastd.toml");
        // Installed, it keeps containers running through restarts and upgrades; that is what holdfast is for.
        let installed = parse(text, &Flags::default()).unwrap();
        let defaults = parse("", &Flags::default()).unwrap();
        assert_eq!(installed, Settings { live_restore: true, ..defaults });
        let uncommented: String =
            text.lines().map(|l| l.strip_prefix("#: ").unwrap_or(l)).collect::<Vec<_>>().join("\n");
        let shown = file::parse(Path::new("/x.toml"), &uncommented).unwrap();
        let missing: Vec<_> = file::KEYS.iter().filter(|key| !shown.contains_key(*key)).collect();
        assert!(missing.is_empty(), "not shown: {missing:?}");
        parse(&uncommented, &Flags::default()).unwrap();
    }

    #[test]
    fn every_key_but_those_of_tables_has_a_flag() {
        use clap::CommandFactory;
        let command = Flags::command();
        let flags: Vec<_> = command.get_arguments().filter_map(|a| a.get_long()).collect();
        for key in file::KEYS.iter().filter(|key| !key.contains('.')) {
            assert!(flags.contains(key), "{key}");
        }
    }

    #[test]
    fn a_reload_takes_over_what_it_can_and_says_what_it_cannot() {
        let before = loaded("run-dir='/r'\nlive-restore=true\nlog-level='info'").settings;
        let text = "run-dir='/other'\nstate-dir='/s2'\nlisten='unix:///l'\nlog-level='debug'\nshutdown-timeout='1m'\n\
                    metrics-listen='[::1]:9'\n[log]\ndriver='cri'";
        let (after, told) = before.reload(loaded(text));
        let changed: Vec<_> = told.changed.iter().map(|c| (c.key, c.from.as_str(), c.to.as_str())).collect();
        assert_eq!(
            changed,
            [
                ("live-restore", "true", "false"),
                ("log-level", "info", "debug"),
                ("shutdown-timeout", "(as the containers need)", "1m"),
                ("metrics-listen", "(nowhere)", "[::1]:9"),
                ("log.driver", "json-file", "cri"),
            ],
            "a key that is not there any more has its default again"
        );
        let refused: Vec<_> = told.refused.iter().map(|r| r.key).collect();
        assert_eq!(refused, ["listen", "state-dir", "run-dir"]);
        assert!(told.refused.iter().all(|r| r.why.contains("restart")));
        assert_eq!((&after.paths, &after.socket), (&before.paths, &before.socket));
        assert!(!after.live_restore && after.log_level == tracing::Level::DEBUG);
        let (same, told) = after.reload(Loaded { settings: after.clone(), overridden: Vec::new(), file: None });
        assert_eq!((same, told), (after, Reloaded::default()));
    }
}
