//! The benchmark: drives the shim protocol of ours and of containerd's own shim, in turn, and prints medians.
//!
//! ```text
//! bench [--rounds N] [--execs N]
//! ```
//!
//! In every round each subject lives through one container, in an order that rotates, so that a machine which gets
//! slower or faster does so for all of them. What matters are the ratios. Root only.
#![allow(clippy::unwrap_used)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fmt};

use holdfast_tests::process::{Memory, memory, threads};
use holdfast_tests::{Bundle, FakeContainerd, Launch, Scene, Shim, Stdio, programs, skip};

/// A shim with an OCI runtime.
struct Subject {
    name: &'static str,
    shim: PathBuf,
    runtime: PathBuf,
}

/// What is measured, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Rss,
    Pss,
    Anonymous,
    Threads,
    StartCommand,
    Create,
    Start,
    Exec,
    KillAndWait,
    Delete,
    Shutdown,
    LifeCycle,
    RssAfterExecs,
    AnonymousAfterExecs,
}

impl Measure {
    const ALL: [Self; 14] = [
        Self::Rss,
        Self::Pss,
        Self::Anonymous,
        Self::Threads,
        Self::StartCommand,
        Self::Create,
        Self::Start,
        Self::Exec,
        Self::KillAndWait,
        Self::Delete,
        Self::Shutdown,
        Self::LifeCycle,
        Self::RssAfterExecs,
        Self::AnonymousAfterExecs,
    ];

    fn label(self, execs: u32) -> String {
        match self {
            Self::Rss => "shim RSS, KiB".into(),
            Self::Pss => "shim PSS, KiB".into(),
            Self::Anonymous => "shim anonymous memory, KiB".into(),
            Self::Threads => "shim threads".into(),
            Self::StartCommand => "start until the socket answers, ms".into(),
            Self::Create => "Create, ms".into(),
            Self::Start => "Start, ms".into(),
            Self::Exec => "Exec + Start + Wait + Delete, ms".into(),
            Self::KillAndWait => "Kill + Wait, ms".into(),
            Self::Delete => "Delete, ms".into(),
            Self::Shutdown => "Shutdown, ms".into(),
            Self::LifeCycle => "whole life cycle without exec, ms".into(),
            Self::RssAfterExecs => format!("RSS after {execs} execs, KiB"),
            Self::AnonymousAfterExecs => format!("anonymous after {execs} execs, KiB"),
        }
    }
}

/// All values of one subject.
#[derive(Default)]
struct Samples(Vec<(Measure, f64)>);

impl Samples {
    fn add(&mut self, measure: Measure, value: f64) {
        self.0.push((measure, value));
    }

    fn time<T>(&mut self, measure: Measure, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = work();
        self.add(measure, milliseconds(begin.elapsed()));
        result
    }

    fn median(&self, measure: Measure) -> Option<f64> {
        let mut values: Vec<f64> = self.0.iter().filter(|(m, _)| *m == measure).map(|(_, v)| *v).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            n if n % 2 == 1 => Some(values[middle]),
            _ => Some(f64::midpoint(values[middle - 1], values[middle])),
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

struct Settings {
    rounds: usize,
    execs: u32,
}

impl Settings {
    fn from_arguments() -> Result<Self, String> {
        let mut settings = Self { rounds: 15, execs: 200 };
        let mut args = env::args().skip(1);
        while let Some(flag) = args.next() {
            let value = args.next().ok_or_else(|| format!("{flag} wants a number"))?;
            let number: u32 = value.parse().map_err(|_| format!("{value:?} is no number"))?;
            match flag.as_str() {
                "--rounds" => settings.rounds = number.max(1) as usize,
                "--execs" => settings.execs = number,
                _ => return Err(format!("unknown flag {flag}")),
            }
        }
        Ok(settings)
    }
}

fn main() -> ExitCode {
    let settings = match Settings::from_arguments() {
        Ok(settings) => settings,
        Err(message) => {
            eprintln!("bench: {message}\nusage: bench [--rounds N] [--execs N]");
            return ExitCode::from(2);
        }
    };
    if !skip::is_root() {
        eprintln!("bench: needs root, as containers do");
        return ExitCode::FAILURE;
    }
    let subjects = subjects();
    if subjects.is_empty() {
        eprintln!("bench: neither our programs nor the peers are there; run `make build peers`");
        return ExitCode::FAILURE;
    }
    let mut samples: Vec<Samples> = subjects.iter().map(|_| Samples::default()).collect();
    // The first round warms the page cache and is not counted.
    for round in 0..=settings.rounds {
        for turn in 0..subjects.len() {
            let n = (round + turn) % subjects.len();
            let mut discarded = Samples::default();
            live_once(&subjects[n], if round == 0 { &mut discarded } else { &mut samples[n] });
        }
        progress(&format!("round {round} of {}", settings.rounds));
    }
    for (subject, samples) in subjects.iter().zip(&mut samples) {
        progress(&format!("{} execs under {}", settings.execs, subject.name));
        exec_many(subject, settings.execs, samples);
    }
    progress("");
    print_table(&subjects, &samples, &settings);
    ExitCode::SUCCESS
}

/// One line that is written over, for people; nothing into a file.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{text:60}\r");
    }
}

