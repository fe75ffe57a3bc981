//! Logs that the shim writes itself, in every format: each line once and in order, through rotation, reopening, freezing
//! and a journal that is away.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use holdfast_proto::{control, service};
use holdfast_tests::journal::{FakeJournal, text};
use holdfast_tests::{Bundle, FakeWorld, Freezable, Shim, Stdio, eventually};
use serde_json::Value;

/// How many lines a container prints.
const LINES: usize = 60_000;

/// Prints to both streams at full speed, each line with its number.
fn numbers_on_both(count: usize) -> String {
    format!("seq 1 {count} & seq 1 {count} >&2; wait")
}

fn both(address: &str) -> Stdio {
    Stdio { stdout: address.into(), stderr: address.into(), ..Stdio::none() }
}

fn reopen_logs(shim: &mut Shim) {
    let request = control::ReopenLogsRequest { id: shim.id().into(), ..Default::default() };
    shim.connection.call::<control::ReopenLogsResponse>(service::CONTROL, "ReopenLogs", &request).unwrap();
}

/// The files of a log, the oldest first.
fn files(path: &Path) -> Vec<Vec<u8>> {
    let numbered = (1..).map_while(|n| fs::read(format!("{}.{n}", path.display())).ok());
    let mut all: Vec<_> = numbered.collect();
    all.reverse();
    all.extend(fs::read(path).ok());
    all
}

/// Stream and text of a line of a log.
fn entry(format: &str, line: &str) -> (String, String) {
    match format {
        "json-file" => {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
            (value["stream"].as_str().unwrap().into(), value["log"].as_str().unwrap().trim_end().into())
        }
        "cri" => {
            let fields: Vec<_> = line.splitn(4, ' ').collect();
            assert!(fields[0].ends_with('Z') && fields[2] == "F", "{line:?}");
            (fields[1].into(), fields[3].into())
        }
        _ => ("stdout".into(), line.into()),
    }
}

/// Each stream's texts.
fn streams(format: &str, files: &[Vec<u8>]) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files {
        for line in std::str::from_utf8(file).unwrap().lines() {
            let (stream, text) = entry(format, line);
            found.entry(stream).or_default().push(text);
        }
    }
    found
}

#[track_caller]
fn assert_numbers(texts: &[String], count: usize) {
    let wrong = texts.iter().zip(1..).find(|(text, n)| **text != n.to_string());
    assert_eq!((wrong, texts.len()), (None, count), "each number once and in order");
}

fn run_to_the_end(world: &FakeWorld, bundle: &Bundle, stdio: &Stdio) {
    let mut shim = world.start(bundle);
    shim.run(stdio);
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    shim.shutdown();
}

fn rotated_at_full_speed(format: &str, names: &[&str]) {
    let world = FakeWorld::new();
    // Raw output of two streams mixes within lines, as on a terminal.
    let both = names.len() == 2;
    let script = if both { numbers_on_both(LINES) } else { format!("seq 1 {LINES}") };
    let bundle = world.script(&script);
    let path = world.scene.path("log");
    let limit = 32 << 10;
    let address = format!("{format}://{}?max-size={limit}&max-file=1000", path.display());
    let stderr = if both { address.clone() } else { String::new() };
    run_to_the_end(&world, &bundle, &Stdio { stdout: address, stderr, ..Stdio::none() });
    let files = files(&path);
    assert!(files.len() > 5, "it was rotated {} times", files.len() - 1);
    assert!(files.iter().all(|f| f.len() <= limit && f.ends_with(b"\n")), "no line is divided");
    let streams = streams(format, &files);
    assert_eq!(streams.keys().map(String::as_str).collect::<Vec<_>>(), names);
    streams.values().for_each(|texts| assert_numbers(texts, LINES));
}

#[test]
fn a_json_file_is_rotated_at_full_speed_without_a_lost_or_doubled_line() {
    rotated_at_full_speed("json-file", &["stderr", "stdout"]);
}

#[test]
fn a_cri_log_is_rotated_at_full_speed_without_a_lost_or_doubled_line() {
    rotated_at_full_speed("cri", &["stderr", "stdout"]);
}

#[test]
fn a_raw_log_is_rotated_at_full_speed_without_a_lost_or_doubled_line() {
    rotated_at_full_speed("raw", &["stdout"]);
}

