//! The ip rules and routes, per family, that bring captured packets to the proxy, and its connections to the application.
//!
//! `fwmark FWMARK -> our table`, and `local default dev lo` there: what is captured on its way out, answers of the application among
//! it, comes to `lo` instead of leaving. A socket that is bound to an interface sees only routes by that one, so there is a second
//! route for each (`local default dev eth0`), which leads to `lo` as well. `oif lo -> our table`: the proxy's sockets are bound to
//! `lo` (their TIME_WAIT would exhaust the ports otherwise), and the local table has the pod's address on `eth0`, so such a socket
//! could not reach it (seen: "network is unreachable"). Neither rule lets anything out: they lead to `lo`.
//!
//! Our table is the first of [`ROUTE_TABLES`] that nobody uses. Nothing of the pod's routing is touched or judged but rules that
//! select by our mark, our own rule of `oif lo`, and our routes in our table.

use std::collections::BTreeSet;
use std::io;
use std::ops::RangeInclusive;

use mesh_model::Mark;
use rustix::io::Errno;

use super::links::{self, LOOPBACK, Link};
use super::rules::{FWMARK, Family};
use super::{Drift, Error};
use crate::netlink::{Attributes, CREATE, EXCLUSIVE, Message, REPLACE, Socket, Writer};

/// Numbers for our routing table. Others count up from 100 or name them in `/etc/iproute2/rt_tables` (below 256); random ones of eight
/// digits are rare.
pub const ROUTE_TABLES: RangeInclusive<u32> = 15_001_100..=15_001_115;
/// Priority of the ip rule of the mark: before rules that choose by source address (those of second networks start at 512). The
/// rule of `oif lo` has the next one.
pub const RULE_PRIORITY: u32 = 100;
/// The table of schema 2, whose number others use too.
const FORMER_TABLE: u32 = 100;

pub(super) const NEW_ROUTE: u16 = 24;
pub(super) const DELETE_ROUTE: u16 = 25;
pub(super) const GET_ROUTE: u16 = 26;
pub(super) const NEW_RULE: u16 = 32;
pub(super) const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;

/// `struct rtmsg` and `struct fib_rule_hdr`.
pub(super) const FIXED: usize = 12;
pub(super) const RTN_LOCAL: u8 = 2;
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
    pub(crate) const TO: u16 = 1;
    pub(crate) const INTERFACE: u16 = 4;
    pub(crate) const GATEWAY: u16 = 5;
    pub(crate) const PRIORITY: u16 = 6;
    pub(crate) const SOURCE: u16 = 7;
    pub(crate) const TABLE: u16 = 15;
    pub(crate) const VIA: u16 = 18;
}

impl Family {
    /// `AF_INET`, `AF_INET6`.
    const fn address_family(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// Our ip rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    /// What is captured.
    Captured,
    /// Sockets bound to `lo`.
    BoundToLo,
}

const RULES: [Which; 2] = [Which::Captured, Which::BoundToLo];

impl Which {
    const fn name(self) -> &'static str {
        match self {
            Self::Captured => "what is captured",
            Self::BoundToLo => "sockets bound to lo",
        }
    }

    const fn priority(self) -> u32 {
        match self {
            Self::Captured => RULE_PRIORITY,
            Self::BoundToLo => RULE_PRIORITY + 1,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Captured => format!("fwmark {FWMARK:#x}/{:#x}", Mark::MASK),
            Self::BoundToLo => "oif lo".to_owned(),
        }
    }
}

/// An ip rule, as far as it matters here.
#[derive(Debug)]
struct SeenRule {
    family: Family,
    /// The whole rule as the kernel told it.
    payload: Vec<u8>,
    table: u32,
    priority: u32,
    /// It selects by our mark.
    by_mark: bool,
    /// But for its table, exactly as this one should be.
    is: Option<Which>,
}

/// A route.
#[derive(Debug)]
struct SeenRoute {
    family: Family,
    table: u32,
    interface: u32,
    /// But for table and interface, as ours are.
    like_ours: bool,
}

/// Everything that there is.
#[derive(Debug)]
struct Seen {
    rules: Vec<SeenRule>,
    routes: Vec<SeenRoute>,
    links: Vec<Link>,
    table: u32,
}

