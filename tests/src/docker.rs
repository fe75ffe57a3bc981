//! A private dockerd on a private containerd in a scene, and its command line to talk to it. Root only.
//!
//! It has no network and no registry: containers have none, and the image is [`IMAGE`]. What differs between the versions in
//! how a shim is chosen stays in here: 20.10 knows runc's alone, so that ours has to be found under that name.

use std::cell::{Cell, RefCell};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{fs, io, thread};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::container::Oci;
use crate::containerd::{Containerd, RUNTIME};
use crate::eventually::{patience, within};
use crate::image::{self, IMAGE};
use crate::process::{ChildProcess, run};
use crate::programs::DockerVersion;
use crate::{Scene, eventually, gate, http, process, programs};

/// Which shim the containers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shim {
    /// Ours, with this OCI runtime below it.
    Holdfast(Oci),
    /// containerd's own, with runc.
    Stock,
}

/// A dockerd with all that is its in the scene.
#[derive(Debug)]
pub struct Docker<'a> {
    scene: &'a Scene,
    version: DockerVersion,
    shim: Shim,
    /// The containerd that it is a client of.
    pub containerd: Containerd<'a>,
    /// While it runs.
    daemon: RefCell<Option<ChildProcess>>,
    /// The flags that it has unless a behaviour wants others.
    usual: &'static [&'static str],
    /// With these, and without further settings.
    is_as_usual: Cell<bool>,
    /// How many directories of gates there were.
    doors: Cell<u32>,
}

impl<'a> Docker<'a> {
    /// Starts containerd and dockerd, this with more flags than it always has, and gives it the image.
    ///
    /// # Panics
    /// If there is none of this version, or it does not come up.
    #[track_caller]
    pub fn start(scene: &'a Scene, version: DockerVersion, shim: Shim, usual: &'static [&'static str]) -> Self {
        let containerd = Containerd::start(scene, version.containerd());
        if version == DockerVersion::V20_10 && shim != Shim::Stock {
            // As README tells its users.
            let dir = scene.make_dir("first-in-path");
            symlink(programs::shim(), dir.join("containerd-shim-runc-v2")).expect("the scene is writable");
            containerd.restart_with("PATH", &format!("{}:{}", text(&dir), containerd.path()));
        }
        let docker = Self {
            scene,
            version,
            shim,
            containerd,
            daemon: RefCell::default(),
            usual,
            is_as_usual: Cell::new(true),
            doors: Cell::new(0),
        };
        docker.configure(&json!({}));
        docker.is_as_usual.set(true);
        docker.come_back();
        docker.ok(&["load", "--quiet", "--input", text(&image::write(scene))]);
        docker
    }

    /// Writes `daemon.json`: what a dockerd of these tests has in it, and `more`.
    pub fn configure(&self, more: &Value) {
        let mut config = json!({ "runtimes": self.runtimes() });
        let keys = more.as_object().expect("an object").clone();
        config.as_object_mut().expect("an object").extend(keys);
        fs::write(self.scene.path("daemon.json"), config.to_string()).expect("the scene is writable");
        self.is_as_usual.set(false);
    }

    /// The `runtimes` of `daemon.json`: one, with the name [`Docker::runtime`].
    fn runtimes(&self) -> Value {
        let Shim::Holdfast(oci) = self.shim else { return json!({}) };
        match (self.version, oci) {
            (DockerVersion::V20_10, _) => json!({ "holdfast": { "path": oci.program() } }),
            (DockerVersion::V28_5, Oci::HoldfastOci) => json!({ "holdfast": { "runtimeType": RUNTIME } }),
            (DockerVersion::V28_5, _) => {
                let file = self.scene.path("oci.toml");
                let options = format!("BinaryName = {:?}\nRoot = {:?}\n", oci.program(), self.scene.path("oci-root"));
                fs::write(&file, options).expect("the scene is writable");
                json!({ "holdfast": { "runtimeType": RUNTIME, "options": { "ConfigPath": file } } })
            }
        }
    }

    /// What `docker run --runtime` is given.
    pub fn runtime(&self) -> &'static str {
        if self.shim == Shim::Stock { "runc" } else { "holdfast" }
    }

