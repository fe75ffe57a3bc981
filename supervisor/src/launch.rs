//! Making a bundle, starting a shim in it, creating the container; and clearing all of that away again. This is
//! containerd's part (contract, sections 1 and 2), played by the supervisor.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
use containerd_shim_protos::shim::oci::Options;
use holdfast_proto::record::{self, Record};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::{AbortHandle, spawn_local};

use crate::cgroup::CgroupError;
use crate::client::{self, CallError, ShimClient};
use crate::config::Settings;
use crate::container::{Container, OUT_OF_MEMORY, Outcome, UNKNOWN_STATUS};
use crate::notify::PRIVATE_VARIABLES;
use crate::paths::NAMESPACE;
use crate::registry::{Refusal, ShimRef};
use crate::store::{self, StoreError};
use crate::sys::proc;
use crate::sys::reaper::Reaper;
use crate::{attach, cgroup, chain, names};

/// For the shim's `delete` and its other short errands.
const HELPER_DEADLINE: Duration = Duration::from_secs(30);

/// For a shim that was asked to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// Most of a helper's words that are kept.
const MOST_OUTPUT: u64 = 64 << 10;

/// Why a container was not made, or not cleared away.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// There is no shim.
    #[error("the shim {0} is neither configured, nor beside holdfastd, nor in PATH")]
    NoShim(&'static str),
    /// A part of the bundle could not be made.
    #[error("cannot make {path}")]
    Bundle {
        /// The part.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The OCI configuration could not be read.
    #[error("cannot read what the container is made from")]
    Spec(#[source] StoreError),
    /// The shim could not be run.
    #[error("cannot run {shim} {verb}")]
    Spawn {
        /// The shim.
        shim: PathBuf,
        /// `start` or `delete`.
        verb: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The shim ran but failed.
    #[error("{shim} {verb} failed with status {status}: {words}")]
    Helper {
        /// The shim.
        shim: PathBuf,
        /// `start` or `delete`.
        verb: &'static str,
        /// Its exit status.
        status: u32,
        /// What it said.
        words: String,
    },
    /// The shim did not end in time.
    #[error("{shim} {verb} did not end within {within:?}")]
    Slow {
        /// The shim.
        shim: PathBuf,
        /// `start` or `delete`.
        verb: &'static str,
        /// The deadline.
        within: Duration,
    },
    /// The shim has no place among the control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The reply of `start` is no address.
    #[error("the reply of {shim} start is no address: {reply:?}")]
    Reply {
        /// The shim.
        shim: PathBuf,
        /// What it said.
        reply: String,
    },
    /// The shim refused.
    #[error("{what}")]
    Call {
        /// What was asked.
        what: &'static str,
        /// Its words.
        source: CallError,
    },
}

impl LaunchError {
    /// For the one who asked.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Call { what, source } => source.refusal(what),
            other => Refusal::Failed(chain(other)),
        }
    }
}

/// What launching needs to know.
#[derive(Clone)]
pub struct Launcher {
    /// The settings.
    pub settings: std::sync::Arc<Settings>,
    /// Who waits on children.
    pub reaper: Reaper,
}

impl Launcher {
    /// Makes the bundle, starts the shim and creates the container in it. Leaves nothing if that fails.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub async fn prepare(&self, container: &Container) -> Result<(ShimRef, ShimClient, Following), LaunchError> {
        let until = Instant::now() + self.settings.start_timeout;
        let shim = self.settings.find_shim().ok_or(LaunchError::NoShim(crate::config::SHIM))?;
        // Of an attempt that a supervisor's end cut short, or a machine's.
        self.remove_bundle(&container.id);
        self.make_bundle(container).inspect_err(|_| self.remove_bundle(&container.id))?;
        // Before the shim is there: it may wait for a reader.
        let log = self.follow_log(&container.id);
        let address = match self.start_shim(&shim, container, until).await {
            Ok(address) => address,
            Err(e) => {
                self.remove_bundle(&container.id);
                return Err(e);
            }
        };
        match self.create(&address, container, until).await {
            Ok((shim, client)) => Ok((shim, client, log)),
            Err(e) => {
                self.abandon(&address, &container.id).await;
                Err(e)
            }
        }
    }

    fn make_bundle(&self, container: &Container) -> Result<(), LaunchError> {
        let paths = &self.settings.paths;
        let bundle = paths.bundle(&container.id);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LaunchError::Bundle { path, source }
        };
        let spec = store::read_spec(paths, &container.id).map_err(LaunchError::Spec)?;
        store::make_private_dir(&bundle.join("rootfs")).map_err(LaunchError::Spec)?;
        fs::write(bundle.join("config.json"), spec).map_err(failed(&bundle.join("config.json")))?;
        let work = paths.work(&container.id);
        store::make_private_dir(&work).map_err(LaunchError::Spec)?;
        std::os::unix::fs::symlink(&work, bundle.join("work")).map_err(failed(&bundle.join("work")))?;
        let mode = Mode::S_IRWXU;
        mkfifo(&bundle.join("log"), mode).map_err(io::Error::from).map_err(failed(&bundle.join("log")))?;
        if container.config.stdin {
            let path = paths.stdin(&container.id);
            mkfifo(&path, mode).map_err(io::Error::from).map_err(failed(&path))?;
        }
        Ok(())
    }

    /// Deletes the bundle and the shim's record. Only for when the shim is gone.
    fn remove_bundle(&self, id: &str) {
        let paths = &self.settings.paths;
        let record = paths.record(id);
        for directory in [Some(paths.bundle(id)), record.parent().map(Path::to_owned)].into_iter().flatten() {
            match fs::remove_dir_all(&directory) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%id, "cannot delete {}, ignoring: {e}", directory.display());
                }
                _ => {}
            }
        }
    }

    fn helper(&self, shim: &Path, id: &str, verb: &'static str) -> Command {
        let paths = &self.settings.paths;
        let mut command = Command::new(shim);
        command.args(["-namespace", NAMESPACE, "-id", id, "-address"]).arg(&self.settings.socket);
        command.arg("-publish-binary").arg(std::env::current_exe().unwrap_or_default());
        if verb == "delete" {
            command.arg("-bundle").arg(paths.bundle(id));
        }
        command.arg(verb).current_dir(paths.bundle(id)).process_group(0);
        command.env("HOLDFAST_MANAGER", "holdfastd").env("HOLDFAST_RUN_DIR", &paths.run);
        // Where the shim keeps output by default.
        command.env("HOLDFAST_STATE_DIR", &paths.state);
        command.env("TTRPC_ADDRESS", paths.event_socket());
        for name in PRIVATE_VARIABLES {
            command.env_remove(name);
        }
        command
    }

    /// Has the shim remove the output that was kept for tasks that are gone; what it did goes to the log.
    pub async fn sweep_output(&self) {
        const VERB: &str = "sweep-output";
        let Some(shim) = self.settings.find_shim() else { return };
        let mut command = Command::new(&shim);
        command.arg(VERB).process_group(0).env("HOLDFAST_STATE_DIR", &self.settings.paths.state);
        if let Err(e) = self.run_helper(&shim, command, VERB, b"", HELPER_DEADLINE).await {
            tracing::warn!("{}", chain(&e));
        }
    }

    async fn start_shim(&self, shim: &Path, container: &Container, until: Instant) -> Result<String, LaunchError> {
        let command = self.helper(shim, &container.id, "start");
        let params = self.bootstrap(&container.id, self.options(cgroup::of_shims()?.unwrap_or_default()));
        let started = self.run_helper(shim, command, "start", &params, left(until)).await;
        let stdout = started.map_err(|e| match e {
            // As it was set, not what of it was left.
            LaunchError::Slow { shim, verb, .. } => {
                LaunchError::Slow { shim, verb, within: self.settings.start_timeout }
            }
            other => other,
        })?;
        let reply = || String::from_utf8_lossy(&stdout).trim().to_owned();
        address_of(&stdout).ok_or_else(|| LaunchError::Reply { shim: shim.to_owned(), reply: reply() })
    }

    /// What is written to the standard input of `start`.
    fn bootstrap(&self, id: &str, options: Option<Any>) -> Vec<u8> {
        let paths = &self.settings.paths;
        let mut params = BootstrapParams {
            instance_id: id.to_owned(),
            namespace: NAMESPACE.to_owned(),
            containerd_ttrpc_address: paths.event_socket().display().to_string(),
            containerd_grpc_address: self.settings.socket.display().to_string(),
            containerd_binary: std::env::current_exe().unwrap_or_default().display().to_string(),
            ..BootstrapParams::default()
        };
        if let Some(options) = options {
            let value = MessageField::some(options);
            params.extensions.push(Extension { value, ..Extension::default() });
        }
        params.write_to_bytes().expect("a message in memory can be encoded")
    }

    /// The runtime options, if any are set; `shim_cgroup` counts at `start` alone.
    fn options(&self, shim_cgroup: String) -> Option<Any> {
        let binary_name = self.settings.runtime.as_ref().map(|r| r.display().to_string()).unwrap_or_default();
        let options = Options { binary_name, shim_cgroup, ..Options::default() };
        (options != Options::default()).then(|| Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: options.write_to_bytes().expect("a message in memory can be encoded"),
            ..Any::default()
        })
    }

    async fn run_helper(
        &self,
        shim: &Path,
        mut command: Command,
        verb: &'static str,
        stdin: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>, LaunchError> {
        let spawn_error = |source| LaunchError::Spawn { shim: shim.to_owned(), verb, source };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (mut child, status) = self.reaper.spawn(&mut command).map_err(spawn_error)?;
        if let Some(mut pipe) = child.stdin.take() {
            // Far less than a pipe holds, so that it cannot block; a helper that does not read it says so by its status.
            let _ = pipe.write_all(stdin);
        }
        let stdout = child.stdout.take().map(std::os::fd::OwnedFd::from);
        let stderr = child.stderr.take().map(std::os::fd::OwnedFd::from);
        let output = async {
            let (stdout, stderr) = tokio::join!(read_all(stdout), read_all(stderr));
            (stdout, stderr, status.await.unwrap_or(UNKNOWN_STATUS))
        };
        match tokio::time::timeout(within, output).await {
            Ok((stdout, stderr, 0)) => {
                if !stderr.is_empty() {
                    tracing::warn!("{} {verb}: {}", shim.display(), String::from_utf8_lossy(&stderr).trim());
                }
                Ok(stdout)
            }
            Ok((stdout, stderr, status)) => {
                let words = String::from_utf8_lossy(&[stderr, stdout].concat()).trim().to_owned();
                Err(LaunchError::Helper { shim: shim.to_owned(), verb, status, words })
            }
            Err(_) => {
                let _ = child.kill(); // it may have ended just now
                Err(LaunchError::Slow { shim: shim.to_owned(), verb, within })
            }
        }
    }

    async fn create(
        &self,
        address: &str,
        container: &Container,
        until: Instant,
    ) -> Result<(ShimRef, ShimClient), LaunchError> {
        let failed = |what| move |source| LaunchError::Call { what, source };
        let client = ShimClient::connect(address, &container.id, client::QUICK)
            .await
            .map_err(failed("cannot connect to the shim"))?;
        client
            .create(&self.create_request(container), left(until))
            .await
            .map_err(failed("cannot create the container"))?;
        let (pid, _) = client.connect_task(client::QUICK).await.map_err(failed("cannot ask the shim for its pid"))?;
        Ok((ShimRef { pid, start_time: proc::start_time(pid), address: address.to_owned() }, client))
    }

    fn create_request(&self, container: &Container) -> api::CreateTaskRequest {
        let paths = &self.settings.paths;
        let log = container.config.log.address(paths, &container.id, &container.name);
        let stdin = if container.config.stdin { paths.stdin(&container.id) } else { PathBuf::new() };
        api::CreateTaskRequest {
            id: container.id.clone(),
            bundle: paths.bundle(&container.id).display().to_string(),
            terminal: container.config.terminal,
            stdin: stdin.display().to_string(),
            stderr: if container.config.terminal { String::new() } else { log.clone() },
            stdout: log,
            options: self.options(String::new()).into(),
            ..Default::default()
        }
    }

    /// Ends a shim whose Create failed, and clears away what it left.
    async fn abandon(&self, address: &str, id: &str) {
        if let Ok(client) = ShimClient::connect(address, id, client::QUICK).await {
            let pid = client.connect_task(client::QUICK).await.map(|(pid, _)| pid).unwrap_or_default();
            if let Err(e) = client.shutdown().await {
                tracing::warn!(%id, "cannot end the shim of a failed create, ignoring: {}", chain(&e));
            }
            let gone = attach::pid_gone(pid, proc::start_time(pid));
            let _ = tokio::time::timeout(FAREWELL, gone).await; // `delete` below copes with one that lives
        }
        self.delete_dead(id).await;
    }

    /// Runs the shim's `delete`, which clears away what a dead shim left and tells how the container ended; then removes
    /// the bundle.
    pub async fn delete_dead(&self, id: &str) -> Option<Outcome> {
        let outcome = match self.run_delete(id).await {
            Ok(outcome) => Some(outcome),
            Err(e) => {
                tracing::warn!(%id, "cannot clear away a dead shim's container: {}", chain(&e));
                None
            }
        };
        self.remove_bundle(id);
        outcome
    }

    async fn run_delete(&self, id: &str) -> Result<Outcome, LaunchError> {
        let record = Record::read(&self.settings.paths.record(id)).ok();
        let oom_killed = record.as_ref().and_then(Record::init).is_some_and(|init| init.oom_killed);
        let shim = self.settings.find_shim().ok_or(LaunchError::NoShim(crate::config::SHIM))?;
        let command = self.helper(&shim, id, "delete");
        let stdout = self.run_helper(&shim, command, "delete", &[], HELPER_DEADLINE).await?;
        let response = api::DeleteResponse::parse_from_bytes(&stdout).map_err(|_| LaunchError::Reply {
            shim: shim.clone(),
            reply: String::from_utf8_lossy(&stdout).into_owned(),
        })?;
        Ok(Outcome {
            status: response.exit_status,
            at_unix_ns: client::unix_ns(&response.exited_at),
            reason: match oom_killed {
                true => format!("{OUT_OF_MEMORY}; the shim died since"),
                false => "the shim died; the status is what its cleaning-up found".to_owned(),
            },
        })
    }

    /// Deletes the task, ends the shim, removes the bundle. Falls back to [`Self::delete_dead`] when the shim does not
    /// cooperate.
    pub async fn retire(&self, id: &str, shim: &ShimRef, client: &ShimClient) -> Option<Outcome> {
        let deleted = client.delete("").await;
        let (outcome, refused) = match &deleted {
            Ok((status, at)) => (Some(Outcome { status: *status, at_unix_ns: *at, reason: String::new() }), false),
            Err(e) if e.is_not_found() => (None, false),
            Err(e) => {
                tracing::warn!(%id, "cannot delete the task: {}", chain(e));
                (None, matches!(e, CallError::Status(_)))
            }
        };
        if let Err(e) = client.shutdown().await {
            tracing::warn!(%id, "cannot end the shim: {}", chain(&e));
        }
        // With its task still in it, it does not go.
        let patience = if refused { Duration::ZERO } else { FAREWELL };
        let gone = tokio::time::timeout(patience, attach::pid_gone(shim.pid, shim.start_time)).await.is_ok();
        let clean = gone && deleted.is_ok();
        if clean {
            self.remove_bundle(id);
            return outcome;
        }
        if !gone && self.serves_another(id, shim) {
            tracing::info!(%id, pid = shim.pid, "the shim goes on for another container");
        } else if !gone {
            // All that it had has ended, and what it stands on is being cleared away.
            tracing::warn!(%id, pid = shim.pid, "the shim does not end by itself; it is killed");
            attach::end(shim.pid, shim.start_time).await;
        }
        let found = self.delete_dead(id).await;
        outcome.or(found)
    }

    /// Whether a shim holds another container, too, as far as the records say.
    fn serves_another(&self, id: &str, shim: &ShimRef) -> bool {
        let record = self.settings.paths.record(id);
        let of_all = record.parent().and_then(Path::parent).map(fs::read_dir).into_iter().flatten().flatten().flatten();
        let mut others = of_all.filter(|entry| entry.file_name() != id);
        others.any(|entry| {
            let other = Record::read(&entry.path().join(record::FILE_NAME));
            other.is_ok_and(|r| (r.shim.pid, r.shim.start_time) == (shim.pid, shim.start_time))
        })
    }

    /// Copies a shim's log into ours until the result is dropped. Both ends of the bundle's FIFO are held, so that the
    /// shim never finds it without a reader.
    pub fn follow_log(&self, id: &str) -> Following {
        let path = self.settings.paths.bundle(id).join("log");
        match pipe::OpenOptions::new().read_write(true).open_receiver(path) {
            Ok(fifo) => Following(Some(spawn_local(copy_log(fifo, names::short(id).to_owned())).abort_handle())),
            Err(e) => {
                tracing::warn!(%id, "cannot follow the shim's log, ignoring: {e}");
                Following(None)
            }
        }
    }
}

