//! One specification under one OCI runtime, and everything that can be seen of the container, as named facts.
//!
//! Both runtimes get the same bundle directory and the same container id, one after the other, so that paths and names
//! need no normalising. What must differ all the same (pids, mount ids, peer groups, device numbers of anonymous file
//! systems, times, counters) is left out or replaced here; whatever else differs is a difference.
//!
//! The container's own program, `parity-probe.sh`, tells what is seen from inside; the rest is read from the machine's
//! `/proc` and cgroups, which works for any payload.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::eventually::eventually;
use crate::process::{self, ChildProcess, run};
use crate::{Scene, bundle, programs};

/// Facts by name; a name has the form `group/detail`.
pub type Facts = BTreeMap<String, String>;

/// The container that a specification may ask for beside its own.
const BESIDE: &str = "beside";

/// Where the committed specifications are.
pub fn specs_dir() -> PathBuf {
    programs::repository().join("tests/specs")
}

/// A committed specification by its name: an object with `about`, `config` (or `base` and `patch`), and perhaps `execs`
/// and `beside`.
///
/// # Panics
/// If there is none, or it is no JSON.
pub fn read_spec(name: &str) -> Value {
    let path = specs_dir().join(format!("{name}.json"));
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The configuration of a specification: its own, or that of its base with the patch applied.
pub fn config_of(spec: &Value) -> Value {
    if let Some(config) = spec.get("config") {
        return config.clone();
    }
    let base = spec["base"].as_str().expect("a specification has a config or a base");
    let mut config = config_of(&read_spec(base));
    apply(&mut config, &spec["patch"]);
    config
}

/// A merge patch (RFC 7396), in which a name that ends in `+` appends to an array.
pub fn apply(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else { return };
    for (name, value) in patch {
        if let Some(name) = name.strip_suffix('+') {
            let list = target[name].as_array_mut().expect("only arrays are appended to");
            list.extend(value.as_array().expect("an array is appended").iter().cloned());
        } else if value.is_null() {
            target.as_object_mut().expect("an object is patched").remove(name);
        } else if value.is_object() && target.get(name).is_some_and(Value::is_object) {
            apply(&mut target[name], value);
        } else {
            target[name] = value.clone();
        }
    }
}

/// The bundle that all containers of one test use, with what specifications refer to.
#[derive(Debug)]
pub struct Stage {
    dir: PathBuf,
    id: String,
    mounted: Vec<PathBuf>,
}

impl Stage {
    /// Makes the root file system, the directories that are bound into it and the mounts below them.
    ///
    /// # Panics
    /// If that fails.
    pub fn new(scene: &Scene) -> Self {
        // A mapped root must reach the root file system.
        fs::set_permissions(scene.dir(), fs::Permissions::from_mode(0o711)).expect("our directory");
        let dir = scene.path("b");
        // That of an earlier stage.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).expect("a fresh directory");
        let mut stage = Self { dir, id: format!("{}-c", scene.id()), mounted: Vec::new() };
        stage.fill_root();
        stage.fill_sources();
        stage
    }

    fn fill_root(&self) {
        let root = self.dir.join("rootfs");
        bundle::fill_with_busybox(&root);
        for dir in ["data/dir/inner", "data/ro", "inside-target", "b", "p", "t", "w", "mnt", "var", "run", "hooks"] {
            fs::create_dir_all(root.join(dir)).expect("a writable root");
        }
        for path in ["host", "host-shared", "private"] {
            fs::create_dir(root.join(path)).expect("a writable root");
        }
        set_mode(&root.join("private"), 0o700);
        set_mode(&root.join("tmp"), 0o1777);
        for applet in ["tr", "grep", "wc"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("a writable root");
        }
        std::os::unix::fs::symlink("/inside-target", root.join("link")).expect("a writable root");
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:/bin/sh\n";
        write(&root.join("etc/passwd"), passwd, 0o644);
        write(&root.join("etc/group"), "root:x:0:\ntty:x:5:\nweb:x:33:\n", 0o644);
        for file in ["etc/hosts", "etc/hostname", "etc/resolv.conf", "data/file", "data/dir/inner/file", "data/ro/file"]
        {
            write(&root.join(file), "of the root file system\n", 0o644);
        }
        write(&root.join("probe"), &include_str!("parity-probe.sh").replace("@ID@", &self.id), 0o755);
        write(&root.join("probe-not-executable"), "", 0o644);
        write(&root.join("garbage"), "neither a script nor a program\n", 0o755);
    }

    fn fill_sources(&mut self) {
        for dir in ["data/shm", "shared", "devices", "hooks"] {
            fs::create_dir_all(self.dir.join(dir)).expect("a writable directory");
        }
        set_mode(&self.dir.join("data/shm"), 0o1777);
        for file in ["hosts", "hostname", "resolv.conf"] {
            write(&self.dir.join("data").join(file), "of the host\n", 0o644);
        }
        // A shared mount with one below it, so that propagation and recursion show.
        let shared = self.dir.join("shared");
        self.mount_tmpfs(&shared);
        mount(None::<&str>, &shared, None::<&str>, MsFlags::MS_SHARED, None::<&str>).expect("root may");
        fs::create_dir(shared.join("sub")).expect("a writable directory");
        self.mount_tmpfs(&shared.join("sub"));
        write(&shared.join("sub/file"), "below\n", 0o644);
        let devices = self.dir.join("devices");
        self.mount_tmpfs(&devices);
        for (name, minor) in [("null", 3), ("zero", 5)] {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            mknod(&devices.join(name), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, minor))
                .expect("root may");
        }
    }

    fn mount_tmpfs(&mut self, dir: &Path) {
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).expect("root may");
        self.mounted.push(dir.to_owned());
    }

    fn fill_in(&self, text: &str, pause: &str) -> String {
        let dir = self.dir.to_str().expect("a path of ours");
        text.replace("@BUNDLE@", dir).replace("@ID@", &self.id).replace("@PAUSE@", pause)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for dir in self.mounted.iter().rev() {
            let _ = umount2(dir, MntFlags::MNT_DETACH);
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our file");
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("a writable directory");
    set_mode(path, mode);
}

/// An OCI runtime with a root of its own.
#[derive(Debug)]
pub struct Runtime<'a> {
    /// The name used in complaints.
    pub name: &'static str,
    program: PathBuf,
    scene: &'a Scene,
}

