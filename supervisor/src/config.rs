//! File and flags → checked settings; pure but for reading the file.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use clap::Parser;
use serde::Deserialize;
use thiserror::Error;

use crate::paths::{self, Paths};

/// Where the file is looked for when no flag names one; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/holdfast/holdfastd.toml";

/// The file name of the shim.
pub const SHIM: &str = "containerd-shim-holdfast-v2";

/// The supervisor's command line. A flag overrides the file.
#[derive(Debug, Default, Parser)]
#[command(name = "holdfastd", version, about = "Keeps containers running while everything above them comes and goes")]
pub struct Flags {
    /// Settings file [default: /etc/holdfast/holdfastd.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Root of what a reboot voids [default: $HOLDFAST_RUN_DIR or /run/holdfast]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Root of what survives a reboot [default: $HOLDFAST_STATE_DIR or /var/lib/holdfast]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// API socket [default: holdfastd.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The shim for new containers [default: beside this program, else in PATH]
    #[arg(long, value_name = "PATH")]
    pub shim: Option<PathBuf>,
    /// The OCI runtime for new containers [default: the shim's choice]
    #[arg(long, value_name = "PATH")]
    pub runtime: Option<PathBuf>,
    /// error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Time that a shim gets to answer at start, as 2s [default: 2s]
    #[arg(long, value_name = "TIME")]
    pub restore_deadline: Option<String>,
    /// Check the settings, print nothing, and exit
    #[arg(long)]
    pub check: bool,
}

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    run_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    shim: Option<PathBuf>,
    runtime: Option<PathBuf>,
    log_level: Option<String>,
    restore_deadline: Option<String>,
    log: LogFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct LogFile {
    max_size: Option<String>,
    max_file: Option<u32>,
}

/// The settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The roots.
    pub paths: Paths,
    /// Where the API is served.
    pub socket: PathBuf,
    /// The shim, if it was named.
    pub shim: Option<PathBuf>,
    /// The OCI runtime, if it was named.
    pub runtime: Option<PathBuf>,
    /// What is logged.
    pub log_level: tracing::Level,
    /// For each shim at start.
    pub restore_deadline: Duration,
    /// Bytes after which a container's log is rotated.
    pub log_max_size: u64,
    /// Log files kept for a container.
    pub log_max_file: u32,
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
    /// The file is not what it should be; the source says where and why.
    #[error("the settings {path} are not valid")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where, and why.
        source: toml::de::Error,
    },
    /// A value does not do.
    #[error("{key} = {value:?} is not valid: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// Why it does not do.
        why: String,
    },
}

impl Settings {
    /// Reads the file that the flags name, or the default one, and puts the flags over it.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let path = flags.config.clone().unwrap_or_else(|| DEFAULT_FILE.into());
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && flags.config.is_none() => String::new(),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        Self::parse(&path, &text, flags)
    }

    fn parse(path: &Path, text: &str, flags: &Flags) -> Result<Self, ConfigError> {
        let file: File =
            toml::from_str(text).map_err(|source| ConfigError::Malformed { path: path.to_owned(), source })?;
        let run = flags.run_dir.clone().or(file.run_dir).unwrap_or_else(holdfast_proto::record::run_dir);
        let state = flags.state_dir.clone().or(file.state_dir).unwrap_or_else(paths::state_dir);
        let paths = Paths { run: absolute("run-dir", run)?, state: absolute("state-dir", state)? };
        let socket = flags.socket.clone().or(file.socket).unwrap_or_else(|| paths.api_socket());
        let optional = |key, value: Option<PathBuf>| value.map(|v| absolute(key, v)).transpose();
        Ok(Self {
            socket: absolute("socket", socket)?,
            shim: optional("shim", flags.shim.clone().or(file.shim))?,
            runtime: optional("runtime", flags.runtime.clone().or(file.runtime))?,
            log_level: level(flags.log_level.clone().or(file.log_level))?,
            restore_deadline: deadline(flags.restore_deadline.clone().or(file.restore_deadline))?,
            log_max_size: match file.log.max_size {
                None => 10 << 20,
                Some(text) => size(&text).ok_or_else(|| ConfigError::Value {
                    key: "log.max-size",
                    value: text.clone(),
                    why: "a size is a number of bytes, or one with k, m or g".to_owned(),
                })?,
            },
            log_max_file: file.log.max_file.unwrap_or(3).max(1),
            paths,
        })
    }

    /// The shim to be used: the one named, else the one beside this program, else the first in `PATH`.
    pub fn find_shim(&self) -> Option<PathBuf> {
        if let Some(named) = &self.shim {
            return Some(named.clone());
        }
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(SHIM)));
        let in_path = std::env::var_os("PATH").unwrap_or_default();
        let in_path = std::env::split_paths(&in_path).map(|dir| dir.join(SHIM));
        beside.into_iter().chain(in_path).find(|p| p.is_absolute() && p.is_file())
    }
}

