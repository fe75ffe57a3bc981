//! Inputs in, effects out: the whole supervisor without a process, a clock or a file.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::container::{Config, SCHEMA, State};
use crate::policy::RestartPolicy;
use crate::report::Class;
use crate::scan::{Findings, Found, ShimTraces};

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
    fn new() -> Self {
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
        self.registry.containers[ID].status()
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
        world.ask(2, Ask::Start { container: "web".into() });
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
        self.give(Input::Exited { id: ID.into(), generation, status, at_unix_ns })
    }

    fn retired(&mut self) -> Vec<Effect> {
        let generation = self.generation();
        self.give(Input::Retired { id: ID.into(), generation, outcome: None })
    }

    fn found(container: Container, shim: Option<ShimTraces>) -> (Self, Vec<Effect>) {
        let mut world = Self::new();
        let mut findings = Findings::default();
        findings.own.insert(ID.into(), Found { container, shim });
        let effects = world.give(Input::Found(findings));
        (world, effects)
    }

    fn probed(&mut self, probe: Probe) -> Vec<Effect> {
        let generation = self.generation();
        self.give(Input::Probed { id: ID.into(), generation, probe })
    }

    fn class(&self) -> Class {
        self.registry.report().containers[0].class
    }
}

fn was_running() -> Container {
    let mut container = container();
    container.state.wish = Wish::Running;
    container.state.started_at_unix_ns = SECOND / 2;
    container
}

fn task(state: RunState) -> Probe {
    Probe::Answers(shim(), Some(TaskView { pid: 9, state, started_at_unix_ns: 0 }))
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
    world.ask(2, Ask::Start { container: ID[..4].into() });
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
    world.ask(3, Ask::Start { container: "web".into() });
    let effects = world.give(Input::Exited { id: ID.into(), generation: earlier, status: 9, at_unix_ns: 1 });
    assert!(effects.is_empty(), "{effects:?}");
    assert!(world.give(Input::ShimDied { id: ID.into(), generation: earlier, init: None }).is_empty());
}

#[test]
fn a_start_that_fails_is_told_and_not_repeated_by_any_policy() {
    let mut always = container();
    always.config.restart = RestartPolicy::Always;
    let mut world = World::created(always);
    world.ask(2, Ask::Start { container: "web".into() });
    let generation = world.generation();
    let result = Err(Refusal::Failed("exec: \"/x\": permission denied".into()));
    let effects = world.give(Input::Started { id: ID.into(), generation, reply: Some(2), result });
    assert!(matches!(answer_to(&effects, 2), Some(Err(_))));
    world.retired();
    assert_eq!(*world.phase(), Phase::AtRest);
    assert_eq!(ended_with(&wait(&mut world, 3), 3), Some(126));
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
    world.ask(3, Ask::Start { container: "web".into() });
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
        stdin: String::new(),
        stdout: String::new(),
        stderr: String::new(),
    };
    world.ask(reply, Ask::Exec { container: "web".into(), exec_id: "e".into(), spec: Box::new(spec) })
}

#[test]
fn an_exec_is_watched_told_and_forgotten_after_a_while() {
    let mut world = World::running();
    let generation = world.generation();
    assert!(has(&exec(&mut world, 3), |e| matches!(e, Effect::StartExec { .. })));
    assert!(matches!(answer_to(&exec(&mut world, 4), 4), Some(Err(Refusal::Exists(_)))));
    let (id, exec_id) = (ID.to_owned(), "e".to_owned());
    let started = Input::ExecStarted { id: id.clone(), generation, exec_id: exec_id.clone(), reply: 3, result: Ok(20) };
    assert!(has(&world.give(started), |e| matches!(e, Effect::WatchExec { .. })));
    world.ask(5, Ask::Wait { container: "web".into(), exec_id: exec_id.clone() });
    let outcome = Outcome { status: 3, at_unix_ns: 1, reason: String::new() };
    let effects = world.give(Input::ExecExited { id: id.clone(), generation, exec_id: exec_id.clone(), outcome });
    assert_eq!(ended_with(&effects, 5), Some(3));
    let late = world.ask(6, Ask::Wait { container: "web".into(), exec_id: exec_id.clone() });
    assert_eq!(ended_with(&late, 6), Some(3));
    let timer = Timer::ForgetExec(exec_id.clone());
    let effects = world.give(Input::Elapsed { id, generation, timer });
    assert!(has(&effects, |e| matches!(e, Effect::DeleteExec { .. })));
    let gone = world.ask(7, Ask::Wait { container: "web".into(), exec_id });
    assert!(matches!(answer_to(&gone, 7), Some(Err(Refusal::NotFound(_)))));
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
    let mut world = World::new();
    let effects = world.give(Input::Found(Findings::default()));
    assert_eq!(effects, [Effect::Restored]);
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
    assert_eq!(world.status(), "running");
}

