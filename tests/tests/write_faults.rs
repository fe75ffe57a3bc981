//! Ring 2: the k-th write fails, for every k: a full or broken disk under the log and under the record. Whatever it was, the
//! container ends as it would have, no line is lost, doubled or torn, and the shim's log tells of it once, and of the
//! recovery once.
#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, thread};

use holdfast_tests::sabotage::{Fault, Plan, Report, Sabotage, below};
use holdfast_tests::shim::NAMESPACE;
use holdfast_tests::{Bundle, FakeWorld, Reader, Shim, Stdio, eventually};
use nix::errno::Errno;

/// How many containers run at the same time: most of the time they wait for the next attempt.
const AT_ONCE: usize = 8;

/// Calls `run` for k = 1, 2, … until a run had no k-th call, several at a time.
#[track_caller]
fn at_every_call(at_least: usize, run: impl Fn(usize) -> Report + Sync) {
    let (next, end) = (AtomicUsize::new(1), AtomicUsize::new(usize::MAX));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let k = next.fetch_add(1, Ordering::SeqCst);
                    if k >= end.load(Ordering::SeqCst) {
                        return;
                    }
                    if run(k).calls.len() < k {
                        end.fetch_min(k, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    let calls = end.load(Ordering::SeqCst) - 1;
    assert!(calls >= at_least, "only {calls} calls: was it traced?");
}

/// One run of a container under sabotage.
struct Run<'a> {
    k: usize,
    bundle: &'a Bundle,
    shim: Shim,
    sabotage: Sabotage,
}

impl<'a> Run<'a> {
    /// A shim whose calls go wrong as planned, and a first Create. One that fails says why, and the next
    /// one does not.
    fn begin(world: &FakeWorld, bundle: &'a Bundle, plan: Plan, stdio: &Stdio) -> Self {
        let k = *plan.calls.start();
        let fault = plan.fault;
        let mut shim = world.start(bundle);
        let sabotage = Sabotage::begin(shim.process().pid(), plan);
        let mut attempts = 0;
        while let Err(refusal) = shim.create(stdio) {
            attempts += 1;
            let Fault::Fails(errno) = fault else { panic!("fault at {k}: {refusal:?}") };
            assert!(refusal.message().to_lowercase().contains(reason(errno)), "fault at {k}: {refusal:?}");
            assert!(attempts < 10, "fault at {k}: it is over by now: {refusal:?}");
        }
        Self { k, bundle, shim, sabotage }
    }

    /// The container ends with 7, and everybody hears of it.
    fn end(mut self, world: &FakeWorld) -> (Report, String) {
        assert_eq!(self.shim.wait_status(""), 7, "fault at {}", self.k);
        let deleted = self.shim.delete("").unwrap();
        assert_eq!(deleted.exit_status, 7, "fault at {}", self.k);
        let story = world.containerd.wait_for(self.bundle.id(), "delete 7");
        assert_eq!(story, ["create", "start", "exit 7", "delete 7"], "fault at {}", self.k);
        self.shim.shutdown();
        (self.sabotage.report(), self.bundle.take_log())
    }
}

fn reason(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOSPC => "no space left on device",
        _ => "input/output error",
    }
}

/// That there was trouble, and that it is over: each is said once, or there was none. Whether there was.
#[track_caller]
fn assert_told_once(k: usize, report: &Report, log: &str, [trouble, recovery]: [&str; 2]) -> bool {
    let count = |text: &str| log.matches(text).count();
    let seen = (count(trouble), count(recovery));
    assert!(seen == (1, 1) || seen == (0, 0), "fault at {k} of {:#?}: {log}", report.calls);
    seen == (1, 1)
}

const LINES: usize = 60;

/// Prints numbered lines, now and then with a program's life between them, so that they come in several writes.
fn printer() -> String {
    format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); [ $((i%12)) != 0 ] || /bin/true; done; exit 7")
}

fn numbered() -> Vec<String> {
    (0..LINES).map(|n| format!("line {n}\n")).collect()
}

const LOG_TROUBLE: [&str; 2] = ["cannot write the container's log", "the container's log is written again"];

/// What a container prints into `stdio` under faults, as `read` finds it afterwards.
fn check_log(kind: &str, faults: &[(Fault, usize)], address: fn(&Path) -> String, read: fn(&Path) -> Vec<String>) {
    let world = FakeWorld::new();
    for &(fault, times) in faults {
        let troubled = AtomicUsize::new(0);
        at_every_call(3, |k| {
            let bundle = world.script(&printer());
            let dir = world.scene.make_dir(format!("{}-{kind}", bundle.id()));
            let log = dir.join("log");
            let uri = address(&log);
            let stdio = Stdio { stdout: uri.clone(), stderr: uri, ..Stdio::none() };
            let plan = Plan { concerns: below(&dir), calls: k..=k + times - 1, fault };
            let mut run = Run::begin(&world, &bundle, plan, &stdio);
            run.shim.start("").unwrap();
            let (report, said) = run.end(&world);
            assert_eq!(read(&log), numbered(), "fault at {k} of {:#?}", report.calls);
            let told = assert_told_once(k, &report, &said, LOG_TROUBLE);
            // Half a write is no trouble; the rest is written at once.
            assert!(!told || fault != Fault::CutShort, "fault at {k} of {:#?}: {said}", report.calls);
            troubled.fetch_add(
                usize::from(if fault == Fault::CutShort { report.struck > 0 } else { told }),
                Ordering::SeqCst,
            );
            report
        });
        assert!(troubled.into_inner() > 0, "nothing went wrong");
    }
}

