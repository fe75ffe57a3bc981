//! The shim.

pub mod cgroup;
pub mod cli;
pub mod cmd;
pub mod lifecycle;
pub mod mount_options;
pub mod oci;
pub mod options;
pub mod sys;
