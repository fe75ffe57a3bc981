//! The runtime options: what a client may choose about how its containers are run.
//!
//! They arrive as one of three protobuf messages (`containerd.runc.v1.Options`; `runtimeoptions.v1.Options` which carries or
//! names a TOML text; `containerd.linux.runc.CreateOptions`, in which clients of containerd before 2.0 put what they ask of
//! one task of a runtime that is not named runc, as `ctr run --no-pivot` or a user namespace does) and are kept as `options.json` in the bundle, in the form of containerd's own shim, so
//! that `delete` finds them even when another version wrote them: unknown keys are ignored, zero values left out.

use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::shim::oci;
use holdfast_proto::regular;
use protobuf::{CodedInputStream, Message, UnknownValueRef};
use serde::{Deserialize, Serialize};

use crate::io::spill::policy::{self, Choice, Policy};

const RUNC: &str = "containerd.runc.v1.Options";
const GENERIC: &str = "runtimeoptions.v1.Options";
const LEGACY: &str = "containerd.linux.runc.CreateOptions";
const CHECKPOINT: &str = "containerd.runc.v1.CheckpointOptions";
/// As [`LEGACY`], of one checkpoint.
const LEGACY_CHECKPOINT: &str = "containerd.linux.runc.CheckpointOptions";

/// What can be chosen. The default of each field is its zero value and means "not chosen".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Use a moved mount in place of `pivot_root(2)`.
    #[serde(skip_serializing_if = "is_zero")]
    pub no_pivot_root: bool,
    /// Let the container inherit the session keyring.
    #[serde(skip_serializing_if = "is_zero")]
    pub no_new_keyring: bool,
    /// The cgroup to put the shim into.
    #[serde(skip_serializing_if = "is_zero")]
    pub shim_cgroup: String,
    /// The owner of the container's stdio pipes.
    #[serde(skip_serializing_if = "is_zero")]
    pub io_uid: u32,
    /// The group of the container's stdio pipes.
    #[serde(skip_serializing_if = "is_zero")]
    pub io_gid: u32,
    /// The OCI runtime: a path, or a name to be looked up in `PATH`.
    #[serde(skip_serializing_if = "is_zero")]
    pub binary_name: String,
    /// The OCI runtime's state directory, without the namespace.
    #[serde(skip_serializing_if = "is_zero")]
    pub root: String,
    /// Let systemd manage the container's cgroup.
    #[serde(skip_serializing_if = "is_zero")]
    pub systemd_cgroup: bool,
    /// The checkpoint to restore from.
    #[serde(skip_serializing_if = "is_zero")]
    pub criu_image_path: String,
    /// Where criu works during a restore.
    #[serde(skip_serializing_if = "is_zero")]
    pub criu_work_path: String,
    /// How much of each stream is kept for an absent reader, in bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub spill_limit: u64,
    /// What happens when that much is kept.
    #[serde(skip_serializing_if = "is_zero")]
    pub output_policy: Option<Policy>,
}

/// What a client may choose about one checkpoint (contract 3.9).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointOptions {
    /// The container ends with it; else it runs on.
    pub exit: bool,
    /// Take open TCP connections along.
    pub open_tcp: bool,
    /// Take connected Unix sockets along whose peer is outside.
    pub external_unix_sockets: bool,
    /// Take the terminal along.
    pub terminal: bool,
    /// Take file locks along.
    pub file_locks: bool,
    /// Kinds of namespaces that are restored empty.
    pub empty_namespaces: Vec<String>,
    /// Where criu works; empty: a place of the shim's.
    pub work_path: String,
    /// An earlier checkpoint that this one builds on, relative to it; empty: none.
    pub parent_path: String,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Why options were refused.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The message is of a type that is not for us.
    #[error("runtime options of type {0:?} are not supported, only {RUNC} and {GENERIC}")]
    UnknownType(String),
    /// As for [`OptionsError::UnknownType`], of a checkpoint.
    #[error("checkpoint options of type {0:?} are not supported, only {CHECKPOINT}")]
    UnknownCheckpointType(String),
    /// The bytes are no such message.
    #[error("malformed runtime options of type {type_url}")]
    Malformed {
        /// The type that they claim.
        type_url: String,
        /// What the decoder says.
        source: protobuf::Error,
    },
    /// A file cannot be read.
    #[error("cannot read the runtime options in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A file is named by a path that everybody who reads it would look up somewhere else.
    #[error("the path of the runtime options {0:?} is not absolute")]
    Relative(String),
    /// The TOML text is none.
    #[error("{origin} is not TOML: line {line}: {message}")]
    Toml {
        /// The file, or the message that held the text.
        origin: String,
        /// Where, counted from one.
        line: usize,
        /// Why; the parser's own text is a drawing of several lines.
        message: String,
    },
    /// A key in the TOML text has a value of another kind.
    #[error("{origin}: {key} must be {expected}, not {value}")]
    Value {
        /// The file, or the message that held the text.
        origin: String,
        /// As it is spelled there.
        key: String,
        /// The kind of value that it takes.
        expected: &'static str,
        /// What was given, as TOML.
        value: String,
    },
    /// A key is in the TOML text in two spellings.
    #[error("{origin}: {key} is given twice")]
    Twice {
        /// The file, or the message that held the text.
        origin: String,
        /// The second spelling.
        key: String,
    },
    /// `options.json` is damaged.
    #[error("{path} does not hold runtime options")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

