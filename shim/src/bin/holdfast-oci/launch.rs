//! Starts a container's first process, or one more in it.
//!
//! ```text
//!     us ──fork──> stage ──fork──> init        (init is made our child too; the stage ends at once)
//! ```
//!
//! The stage joins the cgroup and the namespaces that only a later child is in (user, time, pid); init is libcontainer's:
//! everything that happens inside the container, up to the execution of the payload, is the crate's code.
//!
//! The two outer processes are ours and not the crate's, because its own read the mount table once for each cgroup
//! controller, move processes in a way that waits for a grace period of the kernel (14 ms, most of what an exec takes
//! with runc), leave the user namespace and the seccomp filter out of an exec, and need `newuidmap` for two mappings.
//!
//! Init waits on a socket until it may execute the payload: until `start`, or at once for an exec.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcgroups::common::CgroupConfig;
use libcontainer::container::{Container as Crate, ContainerStatus, State as CrateState};
use libcontainer::namespaces::Namespaces;
use libcontainer::notify_socket::{NotifyListener, NotifySocket};
use libcontainer::process::args::{ContainerArgs, ContainerType};
use libcontainer::process::channel::{self, ChannelError, InitReceiver, InitSender, MainReceiver, MainSender};
use libcontainer::process::cpu_affinity::set_cpuset_affinity_from_string;
use libcontainer::process::init::container_init_process;
use libcontainer::syscall::syscall::{Syscall, SyscallType, create_syscall};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, LinuxResources, Spec};

use crate::cgroup::Door;
use crate::error::{Failure, chain};
use crate::hooks;
use crate::log::{Collected, Log};
use crate::network;
use crate::payload::Payload;
use crate::record::Record;
use crate::seccomp;
use crate::sources::Sources;
use crate::sys::{self, Side};

/// What to start.
pub(crate) struct Launch {
    /// The specification, checked and normalised.
    pub(crate) spec: Rc<Spec>,
    /// Where the new process waits until it may execute the payload; made here.
    pub(crate) notify_socket: PathBuf,
    /// The way into the cgroup.
    pub(crate) door: Door,
    /// Receives the master of the terminal.
    pub(crate) console: Option<OwnedFd>,
    /// How many descriptors from 3 on the payload gets.
    pub(crate) preserve_fds: u32,
    /// No pivot_root.
    pub(crate) no_pivot: bool,
    /// What the new process could not reach from its user namespace.
    pub(crate) sources: Option<Sources>,
    /// What runs last.
    pub(crate) payload: Payload,
}

impl Launch {
    /// Starts the first process of a container; it then waits on the notify socket. Returns its pid.
    ///
    /// # Errors
    /// With the reason from the innermost process. Processes may be left: all of them are our children.
    pub(crate) fn init(self, record: &mut Record, log: &Log) -> Result<i32, Failure> {
        let collected = log.collect()?;
        self.start(ContainerType::InitContainer, record).map_err(|error| error.explain(collected, log))
    }

    /// Starts one more process, and returns its pid once it has executed the payload.
    ///
    /// # Errors
    /// With the reason from the innermost process; none of the processes is left then.
    pub(crate) fn tenant(self, record: &mut Record, owner: Option<u32>, log: &Log) -> Result<i32, Failure> {
        let collected = log.collect()?;
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(Failure::sys("make a pipe"))?;
        let socket = self.notify_socket.clone();
        let kind = ContainerType::TenantContainer { exec_notify_fd: writer.as_raw_fd() };
        let started = self.start(kind, record);
        let released = match &started {
            Ok(pid) => {
                crate::console::give_stdio(*pid, owner);
                release(&socket)
            }
            Err(_) => Ok(()),
        };
        let _ = fs::remove_file(&socket);
        drop(writer);
        // The other end closes when the payload is executed; what comes before is the reason why it is not.
        let result = started.and_then(|pid| {
            released?;
            let mut reason = String::new();
            File::from(reader).read_to_string(&mut reason).map_err(Failure::file("read from", "the new process"))?;
            if reason.is_empty() { Ok(pid) } else { Err(StartError::Inside(reason)) }
        });
        result.map_err(|error| {
            kill_children();
            error.explain(collected, log)
        })
    }

