//! What the stdin, stdout and stderr addresses of Create and Exec mean (contract 6.1). Pure.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::log::Format;

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
    /// A FIFO that the client made, or a regular file that is there already (or `/dev/null`) and is appended to.
    Fifo(PathBuf),
    /// A regular file, appended to.
    File(PathBuf),
    /// A log of files that are rotated, in one of our formats.
    Log(LogSettings),
    /// The machine's journal.
    Journal(JournalSettings),
    /// A logger's pipes: a program that is started for this process, and takes both outputs.
    Logger(LoggerSettings),
}

/// Which logger, and how it says that it is ready (contract 6.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggerSettings {
    /// Absolute.
    pub program: PathBuf,
    /// From the address: each key and its first value, in the order in which they are written.
    pub arguments: Vec<String>,
    /// `binary-v2`: it must say a byte; else closing is as good.
    pub must_speak: bool,
}

/// Where a log is and when it is rotated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSettings {
    /// The current file.
    pub path: PathBuf,
    /// What is in it.
    pub format: FileFormat,
    /// In bytes; none: never rotated.
    pub max_size: Option<u64>,
    /// How many files are kept, the current one included.
    pub max_files: u32,
}

/// What is in a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileFormat {
    /// Docker's json-file.
    Json,
    /// Kubernetes' container log.
    Cri,
    /// The bytes as they come, of both streams.
    Raw,
}

/// By which names a container's entries are found in the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalSettings {
    /// The container's id.
    pub id: String,
    /// Its name; empty: no such field. So for the others.
    pub name: String,
    /// What stands before the text when the journal is shown. Empty: the beginning of the id.
    pub tag: String,
    /// What it was made from.
    pub image: String,
    /// Whose id it is.
    pub namespace: String,
}

/// A log that the shim writes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogTarget {
    /// A file to which bytes are appended as they come, and which is never rotated.
    Plain(PathBuf),
    /// Files that are rotated.
    Files(LogSettings),
    /// The journal.
    Journal(JournalSettings),
}

impl LogTarget {
    /// How its entries look; none: bytes as they come.
    pub fn format(&self) -> Option<Format> {
        match self {
            Self::Plain(_) => None,
            Self::Files(settings) => match settings.format {
                FileFormat::Json => Some(Format::Json),
                FileFormat::Cri => Some(Format::Cri),
                FileFormat::Raw => None,
            },
            Self::Journal(_) => Some(Format::Journal),
        }
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(path) | Self::Files(LogSettings { path, .. }) => path.display().fmt(f),
            Self::Journal(_) => f.write_str("in the journal"),
        }
    }
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
    /// Streaming I/O needs a sandbox service, which this shim does not offer (contract 6.9).
    #[error("the {stream} address {address:?} asks for streaming ({scheme:?}), which this shim does not serve")]
    Streaming {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// As given.
        address: String,
        /// What stands before `://`.
        scheme: String,
    },
    /// It is no URI: a `%` without two hexadecimal digits after it, or text that is no UTF-8 where text is wanted.
    #[error("the {stream} address {address:?} has a bad escape in {part:?}")]
    Escape {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// As given.
        address: String,
        /// Where in it.
        part: String,
    },
    /// A setting that there must be is missing.
    #[error("the {stream} address {address:?} lacks the setting {key:?}")]
    Missing {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// As given.
        address: String,
        /// Which.
        key: &'static str,
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

    /// Where stderr goes. A `file://` or a logger in stdout decides for both, whatever stands in stderr, as in containerd;
    /// only a logger takes errors that nobody asked for.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn errors(&self) -> Result<Option<Target>, AddressError> {
        if self.terminal {
            return Ok(None);
        }
        match self.output()? {
            logger @ Some(Target::Logger(_)) => Ok(logger),
            file @ Some(Target::File(_)) if !self.stderr.is_empty() => Ok(file),
            Some(Target::File(_)) => Ok(None),
            _ => match target("stderr", &self.stderr)? {
                // It would be without the stdout that is the first thing a logger reads.
                Some(Target::Logger(_)) => Err(scheme_error("stderr", &self.stderr)),
                other => Ok(other),
            },
        }
    }

    /// The logger that stdout names, once all addresses are understood.
    ///
    /// # Errors
    /// See [`AddressError`].
    pub fn logger(&self) -> Result<Option<LoggerSettings>, AddressError> {
        self.input()?;
        self.errors()?;
        match self.output()? {
            Some(Target::Logger(settings)) => Ok(Some(settings)),
            _ => Ok(None),
        }
    }
}

