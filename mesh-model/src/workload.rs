//! A workload: one pod as the rest of the mesh knows it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::policy::PolicyKey;
use crate::{BadIdentity, Identity, PodName, PodUid, ServiceKey, Telemetry, TrustDomain};

/// Primary key of a workload, `<cluster>//Pod/<namespace>/<name>` for pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(pub String);

impl WorkloadUid {
    /// The key of a pod's workload.
    pub fn of_pod(cluster: &str, pod: &PodName) -> Self {
        Self(format!("{cluster}//Pod/{}/{}", pod.namespace, pod.name))
    }

    /// Whether this is the key of a pod.
    pub fn is_pod(&self) -> bool {
        self.cluster().is_some()
    }

    /// The cluster of a pod's key; `None` for keys of other kinds.
    pub fn cluster(&self) -> Option<&str> {
        self.0.split_once("//Pod/").map(|(cluster, _)| cluster)
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// It is not in the mesh: plain TCP to its own port.
    Clear,
    /// HBONE to port 15008; never dialled in clear.
    Hbone,
}

/// Whether it may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Ready.
    Healthy,
    /// Not ready, or on its way out.
    Unhealthy,
}

/// Whether a NetworkPolicy selects the pod. Two pods of one node may take the short way between sockets only when both are
/// known to be unselected, else the CNI's own enforcement would be passed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkPolicy {
    /// Selected, or not known: the tunnel over the veth is used.
    Selected,
    /// Known not to be selected.
    Unselected,
}

/// How a workload stands behind one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// (service port, port at the workload) pairs.
    pub ports: Vec<(u16, u16)>,
    /// Whether callers of the service may be led to it.
    pub readiness: Readiness,
    /// Whose clients it is meant for.
    pub hints: Hints,
}

impl Endpoint {
    /// Of these ports, and nothing else is known.
    pub fn at(ports: impl Into<Vec<(u16, u16)>>) -> Self {
        Self { ports: ports.into(), ..Self::default() }
    }
}

/// Whether callers of a service may be led to an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// Nobody says it of this service: the workload's own health decides, and whether the service wants those that are not ready as well.
    #[default]
    Unsaid,
    /// It is ready, whatever the workload's own health is.
    Ready,
    /// It comes to its end and still serves: for as long as there is none that is ready.
    Ending,
}

/// Whose clients an endpoint is meant for (an EndpointSlice's `hints`); none: everybody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Those of these zones.
    pub zones: Vec<String>,
    /// Those of these nodes.
    pub nodes: Vec<String>,
}

/// One pod as the rest of the mesh knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Primary key.
    pub uid: WorkloadUid,
    /// Pod namespace and name.
    pub pod: PodName,
    /// Kubernetes uid of the pod, where the control plane sends it (ours does).
    pub pod_uid: Option<PodUid>,
    /// Service account.
    pub service_account: String,
    /// Trust domain of its identity.
    pub trust_domain: TrustDomain,
    /// Its addresses; empty while only bound to a node.
    pub addresses: Vec<IpAddr>,
    /// Node it runs on.
    pub node: String,
    /// How it is reached.
    pub tunnel: Tunnel,
    /// Policies that select it by label (namespace and root policies apply without being listed).
    pub policies: Vec<PolicyKey>,
    /// Whether it may be chosen.
    pub health: Health,
    /// The services it stands behind.
    pub services: BTreeMap<ServiceKey, Endpoint>,
    /// Whether a NetworkPolicy selects it.
    pub network_policy: NetworkPolicy,
    /// A host-network pod shares its node's address and is never found by address.
    pub host_network: bool,
    /// It is to be reached through a waypoint, which this mesh does not do: not at all. What reaches the pod itself is judged as ever.
    pub needs_waypoint: bool,
    /// What it is called in metrics and logs.
    pub telemetry: Arc<Telemetry>,
}

impl Workload {
    /// The identity this workload shows and is asked for.
    pub fn identity(&self) -> Result<Identity, BadIdentity> {
        Identity::new(self.trust_domain.clone(), &self.pod.namespace, &self.service_account)
    }

    /// Of several that claim one address, which comes first: a pod before others and one that speaks HBONE before one that does not, as
    /// ztunnel settles it; then one that is ready before one that leaves or has yet to start, since an address is given away again while
    /// its last owner is still known; then the smallest key. Total over distinct keys, so that the order of arrival decides nothing.
    pub fn claim_order(&self, other: &Self) -> Ordering {
        self.claims_before().cmp(&other.claims_before()).then_with(|| self.uid.cmp(&other.uid))
    }

    /// The same for whoever keeps claims and not workloads: the smaller comes first.
    pub fn claim_rank(&self) -> ClaimRank {
        ClaimRank(self.claims_before(), self.uid.clone())
    }

    fn claims_before(&self) -> (bool, bool, bool) {
        (!self.uid.is_pod(), self.tunnel != Tunnel::Hbone, self.health != Health::Healthy)
    }
}

/// Where a workload stands in [`Workload::claim_order`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimRank((bool, bool, bool), WorkloadUid);
