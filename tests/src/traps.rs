//! Which test shows which trap of the shim contract's section 10: the list in `tests/traps.txt` against the names of the
//! tests in the sources.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What a test's name begins with; two digits, an underscore and what is right follow.
const PREFIX: &str = "trap_";

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    /// What is right.
    pub right: String,
    /// Why it cannot concern this shim.
    pub inapplicable: Option<String>,
}

/// A function whose name begins like that of a test of a trap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// The function's name.
    pub name: String,
    /// Where it is, for complaints.
    pub place: String,
    /// Whether the test framework runs it.
    pub is_test: bool,
}

/// The list and the tests, compared.
#[derive(Debug, Default)]
pub struct Report {
    /// One line for all.
    pub summary: String,
    /// A line for each trap.
    pub lines: Vec<String>,
    /// What is wrong, a line each.
    pub faults: Vec<String>,
}

/// Reads the list: `NN what is right` or `NN what is right | inapplicable: why`; `#` begins a comment.
///
/// # Errors
/// One line for each line that is neither.
pub fn read_list(text: &str) -> Result<BTreeMap<u8, Trap>, Vec<String>> {
    let mut traps = BTreeMap::new();
    let mut faults = Vec::new();
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        match read_line(line) {
            Some((number, trap)) => {
                if traps.insert(number, trap).is_some() {
                    faults.push(format!("{number:02} is listed twice"));
                }
            }
            None => faults.push(format!("cannot read the line {line:?}")),
        }
    }
    if faults.is_empty() { Ok(traps) } else { Err(faults) }
}

fn read_line(line: &str) -> Option<(u8, Trap)> {
    let (number, rest) = line.split_once(' ')?;
    let number = two_digits(number)?;
    let (right, inapplicable) = match rest.split_once(" | ") {
        None => (rest, None),
        Some((right, note)) => (right, Some(note.strip_prefix("inapplicable: ")?.to_owned())),
    };
    let empty = right.is_empty() || inapplicable.as_deref() == Some("");
    (!empty).then(|| (number, Trap { right: right.to_owned(), inapplicable }))
}

