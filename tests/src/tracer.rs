//! Kills a program as it enters a chosen system call: how the tests find out what is left between any two of its steps.
//!
//! By ptrace(2), which every user may do to their own programs. Only the program's first thread is counted; what it starts
//! is not traced.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sys;

/// How a traced program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By us, at the system call that was chosen.
    Killed,
    /// By itself, with this status; it had not come that far.
    Exited(i32),
}

/// Runs `command`, with `input` on stdin and nothing to print to, and kills it as it enters its `n`th system call, counted
/// from one. `look` is called at each one before.
///
/// # Panics
/// If the program cannot be started or traced.
pub fn run_until(command: &mut Command, input: &[u8], n: usize, look: impl FnMut()) -> End {
    let pid = start(command, input);
    ptrace::setoptions(pid, options()).expect("a stopped tracee");
    follow(pid, n, look)
}

/// A stopped tracee.
fn start(command: &mut Command, input: &[u8]) -> Pid {
    let (read, mut write) = std::io::pipe().expect("a pipe");
    write.write_all(input).expect("less than a pipe holds");
    drop(write);
    command.stdin(read).stdout(Stdio::null()).stderr(Stdio::null());
    sys::trace(command);
    // It is reaped by its tracer and not by its handle.
    #[allow(clippy::zombie_processes)]
    let child = command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let pid = Pid::from_raw(child.id().cast_signed());
    let stopped = waitpid(pid, None).expect("our child");
    assert!(matches!(stopped, WaitStatus::Stopped(_, Signal::SIGTRAP)), "{stopped:?}");
    pid
}

/// Runs `command` as [`run_until`] does, but kills the first program that it starts, as that enters its `n`th system call.
/// Gives both ends, the command's second. In a thread, since the program may go on for ever; it sends the command's pid.
pub fn run_until_in_child(mut command: Command, input: Vec<u8>, n: usize) -> (u32, JoinHandle<(End, End)>) {
    let (started, starts) = mpsc::channel();
    let thread = thread::spawn(move || {
        let pid = start(&mut command, &input);
        let births = ptrace::Options::PTRACE_O_TRACEVFORK
            | ptrace::Options::PTRACE_O_TRACEFORK
            | ptrace::Options::PTRACE_O_TRACECLONE
            | ptrace::Options::PTRACE_O_TRACEEXEC;
        ptrace::setoptions(pid, options() | births).expect("a stopped tracee");
        let _ = started.send(pid.as_raw().cast_unsigned());
        let mut signal = None;
        let child = loop {
            ptrace::cont(pid, signal.take()).expect("a stopped tracee");
            match waitpid(pid, Some(WaitPidFlag::__WALL)).expect("a tracee") {
                WaitStatus::PtraceEvent(..) => break ptrace::getevent(pid).expect("a birth"),
                WaitStatus::Stopped(_, other) => signal = Some(other),
                other => panic!("it started nothing: {other:?}"),
            }
        };
        let child = Pid::from_raw(i32::try_from(child).expect("a pid"));
        waitpid(child, Some(WaitPidFlag::__WALL)).expect("a tracee");
        ptrace::detach(pid, None).expect("a stopped tracee");
        // Until then it is a copy of the command.
        ptrace::cont(child, None).expect("a stopped tracee");
        let executed = waitpid(child, Some(WaitPidFlag::__WALL)).expect("a tracee");
        assert!(matches!(executed, WaitStatus::PtraceEvent(..)), "{executed:?}");
        let end = follow(child, n, || {});
        match waitpid(pid, None).expect("our child") {
            WaitStatus::Exited(_, status) => (end, End::Exited(status)),
            other => panic!("the command ended strangely: {other:?}"),
        }
    });
    (starts.recv().expect("it has panicked, see above"), thread)
}

/// Kills a process that runs already as it enters its `n`th system call from now. Counting has begun when this returns.
///
/// # Panics
/// If the process cannot be traced.
pub fn doom(pid: u32, n: usize) -> JoinHandle<End> {
    let (begun, begins) = mpsc::channel();
    // All of it in one thread, which is the tracer.
    let thread = thread::spawn(move || {
        let pid = Pid::from_raw(pid.cast_signed());
        ptrace::seize(pid, options()).unwrap_or_else(|e| panic!("cannot trace {pid}: {e}"));
        ptrace::interrupt(pid).expect("a tracee");
        let stopped = waitpid(pid, Some(WaitPidFlag::__WALL)).expect("a tracee");
        assert!(matches!(stopped, WaitStatus::PtraceEvent(..)), "{stopped:?}");
        let _ = begun.send(());
        follow(pid, n, || {})
    });
    let _ = begins.recv(); // it has panicked if nothing comes
    thread
}

fn options() -> ptrace::Options {
    ptrace::Options::PTRACE_O_EXITKILL | ptrace::Options::PTRACE_O_TRACESYSGOOD
}

fn follow(pid: Pid, n: usize, mut look: impl FnMut()) -> End {
    let (mut entered, mut inside, mut signal) = (0, false, None);
    loop {
        // It may have been killed by somebody else meanwhile; then its end comes next.
        let _ = ptrace::syscall(pid, signal.take());
        match waitpid(pid, Some(WaitPidFlag::__WALL)).expect("a tracee") {
            WaitStatus::PtraceSyscall(_) => {
                inside = !inside;
                if !inside {
                    continue;
                }
                entered += 1;
                look();
                if entered == n {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, status) => return End::Exited(status),
            WaitStatus::Signaled(..) if entered >= n => return End::Killed,
            WaitStatus::Signaled(_, signal, _) => return End::Exited(128 + signal as i32),
            _ => {}
        }
    }
}
