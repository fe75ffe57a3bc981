//! The order rules of the module, by name.

use super::words::{FROM_CHECKPOINT, INIT, Story, asker, broken, exit, task};
use crate::lifecycle::{Exit, ExitStatus, Failure, FailureKind, Input, ProcessId, Request, Verb};

const NOTHING: [&str; 0] = [];

// Start before exit.

#[test]
fn trap_05_a_process_that_dies_before_create_returns_is_announced_as_created_first() {
    let mut story = Story::creating();
    assert_eq!(story.exited(INIT, 3), NOTHING);
    assert_eq!(
        story.done("create", Ok(Some(INIT))),
        ["save", "publish create 10", "#1 pid 10", "output ends init", "save", "publish exit init 3"]
    );
    assert_eq!(story.ask("", Verb::Start), ["#2 wrong state"]);
}

#[test]
fn trap_01_a_process_that_dies_before_start_returns_is_announced_as_started_first() {
    let mut story = Story::created();
    story.ask("", Verb::Wait);
    story.ask("", Verb::Start);
    assert_eq!(story.exited(INIT, 3), NOTHING);
    assert_eq!(story.ask("", Verb::State), ["#4 created"], "the exit is told after the start, not before");
    assert_eq!(
        story.ok("start"),
        ["save", "publish start 10", "#3 pid 10", "output ends init", "save", "publish exit init 3", "#2 exit 3"]
    );
}

#[test]
fn trap_01_an_exec_that_dies_before_its_start_returns_is_announced_as_started_first() {
    let mut story = Story::running();
    story.ask("e", Verb::Exec);
    story.ask("e", Verb::Wait);
    story.ask("e", Verb::Start);
    assert_eq!(story.exited(20, 3), NOTHING);
    assert_eq!(
        story.done("exec e", Ok(Some(20))),
        ["save", "publish exec-started e 20", "#5 pid 20", "output ends e", "save", "publish exit e 3", "#4 exit 3"]
    );
}

#[test]
fn a_start_that_fails_because_the_process_died_still_tells_its_exit() {
    let mut story = Story::created();
    story.ask("", Verb::Start);
    story.exited(INIT, 3);
    assert_eq!(
        story.done("start", Err(broken())),
        ["#2 failed: broken", "output ends init", "save", "publish exit init 3"]
    );
}

#[test]
fn an_exit_is_kept_only_while_a_call_is_in_flight_that_may_name_its_pid() {
    let mut story = Story::creating();
    story.exited(30, 1);
    story.done("create", Ok(Some(INIT)));
    // The pid is somebody else's by now.
    let mut story = story.with_exec("e", 30);
    assert_eq!(story.ask("e", Verb::State), ["#4 running"]);
    story.exited(99, 1);
    assert_eq!(story.exited(30, 2), ["output ends e", "save", "publish exit e 2"]);
}

// Init last.

#[test]
fn trap_02_the_exit_of_init_waits_for_the_execs_that_run() {
    let mut story = Story::running().with_exec("a", 20).with_exec("b", 21);
    story.ask("", Verb::Wait);
    assert_eq!(story.exited(INIT, 7), NOTHING);
    assert_eq!(story.exited(20, 1), ["output ends a", "save", "publish exit a 1"]);
    assert_eq!(
        story.exited(21, 2),
        ["output ends b", "save", "publish exit b 2", "output ends init", "save", "publish exit init 7", "#7 exit 7"]
    );
}

#[test]
fn trap_02_the_exit_of_init_waits_for_an_exec_that_starts() {
    let mut story = Story::running();
    story.ask("e", Verb::Exec);
    story.ask("e", Verb::Start);
    assert_eq!(story.exited(INIT, 7), NOTHING);
    let words = story.done("exec e", Ok(Some(20)));
    assert_eq!(words, ["save", "publish exec-started e 20", "#4 pid 20"]);
    let words = story.exited(20, 1);
    assert_eq!(words[2], "publish exit e 1");
    assert_eq!(words.last().unwrap(), "publish exit init 7");
}

#[test]
fn the_exit_of_init_is_told_when_the_last_exec_fails_to_start() {
    let mut story = Story::running();
    story.ask("e", Verb::Exec);
    story.ask("e", Verb::Start);
    story.exited(INIT, 7);
    let words = story.done("exec e", Err(broken()));
    assert_eq!(words[1..], ["#4 failed: broken", "output ends init", "save", "publish exit init 7"]);
}

#[test]
fn trap_03_the_exit_of_init_does_not_wait_for_execs_that_do_not_run() {
    let mut story = Story::running().with_exec("ended", 20);
    story.exited(20, 0);
    story.ask("added", Verb::Exec);
    assert_eq!(story.exited(INIT, 7), ["output ends init", "save", "publish exit init 7"]);
}

