//! The judgement: facts in, findings out. Pure.

use super::{Answer, CgroupMode, Daemon, Facts, Finding, Kernel, Level, Shim, Spill, Stale, Tool, Unit};
use crate::report::Class;

/// The oldest kernel that is supported, major and minor.
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// inotify instances that others of the same user may need; each shim needs one.
const INOTIFY_OTHERS: u64 = 64;

/// What a shim's two streams take of a user's pipe pages at most: a mebibyte each, in pages of 4 KiB.
const PIPE_PAGES: u64 = 512;

/// The controllers without which limits cannot be set.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The units of holdfast itself.
const UNITS: [&str; 2] = ["holdfastd.service", "holdfast-shutdown.service"];

/// The unit of containerd.
const CONTAINERD: &str = "containerd.service";

fn finding(check: &'static str, level: Level, message: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check, level, message: message.into(), advice: advice.into() }
}

fn ok(check: &'static str, message: impl Into<String>) -> Finding {
    finding(check, Level::Ok, message, "")
}

/// Judges everything; what is as it should be is a finding, too.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    if !facts.root {
        let message = "this is not root, who alone can ask shims and read their files: the rest is incomplete";
        all.push(finding("privileges", Level::Fail, message, "sudo holdfast doctor"));
    }
    all.extend(kernel(&facts.kernel));
    all.push(inotify(facts.kernel.inotify_instances, facts.shims.len() as u64));
    all.push(pipes(facts.kernel.pipe_pages, facts.daemon.may_exceed, facts.shims.len() as u64));
    all.push(processes(&facts.kernel));
    all.push(cgroup(facts));
    all.push(runtimes(&facts.runtimes));
    all.push(criu(facts.criu.as_ref()));
    all.push(shim(facts.shim.as_ref()));
    if let Some(problem) = &facts.shim_settings {
        let message = format!("{problem}: no new container can be started");
        all.push(finding("shim-settings", Level::Fail, message, "edit the file; a shim reads it when it starts"));
    }
    all.push(daemon(&facts.daemon, facts.units.as_deref()));
    all.extend(descriptors(&facts.daemon));
    all.extend(pids(&facts.daemon));
    all.extend(restore(&facts.daemon));
    all.extend(facts.spill.iter().map(spill));
    all.extend(units(facts));
    all.extend(shims(&facts.shims, facts.shim.as_ref()));
    all.extend(stale(&facts.stale));
    all
}

fn kernel(kernel: &Kernel) -> [Finding; 3] {
    let release = &kernel.release;
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    let age = match version {
        Some(version) if version >= OLDEST_KERNEL => ok("kernel", format!("Linux {release}")),
        Some(_) => finding("kernel", Level::Fail, format!("Linux {release} is older than 5.10"), "upgrade the kernel"),
        None => finding("kernel", Level::Warn, format!("{release:?} is no version that is known here"), "uname -r"),
    };
    let pidfd = if kernel.pidfd {
        ok("pidfd", "processes can be watched and signalled without confusing them with others")
    } else {
        finding(
            "pidfd",
            Level::Fail,
            "pidfd_open(2) does not work: a seccomp filter, or an old kernel",
            "run holdfast outside of the sandbox, or upgrade the kernel to 5.10 or newer",
        )
    };
    // An older kernel is no mistake: this is said for who wonders about a status of 255.
    let exit_info = if kernel.exit_info {
        ok("pidfd-exit", "the exit status of a process can be known although its shim is dead")
    } else {
        ok(
            "pidfd-exit",
            "the exit status of a process whose shim is dead is lost (255): this kernel is older than 6.15",
        )
    };
    [age, pidfd, exit_info]
}

