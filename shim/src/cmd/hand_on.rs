//! Handing on what a dead shim had not delivered to the daemon: by `delete`, if the daemon listens; else, or if that takes
//! too long, by a process that stays for it.
//!
//! A daemon that starts runs `delete` for what it does not find again before it serves its event service, and may be
//! waiting for it. So `delete` never waits for somebody to listen: it leaves the rest to the hidden action and answers.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::events::task::{TaskDelete, TaskExit};
use containerd_shim_protos::shim::events::ForwardRequest;
use protobuf::Message;

use super::start::EVENTS_VARIABLE;
use crate::ask::{AskError, Asker};
use crate::cli::HAND_ON_ACTION;
use crate::driver::{chain, socket_path};
use crate::journal::{self, LeftBehind, TakeError};
use crate::lifecycle::Pid;
use crate::oci::runner::{self, ChildStdio};
use crate::publish;
use crate::sys::signal;

/// How long one event may take to be acknowledged.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);
/// How long the process that stays waits for somebody who takes the events. A daemon with a thousand containers takes
/// minutes to come up; one that does not come up has nobody who would miss them.
const PATIENCE: Duration = Duration::from_secs(600);
/// The pause between two attempts, and how long it grows to.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Why what a shim has left was not handed on.
#[derive(Debug, thiserror::Error)]
pub enum HandOnError {
    /// The file cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// Nobody took them in time.
    #[error("nobody took the {0} events in {1}")]
    Undelivered(usize, PathBuf),
    /// There is no address.
    #[error("the variable {EVENTS_VARIABLE} does not say where events go")]
    NoAddress,
}

/// What a group's dead shim has left.
pub(super) struct Estate<'a> {
    /// Where its journal is.
    pub(super) dir: &'a Path,
    /// The name of its socket.
    pub(super) socket_name: &'a str,
    /// What it could not say any more, with its pid and start time.
    pub(super) unsaid: Option<((Pid, u64), Vec<ForwardRequest>)>,
    /// The container whose exit and deletion the daemon tells itself as soon as it has the answer of `delete`, unless the
    /// shim had deleted it (contract 7.3).
    pub(super) told_by_daemon: Option<&'a str>,
}

impl Estate<'_> {
    /// Hands it on, until `until`.
    pub(super) fn hand_on(mut self, until: Instant, warn: &mut dyn FnMut(String)) {
        let Some(service) = service() else { return };
        let unsaid = self.unsaid.take().filter(|(_, events)| !events.is_empty());
        let (mut place, mut events) = (None, Vec::new());
        if let Some((shim, said_now)) = unsaid {
            match journal::make_for(self.dir, self.socket_name, shim) {
                Ok(path) => (place, events) = (Some(path), said_now),
                Err(e) => warn(format!("cannot write down in {} how execs ended: {e}", self.dir.display())),
            }
        }
        for path in journal::left_behind(self.dir, self.socket_name) {
            match LeftBehind::take(&path, until) {
                Ok(Some(mut left)) => {
                    if place.as_ref() == Some(&path) {
                        add(&mut left, std::mem::take(&mut events), &path, warn);
                    }
                    self.finish(left, &path, &service, until, warn);
                }
                // Somebody has come to the end of it, or goes on.
                Ok(None) | Err(TakeError::Held(_)) => {}
                Err(e) => warn(chain(&e)),
            }
        }
    }

    fn finish(&self, mut left: LeftBehind, path: &Path, service: &Path, until: Instant, warn: &mut dyn FnMut(String)) {
        let deleted = |id: &str| left.waiting().any(|event| is_deletion_of(event, id));
        let spared = self.told_by_daemon.filter(|id| !deleted(id));
        let delivered = deliver(&mut left, service, until, &|event| spared.is_some_and(|id| is_exit_of(event, id)));
        if delivered.is_ok() {
            left.remove();
            return;
        }
        // It needs the lock.
        drop(left);
        let arguments = [HAND_ON_ACTION.into(), path.into()];
        let stdio = ChildStdio { stdin: None, stdout: None, stderr: None };
        if let Err(e) = runner::spawn(Path::new("/proc/self/exe"), &arguments, stdio) {
            warn(format!("cannot go on handing on the events in {}: {e}", path.display()));
        }
    }
}

