//! How fast output gets from a container to its reader, and what of the shim's time that takes.
//!
//! The same container, made by the same OCI runtime, prints through each shim, and into the reader's FIFO with no shim in
//! between: as fast as the machine allows with a FIFO of the usual 64 KiB. The reader takes as much at a time as there is.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as Redirect};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use holdfast_tests::programs::Version;
use holdfast_tests::{Bundle, FakeContainerd, Launch, Scene, Stdio, process, programs};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::table::{Cell, median, progress};

/// What is printed: bytes in one write, bytes in all. The smaller the writes, the longer the same takes.
#[derive(Clone, Copy)]
struct Flood {
    write: usize,
    total: usize,
}

const FLOODS: [(&str, Flood); 3] = [
    ("2 GB in 64 KiB writes", Flood { write: 64 << 10, total: 2_000_000_000 }),
    ("500 MB in 4 KiB writes", Flood { write: 4 << 10, total: 500_000_000 }),
    ("50 MB in 100 B writes", Flood { write: 100, total: 50_000_000 }),
];

/// What stands between the container and the reader.
enum Way {
    Shim(PathBuf),
    Nothing,
}

struct Subject {
    name: &'static str,
    way: Way,
}

/// One flood, seen from its reader.
#[derive(Clone, Copy)]
struct Run {
    bytes: usize,
    time: Duration,
    /// The shim's, all threads; none without a shim.
    cpu: Option<Duration>,
}

/// Measures and prints.
pub(crate) fn run(rounds: usize) -> Result<(), String> {
    let runtime = programs::peer("runc").ok_or("runc is missing; run `make peers`")?;
    let subjects = subjects();
    println!("output to a reader: medians of {rounds} rounds; in parentheses the ratio to the FIFO itself");
    print!("{:40}", "");
    subjects.iter().for_each(|s| print!("{:>22}", s.name));
    println!();
    for (label, flood) in FLOODS {
        let mut runs: Vec<Vec<Run>> = subjects.iter().map(|_| Vec::new()).collect();
        for round in 0..rounds {
            progress(&format!("{label}, round {} of {rounds}", round + 1));
            for turn in 0..subjects.len() {
                let n = (round + turn) % subjects.len();
                runs[n].push(flood_once(&subjects[n].way, &runtime, flood));
            }
        }
        progress("");
        print_rows(label, &runs);
    }
    Ok(())
}

/// Those that are there. The FIFO itself is the last: what the others are compared with.
fn subjects() -> Vec<Subject> {
    let stock = |version| programs::containerd_dir(version).join("containerd-shim-runc-v2");
    let shims = [
        ("holdfast", programs::bin_dir().join("containerd-shim-holdfast-v2")),
        ("stock shim of 1.6", stock(Version::V1_6)),
        ("stock shim of 2.1", stock(Version::V2_1)),
    ];
    let (there, missing): (Vec<_>, Vec<_>) = shims.into_iter().partition(|(_, program)| program.exists());
    for (name, program) in missing {
        eprintln!("bench: left out: {name} ({} is missing)", program.display());
    }
    let shims = there.into_iter().map(|(name, program)| Subject { name, way: Way::Shim(program) });
    shims.chain([Subject { name: "the FIFO itself", way: Way::Nothing }]).collect()
}

#[allow(clippy::cast_precision_loss)] // bytes, for people
fn print_rows(label: &str, runs: &[Vec<Run>]) {
    let speed = |runs: &Vec<Run>| median(runs.iter().map(|r| r.bytes as f64 / 1e6 / r.time.as_secs_f64()).collect());
    let cpu = |runs: &Vec<Run>| median(runs.iter().filter_map(|r| r.cpu).map(|c| c.as_secs_f64()).collect());
    let reference = runs.last().and_then(speed);
    print!("{:40}", format!("{label}: MB/s"));
    for (n, own) in runs.iter().enumerate() {
        print!("{:>22}", Cell(speed(own), if n + 1 == runs.len() { None } else { reference }));
    }
    print!("\n{:40}", "  CPU time of the shim, s");
    for own in runs {
        print!("{:>22}", cpu(own).map_or("-".into(), |cpu| format!("{cpu:.3}")));
    }
    println!();
}

/// The scene's bundle with a container that prints `flood`.
pub(crate) fn printer(scene: &Scene, write: usize, total: usize) -> Bundle {
    let bundle = Bundle::busybox(scene, &["/bin/printer", &write.to_string(), &total.to_string()]);
    process::copy_program(&programs::test_program("printer"), &bundle.dir().join("rootfs/bin/printer"));
    bundle
}

fn flood_once(way: &Way, runtime: &Path, flood: Flood) -> Run {
    let scene = Scene::new();
    let bundle = printer(&scene, flood.write, flood.total);
    let stdio = Stdio::output(&scene, "init");
    let run = match way {
        Way::Shim(program) => through_a_shim(&scene, &bundle, &stdio, program, runtime),
        Way::Nothing => through_nothing(&scene, &bundle, &stdio, runtime),
    };
    assert_eq!(run.bytes, flood.total, "all that was printed arrives");
    run
}

fn through_a_shim(scene: &Scene, bundle: &Bundle, stdio: &Stdio, program: &Path, runtime: &Path) -> Run {
    let _events = FakeContainerd::start(scene);
    let out = open(&stdio.stdout);
    let _errors = open(&stdio.stderr);
    let mut shim = Launch::new(scene, bundle).binary(program).runtime(runtime).start();
    shim.create(stdio).unwrap();
    let pid = shim.process().pid();
    let before = cpu_time(pid);
    let reader = Clocked::start(out);
    shim.start("").unwrap();
    let (bytes, time) = reader.finish();
    let cpu = cpu_time(pid) - before;
    shim.wait("").unwrap();
    shim.delete("").unwrap();
    shim.shutdown();
    Run { bytes, time, cpu: Some(cpu) }
}

fn through_nothing(scene: &Scene, bundle: &Bundle, stdio: &Stdio, runtime: &Path) -> Run {
    let out = open(&stdio.stdout);
    let write_end = OpenOptions::new().write(true).open(&stdio.stdout).unwrap();
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
    Run { bytes, time, cpu: None }
}

/// A reader that is there before the writer is, and waits as readers do.
pub(crate) fn open(path: &str) -> File {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    file
}

/// The user and system time that all threads of a process have had, the ended ones too.
fn cpu_time(pid: u32) -> Duration {
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
