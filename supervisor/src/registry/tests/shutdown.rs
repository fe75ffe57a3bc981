//! The end of the supervisor, with its containers or without them.

use super::*;

fn terminate(world: &mut World, live_restore: bool) -> Vec<Effect> {
    world.give(Input::Terminate { live_restore, within: None })
}

fn leaves(effects: &[Effect]) -> bool {
    has(effects, |e| matches!(e, Effect::Leave))
}

fn timer(effects: &[Effect], wanted: &Timer) -> Option<Duration> {
    effects.iter().find_map(|e| match e {
        Effect::Timer { after, timer, .. } if timer == wanted => Some(*after),
        _ => None,
    })
}

fn bound(effects: &[Effect]) -> Duration {
    let due = effects.iter().find_map(|e| match e {
        Effect::Due { after, due: Due::Kill } => Some(*after),
        _ => None,
    });
    due.unwrap_or_else(|| panic!("no bound in {effects:?}"))
}

fn stopped(effects: &[Effect]) -> Option<&Stopped> {
    effects.iter().find_map(|e| match e {
        Effect::Stopped(stopped) => Some(stopped),
        _ => None,
    })
}

fn elapsed(world: &mut World, timer: Timer) -> Vec<Effect> {
    let generation = world.generation();
    world.give(Input::Elapsed { id: ID.into(), generation, timer })
}

fn saved(effects: &[Effect]) -> Container {
    let last = effects.iter().rev().find_map(|e| match e {
        Effect::Save(container) => Some(container.as_ref().clone()),
        _ => None,
    });
    last.unwrap_or_else(|| panic!("nothing saved in {effects:?}"))
}

fn with_policy(policy: RestartPolicy) -> Container {
    let mut container = container();
    container.config.restart = policy;
    container
}

#[test]
fn with_live_restore_what_runs_is_left_alone() {
    let effects = terminate(&mut World::running(), true);
    assert_eq!(effects, [Effect::Leave]);
}

#[test]
fn with_live_restore_and_nothing_running_everything_is_cleaned_up() {
    assert!(leaves(&terminate(&mut World::new(), true)));
    let mut world = World::created(container());
    let effects = terminate(&mut world, true);
    assert!(has(&effects, |e| matches!(e, Effect::Retire { .. })) && !leaves(&effects));
    let effects = world.retired();
    assert!(leaves(&effects));
    assert_eq!(world.status(), "created", "it can be started by the next one");
    assert_eq!(stopped(&effects).unwrap().how, How::NeverRan);
}

#[test]
fn without_live_restore_each_is_stopped_by_its_own_signal_and_told_of() {
    let mut own = container();
    (own.config.stop_signal, own.config.stop_timeout) = (3, 7);
    let mut world = World::running_with(own);
    let effects = terminate(&mut world, false);
    assert!(kills(&effects, 3) && !leaves(&effects));
    assert_eq!(timer(&effects, &Timer::Stop), Some(Duration::from_secs(7)));
    assert_eq!(world.status(), "stopping");
    world.unix_ns += SECOND;
    let effects = world.exited(131);
    assert!(!leaves(&effects), "there is something to clean up");
    let effects = world.retired();
    let told = position(&effects, |e| matches!(e, Effect::Stopped(_)));
    assert!(told < position(&effects, |e| matches!(e, Effect::Leave)));
    let one = stopped(&effects).unwrap();
    assert_eq!((one.how, one.took, one.outcome.as_ref().unwrap().status), (How::Signal, Duration::from_secs(1), 131));
}

#[test]
fn all_together_have_the_time_of_the_slowest_unless_the_settings_say_otherwise() {
    let with = |stop_timeout| {
        let mut own = container();
        own.config.stop_timeout = stop_timeout;
        World::running_with(own)
    };
    assert_eq!(bound(&terminate(&mut with(1), false)), Duration::from_secs(15));
    assert_eq!(bound(&terminate(&mut with(60), false)), Duration::from_secs(65));
    let within = Some(Duration::from_secs(2));
    let mut world = with(60);
    let effects = world.give(Input::Terminate { live_restore: false, within });
    assert_eq!(bound(&effects), Duration::from_secs(2));
    let effects = world.give(Input::Due(Due::Kill));
    assert!(kills(&effects, 9));
    world.exited(137);
    assert_eq!(stopped(&world.retired()).unwrap().how, How::KilledAfterShutdownTimeout);
}

