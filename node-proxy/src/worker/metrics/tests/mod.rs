//! The metrics as a whole: sums that never go down, label sets that stay within their budget, names that a linter likes.

mod cardinality;
mod random;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::{Identity, PodName, Reason, Telemetry, Workload};

use super::*;
use crate::worker::connection::Direction;
use crate::worker::testing::workload;

/// The record of a pod that a Deployment of this name made, on node-1 in zone a.
fn record(name: &str) -> Arc<Workload> {
    let names = Telemetry {
        workload_name: name.into(),
        canonical_name: name.into(),
        canonical_revision: "v1".into(),
        region: "r".into(),
        zone: "a".into(),
        subzone: String::new(),
    };
    Arc::new(Workload { telemetry: names.into(), ..workload(name, "node-1", "198.18.1.2") })
}

fn end(name: &str) -> End {
    End {
        workload: Some(record(name)),
        identity: Identity::parse(&format!("spiffe://cluster.local/ns/shop/sa/{name}")).ok(),
    }
}

fn far(name: &str) -> Far {
    Far { reporter: Reporter::Source, end: end(name), service: None, security: Security::MutualTls, flags: Flags::None }
}

fn pod(metrics: &Metrics, slot: u32, name: &str) -> Arc<Meter> {
    metrics.pod(slot, &PodName { namespace: "shop".into(), name: name.into() })
}

fn with_budget(series_per_pod: usize) -> Metrics {
    Metrics::new(MetricsConfig { series_per_pod, ..Metrics::config_for_test() })
}

/// Every series as it would be scraped: name and labels, value. Fails on one that is there twice.
fn scraped(metrics: &Metrics) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for family in metrics.registry().gather() {
        for metric in family.get_metric() {
            let labels: Vec<_> =
                metric.get_label().iter().map(|pair| format!("{}={:?}", pair.name(), pair.value())).collect();
            let key = format!("{}{{{}}}", family.name(), labels.join(","));
            let value = match family.get_field_type() {
                prometheus::proto::MetricType::COUNTER => metric.get_counter().get_value(),
                prometheus::proto::MetricType::GAUGE => metric.get_gauge().get_value(),
                _ => metric.get_histogram().get_sample_count() as f64,
            };
            assert!(all.insert(key.clone(), value).is_none(), "twice: {key}");
        }
    }
    all
}

fn sum(all: &BTreeMap<String, f64>, name: &str, label: &str) -> f64 {
    let of = |key: &String| key.starts_with(&format!("{name}{{")) && key.contains(label);
    all.iter().filter(|(key, _)| of(key)).map(|(_, value)| value).sum()
}

#[test]
fn every_reason_exists_at_zero_and_counts() {
    let metrics = Metrics::for_test();
    metrics.events().refused(Direction::Outbound, Reason::UnknownDestination);
    assert_eq!(metrics.events().refusals(Direction::Outbound, Reason::UnknownDestination), 1);
    let all = scraped(&metrics);
    let refused = all.keys().filter(|key| key.starts_with("culvert_connections_refused_total")).count();
    assert_eq!(refused, Direction::ALL.len() * Reason::ALL.len());
    assert_eq!(sum(&all, "culvert_connections_refused_total", ""), 1.0);
}

#[test]
fn a_connection_is_told_by_both_ends_names_as_istio_spells_them() {
    let metrics = Metrics::for_test();
    let meter = pod(&metrics, 1, "web-1");
    let service = mesh_model::ServiceKey { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() };
    let tap =
        metrics.opened(&meter, end("web"), Far { service: Some(service), ..far("cart") }, Scope::SameZone).expect("on");
    tap.to_destination(5);
    tap.to_client(7);
    metrics.closed(&tap, Some(Reason::Reset));
    let all = scraped(&metrics);
    let labels = |flags: &str| {
        let side = |side: &str, name: &str| {
            format!(
                "{side}_workload={name:?},{side}_canonical_service={name:?},{side}_canonical_revision=\"v1\",\
                 {side}_workload_namespace=\"shop\",{side}_principal=\"spiffe://cluster.local/ns/shop/sa/{name}\",\
                 {side}_app={name:?},{side}_version=\"v1\",{side}_cluster=\"Kubernetes\",{side}_region=\"r\",{side}_zone=\"a\""
            )
        };
        format!(
            "{{reporter=\"source\",{},{},destination_service=\"cart.shop.svc.cluster.local\",destination_service_name=\"cart\",\
             destination_service_namespace=\"shop\",request_protocol=\"tcp\",response_flags={flags:?},\
             connection_security_policy=\"mutual_tls\"}}",
            side("source", "web"),
            side("destination", "cart")
        )
    };
    let value = |name: &str, flags: &str| all.get(&format!("istio_tcp_{name}_total{}", labels(flags))).copied();
    assert_eq!(value("connections_opened", "-"), Some(1.0), "{all:#?}");
    assert_eq!(value("received_bytes", "-"), Some(5.0), "what the server received");
    assert_eq!(value("sent_bytes", "-"), Some(7.0), "what the server sent");
    assert_eq!(value("connections_closed", "-"), Some(0.0));
    assert_eq!(value("connections_closed", "RESET"), Some(1.0));
    assert_eq!(value("connections_opened", "RESET"), None);
    let bytes = |direction| {
        all[&format!(
            "culvert_pod_bytes_total{{namespace=\"shop\",pod=\"web-1\",scope=\"same_zone\",direction={direction:?}}}"
        )]
    };
    assert_eq!((bytes("sent"), bytes("received")), (5.0, 7.0), "as the pod sees it");
}