fn target(stream: &'static str, address: &str) -> Result<Option<Target>, AddressError> {
    if address.is_empty() {
        return Ok(None);
    }
    // A bare path means itself, whatever characters are in it; so does one that is spelled as a FIFO's URI.
    let Some((scheme, rest)) = address.split_once("://").filter(|(scheme, _)| *scheme != "fifo") else {
        let path = absolute(stream, address, address.strip_prefix("fifo://").unwrap_or(address).into())?;
        return Ok(Some(Target::Fifo(path)));
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let unescaped = |part: &str| {
        unescape(part, false).ok_or_else(|| AddressError::Escape {
            stream,
            address: address.to_owned(),
            part: part.to_owned(),
        })
    };
    match scheme {
        "file" => Ok(Some(Target::File(absolute(stream, address, unescaped(path)?)?))),
        "json-file" | "cri" | "raw" => {
            let format = match scheme {
                "json-file" => FileFormat::Json,
                "cri" => FileFormat::Cri,
                _ => FileFormat::Raw,
            };
            let path = absolute(stream, address, unescaped(path)?)?;
            log_settings(stream, address, path, format, query).map(|s| Some(Target::Log(s)))
        }
        "journald" if !path.is_empty() => {
            Err(AddressError::Setting { stream, address: address.to_owned(), setting: path.to_owned() })
        }
        "journald" => journal_settings(stream, address, query).map(|s| Some(Target::Journal(s))),
        "binary" | "binary-v2" => {
            let program = absolute(stream, address, unescaped(path)?)?;
            let arguments = logger_arguments(stream, address, query)?;
            Ok(Some(Target::Logger(LoggerSettings { program, arguments, must_speak: scheme == "binary-v2" })))
        }
        _ => Err(scheme_error(stream, address)),
    }
}

/// Only such a path means the same to client and shim.
fn absolute(stream: &'static str, address: &str, path: OsString) -> Result<PathBuf, AddressError> {
    let path = PathBuf::from(path);
    if path.is_absolute() { Ok(path) } else { Err(AddressError::NotAbsolute { stream, address: address.to_owned() }) }
}

/// As Go's shim makes them of a query, but in the order of the address, where Go's is random: a key without a value gives
/// an empty one, and of several values of a key the first counts.
fn logger_arguments(stream: &'static str, address: &str, query: &str) -> Result<Vec<String>, AddressError> {
    let mut arguments: Vec<String> = Vec::new();
    for setting in query.split('&').filter(|s| !s.is_empty()) {
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        let (key, value) = (query_text(stream, address, key)?, query_text(stream, address, value)?);
        if !arguments.iter().step_by(2).any(|earlier| *earlier == key) {
            arguments.extend([key, value]);
        }
    }
    Ok(arguments)
}

/// A part of a query, decoded.
fn query_text(stream: &'static str, address: &str, part: &str) -> Result<String, AddressError> {
    let text = unescape(part, true).and_then(|text| text.into_string().ok());
    text.ok_or_else(|| AddressError::Escape { stream, address: address.to_owned(), part: part.to_owned() })
}

/// Undoes percent-encoding, RFC 3986 section 2.1; in a query a `+` is a space too. None if a `%` is not followed by two
/// hexadecimal digits, or if it hides a NUL, which no path and no argument can hold.
fn unescape(text: &str, plus_is_space: bool) -> Option<OsString> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' if plus_is_space => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok().filter(|&byte| byte != 0)?
            }
            byte => byte,
        });
    }
    Some(OsString::from_vec(bytes))
}