/// Whatever of them is there; the last one is what the others are compared with.
fn subjects() -> Vec<Subject> {
    let ours = programs::bin_dir().join("containerd-shim-holdfast-v2");
    let oci = programs::bin_dir().join("holdfast-oci");
    let stock = programs::peers_dir().join("containerd-shim-runc-v2");
    let runc = programs::peers_dir().join("runc");
    let all = [
        Subject { name: "holdfast, holdfast-oci", shim: ours.clone(), runtime: oci },
        Subject { name: "holdfast, runc", shim: ours, runtime: runc.clone() },
        Subject { name: "stock shim, runc", shim: stock, runtime: runc },
    ];
    let (there, missing): (Vec<_>, Vec<_>) = all.into_iter().partition(|s| s.shim.exists() && s.runtime.exists());
    for subject in missing {
        eprintln!(
            "bench: left out: {} ({} or {} is missing)",
            subject.name,
            subject.shim.display(),
            subject.runtime.display()
        );
    }
    there
}

fn launch<'a>(scene: &'a Scene, bundle: &Bundle, subject: &Subject) -> Launch<'a> {
    Launch::new(scene, bundle).binary(&subject.shim).runtime(&subject.runtime)
}

/// One container from `start` to Shutdown, with one exec and a look at the shim in between.
fn live_once(subject: &Subject, samples: &mut Samples) {
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "1000"]);
    let launch = launch(&scene, &bundle, subject);
    let stdio = Stdio::output(&scene, "init");
    let exec_stdio = Stdio::output(&scene, "exec");
    let readers = (stdio.readers(), exec_stdio.readers());

    let mut own = Samples::default();
    let mut shim = own.time(Measure::StartCommand, || launch.start());
    own.time(Measure::Create, || shim.create(&stdio).unwrap());
    own.time(Measure::Start, || shim.start("").unwrap());
    look_at(&shim, samples);
    samples.time(Measure::Exec, || exec_once(&mut shim, "e", &exec_stdio));
    own.time(Measure::KillAndWait, || {
        shim.kill("", libc::SIGKILL).unwrap();
        shim.wait("").unwrap();
    });
    own.time(Measure::Delete, || shim.delete("").unwrap());
    own.time(Measure::Shutdown, || shim.shutdown_at_once());
    drop(readers);
    samples.add(Measure::LifeCycle, own.0.iter().map(|(_, v)| v).sum());
    samples.0.append(&mut own.0);
}

fn exec_once(shim: &mut Shim, id: &str, stdio: &Stdio) {
    shim.exec(id, &["/bin/true"], stdio).unwrap();
    shim.start(id).unwrap();
    shim.wait(id).unwrap();
    shim.delete(id).unwrap();
}

#[allow(clippy::cast_precision_loss)] // kilobytes
fn look_at(shim: &Shim, samples: &mut Samples) {
    let pid = shim.process().pid();
    let Memory { rss, pss, anonymous } = memory(pid).unwrap();
    samples.add(Measure::Rss, rss as f64);
    samples.add(Measure::Pss, pss as f64);
    samples.add(Measure::Anonymous, anonymous as f64);
    samples.add(Measure::Threads, threads(pid).unwrap() as f64);
}

#[allow(clippy::cast_precision_loss)] // kilobytes
fn exec_many(subject: &Subject, execs: u32, samples: &mut Samples) {
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "1000"]);
    let mut shim = launch(&scene, &bundle, subject).start();
    shim.run(&Stdio::none());
    for n in 0..execs {
        exec_once(&mut shim, &format!("e{n}"), &Stdio::none());
    }
    let after = memory(shim.process().pid()).unwrap();
    samples.add(Measure::RssAfterExecs, after.rss as f64);
    samples.add(Measure::AnonymousAfterExecs, after.anonymous as f64);
    shim.discard();
}

/// A value and its ratio to the reference.
struct Cell(Option<f64>, Option<f64>);

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value, reference) = self;
        let text = match (value, reference) {
            (None, _) => "-".into(),
            (Some(value), Some(reference)) if *reference > 0.0 => format!("{value:.1} ({:.2})", value / reference),
            (Some(value), _) => format!("{value:.1}"),
        };
        f.pad(&text)
    }
}

fn print_table(subjects: &[Subject], samples: &[Samples], settings: &Settings) {
    let reference = samples.last().expect("there is a subject");
    println!("medians of {} rounds; in parentheses the ratio to the last column", settings.rounds);
    print!("{:36}", "");
    for subject in subjects {
        print!("{:>26}", subject.name);
    }
    println!();
    for measure in Measure::ALL {
        print!("{:36}", measure.label(settings.execs));
        for (n, own) in samples.iter().enumerate() {
            let against = if n + 1 == samples.len() { None } else { reference.median(measure) };
            print!("{:>26}", Cell(own.median(measure), against));
        }
        println!();
    }
}
