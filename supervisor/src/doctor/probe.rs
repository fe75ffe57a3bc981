//! Gathers the facts: from `/proc` and `/sys`, from programs, from systemd, and from every shim. All that may hang has a
//! deadline, and what hangs is a fact.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{env, fs};

use futures_util::future::join_all;
use holdfast_proto::record::Manager;
use holdfast_proto::shim_settings::OutputSettings;
use holdfast_proto::supervisor as pb;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use procfs::ProcessCGroup;
use procfs::process::{LimitValue, Process};
use tokio::process::Command;

use super::{Answer, Cgroup, CgroupMode, Daemon, Facts, Kernel, Shim, Spill, Tool, Unit, stale};
use crate::chain;
use crate::client::{QUICK, ShimClient};
use crate::config::{Flags, Settings};
use crate::identity::{Identity, Stat, identify};
use crate::paths::Paths;
use crate::programs::in_path;
use crate::report::{Class, RestoreReport, Restored};
use crate::scan::{self, Findings};
use crate::sys::{self, proc};

/// For a program that prints its version, and for systemd.
const DEADLINE: Duration = Duration::from_secs(5);

/// The OCI runtimes, in the order in which a shim looks for them.
const RUNTIMES: [&str; 3] = ["holdfast-oci", "runc", "crun"];

/// The units that matter.
const UNITS: [&str; 4] = ["holdfastd.service", "holdfastd.socket", "holdfast-shutdown.service", "containerd.service"];

/// Of each unit; the order is systemd's own choice.
const PROPERTIES: &str = "--property=Id,LoadState,ActiveState,UnitFileState,KillMode,DropInPaths";

/// `CAP_SYS_RESOURCE`, capabilities(7).
const CAP_SYS_RESOURCE: u32 = 24;

/// Gathers everything. `answer` is the supervisor's, or why there is none.
pub async fn facts(answer: Result<pb::InfoResponse, String>) -> Facts {
    let settings = Settings::load(&Flags::default()).map(|loaded| loaded.settings).map_err(|e| chain(&e));
    let paths = paths(&answer, &settings);
    let shim = match (&answer, &settings) {
        (Ok(info), _) => Some(PathBuf::from(&info.shim)).filter(|shim| !shim.as_os_str().is_empty()),
        (Err(_), Ok(settings)) => settings.find_shim(),
        (Err(_), Err(_)) => None,
    };
    let configured = answer.as_ref().ok().map(|info| info.runtime.clone()).unwrap_or_default();
    let boot_id = proc::boot_id().unwrap_or_default();
    let found = scan::scan(&paths, &boot_id);
    let (asked, stale, units, (runtimes, criu, shim)) =
        tokio::join!(shims(&found), stale::find(&paths, &boot_id), units(), async {
            tokio::join!(runtimes(shim.as_deref(), &configured), tool_in_path("criu"), installed(shim.clone()))
        },);
    let (shims, places) = asked;
    let (shim_settings, default_place) = shim_settings(&paths);
    Facts {
        root: nix::unistd::geteuid().is_root(),
        kernel: kernel(),
        cgroup: cgroup(),
        runtimes,
        criu,
        shim,
        daemon: daemon(answer, settings.err()),
        shim_settings,
        spill: default_place.into_iter().chain(places).collect::<BTreeMap<_, _>>().into_iter().map(spill).collect(),
        units,
        shims,
        stale,
    }
}

/// The supervisor's own, or those that the next one would have.
fn paths(answer: &Result<pb::InfoResponse, String>, settings: &Result<Settings, String>) -> Paths {
    match (answer, settings) {
        (Ok(info), _) => Paths { run: PathBuf::from(&info.run_dir), state: PathBuf::from(&info.state_dir) },
        (Err(_), Ok(settings)) => settings.paths.clone(),
        (Err(_), Err(_)) => Paths::from_environment(),
    }
}

