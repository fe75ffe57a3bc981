//! Ring 2: every request in every state that a client can bring about, under both names of the task service: which of them
//! are carried out, which wait for their turn, and the codes of those that are refused (contract 3.1, 3.2).
//!
//! The whole table, with the states that last no longer than a blink, is that of the lifecycle's own tests.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, DeleteRequest, Empty, KillRequest, PauseRequest,
    PidsRequest, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StateRequest, StatsRequest,
    UpdateTaskRequest, WaitRequest,
};
use holdfast_tests::bundle::exec_process;
use holdfast_tests::fake_runtime::Gate;
use holdfast_tests::wire::{CallError, Code};
use holdfast_tests::{Bundle, FakeWorld, Shim, Stdio, eventually};

const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// `ok`: answered, once what was begun has ended. `waits`: not answered as long as what is under way lasts, or the process.
const INIT: &str = "
           | unknown | creating | created | starting | running | pausing | paused | resuming | dying | stopped | deleting
Create     | ok      | AE       | AE      | AE       | AE      | AE      | AE     | AE       | AE    | AE      | AE
Start      | NF      | waits    | ok      | waits    | FP      | waits   | FP     | waits    | FP    | FP      | waits
State      | NF      | NF       | ok      | ok       | ok      | ok      | ok     | ok       | ok    | ok      | ok
Kill       | NF      | waits    | ok      | waits    | ok      | waits   | ok     | waits    | NF    | NF      | NF
Exec       | NF      | NF       | ok      | ok       | ok      | FP      | FP     | FP       | FP    | FP      | FP
Delete     | NF      | NF       | ok      | waits    | FP      | waits   | FP     | waits    | FP    | ok      | waits
Wait       | NF      | NF       | waits   | waits    | waits   | waits   | waits  | waits    | waits | ok      | ok
Pids       | NF      | NF       | ok      | ok       | ok      | ok      | ok     | ok       | ok    | ok      | ok
Pause      | NF      | waits    | FP      | waits    | ok      | waits   | FP     | waits    | FP    | FP      | waits
Resume     | NF      | waits    | FP      | waits    | FP      | waits   | ok     | waits    | FP    | FP      | waits
Update     | NF      | waits    | ok      | waits    | ok      | waits   | ok     | waits    | FP    | FP      | waits
Checkpoint | NF      | waits    | FP      | waits    | ok      | waits   | ok     | waits    | FP    | FP      | waits
ResizePty  | NF      | NF       | ok      | ok       | ok      | ok      | ok     | ok       | ok    | ok      | ok
CloseIO    | NF      | NF       | ok      | ok       | ok      | ok      | ok     | ok       | ok    | ok      | ok
Stats      | NF      | NF       | ok      | ok       | ok      | ok      | ok     | ok       | ok    | ok      | ok
Connect    | ok      | ok       | ok      | ok       | ok      | ok      | ok     | ok       | ok    | ok      | ok
Shutdown   | ok      | ok       | ok      | ok       | ok      | ok      | ok     | ok       | ok    | ok      | ok
";

/// `frozen`: init is paused. `orphan`: added, and init has ended since.
const EXEC: &str = "
          | no task | unknown | created | starting | running | frozen | stopped | orphan
Start     | NF      | NF      | ok      | waits    | FP      | FP     | FP      | FP
State     | NF      | NF      | ok      | ok       | ok      | ok     | ok      | ok
Kill      | NF      | NF      | FP      | waits    | ok      | ok     | NF      | FP
Exec      | NF      | ok      | AE      | AE       | AE      | FP     | AE      | FP
Delete    | NF      | NF      | ok      | waits    | FP      | FP     | ok      | ok
Wait      | NF      | NF      | waits   | waits    | waits   | waits  | ok      | waits
ResizePty | NF      | NF      | ok      | ok       | ok      | ok     | FP      | ok
CloseIO   | NF      | NF      | ok      | ok       | ok      | ok     | ok      | ok
";

