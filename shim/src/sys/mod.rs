//! The kernel's side: the only place where unsafe code may stand, each block with the reason why it is sound.

pub(crate) mod child;
pub mod fdpass;
pub mod loop_device;
pub mod memory;
pub mod mount;
pub mod mount_helper;
pub(crate) mod mount_tree;
pub(crate) mod namespaces;
pub mod pipe;
pub mod process;
pub(crate) mod ready;
pub mod reaper;
pub mod signal;
pub(crate) mod timer;
pub mod tty;