fn absolute(key: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(ConfigError::Value { key, value: path.display().to_string(), why: "it must be an absolute path".to_owned() })
}

fn level(text: Option<String>) -> Result<tracing::Level, ConfigError> {
    let text = text.unwrap_or_else(|| "info".to_owned());
    text.parse().map_err(|_| ConfigError::Value {
        key: "log-level",
        value: text,
        why: "it is none of error, warn, info, debug, trace".to_owned(),
    })
}

fn deadline(text: Option<String>) -> Result<Duration, ConfigError> {
    let text = text.unwrap_or_else(|| "2s".to_owned());
    let value = |why: String| ConfigError::Value { key: "restore-deadline", value: text.clone(), why };
    let parsed = humantime::parse_duration(&text).map_err(|e| value(e.to_string()))?;
    if parsed.is_zero() {
        return Err(value("it must be longer than nothing".to_owned()));
    }
    Ok(parsed)
}

/// A size in bytes: `64m`, `1g`, `1048576`, `10MiB`. `None` for anything else.
pub fn size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    digits.trim().parse::<u64>().ok().filter(|n| *n > 0)?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str, flags: &Flags) -> Result<Settings, String> {
        Settings::parse(Path::new("/x.toml"), text, flags).map_err(|e| crate::chain(&e))
    }

    #[test]
    fn the_defaults_need_no_file() {
        let settings = parse("run-dir='/r'\nstate-dir='/s'", &Flags::default()).unwrap();
        assert_eq!(settings.socket, Path::new("/r/holdfastd.sock"));
        assert_eq!(settings.restore_deadline, Duration::from_secs(2));
        assert_eq!((settings.log_max_size, settings.log_max_file), (10 << 20, 3));
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let flags = Flags { run_dir: Some("/flag".into()), log_level: Some("debug".into()), ..Flags::default() };
        let settings = parse("run-dir='/file'\nlog-level='warn'\n[log]\nmax-size='1k'", &flags).unwrap();
        assert_eq!(settings.paths.run, Path::new("/flag"));
        assert_eq!(settings.log_level, tracing::Level::DEBUG);
        assert_eq!(settings.log_max_size, 1024);
    }

    #[test]
    fn each_mistake_is_named_with_its_reason() {
        for (text, part) in [
            ("run-dyr='/x'", "run-dyr"),
            ("[log]\nsize='1'", "size"),
            ("log-level='loud'", "loud"),
            ("restore-deadline='soon'", "soon"),
            ("restore-deadline='0s'", "longer than nothing"),
            ("state-dir='relative'", "absolute"),
            ("[log]\nmax-size='big'", "big"),
            ("run-dir=3", "/x.toml"),
        ] {
            let error = parse(text, &Flags::default()).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        let flags = Flags { config: Some("/no/such/file.toml".into()), ..Flags::default() };
        assert!(crate::chain(&Settings::load(&flags).unwrap_err()).contains("/no/such/file.toml"));
    }

    #[test]
    fn sizes() {
        assert_eq!(size("64m"), Some(64 << 20));
        assert_eq!(size("10MiB"), Some(10 << 20));
        assert_eq!(size("5"), Some(5));
        for bad in ["", "m", "0", "-1", "1x", "99999999999g"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_commented_default_file_names_every_key_and_is_valid() {
        let text = include_str!("../../systemd/holdfastd.toml");
        parse(text, &Flags::default()).unwrap();
        let uncommented: String =
            text.lines().map(|l| l.strip_prefix("#: ").unwrap_or(l)).collect::<Vec<_>>().join("\n");
        let settings = parse(&uncommented, &Flags::default()).unwrap();
        assert!(settings.shim.is_some() && settings.runtime.is_some(), "every key is shown");
    }
}