const FULL: Fault = Fault::Fails(Errno::ENOSPC);
const BROKEN: Fault = Fault::Fails(Errno::EIO);

/// All files of a json-file log, the oldest first.
fn json_lines(log: &Path) -> Vec<String> {
    let old = (1..50).rev().map(|n| PathBuf::from(format!("{}.{n}", log.display())));
    let text: String = old.chain([log.to_owned()]).map(|path| fs::read_to_string(path).unwrap_or_default()).collect();
    let line =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["log"].as_str().unwrap().to_owned();
    text.lines().map(line).collect()
}

#[test]
fn a_rotated_log_loses_and_doubles_nothing_whichever_call_fails() {
    let address = |log: &Path| format!("json-file://{}?max-size=1500&max-file=9", log.display());
    check_log("json", &[(FULL, 1), (BROKEN, 2), (Fault::CutShort, 1)], address, json_lines);
}

#[test]
fn a_file_loses_and_doubles_nothing_whichever_call_fails() {
    let address = |log: &Path| format!("file://{}", log.display());
    let read = |log: &Path| fs::read_to_string(log).unwrap().split_inclusive('\n').map(str::to_owned).collect();
    check_log("raw", &[(FULL, 1), (BROKEN, 2), (Fault::CutShort, 1)], address, read);
}

const RECORD_TROUBLE: [&str; 2] = ["cannot write the record", "the record is written at last"];

/// What the record says of the container's init process: its state, and its exit status.
fn recorded(world: &FakeWorld, bundle: &Bundle) -> Option<(String, Option<u64>)> {
    let path =
        world.scene.run_files().into_iter().find(|file| file.ends_with(&format!("/{}/record.json", bundle.id())))?;
    let record: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).expect("whole at any time");
    let init = &record["processes"][0];
    Some((init["state"].as_str()?.to_owned(), init["exit"]["status"].as_u64()))
}

#[test]
fn a_record_that_cannot_be_written_holds_nothing_up_and_is_right_in_the_end() {
    let world = FakeWorld::new();
    let tree = world.scene.run_dir().join("tasks");
    for (fault, times) in [(FULL, 1), (BROKEN, 2), (Fault::CutShort, 1)] {
        at_every_call(10, |k| {
            let bundle = world.script("read line; exit 7");
            let stdio =
                Stdio { stdout: String::new(), stderr: String::new(), ..Stdio::fifos(&world.scene, bundle.id()) };
            let plan = Plan { concerns: below(&tree), calls: k..=k + times - 1, fault };
            let mut run = Run::begin(&world, &bundle, plan, &stdio);
            run.shim.start("").unwrap();
            let is = |state: &str, exit: Option<u64>| {
                eventually(&format!("fault at {k}: the record should say {state}"), || {
                    match recorded(&world, &bundle) {
                        Some((s, e)) if s == state && e == exit => Ok(()),
                        other => Err(other),
                    }
                });
            };
            is("running", None);
            stdio.input().write(b"go\n");
            is("stopped", Some(7));
            let (report, said) = run.end(&world);
            assert_told_once(k, &report, &said, RECORD_TROUBLE);
            let own = format!("/{}/", bundle.id());
            let left: Vec<_> = world.scene.run_files().into_iter().filter(|file| file.contains(&own)).collect();
            let spoken_of = said.contains("cannot remove the directory of a container");
            assert!(left.is_empty() || spoken_of, "fault at {k} of {:#?}: {left:?}", report.calls);
            report
        });
    }
}

const JOURNAL_TROUBLE: [&str; 2] =
    ["cannot write down the events that wait", "the events that wait are written down at last"];

#[test]
fn a_journal_that_cannot_be_written_at_first_hands_on_every_event_of_a_dead_shim() {
    let mut world = FakeWorld::new();
    world.containerd.stop();
    let dead = Mutex::new(Vec::new());
    for (fault, times) in [(FULL, 1), (BROKEN, 2), (Fault::CutShort, 1)] {
        at_every_call(3, |k| {
            let bundle = world.sleeper();
            let concerns = Box::new(|path: &Path| path.to_string_lossy().contains(".events"));
            let plan = Plan { concerns, calls: k..=k + times - 1, fault };
            let mut run = Run::begin(&world, &bundle, plan, &Stdio::none());
            run.shim.start("").unwrap();
            run.shim.exec("e", &["/bin/sh", "-c", "exit 3"], &Stdio::none()).unwrap();
            run.shim.start("e").unwrap();
            assert_eq!(run.shim.wait_status("e"), 3, "fault at {k}");
            let mut said = String::new();
            eventually(&format!("fault at {k}: the journal should be whole"), || {
                said += &bundle.take_log();
                let [trouble, recovery] = JOURNAL_TROUBLE.map(|text| said.matches(text).count());
                if trouble == recovery { Ok(()) } else { Err(said.clone()) }
            });
            run.shim.process().kill();
            let report = run.sabotage.report();
            assert_told_once(k, &report, &said, JOURNAL_TROUBLE);
            dead.lock().unwrap().push((k, bundle));
            report
        });
    }
    world.containerd.resume();
    for (k, bundle) in dead.into_inner().unwrap() {
        world.launch(&bundle).delete();
        let story = world.containerd.story(bundle.id());
        // The exit of init is told by the daemon, which has it from `delete`.
        assert_eq!(story, ["create", "start", "exec-added e", "exec-started e", "exit e 3"], "fault at {k}");
    }
}