/// What an answer is called in the tables.
fn word_for<T>(answer: Result<T, CallError>) -> String {
    match answer {
        Ok(_) => "ok".to_owned(),
        Err(CallError::Status { code, message }) => match code {
            Code::NOT_FOUND => "NF".to_owned(),
            Code::ALREADY_EXISTS => "AE".to_owned(),
            Code::FAILED_PRECONDITION => "FP".to_owned(),
            other => format!("{other:?}: {message}"),
        },
        Err(other) => format!("{other:?}"),
    }
}

/// A container in a state, and what holds it there.
struct Case<'a> {
    world: &'a FakeWorld,
    bundle: Bundle,
    shim: Shim,
    gate: Option<Gate<'a>>,
}

impl<'a> Case<'a> {
    fn new(world: &'a FakeWorld) -> Self {
        let bundle = world.sleeper();
        let shim = world.start(&bundle);
        Self { world, bundle, shim, gate: None }
    }

    /// A request as it stands in a row; the exec id is used where the method has one.
    fn begin(&mut self, service: &str, method: &str, exec: &str) -> u32 {
        let (id, exec_id) = (self.bundle.id().to_owned(), exec.to_owned());
        let shim = &mut self.shim;
        let create = shim.create_request(&Stdio::none());
        let add =
            shim.exec_request(if exec.is_empty() { "n" } else { exec }, &exec_process(&["/bin/true"]), &Stdio::none());
        let connection = &mut shim.connection;
        match method {
            "Create" => connection.begin(service, method, &create),
            "Start" => connection.begin(service, method, &StartRequest { id, exec_id, ..Default::default() }),
            "State" => connection.begin(service, method, &StateRequest { id, exec_id, ..Default::default() }),
            // The probe: a signal that changes nothing.
            "Kill" => connection.begin(service, method, &KillRequest { id, exec_id, ..Default::default() }),
            "Exec" => connection.begin(service, method, &add),
            "Delete" => connection.begin(service, method, &DeleteRequest { id, exec_id, ..Default::default() }),
            "Wait" => connection.begin(service, method, &WaitRequest { id, exec_id, ..Default::default() }),
            "Pids" => connection.begin(service, method, &PidsRequest { id, ..Default::default() }),
            "Pause" => connection.begin(service, method, &PauseRequest { id, ..Default::default() }),
            "Resume" => connection.begin(service, method, &ResumeRequest { id, ..Default::default() }),
            "Update" => {
                let mut request = UpdateTaskRequest { id, ..Default::default() };
                request.resources.mut_or_insert_default().value = b"{}".to_vec();
                connection.begin(service, method, &request)
            }
            "Checkpoint" => {
                let path = self.world.scene.path("image").to_str().unwrap().to_owned();
                connection.begin(service, method, &CheckpointTaskRequest { id, path, ..Default::default() })
            }
            "ResizePty" => connection.begin(service, method, &ResizePtyRequest { id, exec_id, ..Default::default() }),
            "CloseIO" => {
                connection.begin(service, method, &CloseIORequest { id, exec_id, stdin: true, ..Default::default() })
            }
            "Stats" => connection.begin(service, method, &StatsRequest { id, ..Default::default() }),
            "Connect" => connection.begin(service, method, &ConnectRequest { id, ..Default::default() }),
            "Shutdown" => connection.begin(service, method, &ShutdownRequest { id, ..Default::default() }),
            other => panic!("no row for {other}"),
        }
    }

    /// Holds the next call of `command`, and asks for what leads to it.
    fn held(mut self, command: &'static str, method: &str, exec: &str) -> Self {
        let gate = self.world.runtime.hold(command);
        self.begin(SERVICES[0], method, exec);
        gate.reached();
        self.gate = Some(gate);
        self
    }

    fn init_in(world: &'a FakeWorld, state: &str) -> Self {
        let mut case = Self::new(world);
        match state {
            "unknown" => return case,
            "creating" => return case.held("create", "Create", ""),
            _ => drop(case.shim.create(&Stdio::none()).unwrap()),
        }
        match state {
            "created" => return case,
            "starting" => return case.held("start", "Start", ""),
            _ => drop(case.shim.start("").unwrap()),
        }
        match state {
            "running" => case,
            "pausing" => case.held("pause", "Pause", ""),
            "paused" | "resuming" => {
                case.shim.pause().unwrap();
                if state == "paused" { case } else { case.held("resume", "Resume", "") }
            }
            "dying" => {
                case.add_exec();
                case.shim.start("e").unwrap();
                case.shim.kill("", 9).unwrap();
                case.await_the_end_of_init();
                case
            }
            "stopped" | "deleting" => {
                case.shim.kill("", 9).unwrap();
                case.shim.wait("").unwrap();
                if state == "stopped" { case } else { case.held("delete", "Delete", "") }
            }
            other => panic!("no state {other:?}"),
        }
    }