#[test]
fn trap_04_no_exec_starts_once_init_was_reaped_even_before_its_start_returned() {
    let mut story = Story::created();
    story.ask("e", Verb::Exec);
    story.ask("", Verb::Start);
    story.exited(INIT, 7);
    assert_eq!(story.ask("e", Verb::Start), ["#4 init exited"]);
    assert_eq!(story.ask("f", Verb::Exec), ["#5 wrong state"]);
}

// A shared pid namespace.

#[test]
fn trap_27_with_shared_pids_the_death_of_init_kills_the_rest() {
    let mut story = Story::running_with_shared_pids().with_exec("e", 20);
    assert_eq!(story.exited(INIT, 7), ["errand begin kill all 9"]);
    // That it fails is no news for anybody.
    assert_eq!(story.done("kill all 9", Err(broken())), NOTHING);
    assert_eq!(story.exited(20, 137).last().unwrap(), "publish exit init 7");
}

#[test]
fn with_shared_pids_an_exec_that_was_starting_meanwhile_is_killed_too() {
    let mut story = Story::running_with_shared_pids();
    story.ask("e", Verb::Exec);
    story.ask("e", Verb::Start);
    assert_eq!(story.exited(INIT, 7), ["errand begin kill all 9"]);
    story.ok("kill all 9");
    assert_eq!(
        story.done("exec e", Ok(Some(20))),
        ["save", "publish exec-started e 20", "#4 pid 20", "errand begin kill all 9"],
        "it came after the first kill, and nothing else would end it"
    );
    assert_eq!(story.exited(20, 137).last().unwrap(), "publish exit e 137");
    assert_eq!(story.ok("kill all 9").last().unwrap(), "publish exit init 7");
}

#[test]
fn with_shared_pids_the_exit_of_init_is_told_when_the_rest_was_killed() {
    for killed in [Ok(None), Err(broken())] {
        let mut story = Story::running_with_shared_pids();
        assert_eq!(story.exited(INIT, 7), ["errand begin kill all 9"]);
        assert_eq!(story.ask("", Verb::Delete), ["#3 wrong state"], "a delete beside it would find a frozen container");
        assert_eq!(story.done("kill all 9", killed), ["output ends init", "save", "publish exit init 7"]);
        assert_eq!(story.ask("", Verb::Delete), ["#4 begin drain"]);
    }
}

#[test]
fn with_shared_pids_the_rest_is_killed_after_a_change_that_is_under_way_and_not_beside_it() {
    let mut story = Story::running_with_shared_pids();
    story.ask("", Verb::Update);
    story.ask("", Verb::Kill { signal: 9, all: true });
    assert_eq!(story.exited(INIT, 7), NOTHING);
    assert_eq!(story.ok("update"), ["#3 ok", "errand begin kill all 9"], "before what waits");
    assert_eq!(story.ok("kill all 9"), ["output ends init", "#4 begin kill all 9", "save", "publish exit init 7"]);
    // What is frozen is thawed for it.
    let mut story = Story::running_with_shared_pids();
    story.ask("", Verb::Pause);
    assert_eq!(story.exited(INIT, 7), NOTHING);
    assert_eq!(story.ok("pause")[2..], ["#3 ok", "errand begin resume"]);
    assert_eq!(story.ok("resume"), ["errand begin kill all 9"]);
    assert_eq!(story.ok("kill all 9").last().unwrap(), "publish exit init 7");
}

#[test]
fn what_a_runtime_that_was_killed_may_have_left_frozen_is_thawed() {
    let late = Failure { kind: FailureKind::Deadline, text: "too late".to_owned() };
    let mut story = Story::running_with_shared_pids();
    story.exited(INIT, 7);
    let told = story.done("kill all 9", Err(late.clone()));
    assert_eq!(told, ["errand begin resume", "output ends init", "save", "publish exit init 7"]);
    // Also when the end was told before.
    let mut story = Story::running();
    story.ask("", Verb::Checkpoint);
    assert_eq!(story.exited(INIT, 7), ["output ends init", "save", "publish exit init 7"]);
    assert_eq!(story.done("checkpoint", Err(late))[1..], ["errand begin resume"]);
}

