//! Inputs in, effects out: the whole supervisor without a process, a clock or a file.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::container::{Config, SCHEMA, State};
use crate::policy::RestartPolicy;
use crate::report::Class;
use crate::scan::{Caution, ExecTrace, ExecTraceState, Findings, Found, ShimTraces};

mod shutdown;

const ID: &str = "0123456789abcdef";
const SECOND: i64 = 1_000_000_000;

fn container() -> Container {
    Container {
        schema: SCHEMA,
        id: ID.into(),
        name: "web".into(),
        created_at_unix_ns: 1,
        config: Config { stop_signal: 15, stop_timeout: 10, ..Config::default() },
        state: State { boot_id: "boot".into(), ..State::default() },
    }
}

fn shim() -> ShimRef {
    ShimRef { pid: 7, start_time: 70, address: "unix:///s".into() }
}

fn traces() -> ShimTraces {
    ShimTraces { address: "unix:///s".into(), process: Some((7, 70)), init: Some((9, 90)), execs: Vec::new() }
}

/// A registry with a clock that only tests move.
struct World {
    registry: Registry,
    unix_ns: i64,
    boot_id: &'static str,
}

impl World {
    /// One that has restored nothing.
    fn new() -> Self {
        let mut world = Self::before_the_scan();
        world.give(Input::Found(Findings::default()));
        world
    }

    fn before_the_scan() -> Self {
        Self { registry: Registry::default(), unix_ns: SECOND, boot_id: "boot" }
    }

    fn give(&mut self, input: Input) -> Vec<Effect> {
        self.registry.handle(input, Now { unix_ns: self.unix_ns, boot_id: self.boot_id })
    }

    fn ask(&mut self, reply: ReplyTo, ask: Ask) -> Vec<Effect> {
        self.give(Input::Ask { ask, reply })
    }

    fn generation(&self) -> u64 {
        self.registry.containers[ID].generation
    }

    fn status(&self) -> &'static str {
        self.registry.containers[ID].status().as_str()
    }

    fn phase(&self) -> &Phase {
        &self.registry.containers[ID].phase
    }

    fn created(mut container: Container) -> Self {
        let mut world = Self::new();
        container.state = State::default();
        world.ask(1, Ask::Create { container: Box::new(container), spec: "{}".into() });
        let generation = world.generation();
        world.give(Input::Prepared { id: ID.into(), generation, reply: Some(1), result: Ok(shim()) });
        world
    }

    fn running_with(container: Container) -> Self {
        let mut world = Self::created(container);
        world.ask(2, Ask::Start { container: "web".into(), onlooker: None });
        world.started();
        world
    }

    fn running() -> Self {
        Self::running_with(container())
    }

    fn started(&mut self) -> Vec<Effect> {
        let generation = self.generation();
        self.give(Input::Started { id: ID.into(), generation, reply: Some(2), result: Ok(9) })
    }

    fn exited(&mut self, status: u32) -> Vec<Effect> {
        let (generation, at_unix_ns) = (self.generation(), self.unix_ns);
        let outcome = Outcome { status, at_unix_ns, reason: String::new() };
        self.give(Input::Exited { id: ID.into(), generation, outcome })
    }

    fn retired(&mut self) -> Vec<Effect> {
        let generation = self.generation();
        self.give(Input::Retired { id: ID.into(), generation, outcome: None })
    }

    fn found(container: Container, shim: Option<ShimTraces>) -> (Self, Vec<Effect>) {
        Self::found_as(Found { container, shim, left_over: false, caution: None })
    }

    fn found_as(found: Found) -> (Self, Vec<Effect>) {
        let mut world = Self::before_the_scan();
        let mut findings = Findings::default();
        findings.own.insert(ID.into(), found);
        let effects = world.give(Input::Found(findings));
        (world, effects)
    }

    fn probed(&mut self, probe: Probe) -> Vec<Effect> {
        let generation = self.generation();
        self.give(Input::Probed { id: ID.into(), generation, probe })
    }

    fn prepared(&mut self) -> Vec<Effect> {
        let generation = self.generation();
        self.give(Input::Prepared { id: ID.into(), generation, reply: None, result: Ok(shim()) })
    }

    fn elapsed(&mut self) -> Vec<Effect> {
        let generation = self.generation();
        self.give(Input::Elapsed { id: ID.into(), generation, timer: Timer::Restart })
    }

    fn state(&self) -> &State {
        &self.registry.containers[ID].container.state
    }

    fn class(&self) -> Class {
        self.registry.report().containers[0].class
    }
}

fn with(policy: RestartPolicy) -> Container {
    let mut container = container();
    container.config.restart = policy;
    container
}

fn was_running() -> Container {
    let mut container = container();
    container.state.wish = Wish::Running;
    container.state.started_at_unix_ns = SECOND / 2;
    container
}

fn task(state: RunState) -> Probe {
    Probe::Answers(shim(), Some(TaskView { pid: 9, state, started_at_unix_ns: 0, reason: String::new() }))
}

fn wait(world: &mut World, reply: ReplyTo) -> Vec<Effect> {
    world.ask(reply, Ask::Wait { container: "web".into(), exec_id: String::new() })
}

fn answer_to(effects: &[Effect], reply: ReplyTo) -> Option<&Result<Answer, Refusal>> {
    let mut answers = effects.iter().filter_map(|e| match e {
        Effect::Reply { to, answer } if *to == reply => Some(answer),
        _ => None,
    });
    let first = answers.next();
    assert!(answers.next().is_none(), "a question is answered once");
    first
}

fn ended_with(effects: &[Effect], reply: ReplyTo) -> Option<u32> {
    match answer_to(effects, reply)? {
        Ok(Answer::Ended(ended)) => Some(ended.outcome.status),
        other => panic!("{other:?}"),
    }
}

fn position(effects: &[Effect], what: impl Fn(&Effect) -> bool) -> usize {
    effects.iter().position(what).unwrap_or_else(|| panic!("not in {effects:?}"))
}

fn has(effects: &[Effect], what: impl Fn(&Effect) -> bool) -> bool {
    effects.iter().any(what)
}

fn kills(effects: &[Effect], wanted: i32) -> bool {
    has(effects, |e| matches!(e, Effect::Call { call: Call::Kill { signal }, .. } if *signal == wanted))
}

#[test]
fn a_new_container_is_written_down_before_anything_is_made() {
    let mut world = World::new();
    let effects = world.ask(1, Ask::Create { container: Box::new(container()), spec: "{}".into() });
    let store = position(&effects, |e| matches!(e, Effect::Store { .. }));
    let prepare = position(&effects, |e| matches!(e, Effect::Prepare { .. }));
    assert!(store < prepare);
    assert!(answer_to(&effects, 1).is_none(), "not before it is made");
}

#[test]
fn a_failed_create_leaves_nothing() {
    let mut world = World::new();
    world.ask(1, Ask::Create { container: Box::new(container()), spec: "{}".into() });
    let (generation, failure) = (world.generation(), Refusal::Failed("no such file".into()));
    let effects =
        world.give(Input::Prepared { id: ID.into(), generation, reply: Some(1), result: Err(failure.clone()) });
    assert_eq!(answer_to(&effects, 1), Some(&Err(failure)));
    assert!(has(&effects, |e| matches!(e, Effect::Forget { .. })));
    world.give(Input::Forgotten { id: ID.into(), problem: None });
    assert!(world.registry.containers.is_empty());
}

#[test]
fn a_name_is_given_once() {
    let mut world = World::running();
    let other = Container { id: "fedcba".into(), ..container() };
    let effects = world.ask(3, Ask::Create { container: Box::new(other), spec: "{}".into() });
    assert!(matches!(answer_to(&effects, 3), Some(Err(Refusal::Exists(_)))));
}

