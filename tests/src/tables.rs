//! The rules of a pod withstand other programs: an owned table is left by `nft flush ruleset` and `nft delete table`; where tables
//! cannot be owned, what was changed is found, written again, counted and evented.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{Config, Lab, MeshConfig, Pod, PodHandle, User, wait};
use serde_json::Value;

use crate::support::{at, figure, lab, strict};

/// A lab of this table mode with a STRICT pod, and a pod that STRICT refuses.
fn set_up(name: &str, mode: &str) -> Result<(crate::support::Watched, PodHandle, PodHandle)> {
    let mesh = MeshConfig { table_mode: mode.into(), ..MeshConfig::default() };
    let lab = lab(Config::default().name(name).nodes(1).mesh(mesh))?;
    let web = lab.add_pod(Pod::new("shop", "web"))?;
    let stranger = lab.add_pod(Pod::new("outside", "stranger"))?;
    strict(&lab, "shop", &web, ECHO, &stranger)?;
    Ok((lab, web, stranger))
}

/// A program with all privileges in the pod's network.
fn root(pod: &PodHandle, argv: &[&str]) -> Result<String> {
    pod.exec_as(User::root(), argv)?.ok().with_context(|| argv.join(" "))
}

/// Every rule and route that is ours, as `nft` and `ip` show them, without what counts and without the order of unrelated things.
fn rules(pod: &PodHandle) -> Result<String> {
    let table = root(pod, &["nft", "--stateless", "list", "table", "inet", "culvert"])?;
    let mut text = table;
    for family in ["-4", "-6"] {
        text += &root(pod, &["ip", family, "rule"])?;
        // No table at all is an error of its own for `ip`.
        text += &pod.exec_as(User::root(), &["ip", family, "route", "show", "table", "15001100"])?.stdout;
    }
    Ok(text)
}

/// Everything is there again: the table exactly, rules and routes whatever else somebody has added beside them.
fn restored(before: &str, now: &str) -> bool {
    let (Some((table, routing)), Some((table_now, routing_now))) = (before.rsplit_once("\n}"), now.rsplit_once("\n}"))
    else {
        return false;
    };
    table == table_now && routing.lines().all(|line| routing_now.lines().any(|now| now == line))
}

/// The pod is captured: STRICT refuses the stranger, over each family.
fn refused(pod: &PodHandle, stranger: &PodHandle) -> Result<()> {
    for ip in pod.ips() {
        let seen = stranger.run_client(&["connect", &at(ip, ECHO), "--send", "x", "--timeout", "2000"])?;
        ensure!(seen["ok"] == 0, "the stranger got through at {ip}: {seen}");
    }
    Ok(())
}

/// The sum over all series of a counter.
fn metric(lab: &Lab, name: &str) -> Result<u64> {
    let text = lab.mesh().watcher_metrics(1)?;
    let series = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} "));
    let values: Vec<u64> = series.map(|(_, value)| value.trim().parse()).collect::<Result<_, _>>()?;
    ensure!(!values.is_empty(), "no metric {name} in\n{text}");
    Ok(values.iter().sum())
}

fn events(lab: &Lab, pod: &PodHandle, reason: &str) -> Result<Vec<Value>> {
    let uid = pod.uid();
    Ok(lab.mesh().events(1)?.into_iter().filter(|e| e["reason"] == reason && e["uid"] == uid.as_str()).collect())
}

#[test]
fn an_owned_table_is_left_by_a_flush_and_cannot_be_deleted() -> Result<()> {
    let (lab, web, stranger) = set_up("tables-owned", "owned")?;
    let before = rules(&web)?;
    ensure!(before.contains("tproxy to :15006") && before.contains("lookup 15001100"), "{before}");
    // The control: the flush does take what is not owned.
    root(&web, &["nft", "add", "table", "inet", "somebody"])?;
    root(&web, &["nft", "flush", "ruleset"])?;
    ensure!(!root(&web, &["nft", "list", "tables"])?.contains("somebody"), "the flush did nothing");
    ensure!(rules(&web)? == before, "after a flush: {}", rules(&web)?);
    refused(&web, &stranger)?;
    for argv in [
        &["nft", "delete", "table", "inet", "culvert"][..],
        &["nft", "flush", "table", "inet", "culvert"],
        &["nft", "flush", "chain", "inet", "culvert", "prerouting_nat"],
        &["nft", "insert", "rule", "inet", "culvert", "prerouting_nat", "accept"],
    ] {
        let done = web.exec_as(User::root(), argv)?;
        ensure!(!done.exit.success(), "{argv:?} was let do its work");
        ensure!(rules(&web)? == before, "after {argv:?}: {}", rules(&web)?);
        refused(&web, &stranger)?;
    }
    ensure!(metric(&lab, "culvert_watcher_repairs_total")? == 0, "nothing was to be repaired");
    lab.down()
}

