//! The kernel's side: the only place where unsafe code may stand, each block with the reason why it is sound.

pub mod fdpass;
pub mod mount;
pub mod pipe;
pub mod process;
pub(crate) mod ready;
pub mod reaper;
pub mod signal;
pub mod tty;