    fn start(self, container_type: ContainerType, record: &mut Record) -> Result<i32, StartError> {
        let notify_listener =
            NotifyListener::new(&self.notify_socket).map_err(|error| StartError::Inside(chain(&error)))?;
        before_fork(&self.spec)?;
        let args = ContainerArgs {
            container_type,
            syscall: SyscallType::default(),
            rootfs: record.rootfs.clone(),
            console_socket: self.console.as_ref().map(AsRawFd::as_raw_fd),
            notify_listener,
            preserve_fds: i32::try_from(self.preserve_fds).unwrap_or(i32::MAX),
            container: Some(crate_container(record, container_type)),
            // Init asks only whether supplementary groups may be set, and they may.
            user_ns_config: None,
            // The stage sees to the cgroup.
            cgroup_config: CgroupConfig {
                cgroup_path: PathBuf::new(),
                systemd_cgroup: false,
                container_name: String::new(),
            },
            detached: true,
            executor: Box::new(self.payload),
            no_pivot: self.no_pivot,
            stdin: None,
            stdout: None,
            stderr: None,
            as_sibling: false,
            pid_file: None,
            spec: Rc::clone(&self.spec),
        };
        let (main_sender, main_receiver) = channel::main_channel()?;
        let (init_sender, init_receiver) = channel::init_channel()?;
        let (ours, theirs) = UnixStream::pair().map_err(Failure::file("make", "a socket pair"))?;
        let stage = match sys::clone(false, self.door.directory()).map_err(Failure::sys("fork into the cgroup"))? {
            Side::Child => {
                drop(ours);
                let (door, sources) = (&self.door, self.sources.as_ref());
                Stage { args: &args, door, sources, main: theirs, main_sender, init_sender, init_receiver }.run()
            }
            Side::Parent(pid) => pid,
        };
        drop(theirs);
        // Else the end of init would go unnoticed.
        main_sender.close()?;
        Watch { spec: &self.spec, stage, record, ours, main_receiver, init_sender }.until_ready(container_type)
    }
}

/// What has to be done in this process, to be inherited.
fn before_fork(spec: &Spec) -> Result<(), Failure> {
    let adjustment = spec.process().as_ref().and_then(|process| process.oom_score_adj());
    if let Some(adjustment) = adjustment {
        let file = "/proc/self/oom_score_adj";
        fs::write(file, adjustment.to_string()).map_err(Failure::file("write process.oomScoreAdj to", file))?;
    }
    // A process of the container must not get hold of ours between joining its namespaces and executing the payload.
    set_dumpable(false).map_err(Failure::sys("become undumpable"))
}

/// Lets the process that waits on the socket go on.
///
/// # Errors
/// When nobody listens any more.
pub(crate) fn release(socket: &Path) -> Result<(), Failure> {
    NotifySocket::new(socket)
        .notify_container_start()
        .map_err(|error| Failure::Start { reason: format!("its process is gone: {}", chain(&error)) })
}

/// What the stage asks of us; each is answered by one byte, except the last two.
const MAP_IDS: u8 = b'm';
const SHIFT_CLOCKS: u8 = b't';
const ADOPT: u8 = b'a';
const READY: u8 = b'r';
const FAILED: u8 = b'f';

/// The process between us and init.
struct Stage<'a> {
    args: &'a ContainerArgs,
    door: &'a Door,
    sources: Option<&'a Sources>,
    main: UnixStream,
    main_sender: MainSender,
    init_sender: InitSender,
    init_receiver: InitReceiver,
}