#[test]
fn with_shared_pids_what_the_runtime_deletes_by_force_is_not_killed_once_more() {
    let created = || {
        let mut story = Story::default();
        story.ask("", Verb::Create { shared_pids: true, from_checkpoint: false });
        story.ok("mount");
        story.done("create", Ok(Some(INIT)));
        assert_eq!(story.ask("", Verb::Delete), ["#2 begin delete by force"]);
        story
    };
    let told = ["output ends init", "save", "publish exit init 137", "#2 begin unmount"];
    let mut story = created();
    assert_eq!(story.ok("delete by force"), ["errand begin end 10"]);
    assert_eq!(story.exited(INIT, 137), told);
    // The exit may come first.
    let mut story = created();
    assert_eq!(story.exited(INIT, 137), NOTHING);
    assert_eq!(story.ok("delete by force")[1..], told);
    // An exec that was starting was there before that, or fails.
    let mut story = Story::default();
    story.ask("", Verb::Create { shared_pids: true, from_checkpoint: false });
    story.ok("mount");
    story.done("create", Ok(Some(INIT)));
    story.ask("e", Verb::Exec);
    story.ask("e", Verb::Start);
    story.ask("", Verb::Delete);
    story.ok("delete by force");
    story.exited(INIT, 137);
    assert_eq!(story.done("exec e", Ok(Some(20))).last().unwrap(), "#3 pid 20");
    assert_eq!(story.exited(20, 137)[3..], told.map(|word| word.replace("#2", "#4")));
    // What has died by itself can be deleted as well.
    let mut story = Story::default();
    story.ask("", Verb::Create { shared_pids: true, from_checkpoint: false });
    story.ok("mount");
    story.done("create", Ok(Some(INIT)));
    assert_eq!(story.exited(INIT, 137), ["errand begin kill all 9"]);
    assert_eq!(story.ask("", Verb::Delete), NOTHING);
    assert_eq!(story.ok("kill all 9").last().unwrap(), "publish exit init 137");
    assert_eq!(story.ok("delete by force"), ["#2 begin unmount"]);
    // But what it could not delete is.
    let mut story = created();
    story.exited(INIT, 137);
    assert_eq!(story.done("delete by force", Err(broken())), ["#2 failed: broken", "errand begin kill all 9"]);
    assert_eq!(story.ok("kill all 9").last().unwrap(), "publish exit init 137");
}

#[test]
fn trap_27_with_pids_of_its_own_the_kernel_kills_the_rest() {
    let mut story = Story::running().with_exec("e", 20);
    assert_eq!(story.exited(INIT, 7), NOTHING);
}

// Freezing.

#[test]
fn trap_28_what_is_left_of_a_frozen_container_is_thawed_when_init_dies() {
    let mut story = Story::paused();
    assert_eq!(story.exited(INIT, 137), ["errand begin resume", "output ends init", "save", "publish exit init 137"]);
    assert_eq!(story.ask("", Verb::State), ["#4 stopped"]);
    assert_eq!(story.ask("", Verb::Delete), NOTHING, "the runtime would find it frozen");
    assert_eq!(story.ok("resume"), ["#5 begin drain"]);
}

#[test]
fn trap_28_a_pause_that_is_under_way_when_init_dies_is_undone_after_it_and_not_beside_it() {
    let mut story = Story::running();
    story.ask("", Verb::Pause);
    assert_eq!(story.exited(INIT, 137), ["output ends init", "save", "publish exit init 137"]);
    assert_eq!(story.ok("pause"), ["#3 ok", "errand begin resume"]);
    assert_eq!(story.ask("", Verb::State), ["#4 stopped"]);
}

#[test]
fn a_resume_that_is_under_way_when_init_dies_is_not_doubled() {
    let mut story = Story::paused();
    story.ask("", Verb::Resume);
    assert_eq!(story.exited(INIT, 137), ["output ends init", "save", "publish exit init 137"]);
    assert_eq!(story.ok("resume"), ["#4 ok"]);
}

#[test]
fn a_resume_that_fails_while_init_dies_is_tried_once_more() {
    let mut story = Story::paused();
    story.ask("", Verb::Resume);
    story.exited(INIT, 137);
    assert_eq!(story.done("resume", Err(broken())), ["#4 failed: broken", "errand begin resume"]);
}

#[test]
fn a_failed_pause_leaves_the_container_running_and_a_failed_resume_leaves_it_paused() {
    let mut story = Story::running();
    story.ask("", Verb::Pause);
    assert_eq!(story.done("pause", Err(broken())), ["#3 failed: broken"]);
    assert_eq!(story.ask("", Verb::State), ["#4 running"]);
    let mut story = Story::paused();
    story.ask("", Verb::Resume);
    assert_eq!(story.done("resume", Err(broken())), ["#4 failed: broken"]);
    assert_eq!(story.ask("", Verb::State), ["#5 paused"]);
}

// Saved before announced.

#[test]
fn every_change_is_saved_before_it_is_announced() {
    let mut story = Story::created();
    story.ask("", Verb::Start);
    assert_eq!(story.ok("start"), ["save", "publish start 10", "#2 pid 10"]);
    story.ask("", Verb::Pause);
    assert_eq!(story.ok("pause"), ["save", "publish paused", "#3 ok"]);
    story.ask("", Verb::Resume);
    assert_eq!(story.ok("resume"), ["save", "publish resumed", "#4 ok"]);
    assert_eq!(story.ask("e", Verb::Exec), ["#5 adopt e", "save", "publish exec-added e", "#5 ok"]);
    story.ask("e", Verb::Start);
    assert_eq!(story.done("exec e", Ok(Some(20))), ["save", "publish exec-started e 20", "#6 pid 20"]);
    story.ask("", Verb::Wait);
    story.exited(20, 0);
    assert_eq!(story.exited(INIT, 7), ["output ends init", "save", "publish exit init 7", "#7 exit 7"]);
}

