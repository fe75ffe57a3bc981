//! Why a verb failed, in runc's words where Docker and containerd look for them.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::record::Status;
use crate::spec_check::Refusal;

/// Why a verb failed. Each text describes its own layer; the causes hang off `source()`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// No state directory of that name.
    #[error("container does not exist: {id:?}")]
    NoContainer { id: String },
    /// `create` with an id in use.
    #[error("container with given ID already exists: {id:?}")]
    Exists { id: String },
    /// The id cannot be the name of a directory.
    #[error("invalid container ID {id:?}: only letters, digits and _ + - . are allowed")]
    InvalidId { id: String },
    /// A signal, pause or exec for a container whose process is gone.
    #[error("container not running: {id:?}")]
    NotRunning { id: String },
    /// `resume` of a container that is not paused.
    #[error("container not paused: {id:?}")]
    NotPaused { id: String },
    /// The verb does not fit the state.
    #[error("cannot {verb} a container that is {status}: {id:?}{hint}")]
    WrongState { verb: &'static str, status: Status, id: String, hint: &'static str },
    /// `start` of something that already runs.
    #[error("cannot start an already running container: {id:?}")]
    AlreadyRunning { id: String },
    /// `delete` without force.
    #[error("cannot delete container {id:?} that is not stopped: {status}")]
    NotStopped { id: String, status: Status },
    /// A whole verb that other runtimes have and this one has not.
    #[error("{what} is not supported by holdfast-oci; use runc or crun for this container")]
    NotSupported { what: &'static str },
    /// The specification asks for something this runtime does not do.
    #[error("invalid or unsupported configuration")]
    Spec(#[from] Refusal),
    /// A JSON document could not be read.
    #[error("cannot parse {path:?}")]
    Json { path: PathBuf, source: serde_json::Error },
    /// An argument that clap cannot judge.
    #[error("invalid {what} {value:?}: {reason}")]
    Argument { what: &'static str, value: String, reason: &'static str },
    /// A file operation.
    #[error("cannot {what} {path:?}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    /// A system call that has no path.
    #[error("cannot {what}")]
    Sys { what: &'static str, source: Errno },
    /// A mount cannot show the owners that it should.
    #[error("cannot map the owners in the mount on {destination:?}: {reason}")]
    IdMap { destination: PathBuf, reason: String },
    /// libcontainer could not start a process.
    #[error("unable to start container process: {reason}")]
    Start { reason: String },
    /// The cgroup manager refused.
    #[error("cannot {what}: {reason}")]
    Cgroup { what: &'static str, reason: String },
    /// The cgroup is somebody else's.
    #[error("container's cgroup {path:?} is not empty: {count} process(es) found")]
    CgroupBusy { path: PathBuf, count: usize },
    /// A hook failed.
    #[error("error running {kind} hook #{index} ({path:?}): {reason}")]
    Hook { kind: &'static str, index: usize, path: PathBuf, reason: String },
    /// The failure and what else went wrong while clearing up after it.
    #[error("{first}; clearing up failed too: {second}")]
    AndCleanup { first: Box<Failure>, second: String },
}

impl Failure {
    /// Names the file operation that failed.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Failure {
        let path = path.into();
        move |source| Failure::File { what, path, source }
    }

    /// Names the system call that failed.
    pub(crate) fn sys(what: &'static str) -> impl FnOnce(Errno) -> Failure {
        move |source| Failure::Sys { what, source }
    }
}

/// The whole chain on one line: `outer: cause: its cause`.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        let layer = plain(error);
        // Transparent layers and those that print their cause themselves would say everything twice.
        if !text.ends_with(&layer) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&layer);
        }
        next = error.source();
    }
    text.replace('\n', " ")
}

/// An error's own words; the standard library's `(os error 2)` is noise, and its capitals hide phrases that callers
/// look for.
fn plain(error: &(dyn Error + 'static)) -> String {
    if let Some(io) = error.downcast_ref::<io::Error>()
        && let Some(code) = io.raw_os_error()
    {
        return Errno::from_raw(code).desc().to_lowercase();
    }
    match error.downcast_ref::<Errno>() {
        Some(errno) => errno.desc().to_lowercase(),
        None => without_codes(&error.to_string()),
    }
}

/// Removes what the standard library appends to the system's own words: ` (os error 2)`.
pub(crate) fn without_codes(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(" (os error ") {
        kept.push_str(&rest[..at]);
        let after = &rest[at..];
        rest = after.find(')').map_or("", |end| &after[end + 1..]);
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_chain_names_operation_path_and_reason_in_the_words_that_callers_look_for() {
        let failure = Failure::file("read", "/nowhere/config.json")(io::Error::from_raw_os_error(Errno::ENOENT as i32));
        assert_eq!(chain(&failure), "cannot read \"/nowhere/config.json\": no such file or directory");
        let failure = Failure::sys("join the cgroup")(Errno::EACCES);
        assert_eq!(chain(&failure), "cannot join the cgroup: permission denied");
    }

    #[test]
    fn numbers_of_system_errors_are_left_out() {
        assert_eq!(
            without_codes("open /x: No such file (os error 2), then y (os error 13)"),
            "open /x: No such file, then y"
        );
        assert_eq!(without_codes("nothing"), "nothing");
    }

    #[test]
    fn a_layer_that_already_prints_its_cause_is_not_repeated() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: {0}")]
        struct Outer(#[source] Inner);
        #[derive(Debug, thiserror::Error)]
        #[error("inner")]
        struct Inner;
        assert_eq!(chain(&Outer(Inner)), "outer: inner");
    }
}
