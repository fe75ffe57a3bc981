//! Every request in every state: what is answered, begun or refused, and nothing else (contract 3.2).
//!
//! A cell holds the words of the only effect of the request; `-`: nothing happens yet, the request waits.

use super::words::{INIT, Story};
use crate::lifecycle::Verb;

const INIT_TABLE: &str = "
           | unknown      | creating    | created               | starting    | running      | pausing     | paused       | resuming    | dying        | stopped
create     | (see below)  | task exists | task exists           | task exists | task exists  | task exists | task exists  | task exists | task exists  | task exists
start      | no task      | -           | begin start           | -           | wrong state  | -           | wrong state  | -           | wrong state  | wrong state
state      | no task      | no task     | created               | created     | running      | pausing     | paused       | paused      | running      | stopped
kill       | no task      | -           | begin kill 15         | -           | begin kill 15| -           | begin kill 15| -           | finished     | finished
kill all   | no task      | -           | begin kill all 15     | -           | begin kill all 15 | -      | begin kill all 15 | -      | finished     | finished
exec       | no task      | no task     | invalid               | invalid     | invalid      | invalid     | invalid      | invalid     | invalid      | invalid
delete     | no task      | -           | begin delete by force | -           | wrong state  | -           | wrong state  | -           | wrong state  | begin drain
wait       | no task      | no task     | -                     | -           | -            | -           | -            | -           | -            | exit 7
pids       | no task      | no task     | read pids [10]        | read pids [10] | read pids [10] | read pids [10] | read pids [10] | read pids [10] | read pids [10, 20] | pids [10]
pause      | no task      | -           | wrong state           | -           | begin pause  | -           | wrong state  | -           | wrong state  | wrong state
resume     | no task      | -           | wrong state           | -           | wrong state  | -           | begin resume | -           | wrong state  | wrong state
update     | no task      | -           | begin update          | -           | begin update | -           | begin update | -           | wrong state  | wrong state
checkpoint | no task      | unsupported | unsupported           | unsupported | unsupported  | unsupported | unsupported  | unsupported | unsupported  | unsupported
resize     | no task      | no task     | resize 80x25          | resize 80x25 | resize 80x25 | resize 80x25 | resize 80x25 | resize 80x25 | resize 80x25 | resize 80x25
stdin      | no task      | no task     | close stdin           | close stdin | close stdin  | close stdin | close stdin  | close stdin | close stdin  | close stdin
stats      | no task      | no task     | read stats            | read stats  | read stats   | read stats  | read stats   | read stats  | read stats   | read stats
connect    | connected 0  | connected 0 | connected 10          | connected 10 | connected 10 | connected 10 | connected 10 | connected 10 | connected 10 | connected 10
shutdown   | (see below)  | ok          | ok                    | ok          | ok           | ok          | ok           | ok          | ok           | ok
attach     | no task      | no task     | attach                | attach      | attach       | attach      | attach       | attach      | attach       | attach
logs       | no task      | no task     | reopen logs           | reopen logs | reopen logs  | reopen logs | reopen logs  | reopen logs | reopen logs  | reopen logs
";

const EXEC_TABLE: &str = "
           | no task | unknown    | created      | starting     | running      | frozen       | stopped     | deleting
start      | no task | no process | begin exec e | -            | wrong state  | wrong state  | wrong state | -
state      | no task | no process | created      | created      | running      | paused       | stopped     | stopped
kill       | no task | no process | not started  | -            | signal 20 15 | signal 20 15 | finished    | -
exec       | no task | (see below)| process exists | process exists | process exists | wrong state | process exists | process exists
delete     | no task | no process | begin drain e| -            | wrong state  | wrong state  | begin drain e | -
wait       | no task | no process | -            | -            | -            | -            | exit 5      | exit 5
resize     | no task | no process | resize 80x25 | resize 80x25 | resize 80x25 | resize 80x25 | wrong state | wrong state
stdin      | no task | no process | close stdin  | close stdin  | close stdin  | close stdin  | close stdin | close stdin
attach     | no task | no process | attach       | attach       | attach       | attach       | attach      | attach
pids       | no task | no process | invalid      | invalid      | invalid      | invalid      | invalid     | invalid
pause      | no task | no process | invalid      | invalid      | invalid      | invalid      | invalid     | invalid
resume     | no task | no process | invalid      | invalid      | invalid      | invalid      | invalid     | invalid
update     | no task | no process | invalid      | invalid      | invalid      | invalid      | invalid     | invalid
checkpoint | no task | no process | invalid      | invalid      | invalid      | invalid      | invalid     | invalid
stats      | no task | no process | invalid      | invalid      | invalid      | invalid      | invalid     | invalid
logs       | no task | no process | invalid      | invalid      | invalid      | invalid      | invalid     | invalid
";