#[test]
fn an_outcome_is_saved_before_anybody_is_told() {
    let mut world = World::running();
    wait(&mut world, 3);
    let effects = world.exited(7);
    let saved = |e: &Effect| match e {
        Effect::Save(c) => c.state.outcome.as_ref().is_some_and(|o| o.status == 7),
        _ => false,
    };
    assert!(has(&effects, saved));
    assert_eq!(ended_with(&effects, 3), None, "told when it is cleaned up");
    assert_eq!(ended_with(&world.retired(), 3), Some(7));
    assert_eq!(ended_with(&wait(&mut world, 4), 4), Some(7), "and whoever asks later");
}

#[test]
fn an_exit_before_the_answer_of_start_is_not_lost() {
    let mut world = World::created(container());
    world.ask(2, Ask::Start { container: ID[..4].into(), onlooker: None });
    world.exited(3);
    let effects = world.started();
    assert_eq!(answer_to(&effects, 2), Some(&Ok(Answer::Started { pid: 9 })));
    world.retired();
    assert_eq!(ended_with(&wait(&mut world, 3), 3), Some(3));
}

#[test]
fn a_result_of_an_earlier_run_changes_nothing() {
    let mut world = World::running();
    let earlier = world.generation();
    world.exited(0);
    world.retired();
    world.ask(3, Ask::Start { container: "web".into(), onlooker: None });
    let outcome = Outcome { status: 9, at_unix_ns: 1, reason: String::new() };
    let effects = world.give(Input::Exited { id: ID.into(), generation: earlier, outcome });
    assert!(effects.is_empty(), "{effects:?}");
    assert!(world.give(Input::ShimDied { id: ID.into(), generation: earlier, init: None }).is_empty());
}

#[test]
fn a_start_that_fails_is_told_and_not_repeated_by_any_policy() {
    let mut always = container();
    always.config.restart = RestartPolicy::Always;
    let mut world = World::created(always);
    world.ask(2, Ask::Start { container: "web".into(), onlooker: None });
    let generation = world.generation();
    let result = Err(Refusal::Failed("exec: \"/x\": permission denied".into()));
    let effects = world.give(Input::Started { id: ID.into(), generation, reply: Some(2), result });
    assert!(matches!(answer_to(&effects, 2), Some(Err(_))));
    world.retired();
    assert_eq!(*world.phase(), Phase::AtRest);
    assert_eq!(ended_with(&wait(&mut world, 3), 3), Some(126));
}

#[test]
fn who_asks_for_a_start_that_is_under_way_hears_how_that_goes() {
    let mut world = World::created(container());
    world.ask(2, Ask::Start { container: "web".into(), onlooker: None });
    assert!(world.ask(3, Ask::Start { container: "web".into(), onlooker: None }).is_empty(), "it is started once");
    let effects = world.started();
    for asker in [2, 3] {
        assert_eq!(answer_to(&effects, asker), Some(&Ok(Answer::Started { pid: 9 })));
    }
}

/// Whether a new run begins that nobody waits for with his request.
fn restarts(effects: &[Effect]) -> bool {
    has(effects, |e| matches!(e, Effect::Prepare { reply: None, .. }))
}

#[test]
fn a_restart_by_request_stops_and_starts_whatever_the_policy() {
    for policy in [RestartPolicy::No, RestartPolicy::Always] {
        let mut world = World::running_with(with(policy));
        wait(&mut world, 8);
        let begun_unix_ns = world.state().started_at_unix_ns;
        let ask = || Ask::Restart { container: "web".into(), timeout: Some(3), begun_unix_ns };
        assert!(kills(&world.ask(3, ask()), 15));
        assert!(world.ask(4, ask()).is_empty(), "asked again after a broken connection");
        world.exited(143);
        let effects = world.retired();
        assert!(restarts(&effects), "at once, {effects:?}");
        assert_eq!(ended_with(&effects, 8), None, "who waits for its end waits on");
        world.unix_ns += SECOND;
        world.prepared();
        let effects = world.started();
        for asker in [3, 4] {
            assert_eq!(answer_to(&effects, asker), Some(&Ok(Answer::Started { pid: 9 })));
        }
        let effects = world.ask(5, ask());
        assert_eq!(answer_to(&effects, 5), Some(&Ok(Answer::Started { pid: 9 })), "that run is over, and was replaced");
        assert!(!kills(&effects, 15));
        assert_eq!((world.state().restarts, world.state().wish), (0, Wish::Running));
    }
}

#[test]
fn a_stop_overtakes_a_restart_that_is_under_way() {
    let mut world = World::running_with(with(RestartPolicy::Always));
    world.ask(3, Ask::Restart { container: "web".into(), timeout: None, begun_unix_ns: 0 });
    let effects = world.ask(4, Ask::Stop { container: "web".into(), timeout: None });
    assert!(matches!(answer_to(&effects, 3), Some(Err(Refusal::Precondition(text))) if text.contains("stopped")));
    world.exited(143);
    assert_eq!(ended_with(&world.retired(), 4), Some(143));
    assert_eq!(world.status(), "exited");
}

#[test]
fn a_restart_by_request_that_our_death_cut_short_goes_on() {
    let mut half = was_running();
    half.state.renewing = true;
    let (mut world, _) = World::found(half.clone(), Some(traces()));
    assert!(kills(&world.probed(task(RunState::Running)), 15));
    world.exited(143);
    assert!(restarts(&world.retired()));
    let (mut world, _) = World::found(half.clone(), Some(traces()));
    world.probed(task(RunState::Stopped { status: 143, at_unix_ns: SECOND }));
    assert!(restarts(&world.retired()));
    half.state.outcome = Some(Outcome { status: 143, at_unix_ns: SECOND, reason: String::new() });
    let (mut world, _) = World::found(half, None);
    assert!(restarts(&world.probed(Probe::Dead(None))));
}

#[test]
fn stop_signals_then_kills_after_its_timeout_and_answers_when_all_is_gone() {
    let mut world = World::running();
    let effects = world.ask(3, Ask::Stop { container: "web".into(), timeout: Some(2) });
    assert!(kills(&effects, 15));
    let timer = Duration::from_secs(2);
    assert!(has(&effects, |e| matches!(e, Effect::Timer { after, timer: Timer::Stop, .. } if *after == timer)));
    let generation = world.generation();
    let effects = world.give(Input::Elapsed { id: ID.into(), generation, timer: Timer::Stop });
    assert!(kills(&effects, 9));
    assert_eq!(ended_with(&world.exited(137), 3), None);
    assert_eq!(ended_with(&world.retired(), 3), Some(137));
    let effects = world.give(Input::Elapsed { id: ID.into(), generation, timer: Timer::Stop });
    assert!(effects.is_empty(), "too late to kill anything");
}

#[test]
fn a_stop_while_it_is_being_made_is_obeyed_before_it_runs() {
    let mut world = World::running();
    world.exited(0);
    world.retired();
    world.ask(3, Ask::Start { container: "web".into(), onlooker: None });
    world.ask(4, Ask::Stop { container: "web".into(), timeout: None });
    let generation = world.generation();
    let effects = world.give(Input::Prepared { id: ID.into(), generation, reply: Some(3), result: Ok(shim()) });
    assert!(matches!(answer_to(&effects, 3), Some(Err(Refusal::Precondition(_)))));
    assert!(has(&effects, |e| matches!(e, Effect::Retire { .. })));
    assert!(!has(&effects, |e| matches!(e, Effect::StartTask { .. })));
}

#[test]
fn the_policy_restarts_after_a_pause_and_waiters_wait_on() {
    let mut always = container();
    always.config.restart = RestartPolicy::OnFailure(Some(1));
    let mut world = World::running_with(always);
    wait(&mut world, 3);
    world.exited(1);
    let effects = world.retired();
    assert_eq!(ended_with(&effects, 3), None);
    assert_eq!(world.status(), "restarting");
    let generation = world.generation();
    let effects = world.give(Input::Elapsed { id: ID.into(), generation, timer: Timer::Restart });
    assert!(has(&effects, |e| matches!(e, Effect::Prepare { reply: None, .. })));
    let generation = world.generation();
    let effects = world.give(Input::Prepared { id: ID.into(), generation, reply: None, result: Ok(shim()) });
    assert!(has(&effects, |e| matches!(e, Effect::StartTask { .. })));
    world.give(Input::Started { id: ID.into(), generation, reply: None, result: Ok(10) });
    world.exited(2);
    assert_eq!(ended_with(&world.retired(), 3), Some(2), "the second failure is the last");
}

