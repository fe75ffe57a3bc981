//! Every request in every state: what is answered, begun or refused, and nothing else (contract 3.1 and 3.2).
//!
//! The lists below hold every verb and every state; a new one does not compile until it is in them, and fails until it
//! has its cells. A column may be reached in several ways, which all give the same cell, or else are told apart by a
//! slash. What a cell says:
//!
//! - `begin X`: this work is begun; the answer comes with its outcome.
//! - `then X`: nothing yet; when the call that is under way has ended well, X.
//! - `waits`: nothing until the process ends.
//! - two capitals and a reason: refused, with the code that the client sees, see [`CODES`].
//! - else the answer, or what the driver does at once to give one.

use ttrpc::proto::Code;

use super::words::{FROM_CHECKPOINT, INIT, Story, TASK, broken, process, refusal_word, task, word};
use crate::lifecycle::exec::ExecState;
use crate::lifecycle::init::{InitState, Op};
use crate::lifecycle::{Effect, Outcome, Pid, ProcessId, Verb};
use crate::wire;

const CODES: [(&str, Code); 5] = [
    ("NF", Code::NOT_FOUND),
    ("AE", Code::ALREADY_EXISTS),
    ("FP", Code::FAILED_PRECONDITION),
    ("IA", Code::INVALID_ARGUMENT),
    ("UI", Code::UNIMPLEMENTED),
];

/// Init, until it runs. `failing`: its creation failed and is being undone. `dead`: it was reaped before its start
/// returned. `undone`: created, never started, and being deleted.
const INIT_UNTIL_IT_RUNS: &str = "
            | unknown     | creating               | failing         | created               | starting               | dead                | undone
create      | begin mount | AE task exists         | AE task exists  | AE task exists        | AE task exists         | AE task exists      | AE task exists
start       | NF no task  | then begin start       | then NF no task | begin start           | then FP wrong state    | then FP wrong state | then NF no task
state       | NF no task  | NF no task             | NF no task      | created               | created                | created             | created
kill        | NF no task  | then begin kill 15     | then NF no task | begin kill 15         | then begin kill 15     | then NF finished    | then NF no task
kill all    | NF no task  | then begin kill all 15 | then NF no task | begin kill all 15     | then begin kill all 15 | then NF finished    | then NF no task
exec        | NF no task  | NF no task             | NF no task      | IA invalid            | IA invalid             | IA invalid          | IA invalid
delete      | NF no task  | NF no task             | NF no task      | begin delete by force | then FP wrong state    | then FP wrong state | then NF no task
wait        | NF no task  | NF no task             | NF no task      | waits                 | waits                  | then exit 7         | then exit 7
pids        | NF no task  | NF no task             | NF no task      | read pids             | read pids              | read pids           | read pids
pause       | NF no task  | then FP wrong state    | then NF no task | FP wrong state        | then begin pause       | then FP wrong state | then NF no task
resume      | NF no task  | then FP wrong state    | then NF no task | FP wrong state        | then FP wrong state    | then FP wrong state | then NF no task
update      | NF no task  | then begin update      | then NF no task | begin update          | then begin update      | then FP wrong state | then NF no task
checkpoint  | NF no task  | then FP wrong state    | then NF no task | FP wrong state        | then begin checkpoint  | then FP wrong state | then NF no task
resize      | NF no task  | NF no task             | NF no task      | resize 80x25          | resize 80x25           | resize 80x25        | resize 80x25
close stdin | NF no task  | NF no task             | NF no task      | close stdin           | close stdin            | close stdin         | close stdin
stats       | NF no task  | NF no task             | NF no task      | read stats            | read stats             | read stats          | read stats
connect     | connected 0 | connected 0            | connected 0     | connected 10          | connected 10           | connected 10        | connected 10
shutdown    | stop, ok    | ok                     | ok              | ok                    | ok                     | ok                  | ok
attach      | NF no task  | NF no task             | NF no task      | attach                | attach                 | attach              | attach
reopen logs | NF no task  | NF no task             | NF no task      | reopen logs           | reopen logs            | reopen logs         | reopen logs
";

/// Init, from then on. `busy`: a call that does not change its state is under way. `dying`: it was reaped, and its exit
/// waits for an exec or a reader.
const INIT_FROM_THEN_ON: &str = "
            | running           | busy                   | pausing                | paused            | resuming               | dying                                                   | stopped                           | deleting
