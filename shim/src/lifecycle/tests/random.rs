//! Courses of events that nobody thought of, against a model so simple that it can be trusted.
//!
//! The model is a machine: work that was begun ends some time later, well or badly; processes come into being before the
//! call that makes them returns, and die whenever they like. It watches the effects and knows nothing of states.

mod sandboxes;

use std::collections::{BTreeMap, BTreeSet};

use self::sandboxes::Sandboxes;
use super::table::VERBS;
use super::words::{asker, broken, exit, process, task, words};
use crate::lifecycle::{
    Asker, CallId, Effect, Event, Exit, Input, Lifecycle, Outcome, Pid, ProcessId, Refusal, Reply, Request,
    SandboxRequest, SandboxVerb, TaskId, Verb, Work,
};

const TASKS: [&str; 3] = ["a", "b", "c"];
const EXECS: [&str; 3] = ["x", "y", "z"];
const STEPS: usize = 3000;

/// xorshift64*, Vigna 2016: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % n
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Work that was begun.
struct Begun {
    task: TaskId,
    work: Work,
    asked: bool,
    /// The process that it makes.
    pid: Option<Pid>,
}

/// What was announced of one process of one life of a task.
#[derive(Default)]
struct Told {
    started: Option<Pid>,
    exit: Option<Exit>,
}

#[derive(Default)]
struct TaskTold {
    created: bool,
    deleted: bool,
    init: Told,
    execs: BTreeMap<String, Told>,
}

struct Machine {
    random: Random,
    life: Lifecycle,
    begun: BTreeMap<CallId, Begun>,
    last_pid: Pid,
    alive: BTreeMap<Pid, (TaskId, ProcessId)>,
    last_stream: u32,
    /// How many answers each request has had.
    answers: BTreeMap<u32, usize>,
    /// Waits that may have been forgotten with their connection.
    forgotten: BTreeSet<u32>,
    told: BTreeMap<TaskId, TaskTold>,
    sandboxes: Sandboxes,
    stopped: usize,
}

