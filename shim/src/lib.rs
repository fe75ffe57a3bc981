//! The shim.

pub mod cli;
pub mod options;
