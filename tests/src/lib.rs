//! What the integration rings and the benchmarks share.
pub mod oci_bundle;
