//! What happens, for those who want to know: shims' events come in over ttrpc in containerd's form, the supervisor's own
//! are added, and everybody who listens gets both. The newest are kept for those who reconnect.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::{api, events::task, shim_async};
use holdfast_proto::supervisor::Event;
use tokio::sync::{broadcast, mpsc};

use crate::client::{now_unix_ns, unix_ns};
use crate::registry::{Input, Note};

/// How many are kept, and how many a slow listener may lag behind.
const KEPT: usize = 1024;

/// The log of events. Cheap to clone.
#[derive(Clone)]
pub struct EventLog {
    kept: Arc<Mutex<VecDeque<Event>>>,
    live: broadcast::Sender<Event>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { kept: Arc::default(), live: broadcast::channel(KEPT).0 }
    }
}

impl EventLog {
    /// Adds one.
    pub fn publish(&self, event: Event) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        let _ = self.live.send(event); // nobody may be listening
    }

    /// Adds one of the supervisor's own.
    pub fn note(&self, note: Note) {
        self.publish(Event {
            time_unix_ns: now_unix_ns(),
            namespace: crate::paths::NAMESPACE.to_owned(),
            id: note.id,
            kind: note.kind.to_owned(),
            detail: note.detail,
            ..Event::default()
        });
    }

    /// What was after `since`, and what will be; none is missing between the two.
    pub fn subscribe(&self, since_unix_ns: i64) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let backlog = if since_unix_ns == 0 {
            Vec::new()
        } else {
            kept.iter().filter(|e| e.time_unix_ns > since_unix_ns).cloned().collect()
        };
        (backlog, self.live.subscribe())
    }
}

/// containerd's events service, as shims see it.
pub struct EventSink {
    log: EventLog,
    inputs: mpsc::UnboundedSender<Input>,
}

impl EventSink {
    /// One that adds to `log`, and tells the daemon what concerns the registry.
    pub fn new(log: EventLog, inputs: mpsc::UnboundedSender<Input>) -> Self {
        Self { log, inputs }
    }
}

#[async_trait]
impl shim_async::Events for EventSink {
    async fn forward(&self, _: &ttrpc::r#async::TtrpcContext, request: ForwardRequest) -> ttrpc::Result<api::Empty> {
        // Acknowledged whatever it is: a shim keeps sending what is not.
        match translate(&request.envelope) {
            Some(event) => {
                let paused = match event.kind.as_str() {
                    "pause" => Some(true),
                    "resume" => Some(false),
                    _ => None,
                };
                if let Some(paused) = paused {
                    let _ = self.inputs.send(Input::Paused { id: event.id.clone(), paused }); // fails only at the end
                }
                self.log.publish(event);
            }
            None => tracing::debug!(topic = request.envelope.topic, "unknown event of a shim, ignoring"),
        }
        Ok(api::Empty::new())
    }
}

/// An event in containerd's form, in ours. `None` for what we do not know.
fn translate(envelope: &Envelope) -> Option<Event> {
    let any = envelope.event.as_ref()?;
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    let mut event =
        Event { time_unix_ns: unix_ns(&envelope.timestamp), namespace: envelope.namespace.clone(), ..Event::default() };
    let bytes = &any.value;
    match name.rsplit('.').next().unwrap_or_default() {
        "TaskCreate" => {
            let e = task::TaskCreate::parse_from_bytes(bytes).ok()?;
            ("create", e.container_id, e.pid).fill(&mut event);
        }
        "TaskStart" => {
            let e = task::TaskStart::parse_from_bytes(bytes).ok()?;
            ("start", e.container_id, e.pid).fill(&mut event);
        }
        "TaskExecAdded" => {
            let e = task::TaskExecAdded::parse_from_bytes(bytes).ok()?;
            event.exec_id = e.exec_id;
            ("exec-add", e.container_id, 0).fill(&mut event);
        }
        "TaskExecStarted" => {
            let e = task::TaskExecStarted::parse_from_bytes(bytes).ok()?;
            event.exec_id = e.exec_id;
            ("exec-start", e.container_id, e.pid).fill(&mut event);
        }
        "TaskExit" => {
            let e = task::TaskExit::parse_from_bytes(bytes).ok()?;
            event.exit_status = e.exit_status;
            let kind = if e.id == e.container_id { "exit" } else { "exec-exit" };
            if kind == "exec-exit" {
                event.exec_id = e.id;
            }
            (kind, e.container_id, e.pid).fill(&mut event);
        }
        "TaskDelete" => {
            let e = task::TaskDelete::parse_from_bytes(bytes).ok()?;
            event.exit_status = e.exit_status;
            ("delete", e.container_id, e.pid).fill(&mut event);
        }
        "TaskOOM" => ("oom", task::TaskOOM::parse_from_bytes(bytes).ok()?.container_id, 0).fill(&mut event),
        "TaskPaused" => ("pause", task::TaskPaused::parse_from_bytes(bytes).ok()?.container_id, 0).fill(&mut event),
        "TaskResumed" => ("resume", task::TaskResumed::parse_from_bytes(bytes).ok()?.container_id, 0).fill(&mut event),
        _ => return None,
    }
    Some(event)
}

trait Fill {
    fn fill(self, event: &mut Event);
}

impl Fill for (&str, String, u32) {
    fn fill(self, event: &mut Event) {
        self.0.clone_into(&mut event.kind);
        event.id = self.1;
        event.pid = self.2;
    }
}
