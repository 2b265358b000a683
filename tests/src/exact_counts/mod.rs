//! Counts are exact: after a known load, metrics and access log of both ends equal what the client itself counted, with difference 0:
//! connections opened, closed and failed by `response_flags`, bytes each way, bytes per pod and scope, refusals and early ends by
//! Reason, lines of the log. Compared as wholes: an entry that nobody expects is as wrong as one that is missing.

mod ledger;
mod load;
mod odd;
mod odd_peer;
mod reasons;
mod restarted;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{App, Config, Lab, MeshConfig, Pod, PodHandle, Service, User, wait};
use mesh_model::Reason;

use crate::support::{self, CHANGE, figure};
use crate::talk::{self, Met, at};
use ledger::{Book, End, Ledger, Seen, differences, since, told};

/// Served on the router: outside of the cluster.
const WORLD: u16 = 7777;
/// Nobody listens there.
const NOBODY: u16 = 1;
/// Deadlines of the worker are 10 s.
const LONG: Duration = Duration::from_secs(14);
/// For how long nothing may be counted any more once everything is. Lines are written within 100 ms.
const STILL: Duration = Duration::from_millis(500);

/// The pods, each with a service account of its own name. `near` and the callers are of node 1, `far` and `hole` of node 2.
struct Pods {
    cart: PodHandle,
    guest: PodHandle,
    leaver: PodHandle,
    near: PodHandle,
    far: PodHandle,
    stranger: PodHandle,
    /// Takes packets and never answers.
    hole: PodHandle,
}

/// What one connection in the mesh is, at both of its ends.
fn both<'a>(from: &'a str, to: &'a str) -> [Seen<'a>; 2] {
    let far = to == "far";
    let security = if far { "mutual_tls" } else { "same_node" };
    let caller = Seen { node: 1, direction: "outbound", from, to, security };
    let called = if far {
        Seen { node: 2, direction: "inbound-tunnel", ..caller }
    } else {
        Seen { direction: "inbound", ..caller }
    };
    [caller, called]
}

fn scope(to: &str) -> &'static str {
    if to == "far" { "other_node" } else { "same_node" }
}

/// A connection whose far end is not known, or not known to be of the mesh.
fn alone<'a>(node: usize, direction: &'a str, from: &'a str, to: &'a str) -> Seen<'a> {
    Seen { node, direction, from, to, security: "unknown" }
}

fn open(lab: &Lab) -> Result<Pods> {
    let pod = |namespace: &str, name: &str, node| Pod::new(namespace, name).service_account(name).node(node);
    let client = |name: &str| lab.add_pod(pod("shop", name, 1).app(App::None));
    let pods = Pods {
        cart: client("cart")?,
        guest: client("guest")?,
        leaver: client("leaver")?,
        near: lab.add_pod(pod("shop", "near", 1).label("app", "web"))?,
        far: lab.add_pod(pod("shop", "far", 2).label("app", "web"))?,
        stranger: lab.add_pod(pod("outside", "stranger", 1).app(App::None))?,
        hole: lab.add_pod(pod("outside", "hole", 2).app(App::None))?,
    };
    let drop_all = "add table inet hole; add chain inet hole in { type filter hook input priority 0; }; \
                    add rule inet hole in meta l4proto tcp drop";
    pods.hole.exec_as(User::root(), &["nft", drop_all])?.ok()?;
    let Pods { cart, guest, leaver, near, far, stranger, hole } = &pods;
    talk::everyone_known(lab, &[cart, guest, leaver, near, far, stranger, hole])?;
    Ok(pods)
}