// One at a time.

#[test]
fn changes_of_init_have_their_turns_in_the_order_of_their_arrival() {
    let mut story = Story::created();
    assert_eq!(story.ask("", Verb::Start), ["#2 begin start"]);
    assert_eq!(story.ask("", Verb::Kill { signal: 15, all: false }), NOTHING);
    assert_eq!(story.ask("", Verb::Pause), NOTHING);
    assert_eq!(story.ask("", Verb::Update), NOTHING);
    assert_eq!(story.ask("", Verb::State), ["#6 created"], "who only asks does not wait");
    assert_eq!(story.ok("start")[3..], ["#3 begin kill 15"]);
    assert_eq!(story.ok("kill 15"), ["#3 ok", "#4 begin pause"]);
    assert_eq!(story.ok("pause"), ["save", "publish paused", "#4 ok", "#5 begin update"]);
    assert_eq!(story.ok("update"), ["#5 ok"]);
}

#[test]
fn what_became_impossible_while_it_waited_is_refused_and_the_next_has_its_turn() {
    let mut story = Story::created();
    story.ask("", Verb::Start);
    story.ask("", Verb::Start);
    story.ask("", Verb::Kill { signal: 9, all: false });
    assert_eq!(story.ok("start")[2..], ["#2 pid 10", "#3 wrong state", "#4 begin kill 9"]);
}

#[test]
fn changes_of_an_exec_have_their_turns_in_the_order_of_their_arrival() {
    let mut story = Story::running();
    story.ask("e", Verb::Exec);
    story.ask("e", Verb::Start);
    assert_eq!(story.ask("e", Verb::Kill { signal: 15, all: false }), NOTHING);
    assert_eq!(story.ask("e", Verb::Delete), NOTHING);
    assert_eq!(story.ask("e", Verb::State), ["#7 created"]);
    assert_eq!(story.done("exec e", Ok(Some(20)))[2..], ["#4 pid 20", "#5 signal 20 15", "#6 wrong state"]);
}

#[test]
fn trap_06_neither_execs_nor_init_wait_for_each_other() {
    let mut story = Story::running().with_exec("a", 20);
    story.ask("b", Verb::Exec);
    story.ask("b", Verb::Start);
    assert_eq!(story.ask("", Verb::Update), ["#7 begin update"]);
    assert_eq!(story.ask("a", Verb::Kill { signal: 1, all: false }), ["#8 signal 20 1"]);
    assert_eq!(story.in_flight(), ["exec b", "update"]);
}

// An answer for each request.

#[test]
fn a_failed_create_is_undone_and_answers_all_who_waited_for_it() {
    let mut story = Story::creating();
    story.ask("", Verb::Start);
    story.ask("", Verb::Update);
    assert_eq!(story.done("create", Err(broken())), ["errand begin delete by force"]);
    assert_eq!(story.done("delete by force", Err(broken())), ["errand begin sweep"]);
    assert_eq!(story.ok("sweep"), ["release init", "forget", "#1 failed: broken", "#2 no task", "#3 no task"]);
    assert!(story.life.is_empty());
    assert_eq!(
        story.ask("", Verb::Create { shared_pids: false, from_checkpoint: false })[1],
        "#4 begin mount",
        "the id is free again"
    );
}

#[test]
fn a_create_of_what_the_runtime_has_already_leaves_that_alone() {
    let mut story = Story::creating();
    let exists = Failure { kind: FailureKind::AlreadyExists, text: "exists".to_owned() };
    assert_eq!(story.done("create", Err(exists)), ["errand begin unmount"], "no delete by force");
    assert_eq!(story.ok("unmount"), ["release init", "forget", "#1 failed: exists"]);
}

#[test]
fn a_create_that_is_deleted_under_way_is_undone_and_the_shutdown_that_came_with_it_is_kept() {
    for step in ["mount", "create"] {
        let mut story = if step == "mount" { Story::default() } else { Story::creating() };
        if step == "mount" {
            story.ask("", Verb::Create { shared_pids: false, from_checkpoint: false });
        }
        assert_eq!(story.ask("", Verb::Delete), ["#2 no task"], "at once");
        assert_eq!(story.ask("", Verb::Shutdown), ["#3 ok"]);
        let pid = (step == "create").then_some(INIT);
        let undone = story.done(step, Ok(pid));
        let last = if step == "create" {
            assert_eq!(undone, ["errand begin delete by force"]);
            story.ok("delete by force");
            "sweep"
        } else {
            "unmount"
        };
        assert_eq!(
            story.ok(last),
            ["release init", "forget", "#1 failed: deleted while it was being created", "stop"],
            "nothing was announced"
        );
    }
}