/// The part of a type URL that names the message.
fn message_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// Whether [`from_any`] would look at the value.
pub fn is_known_type(type_url: &str) -> bool {
    matches!(message_name(type_url), RUNC | GENERIC | LEGACY)
}

/// Decodes the options of a request. The second part of the result are the TOML keys that were not understood, to be
/// logged by the caller. No type and no value means the defaults.
///
/// # Errors
/// All but [`OptionsError::Json`].
pub fn from_any(type_url: &str, value: &[u8]) -> Result<(Options, Vec<String>), OptionsError> {
    let malformed = |source| OptionsError::Malformed { type_url: type_url.to_owned(), source };
    match message_name(type_url) {
        RUNC => {
            let message = oci::Options::parse_from_bytes(value).map_err(malformed)?;
            Ok((message.into(), Vec::new()))
        }
        GENERIC => Generic::decode(value).map_err(malformed)?.resolve(),
        LEGACY => Ok((from_legacy(value).map_err(malformed)?, Vec::new())),
        "" if value.is_empty() => Ok(Default::default()),
        _ => Err(OptionsError::UnknownType(type_url.to_owned())),
    }
}

/// Decodes the options of a checkpoint. No type and no value means the defaults.
///
/// # Errors
/// [`OptionsError::UnknownCheckpointType`], [`OptionsError::Malformed`].
pub fn checkpoint_from_any(type_url: &str, value: &[u8]) -> Result<CheckpointOptions, OptionsError> {
    /// Added after the version that the protocol crate has.
    const PARENT_PATH: u32 = 10;
    let malformed = |source| OptionsError::Malformed { type_url: type_url.to_owned(), source };
    let mut legacy = false;
    match message_name(type_url) {
        CHECKPOINT => {}
        LEGACY_CHECKPOINT => legacy = true,
        "" if value.is_empty() => {}
        _ => return Err(OptionsError::UnknownCheckpointType(type_url.to_owned())),
    }
    let m = oci::CheckpointOptions::parse_from_bytes(value).map_err(malformed)?;
    let parent_path = match m.special_fields.unknown_fields().get(PARENT_PATH) {
        Some(UnknownValueRef::LengthDelimited(text)) => String::from_utf8_lossy(text).into_owned(),
        _ => String::new(),
    };
    Ok(CheckpointOptions {
        exit: m.exit,
        open_tcp: m.open_tcp,
        external_unix_sockets: m.external_unix_sockets,
        terminal: m.terminal,
        file_locks: m.file_locks,
        empty_namespaces: m.empty_namespaces,
        // The two paths have each other's numbers in the older message. The one of the image is the daemon's business.
        work_path: if legacy { m.image_path } else { m.work_path },
        parent_path,
    })
}

impl From<oci::Options> for Options {
    fn from(m: oci::Options) -> Self {
        Self {
            no_pivot_root: m.no_pivot_root,
            no_new_keyring: m.no_new_keyring,
            shim_cgroup: m.shim_cgroup,
            io_uid: m.io_uid,
            io_gid: m.io_gid,
            binary_name: m.binary_name,
            root: m.root,
            systemd_cgroup: m.systemd_cgroup,
            criu_image_path: m.criu_image_path,
            criu_work_path: m.criu_work_path,
            // For those who send TOML.
            spill_limit: 0,
            output_policy: None,
        }
    }
}

