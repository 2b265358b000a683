//! What a workload is called in metrics and logs. Nothing is decided by any of it.

/// Names of a workload for people, in Istio's words. An empty text is one that is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Telemetry {
    /// What made the pod: a Deployment's name, not its ReplicaSet's.
    pub workload_name: String,
    /// The application (labels `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`; else the workload's name).
    pub canonical_name: String,
    /// Its version (labels `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`; else `latest`).
    pub canonical_revision: String,
    /// The node's `topology.kubernetes.io/region`.
    pub region: String,
    /// The node's `topology.kubernetes.io/zone`.
    pub zone: String,
    /// The node's `topology.istio.io/subzone`.
    pub subzone: String,
}