/// How one call of a runtime ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about, on stderr and in its log.
    pub complaint: String,
}

impl<'a> Runtime<'a> {
    /// The runtime `program`.
    pub fn new(scene: &'a Scene, name: &'static str, program: PathBuf) -> Self {
        Self { name, program, scene }
    }

    fn command(&self) -> Command {
        let mut command = self.scene.command(&self.program);
        command.arg("--root").arg(self.scene.path(self.name));
        command.arg("--log").arg(self.log()).args(["--log-format", "json"]);
        command
    }

    fn log(&self) -> PathBuf {
        self.scene.path(format!("{}.log", self.name))
    }

    /// Runs it to its end; what the container inherits are files, so that nobody waits for it.
    #[track_caller]
    fn call(&self, stage: &Stage, args: &[&str]) -> Ended {
        // The container goes on writing to the files that create was given.
        let kind = if args[0] == "create" { "create" } else { "other" };
        let (out, err) = (self.scene.path(format!("{kind}.out")), self.scene.path(format!("{kind}.err")));
        let _ = (fs::remove_file(&out), fs::remove_file(&err));
        let _ = fs::remove_file(self.log());
        let mut command = self.command();
        command.args(args).current_dir(&stage.dir).stdin(Stdio::null());
        command.stdout(fs::File::create(&out).expect("a file")).stderr(fs::File::create(&err).expect("a file"));
        let status = ChildProcess::spawn(&mut command).wait();
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let complaint = format!("{}{}", read(&err), read(&self.log()));
        Ended { code: status.code(), stdout: read(&out), complaint }
    }

    #[track_caller]
    fn must(&self, stage: &Stage, args: &[&str]) -> Ended {
        let ended = self.call(stage, args);
        assert!(ended.code == Some(0), "{} {args:?}: {ended:?}", self.name);
        ended
    }

