//! What Culvert's own objects are called in a cluster; the manifests say the same.

use clap::ValueEnum;

/// The namespace of the mesh itself.
pub const NAMESPACE: &str = "culvert-system";
/// All objects of the mesh, as a selector in a query.
pub const OURS: &str = "labelSelector=app.kubernetes.io%2Fpart-of%3Dculvert";
/// The label that `OURS` selects by; its value is `culvert`.
pub const PART_OF: &str = "app.kubernetes.io/part-of";
/// The label that names the component of an object and of a pod.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// Owner of the fields that `culvert install` sets.
pub const MANAGER: &str = "culvert";
/// The Pod condition that pod-watcher writes from what it observed.
pub const CAPTURED: &str = "culvert.io/Captured";
/// The taint of a node on which enrolled pods cannot start yet.
pub const NOT_READY: &str = "culvert.io/not-ready";
/// Who reports Events of the mesh: pod-watcher of what happened to pods, the control plane of what is not carried out as written.
pub const REPORTERS: [&str; 2] = ["culvert.io/pod-watcher", "culvert.io/control-plane"];

/// A component of the mesh, or one container of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Component {
    /// The daemon that decides enrolment and writes rules; one a node.
    PodWatcher,
    /// The proxy: both of its containers; one a node.
    NodeProxy,
    /// The proxy's container that holds privileges.
    Keeper,
    /// The proxy's container that carries traffic.
    Worker,
    /// Configuration and certificates.
    ControlPlane,
}

impl Component {
    /// Those that are objects of their own, in the order in which an enrolled pod needs them.
    pub const ALL: [Self; 3] = [Self::ControlPlane, Self::NodeProxy, Self::PodWatcher];

    /// The value of its label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::PodWatcher => "pod-watcher",
            Self::NodeProxy | Self::Keeper | Self::Worker => "node-proxy",
            Self::ControlPlane => "control-plane",
        }
    }

    /// Its containers.
    pub const fn containers(self) -> &'static [&'static str] {
        match self {
            Self::PodWatcher => &["pod-watcher"],
            Self::NodeProxy => &["keeper", "worker"],
            Self::Keeper => &["keeper"],
            Self::Worker => &["worker"],
            Self::ControlPlane => &["control-plane"],
        }
    }

    /// The object that makes its pods: resource and name.
    pub const fn object(self) -> (&'static str, &'static str) {
        match self {
            Self::PodWatcher => ("daemonsets", "culvert-pod-watcher"),
            Self::NodeProxy | Self::Keeper | Self::Worker => ("daemonsets", "culvert-node-proxy"),
            Self::ControlPlane => ("deployments", "culvert-control-plane"),
        }
    }
}
