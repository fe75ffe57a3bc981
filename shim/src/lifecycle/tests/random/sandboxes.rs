//! What is asked of sandboxes in between, and what the answers must be: by a model that knows which sandbox there is, what is
//! mounted for it and what waits for its end.

use std::collections::{BTreeMap, BTreeSet};

use super::Random;
use crate::lifecycle::{Asker, Effect, Lifecycle, Refusal, Reply, SandboxVerb, TaskId, Work};

/// One of them is also a task's.
const PODS: [&str; 3] = ["p", "q", "a"];

/// A request, and how things were when it came.
struct Asked {
    id: TaskId,
    verb: SandboxVerb,
    is_there: bool,
    /// That it must be refused, and how.
    refused: Option<fn(&Refusal) -> bool>,
}

#[derive(Default)]
pub(super) struct Sandboxes {
    asked: BTreeMap<u32, Asked>,
    /// What something is, or may be, mounted for.
    mounted: BTreeSet<TaskId>,
    /// Waits without an answer.
    waits: BTreeSet<u32>,
    /// How often each thing was answered well.
    pub(super) done: BTreeMap<&'static str, usize>,
}

/// The sandbox there is, from the arrival of its Create to its end.
pub(super) fn present(life: &Lifecycle) -> Option<TaskId> {
    PODS.map(|id| TaskId(id.to_owned())).into_iter().find(|id| life.is_sandbox(id))
}

/// Those that lead far are asked more often than others.
pub(super) fn any_request(random: &mut Random) -> (TaskId, SandboxVerb) {
    let id = PODS[if random.chance(70) { 0 } else { random.below(PODS.len()) }];
    let verb = match random.below(16) {
        0..=3 => SandboxVerb::Create,
        4..=7 => SandboxVerb::Start,
        8 => SandboxVerb::Stop { timeout_secs: 7 },
        9 => SandboxVerb::Shutdown,
        10..=12 => SandboxVerb::Wait,
        13 => SandboxVerb::Platform,
        14 => SandboxVerb::Status { verbose: true },
        _ => [SandboxVerb::Ping, SandboxVerb::Metrics][random.below(2)],
    };
    (TaskId(id.to_owned()), verb)
}

/// How a request must be refused that comes now, whatever the sandbox is about to become.
fn refused(life: &Lifecycle, id: &TaskId, verb: SandboxVerb) -> Option<fn(&Refusal) -> bool> {
    let sandbox = present(life);
    let is_there = sandbox.as_ref() == Some(id);
    match verb {
        SandboxVerb::Create if sandbox.is_some() => Some(|r| matches!(r, Refusal::SandboxExists(_))),
        SandboxVerb::Create if life.contains(id) => Some(|r| matches!(r, Refusal::TaskExists(_))),
        SandboxVerb::Start if !is_there => Some(|r| matches!(r, Refusal::SandboxState { .. })),
        SandboxVerb::Create | SandboxVerb::Start => None,
        SandboxVerb::Shutdown if sandbox.is_none() => None,
        _ if !is_there => Some(|r| matches!(r, Refusal::NoSandbox(_))),
        _ => None,
    }
}

impl Sandboxes {
    pub(super) fn ask(&mut self, life: &Lifecycle, stream: u32, id: TaskId, verb: SandboxVerb) {
        if verb == SandboxVerb::Wait {
            self.waits.insert(stream);
        }
        let (is_there, refused) = (life.is_sandbox(&id), refused(life, &id, verb));
        self.asked.insert(stream, Asked { id, verb, is_there, refused });
    }

    /// An effect, after those before it; `is_held`: whether a holder of that sandbox lives.
    pub(super) fn see(&mut self, effect: &Effect, is_saved: bool, is_held: impl Fn(&TaskId) -> bool) {
        match effect {
            Effect::Begin { task, work: Work::Mount, asker: Some(asker), .. }
                if self.asked.contains_key(&asker.stream) =>
            {
                assert!(self.mounted.insert(task.clone()), "mounted twice");
            }
            Effect::Forget(id) => assert!(!self.mounted.contains(id), "{id} is forgotten and mounted"),
            Effect::Reply(asker, reply) => self.answered(*asker, reply, is_saved, is_held),
            _ => {}
        }
    }

    /// The undoing of mounts has ended: well, or with nobody to hear of it.
    pub(super) fn unmounted(&mut self, id: &TaskId) {
        self.mounted.remove(id);
    }

    fn answered(
        &mut self,
        asker: Asker,
        reply: &Result<Reply, Refusal>,
        is_saved: bool,
        is_held: impl Fn(&TaskId) -> bool,
    ) {
        let Some(Asked { id, verb, is_there, refused }) = self.asked.remove(&asker.stream) else { return };
        self.waits.remove(&asker.stream);
        if let Some(is_it) = refused {
            let as_stated = reply.as_ref().is_err_and(is_it);
            assert!(as_stated, "{} {id} is answered by {reply:?}", verb.name());
            *self.done.entry("refuse").or_default() += 1;
            return;
        }
        if reply.is_err() {
            return;
        }
        *self.done.entry(verb.name()).or_default() += 1;
        match verb {
            SandboxVerb::Create => assert!(self.mounted.contains(&id), "created with nothing mounted"),
            SandboxVerb::Start => assert!(is_saved, "started before it was saved"),
            SandboxVerb::Stop { .. } | SandboxVerb::Wait => assert!(!is_held(&id), "{id} has ended and is held"),
            SandboxVerb::Shutdown if is_there => {
                assert!(!self.mounted.contains(&id) && !is_held(&id), "{id} is gone and held")
            }
            _ => {}
        }
    }

    /// Whoever is not connected any more hears nothing.
    pub(super) fn hung_up(&mut self) {
        self.waits.clear();
    }

    /// After an input: nobody waits for what has ended, or is not there.
    pub(super) fn check(&self, life: &Lifecycle) {
        let lives = present(life).is_some_and(|id| life.sandbox(&id).is_some_and(|view| view.exit.is_none()));
        assert!(lives || self.waits.is_empty(), "waits for what has ended: {:?}", self.waits);
    }
}