    fn state(&self, stage: &Stage, id: &str) -> Value {
        serde_json::from_str(&self.must(stage, &["state", id]).stdout).expect("state prints JSON")
    }

    /// Removes the container whatever its state, and returns once no thread of its first process is left: runc takes a
    /// process for dead when its first thread is, and the next container gets the same control group.
    fn sweep(&self, stage: &Stage, id: &str) {
        let state = serde_json::from_str::<Value>(&self.call(stage, &["state", id]).stdout).unwrap_or_default();
        self.call(stage, &["delete", "--force", id]);
        let Some(pid) = state["pid"].as_u64().filter(|pid| *pid > 0) else { return };
        eventually("every thread of a killed process should end", || match process::living_threads(pid) {
            0 => Ok(()),
            living => Err(living),
        });
    }

    /// Runs a specification from create to delete and returns all facts. A failed create or start is a fact too.
    pub fn facts(&self, stage: &Stage, spec: &Value) -> Facts {
        let beside = format!("{}-pause", stage.id);
        let mut pause = String::new();
        if let Some(name) = spec.get(BESIDE).and_then(Value::as_str) {
            let text = config_of(&read_spec(name)).to_string().replace("@ID@", "@ID@-pause");
            let text = text.replace("\"/bin/sh\",\"/probe\"", "\"/bin/sleep\",\"100000\"");
            write(&stage.dir.join("config.json"), &stage.fill_in(&text, ""), 0o644);
            self.must(stage, &["create", &beside]);
            pause = self.state(stage, &beside)["pid"].to_string();
        }
        let config = stage.fill_in(&config_of(spec).to_string(), &pause);
        write(&stage.dir.join("config.json"), &config, 0o644);
        let config: Value = serde_json::from_str(&config).expect("still JSON");
        let mut facts = Facts::new();
        self.live(stage, spec, &config, &mut facts);
        self.sweep(stage, &stage.id);
        if !pause.is_empty() {
            self.sweep(stage, &beside);
        }
        hooks(stage, &mut facts);
        facts
    }

    fn live(&self, stage: &Stage, spec: &Value, config: &Value, facts: &mut Facts) {
        let id = stage.id.as_str();
        let terminal = config["process"]["terminal"] == true;
        let console = self.scene.path("console");
        let _ = fs::remove_file(&console);
        let listener = UnixListener::bind(&console).expect("a free path");
        let mut args = vec!["create", "--pid-file", "pid"];
        if terminal {
            args.extend(["--console-socket", console.to_str().expect("a path of ours")]);
        }
        args.push(id);
        let created = self.call(stage, &args);
        note(facts, "create/code", &format!("{:?}", created.code));
        note(facts, "create/stderr-empty", &created.complaint.is_empty().to_string());
        if created.code != Some(0) {
            note(facts, "create/complaint", &created.complaint);
            return;
        }
        let mut master = terminal.then(|| receive_master(&listener));
        self.state_facts(stage, "state-created", facts);
        let running = self.state(stage, id);
        let started = self.call(stage, &["start", id]);
        note(facts, "start/code", &format!("{:?}", started.code));
        if started.code != Some(0) {
            note(facts, "start/complaint", &started.complaint);
            return;
        }
        let pid: u32 = running["pid"].as_u64().and_then(|n| n.try_into().ok()).expect("a pid");
        let output = match &mut master {
            Some(master) => read_terminal(master),
            None => String::new(),
        };
        if terminal {
            sections("inside", &output, facts);
        }
        eventually("the probe should be done", || {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            // The name changes before the arguments do.
            let args = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let done = (comm.trim() == "sleep" && args.starts_with("/bin/sleep")) || !process::is_alive(pid);
            if done { Ok(()) } else { Err((comm, process::state(pid))) }
        });
        note(facts, "inside/alive", &process::is_alive(pid).to_string());
        if !terminal {
            let output = fs::read(format!("/proc/{pid}/fd/1")).unwrap_or_default();
            sections("inside", &String::from_utf8_lossy(&output), facts);
        }
        outside(pid, facts);
        self.state_facts(stage, "state-running", facts);
        for (name, process) in spec.get("execs").and_then(Value::as_object).into_iter().flatten() {
            let ended = self.exec(stage, process);
            note(facts, &format!("exec-{name}/code"), &format!("{:?}", ended.code));
            if ended.code != Some(0) {
                note(facts, &format!("exec-{name}/complaint"), &ended.complaint);
            }
            sections(&format!("exec-{name}"), &ended.stdout, facts);
        }
        note(facts, "kill/code", &format!("{:?}", self.call(stage, &["kill", id, "KILL"]).code));
        eventually("the container should stop", || {
            let state = self.state(stage, id);
            if state["status"] == "stopped" { Ok(()) } else { Err(state) }
        });
        self.state_facts(stage, "state-stopped", facts);
        note(facts, "delete/code", &format!("{:?}", self.call(stage, &["delete", id]).code));
    }