impl Machine {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            life: Lifecycle::default(),
            begun: BTreeMap::new(),
            last_pid: 1,
            alive: BTreeMap::new(),
            last_stream: 0,
            answers: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            told: BTreeMap::new(),
            sandboxes: Sandboxes::default(),
            stopped: 0,
        }
    }

    fn handle(&mut self, input: Input) {
        let before: BTreeSet<TaskId> = self.life.ids().cloned().chain(sandboxes::present(&self.life)).collect();
        if self.random.chance(20) {
            self.move_house();
        }
        let effects = self.life.handle(input.clone());
        let mut saved = BTreeSet::new();
        let mut forgotten = BTreeSet::new();
        for effect in &effects {
            if let Some(task) = task_of(effect) {
                assert!(
                    before.contains(task) || self.knows(task),
                    "an effect for an unknown task: {effect:?} after {input:?}"
                );
                // What is forgotten can neither be saved nor worked on; that it is gone can be told.
                let tells = matches!(effect, Effect::Publish(_, Event::Deleted { .. }));
                assert!(!forgotten.contains(task) || tells, "{effect:?} after the end of the task");
            }
            let saves = saved.iter().any(|id| self.life.is_sandbox(id));
            self.sandboxes.see(effect, saves, |id| self.alive.values().any(|(task, _)| task == id));
            match effect {
                Effect::Save(task) => drop(saved.insert(task.clone())),
                Effect::Forget(task) => {
                    assert!(!self.life.contains(task), "a task that is forgotten is gone");
                    forgotten.insert(task.clone());
                }
                // No fact of the record's.
                Effect::Publish(task, event @ Event::OutOfMemory) => self.hear(task, event),
                Effect::Publish(task, event) => {
                    let kept = match event {
                        Event::Deleted { .. } => Some(&forgotten),
                        // Nothing of it is in the record.
                        Event::Checkpointed(_) => None,
                        _ => Some(&saved),
                    };
                    let kept = kept.is_none_or(|kept| kept.contains(task));
                    assert!(kept, "{event:?} is announced and not saved: {:?}", words(&effects));
                    self.hear(task, event);
                }
                Effect::Begin { call, task, work, asker } => self.begin(*call, task, work, asker.is_some()),
                Effect::Reply(asker, reply) => self.answer(*asker, Some(reply)),
                Effect::Signal { asker, pid, .. } => {
                    assert!(self.alive.contains_key(pid), "a signal to a pid that is somebody else's");
                    self.answer(*asker, None);
                }
                Effect::Resize { asker, .. }
                | Effect::CloseStdin(asker, ..)
                | Effect::Attach(asker, ..)
                | Effect::ReopenLogs(asker, _)
                | Effect::ReadPids { asker, .. }
                | Effect::ReadStats(asker, _) => self.answer(*asker, None),
                Effect::ReadSandboxMetrics(asker, _, pid) => {
                    assert!(self.alive.contains_key(pid), "figures of a pid that is somebody else's");
                    self.answer(*asker, None);
                }
                Effect::Stop => {
                    assert!(self.life.is_empty(), "the shim ends with a task to look after");
                    self.stopped += 1;
                }
                Effect::Adopt(..) | Effect::Release(..) | Effect::OutputEnds(..) | Effect::CountOomKills { .. } => {}
            }
        }
        let gone: Vec<&TaskId> = before.iter().filter(|id| !self.knows(id)).collect();
        for gone in gone {
            assert!(forgotten.contains(gone), "{gone} is gone and not forgotten");
            self.told.remove(gone);
        }
        assert!(!self.life.ids().any(|id| self.life.is_sandbox(id)), "a task and a sandbox share a record");
        self.sandboxes.check(&self.life);
    }

    fn knows(&self, id: &TaskId) -> bool {
        self.life.contains(id) || self.life.is_sandbox(id)
    }

    /// Written down and read again at any point, it is the same.
    fn move_house(&mut self) {
        let bytes = serde_json::to_vec(&self.life).unwrap();
        let read: Lifecycle = serde_json::from_slice(&bytes).unwrap();
        assert!(read == self.life, "{}", String::from_utf8_lossy(&bytes));
        self.life = read;
    }

    fn answer(&mut self, asker: Asker, reply: Option<&Result<Reply, Refusal>>) {
        let count = self.answers.get_mut(&asker.stream).unwrap_or_else(|| panic!("nobody asked as {asker:?}"));
        *count += 1;
        assert_eq!(*count, 1, "request {} was answered twice, now {reply:?}", asker.stream);
        assert!(!self.forgotten.contains(&asker.stream) || reply.is_some());
    }

    fn begin(&mut self, call: CallId, task: &TaskId, work: &Work, asked: bool) {
        let subject = subject(work);
        let beside = self
            .begun
            .values()
            .find(|b| changes(&b.work) && changes(work) && b.task == *task && self::subject(&b.work) == subject);
        assert!(beside.is_none(), "{work:?} begins beside {:?}", beside.map(|b| &b.work));
        let process = match work {
            Work::Create | Work::Restore | Work::HoldNamespaces => Some(ProcessId::Init),
            Work::ExecStart(process) => Some(process.clone()),
            _ => None,
        };
        let pid = process.map(|process| {
            self.last_pid += 1;
            self.alive.insert(self.last_pid, (task.clone(), process));
            self.last_pid
        });
        self.begun.insert(call, Begun { task: task.clone(), work: work.clone(), asked, pid });
    }

    fn hear(&mut self, task: &TaskId, event: &Event) {
        let told = self.told.entry(task.clone()).or_default();
        assert!(!told.deleted, "{event:?} after delete");
        let ended = told.init.exit.is_some();
        match event {
            Event::Created { pid } => {
                assert!(!std::mem::replace(&mut told.created, true), "created twice");
                // What is created from a checkpoint has no process yet.
                told.init.started = Some(*pid).filter(|&pid| pid != 0);
            }
            Event::Started { pid } => {
                assert!(told.created && !ended, "start after exit");
                let known = *told.init.started.get_or_insert(*pid);
                assert_eq!(known, *pid, "another process than was created");
                assert_ne!(known, 0, "started without a process");
            }
            Event::ExecAdded { process } => {
                assert!(!ended, "an exec is added to what has ended");
                told.execs.insert(process.exec_id().to_owned(), Told::default());
            }
            Event::ExecStarted { process, pid } => {
                assert!(!ended, "an exec starts after init's exit");
                let exec = told.execs.get_mut(process.exec_id()).unwrap();
                assert!(exec.started.is_none(), "started twice");
                exec.started = Some(*pid);
            }
            Event::Exited { process, pid, exit } => {
                assert!(!ended, "an exit after that of init");
                if *process == ProcessId::Init {
                    let running = told.execs.iter().find(|(_, e)| e.started.is_some() && e.exit.is_none());
                    assert!(running.is_none(), "init's exit before that of {:?}", running.map(|(id, _)| id));
                }
                let one = match process {
                    ProcessId::Init => &mut told.init,
                    ProcessId::Exec(id) => told.execs.get_mut(&id.0).unwrap(),
                };
                assert_eq!(one.started, Some(*pid), "the exit of {process} before its start");
                assert_eq!(exit.status.code(), pid % 256, "another process's exit");
                one.exit = Some(*exit);
            }
            Event::Deleted { exit, .. } => {
                if told.init.started.is_some() {
                    assert_eq!(told.init.exit, Some(*exit), "deleted before its exit was told");
                }
                told.deleted = true;
            }
            Event::Paused | Event::Resumed | Event::OutOfMemory => assert!(told.created && !ended),
            // It may have ended init, whose exit does not wait for that to be told.
            Event::Checkpointed(_) => assert!(told.init.started.is_some()),
        }
    }

    fn ask(&mut self, task_id: &str, exec_id: &str, verb: Verb) {
        self.last_stream += 1;
        self.answers.insert(self.last_stream, 0);
        let request = Request { asker: asker(self.last_stream), task: task(task_id), process: process(exec_id), verb };
        self.handle(Input::Request(request));
    }

    fn ask_sandbox(&mut self, id: TaskId, verb: SandboxVerb) {
        self.last_stream += 1;
        self.answers.insert(self.last_stream, 0);
        self.sandboxes.ask(&self.life, self.last_stream, id.clone(), verb);
        let request = SandboxRequest { asker: asker(self.last_stream), id, verb, at_unix_ns: 1 };
        self.handle(Input::Sandbox(request));
    }

    fn any_request_to_a_sandbox(&mut self) {
        let (id, verb) = sandboxes::any_request(&mut self.random);
        self.ask_sandbox(id, verb);
    }

    fn any_request(&mut self) {
        let task = TASKS[self.random.below(TASKS.len())];
        let exec = if self.random.chance(50) { EXECS[self.random.below(EXECS.len())] } else { "" };
        // Those that lead far are asked more often than others.
        let verb = match self.random.below(20) {
            0 => Verb::Create { shared_pids: self.random.chance(50), from_checkpoint: self.random.chance(30) },
            1..=3 => Verb::Start,
            4 => Verb::Kill { signal: 15, all: self.random.chance(50) },
            5 | 6 => Verb::Exec,
            7..=9 => Verb::Delete,
            10 => Verb::Wait,
            _ => VERBS[self.random.below(VERBS.len())].0,
        };
        let exec = if matches!(verb, Verb::Create { .. } | Verb::Connect | Verb::Shutdown) { "" } else { exec };
        self.ask(task, exec, verb);
    }

    fn any_death(&mut self) {
        if let Some(pid) = self.pick(self.alive.keys().copied().collect()) {
            self.dies(pid);
        }
    }

    /// Its code is made from its pid, so that no exit can be taken for another.
    fn dies(&mut self, pid: Pid) {
        if self.alive.remove(&pid).is_some() {
            self.handle(Input::Exited { pid, exit: exit(pid.cast_signed()) });
        }
    }

    fn any_outcome(&mut self, failures: usize) {
        if let Some(call) = self.pick(self.begun.keys().copied().collect()) {
            self.ends(call, failures);
        }
    }

    fn ends(&mut self, call: CallId, failures: usize) {
        let Begun { task, work, pid, asked } = self.begun.remove(&call).unwrap();
        let fails = self.random.chance(failures);
        if let Work::EndHolder { pid, .. } = work {
            // Its outcome is the limit, which comes in any case.
            if !fails {
                self.dies(pid);
            }
            return self.handle(Input::Done { call, outcome: Err(broken()) });
        }
        let outcome: Outcome = if fails { Err(broken()) } else { Ok(pid) };
        if work == Work::Unmount && !(fails && asked) {
            self.sandboxes.unmounted(&task);
        }
        // A call that fails leaves no process behind, and delete by force ends what there is.
        let by_force = matches!(work, Work::Delete { force: true } | Work::End(_)) && outcome.is_ok();
        let dead: Vec<Pid> = match (&outcome, pid) {
            (Err(_), Some(pid)) => vec![pid],
            _ if by_force => self.alive.iter().filter(|(_, (t, _))| *t == task).map(|(pid, _)| *pid).collect(),
            _ => Vec::new(),
        };
        // A holder that fails is ended before that is told.
        let sooner = self.random.chance(50) || work == Work::HoldNamespaces;
        if sooner {
            dead.iter().for_each(|pid| self.dies(*pid));
        }
        self.handle(Input::Done { call, outcome });
        dead.iter().for_each(|pid| self.dies(*pid));
    }

    fn any_lack_of_memory(&mut self) {
        let id = TASKS[self.random.below(TASKS.len())];
        self.handle(Input::OutOfMemory { task: task(id), victims: 1, at_unix_ns: 0 });
    }

    fn any_goodbye(&mut self) {
        if self.random.chance(90) {
            let stream = u32::try_from(self.random.below(self.last_stream as usize + 1)).unwrap();
            self.handle(Input::GaveUp(asker(stream)));
            return;
        }
        // All askers have the same connection; the waits among them are forgotten.
        self.forgotten.extend(self.answers.iter().filter(|(_, n)| **n == 0).map(|(stream, _)| *stream));
        self.sandboxes.hung_up();
        self.handle(Input::Disconnected(1));
    }

    fn pick<T: Copy>(&mut self, all: Vec<T>) -> Option<T> {
        (!all.is_empty()).then(|| all[self.random.below(all.len())])
    }

    /// Lets all work end well, all processes die, all tasks be deleted and the sandbox be shut down.
    fn wind_up(&mut self) {
        while !self.life.is_empty() || !self.begun.is_empty() || !self.alive.is_empty() {
            while let Some(call) = self.begun.keys().next().copied() {
                self.ends(call, 0);
            }
            while let Some(pid) = self.alive.keys().next().copied() {
                self.dies(pid);
            }
            let ids: Vec<TaskId> = self.life.ids().cloned().collect();
            for id in ids {
                self.ask(&id.0, "", Verb::Delete);
            }
            if let Some(id) = sandboxes::present(&self.life) {
                self.ask_sandbox(id, SandboxVerb::Shutdown);
            }
        }
    }
}

