//! Two books of the same events. One is kept by the client, from what it did itself; the other is read from a node's metrics and access
//! log. Both have the same entries, so that they can be compared as wholes: nothing may be missing, and nothing may be there besides.

use std::collections::BTreeMap;

use anyhow::Result;
use lab::Lab;
use serde_json::Value;

use crate::scrape::{self, Series};
use crate::talk::field;

/// Entry → count. Entries that are zero are not there.
pub(crate) type Book = BTreeMap<String, u64>;

/// What became of a connection that was set up: `response_flags` and the reason, if it was not simply the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End(pub(crate) Option<(&'static str, &'static str)>);

impl End {
    /// Both ends had said all they had to say.
    pub(crate) const DONE: End = End(None);

    fn flags(self) -> &'static str {
        self.0.map_or("-", |(flags, _)| flags)
    }
}

/// One end of a connection as its node sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    /// Number of the node.
    pub(crate) node: usize,
    /// As in logs and metrics: `outbound`, `inbound`, `inbound-tunnel`.
    pub(crate) direction: &'a str,
    /// Service account of the caller, `unknown` where it has proven none.
    pub(crate) from: &'a str,
    /// Service account of the called one.
    pub(crate) to: &'a str,
    /// How the identities were proven.
    pub(crate) security: &'a str,
}

/// The client's own books, one a node.
#[derive(Debug, Default)]
pub(crate) struct Ledger(BTreeMap<usize, Book>);

impl Ledger {
    fn add(&mut self, node: usize, entry: String, count: u64) {
        if count > 0 {
            *self.0.entry(node).or_default().entry(entry).or_default() += count;
        }
    }

    /// The book of a node.
    pub(crate) fn of(&self, node: usize) -> Book {
        self.0.get(&node).cloned().unwrap_or_default()
    }

    /// A connection was set up, moved bytes (`up` to the called one, `down` to the caller) and ended. `scope`: how far it went.
    pub(crate) fn moved(&mut self, seen: Seen<'_>, scope: &str, up: u64, down: u64, end: End) {
        let Seen { node, direction, from, to, security } = seen;
        let caller = direction == "outbound";
        let series = format!("{} {from}>{to} {security}", if caller { "source" } else { "destination" });
        self.add(node, format!("opened {series} -"), 1);
        self.add(node, format!("closed {series} {}", end.flags()), 1);
        self.add(node, format!("received {series} -"), up);
        self.add(node, format!("sent {series} -"), down);
        let (own, sent, received) = if caller { (from, up, down) } else { (to, down, up) };
        self.add(node, format!("pod {own} sent {scope}"), sent);
        self.add(node, format!("pod {own} received {scope}"), received);
        let (outcome, reason) = match end.0 {
            None => ("ok", "-"),
            Some((_, reason)) => {
                self.add(node, format!("ended {direction} {reason}"), 1);
                ("ended", reason)
            }
        };
        let line = format!("line {direction} {from}>{to} {security}");
        self.add(node, format!("{line} {outcome} {reason}"), 1);
        self.add(node, format!("{line} sent"), up);
        self.add(node, format!("{line} received"), down);
    }

    /// A connection was refused before it moved a byte.
    pub(crate) fn refused(&mut self, seen: Seen<'_>, flags: &str, reason: &str) {
        let Seen { node, direction, from, to, security } = seen;
        let reporter = if direction == "outbound" { "source" } else { "destination" };
        self.add(node, format!("failed {reporter} {from}>{to} {security} {flags}"), 1);
        // A tunnel that never came to be: the peer has proven nothing.
        if direction == "inbound-tunnel" && from == "unknown" {
            self.add(node, format!("handshake {reason}"), 1);
        }
        self.add(node, format!("refused {direction} {reason}"), 1);
        self.add(node, format!("line {direction} {from}>{to} {security} refused {reason}"), 1);
    }
}

/// What a node's worker tells of all connections so far.
pub(crate) fn told(lab: &Lab, node: usize) -> Result<Book> {
    let mut book = Book::new();
    let mut add = |entry: String, count: u64| {
        if count > 0 {
            *book.entry(entry).or_default() += count;
        }
    };
    for one in scrape::series(&lab.mesh().worker_metrics(node)?)? {
        if let Some(entry) = of_series(&one) {
            add(entry, one.value as u64);
        }
    }
    for line in lab.mesh().access_log(node) {
        let account = |key: &str| account(field(&line, key)).to_owned();
        let ends = format!("{}>{}", account("source_identity"), account("destination_identity"));
        let entry = format!("line {} {ends} {}", field(&line, "direction"), field(&line, "security"));
        let reason = Some(field(&line, "reason")).filter(|reason| !reason.is_empty()).unwrap_or("-");
        add(format!("{entry} {} {reason}", field(&line, "outcome")), 1);
        let bytes = |key: &str| line.get(key).and_then(Value::as_u64).unwrap_or(0);
        add(format!("{entry} sent"), bytes("sent"));
        add(format!("{entry} received"), bytes("received"));
    }
    Ok(book)
}

/// The entry that a series is one count of.
fn of_series(one: &Series) -> Option<String> {
    let label = |name| one.label(name);
    let traffic = |what: &str| {
        let ends = format!("{}>{}", account(label("source_principal")), account(label("destination_principal")));
        let how = format!("{} {}", label("connection_security_policy"), label("response_flags"));
        format!("{what} {} {ends} {how}", label("reporter"))
    };
    Some(match one.name.as_str() {
        "istio_tcp_connections_opened_total" => traffic("opened"),
        "istio_tcp_connections_closed_total" => traffic("closed"),
        "istio_tcp_connections_failed_total" => traffic("failed"),
        "istio_tcp_sent_bytes_total" => traffic("sent"),
        "istio_tcp_received_bytes_total" => traffic("received"),
        "culvert_connections_refused_total" => format!("refused {} {}", label("direction"), label("reason")),
        "culvert_connections_ended_total" => format!("ended {} {}", label("direction"), label("reason")),
        // None of the load's is left in the end.
        "culvert_connections_open" => format!("still open {}", label("direction")),
        "culvert_handshakes_total" if label("result") != "ok" && label("side") == "server" => {
            format!("handshake {}", label("result"))
        }
        "culvert_pod_bytes_total" => format!("pod {} {} {}", label("pod"), label("direction"), label("scope")),
        _ => return None,
    })
}

/// `cart` of `spiffe://cluster.local/ns/shop/sa/cart`.
fn account(identity: &str) -> &str {
    match identity.rsplit('/').next() {
        Some(account) if !account.is_empty() => account,
        _ => "unknown",
    }
}

/// What has come since.
pub(crate) fn since(now: &Book, before: &Book) -> Book {
    let grown =
        now.iter().map(|(entry, count)| (entry.clone(), count.saturating_sub(before.get(entry).copied().unwrap_or(0))));
    grown.filter(|(_, count)| *count > 0).collect()
}

/// Where two books differ: entry, the client's count, the node's.
pub(crate) fn differences(client: &Book, node: &Book) -> Vec<(String, u64, u64)> {
    let mut entries: Vec<&String> = client.keys().chain(node.keys()).collect();
    entries.sort();
    entries.dedup();
    let count = |book: &Book, entry: &String| book.get(entry).copied().unwrap_or(0);
    let all = entries.into_iter().map(|entry| (entry.clone(), count(client, entry), count(node, entry)));
    all.filter(|(_, client, node)| client != node).collect()
}
