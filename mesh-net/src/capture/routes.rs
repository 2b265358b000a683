//! The ip rules and the route, per family, of the proxy's connections towards the application.
//!
//! `fwmark FWMARK -> table 100`, and `local default dev lo` there: the application's answers come back to `lo` instead of going
//! to the client. `oif lo -> table 100`: the proxy's sockets are bound to `lo` (their TIME_WAIT would exhaust the ports
//! otherwise), and the local table has the pod's address on `eth0`, so such a socket could not reach it (seen: "network is
//! unreachable"). Nothing else of the pod's routing is touched or judged: rules are ours if they use our mark or `oif lo`, and of
//! the table only the default route is. Neither rule lets anything out: they lead to `lo`.

use std::io;

use mesh_model::Mark;
use rustix::io::Errno;

use super::rules::FWMARK;
use super::{Drift, Error};
use crate::netlink::{Attributes, CREATE, EXCLUSIVE, Message, REPLACE, Socket, Writer};

/// The routing table.
pub const ROUTE_TABLE: u32 = 100;
/// Priority of the ip rule of the reply mark: before rules that choose by source address (those of second networks start at
/// 512). The rule of `oif lo` has the next one.
pub const RULE_PRIORITY: u32 = 100;

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
pub(super) const NEW_ROUTE: u16 = 24;
pub(super) const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
pub(super) const NEW_RULE: u16 = 32;
pub(super) const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;

/// `struct rtmsg` and `struct fib_rule_hdr`.
pub(super) const FIXED: usize = 12;
const LOOPBACK: u32 = 1;
const RTN_LOCAL: u8 = 2;
const SCOPE_HOST: u8 = 254;
/// `RTPROT_STATIC`: put there by an administrator.
const STATIC: u8 = 4;
const TO_TABLE: u8 = 1;

/// Attributes of a rule (`FRA_*`).
pub(super) mod rule_attribute {
    pub(crate) const PRIORITY: u16 = 6;
    pub(crate) const MARK: u16 = 10;
    pub(crate) const TABLE: u16 = 15;
    pub(crate) const MASK: u16 = 16;
    pub(crate) const OUTPUT_INTERFACE: u16 = 17;
    /// Further selectors: addresses, input interface, goto, tunnel, l3mdev, uid range, protocol, ports. Ours have none of them.
    pub(crate) const SELECTORS: [u16; 10] = [1, 2, 3, 4, 12, 19, 20, 22, 23, 24];
}

/// Attributes of a route (`RTA_*`).
pub(super) mod route_attribute {
    pub(crate) const INTERFACE: u16 = 4;
    pub(crate) const TABLE: u16 = 15;
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4 = 2,
    V6 = 10,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    const fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// Our ip rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// Answers of the application.
    ReplyMark,
    /// Sockets bound to `lo`.
    BoundToLo,
}

const RULES: [Which; 2] = [Which::ReplyMark, Which::BoundToLo];

impl Which {
    const fn name(self) -> &'static str {
        match self {
            Self::ReplyMark => "the reply mark",
            Self::BoundToLo => "sockets bound to lo",
        }
    }

    const fn priority(self) -> u32 {
        match self {
            Self::ReplyMark => RULE_PRIORITY,
            Self::BoundToLo => RULE_PRIORITY + 1,
        }
    }

    fn text(self) -> String {
        match self {
            Self::ReplyMark => format!("fwmark {FWMARK:#x}/{:#x}", Mark::MASK),
            Self::BoundToLo => "oif lo".to_owned(),
        }
    }
}

/// What there is of ours in one family.
#[derive(Debug, Default)]
struct Seen {
    /// Rules exactly as they should be.
    rules: Vec<Which>,
    /// Other rules that use our mark or `oif lo`: their priority, and the whole rule as the kernel told it.
    extra: Vec<(u32, Vec<u8>)>,
    route: bool,
}

impl Seen {
    fn missing(&self) -> impl Iterator<Item = Which> {
        RULES.into_iter().filter(|which| !self.rules.contains(which))
    }

    fn complete(&self) -> bool {
        self.missing().next().is_none() && self.route
    }
}

/// Adds what is missing and removes rules that stand in the way. Answers whether anything had to be done.
pub(super) fn ensure(socket: &mut Socket) -> Result<bool, Error> {
    let mut changed = false;
    for family in FAMILIES {
        let seen = read(socket, family).map_err(Error::kernel(format!("read {} rules and routes", family.name())))?;
        if seen.complete() && seen.extra.is_empty() || absent(socket, family)? {
            continue;
        }
        changed = true;
        let refused = |what: &str| Error::kernel(format!("{what} towards lo ({})", family.name()));
        for (_, rule) in &seen.extra {
            delete_rule(socket, rule).map_err(refused("delete another ip rule"))?;
        }
        // The route first: a rule without it would send answers on to the main table, to the client.
        if !seen.route {
            add_route(socket, family).map_err(|error| match Errno::from_io_error(&error) {
                Some(Errno::NETDOWN) => Error::LoopbackDown,
                _ => refused("add the route")(error),
            })?;
        }
        for which in seen.missing() {
            add_rule(socket, family, which).map_err(refused("add the ip rule"))?;
        }
    }
    Ok(changed)
}