/// Decodes `containerd.linux.runc.CreateOptions`, which the protocol crate lacks (containerd 1.7,
/// `runtime/linux/runctypes/runc.proto`). What else it has is for checkpoints, and no client fills it.
fn from_legacy(value: &[u8]) -> protobuf::Result<Options> {
    const NUMBER: u32 = 0;
    const TEXT: u32 = 2;
    const NO_PIVOT_ROOT: u32 = 1 << 3 | NUMBER;
    const NO_NEW_KEYRING: u32 = 8 << 3 | NUMBER;
    const SHIM_CGROUP: u32 = 9 << 3 | TEXT;
    const IO_UID: u32 = 10 << 3 | NUMBER;
    const IO_GID: u32 = 11 << 3 | NUMBER;
    const CRIU_WORK_PATH: u32 = 12 << 3 | TEXT;
    const CRIU_IMAGE_PATH: u32 = 13 << 3 | TEXT;
    let mut input = CodedInputStream::from_bytes(value);
    let mut options = Options::default();
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag {
            NO_PIVOT_ROOT => options.no_pivot_root = input.read_bool()?,
            NO_NEW_KEYRING => options.no_new_keyring = input.read_bool()?,
            SHIM_CGROUP => options.shim_cgroup = input.read_string()?,
            IO_UID => options.io_uid = input.read_uint32()?,
            IO_GID => options.io_gid = input.read_uint32()?,
            CRIU_WORK_PATH => options.criu_work_path = input.read_string()?,
            CRIU_IMAGE_PATH => options.criu_image_path = input.read_string()?,
            _ => protobuf::rt::skip_field_for_tag(tag, &mut input)?,
        }
    }
    Ok(options)
}

/// `runtimeoptions.v1.Options`, which the protocol crate lacks. Its field 1, a type name, tells us nothing.
#[derive(Default)]
struct Generic {
    config_path: String,
    config_body: Vec<u8>,
}

impl Generic {
    fn decode(value: &[u8]) -> protobuf::Result<Self> {
        const CONFIG_PATH: u32 = 2 << 3 | 2;
        const CONFIG_BODY: u32 = 3 << 3 | 2;
        let mut input = CodedInputStream::from_bytes(value);
        let mut message = Self::default();
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag {
                CONFIG_PATH => message.config_path = input.read_string()?,
                CONFIG_BODY => message.config_body = input.read_bytes()?,
                _ => protobuf::rt::skip_field_for_tag(tag, &mut input)?,
            }
        }
        Ok(message)
    }

    fn resolve(self) -> Result<(Options, Vec<String>), OptionsError> {
        if !self.config_path.is_empty() {
            let path = Path::new(&self.config_path);
            if !path.is_absolute() {
                return Err(OptionsError::Relative(self.config_path));
            }
            let read = |source| OptionsError::Read { path: path.to_owned(), source };
            let text = regular::read_to_string(path).map_err(read)?;
            from_toml(&self.config_path, &text)
        } else {
            let not_text = |e| OptionsError::Read {
                path: "config_body".into(),
                source: io::Error::new(io::ErrorKind::InvalidData, e),
            };
            from_toml("config_body", &String::from_utf8(self.config_body).map_err(not_text)?)
        }
    }
}

/// Reads the TOML spelling of the options: Go's field names, in any case.
fn from_toml(origin: &str, text: &str) -> Result<(Options, Vec<String>), OptionsError> {
    let table: toml::Table = toml::from_str(text).map_err(|e| {
        let before = e.span().and_then(|span| text.as_bytes().get(..span.start)).unwrap_or_default();
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        OptionsError::Toml { origin: origin.to_owned(), line, message: e.message().replace('\n', ", ") }
    })?;
    let mut options = Options::default();
    let mut unknown = Vec::new();
    let mut seen = Vec::with_capacity(table.len());
    for (key, value) in &table {
        let folded = key.to_ascii_lowercase();
        if seen.contains(&folded) {
            return Err(OptionsError::Twice { origin: origin.to_owned(), key: key.clone() });
        }
        match options.set(&folded, value) {
            Some(Ok(())) => {}
            Some(Err(expected)) => {
                let value = policy::shown(value);
                return Err(OptionsError::Value { origin: origin.to_owned(), key: key.clone(), expected, value });
            }
            None => unknown.push(key.clone()),
        }
        seen.push(folded);
    }
    Ok((options, unknown))
}

