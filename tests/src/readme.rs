//! What README gives to be copied, its snippets, and what programs write into it, its tables.

use std::fs;
use std::path::Path;

use crate::programs;

/// The only snippet of README that begins so: the indented lines up to one that is not, without what indents them.
///
/// # Panics
/// If there is none, or more than one: a test that took another than its author had in mind would show nothing.
#[track_caller]
pub fn snippet(first: &str) -> String {
    let text = fs::read_to_string(programs::repository().join("README.md")).expect("README.md is in the tree");
    let mut found: Vec<String> = snippets(&text).into_iter().filter(|snippet| snippet.starts_with(first)).collect();
    assert_eq!(found.len(), 1, "snippets of README that begin with {first:?}: {found:?}");
    found.remove(0)
}

/// What is before, between and after two marks of a document.
///
/// # Errors
/// If it has not both, in words.
pub fn split<'a>(text: &'a str, path: &Path, begin: &str, end: &str) -> Result<(&'a str, &'a str, &'a str), String> {
    let cut = || {
        let (before, rest) = text.split_once(begin)?;
        let (table, after) = rest.split_once(end)?;
        Some((before, table, after))
    };
    cut().ok_or_else(|| format!("{} has no place for the table: {} … {}", path.display(), begin.trim(), end.trim()))
}

/// Puts `between` between the two marks of a document.
///
/// # Errors
/// As [`split`], or if the document cannot be read or written.
pub fn put(path: &Path, begin: &str, end: &str, between: &str) -> Result<(), String> {
    let text = load(path)?;
    let (before, _, after) = split(&text, path, begin, end)?;
    save(path, &format!("{before}{begin}{between}{end}{after}"))
}

/// A file's text.
///
/// # Errors
/// If it cannot be read, in words.
pub fn load(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

/// Writes a file by rename, so that an interrupted run leaves the old one.
///
/// # Errors
/// If it cannot be written, in words.
pub fn save(path: &Path, text: &str) -> Result<(), String> {
    let new = path.with_extension("new");
    let saved = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
    saved.map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// All snippets of a text in Markdown.
fn snippets(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let Some(line) = line.strip_prefix("    ") else {
            inside = false;
            continue;
        };
        if !inside {
            found.push(String::new());
        }
        inside = true;
        let snippet = found.last_mut().expect("one has begun");
        snippet.push_str(line);
        snippet.push('\n');
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snippet_is_what_is_indented_without_a_gap() {
        let text = "one\n\n    a = 1\n      b = 2\n\n    c = 3\ntwo\n";
        assert_eq!(snippets(text), ["a = 1\n  b = 2\n", "c = 3\n"]);
    }
}
