//! What a pod excludes from capture is left alone by its node, from its start and while it runs, and nothing else is.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lab::{App, Lab, Pod, PodHandle, wait};

use crate::support::{self, CHANGE};
use crate::talk::{self, Met, at, field};

const CAPTURED: u16 = 7000;
const FREE: u16 = 9000;
const INBOUND_PORTS: &str = "culvert.io/exclude-inbound-ports";
const OUTBOUND_PORTS: &str = "culvert.io/exclude-outbound-ports";
const OUTBOUND_CIDRS: &str = "culvert.io/exclude-outbound-cidrs";

fn all_meet(from: &PodHandle, to: &[SocketAddr], wanted: Met) -> Result<()> {
    to.iter().try_for_each(|to| {
        let met = talk::attempt(from, *to)?;
        ensure!(met == wanted, "{} at {to}: {met:?}, not {wanted:?}", from.key());
        Ok(())
    })
}

/// Lines of connections that the pod opened to this address and port, in its own node's log.
fn logged(lab: &Lab, from: &PodHandle, to: SocketAddr) -> usize {
    let lines = lab.mesh().access_log(from.node());
    let is_it = |line: &&serde_json::Value| {
        line["direction"] == "outbound"
            && field(line, "destination") == to.to_string()
            && field(line, "source_pod") == from.key()
    };
    lines.iter().filter(is_it).count()
}

fn wait_logged(lab: &Lab, from: &PodHandle, to: &[SocketAddr], count: usize) -> Result<()> {
    to.iter().try_for_each(|to| {
        wait::until_true(&format!("{count} lines of {to}"), CHANGE, || logged(lab, from, *to) == count)
            .with_context(|| format!("{} lines of {to}", logged(lab, from, *to)))
    })
}

/// Waits until the pod's rules, as its node shows them, have one of this name, or none.
fn has_rule(lab: &Lab, pod: &PodHandle, name: &str, wanted: bool) -> Result<()> {
    let name = format!("comment \"{name}\"");
    let mut shown = String::new();
    wait::until_true(&format!("{} to have {name}: {wanted}", pod.key()), CHANGE, || {
        shown = lab.mesh().watcher_admin(pod.node(), &["rules", &pod.key()]).unwrap_or_default();
        !shown.is_empty() && shown.contains(&name) == wanted
    })
    .with_context(|| shown.clone())
}

/// How often the pod's node reported this of it.
fn told(lab: &Lab, pod: &PodHandle, reason: &str) -> Result<usize> {
    let events = lab.mesh().events(pod.node())?;
    Ok(events.iter().filter(|event| event["uid"] == pod.uid() && event["reason"] == reason).count())
}

