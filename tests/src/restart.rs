//! The worker is killed: nobody who has not been accepted notices more than a moment, the keeper stays, and a new worker goes on
//! from what the keeper and the disk hold, also without the control plane.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{Lab, Pid, Pod, PodHandle, Process, Signal, wait};
use serde_json::Value;

use crate::support::{CHANGE, at, family, figure, mesh, report};
use crate::talk;

/// The port of a pod that takes what leaves it, and the one that takes what comes to it in plaintext.
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;

/// Kills the worker of a node; returns when another one is ready. The keeper must be the same before and after.
pub(crate) fn kill_worker(lab: &Lab, node: usize) -> Result<()> {
    let mesh = lab.mesh();
    let (keeper, old) = (mesh.keeper(node).id(), mesh.worker_child(node)?);
    ensure!(old.signal(Signal::KILL), "the worker had ended already");
    replaced(lab, node, old)?;
    ensure!(keeper.is_alive() && mesh.keeper(node).id() == keeper, "the keeper did not stay");
    Ok(())
}

fn replaced(lab: &Lab, node: usize, old: Pid) -> Result<()> {
    wait::until_true("another worker", CHANGE, || lab.mesh().worker_child(node).is_ok_and(|new| new != old))?;
    lab.mesh().wait_ready(node)
}

/// A prober at 1 ms spacing whose attempts wait long enough for any restart.
pub(crate) fn prober(from: &PodHandle, name: &str, to: &str) -> Result<Process> {
    let prober = from.client(name, &["probe", to, "--rate", "1000", "--echo", "--timeout", "5000"])?;
    prober.wait_stdout("ready", CHANGE)?;
    Ok(prober)
}

/// Starts the prober's next phase.
fn phase(prober: &Process, name: &str) -> Result<()> {
    let said = || prober.stdout().lines().filter(|line| *line == "ready").count();
    let before = said();
    prober.write_line(name)?;
    wait::until_true("the prober's next phase", CHANGE, || said() > before)
}

/// Kills the worker of node 1 while `from` makes a connection a millisecond; the longest time without a served one, before and
/// around the kill, is printed.
pub(crate) fn longest_gap(lab: &Lab, from: &PodHandle, to: IpAddr, target: &PodHandle, note: &str) -> Result<()> {
    let prober = prober(from, &format!("gap-{}", family(to)), &at(to, ECHO))?;
    let served = |count: u64| {
        let before = target.stats().port(ECHO).connections;
        wait::until_true("connections to be served", CHANGE, || target.stats().port(ECHO).connections >= before + count)
    };
    served(300)?;
    phase(&prober, "kill")?;
    served(50)?;
    kill_worker(lab, 1)?;
    served(300)?;
    let seen = report(&prober)?;
    let gap = |phase: usize| seen["phases"][phase]["longest_gap_ms"].as_f64().context("a gap");
    let (calm, killed) = (gap(0)?, gap(1)?);
    let note = format!("{note}, {}; without a kill {calm:.1} ms; {}", family(to), seen["phases"][1]["outcomes"]);
    figure("worker_kill_longest_gap", format!("{killed:.1}"), "ms", &note);
    // The aim is 50 ms; a machine with other work may take longer, but not so long that the restart did not work as meant.
    ensure!(killed < 1000.0, "{killed:.0} ms without a served connection: {seen}");
    Ok(())
}

/// How many connections wait in a listener's queue.
fn queued(pod: &PodHandle, port: u16) -> Result<u64> {
    let text = pod.exec_as(lab::User::root(), &["ss", "-Hltn", &format!("sport = :{port}")])?.ok()?;
    let queue = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    Ok(text.lines().filter_map(queue).sum())
}

