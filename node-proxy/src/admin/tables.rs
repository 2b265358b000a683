//! Which columns a person sees of each answer. What is not shown here is in the JSON form.

use std::time::{SystemTime, UNIX_EPOCH};

use mesh_daemon::table::{Column, cell, column, render as columns_of};
use serde_json::{Value, json};

const PODS: [Column; 6] = [
    column("POD", "name"),
    column("IDENTITY", "identity"),
    column("ADDRESSES", "addresses"),
    column("CONNECTIONS", "connections"),
    column("KNOWN", "known_to_mesh"),
    column("SHORT WAY", "short_way"),
];
const WORKLOADS: [Column; 7] = [
    column("POD", "pod"),
    column("SERVICE ACCOUNT", "service_account"),
    column("NODE", "node"),
    column("ADDRESSES", "addresses"),
    column("TUNNEL", "tunnel"),
    column("HEALTHY", "healthy"),
    column("POLICIES", "policies"),
];
const CONNECTIONS: [Column; 9] = [
    column("ID", "id"),
    column("POD", "pod"),
    column("DIRECTION", "direction"),
    column("CLIENT", "client"),
    column("DESTINATION", "destination"),
    column("SOURCE", "source"),
    column("SENT", "sent"),
    column("RECEIVED", "received"),
    column("STARTED", "started"),
];
const CERTIFICATES: [Column; 7] = [
    column("IDENTITY", "identity"),
    column("SERIAL", "serial"),
    column("EXPIRES IN", "expires_in"),
    column("NEXT ATTEMPT", "next_attempt_in"),
    column("WAITING", "waiting"),
    column("FAILURES", "failures"),
    column("LAST ERROR", "last_error"),
];
const TUNNELS: [Column; 4] = [
    column("SOURCE", "source"),
    column("DESTINATION", "destination"),
    column("STREAMS", "streams"),
    column("OPENED", "opened"),
];
const SERVICES: [Column; 4] =
    [column("SERVICE", "key"), column("ADDRESSES", "vips"), column("PORTS", "ports"), column("ENDPOINTS", "endpoints")];
const POLICIES: [Column; 6] = [
    column("POLICY", "key"),
    column("SCOPE", "scope"),
    column("ACTION", "action"),
    column("RULES", "rules"),
    column("DRY RUN", "dry_run"),
    column("INVALID", "invalid"),
];
const FACTS: [Column; 2] = [column("SETTING", "key"), column("VALUE", "value")];
const METRICS: [Column; 2] = [column("METRIC", "key"), column("VALUE", "value")];

/// The answer to this verb as text.
pub fn render(verb: &str, answer: &Value) -> String {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    match verb {
        "pods" => columns_of(&PODS, &list(answer)),
        "workloads" => columns_of(&WORKLOADS, &list(answer)),
        "connections" => columns_of(&CONNECTIONS, &list(answer)),
        "certificates" => columns_of(&CERTIFICATES, &list(answer).into_iter().map(readable).collect::<Vec<_>>()),
        "tunnels" => columns_of(&TUNNELS, &list(answer)),
        "config" => {
            let services: Vec<Value> = list(&answer["services"]).into_iter().map(short).collect();
            let facts = columns_of(&FACTS, &pairs(answer, &["services", "policies"]));
            let services = columns_of(&SERVICES, &services);
            format!("{facts}\n{services}\n{}", columns_of(&POLICIES, &list(&answer["policies"])))
        }
        "stats" => {
            let facts = columns_of(&FACTS, &pairs(answer, &["metrics"]));
            format!("{facts}\n{}", columns_of(&METRICS, &pairs(&answer["metrics"], &[])))
        }
        "log-level" => format!("{}\n", cell(&answer["log-level"])),
        _ => format!("{answer:#}\n"),
    }
}

/// The entries of an object as rows, less those that have a table of their own.
fn pairs(object: &Value, without: &[&str]) -> Vec<Value> {
    let entries = object.as_object().into_iter().flatten();
    let entries = entries.filter(|(key, _)| !without.contains(&key.as_str()));
    entries.map(|(key, value)| json!({ "key": key, "value": value })).collect()
}

/// Ports as `80→8080`, endpoints as their number: there may be hundreds.
fn short(mut service: Value) -> Value {
    let ports = service["ports"].as_array().into_iter().flatten();
    let ports: Vec<String> = ports.map(|pair| format!("{}→{}", cell(&pair[0]), cell(&pair[1]))).collect();
    let endpoints = service["endpoints"].as_array().map_or(0, Vec::len);
    service["ports"] = json!(ports);
    service["endpoints"] = json!(endpoints);
    service
}

/// Times of a certificate as a person wants them.
fn readable(mut certificate: Value) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if let Some(not_after) = certificate["not_after"].as_u64() {
        certificate["expires_in"] = match not_after.checked_sub(now) {
            Some(left) => json!(span(left)),
            None => json!("expired"),
        };
    }
    if let Some(seconds) = certificate["next_attempt_in"].as_u64() {
        certificate["next_attempt_in"] = json!(span(seconds));
    }
    certificate
}

fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(verb: &str, answer: &Value, line: usize, words: &[&str]) {
        let text = render(verb, answer);
        let got: Vec<&str> = text.lines().nth(line).unwrap_or_default().split_whitespace().collect();
        assert_eq!(got, words, "{text}");
    }

    #[test]
    fn each_answer_has_its_columns() {
        let pod = json!([{ "name": "shop/a", "identity": "spiffe://x", "addresses": ["::1", "10.0.0.1"], "connections": 2, "known_to_mesh": true, "short_way": false }]);
        check("pods", &pod, 1, &["shop/a", "spiffe://x", "::1", "10.0.0.1", "2", "yes", "no"]);
        let never = json!([{ "identity": "spiffe://x", "next_attempt_in": 125, "waiting": 1, "failures": 0 }]);
        check("certificates", &never, 1, &["spiffe://x", "-", "-", "2m05s", "1", "0", "-"]);
        let expired =
            json!([{ "identity": "spiffe://x", "serial": "ab", "not_after": 5, "waiting": 0, "failures": 3 }]);
        check("certificates", &expired, 1, &["spiffe://x", "ab", "expired", "-", "0", "3", "-"]);
        let config = json!({
            "node": "n1", "services": [{ "key": "shop/cart", "vips": ["::2"], "ports": [[80, 8080]], "endpoints": ["a", "b"] }],
            "policies": [{ "key": "shop/p", "scope": "Selector", "action": "Deny", "rules": 1, "dry_run": false, "invalid": null }],
        });
        check("config", &config, 1, &["node", "n1"]);
        check("config", &config, 4, &["shop/cart", "::2", "80→8080", "2"]);
        check("config", &config, 7, &["shop/p", "Selector", "Deny", "1", "no", "-"]);
        let stats = json!({ "places_left": 7, "metrics": { "culvert_pods": 3.0 } });
        check("stats", &stats, 1, &["places_left", "7"]);
        check("stats", &stats, 4, &["culvert_pods", "3.0"]);
        check("log-level", &json!({ "log-level": "info" }), 0, &["info"]);
    }
}