/// The kernel, as far as it tells.
fn kernel() -> Kernel {
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    Kernel {
        release: release(),
        pidfd: sys::pidfd_open(std::process::id()).is_ok(),
        exit_info: exit_info().unwrap_or(false),
        inotify_instances: number("/proc/sys/fs/inotify/max_user_instances"),
        pipe_pages: number("/proc/sys/fs/pipe-user-pages-soft"),
        pid_max: procfs::sys::kernel::pid_max().ok().and_then(|pids| pids.try_into().ok()),
        processes: procfs::process::all_processes().map_or(0, |all| all.count() as u64),
    }
}

/// The kernel's version.
pub fn release() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// Whether a pidfd tells the exit status of a process that was reaped: tried with a child.
fn exit_info() -> io::Result<bool> {
    let program = env::current_exe()?;
    let mut child = std::process::Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pidfd = sys::pidfd_open(child.id());
    child.wait()?;
    Ok(sys::pidfd_exit_status(pidfd?.as_fd()).is_ok_and(|status| status == Some(0)))
}

/// The version of control groups, and what they control.
pub fn cgroup() -> Cgroup {
    let root = Path::new("/sys/fs/cgroup");
    let kind = |path: &Path| statfs(path).ok().map(|fs| fs.filesystem_type());
    let mode = match kind(root) {
        Some(CGROUP2_SUPER_MAGIC) => CgroupMode::Unified,
        Some(TMPFS_MAGIC) if kind(&root.join("unified")) == Some(CGROUP2_SUPER_MAGIC) => CgroupMode::Hybrid,
        Some(TMPFS_MAGIC) => CgroupMode::Legacy,
        _ => CgroupMode::None,
    };
    let controllers = match mode {
        CgroupMode::Unified => {
            let text = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            text.split_whitespace().map(str::to_owned).collect()
        }
        CgroupMode::None => Vec::new(),
        // One that is switched off has no directory, whatever else there is.
        _ => {
            let all = procfs::cgroups().map(|all| all.0).unwrap_or_default();
            let enabled = all.into_iter().filter(|one| one.enabled).map(|one| one.name);
            enabled.filter(|name| root.join(name).is_dir()).collect()
        }
    };
    Cgroup { mode, controllers }
}

/// The OCI runtimes that shims find: one that is configured, the one beside the shim, those in `PATH`.
pub async fn runtimes(shim: Option<&Path>, configured: &str) -> Vec<Tool> {
    let beside = shim.and_then(Path::parent).map(|dir| dir.join(RUNTIMES[0])).filter(|path| path.is_file());
    let mut paths: Vec<PathBuf> = Some(PathBuf::from(configured)).filter(|p| p.is_absolute()).into_iter().collect();
    paths.extend(RUNTIMES.iter().filter_map(|name| match (*name, &beside) {
        (name, Some(beside)) if name == RUNTIMES[0] => Some(beside.clone()),
        (name, _) => in_path(name),
    }));
    paths.dedup();
    join_all(paths.into_iter().map(|path| tool(path, "--version"))).await
}

async fn tool_in_path(name: &str) -> Option<Tool> {
    Some(tool(in_path(name)?, "--version").await)
}

async fn installed(shim: Option<PathBuf>) -> Option<Tool> {
    Some(tool(shim?, "-v").await)
}

async fn tool(path: PathBuf, flag: &str) -> Tool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (version, error) = match output(Command::new(&path).arg(flag)).await {
        Ok(text) => (version_in(&text), String::new()),
        Err(e) => (String::new(), e),
    };
    Tool { name, path, version, error }
}

/// The first word that begins like a number.
fn version_in(text: &str) -> String {
    let word = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    word.unwrap_or_default().to_owned()
}

/// What a program prints, if it succeeds in time.
async fn output(command: &mut Command) -> Result<String, String> {
    command.stdin(Stdio::null()).env_remove("NOTIFY_SOCKET").kill_on_drop(true);
    match tokio::time::timeout(DEADLINE, command.output()).await {
        Err(_) => Err(format!("it did not end within {DEADLINE:?}")),
        Ok(Err(e)) => Err(e.to_string()),
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => {
            let words = String::from_utf8_lossy(&output.stderr);
            Err(format!("{}: {}", output.status, words.lines().next().unwrap_or_default()))
        }
    }
}