/// Connections made while the worker stands still, so that it has accepted none of them, all of which must be served after its kill.
fn not_yet_accepted(lab: &Lab, from: &PodHandle, to: IpAddr, captured: (&PodHandle, u16)) -> Result<()> {
    const WAITING: u64 = 50;
    let (mesh, (pod, port)) = (lab.mesh(), captured);
    let (keeper, worker) = (mesh.keeper(1).id(), mesh.worker_child(1)?);
    ensure!(worker.signal(Signal::STOP), "the worker had ended already");
    wait::until_true("every thread of the worker to stand still", CHANGE, || worker.is_stopped())?;
    let prober = prober(from, &format!("wait-{port}-{}", family(to)), &at(to, ECHO))?;
    wait::until_true("connections to wait in the listener's queue", CHANGE, || {
        queued(pod, port).is_ok_and(|waiting| waiting >= WAITING)
    })?;
    worker.signal(Signal::KILL);
    replaced(lab, 1, worker)?;
    let seen = report(&prober)?;
    let attempts = seen["attempts"].as_u64().unwrap_or(0);
    let said = || mesh.access_log(1).into_iter().filter(|line| line["reason"].is_string()).collect::<Vec<_>>();
    ensure!(attempts >= WAITING && seen["ok"] == attempts, "port {port}, {}: {seen}; {:?}", family(to), said());
    ensure!(mesh.keeper(1).id() == keeper && keeper.is_alive(), "the keeper did not stay");
    Ok(())
}

#[test]
fn a_killed_worker_costs_no_connection_that_it_had_not_accepted() -> Result<()> {
    let lab = mesh("restart")?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart"))?;
    let stranger = lab.add_pod(Pod::new("outside", "stranger").node(2))?;
    lab.allow("a stranger to the mesh", crate::support::Clear::of(&stranger));
    // Both ways through the worker of node 1: in from a pod without a mesh, out to one.
    for ip in 0..cart.ips().len() {
        not_yet_accepted(&lab, &stranger, cart.ips()[ip], (&cart, INBOUND))?;
        not_yet_accepted(&lab, &cart, stranger.ips()[ip], (&cart, OUTBOUND))?;
    }
    lab.down()
}

#[test]
fn a_killed_worker_is_replaced_before_new_connections_have_waited_long() -> Result<()> {
    let lab = mesh("restart-gap")?;
    let cart = lab.add_pod(Pod::new("shop", "cart"))?;
    let far = lab.add_pod(Pod::new("shop", "far").node(2))?;
    for ip in far.ips() {
        longest_gap(&lab, &cart, ip, &far, "1 pod on the node, to a pod of the other node")?;
    }
    lab.down()
}

/// One connection that says something.
fn say(from: &PodHandle, to: IpAddr) -> Result<Value> {
    from.run_client(&["connect", &at(to, ECHO), "--send", "hello"])
}

/// The server's own line of the latest connection from an address that has a reason, or has none.
fn line(lab: &Lab, from: &PodHandle, to: IpAddr, since: usize, refused: bool) -> Result<Value> {
    let client = from.ips().into_iter().find(|ip| ip.is_ipv4() == to.is_ipv4()).context("an address of this family")?;
    let here = |line: &Value| {
        let address = line["client"].as_str().and_then(|c| c.parse::<std::net::SocketAddr>().ok()).map(|c| c.ip());
        address == Some(client) && line["reason"].is_string() == refused
    };
    wait::until("the line of the connection at the server's end", CHANGE, || {
        lab.mesh().access_log(2).into_iter().skip(since).find(here)
    })
}

const ONLY_CART: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: only-cart}
spec: {rules: [{from: [{source: {serviceAccounts: [cart]}}]}]}
";