/// A shim's log that is being followed.
#[derive(Debug)]
pub struct Following(Option<AbortHandle>);

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// What is left of a deadline.
fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// The address in the reply of `start`: that to the start message, or a plain one, as other builds of the shim send.
fn address_of(reply: &[u8]) -> Option<String> {
    let address = match BootstrapResult::parse_from_bytes(reply) {
        Ok(result) if result.protocol == "ttrpc" => result.address,
        Ok(_) => return None,
        Err(_) => std::str::from_utf8(reply).ok()?.trim().to_owned(),
    };
    address.strip_prefix("unix://").is_some_and(|path| Path::new(path).is_absolute()).then_some(address)
}

async fn copy_log(mut fifo: pipe::Receiver, id: String) {
    let mut pending = Vec::new();
    let mut buffer = [0u8; 4096];
    while let Ok(n @ 1..) = fifo.read(&mut buffer).await {
        pending.extend_from_slice(&buffer[..n]);
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            tracing::info!(shim = id, "{}", String::from_utf8_lossy(&line).trim_end());
        }
        // A line without end is cut rather than kept.
        if pending.len() > 4 * buffer.len() {
            pending.clear();
        }
    }
}

async fn read_all(fd: Option<std::os::fd::OwnedFd>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(fd) = fd
        && let Ok(receiver) = pipe::Receiver::from_owned_fd(fd)
    {
        let _ = receiver.take(MOST_OUTPUT).read_to_end(&mut bytes).await; // what was read until then has to do
    }
    bytes
}

/// Environment as a map, for replacing by name.
pub fn merge_env(base: &[String], over: &[String]) -> Vec<String> {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let overriding: HashMap<String, &String> = over.iter().map(|p| (name(p), p)).collect();
    let kept = base.iter().filter(|p| !overriding.contains_key(&name(p)));
    let mut seen = std::collections::HashSet::new();
    let mut added: Vec<&String> = over.iter().rev().filter(|p| seen.insert(name(p))).collect();
    added.reverse();
    kept.chain(added).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_reply_are_understood() {
        assert_eq!(address_of(b"unix:///s/ab").as_deref(), Some("unix:///s/ab"));
        let message = b"\x08\x02\x12\x0cunix:///s/ab\x1a\x05ttrpc";
        assert_eq!(address_of(message).as_deref(), Some("unix:///s/ab"));
        let of_another_protocol = b"\x08\x02\x12\x0cunix:///s/ab\x1a\x04grpc";
        for reply in [b"".as_slice(), b"unix://relative", b"/s/ab", b"\xff\xff", of_another_protocol] {
            assert_eq!(address_of(reply), None, "{reply:?}");
        }
    }
}