/// Whose change it is: of two changes of the same process one waits.
fn subject(work: &Work) -> ProcessId {
    match work {
        Work::ExecStart(process) | Work::Drain(process) => process.clone(),
        _ => ProcessId::Init,
    }
}

/// Whether work changes a process, and not only looks until something has come to pass.
fn changes(work: &Work) -> bool {
    !matches!(work, Work::Settle(_) | Work::End(_) | Work::EndHolder { .. })
}

fn task_of(effect: &Effect) -> Option<&TaskId> {
    match effect {
        Effect::Reply(..) | Effect::Signal { .. } | Effect::Stop => None,
        Effect::Adopt(_, task, _)
        | Effect::Begin { task, .. }
        | Effect::Publish(task, _)
        | Effect::Save(task)
        | Effect::Release(task, _)
        | Effect::Forget(task)
        | Effect::OutputEnds(task, _)
        | Effect::CountOomKills { task, .. }
        | Effect::Resize { task, .. }
        | Effect::CloseStdin(_, task, _)
        | Effect::Attach(_, task, _)
        | Effect::ReopenLogs(_, task)
        | Effect::ReadPids { task, .. }
        | Effect::ReadSandboxMetrics(_, task, _)
        | Effect::ReadStats(_, task) => Some(task),
    }
}

