//! argv, environment and the standard input of `start`, turned into one typed [`Invocation`].
//!
//! Pure: nothing here reads a file, a variable or a stream; all of it comes in as arguments.
//!
//! containerd calls the shim with the syntax of Go's `flag` package (`-k v`, `-k=v`, one dash or two, booleans bare or
//! with a value, flags before the action). Later versions may add flags, so unknown ones are skipped. Ids and namespaces
//! are checked here, before any of them becomes part of a path.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::options;

/// The most that `start` reads from its standard input, in bytes.
pub const STDIN_LIMIT: usize = 10 << 20;

/// The longest socket directory, in bytes: with a slash, 64 hexadecimal digits and the closing zero it fills the 108
/// bytes of `sun_path`, unix(7).
pub const SOCKET_DIR_LIMIT: usize = 42;

/// The longest id or namespace that containerd allows, in bytes.
pub const ID_LIMIT: usize = 76;

/// The hidden action that mounts a root filesystem in a short-lived child of the shim.
pub const MOUNT_ACTION: &str = "mount-rootfs";

/// The hidden action that undoes [`MOUNT_ACTION`].
pub const UNMOUNT_ACTION: &str = "unmount-rootfs";

/// The hidden action that makes the process which holds a sandbox's namespaces, and the bundle.
pub const HOLD_ACTION: &str = "hold-namespaces";

/// The hidden action that removes what a failed Create has left.
pub const SWEEP_ACTION: &str = "sweep";

/// The hidden action that hands on what a dead shim had not delivered, and its file.
pub const HAND_ON_ACTION: &str = "hand-on-events";

/// The hidden action that removes kept output of tasks that are gone; for who looks after a whole machine.
pub const SWEEP_OUTPUT_ACTION: &str = "sweep-output";

/// What the shim was called to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// `start`: launch or find a shim, print its address.
    Start(Flags),
    /// No action: be the long-lived process. Private between `start` and its child.
    Serve(Flags),
    /// `delete`: clean up after a dead shim.
    Delete(Flags),
    /// `-info`: report versions and features.
    Info,
    /// `-v`, `-version`.
    Version,
    /// [`MOUNT_ACTION`]: the request comes on standard input.
    Mount,
    /// [`UNMOUNT_ACTION`] and its path.
    Unmount(PathBuf),
    /// [`HOLD_ACTION`] and its path: the request comes on standard input.
    Hold(PathBuf),
    /// [`SWEEP_ACTION`]: the request comes on standard input.
    Sweep,
    /// [`HAND_ON_ACTION`] and its path.
    HandOn(PathBuf),
    /// [`SWEEP_OUTPUT_ACTION`].
    SweepOutput,
}

/// The flags that name a container and its manager.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// containerd's namespace; legal by [`validate_id`].
    pub namespace: String,
    /// The container's id, for `Serve` that of the first container; legal by [`validate_id`].
    pub id: String,
    /// The daemon's gRPC socket, as given.
    pub address: String,
    /// The daemon's binary; kept for the record only.
    pub publish_binary: String,
    /// The bundle; containerd gives it to `delete` alone, everyone else finds it as the working directory.
    pub bundle: Option<PathBuf>,
    /// Whether to log at debug level.
    pub debug: bool,
}

/// What `start` learns besides its flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bootstrap {
    /// The runtime options: type and value, for [`options::from_any`].
    pub options: Option<(String, Vec<u8>)>,
    /// The daemon's ttrpc socket, a path without `unix://`; empty when events are not to be published.
    pub ttrpc_address: String,
    /// Whether to log at debug level, by flag or by message.
    pub debug: bool,
    /// Where the daemon wants the socket, absolute; `None` leaves the choice to us.
    pub socket_dir: Option<PathBuf>,
    /// Whether the daemon speaks the bootstrap protocol (containerd 2.3 and later), hence may be answered in it.
    pub new_protocol: bool,
}