#[test]
fn a_stop_ends_a_pause_before_a_restart() {
    let mut always = container();
    always.config.restart = RestartPolicy::Always;
    let mut world = World::running_with(always);
    world.exited(1);
    world.retired();
    let generation = world.generation();
    let effects = world.ask(3, Ask::Stop { container: "web".into(), timeout: None });
    assert_eq!(ended_with(&effects, 3), Some(1));
    let effects = world.give(Input::Elapsed { id: ID.into(), generation, timer: Timer::Restart });
    assert!(effects.is_empty());
}

#[test]
fn a_running_container_is_removed_only_by_force() {
    let mut world = World::running();
    let effects = world.ask(3, Ask::Remove { container: "web".into(), force: false });
    assert!(matches!(answer_to(&effects, 3), Some(Err(Refusal::Precondition(text))) if text.contains("web")));
    assert!(kills(&world.ask(4, Ask::Remove { container: "web".into(), force: true }), 9));
    world.exited(137);
    assert!(has(&world.retired(), |e| matches!(e, Effect::Forget { .. })));
    let effects = world.give(Input::Forgotten { id: ID.into(), problem: None });
    assert_eq!(answer_to(&effects, 4), Some(&Ok(Answer::Done)));
    let effects = world.ask(5, Ask::Inspect { container: "web".into() });
    assert!(matches!(answer_to(&effects, 5), Some(Err(Refusal::NotFound(_)))));
}

#[test]
fn a_container_that_removes_itself_still_tells_its_status_to_who_asks_late() {
    let mut once = container();
    once.config.remove = true;
    let mut world = World::running_with(once);
    wait(&mut world, 3);
    world.exited(7);
    assert!(has(&world.retired(), |e| matches!(e, Effect::Forget { .. })));
    let effects = world.give(Input::Forgotten { id: ID.into(), problem: None });
    assert_eq!(ended_with(&effects, 3), Some(7));
    let late = world.ask(4, Ask::Wait { container: ID.into(), exec_id: String::new() });
    assert_eq!(ended_with(&late, 4), Some(7));
}

#[test]
fn what_cannot_be_deleted_stays_visible_and_can_be_removed_again() {
    let mut world = World::created(container());
    world.ask(3, Ask::Remove { container: "web".into(), force: false });
    world.retired();
    let effects = world.give(Input::Forgotten { id: ID.into(), problem: Some("busy".into()) });
    assert_eq!(answer_to(&effects, 3), Some(&Err(Refusal::Failed("busy".into()))));
    let effects = world.ask(4, Ask::Remove { container: "web".into(), force: false });
    assert!(has(&effects, |e| matches!(e, Effect::Forget { .. })));
}

#[test]
fn a_dead_shim_whose_process_lives_is_adopted_and_its_true_status_told() {
    let mut world = World::running();
    wait(&mut world, 3);
    let generation = world.generation();
    let effects = world.give(Input::ShimDied { id: ID.into(), generation, init: Some((9, 90)) });
    assert!(has(&effects, |e| matches!(e, Effect::WatchPid { pid: 9, .. })));
    assert!(!has(&effects, |e| matches!(e, Effect::Retire { .. })), "its process is not touched");
    assert!(world.registry.containers[ID].snapshot().reason.contains("shim is dead"));
    let effects = world.ask(4, Ask::Kill { container: "web".into(), signal: 1 });
    assert!(has(&effects, |e| matches!(e, Effect::KillPid { pid: 9, start_time: 90, signal: 1, .. })));
    let effects = world.exited(5);
    assert!(has(&effects, |e| matches!(e, Effect::Retire { shim_dead: true, .. })));
    assert_eq!(ended_with(&world.retired(), 3), Some(5));
}

#[test]
fn an_adopted_process_that_ends_unseen_has_the_status_that_the_cleaning_up_found() {
    let mut world = World::running();
    wait(&mut world, 3);
    let generation = world.generation();
    world.give(Input::ShimDied { id: ID.into(), generation, init: Some((9, 90)) });
    let effects = world.give(Input::ShimDied { id: ID.into(), generation, init: None });
    assert!(has(&effects, |e| matches!(e, Effect::Retire { shim_dead: true, .. })));
    let found = Outcome { status: 137, at_unix_ns: 5, reason: "found".into() };
    let effects = world.give(Input::Retired { id: ID.into(), generation, outcome: Some(found) });
    assert_eq!(ended_with(&effects, 3), Some(137));
}

#[test]
fn a_status_that_nobody_can_know_is_255_with_a_reason() {
    let mut world = World::running();
    wait(&mut world, 3);
    let generation = world.generation();
    world.give(Input::ShimDied { id: ID.into(), generation, init: None });
    let effects = world.retired();
    match answer_to(&effects, 3) {
        Some(Ok(Answer::Ended(e))) => assert!(e.outcome.status == 255 && !e.outcome.reason.is_empty()),
        other => panic!("{other:?}"),
    }
}

fn exec(world: &mut World, reply: ReplyTo) -> Vec<Effect> {
    let spec = ExecSpec {
        command: vec!["x".into()],
        env: vec![],
        cwd: String::new(),
        user: String::new(),
        terminal: false,
        window: None,
        stdin: String::new(),
        stdout: String::new(),
        stderr: String::new(),
    };
    world.ask(reply, Ask::Exec { container: "web".into(), exec_id: "e".into(), spec: Box::new(spec) })
}

fn exec_exits(world: &mut World, exec_id: &str, status: u32, at_unix_ns: i64) -> Vec<Effect> {
    let (generation, outcome) = (world.generation(), Outcome { status, at_unix_ns, reason: String::new() });
    world.give(Input::ExecExited { id: ID.into(), generation, exec_id: exec_id.into(), outcome })
}

fn wait_exec(world: &mut World, reply: ReplyTo) -> Vec<Effect> {
    world.ask(reply, Ask::Wait { container: "web".into(), exec_id: "e".into() })
}

#[test]
fn an_exec_is_watched_told_and_remembered() {
    let mut world = World::running();
    let generation = world.generation();
    assert!(has(&exec(&mut world, 3), |e| matches!(e, Effect::StartExec { .. })));
    assert!(matches!(answer_to(&exec(&mut world, 4), 4), Some(Err(Refusal::Exists(_)))));
    let started = Input::ExecStarted { id: ID.into(), generation, exec_id: "e".into(), reply: 3, result: Ok(20) };
    assert!(has(&world.give(started), |e| matches!(e, Effect::WatchExec { .. })));
    let view = |world: &World| world.registry.containers[ID].snapshot().execs[0].clone();
    assert_eq!((view(&world).pid, view(&world).outcome), (20, None));
    wait_exec(&mut world, 5);
    let effects = exec_exits(&mut world, "e", 3, 1);
    assert_eq!(ended_with(&effects, 5), Some(3));
    let remembered = position(&effects, |e| matches!(e, Effect::Remember(ending) if ending.exec_id == "e"));
    assert!(remembered < position(&effects, |e| matches!(e, Effect::Reply { .. })), "before anybody is told");
    assert!(has(&effects, |e| matches!(e, Effect::DeleteExec { .. })), "it holds descriptors in the shim");
    assert_eq!(ended_with(&wait_exec(&mut world, 6), 6), Some(3));
    world.exited(0);
    world.retired();
    assert_eq!(ended_with(&wait_exec(&mut world, 7), 7), Some(3), "also after the container's end");
    world.ask(8, Ask::Remove { container: "web".into(), force: false });
    world.give(Input::Forgotten { id: ID.into(), problem: None });
    let late = world.ask(9, Ask::Wait { container: ID.into(), exec_id: "e".into() });
    assert_eq!(ended_with(&late, 9), Some(3), "and after its removal");
}