#[test]
fn no_course_of_events_breaks_a_rule() {
    let mut done = BTreeMap::new();
    for seed in 1..=40 {
        let mut machine = Machine::new(seed);
        for _ in 0..STEPS {
            match machine.random.below(100) {
                0..50 => machine.any_request(),
                50..60 => machine.any_request_to_a_sandbox(),
                60..85 => machine.any_outcome(15),
                85..95 => machine.any_death(),
                95..97 => machine.any_lack_of_memory(),
                _ => machine.any_goodbye(),
            }
        }
        machine.wind_up();
        let unanswered = machine.answers.iter().filter(|(s, n)| **n == 0 && !machine.forgotten.contains(*s));
        assert_eq!(unanswered.map(|(s, _)| *s).collect::<Vec<_>>(), [0; 0], "seed {seed}: never answered");
        let stops = machine.stopped;
        machine.ask(TASKS[0], "", Verb::Shutdown);
        assert_eq!(machine.stopped, stops + 1);
        for (verb, count) in machine.sandboxes.done {
            *done.entry(verb).or_insert(0) += count;
        }
    }
    // The courses do lead to each answer.
    let often = |verb: &str| done.get(verb).is_some_and(|count| *count > 100);
    let rare: Vec<_> =
        ["create", "start", "stop", "wait for", "shut down", "refuse"].into_iter().filter(|v| !often(v)).collect();
    assert_eq!(rare, [""; 0], "{done:?}");
}
