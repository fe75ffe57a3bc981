//! How much may be kept for absent readers, where, and what happens at the bound: the settings of every shim, which
//! `holdfast doctor` reads as they do.
//!
//! Said in four places, the strongest first: the container's annotations ([`LIMIT_ANNOTATION`], [`POLICY_ANNOTATION`]), its
//! runtime options, the settings file (read once, when the shim starts), the defaults. The first two speak of one container,
//! so they choose its limit and its policy only: what protects the machine is the machine's.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{record, regular, size};

/// The annotation with the limit of each of a container's streams, as `64MiB`.
pub const LIMIT_ANNOTATION: &str = "holdfast.output.spill-limit";
/// The annotation with a container's policy.
pub const POLICY_ANNOTATION: &str = "holdfast.output.policy";
/// Names another settings file; that one must exist.
pub const FILE_VARIABLE: &str = "HOLDFAST_SHIM_CONFIG";

/// The settings file; it need not exist.
const DEFAULT_FILE: &str = "/etc/holdfast/shim.toml";
/// The directory for spills, below the root of what survives a reboot.
const DIRECTORY: &str = "spill";
/// What a free-space floor looks like.
const FLOOR_FORM: &str = "a floor is a number of per cent from 0 to 100";

/// What happens to a stream whose spill has reached a bound while nobody reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The process waits in its write, as with a reader who is slow. Nothing is lost.
    #[default]
    Block,
    /// The oldest lines make room; the reader finds a line that says how much is missing.
    DropOldest,
}

impl Policy {
    /// The words for the policies, for the error about one that is none.
    pub const FORM: &str = "a policy is block or drop-oldest";

    /// `None` for what is no policy.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "block" => Some(Self::Block),
            "drop-oldest" => Some(Self::DropOldest),
            _ => None,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Block => "block",
            Self::DropOldest => "drop-oldest",
        })
    }
}

/// The settings of one container's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSettings {
    /// For each stream, in bytes.
    pub spill_limit: u64,
    /// At any of the bounds.
    pub policy: Policy,
    /// For all spills below `spill_dir` together, in bytes.
    pub spill_total: u64,
    /// How much of the filesystem stays free, in per cent.
    pub free_floor_percent: u8,
    /// Where spills are, absolute.
    pub spill_dir: PathBuf,
}

impl Default for OutputSettings {
    fn default() -> Self {
        Self::below(&record::state_dir())
    }
}

impl OutputSettings {
    /// The defaults of a shim for which this is the root of what survives a reboot.
    fn below(state_dir: &Path) -> Self {
        Self {
            spill_limit: 64 << 20,
            policy: Policy::Block,
            spill_total: 4 << 30,
            free_floor_percent: 10,
            spill_dir: state_dir.join(DIRECTORY),
        }
    }
}

/// What is chosen for one container; `None` leaves it to who is weaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// See [`OutputSettings::spill_limit`].
    pub spill_limit: Option<u64>,
    /// See [`OutputSettings::policy`].
    pub policy: Option<Policy>,
}

impl Choice {
    /// What the values of the two annotations choose.
    ///
    /// # Errors
    /// [`SettingError`], naming the annotation.
    pub fn of_annotations(limit: Option<&str>, policy: Option<&str>) -> Result<Self, SettingError> {
        let limit = limit.map(|text| size::parse(text).ok_or_else(|| bad(LIMIT_ANNOTATION, text, size::FORM)));
        let policy = policy.map(|text| Policy::parse(text).ok_or_else(|| bad(POLICY_ANNOTATION, text, Policy::FORM)));
        Ok(Self { spill_limit: limit.transpose()?, policy: policy.transpose()? })
    }
}

/// A value that does not do.
#[derive(Debug, thiserror::Error)]
#[error("{key} = {value} is not valid: {why}")]
pub struct SettingError {
    /// The annotation, or the key in the file.
    key: String,
    /// As given.
    value: String,
    /// What would do.
    why: &'static str,
}

