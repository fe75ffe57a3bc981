//! The OCI runtime of ring 2; see `holdfast_tests::fake_runtime`.
//!
//! State is kept as runc keeps it: a directory for each container below `--root`. `create` forks a process that waits
//! on a FIFO there and becomes the container's process when `start` opens it. Nothing else is isolated or limited.
#![allow(clippy::unwrap_used)]

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, exit};
use std::time::Duration;

use holdfast_tests::eventually::within;
use holdfast_tests::fake_runtime::{Behaviour, note_call, read_script};
use holdfast_tests::{process, scene, sys};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo, pause, setsid, ttyname};
use serde_json::{Value, json};

type Outcome = Result<(), String>;

/// The command line: runc's, in the order in which a shim gives it.
struct Invocation {
    root: PathBuf,
    log: Option<PathBuf>,
    command: String,
    flags: Vec<(String, Option<String>)>,
    operands: Vec<String>,
    /// Whether a process is somebody else's child from the first, who may reap it before this program ends.
    makes_orphans: bool,
}

/// Flags that are followed by a value.
const WITH_VALUE: [&str; 13] = [
    "--root",
    "--log",
    "--log-format",
    "--bundle",
    "--pid-file",
    "--console-socket",
    "--process",
    "--format",
    "--resources",
    "--image-path",
    "--work-path",
    "--parent-path",
    "--empty-ns",
];

impl Invocation {
    fn parse(args: &[String]) -> Self {
        let mut flags = Vec::new();
        let mut words = Vec::new();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if let Some((flag, value)) = arg.split_once('=').filter(|_| arg.starts_with("--")) {
                flags.push((flag.to_owned(), Some(value.to_owned())));
            } else if WITH_VALUE.contains(&arg.as_str()) {
                flags.push((arg.clone(), args.next().cloned()));
            } else if arg.starts_with("--") {
                flags.push((arg.clone(), None));
            } else {
                words.push(arg.clone());
            }
        }
        let command = if words.is_empty() { String::new() } else { words.remove(0) };
        let value = |name: &str| flags.iter().find(|(f, _)| f == name).and_then(|(_, v)| v.clone());
        let root = value("--root").map_or_else(|| PathBuf::from("/nonexistent"), PathBuf::from);
        Self { root, log: value("--log").map(PathBuf::from), command, flags, operands: words, makes_orphans: false }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|(f, _)| f == flag)
    }

    fn value(&self, flag: &str) -> Option<&str> {
        self.flags.iter().find(|(f, _)| f == flag).and_then(|(_, v)| v.as_deref())
    }

    fn fork(&self, child: impl FnOnce()) -> Result<u32, String> {
        let pid = if self.makes_orphans {
            sys::fork_orphan(child).map_err(|e| e.to_string())?
        } else {
            sys::fork_child(child).map_err(|e| e.to_string())?
        };
        Ok(pid.as_raw().cast_unsigned())
    }

    fn container(&self) -> Result<Container, String> {
        let id = self.operands.first().ok_or("a container id is wanted")?;
        Ok(Container { id: id.clone(), dir: self.root.join(id) })
    }
}

