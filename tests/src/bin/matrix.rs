//! The table of the last full run, from the notes of its tests.
//!
//! ```text
//! matrix collect NOTES TARGET    writes TARGET/matrix.tsv and TARGET/matrix.md, and prints the table
//! matrix check TARGET README     whether README says what TARGET/matrix.md says; exit status 1 if not
//! matrix write TARGET README     makes it say so; what was skipped is taken from TARGET/vm, if `make test-vm` has seen it
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use holdfast_tests::matrix::{Matrix, cgroup_mode, compare, seen_with};

/// Around the table in README.md.
const BEGIN: &str = "<!-- matrix: made by `make matrix` -->\n";
const END: &str = "<!-- end of matrix -->\n";

/// Where `make test-vm` leaves what it has seen, below its directory, and what its places are called; the most real first.
const ELSEWHERE: [(&str, &str); 2] = [
    ("machine", "in the emulated machine of `make test-vm`"),
    ("namespaces", "under systemd in the namespaces of `make test-vm`"),
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["collect", notes, target] => collect(Path::new(notes), Path::new(target)),
        ["check", target, readme] => check(Path::new(target), Path::new(readme)),
        ["write", target, readme] => write(Path::new(target), Path::new(readme)),
        _ => Err("usage: matrix collect NOTES TARGET | check TARGET README | write TARGET README".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("matrix: {text}");
            ExitCode::FAILURE
        }
    }
}

fn collect(notes: &Path, target: &Path) -> Result<(), String> {
    let matrix = Matrix::read_notes(notes).map_err(|e| e.to_string())?;
    let text = format!("{}\n\n{}", caption(&matrix), matrix.table());
    save(&target.join("matrix.tsv"), &matrix.lines())?;
    save(&target.join("matrix.md"), &text)?;
    let (passed, failed, skipped) = matrix.count();
    println!("{text}\n{passed} cells passed, {failed} failed, {skipped} skipped");
    Ok(())
}

fn caption(matrix: &Matrix) -> String {
    let mut text = format!("Seen with {}.", seen_with());
    for reason in matrix.reasons() {
        text += &stands_for(reason);
    }
    text
}

fn check(target: &Path, readme: &Path) -> Result<(), String> {
    let seen = load(&target.join("matrix.md"))?;
    let text = load(readme)?;
    let (_, shown, _) = split(&text, readme)?;
    // Of two machines the first is that of `make test`.
    let mode = shown.split_once("cgroup mode ").and_then(|(_, rest)| rest.split_once('.')).map(|(mode, _)| mode);
    let other_machine = mode != Some(cgroup_mode());
    compare(table_of(shown), table_of(&seen), other_machine).map_err(|(shown, seen)| {
        let readme = readme.display();
        format!("{readme} does not show what this run has seen; `make matrix` updates it.\n  shown: {shown}\n  seen:  {seen}")
    })
}

fn write(target: &Path, readme: &Path) -> Result<(), String> {
    let mut matrix = Matrix::read(&target.join("matrix.tsv")).map_err(|e| e.to_string())?;
    let mut seen = what_was_seen(&load(&target.join("matrix.md"))?).to_owned();
    for (part, place) in ELSEWHERE {
        let there = target.join("vm").join(part);
        if there.join("matrix.tsv").exists() {
            matrix.fill_from(&Matrix::read(&there.join("matrix.tsv")).map_err(|e| e.to_string())?);
            let with = load(&there.join("matrix.md"))?;
            let with = what_was_seen(&with).trim_start_matches("Seen with ");
            seen += &format!(" What cannot be shown there, {place}: {with}");
        }
    }
    for reason in matrix.reasons() {
        seen += &stands_for(reason);
    }
    let text = load(readme)?;
    let (before, _, after) = split(&text, readme)?;
    save(readme, &format!("{before}{BEGIN}{seen}\n\n{}{END}{after}", matrix.table()))
}

/// A caption without what it says of skips.
fn what_was_seen(caption: &str) -> &str {
    let line = caption.lines().next().unwrap_or_default();
    line.split_once(" – ").map_or(line, |(seen, _)| seen)
}

fn stands_for(reason: &str) -> String {
    format!(" – stands for: {reason}.")
}

/// The lines of the table in a caption with a table.
fn table_of(text: &str) -> &str {
    text.find("\n|").map_or("", |at| text[at + 1..].trim_end())
}

/// What is before, between and after the marks.
fn split<'a>(text: &'a str, path: &Path) -> Result<(&'a str, &'a str, &'a str), String> {
    let cut = || {
        let (before, rest) = text.split_once(BEGIN)?;
        let (table, after) = rest.split_once(END)?;
        Some((before, table, after))
    };
    cut().ok_or_else(|| format!("{} has no place for the table: {} … {}", path.display(), BEGIN.trim(), END.trim()))
}

fn load(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

/// By rename, so that an interrupted run leaves the old one.
fn save(path: &Path, text: &str) -> Result<(), String> {
    let new: PathBuf = path.with_extension("new");
    let saved = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
    saved.map_err(|e| format!("cannot write {}: {e}", path.display()))
}
