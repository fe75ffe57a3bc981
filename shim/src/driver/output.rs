//! `Control.Output`: where the output of processes goes, and how much of it waits for a reader.

use std::rc::Weak;
use std::time::Duration;

use holdfast_proto::control::{OutputResponse, OutputStream};

use super::container::{Container, Process};
use super::perform::About;
use super::{Shim, State};
use crate::io::relay::Stream;
use crate::io::spill::tree;
use crate::lifecycle::{Asker, ProcessId, Refusal, TaskId};
use crate::offload;
use crate::wire::{self, RpcError};

/// How long the disk may take to be looked at before the answer goes without it.
const PATIENCE: Duration = Duration::from_millis(500);

impl Shim {
    /// Answers at once, or once the disk was looked at.
    pub(super) fn tell_output(&self, asker: Asker, task: Option<TaskId>, measure: bool) {
        let mut state = self.state.borrow_mut();
        if measure {
            state.ask(asker, About::Output(task), &self.me);
        } else {
            let answer = state.output(task.as_ref(), None);
            state.respond(asker, answer);
        }
    }
}

/// The answer to [`About::Output`].
pub(super) async fn measured(me: Weak<Shim>, asker: Asker, task: Option<TaskId>) {
    let Some(dir) = me.upgrade().map(|shim| shim.state.borrow().config.output.spill_dir.clone()) else { return };
    let look = offload::run(move || tree::usage(&dir));
    let bytes = tokio::time::timeout(PATIENCE, look).await.ok().and_then(Result::ok).and_then(Result::ok);
    if let Some(shim) = me.upgrade() {
        let mut state = shim.state.borrow_mut();
        let answer = state.output(task.as_ref(), bytes);
        state.answered(asker, answer);
    }
}

impl State {
    /// Of one task or of all; `spill_bytes` if that was asked for.
    fn output(&self, task: Option<&TaskId>, spill_bytes: Option<u64>) -> Result<Vec<u8>, RpcError> {
        if let Some(task) = task
            && !self.containers.contains_key(task)
        {
            return Err(wire::refusal_error(&Refusal::NoTask(task.clone())));
        }
        let chosen = self.containers.iter().filter(|(id, _)| task.is_none_or(|task| task == *id));
        let settings = &self.config.output;
        Ok(wire::bytes(&OutputResponse {
            streams: chosen.flat_map(|(id, container)| streams(id, container)).collect(),
            spill_dir: settings.spill_dir.to_string_lossy().into_owned(),
            spill_total: settings.spill_total,
            free_floor_percent: settings.free_floor_percent.into(),
            spill_bytes,
            ..Default::default()
        }))
    }
}

fn streams(task: &TaskId, container: &Container) -> Vec<OutputStream> {
    let mut streams = Vec::new();
    for (id, process) in &container.processes {
        let addresses = &process.addresses;
        for (stream, destination) in [(Stream::Stdout, &addresses.stdout), (Stream::Stderr, &addresses.stderr)] {
            let is_used = stream == Stream::Stdout || !addresses.terminal;
            if is_used && !destination.is_empty() {
                streams.push(one(task, id, process, stream, destination));
            }
        }
    }
    streams
}

fn one(task: &TaskId, id: &ProcessId, process: &Process, stream: Stream, destination: &str) -> OutputStream {
    let mut message = OutputStream {
        id: task.0.clone(),
        exec_id: id.exec_id().to_owned(),
        stream: stream.name().to_owned(),
        destination: destination.to_owned(),
        ..Default::default()
    };
    if let Some((has_reader, spill)) = process.io.as_ref().and_then(|io| io.reading(stream)) {
        let kept = spill.kept();
        message.reader = if has_reader { "present" } else { "absent" }.to_owned();
        message.kept_bytes = kept.bytes;
        message.spill_limit = kept.limit;
        message.policy = kept.policy.to_string();
        message.bound = kept.bound.map(|bound| bound.to_string()).unwrap_or_default();
        message.dropped_bytes = kept.dropped;
        message.error = kept.error;
    }
    message
}