/// Adds what does not wait there already: this may be the second `delete`.
fn add(left: &mut LeftBehind, events: Vec<ForwardRequest>, path: &Path, warn: &mut dyn FnMut(String)) {
    for event in events {
        let message = |event: &ForwardRequest| event.envelope.event.value.clone();
        let is_same =
            |other: &[u8]| ForwardRequest::parse_from_bytes(other).is_ok_and(|o| message(&o) == message(&event));
        if left.waiting().any(is_same) {
            continue;
        }
        if let Err(e) = left.append(crate::wire::bytes(&event)) {
            warn(format!("cannot write into {}: {e}", path.display()));
        }
    }
}

/// Hands on what `path` holds, for as long as `PATIENCE` lasts: the hidden action.
///
/// # Errors
/// See [`HandOnError`]. What nobody took stays for the next `delete` of the group.
pub fn run(path: &Path) -> Result<(), HandOnError> {
    signal::outlast();
    // Not in the way of whoever removes the bundle.
    let _ = std::env::set_current_dir("/");
    let service = service().ok_or(HandOnError::NoAddress)?;
    let until = Instant::now() + PATIENCE;
    let taken = LeftBehind::take(path, Instant::now()).map_err(|e| HandOnError::Unusable(chain(&e)))?;
    let Some(mut left) = taken else { return Ok(()) };
    let mut pause = RETRY.0;
    while !left.is_gone() {
        if deliver(&mut left, &service, until, &|_| false).is_ok() {
            left.remove();
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(HandOnError::Undelivered(left.waiting().count(), path.to_owned()));
        }
        thread::sleep(pause);
        pause = RETRY.1.min(pause * 2);
    }
    Ok(())
}

/// Where events go; `None`: nowhere.
fn service() -> Option<PathBuf> {
    let address = std::env::var(EVENTS_VARIABLE).ok().filter(|address| !address.is_empty())?;
    Some(socket_path(&address).to_owned())
}

/// Hands on all that waits and is not `spared`, in order.
///
/// # Errors
/// As [`publish::forward_blocking`]; what was not acknowledged still waits.
fn deliver(
    left: &mut LeftBehind,
    service: &Path,
    until: Instant,
    spared: &dyn Fn(&ForwardRequest) -> bool,
) -> Result<(), AskError> {
    let mut client = None;
    loop {
        let Some(entry) = left.waiting().next() else { return Ok(()) };
        // What is none was written by nobody.
        if let Some(event) = ForwardRequest::parse_from_bytes(entry).ok().filter(|event| !spared(event)) {
            let client = match &mut client {
                Some(client) => client,
                None => client.insert(Asker::connect(service)?),
            };
            let limit = ACKNOWLEDGE.min(until.saturating_duration_since(Instant::now()));
            if limit.is_zero() {
                return Err(AskError::Late);
            }
            publish::forward_blocking(client, &event, limit)?;
        }
        left.delivered();
    }
}

fn is_exit_of(event: &ForwardRequest, id: &str) -> bool {
    let exit = (event.envelope.topic == "/tasks/exit").then(|| TaskExit::parse_from_bytes(&event.envelope.event.value));
    exit.is_some_and(|exit| exit.is_ok_and(|exit| exit.container_id == id && exit.id == id))
}

fn is_deletion_of(event: &[u8], id: &str) -> bool {
    let Ok(event) = ForwardRequest::parse_from_bytes(event) else { return false };
    let envelope = &event.envelope;
    envelope.topic == "/tasks/delete"
        && TaskDelete::parse_from_bytes(&envelope.event.value).is_ok_and(|deletion| deletion.container_id == id)
}
