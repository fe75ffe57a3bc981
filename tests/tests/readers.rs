//! Ring 2: readers that come, leave and come back, in every order and number, also by another FIFO at the same path.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, thread};

use holdfast_tests::numbered::{FOUR_MB, Random, assert_all};
use holdfast_tests::shim::Status;
use holdfast_tests::stdio::{Writer, wander};
use holdfast_tests::{FakeWorld, Freezable, Reader, Shim, Stdio, eventually, until};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// A reader that reads only when it is told to.
fn open(path: impl AsRef<Path>) -> File {
    File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).unwrap()
}

/// Another FIFO at the same path, as a client makes one that has forgotten the first.
fn replace(path: &str) {
    fs::remove_file(path).unwrap();
    mkfifo(path, Mode::S_IRWXU).unwrap();
}

/// Descriptors of the shim whose target contains `word`.
fn descriptors(shim: &Shim, word: &str) -> usize {
    let all = fs::read_dir(format!("/proc/{}/fd", shim.process().pid())).unwrap().flatten();
    all.filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.to_string_lossy().contains(word))).count()
}

/// Reads a FIFO as Go's clients do: the open waits for somebody who writes, on a thread that may be late.
#[track_caller]
fn read_late(path: &str) -> String {
    let path = path.to_owned();
    let reader = thread::spawn(move || fs::read_to_string(path).unwrap());
    until("the reader should see the end", || reader.is_finished().then_some(()));
    reader.join().unwrap()
}

#[test]
fn a_client_that_opens_a_fifo_when_the_process_has_ended_sees_the_end() {
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    for (name, script, expected) in [("silent", "exit 3", ["", ""]), ("loud", "echo out; exit 3", ["out\n", ""])] {
        let stdio = Stdio::output(&world.scene, name);
        shim.exec(name, &["/bin/sh", "-c", script], &stdio).unwrap();
        shim.start(name).unwrap();
        assert_eq!(shim.wait_status(name), 3);
        let seen = [&stdio.stdout, &stdio.stderr].map(|path| read_late(path));
        assert_eq!(seen, expected);
        until("the shim should hold them no longer", || (descriptors(&shim, name) == 0).then_some(()));
        shim.delete(name).unwrap();
    }
    // Nobody is waited for who does not come.
    let stdio = Stdio::output(&world.scene, "unread");
    shim.exec("unread", &["/bin/true"], &stdio).unwrap();
    shim.start("unread").unwrap();
    assert_eq!(shim.wait_status("unread"), 0);
    assert_eq!(descriptors(&shim, "unread"), 2);
    shim.delete("unread").unwrap();
    until("the shim should hold them no longer", || (descriptors(&shim, "unread") == 0).then_some(()));
    shim.discard();
}

/// A process that prints `got LINE` for each line of its input and notes that it has.
struct Echo {
    input: Writer,
    seen: std::path::PathBuf,
}

impl Echo {
    fn script(world: &FakeWorld) -> String {
        format!("while read line; do echo got $line; echo $line >>{}; done", world.scene.path("seen").display())
    }

    fn of(world: &FakeWorld, stdio: &Stdio) -> Self {
        Self { input: stdio.input(), seen: world.scene.path("seen") }
    }

    /// Returns when it was printed, whether or not anybody has read it.
    #[track_caller]
    fn say(&mut self, word: &str) {
        self.input.write(format!("{word}\n").as_bytes());
        eventually("the process should have printed", || {
            let text = fs::read_to_string(&self.seen).unwrap_or_default();
            if text.ends_with(&format!("{word}\n")) { Ok(()) } else { Err(text) }
        });
    }
}

