//! The restore report: what the supervisor found when it started.

use std::fmt;
use std::time::Duration;

/// What became of one container while no supervisor was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Its shim answered, and it goes on as before.
    Reattached,
    /// It ended meanwhile; its shim told the true status.
    ExitedWhileAway,
    /// Its shim is dead but its first process lives, without anybody who drains its output.
    Adopted,
    /// Neither shim nor process is left.
    Lost,
    /// Another manager's: only looked at.
    Foreign,
    /// Something about it cannot be read; kept as it is.
    Unreadable,
    /// Written by a newer holdfast, and kept as it is; or made by an OCI runtime that is not there any more.
    Incompatible,
    /// Its shim lives but did not answer in time; asked again in the background.
    Unresponsive,
    /// It was not running, and is not.
    AtRest,
    /// Its shim is being asked.
    Restoring,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Reattached,
        Self::ExitedWhileAway,
        Self::Adopted,
        Self::Lost,
        Self::Foreign,
        Self::Unreadable,
        Self::Incompatible,
        Self::Unresponsive,
        Self::AtRest,
        Self::Restoring,
    ];

    /// The word for it, as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reattached => "reattached",
            Self::ExitedWhileAway => "exited-while-away",
            Self::Adopted => "adopted",
            Self::Lost => "lost",
            Self::Foreign => "foreign",
            Self::Unreadable => "unreadable",
            Self::Incompatible => "incompatible",
            Self::Unresponsive => "unresponsive",
            Self::AtRest => "at-rest",
            Self::Restoring => "restoring",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// containerd's namespace.
    pub namespace: String,
    /// The container, or the name of the directory that should have been one.
    pub id: String,
    /// Empty if unknown.
    pub name: String,
    /// What became of it.
    pub class: Class,
    /// One sentence for people.
    pub detail: String,
    /// Of its first process, 0 if it has none.
    pub pid: u32,
}

/// The report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Whether the disk is read, so that all containers are in the report.
    pub scanned: bool,
    /// When it was complete, in nanoseconds since the Unix epoch; 0 while it is under way.
    pub at_unix_ns: i64,
    /// How long it took.
    pub took: Duration,
    /// In the order in which the answers came.
    pub containers: Vec<Restored>,
}

impl RestoreReport {
    /// One line: how many of each class.
    pub fn summary(&self) -> String {
        let mut classes: Vec<Class> = self.containers.iter().map(|c| c.class).collect();
        classes.sort_unstable();
        let counts: Vec<String> =
            classes.chunk_by(|a, b| a == b).map(|same| format!("{} {}", same.len(), same[0])).collect();
        let what = if counts.is_empty() { "nothing to restore".to_owned() } else { counts.join(", ") };
        format!("{what}, in {:.1} ms", self.took.as_secs_f64() * 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_by_class() {
        let one = |class| Restored {
            namespace: "default".into(),
            id: "x".into(),
            name: String::new(),
            class,
            detail: String::new(),
            pid: 0,
        };
        let mut report = RestoreReport { took: Duration::from_millis(12), ..RestoreReport::default() };
        assert_eq!(report.summary(), "nothing to restore, in 12.0 ms");
        report.containers = vec![one(Class::Lost), one(Class::Reattached), one(Class::Reattached)];
        assert_eq!(report.summary(), "2 reattached, 1 lost, in 12.0 ms");
    }
}
