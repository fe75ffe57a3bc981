//! What a container is made from: the OCI `config.json`, from a bundle's or out of nothing but a directory.
//!
//! The sane default is Docker's: 14 capabilities, a system call filter that denies what it does not name
//! ([`seccomp`]), masked and read-only paths, private namespaces, no way to gain privileges.

pub mod seccomp;
pub mod users;

use holdfast_proto::regular;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use holdfast_proto::supervisor as pb;
use nix::sys::resource::{Resource, getrlimit};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde_json::{Value, json};
use thiserror::Error;

use crate::cgroup::{self, CgroupError};
use crate::launch::merge_env;
use crate::registry::{ExecSpec, Limits};
use users::UserError;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The period over which a CPU limit is a quota, in microseconds.
const CPU_PERIOD: i64 = 100_000;

/// What cannot be made into a container.
#[derive(Debug, Error)]
pub enum SpecError {
    /// Not exactly one source.
    #[error("a container is made from either a bundle or a root file system: give one of the two")]
    Source,
    /// A directory that does not do.
    #[error("{what} {path:?} {why}")]
    Directory {
        /// What it was meant as.
        what: &'static str,
        /// What was given.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A bundle without a usable config.json.
    #[error("cannot read the bundle's {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A config.json that is none.
    #[error("{path} is not an OCI configuration")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// An OCI configuration without a part that is needed.
    #[error("{path} has no {field}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The part.
        field: &'static str,
    },
    /// Nothing to run.
    #[error("there is no command to run")]
    NoCommand,
    /// A value that does not do.
    #[error("{what} {value:?} is not valid: {why}")]
    Value {
        /// What it was meant as.
        what: &'static str,
        /// What was given.
        value: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A user that does not do.
    #[error(transparent)]
    User(#[from] UserError),
    /// The hook that a private network needs is not installed.
    #[error("cannot find the program holdfast beside holdfastd, which brings up a private network's loopback: {0}")]
    Hook(String),
    /// No place among the control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// A configuration, ready to be written.
#[derive(Debug)]
pub struct Built {
    /// As JSON.
    pub json: String,
    /// The command in it.
    pub command: Vec<String>,
}

/// Makes the configuration of a new container.
///
/// # Errors
/// See [`SpecError`].
pub fn build(id: &str, request: &pb::CreateRequest) -> Result<Built, SpecError> {
    let limits = request.limits.as_ref().map(limits).transpose()?.unwrap_or_default();
    for pair in &request.env {
        check_env(pair)?;
    }
    let mut spec = match (request.bundle.as_str(), request.rootfs.as_str()) {
        ("", "") => return Err(SpecError::Source),
        ("", rootfs) => {
            let root = directory("the root file system", rootfs)?;
            let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
            let host = Host { open_files: hard, hook: hook()?, cgroup: cgroup::of_container(id)? };
            from_rootfs(id, &root, request, limits, &host)?
        }
        (bundle, "") => from_bundle(&cgroup::of_container(id)?, &directory("the bundle", bundle)?, request, limits)?,
        _ => return Err(SpecError::Source),
    };
    if spec["process"]["oomScoreAdj"].is_null() {
        spec["process"]["oomScoreAdj"] = json!(oom_score_adj());
    }
    // Through the types and back: what leaves here is an OCI configuration.
    let path = || PathBuf::from("the configuration made here");
    let typed: Spec = serde_json::from_value(spec).map_err(|source| SpecError::Malformed { path: path(), source })?;
    let command = typed.process().as_ref().and_then(|p| p.args().clone()).unwrap_or_default();
    if command.is_empty() {
        return Err(SpecError::NoCommand);
    }
    let json = serde_json::to_string_pretty(&typed).map_err(|source| SpecError::Malformed { path: path(), source })?;
    Ok(Built { json, command })
}

/// What the machine contributes, so that the rest is pure.
struct Host {
    /// The most open files that can be granted without privilege.
    open_files: u64,
    /// The program that brings up loopback.
    hook: PathBuf,
    /// The container's control group.
    cgroup: String,
}

/// How likely the kernel ends a container when memory is short, where nothing else is asked for: as it comes, and not what
/// protects holdfastd from that, which a container would inherit. More likely than that where holdfastd is: going below
/// needs a privilege.
fn oom_score_adj() -> i32 {
    let own = procfs::process::Process::myself().and_then(|this| this.oom_score_adj());
    own.map_or(0, i32::from).max(0)
}

fn hook() -> Result<PathBuf, SpecError> {
    let exe = std::env::current_exe().map_err(|e| SpecError::Hook(e.to_string()))?;
    let hook = exe.with_file_name("holdfast");
    if hook.is_file() { Ok(hook) } else { Err(SpecError::Hook(format!("{} is missing", hook.display()))) }
}

fn directory(what: &'static str, path: &str) -> Result<PathBuf, SpecError> {
    let wrong = |why| SpecError::Directory { what, path: path.to_owned(), why };
    if !Path::new(path).is_absolute() {
        return Err(wrong("is not an absolute path"));
    }
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(wrong("does not exist")),
        Err(_) => Err(wrong("cannot be looked at")),
        Ok(m) if !m.is_dir() => Err(wrong("is not a directory")),
        Ok(_) => fs::canonicalize(path).map_err(|_| wrong("cannot be resolved")),
    }
}

fn check_env(pair: &str) -> Result<(), SpecError> {
    match pair.split_once('=') {
        Some((name, _)) if !name.is_empty() && !pair.contains('\0') => Ok(()),
        _ => Err(SpecError::Value {
            what: "the environment variable",
            value: pair.to_owned(),
            why: "it is not NAME=VALUE",
        }),
    }
}

/// Checks limits from the wire.
///
/// # Errors
/// [`SpecError::Value`].
pub fn limits(limits: &pb::Limits) -> Result<Limits, SpecError> {
    let value = |what, value: i64, why| Err(SpecError::Value { what, value: value.to_string(), why });
    let set = |n: i64| (n != 0).then_some(n);
    match (limits.memory_bytes, limits.milli_cpus, limits.pids) {
        (m, _, _) if m != 0 && m < 4 << 20 => value("the memory limit", m, "it is less than 4 MiB"),
        (_, c, _) if c != 0 && c < 10 => value("the CPU limit", c, "it is less than a hundredth of a CPU"),
        (_, _, p) if p < -1 => value("the limit of processes", p, "it is negative"),
        (m, c, p) => Ok(Limits { memory: set(m), milli_cpus: set(c), pids: set(p) }),
    }
}

fn resources_value(limits: &Limits) -> Value {
    let mut value = json!({});
    if let Some(bytes) = limits.memory {
        value["memory"] = json!({ "limit": bytes });
    }
    if let Some(milli) = limits.milli_cpus {
        value["cpu"] = json!({ "period": CPU_PERIOD, "quota": milli * CPU_PERIOD / 1000 });
    }
    if let Some(pids) = limits.pids {
        value["pids"] = json!({ "limit": pids });
    }
    value
}

/// Limits as the OCI's LinuxResources in JSON.
pub fn resources(limits: &Limits) -> Vec<u8> {
    let typed: LinuxResources =
        serde_json::from_value(resources_value(limits)).expect("only numbers in the OCI's own fields");
    serde_json::to_vec(&typed).expect("plain data can be written")
}

/// An OCI configuration with other limits; what is not among these stays as it is.
///
/// # Errors
/// [`SpecError::Malformed`] if it is none, which names no file of the user's.
pub fn with_limits(spec: &str, limits: &Limits) -> Result<String, SpecError> {
    let malformed = |source| SpecError::Malformed { path: "the container's configuration".into(), source };
    // Through the types: what is written into is shaped as it should be.
    let typed: Spec = serde_json::from_str(spec).map_err(malformed)?;
    let mut spec = serde_json::to_value(typed).map_err(malformed)?;
    set_limits(&mut spec, limits);
    let typed: Spec = serde_json::from_value(spec).map_err(malformed)?;
    serde_json::to_string_pretty(&typed).map_err(malformed)
}

/// Puts limits into an OCI configuration. Whatever else bounds the same resource, as a limit of swap, stays.
fn set_limits(spec: &mut Value, limits: &Limits) {
    for (kind, values) in resources_value(limits).as_object().into_iter().flatten() {
        for (key, value) in values.as_object().into_iter().flatten() {
            spec["linux"]["resources"][kind][key] = value.clone();
        }
    }
}

fn from_rootfs(
    id: &str,
    root: &Path,
    request: &pb::CreateRequest,
    limits: Limits,
    host: &Host,
) -> Result<Value, SpecError> {
    if request.command.is_empty() {
        return Err(SpecError::NoCommand);
    }
    let user = users::lookup(root, &request.user)?;
    let hostname = if request.hostname.is_empty() { crate::names::short(id) } else { &request.hostname };
    let private_network = match request.network.as_str() {
        "" | "none" => true,
        "host" => false,
        other => {
            let why = "it is neither none nor host (other networks are containerd's and Docker's business)";
            return Err(SpecError::Value { what: "the network", value: other.to_owned(), why });
        }
    };
    let mut base = vec![PATH.to_owned(), format!("HOSTNAME={hostname}"), format!("HOME={}", user.home)];
    if request.terminal {
        base.push("TERM=xterm".to_owned());
    }
    let mut namespaces: Vec<&str> = vec!["pid", "ipc", "uts", "mount", "cgroup"];
    if private_network {
        namespaces.push("network");
    }
    // The capabilities of another user than root would only be lost at the first exec; they stay available as a bound.
    let held: &[&str] = if user.uid == 0 { &CAPABILITIES } else { &[] };
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": request.terminal,
            "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids },
            "args": request.command,
            "env": merge_env(&base, &request.env),
            "cwd": cwd(&request.cwd)?,
            "capabilities": { "bounding": CAPABILITIES, "effective": held, "permitted": held },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": host.open_files.min(1024), "hard": host.open_files }],
            "noNewPrivileges": true,
        },
        "root": { "path": root },
        "hostname": hostname,
        "mounts": default_mounts(),
        "linux": {
            "cgroupsPath": host.cgroup,
            "namespaces": namespaces.iter().map(|kind| json!({ "type": kind })).collect::<Vec<_>>(),
            "resources": { "devices": device_rules() },
            "seccomp": seccomp::profile(),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    });
    if private_network {
        spec["hooks"] = json!({
            "createRuntime": [{ "path": host.hook, "args": ["holdfast", "hook", "loopback"], "timeout": 10 }]
        });
    }
    set_limits(&mut spec, &limits);
    add_volumes(&mut spec, &request.volumes)?;
    Ok(spec)
}

