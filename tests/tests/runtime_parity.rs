//! Ring 3: holdfast-oci makes the same containers as runc.
//!
//! Every specification in `specs/` runs under both, from create to delete, and every fact of `parity.rs` must be equal.
//! What is not is listed in `specs/differences.txt` with its reason, and the list is held to in both directions: a
//! difference that it does not have fails, and so does a line without a difference.
//!
//! `HOLDFAST_PARITY=NAME,…` runs some specifications only, and does not look for lines without a difference.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::{env, fs};

use holdfast_tests::parity::{Ended, Facts, Runtime, Stage, read_spec, specs_dir};
use holdfast_tests::skip::{is_root, skip};
use holdfast_tests::{Scene, programs};

/// A line of the list: `SPEC FACT: REASON`. One `*` in SPEC or FACT stands for any text.
struct Explained {
    spec: String,
    fact: String,
    line: String,
}

fn explained() -> Vec<Explained> {
    let text = fs::read_to_string(specs_dir().join("differences.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (what, reason) = line.split_once(": ").unwrap_or_else(|| panic!("no reason: {line}"));
            assert!(!reason.trim().is_empty(), "no reason: {line}");
            let (spec, fact) = what.split_once(' ').unwrap_or_else(|| panic!("no fact: {line}"));
            Explained { spec: spec.to_owned(), fact: fact.to_owned(), line: line.to_owned() }
        })
        .collect()
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end),
        None => pattern == name,
    }
}

/// The verdict over many comparisons.
struct Judge {
    list: Vec<Explained>,
    used: BTreeSet<usize>,
    complaints: String,
}

impl Judge {
    fn new() -> Self {
        Self { list: explained(), used: BTreeSet::new(), complaints: String::new() }
    }

    fn differs(&mut self, spec: &str, fact: &str, theirs: &str, ours: &str) {
        let mut known = false;
        for (index, line) in self.list.iter().enumerate() {
            if matches(&line.spec, spec) && matches(&line.fact, fact) {
                self.used.insert(index);
                known = true;
            }
        }
        if !known {
            let _ = writeln!(self.complaints, "{spec} {fact}\n    runc: {theirs:?}\n    ours: {ours:?}");
        }
    }

    fn compare(&mut self, spec: &str, theirs: &Facts, ours: &Facts) {
        let names: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
        for name in names {
            let value = |facts: &Facts| facts.get(name).cloned().unwrap_or_else(|| "(absent)".into());
            let (theirs, ours) = (value(theirs), value(ours));
            if theirs != ours {
                self.differs(spec, name, &theirs, &ours);
            }
        }
    }

    /// Only lines for which `in_charge` holds can be missed here.
    fn conclude(self, in_charge: impl Fn(&str) -> bool) {
        let unused = self.list.iter().enumerate().filter(|(index, _)| !self.used.contains(index));
        let unused: Vec<&str> = unused.filter(|(_, l)| in_charge(&l.spec)).map(|(_, l)| l.line.as_str()).collect();
        let whole = env::var_os("HOLDFAST_PARITY").is_none();
        let unused = if whole { unused.join("\n") } else { String::new() };
        assert!(
            self.complaints.is_empty() && unused.is_empty(),
            "differences that are not explained:\n{}\nexplained, but not there (any more):\n{unused}",
            self.complaints
        );
    }
}

/// Both runtimes, runc first.
fn runtimes(scene: &Scene) -> Option<(Runtime<'_>, Runtime<'_>)> {
    if !is_root() {
        skip("needs root");
        return None;
    }
    let Some(runc) = programs::peer("runc") else {
        skip("there is no runc");
        return None;
    };
    Some((Runtime::new(scene, "runc", runc), Runtime::new(scene, "ours", programs::ours("holdfast-oci"))))
}

fn names() -> Vec<String> {
    let wanted = env::var("HOLDFAST_PARITY").unwrap_or_default();
    let wanted: Vec<&str> = wanted.split(',').filter(|name| !name.is_empty()).collect();
    let files = fs::read_dir(specs_dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names = files.filter_map(|file| file.strip_suffix(".json").map(str::to_owned));
    let mut names: Vec<String> = names
        .filter(|name| name != "broken")
        .filter(|name| wanted.is_empty() || wanted.iter().any(|pattern| matches(pattern, name)))
        .collect();
    names.sort();
    names
}

#[test]
fn every_specification_makes_the_same_container_as_under_runc() {
    let scene = Scene::new();
    let Some((runc, ours)) = runtimes(&scene) else { return };
    let mut judge = Judge::new();
    let names = names();
    assert!(!names.is_empty(), "no specification was chosen");
    for name in names {
        // Shown with a failure only.
        eprintln!("{name}");
        let spec = read_spec(&name);
        // A root file system of its own for each: what one container leaves must not be seen by the next.
        let theirs = runc.facts(&Stage::new(&scene), &spec);
        let facts = ours.facts(&Stage::new(&scene), &spec);
        assert!(theirs.contains_key("create/code"), "runc must have been asked");
        judge.compare(&name, &theirs, &facts);
    }
    judge.conclude(|spec| !spec.starts_with("broken/"));
}

#[test]
fn broken_specifications_fail_at_the_same_step_with_the_same_code_and_the_words_that_docker_looks_for() {
    let scene = Scene::new();
    let Some((runc, ours)) = runtimes(&scene) else { return };
    let mut judge = Judge::new();
    for (name, case) in read_spec("broken").as_object().unwrap() {
        let spec = format!("broken/{}", name.replace(' ', "-"));
        let (their_step, theirs) = runc.broken(&Stage::new(&scene), case);
        let (our_step, ended) = ours.broken(&Stage::new(&scene), case);
        let whole = |step: &str, ended: &Ended| format!("{step} {:?}", ended.code);
        let (theirs_whole, ours_whole) = (whole(&their_step, &theirs), whole(&our_step, &ended));
        if theirs_whole != ours_whole {
            let with = |whole: &str, ended: &Ended| format!("{whole} {}", ended.complaint);
            judge.differs(&spec, "result", &with(&theirs_whole, &theirs), &with(&ours_whole, &ended));
        }
        for phrase in case["phrases"].as_array().unwrap() {
            let phrase = phrase.as_str().unwrap();
            // In any case: Docker compares in lower case.
            let says =
                |ended: &Ended| ended.complaint.replace("\\\"", "\"").to_lowercase().contains(&phrase.to_lowercase());
            let (theirs_says, ours_says) = (says(&theirs), says(&ended));
            if theirs_says != ours_says || !ours_says {
                judge.differs(&spec, &format!("phrase/{phrase}"), &theirs.complaint, &ended.complaint);
            }
        }
    }
    judge.conclude(|spec| spec.starts_with("broken/"));
}