fn main() -> ExitCode {
    let mut args: Vec<String> = env::args().collect();
    let program = PathBuf::from(args.remove(0));
    let mut invocation = Invocation::parse(&args);
    // Before the call can be seen: whoever sees it may change the script for the next one.
    let behaviour = read_script(&program).remove(&invocation.command);
    note_call(&program, &args).unwrap();
    invocation.makes_orphans = matches!(behaviour, Some(Behaviour::OutlastProcess));
    match behave(&invocation, behaviour) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            log_failure(&invocation, &message);
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn behave(invocation: &Invocation, behaviour: Option<Behaviour>) -> Outcome {
    match behaviour {
        None => perform(invocation).map(|_| ()),
        Some(Behaviour::Fail(message)) => Err(message),
        Some(Behaviour::FailWithoutLog(message)) => {
            eprintln!("{message}");
            exit(3)
        }
        Some(Behaviour::FailAfterwards(message)) => perform(invocation).and(Err(message)),
        Some(Behaviour::FailAndLeave(message)) => {
            Command::new("/bin/sleep").arg("1000").spawn().map_err(|e| e.to_string())?;
            Err(message)
        }
        Some(Behaviour::Die) => die(),
        Some(Behaviour::DieAfterwards) => perform(invocation).and_then(|_| die()),
        Some(Behaviour::Hang) => forever(),
        Some(Behaviour::HangAfterwards) => perform(invocation).and_then(|_| forever()),
        Some(Behaviour::DoNothing) => Ok(()),
        Some(Behaviour::NoPidFile) => perform(invocation).map(|_| {
            let _ = fs::remove_file(invocation.value("--pid-file").unwrap());
        }),
        Some(Behaviour::OutlastProcess) => perform(invocation).and_then(await_reaping),
        Some(Behaviour::WaitFor(file)) => {
            within(Duration::from_secs(60), || if file.exists() { Ok(()) } else { Err("the gate stays shut") })?;
            perform(invocation).map(|_| ())
        }
    }
}

fn die() -> ! {
    let _ = kill(Pid::this(), Signal::SIGKILL);
    forever()
}

fn forever() -> ! {
    loop {
        pause();
    }
}

fn await_end(pid: u32) -> Outcome {
    within(Duration::from_secs(60), || {
        if process::is_alive(pid) { Err("the process does not end".into()) } else { Ok(()) }
    })
}

/// Until its parent has collected it.
fn await_reaping(pid: u32) -> Outcome {
    within(Duration::from_secs(60), || {
        if process::start_time(pid).is_some() { Err("the process is not reaped".into()) } else { Ok(()) }
    })
}

/// Writes the message as runc does: the last line of level error counts, whatever is around it.
fn log_failure(invocation: &Invocation, message: &str) {
    let Some(path) = &invocation.log else { return };
    let line = |level: &str, text: &str| json!({ "level": level, "msg": text, "time": "2026-01-01T00:00:00Z" });
    let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) else { return };
    let _ = writeln!(file, "{}", line("warning", "nothing is isolated"));
    let _ = writeln!(file, "{}", line("error", "an earlier error that was survived"));
    let _ = writeln!(file, "not json");
    let _ = writeln!(file, "{}", line("error", message));
    let _ = writeln!(file, "{}", line("info", "giving up"));
}