impl Stage<'_> {
    fn run(mut self) -> ! {
        let code = match self.prepare() {
            Ok(()) => self.fork_init(),
            Err(reason) => self.fail(&reason),
        };
        sys::exit_now(code)
    }

    fn fail(&mut self, reason: &str) -> i32 {
        let _ = self.main.write_all(&[&[FAILED], reason.as_bytes()].concat());
        1
    }

    fn ask(&mut self, what: u8) -> Result<(), String> {
        let mut answer = [0];
        self.main.write_all(&[what]).and_then(|()| self.main.read_exact(&mut answer)).map_err(|error| error.to_string())
    }

    /// Everything that has to happen before init is forked.
    fn prepare(&mut self) -> Result<(), String> {
        let spec = &*Rc::clone(&self.args.spec);
        let syscall = create_syscall();
        let process = spec.process().as_ref().ok_or("process is missing")?;
        let linux = spec.linux().as_ref().ok_or("linux is missing")?;
        let affinity = match self.args.container_type {
            ContainerType::TenantContainer { .. } => process.exec_cpu_affinity().clone(),
            ContainerType::InitContainer => None,
        };
        set_affinity(affinity.as_ref().and_then(|affinity| affinity.initial().as_deref()))?;
        self.door.enter().map_err(|failure| chain(&failure))?;
        if matches!(self.door, Door::Later) {
            self.ask(ADOPT)?;
        }
        set_affinity(affinity.as_ref().and_then(|affinity| affinity.cpu_affinity_final().as_deref()))?;
        // In the host's user namespace, which has the right to raise them.
        for limit in process.rlimits().iter().flatten() {
            syscall
                .set_rlimit(limit)
                .map_err(|error| format!("cannot set process.rlimits[{}]: {}", limit.typ(), chain(&error)))?;
        }
        if let Some(sources) = self.sources {
            sources.put().map_err(|errno| format!("cannot place the sources of bind mounts: {}", errno.desc()))?;
        }
        self.enter_namespaces(linux, &*syscall)
    }

    fn enter_namespaces(&mut self, linux: &Linux, syscall: &dyn Syscall) -> Result<(), String> {
        let text = |error: libcontainer::namespaces::NamespaceError| chain(&error);
        let namespaces = Namespaces::try_from(linux.namespaces().as_ref()).map_err(text)?;
        if let Some(user) = namespaces.get(LinuxNamespaceType::User).map_err(text)? {
            namespaces
                .unshare_or_setns(user)
                .map_err(|error| format!("cannot enter the user namespace: {}", text(error)))?;
            if user.path().is_none() {
                self.ask_visibly(MAP_IDS)?;
            }
            let root = (nix_of_crate::unistd::Uid::from_raw(0), nix_of_crate::unistd::Gid::from_raw(0));
            syscall
                .set_id(root.0, root.1)
                .map_err(|error| format!("cannot become root of the user namespace: {}", chain(&error)))?;
        }
        if let Some(time) = namespaces.get(LinuxNamespaceType::Time).map_err(text)? {
            namespaces
                .unshare_or_setns(time)
                .map_err(|error| format!("cannot enter the time namespace: {}", text(error)))?;
            if time.path().is_none() && clock_offsets(linux).is_some() {
                self.ask_visibly(SHIFT_CLOCKS)?;
            }
        }
        if let Some(pid) = namespaces.get(LinuxNamespaceType::Pid).map_err(text)? {
            namespaces
                .unshare_or_setns(pid)
                .map_err(|error| format!("cannot enter the pid namespace: {}", text(error)))?;
        }
        Ok(())
    }

    /// The files that the answer needs written below `/proc/PID` belong to root while we cannot be dumped.
    fn ask_visibly(&mut self, what: u8) -> Result<(), String> {
        set_dumpable(true).map_err(|errno| errno.to_string())?;
        self.ask(what)?;
        set_dumpable(false).map_err(|errno| errno.to_string())
    }

    fn fork_init(&mut self) -> i32 {
        match sys::clone(true, None) {
            Ok(Side::Child) => self.init(),
            Ok(Side::Parent(pid)) => {
                let message = [&[READY][..], &pid.to_ne_bytes()].concat();
                i32::from(self.main.write_all(&message).is_err())
            }
            Err(errno) => self.fail(&format!("cannot fork: {}", errno.desc())),
        }
    }

    /// The container's process; returns only if the payload could not be executed.
    fn init(&mut self) -> i32 {
        let _ = nix::sys::prctl::set_name(c"holdfast:init");
        // Ours would keep init from noticing the end of the one that matters.
        let _ = self.init_sender.close();
        let Err(error) = container_init_process(self.args, &mut self.main_sender, &mut self.init_receiver) else {
            return 0;
        };
        let reason = error.to_string();
        let told = self.main_sender.exec_failed(reason.clone()).is_ok();
        match self.args.container_type {
            ContainerType::TenantContainer { exec_notify_fd } => {
                let _ = sys::write_all(exec_notify_fd, reason.as_bytes());
            }
            // After `start` nobody but the container's own output is left to be told.
            ContainerType::InitContainer if !told => {
                let _ = writeln!(io::stderr(), "holdfast-oci: {reason}");
            }
            ContainerType::InitContainer => {}
        }
        255
    }
}