    /// Starts dockerd with its usual flags, and waits until it answers.
    ///
    /// # Panics
    /// As [`Docker::resume`].
    #[track_caller]
    pub fn come_back(&self) {
        self.resume(self.usual);
    }

    /// Starts dockerd with more flags than it always has, these in place of the usual ones, and waits until it answers.
    ///
    /// # Panics
    /// If it does not, with its log.
    #[track_caller]
    pub fn resume(&self, flags: &[&str]) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("a log file");
        let mut command = self.command("dockerd");
        command.arg("--config-file").arg(self.scene.path("daemon.json"));
        for (flag, place) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "dockerd.pid")] {
            command.arg(flag).arg(self.scene.path("docker").join(place));
        }
        command.arg("--host").arg(self.host()).arg("--containerd").arg(self.scene.path("c.sock"));
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
        command.args(["--ip-masq=false", "--userland-proxy=false", "--experimental"]);
        // Named after the scene, so that a control group which stays is found.
        command.arg(format!("--cgroup-parent=/{}", self.scene.id()));
        command.arg("--init-path").arg(self.peer("tini-static")).args(flags);
        self.is_as_usual.set(self.is_as_usual.get() && flags == self.usual);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        fs::create_dir_all(self.scene.path("docker")).expect("the scene is writable");
        *self.daemon.borrow_mut() = Some(ChildProcess::spawn(&mut command));
        eventually("dockerd should answer", || {
            let running = self.daemon.borrow().as_ref().is_some_and(ChildProcess::is_alive);
            assert!(running, "dockerd has ended:\n{}", self.log_tail());
            if matches!(self.try_get("/_ping"), Ok((200, _))) { Ok(()) } else { Err(self.log_tail()) }
        });
    }

    #[track_caller]
    fn peer(&self, name: &str) -> PathBuf {
        programs::docker_peer(self.version, name).expect("tests/peers.sh provides every version")
    }

    /// A program that came with this Docker.
    #[track_caller]
    fn command(&self, name: &str) -> Command {
        self.scene.command(self.peer(name))
    }

    fn host(&self) -> String {
        format!("unix://{}", self.scene.path("d.sock").display())
    }

    fn log_path(&self) -> PathBuf {
        self.scene.path("dockerd.log")
    }

    /// Which one it is.
    pub fn version(&self) -> DockerVersion {
        self.version
    }

    /// Which shim its containers have.
    pub fn shim(&self) -> Shim {
        self.shim
    }

    /// Its scene.
    pub fn scene(&self) -> &Scene {
        self.scene
    }

    /// The daemon's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// The daemon's pid.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.daemon.borrow().as_ref().expect("dockerd runs").pid()
    }

    /// Ends dockerd with SIGKILL.
    pub fn kill(&self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill();
        }
    }

    /// Ends dockerd as an administrator would.
    pub fn stop(&self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.signal(Signal::SIGTERM);
            daemon.wait();
        }
    }

    /// Sends SIGHUP: `daemon.json` is to be read again.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn reload(&self) {
        self.daemon.borrow().as_ref().expect("dockerd runs").signal(Signal::SIGHUP);
    }

    fn try_get(&self, path: &str) -> io::Result<(u16, Vec<u8>)> {
        http::get(UnixStream::connect(self.scene.path("d.sock"))?, path)
    }

    /// What the daemon's API answers. What docker asks for is the same, but it takes a tenth of a second to start.
    #[track_caller]
    fn get(&self, path: &str) -> Vec<u8> {
        match self.try_get(path) {
            Ok((200, body)) => body,
            Ok((status, body)) => panic!("{path}: {status}: {}", String::from_utf8_lossy(&body)),
            Err(e) => panic!("{path}: {e}\n{}", self.log_tail()),
        }
    }

    /// docker, with the daemon's address given.
    pub fn cli(&self) -> Command {
        let mut command = self.command("docker");
        command.env("DOCKER_HOST", self.host()).env("DOCKER_CONFIG", self.scene.path("docker-config"));
        command
    }

    /// Runs docker to its end.
    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> Output {
        run(self.cli().args(args))
    }

    /// Runs docker, which must succeed, and returns what it printed, without the last line's end.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.docker(args);
        assert!(output.status.success(), "docker {args:?}: {}", self.complain(&output));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// `docker run FLAGS… IMAGE sh -c SCRIPT`, with the runtime of the cell and no network.
    pub fn run_command(&self, flags: &[&str], script: &str) -> Command {
        let mut command = self.cli();
        command.args(["run", "--runtime", self.runtime(), "--network", "none"]).args(flags);
        command.args([IMAGE, "/bin/sh", "-c", script]);
        command
    }

    /// Runs a shell script in a container and waits for docker's end.
    #[track_caller]
    pub fn run(&self, flags: &[&str], script: &str) -> Output {
        run(&mut self.run_command(flags, script))
    }

    /// Runs a shell script in a container of this name and leaves it running; returns its pid.
    #[track_caller]
    pub fn run_detached(&self, name: &str, flags: &[&str], script: &str) -> u32 {
        self.run_detached_with_end(name, flags, script);
        self.container_pid(name)
    }

    /// What `docker inspect --format '{{json PART}}'` tells of a container.
    #[track_caller]
    pub fn inspect(&self, name: &str, part: &str) -> Value {
        let told: Value = serde_json::from_slice(&self.get(&format!("/containers/{name}/json"))).expect("JSON");
        let found = told.pointer(&part.replace('.', "/"));
        found.unwrap_or_else(|| panic!("no {part} in {told}")).clone()
    }

    /// The pid of a container's first process; 0 if it does not run.
    #[track_caller]
    pub fn container_pid(&self, name: &str) -> u32 {
        let pid = self.inspect(name, ".State.Pid").as_u64();
        pid.and_then(|pid| pid.try_into().ok()).expect("a pid")
    }

    /// As [`Docker::run_detached`] for one that may end at once.
    #[track_caller]
    pub fn run_detached_with_end(&self, name: &str, flags: &[&str], script: &str) {
        let output = self.run(&[&["--detach", "--name", name], flags].concat(), script);
        assert!(output.status.success(), "{}", self.complain(&output));
    }

    /// Waits until the container has a status, as `exited`, and tells its exit code.
    #[track_caller]
    pub fn wait_for_status(&self, name: &str, status: &str) -> i64 {
        eventually(&format!("{name} should be {status}"), || {
            let state = self.inspect(name, ".State");
            if state["Status"] == status { Ok(state["ExitCode"].as_i64().expect("a number")) } else { Err(state) }
        })
    }

    /// A directory of gates for containers, which no other behaviour has.
    pub fn doors(&self) -> Doors {
        let n = self.doors.get();
        self.doors.set(n + 1);
        Doors { dir: self.scene.make_dir(format!("doors{n}")) }
    }

    /// Both outputs of a container, as `docker logs` gives them.
    #[track_caller]
    pub fn logs(&self, name: &str) -> (String, String) {
        self.logs_from(name, "all")
    }

    /// The last line that a container has printed; dockerd finds it without reading all that is before.
    #[track_caller]
    pub fn last_line(&self, name: &str) -> String {
        self.logs_from(name, "1").0.trim_end().to_owned()
    }

    #[track_caller]
    fn logs_from(&self, name: &str, tail: &str) -> (String, String) {
        let body = self.get(&format!("/containers/{name}/logs?stdout=1&stderr=1&tail={tail}"));
        let text = |b: Vec<u8>| String::from_utf8(b).expect("containers print text");
        if self.inspect(name, ".Config.Tty") == true {
            return (text(body), String::new());
        }
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut rest = &body[..];
        // Each piece is led by the stream's number, three zeroes and its length.
        while let Some((&[stream, 0, 0, 0, a, b, c, d], behind)) = rest.split_first_chunk() {
            let (piece, behind) = behind.split_at(u32::from_be_bytes([a, b, c, d]) as usize);
            if stream == 2 { &mut err } else { &mut out }.extend_from_slice(piece);
            rest = behind;
        }
        assert!(rest.is_empty(), "not in pieces: {:?}", String::from_utf8_lossy(rest));
        (text(out), text(err))
    }

    /// Waits until a container has printed this line.
    #[track_caller]
    pub fn wait_for_line(&self, name: &str, line: &str) {
        eventually(&format!("{name} should print {line:?}"), || match self.logs(name) {
            (out, _) if out.lines().any(|l| l == line) => Ok(()),
            other => Err(other),
        });
    }

    /// What a command of docker has told, and the last lines of the daemons' logs.
    pub fn complain(&self, output: &Output) -> String {
        format!("{}\n{}", self.containerd.complain(output), self.log_tail())
    }

    /// Removes all containers and waits for the end of their shims. Daemons that are away come back for it, and a dockerd that
    /// was told something special forgets it.
    #[track_caller]
    pub fn clear(&self) {
        if !self.containerd.is_running() {
            self.containerd.resume();
        }
        if self.daemon.borrow().is_none() {
            self.come_back();
        }
        let all = self.all();
        if !all.is_empty() {
            let ids: Vec<&str> = all.iter().map(String::as_str).collect();
            self.docker(&[&["rm", "--force", "--volumes"], &ids[..]].concat());
            assert_eq!(self.all(), Vec::<String>::new(), "{}", self.log_tail());
        }
        let ended = within(patience(), || {
            let left: Vec<_> = self.shims().into_iter().map(process::describe).collect();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        if let Err(left) = ended {
            panic!("the shims should end, left are {left:?}\n{}\n{}", self.containerd.log_tail(), self.log_tail());
        }
        if !self.is_as_usual.get() {
            self.stop();
            self.configure(&json!({}));
            self.is_as_usual.set(true);
            self.come_back();
        }
    }

    /// The ids of all containers, also of those that have ended.
    #[track_caller]
    fn all(&self) -> Vec<String> {
        let told: Vec<Value> = serde_json::from_slice(&self.get("/containers/json?all=1")).expect("JSON");
        told.iter().map(|container| container["Id"].as_str().expect("an id").to_owned()).collect()
    }

    /// The pids of all shims.
    pub fn shims(&self) -> Vec<u32> {
        let marked = process::marked(self.scene.id());
        marked.into_iter().filter(|pid| process::describe(*pid).contains("containerd-shim")).collect()
    }

    /// Removes what is left, ends both daemons and takes away what dockerd leaves mounted.
    ///
    /// # Panics
    /// If that is impossible; what else is left, the scene tells.
    #[track_caller]
    pub fn finish(self) {
        self.clear();
        self.stop();
        self.unmount();
        self.remove_cgroup();
    }

    /// dockerd leaves mounts: always that of the host's network namespace, and more when it is killed.
    fn unmount(&self) {
        let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = table.lines().filter_map(|l| l.split(' ').nth(1)).map(Path::new);
        let ours: Vec<&Path> = points.filter(|p| p.starts_with(self.scene.path("docker"))).collect();
        for point in ours.into_iter().rev() {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }

    /// The parent of the containers' control groups, which nobody removes. What is in it is left over, and stays.
    fn remove_cgroup(&self) {
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(hierarchy.path().join(self.scene.id()));
        }
    }
}

/// Gates that containers wait at, see [`gate`], where they have the directory as `/doors`.
#[derive(Debug)]
pub struct Doors {
    /// The directory.
    pub dir: PathBuf,
}

impl Doors {
    /// What `--volume` is given.
    pub fn volume(&self) -> String {
        format!("{}:/doors", text(&self.dir))
    }

    /// Shell words that wait until this gate is open.
    pub fn wait_at(&self, gate: &str) -> String {
        gate::wait_at(&format!("doors/{gate}"))
    }

    /// Opens it.
    #[track_caller]
    pub fn open(&self, gate: &str) {
        gate::open(&self.dir, gate);
    }
}

impl Drop for Docker<'_> {
    /// After a failure, the rest is the scene's.
    fn drop(&mut self) {
        if thread::panicking() {
            self.kill();
            self.unmount();
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}