#[test]
fn metrics_and_log_of_both_ends_equal_what_the_client_counted_with_difference_0() -> Result<()> {
    // A pod that leaves the mesh takes its open connections along at once.
    let mesh = MeshConfig { worker_args: vec!["--opt-out-seconds".into(), "0".into()], ..MeshConfig::default() };
    let lab = support::lab(Config::default().name("exact-counts").mesh(mesh))?;
    let pods = open(&lab)?;
    let empty = lab.service(Service::new("shop", "empty").port(ECHO, ECHO))?;
    talk::world(&lab, WORLD)?;
    lab.allow("a server outside of the cluster", support::Clear::world());
    for outsider in [&pods.stranger, &pods.hole] {
        lab.allow("a pod outside of the mesh", support::Clear::of(outsider));
    }
    // Known to both workers before anything is counted.
    for ip in &empty {
        talk::knows(&lab, 1, "the empty service", |config, _| config.to_string().contains(&ip.to_string()))?;
    }
    let uncaptured = odd::uncaptured(&lab)?;
    let before = [told(&lab, 1)?, told(&lab, 2)?];
    let mut ledger = Ledger::default();

    changed(&lab, &pods, &mut ledger)?;
    left(&lab, &pods, &mut ledger)?;
    // From here on nobody tells the workers anything: what they do not know yet they never will.
    lab.mesh().control_plane().kill()?;
    // One of an identity that the node has, one of an identity that nobody signs for any more.
    let late = lab.add_pod(Pod::new("shop", "late").service_account("near"))?;
    let fresh = lab.add_pod(Pod::new("shop", "fresh").service_account("fresh").app(App::None))?;
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| slow_refusals(&pods, &fresh));
        moved(&lab, &pods, &mut ledger)?;
        refused(&pods, &late, &empty, &mut ledger)?;
        aborted(&pods, &mut ledger)?;
        odd::peers(&lab, &pods, &uncaptured, &mut ledger)?;
        slow.join().map_err(|_| anyhow::anyhow!("the slow refusals panicked"))??;
        anyhow::Ok(())
    })?;
    for _ in lab.families().filter([lab::plan::OUTSIDE_V4.into(), lab::plan::OUTSIDE_V6.into()]) {
        ledger.refused(
            Seen { security: "mutual_tls", ..alone(1, "outbound", "fresh", "far") },
            "IDENTITY_ERROR",
            "CertificateUnavailable",
        );
        ledger.refused(alone(1, "outbound", "cart", "unknown"), "CONNECT", "ConnectTimeout");
        ledger.refused(alone(2, "inbound-tunnel", "unknown", "far"), "TLS_FAILURE", "HandshakeTimeout");
    }

    let mut seen = BTreeSet::new();
    for (node, before) in [1, 2].into_iter().zip(&before) {
        let book = equal(&lab, node, before, &ledger)?;
        seen.extend(reasons_in(&book));
        let sum =
            |what: &str| -> u64 { book.iter().filter(|(entry, _)| entry.starts_with(what)).map(|(_, n)| n).sum() };
        let (opened, failed, bytes) = (sum("opened"), sum("failed"), sum("sent") + sum("received"));
        let note = format!("{opened} ends opened, {failed} refused, {bytes} bytes, {} entries compared", book.len());
        figure(&format!("difference between client and node {node}"), 0, "counts", &note);
    }
    seen.extend(odd::no_socket(&lab, &pods)?);
    seen.extend(restarted::tunnel_closed(&lab, &pods)?);
    seen.extend(restarted::overloaded(&lab, &pods)?);

    let wanted: BTreeSet<String> = Reason::ALL
        .iter()
        .filter(|reason| reasons::caused(**reason).is_ok())
        .map(|reason| reason.as_str().to_owned())
        .collect();
    ensure!(seen == wanted, "reasons met {seen:?}, promised {wanted:?}");
    Ok(())
}

/// Waits until what a node has counted since equals the client's book. That book.
fn equal(lab: &Lab, node: usize, before: &Book, ledger: &Ledger) -> Result<Book> {
    let client = ledger.of(node);
    let mut last = Vec::new();
    wait::until_true(&format!("node {node} to have counted what the client did"), CHANGE, || {
        last = told(lab, node).map_or_else(|_| Vec::new(), |now| differences(&client, &since(&now, before)));
        last.is_empty() && told(lab, node).is_ok()
    })
    .with_context(|| {
        let lines: Vec<String> =
            last.iter().map(|(entry, client, node)| format!("{entry}: client {client}, node {node}")).collect();
        lines.join("\n")
    })?;
    // What is counted or written twice comes a moment later.
    let still = Instant::now();
    while still.elapsed() < STILL {
        let more = differences(&client, &since(&told(lab, node)?, before));
        ensure!(more.is_empty(), "node {node} went on counting: {more:?}");
    }
    Ok(client)
}

