//! What the stdin, stdout and stderr addresses of Create and Exec mean (contract 6.1). Pure.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How many log files are kept if the address does not say: one that grows.
const DEFAULT_MAX_FILES: u32 = 1;

/// Addresses as they were given; `State` and the record repeat them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Whether the process gets a terminal; then stderr is not used.
    pub terminal: bool,
    /// Empty: `/dev/null`.
    pub stdin: String,
    /// Empty: `/dev/null`.
    pub stdout: String,
    /// Empty: `/dev/null`.
    pub stderr: String,
}

/// Where output goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A FIFO that the client made.
    Fifo(PathBuf),
    /// A regular file, appended to.
    File(PathBuf),
    /// A log in Docker's json-file format.
    JsonFile(LogSettings),
}

/// Where a log is and when it is rotated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSettings {
    /// The current file.
    pub path: PathBuf,
    /// In bytes; none: never rotated.
    pub max_size: Option<u64>,
    /// How many files are kept, the current one included.
    pub max_files: u32,
}

/// Why an address was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Only absolute paths mean the same to client and shim.
    #[error("the {stream} address {address:?} is not an absolute path")]
    NotAbsolute {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// As given.
        address: String,
    },
    /// A scheme that this shim does not serve.
    #[error("the {stream} address {address:?} has the scheme {scheme:?}, which this shim does not serve")]
    Scheme {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// As given.
        address: String,
        /// What stands before `://`.
        scheme: String,
    },
    /// A setting after the `?` is unknown or has a bad value.
    #[error("the {stream} address {address:?} has the bad setting {setting:?}")]
    Setting {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// As given.
        address: String,
        /// `key=value`.
        setting: String,
    },
}

impl Addresses {
    /// The FIFO from which input comes.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn input(&self) -> Result<Option<PathBuf>, AddressError> {
        match target("stdin", &self.stdin)? {
            None => Ok(None),
            Some(Target::Fifo(path)) => Ok(Some(path)),
            Some(_) => Err(scheme_error("stdin", &self.stdin)),
        }
    }

    /// Where stdout (with a terminal: all output) goes.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn output(&self) -> Result<Option<Target>, AddressError> {
        target("stdout", &self.stdout)
    }

    /// Where stderr goes. A `file://` in stdout decides for both, as in containerd.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn errors(&self) -> Result<Option<Target>, AddressError> {
        if self.terminal {
            return Ok(None);
        }
        match self.output()? {
            file @ Some(Target::File(_)) if !self.stderr.is_empty() => Ok(file),
            _ => target("stderr", &self.stderr),
        }
    }
}

fn target(stream: &'static str, address: &str) -> Result<Option<Target>, AddressError> {
    if address.is_empty() {
        return Ok(None);
    }
    let (scheme, rest) = address.split_once("://").unwrap_or(("fifo", address));
    let (path, query) = if scheme == "json-file" { rest.split_once('?').unwrap_or((rest, "")) } else { (rest, "") };
    if !matches!(scheme, "fifo" | "file" | "json-file") {
        return Err(scheme_error(stream, address));
    }
    if !Path::new(path).is_absolute() {
        return Err(AddressError::NotAbsolute { stream, address: address.to_owned() });
    }
    match scheme {
        "file" => Ok(Some(Target::File(path.into()))),
        "json-file" => log_settings(stream, address, path, query).map(|s| Some(Target::JsonFile(s))),
        _ => Ok(Some(Target::Fifo(path.into()))),
    }
}

fn log_settings(stream: &'static str, address: &str, path: &str, query: &str) -> Result<LogSettings, AddressError> {
    let mut settings = LogSettings { path: path.into(), max_size: None, max_files: DEFAULT_MAX_FILES };
    for setting in query.split('&').filter(|s| !s.is_empty()) {
        let bad = || AddressError::Setting { stream, address: address.to_owned(), setting: setting.to_owned() };
        let (key, value) = setting.split_once('=').ok_or_else(bad)?;
        match key {
            "max-size" => settings.max_size = Some(value.parse().ok().filter(|&n| n > 0).ok_or_else(bad)?),
            "max-file" => settings.max_files = value.parse().ok().filter(|&n| n > 0).ok_or_else(bad)?,
            _ => return Err(bad()),
        }
    }
    Ok(settings)
}

fn scheme_error(stream: &'static str, address: &str) -> AddressError {
    let scheme = address.split("://").next().unwrap_or_default().to_owned();
    AddressError::Scheme { stream, address: address.to_owned(), scheme }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn addresses(stdout: &str, stderr: &str) -> Addresses {
        Addresses { stdout: stdout.to_owned(), stderr: stderr.to_owned(), ..Addresses::default() }
    }

    #[test]
    fn a_bare_path_and_the_fifo_scheme_mean_the_same() {
        assert_eq!(addresses("/run/x", "").output(), Ok(Some(Target::Fifo("/run/x".into()))));
        assert_eq!(addresses("fifo:///run/x", "").output(), Ok(Some(Target::Fifo("/run/x".into()))));
        assert_eq!(addresses("", "").output(), Ok(None));
    }

    #[test]
    fn a_file_in_stdout_decides_for_stderr_too_unless_it_is_not_wanted() {
        let file = Some(Target::File("/l".into()));
        assert_eq!(addresses("file:///l", "file:///other").errors(), Ok(file));
        assert_eq!(addresses("file:///l", "").errors(), Ok(None));
    }

    #[test]
    fn a_log_address_carries_its_rotation() {
        let expected = LogSettings { path: "/l".into(), max_size: Some(10), max_files: 3 };
        let given = addresses("json-file:///l?max-size=10&max-file=3", "");
        assert_eq!(given.output(), Ok(Some(Target::JsonFile(expected))));
        for bad in ["json-file:///l?max-size=0", "json-file:///l?max-size=x", "json-file:///l?color=red"] {
            assert!(matches!(addresses(bad, "").output(), Err(AddressError::Setting { .. })), "{bad}");
        }
    }

    #[test]
    fn relative_paths_and_unknown_schemes_are_refused_by_name() {
        let relative = addresses("x", "").output().unwrap_err();
        assert_eq!(relative.to_string(), "the stdout address \"x\" is not an absolute path");
        let unknown = addresses("", "ttrpc+unix:///s?streaming_id=1").errors().unwrap_err();
        assert!(unknown.to_string().contains("\"ttrpc+unix\""), "{unknown}");
        let stdin = Addresses { stdin: "file:///x".to_owned(), ..Addresses::default() };
        assert!(matches!(stdin.input(), Err(AddressError::Scheme { .. })));
    }
}
