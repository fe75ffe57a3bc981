//! The terminal that we run in: raw while a container's terminal is shown in it, restored whatever happens.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::CliError;

/// Whether [`RawMode`] is on, for those who print meanwhile.
static RAW: AtomicBool = AtomicBool::new(false);

/// Raw mode; ends when dropped, and so also by a panic.
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
        RAW.store(true, Ordering::Relaxed);
        Some(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before); // the terminal may be gone
        RAW.store(false, Ordering::Relaxed);
    }
}

/// Whether the terminal is raw, so that a line break does not go back to the beginning of the line.
pub(super) fn is_raw() -> bool {
    RAW.load(Ordering::Relaxed)
}

/// Refuses, with Docker's words, to give a terminal to a container and to feed it from something that is none: line
/// editing, echo and the end of input would not be what anybody expects.
///
/// # Errors
/// [`CliError::Usage`].
pub(super) fn check_input(terminal: bool, input: bool) -> Result<(), CliError> {
    if terminal && input && !std::io::stdin().is_terminal() {
        let text = "the input device is not a TTY: leave out --tty to pass a file or a pipe on, or --interactive";
        return Err(CliError::Usage(text.to_owned()));
    }
    Ok(())
}

/// Columns and rows of the terminal that we print to, or else of the one that we read from.
pub(super) fn size() -> Option<(u32, u32)> {
    let sizes = [crate::sys::window_size(std::io::stdout().as_fd()), crate::sys::window_size(std::io::stdin().as_fd())];
    sizes.into_iter().flatten().find(|(columns, rows)| *columns > 0 && *rows > 0)
}

/// The columns of the terminal that standard output is; `None` if it is none.
pub(super) fn width() -> Option<u16> {
    let (columns, _) = crate::sys::window_size(std::io::stdout().as_fd())?;
    u16::try_from(columns).ok().filter(|columns| *columns > 0)
}