/// Reasons that a book has entries of.
fn reasons_in(book: &Book) -> impl Iterator<Item = String> {
    let of = |entry: &String| entry.starts_with("refused ") || entry.starts_with("ended ");
    book.keys().filter(move |entry| of(entry)).filter_map(|entry| Some(entry.rsplit(' ').next()?.to_owned()))
}

/// Plain talk, each way a connection can take: sizes from nothing to many buffers.
fn moved(lab: &Lab, pods: &Pods, ledger: &mut Ledger) -> Result<()> {
    for (pod, name) in [(&pods.near, "near"), (&pods.far, "far")] {
        for to in at(pod, ECHO) {
            for size in load::SIZES {
                let load::Moved { up, down } = load::exchange(&pods.cart, to, size)?;
                both("cart", name).into_iter().for_each(|seen| ledger.moved(seen, scope(name), up, down, End::DONE));
            }
        }
    }
    for to in at(&pods.near, ECHO) {
        let load::Moved { up, down } = load::exchange(&pods.stranger, to, 1_000)?;
        ledger.moved(alone(1, "inbound", "unknown", "near"), "outside", up, down, End::DONE);
    }
    for ip in lab.families().filter([lab::plan::OUTSIDE_V4.into(), lab::plan::OUTSIDE_V6.into()]) {
        let load::Moved { up, down } = load::exchange(&pods.cart, SocketAddr::new(ip, WORLD), 1_000)?;
        ledger.moved(alone(1, "outbound", "cart", "unknown"), "outside", up, down, End::DONE);
    }
    Ok(())
}

