//! holdfast's own API (`protos/holdfast/`) and the files that two of its programs read.
//!
//! Hardly more than names: what a message means is said in its `.proto` file, what a record means in [`record`], what the
//! shims' settings mean in [`shim_settings`]. containerd's own API is not here; it comes from the crate `containerd-shim-protos`.

pub mod record;
pub mod regular;
pub mod shim_settings;
pub mod size;

/// `holdfast.shim.v1`: what a shim answers beyond containerd's task service.
#[allow(warnings)] // generated
pub mod control {
    include!(concat!(env!("OUT_DIR"), "/control.rs"));
}

/// The ttrpc client and server of [`control`].
#[cfg(feature = "services")]
#[allow(warnings)] // generated
pub mod control_ttrpc {
    use super::control;
    include!(concat!(env!("OUT_DIR"), "/control_ttrpc.rs"));
}

/// `holdfast.supervisor.v1`: the supervisor's API.
#[allow(warnings)] // generated
pub mod supervisor {
    include!(concat!(env!("OUT_DIR"), "/supervisor.rs"));
}

/// The ttrpc client and server of [`supervisor`].
#[cfg(feature = "services")]
#[allow(warnings)] // generated
pub mod supervisor_ttrpc {
    use super::supervisor;
    include!(concat!(env!("OUT_DIR"), "/supervisor_ttrpc.rs"));
}

/// The ttrpc service names that a shim answers to.
pub mod service {
    /// containerd 1.6 to 2.x, for shims that replied with protocol version 2.
    pub const TASK_V2: &str = "containerd.task.v2.Task";
    /// containerd 2.x, for shims that replied with protocol version 3; same messages as version 2.
    pub const TASK_V3: &str = "containerd.task.v3.Task";
    /// containerd 2.x, for a pod whose sandbox the shim makes.
    pub const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";
    /// Ours.
    pub const CONTROL: &str = "holdfast.shim.v1.Control";
}
