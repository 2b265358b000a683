//! `culvert-loadtest`: see `cargo xtask bench`.

fn main() {}
