//! What README gives to be copied: its snippets.

use std::fs;

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
