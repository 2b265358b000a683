//! A million attempts at a new label value: the series stay within their budget, and no count is lost.

use mesh_model::ServiceKey;

use super::*;

const ATTEMPTS: u64 = 1_000_000;

/// A far end that nobody has seen before: a peer of another identity, a host of another name.
fn stranger(n: u64) -> Far {
    Far {
        reporter: Reporter::ALL[(n % 2) as usize],
        end: End {
            workload: None,
            identity: Identity::parse(&format!("spiffe://cluster.local/ns/shop/sa/peer-{n}")).ok(),
        },
        service: Some(ServiceKey { namespace: "shop".into(), hostname: format!("host-{n}.example") }),
        security: Security::MutualTls,
        flags: Flags::None,
    }
}

#[test]
fn a_million_distinct_peers_and_hostnames_add_no_series_beyond_the_budget_and_lose_no_count() {
    let metrics = Metrics::for_test();
    let meter = pod(&metrics, 1, "web-1");
    let attempt = |n: u64| {
        if n.is_multiple_of(4) {
            return metrics.failed(&meter, &end("web"), Far { flags: Flags::Deny, ..stranger(n) });
        }
        let tap = metrics.opened(&meter, end("web"), stranger(n), Scope::Outside).expect("on");
        tap.to_destination(3);
        tap.to_client(5);
        metrics.closed(&tap, n.is_multiple_of(3).then_some(Reason::Reset));
    };
    // Enough to fill the budget and to have used `other` for all there is.
    let warm = 10 * SERIES_PER_POD as u64;
    (0..warm).for_each(attempt);
    let before: Vec<String> = scraped(&metrics).into_keys().collect();
    let begun = Instant::now();
    (warm..ATTEMPTS).for_each(attempt);
    let took = begun.elapsed();
    let all = scraped(&metrics);
    assert_eq!(all.keys().cloned().collect::<Vec<_>>(), before, "not one series came");
    assert_eq!(all["culvert_series_label_sets{}"], SERIES_PER_POD as f64);
    // Opened, closed, failed, sent and received of each set and of `other` at both ends.
    let traffic = all.keys().filter(|key| key.starts_with("istio_tcp")).count();
    assert!(traffic <= 5 * (SERIES_PER_POD + 2), "{traffic} series");

    let (failed, opened) = (ATTEMPTS / 4, ATTEMPTS - ATTEMPTS / 4);
    let total = |name: &str| sum(&all, &format!("istio_tcp_{name}_total"), "") as u64;
    assert_eq!(total("connections_failed"), failed);
    assert_eq!((total("connections_opened"), total("connections_closed")), (opened, opened));
    assert_eq!((total("received_bytes"), total("sent_bytes")), (3 * opened, 5 * opened));
    let of_pod = |direction: &str| sum(&all, "culvert_pod_bytes_total", direction) as u64;
    assert_eq!(of_pod("sent") + of_pod("received"), 8 * opened);
    eprintln!(
        "{ATTEMPTS} attempts at new label values: {traffic} traffic series, {} folded, {:.0} ns each",
        all["culvert_series_folded_total{cause=\"budget\"}"],
        took.as_nanos() as f64 / (ATTEMPTS - warm) as f64,
    );
}