fn bad(key: &str, value: impl fmt::Debug, why: &'static str) -> SettingError {
    SettingError { key: key.to_owned(), value: format!("{value:?}"), why }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file that the environment names, or the default one that exists, cannot be read.
    #[error("cannot read the settings {0}")]
    Read(PathBuf, #[source] io::Error),
    /// The file has a value that does not do.
    #[error("the settings {0}")]
    Value(PathBuf, #[source] SettingError),
    /// The file is no TOML, or has a key that does not exist.
    #[error("the settings {path}, line {line}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where, counted from one.
        line: usize,
        /// Why; the parser's own text is a drawing of several lines.
        message: String,
    },
}

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    output: OutputTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct OutputTable {
    spill_limit: Option<toml::Value>,
    policy: Option<toml::Value>,
    spill_total: Option<toml::Value>,
    free_floor: Option<toml::Value>,
    spill_dir: Option<toml::Value>,
}

impl OutputSettings {
    /// The settings file over the defaults.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn load() -> Result<Self, SettingsError> {
        Self::load_below(&record::state_dir())
    }

    /// As [`Self::load`], of a shim for which this is the root of what survives a reboot.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn load_below(state_dir: &Path) -> Result<Self, SettingsError> {
        let default = Self::below(state_dir);
        let named = std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let path = named.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
        match regular::read_to_string(path) {
            Ok(text) => default.parse(path, &text),
            Err(e) if e.kind() == io::ErrorKind::NotFound && named.is_none() => Ok(default),
            Err(source) => Err(SettingsError::Read(path.to_owned(), source)),
        }
    }

    /// A file over these settings.
    fn parse(self, path: &Path, text: &str) -> Result<Self, SettingsError> {
        let file: File = toml::from_str(text).map_err(|e: toml::de::Error| {
            let before = e.span().and_then(|span| text.as_bytes().get(..span.start)).unwrap_or_default();
            let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
            SettingsError::Malformed { path: path.to_owned(), line, message: e.message().replace('\n', ", ") }
        })?;
        let OutputTable { spill_limit, policy, spill_total, free_floor, spill_dir } = file.output;
        let default = self;
        let take = || -> Result<Self, SettingError> {
            Ok(Self {
                spill_limit: read("spill-limit", spill_limit, size_of, size::FORM)?.unwrap_or(default.spill_limit),
                policy: read("policy", policy, policy_of, Policy::FORM)?.unwrap_or(default.policy),
                spill_total: read("spill-total", spill_total, size_of, size::FORM)?.unwrap_or(default.spill_total),
                free_floor_percent: read("free-floor", free_floor, percent_of, FLOOR_FORM)?
                    .unwrap_or(default.free_floor_percent),
                spill_dir: read("spill-dir", spill_dir, directory_of, "it must be an absolute path")?
                    .unwrap_or(default.spill_dir),
            })
        };
        take().map_err(|e| SettingsError::Value(path.to_owned(), e))
    }

    /// These settings with what was chosen for one container in their place.
    #[must_use]
    pub fn with(mut self, choice: Choice) -> Self {
        self.spill_limit = choice.spill_limit.unwrap_or(self.spill_limit);
        self.policy = choice.policy.unwrap_or(self.policy);
        self
    }
}

/// A value of the table `[output]`.
fn read<T>(
    key: &str,
    value: Option<toml::Value>,
    of: fn(&toml::Value) -> Option<T>,
    form: &'static str,
) -> Result<Option<T>, SettingError> {
    let bad = |value: &toml::Value| SettingError { key: format!("output.{key}"), value: shown(value), why: form };
    let parse = |value: toml::Value| of(&value).ok_or_else(|| bad(&value));
    value.map(parse).transpose()
}

/// A value as it stands in the text, of an array or a table only that it is one.
pub fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => format!("{text:?}"),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(truth) => truth.to_string(),
        other => format!("a value of the type {}", other.type_str()),
    }
}

/// A size in TOML: a string with a unit, or a number of bytes.
pub fn size_of(value: &toml::Value) -> Option<u64> {
    match value {
        toml::Value::String(text) => size::parse(text),
        toml::Value::Integer(bytes) => u64::try_from(*bytes).ok().filter(|bytes| *bytes > 0),
        _ => None,
    }
}

/// A policy in TOML.
pub fn policy_of(value: &toml::Value) -> Option<Policy> {
    value.as_str().and_then(Policy::parse)
}

fn percent_of(value: &toml::Value) -> Option<u8> {
    let percent = match value {
        toml::Value::String(text) => text.trim().trim_end_matches('%').trim_end().parse().ok()?,
        toml::Value::Integer(percent) => u8::try_from(*percent).ok()?,
        _ => return None,
    };
    (percent <= 100).then_some(percent)
}