/// What root of the pod's network may do to a table that nobody owns. A rule is deleted by the handle it has now.
fn table_damages(pod: &PodHandle) -> Result<Vec<(&'static str, String)>> {
    let listing = root(pod, &["nft", "--handle", "list", "chain", "inet", "culvert", "prerouting_nat"])?;
    let redirect = listing.lines().find(|line| line.contains("capture-in")).context("the redirect rule")?;
    let handle = redirect.rsplit(' ').next().context("its handle")?;
    Ok(vec![
        ("delete table", "nft delete table inet culvert".into()),
        ("delete one rule", format!("nft delete rule inet culvert prerouting_nat handle {handle}")),
        ("flush chain", "nft flush chain inet culvert prerouting_nat".into()),
        ("flush the other line's chain", "nft flush chain inet culvert prerouting_filter".into()),
        ("an accept rule before ours", "nft insert rule inet culvert prerouting_nat accept".into()),
        ("an accept rule before ours, filter", "nft insert rule inet culvert prerouting_filter accept".into()),
    ])
}

/// The same to the way back of the app's answers.
const ROUTE_DAMAGES: [(&str, &str); 6] = [
    ("delete ip rule", "ip -4 rule del pref 100"),
    ("delete ip rule, IPv6", "ip -6 rule del pref 100"),
    ("empty our table", "ip -4 route flush table 15001100"),
    ("empty our table, IPv6", "ip -6 route flush table 15001100"),
    ("another route in our table", "ip -4 route replace blackhole default table 15001100"),
    ("another ip rule", "ip -4 rule del pref 100; ip -4 rule add pref 100 fwmark 0x1 lookup 100"),
];

/// Does the damage, and sees it repaired, counted and evented.
fn damage(lab: &Lab, pod: &PodHandle, stranger: &PodHandle, name: &str, script: &str) -> Result<()> {
    let before = rules(pod)?;
    let counted = || -> Result<[u64; 2]> {
        Ok([metric(lab, "culvert_watcher_drifts_total")?, metric(lab, "culvert_watcher_repairs_total")?])
    };
    let evented = || -> Result<[usize; 2]> {
        Ok([events(lab, pod, "RulesChanged")?.len(), events(lab, pod, "RulesRepaired")?.len()])
    };
    let (counts, reports) = (counted()?, evented()?);
    let start = Instant::now();
    root(pod, &["sh", "-c", script])?;
    wait::until_true(&format!("repair after: {name}"), Duration::from_secs(5), || {
        evented().is_ok_and(|now| now[1] > reports[1]) && rules(pod).is_ok_and(|now| restored(&before, &now))
    })
    .with_context(|| format!("now:\n{}", rules(pod).unwrap_or_default()))?;
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(5), "{name}: repaired only after {took:?}");
    figure("repair_ms", format!("{:.0}", took.as_secs_f64() * 1e3), "ms", &format!("after: {name}"));
    refused(pod, stranger)?;
    let (counts_now, reports_now) = (counted()?, evented()?);
    ensure!(counts_now[0] > counts[0] && counts_now[1] > counts[1], "{name}: counted {counts:?}, then {counts_now:?}");
    ensure!(reports_now[0] > reports[0], "{name}: events {reports:?}, then {reports_now:?}");
    Ok(())
}

#[test]
fn a_plain_table_is_repaired_in_under_five_seconds_counted_and_evented() -> Result<()> {
    let (lab, web, stranger) = set_up("tables-plain", "plain")?;
    for number in 0..table_damages(&web)?.len() {
        let (name, script) = table_damages(&web)?.swap_remove(number);
        damage(&lab, &web, &stranger, name, &script)?;
    }
    let told = events(&lab, &web, "RulesChanged")?;
    let by_name = told.iter().filter_map(|event| event["message"].as_str()).any(|text| text.contains("by nft"));
    ensure!(by_name, "no event says who changed the rules: {told:?}");
    // Another pod: the events of one are bounded, 20 in ten seconds.
    let api = lab.add_pod(Pod::new("shop", "api"))?;
    for (name, script) in ROUTE_DAMAGES {
        damage(&lab, &api, &stranger, name, script)?;
    }
    lab.down()
}
