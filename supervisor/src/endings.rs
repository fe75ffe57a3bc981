//! How execs and removed containers ended, for the next supervisor: `<run root>/endings.log`, a [`LineFile`]. A line stands
//! there before anybody is told of what it says; a reboot voids it, as it voids all execs.
//!
//! The table ([`crate::registry`]) decides what is remembered and for how long.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::container::Outcome;
use crate::line_file::LineFile;

/// How something ended that may be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The container's id.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// Empty for the container itself, which is removed then.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub exec_id: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Goes on with the file at `path`: and what it says, the oldest first.
pub fn open(path: &Path) -> (LineFile<Ending>, Vec<Ending>) {
    LineFile::open(path, "how earlier execs ended")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_line_is_what_earlier_supervisors_have_written() {
        let outcome = Outcome { status: 7, at_unix_ns: 5, reason: String::new() };
        let exec = Ending { id: "c".into(), name: "web".into(), exec_id: "e".into(), outcome };
        let container = Ending { exec_id: String::new(), ..exec.clone() };
        for (ending, text) in [
            (exec, r#"{"id":"c","name":"web","exec_id":"e","status":7,"at_unix_ns":5}"#),
            (container, r#"{"id":"c","name":"web","status":7,"at_unix_ns":5}"#),
        ] {
            assert_eq!(serde_json::to_string(&ending).unwrap(), text);
            assert_eq!(serde_json::from_str::<Ending>(text).unwrap(), ending);
        }
    }
}
