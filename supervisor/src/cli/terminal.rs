//! The terminal that we run in: raw while a container's terminal is shown in it, restored whatever happens.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Raw mode; ends when dropped.
pub(super) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Makes standard input raw. `None` if that is no terminal.
    pub(super) fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before); // the terminal may be gone
    }
}

/// Columns and rows of the terminal that we print to.
pub(super) fn size() -> Option<(u32, u32)> {
    crate::sys::window_size(std::io::stdout().as_fd()).filter(|(columns, rows)| *columns > 0 && *rows > 0)
}
