//! The supervisor's log, at a level that can be changed while it runs: to the journal, with fields, when the service
//! manager has connected standard error with it; else as text to standard error.

use std::os::fd::AsFd;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

/// The hand on the level of what is logged.
#[derive(Clone, Debug)]
pub struct LogLevel(reload::Handle<LevelFilter, Registry>);

impl LogLevel {
    /// Logs from now on what is at least as grave as `level`.
    pub fn set(&self, level: tracing::Level) {
        if let Err(e) = self.0.reload(LevelFilter::from_level(level)) {
            tracing::error!("cannot change the level of the log: {e}");
        }
    }
}

/// Begins to log. To be called once.
///
/// # Panics
/// If it was called before.
pub fn begin(level: tracing::Level) -> LogLevel {
    let (filter, handle) = reload::Layer::new(LevelFilter::from_level(level));
    // A journal that cannot be had by its socket is what standard error goes to, too: better without fields than not at all.
    let journal = is_journal().then(tracing_journald::layer).and_then(Result::ok);
    let journal = journal.map(|layer| {
        layer.with_syslog_identifier("holdfastd".to_owned()).with_field_prefix(Some("HOLDFAST".to_owned()))
    });
    let text = fmt::layer().compact().with_ansi(false).with_target(false).with_writer(std::io::stderr);
    let text = journal.is_none().then_some(text);
    tracing_subscriber::registry().with(filter).with(journal).with(text).init();
    LogLevel(handle)
}

/// Whether standard error is the journal's stream, as systemd.exec(5) says under `$JOURNAL_STREAM`: whoever has redirected
/// it wants the log where he has pointed it.
fn is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stat = nix::sys::stat::fstat(std::io::stderr().as_fd());
    stat.is_ok_and(|stat| names(&stream, stat.st_dev, stat.st_ino))
}

fn names(stream: &str, device: u64, inode: u64) -> bool {
    let parsed = stream.split_once(':').and_then(|(d, i)| Some((d.parse().ok()?, i.parse().ok()?)));
    parsed == Some((device, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_stream_is_the_journal() {
        assert!(names("8:4711", 8, 4711));
        for other in ["", "8", "8:", "8:4712", "9:4711", "8:4711:1", "x:4711"] {
            assert!(!names(other, 8, 4711), "{other}");
        }
    }
}
