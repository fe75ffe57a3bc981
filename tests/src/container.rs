//! A container under a private containerd, made and asked by ctr.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, StartRequest, StartResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use holdfast_proto::control::{OutputRequest, OutputResponse};
use holdfast_proto::service;
use protobuf::Message;

use crate::containerd::{Containerd, RUNTIME, STOCK_RUNTIME};
use crate::shim::TASK;
use crate::wire::{CallError, Connection};
use crate::{Process, process, programs};

/// The OCI runtime below the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oci {
    /// holdfast-oci, which the shim itself chooses because it stands beside it.
    HoldfastOci,
    /// runc, named by a file of options.
    Runc,
    /// crun, likewise.
    Crun,
}

impl Oci {
    /// All, ours first.
    pub const ALL: [Self; 3] = [Self::HoldfastOci, Self::Runc, Self::Crun];

    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::HoldfastOci => "holdfast-oci",
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }

    /// The program.
    ///
    /// # Panics
    /// If `make build` or `tests/peers.sh` has not provided it.
    #[track_caller]
    pub fn program(self) -> PathBuf {
        match self {
            Self::HoldfastOci => programs::ours(self.name()),
            _ => programs::peer(self.name()).unwrap_or_else(|| panic!("tests/peers.sh provides {}", self.name())),
        }
    }

    /// Why it cannot run on this machine, if so.
    pub fn refusal(self) -> Option<&'static str> {
        // Controllers in the v1 hierarchies and a v2 hierarchy beside them.
        let hybrid = Path::new("/sys/fs/cgroup/unified").exists();
        (self == Self::Crun && hybrid).then_some("crun refuses the hybrid cgroup mode")
    }
}

/// Whether there is nothing but version 2, and no controllers in it: in namespaces on a machine that has them in version 1.
pub fn is_without_controllers() -> bool {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    controllers.is_ok_and(|names| !names.split_whitespace().any(|name| name == "cpu"))
}

/// The shim's name for containerd: `HOLDFAST_RUNTIME` names another than ours, to see that the tests themselves are right.
pub(crate) fn runtime() -> String {
    env::var("HOLDFAST_RUNTIME").unwrap_or_else(|_| RUNTIME.into())
}

/// A container of one test, or the plan of one: there is none before [`Container::run`].
#[derive(Clone, Debug)]
pub struct Container<'a> {
    containerd: &'a Containerd<'a>,
    /// Its id.
    pub id: String,
    options: Vec<String>,
}

impl<'a> Container<'a> {
    /// The one of a test that needs only one.
    pub fn new(containerd: &'a Containerd<'a>, oci: Oci) -> Self {
        Self::numbered(containerd, oci, 0)
    }

    /// One of several.
    pub fn numbered(containerd: &'a Containerd<'a>, oci: Oci, n: usize) -> Self {
        match oci {
            Oci::HoldfastOci => Self::with_options(containerd, n, &[]),
            _ => Self::with_program(containerd, n, &oci.program()),
        }
    }

    /// One with the program at `path` as its OCI runtime.
    pub fn with_program(containerd: &'a Containerd<'a>, n: usize, path: &Path) -> Self {
        if runtime() != RUNTIME {
            return Self::with_options(containerd, n, &[]);
        }
        let text = format!("BinaryName = {path:?}\nRoot = {:?}\n", containerd.scene().path("oci-root"));
        Self::with_config(containerd, n, &text)
    }

    /// One whose runtime options are `text`, in TOML.
    pub fn with_config(containerd: &'a Containerd<'a>, n: usize, text: &str) -> Self {
        let file = containerd.scene().path("oci.toml");
        fs::write(&file, text).expect("the scene is writable");
        Self::with_options(containerd, n, &["--runtime-config-path", file.to_str().expect("ours")])
    }

    /// One of containerd's own shim, with runc: for comparison.
    pub fn stock(containerd: &'a Containerd<'a>, n: usize) -> Self {
        let root = containerd.scene().path("oci-root");
        Self::of_runtime(STOCK_RUNTIME, containerd, n, &["--runc-root", root.to_str().expect("ours")])
    }

    fn with_options(containerd: &'a Containerd<'a>, n: usize, more: &[&str]) -> Self {
        Self::of_runtime(&runtime(), containerd, n, more)
    }

    fn of_runtime(runtime: &str, containerd: &'a Containerd<'a>, n: usize, more: &[&str]) -> Self {
        let scene = containerd.scene();
        let id = format!("{}-c{n}", scene.id());
        let fifos = scene.path("fifos");
        let mut options = vec!["--runtime".to_owned(), runtime.to_owned()];
        // A control group named after the container, so that one which stays is found.
        options.extend(["--cgroup".to_owned(), format!("/{id}")]);
        options.extend(["--fifo-dir".to_owned(), fifos.to_str().expect("ours").to_owned()]);
        // ctr asks for a share of the processor unasked, which no runtime can set without the controller.
        if is_without_controllers() {
            options.extend(["--cpu-shares", "0"].map(str::to_owned));
        }
        options.extend(more.iter().map(|&o| o.to_owned()));
        Self { containerd, id, options }
    }

    /// `ctr run FLAGS… --rootfs ROOTFS ID ARGS…`.
    pub fn run_command(&self, flags: &[&str], args: &[&str]) -> Command {
        let mut command = self.containerd.ctr();
        command.arg("run").args(&self.options).args(flags).arg("--rootfs").arg(self.containerd.rootfs());
        command.arg(&self.id).args(args);
        command
    }

