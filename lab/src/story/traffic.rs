//! The mesh at work: who talked to whom as which identity, what was encrypted, what was refused and by which policy.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::pod::{BULK, ECHO, HTTP, WHOAMI};
use lab::{Lab, PodHandle, wait};
use serde_json::Value;

use super::teller::Teller;
use super::{Cast, at, family};
use crate::verbs::table;

const MARKER: &str = "culvert-lab-plaintext-marker";
/// How long a change of a manifest may take to show at a connection.
const CHANGE: Duration = Duration::from_secs(5);

pub(super) fn tell(teller: &mut Teller, cast: &Cast) {
    captured(teller, cast);
    identities(teller, cast);
    refused(teller, cast);
    strict(teller, cast);
}

/// Traffic to a pod, to a service, to a headless name; then what the fabric saw of it.
fn captured(teller: &mut Teller, cast: &Cast) {
    let Cast { lab, cart, near, far, stranger, other, .. } = cast;
    teller.step("captured traffic: encrypted between nodes, addresses kept", |teller| {
        let capture = lab.capture(&[MARKER.as_bytes()])?;
        let mut detail = Vec::new();
        for ip in far.ips() {
            let bulk = cart.run_client(&["bulk", &at(ip, BULK), "--marker", MARKER])?;
            ensure!(bulk["ok"] == 1, "bulk to {ip}: {bulk}");
            let seconds = bulk["seconds"].as_f64().unwrap_or_default();
            teller.figure(&format!("mesh_20MB_{}_s", family(ip)), seconds);
            sees_own_address(cart, far, ip)?;
            detail.push(format!("{}: 10 MB each way, checksums right, {seconds:.2} s; the app saw cart's own address", family(ip)));
        }
        for ip in near.ips() {
            sees_own_address(cart, near, ip)?;
        }
        let flows = capture.flows()?;
        let between = || flows.iter().filter(|(e, _)| e.tcp && e.between(&cart.ips(), &far.ips()));
        let tunnel: u64 = between().filter(|(e, _)| e.has_port(15008)).map(|(_, f)| f.payload).sum();
        let clear: u64 = between().filter(|(e, _)| !e.has_port(15008)).map(|(_, f)| f.payload).sum();
        let markers: u64 = between().map(|(_, f)| f.markers).sum();
        let sent = 20_000_000 * far.ips().len() as u64;
        ensure!(clear == 0 && markers == 0, "{clear} bytes passed the fabric outside of tunnels, marker seen {markers} times");
        ensure!(tunnel > sent, "only {tunnel} bytes on port 15008 for {sent} bytes sent");
        teller.figure("fabric_tunnel_bytes", tunnel as f64);
        teller.figure("fabric_clear_bytes", clear as f64);
        // The control: pods outside of the mesh, same nodes, same marker.
        capture.clear()?;
        let plain = stranger.run_client(&["bulk", &at(other.ips()[0], BULK), "--marker", MARKER])?;
        let seen: u64 = capture.flows()?.values().map(|f| f.markers).sum();
        ensure!(plain["ok"] == 1 && seen == 1, "control run: {plain}, marker seen {seen} times");
        detail.push(format!("fabric: {:.1} MB on port 15008, 0 bytes beside it, no marker; the control run outside of the mesh shows it", tunnel as f64 / 1e6));
        Ok(((), detail.join("\n")))
    });
    teller.step("services: virtual address with two endpoints, headless name", |_| {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let page = cart.exec(&["curl", "-s", "-m", "5", "http://web/"])?.ok()?;
            seen.extend(page.lines().next().map(str::to_owned));
        }
        ensure!(seen.len() == 2, "20 requests to http://web/ met {seen:?}");
        let vips = lab.services().into_iter().find(|s| s.service.name == "web").context("the service web")?.ips;
        for vip in &vips {
            let echo = cart.run_client(&["connect", &at(*vip, 7), "--send", "hello"])?;
            ensure!(echo["ok"] == 1, "{vip}: {echo}");
        }
        let pods =
            cart.exec(&["curl", "-s", "-m", "5", &format!("http://web-pods.shop.svc.cluster.local:{HTTP}/")])?.ok()?;
        ensure!(pods.contains("hello from web-"), "headless: {pods}");
        Ok((
            (),
            format!("{}; also over {}", seen.into_iter().collect::<Vec<_>>().join(", "), crate::verbs::join(&vips)),
        ))
    });
}

fn sees_own_address(from: &PodHandle, to: &PodHandle, ip: std::net::IpAddr) -> Result<()> {
    let who = from.run_client(&["connect", &at(ip, WHOAMI), "--expect", "0"])?;
    let text = who["text"].as_str().unwrap_or_default();
    let own = from.ips().into_iter().find(|own| own.is_ipv4() == ip.is_ipv4()).context("an address of the family")?;
    let peer: std::net::SocketAddr =
        text.split(' ').next().unwrap_or_default().parse().with_context(|| format!("{who}"))?;
    ensure!(peer.ip() == own, "{} saw {peer}, not {own}", to.key());
    Ok(())
}