#[test]
fn a_fifo_that_the_client_made_anew_goes_on_where_the_old_one_stopped() {
    let world = FakeWorld::new();
    let bundle = world.script(&Echo::script(&world));
    let (mut host, mut shim) = Freezable::start(&world, &bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let first = open(&stdio.stdout);
    shim.run(&stdio);
    let mut echo = Echo::of(&world, &stdio);
    // In the FIFO, which its reader leaves without a look.
    echo.say("one");
    drop(first);
    echo.say("two");
    replace(&stdio.stdout);
    host.freeze_and_thaw();
    echo.say("three");
    let second = Reader::open(&stdio.stdout);
    second.wait_for("got three\n");
    assert_eq!(String::from_utf8(second.leave()).unwrap(), "got one\ngot two\ngot three\n");
    echo.say("four");
    host.freeze_and_thaw();
    replace(&stdio.stdout);
    let third = Reader::open(&stdio.stdout);
    echo.say("five");
    third.wait_for("got five\n");
    drop(echo);
    shim.close_stdin("").unwrap();
    assert_eq!(shim.wait_status(""), 0);
    assert_eq!(third.text(), "got four\ngot five\n");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn a_directory_of_fifos_that_the_client_made_anew_is_found_after_the_exit() {
    let world = FakeWorld::new();
    let bundle = world.script("echo last words; echo of stderr >&2; exit 6");
    let mut shim = world.start(&bundle);
    let dir = world.scene.make_dir("fifos/of/it");
    let paths = ["out", "err"].map(|name| dir.join(name).to_str().unwrap().to_owned());
    let make = || paths.iter().for_each(|path| mkfifo(path.as_str(), Mode::S_IRWXU).unwrap());
    make();
    let [stdout, stderr] = paths.clone();
    let held = [open(&stdout), open(&stderr)];
    shim.run(&Stdio { stdout, stderr, ..Stdio::none() });
    assert_eq!(shim.wait_status(""), 6);
    drop(held);
    for path in [&dir, dir.parent().unwrap()] {
        fs::remove_dir_all(path).unwrap();
        fs::create_dir_all(&dir).unwrap();
        make();
    }
    let [stdout, stderr] = paths.each_ref().map(Reader::open);
    assert_eq!((stdout.text().as_str(), stderr.text().as_str()), ("last words\n", "of stderr\n"));
    shim.delete("").unwrap();
    shim.shutdown();
}

/// What the shim keeps on disk.
fn kept(world: &FakeWorld) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![world.scene.path("v/spill")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => dirs.push(entry.path()),
                false => found.push(entry.path().display().to_string()),
            }
        }
    }
    found
}

#[test]
fn a_reader_that_leaves_and_returns_while_4_mb_are_written_misses_no_line() {
    let one_by_one = format!("i=0; while [ $i -lt {FOUR_MB} ]; do echo $i; i=$((i+1)); done; exit 3");
    let at_once = format!("seq 0 {}; exit 3", FOUR_MB - 1);
    for (seed, script, anew) in [(1, &one_by_one, false), (0x5eed, &one_by_one, true), (20_261, &at_once, true)] {
        let mut random = Random::new(seed);
        let world = FakeWorld::new();
        let bundle = world.script(script);
        let mut shim = world.start(&bundle);
        let stdio = Stdio::output(&world.scene, "init");
        shim.run(&stdio);
        let mut others = Random::new(seed);
        let mut between = || {
            if anew && others.below(4) == 0 {
                replace(&stdio.stdout);
            }
        };
        let mut got = wander(&stdio.stdout, 1 << 20, &mut random, &mut between);
        // Nobody is there, and most of it is unread: it is no reader that the process waits for.
        assert_eq!(shim.wait_status(""), 3, "seed {seed}");
        assert!(got.len() < 2 << 20, "{}", got.len());
        got.extend(wander(&stdio.stdout, 1 << 20, &mut random, &mut between));
        got.extend(Reader::open(&stdio.stdout).to_end());
        assert_all(&got, FOUR_MB);
        assert_eq!(kept(&world), Vec::<String>::new(), "what was read is not kept");
        shim.delete("").unwrap();
        shim.shutdown();
    }
}

