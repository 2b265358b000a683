//! Rules as text, much as `nft list` prints them, but from our own read-back: for golden files and `pod-watcher admin rules`.
//!
//! Counters have no values here, and no mark is printed but the public ones: the enrolment's own is `$mark`, any other (of a rule
//! that somebody added) `<a mark>`. Whoever reads the text, or an Event made of it, must not learn how to escape capture.

use std::fmt::Write;
use std::net::IpAddr;

use mesh_model::Mark;

use super::expr::{Change, Expr, Meta, OfSocket};
use super::rules::{FWMARK, Hook, ON_LO};
use super::table::{Seen, SeenChain};

/// The whole table, chains in the order in which a packet meets them.
pub(super) fn table(seen: &Seen, mark: Option<Mark>) -> String {
    let mut out = String::from("table inet culvert {\n");
    if let Some(comment) = &seen.comment {
        let _ = writeln!(out, "\tcomment {comment:?}");
    }
    let flags: Vec<&str> = [(1, "dormant"), (2, "owner"), (4, "persist")]
        .into_iter()
        .filter_map(|(bit, name)| (seen.flags & bit != 0).then_some(name))
        .collect();
    if !flags.is_empty() {
        let _ = writeln!(out, "\tflags {}", flags.join(","));
    }
    if let Some(timeouts) = &seen.timeouts {
        let values: Vec<String> = timeouts.iter().map(|(state, seconds)| format!("{state}: {seconds}")).collect();
        let _ = writeln!(out, "\n\tct timeout {} {{ {} }}", super::rules::TIMEOUTS, values.join(", "));
    }
    let mut sets: Vec<&str> = seen.sets.iter().map(|set| set.name.as_str()).collect();
    sets.sort_unstable();
    for set in sets {
        let _ = writeln!(out, "\n\tset {set}");
    }
    let mut chains: Vec<&SeenChain> = seen.chains.iter().collect();
    chains.sort_by_key(|chain| (chain.hook.as_ref().map(|hook| (hook.number, hook.priority)), chain.name.clone()));
    for chain in chains {
        let _ = writeln!(out, "\n\tchain {} {{", chain.name);
        if let Some(hook) = &chain.hook {
            let policy = if chain.policy == 1 { "accept" } else { "drop" };
            let Hook { kind, priority, .. } = hook;
            let _ =
                writeln!(out, "\t\ttype {kind} hook {} priority {priority}; policy {policy};", hook_name(hook.number));
        }
        for rule in &chain.rules {
            let _ = write!(out, "\t\t{}", exprs(&rule.exprs, mark));
            let _ = if rule.name.is_empty() { writeln!(out) } else { writeln!(out, " comment {:?}", rule.name) };
        }
        out.push_str("\t}\n");
    }
    out.push_str("}\n");
    out
}

fn hook_name(number: u32) -> &'static str {
    ["prerouting", "input", "forward", "output", "postrouting", "ingress"].get(number as usize).unwrap_or(&"unknown")
}