#[test]
fn the_next_supervisor_knows_how_execs_and_removed_containers_ended() {
    let mut world = World::running();
    exec(&mut world, 3);
    exec_exits(&mut world, "e", 3, 1);
    let endings = world.registry.endings();
    let mut findings = Findings { endings, ..Findings::default() };
    findings
        .own
        .insert(ID.into(), Found { container: was_running(), shim: Some(traces()), left_over: false, caution: None });
    let mut next = World::new();
    next.give(Input::Found(findings));
    assert_eq!(ended_with(&wait_exec(&mut next, 4), 4), Some(3), "before its shim has answered, too");
    next.probed(task(RunState::Stopped { status: 7, at_unix_ns: SECOND }));
    next.retired();
    next.ask(5, Ask::Remove { container: "web".into(), force: false });
    next.give(Input::Forgotten { id: ID.into(), problem: None });
    let mut last = World::new();
    last.give(Input::Found(Findings { endings: next.registry.endings(), ..Findings::default() }));
    assert_eq!(ended_with(&wait(&mut last, 6), 6), Some(7));
    assert_eq!(ended_with(&wait_exec(&mut last, 7), 7), Some(3));
    assert_eq!(last.registry.endings(), next.registry.endings());
}

#[test]
fn how_a_container_ended_is_among_what_is_remembered_while_it_is_removed() {
    let mut world = World::running();
    world.exited(7);
    world.retired();
    let effects = world.ask(3, Ask::Remove { container: "web".into(), force: false });
    let told = effects.iter().find_map(|e| match e {
        Effect::Remember(ending) => Some(ending.clone()),
        _ => None,
    });
    let told = told.unwrap();
    assert_eq!((told.exec_id.as_str(), told.outcome.status), ("", 7));
    assert!(world.registry.endings().contains(&told), "whoever writes all of it anew at that moment");
    world.give(Input::Forgotten { id: ID.into(), problem: None });
    assert_eq!(world.registry.endings(), [told]);
}

#[test]
fn execs_of_a_container_that_is_found_without_its_shim_have_ended() {
    let exec = ExecTrace { id: "e".into(), pid: 11, state: ExecTraceState::Running };
    let (mut world, _) = World::found(was_running(), Some(ShimTraces { execs: vec![exec], ..traces() }));
    assert!(answer_to(&wait_exec(&mut world, 4), 4).is_none());
    let effects = world.probed(Probe::Dead(Some((9, 90))));
    assert_eq!(ended_with(&effects, 4), Some(UNKNOWN_STATUS));
}

#[test]
fn who_waits_for_what_is_left_alone_is_answered_though_its_shim_dies() {
    for init in [None, Some((9, 90))] {
        let caution = Some(Caution::Newer("of schema 99".into()));
        let found = Found { container: was_running(), shim: Some(traces()), left_over: false, caution };
        let (mut world, _) = World::found_as(found);
        world.probed(task(RunState::Running));
        wait(&mut world, 4);
        world.ask(5, Ask::Stop { container: "web".into(), timeout: None });
        let generation = world.generation();
        let mut effects = world.give(Input::ShimDied { id: ID.into(), generation, init });
        if init.is_some() {
            assert!(has(&effects, |e| matches!(e, Effect::WatchPid { pid: 9, .. })), "{effects:?}");
            let refused = world.ask(6, Ask::Stop { container: "web".into(), timeout: None });
            assert!(matches!(answer_to(&refused, 6), Some(Err(Refusal::Precondition(_)))), "nobody could signal it");
            effects = world.exited(143);
        }
        let expected = if init.is_some() { 143 } else { UNKNOWN_STATUS };
        assert_eq!([4, 5].map(|to| ended_with(&effects, to)), [Some(expected); 2]);
    }
}

#[test]
fn of_very_many_ended_execs_the_last_are_remembered() {
    let mut world = World::running();
    for n in 0..2 * execs::REMEMBERED_EXECS {
        let entry = world.registry.containers.get_mut(ID).unwrap();
        let state = ExecState::Running { waiters: Vec::new() };
        entry.execs.insert(format!("e{n}"), Exec { pid: 1, state });
        exec_exits(&mut world, &format!("e{n}"), 0, i64::try_from(n).unwrap());
    }
    let kept = world.registry.containers[ID].exec_views();
    assert_eq!(kept.len(), execs::REMEMBERED_EXECS);
    let last = format!("e{}", 2 * execs::REMEMBERED_EXECS - 1);
    assert!(kept.iter().any(|exec| exec.id == last) && !kept.iter().any(|exec| exec.id == "e0"));
}

#[test]
fn execs_in_a_shims_record_are_gone_on_with() {
    let outcome = Outcome { status: 137, at_unix_ns: 5, reason: crate::container::OUT_OF_MEMORY.into() };
    let execs = [
        ("made", ExecTraceState::Created),
        ("runs", ExecTraceState::Running),
        ("over", ExecTraceState::Ended(outcome)),
    ];
    let execs = execs.map(|(id, state)| ExecTrace { id: id.into(), pid: 1, state }).to_vec();
    let (mut world, _) = World::found(was_running(), Some(ShimTraces { execs, ..traces() }));
    let effects = world.probed(task(RunState::Running));
    assert!(has(&effects, |e| matches!(e, Effect::WatchExec { exec_id, .. } if exec_id == "runs")));
    for deleted in ["made", "over"] {
        assert!(has(&effects, |e| matches!(e, Effect::DeleteExec { exec_id, .. } if exec_id == deleted)), "{deleted}");
    }
    let views = world.registry.containers[ID].exec_views();
    let shown: Vec<_> = views.iter().map(|exec| (exec.id.as_str(), exec.oom_killed())).collect();
    assert_eq!(shown, [("over", true), ("runs", false)], "nobody starts what was only made");
    let over = world.ask(3, Ask::Wait { container: "web".into(), exec_id: "over".into() });
    assert_eq!(ended_with(&over, 3), Some(137));
}

#[test]
fn who_waits_for_an_exec_is_told_when_the_shim_dies() {
    let mut world = World::running();
    let generation = world.generation();
    exec(&mut world, 3);
    world.ask(4, Ask::Wait { container: "web".into(), exec_id: "e".into() });
    let effects = world.give(Input::ShimDied { id: ID.into(), generation, init: None });
    assert_eq!(ended_with(&effects, 4), Some(255));
}

#[test]
fn a_restore_of_nothing_is_done_at_once() {
    let mut world = World::before_the_scan();
    let effects = world.give(Input::Found(Findings::default()));
    assert_eq!(effects, [Effect::Restoring { containers: 0 }, Effect::Restored]);
}

#[test]
fn a_running_container_is_reattached() {
    let (mut world, effects) = World::found(was_running(), Some(traces()));
    assert!(!has(&effects, |e| matches!(e, Effect::Restored)), "not before it has answered");
    let effects = world.probed(task(RunState::Running));
    assert!(has(&effects, |e| matches!(e, Effect::Watch { .. })));
    assert!(has(&effects, |e| matches!(e, Effect::Restored)));
    assert_eq!((world.class(), world.status()), (Class::Reattached, "running"));
}

#[test]
fn an_exit_while_away_is_true_and_the_policy_is_applied() {
    let mut container = was_running();
    container.config.restart = RestartPolicy::Always;
    let (mut world, _) = World::found(container, Some(traces()));
    world.probed(task(RunState::Stopped { status: 143, at_unix_ns: SECOND }));
    assert_eq!(world.class(), Class::ExitedWhileAway);
    let effects = world.retired();
    assert!(has(&effects, |e| matches!(e, Effect::Timer { timer: Timer::Restart, .. })));
    assert_eq!(world.registry.containers[ID].container.state.outcome.as_ref().unwrap().status, 143);
}

#[test]
fn a_stop_that_was_interrupted_by_our_death_is_finished() {
    let mut container = was_running();
    container.state.wish = Wish::Stopped;
    let (mut world, _) = World::found(container, Some(traces()));
    let effects = world.probed(task(RunState::Running));
    assert!(kills(&effects, 15));
    assert!(has(&effects, |e| matches!(e, Effect::Timer { timer: Timer::Stop, .. })));
}