/// Does what the command asks for; returns the pid that it was about, or 0.
fn perform(invocation: &Invocation) -> Result<u32, String> {
    match invocation.command.as_str() {
        "create" => create(invocation),
        "start" => invocation.container()?.start(),
        "exec" => exec(invocation),
        "kill" => invocation.container()?.signal(invocation).map(|()| 0),
        "delete" => invocation.container()?.delete(invocation.has("--force")).map(|()| 0),
        "state" => invocation.container()?.print_state().map(|()| 0),
        "ps" => invocation.container()?.print_pids().map(|()| 0),
        "pause" => invocation.container()?.freeze(true).map(|()| 0),
        "resume" => invocation.container()?.freeze(false).map(|()| 0),
        "update" => invocation.container()?.update(invocation).map(|()| 0),
        "checkpoint" => invocation.container()?.checkpoint(invocation).map(|()| 0),
        "restore" => restore(invocation),
        "features" => {
            println!(r#"{{"ociVersionMin":"1.0.0","ociVersionMax":"1.0.2-dev"}}"#);
            Ok(0)
        }
        _ if invocation.has("--version") => {
            println!("runc version fake");
            Ok(0)
        }
        other => Err(format!("No help topic for '{other}'")),
    }
}

/// A container's directory: `pid` (pid and start time), `fifo`, `execs` (a pid a line), `frozen`, `update.json`.
struct Container {
    id: String,
    dir: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Container {
    fn pid(&self) -> Result<u32, String> {
        self.identity().map(|(pid, _)| pid)
    }

    fn identity(&self) -> Result<(u32, u64), String> {
        let text = fs::read_to_string(self.dir.join("pid")).map_err(|_| "container does not exist".to_owned())?;
        let (pid, start_time) = text.split_once(' ').ok_or("a garbled state file")?;
        Ok((pid.parse().unwrap(), start_time.parse().unwrap()))
    }

    fn status(&self) -> Result<Status, String> {
        let (pid, start_time) = self.identity()?;
        if process::start_time(pid) != Some(start_time) || !process::is_alive(pid) {
            Ok(Status::Stopped)
        } else if self.dir.join("fifo").exists() {
            Ok(Status::Created)
        } else if self.dir.join("frozen").exists() {
            Ok(Status::Paused)
        } else {
            Ok(Status::Running)
        }
    }

    fn start(&self) -> Result<u32, String> {
        match self.status()? {
            Status::Created => {}
            Status::Stopped => return Err("cannot start a container that has stopped".into()),
            _ => return Err("cannot start an already running container".into()),
        }
        // The process waits in open(2) on this FIFO; removing it first makes the state change before the process runs.
        let fifo = OpenOptions::new().write(true).open(self.dir.join("fifo"));
        fs::remove_file(self.dir.join("fifo")).map_err(|e| e.to_string())?;
        fifo.map_err(|e| format!("exec fifo: {e}"))?;
        self.pid()
    }

    fn signal(&self, invocation: &Invocation) -> Outcome {
        let number: i32 = invocation.operands.get(1).map_or(Ok(15), |s| s.parse()).map_err(|_| "unknown signal")?;
        if invocation.has("--all") {
            for pid in self.exec_pids() {
                let _ = send(pid, number);
            }
        }
        if self.status()? == Status::Stopped {
            return if invocation.has("--all") { Ok(()) } else { Err("container not running".into()) };
        }
        send(self.pid()?, number)
    }

    fn delete(&self, force: bool) -> Outcome {
        let status = match self.status() {
            Err(_) if force => {
                let _ = fs::remove_dir_all(&self.dir);
                return Ok(());
            }
            other => other?,
        };
        match status {
            Status::Stopped => {}
            Status::Created => self.end()?,
            _ if force => self.end()?,
            _ => return Err(format!("cannot delete container {} that is not stopped: running", self.id)),
        }
        fs::remove_dir_all(&self.dir).map_err(|e| e.to_string())
    }

    fn end(&self) -> Outcome {
        for pid in self.exec_pids() {
            let _ = send(pid, libc::SIGKILL);
        }
        let pid = self.pid()?;
        let _ = send(pid, libc::SIGKILL);
        await_end(pid)
    }

    fn exec_pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.dir.join("execs")).unwrap_or_default();
        text.lines().filter_map(|l| l.parse().ok()).filter(|p| process::is_alive(*p)).collect()
    }

    fn print_state(&self) -> Outcome {
        let status = match self.status()? {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        };
        println!("{}", json!({ "ociVersion": "1.0.2", "id": self.id, "pid": self.pid()?, "status": status }));
        Ok(())
    }

    fn print_pids(&self) -> Outcome {
        let mut pids = self.exec_pids();
        if self.status()? != Status::Stopped {
            pids.insert(0, self.pid()?);
        }
        println!("{}", json!(pids));
        Ok(())
    }

    fn freeze(&self, on: bool) -> Outcome {
        let wanted = if on { Status::Running } else { Status::Paused };
        if self.status()? != wanted {
            return Err(format!("container not {}", if on { "running" } else { "paused" }));
        }
        if on {
            File::create(self.dir.join("frozen")).map_err(|e| e.to_string())?;
            send(self.pid()?, libc::SIGSTOP)
        } else {
            fs::remove_file(self.dir.join("frozen")).map_err(|e| e.to_string())?;
            send(self.pid()?, libc::SIGCONT)
        }
    }

    /// Of the process only that it lived is kept. As runc's, a container that ends with its checkpoint is gone.
    fn checkpoint(&self, invocation: &Invocation) -> Outcome {
        if !matches!(self.status()?, Status::Running | Status::Paused) {
            return Err("Container cannot be checkpointed in stopped state".into());
        }
        let image = work_as_criu(invocation, "dump.log")?;
        fs::write(image.join(IMAGE), &self.id).map_err(|e| e.to_string())?;
        if invocation.has("--leave-running") {
            return Ok(());
        }
        self.end()?;
        fs::remove_dir_all(&self.dir).map_err(|e| e.to_string())
    }

    fn update(&self, invocation: &Invocation) -> Outcome {
        let mut text = String::new();
        match invocation.value("--resources") {
            Some("-") => io::stdin().read_to_string(&mut text).map_err(|e| e.to_string())?,
            _ => return Err("only --resources=- is known".into()),
        };
        let _: Value = serde_json::from_str(&text).map_err(|e| format!("resources: {e}"))?;
        fs::write(self.dir.join("update.json"), text).map_err(|e| e.to_string())
    }
}

