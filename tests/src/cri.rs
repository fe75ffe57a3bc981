//! A private containerd as a kubelet drives it: pods and their containers, over the Container Runtime Interface.
//!
//! The handler `holdfast` is configured by what README shows for this containerd and OCI runtime, so a snippet there that does
//! not work fails the tests. Pods have the node's network, unless a test wants another; that one is made by a plugin
//! which a dozen lines of shell are enough for, since nothing but loopback is in it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{env, fs};

use protobuf::{EnumOrUnknown, Message, MessageField};

use crate::container::Oci;
use crate::containerd::{Containerd, RUNTIME};
use crate::grpc::{self, CallError};
use crate::image::{self, IMAGE};
use crate::process::{self, Process};
use crate::programs::{self, Version};
use crate::{Scene, eventually, until};

pub mod stream;

/// The messages of the interface, from `protos/cri.proto`.
#[allow(warnings)] // generated
pub mod api {
    include!(concat!(env!("OUT_DIR"), "/cri.rs"));
}

use api::{
    ContainerConfig, ContainerState, ContainerStatsRequest, ContainerStatsResponse, ContainerStatus,
    ContainerStatusRequest, ContainerStatusResponse, CreateContainerRequest, CreateContainerResponse, DNSConfig,
    ExecSyncRequest, ExecSyncResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    ListPodSandboxRequest, ListPodSandboxResponse, NamespaceMode, NamespaceOption, PodSandbox, PodSandboxConfig,
    PodSandboxMetadata, RemoveContainerRequest, RemoveContainerResponse, RemovePodSandboxRequest,
    RemovePodSandboxResponse, ReopenContainerLogRequest, ReopenContainerLogResponse, RunPodSandboxRequest,
    RunPodSandboxResponse, StartContainerRequest, StartContainerResponse, StatusRequest, StatusResponse,
    StopContainerRequest, StopContainerResponse, StopPodSandboxRequest, StopPodSandboxResponse,
    UpdateContainerResourcesRequest, UpdateContainerResourcesResponse,
};

/// containerd's namespace of all that kubelets make.
pub const NAMESPACE: &str = "k8s.io";

/// The handler's name, as README has it.
const HANDLER: &str = "holdfast";

/// A containerd with its plugin for kubelets.
#[derive(Debug)]
pub struct Cri<'a> {
    containerd: &'a Containerd<'a>,
}

impl<'a> Cri<'a> {
    /// Starts the daemon anew with the plugin, and gives it the one image there is.
    #[track_caller]
    pub fn start(containerd: &'a Containerd<'a>, oci: Oci) -> Self {
        Self::with_program(containerd, (oci != Oci::HoldfastOci).then(|| oci.program()).as_deref())
    }

    /// As [`Cri::start`], with systemd to make the control groups.
    #[track_caller]
    pub fn start_with_systemd(containerd: &'a Containerd<'a>, oci: Oci) -> Self {
        Self::configured(containerd, Some(&oci.program()), "\nSystemdCgroup = true")
    }

    /// As [`Cri::start`], with the program at a path as the OCI runtime, or the shim's own choice.
    #[track_caller]
    pub fn with_program(containerd: &'a Containerd<'a>, program: Option<&Path>) -> Self {
        Self::configured(containerd, program, "")
    }

    #[track_caller]
    fn configured(containerd: &'a Containerd<'a>, program: Option<&Path>, more: &str) -> Self {
        write_network(containerd.scene());
        containerd.restart_with_cri(&sections(containerd, program, more));
        let cri = Self { containerd };
        cri.wait_until_ready();
        image::import_into(containerd, NAMESPACE);
        until("the image should be known", || {
            let request = ImageStatusRequest { image: image_spec(), ..ImageStatusRequest::default() };
            grpc::call::<ImageStatusResponse>(&containerd.socket(), "runtime.v1.ImageService/ImageStatus", &request)
                .ok()?
                .image
                .into_option()
        });
        cri
    }

