//! Deny first: from before a pod's ADD until after its DEL nothing reaches its app that policy refuses, by the app's own count.
//! Then the control: pod-watcher stopped and the tables deleted, the very same probers get through.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{App, Pod, PodHandle, Process, User, wait};
use serde_json::Value;

use crate::support::{CHANGE, at, figure, mesh, report, strict};

/// Each of them echoes, so that an attempt that got through shows at both ends.
const PORTS: [u16; 3] = [7000, 7100, 8080];
/// What is promised, per port and family.
const PROMISED: u32 = 200;
/// What is asked of the probers, so that a late timer does not miss the promise.
const ASKED: u32 = 240;

const ONLY_CART: &str = r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: only-cart}
spec:
  selector: {matchLabels: {app: target}}
  action: ALLOW
  rules:
  - from:
    - source: {principals: ["cluster.local/ns/shop/sa/cart"]}
"#;

/// A prober, and when each of its phases began.
struct Prober {
    from: PodHandle,
    process: Process,
    phases: Vec<(&'static str, Instant)>,
}

impl Prober {
    fn start(name: &str, from: &PodHandle, targets: &[String]) -> Result<Prober> {
        let rate = (ASKED * targets.len() as u32).to_string();
        let mut args: Vec<&str> = vec!["probe"];
        args.extend(targets.iter().map(String::as_str));
        args.extend(["--rate", &rate, "--echo", "--timeout", "500"]);
        let process = from.client(name, &args)?;
        process.wait_stdout("ready", CHANGE)?;
        Ok(Prober { from: from.clone(), process, phases: vec![("start", Instant::now())] })
    }