fn log_settings(
    stream: &'static str,
    address: &str,
    path: PathBuf,
    format: FileFormat,
    query: &str,
) -> Result<LogSettings, AddressError> {
    let mut settings = LogSettings { path, format, max_size: None, max_files: DEFAULT_MAX_FILES };
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

fn journal_settings(stream: &'static str, address: &str, query: &str) -> Result<JournalSettings, AddressError> {
    let mut settings = JournalSettings::default();
    for setting in query.split('&').filter(|s| !s.is_empty()) {
        let bad = || AddressError::Setting { stream, address: address.to_owned(), setting: setting.to_owned() };
        let (key, value) = setting.split_once('=').ok_or_else(bad)?;
        let field = match key {
            "id" => &mut settings.id,
            "name" => &mut settings.name,
            "tag" => &mut settings.tag,
            "image" => &mut settings.image,
            "namespace" => &mut settings.namespace,
            _ => return Err(bad()),
        };
        *field = query_text(stream, address, value)?;
    }
    if settings.id.is_empty() {
        return Err(AddressError::Missing { stream, address: address.to_owned(), key: "id" });
    }
    Ok(settings)
}

fn scheme_error(stream: &'static str, address: &str) -> AddressError {
    let scheme = address.split("://").next().unwrap_or_default().to_owned();
    let address = address.to_owned();
    // As containerd's CRI spells them: the streaming service's own socket, over some protocol.
    if scheme.starts_with("ttrpc") || address.contains("streaming_id=") {
        return AddressError::Streaming { stream, address, scheme };
    }
    AddressError::Scheme { stream, address, scheme }
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
    fn a_logger_takes_both_outputs_and_its_arguments_in_order() {
        let given = addresses("binary:///usr/bin/my%20logger?id=1&debug&a%26b=x+y%2B&id=2", "/ignored");
        let expected = LoggerSettings {
            program: "/usr/bin/my logger".into(),
            arguments: ["id", "1", "debug", "", "a&b", "x y+"].map(str::to_owned).to_vec(),
            must_speak: false,
        };
        assert_eq!(given.logger(), Ok(Some(expected.clone())));
        assert_eq!(given.errors(), Ok(Some(Target::Logger(expected))));
        assert!(addresses("binary-v2:///l", "").logger().unwrap().unwrap().must_speak);
        assert_eq!(Addresses { terminal: true, ..given }.errors(), Ok(None));
        assert_eq!(addresses("/fifo", "/fifo").logger(), Ok(None));
    }

    #[test]
    fn a_logger_in_stderr_alone_and_bad_escapes_are_refused() {
        assert!(matches!(addresses("/fifo", "binary:///l").logger(), Err(AddressError::Scheme { .. })));
        for bad in ["binary:///l?a=%zz", "binary:///%", "binary:///l?a=%00", "binary:///l?a=%ff", "file:///%2"] {
            let refused = addresses(bad, "").logger().unwrap_err();
            assert!(matches!(refused, AddressError::Escape { .. }), "{bad}: {refused}");
        }
        assert!(matches!(addresses("binary://relative", "").logger(), Err(AddressError::NotAbsolute { .. })));
    }

    #[test]
    fn a_file_is_named_by_a_uri_and_a_fifo_by_its_path() {
        assert_eq!(addresses("file:///a%20b?x=y", "").output(), Ok(Some(Target::File("/a b".into()))));
        assert_eq!(addresses("/a%20b?x", "").output(), Ok(Some(Target::Fifo("/a%20b?x".into()))));
    }

    #[test]
    fn a_log_address_carries_its_format_and_rotation() {
        for (scheme, format) in [("json-file", FileFormat::Json), ("cri", FileFormat::Cri), ("raw", FileFormat::Raw)] {
            let expected = LogSettings { path: "/l ?".into(), format, max_size: Some(10), max_files: 3 };
            let given = addresses(&format!("{scheme}:///l%20%3f?max-size=10&max-file=3"), "");
            assert_eq!(given.output(), Ok(Some(Target::Log(expected))));
            for bad in ["max-size=0", "max-size=x", "max-file=0", "color=red", "tag=x", "max-size"] {
                let refused = addresses(&format!("{scheme}:///l?{bad}"), "").output().unwrap_err();
                assert!(matches!(&refused, AddressError::Setting { setting, .. } if setting == bad), "{refused}");
            }
            let relative = addresses(&format!("{scheme}://l"), "").output();
            assert!(matches!(relative, Err(AddressError::NotAbsolute { .. })), "{relative:?}");
        }
    }

    #[test]
    fn a_journal_address_carries_the_names_of_the_container() {
        let given = addresses("journald://?id=0123&name=web&tag=a%20tag&image=i%3Aj&namespace=default", "");
        let expected = JournalSettings {
            id: "0123".into(),
            name: "web".into(),
            tag: "a tag".into(),
            image: "i:j".into(),
            namespace: "default".into(),
        };
        assert_eq!(given.output(), Ok(Some(Target::Journal(expected))));
        let missing = addresses("journald://?name=web", "").output().unwrap_err();
        assert!(missing.to_string().ends_with("lacks the setting \"id\""), "{missing}");
        let unknown = addresses("journald://?id=1&max-size=10", "").output().unwrap_err();
        assert!(matches!(&unknown, AddressError::Setting { setting, .. } if setting == "max-size=10"), "{unknown}");
        assert!(matches!(addresses("journald:///x?id=1", "").output(), Err(AddressError::Setting { .. })));
    }

    #[test]
    fn relative_paths_and_unknown_schemes_are_refused_by_name() {
        let relative = addresses("x", "").output().unwrap_err();
        assert_eq!(relative.to_string(), "the stdout address \"x\" is not an absolute path");
        let unknown = addresses("", "ttrpc+unix:///s?streaming_id=1").errors().unwrap_err();
        assert!(matches!(unknown, AddressError::Streaming { .. }) && unknown.to_string().contains("\"ttrpc+unix\""));
        let unknown = addresses("gopher:///s", "").output().unwrap_err();
        assert!(matches!(unknown, AddressError::Scheme { .. }) && unknown.to_string().contains("\"gopher\""));
        let stdin = Addresses { stdin: "file:///x".to_owned(), ..Addresses::default() };
        assert!(matches!(stdin.input(), Err(AddressError::Scheme { .. })));
    }
}