#[test]
fn what_does_not_fit_the_budget_counts_as_other_and_is_counted() {
    let metrics = with_budget(2);
    let meter = pod(&metrics, 1, "web-1");
    for name in ["a", "b", "c", "d", "a"] {
        let tap = metrics.opened(&meter, end("web"), far(name), Scope::SameNode).expect("on");
        metrics.closed(&tap, None);
    }
    metrics.failed(&meter, &end("web"), far("e"));
    let all = scraped(&metrics);
    let opened = "istio_tcp_connections_opened_total";
    assert_eq!(sum(&all, opened, "destination_workload=\"a\""), 2.0);
    assert_eq!(sum(&all, opened, "destination_workload=\"other\""), 2.0);
    assert_eq!(sum(&all, opened, "destination_workload=\"c\""), 0.0);
    assert_eq!(sum(&all, "istio_tcp_connections_failed_total", "destination_workload=\"other\""), 1.0);
    assert_eq!(sum(&all, "culvert_series_folded_total", "budget"), 3.0);
    assert_eq!(sum(&all, opened, "source_workload=\"web\""), 5.0);
}

#[test]
fn series_of_a_pod_that_is_gone_leave_after_a_scrape_has_seen_them_and_two_pods_of_one_workload_share_them() {
    let metrics = Metrics::for_test();
    let (one, two) = (pod(&metrics, 1, "web-1"), pod(&metrics, 2, "web-2"));
    for meter in [&one, &two] {
        let tap = metrics.opened(meter, end("web"), far("cart"), Scope::SameNode).expect("on");
        metrics.closed(&tap, None);
        meter.worked(Duration::from_millis(1));
    }
    let opened = || sum(&scraped(&metrics), "istio_tcp_connections_opened_total", "source_workload=\"web\"");
    let of_pods = || scraped(&metrics).keys().filter(|key| key.starts_with("culvert_pod_work")).count();
    let begin = Instant::now();
    let at = |seconds| metrics.sweep(begin + Duration::from_secs(seconds));
    let gone = |meter: Arc<Meter>| metrics.gone(&meter);
    gone(one);
    at(0);
    metrics.scraped();
    at(100);
    assert_eq!((opened(), of_pods()), (2.0, 1), "the other pod is still there");
    gone(two);
    at(101);
    at(162);
    assert_eq!((opened(), of_pods()), (2.0, 1), "nobody has scraped");
    metrics.scraped();
    at(163);
    assert_eq!((opened(), of_pods()), (0.0, 0));
    // And without any scrape, in ten minutes.
    let three = pod(&metrics, 3, "web-3");
    metrics.opened(&three, end("web"), far("cart"), Scope::SameNode);
    three.worked(Duration::from_millis(1));
    gone(three);
    at(200);
    at(799);
    assert_eq!((opened(), of_pods()), (1.0, 1));
    at(800);
    assert_eq!((opened(), of_pods()), (0.0, 0));
}

#[test]
fn a_pod_that_is_gone_and_never_had_a_connection_leaves_at_once() {
    let metrics = Metrics::for_test();
    let of_pods = || scraped(&metrics).keys().filter(|key| key.starts_with("culvert_pod_work")).count();
    let (idle, busy) = (pod(&metrics, 1, "idle-1"), pod(&metrics, 2, "busy-1"));
    busy.bytes(Scope::Outside, true, 1);
    [idle, busy].into_iter().for_each(|meter| metrics.gone(&meter));
    assert_eq!(of_pods(), 2);
    metrics.sweep(Instant::now());
    assert_eq!(of_pods(), 1);
}