    /// The daemon.
    pub fn containerd(&self) -> &Containerd<'a> {
        self.containerd
    }

    /// Ends the daemon with SIGKILL.
    pub fn kill(&self) {
        self.containerd.kill();
    }

    /// Starts the daemon again, and waits until it serves pods.
    #[track_caller]
    pub fn resume(&self) {
        self.containerd.resume();
        self.wait_until_ready();
    }

    #[track_caller]
    fn wait_until_ready(&self) {
        eventually("the plugin for kubelets should be ready", || {
            let status: StatusResponse = self.call("Status", &StatusRequest::default())?;
            let ready = status.status.conditions.iter().any(|c| c.type_ == "RuntimeReady" && c.status);
            if ready { Ok(()) } else { Err(CallError::Connection(format!("{status}"))) }
        });
    }

    /// Calls the runtime service.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call<T: Message>(&self, method: &str, request: &impl Message) -> Result<T, CallError> {
        grpc::call(&self.containerd.socket(), &format!("runtime.v1.RuntimeService/{method}"), request)
    }

    /// As [`Cri::call`], for what must succeed.
    #[track_caller]
    fn ok<T: Message>(&self, method: &str, request: &impl Message) -> T {
        self.call(method, request).unwrap_or_else(|e| panic!("{method}: {e}\n{}", self.containerd.log_tail()))
    }

    /// What a pod is to be like: the node's network, one pid namespace for each container, as pods have it by default.
    pub fn pod_config(&self, name: &str) -> PodSandboxConfig {
        let scene = self.containerd.scene();
        let metadata = PodSandboxMetadata {
            name: name.into(),
            uid: format!("{}-{name}", scene.id()),
            namespace: "tests".into(),
            ..PodSandboxMetadata::default()
        };
        let namespaces = NamespaceOption {
            network: NamespaceMode::NODE.into(),
            pid: NamespaceMode::CONTAINER.into(),
            ipc: NamespaceMode::POD.into(),
            ..NamespaceOption::default()
        };
        let security = LinuxSandboxSecurityContext {
            namespace_options: MessageField::some(namespaces),
            ..LinuxSandboxSecurityContext::default()
        };
        let linux = LinuxPodSandboxConfig {
            // As a kubelet makes it: named after the scene, so that what stays in it is found.
            cgroup_parent: format!("/{}-pods/{name}", scene.id()),
            security_context: MessageField::some(security),
            ..LinuxPodSandboxConfig::default()
        };
        let logs = scene.make_dir(format!("pod-logs/{name}"));
        PodSandboxConfig {
            metadata: MessageField::some(metadata),
            log_directory: logs.to_str().expect("ours").into(),
            dns_config: MessageField::some(DNSConfig { servers: vec!["192.0.2.1".into()], ..DNSConfig::default() }),
            linux: MessageField::some(linux),
            ..PodSandboxConfig::default()
        }
    }

    /// Runs a pod as [`Cri::pod_config`] has it.
    #[track_caller]
    pub fn run_pod(&self, name: &str) -> Pod<'_> {
        self.run_pod_with(self.pod_config(name))
    }

    /// Runs a pod.
    #[track_caller]
    pub fn run_pod_with(&self, config: PodSandboxConfig) -> Pod<'_> {
        self.try_run_pod(config).unwrap_or_else(|e| panic!("RunPodSandbox: {e}\n{}", self.containerd.log_tail()))
    }

    /// Runs a pod.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn try_run_pod(&self, config: PodSandboxConfig) -> Result<Pod<'_>, CallError> {
        let request = RunPodSandboxRequest {
            config: MessageField::some(config.clone()),
            runtime_handler: HANDLER.into(),
            ..RunPodSandboxRequest::default()
        };
        let response: RunPodSandboxResponse = self.call("RunPodSandbox", &request)?;
        Ok(Pod { cri: self, config, id: response.pod_sandbox_id })
    }

    /// All pods there are.
    #[track_caller]
    pub fn pods(&self) -> Vec<PodSandbox> {
        self.ok::<ListPodSandboxResponse>("ListPodSandbox", &ListPodSandboxRequest::default()).items
    }

    /// The pids of the shims that run.
    pub fn shims(&self) -> Vec<u32> {
        let is_shim = |pid: &u32| process::describe(*pid).contains("containerd-shim");
        process::marked(self.containerd.scene().id()).into_iter().filter(is_shim).collect()
    }

    /// Stops and removes all pods that are left, and asserts that nothing of any pod remains: no shim, no record, no bundle, no
    /// log but the pods' own. The control groups above the pods are a kubelet's affair, thus ours.
    #[track_caller]
    pub fn finish(self) {
        for pod in self.pods() {
            self.take_away(&pod.id);
        }
        eventually("every shim should end", || match self.shims() {
            left if left.is_empty() => Ok(()),
            left => Err(left.into_iter().map(process::describe).collect::<Vec<_>>()),
        });
        let scene = self.containerd.scene();
        assert_eq!(scene.run_files(), Vec::<String>::new(), "all files of shims should be gone");
        let bundles = self.containerd.bundle(NAMESPACE, "");
        let left: Vec<PathBuf> = fs::read_dir(bundles).into_iter().flatten().flatten().map(|e| e.path()).collect();
        assert_eq!(left, Vec::<PathBuf>::new(), "all bundles should be gone");
        scene.remove_empty_cgroups();
    }

    /// Stops and removes a pod, by its id.
    #[track_caller]
    pub fn take_away(&self, id: &str) {
        self.stop_pod(id);
        self.remove_pod(id);
    }

    #[track_caller]
    fn stop_pod(&self, id: &str) {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.into(), ..StopPodSandboxRequest::default() };
        self.ok::<StopPodSandboxResponse>("StopPodSandbox", &request);
    }

    #[track_caller]
    fn remove_pod(&self, id: &str) {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.into(), ..RemovePodSandboxRequest::default() };
        self.ok::<RemovePodSandboxResponse>("RemovePodSandbox", &request);
    }
}

