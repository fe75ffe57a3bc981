//! Live, gone, or someone else's pid? Pure: from what was recorded and the text of `/proc/PID/stat`.

/// What became of a process that was once seen under a pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It is the same process, and it runs.
    Live,
    /// It has ended: no such pid, or a zombie that nobody has reaped yet.
    Gone,
    /// The pid belongs to another process by now.
    Recycled,
}

/// The two fields of `/proc/PID/stat` that say who a process is and whether it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Field 3, as `S` or `Z`.
    pub state: u8,
    /// Field 22: clock ticks since boot.
    pub start_time: u64,
}

impl Stat {
    /// Reads the text of `/proc/PID/stat`. `None` for anything else. The command name (field 2) may contain any byte, a
    /// closing parenthesis included, so that fields are counted from the last one.
    pub fn parse(text: &str) -> Option<Self> {
        let after_name = &text[text.rfind(')')? + 1..];
        let mut fields = after_name.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Self { state, start_time })
    }

    /// Whether the process has ended (a zombie, or about to vanish).
    pub fn ended(self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// Compares what was recorded with what `/proc` says now (`None`: nothing under that pid).
pub fn identify(recorded_start_time: u64, now: Option<Stat>) -> Identity {
    match now {
        None => Identity::Gone,
        Some(stat) if stat.start_time != recorded_start_time => Identity::Recycled,
        Some(stat) if stat.ended() => Identity::Gone,
        Some(_) => Identity::Live,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn line(name: &str, state: char, start: u64) -> String {
        format!("42 ({name}) {state} 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {start} 123 456")
    }

    #[test]
    fn a_name_full_of_traps_does_not_confuse() {
        let stat = Stat::parse(&line("a) Z 1 (b", 'S', 777)).unwrap();
        assert_eq!(stat, Stat { state: b'S', start_time: 777 });
    }

    #[test]
    fn garbage_is_nothing() {
        for text in ["", "42", "42 (x", "42 (x) ", "42 (x) S 1 2"] {
            assert_eq!(Stat::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_zombie_is_gone_and_a_recycled_pid_is_someone_elses() {
        let at = |state, start| Stat::parse(&line("shim", state, start));
        assert_eq!(identify(7, at('S', 7)), Identity::Live);
        assert_eq!(identify(7, at('Z', 7)), Identity::Gone);
        assert_eq!(identify(7, at('S', 8)), Identity::Recycled);
        assert_eq!(identify(7, at('Z', 8)), Identity::Recycled);
        assert_eq!(identify(7, None), Identity::Gone);
    }
}