#[test]
fn without_the_control_plane_new_workers_have_the_certificates_and_the_policies_of_the_old_ones() -> Result<()> {
    let lab = mesh("restart-alone")?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart"))?;
    let guest = lab.add_pod(Pod::new("shop", "guest").service_account("guest"))?;
    let web = lab.add_pod(Pod::new("shop", "web").service_account("web").node(2))?;
    let to = web.ips()[0];
    lab.apply("only-cart", ONLY_CART)?;
    // Both have certificates now, and the policy is in force.
    ensure!(say(&cart, to)?["ok"] == 1, "before the policy");
    wait::until_true("the policy to take hold", CHANGE, || say(&guest, to).is_ok_and(|seen| seen["ok"] == 0))?;
    wait::until_true("the last good configuration to hold the policy", CHANGE, || {
        let saved = lab.node(2).init().root("/var/lib/culvert/node-proxy");
        let files = std::fs::read_dir(saved).into_iter().flatten().flatten();
        files.filter_map(|file| std::fs::read(file.path()).ok()).any(|b| b.windows(9).any(|w| w == b"only-cart"))
    })?;
    lab.mesh().control_plane().kill()?;
    for node in [1, 2] {
        kill_worker(&lab, node)?;
    }
    for ip in web.ips() {
        let (served, since) = (web.stats(), lab.mesh().access_log(2).len());
        let start = Instant::now();
        let seen = say(&cart, ip)?;
        ensure!(seen["ok"] == 1 && seen["text"] == "hello", "{}: {seen}", family(ip));
        let took = start.elapsed();
        ensure!(took < Duration::from_secs(2), "the certificates were not at hand: {took:?}");
        let log = line(&lab, &cart, ip, since, false)?;
        ensure!(log["source_identity"] == "spiffe://cluster.local/ns/shop/sa/cart", "{log}");
        ensure!(log["security"] == "mutual_tls", "{log}");
        ensure!(web.stats().connections == served.connections + 1, "the app counts another");

        let seen = say(&guest, ip)?;
        ensure!(seen["ok"] == 0, "{}: the policy was forgotten: {seen}", family(ip));
        let log = line(&lab, &guest, ip, since, true)?;
        ensure!(
            log["reason"] == "PolicyDenied" && log["source_identity"] == "spiffe://cluster.local/ns/shop/sa/guest",
            "{log}"
        );
        ensure!(web.stats().connections == served.connections + 1, "the app saw a denied connection");
    }
    // What a new worker had it had from the keeper: with both gone there is no certificate, and nothing passes in clear instead.
    let served = web.stats();
    lab.mesh().keeper(1).restart()?;
    lab.mesh().wait_ready(1)?;
    let seen = cart.run_client(&["connect", &at(to, ECHO), "--send", "hello", "--timeout", "12000"])?;
    ensure!(seen["ok"] == 0 && web.stats() == served, "without any certificate: {seen}");
    lab.down()
}

#[test]
fn a_worker_that_is_asked_to_stop_without_a_successor_leaves_no_new_connection_waiting() -> Result<()> {
    let lab = mesh("restart-stop")?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart"))?;
    let far = lab.add_pod(Pod::new("shop", "far").node(2))?;
    let stranger = lab.add_pod(Pod::new("outside", "stranger").node(2))?;
    lab.allow("a stranger to the mesh", crate::support::Clear::of(&stranger));
    talk::everyone_known(&lab, &[&cart, &far])?;
    // Held open, so that the drain takes its whole time.
    let held: Vec<_> =
        talk::at(&far, ECHO).into_iter().map(|to| Ok(talk::connect(&cart, to)??)).collect::<Result<_>>()?;
    held.iter().try_for_each(talk::say)?;
    let (mesh, old) = (lab.mesh(), lab.mesh().worker_child(1)?);
    ensure!(old.signal(Signal::TERM), "the worker had ended already");
    mesh.worker(1).wait_log("draining", CHANGE)?;
    let ways: Vec<_> = talk::at(&far, ECHO)
        .into_iter()
        .map(|to| (&cart, to))
        .chain(talk::at(&cart, ECHO).into_iter().flat_map(|to| [(&stranger, to), (&far, to)]))
        .collect();
    for round in 0..3 {
        for (from, to) in &ways {
            let (started, met) = (Instant::now(), talk::attempt(from, *to)?);
            ensure!(met != talk::Met::Silence, "round {round}, {} to {to}: left waiting", from.key());
            figure(
                &format!("stop_{}_{to}_{round}", from.key()),
                format!("{:.2} {met:?}", started.elapsed().as_secs_f64()),
                "s",
                "",
            );
        }
    }
    ensure!(mesh.worker_child(1)? == old, "it ended before the attempts did: nothing was shown");
    held.iter().try_for_each(talk::say).context("an open connection while the worker drains")?;
    lab.down()
}
