//! The tables of the last full run, from the notes of its tests: containerd's, Docker's and that of Docker's live-restore.
//!
//! ```text
//! matrix collect NOTES TARGET    writes TARGET/matrix.tsv, TARGET/matrix.md and TARGET/matrix-docker.md, and prints the tables
//! matrix check TARGET README     whether README says what these and TARGET/live-restore.md say; exit status 1 if not
//! matrix write TARGET README     makes it say so; what was skipped is taken from TARGET/vm, if `make test-vm` has seen it
//! ```

use std::env;
use std::path::Path;
use std::process::ExitCode;

use holdfast_tests::live_restore;
use holdfast_tests::matrix::{Kind, Matrix, cgroup_mode, compare, seen_with};
use holdfast_tests::readme::{load, put, save, split};

/// Where a table is.
struct Place {
    /// The file below the target directory.
    file: &'static str,
    /// What is around it in README.md.
    begin: &'static str,
    end: &'static str,
}

const LIVE_RESTORE: Place = Place {
    file: live_restore::FILE,
    begin: "<!-- live-restore: made by `make matrix` -->\n",
    end: "<!-- end of live-restore -->\n",
};

fn place(kind: Kind) -> Place {
    match kind {
        Kind::Containerd => Place {
            file: "matrix.md",
            begin: "<!-- matrix: made by `make matrix` -->\n",
            end: "<!-- end of matrix -->\n",
        },
        Kind::Docker => Place {
            file: "matrix-docker.md",
            begin: "<!-- matrix of Docker: made by `make matrix` -->\n",
            end: "<!-- end of matrix of Docker -->\n",
        },
    }
}

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
    save(&target.join("matrix.tsv"), &matrix.lines())?;
    for kind in Kind::ALL {
        let text = format!("{}\n\n{}", caption(&matrix.of(kind), kind), matrix.table(kind));
        save(&target.join(place(kind).file), &text)?;
        // Not every machine has a run of both.
        if !matrix.of(kind).is_empty() {
            println!("{text}");
        }
    }
    let (passed, failed, skipped) = matrix.count();
    println!("{passed} cells passed, {failed} failed, {skipped} skipped");
    Ok(())
}

fn caption(matrix: &Matrix, kind: Kind) -> String {
    let mut text = format!("Seen with {}.", seen_with(kind));
    for reason in matrix.reasons() {
        text += &stands_for(reason);
    }
    text
}

fn check(target: &Path, readme: &Path) -> Result<(), String> {
    let text = load(readme)?;
    for kind in Kind::ALL {
        let seen = load(&target.join(place(kind).file))?;
        let (_, shown, _) = split_at(&text, readme, &place(kind))?;
        // Of two machines the first is that of `make test`.
        let mode = shown.split_once("cgroup mode ").and_then(|(_, rest)| rest.split_once('.')).map(|(mode, _)| mode);
        let other_machine = mode != Some(cgroup_mode());
        compare(table_of(shown), table_of(&seen), other_machine).map_err(|rows| differs(readme, rows))?;
    }
    let (_, shown, _) = split_at(&text, readme, &LIVE_RESTORE)?;
    let seen = load(&target.join(LIVE_RESTORE.file))?;
    live_restore::compare(shown, &seen).map_err(|rows| differs(readme, rows))
}

fn differs(readme: &Path, (shown, seen): (String, String)) -> String {
    let readme = readme.display();
    format!(
        "{readme} does not show what this run has seen; `make matrix` updates it.\n  shown: {shown}\n  seen:  {seen}"
    )
}

fn write(target: &Path, readme: &Path) -> Result<(), String> {
    let all = Matrix::read(&target.join("matrix.tsv")).map_err(|e| e.to_string())?;
    for kind in Kind::ALL {
        let Place { file, begin, end } = place(kind);
        let mut matrix = all.of(kind);
        let mut seen = what_was_seen(&load(&target.join(file))?).to_owned();
        for (part, place) in ELSEWHERE {
            let there = target.join("vm").join(part);
            if !there.join("matrix.tsv").exists() {
                continue;
            }
            let other = Matrix::read(&there.join("matrix.tsv")).map_err(|e| e.to_string())?.of(kind);
            if !other.is_empty() {
                matrix.fill_from(&other);
                let with = load(&there.join(file))?;
                let with = what_was_seen(&with).trim_start_matches("Seen with ");
                seen += &format!(" What cannot be shown there, {place}: {with}");
            }
        }
        for reason in matrix.reasons() {
            seen += &stands_for(reason);
        }
        put(readme, begin, end, &format!("{seen}\n\n{}", matrix.table(kind)))?;
    }
    let Place { file, begin, end } = LIVE_RESTORE;
    put(readme, begin, end, &load(&target.join(file))?)
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

fn split_at<'a>(text: &'a str, path: &Path, place: &Place) -> Result<(&'a str, &'a str, &'a str), String> {
    split(text, path, place.begin, place.end)
}
