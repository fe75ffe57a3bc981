//! Every request to a sandbox in every state, and what comes of it.

use super::table::{is_for, parse, print, spell};
use super::words::{Story, TASK, broken};
use crate::lifecycle::sandbox::SandboxState;
use crate::lifecycle::{Effect, Input, Outcome, Pid, SandboxVerb, Verb};

/// The only sandbox of most tests.
const POD: &str = "p";
/// The pid of its holder.
const HOLDER: Pid = 30;

const STOP: SandboxVerb = SandboxVerb::Stop { timeout_secs: 0 };
const STATUS: SandboxVerb = SandboxVerb::Status { verbose: false };
const TERM: &str = "end 30 by 15 in 2 s";
const KILL: &str = "end 30 by 9 in 5 s";

const VERBS: [(SandboxVerb, &str); 9] = [
    (SandboxVerb::Create, "create"),
    (SandboxVerb::Start, "start"),
    (SandboxVerb::Platform, "platform"),
    (STATUS, "status"),
    (SandboxVerb::Ping, "ping"),
    (SandboxVerb::Wait, "wait"),
    (SandboxVerb::Metrics, "metrics"),
    (STOP, "stop"),
    (SandboxVerb::Shutdown, "shutdown"),
];

/// As for tasks. `other`: there is one with another id. `lost`: the holder has ended by itself. `dropped`: never started,
/// and stopped. `leaving`: it is being shut down, and its holder has ended.
const SANDBOX: &str = "
            | unknown        | other             | creating           | created             | starting                       | running                   | stopping            | stopped                       | dropped                       | lost                          | leaving
create      | begin mount    | AE sandbox exists | AE sandbox exists  | AE sandbox exists   | AE sandbox exists              | AE sandbox exists         | AE sandbox exists   | AE sandbox exists             | AE sandbox exists             | AE sandbox exists             | AE sandbox exists
start       | FP wrong state | FP wrong state    | then begin hold    | begin hold          | then FP wrong state            | FP wrong state            | then FP wrong state | FP wrong state                | FP wrong state                | FP wrong state                | then FP wrong state
platform    | NF no sandbox  | NF no sandbox     | NF no sandbox      | platform            | platform                       | platform                  | platform            | platform                      | platform                      | platform                      | platform
status      | NF no sandbox  | NF no sandbox     | NF no sandbox      | not ready, pid 0    | not ready, pid 0               | ready, pid 30             | not ready, pid 30   | not ready, pid 0, exit 7 at 1 | not ready, pid 0, exit 0 at 2 | not ready, pid 0, exit 7 at 1 | not ready, pid 0, exit 0 at 1
ping        | NF no sandbox  | NF no sandbox     | NF no sandbox      | ok                  | ok                             | ok                        | ok                  | FP wrong state                | FP wrong state                | FP wrong state                | FP wrong state
wait        | NF no sandbox  | NF no sandbox     | NF no sandbox      | waits               | waits                          | waits                     | then exit 7         | exit 7                        | exit 0                        | exit 7                        | exit 0
metrics     | NF no sandbox  | NF no sandbox     | NF no sandbox      | FP wrong state      | FP wrong state                 | read metrics 30           | read metrics 30     | FP wrong state                | FP wrong state                | FP wrong state                | FP wrong state
stop        | NF no sandbox  | NF no sandbox     | then ok            | save, ok            | then begin end 30 by 15 in 2 s | begin end 30 by 15 in 2 s | then ok             | ok                            | ok                            | ok                            | then NF no sandbox
shutdown    | stop, ok       | NF no sandbox     | then begin unmount | save, begin unmount | then begin end 30 by 15 in 2 s | begin end 30 by 15 in 2 s | then begin unmount  | begin unmount                 | begin unmount                 | begin unmount                 | then ok
";

