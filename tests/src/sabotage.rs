//! Makes chosen system calls of a running program fail as a full or broken disk would: how the tests find out what is lost
//! when the k-th write does not work.
//!
//! By ptrace(2), of all threads of the program and those to come, but none of its children. x86-64 only.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::libc::{self, user_regs_struct as Registers};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What becomes of a call that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does nothing and fails with this.
    Fails(Errno),
    /// A write writes no more than half; other calls are left alone.
    CutShort,
}

/// Which calls go wrong, and how.
pub struct Plan {
    /// Only calls that change such a file or directory are counted; see [`below`].
    pub concerns: Box<dyn Fn(&Path) -> bool + Send>,
    /// Which of them, counted from one.
    pub calls: RangeInclusive<usize>,
    /// How.
    pub fault: Fault,
}

/// For [`Plan::concerns`]: everything at or below `dir`.
pub fn below(dir: &Path) -> Box<dyn Fn(&Path) -> bool + Send> {
    let dir = dir.to_owned();
    Box::new(move |path| path.starts_with(&dir))
}

/// What a traced program did, once it has ended.
#[derive(Debug, Default)]
pub struct Report {
    /// The calls that counted, as `write /path`.
    pub calls: Vec<String>,
    /// How many of them went wrong.
    pub struck: usize,
}

/// A program whose calls are watched.
#[derive(Debug)]
pub struct Sabotage {
    thread: JoinHandle<Report>,
}

impl Sabotage {
    /// Watches the process `pid` from now on, until its end. Counting has begun when this returns.
    ///
    /// # Panics
    /// If the process cannot be traced.
    pub fn begin(pid: u32, plan: Plan) -> Self {
        let (begun, begins) = mpsc::channel();
        // All of it in one thread, which is the tracer.
        let thread = thread::spawn(move || {
            let mut saboteur = Saboteur { plan, inside: BTreeMap::new(), report: Report::default() };
            seize_all(pid);
            let _ = begun.send(());
            saboteur.follow();
            saboteur.report
        });
        let _ = begins.recv(); // it has panicked if nothing comes
        Self { thread }
    }

    /// What happened, once the program has ended.
    ///
    /// # Panics
    /// If the tracer has.
    #[track_caller]
    pub fn report(self) -> Report {
        self.thread.join().expect("the tracer should not panic")
    }
}

/// Those that come later come traced.
fn seize_all(pid: u32) {
    let options = ptrace::Options::PTRACE_O_EXITKILL
        | ptrace::Options::PTRACE_O_TRACESYSGOOD
        | ptrace::Options::PTRACE_O_TRACECLONE;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("a living process").flatten() {
        let thread = Pid::from_raw(thread.file_name().to_string_lossy().parse().expect("a number"));
        // It may have come to its end by itself, but the first one has not.
        match ptrace::seize(thread, options).and_then(|()| ptrace::interrupt(thread)) {
            Err(e) if thread.as_raw().cast_unsigned() == pid => panic!("cannot trace {pid}: {e}"),
            _ => {}
        }
    }
}

struct Saboteur {
    plan: Plan,
    /// The threads that are inside a call, with what it is to end with.
    inside: BTreeMap<Pid, Option<Errno>>,
    report: Report,
}

impl Saboteur {
    fn follow(&mut self) {
        // Its own tracees alone: the test has other children.
        let own = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let (thread, signal) = match waitpid(None, Some(own)) {
                Ok(WaitStatus::PtraceSyscall(thread)) => {
                    match self.inside.remove(&thread) {
                        None => {
                            let end = self.entered(thread);
                            self.inside.insert(thread, end);
                        }
                        Some(Some(errno)) => end_with(thread, errno),
                        Some(None) => {}
                    }
                    (thread, None)
                }
                Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
                Ok(WaitStatus::PtraceEvent(thread, ..)) => (thread, None),
                Ok(_) => continue,
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return,
                Err(e) => panic!("cannot wait for a tracee: {e}"),
            };
            // It may have been killed meanwhile; then its end comes next.
            let _ = ptrace::syscall(thread, signal);
        }
    }

    /// What the call that begins is to end with, if not by itself.
    fn entered(&mut self, thread: Pid) -> Option<Errno> {
        let mut registers = ptrace::getregs(thread).ok()?;
        let call = Call::read(thread, &registers)?;
        if !(self.plan.concerns)(&call.path) {
            return None;
        }
        self.report.calls.push(format!("{} {}", call.name, call.path.display()));
        if !self.plan.calls.contains(&self.report.calls.len()) {
            return None;
        }
        match self.plan.fault {
            Fault::Fails(errno) => {
                // There is no such call, so nothing happens.
                registers.orig_rax = u64::MAX;
                ptrace::setregs(thread, registers).ok()?;
                self.report.struck += 1;
                Some(errno)
            }
            Fault::CutShort => {
                let length = call.length(&mut registers)?;
                if *length > 1 {
                    *length /= 2;
                    ptrace::setregs(thread, registers).ok()?;
                    self.report.struck += 1;
                }
                None
            }
        }
    }
}