#[test]
fn what_a_pod_excludes_is_left_alone_and_nothing_else_is_also_when_it_changes_its_mind() -> Result<()> {
    let lab = support::mesh("exclusions")?;
    let servers = || App::serve(&[("echo", CAPTURED), ("echo", FREE)]);
    let web = Pod::new("shop", "web").service_account("web").annotation(INBOUND_PORTS, "9000");
    let web = lab.add_pod(web.app(servers()))?;
    let cart = Pod::new("shop", "cart").service_account("cart").node(2).annotation(OUTBOUND_PORTS, "9000");
    let cart = lab.add_pod(cart.app(App::None))?;
    let friend = lab.add_pod(Pod::new("shop", "friend").service_account("friend").node(2).app(App::None))?;
    let db = lab.add_pod(Pod::new("outside", "db").app(servers()))?;
    let strangers = [
        lab.add_pod(Pod::new("outside", "beside").app(App::None))?,
        lab.add_pod(Pod::new("outside", "far").node(2).app(App::None))?,
    ];
    talk::everyone_known(&lab, &[&web, &cart, &friend])?;
    for outsider in [&db, &strangers[1]] {
        lab.allow("a pod outside of the mesh", support::Clear::of(outsider));
    }
    lab.allow("a port that is left out", support::Clear::of(&cart).with(&web).port(FREE));
    support::strict(&lab, "shop", &web, CAPTURED, &strangers[0])?;

    // Inwards: a stranger reaches the port that is left out, and no other; who is in the mesh does not notice.
    for stranger in &strangers {
        all_meet(stranger, &at(&web, CAPTURED), Met::Refused)?;
        all_meet(stranger, &at(&web, FREE), Met::Answered)?;
    }
    for port in [CAPTURED, FREE] {
        all_meet(&friend, &at(&web, port), Met::Answered)?;
        wait_logged(&lab, &friend, &at(&web, port), 1)?;
    }
    // Outwards: past the proxy where it is left out, through it elsewhere.
    all_meet(&cart, &at(&db, FREE), Met::Answered)?;
    all_meet(&cart, &at(&db, CAPTURED), Met::Answered)?;
    wait_logged(&lab, &cart, &at(&db, CAPTURED), 1)?;
    wait_logged(&lab, &cart, &at(&db, FREE), 0)?;
    // It opens nothing at the other side: in clear nobody reaches a pod of the mesh that wants more.
    lab.annotate_pod(&cart, OUTBOUND_PORTS, Some("7000, 9000"))?;
    has_rule(&lab, &cart, "exclude-out-7000-ipv4", true)?;
    lab.allow("another port that is left out", support::Clear::of(&cart).with(&web).port(CAPTURED));
    all_meet(&cart, &at(&web, CAPTURED), Met::Refused)?;
    // It stands where its owner looks.
    let says = |pod: &PodHandle, text: &str| {
        wait::until_true(&format!("the condition of {} to say {text:?}", pod.key()), CHANGE, || {
            lab.mesh().pod_status(pod).is_some_and(|status| field(&status, "message").contains(text))
        })
    };
    says(&web, "not captured: inbound ports 9000")?;
    says(&cart, "not captured: outbound ports 7000, 9000")?;
    ensure!(told(&lab, &web, "Excluded")? == 1 && told(&lab, &cart, "Excluded")? == 2, "events");

    // Another mind, while they run: addresses instead of ports, and nothing inwards.
    let ranges: Vec<String> = db.ips().iter().map(IpAddr::to_string).collect();
    lab.annotate_pod(&cart, OUTBOUND_PORTS, None)?;
    lab.annotate_pod(&cart, OUTBOUND_CIDRS, Some(&ranges.join(",")))?;
    for ip in db.ips() {
        has_rule(&lab, &cart, &format!("exclude-out-{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }), true)?;
    }
    has_rule(&lab, &cart, "exclude-out-7000-ipv4", false)?;
    for port in [CAPTURED, FREE] {
        all_meet(&cart, &at(&db, port), Met::Answered)?;
        all_meet(&cart, &at(&web, port), Met::Answered)?;
        wait_logged(&lab, &cart, &at(&web, port), 1)?;
    }
    wait_logged(&lab, &cart, &at(&db, CAPTURED), 1)?;
    wait_logged(&lab, &cart, &at(&db, FREE), 0)?;
    lab.annotate_pod(&web, INBOUND_PORTS, None)?;
    has_rule(&lab, &web, "exclude-in-9000", false)?;
    all_meet(&strangers[0], &at(&web, FREE), Met::Refused)?;

    // Half understood is not done at all, and named.
    lab.annotate_pod(&web, INBOUND_PORTS, Some("9000, http"))?;
    says(&web, "\"http\" is no TCP port")?;
    ensure!(told(&lab, &web, "BadExclusions")? == 1, "events");
    for stranger in &strangers {
        all_meet(stranger, &at(&web, FREE), Met::Refused)?;
    }

    // What changed while pod-watcher was away is put in force when it is back, and not taken for a stranger's change.
    let (v4, v6) = (db.ips()[0], db.ips()[1]);
    lab.mesh().watcher(2).kill()?;
    lab.annotate_pod(&cart, OUTBOUND_CIDRS, Some(&v4.to_string()))?;
    let adopted = told(&lab, &cart, "Adopted")?;
    lab.mesh().watcher(2).restart()?;
    wait::until_true("cart to be adopted", CHANGE, || told(&lab, &cart, "Adopted").is_ok_and(|now| now > adopted))?;
    has_rule(&lab, &cart, &format!("exclude-out-{v6}/128"), false)?;
    has_rule(&lab, &cart, &format!("exclude-out-{v4}/32"), true)?;
    all_meet(&cart, &at(&db, FREE), Met::Answered)?;
    all_meet(&cart, &at(&web, FREE), Met::Answered)?;
    wait_logged(&lab, &cart, &at(&web, FREE), 2)?;
    wait_logged(&lab, &cart, &[SocketAddr::new(v4, FREE)], 0)?;
    wait_logged(&lab, &cart, &[SocketAddr::new(v6, FREE)], 1)?;
    let audits = || -> Result<f64> {
        let page = lab.mesh().watcher_metrics(2)?;
        let of = |line: &&str| line.starts_with("culvert_watcher_audits_total{");
        Ok(page.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    };
    // Two pods are audited there, cart among them.
    let before = audits()?;
    wait::until_true("cart to be audited", CHANGE, || audits().is_ok_and(|now| now >= before + 4.0))?;
    for pod in [&cart, &web] {
        ensure!(told(&lab, pod, "RulesChanged")? == 0, "an exclusion was taken for a stranger's change");
    }
    Ok(())
}
