//! One configuration as it is served: resources by name with versions made from their content, and which identities each node may
//! ask certificates for. Immutable; the source publishes a new one, readers compare.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use mesh_api::xds::saved::SavedResource;
use mesh_api::xds::{policy_resource, service_resource, workload_resource};
use mesh_model::{Identity, Tunnel};

use crate::compile::Compiled;

/// Resources of one type, by name.
pub type Table = Arc<BTreeMap<String, Arc<SavedResource>>>;

/// After its time to end a pod may be there for so long: its node's clock and ours differ, and kubelet asks before it kills (guess).
const LATE: SignedDuration = SignedDuration::from_secs(60);

/// Until when a node may ask for an identity; the later the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Until {
    /// The pods with it are being deleted, and this is when the last of them must be over.
    Time(Timestamp),
    /// Until we are told something else.
    Told,
}

/// One configuration.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts up with each change; 0 is the empty one before the source was read.
    pub generation: u64,
    /// Workloads and services.
    pub addresses: Table,
    /// Policies.
    pub policies: Table,
    /// Node → identities of the mesh pods bound to it, and until when.
    identities: HashMap<String, HashMap<Identity, Until>>,
}

impl Snapshot {
    /// From what was compiled. Resources that did not change are shared with `last`.
    pub fn new(compiled: &Compiled, last: &Self) -> Self {
        let addresses = table(
            compiled.workloads.iter().map(workload_resource).chain(compiled.services.iter().map(service_resource)),
            &last.addresses,
        );
        let policies = table(compiled.policies.iter().map(policy_resource), &last.policies);
        let mut identities: HashMap<String, HashMap<Identity, Until>> = HashMap::new();
        // Pods outside the mesh have no identity: whoever holds a node's token gets nothing in their name.
        for workload in compiled.workloads.iter().filter(|workload| workload.tunnel == Tunnel::Hbone) {
            if let Ok(identity) = workload.identity() {
                let until = compiled.ends.get(&workload.uid).map_or(Until::Told, |ends| Until::Time(*ends));
                let place = identities.entry(workload.node.clone()).or_default().entry(identity).or_insert(until);
                *place = until.max(*place);
            }
        }
        Self { generation: last.generation + 1, addresses, policies, identities }
    }

    /// Whether both say the same.
    pub fn same_as(&self, other: &Self) -> bool {
        let same = |a: &Table, b: &Table| {
            a.len() == b.len()
                && a.iter()
                    .zip(b.iter())
                    .all(|((name, x), (other, y))| name == other && (Arc::ptr_eq(x, y) || x.version == y.version))
        };
        same(&self.addresses, &other.addresses)
            && same(&self.policies, &other.policies)
            && self.identities == other.identities
    }

    /// Whether a mesh pod with this identity is bound to the node, and not past the time in which it must end: its object may stay for
    /// long after that, on a node that nobody hears of any more.
    pub fn may_have(&self, node: &str, identity: &Identity, now: Timestamp) -> bool {
        match self.identities.get(node).and_then(|identities| identities.get(identity)) {
            Some(Until::Told) => true,
            Some(Until::Time(ends)) => now.duration_since(*ends) <= LATE,
            None => false,
        }
    }

    /// Everything, in the order in which it must be applied: policies before the workloads that list them.
    pub fn resources(&self) -> impl Iterator<Item = &SavedResource> {
        self.policies.values().chain(self.addresses.values()).map(|resource| &**resource)
    }
}

fn table(resources: impl Iterator<Item = SavedResource>, last: &Table) -> Table {
    let entries = resources.map(|resource| {
        let name = resource.name.clone();
        match last.get(&name) {
            Some(same) if same.version == resource.version => (name, same.clone()),
            _ => (name, Arc::new(resource)),
        }
    });
    Arc::new(entries.collect())
}

#[cfg(test)]
mod tests {
    use mesh_api::manifests::{Kind, Store};
    use serde_json::{Value, json};

    use super::*;
    use crate::compile::compile;
    use crate::compile::tests::config;

    fn pod(name: &str, deleted: Option<&str>) -> Value {
        let mut pod = json!({"metadata": {"name": name, "namespace": "shop", "labels": {"culvert.io/mesh": "enabled"}},
            "spec": {"nodeName": "node-1", "serviceAccountName": "cart", "containers": []}});
        if let Some(time) = deleted {
            pod["metadata"]["deletionTimestamp"] = time.into();
        }
        pod
    }

    #[test]
    fn a_pod_past_its_time_to_end_takes_its_identity_along_unless_another_has_it() {
        let may = |pods: &[&Value], now: &str| {
            let mut store = Store::default();
            pods.iter().for_each(|pod| drop(store.item(Kind::Pod, (*pod).clone())));
            let snapshot = Snapshot::new(&compile(store.objects(), &[], &config()), &Snapshot::default());
            let identity = Identity::parse("spiffe://cluster.local/ns/shop/sa/cart").expect("an identity");
            snapshot.may_have("node-1", &identity, now.parse().expect("a time"))
        };
        let leaves = pod("cart-1", Some("2026-01-01T00:00:30Z"));
        assert!(may(&[&leaves], "2026-01-01T00:00:00Z"), "it has time to end");
        assert!(may(&[&leaves], "2026-01-01T00:01:30Z"), "clocks differ");
        assert!(!may(&[&leaves], "2026-01-01T00:01:31Z"));
        let later = pod("cart-2", Some("2026-01-01T01:00:00Z"));
        assert!(may(&[&leaves, &later], "2026-01-01T01:00:00Z"), "the later counts");
        assert!(may(&[&later, &leaves], "2026-01-01T01:00:00Z"));
        assert!(may(&[&leaves, &pod("cart-3", None)], "2026-01-02T00:00:00Z"));
    }
}