fn send(pid: u32, number: i32) -> Outcome {
    let signal = if number == 0 { None } else { Some(Signal::try_from(number).map_err(|e| e.to_string())?) };
    kill(Pid::from_raw(pid.cast_signed()), signal).map_err(|e| e.desc().to_owned())
}

/// What a checkpoint consists of.
const IMAGE: &str = "pstree.img";

/// Makes the directories as runc does, and leaves a log as criu does. Returns that of the checkpoint.
fn work_as_criu(invocation: &Invocation, log: &str) -> Result<PathBuf, String> {
    let dir = |flag: &str| {
        let path = PathBuf::from(invocation.value(flag).ok_or(format!("{flag} is wanted"))?);
        match fs::create_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(format!("mkdir {}: {e}", path.display())),
            _ => Ok(path),
        }
    };
    let (image, work) = (dir("--image-path")?, dir("--work-path")?);
    fs::write(work.join(log), "(00.000001) Error: so says criu\n").map_err(|e| e.to_string())?;
    Ok(image)
}

/// The process begins anew, with nothing that would wait for `start`.
fn restore(invocation: &Invocation) -> Result<u32, String> {
    let image = work_as_criu(invocation, "restore.log")?;
    if !image.join(IMAGE).exists() {
        return Err(format!("criu failed: type NOTIFY errno 0\nlog file: {}", image.display()));
    }
    create(invocation)?;
    invocation.container()?.start()
}

fn create(invocation: &Invocation) -> Result<u32, String> {
    let container = invocation.container()?;
    let bundle = PathBuf::from(invocation.value("--bundle").ok_or("--bundle is wanted")?);
    let text = fs::read(bundle.join("config.json")).map_err(|e| format!("config.json: {e}"))?;
    let config: Value = serde_json::from_slice(&text).map_err(|e| format!("config.json: {e}"))?;
    let process = Process::from(&config["process"])?;
    if container.dir.exists() {
        return Err("container with given ID already exists".into());
    }
    fs::create_dir_all(&container.dir).map_err(|e| e.to_string())?;
    let fifo = container.dir.join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).map_err(|e| e.to_string())?;
    let terminal = process.open_terminal(invocation.value("--console-socket"))?;
    let pid = invocation.fork(|| {
        process.enter_session(terminal.as_deref());
        // Blocks until `start` opens the other end.
        drop(OpenOptions::new().read(true).open(&fifo));
        process.become_it();
    })?;
    let start_time = process::start_time(pid).ok_or("the process died")?;
    fs::write(container.dir.join("pid"), format!("{pid} {start_time}")).map_err(|e| e.to_string())?;
    write_pid_file(invocation, pid)?;
    Ok(pid)
}

fn exec(invocation: &Invocation) -> Result<u32, String> {
    let container = invocation.container()?;
    match container.status()? {
        Status::Running => {}
        Status::Paused => return Err("cannot exec in a paused container".into()),
        _ => return Err("cannot exec in a stopped container".into()),
    }
    let path = invocation.value("--process").ok_or("--process is wanted")?;
    let text = fs::read(path).map_err(|e| format!("{path}: {e}"))?;
    let spec: Value = serde_json::from_slice(&text).map_err(|e| format!("{path}: {e}"))?;
    let process = Process::from(&spec)?;
    let terminal = process.open_terminal(invocation.value("--console-socket"))?;
    let pid = invocation.fork(|| {
        process.enter_session(terminal.as_deref());
        process.become_it();
    })?;
    let mut execs = OpenOptions::new().create(true).append(true).open(container.dir.join("execs")).unwrap();
    writeln!(execs, "{pid}").map_err(|e| e.to_string())?;
    write_pid_file(invocation, pid)?;
    Ok(pid)
}

/// By rename, with no newline: as runc does it.
fn write_pid_file(invocation: &Invocation, pid: u32) -> Outcome {
    let Some(path) = invocation.value("--pid-file") else { return Ok(()) };
    let new = format!("{path}.new");
    fs::write(&new, pid.to_string()).and_then(|()| fs::rename(&new, path)).map_err(|e| format!("{path}: {e}"))
}

