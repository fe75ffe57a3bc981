//! The pass over the whole specification before anything is made: what libcontainer would ignore or get wrong, and what
//! is plainly mistaken, is refused by the name of its field.
//!
//! libcontainer ignores what it does not know. A limit or a label that silently does nothing is worse than an error, so
//! every field of the runtime specification either works, is rewritten by `normalize` so that it does, or is refused
//! here.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use libcontainer::validator::Validator;
use oci_spec::runtime::{
    Linux, LinuxDeviceType, LinuxNamespaceType, LinuxResources, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    LinuxSeccompAction, Mount, Process, Spec,
};

use crate::cgroup::Cgroup;
use crate::idmap;

/// What to do about the refusals of things that other runtimes have.
const ELSEWHERE: &str = "not supported by holdfast-oci; use runc or crun for this container";

/// Which field is refused, and why.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field}: {reason}")]
pub(crate) struct Refusal {
    field: String,
    reason: String,
}

impl Refusal {
    /// A field without which nothing can be done.
    pub(crate) fn missing(field: &str) -> Refusal {
        refuse(field, "is required")
    }
}

fn refuse(field: impl Into<String>, reason: impl Into<String>) -> Refusal {
    Refusal { field: field.into(), reason: reason.into() }
}

type Verdict = Result<(), Refusal>;

/// Refuses the field if the condition holds.
fn unless(condition: bool, field: &str, reason: &str) -> Verdict {
    if condition { Err(refuse(field, reason)) } else { Ok(()) }
}

/// Judges all that does not depend on the machine's cgroups.
///
/// # Errors
/// The first field that is refused.
pub(crate) fn spec(spec: &Spec) -> Verdict {
    let version = spec.version();
    unless(!version.starts_with("1."), "ociVersion", &format!("{version:?} is not supported, only 1.x is"))?;
    for (present, field) in [
        (spec.solaris().is_some(), "solaris"),
        (spec.windows().is_some(), "windows"),
        (spec.vm().is_some(), "vm"),
        (spec.zos().is_some(), "zos"),
    ] {
        unless(present, field, "is for another platform")?;
    }
    unless(spec.root().is_none(), "root", "is required")?;
    process(spec.process().as_ref().ok_or_else(|| Refusal::missing("process"))?)?;
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        self::mount(&format!("mounts[{index}]"), mount, spec.linux().as_ref())?;
    }
    hooks(spec)?;
    linux(spec.linux().as_ref().ok_or_else(|| Refusal::missing("linux"))?)?;
    // The crate's own rules about combinations: host namespaces, sysctls, scheduler, time offsets.
    Validator::validate_spec(spec).map_err(|error| refuse("config.json", error.to_string()))
}

/// Judges a process, of a container or of an exec.
///
/// # Errors
/// The first field that is refused.
pub(crate) fn process(process: &Process) -> Verdict {
    let args = process.args().as_deref().unwrap_or_default();
    unless(args.first().is_none_or(String::is_empty), "process.args", "must name a program")?;
    unless(!process.cwd().is_absolute(), "process.cwd", "must be an absolute path")?;
    unless(process.command_line().is_some(), "process.commandLine", "is for another platform")?;
    unless(
        process.selinux_label().as_deref().is_some_and(|label| !label.is_empty()),
        "process.selinuxLabel",
        ELSEWHERE,
    )?;
    for (index, entry) in process.env().iter().flatten().enumerate() {
        let sound = !entry.starts_with('=') && entry.contains('=') && !entry.contains('\0');
        unless(!sound, &format!("process.env[{index}]"), "must have the form NAME=value")?;
    }
    let umask = process.user().umask().unwrap_or(0);
    unless(umask > 0o777, "process.user.umask", "must be at most 0777")?;
    let adjustment = process.oom_score_adj().unwrap_or(0);
    unless(!(-1000..=1000).contains(&adjustment), "process.oomScoreAdj", "must be from -1000 to 1000")?;
    let mut seen = HashSet::new();
    for limit in process.rlimits().iter().flatten() {
        let field = format!("process.rlimits[{}]", limit.typ());
        unless(!seen.insert(limit.typ().to_string()), &field, "is given twice")?;
        unless(limit.soft() > limit.hard(), &field, "the soft limit is above the hard one")?;
    }
    apparmor(process)?;
    scheduler(process)
}

