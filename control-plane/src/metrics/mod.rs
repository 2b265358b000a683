//! Every metric of the control plane, in one place; `docs/metrics.md` lists them. Label values are closed sets: [`labels`] and [`Reason`].
//!
//! Nodes are counted, never named: a label per node would grow with the cluster, and which node is behind is in the log.

pub mod labels;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_model::Reason;
use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use labels::{Cause, Handshake, ResourceType};

/// From a change nobody notices to a minute, after which a node that does not answer is cut off (`ads`).
const PUSH: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];
/// Reading and compiling: a few objects take a millisecond, ten thousand pods some seconds.
const COMPILE: [f64; 8] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0];
/// Signing: an ECDSA P-256 signature and the check of another are some 0.2 ms; more is waiting for a core.
const SIGN: [f64; 9] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25];

/// The handles. Clones are the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Where they are gathered.
    pub registry: Registry,
    /// Configuration streams now open.
    pub streams: IntGauge,
    /// Configuration streams that were let in.
    pub streams_opened: IntCounter,
    /// From a change of the source to its being ready to send.
    pub compile_seconds: Histogram,
    /// Documents of the source that are refused now.
    pub rejected: IntGauge,
    /// Objects of the source that cannot be carried out as written, now.
    pub problems: IntGauge,
    /// Whether the tokens could be read at the last try.
    pub tokens_good: IntGauge,
    /// Following the API server.
    pub source: mesh_kube::Metrics,
    /// Whether this control plane holds the Lease.
    pub leader: IntGauge,
    /// Certificates signed.
    pub issued: IntCounter,
    /// From a certificate request to its answer.
    pub sign_seconds: Histogram,
    pushes: IntCounterVec,
    nacks: IntCounterVec,
    push_seconds: HistogramVec,
    streams_ended: IntCounterVec,
    generation: IntGauge,
    resources: IntGaugeVec,
    refused: IntCounterVec,
    handshakes: IntCounterVec,
    root_expiry: Gauge,
    own_expiry: Gauge,
    generation_age: Gauge,
    manifests_age: Gauge,
    read: Arc<Mutex<Read>>,
}

/// When the source was read.
#[derive(Debug, Default)]
struct Read {
    last: Option<Instant>,
    changed: Option<Instant>,
}

