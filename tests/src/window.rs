//! A terminal window with a program in it: what a person sees, types and resizes.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};

use crate::eventually::until;
use crate::process::ChildProcess;
use crate::sys;

/// A window whose program has it as its controlling terminal. The program is killed when this is dropped.
pub struct Window {
    master: File,
    /// Held, so that the terminal and its settings outlive the program.
    _slave: std::os::fd::OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    /// The program.
    pub child: ChildProcess,
}

impl Window {
    /// Opens a window of this size and runs the command in it.
    ///
    /// # Panics
    /// If either is impossible; so for everything here: these are tests.
    pub fn run(command: &Command, columns: u16, rows: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("a terminal can be made");
        // setsid(1) makes the terminal the controlling one, and becomes the program.
        let mut inside = Command::new("setsid");
        inside.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        let end = || Stdio::from(slave.try_clone().expect("a descriptor can be duplicated"));
        let child = ChildProcess::spawn(inside.stdin(end()).stdout(end()).stderr(end()));
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (master, sink) = (File::from(master), Arc::clone(&shown));
        let mut source = master.try_clone().expect("a descriptor can be duplicated");
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends with the window: the last slave is closed then.
            while let Ok(n @ 1..) = source.read(&mut buffer) {
                sink.lock().expect("no reader panics").extend_from_slice(&buffer[..n]);
            }
        });
        Self { master, _slave: slave, shown, child }
    }

    /// All that was shown so far, with plain line breaks.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("the reader does not panic")).replace("\r\n", "\n")
    }

    /// Waits until something is shown.
    #[track_caller]
    pub fn until_shown(&self, text: &str) {
        until(&format!("{text:?} is shown"), || self.shown().contains(text).then_some(()));
    }

    /// Types keys.
    pub fn type_keys(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("a terminal takes keys");
    }

    /// Changes the size.
    pub fn resize(&self, columns: u16, rows: u16) {
        sys::set_window_size(&self.master, columns, rows).expect("a terminal takes a size");
    }

    /// Whether lines are edited and keys echoed, as a shell leaves it.
    pub fn is_cooked(&self) -> bool {
        let settings = tcgetattr(&self.master).expect("a terminal has settings");
        settings.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    /// Waits until it is, or is not.
    #[track_caller]
    pub fn until_cooked(&self, cooked: bool) {
        until("the terminal changes its mode", || (self.is_cooked() == cooked).then_some(()));
    }

    /// Waits for the end of the program; its exit code.
    #[track_caller]
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().code()
    }
}
