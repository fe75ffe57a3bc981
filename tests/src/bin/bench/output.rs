//! How fast output gets from a container to its reader, and what of the shim's time that takes.
//!
//! The same container, made by the same OCI runtime, prints through each shim; through as little as can stand in a shim's
//! place, a loop that moves pages from one pipe of a megabyte to another; and into the reader's FIFO with nothing in
//! between: as fast as the machine allows with a FIFO of the usual 64 KiB. The reader takes as much at a time as there is.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as Redirect};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use holdfast_tests::{Bundle, FakeContainerd, Launch, Scene, Stdio, process, programs};
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::Bench;
use crate::report::Of;
use crate::subjects::in_turn;

/// What is printed: bytes in one write, bytes in all. The smaller the writes, the longer the same takes.
#[derive(Clone, Copy)]
struct Flood {
    write: usize,
    total: usize,
}

const PART: &str = "output";

const FLOODS: [(&str, Flood); 3] = [
    ("64 KiB writes", Flood { write: 64 << 10, total: 2_000_000_000 }),
    ("4 KiB writes", Flood { write: 4 << 10, total: 500_000_000 }),
    ("100 B writes", Flood { write: 100, total: 50_000_000 }),
];

/// What stands between the container and the reader.
enum Way {
    Shim(PathBuf),
    Loop,
    Nothing,
}

struct Subject {
    name: String,
    way: Way,
}

/// Where output goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    /// To a reader.
    Fifo,
    /// From a terminal to a reader.
    Terminal,
    /// Into a file.
    File,
    /// Into a file, in Docker's form; the other shims know none.
    Json,
}

impl Target {
    const ALL: [Self; 4] = [Self::Fifo, Self::Terminal, Self::File, Self::Json];

    fn name(self) -> &'static str {
        match self {
            Self::Fifo => "to a FIFO",
            Self::Terminal => "from a terminal to a FIFO",
            Self::File => "to a file",
            Self::Json => "as json-file",
        }
    }
}

/// One flood, seen from its reader.
#[derive(Clone, Copy)]
struct Run {
    bytes: usize,
    time: Duration,
    /// The shim's, all threads; none without a shim.
    cpu: Option<Duration>,
}

/// Measures.
pub(crate) fn run(bench: &mut Bench) {
    let Some(runtime) = programs::peer("runc") else {
        eprintln!("bench: left out: output (runc is missing; run `make peers`)");
        return;
    };
    first_byte(bench, &runtime);
    let subjects = subjects(bench);
    let rounds = bench.rounds(2, 5);
    for (label, flood) in FLOODS {
        let flood = if bench.full() { flood } else { Flood { total: flood.total / 4, ..flood } };
        for target in Target::ALL {
            if !bench.is_wanted(&format!("{label}, {}", target.name())) {
                continue;
            }
            for round in 0..rounds {
                bench.progress(&format!("{label}, {}, round {} of {rounds}", target.name(), round + 1));
                for subject in in_turn(&subjects, round) {
                    let Some(run) = flood_once(subject, &runtime, flood, target) else { continue };
                    let to = target.name();
                    let speed = run.bytes as f64 / 1e6 / run.time.as_secs_f64();
                    let name = format!("{label}, {to}");
                    let of = Of { part: PART, name: &name, unit: "MB/s", more_is_better: true };
                    bench.report.add(&of, &subject.name, speed);
                    if let Some(cpu) = run.cpu {
                        let name = format!("{label}, {to}: the shim's processor time for 1 GB");
                        let of = Of { part: PART, name: &name, unit: "s", more_is_better: false };
                        bench.report.add(&of, &subject.name, cpu.as_secs_f64() * 1e9 / run.bytes as f64);
                    }
                }
            }
        }
    }
}

/// Those that are there. The FIFO itself is the last: what the others are compared with.
fn subjects(bench: &Bench) -> Vec<Subject> {
    let shims = bench.settings.others.shims().into_iter().map(|(name, program)| (name, Way::Shim(program)));
    let floor = [("a bare loop".to_owned(), Way::Loop), ("the FIFO itself".to_owned(), Way::Nothing)];
    shims.chain(floor).map(|(name, way)| Subject { name, way }).collect()
}

/// The scene's bundle with a container that prints `flood`.
pub(crate) fn printer(scene: &Scene, write: usize, total: usize) -> Bundle {
    let bundle = Bundle::busybox(scene, &["/bin/printer", &write.to_string(), &total.to_string()]);
    process::copy_program(&programs::test_program("printer"), &bundle.dir().join("rootfs/bin/printer"));
    bundle
}