/// Connections that are open when a policy comes that denies them.
fn changed(lab: &Lab, pods: &Pods, ledger: &mut Ledger) -> Result<()> {
    let open = |pod| load::open(&pods.guest, at(pod, ECHO));
    let (near, far) = (open(&pods.near)?, open(&pods.far)?);
    lab.apply("deny", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {namespace: shop, name: not-guest}\nspec:\n  selector: {matchLabels: {app: web}}\n  action: DENY\n  rules: [{from: [{source: {serviceAccounts: [guest]}}]}]\n")?;
    for (streams, name) in [(near, "near"), (far, "far")] {
        for stream in streams {
            load::cut(&stream)?;
            let [caller, called] = both("guest", name);
            let changed = End(Some(("DENY", "PolicyChanged")));
            // A tunnel's stream is reset; only the end that judges knows why.
            let here = if name == "far" { End(Some(("RESET", "Reset"))) } else { changed };
            ledger.moved(caller, scope(name), load::SAID, load::SAID, here);
            ledger.moved(called, scope(name), load::SAID, load::SAID, changed);
        }
    }
    talk::policy_arrived(lab, "shop/not-guest")
}

/// Connections of a pod that leaves the mesh. To a pod of its node: of a far one the tunnel goes as well, and whether the far end sees
/// the stream's reset or the tunnel's end first is a race.
fn left(lab: &Lab, pods: &Pods, ledger: &mut Ledger) -> Result<()> {
    let streams = load::open(&pods.leaver, at(&pods.near, ECHO))?;
    lab.label_pod(&pods.leaver, "culvert.io/mesh", Some("disabled"))?;
    for stream in streams {
        load::cut(&stream)?;
        let (bytes, draining) = (load::SAID, End(Some(("DRAIN", "Draining"))));
        both("leaver", "near").into_iter().for_each(|seen| ledger.moved(seen, scope("near"), bytes, bytes, draining));
    }
    Ok(())
}

/// Refusals that come at once, or after the second that an unknown record is waited for.
fn refused(pods: &Pods, late: &PodHandle, empty: &[std::net::IpAddr], ledger: &mut Ledger) -> Result<()> {
    let met = |pod: &PodHandle, to: SocketAddr| -> Result<()> {
        let met = talk::attempt(pod, to)?;
        ensure!(met == Met::Refused, "{} at {to}: {met:?}", pod.key());
        Ok(())
    };
    for _ in 0..3 {
        for (pod, name) in [(&pods.near, "near"), (&pods.far, "far")] {
            for to in at(pod, ECHO) {
                met(&pods.guest, to)?;
                both("guest", name).into_iter().for_each(|seen| ledger.refused(seen, "DENY", "PolicyDenied"));
            }
            for to in at(pod, NOBODY) {
                met(&pods.cart, to)?;
                both("cart", name).into_iter().for_each(|seen| ledger.refused(seen, "CONNECT", "ConnectFailed"));
            }
        }
    }
    // Nobody has said whether a NetworkPolicy selects it, so it is reached through a tunnel also on its own node.
    for to in at(late, ECHO) {
        met(&pods.cart, to)?;
        let caller = Seen { security: "mutual_tls", ..alone(1, "outbound", "cart", "near") };
        for seen in [caller, Seen { direction: "inbound-tunnel", ..caller }] {
            ledger.refused(seen, "DENY", "PolicyUnknown");
        }
    }
    let unknown: [SocketAddr; 2] = ["198.18.1.250:80".parse()?, "[fd77:0:0:1::faff]:80".parse()?];
    let nobodys = [
        (at(&pods.far, 15006), "BAD_REQUEST", "ReservedPort"),
        (empty.iter().map(|ip| SocketAddr::new(*ip, ECHO)).collect(), "NO_ROUTE", "NoEndpoint"),
        (unknown.to_vec(), "NO_ROUTE", "UnknownDestination"),
    ];
    for (addresses, flags, reason) in nobodys {
        for to in addresses {
            met(&pods.cart, to)?;
            ledger.refused(alone(1, "outbound", "cart", "unknown"), flags, reason);
        }
    }
    for to in at(&pods.far, 15008) {
        load::garbage(&pods.stranger, to)?;
        ledger.refused(alone(2, "inbound-tunnel", "unknown", "far"), "TLS_FAILURE", "HandshakeFailed");
        load::without_certificate(&pods.stranger, to)?;
        ledger.refused(alone(2, "inbound-tunnel", "unknown", "far"), "IDENTITY_ERROR", "PeerUntrusted");
    }
    Ok(())
}

/// Connections that their caller resets after a round trip.
fn aborted(pods: &Pods, ledger: &mut Ledger) -> Result<()> {
    let reset = End(Some(("RESET", "Reset")));
    for (pod, name) in [(&pods.near, "near"), (&pods.far, "far")] {
        for stream in load::open(&pods.cart, at(pod, ECHO))? {
            load::abort(stream)?;
            let bytes = load::SAID;
            both("cart", name).into_iter().for_each(|seen| ledger.moved(seen, scope(name), bytes, bytes, reset));
        }
    }
    Ok(())
}

/// Refusals that take the worker's deadline of 10 s, all at a time: a certificate that nobody signs, a pod that answers nothing, a peer
/// that says nothing.
fn slow_refusals(pods: &Pods, fresh: &PodHandle) -> Result<()> {
    let silent = |to| load::silent(&pods.stranger, to, LONG);
    std::thread::scope(|scope| {
        let mut all = Vec::new();
        for (pod, to) in at(&pods.far, ECHO)
            .into_iter()
            .map(|to| (fresh, to))
            .chain(at(&pods.hole, NOBODY).into_iter().map(|to| (&pods.cart, to)))
        {
            all.push(scope.spawn(move || {
                let met = talk::attempt_within(pod, to, LONG)?;
                ensure!(met == Met::Refused, "{} at {to}: {met:?}", pod.key());
                Ok(())
            }));
        }
        all.extend(at(&pods.far, 15008).into_iter().map(|to| scope.spawn(move || silent(to))));
        all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("an attempt panicked"))?)
    })
}