fn set_affinity(list: Option<&str>) -> Result<(), String> {
    let Some(list) = list.filter(|list| !list.is_empty()) else { return Ok(()) };
    set_cpuset_affinity_from_string(nix_of_crate::unistd::Pid::from_raw(0), list)
        .map_err(|error| format!("cannot set process.execCPUAffinity: {}", chain(&error)))
}

/// Our side while the container is made.
struct Watch<'a> {
    spec: &'a Spec,
    stage: i32,
    record: &'a mut Record,
    ours: UnixStream,
    main_receiver: MainReceiver,
    init_sender: InitSender,
}

impl Watch<'_> {
    /// Answers until init waits for its release; its pid.
    fn until_ready(mut self, kind: ContainerType) -> Result<i32, StartError> {
        let pid = self.serve_stage()?;
        let linux = self.spec.linux().as_ref();
        if let (ContainerType::InitContainer, Some(hooks)) = (kind, self.spec.hooks()) {
            self.main_receiver.wait_for_hook_request()?;
            hooks::before_pivot(self.record, hooks, pid)?;
            self.init_sender.hook_done()?;
        }
        if let Some(devices) = linux.and_then(|linux| linux.net_devices().as_ref()).filter(|list| !list.is_empty()) {
            self.main_receiver.wait_for_network_setup_ready()?;
            self.init_sender.move_network_device(network::move_devices(devices, pid)?)?;
        }
        if let Some(filter) =
            linux.and_then(|linux| linux.seccomp().as_ref()).filter(|filter| seccomp::notifies(filter))
        {
            let fd = self.main_receiver.wait_for_seccomp_request()?;
            seccomp::hand_over(filter, self.record, pid, sys::adopt_fd(fd))?;
            self.init_sender.seccomp_notify_done()?;
        }
        self.main_receiver.wait_for_init_ready()?;
        match waitpid(Pid::from_raw(self.stage), None) {
            Ok(_) | Err(Errno::ECHILD) => Ok(pid),
            Err(source) => Err(Failure::Sys { what: "reap the stage", source }.into()),
        }
    }

    fn serve_stage(&mut self) -> Result<i32, StartError> {
        let linux = self.spec.linux().as_ref();
        loop {
            let mut what = [0];
            let broken = Failure::file("read from", "the process that prepares the container");
            self.ours.read_exact(&mut what).map_err(broken)?;
            match what[0] {
                READY => {
                    let mut pid = [0; 4];
                    self.ours.read_exact(&mut pid).map_err(Failure::file("read", "the pid of init"))?;
                    return Ok(i32::from_ne_bytes(pid));
                }
                MAP_IDS => {
                    let linux = linux.ok_or_else(|| StartError::Inside("linux is missing".to_owned()))?;
                    write_map(self.stage, "uid_map", linux.uid_mappings().as_deref().unwrap_or_default())?;
                    write_map(self.stage, "gid_map", linux.gid_mappings().as_deref().unwrap_or_default())?;
                }
                SHIFT_CLOCKS => {
                    let file = format!("/proc/{}/timens_offsets", self.stage);
                    let text = linux.and_then(clock_offsets).unwrap_or_default();
                    fs::write(&file, text).map_err(Failure::file("write linux.timeOffsets to", file))?;
                }
                ADOPT => {
                    let none = LinuxResources::default();
                    let resources = linux.and_then(|linux| linux.resources().as_ref()).unwrap_or(&none);
                    self.record.cgroup.adopt(self.stage, resources)?;
                }
                _ => {
                    let mut reason = String::new();
                    self.ours.read_to_string(&mut reason).map_err(Failure::file("read", "a reason"))?;
                    return Err(StartError::Inside(reason));
                }
            }
            self.ours.write_all(&what).map_err(Failure::file("write to", "the process that prepares the container"))?;
        }
    }
}

