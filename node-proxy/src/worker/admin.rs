//! What a person can ask the running worker, over its unix socket. Everything here is printed: no key, token or packet mark.

use std::sync::Arc;

use mesh_daemon::admin::{Answering, Handler, Request};
use mesh_model::{Health, Mesh, NetworkPolicy, Tunnel};
use prometheus::proto::MetricType;
use serde_json::{Value, json};

use super::access_log::timestamp;
use super::connection::Connection;
use super::pods::Pod;
use super::threads::{Proxy, Threads};
use super::xds::Origin;

/// The verbs, for the answer to an unknown one.
const VERBS: &str = "config, pods, workloads, connections, certificates, tunnels, stats, log-level [FILTER]";

/// Answers requests.
pub fn handler(proxy: Arc<Proxy>, threads: Threads) -> Handler {
    Arc::new(move |request: Request| -> Answering {
        let (proxy, threads) = (proxy.clone(), threads.clone());
        Box::pin(async move {
            match (request.verb.as_str(), request.args.as_slice()) {
                ("config", []) => Ok(config(&proxy)),
                ("pods", []) => Ok(proxy.pods.table().pods().map(|pod| self::pod(pod, &proxy.mesh())).collect()),
                ("workloads", []) => Ok(workloads(&proxy.mesh())),
                ("connections", []) => Ok(connections(&proxy)),
                ("certificates", []) => json(proxy.certificates.state()),
                ("tunnels", []) => json(threads.tunnels().await),
                ("stats", []) => Ok(stats(&proxy, &threads)),
                ("log-level", []) => {
                    let filter = mesh_daemon::logs::level().map_err(|error| error.to_string())?;
                    Ok(json!({ "log-level": filter }))
                }
                ("log-level", [filter]) => {
                    mesh_daemon::logs::set_level(filter).map_err(|error| error.to_string())?;
                    Ok(json!({ "log-level": filter }))
                }
                (verb, args) => Err(format!("no verb {verb:?} with {} arguments; there are: {VERBS}", args.len())),
            }
        })
    })
}

fn json(value: impl serde::Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

fn config(proxy: &Proxy) -> Value {
    let published = proxy.published.borrow().clone();
    let mesh = &published.mesh;
    let settings = &proxy.settings;
    let origin = match published.origin {
        Origin::Nothing => json!("nothing"),
        Origin::Live => json!("live"),
        Origin::LastGood { written_at } => json!({ "last_good_written_at": timestamp(written_at) }),
    };
    json!({
        "node": settings.node,
        "cluster": settings.cluster,
        "trust_domain": settings.trust.own().as_str(),
        "cluster_ranges": settings.ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "threads": settings.threads,
        "drain_seconds": settings.drain.as_secs(),
        "opt_out_seconds": settings.opt_out.as_secs(),
        "generation": published.generation,
        "origin": origin,
        "services": mesh.services().map(|service| json!({
            "key": service.key.to_string(),
            "vips": service.vips,
            "ports": service.ports.iter().map(|port| json!([port.service_port, port.target_port])).collect::<Vec<_>>(),
            "endpoints": mesh.endpoints(&service.key).iter().map(|w| w.uid.to_string()).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "policies": mesh.policies().map(|policy| json!({
            "key": policy.key.to_string(),
            "scope": format!("{:?}", policy.scope),
            "action": format!("{:?}", policy.action),
            "rules": policy.rules.len(),
            "dry_run": policy.dry_run,
            "invalid": policy.invalid,
        })).collect::<Vec<_>>(),
    })
}

fn pod(pod: &Arc<Pod>, mesh: &Mesh) -> Value {
    let facts = pod.facts();
    json!({
        "slot": pod.slot(),
        "uid": pod.uid().as_str(),
        "name": pod.name().to_string(),
        "identity": pod.identity().to_string(),
        "addresses": facts.addresses,
        "probe_ports": facts.probe_ports,
        "connections": pod.live().len(),
        "known_to_mesh": pod.workload(mesh).is_some(),
        "short_way": pod.is_unselected(mesh),
    })
}

fn workloads(mesh: &Mesh) -> Value {
    mesh.workloads()
        .map(|workload| {
            json!({
                "uid": workload.uid.to_string(),
                "pod": workload.pod.to_string(),
                "service_account": workload.service_account,
                "addresses": workload.addresses,
                "node": workload.node,
                "tunnel": workload.tunnel == Tunnel::Hbone,
                "healthy": workload.health == Health::Healthy,
                "network_policy": workload.network_policy == NetworkPolicy::Selected,
                "policies": workload.policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "services": workload.services.keys().map(ToString::to_string).collect::<Vec<_>>(),
            })
        })
        .collect()
}

fn connections(proxy: &Proxy) -> Value {
    let table = proxy.pods.table();
    let of_pod = |pod: &Arc<Pod>| {
        let name = pod.name().to_string();
        pod.live().connections().into_iter().map(move |open| connection(&name, &open)).collect::<Vec<_>>()
    };
    table.pods().flat_map(of_pod).collect()
}

fn connection(pod: &str, open: &Connection) -> Value {
    let (sent, received) = open.bytes();
    json!({
        "pod": pod,
        "id": open.id.to_string(),
        "direction": open.direction.as_str(),
        "client": open.client.to_string(),
        "destination": open.destination.map(|destination| destination.to_string()),
        "started": timestamp(open.started),
        "sent": sent,
        "received": received,
        "source": open.permit().and_then(|permit| permit.facts().source.as_ref()).map(ToString::to_string),
        "policy": open.permit().and_then(|permit| permit.policy()).map(ToString::to_string),
    })
}

fn stats(proxy: &Proxy, threads: &Threads) -> Value {
    let mut series = serde_json::Map::new();
    for family in proxy.sinks.metrics.registry().gather() {
        for metric in family.get_metric() {
            let labels: Vec<_> =
                metric.get_label().iter().map(|pair| format!("{}={:?}", pair.name(), pair.value())).collect();
            let name = if labels.is_empty() {
                family.name().to_owned()
            } else {
                format!("{}{{{}}}", family.name(), labels.join(","))
            };
            let value = match family.get_field_type() {
                MetricType::COUNTER => metric.get_counter().get_value(),
                MetricType::GAUGE => metric.get_gauge().get_value(),
                // There are no others here.
                _ => continue,
            };
            // Zeros by the hundred (every reason in every direction) hide what happened.
            if value != 0.0 {
                series.insert(name, json!(value));
            }
        }
    }
    json!({
        "connections_per_thread": threads.loads(),
        "places_left": proxy.budget.available_permits(),
        "metrics": series,
    })
}
