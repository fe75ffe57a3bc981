//! The commands: one file each, named after what the program was called to do.

pub mod delete;
pub mod hand_on;
pub mod hold;
pub mod info;
pub mod mount;
mod orphans;
mod reply;
pub mod serve;
mod socket;
pub mod start;
pub mod sweep;
