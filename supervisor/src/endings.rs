//! How execs and removed containers ended, for the next supervisor: `<run root>/endings.log`, one JSON object a line. A
//! line stands there before anybody is told of what it says; a reboot voids it, as it voids all execs.
//!
//! The table ([`crate::registry`]) decides what is remembered and for how long. When the file has grown well beyond that,
//! it is written anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use holdfast_proto::regular;
use serde::{Deserialize, Serialize};

use crate::container::Outcome;
use crate::store::{self, StoreError};

/// How many lines there may be before it is worth while to look for those that are not needed any more.
const FEW: usize = 1024;

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

/// The file.
#[derive(Debug)]
pub struct Endings {
    path: PathBuf,
    /// `None` when the last write failed, which was said then.
    file: Option<File>,
    lines: usize,
    /// So many lines are enough to write it anew.
    full: usize,
}

impl Endings {
    /// Goes on with the file at `path`: and what it says, the oldest first. One that cannot be read is told in the log.
    pub fn open(path: &Path) -> (Self, Vec<Ending>) {
        let text = match regular::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => {
                tracing::warn!("cannot read {}, how earlier execs ended is not known: {e}", path.display());
                String::new()
            }
        };
        // The last line may be torn, others are nobody's doing.
        let endings: Vec<Ending> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        // Written anew with the first that comes: what follows a torn line would be lost with it.
        let this = Self { path: path.to_owned(), file: None, lines: endings.len(), full: 0 };
        (this, endings)
    }

    /// Adds one; `all` gives everything that is to be remembered, that one included, when the file is to be written anew.
    pub fn add(&mut self, ending: &Ending, all: impl FnOnce() -> Vec<Ending>) {
        self.lines += 1;
        let appended = self.lines <= self.full
            && self.file.as_mut().is_some_and(|file| file.write_all(line(ending).as_bytes()).is_ok());
        if !appended && let Err(e) = self.rewrite(&all()) {
            tracing::error!("{}; a restart may not know how execs ended", crate::chain(&e));
            self.file = None;
        }
    }

    fn rewrite(&mut self, all: &[Ending]) -> Result<(), StoreError> {
        let text: String = all.iter().map(line).collect();
        store::replace_file(&self.path, text.as_bytes())?;
        let opened = OpenOptions::new().append(true).custom_flags(nix::libc::O_NOFOLLOW).open(&self.path);
        let file = opened.map_err(|source| StoreError::Write { path: self.path.clone(), source })?;
        (self.file, self.lines, self.full) = (Some(file), all.len(), 2 * all.len() + FEW);
        Ok(())
    }
}

fn line(ending: &Ending) -> String {
    serde_json::to_string(ending).expect("strings and numbers can be encoded") + "\n"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("holdfast-endings-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn ending(n: u32) -> Ending {
        let outcome = Outcome { status: n, at_unix_ns: i64::from(n), reason: String::new() };
        Ending { id: "c".into(), name: "web".into(), exec_id: format!("e{n}"), outcome }
    }

    #[test]
    fn what_was_added_is_there_again_also_after_a_torn_line() {
        let place = Place::new("torn");
        let (mut endings, before) = Endings::open(&place.0);
        assert_eq!(before, []);
        endings.add(&ending(1), || vec![ending(1)]);
        endings.add(&ending(2), || panic!("there is room"));
        drop(endings);
        OpenOptions::new().append(true).open(&place.0).unwrap().write_all(b"{\"id\":\"c\",\"na").unwrap();
        let (mut endings, known) = Endings::open(&place.0);
        assert_eq!(known, [ending(1), ending(2)]);
        endings.add(&ending(3), || vec![ending(1), ending(2), ending(3)]);
        assert_eq!(Endings::open(&place.0).1, [ending(1), ending(2), ending(3)]);
    }

    #[test]
    fn the_file_is_cut_back_to_what_is_remembered() {
        let place = Place::new("bound");
        let (mut endings, _) = Endings::open(&place.0);
        for n in 0..5000 {
            endings.add(&ending(n), || vec![ending(n)]);
        }
        assert!(fs::read_to_string(&place.0).unwrap().lines().count() <= FEW + 2);
        assert_eq!(Endings::open(&place.0).1.last(), Some(&ending(4999)));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_tried_again_with_the_next() {
        let place = Place::new("later/file");
        let (mut endings, _) = Endings::open(&place.0);
        endings.add(&ending(1), || vec![ending(1)]);
        fs::create_dir_all(place.0.parent().unwrap()).unwrap();
        endings.add(&ending(2), || vec![ending(1), ending(2)]);
        assert_eq!(Endings::open(&place.0).1, [ending(1), ending(2)]);
        fs::remove_dir_all(place.0.parent().unwrap()).unwrap();
    }
}
