//! Our shim inside a program that freezes and thaws it on command: what an upgrade in place does, without the new image.
//!
//! It is a program of its own (`src/bin/freeze-host.rs`), since a shim reaps all children of its process. Its commands
//! come as lines on stdin, and each is answered by a line on stdout once it was carried out.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};

use crate::process::ChildProcess;
use crate::shim::{EVENTS_SOCKET, NAMESPACE};
use crate::{Bundle, FakeWorld, Launch, Scene, Shim, programs};

/// The program with the shim in it.
#[derive(Debug)]
pub struct Freezable {
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    _host: ChildProcess,
}

impl Freezable {
    /// Serves a shim for `bundle`, and connects to it.
    ///
    /// # Panics
    /// If the program cannot be started.
    #[track_caller]
    pub fn start(world: &FakeWorld, bundle: &Bundle) -> (Self, Shim) {
        Self::serve(&world.scene, bundle, &world.launch(bundle))
    }

    /// As [`Freezable::start`], for a container that is made as `launch` says.
    ///
    /// # Panics
    /// As there.
    #[track_caller]
    pub fn serve(scene: &Scene, bundle: &Bundle, launch: &Launch<'_>) -> (Self, Shim) {
        let address = format!("unix://{}", scene.path("f.sock").display());
        let mut command = scene.command(programs::test_program("freeze-host"));
        command.args([NAMESPACE, bundle.id(), &address]).arg(scene.path(EVENTS_SOCKET));
        let mut host = ChildProcess::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let commands = host.child().stdin.take().expect("piped");
        let answers = BufReader::new(host.child().stdout.take().expect("piped"));
        let mut this = Self { commands, answers, _host: host };
        this.expect("ready");
        (this, launch.attach(&address))
    }

    /// Freezes the shim and thaws it at once.
    #[track_caller]
    pub fn freeze_and_thaw(&mut self) {
        self.freeze();
        self.thaw();
    }

    /// Freezes the shim.
    #[track_caller]
    pub fn freeze(&mut self) {
        self.command("freeze", "frozen");
    }

    /// Thaws it again.
    #[track_caller]
    pub fn thaw(&mut self) {
        self.command("thaw", "thawed");
    }

    /// Freezes and thaws it until `enough`, and returns how often.
    #[track_caller]
    pub fn keep_freezing_until(&mut self, mut enough: impl FnMut() -> bool) -> usize {
        let end = std::time::Instant::now() + crate::eventually::patience();
        let mut rounds = 0;
        while !enough() {
            assert!(std::time::Instant::now() < end, "not enough after {rounds} rounds");
            self.freeze_and_thaw();
            rounds += 1;
        }
        rounds
    }

    /// How many fds the program has open.
    #[track_caller]
    pub fn open_fds(&mut self) -> usize {
        self.ask("fds").parse().expect("a number")
    }

    /// The state of the frozen shim.
    #[track_caller]
    pub fn state(&mut self) -> String {
        self.ask("state")
    }

    #[track_caller]
    fn command(&mut self, command: &str, answer: &str) {
        writeln!(self.commands, "{command}").expect("the program listens");
        self.expect(answer);
    }

    #[track_caller]
    fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").expect("the program listens");
        self.line()
    }

    #[track_caller]
    fn expect(&mut self, answer: &str) {
        assert_eq!(self.line(), answer);
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the program answers");
        line.trim_end().to_owned()
    }
}
