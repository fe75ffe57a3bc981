//! The shim.

pub mod cgroup;
pub mod cli;
pub mod cmd;
pub mod io;
pub mod logging;
pub mod mount_options;
pub mod oci;
pub mod options;
mod rfc3339;
pub mod sys;
