//! A file that remembers: one JSON object a line, added at the end. When it has grown well beyond what is to be remembered,
//! it is written anew, by rename.
//!
//! Nothing here decides what is remembered: who adds a line gives, when asked, all that is to stay. A line that could not be
//! written is in the file with the next that can be.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use holdfast_proto::regular;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::{self, StoreError};

/// How many lines there may be before it is worth while to look for those that are not needed any more.
pub(crate) const FEW: usize = 1024;

/// A file with lines of `T`.
#[derive(Debug)]
pub struct LineFile<T> {
    path: PathBuf,
    /// What is lost without the file, to follow "not known".
    what: &'static str,
    /// `None` when it is to be written anew with the next line.
    file: Option<File>,
    lines: usize,
    /// So many lines are enough to write it anew.
    full: usize,
    /// The last write failed, and that was said.
    failing: bool,
    of: PhantomData<fn(&T)>,
}

impl<T: Serialize + DeserializeOwned> LineFile<T> {
    /// Goes on with the file at `path`: and what it says, the oldest first. One that cannot be read is told in the log, with
    /// `what` is not known then.
    pub fn open(path: &Path, what: &'static str) -> (Self, Vec<T>) {
        let text = match regular::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => {
                tracing::warn!("cannot read {}, {what} is not known: {e}", path.display());
                String::new()
            }
        };
        // The last line may be torn, others are nobody's doing.
        let known: Vec<T> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        // Written anew with the first that comes: what follows a torn line would be lost with it.
        let (path, lines) = (path.to_owned(), known.len());
        (Self { path, what, file: None, lines, full: 0, failing: false, of: PhantomData }, known)
    }

    /// Adds one; `all` gives everything that is to be remembered, that one included, when the file is to be written anew.
    pub fn add<I: IntoIterator<Item = T>>(&mut self, one: &T, all: impl FnOnce() -> I) {
        self.lines += 1;
        let appended = self.lines <= self.full
            && self.file.as_mut().is_some_and(|file| file.write_all(line(one).as_bytes()).is_ok());
        if appended {
            return;
        }
        let written = self.rewrite(all());
        if let Err(e) = &written {
            self.file = None;
            if !self.failing {
                tracing::error!("{}; {} may not be known after a restart", crate::chain(e), self.what);
            }
        }
        self.failing = written.is_err();
    }

    fn rewrite(&mut self, all: impl IntoIterator<Item = T>) -> Result<(), StoreError> {
        let lines: Vec<String> = all.into_iter().map(|one| line(&one)).collect();
        store::replace_file(&self.path, lines.concat().as_bytes())?;
        let opened = OpenOptions::new().append(true).custom_flags(nix::libc::O_NOFOLLOW).open(&self.path);
        let file = opened.map_err(|source| StoreError::Write { path: self.path.clone(), source })?;
        (self.file, self.lines, self.full) = (Some(file), lines.len(), 2 * lines.len() + FEW);
        Ok(())
    }
}

fn line(one: &impl Serialize) -> String {
    serde_json::to_string(one).expect("strings and numbers can be encoded") + "\n"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("holdfast-lines-{name}-{}", std::process::id())))
        }

        fn open(&self) -> (LineFile<u32>, Vec<u32>) {
            LineFile::open(&self.0, "what was")
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn what_was_added_is_there_again_also_after_a_torn_line() {
        let place = Place::new("torn");
        let (mut file, before) = place.open();
        assert_eq!(before, [0; 0]);
        file.add(&1, || [1]);
        file.add(&2, || -> [u32; 0] { panic!("there is room") });
        drop(file);
        OpenOptions::new().append(true).open(&place.0).unwrap().write_all(b"{\"id\":\"c\",\"na").unwrap();
        let (mut file, known) = place.open();
        assert_eq!(known, [1, 2]);
        file.add(&3, || [1, 2, 3]);
        assert_eq!(place.open().1, [1, 2, 3]);
    }

    #[test]
    fn the_file_is_cut_back_to_what_is_remembered() {
        let place = Place::new("bound");
        let (mut file, _) = place.open();
        for n in 0..5000 {
            file.add(&n, || [n]);
        }
        assert!(fs::read_to_string(&place.0).unwrap().lines().count() <= FEW + 2);
        assert_eq!(place.open().1.last(), Some(&4999));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_tried_again_with_the_next() {
        let place = Place::new("later/file");
        let (mut file, _) = place.open();
        file.add(&1, || [1]);
        fs::create_dir_all(place.0.parent().unwrap()).unwrap();
        file.add(&2, || [1, 2]);
        assert_eq!(place.open().1, [1, 2]);
        fs::remove_dir_all(place.0.parent().unwrap()).unwrap();
    }

    #[test]
    fn what_is_no_line_of_ours_is_passed_over() {
        let place = Place::new("garbage");
        fs::write(&place.0, "[]\nno JSON\n7\n").unwrap();
        let (mut file, known) = place.open();
        assert_eq!(known, [7]);
        file.add(&8, || [7, 8]);
        assert_eq!(fs::read_to_string(&place.0).unwrap(), "7\n8\n");
    }
}