#[test]
fn after_a_reboot_the_wish_decides() {
    let restored = |policy, wish, outcome: Option<u32>| {
        let mut container = was_running();
        container.config.restart = policy;
        container.state.wish = wish;
        container.state.outcome = outcome.map(|status| Outcome { status, at_unix_ns: 1, reason: String::new() });
        let (mut world, effects) = World::found(container, None);
        assert!(has(&effects, |e| matches!(e, Effect::Probe { traces: None, .. })));
        world.boot_id = "next boot";
        world.probed(Probe::Dead(None));
        world
    };
    let world = restored(RestartPolicy::No, Wish::Running, None);
    assert_eq!((world.class(), world.status()), (Class::Lost, "exited"));
    assert_eq!(restored(RestartPolicy::UnlessStopped, Wish::Running, None).status(), "restarting");
    assert_eq!(restored(RestartPolicy::UnlessStopped, Wish::Stopped, Some(0)).status(), "exited");
    assert_eq!(restored(RestartPolicy::Always, Wish::Stopped, Some(0)).status(), "restarting");
}

#[test]
fn our_own_restart_does_not_start_what_was_stopped() {
    let mut container = was_running();
    container.config.restart = RestartPolicy::Always;
    container.state.wish = Wish::Stopped;
    container.state.outcome = Some(Outcome { status: 0, at_unix_ns: 1, reason: String::new() });
    let (mut world, _) = World::found(container, None);
    world.probed(Probe::Dead(None));
    assert_eq!((world.class(), world.status()), (Class::AtRest, "exited"));
}

#[test]
fn a_pause_before_a_restart_that_our_death_cut_short_goes_on() {
    let mut container = was_running();
    container.config.restart = RestartPolicy::Always;
    container.state.outcome = Some(Outcome { status: 1, at_unix_ns: SECOND, reason: String::new() });
    let (mut world, _) = World::found(container, None);
    let effects = world.probed(Probe::Dead(None));
    assert!(has(&effects, |e| matches!(e, Effect::Timer { timer: Timer::Restart, .. })));
}

#[test]
fn what_is_unreadable_is_listed_and_refused_with_its_reason() {
    let mut world = World::new();
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
    assert!(matches!(answer_to(&effects, 2), Some(Ok(Answer::List(l))) if l[0].status == "unreadable"));
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
        let mut world = World::new();
        let mut asked = 0;
        let mut answered = std::collections::HashSet::new();
        for _ in 0..40 {
            let (id, generation) = (ID.to_owned(), world.registry.containers.get(ID).map_or(1, |e| e.generation));
            let web = || "web".to_owned();
            let mut ask = |ask| {
                asked += 1;
                Input::Ask { ask, reply: asked }
            };
            let input = match random(18) {
                0 => ask(Ask::Create { container: Box::new(container()), spec: String::new() }),
                1 => ask(Ask::Start { container: web() }),
                2 => ask(Ask::Stop { container: web(), timeout: None }),
                3 => ask(Ask::Remove { container: web(), force: random(2) == 0 }),
                4 => ask(Ask::Wait { container: web(), exec_id: String::new() }),
                5 => ask(Ask::Kill { container: web(), signal: 1 }),
                6 | 7 => Input::Exited { id, generation, status: 1, at_unix_ns: 1 },
                8 => Input::ShimDied { id, generation, init: (random(2) == 0).then_some((9, 90)) },
                9 | 10 => Input::Retired { id, generation, outcome: None },
                11 => Input::Elapsed { id, generation, timer: Timer::Stop },
                12 => Input::Elapsed { id, generation, timer: Timer::Restart },
                13 | 14 => Input::Prepared { id, generation, reply: None, result: Ok(shim()) },
                15 => Input::Started { id, generation, reply: None, result: Ok(9) },
                16 => Input::Started { id, generation, reply: None, result: Err(Refusal::Failed("no".into())) },
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