#[test]
fn the_bound_on_files_is_kept_and_the_newest_stay() {
    let world = FakeWorld::new();
    let bundle = world.script(&format!("seq 1 {LINES}"));
    let path = world.scene.path("log");
    let address = format!("cri://{}?max-size=8192&max-file=3", path.display());
    run_to_the_end(&world, &bundle, &both(&address));
    let names: Vec<_> = fs::read_dir(world.scene.dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    let mut names: Vec<_> = names.iter().filter_map(|n| n.to_str()?.strip_prefix("log")).collect();
    names.sort_unstable();
    assert_eq!(names, ["", ".1", ".2"]);
    let kept = streams("cri", &files(&path)).remove("stdout").unwrap();
    let first: usize = kept[0].parse().unwrap();
    let expected: Vec<_> = (first..=LINES).map(|n| n.to_string()).collect();
    assert!(kept == expected && kept.len() > 300, "{} lines from {first} on", kept.len());
}

#[test]
fn a_log_that_is_moved_away_and_reopened_again_and_again_has_every_line_once() {
    for format in ["json-file", "cri", "raw"] {
        let world = FakeWorld::new();
        let bundle = world
            .script("i=0; while [ $i -lt 40 ]; do seq $((i*1000+1)) $((i*1000+1000)); sleep 0.01; i=$((i+1)); done");
        let path = world.scene.path("log");
        let mut shim = world.start(&bundle);
        shim.run(&Stdio { stdout: format!("{format}://{}", path.display()), ..Stdio::none() });
        let wait = shim.begin_wait("");
        let mut moved = Vec::new();
        while !shim.connection.has_reply(wait) {
            let to = world.scene.path(format!("moved{}", moved.len()));
            fs::rename(&path, &to).unwrap();
            reopen_logs(&mut shim);
            // Nothing goes into it any more: it may be compressed, or sent away.
            moved.push(fs::read(&to).unwrap());
            let last = moved.len() - 1;
            assert_eq!(fs::read(&to).unwrap().len(), moved[last].len());
        }
        shim.wait("").unwrap();
        shim.delete("").unwrap();
        moved.push(fs::read(&path).unwrap());
        let all = moved.concat();
        assert_numbers(&streams(format, &[all])["stdout"], 40_000);
        assert!(moved.len() > 3, "{format}: moved {} times", moved.len() - 1);
        shim.shutdown();
    }
}

#[test]
fn a_reopened_log_that_cannot_be_opened_says_so_and_goes_on_in_the_old_file() {
    let world = FakeWorld::new();
    let go = world.scene.path("go");
    let bundle = world.script(&format!("echo one; while ! [ -e {} ]; do sleep 0.02; done; echo two", go.display()));
    let path = world.scene.path("log");
    let mut shim = world.start(&bundle);
    shim.run(&Stdio { stdout: format!("cri://{}", path.display()), ..Stdio::none() });
    eventually("the first line should be there", || {
        fs::read_to_string(&path).unwrap().contains("one").then_some(()).ok_or(())
    });
    let moved = world.scene.path("moved");
    fs::rename(&path, &moved).unwrap();
    fs::create_dir(&path).unwrap();
    let request = control::ReopenLogsRequest { id: shim.id().into(), ..Default::default() };
    let call = shim.connection.call::<control::ReopenLogsResponse>(service::CONTROL, "ReopenLogs", &request);
    let refusal = call.unwrap_err();
    assert!(refusal.message().contains("cannot reopen the log"), "{refusal:?}");
    fs::write(go, "").unwrap();
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    assert_eq!(streams("cri", &[fs::read(&moved).unwrap()])["stdout"], ["one", "two"]);
    shim.shutdown();
}

#[test]
fn every_format_goes_on_through_freezes() {
    for format in ["json-file", "cri", "raw"] {
        let world = FakeWorld::new();
        let bundle = world.script("i=0; while [ $i -lt 200 ]; do seq $((i*20+1)) $((i*20+20)); i=$((i+1)); done");
        let (mut host, mut shim) = Freezable::start(&world, &bundle);
        let path = world.scene.path("log");
        let address = format!("{format}://{}?max-size=4096&max-file=1000", path.display());
        shim.run(&Stdio { stdout: address, ..Stdio::none() });
        let wait = shim.begin_wait("");
        let rounds = host.keep_freezing_until(|| shim.connection.has_reply(wait));
        assert!(rounds > 0);
        shim.wait("").unwrap();
        shim.delete("").unwrap();
        let files = files(&path);
        assert!(files.len() > 3);
        assert_numbers(&streams(format, &files)["stdout"], 4000);
        shim.shutdown();
    }
}

fn journal_address() -> Stdio {
    both("journald://?id=0123456789abcdef0123&name=web&tag=a%20tag&namespace=default")
}

#[test]
fn the_journal_gets_every_line_with_the_containers_names() {
    let world = FakeWorld::new();
    let path = world.scene.path("journal");
    let journal = FakeJournal::start(&path);
    let bundle = world.script(&numbers_on_both(LINES / 3));
    let mut shim = world.launch(&bundle).env("HOLDFAST_JOURNAL_SOCKET", path.to_str().unwrap()).start();
    shim.run(&journal_address());
    assert_eq!(shim.wait_status(""), 0);
    shim.delete("").unwrap();
    let all = 2 * (LINES / 3);
    eventually("every line should come", || if journal.count() < all { Err(journal.count()) } else { Ok(()) });
    for (stream, priority) in [("stdout", "6"), ("stderr", "3")] {
        assert_numbers(&journal.messages(stream), LINES / 3);
        let entries = journal.entries();
        let one = entries.iter().find(|e| text(e, "HOLDFAST_STREAM") == stream).unwrap();
        let fields = [
            ("PRIORITY", priority),
            ("CONTAINER_ID", "0123456789ab"),
            ("CONTAINER_ID_FULL", "0123456789abcdef0123"),
            ("CONTAINER_NAME", "web"),
            ("CONTAINER_TAG", "a tag"),
            ("SYSLOG_IDENTIFIER", "a tag"),
            ("HOLDFAST_NAMESPACE", "default"),
        ];
        fields.iter().for_each(|(field, value)| assert_eq!(text(one, field), *value, "{field}"));
        assert!(text(one, "SYSLOG_TIMESTAMP").ends_with('Z'));
    }
    shim.shutdown();
}

#[test]
fn a_long_line_comes_to_the_journal_in_marked_pieces() {
    let world = FakeWorld::new();
    let path = world.scene.path("journal");
    let journal = FakeJournal::start(&path);
    let bundle = world.script("head -c 40000 /dev/zero | tr '\\0' x; printf '\\n\\377\\n'");
    let mut shim = world.launch(&bundle).env("HOLDFAST_JOURNAL_SOCKET", path.to_str().unwrap()).start();
    shim.run(&journal_address());
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    eventually("four entries should come", || if journal.count() < 4 { Err(journal.count()) } else { Ok(()) });
    let entries = journal.entries();
    let lengths: Vec<_> = entries.iter().map(|e| e["MESSAGE"].len()).collect();
    assert_eq!(lengths, [16384, 16384, 7232, 1]);
    let partial: Vec<_> = entries.iter().map(|e| text(e, "CONTAINER_PARTIAL_MESSAGE")).collect();
    assert_eq!(partial, ["true", "true", "", ""]);
    assert_eq!(entries[3]["MESSAGE"], [0xff]);
    shim.shutdown();
}

#[test]
fn a_journal_that_is_away_and_restarted_gets_every_line_once_and_it_is_said_once() {
    let world = FakeWorld::new();
    let path = world.scene.path("journal");
    let bundle = world.script(&format!("seq 1 {LINES}"));
    let mut log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(bundle.path("log")).unwrap();
    let launch = world.launch(&bundle).env("HOLDFAST_JOURNAL_SOCKET", path.to_str().unwrap());
    let mut shim = launch.start();
    // Nobody listens: the container is made and started all the same.
    shim.run(&journal_address());
    let mut said = String::new();
    let mut hear = |what: &str| {
        eventually(&format!("{what:?} should be said"), || {
            let _ = log.read_to_string(&mut said);
            if said.contains(what) { Ok(said.clone()) } else { Err(said.clone()) }
        })
    };
    hear("cannot write the container's log");
    let mut entries = Vec::new();
    let mut outages = 1;
    while entries.len() < LINES {
        let journal = FakeJournal::start(&path);
        let enough = || journal.count() >= 15_000 || entries.len() + journal.count() >= LINES;
        eventually("more lines should come", || if enough() { Ok(()) } else { Err(journal.count()) });
        entries.extend(journal.leave());
        outages += 1;
    }
    let messages: Vec<_> = entries.iter().map(|e| text(e, "MESSAGE")).collect();
    assert_numbers(&messages, LINES);
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    let said = hear("is written again");
    let complaints = said.matches("cannot write the container's log").count();
    assert!(complaints <= outages, "{complaints} complaints of {outages} outages: {said}");
    shim.shutdown();
}