/// The units that matter, if systemd runs this machine, as sd_booted(3) tells.
async fn units() -> Option<Vec<Unit>> {
    if !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    // A systemd that says nothing has no unit that is as it should be.
    let text = output(Command::new("systemctl").arg("show").arg(PROPERTIES).args(UNITS)).await.unwrap_or_default();
    Some(parse_units(&text))
}

/// Reads `systemctl show`: a block of `KEY=VALUE` for each unit, with an empty line between them.
fn parse_units(text: &str) -> Vec<Unit> {
    let unit = |block: &str| {
        let mut unit = Unit::default();
        for (key, value) in block.lines().filter_map(|line| line.split_once('=')) {
            match key {
                "Id" => value.clone_into(&mut unit.name),
                "LoadState" => value.clone_into(&mut unit.load),
                "ActiveState" => value.clone_into(&mut unit.active),
                "UnitFileState" => value.clone_into(&mut unit.file),
                "KillMode" => value.clone_into(&mut unit.kill_mode),
                "DropInPaths" => unit.drop_ins = value.split_whitespace().map(str::to_owned).collect(),
                _ => {}
            }
        }
        unit
    };
    text.split("\n\n").map(unit).filter(|unit| !unit.name.is_empty()).collect()
}

fn daemon(answer: Result<pb::InfoResponse, String>, bad_settings: Option<String>) -> Daemon {
    match answer {
        Err(silent) => Daemon {
            silent: match bad_settings {
                None => silent,
                Some(why) => format!("{silent}; and {why}"),
            },
            may_exceed: may_exceed(Process::myself().ok().as_ref()),
            ..Daemon::default()
        },
        Ok(info) => {
            let process = info.pid.try_into().ok().and_then(|pid| Process::new(pid).ok());
            let groups =
                process.as_ref().and_then(|process| process.cgroups().ok()).map(|all| all.0).unwrap_or_default();
            Daemon {
                silent: String::new(),
                descriptors: process.as_ref().and_then(descriptors),
                pids: tasks(&groups),
                may_exceed: may_exceed(process.as_ref()),
                unit: unit_of(&groups),
                restore: info.restore.as_ref().map(restore),
                version: info.version,
                pid: info.pid,
            }
        }
    }
}

/// Descriptors of a process: those that are open, and the soft limit.
fn descriptors(process: &Process) -> Option<(u64, u64)> {
    let limit = match process.limits().ok()?.max_open_files.soft_limit {
        LimitValue::Unlimited => u64::MAX,
        LimitValue::Value(limit) => limit,
    };
    Some((process.fd_count().ok()? as u64, limit))
}

fn may_exceed(process: Option<&Process>) -> bool {
    let status = process.and_then(|process| process.status().ok());
    status.is_some_and(|status| status.capeff & (1 << CAP_SYS_RESOURCE) != 0)
}

/// The directory of a process in the hierarchy that has `controller`.
fn group_of<'a>(groups: &'a [ProcessCGroup], controller: &str) -> Option<&'a str> {
    let found = groups.iter().find(|group| group.controllers.iter().any(|one| one == controller));
    found.map(|group| group.pathname.as_str())
}

/// The directory of a process in the hierarchy of version 2, which alone has the number 0.
fn unified_group(groups: &[ProcessCGroup]) -> Option<&str> {
    groups.iter().find(|group| group.hierarchy == 0).map(|group| group.pathname.as_str())
}

/// The service of systemd's that a process is in.
fn unit_of(groups: &[ProcessCGroup]) -> Option<String> {
    let path = group_of(groups, "name=systemd").or_else(|| unified_group(groups))?;
    path.rsplit('/').find(|part| part.ends_with(".service")).map(str::to_owned)
}

/// How many tasks a control group has, and may have; `None` if it may have any number.
fn tasks(groups: &[ProcessCGroup]) -> Option<(u64, u64)> {
    let v1 = group_of(groups, "pids").map(|path| format!("/sys/fs/cgroup/pids{path}"));
    let directory = v1.or_else(|| Some(format!("/sys/fs/cgroup{}", unified_group(groups)?)))?;
    let number = |name: &str| fs::read_to_string(format!("{directory}/{name}")).ok()?.trim().parse::<u64>().ok();
    number("pids.current").zip(number("pids.max"))
}