fn apparmor(process: &Process) -> Verdict {
    let wanted = process.apparmor_profile().as_deref().is_some_and(|profile| !profile.is_empty());
    let enabled = || libcontainer::apparmor::is_enabled().unwrap_or(false);
    unless(wanted && !enabled(), "process.apparmorProfile", "AppArmor is not enabled on this machine")
}

fn scheduler(process: &Process) -> Verdict {
    let Some(scheduler) = process.scheduler() else { return Ok(()) };
    unless(
        *scheduler.policy() == LinuxSchedulerPolicy::SchedIso,
        "process.scheduler.policy",
        "Linux has no SCHED_ISO",
    )?;
    let clamps = |flag: &LinuxSchedulerFlag| {
        matches!(flag, LinuxSchedulerFlag::SchedFlagUtilClampMin | LinuxSchedulerFlag::SchedFlagUtilClampMax)
    };
    unless(
        scheduler.flags().iter().flatten().any(clamps),
        "process.scheduler.flags",
        "the specification has no clamp values",
    )
}

/// Options that libcontainer understands and does something about, here or by way of `mounts`.
const MOUNT_OPTIONS: [&str; 46] = [
    "defaults",
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "async",
    "nomand",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "bind",
    "rbind",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "unbindable",
    "runbindable",
    "idmap",
    "ridmap",
    "rro",
    "rrw",
    "rnosuid",
    "rsuid",
    "rnodev",
    "rdev",
    "rnoexec",
    "rexec",
    "rnodiratime",
    "rdiratime",
    "rrelatime",
    "rnoatime",
    "ratime",
    "rstrictatime",
    "rnosymfollow",
];

/// Options that it takes for known and then drops, or would hand to a file system that cannot know them.
const REFUSED_OPTIONS: [&str; 18] = [
    "remount",
    "sync",
    "dirsync",
    "mand",
    "tmpcopyup",
    "copy-symlink",
    "nosymfollow",
    "symfollow",
    "rsymfollow",
    "silent",
    "loud",
    "iversion",
    "noiversion",
    "lazytime",
    "nolazytime",
    "acl",
    "noacl",
    "rnorelatime",
];

/// The mount options that work, in order.
pub(crate) fn mount_options() -> Vec<&'static str> {
    let mut options = MOUNT_OPTIONS.to_vec();
    options.sort_unstable();
    options
}

fn mount(field: &str, mount: &Mount, linux: Option<&Linux>) -> Verdict {
    let options = mount.options().as_deref().unwrap_or_default();
    let named = |part: &str| format!("{field} ({}){part}", mount.destination().display());
    unless(mount.destination().as_os_str().is_empty(), &format!("{field}.destination"), "is required")?;
    let bind =
        mount.typ().as_deref() == Some("bind") || options.iter().any(|option| option == "bind" || option == "rbind");
    unless(!bind && mount.typ().as_deref().is_none_or(str::is_empty), &named(".type"), "is required")?;
    unless(bind && mount.source().is_none(), &named(".source"), "is required for a bind mount")?;
    if idmap::is_wanted(mount) {
        idmapped(&named(""), mount, bind, linux)?;
    }
    for option in options {
        let known = MOUNT_OPTIONS.contains(&option.as_str());
        let where_from = named(&format!(".options {option:?}"));
        unless(REFUSED_OPTIONS.contains(&option.as_str()), &where_from, ELSEWHERE)?;
        unless(bind && !known, &where_from, "unknown mount option; a bind mount takes none of a file system")?;
        let cgroup = mount.typ().as_deref() == Some("cgroup");
        unless(cgroup && !known, &where_from, "unknown mount option")?;
    }
    Ok(())
}