/// A pod that was run.
#[derive(Debug)]
pub struct Pod<'a> {
    cri: &'a Cri<'a>,
    config: PodSandboxConfig,
    /// Its id, which is that of the container that holds its namespaces too.
    pub id: String,
}

impl<'a> Pod<'a> {
    /// Creates a container that runs a shell script.
    #[track_caller]
    pub fn create(&self, name: &str, script: &str) -> PodContainer<'a> {
        self.create_with(name, script, |_| ())
    }

    /// As [`Pod::create`], of another configuration.
    #[track_caller]
    pub fn create_with(&self, name: &str, script: &str, change: impl FnOnce(&mut ContainerConfig)) -> PodContainer<'a> {
        let namespaces = self.config.linux.security_context.namespace_options.clone();
        let security =
            LinuxContainerSecurityContext { namespace_options: namespaces, ..LinuxContainerSecurityContext::default() };
        let linux =
            LinuxContainerConfig { security_context: MessageField::some(security), ..LinuxContainerConfig::default() };
        let mut config = ContainerConfig {
            metadata: MessageField::some(api::ContainerMetadata {
                name: name.into(),
                ..api::ContainerMetadata::default()
            }),
            image: image_spec(),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            linux: MessageField::some(linux),
            ..ContainerConfig::default()
        };
        change(&mut config);
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: MessageField::some(config),
            sandbox_config: MessageField::some(self.config.clone()),
            ..CreateContainerRequest::default()
        };
        let response: CreateContainerResponse = self.cri.ok("CreateContainer", &request);
        let log = Path::new(&self.config.log_directory).join(format!("{name}.log"));
        PodContainer { cri: self.cri, id: response.container_id, log }
    }

    /// Creates and starts a container that runs a shell script.
    #[track_caller]
    pub fn run(&self, name: &str, script: &str) -> PodContainer<'a> {
        let container = self.create(name, script);
        container.start();
        container
    }

    /// The shim that serves it: the one that has its id in its command line.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn shim(&self) -> Process {
        Process::of(self.shim_pid())
    }

    #[track_caller]
    fn shim_pid(&self) -> u32 {
        let shims = self.cri.shims();
        let of_pod = shims.iter().find(|pid| process::describe(**pid).contains(&self.id));
        *of_pod.unwrap_or_else(|| panic!("no shim of {} among {shims:?}", self.id))
    }

    /// The first processes of all that is in it.
    #[track_caller]
    pub fn processes(&self) -> Vec<u32> {
        let shim = self.shim_pid();
        process::all().into_iter().filter(|pid| process::parent(*pid) == Some(shim)).collect()
    }

    /// Whether it is there and ready for containers; `None` if there is no such pod.
    #[track_caller]
    pub fn is_ready(&self) -> Option<bool> {
        let pod = self.cri.pods().into_iter().find(|pod| pod.id == self.id)?;
        Some(pod.state == EnumOrUnknown::new(api::PodSandboxState::SANDBOX_READY))
    }

    /// Ends everything in it.
    #[track_caller]
    pub fn stop(&self) {
        self.cri.stop_pod(&self.id);
    }

    /// Takes it away.
    #[track_caller]
    pub fn remove(&self) {
        self.cri.remove_pod(&self.id);
    }
}