#[test]
fn a_create_that_follows_one_that_was_deleted_under_way_keeps_the_shim() {
    let mut story = Story::creating();
    story.ask("", Verb::Delete);
    story.ask("", Verb::Shutdown);
    let other = Request {
        asker: asker(9),
        task: task("other"),
        process: ProcessId::Init,
        verb: Verb::Create { shared_pids: false, from_checkpoint: false },
    };
    story.handle(Input::Request(other));
    story.done("create", Ok(Some(INIT)));
    story.ok("delete by force");
    assert!(!story.ok("sweep").contains(&"stop".to_owned()));
}

#[test]
fn a_failed_mount_is_undone_as_it_may_have_been_killed() {
    let mut story = Story::default();
    story.ask("", Verb::Create { shared_pids: false, from_checkpoint: false });
    assert_eq!(story.done("mount", Err(broken())), ["errand begin unmount"]);
    assert_eq!(story.done("unmount", Err(broken())), ["release init", "forget", "#1 failed: broken"]);
    assert!(story.life.is_empty());
}

#[test]
fn delete_answers_everybody_who_still_waits_for_the_task() {
    let mut story = Story::running();
    story.ask("added", Verb::Exec);
    story.ask("added", Verb::Wait);
    story.ask("leaving", Verb::Exec);
    story.ask("leaving", Verb::Delete);
    story.ask("leaving", Verb::Start);
    story.exited(INIT, 7);
    assert_eq!(story.ask("", Verb::Delete), ["#8 begin drain"]);
    story.ask("", Verb::Delete);
    story.ok("drain");
    story.ok("delete");
    assert_eq!(
        story.ok("unmount"),
        [
            "release added",
            "release leaving",
            "release init",
            "forget",
            "publish delete 10 7",
            "#8 deleted 10 7",
            "#9 no task",
            "#4 no task",
            "#7 no task",
            "#6 no task"
        ]
    );
    // The drain of the exec ends when there is nobody left to tell.
    assert_eq!(story.ok("drain leaving"), NOTHING);
}

#[test]
fn deleting_an_exec_answers_everybody_who_still_waits_for_it() {
    let mut story = Story::running();
    story.ask("e", Verb::Exec);
    story.ask("e", Verb::Wait);
    story.ask("e", Verb::Delete);
    story.ask("e", Verb::Start);
    assert_eq!(story.ok("drain e"), ["release e", "save", "#5 deleted 0 0", "#4 no process", "#6 no process"]);
}

#[test]
fn trap_09_waiters_of_an_exec_that_fails_to_start_are_told_so_once_and_it_can_be_started_again() {
    let mut story = Story::running();
    story.ask("e", Verb::Exec);
    story.ask("e", Verb::Wait);
    for start in [5, 6] {
        story.ask("e", Verb::Start);
        let words = story.done("exec e", Err(broken()));
        assert!(words.contains(&format!("#{start} failed: broken")), "{words:?}");
        assert_eq!(words.contains(&"#4 start failed".to_owned()), start == 5, "{words:?}");
    }
    assert_eq!(story.ask("e", Verb::State), ["#7 created"]);
}

#[test]
fn a_wait_is_answered_once_whether_it_gave_up_or_not() {
    let mut story = Story::running();
    story.ask("", Verb::Wait);
    story.ask("", Verb::Wait);
    assert_eq!(story.handle(Input::GaveUp(asker(3))), ["#3 late"]);
    assert_eq!(story.handle(Input::GaveUp(asker(3))), NOTHING);
    assert_eq!(story.exited(INIT, 7).last().unwrap(), "#4 exit 7");
    assert_eq!(story.handle(Input::GaveUp(asker(4))), NOTHING);
}

#[test]
fn what_a_client_began_goes_on_when_it_leaves_and_its_waits_are_forgotten() {
    let mut story = Story::created();
    story.ask("", Verb::Wait);
    story.ask("", Verb::Start);
    assert_eq!(story.handle(Input::Disconnected(1)), NOTHING);
    assert_eq!(story.ok("start"), ["save", "publish start 10", "#3 pid 10"]);
    assert_eq!(story.exited(INIT, 7), ["output ends init", "save", "publish exit init 7"]);
}

// Delete.

#[test]
fn delete_of_a_stopped_task_drains_before_it_deletes() {
    let mut story = Story::stopped(7);
    assert_eq!(story.ask("", Verb::Delete), ["#3 begin drain"]);
    assert_eq!(story.ok("drain"), ["#3 begin delete"]);
    assert_eq!(story.ok("delete"), ["#3 begin unmount"]);
    assert_eq!(story.ok("unmount"), ["release init", "forget", "publish delete 10 7", "#3 deleted 10 7"]);
    assert_eq!(story.ask("", Verb::Delete), ["#4 no task"]);
    assert_eq!(story.exited(INIT, 1), NOTHING);
}