/// Judges a mount that is to show other owners.
fn idmapped(field: &str, mount: &Mount, bind: bool, linux: Option<&Linux>) -> Verdict {
    let given = |mappings: &Option<Vec<_>>| mappings.iter().flatten().next().is_some();
    let (uids, gids) = (given(mount.uid_mappings()), given(mount.gid_mappings()));
    let part = |name: &str| format!("{field}.{name}");
    unless(!bind, field, "only a bind mount can be idmapped")?;
    unless(mount.destination() == Path::new("/dev"), &part("options"), "a bind mount on /dev cannot be idmapped")?;
    unless(gids && !uids, &part("uidMappings"), "is required with gidMappings")?;
    unless(uids && !gids, &part("gidMappings"), "is required with uidMappings")?;
    let mut namespaces = linux.and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten();
    let inside = namespaces.clone().any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    unless(!uids && !inside, &part("uidMappings"), "is required for an idmapped mount without a user namespace")?;
    let is_new = |path: &Option<PathBuf>| path.as_ref().is_none_or(|path| path.as_os_str().is_empty());
    let apart = namespaces.any(|n| n.typ() == LinuxNamespaceType::Mount && is_new(n.path()));
    unless(!apart, field, "an idmapped mount needs a new mount namespace")
}

fn hooks(spec: &Spec) -> Verdict {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    for (kind, list) in [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ] {
        for (index, hook) in list.iter().flatten().enumerate() {
            let field = format!("hooks.{kind}[{index}]");
            unless(!hook.path().is_absolute(), &format!("{field}.path"), "must be an absolute path")?;
            unless(
                hook.timeout().is_some_and(|seconds| seconds <= 0),
                &format!("{field}.timeout"),
                "must be positive",
            )?;
        }
    }
    Ok(())
}

fn linux(linux: &Linux) -> Verdict {
    let given = |label: &Option<String>| label.as_deref().is_some_and(|label| !label.is_empty());
    unless(given(linux.mount_label()), "linux.mountLabel", ELSEWHERE)?;
    unless(linux.intel_rdt().is_some(), "linux.intelRdt", ELSEWHERE)?;
    let personality = linux.personality().as_ref().and_then(|personality| personality.flags().as_ref());
    unless(personality.is_some_and(|flags| !flags.is_empty()), "linux.personality.flags", ELSEWHERE)?;
    let propagation = linux.rootfs_propagation().as_deref().unwrap_or_default();
    let known = ["", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"];
    unless(!known.contains(&propagation), "linux.rootfsPropagation", &format!("unknown propagation {propagation:?}"))?;
    namespaces(linux)?;
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let field = format!("linux.devices[{index}]");
        let inside =
            device.path().starts_with("/dev") && !device.path().components().any(|part| part.as_os_str() == "..");
        unless(!inside, &format!("{field}.path"), "must be below /dev")?;
        unless(device.typ() == LinuxDeviceType::A, &format!("{field}.type"), "must be b, c, u or p")?;
    }
    seccomp(linux)?;
    for clock in linux.time_offsets().iter().flat_map(|offsets| offsets.keys()) {
        unless(
            !matches!(clock.as_str(), "monotonic" | "boottime"),
            &format!("linux.timeOffsets.{clock}"),
            "unknown clock",
        )?;
    }
    linux.resources().as_ref().map_or(Ok(()), |resources| self::resources("linux.resources", resources))
}

fn namespaces(linux: &Linux) -> Verdict {
    let mut seen = HashSet::new();
    for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        unless(!seen.insert(namespace.typ().to_string()), &field, "is given twice")?;
        let path = namespace.path().as_deref().unwrap_or(Path::new(""));
        let empty = path.as_os_str().is_empty();
        unless(!empty && !path.is_absolute(), &format!("{field}.path"), "must be an absolute path")?;
        unless(
            !empty && !path.exists(),
            &format!("{field}.path"),
            &format!("{}: no such file or directory", path.display()),
        )?;
        if namespace.typ() == LinuxNamespaceType::User && empty {
            for (field, mappings) in
                [("linux.uidMappings", linux.uid_mappings()), ("linux.gidMappings", linux.gid_mappings())]
            {
                unless(mappings.iter().flatten().next().is_none(), field, "is required for a new user namespace")?;
            }
        }
    }
    Ok(())
}