fn directory_of(value: &toml::Value) -> Option<PathBuf> {
    value.as_str().map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::error::Error;

    use super::*;

    fn parse(text: &str) -> Result<OutputSettings, String> {
        OutputSettings::default().parse(Path::new("/x/shim.toml"), text).map_err(|e| match e.source() {
            Some(cause) => format!("{e}: {cause}"),
            None => e.to_string(),
        })
    }

    #[test]
    fn output_is_kept_below_the_root_of_whoever_asks() {
        let of_another = OutputSettings::below(Path::new("/other"));
        assert_eq!(of_another.spill_dir, Path::new("/other/spill"));
        let text = "[output]\nfree-floor=5";
        let read = of_another.clone().parse(Path::new("/x/shim.toml"), text).unwrap();
        assert_eq!(read, OutputSettings { free_floor_percent: 5, ..of_another });
    }

    #[test]
    fn the_defaults_need_no_file() {
        for text in ["", "[output]\n"] {
            assert_eq!(parse(text).unwrap(), OutputSettings::default());
        }
    }

    #[test]
    fn every_key_of_the_file_counts() {
        let text =
            "[output]\nspill-limit='1m'\npolicy='drop-oldest'\nspill-total=4096\nfree-floor='5%'\nspill-dir='/s'\n";
        let expected = OutputSettings {
            spill_limit: 1 << 20,
            policy: Policy::DropOldest,
            spill_total: 4096,
            free_floor_percent: 5,
            spill_dir: "/s".into(),
        };
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("[output]\nfree-floor=100").unwrap().free_floor_percent, 100);
    }

    #[test]
    fn each_mistake_is_named_with_file_key_and_reason() {
        for (text, expected) in [
            (
                "[output]\nspill-limit='big'",
                "the settings /x/shim.toml: output.spill-limit = \"big\" is not valid: a size",
            ),
            ("[output]\nspill-limit=0", "the settings /x/shim.toml: output.spill-limit = 0 is not valid: a size"),
            ("[output]\nspill-total=-1", "the settings /x/shim.toml: output.spill-total = -1 is not valid: a size"),
            (
                "[output]\npolicy='drop'",
                "the settings /x/shim.toml: output.policy = \"drop\" is not valid: a policy is",
            ),
            ("[output]\npolicy=1", "the settings /x/shim.toml: output.policy = 1 is not valid: a policy is"),
            ("[output]\nfree-floor=101", "the settings /x/shim.toml: output.free-floor = 101 is not valid: a floor is"),
            ("[output]\nspill-dir='s'", "the settings /x/shim.toml: output.spill-dir = \"s\" is not valid: it must be"),
            ("[output]\n\nlimit=1", "the settings /x/shim.toml, line 3: unknown field `limit`"),
            ("[outputs]", "the settings /x/shim.toml, line 1: unknown field `outputs`"),
            ("[output", "the settings /x/shim.toml, line 1: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{error} / {expected}");
            assert!(!error.contains('\n'), "it is shown on one line");
        }
    }

    #[test]
    fn who_speaks_of_the_container_wins_over_the_file() {
        let file = parse("[output]\nspill-limit='1m'").unwrap();
        let option = Choice { spill_limit: Some(2), policy: Some(Policy::DropOldest) };
        let annotation = Choice::of_annotations(Some("3"), None).unwrap();
        let settings = file.clone().with(option).with(annotation);
        assert_eq!((settings.spill_limit, settings.policy), (3, Policy::DropOldest));
        assert_eq!(file.clone().with(Choice::default()), file);
    }

    #[test]
    fn a_bad_annotation_is_named() {
        for (limit, policy, expected) in [
            (Some("0"), None, "holdfast.output.spill-limit = \"0\" is not valid: a size is a number of bytes above 0"),
            (Some(""), None, "holdfast.output.spill-limit = \"\" is not valid"),
            (None, Some("Block"), "holdfast.output.policy = \"Block\" is not valid: a policy is block or drop-oldest"),
        ] {
            let error = Choice::of_annotations(limit, policy).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn the_commented_default_file_names_every_key_with_its_default() {
        let text = include_str!("../../systemd/shim.toml");
        assert_eq!(parse(text).unwrap(), OutputSettings::default());
        let lines: Vec<_> = text.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect();
        let keys = ["spill-limit", "policy", "spill-total", "free-floor", "spill-dir"];
        for key in keys {
            assert!(lines.iter().any(|line| line.starts_with(&format!("{key} = "))), "{key} is shown");
        }
        let spill_dir = Path::new(record::DEFAULT_STATE_DIR).join(DIRECTORY);
        assert_eq!(parse(&lines.join("\n")).unwrap(), OutputSettings { spill_dir, ..OutputSettings::default() });
    }
}