/// A line of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// What was printed.
    pub text: String,
}

/// A container of a pod.
#[derive(Clone, Debug)]
pub struct PodContainer<'a> {
    cri: &'a Cri<'a>,
    /// Its id.
    pub id: String,
    /// Its log, as the daemon writes it.
    pub log: PathBuf,
}

impl PodContainer<'_> {
    /// Starts it.
    #[track_caller]
    pub fn start(&self) {
        let log_tail = || self.cri.containerd.log_tail();
        self.try_start().unwrap_or_else(|e| panic!("StartContainer: {e}\n{}", log_tail()));
    }

    /// Starts it.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn try_start(&self) -> Result<(), CallError> {
        let request = StartContainerRequest { container_id: self.id.clone(), ..StartContainerRequest::default() };
        self.cri.call::<StartContainerResponse>("StartContainer", &request).map(drop)
    }

    /// Its status.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn try_status(&self) -> Result<ContainerStatus, CallError> {
        Ok(self.full_status()?.status.unwrap_or_default())
    }

    /// Its status.
    #[track_caller]
    pub fn status(&self) -> ContainerStatus {
        self.try_status().unwrap_or_else(|e| panic!("ContainerStatus: {e}"))
    }

    fn full_status(&self) -> Result<ContainerStatusResponse, CallError> {
        let id = self.id.clone();
        let request = ContainerStatusRequest { container_id: id, verbose: true, ..ContainerStatusRequest::default() };
        self.cri.call("ContainerStatus", &request)
    }

    /// Whether it runs.
    #[track_caller]
    pub fn is_running(&self) -> bool {
        self.status().state == EnumOrUnknown::new(ContainerState::CONTAINER_RUNNING)
    }

    /// Waits for its end; its exit code and the reason that the daemon gives.
    #[track_caller]
    pub fn wait(&self) -> (i32, String) {
        let status = eventually("the container should end", || match self.try_status() {
            Ok(status) if status.state == EnumOrUnknown::new(ContainerState::CONTAINER_EXITED) => Ok(status),
            other => Err(Box::new(other)),
        });
        (status.exit_code, status.reason)
    }

    /// The pid of its first process, by the daemon's word.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let info = self.full_status().expect("a container of ours").info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).expect("it is JSON");
        info["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a running one has a pid")
    }

    /// Runs a shell script in it to its end: the exit code, and what was printed to either output.
    #[track_caller]
    pub fn exec(&self, script: &str) -> (i32, String, String) {
        let response = self.try_exec(&["/bin/sh", "-c", script], 0);
        let response = response.unwrap_or_else(|e| panic!("ExecSync: {e}\n{}", self.cri.containerd.log_tail()));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (response.exit_code, text(&response.stdout), text(&response.stderr))
    }

    /// Runs a command in it, for as many seconds at most; 0 means for ever.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn try_exec(&self, command: &[&str], seconds: i64) -> Result<ExecSyncResponse, CallError> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: seconds,
            ..ExecSyncRequest::default()
        };
        self.cri.call("ExecSync", &request)
    }

    /// Ends it by its signal and, after as many seconds, by force.
    #[track_caller]
    pub fn stop(&self, seconds: i64) {
        let id = self.id.clone();
        let request = StopContainerRequest { container_id: id, timeout: seconds, ..StopContainerRequest::default() };
        self.cri.ok::<StopContainerResponse>("StopContainer", &request);
    }

    /// Takes it away.
    #[track_caller]
    pub fn remove(&self) {
        let request = RemoveContainerRequest { container_id: self.id.clone(), ..RemoveContainerRequest::default() };
        self.cri.ok::<RemoveContainerResponse>("RemoveContainer", &request);
    }

    /// Has the daemon open its log anew, after somebody has moved it.
    #[track_caller]
    pub fn reopen_log(&self) {
        let id = self.id.clone();
        let request = ReopenContainerLogRequest { container_id: id, ..ReopenContainerLogRequest::default() };
        self.cri.ok::<ReopenContainerLogResponse>("ReopenContainerLog", &request);
    }

    /// Its figures: nanoseconds of the processor, bytes of memory.
    #[track_caller]
    pub fn figures(&self) -> (u64, u64) {
        let request = ContainerStatsRequest { container_id: self.id.clone(), ..ContainerStatsRequest::default() };
        let stats = self.cri.ok::<ContainerStatsResponse>("ContainerStats", &request).stats.unwrap_or_default();
        (stats.cpu.usage_core_nano_seconds.value, stats.memory.working_set_bytes.value)
    }

    /// Sets its limits.
    #[track_caller]
    pub fn update(&self, resources: LinuxContainerResources) {
        let request = UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: MessageField::some(resources),
            ..UpdateContainerResourcesRequest::default()
        };
        self.cri.ok::<UpdateContainerResourcesResponse>("UpdateContainerResources", &request);
    }

    /// The lines of its log.
    #[track_caller]
    pub fn log_lines(&self) -> Vec<LogLine> {
        log_lines(&self.log)
    }

    /// Waits until the last line of its log is `text`.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str) {
        eventually(&format!("{text:?} should be logged"), || match self.log_lines() {
            lines if lines.last().is_some_and(|line| line.text == text) => Ok(()),
            lines => Err(lines),
        });
    }

    /// Its bundle.
    pub fn bundle(&self) -> PathBuf {
        self.cri.containerd.bundle(NAMESPACE, &self.id)
    }

    /// Its root filesystem, as the machine sees it while it is mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    /// Its state file.
    #[track_caller]
    pub fn record(&self) -> PathBuf {
        record(self.cri.containerd.scene(), &self.id)
    }
}