fn end_with(thread: Pid, errno: Errno) {
    if let Ok(mut registers) = ptrace::getregs(thread) {
        registers.rax = (-i64::from(errno as i32)).cast_unsigned();
        let _ = ptrace::setregs(thread, registers);
    }
}

/// A call that changes something on a filesystem, or reads what is kept there.
struct Call {
    name: &'static str,
    number: i64,
    path: PathBuf,
}

impl Call {
    /// None for another call.
    fn read(thread: Pid, registers: &Registers) -> Option<Self> {
        let number = registers.orig_rax.cast_signed();
        let (first, second, third) = (registers.rdi, registers.rsi, registers.rdx);
        let at_cwd = (libc::AT_FDCWD as i64).cast_unsigned();
        let (name, path) = match number {
            libc::SYS_write => ("write", of_descriptor(thread, first)?),
            libc::SYS_pwrite64 => ("pwrite", of_descriptor(thread, first)?),
            libc::SYS_writev => ("writev", of_descriptor(thread, first)?),
            libc::SYS_splice if is_regular(thread, first) => ("splice from", of_descriptor(thread, first)?),
            libc::SYS_splice => ("splice", of_descriptor(thread, third)?),
            libc::SYS_pread64 => ("pread", of_descriptor(thread, first)?),
            libc::SYS_ftruncate => ("ftruncate", of_descriptor(thread, first)?),
            libc::SYS_fallocate => ("fallocate", of_descriptor(thread, first)?),
            libc::SYS_fchmod => ("fchmod", of_descriptor(thread, first)?),
            libc::SYS_fsync => ("fsync", of_descriptor(thread, first)?),
            libc::SYS_fdatasync => ("fdatasync", of_descriptor(thread, first)?),
            libc::SYS_open if creates(second) => ("open", of_path(thread, at_cwd, first)?),
            libc::SYS_openat if creates(third) => ("open", of_path(thread, first, second)?),
            libc::SYS_rename => ("rename", of_path(thread, at_cwd, first)?),
            libc::SYS_renameat | libc::SYS_renameat2 => ("rename", of_path(thread, first, second)?),
            libc::SYS_unlink | libc::SYS_rmdir => ("unlink", of_path(thread, at_cwd, first)?),
            libc::SYS_unlinkat => ("unlink", of_path(thread, first, second)?),
            libc::SYS_link => ("link", of_path(thread, at_cwd, second)?),
            libc::SYS_linkat => ("link", of_path(thread, third, registers.r10)?),
            libc::SYS_mkdir => ("mkdir", of_path(thread, at_cwd, first)?),
            libc::SYS_mkdirat => ("mkdir", of_path(thread, first, second)?),
            _ => return None,
        };
        Some(Self { name, number, path })
    }

    /// The register that says how much is to be written.
    fn length<'a>(&self, registers: &'a mut Registers) -> Option<&'a mut u64> {
        match self.number {
            libc::SYS_write | libc::SYS_pwrite64 => Some(&mut registers.rdx),
            libc::SYS_splice => Some(&mut registers.r8),
            _ => None,
        }
    }
}

fn creates(flags: u64) -> bool {
    flags & u64::from(libc::O_CREAT.cast_unsigned()) != 0
}

fn of_descriptor(thread: Pid, descriptor: u64) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{thread}/fd/{}", low_half(descriptor))).ok()
}

fn is_regular(thread: Pid, descriptor: u64) -> bool {
    fs::metadata(format!("/proc/{thread}/fd/{}", low_half(descriptor))).is_ok_and(|meta| meta.is_file())
}

fn of_path(thread: Pid, directory: u64, address: u64) -> Option<PathBuf> {
    let path = string_at(thread, address)?;
    let directory = low_half(directory);
    if Path::new(&path).is_absolute() {
        return Some(path.into());
    }
    let base = if directory == libc::AT_FDCWD { "cwd".to_owned() } else { format!("fd/{directory}") };
    Some(fs::read_link(format!("/proc/{thread}/{base}")).ok()?.join(path))
}

/// Descriptors are ints, whatever the upper half of the register holds.
fn low_half(register: u64) -> i32 {
    (register & 0xffff_ffff) as u32 as i32
}

fn string_at(thread: Pid, address: u64) -> Option<String> {
    let memory = File::open(format!("/proc/{thread}/mem")).ok()?;
    let mut bytes = vec![0; libc::PATH_MAX as usize];
    // Fewer where the mapping ends.
    let count = memory.read_at(&mut bytes, address).ok()?;
    let end = bytes[..count].iter().position(|&byte| byte == 0)?;
    String::from_utf8(bytes[..end].to_vec()).ok()
}
