//! Ring 2: a shim that has done much is as large as one that has done little. Each test does some, looks, does many more and
//! looks again. With `HOLDFAST_GROWTH=9000` there are 10,000 execs instead of as many as are worth their time in every run.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;
use std::{env, fs, thread};

use holdfast_proto::control::{AttachRequest, AttachResponse};
use holdfast_tests::process::memory;
use holdfast_tests::skip::skip;
use holdfast_tests::stdio::make_fifo;
use holdfast_tests::{FakeWorld, Reader, Shim, Stdio, eventually, process};
use serde_json::json;

/// What the design allows: four pages of anonymous memory, in KiB.
const ALLOWED: u64 = 16;

/// What the design allows a resting shim that has one container, in bytes of anonymous memory.
const LARGEST: u64 = 250_000;

/// What a shim has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    /// In KiB.
    anonymous: u64,
    descriptors: usize,
    threads: usize,
    /// In its directories.
    files: usize,
}

fn now(world: &FakeWorld, shim: &Shim) -> Size {
    let pid = shim.process().pid();
    let mut files = 0;
    let mut dirs = vec![world.scene.run_dir(), world.scene.path("v")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            files += 1;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(entry.path());
            }
        }
    }
    Size {
        anonymous: memory(pid).unwrap().anonymous,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        threads: process::threads(pid).unwrap(),
        files,
    }
}

/// The size of a shim that has come to rest: it gives memory back when nothing was asked of it for a while.
#[track_caller]
fn at_rest(world: &FakeWorld, shim: &mut Shim) -> Size {
    shim.connect().unwrap();
    eventually("the shim should come to rest", || {
        let before = now(world, shim);
        // Longer than it waits before it rests.
        thread::sleep(Duration::from_millis(1500));
        let after = now(world, shim);
        if before == after { Ok(after) } else { Err((before, after)) }
    })
}

/// Does `round` `first` times, which fills what is kept for use again, then `more` times; these must have left nothing.
#[track_caller]
fn assert_no_growth(
    world: &FakeWorld,
    shim: &mut Shim,
    (first, more): (usize, usize),
    mut round: impl FnMut(&mut Shim, usize),
) {
    (0..first).for_each(|n| round(shim, n));
    let before = at_rest(world, shim);
    let mut n = first;
    let mut seen = Vec::new();
    // What is lost shows at every look; what the allocator holds for use again comes and goes.
    for more in [more, 1, 1, 1, 1] {
        (n..n + more).for_each(|n| round(shim, n));
        n += more;
        let after = at_rest(world, shim);
        seen.push(after);
        if after.anonymous <= before.anonymous + ALLOWED
            && after.descriptors <= before.descriptors
            && after.threads <= before.threads
            && after.files <= before.files
        {
            println!("{before:?} after {first} rounds, {after:?} after {n}");
            return;
        }
    }
    panic!("{before:?} after {first} rounds has become, after {n}: {seen:?}");
}

fn open(path: &str) -> File {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
}

#[test]
fn a_resting_shim_is_as_small_as_the_design_says() {
    if env::var_os("HOLDFAST_BIN_DIR").is_some() {
        return skip("the programs are not those of `make build`, which are as small as can be");
    }
    let world = FakeWorld::new();
    let bundle = world.script("echo line; exec /bin/sleep 1000");
    let mut shim = world.start(&bundle);
    let stdio = Stdio::output(&world.scene, "init");
    let (out, _errors) = stdio.readers();
    shim.run(&stdio);
    out.wait_for("line\n");
    let size = at_rest(&world, &mut shim);
    println!("{size:?}");
    assert_eq!(size.threads, 1);
    assert!(size.anonymous * 1024 <= LARGEST, "{size:?}");
    shim.discard();
}

#[test]
fn many_execs_leave_nothing() {
    let more = env::var("HOLDFAST_GROWTH").map_or(500, |n| n.parse().unwrap());
    let world = FakeWorld::new();
    let bundle = world.sleeper();
    let mut shim = world.start(&bundle);
    shim.run(&Stdio::none());
    let stdio = Stdio::output(&world.scene, "e");
    assert_no_growth(&world, &mut shim, (1000, more), |shim, n| {
        let id = format!("e{n}");
        // Some are read, of some the output is lost with them, some never run.
        let reader = (n % 3 == 0).then(|| Reader::open(&stdio.stdout));
        shim.exec(&id, &["/bin/echo", "out"], &stdio).unwrap();
        if n % 5 != 0 {
            shim.start(&id).unwrap();
            assert_eq!(shim.wait_status(&id), 0);
        }
        shim.delete(&id).unwrap();
        drop(reader);
    });
    shim.discard();
}