/// The part of an OCI process that is honoured.
struct Process {
    args: Vec<String>,
    env: Vec<(String, String)>,
    cwd: String,
    terminal: bool,
}

impl Process {
    fn from(spec: &Value) -> Result<Self, String> {
        let strings = |v: &Value| -> Vec<String> {
            v.as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)).collect()
        };
        let env = strings(&spec["env"]);
        let mut process = Self {
            args: strings(&spec["args"]),
            env: env.iter().filter_map(|e| e.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect(),
            cwd: spec["cwd"].as_str().unwrap_or("/").into(),
            terminal: spec["terminal"].as_bool().unwrap_or(false),
        };
        // So that whatever becomes of it, it is known whose it is.
        process.env.push((scene::MARK.into(), env::var(scene::MARK).unwrap_or_default()));
        process.check_executable()?;
        Ok(process)
    }

    /// As runc: a program that cannot be run is an error of create or exec, in these words.
    fn check_executable(&self) -> Outcome {
        let program = self.args.first().ok_or("process.args must not be empty")?;
        let prefix = format!("unable to start container process: exec: {program:?}:");
        let check = |path: &Path| -> Result<(), String> {
            let meta = fs::metadata(path)
                .map_err(|_| format!("{prefix} stat {}: no such file or directory", path.display()))?;
            let fit = meta.is_file() && meta.permissions().mode() & 0o111 != 0;
            if fit { Ok(()) } else { Err(format!("{prefix} permission denied")) }
        };
        if program.contains('/') {
            return check(Path::new(program));
        }
        let path = self.env.iter().find(|(k, _)| k == "PATH").map_or("", |(_, v)| v.as_str());
        let found = env::split_paths(path).any(|d| check(&d.join(program)).is_ok());
        if found { Ok(()) } else { Err(format!("{prefix} executable file not found in $PATH")) }
    }

    /// Makes a terminal, hands its master to whoever listens on the console socket, and returns the slave's path.
    fn open_terminal(&self, console_socket: Option<&str>) -> Result<Option<PathBuf>, String> {
        match (self.terminal, console_socket) {
            (false, None) => return Ok(None),
            (true, None) => return Err("cannot allocate tty if runc will detach without setting console socket".into()),
            (false, Some(_)) => return Err("cannot use console socket if runc will not detach or allocate tty".into()),
            (true, Some(_)) => {}
        }
        let pty = openpty(None, None).map_err(|e| format!("openpty: {e}"))?;
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|e| format!("fcntl: {e}"))?;
        }
        let slave = ttyname(&pty.slave).map_err(|e| format!("ttyname: {e}"))?;
        let socket = UnixStream::connect(console_socket.unwrap()).map_err(|e| format!("console socket: {e}"))?;
        send_master(&socket, &pty.master, &slave).map_err(|e| format!("console socket: {e}"))?;
        // The child inherits the slave and so keeps it open until it has opened it by path: with no slave open, the
        // master would report a hang-up.
        std::mem::forget(pty.slave);
        Ok(Some(slave))
    }

    /// In the child: a session of its own, with the terminal as its controlling one and its stdio.
    fn enter_session(&self, terminal: Option<&Path>) {
        setsid().unwrap();
        let Some(path) = terminal else { return };
        // A session leader's first terminal becomes the controlling one.
        let tty = OpenOptions::new().read(true).write(true).open(path).unwrap();
        nix::unistd::dup2_stdin(&tty).unwrap();
        nix::unistd::dup2_stdout(&tty).unwrap();
        nix::unistd::dup2_stderr(&tty).unwrap();
    }

    /// In the child: becomes the process.
    fn become_it(&self) -> ! {
        let mut command = Command::new(&self.args[0]);
        command.args(&self.args[1..]).env_clear().envs(self.env.iter().map(|(k, v)| (k, v))).current_dir(&self.cwd);
        eprintln!("exec {}: {}", self.args[0], command.exec());
        exit(127)
    }
}

fn send_master(socket: &UnixStream, master: &OwnedFd, slave: &Path) -> nix::Result<()> {
    let name = slave.to_str().unwrap().as_bytes();
    let fds = [master.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(name)], &control, MsgFlags::empty(), None).map(|_| ())
}