    fn exec(&self, stage: &Stage, process: &Value) -> Ended {
        let file = stage.dir.join("process.json");
        write(&file, &process.to_string(), 0o644);
        self.call(stage, &["exec", "--process", file.to_str().expect("a path of ours"), &stage.id])
    }

    fn state_facts(&self, stage: &Stage, group: &str, facts: &mut Facts) {
        state_facts(group, &self.state(stage, &stage.id), facts);
    }

    /// Runs a broken specification; tells at which step it failed, and how.
    pub fn broken(&self, stage: &Stage, case: &Value) -> (String, Ended) {
        let mut config = config_of(&read_spec("runc-spec"));
        config["process"]["args"] = json!(["/bin/sleep", "100000"]);
        apply(&mut config, &case["patch"]);
        let text = case.get("raw").and_then(Value::as_str).map_or_else(|| config.to_string(), str::to_owned);
        write(&stage.dir.join("config.json"), &stage.fill_in(&text, ""), 0o644);
        let mut step = "create";
        let mut ended = self.call(stage, &["create", &stage.id]);
        if ended.code == Some(0) {
            step = "start";
            ended = self.call(stage, &["start", &stage.id]);
        }
        if ended.code == Some(0)
            && let Some(process) = case.get("exec")
        {
            step = "exec";
            ended = self.exec(stage, process);
        }
        if step != "exec" && ended.code == Some(0) {
            step = "none";
        }
        self.sweep(stage, &stage.id);
        (step.to_owned(), ended)
    }
}

fn note(facts: &mut Facts, name: &str, value: &str) {
    facts.insert(name.to_owned(), value.to_owned());
}

/// The state's fields, with what must differ reduced to whether it is sound.
fn state_facts(group: &str, state: &Value, facts: &mut Facts) {
    for (name, value) in state.as_object().into_iter().flatten() {
        let value = match name.as_str() {
            "pid" => (value.as_i64() > Some(0)).to_string(),
            "created" => value.as_str().is_some_and(|t| t.len() >= 20 && t.ends_with('Z')).to_string(),
            _ => value.to_string(),
        };
        note(facts, &format!("{group}/{name}"), &value);
    }
}

/// Takes the master of the terminal, as containerd does.
fn receive_master(listener: &UnixListener) -> fs::File {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let (stream, _) = listener.accept().expect("the runtime has connected");
    let mut bytes = [0_u8; 4096];
    let mut iov = [std::io::IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::empty()).expect("a message");
    for control in message.cmsgs().expect("whole control messages") {
        if let ControlMessageOwned::ScmRights(fds) = control {
            return fs::File::from(crate::sys::own(fds[0]));
        }
    }
    panic!("the runtime sent no descriptor");
}

