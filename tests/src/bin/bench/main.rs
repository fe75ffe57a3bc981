//! The benchmark: ours beside what users would pick instead, in one run on one machine.
//!
//! ```text
//! bench run [--full] [--only PART]… [--matching TEXT] [--shim NAME=PROGRAM]… [--runtime NAME=PROGRAM]… [--rounds N] [--out DIR]
//!           [--keep]
//! bench compare OLD.json [NEW.json]
//! bench readme [BENCH.json]
//! ```
//!
//! In every round each subject has its turn, in most parts in an order that rotates, so that a machine which gets slower or
//! faster does so for all of them. What matters are the ratios. Root only. The short form takes less than three minutes.
#![allow(clippy::unwrap_used)]

mod clients;
mod daemon;
mod fairness;
mod floor;
mod goals;
mod life;
mod memory;
mod oci;
mod output;
mod parallel;
mod plot;
mod report;
mod restart;
mod scale;
mod subjects;
mod table;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;
use std::{fs, thread};

use clap::{Parser, Subcommand};
use holdfast_tests::programs::{self, DockerVersion, Version};
use holdfast_tests::{readme, skip};

use crate::report::Report;

/// Measures holdfast beside its peers.
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Measure, print a table, and leave it as JSON, Markdown and a picture.
    Run(Settings),
    /// Show what has changed since an older run.
    Compare {
        /// The older run's bench.json.
        old: PathBuf,
        /// The newer one's.
        #[arg(default_value = "target/bench/bench.json")]
        new: PathBuf,
    },
    /// Put a run's tables into README.md.
    Readme {
        /// The run's bench.json.
        #[arg(default_value = "target/bench/bench.json")]
        report: PathBuf,
    },
}

/// What is around the tables in README.md.
const MARKS: (&str, &str) = ("<!-- numbers: made by `make bench-readme` -->\n", "<!-- end of numbers -->\n");

#[derive(clap::Args)]
struct Settings {
    /// Everything, as often as it takes for a steady median: half an hour.
    #[arg(long)]
    full: bool,
    /// Only these parts.
    #[arg(long, value_name = "PART", value_parser = PARTS.map(|(name, _)| name))]
    only: Vec<String>,
    /// Of the part output: only quantities whose name contains this.
    #[arg(long, value_name = "TEXT")]
    matching: Option<String>,
    #[command(flatten)]
    others: subjects::Others,
    /// How often each quantity is measured, where that can be chosen.
    #[arg(long)]
    rounds: Option<usize>,
    /// Where the results go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Keep what the last run has left there and this one does not measure, if it was of the same form on the same machine.
    #[arg(long)]
    keep: bool,
}

type Part = fn(&mut Bench);

const PARTS: [(&str, Part); 13] = [
    ("floor", floor::run),
    ("life", life::run),
    ("oci", oci::run),
    ("throughput", parallel::run),
    ("memory", memory::density),
    ("growth", memory::growth),
    ("output", output::run),
    ("fairness", fairness::run),
    ("supervisor", restart::supervisor),
    ("containerd", restart::containerd),
    ("daemon", daemon::run),
    ("clients", clients::run),
    ("scale", scale::run),
];

/// What the parts get.
struct Bench {
    settings: Settings,
    report: Report,
}

impl Bench {
    fn full(&self) -> bool {
        self.settings.full
    }

    /// One for the short form, the other for the full one.
    fn pick<T>(&self, short: T, full: T) -> T {
        if self.full() { full } else { short }
    }

    fn rounds(&self, short: usize, full: usize) -> usize {
        self.settings.rounds.unwrap_or(if self.full() { full } else { short }).max(1)
    }

    /// Whether a quantity was asked for.
    fn is_wanted(&self, name: &str) -> bool {
        self.settings.matching.as_ref().is_none_or(|text| name.contains(text))
    }

    /// One line that is written over, for people; nothing into a file.
    fn progress(&self, text: &str) {
        if std::io::stderr().is_terminal() {
            eprint!("\r{text:90}\r");
        }
    }
}

/// KiB and clock ticks, which are few enough for that.
#[allow(clippy::cast_precision_loss)]
fn kib(value: u64) -> f64 {
    value as f64
}