impl Seen {
    fn read(socket: &mut Socket) -> Result<Self, Error> {
        let (mut rules, mut routes) = (Vec::new(), Vec::new());
        for family in Family::BOTH {
            let told = |what: &str| Error::kernel(format!("read {} {what}", family.name()));
            rules.extend(read_rules(socket, family).map_err(told("rules"))?);
            routes.extend(read_routes(socket, family).map_err(told("routes"))?);
        }
        let links = links::read(socket).map_err(Error::kernel("read the interfaces"))?;
        let leads = |which| {
            let ours = |rule: &&SeenRule| rule.is == Some(which) && ROUTE_TABLES.contains(&rule.table);
            rules.iter().find(ours).map(|rule| rule.table)
        };
        // What is like ours may be what is left of us: if its number were lost with each rule that somebody takes away, all would be soon.
        let others = |table: u32| {
            rules.iter().any(|rule| rule.table == table && rule.is.is_none())
                || routes.iter().any(|route| route.table == table && !route.like_ours)
        };
        let free = || ROUTE_TABLES.into_iter().find(|table| !others(*table));
        let ours = leads(Which::Captured).or_else(|| leads(Which::BoundToLo)).or_else(free);
        let table = ours.ok_or(Error::NoRouteTable)?;
        Ok(Self { rules, routes, links, table })
    }

    fn has_rule(&self, family: Family, which: Which) -> bool {
        self.rules.iter().any(|rule| rule.family == family && rule.is == Some(which) && rule.table == self.table)
    }

    fn missing_rules(&self, family: Family) -> impl Iterator<Item = Which> {
        RULES.into_iter().filter(move |which| !self.has_rule(family, *which))
    }

    /// Rules that select by our mark and lead elsewhere or otherwise.
    fn extra(&self) -> impl Iterator<Item = &SeenRule> {
        self.rules.iter().filter(|rule| rule.by_mark && !(rule.is.is_some() && rule.table == self.table))
    }

    fn has_route(&self, family: Family, link: &Link) -> bool {
        self.routes.iter().any(|route| {
            route.family == family && route.like_ours && route.table == self.table && route.interface == link.index
        })
    }

    fn missing_routes(&self, family: Family) -> impl Iterator<Item = &Link> {
        let wanted = self.links.iter().filter(move |link| link.is_loopback() || link.can_route(family));
        wanted.filter(move |link| !self.has_route(family, link))
    }

    fn drift(&self) -> Vec<Drift> {
        let extra = self.extra().map(|rule| Drift::IpRuleExtra { family: rule.family.name(), priority: rule.priority });
        let mut drift: Vec<Drift> = extra.collect();
        for family in self.families() {
            let name = family.name();
            let rules = self.missing_rules(family);
            drift.extend(rules.map(|which| Drift::IpRuleMissing { family: name, rule: which.name() }));
            let routes = self.missing_routes(family);
            drift.extend(routes.map(|link| Drift::RouteMissing { family: name, interface: link.name.clone() }));
        }
        drift
    }

    /// Families that the pod has.
    fn families(&self) -> impl Iterator<Item = Family> {
        let has_v6 = self.links.iter().any(|link| link.is_loopback() && link.has_ipv6);
        Family::BOTH.into_iter().filter(move |family| *family == Family::V4 || has_v6)
    }
}

/// Adds what is missing and removes rules that stand in the way. Answers whether anything had to be done.
pub(super) fn ensure(socket: &mut Socket) -> Result<bool, Error> {
    let seen = Seen::read(socket)?;
    let mut changed = false;
    let refused = |family: Family, what: &str| Error::kernel(format!("{what} towards lo ({})", family.name()));
    // Routes first: a rule without them would send what is captured on to the main table.
    for family in seen.families() {
        for link in seen.missing_routes(family) {
            changed = true;
            match add_route(socket, family, seen.table, link.index) {
                Ok(()) => {}
                Err(error) if link.is_loopback() => {
                    return Err(match Errno::from_io_error(&error) {
                        Some(Errno::NETDOWN) => Error::LoopbackDown,
                        _ => refused(family, "add the route")(error),
                    });
                }
                // It went down, or away, since it was read: what is bound to it goes nowhere.
                Err(error) => tracing::debug!(%error, interface = link.name, "no route by this interface"),
            }
        }
        for which in seen.missing_rules(family) {
            changed = true;
            add_rule(socket, family, seen.table, which).map_err(refused(family, "add the ip rule"))?;
        }
    }
    for rule in seen.extra() {
        changed = true;
        delete_rule(socket, &rule.payload).map_err(refused(rule.family, "delete another ip rule"))?;
    }
    remove_former(socket, &seen)?;
    Ok(changed)
}

