//! A packet mark buys nothing: a pod with NET_RAW sets those that other meshes exempt, every one it can read, and random ones, and is
//! captured and judged all the same. Only the mark of its own enrolment exempts, which it cannot read (the control).

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lab::pod::ECHO;
use lab::{Lab, Pod, PodHandle, User, wait};
use serde_json::Value;

use crate::support::{CHANGE, at, family, figure, mesh};

const RANDOM: u32 = 4096;
/// What ztunnel and istio-cni set.
const KNOWN: [u32; 2] = [0x539, 0x111];

const NOBODY: &str = r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: not-the-prisoner}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules:
  - from:
    - source: {principals: ["cluster.local/ns/shop/sa/prisoner"]}
"#;

/// Every mark that a process of the pod, without NET_ADMIN, can read: in rules, and in the conntrack entries of its own network.
fn readable(pod: &PodHandle) -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    let mut words = String::new();
    for argv in [&["ip", "-4", "rule"][..], &["ip", "-6", "rule"], &["cat", "/proc/net/nf_conntrack"]] {
        words += &pod.exec(argv)?.ok().with_context(|| argv.join(" "))?.replace("fwmark ", "mark=");
    }
    for word in words.split_whitespace().filter_map(|word| word.strip_prefix("mark=")) {
        // `0xc71002/0x7fffffff`, or decimal in conntrack.
        let value = word.split('/').next().unwrap_or_default();
        let number = value.strip_prefix("0x").map_or_else(|| value.parse(), |hex| u32::from_str_radix(hex, 16));
        found.insert(number.with_context(|| format!("mark {word}"))?);
    }
    found.remove(&0); // what everybody has
    Ok(found)
}

/// The mark of the pod's enrolment, as root of its network can read it.
pub(crate) fn enrolment(pod: &PodHandle) -> Result<u32> {
    let rules = pod.exec_as(User::root(), &["nft", "list", "chain", "inet", "culvert", "output_route"])?.ok()?;
    let rule = rules.lines().find(|line| line.contains("proxy-out")).context("the exempting rule")?;
    let hex = rule.split("== 0x").nth(1).and_then(|rest| rest.split(' ').next()).context("its mark")?;
    Ok(u32::from_str_radix(hex, 16)?)
}

fn attempts(from: &PodHandle, to: &str, marks: &BTreeSet<u32>, random: u32) -> Result<Value> {
    let marks: Vec<String> = marks.iter().map(u32::to_string).collect();
    let random = random.to_string();
    let mut args = vec!["connect", to, "--send", "hello", "--timeout", "5000", "--random-marks", &random];
    let list = marks.join(",");
    if !list.is_empty() {
        args.extend(["--marks", &list]);
    }
    from.run_client(&args)
}

/// Lines of the access log of node 1: outbound ones of the prisoner to this destination.
fn lines(lab: &Lab, to: &str) -> Vec<Value> {
    let ours = |line: &Value| {
        line["direction"] == "outbound" && line["destination"] == to && line["source_pod"] == "shop/prisoner"
    };
    lab.mesh().access_log(1).into_iter().filter(ours).collect()
}

/// Attempts with these marks, each of them seen by the proxy and judged as wanted; how they ended.
///
/// The mark of the app's answers routes to `lo` whatever leaves with it: over IPv4 the kernel itself refuses that one.
fn judged(lab: &Lab, from: &PodHandle, to: &str, marks: &BTreeSet<u32>, random: u32, denied: bool) -> Result<Value> {
    let before = lines(lab, to).len();
    let seen = attempts(from, to, marks, random)?;
    let count = |outcome: &str| seen["outcomes"][outcome].as_u64().unwrap_or(0);
    let (tried, kernel) = (marks.len() as u64 + u64::from(random), count("unreachable"));
    ensure!(kernel <= 1, "{to}: {seen}");
    let word = if denied { "reset" } else { "ok" };
    ensure!(count(word) == tried - kernel, "{tried} attempts at {to}: {seen}");
    let expected = before + (tried - kernel) as usize;
    wait::until_true(&format!("{expected} lines of attempts at {to}"), CHANGE, || lines(lab, to).len() >= expected)
        .with_context(|| format!("{seen}; lines: {}", lines(lab, to).len()))?;
    let fresh = lines(lab, to).split_off(before);
    let fits = |line: &Value| if denied { line["reason"] == "PolicyDenied" } else { line["reason"].is_null() };
    ensure!(
        fresh.len() == expected - before && fresh.iter().all(fits),
        "{} lines, the last {:?}",
        fresh.len(),
        fresh.last()
    );
    Ok(seen)
}

#[test]
fn a_pod_that_may_set_any_mark_is_captured_and_judged_under_each() -> Result<()> {
    let lab = mesh("marks")?;
    let prisoner = lab.add_pod(Pod::new("shop", "prisoner").service_account("prisoner"))?;
    let near = lab.add_pod(Pod::new("shop", "web"))?;
    let far = lab.add_pod(Pod::new("shop", "web-2").node(2).label("app", "web"))?;
    let plain = lab.add_pod(Pod::new("outside", "plain"))?;
    lab.allow("a stranger to the mesh", crate::support::Clear::of(&plain));
    // Something of the mesh for it to read: a connection of a stranger towards its app, whose conntrack entries carry marks.
    let visit = plain.client("visit", &["live", &at(prisoner.v4(), ECHO)])?;
    visit.wait_stdout("ready", CHANGE)?;
    lab.apply("not-the-prisoner", NOBODY)?;
    for pod in [&near, &far] {
        let (to, mut tried) = (at(pod.ips()[0], ECHO), 0);
        wait::until_true("the policy to take hold", CHANGE, || {
            tried += KNOWN.len();
            attempts(&prisoner, &to, &KNOWN.into(), 0).is_ok_and(|seen| seen["ok"] == 0)
        })?;
        // A line of these must not be taken for one of what follows.
        wait::until_true("their lines", CHANGE, || lines(&lab, &to).len() == tried)?;
    }

    let mut marks = readable(&prisoner)?;
    let own = enrolment(&prisoner)?;
    ensure!(!marks.is_empty(), "rules show a mark of the mesh, it read only {marks:x?}");
    ensure!(!marks.contains(&own), "the pod can read the mark that exempts it: {own:#x} of {marks:x?}");
    figure("readable_marks", marks.len(), "marks", &format!("{marks:x?}"));
    marks.extend(KNOWN);

    let before = [near.stats(), far.stats()];
    for ip in near.ips() {
        let seen = judged(&lab, &prisoner, &at(ip, ECHO), &marks, RANDOM, true)?;
        figure("marks_tried", marks.len() + RANDOM as usize, "marks", &format!("{}: {}", family(ip), seen["outcomes"]));
    }
    for ip in far.ips() {
        judged(&lab, &prisoner, &at(ip, ECHO), &marks, 64, true)?;
    }
    ensure!([near.stats(), far.stats()] == before, "an app saw something of it");

    // Where nobody refuses, each passes through the proxy. The control: its enrolment's own mark passes beside it.
    for ip in plain.ips() {
        let to = at(ip, ECHO);
        judged(&lab, &prisoner, &to, &marks, 64, false)?;
        let before = lines(&lab, &to).len();
        let seen = attempts(&prisoner, &to, &[own].into(), 0)?;
        ensure!(seen["ok"] == 1, "control over {}: {seen}", family(ip));
        judged(&lab, &prisoner, &to, &KNOWN.into(), 0, false)?;
        ensure!(lines(&lab, &to).len() == before + KNOWN.len(), "the enrolment's own mark did not exempt");
    }
    lab.down()
}