/// Reads the probe's output up to its last line.
fn read_terminal(master: &mut fs::File) -> String {
    let mut text = String::new();
    let mut buffer = [0_u8; 4096];
    while !text.contains("== end") {
        let n = master.read(&mut buffer).unwrap_or(0);
        assert!(n > 0, "the terminal ended early: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    text.replace('\r', "")
}

/// Splits the probe's output at its `== NAME` lines. A line `KEY<tab>VALUE` is a fact of its own.
fn sections(group: &str, output: &str, facts: &mut Facts) {
    let mut section = "start".to_owned();
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            section = name.to_owned();
            note(facts, &format!("{group}/{section}"), "");
            continue;
        }
        let (name, value) = match (section.as_str(), line.split_once([':', '\t'])) {
            ("status", Some((key, value))) => match status_line(key, value) {
                Some(value) => (format!("{group}/status/{key}"), value),
                None => continue,
            },
            ("limits", _) if line.len() > 26 => (format!("{group}/limits/{}", line[..26].trim()), squeeze(&line[26..])),
            (_, Some((key, value))) if line.contains('\t') => (format!("{group}/{section}/{key}"), unnumbered(value)),
            _ => (format!("{group}/{section}"), line.to_owned()),
        };
        let entry = facts.entry(name).or_default();
        if !entry.is_empty() {
            entry.push('\n');
        }
        entry.push_str(&value);
    }
}

/// A pipe, a socket or an anonymous inode without its number.
fn unnumbered(text: &str) -> String {
    match text.split_once(":[") {
        Some((kind @ ("pipe" | "socket" | "anon_inode"), _)) => kind.to_owned(),
        _ => text.to_owned(),
    }
}

fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The value of a line of `/proc/PID/status` that is a property and no measurement.
fn status_line(key: &str, value: &str) -> Option<String> {
    // What a program catches at that moment is its own affair.
    let measured =
        ["SigCgt", "Pid", "PPid", "Tgid", "Ngid", "NSpid", "NStgid", "NSpgid", "NSsid", "FDSize", "State", "SigQ"];
    let dropped = key.starts_with("Vm")
        || key.starts_with("Rss")
        || key.starts_with("Huge")
        || key.contains("ctxt_switches")
        || measured.contains(&key);
    if key == "SigIgn" {
        return Some(ignored_by_itself(value));
    }
    (!dropped).then(|| squeeze(value))
}

/// Less what all that these tests start ignores (under nohup(1), SIGHUP; by glibc's posix_spawn, signal 32): runc passes that
/// on.
fn ignored_by_itself(value: &str) -> String {
    fn bits(text: &str) -> u64 {
        u64::from_str_radix(text.trim(), 16).unwrap_or_default()
    }
    static FROM_US: LazyLock<u64> = LazyLock::new(|| {
        let child = run(Command::new("cat").arg("/proc/self/status"));
        let status = String::from_utf8_lossy(&child.stdout).into_owned();
        status.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(bits).expect("a child can be looked at")
    });
    format!("{:016x}", bits(value) & !*FROM_US)
}

/// What the machine shows of the container's first process and its cgroups.
fn outside(pid: u32, facts: &mut Facts) {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let read = |name: &str| String::from_utf8_lossy(&fs::read(proc.join(name)).unwrap_or_default()).into_owned();
    sections("proc", &format!("== status\n{}", read("status")), facts);
    let depth = read("status").lines().find(|l| l.starts_with("NSpid")).map_or(0, |l| l.split('\t').count());
    note(facts, "proc/status/NSpid-depth", &depth.to_string());
    sections("proc", &format!("== limits\n{}", read("limits")), facts);
    for name in [
        "oom_score_adj",
        "uid_map",
        "gid_map",
        "setgroups",
        "cmdline",
        "environ",
        "cgroup",
        "attr/current",
        "loginuid",
        "sessionid",
        "coredump_filter",
        "timerslack_ns",
        "personality",
        "comm",
        "timens_offsets",
    ] {
        note(facts, &format!("proc/{name}"), read(name).replace('\0', "\n").trim_end());
    }
    for name in ["cwd", "root", "exe"] {
        let link = fs::read_link(proc.join(name)).map(|p| p.display().to_string());
        note(facts, &format!("proc/{name}"), &link.unwrap_or_else(|e| e.to_string()));
    }
    let stat = read("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // Fields 5 to 8 and 18, 19, 40, 41 of proc_pid_stat(5); the list starts with field 3.
    for (name, index) in [("priority", 15), ("nice", 16), ("rt_priority", 37), ("policy", 38)] {
        note(facts, &format!("proc/{name}"), fields.get(index).copied().unwrap_or_default());
    }
    let leads = |index: usize| (fields.get(index) == Some(&pid.to_string().as_str())).to_string();
    note(facts, "proc/leads-group", &leads(2));
    note(facts, "proc/leads-session", &leads(3));
    note(facts, "proc/has-terminal", &(fields.get(4) != Some(&"0")).to_string());
    note(facts, "proc/leads-foreground", &leads(5));
    namespaces(&proc, facts);
    descriptors(&proc, facts);
    mounts(&read("mountinfo"), facts);
    cgroups(&read("cgroup"), facts);
}

fn namespaces(proc: &Path, facts: &mut Facts) {
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
        let own = fs::read_link(format!("/proc/self/ns/{name}")).ok();
        let theirs = fs::read_link(proc.join("ns").join(name)).ok();
        note(facts, &format!("proc/ns/{name}"), if own == theirs { "the machine's" } else { "another" });
    }
}