/// What is missing or in the way. Routes by interfaces that have come since the last look are added: their lack is nobody's doing.
/// `known`: the interfaces of that look.
pub(super) fn audit(socket: &mut Socket, known: &mut BTreeSet<u32>) -> Result<Vec<Drift>, Error> {
    let mut seen = Seen::read(socket)?;
    let usable = seen.links.iter().filter(|link| link.can_route(Family::V4)).map(|link| link.index);
    let here: BTreeSet<u32> = usable.collect();
    if seen.has_rule(Family::V4, Which::Captured) && here.difference(known).next().is_some() {
        for family in seen.families() {
            for link in seen.missing_routes(family).filter(|link| !known.contains(&link.index)) {
                // What does not work stays a difference.
                let _ = add_route(socket, family, seen.table, link.index);
            }
        }
        seen = Seen::read(socket)?;
    }
    *known = here;
    Ok(seen.drift())
}

/// What is missing or in the way.
pub(super) fn drift(socket: &mut Socket) -> Result<Vec<Drift>, Error> {
    Ok(Seen::read(socket)?.drift())
}

/// Whether our rule is there: left behind by a table of ours that somebody took away.
pub(super) fn left_behind(socket: &mut Socket) -> Result<bool, Error> {
    Ok(Seen::read(socket)?.rules.iter().any(|rule| rule.is == Some(Which::Captured)))
}

/// Removes what is ours; fine if there is nothing.
pub(super) fn remove(socket: &mut Socket) -> Result<(), Error> {
    let seen = Seen::read(socket)?;
    let refused = |family: Family, what: &str| Error::kernel(format!("{what} towards lo ({})", family.name()));
    let ours = |rule: &&SeenRule| rule.by_mark || rule.is.is_some() && rule.table == seen.table;
    for rule in seen.rules.iter().filter(ours) {
        delete_rule(socket, &rule.payload).map_err(refused(rule.family, "delete the ip rule"))?;
    }
    for route in seen.routes.iter().filter(|route| route.like_ours && route.table == seen.table) {
        delete_route(socket, route).map_err(refused(route.family, "delete the route"))?;
    }
    remove_former(socket, &seen)
}

/// What schema 2 had in a table that is not ours alone: only where our mark's rule led there, and only what it wrote.
fn remove_former(socket: &mut Socket, seen: &Seen) -> Result<(), Error> {
    let former = |rule: &&SeenRule| rule.is == Some(Which::Captured) && rule.table == FORMER_TABLE;
    for family in seen.rules.iter().filter(former).map(|rule| rule.family) {
        let told = |what: &str| Error::kernel(format!("{what} of an earlier version ({})", family.name()));
        let bound =
            |rule: &&SeenRule| rule.family == family && rule.is == Some(Which::BoundToLo) && rule.table == FORMER_TABLE;
        for rule in seen.rules.iter().filter(bound) {
            delete_rule(socket, &rule.payload).map_err(told("delete the ip rule"))?;
        }
        let route = |route: &&SeenRoute| {
            route.family == family && route.like_ours && route.table == FORMER_TABLE && route.interface == LOOPBACK
        };
        for route in seen.routes.iter().filter(route) {
            delete_route(socket, route).map_err(told("delete the route"))?;
        }
    }
    Ok(())
}

/// Rules and routes as text, for [`super::Session::render`].
pub(super) fn text(socket: &mut Socket) -> Result<String, Error> {
    let seen = Seen::read(socket)?;
    let table = seen.table;
    let mut out = String::new();
    for family in Family::BOTH {
        let name = family.name();
        for which in RULES.into_iter().filter(|which| seen.has_rule(family, *which)) {
            out.push_str(&format!("{name} rule {}: {} lookup {table}\n", which.priority(), which.text()));
        }
        for link in seen.links.iter().filter(|link| seen.has_route(family, link)) {
            out.push_str(&format!("{name} route: local default dev {} table {table}\n", link.name));
        }
        let extra = seen.extra().filter(|rule| rule.family == family);
        out.extend(extra.map(|rule| format!("{name} rule {}: another one of ours\n", rule.priority)));
    }
    Ok(out)
}

/// A kernel without a family has nothing of it.
fn known_family<T>(listed: io::Result<Vec<T>>) -> io::Result<Vec<T>> {
    match listed {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::AFNOSUPPORT | Errno::OPNOTSUPP)) => {
            Ok(Vec::new())
        }
        other => other,
    }
}

