//! What happens, for those who want to know: shims' events come in over ttrpc in containerd's form, the supervisor's own
//! are added, and everybody who listens gets both. The newest are kept for those who reconnect.
//!
//! An event stands in a file before its shim hears that it was taken, so the next supervisor knows it: `<run root>/events.log`,
//! a [`LineFile`]. A shim that did not hear the answer sends it again; it is noted once.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::{api, events::task, shim_async};
use holdfast_proto::supervisor::Event;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc};

use crate::client::{now_unix_ns, unix_ns};
use crate::line_file::LineFile;
use crate::registry::{Input, Note};

/// How many are kept, and how many a slow listener may lag behind.
const KEPT: usize = 1024;

/// The log of events. Cheap to clone.
#[derive(Clone)]
pub struct EventLog {
    kept: Arc<Mutex<Kept>>,
    live: broadcast::Sender<Event>,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<Event>,
    /// Of the newest.
    number: u64,
    /// `None` for a log that is in memory only.
    file: Option<LineFile<Line>>,
}

/// An [`Event`] in the file.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Line {
    number: u64,
    time_unix_ns: i64,
    namespace: String,
    id: String,
    kind: String,
    exec_id: String,
    pid: u32,
    exit_status: u32,
    detail: String,
}

/// From which event on somebody wants to hear what was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// None that was.
    Now,
    /// What happened after that.
    Time(i64),
    /// What was noted after the event with this number.
    Number(u64),
}

impl Default for EventLog {
    fn default() -> Self {
        Self { kept: Arc::default(), live: broadcast::channel(KEPT).0 }
    }
}

impl EventLog {
    /// Goes on with the file at `path`, or begins it.
    pub fn open(path: &Path) -> Self {
        let log = Self::default();
        let (file, lines) = LineFile::open(path, "what happened earlier");
        let mut kept = log.lock();
        kept.number = lines.last().map_or(0, |line: &Line| line.number);
        kept.events = lines.into_iter().rev().take(KEPT).rev().map(Event::from).collect();
        kept.file = Some(file);
        drop(kept);
        log
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, unless it is the same that came before: a shim's second attempt.
    pub fn publish(&self, mut event: Event) {
        let mut kept = self.lock();
        let same = |other: &Event| {
            event.number = other.number;
            *other == event
        };
        if kept.events.iter().rev().any(same) {
            return;
        }
        kept.number += 1;
        event.number = kept.number;
        if kept.events.len() == KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back(event.clone());
        let Kept { events, file, .. } = &mut *kept;
        if let Some(file) = file {
            file.add(&Line::from(&event), || events.iter().map(Line::from));
        }
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

    /// What was, and what will be; none is missing between the two.
    pub fn subscribe(&self, from: Since) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let kept = self.lock();
        let wanted = |event: &&Event| match from {
            Since::Now => false,
            Since::Time(since) => event.time_unix_ns > since,
            // Of a file that was lost since: all that is counted now came later.
            Since::Number(after) => event.number > after || after > kept.number,
        };
        (kept.events.iter().filter(wanted).cloned().collect(), self.live.subscribe())
    }
}

impl From<&Event> for Line {
    fn from(event: &Event) -> Self {
        let Event { number, time_unix_ns, namespace, id, kind, exec_id, pid, exit_status, detail, .. } = event.clone();
        Self { number, time_unix_ns, namespace, id, kind, exec_id, pid, exit_status, detail }
    }
}

impl From<Line> for Event {
    fn from(line: Line) -> Self {
        let Line { number, time_unix_ns, namespace, id, kind, exec_id, pid, exit_status, detail } = line;
        Self { number, time_unix_ns, namespace, id, kind, exec_id, pid, exit_status, detail, ..Self::default() }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::{self, OpenOptions};
    use std::io::Write;
    use std::path::PathBuf;

    use super::*;
    use crate::line_file::FEW;

    fn event(time_unix_ns: i64) -> Event {
        Event { time_unix_ns, id: "c".to_owned(), kind: "oom".to_owned(), ..Event::default() }
    }

    fn times(log: &EventLog, from: Since) -> Vec<i64> {
        log.subscribe(from).0.iter().map(|e| e.time_unix_ns).collect()
    }

    /// A file of its own, removed at the end.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("holdfast-events-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn the_next_supervisor_knows_what_was_noted_and_notes_nothing_twice() {
        let place = Place::new("restart");
        let log = EventLog::open(&place.0);
        [5, 6, 3].into_iter().for_each(|time| log.publish(event(time)));
        drop(log);
        // Killed in the middle of a line.
        OpenOptions::new().append(true).open(&place.0).unwrap().write_all(b"{\"number\":4,\"ti").unwrap();
        let log = EventLog::open(&place.0);
        log.publish(event(3));
        log.publish(event(4));
        assert_eq!(times(&log, Since::Number(0)), [5, 6, 3, 4]);
        assert_eq!(times(&log, Since::Number(2)), [3, 4], "older than what came before, and not missed");
        assert_eq!(times(&log, Since::Time(4)), [5, 6]);
        assert_eq!(times(&log, Since::Now), [0; 0]);
    }

    #[test]
    fn the_file_is_cut_back_to_what_is_kept() {
        let place = Place::new("bound");
        let log = EventLog::open(&place.0);
        let all = i64::try_from(4 * (KEPT + FEW)).unwrap();
        (1..=all).for_each(|time| log.publish(event(time)));
        assert!(fs::read_to_string(&place.0).unwrap().lines().count() <= 2 * KEPT + FEW);
        let kept = times(&EventLog::open(&place.0), Since::Number(0));
        assert_eq!((kept.len(), *kept.last().unwrap()), (KEPT, all));
    }

    #[test]
    fn what_is_no_event_is_passed_over() {
        let place = Place::new("garbage");
        fs::write(&place.0, "[]\nno JSON\n{\"number\":7,\"time_unix_ns\":1}\n").unwrap();
        let log = EventLog::open(&place.0);
        log.publish(event(2));
        assert_eq!(times(&log, Since::Number(0)), [1, 2]);
        assert_eq!(times(&log, Since::Number(7)), [2], "numbers go on");
    }
}