/// None if there is no such way. The shim's time includes that of Start.
fn flood_once(subject: &Subject, runtime: &Path, flood: Flood, target: Target) -> Option<Run> {
    let scene = Scene::new();
    let total = match target {
        Target::Fifo | Target::File => flood.total,
        // The line discipline looks at each byte, and so does who writes JSON.
        Target::Terminal | Target::Json => flood.total / 8,
    };
    let bundle = printer(&scene, flood.write, total);
    let (run, expected) = match (&subject.way, target) {
        (Way::Shim(program), Target::Fifo) => {
            (through_a_shim(&scene, &bundle, &Stdio::output(&scene, "init"), program, runtime), total)
        }
        (Way::Shim(program), Target::Terminal) => {
            let bundle = bundle.with_terminal();
            let run = through_a_shim(&scene, &bundle, &Stdio::terminal(&scene, "init"), program, runtime);
            // Each line's end became two bytes.
            (run, total + total / flood.write)
        }
        (Way::Shim(program), Target::File) => (into_a_file(&scene, &bundle, "file", program, runtime), total),
        (Way::Shim(program), Target::Json) if !subject.name.starts_with("stock") => {
            (into_a_file(&scene, &bundle, "json-file", program, runtime), total)
        }
        (Way::Loop | Way::Nothing, Target::Fifo) => {
            let is_direct = matches!(subject.way, Way::Nothing);
            (through_no_shim(&scene, &bundle, &Stdio::output(&scene, "init"), runtime, is_direct), total)
        }
        _ => return None,
    };
    assert_eq!(run.bytes, expected, "all that was printed arrives");
    Some(run)
}

fn through_a_shim(scene: &Scene, bundle: &Bundle, stdio: &Stdio, program: &Path, runtime: &Path) -> Run {
    let _events = FakeContainerd::start(scene);
    let out = open(&stdio.stdout);
    let _errors = (!stdio.stderr.is_empty()).then(|| open(&stdio.stderr));
    let mut shim = Launch::new(scene, bundle).binary(program).runtime(runtime).start();
    // The stock shim waits for the writer of a terminal's input.
    let _input =
        (!stdio.stdin.is_empty()).then(|| OpenOptions::new().read(true).write(true).open(&stdio.stdin).unwrap());
    shim.create(stdio).unwrap();
    let pid = shim.process().pid();
    let before = cpu_time(pid);
    let reader = Clocked::start(out);
    shim.start("").unwrap();
    let (bytes, time) = reader.finish();
    let cpu = cpu_time(pid) - before;
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    shim.shutdown_at_once();
    Run { bytes, time, cpu: Some(cpu) }
}

/// The time is that from the start to the exit.
fn into_a_file(scene: &Scene, bundle: &Bundle, scheme: &str, program: &Path, runtime: &Path) -> Run {
    let _events = FakeContainerd::start(scene);
    let file = scene.path("out.log");
    let address = format!("{scheme}://{}", file.display());
    let stdio = Stdio { stdout: address.clone(), stderr: address, ..Stdio::none() };
    let mut shim = Launch::new(scene, bundle).binary(program).runtime(runtime).start();
    shim.create(&stdio).unwrap();
    let pid = shim.process().pid();
    let before = cpu_time(pid);
    let begin = Instant::now();
    shim.start("").unwrap();
    shim.wait("").unwrap();
    let time = begin.elapsed();
    let cpu = cpu_time(pid) - before;
    shim.delete("").unwrap();
    let bytes = match scheme {
        "json-file" => said_in(&file),
        _ => usize::try_from(fs::metadata(&file).unwrap().len()).unwrap(),
    };
    shim.shutdown_at_once();
    Run { bytes, time, cpu: Some(cpu) }
}

/// How much a file in Docker's form says that was printed.
fn said_in(file: &Path) -> usize {
    #[derive(Deserialize)]
    struct Entry {
        log: String,
    }
    let lines = BufReader::new(File::open(file).unwrap()).lines();
    lines.map(|line| serde_json::from_str::<Entry>(&line.unwrap()).unwrap().log.len()).sum()
}