fn seccomp(linux: &Linux) -> Verdict {
    let Some(seccomp) = linux.seccomp() else { return Ok(()) };
    let notify = LinuxSeccompAction::ScmpActNotify;
    unless(
        seccomp.default_action() == notify,
        "linux.seccomp.defaultAction",
        "SCMP_ACT_NOTIFY is for single system calls only",
    )?;
    let notifies = seccomp.syscalls().iter().flatten().filter(|rule| rule.action() == notify).collect::<Vec<_>>();
    unless(
        !notifies.is_empty() && seccomp.listener_path().is_none(),
        "linux.seccomp.listenerPath",
        "is required for SCMP_ACT_NOTIFY",
    )?;
    let writes = notifies.iter().any(|rule| rule.names().iter().any(|name| name == "write"));
    unless(writes, "linux.seccomp.syscalls", "SCMP_ACT_NOTIFY cannot be used for write")
}

/// Judges limits, also those of `update`.
///
/// # Errors
/// The first field that is refused.
pub(crate) fn resources(field: &str, resources: &LinuxResources) -> Verdict {
    unless(resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()), &format!("{field}.rdma"), ELSEWHERE)?;
    for (index, rule) in resources.devices().iter().flatten().enumerate() {
        let rule_field = format!("{field}.devices[{index}]");
        let access = rule.access().as_deref().unwrap_or("rwm");
        unless(
            !access.chars().all(|c| "rwm".contains(c)),
            &format!("{rule_field}.access"),
            &format!("{access:?} must be made of r, w and m"),
        )?;
        let numbered = rule.major().is_some_and(|n| n >= 0) || rule.minor().is_some_and(|n| n >= 0);
        let any_type = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
        unless(any_type && numbered, &rule_field, "a rule for all types cannot name a device")?;
        unless(rule.typ() == Some(LinuxDeviceType::P), &format!("{rule_field}.type"), "must be a, b or c")?;
    }
    if let Some(memory) = resources.memory() {
        for (value, name) in [(memory.kernel(), "kernel"), (memory.kernel_tcp(), "kernelTCP")] {
            // Kernels have dropped these limits; -1 and 0 ask for none.
            unless(
                value.is_some_and(|limit| limit > 0),
                &format!("{field}.memory.{name}"),
                "kernel memory limits no longer exist",
            )?;
        }
    }
    for file in resources.unified().iter().flat_map(|files| files.keys()) {
        unless(
            file.contains('/') || !file.contains('.'),
            &format!("{field}.unified[{file:?}]"),
            "is no name of a cgroup file",
        )?;
    }
    Ok(())
}

/// Judges what depends on how this machine's cgroups are set up.
///
/// # Errors
/// The first field that is refused.
pub(crate) fn platform(spec: &Spec, cgroup: &Cgroup) -> Verdict {
    unless(
        cgroup.systemd && !cgroup.unified,
        "--systemd-cgroup",
        "needs a host with cgroup v2 only; use runc or crun on cgroup v1 and hybrid hosts",
    )?;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.map_or(Ok(()), |resources| limits("linux.resources", resources, cgroup.unified))
}