create      | AE task exists    | AE task exists         | AE task exists         | AE task exists    | AE task exists         | AE task exists                                          | AE task exists                    | AE task exists
start       | FP wrong state    | then FP wrong state    | then FP wrong state    | FP wrong state    | then FP wrong state    | FP wrong state                                          | FP wrong state                    | then NF no task
state       | running           | running                | pausing                | paused            | paused                 | running / created / paused                              | stopped                           | stopped
kill        | begin kill 15     | then begin kill 15     | then begin kill 15     | begin kill 15     | then begin kill 15     | NF finished                                             | NF finished                       | NF finished
kill all    | begin kill all 15 | then begin kill all 15 | then begin kill all 15 | begin kill all 15 | then begin kill all 15 | NF finished                                             | NF finished                       | NF finished
exec        | IA invalid        | IA invalid             | IA invalid             | IA invalid        | IA invalid             | IA invalid                                              | IA invalid                        | IA invalid
delete      | FP wrong state    | then FP wrong state    | then FP wrong state    | FP wrong state    | then FP wrong state    | FP wrong state / begin delete by force / FP wrong state | begin drain / waits / begin drain | then NF no task
wait        | waits             | waits                  | waits                  | waits             | waits                  | waits                                                   | exit 7                            | exit 7
pids        | read pids         | read pids              | read pids              | read pids         | read pids              | read pids                                               | pids [10]                         | pids [10]
pause       | begin pause       | then begin pause       | then FP wrong state    | FP wrong state    | then begin pause       | FP wrong state                                          | FP wrong state                    | then NF no task
resume      | FP wrong state    | then FP wrong state    | then begin resume      | begin resume      | then FP wrong state    | FP wrong state                                          | FP wrong state                    | then NF no task
update      | begin update      | then begin update      | then begin update      | begin update      | then begin update      | FP wrong state                                          | FP wrong state                    | then NF no task
checkpoint  | begin checkpoint  | then begin checkpoint  | then begin checkpoint  | begin checkpoint  | then begin checkpoint  | FP wrong state                                          | FP wrong state                    | then NF no task
resize      | resize 80x25      | resize 80x25           | resize 80x25           | resize 80x25      | resize 80x25           | resize 80x25                                            | resize 80x25                      | resize 80x25
close stdin | close stdin       | close stdin            | close stdin            | close stdin       | close stdin            | close stdin                                             | close stdin                       | close stdin
stats       | read stats        | read stats             | read stats             | read stats        | read stats             | read stats                                              | read stats                        | read stats
connect     | connected 10      | connected 10           | connected 10           | connected 10      | connected 10           | connected 10                                            | connected 10                      | connected 10
shutdown    | ok                | ok                     | ok                     | ok                | ok                     | ok                                                      | ok                                | ok
attach      | attach            | attach                 | attach                 | attach            | attach                 | attach                                                  | attach                            | attach
reopen logs | reopen logs       | reopen logs            | reopen logs            | reopen logs       | reopen logs            | reopen logs                                             | reopen logs                       | reopen logs
";

/// Init, when it comes from a checkpoint, until it is restored. `mounting`: it is being created. `unrestoring`: the restore
/// failed and is being undone. `dropped`: never restored, and being deleted.
const INIT_FROM_A_CHECKPOINT: &str = "
            | mounting               | mounted           | restoring              | unrestoring            | dropped
create      | AE task exists         | AE task exists    | AE task exists         | AE task exists         | AE task exists
start       | then begin restore     | begin restore     | then FP wrong state    | then begin restore     | then NF no task
state       | NF no task             | created           | created                | created                | created
kill        | then begin kill 15     | begin kill 15     | then begin kill 15     | then begin kill 15     | then NF no task
kill all    | then begin kill all 15 | begin kill all 15 | then begin kill all 15 | then begin kill all 15 | then NF no task
exec        | NF no task             | IA invalid        | IA invalid             | IA invalid             | IA invalid
delete      | NF no task             | begin unmount     | then FP wrong state    | then begin unmount     | then NF no task
wait        | NF no task             | waits             | waits                  | waits                  | then NF no task
pids        | NF no task             | read pids         | read pids              | read pids              | read pids
pause       | then FP wrong state    | FP wrong state    | then begin pause       | then FP wrong state    | then NF no task
resume      | then FP wrong state    | FP wrong state    | then FP wrong state    | then FP wrong state    | then NF no task
update      | then begin update      | begin update      | then begin update      | then begin update      | then NF no task
checkpoint  | then FP wrong state    | FP wrong state    | then begin checkpoint  | then FP wrong state    | then NF no task
resize      | NF no task             | resize 80x25      | resize 80x25           | resize 80x25           | resize 80x25
close stdin | NF no task             | close stdin       | close stdin            | close stdin            | close stdin
stats       | NF no task             | read stats        | read stats             | read stats             | read stats
connect     | connected 0            | connected 0       | connected 0            | connected 0            | connected 0
shutdown    | ok                     | ok                | ok                     | ok                     | ok
attach      | NF no task             | attach            | attach                 | attach                 | attach
reopen logs | NF no task             | reopen logs       | reopen logs            | reopen logs            | reopen logs
";