fn through_no_shim(scene: &Scene, bundle: &Bundle, stdio: &Stdio, runtime: &Path, is_direct: bool) -> Run {
    let out = open(&stdio.stdout);
    let fifo = OpenOptions::new().write(true).open(&stdio.stdout).unwrap();
    let (write_end, relay) = if is_direct {
        (fifo, None)
    } else {
        let (read_end, write_end) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        (write_end.into(), Some(thread::spawn(move || relay_all(&read_end, &fifo))))
    };
    let root = scene.path("oci");
    let runtime = |verb: &str| {
        let mut command: Command = scene.command(runtime);
        command.arg("--root").arg(&root).arg(verb).stdin(Redirect::null()).stderr(Redirect::null());
        command
    };
    let reader = Clocked::start(out);
    let mut create = runtime("run");
    let status = create.args(["--detach", "--bundle"]).arg(bundle.dir()).arg(bundle.id()).stdout(write_end).status();
    assert!(status.unwrap().success(), "runc run");
    // It holds the write end too.
    drop(create);
    let (bytes, time) = reader.finish();
    assert!(runtime("delete").args(["--force", bundle.id()]).status().unwrap().success(), "runc delete");
    Run { bytes, time, cpu: relay.map(|relay| relay.join().unwrap()) }
}

/// As little as a relay can do; the processor time that it took.
fn relay_all(from: &impl AsFd, to: &impl AsFd) -> Duration {
    const MOST: usize = 1 << 20;
    for end in [from.as_fd(), to.as_fd()] {
        fcntl(end, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
    }
    while splice(from, None, to, None, MOST, SpliceFFlags::SPLICE_F_MOVE).unwrap() > 0 {}
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// How long a byte takes from the container to its reader after a silence.
fn first_byte(bench: &mut Bench, runtime: &Path) {
    let shims = bench.settings.others.shims();
    let rounds = bench.rounds(2, 5);
    for target in [Target::Fifo, Target::Terminal] {
        let figure = format!("the first byte after a silence, {}", target.name());
        if !bench.is_wanted(&figure) {
            continue;
        }
        for round in 0..rounds {
            bench.progress(&format!("{figure}, round {} of {rounds}", round + 1));
            for (name, program) in in_turn(&shims, round) {
                for delay in byte_delays(program, runtime, target) {
                    let of = Of { part: PART, name: &figure, unit: "µs", more_is_better: false };
                    bench.report.add(&of, name, delay.as_secs_f64() * 1e6);
                }
            }
        }
    }
}

/// Bytes that somebody writes in the place of a process which says nothing itself.
fn byte_delays(program: &Path, runtime: &Path, target: Target) -> Vec<Duration> {
    const SILENCE: Duration = Duration::from_millis(3);
    let scene = Scene::new();
    let _events = FakeContainerd::start(&scene);
    let bundle = Bundle::busybox(&scene, &["/bin/sleep", "100000"]);
    let (bundle, stdio) = match target {
        Target::Terminal => (bundle.with_terminal(), Stdio::terminal(&scene, "init")),
        _ => (bundle, Stdio::output(&scene, "init")),
    };
    let mut out = open(&stdio.stdout);
    let _errors = (!stdio.stderr.is_empty()).then(|| open(&stdio.stderr));
    let mut shim = Launch::new(&scene, &bundle).binary(program).runtime(runtime).start();
    let _input =
        (!stdio.stdin.is_empty()).then(|| OpenOptions::new().read(true).write(true).open(&stdio.stdin).unwrap());
    let pid = shim.create(&stdio).unwrap().pid;
    shim.start("").unwrap();
    let mut inside =
        OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY).open(format!("/proc/{pid}/fd/1")).unwrap();
    let delays = (0..100).map(|_| {
        thread::sleep(SILENCE);
        let begin = Instant::now();
        inside.write_all(b"x").unwrap();
        out.read_exact(&mut [0]).unwrap();
        begin.elapsed()
    });
    let delays = delays.collect();
    drop(inside);
    shim.discard();
    delays
}

/// A reader that is there before the writer is, and waits as readers do.
pub(crate) fn open(path: &str) -> File {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    file
}

/// The user and system time that all threads of a process have had, the ended ones too.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).unwrap();
    clock.now().unwrap().into()
}

/// Reads to the end, and takes the time from the first byte on.
struct Clocked(JoinHandle<(usize, Duration)>);

impl Clocked {
    fn start(mut file: File) -> Self {
        Self(thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            let mut bytes = file.read(&mut buffer).unwrap();
            let begin = Instant::now();
            loop {
                match file.read(&mut buffer).unwrap() {
                    0 => return (bytes, begin.elapsed()),
                    n => bytes += n,
                }
            }
        }))
    }

    fn finish(self) -> (usize, Duration) {
        self.0.join().unwrap()
    }
}
