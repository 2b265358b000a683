//! One configuration as it is served: resources by name with versions made from their content, and which identities each node may
//! ask certificates for. Immutable; the source publishes a new one, readers compare.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use mesh_api::xds::saved::SavedResource;
use mesh_api::xds::{policy_resource, service_resource, workload_resource};
use mesh_model::{Identity, Tunnel};

use crate::compile::{Changes, Records};
use crate::table::Table;

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

/// The identities of a namespace's mesh pods, by node.
type Identities = HashMap<String, HashMap<Identity, Until>>;

/// One configuration.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts up with each change; 0 is the empty one before the source was read.
    pub generation: u64,
    /// Workloads and services.
    pub addresses: Table,
    /// Policies.
    pub policies: Table,
    /// By namespace, which an identity names too.
    identities: BTreeMap<String, Arc<Identities>>,
}

impl Snapshot {
    /// The one after this. What did not change is shared by both.
    pub fn after(&self, changes: &Changes) -> Self {
        let Self { generation, mut addresses, mut policies, mut identities } = match changes.whole {
            // Nothing is left of namespaces that are not named; those that are may have stayed the same.
            true => Self { generation: self.generation, ..Self::default() },
            false => self.clone(),
        };
        for (namespace, records) in &changes.namespaces {
            let Records { workloads, ends: _, services, policies: of_namespace } = records;
            let resources = workloads.iter().map(workload_resource).chain(services.iter().map(service_resource));
            addresses.put(namespace, resources, &self.addresses);
            policies.put(namespace, of_namespace.iter().map(policy_resource), &self.policies);
            match identities_of(records) {
                none if none.is_empty() => drop(identities.remove(namespace)),
                some => drop(identities.insert(namespace.clone(), Arc::new(some))),
            }
        }
        Self { generation: generation + 1, addresses, policies, identities }
    }

    /// Whether both say the same.
    pub fn same_as(&self, other: &Self) -> bool {
        self.addresses.same_as(&other.addresses)
            && self.policies.same_as(&other.policies)
            && self.identities.len() == other.identities.len()
            && self.identities.iter().zip(&other.identities).all(|((of, one), (namespace, another))| {
                of == namespace && (Arc::ptr_eq(one, another) || one == another)
            })
    }

    /// Whether a mesh pod with this identity is bound to the node, and not past the time in which it must end: its object may stay for
    /// long after that, on a node that nobody hears of any more.
    pub fn may_have(&self, node: &str, identity: &Identity, now: Timestamp) -> bool {
        let of_namespace = self.identities.get(identity.namespace());
        match of_namespace.and_then(|nodes| nodes.get(node)?.get(identity)) {
            Some(Until::Told) => true,
            Some(Until::Time(ends)) => now.duration_since(*ends) <= LATE,
            None => false,
        }
    }

    /// Everything, in the order in which it must be applied: policies before the workloads that list them.
    pub fn resources(&self) -> impl Iterator<Item = &SavedResource> {
        self.policies.iter().chain(self.addresses.iter()).map(|resource| &**resource)
    }
}

/// Pods outside the mesh have no identity: whoever holds a node's token gets nothing in their name.
fn identities_of(records: &Records) -> Identities {
    let mut identities = Identities::new();
    for workload in records.workloads.iter().filter(|workload| workload.tunnel == Tunnel::Hbone) {
        if let Ok(identity) = workload.identity() {
            let until = records.ends.get(&workload.uid).map_or(Until::Told, |ends| Until::Time(*ends));
            let place = identities.entry(workload.node.clone()).or_default().entry(identity).or_insert(until);
            *place = until.max(*place);
        }
    }
    identities
}

#[cfg(test)]
mod tests {
    use mesh_api::manifests::{Kind, Store};
    use serde_json::{Value, json};

    use super::*;
    use crate::compile::Compiler;
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
            let changes = Compiler::default().compile(store.objects(), &[], &config());
            let snapshot = Snapshot::default().after(&changes);
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