fn inotify(limit: Option<u64>, shims: u64) -> Finding {
    let Some(limit) = limit else {
        return finding("inotify", Level::Warn, "fs.inotify.max_user_instances cannot be read", "mount /proc");
    };
    let message = format!("{limit} inotify instances for a user, {shims} shims need one each");
    if shims + INOTIFY_OTHERS <= limit {
        return ok("inotify", message);
    }
    let enough = (shims * 2).max(1024).next_power_of_two();
    let advice = format!(
        "sysctl -w fs.inotify.max_user_instances={enough}, and the same in /etc/sysctl.d/90-holdfast.conf for the next boot"
    );
    finding("inotify", Level::Warn, message + ": readers that return may be noticed late", advice)
}

fn pipes(pages: Option<u64>, may_exceed: bool, shims: u64) -> Finding {
    let needed = shims.saturating_mul(PIPE_PAGES);
    match pages {
        _ if may_exceed => ok("pipes", "shims may enlarge their pipes beyond a user's limit (CAP_SYS_RESOURCE)"),
        Some(0) => ok("pipes", "no limit of pipe pages for a user"),
        Some(pages) if needed <= pages => {
            ok("pipes", format!("{pages} pages for all pipes of a user, {needed} are wanted"))
        }
        pages => {
            let pages = pages.map_or_else(|| "an unknown number of".to_owned(), |n| n.to_string());
            finding(
                "pipes",
                Level::Warn,
                format!("{pages} pages for all pipes of a user, {needed} are wanted: output may be slow"),
                "sysctl -w fs.pipe-user-pages-soft=0",
            )
        }
    }
}

fn processes(kernel: &Kernel) -> Finding {
    let Some(limit) = kernel.pid_max else {
        return finding("pid-max", Level::Warn, "kernel.pid_max cannot be read", "mount /proc");
    };
    let message = format!("{} processes, {limit} process ids", kernel.processes);
    // Threads have ids, too.
    if kernel.processes.saturating_mul(4) < limit {
        return ok("pid-max", message);
    }
    finding("pid-max", Level::Warn, message + ": they run short", "sysctl -w kernel.pid_max=4194304")
}

fn cgroup(facts: &Facts) -> Finding {
    let cgroup = &facts.cgroup;
    if cgroup.mode == CgroupMode::None {
        let message = "no control groups at /sys/fs/cgroup: containers cannot be made";
        return finding("cgroup", Level::Fail, message, "mount -t cgroup2 none /sys/fs/cgroup");
    }
    let missing: Vec<&str> =
        CONTROLLERS.into_iter().filter(|wanted| !cgroup.controllers.iter().any(|c| c == wanted)).collect();
    let message = format!("{}, controllers {}", cgroup.mode.as_str(), cgroup.controllers.join(" "));
    if missing.is_empty() {
        return ok("cgroup", message);
    }
    let advice = match cgroup.mode {
        CgroupMode::Unified => format!("echo +{} >/sys/fs/cgroup/cgroup.subtree_control", missing.join(" +")),
        _ => format!("remove cgroup_disable={} from the kernel's command line", missing.join(",")),
    };
    let message = format!("{message}: without {}, limits cannot be set or are not kept", missing.join(" and "));
    finding("cgroup", Level::Warn, message, advice)
}

fn runtimes(tools: &[Tool]) -> Finding {
    let list: Vec<String> = tools.iter().map(describe).collect();
    if tools.iter().any(|tool| tool.error.is_empty()) {
        return ok("runtimes", list.join("; "));
    }
    let message = if list.is_empty() { "no OCI runtime is found".to_owned() } else { list.join("; ") };
    finding(
        "runtimes",
        Level::Fail,
        message + ": containers cannot be made",
        "install holdfast-oci beside the shim, or runc or crun into PATH",
    )
}

fn describe(tool: &Tool) -> String {
    let path = tool.path.display();
    if tool.error.is_empty() {
        format!("{} {} ({path})", tool.name, tool.version).replace("  ", " ")
    } else {
        format!("{} ({path}) cannot be run: {}", tool.name, tool.error)
    }
}

fn criu(tool: Option<&Tool>) -> Finding {
    match tool {
        None => ok("criu", "not installed: containers cannot be checkpointed"),
        Some(tool) if tool.error.is_empty() => ok("criu", describe(tool)),
        Some(tool) => finding("criu", Level::Warn, describe(tool), "criu check"),
    }
}

