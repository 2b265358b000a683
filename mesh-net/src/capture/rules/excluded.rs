//! Rules for what a pod excludes. A connection that begins so becomes a flow that passes, and its packets pass by that: not by their
//! ports, which whoever connects may choose.

use mesh_model::Exclusions;

use super::parts::{Way, accept, change, each, equal, flow, known, of_family, put, still_captured, syn, to_port};
use super::{Family, Rule, rule};
use crate::capture::expr::{Change, Expr};

/// How the names of these rules begin.
const TRANSLATE_IN: &str = "exclude-in";
const PASS_IN: &str = "input-excluded";
const PASS_OUT: &str = "exclude-out";
const KEEP_IN: &str = "keep-in";
const KEEP_OUT: &str = "keep-out";

/// Whether a rule of this name is for something that a pod excludes.
pub(in crate::capture) fn is_exclusion(name: &str) -> bool {
    [TRANSLATE_IN, PASS_IN, PASS_OUT, KEEP_IN, KEEP_OUT]
        .iter()
        .any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-')))
}

/// Where connections that come in are translated: these are not.
pub(super) fn untranslated(exclusions: &Exclusions) -> Vec<Rule> {
    let ports = exclusions.inbound_ports.iter();
    ports.map(|port| rule(format!("{TRANSLATE_IN}-{port}"), [syn(), to_port(*port), accept()])).collect()
}

/// Where packets come in.
pub(super) fn inbound(exclusions: &Exclusions) -> Vec<Rule> {
    let ports = exclusions.inbound_ports.iter();
    let ports = ports.flat_map(|port| Family::BOTH.map(|family| (port, family)));
    let passing = |(port, family): (&u16, Family)| {
        let name = format!("{PASS_IN}-{port}-{}", family.name());
        rule(name, [syn(), to_port(*port), passes(family, Way::In)])
    };
    ports.map(passing).collect()
}

/// Where the proxy begins a connection with an application. A port that is excluded is reached through a tunnel as well. Such a connection stays the proxy's: else a SYN with its numbers, from
/// whoever knows or guesses them, made a flow of it that passes, and its answers left in clear.
pub(super) fn of_proxy(exclusions: &Exclusions) -> Vec<Rule> {
    let ports = exclusions.inbound_ports.iter();
    let ports = ports.flat_map(|port| Family::BOTH.map(|family| (port, family)));
    let kept = |(port, family): (&u16, Family)| {
        let name = format!("{KEEP_IN}-{port}-{}", family.name());
        rule(name, [to_port(*port), known(family, Way::In), put(family.captured())])
    };
    ports.map(kept).collect()
}

/// The answers of those.
pub(super) fn still_captured_by_proxy(exclusions: &Exclusions) -> Vec<Rule> {
    if exclusions.inbound_ports.is_empty() { Vec::new() } else { each(KEEP_OUT, still_captured).into() }
}

/// Where connections leave that begin.
pub(super) fn outbound(exclusions: &Exclusions) -> Vec<Rule> {
    let ports = exclusions.outbound_ports.iter();
    let ports = ports.flat_map(|port| Family::BOTH.map(|family| (port, family))).map(|(port, family)| {
        let name = format!("{PASS_OUT}-{port}-{}", family.name());
        rule(name, [to_port(*port), passes(family, Way::Out)])
    });
    let ranges = exclusions.outbound_ranges.iter().map(|range| {
        let family = if range.is_ipv4() { Family::V4 } else { Family::V6 };
        let to = to_range(family, range.ip(), range.mask(), range.prefix());
        rule(format!("{PASS_OUT}-{range}"), [to, passes(family, Way::Out)])
    });
    ports.chain(ranges).collect()
}

fn passes(family: Family, way: Way) -> Vec<Expr> {
    [of_family(family), flow(family, way), change(family.excluded(), Change::Add), accept()].concat()
}

/// To a link-local address of IPv6 (RFC 4291, 2.5.6).
pub(super) fn on_link() -> Vec<Expr> {
    let [ip, mask] = [0xfe80, 0xffc0].map(|first| std::net::Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0).into());
    to_range(Family::V6, ip, mask, 10)
}

/// Where the destination is in the header: RFC 791, 3.1, and RFC 8200, 3.
fn to_range(family: Family, ip: std::net::IpAddr, mask: std::net::IpAddr, prefix: u8) -> Vec<Expr> {
    use std::net::IpAddr;
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let header = match family {
        Family::V4 => Expr::Network { offset: 16, len: 4, at: 0 },
        Family::V6 => Expr::Network { offset: 24, len: 16, at: 0 },
    };
    let mut exprs = of_family(family);
    if prefix > 0 {
        let (ip, mask) = (octets(ip), octets(mask));
        let xor = vec![0; mask.len()];
        exprs.extend([header, Expr::Bitwise { mask, xor }, equal(&ip)]);
    }
    exprs
}
