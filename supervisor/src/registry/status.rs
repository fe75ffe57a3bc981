//! Where a container is in its life, in the words of the API.

use std::fmt;

/// The status of a container, whoever manages it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its shim is being asked what became of it while no supervisor was there.
    Restoring,
    /// It is being made or started.
    Preparing,
    /// It was not started yet.
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It was told to end, or what is left of it is being cleared away.
    Stopping,
    /// It has ended.
    Exited,
    /// It has ended, and is started again after a pause.
    Restarting,
    /// It is being removed.
    Removing,
    /// Its shim does not answer.
    Unresponsive,
    /// Something about it cannot be read.
    Unreadable,
    /// Made by a newer holdfast.
    Incompatible,
    /// It is a sandbox that containers can join.
    Ready,
    /// It is a sandbox that none can join: not started yet, or ended.
    NotReady,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Restoring,
        Self::Preparing,
        Self::Created,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Exited,
        Self::Restarting,
        Self::Removing,
        Self::Unresponsive,
        Self::Unreadable,
        Self::Incompatible,
        Self::Ready,
        Self::NotReady,
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Restoring => "restoring",
            Self::Preparing => "preparing",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Unresponsive => "unresponsive",
            Self::Unreadable => "unreadable",
            Self::Incompatible => "incompatible",
            Self::Ready => "ready",
            Self::NotReady => "not-ready",
        }
    }

    /// What a word means; `None` for one that a newer supervisor has invented.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The words of the comment above `field`, the next above that being `before`.
    fn documented(text: &str, before: &str, field: &str) -> Vec<String> {
        let comment = text.split_once(before).unwrap().1.split_once(field).unwrap().0;
        let words = comment.split(|c: char| !c.is_ascii_alphabetic() && c != '-').filter(|word| !word.is_empty());
        let mut words: Vec<String> = words.map(str::to_owned).collect();
        words.sort_unstable();
        words
    }

    #[test]
    fn every_status_is_documented_where_it_is_promised() {
        let mut all = Status::ALL.map(Status::as_str);
        all.sort_unstable();
        let protocol = include_str!("../../../proto/protos/holdfast/supervisor.proto");
        let (_, container) = protocol.split_once("message Container {").unwrap();
        assert_eq!(documented(container, "repeated string command = 5;", "string status = 6;"), all);
        let schema = include_str!("../cli/schema.rs");
        assert_eq!(documented(schema, "command: &'a [String],", "status: &'a str,"), all);
    }

    #[test]
    fn a_word_means_one_status() {
        for status in Status::ALL {
            assert_eq!(Status::parse(status.as_str()), Some(status));
        }
        assert_eq!(Status::parse("levitating"), None);
    }
}
