//! Processes by pid and start time, so that a recycled pid is never mistaken for the one that was meant.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::{fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::eventually::{eventually, patience};

/// A process that is not necessarily our child. Killed with SIGKILL when dropped, unless it is gone.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    start_time: u64,
}

/// The part of `/proc/PID/stat` that matters here.
struct Stat {
    state: char,
    parent: u32,
    start_time: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, a closing one included.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let start_time = fields.nth(17)?.parse().ok()?;
    Some(Stat { state, parent, start_time })
}

/// Whether `pid` runs: a process that only waits to be reaped does not.
pub fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|s| !matches!(s.state, 'Z' | 'X'))
}

/// Waits for the end of a process that may be anybody's child.
#[track_caller]
pub fn until_gone(pid: u32) {
    eventually(
        &format!("process {} should end", describe(pid)),
        || if is_alive(pid) { Err(state(pid)) } else { Ok(()) },
    );
}

/// Waits until whoever is the parent of a process, or became it, has learned of its end.
#[track_caller]
pub fn until_reaped(pid: u32) {
    eventually(&format!("the end of {} should be learned of", describe(pid)), || match stat(pid) {
        Some(_) => Err(state(pid)),
        None => Ok(()),
    });
}

/// Sends SIGKILL to a process that may be anybody's child, and waits for its end.
#[track_caller]
pub fn kill_hard(pid: u32) {
    let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL); // gone already is as good
    until_gone(pid);
}

/// How many threads of `pid` run; more than none also when the first one, which stands for the process, has ended.
pub fn living_threads(pid: u64) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).filter(|thread| is_alive(*thread)).count()
}

/// The state letter of `/proc/PID/stat`, as in proc_pid_stat(5).
pub fn state(pid: u32) -> Option<char> {
    stat(pid).map(|s| s.state)
}

/// The parent of `pid`.
pub fn parent(pid: u32) -> Option<u32> {
    stat(pid).map(|s| s.parent)
}

/// Field 22 of `/proc/PID/stat`.
pub fn start_time(pid: u32) -> Option<u64> {
    stat(pid).map(|s| s.start_time)
}

/// The number of threads of `pid`.
pub fn threads(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/task")).ok()?.count())
}

/// All pids there are.
pub fn all() -> Vec<u32> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    names.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The pids of living processes whose environment or command line contains `mark`.
pub fn marked(mark: &str) -> Vec<u32> {
    let has = |pid: &u32, file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.windows(mark.len()).any(|w| w == mark.as_bytes())
    };
    let own = std::process::id();
    all().into_iter().filter(|p| *p != own && is_alive(*p) && (has(p, "environ") || has(p, "cmdline"))).collect()
}

/// The command line of `pid`, for messages.
pub fn describe(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("{pid} ({})", String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end())
}

