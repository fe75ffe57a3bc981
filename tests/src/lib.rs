//! What the integration rings and the benchmarks share.
