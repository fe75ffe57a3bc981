//! What an OCI runtime says when it fails: the one place where its words are interpreted.
//!
//! runc, crun and holdfast-oci write JSON objects (`level`, `msg`, `time`) to the file given by `--log`. Their exit status
//! says only that something failed, so the text decides which error a client gets.

use serde::Deserialize;

/// What a runtime's message means to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The runtime knows no such container.
    NotFound,
    /// The runtime has a container of that id already.
    AlreadyExists,
    /// The process or container has ended, or has not begun.
    NotRunning,
    /// The runtime has no such command.
    Unsupported,
    /// Anything else.
    Other,
}

/// The last error in a runtime's log, trimmed. What is no JSON object of this kind is passed over, as are empty messages.
pub fn last_error(log: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        level: String,
        #[serde(default)]
        msg: String,
    }
    let mut last = None;
    let mut rest = log;
    while let Some(at) = rest.iter().position(|&b| b == b'{') {
        rest = &rest[at..];
        // Not by lines: newer versions of crun spread an object over several.
        let mut entries = serde_json::Deserializer::from_slice(rest).into_iter::<Entry>();
        let length = match entries.next() {
            Some(Ok(entry)) => {
                let msg = entry.msg.trim();
                if entry.level == "error" && !msg.is_empty() {
                    last = Some(msg.to_owned());
                }
                entries.byte_offset()
            }
            _ => rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
        };
        rest = &rest[length..];
    }
    last
}

/// Says what a message means, by the phrases that runc, crun and libcontainer use.
pub fn classify(text: &str) -> FailureKind {
    const NOT_RUNNING: [&str; 7] = [
        "process already finished",
        "container not running",
        "is not running",
        "no such process",
        "esrch",
        "in a stopped container",
        "a container that has stopped",
    ];
    const UNSUPPORTED: [&str; 4] =
        ["is not supported by holdfast-oci", "unknown command", "compiled without criu support", "no help topic for"];
    let text = text.to_ascii_lowercase();
    let has = |phrase: &str| text.contains(phrase);
    // "exists" and "not found" alone are too weak: a missing program or mount source says the same.
    let about_container = has("container");
    // crun names the file or directory of the container that it could not open in its root.
    let crun_state = has("/status`") || has("cannot open directory '");
    if NOT_RUNNING.iter().any(|p| has(p)) {
        FailureKind::NotRunning
    } else if about_container && (has("already exists") || has("with id exists")) {
        FailureKind::AlreadyExists
    } else if (about_container && (has("does not exist") || has("container not found")))
        || (crun_state && has("no such file or directory"))
    {
        FailureKind::NotFound
    } else if UNSUPPORTED.iter().any(|p| has(p)) {
        FailureKind::Unsupported
    } else {
        FailureKind::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_found_among_other_lines() {
        let log = br#"{"level":"warning","msg":"unable to get oom kill count","time":"2026-11-24T15:50:06Z"}
{"level":"error","msg":"exec failed: first","time":"2026-11-24T15:50:06Z"}
panic: not JSON at all
{"msg":" container `c1` already exists \n","level":"error","time":"2026-11-24T15:50:32.401500Z"}
{"level":"error","msg":""}
{"level":"info","msg":"later"}
{"level":"error","msg":"torn"#;
        assert_eq!(last_error(log).as_deref(), Some("container `c1` already exists"));
    }

    /// As crun 1.28 writes it.
    #[test]
    fn an_error_may_be_spread_over_lines() {
        let log = br#"{
  "msg": "executable file `\/no\/such` not found: No such file or directory",
  "level": "error",
  "time": "2026-11-24T20:27:22.463653Z"
}
{ "level": "error",
"#;
        assert_eq!(last_error(log).as_deref(), Some("executable file `/no/such` not found: No such file or directory"));
    }

    #[test]
    fn a_log_without_errors_has_no_last_error() {
        for log in [&b""[..], b"\n\n", b"{\"level\":\"info\",\"msg\":\"x\"}", b"[1]\nnull\n\xff\xfe", b"{\"level\":7}"]
        {
            assert_eq!(last_error(log), None);
        }
    }

    /// What the programs really said: runc 1.1.5, crun 1.8.1, and phrases in the sources of others.
    #[test]
    fn recorded_messages_have_their_kind() {
        use FailureKind::{AlreadyExists, NotFound, NotRunning, Other, Unsupported};
        for (text, kind) in [
            // runc
            ("container does not exist", NotFound),
            ("exec failed: container does not exist", NotFound),
            ("runc create failed: container with given ID already exists", AlreadyExists),
            ("container not running", NotRunning),
            ("exec failed: cannot exec in a stopped container", NotRunning),
            ("cannot start a container that has stopped", NotRunning),
            ("cannot start an already running container", Other),
            ("cannot delete container c2 that is not stopped: running", Other),
            ("container not paused", Other),
            ("No help topic for 'checkpoint'", Unsupported),
            ("criu failed: type NOTIFY errno 0\nlog file: /w/dump.log", Other),
            ("exec: \"criu\": executable file not found in $PATH", Other),
            ("exec failed: cannot exec in a paused container (use --ignore-paused to override)", Other),
            (
                "exec failed: unable to start container process: exec: \"/bin/nope\": stat /bin/nope: no such file or \
                 directory",
                Other,
            ),
            ("runc create failed: chdir nobundle: no such file or directory", Other),
            // runc 1.0
            ("container \"c1\" does not exist", NotFound),
            ("container with id exists: c1", AlreadyExists),
            ("os: process already finished", NotRunning),
            // crun
            ("error opening file `/run/crun/nope/status`: No such file or directory", NotFound),
            ("cannot open directory '/run/crun/nope': No such file or directory", NotFound),
            ("container `c1` already exists", AlreadyExists),
            ("container `c1` is not running", NotRunning),
            ("setns(pid=13750, CLONE_NEWUSER): No such process", NotRunning),
            ("kill container: ESRCH: No such process", NotRunning),
            ("the container `c2` is paused", Other),
            ("the container `c2` is not in `created` or `stopped` state", Other),
            ("cannot open `/run/crun/c2/exec.fifo`: No such file or directory", Other),
            ("executable file `/bin/nope` not found in $PATH: No such file or directory", Other),
            ("cgroups in hybrid mode not supported, drop all controllers from cgroupv2", Other),
            ("unknown command checkpoint", Unsupported),
            ("compiled without CRIU support. Checkpointing not available", Unsupported),
            // holdfast-oci
            ("checkpoint is not supported by holdfast-oci; use runc or crun for this container", Unsupported),
            ("", Other),
        ] {
            assert_eq!(classify(text), kind, "{text}");
        }
    }
}
