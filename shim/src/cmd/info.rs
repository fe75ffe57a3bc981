//! `-info`: what this shim and its OCI runtime are and can do, as a `containerd.types.RuntimeInfo` on standard output.
//!
//! The daemon asks before it creates anything, caches the answer for its lifetime, and refuses idmapped mounts to a
//! runtime that reports no features. It starts nothing that stays and touches no file.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde::de::IgnoredAny;

/// The name under which containerd knows this shim.
pub const RUNTIME_NAME: &str = "io.containerd.holdfast.v2";

/// The type of a `features` document, an OCI runtime specification's JSON in an `Any`.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// How long the OCI runtime may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// The longest `features` document, in bytes.
const FEATURES_LIMIT: u64 = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// Standard input is not what a daemon sends.
    #[error("invalid standard input: {0} bytes that are not runtime options (Any)")]
    Malformed(usize, #[source] protobuf::Error),
    /// The answer does not encode.
    #[error("cannot encode the answer")]
    Encode(#[source] protobuf::Error),
    /// The answer cannot be written.
    #[error("cannot write the answer")]
    Write(#[source] io::Error),
}

/// Answers. `stdin` are the runtime options, as an `Any` or empty; they are repeated in the answer. `runtime` is the OCI
/// runtime to ask for its features; if it has none to tell, or takes too long, the answer has none.
///
/// # Errors
/// See [`InfoError`].
pub fn run(stdin: &[u8], runtime: &Path, out: &mut impl Write) -> Result<(), InfoError> {
    let options = Any::parse_from_bytes(stdin).map_err(|e| InfoError::Malformed(stdin.len(), e))?;
    let version = RuntimeVersion {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: option_env!("HOLDFAST_REVISION").unwrap_or_default().to_owned(),
        ..RuntimeVersion::default()
    };
    let features = features(runtime, DEADLINE);
    let info = RuntimeInfo {
        name: RUNTIME_NAME.to_owned(),
        version: MessageField::some(version),
        options: MessageField::from_option((!options.type_url.is_empty()).then_some(options)),
        features: MessageField::from_option(features.map(|value| Any {
            type_url: FEATURES_TYPE.to_owned(),
            value,
            ..Any::default()
        })),
        ..RuntimeInfo::default()
    };
    let bytes = info.write_to_bytes().map_err(InfoError::Encode)?;
    out.write_all(&bytes).and_then(|()| out.flush()).map_err(InfoError::Write)
}

/// What `<runtime> features` prints, if it succeeds in time and that is JSON.
fn features(runtime: &Path, deadline: Duration) -> Option<Vec<u8>> {
    let mut child = Command::new(runtime)
        .arg("features")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let output = child.stdout.take().and_then(|pipe| read_until(pipe, Instant::now() + deadline));
    let mut output = finish(child, output)?;
    output.truncate(output.trim_ascii_end().len());
    let is_json = output.starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(&output).is_ok();
    is_json.then_some(output)
}

/// Collects the child, by force if it gave no output: it may still run.
fn finish(mut child: Child, output: Option<Vec<u8>>) -> Option<Vec<u8>> {
    if output.is_none() {
        let _ = child.kill(); // fails only if it has ended
    }
    let status = child.wait().ok()?;
    output.filter(|_| status.success())
}

/// Everything up to the end of the pipe; `None` if that does not come in time or is too far away.
fn read_until(mut pipe: ChildStdout, until: Instant) -> Option<Vec<u8>> {
    let mut output = Vec::new();
    loop {
        let left = until.checked_duration_since(Instant::now())?;
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).ok()?;
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return None,
        }
        let mut chunk = [0; 4096];
        match pipe.read(&mut chunk).ok()? {
            0 => return Some(output),
            n => output.extend_from_slice(&chunk[..n]),
        }
        if output.len() as u64 > FEATURES_LIMIT {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    /// An OCI runtime that is a shell script.
    struct Runtime(PathBuf);

    impl Runtime {
        fn new(name: &str, script: &str) -> Self {
            let path = std::env::temp_dir().join(format!("holdfast-info-{}-{name}", std::process::id()));
            // Written under another name, for a script that is open for writing cannot be run.
            let new = path.with_extension("new");
            fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(0o700)).unwrap();
            fs::rename(&new, &path).unwrap();
            Self(path)
        }

        /// A spawn in another test may hold our descriptor for a moment, and then the script is "busy".
        fn features(&self, deadline: Duration) -> Option<Vec<u8>> {
            let until = Instant::now() + Duration::from_secs(5);
            while Instant::now() < until {
                match Command::new(&self.0).arg("probe").stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
                    Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                    Ok(mut child) => {
                        let _ = child.kill();
                        let _ = child.wait();
                        break;
                    }
                    Err(e) => panic!("{e}"),
                }
            }
            features(&self.0, deadline)
        }
    }

    impl Drop for Runtime {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn the_answer_has_name_version_options_and_features() {
        let runtime = Runtime::new("good", r#"[ "$1" = features ] && echo '{"ociVersionMin":"1.0.0"}'"#);
        assert!(runtime.features(DEADLINE).is_some());
        let options = Any { type_url: "runtimeoptions.v1.Options".into(), value: vec![1], ..Any::default() };
        let mut out = Vec::new();
        run(&options.write_to_bytes().unwrap(), &runtime.0, &mut out).unwrap();
        let info = RuntimeInfo::parse_from_bytes(&out).unwrap();
        assert_eq!(info.name, "io.containerd.holdfast.v2");
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
        assert_eq!(*info.options, options);
        assert_eq!(info.features.type_url, FEATURES_TYPE);
        assert_eq!(info.features.value, br#"{"ociVersionMin":"1.0.0"}"#);
    }

    #[test]
    fn a_runtime_without_features_is_still_reported() {
        let mut out = Vec::new();
        run(b"", Path::new("/nonexistent/runtime"), &mut out).unwrap();
        let info = RuntimeInfo::parse_from_bytes(&out).unwrap();
        assert_eq!(info.name, RUNTIME_NAME);
        assert!(info.features.is_none() && info.options.is_none());
    }

    #[test]
    fn a_runtime_that_fails_hangs_or_talks_nonsense_has_no_features() {
        for (name, script) in [
            ("fails", "echo '{}'; exit 1"),
            ("nonsense", "echo 'unknown command'"),
            ("silent", "exit 0"),
            ("endless", "exec yes '{}'"),
        ] {
            assert_eq!(Runtime::new(name, script).features(DEADLINE), None, "{name}");
        }
        let hangs = Runtime::new("hangs", "exec sleep 1000");
        let begin = Instant::now();
        assert_eq!(hangs.features(Duration::from_millis(100)), None);
        assert!(begin.elapsed() < Duration::from_secs(60), "it was killed");
    }

    #[test]
    fn garbage_on_standard_input_is_refused() {
        let error = run(b"\x0a\xff", Path::new("/bin/false"), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("invalid standard input: 2 bytes"));
    }
}