/// Both ends' access logs, joined by the connection's id.
fn identities(teller: &mut Teller, cast: &Cast) {
    let Cast { lab, cart, near, far, .. } = cast;
    teller.step("who talked to whom, as which identity", |_| {
        let mut rows = table(&["connection", "from", "to", "route", "security", "bytes"]);
        for (to, node) in [(far, far.node()), (near, near.node())] {
            let ip = to.ips()[0];
            let port = cart.run_client(&["connect", &at(ip, ECHO), "--send", "hello"])?;
            ensure!(port["ok"] == 1, "{port}");
            let destination = at(ip, ECHO);
            let client = lab.mesh().wait_access(cart.node(), &format!("cart's line for {destination}"), |line| {
                line["direction"] == "outbound" && line["destination"] == destination.as_str()
            })?;
            let mut ends = vec![client.clone()];
            if node != cart.node() {
                ends.push(lab.mesh().wait_access(node, "the server's line of the same connection", |line| {
                    line["id"] == client["id"] && line["direction"] == "inbound-tunnel"
                })?);
            }
            for line in ends {
                let text = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
                ensure!(text("source_identity").ends_with("/ns/shop/sa/cart"), "no identity of cart in {line}");
                let id: String = text("id").chars().take(8).collect();
                let bytes = format!("{}/{}", line["sent"], line["received"]);
                rows.add_row(vec![
                    format!("{id} {}", text("direction")),
                    text("source_identity"),
                    text("destination_identity"),
                    text("route"),
                    text("security"),
                    bytes,
                ]);
            }
        }
        Ok(((), rows.to_string()))
    });
}

/// An ALLOW policy for one identity: the other is refused, a live connection of it is ended, both ends name the policy.
fn refused(teller: &mut Teller, cast: &Cast) {
    let Cast { lab, cart, guest, far, .. } = cast;
    teller.step("refused by policy, seen from both ends", |teller| {
        let to = at(far.ips()[0], ECHO);
        let live = guest.client("live", &["live", &to])?;
        live.wait_stdout("ready", CHANGE)?;
        let before = far.stats();
        let applied = Applied::new(lab, "only-cart", ONLY_CART)?;
        let start = Instant::now();
        live.wait_stdout("ended", CHANGE)?;
        let cut = start.elapsed();
        let ended = report(&live)?;
        ensure!(ended["ended"] == "reset" || ended["ended"] == "eof", "guest's live connection: {ended}");
        teller.figure("policy_to_reset_ms", cut.as_secs_f64() * 1e3);
        let count = far.stats().connections;
        let refused = guest.run_client(&["connect", &to, "--send", "hello"])?;
        ensure!(refused["ok"] == 0, "guest got through: {refused}");
        ensure!(
            far.stats().connections == count,
            "the app saw a connection of guest ({} before the policy)",
            before.connections
        );
        let allowed = cart.run_client(&["connect", &to, "--send", "hello"])?;
        ensure!(allowed["ok"] == 1, "cart did not get through: {allowed}");
        let names_it = |line: &Value| line["policy"].as_str().is_some_and(|p| p.contains("only-cart"));
        let client = lab.mesh().wait_access(guest.node(), "guest's side naming the policy", |line| {
            line["reason"] == "PolicyDenied" && names_it(line) && line["direction"] == "outbound"
        })?;
        let server = lab.mesh().wait_access(far.node(), "the server's side naming the policy", |line| {
            line["reason"] == "PolicyDenied" && names_it(line) && line["direction"] != "outbound"
        })?;
        drop(applied);
        wait::until_true("guest to be allowed again", CHANGE, || {
            guest.run_client(&["connect", &to, "--send", "hello"]).is_ok_and(|r| r["ok"] == 1)
        })?;
        let detail = format!(
            "guest's live connection ended {:.0} ms after the file was in place; new ones refused before the app\n\
             client's log: {} {}; server's log: {} {}",
            cut.as_secs_f64() * 1e3,
            client["reason"],
            client["policy"],
            server["reason"],
            server["policy"]
        );
        Ok(((), detail))
    });
}

/// Plaintext from outside of the mesh: taken when permissive, refused when strict.
fn strict(teller: &mut Teller, cast: &Cast) {
    let Cast { lab, cart, far, stranger, .. } = cast;
    teller.step("plaintext from outside of the mesh: permissive takes it, strict refuses it", |_| {
        let to = at(far.ips()[0], ECHO);
        let attempt = |pod: &PodHandle| pod.run_client(&["connect", &to, "--send", "hello", "--timeout", "1000"]);
        let open = attempt(stranger)?;
        ensure!(open["ok"] == 1, "permissive: {open}");
        let applied = Applied::new(lab, "strict", STRICT)?;
        wait::until_true("strict to take hold", CHANGE, || attempt(stranger).is_ok_and(|r| r["ok"] == 0))?;
        let inside = attempt(cart)?;
        drop(applied);
        ensure!(inside["ok"] == 1, "cart under strict: {inside}");
        wait::until_true("permissive to be back", CHANGE, || attempt(stranger).is_ok_and(|r| r["ok"] == 1))?;
        Ok(((), "stranger passes, is refused, passes again; cart passes throughout".to_owned()))
    });
}

/// A manifest that is taken away again, also when the step fails: the next one starts from the same ground.
struct Applied<'a>(&'a Lab, &'static str);

impl<'a> Applied<'a> {
    fn new(lab: &'a Lab, name: &'static str, text: &str) -> Result<Applied<'a>> {
        lab.apply(name, text)?;
        Ok(Applied(lab, name))
    }
}

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        // Gone already with the lab when it is being taken down.
        let _ = self.0.delete(self.1);
    }
}

/// The report of a client that has ended.
pub(super) fn report(client: &lab::Process) -> Result<Value> {
    client.wait(CHANGE)?;
    let out = client.stdout();
    let last = out.lines().last().with_context(|| format!("{} printed nothing: {}", client.name(), client.log()))?;
    serde_json::from_str(last).with_context(|| format!("{}: {out}{}", client.name(), client.log()))
}

const ONLY_CART: &str = r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: only-cart}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules:
  - from:
    - source: {principals: ["cluster.local/ns/shop/sa/cart"]}
"#;

const STRICT: &str = r#"apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {namespace: shop, name: default}
spec:
  mtls: {mode: STRICT}
"#;