/// What a container may do to devices: the harmless ones, terminals, and making nodes that it cannot open.
fn device_rules() -> Value {
    let allow = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": access });
    json!([
        { "allow": false, "access": "rwm" },
        allow("c", None, None, "m"),
        allow("b", None, None, "m"),
        allow("c", Some(1), Some(3), "rwm"),
        allow("c", Some(1), Some(5), "rwm"),
        allow("c", Some(1), Some(7), "rwm"),
        allow("c", Some(1), Some(8), "rwm"),
        allow("c", Some(1), Some(9), "rwm"),
        allow("c", Some(5), Some(0), "rwm"),
        allow("c", Some(5), Some(2), "rwm"),
        allow("c", Some(136), None, "rwm"),
    ])
}

fn default_mounts() -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    json!([
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ])
}

fn cwd(given: &str) -> Result<&str, SpecError> {
    match given {
        "" => Ok("/"),
        path if Path::new(path).is_absolute() => Ok(path),
        path => {
            let why = "it is not an absolute path";
            Err(SpecError::Value { what: "the working directory", value: path.to_owned(), why })
        }
    }
}

fn add_volumes(spec: &mut Value, volumes: &[String]) -> Result<(), SpecError> {
    for volume in volumes {
        let mount = volume_mount(volume)?;
        match spec["mounts"].as_array_mut() {
            Some(mounts) => mounts.push(mount),
            None => spec["mounts"] = json!([mount]),
        }
    }
    Ok(())
}