/// May an exec be added, may one that was added before be started, by the state of init?
const EXEC_BY_INIT: &str = "
           | creating | created | starting | running | pausing     | paused      | resuming    | dying       | stopped
add        | no task  | added   | added    | added   | wrong state | wrong state | wrong state | wrong state | wrong state
start      | (none)   | begin exec e | begin exec e | begin exec e | wrong state | wrong state | wrong state | init exited | init exited
";

fn verb(name: &str) -> Verb {
    match name {
        "create" => Verb::Create { shared_pids: false },
        "start" => Verb::Start,
        "state" => Verb::State,
        "kill" => Verb::Kill { signal: 15, all: false },
        "kill all" => Verb::Kill { signal: 15, all: true },
        "exec" => Verb::Exec,
        "delete" => Verb::Delete,
        "wait" => Verb::Wait,
        "pids" => Verb::Pids,
        "pause" => Verb::Pause,
        "resume" => Verb::Resume,
        "update" => Verb::Update,
        "checkpoint" => Verb::Checkpoint,
        "resize" => Verb::ResizePty { width: 80, height: 25 },
        "stdin" => Verb::CloseStdin,
        "stats" => Verb::Stats,
        "connect" => Verb::Connect,
        "shutdown" => Verb::Shutdown,
        "attach" => Verb::Attach,
        "logs" => Verb::ReopenLogs,
        other => panic!("no verb {other:?}"),
    }
}

/// Calls `check(row, column, cell)` for each cell but those in parentheses, which have tests of their own.
fn each_cell(table: &str, mut check: impl FnMut(&str, &str, &str)) {
    let mut rows = table.lines().filter(|l| !l.trim().is_empty()).map(|l| l.split('|').map(str::trim));
    let columns: Vec<&str> = rows.next().unwrap().skip(1).collect();
    for mut row in rows {
        let name = row.next().unwrap();
        let cells: Vec<&str> = row.collect();
        assert_eq!(cells.len(), columns.len(), "the row {name:?}");
        for (column, cell) in columns.iter().zip(cells) {
            if !cell.starts_with('(') {
                check(name, column, cell);
            }
        }
    }
}

/// The words without the number of the asker, who is the last.
fn only(words: &[String]) -> String {
    match words {
        [] => "-".to_owned(),
        [word] => word.split_once(' ').filter(|(n, _)| n.starts_with('#')).map_or(word.clone(), |(_, w)| w.to_owned()),
        several => several.join(", "),
    }
}

fn init_in(state: &str) -> Story {
    let mut story;
    match state {
        "unknown" => story = Story::default(),
        "creating" => story = Story::creating(),
        "created" => story = Story::created(),
        "starting" => {
            story = Story::created();
            story.ask("", Verb::Start);
        }
        "running" => story = Story::running(),
        "pausing" => {
            story = Story::running();
            story.ask("", Verb::Pause);
        }
        "paused" => story = Story::paused(),
        "resuming" => {
            story = Story::paused();
            story.ask("", Verb::Resume);
        }
        // Init was reaped, and an exec runs on.
        "dying" => {
            story = Story::running().with_exec("x", 20);
            assert_eq!(story.exited(INIT, 7), [""; 0]);
        }
        "stopped" => story = Story::stopped(7),
        other => panic!("no state {other:?}"),
    }
    story
}

