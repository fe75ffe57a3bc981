//! The shim.

pub mod cli;
pub mod oci;
pub mod options;