fn shim(tool: Option<&Tool>) -> Finding {
    match tool {
        Some(tool) if tool.error.is_empty() => ok("shim", describe(tool)),
        Some(tool) => finding("shim", Level::Fail, describe(tool), format!("{} -v", tool.path.display())),
        None => finding(
            "shim",
            Level::Fail,
            format!("there is no {}: new containers cannot be made", crate::config::SHIM),
            "install it beside holdfastd or into PATH, or name it: shim = \"/PATH\" in /etc/holdfast/holdfastd.toml",
        ),
    }
}

fn daemon(daemon: &Daemon, units: Option<&[Unit]>) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    if !daemon.silent.is_empty() {
        let start = if units.is_some() { "systemctl start holdfastd" } else { "holdfastd" };
        let message = format!("{}: what runs goes on, but nothing is started, restarted or stopped", daemon.silent);
        return finding("holdfastd", Level::Fail, message, start);
    }
    let message = format!("holdfastd {} answers (pid {})", daemon.version, daemon.pid);
    if daemon.version == ours {
        return ok("holdfastd", message);
    }
    let restart = if daemon.unit.is_some() { "systemctl restart holdfastd" } else { "restart holdfastd" };
    finding("holdfastd", Level::Warn, format!("{message}, this is holdfast {ours}"), restart)
}

fn descriptors(daemon: &Daemon) -> Option<Finding> {
    let (open, limit) = daemon.descriptors?;
    let message = format!("holdfastd has {open} of {limit} descriptors open");
    Some(if open.saturating_mul(2) < limit {
        ok("descriptors", message)
    } else {
        let advice = "systemctl edit holdfastd: [Service] LimitNOFILE=1048576; then systemctl restart holdfastd";
        finding("descriptors", Level::Warn, message + ": they run short", advice)
    })
}

fn pids(daemon: &Daemon) -> Option<Finding> {
    let (running, limit) = daemon.pids?;
    let message = format!("{running} of {limit} tasks in holdfastd's control group, the shims' among them");
    Some(if running.saturating_mul(5) < limit.saturating_mul(4) {
        ok("tasks", message)
    } else {
        let advice = "systemctl edit holdfastd: [Service] TasksMax=infinity; then systemctl daemon-reload";
        finding("tasks", Level::Warn, message + ": they run short", advice)
    })
}

/// What the last start found; of containers that went on as before there is one line for all.
fn restore(daemon: &Daemon) -> Vec<Finding> {
    let Some(report) = &daemon.restore else { return Vec::new() };
    let judged = |one: &crate::report::Restored| {
        let (level, advice) = match one.class {
            Class::Reattached | Class::ExitedWhileAway | Class::AtRest | Class::Foreign => return None,
            // Whether it is still so is found out anew, from its shim and its record.
            Class::Adopted | Class::Unresponsive | Class::Restoring => return None,
            Class::Lost => (Level::Warn, format!("holdfast start {}", one.id)),
            Class::Unreadable => (Level::Fail, format!("repair or remove what is named; holdfast rm {}", one.id)),
            Class::Incompatible => (Level::Fail, "upgrade holdfastd to the version that wrote it".to_owned()),
        };
        let name = if one.name.is_empty() { &one.id } else { &one.name };
        Some(finding("restore", level, format!("{name} was {}: {}", one.class, one.detail), advice))
    };
    let mut all: Vec<Finding> = report.containers.iter().filter_map(judged).collect();
    let message = match report.at_unix_ns {
        0 if report.containers.is_empty() => "under way: what is on disk is being read".to_owned(),
        0 => format!("under way: {}", report.summary()),
        _ => format!("at the last start: {}", report.summary()),
    };
    all.insert(0, ok("restore", message));
    all
}