fn two_digits(text: &str) -> Option<u8> {
    (text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// The number in a test's name, if it has the form `trap_NN_words`.
fn number_of(name: &str) -> Option<u8> {
    let (number, words) = name.strip_prefix(PREFIX)?.split_once('_')?;
    if words.is_empty() { None } else { two_digits(number) }
}

/// All functions in the Rust files below `dir` whose name begins like that of a test of a trap.
///
/// # Errors
/// As `readdir(3)` and `read(2)`.
pub fn find_tests(dir: &Path) -> io::Result<Vec<Named>> {
    let mut found = Vec::new();
    for file in rust_files(dir)? {
        found.extend(tests_in(&file.display().to_string(), &fs::read_to_string(&file)?));
    }
    found.sort();
    Ok(found)
}

/// The Rust files below `dir`.
///
/// # Errors
/// As `readdir(3)`.
pub fn rust_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// As [`find_tests`], in one file's text. A name in a string or a comment is none.
fn tests_in(file: &str, text: &str) -> Vec<Named> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    // Those that `matrix!` makes into tests, one a line.
    let matrix = lines.iter().skip_while(|l| !l.starts_with("matrix!")).take_while(|l| !l.starts_with(')'));
    let listed: Vec<&str> = matrix.map(|l| l.trim_end_matches(',')).collect();
    let named = |at: usize| {
        let line = lines[at].strip_prefix("pub ").unwrap_or(lines[at]);
        let line = line.strip_prefix("async ").unwrap_or(line);
        let name = line.strip_prefix("fn ")?.split(['(', '<']).next()?;
        // Attributes and comments stand between a function and what is before it.
        let above = lines[..at].iter().rev().take_while(|l| l.starts_with("#[") || l.starts_with("//"));
        let is_test =
            above.into_iter().any(|l| *l == "#[test]" || l.starts_with("#[tokio::test")) || listed.contains(&name);
        let place = format!("{file}:{}", at + 1);
        name.starts_with(PREFIX).then(|| Named { name: name.to_owned(), place, is_test })
    };
    (0..lines.len()).filter_map(named).collect()
}

/// Compares. A trap is either covered by a test or inapplicable, and every name means a trap of the list.
pub fn compare(traps: &BTreeMap<u8, Trap>, tests: &[Named]) -> Report {
    let mut report = Report::default();
    let mut covered: BTreeMap<u8, Vec<&str>> = BTreeMap::new();
    for test in tests {
        match number_of(&test.name).filter(|n| traps.contains_key(n)) {
            _ if !test.is_test => report.faults.push(format!("{}: {} is not a #[test]", test.place, test.name)),
            Some(number) => covered.entry(number).or_default().push(&test.name),
            None => report.faults.push(format!("{}: {} names no trap of the list", test.place, test.name)),
        }
    }
    for (number, trap) in traps {
        let mut line = format!("{number:02} {}\n     ", trap.right);
        match (covered.get(number), &trap.inapplicable) {
            (Some(tests), None) => drop(write!(line, "covered by {}", tests.join(", "))),
            (None, Some(why)) => drop(write!(line, "inapplicable: {why}")),
            (Some(tests), Some(_)) => {
                report
                    .faults
                    .push(format!("trap {number:02} is called inapplicable and covered by {}", tests.join(", ")));
            }
            (None, None) => {
                line.push_str("no test");
                report.faults.push(format!("trap {number:02} has no test: {}", trap.right));
            }
        }
        report.lines.push(line);
    }
    let inapplicable = traps.values().filter(|t| t.inapplicable.is_some()).count();
    let tests: usize = covered.values().map(Vec::len).sum();
    let covered = covered.len();
    report.summary = format!("{} traps: {covered} covered by {tests} tests, {inapplicable} inapplicable", traps.len());
    report
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn list(text: &str) -> BTreeMap<u8, Trap> {
        read_list(text).unwrap()
    }

    fn test(name: &str) -> Named {
        Named { name: name.to_owned(), place: "f.rs:1".to_owned(), is_test: true }
    }

    #[test]
    fn covered_and_inapplicable_traps_are_listed() {
        let traps = list("# comment\n\n01 It works\n02 It cannot be | inapplicable: no such thing\n");
        let report = compare(&traps, &[test("trap_01_a"), test("trap_01_b")]);
        assert_eq!(report.faults, [""; 0]);
        assert_eq!(report.summary, "2 traps: 1 covered by 2 tests, 1 inapplicable");
        assert_eq!(
            report.lines,
            ["01 It works\n     covered by trap_01_a, trap_01_b", "02 It cannot be\n     inapplicable: no such thing"]
        );
    }

    #[test]
    fn a_trap_without_a_test_is_a_fault_and_so_is_one_that_is_both() {
        let traps = list("01 It works\n02 It cannot be | inapplicable: no such thing\n");
        let report = compare(&traps, &[test("trap_02_a")]);
        assert_eq!(
            report.faults,
            ["trap 01 has no test: It works", "trap 02 is called inapplicable and covered by trap_02_a"]
        );
    }

    #[test]
    fn a_name_that_means_no_trap_of_the_list_is_a_fault() {
        let traps = list("01 It works\n");
        for name in ["trap_02_a", "trap_1_a", "trap_001_a", "trap_01", "trap_01_", "trap_a"] {
            let report = compare(&traps, &[test("trap_01_a"), test(name)]);
            assert_eq!(report.faults, [format!("f.rs:1: {name} names no trap of the list")]);
        }
    }

    #[test]
    fn a_function_that_nobody_runs_covers_nothing() {
        let traps = list("01 It works\n");
        let report = compare(&traps, &[Named { is_test: false, ..test("trap_01_a") }]);
        assert_eq!(report.faults, ["f.rs:1: trap_01_a is not a #[test]", "trap 01 has no test: It works"]);
    }

    #[test]
    fn tests_are_found_by_their_attribute_above_them() {
        let text = "#[test]\n#[allow(unused)]\n// why\n    fn trap_01_a() {\n}\nfn trap_02_b() {}\n\
                    #[tokio::test(flavor = \"x\")]\nasync fn trap_03_c() {}\n// fn trap_04_d()\nfn other() {}\n";
        let found: Vec<_> = tests_in("f.rs", text).into_iter().map(|t| (t.name, t.place, t.is_test)).collect();
        let named = |name: &str, line: u32, is_test| (name.to_owned(), format!("f.rs:{line}"), is_test);
        assert_eq!(found, [named("trap_01_a", 4, true), named("trap_02_b", 6, false), named("trap_03_c", 8, true)]);
    }

    #[test]
    fn a_behaviour_of_the_matrix_is_a_test_if_it_is_listed() {
        let text = "matrix!(\n    trap_01_a,\n);\nfn trap_01_a(real: &Real<'_>) {}\nfn trap_02_b(real: &Real<'_>) {}\n";
        let found: Vec<_> = tests_in("f.rs", text).into_iter().map(|t| (t.name, t.is_test)).collect();
        assert_eq!(found, [("trap_01_a".to_owned(), true), ("trap_02_b".to_owned(), false)]);
    }

    #[test]
    fn lines_that_cannot_be_read_are_named() {
        let faults = read_list("1 short\n01 good\n01 twice\n02\n03 x | because\nxx y\n").unwrap_err();
        assert_eq!(
            faults,
            [
                "cannot read the line \"1 short\"",
                "01 is listed twice",
                "cannot read the line \"02\"",
                "cannot read the line \"03 x | because\"",
                "cannot read the line \"xx y\""
            ]
        );
    }
}
