//! A peer's figures, to stand beside ours: only ratios carry over to another day and machine, absolute ones are for orientation.
//!
//! Source: our own measurement of ztunnel, Istio's public node proxy, on this kind of machine: two cores, two node namespaces, a
//! veth, mTLS and access log on, two workers, 6 to 9 samples each. Its ranges are wide (bulk: 20–30 %); these are its medians.

/// What was measured, and its version.
pub const NAME: &str = "ztunnel (master of 2026-08, release build)";

/// One figure of the peer.
#[derive(Debug)]
pub struct Peer {
    /// Scenarios that it compares with begin so.
    pub scenario: &'static str,
    /// Paths begin so.
    pub path: &'static str,
    /// Metric.
    pub metric: &'static str,
    /// The figure.
    pub value: Value,
}

/// A figure that carries over, or one for orientation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// To direct TCP of the same run.
    Ratio(f64),
    /// In the unit of the metric.
    Plain(f64),
}

const fn ratio(scenario: &'static str, path: &'static str, metric: &'static str, over: f64, under: f64) -> Peer {
    Peer { scenario, path, metric, value: Value::Ratio(over / under) }
}

const fn plain(scenario: &'static str, path: &'static str, metric: &'static str, value: f64) -> Peer {
    Peer { scenario, path, metric, value: Value::Plain(value) }
}