#[test]
fn without_connection_metrics_refusals_and_what_is_open_are_still_counted() {
    let metrics = Metrics::new(MetricsConfig { connections: false, ..Metrics::config_for_test() });
    let meter = pod(&metrics, 1, "web-1");
    assert!(metrics.opened(&meter, end("web"), far("cart"), Scope::SameNode).is_none());
    metrics.failed(&meter, &end("web"), far("cart"));
    metrics.events().begun(Direction::Tunnel);
    metrics.events().refused(Direction::Outbound, Reason::PolicyDenied);
    let all = scraped(&metrics);
    assert_eq!(sum(&all, "culvert_connections_refused_total", "PolicyDenied"), 1.0);
    assert_eq!(sum(&all, "culvert_connections_open", "inbound-tunnel"), 1.0);
    let metered = |key: &&String| {
        ["istio_tcp", "culvert_pod_", "culvert_connection_first_byte", "culvert_series"]
            .iter()
            .any(|name| key.starts_with(name))
    };
    assert_eq!(all.keys().filter(metered).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn a_scope_is_told_from_records_and_unknown_zones_make_none_up() {
    let at = |node: &str, zone: &str| {
        let names = Telemetry { zone: zone.into(), ..Telemetry::default() };
        Workload { telemetry: names.into(), ..workload("x", node, "198.18.1.2") }
    };
    let own = at("node-1", "a");
    let scope = |far: Option<&Workload>| Scope::between("node-1", Some(&own), far);
    assert_eq!(scope(Some(&at("node-1", "a"))), Scope::SameNode);
    assert_eq!(scope(Some(&at("node-2", "a"))), Scope::SameZone);
    assert_eq!(scope(Some(&at("node-2", "b"))), Scope::CrossZone);
    assert_eq!(scope(Some(&at("node-2", ""))), Scope::OtherNode);
    assert_eq!(scope(None), Scope::Outside);
    let plain = Workload { tunnel: mesh_model::Tunnel::Clear, ..at("node-2", "a") };
    assert_eq!(scope(Some(&plain)), Scope::Outside);
    assert_eq!(Scope::between("node-1", None, Some(&at("node-2", "a"))), Scope::OtherNode);
}

#[test]
fn a_certificates_expiry_is_shown_as_long_as_its_identity_is_there() {
    let metrics = Metrics::for_test();
    let now = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    metrics.plain.expiries(now, [("b".to_owned(), 1_600), ("a".to_owned(), 1_500)].into_iter());
    let soonest = || scraped(&metrics).get("culvert_certificate_soonest_expiry_seconds{}").copied();
    let shown = || sum(&scraped(&metrics), "culvert_certificate_expiry_timestamp_seconds", "");
    assert_eq!((soonest(), shown()), (Some(500.0), 3_100.0));
    metrics.plain.expiries(now, [("b".to_owned(), 1_600)].into_iter());
    assert_eq!((soonest(), shown()), (Some(600.0), 1_600.0));
    metrics.plain.expiries(now, std::iter::empty());
    assert_eq!((soonest(), shown()), (None, 0.0));
    metrics.plain.certificates(3, 1);
    metrics.plain.certificates(2, 1);
    assert_eq!(sum(&scraped(&metrics), "culvert_certificate_attempts_total", ""), 3.0, "a counter never goes back");
}

#[tokio::test]
async fn a_task_counts_its_time_and_its_size_for_its_pod() {
    let metrics = Metrics::for_test();
    let meter = pod(&metrics, 1, "web-1");
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let busy = async move {
        let until = Instant::now() + Duration::from_millis(20);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let _ = gone.await;
    };
    let mut work = Box::pin(Work::new(meter.clone(), Box::pin(busy)));
    assert!(futures_util::poll!(&mut work).is_pending());
    let of = |name: &str| sum(&scraped(&metrics), name, "web-1");
    assert!(of("culvert_pod_memory_bytes") > 500.0, "{}", of("culvert_pod_memory_bytes"));
    go.send(()).expect("it waits");
    work.await;
    assert!(of("culvert_pod_work_seconds_total") >= 0.02);
    assert_eq!(of("culvert_pod_memory_bytes"), 0.0);
}