/// All mappings in one write, as the kernel wants it.
///
/// # Errors
/// As write(2); `EINVAL` for mappings that overlap or are too many, see user_namespaces(7).
pub(crate) fn write_map(pid: i32, name: &str, mappings: &[LinuxIdMapping]) -> Result<(), Failure> {
    let line =
        |mapping: &LinuxIdMapping| format!("{} {} {}\n", mapping.container_id(), mapping.host_id(), mapping.size());
    let text: String = mappings.iter().map(line).collect();
    let file = format!("/proc/{pid}/{name}");
    fs::write(&file, text).map_err(Failure::file("write the id mappings to", file))
}

/// The text for `timens_offsets`.
fn clock_offsets(linux: &Linux) -> Option<String> {
    let offsets = linux.time_offsets().as_ref().filter(|offsets| !offsets.is_empty())?;
    let line = |(clock, offset): (&String, &oci_spec::runtime::LinuxTimeOffset)| {
        format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0))
    };
    Some(offsets.iter().map(line).collect())
}

/// Why a process could not be started.
enum StartError {
    /// Ours.
    Failure(Failure),
    /// Said by the stage or by init.
    Inside(String),
    /// Said by init through the crate's channel, or the channel itself.
    Channel(ChannelError),
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> StartError {
        StartError::Failure(failure)
    }
}

impl From<ChannelError> for StartError {
    fn from(error: ChannelError) -> StartError {
        StartError::Channel(error)
    }
}

impl StartError {
    /// One reason from the error and what libcontainer has logged on the way to it.
    fn explain(self, collected: Collected, log: &Log) -> Failure {
        let reason = match self {
            StartError::Failure(failure) => return failure,
            StartError::Inside(reason) => reason,
            StartError::Channel(ChannelError::ExecError(text)) => {
                text.trim_start_matches("error in executing process : ").to_owned()
            }
            // Init had something else to say than what we waited for.
            StartError::Channel(ChannelError::UnexpectedMessage { received, .. }) => {
                received.to_string().trim_start_matches("ExecFailed(").trim_end_matches(')').to_owned()
            }
            StartError::Channel(error) => chain(&error),
        };
        Failure::Start { reason: collected.explain(&reason, log) }
    }
}

/// The crate's own idea of the container, which its hooks report.
fn crate_container(record: &Record, kind: ContainerType) -> Crate {
    let status = match kind {
        ContainerType::InitContainer => ContainerStatus::Creating,
        ContainerType::TenantContainer { .. } => ContainerStatus::Running,
    };
    let pid = record.init.map(|init| init.pid);
    let mut state = CrateState::new(&record.id, status, pid, record.bundle.clone());
    state.annotations = Some(record.annotations.clone());
    Crate { state, root: PathBuf::new() }
}

/// Kills and reaps whatever has been forked here: all of it stays our child.
pub(crate) fn kill_children() {
    let file = format!("/proc/self/task/{}/children", std::process::id());
    for pid in fs::read_to_string(file).unwrap_or_default().split_ascii_whitespace() {
        if let Ok(pid) = pid.parse() {
            // Ours and not reaped yet, so the pid is still theirs.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    while !matches!(waitpid(None, None), Err(Errno::ECHILD)) {}
}