/// An exec of a running init. `frozen`: init is paused. `dying`: it was reaped, and its exit waits for a reader.
const EXEC: &str = "
            | no task    | unknown       | created           | starting            | running           | frozen         | dying             | stopped           | deleting           | undone
start       | NF no task | NF no process | begin exec e      | then FP wrong state | FP wrong state    | FP wrong state | FP wrong state    | FP wrong state    | then NF no process | then NF no process
state       | NF no task | NF no process | created           | created             | running           | paused         | running           | stopped           | stopped            | created
kill        | NF no task | NF no process | FP not started    | then signal 20 15   | signal 20 15      | signal 20 15   | NF finished       | NF finished       | NF finished        | then NF no process
kill all    | NF no task | NF no process | FP not started    | then signal 20 15   | signal 20 15      | signal 20 15   | NF finished       | NF finished       | NF finished        | then NF no process
exec        | NF no task | added         | AE process exists | AE process exists   | AE process exists | FP wrong state | AE process exists | AE process exists | AE process exists  | AE process exists
delete      | NF no task | NF no process | begin drain e     | then FP wrong state | FP wrong state    | FP wrong state | FP wrong state    | begin drain e     | then NF no process | then NF no process
wait        | NF no task | NF no process | waits             | waits               | waits             | waits          | then exit 5       | exit 5            | exit 5             | then NF no process
pids        | NF no task | NF no process | IA invalid        | IA invalid          | IA invalid        | IA invalid     | IA invalid        | IA invalid        | IA invalid         | IA invalid
pause       | NF no task | NF no process | IA invalid        | IA invalid          | IA invalid        | IA invalid     | IA invalid        | IA invalid        | IA invalid         | IA invalid
resume      | NF no task | NF no process | IA invalid        | IA invalid          | IA invalid        | IA invalid     | IA invalid        | IA invalid        | IA invalid         | IA invalid
update      | NF no task | NF no process | IA invalid        | IA invalid          | IA invalid        | IA invalid     | IA invalid        | IA invalid        | IA invalid         | IA invalid
checkpoint  | NF no task | NF no process | IA invalid        | IA invalid          | IA invalid        | IA invalid     | IA invalid        | IA invalid        | IA invalid         | IA invalid
resize      | NF no task | NF no process | resize 80x25      | resize 80x25        | resize 80x25      | resize 80x25   | resize 80x25      | FP wrong state    | FP wrong state     | resize 80x25
close stdin | NF no task | NF no process | close stdin       | close stdin         | close stdin       | close stdin    | close stdin       | close stdin       | close stdin        | close stdin
stats       | NF no task | NF no process | IA invalid        | IA invalid          | IA invalid        | IA invalid     | IA invalid        | IA invalid        | IA invalid         | IA invalid
attach      | NF no task | NF no process | attach            | attach              | attach            | attach         | attach            | attach            | attach             | attach
reopen logs | NF no task | NF no process | IA invalid        | IA invalid          | IA invalid        | IA invalid     | IA invalid        | IA invalid        | IA invalid         | IA invalid
";

/// May an exec be added, may one that was added before be started, by the state of init?
const EXEC_BY_INIT: &str = "
            | unknown    | creating   | failing    | created      | starting     | dead           | undone         | mounting   | mounted        | restoring      | unrestoring    | dropped        | running      | busy         | pausing        | paused         | resuming       | dying          | stopped        | deleting
add         | NF no task | NF no task | NF no task | added        | added        | FP wrong state | FP wrong state | NF no task | FP wrong state | FP wrong state | FP wrong state | FP wrong state | added        | added        | FP wrong state | FP wrong state | FP wrong state | FP wrong state | FP wrong state | FP wrong state
start       |            |            |            | begin exec e | begin exec e | FP init exited | FP wrong state |            |                |                |                |                | begin exec e | begin exec e | FP wrong state | FP wrong state | FP wrong state | FP init exited | FP init exited | FP init exited
";

