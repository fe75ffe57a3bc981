//! Standard input and output of the container's processes.

pub mod console;
pub mod fifo;
pub mod log;
pub mod log_writer;
pub mod logger;
mod pace;
mod polled;
pub mod process;
pub mod relay;
pub mod spill;
pub mod stdio;
mod watch;