fn volume_mount(volume: &str) -> Result<Value, SpecError> {
    let wrong = |why| SpecError::Value { what: "the volume", value: volume.to_owned(), why };
    let parts: Vec<&str> = volume.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [source, target] => (*source, *target, "rw"),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(wrong("it is not SOURCE:TARGET or SOURCE:TARGET:ro")),
    };
    if !matches!(mode, "ro" | "rw") {
        return Err(wrong("its mode is neither ro nor rw"));
    }
    if !Path::new(source).is_absolute() || !Path::new(target).is_absolute() {
        return Err(wrong("source and target must be absolute paths"));
    }
    if Path::new(target).components().any(|c| c == Component::ParentDir) || target == "/" {
        return Err(wrong("its target is not a place below the root"));
    }
    if !Path::new(source).exists() {
        return Err(wrong("its source does not exist"));
    }
    let options = json!(["rbind", "rprivate", mode]);
    Ok(json!({ "destination": target, "type": "bind", "source": source, "options": options }))
}

fn from_bundle(cgroup: &str, bundle: &Path, request: &pb::CreateRequest, limits: Limits) -> Result<Value, SpecError> {
    let path = bundle.join("config.json");
    let bytes = regular::read(&path).map_err(|source| SpecError::Read { path: path.clone(), source })?;
    // Typed once, for an error that names the field; what the types do not know is not passed on.
    let typed: Spec =
        serde_json::from_slice(&bytes).map_err(|source| SpecError::Malformed { path: path.clone(), source })?;
    let missing = |field| SpecError::Missing { path: path.clone(), field };
    let root = typed.root().as_ref().ok_or_else(|| missing("root"))?.path().clone();
    let process = typed.process().clone().ok_or_else(|| missing("process"))?;
    let mut spec =
        serde_json::to_value(&typed).map_err(|source| SpecError::Malformed { path: path.clone(), source })?;
    let root = if root.is_absolute() { root } else { bundle.join(root) };
    let root = directory("the bundle's root", &root.display().to_string())?;
    spec["root"]["path"] = json!(root);
    let wanted = ExecSpec {
        command: if request.command.is_empty() {
            process.args().clone().unwrap_or_default()
        } else {
            request.command.clone()
        },
        env: request.env.clone(),
        cwd: request.cwd.clone(),
        user: request.user.clone(),
        terminal: request.terminal,
        window: None,
        stdin: String::new(),
        stdout: String::new(),
        stderr: String::new(),
    };
    spec["process"] = altered_process(&process, &root, &wanted)?;
    if !request.hostname.is_empty() {
        spec["hostname"] = json!(request.hostname);
    }
    if !matches!(request.network.as_str(), "") {
        let why = "a bundle says itself which network namespace it wants";
        return Err(SpecError::Value { what: "the network", value: request.network.clone(), why });
    }
    if spec["linux"]["cgroupsPath"].as_str().is_none_or(str::is_empty) {
        spec["linux"]["cgroupsPath"] = json!(cgroup);
    }
    set_limits(&mut spec, &limits);
    add_volumes(&mut spec, &request.volumes)?;
    Ok(spec)
}

