//! One container's life under each shim, step by step, and how large a shim is at work and after many execs.

use std::path::PathBuf;
use std::time::Instant;

use holdfast_tests::process::{Memory, memory, threads};
use holdfast_tests::{Bundle, FakeContainerd, Launch, Scene, Shim, Stdio, programs};

use crate::table::{Cell, median, milliseconds, progress};

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
        median(self.0.iter().filter(|(m, _)| *m == measure).map(|(_, v)| *v).collect())
    }
}

/// Measures and prints.
pub(crate) fn run(rounds: usize, execs: u32) -> Result<(), String> {
    let subjects = subjects();
    if subjects.is_empty() {
        return Err("neither our programs nor the peers are there; run `make build peers`".into());
    }
    let mut samples: Vec<Samples> = subjects.iter().map(|_| Samples::default()).collect();
    // The first round warms the page cache and is not counted.
    for round in 0..=rounds {
        for turn in 0..subjects.len() {
            let n = (round + turn) % subjects.len();
            let mut discarded = Samples::default();
            live_once(&subjects[n], if round == 0 { &mut discarded } else { &mut samples[n] });
        }
        progress(&format!("round {round} of {rounds}"));
    }
    for (subject, samples) in subjects.iter().zip(&mut samples) {
        progress(&format!("{execs} execs under {}", subject.name));
        exec_many(subject, execs, samples);
    }
    progress("");
    print_table(&subjects, &samples, rounds, execs);
    Ok(())
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

fn print_table(subjects: &[Subject], samples: &[Samples], rounds: usize, execs: u32) {
    let reference = samples.last().expect("there is a subject");
    println!("medians of {} rounds; in parentheses the ratio to the last column", rounds);
    print!("{:36}", "");
    for subject in subjects {
        print!("{:>26}", subject.name);
    }
    println!();
    for measure in Measure::ALL {
        print!("{:36}", measure.label(execs));
        for (n, own) in samples.iter().enumerate() {
            let against = if n + 1 == samples.len() { None } else { reference.median(measure) };
            print!("{:>26}", Cell(own.median(measure), against));
        }
        println!();
    }
}