#[test]
fn dead_shims_are_adopted_or_lost() {
    let (mut world, _) = World::found(was_running(), Some(traces()));
    world.probed(Probe::Dead(Some((9, 90))));
    assert_eq!(world.class(), Class::Adopted);
    let (mut world, _) = World::found(was_running(), Some(traces()));
    let effects = world.probed(Probe::Dead(None));
    assert_eq!(world.class(), Class::Lost);
    assert!(has(&effects, |e| matches!(e, Effect::Retire { shim_dead: true, .. })));
}

#[test]
fn a_silent_shim_delays_nobody_and_is_asked_again() {
    let (mut world, _) = World::found(was_running(), Some(traces()));
    let effects = world.probed(Probe::Silent);
    assert!(has(&effects, |e| matches!(e, Effect::Restored)));
    assert_eq!((world.class(), world.status()), (Class::Unresponsive, "unresponsive"));
    let generation = world.generation();
    let effects = world.give(Input::Elapsed { id: ID.into(), generation, timer: Timer::ProbeAgain });
    assert!(has(&effects, |e| matches!(e, Effect::Probe { .. })));
    let effects = world.probed(task(RunState::Running));
    assert!(!has(&effects, |e| matches!(e, Effect::Restored)), "the report is done once");
    assert_eq!((world.class(), world.status()), (Class::Reattached, "running"), "but it follows");
}

#[test]
fn until_the_disk_is_read_only_the_report_answers() {
    let mut world = World::before_the_scan();
    assert!(world.ask(1, Ask::List { all: true }).is_empty());
    assert!(world.ask(2, Ask::Stop { container: "web".into(), timeout: None }).is_empty());
    match answer_to(&world.ask(3, Ask::Report), 3) {
        Some(Ok(Answer::Report(report))) => assert!(!report.scanned && report.at_unix_ns == 0),
        other => panic!("{other:?}"),
    }
    let effects = world.give(Input::Found(Findings::default()));
    assert!(matches!(answer_to(&effects, 1), Some(Ok(Answer::List(list))) if list.is_empty()));
    assert!(matches!(answer_to(&effects, 2), Some(Err(Refusal::NotFound(_)))));
}

#[test]
fn who_wants_something_of_a_container_waits_for_its_verdict_and_who_looks_does_not() {
    let (mut world, _) = World::found(was_running(), Some(traces()));
    assert!(answer_to(&world.ask(1, Ask::Inspect { container: "web".into() }), 1).is_some());
    match answer_to(&world.ask(2, Ask::List { all: false }), 2) {
        Some(Ok(Answer::List(list))) => assert_eq!((list.len(), list[0].status.as_str()), (1, "restoring")),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.class(), Class::Restoring);
    assert!(exec(&mut world, 3).is_empty());
    assert!(world.ask(4, Ask::Stop { container: "web".into(), timeout: None }).is_empty());
    let effects = world.probed(task(RunState::Running));
    assert!(has(&effects, |e| matches!(e, Effect::StartExec { reply: 3, .. })));
    assert!(kills(&effects, 15));
    assert_eq!(world.registry.report().containers.len(), 1);
}

fn unresponsive() -> World {
    let (mut world, _) = World::found(was_running(), Some(traces()));
    world.probed(Probe::Silent);
    world
}

#[test]
fn a_wedged_shims_container_is_stopped_by_its_pid_and_its_status_told_when_the_shim_is_back() {
    let mut world = unresponsive();
    let effects = world.ask(1, Ask::Stop { container: "web".into(), timeout: None });
    assert!(has(&effects, |e| matches!(e, Effect::KillPid { pid: 9, start_time: 90, signal: 15, .. })));
    assert!(has(&effects, |e| matches!(e, Effect::WatchProcess { pid: 9, start_time: 90, .. })));
    wait(&mut world, 2);
    let generation = world.generation();
    let effects = world.give(Input::ProcessEnded { id: ID.into(), generation });
    assert_eq!(ended_with(&effects, 1), Some(255));
    assert_eq!((ended_with(&effects, 2), world.status()), (None, "unresponsive"));
    world.probed(task(RunState::Stopped { status: 143, at_unix_ns: SECOND }));
    assert_eq!(ended_with(&world.retired(), 2), Some(143));
}

#[test]
fn a_wedged_shim_whose_process_nobody_knows_cannot_be_stopped_and_says_so() {
    let (mut world, _) = World::found(was_running(), Some(ShimTraces { init: None, ..traces() }));
    world.probed(Probe::Silent);
    let effects = world.ask(1, Ask::Stop { container: "web".into(), timeout: None });
    assert!(matches!(answer_to(&effects, 1), Some(Err(Refusal::Precondition(t))) if t.contains("unresponsive")));
}

#[test]
fn a_wedged_shim_is_killed_for_who_removes_its_container_by_force() {
    let mut world = unresponsive();
    let effects = world.ask(1, Ask::Remove { container: "web".into(), force: true });
    assert!(has(&effects, |e| matches!(e, Effect::KillPid { pid: 7, start_time: 70, signal: 9, .. })));
    assert!(has(&effects, |e| matches!(e, Effect::WatchProcess { pid: 7, start_time: 70, .. })));
    let generation = world.generation();
    let effects = world.give(Input::ProcessEnded { id: ID.into(), generation });
    assert!(has(&effects, |e| matches!(e, Effect::Probe { .. })), "what became of the container?");
    let effects = world.probed(Probe::Dead(Some((9, 90))));
    assert!(has(&effects, |e| matches!(e, Effect::Retire { shim_dead: true, .. })), "clearing away ends it");
    world.retired();
    let effects = world.give(Input::Forgotten { id: ID.into(), problem: None });
    assert_eq!(answer_to(&effects, 1), Some(&Ok(Answer::Done)));
    assert!(world.registry.report().containers.is_empty(), "nobody needs to attend to it");
}

#[test]
fn a_stop_or_removal_that_a_shims_death_cut_short_goes_on() {
    let mut stopping = was_running();
    stopping.state.wish = Wish::Stopped;
    let (mut world, _) = World::found(stopping, Some(traces()));
    let effects = world.probed(Probe::Dead(Some((9, 90))));
    assert!(has(&effects, |e| matches!(e, Effect::KillPid { pid: 9, signal: 15, .. })));
    assert!(has(&effects, |e| matches!(e, Effect::Timer { timer: Timer::Stop, .. })));
    let mut world = World::running();
    world.ask(3, Ask::Remove { container: "web".into(), force: true });
    let generation = world.generation();
    let effects = world.give(Input::ShimDied { id: ID.into(), generation, init: Some((9, 90)) });
    assert!(has(&effects, |e| matches!(e, Effect::KillPid { pid: 9, signal: 9, .. })));
}

#[test]
fn a_newer_holdfasts_container_is_left_to_it_but_for_signals() {
    let caution = Some(Caution::Newer("it has schema 99".into()));
    let (mut world, _) =
        World::found_as(Found { container: was_running(), shim: Some(traces()), left_over: false, caution });
    world.probed(task(RunState::Running));
    assert_eq!((world.class(), world.status()), (Class::Incompatible, "incompatible"));
    for ask in [
        Ask::Start { container: "web".into(), onlooker: None },
        Ask::Remove { container: "web".into(), force: true },
        Ask::Call { container: "web".into(), call: Call::ReopenLogs },
    ] {
        let effects = world.ask(1, ask);
        assert!(matches!(answer_to(&effects, 1), Some(Err(Refusal::Precondition(t))) if t.contains("schema 99")));
    }
    assert!(kills(&world.ask(2, Ask::Stop { container: "web".into(), timeout: None }), 15));
    let effects = world.exited(0);
    assert_eq!(ended_with(&effects, 2), Some(0));
    assert!(!has(&effects, |e| matches!(e, Effect::Retire { .. } | Effect::Forget { .. })));
    assert_eq!(world.status(), "incompatible");
}