    /// `ctr run FLAGS… IMAGE ID ARGS…`: the root filesystem is a snapshot of an image.
    pub fn run_image_command(&self, flags: &[&str], image: &str, args: &[&str]) -> Command {
        let mut command = self.containerd.ctr();
        command.arg("run").args(&self.options).args(flags).args([image, &self.id]).args(args);
        command
    }

    /// Runs a shell script in the container and waits for ctr's end.
    #[track_caller]
    pub fn run(&self, flags: &[&str], script: &str) -> Output {
        process::run(&mut self.run_command(flags, &["/bin/sh", "-c", script]))
    }

    /// Runs a shell script in the container and leaves it running; returns its pid.
    #[track_caller]
    pub fn run_detached(&self, script: &str) -> u32 {
        let output = self.run(&["--detach"], script);
        assert!(output.status.success(), "{}", self.containerd.complain(&output));
        self.containerd.wait_for_status(&self.id, "RUNNING")
    }

    /// Creates the container and does not start it; returns its pid. ctr has no command for that, but gives up between
    /// the two when it cannot write the pid file, and then leaves a task as it is that it was to detach from.
    #[track_caller]
    pub fn create_only(&self, script: &str) -> u32 {
        let output = self.run(&["--detach", "--pid-file", "/proc/none/pid"], script);
        assert!(!output.status.success(), "ctr should have failed to write its pid file");
        self.containerd.wait_for_status(&self.id, "CREATED")
    }

    /// `ctr task exec FLAGS… --exec-id EXEC ID ARGS…`.
    pub fn exec_command(&self, exec_id: &str, flags: &[&str], args: &[&str]) -> Command {
        let mut command = self.containerd.ctr();
        command.args(["task", "exec", "--exec-id", exec_id, "--fifo-dir"]).arg(self.containerd.scene().path("fifos"));
        command.args(flags).arg(&self.id).args(args);
        command
    }

    /// Runs [`Container::exec_command`] to its end.
    #[track_caller]
    pub fn exec(&self, exec_id: &str, flags: &[&str], args: &[&str]) -> Output {
        process::run(&mut self.exec_command(exec_id, flags, args))
    }

    /// The pids that `ctr task ps` lists.
    #[track_caller]
    pub fn pids(&self) -> Vec<u32> {
        let table = self.containerd.ok(&["task", "ps", &self.id]);
        table.lines().skip(1).filter_map(|l| l.split_whitespace().next()?.parse().ok()).collect()
    }

    /// The shim.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn shim(&self) -> Process {
        let word = format!("-id {} ", self.id);
        let pids = process::all().into_iter().filter(|p| {
            let line = format!("{} ", process::describe(*p).trim_end_matches(')'));
            line.contains("containerd-shim") && line.contains(&word)
        });
        Process::of(pids.into_iter().next().expect("a shim"))
    }

    /// The pid of the shim that serves it, by its own word.
    ///
    /// # Panics
    /// If it does not say so.
    #[track_caller]
    pub fn shim_pid(&self) -> u32 {
        let request = ConnectRequest { id: self.id.clone(), ..ConnectRequest::default() };
        self.call::<ConnectResponse>("Connect", &request).expect("Connect never fails").shim_pid
    }

    /// A connection to the shim beside containerd's, for what ctr has no command for.
    #[track_caller]
    fn connection(&self) -> Connection {
        let address = format!("unix://{}", self.address().display());
        Connection::open(&address).expect("a living shim accepts connections")
    }

    /// The path of the shim's socket.
    #[track_caller]
    pub fn address(&self) -> PathBuf {
        let address = fs::read_to_string(self.bundle().join("address")).expect("the shim writes its address");
        address.strip_prefix("unix://").expect("a socket's").into()
    }

    /// Its bundle in containerd's state.
    pub fn bundle(&self) -> PathBuf {
        self.containerd.bundle(crate::containerd::NAMESPACE, &self.id)
    }

    /// Wait, asked of the shim itself, also while containerd is away; the exit status.
    #[track_caller]
    pub fn wait_status(&self, exec_id: &str) -> u32 {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec_id.into(), ..WaitRequest::default() };
        self.call::<WaitResponse>("Wait", &request).expect("Wait").exit_status
    }

    #[track_caller]
    fn call<T: Message>(&self, method: &str, request: &impl Message) -> Result<T, CallError> {
        self.connection().call(TASK, method, request)
    }

    /// What becomes of its output, asked of the shim itself.
    ///
    /// # Panics
    /// If the shim refuses.
    #[track_caller]
    pub fn output(&self) -> OutputResponse {
        let request = OutputRequest { id: self.id.clone(), ..OutputRequest::default() };
        self.connection().call(service::CONTROL, "Output", &request).expect("Output")
    }

    /// Start, asked of the shim itself: ctr can start only what it has just created.
    ///
    /// # Errors
    /// What the shim answers.
    #[track_caller]
    pub fn start(&self) -> Result<StartResponse, CallError> {
        self.call("Start", &StartRequest { id: self.id.clone(), ..StartRequest::default() })
    }

    /// Update, asked of the shim itself: ctr has no command for it.
    ///
    /// # Errors
    /// What the shim answers.
    #[track_caller]
    pub fn update(&self, resources: &serde_json::Value) -> Result<(), CallError> {
        let resources = crate::shim::resources_any(resources);
        let request = UpdateTaskRequest {
            id: self.id.clone(),
            resources: Some(resources).into(),
            ..UpdateTaskRequest::default()
        };
        self.call::<containerd_shim_protos::api::Empty>("Update", &request).map(|_| ())
    }
}
