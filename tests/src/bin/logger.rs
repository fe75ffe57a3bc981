//! A `binary://` logger for the tests of loggers; see `holdfast_tests::logger`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::time::Duration;
use std::{env, thread};

use holdfast_tests::eventually;
use holdfast_tests::logger::{End, Ready};
use nix::sys::signal::{SigSet, Signal};

struct Settings(BTreeMap<String, String>);

impl Settings {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name).map(|n| n.parse().unwrap())
    }

    fn dir(&self) -> PathBuf {
        self.get("dir").expect("dir=PATH is wanted").into()
    }
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let settings = Settings(args.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect());
    let dir = settings.dir();
    let term = SigSet::from(Signal::SIGTERM);
    term.thread_block().unwrap();
    let fds = open_fds();
    append(&dir.join("pids"), &format!("{}\n", std::process::id()));
    fs::write(dir.join("fds"), format!("{fds:?}")).unwrap();
    fs::write(dir.join("args"), args.join("\n")).unwrap();
    let variables: Vec<String> = env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    fs::write(dir.join("env"), variables.join("\n")).unwrap();
    say_ready(&settings);
    let end = settings.get("end").map_or(End::AtEof, |end| serde_json::from_str(end).unwrap());
    thread::spawn({
        let dir = dir.clone();
        let flush = Duration::from_millis(settings.number("flush-ms").unwrap_or(0));
        move || heed(&term, end, flush, &dir)
    });
    let delay = Duration::from_millis(settings.number("slow-ms").unwrap_or(0));
    let dies = settings.number("die-after").filter(|_| starts(&dir) == 1);
    let copies = [(3, "stdout", dies), (4, "stderr", None)].map(|(fd, name, dies)| {
        let to = dir.join(name);
        thread::spawn(move || copy(fd, &to, delay, dies))
    });
    for copy in copies {
        copy.join().unwrap();
    }
    append(&dir.join("ends"), "eof\n");
    match end {
        End::AtEof => exit(0),
        End::AtTerm | End::Never => loop {
            thread::park();
        },
    }
}

fn say_ready(settings: &Settings) {
    if let Some(gate) = settings.get("gate") {
        eventually("the gate should open", || fs::metadata(gate));
    }
    let mut pipe = OpenOptions::new().write(true).open("/proc/self/fd/5").unwrap();
    let ready = settings.get("ready").map_or(Ready::Byte, |ready| serde_json::from_str(ready).unwrap());
    match ready {
        Ready::Byte => pipe.write_all(b"\0").unwrap(),
        Ready::Close => {}
        Ready::Never => loop {
            thread::park();
        },
        Ready::Die(status) => exit(status),
    }
    nix::unistd::close(5).unwrap();
}

fn heed(term: &SigSet, end: End, flush: Duration, dir: &Path) {
    loop {
        term.wait().unwrap();
        append(&dir.join("ends"), "term\n");
        if end != End::Never {
            thread::sleep(flush);
            append(&dir.join("ends"), "flushed\n");
            exit(0);
        }
    }
}

fn copy(fd: i32, to: &Path, delay: Duration, dies: Option<u64>) {
    let mut from = File::open(format!("/proc/self/fd/{fd}")).unwrap();
    nix::unistd::close(fd).unwrap();
    let mut to = OpenOptions::new().create(true).append(true).open(to).unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let room = dies.map_or(buffer.len(), |n| buffer.len().min(usize::try_from(n - total).unwrap()));
        thread::sleep(delay);
        let count = from.read(&mut buffer[..room]).unwrap();
        if count == 0 {
            return;
        }
        to.write_all(&buffer[..count]).unwrap();
        total += count as u64;
        if dies == Some(total) {
            exit(7);
        }
    }
}

fn open_fds() -> Vec<i32> {
    let numbers =
        fs::read_dir("/proc/self/fd").unwrap().map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let numbers: Vec<i32> = numbers.collect();
    // The directory's own is closed by now.
    let mut numbers: Vec<i32> =
        numbers.into_iter().filter(|n| Path::new(&format!("/proc/self/fd/{n}")).exists()).collect();
    numbers.sort_unstable();
    numbers
}

fn starts(dir: &Path) -> usize {
    fs::read_to_string(dir.join("pids")).unwrap().lines().count()
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}