const SPILL_TROUBLE: [&str; 2] = ["cannot use what is kept for an absent reader", "can be used again"];

/// The length of what is kept of a container's stdout.
fn kept_bytes(spills: &Path, bundle: &Bundle) -> Option<u64> {
    let instances = fs::read_dir(spills).ok()?.flatten();
    let file = |instance: fs::DirEntry| instance.path().join(NAMESPACE).join(bundle.id()).join("init.stdout");
    instances.map(file).find_map(|file| Some(fs::metadata(file).ok()?.len()))
}

/// What `script` prints, which is `printed`, while nobody reads, under faults of what keeps it.
fn check_spill(script: &str, printed: &str) {
    let world = FakeWorld::new();
    let spills = world.scene.path("v/spill");
    let script = script.replace("PRINTED", world.scene.path("printed").to_str().unwrap());
    fs::write(world.scene.path("printed"), printed).unwrap();
    for (fault, times) in [(FULL, 1), (BROKEN, 2), (Fault::CutShort, 1)] {
        let troubled = AtomicUsize::new(0);
        at_every_call(5, |k| {
            let bundle = world.script(&script);
            let plan = Plan { concerns: below(&spills), calls: k..=k + times - 1, fault };
            let stdio = Stdio { stderr: String::new(), ..Stdio::output(&world.scene, bundle.id()) };
            let mut run = Run::begin(&world, &bundle, plan, &stdio);
            run.shim.start("").unwrap();
            // The exit does not wait for a reader, nor for the disk.
            assert_eq!(run.shim.wait_status(""), 7, "fault at {k}");
            eventually(&format!("fault at {k}: all should be kept in the end"), || {
                let kept = kept_bytes(&spills, &bundle);
                if kept == Some(printed.len() as u64) { Ok(()) } else { Err(kept) }
            });
            let read = stdio.readers().0.text();
            let (report, said) = run.end(&world);
            assert!(read == printed, "fault at {k} of {:#?}: {} of {} bytes", report.calls, read.len(), printed.len());
            let told = assert_told_once(k, &report, &said, SPILL_TROUBLE);
            troubled.fetch_add(usize::from(told || fault == Fault::CutShort && report.struck > 0), Ordering::SeqCst);
            report
        });
        assert!(troubled.into_inner() > 0, "nothing went wrong");
    }
}

#[test]
fn lines_that_are_kept_for_an_absent_reader_arrive_whole_whichever_call_fails() {
    check_spill(&printer(), &numbered().concat());
}

#[test]
fn much_that_is_kept_for_an_absent_reader_arrives_whole_whichever_call_fails() {
    let much: String = (0..40_000).map(|n| format!("line {n}\n")).collect();
    check_spill("cat PRINTED; exit 7", &much);
}

/// Nobody but a pipe writes short, and none fails so; but what the relay has not got rid of is its to try again.
#[test]
fn what_a_reader_is_given_live_arrives_whole_whichever_write_is_cut_short() {
    let much: String = (0..40_000).map(|n| format!("line {n}\n")).collect();
    for (script, printed) in [(printer(), numbered().concat()), ("cat PRINTED; exit 7".into(), much)] {
        let world = FakeWorld::new();
        let script = script.replace("PRINTED", world.scene.path("printed").to_str().unwrap());
        fs::write(world.scene.path("printed"), &printed).unwrap();
        let struck = AtomicUsize::new(0);
        at_every_call(1, |k| {
            let bundle = world.script(&script);
            let stdio = Stdio { stderr: String::new(), ..Stdio::output(&world.scene, bundle.id()) };
            let reader = Reader::open(&stdio.stdout);
            let fifo = PathBuf::from(&stdio.stdout);
            let plan = Plan { concerns: Box::new(move |path| path == fifo), calls: k..=k, fault: Fault::CutShort };
            let mut run = Run::begin(&world, &bundle, plan, &stdio);
            run.shim.start("").unwrap();
            let (report, _) = run.end(&world);
            let read = reader.text();
            assert!(read == printed, "fault at {k} of {:#?}: {} of {} bytes", report.calls, read.len(), printed.len());
            struck.fetch_add(report.struck, Ordering::SeqCst);
            report
        });
        assert!(struck.into_inner() > 0, "nothing went wrong");
    }
}