fn descriptors(proc: &Path, facts: &mut Facts) {
    for entry in fs::read_dir(proc.join("fd")).into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().into_owned();
        let target = fs::read_link(entry.path()).map(|p| p.display().to_string()).unwrap_or_default();
        let info = fs::read_to_string(proc.join("fdinfo").join(&number)).unwrap_or_default();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap_or_default().trim().to_owned();
        // Go always sets O_LARGEFILE, which means nothing here.
        let flags = u32::from_str_radix(&flags, 8).map_or(flags, |n| format!("{:o}", n & !0o100_000));
        note(facts, &format!("proc/fd/{number}"), &format!("{} {flags}", unnumbered(&target)));
    }
}

/// One fact for each mount, and one for their order.
fn mounts(table: &str, facts: &mut Facts) {
    let mut order = Vec::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let dash = fields.iter().position(|f| *f == "-").expect("mountinfo has a separator");
        let mut name = fields[4].to_owned();
        while facts.contains_key(&format!("mount/{name}")) {
            name.push('\'');
        }
        let device = if fields[2].starts_with("0:") { "anonymous" } else { fields[2] };
        // The numbers of peer groups differ; that there is one does not.
        let tags: Vec<&str> = fields[6..dash].iter().map(|t| t.split(':').next().unwrap_or(t)).collect();
        let value =
            format!("{} {device} {} [{}] {}", fields[3], fields[5], tags.join(" "), fields[dash + 1..].join(" "));
        note(facts, &format!("mount/{name}"), &value);
        order.push(name);
    }
    note(facts, "mount-order", &order.join("\n"));
}

/// Every setting in the container's cgroups: files that are written to, and small.
fn cgroups(membership: &str, facts: &mut Facts) {
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let name = controllers.trim_start_matches("name=");
        let dir = if name.is_empty() { "unified" } else { name };
        let dir = Path::new("/sys/fs/cgroup").join(dir).join(path.trim_start_matches('/'));
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let mode = entry.metadata().map(|m| m.permissions().mode()).unwrap_or_default();
            let setting = mode & 0o200 != 0 || file == "devices.list";
            let measured =
                ["usage", "failcnt", "procs", "tasks", "threads", "stat", "pressure", "max_usage", "peak", "events"];
            if !setting || entry.path().is_dir() || measured.iter().any(|word| file.contains(word)) || path == "/" {
                continue;
            }
            let value = fs::read_to_string(entry.path()).unwrap_or_else(|e| e.kind().to_string());
            let mut lines: Vec<&str> = value.trim().lines().collect();
            if file == "devices.list" {
                // A set of rules; later ones of different effect would have changed it already.
                lines.sort_unstable();
            }
            note(facts, &format!("cgroup/{name}/{file}"), &lines.join("\n"));
        }
    }
}

/// What the hooks have written; the files are taken away.
fn hooks(stage: &Stage, facts: &mut Facts) {
    for entry in fs::read_dir(stage.dir.join("hooks")).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let _ = fs::remove_file(entry.path());
        match serde_json::from_str::<Value>(&text) {
            Ok(state) => state_facts(&format!("hook-{file}"), &state, facts),
            Err(_) => note(facts, &format!("hook-{file}"), &text),
        }
    }
}