#[test]
fn what_was_written_while_nobody_was_there_is_complete_for_the_next_until_delete() {
    let world = FakeWorld::new();
    let bundle = world.script(&format!("seq 0 {}; seq 0 999 >&2; exit 5", FOUR_MB - 1));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 5);
    let (stdout, stderr) = stdio.readers();
    assert_all(&stdout.to_end(), FOUR_MB);
    assert_all(&stderr.unwrap().to_end(), 1000);
    shim.delete("").unwrap();
    shim.run(&stdio);
    assert_eq!(shim.wait_status(""), 5);
    shim.delete("").unwrap();
    // A disk that hangs must not hold up Delete: the files go beside it.
    eventually("nobody can come for it any more", || match kept(&world) {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
    shim.shutdown();
}

#[test]
fn from_a_fifo_that_its_reader_still_has_nothing_is_taken_when_there_is_another() {
    let world = FakeWorld::new();
    let bundle = world.script(&Echo::script(&world));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let mut old = open(&stdio.stdout);
    shim.run(&stdio);
    let mut echo = Echo::of(&world, &stdio);
    echo.say("one");
    replace(&stdio.stdout);
    let new = Reader::open(&stdio.stdout);
    echo.say("two");
    let mut got = String::new();
    eventually("the old reader should get both", || {
        let _ = old.read_to_string(&mut got);
        if got == "got one\ngot two\n" { Ok(()) } else { Err(got.clone()) }
    });
    assert!(new.so_far().is_empty());
    drop(old);
    echo.say("three");
    new.wait_for("got three\n");
    drop(echo);
    shim.close_stdin("").unwrap();
    assert_eq!(shim.wait_status(""), 0);
    assert_eq!(new.text(), "got three\n");
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn readers_that_open_and_close_in_a_loop_hold_nobody_up_and_cost_no_line_and_no_descriptor() {
    const LINES: usize = 50_000;
    let world = FakeWorld::new();
    let gate = world.scene.path("gate");
    let print = format!("i=0; while [ $i -lt {LINES} ]; do echo $i; i=$((i+1)); done");
    let wait = format!("while [ ! -e {} ]; do sleep 0.01; done", gate.display());
    // The last line is for the last reader, so that the end is, too.
    let bundle = world.script(&format!("{print}; {wait}; echo {LINES}; exit 4"));
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    shim.run(&stdio);
    let before = descriptors(&shim, "");
    let stop = Arc::new(AtomicBool::new(false));
    let client = thread::spawn({
        let (stop, path) = (stop.clone(), stdio.stdout.clone());
        move || {
            let (mut got, mut rounds) = (Vec::new(), 0_usize);
            while !stop.load(Ordering::Relaxed) {
                let mut reader = open(&path);
                // Most leave without a look.
                let mut buffer = [0; 4096];
                if rounds.is_multiple_of(4)
                    && let Ok(n) = reader.read(&mut buffer)
                {
                    got.extend_from_slice(&buffer[..n]);
                }
                rounds += 1;
            }
            (got, rounds)
        }
    });
    // Answers come as ever.
    (0..2000).for_each(|_| assert_eq!(shim.status(""), Status::RUNNING));
    stop.store(true, Ordering::Relaxed);
    let (mut got, rounds) = client.join().unwrap();
    assert!(rounds > 200, "only {rounds} rounds");
    let last = Reader::open(&stdio.stdout);
    fs::write(&gate, "").unwrap();
    assert_eq!(shim.wait_status(""), 4);
    got.extend(last.to_end());
    let expected: String = (0..=LINES).map(|n| format!("{n}\n")).collect();
    let first = got.iter().zip(expected.as_bytes()).position(|(a, b)| a != b);
    assert_eq!((got.len(), first), (expected.len(), None), "the length, and where the first difference is");
    eventually("every descriptor should be closed", || {
        let now = descriptors(&shim, "");
        if now <= before { Ok(()) } else { Err((before, now, rounds)) }
    });
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn of_two_readers_each_byte_goes_to_one_and_the_one_that_stays_gets_the_rest() {
    let world = FakeWorld::new();
    let bundle = world.script("i=0; while [ $i -lt 100000 ]; do echo $i; i=$((i+1)); done");
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let (first, second) = (open(&stdio.stdout), open(&stdio.stdout));
    shim.run(&stdio);
    let mut got = Vec::new();
    for mut reader in [&first, &second, &first, &second] {
        let mut part = vec![0; 5000];
        let mut filled = 0;
        eventually("there should be something to read", || {
            filled += reader.read(&mut part[filled..]).unwrap_or(0);
            if filled == part.len() { Ok(()) } else { Err(filled) }
        });
        got.extend(part);
    }
    drop(first);
    let last = Reader::open(&stdio.stdout);
    drop(second);
    assert_eq!(shim.wait_status(""), 0);
    got.extend(last.to_end());
    let expected: String = (0..100_000).map(|n| format!("{n}\n")).collect();
    assert!(got == expected.as_bytes());
    shim.delete("").unwrap();
    shim.shutdown();
}

#[test]
fn all_absent_readers_of_a_shim_cost_one_inotify_instance_while_they_are_absent() {
    const EXECS: usize = 12;
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    assert_eq!(descriptors(&shim, "inotify"), 0);
    let all: Vec<Stdio> = (0..EXECS).map(|n| Stdio::output(&world.scene, &format!("e{n}"))).collect();
    for (n, stdio) in all.iter().enumerate() {
        shim.exec(&format!("e{n}"), &["/bin/sh", "-c", "echo out; echo err >&2"], stdio).unwrap();
        shim.start(&format!("e{n}")).unwrap();
        assert_eq!(shim.wait_status(&format!("e{n}")), 0);
    }
    assert_eq!(descriptors(&shim, "inotify"), 1);
    for stdio in &all {
        let (stdout, stderr) = stdio.readers();
        assert_eq!((stdout.text().as_str(), stderr.unwrap().text().as_str()), ("out\n", "err\n"));
    }
    (0..EXECS).for_each(|n| drop(shim.delete(&format!("e{n}")).unwrap()));
    eventually("the instance should be closed", || match descriptors(&shim, "inotify") {
        0 => Ok(()),
        n => Err(n),
    });
    shim.discard();
}
