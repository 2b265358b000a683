//! `docs/metrics.md` and what the daemons serve are the same: every metric with its type, labels, unit and help text, none besides.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use lab::mesh;

use crate::prometheus::{endpoints, talked};
use crate::{scrape, support, talk};

/// Metrics by section of the page, then by name: the rest of the row.
type Page = BTreeMap<String, BTreeMap<String, String>>;

/// Labels of the traffic series where no zone is known, in their order; the page tells of them once.
const TRAFFIC: &str = "connection_security_policy destination_app destination_canonical_revision destination_canonical_service \
                       destination_cluster destination_principal destination_service destination_service_name \
                       destination_service_namespace destination_version destination_workload destination_workload_namespace \
                       reporter request_protocol response_flags source_app source_canonical_revision source_canonical_service \
                       source_cluster source_principal source_version source_workload source_workload_namespace";

/// What every daemon has; told once.
const EVERY: &str = "every daemon";

#[test]
fn the_page_lists_every_metric_of_every_daemon_as_it_is_served_and_none_besides() -> Result<()> {
    let lab = support::mesh("metrics-page")?;
    talked(&lab)?;
    // A port at which nobody listens: what counts failures has a series too.
    let pod = |name: &str| lab.pod("shop", name).context("made just now");
    for to in talk::at(&pod("near")?, 1) {
        talk::attempt(&pod("cart")?, to)?;
    }
    let mut served = Page::new();
    for (daemon, endpoints) in endpoints(&lab) {
        for to in endpoints {
            for (name, row) in rows(&mesh::get(lab.fabric(), to, "/metrics")?.1)? {
                let common = name.starts_with("process_")
                    || ["culvert_build_info", "culvert_log_lines_lost_total"].contains(&name.as_str());
                let section = served.entry(if common { EVERY } else { daemon }.to_owned()).or_default();
                // A node on which nobody was refused has no series of that name: what any of them has counts.
                section.entry(name).or_insert(row);
            }
        }
    }
    let written = written(include_str!("../../docs/metrics.md"));
    let mut differences = String::new();
    for section in served.keys().chain(written.keys()).collect::<BTreeSet<_>>() {
        let of = |page: &Page| page.get(section).cloned().unwrap_or_default();
        let (served, written) = (of(&served), of(&written));
        for (name, row) in served.iter().filter(|(name, row)| written.get(*name) != Some(row)) {
            differences += &format!("{section}: the page needs\n| `{name}` | {row} |\n");
        }
        for name in written.keys().filter(|name| !served.contains_key(*name)) {
            differences += &format!("{section}: nobody serves {name}\n");
        }
    }
    ensure!(differences.is_empty(), "docs/metrics.md:\n{differences}");
    Ok(())
}

/// A served page as rows: type, labels, unit, help.
fn rows(page: &str) -> Result<BTreeMap<String, String>> {
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let headed = |word: &str| -> BTreeMap<String, String> {
        let lines = page.lines().filter_map(|line| line.strip_prefix(word)?.split_once(' '));
        lines.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
    };
    let (help, kinds) = (headed("# HELP "), headed("# TYPE "));
    for one in scrape::series(page)? {
        let of = ["_bucket", "_sum", "_count"].iter().find_map(|end| one.name.strip_suffix(end));
        let name = of.filter(|name| kinds.contains_key(*name)).unwrap_or(&one.name);
        labels.entry(name.to_owned()).or_default().extend(one.labels().keys().filter(|key| *key != "le").cloned());
    }
    let row = |(name, kind): (&String, &String)| {
        let own = labels.get(name)?;
        let list: Vec<String> = own.iter().map(|label| format!("`{label}`")).collect();
        if own.iter().map(String::as_str).eq(TRAFFIC.split(' ')) {
            return Some((
                name.clone(),
                format!("{kind} | [traffic labels](#traffic-labels) | {} | {}", unit(name), help.get(name)?),
            ));
        }
        let list = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        Some((name.clone(), format!("{kind} | {list} | {} | {}", unit(name), help.get(name)?)))
    };
    kinds.iter().map(|entry| row(entry).with_context(|| format!("{} has no help or no series", entry.0))).collect()
}

/// By the ending of its name, as OpenMetrics has it.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    match name.rsplit('_').next() {
        Some("seconds") => "seconds",
        Some("bytes") => "bytes",
        _ => "number",
    }
}

/// The tables of the page, by the heading they stand under.
fn written(text: &str) -> Page {
    let mut page = Page::new();
    let mut section = String::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.to_lowercase();
        }
        let cells = line.strip_prefix("| `").and_then(|rest| rest.strip_suffix(" |")?.split_once("` | "));
        if let Some((name, rest)) = cells {
            page.entry(section.clone()).or_default().insert(name.to_owned(), rest.to_owned());
        }
    }
    page
}