impl Metrics {
    /// All of them, each series of a closed set at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let name = |name: &str| format!("culvert_control_plane_{name}");
        let number = |n: &str, help: &str| add(&registry, IntGauge::new(name(n), help));
        let gauge = |n: &str, help: &str| add(&registry, Gauge::new(name(n), help));
        let counter = |n: &str, help: &str| add(&registry, IntCounter::new(name(n), help));
        let by =
            |n: &str, help: &str, labels: &[&str]| add(&registry, IntCounterVec::new(Opts::new(name(n), help), labels));
        let times = |n: &str, help: &str, buckets: &[f64]| HistogramOpts::new(name(n), help).buckets(buckets.to_vec());
        let metrics = Self {
            streams: number("streams_open", "Configuration streams that nodes have open."),
            streams_opened: counter("streams_opened_total", "Configuration streams that were let in."),
            streams_ended: by(
                "streams_ended_total",
                "Configuration streams refused or ended by the control plane, by reason.",
                &["reason"],
            ),
            pushes: by("pushes_total", "Answers sent to nodes, by type of resource.", &["type"]),
            nacks: by("nacks_total", "Answers of which a node refused a part, by type of resource.", &["type"]),
            push_seconds: add(
                &registry,
                HistogramVec::new(
                    times(
                        "push_seconds",
                        "From handing an answer to a stream until the node has acknowledged or refused it, in seconds.",
                        &PUSH,
                    ),
                    &["type"],
                ),
            ),
            compile_seconds: add(
                &registry,
                Histogram::with_opts(times(
                    "compile_seconds",
                    "Reading and compiling a source that had changed, in seconds.",
                    &COMPILE,
                )),
            ),
            resources: add(
                &registry,
                IntGaugeVec::new(Opts::new(name("resources"), "Resources now served, by type."), &["type"]),
            ),
            generation: number("generation", "Number of the configuration now served; 0 before the first."),
            generation_age: gauge(
                "generation_age_seconds",
                "Time since the configuration now served was made, in seconds; 0 before the first.",
            ),
            manifests_age: gauge(
                "manifests_age_seconds",
                "Time since the source was last read, in seconds; 0 before. It is read at every change and every 30 s.",
            ),
            rejected: number("rejected_documents", "Documents of the source that are refused now."),
            problems: number("problems", "Objects of the source that cannot be carried out as written, now."),
            tokens_good: number("tokens_good", "1 if the tokens could be read at the last try."),
            source: mesh_kube::Metrics::new(&registry, "control_plane").expect("constant names, each used once"),
            leader: number(
                "leader",
                "1 if this control plane holds the Lease by which one is chosen to write statuses.",
            ),
            issued: counter("certificates_issued_total", "Certificates signed for nodes' pods."),
            refused: by(
                "certificates_refused_total",
                "Certificate requests refused, by cause and the reason it stands for.",
                &["cause", "reason"],
            ),
            sign_seconds: add(
                &registry,
                Histogram::with_opts(times(
                    "sign_seconds",
                    "Judging and signing a certificate request, in seconds.",
                    &SIGN,
                )),
            ),
            root_expiry: gauge(
                "root_expiry_timestamp_seconds",
                "When the root certificate runs out, in seconds since 1970.",
            ),
            own_expiry: gauge(
                "certificate_expiry_timestamp_seconds",
                "When the certificate that the control plane serves with runs out, in seconds since 1970.",
            ),
            handshakes: by("handshakes_total", "TLS handshakes by result.", &["result"]),
            read: Arc::default(),
            registry: registry.clone(),
        };
        metrics.zero();
        metrics
    }

    fn zero(&self) {
        for of in ResourceType::ALL.map(ResourceType::as_str) {
            self.pushes.with_label_values(&[of]);
            self.nacks.with_label_values(&[of]);
            self.push_seconds.with_label_values(&[of]);
            self.resources.with_label_values(&[of]);
        }
        Reason::ALL.iter().for_each(|reason| drop(self.streams_ended.with_label_values(&[reason.as_str()])));
        Cause::ALL.iter().for_each(|cause| drop(self.refusals(*cause)));
        Handshake::ALL.iter().for_each(|result| drop(self.handshakes.with_label_values(&[result.as_str()])));
    }

    /// An answer of this type was handed to a stream.
    pub fn pushed(&self, of: ResourceType) {
        self.pushes.with_label_values(&[of.as_str()]).inc();
    }

    /// A node has answered to what was handed over this long ago.
    pub fn answered(&self, of: ResourceType, after: Duration, refused: bool) {
        self.push_seconds.with_label_values(&[of.as_str()]).observe(after.as_secs_f64());
        if refused {
            self.nacks.with_label_values(&[of.as_str()]).inc();
        }
    }

    /// A stream was refused or ended by us.
    pub fn stream_ended(&self, reason: Reason) {
        self.streams_ended.with_label_values(&[reason.as_str()]).inc();
    }

    /// A certificate was refused.
    pub fn refused(&self, cause: Cause) {
        self.refusals(cause).inc();
    }

    /// How often one was, for this cause.
    pub fn refusals(&self, cause: Cause) -> IntCounter {
        self.refused.with_label_values(&[cause.as_str(), cause.reason().as_str()])
    }

    /// A handshake ended.
    pub fn handshake(&self, result: Handshake) {
        self.handshakes.with_label_values(&[result.as_str()]).inc();
    }

    /// The source was read, whether or not it had changed.
    pub fn source_read(&self) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).last = Some(Instant::now());
    }

    /// A configuration was published: its number, and how many resources of each type it has.
    pub fn published(&self, generation: u64, addresses: usize, policies: usize) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).changed = Some(Instant::now());
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        for (of, count) in [(ResourceType::Address, addresses), (ResourceType::Authorization, policies)] {
            self.resources.with_label_values(&[of.as_str()]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Number of the configuration now served.
    #[cfg(test)]
    pub fn generation(&self) -> i64 {
        self.generation.get()
    }

    /// When the root runs out, and the certificate we serve with.
    pub fn expiries(&self, root: SystemTime, own: SystemTime) {
        let seconds = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.root_expiry.set(seconds(root));
        self.own_expiry.set(seconds(own));
    }

    /// To be called before each scrape.
    pub fn refresh(&self) {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        for (gauge, at) in [(&self.manifests_age, read.last), (&self.generation_age, read.changed)] {
            gauge.set(at.map_or(0.0, |at| at.elapsed().as_secs_f64()));
        }
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

    fn text(metrics: &Metrics) -> String {
        metrics.refresh();
        prometheus::TextEncoder::new().encode_to_string(&metrics.registry.gather()).expect("encodes")
    }

    fn series(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect()
    }

    #[test]
    fn every_series_is_there_from_the_start_and_nothing_that_happens_adds_one() {
        let metrics = Metrics::new();
        let before = text(&metrics);
        for of in ResourceType::ALL {
            metrics.pushed(of);
            metrics.answered(of, Duration::from_millis(3), true);
        }
        Reason::ALL.iter().for_each(|reason| metrics.stream_ended(*reason));
        Cause::ALL.iter().for_each(|cause| metrics.refused(*cause));
        Handshake::ALL.iter().for_each(|result| metrics.handshake(*result));
        metrics.published(7, 200, 3);
        let after = text(&metrics);
        assert_eq!(series(&before), series(&after));
        let has = |line: &str| assert!(after.lines().any(|one| one == line), "no {line:?} in\n{after}");
        has("culvert_control_plane_pushes_total{type=\"address\"} 1");
        has("culvert_control_plane_nacks_total{type=\"authorization\"} 1");
        has("culvert_control_plane_push_seconds_bucket{type=\"address\",le=\"0.0025\"} 0");
        has("culvert_control_plane_push_seconds_bucket{type=\"address\",le=\"0.005\"} 1");
        has("culvert_control_plane_streams_ended_total{reason=\"IdleTimeout\"} 1");
        has("culvert_control_plane_certificates_refused_total{cause=\"not_on_node\",reason=\"PolicyDenied\"} 1");
        has("culvert_control_plane_handshakes_total{result=\"timeout\"} 1");
        has("culvert_control_plane_generation 7");
        has("culvert_control_plane_resources{type=\"address\"} 200");
        has("culvert_control_plane_resources{type=\"authorization\"} 3");
    }

    #[test]
    fn ages_count_from_the_last_reading_and_the_last_change() {
        let metrics = Metrics::new();
        let ages = || {
            metrics.refresh();
            (metrics.manifests_age.get(), metrics.generation_age.get())
        };
        assert_eq!(ages(), (0.0, 0.0));
        let ago =
            |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).expect("the machine ran that long");
        *metrics.read.lock().expect("no panic") = Read { last: Some(ago(5)), changed: Some(ago(50)) };
        let (read, changed) = ages();
        assert!((5.0..30.0).contains(&read) && (50.0..75.0).contains(&changed), "{read} {changed}");
        metrics.source_read();
        let (read, changed) = ages();
        assert!(read < 5.0 && changed >= 50.0, "reading alone changes nothing: {read} {changed}");
        metrics.published(2, 0, 0);
        assert!(ages().1 < 5.0);
    }

    #[test]
    fn labels_of_one_set_are_all_different() {
        let mut causes = Cause::ALL.map(Cause::as_str).to_vec();
        causes.sort_unstable();
        causes.dedup();
        assert_eq!(causes.len(), Cause::ALL.len());
    }
}