/// A list of all, and the match that makes sure of it.
macro_rules! all {
    ($(#[$doc:meta])* $all:ident, $of:ident: $type:ty => $out:ty { $($pattern:pat, $value:expr => $what:expr;)+ }) => {
        pub(super) const $all: &[($type, $out)] = &[$(($value, $what)),+];
        $(#[$doc])*
        fn $of(one: $type) -> $out {
            match one { $($pattern => $what),+ }
        }
    };
}

all! {
    /// The row of a verb.
    VERBS, row_of: Verb => &'static str {
        Verb::Create { .. }, Verb::Create { shared_pids: false, from_checkpoint: false } => "create";
        Verb::Start, Verb::Start => "start";
        Verb::State, Verb::State => "state";
        Verb::Kill { .. }, Verb::Kill { signal: 15, all: false } => "kill";
        Verb::Exec, Verb::Exec => "exec";
        Verb::Delete, Verb::Delete => "delete";
        Verb::Wait, Verb::Wait => "wait";
        Verb::Pids, Verb::Pids => "pids";
        Verb::Pause, Verb::Pause => "pause";
        Verb::Resume, Verb::Resume => "resume";
        Verb::Update, Verb::Update => "update";
        Verb::Checkpoint, Verb::Checkpoint => "checkpoint";
        Verb::ResizePty { .. }, Verb::ResizePty { width: 80, height: 25 } => "resize";
        Verb::CloseStdin, Verb::CloseStdin => "close stdin";
        Verb::Stats, Verb::Stats => "stats";
        Verb::Connect, Verb::Connect => "connect";
        Verb::Shutdown, Verb::Shutdown => "shutdown";
        Verb::Attach, Verb::Attach => "attach";
        Verb::ReopenLogs, Verb::ReopenLogs => "reopen logs";
    }
}

all! {
    /// The columns in which init can be in a state.
    INIT_STATES, columns_of_init: InitState => &'static [&'static str] {
        InitState::Creating, InitState::Creating => &["creating", "failing", "mounting"];
        InitState::Created, InitState::Created => &["created", "undone", "dying"];
        InitState::FromCheckpoint, InitState::FromCheckpoint => &["mounted", "dropped"];
        InitState::Restoring, InitState::Restoring => &["restoring", "unrestoring"];
        InitState::Starting, InitState::Starting => &["starting", "dead"];
        InitState::Running, InitState::Running => &["running", "busy", "dying"];
        InitState::Pausing, InitState::Pausing => &["pausing"];
        InitState::Paused, InitState::Paused => &["paused", "resuming", "dying"];
        InitState::Stopped, InitState::Stopped => &["stopped", "deleting"];
    }
}

all! {
    /// The columns in which an exec can be in a state.
    EXEC_STATES, columns_of_exec: ExecState => &'static [&'static str] {
        ExecState::Created, ExecState::Created => &["created", "undone"];
        ExecState::Starting, ExecState::Starting => &["starting"];
        ExecState::Running, ExecState::Running => &["running", "frozen", "dying"];
        ExecState::Stopped, ExecState::Stopped => &["stopped", "deleting"];
    }
}

/// The columns in which an operation can be under way.
fn columns_during(op: &Op) -> &'static [&'static str] {
    match op {
        Op::Create(_) => &["creating", "failing", "mounting"],
        Op::Start(None) => &["starting"],
        Op::Start(Some(_)) => &["dead"],
        Op::Restore(_) => &["restoring", "unrestoring"],
        Op::Kill | Op::Update | Op::Checkpoint => &["busy"],
        Op::Pause => &["pausing"],
        Op::Resume => &["resuming"],
        Op::Delete(_) => &["undone", "dropped", "deleting"],
    }
}

/// One way into a column, and how the call that is under way there ends well.
struct Way {
    story: Story,
    ends: Vec<End>,
}

enum End {
    Done(&'static str, Outcome),
    Exit(Pid),
}

fn at(story: Story) -> Way {
    Way { story, ends: Vec::new() }
}

impl Way {
    fn ends(mut self, name: &'static str) -> Self {
        self.ends.push(End::Done(name, Ok(None)));
        self
    }

    fn makes(mut self, name: &'static str, pid: Pid) -> Self {
        self.ends.push(End::Done(name, Ok(Some(pid))));
        self
    }

    fn exits(mut self, pid: Pid) -> Self {
        self.ends.push(End::Exit(pid));
        self
    }

