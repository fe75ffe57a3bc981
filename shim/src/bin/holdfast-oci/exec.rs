//! `exec`: one more process in a running container.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;

use oci_spec::runtime::{
    Capability, Linux, LinuxBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Process, Spec,
    SpecBuilder,
};

use crate::cli::{ExecArgs, Global};
use crate::console::{self, Console};
use crate::create::{host_uid, prepare_process, write_pid_file};
use crate::error::Failure;
use crate::keyring;
use crate::launch::Launch;
use crate::log::Log;
use crate::normalize;
use crate::payload::Payload;
use crate::process::{Life, ProcessName};
use crate::record::{Container, RunRoot, Status};
use crate::run::exit_code;
use crate::spec_check::{self, Refusal};

/// Runs the process; returns its exit code, or 0 when detached.
///
/// # Errors
/// When the container does not run or the process cannot be started.
pub(crate) fn run(global: &Global, args: &ExecArgs, log: &Log) -> Result<u8, Failure> {
    prepare_process(args.preserve_fds)?;
    let mut container = RunRoot::new(&global.root).load(&args.id)?;
    let init = executable(&container, args.ignore_paused)?;
    let spec = container.dir.spec()?;
    let mut process = requested(args, &spec)?;
    if process.exec_cpu_affinity().is_none() {
        process.set_exec_cpu_affinity(spec.process().as_ref().and_then(|process| process.exec_cpu_affinity().clone()));
    }
    spec_check::process(&process)?;
    let payload = Payload { sizes_terminal: true, ..normalize::process(&mut process) };
    let mut console = Console::prepare(&process, args.console_socket.as_deref(), args.detach)?;
    if container.record.new_keyring {
        keyring::join(&args.id)?;
    }

    let linux = spec.linux().as_ref().ok_or_else(|| Refusal::missing("linux"))?;
    let namespaces = Namespaces::open(init, linux)?;
    let owner = host_uid(process.user().uid(), linux.uid_mappings().as_deref().unwrap_or_default());
    let launch = Launch {
        spec: Rc::new(tenant(&spec, linux, process, namespaces.list())),
        notify_socket: container.dir.path().join(format!("exec-{}.sock", std::process::id())),
        door: container.record.cgroup.door(args.cgroup.as_deref(), Some(init.pid))?,
        console: console.as_mut().and_then(Console::take_theirs),
        preserve_fds: args.preserve_fds,
        no_pivot: false,
        sources: None,
        payload,
    };
    let pid = launch.tenant(&mut container.record, owner, log)?;
    let finish = || -> Result<Option<OwnedFd>, Failure> {
        let master = console.take().map(Console::hand_over).transpose()?.flatten();
        if let Some(path) = &args.pid_file {
            write_pid_file(path, pid)?;
        }
        Ok(master)
    };
    let master = end_on_failure(finish)?;
    if args.detach {
        return Ok(0);
    }
    if let Some(master) = master {
        console::relay(master)?;
    }
    exit_code(pid)
}

/// Nobody would know of a process whose `exec` has failed.
fn end_on_failure<T>(finish: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    finish().inspect_err(|_| crate::launch::kill_children())
}

/// The first process of a container in which something can be executed.
fn executable(container: &Container, ignore_paused: bool) -> Result<ProcessName, Failure> {
    let refuse =
        |status, hint| Err(Failure::WrongState { verb: "exec in", status, id: container.record.id.clone(), hint });
    match container.status() {
        Status::Running | Status::Created => container.live_init(),
        Status::Paused if ignore_paused => container.live_init(),
        Status::Paused => refuse(Status::Paused, " (use --ignore-paused to override)"),
        Status::Stopped => Err(Failure::NotRunning { id: container.record.id.clone() }),
        Status::Creating => refuse(Status::Creating, ""),
    }
}

/// What a process does not say about itself goes for it as for the container's first one.
fn inherit(process: &mut Process, spec: &Spec) {
    let Some(first) = spec.process() else { return };
    if process.capabilities().is_none() {
        process.set_capabilities(first.capabilities().clone());
    }
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(first.oom_score_adj());
    }
}

