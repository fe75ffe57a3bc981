//! The supervisor and its command line.
