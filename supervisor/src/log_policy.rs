//! Where a container's output is kept: the driver and its options, as they are set, stored and told to the shim. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use holdfast_proto::size;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::names;
use crate::paths::{NAMESPACE, Paths};

/// How a log is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// Files in Docker's json-file format.
    #[default]
    JsonFile,
    /// Files in Kubernetes' format.
    Cri,
    /// The machine's journal.
    Journald,
    /// Files with the bytes as they come.
    Raw,
    /// Not at all.
    None,
}

impl Driver {
    /// All, with the names under which they are set.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::JsonFile, "json-file"),
        (Self::Cri, "cri"),
        (Self::Journald, "journald"),
        (Self::Raw, "raw"),
        (Self::None, "none"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(driver, _)| *driver == self).map_or("", |(_, name)| name)
    }

    /// The name of the current file in a container's directory. Each driver has its own, so that nothing is ever mixed up.
    pub fn file_name(self) -> Option<&'static str> {
        match self {
            Self::JsonFile => Some("log.json"),
            Self::Cri => Some("log.cri"),
            Self::Raw => Some("log.raw"),
            Self::Journald | Self::None => None,
        }
    }
}

impl FromStr for Driver {
    type Err = LogPolicyError;

    fn from_str(text: &str) -> Result<Self, LogPolicyError> {
        let found = Self::ALL.into_iter().find(|(_, name)| *name == text);
        found.map(|(driver, _)| driver).ok_or_else(|| LogPolicyError::Driver(text.to_owned()))
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a log is not kept like that.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum LogPolicyError {
    /// There is no such driver.
    #[error("{0:?} is no log driver (json-file, cri, journald, raw or none)")]
    Driver(String),
    /// The driver has no such option.
    #[error(
        "the log driver {driver} has no option {key:?} (max-size and max-file: json-file, cri, raw; tag: journald)"
    )]
    Option {
        /// Which.
        driver: Driver,
        /// As given.
        key: String,
    },
    /// A value does not do.
    #[error("the log option {key}={value:?} is not valid: {why}")]
    Value {
        /// Which.
        key: &'static str,
        /// As given.
        value: String,
        /// Why.
        why: &'static str,
    },
}

/// What is known of a container's log without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogPolicy {
    /// How it is kept.
    #[serde(rename = "log_driver")]
    pub driver: Driver,
    /// Bytes after which a file is rotated.
    #[serde(rename = "log_max_size")]
    pub max_size: u64,
    /// How many files are kept, the current one included.
    #[serde(rename = "log_max_file")]
    pub max_file: u32,
    /// What stands before the text in the journal; empty: the beginning of the id.
    #[serde(rename = "log_tag", skip_serializing_if = "String::is_empty")]
    pub tag: String,
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self { driver: Driver::default(), max_size: 10 << 20, max_file: 3, tag: String::new() }
    }
}

impl LogPolicy {
    /// This one, changed by what was asked: a driver (empty: as it is), and options by name.
    ///
    /// # Errors
    /// See [`LogPolicyError`].
    pub fn with<'a>(
        &self,
        driver: &str,
        options: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, LogPolicyError> {
        let mut changed = self.clone();
        if !driver.is_empty() {
            changed.driver = driver.parse()?;
        }
        for (key, value) in options {
            match (key.as_str(), changed.driver) {
                ("max-size", Driver::JsonFile | Driver::Cri | Driver::Raw) => changed.max_size = max_size(value)?,
                ("max-file", Driver::JsonFile | Driver::Cri | Driver::Raw) => changed.max_file = max_file(value)?,
                ("tag", Driver::Journald) => changed.tag = tag(value)?,
                (_, driver) => return Err(LogPolicyError::Option { driver, key: key.clone() }),
            }
        }
        Ok(changed)
    }

    /// The options that the driver has, as they are set.
    pub fn options(&self) -> BTreeMap<&'static str, String> {
        match self.driver {
            Driver::JsonFile | Driver::Cri | Driver::Raw => {
                [("max-size", self.max_size.to_string()), ("max-file", self.max_file.to_string())].into()
            }
            Driver::Journald if !self.tag.is_empty() => [("tag", self.tag.clone())].into(),
            Driver::Journald | Driver::None => BTreeMap::new(),
        }
    }

    /// The address that the shim is given for both outputs. There is one also if nothing is kept: somebody may attach.
    pub fn address(&self, paths: &Paths, id: &str, name: &str) -> String {
        let Some(path) = paths.log(id, self.driver) else {
            return match self.driver {
                Driver::Journald => self.journal_address(id, name),
                _ => "file:///dev/null".to_owned(),
            };
        };
        let Self { driver, max_size, max_file, .. } = self;
        format!("{driver}://{}?max-size={max_size}&max-file={max_file}", escaped_path(&path))
    }

    fn journal_address(&self, id: &str, name: &str) -> String {
        let tag = self.tag.replace("{{.ID}}", names::short(id)).replace("{{.FullID}}", id).replace("{{.Name}}", name);
        let mut address = format!("journald://?id={}&namespace={}", escaped(id), escaped(NAMESPACE));
        for (key, value) in [("name", name), ("tag", &tag)] {
            if !value.is_empty() {
                address += &format!("&{key}={}", escaped(value));
            }
        }
        address
    }
}

