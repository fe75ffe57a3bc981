//! Signals as people write them: a number, or a name with or without `SIG`, real-time ones included.

use nix::sys::signal::Signal;

use crate::error::Failure;

/// The real-time signals that the C library leaves to programs.
const REALTIME_MIN: i32 = 34;
/// The highest signal of Linux.
const REALTIME_MAX: i32 = 64;

/// The number of a signal.
///
/// # Errors
/// When it is no number in range and no known name.
pub(crate) fn parse(text: &str) -> Result<i32, Failure> {
    number(text).ok_or_else(|| Failure::Argument {
        what: "signal",
        value: text.to_owned(),
        reason: "unknown signal: give a number from 0 to 64 or a name such as SIGTERM, TERM or RTMIN+1",
    })
}

fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        // Zero asks whether the process is there, as kill(2) has it.
        return (0..=REALTIME_MAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    realtime(name).or_else(|| match name {
        // Names that the kernel knows under another one.
        "IOT" => Some(Signal::SIGABRT as i32),
        "CLD" => Some(Signal::SIGCHLD as i32),
        "POLL" => Some(Signal::SIGIO as i32),
        "UNUSED" => Some(Signal::SIGSYS as i32),
        _ => format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32),
    })
}

/// `RTMIN`, `RTMIN+n`, `RTMAX`, `RTMAX-n`.
fn realtime(name: &str) -> Option<i32> {
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => REALTIME_MIN,
        (_, Some("")) => REALTIME_MAX,
        (Some(rest), _) => REALTIME_MIN + rest.strip_prefix('+')?.parse::<u8>().map(i32::from).ok()?,
        (_, Some(rest)) => REALTIME_MAX - rest.strip_prefix('-')?.parse::<u8>().map(i32::from).ok()?,
        _ => return None,
    };
    (REALTIME_MIN..=REALTIME_MAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_with_and_without_sig() {
        for (text, expected) in [
            ("9", 9),
            ("0", 0),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("hup", 1),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("RTMAX", 64),
            ("64", 64),
            ("IOT", 6),
            ("WINCH", 28),
        ] {
            assert_eq!(number(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in ["", "SIG", "65", "-1", "NOPE", "RTMIN+31", "RTMAX-31", "RTMIN-1", "RTMINX"] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}