/// Why a command line or the standard input of `start` was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// The last argument is a flag that wants a value.
    #[error("flag needs an argument: -{0}")]
    ValueMissing(String),
    /// A boolean flag has a value that is none.
    #[error("flag -{flag} is true or false, not {value:?}")]
    NotBoolean {
        /// The flag, without dash.
        flag: String,
        /// What it was given.
        value: String,
    },
    /// A value that must be text is not UTF-8.
    #[error("the value of -{0} is not UTF-8")]
    NotText(String),
    /// A flag that must be given was not.
    #[error("-{0} is missing")]
    FlagMissing(&'static str),
    /// An id or namespace that containerd would refuse too.
    #[error("illegal {what} {value:?}: {reason}")]
    IllegalId {
        /// `id` or `namespace`.
        what: &'static str,
        /// What was given, cut to a readable length.
        value: String,
        /// What is wrong with it.
        reason: IdError,
    },
    /// The first positional argument names no action.
    #[error("unknown action {0:?}, expected start or delete")]
    UnknownAction(String),
    /// [`UNMOUNT_ACTION`], [`HOLD_ACTION`] or [`HAND_ON_ACTION`] without its path.
    #[error("{0} needs a path")]
    PathMissing(&'static str),
    /// Standard input is longer than [`STDIN_LIMIT`].
    #[error("invalid standard input: more than {STDIN_LIMIT} bytes")]
    StdinTooLong,
    /// Standard input is neither of the two messages that a containerd sends.
    #[error("invalid standard input: {0} bytes that are neither runtime options (Any) nor BootstrapParams for this id")]
    StdinMalformed(usize),
    /// The socket directory cannot hold a socket of ours.
    #[error("invalid socket directory {path:?}: {reason}")]
    SocketDir {
        /// As given.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// What is wrong with an id or namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdError {
    /// Nothing there.
    Empty,
    /// Longer than [`ID_LIMIT`]; its length in bytes.
    TooLong(usize),
    /// A character other than a letter, a digit or one of `._-`.
    Character(char),
    /// A separator (`._-`) at the start, at the end or beside another.
    Separator(char),
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::TooLong(n) => write!(f, "{n} bytes are more than the {ID_LIMIT} allowed"),
            Self::Character(c) => write!(f, "{c:?} is none of A-Z a-z 0-9 . _ -"),
            Self::Separator(c) => write!(f, "{c:?} must stand between two letters or digits"),
        }
    }
}

impl std::error::Error for IdError {}

/// Checks an id or namespace by containerd's rule, `^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$` of at most [`ID_LIMIT`]
/// bytes. What passes is a single, harmless path component.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn validate_id(id: &str) -> Result<(), IdError> {
    if id.is_empty() {
        return Err(IdError::Empty);
    }
    if id.len() > ID_LIMIT {
        return Err(IdError::TooLong(id.len()));
    }
    let mut separator = Some('\0'); // the start counts as one
    for c in id.chars() {
        match c {
            'A'..='Z' | 'a'..='z' | '0'..='9' => separator = None,
            '.' | '_' | '-' if separator.is_some() => return Err(IdError::Separator(c)),
            '.' | '_' | '-' => separator = Some(c),
            _ => return Err(IdError::Character(c)),
        }
    }
    separator.map_or(Ok(()), |c| Err(IdError::Separator(c)))
}

/// Reads a command line, without the program's name.
///
/// # Errors
/// See [`CliError`]. `-info` and `-v` win over everything else and need no id.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, CliError> {
    let mut args = args.into_iter().peekable();
    let mut flags = Flags::default();
    let (mut info, mut version) = (false, false);

    while let Some(arg) = args.peek() {
        let Some((name, inline)) = split_flag(arg) else { break };
        args.next();
        if name.is_empty() {
            break; // "--" ends the flags
        }
        let mut text = |inline: Option<OsString>| {
            let value = inline.or_else(|| args.next()).ok_or_else(|| CliError::ValueMissing(name.clone()))?;
            value.into_string().map_err(|_| CliError::NotText(name.clone()))
        };
        match name.as_str() {
            "namespace" => flags.namespace = text(inline)?,
            "id" => flags.id = text(inline)?,
            "address" => flags.address = text(inline)?,
            "publish-binary" => flags.publish_binary = text(inline)?,
            "bundle" => {
                let value = inline.or_else(|| args.next()).ok_or(CliError::ValueMissing(name))?;
                flags.bundle = Some(value).filter(|v| !v.is_empty()).map(PathBuf::from);
            }
            "debug" => flags.debug = boolean(name, inline)?,
            "info" => info = boolean(name, inline)?,
            "v" | "version" => version = boolean(name, inline)?,
            _ => skip_unknown(inline.is_some(), &mut args),
        }
    }
    if info {
        Ok(Invocation::Info)
    } else if version {
        Ok(Invocation::Version)
    } else {
        invocation(flags, args.next(), args.next())
    }
}