/// The value of `max-size`.
///
/// # Errors
/// [`LogPolicyError::Value`]; so for the others.
pub fn max_size(value: &str) -> Result<u64, LogPolicyError> {
    let error = || LogPolicyError::Value { key: "max-size", value: value.to_owned(), why: size::FORM };
    size::parse(value).ok_or_else(error)
}

fn max_file(value: &str) -> Result<u32, LogPolicyError> {
    let why = "it must be a number from 1 on";
    let number = value.parse().ok().filter(|n| *n > 0);
    number.ok_or_else(|| LogPolicyError::Value { key: "max-file", value: value.to_owned(), why })
}

/// Docker's templates, as far as there is something behind them here.
fn tag(value: &str) -> Result<String, LogPolicyError> {
    let known = ["{{.ID}}", "{{.FullID}}", "{{.Name}}"];
    let rest = known.iter().fold(value.to_owned(), |text, template| text.replace(template, ""));
    if rest.contains("{{") {
        let why = "the templates are {{.ID}}, {{.FullID}} and {{.Name}}";
        return Err(LogPolicyError::Value { key: "tag", value: value.to_owned(), why });
    }
    Ok(value.to_owned())
}

fn escaped_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    escaped_bytes(path.as_os_str().as_bytes())
}

fn escaped(text: &str) -> String {
    escaped_bytes(text.as_bytes())
}

/// Percent-encoding, RFC 3986 section 2.1.
fn escaped_bytes(bytes: &[u8]) -> String {
    let mut out = String::new();
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(char::from(byte)),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn paths() -> Paths {
        Paths { run: "/r".into(), state: "/s t".into() }
    }

    #[test]
    fn a_driver_and_its_options_change_what_is_the_default() {
        let changed = LogPolicy::default().with("cri", &options(&[("max-size", "1m"), ("max-file", "7")])).unwrap();
        assert_eq!((changed.driver, changed.max_size, changed.max_file), (Driver::Cri, 1 << 20, 7));
        assert_eq!(changed.with("", &BTreeMap::new()).unwrap(), changed);
        let expected = "cri:///s%20t/containers/default/0123/log.cri?max-size=1048576&max-file=7";
        assert_eq!(changed.address(&paths(), "0123", "web"), expected);
    }

    #[test]
    fn the_journal_gets_the_names_of_the_container() {
        let set = LogPolicy::default().with("journald", &options(&[("tag", "a {{.Name}}/{{.ID}}")])).unwrap();
        let address = set.address(&paths(), "0123456789abcdef", "web");
        let expected = "journald://?id=0123456789abcdef&namespace=default&name=web&tag=a%20web/0123456789ab";
        assert_eq!(address, expected);
        let none = LogPolicy::default().with("none", &BTreeMap::new()).unwrap();
        assert_eq!(none.address(&paths(), "0123", "web"), "file:///dev/null");
    }

    #[test]
    fn what_does_not_do_is_named() {
        let default = LogPolicy::default();
        for (driver, pairs, parts) in [
            ("syslog", &[][..], ["syslog", "journald"]),
            ("json-file", &[("color", "red")], ["json-file", "color"]),
            ("journald", &[("max-size", "1m")], ["journald", "max-size"]),
            ("raw", &[("tag", "x")], ["raw", "tag"]),
            ("raw", &[("max-size", "0")], ["max-size", "\"0\""]),
            ("cri", &[("max-file", "none")], ["max-file", "none"]),
            ("journald", &[("tag", "{{.DaemonName}}")], ["DaemonName", "{{.FullID}}"]),
        ] {
            let error = default.with(driver, &options(pairs)).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn what_was_stored_before_there_were_drivers_is_a_json_file() {
        let old: LogPolicy = serde_json::from_str(r#"{"log_max_size": 5, "log_max_file": 2}"#).unwrap();
        assert_eq!(old, LogPolicy { max_size: 5, max_file: 2, ..LogPolicy::default() });
        for (driver, name) in Driver::ALL {
            assert_eq!(serde_json::to_value(driver).unwrap(), name);
            assert_eq!(name.parse(), Ok(driver));
        }
    }
}