fn spill(place: &Spill) -> Finding {
    let directory = place.directory.display();
    let Some(free) = place.free_percent else {
        let message = format!("how much is free at {directory} cannot be told");
        return finding("spill", Level::Warn, message, format!("ls -ld {directory}"));
    };
    let message = format!("{free:.0} % are free at {directory}, the floor is {} %", place.floor_percent);
    if free > f64::from(place.floor_percent) {
        return ok("spill", message);
    }
    let message = message + ": containers whose output nobody reads will wait";
    finding("spill", Level::Warn, message, format!("make room: du -xh --max-depth=2 {directory}"))
}

fn units(facts: &Facts) -> Vec<Finding> {
    let Some(units) = &facts.units else {
        return vec![ok("systemd", "this machine is not run by systemd: no units to look at")];
    };
    let known = |name: &str| units.iter().find(|unit| unit.name == name);
    let mut all: Vec<Finding> = UNITS.into_iter().map(|name| unit(name, known(name))).collect();
    if let Some(name) = &facts.daemon.unit {
        all.extend(known(name).and_then(kill_mode));
    }
    if let Some(containerd) = known(CONTAINERD).filter(|unit| unit.load == "loaded") {
        all.extend(kill_mode(containerd));
        let needed = facts.shims.iter().any(|shim| shim.foreign);
        all.extend(drop_in(containerd, needed));
    }
    all
}

fn unit(name: &'static str, unit: Option<&Unit>) -> Finding {
    let enable = format!("systemctl enable --now {name}");
    let Some(unit) = unit.filter(|unit| unit.load == "loaded") else {
        let message =
            format!("{name} is not installed: containers are not started at boot, nor ended in order at shutdown");
        return finding("units", Level::Warn, message, format!("install holdfast's units; then {enable}"));
    };
    let message = format!("{name} is {} and {}", unit.active, if unit.file.is_empty() { "static" } else { &unit.file });
    match (unit.active.as_str(), unit.file.as_str()) {
        (
            "active" | "activating" | "reloading",
            "enabled" | "static" | "linked" | "alias" | "indirect" | "generated",
        ) => ok("units", message),
        ("failed", _) => finding("units", Level::Fail, message, format!("systemctl status {name}")),
        _ => finding("units", Level::Warn, message, enable),
    }
}

fn kill_mode(unit: &Unit) -> Option<Finding> {
    let name = &unit.name;
    Some(match unit.kill_mode.as_str() {
        "" => return None,
        mode @ ("process" | "none") => ok("kill-mode", format!("KillMode={mode} of {name}: shims outlive it")),
        mode => finding(
            "kill-mode",
            Level::Fail,
            format!("KillMode={mode} of {name}: when it stops, systemd kills all shims that it has started"),
            format!("systemctl edit {name}: [Service] KillMode=process; then systemctl daemon-reload"),
        ),
    })
}

fn drop_in(unit: &Unit, needed: bool) -> Option<Finding> {
    let name = &unit.name;
    if unit.drop_ins.iter().any(|path| path.contains("holdfast")) {
        return Some(ok("containerd", format!("{name} has holdfast's drop-in")));
    }
    needed.then(|| {
        let message =
            format!("{name} runs holdfast's shims without holdfast's drop-in: at shutdown they are not waited for");
        let advice = format!("install systemd/{name}.d of holdfast into /etc/systemd/system; systemctl daemon-reload");
        finding("containerd", Level::Warn, message, advice)
    })
}