impl Options {
    /// Sets the option with the lower-case name `key`; `None` if there is none, else the kind of value that it takes
    /// when `value` is of another.
    fn set(&mut self, key: &str, value: &toml::Value) -> Option<Result<(), &'static str>> {
        let set = match key {
            "nopivotroot" => set_bool(&mut self.no_pivot_root, value),
            "nonewkeyring" => set_bool(&mut self.no_new_keyring, value),
            "systemdcgroup" => set_bool(&mut self.systemd_cgroup, value),
            "iouid" => set_u32(&mut self.io_uid, value),
            "iogid" => set_u32(&mut self.io_gid, value),
            "shimcgroup" => set_string(&mut self.shim_cgroup, value),
            "binaryname" => set_string(&mut self.binary_name, value),
            "root" => set_string(&mut self.root, value),
            "criuimagepath" => set_string(&mut self.criu_image_path, value),
            "criuworkpath" => set_string(&mut self.criu_work_path, value),
            "spilllimit" => set_size(&mut self.spill_limit, value),
            "outputpolicy" => set_policy(&mut self.output_policy, value),
            _ => return None,
        };
        Some(set)
    }

    /// What they say about output.
    pub fn output(&self) -> Choice {
        Choice { spill_limit: Some(self.spill_limit).filter(|limit| *limit > 0), policy: self.output_policy }
    }

    /// Reads an `options.json`, whoever wrote it. An absent file gives the defaults.
    ///
    /// # Errors
    /// [`OptionsError::Read`], [`OptionsError::Json`].
    pub fn read(path: &Path) -> Result<Self, OptionsError> {
        match regular::read(path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|source| OptionsError::Json { path: path.to_owned(), source })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(OptionsError::Read { path: path.to_owned(), source }),
        }
    }

    /// The content of `options.json`.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings, numbers and booleans always serialise")
    }
}

fn set_bool(to: &mut bool, value: &toml::Value) -> Result<(), &'static str> {
    *to = value.as_bool().ok_or("true or false")?;
    Ok(())
}

fn set_u32(to: &mut u32, value: &toml::Value) -> Result<(), &'static str> {
    *to = value.as_integer().and_then(|n| n.try_into().ok()).ok_or("a number of 32 bits, not negative")?;
    Ok(())
}

fn set_size(to: &mut u64, value: &toml::Value) -> Result<(), &'static str> {
    *to = policy::size_of(value).ok_or("a size, as \"64MiB\" or a number of bytes")?;
    Ok(())
}

fn set_policy(to: &mut Option<Policy>, value: &toml::Value) -> Result<(), &'static str> {
    *to = Some(policy::policy_of(value).ok_or("\"block\" or \"drop-oldest\"")?);
    Ok(())
}

