//! What of a mesh must be the same before and after: descriptors by kind, metric series, rules and routes; and when it can be compared.
//!
//! Two things outlive what they were made for, on purpose: a tunnel is kept for five minutes after its last connection, and the series
//! of a pod that is gone stay for a minute (two scrapes). The second is waited for. Tunnels are told by the workers themselves, so each
//! that both its ends know is taken off the sockets; whatever else is there is not.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::{Lab, wait};
use serde_json::Value;

use crate::growth::daemons;
use crate::scrape;

/// How long what has gone may take to leave: series of gone pods are the last, after a minute and two sweeps of ten seconds.
const AWAY: Duration = Duration::from_secs(120);
/// Nothing has changed for so long since nothing was under way: longer than a sweep of series.
const STILL: Duration = Duration::from_secs(11);
/// Between two looks, which read every rule and every page.
const PAUSE: Duration = Duration::from_secs(1);
/// Begins the name of every pod that comes and goes.
pub(super) const PASSING: &str = "churn-";

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rest {
    descriptors: BTreeMap<String, usize>,
    /// By page and family: which series, not which values.
    series: BTreeMap<String, usize>,
    rules: BTreeMap<String, String>,
    /// Why nothing can be compared yet.
    under_way: Vec<String>,
}

impl Rest {
    fn now(lab: &Lab) -> Result<Rest> {
        let mut under_way = Vec::new();
        let tunnels = Tunnels::of(lab)?;
        let mut descriptors: BTreeMap<String, usize> = BTreeMap::new();
        for (name, pid) in daemons(lab)? {
            for fd in std::fs::read_dir(format!("/proc/{}/fd", pid.pid))?.flatten() {
                let target = std::fs::read_link(fd.path()).unwrap_or_default().to_string_lossy().into_owned();
                let kind = target.split([':', '(']).next().unwrap_or_default();
                *descriptors.entry(format!("{name} {kind}")).or_default() += 1;
            }
        }
        let mesh = lab.mesh();
        let mut pages = vec![("control-plane".to_owned(), mesh.control_plane_metrics()?)];
        for node in lab.nodes() {
            let index = node.index();
            if let Some(sockets) = descriptors.get_mut(&format!("worker-{index} socket")) {
                *sockets = sockets.saturating_sub(tunnels.ends(index));
            }
            let connections = mesh.admin(index, &["connections"])?.as_array().map_or(0, Vec::len);
            // A tunnel is a connection of the pod that it leads to.
            if connections != tunnels.towards(index) {
                let towards = tunnels.towards(index);
                under_way.push(format!("worker-{index}: {connections} connections, {towards} of them tunnels"));
            }
            pages.push((format!("worker-{index}"), mesh.worker_metrics(index)?));
            pages.push((format!("pod-watcher-{index}"), mesh.watcher_metrics(index)?));
        }
        let mut series = BTreeMap::new();
        for (page, text) in pages {
            let of_passed = text.lines().filter(|line| line.contains(PASSING)).count();
            if of_passed > 0 {
                under_way.push(format!("{page}: {of_passed} series of pods that are gone"));
            }
            for one in scrape::series(&text)? {
                if one.name == "culvert_mint_stock" && one.value > 0.0 {
                    under_way.push(format!("{page}: {} minted sockets wait for a use", one.value));
                }
                *series.entry(format!("{page} {}", one.name)).or_default() += 1;
            }
        }
        let mut rules = BTreeMap::new();
        for node in lab.nodes() {
            let said = node.exec(&[
                "sh",
                "-c",
                "nft list ruleset; ip rule; ip -6 rule; ip route show table all type local | sort",
            ])?;
            rules.insert(node.name().to_owned(), uncounted(&said.ok()?));
        }
        for pod in lab.pods() {
            let said = pod.exec_as(lab::User::root(), &["sh", "-c", "nft list ruleset; ip rule; ip -6 rule"])?;
            rules.insert(pod.key(), uncounted(&said.ok()?));
        }
        Ok(Rest { descriptors, series, rules, under_way })
    }

