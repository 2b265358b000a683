//! placeholder while modules land
#![allow(dead_code, unused_imports)]
mod enrol;
fn main() {}
