//! A small client of containerd's own API, its services of containers and of tasks: for what ctr would drown, which takes
//! longer to start than containerd to answer.

use std::path::Path;

use containerd_shim_protos::shim::oci::Options;
use protobuf::{Message, MessageField};

use crate::bundle::busybox_config;
use crate::containerd::{Containerd, NAMESPACE};
use crate::grpc;

/// The messages, from `protos/containerd.proto`.
#[allow(warnings)] // generated
pub mod api {
    include!(concat!(env!("OUT_DIR"), "/containerd.rs"));
}

use api::{
    Any, Container, CreateContainerRequest, CreateContainerResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteContainerRequest, DeleteResponse, DeleteTaskRequest, Empty, KillRequest, Runtime, StartRequest,
    StartResponse, WaitRequest, WaitResponse,
};

/// One that makes containers with one runtime.
#[derive(Clone, Debug)]
pub struct Client<'a> {
    containerd: &'a Containerd<'a>,
    runtime: String,
    options: Option<Any>,
}

impl<'a> Client<'a> {
    /// For the runtime of this name, as `io.containerd.runc.v2`, with its own choice of an OCI runtime or the program that
    /// is given.
    ///
    /// # Panics
    /// If the path is not UTF-8.
    pub fn new(containerd: &'a Containerd<'a>, runtime: &str, oci: Option<&Path>) -> Self {
        let options = oci.map(|program| {
            let options = Options {
                binary_name: program.to_str().expect("ours").into(),
                root: containerd.scene().path("oci-root").to_str().expect("ours").into(),
                ..Options::default()
            };
            Any {
                type_url: "containerd.runc.v1.Options".into(),
                value: options.write_to_bytes().expect("a message encodes"),
                ..Any::default()
            }
        });
        Self { containerd, runtime: runtime.into(), options }
    }

    #[track_caller]
    fn call<T: Message>(&self, method: &str, request: &impl Message) -> T {
        let metadata = [("containerd-namespace", NAMESPACE)];
        let method = format!("containerd.services.{method}");
        grpc::call_with(&self.containerd.socket(), &metadata, &method, request)
            .unwrap_or_else(|e| panic!("{method}: {e}\n{}", self.containerd.log_tail()))
    }

    /// Creates a container in containerd's root file system of busybox, and its task, and starts it; its id.
    ///
    /// # Panics
    /// If one of them is refused; so for everything here.
    #[track_caller]
    pub fn run(&self, n: usize, args: &[&str]) -> String {
        let id = format!("{}-c{n}", self.containerd.scene().id());
        let mut spec = busybox_config(args);
        spec["root"]["path"] = self.containerd.rootfs().to_str().expect("ours").into();
        spec["linux"]["cgroupsPath"] = format!("/{id}").into();
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
            value: spec.to_string().into_bytes(),
            ..Any::default()
        };
        let runtime =
            Runtime { name: self.runtime.clone(), options: self.options.clone().into(), ..Runtime::default() };
        let container = Container {
            id: id.clone(),
            runtime: MessageField::some(runtime),
            spec: MessageField::some(spec),
            ..Container::default()
        };
        let request =
            CreateContainerRequest { container: MessageField::some(container), ..CreateContainerRequest::default() };
        self.call::<CreateContainerResponse>("containers.v1.Containers/Create", &request);
        let request = CreateTaskRequest {
            container_id: id.clone(),
            options: self.options.clone().into(),
            ..CreateTaskRequest::default()
        };
        self.call::<CreateTaskResponse>("tasks.v1.Tasks/Create", &request);
        let request = StartRequest { container_id: id.clone(), ..StartRequest::default() };
        self.call::<StartResponse>("tasks.v1.Tasks/Start", &request);
        id
    }

    /// Sends SIGKILL.
    #[track_caller]
    pub fn kill(&self, id: &str) {
        let request = KillRequest { container_id: id.into(), signal: 9, ..KillRequest::default() };
        self.call::<Empty>("tasks.v1.Tasks/Kill", &request);
    }

    /// Waits for its end, and deletes the task and the container; its exit status.
    #[track_caller]
    pub fn remove(&self, id: &str) -> u32 {
        let request = WaitRequest { container_id: id.into(), ..WaitRequest::default() };
        let status = self.call::<WaitResponse>("tasks.v1.Tasks/Wait", &request).exit_status;
        let request = DeleteTaskRequest { container_id: id.into(), ..DeleteTaskRequest::default() };
        self.call::<DeleteResponse>("tasks.v1.Tasks/Delete", &request);
        let request = DeleteContainerRequest { id: id.into(), ..DeleteContainerRequest::default() };
        self.call::<Empty>("containers.v1.Containers/Delete", &request);
        status
    }
}