fn main() -> ExitCode {
    let done = match Arguments::parse().action {
        Action::Run(settings) => run(settings),
        Action::Compare { old, new } => compare(&old, &new),
        Action::Readme { report } => Report::read(&report).and_then(|report| {
            readme::put(&programs::repository().join("README.md"), MARKS.0, MARKS.1, &table::markdown(&report))
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::FAILURE
        }
    }
}

fn compare(old: &Path, new: &Path) -> Result<(), String> {
    print!("{}", table::comparison(&Report::read(old)?, &Report::read(new)?));
    Ok(())
}

fn run(settings: Settings) -> Result<(), String> {
    if !skip::is_root() {
        return Err("needs root, as containers do".into());
    }
    let ours = subjects::our_shim();
    if !ours.exists() {
        return Err(format!("{} is missing; run `make build peers`", ours.display()));
    }
    let report = Report { date: today(), full: settings.full, machine: machine(), ..Report::default() };
    let before = stolen();
    let mut bench = Bench { settings, report };
    for (name, part) in PARTS {
        if bench.settings.only.is_empty() || bench.settings.only.iter().any(|only| only == name) {
            let begin = Instant::now();
            part(&mut bench);
            bench.progress("");
            eprintln!("bench: {name} took {:.0} s", begin.elapsed().as_secs_f64());
        }
    }
    let Bench { settings, mut report } = bench;
    let (stolen, all) = stolen().zip(before).map_or((0, 0), |(now, then)| (now.0 - then.0, now.1 - then.1));
    if all > 0 {
        report.stolen = Some(kib(stolen) * 100.0 / kib(all));
    }
    if settings.keep {
        report = report.instead_of(Report::read(&settings.out.join("bench.json"))?)?;
    }
    println!("{}\n\n{}", table::heading(&report), table::tables(&report, false));
    let write = |name: &str, text: String| readme::save(&settings.out.join(name), &text);
    fs::create_dir_all(&settings.out).map_err(|e| format!("cannot make {}: {e}", settings.out.display()))?;
    write("bench.json", serde_json::to_string(&report).expect("numbers and names") + "\n")?;
    write("bench.md", table::markdown(&report))?;
    write("bench.svg", plot::draw(&report))
}

/// What a program prints, in one line.
fn said(program: impl AsRef<Path>, args: &[&str]) -> Option<String> {
    let output = Command::new(program.as_ref()).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

/// How long a host has kept this machine's processors from it, and for how long they were there in all, in clock ticks,
/// `proc_stat(5)`.
fn stolen() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let ticks = text.lines().next()?.split_whitespace().skip(1).take(8);
    let ticks: Vec<u64> = ticks.map(str::parse).collect::<Result<_, _>>().ok()?;
    Some((*ticks.get(7)?, ticks.iter().sum()))
}

fn today() -> String {
    said("date", &["-u", "+%Y-%m-%d"]).unwrap_or_default()
}

fn machine() -> Vec<String> {
    let line = |path: &str, start: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix(start))
            .map(|rest| rest.trim_matches([' ', '\t', ':']).to_owned())
    };
    let processors = thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = line("/proc/meminfo", "MemTotal").and_then(|kib| kib.split(' ').next()?.parse::<u64>().ok());
    let mut machine = vec![
        format!("Linux {}", said("uname", &["-r"]).unwrap_or_default()),
        format!("{processors} x {}", line("/proc/cpuinfo", "model name").unwrap_or_default()),
        format!("{} GiB", memory.unwrap_or_default() >> 20),
    ];
    let containerd = |version| Some(programs::containerd_dir(version).join("containerd"));
    for (name, program) in [
        ("containerd", containerd(Version::V1_6)),
        ("containerd", containerd(Version::V2_1)),
        ("runc", programs::peer("runc")),
        ("dockerd", programs::docker_peer(DockerVersion::V28_5, "dockerd")),
    ] {
        let line = program.and_then(|program| said(program, &["--version"])).unwrap_or_default();
        // The first word that begins with a digit is the version.
        let version = line.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        machine.extend(version.map(|version| format!("{name} {}", version.trim_end_matches(','))));
    }
    machine
}
