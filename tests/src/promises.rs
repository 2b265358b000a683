//! One test binary, one module per promise. The lab modules run the real binaries in real nodes and need root; without it they
//! fail, they are never skipped.

mod architecture;
mod probes;
mod support;
