//! Standard input and output of the container's processes.

pub mod log;