fn shims(shims: &[Shim], installed: Option<&Tool>) -> Vec<Finding> {
    let mut all = Vec::new();
    let mut healthy = 0;
    for shim in shims {
        let of = format!("the shim {} of {}", shim.pid, shim.containers.join(", "));
        match &shim.answer {
            Answer::Silence => all.push(finding(
                "shims",
                Level::Fail,
                format!("{of} does not answer (state {}): its containers run, but cannot be managed", shim.state),
                silent(shim),
            )),
            Answer::Error(e) => {
                let advice = format!("cat /proc/{0}/status; kill -9 {0}, to have it cleaned up after", shim.pid);
                all.push(finding("shims", Level::Fail, format!("{of} answers with an error: {e}"), advice));
            }
            Answer::Version(version) => match installed.filter(|tool| !tool.version.is_empty()) {
                Some(tool) if tool.version != *version => {
                    let message =
                        format!("{of} is version {version}, installed is {}: it goes on as it is", tool.version);
                    let advice = match shim.containers.as_slice() {
                        [one] if !shim.foreign => {
                            let id = one.rsplit('/').next().unwrap_or_default();
                            format!("when it suits: holdfast stop {id}; holdfast start {id}")
                        }
                        _ => "when it suits, have its manager make its containers anew".to_owned(),
                    };
                    all.push(finding("shim-version", Level::Warn, message, advice));
                }
                _ => healthy += 1,
            },
        }
    }
    all.insert(0, ok("shims", format!("{healthy} of {} shims answer and are of the installed version", shims.len())));
    all
}

fn silent(shim: &Shim) -> String {
    match shim.state {
        'T' | 't' => format!("kill -CONT {}", shim.pid),
        _ => format!("cat /proc/{0}/stack; kill -9 {0}, if it stays so: its manager cleans up after it", shim.pid),
    }
}

