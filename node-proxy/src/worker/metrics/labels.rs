//! The labels of the traffic series, as Istio and ztunnel spell them. Every value comes from a record of the control plane, a proven
//! identity or a closed enum; none from bytes of a connection.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use mesh_model::{Identity, ServiceKey, Workload};
use prometheus::proto::LabelPair;

use super::family::pair;
use super::flags::Flags;

/// Istio's word for what is not known.
const UNKNOWN: &str = "unknown";
/// The far end of what was folded.
pub const OTHER: &str = "other";

/// At which end of the connection it was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// At the caller's end.
    Source,
    /// At the called end.
    Destination,
}

impl Reporter {
    /// Both.
    pub const ALL: [Reporter; 2] = [Reporter::Source, Reporter::Destination];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        }
    }
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
            Security::Plain => UNKNOWN,
        }
    }
}

/// One end of a connection, as far as it is known. Two ends are the same when their labels are: all pods of a Deployment.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// Its record.
    pub workload: Option<Arc<Workload>>,
    /// Who it is.
    pub identity: Option<Identity>,
}

impl End {
    fn same_workload(&self, other: &Self) -> bool {
        match (&self.workload, &other.workload) {
            (Some(one), Some(two)) => {
                Arc::ptr_eq(one, two)
                    || (one.telemetry == two.telemetry
                        && one.pod.namespace == two.pod.namespace
                        && one.uid.cluster() == two.uid.cluster())
            }
            (None, None) => true,
            _ => false,
        }
    }
}

impl PartialEq for End {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity && self.same_workload(other)
    }
}

impl Eq for End {}

impl Hash for End {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity.hash(state);
        // What is left out is almost always told by what is there.
        if let Some(workload) = &self.workload {
            workload.telemetry.workload_name.hash(state);
            workload.telemetry.canonical_revision.hash(state);
            workload.pod.namespace.hash(state);
        }
    }
}

/// What tells the series of one pod apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Far {
    /// Which end counts, and so which side the pod itself is.
    pub reporter: Reporter,
    /// The other end.
    pub end: End,
    /// The service that was called.
    pub service: Option<ServiceKey>,
    /// How the identities were proven.
    pub security: Security,
    /// Why it failed or was ended.
    pub flags: Flags,
}

/// The labels of a series of `own`, towards `far`.
pub fn labels(own: &End, far: &Far) -> Vec<LabelPair> {
    let Far { reporter, end, service, security, flags } = far;
    let mut out = Vec::with_capacity(27);
    out.push(pair("reporter", reporter.as_str()));
    let (source, destination) = match reporter {
        Reporter::Source => (own, end),
        Reporter::Destination => (end, own),
    };
    side(&SOURCE, source, &mut out);
    side(&DESTINATION, destination, &mut out);
    let (hostname, name, namespace) = match service {
        Some(key) => (key.hostname.as_str(), short(key), key.namespace.as_str()),
        None => (UNKNOWN, UNKNOWN, UNKNOWN),
    };
    called(&mut out, hostname, name, namespace);
    last(&mut out, flags.as_str(), security.as_str());
    out
}

/// The labels of what `own` has folded at this end.
pub fn other(own: &End, reporter: Reporter) -> Vec<LabelPair> {
    let mut out = Vec::with_capacity(27);
    out.push(pair("reporter", reporter.as_str()));
    let (own_names, far_names) = match reporter {
        Reporter::Source => (&SOURCE, &DESTINATION),
        Reporter::Destination => (&DESTINATION, &SOURCE),
    };
    side(own_names, own, &mut out);
    out.extend(far_names[..8].iter().map(|name| pair(name, OTHER)));
    called(&mut out, OTHER, OTHER, OTHER);
    last(&mut out, OTHER, OTHER);
    out
}

/// Names of one side's labels; the last two are left out where they are not known.
type Names = [&'static str; 10];

const SOURCE: Names = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_region",
    "source_zone",
];

const DESTINATION: Names = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_region",
    "destination_zone",
];

fn side(names: &Names, end: &End, out: &mut Vec<LabelPair>) {
    let identity = end.identity.as_ref();
    let workload = end.workload.as_deref();
    let telemetry = workload.map(|workload| &*workload.telemetry);
    let known = |text: Option<&str>| text.filter(|text| !text.is_empty()).unwrap_or(UNKNOWN).to_owned();
    let canonical = known(telemetry.map(|names| names.canonical_name.as_str()));
    let revision = known(telemetry.map(|names| names.canonical_revision.as_str()));
    let namespace = workload.map(|workload| workload.pod.namespace.as_str()).or(identity.map(Identity::namespace));
    let values = [
        known(telemetry.map(|names| names.workload_name.as_str())),
        canonical.clone(),
        revision.clone(),
        known(namespace),
        identity.map_or_else(|| UNKNOWN.to_owned(), Identity::to_string),
        // ztunnel fills app and version from the canonical names too.
        canonical,
        revision,
        known(workload.and_then(|workload| workload.uid.cluster())),
    ];
    out.extend(names.iter().zip(&values).map(|(name, value)| pair(name, value)));
    let place = telemetry.map(|names| [names.region.as_str(), names.zone.as_str()]).unwrap_or_default();
    out.extend(
        names[8..].iter().zip(place).filter(|(_, value)| !value.is_empty()).map(|(name, value)| pair(name, value)),
    );
}

fn called(out: &mut Vec<LabelPair>, hostname: &str, name: &str, namespace: &str) {
    out.push(pair("destination_service", hostname));
    out.push(pair("destination_service_name", name));
    out.push(pair("destination_service_namespace", namespace));
}

fn last(out: &mut Vec<LabelPair>, flags: &str, security: &str) {
    out.push(pair("request_protocol", "tcp"));
    out.push(pair("response_flags", flags));
    out.push(pair("connection_security_policy", security));
}

/// `cart` of `cart.shop.svc.cluster.local`; the whole name of what is no Kubernetes service.
fn short(key: &ServiceKey) -> &str {
    let rest = |name: &str| key.hostname.strip_prefix(name)?.strip_prefix('.')?.strip_prefix(&key.namespace);
    let name = key.hostname.split('.').next().unwrap_or_default();
    if rest(name).is_some_and(|rest| rest.starts_with(".svc")) { name } else { &key.hostname }
}