fn restore(report: &pb::RestoreReport) -> RestoreReport {
    let one = |c: &pb::Restored| {
        Some(Restored {
            namespace: c.namespace.clone(),
            id: c.id.clone(),
            name: c.name.clone(),
            // One that a newer supervisor has invented is for a newer doctor.
            class: Class::ALL.into_iter().find(|class| class.as_str() == c.class)?,
            detail: c.detail.clone(),
            pid: c.pid,
        })
    };
    RestoreReport {
        // Nobody here asks for more than its end.
        scanned: report.at_unix_ns != 0,
        at_unix_ns: report.at_unix_ns,
        took: Duration::from_nanos(report.took_ns),
        containers: report.containers.iter().filter_map(one).collect(),
    }
}

/// What is wrong with the shims' settings file, or where it says that output is kept, with the floor there.
fn shim_settings(paths: &Paths) -> (Option<String>, Option<(PathBuf, u32)>) {
    match OutputSettings::load_below(&paths.state) {
        Ok(settings) => (None, Some((settings.spill_dir, settings.free_floor_percent.into()))),
        Err(e) => (Some(chain(&e)), None),
    }
}

fn spill((directory, floor_percent): (PathBuf, u32)) -> Spill {
    // It is made when it is needed; until then its parent says what will be free there.
    let there = directory.ancestors().find(|path| path.exists());
    #[allow(clippy::cast_precision_loss)] // for people
    let percent = |free: u64, all: u64| if all == 0 { 0.0 } else { free as f64 / all as f64 * 100.0 };
    let free_percent = there.and_then(|path| statvfs(path).ok()).map(|fs| percent(fs.blocks_available(), fs.blocks()));
    Spill { directory, free_percent, floor_percent }
}

/// A shim that is to be asked.
struct Running {
    pid: u32,
    start_time: u64,
    containers: Vec<String>,
    foreign: bool,
}

/// Asks all shims at the same time: what they are, and where they keep output.
async fn shims(found: &Findings) -> (Vec<Shim>, Vec<(PathBuf, u32)>) {
    let asked = join_all(running(found).into_iter().map(async |(address, shim)| {
        let (answer, place) = ask(&address).await;
        let now = proc::stat(shim.pid);
        (shim.told(answer, now), place)
    }))
    .await;
    let (shims, places): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
    (shims.into_iter().flatten().collect(), places.into_iter().flatten().collect())
}

impl Running {
    /// What there is to tell once it was asked. `None` for one that has ended meanwhile: whatever is advised about its pid
    /// would be done to another process.
    fn told(self, answer: Answer, now: Option<Stat>) -> Option<Shim> {
        let Self { pid, start_time, containers, foreign } = self;
        let now = now.filter(|_| identify(start_time, now) == Identity::Live)?;
        Some(Shim { pid, state: char::from(now.state), containers, foreign, answer })
    }
}

/// The shims that run, by their addresses.
fn running(found: &Findings) -> BTreeMap<String, Running> {
    let mut shims: BTreeMap<String, Running> = BTreeMap::new();
    let mut add = |address: &str, (pid, start_time): (u32, u64), container: String, foreign: bool| {
        if proc::is_live(pid, start_time) {
            let new = || Running { pid, start_time, containers: Vec::new(), foreign };
            shims.entry(address.to_owned()).or_insert_with(new).containers.push(container);
        }
    };
    for (id, own) in &found.own {
        if let Some(traces) = &own.shim
            && let Some(process) = traces.process
        {
            add(&traces.address, process, format!("{}/{id}", crate::paths::NAMESPACE), false);
        }
    }
    for record in &found.foreign {
        let foreign = matches!(record.manager, Manager::Containerd { .. });
        let process = (record.shim.pid, record.shim.start_time);
        add(&record.shim.address, process, format!("{}/{}", record.namespace, record.id), foreign);
    }
    shims
}

