//! A mesh that runs: its components, pods that should be captured and are not, warnings, and what each proxy has.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use mesh_api::manifests::{Namespace, Outside, Pod, pod_name};
use serde_json::Value;

use super::Finding;
use crate::ask::Proxy;
use crate::names::REPORTERS;
use crate::print;
use crate::ps::{Seen, State};

/// Of each sort of trouble at most so many are named one by one.
const NAMED: usize = 20;
/// Warnings that are older say little of now.
const RECENT: i64 = 3600;

/// From the rows of `culvert status`.
pub fn components(rows: &[Value]) -> Vec<Finding> {
    let judge = |row: &Value| {
        let name = row["component"].as_str().unwrap_or_default();
        let holdups: Vec<&str> = row["holdups"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        match row["done"] == true {
            true => Finding::fine(format!("component {name}"), format!("{} of {} ready", row["ready"], row["desired"])),
            false => Finding::failed(
                format!("component {name}"),
                format!("is not as wanted: {}", holdups.join("; ")),
                format!("see culvert logs {name} [--previous], kubectl -n culvert-system describe pods"),
            ),
        }
    };
    let mut findings: Vec<Finding> = rows.iter().map(judge).collect();
    let versions = |row: &Value| row["versions"].as_array().cloned().unwrap_or_default();
    let mut all: Vec<String> =
        rows.iter().flat_map(versions).filter_map(|one| one.as_str().map(str::to_owned)).collect();
    all.sort();
    all.dedup();
    if all.len() > 1 {
        findings.push(Finding::warning(
            "versions",
            format!("several run side by side: {}", all.join(", ")),
            "an upgrade goes on, or has stopped: culvert status",
        ));
    }
    findings
}

/// Pods that ask for the mesh and are not captured.
pub fn pods(pods: &[Pod], namespaces: &BTreeMap<String, Namespace>, outside: &Outside) -> Vec<Finding> {
    let (mut captured, mut findings) = (0, Vec::new());
    for pod in pods {
        let seen = Seen::of(pod, namespaces, outside);
        let object = format!("pod {}", pod_name(pod));
        match (seen.state, seen.said) {
            (State::Captured, _) => captured += 1,
            (State::NotCaptured, said) => {
                let (reason, message) = said.unwrap_or_default();
                findings.push(Finding::failed(
                    object,
                    format!("asks for the mesh and is not captured: {reason}: {message}"),
                    "see kubectl describe pod, and culvert logs pod-watcher on its node",
                ));
            }
            (State::Waiting, _) if is_running(pod) => findings.push(Finding::warning(
                object,
                "asks for the mesh, and its node has said nothing of it yet",
                "look again in some seconds; then see whether pod-watcher runs on its node: culvert status",
            )),
            _ => {}
        }
    }
    shorten(&mut findings, "pods");
    findings.push(Finding::fine("captured pods", captured.to_string()));
    findings
}

fn is_running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// What the mesh warned of within the last hour: pods, the CNI chain, rules that somebody changed, objects that are not carried out as
/// written. Once for each object and reason.
pub fn events(warnings: &[Value], now: u64) -> Vec<Finding> {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let mut last: BTreeMap<(String, String), (i64, String)> = BTreeMap::new();
    for event in warnings.iter().filter(|event| REPORTERS.iter().any(|ours| event["reportingController"] == *ours)) {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let time = [text("/series/lastObservedTime"), text("/eventTime")]
            .iter()
            .find_map(|text| text.parse::<Timestamp>().ok());
        let Some(at) = time.map(Timestamp::as_second).filter(|at| now - at < RECENT) else { continue };
        let (kind, namespace, name) = (text("/regarding/kind"), text("/regarding/namespace"), text("/regarding/name"));
        let object = match namespace {
            "" => format!("{} {name}", kind.to_lowercase()),
            namespace => format!("{} {namespace}/{name}", kind.to_lowercase()),
        };
        let place = last.entry((object, text("/reason").to_owned())).or_default();
        if place.0 <= at {
            *place = (at, text("/note").to_owned());
        }
    }
    let mut findings: Vec<Finding> = last
        .into_iter()
        .map(|((object, reason), (at, note))| {
            let ago = print::span(u64::try_from(now - at).unwrap_or(0));
            Finding::warning(
                object,
                format!("{reason}, {ago} ago: {note}"),
                "see kubectl describe, and the reporter's own words: culvert logs pod-watcher, culvert logs control-plane",
            )
        })
        .collect();
    shorten(&mut findings, "warnings");
    findings
}

/// What the proxy of a node has: its configuration and its certificates.
pub fn proxy(node: &str, proxy: &Proxy, now: u64) -> Vec<Finding> {
    let object = format!("proxy of node {node}");
    let mut findings = Vec::new();
    let origin = &proxy.config["origin"];
    if origin != "live" {
        // The commonest cause by far, and one that the cluster's own name for a Service hides.
        let next = format!(
            "its own words: culvert logs worker --node {node}; where nodes' proxies cannot resolve Services, set controlPlane.clusterIP"
        );
        let says = match origin["last_good_written_at"].as_str() {
            Some(written) => Finding::warning(
                object.as_str(),
                format!("runs on the configuration that it wrote down at {written}"),
                next,
            ),
            None => Finding::failed(
                object.as_str(),
                "has no configuration: nothing can be judged, so everything is refused",
                next,
            ),
        };
        findings.push(says);
    }
    for one in &proxy.certificates {
        let identity = one["identity"].as_str().unwrap_or_default();
        let number = |key: &str| one[key].as_u64();
        let error = one["last_error"].as_str().map(|error| format!("; last error: {error}")).unwrap_or_default();
        let next = format!("see culvert logs control-plane, culvert logs worker --node {node}");
        match (number("not_before"), number("not_after")) {
            (_, Some(end)) if end <= now => {
                findings.push(Finding::failed(
                    object.as_str(),
                    format!("certificate of {identity} has expired{error}"),
                    next,
                ));
            }
            // Renewed at half of its life; in the last fifth that has failed for long.
            (Some(begin), Some(end)) if end - now < end.saturating_sub(begin) / 5 => {
                findings.push(Finding::warning(
                    object.as_str(),
                    format!(
                        "certificate of {identity} expires in {} and has not been renewed{error}",
                        print::until(end, now)
                    ),
                    next,
                ));
            }
            (_, None) if number("failures").unwrap_or(0) > 0 => {
                findings.push(Finding::failed(
                    object.as_str(),
                    format!("there is no certificate of {identity}{error}"),
                    next,
                ));
            }
            _ => {}
        }
    }
    shorten(&mut findings, "troubles of this proxy");
    if findings.is_empty() {
        let count = proxy.certificates.len();
        findings.push(Finding::fine(
            object,
            format!("live configuration, {} pods, {count} certificates", proxy.pods.len()),
        ));
    }
    findings
}

fn shorten(findings: &mut Vec<Finding>, what: &str) {
    let more = findings.len().saturating_sub(NAMED);
    if more > 0 {
        let level = findings[NAMED..].iter().map(|one| one.level).max().unwrap_or(super::Level::Warning);
        findings.truncate(NAMED);
        findings.push(Finding {
            level,
            object: what.to_owned(),
            says: format!("{more} more like these"),
            next: "mend the first, and look again".to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Level;

    fn with(certificate: Value, origin: Value) -> Vec<Finding> {
        let proxy = Proxy { pods: Vec::new(), certificates: vec![certificate], config: json!({"origin": origin}) };
        super::proxy("n1", &proxy, 1000)
    }

    #[test]
    fn a_proxy_is_judged_by_its_configuration_and_certificates() {
        let fresh = json!({"identity": "i", "not_before": 900, "not_after": 1500, "failures": 0});
        let check = |found: Vec<Finding>, level: Level, says: &str| {
            assert!(
                found.iter().map(|one| one.level).max() == Some(level) && found[0].says.contains(says),
                "{found:?}"
            );
        };
        check(with(fresh.clone(), json!("live")), Level::Fine, "1 certificates");
        check(with(fresh.clone(), json!({"last_good_written_at": "2026-01-01"})), Level::Warning, "2026-01-01");
        check(with(fresh, json!("nothing")), Level::Failed, "no configuration");
        let old = json!({"identity": "i", "not_before": 0, "not_after": 1010, "failures": 9, "last_error": "refused"});
        check(with(old, json!("live")), Level::Warning, "expires in 10s and has not been renewed; last error: refused");
        check(
            with(json!({"identity": "i", "not_before": 0, "not_after": 1000}), json!("live")),
            Level::Failed,
            "has expired",
        );
        let none = json!({"identity": "i", "failures": 2, "last_error": "no"});
        check(with(none, json!("live")), Level::Failed, "no certificate of i; last error: no");
        check(with(json!({"identity": "i", "failures": 0}), json!("live")), Level::Fine, "live");
    }

    #[test]
    fn warnings_of_others_and_of_long_ago_are_not_ours() {
        let event = |by: &str, at: &str, note: &str| json!({"reportingController": by, "eventTime": at, "reason": "PortTaken", "note": note, "regarding": {"kind": "Pod", "namespace": "shop", "name": "cart"}});
        let now = "2026-11-21T12:00:00Z".parse::<Timestamp>().expect("a time").as_second();
        let all = [
            event("kubelet", "2026-11-21T11:59:00.000000Z", "other"),
            event(REPORTERS[0], "2026-11-21T09:00:00.000000Z", "old"),
            event(REPORTERS[0], "2026-11-21T11:50:00.000000Z", "first"),
            event(REPORTERS[1], "2026-11-21T11:58:00.000000Z", "last"),
        ];
        let found = events(&all, u64::try_from(now).expect("after 1970"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].object.as_str(), found[0].says.as_str()), ("pod shop/cart", "PortTaken, 2m00s ago: last"));
    }

    #[test]
    fn many_of_one_sort_are_counted_and_keep_their_weight() {
        let mut findings: Vec<Finding> = (0..30).map(|n| Finding::failed(format!("pod {n}"), "", "")).collect();
        shorten(&mut findings, "pods");
        assert_eq!(
            (findings.len(), findings[20].says.as_str(), findings[20].level),
            (21, "10 more like these", Level::Failed)
        );
    }
}
