//! The runtime options: what a client may choose about how its containers are run.
//!
//! They arrive as one of two protobuf messages (`containerd.runc.v1.Options`, or `runtimeoptions.v1.Options` which
//! carries or names a TOML text) and are kept as `options.json` in the bundle, in the form of containerd's own shim, so
//! that `delete` finds them even when another version wrote them: unknown keys are ignored, zero values left out.

use std::path::{Path, PathBuf};
use std::{fs, io};

use containerd_shim_protos::shim::oci;
use holdfast_proto::regular;
use protobuf::{CodedInputStream, Message};
use serde::{Deserialize, Serialize};

const RUNC: &str = "containerd.runc.v1.Options";
const GENERIC: &str = "runtimeoptions.v1.Options";

/// The longest TOML text that is read, in bytes.
const TOML_LIMIT: u64 = 1 << 20;

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
    /// The TOML text is none.
    #[error("{origin} is not TOML")]
    Toml {
        /// The file, or the message that held the text.
        origin: String,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A key in the TOML text has a value of another kind.
    #[error("{origin}: {key} must be {expected}")]
    Value {
        /// The file, or the message that held the text.
        origin: String,
        /// As it is spelled there.
        key: String,
        /// The kind of value that it takes.
        expected: &'static str,
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
    matches!(message_name(type_url), RUNC | GENERIC)
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
        "" if value.is_empty() => Ok(Default::default()),
        _ => Err(OptionsError::UnknownType(type_url.to_owned())),
    }
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
        }
    }
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
            let read = |source| OptionsError::Read { path: path.to_owned(), source };
            let text = read_bounded(path).map_err(read)?;
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

fn read_bounded(path: &Path) -> io::Result<String> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if meta.len() > TOML_LIMIT {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read_to_string(path)
}

/// Reads the TOML spelling of the options: Go's field names, in any case.
fn from_toml(origin: &str, text: &str) -> Result<(Options, Vec<String>), OptionsError> {
    let table: toml::Table =
        toml::from_str(text).map_err(|e| OptionsError::Toml { origin: origin.to_owned(), source: Box::new(e) })?;
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
                return Err(OptionsError::Value { origin: origin.to_owned(), key: key.clone(), expected });
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
            _ => return None,
        };
        Some(set)
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

fn set_string(to: &mut String, value: &toml::Value) -> Result<(), &'static str> {
    *to = value.as_str().ok_or("a string")?.to_owned();
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn generic(path: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x0a\x03any".to_vec();
        bytes.extend([0x12, u8::try_from(path.len()).unwrap()]);
        bytes.extend(path.as_bytes());
        bytes.extend([0x1a, u8::try_from(body.len()).unwrap()]);
        bytes.extend(body);
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
    fn toml_keys_are_found_in_any_case_and_unknown_ones_are_named() {
        let body = b"BinaryName='runc'\nsystemdcgroup=true\nIOUID=12\nNewThing=1\n[x]\ny=2";
        let (got, unknown) = from_any(GENERIC, &generic("", body)).unwrap();
        let expected = Options { binary_name: "runc".into(), systemd_cgroup: true, io_uid: 12, ..Options::default() };
        assert_eq!(got, expected);
        assert_eq!(unknown, ["NewThing", "x"]);
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
            (GENERIC, generic("", b"Root="), "config_body is not TOML"),
            (GENERIC, generic("", b"Root=1"), "config_body: Root must be a string"),
            (GENERIC, generic("", b"IoUid=-1"), "config_body: IoUid must be a number"),
            (GENERIC, generic("", b"Root='a'\nroot='b'"), "config_body: root is given twice"),
            (GENERIC, generic("/dev/null", b""), "cannot read the runtime options in /dev/null"),
            (GENERIC, generic("", b"\xff"), "cannot read the runtime options in config_body"),
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
    fn an_options_file_of_another_version_is_read() {
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
}
