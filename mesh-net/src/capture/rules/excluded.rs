//! Rules for what a pod excludes: they pass both lines and count.

use std::net::IpAddr;

use mesh_model::Exclusions;

use super::parts::{accept, equal, syn, to_port};
use super::{Rule, rule};
use crate::capture::expr::{Expr, Meta};

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// How the names of these rules begin: where the others redirect, and where they refuse what was not redirected.
pub(super) const REDIRECT_IN: &str = "exclude-in";
pub(super) const REDIRECT_OUT: &str = "exclude-out";
pub(super) const REFUSE_IN: &str = "input-excluded";
pub(super) const REFUSE_OUT: &str = "output-excluded";

/// Whether a rule of this name is for something that a pod excludes.
pub(in crate::capture) fn is_exclusion(name: &str) -> bool {
    [REDIRECT_IN, REDIRECT_OUT, REFUSE_IN, REFUSE_OUT]
        .iter()
        .any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-')))
}

pub(super) fn inbound(name: &str, exclusions: &Exclusions) -> Vec<Rule> {
    let ports = exclusions.inbound_ports.iter();
    ports.map(|port| rule(format!("{name}-{port}"), [syn(), to_port(*port), accept()])).collect()
}

pub(super) fn outbound(name: &str, exclusions: &Exclusions) -> Vec<Rule> {
    let ports = exclusions.outbound_ports.iter();
    let ports = ports.map(|port| rule(format!("{name}-{port}"), [syn(), to_port(*port), accept()]));
    let ranges = exclusions.outbound_ranges.iter().map(|range| {
        let to = to_range(range.ip(), range.mask(), range.prefix());
        rule(format!("{name}-{range}"), [syn(), to, accept()])
    });
    ports.chain(ranges).collect()
}

/// Where the destination is in the header: RFC 791, 3.1, and RFC 8200, 3.
fn to_range(ip: IpAddr, mask: IpAddr, prefix: u8) -> Vec<Expr> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (family, header) = match ip {
        IpAddr::V4(_) => (IPV4, Expr::Network { offset: 16, len: 4 }),
        IpAddr::V6(_) => (IPV6, Expr::Network { offset: 24, len: 16 }),
    };
    let mut exprs = vec![Expr::Meta(Meta::Family), equal(&[family])];
    if prefix > 0 {
        let (ip, mask) = (octets(ip), octets(mask));
        let xor = vec![0; mask.len()];
        exprs.extend([header, Expr::Bitwise { mask, xor }, equal(&ip)]);
    }
    exprs
}