struct Way {
    story: Story,
    ends: Vec<(&'static str, Outcome)>,
}

fn asked(mut story: Story, verb: SandboxVerb) -> Story {
    story.ask_sandbox(POD, verb);
    story
}

fn done(mut story: Story, name: &str, outcome: Outcome) -> Story {
    story.done(name, outcome);
    story
}

fn exited(mut story: Story, code: i32) -> Story {
    story.exited(HOLDER, code);
    story
}

fn creating() -> Story {
    asked(Story::default(), SandboxVerb::Create)
}

fn created() -> Story {
    done(creating(), "mount", Ok(None))
}

fn starting() -> Story {
    asked(created(), SandboxVerb::Start)
}

fn running() -> Story {
    done(starting(), "hold", Ok(Some(HOLDER)))
}

fn stopping() -> Story {
    asked(running(), STOP)
}

fn leaving() -> Story {
    exited(asked(running(), SandboxVerb::Shutdown), 0)
}

const COLUMNS: [&str; 11] = [
    "unknown", "other", "creating", "created", "starting", "running", "stopping", "stopped", "dropped", "lost",
    "leaving",
];

fn state_of(column: &str) -> Option<SandboxState> {
    match column {
        "creating" => Some(SandboxState::Creating),
        "created" | "other" => Some(SandboxState::Created),
        "starting" => Some(SandboxState::Starting),
        "running" => Some(SandboxState::Running),
        "stopping" => Some(SandboxState::Stopping),
        "stopped" | "dropped" | "lost" => Some(SandboxState::Stopped),
        "leaving" => Some(SandboxState::Leaving),
        _ => None,
    }
}

/// All ways into a column; `exit` stands for the holder's.
fn ways(column: &str) -> Vec<Way> {
    let at = |story| Way { story, ends: Vec::new() };
    let then = |story, ends| Way { story, ends };
    match column {
        "unknown" => {
            let undone = done(done(creating(), "mount", Err(broken())), "unmount", Ok(None));
            vec![at(Story::default()), at(undone), at(done(leaving(), "unmount", Ok(None)))]
        }
        "other" => {
            let mut story = Story::default();
            story.ask_sandbox("q", SandboxVerb::Create);
            vec![at(done(story, "mount", Ok(None)))]
        }
        "creating" => vec![then(creating(), vec![("mount", Ok(None))])],
        "created" => vec![at(created()), at(done(starting(), "hold", Err(broken())))],
        "starting" => vec![then(starting(), vec![("hold", Ok(Some(HOLDER)))])],
        "running" => {
            let immortal = done(done(stopping(), TERM, Err(broken())), KILL, Err(broken()));
            vec![at(running()), at(immortal)]
        }
        "stopping" => vec![
            then(stopping(), vec![("exit", Ok(None))]),
            then(done(stopping(), TERM, Err(broken())), vec![("exit", Ok(None))]),
        ],
        "stopped" => vec![at(exited(stopping(), 7)), at(done(exited(stopping(), 7), TERM, Err(broken())))],
        "dropped" => vec![at(asked(created(), STOP))],
        "lost" => {
            let at_once = exited(starting(), 7);
            vec![at(exited(running(), 7)), at(done(at_once, "hold", Ok(Some(HOLDER))))]
        }
        "leaving" => vec![then(leaving(), vec![("unmount", Ok(None))])],
        other => panic!("no column {other:?}"),
    }
}

impl Way {
    fn cell(mut self, verb: SandboxVerb) -> String {
        self.story.ask_sandbox(POD, verb);
        let asker = self.story.last_stream;
        if !self.story.told.is_empty() {
            return spell(&self.story.told, asker);
        }
        for (name, outcome) in self.ends {
            match name {
                "exit" => self.story.exited(HOLDER, 7),
                _ => self.story.done(name, outcome),
            };
            let ours: Vec<Effect> = self.story.told.iter().filter(|e| is_for(e, asker)).cloned().collect();
            if !ours.is_empty() {
                return format!("then {}", spell(&ours, asker));
            }
        }
        "waits".to_owned()
    }
}

#[test]
fn every_request_in_every_state() {
    let cell = |column: &str, verb| {
        let mut cells: Vec<String> = ways(column).into_iter().map(|way| way.cell(verb)).collect();
        cells.dedup();
        cells.join(" / ")
    };
    let happens: Vec<(String, Vec<String>)> = VERBS
        .iter()
        .map(|(verb, row)| (row.to_string(), COLUMNS.iter().map(|column| cell(column, *verb)).collect()))
        .collect();
    let (columns, written) = parse(SANDBOX);
    let written: Vec<(String, Vec<String>)> = written
        .into_iter()
        .map(|(row, cells)| (row.to_owned(), cells.iter().map(|c| c.to_string()).collect()))
        .collect();
    let same = columns == COLUMNS && written == happens;
    assert!(same, "the table should be, if this is what is wanted:\n{}", print(&COLUMNS, &happens));
}

#[test]
fn each_way_leads_where_it_says_and_every_verb_has_a_row() {
    for column in COLUMNS {
        for way in ways(column) {
            assert_eq!(way.story.life.sandbox_state(), state_of(column), "{column}");
        }
    }
    for (verb, row) in VERBS {
        // One that is not in the list does not compile until it is.
        let named = match verb {
            SandboxVerb::Create => "create",
            SandboxVerb::Start => "start",
            SandboxVerb::Platform => "platform",
            SandboxVerb::Stop { .. } => "stop",
            SandboxVerb::Wait => "wait",
            SandboxVerb::Status { .. } => "status",
            SandboxVerb::Ping => "ping",
            SandboxVerb::Shutdown => "shutdown",
            SandboxVerb::Metrics => "metrics",
        };
        assert_eq!(row, named);
    }
}

#[test]
fn a_whole_life() {
    let mut story = Story::default();
    assert_eq!(story.ask_sandbox(POD, SandboxVerb::Create), ["#1 adopt init", "#1 begin mount"]);
    assert_eq!(story.ok("mount"), ["save", "#1 ok"]);
    assert_eq!(story.ask_sandbox(POD, SandboxVerb::Start), ["#2 begin hold"]);
    assert_eq!(story.done("hold", Ok(Some(HOLDER))), ["save", "#2 started 30"]);
    assert!(story.ask_sandbox(POD, SandboxVerb::Wait).is_empty());
    let timeout = SandboxVerb::Stop { timeout_secs: 9 };
    assert_eq!(story.ask_sandbox(POD, timeout), ["#4 begin end 30 by 15 in 9 s"]);
    assert!(story.ask_sandbox(POD, STOP).is_empty(), "another one waits for its turn");
    assert_eq!(story.exited(HOLDER, 0), ["save", "#3 exit 0", "#4 ok", "#5 ok"]);
    assert!(story.life.has_ended() || !story.in_flight().is_empty());
    assert_eq!(story.ask_sandbox(POD, STATUS), ["#6 not ready, pid 0, exit 0 at 1"]);
    assert_eq!(story.ask_sandbox(POD, SandboxVerb::Shutdown), ["#7 begin unmount"]);
    assert_eq!(story.ok("unmount"), ["forget", "stop", "#7 ok"]);
    assert!(story.life.is_empty());
}

#[test]
fn one_that_does_not_end_in_time_is_killed_and_one_that_does_not_end_then_is_told_of() {
    let mut story = running();
    story.ask_sandbox(POD, SandboxVerb::Wait);
    assert_eq!(story.ask_sandbox(POD, STOP), [format!("#4 begin {TERM}")]);
    assert_eq!(story.done(TERM, Err(broken())), [format!("#4 begin {KILL}")]);
    assert_eq!(story.done(KILL, Err(broken())), ["#4 failed: broken"]);
    assert_eq!(story.ask_sandbox(POD, STATUS), ["#5 ready, pid 30"], "it holds on");
    assert_eq!(story.ask_sandbox(POD, SandboxVerb::Shutdown), [format!("#6 begin {TERM}")]);
    assert_eq!(story.exited(HOLDER, 0), ["save", "#3 exit 0", "#6 begin unmount"]);
}

#[test]
fn what_ended_before_it_was_known_has_been_started_first() {
    let mut story = starting();
    assert!(story.exited(HOLDER, 7).is_empty());
    assert_eq!(story.done("hold", Ok(Some(HOLDER))), ["save", "#2 started 30", "save"]);
    assert_eq!(story.ask_sandbox(POD, SandboxVerb::Wait), ["#3 exit 7"]);
}

#[test]
fn a_creation_that_fails_leaves_nothing_and_what_waited_is_answered() {
    let mut story = creating();
    story.ask_sandbox(POD, SandboxVerb::Start);
    story.ask_sandbox(POD, SandboxVerb::Shutdown);
    assert_eq!(story.done("mount", Err(broken())), ["errand begin unmount"]);
    assert_eq!(story.ok("unmount"), ["forget", "#1 failed: broken", "#2 wrong state", "stop", "#3 ok"]);
}

#[test]
fn mounts_that_stay_keep_the_sandbox() {
    let mut story = leaving();
    assert_eq!(story.done("unmount", Err(broken())), ["#3 failed: broken"]);
    assert_eq!(story.ask_sandbox(POD, SandboxVerb::Shutdown), ["#4 begin unmount"]);
    assert_eq!(story.ok("unmount"), ["forget", "stop", "#4 ok"]);
}

#[test]
fn a_shim_with_a_sandbox_does_not_end_with_its_tasks() {
    let mut story = running();
    assert_eq!(story.ask("", Verb::Shutdown), ["#3 ok"], "containerd asks that after each task of a pod");
    story.ask("", Verb::Create { shared_pids: false, from_checkpoint: false });
    story.ok("mount");
    story.done("create", Err(broken()));
    story.ok("delete by force");
    assert!(!story.ok("sweep").contains(&"stop".to_owned()));
}

#[test]
fn a_shim_with_tasks_does_not_end_with_its_sandbox_but_with_them() {
    let mut story = running();
    story.ask("", Verb::Create { shared_pids: false, from_checkpoint: false });
    story.ok("mount");
    story.done("create", Ok(Some(10)));
    story.ask_sandbox(POD, SandboxVerb::Shutdown);
    story.exited(HOLDER, 0);
    assert_eq!(story.ok("unmount"), ["forget", "#4 ok"]);
    story.exited(10, 0);
    story.ask("", Verb::Delete);
    story.ok("drain");
    story.ok("delete");
    assert!(story.ok("unmount").ends_with(&["stop".to_owned()]));
}

#[test]
fn a_task_and_a_sandbox_cannot_have_the_same_id() {
    let mut story = Story::created();
    assert_eq!(story.ask_sandbox(TASK, SandboxVerb::Create), ["#2 task exists"]);
    let mut story = Story::default();
    story.ask_sandbox(TASK, SandboxVerb::Create);
    assert_eq!(story.ask("", Verb::Create { shared_pids: false, from_checkpoint: false }), ["#2 sandbox exists"]);
}

#[test]
fn who_waits_no_longer_is_not_answered() {
    for gone in [Input::Disconnected(1), Input::GaveUp(super::words::asker(3))] {
        let mut story = running();
        story.ask_sandbox(POD, SandboxVerb::Wait);
        let told = story.handle(gone.clone());
        let late = matches!(gone, Input::GaveUp(_));
        assert_eq!(told, if late { vec!["#3 late"] } else { Vec::new() });
        assert_eq!(story.exited(HOLDER, 0), ["save"]);
    }
}