    /// What comes of a request: a cell's text.
    fn cell(mut self, exec_id: &str, verb: Verb) -> String {
        self.story.ask(exec_id, verb);
        let asker = self.story.last_stream;
        if !self.story.told.is_empty() {
            return spell(&self.story.told, asker);
        }
        for end in self.ends {
            match end {
                End::Done(name, outcome) => self.story.done(name, outcome),
                End::Exit(pid) => self.story.exited(pid, 7),
            };
            let ours: Vec<Effect> = self.story.told.iter().filter(|e| is_for(e, asker)).cloned().collect();
            if !ours.is_empty() {
                return format!("then {}", spell(&ours, asker));
            }
        }
        "waits".to_owned()
    }
}

pub(super) fn is_for(effect: &Effect, asker: u32) -> bool {
    word(effect).starts_with(&format!("#{asker} "))
}

/// The effects of a request in words. Whoever else is told something does not belong into a cell, so it is spelled too.
pub(super) fn spell(effects: &[Effect], asker: u32) -> String {
    let spelled: Vec<String> = effects
        .iter()
        .map(|effect| match effect {
            Effect::Reply(_, Err(refusal)) => {
                let code = wire::refusal_error(refusal).0;
                let short = CODES.iter().find(|(_, c)| *c == code).map_or("??", |(short, _)| short);
                format!("{short} {}", refusal_word(refusal))
            }
            Effect::ReadPids { .. } => "read pids".to_owned(),
            _ => {
                let word = word(effect);
                word.strip_prefix(&format!("#{asker} ")).map_or(word.clone(), str::to_owned)
            }
        })
        .collect();
    match spelled.join(", ").as_str() {
        // What is kept, saved and told with it has a test of its own.
        "adopt e, save, publish exec-added e, ok" => "added".to_owned(),
        "adopt init, begin mount" => "begin mount".to_owned(),
        other => other.to_owned(),
    }
}

fn asked(mut story: Story, exec_id: &str, verb: Verb) -> Story {
    story.ask(exec_id, verb);
    story
}

fn done(mut story: Story, name: &str, outcome: Outcome) -> Story {
    story.done(name, outcome);
    story
}

fn exited(mut story: Story, pid: Pid, code: i32) -> Story {
    story.exited(pid, code);
    story
}

const KILL: Verb = Verb::Kill { signal: 15, all: false };

fn mounting() -> Story {
    asked(Story::default(), "", Verb::Create { shared_pids: false, from_checkpoint: false })
}

fn unmounting() -> Story {
    done(mounting(), "mount", Err(broken()))
}

fn deleting() -> Story {
    asked(Story::stopped(7), "", Verb::Delete)
}

/// All ways for init to be in a column.
fn init_in(column: &str) -> Vec<Way> {
    let created = Story::created;
    match column {
        "unknown" => {
            let deleted = done(done(done(deleting(), "drain", Ok(None)), "delete", Ok(None)), "unmount", Ok(None));
            vec![at(Story::default()), at(deleted), at(done(unmounting(), "unmount", Ok(None)))]
        }
        "creating" => {
            vec![at(mounting()).ends("mount").makes("create", INIT), at(Story::creating()).makes("create", INIT)]
        }
        "failing" => {
            let failed = || done(Story::creating(), "create", Err(broken()));
            vec![
                at(unmounting()).ends("unmount"),
                at(failed()).ends("delete by force").ends("sweep").ends("unmount"),
                at(done(failed(), "delete by force", Ok(None))).ends("sweep").ends("unmount"),
            ]
        }
        "mounting" => vec![at(asked(Story::default(), "", FROM_CHECKPOINT)).ends("mount")],
        "mounted" => {
            let failed = done(done(Story::restoring(), "restore", Err(broken())), "delete by force", Ok(None));
            vec![at(Story::from_checkpoint()), at(failed)]
        }
        "restoring" => vec![at(Story::restoring()).makes("restore", INIT)],
        "unrestoring" => vec![at(done(Story::restoring(), "restore", Err(broken()))).ends("delete by force")],
        "dropped" => vec![at(asked(Story::from_checkpoint(), "", Verb::Delete)).ends("unmount")],
        "created" => {
            let failed = done(asked(created(), "", Verb::Start), "start", Err(broken()));
            vec![at(created()), at(failed)]
        }
        "starting" => vec![at(asked(created(), "", Verb::Start)).ends("start")],
        "dead" => vec![at(exited(asked(created(), "", Verb::Start), INIT, 7)).ends("start")],
        "undone" => {
            let undone = || asked(created(), "", Verb::Delete);
            vec![
                at(undone()).ends("delete by force").exits(INIT).ends("unmount"),
                at(done(undone(), "delete by force", Ok(None))).exits(INIT).ends("unmount"),
            ]
        }
        "running" => {
            let failed = done(asked(Story::running(), "", Verb::Pause), "pause", Err(broken()));
            let thawed = done(asked(Story::paused(), "", Verb::Resume), "resume", Ok(None));
            vec![at(Story::running()), at(failed), at(thawed)]
        }
        "busy" => vec![
            at(asked(Story::running(), "", KILL)).ends("kill 15"),
            at(asked(Story::running(), "", Verb::Update)).ends("update"),
            at(asked(Story::running(), "", Verb::Checkpoint)).ends("checkpoint"),
        ],
        "pausing" => vec![at(asked(Story::running(), "", Verb::Pause)).ends("pause")],
        "paused" => {
            let failed = done(asked(Story::paused(), "", Verb::Resume), "resume", Err(broken()));
            vec![at(Story::paused()), at(failed)]
        }
        "resuming" => vec![at(asked(Story::paused(), "", Verb::Resume)).ends("resume")],
        "dying" => {
            let unheard = |mut story: Story| {
                story.settles_late = true;
                at(exited(story, INIT, 7))
            };
            let with_exec = at(exited(Story::running().with_exec("x", 20), INIT, 7));
            vec![with_exec, unheard(Story::running()), unheard(created()), unheard(Story::paused())]
        }
        "stopped" => vec![at(Story::stopped(7)), at(exited(Story::paused(), INIT, 7)), at(exited(created(), INIT, 7))],
        "deleting" => {
            let deletes = || done(deleting(), "drain", Ok(None));
            vec![
                at(deleting()).ends("drain").ends("delete").ends("unmount"),
                at(deletes()).ends("delete").ends("unmount"),
                at(done(deletes(), "delete", Ok(None))).ends("unmount"),
            ]
        }
        other => panic!("no column {other:?}"),
    }
}

/// All ways for the exec `e` to be in a column.
fn exec_in(column: &str) -> Vec<Way> {
    let added = || asked(Story::running(), "e", Verb::Exec);
    let starting = || asked(added(), "e", Verb::Start);
    let running = || Story::running().with_exec("e", 20);
    let stopped = || exited(running(), 20, 5);
    match column {
        "no task" => vec![at(Story::default()), at(Story::creating())],
        "unknown" => {
            let deleted = done(asked(stopped(), "e", Verb::Delete), "drain e", Ok(None));
            vec![at(Story::running()), at(deleted)]
        }
        "created" => vec![at(added()), at(done(starting(), "exec e", Err(broken())))],
        "starting" => vec![at(starting()).makes("exec e", 20)],
        "running" => vec![at(running())],
        "frozen" => vec![at(done(asked(running(), "", Verb::Pause), "pause", Ok(None)))],
        "dying" => {
            let mut unheard = running();
            unheard.settles_late = true;
            vec![at(exited(unheard, 20, 5)).ends("settle e")]
        }
        "stopped" => vec![at(stopped())],
        "deleting" => vec![at(asked(stopped(), "e", Verb::Delete)).ends("drain e")],
        "undone" => vec![at(asked(added(), "e", Verb::Delete)).ends("drain e")],
        other => panic!("no column {other:?}"),
    }
}

/// As [`init_in`] with an exec `e` that was added while that was allowed.
fn exec_added_before(column: &str) -> Vec<Way> {
    let added = || asked(Story::created(), "e", Verb::Exec);
    let running = || done(asked(added(), "", Verb::Start), "start", Ok(None));
    let paused = || done(asked(running(), "", Verb::Pause), "pause", Ok(None));
    let stopped = || exited(running(), INIT, 7);
    let story = match column {
        "created" => added(),
        "starting" => asked(added(), "", Verb::Start),
        "dead" => exited(asked(added(), "", Verb::Start), INIT, 7),
        "undone" => asked(added(), "", Verb::Delete),
        "running" => running(),
        "busy" => asked(running(), "", KILL),
        "pausing" => asked(running(), "", Verb::Pause),
        "paused" => paused(),
        "resuming" => asked(paused(), "", Verb::Resume),
        "dying" => exited(running().with_exec("x", 20), INIT, 7),
        "stopped" => stopped(),
        "deleting" => asked(stopped(), "", Verb::Delete),
        _ => return Vec::new(),
    };
    vec![at(story)]
}

/// A table as written: the columns' names, and the rows with theirs.
pub(super) fn parse(table: &str) -> (Vec<&str>, Vec<(&str, Vec<&str>)>) {
    let mut lines = table.lines().filter(|l| !l.trim().is_empty()).map(|l| l.split('|').map(str::trim));
    let columns = lines.next().map(|l| l.skip(1).collect()).unwrap_or_default();
    (columns, lines.map(|mut l| (l.next().unwrap(), l.collect())).collect())
}

/// A table as it should be written.
pub(super) fn print(columns: &[&str], rows: &[(String, Vec<String>)]) -> String {
    let width = |n: usize| rows.iter().map(|(_, cells)| cells[n].len()).chain([columns[n].len()]).max().unwrap();
    let line = |name: &str, cells: &[&str]| {
        let cells = cells.iter().enumerate().map(|(n, cell)| format!(" {cell:w$}", w = width(n)));
        format!("{name:11} |{}\n", cells.collect::<Vec<_>>().join(" |"))
    };
    let mut text = line("", columns);
    for (name, cells) in rows {
        text += &line(name, &cells.iter().map(String::as_str).collect::<Vec<_>>());
    }
    text.lines().map(|l| format!("{}\n", l.trim_end())).collect()
}

/// Compares a table with what happens in all ways into each column.
fn check(table: &str, columns: &[&str], rows: &[(&str, Verb)], cells_of: impl Fn(&str, &str) -> Vec<Way>, exec: &str) {
    let cell = |column: &str, row: &str, verb: Verb| {
        let mut cells: Vec<String> = cells_of(column, row).into_iter().map(|way| way.cell(exec, verb)).collect();
        cells.dedup();
        cells.join(" / ")
    };
    let happens: Vec<(String, Vec<String>)> = rows
        .iter()
        .map(|(row, verb)| (row.to_string(), columns.iter().map(|column| cell(column, row, *verb)).collect()))
        .collect();
    let (written_columns, written) = parse(table);
    let written: Vec<(String, Vec<String>)> = written
        .into_iter()
        .map(|(row, cells)| (row.to_owned(), cells.iter().map(|c| c.to_string()).collect()))
        .collect();
    let same = written_columns == columns && written == happens;
    assert!(same, "the table should be, if this is what is wanted:\n{}", print(columns, &happens));
}

const UNTIL_IT_RUNS: [&str; 7] = ["unknown", "creating", "failing", "created", "starting", "dead", "undone"];
const FROM_A_CHECKPOINT: [&str; 5] = ["mounting", "mounted", "restoring", "unrestoring", "dropped"];
const FROM_THEN_ON: [&str; 8] = ["running", "busy", "pausing", "paused", "resuming", "dying", "stopped", "deleting"];
const OF_EXECS: [&str; 10] =
    ["no task", "unknown", "created", "starting", "running", "frozen", "dying", "stopped", "deleting", "undone"];

/// All verbs; signals to all are a row of their own.
fn rows() -> Vec<(&'static str, Verb)> {
    let mut rows: Vec<_> = VERBS.iter().map(|(verb, row)| (*row, *verb)).collect();
    let kill = rows.iter().position(|(row, _)| *row == "kill").unwrap();
    rows.insert(kill + 1, ("kill all", Verb::Kill { signal: 15, all: true }));
    rows
}

#[test]
fn every_request_to_init_in_every_state_until_it_runs() {
    check(INIT_UNTIL_IT_RUNS, &UNTIL_IT_RUNS, &rows(), |column, _| init_in(column), "");
}

#[test]
fn every_request_to_init_in_every_state_until_it_is_restored() {
    check(INIT_FROM_A_CHECKPOINT, &FROM_A_CHECKPOINT, &rows(), |column, _| init_in(column), "");
}

#[test]
fn every_request_to_init_in_every_state_from_then_on() {
    check(INIT_FROM_THEN_ON, &FROM_THEN_ON, &rows(), |column, _| init_in(column), "");
}

#[test]
fn every_request_to_an_exec_in_every_state() {
    // These are never about an exec: on the wire they have no exec id.
    let never = |verb: &Verb| matches!(verb, Verb::Create { .. } | Verb::Connect | Verb::Shutdown);
    let rows: Vec<_> = rows().into_iter().filter(|(_, verb)| !never(verb)).collect();
    check(EXEC, &OF_EXECS, &rows, |column, _| exec_in(column), "e");
}

#[test]
fn execs_are_added_and_started_only_while_init_lives_and_is_not_frozen() {
    let columns: Vec<&str> = UNTIL_IT_RUNS.into_iter().chain(FROM_A_CHECKPOINT).chain(FROM_THEN_ON).collect();
    let ways = |column: &str, row: &str| if row == "add" { init_in(column) } else { exec_added_before(column) };
    check(EXEC_BY_INIT, &columns, &[("add", Verb::Exec), ("start", Verb::Start)], ways, "e");
}

#[test]
fn the_tables_have_a_column_for_every_state_and_operation() {
    let columns: Vec<&str> = UNTIL_IT_RUNS.into_iter().chain(FROM_A_CHECKPOINT).chain(FROM_THEN_ON).collect();
    for (state, of_state) in INIT_STATES {
        assert!(of_state.iter().all(|c| columns.contains(c)), "{state:?}");
    }
    for (state, of_state) in EXEC_STATES {
        assert!(of_state.iter().all(|c| OF_EXECS.contains(c)), "{state:?}");
    }
    for (verb, row) in VERBS {
        assert_eq!(row_of(*verb), *row);
    }
    // And each way leads where it says.
    for column in columns {
        for Way { story, .. } in init_in(column) {
            let Some((state, op)) = story.life.init_state(&task(TASK)) else {
                assert_eq!(column, "unknown");
                continue;
            };
            assert!(columns_of_init(state).contains(&column), "{column}: {state:?}");
            assert!(op.is_none_or(|op| columns_during(op).contains(&column)), "{column}: {op:?}");
        }
    }
    for column in OF_EXECS {
        for Way { story, .. } in exec_in(column) {
            let ProcessId::Exec(exec) = process("e") else { unreachable!("not empty") };
            match story.life.exec_state(&task(TASK), &exec) {
                Some(state) => assert!(columns_of_exec(state).contains(&column), "{column}: {state:?}"),
                None => assert!(["no task", "unknown"].contains(&column), "{column}"),
            }
        }
    }
}

/// Contract 3.2 has a paused init's word for all its execs. Ours is for those that can be frozen: who hears that an exec
/// that has ended is paused would wait for it, and containerd's client refuses to delete it.
#[test]
fn only_an_exec_that_runs_is_frozen_with_init() {
    let mut story = Story::running().with_exec("ended", 20).with_exec("runs", 21);
    story.exited(20, 5);
    story.ask("added", Verb::Exec);
    story.ask("", Verb::Pause);
    for frozen in ["pausing", "paused"] {
        for (exec, expected) in [("ended", "stopped"), ("runs", frozen), ("added", "created"), ("", frozen)] {
            assert!(story.ask(exec, Verb::State)[0].ends_with(expected), "{exec:?}: {expected}");
        }
        if frozen == "pausing" {
            story.ok("pause");
        }
    }
}

#[test]
fn create_of_an_unknown_task_keeps_what_came_with_it_and_mounts_first() {
    let mut story = Story::default();
    let create = Verb::Create { shared_pids: false, from_checkpoint: false };
    assert_eq!(story.ask("", create), ["#1 adopt init", "#1 begin mount"]);
    assert_eq!(story.ok("mount"), ["#1 begin create"]);
    assert_eq!(story.done("create", Ok(Some(INIT))), ["save", "publish create 10", "#1 pid 10"]);
}

#[test]
fn trap_08_an_exec_is_reserved_at_once_and_its_id_is_free_again_after_delete() {
    let mut story = Story::running();
    assert_eq!(story.ask("e", Verb::Exec), ["#3 adopt e", "save", "publish exec-added e", "#3 ok"]);
    assert_eq!(story.ask("e", Verb::Exec), ["#4 process exists"]);
    assert_eq!(story.ask("e", Verb::Delete), ["#5 begin drain e"]);
    assert_eq!(story.ask("e", Verb::Exec), ["#6 process exists"]);
    assert_eq!(story.ok("drain e"), ["release e", "save", "#5 deleted 0 0"]);
    assert_eq!(story.ask("e", Verb::Exec), ["#7 adopt e", "save", "publish exec-added e", "#7 ok"]);
}

#[test]
fn trap_26_with_shared_pids_a_signal_to_all_reaches_what_outlived_init() {
    let all = Verb::Kill { signal: 9, all: true };
    let mut story = Story::running_with_shared_pids();
    story.exited(INIT, 7);
    story.done("kill all 9", Err(broken()));
    assert_eq!(story.ask("", Verb::State), ["#3 stopped"]);
    assert_eq!(story.ask("", KILL), ["#4 finished"]);
    assert_eq!(story.ask("", all), ["#5 begin kill all 9"], "the runtime knows what is left, and nothing else ends it");
    assert_eq!(story.ok("kill all 9"), ["#5 ok"]);
    let mut story = Story::running_with_shared_pids().with_exec("e", 20);
    story.exited(INIT, 7);
    story.done("kill all 9", Err(broken()));
    assert_eq!(story.ask("", all), ["#5 begin kill all 9"], "also before its exit is told");
}

#[test]
fn trap_45_only_a_shim_without_tasks_ends_on_shutdown() {
    let mut story = Story::default();
    assert_eq!(story.ask("", Verb::Shutdown), ["stop", "#1 ok"]);
    // A task counts from the arrival of its Create, else a pod would lose its shim between two containers.
    let mut story = Story::default();
    story.ask("", Verb::Create { shared_pids: false, from_checkpoint: false });
    assert_eq!(story.ask("", Verb::Shutdown), ["#2 ok"]);
}
