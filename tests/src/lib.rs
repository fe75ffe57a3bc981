//! What the integration rings, the benchmark and the demonstration stand on.
//!
//! Everything here drives programs from outside, as their users do: a shim by its command line and its socket, an OCI
//! runtime by being one, containerd by ctr. Nothing links the code under test, so the same harness runs against any
//! runtime-v2 shim; that is how it is known to be right (`HOLDFAST_SHIM` names another one). The one exception is
//! `freeze-host`, a program that serves our shim in order to freeze and thaw it.
//!
//! ```text
//!   Scene ─── directory, environment mark, the check that nothing is left over
//!     ├── Bundle ── Shim ── Connection          the shim under test, spoken to frame by frame
//!     ├── FakeContainerd                        takes its events
//!     ├── FakeRuntime                           what it believes to be runc (ring 2)
//!     └── Containerd ── Container               a private one of any version, with its ctr (ring 3); see matrix
//!           ├── Cri ── Pod ── PodContainer      the same as a kubelet drives it
//!           ├── controller::Sandbox             the same for a client that drives sandboxes
//!           └── Docker                          a private dockerd on it, with its command line
//! ```
//!
//! Ring 2 starts in `tests/lifecycle.rs`, ring 3 in `tests/with_containerd.rs`.

pub mod bundle;
pub mod client;
pub mod container;
pub mod containerd;
pub mod controller;
pub mod cri;
pub mod disk;
pub mod docker;
pub mod eventually;
pub mod fake_containerd;
pub mod fake_runtime;
pub mod figures;
pub mod freezable;
pub mod gate;
pub mod grpc;
pub mod holdfastd;
pub mod http;
pub mod image;
pub mod journal;
pub mod live_restore;
pub mod logger;
pub mod machine;
pub mod matrix;
pub mod numbered;
pub mod oci_bundle;
pub mod outside;
pub mod parity;
pub mod process;
pub mod programs;
pub mod readme;
#[cfg(target_arch = "x86_64")]
pub mod sabotage;
pub mod sandbox;
pub mod scene;
pub mod several;
pub mod shim;
pub mod skip;
pub mod stdio;
pub mod sys;
pub mod tracer;
pub mod traps;
pub mod window;
pub mod wire;
pub mod world;

pub use bundle::Bundle;
pub use disk::Disk;
pub use eventually::{eventually, until};
pub use fake_containerd::FakeContainerd;
pub use fake_runtime::FakeRuntime;
pub use freezable::Freezable;
pub use process::Process;
pub use sandbox::Sandbox;
pub use scene::Scene;
pub use shim::{Launch, Shim};
pub use stdio::{Reader, Stdio};
pub use window::Window;
pub use world::FakeWorld;
