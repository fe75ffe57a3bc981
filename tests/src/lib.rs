//! What the integration rings and the benchmarks share.

pub mod holdfastd;