/// `-name`, `--name`, `-name=value` → name and value; `--` → an empty name; anything else is positional.
fn split_flag(arg: &OsStr) -> Option<(String, Option<OsString>)> {
    let rest = arg.as_bytes().strip_prefix(b"-")?;
    let rest = rest.strip_prefix(b"-").unwrap_or(rest);
    if rest.is_empty() && arg.len() == 1 {
        return None; // a lone dash is an argument like any other
    }
    let (name, value) = match rest.iter().position(|&b| b == b'=') {
        Some(at) => (&rest[..at], Some(OsString::from_vec(rest[at + 1..].to_vec()))),
        None => (rest, None),
    };
    Some((String::from_utf8_lossy(name).into_owned(), value))
}

/// The spellings of Go's `strconv.ParseBool`; a bare flag is true.
fn boolean(flag: String, value: Option<OsString>) -> Result<bool, CliError> {
    let Some(value) = value else { return Ok(true) };
    match value.as_bytes() {
        b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True" => Ok(true),
        b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False" => Ok(false),
        _ => Err(CliError::NotBoolean { flag, value: value.to_string_lossy().into_owned() }),
    }
}

/// Passes over what is probably the value of an unknown flag: the next word, unless it is a flag or an action.
fn skip_unknown(has_value: bool, args: &mut std::iter::Peekable<impl Iterator<Item = OsString>>) {
    let is_value = |word: &OsString| {
        let hidden = [MOUNT_ACTION, UNMOUNT_ACTION, HOLD_ACTION, SWEEP_ACTION, HAND_ON_ACTION, SWEEP_OUTPUT_ACTION];
        let mut actions = ["start", "delete"].into_iter().chain(hidden);
        !word.as_bytes().starts_with(b"-") && !actions.any(|a| word == a)
    };
    if !has_value {
        args.next_if(is_value);
    }
}

fn invocation(flags: Flags, action: Option<OsString>, argument: Option<OsString>) -> Result<Invocation, CliError> {
    let action = action.map(|a| a.to_string_lossy().into_owned());
    let path = |action| argument.map(PathBuf::from).ok_or(CliError::PathMissing(action));
    match action.as_deref() {
        None => checked(flags).map(Invocation::Serve),
        Some("start") => checked(flags).map(Invocation::Start),
        Some("delete") => checked(flags).map(Invocation::Delete),
        Some(MOUNT_ACTION) => Ok(Invocation::Mount),
        Some(UNMOUNT_ACTION) => path(UNMOUNT_ACTION).map(Invocation::Unmount),
        Some(HOLD_ACTION) => path(HOLD_ACTION).map(Invocation::Hold),
        Some(HAND_ON_ACTION) => path(HAND_ON_ACTION).map(Invocation::HandOn),
        Some(SWEEP_ACTION) => Ok(Invocation::Sweep),
        Some(SWEEP_OUTPUT_ACTION) => Ok(Invocation::SweepOutput),
        Some(other) => Err(CliError::UnknownAction(other.to_owned())),
    }
}

fn checked(flags: Flags) -> Result<Flags, CliError> {
    for (what, value) in [("namespace", &flags.namespace), ("id", &flags.id)] {
        match validate_id(value) {
            Ok(()) => {}
            Err(IdError::Empty) => return Err(CliError::FlagMissing(what)),
            Err(reason) => {
                let value = value.chars().take(ID_LIMIT + 4).collect();
                return Err(CliError::IllegalId { what, value, reason });
            }
        }
    }
    Ok(flags)
}

/// Reads the standard input of `start`, in either of its two forms, and the environment that goes with it.
///
/// An older containerd's `Any` also decodes as `BootstrapParams` (`type_url` becomes the id, `value` the namespace), so
/// the new form is believed only when it repeats the id and namespace of the command line.
///
/// # Errors
/// [`CliError::StdinTooLong`], [`CliError::StdinMalformed`], [`CliError::SocketDir`].
pub fn bootstrap(flags: &Flags, stdin: &[u8], env: &dyn Fn(&str) -> Option<String>) -> Result<Bootstrap, CliError> {
    if stdin.len() > STDIN_LIMIT {
        return Err(CliError::StdinTooLong);
    }
    match BootstrapParams::parse_from_bytes(stdin) {
        Ok(p) if p.instance_id == flags.id && p.namespace == flags.namespace => from_params(flags, p, env),
        _ => from_legacy(flags, stdin, env),
    }
}