#[test]
fn an_unreadable_record_is_kept_until_somebody_insists() {
    let caution = || Some(Caution::Unreadable("no JSON".into()));
    let found = || Found { container: was_running(), shim: Some(traces()), left_over: false, caution: caution() };
    let (mut world, _) = World::found_as(found());
    world.probed(task(RunState::Running));
    assert_eq!((world.class(), world.status()), (Class::Reattached, "running"), "its shim makes up for it");
    let (mut world, _) = World::found_as(found());
    world.probed(Probe::Dead(None));
    assert_eq!((world.class(), world.status()), (Class::Unreadable, "unreadable"));
    let effects = world.ask(1, Ask::Remove { container: "web".into(), force: false });
    assert!(matches!(answer_to(&effects, 1), Some(Err(Refusal::Precondition(t))) if t.contains("no JSON")));
    let effects = world.ask(2, Ask::Remove { container: "web".into(), force: true });
    assert!(has(&effects, |e| matches!(e, Effect::Retire { shim_dead: true, .. })));
}

#[test]
fn what_an_earlier_boot_left_is_cleared_away_before_anything_is_started_again() {
    let mut always = was_running();
    always.config.restart = RestartPolicy::Always;
    let (mut world, _) = World::found_as(Found { container: always, shim: None, left_over: true, caution: None });
    world.boot_id = "next boot";
    let effects = world.probed(Probe::Dead(None));
    assert!(has(&effects, |e| matches!(e, Effect::Retire { shim_dead: true, .. })));
    assert!(!has(&effects, |e| matches!(e, Effect::Prepare { .. })));
    assert_eq!(world.class(), Class::Lost);
    assert!(has(&world.retired(), |e| matches!(e, Effect::Prepare { .. })));
}

#[test]
fn a_stop_that_comes_while_leftovers_are_cleared_away_holds() {
    let mut always = was_running();
    always.config.restart = RestartPolicy::Always;
    let (mut world, _) = World::found_as(Found { container: always, shim: None, left_over: true, caution: None });
    world.boot_id = "next boot";
    world.probed(Probe::Dead(None));
    world.ask(3, Ask::Stop { container: "web".into(), timeout: None });
    let effects = world.retired();
    assert!(answer_to(&effects, 3).is_some());
    assert!(!has(&effects, |e| matches!(e, Effect::Prepare { .. } | Effect::Timer { .. })), "{effects:?}");
}

#[test]
fn a_restart_under_way_comes_before_removal_at_rest_for_the_next_supervisor_too() {
    let mut own = was_running();
    (own.config.remove, own.state.renewing) = (true, true);
    own.state.outcome = Some(Outcome { status: 143, at_unix_ns: 1, reason: String::new() });
    let (mut world, _) = World::found(own, None);
    let effects = world.probed(Probe::Dead(None));
    assert!(has(&effects, |e| matches!(e, Effect::Prepare { .. })), "{effects:?}");
}

#[test]
fn one_that_was_never_started_is_as_before_when_its_shim_is_lost() {
    let mut made = was_running();
    made.state.wish = Wish::Created;
    let (mut world, _) = World::found(made, Some(traces()));
    world.probed(Probe::Dead(None));
    world.retired();
    assert_eq!(world.status(), "created");
    assert!(has(&world.ask(1, Ask::Start { container: "web".into(), onlooker: None }), |e| matches!(
        e,
        Effect::Prepare { .. }
    )));
}

/// What can become of a container, for [`each_event_has_its_consequence_under_each_policy`].
#[derive(Clone, Copy, Debug)]
enum Event {
    Exit(u32),
    StoppedByRequest,
    KilledByRequest,
    ToldToReloadThenExit(u32),
    StartByRequestFails,
    StartByPolicyFails,
    /// The rest is what the next supervisor finds.
    Runs,
    EndedMeanwhile(u32),
    StopCutShort,
    WaitedForItsRestart,
    EndedByShutdown(u32),
    HadBeenStopped,
    HadRested(u32),
    Rebooted,
    RebootedAfterAStop,
    RebootedAfterARest(u32),
    RebootedInItsPause,
    NeverStarted,
    NeverStartedAndRebooted,
}

fn ended(status: u32) -> Option<Outcome> {
    Some(Outcome { status, at_unix_ns: SECOND, reason: String::new() })
}

/// A container that ran, as an earlier supervisor left it, and what becomes of it now that there are no traces of a shim.
fn left(policy: RestartPolicy, boot_id: &'static str, state: State) -> World {
    let mut container = with(policy);
    container.state = State { boot_id: "boot".into(), started_at_unix_ns: SECOND / 2, ..state };
    let (mut world, _) = World::found(container, None);
    world.boot_id = boot_id;
    world.probed(Probe::Dead(None));
    world
}

fn consequence(policy: RestartPolicy, event: Event) -> &'static str {
    let why = Refusal::Failed("the mount is missing".into());
    let running = State { wish: Wish::Running, ..State::default() };
    let stopped = State { wish: Wish::Stopped, next: Some(Next::Rest), outcome: ended(143), ..State::default() };
    let waiting = State { next: Some(Next::RestartAt(2 * SECOND)), outcome: ended(1), ..running.clone() };
    let rested = |status| State { next: Some(Next::Rest), outcome: ended(status), ..running.clone() };
    let reattached = |state: State, probe| {
        let mut container = Container { state, ..with(policy) };
        container.state.started_at_unix_ns = SECOND / 2;
        let (mut world, _) = World::found(container, Some(traces()));
        world.probed(task(probe));
        world.retired();
        world
    };
    let world = match event {
        Event::Exit(status) | Event::ToldToReloadThenExit(status) => {
            let mut world = World::running_with(with(policy));
            if matches!(event, Event::ToldToReloadThenExit(_)) {
                world.ask(3, Ask::Kill { container: "web".into(), signal: 1 });
            }
            world.exited(status);
            world.retired();
            world
        }
        Event::StoppedByRequest | Event::KilledByRequest => {
            let mut world = World::running_with(with(policy));
            let container = "web".into();
            world.ask(
                3,
                match event {
                    Event::StoppedByRequest => Ask::Stop { container, timeout: None },
                    _ => Ask::Kill { container, signal: 9 },
                },
            );
            world.exited(137);
            world.retired();
            world
        }
        Event::StartByRequestFails => {
            let mut world = World::created(with(policy));
            world.ask(2, Ask::Start { container: "web".into(), onlooker: None });
            let generation = world.generation();
            world.give(Input::Started { id: ID.into(), generation, reply: Some(2), result: Err(why) });
            world.retired();
            world
        }
        Event::StartByPolicyFails => {
            let mut world = World::running_with(with(policy));
            world.exited(1);
            world.retired();
            world.elapsed();
            let generation = world.generation();
            world.give(Input::Prepared { id: ID.into(), generation, reply: None, result: Err(why) });
            world
        }
        Event::Runs => reattached(running, RunState::Running),
        Event::EndedMeanwhile(status) => reattached(running, RunState::Stopped { status, at_unix_ns: SECOND }),
        Event::StopCutShort => {
            let state = State { wish: Wish::Stopped, ..State::default() };
            reattached(state, RunState::Stopped { status: 143, at_unix_ns: SECOND })
        }
        Event::WaitedForItsRestart => left(policy, "boot", waiting),
        Event::EndedByShutdown(status) => left(policy, "boot", State { outcome: ended(status), ..running }),
        Event::HadBeenStopped => left(policy, "boot", stopped),
        Event::HadRested(status) => left(policy, "boot", rested(status)),
        Event::Rebooted => left(policy, "next boot", running),
        Event::RebootedAfterAStop => left(policy, "next boot", stopped),
        Event::RebootedAfterARest(status) => left(policy, "next boot", rested(status)),
        Event::RebootedInItsPause => left(policy, "next boot", waiting),
        Event::NeverStarted => left(policy, "boot", State::default()),
        Event::NeverStartedAndRebooted => left(policy, "next boot", State::default()),
    };
    match world.status() {
        "exited" | "created" => "rests",
        "restarting" => "waits",
        "preparing" => "starts",
        "running" => "runs",
        other => panic!("{event:?}: {other}"),
    }
}