#[test]
fn a_stop_timeout_ends_in_a_kill_and_a_shim_that_holds_it_up_is_killed_too() {
    let mut world = World::running();
    terminate(&mut world, false);
    let effects = elapsed(&mut world, Timer::Stop);
    assert!(kills(&effects, 9) && timer(&effects, &Timer::KillShim).is_some());
    let effects = elapsed(&mut world, Timer::KillShim);
    assert!(has(&effects, |e| matches!(e, Effect::KillPid { pid: 7, start_time: 70, signal: 9, .. })));
    let generation = world.generation();
    let effects = world.give(Input::ShimDied { id: ID.into(), generation, init: Some((9, 90)) });
    assert!(has(&effects, |e| matches!(e, Effect::KillPid { pid: 9, start_time: 90, signal: 9, .. })));
    world.exited(137);
    let effects = world.retired();
    assert_eq!(stopped(&effects).unwrap().how, How::KilledAfterStopTimeout);
    assert!(leaves(&effects));
}

#[test]
fn a_second_request_to_end_kills_what_is_left() {
    let mut world = World::running();
    terminate(&mut world, false);
    assert!(kills(&terminate(&mut world, false), 9));
    assert!(world.give(Input::Due(Due::Kill)).is_empty(), "that was done");
    world.exited(137);
    let effects = world.retired();
    assert_eq!(stopped(&effects).unwrap().how, How::KilledInHurry);
    assert!(leaves(&effects));
}

#[test]
fn what_does_not_end_at_all_is_left_behind_and_named() {
    let mut world = World::running();
    terminate(&mut world, false);
    world.give(Input::Due(Due::Kill));
    let effects = world.give(Input::Due(Due::LeaveBehind));
    assert_eq!(stopped(&effects).unwrap().how, How::LeftBehind);
    assert!(leaves(&effects));
    assert!(!leaves(&world.exited(137)), "it leaves once");
}

#[test]
fn nothing_is_started_once_the_end_has_begun_and_questions_are_answered() {
    let mut world = World::running();
    terminate(&mut world, false);
    for ask in [
        Ask::Create {
            container: Box::new(Container { id: "ff".into(), name: "b".into(), ..container() }),
            spec: "{}".into(),
        },
        Ask::Start { container: "web".into(), onlooker: None },
    ] {
        assert!(matches!(answer_to(&world.ask(5, ask), 5), Some(Err(Refusal::Precondition(_)))));
    }
    let effects = world.ask(6, Ask::Inspect { container: "web".into() });
    assert!(matches!(answer_to(&effects, 6), Some(Ok(Answer::Inspect(_)))));
}

#[test]
fn what_the_end_has_stopped_is_not_stopped_by_request() {
    for (policy, comes_back) in [
        (RestartPolicy::No, false),
        (RestartPolicy::OnFailure(Some(1)), true),
        (RestartPolicy::Always, true),
        (RestartPolicy::UnlessStopped, true),
    ] {
        let mut world = World::running_with(with_policy(policy));
        wait(&mut world, 3);
        terminate(&mut world, false);
        let container = saved(&world.exited(143));
        assert_eq!((container.state.wish, container.state.next), (Wish::Running, None), "the policy had no say");
        let effects = world.retired();
        assert!(leaves(&effects) && !has(&effects, |e| matches!(e, Effect::Timer { .. })), "{policy}");
        // Who waits for the last end of one that comes back asks the next supervisor.
        assert_eq!(ended_with(&effects, 3), (!comes_back).then_some(143), "{policy}");
        let (mut world, _) = World::found(container, None);
        let effects = world.probed(Probe::Dead(None));
        assert_eq!(has(&effects, |e| matches!(e, Effect::Prepare { .. })), comes_back, "{policy}");
    }
}

#[test]
fn one_that_was_stopped_by_request_meanwhile_stays_stopped() {
    let mut world = World::running_with(with_policy(RestartPolicy::UnlessStopped));
    terminate(&mut world, false);
    world.ask(3, Ask::Stop { container: "web".into(), timeout: None });
    let container = saved(&world.exited(143));
    assert_eq!(container.state.wish, Wish::Stopped);
    assert_eq!(ended_with(&world.retired(), 3), Some(143));
    let (mut world, _) = World::found(container, None);
    assert!(!has(&world.probed(Probe::Dead(None)), |e| matches!(e, Effect::Prepare { .. })));
}

#[test]
fn one_that_is_to_be_removed_at_its_end_is() {
    let mut own = container();
    own.config.remove = true;
    let mut world = World::running_with(own);
    terminate(&mut world, false);
    world.exited(143);
    assert!(has(&world.retired(), |e| matches!(e, Effect::Forget { .. })));
    assert!(leaves(&world.give(Input::Forgotten { id: ID.into(), problem: None })));
}

#[test]
fn one_that_removes_itself_and_was_never_started_is_there_for_the_next_supervisor() {
    let mut own = container();
    own.config.remove = true;
    let mut world = World::created(own.clone());
    terminate(&mut world, false);
    let effects = world.retired();
    assert!(!has(&effects, |e| matches!(e, Effect::Forget { .. })) && leaves(&effects));
    own.state = State::default();
    let (mut world, _) = World::found(own, None);
    assert!(!has(&world.probed(Probe::Dead(None)), |e| matches!(e, Effect::Forget { .. })));
    assert_eq!(world.status(), "created");
}