fn from_params(
    flags: &Flags,
    params: BootstrapParams,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Bootstrap, CliError> {
    let options = params
        .extensions
        .into_iter()
        .filter_map(|e| e.value.into_option())
        .find(|any| options::is_known_type(&any.type_url))
        .map(|any| (any.type_url, any.value));
    let socket_dir = match params.socket_dir.filter(|d| !d.is_empty()) {
        Some(dir) => Some(checked_socket_dir(dir)?),
        None => None,
    };
    Ok(Bootstrap {
        options,
        ttrpc_address: address(Some(params.containerd_ttrpc_address), env),
        // The levels below zero are debug and trace; the enumeration is open.
        debug: flags.debug || params.log_level.value() < 0,
        socket_dir,
        new_protocol: true,
    })
}

fn from_legacy(flags: &Flags, stdin: &[u8], env: &dyn Fn(&str) -> Option<String>) -> Result<Bootstrap, CliError> {
    let malformed = || CliError::StdinMalformed(stdin.len());
    let options = if stdin.is_empty() {
        None
    } else {
        let any = Any::parse_from_bytes(stdin).map_err(|_| malformed())?;
        let foreign_fields = any.special_fields.unknown_fields().iter().next().is_some();
        if foreign_fields || any.type_url.is_empty() {
            return Err(malformed());
        }
        Some((any.type_url, any.value))
    };
    Ok(Bootstrap { options, ttrpc_address: address(None, env), debug: flags.debug, ..Bootstrap::default() })
}

/// The daemon's ttrpc socket: from the message, else from the environment, else none.
fn address(from_message: Option<String>, env: &dyn Fn(&str) -> Option<String>) -> String {
    let address = from_message.filter(|a| !a.is_empty()).or_else(|| env("TTRPC_ADDRESS")).unwrap_or_default();
    match address.strip_prefix("unix://") {
        Some(path) => path.to_owned(),
        None => address,
    }
}

fn checked_socket_dir(dir: String) -> Result<PathBuf, CliError> {
    let reason = match dir.as_bytes() {
        bytes if bytes.contains(&0) => "it contains a zero byte",
        _ if !Path::new(&dir).is_absolute() => "it is not absolute",
        bytes if bytes.len() > SOCKET_DIR_LIMIT => "it is too long for the name of a socket in it",
        _ => return Ok(dir.into()),
    };
    Err(CliError::SocketDir { path: dir, reason })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use containerd_shim_protos::bootstrap_api::{Extension, LogLevel};
    use protobuf::{EnumOrUnknown, MessageField};

    fn parsed(line: &str) -> Result<Invocation, CliError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn flags() -> Flags {
        Flags { namespace: "k8s.io".into(), id: "c1".into(), ..Flags::default() }
    }

    fn no_env(_: &str) -> Option<String> {
        None
    }

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any { type_url: type_url.into(), value: value.into(), ..Any::default() }
    }

    #[test]
    fn the_command_lines_of_containerd_are_understood() {
        let line = "-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id c1 start";
        let expected = Flags {
            namespace: "default".into(),
            id: "c1".into(),
            address: "/run/c.sock".into(),
            publish_binary: "/usr/bin/containerd".into(),
            bundle: None,
            debug: false,
        };
        assert_eq!(parsed(line), Ok(Invocation::Start(expected.clone())));

        let line = "--id=c1 -debug --namespace=default -address=/run/c.sock -publish-binary /usr/bin/containerd \
                    -bundle /run/b delete";
        let expected = Flags { bundle: Some("/run/b".into()), debug: true, ..expected };
        assert_eq!(parsed(line), Ok(Invocation::Delete(expected)));
        assert!(matches!(parsed("-id c1 -namespace default -debug=false"), Ok(Invocation::Serve(f)) if !f.debug));
    }

    #[test]
    fn info_and_version_need_no_namespace() {
        for (line, expected) in [
            ("-info", Invocation::Info),
            ("--info=true start", Invocation::Info),
            ("-v", Invocation::Version),
            ("-version", Invocation::Version),
        ] {
            assert_eq!(parsed(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn hidden_actions_need_no_namespace_but_their_path() {
        assert_eq!(parsed("mount-rootfs"), Ok(Invocation::Mount));
        assert_eq!(parsed("unmount-rootfs /run/b/rootfs"), Ok(Invocation::Unmount("/run/b/rootfs".into())));
        assert_eq!(parsed("unmount-rootfs"), Err(CliError::PathMissing(UNMOUNT_ACTION)));
    }

    #[test]
    fn unknown_flags_are_skipped_with_their_values() {
        for line in [
            "-new -namespace default -id c1 start",
            "-new value -namespace default -id c1 start",
            "-new=start -namespace default -id c1 start",
            "-namespace default -id c1 -new start",
            "-namespace default -id c1 -socket /run/x start",
            "-namespace default -id c1 -- start",
        ] {
            assert!(matches!(parsed(line), Ok(Invocation::Start(f)) if f.id == "c1"), "{line}");
        }
    }

    #[test]
    fn bad_command_lines_are_refused_by_name() {
        for (line, text) in [
            ("-id c1 start", "-namespace is missing"),
            ("-namespace default start", "-id is missing"),
            ("-namespace default -id c1 stop", "unknown action \"stop\", expected start or delete"),
            ("-namespace default -id", "flag needs an argument: -id"),
            ("-debug=maybe -namespace default -id c1", "flag -debug is true or false, not \"maybe\""),
            (
                "-namespace default -id ../c1 start",
                "illegal id \"../c1\": '.' must stand between two letters or digits",
            ),
            ("-namespace a/b -id c1 start", "illegal namespace \"a/b\": '/' is none of A-Z a-z 0-9 . _ -"),
        ] {
            assert_eq!(parsed(line).unwrap_err().to_string(), text, "{line}");
        }
        let not_text = ["-namespace", "n", "-id"].map(OsString::from).into_iter();
        let not_text = not_text.chain([OsString::from_vec(vec![0xff]), "start".into()]);
        assert_eq!(parse(not_text), Err(CliError::NotText("id".into())));
    }

    #[test]
    fn ids_follow_the_rule_of_containerd() {
        let longest = "a".repeat(ID_LIMIT);
        for id in ["a", "0", "k8s.io", "a-b_c.d", "A1", longest.as_str()] {
            assert_eq!(validate_id(id), Ok(()), "{id}");
        }
        let too_long = "a".repeat(ID_LIMIT + 1);
        for (id, error) in [
            ("", IdError::Empty),
            (too_long.as_str(), IdError::TooLong(77)),
            (".", IdError::Separator('.')),
            ("-a", IdError::Separator('-')),
            ("a.", IdError::Separator('.')),
            ("a._b", IdError::Separator('_')),
            ("a/b", IdError::Character('/')),
            ("a b", IdError::Character(' ')),
            ("a\n", IdError::Character('\n')),
            ("é", IdError::Character('é')),
            ("a\0", IdError::Character('\0')),
        ] {
            assert_eq!(validate_id(id), Err(error), "{id:?}");
        }
    }

    #[test]
    fn no_standard_input_means_no_options() {
        let got = bootstrap(&flags(), b"", &no_env).unwrap();
        assert_eq!(got, Bootstrap::default());
    }

    #[test]
    fn an_any_is_never_taken_for_bootstrap_params() {
        let stdin = any("runtimeoptions.v1.Options", b"\x12\x01/").write_to_bytes().unwrap();
        assert!(BootstrapParams::parse_from_bytes(&stdin).is_ok(), "the trap exists");
        let env = |name: &str| (name == "TTRPC_ADDRESS").then(|| "unix:///run/c.sock.ttrpc".to_owned());
        let got = bootstrap(&flags(), &stdin, &env).unwrap();
        assert_eq!(got.options, Some(("runtimeoptions.v1.Options".into(), b"\x12\x01/".to_vec())));
        assert_eq!(got.ttrpc_address, "/run/c.sock.ttrpc");
        assert!(!got.new_protocol);
    }

    #[test]
    fn bootstrap_params_give_options_address_level_and_directory() {
        let extension = |any| Extension { value: MessageField::some(any), ..Extension::default() };
        let params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "k8s.io".into(),
            log_level: EnumOrUnknown::new(LogLevel::LOG_LEVEL_TRACE),
            containerd_ttrpc_address: "unix:///run/new.ttrpc".into(),
            extensions: vec![
                extension(any("containerd.io/later.v1.Thing", b"?")),
                extension(any("type.googleapis.com/containerd.runc.v1.Options", b"\x08\x01")),
            ],
            socket_dir: Some("/run/s".into()),
            ..BootstrapParams::default()
        };
        let env = |_: &str| Some("/run/old.ttrpc".to_owned());
        let got = bootstrap(&flags(), &params.write_to_bytes().unwrap(), &env).unwrap();
        let expected = Bootstrap {
            options: Some(("type.googleapis.com/containerd.runc.v1.Options".into(), b"\x08\x01".to_vec())),
            ttrpc_address: "/run/new.ttrpc".into(),
            debug: true,
            socket_dir: Some("/run/s".into()),
            new_protocol: true,
        };
        assert_eq!(got, expected);

        let params = BootstrapParams { containerd_ttrpc_address: String::new(), ..params };
        let got = bootstrap(&flags(), &params.write_to_bytes().unwrap(), &env).unwrap();
        assert_eq!(got.ttrpc_address, "/run/old.ttrpc");
    }

    #[test]
    fn levels_below_info_are_debug_whatever_their_number() {
        // instance_id, namespace, log_level as a varint of ten bytes.
        let message = |level: &[u8]| [b"\x0a\x02c1\x12\x06k8s.io\x18".as_slice(), level].concat();
        let negative = |low: u8| {
            let mut bytes = vec![low];
            bytes.extend([0xff; 8]);
            bytes.push(1);
            bytes
        };
        for (level, debug) in [
            (negative(0xf8), true), // trace, -8
            (negative(0xfc), true), // debug, -4
            (negative(0xff), true), // one that has no name
            (vec![0], false),       // info
            (vec![4], false),       // warn
            (vec![12], false),      // panic
            (vec![0x80, 1], false), // one that has no name
        ] {
            let got = bootstrap(&flags(), &message(&level), &no_env).unwrap();
            assert_eq!((got.debug, got.new_protocol), (debug, true), "{level:?}");
        }
    }

    #[test]
    fn only_both_ids_together_make_a_start_message() {
        // An Any whose type and value are the ids is one by its bytes; it says nothing else, so nothing is lost.
        let both = any("c1", b"k8s.io").write_to_bytes().unwrap();
        let got = bootstrap(&flags(), &both, &no_env).unwrap();
        assert_eq!((got.options, got.new_protocol), (None, true));
        // One of them alone is an accident.
        let same_id = Flags { id: "containerd.runc.v1.Options".into(), ..flags() };
        let stdin = any("containerd.runc.v1.Options", b"\x08\x01").write_to_bytes().unwrap();
        let got = bootstrap(&same_id, &stdin, &no_env).unwrap();
        assert_eq!(got.options, Some((same_id.id, b"\x08\x01".to_vec())));
        assert!(!got.new_protocol);
        let same_namespace = any("runtimeoptions.v1.Options", b"k8s.io").write_to_bytes().unwrap();
        assert!(!bootstrap(&flags(), &same_namespace, &no_env).unwrap().new_protocol);
        // Without a value it is a choice of the defaults.
        let no_value = any("type.googleapis.com/runtimeoptions.v1.Options", b"").write_to_bytes().unwrap();
        let got = bootstrap(&flags(), &no_value, &no_env).unwrap();
        assert_eq!(got.options, Some(("type.googleapis.com/runtimeoptions.v1.Options".into(), Vec::new())));
    }

    #[test]
    fn a_socket_directory_that_cannot_hold_a_socket_is_refused() {
        let long = format!("/{}", "d".repeat(SOCKET_DIR_LIMIT));
        for dir in [long.as_str(), "relative", "/a\0b"] {
            let params = BootstrapParams {
                instance_id: "c1".into(),
                namespace: "k8s.io".into(),
                socket_dir: Some(dir.into()),
                ..BootstrapParams::default()
            };
            let got = bootstrap(&flags(), &params.write_to_bytes().unwrap(), &no_env);
            assert!(matches!(got, Err(CliError::SocketDir { path, .. }) if path == dir), "{dir:?}");
        }
        assert!(checked_socket_dir("d".repeat(SOCKET_DIR_LIMIT).replacen('d', "/", 1)).is_ok());
    }

    #[test]
    fn garbage_on_standard_input_is_refused_by_name() {
        let other_id = BootstrapParams {
            instance_id: "c2".into(),
            namespace: "k8s.io".into(),
            containerd_version: "2.3.1".into(),
            ..BootstrapParams::default()
        };
        for stdin in [b"hello".to_vec(), vec![0xff; 100], b"\x12\x00".to_vec(), other_id.write_to_bytes().unwrap()] {
            let got = bootstrap(&flags(), &stdin, &no_env).unwrap_err();
            assert_eq!(got, CliError::StdinMalformed(stdin.len()));
            assert!(got.to_string().starts_with("invalid standard input"));
        }
        assert_eq!(bootstrap(&flags(), &vec![0; STDIN_LIMIT + 1], &no_env), Err(CliError::StdinTooLong));
    }
}