    /// When nothing is under way, and nothing changes any more.
    pub(super) fn settled(lab: &Lab) -> Result<Rest> {
        let (mut last, mut since) = (Rest::now(lab)?, Instant::now());
        let came = looked("the mesh to come to rest", || {
            let now = Rest::now(lab)?;
            if now != last || !now.under_way.is_empty() {
                (last, since) = (now, Instant::now());
            }
            Ok(since.elapsed() > STILL)
        });
        came.with_context(|| last.under_way.join("\n"))?;
        Ok(last)
    }

    /// Waits until all is as it was.
    pub(super) fn again(&self, lab: &Lab) -> Result<()> {
        let mut last = Vec::new();
        let came = looked("the mesh to be as at the start", || {
            let now = Rest::now(lab)?;
            last = self.differences(&now);
            last.extend(now.under_way);
            Ok(last.is_empty())
        });
        came.with_context(|| last.join("\n"))
    }

    fn differences(&self, now: &Rest) -> Vec<String> {
        let count = |of: &'static str, was: &BTreeMap<String, usize>, is: &BTreeMap<String, usize>| {
            let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
            let at = |map: &BTreeMap<String, usize>, key: &String| map.get(key).copied().unwrap_or(0);
            let differ = keys.into_iter().filter(|key| at(was, key) != at(is, key));
            differ.map(|key| format!("{key}: {} {of}, {} at the start", at(is, key), at(was, key))).collect::<Vec<_>>()
        };
        let rules = self.rules.iter().filter(|(what, was)| now.rules.get(*what) != Some(was));
        let rules = rules.map(|(what, was)| format!("rules of {what}:\n  was {was}\n  is  {:?}", now.rules.get(what)));
        let descriptors = count("descriptors", &self.descriptors, &now.descriptors);
        descriptors.into_iter().chain(count("series", &self.series, &now.series)).chain(rules).collect()
    }
}

/// Looks until it is so; what cannot be read at the moment (a page during a change) is looked at again, and told if it stays so.
fn looked(what: &str, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let mut looked: Option<Instant> = None;
    let mut failed = None;
    let came = wait::until_true(what, AWAY, || {
        if looked.is_some_and(|at| at.elapsed() < PAUSE) {
            return false;
        }
        let seen = look();
        looked = Some(Instant::now());
        match seen {
            Ok(is_so) => is_so,
            Err(error) => {
                failed = Some(error);
                false
            }
        }
    });
    came.with_context(|| failed.map(|error| format!("{error:#}")).unwrap_or_default())
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (descriptors, series): (usize, usize) = (self.descriptors.values().sum(), self.series.values().sum());
        let lines: usize = self.rules.values().map(|text| text.lines().count()).sum();
        write!(f, "{descriptors} descriptors, {series} series, {lines} lines of rules and routes")
    }
}

/// Tunnels between pods that are there, as the workers that made them tell: the node of each end.
struct Tunnels(Vec<(usize, usize)>);

impl Tunnels {
    fn of(lab: &Lab) -> Result<Tunnels> {
        let nodes: BTreeMap<IpAddr, usize> =
            lab.pods().iter().flat_map(|pod| pod.ips().into_iter().map(|ip| (ip, pod.node()))).collect();
        let mut tunnels = Vec::new();
        for node in lab.nodes() {
            let told = lab.mesh().admin(node.index(), &["tunnels"])?;
            let to = |tunnel: &Value| tunnel["destination"].as_str()?.parse::<SocketAddr>().ok();
            let there = told.as_array().into_iter().flatten().filter_map(|tunnel| nodes.get(&to(tunnel)?.ip()));
            tunnels.extend(there.map(|other| (node.index(), *other)));
        }
        Ok(Tunnels(tunnels))
    }

    /// Sockets of tunnels that a node's worker holds.
    fn ends(&self, node: usize) -> usize {
        self.0.iter().map(|(from, to)| usize::from(*from == node) + usize::from(*to == node)).sum()
    }

    fn towards(&self, node: usize) -> usize {
        self.0.iter().filter(|(_, to)| *to == node).count()
    }
}

/// Rules without their counters' values.
fn uncounted(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| at > 0 && ["packets", "bytes"].contains(&words[at - 1]);
        let kept = words.iter().enumerate().map(|(at, word)| if number(at) { "N" } else { *word });
        kept.collect::<Vec<_>>().join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}