/// A process like the container's first, but for what is wanted differently.
fn altered_process(process: &Process, root: &Path, wanted: &ExecSpec) -> Result<Value, SpecError> {
    let mut value = serde_json::to_value(process)
        .map_err(|source| SpecError::Malformed { path: PathBuf::from("process"), source })?;
    for pair in &wanted.env {
        check_env(pair)?;
    }
    let base = process.env().clone().unwrap_or_default();
    value["args"] = json!(wanted.command);
    value["env"] = json!(merge_env(&base, &wanted.env));
    value["terminal"] = json!(wanted.terminal);
    if let Some((columns, rows)) = wanted.window {
        value["consoleSize"] = json!({ "width": columns, "height": rows });
    }
    if !wanted.cwd.is_empty() {
        value["cwd"] = json!(cwd(&wanted.cwd)?);
    }
    if !wanted.user.is_empty() {
        let user = users::lookup(root, &wanted.user)?;
        value["user"] = json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids });
        if user.uid != 0 && value["capabilities"].is_object() {
            for set in ["effective", "permitted", "inheritable", "ambient"] {
                value["capabilities"][set] = json!([]);
            }
        }
    }
    if wanted.terminal && !base.iter().chain(&wanted.env).any(|p| p.starts_with("TERM=")) {
        value["env"].as_array_mut().expect("set above").push(json!("TERM=xterm"));
    }
    Ok(value)
}

