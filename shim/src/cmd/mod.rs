//! The commands: one file each, named after what the program was called to do.

pub mod delete;
pub mod info;
pub mod mount;
pub mod serve;
pub mod start;