/// What is missing or in the way.
pub(super) fn drift(socket: &mut Socket) -> Result<Vec<Drift>, Error> {
    let mut drift = Vec::new();
    for family in FAMILIES {
        let name = family.name();
        let seen = read(socket, family).map_err(Error::kernel(format!("read {name} rules and routes")))?;
        drift.extend(seen.extra.iter().map(|(priority, _)| Drift::IpRuleExtra { family: name, priority: *priority }));
        if seen.complete() || absent(socket, family)? {
            continue;
        }
        drift.extend(seen.missing().map(|which| Drift::IpRuleMissing { family: name, rule: which.name() }));
        drift.extend((!seen.route).then_some(Drift::RouteMissing { family: name }));
    }
    Ok(drift)
}

/// Removes what is ours; fine if there is nothing.
pub(super) fn remove(socket: &mut Socket) -> Result<(), Error> {
    for family in FAMILIES {
        let refused = |what: &str| Error::kernel(format!("{what} towards lo ({})", family.name()));
        let seen = read(socket, family).map_err(refused("read the rules and routes"))?;
        for (_, rule) in &seen.extra {
            delete_rule(socket, rule).map_err(refused("delete an ip rule"))?;
        }
        for which in &seen.rules {
            gone_is_fine(socket.request(DELETE_RULE, 0, &rule_header(family), |w| put_rule(w, *which), |_| {}))
                .map_err(refused("delete the ip rule"))?;
        }
        if seen.route {
            gone_is_fine(socket.request(DELETE_ROUTE, 0, &route_header(family), put_route, |_| {}))
                .map_err(refused("delete the route"))?;
        }
    }
    Ok(())
}

/// Rules and routes as text, for [`super::Session::render`].
pub(super) fn text(socket: &mut Socket) -> Result<String, Error> {
    let mut out = String::new();
    for family in FAMILIES {
        let name = family.name();
        let seen = read(socket, family).map_err(Error::kernel(format!("read {name} rules and routes")))?;
        for which in &seen.rules {
            out.push_str(&format!("{name} rule {}: {} lookup {ROUTE_TABLE}\n", which.priority(), which.text()));
        }
        if seen.route {
            out.push_str(&format!("{name} route: local default dev lo table {ROUTE_TABLE}\n"));
        }
        out.extend(seen.extra.iter().map(|(priority, _)| format!("{name} rule {priority}: another one of ours\n")));
    }
    Ok(out)
}