fn exec_in(state: &str) -> Story {
    let mut story = Story::running();
    match state {
        "no task" => return Story::default(),
        "unknown" => return story,
        "created" | "starting" => {
            story.ask("e", Verb::Exec);
            if state == "starting" {
                story.ask("e", Verb::Start);
            }
            return story;
        }
        _ => {}
    }
    let mut story = story.with_exec("e", 20);
    match state {
        "running" => {}
        "frozen" => {
            story.ask("", Verb::Pause);
            story.ok("pause");
        }
        "stopped" => {
            story.exited(20, 5);
        }
        "deleting" => {
            story.exited(20, 5);
            story.ask("e", Verb::Delete);
        }
        other => panic!("no state {other:?}"),
    }
    story
}

#[test]
fn every_request_to_init_in_every_state() {
    each_cell(INIT_TABLE, |request, state, expected| {
        assert_eq!(only(&init_in(state).ask("", verb(request))), expected, "{request} while {state}");
    });
}

#[test]
fn every_request_to_an_exec_in_every_state() {
    each_cell(EXEC_TABLE, |request, state, expected| {
        assert_eq!(only(&exec_in(state).ask("e", verb(request))), expected, "{request} while {state}");
    });
}

#[test]
fn execs_are_added_and_started_only_while_init_lives_and_is_not_frozen() {
    each_cell(EXEC_BY_INIT, |request, state, expected| {
        let mut story = init_in(state);
        let expected = match request {
            "add" if expected == "added" => {
                let words = story.ask("n", Verb::Exec).join(", ");
                assert!(words.ends_with("ok"), "{state}: {words}");
                return;
            }
            "add" => expected,
            _ => {
                story = exec_added_before(state);
                expected
            }
        };
        let verb = if request == "add" { Verb::Exec } else { Verb::Start };
        assert_eq!(only(&story.ask("e", verb)), expected, "{request} while init is {state}");
    });
}

/// As [`init_in`], with an exec `e` that was added while that was allowed.
fn exec_added_before(state: &str) -> Story {
    let mut story = Story::created();
    story.ask("e", Verb::Exec);
    if state == "created" {
        return story;
    }
    story.ask("", Verb::Start);
    if state == "starting" {
        return story;
    }
    story.ok("start");
    match state {
        "running" => {}
        "pausing" | "paused" | "resuming" => {
            story.ask("", Verb::Pause);
            if state != "pausing" {
                story.ok("pause");
            }
            if state == "resuming" {
                story.ask("", Verb::Resume);
            }
        }
        "dying" => {
            story = story.with_exec("x", 20);
            story.exited(INIT, 7);
        }
        "stopped" => {
            story.exited(INIT, 7);
        }
        other => panic!("no state {other:?}"),
    }
    story
}

#[test]
fn create_of_an_unknown_task_keeps_what_came_with_it_and_mounts_first() {
    let mut story = Story::default();
    let create = Verb::Create { shared_pids: false };
    assert_eq!(story.ask("", create), ["#1 adopt init", "#1 begin mount"]);
    assert_eq!(story.ok("mount"), ["#1 begin create"]);
    assert_eq!(story.done("create", Ok(Some(INIT))), ["save", "publish create 10", "#1 pid 10"]);
}

#[test]
fn an_exec_is_reserved_at_once_and_its_id_is_free_again_after_delete() {
    let mut story = Story::running();
    assert_eq!(story.ask("e", Verb::Exec), ["#3 adopt e", "save", "publish exec-added e", "#3 ok"]);
    assert_eq!(story.ask("e", Verb::Exec), ["#4 process exists"]);
    assert_eq!(story.ask("e", Verb::Delete), ["#5 begin drain e"]);
    assert_eq!(story.ask("e", Verb::Exec), ["#6 process exists"]);
    assert_eq!(story.ok("drain e"), ["release e", "save", "#5 deleted 0 0"]);
    assert_eq!(story.ask("e", Verb::Exec), ["#7 adopt e", "save", "publish exec-added e", "#7 ok"]);
}

#[test]
fn only_a_shim_without_tasks_ends_on_shutdown() {
    let mut story = Story::default();
    assert_eq!(story.ask("", Verb::Shutdown), ["#1 ok", "stop"]);
    // A task counts from the arrival of its Create, else a pod would lose its shim between two containers.
    let mut story = Story::default();
    story.ask("", Verb::Create { shared_pids: false });
    assert_eq!(story.ask("", Verb::Shutdown), ["#2 ok"]);
}
