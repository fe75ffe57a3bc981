//! The kernel's side of things. Unsafe code, where there is any, is in here and nowhere else.

pub mod mount;
pub(crate) mod signal;
