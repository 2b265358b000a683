//! What of a mesh must be the same before and after: descriptors by kind, metric series, rules and routes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::{Lab, wait};

use crate::growth::daemons;
use crate::scrape;

/// How long what has gone may take to leave: idle tunnels and idle series are the last.
const AWAY: Duration = Duration::from_secs(120);
/// Nothing has changed for so long: at rest. Longer than two sweeps of idle series (10 s each).
const STILL: Duration = Duration::from_secs(25);

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rest {
    descriptors: BTreeMap<String, usize>,
    /// By page and family: which series, not which values.
    series: BTreeMap<String, usize>,
    rules: BTreeMap<String, String>,
}

impl Rest {
    fn now(lab: &Lab) -> Result<Rest> {
        let mut descriptors = BTreeMap::new();
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
            pages.push((format!("worker-{index}"), mesh.worker_metrics(index)?));
            pages.push((format!("pod-watcher-{index}"), mesh.watcher_metrics(index)?));
        }
        let mut series = BTreeMap::new();
        for (page, text) in pages {
            for one in scrape::series(&text)? {
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
        Ok(Rest { descriptors, series, rules })
    }

    /// When nothing changes any more.
    pub(super) fn settled(lab: &Lab) -> Result<Rest> {
        let (mut last, mut since) = (Rest::now(lab)?, Instant::now());
        wait::until_true("the mesh to come to rest", AWAY, || {
            let Ok(now) = Rest::now(lab) else { return false };
            if now != last {
                since = Instant::now();
                last = now;
            }
            since.elapsed() > STILL
        })?;
        Ok(last)
    }

    /// Waits until all is as it was.
    pub(super) fn again(&self, lab: &Lab) -> Result<()> {
        let mut last = Vec::new();
        let came = wait::until_true("the mesh to be as at the start", AWAY, || {
            last = Rest::now(lab).map_or_else(|error| vec![format!("{error:#}")], |now| self.differences(&now));
            last.is_empty()
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

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (descriptors, series): (usize, usize) = (self.descriptors.values().sum(), self.series.values().sum());
        let lines: usize = self.rules.values().map(|text| text.lines().count()).sum();
        write!(f, "{descriptors} descriptors, {series} series, {lines} lines of rules and routes")
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