fn stale(stale: &[Stale]) -> Vec<Finding> {
    if stale.is_empty() {
        return vec![ok("stale-files", "no file of a container or shim that is gone")];
    }
    stale.iter().map(|one| finding("stale-files", Level::Warn, one.message(), one.advice())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::report::{RestoreReport, Restored};

    fn tool(name: &str, error: &str) -> Tool {
        Tool { name: name.into(), path: format!("/bin/{name}").into(), version: "0.1.0".into(), error: error.into() }
    }

    /// A machine on which all is well.
    fn sound() -> Facts {
        Facts {
            root: true,
            kernel: Kernel {
                release: "6.18.2-amd64".into(),
                pidfd: true,
                exit_info: true,
                inotify_instances: Some(128),
                pipe_pages: Some(16384),
                pid_max: Some(4_194_304),
                processes: 200,
            },
            cgroup: super::super::Cgroup {
                mode: CgroupMode::Unified,
                controllers: ["cpu", "io", "memory", "pids"].map(str::to_owned).to_vec(),
            },
            runtimes: vec![tool("holdfast-oci", "")],
            criu: None,
            shim: Some(tool("containerd-shim-holdfast-v2", "")),
            daemon: Daemon {
                version: env!("CARGO_PKG_VERSION").into(),
                pid: 5,
                restore: Some(RestoreReport::default()),
                descriptors: Some((20, 1024)),
                pids: Some((10, 4915)),
                may_exceed: true,
                unit: Some("holdfastd.service".into()),
                ..Daemon::default()
            },
            shim_settings: None,
            spill: vec![Spill { directory: "/s".into(), free_percent: Some(50.0), floor_percent: 10 }],
            units: Some(vec![
                service("holdfastd.service"),
                service("holdfast-shutdown.service"),
                Unit {
                    drop_ins: vec!["/etc/systemd/system/containerd.service.d/holdfast.conf".into()],
                    ..service("containerd.service")
                },
            ]),
            shims: vec![running(Answer::Version("0.1.0".into()))],
            stale: Vec::new(),
        }
    }

    fn service(name: &str) -> Unit {
        Unit {
            name: name.into(),
            load: "loaded".into(),
            active: "active".into(),
            file: "enabled".into(),
            kill_mode: "process".into(),
            drop_ins: Vec::new(),
        }
    }

    fn running(answer: Answer) -> Shim {
        Shim { pid: 7, state: 'S', containers: vec!["default/abc".into()], foreign: false, answer }
    }

    /// What needs attention, as `check: level`.
    fn troubles(facts: &Facts) -> Vec<String> {
        let all = examine(facts);
        assert!(all.iter().all(|f| !f.message.is_empty()));
        let bad: Vec<&Finding> = all.iter().filter(|f| f.level != Level::Ok).collect();
        assert!(bad.iter().all(|f| !f.advice.is_empty()), "who is warned wants to know what to do: {bad:?}");
        bad.iter().map(|f| format!("{}: {}", f.check, f.level.as_str())).collect()
    }

    /// The one trouble of a machine that was sound before the change.
    #[track_caller]
    fn trouble(change: impl FnOnce(&mut Facts)) -> Finding {
        let mut facts = sound();
        change(&mut facts);
        let bad: Vec<Finding> = examine(&facts).into_iter().filter(|f| f.level != Level::Ok).collect();
        assert_eq!(bad.len(), 1, "{bad:#?}");
        assert!(!bad[0].advice.is_empty());
        bad[0].clone()
    }

    #[test]
    fn a_sound_machine_needs_no_attention() {
        assert_eq!(troubles(&sound()), Vec::<String>::new());
    }

    #[test]
    fn an_old_kernel_fails_and_a_strange_one_warns() {
        for (release, level) in [("5.4.0-42-generic", Level::Fail), ("4.19", Level::Fail), ("odd", Level::Warn)] {
            let found = trouble(|f| f.kernel.release = release.into());
            assert_eq!((found.check, found.level), ("kernel", level), "{release}");
        }
        for release in ["5.10.0", "5.15-rc1", "6.1.0+", "10.0"] {
            let mut facts = sound();
            facts.kernel.release = release.into();
            assert_eq!(troubles(&facts), Vec::<String>::new(), "{release}");
        }
    }

    #[test]
    fn what_is_missing_in_the_kernel_is_told() {
        assert_eq!(trouble(|f| f.kernel.pidfd = false).check, "pidfd");
        let mut facts = sound();
        facts.kernel.exit_info = false;
        assert_eq!(troubles(&facts), Vec::<String>::new(), "an older kernel is nobody's mistake");
        assert!(examine(&facts).iter().any(|f| f.check == "pidfd-exit" && f.message.contains("255")));
    }

    #[test]
    fn many_shims_need_many_inotify_instances() {
        let shims = |n| std::iter::repeat_n(running(Answer::Version("0.1.0".into())), n).collect();
        let found = trouble(|f| f.shims = shims(100));
        assert!(found.check == "inotify" && found.advice.contains("max_user_instances=1024"), "{found:?}");
        let found = trouble(|f| f.shims = shims(3000));
        assert!(found.advice.contains("max_user_instances=8192"), "{found:?}");
    }

    #[test]
    fn limits_that_run_short_are_told() {
        assert_eq!(trouble(|f| f.daemon.descriptors = Some((600, 1024))).check, "descriptors");
        assert_eq!(trouble(|f| f.daemon.pids = Some((4000, 4915))).check, "tasks");
        assert_eq!(trouble(|f| f.kernel.processes = 2_000_000).check, "pid-max");
        let found = trouble(|f| {
            f.daemon.may_exceed = false;
            f.kernel.pipe_pages = Some(511);
        });
        assert_eq!(found.check, "pipes");
        let mut facts = sound();
        facts.daemon.may_exceed = false;
        assert_eq!(troubles(&facts), Vec::<String>::new(), "there is room enough");
    }

    #[test]
    fn control_groups_must_have_what_limits_need() {
        assert_eq!(trouble(|f| f.cgroup.mode = CgroupMode::None).level, Level::Fail);
        let found = trouble(|f| f.cgroup.controllers = vec!["cpu".into()]);
        assert!(found.advice.contains("+memory +pids"), "{found:?}");
    }

    #[test]
    fn one_runtime_that_runs_is_enough() {
        let mut facts = sound();
        facts.runtimes = vec![tool("runc", "Exec format error"), tool("crun", "")];
        assert_eq!(troubles(&facts), Vec::<String>::new());
        assert_eq!(trouble(|f| f.runtimes = vec![tool("runc", "Exec format error")]).check, "runtimes");
        assert_eq!(trouble(|f| f.runtimes.clear()).level, Level::Fail);
        assert_eq!(trouble(|f| f.criu = Some(tool("criu", "no"))).check, "criu");
        assert_eq!(trouble(|f| f.shim = None).check, "shim");
    }

    #[test]
    fn a_dead_or_different_supervisor_is_told() {
        let found = trouble(|f| {
            f.daemon = Daemon { silent: "it does not answer".into(), may_exceed: true, ..Daemon::default() }
        });
        assert_eq!((found.level, found.advice.as_str()), (Level::Fail, "systemctl start holdfastd"));
        assert_eq!(trouble(|f| f.daemon.version = "0.0.9".into()).level, Level::Warn);
    }

    #[test]
    fn a_full_disk_is_told_against_the_floor() {
        assert_eq!(trouble(|f| f.spill[0].free_percent = Some(10.0)).check, "spill");
        assert_eq!(trouble(|f| f.spill[0].free_percent = None).level, Level::Warn);
        assert_eq!(trouble(|f| f.shim_settings = Some("/etc/x: bad".into())).level, Level::Fail);
    }

    #[test]
    fn a_unit_that_would_kill_the_shims_fails() {
        let units = |f: &mut Facts, n: usize| f.units.as_mut().unwrap()[n].kill_mode = "control-group".into();
        for n in [0, 2] {
            let found = trouble(|f| units(f, n));
            assert_eq!((found.check, found.level), ("kill-mode", Level::Fail));
        }
    }

    #[test]
    fn units_must_be_there_and_active() {
        assert_eq!(trouble(|f| drop(f.units.as_mut().unwrap().remove(1))).check, "units");
        assert_eq!(trouble(|f| f.units.as_mut().unwrap()[0].file = "disabled".into()).level, Level::Warn);
        assert_eq!(trouble(|f| f.units.as_mut().unwrap()[1].active = "failed".into()).level, Level::Fail);
        let found = trouble(|f| {
            f.units.as_mut().unwrap()[2].drop_ins.clear();
            f.shims[0].foreign = true;
        });
        assert_eq!(found.check, "containerd");
        let mut facts = sound();
        facts.units = None;
        assert_eq!(troubles(&facts), Vec::<String>::new(), "no systemd, no units");
    }

    #[test]
    fn wedged_and_older_shims_are_told_with_what_helps() {
        let found = trouble(|f| f.shims = vec![Shim { state: 'T', ..running(Answer::Silence) }]);
        assert_eq!((found.level, found.advice.as_str()), (Level::Fail, "kill -CONT 7"));
        assert!(trouble(|f| f.shims = vec![running(Answer::Silence)]).advice.contains("kill -9 7"));
        let found = trouble(|f| f.shims = vec![running(Answer::Version("0.0.1".into()))]);
        assert_eq!((found.check, found.level), ("shim-version", Level::Warn));
        assert!(found.advice.contains("holdfast stop abc"), "{found:?}");
        assert_eq!(trouble(|f| f.shims = vec![running(Answer::Error("no".into()))]).level, Level::Fail);
    }

    #[test]
    fn what_the_last_start_found_is_told_if_it_matters() {
        let restored = |class| Restored {
            namespace: "default".into(),
            id: "abc".into(),
            name: "web".into(),
            class,
            detail: "so it is".into(),
            pid: 0,
        };
        let with = |class| {
            let mut facts = sound();
            facts.daemon.restore.as_mut().unwrap().containers = vec![restored(class)];
            troubles(&facts)
        };
        for class in Class::ALL {
            let expected: &[&str] = match class {
                Class::Lost => &["restore: warn"],
                Class::Unreadable | Class::Incompatible => &["restore: fail"],
                _ => &[],
            };
            assert_eq!(with(class), expected, "{class}");
        }
    }

    #[test]
    fn who_is_not_root_is_told_so() {
        assert_eq!(trouble(|f| f.root = false).check, "privileges");
    }
}
