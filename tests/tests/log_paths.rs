//! Ring 2: what may befall the path of a log while it is written: removed, with or without its directory, or something else
//! in its place.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use holdfast_tests::stdio::{Writer, make_fifo};
use holdfast_tests::{Bundle, FakeWorld, Reader, Shim, Stdio, eventually};

/// A container that prints each line that it is given.
struct Echo {
    shim: Shim,
    input: Writer,
    log: PathBuf,
    bundle: Bundle,
}

impl Echo {
    fn start(world: &FakeWorld, scheme: &str) -> Self {
        let bundle = world.script("while read line; do echo $line; done");
        let log = world.scene.make_dir(format!("{}-logs", bundle.id())).join("log");
        let mut shim = world.start(&bundle);
        let stdin = Stdio::fifos(&world.scene, bundle.id()).stdin;
        let stdio = Stdio { stdin, stdout: format!("{scheme}://{}", log.display()), ..Stdio::none() };
        shim.run(&stdio);
        Self { shim, input: stdio.input(), log, bundle }
    }

    /// Has a line printed.
    fn print(&mut self, line: &str) {
        self.input.write(format!("{line}\n").as_bytes());
    }

    /// Has a line printed, which comes to the log.
    #[track_caller]
    fn log(&mut self, line: &str) {
        self.print(line);
        eventually(&format!("{line:?} should be in the log"), || match fs::read_to_string(&self.log) {
            Ok(text) if text.contains(line) => Ok(()),
            other => Err(other),
        });
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn end(self) -> String {
        self.shim.discard();
        self.bundle.take_log()
    }
}

const LOST: &str = "the container's log was removed or replaced, going on in a new one";

#[test]
fn a_log_that_was_removed_is_made_anew_and_that_is_said() {
    let world = FakeWorld::new();
    for scheme in ["file", "json-file"] {
        let mut echo = Echo::start(&world, scheme);
        echo.log("first");
        fs::remove_file(&echo.log).unwrap();
        echo.log("second");
        assert!(!echo.text().contains("first"));
        assert_eq!(echo.end().matches(LOST).count(), 1);
    }
}

#[test]
fn a_log_whose_directory_was_removed_is_made_anew_with_it() {
    let world = FakeWorld::new();
    for (scheme, mode) in [("file", 0o755), ("json-file", 0o700)] {
        let mut echo = Echo::start(&world, scheme);
        echo.log("first");
        let dir = echo.log.parent().unwrap().to_owned();
        fs::remove_dir_all(&dir).unwrap();
        echo.log("second");
        assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, mode);
        assert_eq!(echo.end().matches(LOST).count(), 1);
    }
}

#[test]
fn a_log_that_moves_with_its_directory_is_written_on_there() {
    let world = FakeWorld::new();
    for scheme in ["file", "json-file"] {
        let mut echo = Echo::start(&world, scheme);
        echo.log("first");
        let moved = world.scene.path(format!("{}-moved", echo.bundle.id()));
        fs::rename(echo.log.parent().unwrap(), &moved).unwrap();
        echo.log = moved.join("log");
        echo.log("second");
        assert!(echo.text().contains("first"));
        assert!(!echo.end().contains(LOST));
    }
}

#[test]
fn a_link_in_the_place_of_a_log_is_not_followed_and_what_is_printed_waits_until_it_is_gone() {
    let world = FakeWorld::new();
    let mut echo = Echo::start(&world, "json-file");
    echo.log("first");
    let victim = world.scene.path("victim");
    fs::write(&victim, "not ours").unwrap();
    fs::remove_file(&echo.log).unwrap();
    symlink(&victim, &echo.log).unwrap();
    echo.print("second");
    let mut said = String::new();
    eventually("the shim should say why", || {
        said += &echo.bundle.take_log();
        if said.contains("Too many levels of symbolic links") { Ok(()) } else { Err(said.clone()) }
    });
    fs::remove_file(&echo.log).unwrap();
    echo.log("third");
    let text = echo.text();
    assert!(text.find("second").unwrap() < text.find("third").unwrap(), "{text}");
    assert_eq!(fs::read_to_string(victim).unwrap(), "not ours");
    said += &echo.end();
    assert_eq!(said.matches("cannot write the container's log").count(), 1, "{said}");
    assert_eq!(said.matches("the container's log is written again").count(), 1, "{said}");
}

#[test]
fn a_fifo_or_a_device_that_is_named_as_a_file_is_not_waited_for() {
    let world = FakeWorld::new();
    let bundle = world.script("echo hello; exit 7");
    let mut shim = world.start(&bundle);
    let uri = |path: &Path| Stdio { stdout: format!("file://{}", path.display()), ..Stdio::none() };
    let fifo = make_fifo(&world.scene, "fifo");
    // Nobody reads it yet.
    shim.run(&uri(&fifo));
    assert_eq!(shim.wait_status(""), 7);
    let reader = Reader::open(&fifo);
    shim.delete("").unwrap();
    assert_eq!(reader.text(), "hello\n");
    shim.run(&uri(Path::new("/dev/null")));
    assert_eq!(shim.wait_status(""), 7);
    shim.delete("").unwrap();
    shim.shutdown();
}
