//! Promises that need a real Kubernetes: `cargo xtask test cluster`. Root, and the parts that `cargo xtask` makes; without them these
//! tests fail, they are never skipped.

mod after_power_cut;
#[path = "../figure.rs"]
mod figure;
mod leaves_nothing;
#[path = "../machine.rs"]
mod machine;
mod serves;
mod support;