fn read(socket: &mut Socket, family: Family) -> io::Result<Seen> {
    let of_family = [family as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let unknown = |error: io::Error| match Errno::from_io_error(&error) {
        // A kernel without IPv6 has no such rules.
        Some(Errno::AFNOSUPPORT | Errno::OPNOTSUPP) => Ok(Vec::new()),
        _ => Err(error),
    };
    let rules = socket.dump(GET_RULE, &of_family, |_| {}, |message, found| found.extend(our_rule(message, family)));
    let routes = socket.dump(
        GET_ROUTE,
        &of_family,
        |_| {},
        |message, found| {
            if is_our_route(message, family) {
                found.push(());
            }
        },
    );
    let mut seen = Seen { route: !routes.or_else(unknown_routes)?.is_empty(), ..Seen::default() };
    for rule in rules.or_else(unknown)? {
        match rule {
            Ok(which) => seen.rules.push(which),
            Err(extra) => seen.extra.push(extra),
        }
    }
    Ok(seen)
}

fn unknown_routes(error: io::Error) -> io::Result<Vec<()>> {
    match Errno::from_io_error(&error) {
        Some(Errno::AFNOSUPPORT | Errno::OPNOTSUPP) => Ok(Vec::new()),
        _ => Err(error),
    }
}

/// `Ok` for a rule as it should be, `Err` with the whole rule for another one that uses our mark or `oif lo`.
#[allow(clippy::type_complexity)] // Local to this file; a name would hide more than it says.
fn our_rule(message: &Message<'_>, family: Family) -> Option<Result<Which, (u32, Vec<u8>)>> {
    use rule_attribute::{MARK, MASK, OUTPUT_INTERFACE, PRIORITY, SELECTORS, TABLE};
    let header: &[u8; FIXED] = message.payload.get(..FIXED)?.try_into().ok()?;
    let attributes = message.attributes(FIXED);
    if message.kind != NEW_RULE {
        return None;
    }
    let interface = attributes.text(OUTPUT_INTERFACE);
    let (mark, mask) = (attributes.ne32(MARK).unwrap_or(0), attributes.ne32(MASK).unwrap_or(0));
    let (which, selects) = match (mark, interface.as_deref()) {
        (FWMARK, other) => (Which::ReplyMark, mask == Mark::MASK && other.is_none()),
        (_, Some("lo")) => (Which::BoundToLo, mark == 0 && mask == 0),
        _ => return None,
    };
    let as_it_should_be = selects
        && header[..4] == [family as u8, 0, 0, 0]
        && header[7] == TO_TABLE
        // "Inverted", and flags that say that the interface is gone.
        && header[8..].iter().all(|flags| *flags == 0)
        && attributes.ne32(PRIORITY) == Some(which.priority())
        && attributes.ne32(TABLE) == Some(ROUTE_TABLE)
        && SELECTORS.iter().all(|selector| attributes.find(*selector).is_none());
    let priority = attributes.ne32(PRIORITY).unwrap_or(0);
    Some(if as_it_should_be { Ok(which) } else { Err((priority, message.payload.to_vec())) })
}

fn is_our_route(message: &Message<'_>, family: Family) -> bool {
    use route_attribute::{INTERFACE, TABLE};
    let Some(header) = message.payload.get(..FIXED) else { return false };
    let attributes = message.attributes(FIXED);
    message.kind == NEW_ROUTE
        && header[..4] == [family as u8, 0, 0, 0]
        && header[7] == RTN_LOCAL
        && attributes.ne32(TABLE) == Some(ROUTE_TABLE)
        && attributes.ne32(INTERFACE) == Some(LOOPBACK)
}

/// Whether the pod has no such family on `lo`, so that neither rule nor route is wanted.
fn absent(socket: &mut Socket, family: Family) -> Result<bool, Error> {
    /// `IFLA_AF_SPEC`, `IFLA_INET6_CONF`, `DEVCONF_DISABLE_IPV6`.
    const AF_SPEC: u16 = 26;
    const CONF: u16 = 2;
    const DISABLED: usize = 26;
    if family == Family::V4 {
        return Ok(false);
    }
    let mut absent = true;
    let mut link = [0; 16]; // struct ifinfomsg
    link[4..8].copy_from_slice(&LOOPBACK.to_ne_bytes());
    let asked = socket.request(
        GET_LINK,
        0,
        &link,
        |_| {},
        |message| {
            if message.kind != NEW_LINK {
                return;
            }
            let families =
                Attributes::nested(message.attributes(16).find(AF_SPEC).unwrap_or_default()).find(Family::V6 as u16);
            let conf = families.and_then(|v6| Attributes::nested(v6).find(CONF));
            absent = conf.and_then(|conf| conf.get(DISABLED * 4..DISABLED * 4 + 4)) != Some(&[0; 4]);
        },
    );
    asked.map_err(Error::kernel("read interface lo"))?;
    Ok(absent)
}

const fn rule_header(family: Family) -> [u8; FIXED] {
    [family as u8, 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0]
}

fn put_rule(writer: &mut Writer, which: Which) {
    use rule_attribute::{MARK, MASK, OUTPUT_INTERFACE, PRIORITY, TABLE};
    for (kind, number) in [(PRIORITY, which.priority()), (TABLE, ROUTE_TABLE)] {
        writer.put(kind, &number.to_ne_bytes());
    }
    match which {
        Which::ReplyMark => {
            writer.put(MARK, &FWMARK.to_ne_bytes());
            writer.put(MASK, &Mark::MASK.to_ne_bytes());
        }
        Which::BoundToLo => writer.put_str(OUTPUT_INTERFACE, "lo"),
    }
}

fn add_rule(socket: &mut Socket, family: Family, which: Which) -> io::Result<()> {
    there_is_fine(socket.request(NEW_RULE, CREATE | EXCLUSIVE, &rule_header(family), |w| put_rule(w, which), |_| {}))
}

/// Deletes a rule by everything that the kernel told about it.
fn delete_rule(socket: &mut Socket, rule: &[u8]) -> io::Result<()> {
    let (header, attributes) = rule.split_at_checked(FIXED).ok_or(Errno::BADMSG)?;
    let put = |writer: &mut Writer| Attributes::nested(attributes).for_each(|(kind, value)| writer.put(kind, value));
    gone_is_fine(socket.request(DELETE_RULE, 0, header, put, |_| {}))
}

const fn route_header(family: Family) -> [u8; FIXED] {
    let scope = match family {
        Family::V4 => SCOPE_HOST,
        Family::V6 => 0,
    };
    // family, dst_len, src_len, tos, table (in the attribute), protocol, scope, type, flags
    [family as u8, 0, 0, 0, 0, STATIC, scope, RTN_LOCAL, 0, 0, 0, 0]
}

fn put_route(writer: &mut Writer) {
    writer.put(route_attribute::TABLE, &ROUTE_TABLE.to_ne_bytes());
    writer.put(route_attribute::INTERFACE, &LOOPBACK.to_ne_bytes());
}

fn add_route(socket: &mut Socket, family: Family) -> io::Result<()> {
    there_is_fine(socket.request(NEW_ROUTE, CREATE | REPLACE, &route_header(family), put_route, |_| {}))
}

fn there_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => Ok(()),
        other => other,
    }
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::SRCH)) => Ok(()),
        other => other,
    }
}