fn set_string(to: &mut String, value: &toml::Value) -> Result<(), &'static str> {
    *to = value.as_str().ok_or("a string")?.to_owned();
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    fn generic(path: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x0a\x03any".to_vec();
        for (tag, field) in [(0x12, path.as_bytes()), (0x1a, body)] {
            let length = u8::try_from(field.len() & 0x7f).unwrap();
            bytes.extend([tag, length | 0x80, u8::try_from(field.len() >> 7).unwrap()]);
            bytes.extend(field);
        }
        bytes.extend(b"\x20\x05"); // a field of some later version
        bytes
    }

    #[test]
    fn the_message_of_runc_is_taken_field_by_field() {
        let message = oci::Options {
            no_pivot_root: true,
            io_gid: 7,
            binary_name: "/usr/bin/crun".into(),
            systemd_cgroup: true,
            task_api_address: "ignored".into(),
            ..oci::Options::default()
        };
        let bytes = message.write_to_bytes().unwrap();
        for type_url in [RUNC, "type.googleapis.com/containerd.runc.v1.Options"] {
            let (got, unknown) = from_any(type_url, &bytes).unwrap();
            let expected = Options {
                no_pivot_root: true,
                io_gid: 7,
                binary_name: "/usr/bin/crun".into(),
                systemd_cgroup: true,
                ..Options::default()
            };
            assert_eq!((got, unknown), (expected, vec![]));
        }
    }

    #[test]
    fn the_message_that_older_clients_send_for_a_runtime_not_named_runc_is_taken_field_by_field() {
        let value = b"\x08\x01\x10\x01\x32\x03net\x40\x01\x4a\x02/s\x50\xa0\x8d\x06\x58\x07\x62\x02/w\x6a\x02/i";
        let expected = Options {
            no_pivot_root: true,
            no_new_keyring: true,
            shim_cgroup: "/s".into(),
            io_uid: 100_000,
            io_gid: 7,
            criu_work_path: "/w".into(),
            criu_image_path: "/i".into(),
            ..Options::default()
        };
        assert_eq!(from_any(LEGACY, value).unwrap(), (expected, vec![]));
        assert!(is_known_type(LEGACY));
        assert!(matches!(from_any(LEGACY, b"\x08"), Err(OptionsError::Malformed { .. })));
    }

    #[test]
    fn toml_keys_are_found_in_any_case_and_unknown_ones_are_named() {
        let body = b"BinaryName='runc'\nsystemdcgroup=true\nIOUID=12\nNewThing=1\n[x]\ny=2";
        let (got, unknown) = from_any(GENERIC, &generic("", body)).unwrap();
        let expected = Options { binary_name: "runc".into(), systemd_cgroup: true, io_uid: 12, ..Options::default() };
        assert_eq!(got, expected);
        assert_eq!(unknown, ["NewThing", "x"]);
    }

    #[test]
    fn every_option_has_its_toml_key() {
        let body = b"NoPivotRoot=true\nNoNewKeyring=true\nShimCgroup='/s'\nIoUid=1\nIoGid=4294967295\nBinaryName='b'\n\
                     Root='/r'\nSystemdCgroup=true\nCriuImagePath='/i'\nCriuWorkPath='/w'\n\
                     SpillLimit='1m'\nOutputPolicy='drop-oldest'";
        let (got, unknown) = from_any(GENERIC, &generic("", body)).unwrap();
        let expected = Options {
            no_pivot_root: true,
            no_new_keyring: true,
            shim_cgroup: "/s".into(),
            io_uid: 1,
            io_gid: u32::MAX,
            binary_name: "b".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            criu_image_path: "/i".into(),
            criu_work_path: "/w".into(),
            spill_limit: 1 << 20,
            output_policy: Some(Policy::DropOldest),
        };
        assert_eq!((&got, unknown), (&expected, vec![]));
        // What `delete` reads is the same again.
        assert_eq!(serde_json::from_str::<Options>(&got.to_json()).unwrap(), expected);
        let lower = String::from_utf8(body.to_vec()).unwrap().to_lowercase();
        assert_eq!(from_any(GENERIC, &generic("", b"spilllimit=4096")).unwrap().0.spill_limit, 4096);
        assert_eq!(from_any(GENERIC, &generic("", lower.as_bytes())).unwrap().0, expected);
    }

    #[test]
    fn a_configuration_file_wins_over_the_body() {
        let path = std::env::temp_dir().join(format!("holdfast-options-{}.toml", std::process::id()));
        fs::write(&path, "Root = '/r'").unwrap();
        let (got, _) = from_any(GENERIC, &generic(path.to_str().unwrap(), b"Root='/other'")).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(got.root, "/r");
        let error = from_any(GENERIC, &generic(path.to_str().unwrap(), b"")).unwrap_err();
        assert!(matches!(error, OptionsError::Read { path: named, .. } if named == path));
    }

    #[test]
    fn bad_options_are_refused_by_name() {
        for (type_url, value, text) in [
            ("x/windows.Options", vec![], "runtime options of type \"x/windows.Options\" are not supported, only"),
            ("", vec![8, 1], "runtime options of type \"\" are not supported"),
            (RUNC, vec![0x0a], "malformed runtime options of type containerd.runc.v1.Options"),
            (GENERIC, vec![0x12, 9, b'x'], "malformed runtime options of type runtimeoptions.v1.Options"),
            (GENERIC, generic("", b"Root="), "config_body is not TOML: line 1: "),
            (GENERIC, generic("", b"Root=1"), "config_body: Root must be a string"),
            (GENERIC, generic("", b"IoUid=-1"), "config_body: IoUid must be a number"),
            (GENERIC, generic("", b"Root='a'\nroot='b'"), "config_body: root is given twice"),
            (GENERIC, generic("/dev/null", b""), "cannot read the runtime options in /dev/null"),
            (GENERIC, generic("", b"\xff"), "cannot read the runtime options in config_body"),
            (GENERIC, generic("o.toml", b""), "the path of the runtime options \"o.toml\" is not absolute"),
            (GENERIC, generic("", b"SystemdCgroup='true'"), "config_body: SystemdCgroup must be true or false"),
            (GENERIC, generic("", b"iogid=4294967296"), "config_body: iogid must be a number of 32 bits"),
            (
                GENERIC,
                generic("", b"SpillLimit='big'"),
                "config_body: SpillLimit must be a size, as \"64MiB\" or a number of bytes, not \"big\"",
            ),
            (GENERIC, generic("", b"spilllimit=0"), "config_body: spilllimit must be a size"),
            (
                GENERIC,
                generic("", b"OutputPolicy='drop'"),
                "config_body: OutputPolicy must be \"block\" or \"drop-oldest\", not \"drop\"",
            ),
        ] {
            let error = from_any(type_url, &value).unwrap_err().to_string();
            assert!(error.starts_with(text), "{error} / {text}");
        }
        assert_eq!(from_any("", b"").unwrap().0, Options::default());
        assert_eq!(from_any(GENERIC, b"").unwrap().0, Options::default());
    }

    #[test]
    fn json_has_the_keys_of_the_stock_shim_without_zero_values() {
        let options = Options { binary_name: "crun".into(), no_new_keyring: true, io_uid: 5, ..Options::default() };
        assert_eq!(options.to_json(), r#"{"no_new_keyring":true,"io_uid":5,"binary_name":"crun"}"#);
        assert_eq!(Options::default().to_json(), "{}");
        assert_eq!(serde_json::from_str::<Options>(&options.to_json()).unwrap(), options);
    }

    #[test]
    fn trap_56_an_options_file_of_another_version_is_read() {
        let path = std::env::temp_dir().join(format!("holdfast-options-{}.json", std::process::id()));
        assert_eq!(Options::read(&path).unwrap(), Options::default());
        fs::write(&path, r#"{"root":"/r","criu_path":"/x","task_api_version":3}"#).unwrap();
        let read = Options::read(&path);
        fs::write(&path, "{\"root\":").unwrap();
        let damaged = Options::read(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), Options { root: "/r".into(), ..Options::default() });
        assert!(matches!(damaged, Err(OptionsError::Json { .. })));
    }

    #[test]
    fn the_options_of_a_checkpoint_are_all_understood() {
        let mut message = oci::CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".to_owned()],
            work_path: "/w".to_owned(),
            ..Default::default()
        };
        message.special_fields.mut_unknown_fields().add_length_delimited(10, b"../before".to_vec());
        let value = message.write_to_bytes().unwrap();
        let expected = CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".to_owned()],
            work_path: "/w".to_owned(),
            parent_path: "../before".to_owned(),
        };
        for type_url in [CHECKPOINT, "types.containerd.io/containerd.runc.v1.CheckpointOptions"] {
            assert_eq!(checkpoint_from_any(type_url, &value).unwrap(), expected);
        }
        assert_eq!(checkpoint_from_any("", b"").unwrap(), CheckpointOptions::default());
    }

    #[test]
    fn the_older_options_of_a_checkpoint_have_the_paths_in_another_order() {
        let got = checkpoint_from_any(LEGACY_CHECKPOINT, b"\x08\x01\x42\x02/w\x4a\x02/i").unwrap();
        assert_eq!(got, CheckpointOptions { exit: true, work_path: "/w".into(), ..CheckpointOptions::default() });
    }

    #[test]
    fn options_of_a_checkpoint_that_are_none_are_refused() {
        assert!(matches!(checkpoint_from_any(RUNC, b""), Err(OptionsError::UnknownCheckpointType(t)) if t == RUNC));
        assert!(matches!(checkpoint_from_any("", b"x"), Err(OptionsError::UnknownCheckpointType(_))));
        assert!(matches!(checkpoint_from_any(CHECKPOINT, b"\x08"), Err(OptionsError::Malformed { .. })));
    }
}
