//! Standard input and output of the container's processes.

pub mod console;
pub mod fifo;
pub mod log;
pub mod log_writer;
pub mod process;
pub mod relay;
pub mod stdio;
