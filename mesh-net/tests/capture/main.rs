//! Capture rules asked of the kernel itself: real network namespaces, real TCP, `nft` and `ip` as strangers. Needs root and
//! Debian's `nftables` and `iproute2`; touches nothing outside the namespaces that it makes, which end with the test.
#![allow(clippy::unwrap_used)] // A test may say "this must work here" briefly.

mod bed;
mod bridged;
mod conntrack;
mod drift;
mod enrolment;
mod escape;
mod excluded;
mod flows;
#[cfg(feature = "tokio")]
mod monitor;
mod neighbours;
mod own_nat;
mod owners;
mod rules;
mod segments;
mod spoof;
mod upgrade;
