//! Every metric of the control plane, in one place. Labels come from closed sets: resource types and [`Reason`].

use mesh_model::Reason;
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// The handles. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Where they are gathered.
    pub registry: Registry,
    /// Nodes with an open stream.
    pub nodes: IntGauge,
    /// Answers sent to nodes, by type.
    pub pushes: IntCounterVec,
    /// Answers refused by nodes, by type.
    pub nacks: IntCounterVec,
    /// Streams ended by us, by reason.
    pub streams_ended: IntCounterVec,
    /// From a change of the source to its being ready to send.
    pub compile_seconds: Histogram,
    /// Resources now, by type.
    pub resources: IntGaugeVec,
    /// Number of the configuration now served.
    pub generation: IntGauge,
    /// Documents of the source that are refused now.
    pub rejected: IntGauge,
    /// Objects of the source that cannot be carried out as written, now.
    pub problems: IntGauge,
    /// Whether the tokens could be read at the last try.
    pub tokens_good: IntGauge,
    /// Certificates signed.
    pub issued: IntCounter,
    /// Certificates refused, by reason.
    pub refused: IntCounterVec,
    /// TLS handshakes that failed or took too long.
    pub handshakes_failed: IntCounter,
}

/// Label value of a type.
pub fn type_label(type_url: &str) -> &'static str {
    match type_url {
        mesh_api::xds::ADDRESS_TYPE => "address",
        mesh_api::xds::AUTHORIZATION_TYPE => "authorization",
        _ => "other",
    }
}

impl Metrics {
    /// All of them, at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let name = |name: &str| format!("culvert_control_plane_{name}");
        let gauge = |n: &str, help: &str| add(&registry, IntGauge::new(name(n), help));
        let counter = |n: &str, help: &str| add(&registry, IntCounter::new(name(n), help));
        let by =
            |n: &str, help: &str, label: &str| add(&registry, IntCounterVec::new(Opts::new(name(n), help), &[label]));
        let metrics = Self {
            nodes: gauge("nodes_connected", "Nodes with an open configuration stream."),
            pushes: by("pushes_total", "Answers sent to nodes.", "type"),
            nacks: by("nacks_total", "Answers that a node refused.", "type"),
            streams_ended: by("streams_ended_total", "Streams ended by the control plane.", "reason"),
            compile_seconds: add(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(name("compile_seconds"), "Reading and compiling the source.")
                        .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]),
                ),
            ),
            resources: add(
                &registry,
                IntGaugeVec::new(Opts::new(name("resources"), "Resources now served."), &["type"]),
            ),
            generation: gauge("generation", "Number of the configuration now served."),
            rejected: gauge("rejected_documents", "Documents of the source that are refused now."),
            problems: gauge("problems", "Objects that cannot be carried out as written."),
            tokens_good: gauge("tokens_good", "Whether the tokens could be read at the last try."),
            issued: counter("certificates_issued_total", "Certificates signed."),
            refused: by("certificates_refused_total", "Certificate requests refused.", "reason"),
            handshakes_failed: counter("handshakes_failed_total", "TLS handshakes that failed or took too long."),
            registry: registry.clone(),
        };
        for reason in Reason::ALL {
            metrics.refused.with_label_values(&[reason.as_str()]);
        }
        for of in ["address", "authorization"] {
            metrics.pushes.with_label_values(&[of]);
            metrics.nacks.with_label_values(&[of]);
        }
        metrics
    }
}

/// Names and labels are constants of this file, each used once: neither step can fail.
fn add<C: Collector + Clone + 'static>(registry: &Registry, metric: Result<C, prometheus::Error>) -> C {
    let metric = metric.expect("a constant, well-formed name");
    registry.register(Box::new(metric.clone())).expect("a name used once");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_names_are_well_formed_and_used_once() {
        assert!(Metrics::new().registry.gather().len() >= 10);
    }
}