/// The state file of a container: one daemon's containers are in one directory, whose name is a matter of the shim.
///
/// # Panics
/// If no shim has run in the scene.
#[track_caller]
pub fn record(scene: &Scene, id: &str) -> PathBuf {
    let instances = fs::read_dir(scene.run_dir().join("tasks")).expect("a shim has run").flatten();
    let instance = instances.map(|entry| entry.path()).next().expect("a daemon has containers");
    instance.join(NAMESPACE).join(id).join("record.json")
}

/// The state files of all containers, as text.
pub fn records(scene: &Scene) -> Vec<String> {
    let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let instances = entries(scene.run_dir().join("tasks"));
    let containers = instances.flat_map(|instance| entries(instance.join(NAMESPACE)));
    containers.filter_map(|dir| fs::read_to_string(dir.join("record.json")).ok()).collect()
}

/// The lines of a log: a time, the stream, `F` for a whole line, the text.
///
/// # Panics
/// If a line is not of that form.
#[track_caller]
pub fn log_lines(path: &Path) -> Vec<LogLine> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // One that is being written has no end yet.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let parse = |line: &str| {
        let mut fields = line.splitn(4, ' ');
        let (time, stream, tag, text) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let is_time = time.len() >= "2026-01-01T00:00:00Z".len() && time.contains('T');
        (is_time && tag == "F").then(|| LogLine { stream: stream.into(), text: text.into() })
    };
    whole.lines().map(|line| parse(line).unwrap_or_else(|| panic!("not a line of a log: {line:?}"))).collect()
}

/// A pod's configuration, with a network and a host name of its own.
pub fn with_own_network(mut config: PodSandboxConfig) -> PodSandboxConfig {
    let linux = config.linux.as_mut().expect("Cri::pod_config gives it");
    let security = linux.security_context.as_mut().expect("so it does");
    security.namespace_options.as_mut().expect("so it does").network = NamespaceMode::POD.into();
    config.hostname = "pod-of-holdfast".into();
    config
}

fn image_spec() -> MessageField<ImageSpec> {
    MessageField::some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() })
}

