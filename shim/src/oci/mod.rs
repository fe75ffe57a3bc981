//! The OCI runtime as the shim sees it: a program with a command line, a log file and a bundle.
//!
//! [`command`] says what it is asked, [`log`] what it answers, [`spec`] what the bundle says. All three are pure but for
//! the one read in [`spec`]; running the program is not done here.

pub mod command;
pub mod log;
pub mod spec;