/// The process that the caller wants: a file, or the container's own with changes.
fn requested(args: &ExecArgs, spec: &Spec) -> Result<Process, Failure> {
    if let Some(path) = &args.process {
        let bytes = fs::read(path).map_err(Failure::file("read", path))?;
        let mut process: Process =
            serde_json::from_slice(&bytes).map_err(|source| Failure::Json { path: path.clone(), source })?;
        inherit(&mut process, spec);
        if args.tty {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    let mut process = spec.process().clone().ok_or_else(|| Refusal::missing("process"))?;
    if args.command.is_empty() {
        return Err(Failure::Argument { what: "command", value: String::new(), reason: "give a command or --process" });
    }
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    add_environment(&mut process, &args.env);
    if let Some(user) = &args.user {
        set_user(&mut process, user)?;
    }
    if !args.additional_gids.is_empty() {
        process.user_mut().additional_gids_mut().get_or_insert_with(Vec::new).extend(&args.additional_gids);
    }
    for name in &args.cap {
        add_capability(&mut process, name)?;
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if args.apparmor.is_some() {
        process.set_apparmor_profile(args.apparmor.clone());
    }
    if let Some(label) = &args.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    Ok(process)
}

/// Later values replace earlier ones of the same name.
fn add_environment(process: &mut Process, added: &[String]) {
    let env = process.env_mut().get_or_insert_with(Vec::new);
    for entry in added {
        let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
        env.retain(|old| old.split_once('=').map_or(old.as_str(), |(old, _)| old) != name);
        env.push(entry.clone());
    }
}

/// `UID[:GID]`, numbers only: names would have to be looked up in the container.
fn set_user(process: &mut Process, text: &str) -> Result<(), Failure> {
    let parse = |number: &str| {
        number.parse::<u32>().map_err(|_| Failure::Argument {
            what: "user",
            value: text.to_owned(),
            reason: "give UID or UID:GID as numbers",
        })
    };
    let (uid, gid) = text.split_once(':').map_or((text, None), |(uid, gid)| (uid, Some(gid)));
    let (uid, gid) = (parse(uid)?, gid.map(parse).transpose()?);
    process.user_mut().set_uid(uid);
    if let Some(gid) = gid {
        process.user_mut().set_gid(gid);
    }
    Ok(())
}

/// Adds a capability as runc does: not inheritable, and ambient only if the container has inheritable ones.
fn add_capability(process: &mut Process, name: &str) -> Result<(), Failure> {
    let upper = name.to_ascii_uppercase();
    let capability = Capability::from_str(upper.trim_start_matches("CAP_")).map_err(|_| Failure::Argument {
        what: "capability",
        value: name.to_owned(),
        reason: "unknown capability",
    })?;
    let mut sets = process.capabilities().clone().unwrap_or_default();
    let with = |set: &Option<oci_spec::runtime::Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.insert(capability);
        Some(set)
    };
    sets.set_bounding(with(sets.bounding()));
    sets.set_effective(with(sets.effective()));
    sets.set_permitted(with(sets.permitted()));
    if sets.inheritable().as_ref().is_some_and(|set| !set.is_empty()) {
        sets.set_ambient(with(sets.ambient()));
    }
    process.set_capabilities(Some(sets));
    Ok(())
}

/// The namespaces of the container's first process, held open: its pid may go away while we join them.
struct Namespaces {
    open: Vec<(LinuxNamespaceType, File)>,
}

impl Namespaces {
    fn open(init: ProcessName, linux: &Linux) -> Result<Namespaces, Failure> {
        let mut open = Vec::new();
        for namespace in linux.namespaces().iter().flatten() {
            let typ = namespace.typ();
            let path = format!("/proc/{}/ns/{}", init.pid, file_name(typ));
            open.push((typ, File::open(&path).map_err(Failure::file("open", path))?));
        }
        // Only now: a pid that was recycled before the files were opened would have shown us somebody else's.
        match init.life() {
            Life::Alive => Ok(Namespaces { open }),
            Life::Gone => Err(Failure::Sys { what: "join the container", source: nix::errno::Errno::ESRCH }),
        }
    }

    /// As libcontainer wants them. `/proc/self` may be used in every process that inherits the descriptors, as long as
    /// the mount namespace comes last, which it does.
    fn list(&self) -> Vec<LinuxNamespace> {
        let build = |(typ, file): &(LinuxNamespaceType, File)| {
            let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()));
            LinuxNamespaceBuilder::default().typ(*typ).path(path).build().expect("every field has a default")
        };
        self.open.iter().map(build).collect()
    }
}

/// The name in `/proc/PID/ns`.
fn file_name(typ: LinuxNamespaceType) -> &'static str {
    match typ {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    }
}

/// The specification of the new process: what the container has, less what was done once when it was made.
fn tenant(spec: &Spec, linux: &Linux, process: Process, namespaces: Vec<LinuxNamespace>) -> Spec {
    let mut inner = LinuxBuilder::default().namespaces(namespaces).build().expect("every field has a default");
    inner.set_seccomp(linux.seccomp().clone());
    inner.set_personality(linux.personality().clone());
    inner.set_resources(None);
    inner.set_masked_paths(None);
    inner.set_readonly_paths(None);
    let mut tenant = SpecBuilder::default().process(process).linux(inner).build().expect("every field has a default");
    tenant.set_root(spec.root().clone());
    tenant.set_mounts(None);
    tenant.set_hooks(None);
    tenant.set_hostname(None);
    tenant
}