fn read_rules(socket: &mut Socket, family: Family) -> io::Result<Vec<SeenRule>> {
    known_family(socket.dump(
        GET_RULE,
        &[family.address_family(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        |_| {},
        |message, found| found.extend(seen_rule(message, family)),
    ))
}

fn seen_rule(message: &Message<'_>, family: Family) -> Option<SeenRule> {
    use rule_attribute::{MARK, MASK, OUTPUT_INTERFACE, PRIORITY, SELECTORS, TABLE};
    let header: &[u8; FIXED] = message.payload.get(..FIXED)?.try_into().ok()?;
    let attributes = message.attributes(FIXED);
    if message.kind != NEW_RULE {
        return None;
    }
    let interface = attributes.text(OUTPUT_INTERFACE);
    let (mark, mask) = (attributes.ne32(MARK).unwrap_or(0), attributes.ne32(MASK).unwrap_or(0));
    let which = match (mark, interface.as_deref()) {
        (FWMARK, None) if mask == Mark::MASK => Some(Which::Captured),
        (0, Some("lo")) if mask == 0 => Some(Which::BoundToLo),
        _ => None,
    };
    let priority = attributes.ne32(PRIORITY).unwrap_or(0);
    let exact = header[..4] == [family.address_family(), 0, 0, 0]
        && header[7] == TO_TABLE
        // "Inverted", and flags that say that the interface is gone.
        && header[8..].iter().all(|flags| *flags == 0)
        && SELECTORS.iter().all(|selector| attributes.find(*selector).is_none());
    Some(SeenRule {
        family,
        payload: message.payload.to_vec(),
        table: attributes.ne32(TABLE).unwrap_or_else(|| u32::from(header[4])),
        priority,
        by_mark: mark == FWMARK,
        is: which.filter(|which| exact && priority == which.priority()),
    })
}

fn read_routes(socket: &mut Socket, family: Family) -> io::Result<Vec<SeenRoute>> {
    known_family(socket.dump(
        GET_ROUTE,
        &[family.address_family(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        |_| {},
        |message, found| found.extend(seen_route(message, family)),
    ))
}

fn seen_route(message: &Message<'_>, family: Family) -> Option<SeenRoute> {
    use route_attribute::{INTERFACE, TABLE};
    let header = message.payload.get(..FIXED)?;
    let attributes = message.attributes(FIXED);
    (message.kind == NEW_ROUTE).then(|| SeenRoute {
        family,
        table: attributes.ne32(TABLE).unwrap_or_else(|| u32::from(header[4])),
        interface: attributes.ne32(INTERFACE).unwrap_or(0),
        like_ours: header[..4] == [family.address_family(), 0, 0, 0] && header[7] == RTN_LOCAL && header[5] == STATIC,
    })
}

const fn rule_header(family: Family) -> [u8; FIXED] {
    [family.address_family(), 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0]
}

fn put_rule(writer: &mut Writer, table: u32, which: Which) {
    use rule_attribute::{MARK, MASK, OUTPUT_INTERFACE, PRIORITY, TABLE};
    for (kind, number) in [(PRIORITY, which.priority()), (TABLE, table)] {
        writer.put(kind, &number.to_ne_bytes());
    }
    match which {
        Which::Captured => {
            writer.put(MARK, &FWMARK.to_ne_bytes());
            writer.put(MASK, &Mark::MASK.to_ne_bytes());
        }
        Which::BoundToLo => writer.put_str(OUTPUT_INTERFACE, "lo"),
    }
}

fn add_rule(socket: &mut Socket, family: Family, table: u32, which: Which) -> io::Result<()> {
    let put = |w: &mut Writer| put_rule(w, table, which);
    there_is_fine(socket.request(NEW_RULE, CREATE | EXCLUSIVE, &rule_header(family), put, |_| {}))
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
    [family.address_family(), 0, 0, 0, 0, STATIC, scope, RTN_LOCAL, 0, 0, 0, 0]
}

fn put_route(writer: &mut Writer, table: u32, interface: u32, metric: Option<u32>) {
    use route_attribute::{INTERFACE, PRIORITY, TABLE};
    writer.put(TABLE, &table.to_ne_bytes());
    writer.put(INTERFACE, &interface.to_ne_bytes());
    if let Some(metric) = metric {
        writer.put(PRIORITY, &metric.to_ne_bytes());
    }
}

/// The route by `lo` comes first for whoever is bound to nothing; two of one metric would take each other's place.
const fn metric(family: Family, interface: u32) -> u32 {
    match (interface, family) {
        (LOOPBACK, Family::V4) => 0,
        // For IPv6 none means 1024.
        (LOOPBACK, Family::V6) => 1,
        _ => 1_000 + interface,
    }
}

fn add_route(socket: &mut Socket, family: Family, table: u32, interface: u32) -> io::Result<()> {
    let put = |w: &mut Writer| put_route(w, table, interface, Some(metric(family, interface)));
    there_is_fine(socket.request(NEW_ROUTE, CREATE | REPLACE, &route_header(family), put, |_| {}))
}

fn delete_route(socket: &mut Socket, route: &SeenRoute) -> io::Result<()> {
    let put = |w: &mut Writer| put_route(w, route.table, route.interface, None);
    gone_is_fine(socket.request(DELETE_ROUTE, 0, &route_header(route.family), put, |_| {}))
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
