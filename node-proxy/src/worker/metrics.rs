//! Every metric of the worker, in one place. Names are Istio's where Istio has one, so that existing dashboards work.
//!
//! Label values come from closed enums or from objects the control plane named, never from bytes of a connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_model::{Identity, Reason, ServiceKey};
use prometheus::{
    IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, core::Collector, core::GenericCounter,
};

use super::connection::Direction;

/// Labels of the connection metrics, as Istio spells them (those whose value we know).
const LABELS: [&str; 9] = [
    "reporter",
    "source_principal",
    "source_workload_namespace",
    "destination_principal",
    "destination_workload_namespace",
    "destination_service",
    "destination_service_namespace",
    "request_protocol",
    "connection_security_policy",
];

/// At which end of the connection it was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// At the caller's end.
    Source,
    /// At the called end.
    Destination,
}

/// How the identities of a connection were proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// By certificates of both ends.
    MutualTls,
    /// Both ends are pods of this node; nothing left it.
    SameNode,
    /// Not at all: plaintext.
    Plain,
}

impl Security {
    /// The spelling in metrics and logs. Istio knows two values; bytes that never leave the node count as neither clear nor
    /// unknown, so they have their own.
    pub const fn as_str(self) -> &'static str {
        match self {
            Security::MutualTls => "mutual_tls",
            Security::SameNode => "same_node",
            Security::Plain => "unknown",
        }
    }
}

/// What the series of a connection are found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    /// Which end counts.
    pub reporter: Reporter,
    /// Proven identity of the caller.
    pub source: Option<Identity>,
    /// Identity of the called workload.
    pub destination: Option<Identity>,
    /// The service that was called.
    pub service: Option<ServiceKey>,
    /// How the identities were proven.
    pub security: Security,
}