/// The OCI process of an exec, as JSON, from the container's configuration.
///
/// # Errors
/// See [`SpecError`].
pub fn exec_process(config: &str, wanted: &ExecSpec) -> Result<Vec<u8>, SpecError> {
    let path = || PathBuf::from("spec.json");
    let malformed = |source| SpecError::Malformed { path: path(), source };
    let spec: Spec = serde_json::from_str(config).map_err(malformed)?;
    let missing = |field| SpecError::Missing { path: path(), field };
    let process = spec.process().as_ref().ok_or_else(|| missing("process"))?;
    let root = spec.root().as_ref().ok_or_else(|| missing("root"))?;
    let value = altered_process(process, root.path(), wanted)?;
    let typed: Process = serde_json::from_value(value).map_err(malformed)?;
    serde_json::to_vec(&typed).map_err(malformed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn request() -> pb::CreateRequest {
        pb::CreateRequest { rootfs: "/".into(), command: vec!["/bin/true".into()], ..Default::default() }
    }

    fn host() -> Host {
        Host { open_files: 4096, hook: "/opt/bin/holdfast".into(), cgroup: "/holdfast/0123456789abcdef".into() }
    }

    fn made(request: &pb::CreateRequest) -> Value {
        from_rootfs("0123456789abcdef", Path::new("/"), request, Limits::default(), &host()).unwrap()
    }

    #[test]
    fn other_limits_leave_everything_else_as_it_is() {
        let mut spec = made(&request());
        spec["linux"]["resources"]["memory"] = json!({ "limit": 1 << 30, "swap": -1 });
        let limits = Limits { memory: Some(64 << 20), milli_cpus: Some(500), pids: None };
        let changed: Value = serde_json::from_str(&with_limits(&spec.to_string(), &limits).unwrap()).unwrap();
        let resources = &changed["linux"]["resources"];
        assert_eq!(resources["memory"], json!({ "limit": 64 << 20, "swap": -1 }));
        assert_eq!(resources["cpu"]["quota"], 50_000);
        assert_eq!(resources["pids"], Value::Null);
        assert_eq!(changed["process"]["args"], spec["process"]["args"]);
        let bare = with_limits(r#"{"ociVersion":"1.0.2"}"#, &limits).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&bare).unwrap()["linux"]["resources"]["memory"]["limit"], 64 << 20);
        assert!(with_limits(r#"{"ociVersion":"1.0.2","linux":"x"}"#, &limits).is_err());
    }

    #[test]
    fn limits_for_a_bundle_leave_its_other_bounds_as_they_are() {
        let bundle = std::env::temp_dir().join(format!("holdfast-spec-bundle-{}", std::process::id()));
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let mut spec = made(&request());
        spec["root"]["path"] = json!("rootfs");
        spec["linux"]["resources"]["memory"] = json!({ "limit": 1u64 << 30, "swap": 1u64 << 31 });
        spec["linux"]["resources"]["cpu"] = json!({ "shares": 512 });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let limits = Limits { memory: Some(64 << 20), milli_cpus: Some(500), pids: None };
        let made = from_bundle("/group", &bundle, &pb::CreateRequest::default(), limits);
        fs::remove_dir_all(&bundle).unwrap();
        let resources = made.unwrap()["linux"]["resources"].take();
        assert_eq!(
            (&resources["memory"]["limit"], &resources["memory"]["swap"]),
            (&json!(64 << 20), &json!(1u64 << 31))
        );
        assert_eq!((&resources["cpu"]["quota"], &resources["cpu"]["shares"]), (&json!(50_000), &json!(512)));
    }

    #[test]
    fn the_default_is_private_and_without_a_way_to_gain_privileges() {
        let spec = made(&request());
        let typed: Spec = serde_json::from_value(spec.clone()).unwrap();
        assert_eq!(typed.process().as_ref().unwrap().no_new_privileges(), Some(true));
        assert_eq!(spec["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
        assert_eq!(spec["process"]["rlimits"][0]["hard"], 4096);
        assert_eq!(spec["linux"]["cgroupsPath"], "/holdfast/0123456789abcdef");
        assert_eq!(spec["hooks"]["createRuntime"][0]["args"], json!(["holdfast", "hook", "loopback"]));
        let kinds: Vec<&str> =
            spec["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["pid", "ipc", "uts", "mount", "cgroup", "network"]);
        assert_eq!(spec["linux"]["resources"]["devices"][0], json!({ "allow": false, "access": "rwm" }));
        let targets: Vec<&str> =
            spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
        let wanted = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
        assert_eq!(targets, wanted);
        assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    }

    #[test]
    fn the_hosts_network_needs_neither_namespace_nor_hook() {
        let spec = made(&pb::CreateRequest { network: "host".into(), ..request() });
        assert!(spec["hooks"].is_null());
        assert!(!spec["linux"]["namespaces"].to_string().contains("network"));
    }

    #[test]
    fn another_user_than_root_holds_no_capabilities() {
        let spec = made(&pb::CreateRequest { user: "12345:6".into(), ..request() });
        assert_eq!(spec["process"]["user"]["uid"], 12345);
        assert_eq!(spec["process"]["user"]["gid"], 6);
        assert_eq!(spec["process"]["capabilities"]["effective"], json!([]));
    }

    #[test]
    fn given_variables_replace_the_defaults_and_the_last_of_a_name_wins() {
        let env = vec!["A=1".to_owned(), "PATH=/x".to_owned(), "A=2".to_owned()];
        let spec = made(&pb::CreateRequest { env, ..request() });
        let env: Vec<&str> = spec["process"]["env"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        assert!(env.contains(&"PATH=/x") && env.contains(&"A=2"));
        assert!(!env.contains(&"A=1") && !env.contains(&PATH));
    }

    #[test]
    fn each_mistake_names_the_thing_and_the_reason() {
        let no = |change: fn(&mut pb::CreateRequest), part: &str| {
            let mut request = request();
            change(&mut request);
            let error =
                from_rootfs("id", Path::new("/"), &request, Limits::default(), &host()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        no(|r| r.network = "bridge".into(), "bridge");
        no(|r| r.cwd = "here".into(), "here");
        no(|r| r.volumes = vec!["/".into()], "SOURCE:TARGET");
        no(|r| r.volumes = vec!["/no/such:/x".into()], "does not exist");
        no(|r| r.volumes = vec!["/etc:/../x".into()], "below the root");
        no(|r| r.volumes = vec!["/etc:/x:rwx".into()], "neither ro nor rw");
        no(|r| r.command.clear(), "no command");
        no(|r| r.user = "nobody-of-that-name".into(), "nobody-of-that-name");
        let both = pb::CreateRequest { bundle: "/x".into(), ..request() };
        assert!(matches!(build("id", &both), Err(SpecError::Source)));
        let relative = pb::CreateRequest { rootfs: "x".into(), ..request() };
        assert!(build("id", &relative).unwrap_err().to_string().contains("absolute"));
        assert!(limits(&pb::Limits { memory_bytes: 1, ..Default::default() }).is_err());
        assert!(limits(&pb::Limits { pids: -2, ..Default::default() }).is_err());
    }

    #[test]
    fn an_exec_is_like_the_first_process_but_for_what_is_asked() {
        let config = made(&pb::CreateRequest { env: vec!["A=1".into()], ..request() }).to_string();
        let wanted = ExecSpec {
            command: vec!["/bin/sh".into()],
            env: vec!["B=2".into()],
            cwd: "/tmp".into(),
            user: "7".into(),
            terminal: true,
            window: Some((132, 43)),
            stdin: String::new(),
            stdout: String::new(),
            stderr: String::new(),
        };
        let process: Value = serde_json::from_slice(&exec_process(&config, &wanted).unwrap()).unwrap();
        assert_eq!(process["args"], json!(["/bin/sh"]));
        assert_eq!(process["consoleSize"], json!({ "width": 132, "height": 43 }));
        assert_eq!((&process["cwd"], &process["terminal"]), (&json!("/tmp"), &json!(true)));
        assert_eq!(process["user"]["uid"], 7);
        let env = process["env"].to_string();
        assert!(env.contains("A=1") && env.contains("B=2") && env.contains("TERM=xterm"), "{env}");
        assert_eq!(process["noNewPrivileges"], true);
    }

    #[test]
    fn limits_are_written_in_the_ocis_terms() {
        let limits = Limits { memory: Some(64 << 20), milli_cpus: Some(1500), pids: Some(-1) };
        let value: Value = serde_json::from_slice(&resources(&limits)).unwrap();
        assert_eq!(value["memory"]["limit"], 64 << 20);
        assert_eq!((&value["cpu"]["quota"], &value["cpu"]["period"]), (&json!(150_000), &json!(100_000)));
        assert_eq!(value["pids"]["limit"], -1);
    }
}
