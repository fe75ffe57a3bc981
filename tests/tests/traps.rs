//! Ring 1: every trap of the shim contract's section 10 has a test that carries its number, or cannot concern this shim.

use std::fs;
use std::path::Path;

use holdfast_tests::traps::{compare, find_tests, read_list};

/// How many there are: a line that is lost from the list would not be missed otherwise.
const TRAPS: u8 = 58;

#[test]
fn every_trap_is_covered_or_inapplicable() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let list = fs::read_to_string(root.join("tests/traps.txt")).expect("the list is there");
    let traps = read_list(&list).unwrap_or_else(|faults| panic!("tests/traps.txt:\n  {}", faults.join("\n  ")));
    let numbers: Vec<u8> = traps.keys().copied().collect();
    assert_eq!(numbers, (1..=TRAPS).collect::<Vec<_>>(), "the numbers in tests/traps.txt");

    let crates = ["proto", "shim", "supervisor", "tests"];
    let tests = crates.map(|name| find_tests(&root.join(name)).expect("the sources can be read")).concat();
    let report = compare(&traps, &tests);

    let text = format!("{}\n\n{}\n", report.summary, report.lines.join("\n"));
    println!("{text}");
    // For tests/run.sh, which shows the first line and names the file.
    let target = root.join("target");
    fs::create_dir_all(&target).and_then(|()| fs::write(target.join("traps.txt"), text)).expect("target is writable");
    assert!(report.faults.is_empty(), "{} faults:\n  {}", report.faults.len(), report.faults.join("\n  "));
}