#[test]
fn delete_of_a_created_task_tells_the_exit_before_the_delete_and_completes_waiters() {
    let mut story = Story::created();
    story.ask("", Verb::Wait);
    assert_eq!(story.ask("", Verb::Delete), ["#3 begin delete by force"]);
    assert_eq!(story.ok("delete by force"), ["errand begin end 10"], "the exit is on its way");
    assert_eq!(
        story.exited(INIT, 137),
        ["output ends init", "save", "publish exit init 137", "#2 exit 137", "#3 begin unmount"]
    );
    assert_eq!(story.done("end 10", Err(broken())), NOTHING, "it was overtaken");
    assert_eq!(story.ok("unmount").last().unwrap(), "#3 deleted 10 137");
}

#[test]
fn delete_of_a_created_task_that_does_not_end_fails_and_can_be_repeated() {
    let mut story = Story::created();
    story.ask("", Verb::Delete);
    story.ok("delete by force");
    story.ask("", Verb::Start);
    assert_eq!(
        story.done("end 10", Err(broken())),
        ["#2 failed: broken", "#3 begin start"],
        "and others have their turn"
    );
    story.done("start", Err(broken()));
    let gone = Failure { kind: FailureKind::NotFound, text: "container does not exist".to_owned() };
    story.ask("", Verb::Delete);
    assert_eq!(story.done("delete by force", Err(gone)), ["errand begin end 10"]);
    assert_eq!(story.exited(INIT, 137).last().unwrap(), "#4 begin unmount");
    assert_eq!(story.ok("unmount").last().unwrap(), "#4 deleted 10 137");
}

#[test]
fn delete_of_a_created_task_never_kills_a_pid_that_is_free_again() {
    let mut story = Story::created();
    story.settles_late = true;
    story.ask("", Verb::Delete);
    story.exited(INIT, 137);
    assert_eq!(story.ok("delete by force"), ["errand begin end 0"], "it is reaped and being heard out");
    assert_eq!(story.ok("settle"), ["save", "publish exit init 137", "#2 begin unmount"]);
}

#[test]
fn delete_of_a_created_task_whose_exit_came_first_goes_on_at_once() {
    let mut story = Story::created();
    story.ask("", Verb::Delete);
    story.exited(INIT, 137);
    assert_eq!(story.ok("delete by force"), ["#2 begin unmount"]);
}

#[test]
fn a_failed_delete_can_be_repeated_and_what_is_gone_counts_as_deleted() {
    let mut story = Story::stopped(7);
    story.ask("", Verb::Delete);
    story.ok("drain");
    assert_eq!(story.done("delete", Err(broken())), ["#3 failed: broken"]);
    assert_eq!(story.ask("", Verb::Delete), ["#4 begin drain"]);
    story.ok("drain");
    let gone = Failure { kind: FailureKind::NotFound, text: "container does not exist".to_owned() };
    assert_eq!(story.done("delete", Err(gone.clone())), ["#4 begin unmount"]);
    assert_eq!(story.done("unmount", Err(broken())), ["#4 failed: broken"]);
    story.ask("", Verb::Delete);
    story.ok("drain");
    story.done("delete", Err(gone));
    assert_eq!(story.ok("unmount").last().unwrap(), "#5 deleted 10 7");
}

#[test]
fn the_outcome_of_an_earlier_life_means_nothing_to_a_task_of_the_same_name() {
    let mut story = Story::created();
    story.ask("", Verb::Delete);
    assert_eq!(story.ok("delete by force"), ["errand begin end 10"]);
    story.exited(INIT, 137);
    story.ok("unmount");
    story.ask("", Verb::Create { shared_pids: false, from_checkpoint: false });
    assert_eq!(story.done("end 10", Err(broken())), NOTHING);
    assert_eq!(story.in_flight(), ["mount"]);
}

#[test]
fn what_is_known_of_a_task_begins_with_its_creation_and_ends_with_its_deletion() {
    let mut story = Story::creating();
    assert!(story.life.processes(&task("c")).is_empty());
    story.done("create", Ok(Some(INIT)));
    let mut story = story.with_exec("e", 20);
    story.exited(20, 4);
    let views = story.life.processes(&task("c"));
    let shown: Vec<_> = views.iter().map(|v| (v.process.exec_id(), v.pid, v.exit)).collect();
    assert_eq!(shown, [("", INIT, None), ("e", 20, Some(exit(4)))]);
}

#[test]
fn trap_37_the_socket_is_closed_before_a_shutdown_is_answered() {
    let mut story = Story::default();
    assert_eq!(story.ask("", Verb::Shutdown), ["stop", "#1 ok"], "who has the answer may run `start` at once");
}