#[test]
fn a_create_that_the_end_overtakes_fails_and_leaves_nothing() {
    let mut world = World::new();
    world.ask(1, Ask::Create { container: Box::new(container()), spec: "{}".into() });
    assert!(!leaves(&terminate(&mut world, false)));
    let generation = world.generation();
    let effects = world.give(Input::Prepared { id: ID.into(), generation, reply: Some(1), result: Ok(shim()) });
    assert!(matches!(answer_to(&effects, 1), Some(Err(_))));
    assert!(has(&world.retired(), |e| matches!(e, Effect::Forget { .. })));
    assert!(leaves(&world.give(Input::Forgotten { id: ID.into(), problem: None })));
}

#[test]
fn a_restart_that_is_due_waits_for_the_next_supervisor() {
    let mut world = World::running_with(with_policy(RestartPolicy::Always));
    world.exited(1);
    world.retired();
    assert_eq!(world.status(), "restarting");
    assert!(leaves(&terminate(&mut world, false)));
    assert!(elapsed(&mut world, Timer::Restart).is_empty());
}

#[test]
fn survivors_of_a_killed_supervisor_are_stopped_without_live_restore_and_their_policies_apply() {
    for (policy, comes_back) in [(RestartPolicy::No, false), (RestartPolicy::Always, true)] {
        let mut survivor = was_running();
        survivor.config.restart = policy;
        let mut world = World::new();
        world.registry = Registry::new(Survivors::Stop(Some(Duration::from_secs(3))));
        let mut findings = Findings::default();
        findings
            .own
            .insert(ID.into(), Found { container: survivor, shim: Some(traces()), left_over: false, caution: None });
        world.give(Input::Found(findings));
        let effects = world.probed(task(RunState::Running));
        assert!(kills(&effects, 15), "{effects:?}");
        assert_eq!(timer(&effects, &Timer::Stop), Some(Duration::from_secs(3)));
        assert!(has(&effects, |e| matches!(e, Effect::Restored)), "the API does not wait for it");
        world.exited(0);
        let effects = world.retired();
        assert_eq!(has(&effects, |e| matches!(e, Effect::Prepare { .. })), comes_back);
        assert!(stopped(&effects).is_some() && !leaves(&effects));
    }
}

#[test]
fn a_survivor_whose_shim_is_wedged_is_stopped_too() {
    let mut world = World::new();
    world.registry = Registry::new(Survivors::Stop(None));
    let mut findings = Findings::default();
    findings
        .own
        .insert(ID.into(), Found { container: was_running(), shim: Some(traces()), left_over: false, caution: None });
    world.give(Input::Found(findings));
    let effects = world.probed(Probe::Silent);
    assert!(has(&effects, |e| matches!(e, Effect::KillPid { pid: 9, signal: 15, .. })));
    elapsed(&mut world, Timer::Stop);
    let effects = elapsed(&mut world, Timer::KillShim);
    assert!(has(&effects, |e| matches!(e, Effect::KillPid { pid: 7, signal: 9, .. })));
    assert!(has(&world.probed(Probe::Dead(None)), |e| matches!(e, Effect::Retire { shim_dead: true, .. })));
    assert!(stopped(&world.retired()).is_some());
}

#[test]
fn the_machines_shutdown_is_answered_when_all_have_ended_and_the_supervisor_stays_until_it_is_told() {
    let mut world = World::running();
    let effects = world.ask(4, Ask::StopAll { within: None });
    assert!(kills(&effects, 15) && answer_to(&effects, 4).is_none());
    world.exited(143);
    let effects = world.retired();
    assert!(!leaves(&effects));
    let Some(Ok(Answer::Stopped(all))) = answer_to(&effects, 4) else { panic!("{effects:?}") };
    assert_eq!((all.len(), all[0].name.as_str(), all[0].how), (1, "web", How::Signal));
    assert!(matches!(
        answer_to(&world.ask(5, Ask::Start { container: "web".into(), onlooker: None }), 5),
        Some(Err(_))
    ));
    assert!(leaves(&terminate(&mut world, true)), "with live-restore, too: nothing runs");
}

#[test]
fn a_first_request_to_end_during_the_machines_shutdown_is_not_a_second_one() {
    let mut world = World::running();
    let effects = world.ask(4, Ask::StopAll { within: None });
    assert!(has(&effects, |e| matches!(e, Effect::Stopping { leave: false, .. })));
    let effects = terminate(&mut world, true);
    assert!(!kills(&effects, 9) && !leaves(&effects));
    assert!(has(&effects, |e| matches!(e, Effect::Stopping { leave: true, .. })), "the service manager is told now");
    world.exited(143);
    assert!(leaves(&world.retired()));
}

