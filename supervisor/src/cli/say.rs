//! What is said to people and to programs that read us. Nothing here panics: whoever reads may have left, and a disk may
//! be full. Colours reach only terminals that want them (`NO_COLOR`, `CLICOLOR`, `CLICOLOR_FORCE`).

use std::io::{ErrorKind, IsTerminal, Write};

use anstyle::{AnsiColor, Style};

use super::{CliError, terminal};

/// In front of what goes wrong.
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
/// For what runs.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
/// For what somebody should look at.
pub(super) const ODD: Style = AnsiColor::Yellow.on_default();
/// For the heads of tables.
pub(super) const HEAD: Style = Style::new().bold();

/// A text in a style, for terminals.
pub(super) fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Prints to standard output; a reader that has left (`| head`) is no error.
///
/// # Errors
/// When it cannot be written otherwise, as on a full disk.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    stream(text).map(drop)
}

/// As [`print()`], for what goes on: whether anybody reads it still.
///
/// # Errors
/// As [`print()`].
pub(super) fn stream(text: &str) -> Result<bool, CliError> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(CliError::io("write to standard output")(e)),
    }
}

/// Tells something on standard error, as ours.
pub(super) fn tell(text: &str) {
    write_error(&format!("holdfast: {text}\n"));
}

/// Tells a person that we leave a container alone, below what it has printed.
pub(super) fn tell_leaving(text: &str) {
    let below = if std::io::stderr().is_terminal() { "\n" } else { "" };
    write_error(&format!("{below}holdfast: {text}\n"));
}

/// Tells of an error, and what to do next if that is known.
pub(super) fn tell_error(text: &str, next: Option<&str>) {
    write_error(&format!("{} {text}\n", styled(BAD, "holdfast:")));
    if let Some(next) = next {
        write_error(&format!("  {next}\n"));
    }
}

fn write_error(text: &str) {
    // A raw terminal does not go back to the beginning of the line by itself.
    let text = if terminal::is_raw() { text.replace('\n', "\r\n") } else { text.to_owned() };
    let _ = anstream::stderr().lock().write_all(text.as_bytes()); // there is nobody else to tell
}