#[test]
fn ten_thousand_readers_that_come_and_go_leave_nothing() {
    let world = FakeWorld::new();
    let bundle = world.bundle(&["/bin/cat"]);
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    shim.run(&stdio);
    let mut input = stdio.input();
    assert_no_growth(&world, &mut shim, (3000, 10_000), |_, n| {
        // Written while nobody is there, and read by the next.
        let line = format!("{n}\n");
        input.write(line.as_bytes());
        if n == 0 {
            // Once what is kept has a file, it has one until Delete.
            eventually("the first line should be kept", || if kept(&world) > 0 { Ok(()) } else { Err("nothing is") });
        }
        let mut reader = open(&stdio.stdout);
        let mut got = Vec::new();
        let mut buffer = [0; 16];
        while got.len() < line.len() {
            match reader.read(&mut buffer) {
                Ok(count) => got.extend_from_slice(&buffer[..count]),
                Err(_) => thread::yield_now(),
            }
        }
        assert_eq!(String::from_utf8_lossy(&got), line);
    });
    shim.discard();
}

#[test]
fn ten_thousand_attached_readers_that_leave_again_leave_nothing() {
    let world = FakeWorld::new();
    let bundle = world.bundle(&["/bin/cat"]);
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    let (main, _) = stdio.readers();
    shim.run(&stdio);
    let mut input = stdio.input();
    let copy = make_fifo(&world.scene, "copy").to_str().unwrap().to_owned();
    let id = bundle.id().to_owned();
    assert_no_growth(&world, &mut shim, (1000, 10_000), |shim, n| {
        let reader = open(&copy);
        let request = AttachRequest { id: id.clone(), stdout: copy.clone(), ..AttachRequest::default() };
        let _: AttachResponse = shim.connection.call("holdfast.shim.v1.Control", "Attach", &request).unwrap();
        drop(reader);
        // Mostly nothing is printed, so that nobody is seen to have left.
        if n % 500 == 0 {
            let line = format!("{n}\n");
            input.write(line.as_bytes());
            main.wait_for(&line);
        }
    });
    shim.discard();
}

#[test]
fn a_gigabyte_through_the_spill_leaves_nothing() {
    const PART: usize = 100 << 20;
    let world = FakeWorld::new();
    let script = format!("while read line; do yes 0123456789abcde | head -c {PART}; done");
    let bundle = world.script(&script).configure(|c| {
        c["annotations"] = json!({ "holdfast.output.spill-limit": "256MiB" });
    });
    let mut shim = world.start(&bundle);
    let stdio = Stdio::fifos(&world.scene, "init");
    shim.run(&stdio);
    let mut input = stdio.input();
    // With room for every offset within a line.
    let expected: Vec<u8> = b"0123456789abcde\n".iter().copied().cycle().take((64 << 10) + 16).collect();
    assert_no_growth(&world, &mut shim, (2, 8), |shim, _| {
        input.write(b"more\n");
        // All of it, although nobody reads.
        eventually("it should be kept", || match kept(&world) {
            size if size > (PART as u64) - (2 << 20) => Ok(()),
            size => Err(size),
        });
        assert!(shim.status("") == holdfast_tests::shim::Status::RUNNING);
        let mut reader = open(&stdio.stdout);
        let (mut count, mut buffer) = (0, vec![0; 64 << 10]);
        while count < PART {
            match reader.read(&mut buffer) {
                Ok(n) => {
                    assert!(buffer[..n] == expected[count % 16..][..n]);
                    count += n;
                }
                Err(_) => thread::yield_now(),
            }
        }
        assert_eq!(count, PART);
    });
    shim.close_stdin("").unwrap();
    drop(input);
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

/// Bytes on the disk for absent readers.
fn kept(world: &FakeWorld) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    let mut dirs = vec![world.scene.path("v/spill")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => dirs.push(entry.path()),
                Ok(metadata) => bytes += metadata.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    bytes
}