#[test]
fn what_the_restore_has_not_told_yet_is_waited_for_and_then_ended() {
    for hurry in [false, true] {
        let mut world = World::before_the_scan();
        assert!(!leaves(&terminate(&mut world, false)), "who knows what runs");
        let mut findings = Findings::default();
        let found = Found { container: was_running(), shim: Some(traces()), left_over: false, caution: None };
        findings.own.insert(ID.into(), found);
        assert!(!leaves(&world.give(Input::Found(findings))));
        if hurry {
            assert!(!leaves(&terminate(&mut world, false)));
        }
        assert!(kills(&world.probed(task(RunState::Running)), if hurry { 9 } else { 15 }));
        world.exited(143);
        assert!(leaves(&world.retired()));
    }
    let mut world = World::before_the_scan();
    assert!(!leaves(&terminate(&mut world, false)));
    assert!(leaves(&world.give(Input::Found(Findings::default()))), "nothing runs");
    assert!(leaves(&terminate(&mut World::before_the_scan(), true)));
}

#[test]
fn one_that_is_left_to_another_holdfast_is_ended_if_its_shim_takes_signals_and_delays_no_end_if_not() {
    let newer = || Some(crate::scan::Caution::Newer("of schema 99".into()));
    for (probe, is_asked) in [(task(RunState::Running), true), (Probe::Silent, false)] {
        let found = Found { container: was_running(), shim: Some(traces()), left_over: false, caution: newer() };
        let (mut world, _) = World::found_as(found);
        world.probed(probe);
        let effects = terminate(&mut world, false);
        assert_eq!((kills(&effects, 15), leaves(&effects)), (is_asked, !is_asked));
        if is_asked {
            let effects = world.exited(143);
            assert!(leaves(&effects) && stopped(&effects).is_some());
        }
    }
}

#[test]
fn a_stop_by_request_holds_although_the_container_is_ended_as_a_survivor() {
    let mut survivor = was_running();
    survivor.config.restart = RestartPolicy::Always;
    let mut world = World::new();
    world.registry = Registry::new(Survivors::Stop(None));
    let mut findings = Findings::default();
    findings
        .own
        .insert(ID.into(), Found { container: survivor, shim: Some(traces()), left_over: false, caution: None });
    world.give(Input::Found(findings));
    assert!(kills(&world.probed(task(RunState::Running)), 15));
    world.ask(3, Ask::Stop { container: "web".into(), timeout: None });
    world.exited(143);
    let effects = world.retired();
    assert_eq!(ended_with(&effects, 3), Some(143));
    assert!(!has(&effects, |e| matches!(e, Effect::Prepare { .. } | Effect::Timer { .. })), "{effects:?}");
}

#[test]
fn a_start_that_was_under_way_does_not_go_on_once_the_end_has_begun() {
    let mut world = World::before_the_scan();
    terminate(&mut world, false);
    let mut findings = Findings::default();
    let found = Found { container: was_running(), shim: Some(traces()), left_over: false, caution: None };
    findings.own.insert(ID.into(), found);
    world.give(Input::Found(findings));
    let effects = world.probed(task(RunState::Created));
    assert!(!has(&effects, |e| matches!(e, Effect::StartTask { .. })));
    assert!(has(&effects, |e| matches!(e, Effect::Retire { .. })));
    assert!(leaves(&world.retired()));
}

#[test]
fn one_that_is_being_restarted_gets_its_stop_signal_once() {
    let mut world = World::running();
    let restart = Ask::Restart { container: "web".into(), timeout: None, begun_unix_ns: 0 };
    assert!(kills(&world.ask(3, restart), 15));
    assert!(!kills(&terminate(&mut world, false), 15), "many programs take a second one for impatience");
    world.exited(143);
    assert!(leaves(&world.retired()));
}

#[test]
fn one_that_is_left_behind_is_told_once_and_with_its_time() {
    let mut world = World::running();
    world.ask(4, Ask::StopAll { within: None });
    world.unix_ns += 30 * SECOND;
    world.give(Input::Due(Due::Kill));
    let effects = world.give(Input::Due(Due::LeaveBehind));
    let left = stopped(&effects).unwrap();
    assert_eq!((left.how, left.took), (How::LeftBehind, Duration::from_secs(30)));
    world.exited(137);
    assert!(stopped(&world.retired()).is_none());
    let effects = world.ask(5, Ask::StopAll { within: None });
    assert!(matches!(answer_to(&effects, 5), Some(Ok(Answer::Stopped(all))) if all.len() == 1));
}