/// The counters of one set of labels, looked up once per connection.
#[derive(Debug)]
pub struct Series {
    /// Connections opened.
    pub opened: IntCounter,
    /// Connections ended.
    pub closed: IntCounter,
    /// Bytes to the destination.
    pub sent: IntCounter,
    /// Bytes to the client.
    pub received: IntCounter,
}

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    opened: IntCounterVec,
    closed: IntCounterVec,
    sent: IntCounterVec,
    received: IntCounterVec,
    series: Mutex<HashMap<Labels, Arc<Series>>>,
    refused: IntCounterVec,
    ended: IntCounterVec,
    open: IntGaugeVec,
    /// Pods with listeners here.
    pub pods: IntGauge,
    /// Accepts that failed for want of descriptors or memory.
    pub accept_errors: IntCounter,
    /// Access log lines written whole.
    pub lines_written: IntCounter,
    /// Access log lines left out or lost, by cause (`access_log::Cause`).
    pub lines_dropped: IntCounterVec,
    /// Sockets the keeper made for us.
    pub minted: IntCounter,
    /// Mint requests that came back short or not at all.
    pub mint_failed: IntCounter,
    /// Minted sockets waiting for a use.
    pub mint_stock: IntGauge,
    /// Connections judged again after a change.
    pub judged_again: IntCounter,
    /// Probes of the kubelet, passed unjudged.
    pub probes: IntCounter,
    /// Generation of the configuration that is in force.
    pub config_generation: IntGauge,
    /// Attempts at certificates.
    pub certificate_attempts: IntGauge,
    /// Attempts at certificates that failed.
    pub certificate_failures: IntGauge,
    /// Age of the configuration in seconds while it comes from the last good file; 0 when live.
    pub config_age: IntGauge,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let traffic = |name: &str, help: &str| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), &LABELS).expect("constant names"))
        };
        let counter =
            |name: &str, help: &str| registered(&registry, GenericCounter::new(name, help).expect("constant names"));
        let gauge = |name: &str, help: &str| registered(&registry, IntGauge::new(name, help).expect("constant names"));
        let by = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels).expect("constant names"))
        };
        let refused =
            by("culvert_connections_refused_total", "Connections refused, by reason.", &["direction", "reason"]);
        let ended = by(
            "culvert_connections_ended_total",
            "Connections that moved bytes and were ended by something else than their two ends' end of data.",
            &["direction", "reason"],
        );
        for direction in Direction::ALL {
            for reason in Reason::ALL {
                refused.with_label_values(&[direction.as_str(), reason.as_str()]);
            }
        }
        Self {
            opened: traffic("istio_tcp_connections_opened_total", "Connections opened."),
            closed: traffic("istio_tcp_connections_closed_total", "Connections closed."),
            sent: traffic("istio_tcp_sent_bytes_total", "Bytes from clients to destinations."),
            received: traffic("istio_tcp_received_bytes_total", "Bytes from destinations to clients."),
            series: Mutex::default(),
            open: registered(
                &registry,
                IntGaugeVec::new(Opts::new("culvert_connections_open", "Connections now open."), &["direction"])
                    .expect("constant names"),
            ),
            pods: gauge("culvert_pods", "Pods with listeners here."),
            accept_errors: counter("culvert_accept_errors_total", "Accepts that failed for want of descriptors."),
            lines_written: counter("culvert_access_log_written_total", "Access log lines written."),
            lines_dropped: by("culvert_access_log_dropped_total", "Access log lines left out or lost.", &["cause"]),
            minted: counter("culvert_sockets_minted_total", "Sockets the keeper made in pods."),
            mint_failed: counter("culvert_mint_failed_total", "Mint requests that came back short."),
            mint_stock: gauge("culvert_mint_stock", "Minted sockets waiting for a use."),
            judged_again: counter("culvert_judged_again_total", "Connections judged again after a change."),
            probes: counter("culvert_probes_total", "Kubelet probes passed unjudged."),
            config_generation: gauge("culvert_config_generation", "Generation of the configuration in force."),
            certificate_attempts: gauge("culvert_certificate_attempts", "Attempts at certificates so far."),
            certificate_failures: gauge("culvert_certificate_failures", "Attempts at certificates that failed."),
            config_age: gauge("culvert_config_age_seconds", "Age of a last good configuration; 0 when live."),
            refused,
            ended,
            registry,
        }
    }

    /// For the endpoint.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The counters of these labels.
    pub fn series(&self, labels: &Labels) -> Arc<Series> {
        let mut known = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = known.get(labels) {
            return series.clone();
        }
        let principal = |id: &Option<Identity>| id.as_ref().map_or_else(unknown, Identity::to_string);
        let namespace = |id: &Option<Identity>| id.as_ref().map_or_else(unknown, |id| id.namespace().to_owned());
        let values = [
            match labels.reporter {
                Reporter::Source => "source".to_owned(),
                Reporter::Destination => "destination".to_owned(),
            },
            principal(&labels.source),
            namespace(&labels.source),
            principal(&labels.destination),
            namespace(&labels.destination),
            labels.service.as_ref().map_or_else(unknown, |key| key.hostname.clone()),
            labels.service.as_ref().map_or_else(unknown, |key| key.namespace.clone()),
            "tcp".to_owned(),
            labels.security.as_str().to_owned(),
        ];
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let series = Arc::new(Series {
            opened: self.opened.with_label_values(&values),
            closed: self.closed.with_label_values(&values),
            sent: self.sent.with_label_values(&values),
            received: self.received.with_label_values(&values),
        });
        known.insert(labels.clone(), series.clone());
        series
    }

    /// A connection was refused.
    pub fn refused(&self, direction: Direction, reason: Reason) {
        self.refused.with_label_values(&[direction.as_str(), reason.as_str()]).inc();
    }

    /// A connection was ended early.
    pub fn ended(&self, direction: Direction, reason: Reason) {
        self.ended.with_label_values(&[direction.as_str(), reason.as_str()]).inc();
    }

    /// How many connections are open.
    pub fn open(&self, direction: Direction) -> IntGauge {
        self.open.with_label_values(&[direction.as_str()])
    }

    /// How often a connection of this direction was refused for this reason.
    #[cfg(test)]
    pub fn refusals(&self, direction: Direction, reason: Reason) -> u64 {
        self.refused.with_label_values(&[direction.as_str(), reason.as_str()]).get()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("each name is registered once, here");
    collector
}

/// Istio's word for what is not known.
fn unknown() -> String {
    "unknown".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_exists_at_zero_and_counts() {
        let metrics = Metrics::new();
        metrics.refused(Direction::Outbound, Reason::UnknownDestination);
        assert_eq!(metrics.refusals(Direction::Outbound, Reason::UnknownDestination), 1);
        let families = metrics.registry().gather();
        let refused = families.iter().find(|f| f.name() == "culvert_connections_refused_total").expect("family");
        assert_eq!(refused.get_metric().len(), Direction::ALL.len() * Reason::ALL.len());
    }

    #[test]
    fn the_same_labels_are_the_same_series() {
        let metrics = Metrics::new();
        let labels = Labels {
            reporter: Reporter::Source,
            source: Identity::parse("spiffe://cluster.local/ns/a/sa/b").ok(),
            destination: None,
            service: None,
            security: Security::Plain,
        };
        metrics.series(&labels).opened.inc();
        assert_eq!(metrics.series(&labels).opened.get(), 1);
    }
}