#[test]
fn an_exit_is_told_only_when_the_process_was_heard_out() {
    let mut story = Story::running().with_exec("e", 20);
    story.settles_late = true;
    story.ask("e", Verb::Wait);
    story.ask("", Verb::Wait);
    assert_eq!(story.exited(20, 3), ["output ends e", "errand begin settle e"]);
    assert_eq!(story.ask("e", Verb::State).last().unwrap(), "#7 running");
    let told = story.ok("settle e");
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told[0], "save");
    let heard = story.exited(INIT, 4);
    assert_eq!(heard, ["output ends init", "count oom kills for the last time", "errand begin settle"]);
    let told = story.ok("settle");
    assert_eq!(told[0], "save");
    assert!(told[1].starts_with("publish"), "{told:?}");
}

#[test]
fn a_process_that_is_heard_out_is_not_signalled_any_more() {
    let mut story = Story::running().with_exec("e", 20);
    story.settles_late = true;
    story.exited(20, 3);
    let refused = story.ask("e", Verb::Kill { signal: 9, all: false });
    assert_eq!(refused.len(), 1);
    assert!(refused[0].contains("Finished") || refused[0].contains("finished"), "{refused:?}");
    story.exited(INIT, 3);
    // Init waits for the exec, and the exec for its reader.
    assert_eq!(story.in_flight(), ["settle e"]);
    story.ok("settle e");
    assert_eq!(story.in_flight(), ["settle"]);
}

// Out of memory before exit.

fn out_of_memory(at_unix_ns: u64) -> Input {
    Input::OutOfMemory { task: task("c"), victims: 1, at_unix_ns }
}

#[test]
fn who_was_killed_when_somebody_was_killed_for_want_of_memory_lacked_it() {
    const SECOND: u64 = 1_000_000_000;
    let killed = |story: &Story| story.life.processes(&task("c")).iter().map(|p| p.oom_killed).collect::<Vec<_>>();
    let mut story = Story::running().with_exec("e", 20).with_exec("f", 21).with_exec("g", 22);
    let exited = |story: &mut Story, pid, code, seconds: u64| {
        let exit = Exit { status: ExitStatus::exited(code), at_unix_ns: seconds * SECOND };
        story.handle(Input::Exited { pid, exit });
    };
    exited(&mut story, 20, 137, 1);
    story.handle(out_of_memory(10 * SECOND));
    exited(&mut story, 21, 1, 10);
    exited(&mut story, 22, 137, 11);
    // Nobody was killed for want of memory with the first, the second was not killed, and the third was.
    assert_eq!(killed(&story), [false, false, false, true]);
    exited(&mut story, INIT, 137, 100);
    assert_eq!(killed(&story), [false, false, false, true], "a status alone says nothing");
    assert_eq!(story.life.times_out_of_memory(&task("c")), 1);
    let mut story = Story::running().with_exec("e", 20).with_exec("f", 21);
    story.handle(out_of_memory(10 * SECOND));
    exited(&mut story, 20, 137, 10);
    exited(&mut story, 21, 137, 10);
    assert_eq!(killed(&story), [false, true, false], "as many as were counted");
    exited(&mut story, INIT, 137, 11);
    assert_eq!(killed(&story), [true, true, false], "its death takes the execs along, and theirs is seen first");
    let mut story = Story::running();
    story.handle(out_of_memory(10 * SECOND));
    exited(&mut story, INIT, 137, 10);
    assert_eq!(killed(&story), [true]);
}

#[test]
fn who_may_have_lacked_memory_is_counted_before_its_exit_is_told() {
    let mut story = Story::running().with_exec("e", 20).with_exec("f", 21);
    story.settles_late = true;
    assert_eq!(story.exited(20, 137), ["output ends e", "count oom kills", "errand begin settle e"]);
    assert_eq!(story.handle(out_of_memory(0)), ["save", "publish oom"]);
    assert_eq!(story.ok("settle e")[..2], ["save", "publish exit e 137"]);
    assert_eq!(story.exited(21, 1), ["output ends f", "errand begin settle f"], "nobody was killed");
    story.ok("settle f");
    let counted = ["output ends init", "count oom kills for the last time", "errand begin settle"];
    assert_eq!(story.exited(INIT, 1), counted, "its child may have been");
    assert_eq!(story.handle(out_of_memory(0)), ["save", "publish oom"]);
    assert_eq!(story.ok("settle"), ["save", "publish exit init 1"]);
}

#[test]
fn nothing_is_said_of_memory_before_create_and_after_exit() {
    assert_eq!(Story::default().handle(out_of_memory(0)), NOTHING, "an unknown task");
    assert_eq!(Story::creating().handle(out_of_memory(0)), NOTHING);
    for mut story in [Story::created(), Story::running(), Story::paused()] {
        assert_eq!(story.handle(out_of_memory(0)), ["save", "publish oom"]);
    }
    let mut story = Story::stopped(137);
    assert_eq!(story.handle(out_of_memory(0)), NOTHING);
}