impl Process {
    /// Takes charge of a running process.
    ///
    /// # Panics
    /// If there is none of that pid.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let start_time = start_time(pid).unwrap_or_else(|| panic!("there is no process {pid}"));
        Self { pid, start_time }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it runs still.
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|s| s.start_time == self.start_time && !matches!(s.state, 'Z' | 'X'))
    }

    /// Sends `signal`, unless the process is gone.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid.cast_signed()), signal);
        }
    }

    /// Sends SIGKILL and waits for the end.
    #[track_caller]
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
        self.wait_gone();
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn wait_gone(&self) {
        eventually(&format!("process {} should end", describe(self.pid)), || {
            if self.is_alive() { Err(state(self.pid)) } else { Ok(()) }
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// A process that stands still, by SIGSTOP, as long as this is there.
#[derive(Debug)]
pub struct Stopped {
    pid: u32,
    start_time: Option<u64>,
}

impl Stopped {
    /// Stops it, and returns when it stands: the signal alone says only that it will.
    ///
    /// # Panics
    /// If there is no such process.
    #[track_caller]
    pub fn new(pid: u32) -> Self {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSTOP).unwrap_or_else(|e| panic!("cannot stop {pid}: {e}"));
        // Before the wait, so that a test that fails there leaves nobody stopped.
        let this = Self { pid, start_time: start_time(pid) };
        eventually("a process should stand still", || match state(pid) {
            Some('T') => Ok(()),
            other => Err(other),
        });
        this
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // A test that has killed it is done with it, and the pid may be another's.
        if start_time(self.pid) == self.start_time {
            let _ = kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGCONT);
        }
    }
}

/// A child of the test: killed and reaped when dropped.
#[derive(Debug)]
pub struct ChildProcess(Child);

impl ChildProcess {
    /// Starts it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}")))
    }

    /// Starts one under a pid that was another's, who must be gone: the kernel is told, again and again, that the last pid
    /// which it gave was the one before (proc_sys_kernel(5): ns_last_pid). Takes root.
    ///
    /// # Panics
    /// If it cannot be started, or the pid remains in use.
    #[track_caller]
    pub fn spawn_as(pid: u32, command: &mut Command) -> Self {
        eventually(&format!("pid {pid} should be given again"), || {
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())
                .unwrap_or_else(|e| panic!("cannot write ns_last_pid: {e}"));
            // Somebody else's child or thread may come in between. What came instead is killed when it is dropped.
            let child = Self::spawn(command);
            if child.pid() == pid { Ok(child) } else { Err(child.pid()) }
        })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it runs still.
    pub fn is_alive(&self) -> bool {
        is_alive(self.pid())
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let pid = self.pid();
        eventually(&format!("child {pid} should end"), || self.0.try_wait().ok().flatten().ok_or("still running"))
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid().cast_signed()), signal);
    }

    /// Sends SIGKILL and reaps it.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Copies a program, by cp(1): were the new file open for writing in this process, another thread's child could hold it
/// open for a moment longer, and its execution would fail as busy.
///
/// # Panics
/// If it cannot be copied.
#[track_caller]
pub fn copy_program(from: &Path, to: &Path) {
    let output = run(Command::new("cp").arg(from).arg(to));
    assert!(output.status.success(), "cannot copy {}: {}", from.display(), String::from_utf8_lossy(&output.stderr));
}

/// Runs a short command to its end, with nothing on stdin.
///
/// # Panics
/// If it does not start, or takes more than twice [`patience`]; it is killed then.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    run_with_input(command, b"")
}

/// As [`run`], with `input` on stdin.
///
/// # Panics
/// As [`run`]; also if somebody keeps the command's output open for that long after its end.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let pid = child.id();
    // Threads, since the command may fill one pipe while it waits on another. The end is waited for rather than looked
    // for: the benchmark takes the time of this.
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    thread::spawn(move || stdin.write_all(&input));
    let (finished, result) = mpsc::channel();
    thread::spawn(move || finished.send(child.wait_with_output()));
    match result.recv_timeout(2 * patience()) {
        Ok(output) => output.unwrap_or_else(|e| panic!("{command:?}: {e}")),
        Err(_) => {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            panic!("{command:?}: no end, or its output was kept open");
        }
    }
}

/// Whether a program needs no loader, so that it can be executed in a root file system that has none.
pub fn is_static(program: &Path) -> bool {
    let program = fs::read(program).unwrap_or_default();
    let loader = b"/lib64/ld-linux";
    !program.windows(loader.len()).take(4096).any(|window| window == loader)
}

/// Figures of `/proc/PID/smaps_rollup` and `/proc/PID/status`, in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident set size.
    pub rss: u64,
    /// Proportional set size.
    pub pss: u64,
    /// Anonymous memory: what the process does not share with a file.
    pub anonymous: u64,
}

/// The memory of `pid`, if it can be read.
pub fn memory(pid: u32) -> Option<Memory> {
    let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("smaps_rollup")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse().ok()
    };
    Some(Memory { rss: field("Rss:")?, pss: field("Pss:")?, anonymous: field("Anonymous:")? })
}