async fn ask(address: &str) -> (Answer, Option<(PathBuf, u32)>) {
    let question = |client: ShimClient| async move {
        let version = client.info(QUICK).await?.version;
        // Where output is kept matters less than the version: an older shim may not know the question.
        let place = client.output(false, QUICK).await.ok().filter(|output| !output.spill_dir.is_empty());
        Ok((version, place.map(|output| (PathBuf::from(output.spill_dir), output.free_floor_percent))))
    };
    match ShimClient::ask(address, "", "Info", QUICK, question).await {
        Ok((version, place)) => (Answer::Version(version), place),
        Err(e) if e.is_silence() => (Answer::Silence, None),
        Err(e) => (Answer::Error(chain(&e)), None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use procfs::{FromBufRead, ProcessCGroups};

    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        for (text, version) in [
            ("runc version 1.1.5+ds1\ncommit: 1.1.5\nspec: 1.0.2-dev", "1.1.5+ds1"),
            ("crun version 1.14.3\n", "1.14.3"),
            ("holdfast-oci 0.1.0\nspec: 1.2.0", "0.1.0"),
            ("containerd-shim-holdfast-v2:\n  Version:  0.1.0\n  Revision: unknown", "0.1.0"),
            ("Version: 3.17.1", "3.17.1"),
            ("nothing", ""),
        ] {
            assert_eq!(version_in(text), version);
        }
    }

    #[test]
    fn a_shim_that_ended_while_it_was_asked_is_not_told_of() {
        let asked = || Running { pid: 7, start_time: 8, containers: vec!["default/abc".into()], foreign: false };
        let told =
            |now| asked().told(Answer::Error("the connection broke".into()), now).map(|shim| (shim.pid, shim.state));
        let stat = |state, start_time| Some(Stat { state, start_time });
        assert_eq!(told(stat(b'S', 8)), Some((7, 'S')));
        for ended in [None, stat(b'Z', 8), stat(b'S', 9)] {
            assert_eq!(told(ended), None, "{ended:?}");
        }
    }

    #[test]
    fn units_are_read_block_by_block() {
        let text = "Id=holdfastd.service\nLoadState=loaded\nActiveState=active\nUnitFileState=enabled\nKillMode=process\n\
                    DropInPaths=/a.conf /b.conf\n\nActiveState=inactive\nLoadState=not-found\nId=x.service\nDropInPaths=\n";
        let units = parse_units(text);
        let expected = Unit {
            name: "holdfastd.service".into(),
            load: "loaded".into(),
            active: "active".into(),
            file: "enabled".into(),
            kill_mode: "process".into(),
            drop_ins: vec!["/a.conf".into(), "/b.conf".into()],
        };
        assert_eq!(units[0], expected);
        assert_eq!((units.len(), units[1].name.as_str(), units[1].load.as_str()), (2, "x.service", "not-found"));
        assert_eq!(parse_units(""), []);
    }

    #[test]
    fn the_unit_and_the_group_of_a_process_are_found() {
        let groups = |text: &str| ProcessCGroups::from_buf_read(text.as_bytes()).unwrap().0;
        let hybrid = groups(
            "12:pids:/system.slice/holdfastd.service\n4:cpu,cpuacct:/\n1:name=systemd:/system.slice/holdfastd.service\n0::/x\n",
        );
        assert_eq!(unit_of(&hybrid).as_deref(), Some("holdfastd.service"));
        assert_eq!(group_of(&hybrid, "pids"), Some("/system.slice/holdfastd.service"));
        assert_eq!((group_of(&hybrid, "cpuacct"), unified_group(&hybrid)), (Some("/"), Some("/x")));
        assert_eq!(unit_of(&groups("0::/system.slice/a.service/sub\n")).as_deref(), Some("a.service"));
        assert_eq!(unit_of(&groups("0::/user.slice/session-1.scope\n")), None);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let kernel = kernel();
        assert!(!kernel.release.is_empty() && kernel.processes > 0 && kernel.pid_max.is_some(), "{kernel:?}");
        let (open, limit) = descriptors(&Process::myself().unwrap()).unwrap();
        assert!(open > 2 && limit >= open, "{open} {limit}");
    }
}