    fn exec_in(world: &'a FakeWorld, state: &str) -> Self {
        let mut case = Self::new(world);
        if state == "no task" {
            return case;
        }
        case.shim.run(&Stdio::none());
        if state == "unknown" {
            return case;
        }
        case.add_exec();
        match state {
            "created" => return case,
            "starting" => return case.held("exec", "Start", "e"),
            "orphan" => {
                case.shim.kill("", 9).unwrap();
                case.shim.wait("").unwrap();
                return case;
            }
            _ => drop(case.shim.start("e").unwrap()),
        }
        match state {
            "running" => {}
            "frozen" => drop(case.shim.pause().unwrap()),
            "stopped" => {
                case.shim.kill("e", 9).unwrap();
                case.shim.wait("e").unwrap();
            }
            other => panic!("no state {other:?}"),
        }
        case
    }

    fn add_exec(&mut self) {
        self.shim.exec("e", &["/bin/sleep", "1000"], &Stdio::none()).unwrap();
    }

    /// From when no further exec is taken its death is known, though not told.
    fn await_the_end_of_init(&mut self) {
        let refused = eventually("init's death should be known", || {
            match self.shim.exec("probe", &["/bin/true"], &Stdio::none()) {
                Ok(_) => Err(self.shim.delete("probe").unwrap()),
                Err(refusal) => Ok(refusal.code()),
            }
        });
        assert_eq!(refused, Code::FAILED_PRECONDITION);
    }

    /// The answer, if it comes without anybody's doing.
    fn ask(&mut self, service: &str, method: &str, exec: &str) -> String {
        let stream = self.begin(service, method, exec);
        // Answered in the order of the requests, unless something is waited for; twice, for what is read off the loop.
        for _ in 0..2 {
            // Shutdown may be what was asked for.
            let _ = self.shim.connect();
        }
        let off_the_loop = matches!(method, "Pids" | "Stats");
        let waits = self.gate.is_some() || method == "Wait";
        if waits && !off_the_loop && !self.shim.connection.has_reply(stream) {
            return "waits".to_owned();
        }
        word_for(self.shim.connection.finish::<Empty>(stream))
    }

    /// Ends whatever there is by now.
    fn end(mut self) {
        if let Some(gate) = self.gate.take() {
            gate.open();
        }
        eventually("the task should be gone", || {
            let _ = self.shim.resume();
            let _ = self.shim.kill("e", 9);
            let _ = self.shim.kill("n", 9);
            let _ = self.shim.kill("", 9);
            let _ = self.shim.delete("");
            match self.shim.state("") {
                Err(CallError::Closed | CallError::Status { code: Code::NOT_FOUND, .. }) => Ok(()),
                other => Err(other.map(|state| state.status)),
            }
        });
        self.shim.request_shutdown();
        self.shim.process().wait_gone();
    }
}

/// Calls `check(row, column, cell)` for each cell of a column.
fn cells(table: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut rows = table.lines().filter(|l| !l.trim().is_empty()).map(|l| l.split('|').map(str::trim));
    let columns: Vec<&str> = rows.next().unwrap().skip(1).collect();
    let rows: Vec<Vec<&str>> = rows.map(Iterator::collect).collect();
    let column = |n: usize| rows.iter().map(|r| (r[0].to_owned(), r[n + 1].to_owned())).collect();
    columns.iter().enumerate().map(|(n, name)| (name.to_string(), column(n))).collect()
}