/// The table of [`crate::policy`], through everything that decides.
#[test]
fn each_event_has_its_consequence_under_each_policy() {
    let policies =
        [RestartPolicy::No, RestartPolicy::OnFailure(None), RestartPolicy::Always, RestartPolicy::UnlessStopped];
    let rows = [
        (Event::Exit(0), ["rests", "rests", "waits", "waits"]),
        (Event::Exit(1), ["rests", "waits", "waits", "waits"]),
        (Event::StoppedByRequest, ["rests"; 4]),
        (Event::KilledByRequest, ["rests"; 4]),
        (Event::ToldToReloadThenExit(0), ["rests", "rests", "waits", "waits"]),
        (Event::ToldToReloadThenExit(1), ["rests", "waits", "waits", "waits"]),
        (Event::StartByRequestFails, ["rests"; 4]),
        (Event::StartByPolicyFails, ["rests", "waits", "waits", "waits"]),
        (Event::Runs, ["runs"; 4]),
        (Event::EndedMeanwhile(0), ["rests", "rests", "waits", "waits"]),
        (Event::EndedMeanwhile(1), ["rests", "waits", "waits", "waits"]),
        (Event::StopCutShort, ["rests"; 4]),
        (Event::EndedByShutdown(0), ["rests", "rests", "starts", "starts"]),
        (Event::EndedByShutdown(143), ["rests", "starts", "starts", "starts"]),
        (Event::HadBeenStopped, ["rests", "rests", "starts", "rests"]),
        (Event::HadRested(0), ["rests", "rests", "starts", "starts"]),
        (Event::HadRested(1), ["rests", "starts", "starts", "starts"]),
        (Event::Rebooted, ["rests", "starts", "starts", "starts"]),
        (Event::RebootedAfterAStop, ["rests", "rests", "starts", "rests"]),
        (Event::RebootedAfterARest(0), ["rests", "rests", "starts", "starts"]),
        (Event::RebootedAfterARest(1), ["rests", "starts", "starts", "starts"]),
        (Event::NeverStarted, ["rests"; 4]),
        (Event::NeverStartedAndRebooted, ["rests"; 4]),
    ];
    for (event, expected) in rows {
        assert_eq!(policies.map(|policy| consequence(policy, event)), expected, "{event:?}");
    }
    // Without a policy there is no pause to be found in.
    for event in [Event::WaitedForItsRestart, Event::RebootedInItsPause] {
        for policy in &policies[1..] {
            assert_eq!(consequence(*policy, event), "waits", "{event:?}");
        }
    }
}

#[test]
fn counts_and_what_is_left_of_a_pause_outlive_supervisor_and_machine() {
    for boot_id in ["boot", "next boot"] {
        let state = State {
            wish: Wish::Running,
            outcome: ended(1),
            restarts: 40,
            restarts_in_a_row: 5,
            next: Some(Next::RestartAt(SECOND + SECOND / 4)),
            started_at_unix_ns: SECOND / 2,
            boot_id: "boot".into(),
            ..State::default()
        };
        let (mut world, _) = World::found(Container { state, ..with(RestartPolicy::Always) }, None);
        world.boot_id = boot_id;
        let effects = world.probed(Probe::Dead(None));
        let left = Duration::from_millis(250);
        let timer = |e: &Effect| matches!(e, Effect::Timer { after, timer: Timer::Restart, .. } if *after == left);
        assert!(has(&effects, timer), "{effects:?}");
        world.elapsed();
        world.prepared();
        world.started();
        assert_eq!((world.state().restarts, world.state().restarts_in_a_row), (41, 6));
        world.unix_ns += SECOND;
        world.exited(1);
        let pause = Duration::from_millis(6400);
        let timer = |e: &Effect| matches!(e, Effect::Timer { after, .. } if *after == pause);
        assert!(has(&world.retired(), timer), "the pause goes on growing");
    }
    let state = State { wish: Wish::Running, restarts: 40, restarts_in_a_row: 5, ..State::default() };
    let rebooted = left(RestartPolicy::Always, "next boot", state);
    assert_eq!((rebooted.state().restarts, rebooted.state().restarts_in_a_row), (40, 5), "the reboot is no failure");
}

#[test]
fn a_clock_that_was_set_back_makes_no_pause_endless() {
    let state = State {
        wish: Wish::Running,
        outcome: ended(1),
        next: Some(Next::RestartAt(i64::MAX)),
        started_at_unix_ns: 1,
        boot_id: "boot".into(),
        ..State::default()
    };
    let (mut world, _) = World::found(Container { state, ..with(RestartPolicy::Always) }, None);
    let effects = world.probed(Probe::Dead(None));
    let bounded = |e: &Effect| matches!(e, Effect::Timer { after, .. } if *after == crate::policy::LONGEST_PAUSE);
    assert!(has(&effects, bounded), "{effects:?}");
}

/// One more run that ends like that, after the pause before it.
fn runs_again(world: &mut World, status: u32) -> Vec<Effect> {
    world.elapsed();
    world.prepared();
    world.started();
    world.exited(status);
    world.retired()
}

#[test]
fn a_policy_that_gives_up_says_so_and_a_start_by_request_begins_anew() {
    let mut world = World::running_with(with(RestartPolicy::OnFailure(Some(2))));
    world.exited(3);
    world.retired();
    runs_again(&mut world, 3);
    runs_again(&mut world, 3);
    assert_eq!((world.status(), world.state().restarts), ("exited", 2));
    let reason = world.state().outcome.clone().unwrap().reason;
    assert!(reason.contains("on-failure:2") && reason.contains("2 restarts"), "{reason}");
    // Neither a new supervisor nor a new boot changes its mind.
    for boot_id in ["boot", "next boot"] {
        let next = left(RestartPolicy::OnFailure(Some(2)), boot_id, world.state().clone());
        assert_eq!(next.status(), "exited");
    }
    world.ask(9, Ask::Start { container: "web".into(), onlooker: None });
    assert_eq!((world.status(), world.state().restarts), ("preparing", 0));
}

#[test]
fn a_signal_that_was_survived_for_long_is_not_the_cause_of_an_end() {
    let mut world = World::running_with(with(RestartPolicy::Always));
    world.ask(3, Ask::Kill { container: "web".into(), signal: 15 });
    assert_eq!(world.status(), "running");
    world.unix_ns += 60 * SECOND;
    world.exited(1);
    world.retired();
    assert_eq!(world.status(), "restarting");
}

#[test]
fn a_signal_that_is_meant_to_end_it_ends_a_pause_too() {
    let mut world = World::running_with(with(RestartPolicy::Always));
    wait(&mut world, 3);
    world.exited(1);
    world.retired();
    let effects = world.ask(4, Ask::Kill { container: "web".into(), signal: 1 });
    assert!(matches!(answer_to(&effects, 4), Some(Err(Refusal::Precondition(_)))), "there is nothing to signal");
    let effects = world.ask(5, Ask::Kill { container: "web".into(), signal: 9 });
    assert_eq!(answer_to(&effects, 5), Some(&Ok(Answer::Done)));
    assert_eq!((ended_with(&effects, 3), world.status()), (Some(1), "exited"));
    assert!(world.elapsed().is_empty());
}

fn update(world: &mut World, policy: &str) -> Vec<Effect> {
    let restart = Some(policy.parse().unwrap());
    world.ask(7, Ask::Update { container: "web".into(), limits: Limits::default(), restart, log: None })
}

#[test]
fn another_policy_is_asked_at_the_next_end_and_in_a_pause_at_once() {
    let mut world = World::running();
    update(&mut world, "on-failure:1");
    world.exited(1);
    world.retired();
    assert_eq!(world.status(), "restarting");
    update(&mut world, "on-failure:1");
    assert_eq!(world.status(), "restarting", "the same again changes nothing");
    update(&mut world, "always");
    assert_eq!(world.status(), "restarting");
    wait(&mut world, 3);
    let effects = update(&mut world, "no");
    assert_eq!((ended_with(&effects, 3), world.status()), (Some(1), "exited"));
    update(&mut world, "always");
    assert_eq!(world.status(), "exited", "what rests is started by people");
    let mut once = container();
    once.config.remove = true;
    let mut world = World::running_with(once);
    let effects = update(&mut world, "always");
    assert!(matches!(answer_to(&effects, 7), Some(Err(Refusal::Precondition(text))) if text.contains("removed")));
}