/// What the register holds while a rule is read from left to right.
#[derive(Clone)]
enum Held {
    Nothing,
    Mark(String),
    Interface(&'static str),
    Kind,
    Protocol,
    Family,
    /// And how many bits of it are looked at.
    Address(&'static str, u32),
    Field(String, bool),
    AddressType(&'static str),
    Status,
    Direction,
    /// The numbers of a flow, before it was translated.
    Original,
    Transparent,
    Constant(Vec<u8>),
    Range(Vec<u8>, Vec<u8>),
}

/// One rule's expressions.
pub(super) fn exprs(exprs: &[Expr], mark: Option<Mark>) -> String {
    let mut held = Held::Nothing;
    let words: Vec<String> = exprs.iter().filter_map(|expr| word(expr, &mut held, mark)).collect();
    words.join(" ")
}

fn word(expr: &Expr, held: &mut Held, mark: Option<Mark>) -> Option<String> {
    let loads = match expr {
        Expr::Meta(Meta::Mark) => Held::Mark("meta mark".to_owned()),
        Expr::Meta(Meta::InputInterface) => Held::Interface("iif"),
        Expr::Meta(Meta::OutputInterface) => Held::Interface("oif"),
        Expr::Meta(Meta::InputKind) => Held::Kind,
        Expr::Meta(Meta::Transport) => Held::Protocol,
        Expr::Meta(Meta::Family) => Held::Family,
        Expr::CtStatus => Held::Status,
        Expr::CtDirection => Held::Direction,
        Expr::Original { .. } => Held::Original,
        Expr::Socket(OfSocket::Mark) => Held::Mark("socket mark".to_owned()),
        Expr::Socket(OfSocket::Transparent) => Held::Transparent,
        // The numbers of a flow, of which the last one stands for all.
        Expr::Transport { at: 1.., offset, .. } => {
            *held = Held::Field(if *offset == 2 { "in-out" } else { "out-in" }.to_owned(), false);
            return None;
        }
        Expr::Network { at: 1.., .. } => return None,
        Expr::Transport { offset: 13, len: 1, .. } => Held::Field("tcp flags".to_owned(), true),
        Expr::Transport { offset: 0, len: 2, .. } => Held::Field("th sport".to_owned(), false),
        Expr::Transport { offset: 2, len: 2, .. } => Held::Field("th dport".to_owned(), false),
        Expr::Transport { offset, len, .. } => Held::Field(format!("@th,{},{}", offset * 8, len * 8), false),
        Expr::Network { offset: 16, len: 4, .. } => Held::Address("ip daddr", 32),
        Expr::Network { offset: 24, len: 16, .. } => Held::Address("ip6 daddr", 128),
        Expr::Network { offset, len, .. } => Held::Field(format!("@nh,{},{}", offset * 8, len * 8), false),
        Expr::DestinationType => Held::AddressType("daddr"),
        Expr::SourceType => Held::AddressType("saddr"),
        Expr::Load(value) => Held::Constant(value.clone()),
        Expr::LoadEnd(end) => match std::mem::replace(held, Held::Nothing) {
            Held::Constant(value) => Held::Range(value, end.clone()),
            other => other,
        },
        Expr::Bitwise { mask, xor } => {
            *held = match std::mem::replace(held, Held::Nothing) {
                Held::Mark(what) if number(xor) == Some(0) => Held::Mark(format!("{what} & {}", shown(mask))),
                Held::Mark(what) => Held::Mark(format!("{what} & {} | {}", shown(mask), shown_mark(xor, mark))),
                Held::Address(what, _) => match prefix(mask).filter(|_| xor.iter().all(|byte| *byte == 0)) {
                    Some(bits) => Held::Address(what, bits),
                    None => Held::Field(format!("{what} & {} ^ {}", shown(mask), shown(xor)), false),
                },
                Held::Status if number(xor) == Some(0) => Held::Field(format!("ct status & {}", shown(mask)), false),
                Held::Field(what, is_flags) => {
                    let mask = if is_flags { flag_names(mask) } else { shown(mask) };
                    Held::Field(format!("{what} & ({mask})"), is_flags)
                }
                other => other,
            };
            return None;
        }
        Expr::Cmp { equal, value } => return Some(comparison(held, *equal, value, mark)),
        Expr::SetMark => return Some(format!("meta mark set {}", source(held, mark))),
        Expr::Untrack => return Some("notrack".to_owned()),
        Expr::Timeouts(object) => return Some(format!("ct timeout set {object:?}")),
        Expr::InSet(set) => return Some(format!("{} @{set}", flow(held))),
        Expr::ChangeSet { set, change: Change::Add } => return Some(format!("add @{set} {{ {} }}", flow(held))),
        Expr::ChangeSet { set, change: Change::Delete } => return Some(format!("delete @{set} {{ {} }}", flow(held))),
        Expr::Limit { rate, burst } => return Some(format!("limit rate {rate}/second burst {burst} packets")),
        Expr::Drop => return Some("drop".to_owned()),
        Expr::Jump(chain) => return Some(format!("jump {chain}")),
        Expr::Return => return Some("return".to_owned()),
        Expr::Accept => return Some("accept".to_owned()),
        Expr::Counter(_) => return Some("counter".to_owned()),
        Expr::Redirect | Expr::RedirectRange => return Some(format!("redirect to :{}", port(held))),
        Expr::Steer => return Some(format!("tproxy to :{}", port(held))),
        Expr::Reset => return Some("reject with tcp reset".to_owned()),
        Expr::Other { name, .. } => return Some(format!("<{name}>")),
    };
    *held = loads;
    None
}

fn comparison(held: &Held, equal: bool, value: &[u8], mark: Option<Mark>) -> String {
    let operator = if equal { "==" } else { "!=" };
    let infix = if equal { " " } else { " != " };
    match held {
        Held::Mark(what) => format!("{what} {operator} {}", shown_mark(value, mark)),
        Held::Kind => format!("meta iifkind{infix}{:?}", String::from_utf8_lossy(value).trim_end_matches('\0')),
        Held::Interface(side) if number(value) == Some(1) => format!("{side}{infix}\"lo\""),
        Held::Interface(side) => format!("{side}{infix}{}", shown(value)),
        Held::Protocol => format!("meta l4proto{infix}{}", protocol(value)),
        Held::Family => format!("meta nfproto{infix}{}", family(value)),
        Held::Address(what, bits) => format!("{what}{infix}{}/{bits}", address(value)),
        Held::Field(what, true) => format!("{what} {operator} {}", flag_names(value)),
        Held::Field(what, false) => match value.try_into() {
            Ok(bytes) => format!("{what}{infix}{}", u16::from_be_bytes(bytes)),
            Err(_) => format!("{what}{infix}{}", shown(value)),
        },
        Held::AddressType(which) if number(value) == Some(2) => format!("fib {which} type{infix}local"),
        Held::AddressType(which) => format!("fib {which} type{infix}{}", shown(value)),
        Held::Status => format!("ct status {operator} {}", shown(value)),
        Held::Direction if value == [1] => format!("ct direction{infix}reply"),
        Held::Direction => format!("ct direction{infix}{}", shown(value)),
        Held::Transparent => format!("socket transparent{infix}{}", shown(value)),
        Held::Original | Held::Constant(_) | Held::Range(..) | Held::Nothing => {
            format!("<cmp {operator} {}>", shown(value))
        }
    }
}

fn source(held: &Held, mark: Option<Mark>) -> String {
    match held {
        Held::Mark(what) | Held::Field(what, _) => what.clone(),
        Held::Constant(value) => match value.as_slice().try_into() {
            Ok(bytes) => u16::from_ne_bytes(bytes).to_string(),
            Err(_) => shown_mark(value, mark),
        },
        Held::Nothing
        | Held::Interface(_)
        | Held::Kind
        | Held::Protocol
        | Held::Family
        | Held::Address(..)
        | Held::AddressType(_)
        | Held::Status
        | Held::Direction
        | Held::Original
        | Held::Transparent
        | Held::Range(..) => "<register>".to_owned(),
    }
}

/// Which way the flow in the registers goes.
fn flow(held: &Held) -> &'static str {
    match held {
        // Its last number is the far port: a destination on the way out.
        Held::Field(way, _) if way == "in-out" => "saddr . sport . daddr . dport",
        Held::Field(way, _) if way == "out-in" => "daddr . dport . saddr . sport",
        Held::Original => "ct original saddr . proto-src . daddr . proto-dst",
        _ => "<registers>",
    }
}

fn port(held: &Held) -> String {
    let port = |value: &[u8]| value.get(..2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes);
    match held {
        Held::Constant(value) => port(value).map(|port| port.to_string()),
        Held::Range(first, last) => port(first).zip(port(last)).map(|(first, last)| format!("{first}-{last}")),
        _ => None,
    }
    .unwrap_or_else(|| "<register>".to_owned())
}

fn shown_mark(value: &[u8], own: Option<Mark>) -> String {
    match number(value).map(|number| (number, number & Mark::MASK)) {
        Some((number, 0 | FWMARK | ON_LO)) => format!("{number:#x}"),
        Some((_, masked)) if own.is_some_and(|own| own.value() == masked) => "$mark".to_owned(),
        _ => "<a mark>".to_owned(),
    }
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

fn shown(value: &[u8]) -> String {
    number(value).map_or_else(
        || value.iter().fold(String::from("0x"), |text, byte| format!("{text}{byte:02x}")),
        |number| format!("{number:#x}"),
    )
}

fn protocol(value: &[u8]) -> String {
    match value {
        [6] => "tcp".to_owned(),
        [17] => "udp".to_owned(),
        other => shown(other),
    }
}

fn family(value: &[u8]) -> String {
    match value {
        [2] => "ipv4".to_owned(),
        [10] => "ipv6".to_owned(),
        other => shown(other),
    }
}

/// How many bits a mask leaves, if it leaves the first ones.
fn prefix(mask: &[u8]) -> Option<u32> {
    let bits: u32 = mask.iter().map(|byte| byte.leading_ones()).sum();
    let ones: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let ends = mask.iter().skip_while(|byte| **byte == 0xff).skip(1).all(|byte| *byte == 0);
    (bits == ones && ends).then_some(bits)
}

fn address(value: &[u8]) -> String {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).map_or_else(|_| shown(value), |ip| ip.to_string())
}

fn flag_names(value: &[u8]) -> String {
    const NAMES: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"];
    let bits = value.first().copied().unwrap_or(0);
    let set: Vec<&str> =
        NAMES.iter().enumerate().filter_map(|(bit, name)| (bits & (1 << bit) != 0).then_some(*name)).collect();
    set.join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: u32 = 0x1234_5678;

    fn bytes(number: u32) -> Vec<u8> {
        number.to_ne_bytes().to_vec()
    }

    fn check(rule: &[Expr], with_mark: &str, without: &str) {
        assert_eq!(
            (exprs(rule, Mark::from_random(SECRET)), exprs(rule, None)),
            (with_mark.to_owned(), without.to_owned())
        );
    }

    #[test]
    fn a_range_is_shown_as_one_only_if_it_is_one() {
        let rule = |mask: [u8; 4], xor: [u8; 4]| {
            let header = Expr::Network { offset: 16, len: 4, at: 0 };
            let value = vec![10, 0, 0, 0];
            let bitwise = Expr::Bitwise { mask: mask.to_vec(), xor: xor.to_vec() };
            exprs(&[header, bitwise, Expr::Cmp { equal: true, value }], None)
        };
        assert_eq!(rule([255, 0, 0, 0], [0; 4]), "ip daddr 10.0.0.0/8");
        assert_eq!(rule([255, 240, 0, 0], [0; 4]), "ip daddr 10.0.0.0/12");
        for (mask, xor) in [([255, 0, 255, 0], [0; 4]), ([254, 1, 0, 0], [0; 4]), ([255, 0, 0, 0], [1, 0, 0, 0])] {
            assert!(!rule(mask, xor).contains("10.0.0.0/"), "{}", rule(mask, xor));
        }
        let header = Expr::Network { offset: 24, len: 16, at: 0 };
        let value = std::net::Ipv6Addr::LOCALHOST.octets().to_vec();
        assert_eq!(exprs(&[header, Expr::Cmp { equal: true, value }], None), "ip6 daddr ::1/128");
    }

    #[test]
    fn no_text_shows_a_mark_that_is_not_public() {
        let equal = |value| Expr::Cmp { equal: true, value: bytes(value) };
        check(&[Expr::Meta(Meta::Mark), equal(SECRET)], "meta mark == $mark", "meta mark == <a mark>");
        check(&[Expr::Meta(Meta::Mark), equal(SECRET | !Mark::MASK)], "meta mark == $mark", "meta mark == <a mark>");
        check(&[Expr::Meta(Meta::Mark), equal(9)], "meta mark == <a mark>", "meta mark == <a mark>");
        check(&[Expr::Load(bytes(SECRET)), Expr::SetMark], "meta mark set $mark", "meta mark set <a mark>");
        check(&[Expr::Meta(Meta::Mark), equal(FWMARK)], "meta mark == 0xc71002", "meta mark == 0xc71002");
        let set = Expr::Bitwise { mask: bytes(!Mark::MASK), xor: bytes(SECRET) };
        check(
            &[Expr::Meta(Meta::Mark), set, Expr::SetMark],
            "meta mark set meta mark & 0x80000000 | $mark",
            "meta mark set meta mark & 0x80000000 | <a mark>",
        );
    }
}