/// Compares a table with what a shim answers. What changes nothing is asked of one container, under both names; what is
/// carried out, each of one of its own.
fn check(table: &str, exec: &str, reach: impl for<'w> Fn(&'w FakeWorld, &str) -> Case<'w>) {
    let mut wrong = Vec::new();
    let mut compare = |case: &mut Case<'_>, service: &str, method: &str, column: &str, expected: &str| {
        let answer = case.ask(service, method, exec);
        if answer != expected {
            wrong.push(format!("{method} while {column} ({service}): {answer} instead of {expected}"));
        }
    };
    for (column, cells) in cells(table) {
        let mutates = |method: &str| {
            let asks = ["State", "Wait", "Pids", "ResizePty", "CloseIO", "Stats", "Connect"].contains(&method);
            !asks && (method != "Shutdown" || column == "unknown")
        };
        let (alone, together): (Vec<_>, Vec<_>) =
            cells.iter().partition(|(method, cell)| cell == "ok" && mutates(method));
        let world = FakeWorld::new();
        let mut case = reach(&world, &column);
        for service in SERVICES {
            for (method, expected) in &together {
                compare(&mut case, service, method, &column, expected);
            }
        }
        case.end();
        for service in SERVICES {
            for (method, expected) in &alone {
                let world = FakeWorld::new();
                let mut case = reach(&world, &column);
                compare(&mut case, service, method, &column, expected);
                case.end();
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_request_about_a_task_in_every_state() {
    check(INIT, "", |world, state| Case::init_in(world, state));
}

#[test]
fn every_request_about_an_exec_in_every_state() {
    check(EXEC, "e", |world, state| Case::exec_in(world, state));
}

#[test]
fn the_table_has_a_row_for_every_method() {
    struct AnyTask;
    impl containerd_shim_protos::shim_sync::Task for AnyTask {}
    let generated = containerd_shim_protos::shim_sync::create_task(Arc::new(AnyTask));
    let mut methods: Vec<&str> = generated.keys().map(|path| path.rsplit('/').next().unwrap()).collect();
    let (_, rows) = &cells(INIT)[0];
    let mut rows: Vec<&str> = rows.iter().map(|(row, _)| row.as_str()).collect();
    methods.sort_unstable();
    rows.sort_unstable();
    assert_eq!(rows, methods);
}

#[test]
fn what_cannot_be_decoded_is_an_invalid_argument_and_changes_nothing() {
    for service in SERVICES {
        let world = FakeWorld::new();
        let mut case = Case::new(&world);
        let mut create = case.shim.create_request(&Stdio::none());
        create.options.mut_or_insert_default().value = b"\xff\xff".to_vec();
        let answer: Result<Empty, _> = case.shim.connection.call(service, "Create", &create);
        assert_eq!(answer.unwrap_err().code(), Code::INVALID_ARGUMENT, "options");
        let mut create = case.shim.create_request(&Stdio::none());
        create.bundle = world.scene.path("nowhere").to_str().unwrap().into();
        let answer: Result<Empty, _> = case.shim.connection.call(service, "Create", &create);
        assert_eq!(answer.unwrap_err().code(), Code::INVALID_ARGUMENT, "a bundle that is missing is no missing task");
        assert_eq!(case.shim.state("").unwrap_err().code(), Code::NOT_FOUND);

        case.shim.run(&Stdio::none());
        let mut exec = case.shim.exec_request("e", &exec_process(&["/bin/true"]), &Stdio::none());
        exec.spec.mut_or_insert_default().value = b"[1]".to_vec();
        let answer: Result<Empty, _> = case.shim.connection.call(service, "Exec", &exec);
        assert_eq!(answer.unwrap_err().code(), Code::INVALID_ARGUMENT, "the process");
        let mut update = UpdateTaskRequest { id: case.bundle.id().into(), ..Default::default() };
        update.resources.mut_or_insert_default().value = b"{".to_vec();
        let answer: Result<Empty, _> = case.shim.connection.call(service, "Update", &update);
        assert_eq!(answer.unwrap_err().code(), Code::INVALID_ARGUMENT, "resources");
        let kill = KillRequest { id: case.bundle.id().into(), signal: 65, ..Default::default() };
        let answer: Result<Empty, _> = case.shim.connection.call(service, "Kill", &kill);
        assert_eq!(answer.unwrap_err().code(), Code::INVALID_ARGUMENT, "the signal");
        assert_eq!(world.runtime.calls().len(), 2, "create and start, and nothing else");
        case.shim.discard();
    }
}