// Checkpoints.

#[test]
fn what_is_created_from_a_checkpoint_has_no_process_until_it_is_restored() {
    let mut story = Story::default();
    assert_eq!(story.ask("", FROM_CHECKPOINT), ["#1 adopt init", "#1 begin mount"]);
    assert_eq!(story.ok("mount"), ["save", "publish create 0", "#1 pid 0"]);
    story.ask("", Verb::Wait);
    assert_eq!(story.ask("", Verb::Start), ["#3 begin restore"]);
    assert_eq!(story.done("restore", Ok(Some(INIT))), ["save", "publish start 10", "#3 pid 10"]);
    assert_eq!(story.exited(INIT, 7), ["output ends init", "save", "publish exit init 7", "#2 exit 7"]);
}

#[test]
fn a_restored_process_that_dies_before_restore_returns_is_announced_as_started_first() {
    let mut story = Story::restoring();
    assert_eq!(story.exited(INIT, 3), NOTHING);
    assert_eq!(
        story.done("restore", Ok(Some(INIT))),
        ["save", "publish start 10", "#2 pid 10", "output ends init", "save", "publish exit init 3"]
    );
}

#[test]
fn a_failed_restore_is_undone_and_another_may_be_tried() {
    let mut story = Story::restoring();
    story.ask("", Verb::Kill { signal: 15, all: false });
    assert_eq!(story.done("restore", Err(broken())), ["errand begin delete by force"]);
    assert_eq!(story.done("delete by force", Err(broken())), ["#2 failed: broken", "#3 begin kill 15"]);
    story.ok("kill 15");
    assert_eq!(story.ask("", Verb::State), ["#4 created"]);
    assert_eq!(story.ask("", Verb::Start), ["#5 begin restore"]);
    assert_eq!(story.done("restore", Ok(Some(INIT))), ["save", "publish start 10", "#5 pid 10"]);
}

#[test]
fn a_restore_over_a_container_of_that_name_leaves_it_alone() {
    let taken = Failure { kind: FailureKind::AlreadyExists, text: "taken".to_owned() };
    let mut story = Story::restoring();
    assert_eq!(story.done("restore", Err(taken)), ["#2 failed: taken"]);
    assert_eq!(story.ask("", Verb::State), ["#3 created"]);
}

#[test]
fn what_was_never_restored_is_deleted_without_the_runtime() {
    let mut story = Story::from_checkpoint();
    story.ask("", Verb::Wait);
    assert_eq!(story.ask("", Verb::Delete), ["#3 begin unmount"]);
    assert_eq!(
        story.ok("unmount"),
        ["release init", "forget", "publish delete 0 0", "#3 deleted 0 0", "#2 no task"],
        "no exit is told of what never ran"
    );
    assert!(story.life.is_empty());
}

#[test]
fn a_failed_unmount_of_what_was_never_restored_can_be_repeated() {
    let mut story = Story::from_checkpoint();
    story.ask("", Verb::Delete);
    assert_eq!(story.done("unmount", Err(broken())), ["#2 failed: broken"]);
    assert_eq!(story.ask("", Verb::Delete), ["#3 begin unmount"]);
}

#[test]
fn a_checkpoint_is_announced_and_what_it_ends_goes_the_way_of_every_exit() {
    let mut story = Story::running();
    story.ask("", Verb::Wait);
    story.ask("", Verb::Checkpoint);
    assert_eq!(story.exited(INIT, 137), ["output ends init", "save", "publish exit init 137", "#3 exit 137"]);
    assert_eq!(story.ok("checkpoint"), ["publish checkpointed for #4", "#4 ok"]);
    assert_eq!(story.ask("", Verb::Checkpoint), ["#5 wrong state"]);
}

#[test]
fn a_failed_checkpoint_changes_nothing() {
    for (mut story, before) in [(Story::running(), "running"), (Story::paused(), "paused")] {
        let words = story.ask("", Verb::Checkpoint);
        assert!(words[0].ends_with("begin checkpoint"), "{words:?}");
        let words = story.done("checkpoint", Err(broken()));
        assert!(matches!(&words[..], [only] if only.ends_with("failed: broken")), "{words:?}");
        assert!(story.ask("", Verb::State)[0].ends_with(before));
    }
}

#[test]
fn a_checkpoint_that_was_killed_leaves_nothing_frozen_that_was_not() {
    let late = Failure { kind: FailureKind::Deadline, text: "too late".to_owned() };
    let mut story = Story::running();
    story.ask("", Verb::Checkpoint);
    assert_eq!(story.done("checkpoint", Err(late.clone())), ["#3 failed: too late", "errand begin resume"]);
    let mut story = Story::paused();
    story.ask("", Verb::Checkpoint);
    assert_eq!(story.done("checkpoint", Err(late)), ["#4 failed: too late"]);
}