/// The configuration of the plugin: what README shows, and what makes it private and lets it run on any machine. `more` are
/// lines for the options of a program.
#[track_caller]
fn sections(containerd: &Containerd<'_>, program: Option<&Path>, more: &str) -> String {
    let scene = containerd.scene();
    let (plugins, conf) = (scene.path("cni/bin"), scene.path("cni/conf"));
    // Without CAP_SYS_RESOURCE nothing may have a lower score than who starts it.
    let common = "restrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true\n";
    let own = if containerd.version() < Version::V2_1 {
        let root = "plugins.\"io.containerd.grpc.v1.cri\"";
        format!(
            "[{root}]\nsandbox_image = {IMAGE:?}\n{common}\
             [{root}.cni]\nbin_dir = {plugins:?}\nconf_dir = {conf:?}\n"
        )
    } else {
        let root = "plugins.\"io.containerd.cri.v1.runtime\"";
        format!(
            "[{root}]\n{common}[{root}.cni]\nbin_dirs = [{plugins:?}]\nconf_dir = {conf:?}\n\
             [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = {IMAGE:?}\n"
        )
    };
    let series = match containerd.version() {
        Version::V1_6 | Version::V1_7 => "1.6 and 1.7",
        Version::V2_1 => "2.x",
    };
    let handler = readme_snippet(&format!("# the handler, containerd {series}"));
    // Another shim, to see that the tests themselves are right.
    let another = env::var("HOLDFAST_RUNTIME").ok();
    let mut text = own + &another.iter().fold(handler, |text, name| text.replace(RUNTIME, name));
    if let Some(program) = program {
        let series = match containerd.version() {
            Version::V1_6 if another.is_none() => "1.6",
            Version::V1_6 | Version::V1_7 => "1.7",
            Version::V2_1 => "2.x",
        };
        let file = scene.path("runtime.toml");
        let options = with_program(&readme_snippet(RUNTIME_OPTIONS), scene, program, more);
        fs::write(&file, options).expect("the scene is writable");
        let snippet = readme_snippet(&format!("# its OCI runtime, containerd {series}"));
        text +=
            &with_program(&snippet, scene, program, more).replace("\"/etc/holdfast/runc.toml\"", &format!("{file:?}"));
    }
    text
}

/// The first line of README's snippet with runtime options.
const RUNTIME_OPTIONS: &str = "BinaryName = \"/usr/sbin/runc\"";

/// Runtime options of README with a program in the place of runc, whose state is in the scene.
fn with_program(text: &str, scene: &Scene, program: &Path, more: &str) -> String {
    let name = format!("BinaryName = {program:?}\nRoot = {:?}{more}", scene.path("oci-root"));
    text.replace(RUNTIME_OPTIONS, &name)
}

/// A snippet of README: the indented lines from one that begins so.
///
/// # Panics
/// If there is none.
#[track_caller]
pub fn readme_snippet(first: &str) -> String {
    let readme = fs::read_to_string(programs::repository().join("README.md")).expect("README.md is in the tree");
    let mut lines = readme.lines().skip_while(|line| !line.strip_prefix("    ").is_some_and(|l| l.starts_with(first)));
    let snippet: Vec<&str> = lines.by_ref().map_while(|line| line.strip_prefix("    ")).collect();
    assert!(!snippet.is_empty(), "README has no snippet that begins with {first:?}");
    snippet.join("\n") + "\n"
}

/// A network of nothing but the loopback device. `loopback` is the name under which containerd looks for who brings that up.
#[track_caller]
fn write_network(scene: &Scene) {
    let busybox = programs::busybox().expect("a static busybox: `make peers`");
    // The address is told and exists nowhere: containerd takes no pod without one.
    let plugin = format!(
        "#!/bin/sh\n\
         case $CNI_COMMAND in\n\
         VERSION) echo '{{\"cniVersion\":\"0.3.1\",\"supportedVersions\":[\"0.3.1\"]}}' ;;\n\
         ADD)\n\
             {busybox:?} nsenter --net=\"$CNI_NETNS\" {busybox:?} ip link set lo up || exit 1\n\
             echo '{{\"cniVersion\":\"0.3.1\",\"interfaces\":[{{\"name\":\"eth0\",\"sandbox\":\"'\"$CNI_NETNS\"'\"}}],'\\\n\
                 '\"ips\":[{{\"version\":\"4\",\"interface\":0,\"address\":\"192.0.2.2/24\"}}]}}' ;;\n\
         esac\n"
    );
    let plugins = scene.make_dir("cni/bin");
    for name in ["loopback", "holdfast-test"] {
        let path = plugins.join(name);
        fs::write(&path, &plugin).expect("the scene is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a file of ours");
    }
    let list = "{\"cniVersion\":\"0.3.1\",\"name\":\"test\",\"plugins\":[{\"type\":\"holdfast-test\"}]}";
    fs::write(scene.make_dir("cni/conf").join("1.conflist"), list).expect("the scene is writable");
}