/// Judges limits that only one version of cgroups has.
///
/// # Errors
/// The first field that is refused.
pub(crate) fn limits(field: &str, resources: &LinuxResources, unified: bool) -> Verdict {
    let only_unified = [(resources.unified().as_ref().is_some_and(|files| !files.is_empty()), "unified")];
    let cpu = resources.cpu().as_ref();
    let memory = resources.memory().as_ref();
    let network = resources.network().as_ref();
    let only_v1 = [
        (cpu.is_some_and(|cpu| cpu.realtime_runtime().is_some_and(|n| n != 0)), "cpu.realtimeRuntime"),
        (cpu.is_some_and(|cpu| cpu.realtime_period().is_some_and(|n| n != 0)), "cpu.realtimePeriod"),
        (memory.is_some_and(|memory| memory.swappiness().is_some()), "memory.swappiness"),
        (memory.is_some_and(|memory| memory.disable_oom_killer() == Some(true)), "memory.disableOOMKiller"),
        (network.is_some_and(|network| network.class_id().is_some_and(|id| id != 0)), "network.classID"),
        (
            network.is_some_and(|network| network.priorities().as_ref().is_some_and(|list| !list.is_empty())),
            "network.priorities",
        ),
    ];
    let (refused, reason) = if unified {
        (only_v1.iter().find(|(given, _)| *given).map(|(_, name)| name), "does not exist on cgroup v2")
    } else {
        (only_unified.iter().find(|(given, _)| *given).map(|(_, name)| name), "needs a host with cgroup v2 only")
    };
    refused.map_or(Ok(()), |name| Err(refuse(format!("{field}.{name}"), reason)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    /// A specification that passes, with one value set at a JSON pointer.
    fn with(pointer: &str, value: Value) -> Spec {
        let mut spec = json!({
            "ociVersion": "1.1.0",
            "root": { "path": "rootfs" },
            "process": { "user": {}, "cwd": "/", "args": ["sh"], "env": ["PATH=/bin"] },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }], "resources": {} },
        });
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = parent.split('/').skip(1).fold(&mut spec, |value, key| match key.parse::<usize>() {
            Ok(index) => &mut value[index],
            Err(_) => &mut value[key],
        });
        match key.parse::<usize>() {
            Ok(index) => parent[index] = value,
            Err(_) => parent[key] = value,
        }
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (pointer, value, field) in [
            ("/ociVersion", json!("2.0.0"), "ociVersion"),
            ("/process/args", json!([]), "process.args"),
            ("/process/cwd", json!("relative"), "process.cwd"),
            ("/process/selinuxLabel", json!("a:b:c"), "process.selinuxLabel"),
            ("/process/env", json!(["A=b", "C"]), "process.env[1]"),
            ("/process/user", json!({"umask": 4096}), "process.user.umask"),
            ("/process/oomScoreAdj", json!(2000), "process.oomScoreAdj"),
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]),
                "process.rlimits[RLIMIT_CORE]",
            ),
            ("/process/scheduler", json!({"policy": "SCHED_ISO"}), "process.scheduler.policy"),
            ("/linux/mountLabel", json!("a:b:c"), "linux.mountLabel"),
            ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
            (
                "/linux/personality",
                json!({"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}),
                "linux.personality.flags",
            ),
            ("/linux/rootfsPropagation", json!("both"), "linux.rootfsPropagation"),
            ("/linux/namespaces", json!([{"type": "pid"}, {"type": "pid"}]), "linux.namespaces[1]"),
            ("/linux/namespaces", json!([{"type": "network", "path": "/nope"}]), "linux.namespaces[0].path"),
            ("/linux/namespaces", json!([{"type": "user"}]), "linux.uidMappings"),
            (
                "/linux/devices",
                json!([{"path": "/etc/x", "type": "c", "major": 1, "minor": 3}]),
                "linux.devices[0].path",
            ),
            ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "linux.seccomp.defaultAction"),
            ("/linux/resources", json!({"rdma": {"mlx": {"hcaHandles": 3}}}), "linux.resources.rdma"),
            (
                "/linux/resources",
                json!({"devices": [{"allow": true, "access": "x"}]}),
                "linux.resources.devices[0].access",
            ),
            ("/linux/resources", json!({"memory": {"kernel": 1024}}), "linux.resources.memory.kernel"),
            ("/linux/resources", json!({"unified": {"../x.y": "1"}}), "linux.resources.unified[\"../x.y\"]"),
            ("/linux/timeOffsets", json!({"realtime": {"secs": 1}}), "linux.timeOffsets.realtime"),
            ("/hooks", json!({"poststop": [{"path": "true"}]}), "hooks.poststop[0].path"),
            ("/windows", json!({"layerFolders": []}), "windows"),
        ] {
            let refusal = spec(&with(pointer, value)).unwrap_err();
            assert_eq!(refusal.field, field, "{refusal}");
        }
    }

    #[test]
    fn a_plain_specification_passes() {
        assert_eq!(spec(&with("/hostname", Value::Null)), Ok(()));
        assert_eq!(spec(&with("/process/selinuxLabel", json!(""))), Ok(()));
    }

    #[test]
    fn mounts_are_refused_with_their_destination_and_option() {
        let refusal = |value: Value| spec(&with("/mounts/0", value)).unwrap_err().to_string();
        let text = refusal(json!({"destination": "/v", "source": "/", "options": ["rbind", "nope"]}));
        assert!(text.starts_with("mounts[0] (/v).options \"nope\": unknown mount option"), "{text}");
        let text = refusal(json!({"destination": "/v", "type": "tmpfs", "options": ["tmpcopyup"]}));
        assert!(text.contains("\"tmpcopyup\"") && text.contains("use runc or crun"), "{text}");
        let text = refusal(json!({"destination": "/v", "source": "x"}));
        assert!(text.starts_with("mounts[0] (/v).type: "), "{text}");
    }

    #[test]
    fn other_owners_are_for_bind_mounts_whose_map_is_known() {
        let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        let bind = |more: Value| {
            let mut mount = json!({"destination": "/v", "type": "bind", "source": "/"});
            mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            mount
        };
        let judge = |mount: &Value, namespaces: Value| {
            let mut with = serde_json::to_value(with("/mounts/0", mount.clone())).unwrap();
            with["linux"]["namespaces"] = namespaces;
            spec(&serde_json::from_value(with).unwrap()).map_err(|refusal| refusal.to_string())
        };
        let (new, joined) = (json!([{"type": "mount"}]), json!([{"type": "mount", "path": "/proc/self/ns/mnt"}]));
        let users = json!([{"type": "mount", "path": ""}, {"type": "user", "path": "/proc/self/ns/user"}]);
        let both = json!({"uidMappings": map, "gidMappings": map});
        assert_eq!(judge(&bind(both.clone()), new.clone()), Ok(()));
        assert_eq!(judge(&bind(json!({"options": ["rbind", "ridmap"]})), users), Ok(()));
        let tmpfs = json!({"destination": "/v", "type": "tmpfs", "options": ["idmap"]});
        let mut dev = bind(both.clone());
        dev["destination"] = json!("/dev");
        for (mount, namespaces, words) in [
            (bind(json!({"options": ["idmap"]})), &new, "mounts[0] (/v).uidMappings: is required for"),
            (bind(json!({"uidMappings": map})), &new, "mounts[0] (/v).gidMappings: is required with"),
            (bind(json!({"gidMappings": map})), &new, "mounts[0] (/v).uidMappings: is required with"),
            (bind(both), &joined, "mounts[0] (/v): an idmapped mount needs a new mount namespace"),
            (tmpfs, &new, "mounts[0] (/v): only a bind mount"),
            (dev, &new, "mounts[0] (/dev).options: "),
        ] {
            let refusal = judge(&mount, namespaces.clone()).unwrap_err();
            assert!(refusal.starts_with(words), "{refusal}");
        }
    }

    #[test]
    fn every_option_is_either_known_or_refused() {
        for option in libcontainer::syscall::linux::MountOption::known_options() {
            let option = option.as_str();
            assert!(MOUNT_OPTIONS.contains(&option) != REFUSED_OPTIONS.contains(&option), "{option}");
        }
    }

    #[test]
    fn limits_of_the_other_cgroup_version_are_refused() {
        for (value, unified, field) in [
            (json!({"unified": {"memory.max": "1"}}), false, "linux.resources.unified"),
            (json!({"cpu": {"realtimeRuntime": 5}}), true, "linux.resources.cpu.realtimeRuntime"),
            (json!({"memory": {"disableOOMKiller": true}}), true, "linux.resources.memory.disableOOMKiller"),
            (json!({"memory": {"swappiness": 10}}), true, "linux.resources.memory.swappiness"),
            (json!({"network": {"classID": 7}}), true, "linux.resources.network.classID"),
        ] {
            let resources: LinuxResources = serde_json::from_value(value).unwrap();
            assert_eq!(limits("linux.resources", &resources, unified).unwrap_err().field, field);
            assert_eq!(limits("linux.resources", &resources, !unified), Ok(()));
        }
    }

    #[test]
    fn an_unknown_capability_or_uid_is_named_by_the_parser() {
        let error = |text: &str| serde_json::from_str::<Spec>(text).unwrap_err().to_string();
        let text = error(r#"{"process":{"user":{},"cwd":"/","capabilities":{"bounding":["CAP_NOPE"]}}}"#);
        assert!(text.contains("NOPE"), "{text}");
        let text = error(r#"{"process":{"user":{"uid":-1},"cwd":"/"}}"#);
        assert!(text.contains("-1"), "{text}");
    }
}