/// All of them.
pub const PEER: &[Peer] = &[
    // Bulk, Gbit/s; down it was measured without its direct. CPU of the proxies, s/GB.
    ratio("bulk-up-1", "cross-node", "throughput", 5.27, 14.0),
    ratio("bulk-up-8", "cross-node", "throughput", 5.72, 17.3),
    ratio("bulk-up-1", "same-node", "throughput", 5.71, 16.4),
    ratio("bulk-up-8", "same-node", "throughput", 5.08, 18.7),
    plain("bulk-down-1", "cross-node", "throughput", 5.9),
    plain("bulk-down-1", "same-node", "throughput", 6.1),
    plain("bulk-up-1", "cross-node", "proxy_cpu", 1.63),
    plain("bulk-up-8", "cross-node", "proxy_cpu", 1.80),
    plain("bulk-up-1", "same-node", "proxy_cpu", 1.54),
    plain("bulk-up-8", "same-node", "proxy_cpu", 2.10),
    // Round trips of 1 KiB, 1/s and µs.
    ratio("exchange-1KiB-1", "cross-node", "rate", 6_703.0, 16_357.0),
    ratio("exchange-1KiB-1", "cross-node", "p50", 135.0, 59.0),
    ratio("exchange-1KiB-1", "cross-node", "p99", 256.0, 101.0),
    ratio("exchange-1KiB-1", "same-node", "rate", 6_296.0, 17_745.0),
    ratio("exchange-1KiB-1", "same-node", "p50", 154.0, 54.0),
    ratio("exchange-1KiB-1", "same-node", "p99", 240.0, 87.0),
    ratio("exchange-1KiB-64", "cross-node", "rate", 20_940.0, 97_463.0),
    ratio("exchange-1KiB-64", "cross-node", "p50", 2_851.0, 594.0),
    ratio("exchange-1KiB-64", "cross-node", "p99", 6_259.0, 1_344.0),
    ratio("exchange-1KiB-64", "same-node", "rate", 22_324.0, 113_654.0),
    ratio("exchange-1KiB-64", "same-node", "p50", 2_785.0, 512.0),
    ratio("exchange-1KiB-64", "same-node", "p99", 4_686.0, 1_098.0),
    // Connect, 1 KiB, 1 KiB back, close, 1/s and µs.
    ratio("connect-1", "cross-node", "rate", 1_440.0, 9_413.0),
    ratio("connect-1", "cross-node", "p50", 643.0, 79.0),
    ratio("connect-1", "cross-node", "p99", 1_098.0, 170.0),
    ratio("connect-1", "same-node", "rate", 1_735.0, 10_947.0),
    ratio("connect-1", "same-node", "p50", 518.0, 68.0),
    ratio("connect-1", "same-node", "p99", 1_057.0, 161.0),
    ratio("connect-16", "cross-node", "rate", 3_318.0, 15_279.0),
    ratio("connect-16", "cross-node", "p50", 4_522.0, 926.0),
    ratio("connect-16", "cross-node", "p99", 8_651.0, 1_876.0),
    ratio("connect-16", "same-node", "rate", 3_779.0, 18_630.0),
    ratio("connect-16", "same-node", "p50", 4_080.0, 766.0),
    ratio("connect-16", "same-node", "p99", 7_930.0, 1_573.0),
    // CPU of the proxies per operation, µs.
    plain("exchange-1KiB-1", "cross-node", "proxy_cpu", 106.0),
    plain("exchange-1KiB-64", "cross-node", "proxy_cpu", 61.0),
    plain("exchange-1KiB-1", "same-node", "proxy_cpu", 90.0),
    plain("exchange-1KiB-64", "same-node", "proxy_cpu", 53.0),
    plain("connect-1", "cross-node", "proxy_cpu", 713.0),
    plain("connect-16", "cross-node", "proxy_cpu", 380.0),
    plain("connect-1", "same-node", "proxy_cpu", 547.0),
    plain("connect-16", "same-node", "proxy_cpu", 307.0),
    // Set-ups of TLS from 8 pods, 4 at a time, over two cores: the middle of its two runs; CPU of both sides.
    plain("identities", "cross-node", "rate", 1_230.0),
    plain("identities", "cross-node", "proxy_cpu", 1_620.0),
    // The first and the last of five runs of 3 s of short connections, 16 at a time.
    plain("short-90000", "cross-node", "rate_first", 4_096.0),
    plain("short-90000", "cross-node", "rate_last", 237.0),
    // KiB of user memory. What a whole process has is not here: its figures are resident pages, ours shares of them.
    plain("idle", "cross-node", "per_connection", 6.4),
    plain("idle", "cross-node", "per_connection_server", 6.4),
    plain("idle", "same-node", "per_connection", 12.9),
    plain("idle-10000", "cross-node", "stays", 16_100.0),
    plain("idle-10000", "cross-node", "stays_server", 12_100.0),
    plain("idle-8000", "same-node", "stays", 25_100.0),
    plain("pods", "node", "per_pod", 78.5),
    plain("workloads-10000", "node", "per_workload", 2.6),
    // ms. Its policies were pushed by a server that had them ready, ours are written as files and compiled.
    plain("certificates-110", "node", "ready", 5_000.0),
    plain("policy-deny", "", "refused", 1.6),
    plain("policy-deny", "", "cut", 2.0),
    plain("policy-deny", "", "allowed", 1.3),
    plain("cut-1000", "", "cut", 46.0),
    plain("cut-5000", "", "cut", 209.0),
    plain("pod-add", "cross-node", "first_connection", 3.9),
    plain("start-ready", "node", "ready", 97.0),
];

/// The peer's figure for one of ours; the most exact scenario name wins (`connect-16` before `connect-1`).
pub fn find(scenario: &str, path: &str, metric: &str) -> Option<Value> {
    let fits = |peer: &&Peer| {
        let named = scenario == peer.scenario
            || scenario
                .strip_prefix(peer.scenario)
                .is_some_and(|rest| rest.starts_with('-') && !peer.scenario.contains('-'));
        named && path.starts_with(peer.path) && metric == peer.metric
    };
    PEER.iter().filter(fits).max_by_key(|peer| peer.scenario.len()).map(|peer| peer.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_of_sixteen_is_not_that_of_one() {
        let Some(Value::Ratio(sixteen)) = find("connect-16", "cross-node-v4-two-cores", "rate") else { panic!("none") };
        assert!((sixteen - 0.217).abs() < 0.001, "{sixteen}");
        assert_eq!(find("exchange-64B-1", "cross-node-v4-one-core", "p50"), None);
        assert_eq!(find("idle-10000", "cross-node-v4-one-core", "per_connection"), Some(Value::Plain(6.4)));
    }
}