#[test]
fn a_start_that_our_death_cut_short_goes_on() {
    let mut container = was_running();
    container.state.started_at_unix_ns = 0;
    let (mut world, _) = World::found(container, Some(traces()));
    let effects = world.probed(task(RunState::Created));
    assert!(has(&effects, |e| matches!(e, Effect::StartTask { .. })));
    let (mut world, _) = World::found(self::container(), Some(traces()));
    assert!(!has(&world.probed(task(RunState::Created)), |e| matches!(e, Effect::StartTask { .. })));
}

#[test]
fn what_is_unreadable_is_listed_and_refused_with_its_reason() {
    let mut world = World::before_the_scan();
    let unusable = Unusable {
        namespace: "default".into(),
        id: "broken".into(),
        class: Class::Unreadable,
        reason: "no JSON".into(),
    };
    world.give(Input::Found(Findings { unusable: vec![unusable], ..Findings::default() }));
    assert_eq!(world.class(), Class::Unreadable);
    let effects = world.ask(1, Ask::Remove { container: "broken".into(), force: true });
    assert!(matches!(answer_to(&effects, 1), Some(Err(Refusal::Precondition(t))) if t.contains("no JSON")));
    let effects = world.ask(2, Ask::List { all: true });
    assert!(matches!(answer_to(&effects, 2), Some(Ok(Answer::List(l))) if l[0].status == Status::Unreadable));
}

/// Random inputs in random order: nothing panics, and no question is answered twice or by nobody.
#[test]
fn every_question_is_answered_at_most_once_whatever_the_order() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for _ in 0..2000 {
        let mut world = match random(2) {
            0 => World::new(),
            _ => World::found(was_running(), Some(traces())).0,
        };
        let mut asked = 0;
        let mut answered = std::collections::HashSet::new();
        for _ in 0..40 {
            let (id, generation) = (ID.to_owned(), world.registry.containers.get(ID).map_or(1, |e| e.generation));
            let web = || "web".to_owned();
            let mut ask = |ask| {
                asked += 1;
                Input::Ask { ask, reply: asked }
            };
            let input = match random(25) {
                0 => ask(Ask::Create { container: Box::new(container()), spec: String::new() }),
                1 => ask(Ask::Start { container: web(), onlooker: None }),
                2 => ask(Ask::Stop { container: web(), timeout: None }),
                3 => ask(Ask::Remove { container: web(), force: random(2) == 0 }),
                4 => ask(Ask::Wait { container: web(), exec_id: String::new() }),
                5 => ask(Ask::Kill { container: web(), signal: 1 }),
                6 | 7 => {
                    let outcome = Outcome { status: 1, at_unix_ns: 1, reason: String::new() };
                    Input::Exited { id, generation, outcome }
                }
                8 => Input::ShimDied { id, generation, init: (random(2) == 0).then_some((9, 90)) },
                9 | 10 => Input::Retired { id, generation, outcome: None },
                11 => Input::Elapsed { id, generation, timer: Timer::Stop },
                12 => Input::Elapsed { id, generation, timer: Timer::Restart },
                13 | 14 => Input::Prepared { id, generation, reply: None, result: Ok(shim()) },
                15 => Input::Started { id, generation, reply: None, result: Ok(9) },
                16 => Input::Started { id, generation, reply: None, result: Err(Refusal::Failed("no".into())) },
                17 => Input::Probed { id, generation, probe: Probe::Silent },
                18 => Input::Probed { id, generation, probe: Probe::Dead((random(2) == 0).then_some((9, 90))) },
                19 => Input::Probed { id, generation, probe: task(RunState::Running) },
                20 => Input::ProcessEnded { id, generation },
                21 => Input::Elapsed { id, generation, timer: Timer::ProbeAgain },
                22 => ask(Ask::Restart { container: web(), timeout: None, begun_unix_ns: 0 }),
                23 => ask(Ask::Kill { container: web(), signal: 9 }),
                _ => Input::Forgotten { id, problem: (random(4) == 0).then(|| "busy".into()) },
            };
            for effect in world.give(input) {
                if let Effect::Reply { to, .. } = effect {
                    assert!(answered.insert(to), "question {to} was answered twice");
                }
            }
        }
    }
}

#[test]
fn who_wants_to_see_a_run_from_its_first_byte_is_attached_before_that_run_and_no_other() {
    let seen = |effects: &[Effect]| {
        let starts = effects.iter().filter_map(|e| match e {
            Effect::StartTask { onlooker, .. } => Some(onlooker.as_ref().map(|o| o.stdout.clone())),
            _ => None,
        });
        starts.collect::<Vec<_>>()
    };
    let onlooker = || Some(Onlooker { stdout: "/o".into(), stderr: "/e".into(), window: Some((80, 25)) });
    let mut world = World::created(container());
    let effects = world.ask(2, Ask::Start { container: "web".into(), onlooker: onlooker() });
    assert_eq!(seen(&effects), [Some("/o".to_owned())], "one that is made");
    world.started();
    let effects = world.ask(3, Ask::Start { container: "web".into(), onlooker: onlooker() });
    assert!(matches!(answer_to(&effects, 3), Some(Err(Refusal::Precondition(_)))), "too late: it runs");
    world.exited(0);
    world.retired();
    world.ask(4, Ask::Start { container: "web".into(), onlooker: onlooker() });
    let generation = world.generation();
    let failed = Err(Refusal::Failed("no shim".into()));
    world.give(Input::Prepared { id: ID.into(), generation, reply: Some(4), result: failed });
    world.ask(5, Ask::Start { container: "web".into(), onlooker: None });
    let generation = world.generation();
    let effects = world.give(Input::Prepared { id: ID.into(), generation, reply: Some(5), result: Ok(shim()) });
    assert_eq!(seen(&effects), [None], "who saw a start fail does not see the next");
}

#[test]
fn only_what_runs_is_paused_and_only_what_is_paused_is_unpaused() {
    let call = |world: &mut World, call: Call| world.ask(9, Ask::Call { container: "web".into(), call });
    let refused = |effects: &[Effect]| matches!(answer_to(effects, 9), Some(Err(Refusal::Precondition(_))));
    let mut world = World::created(container());
    assert!(refused(&call(&mut world, Call::Pause)), "nothing has begun");
    world.ask(2, Ask::Start { container: "web".into(), onlooker: None });
    world.started();
    assert!(refused(&call(&mut world, Call::Resume)));
    assert!(has(&call(&mut world, Call::Pause), |e| matches!(e, Effect::Call { call: Call::Pause, .. })));
    world.give(Input::Paused { id: ID.into(), paused: true });
    assert_eq!(world.status(), "paused");
    assert!(refused(&call(&mut world, Call::Pause)));
    assert!(refused(&exec(&mut world, 9)), "what is frozen runs nothing new");
    assert!(has(&call(&mut world, Call::Resume), |e| matches!(e, Effect::Call { call: Call::Resume, .. })));
}

#[test]
fn limits_of_a_running_container_go_to_its_shim_and_those_of_a_stopped_one_are_written_down() {
    let update = |world: &mut World| {
        let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
        world.ask(5, Ask::Update { container: "web".into(), limits, restart: None, log: None })
    };
    let mut world = World::running();
    assert!(has(&update(&mut world), |e| matches!(e, Effect::Call { call: Call::Update { .. }, reply: Some(5), .. })));
    world.exited(0);
    assert!(
        matches!(answer_to(&update(&mut world), 5), Some(Err(Refusal::Precondition(_)))),
        "it is being cleared away"
    );
    world.retired();
    assert!(has(&update(&mut world), |e| matches!(e, Effect::KeepLimits { reply: 5, .. })));
}