    /// TCP connections that were begun in its network namespace: its attempts so far, by the kernel's count.
    fn attempts(&self) -> Result<u64> {
        let text = self.from.in_netns(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
        let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
        let found = names.zip(values).find(|(name, _)| *name == "ActiveOpens").context("ActiveOpens")?;
        Ok(found.1.parse()?)
    }

    fn phase(&mut self, name: &'static str) -> Result<()> {
        self.process.write_line(name)?;
        self.phases.push((name, Instant::now()));
        Ok(())
    }
}

/// Begins a phase; it lasts while `work` does and until each prober has made this many attempts in it.
fn phase<T>(probers: &mut [Prober], name: &'static str, attempts: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
    probers.iter_mut().try_for_each(|prober| prober.phase(name))?;
    let before: Vec<u64> = probers.iter().map(Prober::attempts).collect::<Result<_>>()?;
    let done = work()?;
    for (prober, before) in probers.iter().zip(before) {
        wait::until_true(&format!("{attempts} attempts in the phase {name}"), CHANGE, || {
            prober.attempts().is_ok_and(|now| now >= before + attempts)
        })?;
    }
    Ok(done)
}

fn target(node: usize) -> Pod {
    let servers: Vec<(&str, u16)> = PORTS.iter().map(|port| ("echo", *port)).collect();
    Pod::new("shop", "target").node(node).ips(addresses(node)).app(App::serve(&servers))
}

fn addresses(node: usize) -> [IpAddr; 2] {
    [[198, 18, node as u8, 77].into(), [0xfd77, 0, 0, node as u16, 0, 0, 0, 0x77].into()]
}

/// Link addresses are asked for every 10 ms instead of every second: the probers find the pod as soon as it has a network.
fn eager_neighbours() -> Result<()> {
    for family in ["ipv4", "ipv6"] {
        for interface in ["eth0", "cni0"] {
            let path = format!("/proc/sys/net/{family}/neigh/{interface}/retrans_time_ms");
            // A pod has no bridge.
            if std::path::Path::new(&path).exists() {
                std::fs::write(&path, "10").with_context(|| path)?;
            }
        }
    }
    Ok(())
}

/// The whole life of a pod under fire, then the control with a second one of the same addresses.
fn round(lab: &crate::support::Watched, node: usize, outsider: &PodHandle, denied: &PodHandle) -> Result<()> {
    let targets: Vec<String> = addresses(node).iter().flat_map(|ip| PORTS.iter().map(|port| at(*ip, *port))).collect();
    let mut probers = vec![
        Prober::start(&format!("outsider-{node}"), outsider, &targets)?,
        Prober::start(&format!("denied-{node}"), denied, &targets)?,
    ];
    let probers = &mut probers;
    phase(probers, "before ADD", 300, || Ok(()))?;
    let pod = phase(probers, "ADD", 1, || lab.add_sandbox(target(node)))?;
    phase(probers, "before the app", 300, || Ok(()))?;
    phase(probers, "app starts", 1, || lab.start_app(&pod))?;
    phase(probers, "app runs", 3000, || Ok(()))?;
    phase(probers, "app ends, DEL", 1, || lab.remove_pod(&pod))?;
    phase(probers, "after DEL", 300, || Ok(()))?;
    let seen = pod.stats();
    ensure!(seen.connections == 0 && seen.bytes == 0, "the app on node {node} saw {seen:?}");

    let control = phase(probers, "control, captured", 300, || {
        let control = lab.add_pod(target(node))?;
        // The addresses are used again at once; the link addresses that are remembered are the first pod's.
        for family in ["-4", "-6"] {
            let flush = ["ip", family, "neigh", "flush", "all"];
            outsider.exec_as(User::root(), &flush)?.ok()?;
            denied.exec_as(User::root(), &flush)?.ok()?;
            lab.node(node).exec(&flush)?.ok()?;
        }
        Ok(control)
    })?;
    ensure!(control.stats().connections == 0, "the second app on node {node} saw {:?}", control.stats());
    lab.allow("the control: no rules", crate::support::Clear::of(&control));
    phase(probers, "control, tables deleted", 300, || {
        for pod in [&control, denied] {
            lab.mesh().watcher(pod.node()).kill()?;
            pod.exec_as(User::root(), &["nft", "delete", "table", "inet", "culvert"])?.ok()?;
        }
        Ok(())
    })?;
    let through = wait::until("bytes of the probers at the app without rules", CHANGE, || {
        Some(control.stats().bytes).filter(|bytes| *bytes > 0)
    })?;
    figure("deny_first_control_bytes", through, "bytes", &format!("target on node {node}, tables deleted"));

    for prober in probers.iter() {
        judge(prober, targets.len() as u32)?;
    }
    lab.mesh().watcher(1).restart()?;
    lab.mesh().watcher(2).restart()?;
    lab.remove_pod(&control)
}

/// What the prober itself saw: its rate, no answer in any phase but the last, answers in that.
fn judge(prober: &Prober, targets: u32) -> Result<()> {
    let (name, first, end) = (prober.process.name().to_owned(), prober.phases[0].1, Instant::now());
    let seen = report(&prober.process)?;
    let count = |phase: &Value, outcome: &str| phase["outcomes"][outcome].as_u64().unwrap_or(0);
    let mut made = 0;
    for phase in seen["phases"].as_array().context("phases")? {
        let word = phase["phase"].as_str().unwrap_or_default();
        let attempts = phase["attempts"].as_u64().unwrap_or(0) - count(phase, "skipped");
        made += attempts;
        let control = word == "control, tables deleted";
        // Else it would be the probers that did not reach the pod.
        ensure!(word != "app runs" || count(phase, "reset") > attempts / 2, "{name}: phase {word}: {phase}");
        ensure!((count(phase, "ok") > 0) == control, "{name}: phase {word}: {phase}");
        figure("deny_first_attempts", attempts, "attempts", &format!("{name}, {word}: {}", phase["outcomes"]));
    }
    let rate = made as f64 / (end - first).as_secs_f64() / f64::from(targets);
    figure("deny_first_rate", format!("{rate:.0}"), "attempts/s", &format!("{name}, per port and family"));
    ensure!(rate >= f64::from(PROMISED), "{name} made only {rate:.0} attempts a second at each port");
    Ok(())
}

#[test]
fn nothing_that_is_refused_reaches_the_app_from_before_add_until_after_del() -> Result<()> {
    let lab = mesh("deny-first")?;
    let outsider = lab.add_pod(Pod::new("outside", "outsider").app(App::None))?;
    lab.allow("a stranger to the mesh", crate::support::Clear::of(&outsider));
    let guest = lab.add_pod(Pod::new("shop", "guest").node(2).service_account("guest").app(App::None))?;
    let cart = lab.add_pod(Pod::new("shop", "cart").service_account("cart"))?;
    lab.apply("only-cart", ONLY_CART)?;
    strict(&lab, "shop", &cart, 7000, &outsider)?;
    for pod in [&outsider, &guest] {
        pod.in_netns(eager_neighbours)?;
    }
    for node in lab.nodes() {
        node.in_netns(eager_neighbours)?;
    }
    // Once with the outsider on the target's node and the denied pod on the other, once the other way round.
    for node in [1, 2] {
        let start = Instant::now();
        round(&lab, node, &outsider, &guest).with_context(|| format!("target on node {node}"))?;
        ensure!(start.elapsed() < Duration::from_secs(60), "the round took {:?}", start.elapsed());
    }
    lab.down()
}
