//! The embedded OCI runtime.
fn main() {}
