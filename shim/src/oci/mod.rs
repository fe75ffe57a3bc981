//! The OCI runtime: what it is asked, how it is run, what its answers mean.

pub mod command;
pub mod log;
pub mod own_copy;
pub mod resources;
pub mod runner;
pub mod spec;
